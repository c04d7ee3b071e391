"""The report of a run: everything that is known of it as one dict, and the closing table drawn from that dict."""

import json
import os
import platform
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from tsm import __version__
from tsm.checkpoint import published
from tsm.cli import printable
from tsm.files import read_json, sha256
from tsm.labels import name_of
from tsm.machine import processor_name
from tsm.model.offline import Offline
from tsm.protocol import CENTRE_VIEW, PIPELINES, SSV2, Protocol, differences, protocol_from
from tsm.report.findings import another_order
from tsm.results import OWN, TIMES, Accuracy, flips_in_words, is_time, own_entry, throughput_in
from tsm.workfolder import TUNE, read_stages

LATENCY_BINS = 40
BACKWARDS = 0.2  # of the wrong answers, from which on those that are the action played backwards are what stands out
ORDER = "order of the labels"  # a check
PASS, FAIL, NOTE = "pass", "fail", "note"  # states of a check; a note is neither good nor bad

ATLAS_THROUGHPUT = {1: 20.77, 4: 18.41, 8: 17.67, 16: 17.12, 32: 17.36}  # videos/s by batch, the Ascend guide, Atlas 310P3


def read_throughput(batches: Sequence[int]) -> Dict[str, float]:
    """{batch: videos per second} from perf/bs<batch>.log, as far as these hold what ais_bench or TSM_infer.py printed."""
    found = {}
    for batch in batches:
        with open(os.path.join("perf", "bs%d.log" % batch), encoding="utf-8", errors="replace") as file:
            found[str(batch)] = throughput_in(file.read())
    return {batch: figure for batch, figure in found.items() if figure is not None}


def published_of(fusion: str, protocol: Protocol, checkpoint_sha256: Optional[str]) -> Tuple[Optional[published.Published], str]:
    """(what was published of a checkpoint under this test and fusion, why nothing can be compared with: empty if it can)."""
    if not checkpoint_sha256:
        return None, "the checkpoint is not known (--checkpoint names it)"
    row = published.by_sha256(checkpoint_sha256)
    if row is None:
        return None, "this checkpoint is none of the published files (TSM_checkpoint.py --list)"
    test = dict(PIPELINES[row.pipeline], segments=row.segments)
    differs = ["%s %s, not %s" % (name, getattr(protocol, name), wanted) for name, wanted in test.items()
               if getattr(protocol, name) != wanted]
    if differs:
        return None, "%s was tested otherwise (here %s)" % (row.file, ", ".join(differs))
    found = published.published(row, fusion)
    return found, "" if found else "nothing was published of %s with its views fused by %s" % (row.file, fusion)


def against_published(accuracy: Accuracy, published: Optional[published.Published], why: str) -> Tuple[str, str]:
    """(state, one line): does the measured top-1 agree with the published one, if the two can be compared at all?"""
    if published is None:
        return NOTE, "no published figure to compare with: %s." % why
    if accuracy.videos != published.videos:
        return NOTE, "%s's top-1 %.4f is of %s of %s; these are %d videos, so the two are not compared." % (
            published.source, published.top1_acc, "the %d videos" % published.videos if published.videos else "a copy",
            published.data, accuracy.videos)
    low, high = accuracy.top1_interval_95
    within = low <= published.top1_acc <= high
    return PASS if within else FAIL, "%s's top-1 %.4f lies %s the measured 95 %% interval %.4f to %.4f." % (
        published.source, published.top1_acc, "within" if within else "OUTSIDE", low, high)


def collect(
    arguments: Dict[str, Any], model: Offline, summary: Dict[str, Any], manifest: Dict[str, Any], accuracy: Accuracy,
    names: Optional[List[str]], found: Dict[str, Any], counted: Accuracy,
) -> Dict[str, Any]:
    """Everything that the table and the page show and what made it, as report.json holds it. `arguments` are TSM_report.py's,
    `accuracy` is the one that is reported, `found` findings(), and `counted` the accuracy of the same results."""
    facts = {key: value for key, value in model.metadata.items() if key.startswith("tsm.")}
    fusion, device, precision = model.fusion or "score", arguments["device"], arguments["precision"]  # score: an online model's, of views
    digest = facts.get("tsm.checkpoint_sha256", sha256(arguments["checkpoint"]) if arguments["checkpoint"] else None)
    published, why = published_of(fusion, model.tested_by, digest)
    state, comparison = against_published(accuracy, published, why) if "tsm.about" not in facts else (NOTE, "")  # a toy
    tune = read_json(TUNE, "tune") if device == "npu" and os.path.exists(TUNE) else None
    report = {
        "version": __version__,
        "made": {"date": time.strftime("%Y-%m-%d %H:%M", time.localtime(os.path.getmtime(arguments["result_path"]))),
                 "host": platform.node(), "folder": os.path.dirname(os.path.abspath(arguments["output"]))},
        "device": {"kind": device, "name": "%s %s" % (processor_name(), precision) if device == "cpu" else "Ascend NPU",
                   "precision": precision, "machine": platform.machine(), "python": platform.python_version()},
        "arguments": arguments,
        "fusion": fusion,
        "batch_size": arguments["batch_size"],
        "checkpoint_sha256": digest,
        "accuracy": accuracy._asdict(),
        "comparison": comparison,
        "published": published._asdict() if published else None,
        "throughput": read_throughput(arguments["perf_batches"]),
        "inference": dict({name: summary[name] for name in TIMES if isinstance(summary.get(name), dict) and is_time(
            summary[name].get("mean"))}, **{OWN: {key: value for key, value in own_entry(summary).items() if key != "views_agree"}}),
        "latency": latency(summary.get("npu_compute_time_list")),
        "model": facts,
        "protocol": manifest["protocol"],
        "preprocessing_versions": manifest["versions"],
        "skipped": manifest["skipped"],
        "stages": read_stages(),
        "names": names,
        "findings": found,
        "tune": tune if tune and tune["checkpoint_sha256"] == digest else None,
        "agreement": read_json(arguments["agreement"], "agreement") if arguments["agreement"] else None,
    }
    return dict(report, checks=checks_of(report, model.tested_by, counted, state))


def checks_of(report: Dict[str, Any], tested_by: Protocol, counted: Accuracy, state: str) -> List[Dict[str, str]]:
    """The checks that a report allows; `tested_by` is the model's protocol, `state` that of the published accuracy."""
    videos, skipped, ties = report["accuracy"]["videos"], len(report["skipped"]), report["accuracy"]["verdicts_on_ties"]
    label, answer = (np.array(report["findings"]["videos"][name]) for name in ("label", "answer"))
    another, words = another_order(label, answer, report["protocol"]["classes"], report["names"])
    found = (
        _joined(report, counted), check(ORDER, FAIL if another else PASS, words), _proved(report), _same_protocol(report, tested_by),
        check("skipped videos", NOTE if skipped else PASS, "%d of %d could not be read and do not count" % (skipped, skipped + videos)
              if skipped else "none: all videos of the list were measured"),
        _precision(report), check("published accuracy", state, report["comparison"]),
        check("ties", NOTE, "%d verdicts hang on equal scores; NPY and BIN results keep more digits" % ties if ties else ""))
    return [entry for entry in found if entry["text"]]


def latency(times: Any) -> Optional[Dict[str, Any]]:
    """Percentiles of the batches' times in ms, and counts in equal bins, the last of which has all that is slower than
    99.5 %; None without a list of numbers."""
    if not isinstance(times, list) or not times or not all(map(is_time, times)):
        return None
    values = np.array(times, np.float64)
    low, high = float(values.min()), float(np.percentile(values, 99.5))
    counts, edges = np.histogram(np.clip(values, low, max(high, low)), LATENCY_BINS, (low, high if high > low else low + 1))
    return dict(zip(("p50", "p90", "p99"), np.percentile(values, (50, 90, 99)).tolist()), count=len(times), low=float(edges[0]),
                high=float(edges[-1]), bins=counts.tolist())


def check(name: str, state: str, text: str) -> Dict[str, str]:
    """An entry of the report's checks."""
    return {"name": name, "state": state, "text": text}


def _joined(report: Dict[str, Any], counted: Accuracy) -> Dict[str, str]:
    videos = report["accuracy"]["videos"]
    differs = [(name, report["accuracy"][name], value) for name, value in counted._asdict().items() if report["accuracy"][name] != value]
    if differs:
        return check("results", FAIL, "accuracy.json says %s %s, the result files give %s; run TSM_postprocess.py again" % differs[0])
    return check("results", PASS, "%d results joined with %d labels by id, none missing, none twice" % (videos, videos))


def _proved(report: Dict[str, Any]) -> Dict[str, str]:
    try:
        proof = json.loads(report["model"]["tsm.proof"])
        worst = max(float(entry["largest_difference"]) for entry in proof.values())
        held = all(entry["largest_difference"] <= entry["tolerance"] for entry in proof.values())
    except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return check("graph surgery", NOTE, "the model holds no proof that it is the exported network")
    return check("graph surgery", PASS if held else FAIL,
                 "largest difference of a probability to the exported network %.1e" % worst)


def _same_protocol(report: Dict[str, Any], tested_by: Protocol) -> Dict[str, str]:
    made = protocol_from(report["protocol"], "the manifest")
    if "tsm.every" in (report["inference"][OWN].get("model") or {}):  # by TSM_stream.py --every, of the centre
        tested_by = tested_by._replace(**CENTRE_VIEW)
    dtype = report["protocol"]["dtype"]
    takes = report["model"].get("tsm.input_dtype", dtype).replace("aipp", "uint8_nhwc")  # ais_bench sees the size alone
    differs = differences(*(one.pixels(dtype)._replace(classes=one.classes) for one in (made, tested_by))) or (
        "%s, not %s" % (dtype, takes) if dtype != takes else "")
    return check("protocol", FAIL if differs else PASS, "the tensors are not of the model's protocol: " + differs if differs
                 else "tensors and model: %d segments, %d views, %d pixels" % (made.segments, made.views, made.size))


def _precision(report: Dict[str, Any]) -> Dict[str, str]:
    agreement, device = report["agreement"], report["device"]
    if agreement:
        return check("agreement with fp32", NOTE if agreement["flips"] else PASS,
                     "%s; largest difference of a probability from the CPU's %.2g" % (flips_in_words(
                         agreement["flips"], agreement["videos"], agreement.get("listed")), agreement["largest_difference"]))
    same = report["inference"][OWN].get("top1_agreement_with_fp32")
    if same:
        return check("agreement with fp32", PASS if same["same"] == same["videos"] else NOTE,
                     "in %s %s" % (device["precision"], flips_in_words(
                         same["videos"] - same["same"], same["videos"], same.get("listed"))))
    if device["kind"] == "cpu" and device["precision"] == "fp32":
        return check("precision", PASS, "computed in fp32")
    return check("agreement with fp32", NOTE, "not measured")


def verdict(report: Dict[str, Any]) -> str:
    """What the run found, in a sentence or three: whether its checks passed, how many videos are right, and what stands out."""
    states = [entry["state"] for entry in report["checks"]]
    failed = [entry["name"] for entry in report["checks"] if entry["state"] == FAIL]
    videos = report["accuracy"]["videos"]
    right = round(report["accuracy"]["top1_acc"] * videos)
    checks = "%d of %d checks FAILED (%s)." % (len(failed), len(failed) + states.count(PASS), ", ".join(failed)) if failed else (
        "All %d checks passed." % states.count(PASS))
    return "%s %d of %d videos right%s" % (checks, right, videos, _stands_out(report, videos - right))


def _stands_out(report: Dict[str, Any], wrong: int) -> str:
    """The finding that explains most of `wrong` videos, after what comes before it in a sentence."""
    if wrong < 2:
        return "."
    pairs, names = report["findings"]["pairs"], report["names"]
    backwards = [pair for pair in pairs if pair["reversed"]]
    lost = sum(pair["count"] for pair in backwards)
    if any(entry["state"] == FAIL and entry["name"] == ORDER for entry in report["checks"]):
        return "; another order of the labels explains more of them."
    if lost > 1 and lost >= BACKWARDS * wrong:
        return "; %d confused pair%s one action played backwards (%d of the %d wrong answers): the order of frames may be lost." % (
            len(backwards), " is" if len(backwards) == 1 else "s are", lost, wrong)
    first = pairs[0]
    if first["count"] > 1:
        return "; most often \u201c%s\u201d was taken for \u201c%s\u201d (%d videos)." % (
            name_of(first["truth"], names), name_of(first["answer"], names), first["count"])
    sure = sum(share > 0.9 for share, rank in zip(*(report["findings"]["videos"][key] for key in ("probability", "rank"))) if rank > 1)
    return "; %d of the %d wrong answers have a probability above 0.9." % (sure, wrong) if sure else "; no two mistakes are alike."


def time_split(report: Dict[str, Any]) -> List[List[Any]]:
    """[what, mean ms per batch] of the inference: computing, and copying to and from the device, or waiting for files."""
    by_ais_bench = report["device"]["kind"] == "npu" and "frame_ms" not in report["inference"][OWN]
    words = ("computing", "to the device", "from the device") if by_ais_bench else ("computing", "waiting for input", "")
    figures = [report["inference"].get(name) for name in TIMES]
    return [[word, figure["mean"]] for word, figure in zip(words, figures) if word and isinstance(figure, dict)]


def closing_rows(report: Dict[str, Any]) -> List[List[str]]:
    """The cells of the closing table; the first row is the heading. Published figures follow where they belong to this run."""
    accuracy, figure, npu = report["accuracy"], report["published"], report["device"]["kind"] == "npu"
    videos, skipped = accuracy["videos"], accuracy["skipped"]
    over = "%d of %d" % (videos, videos + skipped) if skipped else str(videos)
    cells = [["device", "batch size", "dataset", "top-1 / top-5", "videos per second"]]
    for batch in sorted({int(size) for size in report["throughput"]} | {report["batch_size"]}):
        measured = "%.4f / %.4f" % (accuracy["top1_acc"], accuracy["top5_acc"]) if batch == report["batch_size"] else ""
        speed = report["throughput"].get(str(batch))
        cells.append([report["device"]["name"], str(batch), over + " videos", measured, "" if speed is None else "%.2f" % speed])
    cells += [["the clip's model", "", "%d videos" % clip["videos"], "%(top1_acc).4f / %(top5_acc).4f" % clip, ""]
              for clip in [report["findings"].get("clip")] if clip]
    if figure:
        top5 = "" if figure["top5_acc"] is None else " / %.4f" % figure["top5_acc"]
        cells.append(["published: " + figure["source"], "", figure["data"], "%.4f%s" % (figure["top1_acc"], top5), ""])
    if npu or figure and figure["source"] == published.GUIDE:
        alike = report["protocol"]["shape"] == list(SSV2.video_shape)
        cells += [["published: Atlas 310P3, ResNet-50", str(batch), "", "", "%.2f" % ATLAS_THROUGHPUT[batch]]
                  for batch in sorted(ATLAS_THROUGHPUT) if alike and (npu or batch == 1)]
    return cells


def markdown(cells: List[List[str]]) -> str:
    """A Markdown table whose columns line up; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| %s |" % " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in cells]
    lines.insert(1, "|%s|" % "|".join("-" * (width + 2) for width in widths))
    return "\n".join(lines)


def report_text(report: Dict[str, Any]) -> str:
    """The report for a terminal: the table, how the views were fused, the comparisons, the stages."""
    parts = [markdown(closing_rows(report)), "\n" + printable(verdict(report)),
             "\nviews fused by %s%s" % (report["fusion"], "; " + report["comparison"] if report["comparison"] else "")]
    parts += ["%(name)s: %(text)s" % entry for entry in report["checks"] if entry["name"] == "agreement with fp32"]
    parts += ["FAILED %(name)s: %(text)s" % entry for entry in report["checks"] if entry["state"] == FAIL]
    parts.append("\n" + markdown([["stage", "seconds", "peak memory, MB"]] + [
        [stage, "%.1f" % entry["seconds"], "%.0f" % entry["peak_mb"]] for stage, entry in report["stages"].items()]))
    return "\n".join(parts)

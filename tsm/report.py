"""The report of a run: everything that is known of it as one dict, and the closing table drawn from that dict."""

import os
import platform
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from tsm import __version__
from tsm.accuracy import Accuracy
from tsm.cli import UserError
from tsm.files import read_json
from tsm.machine import processor_name
from tsm.onnxfile import load, metadata
from tsm.protocol import FUSIONS
from tsm.results import read_summary, throughput_in
from tsm.samples import read_manifest

VALIDATION_VIDEOS = 24777  # of Something-Something V2


class Published(NamedTuple):
    """What was published of a checkpoint: figures belong to a file, so its SHA-256 must begin with `digest`."""

    checkpoint: str
    digest: str
    source: Dict[str, str]  # by the fusion
    top1: Dict[str, float]
    top5: Dict[str, float]


PUBLISHED = Published(
    "tsm_r50_256h_1x1x8_50e_sthv2_rgb_20210816-032aa4da.pth", "032aa4da",
    {"score": "the Ascend guide", "prob": "mmaction2"}, {"score": 0.6187, "prob": 0.6182}, {"score": 0.8721, "prob": 0.8680})
ATLAS_THROUGHPUT = {1: 20.77, 4: 18.41, 8: 17.67, 16: 17.12, 32: 17.36}  # videos/s by batch, the Ascend guide, Atlas 310P3


def read_throughput(batch: int) -> float:
    """Videos per second from perf/bs<batch>.log, which holds what ais_bench or TSM_infer.py printed."""
    path = os.path.join("perf", "bs%d.log" % batch)
    with open(path, encoding="utf-8", errors="replace") as file:
        throughput = throughput_in(file.read())
    if throughput is None:
        raise UserError("%s: no throughput line of ais_bench in it; measure batch %d again" % (path, batch))
    return throughput


def read_metadata(path: str) -> Dict[str, str]:
    """What modify_onnx.py wrote into the model: fusion, target, rules, proof, protocol, checkpoint."""
    facts = {key: value for key, value in metadata(load(path)).items() if key.startswith("tsm.")}
    if facts.get("tsm.fusion") not in FUSIONS:
        raise UserError("%s: does not say how it fuses the views; make it with modify_onnx.py" % path)
    return facts


def read_stages(path: str) -> Dict[str, Any]:
    """{stage: its entry} of stages.json; a file or an entry that cannot be read is left out, as it is only for show."""
    try:
        stages = read_json(path)
    except (UserError, FileNotFoundError):
        return {}
    known = stages.items() if isinstance(stages, dict) else ()
    return {name: entry for name, entry in known
            if isinstance(entry, dict) and all(isinstance(entry.get(key), (int, float)) for key in ("seconds", "peak_mb"))}


def device_name(device: str, precision: str) -> str:
    """What the figures were measured on."""
    return "%s %s" % (processor_name(), precision) if device == "cpu" else "Ascend NPU"


def verdict(accuracy: Accuracy, fusion: str, checkpoint_sha256: Optional[str]) -> str:
    """One line: does the measured top-1 agree with the published one, if the two can be compared at all?"""
    if not (checkpoint_sha256 or "").startswith(PUBLISHED.digest):
        whose = "another checkpoint" if checkpoint_sha256 else "a checkpoint that is not known (--checkpoint names it)"
        return "no published figure to compare with: %s is of %s, and this is %s." % (
            "the published top-1 %.4f" % PUBLISHED.top1[fusion], PUBLISHED.checkpoint, whose)
    if accuracy.videos + accuracy.skipped != VALIDATION_VIDEOS:
        return ("the published top-1 is of the %d videos of the validation set; these are %d videos, so the two are not "
                "compared." % (VALIDATION_VIDEOS, accuracy.videos))
    low, high = accuracy.top1_interval_95
    return "%s's top-1 %.4f lies %s the measured 95 %% interval %.4f to %.4f." % (
        PUBLISHED.source[fusion], PUBLISHED.top1[fusion],
        "within" if low <= PUBLISHED.top1[fusion] <= high else "OUTSIDE", low, high)


def collect(
    accuracy: Accuracy, model: str, result_path: str, manifest_path: str, device: str, precision: str, batch: int,
    perf_batches: Sequence[int], checkpoint_sha256: Optional[str], arguments: Dict[str, Any],
) -> Dict[str, Any]:
    """Everything that the table shows and what made it, as report.json holds it.

    Args:
        model: the modified ONNX model, for its metadata.
        result_path, manifest_path: summary of the inference, manifest of the preprocessing.
        batch: batch size of the inference. perf_batches: those whose perf/bs<B>.log is read.
        checkpoint_sha256: of the checkpoint, if the model's metadata do not know it.
    """
    facts = read_metadata(model)
    fusion = facts["tsm.fusion"]
    manifest, summary = read_manifest(manifest_path), read_summary(result_path)
    digest = facts.get("tsm.checkpoint_sha256", checkpoint_sha256)
    report: Dict[str, Any] = {
        "version": __version__,
        "device": {"kind": device, "name": device_name(device, precision), "precision": precision,
                   "machine": platform.machine(), "python": platform.python_version()},
        "arguments": arguments,
        "fusion": fusion,
        "batch_size": batch,
        "checkpoint_sha256": digest,
        "accuracy": accuracy._asdict(),
        "comparison": verdict(accuracy, fusion, digest),
        "published": None,
        "throughput": {str(size): read_throughput(size) for size in perf_batches},
        "inference": {key: value for key, value in summary.items() if key not in ("filesinfo", "npu_compute_time_list")},
        "model": facts,
        "protocol": manifest["protocol"],
        "preprocessing_versions": manifest["versions"],
        "skipped": manifest["skipped"],
        "stages": read_stages("stages.json"),
    }
    if (digest or "").startswith(PUBLISHED.digest):
        report["published"] = {"source": PUBLISHED.source[fusion], "top1_acc": PUBLISHED.top1[fusion],
                               "top5_acc": PUBLISHED.top5[fusion]}
    return report


def rows(report: Dict[str, Any]) -> List[List[str]]:
    """The cells of the closing table; the first row is the heading. Published figures follow where they belong to this run."""
    accuracy, published, npu = report["accuracy"], report["published"], report["device"]["kind"] == "npu"
    videos, skipped = accuracy["videos"], accuracy["skipped"]
    over = "%d of %d" % (videos, videos + skipped) if skipped else str(videos)
    cells = [["device", "batch size", "dataset", "top-1 / top-5", "videos per second"]]
    for batch in sorted({int(size) for size in report["throughput"]} | {report["batch_size"]}):
        measured = "%.4f / %.4f" % (accuracy["top1_acc"], accuracy["top5_acc"]) if batch == report["batch_size"] else ""
        speed = report["throughput"].get(str(batch))
        cells.append([report["device"]["name"], str(batch), over + " videos", measured, "" if speed is None else "%.2f" % speed])
    guide = npu or published and report["fusion"] == "score"  # the guide's speeds are of the network, whatever its weights
    if not (guide or published):
        return cells
    for batch in sorted(ATLAS_THROUGHPUT) if npu else [1]:
        measured = "%.4f / %.4f" % (published["top1_acc"], published["top5_acc"]) if published and batch == 1 else ""
        cells.append(["published: " + ("Atlas 310P3" if guide else published["source"]), str(batch), "Sth-Sth V2 val", measured,
                      "%.2f" % ATLAS_THROUGHPUT[batch] if guide else ""])
    return cells


def table(cells: List[List[str]]) -> str:
    """A Markdown table whose columns line up; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| %s |" % " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in cells]
    lines.insert(1, "|%s|" % "|".join("-" * (width + 2) for width in widths))
    return "\n".join(lines)


def text(report: Dict[str, Any]) -> str:
    """The report for a terminal: the table, how the views were fused, the comparisons, the stages."""
    parts = [table(rows(report)), "\nviews fused by %s; %s" % (report["fusion"], report["comparison"])]
    agreement = report["inference"].get("tsm", {}).get("top1_agreement_with_fp32")
    if agreement:
        parts.append("top-1 in %s agrees with fp32 on %d of the %d videos that both were run on" % (
            report["device"]["precision"], agreement["same"], agreement["videos"]))
    parts.append("\n" + table([["stage", "seconds", "peak memory, MB"]] + [
        [stage, "%.1f" % entry["seconds"], "%.0f" % entry["peak_mb"]] for stage, entry in report["stages"].items()]))
    return "\n".join(parts)

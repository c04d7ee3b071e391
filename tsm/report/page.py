"""The pages: a report, two runs compared, answers for one's own videos; each is one HTML file that needs no network.

They are drawn from plain values alone, and equal values give equal bytes. Whatever comes from the data is escaped
(Jinja2's autoescape, and its JSON, of which no character can end a script); the page's own policy forbids every request
and every script but its own.
"""

import base64
import hashlib
import itertools
import os
import re
import shlex
from collections import Counter
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from markupsafe import Markup, escape

from tsm.chain import tune
from tsm.labels import name_of
from tsm.protocol import protocol_from
from tsm.report.collect import closing_rows, time_split, verdict
from tsm.report.compare import chance, difference
from tsm.report.findings import Columns
from tsm.results import OWN

TITLES = {  # of the gallery's parts
    "failures": ("Failures", "Wrong answers, the most certain first."),
    "near_misses": ("Near misses", "The truth came second, by the smallest margin."),
    "successes": ("Successes", "Right answers, drawn at random by a fixed seed."),
}
WIDTH, HEIGHT = 320, 170  # of a chart, in its own units
HEATS = 5
STAGE_NAMES = {"lists": "lists of the videos", "preprocess": "preprocessing", "export": "export to ONNX", "surgery": "graph surgery",
               "atc": "compiling by ATC", "quantise": "quantisation to int8", "infer": "inference", "throughput": "speed",
               "agreement": "agreement with fp32"}  # of run_all.sh; the others are called what they are


def percent(share: float, digits: int = 1) -> str:
    """A share 0..1 as `62.5 %`, with a thin space that does not break."""
    return "%.*f\u202f%%" % (digits, 100 * share)


def sure(probability: float) -> str:
    """A probability in three decimals, none of which says that it is certain."""
    return "> 0.999" if 0.9995 <= probability < 1 else "%.3f" % probability


def plain(number: float) -> str:
    """A number in at least three digits and no exponent, as in 0.0123, 4.56 and 17,070."""
    size = abs(number)
    return "{:,.{}f}".format(number, 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.1 else 4)


def stage_name(name: str) -> str:
    """A stage of run_all.sh in words: `surgery_bs4` is `graph surgery, batch 4`."""
    first, _, batch = name.partition("_bs")
    return STAGE_NAMES.get(first, first) + (", batch " + batch if batch else "")


def about_model(metadata: Mapping[str, str]) -> List[str]:
    """What is to be known of a model before its answers."""
    causal = "bi-directional weights run causally: another network than the one that was trained, with other answers"
    return [metadata[key] if key == "tsm.about" else causal for key in ("tsm.about", "tsm.approximates") if key in metadata]


def rendered(template: str, title: str, values: Dict[str, Any]) -> str:
    """The page of a template."""
    import jinja2  # here, as it takes a tenth of a second, which TSM_predict.py rarely needs

    loader = jinja2.PackageLoader("tsm.report")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["whole"] = lambda text: Markup(re.sub(r"(?<![^\s(])--\w+", r"<code>\g<0></code>", str(escape(text))))  # --option
    css, script = (Markup(loader.get_source(environment, name)[0]) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(template).render(
        values, title=title, css=css, script=script, script_hash=Markup("sha256-" + digest), percent=percent, sure=sure,
        plain=plain)
    return page.encode("utf-8", "backslashreplace").decode()  # a file's name may hold bytes that are not UTF-8


def report_page(report: Dict[str, Any]) -> str:
    """The page of a report, as report.json holds it."""
    return rendered("report.html.j2", "TSM accuracy report: " + subject(report), report_values(report))


def compare_page(found: Dict[str, Any]) -> str:
    """The page of a comparison, as tsm.compare.compare() gives it."""
    return rendered("compare.html.j2", "TSM: two runs compared", {
        "r": found, "name": lambda number: name_of(number, found["names"]), "chance": chance(found["mcnemar"]["p"]),
        "difference": difference(found), "kinds": Counter(flip["kind"] for flip in found["flips"]),
        "strips": [flip for flip in found["flips"] if flip.get("strip")]})


def suspects_page(found: Dict[str, Any]) -> str:
    """The page of what was suspected of a run, as tsm.report.suspects.suspects_json() gives it."""
    return rendered("suspects.html.j2", "TSM: what explains the accuracy?", {"r": found})


def predict_page(found: Dict[str, Any]) -> str:
    """The page of the answers of TSM_predict.py: {model, engine, precision, views, inputs: of as_cards()}."""
    return rendered("predict.html.j2", "TSM: " + found["model"], {"r": found})


def subject(report: Dict[str, Any]) -> str:
    """What the report is of: the checkpoint's name, or the model's."""
    return os.path.basename(str(report["model"].get("tsm.checkpoint") or report["arguments"]["model"]))


def report_values(report: Dict[str, Any]) -> Dict[str, Any]:
    """What the template of a report is given."""
    names, found, accuracy = report["names"], report["findings"], report["accuracy"]
    low, high = accuracy["top1_interval_95"]
    longest = max([entry["seconds"] for entry in report["stages"].values()] + [1e-9])
    split = time_split(report)
    total = sum(ms for _, ms in split) or 1
    values: Dict[str, Any] = {
        "r": report, "accuracy": accuracy, "found": found, "subject": subject(report), "low": low, "high": high, "verdict": verdict(report),
        "about": about_model(report["model"]), "classes": report["protocol"]["classes"],
        "name": lambda number: name_of(number, names), "views": protocol_from(report["protocol"], "report.json").views,
        "engine": report["inference"][OWN].get("engine"),
        "workers": [["host", "device", "chunks", "videos", "seconds", "videos per second"]] + [
            [one["host"], one["device"], str(one["chunks"]), str(one["videos"]), "%.1f" % one["seconds"], "%.2f" % one["videos_per_second"]]
            for one in report["inference"][OWN].get("workers") or []],
        "speeds": sorted((int(batch), speed) for batch, speed in report["throughput"].items()),
        "speed_rows": [row[:2] + row[4:] for row in closing_rows(report) if row[4]],
        "tuned": tune_rows(report["tune"]) if report["tune"] else [],
        "split": [(what, ms, ms / total) for what, ms in split],
        "stages": [(stage_name(name), entry["seconds"], entry["seconds"] / longest, entry["peak_mb"])
                   for name, entry in report["stages"].items()],
        "provenance": provenance(report), "commands": [" ".join(map(shlex.quote, entry["command"])) for entry in report["stages"].values()],
        **found_values(found, names),
    }
    if report["latency"]:
        values["charts"]["latency"] = latency_chart(report["latency"])
    return values


def found_values(found: Dict[str, Any], names: Optional[Sequence[str]]) -> Dict[str, Any]:
    """What the template is given of the single videos and classes."""
    videos = found["videos"]
    gallery = [(kind, *words, [_card(entry, videos) for entry in found["gallery"][kind]]) for kind, words in TITLES.items()]
    gallery = [part for part in gallery if part[3]]
    seen = sorted((row for row in found["classes"] if row["videos"]),
                  key=lambda row: (row["right"] / row["videos"], -row["videos"], row["class"]))
    data = {"names": [name_of(row["class"], names) for row in found["classes"]]}
    data.update({key: videos[key] for key in ("video", "label", "answer", "rank")})
    data.update({key: [round(value, 3) for value in videos[key]] for key in ("probability", "margin")})
    return {
        "gallery": gallery, "pictures": any(entry["strip"] for part in gallery for entry in part[3]),
        "problems": any(entry["problem"] for part in gallery for entry in part[3]),
        "wrong": sum(rank > 1 for rank in videos["rank"]), "seen": seen, "unseen": len(found["classes"]) - len(seen),
        "any_reversed": any(pair["reversed"] for pair in found["pairs"]), "matrix": matrix(found["matrix"]),
        "data": data,
        "curve": [["seen", "top-1", "95 % interval"]] + [
            [percent(one["share"], 0), percent(one["top1_acc"]), " to ".join(map(percent, one["top1_interval_95"]))]
            for one in found["curve"]],
        "charts": dict(confidence_charts(found["confidence"]), curve=share_chart(found["curve"], found.get("clip"))),
    }


def _card(entry: Dict[str, Any], videos: Columns) -> Dict[str, Any]:
    """An entry of the gallery with what its card shows: the most probable classes and the truth, the most probable first."""
    place = entry["place"]
    label, answer = videos["label"][place], videos["answer"][place]
    top = [tuple(one) for one in entry["top"]]
    rows = []
    for number, probability in top + [(label, videos["truth"][place])] * (label not in dict(top)):
        kind = "good" if number == label else "wrong" if number == answer else ""
        mark = "\u2713 answer" if label == number == answer else {"good": "\u2713 truth", "wrong": "\u2717 answer"}.get(kind, "")
        rows.append({"number": number, "probability": probability, "kind": kind, "mark": mark})
    return dict(entry, rows=rows, video=videos["video"][place], views_agree=videos["views_agree"][place])


def tune_rows(found: Dict[str, Any]) -> List[List[str]]:
    """The cells of the table of what run_all.sh --tune tried on the chip, after a heading."""
    rows = [tune.cells_of(tune.Candidate(**row), found["videos"]) for row in found["candidates"]]
    kept = list((found["chosen"] or {}).values())  # form and input
    return [[*row[:2], "kept" * (row[:2] == kept), row[4], *row[2:4]] for row in [tune.HEADING] + rows]


def matrix(small: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The rows of the small confusion matrix: a letter, the class (None: all others), and cells with a heat 0..HEATS."""
    numbers = small["classes"] + [None] * (len(small["counts"]) - len(small["classes"]))
    wrong = [count for place, row in enumerate(small["counts"]) for other, count in enumerate(row) if place != other]
    most = max(wrong + [1]).bit_length()
    return [{"letter": "other" if number is None else chr(ord("A") + place), "number": number, "cells": [
        {"count": count, "right": place == other and number is not None,
         "heat": 0 if place == other or not count else max(1, -(-HEATS * count.bit_length() // most))}
        for other, count in enumerate(row)]} for place, (number, row) in enumerate(zip(numbers, small["counts"]))]


def provenance(report: Dict[str, Any]) -> List[Tuple[str, str]]:
    """What made the report: protocol, versions, digests."""
    protocol, model, device = report["protocol"], report["model"], report["device"]
    rules = [one for one in re.findall(r'"(\w+)": (\d+)', model.get("tsm.rules", "")) if one[1] != "0"]
    known = [("suite", report["version"]), ("videos", report["arguments"]["data_root"] or "not known"),
             ("device", device["name"]), ("precision", device["precision"]),
             ("Python, machine", "%s, %s" % (device["python"], device["machine"])),
             ("protocol", ", ".join("%s %s" % (key.replace("_", " "), " ".join(map(str, value)) if isinstance(
                 value, (list, tuple)) else value) for key, value in protocol.items())),
             ("checkpoint, SHA-256", report["checkpoint_sha256"] or "not known")]
    known += [(words, model[key]) for key, words in (
        ("tsm.source", "exported model"), ("tsm.source_sha256", "exported model, SHA-256"), ("tsm.target", "written for"),
        ("tsm.input_dtype", "takes")) if key in model]
    known += [("graph surgery found", ", ".join("%s: %s" % one for one in rules))] if rules else []
    return known + [("preprocessing: " + name, str(version)) for name, version in report["preprocessing_versions"].items()]


def svg(label: str, *parts: str) -> Any:
    """A chart; `parts` are markup made of numbers and of this module's own words alone."""
    return Markup('<svg viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="%s">%s</svg>' % (
        WIDTH, HEIGHT, WIDTH, HEIGHT, escape(label), "".join(parts)))


def words(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return '<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>' % (x, y, anchor, text)


def path(points: Sequence[Tuple[float, float]], kind: str) -> str:
    return '<path class="%s" d="M%s"/>' % (kind, "L".join("%.1f %.1f" % point for point in points))


def box(x: float, y: float, width: float, height: float, kind: str) -> str:
    return '<rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/>' % (kind, x, y, width, height)


LEFT, RIGHT, TOP, BOTTOM = 34, 8, 8, 22  # margins of a chart


def across(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def upwards(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def axes(x_ticks: Sequence[Tuple[float, str]], y_ticks: Sequence[Tuple[float, str]]) -> List[str]:
    """Lines across the chart at `y_ticks`, labels at both; (share of the side, label)."""
    parts = [path([(across(0), upwards(share)), (across(1), upwards(share))], "axis") for share, _ in y_ticks]
    parts += [words(across(0) - 6, upwards(share) + 4, text, "end") for share, text in y_ticks]
    return parts + [words(across(share), HEIGHT - 5, text) for share, text in x_ticks]


def bars(x_ticks: Sequence[Tuple[float, str]], *kinds: Tuple[str, Sequence[int]]) -> List[str]:
    """A histogram with its axes: at each place the counts of all kinds, one above the other."""
    stacks = [[0, *itertools.accumulate(stack)] for stack in zip(*(counts for _, counts in kinds))]
    most, step = max(stack[-1] for stack in stacks) or 1, 1 / len(stacks)
    parts = axes(x_ticks, [(0, "0"), (1, "%d" % most)])
    for place, stack in enumerate(stacks):
        for (kind, _), base, end in zip(kinds, stack, stack[1:]):
            if end > base:
                top, bottom = upwards(end / most), upwards(base / most)
                parts.append(box(across(place * step) + 0.5, top, across(step) - across(0) - 1, bottom - top, kind))
    return parts


def dot(x: float, y: float, radius: float) -> str:
    """A dot at shares of the sides."""
    return '<circle class="fill" cx="%.1f" cy="%.1f" r="%.1f"/>' % (across(x), upwards(y), radius)


FIFTHS = [(number / 4, "%.2g" % (number / 4)) for number in range(5)]
PERCENTS = [(number / 4, "%d" % (25 * number)) for number in range(5)]


def confidence_charts(facts: Dict[str, Any]) -> Dict[str, Any]:
    """The three charts of the probabilities."""
    points = [(row["probability"], row["right"], row["videos"]) for row in facts["reliability"]]
    largest = max(count for _, _, count in points)
    dots = [dot(p, share, 2 + 4 * (count / largest) ** 0.5) for p, share, count in points]
    curve = facts["coverage"]
    floor = min(0.8, int(5 * min(share for _, share in curve)) / 5)  # so that ticks are whole numbers
    ticks = [(number / 4, "%g" % (100 * (floor + (1 - floor) * number / 4))) for number in range(5)]
    return {
        "histogram": svg("Histogram of the answers' probabilities",
                         *bars(FIFTHS, ("fill", facts["right"]), ("bad", facts["wrong"]))),
        "reliability": svg("Share that is right by probability", *(axes(FIFTHS, PERCENTS) + [
            path([(across(0), upwards(0)), (across(1), upwards(1))], "dash"),
            path([(across(p), upwards(share)) for p, share, _ in points], "line")] + dots)),
        "coverage": svg("Accuracy of the most certain videos", *(axes(PERCENTS, ticks) + [
            path([(across(part), upwards((share - floor) / (1 - floor))) for part, share in curve], "line"),
            dot(curve[-1][0], (curve[-1][1] - floor) / (1 - floor), 3)])),
    }


def share_chart(points: Sequence[Dict[str, Any]], clip: Optional[Dict[str, Any]]) -> Any:
    """Top-1 with its 95 % interval by the share of a clip that was seen, below a line at that of the clip's model, where it is known."""
    lines = [path([(across(point["share"]), upwards(height(point))) for point in points], kind) for kind, height in (
        ("line", lambda point: point["top1_acc"]), ("dash", lambda point: point["top1_interval_95"][0]),
        ("dash", lambda point: point["top1_interval_95"][1]))] if points else []
    if clip:
        lines.append(path([(across(share), upwards(clip["top1_acc"])) for share in (0, 1)], "mark"))
    return svg("Top-1 by the share of a clip that was seen", *(axes(PERCENTS, PERCENTS) + lines))


def latency_chart(facts: Dict[str, Any]) -> Any:
    """Histogram of the batches' times with p50, p90 and p99."""
    low, high = facts["low"], facts["high"]
    parts = bars([(share, plain(low + share * (high - low))) for share in (0, 0.5, 1)], ("rest", facts["bins"]))
    for name in ("p50", "p90", "p99"):
        share = min(1.0, (facts[name] - low) / (high - low))
        parts.append(path([(across(share), upwards(0)), (across(share), upwards(1))], "line" if name == "p50" else "mark"))
    return svg("Histogram of the batches' times in ms", *parts)

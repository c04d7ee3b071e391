"""Two runs on the same videos: which flipped, and whether the difference is more than chance."""

import os
import re
from collections import Counter
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from tsm.cli import UserError, printable, warn
from tsm.files import read_json
from tsm.labels import name_of
from tsm.report.findings import Columns, columns_of, strip_of
from tsm.results import accuracy_from, mcnemar, read_results
from tsm.samples import manifest_path, read_info, read_manifest
from tsm.workfolder import LABELS, REPORT, SUMMARY

LEAST = 1e-300  # a p value below it is not told from 0
CHANCE = 0.05  # a p value from which on a difference may be one
SUFFIX = r"\.(?=[0-9]*[A-Za-z])[A-Za-z0-9]{2,5}$"  # of a video; a folder of its frames has none
STRIPS = 12  # flipped videos whose frames the page shows


class Measured(NamedTuple):
    """A run, as far as it is compared. `scores`, float64 [videos, classes], is None where its result files are gone."""

    name: str  # the path that was given
    about: Dict[str, Any]  # checkpoint, precision, device, fusion, date, data_root: what is known of them, else None; name and title
    names: Optional[List[str]]
    classes: int
    columns: Columns
    scores: Optional[np.ndarray]


def load_run(path: str) -> Measured:
    """A run from its work folder or its report.json: its result files if they are there, and else what report.json
    keeps of every video. Raises UserError, or OSError, that names what is missing."""
    report: Dict[str, Any] = {}
    name, folder = os.path.normpath(path), path if os.path.isdir(path) else os.path.dirname(path)
    given = os.path.join(path, REPORT) if os.path.isdir(path) else path
    if given == path or os.path.exists(given):
        report = read_json(given, "report")
    arguments, device = report.get("arguments", {}), report.get("device", {})
    result_path, info_path = (_moved_with(folder, arguments.get(key) or usual)
                              for key, usual in (("result_path", SUMMARY), ("info_path", LABELS)))
    about = {"checkpoint": report.get("model", {}).get("tsm.checkpoint"), "precision": device.get("precision"),
             "device": device.get("name"), "fusion": report.get("fusion"), "date": report.get("made", {}).get("date"),
             "data_root": os.path.join(folder, arguments["data_root"]) if arguments.get("data_root") else None, "name": name}
    about["title"] = ", ".join(filter(None, [about["checkpoint"], about["precision"], about["date"],
                                             "in " + os.path.basename(os.path.abspath(folder))]))
    try:
        manifest = read_manifest(manifest_path(info_path))
        classes = manifest["protocol"]["classes"]
        labels = read_info(info_path, classes)
        scores = read_results(result_path, labels, classes)
    except FileNotFoundError as error:
        if not report:
            raise UserError("%s: holds no results of single videos (%s is missing); give the work folder of a run, or its "
                            "report.json" % (path, error.filename))
        return Measured(name, about, report["names"], report["protocol"]["classes"], report["findings"]["videos"], None)
    counted = accuracy_from(scores, labels, len(manifest["skipped"]))
    if report and (report["protocol"]["classes"], report["accuracy"]["top1_acc"]) != (classes, counted.top1_acc):
        raise UserError("%s: its report.json is of %d classes and says top-1 %.4f, and %s has %d and gives %.4f; make the report again "
                        "with TSM_report.py" % (path, report["protocol"]["classes"], report["accuracy"]["top1_acc"], result_path, classes,
                                                counted.top1_acc))
    columns = columns_of(scores, labels, {entry["id"]: entry["source"] for entry in manifest["samples"]})
    return Measured(name, about, report.get("names"), classes, columns, np.stack([scores[index] for index in columns["id"]]))


def _moved_with(folder: str, path: str) -> str:
    """Where a file of a report now is: its path from the report's folder, or what the folder took along of it when it moved."""
    parts = path.split(os.sep)
    tails = [os.path.join(folder, *parts[start:]) for start in range(len(parts))]
    return next(filter(os.path.exists, tails), os.path.join(folder, path))


def _keys(columns: Columns) -> Dict[Tuple[str, int], int]:
    """{(a video's name, which of those of this name): its place}; a video that is listed several times counts as several."""
    seen: Dict[str, int] = {}
    places: Dict[Tuple[str, int], int] = {}
    for place, video in enumerate(columns["video"]):
        seen[video] = seen.get(video, 0) + 1
        places[video, seen[video]] = place
    return places


def _join(a: Columns, b: Columns) -> Tuple[List[Tuple[int, int]], int]:
    """(the places in both of each video that both have, in the order of A; how many of them have another name in B).

    Names that are not the same are those of one video where their ends are, without the suffix: the longest end that only one
    video of each run has. So a list of videos is joined with one of frames, and with one that starts from another folder.
    """
    keys = _keys(a), _keys(b)
    pairs = {place: keys[1][key] for key, place in keys[0].items() if key in keys[1]}
    equal = len(pairs)
    words = [[re.sub(SUFFIX, "", name).split("/") for name in columns["video"]] for columns in (a, b)]
    most = max(len(parts) for side in words for parts in side)
    for depth in range(most, 0, -1) if equal < min(map(len, words)) else ():
        ours, theirs = (_once(side, depth) for side in words)
        taken = set(pairs.values())
        pairs.update((place, theirs[end]) for end, place in ours.items() if place not in pairs and theirs.get(end, -1) not in taken | {-1}
                     and a["label"][place] == b["label"][theirs[end]])
    return sorted(pairs.items()), len(pairs) - equal


def _once(names: Sequence[Sequence[str]], depth: int) -> Dict[Tuple[str, ...], int]:
    """{the last `depth` parts of a name: its place}, of the ends that one name has."""
    ends = [tuple(parts[-depth:]) for parts in names]
    counts = Counter(ends)
    return {end: place for place, end in enumerate(ends) if counts[end] == 1}


def _check_names(a: Measured, b: Measured) -> None:
    """UserError where a name stands for one class in a run and for another in the other; a warning where names are spelt otherwise."""
    pairs = list(enumerate(zip(a.names or (), b.names or ())))
    differs = {number: names for number, names in pairs if names[0] != names[1]}
    if not differs:
        return
    number, names = min(differs.items())
    first = "class %d is '%s' in %s, and '%s' in %s" % (number, names[0], a.name, names[1], b.name)
    ours, theirs = ({names[side] for names in differs.values()} for side in (0, 1))
    if ours & theirs:
        raise UserError("%s: the runs number their classes differently; give both the same --labels and the same lists" % first)
    warn("%s%s; the names of the first are shown" % (first, " (and %d more)" % (len(differs) - 1) if len(differs) > 1 else ""))


def compare(a: Measured, b: Measured) -> Dict[str, Any]:
    """What differs between two runs, over the videos that both have, joined by their names (_join); plain values for JSON.

    Raises UserError where they have no video in common, or do not agree on the classes, their order or a video's label.
    """
    if a.classes != b.classes:
        raise UserError("%s has %d classes, and %s has %d; these are runs of different networks" % (
            a.name, a.classes, b.name, b.classes))
    _check_names(a, b)
    pairs, renamed = _join(a.columns, b.columns)
    if not pairs:
        raise UserError("%s and %s have no video in common; are they of the same data?" % (a.name, b.name))
    only = [len(run.columns["video"]) - len(pairs) for run in (a, b)]
    a, b = (_of(run, places) for run, places in zip((a, b), zip(*pairs)))
    for video, label, other in zip(a.columns["video"], a.columns["label"], b.columns["label"]):
        if label != other:
            raise UserError("%s: has label %d in %s, and %d in %s; the runs were made with different lists" % (
                video, label, a.name, other, b.name))
    rank_a, rank_b = (np.array(run.columns["rank"]) for run in (a, b))
    right_a, right_b = rank_a == 1, rank_b == 1
    lost, gained = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return {
        "a": a.about, "b": b.about, "names": a.names or b.names, "number_of_classes": a.classes, "videos": len(pairs),
        "renamed": renamed, "only_a": only[0], "only_b": only[1],
        "top1": [float(right_a.mean()), float(right_b.mean())], "top5": [float((rank_a <= 5).mean()), float((rank_b <= 5).mean())],
        "mcnemar": {"lost": lost, "gained": gained, "p": mcnemar(lost, gained)},
        "probability": _differences(a, b), "classes": _classes(np.array(a.columns["label"]), right_a, right_b),
        "flips": _flips(a.columns, b.columns),
    }


def _of(run: Measured, places: Sequence[int]) -> Measured:
    """A run, of the videos at these places alone."""
    columns = {key: [column[place] for place in places] for key, column in run.columns.items()}
    return run._replace(columns=columns, scores=None if run.scores is None else run.scores[list(places)])


def _flips(a: Columns, b: Columns) -> List[Dict[str, Any]]:
    """Those of the same videos whose answer differs: that were lost, then gained, then wrong both times; the most certain first."""
    flips = []
    for place in range(len(a["video"])):
        if a["answer"][place] != b["answer"][place]:
            kind = "lost" if a["rank"][place] == 1 else "gained" if b["rank"][place] == 1 else "wrong"
            flips.append({"video": a["video"][place], "label": a["label"][place], "kind": kind,
                          "a": {key: a[key][place] for key in ("answer", "probability", "margin")},
                          "b": {key: b[key][place] for key in ("answer", "probability", "margin")}})
    return sorted(flips, key=lambda flip: (("lost", "gained", "wrong").index(flip["kind"]),
                                           -min(flip["a"]["margin"], flip["b"]["margin"])))


def _classes(labels: np.ndarray, right_a: np.ndarray, right_b: np.ndarray) -> List[Dict[str, int]]:
    """The classes whose number of right videos changed, the largest change first."""
    rows = [{"class": int(number), "videos": int((labels == number).sum()), "right_a": int(right_a[labels == number].sum()),
             "right_b": int(right_b[labels == number].sum())} for number in np.unique(labels)]
    return sorted((row for row in rows if row["right_a"] != row["right_b"]),
                  key=lambda row: -abs(row["right_a"] - row["right_b"]))


def _differences(a: Measured, b: Measured) -> Dict[str, Any]:
    """Largest and mean absolute difference of a probability: of all classes, or if result files are gone of the true one."""
    if a.scores is not None and b.scores is not None:
        of, apart = "all classes", np.abs(a.scores - b.scores)
    else:
        of, apart = "the true class", np.abs(np.subtract(a.columns["truth"], b.columns["truth"]))[:, None]
    worst = int(apart.max(1).argmax())
    return {"of": of, "largest": float(apart.max()), "mean": float(apart.mean(1).mean()), "video": a.columns["video"][worst]}


def chance(p: float) -> str:
    """A p value in words."""
    return "p = %.3f" % p if p >= 0.001 else "p = %.1e" % p if p > LEAST else "p < %.0e" % LEAST


def difference(found: Dict[str, Any]) -> str:
    """What a comparison found, in a sentence."""
    a, b = found["top1"]
    test = found["mcnemar"]
    if test["lost"] == test["gained"] == 0:
        return "A and B are right on the same videos."
    how = "equally good" if a == b else "%.4g points %s" % (round(100 * abs(b - a), 2), "better" if b > a else "worse")
    return "B is %s: %d video%s right in A alone, %d in B alone%s (%s)." % (
        how, test["lost"], " is" if test["lost"] == 1 else "s are", test["gained"],
        ", which may be chance" if test["p"] >= CHANCE and a != b else "", chance(test["p"]))


def add_strips(found: Dict[str, Any], data_root: Optional[str]) -> None:
    """Give the first STRIPS of the flipped videos their film strips, where their folder is known."""
    for flip in found["flips"][:STRIPS]:
        flip["strip"] = strip_of(data_root or found["a"]["data_root"], flip["video"])[0]


def comparison_text(found: Dict[str, Any], most: int = 20) -> str:
    """A comparison for a terminal, with at most `most` of the flipped videos and of the classes."""
    lost, gained = found["mcnemar"]["lost"], found["mcnemar"]["gained"]
    names, flips = found["names"] and [printable(name) for name in found["names"]], found["flips"]
    only = ", ".join("%d only in %s" % (found["only_" + side], side.upper()) for side in "ab" if found["only_" + side])
    renamed = " (%d of them under another folder or suffix, and joined by the rest of the name)" % found["renamed"]
    lines = ["%s  %s" % (side.upper(), printable(found[side]["title"])) for side in "ab"]
    lines += [difference(found), "%d videos in both%s%s" % (
        found["videos"], renamed if found["renamed"] else "", "; not compared: " + only if only else "")]
    for key, title in (("top1", "top-1"), ("top5", "top-5"))[:1 + (found["number_of_classes"] > 5)]:
        lines.append("%s  A %.4f   B %.4f   difference %+.4f" % (
            title, found[key][0], found[key][1], found[key][1] - found[key][0]))
    lines.append("right in A alone %d, in B alone %d: McNemar's exact test %s" % (lost, gained, chance(found["mcnemar"]["p"])))
    apart = found["probability"]
    lines.append("probability of %s: largest difference %.6f (%s), mean %.2g" % (
        apart["of"], apart["largest"], printable(apart["video"]), apart["mean"]))
    lines.append("%d answer%s%s" % (len(flips), " differs" if len(flips) == 1 else "s differ", ":" if flips else ""))
    for flip in flips[:most]:
        lines.append("  %-6s %s: %s" % (flip["kind"], printable(flip["video"]), name_of(flip["label"], names)))
        lines += ["         %s  %.4f (margin %.4f)  %s" % (side.upper(), flip[side]["probability"], flip[side]["margin"],
                                                          name_of(flip[side]["answer"], names)) for side in "ab"]
    if len(flips) > most:
        lines.append("  and %d more: --csv or --html has them all" % (len(flips) - most))
    if found["classes"]:
        lines.append("classes that changed, right of their videos in A and B:")
        lines += ["  %3d -> %3d of %-4d %s" % (row["right_a"], row["right_b"], row["videos"], name_of(row["class"], names))
                  for row in found["classes"][:most]]
    if len(found["classes"]) > most:
        lines.append("  and %d more: --json or --html has them all" % (len(found["classes"]) - most))
    return "\n".join(lines)


def flip_rows(found: Dict[str, Any]) -> Iterator[Sequence[Any]]:
    """The flipped videos for a CSV file, after a heading."""
    names = found["names"]
    yield ("video", "kind", "true_name", "answer_a", "probability_a", "margin_a", "answer_b", "probability_b", "margin_b")
    for flip in found["flips"]:
        sides = [(name_of(flip[side]["answer"], names), "%.6f" % flip[side]["probability"], "%.6f" % flip[side]["margin"])
                 for side in "ab"]
        yield (flip["video"], flip["kind"], name_of(flip["label"], names)) + sides[0] + sides[1]

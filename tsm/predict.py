"""What happens in videos: the inputs a user names, windows of long ones, the answers, and the files they are written to."""

import contextlib
import csv
import glob
import os
import re
from typing import Any, Dict, Generator, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from tsm.cli import Corrupt, UserError, warn
from tsm.clips import Window, decoded, windowed
from tsm.files import natural, replacing
from tsm.frames import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Caption, write_captions
from tsm.gallery import strips_of
from tsm.labels import Ranked
from tsm.protocol import Protocol
from tsm.samples import Clip
from tsm.workers import unrolled


class Answer(NamedTuple):
    """What the network says of one window of one input, the most probable class first."""

    window: Window
    ranked: List[Ranked]


class Segment(NamedTuple):
    """A stretch of a long video over which the answer stays the same; the probability is the mean over its windows."""

    start: float
    end: float
    label: str
    probability: float


WHOLE = Window(None, None)


def is_address(text: str) -> bool:
    """Whether an input is an address that OpenCV opens by itself (rtsp://…, http://…)."""
    return re.match(r"[a-z][a-z0-9+.-]*://", text) is not None


def expand(inputs: Sequence[str]) -> List[str]:
    """The videos, folders of frames and addresses that a command line's inputs stand for, in its order.

    Each input is one of: a video file; a folder, searched for videos by their suffix, recursively; a folder of frames; a
    quoted pattern (**, *, ?, []); @FILE, which has one input per line; an address. A path that does not exist is kept, so
    that it is reported beside the others. Raises UserError for a folder, a pattern or a list with nothing in it.
    """
    paths: List[str] = []
    for given in inputs:
        if given.startswith("@"):
            paths += _listed(given[1:])
        elif is_address(given) or os.path.isfile(given):
            paths.append(given)
        elif os.path.isdir(given):
            paths += _inside(given)
        elif glob.has_magic(given):
            found = sorted(glob.glob(given, recursive=True), key=natural)
            if not found:
                raise UserError("%s: no file matches this pattern" % given)
            paths += [path for one in found for path in (_inside(one) if os.path.isdir(one) else [one])]
        else:
            paths.append(given)
    return paths


def _listed(path: str) -> List[str]:
    """The inputs in a list, one per line; empty lines do not count."""
    with open(path, "rb") as file:
        lines = [os.fsdecode(line).strip() for line in file.read().splitlines()]
    if not any(lines):
        raise UserError("%s: no videos in it; it needs one path per line" % path)
    for number, line in enumerate(lines, 1):
        name, _, label = line.rpartition(" ")
        if label.isdigit() and not os.path.exists(line) and not is_address(line):
            raise UserError("%s, line %d: %s: is a list with labels; take them out, or pass it as --ann_file" % (path, number, line))
    return expand([line for line in lines if line])


def _inside(folder: str) -> List[str]:
    """The videos under a folder, in natural order; else the folders of frames under it, itself included."""
    videos, frames = [], []
    for place, names, files in os.walk(folder):
        names.sort(key=natural)
        videos += [os.path.join(place, name) for name in sorted(files, key=natural) if name.lower().endswith(VIDEO_SUFFIXES)]
        if any(name.lower().endswith(IMAGE_SUFFIXES) for name in files):
            frames.append(place)
    if not videos and not frames:
        raise UserError("%s: no videos and no frames in it (%s)" % (folder, ", ".join(VIDEO_SUFFIXES + IMAGE_SUFFIXES)))
    return videos or frames


def segments_of(answers: Sequence[Answer]) -> List[Segment]:
    """Windows in their order in time -> stretches of one label.

    Each window speaks for the times that are nearer to its middle than to any other window's, the first from its start and
    the last to its end, so the stretches cover the video once.
    """
    edges = [answers[0].window.start or 0.0]
    for one, following in zip(answers, answers[1:]):
        (start, end), (after, until) = ((answer.window.start or 0.0, answer.window.end or 0.0) for answer in (one, following))
        edges.append(round((start + end + after + until) / 4, 3))
    edges.append(answers[-1].window.end or 0.0)
    segments: List[Segment] = []
    weights: List[float] = []
    for answer, start, end in zip(answers, edges, edges[1:]):
        best = answer.ranked[0]
        if segments and segments[-1].label == best.label:
            weights[-1] += 1
            mean = segments[-1].probability + (best.probability - segments[-1].probability) / weights[-1]
            segments[-1] = segments[-1]._replace(end=end, probability=mean)
        else:
            segments.append(Segment(start, end, best.label, best.probability))
            weights.append(1)
    return segments


def as_json(name: str, answers: Sequence[Answer], error: Optional[str], long: bool) -> Dict[str, Any]:
    """One input for --json: {input, error, windows: [{start, end, top: [{class_id, label, probability}]}], segments}."""
    windows = [{"start": answer.window.start, "end": answer.window.end,
                "top": [ranked._asdict() for ranked in answer.ranked]} for answer in answers]
    entry: Dict[str, Any] = {"input": name, "error": error, "windows": windows}
    if long and answers:
        entry["segments"] = [segment._asdict() for segment in segments_of(answers)]
    return entry


def as_cards(entry: Dict[str, Any]) -> Dict[str, Any]:
    """An entry of --json for the page: {input, error, problem, cards: [{when, strip, top}]}.

    A card is a segment of a long video, or else the whole of one; its film strip is made from the file, None where that is a
    camera or cannot be read a second time, which `problem` tells.
    """
    parts = [(segment["start"], segment["end"], [segment]) for segment in entry.get("segments", [])]
    parts = parts or [(None, None, window["top"]) for window in entry["windows"]]
    strips: Sequence[Optional[str]] = [None] * len(parts)
    problem = ""
    if parts and os.path.exists(entry["input"]):
        strips, problem = strips_of(entry["input"], [part[:2] for part in parts])
    cards = [{"when": "" if end is None else "%s - %s" % (clock(start or 0.0), clock(end)), "strip": strip, "top": classes}
             for (start, end, classes), strip in zip(parts, strips)]
    return {"input": entry["input"], "error": entry["error"], "problem": problem, "cards": cards}


COLUMNS = ("input", "start", "end", "rank", "label", "class_id", "probability", "error")


def write_csv(path: str, entries: Iterable[Dict[str, Any]]) -> None:
    """--csv: one row per input, window and rank, with COLUMNS as the heading; an input that failed is a row with its error."""
    with replacing(path) as part, open(part, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for entry in entries:
            if entry["error"]:
                writer.writerow([entry["input"], "", "", "", "", "", "", entry["error"]])
            for window in entry["windows"]:
                for rank, ranked in enumerate(window["top"], 1):
                    writer.writerow([entry["input"], window["start"], window["end"], rank, ranked["label"], ranked["class_id"],
                                     "%.6f" % ranked["probability"], ""])


def in_words(ranked: Sequence[Ranked]) -> str:
    """Classes on one line, the most probable first: `0.9731  Closing something | 0.0102  Opening something`."""
    return " | ".join("%.4f  %s" % (one.probability, one.label) for one in ranked)


def lines_of(name: str, answers: Sequence[Answer], long: bool) -> Iterator[str]:
    """What is printed of an input: its name, then per segment, or per rank, probability and label."""
    if not answers:
        return
    yield name
    if long:
        for segment in segments_of(answers):
            yield "  %s - %s  %.4f  %s" % (clock(segment.start), clock(segment.end), segment.probability, segment.label)
    else:
        for ranked in answers[0].ranked:
            yield "  %.4f  %s" % (ranked.probability, ranked.label)


def in_order(results: Iterable[Tuple[int, Any]]) -> Iterator[Tuple[int, Any]]:
    """(number, result) by number from 0 on, each as soon as all before it are there."""
    early: Dict[int, Any] = {}
    wanted = 0
    for number, result in results:
        early[number] = result
        while wanted in early:
            yield wanted, early.pop(wanted)
            wanted += 1


def tensors_of(
    paths: Sequence[str], length: Optional[float], stride: Optional[float], protocol: Protocol, dtype: str, workers: int
) -> Generator[Tuple[Tuple[int, Window], Union[np.ndarray, Corrupt]], None, None]:
    """((number of the path, window), its tensor [1, frames, 3, size, size] or the Corrupt that says why there is none).

    Without a window's `length`, in seconds, a path is one window, and paths come in any order; with it they come one after
    the other, their windows in time.
    """
    if length is None:
        clips = [Clip(0, path, 0 if os.path.isdir(path) else None, 0) for path in paths]
        results: Generator[Tuple[int, Any], None, None] = decoded(
            clips, "", protocol, dtype, min(workers, max(1, len(clips))), None)
        with contextlib.closing(results):
            for number, video in results:
                yield (number, WHOLE), video if isinstance(video, Corrupt) else video[None]
        return

    def work(number: int) -> Iterator[Tuple[Window, np.ndarray]]:
        if os.path.isdir(paths[number]):
            raise Corrupt("is a folder of frames, which have no time; --window is for videos")
        return windowed(paths[number], length, stride or length / 2, protocol, dtype)

    with contextlib.closing(unrolled(work, range(len(paths)))) as parts:
        for number, result in parts:
            if isinstance(result, Corrupt):
                yield (number, WHOLE), result
                continue
            window, video = result
            if window.start == 0 and window.end < length:
                warn("%s: is %.1f s long, shorter than a window of %g s; it is taken as one window" % (
                    paths[number], window.end, length))
            yield (number, window), video[None]


def annotated_names(folder: str, paths: Sequence[str]) -> List[str]:
    """Where each video goes with its labels drawn in: FOLDER/<name>.mp4, never onto an input, and no two to the same."""
    def file_of(path: str) -> Tuple[int, int]:
        found = os.stat(path)
        return found.st_dev, found.st_ino

    inputs = {file_of(path) for path in paths if os.path.exists(path)}
    names: Dict[str, None] = {}
    for path in paths:
        stem, number = os.path.splitext(os.path.basename(path))[0], 1
        name = os.path.join(folder, stem + ".mp4")
        while name in names or os.path.exists(name) and file_of(name) in inputs:
            number += 1
            name = os.path.join(folder, "%s_%d.mp4" % (stem, number))
        names[name] = None
    return list(names)


def annotate(output: str, path: str, answers: Sequence[Answer], long: bool) -> None:
    """Write a video with its labels drawn in. Raises Corrupt."""
    if os.path.isdir(path):
        raise Corrupt("is a folder of frames; --annotate is for videos")
    os.makedirs(os.path.dirname(output), exist_ok=True)
    if long:
        captions = [Caption(one.start, one.end, "%.2f %s" % (one.probability, one.label)) for one in segments_of(answers)]
        captions[-1] = captions[-1]._replace(end=None)
    else:
        best = answers[0].ranked[0]
        captions = [Caption(0.0, None, "%.2f %s" % (best.probability, best.label))]
    write_captions(path, output, captions)


def clock(seconds: float) -> str:
    """Seconds as 1:02.5, or 1:01:02.5 from an hour on."""
    tenths = int(round(seconds * 10))
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    text = "%02d.%d" % divmod(rest, 10)
    return "%d:%02d:%s" % (hours, minutes, text) if hours else "%d:%s" % (minutes, text)

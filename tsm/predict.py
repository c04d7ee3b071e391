"""What happens in videos: the inputs a user names, windows of long ones, the answers, and the files they are written to."""

import csv
import glob
import itertools
import os
import re
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from tsm.cli import UserError
from tsm.files import natural, replacing
from tsm.frames import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from tsm.labels import Ranked


class Window(NamedTuple):
    """A stretch of a video in seconds, and its frames start to stop - 1; the whole of it, of unknown length, if all are None."""

    start: Optional[float]
    end: Optional[float]
    frames: Optional[Tuple[int, int]]


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


WHOLE = Window(None, None, None)


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


def windows_of_all(
    paths: Sequence[str], length: Optional[float], stride: Optional[float], workers: int
) -> Tuple[List[List[Window]], Dict[int, List[str]]]:
    """(the windows of each path, {number: [error]} of those that cannot be read, which have none).

    Args:
        length, stride: of the windows in seconds; a length of None is one window, the whole video. A stride of None is half
            a window.
    """
    if length is None:
        return [[WHOLE] for _ in paths], {}
    windows: List[List[Window]] = [[] for _ in paths]
    errors: Dict[int, List[str]] = {}
    for number, result in probed(paths, workers):
        if isinstance(result, Corrupt):
            errors[number] = [str(result)]
            continue
        frames, rate = result
        windows[number] = windows_of(frames, rate, length, stride or length / 2)
        if frames / rate < length:
            warn("%s: is %.1f s long, shorter than a window of %g s; it is taken as one window" % (
                paths[number], frames / rate, length))
    return windows, errors


def windows_of(frames: int, rate: float, length: float, stride: float) -> List[Window]:
    """The windows of a video of `frames` frames at `rate` frames per second, `length` seconds each, one every `stride` seconds.

    The last window ends with the video, so its end is not lost; a video that is no longer than one window is one window.
    """
    duration = frames / rate
    starts = [0.0]
    while starts[-1] + length < duration - 0.5 / rate:
        starts.append(min(starts[-1] + stride, max(0.0, duration - length)))
    windows = []
    for start in starts:
        first = min(int(round(start * rate)), frames - 1)
        stop = min(max(first + 1, int(round((start + length) * rate))), frames)
        windows.append(Window(round(start, 3), round(min(start + length, duration), 3), (first, stop)))
    return windows


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
    """One input for --json: {input, error, windows: [{start, end, top: [{label, index, probability}]}], segments}."""
    windows = [{"start": answer.window.start, "end": answer.window.end,
                "top": [ranked._asdict() for ranked in answer.ranked]} for answer in answers]
    entry: Dict[str, Any] = {"input": name, "error": error, "windows": windows}
    if long and answers:
        entry["segments"] = [segment._asdict() for segment in segments_of(answers)]
    return entry


COLUMNS = ("input", "start", "end", "rank", "label", "index", "probability", "error")


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
                    writer.writerow([entry["input"], window["start"], window["end"], rank, ranked["label"], ranked["index"],
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


def grouped(sizes: Sequence[int], results: Iterable[Tuple[Tuple[int, int], Any]]) -> Iterator[Tuple[int, List[Any]]]:
    """(input, [the results of its windows, in their order]) for each input in order, as soon as all before it are complete.

    Args:
        sizes: windows per input.
        results: ((input, window), result), in any order.
    """
    pending: List[Dict[int, Any]] = [{} for _ in sizes]
    first = 0
    for key, result in itertools.chain([(None, None)], results):
        if key is not None:
            pending[key[0]][key[1]] = result
        while first < len(sizes) and len(pending[first]) == sizes[first]:
            yield first, [pending[first][place] for place in range(sizes[first])]
            pending[first] = {}
            first += 1


def clock(seconds: float) -> str:
    """Seconds as 1:02.5, or 1:01:02.5 from an hour on."""
    tenths = int(round(seconds * 10))
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    text = "%02d.%d" % divmod(rest, 10)
    return "%d:%02d:%s" % (hours, minutes, text) if hours else "%d:%s" % (minutes, text)

"""What happens in videos: the inputs a user names, windows of long ones, the answers, and the files they are written to."""

import argparse
import contextlib
import glob
import os
import re
from typing import Any, Dict, Generator, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
from tqdm import tqdm

from tsm.cli import Corrupt, Killed, UserError, check_outputs, complain, describe, fail, identity, printable, warn
from tsm.files import natural, write_json, write_text
from tsm.infer.int8 import weights_file
from tsm.labels import Ranked
from tsm.predict.captions import Caption, has_captions, write_captions
from tsm.protocol import Protocol
from tsm.report.findings import strips_of, write_csv
from tsm.samples import Clip
from tsm.video.clips import decoded
from tsm.video.decode import VIDEO_SUFFIXES
from tsm.video.frames import IMAGE_SUFFIXES, is_picture
from tsm.video.windows import SMALLER, Window, windowed
from tsm.workers import each


class Input(NamedTuple):
    """A video, folder of frames, address or camera; `error` says why it is none, if it is not."""

    path: str
    error: str = ""
    camera: Optional[int] = None

    @property
    def is_live(self) -> bool:
        return not self.error and (self.camera is not None or is_address(self.path))

    @property
    def is_file(self) -> bool:
        return not self.error and not self.is_live


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
Tensors = Generator[Tuple[Tuple[int, Window], Union[np.ndarray, Corrupt]], None, None]  # of tensors_of()


def is_address(text: str) -> bool:
    """Whether an input is an address that OpenCV opens by itself (rtsp://…, http://…)."""
    return re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE) is not None


DEEPEST = 50  # lists within lists


def expand(inputs: Sequence[str], within: Tuple[str, ...] = (), lists: Optional[List[str]] = None) -> List[Input]:
    """The videos, folders of frames and addresses that a command line's inputs stand for, in its order.

    Each input is one of: a video file; a folder, searched for videos by their suffix, recursively; a folder of frames; a
    quoted pattern (**, *, ?, []); @FILE, which has one input per line; an address. A path that does not exist is kept, so
    that it is reported beside the others; so is, with its error, a folder, a pattern or a list that gives nothing. What an
    earlier run drew labels into is no input of a folder or a pattern; a warning says so.

    Args:
        within: the lists that the inputs are from, by their real paths.
        lists: the files of lists are added to it, also those within lists.
    """
    found: List[Input] = []
    for given in inputs:
        if not given:
            found.append(Input(given, "an empty name; give a video (is a variable of the command not set?)"))
        elif given.startswith("@"):
            found += _listed(given, within, lists)
        elif is_address(given) or os.path.isfile(given):
            found.append(Input(given))
        elif os.path.isdir(given):
            found += _inside(given)
        elif glob.has_magic(given):
            matches = sorted(glob.glob(given, recursive=True), key=natural)
            kept = _without_ours(given, matches)
            matched = [new for one in kept for new in (_inside(one) if os.path.isdir(one) else [Input(one)])]
            found += dict.fromkeys(matched)  # ** finds a folder beside what is in it
            if not kept:
                found.append(Input(given, "no other file matches this pattern" if matches else "no file matches this pattern"))
        else:
            found.append(Input(given))
    return found


def _without_ours(given: str, paths: List[str]) -> List[str]:
    """The paths that a search of `given` found, less those that an earlier run drew labels into, of which a warning tells."""
    ours = set(filter(has_captions, paths))
    if ours:
        warn("%s: %d of its videos %s passed over, whose labels an earlier run drew in, the first %s; an input that names one is taken"
             % (given, len(ours), "is" if len(ours) == 1 else "are", next(path for path in paths if path in ours)))
    return [path for path in paths if path not in ours]


def _listed(given: str, within: Tuple[str, ...], lists: Optional[List[str]]) -> List[Input]:
    """The inputs in the list @FILE, one per line; empty lines do not count."""
    path = given[1:]
    real = os.path.realpath(path)
    if lists is not None:
        lists.append(path)
    if real in within or len(within) >= DEEPEST:
        return [Input(given, "is a list that names itself, by way of others perhaps; take that line out")]
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        remedy = "; a video of that name is given as ./%s" % given if os.path.exists(given) else ""
        return [Input(given, describe(error) + remedy)]
    data = data[3:] if data.startswith(b"\xef\xbb\xbf") else data
    lines = [os.fsdecode(line.strip()) for line in data.splitlines() if line.strip()]
    if not lines or b"\0" in data:
        return [Input(given, "no videos in it; it needs one path per line, as text in UTF-8")]
    labelled = [line for line in lines if _has_label(line)]
    if len(labelled) == len(lines):
        return [Input(given, "is a list with labels (%s); take them out, or pass it to TSM_stream.py --ann_file" % lines[0][:80])]
    found: List[Input] = []
    for line in lines:
        found += expand([line], within + (real,), lists)
    return found


def _has_label(line: str) -> bool:
    return line.rpartition(" ")[2].isdigit() and " " in line and not is_address(line) and not os.path.exists(line)


def _inside(folder: str) -> List[Input]:
    """The videos under a folder, in natural order; else the folders of frames under it, itself included.

    Links to folders are followed; a folder that is met again, by a link or in a loop, is passed over. A folder that cannot be
    read is an input with an error.
    """
    videos, frames, unread = [], [], []
    seen = {identity(folder)}

    def refuse(error: OSError) -> None:
        unread.append(Input(os.fsdecode(error.filename), (error.strerror or str(error)).lower()))

    for place, names, files in os.walk(folder, onerror=refuse, followlinks=True):
        fresh = []
        for name in sorted(names, key=natural):
            found = identity(os.path.join(place, name))
            if found not in seen:
                fresh.append(name)
                seen.add(found)
        names[:] = fresh
        videos += [os.path.join(place, name) for name in sorted(files, key=natural) if name.lower().endswith(VIDEO_SUFFIXES)]
        if any(map(is_picture, files)):
            frames.append(place)
    kept = _without_ours(folder, videos)
    if not kept and not frames and not unread:
        return [Input(folder, "no %svideos and no frames in it (%s)"
                      % ("other " if videos else "", ", ".join(VIDEO_SUFFIXES + IMAGE_SUFFIXES)))]
    return [Input(path) for path in kept or frames] + unread


def files_of(inputs: Iterable[Input]) -> List[str]:
    """The files that inputs are read from, also in vain: videos, and the frames in folders of frames."""
    found: List[str] = []
    for one in inputs:
        if one.is_file and os.path.isdir(one.path):
            found += [entry.path for entry in os.scandir(one.path) if is_picture(entry.name)]
        elif one.is_file:
            found.append(one.path)
    return found


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


def csv_rows(entries: Iterable[Dict[str, Any]]) -> Iterator[Sequence[Any]]:
    """--csv: one row per input, window and rank, after COLUMNS as the heading; an input that failed is a row with its error."""
    yield COLUMNS
    for entry in entries:
        if entry["error"]:
            yield [entry["input"], "", "", "", "", "", "", entry["error"]]
        for window in entry["windows"]:
            for rank, ranked in enumerate(window["top"], 1):
                yield [entry["input"], window["start"], window["end"], rank, ranked["label"], ranked["class_id"],
                       "%.6f" % ranked["probability"], ""]


def write_files(args: argparse.Namespace, facts: Dict[str, Any], views: int, entries: List[Dict[str, Any]]) -> None:
    """--json, --csv and --html, of the entries of --json; `facts` are tsm.infer.engine.about()'s."""
    if args.json:
        write_json(args.json, dict(facts, inputs=entries))
    if args.csv:
        write_csv(args.csv, csv_rows(entries))
    if args.html:
        from tsm.report.page import predict_page

        write_text(args.html, predict_page({
            "model": os.path.basename(args.model), "engine": facts["engine"], "precision": args.precision,
            "views": "%d view%s of a video" % (views, "s" if views > 1 else ""),
            "inputs": list(map(as_cards, entries))}, args.html))


def in_words(ranked: Sequence[Ranked]) -> str:
    """Classes on one line, the most probable first: `0.9731  Closing something | 0.0102  Opening something`."""
    return " | ".join("%.4f  %s" % (one.probability, printable(one.label)) for one in ranked)


def lines_of(name: str, answers: Sequence[Answer], long: bool) -> Iterator[str]:
    """What is printed of an input: its name, then per segment, or per rank, probability and label."""
    if not answers:
        return
    yield printable(name)
    if long:
        for segment in segments_of(answers):
            yield "  %s - %s  %.4f  %s" % (clock(segment.start), clock(segment.end), segment.probability, printable(segment.label))
    else:
        for ranked in answers[0].ranked:
            yield "  %.4f  %s" % (ranked.probability, printable(ranked.label))


def show(name: str, answers: Sequence[Answer], failed: str, long: bool, annotated: str) -> Dict[str, Any]:
    """Print an input's answers, and why it failed if it did, and write it annotated if that has a name; its entry for --json."""
    for line in lines_of(name, answers, long):
        tqdm.write(line)
    if answers and not failed and annotated:
        try:
            annotate(annotated, name, answers, long)
            tqdm.write("  wrote " + printable(annotated))
        except (Corrupt, UserError, OSError) as error:
            failed = describe(error) if isinstance(error, OSError) else str(error)
    if failed:
        complain("%s: %s" % (name or "''", failed))
    return as_json(name, answers, failed or None, long)


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
) -> Tensors:
    """((number of the path, window), its tensor [1, frames, 3, size, size] or the Corrupt that says why there is none).

    Without a window's `length`, in seconds, a path is one window, and paths come in any order; with it they come one after
    the other, their windows in time. The processes that decode are forked before this returns, so call it before open_engine().
    """
    if length is None:
        clips = [Clip(0, path, 0 if os.path.isdir(path) else None, 0) for path in paths]
        videos: Generator[Tuple[int, Any], None, None] = decoded(
            clips, "", protocol, dtype, min(workers, max(1, len(clips))), None,
            "it needs more memory than there is; pass a smaller --num_worker")
        return (((number, WHOLE), video if isinstance(video, Corrupt) else video[None]) for number, video in videos)

    def taken(parts: Generator[Tuple[int, Any], None, None]) -> Tensors:
        with contextlib.closing(parts):
            for number, part in parts:
                if isinstance(part, Corrupt):
                    yield (number, WHOLE), Corrupt("its decoder was killed, perhaps for want of memory; " + SMALLER) if isinstance(
                        part, Killed) else part
                else:
                    warn_if_short(paths[number], part[0], length)
                    yield (number, part[0]), part[1][None]

    return taken(each(lambda number: _windows(paths[number], length, stride, protocol, dtype), range(len(paths)), 1, unrolled=True))


def _windows(
    path: str, length: float, stride: Optional[float], protocol: Protocol, dtype: str
) -> Iterator[Tuple[Window, np.ndarray]]:
    """windowed(), of which a want of memory is the input's own error."""
    if os.path.isdir(path):
        raise Corrupt("is a folder of frames, which have no time; --window is for videos")
    try:
        yield from windowed(path, length, stride, protocol, dtype)
    except MemoryError:
        raise Corrupt("it needs more memory than there is; " + SMALLER)


def annotated_names(folder: str, paths: Sequence[str], inputs: Iterable[str]) -> List[str]:
    """Where each video goes with its labels drawn in: FOLDER/<name>.mp4, no two to the same, and never onto another file than
    an earlier run's output; if that is one of the `inputs`, not onto it either."""
    read = {identity(path) for path in inputs}
    names: Dict[str, None] = {}
    for path in paths:
        stem, number = os.path.splitext(os.path.basename(path))[0], 1
        name = os.path.join(folder, stem + ".mp4")
        while name in names or os.path.lexists(name) and (identity(name) in read or not has_captions(name)):
            number += 1
            name = os.path.join(folder, "%s_%d.mp4" % (stem, number))
        names[name] = None
    return list(names)


def check_paths(args: argparse.Namespace, inputs: Sequence[Input], lists: List[str], int8_model: str) -> List[str]:
    """Refuse, before any work, options that do not fit the inputs, outputs that cannot be written and those that would overwrite
    what is read: inputs, `lists` of them, the model; where --annotate writes each file."""
    live = [one.path for one in inputs if one.is_live]
    files = [one.path for one in inputs if one.is_file]
    if args.annotate is not None and live:
        fail("--annotate is for videos, not for %s (see --help)" % live[0], status=2)
    if args.stride and not args.window and (files or not live):
        fail("--stride needs --window, but for a camera or an address%s (see --help)"
             % ("; %s is none" % files[0] if files else ""), status=2)
    weights = weights_file(int8_model) if int8_model.endswith(".xml") else ""
    read = list(filter(None, [args.model, args.labels, int8_model, weights] + lists)) + files_of(inputs)
    annotated = annotated_names(args.annotate, files, read) if args.annotate else [""] * len(files)
    outputs = {"--json": args.json, "--csv": args.csv, "--html": args.html}
    check_outputs(outputs, read + list(filter(None, annotated)), args.annotate)
    return annotated


def annotate(output: str, path: str, answers: Sequence[Answer], long: bool) -> None:
    """Write a video with its labels drawn in, into a folder that is there.

    Raises Corrupt, UserError or OSError.
    """
    if os.path.isdir(path):
        raise Corrupt("is a folder of frames; --annotate is for videos")
    if long:
        captions = [Caption(one.start, one.end, "%.2f %s" % (one.probability, one.label)) for one in segments_of(answers)]
        captions[-1] = captions[-1]._replace(end=None)
    else:
        best = answers[0].ranked[0]
        captions = [Caption(0.0, None, "%.2f %s" % (best.probability, best.label))]
    write_captions(path, output, captions)


def warn_if_short(name: str, window: Window, length: float) -> None:
    """Say so if all of a video is shorter than a window of `length` seconds."""
    if window.end is not None and window.end < length:
        warn("%s: is %.1f s long, shorter than a window of %g s; it is taken as one window" % (name, window.end, length))


def clock(seconds: float) -> str:
    """Seconds as 1:02.5, or 1:01:02.5 from an hour on."""
    tenths = int(round(seconds * 10))
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    text = "%02d.%d" % divmod(rest, 10)
    return "%d:%02d:%s" % (hours, minutes, text) if hours else "%d:%s" % (minutes, text)

"""What happens in videos: tensors of them, the answers, what is printed of them, and the files they are written to."""

import argparse
import contextlib
import json
import os
import time
from typing import Any, Dict, Generator, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
from tqdm import tqdm

from tsm.cli import Corrupt, Killed, UserError, complain, describe, printable, warn
from tsm.files import write_json, write_text
from tsm.labels import Ranked
from tsm.predict.captions import Caption, write_captions
from tsm.protocol import Protocol
from tsm.report.findings import strips_of, write_csv
from tsm.video.clips import decoded
from tsm.video.decode import timeline
from tsm.video.frames import strict
from tsm.video.windows import SMALLER, WHOLE, Window, windowed
from tsm.workers import each


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


Parts = Generator[Tuple[Tuple[int, Window], Union[np.ndarray, Corrupt]], None, None]  # of parts_of()


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


def entry_of(name: str, answers: Sequence[Answer], error: str, long: bool) -> Dict[str, Any]:
    """One input for --json: {input, error, windows: [{start, end, top: [{class_id, label, probability}]}], segments}."""
    windows = [{"start": answer.window.start, "end": answer.window.end,
                "top": [ranked._asdict() for ranked in answer.ranked]} for answer in answers]
    entry: Dict[str, Any] = {"input": name, "error": error or None, "windows": windows}
    if long and answers:
        entry["segments"] = [segment._asdict() for segment in segments_of(answers)]
    return entry


def as_cards(entry: Dict[str, Any]) -> Dict[str, Any]:
    """An entry of --json for the page: {name, place, length, error, problem, cards: [{when, strip, top}]}.

    A card is a segment of a long video, or else the whole of one; its film strip is made from the file, None where that is a
    camera or cannot be read a second time, which `problem` tells.
    """
    path = entry["input"]
    parts = [(segment["start"], segment["end"], [segment]) for segment in entry.get("segments", [])]
    parts = parts or [(None, None, window["top"]) for window in entry["windows"]]
    strips: Sequence[Optional[str]] = [None] * len(parts)
    name, place, problem, length = path, "", "", parts[-1][1] if parts else None
    if os.path.exists(path):
        place, name = os.path.split(path.rstrip(os.sep))
        with contextlib.suppress(Corrupt), strict():
            length = length or (None if os.path.isdir(path) else float(timeline(path).starts[-1]))
        strips, problem = strips_of(path, [part[:2] for part in parts]) if parts else (strips, "")
    cards = [{"when": "" if end is None else "%s - %s" % (clock(start or 0.0), clock(end)), "strip": strip, "top": classes}
             for (start, end, classes), strip in zip(parts, strips)]
    return {"name": name, "place": place, "length": "" if length is None else clock(length), "error": entry["error"],
            "problem": problem, "cards": cards}


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


class Log:
    """--jsonl: one JSON object per line, {time, input, error, start, end, top}, added to the file as each answer comes.

    Each line is there whole once it was written, whatever ends the run. `failed` once one could not be.
    """

    def __init__(self, path: Optional[str]) -> None:
        self.file, self.failed = open(path, "ab", buffering=0) if path else None, False

    def add(self, name: str, answer: Optional[Answer], error: Optional[str] = None) -> None:
        """A line of one answer, or of the error that an input ended with."""
        window, ranked = answer or Answer(WHOLE, [])
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "input": name, "error": error, "start": window.start,
                "end": window.end, "top": [one._asdict() for one in ranked]}
        if self.file and not self.failed:
            try:
                self.file.write(json.dumps(line).encode() + b"\n")
            except OSError as failure:
                failure.filename, self.failed = self.file.name, True
                complain(describe(failure))


def write_files(args: argparse.Namespace, facts: Dict[str, Any], views: int, entries: List[Dict[str, Any]]) -> bool:
    """--json, --csv and --html, of the entries of --json; whether each could be written, for one that cannot costs no other.

    Args:
        facts: tsm.infer.engine.about()'s.
    """
    document = dict(facts, inputs=entries)

    def write_page() -> None:
        from tsm.report.page import predict_page

        write_text(args.html, predict_page({
            "model": os.path.basename(args.model), "about": facts["model"].get("tsm.about", ""), "engine": facts["engine"],
            "precision": args.precision, "views": "%d view%s of a video" % (views, "s" if views > 1 else ""),
            "inputs": list(map(as_cards, entries))}, args.html))

    def write_whole() -> None:
        if args.json == "-":
            print(json.dumps(document, indent=1, allow_nan=False), flush=True)
        else:
            write_json(args.json, document)

    whole = True
    for path, write in ((args.json, write_whole), (args.html, write_page),
                        (args.csv, lambda: write_csv(args.csv, csv_rows(entries), args.csv_bom))):
        try:
            if path:
                write()
        except OSError as error:
            complain(describe(error))
            whole = False
    return whole


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


def show(name: str, answers: Sequence[Answer], failed: str, long: bool, annotated: str, log: Log) -> Dict[str, Any]:
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
        tell(name, failed, log)
    return entry_of(name, answers, failed, long)


def tell(name: str, failed: str, log: Log) -> str:
    """Say, on stderr and in --jsonl, why an input failed; that text."""
    complain("%s: %s" % (name or "''", failed))
    log.add(name, None, failed)
    return failed


def in_order(results: Iterable[Tuple[int, Any]]) -> Iterator[Tuple[int, Any]]:
    """(number, result) by number from 0 on, each as soon as all before it are there."""
    early: Dict[int, Any] = {}
    wanted = 0
    for number, result in results:
        early[number] = result
        while wanted in early:
            yield wanted, early.pop(wanted)
            wanted += 1


def parts_of(
    paths: Sequence[str], length: Optional[float], stride: Optional[float], protocol: Protocol, dtype: str, workers: int
) -> Parts:
    """((number of the path, window), its tensor [1, frames, 3, size, size] or the Corrupt that says why there is none).

    Without a window's `length`, in seconds, a path is one window, and paths come in any order; with it they come one after
    the other, their windows in time. The processes that decode are forked before this returns, so call it before open_engine().
    """
    no_room = "it needs more memory than there is; "
    if length is None:
        videos: Generator[Tuple[int, Any], None, None] = decoded(
            {number: (path, None) for number, path in enumerate(paths)}, protocol, dtype, workers, None,
            no_room + "pass a smaller --num_worker")
    else:
        videos = each(lambda number: _windows(paths[number], length, stride, protocol, dtype, no_room + SMALLER),  # type: ignore[arg-type]
                      range(len(paths)), 1, unrolled=True)

    def parts() -> Parts:
        with contextlib.closing(videos):
            for number, part in videos:
                if isinstance(part, Killed) and length is not None:
                    part = Corrupt("its decoder was killed, perhaps for want of memory; " + SMALLER)
                if isinstance(part, Corrupt):
                    yield (number, WHOLE), part
                    continue
                window, tensor = (WHOLE, part) if length is None else part
                _warn_of_little(paths[number], window, length, tensor[: protocol.segments])
                yield (number, window), tensor[None]

    return parts()


def _windows(
    path: str, length: float, stride: Optional[float], protocol: Protocol, dtype: str, no_room: str
) -> Iterator[Tuple[Window, np.ndarray]]:
    """windowed(), of which a want of memory is the input's own error."""
    if os.path.isdir(path):
        raise Corrupt("is a folder of frames, which have no time; --window is for videos")
    try:
        yield from windowed(path, length, stride, protocol, dtype)
    except MemoryError:
        raise Corrupt(no_room)


def _warn_of_little(name: str, window: Window, length: Optional[float], view: np.ndarray) -> None:
    """Say so if a video is shorter than a window, or if a whole one has fewer different frames than a view [segments, …] takes."""
    if length is not None:
        return warn_if_short(name, window, length)
    different = len({frame.tobytes() for frame in view})
    if different < len(view):
        warn("%s: only %d of the %d frames that the network takes of it differ; it judges by motion, so do not trust the answer"
             % (name, different, len(view)))


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

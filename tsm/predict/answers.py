"""What is known of an input: its answers, what is printed of them, and the files that they are written to."""

import abc
import argparse
import contextlib
import json
import math
import os
import time
from collections import Counter
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from tqdm import tqdm

from tsm.cli import Corrupt, UserError, complain, describe, printable, warn
from tsm.files import write_json, write_text
from tsm.labels import Ranked, labels_in, read_labels
from tsm.model.offline import Offline
from tsm.predict.captions import write_captions
from tsm.report import page
from tsm.report.findings import strips_of, write_csv
from tsm.samples import evenly
from tsm.video.decode import timeline
from tsm.video.frames import strict
from tsm.video.windows import WHOLE, Window


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


class Viewer(abc.ABC):
    """One input and the answers about it: what a file gives comes by take(), what a live source shows by see(); close() is the end.

    `prefix` begins each line about a live source, and is empty of a file. `lasting`: the last answer holds to the input's end.
    """

    lasting = True

    def __init__(self, name: str, log: "Log", prefix: str) -> None:
        self.name, self.log, self.prefix = name, log, prefix
        self.answers: List[Answer] = []
        self.rows: List[Dict[str, Any]] = []  # as --json has them, where there are more than are kept

    @abc.abstractmethod
    def close(self) -> List[Segment]:
        """Print what is known in the end, and give its segments, if it has any."""

    def facts(self) -> Dict[str, Any]:
        """What --json has beside the answers."""
        return {}

    def say(self, line: str) -> None:
        tqdm.write((self.prefix or "  ") + line)

    def sum_up(self, segments: Sequence[Segment]) -> None:
        """Print the name, but of the only camera, then per segment, or per rank of the whole, probability and label."""
        tqdm.write("in all" if self.prefix and not self.prefix.strip() else printable(self.name))
        for one in segments:
            tqdm.write("  %s - %s  %.4f  %s" % (clock(one.start), clock(one.end), one.probability, printable(one.label)))
        for ranked in self.answers[0].ranked if not segments else ():
            tqdm.write("  " + in_a_line([ranked]))


def segments_of(answers: Sequence[Answer]) -> List[Segment]:
    """Windows in their order in time -> stretches of one label.

    Each window speaks for the times that are nearer to its middle than to any other window's, the first from its start
    and the last to its end, so the stretches cover the video once.
    """
    spans = [(answer.window.start or 0.0, answer.window.end or 0.0) for answer in answers]
    between = [round((start + end + after + until) / 4, 3) for (start, end), (after, until) in zip(spans, spans[1:])]
    edges = [spans[0][0], *between, spans[-1][1]] if spans else []
    segments: List[Segment] = []
    weight = 0
    for answer, start, end in zip(answers, edges, edges[1:]):
        weight = lengthen(segments, weight, answer.ranked[0], start, end)
    return segments


def lengthen(segments: List[Segment], weight: int, best: Ranked, start: float, end: float) -> int:
    """Add a window's stretch to segments, in place: to the last one, which is of `weight` windows, if that has its
    label. The last one's windows then."""
    if segments and segments[-1].label == best.label:
        last, weight = segments[-1], weight + 1
        segments[-1] = last._replace(end=end, probability=last.probability + (best.probability - last.probability) / weight)
        return weight
    segments.append(Segment(start, end, best.label, best.probability))
    return 1


def window_of(answer: Answer) -> Dict[str, Any]:
    """An answer for --json."""
    return {"start": answer.window.start, "end": answer.window.end, "top": [ranked._asdict() for ranked in answer.ranked]}


def entry_of(viewer: Viewer, segments: Sequence[Segment], error: str) -> Dict[str, Any]:
    """One input for --json: {input, error, windows: [{start, end, top: [{class_id, label, probability}]}], segments}."""
    windows = viewer.rows or list(map(window_of, viewer.answers))
    entry: Dict[str, Any] = {"input": viewer.name, "error": error or None, "windows": windows}
    if segments:
        entry["segments"] = [segment._asdict() for segment in segments]
    return dict(entry, **viewer.facts())


def as_cards(entry: Dict[str, Any]) -> Dict[str, Any]:
    """An entry of --json for the page: {name, place, length, error, problem, figures, curve, cards: [{when, strip, top}]}.

    A card is a segment of a long video, or else the whole of one; its film strip is made from the file, None where that is a camera
    or cannot be read a second time, which `problem` tells. Frame by frame there is one card, of the last answer, and a curve.
    """
    path, windows, by_frame = entry["input"], entry["windows"], "every" in entry
    running = by_frame and entry["threshold"] is None
    parts = [] if running else [(one["start"], one["end"], [one]) for one in entry.get("segments", ())]
    parts = parts or ([(None, None, windows[-1]["top"])] if windows else [])
    strips: Sequence[Optional[str]] = [None] * len(parts)
    name, place, problem, length = path, "", "", parts[-1][1] if parts and not by_frame else None
    if os.path.exists(path):
        place, name = os.path.split(path.rstrip(os.sep))
        with contextlib.suppress(Corrupt), strict():
            length = length or (None if os.path.isdir(path) else float(timeline(path).starts[-1]))
        strips, problem = strips_of(path, [part[:2] for part in parts]) if parts else (strips, "")
    cards = [{"when": "" if end is None else "%s - %s" % (clock(start or 0.0), clock(end)), "strip": strip, "top": classes}
             for (start, end, classes), strip in zip(parts, strips)]
    return {"name": name, "place": place, "length": "" if length is None else clock(length), "error": entry["error"],
            "problem": problem, "cards": cards, "curve": drawn_curve(windows) if running and len(windows) > 1 else None,
            "figures": in_figures(entry["frames"], entry["passed_over"], *entry["latency_ms"].values()) if by_frame and windows else ""}


def drawn_curve(windows: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    """The running answer's probability over time: {svg, labels}, of the CURVES labels that are the answer most often."""
    last = max(windows[-1]["end"], 1e-3)
    often = Counter(window["top"][0]["label"] for window in windows)
    labels = [label for label, _ in often.most_common(len(CURVES))]
    windows = evenly(windows, 500)
    parts = page.axes([(share, clock(share * last)) for share in (0, 0.5, 1)], [(share, "%g" % share) for share in (0, 0.5, 1)])
    for label, kind in zip(labels, CURVES):
        line: List[Tuple[float, float]] = []
        for window in [*windows, {"top": []}]:
            here = [one["probability"] for one in window["top"] if one["label"] == label]
            if here:
                line.append((page.across(window["end"] / last), page.upwards(here[0])))
            elif line:  # it is not among the classes that were kept
                parts.append(page.path(line + [(line[-1][0] + 3, line[-1][1])], kind))
                line = []
    return {"svg": page.svg("Probability of the running answer over time", *parts), "labels": list(zip(labels, CURVES))}


CURVES = ("line", "warm", "dash")  # how the page draws the labels of a curve, the most frequent first
COLUMNS = ("input", "start", "end", "rank", "label", "class_id", "probability", "error")


def csv_rows(entries: Iterable[Dict[str, Any]], approximates: str) -> Iterator[Sequence[Any]]:
    """--csv: one row per input, window and rank, after COLUMNS as the heading; an input that failed is a row with its
    error. What a model approximates is a column more."""
    more = [approximates] if approximates else []
    yield [*COLUMNS, "approximates"] if approximates else COLUMNS
    for entry in entries:
        if entry["error"]:
            yield [entry["input"], "", "", "", "", "", "", entry["error"], *more]
        for window in entry["windows"]:
            for rank, ranked in enumerate(window["top"], 1):
                yield [entry["input"], window["start"], window["end"], rank, ranked["label"], ranked["class_id"],
                       "%.6f" % ranked["probability"], "", *more]


class Log:
    """--jsonl: one JSON object per line, {time, input, error, start, end, top} and `more`, added whole to the file as
    each answer comes; `failed` once one could not be."""

    def __init__(self, path: Optional[str], more: Optional[Dict[str, Any]] = None) -> None:
        self.file, self.failed, self.more = open(path, "ab", buffering=0) if path else None, False, more or {}

    def add(self, name: str, answer: Optional[Answer], error: Optional[str] = None) -> None:
        """A line of one answer, or of the error that an input ended with."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "input": name, "error": error,
                **window_of(answer or Answer(WHOLE, [])), **self.more}
        if self.file and not self.failed:
            try:
                self.file.write(json.dumps(line).encode() + b"\n")
            except OSError as failure:
                failure.filename, self.failed = self.file.name, True
                complain(describe(failure))


def write_files(args: argparse.Namespace, facts: Dict[str, Any], entries: List[Dict[str, Any]]) -> bool:
    """--json, --csv and --html, of a way's about() and the entries of --json; whether each could be written, for one
    that cannot costs no other."""
    def write_page() -> None:
        write_text(args.html, page.predict_page({
            "model": os.path.basename(args.model), "about": page.about_model(facts["model"]), "engine": facts["engine"],
            "precision": facts["precision"], "how": (
                "%d view%s of a video" % (facts["views"], "s" if facts["views"] > 1 else "") if "views" in facts
                else "frame by frame, shift %s" % facts["shift"]),
            "inputs": list(map(as_cards, entries))}))

    whole = True
    for path, write in ((args.json, lambda: write_json(args.json, dict(facts, inputs=entries))), (args.html, write_page),
                        (args.csv, lambda: write_csv(args.csv, csv_rows(entries, facts.get("approximates", "")), args.csv_bom))):
        try:
            if path:
                write()
        except OSError as error:
            complain(describe(error))
            whole = False
    return whole


def in_figures(frames: int, missed: int, waits: Dict[str, float], steps: Dict[str, float]) -> str:
    """How many frames were answered and passed over; percentiles, in ms, of the time from a frame to its answer and of the network."""
    lost = ", %d of %d passed over (%.1f %%)" % (missed, frames + missed, 100 * missed / (frames + missed)) if missed else ""
    waited = " / ".join("%s %s" % (name, page.plain(ms)) for name, ms in waits.items())
    return "%d frames answered%s; frame to answer %s ms (network %s)" % (frames, lost, waited, " / ".join(map(page.plain, steps.values())))


def in_a_line(ranked: Sequence[Ranked]) -> str:
    """Classes on one line, the most probable first: `0.9731  Closing something | 0.0102  Opening something`."""
    return " | ".join("%.4f  %s" % (one.probability, printable(one.label)) for one in ranked)


def finished(viewer: Viewer, failed: str, annotated: str) -> Dict[str, Any]:
    """Close a file, write its answers into a copy of it if that has a name, and say why it failed, if it did; its entry for --json."""
    segments = viewer.close()
    if viewer.answers and not failed and annotated:
        try:
            annotate(annotated, viewer, segments)
            tqdm.write("  wrote " + printable(annotated))
        except (Corrupt, UserError, OSError) as error:
            failed = describe(error) if isinstance(error, OSError) else str(error)
    if failed:
        say_failed(viewer.name, failed, viewer.log)
    return entry_of(viewer, segments, failed)


def say_failed(name: str, failed: str, log: Log) -> str:
    """Say, on stderr and in --jsonl, why an input failed; that text."""
    complain("%s: %s" % (name or "''", failed))
    log.add(name, None, failed)
    return failed


def annotate(output: str, viewer: Viewer, segments: Sequence[Segment]) -> None:
    """Write a video with its labels drawn in, into a folder that is there. Raises Corrupt, UserError or OSError."""
    if os.path.isdir(viewer.name):
        raise Corrupt("is a folder of frames; --annotate is for videos")
    shown = segments or [Segment(0.0, 0.0, *viewer.answers[0].ranked[0][1:])]
    ends = [one.end for one in shown[:-1]] + [math.inf if viewer.lasting else shown[-1].end]
    captions = [(one.start, end, "%.2f %s" % (one.probability, one.label)) for one, end in zip(shown, ends)]
    write_captions(viewer.name, output, captions)


def label_names(args: argparse.Namespace, model: Offline) -> Optional[List[str]]:
    """The classes' names, from --labels or from the model; None, with a note, if there are none. What else is to be
    known of the model before its answers is printed."""
    for line in page.about_model(model.metadata):
        print("%s: %s" % (args.model, printable(line)), flush=True)
    classes = model.tested_by.classes
    names = read_labels(args.labels, classes) if args.labels else labels_in(model.metadata, classes)
    if names is None:
        warn("%s holds no label names, so classes are numbered; --labels FILE names them" % args.model)
    return names


def warn_if_few(name: str, different: int, taken: int) -> None:
    """Say so if a whole video has fewer different frames than a view takes."""
    if different < taken:
        warn("%s: only %d of the %d frames that the network takes of it differ; it judges by motion, so do not trust the answer"
             % (name, different, taken))


def clock(seconds: float) -> str:
    """Seconds as 1:02.5, or 1:01:02.5 from an hour on."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    text = "%02d.%d" % divmod(rest, 10)
    return "%d:%02d:%s" % (hours, minutes, text) if hours else "%d:%s" % (minutes, text)

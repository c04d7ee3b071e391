"""Answers of a model of clips: whole videos, windows of long ones, the newest window of a camera or stream."""

import argparse
import contextlib
from typing import Any, Dict, Generator, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
from tqdm import tqdm

from tsm.cli import Corrupt, Killed, warn
from tsm.infer.engine import Computing, about, open_engine, run_stream
from tsm.labels import top
from tsm.model.offline import Offline
from tsm.predict.answers import Answer, Log, Segment, Viewer, clock, in_a_line, segments_of, warn_if_few
from tsm.predict.live import LIVE_WINDOW, Recent
from tsm.protocol import Protocol, frame_indices
from tsm.video.clips import as_video, decoded
from tsm.video.windows import SMALLER, WHOLE, Window, windowed
from tsm.workers import each

Parts = Generator[Tuple[Tuple[int, Window], Union[np.ndarray, Corrupt]], None, None]  # of parts_of()


class ByClip:
    """How a model of clips answers: its engine, and the results of files, (number of the path, (window, probabilities) or Corrupt)."""

    def __init__(self, args: argparse.Namespace, model: Offline, computing: Computing, names: Optional[List[str]], paths: Sequence[str],
                 live: int) -> None:
        self.args, self.model, self.names = args, model, names
        self.long = args.window is not None
        self.seconds = args.window or LIVE_WINDOW  # of a live source that an answer is about
        self.every = args.every or self.seconds / 2
        parts = parts_of(paths, args.window, args.every, model.tested_by, model.dtype.name, args.num_worker)
        self.engine = open_engine(model, computing, listed=len(paths) > 1 or bool(paths and args.window))
        scores = tqdm(run_stream(self.engine, model, parts), total=None if self.long else len(paths),
                      unit="window" if self.long else "video", disable=None)
        self.results: Iterator[Tuple[int, Any]] = (
            (number, output if isinstance(output, Corrupt) else (window, output[0])) for (number, window), output, _, _ in scores)
        if not self.long:
            self.results = by_number(self.results)

    def viewer(self, name: str, log: Log, prefix: str = "") -> "ClipViewer":
        return ClipViewer(name, log, prefix, self)

    def about(self) -> Dict[str, Any]:
        return dict(about(self.engine), views=self.model.tested_by.views)

    def in_all(self) -> str:
        return ""


class ClipViewer(Viewer):
    """An input of a model of clips: each of its windows is answered by itself."""

    def __init__(self, name: str, log: Log, prefix: str, way: ByClip) -> None:
        super().__init__(name, log, prefix)
        self.way = way

    def take(self, result: Tuple[Window, np.ndarray]) -> None:
        """Keep the answer about a window, of its probabilities [classes]."""
        window, probabilities = result
        self.answers.append(Answer(window, top(probabilities, self.way.names, self.way.args.top)))
        self.log.add(self.name, self.answers[-1])

    def see(self, recent: Recent) -> None:
        """Answer the newest window of a camera or stream, and print that."""
        model, window = self.way.model, Window(recent.start, recent.end)
        if not self.answers:
            _warn_if_short(self.name, window, self.way.seconds)
        video = as_video(recent.frames, frame_indices(len(recent.frames), model.tested_by), model.tested_by, model.dtype.name)
        for _, output, _, _ in run_stream(self.way.engine, model, (one for one in [(self.name, video[None])])):
            self.take((window, output[0]))
        self.say("%s  %s" % (clock(recent.end), in_a_line(self.answers[-1].ranked)))

    def close(self) -> List[Segment]:
        """Print a file's answers, or a live source's stretches; these."""
        segments = segments_of(self.answers) if self.way.long or self.prefix else []
        if len(self.answers) > (1 if self.prefix else 0):
            self.sum_up(segments)
        return segments


def by_number(results: Iterable[Tuple[int, Any]]) -> Iterator[Tuple[int, Any]]:
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

    Without a window's `length`, in seconds, a path is one window, and paths come in any order; with it they come one after the
    other, their windows in time. The processes that decode are forked before this returns, so call it before open_engine().
    """
    if length is None:
        videos: Generator[Tuple[int, Any], None, None] = decoded(
            {number: (path, None) for number, path in enumerate(paths)}, protocol, dtype, workers, None)
    else:
        videos = each(lambda number: windowed(paths[number], length, stride, protocol, dtype),  # type: ignore[arg-type]
                      range(len(paths)), 1, unrolled=True)

    def parts() -> Parts:
        with contextlib.closing(videos):
            for number, part in videos:
                if isinstance(part, Killed) and length is not None:
                    part = Corrupt("%s; %s" % (str(part).split(";")[0], SMALLER))
                if isinstance(part, Corrupt):
                    yield (number, WHOLE), part
                    continue
                window, tensor = (WHOLE, part) if length is None else part
                if length is None:
                    warn_if_few(paths[number], len({frame.tobytes() for frame in tensor[: protocol.segments]}), protocol.segments)
                else:
                    _warn_if_short(paths[number], window, length)
                yield (number, window), tensor[None]

    return parts()


def _warn_if_short(name: str, window: Window, length: float) -> None:
    """Say so if all of a video is shorter than a window of `length` seconds."""
    if window.end is not None and window.end < length:
        warn("%s: is %.1f s long, shorter than a window of %g s; it is taken as one window" % (name, window.end, length))

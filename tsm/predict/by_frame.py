"""Answers of an online model: frame by frame, of videos, cameras and streams, each with states of its own."""

import argparse
import itertools
import time
from array import array
from collections import deque
from typing import Any, Deque, Dict, Iterator, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from tqdm import tqdm

from tsm.cli import printable, warn
from tsm.infer.engine import BACKENDS, Computing, Engine, Online, computed_by, default_backend, open_online, percentiles
from tsm.labels import Ranked, name_of, top
from tsm.model.offline import Offline, clip_of
from tsm.predict.answers import Answer, Log, Segment, Viewer, clock, in_a_line, in_figures, lengthen, warn_if_few, window_of
from tsm.predict.live import LIVE_WINDOW, Recent
from tsm.protocol import CENTRE_VIEW, softmax
from tsm.video.clips import as_video
from tsm.video.windows import Window, paced
from tsm.workers import each

SCENE = 0.5  # the distance of two frames' colours (Bhattacharyya's, 0..1) from which they show another scene
PASSED_OVER = 0.1  # the share of frames from which their loss costs accuracy


class ByFrame:
    """How an online model answers: networks that hold the states, and the frames of files, (number of the path,
    (seconds, frame) or Corrupt), path by path."""

    long = True

    def __init__(self, args: argparse.Namespace, model: Offline, computing: Computing, names: Optional[List[str]], paths: Sequence[str],
                 live: int) -> None:
        self.args, self.model, self.names, self.approximates = args, model, names, model.metadata.get("tsm.approximates", "")
        self.precision = computing.precision
        self.seconds, self.every = 0.0, args.every or LIVE_WINDOW / model.tested_by.segments  # of a live source
        self.results: Iterator[Tuple[int, Any]] = each(  # forked before the engine starts its threads
            lambda number: paced(paths[number], args.every, model.tested_by), range(len(paths)), 1, unrolled=True)
        first = open_online(model, computing)
        self.networks = [first] + [first.another() for _ in range(1, live)]
        self.viewers: List[FrameViewer] = []
        self.clip: Optional[Engine] = None  # of the same weights as they were trained, where they are run otherwise
        if self.approximates and not args.every and paths:
            trained = clip_of(model, "view", shift=self.approximates)
            self.clip = BACKENDS[default_backend()](trained, model.path, "fp32", 1)
        self.same: List[bool] = []  # per file, whether that answers the same

    def viewer(self, name: str, log: Log, prefix: str = "") -> "FrameViewer":
        """Files, which come one after the other, share a network."""
        network = self.networks[sum(1 for one in self.viewers if one.prefix)] if prefix else self.networks[0]
        self.viewers.append(FrameViewer(name, log, prefix, self, network))
        return self.viewers[-1]

    def about(self) -> Dict[str, Any]:
        facts = computed_by(self.networks[0].name, self.precision, len(self.networks), self.networks[0].int8)
        agreement = {"agreement_with_clip": {"same": sum(self.same), "videos": len(self.same)}} if self.clip else {}
        return dict(facts, shift=self.model.tested_by.shift, approximates=self.approximates, **agreement)

    def in_all(self) -> str:
        """How many of the files' frames were answered, and how fast; how often as the clip would be."""
        files = [one for one in self.viewers if not one.prefix]
        waits, steps = (list(itertools.chain.from_iterable(getattr(one, name) for one in files)) for name in ("waits", "steps"))
        figures = in_figures(len(waits), 0, percentiles(waits), percentiles(steps)) if waits else ""
        agreed = "\nthe clip as it was trained, looking ahead, gives the same answer on %d of %d videos" % (sum(self.same), len(self.same))
        return figures + (agreed if self.same else "")

    def compare(self, frames: Sequence[np.ndarray], answer: int) -> None:
        """Note whether the weights as they were trained give the same class of a clip's frames, [1, 3, size, size] each."""
        if self.clip and len(frames) == self.model.tested_by.segments:
            scores: List[np.ndarray] = []
            self.clip.submit(np.concatenate(frames), scores.append)
            self.clip.wait()
            self.same.append(int(scores[0].mean(0).argmax()) == answer)


class Rows(List[Dict[str, Any]]):
    """Answers as --json has them, each made when it is asked for; json takes it for the list of them. Kept are 16 bytes
    of each and 16 of each of its classes, so that a day of a camera takes megabytes."""

    def __init__(self, names: Optional[Sequence[str]]) -> None:
        super().__init__()
        self.names, self.kept, self.width = names, array("d"), 1

    def add(self, start: float, end: float, ranked: Sequence[Ranked]) -> None:
        self.kept.extend([start, end] + [value for one in ranked for value in (one.class_id, one.probability)])
        self.width = 2 + 2 * len(ranked)

    def __len__(self) -> int:
        return len(self.kept) // self.width

    def __iter__(self) -> Iterator[Dict[str, Any]]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, at: Any) -> Any:
        first = range(len(self))[at] * self.width
        start, end, *rest = self.kept[first : first + self.width]
        ranked = [Ranked(int(number), name_of(int(number), self.names), value) for number, value in zip(rest[::2], rest[1::2])]
        return window_of(Answer(Window(start, end), ranked))


class FrameViewer(Viewer):
    """One input in front of a network with states: its running answer, events, resets and times."""

    def __init__(self, name: str, log: Log, prefix: str, way: ByFrame, network: Online) -> None:
        super().__init__(name, log, prefix)
        self.way, self.network, self.args = way, network, way.args
        self.memory = way.model.tested_by.segments if way.args.memory is None and prefix else way.args.memory or 0  # frames of the mean
        self.protocol, self.dtype = way.model.tested_by._replace(segments=1, **CENTRE_VIEW), way.model.dtype.name  # of one frame
        self.events: Dict[int, Answer] = {}  # those that go on, by class
        self.kept: Deque[Tuple[float, np.ndarray]] = deque(maxlen=self.memory or None)  # moments and scores; their sum of all
        self.count, self.missed = 0, 0  # frames since the last reset, and those passed over
        self.resets: List[float] = []
        self.waits, self.steps = array("f"), array("f")  # ms from a frame's arrival to its answer, and of the network
        self.image: Optional[np.ndarray] = None  # the last frame
        self.frames: List[np.ndarray] = []  # of a file that is compared with its clip, as the network is shown them
        self.moments: List[float] = []  # of a file's frames
        self.best = 0  # the last answer's class
        self.named, self.lasting = bool(prefix), self.args.threshold is None
        self.rows: Rows = Rows(way.names)  # if they will be written
        self.segments: List[Segment] = []  # stretches of one label; the last one is of `weight` frames
        self.weight = 0
        network.reset()

    def say(self, line: str) -> None:
        """Print a line, of a file below its name."""
        if not self.named:
            tqdm.write(printable(self.name))
        self.named = True
        super().say(line)

    def take(self, result: Tuple[float, np.ndarray]) -> None:
        """Answer a file's frame, (seconds, RGB uint8 [height, width, 3] after the resize)."""
        moment, image = result
        self.moments.append(moment)
        self.see(Recent([image], moment, moment, time.monotonic(), 0, False))
        if self.way.clip:
            self.frames.append(as_video([image], [0], self.protocol, self.dtype))

    def see(self, recent: Recent) -> None:
        """Answer the newest frame."""
        image, moment = recent.frames[-1], recent.end
        self.missed += recent.missed
        why = self._why_anew(image, moment, recent.cut)
        if why is not None:
            self.reset(moment, why)
        self.image, began = image, time.monotonic()
        frame = as_video([image], [0], self.protocol, self.dtype)
        mean = self._mean(moment, np.asarray(self.network.step(frame), np.float64))
        self.steps.append(1000 * (time.monotonic() - began))
        self.best = int(mean.argmax())
        self._tell(moment, softmax(mean))
        self.waits.append(1000 * (time.monotonic() - recent.arrived))

    def _mean(self, moment: float, scores: np.ndarray) -> np.ndarray:
        """The mean of the scores that are kept, these included."""
        self.count += 1
        if self.memory or not self.kept:
            self.kept.append((moment, scores))
        else:
            self.kept[0] = self.kept[0][0], self.kept[0][1] + scores
        total: np.ndarray = sum(one for _, one in self.kept)  # type: ignore[assignment]
        return total / (len(self.kept) if self.memory else self.count)

    def reset(self, moment: float, why: str = "") -> None:
        """Forget what was seen; a reason that nobody asked for is said."""
        if why:
            warn("%s: at %s %s; what it saw before is forgotten" % (self.name, clock(moment), why))
        self.resets.append(round(moment, 3))
        self.kept.clear()
        self.count = 0
        self.network.reset()

    def _why_anew(self, image: np.ndarray, moment: float, cut: bool) -> Optional[str]:
        """Why what was seen before is to be forgotten: what nobody asked for, in words; empty, as --reset wants it; or None."""
        if self.image is None:
            return None
        if cut:
            return "the source was away, or its clock leapt"
        if image.shape != self.image.shape:
            return "its frames change their shape"
        rule: Any = self.args.reset or "never"
        due = differ(self.image, image) if rule == "scene" else rule != "never" and moment - (self.resets or [0.0])[-1] >= rule
        return "" if due else None

    def _tell(self, moment: float, probabilities: np.ndarray) -> None:
        """Keep, and print, what is new at a moment."""
        if self.args.threshold is not None:
            return self._follow(moment, probabilities, self.args.threshold)
        start, end, ranked = round(self.kept[0][0], 3), round(moment, 3), top(probabilities, self.way.names, self.args.top)
        answer = Answer(Window(start, end), ranked)
        self.answers[:] = [answer]  # those before are in the rows, if these are wanted
        self.segments[-1:] = [last._replace(end=end) for last in self.segments[-1:]]
        self.weight = lengthen(self.segments, self.weight, ranked[0], end, end)
        if self.args.json or self.args.csv or self.args.html:
            self.rows.add(start, end, ranked)
        self.log.add(self.name, answer)
        if self.weight == 1:
            self.say("%s  %s" % (clock(moment), in_a_line(ranked)))

    def _follow(self, moment: float, probabilities: np.ndarray, threshold: float) -> None:
        """Begin, go on with and end events; an event's probability is its highest."""
        for number, probability in enumerate(map(float, probabilities)):
            if number in self.events:
                window, (best,) = self.events[number]
                best = best._replace(probability=max(best.probability, probability))
                self.events[number] = Answer(window._replace(end=round(moment, 3)), [best])
                if probability < threshold / 2:
                    self.end_event(number)
            elif probability > threshold:
                best = Ranked(number, name_of(number, self.way.names), probability)
                self.events[number] = Answer(Window(round(moment, 3), round(moment, 3)), [best])
                self.say("%s  %s" % (clock(moment), in_a_line([best])))

    def end_event(self, number: int) -> None:
        self.answers.append(self.events.pop(number))
        self.log.add(self.name, self.answers[-1])

    def close(self) -> List[Segment]:
        """End the events that go on, and print what holds of all; the events, or the stretches of one label."""
        for number in list(self.events):
            self.end_event(number)
        self.answers.sort(key=lambda answer: answer.window.start or 0.0)  # as events begin
        segments = self.segments if self.lasting else [
            Segment(one.window.start or 0.0, one.window.end or 0.0, *one.ranked[0][1:]) for one in self.answers]
        if self.prefix:
            if len(self.steps if self.lasting else self.answers) > 1:
                self.sum_up(segments)
            if len(self.steps):
                self.say(in_figures(len(self.waits), self.missed, percentiles(self.waits), percentiles(self.steps)))
            due = len(self.steps) + self.missed
            if self.missed > PASSED_OVER * due:  # the answers suffer
                taken, int8 = self.way.every * due / len(self.steps), " or --precision int8" * (self.way.precision == "fp32")
                warn("%s: %d of %d frames were passed over: one took %.2g s, and --every is %.3g; pass --every %.2g%s" % (
                    self.name, self.missed, due, taken, self.way.every, 1.1 * taken, int8))
        elif len(self.steps):
            events = "%d event%s" % (len(self.answers), "" if len(self.answers) == 1 else "s")
            self.say("in all  " + in_a_line(self.answers[-1].ranked) if self.lasting else events)
            self.way.compare(self.frames, self.best)
            if not self.args.every:
                warn_if_few(self.name, len(set(self.moments)), self.way.model.tested_by.segments)
            elif len(self.steps) == 1:
                warn("%s: is shorter than --every %g s, so one frame is all that it is judged by" % (self.name, self.args.every))
        self.image, self.frames = None, []
        return segments

    def facts(self) -> Dict[str, Any]:
        """What --json has of an input of an online model, beside its answers."""
        return {"frames": len(self.steps), "passed_over": self.missed, "every": self.way.every if self.prefix else self.args.every,
                "resets": self.resets, "threshold": self.args.threshold,
                "latency_ms": {"frame_to_answer": percentiles(self.waits), "network": percentiles(self.steps)}}


def differ(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two frames, RGB uint8 [height, width, 3], show different scenes, by how their colours are spread."""
    spread = [cv2.calcHist([image], [0, 1, 2], None, [8, 8, 8], [0, 256] * 3) for image in (one, other)]
    return bool(cv2.compareHist(spread[0], spread[1], cv2.HISTCMP_BHATTACHARYYA) > SCENE)

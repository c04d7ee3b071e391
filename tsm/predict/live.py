"""Cameras and network streams as they run: the newest seconds of each, whatever the time that computing takes."""

import contextlib
import errno
import threading
import time
from collections import deque
from statistics import median
from typing import Any, Deque, Dict, Generator, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import cv2
import numpy as np

from tsm.cli import Corrupt, first_line, warn
from tsm.protocol import Protocol
from tsm.video.clips import resized
from tsm.video.decode import as_rgb, av
from tsm.video.frames import check_size

LIVE_WINDOW = 3.0  # seconds of a camera or stream that a clip is taken of
SILENCE = 15.0  # seconds without a frame before a source counts as dead
RETRY = 1.0  # seconds from one attempt to reach a source to the next
LEAP = 5.0  # seconds by which a source's own clock may go on from one frame to the next
GAPS = 15  # between frames; half of their median is the jitter that is allowed for
MOST_FRAMES = 1000  # of a window; of more, as of 60 seconds of a fast camera, some are passed over
HOPELESS = ("HTTPUnauthorizedError", "HTTPForbiddenError", "ProtocolNotFoundError")  # asking again would lock a user out


class Recent(NamedTuple):
    """The newest frames of a source."""

    frames: List[np.ndarray]  # RGB uint8 [height, width, 3], after the resize
    start: float  # seconds from the source's first frame to the first of these
    end: float  # likewise to the last of these
    arrived: float  # when that one came, by time.monotonic()
    missed: int  # answers that fell due since the last one and were not given, but for those while the source was away
    cut: bool  # whether the source was away since, or its clock leapt


class Lost(Corrupt):
    """A camera or stream that cannot be reached, or went away, and may come back."""


Moments = Iterator[Tuple[float, float, np.ndarray]]


def capture(source: Union[int, str]) -> Moments:
    """(seconds since the first frame, likewise by the source's own clock, frame RGB uint8 [H, W, 3]) of a camera by its
    number, or an address, as it runs.

    What tells its length is a recording, and is held to its own speed. All else is live, and is taken as it comes. Raises
    Corrupt, and Lost where it may help to try again; a recording's end is none, and that of anything else is Lost.
    """
    if isinstance(source, int):
        return _by_opencv(source)
    if av is None:
        raise Corrupt("addresses are read by PyAV, which is missing: python3 -m pip install av")
    scheme, rest = source.split("://", 1)
    return _by_av(scheme.lower() + "://" + rest)  # FFmpeg knows no HTTP://


def _by_opencv(camera: int) -> Moments:
    if hasattr(cv2.utils, "logging"):
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    opened = cv2.VideoCapture(camera)
    if not opened.isOpened():
        raise Lost("cannot be opened; check the camera's number and permissions")
    began: Optional[float] = None
    while True:
        read, frame = opened.read()
        if not read:
            opened.release()
            raise Lost("sends no frames; is it the right camera?" if began is None else "sends no frames any more")
        began = time.monotonic() if began is None else began
        moment = time.monotonic() - began
        yield moment, moment, cv2.cvtColor(check_size(frame), cv2.COLOR_BGR2RGB)


def _by_av(address: str) -> Moments:
    av.logging.set_libav_level(av.logging.PANIC)  # what FFmpeg says of a stream that plays does not matter
    asked, began = time.monotonic(), None  # type: float, Optional[float]
    moment = played = 0.0
    filters: Dict[Any, Any] = {}
    try:
        with av.open(address, timeout=SILENCE, options={"rtsp_flags": "prefer_tcp"}) as container:
            length, first = (container.duration or 0) / av.time_base, 0.0
            for frame in _frames(container):
                now = time.monotonic()
                if began is None:
                    began, first = now, frame.time or 0.0
                moment, played = max(moment, now - began), (frame.time or 0.0) - first
                due = min(played, length)  # no recording plays longer than it says
                if due > moment:
                    time.sleep(due - (now - began))
                    moment = due
                yield moment, played, check_size(as_rgb(frame, filters))
            track = container.streams.video[0]
            whole = float(track.duration * track.time_base) if track.duration and track.time_base else length
            if length <= 0 and container.size <= 0:
                raise Lost("ended after %.1f s" % moment)
            if played + 1 < 0.9 * whole:
                raise Corrupt("broke off after %.1f of its %.1f s" % (played, whole))
    except av.error.FFmpegError as error:
        kind = type(error).__name__
        if began is None and time.monotonic() > asked + SILENCE:  # FFmpeg calls the silence of RTSP something else
            kind = "ExitError"
        words = "the connection failed" if error.errno == errno.EIO else (
            "it sends no frames" if kind == "ExitError" else first_line(error.strerror).lower())
        if kind in HOPELESS or began is None and kind == "InvalidDataError":
            raise Corrupt("cannot be opened: " + words)
        lasting = Lost if began is None or length <= 0 else Corrupt
        raise lasting("cannot be opened: " + words if began is None else "broke off after %.1f s: %s" % (moment, words))


def _frames(container: Any) -> Iterator[Any]:
    """The pictures of a stream, from the first whole one on."""
    if not container.streams.video:
        raise Corrupt("holds no video")
    stream, limit = container.streams.video[0], time.monotonic() + SILENCE
    for packet in container.demux(stream):
        frames: List[Any] = []
        with contextlib.suppress(av.error.InvalidDataError):  # it was joined, or a packet was lost, between two whole pictures
            frames = packet.decode()
        if frames:
            limit = time.monotonic() + SILENCE
        if time.monotonic() > limit:
            raise Lost("sends no frames")
        yield from frames


class _Reader(threading.Thread):
    """A source that is read in a thread of its own: its newest frames, when the next answer is due, and its end."""

    def __init__(self, name: str, source: Union[int, str], seconds: float, stride: float, protocol: Protocol, reconnect: float,
                 arrived: threading.Condition) -> None:
        super().__init__(daemon=True)
        self.called, self.source, self.seconds, self.protocol, self.reconnect = name, source, seconds, protocol, reconnect
        self.stride, self.arrived, self.stopped = stride, arrived, threading.Event()
        self.recent: Deque[Tuple[float, np.ndarray]] = deque()
        self.gaps: Deque[float] = deque([0.0], GAPS)  # seconds between the last frames, by the source's own clock if that runs
        self.due, self.given, self.came = seconds, -1.0, 0.0
        self.clock: Optional[float] = None  # the source's own, at its last frame
        self.cut = self.ended = False
        self.failure: Optional[Exception] = None

    def has_news(self) -> bool:
        """Whether the newest frame is to be answered. One may come half a gap before its place: the next one would be further from it."""
        newest, early = self.recent[-1][0] if self.recent else -1.0, min(median(self.gaps), self.stride) / 2
        return newest > self.given and (self.ended or newest >= self.due - (early if self.given >= 0 else 0.0))

    def keep(self, moment: float, clock: float, image: np.ndarray) -> None:
        """Add the newest frame, and drop what is older than `seconds` or closer to the one before it than MOST_FRAMES allow."""
        recent = self.recent
        if self.clock is not None:
            self.gaps.append(clock - self.clock if clock > self.clock else moment - recent[-1][0])
        if len(recent) > 1 and recent[-1][0] - recent[-2][0] < self.seconds / MOST_FRAMES:
            recent.pop()
        recent.append((moment, image))
        while recent[0][0] < moment - self.seconds:
            recent.popleft()
        self.cut |= self.clock is not None and not 0 <= clock - self.clock <= LEAP
        self.clock, self.came = clock, time.monotonic()

    def take(self) -> Recent:
        """What is known now. Answers are due every `stride` seconds from the first on, however early or late one is taken."""
        self.given = self.recent[-1][0]
        passed = max(0, int((self.given - self.due) / self.stride))
        self.due += (passed + 1) * self.stride
        cut, self.cut = self.cut, False
        return Recent([frame for _, frame in self.recent], self.recent[0][0], self.given, self.came, 0 if cut else passed, cut)

    def run(self) -> None:
        """Read until the source ends; one that is lost is tried again for `reconnect` seconds."""
        began: Optional[float] = None
        limit: Optional[float] = None
        while True:
            failure: Optional[Exception] = None
            shift = 0.0 if began is None else -1.0
            try:
                for moment, clock, frame in capture(self.source):
                    if self.stopped.is_set():
                        return
                    began = time.monotonic() if began is None else began
                    if shift < 0:
                        shift, self.cut, self.clock = time.monotonic() - began, True, None
                        warn("%s: is back" % self.called)
                    limit, image = None, resized(frame, self.protocol)
                    with self.arrived:
                        self.keep(moment + shift, clock, image)
                        self.arrived.notify_all()
            except Exception as error:  # raised again in the caller's thread
                failure = error
            now = time.monotonic()
            if isinstance(failure, Lost) and limit is None and self.reconnect:
                warn("%s: %s; it is tried again for %g s" % (self.called, failure, self.reconnect))
                limit = now + self.reconnect
            if not isinstance(failure, Lost) or limit is None or now >= limit:
                break
            if self.stopped.wait(min(RETRY, limit - now)):
                return
        with self.arrived:
            self.ended, self.failure = True, failure
            self.arrived.notify_all()


def watched(
    sources: Sequence[Tuple[str, Any]], seconds: float, stride: float, protocol: Protocol, reconnect: float = 0.0
) -> Generator[Tuple[int, Union[Recent, Corrupt]], None, None]:
    """(number of the source, its newest `seconds`) of `sources`, once every `stride` seconds until all have ended. A source
    is what warnings call it, and its address or a camera's number; one that is Lost is tried again for `reconnect` seconds.

    Each is read in a thread of its own and never waits: frames that arrive while the caller computes push the oldest out, so an
    answer is never about the past. Frames are kept resized, MOST_FRAMES of a window, so memory is bounded; the newest alone for
    0 seconds. A source that ends gives its last frames, then the Corrupt that says why, unless it is a recording that is over.
    """
    arrived = threading.Condition()
    readers = [_Reader(name, source, seconds, stride, protocol, reconnect, arrived) for name, source in sources]
    for reader in readers:
        reader.start()
    left = list(readers)
    try:
        while left:
            with arrived:
                reader = arrived.wait_for(lambda: next((one for one in left if one.has_news() or one.ended), None))  # type: ignore
                left.remove(reader)
                found: Union[Recent, Exception, None] = reader.take() if reader.has_news() else reader.failure
            if isinstance(found, Recent):
                left.append(reader)  # behind the others
            elif reader.given < 0 and found is None:
                found = Corrupt("ended without a frame; is it the right camera or address?")
            if isinstance(found, (Recent, Corrupt)):
                yield readers.index(reader), found
            elif found is not None:
                raise found
    finally:
        for reader in readers:
            reader.stopped.set()
        for reader in readers:
            reader.join(2.0)

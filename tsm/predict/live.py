"""Cameras and network streams as they run: the newest seconds of each, whatever the time that computing takes."""

import contextlib
import errno
import os
import threading
import time
from collections import deque
from typing import Any, Deque, Dict, Generator, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import cv2
import numpy as np

from tsm.cli import Corrupt, first_line, warn
from tsm.protocol import Protocol
from tsm.video.clips import resized
from tsm.video.decode import as_rgb, av, is_text
from tsm.video.frames import check_size

PATIENCE = 15.0  # seconds without a frame before a source counts as dead
AGAIN = 1.0  # seconds from one attempt to reach a source to the next
MOST_FRAMES = 1000  # of a window; of more, as of 60 seconds of a fast camera, some are passed over
REASONS = {  # of PyAV's errors, those that FFmpeg words for programmers
    "HTTPUnauthorizedError": "it wants a user and a password, or others (401)", "HTTPForbiddenError": "it refuses access (403)",
    "HTTPNotFoundError": "it has no such path (404)", "ConnectionRefusedError": "nobody answers at that host and port",
    "ExitError": "it sends no frames", "TimeoutError": "it does not answer",
    "ProtocolNotFoundError": "FFmpeg knows no such kind of address", "InvalidDataError": "what it sends is no video",
}
HOPELESS = ("HTTPUnauthorizedError", "HTTPForbiddenError", "ProtocolNotFoundError")  # asking again would lock a user out


class Recent(NamedTuple):
    """The newest frames, RGB uint8 [height, width, 3] after the resize, and the time in seconds of the first and the last."""

    frames: List[np.ndarray]
    start: float
    end: float


class Lost(Corrupt):
    """A camera or stream that cannot be reached, or went away, and may come back."""


def capture(source: Union[int, str]) -> Iterator[Tuple[float, np.ndarray]]:
    """(seconds since the first frame, frame RGB uint8 [H, W, 3]) of a camera by its number, or an address, as it runs.

    What tells its length is a recording, and is held to its own speed. All else is live, and is taken as it comes. Raises
    Corrupt, and Lost where it may help to try again; a recording's end is none, and that of anything else is Lost.
    """
    if isinstance(source, str) and not is_text(source):
        raise Corrupt("is not UTF-8 text, which FFmpeg needs")
    if isinstance(source, str):
        scheme, rest = source.split("://", 1)
        source = scheme.lower() + "://" + rest  # FFmpeg knows no HTTP://
    return _by_opencv(source) if isinstance(source, int) or av is None else _by_av(source)


def _by_opencv(source: Union[int, str]) -> Iterator[Tuple[float, np.ndarray]]:
    """Cameras, and where there is no PyAV addresses, of which OpenCV does not tell why they cannot be opened or break off."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET; read when OpenCV first opens a video
    if hasattr(cv2.utils, "logging"):
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    opened = None
    with contextlib.suppress(cv2.error):
        opened = cv2.VideoCapture(source)
    if opened is None or not opened.isOpened():
        raise Lost("cannot be opened; check the address, or the camera's number and permissions")
    recorded = isinstance(source, str) and opened.get(cv2.CAP_PROP_FRAME_COUNT) > 0
    began: Optional[float] = None
    while True:
        read, frame = opened.read()
        if not read:
            opened.release()
            if recorded and began is not None:
                return
            raise Lost("sends no frames; is it the right camera or address?" if began is None else "sends no frames any more")
        now = time.monotonic()
        began = now if began is None else began
        due = opened.get(cv2.CAP_PROP_POS_MSEC) / 1000 if recorded else 0.0
        time.sleep(max(0.0, due - (now - began)))
        yield max(due, now - began), cv2.cvtColor(check_size(frame), cv2.COLOR_BGR2RGB)


def _by_av(address: str) -> Iterator[Tuple[float, np.ndarray]]:
    av.logging.set_libav_level(av.logging.PANIC)  # what FFmpeg says of a stream that plays does not matter
    asked, began = time.monotonic(), None  # type: float, Optional[float]
    moment = played = 0.0
    filters: Dict[Any, Any] = {}
    try:
        with av.open(address, timeout=PATIENCE, options={"rtsp_flags": "prefer_tcp"}) as container:
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
                yield moment, check_size(as_rgb(frame, filters))
            track = container.streams.video[0]
            whole = float(track.duration * track.time_base) if track.duration and track.time_base else length
            if length <= 0 and container.size <= 0:
                raise Lost("ended after %.1f s" % moment)
            if played + 1 < 0.9 * whole:
                raise Corrupt("broke off after %.1f of its %.1f s" % (played, whole))
    except av.error.FFmpegError as error:
        kind = type(error).__name__
        if began is None and time.monotonic() > asked + PATIENCE:  # FFmpeg calls the silence of RTSP something else
            kind = "ExitError"
        words = "the connection failed" if error.errno == errno.EIO else REASONS.get(kind) or first_line(error.strerror).lower()
        if kind in HOPELESS or began is None and kind == "InvalidDataError":
            raise Corrupt("cannot be opened: " + words)
        lasting = Lost if began is None or length <= 0 else Corrupt
        raise lasting("cannot be opened: " + words if began is None else "broke off after %.1f s: %s" % (moment, words))


def _frames(container: Any) -> Iterator[Any]:
    """The pictures of a stream, from the first whole one on."""
    if not container.streams.video:
        raise Corrupt("holds no video")
    stream, limit = container.streams.video[0], time.monotonic() + PATIENCE
    for packet in container.demux(stream):
        frames: List[Any] = []
        with contextlib.suppress(av.error.InvalidDataError):  # it was joined, or a packet was lost, between two whole pictures
            frames = packet.decode()
        if frames:
            limit = time.monotonic() + PATIENCE
        if time.monotonic() > limit:
            raise Lost("sends no frames")
        for frame in frames:
            yield frame


class _Source:
    """What is known of a camera or stream: its newest frames, when the next answer is due, when the last was, and its end."""

    def __init__(self, due: float) -> None:
        self.recent: Deque[Tuple[float, np.ndarray]] = deque()
        self.due, self.given = due, -1.0
        self.ended = False
        self.failure: Optional[Exception] = None

    def has_news(self) -> bool:
        return bool(self.recent) and self.recent[-1][0] > self.given and (self.ended or self.recent[-1][0] >= self.due)

    def keep(self, moment: float, image: np.ndarray, seconds: float) -> None:
        """Add the newest frame, and drop what is older than `seconds` or closer to the one before it than MOST_FRAMES allow."""
        recent = self.recent
        if len(recent) > 1 and recent[-1][0] - recent[-2][0] < seconds / MOST_FRAMES:
            recent.pop()
        recent.append((moment, image))
        while recent[0][0] < moment - seconds:
            recent.popleft()

    def take(self, stride: float) -> Recent:
        self.given = self.recent[-1][0]
        self.due = self.given + stride
        return Recent([frame for _, frame in self.recent], self.recent[0][0], self.given)


def watched(
    sources: Sequence[Tuple[str, Any]], seconds: float, stride: float, protocol: Protocol, reconnect: float = 0.0
) -> Generator[Tuple[int, Union[Recent, Corrupt]], None, None]:
    """(number of the source, its newest `seconds`) of cameras and addresses, each once every `stride` seconds until all have ended.

    Each is read in a thread of its own and never waits: frames that arrive while the caller computes push the oldest out, so an
    answer is never about the past. Frames are kept resized, MOST_FRAMES of a window, so memory is bounded. A source that ends
    gives its last frames, then the Corrupt that says why, unless it is a recording that is over.

    Args:
        sources: (what warnings call it, its address or a camera's number).
        reconnect: for how many seconds a source that is Lost is tried again.
    """
    arrived, stop = threading.Condition(), threading.Event()
    states = [_Source(seconds) for _ in sources]
    threads = [threading.Thread(target=_read, args=(name, source, state, seconds, protocol, reconnect, arrived, stop), daemon=True)
               for (name, source), state in zip(sources, states)]
    for thread in threads:
        thread.start()
    left = list(range(len(sources)))
    try:
        while left:
            with arrived:
                arrived.wait_for(lambda: any(states[number].has_news() or states[number].ended for number in left))
                number = next(number for number in left if states[number].has_news() or states[number].ended)
                left.remove(number)
                state = states[number]
                found: Union[Recent, Exception, None] = state.take(stride) if state.has_news() else state.failure
            if isinstance(found, Recent):
                left.append(number)  # behind the others
            elif state.given < 0 and found is None:
                found = Corrupt("ended without a frame; is it the right camera or address?")
            if isinstance(found, (Recent, Corrupt)):
                yield number, found
            elif found is not None:
                raise found
    finally:
        stop.set()
        for thread in threads:
            thread.join(2.0)


def _read(name: str, source: Union[int, str], state: _Source, seconds: float, protocol: Protocol, reconnect: float,
          arrived: threading.Condition, stop: threading.Event) -> None:
    """Read a source into its state until it ends; one that is lost is tried again for `reconnect` seconds."""
    began: Optional[float] = None
    limit: Optional[float] = None
    while True:
        failure: Optional[Exception] = None
        shift = 0.0 if began is None else -1.0
        try:
            for moment, frame in capture(source):
                if stop.is_set():
                    return
                began = time.monotonic() if began is None else began
                if shift < 0:
                    shift = time.monotonic() - began
                    warn("%s: is back" % name)
                limit = None
                image = resized(frame, protocol)
                with arrived:
                    state.keep(moment + shift, image, seconds)
                    arrived.notify_all()
        except Exception as error:  # raised again in the caller's thread
            failure = error
        now = time.monotonic()
        if isinstance(failure, Lost) and limit is None and reconnect:
            warn("%s: %s; it is tried again for %g s" % (name, failure, reconnect))
            limit = now + reconnect
        if not isinstance(failure, Lost) or limit is None or now >= limit:
            break
        if stop.wait(min(AGAIN, limit - now)):
            return
    with arrived:
        state.ended, state.failure = True, failure
        arrived.notify_all()

"""A camera or a network stream as it runs: the newest seconds of it, whatever the time that computing takes."""

import collections
import contextlib
import math
import os
import threading
import time
from typing import Callable, Deque, Iterator, List, NamedTuple, Optional, Tuple, Union

import cv2
import numpy as np

from tsm.cli import Corrupt
from tsm.protocol import Protocol
from tsm.video.clips import resized
from tsm.video.decode import is_text
from tsm.video.frames import check_size

PATIENCE = 15.0  # seconds without a frame before a source counts as dead
LEAP = 10.0  # seconds between two frames of a recording that are no pause any more but a leap of its timestamps
TRIAL = 1.0  # seconds
PUSHED = ("rtsp", "rtmp", "rtp:", "srtp:", "udp:", "srt:", "tcp:", "mms")  # addresses of what its sender keeps to its speed
MOST_FRAMES = 1000  # of a window; of more, as of 60 seconds of a fast camera, some are passed over


class Recent(NamedTuple):
    """The newest frames, RGB uint8 [height, width, 3] after the resize, and the time in seconds of the first and the last."""

    frames: List[np.ndarray]
    start: float
    end: float


def capture(source: Union[int, str]) -> Iterator[Tuple[float, np.ndarray]]:
    """(seconds since the first frame, frame RGB uint8 [H, W, 3]) of a camera or stream, as it runs.

    A recording, as it is behind an http address, comes faster than it plays, so it is held to its own speed; where its
    timestamps leap, by more than LEAP seconds or back, it goes on from there. A camera or a live stream is taken as it comes,
    whatever its timestamps. What tells no length is a recording if its first TRIAL seconds come in a quarter of that time.
    Raises Corrupt if the source cannot be opened.
    """
    opened = _opened(source)
    held: Optional[bool] = False  # None as long as it is not known
    if isinstance(source, str) and not source.lower().startswith(PUSHED):
        held = True if opened.get(cv2.CAP_PROP_FRAME_COUNT) > 0 else None
    began, moment = None, 0.0
    before, ahead = math.inf, 0.0  # the last frame's timestamp; how far timestamps are ahead of the time since the first frame
    while True:
        read, frame = opened.read()
        if not read:
            opened.release()
            return
        now = time.monotonic()
        began = now if began is None else began
        moment = max(moment, now - began)
        if held is not False:
            plays = opened.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if not 0 <= plays - before <= LEAP:
                ahead = plays - moment
            before, due = plays, plays - ahead
            if held is None and due >= TRIAL:
                held = now - began < TRIAL / 4
            if held and due > moment:
                time.sleep(due - (now - began))
            moment = moment if held is False else max(moment, due)
        yield moment, cv2.cvtColor(check_size(frame), cv2.COLOR_BGR2RGB)


def _opened(source: Union[int, str]) -> "cv2.VideoCapture":
    """A camera or stream, opened, whose libraries are silent from here on: what they say of one that plays does not matter.

    They are told so, for stderr is the whole process's: to keep it off the terminal as strict() does would also keep off what
    other threads say.
    """
    if isinstance(source, str):
        if not is_text(source):
            raise Corrupt("is not UTF-8 text, which OpenCV needs")
        scheme, rest = source.split("://", 1)
        source = scheme.lower() + "://" + rest  # FFmpeg knows no HTTP://
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET; read when OpenCV first opens a video
    if hasattr(cv2.utils, "logging"):
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    opened = None
    with contextlib.suppress(cv2.error):
        opened = cv2.VideoCapture(source)
    if opened is None or not opened.isOpened():
        raise Corrupt("cannot be opened; check " + (
            "the address" if isinstance(source, str) else "the camera's number and permissions"))
    return opened


def _keep(recent: Deque[Tuple[float, np.ndarray]], moment: float, image: np.ndarray, seconds: float) -> None:
    """Add the newest frame, and drop what is older than `seconds` or closer to the frame before it than MOST_FRAMES allow."""
    if len(recent) > 1 and recent[-1][0] - recent[-2][0] < seconds / MOST_FRAMES:
        recent.pop()
    recent.append((moment, image))
    while recent[0][0] < moment - seconds:
        recent.popleft()


@contextlib.contextmanager
def watching(source: Union[int, str], seconds: float, protocol: Protocol) -> Iterator[Callable[[float], Optional[Recent]]]:
    """Read a camera by its number, or an address, in a thread of its own, and keep no more than its newest `seconds`.

    Yields a function: wait until the source has run past a time, or ended, then give the newest frames; None once the source
    has ended and its last frame was given. Frames are kept resized, MOST_FRAMES of a window, so memory is bounded; frames that
    arrive while the caller computes push the oldest out, so an answer is never about the past.

    Raises: Corrupt if it cannot be opened, ends without a frame, sends nothing for PATIENCE seconds, or its frames are no
        pictures.
    """
    recent: Deque[Tuple[float, np.ndarray]] = collections.deque()
    arrived, stop = threading.Condition(), threading.Event()
    ended: List[Optional[Exception]] = []  # holds what ended the source once it has
    given = -1.0  # the time of the newest frame that the caller had

    def read() -> None:
        failure: Optional[Exception] = None
        try:
            for moment, frame in capture(source):
                if stop.is_set():
                    return
                image = resized(frame, protocol)
                with arrived:
                    _keep(recent, moment, image, seconds)
                    arrived.notify_all()
        except Exception as error:  # raised again in the caller's thread
            failure = error
        with arrived:
            ended.append(failure)
            arrived.notify_all()

    def newest(after: float) -> Optional[Recent]:
        nonlocal given
        limit = time.monotonic() + PATIENCE
        with arrived:
            while not ended and not (recent and given < recent[-1][0] >= after):
                seen = recent[-1][0] if recent else None
                arrived.wait(1.0)
                if recent and recent[-1][0] != seen:
                    limit = time.monotonic() + PATIENCE
                if time.monotonic() > limit:
                    raise Corrupt("sends no frames; is it the right camera or address?")
            if ended and ended[0] is not None:
                raise ended[0]
            if not recent:
                raise Corrupt("ended without a frame; is it the right camera or address?")
            if recent[-1][0] <= given:
                return None
            given = recent[-1][0]
            return Recent([frame for _, frame in recent], recent[0][0], given)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield newest
    finally:
        stop.set()
        thread.join(2.0)

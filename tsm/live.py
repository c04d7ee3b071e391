"""A camera or a network stream as it runs: the newest seconds of it, whatever the time that computing takes."""

import collections
import contextlib
import threading
import time
from typing import Callable, Deque, Iterator, List, NamedTuple, Optional, Tuple, Union

import cv2
import numpy as np

from tsm.cli import Corrupt, UserError
from tsm.clips import resized
from tsm.frames import check_size, is_text, strict
from tsm.protocol import Protocol

PATIENCE = 15.0  # seconds without a frame before a source counts as dead


class Recent(NamedTuple):
    """The newest frames, RGB uint8 [height, width, 3] after the resize, and the time in seconds of the first and the last."""

    frames: List[np.ndarray]
    start: float
    end: float


def capture(source: Union[int, str]) -> Iterator[Tuple[float, np.ndarray]]:
    """(seconds since the first frame, frame RGB uint8 [H, W, 3]) of a camera or stream, as it runs.

    A stream that comes faster than it plays, as a file behind an http address does, is held to its own speed. Raises
    UserError if the source cannot be opened.
    """
    what, opened = "camera %d" % source if isinstance(source, int) else source, None
    if isinstance(source, str):
        if not is_text(source):
            raise UserError("%s: is not UTF-8 text, which OpenCV needs" % source)
        scheme, rest = source.split("://", 1)
        source = scheme.lower() + "://" + rest  # FFmpeg knows no HTTP://
    with contextlib.suppress(Corrupt), strict():  # what OpenCV says of a camera that opens does not matter
        opened = cv2.VideoCapture(source)
    if opened is None or not opened.isOpened():
        raise UserError("%s: cannot be opened; check the camera's number and permissions, or the address" % what)
    began = time.monotonic()
    while True:
        read, frame = opened.read()
        if not read:
            opened.release()
            return
        moment = time.monotonic() - began
        plays = opened.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if isinstance(source, str) and plays > moment:
            time.sleep(min(plays - moment, 1.0))
            moment = plays
        yield moment, cv2.cvtColor(check_size(frame), cv2.COLOR_BGR2RGB)


@contextlib.contextmanager
def watching(source: Union[int, str], seconds: float, protocol: Protocol) -> Iterator[Callable[[float], Optional[Recent]]]:
    """Read a camera by its number, or an address, in a thread of its own, and keep no more than its newest `seconds`.

    Yields a function: wait until the source has run past a time, or ended, then give the newest frames; None once the source
    has ended and its last frame was given. Frames are kept resized, so memory is bounded by the window; frames that arrive
    while the caller computes push the oldest out, so an answer is never about the past.

    Raises: UserError if it cannot be opened, ends without a frame, or sends nothing for PATIENCE seconds; Corrupt if its
        frames are no pictures.
    """
    recent: Deque[Tuple[float, np.ndarray]] = collections.deque()
    arrived, stop = threading.Condition(), threading.Event()
    ended: List[Optional[Exception]] = []  # holds what ended the source once it has
    given = -1.0  # the time of the newest frame that the caller had

    def read() -> None:
        failure: Optional[Exception] = None
        try:
            for moment, frame in capture(source):
                image = resized(frame, protocol)
                with arrived:
                    recent.append((moment, image))
                    while recent[0][0] < moment - seconds:
                        recent.popleft()
                    arrived.notify_all()
                if stop.is_set():
                    return
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
                    raise UserError("%s: sends no frames; is it the right camera or address?" % source)
            if ended and ended[0] is not None:
                raise ended[0]
            if not recent:
                raise UserError("%s: ended without a frame; is it the right camera or address?" % source)
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

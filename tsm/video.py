"""Reading videos: how many frames there are, and some of them, without being told less than the truth by a decoder."""

import contextlib
import os
import re
import tempfile
from typing import Iterable, Iterator, List, Tuple

import cv2
import numpy as np

try:
    import decord
except ImportError:  # no wheel for this Python or machine: OpenCV reads videos too
    decord = None


class DecodeError(Exception):
    """A picture or video that cannot be decoded as it was recorded; the text is the reason."""


def decoder() -> str:
    """The video decoder in use, with its version."""
    return "decord %s" % decord.__version__ if decord else "opencv %s" % cv2.__version__


@contextlib.contextmanager
def decoder_complaints() -> Iterator[List[str]]:
    """Catch what decoders print on stderr; the lines that tell of damage are in the list when the block ends.

    libjpeg and FFmpeg fill in for damaged data and say so only there, so that is where it has to be looked for.
    """
    complaints = []  # type: List[str]
    saved = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield complaints
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            for line in caught.read().decode("utf-8", "replace").splitlines():
                if re.search("corrupt|error|invalid|premature|truncat|missing|damaged|concealing|extraneous", line, re.I):
                    complaints.append(re.sub(r"^\[[^\]]*\]\s*", "", line.strip())[:120])


def picture(path: str) -> np.ndarray:
    """A JPEG (or other) picture as BGR uint8 [H, W, 3]; DecodeError where it is missing or damaged."""
    try:
        raw = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DecodeError("%s: %s" % (os.path.basename(path), error.strerror or error))
    if raw[:2].tobytes() == b"\xff\xd8" and b"\xff\xd9" not in raw[-64:].tobytes():
        raise DecodeError("%s: cut short (no end-of-image marker)" % os.path.basename(path))
    try:
        image = cv2.imdecode(raw, cv2.IMREAD_COLOR) if raw.size else None
    except cv2.error as error:
        raise DecodeError("%s: %s" % (os.path.basename(path), str(error).split(")")[-1].strip() or "refused by OpenCV"))
    if image is None:
        raise DecodeError("%s: not a picture" % os.path.basename(path))
    return image


def count_frames(path: str) -> int:
    """How many frames a video has, at least 1; DecodeError where it cannot be opened."""
    if not os.path.isfile(path):
        raise DecodeError("no such file")
    if not os.path.getsize(path):
        raise DecodeError("empty file")
    if decord:
        return len(_open(path))
    video, frames = cv2.VideoCapture(path), 0
    while video.grab():  # containers do not always tell
        frames += 1
    if not frames:
        raise DecodeError("not a video that OpenCV can read")
    return frames


def _open(path: str) -> "decord.VideoReader":
    try:
        video = decord.VideoReader(path, num_threads=1)
    except Exception as error:  # decord raises its own and others
        raise DecodeError("not a video that decord can read (%s)" % (str(error).splitlines() or ["?"])[-1][:80])
    if not len(video):
        raise DecodeError("no frames in it")
    return video


def frames_of(path: str, wanted: Iterable[int]) -> Iterator[Tuple[int, np.ndarray]]:
    """(index, RGB uint8 [H, W, 3]) of the frames of a video, each once, ascending; DecodeError where one is damaged."""
    left = sorted(set(wanted))
    if decord:
        video = _open(path)
        if left[-1] >= len(video):
            raise DecodeError("has %d frames, frame %d was asked for" % (len(video), left[-1]))
        try:
            frames = video.get_batch(left).asnumpy()
        except Exception as error:
            raise DecodeError("a frame cannot be decoded (%s)" % (str(error).splitlines() or ["?"])[-1][:80])
        yield from zip(left, frames)
        return
    video, position = cv2.VideoCapture(path), 0
    for index in left:
        while position < index and video.grab():
            position += 1
        good, frame = video.read()
        if not good or position != index:
            raise DecodeError("frame %d cannot be decoded" % index)
        position += 1
        yield index, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


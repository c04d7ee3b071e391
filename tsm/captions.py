"""Captions drawn into a copy of a video."""

import contextlib
import os
import zlib
from typing import Iterator, NamedTuple, Optional, Sequence

import cv2
import numpy as np

from tsm.cli import Corrupt, UserError
from tsm.frames import count_frames, frame_rate, is_text, read_video, reencode, strict

_OURS = b"\0\0\0\x29free" + b"labels drawn in by TSM_predict.py"  # an MP4 box that players skip; it ends each output


class Caption(NamedTuple):
    """A text over a video, from `start` to `end` in seconds; to its end where that is None."""

    start: float
    end: Optional[float]
    text: str


def write_captions(path: str, output: str, captions: Sequence[Caption]) -> None:
    """Copy a video to `output` (.mp4) with captions drawn in, frame by frame; whole or not at all.

    OpenCV draws ASCII alone, so other letters become question marks; sound is not copied. Raises Corrupt, or UserError or
    OSError where `output` cannot be written.
    """
    folder, name = os.path.split(output)
    part = os.path.join(folder, ".%08x.part.mp4" % zlib.crc32(os.fsencode(name)))  # no longer than a name may be
    writer, count = None, 0
    try:
        with strict(reencode(path)):
            rate = frame_rate(path)
            for index, frame in read_video(path, range):
                text = next((c.text for c in captions if c.start <= index / rate and (c.end is None or index / rate < c.end)), "")
                image = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
                _draw(image, text.encode("ascii", "replace").decode())
                with _writing(output):
                    writer = writer or _open_writer(part, rate, image)
                    writer.write(image)
                count = index + 1
        with _writing(output):
            if writer is not None:
                writer.release()
            if count_frames(part) != count:  # OpenCV does not tell that a disk is full
                raise Corrupt("not all of it was written")
        with open(part, "ab") as file:
            file.write(_OURS)
        os.replace(part, output)
    except OSError as error:
        error.filename = output
        raise
    finally:
        with contextlib.suppress(Corrupt), strict():
            if writer is not None:
                writer.release()
        with contextlib.suppress(OSError):
            os.remove(part)


def has_captions(path: str) -> bool:
    """Whether write_captions() made the file at `path`."""
    if not os.path.isfile(path) or os.path.getsize(path) < len(_OURS):
        return False
    with open(path, "rb") as file:
        file.seek(-len(_OURS), os.SEEK_END)
        return file.read() == _OURS


@contextlib.contextmanager
def _writing(output: str) -> Iterator[None]:
    """strict(), for what is said of the file that is written: UserError that names it."""
    try:
        with strict():
            yield
    except Corrupt:
        raise UserError("%s: cannot be written whole; is the folder writable, and the disk not full?" % output)


def _open_writer(part: str, rate: float, image: np.ndarray) -> "cv2.VideoWriter":
    if not is_text(part):
        raise Corrupt("OpenCV takes UTF-8 alone")
    rate = round(rate, 2 if rate < 600 else 1)  # MPEG-4 counts time in units of at least 1/65535 s
    writer = cv2.VideoWriter(part, cv2.VideoWriter.fourcc(*"mp4v"), rate, (image.shape[1], image.shape[0]))
    if not writer.isOpened():
        raise Corrupt("cannot be opened")
    return writer


def _draw(image: np.ndarray, text: str) -> None:
    """Write a line of text at the top of an image, as large as fits its width."""
    font, width = cv2.FONT_HERSHEY_SIMPLEX, image.shape[1]
    scale = max(0.3, min(0.9, 0.95 * width / max(1, cv2.getTextSize(text, font, 1.0, 1)[0][0])))
    (_, height), below = cv2.getTextSize(text, font, scale, 1)
    cv2.rectangle(image, (0, 0), (width, height + 2 * below), (0, 0, 0), -1)
    cv2.putText(image, text, (4, height + below // 2 + 2), font, scale, (255, 255, 255), 1, cv2.LINE_AA)

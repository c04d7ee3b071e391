"""Captions drawn into a copy of a video."""

import contextlib
import os
import zlib
from typing import Iterator, NamedTuple, Optional, Sequence

import cv2
import numpy as np

from tsm.cli import Corrupt, UserError
from tsm.video.decode import Timeline, as_file, count_frames, is_text, read_video, reencode, timeline
from tsm.video.frames import strict

_OURS = b"\0\0\0\x29free" + b"labels drawn in by TSM_predict.py"  # an MP4 box that players skip; it ends each output
ANY_RATE = 25.0  # frames per second at first of a copy that is given other times; it counts them in 1/12800 s


class Caption(NamedTuple):
    """A text over a video, from `start` to `end` in seconds; to its end where that is None."""

    start: float
    end: Optional[float]
    text: str


def write_captions(path: str, output: str, captions: Sequence[Caption]) -> None:
    """Copy a video to `output` (.mp4) with captions drawn in, frame by frame; whole or not at all.

    Each frame is shown for as long as in the original, also at a variable rate. OpenCV draws ASCII alone, so other letters
    become question marks; sound is not copied. Raises Corrupt, or UserError or OSError where `output` cannot be written.
    """
    folder, name = os.path.split(output)
    part = os.path.join(folder, ".%08x.part.mp4" % zlib.crc32(os.fsencode(name)))  # no longer than a name may be
    writer, count = None, 0
    try:
        with strict(reencode(path)):
            times = timeline(path)
            for index, frame in read_video(path, range):
                shown = times.start(index)
                text = next((c.text for c in captions if c.start <= shown and (c.end is None or shown < c.end)), "")
                image = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
                _draw(image, text.encode("ascii", "replace").decode())
                with _writing(output):
                    writer = writer or _open_writer(part, times, image)
                    writer.write(image)
                count = index + 1
        with _writing(output):
            if writer is not None:
                writer.release()
            if count_frames(part) != count:  # OpenCV does not tell that a disk is full
                raise Corrupt("not all of it was written")
            if times.starts is not None:
                retime(part, times.starts)
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
    """Whether write_captions() made the file at `path`; not, as far as one can tell, if it cannot be read."""
    if not os.path.isfile(path) or os.path.getsize(path) < len(_OURS):
        return False
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(-len(_OURS), os.SEEK_END)
        return file.read() == _OURS
    return False


@contextlib.contextmanager
def _writing(output: str) -> Iterator[None]:
    """strict(), for what is said of the file that is written: UserError that names it."""
    try:
        with strict():
            yield
    except Corrupt:
        raise UserError("%s: cannot be written whole; is the folder writable, and the disk not full?" % output)


def _open_writer(part: str, times: Timeline, image: np.ndarray) -> "cv2.VideoWriter":
    rate = times.rate if times.starts is None else ANY_RATE
    if not is_text(part):
        raise Corrupt("OpenCV takes UTF-8 alone")
    rate = round(rate, 2 if rate < 600 else 1)  # MPEG-4 counts time in units of at least 1/65535 s
    writer = cv2.VideoWriter(as_file(part), cv2.VideoWriter.fourcc(*"mp4v"), rate, (image.shape[1], image.shape[0]))
    if not writer.isOpened():
        raise Corrupt("cannot be opened")
    return writer


def retime(path: str, starts: np.ndarray) -> None:
    """Have an MP4 file of OpenCV's show its frames at these times: seconds [frames + 1], 0 first, the last one's end last.

    OpenCV writes at a constant rate alone. Its index (`moov`, ISO/IEC 14496-12) is at the end of the file, so it is made anew
    without touching the frames: the durations in `stts`, and their sum wherever it stands. Raises Corrupt if it is otherwise.
    """
    with open(path, "r+b") as file:
        place, name, size, total = 0, b"", 0, os.path.getsize(path)
        while name != b"moov":
            place += size
            file.seek(place)
            size, name = int.from_bytes(file.read(4), "big"), file.read(4)
            if size < 8 or place + size > total:  # a size of 1 is followed by the true one
                size = int.from_bytes(file.read(8), "big") if size == 1 else 0
            if not size:
                raise Corrupt("its index is not found")
        file.seek(place)
        index = file.read(size)
        if place + size != total:
            raise Corrupt("its index is not at its end")
        file.seek(place)
        file.write(_retimed(index, starts))


def _retimed(boxes: bytes, starts: np.ndarray) -> bytes:
    """MP4 boxes, each its size, its name and its content, with the times of retime()."""
    scales = [int.from_bytes(boxes[boxes.index(name) + 16 :][:4], "big") for name in (b"mvhd", b"mdhd")]
    durations = np.maximum(1, np.diff(np.round(starts * scales[1]).astype(np.int64)))
    media = int(durations.sum())
    movie = media * scales[0] // scales[1]
    if media >= 1 << 32:
        raise Corrupt("it is too long")
    runs = np.flatnonzero(np.diff(durations, prepend=-1))  # where another duration begins
    table = np.stack([np.diff(np.append(runs, len(durations))), durations[runs]], 1).astype(">u4").tobytes()
    whole = {b"mvhd": (16, movie), b"tkhd": (20, movie), b"elst": (8, movie), b"mdhd": (16, media)}  # in boxes of version 0

    def rewritten(data: bytes) -> bytes:
        done, place = b"", 0
        while place < len(data):
            size, name = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
            content = data[place + 8 : place + size]
            if name in (b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl"):
                content = rewritten(content)
            elif name in whole:
                offset, ticks = whole[name]
                content = content[:offset] + ticks.to_bytes(4, "big") + content[offset + 4 :]
            elif name == b"stts":
                content = bytes(4) + len(runs).to_bytes(4, "big") + table
            done += (8 + len(content)).to_bytes(4, "big") + name + content
            place += size
        return done

    return rewritten(boxes)


def _draw(image: np.ndarray, text: str) -> None:
    """Write a line of text at the top of an image, as large as fits its width."""
    font, width = cv2.FONT_HERSHEY_SIMPLEX, image.shape[1]
    scale = max(0.3, min(0.9, 0.95 * width / max(1, cv2.getTextSize(text, font, 1.0, 1)[0][0])))
    (_, height), below = cv2.getTextSize(text, font, scale, 1)
    cv2.rectangle(image, (0, 0), (width, height + 2 * below), (0, 0, 0), -1)
    cv2.putText(image, text, (4, height + below // 2 + 2), font, scale, (255, 255, 255), 1, cv2.LINE_AA)

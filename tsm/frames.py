"""Frames of clips, strictly: whatever a decoder would pass over or make up is an error.

Decoders go on where they can: a JPEG that is cut short ends in grey, a video in fewer frames. What they say about it, if
anything, goes to stderr. So everything written there while a clip is decoded counts as the clip being corrupt.
"""

import contextlib
import os
import re
from typing import Callable, Iterator, List, NoReturn, Sequence, Tuple

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 26))  # read when cv2 is imported; bounds what a header claims

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from tsm.cli import Corrupt  # noqa: E402

try:
    import decord  # decord2 on current Pythons
except (ImportError, OSError):
    decord = None

VIDEO_DECODER = "OpenCV " + cv2.__version__ if decord is None else "decord " + decord.__version__
MAX_ASPECT = 16  # long side / short side
_DECODER_ERRORS = (cv2.error, RuntimeError, IndexError) + (() if decord is None else (decord.DECORDError,))
Frame = Tuple[int, np.ndarray]


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Within the block fd 2 is kept off the terminal, and a decoder's exception or word on it raises Corrupt."""
    read_end, write_end = os.pipe()
    saved = os.dup(2)
    try:
        for end in (read_end, write_end):  # a chatty decoder must not wait for a reader: what does not fit is dropped
            os.set_blocking(end, False)
        os.dup2(write_end, 2)
        yield
        with contextlib.suppress(BlockingIOError):
            _refuse(os.read(read_end, 4096).decode("utf-8", "replace"))
    except _DECODER_ERRORS as error:
        _refuse(str(error))
    finally:
        os.dup2(saved, 2)
        for end in (read_end, write_end, saved):
            os.close(end)


def _refuse(said: str) -> NoReturn:
    """Raise Corrupt with the first line that a decoder said, less what differs from run to run."""
    line = said.strip().split("\n")[0]
    line = re.sub(r"\[\d\d:\d\d:\d\d\] \S+: |\[\S+ @ 0x[0-9a-f]+\]|\[ *\w+:\d+@[\d.]+\]", "", line)
    raise Corrupt("the decoder says: " + " ".join(line.split())[:200])


def check_folder_of_frames(folder: str, count: int) -> None:
    """Raises Corrupt unless img_00001.jpg, …, img_<count>.jpg are the frames in `folder`, with none missing or over."""
    try:
        there = {name for name in os.listdir(folder) if name.startswith("img_")}
    except OSError as error:
        raise Corrupt((error.strerror or str(error)).lower())
    wanted = {"img_%05d.jpg" % number for number in range(1, count + 1)}
    if "img_00000.jpg" in there:
        raise Corrupt("its frames are numbered from 0; they must begin with img_00001.jpg")
    for names, what in ((wanted - there, "is missing"), (there - wanted, "is one more than the list says")):
        if names:
            raise Corrupt("%s %s (the list says %d frames)" % (min(names), what, count))


def read_jpegs(folder: str, indices: Sequence[int]) -> Iterator[Frame]:
    """(index, frame BGR uint8 [H, W, 3]) of a folder of frames; index 0 is img_00001.jpg. For use in strict()."""
    shape = None
    for index in indices:
        name = "img_%05d.jpg" % (index + 1)
        try:
            with open(os.path.join(folder, name), "rb") as file:
                data = file.read()
        except OSError as error:
            raise Corrupt("%s: %s" % (name, (error.strerror or str(error)).lower()))
        if not data:
            raise Corrupt("%s: is empty" % name)
        if not data.rstrip(b"\0").endswith(b"\xff\xd9"):  # OpenCV 4 fills what is missing with grey and says nothing
            raise Corrupt("%s: is no JPEG or is cut short (no end marker)" % name)
        try:
            frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:  # a size beyond the bound; by version, an exception or None
            frame = None
        if frame is None:
            raise Corrupt("%s: cannot be decoded" % name)
        shape = shape or frame.shape
        if frame.shape != shape:
            raise Corrupt("%s: is %dx%d in a clip of %dx%d" % (name, frame.shape[1], frame.shape[0], shape[1], shape[0]))
        yield index, check_size(frame)


def read_video(path: str, choose: Callable[[int], Sequence[int]]) -> Iterator[Frame]:
    """(index, frame RGB uint8 [H, W, 3]) of the frames choose(number of frames), ascending. For use in strict()."""
    if not os.path.isfile(path):
        raise Corrupt("is no file")
    if not os.path.getsize(path):
        raise Corrupt("is empty")
    if not path.isprintable():  # neither decoder takes bytes for a name; OpenCV crashes on some
        raise Corrupt("its name is not UTF-8 text, which video decoders need; rename it")
    return (_read_by_opencv if decord is None else _read_by_decord)(path, choose)


def count_frames(path: str) -> int:
    """Number of frames in a video. For use in strict()."""
    counts = []  # type: List[int]

    def choose(count: int) -> Sequence[int]:
        counts.append(count)
        return []

    for _ in read_video(path, choose):
        pass
    return counts[-1]


def _read_by_decord(path: str, choose: Callable[[int], Sequence[int]]) -> Iterator[Frame]:
    decord.logging.set_level(decord.logging.ERROR)  # by default FFmpeg's errors are not even printed
    try:
        reader = decord.VideoReader(path, num_threads=1)
    except _DECODER_ERRORS:
        raise Corrupt("cannot be opened as a video")
    if not len(reader):
        raise Corrupt("has no frames")
    for index in choose(len(reader)):
        yield index, check_size(reader[index].asnumpy())


def _read_by_opencv(path: str, choose: Callable[[int], Sequence[int]]) -> Iterator[Frame]:
    capture = cv2.VideoCapture(path)
    count = 0  # counted, not asked for: the container's own figure is an estimate
    while capture.grab():
        count += 1
    if not count:
        raise Corrupt("has no frames that can be decoded")
    capture, place = cv2.VideoCapture(path), -1
    for index in choose(count):
        while place < index:  # no seeking: it is not exact in OpenCV
            capture.grab()
            place += 1
        read, frame = capture.retrieve()
        if not read:
            raise Corrupt("frame %d cannot be decoded" % index)
        yield index, check_size(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))


def check_size(frame: np.ndarray) -> np.ndarray:
    """The frame; raises Corrupt where it is so thin that its resized form would be enormous."""
    sides = sorted(frame.shape[:2])
    if sides[1] > MAX_ASPECT * sides[0]:
        raise Corrupt("a frame of %dx%d pixels is no picture" % (frame.shape[1], frame.shape[0]))
    return frame

"""Videos: their frames in order, and when each is shown.

Frames are decoded from the first on and counted. Seeking would save little and is wrong after a key frame that earlier frames
depend on (open GOPs): decoders then drop or make up frames, some without a word.

PyAV reads one frame after the other as its consumer takes them, so memory is bounded whatever the length of the file and the
speed of the consumer; where PyAV is missing OpenCV does. A short clip is decord's, as mmaction2's clips are: it decodes ahead and
keeps all that is not yet taken. The frames of PyAV and of decord are equal, byte by byte (test_videos.py).
"""

import contextlib
import math
import os
import shlex
import shutil
from array import array
from fractions import Fraction
from functools import partial
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np

from tsm.cli import Corrupt
from tsm.files import part_name
from tsm.video.frames import IMG, Frame, check_size, is_picture, strict

try:
    import av
    import av.filter

    if int(av.__version__.split(".")[0]) < 15:  # older ones lack some of what is called here
        raise ImportError
except (ImportError, OSError):
    av = None  # type: ignore[assignment]
try:
    import decord  # decord2 on current Pythons
except (ImportError, OSError):
    decord = None

IN_TURN = "OpenCV " + cv2.__version__ if av is None else "PyAV " + av.__version__  # what reads long videos
VIDEO_DECODER = IN_TURN if decord is None else "decord %s, %s" % (decord.__version__, IN_TURN)
VIDEO_SUFFIXES = (".webm", ".mp4", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".asf", ".3gp",
                  ".flv", ".gif", ".vob", ".ogv")  # the dataset's own first
JPEG_QUALITY = 95  # of the frames that extract() makes
SHORT_FILE, SHORT_CLIP = 1 << 26, 1 << 28  # bytes of a file, and of its decoded frames, up to which a clip is short
_SAMPLED = (b"\x1aE\xdf\xa3", b"ftyp", b"RIFF")  # Matroska, MP4, AVI: what data sets come in
_KEPT_APART = ("mov", "matroska", "avi", "asf", "flv", "ogg", "gif")  # FFmpeg's formats where a packet is a frame
_FAILURES = (AssertionError,) + (() if av is None else (av.error.FFmpegError,)) + (() if decord is None else (decord.DECORDError,))
Picture = Callable[[], np.ndarray]  # gives the frame, RGB uint8 [H, W, 3]; to be called before the next one is taken


def reencode(path: str) -> str:
    """The remedy for a video that plays elsewhere and cannot be read here: a command that writes it in a plain form."""
    return "; if it plays elsewhere, re-encode it: ffmpeg -i %s -an -c:v libx264 -crf 10 NEW.mp4" % shlex.quote(as_file(path))


def as_file(path: str) -> str:
    """The path as FFmpeg takes it for a file's: `a:b.mp4` by itself is an address of the protocol `a`."""
    return os.path.join(".", path) if ":" in path else path


def read_video(path: str, choose: Callable[[int], Sequence[int]], by_opencv: bool = False) -> Iterator[Frame]:
    """(index, frame RGB uint8 [H, W, 3]) of the frames choose(number of frames), ascending. For use in strict()."""
    name = _checked(path)
    short = None if by_opencv else _short(name)
    count, pictures = short or (len(stamps_of(name, by_opencv).moments) - 1, _pictures(name, by_opencv))
    yield from _chosen(pictures, choose(count), count)


def read_in_turn(path: str, indices: Sequence[int], count: int) -> Iterator[Frame]:
    """As read_video(), however long it is, the frames `indices` of a video that has `count`, as its timeline() tells."""
    return _chosen(_pictures(_checked(path)), indices, count)


def count_frames(path: str) -> int:
    """Number of frames in a video, each of which was decoded. For use in strict()."""
    [(last, _)] = read_video(path, lambda count: [count - 1])
    return last + 1


def _checked(path: str) -> str:
    """The path as decoders take it; raises Corrupt where there is no video for them to read that could be whole."""
    if not os.path.isfile(path):
        raise Corrupt("is no file")
    size, suffix = os.path.getsize(path), os.path.splitext(path)[1].lower()
    if not size:
        raise Corrupt("is empty")
    try:
        name = as_file(os.fsencode(path).decode("utf-8"))  # whatever the locale, decoders take UTF-8
    except UnicodeDecodeError:
        raise Corrupt("its name is not UTF-8 text, which video decoders need; rename it")
    with open(path, "rb") as file:
        head = file.read(12)
    wanted = int.from_bytes(head[4:8], "little") + 8
    if head[:4] + head[8:] == b"RIFFAVI " and size < wanted < 1 << 32:  # its writer set it last of all
        raise Corrupt("is cut short: it has %d of its %d bytes" % (size, wanted))
    if head[:4] != b"GIF8" and suffix not in (".mjpg", ".mjpeg") and (is_picture(path) or cv2.haveImageReader(name)):
        raise Corrupt("is a picture, not a video; give the folder that its frames are in")
    return name


def _chosen(pictures: Iterator[Picture], indices: Sequence[int], count: int) -> Iterator[Frame]:
    """The frames at the ascending `indices`; Corrupt unless `count` play, which shows that none was dropped before."""
    wanted, played = set(indices), 0
    for index, picture in enumerate(pictures):
        if index in wanted:
            yield index, check_size(picture())
        played = index + 1
    check_played(played, count)


def check_played(played: int, count: int) -> None:
    """Corrupt unless as many frames play as there are."""
    if played != count:
        raise Corrupt("only %d of its %d frames play" % (played, count) if played < count else "more than its %d frames play" % count)


def _short(name: str) -> Optional[Tuple[int, Iterator[Picture]]]:
    """(number of frames, the frames by decord) of a short clip; None of what is long, odd, or not to be opened by decord."""
    with open(name.encode(), "rb") as file:
        head = file.read(8)
    if decord is None or os.path.getsize(name.encode()) > SHORT_FILE or not (head.startswith(_SAMPLED) or head.endswith(_SAMPLED)):
        return None
    decord.logging.set_level(decord.logging.ERROR)  # by default FFmpeg's errors are not even printed
    with contextlib.suppress(Corrupt), strict(), _failing():
        reader = decord.VideoReader(name, num_threads=1, fault_tol=1e-9)  # not one frame may be repeated for want of another
        count, first = len(reader), reader.next()
        plain = av is None or len(stamps_of(name).moments) - 1 == count  # no edit list cuts any
        if plain and count * int(np.prod(first.shape)) <= SHORT_CLIP:
            return count, _pictures_by_decord(reader, first)
    return None


def _pictures_by_decord(reader: "decord.VideoReader", frame: Any) -> Iterator[Picture]:
    with _failing(), contextlib.suppress(StopIteration, decord.DECORDLimitReachedError):
        while True:
            yield partial(_unpadded, frame)
            frame = reader.next()


def _unpadded(frame: Any) -> np.ndarray:
    pixels = frame.asnumpy()
    height, width = pixels.shape[:2]  # of a tiny frame decord takes the rows' padding for channels
    return pixels.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    """What decord and PyAV raise within is a RuntimeError, as strict() takes it."""
    try:
        yield
    except _FAILURES as error:
        raise MemoryError if isinstance(error, MemoryError) else RuntimeError(str(error))


def _pictures(name: str, by_opencv: bool = False) -> Iterator[Picture]:
    return _pictures_by_opencv(name) if by_opencv or av is None else _pictures_by_av(name)


@contextlib.contextmanager
def opened_video(name: str) -> Iterator[Tuple[Any, Any]]:
    """(container, its picture track) of a video file, by PyAV, whose complaints go to stderr and are RuntimeErrors. For strict()."""
    av.logging.restore_default_callback()
    av.logging.set_libav_level(av.logging.ERROR)
    try:
        container = av.open(name, metadata_errors="ignore")
    except av.error.FFmpegError as error:
        raise MemoryError if isinstance(error, MemoryError) else Corrupt("cannot be opened as a video" + reencode(name))
    with _failing(), container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & stream.disposition.attached_pic or container.format.name == "tty":
            raise Corrupt("holds no video")
        stream.codec_context.thread_count = 1  # processes are the parallelism
        yield container, stream


def _pictures_by_av(name: str) -> Iterator[Picture]:
    filters: Dict[Any, Any] = {}
    with opened_video(name) as (container, stream):
        for frame in container.decode(stream):
            yield partial(as_rgb, frame, filters)


def as_rgb(frame: "av.VideoFrame", filters: Dict[Any, Any]) -> np.ndarray:
    """RGB uint8 [H, W, 3] of PyAV's frame as a player shows it, by FFmpeg's filters, as decord has it; they are kept in `filters`."""
    kind = frame.width, frame.height, frame.format.name
    if kind not in filters:
        graph = filters[kind] = av.filter.Graph()
        source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000))
        graph.link_nodes(source, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
    filters[kind].push(frame)
    return np.ascontiguousarray(np.rot90(filters[kind].pull().to_ndarray(), frame.rotation // 90))


def _pictures_by_opencv(name: str) -> Iterator[Picture]:
    capture = cv2.VideoCapture(name)
    while capture.grab():
        yield lambda: cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)  # of a frame that is not decoded, cv2.error


class Stamps(NamedTuple):
    """What a file says of its frames."""

    rate: float  # on average, per second
    usual: float  # seconds that a frame is shown as a rule; 0 where the file does not say of each when it starts
    moments: np.ndarray  # float64 [frames + 1]: when each starts and the last one ends, in its own seconds, else counted


def stamps_of(path: str, by_opencv: bool = False) -> Stamps:
    """By a video's packets, where each is a frame, or else, as OpenCV must, by decoding it; at least one frame. For strict()."""
    rate, starts, end = (_starts_by_opencv if by_opencv or av is None else _starts_by_av)(_checked(path))
    if not len(starts):
        raise Corrupt("has no frames")
    gaps = np.diff(starts)
    if np.isnan(starts).any() or (gaps <= 0).any():
        return Stamps(rate, 0.0, np.arange(len(starts) + 1) / (rate or 25.0))
    last, usual = float(starts[-1]), float(np.median(gaps)) if len(gaps) else end - float(starts[0])
    assumed = usual if len(gaps) else 1 / (rate or 25.0)
    return Stamps(rate, usual, np.append(starts, end if end > last else last + assumed))


def _starts_by_opencv(name: str) -> Tuple[float, np.ndarray, float]:
    """(the rate, when each frame starts or NaN where that is not said, when the last one ends), in seconds."""
    capture, moments = cv2.VideoCapture(name), array("d")
    while capture.grab():
        moments.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    return capture.get(cv2.CAP_PROP_FPS), np.array(moments), 0.0


def _starts_by_av(name: str) -> Tuple[float, np.ndarray, float]:
    shown, ends = array("d"), 0.0
    with opened_video(name) as (container, stream):
        kind, unit = container.format.name.split(",")[0], float(stream.time_base)
        apart = kind in _KEPT_APART
        for one in container.demux(stream) if apart else container.decode(stream):
            if apart and (one.size == 0 or one.is_discard):  # the end; what an edit list cuts
                continue
            moment = one.dts if kind == "avi" else one.pts  # an AVI file has a place for each frame, and FFmpeg guesses the rest
            shown.append(math.nan if moment is None else moment * unit)
            ends = max(ends, shown[-1] + (one.duration or 0) * unit)
        if kind == "avi":  # it says how long each frame is in units that may be far shorter
            ends = max(ends, (stream.duration or 0) * unit)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
    return rate, np.sort(shown) if apart else np.array(shown), ends


class Timeline(NamedTuple):
    """When the frames of a video are shown, in seconds from the first one's start.

    `rate`: the usual one in frames per second, 0 where the file does not tell. `starts`, float64 [frames + 1]: when each frame is
    shown, and when the last one ends.
    """

    rate: float
    starts: np.ndarray

    @property
    def frames(self) -> int:
        return len(self.starts) - 1

    def shown(self, start: float, end: float) -> Tuple[int, int]:
        """(the first frame that is shown from `start` to `end`, the one after the last); at least one frame.

        To the nearest: what half a usual frame shows of a frame at either end does not count.
        """
        first = self.at(start + 0.5 / self.rate)
        return first, max(first + 1, int(np.searchsorted(self.starts[:-1], end - 0.5 / self.rate)))

    def at(self, moment: float) -> int:
        """The frame that is shown at a moment; the first or the last one before and after all."""
        return max(0, int(np.searchsorted(self.starts[:-1], moment, "right")) - 1)


def timeline(path: str) -> Timeline:
    """The times of a video's frames, by its container's timestamps. For use in strict().

    Frames that are all within half a frame of a constant rate are taken to be of that rate, as are those of a file without
    timestamps, such as a raw stream's.
    """
    stamps = stamps_of(path)
    moments, usual = stamps.moments, 1 / stamps.usual if stamps.usual > 0 else 0.0
    for rate in (stamps.rate, usual):
        if 0 < rate < 1000 and not _leaves(rate, moments):
            return Timeline(rate, np.arange(len(moments)) / rate)
    return Timeline(usual, moments - moments[0])


def _leaves(rate: float, moments: np.ndarray) -> bool:
    """Whether frames that start, and end, at these times leave a constant rate: by half a frame, or the last one by a whole."""
    places = (moments - moments[0]) * rate - np.arange(len(moments))
    return bool(np.abs(places[:-1]).max() > 0.5 or places[-1] > 1)


def extract(path: str, folder: str) -> int:
    """Extract a video's frames into `folder`, atomically, as JPEGs named as IMG says; returns their number.

    A folder that is newer than the video and holds as many files is kept. Raises Corrupt.
    """
    if os.path.isdir(folder) and os.path.getmtime(folder) >= os.path.getmtime(path):
        with strict(reencode(path)):
            count = count_frames(path)
        if len(os.listdir(folder)) == count:
            return count
    part, count = part_name(folder), 0
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    try:
        with strict(reencode(path)):
            for index, frame in read_video(path, range):
                bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
                _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
                with open(os.path.join(part, IMG.name(index)), "wb") as file:  # imwrite hides a full disk
                    file.write(jpeg.tobytes())
                count = index + 1
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return count

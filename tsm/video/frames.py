"""Frames of clips, strictly: whatever a decoder would pass over or make up is an error.

Decoders go on where they can: a JPEG that is cut short ends in grey, a video in fewer frames. What they say about it, if
anything, goes to stderr. So everything written there while a clip is decoded counts as the clip being corrupt.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import zlib
from typing import Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np

from tsm.cli import Corrupt, non_negative
from tsm.files import natural, part_name
from tsm.protocol import frame_template

try:
    import decord  # decord2 on current Pythons
except (ImportError, OSError):
    decord = None
try:
    import simplejpeg  # the same libjpeg-turbo as in OpenCV, without the copies around it
except (ImportError, OSError):
    simplejpeg = None

VIDEO_DECODER = "OpenCV " + cv2.__version__ if decord is None else "decord " + decord.__version__
JPEG_DECODER = "OpenCV " + cv2.__version__ if simplejpeg is None else "simplejpeg " + simplejpeg.__version__
JPEG_QUALITY = 95  # of the frames that extract() makes
MAX_ASPECT = 16  # long side / short side
VIDEO_SUFFIXES = (".webm", ".mp4", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".asf", ".3gp",
                  ".flv", ".gif", ".vob", ".ogv")  # the dataset's own first
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_MAX_PIXELS = int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"])
_DECODER_ERRORS = (cv2.error, RuntimeError, IndexError) + (
    () if decord is None else (decord.DECORDError, decord.DECORDLimitReachedError))
_UNKNOWN = -1e6  # seconds; decord's -1e14 and below say that it does not know when a frame starts
_PICTURE = "is a picture, not a video; give the folder that its frames are in"
_NUMBERED = re.compile(r"(.*?)(\d+)(\.\w+)$")  # a frame's name: before its number, the number, after it
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MARKER_IN_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # ends a scan's data, unlike a stuffed zero or a restart marker
Frame = Tuple[int, np.ndarray]


class Naming(NamedTuple):
    """How a clip's frames are called: `template` % (`start` + index)."""

    template: str = "img_%05d.jpg"
    start: int = 1

    def name(self, index: int) -> str:
        """File name of the clip's frame `index`, which counts from 0."""
        return self.template % (self.start + index)


IMG = Naming()  # as TSM_dataset.py and mmaction2 name frames


def add_naming(cli: argparse.ArgumentParser) -> None:
    """The options that say how extracted frames are called, for Naming(args.filename_tmpl, args.start_index)."""
    cli.add_argument("--filename_tmpl", type=frame_template, default=IMG.template, metavar="TEMPLATE", help="how extracted "
                     "frames are called, JPEG or PNG, as in %%06d.jpg or img_{:05}.png (default: img_%%05d.jpg)")
    cli.add_argument("--start_index", type=non_negative, default=IMG.start, metavar="N", help="the first frame's number "
                     "(default: %(default)s)")


def reencode(path: str) -> str:
    """The remedy for a video that plays elsewhere and cannot be read here: a command that writes it in a plain form."""
    return "; if it plays elsewhere, re-encode it: ffmpeg -i %s -an -c:v libx264 -crf 10 NEW.mp4" % shlex.quote(as_file(path))


def as_file(path: str) -> str:
    """The path as FFmpeg takes it for a file's: `a:b.mp4` by itself is an address of the protocol `a`."""
    return os.path.join(".", path) if ":" in path else path


@contextlib.contextmanager
def strict(remedy: str = "") -> Iterator[None]:
    """Within the block fd 2 is kept off the terminal, and a decoder's exception or word on it raises Corrupt.

    `remedy` follows what was said.
    """
    read_end, write_end = os.pipe()
    saved = os.dup(2)
    try:
        for end in (read_end, write_end):  # a chatty decoder must not wait for a reader: what does not fit is dropped
            os.set_blocking(end, False)
        os.dup2(write_end, 2)
        failed = False
        try:
            yield
        except _DECODER_ERRORS as error:  # their words are about the decoder's own code
            if getattr(error, "code", 0) == -4:  # OpenCV's StsNoMem
                raise MemoryError
            failed = True
        said = b""
        with contextlib.suppress(BlockingIOError):
            said = os.read(read_end, 4096)
        if said or failed:
            raise Corrupt(_in_words(said.decode("utf-8", "replace")) + remedy)
    finally:
        os.dup2(saved, 2)
        for end in (read_end, write_end, saved):
            os.close(end)


def _in_words(said: str) -> str:
    """What a decoder said on stderr: its first line about the clip, less what differs from run to run."""
    for line in said.splitlines():
        line = " ".join(re.sub(r"\[\S+ @ 0x[0-9a-f]+\]|\[ *\w+:\d+@[\d.]+\]", "", line).split())
        if line and not re.search(r"\.(cc|cpp|c|h|hpp|py)\b|Check failed|Assertion|DECORD|0x[0-9a-f]{5}", line):
            return "the decoder says: " + line[:200]
    return "the decoder gives up on it: it is damaged, cut short or of an unknown kind"


def check_folder_of_frames(folder: str, count: int, naming: Naming) -> None:
    """Raises Corrupt unless the frames in `folder` are the `count` that `naming` tells, with none missing or over."""
    try:
        files = os.listdir(folder)
    except OSError as error:
        raise Corrupt((error.strerror or str(error)).lower())
    before, after = re.split(r"%\d*d", naming.template)
    pattern = re.compile(re.escape(before) + r"\d+" + re.escape(after) + "$")
    there = {name for name in files if pattern.match(name)}
    wanted = {naming.name(index) for index in range(count)}
    if there == wanted:
        return
    other = _naming_of(files)
    if other is not None and other[0] != naming and (other[1] == count or not there):
        found, number = other
        flags = ["--filename_tmpl " + shlex.quote(found.template)] if found.template != naming.template else []
        flags += ["--start_index %d" % found.start] if found.start != naming.start else []
        raise Corrupt("%s is missing; its %d frames are %s to %s: pass %s"
                      % (naming.name(0) if not there else min(wanted - there, default=naming.name(0)), number, found.name(0),
                         found.name(number - 1), " ".join(flags)))
    if not there:
        pictures = sorted(filter(is_picture, files))
        raise Corrupt("%s is missing; it holds %s; --filename_tmpl and --start_index say how frames are called"
                      % (naming.name(0), "%d pictures, the first %s" % (len(pictures), pictures[0]) if pictures
                         else "no pictures"))
    for names, what in ((wanted - there, "is missing"), (there - wanted, "is one more than the list says")):
        if names:
            raise Corrupt("%s %s (the list says %d frames)" % (min(names), what, count))


def naming_in(folder: str) -> Tuple[Naming, int]:
    """How a folder's frames are called, and how many there are; Corrupt unless they are numbered in one way, without a gap."""
    try:
        files = os.listdir(folder)
    except OSError as error:
        raise Corrupt((error.strerror or str(error)).lower())
    found = _naming_of(files)
    if found is None:
        raise Corrupt("its pictures are not numbered in one way without a gap, as img_00001.jpg, img_00002.jpg, … are: "
                      + _odd_among(sorted(filter(is_picture, files), key=natural)))
    return found


def _naming_of(files: Sequence[str]) -> Optional[Tuple[Naming, int]]:
    """How the pictures among `files` are called, and how many; None unless they are numbered in one way, without a gap."""
    pictures = [_NUMBERED.match(name) for name in files if is_picture(name)]
    if not pictures or not all(pictures):
        return None
    before, digits, after = min((match.groups() for match in pictures if match), key=lambda parts: int(parts[1]))
    width = "%%0%dd" % len(digits) if len(digits) > 1 else "%d"
    if "%" in before:  # a template could not tell it from its number
        return None
    naming = Naming(before + width + after, int(digits))
    if {naming.name(index) for index in range(len(pictures))} != {match.group() for match in pictures if match}:
        return None
    return naming, len(pictures)


def _odd_among(pictures: Sequence[str]) -> str:
    """What keeps the names of pictures, in natural order, from being numbered in one way without a gap: the first such name."""
    if not pictures:
        return "it holds none"
    parts = {name: match.groups() for name, match in ((name, _NUMBERED.match(name)) for name in pictures) if match}
    for name in pictures:
        if name not in parts:
            return "%s has no number before its suffix" % name
        if "%" in parts[name][0]:
            return "%s has a %% before its number" % name
    styles = [(before, after) for before, _, after in parts.values()]
    usual = max(styles, key=styles.count)
    for name, style in zip(pictures, styles):
        if style != usual:
            return "%s is called otherwise than %s" % (name, pictures[styles.index(usual)])
    first = parts[pictures[0]][1]
    naming = Naming(usual[0] + ("%%0%dd" % len(first) if len(first) > 1 else "%d") + usual[1], int(first))
    index, name = next((index, name) for index, name in enumerate(pictures) if name != naming.name(index))
    number = int(parts[name][1]) - naming.start
    if number > index:
        return "%s is missing" % naming.name(index)
    return "%s has %s" % (name, "the number of " + pictures[index - 1] if number < index else "other digits than " + pictures[0])


def is_picture(name: str) -> bool:
    """Whether a file is a frame by its name."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def read_frames(folder: str, indices: Sequence[int], naming: Naming) -> Iterator[Frame]:
    """(index, frame BGR uint8 [H, W, 3]) of a folder of frames, JPEG or PNG. For use in strict()."""
    shape = None
    for index in indices:
        name = naming.name(index)
        try:
            with open(os.path.join(folder, name), "rb") as file:
                data = file.read()
        except OSError as error:
            raise Corrupt("%s: %s" % (name, (error.strerror or str(error)).lower()))
        if not data:
            raise Corrupt("%s: is empty" % name)
        frame = decode_picture(data, name)
        shape = shape or frame.shape
        if frame.shape != shape:
            raise Corrupt("%s: is %dx%d in a clip of %dx%d" % (name, frame.shape[1], frame.shape[0], shape[1], shape[0]))
        yield index, check_size(frame)


def decode_picture(data: bytes, name: str) -> np.ndarray:
    """BGR uint8 [H, W, 3] of a JPEG or PNG file's bytes, as OpenCV decodes it; raises Corrupt. For use in strict()."""
    plain = False
    if data.startswith(b"\xff\xd8"):
        whole, plain = inspect_jpeg(data)
        if not whole:  # OpenCV fills what is missing with grey; by version it says nothing
            raise Corrupt("%s: is cut short or damaged (no JPEG end marker)" % name)
    elif data.startswith(_PNG_SIGNATURE):
        if not _is_whole_png(data):
            raise Corrupt("%s: is cut short or damaged (a PNG chunk is not whole)" % name)
    else:
        raise Corrupt("%s: is no JPEG and no PNG" % name)
    if plain and simplejpeg is not None:
        with contextlib.suppress(ValueError):  # it complains of anything unusual; OpenCV then has the last word
            return simplejpeg.decode_jpeg(data, "BGR", strict=True)
    try:
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # a size beyond the bound; by version, an exception or None
        frame = None
    if frame is None:
        raise Corrupt("%s: cannot be decoded" % name)
    return frame


def inspect_jpeg(data: bytes) -> Tuple[bool, bool]:
    """(whether a JPEG is whole, whether it is plain), from its markers (ITU-T T.81, annex B).

    Whole: its segments lead to its own end marker; what comes after that is no part of it. An embedded thumbnail's markers
    are inside a segment and do not count. Plain: 8-bit Huffman-coded YCbCr or grayscale of a sane size without Exif or
    Adobe segment, which every libjpeg decodes to the same bytes and whose rotation or colours need no thought.
    """
    place, plain, sized = 2, True, False
    while data[place : place + 1] == b"\xff":
        code = data[place + 1 : place + 2]
        if code == b"\xff":  # a fill byte
            place += 1
            continue
        if code == b"\xd9":
            return True, plain and sized
        size = int.from_bytes(data[place + 2 : place + 4], "big")
        if size < 2:
            break
        segment = data[place + 4 : place + 2 + size]
        if code in (b"\xe1", b"\xee") and segment[:5] in (b"Exif\0", b"Adobe"):
            plain = False
        if b"\xc0" <= code <= b"\xcf" and code not in (b"\xc4", b"\xc8", b"\xcc"):  # a frame header
            sized = True
            pixels = int.from_bytes(segment[1:3], "big") * int.from_bytes(segment[3:5], "big")
            plain &= (code <= b"\xc2" and segment[:1] == b"\x08" and 0 < pixels <= _MAX_PIXELS
                      and (segment[5:6] == b"\1" or segment[5:6] == b"\3" and segment[6::3] == b"\1\2\3"))
        place += 2 + size
        if code == b"\xda":
            marker = _MARKER_IN_SCAN.search(data, place)
            if not marker:
                break
            place = marker.start()
    return False, False


def _is_whole_png(data: bytes) -> bool:
    """Whether all chunks of a PNG are there with right checksums, up to its end chunk (PNG specification, chapter 5)."""
    place = len(_PNG_SIGNATURE)
    while True:
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        kind, checksum = data[place + 4 : place + 8], data[end - 4 : end]
        if end > len(data) or zlib.crc32(data[place + 4 : end - 4]) != int.from_bytes(checksum, "big"):
            return False
        if kind == b"IEND":
            return True
        place = end


def read_video(path: str, choose: Callable[[int], Sequence[int]], by_opencv: bool = False) -> Iterator[Frame]:
    """(index, frame RGB uint8 [H, W, 3]) of the frames choose(number of frames), ascending. For use in strict().

    By decord where it is installed, unless `by_opencv`.

    Frames are decoded from the first on and counted. Seeking would save little and is wrong after a key frame that earlier
    frames depend on (open GOPs): decoders then drop or make up frames, some without a word.
    """
    name = _checked(path)
    return (_read_by_opencv if by_opencv or decord is None else _read_by_decord)(name, choose)


def _checked(path: str) -> str:
    """The path as decoders take it; raises Corrupt where there is nothing for them to read."""
    if not os.path.isfile(path):
        raise Corrupt("is no file")
    if not os.path.getsize(path):
        raise Corrupt("is empty")
    try:
        return as_file(os.fsencode(path).decode("utf-8"))  # whatever the locale, decoders take UTF-8
    except UnicodeDecodeError:
        raise Corrupt("its name is not UTF-8 text, which video decoders need; rename it")


def is_text(name: str) -> bool:
    """Whether OpenCV can take a name: it crashes on one that is not UTF-8."""
    try:
        return bool(name.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def count_frames(path: str) -> int:
    """Number of frames in a video, each of which was decoded. For use in strict()."""
    counts: List[int] = []

    def choose(count: int) -> Sequence[int]:
        counts.append(count)
        return [count - 1]

    for _ in read_video(path, choose):
        pass
    return counts[-1]


class Timeline(NamedTuple):
    """When the frames of a video are shown, in seconds from the first one's start.

    `rate` is in frames per second: the average where frame i is shown at i / rate, and `starts` is then None. Of a variable
    rate it is the usual one, and `starts`, float64 [frames + 1], has when each frame is shown and when the last one ends.
    """

    rate: float
    starts: Optional[np.ndarray] = None

    def start(self, index: int) -> float:
        """When a frame is shown."""
        return index / self.rate if self.starts is None else float(self.starts[index])

    def shown(self, start: float, end: float) -> Tuple[int, int]:
        """(the first frame that is shown from `start` to `end`, the one after the last), of a variable rate; at least one frame.

        To the nearest: what half a usual frame shows of a frame at either end does not count.
        """
        assert self.starts is not None
        starts, slack = self.starts[:-1], 0.5 / self.rate
        first = max(0, int(np.searchsorted(starts, start + slack, "right")) - 1)
        return first, max(first + 1, int(np.searchsorted(starts, end - slack)))


def timeline(path: str) -> Timeline:
    """The times of a video's frames, by its own timestamps. For use in strict().

    By decord from its index; OpenCV has to decode the video for them once more. Frames that are all within half a frame of a
    constant rate are taken to be of that rate, as are those of a file without timestamps, such as an AVI's. Raises Corrupt
    where a file has neither.
    """
    name = _checked(path)
    rate, starts, end = _times_by_opencv(name) if decord is None else _times_by_decord(name)
    gaps = np.diff(starts)
    known = len(starts) > 0 and starts[0] > _UNKNOWN and bool((gaps > 0).all())
    if 0 < rate < 1000 and not (known and _leaves(rate, starts, end)):
        return Timeline(rate)
    usual = float(np.median(gaps)) if len(gaps) else end - starts[0] if known else 0.0
    if not known or usual <= 0:
        raise Corrupt("does not say how many frames it has per second" + reencode(path))
    return Timeline(1 / usual, np.append(starts, end if end > starts[-1] else starts[-1] + usual) - starts[0])


def _leaves(rate: float, starts: np.ndarray, end: float) -> bool:
    """Whether frames that start, and end, at these times leave a constant rate: by half a frame, or the last one by a whole."""
    places = (starts - starts[0]) * rate - np.arange(len(starts))
    return bool(np.abs(places).max() > 0.5 or (end - starts[0]) * rate > len(starts) + 1)


def _times_by_decord(name: str) -> Tuple[float, np.ndarray, float]:
    """(frames per second on average, when each frame starts, when the last one ends), in seconds, as they are in the file."""
    reader = _open_by_decord(name)
    starts, ends = reader.get_frame_timestamp(range(len(reader))).astype(np.float64).T
    return float(reader.get_avg_fps()), starts[_cut(starts) :], float(ends.max()) if len(ends) else 0.0


def _cut(starts: np.ndarray) -> int:
    """How many frames at the beginning an edit list cuts, by when decord says that each frame starts."""
    return int(np.count_nonzero((starts < 0) & (starts > _UNKNOWN)))


def _times_by_opencv(name: str) -> Tuple[float, np.ndarray, float]:
    capture, starts = cv2.VideoCapture(name), []
    while capture.grab():
        starts.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    return float(capture.get(cv2.CAP_PROP_FPS)), np.array(starts), 0.0


def _open_by_decord(path: str) -> "decord.VideoReader":
    decord.logging.set_level(decord.logging.ERROR)  # by default FFmpeg's errors are not even printed
    with open(path.encode(), "rb") as file:
        head = file.read(189)
    if head[:1] == head[188:] == b"G":  # sync bytes of MPEG-TS, ISO 13818-1: decord loses its first frames, or hangs
        raise Corrupt("is an MPEG transport stream, which cannot be read exactly; remux it: ffmpeg -i %s -c copy NEW.mp4"
                      % shlex.quote(path))
    try:
        return decord.VideoReader(path, num_threads=1, fault_tol=1e-9)  # not one frame may be repeated for want of another
    except _DECODER_ERRORS + (AssertionError,) as error:
        if _holds_picture(path):
            raise Corrupt(_PICTURE)
        if "duration" in str(error):
            raise Corrupt("its header gives no duration: it is a live recording, or damaged; remux it: ffmpeg -i %s -c copy "
                          "NEW%s, or NEW.mp4" % (shlex.quote(path), os.path.splitext(path)[1]))
        raise Corrupt("cannot be opened as a video" + reencode(path))


def _holds_picture(path: str) -> bool:
    """Whether a file is one still picture, by its first bytes or its name."""
    with open(path.encode(), "rb") as file:
        animated = file.read(4) == b"GIF8" or path.lower().endswith((".mjpg", ".mjpeg"))
    return not animated and (is_picture(path) or cv2.haveImageReader(path))


def _read_by_decord(path: str, choose: Callable[[int], Sequence[int]]) -> Iterator[Frame]:
    reader = _open_by_decord(path)
    cut = _cut(reader.get_frame_timestamp(range(len(reader)))[:, 0])
    count, place = len(reader) - cut, 0
    if count < 1:
        raise Corrupt("has no frames")
    try:
        for index in choose(count):
            while place < index:
                reader.next()
                place += 1
            frame = reader.next().asnumpy()
            place += 1
            height, width = frame.shape[:2]  # of a tiny frame decord takes the rows' padding for channels
            yield index, check_size(frame.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3))
        while place < count:  # that every frame plays shows that none was dropped before
            reader.next()
            place += 1
    except (StopIteration, decord.DECORDLimitReachedError):
        raise Corrupt("only %d of its %d frames play: it is damaged, or trimmed by an edit list%s"
                      % (place, count, reencode(path)))
    if cut and _has_more(reader):
        raise Corrupt("its edit list cuts %d frames, but they play%s" % (cut, reencode(path)))


def _has_more(reader: "decord.VideoReader") -> bool:
    try:
        reader.next()
    except (StopIteration, decord.DECORDLimitReachedError):
        return False
    return True


def _read_by_opencv(path: str, choose: Callable[[int], Sequence[int]]) -> Iterator[Frame]:
    if _holds_picture(path):
        raise Corrupt(_PICTURE)
    capture = cv2.VideoCapture(path)
    count = 0  # counted, not asked for: the container's own figure is an estimate
    while capture.grab():
        count += 1
    if not count:
        raise Corrupt("has no frames that can be decoded" + reencode(path))
    capture, place = cv2.VideoCapture(path), -1
    for index in choose(count):
        while place < index:
            capture.grab()
            place += 1
        read, frame = capture.retrieve()
        if not read:
            raise Corrupt("frame %d cannot be decoded%s" % (index, reencode(path)))
        yield index, check_size(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))


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


def check_size(frame: np.ndarray) -> np.ndarray:
    """The frame; raises Corrupt where it is so thin that its resized form would be enormous."""
    sides = sorted(frame.shape[:2])
    if sides[1] > MAX_ASPECT * sides[0]:
        raise Corrupt("a frame of %dx%d pixels is no picture" % (frame.shape[1], frame.shape[0]))
    return frame

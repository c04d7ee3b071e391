"""Pictures, and folders of them, strictly: whatever a decoder would pass over or make up is an error.

Decoders go on where they can: a JPEG that is cut short ends in grey, a video in fewer frames. What they say about it, if
anything, goes to stderr. So everything written there while a clip is decoded counts as the clip being corrupt.
"""

import argparse
import contextlib
import os
import re
import shlex
import zlib
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np

from tsm.cli import Corrupt, non_negative, positive
from tsm.files import natural
from tsm.protocol import frame_template

try:
    import simplejpeg  # the same libjpeg-turbo as in OpenCV, without the copies around it
except (ImportError, OSError):
    simplejpeg = None

JPEG_DECODER = "OpenCV " + cv2.__version__ if simplejpeg is None else "simplejpeg " + simplejpeg.__version__
MAX_ASPECT = 16  # long side / short side
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_MAX_PIXELS = int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"])
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


def add_list(cli: argparse.ArgumentParser, required: bool = True) -> None:
    """The options that name a list of clips, for read_list(), and say how they are read: their frames by Naming(args.filename_tmpl,
    args.start_index)."""
    cli.add_argument("--ann_file", required=required, metavar="FILE", help="the list, as TSM_dataset.py makes it")
    cli.add_argument("--data_root", required=required, metavar="DIR", help="the folder that the list's paths start from")
    cli.add_argument("--num_worker", type=positive, metavar="N", help="processes that decode (default: one per core)")
    cli.add_argument("--on_error", choices=("fail", "skip"), default="fail", help="what an unreadable clip does (default: "
                     "%(default)s)")
    cli.add_argument("--filename_tmpl", type=frame_template, default=IMG.template, metavar="NAME", help="of extracted "
                     "frames (default: img_%%05d.jpg)")
    cli.add_argument("--start_index", type=non_negative, default=IMG.start, metavar="N", help="the first frame's number "
                     "(default: %(default)s)")


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
        except (cv2.error, RuntimeError, IndexError) as error:  # their words are about the decoder's own code
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
    files = _inside(folder)
    before, after = re.split(r"%\d*d", naming.template)
    pattern = re.compile(re.escape(before) + r"\d+" + re.escape(after) + "$")
    there = {name for name in files if pattern.match(name)}
    wanted = {naming.name(index) for index in range(count)}
    missing, other = wanted - there, _naming_of(files)
    if there == wanted:
        return
    if other is not None and other[0] != naming and (other[1] == count or not there):
        found, number = other
        wrong = "%s is missing; its %d frames are %s to %s: pass --filename_tmpl %s --start_index %d" % (
            min(missing, default=naming.name(0)), number, found.name(0), found.name(number - 1),
            shlex.quote(found.template), found.start)
    elif not there:
        pictures = sorted(filter(is_picture, files))
        wrong = "%s is missing; it holds %s; --filename_tmpl and --start_index say how frames are called" % (
            naming.name(0), "%d pictures, the first %s" % (len(pictures), pictures[0]) if pictures else "no pictures")
    else:
        wrong = "%s is %s (the list says %d frames)" % (
            min(missing or there - wanted), "missing" if missing else "one more than the list says", count)
    raise Corrupt(wrong)


def unreadable(error: OSError, name: str = "") -> Corrupt:
    """What the system says of a clip, or of its file `name`."""
    return Corrupt(name + (": " if name else "") + (error.strerror or str(error)).lower())


def _inside(folder: str) -> List[str]:
    """The names in a folder; raises Corrupt."""
    try:
        return os.listdir(folder)
    except OSError as error:
        raise unreadable(error)


def naming_in(folder: str) -> Tuple[Naming, int]:
    """How a folder's frames are called, and how many there are; Corrupt unless they are numbered in one way, without a gap."""
    files = _inside(folder)
    found = _naming_of(files)
    if found is None:
        pictures = sorted(filter(is_picture, files), key=natural)
        first = _naming_of(pictures[:1])
        odd = next((name for index, name in enumerate(pictures) if not first or name != first[0].name(index)), "")
        raise Corrupt("its pictures are not numbered in one way without a gap, as img_00001.jpg, img_00002.jpg, … are: "
                      + (odd + " is the first that does not follow" if odd else "it holds none"))
    return found


def _naming_of(files: Sequence[str]) -> Optional[Tuple[Naming, int]]:
    """How the pictures among `files` are called, and how many; None unless they are numbered in one way, without a gap."""
    pictures = {name: _NUMBERED.match(name) for name in files if is_picture(name)}
    if not pictures or not all(pictures.values()):
        return None
    before, digits, after = min((match.groups() for match in pictures.values() if match), key=lambda parts: int(parts[1]))
    naming = Naming(before + ("%%0%dd" % len(digits) if len(digits) > 1 else "%d") + after, int(digits))
    sure = "%" not in before  # which a template could not tell from its number
    return (naming, len(pictures)) if sure and {naming.name(index) for index in range(len(pictures))} == set(pictures) else None


def is_picture(name: str) -> bool:
    """Whether a file is a frame by its name."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not os.path.basename(name).startswith(".")


def read_frames(folder: str, indices: Sequence[int], naming: Naming) -> Iterator[Frame]:
    """(index, frame BGR uint8 [H, W, 3]) of a folder of frames, JPEG or PNG. For use in strict()."""
    shape = None
    for index in indices:
        name = naming.name(index)
        try:
            with open(os.path.join(folder, name), "rb") as file:
                data = file.read()
        except OSError as error:
            raise unreadable(error, name)
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
    elif not data.startswith(_PNG_SIGNATURE):
        raise Corrupt("%s: %s" % (name, "is no JPEG and no PNG" if data else "is empty"))
    elif not _is_whole_png(data):
        raise Corrupt("%s: is cut short or damaged (a PNG chunk is not whole)" % name)
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


def check_size(frame: np.ndarray) -> np.ndarray:
    """The frame; raises Corrupt where it is so thin that its resized form would be enormous."""
    sides = sorted(frame.shape[:2])
    if sides[1] > MAX_ASPECT * sides[0]:
        raise Corrupt("a frame of %dx%d pixels is no picture" % (frame.shape[1], frame.shape[0]))
    return frame

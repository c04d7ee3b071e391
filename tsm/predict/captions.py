"""Captions drawn into a copy of a video."""

import contextlib
import os
import textwrap
from fractions import Fraction
from functools import lru_cache
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import cv2
import numpy as np

from tsm.cli import Corrupt, UserError
from tsm.files import replacing
from tsm.video.decode import as_file, as_rgb, av, check_played, opened_video, read_in_turn, reencode, stamps_of
from tsm.video.frames import strict

_OURS = b"labels drawn in by TSM_predict.py"  # the comment of each output, which MP4 has at its end
_UNIT = Fraction(1, 60000)  # seconds; a copy's frames are shown at multiples of it
_CARRIED = ("aac", "mp3", "opus", "flac")  # sound that browsers play from MP4; other sound becomes AAC
_SMALLEST = 6  # pixels that letters are high at least
Caption = Tuple[float, float, str]


def write_captions(path: str, output: str, captions: Sequence[Caption]) -> None:
    """Copy a video to `output` (.mp4, H.264) with captions (start, end in seconds, text) drawn in, frame by frame; whole or not at all.

    Each frame is shown when it is in the original, and sound is kept. Memory is bounded, whatever the length. Raises
    Corrupt, or UserError or OSError where `output` cannot be written.
    """
    if av is None or "libx264" not in av.codecs_available or not hasattr(cv2, "FontFace"):
        raise Corrupt("labels are drawn into videos by PyAV, with H.264, and OpenCV 5; get them: "
                      "python3 -m pip install -U av opencv-python-headless")
    with replacing(output) as part, strict(reencode(path)):
        moments = stamps_of(path).moments
        first = next(read_in_turn(path, [0], len(moments) - 1))[1]
        with opened_video(as_file(path)) as (source, stream):
            with _writing(output):
                copy = av.open(as_file(part), "w", format="mp4")
            try:
                copy.metadata["comment"] = _OURS.decode()
                _copy(source, stream, copy, _picture_track(copy, stream, first), moments, captions, output)
                with _writing(output):
                    copy.close()
            finally:
                with contextlib.suppress(av.error.FFmpegError):
                    copy.close()


@contextlib.contextmanager
def _writing(output: str) -> Iterator[None]:
    """What PyAV cannot write is the fault of the place, not of the video that is copied."""
    try:
        yield
    except av.error.FFmpegError:
        raise UserError("%s: cannot be written whole; is the folder writable, and the disk not full?" % output)


def has_captions(path: str) -> bool:
    """Whether write_captions() made the file at `path`; not, as far as one can tell, if it cannot be read."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 1024))
        return _OURS in file.read()
    return False


def _picture_track(copy: Any, stream: Any, image: np.ndarray) -> Any:
    """A track of `copy` for pictures like `image`, of even size, as H.264 needs it, in the shape of the track `stream`."""
    track = copy.add_stream("libx264", options={"preset": "veryfast", "crf": "20", "bf": "0"})
    track.height, track.width = (side + side % 2 for side in image.shape[:2])
    track.pix_fmt, track.time_base, track.codec_context.time_base = "yuv420p", _UNIT, _UNIT
    track.codec_context.color_range, track.codec_context.colorspace = 1, 6  # as FFmpeg makes them of RGB: 16 to 235, BT.601
    if stream.sample_aspect_ratio:
        track.sample_aspect_ratio = stream.sample_aspect_ratio
    return track


def _copy(source: Any, stream: Any, copy: Any, track: Any, moments: np.ndarray, captions: Sequence[Caption], output: str) -> None:
    """Write PyAV's pictures `stream` of the container `source`, with captions, into `track` of `copy`, and its sound."""
    sound = source.streams.best("audio")
    begin = min(moments[0], (source.start_time or 0) / av.time_base)
    ticks = np.round((moments - begin) / float(_UNIT)).astype(np.int64) - np.arange(len(moments))
    ticks = np.maximum.accumulate(ticks) + np.arange(len(moments))  # no two frames at once
    hear = _sound_into(copy, sound, begin) if sound is not None and sound.codec_context is not None else None
    filters: Dict[Any, Any] = {}
    played = written = 0

    def put(packets: Sequence[Any]) -> None:
        nonlocal written
        for packet in packets:
            packet.duration = int(ticks[written + 1] - ticks[written])
            written += 1
        copy.mux(packets)

    for packet in source.demux([stream, sound] if hear else [stream]):
        if hear and packet.stream.index != stream.index:
            with _writing(output):
                copy.mux(hear(packet))
            continue
        for frame in packet.decode():
            if played == len(moments) - 1:
                check_played(played + 1, played)
            moment = moments[played] - moments[0]
            text = next((text for start, end, text in captions if start <= moment < end), "")
            drawn = av.VideoFrame.from_ndarray(_even(as_rgb(frame, filters), text, track), format="rgb24").reformat(format="yuv420p")
            drawn.pts, drawn.time_base = int(ticks[played]), _UNIT
            played += 1
            with _writing(output):
                put(track.encode(drawn))
    check_played(played, len(moments) - 1)
    with _writing(output):
        put(track.encode())


def _sound_into(copy: Any, sound: Any, begin: float) -> Callable[[Any], List[Any]]:
    """A function: a packet of `sound` -> the packets of it for `copy`, which begins at `begin` seconds of it."""
    samples: Optional[int] = None

    def carried(packet: Any) -> List[Any]:
        if packet.dts is None:  # the end
            return []
        shift = round(begin / packet.time_base)
        packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, track
        return [packet]

    def encoded(packet: Any) -> List[Any]:
        nonlocal samples
        frames, made = [], []
        with contextlib.suppress(Corrupt, av.error.FFmpegError), strict():  # what is damaged of the sound is left out
            frames = packet.decode()
        for frame in frames:
            if samples is None:
                samples = round(((frame.time or begin) - begin) * frame.sample_rate)
            frame.pts, frame.time_base = samples, Fraction(1, frame.sample_rate)
            samples += frame.samples
            made += track.encode(frame)
        return made + (track.encode() if not packet.size and samples is not None else [])

    if sound.codec_context.codec.canonical_name in _CARRIED:
        track = copy.add_stream_from_template(sound)
        return carried
    track = copy.add_stream("aac", rate=min(sound.rate or 48000, 48000))
    return encoded


def _even(image: np.ndarray, text: str, track: Any) -> np.ndarray:
    """A picture in the track's size, with a caption."""
    below, aside = track.height - image.shape[0], track.width - image.shape[1]
    if below in (0, 1) and aside in (0, 1):
        image = cv2.copyMakeBorder(image, 0, below, 0, aside, cv2.BORDER_REPLICATE)
    else:  # a video whose frames change their size
        image = cv2.resize(image, (track.width, track.height))
    if text:
        banner = _banner(text, track.width, track.height)
        image[: len(banner)] = banner
    return image


@lru_cache(maxsize=64)
def _banner(text: str, width: int, height: int) -> np.ndarray:
    """A text on black, uint8 [rows, width, 3] of at most `height` rows: whole, in as many lines and as small as that takes."""
    text, size = text.encode("utf-8", "replace").decode(), max(_SMALLEST, min(28, height // 12))
    while True:
        lines, pitch = _lines(text, width - 4, size), size + size // 3
        rows = min(height, len(lines) * pitch + size // 3)
        if rows < height // 2 or size == _SMALLEST:
            break
        size -= 1
    banner = np.zeros((rows, width, 3), np.uint8)
    for number, line in enumerate(lines):
        _put(banner, line, number * pitch + size, size)
    return banner


def _lines(text: str, width: int, size: int) -> List[str]:
    """The text in lines of at most `width` pixels, broken between words where it can be."""
    nowhere = np.zeros((1, 1 << 14, 3), np.uint8)
    columns = len(text)
    while True:
        lines = textwrap.wrap(text, max(1, columns))
        if columns <= 1 or all(_put(nowhere, line, 0, size) <= width for line in lines):
            return lines
        columns = max(map(len, lines)) - 1


def _put(image: np.ndarray, line: str, below: int, size: int) -> int:
    """Write a line into an image, RGB uint8, with letters of `size` pixels that stand on row `below`; returns where it ends."""
    return int(cv2.putText(image, line, (4, below), (255, 255, 255), cv2.FontFace("uni"), size)[0][0])

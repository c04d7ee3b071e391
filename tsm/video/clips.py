"""Tensors of clips: a clip's frames resized, cropped and normalised exactly as mmaction2 0.24.1 does it.

The pixels of a tensor depend on the protocol, on how frames are called, on the decoders and on this code alone.
"""

import hashlib
import json
import mmap
import os
from bisect import bisect_left, bisect_right
from collections import deque
from contextlib import closing
from typing import Any, Callable, Deque, Dict, Generator, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, TypeVar, Union

import cv2
import numpy as np

from tsm.cli import Corrupt
from tsm.machine import free_memory, workers_that_fit
from tsm.protocol import CROPS, Protocol, crop_boxes, frame_indices
from tsm.samples import Clip
from tsm.video.frames import (
    IMG,
    JPEG_DECODER,
    VIDEO_DECODER,
    Frame,
    Naming,
    Timeline,
    check_folder_of_frames,
    naming_in,
    read_frames,
    read_video,
    reencode,
    strict,
    timeline,
)
from tsm.workers import each

REVISION = 2  # to be raised with any change of frames.py, clips.py or protocol.py that changes a tensor: they are made again
SMALLER = "pass a shorter --window or a longer --stride"  # where windows take too much memory
ALWAYS_ROOM = 1 << 28  # bytes that the frames of a window may take however full the memory seems


def versions() -> Dict[str, str]:
    """{library: version} of all that pixels may depend on."""
    return {"opencv": cv2.__version__, "jpeg decoder": JPEG_DECODER, "video decoder": VIDEO_DECODER}


def versions_of(clips: Mapping[int, Clip]) -> Dict[str, str]:
    """{library: version} of what the tensors of a list's clips depend on."""
    others = "jpeg decoder" if next(iter(clips.values())).frames is None else "video decoder"
    return {name: version for name, version in versions().items() if name != others}


def normalisation(protocol: Protocol) -> np.ndarray:
    """Normalised value of every byte, float32 [3, 256], R G B.

    mmcv.imnormalize_ on each of the 256 values, with its roundings: mean and std go through float32, and OpenCV rounds
    to float32 after the subtraction and again after the multiplication.
    """
    values = np.arange(256, dtype=np.float32).reshape(1, 256)
    table = []
    for mean, std in zip(np.array(protocol.mean, np.float32), np.array(protocol.std, np.float32)):
        row = cv2.subtract(values, np.array([[mean]], np.float64))
        table.append(cv2.multiply(row, 1 / np.array([[std]], np.float64)))
    return np.concatenate(table)


def table_for(dtype: str, protocol: Protocol) -> Optional[np.ndarray]:
    """What fill() needs for tensors of a dtype: the normalisation for float32, None for uint8 (raw pixels)."""
    return normalisation(protocol) if dtype == "float32" else None


def resized(frame: np.ndarray, protocol: Protocol) -> np.ndarray:
    """A frame uint8 [H, W, 3] with its short side as the protocol has it."""
    size = resized_size(frame.shape[1], frame.shape[0], protocol.short_side)
    return cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)


def resized_size(width: int, height: int, short_side: int) -> Tuple[int, int]:
    """(width, height) with the short side that is asked for, rounded as mmcv.rescale_size does."""
    scale = short_side / min(width, height)
    return int(width * scale + 0.5), int(height * scale + 0.5)


def compute(frames: Iterator[Frame], indices: List[int], bgr: bool, protocol: Protocol, table: Optional[np.ndarray],
            out: np.ndarray) -> None:
    """Fill `out` [protocol.video_shape] from the distinct frames uint8 [H, W, 3]; `indices` are frame_indices().

    What several views share is computed once per distinct frame: decoding, the resize, the split into planes. Per view
    there is only the copy of a crop, through the table for float32, which costs no more than copying floats.
    """
    for index, frame in frames:
        place_frame(resized(frame, protocol), index, indices, bgr, protocol, table, out)


def place_frame(image: np.ndarray, index: int, indices: Sequence[int], bgr: bool, protocol: Protocol,
                table: Optional[np.ndarray], out: np.ndarray) -> None:
    """Put a resized frame uint8 [H, W, 3] into all places of `out` [protocol.video_shape] whose index is its own."""
    side = protocol.size
    views = out.reshape((CROPS[protocol.crops], -1) + protocol.frame_shape)
    planes = cv2.split(image)
    boxes = crop_boxes(planes[0].shape[1], planes[0].shape[0], protocol)
    places = [place for place, wanted in enumerate(indices) if wanted == index]
    for channel, plane in enumerate(reversed(planes) if bgr else planes):
        for crop, (x, y, mirrored) in enumerate(boxes):
            pixels = plane[y : y + side, x : x + side]
            pixels = cv2.flip(pixels, 1) if mirrored else pixels
            for place in places:
                if table is None:
                    views[crop, place, channel] = pixels
                else:
                    cv2.LUT(pixels, table[channel], views[crop, place, channel])


def fill(path: str, clip: Clip, protocol: Protocol, table: Optional[np.ndarray], out: np.ndarray,
         naming: Optional[Naming] = IMG, sample: Callable[[int, Protocol], List[int]] = frame_indices,
         by_opencv: bool = False) -> None:
    """Fill `out` [protocol.video_shape], float32 with table_for()'s table or uint8 with None, from the clip at `path`.

    A naming of None takes a folder's frames as they are called, all of them. `sample` chooses the frames, and `by_opencv`
    decodes a video by OpenCV in any case; both are for finding faults. Raises Corrupt. OpenCV runs in one thread from
    here on: processes are the parallelism.
    """
    cv2.setNumThreads(1)
    if clip.frames is not None:
        with strict():
            named, count = (naming, clip.frames) if naming else naming_in(path)
            check_folder_of_frames(path, count, named)
            indices = sample(count, protocol)
            return compute(read_frames(path, sorted(set(indices)), named), indices, True, protocol, table, out)
    indices = []

    def choose(count: int) -> List[int]:
        indices[:] = sample(count, protocol)
        return sorted(set(indices))

    with strict(reencode(path)):
        compute(read_video(path, choose, by_opencv), indices, False, protocol, table, out)


def as_video(frames: Sequence[np.ndarray], protocol: Protocol, dtype: str) -> np.ndarray:
    """The tensor [protocol.video_shape] of a clip whose frames, RGB uint8 [H, W, 3] after resized(), are all in memory."""
    return _assembled(frames, frame_indices(len(frames), protocol), protocol, dtype, table_for(dtype, protocol))


def _assembled(frames: Union[Sequence[np.ndarray], Mapping[int, np.ndarray]], indices: Sequence[int], protocol: Protocol, dtype: str,
               table: Optional[np.ndarray]) -> np.ndarray:
    """The tensor [protocol.video_shape] of the frames at `indices`, RGB uint8 [H, W, 3] after resized()."""
    out = np.empty(protocol.video_shape, dtype)
    for index in sorted(set(indices)):
        place_frame(frames[index], index, indices, False, protocol, table, out)
    return out


Key = TypeVar("Key")


def decoded(
    clips: Union[Sequence[Clip], Mapping[Key, Clip]], data_root: str, protocol: Protocol, dtype: str, count: int,
    naming: Optional[Naming] = IMG, no_room: str = "",
) -> Generator[Tuple[Key, Union[np.ndarray, Corrupt]], None, None]:
    """(index or key in `clips`, tensor [protocol.video_shape] of `dtype` or the Corrupt that says why not), in any order.

    Decoded in `count` processes, or as many as the memory holds tensors for, in memory: a tensor more than processes exists
    beside those that the caller keeps, and decoding waits while the caller does. The processes are forked before this returns,
    so call it before an engine starts its threads; close the iterator (contextlib.closing) to end them at once. A clip that the
    memory does not hold ends the work with a MemoryError, unless `no_room` says what its Corrupt is to say.
    """
    chosen: Mapping[Any, Clip] = clips if isinstance(clips, Mapping) else dict(enumerate(clips))
    table, nbytes = table_for(dtype, protocol), protocol.nbytes(dtype)
    count = workers_that_fit(count, nbytes)
    # One place more than processes: each() hands out the next item before it yields the result of the last.
    places = [np.frombuffer(mmap.mmap(-1, nbytes), dtype).reshape(protocol.video_shape) for _ in range(count + 1)]
    free = deque(range(count + 1))

    def work(item: Tuple[Any, int]) -> None:
        key, place = item
        try:
            fill(os.path.join(data_root, chosen[key].source), chosen[key], protocol, table, places[place], naming)
        except MemoryError:
            if no_room:
                raise Corrupt(no_room)
            raise

    def taken(results: Generator[Tuple[Any, Any], None, None]) -> Generator[Tuple[Key, Union[np.ndarray, Corrupt]], None, None]:
        with closing(results):
            for (key, place), error in results:
                tensor = error if isinstance(error, Corrupt) else places[place].copy()
                free.append(place)
                yield key, tensor

    return taken(each(work, ((key, free.popleft()) for key in chosen), min(count, max(1, len(chosen)))))


def basis(clips: Mapping[int, Clip], protocol: Protocol, dtype: str, naming: Naming) -> str:
    """What the tensors of a list have in common: protocol, dtype, names of frames, decoders, revision of this code."""
    return json.dumps([REVISION, protocol, dtype, naming, versions_of(clips)])


def fingerprint(path: str, clip: Clip, protocol: Protocol, basis: str, naming: Naming = IMG) -> str:
    """Changes when the tensor might: hash of the `basis`, the clip's path, length, and its files' sizes and times.

    Raises Corrupt where a file is missing.
    """
    files = [path]
    if clip.frames is not None:
        files = [os.path.join(path, naming.name(index)) for index in sorted(set(frame_indices(clip.frames, protocol)))]
    facts: List[Any] = [basis, clip.source, clip.frames]
    for file in files:
        try:
            status = os.stat(file)
        except OSError as error:
            if clip.frames is not None:
                check_folder_of_frames(path, clip.frames, naming)  # says more
            name = "" if file == path else os.path.basename(file) + ": "
            raise Corrupt(name + (error.strerror or str(error)).lower())
        facts.append((status.st_size, status.st_mtime_ns))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


class Window(NamedTuple):
    """A stretch of a video, from `start` to `end` in seconds; the whole of it where both are None."""

    start: Optional[float]
    end: Optional[float]


def windows_of(frames: int, times: Timeline, length: float, stride: float) -> List[Tuple[Window, int, int]]:
    """(window, its first frame, the frame after its last) of a video, one window of `length` seconds every `stride` seconds.

    The last one ends with the video, so that its end is not lost; a video no longer than a window is one window. Windows are
    at least a frame long, and a frame apart.

    Args:
        frames, times: of the video.
    """
    rate = times.rate
    duration, length, stride = times.start(frames), max(length, 1 / rate), max(stride, 1 / rate)
    starts = [0.0]
    while starts[-1] + length < duration - 0.5 / rate:
        starts.append(min(starts[-1] + stride, duration - length))
    windows = []
    for start in starts:
        if times.starts is None:
            first = min(int(round(start * rate)), frames - 1)
            stop = min(max(first + 1, int(round((start + length) * rate))), frames)
        else:
            first, stop = times.shown(start, start + length)
        windows.append((Window(round(start, 3), round(min(start + length, duration), 3)), first, stop))
    return windows


def windowed(
    path: str, length: float, stride: Optional[float], protocol: Protocol, dtype: str
) -> Iterator[Tuple[Window, np.ndarray]]:
    """(window, its tensor [protocol.video_shape]) for each of windows_of() a video, which is decoded once.

    A stride of None is half a window.
    The frames of a window are sampled as those of a clip. One tensor exists at a time, beside the frames, after the resize,
    that windows which are not complete were sampled from. Raises Corrupt, also after windows were yielded, and before the
    video is decoded if those frames would take more memory than there is.
    """
    cv2.setNumThreads(1)
    table = table_for(dtype, protocol)
    windows: Deque[Tuple[Window, List[int], int]] = deque()  # and the first frame that it and those after it need
    most = 0  # frames that are kept at a time

    def choose(count: int) -> List[int]:
        nonlocal most
        needed = count
        for window, first, stop in reversed(windows_of(count, times, length, stride or length / 2)):
            indices = [first + index for index in frame_indices(stop - first, protocol)]
            needed = min(needed, min(indices))
            windows.appendleft((window, indices, needed))
        wanted = sorted({index for _, indices, _ in windows for index in indices})
        most = max(bisect_right(wanted, max(indices)) - bisect_left(wanted, needed) for _, indices, needed in windows)
        return wanted

    with strict(reencode(path)):
        times = timeline(path)
        if stride is not None and stride * times.rate < 0.99:
            raise Corrupt("a stride of %g s is shorter than one of its frames, %.4f s; pass a longer --stride"
                          % (stride, 1 / times.rate))
        kept: Dict[int, np.ndarray] = {}
        for number, (index, frame) in enumerate(read_video(path, choose)):
            kept[index] = resized(frame, protocol)
            if not number:
                _check_room(most * kept[index].nbytes)
            while windows and max(windows[0][1]) <= index:
                window, indices, _ = windows.popleft()
                yield window, _assembled(kept, indices, protocol, dtype, table)
                for passed in [one for one in kept if not windows or one < windows[0][2]]:
                    del kept[passed]


def _check_room(nbytes: int) -> None:
    """Corrupt where the frames of a window take so many bytes that the free memory may not hold them."""
    if nbytes > max(free_memory() / 2, ALWAYS_ROOM):
        raise Corrupt("a window's frames take %.1f GB, more than half of the free memory; %s" % (nbytes / 1e9, SMALLER))


STRIP_FRAMES, STRIP_HEIGHT, STRIP_QUALITY = 8, 112, 70  # of a film strip: frames, pixels, JPEG's scale


def strip(path: str) -> bytes:
    """A film strip of the video, or of the folder of frames, at `path`: JPEG, the middles of STRIP_FRAMES segments side by side.

    Raises Corrupt.
    """
    cv2.setNumThreads(1)
    if not os.path.isdir(path):
        return next(strips(path, [Window(None, None)]))
    with strict():
        naming, count = naming_in(path)
        indices = frame_indices(count, _STRIP)
        small = {index: _strip_frame(frame) for index, frame in read_frames(path, sorted(set(indices)), naming)}
        return _strip_jpeg([small[index] for index in indices])


def strips(path: str, windows: Sequence[Window]) -> Iterator[bytes]:
    """The film strip of each window of the video at `path`, which is decoded once; windows come in their order in time.

    Raises Corrupt, also after strips were yielded.
    """
    cv2.setNumThreads(1)
    wanted: List[List[int]] = []

    def choose(count: int) -> List[int]:
        for window in windows:
            if window.start is None or window.end is None:
                first, stop = 0, count
            elif times.starts is None:
                first = min(int(window.start * times.rate), count - 1)
                stop = min(max(int(round(window.end * times.rate)), first + 1), count)
            else:
                first, stop = times.shown(window.start, window.end)
            wanted.append([first + index for index in frame_indices(stop - first, _STRIP)])
        return sorted({index for indices in wanted for index in indices})

    with strict(reencode(path)):
        times = timeline(path) if any(window.end is not None for window in windows) else Timeline(0.0)
        small: Dict[int, np.ndarray] = {}
        for index, frame in read_video(path, choose):
            small[index] = _strip_frame(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
            while wanted and max(wanted[0]) <= index:
                yield _strip_jpeg([small[one] for one in wanted.pop(0)])
                small = {one: kept for one, kept in small.items() if wanted and one >= min(wanted[0])}


_STRIP = Protocol(segments=STRIP_FRAMES, sampling="uniform", crops="centre", short_side=STRIP_HEIGHT)


def _strip_frame(frame: np.ndarray) -> np.ndarray:
    width = max(1, round(frame.shape[1] * STRIP_HEIGHT / frame.shape[0]))
    return cv2.resize(frame, (width, STRIP_HEIGHT), interpolation=cv2.INTER_AREA)


def _strip_jpeg(frames: Sequence[np.ndarray]) -> bytes:
    done, jpeg = cv2.imencode(".jpg", cv2.hconcat(frames), [cv2.IMWRITE_JPEG_QUALITY, STRIP_QUALITY])
    if not done:
        raise Corrupt("no picture can be made of it")
    return jpeg.tobytes()

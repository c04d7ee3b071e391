"""Tensors of clips: a clip's frames resized, cropped and normalised exactly as mmaction2 0.24.1 does it.

The pixels of a tensor depend on the protocol, on how frames are called, on the decoders and on this code alone.
"""

import hashlib
import json
import mmap
import os
from collections import deque
from contextlib import closing
from typing import Any, Callable, Dict, Generator, List, Mapping, Optional, Sequence, Tuple, Union

import cv2
import numpy as np

from tsm.cli import Corrupt
from tsm.machine import workers_that_fit
from tsm.protocol import CROPS, Protocol, crop_boxes, frame_indices
from tsm.samples import Clip
from tsm.video.decode import VIDEO_DECODER, read_video, reencode
from tsm.video.frames import IMG, JPEG_DECODER, Naming, check_folder_of_frames, naming_in, read_frames, strict, unreadable
from tsm.workers import each

REVISION = 2  # to be raised with any change of frames.py, decode.py, clips.py or protocol.py that changes a tensor: they are made again


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


def empty_for(dtype: str, protocol: Protocol) -> Tuple[np.ndarray, np.ndarray]:
    """(an array as the file of a tensor holds it, of a dtype of TENSORS; the same as [frames, 3, size, size])."""
    if dtype != "uint8_nhwc":
        stored = np.empty(protocol.video_shape, dtype)
        return stored, stored
    stored = np.empty((protocol.frames, protocol.size, protocol.size, 3), np.uint8)
    return stored, stored.transpose(0, 3, 1, 2)


def resized(frame: np.ndarray, protocol: Protocol) -> np.ndarray:
    """A frame uint8 [H, W, 3] with its short side as the protocol has it."""
    height, width = frame.shape[:2]
    scale = protocol.short_side / min(width, height)
    size = int(width * scale + 0.5), int(height * scale + 0.5)  # rounded as mmcv.rescale_size does
    return cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)


def place_frame(image: np.ndarray, index: int, indices: Sequence[int], bgr: bool, protocol: Protocol,
                table: Optional[np.ndarray], out: np.ndarray) -> None:
    """Put a resized frame uint8 [H, W, 3] into all places of `out` [protocol.video_shape] whose index is its own.

    What several views share is computed once per distinct frame: decoding, the resize, the split into planes. Per view
    there is only the copy of a crop, through the table for float32, which costs no more than copying floats.
    """
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


def fill(path: str, frames: Optional[int], protocol: Protocol, table: Optional[np.ndarray], out: np.ndarray,
         naming: Optional[Naming] = IMG, sample: Callable[[int, Protocol], List[int]] = frame_indices,
         by_opencv: bool = False) -> None:
    """Fill `out` [protocol.video_shape], float32 with table_for()'s table or uint8 with None, from the clip at `path`.

    Raises Corrupt. OpenCV runs in one thread from here on: processes are the parallelism.

    Args:
        frames: how many a list says a folder holds; None of a video.
        naming: how a folder's frames are called; None takes a folder's as they are called, all of them.
        sample, by_opencv: choose the frames, and decode a video by OpenCV in any case; for finding faults.
    """
    cv2.setNumThreads(1)
    indices: List[int] = []

    def choose(count: int) -> List[int]:
        indices[:] = sample(count, protocol)
        return sorted(set(indices))

    folder = frames is not None or naming is None and os.path.isdir(path)
    with strict("" if folder else reencode(path)):
        if folder:
            named, count = (naming, frames) if naming and frames is not None else naming_in(path)
            check_folder_of_frames(path, count, named)
            read = read_frames(path, choose(count), named)
        else:
            read = read_video(path, choose, by_opencv)
        for index, frame in read:
            place_frame(resized(frame, protocol), index, indices, folder, protocol, table, out)


def as_video(frames: Union[Sequence[np.ndarray], Mapping[int, np.ndarray]], indices: Sequence[int], protocol: Protocol,
             dtype: str) -> np.ndarray:
    """The tensor [protocol.video_shape] of the frames at `indices` of those in memory, RGB uint8 [H, W, 3] after resized()."""
    out, table = np.empty(protocol.video_shape, dtype), table_for(dtype, protocol)
    for index in sorted(set(indices)):
        place_frame(frames[index], index, indices, False, protocol, table, out)
    return out


def decoded(
    clips: Mapping[int, Tuple[str, Optional[int]]], protocol: Protocol, dtype: str, count: int, naming: Optional[Naming] = IMG
) -> Generator[Tuple[int, Union[np.ndarray, Corrupt]], None, None]:
    """(key in `clips`, tensor [protocol.video_shape] of `dtype` or the Corrupt that says why not), in any order.

    A clip is its path and its frames, as in fill().

    Decoded in `count` processes, or as many as the memory holds tensors for, in memory: a tensor more than processes exists
    beside those that the caller keeps, and decoding waits while the caller does. The processes are forked before this returns,
    so call it before an engine starts its threads; close the iterator (contextlib.closing) to end them at once.
    """
    table, nbytes = table_for(dtype, protocol), protocol.nbytes(dtype)
    count = workers_that_fit(count, nbytes)
    # One place more than processes: each() hands out the next item before it yields the result of the last.
    places = [np.frombuffer(mmap.mmap(-1, nbytes), dtype).reshape(protocol.video_shape) for _ in range(count + 1)]
    free = deque(range(count + 1))

    def work(item: Tuple[int, int]) -> None:
        key, place = item
        fill(*clips[key], protocol, table, places[place], naming)

    def taken(results: Generator[Tuple[Any, Any], None, None]) -> Generator[Tuple[int, Union[np.ndarray, Corrupt]], None, None]:
        with closing(results):
            for (key, place), error in results:
                tensor = error if isinstance(error, Corrupt) else places[place].copy()
                free.append(place)
                yield key, tensor

    return taken(each(work, ((key, free.popleft()) for key in clips), min(count, max(1, len(clips)))))


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
            raise unreadable(error, "" if file == path else os.path.basename(file))
        facts.append((status.st_size, status.st_mtime_ns))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

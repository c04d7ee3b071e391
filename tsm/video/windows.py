"""Windows of long videos: their tensors, and film strips of them, each video decoded once and in turn."""

import functools
import os
from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np

from tsm.cli import Corrupt
from tsm.machine import free_memory
from tsm.protocol import Protocol, frame_indices
from tsm.video.clips import as_video, resized
from tsm.video.decode import Timeline, read_in_turn, reencode, timeline
from tsm.video.frames import Frame, naming_in, read_frames, strict

SMALLER = "pass a shorter --window or a longer --every"  # where windows take too much memory
ALWAYS_ROOM = 1 << 28  # bytes that the frames of a window may take however full the memory seems
STRIP_FRAMES, STRIP_HEIGHT, STRIP_QUALITY = 8, 112, 70  # of a film strip: frames, pixels, JPEG's scale
STRIP_WIDTH, STRIP_GREY = 149, 48  # pixels of a frame's place, 4:3, so that all strips are alike; what is beside a frame in it
_STRIP = Protocol(segments=STRIP_FRAMES, sampling="uniform", crops="centre", short_side=STRIP_HEIGHT)


class Window(NamedTuple):
    """A stretch of a video, from `start` to `end` in seconds; the whole of it where both are None."""

    start: Optional[float]
    end: Optional[float]


WHOLE = Window(None, None)


def windows_of(times: Timeline, length: float, stride: float) -> List[Tuple[Window, int, int]]:
    """(window, its first frame, the frame after its last) of a video, one window of `length` seconds every `stride` seconds.

    The last one ends with the video, so that its end is not lost; a video no longer than a window is one window. Windows are
    at least a frame long, and a frame apart.
    """
    rate, duration = times.rate, float(times.starts[-1])
    length, stride = max(length, 1 / rate), max(stride, 1 / rate)
    starts = [0.0]
    while starts[-1] + length < duration - 0.5 / rate:
        starts.append(min(starts[-1] + stride, duration - length))
    return [(Window(round(start, 3), round(min(start + length, duration), 3)),) + times.shown(start, start + length)
            for start in starts]


def windowed(
    path: str, length: float, stride: Optional[float], protocol: Protocol, dtype: str
) -> Iterator[Tuple[Window, np.ndarray]]:
    """(window, its tensor [protocol.video_shape]) for each of windows_of() a video, which is decoded once.

    A stride of None is half a window. The frames of a window are sampled as those of a clip. One tensor exists at a time,
    beside the resized frames of windows that are not complete; decoding waits while the caller does. Raises Corrupt, also
    after windows were yielded, and before the video is decoded if those frames would take more memory than there is.
    """
    cv2.setNumThreads(1)
    with strict(reencode(path)):
        times = _timed(path, stride)
        windows = windows_of(times, length, stride or length / 2)
        groups = [[first + index for index in frame_indices(stop - first, protocol)] for _, first, stop in windows]
        read = functools.partial(read_in_turn, path, count=times.frames)
        kept = _collected(read, groups, lambda frame: resized(frame, protocol))
        for (window, _, _), indices, frames in zip(windows, groups, kept):
            yield window, as_video(frames, indices, protocol, dtype)


def _timed(path: str, every: Optional[float]) -> Timeline:
    """A video's times; Corrupt where it has none, or its frames are further apart than `every` seconds."""
    if os.path.isdir(path):
        raise Corrupt("is a folder of frames, which have no time; --window, --every and online models are for videos")
    times = timeline(path)
    if not times.rate:
        raise Corrupt("does not say how many frames it has per second" + reencode(path))
    if every is not None and every * times.rate < 0.99:
        raise Corrupt("--every %g s is shorter than one of its frames, %.4f s; pass a longer one" % (every, 1 / times.rate))
    return times


def paced(path: str, every: Optional[float], protocol: Protocol) -> Iterator[Tuple[float, np.ndarray]]:
    """(seconds, frame RGB uint8 after resized()) of a video that an online model is shown: the frames that are shown at 0, `every`,
    2 * `every`, … seconds, or begin up to half a usual frame later, as times are rounded; for None those of a clip, the middles of
    its segments. Raises Corrupt, also after frames were yielded."""
    cv2.setNumThreads(1)
    with strict(reencode(path)):
        times = _timed(path, every)
        if every is None:
            indices = frame_indices(times.frames, protocol._replace(sampling="uniform"))
            shown = [(index, float(times.starts[index])) for index in indices]
        else:
            moments = [number * every for number in range(max(1, int(np.ceil(times.starts[-1] / every - 1e-6))))]
            shown = [(times.at(moment + 0.5 / times.rate), moment) for moment in moments]
        for index, frame in read_in_turn(path, sorted({index for index, _ in shown}), times.frames):
            image = resized(frame, protocol)
            while shown and shown[0][0] == index:
                yield shown.pop(0)[1], image


def _collected(
    read: Callable[[List[int]], Iterator[Frame]], groups: Sequence[Sequence[int]], small: Callable[[np.ndarray], np.ndarray]
) -> Iterator[Dict[int, np.ndarray]]:
    """{index: small(frame)} once for each group of indices, in their order in time, as soon as read() has given all of it.

    Kept are the frames of groups that are not complete. Corrupt where they take more bytes than the free memory may hold.
    """
    wanted = sorted({index for indices in groups for index in indices})
    needed = list(accumulate(map(min, reversed(groups)), min))[::-1]  # the first frame of a group and those after it
    most = max(bisect_right(wanted, max(indices)) - bisect_left(wanted, first) for indices, first in zip(groups, needed))
    kept: Dict[int, np.ndarray] = {}
    done = 0
    for index, frame in read(wanted):
        kept[index] = small(frame)
        if index == wanted[0] and most * kept[index].nbytes > max(free_memory() / 2, ALWAYS_ROOM):
            raise Corrupt("a window's frames take %.1f GB, more than half of the free memory; %s"
                          % (most * kept[index].nbytes / 1e9, SMALLER))
        while done < len(groups) and max(groups[done]) <= index:
            yield kept
            done += 1
            for passed in [one for one in kept if done == len(groups) or one < needed[done]]:
                del kept[passed]


def strips(path: str, windows: Sequence[Window]) -> Iterator[bytes]:
    """Film strips, JPEG, of windows of the video at `path`, which is decoded once, in their order in time; of a folder of frames of
    all of it. A strip has the middles of STRIP_FRAMES segments side by side. Raises Corrupt, also after strips were yielded."""
    cv2.setNumThreads(1)
    folder = os.path.isdir(path)
    with strict("" if folder else reencode(path)):
        if folder:
            naming, count = naming_in(path)
            spans, read = [(0, count)], functools.partial(read_frames, path, naming=naming)
        else:
            times = timeline(path)
            spans = [(0, times.frames) if window.start is None or window.end is None else times.shown(window.start, window.end)
                     for window in windows]
            read = functools.partial(read_in_turn, path, count=times.frames)
        groups = [[first + index for index in frame_indices(stop - first, _STRIP)] for first, stop in spans]
        for indices, small in zip(groups, _collected(read, groups, _strip_frame)):
            strip = cv2.hconcat([small[one] for one in indices])
            bgr = strip if folder else cv2.cvtColor(strip, cv2.COLOR_RGB2BGR)
            yield cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, STRIP_QUALITY])[1].tobytes()


def _strip_frame(frame: np.ndarray) -> np.ndarray:
    """The whole frame as large as its place in the strip allows."""
    scale = min(STRIP_HEIGHT / frame.shape[0], STRIP_WIDTH / frame.shape[1])
    width, height = (max(1, round(side * scale)) for side in (frame.shape[1], frame.shape[0]))
    x, y = (STRIP_WIDTH - width) // 2, (STRIP_HEIGHT - height) // 2
    place = np.full((STRIP_HEIGHT, STRIP_WIDTH, 3), STRIP_GREY, np.uint8)
    place[y : y + height, x : x + width] = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    return place

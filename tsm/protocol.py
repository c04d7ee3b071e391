"""The evaluation protocol of a TSM: which pixels a network is shown, and how its answers become a verdict.

One video is `frames` = crops x samples x segments images, the crop being the slow axis. A view is one crop of one
sample: `segments` frames in a row, among which the temporal shift acts. Source: mmaction2 0.24.1, the test_pipeline of
configs/recognition/tsm and the classes it names.
"""

import argparse
import functools
import re
import reprlib
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from tsm.cli import UserError, positive
from tsm.files import read_json

SAMPLINGS = {"uniform": 1, "twice": 2, "dense": 10}  # name: samples per video
CROPS = {"centre": 1, "three": 3, "ten": 10}  # name: crops per frame
DENSE_RANGE = 64  # frames that a sample of the dense sampling stretches over
BOUNDS = {  # the least and the most that a whole number of a protocol or a config may be
    "segments": (1, 1024), "short_side": (1, 4096), "size": (1, 4096), "classes": (2, 100000), "shift_div": (2, 1024),
    "depth": (1, 1024), "start_index": (0, 1000000),
}  # a softmax over 1 class says 1 of every video; a shift_div of 1 would shift every channel both ways
COLOURS = {"mean": (-1e6, 1e6), "std": (1e-6, 1e6)}  # likewise, of their numbers
segments = functools.partial(positive, high=BOUNDS["segments"][1])  # argparse type: frames of a view
MOVES: Dict[str, Tuple[Optional[int], Optional[int]]] = {  # kinds of shift: where the first and the second fold of the channels take
    # their values from: 1 the next frame, -1 the previous one, 0 the frame itself, None nowhere (they are 0). The rest stays.
    "bi": (1, -1),  # MIT's and mmaction2's
    "past1": (-1, 0), "past2": (-1, -1), "past1-zero": (-1, None),  # trained from the past alone; past1 is MIT's online demo
    "bi-still": (0, -1), "bi-zero": (None, -1),  # weights of bi run without what they were trained to see ahead
    "none": (0, 0), "reversed": (-1, 1), "next1": (1, 0), "next2": (1, 1),  # met by mistake
}
SHIFTS = ("bi", "past1", "past2", "past1-zero", "bi-still", "bi-zero")  # those that a network may be tested with
TENSORS = ("float32", "uint8", "uint8_nhwc")  # normalised; RGB 0..255; the same with the colours last, as a chip's AIPP takes it
FUSIONS = ("score", "prob")
# score: mean of the class scores of all views, then softmax (the Ascend guide)
# prob:  softmax per view, then mean over the views (mmaction2)


class Protocol(NamedTuple):
    """How a TSM is tested: what a tensor, a graph and a verdict must agree on. Sizes are in pixels."""

    segments: int = 8  # frames of a view
    sampling: str = "twice"  # of SAMPLINGS
    crops: str = "three"  # of CROPS
    short_side: int = 256  # after the resize
    size: int = 256  # side of a crop
    classes: int = 174
    mean: Tuple[float, ...] = (123.675, 116.28, 103.53)  # RGB, of values 0..255
    std: Tuple[float, ...] = (58.395, 57.12, 57.375)
    shift_div: int = 8  # one part in so many of the channels is a fold, of which the first two are shifted
    shift: str = "bi"  # of SHIFTS: how

    @property
    def causal(self) -> bool:
        """Whether no frame's scores depend on a later frame, so that frames can be computed as they come."""
        return 1 not in MOVES[self.shift]

    @property
    def views(self) -> int:
        """Views of a video."""
        return CROPS[self.crops] * SAMPLINGS[self.sampling]

    @property
    def frames(self) -> int:
        """Images of a video, over all its views."""
        return self.views * self.segments

    @property
    def frame_shape(self) -> Tuple[int, int, int]:
        """Shape of one image: (3, size, size)."""
        return (3, self.size, self.size)

    @property
    def view_shape(self) -> Tuple[int, ...]:
        """Shape of one view's tensor: (segments, 3, size, size)."""
        return (self.segments,) + self.frame_shape

    @property
    def video_shape(self) -> Tuple[int, ...]:
        """Shape of one video's tensor: (frames, 3, size, size)."""
        return (self.frames,) + self.frame_shape

    def pixels(self, dtype: str) -> "Protocol":
        """What a tensor of a dtype depends on: where two protocols are equal here, so are their tensors. Not the classes, not the
        shift; of uint8, which the model normalises, not the colours either."""
        same = self._replace(classes=SSV2.classes, shift_div=SSV2.shift_div, shift=SSV2.shift)
        return same if dtype == "float32" else same._replace(mean=SSV2.mean, std=SSV2.std)

    def nbytes(self, dtype: str) -> int:
        """Bytes of one video's tensor."""
        return int(np.prod(self.video_shape)) * (4 if dtype == "float32" else 1)


PIPELINES: Dict[str, Dict[str, Any]] = {  # the tests of mmaction2's TSM configs, by name
    "centre": {"sampling": "uniform", "crops": "centre", "size": 224},
    "three": {"sampling": "uniform", "crops": "three", "size": 256},
    "ten": {"sampling": "uniform", "crops": "ten", "size": 224},
    "twice-three": {"sampling": "twice", "crops": "three", "size": 256},
    "dense-centre": {"sampling": "dense", "crops": "centre", "size": 224},
    "dense-three": {"sampling": "dense", "crops": "three", "size": 256},
    "dense-ten": {"sampling": "dense", "crops": "ten", "size": 224},
}
CENTRE_VIEW: Dict[str, Any] = {"sampling": "uniform", "crops": "centre"}  # the facts of a protocol that leave one view
SSV2 = Protocol()  # TSM on Something-Something V2, as the Ascend guide and mmaction2 test it


def misfit(name: str, value: Any) -> str:
    """What is wrong with `value` as the fact of a protocol, or the number of a config, called `name`, as in `0; a whole number
    from 2 to 9 is needed`; empty where nothing is."""
    known = {"sampling": tuple(SAMPLINGS), "crops": tuple(CROPS), "shift": SHIFTS}.get(name)
    if known:
        fits, wanted = isinstance(value, str) and value in known, "one of " + ", ".join(known)
    elif name in COLOURS:
        least, most = COLOURS[name]
        fits = isinstance(value, (list, tuple)) and len(value) == 3 and all(
            type(number) in (int, float) and least <= number <= most for number in value)
        wanted = "a list of three numbers from %g to %g, one a colour," % (least, most)
    else:
        least, most = BOUNDS[name]
        fits, wanted = type(value) is int and least <= value <= most, "a whole number from %d to %d" % (least, most)
    return "" if fits else "%s; %s is needed" % (shown(value), wanted)


def shown(value: Any) -> str:
    """A value of a file in a few characters."""
    return value[:60] if isinstance(value, str) else reprlib.repr(value)


def frame_template(text: str) -> str:
    """argparse type: a template of file names with one number, in Python's % style or mmaction2's, -> the % style.

    img_%05d.jpg, img_{:05}.jpg and img_{:05d}.jpg are one.
    """
    braces = re.match(r"([^{}%]*)\{0?(?::(?:0(\d{1,2}))?d?)?\}([^{}%]*)$", text)
    percent = re.match(r"([^{}%]*)%(?:0(\d{1,2}))?d([^{}%]*)$", text)
    match = braces or percent
    if not match or "/" in text or "\0" in text:
        raise argparse.ArgumentTypeError("%r is not a file name with one number in it, as in img_%%05d.jpg or img_{:05}.jpg"
                                         % text)
    before, width, after = match.groups()
    return before + ("%%0%sd" % width if width else "%d") + after


def protocol_from(stated: Any, where: str) -> Protocol:
    """The protocol in a JSON object, as Protocol._asdict() gives it; other keys are left alone. Older files do not say their
    shift, which is bi. Raises UserError that names `where` and the fact that is missing or of the wrong kind."""
    facts = stated if isinstance(stated, dict) else {}
    values: List[Any] = []
    for name in Protocol._fields:
        value = facts.get(name, SSV2.shift if name == "shift" else None)
        wrong = misfit(name, value)
        if wrong:
            raise UserError("%s: its protocol has %s = %s; make it again" % (where, name, wrong))
        values.append(tuple(value) if isinstance(value, list) else value)
    protocol = Protocol(*values)
    if protocol.size > protocol.short_side:
        raise UserError("%s: its protocol takes crops of %d pixels from frames whose short side has %d; make it again"
                        % (where, protocol.size, protocol.short_side))
    return protocol


def read_protocol(path: str) -> Protocol:
    """The protocol in a file that TSM_checkpoint.py wrote; Something-Something V2's where `path` is empty."""
    return protocol_from(read_json(path), path) if path else SSV2


def differences(one: Protocol, other: Protocol) -> str:
    """What differs between two protocols, as in `segments 16, not 8`; empty where they are equal."""
    pairs = zip(one._fields, one, other)
    return "; ".join("%s %s, not %s" % (name, value, wanted) for name, value, wanted in pairs if value != wanted)


def frame_indices(frames: int, protocol: Protocol) -> List[int]:
    """The samples x segments frames of a clip of `frames` frames, from 0.

    uniform: the middles of the segments; twice: then also their starts (mmaction2's SampleFrames(clip_len=1,
    num_clips=segments, test_mode=True) without and with twice_sample). dense: every (64 // segments)-th frame from each
    of ten starts, evenly from the first frame to the last that leaves room for 64 (DenseSampleFrames, likewise). What
    runs over the end goes on from the first frame.
    """
    if protocol.sampling == "dense":
        last = max(0, frames - DENSE_RANGE)
        starts = np.linspace(0, last, SAMPLINGS["dense"]).astype(int)
        steps = np.arange(protocol.segments) * (DENSE_RANGE // protocol.segments)
        return [int(index) for index in ((starts[:, None] + steps) % frames).reshape(-1)]
    length = frames / protocol.segments  # of a segment, in frames
    middles = [int(k * length + length / 2) for k in range(protocol.segments)]
    begins = [int(k * length) for k in range(protocol.segments)]
    return middles + begins if protocol.sampling == "twice" else middles


def crop_boxes(width: int, height: int, protocol: Protocol) -> List[Tuple[int, int, bool]]:
    """The crops of a resized frame: of each the upper left corner, x and y in pixels, and whether it is mirrored, left for right.

    centre: the middle; three: left, right, middle of a wide frame, top, bottom, middle of a tall one; ten: the corners
    (upper left, upper right, lower left, lower right) and the middle, each followed by its mirror image (mmaction2's
    CenterCrop, ThreeCrop and TenCrop, with their roundings: a step is a whole number of pixels).
    """
    over_x, over_y = width - protocol.size, height - protocol.size
    if protocol.crops == "ten":
        x, y = over_x // 4, over_y // 4
        places = [(0, 0), (4 * x, 0), (0, 4 * y), (4 * x, 4 * y), (2 * x, 2 * y)]
        return [(left, top, mirrored) for left, top in places for mirrored in (False, True)]
    x, y = over_x // 2, over_y // 2
    middle = (x, y, False)
    return [middle] if protocol.crops == "centre" else [(0, 0, False), (2 * x, 2 * y, False), middle]


def shifted(x: np.ndarray, segments: int, fold: int, shift: str = "bi") -> np.ndarray:
    """A temporal shift of MOVES of x [views * segments, C, H, W], by its definition (bi: Lin et al., ICCV 2019).

    Where a view has no next or previous frame the channels are 0.
    """
    views = x.reshape((-1, segments) + x.shape[1:])
    out = views.copy()
    for place, step in enumerate(MOVES[shift]):
        source, moved = views[:, :, place * fold : (place + 1) * fold], out[:, :, place * fold : (place + 1) * fold]
        if step != 0:
            moved[:] = 0
        if step == 1:
            moved[:, :-1] = source[:, 1:]
        elif step == -1:
            moved[:, 1:] = source[:, :-1]
    return out.reshape(x.shape)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in float64."""
    raised = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def fuse(view_scores: np.ndarray, views: int, fusion: str) -> np.ndarray:
    """Class scores per view, [videos * views, classes] -> probabilities [videos, classes] float64, by the definition."""
    scores = view_scores.astype(np.float64).reshape(-1, views, view_scores.shape[-1])
    return softmax(scores.mean(1)) if fusion == "score" else softmax(scores).mean(1)

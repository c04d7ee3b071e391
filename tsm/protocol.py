"""The evaluation protocol of TSM on Something-Something V2, and the text files that carry it between scripts.

Source: mmaction2 0.24.1, configs/recognition/tsm/tsm_r50_1x1x8_50e_sthv2_rgb.py (test_pipeline) and the classes it
names. One video is 48 images = 3 crops x 2 samples x 8 segments, the crop being the slow axis.
"""

import hashlib
import os
from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np

from tsm.cli import UserError
from tsm.files import read_json

SEGMENTS = 8  # frames that one view spans; the temporal shift acts among them
SAMPLES = 2  # twice_sample: the middles of the segments, then their starts
CROPS = 3  # left, right, middle (or top, bottom, middle)
VIEWS = CROPS * SAMPLES
FRAMES = VIEWS * SEGMENTS  # 48
SIZE = 256  # short side after the resize, and side of a crop, in pixels
CLASSES = 174
SHIFT_DIV = 8  # one eighth of the channels is shifted each way
SHIFTS = 16  # shifted blocks in a ResNet-50
MEAN = (123.675, 116.28, 103.53)  # RGB, of values 0..255
STD = (58.395, 57.12, 57.375)
VIDEO_SHAPE = (FRAMES, 3, SIZE, SIZE)  # one video, NCHW
VIDEO_VALUES = FRAMES * 3 * SIZE * SIZE

FUSIONS = ("score", "prob")
# score: mean of the class scores of all 48 frames, then softmax (the Ascend guide: top-1 0.6187, top-5 0.8721)
# prob:  softmax per view, then mean over the 6 views (mmaction2: top-1 0.6182, top-5 0.8680)


def frame_indices(frames: int) -> List[int]:
    """The SAMPLES x SEGMENTS frames of a clip of `frames` frames, from 0: the middles of its segments, then their starts.

    mmaction2's SampleFrames(clip_len=1, num_clips=8, twice_sample=True, test_mode=True).
    """
    segment = frames / SEGMENTS
    middles = [int(k * segment + segment / 2) for k in range(SEGMENTS)]
    return middles + [int(k * segment) for k in range(SEGMENTS)]


def softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in float64."""
    raised = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def fuse(view_scores: np.ndarray, fusion: str) -> np.ndarray:
    """Class scores per view, [videos * VIEWS, classes] -> probabilities [videos, classes] float64, by the definition."""
    views = view_scores.astype(np.float64).reshape(-1, VIEWS, view_scores.shape[-1])
    return softmax(views.mean(1)) if fusion == "score" else softmax(views).mean(1)


class Clip(NamedTuple):
    """A line of an annotation list: `source` is a video file, or a folder of `frames` frames, under the data root."""

    line: int
    source: str
    frames: Optional[int]  # None for a video
    label: int


def read_list(path: str) -> List[Clip]:
    """The clips of an annotation list, `<file> <label>` or `<folder> <frames> <label>` per line, in its order.

    Empty lines do not count. Raises UserError naming file and line for anything else, a label that is no class, and a
    source outside the data root.
    """
    clips = []  # type: List[Clip]
    width = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            words = raw.lstrip(b"\xef\xbb\xbf").split() if number == 1 else raw.split()
            if not words:
                continue
            where = "%s, line %d" % (path, number)
            width = width or len(words)
            if len(words) != width or width not in (2, 3) or not all(_is_count(word) for word in words[1:]):
                raise UserError("%s: expected '%s', found %r; mend the line"
                                % (where, _COLUMNS.get(width, _ANY_COLUMNS), raw[:80]))
            source, label = os.fsdecode(words[0]), int(words[-1])
            if label >= CLASSES:
                raise UserError("%s: label %d is not one of the %d classes; mend the line"
                                % (where, label, CLASSES))
            if os.path.isabs(source) or ".." in source.split(os.sep) or "\0" in source:
                raise UserError("%s: %s is not a path inside the data root; mend the line" % (where, source))
            if width == 3 and not int(words[1]):
                raise UserError("%s: a clip of 0 frames; take the line out" % where)
            clips.append(Clip(number, source, int(words[1]) if width == 3 else None, label))
    if not clips:
        raise UserError("%s: no videos in it; make it with TSM_dataset.py" % path)
    return clips


_COLUMNS = {2: "<file> <label>", 3: "<folder> <frames> <label>"}
_ANY_COLUMNS = "' or '".join(_COLUMNS.values())


def _is_count(word: bytes) -> bool:
    return word.isdigit() and len(word) < 7


def read_info(path: str) -> Dict[int, int]:
    """sthv2.info -> {index: label}. One line per video, `<index> <label>`; raises UserError naming file and line."""
    labels = {}  # type: Dict[int, int]
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            words = line.split()
            where = "%s, line %d" % (path, number)
            if not words:
                continue
            if len(words) != 2 or not all(word.isdigit() and len(word) < 10 for word in words):
                raise UserError("%s: expected '<index> <label>', found %r" % (where, line[:80]))
            index, label = int(words[0]), int(words[1])
            if label >= CLASSES:
                raise UserError("%s: label %d is not one of the %d classes" % (where, label, CLASSES))
            if index in labels:
                raise UserError("%s: index %d stands there twice" % (where, index))
            labels[index] = label
    if not labels:
        raise UserError("%s: no videos in it; run TSM_preprocess.py first" % path)
    return labels


def manifest_path(info_path: str) -> str:
    """sthv2/sthv2.info -> sthv2/sthv2.json, the manifest beside it."""
    return os.path.splitext(info_path)[0] + ".json"


def read_manifest(path: str) -> Dict[str, Any]:
    """The manifest of TSM_preprocess.py (sthv2.json); UserError where it is something else."""
    manifest = read_json(path)
    try:
        for entry in manifest["samples"]:
            if not (isinstance(entry["id"], int) and isinstance(entry["bytes"], int)):
                raise TypeError
            os.path.basename(entry["file"]) + entry["sha256"] + entry["source"]
        manifest["protocol"]["dtype"], manifest["versions"], len(manifest["skipped"])
    except (KeyError, TypeError, AttributeError):
        raise UserError("%s: not a manifest of TSM_preprocess.py; run it again" % path)
    return manifest


def check_folder(manifest: Dict[str, Any], folder: str, manifest_file: str) -> None:
    """UserError that names the first .bin file of `folder` that the manifest has not, or the other way round."""
    listed = {os.path.basename(entry["file"]) for entry in manifest["samples"]}
    there = {name for name in os.listdir(folder) if name.endswith(".bin") and not name.startswith(".")}
    for names, what in ((there - listed, "is not in"), (listed - there, "is missing, though it is in")):
        if names:
            raise UserError("%s %s %s; run TSM_preprocess.py again"
                            % (os.path.join(folder, min(names)), what, manifest_file))


def check_tensor(entry: Dict[str, Any], data: np.ndarray, path: str) -> None:
    """UserError unless `data` has the length and the SHA-256 that the manifest's entry gives."""
    if data.nbytes != entry["bytes"]:
        raise UserError("%s: %d bytes instead of %d; run TSM_preprocess.py again" % (path, data.nbytes, entry["bytes"]))
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise UserError("%s: its checksum is not the manifest's: it was changed; run TSM_preprocess.py again" % path)

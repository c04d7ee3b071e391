"""The evaluation protocol of TSM on Something-Something V2, and the text files that carry it between scripts.

Source: mmaction2 0.24.1, configs/recognition/tsm/tsm_r50_1x1x8_50e_sthv2_rgb.py (test_pipeline) and the classes it
names. One video is 48 images = 3 crops x 2 samples x 8 segments, the crop being the slow axis.
"""

import os
from typing import Dict

from tsm.cli import UserError

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



"""The other side of bench/preprocess.py: mmaction2's own dataset, in its own Python, timed on request.

    python3.7 bench/mmaction2_dataset.py video|rawframes DATA_ROOT ANN_FILE FOLDER

For every line on stdin, computes and writes (to FOLDER) each video of the list once, and answers with a line of JSON: the
seconds of computing and of writing, per video. Also prints each tensor's SHA-256 when that line is "sha256".
"""

import hashlib
import json
import os
import sys
import time

import cv2
import numpy as np
import torch
from mmaction.datasets import build_dataset


def dataset(kind, data_root, ann_file):
    """The test dataset of configs/recognition/tsm/tsm_r50_1x1x8_50e_sthv2_rgb.py, without the conversion to torch."""
    decode = [dict(type="RawFrameDecode")] if kind == "rawframes" else [dict(type="DecordDecode")]
    return build_dataset(dict(
        type="RawframeDataset" if kind == "rawframes" else "VideoDataset", ann_file=ann_file, data_prefix=data_root,
        test_mode=True,
        pipeline=([] if kind == "rawframes" else [dict(type="DecordInit")]) + [
            dict(type="SampleFrames", clip_len=1, frame_interval=1, num_clips=8, twice_sample=True, test_mode=True),
        ] + decode + [
            dict(type="Resize", scale=(-1, 256)),
            dict(type="ThreeCrop", crop_size=256),
            dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_bgr=False),
            dict(type="FormatShape", input_format="NCHW"),
            dict(type="Collect", keys=["imgs", "label"], meta_keys=[]),
        ]))


def main():
    kind, data_root, ann_file, folder = sys.argv[1:]
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    videos = dataset(kind, data_root, ann_file)
    for line in sys.stdin:
        spent, digests = [0.0, 0.0], []
        for number in range(len(videos)):
            start = time.perf_counter()
            images = np.ascontiguousarray(videos[number]["imgs"])
            computed = time.perf_counter()
            if line.strip() == "sha256":
                digests.append(hashlib.sha256(images).hexdigest())
                continue
            images.tofile(os.path.join(folder, "%d.bin" % number))
            spent[0] += computed - start
            spent[1] += time.perf_counter() - computed
        print(json.dumps(digests or [seconds / len(videos) for seconds in spent]), flush=True)


if __name__ == "__main__":
    main()

"""The other side of bench/preprocess.py: mmaction2's own dataset, in its own Python, timed on request.

    python3.7 bench/mmaction2_dataset.py video|rawframes DATA_ROOT ANN_FILE FOLDER

For every line on stdin, computes each video of the list once and answers with a line of JSON. "dataset": seconds of
computing and of writing to FOLDER, per video. "loader": the same through a DataLoader with one worker, which is how the
guide's script gets at the dataset. "sha256": each tensor's checksum.
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
from torch.utils.data import DataLoader


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
        if line == "sha256\n":
            print(json.dumps([hashlib.sha256(np.ascontiguousarray(video["imgs"])).hexdigest() for video in videos]), flush=True)
            continue
        source = videos if line == "dataset\n" else DataLoader(videos, num_workers=1)
        writing, start = 0.0, time.perf_counter()
        for number, video in enumerate(source):
            images = np.ascontiguousarray(video["imgs"])  # FormatShape only asks for the layout: here it is made
            path = os.path.join(folder, "%d.bin" % number)
            computed = time.perf_counter()
            if os.path.exists(path):  # a new file each time, as in a first run; taking the old one away is not counted
                os.remove(path)
            start += time.perf_counter() - computed
            computed = time.perf_counter()
            images.tofile(path)
            writing += time.perf_counter() - computed
        total = time.perf_counter() - start
        print(json.dumps([(total - writing) / len(videos), writing / len(videos)]), flush=True)


if __name__ == "__main__":
    main()

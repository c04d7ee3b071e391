"""mmaction2's own model in PyTorch, for bench/inference.py: its published configuration, its weights, in its own Python.

    python3.7 bench/mmaction2_eager.py CHECKPOINT

Says what it runs on as a line of JSON; then, for every number on stdin, computes that many videos [1, 48, 3, 256, 256] of
random values and answers with the seconds per video.
"""

import json
import os
import sys
import time

import mmaction
import mmcv
import numpy as np
import torch
from mmaction.models import build_model
from mmcv.runner import load_checkpoint

config = mmcv.Config.fromfile(os.path.join(os.path.dirname(mmaction.__file__), ".mim", "configs", "recognition", "tsm",
                                           "tsm_r50_1x1x8_50e_sthv2_rgb.py"))
config.model.backbone.pretrained = None
model = build_model(config.model, test_cfg=config.get("test_cfg"))
load_checkpoint(model, sys.argv[1], map_location="cpu")
model.eval()
torch.set_num_threads(len(os.sched_getaffinity(0)))
video = torch.from_numpy(np.random.RandomState(0).standard_normal((1, 48, 3, 256, 256)).astype(np.float32))
with torch.no_grad():
    model(imgs=video, return_loss=False)
    print(json.dumps("mmaction2 %s, PyTorch %s" % (mmaction.__version__, torch.__version__)), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            model(imgs=video, return_loss=False)
        print(json.dumps((time.perf_counter() - start) / int(line)), flush=True)

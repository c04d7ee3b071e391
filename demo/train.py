#!/usr/bin/env python3
"""Regenerate the demo: train the thin TSM on rendered clips, or render the clips that the chain is run on.

    python3 demo/train.py weights     # -> demo/tsm_thin.pth, some 10 minutes on 2 cores
    python3 demo/train.py clips       # -> demo/videos/*.webm, demo/annotations/…-validation.json, a few seconds

Both are functions of SEED. The clips come from a stream of random numbers that training never draws from. Training
renders on the fly, at several resolutions, the eight frames of one view in one of the three crops, as the evaluation
protocol takes them (tsm/protocol.py), with JPEG in place of the video codec; the last steps are at the protocol's 256
pixels alone, so that batch normalisation ends with its statistics.
"""

import argparse
import os
import sys
import time
from typing import Iterator, Tuple

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]

from tsm.cli import UserError, parser, run  # noqa: E402

# isort: split
import cv2  # noqa: E402
import numpy as np  # noqa: E402
from numpy.random import RandomState  # noqa: E402
from render import TEMPLATES, label_index, render, shape_and_length  # noqa: E402

from tsm.files import read_json, replacing, write_json  # noqa: E402
from tsm.protocol import SSV2  # noqa: E402

SEED = 20261124
CLIPS_PER_CLASS = 4
FIRST_ID = 74225  # ids look like the dataset's: numbers, in no special order
WIDTH = 8  # channels of the thin network's stem; ResNet-50 has 64
STEPS = 1250
PHASES = (  # (until this share of the steps, short side in pixels, clips of a batch): small and quick first
    (0.48, 64, 20),
    (0.72, 96, 16),
    (0.88, 160, 10),
    (1.0, SSV2.size, 6),
)
PEAK_RATE = 3e-3
RESIDUAL_GAIN = 0.2  # of each block at the start: without it so thin and deep a network learns nothing
LABELS = os.path.join(HERE, "annotations", "something-something-v2-labels.json")


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("what", choices=("weights", "clips"))
    cli.add_argument("--output_dir", default=HERE, help="where tsm_thin.pth, or videos/ and annotations/, go (default: "
                     "beside this script)")
    cli.add_argument("--steps", type=int, default=STEPS, help="training steps (default: %(default)s)")
    return cli.parse_args()


def view(rng: RandomState, template: str, side: int) -> np.ndarray:
    """The frames of one view, RGB uint8 [segments, side, side, 3], of a freshly rendered clip."""
    height, width, frames = shape_and_length(rng)
    scale = side / min(height, width)
    height, width = int(height * scale + 0.5), int(width * scale + 0.5)
    share = frames / SSV2.segments
    offset = (0.0, share / 2)[rng.randint(2)]  # twice_sample: the starts of the segments, or their middles
    times = (np.arange(SSV2.segments) * share + offset).astype(int) / (frames - 1)
    images = render(rng, template, height, width, times)
    top, left = ((np.array([height, width]) - side) // 2 * rng.randint(3)).tolist()
    crop = [image[top : top + side, left : left + side] for image in images]
    if side > PHASES[0][1] and rng.rand() < 0.7:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.randint(25, 90))]
        crop = [np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)) for image in crop]
    return np.stack(crop)[..., ::-1]


def batches(steps: int) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """Normalised views float32 [clips, segments, 3, side, side] and class indices int64 [clips], one batch a step."""
    index = label_index(read_json(LABELS))
    for step in range(steps):
        rng = RandomState([SEED, step])
        side, clips = next((side, clips) for share, side, clips in PHASES if step < share * steps)
        chosen = [TEMPLATES[number % len(TEMPLATES)] for number in rng.permutation(20)[:clips]]
        pixels = np.stack([view(rng, template, side) for template in chosen]).astype(np.float32)
        images: np.ndarray = (pixels - np.array(SSV2.mean, np.float32)) / np.array(SSV2.std, np.float32)
        yield images.transpose(0, 1, 4, 2, 3).copy(), np.array([index[template] for template in chosen])


def train(path: str, steps: int) -> None:
    """Train the thin network and write its state dict, in half precision, to `path`."""
    import torch
    from tqdm import tqdm

    from tsm.model.network import TSM

    class Batches(torch.utils.data.IterableDataset):
        def __iter__(self):
            cv2.setNumThreads(0)
            return batches(steps)

    torch.manual_seed(SEED)
    net = TSM(SSV2, WIDTH).train()
    for name, module in net.named_modules():
        if name.endswith("conv3.bn"):
            torch.nn.init.constant_(module.weight, RESIDUAL_GAIN)
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.05)
    loader = torch.utils.data.DataLoader(Batches(), batch_size=None, num_workers=1, prefetch_factor=4)
    start, average = time.time(), None
    bar = tqdm(loader, total=steps, desc="training")
    for step, (images, labels) in enumerate(bar):
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        average = loss.item() if average is None else 0.97 * average + 0.03 * loss.item()
        bar.set_postfix(loss="%.3f" % average, refresh=False)
        if step % 100 == 99:
            print("step %d  loss %.3f  %.0f s" % (step + 1, average, time.time() - start), flush=True)
    state = {key: value.half() if value.is_floating_point() else value for key, value in net.state_dict().items()}
    with replacing(path) as part:
        torch.save(state, part)


def write_clip(path: str, rng: RandomState, template: str) -> None:
    """Render one clip and write it as VP8 in WebM, small rather than pretty."""
    try:
        import av  # OpenCV's writer has no say in the bit rate
    except ImportError:
        raise UserError("av: needed to write the clips; pip install av")
    height, width, frames = shape_and_length(rng)
    with replacing(path) as part, av.open(part, "w", format="webm", options={"fflags": "+bitexact"}) as file:
        stream = file.add_stream("libvpx", rate=12, width=width, height=height, pix_fmt="yuv420p")
        stream.bit_rate = 90000
        stream.options = {"crf": "30", "qmin": "10", "qmax": "55", "threads": "1", "deadline": "good"}
        for image in render(rng, template, height, width, np.arange(frames) / (frames - 1)):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        file.mux(stream.encode())


def write_clips(folder: str) -> None:
    """Render the clips the chain is run on, with their annotations in the dataset's own form."""
    videos, annotations = os.path.join(folder, "videos"), os.path.join(folder, "annotations")
    os.makedirs(videos, exist_ok=True)
    os.makedirs(annotations, exist_ok=True)
    order = RandomState([SEED, 1 << 31]).permutation(CLIPS_PER_CLASS * len(TEMPLATES))
    entries = []
    for place, number in enumerate(order):
        template = TEMPLATES[number % len(TEMPLATES)]
        name = str(FIRST_ID + 37 * place)
        write_clip(os.path.join(videos, name + ".webm"), RandomState([SEED, 1 << 31, int(number)]), template)
        things = ["a rendered thing"] * template.lower().count("something")
        marked = template.replace("something", "[something]")
        label = template.lower().replace("something", "a rendered thing")
        entries.append({"id": name, "label": label, "template": marked, "placeholders": things})
    write_json(os.path.join(annotations, "something-something-v2-validation.json"), entries)


def main() -> None:
    args = get_args()
    if args.what == "weights":
        train(os.path.join(args.output_dir, "tsm_thin.pth"), args.steps)
    else:
        write_clips(args.output_dir)


if __name__ == "__main__":
    run(main)

#!/usr/bin/env python3
"""Regenerate the demo: train the thin TSM on rendered clips, or render the clips that the chain is run on.

    python3 demo/train.py weights                  # -> demo/tsm_thin.pth, some 10 minutes on 2 cores
    python3 demo/train.py weights --shift past1    # -> demo/tsm_thin_uni.pth, for online models; from the above, some minutes
    python3 demo/train.py clips                    # -> demo/videos/*.webm, demo/annotations/…-validation.json, a few seconds

All are functions of SEED. The clips come from a stream of random numbers that training never draws from. Training
renders on the fly, at several resolutions, the eight frames of one view in one of the three crops, as the evaluation
protocol takes them (tsm/protocol.py), with JPEG in place of the video codec; the last steps are at the protocol's 256
pixels alone, so that batch normalisation ends with its statistics. Weights for online models are averaged over the steps, and
batch normalisation is measured anew for the average. At the end, top-1 on fresh clips is printed.

Weights of a shift from both sides are a start for one from the past alone: with the two folds of every residual stream
exchanged, the fold that comes from the past is the first, and the other one stays where it is (bi-still, exactly).
"""

import argparse
import os
import re
import sys
import time
from typing import Any, Dict, Iterator, NamedTuple, Sequence, Tuple

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]

from tsm.cli import UserError, parser, positive, run  # noqa: E402

# isort: split
import cv2  # noqa: E402
import numpy as np  # noqa: E402
from expand import ABOUT  # noqa: E402
from numpy.random import RandomState  # noqa: E402
from render import TEMPLATES, label_index, render, shape_and_length  # noqa: E402

from tsm.files import read_json, replacing, write_json  # noqa: E402
from tsm.protocol import SSV2, Protocol  # noqa: E402

SEED = 20261124
CLIPS_PER_CLASS = 4
FIRST_ID = 74225  # ids look like the dataset's: numbers, in no special order
WIDTH = 8  # channels of the thin network's stem; ResNet-50 has 64
STREAMS = {"clips": 1 << 31, "past1": 1 << 30, "fresh": 1 << 29, "settle": 1 << 28}  # of random numbers, beside those of the weights
FRESH, SETTLE = 200, 300  # clips that tell the accuracy at the end; those of which averaged weights take their statistics


class Recipe(NamedTuple):
    """How weights are trained: by AdamW, small and quick first."""

    steps: int
    rate: float  # the highest
    phases: Tuple[Tuple[float, int, int], ...]  # (until this share of the steps, short side in pixels, clips of a batch)
    average: float = 0.0  # of the weights over the steps: what stays of it at each step


RECIPES = {
    "bi": Recipe(1250, 3e-3, ((0.48, 64, 20), (0.72, 96, 16), (0.88, 160, 10), (1.0, SSV2.size, 6))),
    "past1": Recipe(240, 8e-4, ((0.25, 96, 16), (0.5, 160, 10), (1.0, SSV2.size, 8)), 0.97),
}
FINAL = Recipe(0, 0, ((1.0, SSV2.size, 10),))  # not trained by: the fresh clips, and those of SETTLE
FILES = {"bi": "tsm_thin.pth", "past1": "tsm_thin_uni.pth"}
SMALLEST = 64  # frames of this side are not compressed
RESIDUAL_GAIN = 0.2  # of each block at the start: without it so thin and deep a network learns nothing
LABELS = os.path.join(HERE, "annotations", "something-something-v2-labels.json")
# Weights that write, and that read, a residual stream: of a ResNet, and of MobileNetV2.
GIVES = (r"backbone\.conv1\.|\.conv3\.|\.downsample\.", r"backbone\.conv1\.|layer1\.0\.conv\.[01]\.|layer[2-7]\.\d+\.conv\.2\.")
TAKES = (r"\.conv1\.conv\.net\.weight|\.downsample\.conv\.weight|fc_cls\.weight",
         r"layer1\.0\.conv\.1\.conv\.weight|layer[2-7]\.\d+\.conv\.0\.(net\.)?conv\.weight|backbone\.conv2\.conv\.weight")


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("what", choices=("weights", "clips"))
    cli.add_argument("--shift", choices=tuple(RECIPES), default="bi", help="of the weights: from both sides, or the past "
                     "alone (default: bi)")
    cli.add_argument("--output_dir", default=HERE, help="where the weights, or videos/ and annotations/, go (default: "
                     "beside this script)")
    cli.add_argument("--steps", type=positive, metavar="N", help="training steps (default: 1250, from the past alone 240)")
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
    if side > SMALLEST and rng.rand() < 0.7:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.randint(25, 90))]
        crop = [np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)) for image in crop]
    return np.stack(crop)[..., ::-1]


def batches(shift: str, steps: int) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """Normalised views float32 [clips, segments, 3, side, side] and class indices int64 [clips], one batch a step."""
    index = label_index(read_json(LABELS))
    for step in range(steps):
        rng = RandomState([SEED, step] if shift == "bi" else [SEED, STREAMS[shift], step])
        side, clips = next((side, clips) for share, side, clips in RECIPES.get(shift, FINAL).phases if step < share * steps)
        chosen = [TEMPLATES[number % len(TEMPLATES)] for number in rng.permutation(20)[:clips]]
        pixels = np.stack([view(rng, template, side) for template in chosen]).astype(np.float32)
        images: np.ndarray = (pixels - np.array(SSV2.mean, np.float32)) / np.array(SSV2.std, np.float32)
        yield images.transpose(0, 1, 4, 2, 3).copy(), np.array([index[template] for template in chosen])


def exchanged(state: Dict[str, Any], protocol: Protocol = SSV2) -> Dict[str, Any]:
    """A state dict whose residual streams have their first two folds exchanged; the same network but for what is shifted where."""
    def swapped(value: Any, axis: int) -> Any:
        order, fold = np.arange(value.shape[axis]), value.shape[axis] // protocol.shift_div
        order[: 2 * fold] = np.roll(order[: 2 * fold], fold)
        return value.index_select(axis, torch.from_numpy(order))

    import torch

    found, mobile = dict(state), any(".conv.0." in key for key in state)
    for key, value in state.items():
        gives = re.search(GIVES[mobile], key) and value.dim()
        takes = re.search(TAKES[mobile], key)
        value = swapped(value, 0) if gives else value
        found[key] = swapped(value, 1) if takes else value
    return found


def top1(net: Any) -> float:
    """The share of FRESH clips that the network names, by one view each."""
    import torch

    net.eval()
    right = []
    with torch.no_grad():
        for images, labels in batches("fresh", FRESH // FINAL.phases[0][2]):
            right += (net(torch.from_numpy(images)).argmax(1).numpy() == labels).tolist()
    return sum(right) / len(right)


def train(path: str, shift: str, steps: int) -> None:
    """Train the thin network and write its state dict, in half precision, to `path`."""
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
    from tqdm import tqdm

    from tsm.checkpoint import reader
    from tsm.model.network import TSM

    class Batches(torch.utils.data.IterableDataset):
        def __iter__(self):
            cv2.setNumThreads(0)
            return batches(shift, steps)

    torch.manual_seed(SEED)
    net, rate = TSM(SSV2._replace(shift=shift), WIDTH).train(), RECIPES[shift].rate
    for name, module in net.named_modules():
        if name.endswith("conv3.bn"):
            torch.nn.init.constant_(module.weight, RESIDUAL_GAIN)
    if shift != "bi":
        net.load_state_dict(exchanged(reader.load(os.path.join(HERE, FILES["bi"]))[0]))
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    loader = torch.utils.data.DataLoader(Batches(), batch_size=None, num_workers=1, prefetch_factor=4)
    start, average, averaged = time.time(), None, AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(RECIPES[shift].average))
    bar = tqdm(loader, total=steps, desc="training")
    for step, (images, labels) in enumerate(bar):
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        averaged.update_parameters(net)
        average = loss.item() if average is None else 0.97 * average + 0.03 * loss.item()
        bar.set_postfix(loss="%.3f" % average, refresh=False)
        if step % 100 == 99:
            print("step %d  loss %.3f  %.0f s" % (step + 1, average, time.time() - start), flush=True)
    if RECIPES[shift].average:
        net = averaged.module  # type: ignore[assignment]
        update_bn((torch.from_numpy(images) for images, _ in batches("settle", SETTLE // FINAL.phases[0][2])), net)
    print("top-1 on %d fresh clips, one view each: %.3f" % (FRESH, top1(net)))
    state = {key: value.half() if value.is_floating_point() else value for key, value in net.state_dict().items()}
    reader.save(path, state, {"shift": shift, **({"about": ABOUT} if shift != "bi" else {})})


def write_clip(path: str, rng: RandomState, template: str) -> None:
    """Render one clip and write it."""
    height, width, frames = shape_and_length(rng)
    write_frames(path, render(rng, template, height, width, np.arange(frames) / (frames - 1)))


def write_frames(path: str, images: Sequence[np.ndarray]) -> None:
    """Write frames BGR uint8 [height, width, 3] as VP8 in WebM, small rather than pretty."""
    try:
        import av  # OpenCV's writer has no say in the bit rate
    except ImportError:
        raise UserError("av: needed to write the clips; pip install av")
    height, width = images[0].shape[:2]
    with replacing(path) as part, av.open(part, "w", format="webm", options={"fflags": "+bitexact"}) as file:
        stream = file.add_stream("libvpx", rate=12, width=width, height=height, pix_fmt="yuv420p")
        stream.bit_rate = 90000
        stream.options = {"crf": "30", "qmin": "10", "qmax": "55", "threads": "1", "deadline": "good"}
        for image in images:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        file.mux(stream.encode())


def write_clips(folder: str) -> None:
    """Render the clips the chain is run on, with their annotations in the dataset's own form."""
    videos, annotations = os.path.join(folder, "videos"), os.path.join(folder, "annotations")
    os.makedirs(videos, exist_ok=True)
    os.makedirs(annotations, exist_ok=True)
    order = RandomState([SEED, STREAMS["clips"]]).permutation(CLIPS_PER_CLASS * len(TEMPLATES))
    entries = []
    for place, number in enumerate(order):
        template = TEMPLATES[number % len(TEMPLATES)]
        name = str(FIRST_ID + 37 * place)
        write_clip(os.path.join(videos, name + ".webm"), RandomState([SEED, STREAMS["clips"], int(number)]), template)
        things = ["a rendered thing"] * template.lower().count("something")
        marked = template.replace("something", "[something]")
        label = template.lower().replace("something", "a rendered thing")
        entries.append({"id": name, "label": label, "template": marked, "placeholders": things})
    write_json(os.path.join(annotations, "something-something-v2-validation.json"), entries)


def main() -> None:
    args = get_args()
    if args.what == "weights":
        train(os.path.join(args.output_dir, FILES[args.shift]), args.shift, args.steps or RECIPES[args.shift].steps)
    else:
        write_clips(args.output_dir)


if __name__ == "__main__":
    run(main)

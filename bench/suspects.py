#!/usr/bin/env python3
"""Does TSM_compare.py --suspects name a mistake? Seeded mistakes, each alone, and sound runs, as a user has them: in the checkpoint, the
config, the list or a flag; every step is the suite's own script.

    python3 bench/suspects.py --work_dir /tmp/suspects      # a table of what was named; run again, it does what is missing

The networks are the demo's thin ResNet-50, trained on for small frames, so that a case takes about a minute: for 8 segments, for 16, and
for 20 classes, the demo's ten actions, each on reddish and on bluish clips, so that its answers depend on colour too; and a thin
MobileNetV2, trained from nothing on clips that are quickly learnt: of large or small cells, reddish or bluish, and brighter or darker with
time. The videos are rendered from seeds that no training draws. A mistake that costs a network less than COST of top-1 is no mistake
there: it is shown, and not counted.
"""

import argparse
import datetime
import json
import os
import runpy
import shutil
import sys
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path[:0] = [ROOT, os.path.join(ROOT, "demo")]

from tsm.cli import parser, positive, run  # noqa: E402

# isort: split
import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import train  # noqa: E402
from numpy.random import RandomState  # noqa: E402
from render import TEMPLATES, label_index, render, shape_and_length  # noqa: E402

from tsm.checkpoint.reader import load, save  # noqa: E402
from tsm.files import read_json, write_json, write_text  # noqa: E402
from tsm.machine import processor_name  # noqa: E402
from tsm.model.network import MOBILENETV2, TSM, blocks_of, network_of  # noqa: E402
from tsm.protocol import CENTRE_VIEW, SSV2, Protocol  # noqa: E402
from tsm.report import suspects  # noqa: E402, F401

SEED, SHORT, SIDE, COST = 20261128, 128, 112, 0.1
STEPS, BATCH, RATE = 40, 10, 6e-4  # of training on
FROM_NOTHING, LARGER, HIGH = 120, 16, 4e-3  # the same from nothing
KINDS, FIRST = 8, 6  # of cells(), and the class of the first
THIN_MOBILE, STEM = MOBILENETV2._replace(channels=(8, 8, 16, 24, 32, 48, 64, 128)), 8
MARGIN = 25  # of 0..255, by which a clip is reddish or bluish
THIN = os.path.join(ROOT, "demo/tsm_thin.pth")
LABELS = os.path.join(ROOT, "demo/annotations/something-something-v2-labels.json")
BASE = SSV2._replace(short_side=SHORT, size=SIDE, **CENTRE_VIEW)
COLOURED = 24  # classes, of which 20 are used
State = Dict[str, Any]
CONFIG = """img_norm_cfg = dict(mean=%(mean)s, std=%(std)s, to_bgr=False)
model = dict(
    type='Recognizer2D',
    backbone=dict(type='%(backbone)s', num_segments=%(segments)d, shift_div=%(shift_div)d),
    cls_head=dict(type='TSMHead', num_segments=%(segments)d, num_classes=%(classes)d))
test_pipeline = [
    dict(type='%(sample)s', clip_len=1, num_clips=%(segments)d, test_mode=True),
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(-1, %(short_side)d)),
    dict(type='CenterCrop', crop_size=%(size)d),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='FormatShape', input_format='NCHW')]
"""


class Mistake(NamedTuple):
    """What is done to a sound run: to its checkpoint, its config, its flags, or its list; and how the first row has to begin."""

    name: str
    where: str
    named: Tuple[str, ...]  # beginnings of a row's name, one of which is right; none: nothing is to be named
    weights: Callable[[State], None] = lambda state: None
    config: Dict[str, Any] = {}
    shift: str = ""
    labels: Callable[[int, int], int] = lambda label, classes: label


class Network(NamedTuple):
    name: str
    protocol: Protocol
    coloured: bool = False
    mobile: bool = False  # MobileNetV2, of the clips of cells()


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--work_dir", default="suspects", metavar="DIR", help="where the runs go (default: %(default)s)")
    cli.add_argument("--videos", type=positive, default=100, metavar="N", help="rendered (default: %(default)s)")
    cli.add_argument("--networks", nargs="*", default=[], choices=[one.name for one in NETWORKS], help="default: all")
    cli.add_argument("--only", nargs="*", default=[], metavar="NAME", help="mistakes, by the beginnings of their names")
    cli.add_argument("--table", action="store_true", help="only print the table of what was done")
    return cli.parse_args()


def bgr(state: State) -> None:
    state["backbone.conv1.conv.weight"] = state["backbone.conv1.conv.weight"].flip(1)


def of_bytes(state: State) -> None:
    """Weights that take x / 255 where the sound ones take (x - mean) / std."""
    mean, std = (torch.tensor(fact).reshape(1, 3, 1, 1) for fact in (BASE.mean, BASE.std))
    weight = state["backbone.conv1.conv.weight"]
    state["backbone.conv1.bn.running_mean"] = state["backbone.conv1.bn.running_mean"] + (weight * mean / std).sum((1, 2, 3))
    state["backbone.conv1.conv.weight"] = weight * 255 / std


def half_loaded(state: State) -> None:
    for name in state:
        if "layer3" in name and name.endswith(("running_mean", "running_var")):
            state[name] = torch.full_like(state[name], float(name.endswith("var")))


def as_text(label: int, classes: int) -> int:
    return sorted(range(classes), key=str).index(label)


def shuffled(label: int, classes: int) -> int:
    return int(RandomState(1).permutation(classes)[label])


NETWORKS = (
    Network("8 segments", BASE),
    Network("16 segments", BASE._replace(segments=16)),
    Network("colours", BASE._replace(classes=COLOURED), True),
    Network("MobileNetV2", BASE._replace(classes=COLOURED, short_side=73, size=64), mobile=True),
)
SOUND, OTHERS = "nothing", "nothing; other videos"
MISTAKES = (
    Mistake(SOUND, "", ()),
    Mistake(OTHERS, "", ()),
    Mistake("weights of BGR frames", "checkpoint", ("BGR",), bgr),
    Mistake("no mean and std", "config", ("ImageNet",), config={"mean": [0.0] * 3, "std": [1.0] * 3}),
    Mistake("weights of pixels divided by 255", "checkpoint", ("pixels divided by 255 alone",), of_bytes),
    Mistake("dense sampling", "config", ("frames at",), config={"sample": "DenseSampleFrames"}),
    Mistake("frames resized to 256 before the small crop", "config", ("crops of %(size)d",), config={"short_side": 256}),
    Mistake("shift past1 for weights of bi", "flag", ("shift bi",), shift="past1"),
    Mistake("weights of the other direction", "checkpoint", ("frames backwards",), lambda state: state.update(train.exchanged(state))),
    Mistake("shift_div 4 for weights of 8", "config", ("shift_div 8",), config={"shift_div": 4}),
    Mistake("labels counted from 1", "list", ("labels, each lowered",), labels=lambda label, classes: label + 1),
    Mistake("labels sorted as text", "list", ("labels, the numbers of the classes sorted as text",), labels=as_text),
    Mistake("labels in no order", "list", ("labels, the classes in another order",), labels=shuffled),
    Mistake("BatchNorm of layer3 as initialised", "checkpoint", ("BatchNorm",), half_loaded),
)


def forked(folder: str, work: Callable[[], None]) -> None:
    """Do the work in a process forked from this one, which has imported what is slow to import; what it prints goes to log.txt."""
    child = os.fork()
    if not child:
        status: Any = 1
        try:
            os.chdir(folder)
            output = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(output, number)
            work()
            status = 0
        except SystemExit as ended:
            status = ended.code
        finally:
            sys.stdout.flush()
            os._exit(status or 0)
    if os.waitpid(child, 0)[1]:
        with open(os.path.join(folder, "log.txt")) as file:
            raise SystemExit("%s: %s" % (folder, file.read()[-2000:]))


def script(folder: str, name: str, *args: object) -> None:
    """Run a script of the suite."""
    def work() -> None:
        sys.argv = [name] + list(map(str, args))
        runpy.run_path(os.path.join(ROOT, name), run_name="__main__")

    forked(folder, work)


def colour_of(frames: np.ndarray) -> int:
    """1 of reddish frames, RGB uint8 [..., 3], 0 of bluish ones, -1 of those between."""
    more = float(frames[..., 0].mean()) - float(frames[..., 2].mean())
    return int(more > 0) if abs(more) > MARGIN else -1


def class_of(template: str, frames: np.ndarray, network: Network) -> int:
    if not network.coloured:
        return label_index(read_json(LABELS))[template]
    return 2 + TEMPLATES.index(template) + len(TEMPLATES) * colour_of(frames)


def view(rng: RandomState, template: str, segments: int) -> np.ndarray:
    """The frames of a centre view, RGB uint8 [segments, SIDE, SIDE, 3], of a rendered clip, mostly as JPEG leaves them."""
    height, width, frames = shape_and_length(rng)
    scale = SHORT / min(height, width)
    height, width, share = int(height * scale + 0.5), int(width * scale + 0.5), frames / segments
    images = render(rng, template, height, width, (np.arange(segments) * share + share / 2).astype(int) / (frames - 1))
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    return compressed(rng, [np.ascontiguousarray(image[top : top + SIDE, left : left + SIDE]) for image in images])[..., ::-1]


def compressed(rng: RandomState, images: Sequence[np.ndarray]) -> np.ndarray:
    """Images uint8 [frames, H, W, 3], mostly as JPEG leaves them."""
    if rng.rand() < 0.7:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.randint(25, 90))]
        images = [np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)) for image in images]
    return np.stack(images)


def cells(rng: RandomState, kind: int, height: int, width: int, times: np.ndarray) -> List[np.ndarray]:
    """Frames BGR uint8 [height, width, 3] at times 0..1 of a clip of one of KINDS: cells large or small, reddish or bluish, brighter or
    darker with time."""
    small, red, darker = kind & 1, kind >> 1 & 1, kind >> 2
    count = [side * (22 if small else 7) // min(height, width) for side in (height, width)]
    tint = np.array([0.0, rng.uniform(-0.1, 0.1), rng.uniform(0.2, 0.35)])[:: 1 if red else -1]
    grey = cv2.resize(rng.uniform(0.5, 1, count), (width, height), interpolation=cv2.INTER_NEAREST)[..., None] * (0.65 + tint)
    low, high = rng.uniform(80, 110), rng.uniform(160, 220)
    return [np.clip(grey * (low + (high - low) * (1 - time if darker else time)) + rng.normal(0, 4, grey.shape), 0, 255).astype(np.uint8)
            for time in times]


def small(rng: RandomState) -> Tuple[int, int, int]:
    """shape_and_length() at half the size, even."""
    height, width, frames = shape_and_length(rng)
    return height // 4 * 2, width // 4 * 2, frames


def see_colours(state: State) -> None:
    """Give the thin network, whose answers do not depend on colours, a channel of relu(red - blue): the last of the stem and of every
    stage, which no block changes. Of its 20 classes ten want much of it, and ten little."""
    def set_row(layer: str, channel: int, bias: float = 0.0, **taps: float) -> None:
        state[layer + ".conv.weight"][-1] = 0
        for place, value in taps.items():
            state[layer + ".conv.weight"][-1, channel if place == "own" else "rgb".index(place)] = value
        for name, value in (("weight", float(bool(taps))), ("bias", bias), ("running_mean", 0.0), ("running_var", 1.0)):
            state["%s.bn.%s" % (layer, name)][-1] = value

    set_row("backbone.conv1", 0, (BASE.mean[0] - BASE.mean[2]) / BASE.std[0], r=1 / 49, b=-1 / 49)
    for name in [name for name in state if name.endswith((".conv1.conv.net.weight", ".downsample.conv.weight"))]:
        state[name][:, -1] = 0
    for name in [name for name in state if name.endswith((".conv3.conv.weight", ".downsample.conv.weight"))]:
        set_row(name[: -len(".conv.weight")], -1, **({"own": 1.0} if "downsample" in name else {}))
    for first, sign in ((2, -1), (2 + len(TEMPLATES), 1)):  # see class_of()
        state["cls_head.fc_cls.weight"][first : first + len(TEMPLATES), -1] = 8.0 * sign
        state["cls_head.fc_cls.bias"][first : first + len(TEMPLATES)] -= 8.0 * sign * MARGIN / 2 / BASE.std[0]


def untrained(network: Network) -> TSM:
    """The network that train_on() begins with."""
    torch.manual_seed(SEED)
    if network.mobile:
        net = TSM(network.protocol, STEM, structure=THIN_MOBILE)
        for _, block in blocks_of(net.backbone):
            if block.residual:
                torch.nn.init.constant_(block.conv[-1].bn.weight, train.RESIDUAL_GAIN)
        return net
    state = whole(THIN)
    if network.coloured:
        own = [label_index(read_json(LABELS))[template] for template in TEMPLATES]
        rows = torch.tensor([0, 0] + own + own + [0, 0])
        state.update({name: state[name][rows] for name in ("cls_head.fc_cls.weight", "cls_head.fc_cls.bias")})
        see_colours(state)
    return network_of(state, THIN, network.protocol)


def clips_of(network: Network, step: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """Normalised views float32 [clips, segments, 3, size, size] to train on, and their classes."""
    protocol, rng, clips, labels = network.protocol, RandomState([SEED, 1, step]), [], []
    for number in rng.permutation(LARGER if network.mobile else len(TEMPLATES))[: LARGER if network.mobile else BATCH]:
        if network.mobile:
            images = cells(rng, number % KINDS, protocol.size, protocol.size, (np.arange(protocol.segments) + 0.5) / protocol.segments)
            clips.append(compressed(rng, images)[..., ::-1])
            labels.append(FIRST + number % KINDS)
            continue
        clip = view(rng, TEMPLATES[number], protocol.segments)
        while network.coloured and colour_of(clip) < 0:
            clip = view(rng, TEMPLATES[number], protocol.segments)
        clips.append(clip)
        labels.append(class_of(TEMPLATES[number], clip, network))
    mean, std = (np.array(fact, np.float32) for fact in (protocol.mean, protocol.std))
    return torch.from_numpy(((np.stack(clips) - mean) / std).transpose(0, 1, 4, 2, 3).copy()), torch.tensor(labels)


def train_on(network: Network, path: str) -> None:
    """Train the demo's thin network on for another number of segments, or for colours, or MobileNetV2 from nothing, and write it to
    `path`."""
    net, steps, rate = untrained(network).train(), FROM_NOTHING if network.mobile else STEPS, HIGH if network.mobile else RATE
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        clips, labels = clips_of(network, step)
        loss = torch.nn.functional.cross_entropy(net(clips), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        print("step %d, loss %.3f" % (step, loss.item()), flush=True)
    save(path, net.state_dict(), {})


def whole(path: str) -> State:
    """The weights of a file, float32."""
    return {name: value.float() if value.is_floating_point() else value for name, value in load(path)[0].items()}


def of_cells(folder: str, count: int, stream: int) -> Dict[str, int]:
    """The classes of the videos of cells() of a stream; those that are missing are rendered."""
    truth = {}
    for number in range(count):
        name, rng = "cells%d.webm" % number, RandomState([SEED, stream, number])
        truth[name], (height, width, frames) = FIRST + number % KINDS, small(rng)
        if not os.path.exists(os.path.join(folder, name)):
            train.write_frames(os.path.join(folder, name), cells(rng, number % KINDS, height, width, np.linspace(0, 1, frames)))
    return truth


def written(folder: str, count: int, stream: int) -> Dict[str, Dict[str, int]]:
    """The classes of the videos of a stream by the name of each kind of network; those that are missing are rendered."""
    where = os.path.join(folder, "truth.json")
    if not os.path.exists(where):
        os.makedirs(folder, exist_ok=True)
        truth: Dict[str, Dict[str, int]] = {network.name: {} for network in NETWORKS if not network.mobile}
        number = 0
        while len(truth[NETWORKS[0].name]) < count:
            seeds, template = [SEED, stream, number], TEMPLATES[len(truth[NETWORKS[0].name]) % len(TEMPLATES)]
            number, rng = number + 1, RandomState(seeds)
            height, width, _ = small(rng)
            frames = np.stack(render(rng, template, height, width, np.linspace(0, 1, 4)))[..., ::-1]
            if colour_of(frames) >= 0:
                name = "%d.webm" % number
                train.write_clip(os.path.join(folder, name), RandomState(seeds), template)
                for network in [one for one in NETWORKS if one.name in truth]:
                    truth[network.name][name] = class_of(template, frames, network)
        write_json(where, truth)
    return dict(read_json(where))


def first_row(folder: str, network: Network, mistake: Mistake, weights: str, truth: Dict[str, int], videos: str) -> Dict[str, Any]:
    """What --suspects says of a run with a mistake: its first row and the verdict."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    state, protocol = whole(weights), network.protocol
    mistake.weights(state)
    save(os.path.join(folder, "weights.pth"), state, {})
    facts = dict(protocol._asdict(), sample="SampleFrames", mean=list(protocol.mean), std=list(protocol.std),
                 backbone="MobileNetV2TSM" if network.mobile else "ResNetTSM")
    write_text(os.path.join(folder, "config.py"), CONFIG % dict(facts, **mistake.config))
    write_text(os.path.join(folder, "list.txt"), "".join(
        "%s %d\n" % (name, mistake.labels(label, protocol.classes)) for name, label in truth.items()))
    shift = ["--shift", mistake.shift] if mistake.shift else []
    script(folder, "TSM_checkpoint.py", "weights.pth", "--config", "config.py", "--output", "protocol.json", *shift)
    script(folder, "pytorch2onnx.py", "weights.pth", "--protocol", "protocol.json", "--output-file", "tsm_bs1.onnx")
    script(folder, "modify_onnx.py", "-m1", "tsm_bs1.onnx", "-m2", "tsm_new_bs1.onnx", "--target", "cpu", "--protocol", "protocol.json")
    script(folder, "TSM_stream.py", "--model", "tsm_new_bs1.onnx", "--data_root", videos, "--ann_file", "list.txt", "--output",
           "./inference_result", "--output_dirname", "out")
    script(folder, "TSM_compare.py", "--suspects", ".", "--data_root", videos, "--checkpoint", "weights.pth", "--json", "s.json")
    found = read_json(os.path.join(folder, "s.json"))
    tried = [row for row in found["rows"] if not row["problem"]]
    return dict(found["rows"][0], verdict=found["verdict"], was=next(row["before"] for row in tried if row["videos"] >= 30))


def cell(found: Dict[str, Any], mistake: Mistake, network: Network, sound: float) -> Tuple[str, bool, bool]:
    """(what the table says of a case, whether it counts, whether it was told right)."""
    accused = not found["verdict"].startswith("no single change")
    right = found["change"].startswith(tuple(name % network.protocol._asdict() for name in mistake.named)) if mistake.named else not accused
    if mistake.named and sound - found["was"] < COST:
        return "costs nothing (%.2f)" % found["was"], False, True
    what = "%.2f -> %.2f, p %.0e" % (found["before"], found["after"], found["corrected"])
    if not found["videos"] or not accused:
        what = "%.2f%s" % (found["was"], "" if accused else ", none named")
    return what + ("" if right else "; WRONG: " + found["change"]), True, right


def table(folder: str) -> None:
    """Print what was found of all cases that were computed."""
    found = {name[: -len(".json")]: read_json(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}
    told = {True: [0, 0], False: [0, 0]}  # of mistakes, of sound runs: right, in all
    print("| mistake | it is in | %s |\n|---|---|%s" % (" | ".join(one.name for one in NETWORKS), "---|" * len(NETWORKS)))
    for mistake in MISTAKES:
        cells = []
        for network in NETWORKS:
            one = found.get(case(network, mistake))
            text, counts, right = cell(one, mistake, network, found[case(network, MISTAKES[0])]["was"]) if one else ("not run", False, True)
            told[bool(mistake.named)][0] += counts and right
            told[bool(mistake.named)][1] += counts
            cells.append(text)
        print("| %s | %s | %s |" % (mistake.name, mistake.where, " | ".join(cells)))
    print("\n%d of %d mistakes were named in the first row, " % tuple(told[True])
          + "%d of %d sound runs were not accused" % tuple(told[False]) + " (%s, %s)" % (datetime.date.today(), processor_name()))


def case(network: Network, mistake: Mistake) -> str:
    return "%s, %s" % (network.name, mistake.name)


def main() -> None:
    args = get_args()
    cv2.setNumThreads(1)  # no thread may exist when a process is forked
    torch.set_num_threads(1)
    train.shape_and_length = small  # of the clips that are written
    folder = os.path.abspath(args.work_dir)
    cases = os.path.join(folder, "cases")
    os.makedirs(cases, exist_ok=True)
    for network in [] if args.table else NETWORKS:
        if args.networks and network.name not in args.networks:
            continue
        weights = os.path.join(folder, network.name + ".pth")
        if not os.path.exists(weights):
            forked(folder, lambda network=network, weights=weights: train_on(network, weights))  # type: ignore[misc]
        for mistake in MISTAKES:
            other = mistake.name == OTHERS
            where = os.path.join(cases, case(network, mistake) + ".json")
            if os.path.exists(where) or other and network is NETWORKS[1] or not mistake.name.startswith(
                    tuple(args.only or [""])):
                continue
            videos = os.path.join(folder, "others" if other else "videos")
            os.makedirs(videos, exist_ok=True)
            stream = 3 if other else 2
            truth = of_cells(videos, args.videos, stream) if network.mobile else written(videos, args.videos, stream)[network.name]
            found = first_row(os.path.join(folder, "run%d" % os.getpid()), network, mistake, weights, truth, videos)
            write_json(where, found)
            print("%s: %s" % (case(network, mistake), json.dumps(found)), flush=True)
    table(cases)


if __name__ == "__main__":
    run(main)

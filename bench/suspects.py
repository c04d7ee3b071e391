#!/usr/bin/env python3
"""Does TSM_compare.py --suspects name a mistake? Seeded mistakes, each alone, on networks that depend on order, and one on colour.

    python3 bench/suspects.py --work_dir /tmp/suspects      # a table of what was named

The networks are the demo's thin ResNet-50 with 8 and with 16 segments, and the same with another classifier, of 20 classes: the demo's
ten actions, each on a reddish and on a bluish clip. That classifier is trained here, on rendered clips. The videos are rendered from
seeds that no training draws. Images are small (144 pixels), so that a case takes well under a minute.
"""

import argparse
import json
import os
import runpy
import shutil
import sys
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path[:0] = [ROOT, os.path.join(ROOT, "demo")]

from tsm.cli import parser, positive, run  # noqa: E402

# isort: split
import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from render import TEMPLATES, render, shape_and_length  # noqa: E402
from train import write_clip  # noqa: E402

from tsm.checkpoint.reader import load, save  # noqa: E402
from tsm.files import write_json  # noqa: E402
from tsm.model.network import network_of  # noqa: E402
from tsm.protocol import Protocol  # noqa: E402
from tsm.report import suspects  # noqa: E402, F401
from tsm.video.clips import as_video, resized  # noqa: E402

SEED, COLOURED = 20261128, 800  # of the rendered clips; clips that the classifier of colours is trained on
THIN = os.path.join(ROOT, "demo/tsm_thin.pth")
NAMES = os.path.join(ROOT, "demo/annotations/something-something-v2-labels.json")
BASE = Protocol(sampling="uniform", crops="centre", short_side=144, size=144)
State = Dict[str, Any]


class Mistake(NamedTuple):
    """What is done to a sound run: to its weights, its protocol, or its labels; and how the first row has to begin."""

    name: str
    named: Tuple[str, ...]  # beginnings of a row's name, one of which is right
    weights: Callable[[State], None] = lambda state: None
    protocol: Dict[str, Any] = {}
    labels: Callable[[int, int], int] = lambda label, classes: label
    of: str = ""  # the network that it is a mistake for; empty: all


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--work_dir", default="suspects", metavar="DIR", help="where the runs go (default: %(default)s)")
    cli.add_argument("--videos", type=positive, default=30, metavar="N", help="rendered (default: %(default)s)")
    cli.add_argument("--networks", nargs="*", default=[], choices=("8 segments", "16 segments", "colours"), help="default: all")
    cli.add_argument("--only", nargs="*", default=[], metavar="NAME", help="mistakes, by the beginnings of their names")
    return cli.parse_args()


def shifted_convs(state: State) -> List[str]:
    return [name for name in state if name.endswith("conv1.conv.net.weight")]


def bgr(state: State) -> None:
    state["backbone.conv1.conv.weight"] = state["backbone.conv1.conv.weight"].flip(1)


def of_bytes(state: State) -> None:
    """Weights that take x / 255 where the sound ones take (x - mean) / std."""
    mean, std = (torch.tensor(fact).reshape(1, 3, 1, 1) for fact in (BASE.mean, BASE.std))
    weight = state["backbone.conv1.conv.weight"].float()
    state["backbone.conv1.bn.running_mean"] = state["backbone.conv1.bn.running_mean"].float() + (weight * mean / std).sum((1, 2, 3))
    state["backbone.conv1.conv.weight"] = weight * 255 / std


def other_direction(state: State) -> None:
    for name in shifted_convs(state):
        fold = state[name].shape[1] // BASE.shift_div
        state[name] = torch.cat([state[name][:, fold : 2 * fold], state[name][:, :fold], state[name][:, 2 * fold :]], 1)


def half_loaded(state: State) -> None:
    for name in state:
        if "layer3" in name and name.endswith(("running_mean", "running_var")):
            state[name] = torch.full_like(state[name], float(name.endswith("var")))


def one_row(state: State) -> None:
    state["cls_head.fc_cls.weight"] = state["cls_head.fc_cls.weight"][:1].repeat(len(state["cls_head.fc_cls.weight"]), 1)


def as_text(label: int, classes: int) -> int:
    return sorted(range(classes), key=str).index(label)


def shuffled(label: int, classes: int) -> int:
    return int(np.random.RandomState(1).permutation(classes)[label])


MISTAKES = (
    Mistake("none (sound)", ()),
    Mistake("weights of BGR frames", ("BGR", "Caffe"), bgr, of="colours"),
    Mistake("no mean and std in the config", ("ImageNet",), protocol={"mean": (0.0,) * 3, "std": (1.0,) * 3}),
    Mistake("weights of pixels divided by 255", ("pixels divided by 255 alone",), of_bytes),
    Mistake("dense sampling in the config", ("frames at",), protocol={"sampling": "dense"}),
    Mistake("crops of 48 of a short side of 256", ("crops of",), protocol={"short_side": 256, "size": 48}),
    Mistake("shift past1 for weights of bi", ("shift bi",), protocol={"shift": "past1"}),
    Mistake("weights of the other direction", ("frames backwards",), other_direction),
    Mistake("shift_div 4 for weights of 8", ("shift_div 8",), protocol={"shift_div": 4}),
    Mistake("labels counted from 1", ("labels, each lowered",), labels=lambda label, classes: (label + 1) % classes),
    Mistake("labels sorted as text", ("labels, the numbers of the classes", "labels, the classes in another"), labels=as_text),
    Mistake("labels in no order", ("labels, the classes in another order",), labels=shuffled),
    Mistake("BatchNorm of layer3 as initialised", ("BatchNorm",), half_loaded),
    Mistake("rows of the classifier all equal", ("BatchNorm",), one_row),
)


def reddish(frames: np.ndarray) -> int:
    """1 if frames RGB [..., 3] have more red than blue, else 0."""
    return int(frames[..., 0].mean() > frames[..., 2].mean())


def clip(number: int, stream: int, smaller: int = 1) -> Tuple[np.ndarray, int]:
    """(frames RGB uint8 [segments, H, W, 3] of a rendered clip, its class among the 20). Nothing is decoded here, for decoders
    start threads, and script() forks."""
    rng = np.random.RandomState([SEED, stream, number])
    height, width, count = shape_and_length(rng)
    times = (np.arange(BASE.segments) + 0.5) / BASE.segments
    template = TEMPLATES[number % len(TEMPLATES)]
    frames = np.stack([image[..., ::-1] for image in render(rng, template, height // smaller, width // smaller, times)])
    return frames, 2 * (number % len(TEMPLATES)) + reddish(frames)


def of_colours(state: State) -> State:
    """The thin network with a classifier of 20 classes, trained on what its body says of COLOURED clips."""
    net = network_of(state, THIN, BASE, 8).eval()
    features, labels = [], []
    net.cls_head.fc_cls.register_forward_pre_hook(lambda module, x: features.append(x[0].reshape(-1, x[0].shape[-1]).mean(0)))
    with torch.no_grad():
        for number in range(COLOURED):
            frames, label = clip(number, 1, 2)
            small = [resized(np.ascontiguousarray(frame), BASE) for frame in frames]
            net(torch.from_numpy(as_video(small, range(len(small)), BASE, "float32"))[None])
            labels.append(label)
    x, y = torch.stack(features).numpy().astype(np.float64), np.array(labels)
    middle, wide, ones = x.mean(0), x.std(0) + 1e-6, np.eye(2 * len(TEMPLATES))[y]
    x = (x - middle) / wide
    weight = np.linalg.solve(x.T @ x + 3 * np.eye(x.shape[1]), x.T @ (ones - ones.mean(0))).T  # ridge regression on the classes
    print("classifier of colours: %.3f of its training clips" % ((x @ weight.T + ones.mean(0)).argmax(1) == y).mean(), flush=True)
    weight = 10 * weight / wide
    bias = 10 * ones.mean(0) - weight @ middle
    new = {"cls_head.fc_cls.weight": weight, "cls_head.fc_cls.bias": bias}
    return dict(state, **{name: torch.from_numpy(value).float() for name, value in new.items()})


def script(folder: str, name: str, *args: object) -> None:
    """Run a script of the suite in a process forked from this one, which has imported what is slow to import."""
    log = os.path.join(folder, "log.txt")
    child = os.fork()
    if not child:
        os.chdir(folder)
        output = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(output, number)
        sys.argv = [name] + list(map(str, args))
        status: Any = 1
        try:
            runpy.run_path(os.path.join(ROOT, name), run_name="__main__")
        except SystemExit as ended:
            status = ended.code
        finally:
            os._exit(status or 0)
    if os.waitpid(child, 0)[1]:
        with open(log) as file:
            raise SystemExit("%s in %s: %s" % (name, folder, file.read()[-2000:]))


def first_row(folder: str, mistake: Mistake, state: State, protocol: Protocol, truth: Dict[str, int], videos: str) -> Dict[str, Any]:
    """What --suspects says of a run with a mistake: its first row and the verdict."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    state = {name: value.clone() for name, value in state.items()}
    mistake.weights(state)
    save(os.path.join(folder, "weights.pth"), state, {})
    protocol = protocol._replace(**mistake.protocol)
    write_json(os.path.join(folder, "protocol.json"), protocol._asdict())
    with open(os.path.join(folder, "list.txt"), "w") as file:
        file.writelines("%s %d\n" % (name, mistake.labels(label, protocol.classes)) for name, label in truth.items())
    script(folder, "pytorch2onnx.py", "weights.pth", "--protocol", "protocol.json", "--output-file", "tsm_bs1.onnx")
    script(folder, "modify_onnx.py", "-m1", "tsm_bs1.onnx", "-m2", "tsm_new_bs1.onnx", "--target", "cpu", "--protocol", "protocol.json")
    script(folder, "TSM_stream.py", "--model", "tsm_new_bs1.onnx", "--data_root", videos, "--ann_file", "list.txt", "--output",
           "./inference_result", "--output_dirname", "out")
    computed = 1 if mistake.named[:1] and mistake.named[0].startswith(("labels", "BatchNorm")) else 200  # these need no computing
    script(folder, "TSM_compare.py", "--suspects", ".", "--data_root", videos, "--checkpoint", "weights.pth", "--json", "s.json",
           "--videos", computed)
    with open(os.path.join(folder, "s.json")) as file:
        found = json.load(file)
    return dict(found["rows"][0], verdict=found["verdict"])


def main() -> None:
    args = get_args()
    cv2.setNumThreads(1)  # no thread may exist when script() forks
    videos = os.path.join(os.path.abspath(args.work_dir), "videos")
    os.makedirs(videos, exist_ok=True)
    state = {name: value.float() if value.is_floating_point() else value for name, value in load(THIN)[0].items()}
    with open(NAMES) as file:
        numbers = {name: int(number) for name, number in json.load(file).items()}
    action, coloured = {}, {}
    for number in range(args.videos):
        name, template = "%d.webm" % number, TEMPLATES[number % len(TEMPLATES)]
        write_clip(os.path.join(videos, name), np.random.RandomState([SEED, 2, number]), template)
        action[name], coloured[name] = numbers[template], clip(number, 2)[1]
    networks = {"8 segments": (BASE, action), "16 segments": (BASE._replace(segments=16), action),
                "colours": (BASE._replace(classes=2 * len(TEMPLATES)), coloured)}
    for network in args.networks or networks:
        weights, (protocol, truth) = of_colours(state) if network == "colours" else state, networks[network]
        for mistake in MISTAKES:
            if mistake.of not in ("", network) or args.only and not mistake.name.startswith(tuple(args.only)):
                continue
            row = first_row(os.path.join(args.work_dir, "run"), mistake, weights, protocol, truth, videos)
            accused = not row["verdict"].startswith("no single change")
            right = row["change"].startswith(mistake.named) if mistake.named else not accused
            print("| %s | %s | %.3f | %s | %.3f | %.1e | %s |" % (
                mistake.name, network, row["before"], row["change"] if accused else "none named", row["after"], row["corrected"],
                "yes" if right and accused == bool(mistake.named) else "NO"), flush=True)


if __name__ == "__main__":
    run(main)

#!/usr/bin/env python3
"""The temporal shift in every form that was tried, on OpenVINO: what each costs over the same network without a shift.

    bench/run.sh forms        # makes what this needs, then runs it
    .venv/bin/python bench/forms.py --work_dir bench/work --forms parts blocks uint8 ones map    # those of the first convolution alone

Every form computes the same (checked here, on a random view, before it is timed). Each lives in a process of its own and
takes its turn in every round; the cost is the median over rounds of its time over that of the shift-free network.
"""

import argparse
import os
import sys
import time
from functools import partial
from statistics import median
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union
from unittest import mock

import numpy as np
from onnx import helper, numpy_helper
from turns import Way, answer, random_video, take_turns  # sets up the path to the suite

from tsm.cli import parser, positive, run
from tsm.files import write_json
from tsm.infer.engine import BACKENDS
from tsm.infer.int8 import calibration_views, quantise, tensors_of
from tsm.infer.tensors import list_inputs
from tsm.machine import processor_name
from tsm.model.graph import Graph, Shape, attributes, build, shift, trunk_of
from tsm.model.offline import read_offline
from tsm.protocol import SSV2

CALIBRATION = 4  # clips: for speed, not for accuracy
MEAN, STD = (np.array(values, np.float32).astype(np.float64).reshape(3, 1, 1) for values in (SSV2.mean, SSV2.std))


def split_for_shift(graph: Graph, x: str, name: str, channels: int) -> List[str]:
    """The channels of x [frames, C, H, W] that go ahead, that go behind, that stay."""
    fold = channels // SSV2.shift_div
    return graph.nodes("Split", [x], name + "/split", 3, axis=1, split=[fold, fold, channels - 2 * fold])


def pad(graph: Graph, x: str, name: str, shape: Shape) -> str:
    """One view: Split on C, Pad by +-1 on the frames, Concat on C."""
    ahead, behind, still = split_for_shift(graph, x, name, shape[0])
    ahead = graph.node("Pad", [ahead, graph.ints(-1, 0, 0, 0, 1, 0, 0, 0)], name + "/ahead")
    behind = graph.node("Pad", [behind, graph.ints(1, 0, 0, 0, -1, 0, 0, 0)], name + "/behind")
    return graph.node("Concat", [ahead, behind, still], name, axis=1)


pad_views = partial(shift, form="cpu", protocol=SSV2, batch=1)  # several views: the same on [views, segments, C, H * W]


def slice_concat(graph: Graph, x: str, name: str, shape: Shape) -> str:
    """One view: Slice of the frames, Concat with a frame of zeros."""
    channels, height, width = shape
    fold, segments = channels // SSV2.shift_div, SSV2.segments
    zeros = graph.constant("zeros_%dx%d" % (fold, height), np.zeros((1, fold, height, width), np.float32))
    ahead, behind, still = split_for_shift(graph, x, name, channels)
    ahead = graph.node("Slice", [ahead, graph.ints(1), graph.ints(segments), graph.ints(0)], name + "/next")
    behind = graph.node("Slice", [behind, graph.ints(0), graph.ints(segments - 1), graph.ints(0)], name + "/previous")
    ahead = graph.node("Concat", [ahead, zeros], name + "/ahead", axis=0)
    behind = graph.node("Concat", [zeros, behind], name + "/behind", axis=0)
    return graph.node("Concat", [ahead, behind, still], name, axis=1)


def masks(graph: Graph, x: str, name: str, shape: Shape) -> str:
    """One view: the frames turned round by Gather, the one that came round set to zero by Mul."""
    last, first = np.ones((2, SSV2.segments, 1, 1, 1), np.float32)
    last[-1], first[0] = 0, 0
    order = np.arange(SSV2.segments)
    ahead, behind, still = split_for_shift(graph, x, name, shape[0])
    ahead = graph.node("Gather", [ahead, graph.constant("next", np.roll(order, -1))], name + "/next", axis=0)
    behind = graph.node("Gather", [behind, graph.constant("previous", np.roll(order, 1))], name + "/previous", axis=0)
    ahead = graph.node("Mul", [ahead, graph.constant("last", last)], name + "/ahead")
    behind = graph.node("Mul", [behind, graph.constant("first", first)], name + "/behind")
    return graph.node("Concat", [ahead, behind, still], name, axis=1)


def edit_conv1(
    model: Any, weight: np.ndarray, before: Sequence[Any], x: str, constants: Sequence[Tuple[str, np.ndarray]] = (), **facts: Any
) -> Any:
    """conv1 of a one-view model with another weight and other attributes, on the value x that the nodes `before` make of `input`, which
    take the place of whatever stood before it. Returns conv1."""
    nodes = list(model.graph.node)
    place = next(number for number, node in enumerate(nodes) if node.name == "conv1")
    conv = helper.make_node("Conv", [x] + nodes[place].input[1:], nodes[place].output, "conv1", **dict(attributes(nodes[place]), **facts))
    kept = [tensor for tensor in model.graph.initializer if tensor.name != conv.input[1]]
    kept += [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in ((conv.input[1], weight), *constants)]
    for field, values in ((model.graph.node, [*before, conv, *nodes[place + 1 :]]), (model.graph.initializer, kept)):
        del field[:]
        field.extend(values)
    return model.graph.node[len(before)]


def in_blocks(model: Any, weight: np.ndarray) -> None:
    """conv1 (7x7, stride 2) as a 4x4 convolution of stride 1 over blocks of 2x2 pixels: the same products, and 64 with zero."""
    blocks = np.pad(weight, ((0, 0), (0, 0), (1, 0), (1, 0))).reshape(len(weight), 3, 4, 2, 4, 2).transpose(0, 3, 5, 1, 2, 4)
    edit_conv1(model, blocks.reshape(len(weight), 12, 4, 4), [helper.make_node("SpaceToDepth", ["input"], ["blocks"], blocksize=2)],
               "blocks", kernel_shape=[4, 4], strides=[1, 1], pads=[2, 2, 1, 1])


def with_ones(model: Any, weight: np.ndarray) -> None:
    """uint8 pixels as they are: conv1 divides by std, and takes the mean from a fourth channel, which is 255 but where it is padded."""
    weight = weight.astype(np.float64) / STD
    fourth = -(weight * MEAN).sum(1, keepdims=True) / 255
    whole = np.full((SSV2.segments, 1, SSV2.size, SSV2.size), 255, np.uint8)
    edit_conv1(model, np.concatenate([weight, fourth], 1).astype(np.float32), [
        helper.make_node("Concat", ["input", "whole"], ["four"], axis=1), helper.make_node("Cast", ["four"], ["pixels"], to=1)],
        "pixels", [("whole", whole)])


def with_map(model: Any, weight: np.ndarray) -> None:
    """uint8 pixels as they are: conv1 divides by std, and its bias is a map with what it makes of the mean, less at the border."""
    weight = weight.astype(np.float64) / STD
    reads = np.array([[0 <= 2 * y + k - 3 < SSV2.size for k in range(7)] for y in range(SSV2.size // 2)], np.float64)
    of_mean = np.einsum("yk,xl,okl->oyx", reads, reads, (weight * MEAN).sum(1))
    bias = next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == "conv1.bias")
    conv = edit_conv1(model, weight.astype(np.float32), [helper.make_node("Cast", ["input"], ["pixels"], to=1)], "pixels", [
        ("map", (bias[:, None, None] - of_mean).astype(np.float32)[None])])
    del conv.input[2:]
    conv.output[0] = "conv1/unbiased"
    model.graph.node.insert(2, helper.make_node("Add", ["conv1/unbiased", "map"], ["conv1"], "conv1/map"))


class Form(NamedTuple):
    """A row of the table: a kind of shift (tsm.protocol.MOVES) as the suite writes it, or a function that writes it; how it is run."""

    what: str
    shift: Union[str, Callable[[Graph, str, str, Shape], str]]  # (graph, x, name, shape of a frame of x) -> the shifted value's name
    views: int  # a call
    streams: int
    dtype: str = "float32"
    stem: Optional[Callable[[Any, np.ndarray], None]] = None  # writes conv1 anew, given its weight


FLOOR, CHOSEN = "no_shift", "parts"
CHOSEN_FORM = SSV2.shift
FORMS = {
    FLOOR: Form("no shift at all, one view a call, 2 streams", "none", 1, 2),
    CHOSEN: Form("CHOSEN: kept in three tensors, split convolutions, 2 streams", CHOSEN_FORM, 1, 2),
    "parts_1": Form("the same, 1 stream of all cores", CHOSEN_FORM, 1, 1),
    "parts_3": Form("the same, 3 streams", CHOSEN_FORM, 1, 3),
    "parts_6": Form("the same, a stream for every view", CHOSEN_FORM, 1, SSV2.views),
    "pad": Form("Split, Pad by 1 frame, Concat", pad, 1, 2),
    "slice": Form("Split, Slice, Concat with zeros, Concat", slice_concat, 1, 2),
    "masks": Form("Split, Gather, Mul by 0 and 1, Concat", masks, 1, 2),
    "pad_2": Form("two views a call, Split, Pad, Concat on [views, segments, C, H * W]", pad_views, 2, 2),
    "pad_3": Form("three views a call, likewise", pad_views, 3, 2),
    "pad_6": Form("the whole video a call, likewise, 1 stream", pad_views, SSV2.views, 1),
    "blocks": Form("the chosen form, conv1 over blocks of 2x2 pixels", CHOSEN_FORM, 1, 2, stem=in_blocks),
    "uint8": Form("the chosen form on uint8, normalised before conv1", CHOSEN_FORM, 1, 2, "uint8"),
    "ones": Form("the same, normalised by conv1, the mean from a fourth channel", CHOSEN_FORM, 1, 2, "uint8", with_ones),
    "map": Form("the same, normalised by conv1, the mean by a map", CHOSEN_FORM, 1, 2, "uint8", with_map),
}


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--work_dir", required=True, metavar="DIR", help="holds tsm_new_bs1.onnx and sthv2/preprocess_bin, as "
                     "bench/run.sh makes them")
    cli.add_argument("--precisions", nargs="+", choices=("fp32", "bf16", "int8"), default=["fp32", "bf16", "int8"])
    cli.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS), metavar="FORM", help="some of the rows: "
                     + ", ".join(FORMS) + " (default: all)")
    cli.add_argument("--rounds", type=positive, default=5, metavar="N", help="default: %(default)s")
    cli.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    cli.add_argument("--way", help=argparse.SUPPRESS)  # what a process of its own is started with
    return cli.parse_args()


def check_form(network: Any, name: str, views: np.ndarray, chosen: Any) -> None:
    """AssertionError unless `network` computes of views [views, segments, 3, size, size] what the chosen form does."""
    outputs = []
    for tried, inputs in ((network, [views.reshape((-1,) + SSV2.frame_shape)]), (chosen, list(views))):
        engine = BACKENDS["openvino"](tried, name, "fp32", 1)
        taken: List[np.ndarray] = []
        for x in inputs:
            engine.submit(x, taken.append)
            engine.wait()
        outputs.append(np.concatenate(taken))
    found, expected = outputs
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()), "%s computes something else" % name


def written(trunk: Any, form: Form) -> Any:
    """The ONNX model of a form."""
    protocol = SSV2._replace(segments=SSV2.segments * form.views)
    if isinstance(form.shift, str):
        model = build(trunk, "view", protocol._replace(shift=form.shift), dtype=form.dtype)
    else:
        write = form.shift
        with mock.patch("tsm.model.graph.shift", lambda graph, x, name, shape, *_: write(graph, x, name, shape)):
            model = build(trunk, "clip", protocol, dtype=form.dtype)
    if form.stem:
        form.stem(model, trunk.weights["conv1.weight"])
    return model


def pixels(views: np.ndarray) -> np.ndarray:
    """The uint8 pixels that normalised views were made of."""
    return np.rint(views * STD + MEAN).clip(0, 255).astype(np.uint8)


def one_way(name: str, precision: str, folder: str) -> None:
    """The process of one form."""
    form, model = FORMS[name], read_offline(os.path.join(folder, "tsm_new_bs1.onnx"))
    trunk, given = trunk_of(model.proto), pixels if FORMS[name].dtype == "uint8" else np.asarray
    network = written(trunk, form)
    calls = given(random_video()[0]).reshape((-1, SSV2.segments * form.views) + SSV2.frame_shape)
    if name not in (FLOOR, CHOSEN):
        chosen = written(trunk, FORMS[CHOSEN]._replace(dtype=form.dtype))
        check_form(network, name, calls[0].reshape((form.views,) + SSV2.view_shape), chosen)
    if precision == "int8":
        views = calibration_views(tensors_of(list_inputs(os.path.join(folder, "sthv2", "preprocess_bin")), model), range(CALIBRATION), SSV2)
        network = quantise(network, [given(np.concatenate([view] * form.views)) for view in views.values()])
    engine = BACKENDS["openvino"](network, name, precision, form.streams)

    def compute(videos: int) -> None:
        for x in list(calls) * videos:
            engine.submit(x, lambda output: None)
        engine.wait()

    answer(engine.name, compute)


def measure(args: argparse.Namespace, precision: str) -> Dict[str, List[float]]:
    """{form: seconds per video in each round}."""
    ways: Dict[str, Any] = {}
    try:
        for name in args.forms:
            ways[name] = Way([sys.executable, os.path.abspath(__file__), "--work_dir", args.work_dir, "--way",
                              "%s %s" % (name, precision)], videos={"fp32": 1, "bf16": 3, "int8": 4}[precision])
        return take_turns(ways, args.rounds)
    finally:
        for way in ways.values():
            way.close()


def main() -> None:
    args = get_args()
    if args.way:
        name, precision = args.way.split()
        return one_way(name, precision, args.work_dir)
    args.forms = [FLOOR] + [name for name in args.forms if name != FLOOR]
    times = {precision: measure(args, precision) for precision in args.precisions}
    costs = {precision: {name: median(a / b for a, b in zip(seconds[name], seconds[FLOOR])) for name in args.forms}
             for precision, seconds in times.items()}
    print("%s, %s, %d rounds; time over that of the network without a shift\n" % (
        processor_name(), time.strftime("%Y-%m-%d"), args.rounds))
    print("| form of the shift | %s |\n|---|%s" % (" | ".join(args.precisions), "---|" * len(args.precisions)))
    for name in args.forms:
        print("| %s | %s |" % (FORMS[name].what, " | ".join("%.3f" % costs[precision][name] for precision in args.precisions)))
    if args.json:
        write_json(args.json, {"machine": processor_name(), "date": time.strftime("%Y-%m-%d"), "seconds": times, "costs": costs})


if __name__ == "__main__":
    run(main)

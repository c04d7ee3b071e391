#!/usr/bin/env python3
"""The networks of the family, side by side: milliseconds per view in every precision, and what the temporal shift costs.

    bench/run.sh networks        # needs nothing but the suite

Of the real size, with random weights, on which no speed depends; one view a call, as many calls at a time as there are
cores, as TSM_infer.py computes them. A network and the same without its shifts are processes of their own that take turns;
the shift tax is the median of their ratio within the rounds, the times are medians over the rounds.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from statistics import median
from typing import Any, Dict, List

import numpy as np
from turns import Way, answer, take_turns  # sets up the path to the suite

from tsm.cli import parser, positive, run
from tsm.files import write_json
from tsm.infer.engine import BACKENDS
from tsm.machine import cores, has_bf16, processor_name
from tsm.protocol import SSV2

SIXTEEN, KINETICS = SSV2._replace(segments=2 * SSV2.segments), SSV2._replace(classes=400)
NETWORKS = {  # name: (structure in tsm.model.network, channels of the stem, protocol)
    "ResNet-50 x 8": ("RESNET50", 64, SSV2),
    "ResNet-50 x 16": ("RESNET50", 64, SIXTEEN),
    "ResNet-101 x 8": ("RESNET101", 64, SSV2),
    "MobileNetV2 x 8": ("MOBILENETV2", 32, KINETICS),
}
FORMS = ("view", "none")  # as the suite runs it, and without its shift
VIEWS = {"fp32": 4, "bf16": 6, "int8": 6}  # of one turn
CALIBRATION = 2  # views: for speed, not for accuracy


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), metavar="NAME", help="some of the "
                     "rows: " + ", ".join(NETWORKS) + " (default: all)")
    cli.add_argument("--precisions", nargs="+", choices=list(VIEWS), default=list(VIEWS))
    cli.add_argument("--rounds", type=positive, default=5, metavar="N", help="default: %(default)s")
    cli.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    cli.add_argument("--way", nargs=3, help=argparse.SUPPRESS)  # what a process of its own is started with
    return cli.parse_args()


def random_views(name: str, count: int) -> List[np.ndarray]:
    """Views for a network, float32 [segments, 3, size, size]."""
    rng = np.random.RandomState(0)
    return [rng.standard_normal(NETWORKS[name][2].view_shape).astype(np.float32) for _ in range(count)]


def make(name: str, precisions: List[str], folder: str) -> None:
    """Write a network in both forms to `folder`: view.onnx and none.onnx, and, where int8 is wanted, view.xml and none.xml."""
    import onnx
    import openvino
    import torch

    from tsm.infer.int8 import quantise
    from tsm.model import network
    from tsm.model.graph import build

    structure, width, protocol = NETWORKS[name]
    torch.manual_seed(0)
    trunk = network.trunk_from(network.TSM(protocol, width, structure=getattr(network, structure)).eval())
    for form in FORMS:
        model = build(trunk, "view", protocol if form == "view" else protocol._replace(shift="none"))
        onnx.save(model, os.path.join(folder, form + ".onnx"))
        if "int8" in precisions:
            with contextlib.redirect_stdout(sys.stderr):  # NNCF's progress
                quantised = quantise(model, random_views(name, CALIBRATION))
            openvino.save_model(quantised, os.path.join(folder, form + ".xml"))


def one_way(name: str, precision: str, path: str) -> None:
    """The process of one network in one form and precision, its file at `path`; a turn is a number of views."""
    import openvino

    engine = BACKENDS["openvino"](openvino.Core().read_model(path), path, precision, cores())
    view = random_views(name, 1)[0]

    def compute(views: int) -> None:
        for _ in range(views):
            engine.submit(view, lambda output: None)
        engine.wait()

    answer(engine.name, compute)


def measure(name: str, precisions: List[str], rounds: int) -> Dict[str, List[float]]:
    """{"form precision": seconds per view in each round} of one network."""
    ways: Dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        make(name, precisions, folder)
        try:
            for precision in precisions:
                for form in FORMS:
                    path = os.path.join(folder, form + (".xml" if precision == "int8" else ".onnx"))
                    command = [sys.executable, os.path.abspath(__file__), "--way", name, precision, path]
                    ways["%s %s" % (form, precision)] = Way(command, VIEWS[precision])
            return take_turns(ways, rounds)
        finally:
            for way in ways.values():
                way.close()


def main() -> None:
    args = get_args()
    if args.way:
        return one_way(*args.way)
    precisions = [precision for precision in args.precisions if precision != "bf16" or has_bf16()]
    times = {name: measure(name, precisions, args.rounds) for name in args.networks}
    print("%s, %s, %d rounds, one view a call\n" % (processor_name(), time.strftime("%Y-%m-%d"), args.rounds))
    print("| network | precision | ms per view | without shift | shift tax | views per second |\n|---|---|---|---|---|---|")
    taxes: Dict[str, Dict[str, float]] = {}
    for name, seconds in times.items():
        for precision in precisions:
            shifted, floor = (seconds["%s %s" % (form, precision)] for form in FORMS)
            tax = taxes.setdefault(name, {})[precision] = median(a / b for a, b in zip(shifted, floor))
            print("| %s | %s | %.1f | %.1f | %.3f | %.2f |" % (
                name, precision, 1000 * median(shifted), 1000 * median(floor), tax, 1 / median(shifted)))
    if args.json:
        write_json(args.json, {"machine": processor_name(), "date": time.strftime("%Y-%m-%d"), "seconds": times, "taxes": taxes})


if __name__ == "__main__":
    run(main)

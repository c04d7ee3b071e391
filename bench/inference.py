#!/usr/bin/env python3
"""Inference, every way side by side: mmaction2, ONNX Runtime and OpenVINO on the graph as exported, ours, and the floor.

    bench/run.sh inference        # makes what this needs, then runs it

The floor is our network without its shifts on the same engine: the shift moves a quarter of the channels and computes
nothing, so time above the floor ("shift tax") is what a better graph could still save. Every way lives in a process of
its own, computes videos once unmeasured, and then takes its turn in every round; figures are medians over the rounds, and
each ratio is the median of that ratio within the rounds, so that a slow spell of the machine touches both sides alike.
Values are random; no way's speed depends on them.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from statistics import median
from typing import Any, Dict, List, Tuple

from turns import REPO, Way, answer, random_video, take_turns  # sets up the path to the suite

from tsm.cli import UserError, parser, positive, run
from tsm.files import write_json
from tsm.infer.engine import BACKENDS, run_batches, streams_for
from tsm.infer.int8 import quantise, read_int8, views_from_tensors
from tsm.infer.tensors import list_inputs
from tsm.machine import processor_name
from tsm.model.offline import one_view, read_offline
from tsm.protocol import SSV2

CALIBRATION = 10  # clips for the floor in int8: for speed, not for accuracy
EAGER, EAGER_KEPT = "mmaction2, PyTorch fp32", "mmaction2, PyTorch fp32, freed memory kept"
TORCH = {"eager": "PyTorch fp32, channels_last", "compile": "torch.compile fp32", "compile_bf16": "torch.compile, bf16 autocast"}
RATIOS = {
    "shift tax, fp32": ("ours fp32", "no shift fp32", "<= 1.05"),
    "shift tax, bf16": ("ours bf16", "no shift bf16", "<= 1.05"),
    "shift tax, int8": ("ours int8", "no shift int8", "<= 1.05"),
    "ONNX Runtime as exported / ours fp32": ("ONNX Runtime as exported", "ours fp32", ">= 1.4"),
    "OpenVINO bf16 as exported / ours bf16": ("OpenVINO bf16 as exported", "ours bf16", ">= 1.3"),
    "benchmark_app bf16 as exported / ours bf16": ("benchmark_app bf16 as exported", "ours bf16", ">= 1.3"),
    "torch.compile / ours fp32": (TORCH["compile"], "ours fp32", ""),
    "torch.compile bf16 / ours bf16": (TORCH["compile_bf16"], "ours bf16", ""),
    "mmaction2 / ours fp32": (EAGER, "ours fp32", ""),
    "mmaction2 / ours bf16": (EAGER, "ours bf16", ">= 8"),
    "mmaction2 / ours int8": (EAGER, "ours int8", ">= 15"),
}  # name: (slower way, faster way, what was aimed at)


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--work_dir", required=True, metavar="DIR", help="holds tsm_demo.pth, export.onnx, tsm_new_bs1.onnx, "
                     "tsm_int8.xml and sthv2/preprocess_bin, as bench/run.sh makes them")
    cli.add_argument("--reference_python", metavar="PYTHON", help="a Python with mmaction2; without it its rows are left out")
    cli.add_argument("--rounds", type=positive, default=7, metavar="N", help="default: %(default)s")
    cli.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    cli.add_argument("--way", help=argparse.SUPPRESS)  # what a process of its own is started with
    return cli.parse_args()


def one_way(way: str, folder: str) -> None:
    """The process of one way, `what backend precision`, where what is exported, ours or no_shift."""
    what, backend, precision = way.split()
    names = {"exported": "export.onnx", "ours": "tsm_new_bs1.onnx", "no_shift": "tsm_new_bs1.onnx"}
    model_file = os.path.join(folder, names[what])
    model = read_offline(model_file)
    network, video = model.proto, random_video()
    if what == "no_shift":
        from tsm.model.graph import build, trunk_of

        network = build(trunk_of(model.proto), "none", SSV2)
    elif what == "ours":
        network = one_view(model)
    if precision == "int8" and what == "ours":
        network = read_int8(os.path.join(folder, "tsm_int8.xml"), network, model_file)[0]
    elif precision == "int8":
        inputs = list_inputs(os.path.join(folder, "sthv2", "preprocess_bin"))
        network = quantise(network, views_from_tensors(inputs, model, CALIBRATION))
    # Whole batches: one at a time on all cores, which is quicker here than two at a time.
    engine = BACKENDS[backend](network, way, precision, streams_for(model))

    def compute(videos: int) -> None:
        list(run_batches(engine, model, ["video"] * videos, lambda _: video))

    answer(engine.name, compute)


class BenchmarkApp:
    """OpenVINO's own benchmark_app on the graph as exported, started anew for each turn, as it is meant to be."""

    def __init__(self, folder: str, precision: str) -> None:
        self.command = [os.path.join(os.path.dirname(sys.executable), "benchmark_app"), "-m", os.path.join(folder, "export.onnx"),
                        "-d", "CPU", "-hint", "throughput", "-infer_precision", precision, "-niter", "6"]
        self.about = "OpenVINO's benchmark_app, -hint throughput"

    def seconds(self) -> float:
        done = subprocess.run(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
        found = re.search(r"Throughput:\s+([0-9.]+) FPS", done.stdout)
        if not found:
            raise UserError("%s: %s" % (" ".join(self.command), done.stdout.strip().splitlines()[-1:]))
        return 1 / float(found.group(1))

    def close(self) -> None:
        pass


def start_ways(args: argparse.Namespace) -> Dict[str, Any]:
    """All ways, started and warm, in the order of the table."""
    ways: Dict[str, Any] = {}
    if args.reference_python:
        command = [args.reference_python, os.path.join(REPO, "bench", "mmaction2_eager.py"),
                   os.path.join(args.work_dir, "tsm_demo.pth")]
        ways[EAGER] = Way(command)
        ways[EAGER_KEPT] = Way(command, environment={"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "16000000000"})

    def ours(way: str) -> Way:
        return Way([sys.executable, os.path.abspath(__file__), "--work_dir", args.work_dir, "--way", way],
                   videos=2 if "fp32" in way or "exported" in way else 4)

    import openvino

    precisions = ["fp32", "bf16", "int8"]
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        precisions.remove("bf16")
    for way in TORCH:
        if "bf16" not in way or "bf16" in precisions:
            ways[TORCH[way]] = Way([sys.executable, os.path.join(REPO, "bench", "pytorch.py"), way,
                                    os.path.join(args.work_dir, "tsm_demo.pth")])
    ways["ONNX Runtime as exported"] = ours("exported onnxruntime fp32")
    for precision in precisions[:-1]:
        ways["OpenVINO %s as exported" % precision] = ours("exported openvino " + precision)
        ways["benchmark_app %s as exported" % precision] = BenchmarkApp(args.work_dir, precision.replace("fp32", "f32"))
    ways["ours fp32, on ONNX Runtime"] = ours("ours onnxruntime fp32")
    for precision in precisions:
        ways["ours " + precision] = ours("ours openvino " + precision)
        ways["no shift " + precision] = ours("no_shift openvino " + precision)
    return ways


def ratios(times: Dict[str, List[float]]) -> Dict[str, Tuple[float, str]]:
    """{ratio: (median over rounds, aim)} of those whose two ways were run."""
    return {name: (median(a / b for a, b in zip(times[slow], times[fast])), aim)
            for name, (slow, fast, aim) in RATIOS.items() if slow in times and fast in times}


def main() -> None:
    args = get_args()
    if args.way:
        one_way(args.way, args.work_dir)
        return
    ways: Dict[str, Any] = {}
    try:
        ways = start_ways(args)
        times = take_turns(ways, args.rounds)
    finally:
        for way in ways.values():
            way.close()
    print("%s, %s, %d rounds\n" % (processor_name(), time.strftime("%Y-%m-%d"), args.rounds))
    print("| way | seconds per video | videos per second |\n|---|---|---|")
    for name, values in times.items():
        print("| %s | %.3f | %.2f |" % (name, median(values), 1 / median(values)))
    print("\n| ratio | measured | aim |\n|---|---|---|")
    for name, (value, aim) in ratios(times).items():
        print("| %s | %.3f | %s |" % (name, value, aim))
    if args.json:
        write_json(args.json, {
            "machine": processor_name(), "python": platform.python_version(), "date": time.strftime("%Y-%m-%d"),
            "ways": {name: {"on": ways[name].about, "seconds": values} for name, values in times.items()},
            "ratios": {name: value for name, (value, _) in ratios(times).items()},
        })


if __name__ == "__main__":
    run(main)

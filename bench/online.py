#!/usr/bin/env python3
"""A frame of an online model over an eighth of a view of the same network, in every precision; its latency; its rivals.

    bench/run.sh online        # needs nothing but the suite
    bench/online.py --soak 3600 --networks MobileNetV2     # an hour of frames at a camera's pace: memory, and states that do not drift

ResNet-50 at 256 pixels and MobileNetV2 at MIT's 224, of random weights, on which no speed depends, shifted from the past alone. Every
way lives in a process of its own, uses all cores for one call at a time, and takes its turn in every round. A ratio is the median of
that ratio within the rounds; p50, p90 and p99 are over all frames. The window approach computes a view for each answer. PyTorch is
torch.compile, frozen, with freed memory kept, and is given its states back.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from array import array
from collections import deque
from functools import partial
from statistics import median
from typing import Any, Callable, Deque, Dict, List, Tuple

import numpy as np
from turns import Way, take_turns  # sets up the path to the suite

from tsm.cli import parser, positive, run
from tsm.files import write_json
from tsm.infer.engine import Computing, compiled, open_online, percentiles
from tsm.machine import cores, has_bf16, processor_name
from tsm.model.offline import read_offline
from tsm.protocol import SSV2

NETWORKS = {  # name: (structure in tsm.model.network, channels of the stem, protocol)
    "ResNet-50": ("RESNET50", 64, SSV2._replace(shift="past1")),
    "MobileNetV2": ("MOBILENETV2", 32, SSV2._replace(shift="past1", size=224, classes=27)),
}
WAYS = {  # name: (what, precisions)
    "view": ("a view of 8 frames, the window approach", ("fp32", "bf16", "int8")),
    "online": ("CHOSEN: a frame, states inside OpenVINO", ("fp32", "bf16", "int8")),
    "concat": ("the same, the file's own form (Split, Concat)", ("fp32", "bf16")),
    "fed_back": ("the chosen form, states fed back to OpenVINO", ("fp32", "bf16")),
    "onnxruntime": ("the chosen form, on ONNX Runtime", ("fp32",)),
    "torch": ("PyTorch, frame by frame", ("fp32", "bf16")),
}
AIMS = {"fp32": 1.1, "bf16": 1.1, "int8": 1.2}  # of a frame over an eighth of a view
FRAMES, VIEWS = 16, 2  # of one turn
RATE, MARKS = 15, 12  # of --soak: frames a second; how often it says what the memory is
CALIBRATION = 2  # views: for speed, not for accuracy
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "16000000000", "TORCHINDUCTOR_FREEZING": "1"}


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), metavar="NAME", help="some of " +
                     ", ".join(NETWORKS) + " (default: all)")
    cli.add_argument("--precisions", nargs="+", choices=list(AIMS), default=list(AIMS))
    cli.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), metavar="WAY", help="some of " + ", ".join(WAYS) +
                     " (default: all; view and online always)")
    cli.add_argument("--rounds", type=positive, default=9, metavar="N", help="default: %(default)s")
    cli.add_argument("--soak", type=positive, metavar="SECONDS", help="instead, a stream of %d frames a second for so long, in fp32" % RATE)
    cli.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    cli.add_argument("--way", nargs=4, help=argparse.SUPPRESS)  # what a process of its own is started with
    return cli.parse_args()


def network(name: str) -> Any:
    """A network of random weights, the same in every process."""
    import torch

    from tsm.model import network

    structure, width, protocol = NETWORKS[name]
    torch.manual_seed(0)
    return network.TSM(protocol, width, structure=getattr(network, structure)).eval()


def make(name: str, precisions: List[str], folder: str) -> None:
    """Write to `folder` online.onnx, view.onnx and, where int8 is wanted, online.xml and view.xml."""
    import onnx
    import openvino

    from tsm.infer.int8 import of_one_frame, quantise, write_int8
    from tsm.model.graph import build
    from tsm.model.network import trunk_from
    from tsm.model.offline import clip_of
    from tsm.model.onnxfile import graph_digest, metadata, set_metadata

    trunk, protocol = trunk_from(network(name)), NETWORKS[name][2]
    online, view = build(trunk, "online", protocol), build(trunk, "view", protocol)
    proof = {"one_frame": {"sha256": graph_digest(build(trunk, "online_parts", protocol))}}
    set_metadata(online, dict(metadata(online), **{"tsm.target": "online", "tsm.proof": json.dumps(proof)}))
    path = os.path.join(folder, "online.onnx")
    onnx.save(online, path)
    onnx.save(view, os.path.join(folder, "view.onnx"))
    if "int8" in precisions:
        views = [np.random.RandomState(number).standard_normal(protocol.view_shape).astype(np.float32) for number in range(CALIBRATION)]
        model = read_offline(path)
        clip = clip_of(model, "clip")
        with contextlib.redirect_stdout(sys.stderr):  # NNCF's progress
            write_int8(os.path.join(folder, "online.xml"), of_one_frame(quantise(clip, views), model), clip, views)
            openvino.save_model(quantise(view, views), os.path.join(folder, "view.xml"))


def torch_step(name: str, precision: str) -> Callable[[np.ndarray], Any]:
    """PyTorch's network on a frame [1, 3, size, size] -> scores, with what a shift keeps as inputs and outputs."""
    import torch

    from tsm.model.network import Shifted

    net = network(name)
    shifts = [layer for layer in net.modules() if isinstance(layer, Shifted)]
    before: List[Any] = [None] * len(shifts)
    after: List[Any] = [None] * len(shifts)

    def forward(number: int, layer: Any, x: Any) -> Any:
        after[number] = x[:, : layer.fold].clone()
        return layer.net(torch.cat((before[number], x[:, layer.fold :]), 1))

    for number, layer in enumerate(shifts):
        setattr(layer, "forward", partial(forward, number, layer))  # noqa: B010 - mypy knows no methods that are replaced

    def step(frame: Any, states: List[Any]) -> Tuple[Any, List[Any]]:
        before[:] = states
        scores = net.cls_head.fc_cls(net.backbone(frame).mean((2, 3)))
        return scores, list(after)

    from tsm.model.graph import build
    from tsm.model.network import trunk_from
    from tsm.model.onnxfile import states_in

    memory = [torch.zeros(state.shape) for state in states_in(build(trunk_from(network(name)), "online", NETWORKS[name][2]), name)]
    net.to(memory_format=torch.channels_last)
    ready, lowered = torch.compile(step), torch.bfloat16 if precision == "bf16" else None

    def run_step(frame: np.ndarray) -> Any:
        with torch.no_grad(), torch.autocast("cpu", lowered) if lowered else contextlib.nullcontext():
            x = torch.from_numpy(frame).contiguous(memory_format=torch.channels_last)
            scores, memory[:] = ready(x, memory)
            return scores[0].float().numpy()

    return run_step


def step_of(way: str, name: str, precision: str, folder: str) -> Callable[[np.ndarray], Any]:
    """What one call computes: a view, or a frame."""
    from tsm.model.offline import one_frame

    if way == "torch":
        return torch_step(name, precision)
    if way == "view":
        import openvino

        path = os.path.join(folder, "view.xml" if precision == "int8" else "view.onnx")
        request = compiled(openvino.Core().read_model(path), path, precision, "LATENCY", 1).create_infer_request()
        return lambda x: request.infer({0: x}, share_inputs=True)
    model = read_offline(os.path.join(folder, "online.onnx"))
    if way == "fed_back":
        request = compiled(one_frame(model), model.path, precision, "LATENCY", 1).create_infer_request()
        states = {state.input: np.zeros(state.shape, np.float32) for state in model.states}

        def fed_back(x: np.ndarray) -> Any:
            request.infer(dict(states, input=x), share_inputs=True)
            states.update((state.input, request.get_tensor(state.output).data.copy()) for state in model.states)
            return request.get_tensor("output").data[0]

        return fed_back
    if way == "concat":
        from tsm.infer import engine

        engine.one_frame = lambda model: model.proto  # type: ignore[attr-defined]
    backend = "onnxruntime" if way == "onnxruntime" else "openvino"
    return open_online(model, Computing(backend, precision, None, os.path.join(folder, "online.xml"))).step


def check_way(
    way: str, step: Callable[[np.ndarray], Any], chosen: Callable[[np.ndarray], Any], inputs: List[np.ndarray], most: float
) -> None:
    """AssertionError unless a way gives the chosen way's scores, but for `most` of them."""
    for x in inputs:
        found, expected = np.asarray(step(x)).reshape(-1), np.asarray(chosen(x)).reshape(-1)
        assert np.abs(found - expected).max() <= most * np.abs(expected).max(), "%s computes something else" % way


def one_way(way: str, name: str, precision: str, folder: str) -> None:
    """The process of one way; a turn is a number of calls, of which it says how long each took."""
    rng, protocol = np.random.RandomState(0), NETWORKS[name][2]
    shape = protocol.view_shape if way == "view" else (1,) + protocol.frame_shape
    inputs, step = [rng.standard_normal(shape).astype(np.float32) for _ in range(4)], step_of(way, name, precision, folder)
    if way in ("fed_back", "onnxruntime", "torch"):
        check_way(way, step, step_of("online", name, "fp32", folder), inputs, 0.1 if precision == "bf16" else 1e-3)
    step(inputs[0])
    print(json.dumps(way), flush=True)
    for line in sys.stdin:
        taken = []
        for number in range(int(line)):
            began = time.perf_counter()
            step(inputs[number % len(inputs)])
            taken.append(time.perf_counter() - began)
        print(json.dumps(" ".join("%.6f" % seconds for seconds in taken)), flush=True)


class Calls(Way):
    """A process whose calls are timed one by one."""

    def seconds(self) -> float:
        """The median of one turn's calls; `calls` holds them all."""
        taken = [float(word) for word in str(super().seconds()).split()]
        self.calls = getattr(self, "calls", []) + taken
        return median(taken)


def measure(args: argparse.Namespace, name: str, precisions: List[str]) -> Dict[str, Dict[str, Any]]:
    """{"way precision": its calls' seconds, and the median of every round} of one network."""
    ways: Dict[str, Calls] = {}
    with tempfile.TemporaryDirectory() as folder:
        make(name, precisions, folder)
        try:
            for precision in precisions:
                for way in [way for way in WAYS if way in args.ways + ["view", "online"] and precision in WAYS[way][1]]:
                    command = [sys.executable, os.path.abspath(__file__), "--way", way, name, precision, folder]
                    ways["%s %s" % (way, precision)] = Calls(command, VIEWS if way == "view" else FRAMES, KEPT if way == "torch" else None)
            rounds = take_turns(ways, args.rounds)
            return {key: {"calls": ways[key].calls, "rounds": rounds[key]} for key in ways}
        finally:
            for started in ways.values():
                started.close()


def table(name: str, found: Dict[str, Dict[str, Any]]) -> Dict[str, float]:
    """Print a network's rows; its ratios."""
    segments, ratios = NETWORKS[name][2].segments, {}
    print("\n%s\n\n| way | precision | ms a call: p50 / p90 / p99 | over view / %d | p99 / p50 |\n|---|---|---|---|---|" % (name, segments))
    for key, times in found.items():
        way, precision = key.split()
        p50, p90, p99 = np.percentile(times["calls"], (50, 90, 99))
        views = found["view " + precision]["rounds"]
        ratios[key] = median(one * segments / view for one, view in zip(times["rounds"], views)) / (segments if way == "view" else 1)
        aim = " (aim <= %.1f)" % AIMS[precision] if way == "online" else ""
        print("| %s | %s | %.1f / %.1f / %.1f | %.2f%s | %.2f |" % (
            WAYS[way][0], precision, 1000 * p50, 1000 * p90, 1000 * p99, ratios[key] * (segments if way == "view" else 1), aim, p99 / p50))
    for precision in [key.split()[1] for key in found if key.startswith("online ")]:
        for rival, aim in (("view", " (aim >= 6)"), ("torch", "")):
            if "%s %s" % (rival, precision) in found:
                ratio = median(one / frame for one, frame in zip(found["%s %s" % (rival, precision)]["rounds"],
                                                                 found["online " + precision]["rounds"]))
                ratios["%s / online, %s" % (rival, precision)] = ratio
                print("\n%s: %s / a frame online: %.2f%s" % (precision, WAYS[rival][0], ratio, aim))
    return ratios


def resident() -> float:
    """MB of memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(name: str, seconds: int, folder: str) -> Dict[str, Any]:
    """Frames at a steady pace, through states that nothing resets. AssertionError unless they end as those of a fresh start that is shown
    the last frames alone, as many as there are shifted blocks and one: bit for bit, and so do the scores of frames after."""
    make(name, [], folder)
    model = read_offline(os.path.join(folder, "online.onnx"))
    online = open_online(model, Computing("openvino", "fp32", None, ""))
    some = np.random.RandomState(0).standard_normal((5,) + (1,) + NETWORKS[name][2].frame_shape).astype(np.float32)
    last: Deque[np.ndarray] = deque(maxlen=len(model.states) + 1)
    marks: List[Dict[str, Any]] = []
    taken, began, count = array("d"), time.monotonic(), 0

    def states(of: Any) -> List[np.ndarray]:
        return [state.state.data.copy() for state in sorted(of.reset.__self__.query_state(), key=lambda state: state.name)]

    def frame() -> np.ndarray:  # of a stream that never repeats within the memory
        return np.roll(some[count % 5], count, 3)

    while time.monotonic() - began < seconds:
        last.append(frame())
        at = time.perf_counter()
        online.step(last[-1])
        taken.append(1000 * (time.perf_counter() - at))
        count += 1
        if time.monotonic() - began >= (len(marks) + 1) * seconds / MARKS:
            marks.append({"seconds": round(time.monotonic() - began), "frames": count, "memory_mb": round(resident(), 1),
                          "frame_ms": percentiles(taken)})
            print(marks[-1], flush=True)
            del taken[:]
        time.sleep(max(0.0, began + count / RATE - time.monotonic()))
    fresh = online.another()
    for one in last:
        fresh.step(one)
    assert all(map(np.array_equal, states(online), states(fresh))), "the states drifted"
    for one in last:
        assert np.array_equal(online.step(one), fresh.step(one)), "the scores drifted"
    print("%s: %d frames; %d states equal those of the last %d frames alone, bit for bit" % (name, count, len(model.states), len(last)))
    return {"network": name, "frames": count, "states": len(model.states), "marks": marks}


def main() -> None:
    args = get_args()
    if args.way:
        return one_way(*args.way)
    if args.soak:
        with tempfile.TemporaryDirectory() as folder:
            soaked = [soak(name, args.soak, folder) for name in args.networks]
        if args.json:
            write_json(args.json, {"machine": processor_name(), "date": time.strftime("%Y-%m-%d"), "soak": soaked})
        return None
    precisions = [precision for precision in args.precisions if precision != "bf16" or has_bf16()]
    print("%s, %d cores, %s, %d rounds" % (processor_name(), cores(), time.strftime("%Y-%m-%d"), args.rounds))
    found = {name: measure(args, name, precisions) for name in args.networks}
    ratios = {name: table(name, times) for name, times in found.items()}
    if args.json:
        write_json(args.json, {"machine": processor_name(), "date": time.strftime("%Y-%m-%d"), "seconds": found, "ratios": ratios})


if __name__ == "__main__":
    run(main)

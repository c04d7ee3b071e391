#!/usr/bin/env python3
"""Post-training quantisation of a TSM, for `TSM_infer.py --precision int8`.

    python3 TSM_quantise.py --model tsm_new_bs1.onnx \\
        --ann_file sthv2_val_list_videos.txt --data_root demo/videos
    … --model tsm_new_bs1.onnx --input sthv2/preprocess_bin

It takes a model of modify_onnx.py and clips, of a list or as tensors (labels
are not used), and writes the network of one view in int8, tsm_int8.xml and
.bin, beside the model: one file serves every batch size. Weights get a scale
per channel, activations one per tensor, from the values that they take on the
clips; NNCF does it. TSM_infer.py refuses the file for any other network.

Clips are taken evenly over the list, of each one view, in turn the first to the
last. An online model's clip is quantised likewise and cut at its shifts; how
its scores, frame by frame, are those of the int8 clip, is printed. What int8
costs in accuracy, TSM_infer.py and run_all.sh print.
"""

import argparse
import os
import time
from importlib.util import find_spec
from typing import Any, Dict, List

from tsm.cli import Corrupt, UserError, parser, positive, run

# isort: split
import numpy as np

from tsm.infer.engine import Computing, compiled, for_views, open_online
from tsm.infer.int8 import calibration_view, int8_file, of_one_frame, quantise, views_from_tensors, weights_file, write_int8
from tsm.infer.tensors import list_inputs
from tsm.machine import cores
from tsm.model.offline import Offline, clip_of, one_view, read_offline
from tsm.samples import check_data_root, evenly, read_list, refuse
from tsm.video.frames import Naming, add_list

COMPARED = 4  # views on which an online model's int8 file is held against its clip


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--model", "-m", required=True, metavar="FILE", help="a model of modify_onnx.py, of any batch size")
    cli.add_argument("--input", "-i", metavar="PATHS", help="calibration clips: tensor files (comma-separated) or one folder")
    add_list(cli, required=False)
    cli.add_argument("--clips", type=positive, default=32, metavar="N", help="at most so many of them are used "
                     "(default: %(default)s)")
    cli.add_argument("--output", "-o", metavar="FILE", help="an .xml file (default: tsm_int8.xml beside the model)")
    args = cli.parse_args()
    args.output = args.output or int8_file(args.model)
    if bool(args.input) == bool(args.ann_file) or bool(args.ann_file) != bool(args.data_root):
        cli.error("give either --input, or --ann_file and --data_root")
    return args


def views_from_list(args: argparse.Namespace, model: Offline) -> List[np.ndarray]:
    """The calibration views of clips chosen evenly from the list; an unreadable one ends the run or is left out."""
    from tsm.video.clips import decoded

    protocol = model.tested_by
    chosen = evenly(read_list(args.ann_file, protocol, args.data_root), args.clips)
    naming = Naming(args.filename_tmpl, args.start_index)
    views: Dict[int, np.ndarray] = {}
    places = {number: (os.path.join(args.data_root, clip.source), clip.frames) for number, clip in enumerate(chosen)}
    for number, video in decoded(places, protocol, model.dtype.name, args.num_worker or cores(), naming):
        if not isinstance(video, Corrupt):
            views[number] = calibration_view(video, number, protocol)
        elif args.on_error == "fail":
            refuse(args.ann_file, dict(enumerate(chosen)), {number: video})
    if not views:
        raise UserError("%s: none of its %d calibration clips could be read" % (args.ann_file, len(chosen)))
    return [views[number] for number in sorted(views)]


def clip_scores(network: Any, model: Offline, views: List[np.ndarray]) -> List[np.ndarray]:
    """The int8 clip's frame scores [segments, classes] of some views."""
    if not views:
        return []
    clip = compiled(network, model.path, "int8", "LATENCY", 1, cores())
    return [clip({0: view})[0].copy() for view in views]


def held_against(expected: List[np.ndarray], model: Offline, views: List[np.ndarray], path: str) -> str:
    """How the file at `path`, frame by frame, answers the views whose int8 clip's scores are expected."""
    online, found = open_online(model, Computing("openvino", "int8", None, path)), []
    for view in views:
        online.reset()
        found.append(np.stack([online.step(frame[None]) for frame in view]))
    if np.array_equal(found, expected):
        return "frame by frame its scores are those of the int8 clip bit for bit, on %d views" % len(views)
    same = sum(one.mean(0).argmax() == other.mean(0).argmax() for one, other in zip(found, expected))
    return "frame by frame its answer is the int8 clip's on %d of %d views; largest difference of a score %.2g, of scores up to %.2g" % (
        same, len(views), np.abs(np.subtract(found, expected)).max(), np.abs(expected).max())


def main() -> None:
    args = get_args()
    for name in ("nncf", "openvino"):  # not imported yet: they start threads, and decoders are forked before that
        if find_spec(name) is None:
            raise UserError("%s: not installed; run python3 -m pip install nncf openvino" % name)
    if args.data_root:
        check_data_root(args.data_root)
    if not args.output.endswith(".xml") or os.path.isdir(args.output) or not os.path.isdir(os.path.dirname(args.output) or "."):
        raise UserError("--output %s: is to be a file that ends in .xml, in a folder that is there" % args.output)
    model = read_offline(args.model)
    online = model.target == "online"
    model, view = for_views(model), clip_of(model, "clip") if online else one_view(model)
    began = time.time()
    views = views_from_list(args, model) if args.ann_file else views_from_tensors(list_inputs(args.input), model, args.clips)
    network, few = quantise(view, views), views[: COMPARED if online else 0]
    expected = clip_scores(network, model, few)
    write_int8(args.output, of_one_frame(network, model) if online else network, view, views)
    print("wrote %s and .bin: int8, calibrated on %d clips in %.0f s, %.0f MB" % (
        args.output, len(views), time.time() - began, os.path.getsize(weights_file(args.output)) / 1e6))
    if online:
        print(held_against(expected, model, few, args.output))


if __name__ == "__main__":
    run(main)

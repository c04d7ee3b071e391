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

Of each class one clip is taken first, then a second one; of each clip one view,
in turn the first to the last. --max_drop bounds what is lost on other clips:
layers go back to floating point, the most sensitive first, until it holds. An
online model's clip is quantised likewise and cut at its shifts; how its scores,
frame by frame, are those of the int8 clip, is printed.
"""

import argparse
import json
import os
import time
from importlib.util import find_spec
from typing import Dict, Iterator, List, Sequence, Tuple

from tsm.cli import AGREE_ON, Corrupt, UserError, above_zero, parser, positive, run

# isort: split
import numpy as np

from tsm.infer import int8
from tsm.infer.engine import Computing, for_views, open_online
from tsm.infer.tensors import list_inputs
from tsm.machine import cores, workers_that_fit
from tsm.model.offline import Offline, clip_of, one_view, read_offline
from tsm.samples import check_data_root, check_readable, read_list, refuse
from tsm.video.frames import Naming, add_list

COMPARED = 4  # views on which an online model's int8 file is held against its clip


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--model", "-m", required=True, metavar="FILE", help="a model of modify_onnx.py, of any batch size")
    cli.add_argument("--input", "-i", metavar="PATHS", help="calibration clips: tensor files (comma-separated) or one folder")
    add_list(cli, required=False)
    cli.add_argument("--clips", type=positive, default=300, metavar="N", help="at most so many of them calibrate "
                     "(default: %(default)s)")
    cli.add_argument("--max_drop", type=above_zero, metavar="P", help="keep layers in floating point until top-1 is at most P "
                     "points lower; without labels: P %% of the answers differ")
    cli.add_argument("--validation", type=positive, default=AGREE_ON, metavar="N", help="for --max_drop: at most so many other clips "
                     "validate (default: %(default)s)")
    cli.add_argument("--output", "-o", metavar="FILE", help="an .xml file (default: tsm_int8.xml beside the model)")
    args = cli.parse_args()
    args.output = args.output or int8.int8_file(args.model)
    if bool(args.input) == bool(args.ann_file) or bool(args.ann_file) != bool(args.data_root):
        cli.error("give either --input, or --ann_file and --data_root")
    return args


def list_of(args: argparse.Namespace, model: Offline) -> int8.Clips:
    """The clips of the list; an unreadable one ends the run or is left out."""
    from tsm.video.clips import decoded

    protocol = model.tested_by
    listed = read_list(args.ann_file, protocol, args.data_root)

    def read(places: Sequence[int]) -> Iterator[Tuple[int, np.ndarray]]:
        paths = {place: (os.path.join(args.data_root, listed[place].source), listed[place].frames) for place in places}
        corrupt: Dict[int, Corrupt] = {}
        for place, video in decoded(paths, protocol, model.dtype.name, args.num_worker or cores(),
                                    Naming(args.filename_tmpl, args.start_index)):
            if not isinstance(video, Corrupt):
                yield place, video
                continue
            corrupt[place] = video
            if args.on_error == "fail":
                refuse(args.ann_file, dict(enumerate(listed)), corrupt)
        if corrupt:
            check_readable(args.ann_file, {place: listed[place] for place in places}, corrupt, len(places) - len(corrupt))

    return int8.Clips([clip.source for clip in listed], [clip.label for clip in listed], read)


def held_against(expected: List[np.ndarray], model: Offline, views: List[np.ndarray], path: str) -> str:
    """How the file at `path`, frame by frame, answers the views whose int8 clip's scores are expected."""
    online, found = open_online(model, Computing("openvino", "int8", None, path)), []
    for view in views:
        online.reset()
        found.append(np.stack([online.step(frame[None]) for frame in view]))
    if np.array_equal(found, expected):
        return "frame by frame its scores are those of the int8 clip bit for bit, on %d views" % len(views)
    same = sum(one.mean(0).argmax() == other.mean(0).argmax() for one, other in zip(found, expected))
    return "frame by frame its answer is the int8 clip's on %d of %d views; largest difference of a score %.2g, of scores up to %.1f" % (
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
    source, protocol = list_of(args, model) if args.ann_file else int8.tensors_of(list_inputs(args.input), model), model.tested_by
    nbytes = protocol.nbytes(model.dtype.name)
    calibrate, validate = int8.deal(source.labels, workers_that_fit(args.clips, 2 * nbytes // protocol.views),
                                    0 if args.max_drop is None else workers_that_fit(args.validation, 2 * nbytes))
    chosen = int8.calibration_views(source, calibrate, protocol)
    videos = dict(source.read(validate)) if validate else {}  # before what starts threads
    views, validated = list(chosen.values()), sorted(videos)
    network, few, more = int8.quantise(view, views), views[: COMPARED if online else 0], {}
    if validated:
        apart = "others" if set(chosen).isdisjoint(videos) else "the same, as there are few"
        print("%d clips calibrate, %d validate: %s" % (len(chosen), len(videos), apart))
        held = [view for place in validated for view in videos[place].reshape((protocol.views,) + protocol.view_shape)]
        labels = [source.labels[place] for place in validated]
        network, more["bound"] = int8.bounded(args.max_drop, model, view, network, views, held, labels)
    expected = int8.computed(network, "int8", model, few)[0] if few else []
    int8.write_int8(args.output, int8.of_one_frame(network, model) if online else network, view, views, **more,
                    calibrated_on=json.dumps([source.names[place] for place in chosen]),
                    validated_on=json.dumps([source.names[place] for place in validated]))
    print("wrote %s and .bin: int8, calibrated on %d clips in %.0f s, %.0f MB" % (
        args.output, len(views), time.time() - began, os.path.getsize(int8.weights_file(args.output)) / 1e6))
    if online:
        print(held_against(expected, model, few, args.output))


if __name__ == "__main__":
    run(main)

#!/usr/bin/env python3
"""Post-training quantisation of a TSM to int8, for `TSM_infer.py --precision int8`.

    python3 TSM_quantise.py --model tsm_new_bs1.onnx --input sthv2/preprocess_bin

Takes a model of modify_onnx.py and calibration clips (TSM_preprocess.py's tensors; labels are not used) and writes the
network of one view in int8 as OpenVINO's tsm_int8.xml and tsm_int8.bin beside the model: one file serves every batch
size. Weights get a scale per channel, activations one per tensor, from the values they take on the clips; NNCF does it.
The file knows which network it was made from, and TSM_infer.py refuses it for any other.

Clips are taken evenly over the folder, of each one view, in turn the first to the sixth: clips differ more than the views
of one. What int8 costs in accuracy, TSM_infer.py and run_all.sh print: top-1 agreement with fp32 on the clips at hand.
"""

import argparse
import hashlib
import json
import logging
import os
import time
from typing import Any, Iterator, List

import numpy as np

from tsm import __version__
from tsm.cli import UserError, parser, positive, run
from tsm.files import part_name
from tsm.protocol import SEGMENTS, SIZE, VIEWS
from TSM_infer import Model, int8_file, list_inputs, read_model, read_tensor, view_digest, view_model


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--model", "-m", required=True, metavar="FILE", help="a model of modify_onnx.py, of any batch size")
    cli.add_argument("--input", "-i", required=True, metavar="PATHS", help="calibration clips: tensor files "
                     "(comma-separated) or one folder of them")
    cli.add_argument("--clips", type=positive, default=32, metavar="N", help="at most so many of them are used "
                     "(default: %(default)s)")
    cli.add_argument("--output", "-o", metavar="FILE", help="an .xml file (default: tsm_int8.xml beside the model)")
    args = cli.parse_args()
    args.output = args.output or int8_file(args.model)
    if not args.output.endswith(".xml"):
        cli.error("--output %s: OpenVINO's files end in .xml" % args.output)
    return args


def spread(files: List[str], most: int) -> List[str]:
    """At most `most` of the files, evenly over all of them."""
    return [files[number * len(files) // most] for number in range(most)] if len(files) > most else files


def calibration_views(files: List[str], model: Model) -> Iterator[np.ndarray]:
    """One view, [8, 3, 256, 256] in the model's dtype, of each file's first video."""
    for number, path in enumerate(files):
        views = read_tensor(path, model, None)[:1].reshape(VIEWS, SEGMENTS, 3, SIZE, SIZE)
        yield np.ascontiguousarray(views[number % VIEWS])


def quantise(view: Any, views: List[np.ndarray]) -> Any:
    """The int8 openvino.Model of a one-view ONNX model, calibrated on `views`."""
    import nncf
    import openvino as ov

    nncf.set_log_level(logging.ERROR)
    return nncf.quantize(ov.Core().read_model(view.SerializeToString()), nncf.Dataset(views, lambda x: {"input": x}),
                         subset_size=len(views))


def main() -> None:
    args = get_args()
    os.environ.setdefault("NNCF_CI", "1")  # without it NNCF reports its use to its makers
    try:
        import nncf
        import openvino as ov
    except ImportError as error:
        raise UserError("%s: not installed; run python3 -m pip install nncf openvino" % error.name)
    model = read_model(args.model)
    if model.fusion is None:
        raise UserError("%s: not a model of modify_onnx.py; only those are quantised" % args.model)
    view = view_model(model)
    files = spread(list_inputs(args.input), args.clips)
    began, views, digest = time.time(), [], hashlib.sha256()
    for x in calibration_views(files, model):
        views.append(x)
        digest.update(x)
    small = quantise(view, views)
    known = {"version": __version__, "view_sha256": view_digest(view), "nncf": nncf.__version__, "openvino": ov.__version__,
             "calibration": json.dumps({"clips": len(files), "sha256": digest.hexdigest()})}
    for key, value in known.items():
        small.set_rt_info(value, ["tsm", key])
    weights, part = args.output[:-4] + ".bin", part_name(args.output)[:-5] + ".part.xml"
    try:
        ov.save_model(small, part, compress_to_fp16=False)
        if os.path.exists(args.output):
            os.remove(args.output)  # the two files belong together: there is none of the old .xml beside the new .bin
        os.replace(part[:-4] + ".bin", weights)
        os.replace(part, args.output)
    except RuntimeError as error:
        raise UserError("%s: cannot be written (%s)" % (args.output, str(error).splitlines()[-1][:160]))
    finally:
        for path in (part, part[:-4] + ".bin"):
            if os.path.exists(path):
                os.remove(path)
    print("wrote %s and .bin: int8, calibrated on %d clips in %.0f s, %.0f MB" % (
        args.output, len(files), time.time() - began, os.path.getsize(weights) / 1e6))


if __name__ == "__main__":
    run(main)

"""The int8 form of a model: quantised after training by NNCF, kept in OpenVINO's two files, bound to its network."""

import contextlib
import hashlib
import io
import json
import logging
import os
from typing import Any, Dict, List, Tuple
from xml.etree import ElementTree

import numpy as np

from tsm import __version__
from tsm.cli import UserError, first_line, progress
from tsm.files import part_name
from tsm.infer.tensors import Inputs, check_protocol, read_tensor
from tsm.model.offline import Offline, one_view_digest
from tsm.protocol import Protocol
from tsm.samples import evenly


def int8_file(model: str) -> str:
    """Where TSM_quantise.py's file of a model is unless it is named."""
    return os.path.join(os.path.dirname(model), "tsm_int8.xml")


def weights_file(path: str) -> str:
    """The .bin beside an OpenVINO .xml, which holds its weights."""
    return path[: -len(".xml")] + ".bin"


def openvino_says(error: Exception) -> str:
    """The line of an OpenVINO error that says what is wrong: the last of its summary, or of all."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    summary = [line[3:] for line in lines if line.startswith("-- ")]
    return first_line((summary or lines or [type(error).__name__])[-1])


def calibration_view(video: np.ndarray, number: int, protocol: Protocol) -> np.ndarray:
    """The view [segments, 3, size, size] that the video [frames, 3, size, size] of this number is calibrated by.

    In turn the first to the last view: clips differ more than the views of one, so one of each is enough.
    """
    views = video.reshape((protocol.views,) + protocol.view_shape)
    return np.ascontiguousarray(views[number % protocol.views])


def views_from_tensors(inputs: Inputs, model: Offline, most: int) -> List[np.ndarray]:
    """The calibration views of at most `most` tensor files, evenly over all of them, each checked against its manifest."""
    protocol = model.tested_by
    check_protocol(inputs, protocol, model.dtype, model.path)
    return [
        calibration_view(read_tensor(path, model.shape, model.dtype, inputs.entries.get(os.path.basename(path)))[0],
                         number, protocol)
        for number, path in enumerate(evenly(inputs.files, most))
    ]


def quantise(view: Any, views: List[np.ndarray]) -> Any:
    """The int8 openvino.Model of a one-view ONNX model, calibrated on `views`: weights per channel, activations per tensor."""
    import nncf
    import openvino as ov

    nncf.set_log_level(logging.ERROR)
    fed = 0
    with progress(len(views), "quantisation", "clip") as tick, contextlib.redirect_stdout(io.StringIO()):  # NNCF has a bar of its own

        def feed(x: np.ndarray) -> Dict[str, np.ndarray]:
            nonlocal fed
            fed += 1
            tick(int(fed <= len(views)))
            return {"input": x}

        return nncf.quantize(ov.Core().read_model(view.SerializeToString()), nncf.Dataset(views, feed), subset_size=len(views))


def of_one_frame(network: Any, model: Offline) -> Any:
    """The int8 openvino.Model of one frame from that of an online model's clip: each Pad along the frames gives way to a state.

    What a state holds was quantised before it was moved, by the FakeQuantize above the Pad. Where that begins at 0, as after a ReLU,
    the state holds its uint8 steps; elsewhere its float32 values, which are quantised again as they come in, so that the
    runtime computes what reads them in int8.
    """
    import openvino as ov
    from openvino import opset8 as ops

    network.reshape([1] + list(model.tested_by.frame_shape))
    inputs, outputs = [network.input("input").get_node()], [network.output("output").get_node()]
    pads = {op.get_friendly_name().split("/")[0]: op for op in network.get_ordered_ops() if op.get_type_name() == "Pad"}
    for state in model.states:
        pad = pads[state.layer + ".shift"]
        moved = pad.input_value(0)
        quantiser = moved.get_node()
        while quantiser.get_type_name() != "FakeQuantize":
            quantiser = quantiser.input_value(0).get_node()
        bounds = [quantiser.input_value(number).get_node().data for number in (1, 2, 3, 4)]
        low, high = float(bounds[0].reshape(-1)[0]), float(bounds[1].reshape(-1)[0])
        if low == 0 and bounds[0].size == bounds[1].size == 1:
            given = ops.parameter(state.shape, ov.Type.u8, state.input)
            step = np.float32(high / 255)
            value = ops.multiply(ops.convert(given, "f32"), step)
            made = ops.convert(ops.round(ops.divide(moved, step), "half_to_even"), "u8").output(0)
        else:
            given = ops.parameter(state.shape, ov.Type.f32, state.input)
            value = ops.fake_quantize(given, *bounds, levels=quantiser.get_attributes()["levels"])
            made = moved
        given.output(0).set_names({state.input})
        for reader in pad.output(0).get_target_inputs():
            reader.replace_source_output(value.output(0))
        result = ops.result(made)
        result.output(0).set_names({state.output})
        inputs.append(given)
        outputs.append(result)
    return ov.Model(outputs, inputs, "tsm")


def write_int8(path: str, network: Any, view: Any, views: List[np.ndarray]) -> None:
    """Write a quantised openvino.Model to `path` (.xml) and the .bin beside it, whole or not at all.

    Into it go the digest of the one-view model `view` that it was made from, the versions, and a digest of the
    calibration views.
    """
    import nncf
    import openvino as ov

    digest = hashlib.sha256()
    for array in views:
        digest.update(memoryview(array))
    facts = {"version": __version__, "view_sha256": one_view_digest(view), "nncf": nncf.__version__, "openvino": ov.__version__,
             "calibration": json.dumps({"clips": len(views), "sha256": digest.hexdigest()})}
    for key, value in facts.items():
        network.set_rt_info(value, ["tsm", key])
    part = part_name(path)[: -len(".xml.part")] + ".part.xml"  # OpenVINO wants the suffix
    try:
        ov.save_model(network, part, compress_to_fp16=False)
        if os.path.exists(path):
            os.remove(path)  # so that an old .xml never meets a new .bin
        os.replace(weights_file(part), weights_file(path))
        os.replace(part, path)
    except RuntimeError as error:
        raise UserError("%s: cannot be written (%s)" % (path, openvino_says(error)))
    finally:
        for left in (part, weights_file(part)):
            if os.path.exists(left):
                os.remove(left)


def read_int8(path: str, view: Any, model: str) -> Tuple[Any, Dict[str, str]]:
    """(the openvino.Model that TSM_quantise.py made from the one-view model `view`, what it was made by and on).

    Raises UserError if it is missing, damaged, or made from another network than that of the file `model`.
    """
    import openvino as ov

    remedy = "make it: python3 TSM_quantise.py --model %s --input FOLDER_OF_TENSORS --output %s" % (model, path)
    try:
        facts = {entry.tag: entry.get("value", "") for entry in ElementTree.parse(path).iterfind("rt_info/tsm/*")}
        network = ov.Core().read_model(path) if facts else None
    except (OSError, ElementTree.ParseError, RuntimeError) as error:
        said = "no such file" if isinstance(error, FileNotFoundError) else openvino_says(error)
        raise UserError("%s: cannot be read (%s); %s" % (path, said, remedy))
    if facts.get("view_sha256") != one_view_digest(view):
        raise UserError("%s: was not made from the network (or --input_dtype) of %s; %s" % (path, model, remedy))
    return network, facts

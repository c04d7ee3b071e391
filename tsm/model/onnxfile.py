"""ONNX files: loading them whole, their metadata, protocol, input and output, and what runs them: ONNX Runtime and OpenVINO."""

import hashlib
import json
import os
from typing import Any, Dict, List, NamedTuple, Tuple

import numpy as np
import onnx
from onnx import numpy_helper

from tsm.cli import UserError, first_line
from tsm.machine import cores, has_bf16
from tsm.protocol import SSV2, Protocol, protocol_from


class State(NamedTuple):
    """What a shift of an online model keeps from one frame to the next: zeros before the first."""

    input: str
    output: str
    shape: Tuple[int, ...]  # [1, channels, height, width], float32
    layer: str  # that reads what was shifted, by its name in the checkpoint


def read_onnx(path: str) -> onnx.ModelProto:
    """An ONNX model with all its weights; UserError where the file is not ONNX, is cut short, or keeps weights in a
    file that is missing, damaged, or outside its own folder."""
    with open(path, "rb") as file:
        raw = file.read()
    model = onnx.ModelProto()
    try:
        model.ParseFromString(raw)
    except Exception:  # protobuf's errors differ between its versions
        model = onnx.ModelProto()
    if not model.graph.node or not model.opset_import:
        raise UserError("%s: not an ONNX model, or cut short; export it again" % path)
    folder = os.path.dirname(os.path.abspath(path))
    for tensor in model.graph.initializer:
        for name in (entry.value for entry in tensor.external_data if entry.key == "location"):
            place = os.path.realpath(os.path.join(folder, name))
            if not os.path.isfile(place) or not place.startswith(os.path.realpath(folder) + os.sep):  # older onnx reads it
                raise UserError("%s: its weights in %s are missing, or outside its folder; keep the two files together"
                                % (path, name))
    try:
        onnx.load_external_data_for_model(model, folder)
    except Exception as error:  # a damaged file's, which differ between versions
        raise UserError("%s: its weights cannot be read (%s); export it again" % (path, first_line(error)))
    return model


def metadata(model: onnx.ModelProto) -> Dict[str, str]:
    """The model's metadata_props as a dict."""
    return {entry.key: entry.value for entry in model.metadata_props}


def set_metadata(model: onnx.ModelProto, values: Dict[str, str]) -> None:
    """Put `values` into the model's metadata_props, over what they have under the same keys."""
    onnx.helper.set_model_props(model, dict(metadata(model), **values))


def protocol_of(model: onnx.ModelProto, path: str) -> Protocol:
    """The protocol in the model's metadata (`tsm.protocol`, the JSON object of Protocol._asdict()).

    A model without it, as other exporters write, has Something-Something V2's, with as many classes as its output has.
    Raises UserError naming `path` where it is not a protocol.
    """
    text = metadata(model).get("tsm.protocol")
    if text is not None:
        try:
            facts = dict(json.loads(text))
        except (ValueError, TypeError, RecursionError):
            raise UserError("%s: its tsm.protocol is not a JSON object; export it again" % path)
        return protocol_from(facts, path)
    classes = [dim.dim_value for value in model.graph.output for dim in value.type.tensor_type.shape.dim][-1:]
    return SSV2._replace(classes=classes[0]) if classes and classes[0] > 0 else SSV2


def states_in(model: onnx.ModelProto, path: str) -> List[State]:
    """The states of an online model in order, from its metadata; none for any other. UserError where they are not as they were written."""
    text = metadata(model).get("tsm.states", "[]")
    try:
        return [State(state["input"], state["output"], tuple(state["shape"]), state["layer"]) for state in json.loads(text)]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError("%s: its tsm.states are not as modify_onnx.py wrote them; make it again" % path)


def graph_digest(model: onnx.ModelProto) -> str:
    """Hex SHA-256 of the model's graph, serialised: its nodes and constants, without its metadata."""
    digest = hashlib.sha256()
    for field, values in model.graph.ListFields():  # piece by piece, each behind its number and its length, as all of it is written
        for value in [values] if isinstance(values, str) else values:
            piece = value.encode() if isinstance(value, str) else value.SerializeToString()
            digest.update(_varint(field.number << 3 | 2) + _varint(len(piece)))
            digest.update(piece)
    return digest.hexdigest()


def _varint(number: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the lowest first."""
    return (bytes([number & 127 | 128]) + _varint(number >> 7)) if number > 127 else bytes([number])


def signature(model: onnx.ModelProto, path: str) -> Tuple[str, Tuple[Any, ...], np.dtype]:
    """(name, shape, dtype) of the model's input; a side that is not fixed is a str. UserError where it has not exactly
    one input, and one output, beside the states of an online one."""
    states = states_in(model, path)
    others = {tensor.name for tensor in model.graph.initializer} | {state.input for state in states}
    inputs = [value for value in model.graph.input if value.name not in others]
    outputs = [value for value in model.graph.output if value.name not in {state.output for state in states}]
    if len(inputs) != 1 or len(outputs) != 1:
        raise UserError("%s: has %d inputs and %d outputs; TSM has one of each" % (path, len(inputs), len(outputs)))
    kind = inputs[0].type.tensor_type
    if not kind.elem_type:
        raise UserError("%s: its input is no tensor; export it again" % path)
    shape = tuple(dim.dim_value or dim.dim_param or "?" for dim in kind.shape.dim)
    none_of_it = onnx.TensorProto(data_type=kind.elem_type, dims=[0])
    return inputs[0].name, shape, numpy_helper.to_array(none_of_it).dtype


def session(
    model: onnx.ModelProto, path: str, optimise: bool = True, save_as: str = "", threads: int = 0, arena: bool = True
) -> Any:
    """An onnxruntime.InferenceSession for a model; UserError naming `path` where the runtime refuses it.

    Args:
        optimise: False runs the graph node by node as it stands.
        save_as: folds constants only, and saves the folded model there.
        threads: per node; 0 is one per processor.
        arena: False gives memory back as soon as a value is used up: less of it at a time, slower where calls are many.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = arena
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    if save_as:
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC
        options.optimized_model_filepath = save_as
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors have no common base
        raise UserError("%s: ONNX Runtime refuses it (%s); export it again" % (path, first_line(error, 200)))


def compiled(network: Any, path: str, precision: str, hint: str, streams: int) -> Any:
    """An onnx.ModelProto or an openvino.Model as an openvino.CompiledModel for the CPU, with so many requests at a
    time, by one of OpenVINO's performance hints; for int8 the network has to be of int8. UserError naming `path` where
    OpenVINO refuses it."""
    try:
        import openvino as ov

        core = ov.Core()
    except Exception as error:  # a wheel for another processor or C library fails in many ways
        raise UserError("OpenVINO does not start here (%s); use --backend onnxruntime" % first_line(error))
    if precision == "bf16" and not has_bf16():
        raise UserError("--precision bf16: this processor has no bfloat16 instructions; use fp32")
    config = {
        "PERFORMANCE_HINT": hint,
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": cores(),
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16", "int8": "f32"}[precision],  # of what is not int8
    }
    try:
        if not isinstance(network, ov.Model):
            network = core.read_model(network.SerializeToString())
        return core.compile_model(network, "CPU", config)
    except RuntimeError as error:
        raise UserError("%s: OpenVINO refuses it (%s); try --backend onnxruntime" % (path, openvino_says(error)))


def openvino_says(error: Exception) -> str:
    """The line of an OpenVINO error that says what is wrong: the last of its summary, or of all."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    summary = [line[3:] for line in lines if line.startswith("-- ")]
    return first_line((summary or lines or [type(error).__name__])[-1])

"""The int8 form of a model: quantised after training by NNCF, kept in OpenVINO's two files, bound to its network."""

import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple
from xml.etree import ElementTree

import numpy as np

from tsm import __version__
from tsm.cli import UserError, progress
from tsm.files import part_name
from tsm.infer.tensors import Inputs, check_protocol, read_tensor
from tsm.machine import has_bf16
from tsm.model.offline import Offline, one_view_digest
from tsm.model.onnxfile import compiled, openvino_says
from tsm.protocol import Protocol, fuse
from tsm.results import flips_in_words

LEAST_APART = 16  # clips, from which on those that calibrate do not validate
GOLDEN = 0.6180339887  # whose multiples, without what is before the point, lie evenly from the first on
GIVEN_BACK, RANKED_BY = (1, 2, 4, 8), 4  # layers that go back to fp32 at a time; views that they are ranked by
MULTIPLY = ("Convolution", "GroupConvolution", "MatMul")
NAMES = ("calibrated_on", "validated_on")  # of clips, in the file


class Clips(NamedTuple):
    """Clips to quantise by. `read` takes places in the lists and yields (place, tensor [frames, 3, size, size]), in any order."""

    names: List[str]
    labels: List[Optional[int]]  # None where it is not known
    read: Callable[[Sequence[int]], Iterator[Tuple[int, np.ndarray]]]


def tensors_of(inputs: Inputs, model: Offline) -> Clips:
    """The clips of tensor files, each checked against the manifest as it is read."""
    check_protocol(inputs, model)
    entries = [inputs.entries.get(os.path.basename(path)) for path in inputs.files]

    def read(places: Sequence[int]) -> Iterator[Tuple[int, np.ndarray]]:
        return ((place, read_tensor(inputs.files[place], model.shape, model.dtype, entries[place])[0]) for place in places)

    return Clips([entry["source"] if entry else path for entry, path in zip(entries, inputs.files)],
                 [entry["label"] if entry else None for entry in entries], read)


def int8_file(model: str) -> str:
    """Where TSM_quantise.py's file of a model is unless it is named."""
    return os.path.join(os.path.dirname(model), "tsm_int8.xml")


def weights_file(path: str) -> str:
    """The .bin beside an OpenVINO .xml, which holds its weights."""
    return path[: -len(".xml")] + ".bin"


def deal(labels: Sequence[Optional[int]], calibrate: int, validate: int) -> Tuple[List[int], List[int]]:
    """(the places of at most so many clips that calibrate, of at most so many others that validate): of each class first one, then a
    second one; where no labels are known, evenly. Of fewer than LEAST_APART clips the same do both."""
    seen: Dict[Any, int] = {}
    keys = []
    for place, label in enumerate(labels):
        seen[label] = seen.get(label, -1) + 1
        keys.append((seen[label], place * GOLDEN % 1))
    order = sorted(range(len(keys)), key=lambda place: keys[place] if len(seen) > 1 else keys[place][1:])
    if not validate or len(order) < LEAST_APART:
        return order[:calibrate], order[:validate]
    validate = min(validate, len(order) // 2)
    calibrate = min(calibrate, len(order) - validate)
    return order[:calibrate], order[calibrate : calibrate + validate]


def calibration_views(source: Clips, places: Sequence[int], protocol: Protocol) -> Dict[int, np.ndarray]:
    """{place: view [segments, 3, size, size]} of some of the clips, of each one view, in turn the first to the last: clips differ more
    than the views of one, so one of each is enough."""
    turn = {place: number % protocol.views for number, place in enumerate(places)}
    views = {place: video.reshape((protocol.views,) + protocol.view_shape)[turn[place]].copy() for place, video in source.read(places)}
    return {place: views[place] for place in sorted(views)}


def quantise(view: Any, views: List[np.ndarray], floating: Sequence[str] = ()) -> Any:
    """The int8 openvino.Model of a one-view ONNX model, calibrated on `views`: weights per channel, activations per tensor, but for
    the layers that stay `floating`. Weights use half of their range: where a processor has no VNNI, pairs of products overflow else."""
    import nncf
    import openvino as ov

    nncf.set_log_level(logging.ERROR)
    calls = itertools.count()
    with progress(len(views), "quantisation", "clip") as tick, contextlib.redirect_stdout(io.StringIO()):  # NNCF has a bar of its own

        def feed(x: np.ndarray) -> Dict[str, np.ndarray]:
            tick(int(next(calls) < len(views)))  # NNCF reads them more than once
            return {"input": x}

        network = ov.Core().read_model(view.SerializeToString())
        ignored = [op.get_friendly_name() for op in network.get_ordered_ops()
                   if op.get_type_name() in MULTIPLY and layer_of(op) in floating]
        return nncf.quantize(network, nncf.Dataset(views, feed), subset_size=len(views), ignored_scope=nncf.IgnoredScope(names=ignored),
                             advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE))


def answers_of(scores: Sequence[np.ndarray], model: Offline) -> np.ndarray:
    """The answers, int [videos], from the frame scores [segments, classes] of their views, video by video."""
    return fuse(np.stack(scores).mean(1, dtype=np.float64), model.tested_by.views, str(model.fusion)).argmax(1)


def sensitive(exact: Any, network: Any, views: Sequence[np.ndarray]) -> List[str]:
    """The layers of a quantised openvino.Model, that first to whose output it adds the largest error: mean square over variance, beside
    the same network `exact` in fp32 on some views, above the largest error of what it reads."""
    import openvino as ov

    pairs = [{op.get_friendly_name(): op for op in one.get_ordered_ops() if op.get_type_name() in MULTIPLY} for one in (exact, network)]
    ready = [ov.Core().compile_model(ov.Model([pair[name].output(0) for name in pairs[0]], one.get_parameters(), "layers"), "CPU",
                                     {"INFERENCE_PRECISION_HINT": "f32"}) for one, pair in zip((exact, network), pairs)]
    errors = dict.fromkeys(pairs[0], 0.0)
    for view in views:
        for name, true, found in zip(pairs[0], *(one([view]).values() for one in ready)):
            axes = (0,) + tuple(range(2, true.ndim))  # what a bias adds to a channel does not count
            wrong = found - true
            errors[name] += float(wrong.var(axes).sum() / (true.var(axes).sum() + 1e-12))
    above: Dict[str, float] = {}  # by op: the largest error of the layers above
    gains: Dict[str, float] = {}
    for op in exact.get_ordered_ops():
        name = op.get_friendly_name()
        read = max([above[value.get_node().get_friendly_name()] for value in op.input_values()], default=0.0)
        above[name] = errors.get(name, read)
        if name in errors:
            layer = layer_of(op)
            gains[layer] = max(gains.get(layer, 0.0), errors[name] - read)
    return sorted(gains, key=lambda layer: -gains[layer])


def layer_of(op: Any) -> str:
    """The layer that an operation is a part of."""
    return str(op.get_friendly_name().split("/")[0])


def computed(network: Any, precision: str, model: Offline, views: Sequence[np.ndarray]) -> Tuple[List[np.ndarray], float]:
    """(a one-view network's frame scores [segments, classes] of some views, the median of their times in ms)."""
    ready, scores, times = compiled(network, model.path, precision, "LATENCY", 1), [], []
    for view in views:
        began = time.perf_counter()
        scores.append(ready({0: view})[0].copy())
        times.append(1000 * (time.perf_counter() - began))
    return scores, float(np.median(times))


def bounded(
    points: float, model: Offline, view: Any, network: Any, views: List[np.ndarray], held: List[np.ndarray], labels: List[Optional[int]]
) -> Tuple[Any, str]:
    """(the int8 network with as many of its layers in floating point as it takes, the bound in words), told on the way.

    Args:
        points: that top-1 may be lower; without labels the percentage of answers that may differ.
        view, network: the one-view ONNX model, and its int8 openvino.Model, calibrated on `views`.
        held: views of the videos that validate, video by video; `labels` are theirs, None where it is not known.
    """
    import openvino as ov

    exact, fp32_ms = computed(view, "fp32", model, held)
    known = len(set(labels)) > 1 and None not in labels  # one label for all says that there were none
    truth = np.array(labels) if known else answers_of(exact, model)

    def right(scores: Sequence[np.ndarray]) -> float:
        return float((answers_of(scores, model) == truth).mean())

    def tell(what: str, scores: Sequence[np.ndarray]) -> Tuple[float, str]:
        lost, flips = 100 * (right(exact) - right(scores)), int((answers_of(scores, model) != answers_of(exact, model)).sum())
        words = "%s on %d videos; %s" % (("top-1 %.1f points lower" if known else "%.1f %% of the answers differ") % lost, len(truth),
                                         flips_in_words(flips, len(truth), None))
        print("%s: %s" % (what, words))
        return lost, words

    found, int8_ms = computed(network, "int8", model, held)
    lost, words = tell("int8", found)
    speeds, given = {"fp32": fp32_ms, "int8": int8_ms}, []  # type: Dict[str, float], List[str]
    for count in GIVEN_BACK:
        if lost <= points + 1e-6:
            break
        ranks = sensitive(ov.Core().read_model(view.SerializeToString()), network, held[:: -(-len(held) // RANKED_BY)])
        given += [layer for layer in ranks if layer not in given][:count]
        network = quantise(view, views, given)
        found, speeds["mixed"] = computed(network, "int8", model, held)
        lost, words = tell("with %s in fp32" % ", ".join(given), found)
    if has_bf16():
        speeds["bf16"] = computed(view, "bf16", model, held[: model.tested_by.views])[1]
    print("ms a view, roughly: " + ", ".join("%s %.0f" % item for item in speeds.items()))
    if lost > points + 1e-6:
        raise UserError("--max_drop %g: does not hold with %d layers in floating point (%.1f); use %s" % (
            points, len(given), lost, "--precision bf16" if has_bf16() else "fp32"))
    return network, "bound %g: %s%s" % (points, words, "; in fp32: " + ", ".join(given) if given else "")


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
        while quantiser.get_type_name() in ("Split", "VariadicSplit", "MaxPool"):
            quantiser = quantiser.input_value(0).get_node()
        quantised = quantiser.get_type_name() == "FakeQuantize"  # unless it was given back to floating point
        bounds = [quantiser.input_value(number).get_node().data for number in (1, 2, 3, 4) if quantised]
        low, high = (float(bound.reshape(-1)[0]) for bound in bounds[:2] or [np.array([1]), np.array([1])])
        if low == 0 and bounds[0].size == bounds[1].size == 1:
            given = ops.parameter(state.shape, ov.Type.u8, state.input)
            step = np.float32(high / 255)
            value = ops.multiply(ops.convert(given, "f32"), step)
            made = ops.convert(ops.round(ops.divide(moved, step), "half_to_even"), "u8").output(0)
        else:
            given = ops.parameter(state.shape, ov.Type.f32, state.input)
            value = ops.fake_quantize(given, *bounds, levels=quantiser.get_attributes()["levels"]) if quantised else given
            made = moved
        given.output(0).set_names({state.input})
        for reader in pad.output(0).get_target_inputs():
            reader.replace_source_output(value.output(0))
        result = ops.result(made)
        result.output(0).set_names({state.output})
        inputs.append(given)
        outputs.append(result)
    return ov.Model(outputs, inputs, "tsm")


def write_int8(path: str, network: Any, view: Any, views: List[np.ndarray], **more: str) -> None:
    """Write a quantised openvino.Model to `path` (.xml) and the .bin beside it, whole or not at all.

    Into it go the digest of the one-view model `view` that it was made from, the versions, a digest of the calibration views, and
    `more`: the bound that holds, and under NAMES the clips' names.
    """
    import nncf
    import openvino as ov

    digest = hashlib.sha256()
    for array in views:
        digest.update(memoryview(array))
    facts = {"version": __version__, "view_sha256": one_view_digest(view), "nncf": nncf.__version__, "openvino": ov.__version__,
             "calibration": json.dumps({"clips": len(views), "sha256": digest.hexdigest()}), **more}
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
    """(the openvino.Model that TSM_quantise.py made from the one-view model `view`, what it was made by and on, without NAMES).

    Raises UserError if it is missing, damaged, or made from another network than that of the file `model`.
    """
    import openvino as ov

    remedy = "make it: python3 TSM_quantise.py --model %s --input FOLDER_OF_TENSORS --output %s" % (model, path)
    try:
        facts = {entry.tag: entry.get("value", "") for entry in ElementTree.parse(path).iterfind("rt_info/tsm/*")
                 if entry.tag not in NAMES}
        network = ov.Core().read_model(path) if facts else None
    except (OSError, ElementTree.ParseError, RuntimeError) as error:
        said = "no such file" if isinstance(error, FileNotFoundError) else openvino_says(error)
        raise UserError("%s: cannot be read (%s); %s" % (path, said, remedy))
    if facts.get("view_sha256") != one_view_digest(view):
        raise UserError("%s: was not made from the network (or --input_dtype) of %s; %s" % (path, model, remedy))
    return network, facts

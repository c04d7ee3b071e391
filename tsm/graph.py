"""TSM as an ONNX graph: the trunk common to all its forms, and the forms that runtimes are given.

A trunk is a list of ONNX nodes from `frames` [frames, 3, 256, 256] to `features` [frames, 2048, 8, 8], made of Conv, Relu,
MaxPool, Add and one operator of our own, TemporalShift (one input, one output, fold = channels // 8). build() writes it
out for a target; trunk_of() reads it back from what build() wrote.
"""

from functools import partial
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple, Union

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tsm import __version__
from tsm.protocol import FRAMES, MEAN, SEGMENTS, SHIFT_DIV, SIZE, STD, VIEWS

OPSET = 11  # the newest that both ATC (CANN 6) and every runtime of the last years take
SHIFT = "TemporalShift"
FORMS = ("ascend", "cpu", "view", "none")
# ascend: zeros by Concat, for ATC;  cpu: zeros by Pad;  view: the 8 frames of one view, the shift taken apart (_in_parts);
# none: one view with no shift at all, the floor that the shift's cost is measured from


class Trunk(NamedTuple):
    """A network without its form: `nodes` in canonical order, their `weights`, and the classifier [classes, features]."""

    nodes: List[NodeProto]
    weights: Dict[str, np.ndarray]
    fc_weight: np.ndarray
    fc_bias: np.ndarray


def attributes(node: NodeProto) -> Dict[str, object]:
    """A node's attributes as Python values."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def output_shape(node: NodeProto, shape: Tuple[int, ...], weights: Dict[str, np.ndarray]) -> Tuple[int, ...]:
    """Shape (channels, height, width) of a trunk node's output from that of its first input."""
    if node.op_type not in ("Conv", "MaxPool"):
        return shape
    given = attributes(node)
    strides, pads = given.get("strides", [1, 1]), given.get("pads", [0, 0, 0, 0])
    sides = [
        (shape[1 + axis] + pads[axis] + pads[axis + 2] - given["kernel_shape"][axis]) // strides[axis] + 1
        for axis in (0, 1)
    ]
    channels = weights[node.input[1]].shape[0] if node.op_type == "Conv" else shape[0]
    return (channels, sides[0], sides[1])


class Graph:
    """The nodes and constants of a model being written."""

    def __init__(self) -> None:
        self.nodes, self.constants = [], {}  # type: List[NodeProto], Dict[str, TensorProto]

    def constant(self, name: str, value: np.ndarray) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def ints(self, *values: int) -> str:
        name = "ints_" + "_".join(str(value).replace("-", "m") for value in values)
        return self.constant(name, np.array(values, np.int64))

    def add(self, op: str, inputs: List[str], name: str, outputs: int = 0, **given: object) -> List[str]:
        """Append a node; its output is called as it is, or `name`:0, 1, … where `outputs` are asked for."""
        values = ["%s:%d" % (name, number) for number in range(outputs)] or [name]
        self.nodes.append(helper.make_node(op, inputs, values, name, **given))
        return values

    def one(self, op: str, inputs: List[str], name: str, **given: object) -> str:
        return self.add(op, inputs, name, **given)[0]


def shift(graph: Graph, x: str, name: str, shape: Tuple[int, ...], form: str, batch: int) -> str:
    """The temporal shift of x, float [frames, C, H, W], in the ascend, cpu or none form; returns the shifted value's name."""
    if form == "none":
        return x
    channels, height, width = shape
    fold = channels // SHIFT_DIV
    area = height * width
    x = graph.one("Reshape", [x, graph.ints(-1, SEGMENTS, channels, area)], name + "/views")
    if form == "cpu":
        parts = graph.add("Split", [x], name + "/split", 3, axis=2, split=[fold, fold, channels - 2 * fold])
        ahead = graph.one("Pad", [parts[0], graph.ints(0, -1, 0, 0, 0, 1, 0, 0)], name + "/ahead")
        behind = graph.one("Pad", [parts[1], graph.ints(0, 1, 0, 0, 0, -1, 0, 0)], name + "/behind")
        still = parts[2]
    else:

        def cut(part: str, starts: Tuple[int, ...], ends: Tuple[int, ...], axes: Tuple[int, ...]) -> str:
            return graph.one("Slice", [x, graph.ints(*starts), graph.ints(*ends), graph.ints(*axes)], part)

        zeros = graph.constant("zeros_%dx%d" % (fold, area), np.zeros((VIEWS * batch, 1, fold, area), np.float32))
        ahead = cut(name + "/next", (1, 0), (SEGMENTS, fold), (1, 2))
        ahead = graph.one("Concat", [ahead, zeros], name + "/ahead", axis=1)
        behind = cut(name + "/previous", (0, fold), (SEGMENTS - 1, 2 * fold), (1, 2))
        behind = graph.one("Concat", [zeros, behind], name + "/behind", axis=1)
        still = cut(name + "/still", (2 * fold,), (channels,), (2,))
    x = graph.one("Concat", [ahead, behind, still], name + "/joined", axis=2)
    return graph.one("Reshape", [x, graph.ints(-1, channels, height, width)], name)


def _named(trunk: Trunk) -> Iterator[Tuple[NodeProto, str, Tuple[int, ...]]]:
    """Each node of the trunk with its name in a model (conv_0, conv_1, …) and its output's (channels, height, width)."""
    shapes, numbers = {"frames": (3, SIZE, SIZE)}, {}  # type: Dict[str, Tuple[int, ...]], Dict[str, int]
    for node in trunk.nodes:
        number = numbers[node.op_type] = numbers.get(node.op_type, -1) + 1
        shapes[node.output[0]] = output_shape(node, shapes[node.input[0]], trunk.weights)
        yield node, "%s_%d" % ("shift" if node.op_type == SHIFT else node.op_type.lower(), number), shapes[node.output[0]]


Shift = Callable[[Graph, str, str, Tuple[int, ...]], str]  # (graph, x, name, (channels, height, width)) -> shifted value


def _whole(graph: Graph, trunk: Trunk, x: str, write_shift: Shift) -> str:
    """The trunk on x, float [frames, 3, 256, 256], node by node, its shifts by `write_shift`. Returns the features' name."""
    values = {"frames": x}
    for node, name, shape in _named(trunk):
        inputs = [values[value] for value in node.input if value in values]
        if node.op_type == SHIFT:
            out = write_shift(graph, inputs[0], name, shape)
        else:
            inputs += [
                graph.constant("%s.%s" % (name, what), trunk.weights[value])
                for value, what in zip(node.input[1:], ("weight", "bias")) if value in trunk.weights
            ]
            out = graph.one(node.op_type, inputs, name, **attributes(node))
        values[node.output[0]] = out
    return values["features"]


def _in_parts(graph: Graph, trunk: Trunk, x: str) -> str:
    """The trunk on one view, x float [8, 3, 256, 256], with hardly a copy for its shifts; returns the features' name.

    A shift copies all channels to move a quarter of them. Here the value that a shift takes is never whole: the
    convolutions that make it write its channels that go ahead, those that go behind and those that stay as three tensors,
    what lies between (Add, Relu) works on each, and only the first two are moved. The convolution after the shift is
    the sum of one over what moved and one over what stayed, a sum that engines add up in place. A strided shortcut gets
    only the pixels that it reads joined. The pooled stem is whole as it comes, so there the second convolution runs over
    all of it, with weights of zero for what moved. The arithmetic is the same but for the order of the sums.
    """
    parted = set()  # type: Set[str]  # values kept in three tensors
    for node in reversed(trunk.nodes):
        if node.op_type == SHIFT or node.op_type in ("Add", "Relu") and node.output[0] in parted:
            parted.update(node.input)
    parted -= {node.output[0] for node in trunk.nodes if node.op_type == "MaxPool"}
    unmoved = set()  # type: Set[str]  # shifted values beside which the whole of what was shifted is kept
    parts, joined = {"frames": [x]}, {}  # type: Dict[str, List[str]], Dict[str, str]

    def whole(value: str) -> str:
        if value not in joined:
            several = len(parts[value]) > 1
            joined[value] = graph.one("Concat", parts[value], parts[value][0] + "/joined", axis=1) if several else parts[value][0]
        return joined[value]

    def every_second(value: str) -> str:
        """Of a value in parts, the pixels that a 1x1 convolution of stride 2 reads: a quarter of it to join."""
        few = [graph.one("MaxPool", [part], part + "/every_second", kernel_shape=[1, 1], strides=[2, 2]) for part in parts[value]]
        return graph.one("Concat", few, value + "/every_second", axis=1)

    for node, name, (channels, _, _) in _named(trunk):
        source, out = node.input[0], node.output[0]
        given, fold = attributes(node), channels // SHIFT_DIV
        cut = {"/ahead": fold, "/behind": fold, "/still": channels - 2 * fold} if out in parted else {"": channels}
        if node.op_type == SHIFT:
            ahead, behind, still = parts[source] if source in parted else parts[source] * 3
            first, rest = (0, 0) if source in parted else (fold, channels - fold)  # channels to cut off
            ahead = graph.one("Pad", [ahead, graph.ints(-1, 0, 0, 0, 1, -rest, 0, 0)], name + "/ahead")
            behind = graph.one("Pad", [behind, graph.ints(1, -first, 0, 0, -1, first - rest, 0, 0)], name + "/behind")
            parts[out] = [graph.one("Concat", [ahead, behind], name + "/moved", axis=1), still]
            if source not in parted:
                unmoved.add(out)
        elif node.op_type == "Conv":
            weight, bias = (trunk.weights[value] for value in node.input[1:])
            after_shift = len(parts[source]) == 2
            if len(parts[source]) == 3 and given["kernel_shape"] == [1, 1] and given["strides"] == [2, 2]:
                parts[source + "/2"], source = [every_second(source)], source + "/2"
                given = dict(given, strides=[1, 1])
            moved = 2 * (weight.shape[1] // SHIFT_DIV)
            remaining = weight.copy() if source in unmoved else weight[:, moved:] if after_shift else weight
            if source in unmoved:
                remaining[:, :moved] = 0
            parts[out], start = [], 0
            for part, size in cut.items():
                rows = slice(start, start + size)
                start += size
                weights = graph.constant(name + part + ".weight", remaining[rows])
                biases = graph.constant(name + part + ".bias", bias[rows])
                x = parts[source][1] if after_shift else whole(source)
                x = graph.one("Conv", [x, weights, biases], name + part, **given)
                if after_shift:
                    weights = graph.constant(name + part + "/moved.weight", weight[rows, :moved])
                    y = graph.one("Conv", [parts[source][0], weights], name + part + "/moved", **given)
                    x = graph.one("Add", [x, y], name + part + "/sum")
                parts[out].append(x)
        elif node.op_type in ("Add", "Relu"):
            inputs = [parts[value] if out in parted else [whole(value)] for value in node.input]
            parts[out] = [graph.one(node.op_type, list(x), name + part) for part, x in zip(cut, zip(*inputs))]
        else:
            parts[out] = [graph.one(node.op_type, [whole(source)], name, **given)]
    return whole("features")


def _normalise(graph: Graph, x: str) -> str:
    """uint8 RGB -> float32 (x - mean) / std, per channel of [frames, 3, H, W]."""
    x = graph.one("Cast", [x], "cast", to=TensorProto.FLOAT)
    mean = graph.constant("mean", np.float32(MEAN).reshape(1, 3, 1, 1))
    scale = graph.constant("scale", (1 / np.float64(np.float32(STD))).astype(np.float32).reshape(1, 3, 1, 1))
    return graph.one("Mul", [graph.one("Sub", [x, mean], "centred"), scale], "normalised")


def _tail(graph: Graph, fusion: Optional[str], softmax: bool, classes: int) -> None:
    """frame_scores [frames, classes] -> `output`: per view [views, classes], or the fused [batch, classes]."""
    over_frames = dict(axes=[1], keepdims=0)
    if fusion == "score":
        x = graph.one("Reshape", ["frame_scores", graph.ints(-1, FRAMES, classes)], "videos")
        x = graph.one("ReduceMean", [x], "scores", **over_frames)
        graph.one("Softmax", [x], "output", axis=1)
        return
    x = graph.one("Reshape", ["frame_scores", graph.ints(-1, SEGMENTS, classes)], "views")
    x = graph.one("ReduceMean", [x], "output" if not (fusion or softmax) else "view_scores", **over_frames)
    if fusion or softmax:
        x = graph.one("Softmax", [x], "view_probabilities" if fusion else "output", axis=1)
    if fusion:
        x = graph.one("Reshape", [x, graph.ints(-1, VIEWS, classes)], "videos")
        graph.one("ReduceMean", [x], "output", **over_frames)


def build(
    trunk: Trunk, form: Union[str, Shift], batch: int = 1, fusion: Optional[str] = None, softmax: bool = False,
    dtype: str = "float32",
) -> onnx.ModelProto:
    """Write a trunk out as a model.

    Args:
        form: one of FORMS. ascend, cpu: `input` [batch, 48, 3, 256, 256] -> `output` [batch, classes], or, where fusion
            is None, per view [6 * batch, classes]. view, none: `input` [8, 3, 256, 256] -> `output`, the frame scores
            [8, classes], whatever batch, fusion and softmax. Or a function that writes the shift, to try another form:
            as view and none, of `batch` views.
        fusion: one of tsm.protocol.FUSIONS, or None.
        softmax: for fusion None: probabilities per view instead of class scores.
        dtype: float32, or uint8 (RGB 0..255, normalised in the graph).
    """
    graph, view = Graph(), callable(form) or form in ("view", "none")
    frames = SEGMENTS * (batch if callable(form) else 1)  # of a model of views
    kind = TensorProto.UINT8 if dtype == "uint8" else TensorProto.FLOAT
    frame = [3, SIZE, SIZE]
    x = "input"
    if not view:
        x = graph.one("Reshape", [x, graph.ints(-1, *frame)], "frames")
    if dtype == "uint8":
        x = _normalise(graph, x)
    if form == "view":
        x = _in_parts(graph, trunk, x)
    else:
        x = _whole(graph, trunk, x, form if callable(form) else partial(shift, form=form, batch=batch))
    classes = len(trunk.fc_weight)
    x = graph.one("GlobalAveragePool", [x], "pooled")
    x = graph.one("Flatten", [x], "flat", axis=1)
    fc = [graph.constant("fc.weight", trunk.fc_weight), graph.constant("fc.bias", trunk.fc_bias)]
    graph.one("Gemm", [x] + fc, "output" if view else "frame_scores", transB=1)
    if not view:
        _tail(graph, fusion, softmax, classes)
    rows = frames if view else batch if fusion else batch * VIEWS
    made = helper.make_graph(
        graph.nodes,
        "tsm",
        [helper.make_tensor_value_info("input", kind, ([frames] if view else [batch, FRAMES]) + frame)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [rows, classes])],
        list(graph.constants.values()),
    )
    model = helper.make_model(made, producer_name="tsm", producer_version=__version__)
    model.ir_version = 6  # that of opset 11, so that the oldest supported runtime reads it
    del model.opset_import[:]
    model.opset_import.add(domain="", version=OPSET)
    return model


def trunk_of(model: onnx.ModelProto) -> Trunk:
    """The trunk of a model that build() wrote in the ascend or cpu form; ValueError for any other model."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes, names = [], {}  # type: List[NodeProto], Dict[str, str]
    for node in model.graph.node:
        if node.output[0] in ("frames", "normalised"):
            names[node.output[0]] = "frames"
        elif node.name.startswith("shift_"):
            if node.name.endswith("/views"):
                source = names.get(node.input[0], node.input[0])
            elif "/" not in node.name:
                nodes.append(helper.make_node(SHIFT, [source], [node.output[0]]))
        elif node.op_type == "GlobalAveragePool":
            names[node.input[0]] = "features"
        elif node.op_type in ("Conv", "Relu", "MaxPool", "Add"):
            nodes.append(node)
    if "fc.weight" not in weights or "features" not in names.values():
        raise ValueError("no trunk or no classifier in it")
    renamed = []
    for node in nodes:
        copy = helper.make_node(
            node.op_type, [names.get(value, value) for value in node.input],
            [names.get(value, value) for value in node.output], **attributes(node)
        )
        renamed.append(copy)
    return Trunk(renamed, weights, weights["fc.weight"], weights["fc.bias"])

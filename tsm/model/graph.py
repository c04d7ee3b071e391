"""TSM as an ONNX graph: the trunk common to all its forms, and the forms that runtimes are given.

A trunk is a list of ONNX nodes from `frames` [frames, 3, size, size] to `features` [frames, C, H, W], made of Conv, Relu,
MaxPool, Add and two operators of our own, of one input and one output: TemporalShift (fold = channels // shift_div) and
Relu6, which is written as Clip. build() writes it out for a target; trunk_of() reads it back from what build() wrote. In
every form a layer is called by its place in the network, as in the checkpoint: conv1, layer2.0.conv1, layer2.0.downsample,
MobileNetV2's layer2.0.conv.1, fc; what belongs to it has its name in front (layer2.0.conv1.shift/ahead).
"""

import json
from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tsm import __version__
from tsm.cli import UserError
from tsm.model.onnxfile import metadata, set_metadata, signature
from tsm.protocol import Protocol, protocol_from

OPSET = 11  # the newest that both ATC (CANN 6) and every runtime of the last years take
SHIFT = "TemporalShift"
RELU6, SIX = "Relu6", 6.0  # the least of the value and 6, but at least 0
MOST_BYTES = (1 << 31) - (1 << 20)  # of the constants of one file: protobuf takes 2 GiB in all
Shape = Tuple[int, ...]  # of one frame: channels, height, width


class Trunk(NamedTuple):
    """A network without its form: `nodes` in canonical order, their `weights`, and the classifier [classes, features]."""

    nodes: List[NodeProto]
    weights: Dict[str, np.ndarray]
    fc_weight: np.ndarray
    fc_bias: np.ndarray


class Layer(NamedTuple):
    """A node of a trunk, its name by its place in the network, and the shape of its output."""

    node: NodeProto
    name: str
    shape: Shape


def attributes(node: NodeProto) -> Dict[str, Any]:
    """A node's attributes as Python values."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def output_shape(node: NodeProto, shape: Shape, weights: Dict[str, np.ndarray]) -> Shape:
    """Shape (channels, height, width) of a trunk node's output from that of its first input."""
    if node.op_type not in ("Conv", "MaxPool"):
        return shape
    facts = attributes(node)
    strides, pads = facts.get("strides", [1, 1]), facts.get("pads", [0, 0, 0, 0])
    sides = [
        (shape[1 + axis] + pads[axis] + pads[axis + 2] - facts["kernel_shape"][axis]) // strides[axis] + 1
        for axis in (0, 1)
    ]
    channels = weights[node.input[1]].shape[0] if node.op_type == "Conv" else shape[0]
    return (channels, sides[0], sides[1])


def shift_step(blocks: Sequence[int]) -> int:
    """TSM shifts every so many-th block of each stage of a ResNet with so many `blocks` per stage.

    All, or every second one where the third stage has 23 or more. Source: mmaction2 0.24.1,
    ResNetTSM.make_temporal_shift, shift place `blockres`.
    """
    return 2 if len(blocks) > 2 and blocks[2] >= 23 else 1


def depthwise(node: NodeProto, weights: Dict[str, np.ndarray]) -> bool:
    """Is the node a convolution of every channel by itself?"""
    return node.op_type == "Conv" and attributes(node).get("group", 1) == len(weights[node.input[1]]) > 1


def layers(nodes: List[NodeProto], weights: Dict[str, np.ndarray], frame_shape: Shape) -> List[Layer]:
    """A trunk's nodes with their names, as mmaction2's state dict has them, and shapes; from the nodes' places alone.

    A stage (layer1, layer2, ...) is a run of blocks of one output shape; see _blocks(). Convolutions outside the blocks are
    conv1, ... .
    """
    shapes, made_by = {"frames": frame_shape}, {node.output[0]: node for node in nodes}
    for node in nodes:
        shapes[node.output[0]] = output_shape(node, shapes[node.input[0]], weights)
    names: Dict[str, str] = {}  # by value
    stage, block = 0, 0
    last: Shape = ()
    for end, inside in _blocks(nodes, weights, made_by):
        stage, block = (stage, block + 1) if shapes[end] == last else (stage + 1, 0)
        last, prefix = shapes[end], "layer%d.%d." % (stage, block)
        for value, name in inside:
            names.setdefault(value, prefix + name)
    outside = [node for node in nodes if node.op_type == "Conv" and node.output[0] not in names]
    names.update({node.output[0]: "conv%d" % number for number, node in enumerate(outside, 1)})
    for node in nodes:
        if node.op_type == SHIFT:
            readers = [names[other.output[0]] for other in nodes if other.op_type == "Conv" and other.input[0] == node.output[0]]
            names[node.output[0]] = (readers or ["all"])[0] + ".shift"
        elif node.output[0] not in names:
            before = names.get(node.input[0], "frames")
            before = before[: -len(".add")] if before.endswith(".add") else before
            names[node.output[0]] = "maxpool" if node.op_type == "MaxPool" else "%s.%s" % (before, node.op_type.lower())
    used: Dict[str, int] = {}
    for value, name in names.items():
        used[name] = used.get(name, 0) + 1
        names[value] = name if used[name] == 1 else "%s_%d" % (name, used[name])
    return [Layer(node, names[node.output[0]], shapes[node.output[0]]) for node in nodes]


def _blocks(
    nodes: List[NodeProto], weights: Dict[str, np.ndarray], made_by: Dict[str, NodeProto]
) -> List[Tuple[str, List[Tuple[str, str]]]]:
    """The blocks of a trunk in order: (the value that a block makes, its values with their names inside the block).

    An Add ends a ResNet's block: the longer way to it has the block's conv1, conv2, ..., the shorter one its downsample. A
    convolution per channel is the middle of MobileNetV2's, with a 1x1 before it (but in the first block) and one after it:
    conv.0, conv.1, conv.2; an Add only where the block has a residual connection.
    """
    blocks: List[Tuple[str, List[Tuple[str, str]]]] = []
    middles = [node for node in nodes if depthwise(node, weights)]
    for middle in middles:
        convs = [middle]
        before = _up(made_by, middle.input[0])
        if before is not None and attributes(before)["kernel_shape"] == [1, 1]:
            convs.insert(0, before)
        convs += [node for node in nodes if node.op_type == "Conv" and _up(made_by, node.input[0]) is middle][:1]
        x = made_by.get(convs[0].input[0])
        entered = x.input[0] if x is not None and x.op_type == SHIFT else convs[0].input[0]
        inside = [(conv.output[0], "conv.%d" % number) for number, conv in enumerate(convs)]
        inside += [(node.output[0], "add") for node in nodes
                   if node.op_type == "Add" and set(node.input) == {entered, convs[-1].output[0]}]
        blocks.append((inside[-1][0], inside))
    for end in (node.output[0] for node in nodes if node.op_type == "Add" and not middles):
        inside = [(end, "add")]
        longer, shorter = _ways(made_by, made_by[end])
        longer, shorter = ([value for value in way if made_by[value].op_type == "Conv"] for way in (longer, shorter))
        inside += [(value, "conv%d" % number) for number, value in enumerate(longer, 1)]
        blocks.append((end, inside + [(value, "downsample") for value in shorter]))
    return blocks


def _up(made_by: Dict[str, NodeProto], value: str) -> Optional[NodeProto]:
    """The convolution that makes a value, with nothing but an activation after it; None where there is no such one."""
    node = made_by.get(value)
    while node is not None and node.op_type in ("Relu", RELU6):
        node = made_by.get(node.input[0])
    return node if node is not None and node.op_type == "Conv" else None


def _ways(made_by: Dict[str, NodeProto], add: NodeProto) -> List[List[str]]:
    """The values on the two ways to an Add from where they part, in order: the longer way, then the shorter one."""
    ways: List[List[str]] = []
    for value in add.input[:2]:
        way = []
        while value in made_by:
            way.append(value)
            value = made_by[value].input[0]
        ways.append(way)
    ways = [[value for value in way if value not in other] for way, other in zip(ways, map(set, reversed(ways)))]
    return sorted((way[::-1] for way in ways), key=len, reverse=True)


class Graph:
    """The nodes and constants of a model being written."""

    def __init__(self) -> None:
        self.written: List[NodeProto] = []
        self.constants: Dict[str, TensorProto] = {}

    def constant(self, name: str, value: np.ndarray) -> str:
        """Name a constant, once."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def ints(self, *values: int) -> str:
        """A constant of int64 values, named by them."""
        name = "ints_" + "_".join(str(value).replace("-", "m") for value in values)
        return self.constant(name, np.array(values, np.int64))

    def nodes(self, op: str, inputs: List[str], name: str, outputs: int, **facts: Any) -> List[str]:
        """Append a node of several outputs, `name`:0, 1, ...; returns their names."""
        values = ["%s:%d" % (name, number) for number in range(outputs)]
        self.written.append(helper.make_node(op, inputs, values, name, **facts))
        return values

    def node(self, op: str, inputs: List[str], name: str, output: str = "", **facts: Any) -> str:
        """Append a node of one output, which is called as the node is unless told otherwise; returns its name."""
        self.written.append(helper.make_node(op, inputs, [output or name], name, **facts))
        return output or name

    def layer(self, node: NodeProto, inputs: List[str], name: str) -> str:
        """Append a trunk's node of one output on the values `inputs`; returns its name."""
        if node.op_type != RELU6:
            return self.node(node.op_type, inputs, name, **attributes(node))
        bounds = [self.constant(what, np.array(bound, np.float32)) for what, bound in (("zero", 0.0), ("six", SIX))]
        return self.node("Clip", inputs + bounds, name)


WriteShift = Callable[[Graph, str, str, Shape], str]  # (graph, x, name, shape of a frame of x) -> the shifted value's name


def shift(graph: Graph, x: str, name: str, shape: Shape, form: str, protocol: Protocol, batch: int) -> str:
    """The temporal shift of x, float [frames, C, H, W], in the ascend, cpu or none form, or the view form, which takes the
    frames of one view; returns the shifted value's name."""
    if form == "none":
        return x
    channels, height, width = shape
    fold, area, segments = channels // protocol.shift_div, height * width, protocol.segments
    stay = channels - 2 * fold  # none at a shift_div of 2
    if form == "view":
        return _masked_shift(graph, x, name, channels, fold)
    x = graph.node("Reshape", [x, graph.ints(-1, segments, channels, area)], name + "/views")
    if form == "cpu":
        sizes = [fold, fold] + ([stay] if stay else [])
        parts = graph.nodes("Split", [x], name + "/split", len(sizes), axis=2, split=sizes)
        ahead = graph.node("Pad", [parts[0], graph.ints(0, -1, 0, 0, 0, 1, 0, 0)], name + "/ahead")
        behind = graph.node("Pad", [parts[1], graph.ints(0, 1, 0, 0, 0, -1, 0, 0)], name + "/behind")
        still = parts[2:]
    else:

        def cut(part: str, starts: Shape, ends: Shape, axes: Shape) -> str:
            return graph.node("Slice", [x, graph.ints(*starts), graph.ints(*ends), graph.ints(*axes)], part)

        zeros = graph.constant("zeros_%dx%d" % (fold, area), np.zeros((protocol.views * batch, 1, fold, area), np.float32))
        ahead = cut(name + "/next", (1, 0), (segments, fold), (1, 2))
        ahead = graph.node("Concat", [ahead, zeros], name + "/ahead", axis=1)
        behind = cut(name + "/previous", (0, fold), (segments - 1, 2 * fold), (1, 2))
        behind = graph.node("Concat", [zeros, behind], name + "/behind", axis=1)
        still = [cut(name + "/still", (2 * fold,), (channels,), (2,))] if stay else []
    x = graph.node("Concat", [ahead, behind] + still, name + "/joined", axis=2)
    return graph.node("Reshape", [x, graph.ints(-1, channels, height, width)], name)


def _masked_shift(graph: Graph, x: str, name: str, channels: int, fold: int) -> str:
    """The temporal shift of one view, x float [segments, C, H, W], without a cut through its channels.

    The sum of the next frames, the previous frames and the frames themselves, each times 1 in its channels and 0 in the
    others. Engines keep channels in blocks, across which a few cut off are slow to move: see _Parts for figures.
    """
    after = graph.node("Pad", [x, graph.ints(-1, 0, 0, 0, 1, 0, 0, 0)], name + "/next")
    before = graph.node("Pad", [x, graph.ints(1, 0, 0, 0, -1, 0, 0, 0)], name + "/previous")
    parts, number = [], np.arange(channels)
    where = (("ahead", after, 0, fold), ("behind", before, fold, 2 * fold), ("still", x, 2 * fold, channels))
    for part, frames, first, end in where if 2 * fold < channels else where[:2]:
        mask = ((number >= first) & (number < end)).astype(np.float32).reshape(1, -1, 1, 1)
        factor = graph.constant("%d_to_%d_of_%d" % (first, end, channels), mask)
        parts.append(graph.node("Mul", [frames, factor], name + "/" + part))
    if len(parts) == 2:
        return graph.node("Add", parts, name)
    return graph.node("Add", [graph.node("Add", parts[:2], name + "/moved"), parts[2]], name)


def _whole(graph: Graph, trunk: Trunk, placed: List[Layer], x: str, write_shift: WriteShift) -> str:
    """The trunk on x, float [frames, 3, size, size], node by node, its shifts by `write_shift`. Returns the features' name."""
    values = {"frames": x}
    for node, name, shape in placed:
        inputs = [values[value] for value in node.input if value in values]
        if node.op_type == SHIFT:
            out = write_shift(graph, inputs[0], name, shape)
        else:
            inputs += [
                graph.constant("%s.%s" % (name, what), trunk.weights[value])
                for value, what in zip(node.input[1:], ("weight", "bias")) if value in trunk.weights
            ]
            out = graph.layer(node, inputs, name)
        values[node.output[0]] = out
    return values["features"]


class _Parts:
    """Writes the trunk on one view, x float [segments, 3, size, size], with hardly a copy for its shifts.

    A shift copies all channels to move a quarter of them. Here the value that a shift takes is never whole: the
    convolutions that make it write its channels that go ahead, those that go behind and those that stay as three tensors,
    what lies between (Add, Relu) works on each, and only the first two are moved. The convolution after the shift is
    the sum of one over what moved and one over what stayed, a sum that engines add up in place. A strided shortcut gets
    only the pixels that it reads joined. The pooled stem is whole as it comes, so there the second convolution runs over
    all of it, with weights of zero for what moved. The arithmetic is the same but for the order of the sums.

    Not for MobileNetV2: what it shifts are the narrow ends of its blocks, and a second convolution would write six times as
    many channels once more. One comparison there, on a machine that was not idle, in bf16 and int8, over the time without a
    shift: 1.11 and 1.17 in parts, 1.03 and 1.15 with Split, Pad and Concat, 1.01 and 1.01 as _masked_shift() writes it; in
    fp32 no order of the three held from run to run. bench/networks.py measures what is used. Nor for a shift_div of 2, where
    nothing stays.
    """

    def __init__(self, graph: Graph, trunk: Trunk, placed: List[Layer], x: str, shift_div: int) -> None:
        self.graph, self.weights, self.div, self.layers = graph, trunk.weights, shift_div, placed
        self.in_three: Set[str] = set()  # values kept in three tensors
        for node in reversed(trunk.nodes):
            if node.op_type == SHIFT or node.op_type in ("Add", "Relu", RELU6) and node.output[0] in self.in_three:
                self.in_three.update(node.input)
        self.in_three -= {node.output[0] for node in trunk.nodes if node.op_type == "MaxPool"} | {"frames"}
        self.whole_kept: Set[str] = set()  # shifted values beside which the whole of what was shifted is kept
        self.parts: Dict[str, List[str]] = {"frames": [x]}  # 1, after a shift 2 (moved, still), or 3 (ahead, behind, still)
        self.joined: Dict[str, str] = {}

    def write(self) -> str:
        """Write every layer; returns the features' name."""
        writers = {SHIFT: self.shift, "Conv": self.conv, "MaxPool": self.pool}
        for layer in self.layers:
            self.parts[layer.node.output[0]] = writers.get(layer.node.op_type, self.each_part)(layer)
        return self.whole("features")

    def whole(self, value: str) -> str:
        """The name of a value as one tensor."""
        parts = self.parts[value]
        if len(parts) == 1:
            return parts[0]
        if value not in self.joined:
            self.joined[value] = self.graph.node("Concat", parts, parts[0] + "/joined", axis=1)
        return self.joined[value]

    def cuts(self, layer: Layer) -> Dict[str, int]:
        """The parts that a layer's output is written in: the endings of their names and their channels."""
        channels = layer.shape[0]
        fold = channels // self.div
        if layer.node.output[0] in self.in_three:
            return {"/ahead": fold, "/behind": fold, "/still": channels - 2 * fold}
        return {"": channels}

    def shift(self, layer: Layer) -> List[str]:
        """Moves the parts that are moved: [what moved, what stayed], or, after the stem, [what moved, the whole]."""
        source, channels = layer.node.input[0], layer.shape[0]
        fold, parts = channels // self.div, self.parts[source]
        first, rest = (0, 0) if len(parts) == 3 else (fold, channels - fold)  # channels to cut off
        ahead, behind, still = parts if len(parts) == 3 else [self.whole(source)] * 3
        pads = self.graph.ints(-1, 0, 0, 0, 1, -rest, 0, 0)
        ahead = self.graph.node("Pad", [ahead, pads], layer.name + "/ahead")
        pads = self.graph.ints(1, -first, 0, 0, -1, first - rest, 0, 0)
        behind = self.graph.node("Pad", [behind, pads], layer.name + "/behind")
        if len(parts) != 3:
            self.whole_kept.add(layer.node.output[0])
        return [self.graph.node("Concat", [ahead, behind], layer.name + "/moved", axis=1), still]

    def conv(self, layer: Layer) -> List[str]:
        """A convolution of a whole value, its output in as many parts as are asked for."""
        source, facts = layer.node.input[0], attributes(layer.node)
        if len(self.parts[source]) == 2:
            return self.conv_after_shift(layer)
        if len(self.parts[source]) == 3 and facts["kernel_shape"] == [1, 1] and facts["strides"] == [2, 2]:
            x, facts = self.every_second(source, layer.name), dict(facts, strides=[1, 1])
        else:
            x = self.whole(source)
        weight, bias = (self.weights[value] for value in layer.node.input[1:])
        parts, start = [], 0
        for part, size in self.cuts(layer).items():
            rows = slice(start, start + size)
            parts.append(self.one_conv(x, layer.name + part, weight[rows], bias[rows], facts))
            start += size
        return parts

    def conv_after_shift(self, layer: Layer) -> List[str]:
        """The sum of a convolution over what stayed and one over what moved."""
        source, facts = layer.node.input[0], attributes(layer.node)
        (moved, still), (weight, bias) = self.parts[source], (self.weights[value] for value in layer.node.input[1:])
        count = 2 * (weight.shape[1] // self.div)  # channels that moved
        if source in self.whole_kept:
            remaining = weight.copy()
            remaining[:, :count] = 0
        else:
            remaining = weight[:, count:]
        parts, start = [], 0
        for part, size in self.cuts(layer).items():
            rows, name = slice(start, start + size), layer.name + part
            x = self.one_conv(still, name, remaining[rows], bias[rows], facts)
            y = self.one_conv(moved, name + "/moved", weight[rows, :count], None, facts)
            parts.append(self.graph.node("Add", [x, y], name + "/sum"))
            start += size
        return parts

    def one_conv(self, x: str, name: str, weight: np.ndarray, bias: Optional[np.ndarray], facts: Dict[str, Any]) -> str:
        inputs = [x, self.graph.constant(name + ".weight", weight)]
        if bias is not None:
            inputs.append(self.graph.constant(name + ".bias", bias))
        return self.graph.node("Conv", inputs, name, **facts)

    def every_second(self, value: str, name: str) -> str:
        """Of a value in parts, the pixels that a 1x1 convolution of stride 2 reads: a quarter of it to join."""
        few = [
            self.graph.node("MaxPool", [part], part + "/every_second", kernel_shape=[1, 1], strides=[2, 2])
            for part in self.parts[value]
        ]
        return self.graph.node("Concat", few, name + "/every_second", axis=1)

    def each_part(self, layer: Layer) -> List[str]:
        """Add, Relu and Relu6 work on the parts one by one."""
        cuts = self.cuts(layer)
        if len(cuts) == 3:
            inputs = [self.three(value, layer.name, list(cuts.values())) for value in layer.node.input]
        else:
            inputs = [[self.whole(value)] for value in layer.node.input]
        return [self.graph.layer(layer.node, list(x), layer.name + part) for part, x in zip(cuts, zip(*inputs))]

    def three(self, value: str, name: str, sizes: List[int]) -> List[str]:
        """The three parts of a value; of one that is whole, as the pooled stem is, they are cut out of it."""
        if len(self.parts[value]) == 3:
            return self.parts[value]
        return self.graph.nodes("Split", [self.whole(value)], name + "/split", 3, axis=1, split=sizes)

    def pool(self, layer: Layer) -> List[str]:
        x = self.whole(layer.node.input[0])
        return [self.graph.node(layer.node.op_type, [x], layer.name, **attributes(layer.node))]


def _normalise(graph: Graph, x: str, protocol: Protocol) -> str:
    """uint8 RGB -> float32 (x - mean) / std, per channel of [frames, 3, H, W]."""
    x = graph.node("Cast", [x], "cast", to=TensorProto.FLOAT)
    mean = graph.constant("mean", np.array(protocol.mean, np.float32).reshape(1, -1, 1, 1))
    std = np.array(protocol.std, np.float32).astype(np.float64)
    scale = graph.constant("scale", (1 / std).astype(np.float32).reshape(1, -1, 1, 1))
    return graph.node("Mul", [graph.node("Sub", [x, mean], "centred"), scale], "normalised")


def _tail(graph: Graph, fusion: Optional[str], softmax: bool, protocol: Protocol) -> None:
    """frame_scores [frames, classes] -> `output`: per view [views, classes], or the fused [batch, classes]."""
    over_frames: Dict[str, Any] = {"axes": [1], "keepdims": 0}
    classes = protocol.classes
    if fusion == "score":
        x = graph.node("Reshape", ["frame_scores", graph.ints(-1, protocol.frames, classes)], "videos")
        x = graph.node("ReduceMean", [x], "scores", **over_frames)
        graph.node("Softmax", [x], "output", axis=1)
        return
    x = graph.node("Reshape", ["frame_scores", graph.ints(-1, protocol.segments, classes)], "views")
    x = graph.node("ReduceMean", [x], "view_scores" if fusion or softmax else "output", **over_frames)
    if fusion or softmax:
        x = graph.node("Softmax", [x], "view_probabilities" if fusion else "output", axis=1)
    if fusion:
        x = graph.node("Reshape", [x, graph.ints(-1, protocol.views, classes)], "videos")
        graph.node("ReduceMean", [x], "output", **over_frames)


def build(
    trunk: Trunk, form: Union[str, WriteShift], protocol: Protocol, batch: int = 1, fusion: Optional[str] = None,
    softmax: bool = False, dtype: str = "float32",
) -> onnx.ModelProto:
    """Write a trunk out as a model.

    Args:
        form: ascend (the shift's zeros by Concat, for ATC) or cpu (by Pad): `input` [batch, frames, 3, size, size] ->
            `output` [batch, classes], or, where fusion is None, per view [batch * views, classes]. view (the shift taken
            apart, see _Parts, which says where not) or none (no shift at all, the floor that its cost is measured from): one view, `input`
            [segments, 3, size, size] -> `output`, the frame scores [segments, classes], whatever batch, fusion and
            softmax. Or a function that writes the shift, to try another form: as view and none, of `batch` views.
        fusion: one of tsm.protocol.FUSIONS, or None.
        softmax: for fusion None: probabilities per view instead of class scores.
        dtype: float32, or uint8 (RGB 0..255, normalised in the graph).
    Raises: UserError where the classifier has another number of classes than the protocol, or a batch is too large.
    """
    if len(trunk.fc_weight) != protocol.classes:
        raise UserError("the network has %d classes, its protocol %d; pass the protocol that it was trained for"
                        % (len(trunk.fc_weight), protocol.classes))
    placed = layers(trunk.nodes, trunk.weights, protocol.frame_shape)
    if form == "ascend":
        _check_size(trunk, {layer.shape for layer in placed if layer.node.op_type == SHIFT}, protocol, batch)
    graph, by_view = Graph(), callable(form) or form in ("view", "none")
    x = "input"
    if not by_view:
        x = graph.node("Reshape", [x, graph.ints(-1, *protocol.frame_shape)], "frames")
    if dtype == "uint8":
        x = _normalise(graph, x, protocol)
    if form == "view" and protocol.shift_div > 2 and all(attributes(node).get("group", 1) == 1 for node in trunk.nodes):
        x = _Parts(graph, trunk, placed, x, protocol.shift_div).write()
    else:
        write_shift = form if callable(form) else partial(shift, form=form, protocol=protocol, batch=batch)
        x = _whole(graph, trunk, placed, x, write_shift)
    x = graph.node("GlobalAveragePool", [x], "pooled")
    x = graph.node("Flatten", [x], "flat", axis=1)
    fc = [graph.constant("fc.weight", trunk.fc_weight), graph.constant("fc.bias", trunk.fc_bias)]
    graph.node("Gemm", [x] + fc, "fc", "output" if by_view else "frame_scores", transB=1)
    if not by_view:
        _tail(graph, fusion, softmax, protocol)
    frames = protocol.segments * (batch if callable(form) else 1)
    shape = ((frames,) + protocol.frame_shape) if by_view else ((batch,) + protocol.video_shape)
    rows = frames if by_view else batch if fusion else batch * protocol.views
    kind = TensorProto.UINT8 if dtype == "uint8" else TensorProto.FLOAT
    written = helper.make_graph(
        graph.written,
        "tsm",
        [helper.make_tensor_value_info("input", kind, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [rows, protocol.classes])],
        list(graph.constants.values()),
    )
    model = helper.make_model(written, producer_name="tsm", producer_version=__version__)
    model.ir_version = 6  # that of opset 11, so that the oldest supported runtime reads it
    del model.opset_import[:]
    model.opset_import.add(domain="", version=OPSET)
    if not by_view:
        how = {"form": form, "fusion": fusion, "softmax": softmax}
        set_metadata(model, {"tsm.form": json.dumps(how), "tsm.protocol": json.dumps(protocol._asdict())})
    return model


def _check_size(trunk: Trunk, shapes: Set[Shape], protocol: Protocol, batch: int) -> None:
    """UserError where the ascend form's zeros for shifts of these shapes, which grow with the batch, make a file that ONNX does not
    allow."""
    a_video = 4 * protocol.views * sum(shape[0] // protocol.shift_div * shape[1] * shape[2] for shape in shapes)
    room = MOST_BYTES - sum(weight.nbytes for weight in trunk.weights.values())
    if batch * a_video > room:
        raise UserError("a batch of %d takes %.1f GB of zeros, more than an ONNX file holds; use a batch of at most %d"
                        % (batch, batch * a_video / 1e9, room // a_video))


def trunk_of(model: onnx.ModelProto) -> Trunk:
    """The trunk of a model that build() wrote in the ascend or cpu form.

    The trunk is read by the names of its layers, then written again as the model's input and its `tsm.form` and `tsm.protocol`
    say; a model that is not exactly this graph, constants included, was changed by another tool. Raises ValueError then.
    """
    try:
        known = metadata(model)
        how, protocol = json.loads(known["tsm.form"]), protocol_from(json.loads(known["tsm.protocol"]), "tsm.protocol")
        x, trunk = signature(model, "it"), _read_layers(model)
        unchanged = build(trunk, protocol=protocol, batch=x.shape[0], dtype=x.dtype.name, **how).graph == model.graph
    except Exception as error:  # metadata and nodes that are not build()'s can be anything
        raise ValueError("no trunk that can be read (%s: %s)" % (type(error).__name__, str(error)[:100]))
    if not unchanged:
        raise ValueError("its graph was changed since it was written")
    return trunk


def _read_layers(model: onnx.ModelProto) -> Trunk:
    """What looks like the trunk of a model that build() wrote: its layers are the nodes without a `/` in their names."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes: List[NodeProto] = []
    names, shifted = {"frames": "frames", "normalised": "frames"}, ""
    for node in model.graph.node:
        if node.name.endswith(".shift/views"):
            shifted = node.input[0]
        elif node.name.endswith(".shift"):
            nodes.append(helper.make_node(SHIFT, [shifted], [node.output[0]]))
        elif node.op_type == "GlobalAveragePool":
            names[node.input[0]] = "features"
        elif node.op_type == "Clip":
            nodes.append(helper.make_node(RELU6, node.input[:1], node.output))
        elif node.op_type in ("Conv", "Relu", "MaxPool", "Add"):
            nodes.append(node)
    renamed = [
        helper.make_node(
            node.op_type, [names.get(value, value) for value in node.input], [names.get(node.output[0], node.output[0])],
            **attributes(node)
        )
        for node in nodes
    ]
    return Trunk(renamed, weights, weights["fc.weight"], weights["fc.bias"])

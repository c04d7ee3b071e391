"""TSM as an ONNX graph: the trunk common to all its forms, and the forms that runtimes are given.

A trunk is a list of ONNX nodes from `frames` [frames, 3, size, size] to `features` [frames, C, H, W], made of Conv, Relu,
MaxPool, Add and two operators of our own, of one input and one output: TemporalShift (fold = channels // shift_div) and
Relu6, which is written as Clip. build() writes it out for a target; trunk_of() reads it back from what build() wrote. In
every form a layer is called by its place in the network, as in the checkpoint: conv1, layer2.0.conv1, layer2.0.downsample,
MobileNetV2's layer2.0.conv.1, fc; what belongs to it has its name in front (layer2.0.conv1.shift/ahead).
"""

import json
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tsm import __version__
from tsm.cli import UserError
from tsm.model.onnxfile import State, metadata, set_metadata, signature, states_in
from tsm.protocol import MOVES, Protocol, protocol_from

OPSET = 11  # the newest that both ATC (CANN 6) and every runtime of the last years take
SHIFT = "TemporalShift"
BY_TIME = "ByTime"  # an operator of our own beside that: puts the first frames of all views first, then the second ones, ...
BY_FRAME = ("online", "online_parts")  # forms of one frame
FLAT = ("ascend_parts", "ascend_mask")  # forms whose shifts stay in four dimensions and move whole blocks of channels
BY_VIEW = ("view", "clip") + BY_FRAME  # forms whose input is frames and whose output their scores
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
    sides = [(shape[1 + axis] + pads[axis] + pads[axis + 2] - facts["kernel_shape"][axis]) // strides[axis] + 1
             for axis in (0, 1)]
    return (len(weights[node.input[1]]) if node.op_type == "Conv" else shape[0], *sides)


def shift_step(blocks: Sequence[int]) -> int:
    """TSM shifts every so many-th block of each stage of a ResNet with so many `blocks` per stage: all, or every second
    one where the third stage has 23 or more. Source: mmaction2 0.24.1, ResNetTSM.make_temporal_shift, shift place
    `blockres`."""
    return 2 if len(blocks) > 2 and blocks[2] >= 23 else 1


def layers(nodes: List[NodeProto], weights: Dict[str, np.ndarray], frame_shape: Shape) -> List[Layer]:
    """A trunk's nodes with their names, as mmaction2's state dict has them, and shapes; from the nodes' places alone.

    A stage (layer1, layer2, ...) is a run of _blocks() of one output shape. Convolutions outside the blocks are conv1,
    ... .
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
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    middles = [node for node in convolutions if attributes(node).get("group", 1) == len(weights[node.input[1]]) > 1]
    for middle in middles:
        convs = [middle]
        before = _up(made_by, middle.input[0])
        if before is not None and attributes(before)["kernel_shape"] == [1, 1]:
            convs.insert(0, before)
        convs += [node for node in convolutions if _up(made_by, node.input[0]) is middle][:1]
        x = made_by.get(convs[0].input[0])
        entered = x.input[0] if x is not None and x.op_type == SHIFT else convs[0].input[0]
        inside = [(conv.output[0], "conv.%d" % number) for number, conv in enumerate(convs)]
        inside += [(node.output[0], "add") for node in nodes
                   if node.op_type == "Add" and set(node.input) == {entered, convs[-1].output[0]}]
        blocks.append((inside[-1][0], inside))
    for end in (node.output[0] for node in nodes if node.op_type == "Add" and not middles):
        longer, shorter = _ways(made_by, made_by[end])
        inside = [(end, "add")] + [(value, "conv%d" % number) for number, value in enumerate(longer, 1)]
        blocks.append((end, inside + [(value, "downsample") for value in shorter]))
    return blocks


def _up(made_by: Dict[str, NodeProto], value: str) -> Optional[NodeProto]:
    """The convolution that makes a value, with nothing but an activation after it; None where there is no such one."""
    node = made_by.get(value)
    while node is not None and node.op_type in ("Relu", RELU6):
        node = made_by.get(node.input[0])
    return node if node is not None and node.op_type == "Conv" else None


def _ways(made_by: Dict[str, NodeProto], add: NodeProto) -> List[List[str]]:
    """The convolutions on the two ways to an Add from where they part, in order: the longer way, then the shorter
    one."""
    ways: List[List[str]] = [[], []]
    for way, value in zip(ways, add.input):
        while value in made_by:
            way.insert(0, value)
            value = made_by[value].input[0]
    parted = [[value for value in way if value not in other and made_by[value].op_type == "Conv"]
              for way, other in zip(ways, map(set, reversed(ways)))]
    return sorted(parted, key=len, reverse=True)


class Graph:
    """The nodes and constants of a model being written; of an online one, its states by the names of the shifts."""

    def __init__(self, states: Optional[Dict[str, State]] = None) -> None:
        self.written: List[NodeProto] = []
        self.constants: Dict[str, np.ndarray] = {}
        self.states = states or {}

    def constant(self, name: str, value: np.ndarray) -> str:
        """Name a constant, once."""
        self.constants.setdefault(name, value)
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

    def zero(self, x: str, name: str) -> str:
        """Append what makes a value zero; returns its name."""
        return self.node("Mul", [x, self.constant("zero", np.array(0, np.float32))], name)

    def layer(self, node: NodeProto, inputs: List[str], name: str) -> str:
        """Append a trunk's node of one output on the values `inputs`; returns its name."""
        facts = attributes(node)
        if node.op_type == BY_TIME:
            segments, frames = facts["segments"], self.ints(facts["frames"])
            pieces = [self.node("Slice", inputs + [self.ints(time), frames, self.ints(0), self.ints(segments)], "%s/%d" % (name, time))
                      for time in range(segments)]
            return self.node("Concat", pieces, name, axis=0)
        if node.op_type != RELU6:
            return self.node(node.op_type, inputs, name, **facts)
        bounds = [self.constant(what, np.array(bound, np.float32)) for what, bound in (("zero", 0.0), ("six", SIX))]
        return self.node("Clip", inputs + bounds, name)


class Channels(NamedTuple):
    """Channels [first, end) that all take their values `step` frames later, as in tsm.protocol.MOVES."""

    name: str  # of their part of the value that is shifted
    first: int
    end: int
    step: Optional[int]


def runs(channels: int, protocol: Protocol) -> List[Channels]:
    """The channels of a value as the shift moves them, in order."""
    found: List[Channels] = []
    fold = channels // protocol.shift_div
    for first, end, step in zip((0, fold, 2 * fold), (fold, 2 * fold, channels), MOVES[protocol.shift] + (0,)):
        if found and found[-1].step == step:
            first = found.pop().first
        if first < end:  # a shift_div of 2 leaves no rest
            name = {1: "ahead", -1: "behind", 0: "still" if end == channels else "kept", None: "zero"}[step]
            found.append(Channels(name, first, end, step))
    return found


def groups(channels: int, protocol: Protocol) -> List[Tuple[List[Channels], np.ndarray]]:
    """The parts of a value of so many channels: the runs that each holds and their channels; first those that move, each by
    itself, then what stays, together with what becomes zero, as a residual connection needs that."""
    found = runs(channels, protocol)
    of_parts = [[run] for run in found if run.step] + [[run for run in found if not run.step]]
    return [(of_part, np.concatenate([np.arange(run.first, run.end) for run in of_part])) for of_part in of_parts]


# (x [frames, C, H, W], name, run, shape of a frame of x) -> the run's channels, moved
Move = Callable[[str, str, Channels, Shape], str]


def mover(graph: Graph, form: str, protocol: Protocol, batch: int) -> Move:
    """What moves channels by a frame, in a form of build().

    ascend: of x [views, segments, C, area] a Slice and a Concat with zeros on axis 1; ascend_parts: the same on axis 0, as the frames
    of all views are in order of time (see BY_TIME); ascend_mask: the views are one after another, and what comes over from the next
    is times 0; online_parts: what moves is the new state, and the last one takes its place; any other: a Pad, of one view.
    """
    views, segments = protocol.views * batch, protocol.segments
    frames = views * segments

    def cut(x: str, name: str, first: int, end: int, run: Channels, shape: Shape) -> str:
        """Some frames of the run's channels."""
        starts, ends = (first, run.first), (end, run.end)
        axes = 1 if run.end - run.first == shape[0] else 2
        return graph.node("Slice", [x] + [graph.ints(*values[:axes]) for values in (starts, ends, (0, 1))], name)

    def by_pad(x: str, name: str, run: Channels, shape: Shape) -> str:
        pads = [-(run.step or 0), -run.first, 0, 0, run.step or 0, run.end - shape[0], 0, 0]  # also cuts the channels out
        return graph.node("Pad", [x, graph.ints(*pads)], name)

    def in_views(x: str, name: str, run: Channels, shape: Shape) -> str:
        width, area = run.end - run.first, shape[1] * shape[2]
        zeros = graph.constant("zeros_%dx%d" % (width, area), np.broadcast_to(np.float32(0), (views, 1, width, area)))
        first, end, which = (1, segments, "next") if run.step == 1 else (0, segments - 1, "previous")
        others = graph.node("Slice", [x, graph.ints(first, run.first), graph.ints(end, run.end), graph.ints(1, 2)],
                            "%s/%s" % (name.rsplit("/", 1)[0], which))
        return graph.node("Concat", [others, zeros] if run.step == 1 else [zeros, others], name, axis=1)

    def by_zeros(x: str, name: str, run: Channels, shape: Shape) -> str:
        of_zeros = (run.end - run.first,) + shape[1:]
        zeros = graph.constant("zeros_%dx%dx%d" % of_zeros, np.broadcast_to(np.float32(0), (views,) + of_zeros))
        if run.step == 1:
            both = [cut(x, name + "/next", views, frames, run, shape), zeros]
        else:
            both = [zeros, cut(x, name + "/previous", 0, frames - views, run, shape)]
        return graph.node("Concat", both, name, axis=0)

    def by_mask(x: str, name: str, run: Channels, shape: Shape) -> str:
        first, edge = (1, segments - 1) if run.step == 1 else (frames - 1, 0)
        both = [cut(x, name + "/from", first, frames, run, shape), cut(x, name + "/to", 0, first, run, shape)]
        mask = np.ones((frames, 1, 1, 1), np.float32)
        mask[edge::segments] = 0
        rolled = graph.node("Concat", both, name + "/rolled", axis=0)
        return graph.node("Mul", [rolled, graph.constant("all_but_frame_%d" % edge, mask)], name)

    def by_state(x: str, name: str, run: Channels, shape: Shape) -> str:
        state, whole = graph.states[name.rsplit("/", 1)[0]], run.end - run.first == shape[0]
        cut_out = [] if whole else [graph.ints(number) for number in (run.first, run.end, 1)]
        graph.node("Identity" if whole else "Slice", [x] + cut_out, name, state.output)
        return state.input

    return {"ascend": in_views, "ascend_parts": by_zeros, "ascend_mask": by_mask, "online_parts": by_state}.get(form, by_pad)


def in_order_of_time(trunk: Trunk, protocol: Protocol, batch: int) -> Trunk:
    """The trunk with its frames put in order of time before the first shift. Until then no frame knows of another; and the first
    convolution is right at the input, where ATC joins it with AIPP."""
    place = [node.op_type for node in trunk.nodes].index(SHIFT)
    source = trunk.nodes[place].input[0]
    ordered = helper.make_node(BY_TIME, [source], [source + "/by_time"], segments=protocol.segments, frames=protocol.frames * batch)
    after = [helper.make_node(node.op_type, [ordered.output[0] if value == source else value for value in node.input], node.output,
                              **attributes(node)) for node in trunk.nodes[place:]]
    return trunk._replace(nodes=trunk.nodes[:place] + [ordered] + after)


def shift(graph: Graph, x: str, name: str, shape: Shape, form: str, protocol: Protocol, batch: int) -> str:
    """The temporal shift of x, float [frames, C, H, W], whose frame has this shape, in a form of build(); returns its
    name."""
    channels, height, width = shape
    found = runs(channels, protocol)
    if {run.step for run in found} == {0}:
        return x
    if form == "view":
        return _masked_shift(graph, x, name, channels, found)
    if form in BY_VIEW:
        return _split_shift(graph, x, name, name, found, 0)
    if form in FLAT:
        return _slice_shift(graph, x, name, name, shape, found, 0, mover(graph, form, protocol, batch))
    x = graph.node("Reshape", [x, graph.ints(-1, protocol.segments, channels, height * width)], name + "/views")
    if form == "cpu":
        x = _split_shift(graph, x, name + "/joined", name, found, 1)
    else:
        x = _slice_shift(graph, x, name + "/joined", name, shape, found, 1, mover(graph, form, protocol, batch))
    return graph.node("Reshape", [x, graph.ints(-1, channels, height, width)], name)


def _split_shift(graph: Graph, x: str, output: str, name: str, found: List[Channels], frames: int) -> str:
    """The temporal shift of x, float with its frames on the axis `frames` and its channels on the next, by Split, Pad and Concat. A
    state takes the place of the Pad: of the frame that comes in, what moves goes out, and what went out the last time is joined."""
    parts = graph.nodes("Split", [x], name + "/split", len(found), axis=frames + 1, split=[run.end - run.first for run in found])
    split, state = graph.written[-1], graph.states.get(name)
    for place, (part, run) in enumerate(zip(parts, found)):
        if run.step and state:
            split.output[place], parts[place] = state.output, state.input
        elif run.step:
            pads = [0] * 8
            pads[frames], pads[4 + frames] = -run.step, run.step  # +1 drops the first frame
            parts[place] = graph.node("Pad", [part, graph.ints(*pads)], "%s/%s" % (name, run.name))
        elif run.step is None:
            parts[place] = graph.zero(part, "%s/%s" % (name, run.name))
    return graph.node("Concat", parts, output, axis=frames + 1)


def _slice_shift(graph: Graph, x: str, output: str, name: str, shape: Shape, found: List[Channels], frames: int, move: Move) -> str:
    """The temporal shift of x, as of _split_shift(), by Slice, `move` and Concat; `shape` is that of one frame."""
    parts = []
    for run in found:
        part = "%s/%s" % (name, run.name)
        if run.step:
            parts.append(move(x, part, run, shape))
            continue
        part = graph.node("Slice", [x, graph.ints(run.first), graph.ints(run.end), graph.ints(frames + 1)], part)
        parts.append(part if run.step == 0 else graph.zero(part, part + "/times"))
    return graph.node("Concat", parts, output, axis=frames + 1)


def _masked_shift(graph: Graph, x: str, name: str, channels: int, found: List[Channels]) -> str:
    """The temporal shift of one view, x float [segments, C, H, W], without a cut through its channels.

    The sum of the next frames, the previous frames and the frames themselves, each times 1 in its channels and 0 in the
    others. Engines keep channels in blocks, across which a few cut off are slow to move.
    """
    number, parts = np.arange(channels), []
    steps = {step: graph.node("Pad", [x, graph.ints(-step, 0, 0, 0, step, 0, 0, 0)], "%s/%s" % (name, frames))
             for step, frames in ((1, "next"), (-1, "previous")) if step in [run.step for run in found]}
    for step in dict.fromkeys(run.step for run in found if run.step is not None):
        of_step = [run for run in found if run.step == step]
        mask = sum((number >= run.first) & (number < run.end) for run in of_step)
        where = "_and_".join("%d_to_%d" % (run.first, run.end) for run in of_step)
        factor = graph.constant("%s_of_%d" % (where, channels), np.array(mask, np.float32).reshape(1, -1, 1, 1))
        parts.append(graph.node("Mul", [steps.get(step, x), factor], "%s/%s" % (name, of_step[-1].name)))
    if len(parts) == 3:
        parts[:2] = [graph.node("Add", parts[:2], name + "/moved")]
    return graph.node("Add", parts, name) if len(parts) > 1 else parts[0]


def _whole(graph: Graph, trunk: Trunk, placed: List[Layer], x: str, form: str, protocol: Protocol, batch: int) -> str:
    """The trunk on x, float [frames, 3, size, size], node by node, its shifts by shift(). Returns the features'
    name."""
    values = {"frames": x}
    for node, name, shape in placed:
        inputs = [values[value] for value in node.input if value in values]
        if node.op_type == SHIFT:
            out = shift(graph, inputs[0], name, shape, form, protocol, batch)
        else:
            inputs += [graph.constant("%s.%s" % (name, what), trunk.weights[value])
                       for value, what in zip(node.input[1:], ("weight", "bias")) if value in trunk.weights]
            out = graph.layer(node, inputs, name)
        values[node.output[0]] = out
    return values["features"]


class _Parts:
    """Writes the trunk on x, float [frames, 3, size, size], with hardly a copy for its shifts, which `move` does; in
    operators of the guide's graph where that is `plain`.

    A shift copies all channels to move a quarter of them. Here the value that a shift takes is never whole: the
    convolutions that make it write its channels that go ahead, those that go behind and those that stay as tensors of their own,
    what lies between (Add, Relu) works on each, and only what goes is moved. The convolution after the shift is
    the sum of one over what moved and one over what stayed, a sum that engines add up in place. A strided shortcut gets
    only the pixels that it reads joined. The pooled stem is whole as it comes, so there the second convolution runs over
    all of it, with weights of zero for what moved. The arithmetic is the same but for the order of the sums.

    Not for MobileNetV2: what it shifts are the narrow ends of its blocks, and a second convolution would write six times as
    many channels once more. bench/README.md has figures. Nor for a shift_div of 2, where nothing stays.
    """

    def __init__(self, graph: Graph, trunk: Trunk, placed: List[Layer], x: str, protocol: Protocol, move: Move, plain: bool) -> None:
        self.graph, self.weights, self.protocol, self.layers = graph, trunk.weights, protocol, placed
        self.move, self.plain = move, plain
        self.in_parts: Set[str] = set()  # values kept in parts
        for node in reversed(trunk.nodes):
            if node.op_type == SHIFT or node.op_type in ("Add", "Relu", RELU6) and node.output[0] in self.in_parts:
                self.in_parts.update(node.input)
        self.in_parts -= {node.output[0] for node in trunk.nodes if node.op_type in ("MaxPool", BY_TIME)} | {"frames"}
        self.shifted: Set[str] = {layer.node.output[0] for layer in placed if layer.node.op_type == SHIFT}
        self.whole_kept: Set[str] = set()  # shifted values beside which the whole of what was shifted is kept
        self.channels = {layer.node.output[0]: layer.shape[0] for layer in placed}
        self.parts: Dict[str, List[str]] = {"frames": [x]}  # the whole, after a shift [moved, still], or as groups() says
        self.joined: Dict[str, str] = {}

    def write(self) -> str:
        """Write every layer; returns the features' name."""
        writers = {SHIFT: self.shift, "Conv": self.conv}
        for layer in self.layers:
            self.parts[layer.node.output[0]] = writers.get(layer.node.op_type, self.each_part)(layer)
        return self.whole("features")

    def whole(self, value: str) -> str:
        """The name of a value as one tensor."""
        parts = self.parts[value]
        if len(parts) == 1:
            return parts[0]
        if value not in self.joined:
            found = groups(self.channels[value], self.protocol)
            pieces = [(run.first, part) for (of_part, _), part in zip(found, parts) for run in of_part[:1]]
            if pieces != sorted(pieces):  # what stays is on both sides of what moves
                pieces[-1:] = zip([run.first for run in found[-1][0]], self.split(parts[-1], found[-1][0], parts[-1]))
            self.joined[value] = self.graph.node("Concat", [part for _, part in sorted(pieces)], parts[0] + "/joined", axis=1)
        return self.joined[value]

    def split(self, x: str, found: List[Channels], name: str) -> List[str]:
        """The runs of x, which holds no others, each by itself."""
        widths = [run.end - run.first for run in found]
        if not self.plain:
            return self.graph.nodes("Split", [x], name + "/split", len(found), axis=1, split=widths)
        ints, ends = self.graph.ints, np.cumsum(widths).tolist()
        return [self.graph.node("Slice", [x, ints(end - width), ints(end), ints(1)], "%s/%s/cut" % (name, run.name))
                for run, width, end in zip(found, widths, ends)]

    def cuts(self, layer: Layer) -> Dict[str, Any]:
        """The parts that a layer's output is written in: the endings of their names and their channels."""
        if layer.node.output[0] in self.in_parts:
            return {"/" + of_part[-1].name: own for of_part, own in groups(layer.shape[0], self.protocol)}
        return {"": slice(None)}

    def shift(self, layer: Layer) -> List[str]:
        """Moves the parts that are moved: [what moved, what stayed], or, after the stem, [what moved, the whole]."""
        source, moved, found = layer.node.input[0], [], groups(layer.shape[0], self.protocol)
        whole = len(self.parts[source]) == 1
        for part, (of_part, own) in zip(self.parts[source] * (len(found) if whole else 1), found[:-1]):
            run, shape = of_part[0], layer.shape
            if not whole:
                run, shape = run._replace(first=0, end=len(own)), (len(own),) + shape[1:]
            moved.append(self.move(part, "%s/%s" % (layer.name, run.name), run, shape))
        if whole:
            self.whole_kept.add(layer.node.output[0])
        if len(moved) > 1:
            moved = [self.graph.node("Concat", moved, layer.name + "/moved", axis=1)]
        return [moved[0], self.parts[source][-1]]

    def conv(self, layer: Layer) -> List[str]:
        """A convolution of a whole value, its output in as many parts as are asked for."""
        source, facts = layer.node.input[0], attributes(layer.node)
        weight, bias = (self.weights[value] for value in layer.node.input[1:])
        if source in self.shifted:
            return self.conv_after_shift(layer)
        if len(self.parts[source]) > 1 and facts["kernel_shape"] == [1, 1] and facts["strides"] == [2, 2]:
            x, facts = self.every_second(source, layer.name), dict(facts, strides=[1, 1])
            weight = weight[:, np.concatenate([own for _, own in groups(weight.shape[1], self.protocol)])]
        else:
            x = self.whole(source)
        return [self.one_conv(x, layer.name + part, weight[rows], bias[rows], facts) for part, rows in self.cuts(layer).items()]

    def conv_after_shift(self, layer: Layer) -> List[str]:
        """The sum of a convolution over what stayed and one over what moved."""
        source, facts = layer.node.input[0], attributes(layer.node)
        (moved, still), (weight, bias) = self.parts[source], (self.weights[value] for value in layer.node.input[1:])
        found, remaining, parts = groups(weight.shape[1], self.protocol), weight.copy(), []
        for run in runs(weight.shape[1], self.protocol):
            if run.step != 0:
                remaining[:, run.first : run.end] = 0
        if source not in self.whole_kept:
            remaining = remaining[:, found[-1][1]]
        weight = weight[:, np.concatenate([own for _, own in found[:-1]])]
        for part, rows in self.cuts(layer).items():
            name = layer.name + part
            x = self.one_conv(still, name, remaining[rows], bias[rows], facts)
            y = self.one_conv(moved, name + "/moved", weight[rows], None, facts)
            parts.append(self.graph.node("Add", [x, y], name + "/sum"))
        return parts

    def one_conv(self, x: str, name: str, weight: np.ndarray, bias: Optional[np.ndarray], facts: Dict[str, Any]) -> str:
        inputs = [x, self.graph.constant(name + ".weight", weight)]
        if bias is not None:
            inputs.append(self.graph.constant(name + ".bias", bias))
        return self.graph.node("Conv", inputs, name, **facts)

    def every_second(self, value: str, name: str) -> str:
        """Of a value in parts, the pixels that a 1x1 convolution of stride 2 reads: a quarter of it to join."""
        few = [self.graph.node("MaxPool", [part], part + "/every_second", kernel_shape=[1, 1], strides=[2, 2])
               for part in self.parts[value]]
        return self.graph.node("Concat", few, name + "/every_second", axis=1)

    def each_part(self, layer: Layer) -> List[str]:
        """Add, Relu and Relu6 work on the parts one by one; what is pooled, or put in order of time, is whole."""
        cuts = self.cuts(layer)
        if len(cuts) > 1:
            inputs = [self.parts_of(value, layer.name) for value in layer.node.input]
        else:
            inputs = [[self.whole(value)] for value in layer.node.input]
        return [self.graph.layer(layer.node, list(x), layer.name + part) for part, x in zip(cuts, zip(*inputs))]

    def parts_of(self, value: str, name: str) -> List[str]:
        """The parts of a value; of one that is whole, as the pooled stem is, they are cut out of it."""
        if len(self.parts[value]) > 1:
            return self.parts[value]
        found = runs(self.channels[value], self.protocol)
        pieces = dict(zip(found, self.split(self.whole(value), found, name)))
        parts = [[pieces[run] for run in of_part] for of_part, _ in groups(self.channels[value], self.protocol)]
        return [part[0] if len(part) == 1 else self.graph.node("Concat", part, name + "/rest", axis=1) for part in parts]


def in_parts(trunk: Trunk, protocol: Protocol) -> bool:
    """Whether _Parts is what writes the trunk best, and can: where something moves and something stays, and no convolution is of
    every channel by itself."""
    steps = {run.step for run in runs(protocol.shift_div, protocol)}
    return bool(steps & {1, -1}) and 0 in steps and all(attributes(node).get("group", 1) == 1 for node in trunk.nodes)


def _normalise(graph: Graph, x: str, protocol: Protocol) -> str:
    """uint8 RGB -> float32 (x - mean) / std, per channel of [frames, 3, H, W]."""
    x = graph.node("Cast", [x], "cast", to=TensorProto.FLOAT)
    mean = graph.constant("mean", np.array(protocol.mean, np.float32).reshape(1, -1, 1, 1))
    std = np.array(protocol.std, np.float32).astype(np.float64)
    scale = graph.constant("scale", (1 / std).astype(np.float32).reshape(1, -1, 1, 1))
    return graph.node("Mul", [graph.node("Sub", [x, mean], "centred"), scale], "normalised")


def _tail(graph: Graph, fusion: Optional[str], softmax: bool, protocol: Protocol, by_time: bool) -> None:
    """frame_scores [frames, classes], in order of time or view by view -> `output`: per view [views, classes], or the fused
    [batch, classes]."""
    segments, views, classes = protocol.segments, protocol.views, protocol.classes
    if fusion == "score":
        shape, axes = ((segments, -1, views, classes), [0, 2]) if by_time else ((-1, protocol.frames, classes), [1])
        x = graph.node("Reshape", ["frame_scores", graph.ints(*shape)], "videos")
        x = graph.node("ReduceMean", [x], "scores", axes=axes, keepdims=0)
        graph.node("Softmax", [x], "output", axis=1)
        return
    shape = (segments, -1, classes) if by_time else (-1, segments, classes)
    x = graph.node("Reshape", ["frame_scores", graph.ints(*shape)], "views")
    x = graph.node("ReduceMean", [x], "view_scores" if fusion or softmax else "output", axes=[shape.index(segments)], keepdims=0)
    if fusion or softmax:
        x = graph.node("Softmax", [x], "view_probabilities" if fusion else "output", axis=1)
    if fusion:
        x = graph.node("Reshape", [x, graph.ints(-1, views, classes)], "videos")
        graph.node("ReduceMean", [x], "output", axes=[1], keepdims=0)


def build(
    trunk: Trunk, form: str, protocol: Protocol, batch: int = 1, fusion: Optional[str] = None, softmax: bool = False,
    dtype: str = "float32",
) -> onnx.ModelProto:
    """Write a trunk out as a model.

    Args:
        form: of a batch of videos, `input` [batch, frames, 3, size, size] -> `output` [batch, classes], or, where fusion is
            None, per view [batch * views, classes]: ascend (as the guide's graph shifts, for ATC), ascend_parts or
            ascend_mask (the shift taken apart, over all views at once; see mover()), cpu (by Pad).
            Of one view, [segments, 3, size, size] -> the frame scores [segments, classes], whatever batch, fusion and
            softmax: view (the shift taken apart, see _Parts, which says where not), clip (by Split, Pad, Concat).
            Of one frame, [1, 3, size, size] and the states -> [1, classes] and the new states: online (clip with a state in
            the place of each Pad), online_parts (view likewise; what an engine may run in its place).
        fusion: one of tsm.protocol.FUSIONS, or None.
        softmax: for fusion None: probabilities per view instead of class scores.
        dtype: float32, or uint8 (RGB 0..255, normalised in the graph), or aipp (float32, and frame by frame, [batch * frames, 3, size,
            size]: what ATC puts its AIPP before, which takes uint8 [batch * frames, size, size, 3]).
    Raises: UserError where the batch is too large for a file.
    """
    if form == "ascend_parts":
        trunk = in_order_of_time(trunk, protocol, batch)
    placed = layers(trunk.nodes, trunk.weights, protocol.frame_shape)
    graph, by_view, x = Graph(_states(placed, protocol) if form in BY_FRAME else {}), form in BY_VIEW, "input"
    if not by_view and dtype != "aipp":
        x = graph.node("Reshape", [x, graph.ints(-1, *protocol.frame_shape)], "frames")
    if dtype == "uint8":
        x = _normalise(graph, x, protocol)
    if form in ("view", "online_parts") + FLAT and in_parts(trunk, protocol):
        x = _Parts(graph, trunk, placed, x, protocol, mover(graph, form, protocol, batch), form in FLAT).write()
    else:
        x = _whole(graph, trunk, placed, x, form, protocol, batch)
    x = graph.node("GlobalAveragePool", [x], "pooled")
    x = graph.node("Flatten", [x], "flat", axis=1)
    fc = [graph.constant("fc.weight", trunk.fc_weight), graph.constant("fc.bias", trunk.fc_bias)]
    graph.node("Gemm", [x] + fc, "fc", "output" if by_view else "frame_scores", transB=1)
    if by_view:
        rows = 1 if form in BY_FRAME else protocol.segments
        shape: Shape = (rows,) + protocol.frame_shape
    else:
        _tail(graph, fusion, softmax, protocol, form == "ascend_parts")
        rows = batch if fusion else batch * protocol.views
        shape = (batch * protocol.frames,) + protocol.frame_shape if dtype == "aipp" else (batch,) + protocol.video_shape
    _check_size(graph, batch)
    model = _model(graph, shape, dtype, (rows, protocol.classes))
    if not by_view or form == "online":
        how = {"form": form, "fusion": fusion, "softmax": softmax}
        set_metadata(model, {"tsm.form": json.dumps(how), "tsm.protocol": json.dumps(protocol._asdict())})
    if graph.states:
        set_metadata(model, {"tsm.states": json.dumps([state._asdict() for state in graph.states.values()])})
    return model


def _states(placed: List[Layer], protocol: Protocol) -> Dict[str, State]:
    """The states of an online model by the names of its shifts, in order."""
    found: Dict[str, State] = {}
    for node, name, shape in placed:
        for run in runs(shape[0], protocol):
            if node.op_type == SHIFT and run.step:
                number = "state_%02d_" % len(found)
                found[name] = State(number + "in", number + "out", (1, run.end - run.first) + shape[1:], name[: -len(".shift")])
    return found


def _model(graph: Graph, shape: Shape, dtype: str, scores: Tuple[int, int]) -> onnx.ModelProto:
    """The written nodes as a model: `input` of this shape and dtype -> `output`, float32 of shape `scores`; beside them the states."""
    states, kind = graph.states.values(), TensorProto.UINT8 if dtype == "uint8" else TensorProto.FLOAT
    value = helper.make_tensor_value_info
    inputs = [value("input", kind, shape)] + [value(state.input, TensorProto.FLOAT, state.shape) for state in states]
    outputs = [value("output", TensorProto.FLOAT, scores)] + [value(state.output, TensorProto.FLOAT, state.shape) for state in states]
    model = helper.make_model(helper.make_graph(graph.written, "tsm", inputs, outputs), producer_name="tsm", producer_version=__version__,
                              opset_imports=[helper.make_opsetid("", OPSET)])
    for name, array in graph.constants.items():  # last and in place: protobuf copies a message by writing and reading it
        element = numpy_helper.from_array(np.empty(0, array.dtype)).data_type
        model.graph.initializer.add(name=name, data_type=element, dims=array.shape, raw_data=array.tobytes())
    model.ir_version = 6  # that of opset 11, so that the oldest supported runtime reads it
    return model


def _check_size(graph: Graph, batch: int) -> None:
    """UserError where the zeros of an ascend form, which grow with the batch, make a file that ONNX does not allow."""
    nbytes = {name: value.nbytes for name, value in graph.constants.items()}
    zeros = sum(size for name, size in nbytes.items() if name.startswith("zeros_"))
    room = MOST_BYTES - (sum(nbytes.values()) - zeros)
    if 0 < room < zeros:
        raise UserError("a batch of %d takes %.1f GB of zeros, more than an ONNX file holds; use a batch of at most %d"
                        % (batch, zeros / 1e9, room * batch // zeros))


def trunk_of(model: onnx.ModelProto) -> Trunk:
    """The trunk of a model that build() wrote in an ascend, cpu or online form.

    The trunk is read by the names of its layers, then written again as the model's input and its `tsm.form` and `tsm.protocol`
    say; a model that is not exactly this graph, constants included, was changed by another tool. Raises ValueError then.
    """
    try:
        known = metadata(model)
        how, protocol = json.loads(known["tsm.form"]), protocol_from(json.loads(known["tsm.protocol"]), "tsm.protocol")
        (_, shape, kind), trunk = signature(model, "it"), _read_layers(model, protocol)
        aipp = how["form"].startswith("ascend") and len(shape) == 4
        batch, dtype = (shape[0] // protocol.frames, "aipp") if aipp else (shape[0], kind.name)
        again = build(trunk, protocol=protocol, batch=batch, dtype=dtype, **how)
        unchanged = again.graph == model.graph and states_in(again, "it") == states_in(model, "it")
    except Exception as error:  # metadata and nodes that are not build()'s can be anything
        raise ValueError("no trunk that can be read (%s: %s)" % (type(error).__name__, str(error)[:100]))
    if not unchanged:
        raise ValueError("its graph was changed since it was written")
    return trunk


def _read_layers(model: onnx.ModelProto, protocol: Protocol) -> Trunk:
    """What looks like the trunk of a model that build() wrote: the nodes that are called as a layer is, or `LAYER/...`, are its."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    written: Dict[str, List[NodeProto]] = {}  # by the layers' names
    for node in model.graph.node:
        written.setdefault(node.name.split("/")[0], []).append(node)
    tells = ("Conv", "Relu", "MaxPool", "Add", "Clip")  # of a layer's nodes, the first of these says what it is; none: it is no layer
    first = {name: next((node for node in of_layer if name.endswith(".shift") or node.op_type in tells), None)
             for name, of_layer in written.items()}

    def layer_of(value: str, reader: str) -> str:
        """The layer that a value of the layer `reader` comes from: past what only cuts, joins or orders."""
        name = value.split("/")[0]
        if name in ("input", "frames", "normalised"):
            return "frames"
        return name if name != reader and first.get(name) else layer_of(written[name][0].input[0], reader)

    nodes: List[NodeProto] = []
    for name, node in first.items():
        if node is None:
            continue
        op, count = {"Clip": RELU6}.get(node.op_type, node.op_type), 2 if node.op_type == "Add" else 1
        inputs, facts = [layer_of(value, name) for value in node.input[:count]], attributes(node)
        if name.endswith(".shift"):
            op, facts = SHIFT, {}
        elif op == "Conv":
            moved = [conv.input[0] for conv in written[name] if conv.op_type == "Conv" and len(conv.input) == 2]
            inputs = [layer_of(value, name) for value in moved[:1]] or inputs
            inputs += [name + ".weight", name + ".bias"]
            weights[inputs[1]], weights[inputs[2]] = _joined(name, written[name], weights, protocol)
            strided = len(written[name]) > 1 and written[name][0].name == name + "/every_second"
            facts = dict(facts, strides=[2, 2]) if strided else facts
        nodes.append(helper.make_node(op, inputs, [name], **facts))
    nodes[-1].output[0] = "features"
    return Trunk(nodes, weights, weights["fc.weight"], weights["fc.bias"])


def _joined(
    name: str, of_layer: List[NodeProto], weights: Dict[str, np.ndarray], protocol: Protocol
) -> Tuple[np.ndarray, np.ndarray]:
    """The weight and the bias of a convolution that _Parts may have written as several: by parts of its output, each as the sum of
    one over what stayed and one over what moved."""
    if len(of_layer) == 1:
        return weights[of_layer[0].input[1]], weights[of_layer[0].input[2]]

    def in_order(values: np.ndarray, axis: int) -> np.ndarray:
        """Values that are by groups() along an axis, by channels."""
        return np.take(values, np.argsort(np.concatenate([own for _, own in groups(values.shape[axis], protocol)])), axis)

    stayed, moved = ([node for node in of_layer if node.op_type == "Conv" and len(node.input) == count] for count in (3, 2))
    weight, bias = (np.concatenate([weights[node.input[place]] for node in stayed]) for place in (1, 2))
    of_moved = np.concatenate([weights[node.input[1]] for node in moved]) if moved else weight[:, :0]
    if moved and not stayed[0].input[0].endswith(("/still", "/kept")):  # beside the whole of what was shifted
        weight[:, np.concatenate([own for _, own in groups(weight.shape[1], protocol)[:-1]])] = of_moved
    elif moved or of_layer[0].name == name + "/every_second":
        weight = in_order(np.concatenate([of_moved, weight], 1), 1)
    return (in_order(weight, 0), in_order(bias, 0)) if len(stayed) > 1 else (weight, bias)

"""From any exporter's graph of a TSM to its trunk.

A rule recognises nodes by what they COMPUTE: the nodes between two known places (a Part) are run on test data and must give
what TSM defines there, so the exporter's idiom does not matter. lift() walks the graph and applies the rules.
"""

import collections
import os
import re
import tempfile
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tsm.cli import UserError, first_line
from tsm.model.graph import RELU6, SHIFT, SIX, Trunk, attributes, layers, shift_step
from tsm.model.onnxfile import session, signature
from tsm.protocol import CROPS, MOVES, SAMPLINGS, SHIFTS, SSV2, Protocol, shifted, softmax

HEAD_TOLERANCE = 1e-5  # of the head, relative to the largest class score
MOST_PIXELS = 2 * SSV2.frames * SSV2.size ** 2  # of a test video; 80 frames of 224 pixels, two thirds of it, take 2.2 GB with ResNet-50
TRUNK_OPS = ("Conv", "MaxPool", "Add")
CLAMPS = ("Relu", "Clip", "Max", "Min")
QUANTISED = re.compile("Q[A-Z]|Q?(uantize|Dequantize|DynamicQuantize)Linear|.*Integer$")  # QLinearConv, QGemm, ConvInteger, ...
HALVES = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
MISTAKES = {  # shifts that are met, but none that a network is tested with
    "reversed": "one the other way round (the first channels back, the next ahead), as in PaddlePaddle's TSM",
    "next1": "one from the future alone (next1), as in code that meant the past and took x[:, 1:]",
    "next2": "one from the future alone (next2)",
}
UNBOUNDED = 1e30  # some exporters write float32's largest value for no bound


class Source(NamedTuple):
    """A folded graph and the lookups that the rules need."""

    path: str
    model: onnx.ModelProto
    producers: Dict[str, NodeProto]  # by value
    weights: Dict[str, np.ndarray]
    input: str
    batch: int


class Part(NamedTuple):
    """The nodes between two known places: they make the value `end` out of `start` alone."""

    source: Source
    nodes: List[NodeProto]  # in graph order
    start: str
    end: str
    place: str  # the layer that reads `end`, by its name in the checkpoint
    shape: Tuple[int, ...]  # of one frame of `start`: channels, height, width


class CannotRun(UserError):
    """Nodes that do not take the shape that they were given."""


def few_views(protocol: Protocol) -> Protocol:
    """The protocol with so few views that a test video is not too large: itself, or one of fewer samples and crops.
    Nothing of a network but the fusion of its views depends on how many there are."""
    if protocol.frames * protocol.size ** 2 <= MOST_PIXELS:
        return protocol
    fewer = [protocol._replace(sampling=sampling, crops=crops) for sampling in SAMPLINGS for crops in CROPS]
    fitting = [few for few in fewer if few.frames * few.size ** 2 <= MOST_PIXELS]
    return max(fitting, key=lambda few: few.views) if fitting else min(fewer, key=lambda few: few.views)


def constants_in(model: onnx.ModelProto) -> Dict[str, TensorProto]:
    """The initializers of a graph and the values of its Constant nodes, by name."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    found.update((node.output[0], given.t) for node in model.graph.node if node.op_type == "Constant"
                 for given in node.attribute if given.name == "value")
    return found


def check_exported(model: onnx.ModelProto, path: str) -> None:
    """UserError where a graph is not the network in float32, as exporters write it, but a quantised, halved or optimised one."""
    constants = {name: tensor.data_type for name, tensor in constants_in(model).items()}
    for node in model.graph.node:
        kind, wrong = attributes(node).get("to") if node.op_type == "Cast" else None, ""
        if node.op_type == "Conv" and len(node.input) > 1:
            kind = constants.get(node.input[1])
        if QUANTISED.match(node.op_type):
            wrong = "is quantised"
        elif kind in HALVES:
            wrong = "computes in %s" % TensorProto.DataType.Name(kind).lower()
        elif node.domain.startswith("com.microsoft"):
            wrong = "was optimised by ONNX Runtime"
        if wrong:
            raise UserError("%s: %s (%s %s); pass the graph as it was exported, in float32, of which ATC makes float16 by "
                            "itself, and TSM_quantise.py int8 of the modified one"
                            % (path, wrong, node.op_type, node.name or node.output[0]))


def weights_leave_inputs(model: onnx.ModelProto) -> int:
    """Rule `weights`: drop the graph inputs that are initializers, in place; how many there were."""
    names = {tensor.name for tensor in model.graph.initializer}
    dropped = [value for value in model.graph.input if value.name in names]
    for value in dropped:
        model.graph.input.remove(value)
    return len(dropped)


def fold_constants(model: onnx.ModelProto, path: str, scratch: str) -> Tuple[onnx.ModelProto, int]:
    """Rule `fold`: (the model with everything folded that is constant, how many nodes fewer it has).

    ONNX Runtime hands the folded model back as a file only: `scratch`, which takes as much room as the model and is the
    caller's to remove. Raises OSError where that file cannot be written, UserError where the model cannot be run.
    """
    try:
        session(model, path, save_as=scratch)
        folded = onnx.load(scratch)
    except Exception:  # the model's fault, or that of the folder of `scratch`, which the runtime does not tell apart
        session(model, path)
        with open(scratch, "wb") as file:
            file.write(model.SerializeToString())
        raise UserError("%s: ONNX Runtime cannot write the folded model to %s" % (path, scratch))
    for node in [node for node in folded.graph.node if node.op_type == "Constant"]:
        tensor = folded.graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        folded.graph.node.remove(node)
    free_first_sizes(folded)
    return folded, len(model.graph.node) - len(folded.graph.node)


def free_first_sizes(model: onnx.ModelProto) -> None:
    """Let every Reshape to constant sizes work its first one out, in place: the same for what the model was exported for, and
    right for another number of frames where the exporter had written that number down."""
    constants = constants_in(model)
    for node in model.graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        sizes = numpy_helper.to_array(constants[node.input[1]]).copy()
        if sizes.ndim == 1 and len(sizes) and (sizes > 0).all():
            sizes[0] = -1
            name = node.input[1] + "/first_free"
            if name not in constants:
                constants[name] = model.graph.initializer.add()
                constants[name].CopyFrom(numpy_helper.from_array(sizes, name))
            node.input[1] = name


def read_source(model: onnx.ModelProto, path: str, protocol: Protocol, stated: bool = True) -> Source:
    """The lookups of a folded model; UserError where its input is not a batch of the protocol's videos, in float32.
    `stated`: whether the protocol is the model's own, or one that was named for it, and not only the default."""
    (name, shape, dtype), wanted = signature(model, path), protocol.video_shape
    remedy = "export it with --shape 1 %s" % " ".join(map(str, wanted))
    if shape[1:] != wanted or isinstance(shape[0], str) or shape[0] < 1:
        if not stated and len(shape) == 5 and shape[2] == 3 and shape[3] == shape[4]:  # videos of other views or another size
            remedy = "pass its test by --protocol (TSM_checkpoint.py CHECKPOINT --config CONFIG writes that file), or " + remedy
        raise UserError("%s: its input is [%s], where %d views of %d frames are [batch, %s], of a fixed batch; %s" % (
            path, ", ".join(map(str, shape)), protocol.views, protocol.segments, ", ".join(map(str, wanted)), remedy))
    if dtype != np.float32:
        raise UserError("%s: its input is %s; export it with an input of float32" % (path, dtype))
    graph = model.graph
    return Source(
        path, model, {value: node for node in graph.node for value in node.output},
        {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}, name, shape[0],
    )


def is_trunk(source: Source, node: NodeProto) -> bool:
    """Does the node belong to the convolutional trunk? (An Add of a constant is part of something else.)"""
    if node.op_type == "Add":
        return not any(value in source.weights for value in node.input)
    return node.op_type in TRUNK_OPS or bool(clamped(source, node))


def clamped(source: Source, node: NodeProto) -> str:
    """The one value that a Relu, Clip, Max or Min computes from, beside numbers; empty for any other node."""
    values = [name for name in node.input if name and name not in source.weights]
    numbers = [name for name in node.input if name in source.weights and source.weights[name].size == 1]
    return values[0] if node.op_type in CLAMPS and len(values) == 1 and len(values + numbers) == sum(map(bool, node.input)) else ""


def activation(source: Source, node: NodeProto) -> Tuple[str, str]:
    """(the value that a chain of clamping nodes which ends in `node` reads, Relu or Relu6, which the chain computes)."""
    chain, start = [node], clamped(source, node)
    while start in source.producers and clamped(source, source.producers[start]):
        chain.insert(0, source.producers[start])
        start = clamped(source, chain[0])
    name, values = node.name or node.output[0], np.append(np.linspace(-20, 20, 401), (-UNBOUNDED, UNBOUNDED)).astype(np.float32)
    out = evaluate(Part(source, chain, start, node.output[0], name, values.shape), values)
    for kind, expected in (("Relu", np.maximum(values, 0)), (RELU6, np.clip(values, 0, SIX))):
        if np.array_equal(out, expected):
            return start, kind
    raise UserError("%s: %s keeps values between %g and %g, where TSM keeps those above 0 or between 0 and %g"
                    % (source.path, name, out.min(), out.max(), SIX))


def between(source: Source, value: str) -> Tuple[List[NodeProto], str]:
    """(the nodes that make `value` out of one value of the trunk, or of the input, in graph order; that value)."""
    names: Set[str] = set()
    starts: Set[str] = set()
    todo = [value]
    while todo:
        name = todo.pop()
        node = source.producers.get(name)
        if not name or name in source.weights:
            continue
        if node is None or is_trunk(source, node):
            starts.add(name)
        elif node.output[0] not in names:
            names.add(node.output[0])
            todo.extend(node.input)
    if len(starts) != 1:
        raise UserError("%s: %s depends on %s; that is not TSM's graph"
                        % (source.path, value, " and ".join(sorted(starts)) or "nothing"))
    return [node for node in source.model.graph.node if node.output[0] in names], starts.pop()


def part_model(part: Part, shape: Sequence[int] = ()) -> onnx.ModelProto:
    """A part as a model of its own, x -> y, with x of `shape`; equal parts of a graph give equal models."""
    names = {part.start: "x", part.end: "y"}
    nodes, constants = [], []
    for node in part.nodes:
        for value in list(node.input) + list(node.output):
            if value and value not in names:
                names[value] = "v%d" % len(names)
                if value in part.source.weights:
                    constants.append(numpy_helper.from_array(part.source.weights[value], names[value]))
        inputs, outputs = ([names[value] if value else "" for value in values] for values in (node.input, node.output))
        nodes.append(helper.make_node(node.op_type, inputs, outputs, domain=node.domain))
        nodes[-1].attribute.extend(node.attribute)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "part", [x], [y], constants), opset_imports=list(part.source.model.opset_import))
    model.ir_version = part.source.model.ir_version
    return model


def evaluate(part: Part, x: np.ndarray) -> np.ndarray:
    """What a part makes of x, given as its start; in ONNX Runtime, node by node."""
    try:
        return session(part_model(part, x.shape), part.source.path, optimise=False, arena=False).run(None, {"x": x})[0]
    except Exception as error:  # the runtime's errors have no common base
        raise CannotRun("%s: the nodes before %s cannot run on frames of %s (%s); is it TSM, exported for this input?"
                        % (part.source.path, part.place, list(part.shape), first_line(error)))


def distinct_values(shape: Sequence[int]) -> np.ndarray:
    """Random float32 values: a block of 1,000,003 (prime) of them, repeated, since drawing hundreds of millions is slow."""
    return np.resize(np.random.RandomState(1).standard_normal(1000003).astype(np.float32), shape)


def check_input(part: Part, protocol: Protocol, batch: int) -> None:
    """Rule `input`: UserError unless the part lays `batch` videos out as frames."""
    videos = distinct_values((batch,) + protocol.video_shape)
    if not np.array_equal(evaluate(part, videos), videos.reshape((-1,) + protocol.frame_shape)):
        raise UserError("%s: the nodes before %s do not lay out the videos as frames" % (part.source.path, part.place))


def check_shift(part: Part, protocol: Protocol, batch: int) -> str:
    """Rule `shift`: the kind of temporal shift, of SHIFTS, that the part is; UserError, with what it does instead, where it is none."""
    segments, channels = protocol.segments, part.shape[0]
    fold = channels // protocol.shift_div
    x = distinct_values((batch * protocol.frames,) + part.shape)
    out = evaluate(part, x)
    kinds = [protocol.shift] + [kind for kind in MOVES if kind not in (protocol.shift, "none")]
    kind = next((kind for kind in kinds if np.array_equal(out, shifted(x, segments, fold, kind))), "")
    if kind in SHIFTS:
        return kind
    found = MISTAKES.get(kind, "another shape, %s" % list(out.shape))
    if not kind and out.shape == x.shape:
        ahead = sum(np.array_equal(out[: segments - 1, c], x[1:segments, c]) for c in range(channels))
        behind = sum(np.array_equal(out[1:segments, c], x[: segments - 1, c]) for c in range(channels))
        found = "%d channels ahead and %d back" % (ahead, behind)
    raise UserError("%s: the nodes before %s are not TSM's shift: they give %s, where it moves the first %d of %d channels "
                    "ahead and the next %d back within %d frames, zeros at the ends"
                    % (part.source.path, part.place, found, fold, channels, fold, segments))


def check_head(part: Part, protocol: Protocol, batch: int) -> Tuple[np.ndarray, np.ndarray]:
    """Rule `head`: (classifier weight [classes, features], bias [classes]); UserError unless the part is TSM's head."""
    path, weight, bias = (part.source.path,) + classifier(part)
    if len(weight) != protocol.classes:
        raise UserError("%s: its classifier has %d classes, its protocol %d; export it again from a checkpoint of %d classes"
                        % (path, len(weight), protocol.classes, protocol.classes))
    rows = batch * protocol.views
    features = np.random.RandomState(2).standard_normal((rows * protocol.segments,) + part.shape).astype(np.float32)
    scores = features.mean((2, 3)) @ weight.T + bias
    scores = scores.reshape(rows, protocol.segments, -1).mean(1)
    out, probabilities, ends_in = evaluate(part, features), softmax(scores), part.nodes[-1].op_type
    fused = ends_in != "Softmax" and np.allclose(out, probabilities, atol=HEAD_TOLERANCE)
    if out.shape == (batch, len(weight)) and (rows != batch or fused):
        raise UserError("%s: fuses the views of a video itself, as mmdeploy's and modified models do; export the checkpoint by "
                        "pytorch2onnx.py" % path)
    scores = probabilities if ends_in == "Softmax" else scores
    if out.shape != scores.shape or not np.abs(out - scores).max() <= HEAD_TOLERANCE * max(1, np.abs(scores).max()):
        raise UserError("%s: the nodes after the last block are not TSM's head (mean over the frame, classifier, mean over "
                        "%d segments); is it another model?" % (path, protocol.segments))
    return weight, bias


def classifier(part: Part) -> Tuple[np.ndarray, np.ndarray]:
    """The weight [classes, features] and bias [classes] of the one classifier in the part of what the last block
    makes."""
    weights = part.source.weights
    matrices = [
        weights[name] if node.op_type == "Gemm" and attributes(node).get("transB") else weights[name].T
        for node in part.nodes if node.op_type in ("Gemm", "MatMul")
        for name in node.input if name in weights and weights[name].ndim == 2
    ]
    if [matrix.shape[1] for matrix in matrices] != [part.shape[0]]:
        raise UserError("%s: not one classifier of the last block's %d features stands before its output; is it another model?"
                        % (part.source.path, part.shape[0]))
    biases = [weights[name] for node in part.nodes if node.op_type in ("Gemm", "Add") for name in node.input
              if name in weights and weights[name].shape == matrices[0].shape[:1]]
    return matrices[0], biases[0] if biases else np.zeros(len(matrices[0]), np.float32)


def holds(rule: Callable[[Part, Protocol, int], Any], part: Part, protocol: Protocol) -> Any:
    """What a rule gives for a part: on one video of few views, or, where the part's shapes do not allow that, of all its
    views, or on the exported batch."""
    few = few_views(protocol)
    if few != protocol:
        try:
            return rule(part, few, 1)
        except CannotRun:
            pass
    try:
        return rule(part, protocol, 1)
    except UserError:
        if part.source.batch == 1:
            raise
    return rule(part, protocol, part.source.batch)


def trunk_node(source: Source, node: NodeProto, inputs: List[str], weights: Dict[str, np.ndarray]) -> NodeProto:
    """A trunk's node as every exporter could have written it, on the trunk's values `inputs`; its weights go to `weights`."""
    value = node.output[0]
    if node.op_type in CLAMPS:
        return helper.make_node(activation(source, node)[1], inputs, [value])
    wanted = {"MaxPool": ("kernel_shape", "strides", "pads"), "Conv": ("kernel_shape", "strides", "pads", "dilations", "group")}
    facts = {key: fact for key, fact in attributes(node).items() if key in wanted.get(node.op_type, ())}
    constants = [name for name in node.input if name in source.weights]
    weights.update((name, source.weights[name]) for name in constants)
    if node.op_type == "Conv":
        weight = source.weights.get(node.input[1])
        if weight is None or weight.ndim != 4:
            raise UserError("%s: the weights of %s are not those of an image convolution" % (source.path, node.name or value))
        facts = dict({"dilations": [1, 1], "group": 1, "pads": [0] * 4, "strides": [1, 1],
                      "kernel_shape": list(weight.shape[2:])}, **facts)
        if len(constants) == 1:  # an exporter may leave out a bias of zeros
            constants.append(value + ".bias")
            weights[constants[1]] = np.zeros(len(weight), np.float32)
    return helper.make_node(node.op_type, inputs + constants, [value], **facts)


def walk(source: Source, end: str) -> Tuple[List[NodeProto], Dict[str, np.ndarray], List[Tuple[List[NodeProto], str, str]]]:
    """From the value `end` back to the input: (the trunk's nodes, inputs first; their weights; the gaps between them).

    A gap is what stands before a trunk node and is none itself: its nodes, its start and its end. It is taken to be the
    layout of the input where it starts there, and a shift elsewhere; lift() checks that.
    """
    nodes: List[NodeProto] = []
    weights: Dict[str, np.ndarray] = {}
    gaps: List[Tuple[List[NodeProto], str, str]] = []
    names: Dict[str, str] = {}  # the trunk's name of a value that was reached
    todo = [end]
    while todo:
        value, node = todo[-1], source.producers.get(todo[-1])
        if value in names:
            todo.pop()
            continue
        if node is not None and not is_trunk(source, node):
            node = None  # the value ends a gap
        gap, start = ([], "") if node is not None else between(source, value)
        inputs = [start]
        if node is not None:  # a chain of activations computes from what its first node does
            inputs = [activation(source, node)[0]] if node.op_type in CLAMPS else [
                name for name in node.input if name and name not in source.weights]
        if not inputs or start == value:
            raise UserError("%s: %s does not depend on the input; is it another model?" % (source.path, value))
        waiting = [name for name in inputs if name not in names and name != source.input]
        if waiting:
            todo.extend(reversed(waiting))
            continue
        names[value] = "frames" if start == source.input else value
        if node is not None:
            nodes.append(trunk_node(source, node, [names[name] for name in inputs], weights))
            continue
        gaps.append((gap, start, value))
        if start != source.input:
            nodes.append(helper.make_node(SHIFT, [names[start]], [value]))
    return nodes, weights, gaps


def check_family(source: Source) -> None:
    """UserError where the graph is of a TSM that has more than TSM itself: non-local blocks or temporal pooling."""
    nodes = source.model.graph.node
    products = [node for node in nodes if node.op_type == "MatMul" and not any(name in source.weights for name in node.input)]
    pools = [node for node in nodes if node.op_type == "MaxPool" and len(attributes(node)["kernel_shape"]) > 2]
    if products:  # some have pools, too
        raise UserError("%s: has non-local blocks (%s multiplies what was computed by what was computed); pass a TSM without"
                        % (source.path, products[0].name or products[0].output[0]))
    if pools:
        raise UserError("%s: has temporal pooling (%s); pass a TSM without" % (source.path, pools[0].name or pools[0].output[0]))


def lift(source: Source, protocol: Protocol) -> Tuple[Trunk, Dict[str, int], str]:
    """Rules `input`, `shift` and `head`: (the trunk of the source, how often each matched, the kind of its shifts);
    UserError where nodes are not what TSM has at their place, or the shifts are not where the blocks call for them, or
    not of one kind."""
    check_family(source)
    path, end = source.path, source.model.graph.output[0].name
    head, features = between(source, end)
    nodes, weights, gaps = walk(source, features)
    placed = {layer.node.output[0]: layer for layer in layers(nodes, weights, protocol.frame_shape)}
    fc_weight, fc_bias = holds(check_head, Part(source, head, features, end, "fc", placed[features].shape), protocol)
    counts = {"input": 0, "shift": 0, "head": 1}
    known: Dict[Tuple[Any, ...], str] = {}  # equal parts are checked once
    kinds: Dict[str, str] = {}  # the first place of each kind of shift
    for gap, start, value in gaps:
        rule, shape = ("shift", placed[start].shape) if start in placed else ("input", protocol.frame_shape)
        readers = [node for node in nodes if value in node.input or rule == "input" and "frames" in node.input]
        if any(node.op_type != "Conv" for node in readers) and rule == "shift":
            raise UserError("%s: %s stands before %s, where TSM has nothing"
                            % (path, gap[-1].op_type, placed[readers[0].output[0]].name))
        part = Part(source, gap, start, value, placed[readers[0].output[0]].name, shape)
        pattern = (rule, shape, part_model(part).SerializeToString())
        if pattern not in known:
            known[pattern] = holds({"input": check_input, "shift": check_shift}[rule], part, protocol)
        counts[rule] += 1
        if rule == "shift":
            kinds.setdefault(known[pattern], part.place)
    if len(kinds) > 1:
        raise UserError("%s: its shifts are of several kinds (%s); TSM has one"
                        % (path, ", ".join("%s before %s" % item for item in kinds.items())))
    check_places([layer.name for layer in placed.values()], path)
    nodes[-1].output[0] = "features"
    return Trunk(nodes, weights, fc_weight, fc_bias), counts, next(iter(kinds))


def shift_to_write(path: str, protocol: Protocol, found: str, stated: bool, online: bool, asked: Optional[str]) -> Protocol:
    """The protocol with the kind of shift that is to be written of the graph at `path`, whose nodes compute the one `found`.

    Args: stated: as of read_source(). online: whether frame by frame. asked: bi-still or bi-zero, where weights of bi are to be run so.
    Raises UserError where it contradicts what was stated, or looks ahead where it must not.
    """
    if stated and found != protocol.shift:
        raise UserError("%s: its shift is %s by what its nodes compute, %s by its protocol; make that with TSM_checkpoint.py --shift %s, "
                        "or export it again" % (path, found, protocol.shift, found))
    if asked and found not in ("bi", asked):
        raise UserError("%s: its shift is %s, so it runs frame by frame as it is; leave out --shift" % (path, found))
    protocol = protocol._replace(shift=asked or found)
    if online and not protocol.causal:
        raise UserError("%s: its shift looks one frame ahead (%s), which no frame by frame graph can do; train with --shift past1 "
                        "and export that, or run windows (TSM_predict.py --window); --shift bi-still runs these weights without the "
                        "look-ahead, which is another network with other answers" % (path, found))
    return protocol


def check_places(names: Sequence[str], path: str) -> None:
    """UserError unless the layers of these names, as tsm.model.graph.layers() gives them, have the shifts that TSM has:
    before conv1 of a ResNet's blocks, as tsm.model.graph.shift_step() says; before conv.0 of MobileNetV2's blocks that have
    both an expansion and a residual connection (mmaction2 0.24.1, MobileNetV2TSM)."""
    found = {name[: -len(".shift")] for name in names if name.endswith(".shift")}
    blocks = [name[: -len(".add")].rsplit(".", 1) for name in names if name.endswith(".add")]
    if any(name.endswith(".conv.0") for name in names):
        wanted = {".".join(block + ["conv.0"]) for block in blocks if ".".join(block + ["conv.2"]) in names}
    else:
        counts = collections.Counter(stage for stage, _ in blocks)
        step = shift_step([counts["layer%d" % number] for number in range(1, len(counts) + 1)])
        wanted = {"%s.%s.conv1" % (stage, block) for stage, block in blocks if not int(block) % step}
    if found != wanted or not found:
        differ = ", and they differ first before %s" % min(found ^ wanted) if found ^ wanted else ""
        raise UserError("%s: %d temporal shifts, where this network has %d%s; is it TSM, and not TSN, exported with its shift?"
                        % (path, len(found), len(wanted), differ))


def auto_optimize(model: onnx.ModelProto, folder: str) -> Tuple[onnx.ModelProto, int]:
    """Apply auto-optimizer's default knowledges, by way of a file in `folder`: (the model, how many of them changed it)."""
    try:
        from auto_optimizer import KnowledgeFactory, OnnxGraph
        from auto_optimizer.graph_optimizer.optimizer import NONEQUIVALENT_KNOWLEDGES, GraphOptimizer
    except (ImportError, AttributeError) as error:
        raise UserError("--auto_optimizer: it cannot be imported (%s); it needs onnx below 1.19, or do without" % error)
    names = [name for name in KnowledgeFactory.get_knowledge_pool() if name not in NONEQUIVALENT_KNOWLEDGES]
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as scratch:
        path = os.path.join(scratch, "model.onnx")
        onnx.save(model, path)
        try:
            graph, applied = GraphOptimizer(names).apply_knowledges(OnnxGraph.parse(path, add_name_suffix=True))
            graph.save(path)
        except Exception as error:  # it is not ours, and raises what it likes
            raise UserError("--auto_optimizer: it failed on this graph (%s); do without" % first_line(error))
        return onnx.load(path), len(applied)

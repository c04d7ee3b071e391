#!/usr/bin/env python3
"""Graph surgery on an exported TSM: cheap shifts, fused views, any batch size; and a proof that it is the same network.

    python3 modify_onnx.py -m1 tsm_bs1.onnx -m2 tsm_new_bs1.onnx -bs 1

Takes the graph of any exporter (mmaction2's tool on any PyTorch, TorchScript or not, or ours) and writes one canonical
graph: `input` [bs, 48, 3, 256, 256] -> `output` [bs, 174], the probabilities of the fused views. Rules, in order:

  weights    weights listed among the graph's inputs become constants
  fold       what depends on constants alone is computed now: shape arithmetic, batch normalisation (ONNX Runtime does it)
  input      the nodes that turn videos into frames become one Reshape
  shift      the nodes before a block's first convolution become the target's form of the temporal shift
  head       pooling, classifier, mean over segments and softmax become the fusion of the views asked for

`input`, `shift` and `head` recognise nodes by what they COMPUTE: the nodes between two known places are run on test data
and must give exactly what TSM defines there (to 1e-5 in the head), so the exporter's idiom does not matter, and whatever
is not TSM is refused. `x - x`, mmaction2's way to write the shift's zeros, becomes zero: the two differ only where x is
not finite. The shifts must be as many as the network's blocks call for, 16 for ResNet-50.

Then both graphs run in ONNX Runtime on random videos; the largest difference and the rules' counts are printed and kept
in the model's metadata_props. Over tolerance, or at any refusal: exit status 1, one line, no output file.
"""

import argparse
import json
import os
import tempfile
from typing import Any, Dict, List, NamedTuple, Set, Tuple

import numpy as np

from tsm import __version__
from tsm.cli import UserError, parser, positive, run
from tsm.files import replacing, sha256
from tsm.onnxfile import session
from tsm.protocol import CLASSES, FRAMES, FUSIONS, MEAN, SEGMENTS, SHIFT_DIV, SIZE, STD, VIDEO_SHAPE, VIEWS, fuse, shifted, softmax
from tsm.protocol import CROPS_3 as CROPS

MAGNITUDES = ((0.1, 1.0, 5.0), (5.0, 0.1, 1.0))  # standard deviations of the crops of each of the proof's random videos
TOLERANCE = 1e-5  # largest difference of a probability
TRUNK_OPS = ("Conv", "Relu", "MaxPool", "Add")


class Source(NamedTuple):
    """A folded graph and the lookups that the rules need."""

    path: str
    model: Any  # onnx.ModelProto
    producers: Dict[str, Any]  # value -> NodeProto
    weights: Dict[str, np.ndarray]
    input: str
    batch: int


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("-m1", "--model1", required=True, metavar="FILE", help="the exported model")
    cli.add_argument("-m2", "--model2", required=True, metavar="FILE", help="the model to write")
    cli.add_argument("-bs", "--batch_size", type=positive, default=1, help="batch size of the output, whatever the "
                     "input's (default: 1)")
    cli.add_argument("--fusion", choices=FUSIONS, default=FUSIONS[0], help="score: mean of all frames' class scores, then "
                     "softmax (the Ascend guide); prob: softmax per view, then mean (mmaction2) (default: %(default)s)")
    cli.add_argument("--target", choices=("ascend", "cpu"), default="ascend", help="ascend: operators of the guide's graph, "
                     "for ATC; cpu: for TSM_infer.py (default: %(default)s)")
    cli.add_argument("--input_dtype", choices=("float32", "uint8"), default="float32", help="uint8: RGB 0..255, normalised "
                     "in the graph (cpu only) (default: %(default)s)")
    cli.add_argument("--auto_optimizer", action="store_true", help="also apply auto-optimizer's default knowledges, where "
                     "it is installed, under the same proof")
    args = cli.parse_args()
    if args.input_dtype == "uint8" and args.target == "ascend":
        cli.error("--input_dtype uint8: for --target cpu; on an NPU, normalise by ATC's --insert_op_conf")
    return args


def weights_leave_inputs(model: Any) -> int:
    """Rule `weights`: drop the graph inputs that are initializers, in place; how many there were."""
    names = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in names]
    dropped = len(model.graph.input) - len(kept)
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return dropped


def fold_constants(model: Any, path: str) -> Tuple[Any, int]:
    """Rule `fold`: (the model with everything folded that is constant, how many nodes fewer it has)."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        folded = os.path.join(folder, "folded.onnx")
        session(model, path, save_as=folded)
        simple = onnx.load(folded)
    constants = [node for node in simple.graph.node if node.op_type == "Constant"]
    for node in constants:
        tensor = simple.graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        simple.graph.node.remove(node)
    return simple, len(model.graph.node) - len(simple.graph.node)


def read_source(model: Any, path: str) -> Source:
    """The lookups of a folded model; UserError where its input is not one batch of videos."""
    from onnx import numpy_helper

    graph = model.graph
    if len(graph.input) != 1 or len(graph.output) != 1:
        raise UserError("%s: has %d inputs and %d outputs; TSM has one of each" % (path, len(graph.input), len(graph.output)))
    shape = tuple(dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim)
    if shape[1:] != VIDEO_SHAPE or not shape[0]:
        raise UserError("%s: its input is %s, not [batch, %s]; export it with --shape BATCH 48 3 256 256"
                        % (path, list(shape), ", ".join(map(str, VIDEO_SHAPE))))
    return Source(
        path, model, {value: node for node in graph.node for value in node.output},
        {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}, graph.input[0].name, shape[0],
    )


def is_trunk(source: Source, node: Any) -> bool:
    """Does the node belong to the convolutional trunk? (An Add of a constant is part of something else.)"""
    return node.op_type in TRUNK_OPS and not (node.op_type == "Add" and any(v in source.weights for v in node.input))


def between(source: Source, value: str) -> Tuple[List[Any], str]:
    """(the nodes that make `value` out of one value of the trunk, or of the input, in graph order; that value)."""
    nodes, starts, todo = set(), set(), [value]  # type: Set[str], Set[str], List[str]
    while todo:
        name = todo.pop()
        node = source.producers.get(name)
        if not name or name in source.weights:
            continue
        if node is None or is_trunk(source, node):
            starts.add(name)
        elif node.output[0] not in nodes:
            nodes.add(node.output[0])
            todo.extend(node.input)
    if len(starts) != 1:
        raise UserError("%s: %s depends on %s; that is not TSM's graph"
                        % (source.path, value, " and ".join(sorted(starts)) or "nothing"))
    return [node for node in source.model.graph.node if node.output[0] in nodes], starts.pop()


def evaluate(source: Source, nodes: List[Any], start: str, end: str, x: np.ndarray) -> np.ndarray:
    """What `nodes` make of x, given as the value `start`, for the value `end`; in ONNX Runtime, node by node."""
    from onnx import TensorProto, helper

    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "part",
        [helper.make_tensor_value_info(start, TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info(end, TensorProto.FLOAT, None)],
        [tensor for tensor in source.model.graph.initializer if tensor.name in used],
    )
    part = helper.make_model(graph, opset_imports=list(source.model.opset_import))
    part.ir_version = source.model.ir_version
    try:
        return session(part, source.path, optimise=False).run([end], {start: x})[0]
    except UserError:
        raise
    except Exception as error:
        raise UserError("%s: the nodes before %s cannot run (%s)" % (source.path, end, str(error).splitlines()[0][:160]))


def distinct_values(shape: Tuple[int, ...]) -> np.ndarray:
    """Random float32 values of which hardly two are alike; a prime number of them, repeated, since hundreds of millions take long."""
    return np.resize(np.random.RandomState(1).standard_normal(1000003).astype(np.float32), shape)


def match_shift(source: Source, conv: Any, nodes: List[Any], start: str, shape: Tuple[int, ...]) -> None:
    """Rule `shift`: UserError, with what they do instead, unless `nodes` are the temporal shift before `conv`."""
    x = distinct_values((source.batch * VIEWS * SEGMENTS,) + shape)
    out, fold = evaluate(source, nodes, start, conv.input[0], x), shape[0] // SHIFT_DIV
    if np.array_equal(out, shifted(x, SEGMENTS, fold)):
        return
    what = "another shape, %s" % list(out.shape)
    if out.shape == x.shape:
        ahead = sum(np.array_equal(out[:7, c], x[1:8, c]) for c in range(shape[0]))
        behind = sum(np.array_equal(out[1:8, c], x[:7, c]) for c in range(shape[0]))
        what = "%d channels ahead and %d back" % (ahead, behind)
    raise UserError("%s: the nodes before %s are not TSM's shift: they give %s, where it moves the first %d of %d channels "
                    "ahead and the next %d back within %d frames, zeros at the ends"
                    % (source.path, conv.name or conv.output[0], what, fold, shape[0], fold, SEGMENTS))


def match_head(source: Source) -> Tuple[str, np.ndarray, np.ndarray]:
    """Rule `head`: (the value of the features, classifier weight [classes, features], bias [classes])."""
    end = source.model.graph.output[0].name
    nodes, start = between(source, end)
    matrices = [source.weights[name] for node in nodes if node.op_type in ("Gemm", "MatMul") for name in node.input
                if name in source.weights and source.weights[name].ndim == 2]
    if len(matrices) != 1:
        raise UserError("%s: %d classifiers before its output, where TSM has one" % (source.path, len(matrices)))
    weight = matrices[0] if matrices[0].shape[0] == CLASSES else matrices[0].T
    biases = [source.weights[name] for node in nodes if node.op_type in ("Gemm", "Add") for name in node.input
              if name in source.weights and source.weights[name].shape == (len(weight),)]
    bias = biases[0] if biases else np.zeros(len(weight), np.float32)
    rows = source.batch * VIEWS
    features = np.random.RandomState(2).standard_normal((rows * SEGMENTS, weight.shape[1], 8, 8)).astype(np.float32)
    scores = features.mean((2, 3)) @ weight.T + bias
    scores = scores.reshape(rows, SEGMENTS, -1).mean(1)
    if nodes[-1].op_type == "Softmax":
        scores = softmax(scores)
    out = evaluate(source, nodes, start, end, features)
    if out.shape == (source.batch, len(weight)) and rows != source.batch:
        raise UserError("%s: its views are fused already; pass the exported model, not a modified one" % source.path)
    if out.shape != scores.shape or not np.abs(out - scores).max() <= 1e-5 * max(1, np.abs(scores).max()):
        raise UserError("%s: the nodes after the last block are not TSM's head (mean over the frame, classifier, mean over "
                        "%d segments); is it another model?" % (source.path, SEGMENTS))
    return start, weight, bias


def raise_trunk(source: Source) -> Tuple[Any, Dict[str, int]]:
    """Rules `input`, `shift` and `head`: (the tsm.graph.Trunk of the source, how often each matched)."""
    from onnx import helper

    from tsm.graph import SHIFT, Trunk, attributes, output_shape

    features, fc_weight, fc_bias = match_head(source)
    names, shapes = {}, {"frames": (3, SIZE, SIZE)}  # type: Dict[str, str], Dict[str, Tuple[int, ...]]
    nodes, counts = [], {"input": 0, "shift": 0, "head": 1}
    weights = dict(source.weights)

    def visit(value: str) -> str:
        """Emit what makes `value`; its name in the trunk."""
        if value in names:
            return names[value]
        node = source.producers.get(value)
        if node is None or not is_trunk(source, node):
            raise UserError("%s: %s is made by %s, which TSM's trunk has not" % (
                source.path, value, node.op_type if node is not None else "the input itself"))
        inputs = [visit_start(node, name) for name in node.input if name not in source.weights]
        kept = {key: given for key, given in attributes(node).items()
                if key in ("kernel_shape", "strides", "pads") or node.op_type == "Conv" and key in ("dilations", "group")}
        if node.op_type == "Conv":
            weight = source.weights.get(node.input[1])
            if weight is None:
                raise UserError("%s: the weights of %s are not constant" % (source.path, node.name or value))
            kept = dict({"dilations": [1, 1], "group": 1, "pads": [0] * 4, "strides": [1, 1],
                         "kernel_shape": list(weight.shape[2:])}, **kept)
        constants = [name for name in node.input if name in weights]
        if node.op_type == "Conv" and len(constants) == 1:  # an exporter may leave out a bias of zeros
            constants.append(value + ".bias")
            weights[constants[1]] = np.zeros(len(weight), np.float32)
        out = helper.make_node(node.op_type, inputs + constants, [value], **kept)
        nodes.append(out)
        shapes[value] = output_shape(out, shapes[inputs[0]], weights)
        names[value] = value
        return value

    def visit_start(node: Any, value: str) -> str:
        """`value`, an input of the trunk node `node`, or what a shift or the input's reshape makes it from."""
        if value in names or value in source.producers and is_trunk(source, source.producers[value]):
            return visit(value)
        between_nodes, start = between(source, value)
        if start == source.input:
            videos = distinct_values((source.batch,) + VIDEO_SHAPE)
            if not np.array_equal(evaluate(source, between_nodes, start, value, videos),
                                  videos.reshape((-1,) + VIDEO_SHAPE[1:])):
                raise UserError("%s: the nodes before %s do not lay out the videos as frames" % (source.path, value))
            counts["input"] += 1
            names[value] = "frames"
            return "frames"
        if node.op_type != "Conv":
            raise UserError("%s: %s stands between two blocks, where TSM has nothing"
                            % (source.path, between_nodes[-1].op_type))
        x = visit(start)
        match_shift(source, node, between_nodes, start, shapes[x])
        counts["shift"] += 1
        nodes.append(helper.make_node(SHIFT, [x], [value]))
        shapes[value], names[value] = shapes[x], value
        return value

    visit(features)
    nodes[-1].output[0] = "features"
    expected = expected_shifts(nodes, shapes)
    if counts["shift"] != expected:
        raise UserError("%s: %d temporal shifts, where this network has %d; is it TSM, exported with its shift?"
                        % (source.path, counts["shift"], expected))
    return Trunk(nodes, weights, fc_weight, fc_bias), counts


def expected_shifts(nodes: List[Any], shapes: Dict[str, Tuple[int, ...]]) -> int:
    """How many blocks of a trunk TSM shifts: all, or every second one where the third stage has 23 blocks or more."""
    stages = {}  # type: Dict[int, int]
    for node in nodes:
        if node.op_type == "Add":
            channels = shapes[node.output[0]][0]
            stages[channels] = stages.get(channels, 0) + 1
    blocks = [stages[channels] for channels in sorted(stages)]
    step = 2 if len(blocks) > 2 and blocks[2] >= 23 else 1
    return sum((count + step - 1) // step for count in blocks)


def with_scores(model: Any, batch: int) -> Any:
    """A copy of the exported model that takes `batch` videos and returns class scores, without a closing softmax."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    output = copy.graph.output[0]
    last = next(node for node in copy.graph.node if output.name in node.output)
    if last.op_type == "Softmax":
        output.name = last.input[0]
        copy.graph.node.remove(last)
    output.type.tensor_type.ClearField("shape")
    copy.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    del copy.graph.value_info[:]
    return copy


def prove(exported: Any, path: str, source_batch: int, new: Any, fusion: str, dtype: str) -> Dict[str, Any]:
    """Run the exported model and the new one (at batch 1) on random videos; the largest difference of a probability.

    The exported model runs on one video at a time where its graph allows it (whatever it then computes has to agree), else
    at its own batch size.
    """
    rng = np.random.RandomState(3)
    after = session(new, path)
    for batch in sorted({1, source_batch}):
        try:
            before = session(with_scores(exported, batch), path)
            name = before.get_inputs()[0].name
            if before.run(None, {name: np.zeros((batch,) + VIDEO_SHAPE, np.float32)})[0].shape[0] == batch * VIEWS:
                break
        except Exception:  # its shapes hold for its own batch size only
            if batch == source_batch:
                raise UserError("%s: does not run in ONNX Runtime; export it again" % path)
    largest, agree, videos_run = 0.0, 0, 0
    for magnitudes in MAGNITUDES:
        if dtype == "uint8":
            videos = rng.randint(0, 256, (batch,) + VIDEO_SHAPE).astype(np.uint8)
            shape = (1, 1, 3, 1, 1)
            plain = (videos - np.float32(MEAN).reshape(shape)) * (1 / np.float64(np.float32(STD))).reshape(shape)
            plain = plain.astype(np.float32)
        else:
            scale = np.repeat(np.float32(magnitudes), FRAMES // CROPS)[:, None, None, None]
            videos = plain = rng.standard_normal((batch,) + VIDEO_SHAPE).astype(np.float32) * scale
        expected = fuse(before.run(None, {name: plain})[0], VIEWS, fusion)
        actual = np.concatenate([after.run(None, {"input": video[None]})[0] for video in videos])
        difference = float(np.abs(actual - expected).max())
        largest = max(largest, difference) if np.isfinite(difference) else float("inf")
        agree += int((actual.argmax(1) == expected.argmax(1)).sum())
        videos_run += batch
    return {"videos": videos_run, "magnitudes": MAGNITUDES, "largest_difference": largest, "tolerance": TOLERANCE,
            "top1_agreement": agree}


def auto_optimize(model: Any) -> Tuple[Any, int]:
    """Apply auto-optimizer's default knowledges: (the model, how many of them changed it)."""
    import onnx

    try:
        from auto_optimizer import KnowledgeFactory, OnnxGraph
        from auto_optimizer.graph_optimizer.optimizer import NONEQUIVALENT_KNOWLEDGES, GraphOptimizer
    except (ImportError, AttributeError) as error:
        raise UserError("--auto_optimizer: it cannot be imported (%s); it needs onnx below 1.19, or do without" % error)
    names = [name for name in KnowledgeFactory.get_knowledge_pool() if name not in NONEQUIVALENT_KNOWLEDGES]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        onnx.save(model, path)
        try:
            graph, applied = GraphOptimizer(names).apply_knowledges(OnnxGraph.parse(path, add_name_suffix=True))
            graph.save(path)
        except Exception as error:  # it is not ours, and raises what it likes
            raise UserError("--auto_optimizer: it failed on this graph (%s); do without" % error)
        return onnx.load(path), len(applied)


def main() -> None:
    args = get_args()
    import onnx

    from tsm.graph import build
    from tsm.onnxfile import load, metadata, set_metadata

    exported = load(args.model1)
    if "tsm.fusion" in metadata(exported):
        raise UserError("%s: is a modified model already; pass the exported one" % args.model1)
    rules = {"weights": weights_leave_inputs(exported)}  # type: Dict[str, int]
    folded, rules["fold"] = fold_constants(exported, args.model1)
    source = read_source(folded, args.model1)
    trunk, counts = raise_trunk(source)
    rules.update(counts)

    def make(batch: int) -> Any:
        model = build(trunk, args.target, batch, args.fusion, dtype=args.input_dtype)
        return auto_optimize(model) if args.auto_optimizer else (model, None)

    one, applied = make(1)
    if applied is not None:
        rules["auto_optimizer"] = applied
    proof = prove(exported, args.model1, source.batch, one, args.fusion, args.input_dtype)
    print("%-14s matches" % "rule")
    for rule, count in rules.items():
        print("%-14s %d" % (rule, count))
    print("proof: largest difference of a probability %.1e (tolerance %.0e), top-1 agrees on %d of %d random videos"
          % (proof["largest_difference"], TOLERANCE, proof["top1_agreement"], proof["videos"]))
    if not proof["largest_difference"] <= TOLERANCE:
        raise UserError("%s: the modified graph differs from it by %.1e, so nothing was written; please report this model"
                        % (args.model1, proof["largest_difference"]))
    model = one if args.batch_size == 1 else make(args.batch_size)[0]
    onnx.checker.check_model(model)
    set_metadata(model, {
        "tsm.version": __version__, "tsm.source": os.path.basename(args.model1), "tsm.source_sha256": sha256(args.model1),
        "tsm.fusion": args.fusion, "tsm.target": args.target, "tsm.input_dtype": args.input_dtype,
        "tsm.batch": str(args.batch_size), "tsm.rules": json.dumps(rules), "tsm.proof": json.dumps(proof),
    })
    with replacing(args.model2) as part:
        onnx.save(model, part)
    print("wrote %s: input [%d, 48, 3, 256, 256] %s, output [%d, %d], views fused by %s, for %s" % (
        args.model2, args.batch_size, args.input_dtype, args.batch_size, len(trunk.fc_weight), args.fusion, args.target))


if __name__ == "__main__":
    run(main)

"""modify_onnx.py: every exporter's graph becomes one canonical graph; whatever is not TSM is refused in one line."""

import collections
import gzip
import hashlib
import json
import os
import subprocess
import tempfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from tsm.model import proof
from tsm.model.graph import SHIFT, Trunk, build, layers, trunk_of
from tsm.model.network import TSM, trunk_from
from tsm.model.onnxfile import graph_digest, metadata, set_metadata
from tsm.protocol import SSV2, fuse, shifted

SPECIMENS = ("mmaction2_torch1.9", "torchscript_torch2.13", "dynamo_torch2.13")


def fill(model):
    """Random weights for a specimen, of a size that keeps activations near 1; the same for every specimen."""
    rng = np.random.RandomState(0)
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and values.ndim:
            fan_in = max(1, int(np.prod(values.shape[1:])))
            filled = rng.standard_normal(values.shape) * np.sqrt(1.5 / fan_in)
            if values.ndim == 1:
                filled = rng.uniform(0.1, 0.3, values.shape)
            tensor.CopyFrom(numpy_helper.from_array(filled.astype(np.float32), tensor.name))
    return model


@pytest.fixture(scope="module")
def specimens(repo, tmp_path_factory):
    """{name: path} of the specimens with weights in, and of our own export of a network as thin."""
    folder = tmp_path_factory.mktemp("specimens")
    paths = {name: folder / (name + ".onnx") for name in SPECIMENS + ("builtin",)}
    for name in SPECIMENS:
        raw = gzip.decompress((repo / "test/specimens" / (name + ".onnx.gz")).read_bytes())
        onnx.save(fill(onnx.load_model_from_string(raw)), str(paths[name]))
    torch.manual_seed(0)
    onnx.save(build(trunk_from(TSM(width=8).eval()), "cpu", SSV2, softmax=True), str(paths["builtin"]))
    return paths


@pytest.fixture(scope="module")
def modified(specimens, works):
    """{name: modified model} for --target cpu, made through the command line, and what the script printed."""
    made = {}
    for name, path in specimens.items():
        printed = works("modify_onnx.py", "-m1", path, "-m2", name + "_new.onnx", "-bs", 1, "--target", "cpu", cwd=path.parent)
        made[name] = onnx.load(str(path.parent / (name + "_new.onnx"))), printed
    return made


def structure(model):
    """Everything of a graph but its weights."""
    nodes = [(node.op_type, node.name, list(node.input), list(node.output),
              sorted((given.name, str(helper.get_attribute_value(given))) for given in node.attribute))
             for node in model.graph.node]
    weights = sorted((tensor.name, list(tensor.dims)) for tensor in model.graph.initializer)
    return nodes, weights, str(model.graph.input), str(model.graph.output), model.opset_import[0].version


@pytest.mark.parametrize("name", SPECIMENS)
def test_every_exporter_ends_in_the_same_graph(modified, name):
    assert structure(modified[name][0]) == structure(modified["builtin"][0])


@pytest.mark.parametrize("name, weights, folded", [
    ("mmaction2_torch1.9", True, True), ("torchscript_torch2.13", True, True), ("dynamo_torch2.13", False, False),
    ("builtin", False, False)])
def test_counts_and_proof_are_printed_and_kept(modified, name, weights, folded):
    model, printed = modified[name]
    known = metadata(model)
    rules, proved = json.loads(known["tsm.rules"]), json.loads(known["tsm.proof"])
    assert (rules["input"], rules["shift"], rules["head"]) == (1, 16, 1)
    assert (rules["weights"] > 0, rules["fold"] > 100) == (weights, folded)
    assert set(proved) == {"file", "one_view"}
    for entry in proved.values():
        assert entry["largest_difference"] <= entry["tolerance"] == 1e-5 and entry["top1_agreement"] == entry["videos"] == 1
        assert len(set(entry["magnitudes"])) == SSV2.views  # a mix-up of any two views shows
    assert known["tsm.fusion"] == "score" and known["tsm.target"] == "cpu" and len(known["tsm.source_sha256"]) == 64
    assert json.loads(known["tsm.protocol"]) == json.loads(json.dumps(SSV2._asdict()))
    assert "recognised 16 shifts and the head" in printed and ", shift 16, head 1" in printed
    assert "proof: largest difference" in printed and "view by view: largest" in printed
    assert ("says nothing of its protocol" in printed) == (name != "builtin")


def run_onnx(model, feed):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0]


def test_a_source_of_any_batch_gives_the_same_graph(modified, works, tmp_path):
    onnx.save(build(trunk_of(modified["builtin"][0]), "cpu", SSV2, 3), str(tmp_path / "three.onnx"))
    works("modify_onnx.py", "-m1", "three.onnx", "-m2", "new.onnx", "-bs", 1, "--target", "cpu", cwd=tmp_path)
    assert structure(onnx.load(str(tmp_path / "new.onnx"))) == structure(modified["builtin"][0])


def _edit(change):
    """A damage that edits the exported model's nodes."""
    def damage(path):
        model = onnx.load(str(path))
        change(model)
        onnx.save(model, str(path))
    return damage


def _node(model, name):
    return next(node for node in model.graph.node if node.name == name)


def _pads(values):
    def change(model):
        for tensor in model.graph.initializer:
            if tensor.name == "ints_0_m1_0_0_0_1_0_0":  # the shift ahead
                tensor.CopyFrom(numpy_helper.from_array(np.array(values, np.int64), tensor.name))
    return change


def _bypass(model, name, source):
    """What reads `name` reads `source`."""
    for node in model.graph.node:
        node.input[:] = [source if read == name else read for read in node.input]


def _no_shift(model):
    """Take the first shift out: its convolution reads what the shift read."""
    _bypass(model, "layer1.0.conv1.shift", _node(model, "layer1.0.conv1.shift/views").input[0])
    for node in [node for node in model.graph.node if node.name.startswith("layer1.0.conv1.shift")]:
        model.graph.node.remove(node)


def _split(model):
    next(given for given in _node(model, "layer2.0.conv1.shift/split").attribute if given.name == "split").ints[:] = [8, 8, 16]


def _foreign_op(model):
    _node(model, "layer1.1.relu").op_type = "Sigmoid"


def _input_shape(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 24


def _dynamic(*places):
    def change(model):
        for place in places:
            model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = "N%d" % place
    return change


def _unnamed_batch(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_value")


def _protocol(**changes):
    def change(model):
        set_metadata(model, {"tsm.protocol": json.dumps(SSV2._replace(**changes)._asdict())})
    return change


def _metadata(text):
    return lambda model: set_metadata(model, {"tsm.protocol": text})


def _outside(path):
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if tensor.name == "fc.weight":
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="../weights.bin")
            tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())


def _missing(path):
    _outside(path)
    path.write_bytes(path.read_bytes().replace(b"../weights.bin", b"my_weights.bin"))


@pytest.mark.parametrize("damage, says", [
    (_edit(_pads([0, 1, 0, 0, 0, -1, 0, 0])), "its shift is past2 by what its nodes compute, bi by its protocol"),
    (_edit(_pads([0, -2, 0, 0, 0, 2, 0, 0])), "not TSM's shift"),
    (_edit(_no_shift), "15 temporal shifts, where this network has 16"),
    (_edit(_split), "before layer2.0.conv1 are not TSM's shift: they give 8 channels ahead and 8 back"),
    (_edit(_foreign_op), "before layer1.2.conv1 are not TSM's shift"),
    (_edit(_input_shape), "its input is [1, 24, 3, 256, 256], where 6 views of 8 frames are [batch, 48, 3, 256, 256]"),
    (_edit(_dynamic(0)), "its input is [N0, 48, 3, 256, 256], where"),
    (_edit(_unnamed_batch), "are [batch, 48, 3, 256, 256], of a fixed batch; export it with --shape 1 48 3 256 256"),
    (_edit(_dynamic(0, 1, 3)), "its input is [N0, N1, 3, N3, 256], where 6 views of 8 frames are [batch, 48, 3, 256, 256]"),
    (_edit(_protocol(classes=10)), "its classifier has 174 classes, its protocol 10"),
    (_edit(_protocol(segments=4)), "where 6 views of 4 frames are [batch, 24, 3, 256, 256], of a fixed batch; export it with"),
    (_edit(_protocol(shift_div=4)), "they give 1 channels ahead and 1 back, where it moves the first 2 of 8"),
    (_edit(_metadata("[1]")), "its tsm.protocol is not a JSON object"),
    (_edit(_metadata("{")), "its tsm.protocol is not a JSON object"),
    (_edit(_metadata("{}")), "its protocol has segments = None"),
    (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "source.onnx"),
    (lambda path: path.write_text("not a model"), "not an ONNX model"),
    (lambda path: path.write_bytes(b""), "not an ONNX model"),
    (lambda path: path.unlink(), "source.onnx"),
    (_outside, "outside its folder"),
    (_missing, "my_weights.bin are missing"),
])
def test_what_is_not_tsm_is_refused_in_one_line(specimens, fails, tmp_path, damage, says):
    (tmp_path / "source.onnx").write_bytes(specimens["builtin"].read_bytes())
    damage(tmp_path / "source.onnx")
    assert says in fails("modify_onnx.py", "-m1", "source.onnx", "-m2", "new.onnx", cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != "source.onnx"] == []


def test_another_batch_size_of_a_modified_model_carries_its_proof(specimens, modified, works, tmp_path):
    """-m1 may be what the script wrote: the same file as from the exported model, without a second proof."""
    onnx.save(modified["builtin"][0], str(tmp_path / "one.onnx"))
    options = ("-bs", 4, "--target", "cpu")
    works("modify_onnx.py", "-m1", specimens["builtin"], "-m2", "exported.onnx", *options, cwd=tmp_path)
    printed = works("modify_onnx.py", "-m1", "one.onnx", "-m2", "carried.onnx", *options, cwd=tmp_path)
    assert "its proof is carried over" in printed and "recognised" not in printed
    assert onnx.load(str(tmp_path / "carried.onnx")) == onnx.load(str(tmp_path / "exported.onnx"))


@pytest.mark.parametrize("options", [
    ("--target", "cpu"), ("--target", "cpu", "--input_dtype", "uint8"), ("--fusion", "prob"), ("--target", "cpu", "--fusion", "prob")])
def test_a_modified_model_says_by_itself_what_it_was_made_with(works, tmp_path, options):
    """The README's command, without a flag, on what run_all.sh makes; and with the same flags once more."""
    onnx.save(exported_small(), str(tmp_path / "tsm_bs1.onnx"))
    works("modify_onnx.py", "-m1", "tsm_bs1.onnx", "-m2", "tsm_new_bs1.onnx", *options, cwd=tmp_path)
    works("modify_onnx.py", "-m1", "tsm_bs1.onnx", "-m2", "wanted.onnx", "-bs", 4, *options, cwd=tmp_path)
    for more in ((), options):
        works("modify_onnx.py", "-m1", "tsm_new_bs1.onnx", "-m2", "tsm_new_bs4.onnx", "-bs", 4, *more, cwd=tmp_path)
        assert onnx.load(str(tmp_path / "tsm_new_bs4.onnx")) == onnx.load(str(tmp_path / "wanted.onnx"))


def _relu_out(model):
    """The last Relu is gone: still a graph that the suite could have written, of another network."""
    node = _node(model, "layer4.2.relu")
    _bypass(model, node.output[0], node.input[0])
    model.graph.node.remove(node)


def _simplified(model):
    """By ONNX Runtime, which merges what it can and writes the rest down in its own way."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = os.path.join(folder, "simple.onnx")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        simple = onnx.load(options.optimized_model_filepath)
    assert len(simple.graph.node) < len(model.graph.node)
    model.graph.CopyFrom(simple.graph)


def _renamed(model):
    for node in model.graph.node:
        node.name = ""


def _other_weights(model):
    for tensor in model.graph.initializer:
        if tensor.name == "layer3.4.conv2.weight":
            tensor.CopyFrom(numpy_helper.from_array(1.001 * numpy_helper.to_array(tensor), tensor.name))


def _forget(key):
    def change(model):
        kept = {name: value for name, value in metadata(model).items() if name != key}
        del model.metadata_props[:]
        set_metadata(model, kept)
    return change


@pytest.mark.parametrize("change, options, says", [
    (_relu_out, (), "one.onnx: has no proof of the graphs"),
    (_simplified, (), "one.onnx: not as modify_onnx.py wrote it"),
    (_renamed, (), "one.onnx: not as modify_onnx.py wrote it"),
    (_forget("tsm.form"), (), "one.onnx: not as modify_onnx.py wrote it"),
    (_pads([0, -1, 0, 0, 0, 2, 0, 0]), (), "one.onnx: not as modify_onnx.py wrote it"),
    (_other_weights, (), "one.onnx: has no proof of the graphs"),
    (_forget("tsm.proof"), (), "one.onnx: has no proof of the graphs"),
    (lambda model: set_metadata(model, {"tsm.proof": "{"}), (), "one.onnx: has no proof of the graphs"),
    (lambda model: set_metadata(model, {"tsm.proof": "[[]]"}), (), "one.onnx: has no proof of the graphs"),
    (lambda model: None, ("--fusion", "prob"), "was made with --fusion score, not prob; leave out --fusion, or"),
    (lambda model: None, ("--target", "ascend"), "was made with --target cpu, not ascend; leave out --target, or"),
    (lambda model: None, ("--input_dtype", "uint8"), "was made with --input_dtype float32, not uint8; leave out --input_dtype"),
    (lambda model: set_metadata(model, {"tsm.target": "gpu"}), (), "one.onnx: not as modify_onnx.py wrote it (its target is 'gpu')"),
])
def test_a_modified_model_that_was_changed_is_refused(modified, fails, tmp_path, change, options, says):
    model = onnx.ModelProto()
    model.CopyFrom(modified["builtin"][0])
    change(model)
    onnx.save(model, str(tmp_path / "one.onnx"))
    line = fails("modify_onnx.py", "-m1", "one.onnx", "-m2", "new.onnx", *options, cwd=tmp_path)
    assert says in line and "pass the exported model" in line
    assert [path.name for path in tmp_path.iterdir()] == ["one.onnx"]


def test_what_the_exporter_knew_is_carried_over(specimens, works, tmp_path):
    model = onnx.load(str(specimens["builtin"]))
    facts = {"tsm.checkpoint": "a.pth", "tsm.checkpoint_sha256": "12" * 32, "tsm.labels": json.dumps(["a", "b"])}
    set_metadata(model, facts)
    onnx.save(model, str(tmp_path / "source.onnx"))
    works("modify_onnx.py", "-m1", "source.onnx", "-m2", "one.onnx", cwd=tmp_path)
    works("modify_onnx.py", "-m1", "one.onnx", "-m2", "four.onnx", "-bs", 4, "--form", "parts", cwd=tmp_path)
    works("modify_onnx.py", "-m1", "four.onnx", "-m2", "again.onnx", "-bs", 4, cwd=tmp_path)
    works("modify_onnx.py", "-m1", "four.onnx", "-m2", "back.onnx", "--form", "guide", cwd=tmp_path)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "four.onnx").read_bytes()
    assert (tmp_path / "back.onnx").read_bytes() == (tmp_path / "one.onnx").read_bytes()
    for name, batch in (("one", "1"), ("four", "4")):
        known = metadata(onnx.load(str(tmp_path / (name + ".onnx"))))
        assert facts.items() <= known.items() and known["tsm.source"] == "source.onnx" and known["tsm.batch"] == batch
        assert set(json.loads(known["tsm.proof"])) == {"file", "parts", "mask"}  # what an NPU may run


def test_names_of_the_classes_are_kept(modified, works, fails, tmp_path):
    onnx.save(modified["builtin"][0], str(tmp_path / "one.onnx"))
    names = ["name %d" % number for number in range(SSV2.classes)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    (tmp_path / "few.txt").write_text("\n".join(names[:3]))
    works("modify_onnx.py", "-m1", "one.onnx", "-m2", "new.onnx", "--target", "cpu", "--labels", "names.txt", cwd=tmp_path)
    assert json.loads(metadata(onnx.load(str(tmp_path / "new.onnx")))["tsm.labels"]) == names
    assert "few.txt: names 3 classes" in fails(
        "modify_onnx.py", "-m1", "one.onnx", "-m2", "newer.onnx", "--target", "cpu", "--labels", "few.txt", cwd=tmp_path)


def small_trunk(classes, stages=((8, 2), (16, 2)), width=8, bottleneck=True, every=1):
    """A random TSM of `stages` (inner channels, blocks), written by hand: ResNet's stem, bottlenecks or basic blocks, a head."""
    rng, nodes, weights = np.random.RandomState(11), [], {}

    def emit(op, inputs, **facts):
        nodes.append(helper.make_node(op, inputs, ["%s%d" % (op, len(nodes))], **facts))
        return nodes[-1].output[0]

    def conv(x, cin, cout, kernel, stride=1):
        name = "w%d" % len(weights)
        weights[name] = (rng.standard_normal((cout, cin, kernel, kernel)) * np.sqrt(1.5 / (cin * kernel ** 2))).astype(np.float32)
        weights[name + "b"] = rng.uniform(0.1, 0.3, cout).astype(np.float32)
        return emit("Conv", [x, name, name + "b"], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4,
                    dilations=[1, 1], group=1)

    x = emit("MaxPool", [emit("Relu", [conv("frames", 3, width, 7, 2)])], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    cin = width
    for stage, (inner, blocks) in enumerate(stages):
        for block in range(blocks):
            stride, cout = 2 if stage and not block else 1, inner * (4 if bottleneck else 1)
            moved = x if block % every else emit(SHIFT, [x])
            if bottleneck:
                out = emit("Relu", [conv(moved, cin, inner, 1)])
                out = conv(emit("Relu", [conv(out, inner, inner, 3, stride)]), inner, cout, 1)
            else:
                out = conv(emit("Relu", [conv(moved, cin, inner, 3, stride)]), inner, cout, 3)
            shortcut = conv(x, cin, cout, 1, stride) if stride != 1 or cin != cout else x
            x, cin = emit("Relu", [emit("Add", [out, shortcut])]), cout
    nodes[-1].output[0] = "features"
    fc = (rng.standard_normal((classes, cin)) * 0.2).astype(np.float32)
    return Trunk(nodes, weights, fc, rng.standard_normal(classes).astype(np.float32))


def by_definition(trunk, frames, protocol):
    """View scores [views, classes] of frames [views * segments, 3, size, size]: node by node in PyTorch, the shift in numpy."""
    values = {"frames": torch.from_numpy(frames)}
    for node in trunk.nodes:
        facts = {given.name: helper.get_attribute_value(given) for given in node.attribute}
        x = values[node.input[0]]
        if node.op_type == SHIFT:
            out = torch.from_numpy(shifted(x.numpy(), protocol.segments, x.shape[1] // protocol.shift_div))
        elif node.op_type == "Conv":
            weight, bias = (torch.from_numpy(trunk.weights[name]) for name in node.input[1:])
            out = torch.conv2d(x, weight, bias, facts["strides"][0], facts["pads"][0])
        elif node.op_type == "MaxPool":
            out = torch.max_pool2d(x, 3, 2, 1)
        else:
            out = torch.relu(x) if node.op_type == "Relu" else x + values[node.input[1]]
        values[node.output[0]] = out
    scores = values["features"].mean((2, 3)).numpy() @ trunk.fc_weight.T + trunk.fc_bias
    return scores.reshape(-1, protocol.segments, len(trunk.fc_bias)).mean(1)


@pytest.mark.parametrize("changes, bottleneck, dtype", [
    (dict(segments=4, classes=10, size=64), True, "float32"),
    (dict(segments=16, classes=10, size=64), True, "uint8"),
    (dict(segments=8, classes=32, size=224, shift_div=4), False, "float32"),  # as many classes as features would be ambiguous
    (dict(segments=4, classes=64, size=96, mean=(1.0, 2.0, 3.0), std=(40.0, 50.0, 60.0)), True, "uint8"),
    (dict(segments=3, classes=2, size=64, shift_div=3), True, "float32"),
])
def test_other_protocols(works, tmp_path, changes, bottleneck, dtype):
    """Surgery, proof and every form of networks of other segments, classes, sizes and blocks, against the definition."""
    protocol = SSV2._replace(**changes)
    trunk = small_trunk(protocol.classes, bottleneck=bottleneck)
    onnx.save(build(trunk, "cpu", protocol, softmax=True), str(tmp_path / "source.onnx"))
    rng, mean, std = np.random.RandomState(8), *(np.float32(fact)[:, None, None] for fact in (protocol.mean, protocol.std))
    videos = rng.randint(0, 256, (1,) + protocol.video_shape).astype(np.uint8) if dtype == "uint8" else (
        rng.standard_normal((1,) + protocol.video_shape).astype(np.float32))
    frames = ((videos[0] - mean) / std).astype(np.float32) if dtype == "uint8" else videos[0]
    expected = by_definition(trunk, frames, protocol)
    for fusion, target in (("score", "cpu"), ("prob", "ascend" if dtype == "float32" else "cpu")):
        printed = works("modify_onnx.py", "-m1", "source.onnx", "-m2", "new.onnx", "-bs", 1, "--target", target,
                        "--fusion", fusion, "--input_dtype", dtype, cwd=tmp_path)
        assert "recognised 4 shifts" in printed and "output [1, %d]" % protocol.classes in printed
        new = onnx.load(str(tmp_path / "new.onnx"))
        assert json.loads(metadata(new)["tsm.protocol"])["segments"] == protocol.segments
        actual = run_onnx(new, {"input": videos})
        assert np.abs(actual - fuse(expected, protocol.views, fusion)).max() <= 1e-5
        scores = [run_onnx(build(trunk_of(new), "view", protocol, dtype=dtype), {"input": view}).mean(0)
                  for view in videos.reshape((protocol.views,) + protocol.view_shape)]
        assert np.abs(np.stack(scores) - expected).max() <= 1e-5 * np.abs(expected).max()


def _identity_at_the_end(model):
    model.graph.node[-1].output[0] = "probabilities"
    model.graph.node.append(helper.make_node("Identity", ["probabilities"], ["output"]))


def _no_bias(model):
    """An optional input that is left out by an empty name."""
    _node(model, "layer1.0.conv1").input[2] = ""


def _stored_in_half(model):
    """Only stored: what is computed with is cast to float32."""
    for node in [node for node in model.graph.node if node.op_type == "Conv"]:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
        place = list(model.graph.node).index(node)
        model.graph.node.insert(place, helper.make_node("Cast", [tensor.name], [tensor.name + "/32"], to=onnx.TensorProto.FLOAT))
        node.input[1] = tensor.name + "/32"


@pytest.mark.parametrize("change", [_identity_at_the_end, _no_bias, _stored_in_half])
def test_other_ways_to_write_the_same(works, tmp_path, change):
    model = exported_small(softmax=True)
    change(model)
    onnx.save(model, str(tmp_path / "source.onnx"))
    works("modify_onnx.py", "-m1", "source.onnx", "-m2", "new.onnx", "--target", "cpu", cwd=tmp_path)


ONE_VIEW = SSV2._replace(classes=5, size=64, sampling="uniform", crops="centre")  # as of UCF101 in the Ascend guide, but smaller
SMALL = SSV2._replace(classes=5, size=64, segments=4)


def exported_small(protocol=SMALL, **facts):
    return build(small_trunk(5, stages=((8, 1),)), "cpu", protocol, **facts)


@pytest.mark.parametrize("protocol", [ONE_VIEW, ONE_VIEW._replace(sampling="twice", size=96), SSV2._replace(classes=5, size=64)])
def test_a_network_of_another_test_is_told_of_its_protocol(works, fails, tmp_path, protocol):
    """Other views or another size than Something-Something V2's, by an exporter that does not say so."""
    model = exported_small(protocol)
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "source.onnx"))
    line = fails("modify_onnx.py", "-m1", "source.onnx", "-m2", "new.onnx", cwd=tmp_path)
    shown = ", ".join(str(side) for side in (1,) + protocol.video_shape)
    assert "its input is [%s], where 6 views of 8 frames are" % shown in line and "pass its test by --protocol" in line
    (tmp_path / "protocol.json").write_text(json.dumps(protocol._asdict()))
    said = works("modify_onnx.py", "-m1", "source.onnx", "-m2", "new.onnx", "--protocol", "protocol.json", cwd=tmp_path)
    assert "says nothing of its protocol" not in said
    assert json.loads(metadata(onnx.load(str(tmp_path / "new.onnx")))["tsm.protocol"])["size"] == protocol.size
    (tmp_path / "protocol.json").write_text(json.dumps(protocol._replace(segments=4)._asdict()))
    line = fails("modify_onnx.py", "-m1", "source.onnx", "-m2", "no.onnx", "--protocol", "protocol.json", cwd=tmp_path)
    assert "of 4 frames are" in line and "export it with --shape" in line and "pass its test" not in line


def _average_clip(views, softmax):
    """The views of a video fused in the graph, as mmdeploy writes it."""
    def change(model):
        nodes = model.graph.node
        nodes[-1].output[0] = "scores"
        nodes.append(helper.make_node("Reshape", ["scores", "sizes"], ["of_a_video"]))
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1, views, 5], np.int64), "sizes"))
        if softmax:
            nodes.append(helper.make_node("Softmax", ["of_a_video"], ["probabilities"], axis=2))
        nodes.append(helper.make_node("ReduceMean", [nodes[-1].output[0]], ["output"], axes=[1], keepdims=0))
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    return change


@pytest.mark.parametrize("protocol, softmax", [(SSV2._replace(classes=5, size=64), True), (SSV2._replace(classes=5, size=64), False),
                                               (ONE_VIEW, True)])
def test_a_graph_that_fuses_its_views_is_told_what_to_pass(fails, tmp_path, protocol, softmax):
    model = exported_small(protocol)
    _average_clip(protocol.views, softmax)(model)
    onnx.checker.check_model(model)
    onnx.save(model, str(tmp_path / "source.onnx"))
    line = fails("modify_onnx.py", "-m1", "source.onnx", "-m2", "new.onnx", cwd=tmp_path)
    assert "fuses the views of a video itself, as mmdeploy's" in line and "export the checkpoint by pytorch2onnx.py" in line


def _half(model):
    """All weights and the input in float16."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
    for value in list(model.graph.input) + list(model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def _first_conv(model):
    return next(node for node in model.graph.node if node.op_type == "Conv")


def _cast_to(kind):
    def change(model):
        node = _first_conv(model)
        model.graph.node.insert(0, helper.make_node("Cast", [node.input[1]], ["halved"], to=kind))
        node.input[1] = "halved"
    return change


def _weights_as_constants(model):
    _half(model)
    for tensor in list(model.graph.initializer):
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
        model.graph.initializer.remove(tensor)


def _quantised(model):
    """The input of the first convolution through QuantizeLinear and DequantizeLinear, as int8 graphs of any tool have it."""
    node = _first_conv(model)
    model.graph.initializer.extend([numpy_helper.from_array(np.float32(0.1), "step"), numpy_helper.from_array(np.int8(0), "middle")])
    place = list(model.graph.node).index(node)
    model.graph.node.insert(place, helper.make_node("DequantizeLinear", ["q", "step", "middle"], ["dq"]))
    model.graph.node.insert(place, helper.make_node("QuantizeLinear", [node.input[0], "step", "middle"], ["q"], "quantise"))
    node.input[0] = "dq"


def _named(op, domain=""):
    def change(model):
        node = _first_conv(model)
        node.op_type, node.domain, node.name = op, domain, "this_one"
    return change


def _other_way_round(model):
    """As paddle.nn.functional.temporal_shift: the first channels back, the next ahead."""
    for node in model.graph.node:
        if node.op_type == "Pad":
            ahead = "ints_0_m1_0_0_0_1_0_0"
            node.input[1] = "ints_0_1_0_0_0_m1_0_0" if node.input[1] == ahead else ahead


def _of_constants(model):
    """The trunk reads an image that is in the file."""
    _node(model, "conv1").input[0] = "image"
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((24, 3, 64, 64), np.float32), "image"))


@pytest.mark.parametrize("change, says", [
    (_of_constants, "output depends on nothing"),
    (_half, "computes in float16 (Conv conv1); pass the graph as it was exported, in float32"),
    (_weights_as_constants, "computes in float16 (Conv conv1)"),
    (_cast_to(onnx.TensorProto.BFLOAT16), "computes in bfloat16 (Cast halved)"),
    (_quantised, "is quantised (QuantizeLinear quantise); pass the graph as it was exported, in float32"),
    (_named("QLinearConv"), "is quantised (QLinearConv this_one)"), (_named("ConvInteger"), "is quantised (ConvInteger this_one)"),
    (_named("DynamicQuantizeLinear"), "is quantised"), (_named("QGemm", "com.microsoft"), "is quantised"),
    (_named("FusedConv", "com.microsoft"), "was optimised by ONNX Runtime (FusedConv this_one); pass the graph as it was exported"),
    (_other_way_round, "they give one the other way round (the first channels back, the next ahead), as in PaddlePaddle's TSM, where"),
])
def test_what_became_of_an_export_is_named(fails, tmp_path, change, says):
    model = exported_small(SMALL._replace(shift_div=2))
    change(model)
    onnx.save(model, str(tmp_path / "source.onnx"))
    assert says in fails("modify_onnx.py", "-m1", "source.onnx", "-m2", "new.onnx", cwd=tmp_path)
    assert os.listdir(str(tmp_path)) == ["source.onnx"]


def test_a_deep_network_shifts_every_second_block(works, fails, tmp_path):
    """As ResNet-101 does: 23 blocks in the third stage. With all of them shifted it is another network."""
    for every in (1, 2):
        trunk = small_trunk(5, ((8, 2), (8, 1), (8, 23), (8, 1)), every=every)
        onnx.save(build(trunk, "cpu", SMALL), str(tmp_path / ("%d.onnx" % every)))
    printed = works("modify_onnx.py", "-m1", "2.onnx", "-m2", "new.onnx", "--target", "cpu", cwd=tmp_path)
    assert "recognised 15 shifts" in printed and "view by view" in printed
    assert "27 temporal shifts, where this network has 15" in fails(
        "modify_onnx.py", "-m1", "1.onnx", "-m2", "no.onnx", cwd=tmp_path)
    trunk = trunk_of(onnx.load(str(tmp_path / "new.onnx")))
    names = {layer.name for layer in layers(trunk.nodes, trunk.weights, SMALL.frame_shape)}
    assert {"layer3.22.conv1.shift", "layer3.21.conv1"} <= names and "layer3.21.conv1.shift" not in names


def test_a_network_without_a_protocol_has_the_classes_of_its_output(works, fails, tmp_path):
    """Ten classes from mmaction2's exporter, which writes no protocol; and the same with a protocol of other classes."""
    trunk, ten = small_trunk(10, stages=((8, 1),)), SSV2._replace(classes=10)
    model = build(trunk, "cpu", ten)
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "source.onnx"))
    assert "output [1, 10]" in works("modify_onnx.py", "-m1", "source.onnx", "-m2", "new.onnx", cwd=tmp_path)
    _protocol()(model)
    onnx.save(model, str(tmp_path / "source.onnx"))
    assert "its classifier has 10 classes, its protocol 174" in fails(
        "modify_onnx.py", "-m1", "source.onnx", "-m2", "newer.onnx", cwd=tmp_path)


def test_a_full_or_missing_folder_is_named_and_a_bad_temporary_one_not_blamed_on_the_model(specimens, works, fails, tmp_path):
    """No stage of the surgery writes to TMPDIR: the folded graph goes to the folder of -m2, in which the result has to have room anyway."""
    model = specimens["torchscript_torch2.13"]
    works("modify_onnx.py", "-m1", model, "-m2", "new.onnx", cwd=tmp_path, env={"TMPDIR": "/nonexistent"})
    assert "none/new.onnx: No such file" in fails("modify_onnx.py", "-m1", model, "-m2", "none/new.onnx", cwd=tmp_path)
    (tmp_path / "small").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path / "small")]
    if subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        line = fails("modify_onnx.py", "-m1", model, "-m2", "small/new.onnx", cwd=tmp_path)
        assert "small/new.onnx: No space left on device; free some space" in line and os.listdir(str(tmp_path / "small")) == []
    finally:
        subprocess.check_call(["umount", str(tmp_path / "small")])


def test_usage(fails, specimens, modified, tmp_path):
    assert "-m1" in fails("modify_onnx.py", "-m2", "new.onnx", cwd=tmp_path, status=2)
    model = specimens["builtin"]
    assert "aipp" in fails("modify_onnx.py", "-m1", model, "-m2", "b", "--target", "cpu", "--input_dtype", "aipp", cwd=tmp_path, status=2)
    for options in (("-m1", model, "--target", "cpu"), ("-m1", model.parent / "builtin_new.onnx")):  # asked for, or the model's own
        assert "--target ascend" in fails("modify_onnx.py", "-m2", "b", "--auto_optimizer", *options, cwd=tmp_path, status=2)
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("form", ["file", "one_view"])
def test_the_proof_fails_a_wrong_graph(modified, form):
    """A new graph with one weight changed is over the tolerance, whichever of the two it is."""
    trunk = trunk_of(modified["builtin"][0])
    graphs = {"file": build(trunk, "cpu", SSV2, 1, "score"), "one_view": build(trunk, "view", SSV2)}
    bias = trunk.fc_bias.copy()
    bias[7] += 0.5
    wrong = trunk._replace(fc_bias=bias)
    graphs[form] = build(wrong, "cpu", SSV2, 1, "score") if form == "file" else build(wrong, "view", SSV2)
    proved = proof.prove(build(trunk, "cpu", SSV2), "x", 1, graphs, SSV2, "score", "float32")
    assert {name: entry["largest_difference"] > proof.TOLERANCE for name, entry in proved.items()} == {
        name: name == form for name in graphs}


def test_the_digest_of_a_graph_is_that_of_what_protobuf_writes(modified):
    """So a proof that names it holds for the files of every version."""
    model = onnx.ModelProto()
    model.CopyFrom(modified["builtin"][0])
    model.graph.doc_string = "Größe" * 40
    model.graph.value_info.add(name="nothing")
    if hasattr(model.graph, "metadata_props"):  # onnx from 1.16 on; its number, 16, takes two bytes
        model.graph.metadata_props.add(key="a", value="b")
    assert graph_digest(model) == hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


def test_the_trunk_survives_being_written_and_read(modified):
    trunk = trunk_of(modified["builtin"][0])
    counts = collections.Counter(node.op_type for node in trunk.nodes)
    assert counts == {"Conv": 53, "Relu": 49, "Add": 16, "MaxPool": 1, SHIFT: 16}
    for form in ("ascend", "cpu"):
        again = trunk_of(build(trunk, form, SSV2, 1, "score"))
        assert [(node.op_type, list(node.output)) for node in again.nodes if node.op_type == SHIFT] == [
            (SHIFT, ["layer%d.%d.conv1.shift" % (stage, block)]) for stage, blocks in enumerate((3, 4, 6, 3), 1)
            for block in range(blocks)]

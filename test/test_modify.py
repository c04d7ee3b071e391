"""modify_onnx.py: every exporter's graph becomes one canonical graph; whatever is not TSM is refused in one line."""

import collections
import gzip
import json

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import helper, numpy_helper  # noqa: E402

import modify_onnx  # noqa: E402
from tsm.graph import SHIFT, build, trunk_of  # noqa: E402
from tsm.onnxfile import metadata  # noqa: E402

SPECIMENS = ("mmaction2_torch1.9", "torchscript_torch2.13", "dynamo_torch2.13")
ASCEND_OPS = {"Conv", "Relu", "MaxPool", "Add", "Reshape", "Slice", "Concat", "GlobalAveragePool", "Flatten", "Gemm",
              "ReduceMean", "Softmax"}


def fill(model):
    """Random weights for a specimen, of a size that keeps activations near 1; the same for every specimen."""
    rng = np.random.RandomState(0)
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and values.ndim:
            fan_in = max(1, int(np.prod(values.shape[1:])))
            filled = rng.standard_normal(values.shape) * np.sqrt(1.5 / fan_in) if values.ndim > 1 else rng.uniform(0.1, 0.3, values.shape)
            tensor.CopyFrom(numpy_helper.from_array(filled.astype(np.float32), tensor.name))
    return model


@pytest.fixture(scope="module")
def specimens(repo, tmp_path_factory):
    """{name: path} of the specimens with weights in, and of our own export of a network as thin."""
    import torch

    from tsm.network import TSM, trunk_from

    folder = tmp_path_factory.mktemp("specimens")
    paths = {name: folder / (name + ".onnx") for name in SPECIMENS + ("builtin",)}
    for name in SPECIMENS:
        raw = gzip.decompress((repo / "test/specimens" / (name + ".onnx.gz")).read_bytes())
        onnx.save(fill(onnx.load_model_from_string(raw)), str(paths[name]))
    torch.manual_seed(0)
    onnx.save(build(trunk_from(TSM(width=8).eval()), "cpu", softmax=True), str(paths["builtin"]))
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
    rules, proof = json.loads(known["tsm.rules"]), json.loads(known["tsm.proof"])
    assert (rules["input"], rules["shift"], rules["head"]) == (1, 16, 1)
    assert (rules["weights"] > 0, rules["fold"] > 100) == (weights, folded)
    assert proof["largest_difference"] <= 1e-5 and proof["top1_agreement"] == proof["videos"] == 2
    assert known["tsm.fusion"] == "score" and known["tsm.target"] == "cpu" and len(known["tsm.source_sha256"]) == 64
    assert "shift          16" in printed and "proof: largest difference" in printed


def run_onnx(model, feed):
    import onnxruntime

    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0]


def test_fusions_follow_their_definitions(specimens, works, tmp_path):
    """Both fusions and both targets, against the definitions applied to the exported model's own views."""
    videos = np.random.RandomState(5).standard_normal((1, 48, 3, 256, 256)).astype(np.float32)
    source = onnx.load(str(specimens["builtin"]))
    views = run_onnx(source, {"input": videos}).astype(np.float64)  # probabilities per view
    geometric = np.exp(np.log(views).mean(0))
    expected = {"prob": views.mean(0), "score": geometric / geometric.sum()}
    for fusion in expected:
        for target in ("cpu", "ascend"):
            works("modify_onnx.py", "-m1", specimens["builtin"], "-m2", "new.onnx", "--fusion", fusion, "--target", target, cwd=tmp_path)
            actual = run_onnx(onnx.load(str(tmp_path / "new.onnx")), {"input": videos})
            assert actual.shape == (1, 174) and np.abs(actual[0] - expected[fusion]).max() <= 1e-6


def test_uint8_input_equals_normalised_float32(modified, specimens, works, tmp_path):
    from TSM_preprocess import normalisation

    works("modify_onnx.py", "-m1", specimens["builtin"], "-m2", "u8.onnx", "--target", "cpu", "--input_dtype", "uint8", cwd=tmp_path)
    videos = np.random.RandomState(6).randint(0, 256, (1, 48, 3, 256, 256)).astype(np.uint8)
    table = normalisation()
    plain = np.stack([table[channel][videos[:, :, channel]] for channel in range(3)], 2)
    actual = run_onnx(onnx.load(str(tmp_path / "u8.onnx")), {"input": videos})
    assert np.abs(actual - run_onnx(modified["builtin"][0], {"input": plain})).max() <= 1e-6


@pytest.mark.parametrize("batch", [1, 4, 8, 16, 32])
def test_the_ascend_graph_keeps_to_the_guides_operators(modified, batch):
    trunk = trunk_of(modified["builtin"][0])
    model = build(trunk, "ascend", batch, "score")
    onnx.checker.check_model(model)
    assert {node.op_type for node in model.graph.node} <= ASCEND_OPS
    assert model.opset_import[0].version == 11 and not any(tensor.external_data for tensor in model.graph.initializer)
    shapes = onnx.shape_inference.infer_shapes(model)
    for value in list(shapes.graph.value_info) + list(shapes.graph.output):
        assert all(dim.dim_value > 0 for dim in value.type.tensor_type.shape.dim), value.name
    assert [dim.dim_value for dim in shapes.graph.output[0].type.tensor_type.shape.dim] == [batch, 174]
    full = sum(np.prod(tensor.dims) for tensor in model.graph.initializer if tensor.name.startswith("zeros")) * 8 * 4 + 96e6
    assert full < 2 ** 31  # protobuf's limit, at the full width


def test_a_batch_is_its_videos(modified, specimens, works, tmp_path):
    works("modify_onnx.py", "-m1", specimens["builtin"], "-m2", "new.onnx", "-bs", 2, cwd=tmp_path)
    videos = np.random.RandomState(7).standard_normal((2, 48, 3, 256, 256)).astype(np.float32)
    both = run_onnx(onnx.load(str(tmp_path / "new.onnx")), {"input": videos})
    single = [run_onnx(modified["builtin"][0], {"input": video[None]})[0] for video in videos]
    assert np.abs(both - np.stack(single)).max() <= 1e-6


def test_a_source_of_any_batch_gives_the_same_graph(modified, works, tmp_path):
    onnx.save(build(trunk_of(modified["builtin"][0]), "cpu", 3), str(tmp_path / "three.onnx"))
    works("modify_onnx.py", "-m1", "three.onnx", "-m2", "new.onnx", "-bs", 1, "--target", "cpu", cwd=tmp_path)
    assert structure(onnx.load(str(tmp_path / "new.onnx"))) == structure(modified["builtin"][0])


def _edit(change):
    """A damage that edits the exported model's nodes."""
    def damage(path):
        model = onnx.load(str(path))
        change(model)
        onnx.save(model, str(path))
    return damage


def _pads(values):
    def change(model):
        for tensor in model.graph.initializer:
            if tensor.name == "ints_0_m1_0_0_0_1_0_0":  # the shift ahead
                tensor.CopyFrom(numpy_helper.from_array(np.array(values, np.int64), tensor.name))
    return change


def _no_shift(model):
    """Take the first shift out: its convolution reads what the shift read."""
    source = next(node.input[0] for node in model.graph.node if node.name == "shift_0/views")
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == "shift_0":
                node.input[place] = source
    for node in [node for node in model.graph.node if node.name.startswith("shift_0")]:
        model.graph.node.remove(node)


def _split(model):
    for node in model.graph.node:
        if node.name == "shift_3/split":
            helper_split = helper.make_attribute("split", [8, 8, 16])
            for given in list(node.attribute):
                if given.name == "split":
                    node.attribute.remove(given)
            node.attribute.append(helper_split)


def _foreign_op(model):
    for node in model.graph.node:
        if node.name == "relu_7":
            node.op_type = "Sigmoid"


def _input_shape(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 24


def _dynamic(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"


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
    (_edit(_pads([0, 1, 0, 0, 0, -1, 0, 0])), "0 channels ahead and"),
    (_edit(_pads([0, -2, 0, 0, 0, 2, 0, 0])), "not TSM's shift"),
    (_edit(_no_shift), "15 temporal shifts, where this network has 16"),
    (_edit(_split), "8 channels ahead and 8 back"),
    (_edit(_foreign_op), "not TSM's shift"),
    (_edit(_input_shape), "48, 3, 256, 256"),
    (_edit(_dynamic), "48, 3, 256, 256"),
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


def test_a_modified_model_is_not_modified_again(specimens, modified, fails, tmp_path):
    onnx.save(modified["builtin"][0], str(tmp_path / "new.onnx"))
    assert "modified model already" in fails("modify_onnx.py", "-m1", "new.onnx", "-m2", "newer.onnx", cwd=tmp_path)


def test_usage(fails, tmp_path):
    assert "-m1" in fails("modify_onnx.py", "-m2", "new.onnx", cwd=tmp_path, status=2)
    assert "uint8" in fails("modify_onnx.py", "-m1", "a", "-m2", "b", "--input_dtype", "uint8", cwd=tmp_path, status=2)


def test_the_proof_fails_a_wrong_graph(modified, monkeypatch):
    """A new graph with one weight changed is over the tolerance."""
    exported = build(trunk_of(modified["builtin"][0]), "cpu")
    wrong = onnx.ModelProto()
    wrong.CopyFrom(modified["builtin"][0])
    for tensor in wrong.graph.initializer:
        if tensor.name == "fc.weight":
            values = numpy_helper.to_array(tensor).copy()
            values[7] += 0.5
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    proof = modify_onnx.prove(exported, "x", 1, wrong, "score", "float32")
    assert proof["largest_difference"] > modify_onnx.TOLERANCE


def test_deeper_networks_shift_every_second_block():
    def blocks(*counts):
        nodes, shapes = [], {}
        for stage, count in enumerate(counts):
            for block in range(count):
                name = "add_%d_%d" % (stage, block)
                nodes.append(helper.make_node("Add", ["a", "b"], [name]))
                shapes[name] = (256 << stage, 8, 8)
        return modify_onnx.expected_shifts(nodes, shapes)

    assert blocks(3, 4, 6, 3) == 16 and blocks(3, 4, 23, 3) == 2 + 2 + 12 + 2


def test_the_trunk_survives_being_written_and_read(modified):
    trunk = trunk_of(modified["builtin"][0])
    counts = collections.Counter(node.op_type for node in trunk.nodes)
    assert counts == {"Conv": 53, "Relu": 49, "Add": 16, "MaxPool": 1, SHIFT: 16}
    for form in ("ascend", "cpu"):
        again = trunk_of(build(trunk, form, 1, "score"))
        assert [(node.op_type, list(node.output)) for node in again.nodes if node.op_type == SHIFT] == [
            (SHIFT, ["shift_%d" % number]) for number in range(16)]

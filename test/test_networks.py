"""Every network of the family, thin: its weights, its graph for both targets, view by view, in uint8, int8; and what is refused."""

import json
import os
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from tsm.cli import UserError
from tsm.model import network as network_module
from tsm.model import proof, surgery
from tsm.model.graph import FLAT, RELU6, SHIFT, build, in_parts, layers, trunk_of
from tsm.model.network import RESNET50, RESNET101, TSM, Structure, load_network, network_of, scores, structure_of, trunk_from
from tsm.model.offline import one_frame, one_view, read_offline
from tsm.model.onnxfile import session, set_metadata, states_in
from tsm.protocol import MOVES, SHIFTS, SSV2, fuse

MOBILENET = Structure((1, 2, 3, 4, 3, 3, 1), (8, 16, 24, 32, 48, 56, 64, 80))  # MobileNetV2, thin
THIN = SSV2._replace(size=64)
NETWORKS = {  # name: (structure, width, protocol, its shifts)
    "ResNet-50 x 16, 10 classes": (RESNET50, 8, THIN._replace(segments=16, classes=10), 16),
    "ResNet-101": (RESNET101, 8, THIN, 18),
    "ResNet of 2-3-5-1 bottlenecks": (Structure((2, 3, 5, 1)), 8, THIN, 11),
    "ResNet-50, one view": (RESNET50, 8, THIN._replace(sampling="uniform", crops="centre", classes=27), 16),
    "ResNet-50, 100 views": (RESNET50, 8, THIN._replace(sampling="dense", crops="ten", segments=4, size=32), 16),
    "ResNet-50, all channels shifted": (
        RESNET50, 8, THIN._replace(sampling="uniform", crops="centre", classes=5, size=32, shift_div=2), 16),
    "MobileNetV2, all channels shifted": (
        MOBILENET, 16, THIN._replace(sampling="uniform", crops="centre", classes=5, size=32, shift_div=2), 10),
    "MobileNetV2": (MOBILENET, 16, THIN._replace(classes=400), 10),
    "MobileNetV2 x 4, 30 views": (MOBILENET, 16, THIN._replace(sampling="dense", segments=4, shift_div=4, size=32), 10),
}
ASCEND_OPS = {"Conv", "Relu", "Clip", "MaxPool", "Add", "Reshape", "Slice", "Concat", "GlobalAveragePool", "Flatten", "Gemm",
              "ReduceMean", "Softmax"}


def random_network(structure, width, protocol):
    """A network whose batch normalisation has statistics of its own and whose class scores spread."""
    torch.manual_seed(5)
    net = TSM(protocol, width, structure=structure).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.0)
            module.bias.data.normal_(0.1, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    spread = scores(net, random_videos(protocol)).std()
    net.cls_head.fc_cls.weight.data *= 2 / float(spread)
    return net


def random_videos(protocol, count=1, dtype="float32"):
    rng = np.random.RandomState(6)
    shape = (count,) + protocol.video_shape
    return rng.randint(0, 256, shape).astype(np.uint8) if dtype == "uint8" else rng.standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module", params=list(NETWORKS))
def network(request, tmp_path_factory):
    """(PyTorch's network, its protocol, its shifts, folder with its export source.onnx)."""
    structure, width, protocol, shifts = NETWORKS[request.param]
    net, folder = random_network(structure, width, protocol), tmp_path_factory.mktemp("network")
    onnx.save(build(trunk_from(net), "cpu", protocol, softmax=True), str(folder / "source.onnx"))
    return net, protocol, shifts, folder


def run_onnx(model, videos):
    return session(model, "a model", arena=False).run(None, {"input": videos})[0]


def test_its_weights_say_what_it_is(network):
    """Built again from its state dict alone; with another structure's weights it is refused, and named."""
    net, protocol, _, _ = network
    state = net.state_dict()
    structure, width = structure_of(state), len(state["backbone.conv1.conv.weight"])
    assert (structure, width) in [entry[:2] for entry in NETWORKS.values()]
    videos = random_videos(protocol)
    assert np.array_equal(scores(network_of(dict(state), "a.pth", protocol), videos), scores(net, videos))


def test_every_form_is_the_network(network, works):
    """Both targets, both fusions, the form of one view, uint8 and a batch of two, against PyTorch and the definition."""
    net, protocol, shifts, folder = network
    for dtype, target, fusion in (("float32", "ascend", "score"), ("uint8", "cpu", "prob")):
        printed = works("modify_onnx.py", "-m1", "source.onnx", "-m2", "new.onnx", "-bs", 2, "--target", target, "--fusion",
                        fusion, "--input_dtype", dtype, cwd=folder)
        assert "recognised %d shifts" % shifts in printed
        model, videos = onnx.load(str(folder / "new.onnx")), random_videos(protocol, 2, dtype)
        if target == "ascend":
            assert {node.op_type for node in model.graph.node} <= ASCEND_OPS and model.opset_import[0].version == 11
        mean, std = (np.float32(fact)[:, None, None] for fact in (protocol.mean, protocol.std))
        frames = ((videos - mean) / std).astype(np.float32) if dtype == "uint8" else videos
        views = scores(net, frames)
        expected = fuse(views, protocol.views, fusion)
        assert np.abs(run_onnx(model, videos) - expected).max() <= 1e-5 and expected.max() > 2 / protocol.classes
        one_view = session(build(trunk_of(model), "view", protocol, dtype=dtype), "one view")
        by_view = [one_view.run(None, {"input": view})[0].mean(0) for view in videos.reshape((-1,) + protocol.view_shape)]
        assert np.abs(np.stack(by_view) - views).max() <= 1e-5 * np.abs(views).max()


@pytest.mark.parametrize("form", FLAT)
def test_ascend_s_forms_in_four_dimensions_are_the_guide_s(form, network):
    """Of two videos; with no Reshape but the input's and the head's; and read back as the same network."""
    _, protocol, _, folder = network
    trunk, videos = trunk_of(onnx.load(str(folder / "source.onnx"))), random_videos(protocol, 2)
    for fusion, head, dtype in (("score", 0, "aipp"), ("prob", 2, "float32")):
        model, guide = build(trunk, form, protocol, 2, fusion, dtype=dtype), build(trunk, "ascend", protocol, 2, fusion)
        onnx.checker.check_model(model)
        ops = [node.op_type for node in model.graph.node]
        assert set(ops) <= ASCEND_OPS | ({"Mul"} if form == "ascend_mask" else set()) and ops.count("Reshape") == 1 + head
        expected = run_onnx(guide, videos)
        actual = run_onnx(model, videos.reshape([dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]))
        assert np.abs(actual - expected).max() <= 1e-6 and expected.max() > 2 / protocol.classes
        assert build(trunk_of(model), "ascend", protocol, 2, fusion).graph == guide.graph


GUIDES = (1, 4, 8, 16, 32)  # batches
AT_BATCHES = {  # name: (structure, width, protocol, batches)
    "ResNet-50": (RESNET50, 8, THIN, GUIDES), "ResNet-50, 16 segments": (RESNET50, 8, THIN._replace(segments=16), GUIDES),
    "ResNet-101": (RESNET101, 8, THIN, GUIDES), "MobileNetV2": (MOBILENET, 16, THIN, GUIDES),
    "ResNet-50, past1": (RESNET50, 8, THIN._replace(shift="past1"), GUIDES),
    "ResNet-50, past1-zero": (RESNET50, 8, THIN._replace(shift="past1-zero"), GUIDES),
    "MobileNetV2, past1-zero": (MOBILENET, 16, THIN._replace(shift="past1-zero"), GUIDES)}
if os.environ.get("TSM_FORMS") == "full":  # minutes, and up to 19 GB of memory
    AT_BATCHES.update({
        "ResNet-50, full size": (RESNET50, 64, SSV2, (1, 4)), "ResNet-101, full size": (RESNET101, 64, SSV2, (1, 4)),
        "ResNet-50, 16 segments, full size": (RESNET50, 64, SSV2._replace(segments=16), (1, 4)),
        "MobileNetV2, full size": (network_module.MOBILENETV2, 32, SSV2, (1, 4))})


@pytest.mark.all
@pytest.mark.parametrize("name", AT_BATCHES)
def test_ascend_s_forms_at_every_batch_of_the_guide(name):
    """Prints (pytest -s) the rows of the tables in docs/atlas.md: how far forms are from the guide's, and their nodes."""
    structure, width, protocol, batches = AT_BATCHES[name]
    trunk, forms = trunk_from(random_network(structure, width, protocol)), ("ascend",) + FLAT
    apart = dict.fromkeys(FLAT, 0.0)
    for batch in batches:
        videos = random_videos(protocol, batch)
        guide, *others = (run_onnx(build(trunk, form, protocol, batch, "score"), videos) for form in forms)
        assert guide.max() > 2 / protocol.classes
        apart = {form: max(apart[form], float(np.abs(other - guide).max())) for form, other in zip(FLAT, others)}
    counts = [Counter(node.op_type for node in build(trunk, form, protocol, 1, "score").graph.node) for form in forms]
    print("\n| %s | %s | %s |" % (name, ", ".join(map(str, batches)), " | ".join("%.1e" % apart[form] for form in FLAT)))
    print("| %s, nodes | %s |" % (name, " | ".join("%s %s" % (op, " / ".join(str(count[op]) for count in counts)) for op in sorted(
        set().union(*counts), key=lambda op: -counts[0][op]))))
    assert max(apart.values()) <= 1e-6 and all(count["Reshape"] == 2 for count in counts[1:])


def test_layers_are_called_as_in_the_checkpoint(network):
    net, protocol, _, folder = network
    trunk = trunk_of(onnx.load(str(folder / "source.onnx")))
    found = {layer.name for layer in layers(trunk.nodes, trunk.weights, protocol.frame_shape) if layer.node.op_type == "Conv"}
    wanted = {key[len("backbone.") : -len(".running_mean")].replace(".net", "").replace(".bn", "")
              for key in net.state_dict() if key.endswith("running_mean")}
    assert found == wanted
    if protocol.classes == 10:
        view = {node.name for node in build(trunk, "view", protocol).graph.node}
        assert {"layer2.0.conv1", "layer2.0.conv1/moved", "layer1.0.downsample/still", "fc"} <= view


ONE_VIEW = THIN._replace(sampling="uniform", crops="centre", classes=12, size=32)
OF_KINDS = {"ResNet-50": (RESNET50, 8, ONE_VIEW), "ResNet-101": (RESNET101, 8, ONE_VIEW), "MobileNetV2": (MOBILENET, 16, ONE_VIEW),
            "ResNet-50, all channels shifted": (RESNET50, 8, ONE_VIEW._replace(shift_div=2))}


@pytest.mark.parametrize("name, kind", [("ResNet-50", kind) for kind in MOVES] + [
    ("MobileNetV2", "past1-zero"), ("MobileNetV2", "bi-still"), ("ResNet-101", "bi-still"), ("ResNet-50, all channels shifted", "past2")])
def test_every_form_has_every_kind_of_shift(name, kind):
    """Against PyTorch; and no kind gives what another gives."""
    structure, width, protocol = OF_KINDS[name]
    protocol = protocol._replace(shift=kind)
    net = random_network(structure, width, protocol)
    trunk, videos = trunk_from(net), random_videos(protocol)
    expected = scores(net, videos)[0]
    for form in ("cpu", "ascend", "view", "clip") + FLAT:
        model = build(trunk, form, protocol)
        onnx.checker.check_model(model)
        actual = run_onnx(model, videos[0] if form in ("view", "clip") else videos).mean(0)
        assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()
    other = run_onnx(build(trunk, "clip", protocol._replace(shift="past1" if kind != "past1" else "bi")), videos[0]).mean(0)
    assert np.abs(other - expected).max() > 1e-2


def frame_by_frame(model, frames):
    """The scores of frames [n, 3, H, W], one after another from zero states, [n, classes]."""
    opened, states, found = session(model, "online"), states_in(model, "online"), []
    held = {state.input: np.zeros(state.shape, np.float32) for state in states}
    for frame in frames:
        answer, *new = opened.run(["output"] + [state.output for state in states], dict(held, input=frame[None]))
        held = dict(zip(held, new))
        found.append(answer[0])
    return np.stack(found)


@pytest.mark.parametrize("name, kind, dtype", [("ResNet-50", kind, "float32") for kind in SHIFTS[1:]] + [
    ("ResNet-50", "past1", "uint8"), ("ResNet-101", "bi-still", "float32"), ("MobileNetV2", "past1", "float32"),
    ("ResNet-50, all channels shifted", "past2", "float32")])
def test_frame_by_frame_is_the_clip(name, kind, dtype):
    """40 frames: the file's form and the one that engines run, against the clip graph in PyTorch and the same forms' clips, to the bit
    or nearly. The file has 4-D operators that every runtime has, and is read back."""
    structure, width, protocol = OF_KINDS[name]
    protocol = protocol._replace(shift=kind, segments=40)
    net = random_network(structure, width, protocol)
    trunk, videos = trunk_from(net), random_videos(protocol, dtype=dtype)
    mean, std = (np.float32(fact)[:, None, None] for fact in (protocol.mean, protocol.std))
    expected = scores(net, ((videos - mean) / std).astype(np.float32) if dtype == "uint8" else videos)[0]
    for form, clip in (("online", "clip"), ("online_parts", "view" if in_parts(trunk, protocol) else "clip")):
        model = build(trunk, form, protocol, dtype=dtype)
        onnx.checker.check_model(model)
        found, whole = frame_by_frame(model, videos[0]), run_onnx(build(trunk, clip, protocol, dtype=dtype), videos[0])
        assert np.abs(found - whole).max() <= 1e-6 * np.abs(whole).max()
        assert np.abs(found.mean(0) - expected).max() <= 1e-5 * np.abs(expected).max()
    model = build(trunk, "online", protocol, dtype=dtype)
    assert {node.op_type for node in model.graph.node} <= {
        "Cast", "Sub", "Mul", "Conv", "Relu", "Clip", "MaxPool", "Split", "Concat", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
    assert build(trunk_of(model), "online", protocol, dtype=dtype) == model and len(states_in(model, "")) == len(
        [node for node in trunk.nodes if node.op_type == SHIFT])


MIT_BLOCKS = [(1, 16, 1), (6, 24, 2), (6, 24, 1), (6, 32, 2), (6, 32, 1), (6, 32, 1), (6, 64, 2), (6, 64, 1), (6, 64, 1),
              (6, 64, 1), (6, 96, 1), (6, 96, 1), (6, 96, 1), (6, 160, 2), (6, 160, 1), (6, 160, 1), (6, 320, 1)]  # expansion,
# channels, stride


def mits_weights(classes=27):
    """Random weights by the names of mobilenetv2_jester_online.pth.tar, without num_batches_tracked."""
    random, state, channels = torch.Generator().manual_seed(4), {}, 32

    def layer(conv, bn, cout, cin, kernel):
        state[conv + ".weight"] = torch.randn((cout, cin, kernel, kernel), generator=random) * (2 / (cin * kernel ** 2)) ** 0.5
        for name, low, high in (("weight", 0.5, 1.0), ("bias", 0.0, 0.2), ("running_mean", -0.1, 0.1), ("running_var", 0.5, 1.5)):
            state["%s.%s" % (bn, name)] = torch.rand((cout,), generator=random) * (high - low) + low

    layer("features.0.0", "features.0.1", 32, 3, 3)
    for number, (times, cout, _) in enumerate(MIT_BLOCKS, 1):
        inner, at = channels * times, "features.%d.conv.%%d" % number
        if times > 1:
            layer(at % 0, at % 1, inner, channels, 1)
        places = (3, 4, 6, 7) if times > 1 else (0, 1, 3, 4)
        layer(at % places[0], at % places[1], inner, 1, 3)
        layer(at % places[2], at % places[3], cout, inner, 1)
        channels = cout
    layer("features.18.0", "features.18.1", 1280, 320, 1)
    state["classifier.weight"] = torch.randn((classes, 1280), generator=random)
    state["classifier.bias"] = torch.randn((classes,), generator=random)
    return state


def mits_step(state, x, buffers):
    """(scores, new buffers) of a frame [1, 3, 224, 224] as MIT's online_demo/mobilenet_v2_tsm.py computes it, written anew."""
    from torch.nn.functional import batch_norm, conv2d, relu6

    def layer(x, conv, bn, stride=1, groups=1):
        weight, of = state[conv + ".weight"], [state["%s.%s" % (bn, name)] for name in ("running_mean", "running_var", "weight", "bias")]
        return batch_norm(conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups), *of)

    x, new = relu6(layer(x, "features.0.0", "features.0.1", 2)), []
    for number, (times, cout, stride) in enumerate(MIT_BLOCKS, 1):
        at, y, residual = "features.%d.conv.%%d" % number, x, stride == 1 and x.shape[1] == cout
        if times > 1 and residual:
            fold = x.shape[1] // 8
            y = torch.cat((buffers[len(new)], x[:, fold:]), 1)
            new.append(x[:, :fold])
        if times > 1:
            y = relu6(layer(y, at % 0, at % 1))
        places = (3, 4, 6, 7) if times > 1 else (0, 1, 3, 4)
        y = relu6(layer(y, at % places[0], at % places[1], stride, y.shape[1]))
        y = layer(y, at % places[2], at % places[3])
        x = x + y if residual else y
    x = relu6(layer(x, "features.18.0", "features.18.1")).mean((2, 3))
    return x @ state["classifier.weight"].T + state["classifier.bias"], new


def test_mits_online_file_is_its_own_demo_frame_by_frame(tmp_path):
    """MobileNetV2 at its own size, 14 frames, four more than it remembers."""
    torch.save(mits_weights(), str(tmp_path / "mobilenetv2_jester_online.pth.tar"))
    net, found = load_network(str(tmp_path / "mobilenetv2_jester_online.pth.tar"))
    assert found.protocol == SSV2._replace(classes=27, sampling="uniform", crops="centre", size=224, shift="past1")
    assert found.network == "TSM MobileNetV2" and found.origins["shift"] == "MIT's online demo" and "by the alphabet" in found.notes[0]
    model = build(trunk_from(net), "online", found.protocol)
    sides = [(3, 56)] + [(4, 28)] * 2 + [(8, 14)] * 3 + [(12, 14)] * 2 + [(20, 7)] * 2  # MIT's i1 to i10
    assert [state.shape for state in states_in(model, "")] == [(1, channels, side, side) for channels, side in sides]
    frames, buffers, expected = random_videos(found.protocol._replace(segments=14))[0], [], []
    for frame in torch.from_numpy(frames):
        with torch.no_grad():
            buffers = buffers or [torch.zeros(1, channels, side, side) for channels, side in sides]
            answer, buffers = mits_step(mits_weights(), frame[None], buffers)
        expected.append(answer[0].numpy())
    assert np.abs(frame_by_frame(model, frames) - np.stack(expected)).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.all
def test_mits_online_file_by_the_scripts(works, tmp_path):
    """From the file to an online model of its own size, and its int8, the class names in the order of the alphabet said."""
    torch.save(mits_weights(), str(tmp_path / "mobilenetv2_jester_online.pth.tar"))
    said = works("TSM_checkpoint.py", "mobilenetv2_jester_online.pth.tar", cwd=tmp_path)
    assert {"shift: past1 (MIT's online demo)", "classes: 27 (its weights)", "shape: 1 8 3 224 224"} <= set(said.splitlines())
    assert "by the alphabet" in said
    works("pytorch2onnx.py", "mobilenetv2_jester_online.pth.tar", "--output-file", "a.onnx", cwd=tmp_path)
    said = works("modify_onnx.py", "-m1", "a.onnx", "-m2", "online.onnx", "--target", "online", cwd=tmp_path)
    assert "10 shifts" in said and "100 frames one by one" in said and "of a probability from the exported view" in said
    pytest.importorskip("nncf")
    np.random.RandomState(0).standard_normal((8, 3, 224, 224)).astype(np.float32).tofile(str(tmp_path / "0.bin"))
    said = works("TSM_quantise.py", "--model", "online.onnx", "--input", "0.bin", cwd=tmp_path)
    assert "frame by frame its scores are" in said
    assert ", frame by frame, fused by score" in works(
        "TSM_infer.py", "-m", "online.onnx", "-i", "0.bin", "--precision", "int8", cwd=tmp_path)


def test_an_image_network_of_the_same_names_is_told_from_mits(tmp_path):
    """tonylins' MobileNetV2 of ImageNet has 1000 classes; a name and a flag say what weights do not."""
    for name, classes in (("mobilenet_v2.pth.tar", 27), ("mobilenetv2_jester_online.pth", 1000)):
        torch.save(mits_weights(classes), str(tmp_path / name))
        with pytest.raises(UserError, match="could be TSM's online file or an image network, .*; pass --shift past1 if it is TSM's"):
            load_network(str(tmp_path / name))
        assert load_network(str(tmp_path / name), shift="past1")[1].protocol.classes == classes


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    """(folder with past1.onnx, bi.onnx and mobile.onnx, exported with their protocol, the first one's network)."""
    folder, nets = tmp_path_factory.mktemp("causal"), {}
    for name, of, kind in (("past1", "ResNet-50", "past1"), ("bi", "ResNet-50", "bi"), ("mobile", "MobileNetV2", "past1")):
        structure, width, protocol = OF_KINDS[of]
        protocol = protocol._replace(shift=kind)
        nets[name] = random_network(structure, width, protocol)
        onnx.save(build(trunk_from(nets[name]), "cpu", protocol, softmax=True), str(folder / (name + ".onnx")))
    return folder, nets["past1"]


@pytest.mark.parametrize("source, options, exported", [
    ("past1", (), True), ("bi", ("--shift", "bi-still"), False),
    pytest.param("mobile", ("--input_dtype", "uint8"), True, marks=pytest.mark.all)])
def test_an_online_model_is_made_and_proved(causal, works, tmp_path, source, options, exported):
    (tmp_path / "names").write_text("".join("gesture %d\n" % number for number in range(12)))
    made = ("modify_onnx.py", "-m1", causal[0] / (source + ".onnx"), "-m2", "online.onnx", "--target", "online", "--labels", "names")
    said = works(*made, *options, cwd=tmp_path)
    assert "(--target online)" in said and "100 frames one by one" in said
    assert ("of a probability from the exported view" in said) == exported
    assert ("bi-directional weights run causally (bi-still): not the exported network" in said) == (not exported)
    model = read_offline(str(tmp_path / "online.onnx"))
    proved = json.loads(model.metadata["tsm.proof"])
    assert set(proved) == {"file", "one_frame"} and proved["file"]["frames"] == 100 and proved["file"]["without_states"] > 0.01
    assert all(entry["largest_difference"] <= 1e-5 for entry in proved.values()) and ("exported_difference" in proved["file"]) == exported
    kind = "past1" if exported else "bi-still"
    assert (model.target, model.fusion, model.tested_by.shift) == ("online", None, kind)
    assert len(model.states) == (10 if source == "mobile" else 16)
    assert json.loads(model.metadata["tsm.labels"])[11] == "gesture 11"
    assert model.metadata.get("tsm.approximates") == (None if exported else "bi")
    assert one_frame(model).graph.output == model.proto.graph.output
    with pytest.raises(UserError, match="online.onnx: is an online model; TSM_predict.py and TSM_stream.py run it"):
        one_view(model)
    said = works("modify_onnx.py", "-m1", "online.onnx", "-m2", "again.onnx", cwd=tmp_path)
    assert "its proof is carried over" in said and (tmp_path / "again.onnx").read_bytes() == (tmp_path / "online.onnx").read_bytes()


def _protocol_of(kind):
    def change(model):
        set_metadata(model, {"tsm.protocol": json.dumps(ONE_VIEW._replace(shift=kind)._asdict())})
    return change


def _two_kinds(model):
    """What the last shift takes from the next frame in the others is from the previous one, too."""
    next(node for node in model.graph.node if node.name == "layer4.2.conv1.shift/ahead").input[1] = "ints_0_1_0_0_0_m1_0_0"


@pytest.mark.parametrize("source, change, options, status, says", [
    ("bi", None, (), 1, "bi.onnx: its shift looks one frame ahead (bi), which no frame by frame graph can do; train with --shift past1"),
    ("past1", None, ("--shift", "bi-still"), 1, "past1.onnx: its shift is past1, so it runs frame by frame as it is; leave out --shift"),
    ("past1", None, ("--fusion", "prob"), 2, "takes one frame, so it has no batch and fuses no views; leave out -bs and --fusion"),
    ("past1", None, ("-bs", 2), 2, "leave out -bs and --fusion"), ("past1", None, ("--auto_optimizer",), 2, "for --target ascend"),
    ("past1", None, ("--target", "cpu", "--shift", "bi-zero"), 2, "--shift: for --target online"),
    ("past1", _protocol_of("bi"), (), 1, "its shift is past1 by what its nodes compute, bi by its protocol; make that with TSM_ch"),
    ("bi", _two_kinds, (), 1, "its shifts are of several kinds (bi before layer1.0.conv1, past2 before layer4.2.conv1); TSM has one"),
])
def test_what_cannot_be_an_online_model_is_one_line(causal, fails, tmp_path, source, change, options, status, says):
    model = onnx.load(str(causal[0] / (source + ".onnx")))
    (change or (lambda model: None))(model)
    onnx.save(model, str(tmp_path / (source + ".onnx")))
    target = () if "--target" in options else ("--target", "online")
    assert says in fails("modify_onnx.py", "-m1", source + ".onnx", "-m2", "x.onnx", *target, *options, cwd=tmp_path, status=status)
    assert [path.name for path in tmp_path.iterdir()] == [source + ".onnx"]


def _swapped(model):
    """Two states of one shape are given to each other's shifts."""
    for node in model.graph.node:
        if node.op_type == "Concat":
            node.input[0] = {"state_01_in": "state_02_in", "state_02_in": "state_01_in"}.get(node.input[0], node.input[0])


def _ignored(model):
    """Every shift is given zeros."""
    shapes = {state.input: state.shape for state in states_in(model, "")}
    for node in model.graph.node:
        if node.op_type == "Concat" and node.input[0] in shapes:
            model.graph.initializer.append(numpy_helper.from_array(np.zeros(shapes[node.input[0]], np.float32), node.name + "/zeros"))
            node.input[0] = node.name + "/zeros"


def _one_ignored(model):
    node = next(node for node in model.graph.node if node.name == "layer3.2.conv1.shift")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(states_in(model, "")[9].shape, np.float32), "zeros"))
    node.input[0] = "zeros"


def _residual_shifted(model):
    """A block's residual reads what was shifted."""
    node = next(node for node in model.graph.node if node.name == "layer2.1.add")
    node.input[1] = "layer2.1.conv1.shift"


def _other_end(model):
    """The last channels move, not the first."""
    for node in model.graph.node:
        if node.op_type == "Split":
            for given in node.attribute:
                if given.name == "split":
                    given.ints[:] = list(given.ints)[::-1]
            node.output[:] = list(node.output)[::-1]
        elif node.op_type == "Concat":
            node.input[:] = list(node.input)[::-1]


def _written_before_it_is_read(model):
    """A shift is given this frame's values in the place of the frame before's."""
    node = next(node for node in model.graph.node if node.name == "layer3.2.conv1.shift")
    node.input[0] = states_in(model, "")[9].output


@pytest.mark.parametrize("wrong", [
    None, _swapped, _ignored, _one_ignored, _residual_shifted, _other_end, _written_before_it_is_read])
def test_the_online_proof_fails_a_wrong_graph(causal, monkeypatch, wrong):
    """Every way in which such a graph has been broken before; and the right one, which the clip graph meets on stretches of 40 frames."""
    monkeypatch.setattr(proof, "MOST_PIXELS", 2 * 40 * ONE_VIEW.size ** 2)
    trunk, protocol = trunk_from(causal[1]), ONE_VIEW._replace(shift="past1")
    exported, model = build(trunk, "cpu", protocol), build(trunk, "online", protocol)
    if wrong is None:
        proved = proof.prove_online(exported, "a.onnx", 1, {"file": model}, trunk, protocol, "float32", True)["file"]
        assert proved["largest_difference"] <= 1e-6 and proved["exported_difference"] <= 1e-6 and proved["frames"] == 100
        return
    wrong(model)
    onnx.checker.check_model(model)
    try:
        proved = proof.prove_online(exported, "a.onnx", 1, {"file": model}, trunk, protocol, "float32", True)["file"]
        assert proved["largest_difference"] > 1e3 * proof.TOLERANCE and proved["exported_difference"] > proof.TOLERANCE
    except UserError as error:
        assert wrong is _ignored and "do not depend on the frames before" in str(error)


def _as_forks_write(x, segments, fold, shift):
    """A temporal shift as MIT's code and its forks have it: zeros, of which slices are written."""
    views = x.view((-1, segments) + x.shape[1:])
    out = torch.zeros_like(views)
    for place, way in enumerate(shift + "="):
        channels = slice(place * fold, (place + 1) * fold if place < 2 else None)
        if way == "+":
            out[:, :-1, channels] = views[:, 1:, channels]
        elif way == "-":
            out[:, 1:, channels] = views[:, :-1, channels]
        elif way == "=":
            out[:, :, channels] = views[:, :, channels]
    return out.view(x.shape)


@pytest.mark.parametrize("kind, ways", [("past1-zero", "-0"), ("next1", "+=")] + [
    pytest.param(*more, marks=pytest.mark.all) for more in (
        ("bi", "+-"), ("past1", "-="), ("past2", "--"), ("bi-still", "=-"), ("bi-zero", "0-"), ("next2", "++"), ("reversed", "-+"))])
def test_the_surgery_names_the_kind_that_torch_exported(tmp_path, monkeypatch, kind, ways):
    """Whatever the default says; of what is no kind to test a network with, what it is."""
    net = random_network(Structure((1, 1, 1, 1)), 8, ONE_VIEW)
    monkeypatch.setattr(network_module, "temporal_shift", lambda x, segments, fold, shift: _as_forks_write(x, segments, fold, ways))
    torch.onnx.export(net, torch.zeros((1,) + ONE_VIEW.video_shape), str(tmp_path / "a.onnx"), opset_version=11, dynamo=False)
    folded, _ = surgery.fold_constants(onnx.load(str(tmp_path / "a.onnx")), "a.onnx", str(tmp_path / "scratch"))
    source = surgery.read_source(folded, "a.onnx", ONE_VIEW)
    if kind in SHIFTS:
        assert surgery.lift(source, ONE_VIEW)[1:] == ({"input": 1, "shift": 4, "head": 1}, kind)
    else:
        with pytest.raises(UserError, match="the other way round" if kind == "reversed" else "from the future alone \\(%s\\)" % kind):
            surgery.lift(source, ONE_VIEW)


@pytest.fixture(scope="module")
def mobile():
    return random_network(MOBILENET, 16, ONE_VIEW)


def small(net):
    """A network of one view of small frames as a graph, for editing."""
    return build(trunk_from(net), "ascend", ONE_VIEW)


def _old_clip(model):
    """As exporters wrote it before opset 11: the bounds are attributes."""
    model.opset_import[0].version = 10
    for node in model.graph.node:
        if node.op_type == "Clip":
            del node.input[1:]
            node.attribute.extend([helper.make_attribute("min", 0.0), helper.make_attribute("max", 6.0)])


def _pair(first, second, turned=False):
    """Each Clip as two nodes: (operator, constant or None)."""
    def change(model):
        nodes = []
        for node in model.graph.node:
            if node.op_type != "Clip":
                nodes.append(node)
                continue
            value, between = node.input[0], node.output[0] + "_half"
            for (op, bound), out in ((first, between), (second, node.output[0])):
                inputs = [value] + ([bound] if bound else [])
                nodes.append(helper.make_node(op, inputs[::-1] if turned else inputs, [out]))
                value = out
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return change


def _half_open(model):
    """A Clip without its lower bound, after a Relu."""
    _pair(("Relu", None), ("Clip", None))(model)
    for node in model.graph.node:
        if node.op_type == "Clip":
            node.input.extend(["", "six"])


@pytest.mark.parametrize("change", [
    _old_clip, _half_open, _pair(("Max", "zero"), ("Min", "six")), _pair(("Min", "six"), ("Max", "zero"), True),
    _pair(("Relu", None), ("Min", "six")), _pair(("Min", "six"), ("Relu", None))])
def test_relu6_however_it_is_written(mobile, tmp_path, change):
    """The same graph comes out, to the bit, with its ten shifts."""
    model = small(mobile)
    change(model)
    folded, _ = surgery.fold_constants(model, "a.onnx", str(tmp_path / "scratch"))
    trunk, rules, _ = surgery.lift(surgery.read_source(folded, "a.onnx", ONE_VIEW), ONE_VIEW)
    assert build(trunk, "ascend", ONE_VIEW).graph == small(mobile).graph and rules["shift"] == 10
    assert [node.op_type for node in trunk.nodes].count(RELU6) == 1 + (2 * sum(MOBILENET.blocks) - 1) + 1


def _clip_at(bound):
    def change(model):
        next(node for node in model.graph.node if node.op_type == "Clip").input[2] = "bound"
        model.graph.initializer.append(numpy_helper.from_array(np.float32(bound), "bound"))
    return change


def _clip_of_a_computed_bound(model):
    """The bound depends on the input."""
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["input"], ["bound"], keepdims=0))
    next(node for node in model.graph.node if node.op_type == "Clip").input[2] = "bound"


def _attention(model):
    """A block's output multiplied by itself, as non-local blocks do."""
    end = next(node for node in model.graph.node if node.name == "layer3.1.add")
    model.graph.node.insert(list(model.graph.node).index(end) + 1, helper.make_node("MatMul", ["before", "before"], ["layer3.1.add"]))
    end.output[0] = "before"


def _pooled(model):
    """The greatest of three frames, as temporal pooling has it."""
    end = next(node for node in model.graph.node if node.name == "layer3.1.add")
    place = list(model.graph.node).index(end) + 1
    pooling = {"kernel_shape": [3, 1, 1], "pads": [1, 0, 0] * 2, "strides": [1, 1, 1]}
    for op, x, out, facts in (("Squeeze", "greatest", "layer3.1.add", {"axes": [0]}), ("MaxPool", "five", "greatest", pooling),
                              ("Unsqueeze", "before", "five", {"axes": [0]})):
        model.graph.node.insert(place, helper.make_node(op, [x], [out], **facts))
    end.output[0] = "before"


def _without(*shifts):
    """The network without some of its shifts, by the layers before which they stand."""
    def change(trunk):
        for layer in shifts:
            gone = next(node for node in trunk.nodes if node.op_type == SHIFT and node.output[0] == layer + ".shift")
            for node in trunk.nodes:
                node.input[:] = [gone.input[0] if name == gone.output[0] else name for name in node.input]
            trunk.nodes.remove(gone)
    return change


def _moved(trunk):
    """The last block's shift stands before a block that has none."""
    _without("layer6.2.conv.0")(trunk)
    conv = next(node for node in trunk.nodes if node.output[0] == "layer6.0.conv.0")
    trunk.nodes.insert(trunk.nodes.index(conv), helper.make_node(SHIFT, [conv.input[0]], ["moved"]))
    conv.input[0] = "moved"


def _of_trunk(change):
    def of_model(model):
        trunk = trunk_of(model)
        change(trunk)
        model.CopyFrom(build(trunk, "cpu", ONE_VIEW))
    return of_model


@pytest.mark.parametrize("change, says", [
    (_clip_at(3), "conv1.relu6 keeps values between 0 and 3, where TSM keeps those above 0 or between 0 and 6"),
    (_clip_of_a_computed_bound, "conv1.relu6"), (_attention, "has non-local blocks"), (_pooled, "has temporal pooling"),
    (_of_trunk(_without("layer2.1.conv.0")), "9 temporal shifts, where this network has 10"),
    (_of_trunk(_without(*["layer%d.%d.conv.0" % (stage, block) for stage, blocks in enumerate(MOBILENET.blocks, 1)
                          for block in range(1, blocks)])), "0 temporal shifts, where this network has 10"),
    (_of_trunk(_moved), "10 temporal shifts, where this network has 10, and they differ first before layer6.0.conv.0; is it TSM"),
])
def test_graphs_of_other_networks_are_refused_by_name(mobile, fails, tmp_path, change, says):
    model = small(mobile)
    change(model)
    onnx.save(model, str(tmp_path / "source.onnx"))
    line = fails("modify_onnx.py", "-m1", "source.onnx", "-m2", "new.onnx", cwd=tmp_path)
    assert says in line or says == "conv1.relu6" and "source.onnx: " in line
    assert [path.name for path in tmp_path.iterdir()] == ["source.onnx"]


def _renamed(old, new):
    return lambda state: {key.replace(old, new): value for key, value in state.items()}


def _changed(key, value):
    return lambda state: dict(state, **{key: value})


def _gone(*parts):
    return lambda state: {key: value for key, value in state.items() if not key.startswith(parts)}


RESNET, INVERTED = (RESNET101, 8), (MOBILENET, 16)


@pytest.mark.parametrize("kind, change, says", [
    (RESNET, _gone("backbone.layer3.22."), "is TSM ResNet of 3-4-22-3 bottlenecks"),  # and so shifts every block
    (RESNET, _renamed("layer1.1.conv1.conv.", "layer1.1.conv1.conv.net."), "layer1.1.conv1.conv.net.weight is float32"),
    (RESNET, _renamed(".conv.net.", ".conv."), "is TSN ResNet-101, but its weights are not those of TSM on a ResNet of bottlenecks"),
    (RESNET, _renamed("conv3", "conv4"), "conv3.conv.weight is missing"),
    (INVERTED, _gone("backbone.layer4."), "backbone.layer4.0.conv.0.conv.weight is missing"),
    (INVERTED, _renamed(".net.", "."), "is MobileNetV2, but its weights are not those of TSM on MobileNetV2"),
    (INVERTED, _gone("backbone.conv2."), "backbone.conv2.conv.weight is missing"),
    (INVERTED, _changed("backbone.conv2.conv.weight", torch.tensor(1.0)), "backbone.conv2.conv.weight is float32 []"),
    (INVERTED, _changed("backbone.conv2.conv.weight", torch.zeros(0, 64, 1, 1)), "backbone.conv2.conv.weight is float32 [0, 64"),
    (INVERTED, _changed("backbone.conv1.conv.weight", torch.zeros(0, 3, 3, 3)), "backbone.conv1.conv.weight is float32 [0"),
    ((RESNET50, 8), _changed("backbone.conv1.conv.weight", torch.zeros(0, 3, 7, 7)), "backbone.conv1.conv.weight is float32 [0"),
    (INVERTED, _changed("backbone.layer2.0.conv.2.conv.weight", torch.zeros(9, 48, 1, 1)), "conv.2.bn.running_mean is float32 [16] here"),
    (INVERTED, _changed("backbone.conv1.bn.bias", torch.full((16,), float("nan"))), "conv1.bn.bias holds values that are not"),
])
def test_weights_that_do_not_fit_are_told_what_they_are(kind, change, says):
    state = change(TSM(THIN, kind[1], structure=kind[0]).state_dict())
    with pytest.raises(UserError) as raised:
        network_of(state, "a.pth", THIN)
    assert says in str(raised.value) and "\n" not in str(raised.value) and str(raised.value).startswith("a.pth: ")


@pytest.mark.all
def test_int8_of_mobilenet(mobile):
    """Clips and convolutions per channel are quantised, and the answers stay near."""
    pytest.importorskip("nncf")
    from tsm.infer.int8 import quantise

    view, rng = build(trunk_from(mobile), "view", ONE_VIEW), np.random.RandomState(7)
    views = [rng.standard_normal(ONE_VIEW.view_shape).astype(np.float32) for _ in range(8)]
    network = quantise(view, views)
    kinds = [node.get_type_name() for node in network.get_ordered_ops()]
    assert kinds.count("FakeQuantize") > kinds.count("GroupConvolution") == sum(MOBILENET.blocks)
    import openvino as ov

    compiled, exact = ov.Core().compile_model(network, "CPU"), session(view, "view")
    for x in views:
        expected, actual = exact.run(None, {"input": x})[0].mean(0), compiled([x])[0].mean(0)
        assert np.abs(actual - expected).max() <= 0.2 * np.abs(expected).max()


def test_a_hundred_views_fill_a_file_of_zeros_early_and_a_proof_is_of_few_views():
    """The largest batch that fits is named, and fits. Each protocol of no more views than a video may have stays as it is."""
    dense = SSV2._replace(sampling="dense", crops="ten", size=224)
    trunk = trunk_from(TSM(dense, 8).eval())
    with pytest.raises(UserError, match="more than an ONNX file holds") as raised:
        build(trunk, "ascend", dense, 10 ** 6)
    most = int(str(raised.value).split()[-1])
    zeros = sum(tensor.ByteSize() for tensor in build(trunk, "ascend", dense, 1).graph.initializer if tensor.name.startswith("zeros"))
    assert most * zeros < 2 ** 31 < (most + 2) * zeros + 2 ** 22
    few = surgery.few_views(dense)
    assert few.views == 10 and few == dense._replace(sampling=few.sampling, crops=few.crops)
    assert surgery.few_views(SSV2) == SSV2 and surgery.few_views(SSV2._replace(segments=16)).views == SSV2.views
    large = SSV2._replace(segments=64, sampling="dense", crops="three", size=1024)
    assert surgery.few_views(large).views == 1


def _own_number_of_frames(model):
    """As exporters write that look at their example: a Reshape to sizes that are all written down."""
    for node in model.graph.node:
        if node.name.endswith(".shift"):
            sizes = numpy_helper.to_array(next(held for held in model.graph.initializer if held.name == node.input[1])).copy()
            sizes[0] = 24
            node.input[1] = node.name + "/sizes"
            model.graph.initializer.append(numpy_helper.from_array(sizes, node.input[1]))


@pytest.mark.parametrize("form, change, views", [
    ("cpu", lambda model: None, 1), ("cpu", _own_number_of_frames, 1), ("ascend", lambda model: None, 3)])
def test_a_large_video_is_proved_on_few_views(tmp_path, monkeypatch, form, change, views):
    """Whether the exported graph takes fewer views, or, as one with zeros of its own, only all of them."""
    protocol = THIN._replace(segments=8, sampling="uniform", classes=12)
    net = random_network(RESNET50, 8, protocol)
    exported = build(trunk_from(net), form, protocol)
    change(exported)
    monkeypatch.setattr(surgery, "MOST_PIXELS", protocol.segments * protocol.size ** 2)
    few = surgery.few_views(protocol)
    assert few == protocol._replace(crops="centre")
    seen, free = [], proof.take_scores
    monkeypatch.setattr(proof, "take_scores", lambda model, batch, frames: (seen.append(frames), free(model, batch, frames)))
    folded, _ = surgery.fold_constants(exported, "a.onnx", str(tmp_path / "scratch"))
    trunk, _, _ = surgery.lift(surgery.read_source(folded, "a.onnx", protocol), protocol)
    graphs = {"file": build(trunk, "cpu", few, 1, "prob"), "one_view": build(trunk, "view", protocol)}
    proved = proof.prove(exported, "a.onnx", 1, graphs, protocol, "prob", "float32")
    assert seen[-1] == views * protocol.segments
    for entry in proved.values():
        assert entry["largest_difference"] <= entry["tolerance"] and entry["views"] == 1 == len(entry["magnitudes"])

"""pytorch2onnx.py: the checkpoints it takes, refusals in one line, and the full-size network through every runtime."""

import hashlib
import json
import os

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tsm.checkpoint import reader
from tsm.model.network import TSM, load_network, temporal_shift, trunk_from
from tsm.model.onnxfile import metadata
from tsm.protocol import CENTRE_VIEW, MOVES, SSV2, fuse, protocol_from, shifted

CONFIG = """model = dict(backbone=dict(type='ResNetTSM', depth=50, num_segments=8, shift_div=8),
             cls_head=dict(type='TSMHead', num_classes=%d))
"""


class Code:
    """What a malicious checkpoint carries: unpickling it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_code_beside_the_weights_does_not_run_and_in_them_is_refused(works, fails, thin, tmp_path):
    """Every kind of code, in both formats: test_load.py."""
    made = tmp_path / "made by the checkpoint"
    torch.save({"state_dict": dict(thin), "meta": Code(made)}, str(tmp_path / "a.pth"))
    said = works("pytorch2onnx.py", "a.pth", "--output-file", "a.onnx", cwd=tmp_path)
    assert "note: nothing says how many segments a.pth has; taken as 8" in said and not made.exists()
    torch.save(dict(thin, **{"cls_head.fc_cls.bias": Code(made)}), str(tmp_path / "b.pth"))
    line = fails("pytorch2onnx.py", "b.pth", "--output-file", "b.onnx", cwd=tmp_path)
    assert "cls_head.fc_cls.bias" in line and "mkdir" in line and not made.exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.onnx", "a.pth", "b.pth"]


def test_the_onnx_names_its_checkpoint_its_protocol_and_its_layers(works, thin, tmp_path):
    torch.save(thin, str(tmp_path / "a.pth"))
    (tmp_path / "config.py").write_text(CONFIG % 174)
    said = works("pytorch2onnx.py", "config.py", "a.pth", "--output-file", "a.onnx", "--verify", cwd=tmp_path)
    assert "verified" in said and "output [6, 174] per view" in said and "note" not in said
    props = metadata(onnx.load(str(tmp_path / "a.onnx")))
    assert props["tsm.checkpoint"] == "a.pth"
    assert props["tsm.checkpoint_sha256"] == hashlib.sha256((tmp_path / "a.pth").read_bytes()).hexdigest()
    assert protocol_from(json.loads(props["tsm.protocol"]), "a.onnx") == SSV2
    trunk = trunk_from(load_network(str(tmp_path / "a.pth"))[0])
    assert {name.rsplit(".", 1)[0] for name in trunk.weights} == {
        key[: -len(".bn.weight")][len("backbone.") :] for key in thin if key.endswith(".bn.weight")}
    assert {"conv1", "layer2.0.conv2", "layer1.0.downsample"} <= {node.output[0] for node in trunk.nodes}


def test_what_cannot_be_exported_is_one_line_and_no_file(fails, thin, tmp_path):
    torch.save(thin, str(tmp_path / "b.pth"))
    (tmp_path / "config.py").write_text(CONFIG.replace("num_segments=8", "num_segments=16") % 174)
    line = fails("pytorch2onnx.py", "config.py", "b.pth", "--segments", 8, "--output-file", "b.onnx", cwd=tmp_path)
    assert "8 segments by --segments" in line and "config.py says 16 segments" in line
    assert "none.py" in fails("pytorch2onnx.py", "none.py", "b.pth", "--output-file", "b.onnx", cwd=tmp_path)
    assert "--shape" in fails("pytorch2onnx.py", "b.pth", "--segments", 8, "--shape", 1, 3, 224, 224, cwd=tmp_path, status=2)
    assert "a.pth" in fails("pytorch2onnx.py", "a.pth", cwd=tmp_path)
    (tmp_path / "b.pth").write_bytes((tmp_path / "b.pth").read_bytes()[:-1000])
    assert "b.pth: not a PyTorch checkpoint" in fails("pytorch2onnx.py", "b.pth", "--output-file", "b.onnx", cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.pth", "config.py"]


WRITTEN = {"bi": "+-", "past1": "-=", "past2": "--", "past1-zero": "-0", "bi-still": "=-", "bi-zero": "0-",
           "none": "==", "reversed": "-+", "next1": "+=", "next2": "++"}  # the folds: from the next frame, the previous, ...


@pytest.mark.parametrize("kind", MOVES)
def test_a_shift_is_its_definition_for_any_number_of_segments(kind):
    """Value by value, by a table of its own."""
    for segments in (1, 2, 5):
        x = np.random.RandomState(segments).standard_normal((3 * segments, 8, 2, 3)).astype(np.float32)
        expected = np.zeros_like(x)
        for frame in range(3 * segments):
            for channel in range(8):
                way = (WRITTEN[kind] + "==")[channel // 2]
                source = frame + {"+": 1, "-": -1}.get(way, 0)
                if way != "0" and source // segments == frame // segments:
                    expected[frame, channel] = x[source, channel]
        assert np.array_equal(shifted(x, segments, 2, kind), expected)
        assert np.array_equal(temporal_shift(torch.from_numpy(x), segments, 2, kind).numpy(), expected)


def test_the_demo_checkpoint_has_mmaction2s_form(demo_checkpoint):
    state, meta = reader.load(str(demo_checkpoint))
    assert {"backbone.conv1.conv.weight", "backbone.layer3.5.conv1.conv.net.weight", "backbone.layer2.0.downsample.bn.bias",
            "backbone.layer4.2.conv3.bn.running_var", "cls_head.fc_cls.bias"} <= set(state) and len(state) == 320
    assert load_network(str(demo_checkpoint))[1].origins["segments"] == "the config in its meta" and "source" in meta


@pytest.mark.all
def test_the_full_network_is_the_same_in_every_runtime(works, tmp_path):
    """Random full-size weights and one view: PyTorch, exported, modified (both targets), ONNX Runtime, OpenVINO; every class, 1e-5."""
    torch.manual_seed(3)
    net = TSM().eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(net.state_dict(), str(tmp_path / "random.pth"))
    (tmp_path / "config.py").write_text(CONFIG % 174)
    protocol, given = SSV2._replace(**CENTRE_VIEW), ("--protocol", "protocol.json")
    (tmp_path / "protocol.json").write_text(json.dumps(protocol._asdict()))
    works("pytorch2onnx.py", "config.py", "random.pth", "--output-file=tsm_bs1.onnx", "--softmax", *given, cwd=tmp_path)
    videos = np.random.RandomState(4).standard_normal((1,) + protocol.video_shape).astype(np.float32)
    with torch.no_grad():
        views = net(torch.from_numpy(videos))
    expected = {"exported": torch.softmax(views, 1).numpy(), "fused": fuse(views.numpy(), protocol.views, "score")}

    def onnx_runtime(name):
        session = onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"])
        return session.run(None, {"input": videos})[0]

    assert np.abs(onnx_runtime("tsm_bs1.onnx") - expected["exported"]).max() <= 1e-5
    for target in ("ascend", "cpu"):
        works("modify_onnx.py", "-m1", "tsm_bs1.onnx", "-m2", target + ".onnx", "-bs", 1, "--target", target, *given, cwd=tmp_path)
        assert np.abs(onnx_runtime(target + ".onnx") - expected["fused"]).max() <= 1e-5
    (tmp_path / "in").mkdir()
    videos.tofile(str(tmp_path / "in/0.bin"))
    for backend in ("openvino", "onnxruntime"):
        works("TSM_infer.py", "-m", "cpu.onnx", "-i", "in", "-o", "res", "--output_dirname", backend, "--outfmt", "NPY",
              "--backend", backend, cwd=tmp_path)
        assert np.abs(np.load(str(tmp_path / "res" / backend / "0_0.npy")) - expected["fused"]).max() <= 1e-5

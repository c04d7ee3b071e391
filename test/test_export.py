"""pytorch2onnx.py: checkpoints of every form, refusals in one line, and the full-size network through every runtime."""

import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tsm.network import TSM, load, load_state_dict  # noqa: E402


class Code:
    """What a malicious checkpoint carries: unpickling it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.fixture(scope="module")
def thin():
    torch.manual_seed(0)
    return TSM(width=8).state_dict()


@pytest.mark.parametrize("zip_format", [True, False])
def test_both_checkpoint_formats_load(thin, tmp_path, zip_format):
    path = str(tmp_path / "a.pth")
    checkpoint = {"state_dict": {"module." + key: value for key, value in thin.items()}, "meta": {"epoch": 50, "lr": [0.1]}}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zip_format)
    net = load(path, width=8)
    assert torch.equal(net.state_dict()["cls_head.fc_cls.weight"], thin["cls_head.fc_cls.weight"]) and not net.training


@pytest.mark.parametrize("zip_format", [True, False])
def test_a_checkpoint_with_code_is_refused_and_not_run(fails, thin, tmp_path, zip_format):
    made = tmp_path / "made by the checkpoint"
    torch.save({"state_dict": dict(thin), "meta": Code(made)}, str(tmp_path / "a.pth"),
               _use_new_zipfile_serialization=zip_format)
    line = fails("pytorch2onnx.py", "a.pth", "--output-file", "a.onnx", cwd=tmp_path)
    assert "more than weights" in line and "mkdir" in line and not made.exists()


def _without(key):
    return lambda state: state.pop(key)


def _as(key, value):
    return lambda state: state.update({key: value})


@pytest.mark.parametrize("change, says", [
    (_without("backbone.layer1.0.conv1.conv.net.weight"), "backbone.layer1.0.conv1.conv.net.weight is missing"),
    (_as("backbone.what", torch.zeros(1)), "backbone.what is not of this network"),
    (_as("cls_head.fc_cls.weight", torch.zeros(400, 256)), "cls_head.fc_cls.weight is [400, 256], not [174, 256]"),
    (_as("cls_head.fc_cls.bias", torch.full((174,), float("nan"))), "cls_head.fc_cls.bias holds values that are not finite"),
])
def test_differences_are_named(thin, tmp_path, change, says):
    from tsm.cli import UserError

    state = dict(thin)
    change(state)
    torch.save(state, str(tmp_path / "a.pth"))
    with pytest.raises(UserError) as raised:
        load(str(tmp_path / "a.pth"), width=8)
    assert says in str(raised.value) and "a.pth" in str(raised.value)


@pytest.mark.parametrize("raw", [b"", b"not a checkpoint", b"PK\x03\x04 cut short", None, {"a": 1}, [torch.zeros(2)]])
def test_what_is_no_checkpoint_is_said_in_one_line(fails, thin, tmp_path, raw):
    path = tmp_path / "a.pth"
    if isinstance(raw, bytes):
        path.write_bytes(raw)
    elif raw is None:
        torch.save(thin, str(path))
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        torch.save(raw, str(path))
    line = fails("pytorch2onnx.py", "a.pth", "--output-file", "a.onnx", cwd=tmp_path)
    assert "a.pth" in line and "more than weights" not in line
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


def test_usage(fails, tmp_path):
    assert "--shape" in fails("pytorch2onnx.py", "a.pth", "--shape", 1, 3, 224, 224, cwd=tmp_path, status=2)
    assert "a.pth" in fails("pytorch2onnx.py", "a.pth", cwd=tmp_path)


def test_the_demo_checkpoint_has_mmaction2s_keys(demo_checkpoint):
    keys = set(load_state_dict(str(demo_checkpoint)))
    assert {"backbone.conv1.conv.weight", "backbone.layer3.5.conv1.conv.net.weight", "backbone.layer2.0.downsample.bn.bias",
            "backbone.layer4.2.conv3.bn.running_var", "cls_head.fc_cls.bias"} <= keys and len(keys) == 320


def test_the_full_network_is_the_same_in_every_runtime(works, tmp_path):
    """Random full-size weights: PyTorch, exported, modified (both targets), ONNX Runtime, OpenVINO; every class, 1e-5."""
    import onnxruntime

    from tsm.network import fuse

    torch.manual_seed(3)
    net = TSM().eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(net.state_dict(), str(tmp_path / "random.pth"))
    works("pytorch2onnx.py", "config.py", "random.pth", "--output-file=tsm_bs1.onnx", "--softmax", "--shape", 1, 48, 3, 256, 256,
          cwd=tmp_path)
    videos = np.random.RandomState(4).standard_normal((1, 48, 3, 256, 256)).astype(np.float32)
    with torch.no_grad():
        views = net(torch.from_numpy(videos))
    expected = {"exported": torch.softmax(views, 1).numpy(), "fused": fuse(views, "score").numpy()}

    def onnx_runtime(name):
        session = onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"])
        return session.run(None, {"input": videos})[0]

    assert np.abs(onnx_runtime("tsm_bs1.onnx") - expected["exported"]).max() <= 1e-5
    for target in ("ascend", "cpu"):
        works("modify_onnx.py", "-m1", "tsm_bs1.onnx", "-m2", target + ".onnx", "-bs", 1, "--target", target, cwd=tmp_path)
        assert np.abs(onnx_runtime(target + ".onnx") - expected["fused"]).max() <= 1e-5
    (tmp_path / "in").mkdir()
    videos.tofile(str(tmp_path / "in/0.bin"))
    for backend in ("openvino", "onnxruntime"):
        works("TSM_infer.py", "-m", "cpu.onnx", "-i", "in", "-o", "res", "--output_dirname", backend, "--outfmt", "NPY",
              "--backend", backend, cwd=tmp_path)
        assert np.abs(np.load(str(tmp_path / "res" / backend / "0_0.npy")) - expected["fused"]).max() <= 1e-5

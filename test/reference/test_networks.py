"""Every kind of TSM in mmaction2's zoo against mmaction2 0.24.1, live: its recognizer in test mode, and its own exporter's graph.

Weights and statistics are random. ResNet-101 and MobileNetV2 are of the real size, the others an eighth as wide (the code is
mmaction2's own all the same). A network does not care how many views or pixels it is given: where a protocol has many views,
all of them are computed and fused, on small frames; the networks that are of the real size also see one view of theirs.
"""

import importlib.util
import json
import os
from functools import partial

import numpy as np
import pytest

pytest.importorskip("mmaction", reason="needs mmaction2: ./test/run.sh --reference")

import mmaction
import mmcv
import onnx
import torch
from mmaction.models import build_model
from test_reference import CONFIG, TOLERANCE, randomise, tell  # noqa: F401
from torch import nn

from tsm.cli import UserError
from tsm.model.graph import build, trunk_of
from tsm.model.network import load_network, scores
from tsm.model.onnxfile import session
from tsm.model.proof import random_videos
from tsm.protocol import CENTRE_VIEW, SSV2, fuse

TOOL = os.path.join(os.path.dirname(mmaction.__file__), ".mim", "tools", "deployment", "pytorch2onnx.py")
CASES = {  # name: (config, classes unless the config's, divisor of the widths, pixels unless the config's, one view of a video)
    "ResNet-50 x 16, twice, three": ("tsm_r50_1x1x16_50e_sthv2_rgb", 0, 8, 0, False),
    "ResNet-101 x 8": ("tsm_r101_1x1x8_50e_sthv2_rgb", 0, 1, 0, True),
    "ResNet-50 x 8, uniform, centre, 10 classes": ("tsm_r50_1x1x8_50e_kinetics400_rgb", 10, 8, 0, False),
    "ResNet-50 x 8, dense, ten": ("tsm_r50_dense_1x1x8_50e_kinetics400_rgb", 0, 8, 64, False),
    "ResNet-50 x 8, twice, three, Jester's classes": ("tsm_r50_1x1x8_50e_jester_rgb", 0, 8, 128, False),
    "MobileNetV2 x 8, dense, three": ("tsm_mobilenetv2_dense_1x1x8_100e_kinetics400_rgb", 0, 1, 64, False),
    "MobileNetV2 x 8": ("tsm_mobilenetv2_dense_1x1x8_100e_kinetics400_rgb", 0, 1, 0, True),
}


def thinner(module, divisor):
    """Replace every layer of a network by one with so many times fewer channels (colours and classes stay), in place."""
    for name, child in module.named_children():
        if isinstance(child, (nn.Conv2d, nn.Conv3d)):
            channels = [size if size == 3 else size // divisor for size in (child.in_channels, child.out_channels)]
            kind = nn.Conv2d if isinstance(child, nn.Conv2d) else nn.Conv3d
            setattr(module, name, kind(*channels, child.kernel_size, child.stride, child.padding, bias=child.bias is not None))
        elif isinstance(child, (nn.BatchNorm2d, nn.BatchNorm3d)):
            setattr(module, name, type(child)(child.num_features // divisor))
        elif isinstance(child, nn.Linear):
            setattr(module, name, nn.Linear(child.in_features // divisor, child.out_features))
        else:
            thinner(child, divisor)
            if hasattr(child, "inter_channels"):  # of a non-local block
                child.inter_channels //= divisor


def recognizer(name, classes, divisor):
    """(mmaction2's recognizer of a published config, in test mode, with random weights; the text of its config)."""
    config = mmcv.Config.fromfile(os.path.join(os.path.dirname(CONFIG), name + ".py"))
    config.model.backbone.pretrained = None
    config.model.cls_head.num_classes = classes or config.model.cls_head.num_classes
    model = build_model(config.model, test_cfg=config.get("test_cfg"))
    if divisor != 1:
        thinner(model, divisor)
    randomise(model.eval(), (1, model.cls_head.num_segments, 3, 64, 64))
    return model, "".join("%s = %r\n" % entry for entry in config._cfg_dict.to_dict().items())


def export(model, protocol, path):
    """What mmaction2's own tool does once it has loaded the model, by the tool's own function."""
    spec = importlib.util.spec_from_file_location("mmaction2_tool", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    model.forward = partial(model.forward_dummy, softmax=True)
    tool.pytorch2onnx(model, (1,) + protocol.video_shape, output_file=str(path))


@pytest.mark.parametrize("name", list(CASES))
def test_a_network_is_mmaction2_s(name, works, tell, tmp_path):  # noqa: F811
    """Probabilities: of our network, and of the graph that the surgery makes of mmaction2's own export, whole and by view."""
    config, classes, divisor, pixels, one = CASES[name]
    torch.manual_seed(len(name))
    model, text = recognizer(config, classes, divisor)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(config=text)), str(tmp_path / "model.pth"))
    net, facts = load_network(str(tmp_path / "model.pth"))
    assert facts.network == "TSM " + name.split()[0] and facts.average_clips == "prob"
    assert (facts.protocol.segments, facts.protocol.classes) == (model.cls_head.num_segments, model.cls_head.num_classes)
    protocol = facts.protocol._replace(**dict(CENTRE_VIEW if one else {}, **({"size": pixels} if pixels else {})))
    videos = random_videos(1, protocol, "float32")[0]
    with torch.no_grad():
        expected = np.asarray(model(torch.from_numpy(videos), None, return_loss=False))
    answers = {"our network": fuse(scores(net, videos), protocol.views, "prob")}
    export(model, protocol, tmp_path / "export.onnx")
    (tmp_path / "protocol.json").write_text(json.dumps(protocol._asdict()))
    works("modify_onnx.py", "-m1", "export.onnx", "-m2", "new.onnx", "--target", "cpu", "--fusion", "prob", "--protocol",
          "protocol.json", cwd=tmp_path)
    new = onnx.load(str(tmp_path / "new.onnx"))
    answers["its export, whole"] = session(new, "new.onnx").run(None, {"input": videos})[0]
    runner = session(build(trunk_of(new), "view", protocol), "view")
    by_view = [runner.run(None, {"input": view})[0].mean(0) for view in videos.reshape((-1,) + protocol.view_shape)]
    answers["its export, view by view"] = fuse(np.stack(by_view), protocol.views, "prob")
    differences = {what: float(np.abs(actual - expected).max()) for what, actual in answers.items()}
    tell("%s: %d views of %d frames, %d pixels, largest probability %.3f of %d classes; differences %s" % (
        name, protocol.views, protocol.segments, protocol.size, expected.max(), protocol.classes,
        ", ".join("%s %.1e" % pair for pair in differences.items())))
    assert max(differences.values()) <= TOLERANCE and expected.max() > 2 / protocol.classes
    assert all(actual.argmax() == expected.argmax() for actual in answers.values())


@pytest.mark.parametrize("config, says", [
    ("tsm_nl_embedded_gaussian_r50_1x1x8_50e_kinetics400_rgb", "has non-local blocks"),
    ("tsm_temporal_pool_r50_1x1x8_50e_kinetics400_rgb", "has temporal pooling"),
])
def test_its_other_networks_are_refused_by_name(config, says, fails, tmp_path):
    """Their graphs by mmaction2's own exporter, and their weights."""
    model, text = recognizer(config, 0, 8)
    protocol = SSV2._replace(size=64, classes=model.cls_head.num_classes, **CENTRE_VIEW)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(config=text)), str(tmp_path / "model.pth"))
    (tmp_path / "protocol.json").write_text(json.dumps(protocol._asdict()))
    export(model, protocol, tmp_path / "export.onnx")
    assert says in fails("modify_onnx.py", "-m1", "export.onnx", "-m2", "new.onnx", "--protocol", "protocol.json", cwd=tmp_path)
    with pytest.raises(UserError, match=says[len("has "):-1]):
        load_network(str(tmp_path / "model.pth"))
    assert not (tmp_path / "new.onnx").exists()

"""The demo: its clips and labels are what they claim, the expansion is exact, and only time tells its classes apart."""

import json
import sys

import cv2
import numpy as np
import onnxruntime
import pytest
import torch

from tsm.checkpoint import reader
from tsm.model.graph import build
from tsm.model.network import MOBILENETV2, RESNET50, TSM, load_network, trunk_from
from tsm.model.onnxfile import metadata, read_onnx
from tsm.protocol import SSV2


@pytest.fixture(scope="module")
def demo(repo):
    sys.path.insert(0, str(repo / "demo"))
    yield repo / "demo"
    sys.path.remove(str(repo / "demo"))


@pytest.fixture(scope="module")
def annotations(demo):
    folder = demo / "annotations"
    labels = json.loads((folder / "something-something-v2-labels.json").read_text())
    entries = json.loads((folder / "something-something-v2-validation.json").read_text())
    return entries, {template: int(index) for template, index in labels.items()}


def plain(entry):
    return entry["template"].replace("[", "").replace("]", "")


def test_annotations_have_the_datasets_form(demo, annotations):
    entries, labels = annotations
    assert sorted(labels.values()) == list(range(174)) and labels["Pushing something from left to right"] == 93
    assert len(entries) >= 32 and len({entry["id"] for entry in entries}) == len(entries)
    assert {entry["id"] + ".webm" for entry in entries} == {path.name for path in (demo / "videos").iterdir()}
    for entry in entries:
        assert plain(entry) in labels and entry["template"].count("[something]") == len(entry["placeholders"])
    assert len({plain(entry) for entry in entries}) >= 8


def test_clips_are_varied_and_small(demo):
    shapes, lengths, size = set(), set(), 0
    for path in (demo / "videos").iterdir():
        video, frames = cv2.VideoCapture(str(path)), 0
        shapes.add((video.get(cv2.CAP_PROP_FRAME_WIDTH), video.get(cv2.CAP_PROP_FRAME_HEIGHT)))
        while video.grab():
            frames += 1
        lengths.add(frames)
        size += path.stat().st_size
    assert min(lengths) >= 12 and max(lengths) <= 60 and len(lengths) > 8
    assert any(w > h for w, h in shapes) and any(w < h for w, h in shapes) and size < 1.2e6


def test_a_clip_comes_again_from_its_seed_and_a_pair_differs_only_in_the_direction_of_time(demo):
    """Without shake and noise the two classes of a pair show the same frames in opposite order."""
    import render

    first, second = (render.render(np.random.RandomState(5), render.TEMPLATES[0], 60, 80, np.linspace(0, 1, 3)) for _ in range(2))
    assert np.array_equal(first, second) and first[0].shape == (60, 80, 3)

    class Still(np.random.RandomState):
        def normal(self, loc=0.0, scale=1.0, size=None):
            return np.zeros(size) if size else 0.0

    times = np.linspace(0, 1, 5)
    for action in render.ACTIONS:
        forwards, backwards = (render.render(Still(3), template, 60, 80, times)
                               for template in (action.forwards, action.backwards))
        assert np.array_equal(forwards, backwards[::-1]) and not np.array_equal(forwards[0], forwards[-1])


@pytest.mark.parametrize("still", [False, True])
def test_the_expanded_network_is_the_thin_one(demo, still):
    """With its shift, or without: of 8 to 256 channels, a shift_div of 1024 shifts none."""
    from expand import expand

    state, _ = reader.load(str(demo / "tsm_thin.pth"))
    thin, full = TSM(SSV2._replace(shift_div=1024) if still else SSV2, width=8).eval(), TSM().eval()
    thin.load_state_dict(state)
    full.load_state_dict(expand(state, still))
    torch.manual_seed(0)
    videos = torch.randn(1, 16, 3, 64, 64)
    with torch.no_grad():
        expected, actual = thin(videos), full(videos)
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_with_their_folds_exchanged_weights_of_both_sides_are_a_start_for_the_past_alone(demo):
    """bi run without what it sees ahead, exactly; without the exchange it is another network."""
    from train import exchanged

    torch.manual_seed(0)
    mobile, videos = MOBILENETV2._replace(channels=(8, 16, 24, 32, 48, 56, 64, 80)), torch.randn(1, 8, 3, 64, 64)
    for structure, state in ((RESNET50, reader.load(str(demo / "tsm_thin.pth"))[0]), (mobile, TSM(SSV2, 8, structure=mobile).state_dict())):
        scores, variances = [], [value for name, value in state.items() if name.endswith("running_var")]
        for value in variances if structure is mobile else ():
            value.fill_(0.1)  # or nothing of random weights reaches the end
        for shift, weights in (("bi-still", state), ("past1", exchanged(state)), ("past1", state)):
            net = TSM(SSV2._replace(shift=shift), 8, structure=structure).eval()
            net.load_state_dict(weights)
            with torch.no_grad():
                scores.append(net(videos).numpy())
        assert np.abs(scores[1] - scores[0]).max() <= 1e-4 * np.abs(scores[0]).max() < 1e-2 * np.abs(scores[2] - scores[0]).max()


def test_expansion_is_deterministic_and_named_errors_are_one_line(works, fails, demo_checkpoint, tmp_path):
    works("demo/expand.py", "--output", "a.pth", cwd=tmp_path)
    assert (tmp_path / "a.pth").read_bytes() == demo_checkpoint.read_bytes()
    assert "none.pth" in fails("demo/expand.py", "--output", "c.pth", "--thin", "none.pth", cwd=tmp_path)
    assert not (tmp_path / "c.pth").exists()


def test_the_demo_says_what_it_is_wherever_it_goes(works, demo, demo_checkpoint, tmp_path):
    """The checkpoint's mark is read, and an exported model has it."""
    from expand import ABOUT

    assert reader.load(str(demo_checkpoint))[1]["about"] == ABOUT
    reader.save(str(tmp_path / "thin.pth"), reader.load(str(demo / "tsm_thin.pth"))[0], {"about": ABOUT})
    assert "says of itself: " + ABOUT in works("pytorch2onnx.py", "thin.pth", "--output-file", "thin.onnx", cwd=tmp_path)
    assert metadata(read_onnx(str(tmp_path / "thin.onnx")))["tsm.about"] == ABOUT


@pytest.mark.all
@pytest.mark.parametrize("weights, shift", [("tsm_thin.pth", "bi"), ("tsm_thin_uni.pth", "past1")])
def test_only_the_shift_tells_the_classes_of_a_pair_apart(weights, shift, works, demo, annotations, tmp_path):
    """The thin network on the protocol's tensors: right with its shift; without it, no better than chance in a pair."""
    from render import ACTIONS

    entries, labels = annotations
    lines = ["%s.webm %d\n" % (entry["id"], labels[plain(entry)]) for entry in entries]
    (tmp_path / "list.txt").write_text("".join(lines))
    works("TSM_preprocess.py", "--data_root", demo / "videos", "--ann_file", "list.txt", "--output_dir", ".", cwd=tmp_path)
    net, facts = load_network(str(demo / weights))
    protocols = facts.protocol, facts.protocol._replace(shift="none")
    sessions = [onnxruntime.InferenceSession(build(trunk_from(net), "view", protocol).SerializeToString(),
                                             providers=["CPUExecutionProvider"]) for protocol in protocols]
    assert facts.protocol == SSV2._replace(shift=shift)
    scores = []
    for index in range(len(entries)):
        video = np.fromfile(str(tmp_path / "preprocess_bin" / ("%d.bin" % index)), np.float32)
        views = video.reshape((SSV2.views,) + SSV2.view_shape)
        scores.append([np.mean([session.run(None, {"input": view})[0] for view in views], (0, 1)) for session in sessions])
    scores = np.array(scores)  # [videos, with or without, classes]
    truth = np.array([labels[plain(entry)] for entry in entries])
    assert (scores[:, 0].argmax(1) == truth).mean() >= 0.95
    right = total = 0
    for action in ACTIONS:
        pair = [labels[action.forwards], labels[action.backwards]]
        chosen = np.isin(truth, pair)
        right += (np.array(pair)[scores[chosen, 1][:, pair].argmax(1)] == truth[chosen]).sum()
        total += chosen.sum()
    assert 0.25 <= right / total <= 0.75, "%d of %d right without the shift" % (right, total)

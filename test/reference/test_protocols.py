"""The test pipelines of mmaction2's TSM configs, live: TSM_checkpoint.py reads the config, and the tensors are mmaction2's.

Run by ./test/run.sh --reference.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmaction", reason="needs mmaction2: ./test/run.sh --reference")

import torch
from test_reference import CONFIG, REPO, clip_of, mmaction2_dataset, tell  # noqa: F401

from tsm.checkpoint import published, reader
from tsm.protocol import CROPS, PIPELINES, SAMPLINGS

CONFIGS = Path(CONFIG).parent
CLIPS = (("landscape", 3), ("portrait", 70), ("odd", 131), ("square", 15), ("wide256", 64))
VIDEOS = ("video_a.webm", "video_c.webm")
# By a config: its test, the frames of a sample, and on how many of the clips and videos it is compared (a dense one of ten crops
# has 800 images a clip). Where the config is MobileNetV2's, its test alone is taken.
TESTS = {
    "tsm_r50_1x1x8_50e_kinetics400_rgb": ("centre", 8, 5, 2), "tsm_r50_1x1x16_50e_sthv2_rgb": ("twice-three", 16, 5, 2),
    "tsm_r50_1x1x16_50e_kinetics400_rgb": ("ten", 16, 4, 1), "tsm_r50_dense_1x1x8_50e_kinetics400_rgb": ("dense-ten", 8, 3, 1),
    "tsm_mobilenetv2_dense_1x1x8_100e_kinetics400_rgb": ("dense-three", 8, 5, 2),
    "tsm_mobilenetv2_video_inference_dense_1x1x8_100e_kinetics400_rgb": ("dense-centre", 8, 5, 2),
}
AS_RESNET = """_base_ = [%r]
model = dict(backbone=dict(_delete_=True, type='ResNetTSM', depth=50), cls_head=dict(in_channels=2048))
"""


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder with clips of frames, as img_00001.jpg and so on."""
    folder = tmp_path_factory.mktemp("clips")
    for shape, length in CLIPS:
        clip_of(shape, length, str(folder / ("%s_%d" % (shape, length))))
    return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """networks(classes) -> the demo's thin network, cut or repeated to so many classes."""
    folder = tmp_path_factory.mktemp("networks")
    state, _ = reader.load(str(REPO / "demo" / "tsm_thin.pth"))

    def networks(classes):
        path = folder / ("%d.pth" % classes)
        resized = {key: torch.cat([value] * 3)[:classes] if key.startswith("cls_head") else value for key, value in state.items()}
        reader.save(str(path), resized, {})
        return path

    return networks


def compare(works, root, ann_file, config, flags, folder):
    """(clips, values that differ, all values) between TSM_preprocess.py and mmaction2."""
    works("TSM_preprocess.py", "--data_root", root, "--ann_file", ann_file, "--num_worker", 2, *flags, cwd=folder)
    reference, different, values = mmaction2_dataset(root, ann_file, config), 0, 0
    for number in range(len(reference)):
        images = reference[number]["imgs"].numpy().reshape(-1)
        tensor = np.fromfile(str(folder / "sthv2" / "preprocess_bin" / ("%d.bin" % number)), np.float32)
        assert tensor.size == images.size
        different += int((tensor.view(np.uint32) != images.view(np.uint32)).sum())
        values += images.size
    shutil.rmtree(str(folder / "sthv2"))
    return len(reference), different, values


@pytest.mark.parametrize("name", sorted(TESTS))
def test_tensors_of_every_pipeline(works, tell, clips, networks, tmp_path, name):  # noqa: F811
    pipeline, segments, most_clips, most_videos = TESTS[name]
    config = CONFIGS / (name + ".py")
    given = config
    if "mobilenetv2" in name:
        given = tmp_path / "as_resnet.py"
        given.write_text(AS_RESNET % str(config))
    classes = int(re.search(r"num_classes=(\d+)", "".join(path.read_text() for path in (
        config, *(CONFIGS.parent.parent / "_base_" / "models").glob("tsm_r50.py")))).group(1))
    said = works("TSM_checkpoint.py", networks(classes), "--config", given, "--output", "protocol.json", cwd=tmp_path)
    protocol = json.loads((tmp_path / "protocol.json").read_text())
    wanted = PIPELINES[pipeline]
    assert {key: protocol[key] for key in wanted} == wanted and protocol["segments"] == segments and "fusion: prob" in said

    (tmp_path / "frames.txt").write_text("".join("%s_%d %d 0\n" % (shape, length, length) for shape, length in CLIPS[:most_clips]))
    (tmp_path / "videos.txt").write_text("".join("%s 0\n" % video for video in VIDEOS[:most_videos]))
    for root, ann_file in ((clips, "frames.txt"), (REPO / "test" / "data", "videos.txt")):
        count, different, values = compare(works, root, tmp_path / ann_file, config, ["--protocol", "protocol.json"], tmp_path)
        assert values == count * CROPS[wanted["crops"]] * SAMPLINGS[wanted["sampling"]] * segments * 3 * wanted["size"] ** 2
        tell("%s, %d segments: %d clips of %s, %d of %.1f M values differ"
             % (pipeline, segments, count, ann_file[:-4], different, values / 1e6))
        assert different == 0


def test_the_published_files_are_where_mmaction2_says():
    """Every checkpoint of its metafile but those of networks that are refused, at its address."""
    known = set(re.findall(r"Weights: (\S+)", (CONFIGS / "metafile.yml").read_text()))
    ours = {published.address(row) for row in published.rows() if row.digest not in published._WITHDRAWN}
    assert {address for address in known if "_nl_" not in address} == {address for address in ours if "/v1.0/" not in address}

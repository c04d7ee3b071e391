"""Networks that were tested otherwise than on Something-Something V2: what is found out once, and what every later step makes of it."""

import hashlib
import json
import shutil
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest

from tsm import machine
from tsm.checkpoint import published, reader
from tsm.checkpoint.identify import check_supported, facts_of, fusion_of
from tsm.cli import UserError
from tsm.infer.tensors import Inputs, check_protocol
from tsm.model.network import load_network, scores
from tsm.model.onnxfile import protocol_of
from tsm.protocol import PIPELINES, SSV2, crop_boxes, frame_indices, fuse, protocol_from, read_protocol
from tsm.video.clips import fill, normalisation

CLASSES, SEGMENTS = 10, 16  # of the checkpoint that a user brings
CONFIG = """model = dict(type='Recognizer2D', backbone=dict(type='ResNetTSM', depth=50, num_segments=%(segments)d, shift_div=8),
             cls_head=dict(type='TSMHead', num_classes=%(classes)d, num_segments=%(segments)d), test_cfg=dict(average_clips='prob'))
test_pipeline = [
    dict(type='SampleFrames', clip_len=1, frame_interval=1, num_clips=%(sampled)d, test_mode=True%(twice)s),
    dict(type='RawFrameDecode'), dict(type='Resize', scale=(-1, 256)), dict(type='%(crop)s', crop_size=%(size)d),
    dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_bgr=False),
    dict(type='FormatShape', input_format='NCHW')]
data = dict(test=dict(type='RawframeDataset', pipeline=test_pipeline%(more)s))
"""
OWN = dict(segments=SEGMENTS, sampled=SEGMENTS, classes=CLASSES, twice="", crop="CenterCrop", size=224, more="")
PUBLISHED = "tsm_r50_1x1x8_50e_jester_rgb-%s.pth"


def config(**changes):
    return CONFIG % dict(OWN, **changes)


@pytest.fixture(scope="module")
def thin(repo):
    """The demo's thin network, whose weights are the same for any number of segments, with the classifier of fewer classes."""
    state, _ = reader.load(str(repo / "demo" / "tsm_thin.pth"))
    return {key: value[:CLASSES].clone() if key.startswith("cls_head") else value for key, value in state.items()}


@pytest.fixture
def own(thin, tmp_path):
    """own.pth, of 10 classes and 16 segments by its config c.py."""
    reader.save(str(tmp_path / "own.pth"), thin, {})
    (tmp_path / "c.py").write_text(config())
    return tmp_path


# Sampling and crops.


@pytest.mark.parametrize("frames", [1, 3, 63, 64, 65, 70, 300])
@pytest.mark.parametrize("segments", [8, 16])
def test_dense_samples_start_evenly_and_run_over_to_the_first_frame(frames, segments):
    """By DenseSampleFrames' rule, in whole numbers; a clip of 64 frames or fewer has one start."""
    indices = np.array(frame_indices(frames, SSV2._replace(sampling="dense", segments=segments))).reshape(10, segments)
    starts = [number * max(0, frames - 64) // 9 for number in range(10)]
    assert indices.tolist() == [[(start + k * (64 // segments)) % frames for k in range(segments)] for start in starts]


@pytest.mark.parametrize("width, height, places", [
    (341, 256, [(0, 0), (116, 0), (0, 32), (116, 32), (58, 16)]), (256, 455, [(0, 0), (32, 0), (0, 228), (32, 228), (16, 114)]),
    (256, 256, [(0, 0), (32, 0), (0, 32), (32, 32), (16, 16)]),
])
def test_ten_crops_are_five_places_each_followed_by_its_mirror_image(width, height, places):
    boxes = crop_boxes(width, height, SSV2._replace(crops="ten", size=224))
    assert boxes == [(x, y, mirrored) for x, y in places for mirrored in (False, True)]


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_tensor_of_dense_samples_and_ten_crops_by_its_definition(tmp_path, dtype):
    """Crop by crop, sample by sample, frame by frame, each computed by itself."""
    count, protocol = 70, SSV2._replace(segments=2, sampling="dense", crops="ten", size=32, short_side=40)
    random = np.random.RandomState(0)
    for number in range(count):
        picture = cv2.resize(random.randint(0, 256, (6, 9, 3)).astype(np.uint8), (60, 40), interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(tmp_path / ("img_%05d.jpg" % (number + 1))), picture)
    out = np.empty(protocol.video_shape, dtype)
    table = normalisation(protocol)
    fill(str(tmp_path), count, protocol, table if dtype == "float32" else None, out)
    views = out.reshape(10, -1, 3, 32, 32)
    for crop, (x, y, mirrored) in enumerate(crop_boxes(60, 40, protocol)):
        for place, index in enumerate(frame_indices(count, protocol)):
            frame = cv2.imread(str(tmp_path / ("img_%05d.jpg" % (index + 1))))[y : y + 32, x : x + 32, ::-1]
            frame = frame[:, ::-1] if mirrored else frame
            planes = [table[channel][frame[..., channel]] if dtype == "float32" else frame[..., channel] for channel in range(3)]
            assert np.array_equal(views[crop, place], np.stack(planes))


def test_processes_are_as_many_as_the_memory_holds_tensors_for(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "free_memory", lambda: 2e9)
    size = SSV2._replace(**PIPELINES["dense-ten"]).nbytes("float32")
    assert [machine.workers_that_fit(wanted, size) for wanted in (1, 2, 64)] == [1, 2, 2]
    assert machine.workers_that_fit(64, 10 ** 12) == 1 and machine.workers_that_fit(64, 1000) == 64
    monkeypatch.undo()
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:   2000 kB\n")
    assert 0 < machine.free_memory(str(tmp_path / "meminfo")) <= 2000 * 1024 and machine.free_memory() > 2000 * 1024


@pytest.mark.parametrize("name, value", [
    ("std", [1, 0, 1]), ("std", [1, -1, 1]), ("std", [1, 1e-320, 1]), ("mean", [1, float("inf"), 1]), ("mean", [1, float("nan"), 1]),
    ("mean", [True, 1, 1]), ("mean", [10 ** 400, 1, 1]), ("mean", 3), ("mean", ["1", 2, 3]), ("segments", 10 ** 30), ("segments", True),
    ("segments", 8.0), ("short_side", 10 ** 9), ("classes", 100001), ("classes", 1), ("shift_div", 1), ("shift_div", 2000),
    ("sampling", ["dense"]), ("crops", {}), ("crops", "nine"), ("size", 0), ("segments", 0), ("shift", "next1"), ("shift", None),
])
def test_values_that_no_protocol_has_are_named(name, value, tmp_path):
    """In a file and in a model's metadata alike; but for the kind of shift, which older ones do not say, none may be missing."""
    older = {fact: held for fact, held in SSV2._asdict().items() if fact != "shift"}
    assert protocol_from(older, "p.json") == SSV2
    with pytest.raises(UserError, match="p.json: its protocol takes crops of 300 pixels from frames whose short side has 256"):
        protocol_from(dict(older, size=300), "p.json")
    stated = json.dumps(dict(SSV2._asdict(), **{name: value}))
    (tmp_path / "p.json").write_text(stated)
    with pytest.raises(UserError, match="p.json: (its protocol has %s = |not JSON .* is not a finite number)" % name):
        read_protocol(str(tmp_path / "p.json"))
    model = onnx.ModelProto()
    model.metadata_props.add(key="tsm.protocol", value=stated)
    with pytest.raises(UserError, match="a.onnx: its protocol has %s = .* needed" % name):
        protocol_of(model, "a.onnx")


# What TSM_checkpoint.py finds out.


def test_the_protocol_is_found_out_and_written_where_it_is_told_to(own, works):
    said = works("TSM_checkpoint.py", "own.pth", "--config", "c.py", cwd=own)
    assert "--output protocol.json, for --protocol of later steps" in said and not (own / "protocol.json").exists()
    said = works("TSM_checkpoint.py", "own.pth", "--config", "c.py", "--output", "protocol.json", cwd=own)
    for line in ("network: TSM ResNet-50 (its weights)", "classes: 10 (its weights)", "segments: 16 (c.py)", "fusion: prob (c.py)",
                 "shape: 1 16 3 224 224", "wrote protocol.json"):
        assert line in said.splitlines()
    written = json.loads((own / "protocol.json").read_text())
    expected = SSV2._replace(classes=CLASSES, segments=SEGMENTS, **PIPELINES["centre"])
    assert protocol_from(written, "protocol.json") == expected
    assert (written["network"], written["average_clips"]) == ("TSM ResNet-50", "prob")


def test_with_the_default_protocol_nothing_is_to_be_passed_on(own, works, repo):
    said = works("TSM_checkpoint.py", repo / "demo" / "tsm_thin.pth", cwd=own)
    assert "shape: 1 48 3 256 256" in said and "fusion: score (the Ascend guide)" in said and "--output" not in said
    works("TSM_checkpoint.py", repo / "demo" / "tsm_thin.pth", "--output", "default.json", cwd=own)
    (own / "default.json").write_text("\ufeff" + (own / "default.json").read_text(), encoding="utf-8")  # as editors leave it
    assert read_protocol(str(own / "default.json")) == SSV2


def test_a_config_that_samples_other_frames_than_its_network_has_segments(own, works, fails):
    """mmaction2 1.x's 16-segment config for Something-Something V2 does."""
    (own / "c.py").write_text(config(sampled=8, twice=", twice_sample=True", crop="ThreeCrop", size=256))
    line = fails("TSM_checkpoint.py", "own.pth", "--config", "c.py", cwd=own)
    assert "c.py samples 8 frames for 16 segments (--segments 16 tests it on 16)" in line
    said = works("TSM_checkpoint.py", "own.pth", "--config", "c.py", "--segments", 16, "--output", "protocol.json", cwd=own)
    assert "note: c.py samples 8 frames for 16 segments; by --segments it is tested on 16" in said
    assert "shape: 1 96 3 256 256" in said
    said = works("pytorch2onnx.py", "c.py", "own.pth", "--protocol", "protocol.json", "--output-file", "a.onnx", cwd=own)
    assert "input [1, 96, 3, 256, 256], output [6, 10] per view" in said


@pytest.mark.parametrize("changes, fusion", [
    ({}, ("prob", "c.py")), ({"average": "score"}, ("score", "c.py")), ({"average": None}, ("prob", "mmaction2's default")),
])
def test_the_fusion_is_the_config_s(own, thin, monkeypatch, changes, fusion):
    monkeypatch.chdir(own)
    average = changes.get("average", "prob")
    (own / "c.py").write_text(config().replace("average_clips='prob'", "average_clips=%r" % average))
    assert fusion_of(facts_of("own.pth", thin, {}, "c.py")) == fusion


# The table of published files.


def test_a_published_file_is_what_the_table_says_if_its_sha256_is_right(thin, tmp_path, monkeypatch):
    """A stand-in for a row: the thin network under the digest that its file has."""
    reader.save(str(tmp_path / "a.pth"), thin, {})
    digest = hashlib.sha256((tmp_path / "a.pth").read_bytes()).hexdigest()[:8]
    row = published.Row("x-%s.pth" % digest, "TSM ResNet-50", SEGMENTS, CLASSES, "Jester", "ten", 97.2)
    monkeypatch.setattr(published, "rows", lambda: [row])
    (tmp_path / "a.pth").rename(tmp_path / ("b-%s.pth" % digest))
    found = facts_of(str(tmp_path / ("b-%s.pth" % digest)), thin, {})
    assert found.protocol == SSV2._replace(classes=CLASSES, segments=SEGMENTS, **PIPELINES["ten"])
    assert found.origins["segments"] == "the table of published files" and found.notes == [] == found.conflicts
    with (tmp_path / ("b-%s.pth" % digest)).open("ab") as file:
        file.write(b"x")
    found = facts_of(str(tmp_path / ("b-%s.pth" % digest)), thin, {})
    assert found.protocol.segments == 8 and "is not the published x-%s.pth: its SHA-256 begins with" % digest in found.notes[0]
    with pytest.raises(UserError, match="16 segments by --segments, .* but the table of published files says 8 segments"):
        monkeypatch.setattr(published, "rows", lambda: [row._replace(segments=8)])
        (tmp_path / ("b-%s.pth" % digest)).write_bytes((tmp_path / ("b-%s.pth" % digest)).read_bytes()[:-1])
        check_supported(facts_of(str(tmp_path / ("b-%s.pth" % digest)), thin, {}, segments=16), "b.pth")


def test_the_table(works, fails, tmp_path):
    rows = published.rows()
    assert len({row.digest for row in rows}) == len(rows) and all(row.pipeline in PIPELINES for row in rows)
    listed = works("TSM_checkpoint.py", "--list", cwd=tmp_path).splitlines()
    assert all(sum(line.split()[-1] == row.file for line in listed) == 1 for row in rows) and max(map(len, listed)) <= 100
    place = listed.index("  72.68  tsm_k400_pretrained_r50_1x1x8_25e_hmdb51_rgb_20210630-10c74ee5.pth")
    assert listed[place - 1] == "HMDB51: TSM ResNet-50, 8 segments, 51 classes, test centre"
    for name in ("official", "tsm_r50_1x1x8_50e_jester_rgb-c799267e", "tsm_r50_1x1x8_50e_jester_rgb-c799267e.pth"):
        assert published.address(published.by_name(name)).endswith(".pth")
    gone = fails("TSM_checkpoint.py", "tsm_r50_1x1x8_50e_sthv2_rgb_20200912-033c4ac6", cwd=tmp_path)
    assert "its address is not known; fetch it with a browser" in gone
    assert "tsm_x.pth: no such file, nor a name of --list" in fails("TSM_checkpoint.py", "tsm_x.pth", cwd=tmp_path)
    assert "give a checkpoint, or --list" in fails("TSM_checkpoint.py", cwd=tmp_path, status=2)
    assert published.by_sha256("032aa4da" + "0" * 56).file == published.OFFICIAL and published.by_sha256("f" * 64) is None
    ours = published.row_facts(published.by_name("official"))
    assert {name: ours[name] for name in SSV2._fields} == SSV2._asdict()


# The whole chain.


@pytest.fixture(scope="module")
def chained(repo, works, thin, tmp_path_factory):
    """(folder, what run_all.sh printed) on the user's checkpoint and four of the demo's videos."""
    folder = tmp_path_factory.mktemp("own")
    reader.save(str(folder / "own.pth"), thin, {})
    (folder / "c.py").write_text(config())
    (folder / "videos").mkdir()
    rows = []
    for number, source in enumerate(sorted((repo / "demo/videos").iterdir())[:4]):
        shutil.copy(str(source), str(folder / "videos"))
        rows.append("%s,gesture %d\n" % (source.name, 9 - number))
    (folder / "own.csv").write_text("".join(rows))
    (folder / "names").write_text("".join("gesture %d\n" % number for number in range(CLASSES)))

    works("TSM_dataset.py", "--annotations", "own.csv", "--labels", "names", "--videos", "videos", cwd=folder)
    return folder, works(
        "run_all.sh", 1, "--device", "cpu", "--exporter", "builtin", "--checkpoint", "own.pth", "--config", "c.py", "--data_root", "videos",
        "--ann_file", "own_list_videos.txt", "--labels", "own_labels.json", "--loop", 1, "--work_dir", "work", cwd=folder,
        env={"PYTHON": sys.executable})


def test_the_chain_runs_on_a_checkpoint_of_one_s_own(chained):
    """10 classes, 16 segments, one centre crop; checked against PyTorch on the tensors that it made."""
    folder, said = chained
    report = json.loads((folder / "work/report.json").read_text())
    assert report["fusion"] == "prob" and report["accuracy"]["videos"] == 4 and report["published"] is None
    protocol = protocol_from(report["protocol"], "report.json")
    assert protocol == SSV2._replace(classes=CLASSES, segments=SEGMENTS, **PIPELINES["centre"])
    assert "--shape 1 16 3 224 224" in said and said.index("TSM_checkpoint.py") < said.index("TSM_preprocess.py")
    net, _ = load_network(str(folder / "own.pth"), str(folder / "c.py"))
    labels = []
    for number in range(4):
        tensor = np.fromfile(str(folder / "work/own/preprocess_bin" / ("%d.bin" % number)), np.float32)
        expected = fuse(scores(net, tensor.reshape((1,) + protocol.video_shape)), protocol.views, "prob")[0]
        found = np.loadtxt(str(folder / "work/inference_result/out" / ("%d_0.txt" % number)))
        assert found.shape == (CLASSES,) and np.abs(found - expected).max() < 1e-5
        labels.append(9 - number)
    assert (folder / "work/own/sthv2.info").read_text() == "".join("%d %d\n" % item for item in enumerate(labels))
    assert "gesture" in (folder / "work/predictions.csv").read_text()


def test_what_does_not_fit_together_is_one_line(chained, fails, tmp_path):
    folder, _ = chained
    work = folder / "work"
    line = fails("TSM_preprocess.py", "--data_root", "videos", "--ann_file", "own_list_videos.txt", "--protocol", "work/own/sthv2.info",
                 "--output_dir", tmp_path / "a", cwd=folder)
    assert "sthv2.info: not JSON" in line
    (tmp_path / "list.txt").write_text("a.webm 10\n")
    line = fails("TSM_preprocess.py", "--data_root", "videos", "--ann_file", tmp_path / "list.txt", "--protocol", "work/protocol.json",
                 "--output_dir", tmp_path / "a", cwd=folder)
    assert "list.txt, line 1: label 10 is not one of the 10 classes" in line
    (tmp_path / "p.json").write_text(json.dumps(SSV2._asdict()))
    line = fails("modify_onnx.py", "-m1", "tsm_bs1.onnx", "-m2", tmp_path / "x.onnx", "--protocol", tmp_path / "p.json", cwd=work)
    assert "was exported for another protocol" in line and "segments 16, not 8" in line and not (tmp_path / "x.onnx").exists()
    line = fails("pytorch2onnx.py", "own.pth", "--protocol", tmp_path / "p.json", "--output-file", tmp_path / "x.onnx", cwd=folder)
    assert "own.pth: is TSM ResNet-50, but its weights are not those of TSM" in line
    assert "float32 [10, 256] here, float32 [174, 256] in this network" in line
    line = fails("pytorch2onnx.py", "c.py", "own.pth", "--shape", 1, 48, 3, 256, 256, "--output-file", tmp_path / "x.onnx", cwd=folder,
                 status=2)
    assert "own.pth takes BATCH 16 3 224 224 (16 segments, sampling uniform" in line
    line = fails("TSM_stream.py", "--model", "tsm_new_bs1.onnx", "--data_root", folder / "videos", "--ann_file",
                 tmp_path / "list.txt", "--output", tmp_path / "a", "--output_dirname", "out", cwd=work)
    assert "list.txt, line 1: label 10 is not one of the 10 classes" in line


def test_tensors_and_info_of_another_protocol_are_refused(chained, fails, thin_onnx, tmp_path):
    """The 174-class model on the 10-class tensors, and its info file with 10-class results."""
    folder, _ = chained
    line = fails("TSM_infer.py", "--model", thin_onnx, "--input", "own/preprocess_bin", "--output", tmp_path, "--output_dirname", "o",
                 "--outfmt", "TXT", cwd=folder / "work")
    assert "not of the protocol of" in line and "segments 16, not 8" in line and "classes" not in line
    (tmp_path / "sthv2.info").write_text("0 173\n1 3\n2 3\n3 3\n")
    line = fails("TSM_postprocess.py", "--result_path=inference_result/out_summary.json", "--info_path=%s" % (tmp_path / "sthv2.info"),
                 cwd=folder / "work")
    assert "0_0.txt" in line and "174" in line


def test_tensors_are_held_against_a_model_by_what_pixels_depend_on(capsys):
    """Of uint8, which the model normalises, not by the colours either."""
    for dtype, changes, says in (
            ("float32", {"shift_div": 4}, ""), ("float32", {"classes": 10}, "note: m.json is of 174 classes, m.onnx of 10"),
            ("uint8", {"mean": (1.0, 2.0, 3.0)}, ""), ("float32", {"mean": (1.0, 2.0, 3.0)}, None), ("uint8", {"size": 224}, None)):
        inputs = Inputs([], {}, "m.json", SSV2, dtype)
        model = SimpleNamespace(path="m.onnx", protocol=SSV2._replace(**changes), dtype=np.dtype(dtype))
        if says is None:
            with pytest.raises(UserError, match="m.json: its tensors are not of the protocol of m.onnx .%s" % list(changes)[0]):
                check_protocol(inputs, model)
        else:
            check_protocol(inputs, model)
            assert capsys.readouterr().out.startswith(says)


def test_other_scripts_follow_the_model(chained, works):
    folder, _ = chained
    video = sorted((folder / "videos").iterdir())[0]
    for flags in ([], ["--views", 1]):
        said = works("TSM_predict.py", "--model", "work/tsm_new_bs1.onnx", *flags, video, cwd=folder)
        assert video.name in said and "gesture" in said and ("centre view alone" in said) == bool(flags)

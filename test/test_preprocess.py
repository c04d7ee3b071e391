"""TSM_preprocess.py: the tensors are mmaction2's to the bit, and no more work is done than they take."""

import hashlib
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import xxhash
from clips import DATA, clip_of

from tsm import cli
from tsm.protocol import SSV2, frame_indices
from tsm.video import frames as frames_module
from tsm.video.clips import fill, normalisation
from tsm.video.frames import JPEG_DECODER

GOLDEN = json.loads((DATA / "golden.json").read_text())
FRAMES = sorted(name for name in GOLDEN if not name.endswith(".webm"))


@pytest.fixture(scope="module")
def made(works, tmp_path_factory):
    """made(dtype) -> output folder for every golden clip of frames, made by the script with two workers."""
    folder = tmp_path_factory.mktemp("golden")
    for name in FRAMES:
        clip_of(name.split("_")[0], int(name.split("_")[1]), str(folder / "frames" / name))
    (folder / "list.txt").write_text("".join("%s %s %d\n" % (name, name.split("_")[1], label)
                                             for label, name in enumerate(FRAMES)))

    def made(dtype):
        if not (folder / dtype).exists():
            works("TSM_preprocess.py", "--data_root", "frames", "--ann_file", "list.txt", "--output_dir", dtype,
                  "--dtype", dtype, "--num_worker", 2, cwd=folder)
        return folder / dtype

    return made


def digests(folder):
    """{source: SHA-256 of its tensor}, through the manifest."""
    samples = json.loads((folder / "sthv2.json").read_text())["samples"]
    return {sample["source"]: hashlib.sha256((folder / sample["file"]).read_bytes()).hexdigest() for sample in samples}


def test_float32_from_frames_is_bit_equal_to_mmaction2(made):
    assert digests(made("float32")) == {name: GOLDEN[name] for name in FRAMES}


def test_float32_from_videos_is_bit_equal_to_mmaction2(works, tmp_path):
    names = sorted(set(GOLDEN) - set(FRAMES))
    (tmp_path / "list.txt").write_text("".join(name + " 0\n" for name in names))
    works("TSM_preprocess.py", "--data_root", DATA, "--ann_file", "list.txt", cwd=tmp_path)
    assert digests(tmp_path / "sthv2") == {name: GOLDEN[name] for name in names}


def test_uint8_normalised_is_float32(made):
    table = normalisation(SSV2)
    for number in range(len(FRAMES)):
        bytes_, floats = (np.fromfile(str(made(dtype) / "preprocess_bin" / ("%d.bin" % number)), dtype).reshape(48, 3, -1)
                          for dtype in ("uint8", "float32"))
        for channel in range(3):
            assert np.array_equal(table[channel][bytes_[:, channel]], floats[:, channel])


def test_the_table_is_the_normalisation():
    exact = (np.arange(256) - np.array(SSV2.mean)[:, None]) / np.array(SSV2.std)[:, None]
    assert np.allclose(normalisation(SSV2), exact, rtol=1e-6, atol=1e-6)


def test_files_and_manifest_are_as_documented(made):
    folder = made("uint8")
    manifest = json.loads((folder / "sthv2.json").read_text())
    assert (folder / "sthv2.info").read_text() == "".join("%d %d\n" % (i, i) for i in range(len(FRAMES)))
    assert manifest["protocol"] == {
        "segments": 8, "sampling": "twice", "crops": "three", "short_side": 256, "size": 256, "classes": 174,
        "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "shift_div": 8, "shift": "bi", "dtype": "uint8",
        "layout": "NCHW", "shape": [48, 3, 256, 256]}
    assert manifest["list"]["videos"] == len(FRAMES) and manifest["skipped"] == []
    assert manifest["versions"]["opencv"] == cv2.__version__ and manifest["versions"]["jpeg decoder"] == JPEG_DECODER
    for number, sample in enumerate(manifest["samples"]):
        tensor = (folder / sample["file"]).read_bytes()
        assert sample == {
            "id": number, "source": FRAMES[number], "label": number, "file": "preprocess_bin/%d.bin" % number,
            "bytes": 48 * 3 * 256 * 256, "xxh3_128": xxhash.xxh3_128_hexdigest(tensor)}
        assert len(tensor) == sample["bytes"]
    assert sorted(path.name for path in folder.iterdir()) == [
        ".journal", ".lock", "preprocess_bin", "sthv2.info", "sthv2.json"]


def test_a_range_keeps_the_numbers_of_the_whole_list(made, works):
    folder = made("uint8").parent
    works("TSM_preprocess.py", "--data_root", "frames", "--ann_file", "list.txt", "--output_dir", "some", "--dtype", "uint8",
          "--range", "3:5", cwd=folder)
    assert sorted(path.name for path in (folder / "some" / "preprocess_bin").iterdir()) == ["3.bin", "4.bin"]
    assert (folder / "some" / "sthv2.info").read_text() == "3 3\n4 4\n"
    whole, some = (json.loads((folder / name / "sthv2.json").read_text()) for name in ("uint8", "some"))
    assert some["samples"] == whole["samples"][3:5] and some["list"] == whole["list"]


def test_a_log_gets_a_line_for_every_tenth(capsys):
    with cli.progress(25, "preprocess", "clip") as tick:
        for _ in range(25):
            tick()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 10 and said[3] == "preprocess: 40 % (10 of 25)"


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 9, 15, 16, 45, 300])
def test_frame_indices_are_the_middles_then_the_starts(frames):
    indices = frame_indices(frames, SSV2)
    assert indices[8:] == [k * frames // 8 for k in range(8)]
    assert indices[:8] == [(2 * k + 1) * frames // 16 for k in range(8)]


@pytest.mark.parametrize("frames, distinct", [(1, 1), (8, 8), (300, 16)])
def test_each_distinct_frame_is_decoded_and_resized_once(monkeypatch, tmp_path, frames, distinct):
    clip_of("square", frames, str(tmp_path / "clip"))
    calls = []

    def count(module, name):
        function = getattr(module, name)

        def counted(*args, **options):
            calls.append(name)
            return function(*args, **options)

        monkeypatch.setattr(module, name, counted)

    count(frames_module, "decode_picture")
    count(cv2, "resize")
    fill(str(tmp_path / "clip"), frames, SSV2, None, np.empty(SSV2.video_shape, np.uint8))
    assert calls.count("decode_picture") == calls.count("resize") == distinct


def test_it_starts_without_what_takes_seconds_to_import(repo):
    program = ("import sys; sys.path.insert(0, %r); import TSM_preprocess; "
               "sys.exit(' '.join({'torch', 'onnx', 'onnxruntime', 'openvino', 'nncf', 'ray'} & set(sys.modules)) or 0)" % str(repo))
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 0, done.stderr

"""Videos of the kinds that seeking and counting by the container get wrong: read in order, or refused with the way out.

The clips in data/kinds show one even grey per frame, frame n brighter than frame n-1, so a tensor tells which frames it is of.
They were made with FFmpeg 9: color=gray:size=64x48:rate=12,geq=lum='30+3*N':cb=128:cr=128, 60 frames, as
whole.mp4 (libx264 -g 24), open_gop.mp4 (libx264, open-gop=1:keyint=12:bframes=3:b-adapt=0), open_gop.avi (mpeg4 -g 12 -bf 2),
open_gop_hevc.mp4 (libx265, open-gop=1:keyint=12:bframes=3:b-adapt=0), live.webm (libvpx-vp9, remuxed with -live 1).
"""

import json
import os
import shutil
import struct

import cv2
import numpy as np
import pytest
from clips import DATA, VIDEOS

from tsm.cli import Corrupt
from tsm.protocol import SSV2, frame_indices
from tsm.video import decode
from tsm.video.clips import fill
from tsm.video.decode import count_frames, read_video
from tsm.video.frames import strict

KINDS = DATA / "kinds"
LENGTH = 60  # frames
SCALE = 1024  # edit list units per frame, of whole.mp4's track: 12288 per second


def edited(path, start, length=LENGTH):
    """Give a copy of whole.mp4 an edit list that plays `length` frames from frame `start` on."""
    data = bytearray((KINDS / "whole.mp4").read_bytes())
    place = data.index(b"elst")
    entries, duration, media_time = struct.unpack(">IIi", data[place + 8 : place + 20])
    assert entries == 1
    struct.pack_into(">Ii", data, place + 12, duration * length // LENGTH, media_time + start * SCALE)
    path.write_bytes(bytes(data))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of all kinds."""
    folder = tmp_path_factory.mktemp("kinds")
    for path in KINDS.iterdir():
        shutil.copy(str(path), str(folder))
    for name, start, length in (("trim1", 1, LENGTH), ("trim15", 15, LENGTH), ("trim30", 30, LENGTH), ("end", 0, 17),
                                ("both", 5, 40)):
        edited(folder / (name + ".mp4"), start, length)
    (folder / "stream.mp4").write_bytes(b"G" + bytes(187) + b"G" + bytes(2000))
    return folder


PLAY = {"whole.mp4": range(60), "open_gop.mp4": range(60), "open_gop.avi": range(60), "open_gop_hevc.mp4": range(60),
        "trim1.mp4": range(1, 60), "trim15.mp4": range(15, 60), "trim30.mp4": range(30, 60), "end.mp4": range(17),
        "both.mp4": range(5, 45), "live.webm": range(60)}
REFUSED = {"stream.mp4": "ffmpeg -i root/stream.mp4 -an -c:v libx264"}


def numbers(pictures):
    """Which frame each even grey picture is, from its brightness."""
    return [int(round(((float(picture.mean()) - 128) / 255 * 219 + 126 - 30) / 3)) for picture in pictures]


@pytest.mark.parametrize("name", sorted(PLAY))
def test_the_frames_that_play_are_taken_in_order(works, root, tmp_path, name):
    (tmp_path / "list.txt").write_text(name + " 3\n")
    works("TSM_preprocess.py", "--data_root", root, "--ann_file", "list.txt", "--dtype", "uint8", cwd=tmp_path)
    tensor = np.fromfile(str(tmp_path / "sthv2/preprocess_bin/0.bin"), np.uint8).reshape((3, 16) + SSV2.frame_shape)
    expected = [PLAY[name][index] for index in frame_indices(len(PLAY[name]), SSV2)]
    assert [numbers(views) for views in tensor] == [expected] * 3


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_read_in_order_is_refused_with_the_way_out(fails, root, tmp_path, name):
    os.symlink(str(root), str(tmp_path / "root"))
    (tmp_path / "list.txt").write_text(name + " 3\n")
    line = fails("TSM_preprocess.py", "--data_root", "root", "--ann_file", "list.txt", "--dtype", "uint8", cwd=tmp_path)
    assert "line 1: %s: " % name in line and REFUSED[name] in line and not (tmp_path / "sthv2/sthv2.json").exists()


@pytest.mark.parametrize("rawframes", [[], ["--rawframes", "frames"]])
def test_tsm_dataset_and_tsm_preprocess_agree_on_what_is_usable(works, repo, root, tmp_path, rawframes):
    labels = json.loads((repo / "demo/annotations/something-something-v2-labels.json").read_text())
    (tmp_path / "root").mkdir()
    renamed = {}  # file in root -> kind; names differ in more than their suffix, and suffixes may be in upper case
    for kind in sorted(PLAY) + sorted(REFUSED):
        stem, suffix = os.path.splitext(kind)
        name = kind if stem != "open_gop" else "open_gop_of_%s%s" % (suffix[1:], suffix.upper())
        shutil.copy(str(root / kind), str(tmp_path / "root" / name))
        renamed[name] = kind
    entries = [{"id": name.rsplit(".", 1)[0], "template": next(iter(labels))} for name in renamed]
    (tmp_path / "validation.json").write_text(json.dumps(entries))
    said = works("TSM_dataset.py", "--annotations", "validation.json", "--labels",
                 repo / "demo/annotations/something-something-v2-labels.json", "--videos", "root", "--on-error", "skip",
                 *rawframes, cwd=tmp_path)
    lines = (tmp_path / "sthv2_val_list_videos.txt").read_text().splitlines()
    assert {renamed[line.split()[0]] for line in lines} == set(PLAY)
    assert said.count("cannot be used: ") == len(REFUSED) == said.count("ffmpeg -i ")
    works("TSM_preprocess.py", "--data_root", "root", "--ann_file", "sthv2_val_list_videos.txt", "--dtype", "uint8",
          "--range", "0:2", cwd=tmp_path)
    if rawframes:
        for line in (tmp_path / "sthv2_val_list_rawframes.txt").read_text().splitlines():
            name, count, _ = line.split()
            kind = next(renamed[video] for video in renamed if video.rsplit(".", 1)[0] == name)
            files = sorted((tmp_path / "frames" / name).iterdir())
            assert len(files) == int(count) and numbers(cv2.imread(str(file)) for file in files) == list(PLAY[kind])


@pytest.mark.parametrize("name", sorted(PLAY))
def test_opencv_reads_the_same_frames_where_decord_is_missing(monkeypatch, root, name):
    monkeypatch.setattr(decode, "decord", None)
    monkeypatch.setattr(decode, "av", None)
    with strict():
        assert numbers(frame for _, frame in read_video(str(root / name), range)) == list(PLAY[name])
        assert count_frames(str(root / name)) == len(PLAY[name])


@pytest.mark.parametrize("width, height", [(2, 2), (8, 6), (16, 16), (48, 32), (50, 20), (60, 100)])
def test_tiny_videos_are_videos(monkeypatch, tmp_path, width, height):
    """decord hands out rows of few pixels with their padding."""
    path, random = str(tmp_path / "tiny.avi"), np.random.RandomState(0)
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (width, height))
    for _ in range(9):
        writer.write(random.randint(0, 256, (height, width, 3), np.uint8))
    writer.release()
    tensors = np.empty((2,) + SSV2.video_shape, np.uint8)
    fill(path, None, SSV2, None, tensors[0])
    monkeypatch.setattr(decode, "decord", None)
    monkeypatch.setattr(decode, "av", None)
    fill(path, None, SSV2, None, tensors[1])
    assert np.array_equal(tensors[0], tensors[1]) and tensors[0].std() > 5


@pytest.mark.parametrize("name", ["whole.mp4", "open_gop.mp4", "open_gop.avi", "live.webm", "video_a.webm"])
def test_damage_is_told_in_the_user_s_terms(tmp_path, name):
    """No assertion, source file, address or index of a library is shown."""
    data = ((KINDS if (KINDS / name).exists() else DATA) / name).read_bytes()
    path, refused = tmp_path / name, 0
    out = np.empty(SSV2.video_shape, np.uint8)
    for length in range(1, len(data), len(data) // 12):
        path.write_bytes(data[:length])
        try:
            fill(str(path), None, SSV2, None, out)
        except Corrupt as error:
            refused += 1
            for word in ("Check failed", "Assertion", ".cc:", ".cpp:", "@ 0x", "DECORD", "out of bounds", "Traceback", "Error("):
                assert word not in str(error)
            assert "\n" not in str(error)
    assert refused > 8


@pytest.mark.parametrize("name", ["视频 一.webm", "a\u00a0b.webm", "全\u3000角.webm", "Ünïcode.WEBM"])
@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}])
def test_names_of_any_script_are_names_in_any_locale(works, tmp_path, name, locale):
    (tmp_path / "root").mkdir()
    shutil.copy(str(VIDEOS[0]), str(tmp_path / "root" / name))
    (tmp_path / "list.txt").write_text("%s 7\n" % name, encoding="utf-8")
    works("TSM_preprocess.py", "--data_root", "root", "--ann_file", "list.txt", "--dtype", "uint8", cwd=tmp_path, env=locale)
    assert (tmp_path / "sthv2/sthv2.info").read_text() == "0 7\n"

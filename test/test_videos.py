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
import subprocess
import sys

import cv2
import numpy as np
import pytest
from clips import DATA, VIDEOS, filmed

from tsm.cli import Corrupt
from tsm.protocol import SSV2, frame_indices
from tsm.video import decode
from tsm.video.clips import fill
from tsm.video.decode import count_frames, read_video, timeline
from tsm.video.frames import strict
from tsm.video.windows import WHOLE, strips, windowed

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
REFUSED, REMEDY = "stream.mp4", "ffmpeg -i root/stream.mp4 -an -c:v libx264"


def numbers(pictures):
    """Which frame each even grey picture is, from its brightness."""
    return [int(round(((float(picture.mean()) - 128) / 255 * 219 + 126 - 30) / 3)) for picture in pictures]


def test_the_frames_that_play_are_taken_in_order(works, root, tmp_path):
    (tmp_path / "list.txt").write_text("".join(name + " 3\n" for name in PLAY))
    works("TSM_preprocess.py", "--data_root", root, "--ann_file", "list.txt", "--dtype", "uint8", cwd=tmp_path)
    for number, (name, plays) in enumerate(PLAY.items()):
        tensor = np.fromfile(str(tmp_path / ("sthv2/preprocess_bin/%d.bin" % number)), np.uint8).reshape((3, 16) + SSV2.frame_shape)
        expected = [plays[index] for index in frame_indices(len(plays), SSV2)]
        assert [numbers(views) for views in tensor] == [expected] * 3, name


def test_what_cannot_be_read_in_order_is_refused_with_the_way_out(fails, root, tmp_path):
    os.symlink(str(root), str(tmp_path / "root"))
    (tmp_path / "list.txt").write_text(REFUSED + " 3\n")
    line = fails("TSM_preprocess.py", "--data_root", "root", "--ann_file", "list.txt", "--dtype", "uint8", cwd=tmp_path)
    assert "line 1: %s: " % REFUSED in line and REMEDY in line and not (tmp_path / "sthv2/sthv2.json").exists()


def test_tsm_dataset_and_tsm_preprocess_agree_on_what_is_usable(works, repo, root, tmp_path):
    """With frames and without: the same lists."""
    labels = json.loads((repo / "demo/annotations/something-something-v2-labels.json").read_text())
    (tmp_path / "root").mkdir()
    renamed = {}  # file in root -> kind; names differ in more than their suffix, and suffixes may be in upper case
    for kind in [*sorted(PLAY), REFUSED]:
        stem, suffix = os.path.splitext(kind)
        name = kind if stem != "open_gop" else "open_gop_of_%s%s" % (suffix[1:], suffix.upper())
        shutil.copy(str(root / kind), str(tmp_path / "root" / name))
        renamed[name] = kind
    entries = [{"id": name.rsplit(".", 1)[0], "template": next(iter(labels)).replace("something", "[something]")} for name in renamed]
    (tmp_path / "validation.json").write_text(json.dumps(entries))
    for rawframes in ([], ["--rawframes", "frames"]):
        said = works("TSM_dataset.py", "--annotations", "validation.json", "--labels",
                     repo / "demo/annotations/something-something-v2-labels.json", "--videos", "root", "--on_error", "skip",
                     *rawframes, cwd=tmp_path)
        lines = (tmp_path / "sthv2_val_list_videos.txt").read_text().splitlines()
        assert {renamed[line.split()[0]] for line in lines} == set(PLAY)
        assert said.count("cannot be used: ") == 1 == said.count("ffmpeg -i ")
    works("TSM_preprocess.py", "--data_root", "root", "--ann_file", "sthv2_val_list_videos.txt", "--dtype", "uint8",
          "--range", "0:2", cwd=tmp_path)
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


def shades(count, size=(64, 48)):
    """The pictures that numbers() knows."""
    return [np.full((size[1], size[0], 3), int(round((3 * number - 96) * 255 / 219 + 128)), np.uint8) for number in range(count)]


OTHERS = {"a.mpg": "mpeg2video", "b.ts": "libx264", "c.mts": "libx264", "d.M2TS": "libx264", "e.wmv": "wmv2", "f.3gp": "libx264",
          "g.flv": "libx264", "i.vob": "mpeg2video", "j.mpeg": "mpeg1video", "k.asf": "wmv2", "l.avi": "libx264", "m.mov": "libx264",
          "n.mkv": "ffv1", "o.m4v": "libx264"}


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Videos of 40 frames, 25 a second, of the kinds that camcorders and the web leave; a raw stream, which has no times."""
    folder = tmp_path_factory.mktemp("others")
    for name, codec in OTHERS.items():
        filmed(folder / name, shades(40), 25, codec)
    filmed(folder / "h.gif", shades(40), 25, "gif", pix_fmt="gray")
    filmed(folder / "p.h264", shades(40), 25, "libx264")
    return folder


@pytest.mark.parametrize("name", sorted(OTHERS) + ["h.gif", "p.h264"])
def test_videos_of_camcorders_and_the_web_are_read_frame_by_frame(others, name):
    with strict():
        assert numbers(frame for _, frame in read_video(str(others / name), range)) == list(range(40))
        times = timeline(str(others / name))
    assert times.frames == 40 and times.rate == pytest.approx(25) and np.allclose(np.diff(times.starts), 0.04, atol=1e-9)
    assert [window for window, _ in windowed(str(others / name), 1, 1, SSV2, "uint8")] == [(0, 1), (0.6, 1.6)]


def test_folders_of_such_videos_are_lists(works, others, tmp_path):
    names = sorted(OTHERS) + ["h.gif"]
    (tmp_path / "own.csv").write_text("".join("%s,x\n" % os.path.splitext(name)[0] for name in names))
    works("TSM_dataset.py", "--annotations", "own.csv", "--videos", others, cwd=tmp_path)
    lines = (tmp_path / "own_list_videos.txt").read_text().splitlines()
    assert lines == ["%s 0" % name for name in names]
    works("TSM_preprocess.py", "--data_root", others, "--ann_file", "own_list_videos.txt", "--dtype", "uint8", cwd=tmp_path)


@pytest.mark.parametrize("name, codec", [("v.webm", "libvpx"), ("v.mp4", "libx264"), ("v.gif", "gif"), ("v.avi", "mpeg4")])
def test_a_video_of_one_frame_is_one(tmp_path, name, codec):
    filmed(tmp_path / name, shades(1), 25, codec, pix_fmt="gray" if codec == "gif" else "yuv420p")
    with strict():
        assert numbers(frame for _, frame in read_video(str(tmp_path / name), range)) == [0] and timeline(str(tmp_path / name)).frames == 1
    assert len(list(windowed(str(tmp_path / name), 1, 1, SSV2, "uint8"))) == 1 and next(strips(str(tmp_path / name), [WHOLE]))


@pytest.mark.parametrize("gaps", [[0.2], [0.04] * 39 + [0.84], [0.04, 0.12]])
def test_an_avi_without_timestamps_has_the_times_of_its_places(tmp_path, gaps):
    """Units of a millisecond: a header that says 1000 frames per second."""
    starts = np.append(0, np.cumsum(np.resize(gaps, 60)))
    filmed(tmp_path / "v.avi", shades(60), starts, "libx264")
    with strict():
        times = timeline(str(tmp_path / "v.avi"))
    assert times.starts == pytest.approx(starts, abs=0.01 if len(gaps) == 1 else 0.2)
    assert times.starts[:60] == pytest.approx(starts[:60], abs=0.002)


@pytest.mark.parametrize("name, size, codec, pix_fmt", [
    ("v.mp4", (64, 48), "libx264", "yuv420p"), ("v.webm", (321, 241), "libvpx", "yuv420p"), ("v.mp4", (66, 50), "libx264", "yuv444p"),
    ("v.mp4", (64, 48), "libx264", "yuv422p"), ("v.mp4", (64, 48), "libx264", "yuv420p10le"), ("v.avi", (64, 48), "mjpeg", "yuvj420p"),
    ("v.mkv", (35, 27), "ffv1", "bgr0")])
def test_pyav_gives_the_bytes_of_decord(monkeypatch, tmp_path, name, size, codec, pix_fmt):
    pytest.importorskip("decord")
    noise = np.random.RandomState(0)
    pictures = [cv2.GaussianBlur(noise.randint(0, 256, size[::-1] + (3,), np.uint8), (0, 0), 2) for _ in range(9)]
    filmed(tmp_path / name, pictures, 25, codec, pix_fmt=pix_fmt)
    with strict():
        short = list(read_video(str(tmp_path / name), range))
        assert decode._short(str(tmp_path / name)) is not None
        monkeypatch.setattr(decode, "decord", None)
        long = list(read_video(str(tmp_path / name), range))
    assert len(short) == 9 and all(a == b and np.array_equal(one, other) for (a, one), (b, other) in zip(short, long))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Full HD, 120 frames, which are 750 MB, in a file of a few KB."""
    path = tmp_path_factory.mktemp("wide") / "v.mp4"
    filmed(path, shades(60, (1920, 1080)) * 2, 30, "libx264", options={"preset": "ultrafast"})
    return path


def test_decoding_waits_while_the_consumer_does(monkeypatch, wide):
    decoded, every = [], decode._pictures_by_av
    monkeypatch.setattr(decode, "_pictures_by_av", lambda name: (decoded.append(1) or one for one in every(name)))
    windows = windowed(str(wide), 0.5, 0.5, SSV2, "uint8")
    for number in (1, 2, 3):
        next(windows)
        assert len(decoded) <= 15 * number


PEAK = """
import resource, sys
from tsm.predict.captions import write_captions
from tsm.protocol import SSV2
from tsm.video.clips import fill
from tsm.video.decode import extract
from tsm.video.windows import WHOLE, strips, windowed
import numpy as np
path, out = sys.argv[2], np.empty(SSV2.video_shape, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[1] == "windows":
    assert len(list(window for window, _ in windowed(path, 1, 1, SSV2, "uint8"))) == 4
elif sys.argv[1] == "whole":
    fill(path, None, SSV2, None, out)
elif sys.argv[1] == "strip":
    next(strips(path, [WHOLE]))
elif sys.argv[1] == "frames":
    assert extract(path, path + ".frames") == 120
else:
    write_captions(path, path + ".out.mp4", [(0, float("inf"), "label")])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("work, most", [("windows", 150), ("whole", 150), ("strip", 150), ("frames", 150),
                                        pytest.param("captions", 450, marks=pytest.mark.all)])
def test_memory_is_that_of_what_is_kept_whatever_the_video(repo, wide, work, most):
    """MB beyond what libraries take; a reader ahead of its consumer holds 750."""
    done = subprocess.run([sys.executable, "-c", PEAK, work, str(wide)], cwd=str(repo), stdout=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 0 and int(done.stdout) < most


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
@pytest.mark.parametrize("short", [True, False])
def test_damage_is_told_in_the_user_s_terms(monkeypatch, tmp_path, name, short):
    """No assertion, source file, address or index of a library is shown."""
    if not short:
        monkeypatch.setattr(decode, "SHORT_FILE", 0)
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


def test_an_avi_that_is_cut_short_is_refused_even_between_two_frames(tmp_path):
    data = (KINDS / "open_gop.avi").read_bytes()
    for length in range(len(data) // 2, len(data) - 1, 500):
        (tmp_path / "v.avi").write_bytes(data[:length])
        with pytest.raises(Corrupt, match="is cut short: it has %d of its %d bytes" % (length, len(data))), strict():
            count_frames(str(tmp_path / "v.avi"))


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}])
def test_names_of_any_script_are_names_in_any_locale(works, tmp_path, locale):
    names = ["视频 一.webm", "a\u00a0b.webm", "全\u3000角.webm", "Ünïcode.WEBM"]
    (tmp_path / "root").mkdir()
    for name in names:
        shutil.copy(str(VIDEOS[0]), str(tmp_path / "root" / name))
    (tmp_path / "list.txt").write_text("".join("%s 7\n" % name for name in names), encoding="utf-8")
    works("TSM_preprocess.py", "--data_root", "root", "--ann_file", "list.txt", "--dtype", "uint8", cwd=tmp_path, env=locale)
    assert (tmp_path / "sthv2/sthv2.info").read_text() == "0 7\n1 7\n2 7\n3 7\n"

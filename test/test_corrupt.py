"""Corrupt inputs of TSM_preprocess.py: one line that names the list's line and the file, or a skip that is on record."""

import contextlib
import faulthandler
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
from clips import VIDEOS, arguments, clip_of, listed
from fuzz import FUZZ, damaged

from tsm import workers
from tsm.cli import Corrupt, Killed, UserError
from tsm.files import write_json
from tsm.protocol import SSV2, protocol_from
from tsm.samples import Clip, check_tensor, checksum, manifest_of, publish, read_info, read_list, read_manifest
from tsm.video.clips import decoded, fill, table_for

VIDEO = VIDEOS[-1]


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped_scan(path):
    """Damage in the compressed data, which libjpeg decodes with a warning."""
    data = bytearray(path.read_bytes())
    data[-40:-10] = bytes(30)
    path.write_bytes(bytes(data))


def absurd_header(path):
    """A JPEG that claims to be 65,500 x 65,500 pixels."""
    data = bytearray(path.read_bytes())
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = (65500).to_bytes(2, "big") * 2
    path.write_bytes(bytes(data))


def resized(path):
    cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (90, 50)))


def thin(path):
    for frame in path.parent.iterdir():
        cv2.imwrite(str(frame), np.zeros((2, 3000, 3), np.uint8))


def numbered_from_0(path):
    for number in range(1, 9):
        (path.parent / ("img_%05d.jpg" % number)).rename(path.parent / ("img_%05d.jpg" % (number - 1)))


@pytest.mark.parametrize("harm, words", [
    (truncated, ["img_00004.jpg", "cut short"]), (flipped_scan, ["decoder", "Corrupt JPEG data"]), (absurd_header, ["img_00004.jpg"]),
    (lambda path: path.write_bytes(b""), ["img_00004.jpg", "empty"]),
    (lambda path: path.write_bytes(b"GIF89a" + bytes(500)), ["img_00004.jpg", "no JPEG"]),
    (lambda path: path.unlink(), ["img_00004.jpg is missing", "8 frames"]),
    (lambda path: (path.unlink(), path.mkdir()), ["img_00004.jpg", "directory"]),
    (resized, ["img_00004.jpg", "90x50", "96x54"]), (thin, ["3000x2"]),
    (numbered_from_0, ["img_00000.jpg to img_00007.jpg", "--start_index 0"]),
    (lambda path: shutil.copy(str(path), str(path.parent / "img_00009.jpg")), ["img_00009.jpg", "8 frames"]),
    (lambda path: shutil.rmtree(str(path.parent)), ["no such file"]),
])
def test_frames(fails, works, tmp_path, harm, words):
    for name in ("good", "bad"):
        clip_of("landscape", 8, str(tmp_path / "root" / name))
    (tmp_path / "list.txt").write_text("good 8 1\nbad 8 2\n")
    harm(tmp_path / "root/bad/img_00004.jpg")
    arguments = ["--data_root", "root", "--ann_file", "list.txt", "--dtype", "uint8", "--num_worker", 2]
    check(fails, works, tmp_path, arguments, 2, "bad", words)


def test_a_picture_of_too_many_pixels_is_not_decoded(fails, tmp_path):
    """A whole PNG of 25 kB that would take 600 MB."""
    (tmp_path / "root/huge").mkdir(parents=True)
    for number in range(1, 9):
        cv2.imwrite(str(tmp_path / "root/huge" / ("img_%05d.png" % number)), np.zeros((54, 96, 3), np.uint8))
    width, height = 20000, 10000
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
             (b"IDAT", zlib.compress(bytes(1 + width // 8) * height)), (b"IEND", b"")]
    (tmp_path / "root/huge/img_00004.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts))
    (tmp_path / "list.txt").write_text("huge 8 1\n")
    said = fails("TSM_preprocess.py", "--data_root", "root", "--ann_file", "list.txt", "--filename_tmpl", "img_%05d.png", cwd=tmp_path)
    assert "list.txt, line 1: huge: img_00004.png: cannot be decoded" in said


@pytest.mark.parametrize("data, words", [
    (lambda video: video[: len(video) // 2], ["decoder", "e"]),
    (lambda video: video[: len(video) * 9 // 10], ["decoder", "e"]),
    (lambda video: video[:8000] + bytes(4000) + video[12000:], ["decoder", "e"]),
    (lambda video: b"", ["empty"]), (lambda video: bytes(5000), ["video"]), (lambda video: None, ["no such file"]),
])
def test_videos(fails, works, tmp_path, data, words):
    (tmp_path / "root").mkdir()
    shutil.copy(str(VIDEO), str(tmp_path / "root/good.webm"))
    bad = data(VIDEO.read_bytes())
    if bad is not None:
        (tmp_path / "root/bad.webm").write_bytes(bad)
    (tmp_path / "list.txt").write_text("\ngood.webm 1\nbad.webm 2\n")
    arguments = ["--data_root", "root", "--ann_file", "list.txt", "--dtype", "uint8", "--num_worker", 2]
    check(fails, works, tmp_path, arguments, 3, "bad.webm", words)


def check(fails, works, folder, arguments, line, source, words):
    """The run fails in one line with those words; with --on_error skip it goes on, and says so in the manifest."""
    said = fails("TSM_preprocess.py", *arguments, cwd=folder)
    for word in ["list.txt, line %d: %s: " % (line, source)] + words:
        assert word in said
    out = folder / "sthv2"
    assert not (out / "sthv2.json").exists() and not (out / "preprocess_bin/1.bin").exists()
    works("TSM_preprocess.py", *arguments, "--on_error", "skip", cwd=folder)
    manifest = json.loads((out / "sthv2.json").read_text())
    assert [sample["id"] for sample in manifest["samples"]] == [0]
    assert [(entry["line"], entry["source"]) for entry in manifest["skipped"]] == [(line, source)]
    assert manifest["skipped"][0]["reason"] in said
    assert (out / "sthv2.info").read_text() == "0 1\n" and os.listdir(str(out / "preprocess_bin")) == ["0.bin"]


@pytest.mark.parametrize("text, words", [
    (b"", ["no videos in it"]), (b"\n\n", ["no videos in it"]), (b"1\n", ["line 1", "expected"]),
    (b"clip\n", ["line 1", "expected '<file> <label>' or '<folder> <frames> <label>'"]),
    (b"clip,1\n", ["line 1", "expected '<file> <label>'", "clip,1"]), (b"8 1\n", ["line 1", "no such file"]),  # a video called 8
    (b"clip 8 1\nclip.webm 1\n", ["line 2", "expected '<folder> <frames> <label>'", "clip.webm 1"]),
    (b"clip 8 1 1\n", ["line 1: clip 8: no such file"]),  # a folder called `clip 8`
    (b"clip eight 1\n", ["line 1: clip eight: no such file"]), (b"clip 0 1\n", ["line 1", "expected"]),
    (b"clip 8 1\nclip 8 174\n", ["line 2", "label 174"]), (b"clip 8 -1\n", ["line 1", "-1"]),
    (b"clip 8 1" + b"0" * 5000 + b"\n", ["line 1"]), (b"../clip 8 1\n", ["line 1", "../clip"]),
    (b"a/../../clip 8 1\n", ["line 1", "--data_root names"]), (b"/root/../clip 8 1\n", ["line 1", "--data_root names"]),
    (b"/clip 8 1\n", ["line 1", "/clip does not lie under the folder that --data_root names"]), (b"cl\0ip 8 1\n", ["line 1"]),
    (b"cl\xffip 8 1\n", ["line 1: cl\\", "ffip: no such file"]), (b"\xff\xfec\0l\0i\0p\0\n\0", ["line 1"]),
])
def test_lists(fails, tmp_path, text, words):
    clip_of("landscape", 8, str(tmp_path / "root/clip"))
    (tmp_path / "list.txt").write_bytes(text)
    said = fails("TSM_preprocess.py", "--data_root", "root", "--ann_file", "list.txt", cwd=tmp_path)
    assert "list.txt" in said and all(word in said for word in words) and len(said) < 400
    assert not list(tmp_path.rglob("*.bin"))


def test_lists_of_windows_other_encodings_and_names_with_spaces_are_read(fails, works, tmp_path):
    """Of a video such a name is told: no decoder opens it."""
    clip_of("landscape", 8, os.fsdecode(os.fsencode(str(tmp_path)) + b"/root/cl\xe9p"))
    clip_of("landscape", 9, str(tmp_path / "root/my clip 3"))
    script = ("TSM_preprocess.py", "--data_root", "root", "--ann_file", "list.txt", "--dtype", "uint8")
    for text, labels in ((b"\xef\xbb\xbfcl\xe9p 8 1\r\n\r\ncl\xe9p 8 2", (1, 2)),
                         (b"my clip 3 9 4\n%s/root/my clip 3 9 5\n" % os.fsencode(str(tmp_path)), (4, 5))):
        (tmp_path / "list.txt").write_bytes(text)
        works(*script, cwd=tmp_path)
        assert (tmp_path / "sthv2/sthv2.info").read_text() == "0 %d\n1 %d\n" % labels
    assert [sample["source"] for sample in read_manifest(str(tmp_path / "sthv2/sthv2.json"))["samples"]] == ["my clip 3"] * 2
    shutil.copy(str(VIDEO), os.fsdecode(os.fsencode(str(tmp_path)) + b"/root/v\xe9.webm"))
    (tmp_path / "list.txt").write_bytes(b"v\xe9.webm 1\n")
    said = fails(*script, cwd=tmp_path)
    assert "line 1: v\\" in said and "e9.webm: its name is not UTF-8" in said


LISTS = [  # text of a list, what read_list() makes of it: (source, frames, label)
    ("a b.webm 1\nc  d e.webm 2\n", [("a b.webm", None, 1), ("c  d e.webm", None, 2)]),
    ("take 1.mp4 5\ntake 12 6\n", [("take 1.mp4", None, 5), ("take 12", None, 6)]),  # the first line: videos
    ("my clip 12 5\nother 3 6\nclip 2 30 7\n", [("my clip", 12, 5), ("other", 3, 6), ("clip 2", 30, 7)]),  # folders
    ("tab\tbed.webm\t1\n", [("tab\tbed.webm", None, 1)]),
    ("一 二\u3000三.webm 1\n\u00a0x.webm 2\n", [("一 二\u3000三.webm", None, 1), ("\u00a0x.webm", None, 2)]),
    ("ROOT/sub/a b.webm 1\n/REAL/b.webm 2\n", [("sub/a b.webm", None, 1), ("b.webm", None, 2)]),
    ("ROOT/clip 9 1\n", [("clip", 9, 1)]),
]


@pytest.mark.parametrize("text, expected", LISTS)
def test_names_in_lists_may_hold_spaces_and_the_data_root(tmp_path, text, expected):
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to("real")
    text = text.replace("ROOT", str(tmp_path / "root")).replace("/REAL", str(tmp_path / "real"))
    (tmp_path / "list.txt").write_text(text, encoding="utf-8")
    clips = read_list(str(tmp_path / "list.txt"), SSV2, str(tmp_path / "root"))
    assert [tuple(clip[1:]) for clip in clips] == expected


def test_many_lines_are_read_in_seconds(tmp_path):
    (tmp_path / "list.txt").write_text("some/clip 45 17\n" * 200000)
    start = time.process_time()
    clips = read_list(str(tmp_path / "list.txt"), SSV2)
    assert len(clips) == 200000 and clips[-1].line == 200000 and time.process_time() - start < 6


def test_a_decoder_that_crashes_or_hangs_or_is_killed_costs_one_clip(monkeypatch):
    def work(item):
        if item == 3:
            faulthandler.disable()  # pytest's
            os.kill(os.getpid(), signal.SIGSEGV)
        if item == 5:
            time.sleep(600)
        if item == 7:
            raise Corrupt("bad")
        if item == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return item * item

    monkeypatch.setattr(workers, "PATIENCE", 3.0)
    results = dict(workers.each(work, range(20), 2))
    said = {item: str(results[item]) for item in (3, 5, 7, 9)}
    assert said.pop(5).startswith("decoding it takes more than 3 s") and said.pop(9).startswith("its decoder was killed, perhaps for")
    assert said == {3: "the decoder crashed (SIGSEGV)", 7: "bad"}
    assert [item for item, result in results.items() if isinstance(result, Killed)] == [9]
    assert all(results[item] == item * item for item in range(20) if item not in (3, 5, 7, 9))


def test_processes_are_forked_at_once_and_one_that_is_killed_while_it_waits_is_its_item_s_error():
    with contextlib.closing(workers.each(lambda item: item, range(4), 2)) as results:
        there = multiprocessing.active_children()
        assert len(there) == 2
        first, _ = next(results)
        for process in there:
            process.kill()
        found = dict(results)
    assert first in (0, 1) and sorted(found) == sorted(set(range(4)) - {first})
    assert all(isinstance(result, Killed) or result == item for item, result in found.items())
    assert not multiprocessing.active_children()


def test_values_come_in_order_and_an_end_with_an_error_costs_no_value_before_it():
    def work(item):
        for number in range(3):
            if (item, number) == (1, 2):
                os.kill(os.getpid(), signal.SIGKILL)
            if (item, number) == (2, 1):
                raise Corrupt("bad")
            yield number

    found = [(item, value if isinstance(value, int) else type(value)) for item, value in workers.each(work, range(4), 1, unrolled=True)]
    assert found == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, Killed), (2, 0), (2, Corrupt), (3, 0), (3, 1), (3, 2)]


DEADLY = """import tsm.infer.preprocess, tsm.video.clips
fill = tsm.video.clips.fill
def deadly(path, *args):
    if os.path.basename(path) == '1.webm': os.kill(os.getpid(), signal.SIGKILL)
    fill(path, *args)
tsm.infer.preprocess.fill = tsm.video.clips.fill = deadly"""


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_killed_decoder_is_its_clip_s_line_and_no_list_leaves_that_out(fails, works, patched, small_onnx, tmp_path, on_error):
    """As for want of memory, whenever it gets there."""
    listed(tmp_path / "work", small_onnx, 4)
    given = {"TSM_preprocess.py": ("--data_root", "videos", "--ann_file", "list.txt", "--dtype", "uint8"), "TSM_stream.py": arguments()}
    for script, args in given.items():
        more = ("--num_worker", 1, "--on_error", on_error)
        line = fails(patched(script, DEADLY), *args, *more, cwd=tmp_path / "work")
        assert "list.txt, line 2: 1.webm: its decoder was killed" in line and "skip" not in line
        assert not (tmp_path / "work/sthv2/sthv2.json").exists()
        said = works(script, *args, *more, cwd=tmp_path / "work")
        assert ("%d made, %d already right, 0 skipped" % ((1, 3) if on_error == "skip" else (3, 1))) in said
        shutil.rmtree(str(tmp_path / "work/sthv2"))


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_in_memory_a_list_gives_the_same_tensors_and_the_same_refusals(tmp_path, dtype):
    for number in range(6):
        clip_of("odd", 9 + number, str(tmp_path / str(number)))
    (tmp_path / "2/img_00001.jpg").write_bytes(b"no picture")
    (tmp_path / "list.txt").write_text("".join("%d %d %d\n" % (number, 9 + number, number) for number in range(6)))
    clips = read_list(str(tmp_path / "list.txt"), SSV2)
    places = {number: (str(tmp_path / clip.source), clip.frames) for number, clip in enumerate(clips)}
    with contextlib.closing(decoded(places, SSV2, dtype, 2)) as results:
        got = dict(results)  # all are kept: none may be overwritten by a later one
    out = np.empty(SSV2.video_shape, dtype)
    for number in (0, 1, 3, 4, 5):
        fill(str(tmp_path / str(number)), clips[number].frames, SSV2, table_for(dtype, SSV2), out)
        assert got[number].dtype == dtype and np.array_equal(got[number], out)
    assert isinstance(got[2], Corrupt) and "img_00001.jpg: is no JPEG" in str(got[2]) and len(got) == 6
    assert dict(decoded({}, SSV2, dtype, 2)) == {}


def test_in_memory_decoding_waits_for_its_reader(tmp_path):
    clip_of("landscape", 8, str(tmp_path / "clip"))
    stamp = time.time_ns() - 10**9
    os.utime(str(tmp_path / "clip"), ns=(stamp, stamp))
    read = set()
    with contextlib.closing(decoded({number: (str(tmp_path / "clip"), 8) for number in range(12)}, SSV2, "uint8", 2)) as results:
        read.add(next(results)[0])
        time.sleep(0.5)
        shutil.rmtree(str(tmp_path / "clip"))  # what was not decoded by now cannot be any more
        late = [index for index, result in results if isinstance(result, Corrupt)]
    assert len(late) >= 12 - 4  # one was read, one waited in each of two processes, and one was in hand


def fuzzed(tmp_path, works, name, make):
    """Run the script over FUZZ damaged clips that make(folder, chance) leaves there; (clips used, clips skipped)."""
    chance = random.Random(name)
    (tmp_path / "root").mkdir(parents=True)
    columns = [make(tmp_path / "root" / str(number), chance) for number in range(FUZZ)]
    (tmp_path / "list.txt").write_text("".join("%s 0\n" % column for column in columns))
    printed = works("TSM_preprocess.py", "--data_root", "root", "--ann_file", "list.txt", "--dtype", "uint8", "--num_worker",
                    2, "--on_error", "skip", cwd=tmp_path, timeout=1800)
    manifest = read_manifest(str(tmp_path / "sthv2/sthv2.json"))
    used, skipped = len(manifest["samples"]), len(manifest["skipped"])
    assert used + skipped == FUZZ == printed.count("skipped: ") + used
    assert {entry["file"] for entry in manifest["samples"]} == {"preprocess_bin/" + name for name in os.listdir(
        str(tmp_path / "sthv2/preprocess_bin"))}
    shutil.rmtree(str(tmp_path / "sthv2"))
    return used, skipped


def test_fuzzed_frames_and_videos(tmp_path, works):
    sources = [path.read_bytes() for path in VIDEOS]

    def frames(folder, chance):
        clip_of("landscape", 3, str(folder))
        frame = folder / "img_00002.jpg"
        frame.write_bytes(damaged(frame.read_bytes(), chance))
        return "%s 3" % folder.name

    def video(path, chance):
        path.write_bytes(damaged(chance.choice(sources), chance))
        return path.name

    used, skipped = fuzzed(tmp_path / "frames", works, "frames", frames)
    assert skipped > used  # what is used has a flipped bit that decodes
    assert fuzzed(tmp_path / "videos", works, "videos", video)[1] > FUZZ // 10


def test_fuzzed_lists(tmp_path):
    chance, path = random.Random("lists"), tmp_path / "list.txt"
    text = "".join("clips/c%d %d %d\n" % (number, number + 1, number) for number in range(100)).encode()
    refused = 0
    for _ in range(FUZZ):
        path.write_bytes(damaged(text, chance))
        try:
            clips = read_list(str(path), SSV2)
            assert all(0 <= clip.label < 174 and clip.frames != 0 and ".." not in clip.source for clip in clips)
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused > FUZZ // 5


def test_fuzzed_tensors_and_manifests(tmp_path):
    chance = random.Random("tensors")
    tensor = np.random.RandomState(0).randint(0, 256, 20000).astype(np.uint8).tobytes()
    entry = {"bytes": len(tensor), "xxh3_128": checksum(tensor)}
    check_tensor(entry, np.frombuffer(tensor, np.uint8), "0.bin")
    for _ in range(FUZZ):
        with pytest.raises(UserError, match="0.bin: .*TSM_preprocess.py"):
            check_tensor(entry, np.frombuffer(damaged(tensor, chance), np.uint8), "0.bin")
    path = tmp_path / "sthv2.json"
    write_json(str(path), good_manifest(tmp_path), "manifest")
    manifest = path.read_bytes()
    refused = 0
    for _ in range(FUZZ):
        path.write_bytes(damaged(manifest, chance))
        try:
            found = read_manifest(str(path))
            assert protocol_from(found["protocol"], "x").nbytes(found["protocol"]["dtype"]) == found["samples"][0]["bytes"]
        except UserError as error:
            refused += 1
            assert "\n" not in re.sub(r"\\n", "", str(error))
    assert refused > FUZZ // 2


def good_manifest(folder):
    (folder / "list.txt").write_text("a.webm 1\nb.webm 2\n")
    clips = dict(enumerate(read_list(str(folder / "list.txt"), SSV2)))
    return manifest_of(str(folder / "list.txt"), clips, SSV2, "uint8", {"opencv": "5"}, {0: "0" * 32}, {1: Corrupt("empty")})


def test_a_manifest_that_was_changed_or_is_none_is_refused_in_one_line(tmp_path):
    path, manifest = tmp_path / "sthv2.json", good_manifest(tmp_path)
    write_json(str(path), manifest, "manifest")
    assert read_manifest(str(path)) == json.loads(json.dumps(manifest))
    for text in (path.read_text().replace("twice", "dense"), json.dumps(manifest), "[]", "{", ""):
        path.write_text(text)
        with pytest.raises(UserError) as caught:
            read_manifest(str(path))
        assert str(caught.value).startswith(str(path)) and "make it again" in str(caught.value) and "\n" not in str(caught.value)


def test_an_info_file_is_what_publish_writes(tmp_path):
    path = tmp_path / "sthv2.info"
    (tmp_path / "list.txt").write_text("")
    clips = {10: Clip(11, "a", None, 3), 2: Clip(3, "b", None, 173)}
    publish(str(tmp_path), manifest_of(str(tmp_path / "list.txt"), clips, SSV2, "uint8", {}, {10: "x", 2: "y"}, {}))
    assert read_info(str(path), 174) == {2: 173, 10: 3} and path.read_text() == "2 173\n10 3\n"
    for text, word in (("", "no videos"), ("0 1 2\n", "line 1"), ("0 174\n", "one of 174 classes"), ("0 1\n0 2\n", "line 2"),
                       ("-1 3\n", "line 1")):
        path.write_text(text)
        with pytest.raises(UserError, match=word):
            read_info(str(path), 174)

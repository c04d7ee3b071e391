"""TSM_predict.py: names for one's own videos, equal to the measured protocol; windows, files, errors that stop nobody."""

import argparse
import base64
import contextlib
import csv
import fcntl
import http.server
import json
import os
import re
import resource
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import termios
import threading
import time

import av
import cv2
import numpy as np
import pytest
from clips import DATA, filmed
from processes import LONGEST, children_of, ran, started

from tsm.cli import Corrupt
from tsm.labels import Ranked, labels_in, top
from tsm.predict import by_clip, live
from tsm.predict.answers import Answer, Log, clock, segments_of
from tsm.predict.by_clip import by_number, parts_of
from tsm.predict.captions import has_captions, write_captions
from tsm.predict.inputs import annotated_names, expand, without_password
from tsm.protocol import SSV2, frame_indices
from tsm.video import clips as clips_module
from tsm.video import decode
from tsm.video import windows as windows_module
from tsm.video.clips import as_video, resized
from tsm.video.decode import Timeline, read_video, timeline
from tsm.video.frames import strict
from tsm.video.windows import WHOLE, Window, strips, windowed, windows_of

QUICK = ("--backend", "onnxruntime")


@pytest.fixture
def clips(repo, tmp_path):
    """Three demo clips in a folder, and their true names."""
    (tmp_path / "clips").mkdir()
    annotations = json.loads((repo / "demo/annotations/something-something-v2-validation.json").read_text())[:3]
    for entry in annotations:
        shutil.copy(str(repo / "demo/videos" / (entry["id"] + ".webm")), str(tmp_path / "clips"))
    return tmp_path, {entry["id"] + ".webm": entry["template"].replace("[", "").replace("]", "") for entry in annotations}


@pytest.fixture
def predict(run, small_onnx, repo):
    """predict(*args, cwd) -> a finished TSM_predict.py with a network, which may be another `model`, and the dataset's names."""

    def predict(*args, model=small_onnx, **options):
        labels = () if "--labels" in args or options.pop("unnamed", False) else (
            "--labels", repo / "demo/annotations/something-something-v2-labels.json")
        return run("TSM_predict.py", "--model", model, *(QUICK + labels + args), **options)

    return predict


def entries(done, folder):
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "out.json").read_text())["inputs"]


def test_it_names_what_happens_and_equals_the_measured_protocol(predict, works, clips, thin_onnx):
    folder, truth = clips
    done = predict("--top", 3, "--json", "out.json", "clips", cwd=folder, model=thin_onnx)
    found = entries(done, folder)
    assert {entry["input"]: entry["windows"][0]["top"][0]["label"] for entry in found} == {
        "clips/" + name: label for name, label in truth.items()}
    assert all(label in done.stdout for label in truth.values()) and done.stdout.count("\n") == 3 * 4
    (folder / "list.txt").write_text("".join("%s 0\n" % entry["input"] for entry in found))
    works("TSM_preprocess.py", "--data_root", ".", "--ann_file", "list.txt", cwd=folder)
    works("TSM_infer.py", "-m", thin_onnx, "-i", "sthv2/preprocess_bin", "-o", "res", "--output_dirname", "out", "--outfmt",
          "NPY", *QUICK, cwd=folder)
    for index, entry in enumerate(found):
        scores = np.load(str(folder / "res/out" / ("%d_0.npy" % index)))[0]
        for ranked in entry["windows"][0]["top"]:
            assert np.float32(ranked["probability"]) == scores[ranked["class_id"]]  # bit for bit


def test_the_page_shows_a_film_strip_beside_each_answer(predict, thin_onnx, clips, repo):
    folder, truth = clips
    (folder / "clips/<b>broken.webm").write_bytes(b"\x1aE\xdf\xa3 no video")
    filmed(folder / "long.avi", greys(60), 10, "mjpeg", pix_fmt="yuvj420p")
    done = predict("--top", 2, "--html", "out.html", "clips", cwd=folder, model=thin_onnx)
    assert done.returncode == 1 and "broken.webm" in done.stderr
    page = (folder / "out.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/jpeg;base64,') == 3 and page.count("class=\"bar\"") == 6 and "3 of 4 read" in page
    assert all(label in page for label in truth.values())
    assert "&lt;b&gt;broken.webm" in page and "<b>broken" not in page
    done = predict("--window", 2, "--every", 2, "--html", "out.html", "--json", "out.json", "long.avi", cwd=folder)
    segments = entries(done, folder)[0]["segments"]
    page = (folder / "out.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/jpeg;base64,') == len(segments)
    assert "0:00.0 - %s" % clock(segments[0]["end"]) in page


def test_a_film_strip_is_of_its_window(tmp_path):
    path = str(tmp_path / "long.avi")
    filmed(path, greys(60), 10, "mjpeg", pix_fmt="yuvj420p")
    windows = [Window(0.0, 2.0), Window(2.0, 4.0), Window(4.0, 6.0)]
    pictures = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE) for jpeg in strips(path, windows)]
    whole = cv2.imdecode(np.frombuffer(next(strips(path, [WHOLE])), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert all(picture.shape == whole.shape for picture in pictures)
    for number, picture in enumerate(pictures):
        assert abs(float(picture.mean()) - 4 * (20 * number + 10)) < 6
    assert abs(float(whole.mean()) - 4 * 30) < 6


def test_folders_patterns_lists_and_frames_are_inputs(predict, thin_onnx, clips, repo):
    folder, _ = clips
    names = sorted(path.name for path in (folder / "clips").iterdir())
    (folder / "deep/er").mkdir(parents=True)
    shutil.copy(str(folder / "clips" / names[0]), str(folder / "deep/er/UPPER.WEBM"))
    frames = folder / "frames of mine"
    frames.mkdir()
    with strict():
        for number, frame in read_video(str(folder / "clips" / names[0]), range):
            cv2.imwrite(str(frames / ("img_%05d.jpg" % (number + 1))), frame[..., ::-1])
            (frames / ("._img_%05d.jpg" % number)).write_bytes(b"\0\5\x16\7")  # hidden: no frame
    (folder / "mine.txt").write_text("clips/%s\nframes of mine\n" % names[1])
    done = predict("--json", "out.json", "deep", "clips/*%s" % names[2][-8:], "@mine.txt", cwd=folder, model=thin_onnx)
    found = entries(done, folder)
    assert [entry["input"] for entry in found] == ["deep/er/UPPER.WEBM", "clips/" + names[2], "clips/" + names[1], "frames of mine"]
    assert found[0]["windows"][0]["top"][0]["label"] == found[3]["windows"][0]["top"][0]["label"]


def test_an_input_that_cannot_be_read_is_one_line_and_the_others_go_on(predict, clips):
    folder, truth = clips
    (folder / "clips/0_empty.webm").write_bytes(b"")
    (folder / "clips/1_cut.webm").write_bytes((folder / "clips" / min(truth)).read_bytes()[:3000])
    done = predict("--json", "out.json", "--csv", "out.csv", "clips", "nowhere.mp4", cwd=folder)
    assert done.returncode == 1 and done.stderr.count("\n") == 3 and "Traceback" not in done.stderr, done.stderr
    for name in ("0_empty.webm", "1_cut.webm", "nowhere.mp4"):
        assert name in done.stderr
    found = json.loads((folder / "out.json").read_text())["inputs"]
    assert [bool(entry["error"]) for entry in found] == [True, True, False, False, False, True]
    rows = list(csv.DictReader((folder / "out.csv").open(encoding="utf-8", newline="")))
    assert len(rows) == 6 and sum(bool(row["error"]) for row in rows) == 3


def test_a_model_without_names_gives_numbers_and_a_note(predict, clips):
    folder, _ = clips
    done = predict("clips", cwd=folder, unnamed=True)
    assert done.returncode == 0 and done.stderr.count("warning: ") == 1 and "--labels" in done.stderr and "class " in done.stdout


def test_the_model_is_that_of_the_work_folder_and_what_it_says_of_itself_is_said(run, fails, clips, small_onnx, repo, tmp_path):
    folder, alone = clips[0], tmp_path / "TSM_predict.py"
    alone.symlink_to(repo / alone.name)  # as the suite's own folder may have a work/
    assert "no model here or in work/; ./run_all.sh 1 makes one" in fails(alone, "clips", cwd=folder, status=2)
    (folder / "work").mkdir()
    import onnx

    model = onnx.load(str(small_onnx))
    model.metadata_props.add(key="tsm.about", value="a toy")
    onnx.save(model, str(folder / "work/tsm_new_bs2.onnx"))
    for given in ((), ("--model", "work")):
        done = run("TSM_predict.py", *given, *QUICK, "--views", 1, "--json", "-", "--html", "o.html", "clips", cwd=folder)
        assert len(json.loads(done.stdout)["inputs"]) == 3 and "a toy" in (folder / "o.html").read_text()
        assert all(line in done.stderr for line in ("model: work/tsm_new_bs2.onnx\n", "onnx: a toy\n", "centre view")), done.stderr


def test_a_video_of_too_few_frames_is_no_clip(predict, run, online_onnx, tmp_path):
    video(tmp_path / "v.mp4", 0.15)
    for done in (predict("v.mp4", cwd=tmp_path), run("TSM_predict.py", "-m", online_onnx, *QUICK, "v.mp4", cwd=tmp_path)):
        assert "v.mp4: only 3 of the 8 frames that the network takes of it differ" in done.stderr


def video(path, seconds, rate=20, size=(96, 64)):
    """A synthetic video of `seconds` at `rate`."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
    for number in range(int(seconds * rate)):
        frame = np.full((size[1], size[0], 3), 60, np.uint8)
        cv2.circle(frame, (number % size[0], 30), 9, (40, 200, 220), -1)
        writer.write(frame)
    writer.release()


def test_a_long_video_becomes_segments_that_cover_it_once(predict, tmp_path):
    video(tmp_path / "long.mp4", 9)
    video(tmp_path / "short.mp4", 1)
    done = predict("--views", 1, "--window", 4, "--every", 2, "--json", "out.json", "long.mp4", "short.mp4", cwd=tmp_path)
    found = entries(done, tmp_path)
    assert [(window["start"], window["end"]) for window in found[0]["windows"]] == [(0, 4), (2, 6), (4, 8), (5, 9)]
    segments = found[0]["segments"]
    assert segments[0]["start"] == 0 and segments[-1]["end"] == 9
    assert all(one["end"] == following["start"] for one, following in zip(segments, segments[1:]))
    assert "short.mp4: is 1.0 s long, shorter than a window of 4 s" in done.stderr and len(found[1]["windows"]) == 1


DIRECT = {"http_proxy": "", "HTTP_PROXY": "", "no_proxy": "127.0.0.1"}


@pytest.fixture
def streamed(site, tmp_path):
    """streamed(seconds) -> the address of such a video on a server of this machine."""
    def streamed(seconds, **options):
        video(tmp_path / "streamed.mp4", seconds, **options)
        return "http://%s/v.mp4" % site(filed((tmp_path / "streamed.mp4").read_bytes()))

    return streamed


def test_a_recording_is_watched_at_its_own_speed(monkeypatch, tmp_path):
    """By a clock that only sleeping moves."""
    video(tmp_path / "v.mp4", 3)
    clock = [7.0]
    monkeypatch.setattr(live, "time", argparse.Namespace(
        monotonic=lambda: clock[0], sleep=lambda seconds: clock.append(clock.pop() + seconds)))
    found = [(moment, played, clock[0] - 7) for moment, played, _ in live.capture("file://%s" % (tmp_path / "v.mp4"))]
    assert np.array(found) == pytest.approx(np.repeat(np.arange(60)[:, None] / 20, 3, 1), abs=1e-3)


def test_a_stream_is_answered_on_a_grid_and_at_its_end(predict, streamed, tmp_path):
    address = streamed(2)
    done = predict("--window", 0.5, "--every", 0.25, "--json", "out.json", address, cwd=tmp_path, env=DIRECT)
    assert done.returncode == 0, done.stderr
    entry = entries(done, tmp_path)[0]
    assert entry["input"] == address and entry["segments"]
    assert all(window["end"] - window["start"] <= 0.501 for window in entry["windows"])  # the newest seconds, and no more
    ends = [window["end"] for window in entry["windows"]]
    due = [int((end + 0.001) / 0.25) for end in ends[:-1]]  # the place on the grid: one answer each, however late it is given
    assert due == sorted(set(due)) and ends[-1] > 1.8  # the end that no whole stride is left for


@pytest.mark.all
def test_memory_does_not_grow_with_a_video_s_length(repo, thin_onnx, tmp_path):
    """Ten minutes against one, in KB; the decoder itself keeps a queue of frames, which a minute does not fill."""
    peaks = []
    for minutes in (1, 10):
        video(tmp_path / "v.mp4", 60 * minutes)
        program = ("import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL); "
                   "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)")
        command = [sys.executable, "-c", program, sys.executable, str(repo / "TSM_predict.py"), "--model", str(thin_onnx),
                   "--window", "20", "--every", "20", "--views", "1", "--num_worker", "1", "v.mp4"] + list(QUICK)
        done = ran(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] <= peaks[0] + 128 * 1024, peaks  # all frames after the resize would be 12,000 times 288 KB


def test_annotated_videos_play_and_hold_every_frame(predict, clips):
    folder, truth = clips
    done = predict("--annotate", "drawn", "clips", cwd=folder)
    assert done.returncode == 0, done.stderr
    for name in truth:
        assert frames_in(folder / "clips" / name) == frames_in(folder / "drawn" / (name[:-5] + ".mp4")) > 0


@pytest.mark.parametrize("make, args, says", [
    (lambda folder: (folder / "none").mkdir(), ("none",), "no videos"),
    (lambda folder: None, ("*.mkv",), "no file matches"),
    (lambda folder: (folder / "l.txt").write_text("\n"), ("@l.txt",), "no videos in it"),
    (lambda folder: (folder / "l.txt").write_text("a.webm 3\n"), ("@l.txt",), "list with labels"),
    (lambda folder: (folder / "n.txt").write_text("a\nb\n"), ("--labels", "n.txt", "x.webm"), "names 2 classes, the model has 174"),
    (lambda folder: (folder / "n.txt").write_text("a" * 140000 + "\nb\n"), ("--labels", "n.txt", "x.mp4"), "n.txt: not label names"),
])
def test_wrong_inputs_are_one_clear_line(predict, tmp_path, make, args, says):
    make(tmp_path)
    done = predict(*args, cwd=tmp_path)
    assert done.returncode == 1 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr


def even(frames, rate):
    """The times of frames at a constant rate."""
    return Timeline(rate, np.arange(frames + 1) / rate)


def test_windows_end_with_the_video_and_never_leave_it():
    for frames, rate, length, stride in ((180, 20, 4, 2), (181, 20, 4, 2), (7, 25, 4, 2), (100, 10, 1, 5), (1, 30, 2, 1)):
        windows = windows_of(even(frames, rate), length, stride)
        assert windows[0][1] == 0 and windows[-1][2] == frames
        assert all(0 <= first < stop <= frames for _, first, stop in windows)
        assert windows[-1][0].end == round(frames / rate, 3)


def test_segments_join_windows_of_one_label_and_results_come_in_the_order_of_the_inputs():
    answers = [Answer(Window(start, start + 4.0), [Ranked(0, label, p)])
               for start, label, p in ((0.0, "a", 0.8), (2.0, "a", 0.6), (4.0, "b", 0.5), (6.0, "a", 0.9))]
    assert [tuple(segment) for segment in segments_of(answers)] == [
        (0.0, 5.0, "a", pytest.approx(0.7)), (5.0, 7.0, "b", 0.5), (7.0, 10.0, "a", 0.9)]
    assert list(by_number([(2, "c"), (0, "a"), (1, "b"), (3, "d")])) == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]


def test_names_in_a_model_are_as_many_as_its_classes_and_top_puts_the_lower_class_first_among_equals():
    names = ["Closing something", "开门, 关门", "c"]
    assert labels_in({"tsm.labels": json.dumps(names)}, 3) == names
    assert not any(labels_in({"tsm.labels": wrong}, 3) for wrong in ("{", "[1]", json.dumps(names[:2]), "null"))
    assert [ranked.class_id for ranked in top(np.array([0.1, 0.4, 0.1, 0.4]), None, 3)] == [1, 3, 0]
    assert clock(62.46) == "1:02.5" and clock(3725.0) == "1:02:05.0"
    assert [(one.path, one.live is not None) for one in expand(["HTTP://x/y.mp4", "y.mp4"])] == [("HTTP://x/y.mp4", True), ("y.mp4", False)]


def frames_in(path):
    """How many frames of a video OpenCV plays."""
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.read()[0]:
        count += 1
    return count


def limited(repo, model, folder, limit, *args):
    """A finished TSM_predict.py that may write no file above `limit` bytes."""
    return ran(sys.executable, repo / "TSM_predict.py", "--model", model, *QUICK, *args, cwd=folder,
               preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))


def test_annotating_overwrites_its_own_earlier_outputs_alone(predict, clips):
    folder, truth = clips
    (folder / "v").mkdir()
    shutil.copy(str(folder / "clips" / min(truth)), str(folder / "v/a.webm"))
    video(folder / "v/a.mp4", 1)
    video(folder / "v/a_3.mp4", 1)  # no input, but somebody's
    before = {name: (folder / "v" / name).read_bytes() for name in ("a.webm", "a.mp4", "a_3.mp4")}
    for _ in range(2):
        done = predict("v/a.webm", "v/a.mp4", "--annotate", "v", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert {name: (folder / "v" / name).read_bytes() for name in before} == before
        assert sorted(path.name for path in (folder / "v").iterdir()) == ["a.mp4", "a.webm", "a_2.mp4", "a_3.mp4", "a_4.mp4"]
    assert frames_in(folder / "v/a_4.mp4") == frames_in(folder / "v/a.mp4") == 20


@pytest.mark.all
def test_what_cannot_be_annotated_is_its_own_error(repo, predict, small_onnx, clips):
    folder, truth = clips
    long = "n" * 245
    shutil.copy(str(folder / "clips" / min(truth)), str(folder / (long + ".webm")))
    names = (long + ".webm", "clips/" + max(truth))
    done = predict("--annotate", "drawn", *names, cwd=folder)
    assert done.returncode == 0 and len(list((folder / "drawn").iterdir())) == 2, done.stderr
    kept = (folder / "drawn" / (long + ".mp4")).read_bytes()
    for limit in (0, 4096, len(kept) - 50):
        done = limited(repo, small_onnx, folder, limit, "--annotate", "drawn", "--labels",
                       repo / "demo/annotations/something-something-v2-labels.json", *names)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 + (limit < len(kept) - 50), done.stderr
        assert "Traceback" not in done.stderr and long + ".mp4: " in done.stderr and "wrote drawn/" + long not in done.stdout
        assert (folder / "drawn" / (long + ".mp4")).read_bytes() == kept and len(list((folder / "drawn").iterdir())) == 2
    (folder / "drawn" / (max(truth)[:-5] + ".mp4")).unlink()
    frames = folder / "frames"
    frames.mkdir()
    for number in range(1, 9):
        cv2.imwrite(str(frames / ("img_%05d.jpg" % number)), np.full((48, 64, 3), 20 * number, np.uint8))
    done = predict("--annotate", "drawn", "--json", "out.json", "frames", "clips/" + max(truth), cwd=folder)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "folder of frames" in done.stderr, done.stderr
    assert [bool(entry["error"]) for entry in json.loads((folder / "out.json").read_text())["inputs"]] == [True, False]
    assert (folder / "drawn" / (max(truth)[:-5] + ".mp4")).exists()


@pytest.mark.parametrize("count, rate, size", [(1, 25, (64, 48)), (2, 24, (65, 49)), (30, 237.84, (64, 48)), (5, 59.94, (48, 64))])
def test_videos_of_any_rate_and_size_are_annotated(tmp_path, count, rate, size):
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), rate, size)
    for number in range(count):
        writer.write(np.full((size[1], size[0], 3), 4 * number, np.uint8))
    writer.release()
    write_captions(str(tmp_path / "v.avi"), str(tmp_path / "o.mp4"), [(0.0, np.inf, "label")])
    assert frames_in(tmp_path / "o.mp4") == count and has_captions(str(tmp_path / "o.mp4")) and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("args, says", [
    (("--annotate", "file"), "a folder is needed there; choose another"),
    (("--annotate", "file/deep"), "a folder is needed there; choose another"),
    (("--json", "none/o.json"), "none/o.json: No such file or directory; check the path"),
    (("--csv", "file/o.csv"), "file/o.csv: Not a directory"), (("--html", "folder"), "folder: Is a directory"),
    (("--json", "n" * 255), "File name too long"), (("--csv", "/dev/null"), "/dev/null: is no regular file"),
])
def test_outputs_that_cannot_be_written_are_refused_before_any_work(fails, tmp_path, args, says):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    assert says in fails("TSM_predict.py", "--model", "none.onnx", "x.mp4", *args, cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("args, says", [
    (("--json", "o", "--csv", "o"), "--csv o would overwrite --json o"),
    (("--json", "o", "--html", "folder/../o"), "--html folder/../o would overwrite --json o"),
    (("--json", "x.mp4"), "--json x.mp4 would overwrite x.mp4"), (("--csv", "m.onnx"), "m.onnx"), (("--html", "l.json"), "l.json"),
    (("--json", "link.mp4"), "would overwrite x.mp4"), (("--json", "list", "@list"), "would overwrite list"),
    (("--json", "frames/1.jpg", "frames"), "would overwrite frames/1.jpg"), (("--json", "folder/y.mp4", "folder"), "folder/y.mp4"),
    (("--annotate", "new", "--json", "new/x.mp4"), "new/x.mp4"), (("--json", ""), "--json '' is no name"),
    (("--annotate", "new", "http://x/y"), "not for http://x/y"), (("--annotate", ""), "is no name of a folder"),
    (("--precision", "int8", "--json", "tsm_int8.bin"), "tsm_int8.bin"), (("--precision", "int8", "--csv", "tsm_int8.xml"), "tsm_int8.xml"),
    (("--precision", "int8", "--int8_model", "deep/q.xml", "--html", "deep/q.bin"), "would overwrite deep/q.bin"),
    (("--json", "inner", "@outer"), "would overwrite inner"), (("--csv", "outer", "@outer"), "would overwrite outer"),
    (("--json", "./folder/../x.mp4", "@outer"), "would overwrite x.mp4"),
])
def test_outputs_that_would_overwrite_something_are_wrong_usage(fails, tmp_path, args, says):
    """Or what is read for another input, for another list, or for int8."""
    for name in ("folder", "frames", "deep"):
        (tmp_path / name).mkdir()
    for name in ("x.mp4", "m.onnx", "l.json", "frames/1.jpg", "folder/y.mp4", "tsm_int8.xml", "tsm_int8.bin", "deep/q.xml", "deep/q.bin"):
        (tmp_path / name).write_text(name)
    for name, held in (("list", "x.mp4"), ("outer", "@inner"), ("inner", "x.mp4")):
        (tmp_path / name).write_text(held + "\n")
    (tmp_path / "link.mp4").symlink_to("x.mp4")
    assert says in fails("TSM_predict.py", *args, "x.mp4", "--model", "m.onnx", "--labels", "l.json", cwd=tmp_path, status=2)
    assert (tmp_path / "x.mp4").read_text() == "x.mp4" and not (tmp_path / "new").exists()


def test_a_stream_is_judged_to_its_end_however_short_and_one_of_no_pictures_is_its_own_error(predict, streamed, tmp_path):
    done = predict("--window", 60, "--json", "out.json", streamed(1), streamed(1, size=(320, 2)), cwd=tmp_path, env=DIRECT)
    one, other = json.loads((tmp_path / "out.json").read_text())["inputs"]
    assert len(one["windows"]) == 1 and one["windows"][0]["start"] < 0.5 and one["windows"][0]["end"] > 0.8 and not one["error"]
    assert done.returncode == 1 and done.stderr.count("\n") == 2 and "320x2 pixels is no picture" in done.stderr, done.stderr
    assert "shorter than a window of 60 s; it is taken as one window" in done.stderr and "no picture" in other["error"]


def seen(monkeypatch, moments, ends=None, seconds=0.15, reconnect=0.0, lost=0):
    """What watched() gives of one source of black frames at `moments`, which is lost `lost` times before, and then ends with an error."""
    calls = []

    def capture(source):
        calls.append(source)
        if len(calls) <= lost:
            raise live.Lost("gone")
        for moment in moments:
            yield moment, moment, np.zeros((48, 64, 3), np.uint8)
        if ends:
            raise ends

    monkeypatch.setattr(live, "capture", capture)
    monkeypatch.setattr(live, "RETRY", 0.01)
    return [found for _, found in live.watched([("x", "x://y")], seconds, 10.0, SSV2, reconnect)]


def test_a_source_without_a_frame_is_an_error_and_no_frame_is_given_twice(monkeypatch):
    assert ["ended without a frame" in str(one) for one in seen(monkeypatch, [])] == [True]
    (recent,) = seen(monkeypatch, [0.0, 0.1, 0.2], seconds=5.0)
    assert recent[1:3] == (0.0, 0.2) and len(recent.frames) == 3
    recent, failure = seen(monkeypatch, [0.0, 0.1, 0.2], live.Lost("gone"), seconds=5.0)
    assert len(recent.frames) == 3 and str(failure) == "gone"  # what was found before is kept
    with pytest.raises(ZeroDivisionError):
        seen(monkeypatch, [], ZeroDivisionError())


def test_a_source_that_is_lost_is_tried_again_for_as_long_as_it_is_told(monkeypatch, capsys):
    assert [str(one) for one in seen(monkeypatch, [0.0], lost=3)] == ["gone"]
    assert capsys.readouterr().err == ""
    (recent,) = seen(monkeypatch, [0.0], lost=3, reconnect=60.0)
    assert recent.end == 0.0 and capsys.readouterr().err.count("gone; it is tried again for 60 s") == 1
    assert [str(one) for one in seen(monkeypatch, [], lost=10**9, reconnect=0.1)] == ["gone"]
    assert len(seen(monkeypatch, [], Corrupt("the wrong password"), reconnect=60.0)) == 1  # which does not help


def test_without_pyav_an_address_says_so(monkeypatch):
    monkeypatch.setattr(live, "av", None)
    with pytest.raises(Corrupt, match="pip install av"):
        live.capture("http://127.0.0.1:9/v")


def test_each_of_several_sources_is_given_to_its_end(monkeypatch):
    monkeypatch.setattr(live, "capture", lambda source: (
        (source + number / 10, number / 10, np.zeros((48, 64, 3), np.uint8)) for number in range(9)))
    found = list(live.watched([("a", 0), ("b", 1)], 60.0, 0.1, SSV2))
    assert sorted((number, recent.start, recent.end) for number, recent in found) == [(0, 0.0, 0.8), (1, 1.0, 1.8)]


def test_inputs_that_give_nothing_stop_nobody(predict, clips):
    folder, truth = clips
    (folder / "empty").mkdir()
    (folder / "cycle.txt").write_text("@other.txt\n")
    (folder / "other.txt").write_text("@cycle.txt\n@other.txt\n")
    (folder / "list.txt").write_bytes(b"\xef\xbb\xbfclips/%s\r\nmissing.webm\nmissing 3\n" % min(truth).encode())
    (folder / "binary.txt").write_bytes(b"a\0b\n")
    (folder / "@at.webm").write_bytes(b"")
    given = ("empty", "", "*.nothing", "@none.txt", "@cycle.txt", "@binary.txt", "@at.webm", "@list.txt", "clips/" + max(truth))
    done = predict("--json", "out.json", *given, cwd=folder)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    found = json.loads((folder / "out.json").read_text())["inputs"]
    assert [(entry["input"], bool(entry["error"])) for entry in found] == [
        ("empty", True), ("", True), ("*.nothing", True), ("@none.txt", True), ("@cycle.txt", True), ("@other.txt", True),
        ("@binary.txt", True), ("@at.webm", True), ("clips/" + min(truth), False), ("missing.webm", True), ("missing 3", True),
        ("clips/" + max(truth), False)]
    assert done.stderr.count("\n") == 10 and "given as ./@at.webm" in done.stderr and "'': an empty name" in done.stderr


def test_folders_are_searched_through_links_without_loops(tmp_path):
    (tmp_path / "top/sub").mkdir(parents=True)
    (tmp_path / "aside").mkdir()
    for name in ("top/a.MOV", "top/sub/b.m4v", "aside/c.mkv"):
        (tmp_path / name).write_text("")
    (tmp_path / "top/sub/back").symlink_to(tmp_path / "top")
    (tmp_path / "aside/back").symlink_to(tmp_path)
    (tmp_path / "top/link").symlink_to(tmp_path / "aside")
    names = sorted(os.path.basename(one.path) for one in expand([str(tmp_path / "top")]))
    assert names == ["a.MOV", "b.m4v", "c.mkv"]


def test_odd_names_and_labels_are_escaped_everywhere(predict, clips):
    folder = clips[0]
    name = os.fsdecode(b"clips/\xff\x1b.webm")
    (folder / name).write_bytes(b"")
    labels = ["a\nb\x1b[2J\ud800 %d" % number for number in range(174)]
    (folder / "names.json").write_text(json.dumps(labels))
    done = predict("--labels", "names.json", "--csv", "out.csv", "--json", "out.json", "--html", "out.html", "clips", cwd=folder)
    assert done.returncode == 1 and done.stdout.count("\n") == 6 and "\x1b" not in done.stdout + done.stderr, done.stderr
    assert "a\\nb\\x1b[2J\\ud800 " in done.stdout and done.stderr.count("\n") == 1
    rows = list(csv.DictReader((folder / "out.csv").open(encoding="utf-8", newline="")))
    assert "clips/\\udcff\x1b.webm" in [row["input"] for row in rows]
    assert [row["label"].startswith("a\nb\x1b[2J\\ud800 ") for row in rows].count(True) == 3


@pytest.mark.parametrize("args", [
    ("--camera", "-1"), ("--camera", "99999999999"), ("--window", "1e308", "x"), ("--window", "nan", "x"),
    ("--window", "1", "--every", "inf", "x"), (), ("--reconnect", "0", "x.mp4"), ("--window", "0", "x"), ("--top", "0", "x"),
])
def test_no_input_and_numbers_beyond_all_bounds_are_wrong_usage(fails, tmp_path, args):
    fails("TSM_predict.py", "--model", "x.onnx", *args, cwd=tmp_path, status=2)


def test_strides_and_windows_of_any_length_end(predict, tmp_path):
    video(tmp_path / "v.mp4", 1)
    done = predict("--window", 1, "--every", 1e-20, "v.mp4", cwd=tmp_path)
    assert done.returncode == 1 and "shorter than one of its frames, 0.0500 s" in done.stderr and done.stderr.count("\n") == 1
    done = predict("--window", 1e6, "--json", "out.json", "v.mp4", cwd=tmp_path)
    assert len(entries(done, tmp_path)[0]["windows"]) == 1 and "shorter than a window" in done.stderr
    assert len(windows_of(even(20, 20), 1e-9, 1e-20)) == 20


@pytest.mark.parametrize("args, says", [
    (("--camera", 2**31 - 1), ""), (("--camera", 63), "camera"), ((os.fsdecode(b"http://127.0.0.1:9/\xff"),), ""),
    (("HTTP://127.0.0.1:9/v.mp4",), "HTTP://127.0.0.1:9/v.mp4: cannot be opened")])
def test_a_camera_or_address_that_cannot_be_taken_is_one_line(predict, tmp_path, args, says):
    done = predict(*args, cwd=tmp_path, env=DIRECT)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and says in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("number, status, by_frame", [
    (signal.SIGINT, 130, True), (signal.SIGTERM, 143, False), pytest.param(signal.SIGHUP, 129, False, marks=pytest.mark.all)])
def test_a_signal_over_files_keeps_what_was_found(repo, small_onnx, online_onnx, clips, number, status, by_frame):
    folder, truth = clips
    for clip in range(300):
        os.link(str(folder / "clips" / min(truth)), str(folder / ("clips/z%03d.webm" % clip)))
    command = [sys.executable, str(repo / "TSM_predict.py"), "--model", str(online_onnx if by_frame else small_onnx), "--json",
               "out.json", "--csv", "out.csv", "--jsonl", "out.jsonl", "clips"] + list(QUICK)
    process = started(*command, cwd=folder)
    for _ in range(6):
        process.stdout.readline()
    for worker in children_of(process.pid):
        os.kill(worker, number)  # as a terminal, a container or a scheduler sends it to all
    process.send_signal(number)
    said, errors = process.communicate(timeout=LONGEST)
    assert process.returncode == status and "begins with the first again" in errors, errors
    assert errors.count("error: ") == 1 or by_frame and "webm: interrupted" in errors and "frames answered; frame to answer" in said
    assert len((folder / "out.jsonl").read_text().splitlines()) >= 2
    found = json.loads((folder / "out.json").read_text())["inputs"]
    assert 2 <= len(found) < 303 and "z299" not in (folder / "out.csv").read_text()
    assert not any(entry["error"] for entry in found[: -1 if by_frame else None])


def times_of(path):
    """When each frame of a video is shown, in seconds from the first, and the last one's end."""
    with av.open(str(path)) as film:
        frames = [(frame.pts, frame.duration) for frame in film.decode(video=0)]
        unit = float(film.streams.video[0].time_base)
    return [(start - frames[0][0]) * unit for start in [start for start, _ in frames] + [sum(frames[-1])]]


def greys(count, size=(64, 48)):
    """Even greys, picture n of brightness 4 n."""
    return [np.full((size[1], size[0], 3), 4 * number % 256, np.uint8) for number in range(count)]


@pytest.fixture
def paused(tmp_path):
    """A video of 60 frames whose frame 29 is shown for 20 s, the others for 0.1 s; (its path, when each starts and the end)."""
    starts = np.array([0.1 * number + (19.9 if number > 29 else 0) for number in range(61)])
    filmed(tmp_path / "paused.mp4", greys(60), starts)
    return tmp_path / "paused.mp4", starts


@pytest.mark.parametrize("by_opencv", [False, True])
def test_seconds_are_those_of_the_frames_own_timestamps(monkeypatch, paused, by_opencv):
    path, starts = paused
    if by_opencv:
        monkeypatch.setattr(decode, "av", None)
    with strict():
        times = timeline(str(path))
    assert np.allclose(times.starts, starts, atol=0.002) and times.rate == pytest.approx(10, rel=0.01)
    windows = {window: (first, stop) for window, first, stop in windows_of(times, 2, 2)}
    assert windows[Window(0.0, 2.0)] == (0, 20) and windows[Window(10.0, 12.0)] == (29, 30)
    assert windows[Window(22.0, 24.0)] == (29, 41)
    assert list(windows)[-1].end == pytest.approx(25.9, abs=0.01) and list(windows.values())[-1][1] == 60
    pictures = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE).mean() for jpeg in strips(
        str(path), [Window(0.0, 2.0), Window(5.0, 15.0), Window(23.9, 25.9)])]
    assert pictures == pytest.approx([4 * 9.5, 4 * 29, 4 * 49.5], abs=7)


def test_a_constant_rate_is_taken_as_it_was_whatever_its_timestamps_round_to(repo):
    for path in [str(repo / "test/data/video_a.webm"), str(repo / "test/data/kinds/open_gop.avi"), str(repo / "test/data/kinds/whole.mp4")]:
        with strict():
            times = timeline(path)
        assert times.rate == 12.0 and np.array_equal(times.starts, np.arange(times.frames + 1) / 12)


def test_segments_of_a_variable_rate_tell_when_it_happens(predict, paused):
    path, _ = paused
    done = predict("--views", 1, "--window", 2, "--every", 2, "--json", "out.json", "--annotate", "drawn", path.name, cwd=path.parent)
    entry = entries(done, path.parent)[0]
    assert entry["segments"][-1]["end"] == pytest.approx(25.9, abs=0.01) and len(entry["windows"]) == 13
    assert times_of(path.parent / "drawn/paused.mp4") == pytest.approx(times_of(path), abs=0.001)


@pytest.mark.parametrize("gaps", [[0.04], [0.03, 0.07, 0.5], [0.001, 0.2], [0.1] * 19 + [30.0]])
def test_an_annotated_copy_keeps_the_pace(tmp_path, gaps):
    starts = np.append(0, np.cumsum(np.resize(gaps, 40)))
    filmed(tmp_path / "v.mp4", greys(40), starts)
    write_captions(str(tmp_path / "v.mp4"), str(tmp_path / "o.mp4"), [(0.0, np.inf, "label")])
    assert times_of(tmp_path / "o.mp4") == pytest.approx(starts, abs=1e-4) and has_captions(str(tmp_path / "o.mp4"))


def sound_of(path):
    """(codec, seconds) of a video's sound."""
    with av.open(str(path)) as film:
        track = film.streams.audio[0]
        return track.codec_context.codec.canonical_name, sum(frame.samples for frame in film.decode(track)) / track.rate


@pytest.mark.parametrize("name, codec, sound, kept", [
    ("v.mp4", "mpeg4", "aac", "aac"), ("v.ts", "libx264", "aac", "aac"), ("v.webm", "libvpx", "libopus", "opus"),
    ("v.mkv", "mpeg4", "libmp3lame", "mp3"), ("v.avi", "mpeg4", "pcm_s16le", "aac"), ("v.mkv", "libx264", "ac3", "aac")])
def test_an_annotated_copy_plays_in_a_browser_with_its_sound(tmp_path, name, codec, sound, kept):
    filmed(tmp_path / name, greys(50), 25, codec, sound)
    write_captions(str(tmp_path / name), str(tmp_path / "o.mp4"), [(0.0, np.inf, "label")])
    with av.open(str(tmp_path / "o.mp4")) as film:
        context = film.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", 64, 48)
    assert times_of(tmp_path / "o.mp4") == pytest.approx(times_of(tmp_path / name)[:-1] + [2], abs=0.002)
    assert sound_of(tmp_path / "o.mp4") == (kept, pytest.approx(2, abs=0.06))


def test_pictures_of_a_copy_are_those_of_the_video_and_sizes_become_even(tmp_path):
    pictures = [cv2.GaussianBlur(np.random.RandomState(0).randint(0, 256, (241, 321, 3), np.uint8), (0, 0), 9) for _ in range(3)]
    filmed(tmp_path / "v.mkv", pictures, codec="ffv1", pix_fmt="bgr0")
    write_captions(str(tmp_path / "v.mkv"), str(tmp_path / "o.mp4"), [(9.0, np.inf, "")])
    with strict():
        copied = [frame for _, frame in read_video(str(tmp_path / "o.mp4"), range)]
    assert copied[0].shape == (242, 322, 3) and np.abs(copied[2][:241, :321].astype(int) - pictures[2]).mean() < 3


def test_a_damaged_video_is_no_fault_of_the_folder_it_is_copied_to(tmp_path):
    noise = np.random.RandomState(0)
    filmed(tmp_path / "v.ts", [noise.randint(0, 256, (48, 64, 3), np.uint8) for _ in range(60)], 30, "libx264", options={"g": "10"})
    data = bytearray((tmp_path / "v.ts").read_bytes())
    for place in range(len(data) // 3 // 188 * 188, len(data) // 2, 188):
        data[place + 40 : place + 90] = os.urandom(50)
    for name, content in (("a.ts", data), ("b.webm", (DATA / "video_a.webm").read_bytes()[:-2000])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Corrupt):
            write_captions(str(tmp_path / name), str(tmp_path / "o.mp4"), [(0.0, np.inf, "label")])
    assert len(list(tmp_path.iterdir())) == 3


def drawn(folder, text, size=(320, 240)):
    """The picture of a grey video into which a text was drawn, RGB."""
    filmed(folder / "v.mp4", greys(10, size)[9:])
    write_captions(str(folder / "v.mp4"), str(folder / "o.mp4"), [(0.0, np.inf, text)])
    with strict():
        return next(read_video(str(folder / "o.mp4"), range))[1].astype(int)


def differ(one, other):
    return bool((np.abs(one - other) > 60).any())


@pytest.mark.parametrize("size", [(320, 240), (96, 128), (1280, 96)])
@pytest.mark.parametrize("label", [
    "Putting something that cannot actually stand upright upright on the table, so it falls on its side", "把某物放在桌子上使其倒下" * 3,
    "a" * 90, "بدون ارتفاع", "Überschlag – naïve", "日本語のラベル"])
def test_labels_are_drawn_whole_and_in_their_own_script(tmp_path, size, label):
    picture = drawn(tmp_path, "0.97 " + label, size)
    assert differ(picture, drawn(tmp_path, "0.97 " + label[:-1], size))  # the last letter is there
    assert label.isascii() or differ(picture, drawn(tmp_path, "0.97 " + "?" * len(label), size))
    assert np.abs(picture[-size[1] // 8 :] - 36).max() < 20  # and the picture below it


def test_what_labels_are_drawn_by_is_named_where_it_is_missing(monkeypatch, tmp_path):
    for name in ("av.codecs_available", "tsm.predict.captions.av", "cv2.FontFace"):
        with monkeypatch.context() as without:
            without.delattr(name) if name.startswith("cv2") else without.setattr(name, None if name.endswith(".av") else {"mpeg4"})
            with pytest.raises(Corrupt, match="install -U av"):
                drawn(tmp_path, "label")


@pytest.mark.parametrize("length, stride", [(1.0, None), (2.0, 0.1), (1.3, 0.35), (0.5, 2.0), (50.0, 1.0)])
def test_windows_hold_the_frames_of_a_clip_of_their_own(tmp_path, length, stride):
    video(tmp_path / "v.mp4", 4.3)
    with strict():
        every = [resized(frame, SSV2) for _, frame in read_video(str(tmp_path / "v.mp4"), range)]
    found = list(windowed(str(tmp_path / "v.mp4"), length, stride, SSV2, "uint8"))
    expected = windows_of(even(len(every), 20.0), length, stride or length / 2)
    assert [window for window, _ in found] == [window for window, _, _ in expected]
    for (_, tensor), (_, first, stop) in zip(found, expected):
        assert np.array_equal(tensor, as_video(every[first:stop], frame_indices(stop - first, SSV2), SSV2, "uint8"))


def test_windows_beyond_the_memory_are_their_own_error(monkeypatch, tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        video(tmp_path / name, 3)
    paths, whole = [str(tmp_path / name) for name in ("a.mp4", "b.mp4", "c.mp4")], windowed

    def results(length=2.0):
        return {(number, str(found) if isinstance(found, Exception) else "")
                for (number, _), found in parts_of(paths, length, None, SSV2, "uint8", 1)}

    def fails(path, *args):
        for number, one in enumerate(whole(path, *args)):
            if path == paths[1] and number == 1:
                raise MemoryError
            if path == paths[0] and number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield one

    monkeypatch.setattr(by_clip, "windowed", fails)
    said = dict(sorted(results()))
    assert "killed" in said[0] and "needs more memory than there is; pass a shorter --window" in said[1] and said[2] == ""
    monkeypatch.setattr(by_clip, "windowed", whole)
    monkeypatch.setattr(windows_module, "ALWAYS_ROOM", 0)
    monkeypatch.setattr(windows_module, "free_memory", lambda: 6e6)
    assert {said for _, said in results(0.1)} == {""}
    said = {said for _, said in results()}
    assert len(said) == 1 and "a window's frames take 0.0 GB, more than half of the free memory" in said.pop()


@pytest.mark.parametrize("window", [(), ("--window", 1)])
def test_a_killed_decoder_is_its_own_input_s_error(run, patched, small_onnx, tmp_path, window):
    names = ["a.mp4", "b.mp4", "c.mp4"]
    for name in names:
        video(tmp_path / name, 1)
    killed = patched("TSM_predict.py", (
        "from tsm.video import decode\nchecked = decode._checked\n"
        "decode._checked = lambda path: os.kill(os.getpid(), signal.SIGKILL) if path == 'b.mp4' else checked(path)"))
    done = run(killed, "--model", small_onnx, *QUICK, "--json", "out.json", "--num_worker", 1, *window, *names, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("error: ") == 1 and "b.mp4: its decoder was killed" in done.stderr, done.stderr
    assert ("--window" if window else "--num_worker") in done.stderr
    found = json.loads((tmp_path / "out.json").read_text())["inputs"]
    assert [(entry["input"], bool(entry["error"]), bool(entry["windows"])) for entry in found] == [
        ("a.mp4", False, True), ("b.mp4", True, False), ("c.mp4", False, True)]


def test_a_clip_beyond_the_memory_is_its_own_error(monkeypatch, tmp_path):
    for name in ("a.mp4", "b.mp4"):
        video(tmp_path / name, 1)
    whole = clips_module.fill

    def fails(path, *args):
        if path.endswith("a.mp4"):
            raise MemoryError
        whole(path, *args)

    monkeypatch.setattr(clips_module, "fill", fails)
    paths = [str(tmp_path / name) for name in ("a.mp4", "b.mp4")]
    found = {number: result for (number, _), result in parts_of(paths, None, None, SSV2, "uint8", 2)}
    assert isinstance(found[0], Corrupt) and "more memory than there is" in str(found[0]) and found[1].shape == (1,) + SSV2.video_shape


def test_the_frames_of_a_long_window_are_bounded(monkeypatch):
    monkeypatch.setattr(live, "MOST_FRAMES", 50)
    recent = seen(monkeypatch, [number / 100 for number in range(1000)], seconds=5.0)[-1]
    assert 45 <= len(recent.frames) <= 52 and recent.end == 9.99 and recent.start >= 4.99


def test_an_address_that_never_answers_is_one_line(run, patched, small_onnx, repo, tmp_path):
    """Two of them, at the same time, with a short patience."""
    impatient = patched("TSM_predict.py", "import tsm.predict.live; tsm.predict.live.SILENCE = 1.0")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(9)  # so the kernel answers, and nobody else
        place = "127.0.0.1:%d/v.mp4" % silent.getsockname()[1]
        done = run(impatient, "--model", small_onnx, *QUICK, "--labels", repo / "demo/annotations/something-something-v2-labels.json",
                   "--json", "out.json", "http://" + place, "rtsp://" + place, cwd=tmp_path, env=DIRECT)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 2 and all("sends no frames" in line for line in lines), done.stderr
    for entry in json.loads((tmp_path / "out.json").read_text())["inputs"]:
        assert "sends no frames" in entry["error"]


@pytest.fixture
def site():
    """site(respond) -> the place, HOST:PORT, of a server whose answer to a GET is what respond(handler) writes."""
    servers = []

    def site(respond):
        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                with contextlib.suppress(OSError):
                    respond(self)

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        servers[-1].daemon_threads = True
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return "127.0.0.1:%d" % servers[-1].server_address[1]

    yield site
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def refusing():
    """The place, HOST:PORT, of an RTSP server that has no path /nowhere, and for any other wants a password that nobody knows."""
    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            text = b""
            for line in self.rfile:
                text += line
                if line == b"\r\n":
                    status = b"404 Not Found" if b"/nowhere" in text else b'401 Unauthorized\r\nWWW-Authenticate: Basic realm="x"'
                    self.wfile.write(b"RTSP/1.0 %s\r\nCSeq: %s\r\n\r\n" % (status, re.search(rb"CSeq: (\d+)", text).group(1)))
                    text = b""

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield "127.0.0.1:%d" % server.server_address[1]
        server.shutdown()


def filed(data, told=None):
    """A respond() for site(): a file, whose size is told, or said to be another, in the header."""
    def respond(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(told or len(data)))
        handler.end_headers()
        handler.wfile.write(data)
    return respond


def motion_jpeg(frames, password=""):
    """A respond() for site(): a camera of `frames` pictures, 20 per second."""
    def respond(handler):
        if password and handler.headers.get("Authorization") != "Basic " + base64.b64encode(password.encode()).decode():
            handler.send_response(401)
            handler.send_header("WWW-Authenticate", 'Basic realm="camera"')
            return handler.end_headers()
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        for number in range(frames):
            picture = cv2.imencode(".jpg", np.full((48, 64, 3), 3 * number, np.uint8))[1].tobytes()
            handler.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(picture), picture))
            time.sleep(0.05)
    return respond


def test_a_download_that_breaks_off_and_a_camera_that_goes_away_are_errors_and_keep_what_was_found(predict, site, repo, tmp_path):
    whole = (repo / "test/data/kinds/whole.mp4").read_bytes()
    webm = (repo / "demo/videos/74225.webm").read_bytes()
    places = [site(filed(webm)), site(filed(webm[: len(webm) // 2], len(webm))), site(motion_jpeg(30)),
              site(filed(whole[:200], len(whole)))]
    done = predict("--window", 0.5, "--json", "out.json", "--jsonl", "out.jsonl", *["http://%s/v" % place for place in places],
                   cwd=tmp_path, env=DIRECT)
    found = json.loads((tmp_path / "out.json").read_text())["inputs"]
    assert done.returncode == 1 and done.stderr.count("error: ") == 3 == done.stderr.count("\n"), done.stderr
    assert [(bool(entry["error"]), bool(entry["windows"])) for entry in found] == [(False, True), (True, True), (True, True), (True, False)]
    assert "broke off" in found[1]["error"] and "broke off" in found[2]["error"]
    lines = list(map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()))
    assert [sum(line["input"] == entry["input"] for line in lines) for entry in found] == [
        len(entry["windows"]) + bool(entry["error"]) for entry in found]
    assert all(place in done.stdout for place in places)


def test_cameras_before_an_online_model_are_answered_on_a_grid_each_by_itself(run, online_onnx, site, tmp_path):
    places = ["http://%s/v" % site(motion_jpeg(frames)) for frames in (30, 20)]
    done = run("TSM_predict.py", "-m", online_onnx, "--every", 0.25, "--json", "o.json", "--html", "o.html", *QUICK, *places,
               cwd=tmp_path, env=DIRECT)
    assert done.returncode == 1 and done.stderr.count("error: ") == 2, done.stderr  # both have ended
    for place, entry, seconds in zip(places, json.loads((tmp_path / "o.json").read_text())["inputs"], (1.5, 1.0)):
        ends = [window["end"] for window in entry["windows"]]
        assert len(ends) == entry["frames"] and entry["frames"] + entry["passed_over"] >= seconds / 0.25 - 1 and entry["every"] == 0.25
        assert all(after > before for before, after in zip(ends, ends[1:])) and "%d frames answered" % len(ends) in done.stdout
        assert entry["latency_ms"]["frame_to_answer"]["p50"] >= entry["latency_ms"]["network"]["p50"] > 0
        assert done.stdout.count(place + "  0:") >= 1 and "broke off" in entry["error"] or "ended" in entry["error"]
    assert "frame by frame" in (tmp_path / "o.html").read_text()


def test_a_password_is_in_no_output_and_a_wrong_one_is_told_from_a_wrong_path(predict, site, refusing, tmp_path):
    camera = site(motion_jpeg(20, "admin:p@ss"))
    given = ["http://admin:p@ss@%s/v" % camera, "http://admin:s3cret@%s/v" % camera, "rtsp://u:s3cret@%s/cam" % refusing,
             "rtsp://u:s3cret@%s/nowhere" % refusing, "rtsp://u:s3cret@127.0.0.1:9/cam", "rtsp://u:s3/cret@127.0.0.1:9/cam"]
    done = predict("--window", 0.5, "--json", "o.json", "--jsonl", "o.jsonl", "--csv", "o.csv", "--html", "o.html",
                   *given, cwd=tmp_path, env=DIRECT)
    texts = [done.stdout, done.stderr] + [(tmp_path / name).read_text() for name in ("o.json", "o.jsonl", "o.csv", "o.html")]
    assert not any(word in text for text in texts for word in ("s3", "p@ss", "cret")), texts[1]
    assert all("admin:***@" + camera in text for text in texts)
    found = json.loads(texts[2])["inputs"]
    assert done.returncode == 1 and found[0]["windows"] and found[0]["input"] == "http://admin:***@%s/v" % camera
    for entry, words in zip(found[1:], ("401", "401", "404", "connection refused", "")):
        assert words in entry["error"], entry


@pytest.mark.parametrize("address, shown", [
    ("rtsp://admin:a@b/c?d#e@host:554/cam", "rtsp://admin:***@host:554/cam"), ("rtsp://admin:a/b@host/cam", "rtsp://admin:***@host/cam"),
    ("http://token@host/", "http://***@host/"), ("rtsp://:x@host", "rtsp://:***@host"), ("RTSP://u:@host", "RTSP://u:***@host"),
    ("http://host:80/a@2x.mp4", None), ("http://[::1]:80/a@b", None), ("http://u:p%40@[::1]:80/a", "http://u:***@[::1]:80/a"),
    ("http://host/?token=1", None), ("rtsp://host", None),
])
def test_what_an_address_shows(address, shown):
    assert without_password(address) == (shown or address)
    assert [(one.path, one.live) for one in expand([address])] == [(shown or address, address)]


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_watch_of_two_addresses_with_what_was_found(repo, small_onnx, streamed, tmp_path, number, status):
    served = streamed(9)
    command = [sys.executable, str(repo / "TSM_predict.py"), "--model", str(small_onnx), "--window", "1", "--every", "0.5", "--json",
               "out.json", served, served + "?2"] + list(QUICK)
    process, lines = started(*command, cwd=tmp_path, env=DIRECT), ""
    while lines.count(served + "  ") < 1 or lines.count(served + "?2  ") < 1:
        line = process.stdout.readline()
        assert line, lines
        lines += line
    process.send_signal(number)
    _, errors = process.communicate(timeout=LONGEST)
    assert process.returncode == status and errors.count("error: ") == bool(status), errors
    found = json.loads((tmp_path / "out.json").read_text())["inputs"]
    assert [entry["input"] for entry in found] == [served, served + "?2"] and all(entry["windows"] for entry in found)
    assert status or not any(entry["error"] for entry in found)


def test_a_stride_by_itself_is_for_what_is_watched(fails, run, small_onnx, tmp_path):
    given = ("TSM_predict.py", "--model", small_onnx, *QUICK)
    assert "x.mp4 is none" in fails(*given, "--every", 1, "http://127.0.0.1:9/v", "x.mp4", cwd=tmp_path, status=2)
    said = run(*given, "--stride", 1, "http://127.0.0.1:9/v", cwd=tmp_path, env=DIRECT).stderr
    assert "--stride is spelt --every now" in said and "connection refused" in said


@pytest.mark.all
def test_what_was_annotated_is_no_input_of_a_search(predict, clips):
    folder, truth = clips
    for given in ("clips", "clips/**", "clips", "clips/*"):
        done = predict("--annotate", "clips", given, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert len(list((folder / "clips").iterdir())) == 6 and done.stdout.count("wrote ") == 3
    assert done.stderr.count("\n") == 1 and "clips/*: 3 of its videos are passed over" in done.stderr
    drawn = "clips/%s.mp4" % min(truth)[:-5]
    done = predict("--json", "out.json", drawn, cwd=folder)
    assert len(entries(done, folder)) == 1 and done.stderr == ""
    for name in truth:
        (folder / "clips" / name).unlink()
    done = predict("clips", cwd=folder)
    assert done.returncode == 1 and "clips: no other videos and no frames in it" in done.stderr, done.stderr


def test_a_picture_is_told_from_a_video(predict, tmp_path):
    for name in ("photo.jpg", "photo.png", "photo.bmp", "photo.webp"):
        cv2.imwrite(str(tmp_path / name), np.full((48, 64, 3), 90, np.uint8))
    (tmp_path / "photo.jpg").rename(tmp_path / "renamed.mp4")
    (tmp_path / "no.jpeg").write_text("no picture at all")
    names = ["photo.png", "photo.bmp", "photo.webp", "renamed.mp4", "no.jpeg"]
    for window in ((), ("--window", 1)):
        done = predict(*names, *window, cwd=tmp_path)
        assert done.returncode == 1 and done.stderr.count("is a picture, not a video; give the folder that its frames are in") == 5
        assert done.stderr.count("\n") == 5, done.stderr


def test_names_that_look_like_addresses_are_files(predict, tmp_path):
    names = ["file:z.mp4", "a:b.mp4", "http:x.mp4", "-x:y.mp4", "concat:a|b.mp4"]
    for name in names:
        video(tmp_path / name, 1)
    args = ("--views", 1, "--window", 0.5, "--annotate", "o:ut", "--html", "o.html", "--json", "out.json", "--", *names)
    done = predict(*args, cwd=tmp_path)
    assert len(entries(done, tmp_path)) == len(names) and {frames_in(tmp_path / "o:ut" / name) for name in names} == {20}


def test_one_output_that_cannot_be_written_costs_no_other(repo, small_onnx, predict, tmp_path):
    video(tmp_path / "v.mp4", 1)
    done = predict("--json", "whole.json", "--csv", "whole.csv", "--jsonl", "whole.jsonl", "v.mp4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    limit = (tmp_path / "whole.csv").stat().st_size
    labels = repo / "demo/annotations/something-something-v2-labels.json"
    done = limited(repo, small_onnx, tmp_path, limit + 40, "--labels", labels, "--json", "o.json", "--csv", "o.csv",
                   "--html", "o.html", "--jsonl", "whole.jsonl", "v.mp4")
    assert done.returncode == 1 and sorted(line.split("error: ")[1].split(":")[0] for line in done.stderr.splitlines()) == [
        "o.html", "o.json", "whole.jsonl"], done.stderr
    assert (tmp_path / "o.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not (tmp_path / "o.json").exists() and not (tmp_path / "o.html").exists()


def test_lines_of_json_are_there_as_they_come_and_stay(tmp_path):
    answer = Answer(Window(1.0, 3.0), [Ranked(3, "\u5f00\u95e8", 0.5)])
    for _ in range(2):
        log = Log(str(tmp_path / "l.jsonl"))
        log.add("a.mp4", answer)
        log.add("b.mp4", None, "is no file")
    lines = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]  # before anything was closed
    assert len(lines) == 4 and not log.failed and all(line.pop("time").endswith("Z") for line in lines)
    assert lines[0] == lines[2] == {"input": "a.mp4", "error": None, "start": 1.0, "end": 3.0,
                                    "top": [{"class_id": 3, "label": "\u5f00\u95e8", "probability": 0.5}]}
    assert lines[3] == {"input": "b.mp4", "error": "is no file", "start": None, "end": None, "top": []}


def test_a_search_passes_over_what_is_hidden_and_counts_what_it_does_not_know(tmp_path, capsys):
    for name in ("a.mp4", "b.TS", "c.Wmv", "d.rmvb", "e.RMVB", "f.heic", "g.jpg", "h.txt", "README", ".hidden.mp4", "._a.mp4", "._p.jpg",
                 ".Trashes/x.mp4", "$RECYCLE.BIN/x.mp4", "@eaDir/x.mp4", "__MACOSX/x.mp4", "deep/.git/x.mp4", "deep/i.gif"):
        (tmp_path / "top" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / name).write_text("")
    for given in ("top", "top/**"):
        found = [os.path.relpath(one.path, str(tmp_path / "top")) for one in expand([str(tmp_path / given)])]
        assert {"a.mp4", "b.TS", "c.Wmv", "deep/i.gif"} <= set(found) and not any("x.mp4" in name or "/." in name for name in found)
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and ".rmvb 2" in said and ".heic 1" in said and ".jpg 1" in said and "txt" not in said, said
    assert [one.path for one in expand([str(tmp_path / "top/.Trashes")])] == [str(tmp_path / "top/.Trashes/x.mp4")]  # it was named
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.rmvb").write_text("")
    assert "passed over, for their suffix: .rmvb 1" in expand([str(tmp_path / "other")])[0].error


def test_names_of_annotated_copies_take_linear_time(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(os.path, "lexists", lambda path: asked.append(path))
    names = annotated_names("out", ["%d/video.mp4" % number for number in range(2000)] + ["x/video_7.mp4"], [])
    assert len(set(names)) == 2001 and names[:2] == ["out/video.mp4", "out/video_2.mp4"] and len(asked) < 4100
    assert names[-1] == "out/video_7_2.mp4"


def test_cells_that_a_spreadsheet_would_compute_are_text_and_commas_and_quotes_survive(predict, clips):
    folder, truth = clips
    labels = ["=1+1", "+x", "-x", "@x", "-0.5"] + ['\u5f00\u95e8, "%d"' % number for number in range(169)]
    (folder / "names.json").write_text(json.dumps(labels))
    shutil.copy(str(folder / "clips" / min(truth)), str(folder / "-0.5"))
    for bom in ((), ("--csv_bom",)):
        done = predict("--labels", "names.json", "--csv", "out.csv", "--top", 174, *bom, "--", "-0.5", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert (folder / "out.csv").read_bytes().startswith(b"\xef\xbb\xbf") == bool(bom)
        rows = list(csv.DictReader((folder / "out.csv").open(encoding="utf-8-sig", newline="")))
        shown = {int(row["class_id"]): row["label"] for row in rows}
        assert [shown[number] for number in range(174)] == ["'=1+1", "'+x", "'-x", "'@x", *labels[4:]]


@pytest.mark.parametrize("gone", [False, True])
def test_what_nohup_has_ignored_stays_ignored_and_a_terminal_that_is_gone_costs_nothing(repo, tmp_path, gone):
    program = ("import os, signal, sys\nsys.path.insert(0, %r)\nfrom tsm.cli import run\n"
               "def main():\n    try:\n        print('ready', flush=True)\n        os.read(0, 1)\n    finally:\n"
               "        print('a word', flush=True)\n        open('kept', 'w').close()\nrun(main)\n" % str(repo))
    master, slave = os.openpty() if gone else os.pipe()

    def begin():
        signal.signal(signal.SIGHUP, signal.SIG_DFL if gone else signal.SIG_IGN)
        if gone:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    process = subprocess.Popen([sys.executable, "-c", program], cwd=str(tmp_path), stdin=subprocess.PIPE, stdout=slave, stderr=slave,
                               preexec_fn=begin)
    os.close(slave)
    assert b"ready" in os.read(master, 100)
    if gone:
        os.close(master)  # the kernel sends SIGHUP, and every write fails from now on
    else:
        process.send_signal(signal.SIGHUP)
        process.stdin.close()
    assert process.wait(LONGEST) == (129 if gone else 0) and (tmp_path / "kept").exists()
    if not gone:
        assert b"a word" in os.read(master, 100)
        os.close(master)

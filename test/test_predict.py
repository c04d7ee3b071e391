"""TSM_predict.py: names for one's own videos, equal to the measured protocol; windows, files, errors that stop nobody."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

pytest.importorskip("onnx")
from tsm.clips import Window, strip, strips, windows_of
from tsm.labels import Ranked, labels_in, read_labels, top
from tsm.predict import Answer, clock, expand, in_order, segments_of

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
def predict(run, thin_onnx, repo):
    """predict(*args, cwd) -> a finished TSM_predict.py with the thin network and the dataset's names."""

    def predict(*args, **options):
        labels = () if "--labels" in args or options.pop("unnamed", False) else (
            "--labels", repo / "demo/annotations/something-something-v2-labels.json")
        return run("TSM_predict.py", "--model", thin_onnx, *(QUICK + labels + args), **options)

    return predict


def entries(done, folder):
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "out.json").read_text())["inputs"]


def test_it_names_what_happens_and_equals_the_measured_protocol(predict, works, clips, thin_onnx):
    folder, truth = clips
    done = predict("--top", 3, "--json", "out.json", "clips", cwd=folder)
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


def test_the_page_shows_a_film_strip_beside_each_answer(predict, clips, repo):
    folder, truth = clips
    (folder / "clips/<b>broken.webm").write_bytes(b"\x1aE\xdf\xa3 no video")
    long = folder / "long.avi"
    writer = cv2.VideoWriter(str(long), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(60):
        writer.write(np.full((48, 64, 3), 4 * number, np.uint8))
    writer.release()
    done = predict("--top", 2, "--html", "out.html", "clips", cwd=folder)
    assert done.returncode == 1 and "broken.webm" in done.stderr
    page = (folder / "out.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/jpeg;base64,') == 3 and page.count("<dt>then</dt>") == 3
    assert all(label in page for label in truth.values())
    assert "&lt;b&gt;broken.webm" in page and "<b>broken" not in page
    done = predict("--window", 2, "--stride", 2, "--html", "out.html", "--json", "out.json", "long.avi", cwd=folder)
    segments = entries(done, folder)[0]["segments"]
    page = (folder / "out.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/jpeg;base64,') == len(segments)
    assert "0:00.0 - %s" % clock(segments[0]["end"]) in page


def test_a_film_strip_is_of_its_window(tmp_path):
    path = str(tmp_path / "long.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(60):
        writer.write(np.full((48, 64, 3), 4 * number, np.uint8))
    writer.release()
    windows = [Window(0.0, 2.0), Window(2.0, 4.0), Window(4.0, 6.0)]
    pictures = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE) for jpeg in strips(path, windows)]
    whole = cv2.imdecode(np.frombuffer(strip(path), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert all(picture.shape == whole.shape for picture in pictures)
    for number, picture in enumerate(pictures):
        assert abs(float(picture.mean()) - 4 * (20 * number + 10)) < 6
    assert abs(float(whole.mean()) - 4 * 30) < 6


def test_folders_patterns_lists_and_frames_are_inputs(predict, clips, repo):
    folder, _ = clips
    names = sorted(path.name for path in (folder / "clips").iterdir())
    (folder / "deep/er").mkdir(parents=True)
    shutil.copy(str(folder / "clips" / names[0]), str(folder / "deep/er/UPPER.WEBM"))
    frames = folder / "frames of mine"
    frames.mkdir()
    capture = cv2.VideoCapture(str(folder / "clips" / names[0]))
    number = 0
    while True:
        read, frame = capture.read()
        if not read:
            break
        number += 1
        cv2.imwrite(str(frames / ("img_%05d.jpg" % number)), frame)
    (folder / "mine.txt").write_text("clips/%s\nframes of mine\n" % names[1])
    found = entries(predict("--json", "out.json", "deep", "clips/*%s" % names[2][-8:], "@mine.txt", cwd=folder), folder)
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


def test_labels_with_commas_and_quotes_survive_the_csv(predict, clips):
    folder, truth = clips
    names = ['class %d, "quoted"' % number for number in range(174)]
    (folder / "names.txt").write_text("".join(name + "\n" for name in names))
    done = predict("--labels", "names.txt", "--csv", "out.csv", "--top", 2, "clips", cwd=folder)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((folder / "out.csv").open(encoding="utf-8", newline="")))
    assert len(rows) == 6 and all(row["label"] == names[int(row["class_id"])] for row in rows)


def test_a_model_without_names_gives_numbers_and_a_note(predict, clips, thin_onnx):
    folder, _ = clips
    done = predict("clips", cwd=folder, unnamed=True)
    assert done.returncode == 0 and done.stderr.count("warning: ") == 1 and "--labels" in done.stderr and "class " in done.stdout


def test_one_view_says_so(predict, clips):
    folder, _ = clips
    done = predict("--views", 1, "--json", "out.json", "clips", cwd=folder)
    assert "centre view" in done.stdout and len(entries(done, folder)) == 3


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
    done = predict("--window", 4, "--stride", 2, "--json", "out.json", "long.mp4", "short.mp4", cwd=tmp_path)
    found = entries(done, tmp_path)
    assert [(window["start"], window["end"]) for window in found[0]["windows"]] == [(0, 4), (2, 6), (4, 8), (5, 9)]
    segments = found[0]["segments"]
    assert segments[0]["start"] == 0 and segments[-1]["end"] == 9
    assert all(one["end"] == following["start"] for one, following in zip(segments, segments[1:]))
    assert "short.mp4: is 1.0 s long, shorter than a window of 4 s" in done.stderr and len(found[1]["windows"]) == 1


@pytest.fixture
def served(tmp_path):
    """The address of a folder that a server on this machine gives out, with a video of 6 seconds in it."""
    (tmp_path / "served").mkdir()
    video(tmp_path / "served/v.mp4", 6)
    code = "import functools, http.server, sys; h = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1]); " \
           "s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), h); print(s.server_address[1], flush=True); s.serve_forever()"
    server = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "served")], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, universal_newlines=True)
    yield "http://127.0.0.1:%d/v.mp4" % int(server.stdout.readline())
    server.kill()
    server.wait()


DIRECT = {"http_proxy": "", "HTTP_PROXY": "", "no_proxy": "127.0.0.1"}


def test_a_stream_is_watched_at_its_own_speed(predict, served, tmp_path):
    began = time.time()
    done = predict("--window", 2, "--stride", 1, "--json", "out.json", served, cwd=tmp_path, env=DIRECT)
    assert done.returncode == 0, done.stderr
    entry = entries(done, tmp_path)[0]
    assert entry["input"] == served and len(entry["windows"]) >= 2 and time.time() - began > 5
    for window in entry["windows"]:
        assert window["end"] - window["start"] <= 2.001  # the newest seconds, and no more
    ends = [window["end"] for window in entry["windows"]]
    assert all(after - before >= 0.99 for before, after in zip(ends, ends[1:])) and entry["segments"]


def test_ctrl_c_ends_a_stream_with_what_was_found(repo, thin_onnx, served, tmp_path):
    command = [sys.executable, str(repo / "TSM_predict.py"), "--model", str(thin_onnx), "--window", "1", "--json", "out.json",
               served] + list(QUICK)
    process = subprocess.Popen(command, cwd=str(tmp_path), env=dict(os.environ, **DIRECT), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, universal_newlines=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    process.stdout.readline()  # its name
    process.stdout.readline()  # the first answer
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in errors, errors
    entry = json.loads((tmp_path / "out.json").read_text())["inputs"][0]
    assert entry["error"] is None and entry["windows"]


def test_an_address_that_answers_nothing_is_one_line(predict, tmp_path):
    done = predict("http://127.0.0.1:9/v.mp4", cwd=tmp_path, env=DIRECT)
    assert done.returncode == 1 and "http://127.0.0.1:9/v.mp4: cannot be opened" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_memory_does_not_grow_with_a_video_s_length(repo, thin_onnx, tmp_path):
    """Ten minutes against one, in KB; the decoder itself keeps a queue of frames, which a minute does not fill."""
    peaks = []
    for minutes in (1, 10):
        video(tmp_path / "v.mp4", 60 * minutes)
        program = ("import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL); "
                   "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)")
        command = [sys.executable, "-c", program, sys.executable, str(repo / "TSM_predict.py"), "--model", str(thin_onnx),
                   "--window", "20", "--stride", "20", "--views", "1", "--num_worker", "1", "v.mp4"] + list(QUICK)
        done = subprocess.run(command, cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] <= peaks[0] + 128 * 1024, peaks  # all frames after the resize would be 12,000 times 288 KB


def test_annotated_videos_play_and_hold_every_frame(predict, clips):
    folder, truth = clips
    done = predict("--annotate", "drawn", "clips", cwd=folder)
    assert done.returncode == 0, done.stderr
    for name in truth:
        counts = []
        for path in (folder / "clips" / name, folder / "drawn" / (name[:-5] + ".mp4")):
            capture, frames = cv2.VideoCapture(str(path)), 0
            while capture.read()[0]:
                frames += 1
            counts.append(frames)
        assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("make, args, says", [
    (lambda folder: (folder / "none").mkdir(), ("none",), "no videos"),
    (lambda folder: None, ("*.mkv",), "no file matches"),
    (lambda folder: (folder / "l.txt").write_text("\n"), ("@l.txt",), "no videos in it"),
    (lambda folder: (folder / "l.txt").write_text("a.webm 3\n"), ("@l.txt",), "list with labels"),
    (lambda folder: (folder / "n.txt").write_text("a\nb\n"), ("--labels", "n.txt", "x.webm"), "names 2 classes, the model has 174"),
    (lambda folder: None, ("--camera", 63), "camera"),
])
def test_wrong_inputs_are_one_clear_line(predict, tmp_path, make, args, says):
    make(tmp_path)
    done = predict(*args, cwd=tmp_path)
    assert done.returncode == 1 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("args", [(), ("--camera", "0", "x.mp4"), ("--stride", "2", "x.mp4"), ("--window", "0", "x"), ("--top", "0", "x")])
def test_usage_errors_exit_2(fails, tmp_path, args):
    fails("TSM_predict.py", "--model", "x.onnx", *args, cwd=tmp_path, status=2)


def test_windows_end_with_the_video_and_never_leave_it():
    for frames, rate, length, stride in ((180, 20, 4, 2), (181, 20, 4, 2), (7, 25, 4, 2), (100, 10, 1, 5), (1, 30, 2, 1)):
        windows = windows_of(frames, rate, length, stride)
        assert windows[0][1] == 0 and windows[-1][2] == frames
        assert all(0 <= first < stop <= frames for _, first, stop in windows)
        assert windows[-1][0].end == round(frames / rate, 3)


def test_segments_join_windows_of_one_label():
    answers = [Answer(Window(start, start + 4.0), [Ranked(0, label, p)])
               for start, label, p in ((0.0, "a", 0.8), (2.0, "a", 0.6), (4.0, "b", 0.5), (6.0, "a", 0.9))]
    assert [tuple(segment) for segment in segments_of(answers)] == [
        (0.0, 5.0, "a", pytest.approx(0.7)), (5.0, 7.0, "b", 0.5), (7.0, 10.0, "a", 0.9)]


def test_results_come_in_the_order_of_the_inputs():
    assert list(in_order([(2, "c"), (0, "a"), (1, "b"), (3, "d")])) == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]


def test_label_files_of_every_kind_give_the_same_names(tmp_path):
    names = ["Closing something", "开门, 关门", "c"]
    files = {"object.json": json.dumps({name: str(number) for number, name in reversed(list(enumerate(names)))}),
             "list.json": json.dumps(names), "map.txt": "\n".join(names) + "\n", "bom.txt": "\ufeff" + "\r\n".join(names)}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_labels(str(tmp_path / name), 3) == names
    assert labels_in({"tsm.labels": json.dumps(names)}, 3) == names
    for wrong in ("{", "[1]", json.dumps(names[:2]), "null"):
        assert labels_in({"tsm.labels": wrong}, 3) is None


def test_top_puts_the_lower_class_first_among_equals():
    assert [ranked.class_id for ranked in top(np.array([0.1, 0.4, 0.1, 0.4]), None, 3)] == [1, 3, 0]
    assert clock(62.46) == "1:02.5" and clock(3725.0) == "1:02:05.0"
    assert expand(["http://x/y.mp4"]) == ["http://x/y.mp4"]

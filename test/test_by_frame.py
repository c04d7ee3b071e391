"""TSM_predict.py with an online model: a frame at a time, equal to the clip; running answers, events, resets; cameras on a grid."""

import argparse
import csv
import json
import shutil

import numpy as np
import pytest
from clips import filmed

from tsm.cli import Corrupt
from tsm.files import write_json
from tsm.model.offline import clip_of, read_offline
from tsm.model.onnxfile import session
from tsm.predict import by_frame, live
from tsm.predict.answers import Log, in_figures
from tsm.predict.by_frame import FrameViewer
from tsm.predict.live import Recent
from tsm.protocol import SSV2, softmax
from tsm.samples import evenly
from tsm.video.clips import as_video
from tsm.video.windows import paced

QUICK = ("--backend", "onnxruntime")
SHIFT = "bi-still"


@pytest.fixture
def clip(repo, tmp_path):
    shutil.copy(str(repo / "demo/videos/74262.webm"), str(tmp_path / "a.webm"))
    return tmp_path


def inputs(folder, name="o.json"):
    return json.loads((folder / name).read_text())["inputs"]


def test_the_answer_of_a_file_is_that_of_its_clip_and_each_file_begins_anew(run, online_onnx, clip):
    shutil.copy(str(clip / "a.webm"), str(clip / "b.webm"))
    done = run("TSM_predict.py", "-m", online_onnx, "--json", "o.json", "--csv", "o.csv", "--html", "o.html", "--jsonl", "o.jsonl",
               "--annotate", "drawn", "--top", 3, "none.mp4", "a.webm", "b.webm", *QUICK, cwd=clip)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stdout.count("none.mp4") == 0, done.stdout + done.stderr
    _, one, other = inputs(clip)
    assert one["windows"] == other["windows"] and len(one["windows"]) == one["frames"] == SSV2.segments and one["resets"] == []
    model = read_offline(str(online_onnx))
    view = model.tested_by._replace(sampling="uniform", crops="centre")
    images = [image for _, image in paced(str(clip / "a.webm"), None, view)]
    scores = session(clip_of(model, "view"), "clip").run(None, {"input": as_video(images, range(8), view, "float32")})[0]
    for count, window in enumerate(one["windows"], 1):
        expected = softmax(scores[:count].mean(0))
        assert window["start"] == one["windows"][0]["end"]
        assert [ranked["class_id"] for ranked in window["top"]] == np.argsort(-expected, kind="stable")[:3].tolist()
        assert [ranked["probability"] for ranked in window["top"]] == pytest.approx(np.sort(expected)[::-1][:3], abs=1e-5)
    facts = json.loads((clip / "o.json").read_text())
    assert facts["shift"] == SHIFT and facts["approximates"] == "bi" and sorted(one["latency_ms"]["network"]) == ["p50", "p90", "p99"]
    page, rows = (clip / "o.html").read_text(), list(csv.DictReader((clip / "o.csv").open(encoding="utf-8", newline="")))
    assert page.count('aria-label="Probability of the running answer') == 2 and "frame by frame, shift bi-still" in page
    assert in_figures(2, 0, {"p50": 1220.4}, {"p50": 0.5}) == "2 frames answered; frame to answer p50 1,220 ms (network 0.500)"
    assert "run causally" in page and "run causally" in done.stdout and "16 frames answered; frame to answer p50 " in done.stdout
    assert "gives the same answer on %d of 2 videos" % facts["agreement_with_clip"]["same"] in done.stdout
    trained = session(clip_of(model, "view", shift="bi"), "bi").run(None, {"input": as_video(images, range(8), view, "float32")})[0].mean(0)
    assert facts["agreement_with_clip"] == {"same": 2 * int(trained.argmax() == one["windows"][-1]["top"][0]["class_id"]), "videos": 2}
    assert len(rows) == 1 + 2 * 8 * 3 and {row["approximates"] for row in rows} == {"bi"}
    assert len((clip / "o.jsonl").read_text().splitlines()) == 1 + 2 * 8 and len(list((clip / "drawn").iterdir())) == 2


@pytest.mark.parametrize("every, moments, shades", [
    (None, [0.3, 0.9, 1.5, 2.1, 2.7, 23.2, 23.8, 24.4], [3, 9, 15, 21, 27, 33, 39, 45]),  # middles of eighths, by their own times
    (5.0, [0, 5, 10, 15, 20], [0, 29, 29, 29, 29]), (0.15, None, None), (100, [0], [0]),
])
def test_frames_are_those_that_are_shown_then(tmp_path, every, moments, shades):
    """A video of 48 frames, whose frame 29 is shown for 20 s, the others for 0.1 s."""
    starts = np.array([0.1 * number + (19.9 if number > 29 else 0) for number in range(49)])
    filmed(tmp_path / "v.mp4", [np.full((48, 64, 3), 4 * number, np.uint8) for number in range(48)], starts)
    found = [(moment, float(image.mean()) / 4) for moment, image in paced(str(tmp_path / "v.mp4"), every, SSV2)]
    if moments is None:  # a grid does not drift, and each place of it is there
        moments = [0.15 * number for number in range(165)]
        shades = [int(np.searchsorted(starts[:-1], moment + 0.05, "right")) - 1 for moment in moments]
    assert [moment for moment, _ in found] == pytest.approx(moments, abs=0.002)
    assert [shade for _, shade in found] == pytest.approx(shades, abs=1.5)


@pytest.mark.parametrize("starts, spacings", [
    (np.round(np.arange(91) / 30, 3), (1 / 30, 0.1, 0.3)), (np.arange(91) / 30 + 0.008 * np.array([0, 1, 0, -1] * 23)[:91], (0.1, 0.3))])
def test_a_frame_that_begins_a_moment_after_its_place_is_shown_there(tmp_path, starts, spacings):
    """30 frames a second, whose times are rounded to milliseconds, or vary: each once, or each third."""
    filmed(tmp_path / "v.mkv", [np.full((48, 64, 3), 2 * number, np.uint8) for number in range(90)], starts, codec="ffv1")
    for every in spacings:
        found = [float(image.mean()) / 2 for _, image in paced(str(tmp_path / "v.mkv"), every, SSV2)]
        assert found == pytest.approx(list(range(0, 90, round(every * 30))), abs=0.8)


def test_what_has_no_times_is_no_video_for_it(tmp_path):
    filmed(tmp_path / "v.mp4", [np.zeros((48, 64, 3), np.uint8)] * 9)
    with pytest.raises(Corrupt, match="shorter than one of its frames, 0.1000 s"):
        next(paced(str(tmp_path / "v.mp4"), 0.01, SSV2))
    with pytest.raises(Corrupt, match="a folder of frames"):
        next(paced(str(tmp_path), None, SSV2))


class Network:
    """States that count frames since the reset; the scores are those given for a frame's grey, and the count is told of the last class."""

    def __init__(self, scores):
        self.scores, self.count = scores, 0

    def reset(self):
        self.count = 0

    def step(self, frame):
        self.count += 1
        grey = int(round(float(frame[0, 0].mean())))
        return np.array([*self.scores[grey], self.count], np.float32)


def viewed(network, greys, prefix="", cuts=(), sizes=None, every=1.0, **given):
    """A FrameViewer that has seen frames of these greys, one a second."""
    way = argparse.Namespace(
        args=argparse.Namespace(**dict(
            dict(memory=None, every=every, threshold=None, reset=None, top=3, json="o.json", csv=None, html=None), **given)),
        names=["a", "b", "count"], model=argparse.Namespace(tested_by=SSV2, dtype=np.dtype("uint8")), every=every, clip=None,
        precision="fp32", compare=lambda *args: None)
    viewer = FrameViewer("x", Log(None), prefix, way, network)
    for number, grey in enumerate(greys):
        image = np.full((sizes[number] if sizes else (256, 300)) + (3,), grey, np.uint8)
        viewer.see(Recent([image], number, float(number), by_frame.time.monotonic(), 0, number in cuts))
    return viewer


def probabilities(viewer):
    """Those of class a, per frame."""
    return [next(one["probability"] for one in window["top"] if one["label"] == "a") for window in viewer.rows]


SCORES = {0: (5, 0), 200: (0, 9), 90: (2, 1)}


@pytest.mark.parametrize("prefix, memory, kept", [("", None, 9), ("", 2, 2), ("  ", None, 8), ("  ", 0, 9), ("  ", 3, 3)])
def test_the_running_answer_is_a_mean_of_scores(capsys, prefix, memory, kept):
    greys = [0, 200, 90, 0, 0, 200, 200, 200, 90, 0]
    viewer = viewed(Network(SCORES), greys, prefix, memory=memory)
    scores = np.array([SCORES[grey] + (number,) for number, grey in enumerate(greys, 1)], float)
    for number, found in enumerate(probabilities(viewer)):
        first = 0 if kept == 9 else max(0, number + 1 - kept)
        assert found == pytest.approx(softmax(scores[first : number + 1].mean(0))[0], abs=1e-6)
        assert (viewer.rows[number]["start"], viewer.rows[number]["end"]) == (first, number)
    labels = [window["top"][0]["label"] for window in viewer.rows]
    changes = sum(one != other for one, other in zip([""] + labels, labels))
    assert sum(" | " in line for line in capsys.readouterr().out.splitlines()) == changes
    segments = viewer.close()
    assert len(segments) == changes and segments[0].start == 0 and segments[-1].end == 9


def test_what_hours_of_a_camera_say_takes_little_memory(tmp_path):
    """Of a frame two times and the bytes of --json's figures, and those only where they will be written."""
    greys = [0, 200, 90, 0, 0, 200, 200, 200, 90, 0] * 9
    for top in (1, 3):
        viewer, plain = viewed(Network(SCORES), greys, "  ", top=top), viewed(Network(SCORES), greys, "  ", top=top, json=None)
        rows = viewer.rows
        assert len(rows) == 90 == len(list(rows)) and rows[-1] == list(rows)[-1] and evenly(rows, 9) == list(rows)[::10]
        assert rows.kept.itemsize * len(rows.kept) == 90 * 16 * (1 + top) and viewer.waits.itemsize == 4
        assert len(plain.rows) == 0 and len(plain.answers) == 1 and plain.close() == viewer.close()
        write_json(str(tmp_path / "rows"), {"windows": rows})
        write_json(str(tmp_path / "list"), {"windows": list(rows)})
        assert (tmp_path / "rows").read_bytes() == (tmp_path / "list").read_bytes() != b""


@pytest.mark.parametrize("given, resets, said", [
    ({"cuts": {4}}, [4], 1), ({"sizes": [(256, 300)] * 3 + [(300, 256)] * 5}, [3], 1), ({"reset": "scene"}, [3, 4], 0),
    ({"reset": 3.0}, [3, 6], 0), ({}, [], 0)])
def test_what_was_seen_before_is_forgotten_when_it_has_to_be(capsys, given, resets, said):
    viewer = viewed(Network(SCORES), [0, 0, 0, 200, 0, 0, 0, 0], **given)
    assert viewer.facts()["resets"] == resets and capsys.readouterr().err.count("what it saw before is forgotten") == said
    since = [max([0] + [moment for moment in resets if moment <= number]) for number in range(8)]
    assert [window["start"] for window in viewer.rows] == since
    assert viewer.network.count == 8 - since[-1]
    scores = np.array([SCORES[0] + (number,) for number in range(1, 9 - since[-1])], float)
    if since[-1] > 3:
        assert probabilities(viewer)[-1] == pytest.approx(softmax(scores.mean(0))[0], abs=1e-6)


def test_an_event_begins_above_the_threshold_and_ends_below_half_of_it(capsys):
    greys = [90, 0, 0, 90, 0, 200, 0, 0]
    network = Network({0: (30, 0), 90: (10, 9.9), 200: (0, 30)})
    viewer = viewed(network, greys, threshold=0.8, memory=1, every=None)  # of class a: 0.5, 1, 1, 0.5, 1, 0, 1, 1
    segments = viewer.close()
    assert [(one.start, one.end, one.label) for one in segments] == [(1, 5, "a"), (5, 6, "b"), (6, 7, "a")]
    assert segments[0].probability == pytest.approx(1, abs=1e-3) and not viewer.lasting
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "x" and [line.split()[0] for line in said[1:]] == ["0:01.0", "0:05.0", "0:06.0", "3"]


def reader(moments, clocks=None, seconds=0.0, stride=0.1):
    """A source whose frames came at these moments; each time once it knows one more."""
    made = live._Reader("x", "x://y", seconds, stride, SSV2, 0.0, live.threading.Condition())
    for moment, clock in zip(moments, moments if clocks is None else clocks):
        made.keep(moment, clock, np.zeros((4, 4, 3), np.uint8))
        yield made


def test_a_grid_of_answers_does_not_drift_and_what_it_passes_over_is_counted():
    asked = {0.0, 0.4, 0.8, 2.7, 3.1, 3.4}  # frames come every tenth of a second, and answers take until the next of these
    taken = []
    for source in reader([number / 10 for number in range(40)], stride=0.375):
        if source.recent[-1][0] in asked and source.has_news():
            taken.append(source.take())
    assert [(recent.end, recent.missed, len(recent.frames)) for recent in taken] == [
        (0.0, 0, 1), (0.4, 0, 1), (0.8, 0, 1), (2.7, 4, 1), (3.1, 0, 1), (3.4, 0, 1)]
    assert source.due == pytest.approx(10 * 0.375)


def answered(arrivals, stride, clocks=None):
    """(its place on the grid, when it came, places passed over before it) of each frame that is answered, at once."""
    found = []
    for source in reader(arrivals, clocks, stride=stride):
        if source.has_news():
            taken = source.take()
            found.append((source.due - stride, taken.end, taken.missed))
    return np.array(found)


def late(moments, most, seed=0):
    """When frames of these moments come, seconds from the first: up to `most` late."""
    came = moments + np.random.RandomState(seed).uniform(0, most, len(moments))
    return came - came[0]


@pytest.mark.parametrize("clock", ["its own", "none", "coarse"])
@pytest.mark.parametrize("rate, stride, seconds", [
    (30, 1 / 30, 300), (30, 0.0333, 300), (29.97, 1 / 30, 300), (30, 1 / 29.97, 300), (25, 0.04, 300), (59.94, 1 / 30, 300),
    (25, 0.375, 300), (59.94, 0.375, 300), (29.97, 0.1, 300), (15, 1 / 30, 300), (25, 1 / 30, 300),
    pytest.param(30, 0.0333, 3600, marks=pytest.mark.all)])
def test_jitter_costs_no_place(rate, stride, seconds, clock):
    """Frames come up to half a gap late. A place is passed over where there are fewer frames than places, and nowhere else."""
    shown = np.arange(int(seconds * rate)) / rate
    clocks = {"its own": shown, "none": np.zeros_like(shown), "coarse": np.floor(shown)}[clock]
    places, ends, missed = answered(late(shown, 0.45 / rate), stride, clocks).T
    assert np.all(np.diff(ends) > 0) and np.all(np.diff(places) > 0.9 * stride)  # no frame twice, no place twice
    assert np.allclose(places / stride, np.round(places / stride), atol=1e-4)  # nothing drifts
    assert len(ends) + missed.sum() == pytest.approx(seconds / stride, abs=2)
    assert missed.sum() == pytest.approx(max(0.0, 1 / stride - rate) * seconds, abs=2)
    offsets, gap = ends - places, 1 / rate
    assert offsets.min() >= -0.6 * min(gap, stride) and offsets.max() < stride
    if gap < stride / 1.5:  # of several frames, one that is near
        assert offsets.max() <= gap and np.diff(ends).mean() == pytest.approx(stride, rel=1e-3)


@pytest.mark.parametrize("stride", [0.1, 0.375])
def test_a_pause_and_a_rate_that_varies_cost_what_they_last(stride):
    rng = np.random.RandomState(1)
    shown = np.cumsum(np.concatenate([rng.uniform(0.01, 0.09, 500), [3.0], np.full(500, 1 / 59.94), np.full(200, 0.05)]))
    places, ends, missed = answered(late(shown - shown[0], 0.005), stride, shown).T
    assert np.all(np.diff(ends) > 0) and np.allclose(places / stride, np.round(places / stride), atol=1e-4)
    assert missed.sum() == missed.max() == pytest.approx(3.0 / stride, abs=2.1)
    assert len(ends) + missed.sum() == round(places[-1] / stride) + 1
    assert np.abs(ends - places)[missed == 0].max() <= 0.1


def test_the_first_window_of_a_camera_is_whole():
    (first, *_) = [source.take() for source in reader(np.arange(200) / 30, seconds=3.0, stride=1.5) if source.has_news()]
    assert first.start == 0 and first.end >= 3.0


@pytest.mark.parametrize("clocks, cut", [
    ([0, 0.1, 0.2, 0.3], []), ([0, 0.1, 9.2, 9.3], [2]), ([5, 5.1, 0.2, 0.3], [2]), ([0, 0, 0, 0], [])])
def test_a_leap_of_a_source_s_own_clock_is_told_once_and_nothing_is_missed_meanwhile(clocks, cut):
    found = [source.take() for source in reader([0.15, 0.25, 0.95, 1.05], clocks)]
    assert [number for number, one in enumerate(found) if one.cut] == cut
    assert [one.missed for one in found] == [0 if cut and number == 2 else missed for number, missed in enumerate([1, 0, 6, 0])]


def test_too_many_frames_that_are_passed_over_are_warned_of(capsys):
    viewer = viewed(Network(SCORES), [0] * 10, "  ", every=0.375)
    viewer.missed = 10
    viewer.close()
    said = capsys.readouterr()
    assert "10 of 20 passed over (50.0 %)" in said.out and said.err.count("\n") == 1
    assert "one took 0.75 s, and --every is 0.375; pass --every 0.83 or --precision int8" in said.err


@pytest.mark.parametrize("args, online, says", [
    (("--window", 2), True, "--window is for models of clips"), (("--views", 1), True, "--views is for models of clips"),
    (("--memory", 2), False, "--memory is for online models"), (("--threshold", 0.5), False, "--threshold is for online models"),
    (("--reset", "scene"), False, "--reset is for online models"), (("--every", 2), False, "--every needs --window or an online model"),
    (("--threshold", 1.5), True, "1.5 is no probability"), (("--reset", "then"), True, "none of scene, never and a number of seconds"),
])
def test_options_of_the_other_kind_of_model_are_wrong_usage(fails, online_onnx, thin_onnx, tmp_path, args, online, says):
    assert says in fails("TSM_predict.py", "-m", online_onnx if online else thin_onnx, "x.mp4", *args, cwd=tmp_path, status=2)


def test_labels_of_another_number_are_refused(fails, online_onnx, tmp_path):
    (tmp_path / "n.txt").write_text("a\nb\n")
    assert "names 2 classes, the model has 174" in fails("TSM_predict.py", "-m", online_onnx, "--labels", "n.txt", "x.mp4", cwd=tmp_path)


def test_a_file_shorter_than_the_time_between_two_frames_says_so(run, online_onnx, clip):
    done = run("TSM_predict.py", "-m", online_onnx, "--every", 60, "--threshold", 0.999, "--json", "-", "a.webm", *QUICK, cwd=clip)
    assert "is shorter than --every 60 s" in done.stderr and json.loads(done.stdout)["inputs"][0]["frames"] == 1

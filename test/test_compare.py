"""TSM_compare.py over two runs: joined by video, McNemar's exact test, flips, and what cannot be compared."""

import csv
import json
import math
import shutil

import pytest
from made_up import report, scores_of

from tsm.files import read_json, write_json
from tsm.protocol import SSV2
from tsm.report.compare import chance
from tsm.results import mcnemar, summarise

CLASSES = 5


def work(folder, scores, labels, sources=None, classes=CLASSES, names=None):
    """A work folder with result files of these scores."""
    (folder / "sthv2").mkdir(parents=True)
    (folder / "inference_result/out").mkdir(parents=True)
    protocol = SSV2._replace(classes=classes)
    files, samples = [], []
    for index in labels:
        files.append(("sthv2/preprocess_bin/%d.bin" % index, "inference_result/out/%d_0.txt" % index))
        (folder / files[-1][1]).write_text(" ".join("%f" % value for value in scores[index]) + "\n")
        samples.append({"id": index, "source": (sources or {}).get(index, "%d.webm" % index), "label": labels[index],
                        "file": "preprocess_bin/%d.bin" % index, "bytes": protocol.nbytes("float32"), "xxh3_128": "0" * 32})
    (folder / "inference_result/out_summary.json").write_text(json.dumps(summarise(files, [1.0], [0.0], 2.0)))
    (folder / "sthv2/sthv2.info").write_text("".join("%d %d\n" % item for item in labels.items()))
    write_json(str(folder / "sthv2/sthv2.json"), {
        "protocol": dict(protocol._asdict(), dtype="float32", layout="NCHW", shape=list(protocol.video_shape)),
        "versions": {}, "list": {"videos": len(labels)}, "samples": samples, "skipped": []}, "manifest")
    if names is not None:
        made = report(classes=classes, names=names, scores=scores, labels=labels, sources=sources)
        write_json(str(folder / "report.json"), made, "report")
    return folder


def hit(answer, probability=0.8):
    rest = (1 - probability) / (CLASSES - 1)
    return [probability if number == answer else rest for number in range(CLASSES)]


@pytest.fixture
def runs(tmp_path):
    """A: 0, 1, 2 right and 3 wrong. B: 0 right, 1 and 2 lost, 3 gained; 4 is in A alone, and B numbers the videos otherwise."""
    names = ["zero", "one", "two", "three", "<four>"]
    labels = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4}
    work(tmp_path / "a", {0: hit(0), 1: hit(1), 2: hit(2, 0.4), 3: hit(0), 4: hit(4)}, labels, names=names)
    sources = {7: "3.webm", 5: "2.webm", 6: "1.webm", 9: "0.webm", 11: "other.webm", 12: "more.webm"}
    work(tmp_path / "b", {7: hit(3), 5: hit(1), 6: hit(4, 0.9), 9: hit(0), 11: hit(1), 12: hit(1)},
         {7: 3, 5: 2, 6: 1, 9: 0, 11: 1, 12: 1}, sources, names=names)
    return tmp_path


def test_runs_are_joined_by_video(works, runs):
    out = works("TSM_compare.py", "a", "b", "--json", "c.json", "--csv", "c.csv", "--html", "c.html", cwd=runs)
    assert "4 videos in both; not compared: 1 only in A, 2 only in B" in out
    assert "top-1  A 0.7500   B 0.5000   difference -0.2500" in out
    assert "right in A alone 2, in B alone 1: McNemar's exact test p = 1.000" in out
    found = json.loads((runs / "c.json").read_text())
    assert found["mcnemar"] == {"lost": 2, "gained": 1, "p": 1.0}
    flips = {flip["video"]: flip for flip in found["flips"]}
    assert {video: flip["kind"] for video, flip in flips.items()} == {"1.webm": "lost", "2.webm": "lost", "3.webm": "gained"}
    assert flips["1.webm"]["b"] == {"answer": 4, "probability": 0.9, "margin": pytest.approx(0.875)}
    assert found["probability"]["largest"] == pytest.approx(0.85) and found["probability"]["video"] == "1.webm"
    assert {row["class"]: (row["right_a"], row["right_b"]) for row in found["classes"]} == {1: (1, 0), 2: (1, 0), 3: (0, 1)}
    with open(str(runs / "c.csv"), encoding="utf-8") as file:
        rows = {row["video"]: row for row in csv.DictReader(file)}
    assert rows["1.webm"]["answer_b"] == "<four>" and rows["2.webm"]["answer_a"] == "two" and len(rows) == 3
    page = (runs / "c.html").read_text(encoding="utf-8")
    assert "&lt;four&gt;" in page and "<four>" not in page


def test_a_report_or_a_folder_without_one_will_do(works, runs):
    first = works("TSM_compare.py", "a", "b", cwd=runs)
    assert json.loads(works("TSM_compare.py", "a", "b", "--json", "-", cwd=runs))["videos"] == 4 and not (runs / "-").exists()
    assert works("TSM_compare.py", "a/report.json", "b/report.json", cwd=runs).splitlines()[2:] == first.splitlines()[2:]
    for name in "ab":
        (runs / name / "report.json").rename(runs / name / "kept.json")
    assert "class 4" in works("TSM_compare.py", "a", "b", cwd=runs)  # numbers, as no names are known
    shutil.rmtree(str(runs / "b/inference_result"))
    (runs / "b/kept.json").rename(runs / "b/report.json")
    out = works("TSM_compare.py", "a", "b", cwd=runs)
    assert "top-1  A 0.7500   B 0.5000" in out and "probability of the true class: largest difference" in out


def test_a_run_that_moved_is_not_mistaken_for_the_one_in_its_place(works, fails, runs):
    made = read_json(str(runs / "a/report.json"), "report")
    made["arguments"] = {"result_path": str(runs / "a/inference_result/out_summary.json"), "info_path": str(runs / "a/sthv2/sthv2.info")}
    write_json(str(runs / "a/report.json"), made, "report")
    before = works("TSM_compare.py", "a", "b", cwd=runs)
    (runs / "a").rename(runs / "old")
    shutil.copytree(str(runs / "b"), str(runs / "a"))
    assert works("TSM_compare.py", "old", "b", cwd=runs).splitlines()[1:] == before.splitlines()[1:]
    shutil.rmtree(str(runs / "old/inference_result"))
    shutil.rmtree(str(runs / "old/sthv2"))
    line = fails("TSM_compare.py", "old", "b", cwd=runs)
    assert "old: its report.json is of 5 classes and says top-1 0.8000, and " in line and "gives 0.6667" in line


def test_names_cannot_command_the_terminal_and_what_is_cut_is_counted(works, tmp_path):
    names = ["\x1b[31mred\nline %d" % number for number in range(30)]
    for run, answers in (("a", range(30)), ("b", [0] * 30)):
        work(tmp_path / run, {index: [float(answer == number) for number in range(30)] for index, answer in enumerate(answers)},
             {index: index for index in range(30)}, classes=30, names=names)
    out = works("TSM_compare.py", "a", "b", cwd=tmp_path)
    assert "\x1b" not in out and "\\x1b[31mred\\nline 4" in out
    assert "and 9 more: --csv or --html has them all" in out and "and 9 more: --json or --html has them all" in out


def test_equal_runs_do_not_differ_and_results_are_those_beside_the_summary_wherever_one_stands(works, runs):
    out = works("TSM_compare.py", "a", "a", cwd=runs)
    assert "0 answers differ" in out and "largest difference 0.000000" in out and "p = 1.000" in out
    assert "top-1  A 0.7500   B 0.5000" in works("TSM_compare.py", runs / "a", runs / "b", cwd=runs / "a")


def test_a_video_that_is_listed_twice_counts_twice(works, tmp_path):
    scores, labels = {0: hit(0), 1: hit(1)}, {0: 0, 1: 0}
    for name in "ab":
        work(tmp_path / name, scores, labels, {0: "same.webm", 1: "same.webm"})
    assert "2 videos in both" in works("TSM_compare.py", "a", "b", cwd=tmp_path)


@pytest.mark.parametrize("ours, theirs, joined", [
    (["0.webm", "1.webm"], ["0", "1"], 2),  # videos and frames
    (["val/0.mp4", "val/1.mp4"], ["0.avi", "1.avi"], 2),  # another root
    (["videos/a/1.mp4", "videos/b/1.mp4"], ["frames/a/1", "frames/b/1"], 2),  # an end that is longer than the name
    (["a/1.mp4", "b/1.mp4"], ["1", "2"], 0),  # which of the two is not known
    (["a/1.mp4", "x.mp4"], ["b/1.mp4", "x.mp4"], 1),
    (["v_1.25.mp4", "v_1.26.mp4"], ["f/v_1.25", "f/v_1.26"], 2), (["same.mp4", "same.mp4"], ["same", "same"], 0)])
def test_videos_and_their_frames_are_one_and_it_is_said(works, fails, tmp_path, ours, theirs, joined):
    for run, names in (("a", ours), ("b", theirs)):
        work(tmp_path / run, {0: hit(0), 1: hit(run == "b")}, {0: 0, 1: 0}, dict(enumerate(names)))
    if not joined:
        assert "no video in common" in fails("TSM_compare.py", "a", "b", cwd=tmp_path)
        return
    out = works("TSM_compare.py", "a", "b", "--html", "c.html", "--json", "c.json", cwd=tmp_path)
    equal = len(set(ours) & set(theirs))
    assert "%d videos in both (%d of them under another folder or suffix" % (joined + equal, joined) in out
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["renamed"] == joined and [flip["video"] for flip in found["flips"]] == [ours[1]]
    assert "of them under another folder or suffix" in (tmp_path / "c.html").read_text()


def test_what_cannot_be_compared_is_one_line(fails, works, runs):
    work(runs / "other", {0: hit(0)}, {0: 0}, {0: "elsewhere.webm"})
    assert "no video in common" in fails("TSM_compare.py", "a", "other", cwd=runs)
    for run, source, label in (("jump", "jump/1.mp4", 0), ("run", "run/1.mp4", 1)):  # the same name, not the same label
        work(runs / run, {0: hit(0)}, {0: label}, {0: source})
    assert "no video in common" in fails("TSM_compare.py", "jump", "run", cwd=runs)
    work(runs / "labels", {0: hit(0)}, {0: 3})
    assert "0.webm" in fails("TSM_compare.py", "a", "labels", cwd=runs)
    scores, labels = scores_of(2, 7)
    work(runs / "classes", scores, labels, classes=7)
    assert "different networks" in fails("TSM_compare.py", "a", "classes", cwd=runs)
    (runs / "empty").mkdir()
    assert "empty" in fails("TSM_compare.py", "a", "empty", cwd=runs)
    assert "none" in fails("TSM_compare.py", "a", "none", cwd=runs)
    (runs / "half").mkdir()
    (runs / "half/report.json").write_text((runs / "a/report.json").read_text()[:1000])
    assert "report.json" in fails("TSM_compare.py", "a", "half", cwd=runs)
    (runs / "half/report.json").write_text('{"format": 1, "accuracy": {}}')
    assert "not written by this version's TSM_report.py" in fails("TSM_compare.py", "a", "half", cwd=runs)
    assert "give two" in fails("TSM_compare.py", "a", cwd=runs, status=2)
    assert "take one" in fails("TSM_compare.py", "--stages", "a", "b", cwd=runs, status=2)


def test_runs_whose_classes_have_other_numbers_or_names(run, works, fails, runs):
    path = str(runs / "b/report.json")
    found = read_json(path, "report")
    write_json(path, dict(found, names=["zero", "two", "one", "three", "<four>"]), "report")
    line = fails("TSM_compare.py", "a", "b", cwd=runs)
    assert "class 1 is 'one' in a, and 'two' in b" in line and "number their classes differently" in line
    write_json(path, dict(found, names=["Zero", "one", "two", "3", "<four>"]), "report")
    done = run("TSM_compare.py", "a", "b", cwd=runs)
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 1
    assert "class 0 is 'zero' in a, and 'Zero' in b (and 1 more)" in done.stderr
    write_json(path, dict(found, names=None), "report")
    works("TSM_compare.py", "a", "b", cwd=runs)
    scores, labels = scores_of(3, 7)
    write_json(path, report(classes=7, names=list("abcdefg"), scores=scores, labels=labels), "report")
    assert "of 7 classes" in fails("TSM_compare.py", "a", "b", cwd=runs)


def test_mcnemar_is_the_binomial_test_and_a_chance_too_small_for_a_float_is_not_called_none():
    assert chance(mcnemar(1100, 0)) == "p < 1e-300" and chance(mcnemar(900, 0)) == "p = 2.4e-271" and chance(1.0) == "p = 1.000"
    for one, other in ((0, 0), (1, 0), (5, 1), (6, 6), (3, 17), (0, 40), (400, 300)):
        total = one + other
        tail = sum(math.comb(total, k) for k in range(min(one, other) + 1))
        assert mcnemar(one, other) == mcnemar(other, one) == pytest.approx(min(1.0, 2 * tail / 2 ** total))
    assert mcnemar(5, 1) == pytest.approx(0.21875) and 0 < mcnemar(13000, 11777) < 1e-10


@pytest.mark.parametrize("args, status, says", [
    (("--json", "same", "--csv", "same"), 2, "--csv same would overwrite --json same"),
    (("--html", "a/report.json"), 2, "--html a/report.json would overwrite a/report.json"),
    (("--csv", "b/sthv2/../sthv2/sthv2.info"), 2, "would overwrite b/sthv2/sthv2.info"),
    (("--json", "none/c.json"), 1, "none/c.json: No such file or directory"), (("--html", "a"), 2, "--html a would overwrite a"),
    (("--csv", "a/report.json/c.csv"), 1, "a folder is needed there"),
])
def test_outputs_are_checked_before_any_work(fails, runs, args, status, says):
    before = (runs / "a/report.json").read_bytes()
    assert says in fails("TSM_compare.py", "a", "b", *args, cwd=runs, status=status)
    fails("TSM_compare.py", "a/report.json", "b", "--json", "a/report.json", cwd=runs, status=2)
    assert (runs / "a/report.json").read_bytes() == before

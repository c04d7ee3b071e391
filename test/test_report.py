"""TSM_report.py: table, report.json, page and CSV from what a run leaves; published figures only beside the file they are of."""

import base64
import csv
import json
import os
import shutil

import cv2
import numpy as np
import onnx
import pytest
from made_up import report
from onnx import TensorProto, helper

from tsm.checkpoint import published
from tsm.files import read_json, sealed, write_json
from tsm.infer.engine import Engine, submit_views
from tsm.model.offline import Offline
from tsm.protocol import PIPELINES, SSV2
from tsm.report.collect import against_published, closing_rows, published_of, verdict
from tsm.report.findings import another_order
from tsm.results import Accuracy, joined, statistics, summarise, views_agree
from tsm.video.windows import WHOLE, strips

ARGS = ("--result_path=inference_result/out_summary.json", "--info_path=sthv2/sthv2.info", "--model", "new.onnx",
        "--batch_size", 1, "--perf_batches", 1)
OFFICIAL, OTHER = "032aa4da" + "0" * 56, "f" * 64


def model(path, **facts):
    """A model with nothing but its input's shape and metadata."""
    frames = SSV2.views * json.loads(facts.get("protocol", "{}")).get("segments", SSV2.segments)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, frames, *SSV2.frame_shape])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, SSV2.classes])])
    made = helper.make_model(graph)
    for key, text in facts.items():
        made.metadata_props.add(key="tsm." + key, value=text)
    onnx.save(made, str(path))


@pytest.fixture
def left(tmp_path):
    """A folder as a run over two videos leaves it, the second of them wrong."""
    for name in ("sthv2", "inference_result/out", "perf"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "sthv2/sthv2.info").write_text("0 3\n1 4\n")
    protocol = dict(SSV2._asdict(), dtype="float32", layout="NCHW", shape=list(SSV2.video_shape))
    samples = [{"id": index, "source": "%d.webm" % index, "label": 3 + index, "file": "preprocess_bin/%d.bin" % index,
                "bytes": SSV2.nbytes("float32"), "xxh3_128": "0" * 32} for index in range(2)]
    write_json(str(tmp_path / "sthv2/sthv2.json"), (
        {"protocol": protocol, "versions": {"opencv": "0"}, "list": {"videos": 2}, "samples": samples, "skipped": []}), "manifest")
    files = []
    for index in range(2):
        files.append(("sthv2/preprocess_bin/%d.bin" % index, "inference_result/out/%d_0.txt" % index))
        (tmp_path / files[-1][1]).write_text(" ".join(str(float(label == 3)) for label in range(174)) + "\n")
    (tmp_path / "inference_result/out_summary.json").write_text(json.dumps(summarise(files, [1.0, 2.0], [0.0, 0.0], 2.0)))
    (tmp_path / "perf/bs1.log").write_text("[INFO] throughput 1000*batchsize.mean(1)/NPU_compute_time.mean(250.0): 4.0\n")
    write_json(str(tmp_path / "stages.json"), {"infer": {"command": ["infer"], "seconds": 3.0, "peak_mb": 70.0}}, "stages")
    model(tmp_path / "new.onnx", fusion="score", checkpoint_sha256=OTHER)
    return tmp_path


def test_it_shows_and_keeps_what_the_run_left(works, left):
    out = works("TSM_report.py", *ARGS, cwd=left)
    assert "0.5000 / 1.0000" in out and "| 4.00 " in out and "infer" in out
    report = json.loads((left / "report.json").read_text())
    assert report["accuracy"]["top1_acc"] == 0.5 and report["throughput"] == {"1": 4.0} and report["fusion"] == "score"
    assert report["protocol"]["segments"] == 8 and report["stages"]["infer"]["seconds"] == 3.0


def test_accuracy_comes_from_the_file_that_postprocessing_wrote(works, fails, left):
    works("TSM_postprocess.py", *ARGS[:2], "--json", "accuracy.json", cwd=left)
    assert "0.5000 / 1.0000" in works("TSM_report.py", *ARGS, "--accuracy", "accuracy.json", cwd=left)
    (left / "report.json").unlink()
    (left / "inference_result/out/1_0.txt").rename(left / "1_0.txt")
    for more in ((), ("--accuracy", "accuracy.json")):
        assert "1_0.txt" in fails("TSM_report.py", *ARGS, *more, cwd=left)
    assert not (left / "report.json").exists()
    (left / "1_0.txt").rename(left / "inference_result/out/1_0.txt")
    text = (left / "accuracy.json").read_text()
    figures = [text.replace("0.5", figure, 1) for figure in ("NaN", "Infinity", "1e999", "1" + "0" * 400)]
    for wrong in ["[]", "{}", '{"videos": 3}', "nonsense"] + figures:
        (left / "accuracy.json").write_text(wrong)
        assert "accuracy.json" in fails("TSM_report.py", *ARGS, "--accuracy", "accuracy.json", cwd=left)


def changed(path, **values):
    """Other values in a JSON file's object; None: without them."""
    held = dict(json.loads(path.read_text()), **values)
    path.write_text(json.dumps({name: value for name, value in held.items() if value is not None}))


def test_what_another_program_left_is_passed_over(works, left):
    """A throughput and stages that are none, a summary's own entry and times: nothing is said of them, and the rest is shown."""
    def reported(name):
        said = works("TSM_report.py", *ARGS, cwd=left)
        assert name != "throughput" or said.splitlines()[2].endswith("|                   |")
        return json.loads((left / "report.json").read_text())[name]

    for rate in ("1.2.3", "9" * 400, "nan", ""):
        (left / "perf/bs1.log").write_text("[INFO] throughput 1000*batchsize.mean(1)/NPU_compute_time.mean(250.0): %s\n" % rate)
        assert reported("throughput") == {}
    for text in ("{}", "[]", "nonsense", '{"infer": {"command": [], "seconds": 1, "peak_mb": 1}}'):
        (left / "stages.json").write_text(text)
        assert reported("stages") == {}
    summary = left / "inference_result/out_summary.json"
    for entry in ([], 3, {"views_agree": 3}, {"workers": [3], "kind": "inference"}):
        changed(summary, tsm=entry)
        assert reported("latency")["count"] == 2
    for times in ([10 ** 30], ["1"], [True], [-1], [], 3):
        changed(summary, npu_compute_time_list=times, NPU_compute_time={"mean": "1"}, H2D_latency=3)
        assert reported("latency") is None


@pytest.mark.parametrize("name, damages", [
    ("sthv2/sthv2.json", [lambda path, part=part: changed(path, **{part: None}) for part in ("protocol", "versions", "samples", "skipped")]
     + [lambda path: path.unlink()]),
    ("inference_result/out_summary.json", [lambda path: changed(path, throughput=float("nan"))] + [
        lambda path, name=name: path.write_text(path.read_text().replace('"sthv2/preprocess_bin/0.bin"', json.dumps(name)))
        for name in ("\u00b2.bin", "\u0663.bin", "a\0.bin", "\ud800.bin")])])  # numbers of other digits, and names that are none
def test_what_of_a_run_is_damaged_is_named_in_one_line(fails, left, name, damages):
    whole = (left / name).read_bytes()
    for damage in damages:
        (left / name).write_bytes(whole)
        damage(left / name)
        assert name.split("/")[-1] in fails("TSM_report.py", *ARGS, cwd=left)
        assert not (left / "report.json").exists()


def test_published_figures_stand_beside_their_own_checkpoint_alone(works, left):
    out = works("TSM_report.py", *ARGS, cwd=left)
    assert "published:" not in out and "none of the published files" in out and "OUTSIDE" not in out
    assert json.loads((left / "report.json").read_text())["published"] is None
    model(left / "new.onnx", fusion="score", checkpoint_sha256=OTHER, about="demo model: knows ten actions")
    out = works("TSM_report.py", *ARGS, cwd=left)
    assert "none of the published files" not in out and "\nviews fused by score\n" in out
    assert "published accuracy" not in checks(left) and "demo model: knows ten actions" in (left / "report.html").read_text()
    model(left / "new.onnx", fusion="score")
    assert "not known" in works("TSM_report.py", *ARGS, cwd=left)
    (left / "own.pth").write_bytes(b"weights")
    assert "none of the published files" in works("TSM_report.py", *ARGS, "--checkpoint", "own.pth", cwd=left)
    model(left / "new.onnx", fusion="score", checkpoint_sha256=OFFICIAL)
    out = works("TSM_report.py", *ARGS, cwd=left)
    assert "published: Atlas 310P3" in out and "0.6187 / 0.8721" in out and "these are 2 videos" in out


def test_the_verdict_compares_all_videos_of_the_official_checkpoint():
    def said(accuracy, fusion, digest, protocol=SSV2):
        return against_published(accuracy, *published_of(fusion, protocol, digest))[1]

    right = Accuracy(24777, 0, 0.619, 0.87, 0.5, (0.613, 0.625), 0)
    assert "lies within" in said(right, "score", OFFICIAL)
    low = right._replace(top1_acc=0.5, top1_interval_95=(0.494, 0.506))
    assert "lies OUTSIDE" in said(low, "score", OFFICIAL) and "mmaction2's top-1 0.6182" in said(low, "prob", OFFICIAL)
    assert "OUTSIDE" not in said(low, "score", OTHER) and "OUTSIDE" not in said(low, "score", None)
    assert "tested otherwise (here segments 16, not 8)" in said(low, "score", OFFICIAL, SSV2._replace(segments=16))


@pytest.mark.parametrize("row", published.rows(), ids=lambda row: row.digest)
def test_every_published_file_has_its_own_figure_under_its_own_test(row):
    protocol = SSV2._replace(classes=row.classes, segments=row.segments, **PIPELINES[row.pipeline])
    found, why = published_of("prob", protocol, row.digest + "0" * 56)
    if row.top1 is None:
        assert found is None and row.file in why
        return
    assert found.top1_acc == pytest.approx(row.top1 / 100) and found.data == row.data
    around = Accuracy(found.videos or 19000, 0, found.top1_acc, 1.0, 0.5, (found.top1_acc - 0.01, found.top1_acc + 0.01), 0)
    assert ("lies within" if found.videos else "not compared") in against_published(around, found, why)[1]
    assert "not compared" in against_published(around._replace(videos=40), found, why)[1]
    assert "not compared" in against_published(around._replace(videos=around.videos - 1000, skipped=1000), found, why)[1]
    if row.file != published.OFFICIAL:
        assert "fused by score" in published_of("score", protocol, row.digest + "0" * 56)[1]
    other = protocol._replace(crops="ten" if protocol.crops != "ten" else "three")
    assert published_of("prob", other, row.digest + "0" * 56)[0] is None


def test_the_verdict_joins_the_checks_with_what_stands_out():
    names = ["Opening a box", "Closing a box", "Holding a box"]

    def said(answers, label=0):
        scores = {index: np.eye(3)[answer] * 0.9 + 0.03 for index, answer in enumerate(answers)}
        return verdict(report(classes=3, names=names, scores=scores, labels=dict.fromkeys(scores, label)))

    assert said([0, 0]) == "All 6 checks passed. 2 of 2 videos right."
    assert "1 of 4 videos right; 1 confused pair is one action played backwards (2 of the 3 wrong answers): the order" in said([0, 1, 1, 2])
    assert "most often \u201cOpening a box\u201d was taken for \u201cHolding a box\u201d (2 videos)" in said([0, 2, 2])
    assert said([0, 0, 2]) == "All 6 checks passed. 2 of 3 videos right."
    assert said([0, 1, 2]).endswith("1 of 3 videos right; 2 of the 2 wrong answers have a probability above 0.9.")
    made = report(classes=3, names=names)
    made["checks"][1].update(state="fail", name="order of the labels")
    assert verdict(made).startswith("1 of 6 checks FAILED (order of the labels).") and "another order of the labels" in verdict(made)


def test_rows_name_the_videos_that_were_left_out_and_figures_of_several_runs_are_joined_as_far_as_they_can_be():
    assert joined([statistics([0.5, 1.5, 4.0]), statistics([9.0])]) == {"min": 0.5, "max": 9.0, "mean": 3.75, "count": 4}
    report = {"accuracy": Accuracy(9, 3, 1.0, 1.0, 1.0, (0.7, 1.0), 0)._asdict(), "published": None, "fusion": "prob",
              "device": {"kind": "cpu", "name": "x"}, "throughput": {}, "batch_size": 4, "findings": {}}
    assert closing_rows(report)[1] == ["x", "4", "9 of 12 videos", "1.0000 / 1.0000", ""]
    published = {"source": "mmaction2", "data": "Jester", "top1_acc": 0.972, "top5_acc": None}
    assert closing_rows(dict(report, published=published))[2] == ["published: mmaction2", "", "Jester", "0.9720", ""]


def rows_of(path):
    with open(str(path), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


NAMES = ["name %d" % number for number in range(SSV2.classes)]


def test_it_writes_the_videos_behind_the_figures(works, left):
    (left / "labels.txt").write_text("\n".join(NAMES))
    works("TSM_report.py", *ARGS, "--labels", "labels.txt", cwd=left)
    first, second = rows_of(left / "predictions.csv")
    assert first["video"] == "0.webm" and first["true_name"] == first["predicted_name"] == "name 3" and first["rank"] == "1"
    assert second["true_name"] == "name 4" and second["predicted_name"] == "name 3" and second["probability"] == "1.000000"
    assert second["rank"] == "5" and second["margin"] == "1.000000"  # of the classes at 0, those before it come first
    counts = rows_of(left / "confusion.csv")
    assert len(counts) == SSV2.classes and [counts[4]["name 3"], counts[4]["name 4"], counts[3]["name 3"]] == ["1", "0", "1"]
    page = (left / "report.html").read_text(encoding="utf-8")
    assert "name 4" in page and "2 results joined with 2 labels by id" in page
    found = json.loads((left / "report.json").read_text())
    assert [pair["count"] for pair in found["findings"]["pairs"]] == [1]
    assert found["findings"]["gallery"]["failures"][0]["place"] == 1


def test_the_page_is_drawn_from_the_report_alone_and_again_the_same(works, fails, left, tmp_path):
    """Without a gallery if asked to; not from a report of another version, or half of one."""
    works("TSM_report.py", *ARGS, cwd=left)
    redraw, apart = ("TSM_report.py", "--redraw", "report.json"), tmp_path / "apart"
    apart.mkdir()
    shutil.copy(str(left / "report.json"), str(apart))
    assert "report.html" in works(*redraw, cwd=apart)
    assert sorted(os.listdir(str(apart))) == ["report.html", "report.json"]
    assert (apart / "report.html").read_bytes() == (left / "report.html").read_bytes()
    assert '<article class="card">' in (left / "report.html").read_text()
    works(*redraw, "--gallery", 0, cwd=apart)
    page = (apart / "report.html").read_text()
    assert '<article class="card">' not in page and "No video was chosen: <code>--gallery</code> is 0." in page
    assert "leave out --labels, --output" in fails(*redraw, "--labels", "x", "--output", "y", cwd=left, status=2)
    whole = (left / "report.json").read_text()
    (apart / "report.html").unlink()
    for text in ["", "{", "[]", "null", "3", "{}", '{"format": 2, "accuracy": {}, "checks": []}'] + [
            whole[: int(len(whole) * part)] for part in (0.1, 0.5, 0.99)]:
        (apart / "report.json").write_text(text)
        assert "report.json" in fails(*redraw, cwd=apart)
        assert os.listdir(str(apart)) == ["report.json"]


def test_names_are_those_that_are_given_or_the_model_s_and_classes_else_are_numbers(works, fails, left):
    assert "none.json" in fails("TSM_report.py", *ARGS, "--labels", "none.json", cwd=left)
    works("TSM_report.py", *ARGS, cwd=left)
    assert rows_of(left / "predictions.csv")[0]["true_name"] == "class 3"
    (left / "few.txt").write_text("one\ntwo\n")
    assert "few.txt" in fails("TSM_report.py", *ARGS, "--labels", "few.txt", cwd=left)
    model(left / "new.onnx", fusion="score", labels=json.dumps(NAMES))
    works("TSM_report.py", *ARGS, cwd=left)
    assert rows_of(left / "predictions.csv")[0]["true_name"] == "name 3"


def checks(left):
    return {entry["name"]: entry for entry in json.loads((left / "report.json").read_text())["checks"]}


def test_named_checks_pass_and_fail(works, left):
    proof = {"file": {"largest_difference": 1e-7, "tolerance": 1e-5}}
    model(left / "new.onnx", fusion="score", proof=json.dumps(proof))
    works("TSM_report.py", *ARGS, cwd=left)
    found = checks(left)
    assert {found[name]["state"] for name in ("results", "graph surgery", "protocol", "skipped videos", "precision")} == {"pass"}
    proof["file"]["largest_difference"] = 1e-3
    model(left / "new.onnx", fusion="score", proof=json.dumps(proof), protocol=json.dumps(SSV2._replace(segments=16)._asdict()))
    works("TSM_postprocess.py", *ARGS[:2], "--json", "accuracy.json", cwd=left)
    write_json(str(left / "accuracy.json"), dict(read_json(str(left / "accuracy.json"), "accuracy"), top1_acc=0.75), "accuracy")
    out = works("TSM_report.py", *ARGS, "--accuracy", "accuracy.json", cwd=left)
    found = checks(left)
    assert {found[name]["state"] for name in ("results", "graph surgery", "protocol")} == {"fail"}
    assert "segments 8, not 16" in found["protocol"]["text"] and out.count("\nFAILED ") == 3
    model(left / "new.onnx", fusion="score", input_dtype="aipp")
    works("TSM_report.py", *ARGS, cwd=left)
    assert checks(left)["protocol"]["text"].endswith("float32, not uint8_nhwc")


def test_agreement_of_a_device_is_a_check(works, fails, left):
    out = works("TSM_report.py", *ARGS, "--device", "npu", cwd=left)
    assert "17.36" in out and "20.77" in out and "0.6187 / " not in out  # the guide's speeds, without their accuracy
    assert checks(left)["agreement with fp32"]["text"] == "not measured"
    agreement = {"videos": 8, "flips": 1, "largest_difference": 0.02, "flipped": []}
    write_json(str(left / "agreement.json"), agreement, "agreement")
    works("TSM_report.py", *ARGS, "--device", "npu", "--agreement", "agreement.json", cwd=left)
    assert "1 of 8 answers differ from fp32's: at most 47.1 % do" in checks(left)["agreement with fp32"]["text"]
    for text in ("{}", json.dumps(agreement), (left / "agreement.json").read_text().replace("8", "9")):
        (left / "agreement.json").write_text(text)
        assert "agreement.json" in fails("TSM_report.py", *ARGS, "--agreement", "agreement.json", cwd=left)


def test_film_strips_are_of_the_data(works, left, repo):
    (left / "data").mkdir()
    for index, video in enumerate(sorted((repo / "demo/videos").iterdir())[:2]):
        os.symlink(str(video), str(left / "data" / ("%d.webm" % index)))
    works("TSM_report.py", *ARGS, "--data_root", "data", cwd=left)
    found = json.loads((left / "report.json").read_text())["findings"]["gallery"]
    strips = [entry["strip"] for kind in ("failures", "successes") for entry in found[kind]]
    for strip in strips:
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(strip.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (112, 8 * 149, 3)
    page = (left / "report.html").read_text(encoding="utf-8")
    assert len(strips) == 2 and page.count("data:image/jpeg;base64,") == 2 and "holds frames of the data" in page
    (left / "data/0.webm").unlink()
    (left / "data/0.webm").write_bytes(b"no video")
    works("TSM_report.py", *ARGS, "--data_root", "data", cwd=left)
    assert "no film strip:" in (left / "report.html").read_text(encoding="utf-8")
    works("TSM_report.py", *ARGS, "--data_root", "data", "--gallery", 0, cwd=left)
    page = (left / "report.html").read_text(encoding="utf-8")
    assert "data:image" not in page and "holds frames" not in page


def test_the_strip_of_a_folder_of_frames_is_that_of_its_frames(tmp_path):
    for number in range(1, 17):
        cv2.imwrite(str(tmp_path / ("img_%05d.jpg" % number)), np.full((56, 64, 3), 15 * number, np.uint8))
    picture = cv2.imdecode(np.frombuffer(next(strips(str(tmp_path), [WHOLE])), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (112, 8 * 149, 3)  # every strip, whatever the shape of its frames
    shades = picture[56, 74::149, 0].astype(int)
    assert np.abs(shades - 15 * np.arange(2, 17, 2)).max() < 4


def test_how_many_views_have_the_answer_is_a_column(run, works, left):
    path = left / "inference_result/out_summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(dict(summary, tsm=sealed({"engine": "one", "views_agree": {"0": [6], "1": [4]}}, "inference"))))
    works("TSM_report.py", *ARGS, cwd=left)
    assert [row["views_agree"] for row in rows_of(left / "predictions.csv")] == ["6", "4"]
    assert "4 of 6 views agree" in (left / "report.html").read_text(encoding="utf-8")
    path.write_text(json.dumps(dict(summary, tsm={"views_agree": {"0": [6], "1": [4]}})))  # of an older version
    assert "out_summary.json: what an inference of this suite adds is of another version" in run("TSM_report.py", *ARGS, cwd=left).stderr
    assert [row["views_agree"] for row in rows_of(left / "predictions.csv")] == ["", ""]
    assert "views agree" not in (left / "report.html").read_text(encoding="utf-8")


def test_votes_of_views_are_counted():
    protocol = SSV2._replace(classes=3, size=2, segments=2)
    scores = iter([0, 1, 1, 2, 1, 1] + [2] * 6)

    def submit(view, take):
        take(np.eye(3, dtype=np.float32)[[next(scores)] * 2])

    model_ = Offline("m", None, 2, (2,) + protocol.video_shape, np.dtype("float32"), "score", protocol, {})
    votes, outputs = [], []
    engine = Engine("e", 1, submit, lambda: None)
    submit_views(engine, model_, np.zeros((2,) + protocol.video_shape, np.float32), outputs.append, lambda told, _: votes.append(told))
    assert votes[0].tolist() == [4, 6] and outputs[0].argmax(1).tolist() == [1, 2]
    own = sealed({"views_agree": {"0": [0, 6], "1": [1, 6]}}, "inference")
    summary = summarise([("0.bin", "x"), ("1.bin", "y")], [1.0], [0.0], 1.0, tsm=own)
    assert views_agree(summary) == {0: 0, 1: 6, 2: 1, 3: 6} and views_agree({}) == {}


@pytest.mark.parametrize("args, status, says", [
    (("--output", "o.html"), 2, "the page o.html would overwrite --output o.html"),
    (("--output", "predictions.csv"), 2, "predictions.csv would overwrite --output predictions.csv"),
    (("--output", "./confusion.csv"), 2, "confusion.csv"), (("--output", "new.onnx"), 2, "would overwrite new.onnx"),
    (("--output", "none/report.json"), 1, "none/report.json: No such file or directory"),
    (("--output", "perf"), 1, "perf: Is a directory"),
])
def test_outputs_are_checked_before_any_work(fails, left, args, status, says):
    before = sorted(str(path) for path in left.rglob("*"))
    assert says in fails("TSM_report.py", *ARGS, *args, cwd=left, status=status)
    assert sorted(str(path) for path in left.rglob("*")) == before
    assert "would overwrite" in fails("TSM_report.py", "--redraw", "x.html", cwd=left, status=2)
    line = fails("TSM_report.py", "--model", "new.onnx", cwd=left, status=2)
    assert "--result_path" in line and "--info_path" in line and "--batch_size" in line


def numbered(order, classes=20, videos=60, share=0.9, names=None):
    """The check of labels that stand for the network's class order[label], of which a share is answered rightly."""
    truth = np.arange(videos) % classes
    answers = np.where(np.arange(videos) % 10 < 10 * share, np.asarray(order)[truth], (np.asarray(order)[truth] + 7) % classes)
    made = report(classes=classes, names=names, scores={index: np.eye(classes)[answer] for index, answer in enumerate(answers)},
                  labels=dict(enumerate(truth.tolist())))
    return next(entry for entry in made["checks"] if entry["name"] == "order of the labels")


def test_labels_in_another_order_are_told_by_the_results_alone():
    numbers = np.arange(20)
    names = ["Tilting", "Closing", "opening", "Moving"] + ["name %d" % number for number in range(16)]
    alphabet = np.array(sorted(numbers, key=lambda number: names[number]))
    mixed = np.random.RandomState(1).permutation(20)
    for order, words in (
            (np.argsort(alphabet), "the alphabet's order, as MIT's code"), (alphabet, "each name numbered by its place in the alphabet"),
            (19 - numbers, "reverse order"), (np.argsort(sorted(numbers, key=str)), "sorted as text"),
            (sorted(numbers, key=lambda number: str(number + 1)), "sorted as text"), (mixed, "learnt on the other half of the videos"),
            ((numbers - 1) % 20, "lowered by one: is a line too many"), ((numbers + 1) % 20, "raised by one: is a line missing")):
        found = numbered(order, names=names)
        assert found["state"] == "fail" and words in found["text"], (words, found)
        assert found["text"].startswith("another order of the labels explains the accuracy: top-1 is 0.")
    found = numbered(numbers, names=names)
    assert found == {"name": "order of the labels", "state": "pass",
                     "text": "top-1 is 0.9000 with the labels as they are; no other order explains more"}
    assert numbered(mixed, videos=5)["state"] == "pass"  # too few to tell


def test_labels_counted_from_1_have_no_0_and_an_order_is_not_learnt_from_chance():
    for truth, words in ((range(1, 13), "as if counted from 1; take one"), (range(12), "is a line too many at the beginning")):
        truth = np.array(list(truth))
        assert words in another_order(truth, truth - 1, 14, None)[1]
        assert ("was one taken from each?" if words[0] == "a" else "raised by one") in another_order(truth, truth + 1, 14, None)[1]
    random = np.random.RandomState(0)
    for classes, videos in ((2, 300), (50, 200), (174, 1000)):
        for answers in (random.randint(0, classes, videos), np.zeros(videos, int)):
            assert not another_order(np.arange(videos) % classes, answers, classes, None)[0]

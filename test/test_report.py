"""TSM_report.py: the table and report.json from what a run leaves; published figures only beside the file they are of."""

import json

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402

from tsm.accuracy import Accuracy  # noqa: E402
from tsm.protocol import SSV2  # noqa: E402
from tsm.report import PUBLISHED, VALIDATION_VIDEOS, rows, verdict  # noqa: E402
from tsm.results import TIMES, merge, statistics, summarise  # noqa: E402

ARGS = ("--result_path=inference_result/out_summary.json", "--info_path=sthv2/sthv2.info", "--model", "new.onnx",
        "--batch_size", 1, "--perf_batches", 1)
OFFICIAL, OTHER = PUBLISHED.digest + "0" * 56, "f" * 64


def model(path, **facts):
    """A model with nothing but metadata."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
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
    (tmp_path / "sthv2/sthv2.json").write_text(json.dumps(
        {"protocol": protocol, "versions": {"opencv": "0"}, "list": {"videos": 2}, "samples": samples, "skipped": []}))
    files = []
    for index in range(2):
        files.append(("sthv2/preprocess_bin/%d.bin" % index, "inference_result/out/%d_0.txt" % index))
        (tmp_path / files[-1][1]).write_text(" ".join(str(float(label == 3)) for label in range(174)) + "\n")
    (tmp_path / "inference_result/out_summary.json").write_text(json.dumps(summarise(files, [1.0, 2.0], [0.0, 0.0], 2.0, [])))
    (tmp_path / "perf/bs1.log").write_text("[INFO] throughput 1000*batchsize.mean(1)/NPU_compute_time.mean(250.0): 4.0\n")
    (tmp_path / "stages.json").write_text(json.dumps({"infer": {"seconds": 3.0, "peak_mb": 70.0}}))
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
    for path in (left / "inference_result/out").iterdir():
        path.unlink()  # nothing is computed again
    assert "0.5000 / 1.0000" in works("TSM_report.py", *ARGS, "--accuracy", "accuracy.json", cwd=left)
    for wrong in ("[]", "{}", '{"videos": 3}', "nonsense"):
        (left / "accuracy.json").write_text(wrong)
        assert "accuracy.json" in fails("TSM_report.py", *ARGS, "--accuracy", "accuracy.json", cwd=left)


@pytest.mark.parametrize("stages", ["{}", "[]", "nonsense", '{"infer": {}}', '{"infer": {"seconds": 1}}', '{"infer": 3}',
                                    '{"infer": {"seconds": "long", "peak_mb": 1}}'])
def test_stages_that_cannot_be_read_are_left_out(works, left, stages):
    (left / "stages.json").write_text(stages)
    works("TSM_report.py", *ARGS, cwd=left)
    assert json.loads((left / "report.json").read_text())["stages"] == {}


@pytest.mark.parametrize("without", ["protocol", "versions", "samples", "skipped"])
def test_a_manifest_without_its_parts_is_named(fails, left, without):
    manifest = json.loads((left / "sthv2/sthv2.json").read_text())
    del manifest[without]
    (left / "sthv2/sthv2.json").write_text(json.dumps(manifest))
    assert "sthv2.json" in fails("TSM_report.py", *ARGS, cwd=left)
    (left / "sthv2/sthv2.json").unlink()
    assert "sthv2.json" in fails("TSM_report.py", *ARGS, cwd=left)


def test_published_figures_stand_beside_their_own_checkpoint_alone(works, left):
    out = works("TSM_report.py", *ARGS, cwd=left)
    assert "published:" not in out and "another checkpoint" in out and "OUTSIDE" not in out
    assert json.loads((left / "report.json").read_text())["published"] is None
    model(left / "new.onnx", fusion="score")
    assert "not known" in works("TSM_report.py", *ARGS, cwd=left)
    (left / "own.pth").write_bytes(b"weights")
    assert "another checkpoint" in works("TSM_report.py", *ARGS, "--checkpoint", "own.pth", cwd=left)
    model(left / "new.onnx", fusion="score", checkpoint_sha256=OFFICIAL)
    out = works("TSM_report.py", *ARGS, cwd=left)
    assert "published: Atlas 310P3" in out and "0.6187 / 0.8721" in out and "these are 2 videos" in out


def test_an_npu_has_the_guide_s_speeds_beside_it_without_their_accuracy(works, left):
    out = works("TSM_report.py", *ARGS, "--device", "npu", cwd=left)
    assert "17.36" in out and "20.77" in out and "0.6187 / " not in out


def test_the_verdict_compares_all_videos_of_the_official_checkpoint():
    right = Accuracy(VALIDATION_VIDEOS, 0, 0.619, 0.87, 0.5, (0.613, 0.625), 0)
    assert "lies within" in verdict(right, "score", OFFICIAL)
    low = right._replace(top1_acc=0.5, top1_interval_95=(0.494, 0.506))
    assert "lies OUTSIDE" in verdict(low, "score", OFFICIAL) and "mmaction2's top-1 0.6182" in verdict(low, "prob", OFFICIAL)
    assert "OUTSIDE" not in verdict(low, "score", OTHER) and "OUTSIDE" not in verdict(low, "score", None)


def test_statistics_of_merged_summaries_come_from_the_joined_list():
    runs = [([3.0, 1.0, 8.0], [0.5, 1.5, 4.0]), ([2.0], [9.0])]
    parts = [summarise([("%d.bin" % (10 * part + index), "x") for index in range(len(times))], times, waits, 1.0, [])
             for part, (times, waits) in enumerate(runs)]
    merged = merge(parts)
    times = [3.0, 1.0, 8.0, 2.0]
    assert merged["NPU_compute_time"] == statistics(times) and merged["npu_compute_time_list"] == times
    assert merged["H2D_latency"] == {"min": 0.5, "max": 9.0, "mean": 3.75, "count": 4}
    assert set(TIMES) <= set(merged) and merged["throughput"] == 1.0
    assert [entry["infiles"] for entry in merged["filesinfo"].values()] == [["0.bin"], ["1.bin"], ["2.bin"], ["10.bin"]]


def test_rows_name_the_videos_that_were_left_out():
    report = {"accuracy": Accuracy(9, 3, 1.0, 1.0, 1.0, (0.7, 1.0), 0)._asdict(), "published": None, "fusion": "prob",
              "device": {"kind": "cpu", "name": "x"}, "throughput": {}, "batch_size": 4}
    assert rows(report)[1] == ["x", "4", "9 of 12 videos", "1.0000 / 1.0000", ""]
    assert np.shape(rows(dict(report, published={"source": "mmaction2", "top1_acc": 0.6182, "top5_acc": 0.868}))) == (3, 5)

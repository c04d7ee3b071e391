"""TSM_chunked.py: the same results as an undivided run, no tensors left, nothing done twice, no harm from a kill."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

CLIPS, CHUNK = 5, 2


@pytest.fixture
def setting(repo, tmp_path):
    """Five clips, their list, and a quick model with TSM's input and output."""
    (tmp_path / "videos").mkdir()
    for path in sorted((repo / "demo/videos").iterdir())[:CLIPS]:
        shutil.copy(str(path), str(tmp_path / "videos"))
    names = sorted(path.name for path in (tmp_path / "videos").iterdir())
    (tmp_path / "list.txt").write_text("".join("%s %d\n" % (name, index) for index, name in enumerate(names)))
    weight = np.random.RandomState(0).standard_normal((3, 174)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["input"], ["mean"], axes=[1, 3, 4], keepdims=0),
         helper.make_node("MatMul", ["mean", "w"], ["scores"]), helper.make_node("Softmax", ["scores"], ["output"], axis=1)],
        "quick", [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 48, 3, 256, 256])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 174])], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    model.ir_version = 6
    onnx.save(model, str(tmp_path / "quick.onnx"))
    python = shlex.quote(sys.executable)
    preprocess = "%s %s --data_root videos --ann_file list.txt" % (python, shlex.quote(str(repo / "TSM_preprocess.py")))
    infer = "%s %s --model quick.onnx" % (python, shlex.quote(str(repo / "TSM_infer.py")))
    return tmp_path, ("--chunk", CHUNK, "--preprocess", preprocess, "--infer", infer)


RESULTS = ("--result_path", "inference_result/out_summary.json", "--info_path", "sthv2/sthv2.info", "--json", "-")


def leaves(folder):
    """The files a run leaves, without the results' own."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "videos" not in path.parts)


def test_chunks_give_what_an_undivided_run_gives_and_are_not_done_twice(works, setting, repo):
    folder, args = setting
    works("TSM_preprocess.py", "--data_root", "videos", "--ann_file", "list.txt", cwd=folder)
    works("TSM_infer.py", "-m", "quick.onnx", "-i", "sthv2/preprocess_bin", "-o", "inference_result", "--output_dirname", "out",
          "--outfmt", "TXT", cwd=folder)
    expected = works("TSM_postprocess.py", *RESULTS, cwd=folder)
    manifest, info = ((folder / "sthv2" / name).read_text() for name in ("sthv2.json", "sthv2.info"))
    texts = [(folder / "inference_result/out" / ("%d_0.txt" % index)).read_text() for index in range(CLIPS)]
    shutil.rmtree(str(folder / "sthv2"))
    shutil.rmtree(str(folder / "inference_result"))

    out = works("TSM_chunked.py", *args, cwd=folder)
    assert "0 of 3 chunks are done" in out and "to do: 5 videos in 3 chunks" in out
    assert works("TSM_postprocess.py", *RESULTS, cwd=folder) == expected
    assert (folder / "sthv2/sthv2.info").read_text() == info
    assert json.loads((folder / "sthv2/sthv2.json").read_text()) == json.loads(manifest)
    summary = json.loads((folder / "inference_result/out_summary.json").read_text())
    assert [(folder / entry["outfiles"][0]).read_text() for entry in summary["filesinfo"].values()] == texts
    assert not [name for name in leaves(folder) if name.endswith((".bin", ".part"))]

    assert "3 of 3 chunks are done" in works("TSM_chunked.py", *args, cwd=folder)
    clip = sorted((folder / "videos").iterdir())[2]
    os.utime(str(clip), (1, 1))  # changed, as far as one can tell: its chunk alone is done again
    assert "2 of 3 chunks are done" in works("TSM_chunked.py", *args, cwd=folder)
    assert works("TSM_postprocess.py", *RESULTS, cwd=folder) == expected


def test_killed_at_any_moment_it_goes_on(repo, works, setting):
    folder, args = setting
    command = [sys.executable, str(repo / "TSM_chunked.py")] + [str(arg) for arg in args]
    for delay in (1.5, 4, 6.5):
        process = subprocess.Popen(command, cwd=str(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   start_new_session=True)
        time.sleep(delay)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    works("TSM_chunked.py", *args, cwd=folder)
    assert json.loads(works("TSM_postprocess.py", *RESULTS, cwd=folder).split("\n", 4)[4])["videos"] == CLIPS
    assert not [name for name in leaves(folder) if name.endswith((".bin", ".part"))]


def test_a_failing_command_ends_the_run_with_its_own_line(run, setting):
    folder, args = setting
    (folder / "list.txt").write_text((folder / "list.txt").read_text() + "absent.webm 3\n")
    done = run("TSM_chunked.py", *args, cwd=folder)
    assert done.returncode == 1 and "absent.webm" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (folder / "inference_result/out_summary.json").exists()


def test_a_chunk_of_nothing_readable_is_passed_by_where_that_is_asked_for(run, works, setting):
    folder, args = setting
    for clip in sorted((folder / "videos").iterdir())[CHUNK : 2 * CHUNK]:
        clip.write_bytes(b"")
    skip = list(args)
    skip[3] += " --on-error skip"
    assert "-- infer chunk 2:4" not in works("TSM_chunked.py", *skip, cwd=folder)
    assert "accuracy over 3 of 5 (2 skipped) videos" in works("TSM_postprocess.py", *RESULTS, cwd=folder)
    assert "3 of 3 chunks are done" in works("TSM_chunked.py", *skip, cwd=folder)
    for clip in (folder / "videos").iterdir():
        clip.write_bytes(b"")
    done = run("TSM_chunked.py", *skip, cwd=folder)
    assert done.returncode == 1 and "list.txt: none of its videos could be read (line 1: is empty)" in done.stderr


@pytest.mark.parametrize("flags", ["--model quick.onnx", "--model=quick.onnx", "-m quick.onnx", "-mquick.onnx"])
def test_another_model_under_the_same_name_is_another_work(works, setting, flags):
    folder, args = setting
    args = args[:-1] + (args[-1].replace("--model quick.onnx", flags),)
    works("TSM_chunked.py", *args, cwd=folder)
    assert "3 of 3 chunks are done" in works("TSM_chunked.py", *args, cwd=folder)
    model = onnx.load(str(folder / "quick.onnx"))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((3, 174), np.float32), "w"))
    onnx.save(model, str(folder / "quick.onnx"))
    assert "0 of 3 chunks are done" in works("TSM_chunked.py", *args, cwd=folder)


def test_the_int8_file_belongs_to_the_work_whether_it_is_named_or_not(works, setting, repo):
    folder, args = setting
    wrapper = folder / "infer.py"  # TSM_infer.py without the precision, which the quick model has not
    wrapper.write_text("import os, sys\nwords = [word for word in sys.argv[1:] if 'int8' not in word]\n"
                       "os.execv(sys.executable, [sys.executable, %r] + words)\n" % str(repo / "TSM_infer.py"))
    command = "%s infer.py -m quick.onnx --precision=int8" % shlex.quote(sys.executable)
    for name, more in (("tsm_int8", ""), ("int8_own", " --int8_model int8_own.xml")):
        for suffix in (".xml", ".bin"):
            (folder / (name + suffix)).write_bytes(b"first")
        works("TSM_chunked.py", *args[:-1], command + more, cwd=folder)
        assert "3 of 3 chunks are done" in works("TSM_chunked.py", *args[:-1], command + more, cwd=folder)
        (folder / (name + ".bin")).write_bytes(b"remade")
        assert "0 of 3 chunks are done" in works("TSM_chunked.py", *args[:-1], command + more, cwd=folder)


@pytest.mark.parametrize("videos, dtype, size", [
    (529, "float32", 0), (530, "float32", 264), (2119, "uint8", 0), (2120, "uint8", 1059)])
def test_the_size_of_a_chunk_keeps_two_of_them_under_20_gb(works, tmp_path, videos, dtype, size):
    (tmp_path / "list.txt").write_text("".join("%d.webm 0\n" % number for number in range(videos)))
    assert works("TSM_chunked.py", "--size", "--ann_file", "list.txt", "--dtype", dtype, cwd=tmp_path) == "%d\n" % size

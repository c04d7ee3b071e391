"""TSM_infer.py keeps to ais_bench's contract on any model, and runs TSM's view by view to the same probabilities."""

import html
import json
import os
import re
import shutil
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from processes import ran

from tsm.model.graph import build, trunk_of
from tsm.model.onnxfile import graph_digest, metadata, openvino_says, protocol_of, read_onnx, set_metadata
from tsm.results import write_summary

BATCH, WIDTH = 4, 6


@pytest.fixture
def tiny(tmp_path):
    """A model [4, 6] -> [4, 3] that is not TSM, and what it computes."""
    weight = np.random.RandomState(0).standard_normal((WIDTH, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [BATCH, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [BATCH, 3])], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    model.ir_version = 6
    onnx.save(model, str(tmp_path / "tiny.onnx"))
    return weight


@pytest.fixture
def rows(tmp_path):
    """Eleven single-sample files, 0.bin to 10.bin: three batches of four, the last one partial."""
    data = np.random.RandomState(1).standard_normal((11, WIDTH)).astype(np.float32)
    (tmp_path / "in").mkdir()
    for index, row in enumerate(data):
        row.tofile(str(tmp_path / "in" / ("%d.bin" % index)))
    return data


ARGS = ("--model", "tiny.onnx", "--input", "in", "--output", "res", "--output_dirname", "out")


def summary(folder):
    return json.loads((folder / "res/out_summary.json").read_text())


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_files_are_packed_in_natural_order_and_each_has_its_result(works, tmp_path, tiny, rows, backend):
    out = works("TSM_infer.py", *ARGS, "--outfmt", "TXT", "--backend", backend, cwd=tmp_path)
    assert "[INFO] NPU_compute_time (ms): min = " in out and "[INFO] throughput 1000*batchsize.mean(4)/NPU_compute_time.mean(" in out
    found = summary(tmp_path)
    infos = [found["filesinfo"][str(key)] for key in range(11)]
    assert [info["infiles"] for info in infos] == [["in/%d.bin" % index] for index in range(11)]
    assert [info["outfiles"] for info in infos] == [["res/out/%d_0.txt" % index] for index in range(11)]
    for index, info in enumerate(infos):
        text = (tmp_path / info["outfiles"][0]).read_text()
        assert text.endswith(" \n") and text.count("\n") == 1
        assert np.allclose([float(word) for word in text.split()], rows[index] @ tiny, atol=2e-6)
    assert found["NPU_compute_time"]["count"] == 3 == len(found["npu_compute_time_list"])
    assert set(found["NPU_compute_time"]) == {"min", "max", "mean", "median", "percentile(99%)", "count"}
    assert {"args", "H2D_latency", "D2H_latency", "throughput", "pid"} <= set(found)
    assert sorted(path.name for path in (tmp_path / "res").iterdir()) == ["out", "out_summary.json"]


def test_other_forms_keep_float32_and_files_are_taken_in_the_order_given_and_of_whole_batches(works, tmp_path, tiny, rows):
    for form, read in (("NPY", np.load), ("BIN", lambda path: np.fromfile(path, np.float32))):
        works("TSM_infer.py", *ARGS, "--outfmt", form, cwd=tmp_path)
        values = read(str(tmp_path / ("res/out/10_0." + form.lower())))
        assert values.dtype == np.float32 and np.allclose(values.reshape(-1), rows[10] @ tiny, atol=1e-6)
    np.save(str(tmp_path / "whole.npy"), rows[:4])
    works("TSM_infer.py", *ARGS, "-i", "whole.npy", "--outfmt", "NPY", cwd=tmp_path)  # one result with its rows
    assert np.allclose(np.load(str(tmp_path / "res/out/whole_0.npy")), rows[:4] @ tiny, atol=1e-6)
    works("TSM_infer.py", *ARGS, "-i", "in/7.bin,in/2.bin", cwd=tmp_path)
    assert [info["infiles"][0] for info in summary(tmp_path)["filesinfo"].values()] == ["in/7.bin", "in/2.bin"]


def test_what_is_done_stays_and_what_a_kill_or_a_change_took_is_done_again(works, tmp_path, tiny, rows):
    first = works("TSM_infer.py", *ARGS, cwd=tmp_path)
    assert "11 results in res/out: 11 made, 0 already right" in first and "inference: 100 % (11 of 11)" in first
    results, journal = {path.name: path.read_bytes() for path in (tmp_path / "res/out").glob("*.bin")}, tmp_path / "res/out/.journal"
    assert "0 made, 11 already right" in works("TSM_infer.py", *ARGS, cwd=tmp_path) and summary(tmp_path)["NPU_compute_time"]["count"] == 3
    (tmp_path / "res/out_summary.json").unlink()
    journal.write_text("".join(journal.read_text().splitlines(True)[:2])[:-9])  # killed while the second batch was recorded
    (tmp_path / "res/out/10_0.bin").unlink()
    out = works("TSM_infer.py", *ARGS, cwd=tmp_path)
    assert "7 made, 4 already right" in out and "inference: 100 % (11 of 11)" in out
    assert results == {path.name: path.read_bytes() for path in (tmp_path / "res/out").glob("*.bin")}
    assert len(summary(tmp_path)["filesinfo"]) == 11 and summary(tmp_path)["NPU_compute_time"]["count"] == 3
    (rows[5] * 2).tofile(str(tmp_path / "in/5.bin"))
    os.utime(str(tmp_path / "in/5.bin"), (1, 1))
    assert "1 made, 10 already right" in works("TSM_infer.py", *ARGS, cwd=tmp_path)
    assert "11 made, 0 already right" in works("TSM_infer.py", *ARGS, "--loop", 2, cwd=tmp_path)


def test_each_tensor_is_read_once(works, patched, tmp_path, tiny, rows):
    counting = patched("TSM_infer.py", (
        "from tsm.infer import tensors\nread = tensors.read_tensor\n"
        "tensors.read_tensor = lambda path, *args: open('read', 'a').write(path + '\\n') and read(path, *args)"))
    works(counting, *ARGS, cwd=tmp_path)
    assert [os.path.basename(line) for line in (tmp_path / "read").read_text().split()] == ["%d.bin" % index for index in range(11)]


def test_loop_and_pure_inference(works, tmp_path, tiny, rows):
    works("TSM_infer.py", *ARGS, "--loop", 5, cwd=tmp_path)
    assert summary(tmp_path)["NPU_compute_time"]["count"] == 15
    out = works("TSM_infer.py", "--model=tiny.onnx", "--loop=20", "--pure_data_type", "random", cwd=tmp_path)
    assert "throughput" in out and sorted(path.name for path in tmp_path.iterdir()) == ["in", "res", "tiny.onnx"]


def _without_a_type(path):
    model = onnx.load(str(path))
    model.graph.input[0].type.Clear()
    onnx.save(model, str(path))


@pytest.mark.parametrize("damage, says", [
    (lambda folder: (folder / "in/9.bin").write_bytes(b"12345"), "9.bin"),
    (lambda folder: (folder / "in/9.bin").write_bytes(b""), "9.bin"),
    (lambda folder: (folder / "in/9.bin").write_bytes(b"0" * 5 * WIDTH * 4), "9.bin"),
    (lambda folder: np.full(WIDTH, np.nan, np.float32).tofile(str(folder / "in/9.bin")), "not finite"),
    (lambda folder: (folder / "in/3.1.bin").write_bytes(b"0" * WIDTH * 4), "same name"),
    (lambda folder: (folder / "tiny.onnx").write_bytes(b"no model"), "tiny.onnx"),
    (lambda folder: (folder / "tiny.onnx").write_bytes((folder / "tiny.onnx").read_bytes()[:-20]), "tiny.onnx"),
    (lambda folder: _without_a_type(folder / "tiny.onnx"), "tiny.onnx: its input is no tensor; export it again"),
    (lambda folder: (folder / "tiny.onnx").unlink(), "tiny.onnx"),
    (lambda folder: shutil.rmtree(str(folder / "in")), "in"),
    (lambda folder: [path.unlink() for path in (folder / "in").iterdir()], "in"),
])
def test_what_is_wrong_is_named_and_no_summary_is_left(fails, works, tmp_path, tiny, rows, damage, says):
    works("TSM_infer.py", *ARGS, cwd=tmp_path)
    damage(tmp_path)
    assert says in fails("TSM_infer.py", *ARGS, cwd=tmp_path)
    if (tmp_path / "tiny.onnx").exists() and (tmp_path / "tiny.onnx").read_bytes() != b"no model" and says.endswith(".bin"):
        assert not (tmp_path / "res/out_summary.json").exists()


@pytest.mark.parametrize("model, more", [
    ("thin", ("--precision", "int8", "--int8_model", "none.xml")), ("tiny.onnx", ("--precision", "int8")),
    ("tiny.onnx", ("--precision", "bf16", "--backend", "onnxruntime")), ("x.onnx", ()), ("tiny.onnx", ("--input", "in/0.bin,in/99.bin")),
])
def test_a_run_that_cannot_begin_leaves_a_finished_one_finished(fails, works, small_onnx, tmp_path, tiny, rows, model, more):
    works("TSM_infer.py", *ARGS, cwd=tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "res").rglob("*") if path.is_file()}
    fails("TSM_infer.py", *ARGS, "--model", small_onnx if model == "thin" else model, *more, cwd=tmp_path)
    assert len(before) == 14 and before == {path: path.read_bytes() for path in (tmp_path / "res").rglob("*") if path.is_file()}


@pytest.mark.parametrize("args", [("--outfmt", "txt"), ("--loop", "0"), ("--warmup_count", "-1"), ("--precision", "fp64"), ()])
def test_usage_errors_exit_2(fails, tmp_path, args):
    model = ("--model", "x.onnx") if args else ("--output_dirname", "out")
    fails("TSM_infer.py", *(model + args), cwd=tmp_path, status=2)


@pytest.mark.parametrize("op", ["Det", "Unheard"])
def test_what_openvino_does_not_take_is_told_in_its_own_words(fails, tmp_path, tiny, op):
    model = onnx.load(str(tmp_path / "tiny.onnx"))
    model.graph.node[0].op_type, model.graph.node[0].input[:] = op, ["x"]
    onnx.save(model, str(tmp_path / "tiny.onnx"))
    line = fails("TSM_infer.py", "--model", "tiny.onnx", "--backend", "openvino", cwd=tmp_path)
    assert "tiny.onnx: OpenVINO refuses it (No conversion rule found for operations: %s-11); try" % op in line


def test_an_openvino_error_of_any_form_says_something():
    for text, says in (("", "RuntimeError"), (" \n\n", "RuntimeError"), ("Exception from a.cpp:1:\nno memory\n\n", "no memory")):
        assert openvino_says(RuntimeError(text)) == says


def preprocessed(works, repo, folder, *protocol):
    """A folder with three demo clips, preprocessed, and their manifest."""
    clips = sorted(path.name for path in (repo / "demo/videos").iterdir())[:3]
    (folder / "list.txt").write_text("".join("%s %d\n" % (name, index) for index, name in enumerate(clips)))
    works("TSM_preprocess.py", "--data_root", repo / "demo/videos", "--ann_file", "list.txt", *protocol, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def tensors(works, repo, small_onnx, tmp_path_factory):
    return preprocessed(works, repo, tmp_path_factory.mktemp("tensors"), "--protocol", small_onnx.parent / "protocol.json")


@pytest.fixture(scope="module")
def whole(works, repo, tmp_path_factory):
    """Of all pixels, for the network that knows the clips."""
    return preprocessed(works, repo, tmp_path_factory.mktemp("whole"))


def probabilities(works, tensors, name, *args):
    works("TSM_infer.py", "-i", "sthv2/preprocess_bin", "-o", "res", "--output_dirname", name, "--outfmt", "NPY", *args,
          cwd=tensors)
    return np.stack([np.load(str(tensors / "res" / name / ("%d_0.npy" % index)))[0] for index in range(3)])


def test_tsm_view_by_view_equals_the_whole_model(works, tensors, small_onnx, tmp_path):
    """Both backends, batch 1 and a batch that three clips do not fill, against ONNX Runtime on the graph as it is."""
    session = onnxruntime.InferenceSession(str(small_onnx), providers=["CPUExecutionProvider"])
    videos = [np.fromfile(str(tensors / "sthv2/preprocess_bin" / ("%d.bin" % i)), np.float32) for i in range(3)]
    whole = np.concatenate([session.run(None, {"input": video.reshape(1, 48, 3, 64, 64)})[0] for video in videos])
    for name, args in {"ov": ("-m", small_onnx, "--backend", "openvino"), "ort": ("-m", small_onnx, "--backend", "onnxruntime"),
                       "four": ("-m", saved_again(small_onnx, tmp_path / "four.onnx"))}.items():
        assert np.abs(probabilities(works, tensors, name, *args) - whole).max() <= 1e-5, name
    assert json.loads((tensors / "res/four_summary.json").read_text())["NPU_compute_time"]["count"] == 1


def test_a_model_of_another_dtype_is_not_fed_with_the_tensors(fails, tensors, tmp_path):
    """A float16 input of two videos would take a float32 file as two samples."""
    shape = [2, 48, 3, 64, 64]
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1, 2, 3], keepdims=0)], "halved",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [2, 64])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    onnx.save(model, str(tmp_path / "half.onnx"))
    line = fails("TSM_infer.py", "-m", tmp_path / "half.onnx", "-i", "sthv2/preprocess_bin", cwd=tensors)
    assert "its tensors are float32" in line and "takes float16; make one as the other is" in line


def _flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("damage, named", [
    (lambda bins: (bins / "1.bin").write_bytes((bins / "1.bin").read_bytes()[:-4]), "1.bin"),
    (lambda bins: shutil.copy(str(bins / "0.bin"), str(bins / "1.bin")), "1.bin"),
    (lambda bins: (bins / "1.bin").unlink(), "1.bin"),
    (lambda bins: _flip(bins / "1.bin"), "1.bin"),
    (lambda bins: (bins.parent / "sthv2.json").write_text("{}"), "sthv2.json"),
])
def test_tampered_tensors_are_named(fails, tensors, small_onnx, tmp_path, damage, named):
    shutil.copytree(str(tensors / "sthv2"), str(tmp_path / "sthv2"))
    damage(tmp_path / "sthv2/preprocess_bin")
    assert named in fails("TSM_infer.py", "-m", small_onnx, "-i", "sthv2/preprocess_bin", "-o", "res", "--output_dirname",
                          "out", cwd=tmp_path)
    assert not (tmp_path / "res/out_summary.json").exists()


def test_bf16_reports_its_agreement_or_says_why_not(run, tensors, small_onnx):
    done = run("TSM_infer.py", "-m", small_onnx, "-i", "sthv2/preprocess_bin", "--precision", "bf16", "--agreement", 2,
               "--backend", "openvino", cwd=tensors)
    if done.returncode:
        assert "bfloat16" in done.stderr and done.stderr.count("\n") == 1
    else:
        assert "top-1: 0 of 2 answers differ from fp32's: at most 65.8 % do" in done.stdout


@pytest.fixture(scope="module")
def int8(works, whole, thin_onnx):
    """TSM_quantise.py's file for the demo's model, calibrated on two clips."""
    pytest.importorskip("nncf")
    out = works("TSM_quantise.py", "--model", thin_onnx, "--input", "sthv2/preprocess_bin", "--clips", 2, "--output",
                "tsm_int8.xml", cwd=whole)
    assert "calibrated on 2 clips" in out and not list(whole.glob(".*"))
    return whole / "tsm_int8.xml"


def saved_again(model, path, proved=True, **changes):
    """A model as modify_onnx.py writes it, for batch 4, with another classifier's bias or input dtype; or one without its proof."""
    source = read_onnx(str(model))
    trunk, protocol, dtype = trunk_of(source), protocol_of(source, str(model)), changes.pop("dtype", "float32")
    trunk = trunk._replace(**{key: change(getattr(trunk, key)) for key, change in changes.items()})
    made = build(trunk, "cpu", protocol, 4, "score", dtype=dtype)
    known = dict(metadata(source), **metadata(made))
    if proved:
        proof = json.loads(known["tsm.proof"])
        proof["one_view"]["sha256"] = graph_digest(build(trunk, "view", protocol, dtype=dtype))
        known["tsm.proof"] = json.dumps(proof)
    set_metadata(made, known)
    onnx.save(made, str(path))
    return path


def test_what_runs_is_what_was_proved(fails, small_onnx, tmp_path):
    other = saved_again(small_onnx, tmp_path / "other.onnx", proved=False, fc_bias=lambda bias: bias + 1)
    assert "its proof is of another graph" in fails("TSM_infer.py", "-m", other, cwd=tmp_path)


@pytest.mark.all
def test_int8_agrees_with_fp32_at_any_batch_size(works, whole, thin_onnx, int8, tmp_path):
    exact = probabilities(works, whole, "fp32", "-m", thin_onnx, "--backend", "openvino")
    small = ("--precision", "int8", "--int8_model", int8)
    one = probabilities(works, whole, "int8", "-m", thin_onnx, *small)
    four = probabilities(works, whole, "int8_4", "-m", saved_again(thin_onnx, tmp_path / "four.onnx"), *small)
    assert np.array_equal(one, four) and 0 < np.abs(one - exact).max() < 0.2
    assert (one.argmax(1) == exact.argmax(1)).all()
    kept = json.loads((whole / "res/int8_summary.json").read_text())["tsm"]
    assert kept["top1_agreement_with_fp32"] == {"same": 3, "videos": 3, "listed": 3}
    assert json.loads(kept["int8"]["calibration"])["clips"] == 2 and "calibrated_on" not in kept["int8"]


@pytest.mark.all
@pytest.mark.parametrize("damage, says", [
    (lambda folder: (folder / "q.xml").unlink(), "cannot be read (no such file); make it: python3 TSM_quantise.py"),
    (lambda folder: (folder / "q.bin").unlink(), "q.xml"),
    (lambda folder: (folder / "q.bin").write_bytes((folder / "q.bin").read_bytes()[:-1000]), "q.xml"),
    (lambda folder: (folder / "q.xml").write_bytes((folder / "q.xml").read_bytes()[:5000]), "q.xml"),
    (lambda folder: (folder / "q.xml").write_text("<net/>"), "q.xml"),
])
def test_a_damaged_int8_file_is_named(fails, thin_onnx, int8, tmp_path, damage, says):
    for suffix in (".xml", ".bin"):
        shutil.copy(str(int8.with_suffix(suffix)), str(tmp_path / ("q" + suffix)))
    damage(tmp_path)
    assert says in fails("TSM_infer.py", "-m", thin_onnx, "--precision", "int8", "--int8_model", "q.xml", cwd=tmp_path)


@pytest.mark.all
@pytest.mark.parametrize("changes", [{"fc_bias": lambda bias: bias + 1}, {"dtype": "uint8"}])
def test_int8_of_another_network_is_refused(fails, thin_onnx, int8, tmp_path, changes):
    other = saved_again(thin_onnx, tmp_path / "other.onnx", **changes)
    assert "not made from the network" in fails("TSM_infer.py", "-m", other, "--precision", "int8", "--int8_model", int8, cwd=tmp_path)


def hard_to_quantise(weights):
    """The same network, the largest channel of the stem times 1000, and divided by it in what reads it: int8 keeps no other."""
    weights = {name: array.copy() for name, array in weights.items()}
    readers = [weights["layer1.0.%s.weight" % name] for name in ("conv1", "downsample")]
    channel = np.abs(weights["conv1.weight"]).sum((1, 2, 3)).argmax()
    for array in (weights["conv1.weight"], weights["conv1.bias"]):
        array[channel] *= 1000
    for reader in readers:
        reader[:, channel] /= 1000
    return weights


def doubled(weights):
    """The same network with each channel twice, and of half the weight, side by side: products then come in pairs of equals."""
    twice = {name: array.repeat(2, 0) for name, array in weights.items()}
    return {name: array if array.ndim == 1 or name.startswith("conv1.") else array.repeat(2, 1) / 2 for name, array in twice.items()}


@pytest.mark.all
def test_layers_go_back_to_floating_point_until_the_bound_holds(works, repo, small_onnx, tmp_path):
    """Of clips of one label, as if there were none."""
    pytest.importorskip("nncf")
    model, clips = saved_again(small_onnx, tmp_path / "hard.onnx", weights=hard_to_quantise), repo / "demo/videos"
    (tmp_path / "list.txt").write_text("".join("%s 0\n" % path.name for path in sorted(clips.iterdir())[:20]))
    out = works("TSM_quantise.py", "--model", model, "--ann_file", "list.txt", "--data_root", clips, "--max_drop", 30, cwd=tmp_path)
    assert "10 clips calibrate, 10 validate: others" in out
    lost = [float(word) for word in re.findall("([0-9.]+) % of the answers differ", out)]
    given = re.findall("with (.*) in fp32: ", out)[-1].split(", ")
    assert len(lost) > 1 and lost[0] > 30 >= lost[-1] and "layer1.0.conv1" in given and len(given) < 8
    assert re.search("ms a view, roughly: fp32 [0-9]+, int8 [0-9]+, mixed [0-9]+", out)
    text = (tmp_path / "tsm_int8.xml").read_text()
    names = [json.loads(html.unescape(re.search('<%s value="(.*?)"' % key, text).group(1))) for key in ("calibrated_on", "validated_on")]
    assert [len(set(some)) for some in names] == [10, 10] and not set(names[0]) & set(names[1])
    said = works("TSM_infer.py", "-m", model, "--precision", "int8", "--loop", 1, "--warmup_count", 0, cwd=tmp_path)
    assert "bound 30: %.1f %% of the answers differ on 10 videos; " % lost[-1] in said and "in fp32: " + ", ".join(given) in said


@pytest.mark.all
def test_int8_answers_the_same_where_pairs_of_products_overflow(run, works, tensors, small_onnx, tmp_path):
    """oneDNN takes instructions without VNNI where it is told to."""
    pytest.importorskip("nncf")
    model = saved_again(small_onnx, tmp_path / "doubled.onnx", weights=doubled, fc_weight=lambda weight: weight.repeat(2, 1) / 2)
    works("TSM_quantise.py", "--model", model, "--input", tensors / "sthv2/preprocess_bin", cwd=tmp_path)
    found = []
    for isa in ("DEFAULT", "AVX512_CORE", "AVX2"):
        done = run("TSM_infer.py", "-m", model, "-i", tensors / "sthv2/preprocess_bin", "--precision", "int8", "--agreement", 0, "-o", ".",
                   "--output_dirname", isa, "--outfmt", "NPY", cwd=tmp_path, env={"ONEDNN_MAX_CPU_ISA": isa}, process=True)
        assert done.returncode == 0, done.stderr
        found.append(np.stack([np.load(str(tmp_path / isa / ("%d_0.npy" % index)))[0] for index in range(3)]))
    assert np.abs(found[1] - found[0]).max() <= 1e-6 and np.abs(found[2] - found[0]).max() <= 1e-6


def test_decoders_are_forked_before_what_starts_threads(small_onnx, repo, tmp_path):
    """TSM_quantise.py makes tensors of a list before NNCF, PyTorch or OpenVINO are there."""
    pytest.importorskip("nncf")
    (tmp_path / "list.txt").write_text("a.mp4 0\n")
    code = ("import sys; sys.path.insert(0, %r); import TSM_quantise, tsm.video.clips as clips\n"
            "def decoded(*args): print(sorted({'nncf', 'openvino', 'torch', 'onnxruntime'} & set(sys.modules))); sys.exit()\n"
            "clips.decoded = decoded\nTSM_quantise.main()" % str(repo))
    done = ran(sys.executable, "-c", code, "-m", small_onnx, "--ann_file", "list.txt", "--data_root", ".", cwd=tmp_path)
    assert done.stdout == "[]\n", done.stderr


def test_quantising_names_what_it_cannot_use(fails, tensors, tiny, tmp_path):
    pytest.importorskip("nncf")
    assert "tiny.onnx" in fails("TSM_quantise.py", "-m", "tiny.onnx", "-i", tensors / "sthv2/preprocess_bin", cwd=tmp_path)
    name = "is to be a file that ends in .xml, in a folder that is there"
    assert "--output int8.onnx: " + name in fails("TSM_quantise.py", "-m", "tiny.onnx", "-i", "x", "--output", "int8.onnx", cwd=tmp_path)
    for words, says in ((["--data_root", "nodir"], "nodir: no such folder; --data_root is"),
                        (["--data_root", ".", "--output", "nodir/x.xml"], "--output nodir/x.xml: " + name)):
        assert says in fails("TSM_quantise.py", "-m", "tiny.onnx", "--ann_file", "list.txt", *words, cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.onnx"]


def test_a_summary_of_the_same_work_stays_as_it_is(tmp_path):
    """Whose process is another; so run_all.sh finds what came of it as it was."""
    for pid, times, kept in ((1, 2.0, 1), (2, 2.0, 1), (3, 4.0, 3)):
        write_summary(str(tmp_path / "out"), {"filesinfo": {}, "pid": pid, "throughput": times, "tsm": {"engine": "x"}})
        assert json.loads((tmp_path / "out_summary.json").read_text())["pid"] == kept

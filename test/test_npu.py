"""run_all.sh --device npu, end to end over the stand-ins for npu-smi, atc and ais_bench; and TSM_infer.py against ais_bench's."""

import argparse
import json
import os
import re
import shutil
import sys
import threading

import forked
import numpy as np
import onnx
import pytest
from clips import arguments, listed
from processes import LONGEST, ran

from tsm.chain import npu, tune
from tsm.chain.npu import cann_version, check_path, devices, prepare, the_chip
from tsm.chain.plan import find_device, get_args
from tsm.cli import UserError
from tsm.files import sha256, write_json
from tsm.infer import ascend
from tsm.infer.journal import Piece
from tsm.infer.lists import Chunk
from tsm.model import aipp
from tsm.model.graph import FLAT, build, trunk_of
from tsm.model.offline import read_offline
from tsm.model.onnxfile import read_onnx, session
from tsm.protocol import SSV2
from tsm.video.clips import normalisation

CLIPS = 5  # neither 4 nor 8 divides it
ATC = ["--framework=5", "--output=m", "--input_format=ND", "--log=error", "--soc_version=Ascend310P3"]
PERF = ("--num_worker", 2, "--loop", 1)
GUIDE = pytest.param((1, "2023", 0o022), id="bs1-2023")  # batch size, generation of ais_bench, umask
ONCE = pytest.mark.parametrize("on_npu", [GUIDE], indirect=True)


@pytest.fixture(scope="module")
def standins(repo):
    return repo / "test" / "standins"


@pytest.fixture(scope="module")
def atlas(standins, python, tmp_path_factory):
    """The environment of an Atlas host: the stand-ins, atc of them forked; this Python, and no set_env.sh but the PATH's."""
    folder = tmp_path_factory.mktemp("atlas")
    (folder / "atc").write_text('#!/bin/sh\nexec "%s" "%s" "$@"\n' % (python, standins / "atc"))
    (folder / "atc").chmod(0o755)
    path = os.pathsep.join([str(folder), str(standins), os.path.dirname(sys.executable), os.environ["PATH"]])
    return {"PATH": path, "PYTHONPATH": str(standins), "PYTHON": sys.executable, "ASCEND_SET_ENV": "/nowhere/set_env.sh",
            "STANDIN_WITHOUT_WARMUP": "1"}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An environment with the usual tools on its PATH, and nothing of Ascend's."""
    folder = tmp_path_factory.mktemp("bin")
    for tool in ("bash", "cat", "dirname", "flock", "mkdir", "readlink", "sort"):
        (folder / tool).symlink_to(shutil.which(tool))
    return {"PATH": str(folder), "PYTHONPATH": "", "PYTHON": sys.executable, "ASCEND_SET_ENV": "/nowhere/set_env.sh",
            "ASCEND_SYSROOT": "/nowhere", "HOME": "/nowhere"}


@pytest.fixture(scope="module")
def demo(repo, chain, tmp_path_factory):
    """Arguments for run_all.sh: the first clips of the demo, and its thin network."""
    ann_file = tmp_path_factory.mktemp("demo") / "sthv2_list.txt"
    ann_file.write_text("".join((chain.parent / "list.txt").read_text().splitlines(True)[:CLIPS]))
    return ["--data_root", repo / "demo" / "videos", "--ann_file", ann_file, "--checkpoint", repo / "demo" / "tsm_thin.pth",
            "--exporter", "builtin"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("npu")


@pytest.fixture(scope="module")
def on_cpu(chain):
    """(the CPU's probabilities of these clips, how many answers are right and how many of the five best)."""
    found = probabilities_in(chain)
    labels = [int(line.split()[1]) for line in (chain.parent / "list.txt").read_text().splitlines()[:CLIPS]]
    places = np.array([np.argsort(-row, kind="stable").tolist().index(label) for row, label in zip(found, labels)])
    return found, (places < 1).mean(), (places < 5).mean()


def probabilities_in(work):
    rows = [np.loadtxt(str(work / "inference_result" / "out" / ("%d_0.txt" % number))) for number in range(CLIPS)]
    return np.stack(rows)


def left_by_a_cpu_run(work):
    """Give what is in a work folder the modes that a CPU run under umask 0002 leaves."""
    for path in [work / "inference_result", work / "inference_result/out"]:
        path.chmod(0o755)
    for path in list((work / "sthv2").glob("*/*.bin")) + list(work.glob("tsm_bs*.om")):
        path.chmod(0o664)
    (work / "sthv2/preprocess_bin").chmod(0o775)


@pytest.fixture(scope="module", params=[GUIDE, pytest.param((4, "2025", 0o002), id="bs4-2025", marks=pytest.mark.all),
                                        pytest.param((8, "2025", 0), id="bs8-2025", marks=pytest.mark.all)])
def on_npu(request, works, atlas, demo, work):
    """(batch size, what the run printed, probabilities, report) of run_all.sh over the stand-ins, in one work folder.

    Of each generation of ais_bench; the newer one in a folder that others were let into before, under an open umask.
    """
    batch, generation, umask = request.param
    if generation == "2025":
        if not (work / "sthv2").exists():  # this case runs alone
            works("TSM_preprocess.py", *demo[:4], cwd=work)
            (work / "inference_result/out").mkdir(parents=True)
        left_by_a_cpu_run(work)
    other = tune.Candidate("mask", "aipp", [], "", 90.0, 80.0, 0.0, 8)  # the fastest on another chip
    write_json(str(work / "tune.json"), {"chip": "310P1", "cann": cann_version(), "checkpoint_sha256": "0" * 64, "batch_size": 8,
                                         "videos": 8, "candidates": [other._asdict()], "chosen": None}, "tune")
    before = os.umask(umask)
    try:
        said = works("run_all.sh", batch, "--device", "npu", *demo, *PERF, "--perf_batches", 1, "--work_dir", work,
                     cwd=work, env=dict(atlas, STANDIN_GENERATION=generation), timeout=1800)
    finally:
        os.umask(before)
    return batch, said, probabilities_in(work), json.loads((work / "report.json").read_text())


def test_npu_gives_what_the_cpu_gives(on_npu, on_cpu, work):
    """With its agreement with fp32, and the guide's own speeds beside it."""
    batch, said, probabilities, report = on_npu
    expected, *accuracy = on_cpu
    assert np.abs(probabilities - expected).max() <= 2e-5  # two roundings to %f, and float error
    assert (probabilities.argmax(1) == expected.argmax(1)).all() and report["accuracy"]["videos"] == CLIPS
    assert [report["accuracy"][key] for key in ("top1_acc", "top5_acc")] == accuracy
    assert report["inference"]["NPU_compute_time"]["count"] == -(-CLIPS // batch)
    assert report["agreement"]["videos"] == CLIPS and report["agreement"]["flips"] == 0
    assert report["agreement"]["largest_difference"] <= 2e-5
    assert "top-1: 0 of all %d videos' answers differ from fp32's" % CLIPS in said
    assert all(figure in said for figure in ("20.77", "18.41", "17.67", "17.12", "17.36"))
    assert report["tune"] is None and "Forms tried on a chip" not in (work / "report.html").read_text()  # it is another's
    assert "0.6187 / 0.8721" not in said  # the accuracy belongs to the published checkpoint, and this is the demo's


def test_commands_are_the_guide_s(on_npu, python):
    batch, said = on_npu[:2]
    printed = [line[2:].replace(python, "python3") for line in said.splitlines() if line.startswith("$ ")]
    for command in (
        "atc --model=tsm_new_bs{0}.onnx --framework=5 --output=tsm_bs{0} --input_format=ND --log=error "
        "--soc_version=Ascend310P3",
        "python3 -m ais_bench --model ./tsm_bs{0}.om --input ./sthv2/preprocess_bin --output ./inference_result "
        "--output_dirname out --outfmt TXT",
    ):
        assert command.format(batch) in printed
    assert "python3 -m ais_bench --model=tsm_bs1.om --loop=1" in printed
    post = next(line for line in printed if "TSM_postprocess.py" in line)
    assert post.endswith("--result_path=inference_result/out_summary.json --info_path=sthv2/sthv2.info")


@ONCE
def test_the_same_model_in_another_precision_mode_is_a_stage(on_npu, works, atlas, work):
    flags = ("TSM_compare.py", "--stages", work, "--videos", 2)
    row = next(line for line in works(*flags, cwd=work, env=atlas).splitlines() if line.startswith("precision"))
    assert re.match(r"precision  same +\d\.\de-\d+ +0 of 2   the same model by --precision_mode=allow_fp32_to_fp16$", row), row
    said = works(*flags, cwd=work, env=dict(atlas, STANDIN_ATC_REFUSES="allow_fp32"))
    assert re.search("precision  not checked .*atc: E40021", said) and "no stage departs of those checked" in said


def test_an_online_model_is_compiled_measured_and_run_with_its_states_on_the_chip(works, atlas, demo, tmp_path):
    said = works("run_all.sh", 1, "--device", "npu", "--online", "--shift", "bi-still", "--loop", 2, *demo, "--work_dir", tmp_path,
                 cwd=tmp_path, env=atlas)
    assert ("$ atc --model=tsm_online.onnx --framework=5 --output=tsm_online --input_format=ND --log=error --soc_version=Ascend310P3\n"
            in said and "-m ais_bench --model=tsm_online.om --loop=2\n" in said and "\nDone." in said)
    assert "[INFO] throughput 1000*batchsize.mean(1)" in (tmp_path / "perf/frame.log").read_text()
    assert "videos per second" in (tmp_path / "perf/bs1.log").read_text()
    found, summary = probabilities_in(tmp_path), json.loads((tmp_path / "inference_result/out_summary.json").read_text())["tsm"]
    assert summary["engine"] == "ais_bench" and summary["frame_ms"]["p50"] > 0 and summary["precision"] == "as atc chose"
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["findings"]["curve"]) == 10 and report["device"]["name"] == "Ascend NPU"
    works("TSM_stream.py", "--model", "tsm_online.onnx", *demo[:4], "--output", "cpu", "--output_dirname", "out", "--outfmt", "TXT",
          "--backend", "onnxruntime", cwd=tmp_path)
    rows = np.stack([np.loadtxt(str(tmp_path / "cpu/out" / ("%d_0.txt" % number))) for number in range(CLIPS)])
    assert np.abs(rows - found).max() <= 2e-6


@pytest.mark.parametrize("batch, options, tensors, says", [
    (1, ("--dtype", "uint8", "--precision_mode_v2", "fp16"), "uint8", "--input_format=ND --precision_mode_v2=fp16 --log=error"),
    pytest.param(4, ("--aipp",), "uint8_nhwc", "--input_format=NCHW --insert_op_conf=tsm_new_bs4.cfg --enable_small_channel=1 --log=error",
                 marks=pytest.mark.all),
    pytest.param(4, ("--aipp", "--devices", "0", "--chunk", 3), "uint8_nhwc", "TSM_stream.py --devices 0 --dtype uint8_nhwc --chunk 3",
                 marks=pytest.mark.all)])
def test_the_chip_normalises(batch, options, tensors, says, works, atlas, demo, on_cpu, tmp_path):
    """uint8 in the graph, and by AIPP; a quarter of the bytes, the CPU's answers, and what AIPP's half precision changes."""
    said = works("run_all.sh", batch, "--device", "npu", *options, *demo, *PERF, "--gallery", 0, "--work_dir", tmp_path, cwd=tmp_path,
                 env=atlas, timeout=1800)
    found, agreement = probabilities_in(tmp_path), json.loads((tmp_path / "agreement.json").read_text())
    assert says in said and (found.argmax(1) == on_cpu[0].argmax(1)).all()
    assert np.abs(found - on_cpu[0]).max() <= (2e-5 if tensors == "uint8" else 5e-3)
    manifests = [json.loads(path.read_text()) for path in tmp_path.glob("*/*.json") if path.parent.name != "perf"]
    assert [one["protocol"]["dtype"] for one in manifests if "samples" in one] == [tensors]
    assert agreement["flips"] == 0 and agreement["largest_difference"] <= 5e-3
    if tensors == "uint8_nhwc":
        assert [row["rounded"] for row in agreement["aipp"]] == ["at every step", "at the end"]
        assert all(row["flips"] == 0 and 0 < row["largest_difference"] < 5e-3 for row in agreement["aipp"])
        assert "AIPP alone, rounded to half precision at every step: 0 of %d answers differ" % CLIPS in said


@pytest.mark.all
def test_tuning_keeps_the_fastest_that_agrees(works, run, atlas, demo, tmp_path):
    """What atc refuses, and what ais_bench dies of, is a row with its words; later runs use the choice."""
    flags = ["run_all.sh", 4, "--device", "npu", *demo, *PERF, "--work_dir", tmp_path]
    said = works(*flags, "--tune", cwd=tmp_path, timeout=1800,
                 env=dict(atlas, STANDIN_ATC_REFUSES="mask_float32", STANDIN_CRASHES="_uint8"))
    found = json.loads((tmp_path / "tune.json").read_text())
    rows = found["candidates"]
    assert [(row["form"], row["input"]) for row in rows[:3]] == [("guide", "float32"), ("parts", "float32"), ("mask", "float32")]
    assert [row["input"] for row in rows[3:]] == ["uint8", "aipp"] and (found["chip"], found["videos"]) == ("310P3", CLIPS)
    assert rows[2]["refused"].startswith("atc: E40021: Failed to compile Op") and "refused: atc: E40021" in said
    assert rows[3]["refused"].startswith("ais_bench: ended by signal 11") and rows[3]["commands"][-1].startswith(sys.executable + " -m ais")
    for row in rows[:2] + rows[4:]:
        assert row["top1_agreement"] == CLIPS and row["largest_difference"] < 5e-3 and 0 < row["with_transfer"] < row["videos_per_second"]
        assert any(command.startswith("atc --model=tune/%s_%s.onnx" % (row["form"], row["input"])) for command in row["commands"])
    best = max((row for row in rows if not row["refused"]), key=lambda row: row["with_transfer"])
    assert found["chosen"] == {"form": best["form"], "input": best["input"]} and not (tmp_path / "tune").exists()
    dtype = {"float32": "", "uint8": " --input_dtype uint8", "aipp": " --input_dtype aipp"}[best["input"]]
    form = "" if best["form"] == "guide" else " --form " + best["form"]
    assert "--target ascend%s%s --labels" % (dtype, form) in said or "--target ascend%s%s\n" % (dtype, form) in said
    assert json.loads((tmp_path / "report.json").read_text())["tune"]["candidates"] == rows
    again = run(*flags, cwd=tmp_path, env=atlas)
    assert again.returncode == 0 and "the fastest on this chip is form %s, input %s" % (best["form"], best["input"]) in again.stderr


def test_what_tuning_found_is_used_where_it_is_true(tmp_path, monkeypatch, capsys):
    """On the same chip, of the inputs that are asked for, and not what disagrees or was refused."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pth").write_bytes(b"a")
    assert tune.tuned("310P3", "a.pth", ["float32"]) is None
    rows = [tune.Candidate("guide", "float32", [], "", 20.0, 19.0, 0.0, 8), tune.Candidate("parts", "float32", [], "", 60.0, 50.0, 0.3, 2),
            tune.Candidate("mask", "float32", [], "atc: E1"), tune.Candidate("mask", "aipp", [], "", 30.0, 29.0, 0.001, 8)]
    write_json("tune.json", {"chip": "310P3", "cann": cann_version(), "checkpoint_sha256": sha256("a.pth"),
                             "candidates": [row._asdict() for row in rows]}, "tune")
    assert tune.tuned("310P3", "a.pth", list(tune.INPUTS)) == rows[3]
    assert tune.tuned("310P3", "a.pth", ["float32"]) == rows[0] and tune.tuned("310P3", "a.pth", ["uint8"]) is None
    assert capsys.readouterr().err == ""
    assert tune.tuned("310P1", "a.pth", ["float32"]) is None
    assert "tune.json: is of another chip 310P3, not 310P1; the guide's form is used, and --tune measures again" in capsys.readouterr().err
    answers, reference = {"0": np.ones(3) / 3, "1": np.array([0.5, 0.5, np.nan])}, {"0": np.ones(3) / 3, "1": np.ones(3) / 3}
    monkeypatch.setattr(tune, "timed", lambda *_: (answers, [1.0, 1.0, 1.0]))
    assert not tune.candidate(argparse.Namespace(batch_size=1), "mask", "float32", "", reference).usable  # whichever video it is
    with pytest.raises(UserError, match="python: ended by signal 11; it said nothing"):
        tune.call("python", [sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"], [])


@ONCE
def test_a_failing_atc_is_shown_and_its_status_kept(on_npu, run, atlas, demo, work):
    """--chip is taken as it is, whatever npu-smi lists: atc is told so, and says that it knows no such chip, or lacks its kernels."""
    done = run("run_all.sh", 1, "--device", "npu", "--chip", "310P9", *demo, *PERF, "--work_dir", work, cwd=work,
               env=dict(atlas, NPU_SMI_CHIPS="310P3 910A"))
    assert "--soc_version=Ascend310P9" in done.stdout and done.returncode == 255
    assert "Value [Ascend310P9] for parameter [--soc_version] is invalid" in done.stdout
    done = run("run_all.sh", 1, "--device", "npu", "--chip", "310P1", *demo, *PERF, "--work_dir", work, cwd=work,
               env=dict(atlas, STANDIN_ATC_WITHOUT_OPS="yes"))
    assert done.returncode == 255 and "EZ3003" in done.stdout and "Ascend-cann-310p-ops" in done.stderr.splitlines()[-1]


ROWS = """
+-------------------------------+-----------------+------------------------------------------------------+
| npu-smi 25.2.0                                   Version: 25.2.0                                       |
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%%)    Memory-Usage(MB)                        |
+===============================+=================+======================================================+
%s
+===============================+=================+======================================================+
| NPU     Chip                  | Process id      | Process name             | Process memory(MB)        |
+===============================+=================+======================================================+
| 0       0                     | 2301            | python3                  | 912                       |
+===============================+=================+======================================================+
| No running processes found in NPU 1                                                                    |
+===============================+=================+======================================================+
"""
RULE = "+-------------------------------+-----------------+--------------------------------------------+\n"


@pytest.mark.parametrize("rows, names", [
    ("| 0  310P3 | Warning | NA  91  0 / 0 |\n| 0  0 | 0000:5E:00.0 | 98  20010/ 21534 |", ["310P3"]),
    ("| 0  310P3 | Alarm | NA  91  0 / 0 |\n| 0  0 | 0000:5E:00.0 | 98  20010/ 21534 |", ["310P3"]),
    ("| 32800  310P3 | - | NA  NA  NA / NA |\n| 0  1 | 0000:86:00.0 | NA  NA / NA |", ["310P3"]),
    ("| 2  310P3 | OK | NA  45  0 / 0 |\n| 0  0 | 0000:01:00.0 | 0  1529 / 44280 |\n" + RULE  # one card of two chips
     + "| 2  310P3 | OK | NA  43  0 / 0 |\n| 1  1 | 0000:01:00.0 | 0  1412 / 43693 |", ["310P3", "310P3"]),
    ("| 2  310P3 | OK | NA  45  0 / 0 |\n| 0  0 | 0000:01:00.0 | 0  1529 / 44280 |\n"  # without a rule between the two
     "| 2  310P3 | OK | NA  43  0 / 0 |\n| 1  1 | 0000:01:00.0 | 0  1412 / 43693 |", ["310P3", "310P3"]),
    ("| 0  310P1 | OK | 10.4  66  0 / 0 |\n| 0  0 | NA | 0  957  / 10810 |", ["310P1"]),
    ("| 0  910B4-1 | OK | 89.1  40  0 / 0 |\n| 0 | 0000:C1:00.0 | 0  0 / 0  3400 / 65536 |", ["910B4-1"]),
    ("| 0  Ascend910 | OK | 169.7  37  0 / 0 |\n| 0  0 | 0000:9D:00.0 | 0  0 / 0  3399 / 65536 |", ["Ascend910"]),
    ("| 0  310 | OK | 12.8  45  0 / 969 |\n| 0  0 | 0000:06:00.0 | 0  621 / 7759 |", ["310"]),  # all digits
    ("", []),
])
def test_every_form_of_the_listing(rows, names):
    assert [name for name, _ in npu.chips_in(ROWS % rows)] == names
    wanted = [int(number) for number in re.findall(r"^\| \d+  (\d+) \| (?:0000|NA)", rows, re.MULTILINE)]
    assert devices(ROWS % rows) == (wanted or list(range(len(names))))  # 910B boards list no device


@pytest.mark.parametrize("text, status, said", [
    ("dcmi module initialize failed. ret is -8005", 255,
     "failed with status 255 and said 'dcmi module initialize failed. ret is -8005';"),
    ("\nDrvMngGetConsoleLogLevel failed. (g_conLogLevel=3)\ndcmi model initialized failed, ret is -8020\n", 1,
     "said 'DrvMngGetConsoleLogLevel failed. (g_conLogLevel=3); dcmi model initialized failed, ret is -8020';"),
    ("\n", 1, "failed with status 1 and said nothing"), ("\n", 0, "lists no chip and said nothing"),
    ("dcmi module initialize failed. ret is -8005\n", 0, "lists no chip and said 'dcmi module initialize failed. ret is -8005'"),
])
def test_an_npu_smi_that_fails_has_its_say(text, status, said, fails, atlas, tmp_path):
    (tmp_path / "says").write_text(text)
    line = fails("run_all.sh", 1, "--device", "npu", "--work_dir", tmp_path / "work", cwd=tmp_path,
                 env=dict(atlas, NPU_SMI_SAYS=str(tmp_path / "says"), NPU_SMI_STATUS=str(status)))
    assert said in line and "--chip 310P3" in line and "/dev/davinci" in line
    assert not os.listdir(str(tmp_path / "work"))


def test_chips_of_different_names_are_listed(fails, atlas, tmp_path):
    line = fails("run_all.sh", 1, "--device", "npu", "--work_dir", tmp_path, cwd=tmp_path,
                 env=dict(atlas, NPU_SMI_CHIPS="310P3 910A"))
    assert "npu-smi info: lists chips of different names (310P3 910A); choose one: --chip NAME" in line
    assert not os.listdir(str(tmp_path))
    with pytest.raises(UserError, match="lists no chip"):
        the_chip(ROWS % "")


def test_atc_is_given_the_chip_s_own_name(on_npu, run, atlas, demo, work, tmp_path):
    """Also one that begins with Ascend. An atc that fails at once ends the run there."""
    (tmp_path / "atc").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "atc").chmod(0o755)
    chip, soc = {1: ("Ascend910", "Ascend910"), 4: ("910B4-1", "Ascend910B4-1"), 8: ("310", "Ascend310")}[on_npu[0]]
    done = run("run_all.sh", 1, "--device", "npu", *demo, *PERF, "--work_dir", work, cwd=work,
               env=dict(atlas, NPU_SMI_CHIPS=chip, PATH="%s:%s" % (tmp_path, atlas["PATH"])))
    assert done.returncode == 3 and done.stdout.endswith(" --soc_version=%s\n" % soc), done.stdout


def only(bare, standins, folder, *tools):
    """`bare` with some of the stand-ins' commands on its PATH."""
    folder.mkdir()
    for tool in tools:
        (folder / tool).symlink_to(standins / tool)
    return dict(bare, PATH="%s:%s" % (folder, bare["PATH"]))


@pytest.mark.parametrize("tools, said", [
    ((), "atc: not found; it comes with the CANN toolkit"),
    (("atc",), "npu-smi: not found; it comes with the Ascend driver"),
    (("atc", "npu-smi"), "has no such package; build its wheel from ascend/tools"),
])
def test_a_missing_tool_is_named_before_any_work(tools, said, fails, bare, standins, tmp_path):
    env = only(bare, standins, tmp_path / "bin", *tools)
    work = tmp_path / "work"
    work.mkdir()
    assert said in fails("run_all.sh", 1, "--device", "npu", "--work_dir", work, cwd=tmp_path, env=env)
    assert not os.listdir(str(work))


def set_env_of(bare, standins, folder):
    """A set_env.sh, as careless as CANN's, that puts atc on the PATH; its folder is made."""
    folder.mkdir(parents=True)
    path = only(bare, standins, folder / "bin", "atc")["PATH"]
    (folder / "set_env.sh").write_text("false\nLD_LIBRARY_PATH=/lib:$NOT_SET_ANYWHERE\nexport PATH=%s\n" % path)
    return folder / "set_env.sh"


@pytest.fixture
def host(bare, tmp_path, monkeypatch):
    """host(**env) -> what find_device() says of ./run_all.sh 1, and the arguments, on a host with nothing of Ascend's but what is made."""
    def host(**env):
        for name, value in dict(bare, ASCEND_SYSROOT=str(tmp_path / "root"), HOME=str(tmp_path / "home"), ASCEND_SET_ENV="", **env).items():
            monkeypatch.setenv(name, value)
        args = get_args(["1"])
        return (*find_device(args), args)

    return host


@pytest.mark.parametrize("place", ["root/usr/local/Ascend/ascend-toolkit", "root/usr/local/Ascend/cann", "home/Ascend/cann",
                                   "home/Ascend/ascend-toolkit"])
def test_set_env_is_found_when_atc_is_not_on_the_path(place, host, bare, standins, tmp_path):
    script = set_env_of(bare, standins, tmp_path / place)
    found, why, args = host()
    assert found == str(script) and why == "%s found here" % script and args.device == "npu"


@pytest.mark.parametrize("device", ["npu", "auto"])
def test_set_env_is_sourced(device, run, bare, standins, tmp_path):
    script = set_env_of(bare, standins, tmp_path / "named")
    done = run("run_all.sh", 1, "--device", device, "--work_dir", tmp_path / "work", cwd=tmp_path,
               env=dict(bare, ASCEND_SET_ENV="named/set_env.sh"))
    assert done.returncode == 1 and "npu-smi: not found" in done.stderr and done.stderr.count("\n") == 1  # so atc was found
    assert ("Running on the NPU (%s found here)" % script in done.stdout) == (device == "auto")


def test_of_several_toolkits_the_newest_is_taken_and_said(host, tmp_path, monkeypatch):
    """Also one that pip installed; a link to a version is that version."""
    packages = tmp_path / "lib/python3/site-packages"
    for place in ("root/usr/local/Ascend/ascend-toolkit", "root/usr/local/Ascend/cann-8.5.0", "home/Ascend/cann-9.1.0.RC1",
                  "home/Ascend/cann-9.0.0"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "set_env.sh").write_text("")
    (tmp_path / "root/usr/local/Ascend/cann").symlink_to("cann-8.5.0")
    monkeypatch.setattr(sys, "path", sys.path + [str(packages)])
    set_env, why, _ = host()
    assert set_env == str(tmp_path / "home/Ascend/cann-9.1.0.RC1/set_env.sh") and "of 4 versions of CANN the newest, " + set_env in why
    (packages / "ascend/cann-9.1.0").mkdir(parents=True)
    (packages / "ascend/cann-9.1.0/set_env.sh").write_text("")
    assert host()[0] == str(packages / "ascend/cann-9.1.0/set_env.sh")


@pytest.mark.parametrize("sign", ["", "dev/davinci0", "dev/davinci_manager", "usr/local/Ascend/driver", "npu-smi"])
def test_auto_is_loud_about_an_npu_without_its_tools(sign, host, bare, standins, tmp_path, capsys):
    if sign == "npu-smi":
        _, why, args = host(PATH=only(bare, standins, tmp_path / "bin", sign)["PATH"])
    else:
        (tmp_path / "root" / sign).mkdir(parents=True)
        _, why, args = host()
    assert why == "no Ascend toolkit found here" and args.device == "cpu"
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == bool(sign) and all(sign in line and "ASCEND_SET_ENV" in line for line in warnings)


@pytest.mark.parametrize("device", ["npu", "auto"])
@pytest.mark.parametrize("option", [("--precision_mode", "a", "--precision_mode_v2", "b"),
                                    ("--backend", "onnxruntime"), ("--precision", "bf16")])
def test_what_is_for_the_cpu_is_refused_before_any_work(option, device, fails, atlas, tmp_path):
    line = fails("run_all.sh", 1, "--device", device, *option, "--work_dir", tmp_path / "work", cwd=tmp_path, env=atlas, status=2)
    assert option[0] in line and not (tmp_path / "work").exists()


@pytest.mark.parametrize("name, odd", [("a b", "' '"), ("中文", "'中' '文'"), ("c++", "'+'"), ("x(1)~", "'(' ')' '~'")])
def test_a_folder_that_ais_bench_does_not_take_is_refused_before_any_work(name, odd, fails, atlas, tmp_path):
    line = fails("run_all.sh", 1, "--device", "npu", "--work_dir", tmp_path / name, cwd=tmp_path, env=atlas)
    assert "%s: ais_bench takes no path with %s in it, only A-Z a-z 0-9 _ - / ." % (tmp_path / name, odd) in line
    assert not os.listdir(str(tmp_path / name))
    (tmp_path / "good").symlink_to(tmp_path / name)
    assert "takes no path with %s" % odd in fails("run_all.sh", 1, "--device", "npu", "--work_dir", "good", cwd=tmp_path, env=atlas)
    check_path(str(tmp_path / "Good-1_2.3"))


def test_what_ais_bench_would_refuse_is_mended_or_refused(tmp_path):
    made = [("sthv2/preprocess_bin/0.bin", 0o666, 0o644), ("tsm_bs1.om", 0o600, 0o600), ("tsm_bs4.om", 0o777, 0o755),
            ("sthv2/sthv2.info", 0o664, 0o664),
            ("inference_result/out/0_0.txt", 0o644, 0o644)]
    for name, mode, _ in made:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(mode)
    folders = [("sthv2/preprocess_bin", 0o775, 0o755), ("inference_result", 0o777, 0o750), ("inference_result/out", 0o755, 0o750)]
    for name, mode, _ in folders:
        (tmp_path / name).chmod(mode)
    prepare(str(tmp_path))
    for name, _, mode in made + folders:
        assert (tmp_path / name).stat().st_mode & 0o777 == mode, name
    (tmp_path / "tsm_bs1.om").rename(tmp_path / "elsewhere")
    (tmp_path / "tsm_bs1.om").symlink_to("elsewhere")
    with pytest.raises(UserError, match="tsm_bs1.om: is a symbolic link"):
        prepare(str(tmp_path))
    (tmp_path / "tsm_bs1.om").unlink()
    if os.geteuid() == 0:
        os.chown(str(tmp_path / "tsm_bs4.om"), 54321, 54321)
        with pytest.raises(UserError, match="tsm_bs4.om: belongs to another user and group"):
            prepare(str(tmp_path))


@pytest.fixture(scope="module")
def in_chunks(works, small_om, small_onnx, tmp_path_factory):
    """(folder with a list of 7 clips, TSM_stream.py's arguments for it, the CPU's probabilities)."""
    folder = listed(tmp_path_factory.mktemp("chips"), small_onnx, 7)
    works("TSM_stream.py", *arguments(), cwd=folder)
    expected = [np.loadtxt(str(folder / "res/out" / ("%d_0.txt" % number))) for number in range(7)]
    args = [word for word in arguments("--chunk", 2) if word not in ("--backend", "onnxruntime")]
    return folder, ["--model", small_om, "--protocol", small_onnx.parent / "protocol.json"] + args[2:], expected


@pytest.fixture
def emptied(in_chunks):
    for name in ("res", "sthv2"):
        shutil.rmtree(str(in_chunks[0] / name), ignore_errors=True)
    return in_chunks


def check_chunks(folder, expected):
    for number, wanted in enumerate(expected):
        assert np.abs(np.loadtxt(str(folder / "res/out" / ("%d_0.txt" % number))) - wanted).max() <= 2e-5
    summary = json.loads((folder / "res/out_summary.json").read_text())
    assert summary["NPU_compute_time"]["count"] == 4 and summary["H2D_latency"]["count"] == 4  # chunks of 2 in batches of 4
    assert [worker["device"] for worker in summary["tsm"]["workers"]] == ["chip 0", "chip 1"]
    assert sum(worker["videos"] for worker in summary["tsm"]["workers"]) == 7
    assert not list(folder.rglob("*.bin")) and not list((folder / "sthv2").glob(".tsm_*"))
    return summary


def test_two_chips_share_a_list_though_one_fails_every_second_time(emptied, run, atlas, tmp_path):
    """The chips that npu-smi lists; under the ais_bench that looks at permissions."""
    folder, args, expected = emptied
    (tmp_path / "flaky").mkdir()
    (tmp_path / "flaky/1").write_text("")
    done = run("TSM_stream.py", *args, cwd=folder, env=dict(
        atlas, STANDIN_FLAKY=str(tmp_path / "flaky"), STANDIN_CALLS=str(tmp_path / "calls"), STANDIN_GENERATION="2025"))
    assert done.returncode == 0, done.stderr
    check_chunks(folder, expected)
    calls, failed = (tmp_path / "calls").read_text().split(), done.stderr.splitlines()
    assert set(calls) == {"0", "1"} and len(failed) == (calls.count("1") + 1) // 2 and len(calls) == 4 + len(failed)
    assert all("chip 1 failed on videos " in line and "aclrtSetDevice failed on device 1" in line for line in failed)


@pytest.mark.all
def test_a_dead_chip_is_left_out_and_without_any_the_run_ends(emptied, run, fails, works, atlas, tmp_path):
    folder, args, expected = emptied
    (tmp_path / "flaky").mkdir()
    for chip in "01":
        (tmp_path / "flaky" / chip).write_text("dead")
    env = dict(atlas, STANDIN_FLAKY=str(tmp_path / "flaky"))
    done = run("TSM_stream.py", *args, "--devices", "0,1", cwd=folder, env=env)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and ("failed 3 times" in last or "no chip is left" in last) and "Traceback" not in done.stderr
    assert not (folder / "res/out_summary.json").exists() and not list((folder / "sthv2").glob(".tsm_*"))
    (tmp_path / "flaky/0").unlink()
    done = run("TSM_stream.py", *args, "--devices", "0,1", cwd=folder, env=env)
    assert done.returncode == 0 and 1 <= len(done.stderr.splitlines()) <= 3, done.stderr
    summary = json.loads((folder / "res/out_summary.json").read_text())
    assert [worker["device"] for worker in summary["tsm"]["workers"]] == ["chip 0"]
    assert "7 of 7 videos are done" in works("TSM_stream.py", *args, "--status", cwd=folder, env=env)


def test_a_wrong_protocol_is_the_model_s_word_and_not_the_chips_fault(emptied, run, atlas, tmp_path):
    folder, args, _ = emptied
    (tmp_path / "p.json").write_text(json.dumps(SSV2._replace(short_side=200, size=192)._asdict()))
    for given in ("0", "0,1"):
        done = run("TSM_stream.py", *args, "--devices", given, "--protocol", tmp_path / "p.json", cwd=folder, env=atlas)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 1 and "failed 3 times" in last and "tensorsize" in last and "not match" in last, done.stderr
        assert not (folder / "res/out_summary.json").exists()
    done = run("TSM_stream.py", *args, "--devices", "0", "--dtype", "uint8", cwd=folder, env=atlas)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "save out files error" in last and "give both the same protocol, and the same --dtype" in last, last


def test_the_last_failure_is_told_where_no_chip_is_left(monkeypatch):
    """A chunk that every chip fails at ends the run only once the others are done."""
    left, others_are_done = [1, 2, 3, 4], threading.Event()

    def infer(job, made, chip, running):
        if made.chunk.start == 0:
            assert others_are_done.wait(LONGEST)
            raise ascend.Failed("arg0 does not match")
        left.remove(made.chunk.start)
        if not left:
            others_are_done.set()
        return Piece("h", "chip " + chip, 0, 1, [], [], [], {}, {})

    monkeypatch.setattr(ascend, "infer_on", infer)
    monkeypatch.setattr(ascend, "remove_scratch", lambda job: None)
    monkeypatch.setattr(ascend, "make_tensors", lambda job, made: iter([None]))
    monkeypatch.setattr(ascend, "emptied", lambda job, chunk: ascend.Prepared(chunk, "", 0.0, {}, {}))
    found = []
    with pytest.raises(UserError, match="each failed 3 times in a row, at last with: arg0 does not match; mend that, or"):
        for piece in ascend.on_chips(None, [Chunk(start, start + 1, {}, {}) for start in range(5)], lambda under_way: None, [0, 1]):
            found.append(piece)
    assert len(found) == 4


@pytest.mark.all
def test_a_chunk_of_nothing_readable_needs_no_chip(emptied, works, fails, atlas, tmp_path):
    folder, args, _ = emptied
    kept = [os.readlink(str(folder / "videos" / name)) for name in ("2.webm", "3.webm")]
    try:
        for name in ("2.webm", "3.webm"):
            (folder / "videos" / name).unlink()
            (folder / "videos" / name).write_bytes(b"")
        env = dict(atlas, STANDIN_CALLS=str(tmp_path / "calls"))
        out = works("TSM_stream.py", *args, "--devices", "0", "--on_error", "skip", cwd=folder, env=env)
        assert "5 made, 0 already right, 2 skipped" in out and len((tmp_path / "calls").read_text().split()) == 3
        assert "line 3: 2.webm: is empty" in fails("TSM_stream.py", *args, "--devices", "0", cwd=folder, env=env)
    finally:
        for name, target in zip(("2.webm", "3.webm"), kept):
            (folder / "videos" / name).unlink()
            (folder / "videos" / name).symlink_to(target)


@pytest.mark.all
def test_run_all_divides_a_list_over_chips(works, atlas, demo, on_cpu, tmp_path):
    said = works("run_all.sh", 4, "--device", "npu", "--devices", "0,1", "--chunk", 3, *demo, *PERF, "--work_dir", tmp_path,
                 cwd=tmp_path, env=atlas)
    (line,) = [line for line in said.splitlines() if "TSM_stream.py" in line]
    assert "TSM_stream.py --devices 0,1 --chunk 3 --model ./tsm_bs4.om" in line and "chips: 0, 1" in said
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["accuracy"]["videos"] == CLIPS
    assert {worker["device"] for worker in found["inference"]["tsm"]["workers"]} <= {"chip 0", "chip 1"}
    assert np.abs(probabilities_in(tmp_path) - on_cpu[0]).max() <= 2e-5


def save_model(path, batch, make_nodes, columns=5, opset=11):
    """A model from `input` [batch, 4] to `output`; make_nodes(helper) -> its nodes."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = onnx.numpy_helper.from_array(np.random.RandomState(0).standard_normal((4, columns)).astype(np.float32), "w")
    bias = onnx.numpy_helper.from_array(np.zeros(columns, np.float32), "b")
    graph = helper.make_graph(
        make_nodes(helper), "small", [helper.make_tensor_value_info("input", kind, [batch, 4])],
        [helper.make_tensor_value_info("output", kind, [batch, columns])], [weight, bias])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 6
    onnx.save(model, str(path))


def gemm(helper):
    return [helper.make_node("Gemm", ["input", "w", "b"], ["output"], "gemm")]


def scatter(folder, count):
    """Files 0.bin, 1.bin, …; their values, [count, 4]."""
    folder.mkdir()
    values = np.random.RandomState(1).standard_normal((count, 4)).astype(np.float32)
    for number, row in enumerate(values):
        row.tofile(str(folder / ("%d.bin" % number)))
    return values


def bench(atlas, folder, *args):
    return ran(os.environ[forked.PYTHON], "-m", "ais_bench", *args, cwd=folder, env=atlas)


def atc(atlas, folder, *args):
    return ran(shutil.which("atc", path=atlas["PATH"]), *args, cwd=folder, env=atlas)


@pytest.mark.parametrize("outfmt", ["TXT", "NPY", "BIN"])
def test_infer_writes_what_ais_bench_writes(outfmt, atlas, works, tmp_path):
    save_model(tmp_path / "m.om", 4, gemm)
    shutil.copy(str(tmp_path / "m.om"), str(tmp_path / "m.onnx"))
    scatter(tmp_path / "in", 11)
    flags = ["--input", "./in", "--output", "./out", "--outfmt", outfmt, "--loop", 2, "--output_dirname"]
    theirs = bench(atlas, tmp_path, "--model", "m.om", *(flags + ["theirs"]))
    assert theirs.returncode == 0, theirs.stderr
    ours = works("TSM_infer.py", "--model", "m.onnx", "--backend", "onnxruntime", *flags, "ours", cwd=tmp_path)

    def written(name):
        return {path.name: path.read_bytes() for path in (tmp_path / "out" / name).glob("[!.]*")}

    assert sorted(written("theirs")) == sorted(written("ours"))
    for name, content in written("theirs").items():
        if outfmt == "TXT":
            assert np.abs(np.fromstring(content, sep=" ") - np.fromstring(written("ours")[name], sep=" ")).max() <= 1.1e-6
            assert [len(line.split(b" ")) for line in content.splitlines()] == [6]  # a space after every value
            assert len(content.splitlines()) == len(written("ours")[name].splitlines())
            assert written("ours")[name].endswith(b" \n")
        else:
            assert len(content) == len(written("ours")[name])
    summaries = [json.loads((tmp_path / "out" / (name + "_summary.json")).read_text()) for name in ("theirs", "ours")]
    assert set(summaries[0]) <= set(summaries[1])
    for key in ("NPU_compute_time", "H2D_latency", "D2H_latency"):
        assert set(summaries[0][key]) == set(summaries[1][key])
    assert summaries[0]["NPU_compute_time"]["count"] == summaries[1]["NPU_compute_time"]["count"] == 6
    for number in range(11):
        their_files, our_files = (summary["filesinfo"][str(number)] for summary in summaries)
        assert [os.path.basename(path) for path in their_files["infiles"]] == ["%d.bin" % number]  # natural order
        for key in ("infiles", "outfiles"):
            assert [os.path.basename(path) for path in their_files[key]] == [os.path.basename(path) for path in our_files[key]]
    for said in (theirs.stdout, ours):
        assert "[INFO] NPU_compute_time (ms): min = " in said
        assert "[INFO] throughput 1000*batchsize.mean(4)/NPU_compute_time.mean(" in said


def test_the_stand_in_fills_the_last_batch_with_its_own_first_file(atlas, tmp_path):
    """A model that mixes the rows of its batch shows what the filler was."""
    def mix(helper):
        return [helper.make_node("ReduceMean", ["input"], ["mean"], "mean", axes=[0], keepdims=1),
                helper.make_node("Add", ["input", "mean"], ["mixed"], "mix"),
                helper.make_node("Gemm", ["mixed", "w", "b"], ["output"], "gemm")]

    save_model(tmp_path / "m.om", 4, mix)
    values = scatter(tmp_path / "in", 6)
    done = bench(atlas, tmp_path, "--model", "m.om", "--input", "in", "--output", "out", "--output_dirname", "o", "--outfmt",
                 "NPY")
    assert done.returncode == 0, done.stderr
    last = values[[4, 5, 4, 4]]
    weight = np.random.RandomState(0).standard_normal((4, 5)).astype(np.float32)
    expected = (last + last.mean(0)) @ weight
    for row, number in enumerate((4, 5)):
        assert np.allclose(np.load(str(tmp_path / "out" / "o" / ("%d_0.npy" % number))), expected[row:row + 1], atol=1e-5)
    assert len(os.listdir(str(tmp_path / "out" / "o"))) == 6


def test_the_stand_ins_refuse_what_the_real_tools_refuse(atlas, tmp_path):
    save_model(tmp_path / "good.onnx", 1, gemm)
    save_model(tmp_path / "new.onnx", 1, gemm, opset=17)
    save_model(tmp_path / "dynamic.onnx", None, gemm)
    save_model(tmp_path / "pad.onnx", 1, lambda helper: [
        helper.make_node("Neg", ["input"], ["zero"], "zero"),
        helper.make_node("Gemm", ["zero", "w", "b"], ["output"], "gemm")])

    done = atc(atlas, tmp_path, "--model=good.onnx", *ATC)
    assert done.returncode == 0 and "ATC run success, welcome to the next use." in done.stdout
    assert (tmp_path / "m.om").read_bytes() == (tmp_path / "good.onnx").read_bytes()
    for name, said in (("absent", "no such file"), ("new", "Opset"), ("dynamic", "dynamic"), ("pad", "optype [Neg]")):
        done = atc(atlas, tmp_path, "--model=%s.onnx" % name, *ATC)
        assert done.returncode == 255 and said in done.stdout, (name, done.stdout)
    for flags in (["--unknown=1", *ATC], ATC[:-1], [*ATC, "--precision_mode=fp16"], [*ATC, "--precision_mode_v2=force_fp16"],
                  [*ATC, "--precision_mode=force_fp16", "--precision_mode_v2=fp16"]):
        assert atc(atlas, tmp_path, "--model=good.onnx", *flags).returncode == 255, flags

    scatter(tmp_path / "in", 2)
    np.zeros(3, np.float32).tofile(str(tmp_path / "odd.bin"))
    done = bench(atlas, tmp_path, "--model", "m.om", "--input", "odd.bin")
    assert done.returncode == 1 and "[ERROR] arg0 tensorsize: 16 filesize: 12 not match" in done.stdout
    for wrong in (["--output_dirname", "o"], ["--profiler", "1"]):
        assert bench(atlas, tmp_path, "--model", "m.om", *wrong).returncode == 1, wrong
    for wrong in (["--outfmt", "txt"], ["--loop", "0"], ["--device", "256"], ["--dump", "2"], ["--unknown"]):
        assert bench(atlas, tmp_path, "--model", "m.om", *wrong).returncode == 2, wrong


@pytest.mark.parametrize("change, said", [
    (lambda folder: None, None),
    (lambda folder: (folder / "m.om").chmod(0o664), "m.om is group writable"),
    (lambda folder: (folder / "in/1.bin").chmod(0o666), "1.bin is group writable"),
    (lambda folder: (folder / "in").chmod(0o777), "in is group writable"),
    (lambda folder: (folder / "out").mkdir(mode=0o755), "0o750"),
    (lambda folder: (folder / "m.om").rename(folder / "n.om") and None or (folder / "m.om").symlink_to("n.om"), "soft link"),
])
def test_the_newer_stand_in_looks_at_paths_first(change, said, atlas, tmp_path):
    before = os.umask(0o022)
    save_model(tmp_path / "m.om", 1, gemm)
    scatter(tmp_path / "in", 2)
    change(tmp_path)
    os.umask(before)
    flags = ["--model", "m.om", "--input", "in", "--output", "out", "--output_dirname", "o"]
    done = bench(dict(atlas, STANDIN_GENERATION="2025"), tmp_path, *flags)
    assert (done.returncode, said is None or said in done.stdout) == (2 if said else 0, True), done.stdout
    assert bench(atlas, tmp_path, *flags).returncode == 0
    if said is None:
        assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


def test_what_normalises_on_the_chip(works, fails, thin_onnx, tmp_path):
    """uint8 in the graph; AIPP before it, whose config and arithmetic are those of Huawei's documents, and what it cannot do."""
    export = thin_onnx.parent / "thin.onnx"
    modify = ["modify_onnx.py", "-m1", export, "-m2"]
    assert "for ascend_parts" in works(*modify, "uint8.onnx", "--input_dtype", "uint8", "--form", "parts", cwd=tmp_path)
    ops = [node.op_type for node in onnx.load(str(tmp_path / "uint8.onnx")).graph.node]
    assert [ops.count(op) for op in ("Cast", "Sub", "Mul", "Reshape")] == [1, 1, 1, 2]
    assert "uint8 [frames, 256, 256, 3]" in works(*modify, "a.onnx", "-bs", 2, "--input_dtype", "aipp", cwd=tmp_path)
    model = read_offline(str(tmp_path / "a.onnx"))
    assert [dim.dim_value for dim in model.proto.graph.input[0].type.tensor_type.shape.dim] == [96, 3, 256, 256]
    assert (model.batch, model.shape) == (2, (2, 48, 3, 256, 256))
    works("modify_onnx.py", "-m1", "a.onnx", "-m2", "again.onnx", "--form", "mask", cwd=tmp_path)
    assert (tmp_path / "again.cfg").read_text() == (tmp_path / "a.cfg").read_text() == aipp.config(SSV2)
    assert re.findall(r"min_chn_(\d): ([\d.]+)", aipp.config(SSV2)) == [("0", "123.675"), ("1", "116.28"), ("2", "103.53")]
    assert "var_reci_chn_0: 0.01712475" in aipp.config(SSV2)
    for table in aipp.tables(SSV2):
        assert 0 < np.abs(table - normalisation(SSV2)).max() < 4e-3
    line = fails(*modify, "b.onnx", "--target", "cpu", "--form", "mask", cwd=tmp_path, status=2)
    assert "--form" in line and "--target ascend" in line and not (tmp_path / "b.onnx").exists()
    with pytest.raises(UserError, match="AIPP takes no mean and no 1 / std beyond 65504"):
        aipp.config(SSV2._replace(std=(1e-5, 1.0, 1.0)))


GUIDE_S = {"Conv", "Relu", "MaxPool", "Add", "Reshape", "Slice", "Concat", "GlobalAveragePool", "Flatten", "Gemm",
           "ReduceMean", "Softmax"}


@pytest.mark.parametrize("batch, form", [(batch, "ascend") for batch in (1, 4, 8, 16, 32)] + [(32, form) for form in FLAT])
def test_ascend_graphs_keep_to_the_guide_s_operators(batch, form, thin_onnx, atlas, tmp_path):
    model = build(trunk_of(read_onnx(str(thin_onnx))), form, SSV2, batch, "score")
    assert {node.op_type for node in model.graph.node} == GUIDE_S | ({"Mul"} if form == "ascend_mask" else set())
    onnx.checker.check_model(model)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 11)]
    assert sum(np.prod(tensor.dims) for tensor in model.graph.initializer if tensor.name.startswith("zeros")) * 8 * 4 + 96e6 < 2**31, (
        "at the full width, beyond what protobuf holds")
    for value, shape in ((model.graph.input, [batch, 48, 3, 256, 256]), (model.graph.output, [batch, 174])):
        assert [[dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in value] == [shape]
    onnx.save(model, str(tmp_path / "m.onnx"))
    done = atc(atlas, tmp_path, "--model=m.onnx", *ATC)
    assert done.returncode == 0, done.stdout  # it checks that every shape is static and that the weights are in the file
    for path in tmp_path.iterdir():
        path.unlink()


def test_the_stand_in_s_aipp_is_huawei_s(thin_onnx, atlas, tmp_path):
    """Its om takes uint8 NHWC; what it makes of pixels is what tsm.model.aipp says of rounding at every step."""
    model = build(trunk_of(read_onnx(str(thin_onnx))), "ascend_parts", SSV2, 1, "score", dtype="aipp")
    onnx.save(model, str(tmp_path / "m.onnx"))
    (tmp_path / "m.cfg").write_text(aipp.config(SSV2))
    flags = [ATC[0], ATC[1], *ATC[3:], "--input_format=NCHW", "--insert_op_conf=m.cfg", "--enable_small_channel=1"]
    done = atc(atlas, tmp_path, "--model=m.onnx", *flags)
    assert done.returncode == 0, done.stdout
    video = np.random.RandomState(0).randint(0, 256, SSV2.video_shape).astype(np.uint8)
    scores = session(onnx.load(str(tmp_path / "m.om")), "om").run(None, {"input": video.transpose(0, 2, 3, 1).copy()})[0]
    normalised = np.stack([aipp.tables(SSV2)[0][channel][video[:, channel]] for channel in range(3)], axis=1)
    assert np.abs(session(model, "m").run(None, {"input": normalised})[0] - scores).max() <= 1e-6
    for line, said in (("--input_format=ND", "--input_format"), ("--enable_small_channel=2", "enable_small_channel"),
                       ("--insert_op_conf=none.cfg", "insert_op_conf")):
        done = atc(atlas, tmp_path, "--model=m.onnx", *[flag for flag in flags if flag.split("=")[0] != line.split("=")[0]], line)
        assert done.returncode == 255 and said in done.stdout, done.stdout
    (tmp_path / "m.cfg").write_text(aipp.config(SSV2).replace("RGB888_U8", "RGB"))
    done = atc(atlas, tmp_path, "--model=m.onnx", *flags)
    assert done.returncode == 255 and "input_format" in done.stdout

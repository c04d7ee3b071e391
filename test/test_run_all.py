"""The whole chain as a user runs it: run_all.sh on the demo, restarted, misused; the README's commands by hand."""

import fcntl
import functools
import hashlib
import http.server
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading

import forked
import numpy as np
import pytest
import traced
from processes import command_of, ran, started, wait_for

from tsm import workfolder
from tsm.chain import plan
from tsm.checkpoint import published
from tsm.cli import UserError
from tsm.protocol import SSV2

CLIPS = 14  # of the demo, more than the page shows as strips
BY_HAND = 3  # clips that the README's commands are run on


def clone(repo, copy, clips):
    """A copy of the suite's files, as a clone has them, whose demo has the first clips alone; the folder."""
    for name in ran("git", "ls-files", cwd=repo, check=True).stdout.splitlines():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(repo / name), str(copy / name))
    annotations = copy / "demo/annotations/something-something-v2-validation.json"
    annotations.write_text(json.dumps(json.loads(annotations.read_text())[:clips]))
    return copy


@pytest.fixture(scope="module")
def suite(repo, tmp_path_factory):
    """A clone in a folder whose path has a space in it."""
    return clone(repo, tmp_path_factory.mktemp("a clone of") / "the suite", CLIPS)


def chain(suite, *args, **options):
    """run_all.sh of a suite, its Pythons forked."""
    env = dict({"PYTHON": os.environ[forked.PYTHON]}, **options.pop("env", {}))
    return ran(suite / "run_all.sh", *args, cwd=options.pop("cwd", suite), env=env, **options)


def report(suite):
    return json.loads((suite / "work/report.json").read_text())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An empty home for the demo; beside it, strace's log."""
    folder = tmp_path_factory.mktemp("outside") / "home"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def demo(suite, home):
    """What ./run_all.sh 1 printed, at full size, run once for all tests here: without a TMPDIR, and under strace if that works."""
    tracer = traced.strace(home.parent / "log") if traced.works() else []
    done = ran(*tracer, "./run_all.sh", 1, cwd=suite, env={
        "PYTHON": sys.executable, "HOME": str(home), "TMPDIR": str(home.parent / "missing"), "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.all
@pytest.mark.skipif(not traced.works(), reason="strace is missing or may not trace; .ci/run installs it")
def test_no_stage_opens_a_connection_or_writes_outside_its_folder(suite, demo, home):
    log = home.parent / "log"
    assert traced.connections(log) == []
    assert traced.outside(log, suite, suite / "work") == []
    assert str(suite / "work/report.json") in traced.changed(log, suite / "work")  # the trace sees something


@pytest.mark.all
def test_the_demo_reaches_its_accuracy_ends_with_the_table_and_leaves_nothing_at_home(suite, demo, home):
    assert os.listdir(str(home)) == []
    found = report(suite)
    assert found["accuracy"]["videos"] == CLIPS and found["accuracy"]["top1_acc"] >= 0.95
    assert "| device" in demo and "top-1 / top-5" in demo and "%.4f / %.4f" % (
        found["accuracy"]["top1_acc"], found["accuracy"]["top5_acc"]) in demo
    assert found["throughput"]["1"] > 0 and found["fusion"] == "score"
    strips = [entry["strip"] for entry in found["findings"]["gallery"]["successes"]]
    assert len(strips) == 12 and all(strips)
    page = (suite / "work/report.html").read_text(encoding="utf-8")
    assert all(strip in page for strip in strips)
    assert set(found["stages"]) >= {"lists", "demo", "preprocess", "export", "surgery_bs1", "infer", "accuracy"}


@pytest.mark.all
def test_a_second_run_redoes_nothing(suite, demo):
    """Nor measures it: what is there is shown again, and the seconds stay those of the first run."""
    kept = [(suite / "work" / name).read_bytes() for name in ("stages.json", "report.html")]
    done = chain(suite, 1, env={"PYTHON": sys.executable})  # the words of the commands are those of the first run
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nup to date: ") == done.stdout.count("\n== ") - 1 and "0 made, %d already right" % CLIPS in done.stdout
    assert "\nNothing to do" in done.stdout and "| device" in done.stdout and "\nDone." not in done.stdout
    assert [(suite / "work" / name).read_bytes() for name in ("stages.json", "report.html")] == kept
    done = chain(suite, 1, "--again", "--loop", 1, env={"PYTHON": sys.executable})
    assert "\nDone." in done.stdout and "infer" in report(suite)["stages"]


@pytest.mark.all
def test_the_folder_of_the_suite_stays_as_cloned_and_cleaning_leaves_nothing_of_a_run(repo, suite, demo, tmp_path):
    names = {path.name for path in suite.iterdir()}
    assert names - {path.name for path in repo.iterdir()} <= {"work"}
    shutil.copytree(str(suite / "work"), str(tmp_path / "work"))
    (tmp_path / "work/own.txt").write_text("")
    assert "sthv2/preprocess_bin" in chain(suite, "--clean", "--work_dir", tmp_path / "work").stdout
    assert not (tmp_path / "work/sthv2/preprocess_bin").exists() and (tmp_path / "work/tsm_new_bs1.onnx").exists()
    chain(suite, "--clean", "all", "--work_dir", tmp_path / "work")
    assert sorted(os.listdir(str(tmp_path / "work"))) == [".lock", "own.txt"]


@pytest.mark.all
def test_batch_4_gives_the_same_accuracy(suite, demo, tmp_path):
    """By the thin network, whose second run redoes none of the tensors."""
    chosen = ("--checkpoint", "demo/tsm_thin.pth", "--data_root", "demo/videos", "--ann_file", "work/sthv2_val_list_videos.txt",
              "--work_dir", tmp_path / "work", "--gallery", 0)
    for batch, words in ((1, "%d made, 0 already right" % CLIPS), (4, "0 made, %d already right" % CLIPS)):
        done = chain(suite, batch, *chosen)
        assert done.returncode == 0, done.stdout + done.stderr
        assert words in done.stdout
        assert report(tmp_path)["accuracy"] == report(suite)["accuracy"]


def blocks(repo, name):
    """The commands of the README between <!-- NAME --> and the next closing fence."""
    found = re.search(r"<!-- %s -->\n```bash\n(.*?)```" % name, (repo / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return found.group(1)


@pytest.mark.all
def test_the_readme_commands_by_hand_give_the_same_numbers(repo, suite, demo, tmp_path):
    """On the first clips of the demo, from nothing: the probabilities that run_all.sh left for them."""
    folder = clone(repo, tmp_path / "by hand", BY_HAND)
    commands = blocks(repo, "by hand").replace(".venv/bin/python ", shlex.quote(sys.executable) + " ").replace("--loop=8", "--loop=1")
    done = ran("bash", "-euo", "pipefail", "-c", commands, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accuracy over %d videos" % BY_HAND in done.stdout and "throughput: " in done.stdout
    for name in ("%d_0.txt" % index for index in range(BY_HAND)):
        found, expected = (np.loadtxt(str(place / "inference_result/out" / name)) for place in (folder, suite / "work"))
        assert np.allclose(found, expected, atol=1e-5), name


@pytest.mark.all
def test_the_readme_s_prediction_is_what_the_command_prints(repo, suite, demo):
    text = (repo / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- predict -->\n```bash\n.*?```\n\n```\n(.*?)```", text, re.DOTALL).group(1)
    command = blocks(repo, "predict").replace(".venv/bin/python ", shlex.quote(sys.executable) + " ")
    done = ran("bash", "-euo", "pipefail", "-c", command, cwd=suite)
    assert done.returncode == 0, done.stderr
    lines = [line.split(None, 1) for line in done.stdout.splitlines()]
    wanted = [line.split(None, 1) for line in shown.splitlines()]
    assert [words[-1] for words in lines] == [words[-1] for words in wanted]  # names and labels, in their order
    for line, words, others in zip(done.stdout.splitlines(), lines, wanted):
        assert not line.startswith("  ") or abs(float(words[0]) - float(others[0])) < 2e-4
    code = re.search(r"<!-- code -->\n```python\n(.*?)```", text, re.DOTALL).group(1)
    said = ran(sys.executable, "-c", code, cwd=suite, check=True).stdout
    labels = json.loads((repo / "demo/annotations/something-something-v2-labels.json").read_text())
    assert labels[wanted[2][1]] == said.strip()  # the best class of the first video


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """begun(*words) -> (what plan.py tells the shell of these words of run_all.sh, what it knows); on a host without CANN."""
    monkeypatch.chdir(str(tmp_path))
    for name in ("PYTHON", "MMACTION2", "ASCEND_SET_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ASCEND_SYSROOT", str(tmp_path / "root"))
    monkeypatch.setenv("HOME", str(tmp_path))

    def begun(*words):
        args = plan.get_args([str(word) for word in words])
        return plan.begin(args), args

    return begun


@pytest.mark.parametrize("args, says", [
    ((), "BATCH_SIZE is missing"), ((0,), "'0' is no whole number >= 1"), (("x",), "'x' is no whole number >= 1"),
    ((1, 2), "unrecognized arguments: 2"),
    ((1, "--device", "gpu"), "--device: invalid choice: 'gpu'"), ((1, "--fusion"), "--fusion: expected one argument"),
    ((1, "--what"), "--what"), ((1, "--dev", "cpu"), "--dev"),
    ((1, "--stream", "--chunk", "7"), "--stream"), ((1, "--stream", "--ray", "auto"), "--stream"),
    ((1, "--device", "npu", "--devices", "0", "--ray", "auto"), "leave out one"),
    ((1, "--device", "cpu", "--devices", "0"), "--devices is for an NPU"),
    ((1, "--devices", "0,x"), "--devices: '0,x'"), ((1, "--ray", "auto", "--chunk", "0"), "--chunk 0"),
    ((1, "--stream", "--device", "npu"), "--stream"),
    ((1, "--data_root", "."), "go together"), ((1, "--chunk", "-1"), "--chunk: '-1'"), ((1, "--chunk", "1e3"), "--chunk"),
    ((1, "--perf_batches", "1,x"), "--perf_batches: '1,x'"), ((1, "--perf_batches", ","), "--perf_batches: ','"),
    ((1, "--data_root", "", "--ann_file", ""), "--data_root: '': wants a value"), ((1, "--ann_file="), "--ann_file: '': wants a value"),
    ((1, "--devices", "0,3,0"), "each once"), ((1, "--ray", "nonsense"), "--ray: 'nonsense'"), ((1, "--ray", "http://x:1"), "--ray"),
    ((1, "--agreement", "-1"), "'-1' is no whole number >= 0"), ((1, "--gallery", "many"), "'many' is no"),
    ((1, "--backend", "tensorrt"), "--backend: invalid choice: 'tensorrt'"), ((1, "--num_worker", "0"), "--num_worker: '0' is no"),
    ((1, "--backend", "onnxruntime", "--precision", "int8"), "--precision int8 needs --backend openvino"),
    ((1, "--config", "a.py"), "--config, --segments and --shift are for --checkpoint"), ((1, "--segments", "8"), "are for --checkpoint"),
    ((4, "--online"), "BATCH_SIZE is 1"), (("--model_only", "--precision", "int8"), "--model_only measures nothing"),
    ((1, "--device", "npu", "--backend", "openvino"), "--backend"),
    ((1, "--device", "npu", "--precision", "bf16"), "--precision is for the CPU"),
])
def test_wrong_usage_is_one_line_and_exits_2(begun, capsys, tmp_path, args, says):
    with pytest.raises(SystemExit) as caught:
        begun(*args, "--work_dir", tmp_path / "work")
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1 and says in said, said
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("option", ["--data_root", "--ann_file", "--checkpoint", "--labels", "--config"])
def test_missing_files_are_named_before_any_work(begun, option, tmp_path):
    (tmp_path / "there").write_text("")
    others = {"--data_root": tmp_path, "--ann_file": "there", "--checkpoint": "there", option: "no where.txt"}
    with pytest.raises(UserError, match="no where.txt: no such file or folder; check %s" % option):
        begun(1, *(word for item in others.items() for word in item), "--work_dir", "work")
    assert not (tmp_path / "work").exists()


def test_run_all_says_what_plan_says_with_its_status(repo, tmp_path):
    for args, status, says in (((), 2, "run_all.sh: error: BATCH_SIZE is missing, as in ./run_all.sh 1 (see --help)"),
                               ((1, "--labels", "none"), 1, "run_all.sh: error: none: no such file")):
        done = chain(repo, *args, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (status, "") and done.stderr.startswith(says) and done.stderr.count("\n") == 1
    done = chain(repo, 1, env={"PYTHON": "/nowhere/python"})
    assert done.returncode == 1 and done.stderr == "run_all.sh: error: /nowhere/python: not found; PYTHON names the interpreter\n"
    done = chain(repo, "--help")
    assert done.returncode == 0 and "--checkpoint" in done.stdout and "exit status" in done.stdout


def test_a_work_folder_that_cannot_be_is_named(begun, tmp_path):
    (tmp_path / "file").write_text("")
    for work in ("file", "file/below", "/proc/nothing"):
        with pytest.raises(UserError, match="%s: cannot be made, or not be written to" % work):
            begun(1, "--work_dir", work)


def test_names_of_any_kind_reach_the_shell_as_they_are(begun, tmp_path):
    folder = tmp_path / "a 'b' $(c) \"d\"\n*\\ 视"
    folder.mkdir()
    (folder / os.fsdecode(b"l\xff")).write_text("")
    settings, args = begun(1, "--data_root", folder, "--ann_file", folder / os.fsdecode(b"l\xff"), "--work_dir", folder / "w")
    text = plan.in_shell(dict(settings, plan=json.dumps(vars(args)), empty=[]))
    shown = subprocess.run(["bash", "-euc", 'eval "$1"; printf "%s|" "$plan" "$work_dir" "${examine[@]}"', "-", text],
                           stdout=subprocess.PIPE, check=True).stdout
    assert shown == os.fsencode("%s|%s||--output|protocol.json|" % (json.dumps(vars(args)), folder / "w"))
    assert json.loads(json.dumps(vars(args)))["ann_file"] == str(folder / os.fsdecode(b"l\xff"))


def test_run_all_is_a_list_of_stages_and_calls_its_files_what_the_library_calls_them(repo):
    """No arithmetic, no sampling, and no nproc, which obeys OMP_NUM_THREADS; nothing is read from what is printed; few conditions."""
    text = (repo / "run_all.sh").read_text(encoding="utf-8")
    assert re.findall(r"\$\(\(|\b(?:awk|sed|grep|nproc|bc|expr|wc|seq|tail|head)\b", text) == []
    assert len(text.splitlines()) <= 150 and len(re.findall(r"(?<![\w$\"])\[\[? ", text)) <= 25
    told = text.replace("$bs", "*")
    for name in (workfolder.EXPORTED, workfolder.MODIFIED, workfolder.COMPILED, workfolder.BINS, workfolder.INFO, workfolder.MANIFEST,
                 workfolder.RESULTS, workfolder.SUMMARY, workfolder.ACCURACY, workfolder.AGREEMENT):
        assert re.search(r"(?<![\w.-])%s(?![\w.-])" % re.escape(name), told), name


FAKE = """
import json, os, sys
name, args = os.path.basename(sys.argv[0]), sys.argv[1:]
with open("calls", "a") as file:
    file.write(json.dumps([name] + args) + chr(10))
def made(path, text=""):
    if os.path.dirname(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
after = {one: two for one, two in zip(args, args[1:])}
if name == "TSM_checkpoint.py":
    path = "published.pth" if "/" not in args[0] else args[0].split("?")[0].split("/")[-1] if "://" in args[0] else args[0]
    if path != args[0]:
        made(path)
    if open(path).read() == "bad":
        sys.exit("TSM_checkpoint.py: error: %s: is no checkpoint" % path)
    facts = dict(FACTS, network="TSM ResNet-50", fusion="score", checkpoint=path)
    made(after["--output"], json.dumps(dict(facts, **json.loads(os.environ.get("FOUND", "{}")))))
elif name == "TSM_dataset.py":
    made("sthv2_val_list_videos.txt", "a.webm 0" + chr(10))
elif name == "TSM_preprocess.py":
    made(after["--output_dir"] + "/sthv2.json")
elif name == "TSM_quantise.py":
    made("tsm_int8.xml", os.environ.get("INT8", ""))
    made("tsm_int8.bin")
elif name in ("TSM_infer.py", "TSM_stream.py") and "--data_root" in args or "--input" in args:
    made("inference_result/out/0_0.txt")
    made("inference_result/out_summary.json")
for flag in ("--output-file", "-m2", "--json"):
    if flag in after:
        made(after[flag])
if name == "expand.py":
    made(after["--output"])
if name == "TSM_report.py":
    made("report.json")
    made("report.html")
"""


@pytest.fixture
def wired(repo, tmp_path):
    """wired(*args, status=0, **env) -> (the finished run, the calls of scripts): run_all.sh and stage.py over scripts that only tell."""
    suite, work = tmp_path / "suite", tmp_path / "work"
    shutil.copytree(str(repo / "tsm"), str(suite / "tsm"), ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run_all.sh", "requirements.txt"):
        shutil.copy(str(repo / name), str(suite))
    (suite / "demo").mkdir()
    for name in [path.name for path in repo.glob("*.py")] + ["demo/expand.py"]:
        (suite / name).write_text(FAKE.replace("FACTS", repr(SSV2._asdict())))
    (tmp_path / "root").mkdir()
    (tmp_path / "list.txt").write_text("a.webm 0\n")
    (tmp_path / "a.pth").write_text("")

    def run(*args, status=0, **env):
        (work / "calls").unlink() if (work / "calls").exists() else None
        done = chain(suite, *args, "--device", "cpu", "--exporter", "builtin", "--work_dir", work, cwd=tmp_path, env=env)
        assert done.returncode == status, done.stderr
        calls = (work / "calls").read_text().splitlines() if (work / "calls").exists() else []
        return done, [json.loads(call) for call in calls]

    return run


def made(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def called(calls, name):
    return [call[1:] for call in calls if call[0] == name]


OWN = ("--data_root", "root", "--ann_file", "list.txt", "--checkpoint", "a.pth")


def test_the_checkpoint_is_examined_before_anything_else(wired, tmp_path):
    done, calls = wired(1, *OWN)
    assert calls[0] == ["TSM_checkpoint.py", str(tmp_path / "a.pth"), "--output", "protocol.json"]
    assert [call[0] for call in calls[1:]] == [
        "TSM_preprocess.py", "pytorch2onnx.py", "modify_onnx.py", "TSM_infer.py", "TSM_postprocess.py",
        "TSM_infer.py", "TSM_report.py"]
    (tmp_path / "a.pth").write_text("bad")
    done, calls = wired(1, *OWN, status=1)
    assert len(calls) == 1
    assert done.stderr == "TSM_checkpoint.py: error: %s: is no checkpoint\n" % (tmp_path / "a.pth")


def test_a_second_run_in_one_folder_stops_at_once_and_a_file_that_is_no_checkpoint_in_the_first_stage(repo, tmp_path):
    (tmp_path / "a.pth").write_text("not a checkpoint")
    words = (1, "--device", "cpu", "--checkpoint", "a.pth", "--work_dir", "w", "--exporter", "builtin")
    (tmp_path / "w").mkdir()
    with open(str(tmp_path / "w/.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = chain(repo, *words, cwd=tmp_path)
    assert done.returncode == 1 and "another run is at work" in done.stderr and done.stderr.count("\n") == 1
    done = chain(repo, *words, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "a.pth" in done.stderr, done.stderr
    assert "== 1. The checkpoint" in done.stdout and "== 2." not in done.stdout
    assert set(os.listdir(str(tmp_path / "w"))) <= {".lock", "run.log"}


@pytest.mark.all
def test_a_published_checkpoint_becomes_a_model_by_its_name_alone(repo, tmp_path):
    """Of a host on this machine, which has the demo's thin file for the guide's: without it, then with it, then from what was fetched."""
    thin = repo / "demo/tsm_thin.pth"
    digest, nowhere = hashlib.sha256(thin.read_bytes()).hexdigest()[:8], "http://127.0.0.1:9/"
    suite = clone(repo, tmp_path / "suite", 1)
    row = next(row for row in published.rows() if row.file == published.OFFICIAL)
    name = row.file.replace(row.digest, digest)
    place = tmp_path / "host" / published.address(row).replace(published._HOST, "").replace(row.digest, digest)
    place.parent.mkdir(parents=True)
    shutil.copy(str(thin), str(place))
    table = (repo / "tsm/checkpoint/published.py").read_text().replace(row.digest, digest)
    words = ("--model_only", "--labels", "demo/annotations/something-something-v2-labels.json", "--checkpoint")

    def made(what, host):
        (suite / "tsm/checkpoint/published.py").write_text(table.replace(published._HOST, host))
        done = chain(suite, *words, what, env=dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"), ""))
        return done, set(os.listdir(str(suite / "work")))

    for what in ("official", name[: -len(".pth")]):
        done, files = made(what, nowhere)
        assert (done.returncode, files) == (1, {".lock", "run.log"}) and done.stderr.count("\n") == 1, done.stderr
        assert re.match("TSM_checkpoint.py: error: %s.*%s: cannot be fetched .* run again, .* pass its path\n" % (nowhere, name),
                        done.stderr)
        assert done.stderr in (suite / "work/run.log").read_text()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "host")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = "http://127.0.0.1:%d/" % server.server_port
    done, files = made("official", host)
    server.shutdown()
    server.server_close()
    assert done.returncode == 0 and "\nDone. The model is work/tsm_new_bs1.onnx\n" in done.stdout, done.stderr
    assert {name, "protocol.json", "tsm_new_bs1.onnx"} < files and not [file for file in files if "part" in file]
    assert "network: TSM ResNet-50 (its weights)" in done.stdout and "segments: 8 (the table of published files)" in done.stdout
    stamp = os.stat(str(suite / "work/tsm_new_bs1.onnx")).st_mtime_ns
    done, _ = made(name[: -len(".pth")], host)  # which is gone
    assert done.returncode == 0 and "is already here" in done.stdout, done.stdout + done.stderr
    assert os.stat(str(suite / "work/tsm_new_bs1.onnx")).st_mtime_ns == stamp
    done = chain(suite, *words, suite / "work" / name, "--work_dir", tmp_path / "other")  # as the refusal says
    assert done.returncode == 0 and (tmp_path / "other/tsm_new_bs1.onnx").exists()


@pytest.mark.parametrize("what, file", [
    ("official", "published.pth"),
    pytest.param("http://127.0.0.1:9/some/where/tsm-1.pth?raw=1#x", "tsm-1.pth", marks=pytest.mark.all)])
def test_a_fetched_checkpoint_lies_in_the_work_folder(what, file, wired):
    done, calls = wired(1, *OWN[:4], "--checkpoint", what)
    assert calls[0] == ["TSM_checkpoint.py", what, "--output", "protocol.json"]
    assert called(calls, "pytorch2onnx.py")[0][0] == file
    report = called(calls, "TSM_report.py")[0]
    assert report[report.index("--checkpoint") + 1] == file and report[report.index("--accuracy") + 1] == "accuracy.json"


@pytest.mark.all
def test_names_that_changed_are_put_into_the_model_again(wired, tmp_path):
    (tmp_path / "labels.txt").write_text("one\n")
    for text, made in (("one\n", 1), ("one\n", 0), ("two\n", 1)):
        (tmp_path / "labels.txt").write_text(text)
        _, calls = wired(1, *OWN, "--labels", "labels.txt")
        assert len(called(calls, "modify_onnx.py")) == made


def test_paths_are_the_caller_s_whatever_they_look_like(wired, tmp_path):
    (tmp_path / "link to it").symlink_to(tmp_path / "suite/run_all.sh")
    done = ran("./link to it", 1, *OWN, "--device", "cpu", "--exporter", "builtin", "--work_dir", "-", cwd=tmp_path,
               env={"PYTHON": os.path.relpath(os.environ[forked.PYTHON], str(tmp_path)), "OLDPWD": str(tmp_path / "root")})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "-/stages.json").exists() and not os.listdir(str(tmp_path / "root"))


def test_what_is_not_given_is_left_to_the_scripts(wired, tmp_path):
    """The number of workers, whatever OMP_NUM_THREADS says; the loops of the throughput; the back end."""
    done, calls = wired(1, *OWN, OMP_NUM_THREADS="1")
    for call in calls:
        assert not {"--num_worker", "--backend", "--loop"} & {word.split("=")[0] for word in call}, call
    done, calls = wired(2, *OWN, "--num_worker", 3, "--backend", "onnxruntime", "--loop", 5, "--perf_batches", "2,4")
    assert called(calls, "TSM_preprocess.py")[0][2:-2] == [
        "--ann_file", str(tmp_path / "list.txt"), "--num_worker", "3", "--batch_size", "2"]
    infer = called(calls, "TSM_infer.py")
    assert [call[:2] for call in infer] == [["--backend", "onnxruntime"]] * 3
    assert infer[1][2:] == ["--model=tsm_new_bs2.onnx", "--loop=5"] and infer[2][2:] == ["--model=tsm_new_bs4.onnx", "--loop=5"]


def test_the_model_alone_needs_no_data(wired):
    done, calls = wired("--model_only", "--checkpoint", "a.pth", "--labels", "list.txt")
    assert [call[0] for call in calls] == ["TSM_checkpoint.py", "pytorch2onnx.py", "modify_onnx.py"]
    assert "\nDone. The model is work/tsm_new_bs1.onnx\nNext:   " in done.stdout
    assert done.stdout.endswith("suite/TSM_predict.py --model work/tsm_new_bs1.onnx VIDEO\n")
    done, calls = wired("--model_only", "--checkpoint", "a.pth", "--labels", "list.txt")
    assert calls == [] and "\nNothing to do" in done.stdout


def test_an_online_model_is_made_measured_by_its_curve_and_reported(wired, tmp_path):
    """Of the demo's checkpoint for it, and of one's own, whose shift may be told. The demo's other one needs no examination."""
    done, calls = wired(1, "--online")
    assert [call[0] for call in calls] == ["expand.py", "TSM_checkpoint.py", "TSM_dataset.py", "pytorch2onnx.py", "modify_onnx.py",
                                           "TSM_stream.py", "TSM_postprocess.py", "TSM_infer.py", "TSM_report.py"]
    assert called(calls, "expand.py")[0][-1].endswith("demo/tsm_thin_uni.pth")
    assert called(calls, "modify_onnx.py")[0][:8] == ["-m1", "tsm_bs1.onnx", "-m2", "tsm_online.onnx", "-bs", "1", "--target", "online"]
    assert called(calls, "TSM_stream.py")[0][:3] == ["--curve", "--model", "./tsm_online.onnx"]
    assert called(calls, "TSM_infer.py") == [["--model=tsm_online.onnx"]]
    run = workfolder.read_run(str(tmp_path / "work"))
    assert run.modified == run.model == "tsm_online.onnx" and "--model work/tsm_online.onnx" in done.stdout
    done, calls = wired(1, "--online", *OWN, "--shift", "bi-still")
    assert calls[0] == ["TSM_checkpoint.py", str(tmp_path / "a.pth"), "--shift", "bi-still", "--output", "protocol.json"]
    names = [call[0] for call in wired(1)[1]]
    assert names[0] == "expand.py" and "TSM_checkpoint.py" not in names


def test_nothing_is_done_twice_and_speed_is_measured_again_where_that_is_asked(wired):
    for words, again in (((), None), ((), []), (("--again",), ["TSM_infer.py"])):
        done, calls = wired(1, *OWN, *words)
        assert again is None or [call[0] for call in calls] == ["TSM_preprocess.py"] + again, calls
        assert ("\nNothing to do" in done.stdout) == (again == []) and "Open work/report.html\nNext:   " in done.stdout


@pytest.mark.parametrize("ann_file, folder", [
    ("", "sthv2"), ("sthv2_val_list_videos.txt", "sthv2"), ("a/jester_val_list_rawframes.txt", "jester_val"),
    ("my own.v2.txt", "my_own_v2"), ("视.txt", "sthv2"), ("perf.txt", "perf")])
def test_a_folder_of_tensors_is_called_as_its_list(ann_file, folder):
    assert workfolder.folder_of(ann_file) == folder


@pytest.mark.parametrize("work, before", [("", ""), ("work", "../"), ("a/b", "../../"), ("../else where", None)])
def test_commands_name_the_suite_from_the_work_folder(begun, monkeypatch, tmp_path, work, before):
    """Inside the suite by a relative path, so that it may be moved."""
    (tmp_path / "suite").mkdir()
    monkeypatch.setattr(plan, "SUITE", str(tmp_path / "suite"))
    settings, args = begun(1, "--work_dir", tmp_path / "suite" / work)
    assert settings["s"] == args.suite == ("%s/suite/" % tmp_path if before is None else before)
    assert settings["python"] == args.suite + ".venv/bin/python"


def test_cleaning_deletes_what_a_run_made_and_nothing_else(begun, capsys, tmp_path):
    for name in ("jester/preprocess_bin/0.bin", "jester/sthv2.json", "jester/.journal", "other/preprocess_bin/0.bin",
                 "tsm_new_bs1.onnx", "own.onnx"):
        made(tmp_path / "w" / name)
    others = ["own.onnx", "other/preprocess_bin/0.bin"]
    for words, left in (((), [*others, "jester/sthv2.json"]), (("all",), others), ((), others)):
        assert begun("--work_dir", "w", "--clean", *words)[0] is None
        assert all((tmp_path / "w" / name).exists() for name in left)
        assert not (tmp_path / "w/jester/preprocess_bin").exists()
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "deleted: jester/preprocess_bin" and said[2] == "deleted: nothing, as nothing is there"
    assert not (tmp_path / "w/tsm_new_bs1.onnx").exists() and not (tmp_path / "w/jester").exists()
    assert begun("--work_dir", "none", "--clean") and not (tmp_path / "none").exists()


def test_a_network_is_proved_once_for_all_batch_sizes(wired):
    done, calls = wired(4, *OWN, "--perf_batches", "1,4,8")
    assert [call[:6] for call in called(calls, "modify_onnx.py")] == [
        ["-m1", source, "-m2", "tsm_new_bs%d.onnx" % batch, "-bs", "%d" % batch]
        for source, batch in (("tsm_bs1.onnx", 1), ("tsm_new_bs1.onnx", 4), ("tsm_new_bs1.onnx", 8))]


def test_int8_is_calibrated_in_one_way_whether_chunked_or_not(wired, tmp_path):
    """The page has film strips and an agreement as asked for; inference is done again when the int8 file is another."""
    given = (1, *OWN, "--precision", "int8", "--on_error", "skip", "--num_worker", 2)
    _, calls = wired(*given, INT8="one")
    whole = called(calls, "TSM_quantise.py")
    root, ann_file = str(tmp_path / "root"), str(tmp_path / "list.txt")
    report = called(calls, "TSM_report.py")[0]
    assert report[report.index("--data_root") + 1] == root and "--gallery" not in report
    assert not called(calls, "TSM_compare.py")  # TSM_infer.py compares a CPU's precision itself
    assert whole == [["--model", "tsm_new_bs1.onnx", "--data_root", root, "--ann_file", ann_file, "--on_error", "skip",
                      "--num_worker", "2", "--output", "tsm_int8.xml"]]
    for text, inferred in (("one", 0), ("two", 1)):
        if inferred:
            (tmp_path / "work/tsm_int8.xml").unlink()
        _, calls = wired(*given, INT8=text)
        assert sum("--input" in call for call in called(calls, "TSM_infer.py")) == inferred
    (tmp_path / "work/tsm_int8.xml").unlink()
    _, calls = wired(*given, "--chunk", 7, "--agreement", 0, "--gallery", 0)
    assert called(calls, "TSM_quantise.py") == whole and not called(calls, "TSM_preprocess.py")
    assert called(calls, "TSM_stream.py")[0][:4] == ["--precision", "int8", "--agreement", "0"]
    assert called(calls, "TSM_report.py")[0][-2:] == ["--gallery", "0"]


def test_a_list_beyond_the_disk_is_streamed_on_a_cpu(wired, tmp_path):
    root, ann_file = str(tmp_path / "root"), str(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("a.webm 0\n" * 2120)
    _, calls = wired(4, *OWN, "--precision", "bf16", "--dtype", "uint8", "--labels", "list.txt", "--start_index", 0)
    assert called(calls, "TSM_stream.py") == [[
        "--precision", "bf16", "--output_dir", "list", "--model", "./tsm_new_bs4.onnx", "--data_root", root, "--ann_file", ann_file,
        "--start_index", "0", "--output", "./inference_result", "--output_dirname", "out", "--outfmt", "TXT"]]
    assert called(calls, "modify_onnx.py")[0][-4:] == ["--input_dtype", "uint8", "--labels", ann_file]
    (tmp_path / "list.txt").write_text("a.webm 0\n")
    _, calls = wired(1, *OWN, "--stream")
    assert len(called(calls, "TSM_stream.py")) == 1


def test_a_list_goes_to_a_cluster_in_chunks(wired, tmp_path):
    done, calls = wired(1, *OWN, "--precision", "int8", "--on_error", "skip", "--ray", "10.0.0.1:6379")
    assert called(calls, "TSM_stream.py") == [[
        "--precision", "int8", "--int8_model", "tsm_int8.xml", "--output_dir", "list", "--ray", "10.0.0.1:6379",
        "--model", "./tsm_new_bs1.onnx", "--data_root", str(tmp_path / "root"),
        "--ann_file", str(tmp_path / "list.txt"), "--on_error", "skip",
        "--output", "./inference_result", "--output_dirname", "out", "--outfmt", "TXT"]]
    assert not called(calls, "TSM_preprocess.py")


def test_what_the_checkpoint_says_reaches_every_stage_and_run_json(wired, tmp_path):
    facts = dict(SSV2._replace(segments=16, sampling="uniform", size=224)._asdict(), network="TSM ResNet-101", fusion="prob",
                 filename_tmpl="{:06}.jpg", start_index=0)
    done, calls = wired(2, *OWN, "--perf_batches", "4,1", "--segments", 16, FOUND=json.dumps(facts))
    assert called(calls, "TSM_checkpoint.py")[0][1:] == ["--segments", "16", "--output", "protocol.json"]
    assert called(calls, "TSM_preprocess.py")[0][4:] == ["--filename_tmpl", "{:06}.jpg", "--start_index", "0", "--batch_size", "2",
                                                         "--protocol", "protocol.json", "--output_dir", "list"]
    assert called(calls, "pytorch2onnx.py") == [[
        str(tmp_path / "a.pth"), "--segments", "16", "--protocol", "protocol.json", "--output-file", "tsm_bs1.onnx", "--softmax", "--shape",
        "1", "48", "3", "224", "224"]]
    assert called(calls, "modify_onnx.py")[0][6:] == ["--target", "cpu", "--fusion", "prob", "--protocol", "protocol.json"]
    run = workfolder.read_run(str(tmp_path / "work"))
    assert run.checkpoint == str(tmp_path / "a.pth") and run.protocol == "protocol.json" and run.perf_batches == [1, 4] and run.batch == 2
    assert (run.filename_tmpl, run.start_index, run.fusion) == ("{:06}.jpg", 0, "prob")
    assert (run.modified, run.model) == ("tsm_new_bs2.onnx",) * 2 and (run.device, run.precision, run.dtype) == ("cpu", "fp32", "float32")
    assert run.chosen == {"device": "cpu, by --device", "exporter": "builtin", "form": "tensors on disk"}
    done, calls = wired(2, *OWN, "--fusion", "score", "--filename_tmpl", "f%d.png", "--start_index", 1, FOUND=json.dumps(facts))
    assert called(calls, "TSM_preprocess.py")[0][4:8] == ["--filename_tmpl", "f%d.png", "--start_index", "1"]
    assert "--fusion" not in called(calls, "modify_onnx.py")[0]


def test_mmaction2_s_exporter_is_taken_where_it_can_be_used(begun, tmp_path):
    """Its config is the guide's, or given; of any other network it has none."""
    given = ("--checkpoint", "a.pth", "--work_dir", "work")
    (tmp_path / "a.pth").write_text("")
    guide, other = ({"checkpoint": "a.pth", "network": name} for name in (plan.NETWORK, "TSM ResNet-101"))
    for option, exporter, facts, script in (
        ("auto", "/mm", guide, ["/mm/" + plan.EXPORTER, "/mm/" + plan.GUIDE_S, "a.pth"]), ("mmaction2", "/mm", other, None),
        ("auto", "/mm", other, ["pytorch2onnx.py", "a.pth"]), ("auto", "builtin", guide, ["pytorch2onnx.py", "a.pth"]),
    ):
        _, args = begun(1, *given, "--exporter", option)
        args.exporter, args.suite = exporter, ""
        if script:
            assert plan.exporting(args, facts, "") == script
        else:
            with pytest.raises(UserError, match="a.pth: mmaction2's exporter needs its config; give it by --config"):
                plan.exporting(args, facts, "")
    _, args = begun(1, *given, "--exporter", "mmaction2")
    with pytest.raises(UserError, match="mmaction2: not usable"):
        plan.find_exporter(args)


def test_what_mmaction2_says_when_it_is_imported_is_no_setting(begun, tmp_path, monkeypatch, capfd):
    for path in ("mmaction/__init__.py", "mmcv/__init__.py", "mmaction2/" + plan.EXPORTER):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("print('No module of that name')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("MMACTION2", str(tmp_path / "mmaction2"))
    (tmp_path / "a.pth").write_text("")
    _, args = begun(1, "--checkpoint", "a.pth", "--work_dir", "work")
    capfd.readouterr()
    assert plan.find_exporter(args) == str(tmp_path / "mmaction2") and capfd.readouterr() == ("", "")


HANGS = """
import os, signal, sys, time
def told(number, frame):
    open("kept", "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, told)
open("pid", "w").write(str(os.getpid()))
time.sleep(1000)
"""


@pytest.mark.parametrize("number, whom, status", [
    (signal.SIGTERM, "shell", 143), (signal.SIGHUP, "shell", 143), (signal.SIGTERM, "all", 143), (signal.SIGINT, "all", 130),
    (signal.SIGKILL, "shell", -signal.SIGKILL)])
def test_a_chain_that_is_ended_ends_its_stage_first(number, whom, status, wired, tmp_path):
    """The signal of a scheduler, a container or a terminal that goes reaches run_all.sh alone, or all at once, as Ctrl-C does."""
    (tmp_path / "suite/pytorch2onnx.py").write_text(HANGS)
    work = tmp_path / "work"
    process = started(tmp_path / "suite/run_all.sh", 1, *OWN, "--device", "cpu", "--exporter", "builtin", "--work_dir", work,
                    cwd=tmp_path, env={"PYTHON": sys.executable}, start_new_session=True)
    wait_for(lambda: (work / "pid").exists() and (work / "pid").read_text(), "the stage is at work")
    (os.killpg if whom == "all" else os.kill)(process.pid, number)
    said = process.communicate()[1]  # ends when nobody holds its output any more
    assert process.returncode == status and b"pytorch2onnx" not in command_of(int((work / "pid").read_text())), said
    assert (work / "kept").exists() == (number != signal.SIGINT)
    log = (work / "run.log").read_text()
    assert ("KeyboardInterrupt" in log) == (number == signal.SIGINT) and log.endswith("\nended with status %d\n" % (
        130 if number == signal.SIGINT else 143))
    assert [json.loads(call)[0] for call in (work / "calls").read_text().splitlines()] == ["TSM_checkpoint.py", "TSM_preprocess.py"]

"""The whole chain as a user runs it: run_all.sh on the demo, restarted, misused; the README's commands by hand."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

BY_HAND = 6  # clips that the README's commands are run on


@pytest.fixture(scope="module")
def suite(repo, tmp_path_factory):
    """A copy of the suite's files, as a clone has them, in a folder whose path has a space in it."""
    copy = tmp_path_factory.mktemp("a clone of") / "the suite"
    names = subprocess.run(["git", "ls-files"], cwd=str(repo), stdout=subprocess.PIPE, universal_newlines=True, check=True)
    for name in names.stdout.splitlines():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(repo / name), str(copy / name))
    return copy


def chain(suite, *args, **options):
    return subprocess.run(
        ["./run_all.sh"] + [str(arg) for arg in args], cwd=str(options.pop("cwd", suite)), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
        env=dict(dict(os.environ, PYTHON=sys.executable), **options.pop("env", {})), **options)


def report(suite):
    return json.loads((suite / "report.json").read_text())


@pytest.fixture(scope="module")
def demo(suite):
    """What ./run_all.sh 1 printed, run once for all tests here."""
    done = chain(suite, 1)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_demo_reaches_its_accuracy_and_ends_with_the_table(suite, demo):
    found = report(suite)
    assert found["accuracy"]["videos"] == 40 and found["accuracy"]["top1_acc"] >= 0.95
    assert "| device" in demo and "top-1 / top-5" in demo and "%.4f / %.4f" % (
        found["accuracy"]["top1_acc"], found["accuracy"]["top5_acc"]) in demo
    assert found["throughput"]["1"] > 0 and found["fusion"] == "score"
    assert set(found["stages"]) >= {"lists", "checkpoint", "preprocess", "export", "surgery_bs1", "infer", "accuracy"}


def test_a_second_run_redoes_nothing_and_batch_4_gives_the_same_accuracy(suite, demo):
    before = report(suite)
    done = chain(suite, 4)
    assert done.returncode == 0, done.stdout + done.stderr
    for made in ("sthv2_val_list_videos.txt", "tsm_demo.pth", "tsm_bs1.onnx"):
        assert "up to date: " + made in done.stdout
    assert "0 made, 40 already right" in done.stdout
    assert report(suite)["accuracy"] == before["accuracy"]


def blocks(repo, name):
    """The commands of the README between <!-- NAME --> and the next closing fence."""
    found = re.search(r"<!-- %s -->\n```bash\n(.*?)```" % name, (repo / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return found.group(1)


def test_the_readme_commands_by_hand_give_the_same_numbers(repo, suite, demo):
    """On the first clips of the demo, from nothing: the probabilities that run_all.sh left for them."""
    expected = [(suite / "inference_result/out" / ("%d_0.txt" % index)).read_text() for index in range(BY_HAND)]
    for name in ("tsm_bs1.onnx", "tsm_new_bs1.onnx", "sthv2_val_list_videos.txt", "tsm_demo.pth"):
        (suite / name).unlink()
    for name in ("sthv2", "inference_result"):
        shutil.rmtree(str(suite / name))
    annotations = suite / "demo/annotations/something-something-v2-validation.json"
    annotations.write_text(json.dumps(json.loads(annotations.read_text())[:BY_HAND]))
    commands = blocks(repo, "by hand").replace("python3 ", shlex.quote(sys.executable) + " ")
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=str(suite), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accuracy over %d videos" % BY_HAND in done.stdout and "[INFO] throughput" in done.stdout
    for index, text in enumerate(expected):
        found = (suite / "inference_result/out" / ("%d_0.txt" % index)).read_text()
        assert np.allclose(*(np.array(words.split(), float) for words in (found, text)), atol=1e-5), index


def test_both_readmes_have_the_same_commands(repo):
    chinese = (repo / "README_zh-CN.md").read_text(encoding="utf-8")
    english = (repo / "README.md").read_text(encoding="utf-8")
    fences = re.compile(r"```bash\n(.*?)```", re.DOTALL)
    assert [re.sub("#.*", "", block) for block in fences.findall(chinese)] == [
        re.sub("#.*", "", block) for block in fences.findall(english)]


@pytest.mark.parametrize("args, says", [
    ((), "BATCH_SIZE is missing"), ((0,), "0 is not"), (("x",), "x is not"), ((1, 2), "one batch size"),
    ((1, "--device", "gpu"), "--device gpu"), ((1, "--fusion"), "--fusion wants"), ((1, "--what"), "--what"),
    ((1, "--data_root", "."), "go together"), ((1, "--perf_batches", "1,x"), "x is not"), ((1, "--chunk", "-1"), "--chunk"),
])
def test_wrong_usage_is_one_line_and_exits_2(repo, tmp_path, args, says):
    done = chain(repo, *args, cwd=repo, env={"HOME": str(tmp_path)})
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and says in done.stderr, done.stderr


@pytest.mark.parametrize("args, says", [
    ((1, "--data_root", "nowhere", "--ann_file", "none.txt"), "nowhere"), ((1, "--checkpoint", "none.pth"), "none.pth"),
])
def test_missing_files_are_named_before_any_work(repo, args, says):
    done = chain(repo, *args)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and says in done.stderr, done.stderr


def test_help_teaches(repo):
    done = chain(repo, "--help")
    assert done.returncode == 0 and "--checkpoint" in done.stdout and "exit status" in done.stdout


def test_a_second_run_in_one_folder_stops_at_once(repo, tmp_path):
    holder = subprocess.Popen(["flock", str(tmp_path), "sleep", "30"])
    try:
        for _ in range(50):
            done = chain(repo, 1, "--work_dir", tmp_path, env={"PYTHON": "/bin/false"})
            if "another run" in done.stderr:
                break
        assert done.returncode == 1 and "another run is at work" in done.stderr and done.stderr.count("\n") == 1
    finally:
        holder.kill()
        holder.wait()

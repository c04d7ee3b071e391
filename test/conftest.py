"""What the tests share: running a script as a user does, and models, made once per session."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import forked
import forking
import pytest
from processes import ran

ENVIRONMENT = dict(os.environ)
with contextlib.suppress(ImportError):
    import cv2  # noqa: F401  which prepends to LD_LIBRARY_PATH, as if what is started later were to be started otherwise (forking.serves)
os.environ.clear()
os.environ.update(ENVIRONMENT)
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):  # which nohup and a shell's & leave ignored, in all that is started
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
CHAIN = 12  # clips
LONG = ["test_%s.py" % name for name in ("npu", "predict", "blame", "networks", "run_all", "modify", "setup", "protocols",
                                          "cluster", "scripts", "stream", "lists", "lint", "resume", "infer", "fuzz", "corrupt", "report",
                                          "checkpoint", "frames", "hosts", "load", "videos")]


@pytest.fixture(scope="session")
def repo():
    """The suite's folder."""
    return REPO


def pytest_configure(config):
    """One process for all of pytest-xdist's workers to fork scripts from; it imports its libraries while tests are collected."""
    if not hasattr(config, "workerinput"):
        config.forked = forked.Server(tempfile.mkdtemp(prefix="tsm"))


def pytest_collection_modifyitems(items):
    """Of a Ray cluster, a browser and other people's servers the quick leg has none; files that take long are begun first."""
    for item in items:
        if any(item.get_closest_marker(mark) for mark in ("ray", "browser", "network")):
            item.add_marker("all")
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_unconfigure(config):
    if hasattr(config, "forked"):
        config.forked.close()


@pytest.fixture(scope="session")
def python():
    """A Python whose starts cost 20 ms, for run_all.sh where these are not the test."""
    return os.environ[forked.PYTHON]


@pytest.fixture(scope="session")
def run(python):
    """run(script, *args, cwd) -> CompletedProcess with text; a .sh runs under bash, a .py under this Python.

    A .py is forked, not started, unless `process` is true or `env` holds what Python reads when it starts; so are the stages
    of a run_all.sh whose `env` says that PYTHON is this one.
    """

    def run(script, *args, cwd, timeout=600, env=None, process=False):
        words, env = [str(REPO / script)] + [str(arg) for arg in args], dict(os.environ, **(env or {}))
        if words[0].endswith(".sh"):
            words = ["bash"] + words
            if env.get("PYTHON") == sys.executable and not process:
                env["PYTHON"] = python
        elif not process and forking.serves(env):
            return forked.run(words, str(cwd), env, timeout)
        else:
            words = [sys.executable] + words
        return ran(*words, cwd=cwd, env=env, timeout=timeout)

    return run


@pytest.fixture(scope="session")
def works(run):
    """works(script, *args, cwd) -> stdout of a run that must succeed."""

    def works(script, *args, **options):
        done = run(script, *args, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return works


@pytest.fixture(scope="session")
def fails(run):
    """fails(script, *args, cwd, status=1) -> the ONE line on stderr of a run that must end with that status."""

    def fails(script, *args, status=1, **options):
        done = run(script, *args, **options)
        lines = done.stderr.splitlines()
        assert done.returncode == status, done.stdout + done.stderr
        assert len(lines) == 1 and "error: " in lines[0] and "Traceback" not in done.stderr, done.stderr
        return lines[0]

    return fails


@pytest.fixture
def patched(tmp_path):
    """patched(script, code) -> a script for run(), which does what that one does after `code` was run in its process."""
    def patched(script, code):
        path = tmp_path / ("patched_" + script)
        path.write_text("import os, runpy, signal, sys\nsys.path.insert(0, %r)\n%s\nsys.argv[0] = %r\nrunpy.run_path(sys.argv[0], run_name="
                        "'__main__')\n" % (str(REPO), code, str(REPO / script)))
        return path

    return patched


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """once(name, make) -> a folder that make(folder) fills, one time for all workers of pytest-xdist. Nobody writes into it later."""

    def once(name, make):
        root = tmp_path_factory.getbasetemp()
        folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
        with open(str(folder) + ".lock", "a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            if lock.read() != "made":
                shutil.rmtree(str(folder), ignore_errors=True)
                folder.mkdir()
                make(folder)
                lock.write("made")
        return folder

    return once


@pytest.fixture(scope="session")
def thin():
    """The state dict of a ResNet-50 of one eighth of the channels, with random weights."""
    import torch

    from tsm.model.network import TSM

    torch.manual_seed(0)
    return TSM(width=8).state_dict()


@pytest.fixture(scope="session")
def demo_checkpoint(works, once):
    """The demo's checkpoint of the full-size network."""
    return once("full", lambda folder: works("demo/expand.py", "--output", "tsm_demo.pth", cwd=folder)) / "tsm_demo.pth"


@pytest.fixture(scope="session")
def thin_onnx(works, once):
    """The demo's thin network, which knows the demo's classes and is quick, as an offline model for a CPU; beside it thin.onnx."""

    def make(folder):
        works("pytorch2onnx.py", REPO / "demo/tsm_thin.pth", "--output-file", "thin.onnx", "--shape", 1, 48, 3, 256, 256, cwd=folder)
        works("modify_onnx.py", "-m1", "thin.onnx", "-m2", "thin_new.onnx", "-bs", 1, "--target", "cpu", cwd=folder)

    return once("thin", make) / "thin_new.onnx"


@pytest.fixture(scope="session")
def small_onnx(works, once):
    """The thin network tested on SMALL frames, for whatever needs no right answers; beside it small.onnx and protocol.json."""
    from clips import SMALL

    def make(folder):
        (folder / "protocol.json").write_text(json.dumps(SMALL._asdict()))
        works("pytorch2onnx.py", REPO / "demo/tsm_thin.pth", "--output-file", "small.onnx", "--protocol", "protocol.json", cwd=folder)
        works("modify_onnx.py", "-m1", "small.onnx", "-m2", "small_new.onnx", "-bs", 1, "--target", "cpu", cwd=folder)

    return once("small", make) / "small_new.onnx"


@pytest.fixture(scope="session")
def small_om(works, once, small_onnx):
    """The same for an NPU, batch 4, as the stand-in for ATC would leave it."""

    def make(folder):
        works("modify_onnx.py", "-m1", small_onnx.parent / "small.onnx", "-m2", "small_bs4.onnx", "-bs", 4, cwd=folder)
        (folder / "small_bs4.onnx").rename(folder / "small_bs4.om")

    return once("om", make) / "small_bs4.om"


@pytest.fixture(scope="session")
def online_onnx(works, once, thin_onnx):
    """The thin network as an online model, its bi-directional weights run causally; it knows its classes' names."""

    def make(folder):
        works("modify_onnx.py", "-m1", thin_onnx.parent / "thin.onnx", "-m2", "online.onnx", "--target", "online", "--shift", "bi-still",
              "--labels", REPO / "demo/annotations/something-something-v2-labels.json", cwd=folder)

    return once("online", make) / "online.onnx"


@pytest.fixture(scope="session")
def chain(works, once):
    """The folder that run_all.sh leaves of CHAIN of the demo's clips and the thin network; beside it their list, list.txt."""
    data = REPO / "demo/annotations/something-something-v2-validation.json"

    def make(folder):
        works("TSM_dataset.py", "--annotations", data, "--labels", str(data).replace("validation", "labels"), "--videos",
              REPO / "demo/videos", cwd=folder)
        lines = (folder / "sthv2_val_list_videos.txt").read_text().splitlines(True)
        for name in ("list.txt", "sthv2_val_list_videos.txt"):
            (folder / name).write_text("".join(lines[:CHAIN]))
        works("run_all.sh", 1, "--device", "cpu", "--exporter", "builtin", "--checkpoint", REPO / "demo/tsm_thin.pth", "--data_root",
              REPO / "demo/videos", "--ann_file", "sthv2_val_list_videos.txt", "--loop", 1, "--work_dir", "run", cwd=folder,
              env={"PYTHON": sys.executable})

    return once("chain", make) / "run"

"""What the tests share: running a script as a user does, and models, made once per session."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))


@pytest.fixture(scope="session")
def repo():
    """The suite's folder."""
    return REPO


@pytest.fixture(scope="session")
def run():
    """run(script, *args, cwd) -> CompletedProcess with text; a .sh runs under bash, a .py under this Python."""

    def run(script, *args, cwd, timeout=600, env=None):
        path = REPO / script
        command = ["bash", str(path)] if path.suffix == ".sh" else [sys.executable, str(path)]
        return subprocess.run(
            command + [str(arg) for arg in args], cwd=str(cwd), timeout=timeout, env=dict(os.environ, **(env or {})),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
        )

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


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="session")
def demo_checkpoint(works, model_dir):
    """The demo's checkpoint of the full-size network."""
    works("demo/expand.py", "--output", "tsm_demo.pth", cwd=model_dir)
    return model_dir / "tsm_demo.pth"


@pytest.fixture(scope="session")
def thin_onnx(works, model_dir):
    """The demo's thin network, which knows the demo's classes and is quick, as an offline model for a CPU."""
    works("pytorch2onnx.py", REPO / "demo/tsm_thin.pth", "--output-file", "thin.onnx", "--shape", 1, 48, 3, 256, 256, cwd=model_dir)
    works("modify_onnx.py", "-m1", "thin.onnx", "-m2", "thin_new.onnx", "-bs", 1, "--target", "cpu", cwd=model_dir)
    return model_dir / "thin_new.onnx"


@pytest.fixture(scope="session")
def thin_om(works, model_dir, thin_onnx):
    """The thin network for an NPU, batch 4, as the stand-in for ATC would leave it."""
    works("modify_onnx.py", "-m1", "thin.onnx", "-m2", "thin_bs4.onnx", "-bs", 4, cwd=model_dir)
    (model_dir / "thin_bs4.onnx").rename(model_dir / "thin_bs4.om")
    return model_dir / "thin_bs4.om"

"""tsm/stage.py: runs a command once, keeps its status, and knows when its result no longer holds."""

import json
import sys

import pytest

COPY = (sys.executable, "-c", "import shutil; print('working'); shutil.copy('a', 'b')")


@pytest.fixture
def stage(run, tmp_path):
    (tmp_path / "a").write_text("1")

    def stage(*command, outputs=("b",)):
        options = [word for name in outputs for word in ("--out", name)]
        return run("tsm/stage.py", "copy", "--in", "a", *(options + ["--"] + list(command or COPY)), cwd=tmp_path)

    return stage


def test_runs_once_and_again_when_something_changed(stage, tmp_path):
    assert "working" in stage().stdout
    assert "up to date: b" in stage().stdout
    (tmp_path / "a").write_text("2")
    assert "working" in stage().stdout and (tmp_path / "b").read_text() == "2"
    (tmp_path / "b").write_text("damaged")
    assert "working" in stage().stdout and (tmp_path / "b").read_text() == "2"
    assert "working" in stage(*COPY + ("another", "argument")).stdout
    (tmp_path / "b").unlink()
    assert "working" in stage(*COPY + ("another", "argument")).stdout


def test_a_folder_is_known_by_its_contents(stage, tmp_path):
    make = (sys.executable, "-c", "import os; os.makedirs('d', exist_ok=True); open('d/x', 'w').write('1'); print('working')")
    assert "working" in stage(*make, outputs=("d",)).stdout
    assert "up to date" in stage(*make, outputs=("d",)).stdout
    (tmp_path / "d/x").write_text("2")
    assert "working" in stage(*make, outputs=("d",)).stdout


def test_without_outputs_it_always_runs(stage):
    assert "working" in stage(outputs=()).stdout and "working" in stage(outputs=()).stdout


def test_the_command_is_shown_so_that_it_can_be_copied(stage):
    assert "$ %s -c 'import sys; sys.exit(0)' 'a b'" % sys.executable in stage(
        sys.executable, "-c", "import sys; sys.exit(0)", "a b", outputs=()).stdout


def test_a_failing_command_keeps_its_status_and_is_not_remembered(stage, tmp_path):
    done = stage(sys.executable, "-c", "import sys; sys.exit('its own message')")
    assert (done.returncode, done.stderr) == (1, "its own message\n")
    assert stage(sys.executable, "-c", "raise SystemExit(7)").returncode == 7
    assert stage(sys.executable, "-c", "import os; os.kill(os.getpid(), 9)").returncode == 137
    assert not (tmp_path / "stages.json").exists()


def test_success_without_the_result_is_a_failure(stage):
    done = stage(sys.executable, "-c", "pass")
    assert done.returncode == 1 and "b: not made" in done.stderr


def test_an_unknown_command_is_one_line(stage):
    done = stage("no-such-command")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no-such-command" in done.stderr


def test_seconds_and_memory_are_kept(stage, tmp_path):
    stage(sys.executable, "-c", "import time; x = b'1' * (60 << 20); time.sleep(0.2); open('b', 'w')")
    entry = json.loads((tmp_path / "stages.json").read_text())["copy"]
    assert entry["seconds"] >= 0.2 and entry["peak_mb"] > 60


def test_damaged_state_means_nothing_is_done(stage, tmp_path):
    stage()
    (tmp_path / "stages.json").write_text("{")
    assert "working" in stage().stdout

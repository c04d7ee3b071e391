"""tsm/chain/stage.py: runs a command once, keeps its status, and knows when its result no longer holds."""

import fcntl
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios

import pytest
from processes import command_of, wait_for

from tsm.chain.stage import imports

COPY = (sys.executable, "-c", "import shutil; print('working'); shutil.copy('a', 'b')")


@pytest.fixture
def stage(run, tmp_path):
    (tmp_path / "a").write_text("1")

    def stage(*command, outputs=("b",)):
        options = [word for name in outputs for word in ("--out", name)]
        return run("tsm/chain/stage.py", "copy", "--in", "a", *(options + ["--"] + list(command or COPY)), cwd=tmp_path)

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
    assert "working" in stage(outputs=()).stdout and "working" in stage(outputs=()).stdout  # nothing tells that it is done
    make = (sys.executable, "-c", "import os; os.makedirs('d', exist_ok=True); open('d/x', 'w').write('1'); print('working')")
    assert "working" in stage(*make, outputs=("d",)).stdout and "up to date" in stage(*make, outputs=("d",)).stdout
    (tmp_path / "d/x").write_text("2")
    assert "working" in stage(*make, outputs=("d",)).stdout


def test_a_script_that_looks_for_itself_is_run_and_the_seconds_stay_those_of_the_work(run, tmp_path):
    def kept(text):
        (tmp_path / "text").write_text(text)
        run("tsm/chain/stage.py", "copy", "--check", "--out", "b", "--", "sh", "-c", "cp text b; echo x >>runs", cwd=tmp_path)
        return json.loads((tmp_path / "stages.json").read_text())["copy"]

    first = kept("one")
    assert kept("one") == first and kept("two")["outputs"] != first["outputs"] and (tmp_path / "runs").read_text() == "x\n" * 3


def test_details_are_for_the_log_and_a_measurement_has_all_and_is_said_again(run, tmp_path):
    words = ("copy", "--say", "--measure", "figures", "--", "sh", "-c", "echo '[INFO] detail'; echo shown")
    first, second = (run("tsm/chain/stage.py", *words, cwd=tmp_path).stdout.splitlines()[3:] for _ in range(2))
    assert first == ["shown"] and second[0].startswith("up to date: figures (made in ") and second[1] == "shown"
    assert (tmp_path / "figures").read_text() == "[INFO] detail\nshown\n"
    log = (tmp_path / "run.log").read_text()
    assert log.startswith("\n== copy\n$ sh -c ") and log.endswith("\n[INFO] detail\nshown\n") and log.count("shown") == 2


def test_stderr_is_shown_as_it_is_and_logged_to_its_last_line(run, tmp_path):
    words = "echo one; echo two >&2; printf '\\rbar 1\\rbar 2\\n' >&2; printf last >&2; exit 3"
    done = run("tsm/chain/stage.py", "it", "--", "sh", "-c", words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (3, "two\n\rbar 1\rbar 2\nlast")
    log = (tmp_path / "run.log").read_text().splitlines()[3:]
    assert sorted(log[:-1]) == ["bar 2", "last", "one", "two"] and log[-1] == "ended with status 3"
    done = run("tsm/chain/stage.py", "it", "--out", "none", "--", "true", cwd=tmp_path)
    line = "none: not made by the command above, though it reported success"
    assert done.stderr == "stage.py: error: %s\n" % line and (tmp_path / "run.log").read_text().endswith("\nerror: %s\n" % line)


def test_on_a_terminal_the_command_has_one_and_its_bars_move(repo, tmp_path):
    words = ("import os, sys; print(os.isatty(2), os.get_terminal_size(2).columns); sys.stderr.write('half\\rwhole\\nend'); "
             "sys.stderr.flush(); sys.exit(5)")
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 30, 77, 0, 0))
    done = subprocess.run([sys.executable, str(repo / "tsm/chain/stage.py"), "it", "--", sys.executable, "-c", words], cwd=str(tmp_path),
                          stdout=subprocess.PIPE, stderr=theirs, universal_newlines=True)
    os.close(theirs)
    shown = os.read(ours, 1000)
    os.close(ours)
    assert done.returncode == 5 and done.stdout.endswith("\nTrue 77\n") and shown == b"half\rwhole\r\nend"
    assert sorted((tmp_path / "run.log").read_text().splitlines()[3:]) == ["True 77", "end", "ended with status 5", "whole"]


@pytest.mark.all
def test_what_a_command_leaves_behind_does_not_hold_the_stage(run, tmp_path):
    """A process that has its stderr."""
    done = run("tsm/chain/stage.py", "it", "--", "sh", "-c", "echo said >&2; sleep 100 >/dev/null & echo $! >pid", cwd=tmp_path)
    left = int((tmp_path / "pid").read_text())
    assert done.returncode == 0 and b"sleep" in command_of(left) and "\nsaid\n" in (tmp_path / "run.log").read_text()
    os.kill(left, 9)


def test_a_reader_that_leaves_ends_the_stage(repo, tmp_path):
    done = subprocess.run("%s %s it -- sh -c 'while echo working; do :; done; touch ended' | head -n 9; echo ${PIPESTATUS[0]}" % (
        shlex.quote(sys.executable), shlex.quote(str(repo / "tsm/chain/stage.py"))), shell=True, executable="/bin/bash", cwd=str(tmp_path),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    assert done.stdout.endswith(b"\n1\n") and done.stderr == b""


def test_a_failing_command_is_shown_keeps_its_status_and_is_not_remembered(run, stage, tmp_path):
    done = stage(sys.executable, "-c", "import sys; sys.exit('its own message')", "a b")
    assert (done.returncode, done.stderr) == (1, "its own message\n")
    assert "$ %s -c 'import sys; sys.exit('\"'\"'its own message'\"'\"')' 'a b'" % shlex.quote(sys.executable) in done.stdout
    assert stage(sys.executable, "-c", "raise SystemExit(7)").returncode == 7
    for command, says in ((("no-such-command",), "no-such-command"), ((sys.executable, "-c", "pass"), "b: not made")):
        done = stage(*command)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and says in done.stderr
    done = run("tsm/chain/stage.py", "copy", "--measure", "missing/log", "--", sys.executable, "-c", "print(1)", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "missing/log: No such file" in done.stderr
    (tmp_path / "broken.py").write_text("def")  # which cannot be looked at for what it imports
    done = stage(sys.executable, "broken.py")
    assert done.returncode == 1 and "SyntaxError" in done.stderr
    assert not (tmp_path / "stages.json").exists()


def test_seconds_and_memory_are_kept_and_state_of_another_shape_is_passed_over(stage, tmp_path):
    """Damaged, or valid JSON that stage.py does not write."""
    stage(sys.executable, "-c", "import time; x = b'1' * (60 << 20); time.sleep(0.2); open('b', 'w')")
    good = (tmp_path / "stages.json").read_text()
    entry = json.loads(good)["copy"]
    assert entry["seconds"] >= 0.2 and entry["peak_mb"] > 60
    for text in ('{', '[]', '{"copy": 3}', '{"copy": null, "other": []}', good.replace('"peak_mb"', '"peak"')):
        (tmp_path / "stages.json").write_text(text)
        assert "working" in stage().stdout
    assert "up to date: b (made in " in stage().stdout


DIES = "import os; x = b'1' * (60 << 20); os.kill(os.getpid(), 9)"


@pytest.mark.parametrize("command", [
    DIES, "import subprocess, sys; sys.exit(128 - subprocess.call([sys.executable, '-c', %r]))" % DIES])
def test_a_killed_command_is_said_to_be_killed_and_what_it_had_used(command, stage, tmp_path):
    done = stage(sys.executable, "-c", command)
    assert done.returncode == 137 and done.stderr.count("\n") == 1 and not (tmp_path / "stages.json").exists()
    used = re.search(r"error: copy: .*killed \(SIGKILL\), most likely because memory ran out.* up to (\d+) MB;", done.stderr)
    assert 60 < int(used.group(1)) < 200


def test_it_ends_with_the_shell_that_started_it_and_so_does_its_command(repo, tmp_path):
    command = "%s %s it -- sh -c 'echo $$ >pid; exec sleep 1000'; true" % (
        shlex.quote(sys.executable), shlex.quote(str(repo / "tsm/chain/stage.py")))
    shell = subprocess.Popen(["bash", "-c", command], cwd=str(tmp_path), stdout=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the command's start")
    assert shell.poll() is None
    shell.terminate()
    shell.wait()
    wait_for(lambda: b"sleep" not in command_of(int((tmp_path / "pid").read_text())), "the command's end")


def test_a_stage_follows_what_its_script_imports_and_nothing_else(run, repo, tmp_path):
    """In a small suite: a script, what it imports at its top and inside a function, and what that imports."""
    for name, text in {
        "script.py": "import helper\nfrom tsm import direct\nopen('b', 'w')\nprint('working')\n",
        "helper.py": "def later():\n    from tsm.lazy import something\n", "tsm/lazy.py": "import tsm.deep\nsomething = 1\n",
        "tsm/deep.py": "", "tsm/direct.py": "", "tsm/unrelated.py": "", "unrelated.py": "", "requirements.txt": "numpy\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "tsm/chain").mkdir()
    for name in ("__init__", "chain/__init__", "chain/npu", "chain/stage", "cli", "files", "workfolder", "machine"):
        shutil.copy(str(repo / "tsm" / (name + ".py")), str(tmp_path / "tsm" / (name + ".py")))

    def stage():
        done = run(tmp_path / "tsm/chain/stage.py", "it", "--out", "b", "--", sys.executable, "script.py", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return "working" in done.stdout

    assert stage() and not stage()
    for name in ("script", "helper", "tsm/lazy", "tsm/deep", "tsm/direct", "tsm/__init__"):
        with open(str(tmp_path / (name + ".py")), "a") as file:
            file.write("# changed\n")
        assert stage() and not stage(), name
    for name in ("unrelated", "tsm/unrelated", "tsm/files", "tsm/chain/stage"):
        with open(str(tmp_path / (name + ".py")), "a") as file:
            file.write("# changed\n")
        assert not stage(), name


def test_a_page_does_not_redo_a_surgery(repo):
    """In the suite itself: a stage's digest holds what its script needs, and not all of tsm."""
    surgery = {os.path.relpath(path, str(repo)) for path in imports(str(repo / "modify_onnx.py"))}
    assert {"tsm/__init__.py", "tsm/cli.py", "tsm/files.py", "tsm/model/graph.py", "tsm/protocol.py"} <= surgery
    assert not {"tsm/video/frames.py", "tsm/workers.py", "tsm/chain/npu.py", "TSM_report.py"} & surgery

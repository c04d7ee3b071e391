"""Hosts as they are: file systems without locks, quotas of processors, other locales, users who want to be left alone."""

import ast
import errno
import fcntl
import math
import os
import re
import shutil
import subprocess
import sys

import pytest
import traced
from clips import linked
from processes import ran

from tsm.cli import UserError, first_line, one_line, parser
from tsm.files import locked
from tsm.machine import cores, cpu_quota

needs_strace = pytest.mark.skipif(not traced.works(), reason="strace is missing or may not trace; .ci/run installs it")


# Locks.

def without_locks(error):
    """The beginning of a command in which flock() fails."""
    return ["strace", "-f", "-qq", "-e", "trace=flock", "-e", "inject=flock:error=" + error, "-o", os.devnull]


def with_setup(repo, folder):
    """setup.sh and what it installs, in a folder of their own."""
    for name in ("setup.sh", "requirements.txt"):
        shutil.copy(str(repo / name), str(folder))


@pytest.mark.all
@needs_strace
@pytest.mark.parametrize("error", ["EBADF", "ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_a_warning(error, repo, tmp_path):
    root, ann_file = linked(tmp_path, 1)
    done = ran(*without_locks(error), sys.executable, repo / "TSM_preprocess.py", "--data_root", root, "--ann_file", ann_file,
               "--num_worker", 1, cwd=tmp_path)
    warnings = [line for line in done.stderr.splitlines() if "warning: " in line]
    assert done.returncode == 0 and len(warnings) == 1 and "sthv2: cannot be locked" in warnings[0], done.stderr
    assert (tmp_path / "sthv2/preprocess_bin/0.bin").exists()


@pytest.mark.all
@needs_strace
def test_the_shell_scripts_go_on_without_locks(repo, tmp_path):
    """setup.sh as far as the interpreter that cannot make .venv; run_all.sh as far as its first stage."""
    with_setup(repo, tmp_path)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" != -m ] && exec %s "$@"\nexit 1\n' % sys.executable)
    python.chmod(0o755)
    done = ran(*without_locks("EBADF"), tmp_path / "setup.sh", cwd=tmp_path, env={"BASE_PYTHON": str(python)})
    assert "warning: %s: cannot be locked" % tmp_path in done.stderr and "cannot make a virtual environment" in done.stderr
    work, checkpoint = tmp_path / "work", tmp_path / "a.pth"
    checkpoint.write_text("not a checkpoint")
    done = ran(*without_locks("EBADF"), repo / "run_all.sh", 1, "--device", "cpu", "--checkpoint", checkpoint, "--exporter", "builtin",
               "--work_dir", work, cwd=tmp_path, env={"PYTHON": sys.executable})
    assert "warning: %s: cannot be locked" % work in done.stderr and "== 1. The checkpoint" in done.stdout, done.stderr


@pytest.mark.all
@needs_strace
@pytest.mark.parametrize("script, lock", [
    ("TSM_preprocess.py", "sthv2/.lock"), ("run_all.sh", ".lock"), ("setup.sh", ".setup.lock")])
def test_no_lock_is_asked_for_through_a_read_only_descriptor(script, lock, repo, tmp_path):
    """NFSv4 answers EBADF to that. Each command ends soon after its lock."""
    root, ann_file = linked(tmp_path, 1)
    command = {
        "TSM_preprocess.py": [sys.executable, str(repo / script), "--data_root", str(root), "--ann_file", str(ann_file)],
        "run_all.sh": [str(repo / script), "1", "--device", "cpu", "--checkpoint", "list.txt", "--exporter", "builtin",
                       "--work_dir", "."],
        "setup.sh": ["./setup.sh"]}[script]
    env = {"PYTHON": sys.executable, "BASE_PYTHON": sys.executable}
    if script == "setup.sh":
        with_setup(repo, tmp_path)
        env["TMPDIR"] = "/nowhere"
    log = tmp_path / "log"
    ran("strace", "-f", "-y", "-qq", "-e", "trace=flock,open,openat", "-o", log, *command, cwd=tmp_path, env=env)
    calls = log.read_text()
    assert re.search(r"flock\(\d+<%s>, LOCK_EX\|LOCK_NB\) += 0" % re.escape(str(tmp_path / lock)), calls), calls[-2000:]
    assert re.search(r'open(at)?\(.*%s", O_RDWR\|O_CREAT' % re.escape(os.path.basename(lock)), calls)


def test_setup_says_what_it_cannot_use(repo, tmp_path):
    """A TMPDIR that pip could not use is named before pip is started, and no .venv is begun."""
    with_setup(repo, tmp_path)
    done = ran(tmp_path / "setup.sh", cwd=tmp_path, env={"BASE_PYTHON": sys.executable, "TMPDIR": "/nowhere"})
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and not (tmp_path / ".venv").exists()
    assert "setup.sh: error: TMPDIR, /nowhere: no folder that can be written to" in done.stderr


def test_a_folder_is_held_by_one_run_only_and_a_lock_fails_for_its_own_reason(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    for _ in range(2):
        with locked(str(tmp_path)):
            assert os.listdir(str(tmp_path)) == [".lock"]
            with pytest.raises(UserError, match="another run is at work"), locked(str(tmp_path)):
                pass
    monkeypatch.setattr(fcntl, "flock", broken)
    with locked(str(tmp_path)):
        assert "warning: %s: cannot be locked (No locks available)" % tmp_path in capsys.readouterr().err
    with pytest.raises(OSError) as caught, locked(str(tmp_path / "missing")):
        pass
    assert caught.value.filename == str(tmp_path / "missing")


# Processors.

@pytest.mark.parametrize("own, files, quota", [
    ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),  # v2, the container's own group
    ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
    ("0::/user.slice/a.service\n", {"user.slice/a.service/cpu.max": "400000 100000", "user.slice/cpu.max": "max 100000"}, 4),
    ("0::/outer/inner\n", {"outer/inner/cpu.max": "800000 100000", "outer/cpu.max": "200000 100000"}, 2),  # nested: the least
    ("0::/docker/abc\n", {"cpu.max": "50000 100000\n"}, 0.5),  # the path is the host's
    ("0::/../../other\n", {"cpu.max": "300000 100000\n"}, 3),
    ("12:cpu,cpuacct:/docker/abc\n0::/\n", {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "200000",
                                            "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"}, 2),  # v1
    ("4:cpu,cpuacct:/docker/abc\n", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 2),
    ("4:cpu:/\n3:memory:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
    ("5:cpuset:/a\n", {"cpuset/a/cpu.cfs_quota_us": "100000", "cpuset/a/cpu.cfs_period_us": "100000"}, math.inf),
    ("0::/a:b\n", {"a:b/cpu.max": "100000 100000"}, 1), ("nonsense\n", {}, math.inf), ("0::/\n", {"cpu.max": ""}, math.inf),
    ("0::/\n", {"cpu.max": "100000 0"}, math.inf), ("0::/\n", {"cpu.max": "\x00"}, math.inf),
])
def test_the_quota_of_a_control_group(own, files, quota, tmp_path):
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    assert cpu_quota(str(tmp_path / "cgroup"), str(tmp_path / "own")) == quota


def test_a_quota_counts_as_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for quota, count in ((math.inf, 8), (2.5, 3), (0.1, 1), (64, 8)):
        monkeypatch.setattr("tsm.machine.cpu_quota", lambda quota=quota: quota)
        assert cores() == count
    assert cpu_quota(own="/nowhere") == math.inf


# Locales.

@pytest.fixture(scope="module")
def locales(tmp_path_factory):
    """A folder for LOCPATH with locales of other encodings than UTF-8."""
    folder = tmp_path_factory.mktemp("locales")
    for name, language in (("en_US.ISO-8859-1", "en_US"), ("zh_CN.GBK", "zh_CN")):
        command = ["localedef", "-i", language, "-f", name.split(".")[1], str(folder / name)]
        if not shutil.which("localedef") or subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
            pytest.skip("localedef cannot make locales; .ci/run installs what it needs")
    return folder


LOCALES = {"ISO-8859-1": {"LC_ALL": "en_US.ISO-8859-1"}, "GBK": {"LC_ALL": "zh_CN.GBK"},
           "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}}
SHOWN = {"ISO-8859-1": "iso-8859-1", "GBK": "gbk", "C": "utf-8"}  # the encoding of what is printed


def in_locale(name, locales, *command):
    return subprocess.run([sys.executable] + [os.fsencode(str(word)) for word in command], stdin=subprocess.DEVNULL,
                          env=dict(os.environ, LOCPATH=str(locales), **LOCALES[name]),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/")


def scripts(repo):
    names = ran("git", "ls-files", "*.py", "demo/*.py", "tsm/chain/stage.py", "tsm/chain/plan.py", cwd=repo).stdout.split()
    return [name for name in names if not name.startswith(("test/", "bench/"))
            and 'if __name__ == "__main__"' in (repo / name).read_text(encoding="utf-8")]


HELP = "TSM_checkpoint.py"  # has characters in it that ASCII has not; every script meets its user through tsm.cli.run (test_structure.py)


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "gb18030", "utf-16"])
def test_help_for_every_encoding_of_the_output(encoding, repo, works, tmp_path):
    assert not works(HELP, "--help", cwd=tmp_path).isascii()
    done = subprocess.run([sys.executable, str(repo / HELP), "--help"], env=dict(os.environ, PYTHONIOENCODING=encoding),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0 and "usage: " in done.stdout.decode(encoding), done.stderr


@pytest.mark.all
@pytest.mark.parametrize("name", sorted(LOCALES))
def test_help_and_names_in_every_locale(name, repo, locales, tmp_path):
    """A list of UTF-8 names is read, its frames are found; a missing one is shown as it is called."""
    done = in_locale(name, locales, repo / HELP, "--help")
    assert done.returncode == 0 and b"usage: " in done.stdout and not done.stderr, done.stderr
    root, ann_file = linked(tmp_path, 1)
    os.rename(str(root / "clip"), str(root / "视频"))
    ann_file.write_text("视频 8 3\n", encoding="utf-8")
    arguments = [repo / "TSM_preprocess.py", "--data_root", root, "--num_worker", "1", "--output_dir", tmp_path / "张量",
                 "--ann_file"]
    done = in_locale(name, locales, *(arguments + [ann_file]))
    assert done.returncode == 0 and (tmp_path / "张量" / "preprocess_bin" / "0.bin").exists(), done.stderr
    done = in_locale(name, locales, *(arguments + [tmp_path / "列\u3000表\u00a0.txt"]))
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1, done.stderr
    assert "列\u3000表\u00a0.txt: ".encode(SHOWN[name], "backslashreplace") in done.stderr


def test_only_what_a_terminal_would_obey_or_hide_is_escaped():
    assert one_line("a\u00a0b\u3000c  d 中: no") == "a\u00a0b\u3000c  d 中: no"
    assert one_line("\n  two\n\t lines\r\n") == "two lines"
    assert one_line("\x1b[31m\u202ered\x00") == "\\x1b[31m\\u202ered\\x00"
    assert one_line(os.fsdecode("视".encode("utf-8") + b"\xff")) == "视\\xff" and one_line("\ud800") == "\\ud800"
    assert first_line("\n a\u3000b \n c") == "a\u3000b" and first_line(ValueError("")) == "ValueError"


def test_a_name_that_is_not_utf8_does_not_stop_printing():
    """In print() too, and never as a byte that the stream's encoding does not know."""
    code = "import sys; sys.path.insert(0, %r); from tsm.cli import run; run(lambda: print(sys.argv[1]))" % os.path.dirname(
        os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run([sys.executable, "-c", code, b"a\xff\xe4\xb8\xad"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=dict(os.environ, LC_ALL="C.UTF-8"))
    assert (done.returncode, done.stdout.decode("utf-8")) == (0, "a\\xff中\n"), done.stderr


# Nothing phones home.

@pytest.fixture
def quiet(tmp_path):
    """The environment of a user whose home is empty and who has no TMPDIR; in the end the home must still be empty."""
    (tmp_path / "home").mkdir()
    yield dict(os.environ, HOME=str(tmp_path / "home"), TMPDIR=str(tmp_path / "missing"), PYTHONDONTWRITEBYTECODE="1")
    assert os.listdir(str(tmp_path / "home")) == []


def test_the_libraries_are_told_before_they_are_imported(quiet, repo):
    code = "import tsm, os, sys, onnxruntime, openvino; print(os.environ['ORT_DISABLE_TELEMETRY'], sys.modules['openvino_telemetry'])"
    assert ran(sys.executable, "-c", code, cwd=repo, env=quiet).stdout == "1 None\n"


def test_a_closed_standard_output_is_no_fault(repo, tmp_path):
    command = "'%s' '%s' --list >&-" % (sys.executable, repo / "TSM_checkpoint.py")
    done = ran("sh", "-c", command, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("code, says", [
    ("raise KeyboardInterrupt", "-c: error: interrupted\n"), ("raise ValueError", "Traceback"),
    ("import no_such_package", "-c: error: %s lacks a package of the suite (No module named 'no_such_package'); run " % sys.executable),
    ("raise ImportError('libGL.so.1: cannot open\\nmore')", "-c: error: %s lacks a package of the suite (libGL.so.1: " % sys.executable),
    ("from tsm.cli import nothing", "Traceback"), ("import tsm.nothing", "Traceback")])
def test_what_goes_wrong_while_libraries_are_imported_is_one_line_unless_it_is_our_fault(repo, code, says):
    done = ran(sys.executable, "-c", "import tsm; " + code, cwd=repo)
    assert done.returncode and done.stderr.startswith(says), done.stderr
    assert (says == "Traceback") == (done.stderr.count("\n") > 1)


def test_an_interpreter_without_the_packages_is_told_of_setup(repo, tmp_path):
    """Of every script: without site, Python finds none of them."""
    for script in [name for name in scripts(repo) if not name.startswith("tsm/chain/")]:
        done = ran(sys.executable, "-S", "-B", repo / script, "--help", cwd=tmp_path)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, (script, done.stderr)
        assert "lacks a package of the suite" in done.stderr and str(repo / "setup.sh") in done.stderr


def test_every_script_passes_through_tsm_first(repo):
    """So that the variables are set, and a missing package is one line: no script of ours imports a package before tsm."""
    for name in scripts(repo):
        seen = []
        for node in ast.parse((repo / name).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                seen += [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                seen += [(node.module or "").split(".")[0]]
        assert "tsm" in seen, name
        assert not {"cv2", "numpy", "onnx", "onnxruntime", "openvino", "nncf", "torch", "tqdm"} & set(seen[: seen.index("tsm")]), name


@pytest.mark.parametrize("words, read, notes", [
    (["--on-error=skip", "f"], ("skip", "f"), 1), (["--on_error", "skip", "f"], ("skip", "f"), 0),
    (["--page", "f", "--output-file", "o"], (None, "f"), 1), (["--html", "f", "--", "--on-error"], (None, "f"), 0),
])
def test_an_old_spelling_of_an_option_is_taken_with_a_note(words, read, notes, capsys):
    cli = parser("")
    for option in ("--on_error", "--html", "--output-file"):
        cli.add_argument(option)
    cli.add_argument("rest", nargs="*")
    args = cli.parse_args(words)
    assert (args.on_error, args.html or args.rest[0]) == read and capsys.readouterr().err.count("is spelt --") == notes


@pytest.mark.all
@needs_strace
def test_what_the_demo_does_not_run_keeps_to_itself_too(quiet, repo, thin_onnx, tmp_path):
    """int8, ONNX Runtime as the back end, and the surgery for an NPU."""
    work = tmp_path / "work"
    work.mkdir()
    root, ann_file = linked(tmp_path, 1)
    data = ["--data_root", str(root), "--ann_file", str(ann_file)]
    model = ["--model", str(thin_onnx)]
    for number, (script, arguments) in enumerate([
        ("TSM_preprocess.py", data),
        ("TSM_quantise.py", model + data + ["--output", "tsm_int8.xml"]),
        ("TSM_infer.py", model + ["--input", "sthv2/preprocess_bin", "--output", "r", "--precision", "int8", "--int8_model",
                                  "tsm_int8.xml"]),
        ("TSM_infer.py", model + ["--input", "sthv2/preprocess_bin", "--output", "r", "--backend", "onnxruntime"]),
        ("modify_onnx.py", ["-m1", str(thin_onnx.parent / "thin.onnx"), "-m2", "ascend.onnx"]),
    ]):
        log = tmp_path / ("log%d" % number)
        done = ran(*traced.strace(log), sys.executable, repo / script, *arguments, cwd=work, env=quiet)
        assert done.returncode == 0, (script, done.stdout + done.stderr)
        assert traced.connections(log) == [] and traced.outside(log, work) == [], script
        assert traced.changed(log, work)  # the trace sees something


# Python 3.13 and newer.

def test_no_call_that_newer_pythons_warn_of(repo):
    """re.split, re.sub and re.subn want maxsplit, count and flags as keywords."""
    most = {"split": 2, "sub": 3, "subn": 3}
    for name in ran("git", "ls-files", "*.py", cwd=repo).stdout.split():
        for node in ast.walk(ast.parse((repo / name).read_text(encoding="utf-8"))):
            call = node.func if isinstance(node, ast.Call) else None
            if isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name) and call.value.id == "re":
                assert len(node.args) <= most.get(call.attr, 9), "%s, line %d" % (name, node.lineno)

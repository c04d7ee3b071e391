"""setup.sh: .venv is made once, whatever pip is told elsewhere, and the old one goes only once the new one works."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile

import pytest

MODULES = ("cv2", "jinja2", "numpy", "onnx", "onnxruntime", "torch", "tqdm", "xxhash")
HOSTILE = "[global]\nuser = true\ntarget = {0}/t\nprefix = {0}/p\nroot = {0}/r\ndry-run = true\nrequire-virtualenv = true\n"


def wheel(folder, name, modules):
    """A wheel of empty modules."""
    about = "%s-1.0.dist-info/" % name
    files = {module + ".py": "" for module in modules}
    files.update({about + "METADATA": "Metadata-Version: 2.1\nName: %s\nVersion: 1.0\n" % name,
                  about + "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"})
    files[about + "RECORD"] = "".join("%s,,\n" % path for path in list(files) + [about + "RECORD"])
    with zipfile.ZipFile(str(folder / ("%s-1.0-py3-none-any.whl" % name)), "w") as file:
        for path, text in files.items():
            file.writestr(path, text)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The environment of a user whose pip takes packages from a folder of wheels, and from nowhere else."""
    folder = tmp_path_factory.mktemp("wheels")
    wheel(folder, "all", MODULES)
    wheel(folder, "more", ["more"])
    wheel(folder, "less", MODULES[1:])
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "BASE_PYTHON"))}
    return dict(env, PIP_FIND_LINKS=str(folder), PIP_NO_INDEX="1", PIP_CONFIG_FILE=os.devnull,
                PATH=os.path.dirname(sys.executable) + os.pathsep + env["PATH"])


def setup(suite, env, *args):
    return subprocess.run([str(suite / "setup.sh")] + list(args), env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True)


def new_suite(repo, folder):
    folder.mkdir(parents=True)
    shutil.copy(str(repo / "setup.sh"), str(folder))
    (folder / "requirements.txt").write_text("all\n")
    (folder / "more.txt").write_text("more==1.0\n")
    return folder


@pytest.fixture(scope="module")
def made(repo, wheels, tmp_path_factory):
    """A suite with its .venv, made by a user whose settings of pip are for everything but that."""
    top = tmp_path_factory.mktemp("a user's")
    suite = new_suite(repo, top / "the suite")
    (top / "pip.conf").write_text(HOSTILE.format(top))
    (top / "path").mkdir()
    (top / "path/numpy.py").write_text("")
    done = setup(suite, dict(wheels, PIP_CONFIG_FILE=str(top / "pip.conf"), PIP_USER="1", PIP_TARGET=str(top / "t2"), PIP_DRY_RUN="1",
                             PIP_PREFIX=str(top / "p2"), PYTHONPATH=str(top / "path"), PYTHONHOME="/nowhere"), "more.txt")
    assert done.returncode == 0, done.stderr
    words = "Environment ready: Python .* with requirements.txt more.txt. To use the scripts yourself: "
    use = re.sub(words, "", done.stdout.splitlines()[-1])
    assert subprocess.run(["bash", "-c", use + " && python3 -c 'import more'"], cwd="/").returncode == 0
    assert sorted(os.listdir(str(top))) == ["path", "pip.conf", "the suite"]
    return suite


@pytest.fixture
def suite(made):
    """The same, whose files are put back afterwards."""
    before = (made / "requirements.txt").read_text()
    yield made
    (made / "requirements.txt").write_text(before)


def check(suite, module="more"):
    """The environment is there and whole, and nothing is left beside it."""
    assert subprocess.run([str(suite / ".venv/bin/python"), "-c", "import numpy, " + module], cwd="/").returncode == 0
    assert sorted(os.listdir(str(suite))) == [".setup.lock", ".venv", "more.txt", "requirements.txt", "setup.sh"]


def test_whatever_pip_is_told_the_packages_are_in_the_environment_and_it_is_made_once(suite, wheels):
    check(suite)
    done = setup(suite, dict(wheels, PATH="/usr/bin:/bin", PIP_FIND_LINKS="/nowhere"), "more.txt")  # no pip, no python3 is asked
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("Environment ready: ") and done.stdout.count("\n") == 1


def test_a_moved_suite_is_set_right_without_a_network(suite, wheels):
    elsewhere = suite.parent / "moved"
    suite.rename(elsewhere)
    try:
        done = setup(elsewhere, dict(wheels, PIP_FIND_LINKS="/nowhere"), "more.txt")
        assert done.returncode == 0 and "Setting up" not in done.stdout, done.stdout + done.stderr
        said = subprocess.run(["bash", "-c", ". .venv/bin/activate && python3 -c 'import sys; print(sys.prefix)'"], cwd=str(elsewhere),
                              stdout=subprocess.PIPE, universal_newlines=True)
        assert said.stdout == "%s\n" % (elsewhere / ".venv")
        pip = subprocess.run([str(elsewhere / ".venv/bin/pip"), "--version"], stdout=subprocess.PIPE, universal_newlines=True)
        assert str(elsewhere / ".venv") in pip.stdout
    finally:
        elsewhere.rename(suite)


@pytest.mark.all
def test_an_environment_whose_python_is_gone_is_made_again(repo, wheels, tmp_path):
    suite = new_suite(repo, tmp_path / "suite")
    (suite / ".venv/bin").mkdir(parents=True)
    (suite / ".venv/bin/python").symlink_to("/nowhere/python3")
    (suite / ".venv/stamp-requirements.txt").write_text("of a Python that is gone")
    done = setup(suite, wheels)
    assert done.returncode == 0, done.stderr
    check(suite, "cv2")


@pytest.mark.all
@pytest.mark.parametrize("wanted, says", [
    ("less\n", "requirements.txt was installed, but cannot be used"), ("all\nnot_there\n", "requirements.txt could not be installed")])
def test_the_old_environment_stays_where_the_new_one_does_not_work(wanted, says, suite, wheels):
    """In the quick leg: where none is made, and where the set-up is ended."""
    (suite / "requirements.txt").write_text(wanted)
    done = setup(suite, wheels)
    assert done.returncode == 1 and "setup.sh: error: " + says in done.stderr, done.stderr
    assert done.stderr.endswith("setup.sh: the .venv that was there stays\n")
    check(suite)


def test_a_base_that_makes_none_leaves_the_old_one(suite, wheels):
    for base in (shutil.which("false"), "/nowhere/python"):
        done = setup(suite, dict(wheels, BASE_PYTHON=base))
        assert done.returncode == 1 and "setup.sh: error: " in done.stderr
        check(suite)


def test_a_set_up_that_is_ended_leaves_the_old_environment_and_nothing_at_work(suite, wheels):
    (suite / "requirements.txt").write_text("all\nelsewhere\n")
    with socket.socket() as server:  # an index that never answers
        server.bind(("127.0.0.1", 0))
        server.listen(9)
        env = dict(wheels, PIP_INDEX_URL="http://127.0.0.1:%d/simple" % server.getsockname()[1])
        del env["PIP_NO_INDEX"]
        process = subprocess.Popen([str(suite / "setup.sh")], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, universal_newlines=True)
        connection, _ = server.accept()  # pip asks it
        assert (suite / ".venv-old").exists()
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1]  # ends when nobody holds its output any more
        connection.close()
    assert process.returncode == 143 and said == "setup.sh: the .venv that was there stays\n"
    check(suite)


def test_what_a_killed_set_up_left_is_put_back(suite, wheels):
    (suite / ".venv").rename(suite / ".venv-old")
    (suite / ".venv/bin").mkdir(parents=True)
    done = setup(suite, dict(wheels, PIP_FIND_LINKS="/nowhere"), "more.txt")
    assert done.returncode == 0 and "Setting up" not in done.stdout, done.stderr
    shutil.copytree(str(suite / ".venv"), str(suite / ".venv-old"), symlinks=True)  # it was killed when it had all but ended
    (suite / "more.txt").write_text("more\n")
    assert setup(suite, dict(wheels, PIP_FIND_LINKS="/nowhere"), "more.txt").returncode == 0
    check(suite)


def test_help_and_misuse_install_nothing(repo, wheels, tmp_path):
    suite = new_suite(repo, tmp_path / "suite")
    done = setup(suite, wheels, "--help")
    assert (done.returncode, done.stderr) == (0, "") and "BASE_PYTHON" in done.stdout and done.stdout.startswith("usage: ")
    for word, status in (("--what", 2), ("none.txt", 1)):
        done = setup(suite, wheels, word)
        assert done.returncode == status and done.stderr.count("\n") == 1 and word in done.stderr
    assert sorted(os.listdir(str(suite))) == ["more.txt", "requirements.txt", "setup.sh"]


def test_two_set_ups_at_once_make_one_environment(suite, wheels):
    """The second one waits for the first, and finds all done."""
    (suite / ".venv/stamp-more.txt").unlink()
    env = dict(wheels, PIP_FIND_LINKS="/nowhere")
    command = [str(suite / "setup.sh"), "more.txt"]
    running = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, universal_newlines=True) for _ in range(2)]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0] and all("Environment ready: " in text for text in said)
    check(suite)

"""Processes of scripts, each forked from one that has imported every library: 20 ms in place of the second that a start takes.

Each is a process of its own, with its arguments, folder, environment, streams, signals and exit status. A script of the suite
finds the suite's modules imported as well, and has done nothing with them yet; one of a copy imports the copy's. What Python and
the loader read at their start (STARTUP) is that of the process that is forked.

    python forked.py SOCKET    waits at a Unix socket; a connection is a process: {argv, cwd, env, memory} and its three streams
                               go in, its id and in the end its exit status come back

Beside the socket lies a command, python, that does what its words say of a Python, but forked: PYTHON of a run_all.sh whose
twenty starts are not the test.
"""

import array
import atexit
import contextlib
import gc
import glob
import importlib
import json
import os
import resource
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

LIBRARIES = ("numpy", "cv2", "onnx", "onnxruntime", "openvino", "torch", "decord", "av", "jinja2", "tqdm", "xxhash")
ADDRESS, PYTHON, STARTED = "TSM_FORKED_SOCKET", "TSM_FORKED_PYTHON", "TSM_FORKED_STARTUP"  # of the environment
SUITE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STANDINS = os.path.join(SUITE, "test", "standins")
STARTUP = ("PYTHON", "LD_", "LC_", "LANG", "OMP_", "MALLOC_", "TQDM_")  # beginnings of names; `PYTHON` itself is run_all.sh's


class Server:
    """Begins the process that is forked, and ends it. Its address stands in the environment, for all that this process begins."""

    def __init__(self, folder):
        self.folder, address = folder, os.path.join(folder, "socket")
        os.environ.update({ADDRESS: address, PYTHON: os.path.join(folder, "python"), STARTED: json.dumps(startup_of(os.environ))})
        with open(os.path.join(folder, "client.py"), "w") as file:
            file.write("import sys\nsys.path.insert(0, %r)\nimport forked\nforked.client(%r)\n" % (
                os.path.dirname(STANDINS), sys.executable))
        with open(os.environ[PYTHON], "w") as file:  # of a shell, as a #! line takes no path with a space
            file.write('#!/bin/sh\nexec %s -IS %s "$@"\n' % tuple(map(shlex.quote, (sys.executable, os.path.join(folder, "client.py")))))
        os.chmod(os.environ[PYTHON], 0o755)
        self.process = subprocess.Popen([sys.executable, __file__, address], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def close(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder)


def serves(env):
    """Is a process of this environment one that may be forked?"""
    return json.dumps(startup_of(env)) == os.environ[STARTED]


def startup_of(env):
    """Of an environment, what Python and the loader read when they start; the stand-ins of Ascend's packages are no reason to start."""
    found = {name: value for name, value in sorted(env.items()) if name.startswith(STARTUP) and name != "PYTHON"}
    if found.get("PYTHONPATH") == STANDINS:
        del found["PYTHONPATH"]
    return found


def run(argv, cwd, env, timeout, memory=0):
    """A script's run to its end -> CompletedProcess with text; `memory`: bytes that it may address, 0: any."""
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(open(os.devnull, "rb"))]
        streams += [stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)]
        connection = stack.enter_context(connected())
        pid = begin(connection, {"argv": argv, "cwd": cwd, "env": dict(env), "memory": memory}, [stream.fileno() for stream in streams])
        connection.settimeout(timeout)
        try:
            status = int(connection.recv(20) or b"1")
        except socket.timeout:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(argv, timeout)
        for stream in streams[1:]:
            stream.seek(0)
        return subprocess.CompletedProcess(argv, status, *(stream.read().decode() for stream in streams[1:]))


def client(python):
    """What the command `python` of the server's folder does: its words are those of a Python."""
    words, env = sys.argv[1:], dict(os.environ)
    if not words or not (words[0].endswith(".py") or words[0] in ("-m", "-c")) or not serves(env):
        os.execv(python, [python] + words)
    connection = connected()
    begin(connection, {"argv": words, "cwd": os.getcwd(), "env": env, "memory": 0}, (0, 1, 2))
    status = int(connection.recv(20) or b"1")
    if status < 0:
        os.kill(os.getpid(), -status)
    os._exit(status)


def connected():
    """A connection to the server."""
    limit = time.monotonic() + 300
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(os.environ[ADDRESS])
            return connection
        except OSError:  # it still imports the libraries
            connection.close()
            assert time.monotonic() < limit, "no test/forked.py answers at %s" % os.environ[ADDRESS]
            time.sleep(0.02)


def begin(connection, request, streams):
    """Have a process begun; its id."""
    text = json.dumps(request).encode()
    connection.sendmsg([b"%20d" % len(text)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))])
    connection.sendall(text)
    return int(connection.recv(20))


def serve(address):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers leave nothing behind
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return keep(connection)
        connection.close()


def keep(connection):
    """Begin the process that a client asks for, and tell its end. Returns in that process only."""
    size, (sent,), _, _ = connection.recvmsg(20, socket.CMSG_LEN(3 * array.array("i").itemsize))
    streams = array.array("i", sent[2])
    text = b""
    while len(text) < int(size):
        text += connection.recv(1 << 20)
    pid = os.fork()
    if pid == 0:
        connection.close()
        return json.loads(text), streams
    connection.sendall(b"%20d" % pid)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):  # whoever asked has ended
        connection.sendall(b"%d" % (-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)))
    os._exit(0)


def become(request, streams):
    """This process is the script's from now on; returns its exit status."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = (  # anew, as what a stream is, a file or a pipe, is looked at when it is opened
        open(number, mode, 1 if number == 2 else -1, old.encoding, old.errors, closefd=False)
        for number, mode, old in ((0, "r", sys.stdin), (1, "w", sys.stdout), (2, "w", sys.stderr)))
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    if request["memory"]:
        resource.setrlimit(resource.RLIMIT_AS, (request["memory"],) * 2)
    if os.path.abspath(request["argv"][0]).startswith(SUITE + os.sep):
        importlib.reload(sys.modules["tsm"])  # what it sets in the environment
    else:  # it may have a tsm of its own
        for name in [name for name in sys.modules if name.split(".")[0] == "tsm"]:
            del sys.modules[name]
    try:
        start(*request["argv"])
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 255
        sys.stderr.write("%s\n" % end.code)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def start(first, *words):
    """What `python FIRST WORDS...` does."""
    if "PYTHONPATH" in os.environ:
        sys.path.insert(1, os.environ["PYTHONPATH"])
    if first in ("-m", "-c"):
        what, sys.argv, sys.path[0] = words[0], [first] + list(words[1:]), os.getcwd()
        return runpy.run_module(what, run_name="__main__", alter_sys=True) if first == "-m" else exec(what, {"__name__": "__main__"})
    sys.argv, sys.path[0] = [first] + list(words), os.path.dirname(first)
    return runpy.run_path(first, run_name="__main__")


def main():
    sys.path.insert(1, SUITE)
    import tsm  # noqa: F401  before the libraries that it keeps quiet
    from tsm.machine import die_with_parent

    die_with_parent()
    ours = [os.path.relpath(path, SUITE)[:-3].replace(os.sep, ".") for path in glob.glob(SUITE + "/tsm/*/[a-z]*.py")]
    for library in [*LIBRARIES, *ours]:
        with contextlib.suppress(ImportError):
            __import__(library)
    del sys.path[1]
    gc.freeze()  # what is never collected is never copied
    status = become(*serve(sys.argv[1]))
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc()
        os._exit(1)

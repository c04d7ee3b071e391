"""Processes of scripts, each forked from one that has imported every library: 10 ms in place of the second that a start takes.

Each is a process of its own, with its arguments, folder, environment, streams, signals and exit status. A script of the suite
finds the suite's modules imported as well, and has done nothing with them yet; one of a copy imports the copy's. What Python and
the loader read at their start (forking.STARTUP) is that of the process that is forked.

    python forked.py SOCKET    waits at a Unix socket; a connection is a process: its arguments, folder, environment and memory, and
                               its three streams go in, its id and in the end its exit status come back

Beside the socket lies a command, python, that does what its words say of a Python, but forked: PYTHON of a run_all.sh whose
twenty starts are not the test.
"""

import array
import atexit
import contextlib
import gc
import glob
import importlib
import marshal
import os
import resource
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref

from forking import ADDRESS, PYTHON, STANDINS, STARTED, SUITE, WITH_TORCH, begin, connected, ended, startup_of

LIBRARIES = ("numpy", "cv2", "onnx", "onnxruntime", "openvino", "decord", "av", "jinja2", "tqdm", "xxhash")


class Server:
    """Begins the process that is forked, and ends it. Its address stands in the environment, for all that this process begins."""

    def __init__(self, folder):
        self.folder, address = folder, os.path.join(folder, "socket")
        os.environ.update({ADDRESS: address, PYTHON: os.path.join(folder, "python"), STARTED: startup_of(os.environ)})
        with open(os.path.join(folder, "client.py"), "w") as file:
            file.write("import sys\nsys.path.insert(0, %r)\nimport forking\nforking.client(%r)\n" % (
                os.path.dirname(STANDINS), sys.executable))
        with open(os.environ[PYTHON], "w") as file:  # of a shell, as a #! line takes no path with a space
            file.write('#!/bin/sh\nexec %s -IS %s "$@"\n' % tuple(map(shlex.quote, (sys.executable, os.path.join(folder, "client.py")))))
        os.chmod(os.environ[PYTHON], 0o755)
        self.process = subprocess.Popen([sys.executable, __file__, address], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def close(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder)


def run(argv, cwd, env, timeout, memory=0):
    """A script's run to its end -> CompletedProcess with text."""
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(open(os.devnull, "rb"))]
        streams += [stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)]
        connection = stack.enter_context(contextlib.closing(connected(argv)))
        pid = begin(connection, [stream.fileno() for stream in streams], argv, cwd, env, memory)
        connection.settimeout(timeout)
        try:
            status = ended(connection)
        except socket.timeout:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(argv, timeout)
        for stream in streams[1:]:
            stream.seek(0)
        return subprocess.CompletedProcess(argv, status, *(stream.read().decode() for stream in streams[1:]))


def serve(address):
    """Fork a process for each client that asks for one, and tell it of the end. Returns in such a process: what was asked, its streams."""
    heard, told = os.pipe()  # of a child's end
    os.set_blocking(told, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(told)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    clients = {}
    while True:
        ready, _, _ = select.select([listener, heard], [], [])
        if heard in ready:
            os.read(heard, 1000)
            for pid, status in iter(lambda: os.waitpid(-1, os.WNOHANG) if clients else (0, 0), (0, 0)):
                with clients.pop(pid) as connection, contextlib.suppress(OSError):  # whoever asked may have ended
                    connection.sendall(b"%d" % (-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)))
        if listener in ready:
            connection, _ = listener.accept()
            request, streams = received(connection)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for end in (listener, connection, *clients.values()):
                    end.close()
                os.close(heard), os.close(told)
                return request, streams
            clients[pid] = connection
            for stream in streams:
                os.close(stream)
            with contextlib.suppress(OSError):
                connection.sendall(b"%20d" % pid)


def received(connection):
    """What a client asks for, and the streams that it sends."""
    size, (sent,), _, _ = connection.recvmsg(20, socket.CMSG_LEN(3 * array.array("i").itemsize))
    text = b""
    while len(text) < int(size):
        text += connection.recv(1 << 20)
    return marshal.loads(text), array.array("i", sent[2])


def become(request, streams):
    """This process is the script's from now on; returns its exit status."""
    argv, cwd, env, memory = request
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = (  # anew, as what a stream is, a file or a pipe, is looked at when it is opened
        open(number, mode, 1 if number == 2 else -1, old.encoding, old.errors, closefd=False)
        for number, mode, old in ((0, "r", sys.stdin), (1, "w", sys.stdout), (2, "w", sys.stderr)))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory,) * 2)
    if os.path.abspath(argv[0]).startswith(SUITE + os.sep):
        importlib.reload(sys.modules["tsm"])  # what it sets in the environment
    else:  # it may have a tsm of its own
        for name in [name for name in sys.modules if name.split(".")[0] == "tsm"]:
            del sys.modules[name]
    try:
        start(*argv)
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


def load(modules):
    for name in modules:
        with contextlib.suppress(ImportError):
            __import__(name)


def main():
    sys.path.insert(1, SUITE)
    import tsm  # noqa: F401  before the libraries that it keeps quiet
    from tsm.machine import die_with_parent

    die_with_parent()
    ours = [os.path.relpath(path, SUITE)[:-3].replace(os.sep, ".") for path in glob.glob(SUITE + "/tsm/*/[a-z]*.py")]
    load(LIBRARIES)
    sys.modules["torch"] = None  # so that what needs it is not imported
    load(ours)
    del sys.modules["torch"]
    address, with_torch = sys.argv[1], os.fork() == 0  # whose forks take five times as long
    if with_torch:
        die_with_parent()
        load(["torch", *ours])
        weakref.finalize._registry.clear()  # what PyTorch would tidy up for 100 ms, when a process ends
    del sys.path[1]
    gc.freeze()  # what is never collected is never copied
    status = become(*serve(address + WITH_TORCH * with_torch))
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

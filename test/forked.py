"""Processes of scripts, each forked from one that has imported every library: 20 ms in place of the second that a start takes.

Each is a process of its own, with its arguments, folder, environment, streams, signals and exit status, and imports all that
is the suite's anew. What Python and the loader read at their start (STARTUP) is that of the process that is forked.

    python forked.py SOCKET    waits at a Unix socket; a connection is a process: {argv, cwd, env, memory} and its three streams
                               go in, its id and in the end its exit status come back
"""

import atexit
import contextlib
import gc
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback

LIBRARIES = ("numpy", "cv2", "onnx", "onnxruntime", "openvino", "torch", "decord", "av", "jinja2", "tqdm", "xxhash")
STARTUP = ("PYTHON", "LD_", "LC_", "LANG", "OMP_", "MALLOC_", "TQDM_")  # beginnings of names; `PYTHON` itself is run_all.sh's


class Server:
    """The process that is forked, as its clients see it."""

    def __init__(self, folder):
        self.address = str(folder / "socket")
        self.startup = startup_of(os.environ)
        self.process = subprocess.Popen([sys.executable, __file__, self.address], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def close(self):
        self.process.kill()
        self.process.wait()

    def serves(self, env):
        """Is a process of this environment one that may be forked?"""
        return startup_of(env) == self.startup

    def run(self, argv, cwd, env, timeout, memory=0):
        """A script's run to its end -> CompletedProcess with text; `memory`: bytes that it may address, 0: any."""
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(open(os.devnull, "rb"))]
            streams += [stack.enter_context(os.fdopen(os.memfd_create("stream"), "r+b")) for _ in range(2)]
            connection = stack.enter_context(self.connect())
            request = {"argv": argv, "cwd": cwd, "env": dict(env), "memory": memory}
            pid = begin(connection, request, [stream.fileno() for stream in streams])
            connection.settimeout(timeout)
            try:
                status = int(connection.recv(20) or b"1")
            except socket.timeout:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(argv, timeout)
            for stream in streams[1:]:
                stream.seek(0)
            return subprocess.CompletedProcess(argv, status, *(stream.read().decode() for stream in streams[1:]))

    def connect(self):
        limit = time.monotonic() + 300
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self.address)
                return connection
            except OSError:  # it still imports the libraries
                connection.close()
                assert self.process.poll() is None and time.monotonic() < limit, "test/forked.py does not answer"
                time.sleep(0.02)


def startup_of(env):
    return {name: value for name, value in env.items() if name.startswith(STARTUP) and name != "PYTHON"}


def begin(connection, request, streams):
    """Have a process begun; its id."""
    text = json.dumps(request).encode()
    socket.send_fds(connection, [b"%20d" % len(text)], streams)
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
    size, streams, _, _ = socket.recv_fds(connection, 20, 3)
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
        connection.sendall(b"%d" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def become(request, streams):
    """This process is the script's from now on; returns its exit status."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    if request["memory"]:
        resource.setrlimit(resource.RLIMIT_AS, (request["memory"],) * 2)
    for name in [name for name in sys.modules if name.split(".")[0] == "tsm"]:
        del sys.modules[name]
    sys.argv = request["argv"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 255
        sys.stderr.write("%s\n" % end.code)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def main():
    sys.path.insert(1, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import tsm  # noqa: F401  before the libraries that it keeps quiet
    from tsm.machine import die_with_parent

    die_with_parent()
    for library in LIBRARIES:
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

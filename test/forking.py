"""What asks forked.py for a process. It imports little, as the stages of a run_all.sh start it as their Python, by the hundred."""

import _socket as socket  # whose wrapper takes as long to import as all else here
import array
import marshal
import os
import sys
import time

ADDRESS, PYTHON, STARTED = "TSM_FORKED_SOCKET", "TSM_FORKED_PYTHON", "TSM_FORKED_STARTUP"  # of the environment
SUITE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STANDINS = os.path.join(SUITE, "test", "standins")
WITH_TORCH = "-torch"  # behind the address: of the process that has imported PyTorch, too
NEED_TORCH = ("TSM_checkpoint.py", "TSM_compare.py", "TSM_quantise.py", "pytorch2onnx.py", "expand.py")
STARTUP = ("PYTHON", "LD_", "LC_", "LANG", "OMP_", "MALLOC_", "TQDM_")  # beginnings of names; `PYTHON` itself is run_all.sh's


def startup_of(env):
    """Of an environment, what Python and the loader read when they start; the stand-ins of Ascend's packages are no reason to start."""
    return repr([(name, value) for name, value in sorted(env.items())
                 if name.startswith(STARTUP) and name != "PYTHON" and (name, value) != ("PYTHONPATH", STANDINS)])


def serves(env):
    """Is a process of this environment one that may be forked?"""
    return startup_of(env) == os.environ[STARTED]


def connected(argv):
    """A connection to what forks such a process."""
    address, limit = os.environ[ADDRESS] + WITH_TORCH * argv[0].endswith(NEED_TORCH), time.monotonic() + 300
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(address)
            return connection
        except OSError:  # it still imports the libraries
            connection.close()
            assert time.monotonic() < limit, "no test/forked.py answers at %s" % address
            time.sleep(0.02)


def begin(connection, streams, argv, cwd, env, memory=0):
    """Have a process begun, of these streams; its id. `memory`: bytes that it may address, 0: any."""
    text = marshal.dumps((argv, cwd, dict(env), memory))
    connection.sendmsg([b"%20d" % len(text)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))])
    connection.sendall(text)
    return int(connection.recv(20))


def ended(connection):
    """The exit status of a process that was begun, once it has ended."""
    return int(connection.recv(20) or b"1")


def client(python):
    """What the command `python` of the server's folder does: its words are those of a Python."""
    words = sys.argv[1:]
    if not words or words[0].startswith("-") and words[0] not in ("-m", "-c") or not serves(os.environ):
        os.execv(python, [python] + words)
    connection = connected(words)
    begin(connection, (0, 1, 2), words, os.getcwd(), os.environ)
    status = ended(connection)
    if status < 0:
        os.kill(os.getpid(), -status)
    os._exit(status)

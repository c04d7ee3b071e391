"""What tests need of other processes: who is whose child, and that something happens in the end."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

LONGEST = 300  # seconds that anything may take on a machine that does much else; all of it takes seconds on one that does not


def ran(*words, cwd, env=None, **options):
    """A command's run to its end -> CompletedProcess with text; `env` holds what it has beside this process's environment."""
    return subprocess.run(list(map(str, words)), **_as_started(cwd, env, **options))


def started(*words, cwd, env=None, **options):
    """A command at work, its output in pipes of text; SIGINT is as a terminal leaves it, not ignored as by a shell's &."""
    return subprocess.Popen(list(map(str, words)), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
                            **_as_started(cwd, env, **options))


def _as_started(cwd, env, **options):
    return dict({"cwd": str(cwd), "env": dict(os.environ, **(env or {})), "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE,
                 "stderr": subprocess.PIPE, "universal_newlines": True}, **options)


def children_of(pid):
    """Processes whose parent is `pid`, whichever of its threads began them."""
    found = []
    for path in Path("/proc/%d/task" % pid).glob("*/children"):
        with contextlib.suppress(OSError):  # a thread, or the process, that has ended meanwhile
            found += [int(word) for word in path.read_text().split()]
    return found


def command_of(pid):
    """The command of a process, its words ended by zeros; empty if it has ended."""
    with contextlib.suppress(OSError):
        return Path("/proc/%d/cmdline" % pid).read_bytes()
    return b""


def wait_for(condition, what, process=None):
    """Wait until it holds; `what`, as in "the first tensor", and the process that is to bring it about, are for who reads the failure."""
    limit = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < limit, "%s: not within %d s" % (what, LONGEST)
        if process is not None and process.poll() is not None:
            raise AssertionError("%s: its process ended before, with status %s\n%s" % (what, process.returncode, said(process)))
        time.sleep(0.01)


def said(process):
    """What an ended process printed where that goes into pipes."""
    return "\n".join(str(stream.read()) for stream in (process.stdout, process.stderr) if stream)

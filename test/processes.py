"""What tests need of other processes: who is whose child, and that something happens in the end."""

import contextlib
import time
from pathlib import Path

LONGEST = 300  # seconds that anything may take on a machine that does much else; all of it takes seconds on one that does not


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


def wait_for(condition):
    limit = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < limit, "it did not happen within %d s" % LONGEST
        time.sleep(0.002)

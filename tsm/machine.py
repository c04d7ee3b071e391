"""The machine: how many processors there are, what they are called, memory."""

import contextlib
import ctypes
import math
import os
import platform
import re
import resource
from typing import Iterator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)


def cores() -> int:
    """Processors that this process may use: those it is bound to, or fewer where its control group has a CPU quota.

    The quota is that of every group from this process's own up to the root: cpu.max (cgroup v2), or cpu.cfs_quota_us over
    cpu.cfs_period_us (v1); a part of a processor counts as one. See man 7 cgroups, "CPU bandwidth control".
    """
    return max(1, min([len(os.sched_getaffinity(0))] + [math.ceil(quota) for quota in _quotas()]))


def _quotas(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> Iterator[float]:
    """The CPU quotas of this process's control groups, in processors."""
    try:
        with open(own, encoding="utf-8", errors="replace") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return
    for _, controllers, path in (group for group in groups if len(group) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = os.path.join(root, *(["cpu"] if controllers else []))
        while True:
            folder = os.path.join(base, path.strip("/"))
            for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
                with contextlib.suppress(OSError, ValueError):
                    words = " ".join(open_text(os.path.join(folder, name)) for name in names).split()
                    if words[0] != "max" and int(words[0]) > 0:
                        yield int(words[0]) / int(words[1])
            if path.strip("/") == "":
                break
            path = os.path.dirname(path.rstrip("/"))


def open_text(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def processor_name() -> str:
    """The processor's model and how many of it are used, as in `AMD EPYC, 2 threads`."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        found = re.search(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE)
    return "%s, %d threads" % (found.group(1).strip() if found else platform.machine(), cores())


def peak_memory() -> int:
    """Peak resident memory of this process, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def keep_freed_memory(most: int = 1 << 26) -> None:
    """Have malloc keep up to `most` freed bytes: frames come and go, and giving their pages back each time costs 13 %."""
    with contextlib.suppress(AttributeError):  # glibc only
        for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            ctypes.CDLL(None).mallopt(parameter, most)

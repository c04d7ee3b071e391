"""The machine: how many processors there are, what they are called, memory."""

import contextlib
import ctypes
import math
import os
import platform
import re
import resource
import signal

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent ends, however that ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, number)


def cores() -> int:
    """Processors that this process may use: those it is bound to, or fewer, rounded up, by its control group's CPU quota."""
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), cpu_quota())))


def cpu_quota(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> float:
    """The smallest CPU quota, in processors, of this process's control groups and of the groups around them; inf without one.

    `root` is where the groups are mounted, `own` names this process's, a line `number:controllers:path` each: one without controllers
    is of cgroup v2, which has cpu.max; in v1 each set of controllers has a folder, with cpu.cfs_quota_us and cpu.cfs_period_us. In a
    container `root` often is its own group, while the path is the host's; then `root` alone is there, and counts. See man 7 cgroups.
    """
    try:
        with open(own, encoding="utf-8", errors="surrogateescape") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return math.inf
    quotas = [math.inf]
    for _, controllers, path in (group for group in groups if len(group) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        parts = [part for part in os.path.normpath("/" + path).split("/") if part]
        for base in {"", "unified"} if not controllers else {"cpu", controllers}:
            quotas += [_quota_of(os.path.join(root, base, *parts[:depth])) for depth in range(len(parts) + 1)]
    return min(quotas)


def _quota_of(group: str) -> float:
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = " ".join(_text(os.path.join(group, name)) for name in names).split()
            if quota != "max" and int(quota) > 0:
                return int(quota) / int(period)
    return math.inf


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def processor_name() -> str:
    """The processor's model and how many of it are used, as in `AMD EPYC, 2 threads`."""
    found = re.search(r"^model name\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return "%s, %d threads" % (found.group(1).strip() if found else platform.machine(), cores())


def has_bf16() -> bool:
    """Does the processor multiply bfloat16 by itself?"""
    return bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", _text("/proc/cpuinfo")))


def peak_memory() -> int:
    """Peak resident memory of this process, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_memory(path: str = "/proc/meminfo") -> float:
    """Bytes that programs may still take, by the kernel's estimate and, in a control group, by its limit; inf if unknown."""
    found = [math.inf]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found.append(1024 * int(re.search(r"^MemAvailable:\s*(\d+) kB", _text(path), re.MULTILINE).group(1)))  # type: ignore
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(_text(os.path.join("/sys/fs/cgroup", limit))) - int(_text(os.path.join("/sys/fs/cgroup", used))))
    return max(0, min(found))


def workers_that_fit(wanted: int, nbytes: int) -> int:
    """At most `wanted` processes, and at least one, whose tensors of `nbytes` take no more than half of the free memory."""
    return max(1, int(min(wanted, free_memory() / 2 // nbytes)))


def keep_freed_memory(most: int = 1 << 26) -> None:
    """Have malloc keep up to `most` freed bytes: frames come and go, and giving their pages back each time costs 13 %."""
    with contextlib.suppress(AttributeError):  # glibc only
        for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            _LIBC.mallopt(parameter, most)

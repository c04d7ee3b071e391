"""What a command does to the world outside, as strace sees it: connections, and files made, changed or removed."""

import os
import re
import shutil
import subprocess

CALLS = "connect,sendto,sendmsg,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,symlink," \
        "symlinkat,link,linkat,truncate,chmod,fchmodat"
READS = re.compile(r"open(at)?\((?!.*(O_WRONLY|O_RDWR|O_CREAT|O_TRUNC))")


def works():
    """Is strace installed, and allowed to trace?"""
    return bool(shutil.which("strace")) and subprocess.run(["strace", "-f", "-o", os.devnull, "true"]).returncode == 0


def strace(log):
    """The beginning of a command line that traces what follows into `log`."""
    return ["strace", "-f", "-qq", "--seccomp-bpf", "-e", "signal=none", "-e", "trace=" + CALLS, "-o", str(log)]


def _calls(log):
    """The system calls that did not fail, each a line; one that another thread interrupted counts as not failed."""
    for line in log.read_text(errors="replace").splitlines():
        call = line.split(None, 1)[-1]
        if not call.startswith("<...") and not re.search(r"= -1 E\w+ \(.*\)$", call):
            yield call


def connections(log):
    """The calls that reach for a network, failed ones too."""
    return [line for line in log.read_text(errors="replace").splitlines() if "AF_INET" in line]


def changed(log, cwd):
    """Absolute paths that were made, changed or removed."""
    paths = set()
    for call in _calls(log):
        if not READS.match(call) and not call.startswith(("connect", "send")):
            for path in re.findall(r'"((?:[^"\\]|\\.)*)"', call):
                paths.add(os.path.normpath(os.path.join(str(cwd), path)))
    return paths


def outside(log, folder, cwd=None):
    """Those of changed() that are neither in the folder, where the command ran if not in `cwd`, nor a device or shared memory."""
    allowed = (str(folder), "/dev/null", "/dev/tty", "/dev/shm")
    return sorted(path for path in changed(log, cwd or folder)
                  if not any(path == place or path.startswith(place + os.sep) for place in allowed))

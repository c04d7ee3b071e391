"""An Atlas host: the name of its chips, for atc's --soc_version, and a work folder as ais_bench wants it.

The name is what `npu-smi info` lists (310P3, 910B4-1, Ascend910). The preparation is for the ais_bench of December 2025 and
newer, which refuses what others could have written: models and inputs that the group or others may write, results that others
may read, symbolic links. Modes are mended; what cannot be mended is refused here, before hours of work are done.
"""

import contextlib
import glob
import os
import re
import shutil
import stat
import subprocess
import sys
from typing import Dict, List, Optional, Tuple

from tsm.cli import UserError, first_line
from tsm.workfolder import BINS, COMPILED, RESULTS

ANSWERS_WITHIN = 60  # seconds that npu-smi may take
NAME_IT = "name the chip, as in --chip 310P3"
IN_A_CONTAINER = ("in a container, mount the devices (/dev/davinci*, /dev/davinci_manager, /dev/devmm_svm, /dev/hisi_hdc) and "
                  "the driver (/usr/local/Ascend/driver, /usr/local/dcmi); or " + NAME_IT)
OUTPUTS = os.path.dirname(RESULTS), RESULTS
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def atc_options(config: str = "", precision_mode: Optional[str] = None, precision_mode_v2: Optional[str] = None) -> List[str]:
    """What atc is told beside the model, the chip and the log: the input's layout, or an AIPP config's, and how it rounds."""
    words = ["--input_format=ND"]
    if config:
        words = ["--input_format=NCHW", "--insert_op_conf=" + config, "--enable_small_channel=1"]
    modes = (("--precision_mode", precision_mode), ("--precision_mode_v2", precision_mode_v2))
    return words + ["%s=%s" % mode for mode in modes if mode[1]]


def toolkits(bases: List[str]) -> List[str]:
    """The set_env.sh of every CANN in these folders and in this interpreter's packages, where pip puts it, the newest first."""
    found: Dict[str, str] = {}
    for base in bases + [os.path.join(place, "ascend") for place in sys.path if place.endswith("-packages")]:
        for name in ("ascend-toolkit", "cann", "cann-*"):
            for path in sorted(glob.glob(os.path.join(glob.escape(base), name, "set_env.sh"))):
                found.setdefault(os.path.realpath(path), path)

    def version(item: Tuple[str, str]) -> Tuple[List[int], bool]:
        name = (re.findall(r"/cann-([^/]+)/", item[0]) or [""])[-1]
        return [int(number) for number in re.findall(r"\d+", name.split("RC")[0])], "RC" not in name

    return [path for _, path in sorted(found.items(), key=version, reverse=True)]


def cann_version() -> str:
    """The version of the CANN whose atc is on the PATH, as its files say it; unknown where they do not."""
    folder = os.path.dirname(os.path.realpath(shutil.which("atc") or "/"))
    for _ in range(4):
        for name in ("version.info", "ascend_toolkit_install.info", "version.cfg"):
            with contextlib.suppress(OSError), open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
                match = re.search(r"version\s*=\s*\[?([\w.]+)", file.read(), re.IGNORECASE)
                if match:
                    return match.group(1)
        folder = os.path.dirname(folder)
    return "unknown"


def remedy(said: str) -> str:
    """What to do where atc says that it has no kernels, or ais_bench that tensors do not fit; empty where neither does."""
    if re.search(r"\bEZ3003\b|No supported Ops kernel", said):
        return ("; from CANN 8.5 on, a chip's kernels are a package of their own, for a 310P3 Ascend-cann-310p-ops: install the one of "
                "your chip and CANN")
    unfit = re.search(r"save out files error|tensorsize: *\d+ filesize: *\d+ not match", said)
    return "; tensors and model are not of one kind: give both the same protocol, and the same --dtype" if unfit else ""


def why_it_failed(said: str) -> str:
    """The last error in what atc or ais_bench printed, or its last line, on one line; and the remedy, where there is one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it said nothing"]
    marked = [line for line in lines if re.match(r"E[A-Z]?\d{4,}|.*(\[ERROR\]|\berror:)", line)]
    return first_line((marked or lines)[-1]) + remedy(said)


def check_path(folder: str) -> None:
    """Raises UserError if ais_bench takes no path in this folder: it knows A-Z a-z 0-9 _ - / . and nothing else."""
    odd = sorted(set(re.sub("[A-Za-z0-9_/.-]", "", folder)))
    if odd:
        raise UserError("%s: ais_bench takes no path with %s in it, only A-Z a-z 0-9 _ - / .; choose another folder, with "
                        "--work_dir" % (folder, " ".join("'%s'" % character for character in odd)))


def prepare(folder: str) -> None:
    """Take the rights away that ais_bench does not tolerate on models, tensors and results that `folder` already has.
    Raises UserError for a symbolic link, the file of another user, and rights that cannot be changed."""
    patterns = (COMPILED, *OUTPUTS, os.path.join("*", BINS), os.path.join("*", BINS, "*.bin"))
    for path in (path for pattern in patterns for path in glob.glob(os.path.join(glob.escape(folder), pattern))):
        refused = OTHERS_WRITE | stat.S_IRWXO if os.path.relpath(path, folder) in OUTPUTS else OTHERS_WRITE
        found, wrong = os.lstat(path), ""
        if stat.S_ISLNK(found.st_mode):
            wrong = "is a symbolic link"
        elif found.st_uid != os.geteuid() and found.st_gid not in os.getgroups():
            wrong = "belongs to another user and group"
        elif found.st_mode & refused:
            try:
                os.chmod(path, stat.S_IMODE(found.st_mode) & ~refused)
            except OSError as error:
                wrong = "has the mode %o, which cannot be changed (%s)" % (stat.S_IMODE(found.st_mode), error.strerror)
        if wrong:
            raise UserError("%s: %s, so ais_bench refuses it; remove it or choose another folder, with --work_dir" % (path, wrong))


def devices(listing: str) -> List[int]:
    """The devices, as ais_bench counts them, of the chips in the output of `npu-smi info`, in its order."""
    return [place if device is None else device for place, (_, device) in enumerate(chips_in(listing))]


def chips_in(listing: str) -> List[Tuple[str, Optional[int]]]:
    """(name, device) of each chip in the output of `npu-smi info`; None where the listing numbers no devices.

    Two rows describe a chip: `| NPU  Name | Health | …` and `| Chip  Device | Bus-Id | …`, in which health and bus id
    may be anything, also `-` and NA. The first follows a rule or the second row of the chip before; the table of
    processes, whose rows look alike, comes last and is not read.
    """
    found: List[Tuple[str, Optional[int]]] = []
    name, name_is_next = "", True
    for line in map(str.strip, listing.splitlines()):
        if line.startswith("+"):
            name_is_next = True
        elif re.search(r"\bProcess\b", line):
            break
        row = re.match(r"\|\s*\d+(?:\s+([\w.-]+))?\s*\|", line)
        if row and name_is_next:
            name, name_is_next = row.group(1) or "", False
            if name:
                found.append((name, None))
        elif row:
            device = row.group(1) or ""
            if name and device.isdigit():
                found[-1] = name, int(device)
            name_is_next = True
    return found


def smi_info() -> str:
    """What `npu-smi info` prints. Raises UserError with its own words if it fails."""
    try:
        done = subprocess.run(["npu-smi", "info"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=ANSWERS_WITHIN)
        said = done.stdout.decode("utf-8", "replace")
        if not done.returncode:
            return said
        wrong = " info: failed with status %d and said %s; check the driver; %s" % (done.returncode, own_words(said), IN_A_CONTAINER)
    except subprocess.TimeoutExpired:
        wrong = " info: no answer in %d s; check the driver, or %s" % (ANSWERS_WITHIN, NAME_IT)
    except FileNotFoundError:
        wrong = ": not found; it comes with the Ascend driver; or %s" % NAME_IT
    raise UserError("npu-smi" + wrong)


def own_words(text: str) -> str:
    """What npu-smi printed beside its tables, in quotes and at most 200 characters; or "nothing"."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and line.strip()[0] not in "+|"]
    return "'%s'" % "; ".join(lines)[:200] if lines else "nothing"


def the_chip(text: str) -> str:
    """The one name that all chips of a listing have. Raises UserError if it has no chip, or chips of differing names."""
    names = sorted({name for name, _ in chips_in(text)})
    if len(names) == 1:
        return names[0]
    raise UserError("npu-smi info: lists " + (
        "chips of different names (%s); choose one: --chip NAME" % " ".join(names) if names else
        "no chip and said %s; check the driver; %s" % (own_words(text), IN_A_CONTAINER)))

"""Files that are either whole or not there: atomic writing, checksums, locks, natural order, JSON, and seals on files of our own."""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import math
import os
import re
import sys
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple, Union

from tsm.cli import UserError, first_line, warn

CHUNK = 1 << 20  # bytes read at a time when a file is hashed
LOCK = ".lock"  # in a folder that only one run may work in
KINDS = {  # of sealed values: the format, to be raised when what a key means changes, and who writes them
    "report": (5, "TSM_report.py"), "accuracy": (1, "TSM_postprocess.py --json"), "agreement": (1, "TSM_compare.py --agreement"),
    "manifest": (1, "TSM_preprocess.py"), "stages": (1, "run_all.sh"), "run": (2, "run_all.sh"), "inference": (1, "TSM_infer.py"),
    "curve": (1, "TSM_stream.py --curve"), "tune": (1, "run_all.sh --tune"),
}
SEAL = ("kind", "format", "digest")


def part_name(path: str) -> str:
    """The name a file has while it is being written: beside the final one, hidden, and always the same, so that the
    next run overwrites what a killed one left behind."""
    folder, name = os.path.split(path)
    return os.path.join(folder, ".%s.part" % name)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """Yield a temporary name beside `path`; move it to `path` when the block ends well, remove it when it does not."""
    part = part_name(path)
    try:
        yield part
        os.replace(part, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(part)
        if isinstance(error, OSError) and error.filename in (None, part):  # name the file the user knows
            error.filename = path
        raise


def read_text(path: str) -> str:
    """The text of a UTF-8 file, with or without a byte order mark. Raises: UserError where it is not UTF-8."""
    with open(path, "rb") as file:
        raw = file.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16 without a byte order mark has them
        raise UserError("%s: not UTF-8 text; save it as UTF-8" % path)
    return text


def write_text(path: str, text: Iterable[str]) -> None:
    """Write `text`, or its pieces, as UTF-8, whole or not at all; names of files that are not UTF-8 keep their bytes.
    To `-` it is printed."""
    pieces = [text] if isinstance(text, str) else text
    if path == "-":
        for piece in pieces:
            print(piece, end="", file=sys.__stdout__)
        print(end="", file=sys.__stdout__, flush=True)
        return
    with replacing(path) as part, open(part, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        file.writelines(pieces)


def sealed(value: Dict[str, Any], kind: str) -> Dict[str, Any]:
    """`value` behind its kind, its format (KINDS) and a digest of the rest: what a damaged or edited file does not have."""
    digest = hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()
    return dict(zip(SEAL, (kind, KINDS[kind][0], digest)), **value)


def unsealed(value: Any, kind: str) -> Optional[Dict[str, Any]]:
    """What sealed() was given; None where `value` is anything else, or was changed since."""
    if not isinstance(value, dict):
        return None
    rest = {key: item for key, item in value.items() if key not in SEAL}
    return rest if value == sealed(rest, kind) else None


def write_json(path: str, value: Any, kind: str = "") -> None:
    """Write `value` as JSON (no NaN, keys in the order given), whole or not at all; a dict of a `kind` is sealed, a line per key."""
    if not kind:
        return write_text(path, itertools.chain(json.JSONEncoder(indent=1, allow_nan=False).iterencode(value), "\n"))
    lines = ["%s: %s" % (json.dumps(key), json.dumps(item, allow_nan=False)) for key, item in sealed(value, kind).items()]
    write_text(path, "{\n%s\n}\n" % ",\n".join(lines))


def read_json(path: str, kind: str = "") -> Any:
    """The JSON value in `path`; of a `kind`, what was sealed. Raises UserError where it is not JSON in UTF-8, has a
    number that is not finite, or is not as this version seals that kind."""
    text = read_text(path)
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_finite_int)
        rest = unsealed(value, kind) if kind else value
    except (ValueError, RecursionError) as error:
        raise UserError("%s: not JSON (%s); make it again" % (path, error))
    if rest is None and kind:
        raise UserError("%s: was not written by this version's %s, or was changed since; make it again" % (path, KINDS[kind][1]))
    return rest


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("%s is not a finite number" % first_line(text, 40))
    return value


def _finite_int(text: str) -> int:
    _finite(text)
    return int(text)


def sha256(path: str) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(CHUNK), b""):
            digest.update(piece)
    return digest.hexdigest()


def natural(name: str) -> List[Tuple[int, Union[int, str]]]:
    """Sort key: digits by value, letters without case (0, 1, 2, …, 10), the order ais_bench reads a folder in."""
    words = enumerate(re.split("([0-9]+)", name))  # every second one is a number
    return [(0, int(word)) if place % 2 else (1, word.lower()) for place, word in words]


@contextlib.contextmanager
def locked(folder: str, shared: bool = False) -> Iterator[None]:
    """Hold `folder` for this process, or with others that share it; raises UserError at once where another run holds it.

    The lock is on the file .lock in the folder (flock), which is empty and stays: the lock ends with the process. It is
    opened for writing, which NFS wants. A file system without locks gets a warning, and the run goes on.
    """
    descriptor = _open_lock(folder)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError("%s: another run is at work in this folder; wait for it or choose another" % folder)
            warn("%s: cannot be locked (%s); let no second run work in this folder" % (folder, error.strerror))
        yield
    finally:
        os.close(descriptor)


def _open_lock(folder: str) -> int:
    path = os.path.join(folder, LOCK)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.EACCES and os.path.exists(path):  # another user made it in a shared folder
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        error.filename = folder
        raise

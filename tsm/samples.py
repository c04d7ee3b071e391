"""What names the videos between scripts: annotation lists, the info file, the manifest. Each is read and written here only."""

import hashlib
import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, TypeVar

import numpy as np

from tsm.cli import UserError
from tsm.files import read_json
from tsm.protocol import SSV2

CLASSES = SSV2.classes
INFO, MANIFEST = "sthv2.info", "sthv2.json"  # names in a preprocessing folder, whatever the dataset (the guide's)
Item = TypeVar("Item")


def evenly(items: Sequence[Item], most: int) -> List[Item]:
    """At most `most` of the items, evenly over all of them."""
    return [items[number * len(items) // most] for number in range(most)] if len(items) > most else list(items)


class Clip(NamedTuple):
    """A line of an annotation list: `source` is a video file, or a folder of `frames` frames, under the data root."""

    line: int
    source: str
    frames: Optional[int]  # None for a video
    label: int


def read_list(path: str) -> List[Clip]:
    """The clips of an annotation list, `<file> <label>` or `<folder> <frames> <label>` per line, in its order.

    Empty lines do not count. Raises UserError naming file and line for anything else, a label that is no class, and a
    source outside the data root.
    """
    clips = []  # type: List[Clip]
    width = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            words = raw.lstrip(b"\xef\xbb\xbf").split() if number == 1 else raw.split()
            if not words:
                continue
            where = "%s, line %d" % (path, number)
            width = width or len(words)
            if len(words) != width or width not in (2, 3) or not all(_is_count(word) for word in words[1:]):
                raise UserError("%s: expected '%s', found %r; mend the line"
                                % (where, _COLUMNS.get(width, _ANY_COLUMNS), raw[:80]))
            source, label = os.fsdecode(words[0]), int(words[-1])
            if label >= CLASSES:
                raise UserError("%s: label %d is not one of the %d classes; mend the line"
                                % (where, label, CLASSES))
            if os.path.isabs(source) or ".." in source.split(os.sep) or "\0" in source:
                raise UserError("%s: %s is not a path inside the data root; mend the line" % (where, source))
            if width == 3 and not int(words[1]):
                raise UserError("%s: a clip of 0 frames; take the line out" % where)
            clips.append(Clip(number, source, int(words[1]) if width == 3 else None, label))
    if not clips:
        raise UserError("%s: no videos in it; make it with TSM_dataset.py" % path)
    return clips


_COLUMNS = {2: "<file> <label>", 3: "<folder> <frames> <label>"}
_ANY_COLUMNS = "' or '".join(_COLUMNS.values())


def _is_count(word: bytes) -> bool:
    return word.isdigit() and len(word) < 7


def read_info(path: str) -> Dict[int, int]:
    """sthv2.info -> {index: label}. One line per video, `<index> <label>`; raises UserError naming file and line."""
    labels = {}  # type: Dict[int, int]
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            words = line.split()
            where = "%s, line %d" % (path, number)
            if not words:
                continue
            if len(words) != 2 or not all(word.isdigit() and len(word) < 10 for word in words):
                raise UserError("%s: expected '<index> <label>', found %r" % (where, line[:80]))
            index, label = int(words[0]), int(words[1])
            if label >= CLASSES:
                raise UserError("%s: label %d is not one of the %d classes" % (where, label, CLASSES))
            if index in labels:
                raise UserError("%s: index %d stands there twice" % (where, index))
            labels[index] = label
    if not labels:
        raise UserError("%s: no videos in it; run TSM_preprocess.py first" % path)
    return labels


def manifest_path(info_path: str) -> str:
    """sthv2/sthv2.info -> sthv2/sthv2.json, the manifest beside it."""
    return os.path.splitext(info_path)[0] + ".json"


def manifest_beside(folder: str) -> str:
    """sthv2/preprocess_bin -> sthv2/sthv2.json, the manifest of a folder of tensors."""
    return os.path.join(os.path.dirname(os.path.abspath(folder)), MANIFEST)


def read_manifest(path: str) -> Dict[str, Any]:
    """The manifest of TSM_preprocess.py (sthv2.json); UserError where it is something else."""
    manifest = read_json(path)
    try:
        for entry in manifest["samples"]:
            if not (isinstance(entry["id"], int) and isinstance(entry["bytes"], int)):
                raise TypeError
            os.path.basename(entry["file"]) + entry["sha256"] + entry["source"]
        manifest["protocol"]["dtype"], manifest["versions"], len(manifest["skipped"])
    except (KeyError, TypeError, AttributeError):
        raise UserError("%s: not a manifest of TSM_preprocess.py; run it again" % path)
    return manifest


def check_folder(manifest: Dict[str, Any], folder: str, manifest_file: str) -> None:
    """UserError that names the first .bin file of `folder` that the manifest has not, or the other way round."""
    listed = {os.path.basename(entry["file"]) for entry in manifest["samples"]}
    there = {name for name in os.listdir(folder) if name.endswith(".bin") and not name.startswith(".")}
    for names, what in ((there - listed, "is not in"), (listed - there, "is missing, though it is in")):
        if names:
            raise UserError("%s %s %s; run TSM_preprocess.py again"
                            % (os.path.join(folder, min(names)), what, manifest_file))


def check_tensor(entry: Dict[str, Any], data: np.ndarray, path: str) -> None:
    """UserError unless `data` has the length and the SHA-256 that the manifest's entry gives."""
    if data.nbytes != entry["bytes"]:
        raise UserError("%s: %d bytes instead of %d; run TSM_preprocess.py again" % (path, data.nbytes, entry["bytes"]))
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise UserError("%s: its checksum is not the manifest's: it was changed; run TSM_preprocess.py again" % path)

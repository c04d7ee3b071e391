"""What names the videos between scripts: annotation lists, the info file, the manifest. Each is read and written here only."""

import os
import re
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence

import numpy as np
import xxhash

from tsm import __version__
from tsm.cli import Corrupt, Killed, UserError
from tsm.files import read_json, sha256, write_json, write_text
from tsm.protocol import Protocol
from tsm.workfolder import BINS, INFO, MANIFEST

VIDEO_LINE, FOLDER_LINE = r"(.*\S)\s+(\d{1,6})$", r"(.*\S)\s+(\d{1,6})\s+(\d{1,6})$"  # of a list; ASCII, as its bytes are matched
_VIDEO_LINE, _FOLDER_LINE = (re.compile(line.encode(), re.DOTALL) for line in (VIDEO_LINE, FOLDER_LINE))
TENSOR_BYTES = 20 * 10**9  # of a list's tensors on a disk at a time, unless the user says otherwise


def evenly(items: Sequence[Any], most: int) -> List[Any]:
    """At most `most` of the items, evenly over all of them."""
    return [items[number * len(items) // most] for number in range(most)] if len(items) > most else list(items)


def stratified(answers: Mapping[int, int], most: int) -> List[int]:
    """At most `most` of the videos whose answers these are, in order: of each class its share."""
    return sorted(evenly(sorted(answers, key=lambda index: (answers[index], index)), most))


class Clip(NamedTuple):
    """A line of an annotation list: `source` is a video file, or a folder of `frames` frames, under the data root."""

    line: int
    source: str
    frames: Optional[int]  # None for a video
    label: int


def read_list(path: str, protocol: Protocol, data_root: str = "") -> List[Clip]:
    """The clips of an annotation list, in its order: `<file> <label>`, or `<folder> <frames> <label>`, per line.

    Names may hold spaces: the label is the last word. The first line decides for the whole list: if a number stands before
    its label, with a name before that, it is a list of folders, and else of videos. Empty lines do not count. An absolute
    name becomes a relative one if it lies under `data_root`. Raises UserError that names file and line for anything else,
    a label that is no class, and a source outside the data root.
    """
    roots = {os.path.abspath(data_root), os.path.realpath(data_root)} if data_root else set()
    clips: List[Clip] = []
    of_folders = None
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            line = (raw[3:] if number == 1 and raw.startswith(b"\xef\xbb\xbf") else raw).strip()
            if not line:
                continue
            if of_folders is None:
                of_folders = bool(_FOLDER_LINE.match(line))
            match = (_FOLDER_LINE if of_folders else _VIDEO_LINE).match(line)
            name, *counts = match.groups() if match else (b"", b"0", b"0")
            source, frames, label = _under(roots, os.fsdecode(name)), int(counts[0]) if of_folders else None, int(counts[-1])
            wrong = ""
            if not match or frames == 0:
                wrong = "expected '%s'%s, found %r" % ("<folder> <frames> <label>" if of_folders else "<file> <label>",
                                                       "" if clips else " or '<folder> <frames> <label>'", raw[:80])
            elif label >= protocol.classes:
                wrong = "label %d is not one of the %d classes" % (label, protocol.classes)
            elif not source:
                wrong = "%s does not lie under the folder that --data_root names" % os.fsdecode(name)
            if wrong:
                raise UserError("%s, line %d: %s; mend the line" % (path, number, wrong))
            clips.append(Clip(number, source, frames, label))
    if not clips:
        raise UserError("%s: no videos in it; make it with TSM_dataset.py" % path)
    return clips


def _under(roots: Iterable[str], source: str) -> str:
    """A list's name for a clip as a path relative to the data root; empty where it leads outside."""
    if "\0" in source or ".." in source.split(os.sep):
        return ""
    inside = [os.path.relpath(source, root) for root in roots if source.startswith(os.path.join(root, ""))]
    return next(iter(inside), "") if os.path.isabs(source) else source


def chunk_size(videos: int, dtype: str, at_once: int, protocol: Protocol) -> int:
    """Videos per chunk of a list so that the tensors of `at_once` chunks stay under TENSOR_BYTES; 0 if all of the list's do."""
    fit = TENSOR_BYTES // protocol.nbytes(dtype)
    return 0 if videos <= fit else max(1, fit // at_once)


def refuse(ann_file: str, clips: Mapping[int, Clip], corrupt: Mapping[int, Corrupt]) -> None:
    """UserError that names the first of the clips that cannot be read, if there is one."""
    if corrupt:
        first = min(corrupt)
        remedy = "" if isinstance(corrupt[first], Killed) else "; mend the clip or its line, or leave it out by --on_error skip"
        raise UserError("%s, line %d: %s: %s%s" % (ann_file, clips[first].line, clips[first].source, corrupt[first], remedy))


def refuse_killed(ann_file: str, clips: Mapping[int, Clip], corrupt: Mapping[int, Corrupt]) -> None:
    """refuse(), of those alone whose decoder was killed: with --on_error skip too they are not left out, but tried again."""
    refuse(ann_file, clips, {index: error for index, error in corrupt.items() if isinstance(error, Killed)})


def check_readable(ann_file: str, clips: Mapping[int, Clip], corrupt: Mapping[int, Corrupt], read: int) -> None:
    """UserError, with the first reason, if none of the clips could be `read`."""
    if not read:
        first = min(corrupt)
        raise UserError("%s: none of its %d clips could be read (line %d: %s)"
                        % (ann_file, len(clips), clips[first].line, corrupt[first]))


def check_data_root(data_root: str) -> None:
    """UserError unless the folder of the videos exists."""
    if not os.path.isdir(data_root):
        raise UserError("%s: no such folder; --data_root is the folder that the list's paths start from" % data_root)


def publish(folder: str, manifest: Dict[str, Any]) -> None:
    """Write the info file and, last, the sealed manifest of a list to a folder, each whole or not at all; the clips that were left out
    are printed."""
    write_text(os.path.join(folder, INFO), "".join("%(id)d %(label)d\n" % sample for sample in manifest["samples"]))
    write_json(os.path.join(folder, MANIFEST), manifest, "manifest")
    for clip in manifest["skipped"]:
        print("skipped: line %(line)d, %(source)s: %(reason)s" % clip)


def read_info(path: str, classes: int) -> Dict[int, int]:
    """sthv2.info -> {index: label}. One line per video, `<index> <label>`; raises UserError naming file and line."""
    labels: Dict[int, int] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            words = line.split()
            if not words:
                continue
            whole = len(words) == 2 and all(word.isdigit() and len(word) < 10 for word in words)
            index, label = map(int, words) if whole else (0, classes)
            if label >= classes or index in labels:
                raise UserError("%s, line %d: expected '<index> <label>', an index of its own and one of %d classes, found %r; run "
                                "TSM_preprocess.py again" % (path, number, classes, line[:80]))
            labels[index] = label
    if not labels:
        raise UserError("%s: no videos in it; run TSM_preprocess.py first" % path)
    return labels


def manifest_path(info_path: str) -> str:
    """sthv2/sthv2.info -> sthv2/sthv2.json, the manifest beside it."""
    return os.path.splitext(info_path)[0] + ".json"


def checksum(data: Any) -> str:
    """Hex XXH3-128 of bytes or of a contiguous array: against accidents, not against forgers."""
    return xxhash.xxh3_128_hexdigest(memoryview(data).cast("B"))


def manifest_of(
    ann_file: str, clips: Mapping[int, Clip], protocol: Protocol, dtype: str, versions: Mapping[str, str],
    checksums: Mapping[int, str], skipped: Mapping[int, object],
) -> Dict[str, Any]:
    """The manifest of a list: its protocol and form, the decoders' versions, an entry for each of the tensors that have
    `checksums`, and which of the `clips` were `skipped`, and why; all by index in the list.
    protocol_from(manifest["protocol"], path) is its protocol, manifest["protocol"]["dtype"] the tensors' type."""
    last = dtype == "uint8_nhwc"
    shape = [protocol.frames, protocol.size, protocol.size, 3] if last else list(protocol.video_shape)
    return {
        "protocol": dict(protocol._asdict(), dtype=dtype, layout="NHWC" if last else "NCHW", shape=shape),
        "versions": dict(versions, tsm=__version__),
        "list": {"file": os.path.basename(ann_file), "sha256": sha256(ann_file), "videos": len(clips)},
        "samples": [
            {"id": index, "source": clips[index].source, "label": clips[index].label, "file": "%s/%d.bin" % (BINS, index),
             "bytes": protocol.nbytes(dtype), "xxh3_128": checksums[index]}
            for index in sorted(checksums)
        ],
        "skipped": [
            {"line": clips[index].line, "source": clips[index].source, "reason": str(skipped[index])}
            for index in sorted(skipped)
        ],
    }


def read_manifest(path: str) -> Dict[str, Any]:
    """The manifest in `path`, as manifest_of() makes it; UserError where it is something else."""
    return dict(read_json(path, "manifest"))


def check_tensor(entry: Mapping[str, Any], data: np.ndarray, path: str) -> None:
    """UserError unless `data` has the length and the checksum that the manifest's entry gives."""
    if data.nbytes != entry["bytes"] or checksum(data) != entry["xxh3_128"]:
        raise UserError("%s: its checksum is not the manifest's: it was changed; run TSM_preprocess.py again" % path)

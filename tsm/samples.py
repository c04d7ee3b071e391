"""What names the videos between scripts: annotation lists, the info file, the manifest. Each is read and written here only."""

import os
import re
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, TypeVar

import numpy as np
import xxhash

from tsm import __version__
from tsm.cli import Corrupt, Killed, UserError
from tsm.files import read_json, sha256, write_json, write_text
from tsm.protocol import TENSORS, Protocol, protocol_from
from tsm.workfolder import BINS, INFO, MANIFEST

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
            where = "%s, line %d" % (path, number)
            if of_folders is None:
                of_folders = bool(_FOLDER_LINE.match(line))
            match = (_FOLDER_LINE if of_folders else _VIDEO_LINE).match(line)
            if not match or of_folders and not int(match.group(2)):
                raise UserError("%s: expected '%s'%s, found %r; mend the line"
                                % (where, "<folder> <frames> <label>" if of_folders else "<file> <label>",
                                   "" if clips else " or '<folder> <frames> <label>'", raw[:80]))
            name, *counts = match.groups()
            numbers = [int(count) for count in counts]
            if numbers[-1] >= protocol.classes:
                raise UserError("%s: label %d is not one of the %d classes; mend the line"
                                % (where, numbers[-1], protocol.classes))
            source = _under(roots, os.fsdecode(name), where)
            clips.append(Clip(number, source, numbers[0] if of_folders else None, numbers[-1]))
    if not clips:
        raise UserError("%s: no videos in it; make it with TSM_dataset.py" % path)
    return clips


VIDEO_LINE, FOLDER_LINE = r"(.*\S)\s+(\d{1,6})$", r"(.*\S)\s+(\d{1,6})\s+(\d{1,6})$"  # of a list; ASCII, as its bytes are matched
_VIDEO_LINE, _FOLDER_LINE = (re.compile(line.encode(), re.DOTALL) for line in (VIDEO_LINE, FOLDER_LINE))


def _under(roots: Iterable[str], source: str, where: str) -> str:
    """A list's name for a clip as a path relative to the data root; UserError where it leads outside."""
    inside = "\0" not in source and ".." not in source.split(os.sep)
    if inside and not os.path.isabs(source):
        return source
    for root in roots if inside else ():
        if source.startswith(os.path.join(root, "")):
            return os.path.relpath(source, root)
    raise UserError("%s: %s does not lie under the data root; mend the line, or name the folder that it starts from by --data_root"
                    % (where, source))


TENSOR_BYTES = 20 * 10**9  # of a list's tensors on a disk at a time, unless the user says otherwise


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


def publish(
    folder: str, ann_file: str, clips: Mapping[int, Clip], protocol: Protocol, dtype: str, versions: Mapping[str, str],
    checksums: Mapping[int, str], skipped: Mapping[int, object],
) -> None:
    """Write the info file and, last, the manifest of a list to a folder; the arguments are manifest_of()'s."""
    write_info(os.path.join(folder, INFO), {index: clips[index].label for index in checksums})
    write_manifest(os.path.join(folder, MANIFEST), manifest_of(ann_file, clips, protocol, dtype, versions, checksums, skipped))


def print_skipped(clips: Mapping[int, Clip], skipped: Mapping[int, object]) -> None:
    """Print a line for each clip that was left out."""
    for index in sorted(skipped):
        print("skipped: line %d, %s: %s" % (clips[index].line, clips[index].source, skipped[index]))


def read_info(path: str, classes: int) -> Dict[int, int]:
    """sthv2.info -> {index: label}. One line per video, `<index> <label>`; raises UserError naming file and line."""
    labels: Dict[int, int] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            words = line.split()
            where = "%s, line %d" % (path, number)
            if not words:
                continue
            whole = len(words) == 2 and all(word.isdigit() and len(word) < 10 for word in words)
            index, label = map(int, words) if whole else (0, classes)
            if label >= classes or index in labels:
                raise UserError("%s: expected '<index> <label>', an index of its own and one of %d classes, found %r; run "
                                "TSM_preprocess.py again" % (where, classes, line[:80]))
            labels[index] = label
    if not labels:
        raise UserError("%s: no videos in it; run TSM_preprocess.py first" % path)
    return labels


def write_info(path: str, labels: Mapping[int, int]) -> None:
    """sthv2.info of {index: label}, by index; whole or not at all."""
    write_text(path, "".join("%d %d\n" % (index, labels[index]) for index in sorted(labels)))


def manifest_path(info_path: str) -> str:
    """sthv2/sthv2.info -> sthv2/sthv2.json, the manifest beside it."""
    return os.path.splitext(info_path)[0] + ".json"


def manifest_beside(folder: str) -> str:
    """sthv2/preprocess_bin -> sthv2/sthv2.json, the manifest of a folder of tensors."""
    return os.path.join(os.path.dirname(os.path.abspath(folder)), MANIFEST)


def checksum(data: Any) -> str:
    """Hex XXH3-128 of bytes or of a contiguous array: against accidents, not against forgers."""
    return xxhash.xxh3_128_hexdigest(memoryview(data).cast("B"))


def manifest_of(
    ann_file: str, clips: Mapping[int, Clip], protocol: Protocol, dtype: str, versions: Mapping[str, str],
    checksums: Mapping[int, str], skipped: Mapping[int, object],
) -> Dict[str, Any]:
    """The manifest of a list: its protocol and form, what made it, one entry per tensor, and what was left out and why.

    Args:
        clips: all clips of the list, by index.
        versions: of the decoders.
        checksums: of the tensors that exist, by index.
        skipped: why a clip has none, by index.
    """
    return {
        "protocol": dict(protocol._asdict(), dtype=dtype, **_layout(dtype, protocol)),
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


def _layout(dtype: str, protocol: Protocol) -> Dict[str, Any]:
    """The order of a tensor's axes, and their sizes."""
    last = dtype == "uint8_nhwc"
    shape = [protocol.frames, protocol.size, protocol.size, 3] if last else list(protocol.video_shape)
    return {"layout": "NHWC" if last else "NCHW", "shape": shape}


def write_manifest(path: str, manifest: Dict[str, Any]) -> None:
    """The manifest as JSON, sealed, whole or not at all."""
    write_json(path, manifest, "manifest")


def read_manifest(path: str) -> Dict[str, Any]:
    """The manifest in `path`, as manifest_of() makes it; UserError where it is something else.

    protocol_from(manifest["protocol"], path) is its protocol, manifest["protocol"]["dtype"] the tensors' type. Manifests of versions
    that did not seal them are taken: days of decoding may stand behind one.
    """
    manifest = read_json(path, "manifest", older=True)
    try:
        facts = manifest["protocol"]
        protocol, samples, skipped = protocol_from(facts, path), manifest["samples"], manifest["skipped"]
        numbers = [entry[key] for entry in samples for key in ("id", "label", "bytes")] + [manifest["list"]["videos"]]
        texts = [entry[key] for entry in samples for key in ("source", "file", "xxh3_128")]
        texts += [entry[key] for entry in skipped for key in ("source", "reason")] + list(manifest["versions"].values())
        right = (facts["dtype"] in TENSORS and _layout(facts["dtype"], protocol).items() <= facts.items()
                 and type(samples) is type(skipped) is list and {type(number) for number in numbers} == {int}
                 and {type(text) for text in texts} <= {str}
                 and {entry["bytes"] for entry in samples} <= {protocol.nbytes(facts["dtype"])})
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        right = False
    if not right:
        raise UserError("%s: not a manifest of TSM_preprocess.py; run it again" % path)
    return manifest


def check_folder(manifest: Mapping[str, Any], folder: str, manifest_file: str) -> None:
    """UserError that names the first .bin file that is in `folder` but not in the manifest, or the reverse."""
    listed = {os.path.basename(entry["file"]) for entry in manifest["samples"]}
    there = {name for name in os.listdir(folder) if name.endswith(".bin") and not name.startswith(".")}
    for names, what in ((there - listed, "is not in"), (listed - there, "is missing, though it is in")):
        if names:
            raise UserError("%s %s %s; run TSM_preprocess.py again"
                            % (os.path.join(folder, min(names)), what, manifest_file))


def check_tensor(entry: Mapping[str, Any], data: np.ndarray, path: str) -> None:
    """UserError unless `data` has the length and the checksum that the manifest's entry gives."""
    if data.nbytes != entry["bytes"] or checksum(data) != entry["xxh3_128"]:
        raise UserError("%s: its checksum is not the manifest's: it was changed; run TSM_preprocess.py again" % path)

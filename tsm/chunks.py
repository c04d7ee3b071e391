"""A list of videos in chunks: how large they are, what each depends on, which are done, and what all of them make together."""

import hashlib
import json
import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from tsm import __version__
from tsm.cli import Corrupt, UserError
from tsm.clips import fingerprint
from tsm.files import read_json, sha256, write_json
from tsm.frames import Naming
from tsm.protocol import SSV2, Protocol
from tsm.results import merge, read_summary, summary_path, write_summary
from tsm.samples import INFO, MANIFEST, read_list, read_manifest, write_info, write_manifest

RESULTS = "inference_result"
TENSOR_BYTES = 20 * 10**9  # of tensors on disk at a time, unless the user says otherwise
DONE = "done.json"


class Chunk(NamedTuple):
    """Videos start to stop - 1 of the list; `folder` takes its tensors and manifest, `name` is that of its results."""

    start: int
    stop: int
    folder: str
    name: str
    key: str  # digest of everything its results depend on

    @property
    def results(self) -> str:
        """Its folder of results, beside which its summary lies."""
        return os.path.join(RESULTS, self.name)


def chunk_size(videos: int, dtype: str, protocol: Protocol = SSV2) -> int:
    """Videos per chunk so that two chunks' tensors stay under TENSOR_BYTES; 0 if all of them do at once."""
    fit = TENSOR_BYTES // protocol.nbytes(dtype)
    return 0 if videos <= fit else max(1, fit // 2)


def plan(
    ann_file: str, data_root: str, naming: Naming, size: int, folder: str, commands: Sequence[Sequence[str]],
    models: Sequence[str], protocol: Protocol = SSV2,
) -> List[Chunk]:
    """The chunks of the list, `size` videos each, in `folder`.

    A chunk's key covers its videos (size and time of change), the `commands` that do the work, and the bytes of the files
    `models` that they read.
    """
    clips = read_list(ann_file, protocol, data_root)
    basis = json.dumps([list(commands), [sha256(path) for path in models], __version__])
    chunks = []
    for start in range(0, len(clips), size):
        stop = min(start + size, len(clips))
        marks = []
        for clip in clips[start:stop]:
            try:
                marks.append(fingerprint(os.path.join(data_root, clip.source), clip, protocol, basis, naming))
            except Corrupt as error:
                marks.append(str(error))  # preprocessing will name it
        name = "chunk_%d_%d" % (start, stop)
        key = hashlib.sha256("".join(marks).encode()).hexdigest()
        chunks.append(Chunk(start, stop, os.path.join(folder, name), name, key))
    return chunks


def manifest_of(chunk: Chunk) -> Dict[str, Any]:
    """The manifest of a preprocessed chunk."""
    return read_manifest(os.path.join(chunk.folder, MANIFEST))


def is_done(chunk: Chunk) -> bool:
    """Whether the chunk's results exist and were made from what exists now."""
    try:
        return read_json(os.path.join(chunk.folder, DONE)) == {"key": chunk.key, "summary": _results_digest(chunk)}
    except (OSError, UserError):
        return False


def mark_done(chunk: Chunk) -> None:
    """Record that the chunk's results are complete."""
    write_json(os.path.join(chunk.folder, DONE), {"key": chunk.key, "summary": _results_digest(chunk)})


def _results_digest(chunk: Chunk) -> Optional[str]:
    """SHA-256 of the chunk's summary; None if none of its videos could be read, so that it has none."""
    return sha256(summary_path(chunk.results)) if manifest_of(chunk)["samples"] else None


def merge_chunks(chunks: Sequence[Chunk], folder: str, ann_file: str) -> None:
    """Write the manifest, the info file and the summary of all chunks, as an undivided run would have."""
    manifests = [manifest_of(chunk) for chunk in chunks]
    summaries = [read_summary(summary_path(chunk.results)) for chunk, manifest in zip(chunks, manifests) if manifest["samples"]]
    if not summaries:
        skipped = manifests[0]["skipped"][0]
        raise UserError("%s: none of its videos could be read (line %d: %s)" % (ann_file, skipped["line"], skipped["reason"]))
    whole = dict(manifests[0], samples=[], skipped=[])
    for manifest in manifests:
        whole["samples"] += manifest["samples"]
        whole["skipped"] += manifest["skipped"]
    write_manifest(os.path.join(folder, MANIFEST), whole)
    write_info(os.path.join(folder, INFO), {entry["id"]: entry["label"] for entry in whole["samples"]})
    write_summary(os.path.join(RESULTS, "out"), merge(summaries))

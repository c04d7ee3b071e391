"""A list of videos to result files with no tensor on disk: decoded, computed, forgotten; restartable."""

import contextlib
import json
import os
import re
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import numpy as np

from tsm import __version__
from tsm.cli import Corrupt
from tsm.clips import checksum, decoded, fingerprint, versions
from tsm.engine import Engine, score
from tsm.files import sha256, write_text
from tsm.offline import Offline
from tsm.results import read_scores, result_path, write_result
from tsm.samples import Clip

JOURNAL = ".journal"  # in the folder of results
REVISION = 1  # to be raised with any change that changes a result


class Done(NamedTuple):
    """A line of the journal: a result, what it was made from, its tensor's checksum, ms of computing and of waiting."""

    index: int
    key: str
    checksum: str
    compute_ms: float
    wait_ms: float


class Work(NamedTuple):
    """What every video of a streamed list shares."""

    model: Offline
    data_root: str
    folder: str  # of the results
    outfmt: str
    basis: str  # digest of what a result depends on beside its video

    def result(self, index: int) -> str:
        """The result file of a video."""
        return result_path(self.folder, tensor_name(index), self.outfmt)


def tensor_name(index: int) -> str:
    """The name that a video's tensor would have; it names the result, as ais_bench does."""
    return "%d.bin" % index


def basis_of(model: Offline, precision: str, engine: str, files: List[str]) -> str:
    """What results depend on beside the videos: the model and its int8 `files`, precision, back end, decoders, version."""
    return json.dumps([REVISION, __version__, sha256(model.path), precision, engine, [sha256(path) for path in files],
                       versions()])


def read_journal(work: Work) -> Dict[int, Done]:
    """{index: what was done}, the last line per index; a line that a kill cut short does not count."""
    done: Dict[int, Done] = {}
    path = os.path.join(work.folder, JOURNAL)
    if os.path.exists(path):
        with open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                match = re.match(r"(\d+) ([0-9a-f]+) ([0-9a-f]+) ([0-9.]+) ([0-9.]+)\n", line)
                if match:
                    index, key, digest, compute_ms, wait_ms = match.groups()
                    done[int(index)] = Done(int(index), key, digest, float(compute_ms), float(wait_ms))
    return done


def survey(work: Work, clips: Dict[int, Clip]) -> Tuple[Dict[int, Done], Dict[int, str], Dict[int, Corrupt]]:
    """(what is done and still right, {index: key} of what is to be done, what cannot be)."""
    journal = read_journal(work)
    done: Dict[int, Done] = {}
    keys: Dict[int, str] = {}
    corrupt: Dict[int, Corrupt] = {}
    for index, clip in clips.items():
        try:
            key = fingerprint(os.path.join(work.data_root, clip.source), clip, work.model.protocol, work.basis)
        except Corrupt as error:
            corrupt[index] = error
            continue
        old = journal.get(index)
        if old and old.key == key and os.path.exists(work.result(index)):
            done[index] = old
        else:
            keys[index] = key
    return done, keys, corrupt


def compute_list(
    work: Work, engine: Engine, clips: Dict[int, Clip], keys: Dict[int, str], done: Dict[int, Done], workers: int,
    refuse: Callable[[int, Corrupt], None],
) -> Iterator[int]:
    """Compute the videos of `keys`, and yield each one's index once its result is written and journaled.

    The journal begins anew with what is `done` already, and each finished video is added to `done`; one that cannot be
    decoded goes to `refuse`.
    """
    dtype = work.model.dtype.name
    journal_path = os.path.join(work.folder, JOURNAL)
    write_text(journal_path, "".join(map(_line, done.values())))
    checksums: Dict[int, str] = {}

    def videos(results: Iterator[Tuple[int, Any]]) -> Iterator[Tuple[int, Any]]:
        for index, video in results:
            if not isinstance(video, Exception):
                checksums[index] = checksum(video)
                video = video[None]
            yield index, video

    chosen = {index: clips[index] for index in keys}
    with open(journal_path, "a", encoding="ascii") as journal, contextlib.closing(
        decoded(chosen, work.data_root, work.model.protocol, dtype, workers)
    ) as results:
        for index, output, compute_ms, wait_ms in score(engine, work.model, videos(results)):
            if isinstance(output, Corrupt):
                refuse(index, output)
            else:
                write_result(work.result(index), work.outfmt, output[None])
                done[index] = Done(index, keys[index], checksums.pop(index), compute_ms, wait_ms)
                journal.write(_line(done[index]))
                journal.flush()
            yield index


def _line(done: Done) -> str:
    return "%d %s %s %.3f %.3f\n" % done


def agreement(work: Work, engine: Engine, clips: Dict[int, Clip], workers: int) -> Dict[str, int]:
    """On how many of the clips, whose results are written, `engine` gives the same top-1: {same, videos}."""
    classes = work.model.protocol.classes
    with contextlib.closing(decoded(clips, work.data_root, work.model.protocol, work.model.dtype.name, workers)) as results:
        videos = ((index, video if isinstance(video, Exception) else video[None]) for index, video in results)
        same = [int(np.argmax(output) == read_scores(work.result(index), classes)[0].argmax())
                for index, output, _, _ in score(engine, work.model, videos) if not isinstance(output, Exception)]
    return {"same": sum(same), "videos": len(same)}

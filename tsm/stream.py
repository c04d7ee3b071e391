"""A list of videos to result files with no tensor on disk: decoded, computed, forgotten; restartable."""

import contextlib
import json
import os
import re
from typing import Any, Callable, Dict, Generator, Iterator, List, NamedTuple, Tuple

from tsm import __version__
from tsm.cli import Corrupt
from tsm.clips import basis, decoded, fingerprint
from tsm.engine import Engine, score
from tsm.files import sha256, write_text
from tsm.frames import Naming
from tsm.offline import Offline
from tsm.protocol import Protocol
from tsm.results import read_scores, result_path, write_result
from tsm.samples import Clip, checksum

JOURNAL = ".journal"  # in the folder of results
REVISION = 1  # to be raised with any change that changes a result


class Done(NamedTuple):
    """A line of the journal: result `number`, what it was made from, its tensor's checksum, ms of computing and of waiting."""

    number: int
    key: str
    checksum: str
    compute_ms: float
    wait_ms: float


class Work(NamedTuple):
    """What every video of a streamed list shares."""

    model: Offline
    protocol: Protocol  # the model's
    clips: Dict[int, Clip]  # all of the list, by index
    data_root: str
    naming: Naming
    folder: str  # of the results
    outfmt: str
    basis: str  # what a result depends on beside its video

    def result(self, index: int) -> str:
        """The result file of a video."""
        return result_path(self.folder, tensor_name(index), self.outfmt)


def tensor_name(index: int) -> str:
    """The name that a video's tensor would have; it names the result, as ais_bench does."""
    return "%d.bin" % index


def basis_of(
    model: Offline, protocol: Protocol, clips: Dict[int, Clip], naming: Naming, precision: str, backend: str, files: List[str]
) -> str:
    """What results depend on beside the videos: the model and its int8 `files`, precision, back end, decoders, version."""
    return json.dumps([REVISION, __version__, sha256(model.path), precision, backend, [sha256(path) for path in files],
                       basis(clips, protocol, model.dtype.name, naming)])


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


def survey(work: Work) -> Tuple[Dict[int, Done], Dict[int, str], Dict[int, Corrupt]]:
    """(what is done and still right, {index: key} of what is to be done, what cannot be)."""
    journal = read_journal(work)
    done: Dict[int, Done] = {}
    keys: Dict[int, str] = {}
    corrupt: Dict[int, Corrupt] = {}
    for index, clip in work.clips.items():
        try:
            key = fingerprint(os.path.join(work.data_root, clip.source), clip, work.protocol, work.basis, work.naming)
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
    work: Work, engine: Engine, keys: Dict[int, str], done: Dict[int, Done], workers: int,
    refuse: Callable[[int, Corrupt], None],
) -> Iterator[int]:
    """Compute the videos of `keys`, and yield each one's index once its result is written and journaled.

    The journal begins anew with what is `done` already, and each finished video is added to `done`; one that cannot be
    decoded goes to `refuse`.
    """
    journal_path = os.path.join(work.folder, JOURNAL)
    write_text(journal_path, "".join(map(_line, done.values())))
    checksums: Dict[int, str] = {}
    videos = videos_of(work, list(keys), workers, checksums)
    with open(journal_path, "a", encoding="ascii") as journal:
        for index, output, compute_ms, wait_ms in score(engine, work.model, videos):
            if isinstance(output, Corrupt):
                refuse(index, output)
            else:
                write_result(work.result(index), work.outfmt, output[None])
                done[index] = Done(index, keys[index], checksums.pop(index), compute_ms, wait_ms)
                journal.write(_line(done[index]))
                journal.flush()
            yield index


def videos_of(
    work: Work, indices: List[int], workers: int, checksums: Dict[int, str]
) -> Generator[Tuple[int, Any], None, None]:
    """(index, tensor [1, frames, 3, size, size] or Corrupt) of some clips, in any order; their checksums go to `checksums`."""
    chosen = {index: work.clips[index] for index in indices}
    with contextlib.closing(
        decoded(chosen, work.data_root, work.protocol, work.model.dtype.name, workers, work.naming)
    ) as results:
        for index, video in results:
            if isinstance(video, Corrupt):
                yield index, video
            else:
                checksums[index] = checksum(video)
                yield index, video[None]


def _line(done: Done) -> str:
    return "%d %s %s %.3f %.3f\n" % done


def remove_others(work: Work, done: Dict[int, Done]) -> None:
    """Remove the results of videos that the list does not have any more, and those in another format."""
    wanted = {os.path.basename(work.result(index)) for index in done}
    for name in os.listdir(work.folder):
        if re.match(r"\d+_0\.(txt|npy|bin)$", name) and name not in wanted:
            os.remove(os.path.join(work.folder, name))


def agreement(work: Work, engine: Engine, indices: List[int], workers: int) -> Dict[str, int]:
    """On how many of the videos, whose results are written, `engine` gives the same top-1: {same, videos}."""
    videos = videos_of(work, indices, workers, {})
    same = [int(output.argmax() == read_scores(work.result(index), work.protocol.classes)[0].argmax())
            for index, output, _, _ in score(engine, work.model, videos) if not isinstance(output, Exception)]
    return {"same": sum(same), "videos": len(same)}

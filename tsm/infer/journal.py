"""The one record of what is finished of a list of videos: a journal beside the results, a line per piece of work.

Whoever finished a piece is in it: this process, another one, a chip, another host. Every way to carry out a list reads the
same journals, so none does again what another finished; and what a journal says counts only while the video, the model, the
decoders and the result file are as they were.
"""

import contextlib
import json
import os
import re
import shutil
import zlib
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Set, TextIO, Tuple

import numpy as np

from tsm.cli import Corrupt, Killed
from tsm.files import locked, write_text
from tsm.protocol import Protocol
from tsm.results import result_path, summary_path, write_result
from tsm.samples import Clip, checksum
from tsm.video.clips import fingerprint
from tsm.video.frames import Naming
from tsm.workfolder import INFO, MANIFEST

JOURNAL = ".journal"  # in the folder of results
SHARD = r"\.shard_(\d+)_of_(\d+)"  # a folder beside it, with the journal of a process that did a share of the list
REVISION = 1  # to be raised with any change that changes a result


class Source(NamedTuple):
    """How a list's clips become tensors: where they are, what their frames are called, the protocol, the tensors' dtype."""

    data_root: str
    naming: Naming
    protocol: Protocol
    dtype: str


class Scored(NamedTuple):
    """A computed video: its number, its probabilities float32 [classes], its tensor's XXH3-128, how many of its views agree."""

    number: int
    scores: np.ndarray
    checksum: str
    views_agree: Optional[int]  # None where that is not known


class Piece(NamedTuple):
    """What was computed in one go: `began` and `ended` are seconds since 1970, by the clock of `host`."""

    host: str
    device: str  # cpu, or chip 0
    began: float
    ended: float
    scored: List[Scored]
    skipped: Dict[int, Corrupt]  # {number: why it cannot be read}
    times: List[Tuple[float, float]]  # ms of computing and of waiting, of each video or of each batch
    facts: Dict[str, Any]  # about the engine, for the summary's `tsm` entry
    figures: Dict[str, Any]  # of ais_bench's summary: the latencies, of which it keeps no list


class Done(NamedTuple):
    """A finished video: its number, what it was made from, the checksums of its tensor and of its result file, as in Scored."""

    number: int
    key: str
    checksum: str
    result: str
    views_agree: Optional[int]


class Record(NamedTuple):
    """A line of a journal: a Piece whose results are written. The fields are as there, less the scores."""

    host: str
    device: str
    began: float
    ended: float
    done: List[Done]
    skipped: List[Tuple[int, str, str]]  # (number, what it was made from, why it cannot be read)
    times: List[Tuple[float, float]]
    facts: Dict[str, Any]
    figures: Dict[str, Any]


class Work(NamedTuple):
    """What every video of a list shares."""

    source: Source
    clips: Dict[int, Clip]  # all of the list, by index
    folder: str  # of the results
    output_dir: str  # of the info file and the manifest
    outfmt: str
    basis: str  # what a result depends on beside its video

    def result(self, index: int) -> str:
        """The result file of a video."""
        return result_path(self.folder, tensor_name(index), self.outfmt)


class Survey(NamedTuple):
    """How far a list is: the records of what is still right, the videos in them, {index: key} of those to do, and the unreadable."""

    records: List[Record]
    done: Dict[int, Done]
    keys: Dict[int, str]
    corrupt: Dict[int, Corrupt]


def tensor_name(index: int) -> str:
    """The name that a video's tensor would have; it names the result, as ais_bench does."""
    return "%d.bin" % index


def keys_of(source: Source, clips: Mapping[int, Clip], common: str) -> Tuple[Dict[int, str], Dict[int, Corrupt]]:
    """({index: what its result depends on}, {index: why that cannot be said}) of clips; `common` is a Work's basis."""
    keys: Dict[int, str] = {}
    corrupt: Dict[int, Corrupt] = {}
    for index, clip in clips.items():
        try:
            keys[index] = fingerprint(os.path.join(source.data_root, clip.source), clip, source.protocol, common, source.naming)
        except Corrupt as error:
            corrupt[index] = error
    return keys, corrupt


def journal_line(record: Record) -> str:
    """A record as a line of a journal: CRC-32, JSON."""
    text = json.dumps(record)
    return "%08x %s\n" % (zlib.crc32(text.encode()), text)


def read_journal(path: str) -> List[Record]:
    """The records of a journal; a line that a kill cut short, or that is damaged, does not count."""
    records = []
    with open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            crc, _, text = line.rstrip("\n").partition(" ")
            if line.endswith("\n") and crc == "%08x" % zlib.crc32(text.encode()):
                with contextlib.suppress(ValueError, TypeError):  # a line of another version, with other fields
                    host, device, began, ended, done, skipped, times, facts, figures = json.loads(text)
                    records.append(Record(
                        host, device, began, ended, [Done(int(number), *rest) for number, *rest in done],
                        [(int(number), key, reason) for number, key, reason in skipped], [tuple(one) for one in times], facts, figures))
    return records


def shard_folders(folder: str) -> Dict[str, Tuple[int, int]]:
    """{folder: (I, N)} of the shares of the list that were ever worked at, in a folder of results."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    matches = [re.match(SHARD + "$", name) for name in names]
    return {os.path.join(folder, match.group()): (int(match.group(1)), int(match.group(2))) for match in matches if match}


def journals(folder: str) -> List[str]:
    """The journals of a folder of results: its own, and those of shards."""
    paths = [os.path.join(place, JOURNAL) for place in [*shard_folders(folder), folder]]
    return list(filter(os.path.exists, paths))


def file_checksum(path: str) -> Optional[str]:
    """XXH3-128 of a result file; None if it is not there."""
    try:
        with open(path, "rb") as file:
            return checksum(file.read())
    except FileNotFoundError:
        return None


def survey(work: Work, chosen: Optional[Iterable[int]] = None, closing: bool = False) -> Survey:
    """How far the list is, or the `chosen` indices of it: what the journals say, as far as videos and results are as they were.

    A clip that could not be read is to be done again, as it may have been mended where its key does not show it (a frame that
    was not sampled, a right that was given); unless the list is `closing`, and what each clip's reader last said holds.
    """
    clips = work.clips if chosen is None else {index: work.clips[index] for index in chosen}
    keys, corrupt = keys_of(work.source, clips, work.basis)
    left = dict(keys)
    records: List[Record] = []
    done: Dict[int, Done] = {}
    for path in journals(work.folder):
        for record in read_journal(path):
            right = [one.number in left and left[one.number] == one.key and file_checksum(work.result(one.number)) == one.result
                     for one in record.done]
            skipped = [one for one in record.skipped if closing and one[0] in left and left[one[0]] == one[1]]
            kept = [one for one, holds in zip(record.done, right) if holds]
            done.update((one.number, one) for one in kept)
            corrupt.update((number, Corrupt(reason)) for number, _, reason in skipped)
            for number in [one.number for one in kept] + [one[0] for one in skipped]:
                del left[number]
            if kept or skipped:
                times = record.times  # of batches, unless there are as many as videos
                if len(times) == len(right):
                    times = [time for time, holds in zip(times, right) if holds]
                records.append(record._replace(done=kept, skipped=skipped, times=times))
    return Survey(records, done, left, corrupt)


def shards(folder: str) -> Set[int]:
    """The numbers of shares into which the list of a folder of results was ever divided."""
    return {count for _, count in shard_folders(folder).values()}


@contextlib.contextmanager
def held(work: Work, shared: bool = False) -> Iterator[None]:
    """Make the two folders and hold them for this process, as tsm.files.locked() does; shards share them."""
    folders: Dict[str, str] = {}
    for folder in (work.output_dir, work.folder):
        os.makedirs(folder, exist_ok=True)
        folders.setdefault(os.path.realpath(folder), folder)
    with contextlib.ExitStack() as locks:
        for folder in folders.values():
            locks.enter_context(locked(folder, shared))
        yield


def shard_folder(work: Work, shard: Tuple[int, int]) -> str:
    """The folder, which is made, of the journal of a share of the list."""
    folder = os.path.join(work.folder, ".shard_%d_of_%d" % shard)
    os.makedirs(folder, exist_ok=True)
    return folder


def unfinish(work: Work) -> None:
    """Remove what makes the folders look finished."""
    for path in [summary_path(work.folder)] + [os.path.join(work.output_dir, name) for name in (INFO, MANIFEST)]:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


class Log:
    """A journal that is open. What an earlier run left finished stays so until the first result is about to change."""

    def __init__(self, work: Work, found: Survey, file: TextIO) -> None:
        self.work, self.found, self.file, self.untouched = work, found, file, True

    def keep(self, piece: Piece) -> None:
        """Write the results of a piece, then its line, and enter it in what was found; what another did first is left as it is."""
        work, found = self.work, self.found
        scored = [one for one in piece.scored if one.number in found.keys]
        if scored and self.untouched:
            unfinish(work)
            self.untouched = False
        done = []
        for one in scored:
            path = work.result(one.number)
            write_result(path, work.outfmt, one.scores[None])
            done.append(Done(one.number, found.keys.pop(one.number), one.checksum, file_checksum(path) or "", one.views_agree))
        left_out = {number: error for number, error in piece.skipped.items() if number in found.keys}
        skipped = [(number, found.keys.pop(number), str(error)) for number, error in left_out.items() if not isinstance(error, Killed)]
        record = Record(piece.host, piece.device, round(piece.began, 3), round(piece.ended, 3), done, skipped,
                        [(round(compute, 3), round(wait, 3)) for compute, wait in piece.times], piece.facts, piece.figures)
        try:
            self.file.write(journal_line(record))
            self.file.flush()
        except OSError as error:
            error.filename = self.file.name
            raise
        found.records.append(record)
        found.done.update((one.number, one) for one in done)
        found.corrupt.update(left_out)


@contextlib.contextmanager
def appending(work: Work, found: Survey, folder: str) -> Iterator[Log]:
    """The journal in a folder, to be appended to; a line that a kill or a full disk cut short is ended first."""
    path = os.path.join(folder, JOURNAL)
    with open(path, "a+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
    journal = open(path, "a", encoding="ascii")
    try:
        yield Log(work, found, journal)
    finally:
        with contextlib.suppress(OSError):  # each line was flushed, or the failure told
            journal.close()


def consolidate(work: Work, found: Survey) -> None:
    """Make one journal of what is right in all of them."""
    write_text(os.path.join(work.folder, JOURNAL), "".join(map(journal_line, found.records)))
    for folder in shard_folders(work.folder):
        shutil.rmtree(folder, ignore_errors=True)  # over NFS, a file that another host has open comes back under another name


def busy_seconds(records: Iterable[Record]) -> float:
    """Seconds during which at least one of the records' workers was at work."""
    total, end = 0.0, float("-inf")
    for began, ended in sorted((record.began, record.ended) for record in records):
        total += max(0.0, ended - max(began, end))
        end = max(end, ended)
    return total


def workers_of(records: Iterable[Record]) -> List[Dict[str, Any]]:
    """What each worker did: {host, device, chunks, videos, seconds, videos_per_second}, by host and device."""
    rows: Dict[Tuple[str, str], List[Record]] = {}
    for record in records:
        rows.setdefault((record.host, record.device), []).append(record)
    workers = []
    for (host, device), own in sorted(rows.items()):
        videos, seconds = sum(len(record.done) for record in own), busy_seconds(own)
        workers.append({"host": host, "device": device, "chunks": len(own), "videos": videos, "seconds": round(seconds, 3),
                        "videos_per_second": round(videos / seconds, 4) if seconds else 0.0})
    return workers

"""What is finished of a list of videos: a journal, a line per piece of work, beside what was made.

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
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np

from tsm.cli import Corrupt, Killed
from tsm.files import locked, write_text
from tsm.protocol import Protocol
from tsm.results import TIMES, joined, result_name, result_path, summarise, summary_path, write_result, write_summary
from tsm.samples import Clip, checksum
from tsm.video.clips import fingerprint
from tsm.video.frames import Naming

JOURNAL = ".journal"  # in the folder of what it tells of
SHARD = r"\.shard_(\d+)_of_(\d+)"  # a folder beside it, with the journal of a process that did a share of the list


class Journal:
    """A file of JSON values, a line each behind its CRC-32; a line that a kill cut short, or that is damaged, does not count."""

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, JOURNAL)

    def read(self) -> Iterator[Any]:
        if not os.path.exists(self.path):
            return
        with open(self.path, encoding="ascii", errors="replace") as file:
            for line in file:
                crc, _, text = line.rstrip("\n").partition(" ")
                if line.endswith("\n") and crc == "%08x" % zlib.crc32(text.encode()):
                    yield json.loads(text)

    def write(self, values: Iterable[Any]) -> None:
        """Make it hold these values alone, whole or not at all."""
        write_text(self.path, "".join(map(_line, values)))

    @contextlib.contextmanager
    def appending(self) -> Iterator[Callable[[Any], None]]:
        """A function that appends a value, which forked processes may share. A line that was cut short is ended first."""
        with open(self.path, "a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                file.write(b"\n")

            def append(value: Any) -> None:
                data = _line(value).encode()
                try:
                    while data:
                        data = data[file.write(data):]
                except OSError as error:
                    error.filename = self.path
                    raise

            yield append


def _line(value: Any) -> str:
    text = json.dumps(value)
    return "%08x %s\n" % (zlib.crc32(text.encode()), text)


class Origin(NamedTuple):
    """How a list's clips become tensors: where they are, what their frames are called, the protocol, the tensors' dtype."""

    data_root: str
    naming: Naming
    protocol: Protocol
    dtype: str


class Done(NamedTuple):
    """A computed input: a video, or a file of tensors. Once its result is written, it has a key (what it was made from) and its
    result file's checksum, and its scores are dropped."""

    number: int
    checksum: str  # of its tensor
    views_agree: Optional[List[int]]  # of each of its videos, how many of the views have its answer; None where that is not known
    scores: Optional[np.ndarray] = None  # the model's output, float32 [videos, classes]
    key: str = ""
    result: str = ""
    curve: Optional[List[List[int]]] = None  # of each of its videos, an online model's answers after each of SHARES of the frames


class Skipped(NamedTuple):
    """A video that cannot be read, what it was made from once that is recorded, and why."""

    number: int
    error: Corrupt
    key: str = ""


class Piece(NamedTuple):
    """What was computed in one go: `began` and `ended` are seconds since 1970, by the clock of `host`. A line of a journal."""

    host: str
    device: str  # cpu, or chip 0
    began: float
    ended: float
    done: List[Done]
    skipped: List[Skipped]
    times: List[Tuple[float, float]]  # ms of computing and of waiting, of each video or of each batch
    facts: Dict[str, Any]  # about the engine, for the summary's `tsm` entry
    figures: Dict[str, Any]  # of ais_bench's summary: the latencies, of which it keeps no list


def as_line(piece: Piece) -> List[Any]:
    """A piece, whose results are written, as a line of a journal holds it."""
    return [piece.host, piece.device, round(piece.began, 3), round(piece.ended, 3),
            [(one.number, one.key, one.checksum, one.result, one.views_agree, one.curve) for one in piece.done],
            [(one.number, one.key, str(one.error)) for one in piece.skipped],
            [(round(compute, 3), round(wait, 3)) for compute, wait in piece.times], piece.facts, piece.figures]


def read_pieces(folder: str) -> List[Piece]:
    """The pieces that the journal in a folder holds; a line of a version with other fields does not count."""
    pieces = []
    for value in Journal(folder).read():
        with contextlib.suppress(ValueError, TypeError):
            host, device, began, ended, done, skipped, times, facts, figures = value
            pieces.append(Piece(
                host, device, began, ended,
                [Done(int(number), tensor, agree, None, key, result, curve) for number, key, tensor, result, agree, curve in done],
                [Skipped(int(number), Corrupt(reason), key) for number, key, reason in skipped], [tuple(one) for one in times],
                facts, figures))
    return pieces


class Work(NamedTuple):
    """A folder of results."""

    folder: str
    outfmt: str
    inputs: Dict[int, str]  # the files of tensors, which name the results; those of a list that is streamed are never made
    marks: Tuple[str, ...] = ()  # what makes it look finished beside its summary

    def result(self, number: int) -> str:
        """The result file of an input."""
        return result_path(self.folder, self.inputs[number], self.outfmt)


class Progress(NamedTuple):
    """How far a list is: the pieces of what is still right, the videos in them, {index: key} of those to do, and the unreadable."""

    pieces: List[Piece]
    done: Dict[int, Done]
    keys: Dict[int, str]
    corrupt: Dict[int, Corrupt]


def keys_of(source: Origin, clips: Mapping[int, Clip], common: str) -> Tuple[Dict[int, str], Dict[int, Corrupt]]:
    """({index: what its result depends on}, {index: why that cannot be said}) of clips; `common` is what all results depend on."""
    keys: Dict[int, str] = {}
    corrupt: Dict[int, Corrupt] = {}
    for index, clip in clips.items():
        try:
            keys[index] = fingerprint(os.path.join(source.data_root, clip.source), clip, source.protocol, common, source.naming)
        except Corrupt as error:
            corrupt[index] = error
    return keys, corrupt


def shard_folders(folder: str) -> Dict[str, Tuple[int, int]]:
    """{folder: (I, N)} of the shares of the list that were ever worked at, in a folder of results."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    matches = [re.match(SHARD + "$", name) for name in names]
    return {os.path.join(folder, match.group()): (int(match.group(1)), int(match.group(2))) for match in matches if match}


def file_checksum(path: str) -> Optional[str]:
    """XXH3-128 of a result file; None if it is not there."""
    try:
        with open(path, "rb") as file:
            return checksum(file.read())
    except FileNotFoundError:
        return None


def survey(work: Work, keys: Dict[int, str], corrupt: Dict[int, Corrupt], closing: bool = False) -> Progress:
    """How far the inputs are whose `keys` say what their results depend on: what the journals say, as far as both are as they were.

    A clip that could not be read is to be done again, as it may have been mended where its key does not show it (a frame that
    was not sampled, a right that was given); unless the list is `closing`, and what each clip's reader last said holds.
    """
    found = Progress([], {}, dict(keys), corrupt)
    for piece in [piece for folder in [*shard_folders(work.folder), work.folder] for piece in read_pieces(folder)]:
        right = [keys.get(one.number) == one.key and file_checksum(work.result(one.number)) == one.result for one in piece.done]
        done = [one for one, holds in zip(piece.done, right) if holds]
        skipped = [one for one in piece.skipped if closing and keys.get(one.number) == one.key]
        if done or skipped:
            times = piece.times  # of batches, unless there are as many as videos
            if len(times) == len(right):
                times = [time for time, holds in zip(times, right) if holds]
            enter(found, piece._replace(done=done, skipped=skipped, times=times))
    return found


def enter(found: Progress, piece: Piece) -> None:
    """Enter a piece whose results are written."""
    found.pieces.append(piece)
    found.done.update((one.number, one) for one in piece.done)
    found.corrupt.update((one.number, one.error) for one in piece.skipped)
    for number in [one.number for one in piece.done] + [one.number for one in piece.skipped]:
        found.keys.pop(number, None)


@contextlib.contextmanager
def held(*folders: str, shared: bool = False) -> Iterator[None]:
    """Make folders and hold them for this process, as tsm.files.locked() does; shards share them."""
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
    with contextlib.ExitStack() as locks:
        for folder in sorted(set(map(os.path.realpath, folders))):
            locks.enter_context(locked(folder, shared))
        yield


def shard_folder(work: Work, shard: Tuple[int, int]) -> str:
    """The folder of the journal of a share of the list."""
    return os.path.join(work.folder, ".shard_%d_of_%d" % shard)


def unfinish(work: Work) -> None:
    """Remove what makes the folders look finished."""
    for path in (summary_path(work.folder),) + work.marks:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


@contextlib.contextmanager
def recording(work: Work, found: Progress, folder: str) -> Iterator[Callable[[Piece], None]]:
    """A function that writes the results of a piece, then its line to the journal in a folder, and enters it in what was found.

    What another did first is left as it is; what an earlier run left finished stays so until the first result is about to change.
    A video whose decoder was killed is among the unreadable, but not recorded, and still to be done.
    """
    with Journal(folder).appending() as append:
        untouched = True

        def keep(piece: Piece) -> None:
            nonlocal untouched
            new = [one for one in piece.done if one.number in found.keys]
            if new and untouched:
                unfinish(work)
                untouched = False
            done = []
            for one in new:
                path = work.result(one.number)
                write_result(path, work.outfmt, np.asarray(one.scores))
                done.append(one._replace(scores=None, key=found.keys[one.number], result=file_checksum(path) or ""))
            unread = [one for one in piece.skipped if one.number in found.keys]
            found.corrupt.update((one.number, one.error) for one in unread)
            skipped = [one._replace(key=found.keys[one.number]) for one in unread if not isinstance(one.error, Killed)]
            kept = piece._replace(done=done, skipped=skipped)
            append(as_line(kept))
            enter(found, kept)

        yield keep


def remove_others(work: Work, found: Progress) -> None:
    """Remove the results of inputs that are not there any more, and those in another format."""
    wanted = {os.path.basename(work.result(number)) for number in found.done}
    others = [name for name in os.listdir(work.folder) if re.match(r"\d+_0\.(txt|npy|bin)$", name) and name not in wanted]
    if others:
        unfinish(work)
    for name in others:
        os.remove(os.path.join(work.folder, name))


def summarise_found(work: Work, found: Progress, throughput: float, facts: Dict[str, Any]) -> None:
    """Make one journal of what is right in all of them, and write the summary; `throughput` is videos per second,
    `facts` its `tsm` entry."""
    Journal(work.folder).write(map(as_line, found.pieces))
    for folder in shard_folders(work.folder):
        shutil.rmtree(folder, ignore_errors=True)  # over NFS, a file that another host has open comes back under another name
    pieces = sorted((piece for piece in found.pieces if piece.done), key=lambda piece: piece.done[0].number)
    times, waits = zip(*[pair for piece in pieces for pair in piece.times])
    pairs = [(work.inputs[number], work.result(number)) for number in sorted(found.done)]
    agree = {result_name(work.inputs[number]): one.views_agree for number, one in sorted(found.done.items())}
    known = None if None in agree.values() else agree
    summary = summarise(pairs, times, waits, throughput, tsm=dict(facts, views_agree=known))
    for name in TIMES[1:]:
        figures = [piece.figures[name] for piece in pieces if name in piece.figures]
        if figures:
            summary[name] = joined(figures)
    write_summary(work.folder, summary)


def busy_seconds(pieces: Iterable[Piece]) -> float:
    """Seconds during which at least one of the pieces' workers was at work."""
    total, end = 0.0, float("-inf")
    for began, ended in sorted((piece.began, piece.ended) for piece in pieces):
        total += max(0.0, ended - max(began, end))
        end = max(end, ended)
    return total


def workers_of(pieces: Iterable[Piece]) -> List[Dict[str, Any]]:
    """What each worker did: {host, device, chunks, videos, seconds, videos_per_second}, by host and device."""
    rows: Dict[Tuple[str, str], List[Piece]] = {}
    for piece in pieces:
        rows.setdefault((piece.host, piece.device), []).append(piece)
    workers = []
    for (host, device), own in sorted(rows.items()):
        videos, seconds = sum(len(piece.done) for piece in own), busy_seconds(own)
        workers.append({"host": host, "device": device, "chunks": len(own), "videos": videos, "seconds": round(seconds, 3),
                        "videos_per_second": round(videos / seconds, 4) if seconds else 0.0})
    return workers

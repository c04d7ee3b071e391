"""A list in chunks that can be computed anywhere: a Job and a Chunk go in, a Piece of results comes out.

A carrier is a function (job, chunks, flight) -> iterator of (chunk, its Piece), in any order:
in_turn() in this process, tsm.infer.ascend.on_chips() on the NPUs of this host, tsm.infer.cluster.on_ray() on other hosts. Each calls
flight({host: chunks under way}).
"""

import argparse
import glob
import hashlib
import importlib
import importlib.util
import math
import os
import platform
import re
import socket
import time
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from tsm import __version__
from tsm.cli import Corrupt, Killed, UserError, positive
from tsm.files import sha256
from tsm.infer import stream
from tsm.infer.engine import Computing, about, computing_of, open_engine
from tsm.infer.journal import Piece, Record, Source, Survey, Work, keys_of, workers_of
from tsm.machine import cores
from tsm.model.offline import Offline, read_offline
from tsm.protocol import SSV2, Protocol, read_protocol
from tsm.samples import Clip
from tsm.video import clips

SUITE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TENSOR_BYTES = 20 * 10**9  # of tensors on a disk at a time, unless the user says otherwise
WORK_SECONDS = 60  # of a chunk whose size nobody gave: loading a model then costs under 5 %
SAMPLE = 8  # videos that the rate is measured on
ATTEMPTS = 3  # at a chunk, and failures in a row that a chip or a host may have

Flight = Callable[[Dict[str, int]], None]


class Job(NamedTuple):
    """What every chunk of a list shares, as a value that travels; examine() holds it against what a host has."""

    source: Source
    ann_file: str  # the list, which on an NPU TSM_preprocess.py reads
    basis: str  # of a journal.Work
    device: str  # cpu or npu
    model: str
    computing: Computing
    num_worker: Optional[int]  # None: one per core of the host
    scratch: str  # where an NPU's tensors go; empty: the host's folder for temporary files
    digests: Dict[str, str]  # {file: SHA-256} of what a host must have: the model, its int8 file, and on an NPU the list
    versions: Dict[str, str]
    results: str  # the folder that results go to, which no other run has at the same time
    shard: Tuple[int, int] = (0, 1)  # which share of the list: two of them on one host keep their tensors apart


class Chunk(NamedTuple):
    """Videos of the list from `start` to `stop` - 1, less those that are done; `keys` say what each depends on."""

    start: int
    stop: int
    clips: Dict[int, Clip]
    keys: Dict[int, str]

    @property
    def name(self) -> str:
        return "videos %d:%d" % (self.start, self.stop)


class Unfit(Exception):
    """This host cannot do the job as it is; the text says why, on one line."""


def job_of(args: argparse.Namespace) -> Tuple[Work, Job, Optional[Offline]]:
    """(the work that a script's options describe, the job to be carried out, on a CPU the model)."""
    model: Optional[Offline] = None
    path = os.path.abspath(args.model)
    if args.device == "npu":
        protocol, dtype, computing = read_protocol(args.protocol), "float32", Computing("ais_bench", "fp32", None, "")
    else:
        model = read_offline(args.model)
        protocol, dtype, computing = model.tested_by, model.dtype.name, computing_of(args, path)
        computing = computing._replace(int8_model=computing.int8_model and os.path.abspath(computing.int8_model))
    digests = stream.digests_of(path, computing.int8_model)
    work = stream.work_of(args, protocol, dtype, digests, computing)
    scratch, ann_file = args.scratch or ("" if args.ray else args.output_dir), os.path.abspath(args.ann_file)
    if args.device == "npu":
        digests = dict(digests, **{ann_file: sha256(ann_file)})  # for the hosts; a result depends on its own line alone
    job = Job(work.source._replace(data_root=os.path.abspath(args.data_root)), ann_file, work.basis, args.device,
              path, computing, args.num_worker, os.path.abspath(scratch) if scratch else "", digests,
              versions(args.device, computing.backend), os.path.abspath(work.folder))
    return work, job, model


def facts_of(args: argparse.Namespace, found: Survey, model: Optional[Offline]) -> Dict[str, Any]:
    """For the summary's `tsm` entry: what computed, and who did how much of it."""
    facts: Dict[str, Any] = next((record.facts for record in reversed(found.records) if record.facts), {})
    return dict(facts, version=__version__, precision=args.precision if model else None, model=model.metadata if model else None,
                workers=workers_of(found.records))


def chunk_size(videos: int, dtype: str, at_once: int = 2, protocol: Protocol = SSV2) -> int:
    """Videos per chunk so that the tensors of `at_once` chunks stay under TENSOR_BYTES; 0 if all of them do."""
    fit = TENSOR_BYTES // protocol.nbytes(dtype)
    return 0 if videos <= fit else max(1, fit // at_once)


def rate_in(records: Sequence[Record]) -> float:
    """Videos per second of computing on a CPU, from the last records that tell; 0 if none does."""
    timed = [record.times for record in records if record.done and len(record.times) == len(record.done)][-SAMPLE:]
    ms = sum(compute_ms + wait_ms for times in timed for compute_ms, wait_ms in times)
    return 1000 * sum(map(len, timed)) / ms if ms else 0.0


def plan(work_clips: Mapping[int, Clip], keys: Mapping[int, str], size: int) -> List[Chunk]:
    """The chunks of what is left, which `keys` holds: each spans at most `size` lines of the list."""
    chunks: List[Chunk] = []
    for index in sorted(keys):
        if not chunks or index >= chunks[-1].start + size:
            chunks.append(Chunk(index, index, {}, {}))
        chunk = chunks[-1]._replace(stop=index + 1)
        chunk.clips[index], chunk.keys[index] = work_clips[index], keys[index]
        chunks[-1] = chunk
    return chunks


def rounds(wanted: int, work: Work, job: Job, found: Survey, at_once: int) -> Iterator[List[Chunk]]:
    """The chunks of what is left in `found`, all at once; before them, where their size is to be measured, that of a sample.

    Args:
        wanted: videos per chunk; 0: WORK_SECONDS of them on a CPU, as many as the disk may hold on an NPU.
        at_once: chunks whose tensors a host has on its disk at a time.
    """
    if not wanted and job.device == "npu":
        left = len(found.keys)
        wanted = chunk_size(left, job.source.dtype, at_once, job.source.protocol) or -(-left // at_once)
    if not wanted and not rate_in(found.records):
        yield plan(work.clips, {index: found.keys[index] for index in sorted(found.keys)[:SAMPLE]}, len(work.clips))
    if found.keys:
        yield plan(work.clips, found.keys, wanted or max(SAMPLE, math.ceil(WORK_SECONDS * rate_in(found.records))))


def chunk_option(text: str) -> int:
    """argparse type: videos per chunk, 0 for auto."""
    return 0 if text == "auto" else positive(text)


def share(text: str) -> Tuple[int, int]:
    """argparse type: (I, N) of I/N, with I from 0 to N - 1."""
    match = re.match(r"(\d{1,6})/(\d{1,6})$", text)
    if not match or int(match.group(1)) >= int(match.group(2)):
        raise argparse.ArgumentTypeError("%r is not I/N, with I from 0 to N - 1, as in 0/3" % text)
    return int(match.group(1)), int(match.group(2))


def versions(device: str, backend: str) -> Dict[str, str]:
    """What must be the same on every host for the results to be the same, as far as versions can tell."""
    digest = hashlib.sha256()
    for path in sorted(glob.glob(os.path.join(glob.escape(SUITE), "tsm", "**", "*.py"), recursive=True)):
        digest.update(sha256(path).encode())
    found = {"suite": "%s (%s)" % (__version__, digest.hexdigest()[:12]), "python": platform.python_version(),
             "numpy": np.__version__}
    found.update(clips.versions())
    library = backend if device == "cpu" else "ais_bench"
    if importlib.util.find_spec(library) is None:
        found[library] = "none"
    else:
        found[library] = str(getattr(importlib.import_module(library), "__version__", "there")) if device == "cpu" else "there"
    return found


def examine(job: Job) -> None:
    """Unfit unless this host has the job's files and versions, and the folder of its videos."""
    here = versions(job.device, job.computing.backend)
    for name, wanted in job.versions.items():
        if here.get(name) != wanted:
            raise Unfit("has %s %s, and the run %s" % (name, here.get(name, "none"), wanted))
    if not os.path.isdir(job.source.data_root):
        raise Unfit("has no %s" % job.source.data_root)
    for path, digest in job.digests.items():
        if not os.path.exists(path):
            raise Unfit("has no %s" % path)
        if sha256(path) != digest:
            raise Unfit("has another %s than the run (by its SHA-256)" % path)


def check_clips(job: Job, chunk: Chunk) -> None:
    """Unfit unless the chunk's videos are here what they are where the list was read, by their sizes and times of change."""
    here, missing = keys_of(job.source, chunk.clips, job.basis)
    for index, key in chunk.keys.items():
        if here.get(index) != key:
            path = os.path.join(job.source.data_root, chunk.clips[index].source)
            what = "has another %s than the run (by its size or time of change)" % path
            raise Unfit("has no usable %s: %s" % (path, missing[index]) if index in missing else what)


_opened: Dict[str, Any] = {}  # the last job's engine in this process, so that a process opens it once for all its chunks


def opened(job: Job) -> Any:
    """(engine, model, its facts) of a CPU job."""
    key = repr((job.model, job.basis, job.computing.streams))
    if key not in _opened:
        _opened.clear()
        model = read_offline(job.model)
        engine, int8 = open_engine(model, job.computing, listed=True)
        _opened[key] = engine, model, about(engine, model, job.computing.precision, int8)
    return _opened[key]


def run_chunk(job: Job, chunk: Chunk) -> Piece:
    """Compute a chunk on the CPU, in this process and in memory. A clip that cannot be read is in the piece's `skipped`.

    Raises Unfit, UserError.
    """
    check_clips(job, chunk)
    began = time.time()
    engine, model, facts = opened(job)
    rows, skipped = [], {}
    workers = job.num_worker or cores()
    for number, scored, compute_ms, wait_ms in stream.compute(job.source, chunk.clips, engine, model, workers):
        if isinstance(scored, Killed):
            raise UserError("%s: %s" % (chunk.clips[number].source, scored))
        if isinstance(scored, Corrupt):
            skipped[number] = str(scored)
        else:
            rows.append((scored, (compute_ms, wait_ms)))
    rows.sort(key=lambda row: row[0].number)
    few = {key: value for key, value in facts.items() if key != "model"}
    return Piece(socket.gethostname(), "cpu", began, time.time(), [scored for scored, _ in rows], skipped,
                 [times for _, times in rows], few, {})


def in_turn(job: Job, chunks: Sequence[Chunk], flight: Flight) -> Iterator[Tuple[Chunk, Piece]]:
    """Carrier: in this process, one after the other. An engine uses all cores, so a second process would gain nothing."""
    for chunk in chunks:
        flight({socket.gethostname(): 1})
        try:
            yield chunk, run_chunk(job, chunk)
        except Unfit as error:  # here it can only have changed since the list was read
            raise UserError("%s: this host now %s; run the same command again" % (chunk.name, error))


def shard_of(videos: int, number: int, count: int) -> range:
    """The videos of share `number` (from 0) of `count`: contiguous, and of equal size but for one."""
    return range(number * videos // count, (number + 1) * videos // count)


def missing_shards(found: Survey, videos: int, shards: Iterable[int]) -> List[str]:
    """Which shares of the list have videos left, in words, by the numbers of shares that were ever worked at."""
    words = []
    for count in sorted(shards):
        for number in range(count):
            share = shard_of(videos, number, count)
            left = sum(index in found.keys for index in share)
            if left:
                words.append("--shard %d/%d has %d of its %d videos to do" % (number, count, left, len(share)))
    return words

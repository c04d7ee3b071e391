"""A list in chunks that can be computed anywhere: a Job and a Chunk go in, a Piece of results comes out; and who does it here.

A carrier is a function (job, chunks, flight) -> iterator of (chunk, its Piece), in any order: in_turn() in this process,
on_chips() on the NPUs of this host, tsm.cluster.on_ray() on other hosts. Each calls flight({worker: chunks under way}).
"""

import argparse
import contextlib
import ctypes
import hashlib
import importlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from tsm import __version__, clips, stream
from tsm.cli import Corrupt, UserError, first_line, warn
from tsm.engine import about, open_engine
from tsm.files import read_npy, sha256
from tsm.journal import Piece, Record, Scored, Source, Survey, keys_of
from tsm.machine import cores
from tsm.offline import read_offline
from tsm.protocol import SSV2, Protocol
from tsm.results import TIMES, read_summary, summary_path
from tsm.samples import BINS, MANIFEST, Clip, read_manifest

SUITE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TENSOR_BYTES = 20 * 10**9  # of tensors on a disk at a time, unless the user says otherwise
WORK_SECONDS = 60  # of a chunk whose size nobody gave: loading a model then costs under 5 %
SAMPLE = 8  # videos that the rate is measured on
ATTEMPTS = 3  # at a chunk, and failures in a row that a chip or a host may have
_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None)

Flight = Callable[[Dict[str, int]], None]


class Job(NamedTuple):
    """What every chunk of a list shares, as a value that travels; examine() holds it against what a host has."""

    source: Source
    ann_file: str  # the list, which on an NPU TSM_preprocess.py reads
    basis: str  # of a journal.Work
    device: str  # cpu or npu
    model: str
    int8_model: str
    precision: str
    backend: str
    streams: Optional[int]
    num_worker: Optional[int]  # None: one per core of the host
    scratch: str  # where an NPU's tensors go; empty: the host's folder for temporary files
    digests: Dict[str, str]  # {file: SHA-256}, of the model, its int8 file, and on an NPU the list
    versions: Dict[str, str]


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


class Failed(Exception):
    """A command failed in a way that another attempt, or another chip, may mend; the text is its last line."""


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


def versions(device: str, backend: str) -> Dict[str, str]:
    """What must be the same on every host for the results to be the same, as far as versions can tell."""
    digest = hashlib.sha256()
    for name in sorted(os.listdir(os.path.join(SUITE, "tsm"))):
        if name.endswith(".py"):
            digest.update(sha256(os.path.join(SUITE, "tsm", name)).encode())
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
    here = versions(job.device, job.backend)
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
            raise Unfit("%s: %s" % (path, missing[index]) if index in missing else what)


_opened: Dict[str, Any] = {}  # the last job's engine in this process, so that a process opens it once for all its chunks


def opened(job: Job) -> Any:
    """(engine, model, its facts) of a CPU job."""
    key = repr((job.model, job.basis, job.streams))
    if key not in _opened:
        _opened.clear()
        model = read_offline(job.model)
        options = argparse.Namespace(backend=job.backend, streams=job.streams, int8_model=job.int8_model)
        engine, int8 = open_engine(options, model, job.precision)
        _opened[key] = engine, model, about(engine, model, job.precision, int8)
    return _opened[key]


def run_chunk(job: Job, chunk: Chunk, device: str = "cpu", host: str = "") -> Piece:
    """Compute a chunk in this process, or on the NPU chip `device`; `host` is what the worker is called.

    Raises Unfit, UserError, Failed. A clip that cannot be read is in the piece's `skipped`.
    """
    check_clips(job, chunk)
    host = host or socket.gethostname()
    if job.device == "npu":
        began = time.time()
        with scratch_folder(job, chunk) as folder:
            preprocess(job, chunk, folder)
            return infer(job, chunk, folder, device)._replace(host=host, began=began)
    engine, model, facts = opened(job)
    began = time.time()
    rows, skipped = [], {}
    workers = job.num_worker or cores()
    for number, scored, compute_ms, wait_ms in stream.compute(job.source, chunk.clips, engine, model, workers):
        if isinstance(scored, Corrupt):
            skipped[number] = str(scored)
        else:
            rows.append((scored, (compute_ms, wait_ms)))
    rows.sort(key=lambda row: row[0].number)
    few = {key: value for key, value in facts.items() if key != "model"}
    return Piece(host, "cpu", began, time.time(), [scored for scored, _ in rows], skipped, [times for _, times in rows], few, {})


def in_turn(job: Job, chunks: Sequence[Chunk], flight: Flight) -> Iterator[Tuple[Chunk, Piece]]:
    """Carrier: in this process, one after the other. An engine uses all cores, so a second process would gain nothing."""
    host = socket.gethostname()
    for chunk in chunks:
        flight({host: 1})
        yield chunk, run_chunk(job, chunk, host=host)


def scratch_of(job: Job) -> str:
    """The folder for the tensors of this job, of a name that a later process of the same job finds again."""
    digest = hashlib.sha256(job.basis.encode()).hexdigest()[:12]
    return os.path.join(job.scratch or tempfile.gettempdir(), ".tsm_%d_%s" % (os.getuid(), digest))


@contextlib.contextmanager
def scratch_folder(job: Job, chunk: Chunk) -> Iterator[str]:
    """An empty folder for a chunk's tensors, removed at the end; a killed process leaves it, and the next one empties it."""
    folder = os.path.join(scratch_of(job), "%d_%d" % (chunk.start, chunk.stop))
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder, 0o750)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_command(words: Sequence[str], running: Optional[List[Any]] = None) -> Tuple[int, str]:
    """(exit status, last line that it wrote) of a command, which ends with this process; `running` lists it meanwhile."""
    def begin() -> None:
        os.umask(0o022)  # ais_bench refuses what others can write
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               universal_newlines=True, preexec_fn=begin)
    if running is not None:
        running.append(process)
    out, err = process.communicate()
    if running is not None:
        running.remove(process)
    lines = [line.strip() for line in (out + "\n" + err).splitlines() if line.strip()]
    return process.returncode, lines[-1] if lines else "it said nothing"


def preprocess(job: Job, chunk: Chunk, folder: str, running: Optional[List[Any]] = None) -> None:
    """Make the tensors of a chunk in `folder`, by TSM_preprocess.py."""
    words = [sys.executable, os.path.join(SUITE, "TSM_preprocess.py"), "--data_root", job.source.data_root, "--ann_file",
             job.ann_file, "--filename_tmpl", job.source.naming.template, "--start_index", str(job.source.naming.start),
             "--on-error", "skip", "--range", "%d:%d" % (chunk.start, chunk.stop), "--output_dir", folder,
             "--num_worker", str(job.num_worker or cores())]
    status, said = run_command(words, running)
    if status < 0:
        raise Failed("TSM_preprocess.py was ended by %s" % signal.Signals(-status).name)
    if status:
        raise UserError(re.sub("^[^ ]*: error: ", "", said))


def infer(job: Job, chunk: Chunk, folder: str, chip: str, running: Optional[List[Any]] = None) -> Piece:
    """The piece of a preprocessed chunk, by a single-device ais_bench on a chip."""
    manifest = read_manifest(os.path.join(folder, MANIFEST))
    lines = {clip.line: index for index, clip in chunk.clips.items()}
    skipped = {lines[entry["line"]]: entry["reason"] for entry in manifest["skipped"] if entry["line"] in lines}
    samples = {entry["id"]: entry["xxh3_128"] for entry in manifest["samples"]}
    began, name, results = time.time(), "chip " + chip, os.path.join(folder, "out")
    scored, times, figures = [], [], {}
    if samples:
        words = [sys.executable, "-m", "ais_bench", "--model", job.model, "--input", os.path.join(folder, BINS),
                 "--output", folder, "--output_dirname", "out", "--outfmt", "NPY", "--device", chip]
        status, said = run_command(words, running)
        if status:
            raise Failed("ais_bench ended with status %d: %s" % (status, first_line(said)))
        summary = read_summary(summary_path(results))
        times = [(float(ms), 0.0) for ms in summary["npu_compute_time_list"]]
        figures = {key: summary[key] for key in TIMES[1:] if key in summary}
        for index in sorted(set(samples) & set(chunk.clips)):
            scored.append(Scored(index, scores_of(os.path.join(results, "%d_0.npy" % index), job), samples[index], None))
    return Piece("", name, began, time.time(), scored, skipped, times, {"engine": "ais_bench"}, figures)


def scores_of(path: str, job: Job) -> np.ndarray:
    """The row of probabilities, float32 [classes], that ais_bench wrote for one video."""
    classes = job.source.protocol.classes
    rows = read_npy(path).reshape(-1)
    if rows.size != classes or not np.isfinite(rows).all():
        raise UserError("%s: its output for video %s is no row of %d finite scores; is it a model of modify_onnx.py?"
                        % (job.model, os.path.basename(path).split("_")[0], classes))
    return rows.astype(np.float32)


def on_chips(
    job: Job, chunks: Sequence[Chunk], flight: Flight, chips: Sequence[int]
) -> Iterator[Tuple[Chunk, Piece]]:
    """Carrier: on the NPU chips of this host, each a single-device ais_bench that pulls the next chunk.

    While the chips infer, one more chunk is preprocessed, by all cores. A chunk that fails on one chip is given to another;
    a chip that fails ATTEMPTS times in a row is not used any more, and a chunk that fails so often ends the run.
    """
    free, failures, running = list(map(str, chips)), {str(chip): 0 for chip in chips}, []  # type: ignore[var-annotated]
    making, change, ended = threading.Lock(), threading.Condition(), threading.Event()
    host, under_way = socket.gethostname(), set()  # type: ignore[var-annotated]

    def take(avoided: List[str]) -> str:
        with change:
            while not ended.is_set():
                usable = [chip for chip, count in failures.items() if count < ATTEMPTS]
                if not usable:
                    raise UserError("no chip is left: each failed %d times in a row; look at npu-smi info" % ATTEMPTS)
                wanted = [chip for chip in usable if chip not in avoided] or usable
                for chip in free:
                    if chip in wanted:
                        free.remove(chip)
                        return chip
                change.wait(1.0)
        raise UserError("the run is ending")

    def infer_somewhere(chunk: Chunk, folder: str) -> Piece:
        avoided: List[str] = []
        while True:
            chip = take(avoided)
            try:
                piece = infer(job, chunk, folder, chip, running)
                failures[chip] = 0
                return piece
            except Failed as error:
                failures[chip] += 1
                avoided.append(chip)
                if ended.is_set() or len(avoided) >= ATTEMPTS:
                    raise UserError("%s: failed %d times, last on chip %s: %s" % (chunk.name, len(avoided), chip, error))
                warn("chip %s failed on %s (%s); tried again" % (chip, chunk.name, error))
            finally:
                with change:
                    free.append(chip)
                    change.notify_all()

    def carry(chunk: Chunk) -> Piece:
        with scratch_folder(job, chunk) as folder:
            with making:
                if ended.is_set():
                    raise UserError("the run is ending")
                under_way.add(chunk.start)
                began = time.time()
                preprocess(job, chunk, folder, running)
            return infer_somewhere(chunk, folder)._replace(host=host, began=began)

    shutil.rmtree(scratch_of(job), ignore_errors=True)  # of a run that was killed
    pool = ThreadPoolExecutor(len(chips) + 1)
    futures = {pool.submit(carry, chunk): chunk for chunk in chunks}
    try:
        for future in as_completed(futures):
            under_way.discard(futures[future].start)
            flight({host: len(under_way)})
            yield futures[future], future.result()
    finally:
        ended.set()
        for future in futures:
            future.cancel()
        for process in list(running):
            process.kill()
        pool.shutdown()
        shutil.rmtree(scratch_of(job), ignore_errors=True)


def shard_of(videos: int, number: int, count: int) -> range:
    """The videos of share `number` (from 0) of `count`: contiguous, and of equal size but for one."""
    return range(number * videos // count, (number + 1) * videos // count)


def check_space(job: Job, chunks: Sequence[Chunk], at_once: int) -> None:
    """UserError unless the tensors of so many chunks fit on the disk of this host's scratch folder."""
    folder = job.scratch or tempfile.gettempdir()
    largest = max(chunk.stop - chunk.start for chunk in chunks)
    need, free = min(at_once, len(chunks)) * largest * job.source.protocol.nbytes(job.source.dtype), shutil.disk_usage(folder).free
    if need > free:
        raise UserError("%s: %d chunks of %d videos need %.1f GB, %.1f GB are free; free some, use a smaller --chunk or another "
                        "--scratch" % (folder, min(at_once, len(chunks)), largest, need / 1e9, free / 1e9))


def missing_shards(found: Survey, videos: int, shards: Mapping[int, Any]) -> List[str]:
    """Which shares of the list have videos left, in words, by the numbers of shares that were ever worked at."""
    words = []
    for count in sorted(shards):
        for number in range(count):
            share = shard_of(videos, number, count)
            left = sum(index in found.keys for index in share)
            if left:
                words.append("--shard %d/%d has %d of its %d videos to do" % (number, count, left, len(share)))
    return words

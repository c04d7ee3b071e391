"""Chunks on Ascend NPUs: tsm.infer.preprocess and a single-device ais_bench, with the tensors in a folder of this host.

One process of ais_bench per chip: given several devices, its versions differ in what they do, and none joins the results.
"""

import argparse
import contextlib
import glob
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np

from tsm.chain.npu import devices, smi_info, the_chip, why_it_failed
from tsm.cli import Corrupt, UserError, warn
from tsm.infer import preprocess
from tsm.infer.journal import Done, Piece, Skipped
from tsm.infer.lists import Chunk, Flight, Job
from tsm.machine import cores, die_with_parent, workers_that_fit
from tsm.results import TIMES, read_npy, read_summary, summary_path
from tsm.workfolder import BINS

ATTEMPTS = 3  # failures in a row that a chip may have


class Failed(Exception):
    """A command failed in a way that another attempt, or another chip, may mend; the text is its last line."""


class Prepared(NamedTuple):
    """A chunk whose tensors are made, in this folder, since `began`; those that are, and what cannot be read."""

    chunk: Chunk
    folder: str
    began: float
    done: Dict[int, preprocess.Made]
    skipped: Dict[int, Corrupt]


def chip_list(text: str) -> List[int]:
    """argparse type: chips of this host, as in 0,1."""
    words = text.split(",")
    chips = [int(word) for word in words if re.match(r"[0-9]{1,3}$", word)]
    if len(chips) < len(words) or len(set(chips)) < len(chips):
        raise argparse.ArgumentTypeError("%r is no list of chips, each once, such as 0,1" % text)
    return chips


def chips_here() -> List[int]:
    """The chips that npu-smi lists. Raises UserError, with npu-smi's own words, if there is none."""
    listed = smi_info()
    the_chip(listed)
    return devices(listed)


def scratch_of(job: Job) -> str:
    """What the folders for the tensors of this job begin with: a later process of the same job finds them by it."""
    return os.path.join(job.scratch or tempfile.gettempdir(), ".tsm_%d_%s_" % (os.getuid(), job.tag))


def remove_scratch(job: Job) -> None:
    """Remove the tensors of this job, of a run that was killed or of this one."""
    for folder in glob.glob(glob.escape(scratch_of(job)) + "*"):
        shutil.rmtree(folder, ignore_errors=True)


def emptied(job: Job, chunk: Chunk) -> Prepared:
    """A chunk, and the emptied folder of its tensors, of which there is none yet."""
    folder = scratch_of(job) + "%d_%d" % (chunk.start, chunk.stop)
    shutil.rmtree(folder, ignore_errors=True)
    os.umask(os.umask(0o022) | 0o022)  # ais_bench refuses what others can write
    os.makedirs(folder, 0o750)
    os.mkdir(os.path.join(folder, BINS))
    return Prepared(chunk, folder, time.time(), {}, {})


def make_tensors(job: Job, made: Prepared) -> Iterator[None]:
    """Make the tensors of a chunk; yields after each of them."""
    tensors = preprocess.Tensors(made.chunk.clips, job.source, made.folder, made.skipped.__setitem__)
    workers = workers_that_fit(job.num_worker or cores(), tensors.nbytes)
    with contextlib.closing(preprocess.make(tensors, made.chunk.keys, made.done, workers)) as steps:
        for _ in steps:
            yield


def run_command(words: Sequence[str], running: List[Any]) -> Tuple[int, str]:
    """(exit status, why it failed if it did) of a command, which ends with this process; `running` lists it meanwhile."""
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               encoding="utf-8", errors="backslashreplace", preexec_fn=die_with_parent)
    running.append(process)
    out, err = process.communicate()
    running.remove(process)
    return process.returncode, why_it_failed(out + "\n" + err)


def infer_on(job: Job, made: Prepared, chip: str, running: List[Any]) -> Piece:
    """The piece of a chunk whose tensors are there, by a single-device ais_bench on a chip. Raises Failed, UserError."""
    done: List[Done] = []
    times: List[Tuple[float, float]] = []
    figures: Dict[str, Any] = {}
    if made.done:
        words = [sys.executable, "-m", "ais_bench", "--model", job.model, "--input", os.path.join(made.folder, BINS),
                 "--output", made.folder, "--output_dirname", "out", "--outfmt", "NPY", "--device", chip]
        status, said = run_command(words, running)
        if status:
            raise Failed("ais_bench ended with status %d: %s" % (status, said))
        results = os.path.join(made.folder, "out")
        summary = read_summary(summary_path(results))
        try:
            times = [(float(ms), 0.0) for ms in summary["npu_compute_time_list"]]
        except (KeyError, TypeError, ValueError):
            raise Failed("ais_bench's summary has no npu_compute_time_list of numbers")
        figures = {key: summary[key] for key in TIMES[1:] if key in summary}
        for index, one in sorted(made.done.items()):
            done.append(Done(index, one.xxh3_128, None, row_of(os.path.join(results, "%d_0.npy" % index), job)))
    shutil.rmtree(made.folder, ignore_errors=True)
    return Piece(socket.gethostname(), "chip " + chip, made.began, time.time(), done,
                 [Skipped(*one) for one in made.skipped.items()], times, {"engine": "ais_bench"}, figures)


def row_of(path: str, job: Job) -> np.ndarray:
    """The probabilities, float32 [1, classes], that ais_bench wrote for one video."""
    classes = job.source.protocol.classes
    rows = read_npy(path).reshape(-1)
    if rows.size != classes or not np.isfinite(rows).all():
        raise UserError("%s: its output for video %s is no row of %d finite scores; is it a model of modify_onnx.py that takes %s?"
                        % (job.model, os.path.basename(path).split("_")[0], classes, job.source.dtype))
    return rows.astype(np.float32)[None]


def run_on_chip(job: Job, chunk: Chunk, chip: str) -> Piece:
    """Compute a chunk on a chip of this host. A clip that cannot be read is in the piece's `skipped`. Raises UserError, Failed."""
    made = emptied(job, chunk)
    try:
        for _ in make_tensors(job, made):
            pass
        return infer_on(job, made, chip, [])
    finally:
        shutil.rmtree(made.folder, ignore_errors=True)


def on_chips(job: Job, chunks: Sequence[Chunk], flight: Flight, chips: Sequence[int]) -> Iterator[Piece]:
    """Carrier: on NPU chips of this host, each taking the next chunk, while one more is preprocessed by all cores. A chunk that fails is
    tried again, behind the others; a chip that fails ATTEMPTS times in a row is not used any more."""
    idle: "queue.Queue[str]" = queue.Queue()  # chips
    failures = {str(chip): 0 for chip in chips}  # in a row
    running: List[Any] = []  # commands
    under_way: Dict["Future[Piece]", Prepared] = {}
    pool, over = ThreadPoolExecutor(len(chips)), False

    def infer(made: Prepared) -> Piece:
        chip = idle.get()
        try:
            piece = infer_on(job, made, chip, running)
            failures[chip] = 0
            return piece
        except Failed as error:
            failures[chip] += 1
            if not over:  # else its command was killed
                warn("chip %s failed on %s (%s); tried again" % (chip, made.chunk.name, error))
            raise
        finally:
            if failures[chip] < ATTEMPTS:
                idle.put(chip)

    def taken(most: int) -> Iterator[Piece]:
        """What has come; and what comes, until no more than `most` chunks are under way."""
        while len(under_way) > most or any(future.done() for future in under_way):
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                made, error = under_way.pop(future), future.exception()
                if not isinstance(error, Failed):
                    flight({socket.gethostname(): len(under_way)})
                    yield future.result()
                elif min(failures.values()) < ATTEMPTS:
                    under_way[pool.submit(infer, made)] = made
                else:
                    raise UserError("no chip is left: each failed %d times in a row, at last with: %s; mend that, or look at npu-smi info"
                                    % (ATTEMPTS, error))

    remove_scratch(job)
    for chip in failures:
        idle.put(chip)
    try:
        for chunk in chunks:
            yield from taken(len(chips))
            made = emptied(job, chunk)
            for _ in make_tensors(job, made):
                yield from taken(len(chunks))
            under_way[pool.submit(infer, made)] = made
        yield from taken(0)
    finally:
        over = True
        for future in under_way:
            future.cancel()
            idle.put(str(chips[0]))  # one may be waiting for a chip that is not used any more
        while not all(future.done() for future in under_way):
            for process in list(running):
                process.kill()
            wait(under_way, 0.05)
        remove_scratch(job)


def check_scratch(job: Job, chunks: Sequence[Chunk], at_once: int) -> None:
    """UserError unless the tensors of so many chunks fit on the disk of this host's scratch folder."""
    count, largest = min(at_once, len(chunks)), max(chunk.stop - chunk.start for chunk in chunks)
    preprocess.check_space(job.scratch or tempfile.gettempdir(), count * largest * job.source.protocol.nbytes(job.source.dtype),
                           "%d chunks of %d videos" % (count, largest), "use a smaller --chunk or another --scratch")

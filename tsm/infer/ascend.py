"""Chunks on Ascend NPUs: TSM_preprocess.py and a single-device ais_bench, with the tensors in a folder of this host.

One process of ais_bench per chip: given several devices, its versions differ in what they do, and none joins the results.
"""

import argparse
import contextlib
import glob
import hashlib
import os
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
from typing import Any, Iterator, List, Sequence, Tuple

import numpy as np

from tsm.chain.npu import devices, listing, the_chip
from tsm.cli import Corrupt, UserError, first_line, warn
from tsm.files import write_json
from tsm.infer.journal import Piece, Scored
from tsm.infer.lists import ATTEMPTS, SUITE, Chunk, Flight, Job, check_clips
from tsm.machine import cores, die_with_parent
from tsm.results import TIMES, read_npy, read_summary, summary_path
from tsm.samples import read_manifest
from tsm.workfolder import BINS, MANIFEST, PROTOCOL


class Failed(Exception):
    """A command failed in a way that another attempt, or another chip, may mend; the text is its last line."""


def chip_list(text: str) -> List[int]:
    """argparse type: chips of this host, as in 0,1."""
    words = text.split(",")
    chips = [int(word) for word in words if re.match(r"[0-9]{1,3}$", word)]
    if len(chips) < len(words) or len(set(chips)) < len(chips):
        raise argparse.ArgumentTypeError("%r is no list of chips, each once, such as 0,1" % text)
    return chips


def chips_here() -> List[int]:
    """The chips that npu-smi lists. Raises UserError, with npu-smi's own words, if there is none."""
    listed = listing()
    the_chip(listed)
    return devices(listed)


def scratch_of(job: Job) -> str:
    """What the folders for the tensors of this job begin with: a later process of the same job and shard finds them by it, and no
    other run has the same, whose results go elsewhere."""
    digest = hashlib.sha256(repr((job.basis, job.results, job.shard)).encode()).hexdigest()[:12]
    return os.path.join(job.scratch or tempfile.gettempdir(), ".tsm_%d_%s_" % (os.getuid(), digest))


def remove_scratch(job: Job) -> None:
    """Remove the tensors of this job, of a run that was killed or of this one."""
    for folder in glob.glob(glob.escape(scratch_of(job)) + "*"):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder(job: Job, chunk: Chunk) -> Iterator[str]:
    """An empty folder for a chunk's tensors, removed at the end. A killed process leaves it, and who does the same chunk next on
    this host empties it."""
    folder = scratch_of(job) + "%d_%d" % (chunk.start, chunk.stop)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder, 0o750)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_command(words: Sequence[str], running: List[Any]) -> Tuple[int, str]:
    """(exit status, last line that it wrote) of a command, which ends with this process; `running` lists it meanwhile."""
    def begin() -> None:
        os.umask(0o022)  # ais_bench refuses what others can write
        die_with_parent()

    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               encoding="utf-8", errors="backslashreplace", preexec_fn=begin)
    running.append(process)
    out, err = process.communicate()
    running.remove(process)
    lines = [line.strip() for line in (out + "\n" + err).splitlines() if line.strip()]
    return process.returncode, lines[-1] if lines else "it said nothing"


def preprocess(job: Job, chunk: Chunk, folder: str, running: List[Any]) -> None:
    """Make the tensors of a chunk in `folder`, by TSM_preprocess.py."""
    protocol = os.path.join(folder, PROTOCOL)
    write_json(protocol, job.source.protocol._asdict())
    words = [sys.executable, os.path.join(SUITE, "TSM_preprocess.py"), "--data_root", job.source.data_root, "--ann_file",
             job.ann_file, "--filename_tmpl", job.source.naming.template, "--start_index", str(job.source.naming.start),
             "--on-error", "skip", "--range", "%d:%d" % (chunk.start, chunk.stop), "--output_dir", folder,
             "--num_worker", str(job.num_worker or cores())]
    status, said = run_command(words + ["--protocol", protocol], running)
    if status < 0:
        raise UserError("%s: TSM_preprocess.py was ended by %s; run the same command again" % (chunk.name, signal.Signals(-status).name))
    if status:
        raise UserError(re.sub("^[^ ]*: error: ", "", said))


def infer(job: Job, chunk: Chunk, folder: str, chip: str, running: List[Any]) -> Piece:
    """The piece of a preprocessed chunk, by a single-device ais_bench on a chip."""
    manifest = read_manifest(os.path.join(folder, MANIFEST))
    lines = {clip.line: index for index, clip in chunk.clips.items()}
    skipped = {lines[entry["line"]]: Corrupt(entry["reason"]) for entry in manifest["skipped"] if entry["line"] in lines}
    samples = {entry["id"]: entry for entry in manifest["samples"]}
    for index, clip in chunk.clips.items():
        if index not in skipped and samples.get(index, {}).get("source") != clip.source:
            raise UserError("%s: holds no tensor of %s; let no other run use this folder, by another --scratch" % (folder, clip.source))
    began, results = time.time(), os.path.join(folder, "out")
    scored, times, figures = [], [], {}
    if samples:
        words = [sys.executable, "-m", "ais_bench", "--model", job.model, "--input", os.path.join(folder, BINS),
                 "--output", folder, "--output_dirname", "out", "--outfmt", "NPY", "--device", chip]
        status, said = run_command(words, running)
        if status:
            raise Failed("ais_bench ended with status %d: %s" % (status, first_line(said)))
        summary = read_summary(summary_path(results))
        try:
            times = [(float(ms), 0.0) for ms in summary["npu_compute_time_list"]]
        except (KeyError, TypeError, ValueError):
            raise Failed("ais_bench's summary has no npu_compute_time_list of numbers")
        figures = {key: summary[key] for key in TIMES[1:] if key in summary}
        for index in sorted(set(samples) & set(chunk.clips)):
            scored.append(Scored(index, scores_of(os.path.join(results, "%d_0.npy" % index), job), samples[index]["xxh3_128"], None))
    return Piece(socket.gethostname(), "chip " + chip, began, time.time(), scored, skipped, times, {"engine": "ais_bench"}, figures)


def scores_of(path: str, job: Job) -> np.ndarray:
    """The row of probabilities, float32 [classes], that ais_bench wrote for one video."""
    classes = job.source.protocol.classes
    rows = read_npy(path).reshape(-1)
    if rows.size != classes or not np.isfinite(rows).all():
        raise UserError("%s: its output for video %s is no row of %d finite scores; is it a model of modify_onnx.py?"
                        % (job.model, os.path.basename(path).split("_")[0], classes))
    return rows.astype(np.float32)


def run_chunk(job: Job, chunk: Chunk, chip: str) -> Piece:
    """Compute a chunk on a chip of this host. A clip that cannot be read is in the piece's `skipped`.

    Raises Unfit, UserError, Failed.
    """
    check_clips(job, chunk)
    began = time.time()
    with scratch_folder(job, chunk) as folder:
        preprocess(job, chunk, folder, [])
        return infer(job, chunk, folder, chip, [])._replace(began=began)


class Pool:
    """The chips of this host, each lent to one thread at a time; `failures` counts those in a row, `failure` is the last one."""

    def __init__(self, chips: Sequence[int]) -> None:
        self.free = [str(chip) for chip in chips]
        self.failures = dict.fromkeys(self.free, 0)
        self.change, self.ended, self.failure = threading.Condition(), False, ""

    def take(self, avoided: Sequence[str]) -> str:
        """Wait for a chip, if there is one that works beside those to be avoided for one of them."""
        with self.change:
            while not self.ended:
                usable = [chip for chip, count in self.failures.items() if count < ATTEMPTS]
                if not usable:
                    raise UserError("no chip is left: each failed %d times in a row, at last with: %s; mend that, or look at npu-smi info"
                                    % (ATTEMPTS, self.failure))
                wanted = [chip for chip in usable if chip not in avoided] or usable
                for chip in self.free:
                    if chip in wanted:
                        self.free.remove(chip)
                        return chip
                self.change.wait()
        raise UserError("the run is ending")

    def give(self, chip: str, failure: str) -> None:
        """Give a chip back, after a `failure` if there is one."""
        with self.change:
            self.failures[chip] = self.failures[chip] + 1 if failure else 0
            self.failure = failure or self.failure
            self.free.append(chip)
            self.change.notify_all()

    def end(self) -> None:
        with self.change:
            self.ended = True
            self.change.notify_all()


def infer_somewhere(job: Job, chunk: Chunk, folder: str, pool: Pool, running: List[Any]) -> Piece:
    """The piece of a preprocessed chunk; one that fails on one chip is given to another, ATTEMPTS times in all."""
    tried: List[str] = []
    while True:
        chip = pool.take(tried)
        try:
            piece = infer(job, chunk, folder, chip, running)
        except Exception as error:
            pool.give(chip, first_line(error))
            if not isinstance(error, Failed):
                raise
            tried.append(chip)
            if pool.ended or len(tried) >= ATTEMPTS:
                raise UserError("%s: failed %d times, last on chip %s: %s" % (chunk.name, len(tried), chip, error))
            warn("chip %s failed on %s (%s); tried again" % (chip, chunk.name, error))
        else:
            pool.give(chip, "")
            return piece


def on_chips(job: Job, chunks: Sequence[Chunk], flight: Flight, chips: Sequence[int]) -> Iterator[Piece]:
    """Carrier: on NPU chips of this host, each pulling the next chunk.

    While the chips infer, one more chunk is preprocessed, by all cores. A chip that fails ATTEMPTS times in a row is not
    used any more.
    """
    pool, making, running, under_way = Pool(chips), threading.Lock(), [], set()  # type: ignore[var-annotated]

    def carry(chunk: Chunk) -> Piece:
        with scratch_folder(job, chunk) as folder:
            with making:
                if pool.ended:
                    raise UserError("the run is ending")
                under_way.add(chunk.start)
                began = time.time()
                preprocess(job, chunk, folder, running)
            return infer_somewhere(job, chunk, folder, pool, running)._replace(began=began)

    remove_scratch(job)
    threads = ThreadPoolExecutor(len(chips) + 1)
    futures = {threads.submit(carry, chunk): chunk for chunk in chunks}
    try:
        for future in as_completed(futures):
            under_way.discard(futures[future].start)
            flight({socket.gethostname(): len(under_way)})
            yield future.result()
    finally:
        pool.end()
        for future in futures:
            future.cancel()
        for process in list(running):
            process.kill()
        threads.shutdown()
        remove_scratch(job)


def check_space(job: Job, chunks: Sequence[Chunk], at_once: int) -> None:
    """UserError unless the tensors of so many chunks fit on the disk of this host's scratch folder."""
    folder = job.scratch or tempfile.gettempdir()
    largest = max(chunk.stop - chunk.start for chunk in chunks)
    need, free = min(at_once, len(chunks)) * largest * job.source.protocol.nbytes(job.source.dtype), shutil.disk_usage(folder).free
    if need > free:
        raise UserError("%s: %d chunks of %d videos need %.1f GB, %.1f GB are free; free some, use a smaller --chunk or another "
                        "--scratch" % (folder, min(at_once, len(chunks)), largest, need / 1e9, free / 1e9))

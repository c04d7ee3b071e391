"""A list of videos to result files with no tensor on disk that stays, restartable by its journal: what is to be done, in chunks
that can be computed anywhere, and how the whole is finished.

A carrier is a function (job, chunks, flight) -> iterator of the Pieces that come, in any order: in_turn() in this process,
tsm.infer.ascend.on_chips() on the NPUs of this host, tsm.infer.cluster.on_ray() on other hosts. The last two call
flight({host: chunks under way}).
"""

import argparse
import contextlib
import hashlib
import math
import os
import re
import socket
import time
from typing import Any, Callable, Dict, Generator, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from tsm import __version__
from tsm.cli import Corrupt, UserError, folder_name, positive
from tsm.files import write_json
from tsm.infer import engine as engines
from tsm.infer import journal
from tsm.infer.journal import Done, Origin, Piece, Progress, Skipped, Work
from tsm.machine import cores
from tsm.model.offline import Offline, read_offline
from tsm.protocol import read_protocol
from tsm.results import curve_path, rate_line, read_scores
from tsm.samples import Clip, check_data_root, check_readable, checksum, chunk_size, manifest_of, publish, read_list, stratified
from tsm.video import clips
from tsm.video.frames import Naming, add_list
from tsm.video.windows import paced
from tsm.workers import each
from tsm.workfolder import BINS, INFO, MANIFEST, PREPROCESSED

WORK_SECONDS = 60  # of a chunk whose size nobody gave: loading a model then costs under 5 %
SAMPLE = 8  # videos that the rate is measured on

Flight = Callable[[Dict[str, int]], None]


class Job(NamedTuple):
    """What every chunk of a list shares, as a value that travels."""

    source: Origin
    basis: str  # what all results depend on, beside their videos
    device: str  # cpu or npu
    model: str
    computing: engines.Computing
    num_worker: Optional[int]  # None: one per core of the host
    scratch: str  # where an NPU's tensors go; empty: the host's folder for temporary files
    tag: str  # of its folders there; no run has it that may be at work at the same time
    digests: Dict[str, str]  # {file: SHA-256} of what a host must have: the model, its int8 file
    every: Optional[float] = None  # seconds from one frame to the next that an online model is shown; None: those of the test


class Chunk(NamedTuple):
    """Videos of the list from `start` to `stop` - 1, less those that are done; `keys` say what each depends on."""

    start: int
    stop: int
    clips: Dict[int, Clip]
    keys: Dict[int, str]

    @property
    def name(self) -> str:
        return "videos %d:%d" % (self.start, self.stop)


def add_inputs(cli: argparse.ArgumentParser) -> None:
    """The options that say what is computed and where its results go."""
    cli.add_argument("--model", "-m", required=True, metavar="FILE", help="a model of modify_onnx.py")
    cli.add_argument("--output", "-o", required=True, metavar="DIR", help="where results go")
    cli.add_argument("--output_dirname", type=folder_name, default="out", metavar="NAME", help="their folder inside --output "
                     "(default: %(default)s)")
    cli.add_argument("--outfmt", choices=("NPY", "BIN", "TXT"), default="BIN", help="default: %(default)s")
    cli.add_argument("--output_dir", default=PREPROCESSED, metavar="OUT", help="where info file and manifest go (default: %(default)s)")
    add_list(cli)


def job_of(args: argparse.Namespace) -> Tuple[Job, Work, Dict[int, Clip], Optional[Offline]]:
    """(the job that TSM_stream.py's options describe, the folder of its results, the list, on a CPU the model)."""
    model: Optional[Offline] = None
    path, folder = os.path.abspath(args.model), os.path.join(args.output, args.output_dirname)
    check_data_root(args.data_root)
    if args.device == "npu":
        protocol, dtype, computing = read_protocol(args.protocol), args.dtype, engines.Computing("ais_bench", "fp32", None, "")
    else:
        model = engines.for_views(read_offline(args.model), args.every)
        if (args.curve or args.every) and model.target != "online":
            raise UserError("--%s: %s is no online model; make one with modify_onnx.py --target online" % (
                "curve" if args.curve else "every", args.model))
        protocol, dtype, computing = model.tested_by, model.dtype.name, engines.computing_of(args, path)
        computing = computing._replace(int8_model=computing.int8_model and os.path.abspath(computing.int8_model))
    naming = Naming(args.filename_tmpl, args.start_index)
    listed = dict(enumerate(read_list(args.ann_file, protocol, args.data_root)))
    digests = engines.digests_of(path, computing)
    tensors = clips.basis(listed, protocol, dtype, naming) + (" nearest to every %g" % args.every if args.every else "")
    basis = engines.basis_of(digests, computing, tensors)
    scratch = args.scratch or ("" if args.ray else args.output_dir)
    tag = hashlib.sha256(repr((basis, os.path.abspath(folder), args.shard)).encode()).hexdigest()[:12]
    job = Job(Origin(os.path.abspath(args.data_root), naming, protocol, dtype), basis, args.device, path, computing, args.num_worker,
              scratch and os.path.abspath(scratch), tag, digests, args.every)
    work = Work(folder, args.outfmt, {index: os.path.join(args.output_dir, BINS, "%d.bin" % index) for index in listed},
                (curve_path(folder),) + tuple(os.path.join(args.output_dir, name) for name in (INFO, MANIFEST)))
    return job, work, listed, model


def so_far(job: Job, work: Work, chosen: Mapping[int, Clip], closing: bool = False) -> Progress:
    """How far the `chosen` clips of a list are, as survey() finds it."""
    return journal.survey(work, *journal.keys_of(job.source, chosen, job.basis), closing=closing)


def rate_in(pieces: Sequence[Piece]) -> float:
    """Videos per second of computing on a CPU, from the last pieces that tell; 0 if none does."""
    timed = [piece.times for piece in pieces if piece.done and len(piece.times) == len(piece.done)][-SAMPLE:]
    ms = sum(compute_ms + wait_ms for times in timed for compute_ms, wait_ms in times)
    return 1000 * sum(map(len, timed)) / ms if ms else 0.0


def plan(listed: Mapping[int, Clip], keys: Mapping[int, str], size: int) -> List[Chunk]:
    """The chunks of what is left, which `keys` holds: each spans at most `size` lines of the list."""
    chunks: List[Chunk] = []
    for index in sorted(keys):
        if not chunks or index >= chunks[-1].start + size:
            chunks.append(Chunk(index, index, {}, {}))
        chunk = chunks[-1]._replace(stop=index + 1)
        chunk.clips[index], chunk.keys[index] = listed[index], keys[index]
        chunks[-1] = chunk
    return chunks


def rounds(wanted: int, listed: Mapping[int, Clip], job: Job, found: Progress, at_once: int) -> Iterator[List[Chunk]]:
    """The chunks of what is left in `found`, all at once; before them, where their size is to be measured, that of a sample.

    Args:
        wanted: videos per chunk; 0: WORK_SECONDS of them on a CPU, as many as the disk may hold on an NPU.
        at_once: chunks whose tensors a host has on its disk at a time; 0: one chunk is as good as many.
    """
    if not at_once:
        wanted = len(listed)
    elif not wanted and job.device == "npu":
        left = len(found.keys)
        wanted = chunk_size(left, job.source.dtype, at_once, job.source.protocol) or -(-left // at_once)
    if not wanted and not rate_in(found.pieces):
        yield plan(listed, {index: found.keys[index] for index in sorted(found.keys)[:SAMPLE]}, len(listed))
    if found.keys:
        yield plan(listed, found.keys, wanted or max(SAMPLE, math.ceil(WORK_SECONDS * rate_in(found.pieces))))


def chunk_option(text: str) -> int:
    """argparse type: videos per chunk, 0 for auto."""
    return 0 if text == "auto" else positive(text)


def share(text: str) -> Tuple[int, int]:
    """argparse type: (I, N) of I/N, with I from 0 to N - 1."""
    match = re.match(r"(\d{1,6})/(\d{1,6})$", text)
    if not match or int(match.group(1)) >= int(match.group(2)):
        raise argparse.ArgumentTypeError("%r is not I/N, with I from 0 to N - 1, as in 0/3" % text)
    return int(match.group(1)), int(match.group(2))


_open: Dict[str, Tuple[engines.Engine, Offline]] = {}  # the last job's engine in this process, which opens it once for all its chunks


def engine_of(job: Job) -> Tuple[engines.Engine, Offline]:
    """The engine and the model of a CPU job."""
    key = repr((job.model, job.basis, job.computing.streams))
    if key not in _open:
        _open.clear()
        model = engines.for_views(read_offline(job.model), job.every)
        _open[key] = engines.open_engine(model, job.computing, listed=True), model
    return _open[key]


def in_turn(job: Job, chunks: Sequence[Chunk], flight: Optional[Flight] = None) -> Iterator[Piece]:
    """Carrier: in this process, which decodes and computes one video after the other, each a piece of its own, whatever chunks they
    are in, so that the engine is never idle. It uses all cores, so a second process would gain nothing."""
    began, checksums, seen = time.time(), {}, {}  # type: ignore[var-annotated]
    listed = {index: clip for chunk in chunks for index, clip in chunk.clips.items()}
    videos = videos_of(job, listed, checksums)
    engine, model = engine_of(job)
    if flight:
        print(engines.said_of(engine, model), flush=True)
    for number, output, compute_ms, wait_ms in engines.run_stream(engine, model, videos, lambda key, *told: seen.update({key: told})):
        device = "chip 0" if job.computing.backend == "ascend" else "cpu"
        piece = Piece(socket.gethostname(), device, began, time.time(), [], [], [], engines.about(engine), {})
        if isinstance(output, Corrupt):
            piece.skipped.append(Skipped(number, output))
        else:
            votes, curve = seen.pop(number)
            piece.done.append(Done(number, checksums.pop(number), votes.tolist(), output, curve=None if curve is None else curve.tolist()))
            piece.times.append((compute_ms, wait_ms))
        yield piece
        began = piece.ended


def run_in_memory(job: Job, chunk: Chunk) -> Piece:
    """Compute a chunk on the CPU, in this process and in memory. A clip that cannot be read is in the piece's `skipped`."""
    pieces = list(in_turn(job, [chunk]))
    whole = pieces[-1]._replace(began=pieces[0].began, done=[], skipped=[], times=[])
    for piece in sorted(pieces, key=lambda piece: [one.number for one in piece.done]):
        whole.done.extend(piece.done)
        whole.skipped.extend(piece.skipped)
        whole.times.extend(piece.times)
    return whole


def videos_of(job: Job, chosen: Mapping[int, Clip], checksums: Dict[int, str]) -> Generator[Tuple[int, Any], None, None]:
    """(index, tensor [1, frames, 3, size, size] or Corrupt) of some clips, in any order; their checksums go to `checksums`. What
    decodes them is forked before this returns, so call it before an engine starts its threads."""
    data_root, naming, protocol, dtype = job.source

    def shown(index: int) -> Any:
        frames = [frame for _, frame in paced(places[index][0], job.every, protocol)]
        return clips.as_video(frames, range(len(frames)), protocol._replace(segments=len(frames)), dtype)

    places = {index: (os.path.join(data_root, clip.source), clip.frames) for index, clip in chosen.items()}
    workers = job.num_worker or cores()
    results = each(shown, places, min(workers, len(places))) if job.every else clips.decoded(
        places, protocol, dtype, workers, naming)

    def videos() -> Generator[Tuple[int, Any], None, None]:
        with contextlib.closing(results):
            for index, video in results:
                if isinstance(video, Corrupt):
                    yield index, video
                else:
                    checksums[index] = checksum(video)
                    yield index, video[None]

    return videos()


def shard_of(videos: int, number: int, count: int) -> range:
    """The videos of share `number` (from 0) of `count`: contiguous, and of equal size but for one."""
    return range(number * videos // count, (number + 1) * videos // count)


def missing_shards(work: Work, found: Progress, videos: int) -> List[str]:
    """Which shares of the list that were ever worked at, or are beside one that was, have videos left, in words."""
    words = []
    for count in sorted({count for _, count in journal.shard_folders(work.folder).values()}):
        for number in range(count):
            mine = shard_of(videos, number, count)
            left = sum(index in found.keys for index in mine)
            if left:
                words.append("--shard %d/%d has %d of its %d videos to do" % (number, count, left, len(mine)))
    return words


def agreement_of_list(
    args: argparse.Namespace, job: Job, work: Work, found: Progress, listed: Mapping[int, Clip], model: Offline
) -> Dict[str, Dict[str, int]]:
    """For the summary's `tsm` entry, at a precision below fp32: on how many of --agreement videos fp32 gives the same top-1."""
    answers = {index: int(read_scores(work.result(index), job.source.protocol.classes).argmax()) for index in found.done}
    chosen = {index: listed[index] for index in stratified(answers, args.agreement)}
    videos = videos_of(job, chosen, {})
    engine = engines.open_engine(model, job.computing._replace(precision="fp32"), listed=True)
    computed = engines.run_stream(engine, model, videos)
    return engines.agreement_facts([bool(output.argmax() == answers[index]) for index, output, _, _ in computed
                                    if not isinstance(output, Exception)], len(answers))


def finish(args: argparse.Namespace, job: Job, work: Work, listed: Mapping[int, Clip], found: Progress, model: Optional[Offline]) -> None:
    """Once nothing is left to do: one journal, the info file, the manifest and the summary, written last; and the figures, printed."""
    check_readable(args.ann_file, listed, found.corrupt, len(found.done))
    facts: Dict[str, Any] = dict(
        next((piece.facts for piece in reversed(found.pieces) if piece.facts), {}), version=__version__,
        workers=journal.workers_of(found.pieces), precision=job.computing.precision if model else None,
        model=model.metadata if model else None)
    if model and args.precision != "fp32" and args.agreement:
        facts.update(agreement_of_list(args, job, work, found, listed, model))
    journal.remove_others(work, found)
    checksums = {index: one.checksum for index, one in sorted(found.done.items())}
    publish(args.output_dir, manifest_of(args.ann_file, listed, job.source.protocol, job.source.dtype, clips.versions_of(listed),
                                         checksums, found.corrupt))
    if args.curve:
        answers = {index: one.curve[0] for index, one in sorted(found.done.items()) if one.curve}
        write_json(curve_path(work.folder), {"shares": engines.SHARES, "ids": list(answers), "answers": list(answers.values())}, "curve")
    pieces = [piece for piece in found.pieces if piece.done]
    seconds = journal.busy_seconds(pieces)
    if model and len({piece.host for piece in pieces}) == 1:  # as in a summary of TSM_infer.py
        seconds = min(seconds, sum(ms for piece in pieces for ms, _ in piece.times) / 1000)  # of shards, what overlaps counts once
    journal.summarise_found(work, found, len(found.done) / seconds, facts)
    print(rate_line(len(found.done) / seconds, facts))

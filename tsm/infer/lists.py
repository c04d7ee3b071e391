"""A list of videos to result files with no tensor on disk that stays, restartable by its journal: what is to be done, in chunks
that can be computed anywhere, and how the whole is finished.

A carrier is a function (job, chunks, flight) -> iterator of the Pieces that come, in any order: in_turn() in this process,
tsm.infer.ascend.on_chips() on the NPUs of this host, tsm.infer.cluster.on_ray() on other hosts. The last two call
flight({host: chunks under way}).
"""

import argparse
import contextlib
import json
import math
import os
import re
import socket
import sys
import time
from typing import Any, Callable, Dict, Generator, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from tsm import __version__
from tsm.cli import Corrupt, folder_name, positive
from tsm.files import check_place, sha256
from tsm.infer.engine import Computing, Engine, about, agreement_facts, computing_of, open_engine, run_stream
from tsm.infer.int8 import weights_file
from tsm.infer.journal import (
    Done,
    Piece,
    Progress,
    Skipped,
    Source,
    Work,
    busy_seconds,
    consolidate,
    tensor_name,
    unfinish,
    workers_of,
)
from tsm.machine import cores
from tsm.model.offline import Offline, read_offline
from tsm.protocol import read_protocol
from tsm.results import TIMES, joined, read_scores, summarise, throughput_line, write_summary
from tsm.samples import Clip, check_data_root, check_readable, checksum, chunk_size, print_skipped, publish, read_list
from tsm.video import clips
from tsm.video.frames import Naming, add_naming
from tsm.workfolder import BINS, PREPROCESSED

RESULTS = 1  # to be raised with any change that changes a result
WORK_SECONDS = 60  # of a chunk whose size nobody gave: loading a model then costs under 5 %
SAMPLE = 8  # videos that the rate is measured on

Flight = Callable[[Dict[str, int]], None]


class Job(NamedTuple):
    """What every chunk of a list shares, as a value that travels."""

    source: Source
    basis: str  # of a journal.Work
    device: str  # cpu or npu
    model: str
    computing: Computing
    num_worker: Optional[int]  # None: one per core of the host
    scratch: str  # where an NPU's tensors go; empty: the host's folder for temporary files
    digests: Dict[str, str]  # {file: SHA-256} of what a host must have: the model, its int8 file
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


def add_inputs(cli: argparse.ArgumentParser) -> None:
    """The options that say what is computed and where its results go."""
    cli.add_argument("--model", "-m", required=True, metavar="FILE", help="a model of modify_onnx.py")
    cli.add_argument("--ann_file", required=True, metavar="FILE", help="the list, as TSM_dataset.py makes it")
    cli.add_argument("--data_root", required=True, metavar="DIR", help="the folder that the list's paths start from")
    cli.add_argument("--output", "-o", required=True, metavar="DIR", help="where results go")
    cli.add_argument("--output_dirname", type=folder_name, default="out", metavar="NAME", help="their folder inside --output "
                     "(default: %(default)s)")
    cli.add_argument("--outfmt", choices=("NPY", "BIN", "TXT"), default="BIN", help="default: %(default)s")
    cli.add_argument("--output_dir", default=PREPROCESSED, metavar="OUT", help="where the info file and the manifest go (default: "
                     "%(default)s)")
    cli.add_argument("--num_worker", type=positive, metavar="N", help="processes that decode (default: one per core)")
    cli.add_argument("--on_error", choices=("fail", "skip"), default="fail", help="what an unreadable clip does (default: "
                     "%(default)s)")
    add_naming(cli)


def check_places(args: argparse.Namespace) -> None:
    """UserError where the videos are not there, or results cannot be, as the options of add_inputs() say it."""
    check_data_root(args.data_root)
    check_place(args.output_dir, os.path.join(args.output, args.output_dirname))


def digests_of(model: str, int8: str = "") -> Dict[str, str]:
    """{file: SHA-256} of the files that decide what is computed: the model first, then where it has one its int8 file."""
    files = [model] + [path for path in ((int8, weights_file(int8)) if int8 else ()) if os.path.exists(path)]
    return {path: sha256(path) for path in files}


def job_of(args: argparse.Namespace) -> Tuple[Work, Job, Optional[Offline]]:
    """(the work that TSM_stream.py's options describe, the job to be carried out, on a CPU the model)."""
    model: Optional[Offline] = None
    path = os.path.abspath(args.model)
    if args.device == "npu":
        protocol, dtype, computing = read_protocol(args.protocol), "float32", Computing("ais_bench", "fp32", None, "")
    else:
        model = read_offline(args.model)
        protocol, dtype, computing = model.tested_by, model.dtype.name, computing_of(args, path)
        computing = computing._replace(int8_model=computing.int8_model and os.path.abspath(computing.int8_model))
    source = Source(args.data_root, Naming(args.filename_tmpl, args.start_index), protocol, dtype)
    listed = dict(enumerate(read_list(args.ann_file, protocol, args.data_root)))
    digests = digests_of(path, computing.int8_model)
    digest, *int8 = digests.values()
    common = json.dumps([RESULTS, __version__, digest, computing.precision, computing.backend, int8,
                         clips.basis(listed, protocol, dtype, source.naming)])
    work = Work(source, listed, os.path.join(args.output, args.output_dirname), args.output_dir, args.outfmt, common)
    scratch = args.scratch or ("" if args.ray else args.output_dir)
    job = Job(source._replace(data_root=os.path.abspath(args.data_root)), common, args.device, path, computing,
              args.num_worker, os.path.abspath(scratch) if scratch else "", digests, os.path.abspath(work.folder))
    return work, job, model


def rate_in(pieces: Sequence[Piece]) -> float:
    """Videos per second of computing on a CPU, from the last pieces that tell; 0 if none does."""
    timed = [piece.times for piece in pieces if piece.done and len(piece.times) == len(piece.done)][-SAMPLE:]
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


def rounds(wanted: int, work: Work, job: Job, found: Progress, at_once: int) -> Iterator[List[Chunk]]:
    """The chunks of what is left in `found`, all at once; before them, where their size is to be measured, that of a sample.

    Args:
        wanted: videos per chunk; 0: WORK_SECONDS of them on a CPU, as many as the disk may hold on an NPU.
        at_once: chunks whose tensors a host has on its disk at a time; 0: one chunk is as good as many.
    """
    if not at_once:
        wanted = len(work.clips)
    elif not wanted and job.device == "npu":
        left = len(found.keys)
        wanted = chunk_size(left, job.source.dtype, at_once, job.source.protocol) or -(-left // at_once)
    if not wanted and not rate_in(found.pieces):
        yield plan(work.clips, {index: found.keys[index] for index in sorted(found.keys)[:SAMPLE]}, len(work.clips))
    if found.keys:
        yield plan(work.clips, found.keys, wanted or max(SAMPLE, math.ceil(WORK_SECONDS * rate_in(found.pieces))))


def chunk_option(text: str) -> int:
    """argparse type: videos per chunk, 0 for auto."""
    return 0 if text == "auto" else positive(text)


def share(text: str) -> Tuple[int, int]:
    """argparse type: (I, N) of I/N, with I from 0 to N - 1."""
    match = re.match(r"(\d{1,6})/(\d{1,6})$", text)
    if not match or int(match.group(1)) >= int(match.group(2)):
        raise argparse.ArgumentTypeError("%r is not I/N, with I from 0 to N - 1, as in 0/3" % text)
    return int(match.group(1)), int(match.group(2))


_opened: Dict[str, Any] = {}  # the last job's engine in this process, so that a process opens it once for all its chunks


def opened(job: Job) -> Tuple[Engine, Offline, Dict[str, str]]:
    """(engine, model, what is known of its int8 file) of a CPU job."""
    key = repr((job.model, job.basis, job.computing.streams))
    if key not in _opened:
        _opened.clear()
        model = read_offline(job.model)
        engine, int8 = open_engine(model, job.computing, listed=True)
        _opened[key] = engine, model, int8
    return _opened[key]


def in_turn(job: Job, chunks: Sequence[Chunk], flight: Optional[Flight] = None) -> Iterator[Piece]:
    """Carrier: in this process, which decodes and computes one video after the other, each a piece of its own, whatever chunks they
    are in, so that the engine is never idle. It uses all cores, so a second process would gain nothing."""
    began, checksums, agree = time.time(), {}, {}  # type: ignore[var-annotated]
    listed = {index: clip for chunk in chunks for index, clip in chunk.clips.items()}
    videos = videos_of(job.source, listed, job.num_worker or cores(), checksums)
    engine, model, int8 = opened(job)
    if flight:
        print("[INFO] %s on %d threads, %s, %s views at a time, fused by %s" % (
            engine.name, cores(), job.computing.precision, engine.streams, model.fusion), flush=True)
    for number, output, compute_ms, wait_ms in run_stream(engine, model, videos, lambda key, votes: agree.update({key: votes})):
        facts = about(engine, model, job.computing.precision, int8)
        del facts["model"]  # which finish() knows
        piece = Piece(socket.gethostname(), "cpu", began, time.time(), [], [], [], facts, {})
        if isinstance(output, Corrupt):
            piece.skipped.append(Skipped(number, output))
        else:
            piece.done.append(Done(number, checksums.pop(number), agree.pop(number), output))
            piece.times.append((compute_ms, wait_ms))
        yield piece
        began = piece.ended


def run_chunk(job: Job, chunk: Chunk) -> Piece:
    """Compute a chunk on the CPU, in this process and in memory. A clip that cannot be read is in the piece's `skipped`."""
    pieces = list(in_turn(job, [chunk]))
    whole = pieces[-1]._replace(began=pieces[0].began, done=[], skipped=[], times=[])
    for piece in sorted(pieces, key=lambda piece: [one.number for one in piece.done]):
        whole.done.extend(piece.done)
        whole.skipped.extend(piece.skipped)
        whole.times.extend(piece.times)
    return whole


def videos_of(
    source: Source, chosen: Mapping[int, Clip], workers: int, checksums: Dict[int, str]
) -> Generator[Tuple[int, Any], None, None]:
    """(index, tensor [1, frames, 3, size, size] or Corrupt) of some clips, in any order; their checksums go to `checksums`. What
    decodes them is forked before this returns, so call it before an engine starts its threads."""
    places = {index: (os.path.join(source.data_root, clip.source), clip.frames) for index, clip in chosen.items()}
    results = clips.decoded(places, source.protocol, source.dtype, workers, source.naming)

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


def missing_shards(found: Progress, videos: int, shards: Iterable[int]) -> List[str]:
    """Which shares of the list have videos left, in words, by the numbers of shares that were ever worked at."""
    words = []
    for count in sorted(shards):
        for number in range(count):
            share = shard_of(videos, number, count)
            left = sum(index in found.keys for index in share)
            if left:
                words.append("--shard %d/%d has %d of its %d videos to do" % (number, count, left, len(share)))
    return words


def agreement_with_fp32(
    args: argparse.Namespace, work: Work, found: Progress, model: Optional[Offline], computing: Computing
) -> Dict[str, Dict[str, int]]:
    """For the summary's `tsm` entry, at a precision below fp32: on how many of the first videos fp32 gives the same top-1."""
    chosen = sorted(found.done)[: args.agreement]
    if model is None or computing.precision == "fp32" or not chosen:
        return {}
    videos = videos_of(work.source, {index: work.clips[index] for index in chosen}, args.num_worker or cores(), {})
    engine, _ = open_engine(model, computing._replace(precision="fp32"), listed=True)
    same = [bool(output.argmax() == read_scores(work.result(index), work.source.protocol.classes)[0].argmax())
            for index, output, _, _ in run_stream(engine, model, videos) if not isinstance(output, Exception)]
    return agreement_facts(same)


def remove_others(work: Work, done: Mapping[int, Done]) -> None:
    """Remove the results of videos that the list does not have any more, and those in another format."""
    wanted = {os.path.basename(work.result(index)) for index in done}
    others = [name for name in os.listdir(work.folder) if re.match(r"\d+_0\.(txt|npy|bin)$", name) and name not in wanted]
    if others:
        unfinish(work)
    for name in others:
        os.remove(os.path.join(work.folder, name))


def finish(args: argparse.Namespace, work: Work, computing: Computing, found: Progress, model: Optional[Offline]) -> None:
    """Once nothing is left to do: one journal, the info file, the manifest and the summary, written last; and the figures, printed."""
    check_readable(args.ann_file, work.clips, found.corrupt, len(found.done))
    known: Dict[str, Any] = next((piece.facts for piece in reversed(found.pieces) if piece.facts), {})
    facts = dict(known, version=__version__, precision=args.precision if model else None, model=model.metadata if model else None,
                 workers=workers_of(found.pieces), **agreement_with_fp32(args, work, found, model, computing))
    remove_others(work, found.done)
    consolidate(work, found)
    checksums = {index: one.checksum for index, one in sorted(found.done.items())}
    publish(work.output_dir, args.ann_file, work.clips, work.source.protocol, work.source.dtype, clips.versions_of(work.clips),
            checksums, found.corrupt)
    summary = summary_of(work, found)
    print(throughput_line(1, summary[TIMES[0]]["mean"], summary["throughput"]))
    agree = {str(index): [one.views_agree] for index, one in sorted(found.done.items())}
    all_known = None not in [counts[0] for counts in agree.values()]
    write_summary(work.folder, dict(summary, tsm=dict(facts, views_agree=agree if all_known else None)))
    print_skipped(work.clips, found.corrupt)


def summary_of(work: Work, found: Progress) -> Dict[str, Any]:
    """ais_bench's summary of all pieces. Its throughput is that of computing alone where one CPU did it all, as in a summary of
    TSM_infer.py; otherwise the seconds count in which somebody was at work."""
    pairs = [(os.path.join(work.output_dir, BINS, tensor_name(index)), work.result(index)) for index in sorted(found.done)]
    pieces = sorted((piece for piece in found.pieces if piece.done), key=lambda piece: piece.done[0].number)
    times = [compute_ms for piece in pieces for compute_ms, _ in piece.times]
    waits = [wait_ms for piece in pieces for _, wait_ms in piece.times]
    seconds = busy_seconds(pieces)
    if {(piece.host, piece.device) for piece in pieces} == {(pieces[0].host, "cpu")}:
        seconds = min(seconds, sum(times) / 1000)  # of shards at the same time, seconds that overlap count once
    whole = summarise(pairs, times, waits, len(pairs) / seconds, sys.argv[1:])
    for name in TIMES[1:]:
        figures = [piece.figures[name] for piece in pieces if name in piece.figures]
        if figures:
            whole[name] = joined(figures)
    return whole

"""A list of videos to result files with no tensor on disk: decoded, computed, forgotten; restartable by its journal."""

import argparse
import contextlib
import json
import os
import re
import socket
import time
from typing import Any, Dict, Generator, Iterator, Mapping, Optional, Sequence, Tuple

from tsm import __version__
from tsm.cli import Corrupt, Killed, folder_name, positive
from tsm.files import check_place, sha256
from tsm.infer.engine import Computing, Engine, open_engine, score
from tsm.infer.int8 import weights_file
from tsm.infer.journal import REVISION, Done, Piece, Scored, Source, Survey, Work, appending, consolidate, tensor_name, unfinish
from tsm.machine import cores
from tsm.model.offline import Offline
from tsm.protocol import Protocol
from tsm.results import TIMES, joined, read_scores, summarise, throughput_line, write_summary
from tsm.samples import Clip, check_data_root, check_readable, checksum, print_skipped, publish, read_list, refuse_killed
from tsm.video.clips import basis, decoded, versions_of
from tsm.video.frames import Naming, add_naming
from tsm.workfolder import BINS, PREPROCESSED


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
    cli.add_argument("--on-error", choices=("fail", "skip"), default="fail", help="what an unreadable clip does (default: "
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


def work_of(
    args: argparse.Namespace, protocol: Protocol, dtype: str, digests: Mapping[str, str], computing: Computing
) -> Work:
    """The work that the options of add_inputs() describe, of the model files with these digests, as digests_of() gives them."""
    source = Source(args.data_root, Naming(args.filename_tmpl, args.start_index), protocol, dtype)
    clips = dict(enumerate(read_list(args.ann_file, protocol, args.data_root)))
    model, *int8 = digests.values()
    common = json.dumps([REVISION, __version__, model, computing.precision, computing.backend, int8,
                         basis(clips, protocol, dtype, source.naming)])
    return Work(source, clips, os.path.join(args.output, args.output_dirname), args.output_dir, args.outfmt, common)


def compute(
    source: Source, clips: Mapping[int, Clip], engine: Engine, model: Offline, workers: int
) -> Iterator[Tuple[int, Any, float, float]]:
    """(number, Scored or Corrupt, ms of computing, ms of waiting) of clips, in the order in which they are done."""
    checksums: Dict[int, str] = {}
    agree: Dict[int, int] = {}
    videos = videos_of(source, clips, workers, checksums)
    for number, output, compute_ms, wait_ms in score(engine, model, videos, lambda key, votes: agree.update({key: votes})):
        if not isinstance(output, Corrupt):
            output = Scored(number, output, checksums.pop(number), agree.pop(number))
        yield number, output, compute_ms, wait_ms


def compute_list(work: Work, engine: Engine, model: Offline, found: Survey, workers: int) -> Iterator[int]:
    """Compute what is left in `found`, each video a piece of its own; yields each one's number once it is entered there."""
    clips = {index: work.clips[index] for index in found.keys}
    with appending(work, found, work.folder) as log:
        began = time.time()
        for number, scored, compute_ms, wait_ms in compute(work.source, clips, engine, model, workers):
            if isinstance(scored, Killed):  # nothing that the journal should keep: the next run tries it again
                found.corrupt[number] = scored
                yield number
                continue
            one: Dict[str, Any] = {"scored": [], "skipped": {number: str(scored)}, "times": []}
            if not isinstance(scored, Corrupt):
                one = {"scored": [scored], "skipped": {}, "times": [(compute_ms, wait_ms)]}
            ended = time.time()
            log.keep(Piece(socket.gethostname(), "cpu", began, ended, facts={}, figures={}, **one))
            began = ended
            yield number


def videos_of(
    source: Source, clips: Mapping[int, Clip], workers: int, checksums: Dict[int, str]
) -> Generator[Tuple[int, Any], None, None]:
    """(index, tensor [1, frames, 3, size, size] or Corrupt) of some clips, in any order; their checksums go to `checksums`."""
    with contextlib.closing(
        decoded(clips, source.data_root, source.protocol, source.dtype, workers, source.naming)
    ) as results:
        for index, video in results:
            if isinstance(video, Corrupt):
                yield index, video
            else:
                checksums[index] = checksum(video)
                yield index, video[None]


def agreement_with_fp32(
    args: argparse.Namespace, work: Work, found: Survey, model: Offline, computing: Computing
) -> Dict[str, Dict[str, int]]:
    """For the summary's `tsm` entry, at a precision below fp32: on how many of the first videos fp32 gives the same top-1."""
    chosen = sorted(found.done)[: args.agreement]
    if computing.precision == "fp32" or not chosen:
        return {}
    engine, _ = open_engine(model, computing._replace(precision="fp32"), listed=True)
    videos = videos_of(work.source, {index: work.clips[index] for index in chosen}, args.num_worker or cores(), {})
    same = [int(output.argmax() == read_scores(work.result(index), work.source.protocol.classes)[0].argmax())
            for index, output, _, _ in score(engine, model, videos) if not isinstance(output, Exception)]
    print("[INFO] top-1 agrees with fp32 on %d of %d videos" % (sum(same), len(same)))
    return {"top1_agreement_with_fp32": {"same": sum(same), "videos": len(same)}}


def remove_others(work: Work, done: Mapping[int, Done]) -> None:
    """Remove the results of videos that the list does not have any more, and those in another format."""
    wanted = {os.path.basename(work.result(index)) for index in done}
    others = [name for name in os.listdir(work.folder) if re.match(r"\d+_0\.(txt|npy|bin)$", name) and name not in wanted]
    if others:
        unfinish(work)
    for name in others:
        os.remove(os.path.join(work.folder, name))


def finish(
    work: Work, found: Survey, ann_file: str, args: Sequence[str], facts: Mapping[str, Any], throughput: Optional[float] = None,
) -> None:
    """Once nothing is left to do: one journal, the info file, the manifest and the summary, written last; and the figures, printed.

    Args:
        facts: for the summary's `tsm` entry. throughput: videos per second; without it that of computing alone.
    """
    refuse_killed(ann_file, work.clips, found.corrupt)
    check_readable(ann_file, work.clips, found.corrupt, len(found.done))
    remove_others(work, found.done)
    consolidate(work, found)
    checksums = {index: one.checksum for index, one in sorted(found.done.items())}
    publish(work.output_dir, ann_file, work.clips, work.source.protocol, work.source.dtype, versions_of(work.clips), checksums,
            found.corrupt)
    summary = summary_of(work, found, os.path.join(work.output_dir, BINS), args, throughput)
    print(throughput_line(1, summary[TIMES[0]]["mean"], summary["throughput"]))
    agree = {str(index): [one.views_agree] for index, one in sorted(found.done.items())}
    known = None not in [counts[0] for counts in agree.values()]
    write_summary(work.folder, dict(summary, tsm=dict(facts, views_agree=agree if known else None)))
    print_skipped(work.clips, found.corrupt)


def summary_of(
    work: Work, found: Survey, folder: str, args: Sequence[str], throughput: Optional[float]
) -> Dict[str, Any]:
    """ais_bench's summary of all records; `folder` is that of the tensors, had they been kept."""
    pairs = [(os.path.join(folder, tensor_name(index)), work.result(index)) for index in sorted(found.done)]
    records = sorted((record for record in found.records if record.done), key=lambda record: record.done[0].number)
    times = [compute_ms for record in records for compute_ms, _ in record.times]
    waits = [wait_ms for record in records for _, wait_ms in record.times]
    whole = summarise(pairs, times, waits, throughput or 1000 * len(pairs) / sum(times), args)
    for name in TIMES[1:]:
        figures = [record.figures[name] for record in records if name in record.figures]
        if figures:
            whole[name] = joined(figures)
    return whole

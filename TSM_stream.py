#!/usr/bin/env python3
"""A list of videos -> result files, with no tensor on disk. Restartable.

    python3 TSM_stream.py --model ./tsm_new_bs1.onnx --data_root demo/videos \\
        --ann_file sthv2_val_list_videos.txt --output ./inference_result
    … --devices 0,1     # chips of this host;  … --ray auto  # a cluster's hosts
    … --shard 0/3       # a third of the list; … --merge     # of all shards

The files are those of TSM_preprocess.py and TSM_infer.py, byte for byte but for
the times, whoever computed them. Killed at any time, the same command, or
another of these ways, goes on: a result is kept while its video, the model, the
precision and the decoders are the same. docs/scaling.md tells more.
"""

import argparse
import contextlib
from functools import partial
from typing import Any, Dict, Tuple

from tsm.cli import UserError, parser, progress, run, seconds
from tsm.infer import journal, lists
from tsm.infer.ascend import check_scratch, chip_list, chips_here, on_chips
from tsm.infer.engine import add_options, to_compile
from tsm.infer.journal import Work
from tsm.model.offline import read_offline
from tsm.protocol import TENSORS
from tsm.samples import Clip, refuse, refuse_killed


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.usage = "%(prog)s [options] --model M --ann_file A --data_root D --output O"
    lists.add_inputs(cli)
    add_options(cli, agreement=True)
    cli.add_argument("--device", choices=("cpu", "npu"), help="default: npu for an .om file, else cpu")
    cli.add_argument("--protocol", default="", metavar="FILE", help="npu only: as TSM_checkpoint.py wrote it")
    cli.add_argument("--dtype", choices=TENSORS, default="float32", metavar="TYPE", help="npu only: of the tensors (default: "
                     "%(default)s)")
    cli.add_argument("--chunk", type=lists.chunk_option, default=0, metavar="N|auto", help="videos per chunk of a chip or host (default: "
                     "auto)")
    cli.add_argument("--devices", type=chip_list, metavar="LIST", help="npu only: chips, as in 0,1 (default: all here)")
    cli.add_argument("--curve", action="store_true", help="online: also the answers after 10 %%, 20 %%, … of a clip")
    cli.add_argument("--every", type=seconds, metavar="S", help="online: a frame each S seconds, of the centre")
    cli.add_argument("--ray", metavar="ADDRESS", help="on a Ray cluster: auto, HOST:PORT, or local (here)")
    cli.add_argument("--shard", type=lists.share, metavar="I/N", help="do share I, from 0, of N; --merge makes the files")
    cli.add_argument("--merge", action="store_true", help="make the result files of what shards did")
    cli.add_argument("--status", action="store_true", help="say what is done, and touch nothing")
    cli.add_argument("--scratch", metavar="DIR", help="npu only: for tensors (default: --output_dir)")
    args = cli.parse_args()
    args.device = args.device or ("npu" if args.model.endswith(".om") else "cpu")
    if args.device == "cpu" and (args.devices or args.scratch or args.protocol):
        cli.error("--devices, --scratch and --protocol are for an NPU; a CPU takes the protocol from the model")
    by_cpu = args.precision != "fp32" or args.backend or args.streams or args.int8_model
    if args.device == "npu" and (by_cpu or args.curve or args.every):
        cli.error("--precision, --int8_model, --backend and --streams are for a CPU, as atc decided them for an NPU; "
                  "--curve and --every are for online models: give X.onnx, whose X.om is beside it, and --backend ascend")
    if args.ray and (args.devices or args.shard or args.merge):
        cli.error("--ray goes with neither --devices nor --shard nor --merge")
    return args


def carrier(args: argparse.Namespace, job: lists.Job) -> Tuple[Any, int]:
    """(who carries out the chunks, how many chunks a host has at a time; 0: it takes videos one after the other, whatever their
    chunks)."""
    if args.ray:
        from tsm.infer.cluster import most_chips, on_ray

        if args.precision == "int8":
            to_compile(read_offline(job.model), job.computing)  # what is wrong with the file is said here, once, not by every host

        return partial(on_ray, address=args.ray), most_chips(args.ray) if args.device == "npu" else 1
    if args.device == "cpu":
        return lists.in_turn, 0
    chips = args.devices or chips_here()
    print("chips: %s" % ", ".join(map(str, chips)))
    return partial(on_chips, chips=chips), len(chips) + 1


def carry_out(args: argparse.Namespace, job: lists.Job, work: Work, listed: Dict[int, Clip], found: journal.Progress, folder: str) -> None:
    """Do what is left in `found`; the journal is in `folder`."""
    if args.on_error == "fail":
        refuse(args.ann_file, listed, found.corrupt)
    if not found.keys:
        return
    carry, at_once = carrier(args, job)
    ready = len(found.done) + len(found.corrupt)
    with journal.recording(work, found, folder) as keep, progress(ready + len(found.keys), "videos", "video", ready) as tick:
        def flight(under_way: Dict[str, int]) -> None:
            tick(0, ", ".join("%s: %d" % item for item in sorted(under_way.items())))

        for chunks in lists.rounds(args.chunk, listed, job, found, at_once):
            if job.device == "npu" and not args.ray:
                check_scratch(job, chunks, at_once)
            print("to do: %d videos, chunks: %d" % (sum(len(chunk.keys) for chunk in chunks), len(chunks)), flush=True)
            with contextlib.closing(carry(job, chunks, flight)) as pieces:
                for piece in pieces:
                    keep(piece)
                    tick(len(piece.done) + len(piece.skipped))
                    if args.on_error == "fail":
                        refuse(args.ann_file, listed, found.corrupt)


def show(found: journal.Progress, work: Work, videos: int) -> None:
    """What is done, and by whom."""
    print("%d of %d videos are done, %d cannot be read, %d are to do"
          % (len(found.done), videos, len(found.corrupt), len(found.keys)))
    for worker in journal.workers_of(found.pieces):
        print("  %(host)s, %(device)s: %(videos)d videos in %(chunks)d pieces, %(videos_per_second).2f videos per second" % worker)
    for line in lists.missing_shards(work, found, videos):
        print("  " + line)


def conclude(
    args: argparse.Namespace, job: lists.Job, work: Work, listed: Dict[int, Clip], found: journal.Progress, model: Any, kept: int
) -> None:
    """Make the result files of the whole list."""
    refuse_killed(args.ann_file, listed, found.corrupt)
    if found.keys:
        left = lists.missing_shards(work, found, len(listed)) or ["no shard has done them"]
        raise UserError("%s: %d of %d videos are not done: %s" % (args.ann_file, len(found.keys), len(listed), "; ".join(left)))
    if args.on_error == "fail":
        refuse(args.ann_file, listed, found.corrupt)
    lists.finish(args, job, work, listed, found, model)
    show(found, work, len(listed))
    print("%d results in %s: %d made, %d already right, %d skipped"
          % (len(found.done), work.folder, len(found.done) - kept, kept, len(found.corrupt)))


def main() -> None:
    args = get_args()
    job, work, listed, model = lists.job_of(args)
    mine = {index: listed[index] for index in lists.shard_of(len(listed), *args.shard or (0, 1))}
    if args.status:
        show(lists.so_far(job, work, mine, closing=True), work, len(mine))
        return
    if args.shard:
        folder = journal.shard_folder(work, args.shard)
        with journal.held(args.output_dir, work.folder, shared=True), journal.held(folder):
            found = lists.so_far(job, work, mine)
            carry_out(args, job, work, listed, found, folder)
        show(found, work, len(mine))
    if args.merge or not args.shard:
        with journal.held(args.output_dir, work.folder):
            found = lists.so_far(job, work, listed, closing=args.merge)
            kept = len(found.done)
            if not args.merge:
                carry_out(args, job, work, listed, found, work.folder)
            conclude(args, job, work, listed, found, model, kept)


if __name__ == "__main__":
    run(main)

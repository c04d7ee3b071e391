#!/usr/bin/env python3
"""A list of videos -> the result files of TSM_preprocess.py + TSM_infer.py, with no tensor on disk. Restartable.

    python3 TSM_stream.py --model ./tsm_new_bs1.onnx --data_root demo/videos --ann_file sthv2_val_list_videos.txt \\
        --output ./inference_result --output_dirname out --outfmt TXT       # here, on this CPU
    … --model ./tsm_bs8.om --devices 0,1                       # one ais_bench per chip, each pulling the next chunk
    … --ray auto                                               # on the hosts of the Ray cluster that this host is in
    … --shard 0/3                                              # the first third; others do 1/3 and 2/3, on a shared folder
    … --merge                                                  # once all shards are done: the result files of the whole
    … --status                                                 # what is done; nothing is touched

On a CPU, videos are decoded in processes of their own, computed as they come, and forgotten; the queue between the two is
bounded, so memory does not grow with the list. Chips and clusters take the list in chunks, which return only scores: a chip
reads tensors from files, so those of a chunk lie in a folder of its host until it is done.

At the end the same files exist as after the two scripts, byte for byte but for the times, whoever computed them and whatever
died on the way: inference_result/out/<i>_0.txt, inference_result/out_summary.json, sthv2/sthv2.info and sthv2/sthv2.json
(whose checksums are those of the tensors that were computed from). TSM_postprocess.py and TSM_report.py read them as usual.

Killed at any time, the same command, or another of these ways, continues where it stopped: a result is kept while its video
(size and time of change), the model, the int8 file, the precision and the decoders are the same. A clip that cannot be read
ends the run, or with --on_error skip is left out and listed in the manifest.

--chunk auto makes chunks of 60 s of work, from a measured sample or the last chunks; on an NPU as large as 20 GB of tensors
allow. Hosts of a cluster are examined first: versions, model, data. One that differs is named and not used.

Limits: a model of modify_onnx.py. Processors of different kinds may round differently in the sixth decimal. The suite, the
model and the videos must be under the same paths on every host of a cluster; shards share the folder --output.
"""

import argparse
import contextlib
from functools import partial
from typing import Any, Dict, Tuple

from tsm.cli import UserError, parser, progress, run
from tsm.files import locked
from tsm.infer import journal
from tsm.infer.ascend import check_scratch, chip_list, chips_here, on_chips
from tsm.infer.engine import add_options, to_compile
from tsm.infer.journal import Work
from tsm.infer.lists import (
    Job,
    add_inputs,
    check_list_places,
    chunk_option,
    finish,
    in_turn,
    job_of,
    missing_shards,
    rounds,
    shard_of,
    share,
    so_far,
)
from tsm.model.offline import read_offline
from tsm.protocol import TENSORS
from tsm.samples import Clip, refuse, refuse_killed


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    add_inputs(cli)
    add_options(cli, agreement=True)
    cli.add_argument("--device", choices=("cpu", "npu"), help="default: npu for an .om file, else cpu")
    cli.add_argument("--protocol", default="", metavar="FILE", help="npu only: how the network is tested, as TSM_checkpoint.py wrote "
                     "it; a CPU takes it from the model (default: as on Something-Something V2)")
    cli.add_argument("--dtype", choices=TENSORS, default="float32", help="npu only: of the tensors that the model takes (default: "
                     "%(default)s)")
    cli.add_argument("--chunk", type=chunk_option, default=0, metavar="N|auto", help="videos per chunk of a chip or a host of a "
                     "cluster (default: auto)")
    cli.add_argument("--devices", type=chip_list, metavar="LIST", help="npu only: chips of this host, as in 0,1 (default: those that "
                     "npu-smi lists)")
    cli.add_argument("--curve", action="store_true", help="of an online model: also write its answers after 10 %%, 20 %%, … of each "
                     "clip's frames, to curve.json beside the results")
    cli.add_argument("--ray", metavar="ADDRESS", help="on a Ray cluster: auto, HOST:PORT, or local to start one here")
    cli.add_argument("--shard", type=share, metavar="I/N", help="do share I, from 0, of N, and leave the result files to --merge")
    cli.add_argument("--merge", action="store_true", help="make the result files of what shards did; with --shard, after that one")
    cli.add_argument("--status", action="store_true", help="say what is done, and touch nothing")
    cli.add_argument("--scratch", metavar="DIR", help="npu only: for tensors (default: --output_dir; on a cluster each host's "
                     "folder for temporary files)")
    args = cli.parse_args()
    args.device = args.device or ("npu" if args.model.endswith(".om") else "cpu")
    if args.device == "npu" and args.curve:
        cli.error("--curve is for an online model on a CPU")
    if args.device == "cpu" and (args.devices or args.scratch or args.protocol):
        cli.error("--devices, --scratch and --protocol are for an NPU; a CPU takes the protocol from the model")
    if args.device == "npu" and (args.precision != "fp32" or args.backend or args.streams or args.int8_model):
        cli.error("--precision, --int8_model, --backend and --streams are for a CPU; atc decided the precision of an NPU's model")
    if bool(args.ray) + bool(args.devices) > 1 or args.ray and (args.shard or args.merge):
        cli.error("--ray goes with neither --devices nor --shard nor --merge")
    return args


def carrier(args: argparse.Namespace, job: Job) -> Tuple[Any, int]:
    """(who carries out the chunks, how many chunks a host has at a time; 0: it takes videos one after the other, whatever their
    chunks)."""
    if args.ray:
        from tsm.infer.cluster import most_chips, on_ray

        if args.precision == "int8":
            to_compile(read_offline(job.model), job.computing)  # what is wrong with the file is said here, once, not by every host

        return partial(on_ray, address=args.ray), most_chips(args.ray) if args.device == "npu" else 1
    if args.device == "cpu":
        return in_turn, 0
    chips = args.devices or chips_here()
    print("chips: %s" % ", ".join(map(str, chips)))
    return partial(on_chips, chips=chips), len(chips) + 1


def carry_out(args: argparse.Namespace, job: Job, work: Work, listed: Dict[int, Clip], found: journal.Progress, folder: str) -> None:
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

        for chunks in rounds(args.chunk, listed, job, found, at_once):
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
    for line in missing_shards(work, found, videos):
        print("  " + line)


def conclude(
    args: argparse.Namespace, job: Job, work: Work, listed: Dict[int, Clip], found: journal.Progress, model: Any, kept: int
) -> None:
    """Make the result files of the whole list."""
    refuse_killed(args.ann_file, listed, found.corrupt)
    if found.keys:
        left = missing_shards(work, found, len(listed)) or ["no shard has done them"]
        raise UserError("%s: %d of %d videos are not done: %s" % (args.ann_file, len(found.keys), len(listed), "; ".join(left)))
    if args.on_error == "fail":
        refuse(args.ann_file, listed, found.corrupt)
    finish(args, job, work, listed, found, model)
    show(found, work, len(listed))
    print("%d results in %s: %d made, %d already right, %d skipped"
          % (len(found.done), work.folder, len(found.done) - kept, kept, len(found.corrupt)))


def main() -> None:
    args = get_args()
    check_list_places(args)
    job, work, listed, model = job_of(args)
    mine = {index: listed[index] for index in shard_of(len(listed), *args.shard or (0, 1))}
    if args.status:
        show(so_far(job, work, mine, closing=True), work, len(mine))
        return
    if args.shard:
        with journal.held(args.output_dir, work.folder, shared=True):
            folder = journal.shard_folder(work, args.shard)
            with locked(folder):
                found = so_far(job, work, mine)
                carry_out(args, job, work, listed, found, folder)
        show(found, work, len(mine))
    if args.merge or not args.shard:
        with journal.held(args.output_dir, work.folder):
            found = so_far(job, work, listed, closing=args.merge)
            kept = len(found.done)
            if not args.merge:
                carry_out(args, job, work, listed, found, work.folder)
            conclude(args, job, work, listed, found, model, kept)


if __name__ == "__main__":
    run(main)

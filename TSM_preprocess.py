#!/usr/bin/env python3
"""The tensors of TSM's test protocol, from a list and its videos or frames.

    python3 TSM_preprocess.py --data_root demo/videos \\
        --ann_file sthv2_val_list_videos.txt --num_worker 2

It reads a list of videos (`<file> <label>`) or of extracted frames (`<folder>
<frames> <label>`, img_%05d.jpg); the first line decides which. It writes

    OUT/preprocess_bin/<i>.bin  the i-th clip: 48x3x256x256 (3 crops x 2 samples
                                x 8 segments), RGB; float32, normalised, or
                                uint8, 0..255; other shapes by --protocol
    OUT/sthv2.info              `<i> <label>` per clip
    OUT/sthv2.json              the manifest; written last

float32 is bit for bit what mmaction2 0.24.1 computes. Run again at any time, it
makes what is missing or out of date. A clip that a decoder cannot read, or
reads only by making something up, ends the run; --on_error skip leaves it out.
A flipped bit that still decodes without a complaint cannot be told.
"""

import argparse
import contextlib
import os
import re
from typing import Dict

from tsm.cli import Corrupt, UserError, parser, positive, progress, run
from tsm.files import locked
from tsm.infer.journal import Origin
from tsm.infer.preprocess import Tensors, check_space, invalidate, make, state_of
from tsm.machine import cores, workers_that_fit
from tsm.protocol import TENSORS, Protocol, read_protocol
from tsm.samples import check_data_root, check_readable, manifest_of, publish, read_list, refuse, refuse_killed
from tsm.video.clips import versions_of
from tsm.video.frames import Naming, add_list
from tsm.workfolder import BINS, PREPROCESSED


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    add_list(cli)
    cli.add_argument("--output_dir", default=PREPROCESSED, metavar="OUT", help="default: %(default)s")
    cli.add_argument("--batch_size", type=positive, default=1, metavar="B", help="accepted as in the guide: one file per "
                     "clip serves every batch size")
    cli.add_argument("--protocol", default="", metavar="FILE", help="how the network is tested, as TSM_checkpoint.py wrote it "
                     "(default: as on Something-Something V2)")
    cli.add_argument("--dtype", choices=TENSORS, default="float32", help="uint8: RGB 0..255; uint8_nhwc: colours last, for a "
                     "chip's AIPP (default: %(default)s)")
    cli.add_argument("--range", type=span, metavar="START:STOP", help="only clips START to STOP-1 of the list; they keep "
                     "their numbers")
    return cli.parse_args()


def span(text: str) -> slice:
    match = re.match(r"(\d{1,9}):(\d{1,9})$", text)
    if not match or int(match.group(1)) >= int(match.group(2)):
        raise argparse.ArgumentTypeError("%r is not START:STOP with START < STOP" % text)
    return slice(int(match.group(1)), int(match.group(2)))


def preprocess(args: argparse.Namespace, protocol: Protocol) -> None:
    """Bring the output folder in line with the list."""
    clips = dict(enumerate(read_list(args.ann_file, protocol, args.data_root)))
    chosen = dict(list(clips.items())[args.range or slice(None)])
    if not chosen:
        raise UserError("--range %d:%d: the list has %d clips" % (args.range.start, args.range.stop, len(clips)))
    corrupt: Dict[int, Corrupt] = {}

    def unreadable(index: int, error: Corrupt) -> None:
        if args.on_error == "fail":
            refuse(args.ann_file, clips, {index: error})
        corrupt[index] = error

    source = Origin(args.data_root, Naming(args.filename_tmpl, args.start_index), protocol, args.dtype)
    job = Tensors(chosen, source, args.output_dir, unreadable)
    os.makedirs(job.file(BINS), exist_ok=True)
    done, keys = state_of(job)
    kept = len(done)
    invalidate(job, done, unfinished=bool(keys))
    check_space(job.file(BINS), len(keys) * job.nbytes, "%d clips" % len(keys),
                "use --dtype uint8 or --range, or choose another --output_dir")
    wanted = args.num_worker or cores()
    workers = workers_that_fit(wanted, job.nbytes)
    if workers < wanted and len(keys) > workers:
        print("note: %d processes at a time instead of %d, which is what the memory holds of tensors of %.0f MB"
              % (workers, wanted, job.nbytes / 1e6))
    seconds = [0.0, 0.0, 0.0]
    with contextlib.closing(make(job, keys, done, workers)) as steps, progress(len(keys), "preprocess", "clip") as tick:
        for taken in steps:
            seconds = [total + part for total, part in zip(seconds, taken)]
            tick()
    refuse_killed(args.ann_file, clips, corrupt)
    if not args.range:  # a part of the list may turn out empty
        check_readable(args.ann_file, chosen, corrupt, len(done))
    checksums = {index: made.xxh3_128 for index, made in done.items()}
    publish(args.output_dir, manifest_of(args.ann_file, clips, protocol, args.dtype, versions_of(clips), checksums, corrupt))
    made = len(done) - kept
    print("%d tensors of %.1f MB in %s: %d made, %d already right, %d skipped"
          % (len(done), job.nbytes / 1e6, job.file(BINS), made, kept, len(corrupt)))
    if made:
        times = tuple(1000 * total / made for total in seconds)
        print("[INFO] ms per video and worker: %.1f computing, %.1f checksum, %.1f writing" % times)


def main() -> None:
    args = get_args()
    check_data_root(args.data_root)
    os.makedirs(args.output_dir, exist_ok=True)
    with locked(args.output_dir):
        preprocess(args, read_protocol(args.protocol))


if __name__ == "__main__":
    run(main)

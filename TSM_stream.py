#!/usr/bin/env python3
"""A list of videos -> the result files of TSM_preprocess.py + TSM_infer.py, with no tensor on disk.

    python3 TSM_stream.py --model ./tsm_new_bs1.onnx --data_root demo/videos --ann_file sthv2_val_list_videos.txt \\
        --output ./inference_result --output_dirname out --outfmt TXT

Videos are decoded in processes of their own, computed as they come, and forgotten; the queue between the two is bounded,
so memory does not grow with the list. At the end the same files exist as after the two scripts, byte for byte but for the
times: inference_result/out/<i>_0.txt, inference_result/out_summary.json, sthv2/sthv2.info and sthv2/sthv2.json (whose
checksums are those of the tensors that were computed from). TSM_postprocess.py and TSM_report.py read them as usual.

Killed at any time, the same command continues where it stopped: a result is kept while its video (size and time of
change), the model, the precision and the decoders are the same. A clip that cannot be read ends the run, or with
--on-error skip is left out and listed in the manifest.

Limits: for one CPU host and a model of modify_onnx.py; TSM_chunked.py takes a list to NPUs, which read tensors from files, and
to several hosts. The two share their record of what is finished, so either goes on where the other stopped.
"""

import argparse
import sys

from tsm.cli import parser, run
from tsm.infer import journal, stream
from tsm.infer.engine import Computing, about, add_agreement, add_options, computing_of, open_engine
from tsm.machine import cores
from tsm.model.offline import Offline, read_offline
from tsm.samples import refuse


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    stream.add_inputs(cli)
    add_options(cli)
    add_agreement(cli)
    return cli.parse_args()


def process(args: argparse.Namespace, work: journal.Work, model: Offline, computing: Computing) -> None:
    """Bring the results in line with the list."""
    from tqdm import tqdm

    found = journal.survey(work)
    if args.on_error == "fail":
        refuse(args.ann_file, work.clips, found.corrupt)
    kept, left = len(found.done), len(found.keys)
    engine, int8 = open_engine(model, computing, listed=True)
    print("[INFO] %s on %d threads, %s, %s views at a time, fused by %s" % (
        engine.name, cores(), args.precision, engine.streams, model.fusion), flush=True)
    results = stream.compute_list(work, engine, model, found, args.num_worker or cores())
    for _ in tqdm(results, total=left, desc="videos", unit="video", disable=None):
        if args.on_error == "fail":
            refuse(args.ann_file, work.clips, found.corrupt)
    facts = dict(about(engine, model, args.precision, int8), **stream.agreement_with_fp32(args, work, found, model, computing))
    stream.finish(work, found, args.ann_file, sys.argv[1:], facts)
    print("%d results in %s: %d made, %d already right, %d skipped"
          % (len(found.done), work.folder, len(found.done) - kept, kept, len(found.corrupt)))


def main() -> None:
    args = get_args()
    stream.check_places(args)
    model = read_offline(args.model)
    computing = computing_of(args, model.path)
    work = stream.work_of(args, model.tested_by, model.dtype.name, stream.digests_of(model.path, computing.int8_model), computing)
    with journal.held(work):
        process(args, work, model, computing)


if __name__ == "__main__":
    run(main)

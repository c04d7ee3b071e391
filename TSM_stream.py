#!/usr/bin/env python3
"""A list of videos -> the result files of TSM_preprocess.py + TSM_infer.py, with no tensor on disk.

    python3 TSM_stream.py --model ./tsm_new_bs1.onnx --data_root demo/videos --ann_file sthv2_val_list_videos.txt \\
        --output ./inference_result --output_dirname out --outfmt TXT

Videos are decoded in processes of their own, computed as they come, and forgotten; the queue between the two is bounded,
so memory does not grow with the list. At the end the same files exist as after the two scripts, byte for byte but for the
times: inference_result/out/<i>_0.txt, inference_result/out_summary.json, sthv2/sthv2.info and sthv2/sthv2.json (whose
checksums are those of the tensors that were computed from). TSM_postprocess.py and TSM_report.py read them as ever.

Killed at any time, the same command continues where it stopped: a result is kept while its video (size and time of
change), the model, the precision and the decoders are the same. A clip that cannot be read ends the run, or with
--on-error skip is left out and listed in the manifest.

Limits: for a CPU and a model of modify_onnx.py; an NPU takes tensors from files (TSM_preprocess.py, TSM_chunked.py).
"""

import argparse
import os
import sys
from typing import Dict

from tsm import stream
from tsm.cli import Corrupt, UserError, parser, positive, run
from tsm.clips import versions_of
from tsm.engine import about, add_options, default_backend, open_engine
from tsm.files import locked
from tsm.frames import Naming, add_naming
from tsm.int8 import int8_file, weights_file
from tsm.machine import cores
from tsm.offline import Offline, read_offline
from tsm.protocol import Protocol
from tsm.results import summarise, summary_path, throughput_line, write_summary
from tsm.samples import BINS, INFO, MANIFEST, manifest_of, read_list, write_info, write_manifest


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--model", "-m", required=True, metavar="FILE", help="a model of modify_onnx.py")
    cli.add_argument("--ann_file", required=True, metavar="FILE", help="the list, as TSM_dataset.py makes it")
    cli.add_argument("--data_root", required=True, metavar="DIR", help="the folder that the list's paths start from")
    cli.add_argument("--output", "-o", required=True, metavar="DIR", help="where results go")
    cli.add_argument("--output_dirname", default="out", metavar="NAME", help="their folder inside --output (default: out)")
    cli.add_argument("--outfmt", choices=("NPY", "BIN", "TXT"), default="BIN", help="default: %(default)s")
    cli.add_argument("--output_dir", default="sthv2", metavar="OUT", help="where the info file and the manifest go (default: "
                     "%(default)s)")
    cli.add_argument("--num_worker", type=positive, default=cores(), metavar="N", help="processes that decode (default: one "
                     "per core)")
    cli.add_argument("--on-error", choices=("fail", "skip"), default="fail", help="what an unreadable clip does (default: "
                     "%(default)s)")
    add_naming(cli)
    add_options(cli)
    return cli.parse_args()


def plan(args: argparse.Namespace, model: Offline, protocol: Protocol) -> stream.Work:
    """What every video of the list shares."""
    clips = dict(enumerate(read_list(args.ann_file, protocol, args.data_root)))
    naming = Naming(args.filename_tmpl, args.start_index)
    int8 = args.int8_model or int8_file(model.path)
    files = [path for path in (int8, weights_file(int8)) if args.precision == "int8" and os.path.exists(path)]
    basis = stream.basis_of(model, protocol, clips, naming, args.precision, args.backend or default_backend(), files)
    folder = os.path.join(args.output, args.output_dirname)
    return stream.Work(model, protocol, clips, args.data_root, naming, folder, args.outfmt, basis)


def process(args: argparse.Namespace, work: stream.Work) -> None:
    """Bring the results in line with the list."""
    from tqdm import tqdm

    clips = work.clips
    done, keys, corrupt = stream.survey(work)

    def refuse(index: int, error: Corrupt) -> None:
        if args.on_error == "fail":
            raise UserError("%s, line %d: %s: %s; mend the clip or its line, or leave it out by --on-error skip"
                            % (args.ann_file, clips[index].line, clips[index].source, error))
        corrupt[index] = error

    for index in sorted(corrupt):
        refuse(index, corrupt[index])
    kept = len(done)
    finished = [summary_path(work.folder)] + [os.path.join(args.output_dir, name) for name in (INFO, MANIFEST)]
    if keys:  # from here on the folder is unfinished, and must not look otherwise
        for path in filter(os.path.exists, finished):
            os.remove(path)
    engine, int8 = open_engine(args, work.model, args.precision)
    print("[INFO] %s on %d threads, %s, %s views at a time, fused by %s" % (
        engine.name, cores(), args.precision, engine.streams, work.model.fusion), flush=True)
    results = stream.compute_list(work, engine, keys, done, min(args.num_worker, max(1, len(keys))), refuse)
    for _ in tqdm(results, total=len(keys), desc="videos", unit="video", disable=None):
        pass
    if not done:
        raise UserError("%s: none of its %d clips could be read (line %d: %s)"
                        % (args.ann_file, len(clips), clips[min(corrupt)].line, corrupt[min(corrupt)]))
    facts = about(engine, work.model, args.precision, int8)
    compared = sorted(done)[: args.agreement]
    if args.precision != "fp32" and compared:
        exact, _ = open_engine(args, work.model, "fp32")
        facts["top1_agreement_with_fp32"] = stream.agreement(work, exact, compared, args.num_worker)
        print("[INFO] top-1 agrees with fp32 on %(same)d of %(videos)d videos" % facts["top1_agreement_with_fp32"])
    stream.remove_others(work, done)
    write_files(args, work, done, corrupt, facts)
    for index in sorted(corrupt):
        print("skipped: line %d, %s: %s" % (clips[index].line, clips[index].source, corrupt[index]))
    print("%d results in %s: %d made, %d already right, %d skipped"
          % (len(done), work.folder, len(done) - kept, kept, len(corrupt)))


def write_files(
    args: argparse.Namespace, work: stream.Work, done: Dict[int, stream.Done], corrupt: Dict[int, Corrupt],
    facts: Dict[str, object],
) -> None:
    """The info file, the manifest and the summary, written last; and the figures, printed."""
    order = [done[index] for index in sorted(done)]
    checksums = {one.number: one.checksum for one in order}
    write_info(os.path.join(args.output_dir, INFO), {index: work.clips[index].label for index in checksums})
    write_manifest(os.path.join(args.output_dir, MANIFEST), manifest_of(
        args.ann_file, work.clips, work.protocol, work.model.dtype.name, versions_of(work.clips), checksums, corrupt))
    times, waits = [one.compute_ms for one in order], [one.wait_ms for one in order]
    throughput = 1000 * len(times) / sum(times)
    folder = os.path.join(args.output_dir, BINS)
    files = [(os.path.join(folder, stream.tensor_name(one.number)), work.result(one.number)) for one in order]
    print("[INFO] waited for decoding (ms): mean = %.3f" % (sum(waits) / len(waits)))
    print(throughput_line(1, sum(times) / len(times), throughput))
    write_summary(work.folder, summarise(files, times, waits, throughput, sys.argv[1:], tsm=facts))


def main() -> None:
    args = get_args()
    if not os.path.isdir(args.data_root):
        raise UserError("%s: no such folder; --data_root is the folder that the list's paths start from" % args.data_root)
    model = read_offline(args.model)
    if model.protocol is None:
        raise UserError("%s: not a model of modify_onnx.py; TSM_infer.py runs it from tensors" % args.model)
    work = plan(args, model, model.protocol)
    for folder in (args.output_dir, work.folder):
        os.makedirs(folder, exist_ok=True)
    with locked(args.output_dir):
        process(args, work)


if __name__ == "__main__":
    run(main)

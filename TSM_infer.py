#!/usr/bin/env python3
"""Inference of an offline TSM model on a CPU, with the flags, files and figures of `python -m ais_bench`.

    python3 TSM_infer.py --model tsm_new_bs1.onnx --input sthv2/preprocess_bin --output inference_result \\
        --output_dirname out --outfmt TXT
    python3 TSM_infer.py --model tsm_new_bs1.onnx                    # throughput alone, on zeros

Input: files, or a folder of .bin and .npy files, which is read in natural order (0, 1, 2, …, 10). Files smaller than the
model's batch are packed: one file per video serves every batch size. Output: OUTPUT/OUTPUT_DIRNAME/<name>_0.txt (or
.npy, .bin) per input file, and OUTPUT/OUTPUT_DIRNAME_summary.json beside the folder. If the folder's parent holds
TSM_preprocess.py's manifest, its protocol must be the model's, and every tensor is checked before it is used.

A model of modify_onnx.py runs VIEW BY VIEW on parallel streams, whatever its batch: the views of a video are independent,
one view's activations fit the caches better than a batch's, and memory does not grow with the batch. The views are then
fused as the model says. Any other model runs whole. Reading the next files overlaps with computing.

The measured time of a batch runs from its first view's start to its last view's end. It includes computing, and the part of
reading and checking the files that the overlap does not hide; it does not include writing results. There is no filler: the
last, partial batch computes its own videos only, and counts in the throughput as what it is.
"""

import argparse
import os
import sys
import time
from typing import Callable, Dict, List, Tuple

from tsm.cli import folder_name, non_negative, parser, positive, run

# isort: split
import numpy as np

from tsm.infer.engine import Computing, about, add_agreement, add_options, agreement_facts, computing_of, open_engine, run_batches
from tsm.infer.tensors import check_protocol, list_inputs, read_tensor
from tsm.machine import cores, peak_memory
from tsm.model.offline import Offline, read_offline
from tsm.results import result_name, result_path, statistics, summarise, summary_path, throughput_line, write_result, write_summary

SYNTHETIC_VIDEOS = 8  # about so many are computed without --input, unless --loop says otherwise


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--model", "-m", required=True, metavar="FILE", help="the ONNX model")
    cli.add_argument("--input", "-i", metavar="PATHS", help="files (comma-separated) or one folder; without it the model "
                     "runs on zeros, for its speed")
    cli.add_argument("--output", "-o", metavar="DIR", help="where results go; without it none are written")
    cli.add_argument("--output_dirname", type=folder_name, metavar="NAME", help="their folder inside --output (default: a time stamp)")
    cli.add_argument("--outfmt", choices=("NPY", "BIN", "TXT"), default="BIN", help="default: %(default)s")
    cli.add_argument("--loop", "-l", type=positive, metavar="N", help="computes each batch N times (default: 1; without "
                     "--input, as often as makes about %d videos)" % SYNTHETIC_VIDEOS)
    cli.add_argument("--warmup_count", type=non_negative, default=1, metavar="N", help="batches run first, not counted "
                     "(default: 1)")
    cli.add_argument("--batchsize", type=positive, metavar="N", help="batch size used in the throughput figure (default: the model's)")
    cli.add_argument("--device", "-d", default="0", help="accepted for compatibility; there is one CPU")
    cli.add_argument("--pure_data_type", choices=("zero", "random"), default="zero", help="without --input: zeros, or "
                     "normally distributed values (default: %(default)s)")
    add_options(cli)
    add_agreement(cli)
    args = cli.parse_args()
    if args.output_dirname and not args.output:
        cli.error("--output_dirname needs --output")
    return args


def synthetic(model: Offline, kind: str) -> np.ndarray:
    """One video, or for a model that runs whole one batch, of zeros or of normally distributed values."""
    shape = ((1,) if model.fusion else model.shape[:1]) + model.shape[1:]
    if kind == "zero":
        return np.zeros(shape, model.dtype)
    values = np.random.RandomState(0).standard_normal(shape)
    return (values if model.dtype.kind == "f" else 127 + 50 * values).clip(-255, 255).astype(model.dtype)


def results_folder(args: argparse.Namespace) -> str:
    """The folder of results, made; the summary of an earlier run must not outlive the results it sums up."""
    folder = os.path.join(args.output, args.output_dirname or time.strftime("%Y_%m_%d-%H_%M_%S"))
    os.makedirs(folder, exist_ok=True)
    if os.path.exists(summary_path(folder)):
        os.remove(summary_path(folder))
    return folder


def agreement(
    computing: Computing, model: Offline, batches: List[List[int]], read: Callable[[int], np.ndarray],
    top1: Dict[int, np.ndarray],
) -> List[bool]:
    """Of each video of the files whose `top1` is given, whether fp32 gives the same top-1."""
    exact: Dict[int, np.ndarray] = {}
    engine, _ = open_engine(model, computing._replace(precision="fp32"))
    chosen = [[number] for number in sorted(top1)] if model.fusion else [batch for batch in batches if set(batch) & set(top1)]
    run_batches(engine, model, chosen, read, 1, lambda number, output: exact.update({number: output.argmax(-1)}), "fp32, for comparison")
    return [same for number in top1 for same in (top1[number] == exact[number]).tolist()]


def print_figures(times: List[float], waits: List[float], batch: int, throughput: float) -> None:
    """What ais_bench prints, and more: ms per batch, ms that it waited for files, memory, videos per second."""
    figures = statistics(times)
    print("[INFO] NPU_compute_time (ms): " + ", ".join("%s = %.3f" % item for item in list(figures.items())[:-1]))
    print("[INFO] waited for input files (ms): mean = %.3f" % float(np.mean(waits)))
    print("[INFO] peak memory: %.0f MB" % (peak_memory() / 1e6))
    print(throughput_line(batch, figures["mean"], throughput))


def main() -> None:
    args = get_args()
    model = read_offline(args.model)
    files: List[str] = []
    if args.input:
        inputs = list_inputs(args.input)
        check_protocol(inputs, model.protocol, model.dtype, args.model)
        files = inputs.files
    computing = computing_of(args, model.path)
    engine, int8 = open_engine(model, computing)
    way = "%s views at a time, fused by %s" % (engine.streams, model.fusion) if model.fusion else "the whole batch at a time"
    print("[INFO] %s on %d threads, %s, %s" % (engine.name, cores(), args.precision, way), flush=True)

    made = None if files else synthetic(model, args.pure_data_type)

    def read(number: int) -> np.ndarray:
        if made is not None:
            return made
        path = files[number]
        return read_tensor(path, model.shape, model.dtype, inputs.entries.get(os.path.basename(path)))

    packed = model.batch // len(read(0))  # files in a batch
    count = len(files) or packed
    batches = [list(range(count))[start : start + packed] for start in range(0, count, packed)]
    loop = args.loop or (1 if files else -(-SYNTHETIC_VIDEOS // model.batch))
    pairs: List[Tuple[str, str]] = []
    top1: Dict[int, np.ndarray] = {}
    agree: Dict[str, List[int]] = {}  # by the input file's name: of each of its videos, the views that have its answer

    def done(number: int, output: np.ndarray) -> None:
        if folder:
            pairs.append((files[number], result_path(folder, files[number], args.outfmt)))
            write_result(pairs[-1][1], args.outfmt, output)
        if files and number < args.agreement:
            top1[number] = output.argmax(-1)

    def voted(number: int, votes: np.ndarray) -> None:
        agree[result_name(files[number])] = votes.tolist()

    run_batches(engine, model, batches[:1] * args.warmup_count, read, 1, lambda number, output: None)
    folder = results_folder(args) if args.output and files else ""  # only now: a run that cannot begin leaves an earlier one whole
    times, waits = run_batches(engine, model, batches, read, loop, done, "inference", voted if files else None)

    facts = dict(about(engine, model, args.precision, int8), views_agree=agree or None)
    if args.precision != "fp32" and top1:
        facts.update(agreement_facts(agreement(computing, model, batches, read, top1)))

    videos = (args.batchsize or model.batch) * len(times)
    if files and not args.batchsize:  # the last batch may be partial
        videos = loop * len(files) * model.batch // packed
    throughput = 1000 * videos / sum(times)
    print_figures(times, waits, args.batchsize or model.batch, throughput)
    if folder:
        write_summary(folder, summarise(pairs, times, waits, throughput, sys.argv[1:], tsm=facts))


if __name__ == "__main__":
    run(main)

#!/usr/bin/env python3
"""Inference of an offline TSM model on a CPU, with ais_bench's flags and files.

    python3 TSM_infer.py --model tsm_new_bs1.onnx --input sthv2/preprocess_bin \\
        --output inference_result --output_dirname out --outfmt TXT
    python3 TSM_infer.py --model tsm_new_bs1.onnx         # throughput alone

Results: OUTPUT/OUTPUT_DIRNAME/<name>_0.txt (.npy, .bin) per input file, in
natural order, and OUTPUT/OUTPUT_DIRNAME_summary.json. Tensors that do not fit
the model, or are not those of the manifest beside them, are refused.

A model of modify_onnx.py runs view by view on parallel streams, whatever its
batch: views are independent, and fit the caches. Reading overlaps computing;
the last batch has no filler. Killed at any time, it goes on where it stopped.
"""

import argparse
import contextlib
import os
import socket
import time
from functools import partial
from typing import Any, Callable, Dict, List, Sequence

from tsm.cli import folder_name, non_negative, parser, positive, progress, run

# isort: split
import numpy as np

from tsm.infer import engine as engines
from tsm.infer.journal import Done, Piece, Progress, Work, enter, held, recording, summarise_found, survey, unfinish
from tsm.infer.tensors import check_protocol, keys_of_files, list_inputs, made_up, read_tensor, samples_in
from tsm.model.offline import Offline, read_offline
from tsm.model.onnxfile import protocol_of
from tsm.results import rate_line, read_scores, statistics
from tsm.samples import stratified

SYNTHETIC_VIDEOS = 8  # about so many are computed without --input, unless --loop says otherwise


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.usage = "%(prog)s [options] --model FILE"
    cli.add_argument("--model", "-m", required=True, metavar="FILE", help="the ONNX model")
    cli.add_argument("--input", "-i", metavar="PATHS", help="files (comma-separated) or a folder (default: zeros)")
    cli.add_argument("--output", "-o", metavar="DIR", help="where results go; without it none are written")
    cli.add_argument("--output_dirname", type=folder_name, metavar="NAME", help="their folder inside --output (default: a time stamp)")
    cli.add_argument("--outfmt", choices=("NPY", "BIN", "TXT"), default="BIN", help="default: %(default)s")
    cli.add_argument("--loop", "-l", type=positive, metavar="N", help="times that each batch is computed (default: 1; without "
                     "--input, to make about %d videos)" % SYNTHETIC_VIDEOS)
    cli.add_argument("--warmup_count", type=non_negative, default=1, metavar="N", help="batches run first, not counted (default: 1)")
    cli.add_argument("--batchsize", type=positive, metavar="N", help="of the throughput's figure (default: the model's)")
    cli.add_argument("--device", "-d", default="0", metavar="N", help="accepted for compatibility; there is one CPU")
    cli.add_argument("--pure_data_type", choices=("zero", "random"), default="zero", help="without --input "
                     "(default: %(default)s)")
    engines.add_options(cli, agreement=True)
    args = cli.parse_args()
    if args.output_dirname and not args.output:
        cli.error("--output_dirname needs --output")
    return args


def times_of(engine: engines.Engine, model: Offline, kind: str, batches: int, what: str) -> List[float]:
    """ms of each of some batches of made-up videos."""
    made, times = made_up(model, kind), []
    names = ["made up"] * (batches * model.batch // len(made))
    runs = engines.run_batches(engine, model, names, lambda _: made, samples=len(made))
    with progress(batches, what, "batch") as tick:
        for _, ((ms, _),) in runs:
            times.append(ms)
            tick()
    return times


def warmed_up(args: argparse.Namespace, computing: engines.Computing, model: Offline) -> engines.Engine:
    """The model, compiled and warm."""
    engine = engines.open_engine(model, computing, listed=True)
    print(engines.said_of(engine, model), flush=True)
    times_of(engine, model, "zero", args.warmup_count, "warm-up")
    return engine


def print_rate(args: argparse.Namespace, model: Offline, times: Sequence[float], videos: int, facts: Dict[str, Any]) -> float:
    """Print the throughput, in videos per second, and return it; of a model that is not of modify_onnx.py as ais_bench prints it."""
    figures = statistics(times)
    throughput = 1000 * (args.batchsize * len(times) if args.batchsize else videos) / sum(times)
    if model.fusion:
        print(rate_line(throughput, facts))
    else:
        print("[INFO] NPU_compute_time (ms): " + ", ".join("%s = %.3f" % item for item in list(figures.items())[:-1]))
        print("[INFO] throughput 1000*batchsize.mean(%d)/NPU_compute_time.mean(%s): %s" % (
            args.batchsize or model.batch, figures["mean"], throughput))
    return throughput


def measure_alone(args: argparse.Namespace, computing: engines.Computing, model: Offline) -> None:
    """The model's throughput, on made-up videos."""
    engine, loop = warmed_up(args, computing, model), args.loop or -(-SYNTHETIC_VIDEOS // model.batch)
    times = times_of(engine, model, args.pure_data_type, loop, "throughput")
    print_rate(args, model, times, model.batch * loop, engines.about(engine))


def compute(
    args: argparse.Namespace, computing: engines.Computing, model: Offline, work: Work, found: Progress, read: Callable[[str], np.ndarray],
    samples: int
) -> None:
    """Do what is left in `found`, and enter it there; a batch is a piece. Without --output nothing is written."""
    engine = warmed_up(args, computing, model)
    agree: Dict[str, List[int]] = {}
    left = sorted(found.keys)
    runs = engines.run_batches(engine, model, [work.inputs[number] for number in left], read, args.loop,
                               lambda path, votes, _: agree.update({path: votes.tolist()}), samples)
    with contextlib.ExitStack() as stack:
        keep: Callable[[Piece], None] = partial(enter, found)
        if args.output:
            unfinish(work)  # only now: a run that cannot begin leaves an earlier one whole
            keep = stack.enter_context(recording(work, found, work.folder))
        tick = stack.enter_context(progress(len(work.inputs), "inference", "file", len(found.done)))
        began = time.time()
        for outputs, times in runs:
            done = [Done(number, "", agree.get(work.inputs[number]), output) for number, output in zip(left, outputs)]
            keep(Piece(socket.gethostname(), "cpu", began, time.time(), done, [], times, engines.about(engine), {}))
            del left[: len(outputs)]
            tick(len(outputs))
            began = time.time()


def agreement(
    args: argparse.Namespace, computing: engines.Computing, model: Offline, work: Work, found: Progress, read: Callable[[str], np.ndarray],
    samples: int
) -> Dict[str, Any]:
    """On how many of about --agreement videos fp32 gives the same top-1."""
    engine = engines.open_engine(model, computing._replace(precision="fp32"), listed=True)
    classes = (model.protocol or protocol_of(model.proto, model.path)).classes
    answers = {number: (read_scores(work.result(number), classes) if one.scores is None else one.scores).argmax(-1)
               for number, one in found.done.items()}  # None: they are written
    chosen = stratified({number: int(rows[0]) for number, rows in answers.items()}, -(-args.agreement // samples))
    runs = engines.run_batches(engine, model, [work.inputs[number] for number in chosen], read, samples=samples)
    exact = [output.argmax(-1) for outputs, _ in runs for output in outputs]
    same = [bool(one) for number, rows in zip(chosen, exact) for one in answers[number] == rows]
    return engines.agreement_facts(same, samples * len(answers))


def infer_files(args: argparse.Namespace, computing: engines.Computing, model: Offline) -> None:
    """The results of files; those that are there already stay."""
    inputs = list_inputs(args.input)
    check_protocol(inputs, model)

    def read(path: str) -> np.ndarray:
        return read_tensor(path, model.shape, model.dtype, inputs.entries.get(os.path.basename(path)))

    args.loop, samples = args.loop or 1, samples_in(inputs.files[0], model)
    keys = keys_of_files(inputs, engines.basis_of(engines.digests_of(model.path, computing), computing, args.loop))
    folder = os.path.join(args.output or "", args.output_dirname or time.strftime("%Y_%m_%d-%H_%M_%S"))
    work = Work(folder, args.outfmt, dict(enumerate(inputs.files)))
    with held(*[folder] if args.output else []):
        found = survey(work, keys, {}) if args.output else Progress([], {}, keys, {})
        kept = len(found.done)
        if found.keys:
            compute(args, computing, model, work, found, read, samples)
        facts = dict(found.pieces[-1].facts, model=model.metadata)
        if args.precision != "fp32" and args.agreement:
            facts = dict(facts, **agreement(args, computing, model, work, found, read, samples))
        times = [ms for piece in found.pieces for ms, _ in piece.times]
        throughput = print_rate(args, model, times, args.loop * len(inputs.files) * samples, facts)
        if args.output:
            summarise_found(work, found, throughput, facts)
            print("%d results in %s: %d made, %d already right" % (len(found.done), folder, len(found.done) - kept, kept))


def main() -> None:
    args = get_args()
    model = engines.for_views(read_offline(args.model))
    (infer_files if args.input else measure_alone)(args, engines.computing_of(args, model.path), model)


if __name__ == "__main__":
    run(main)

#!/usr/bin/env python3
"""The closing table of a run, and report.json: accuracy, throughput, stages, protocol, versions, arguments.

    python3 TSM_report.py --result_path=inference_result/out_summary.json --info_path=sthv2/sthv2.info \\
        --batch_size 1 --perf_batches 1 4 --model tsm_new_bs1.onnx

Reads what the stages left in the working directory: the summary of the inference, sthv2/sthv2.json (the manifest),
perf/bs<B>.log (what ais_bench or TSM_infer.py printed), stages.json (seconds and peak memory) and the metadata of the
modified model. Accuracy is read from --accuracy (TSM_postprocess.py --json), or else computed from the results.

Published figures belong to one file: they are shown, and compared, only for the checkpoint that they were published of
(by its SHA-256), and compared only if all 24,777 videos of the validation set were measured.
"""

import argparse

from tsm.accuracy import accuracy_of, read_accuracy
from tsm.cli import parser, positive, run
from tsm.files import sha256, write_json
from tsm.report import collect, text
from tsm.samples import manifest_path


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--result_path", required=True, metavar="FILE", help="summary of the inference")
    cli.add_argument("--info_path", required=True, metavar="FILE", help="labels; the manifest is the .json beside it")
    cli.add_argument("--model", required=True, metavar="FILE", help="the modified ONNX model, for its metadata")
    cli.add_argument("--accuracy", metavar="FILE", help="the figures of TSM_postprocess.py --json (default: computed again)")
    cli.add_argument("--checkpoint", metavar="FILE", help="the checkpoint, if the model's metadata do not know its digest")
    cli.add_argument("--batch_size", required=True, type=positive, help="batch size of the inference")
    cli.add_argument("--perf_batches", type=positive, nargs="*", default=[], help="batch sizes whose perf/bs<B>.log to read")
    cli.add_argument("--device", choices=("cpu", "npu"), default="cpu")
    cli.add_argument("--precision", default="fp32", help="what the CPU computed in (default: fp32)")
    cli.add_argument("--output", default="report.json", metavar="FILE", help="the report (default: report.json)")
    return cli.parse_args()


def main() -> None:
    args = get_args()
    accuracy = read_accuracy(args.accuracy) if args.accuracy else accuracy_of(args.result_path, args.info_path)
    report = collect(
        accuracy, args.model, args.result_path, manifest_path(args.info_path), args.device, args.precision, args.batch_size,
        args.perf_batches, sha256(args.checkpoint) if args.checkpoint else None, vars(args))
    print(text(report))
    write_json(args.output, report)
    print("\nwrote " + args.output)


if __name__ == "__main__":
    run(main)

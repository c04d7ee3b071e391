#!/usr/bin/env python3
"""What a batch costs and what a precision costs: TSM_infer.py on the demo's clips, by its command line.

    bench/run.sh batches          # makes what this needs, then runs it

Throughput at batch 32 against batch 1 on the same 32 clips, in turns; peak memory at batch 32; then top-1 over all clips,
and how often it agrees with fp32, at each precision.
"""

import argparse
import os
import subprocess
import sys
from statistics import median
from typing import Any, Dict, List

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, REPO)

from tsm.cli import UserError, parser, positive, run  # noqa: E402
from tsm.files import read_json, write_json  # noqa: E402
from tsm.infer.tensors import list_inputs  # noqa: E402
from tsm.results import accuracy_of  # noqa: E402

LARGE = 32


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--work_dir", required=True, metavar="DIR", help="holds tsm_new_bs1.onnx, tsm_new_bs32.onnx, "
                     "tsm_int8.xml and sthv2/, as bench/run.sh makes them")
    cli.add_argument("--precisions", nargs="+", default=["bf16", "fp32", "int8"], metavar="P", help="the batches take turns in "
                     "the first (default: bf16 fp32 int8)")
    cli.add_argument("--rounds", type=positive, default=3, metavar="N", help="default: %(default)s")
    cli.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    return cli.parse_args()


def infer(folder: str, batch: int, precision: str, files: str, agreement: int) -> Dict[str, Any]:
    """The summary of a run of TSM_infer.py in `folder`."""
    command = [sys.executable, os.path.join(REPO, "TSM_infer.py"), "--model", "tsm_new_bs%d.onnx" % batch, "--input", files,
               "--output", "results", "--output_dirname", precision, "--outfmt", "TXT", "--precision", precision,
               "--agreement", str(agreement), "--warmup_count", "0"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, universal_newlines=True)
    if done.returncode:
        raise UserError(done.stderr.strip().splitlines()[-1])
    return read_json(os.path.join(folder, "results", precision + "_summary.json"))


def main() -> None:
    args = get_args()
    tensors = os.path.join("sthv2", "preprocess_bin")
    names = [os.path.basename(path) for path in list_inputs(os.path.join(args.work_dir, tensors)).files]
    some = ",".join(os.path.join(tensors, name) for name in names[:LARGE])
    first = args.precisions[0]
    throughput: Dict[int, List[float]] = {1: [], LARGE: []}
    memory: Dict[str, float] = {}
    for _ in range(args.rounds):
        for batch in throughput:
            summary = infer(args.work_dir, batch, first, some, 0)
            throughput[batch].append(summary["throughput"])
    memory[first] = summary["tsm"]["peak_memory_bytes"]
    for precision in args.precisions[1:]:
        memory[precision] = infer(args.work_dir, LARGE, precision, some, 0)["tsm"]["peak_memory_bytes"]
    ratio = median(large / one for large, one in zip(throughput[LARGE], throughput[1]))
    print("| batch, %s | videos per second |\n|---|---|" % first)
    for batch, values in throughput.items():
        print("| %d | %.3f |" % (batch, median(values)))
    print("\nbatch %d / batch 1: %.3f (aim: >= 0.98)\n" % (LARGE, ratio))
    print("| precision | peak memory at batch %d, MB (aim: <= 2500) | top-1 | top-1 as in fp32 |\n|---|---|---|---|" % LARGE)
    figures: Dict[str, Any] = {}
    for precision in args.precisions:
        agreement = infer(args.work_dir, 1, precision, tensors, len(names))["tsm"].get("top1_agreement_with_fp32")
        accuracy, _ = accuracy_of(os.path.join(args.work_dir, "results", precision + "_summary.json"),
                               os.path.join(args.work_dir, "sthv2", "sthv2.info"))
        figures[precision] = {"peak_memory_bytes": memory[precision], "top1": accuracy.top1_acc, "agreement": agreement}
        same = "%d of %d" % (agreement["same"], agreement["videos"]) if agreement else "-"
        print("| %s | %.0f | %.4f | %s |" % (precision, memory[precision] / 1e6, accuracy.top1_acc, same), flush=True)
    if args.json:
        write_json(args.json, {"precision_of_the_batches": first, "videos_per_second": throughput, "ratio": ratio,
                               "precisions": figures})


if __name__ == "__main__":
    run(main)

#!/usr/bin/env python3
"""The whole way from videos to scores: TSM_stream.py, the same chain through tensor files, and the engine alone; in turns.

    bench/run.sh stream          # makes what this needs, then runs it

The same list of links to the demo's clips in every way, each by its command line, as whole processes by the wall clock; so
start-up, compilation of the model and the writing of results count. The engine alone is TSM_infer.py's own throughput,
without decoding: what the streamed run could reach if decoding cost nothing.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from statistics import median
from typing import Dict, List

from turns import REPO, link_clips  # sets up the path to the suite

from tsm.cli import UserError, parser, positive, run
from tsm.files import write_json
from tsm.machine import processor_name
from tsm.results import throughput_in

AIMS = {"stream / engine alone": ">= 0.95", "stream / through tensor files": ">= 1.3"}


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--work_dir", required=True, metavar="DIR", help="holds tsm_u8_bs1.onnx and tsm_u8_int8.xml, as bench/run.sh "
                     "makes them")
    cli.add_argument("--videos", type=positive, default=160, metavar="N", help="default: %(default)s")
    cli.add_argument("--rounds", type=positive, default=3, metavar="N", help="default: %(default)s")
    cli.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    return cli.parse_args()


def command(script: str, *args: str) -> List[str]:
    return [sys.executable, os.path.join(REPO, script)] + list(args)


def printed(words: List[str], folder: str) -> str:
    """Run a command in a folder; what it prints."""
    done = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    if done.returncode:
        raise UserError(done.stderr.strip().splitlines()[-1])
    return done.stdout


def main() -> None:
    args = get_args()
    folder = os.path.abspath(os.path.join(args.work_dir, "stream"))
    link_clips(folder, args.videos)
    model = ["--model", os.path.join("..", "tsm_u8_bs1.onnx"), "--precision", "int8", "--int8_model",
             os.path.join("..", "tsm_u8_int8.xml"), "--agreement", "0"]
    source = ["--data_root", "videos", "--ann_file", "list.txt"]
    results = ["--output", "results", "--output_dirname", "out", "--outfmt", "TXT"]
    rates: Dict[str, List[float]] = {"stream": [], "through tensor files": [], "engine alone": []}
    for _ in range(args.rounds):
        for name in ("sthv2", "results"):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        began = time.time()
        printed(command("TSM_stream.py", *(model + source + results)), folder)
        rates["stream"].append(args.videos / (time.time() - began))
        for name in ("sthv2", "results"):
            shutil.rmtree(os.path.join(folder, name))
        began = time.time()
        printed(command("TSM_preprocess.py", "--dtype", "uint8", *source), folder)
        printed(command("TSM_infer.py", "--input", os.path.join("sthv2", "preprocess_bin"), *(model + results)), folder)
        rates["through tensor files"].append(args.videos / (time.time() - began))
        rates["engine alone"].append(throughput_in(printed(command("TSM_infer.py", *(model + ["--loop", "40"])), folder)) or 0.0)
    shutil.rmtree(folder)
    ratios = {"stream / " + name: median(a / b for a, b in zip(rates["stream"], rates[name])) for name in list(rates)[1:]}
    print("%s, %s, int8, %d videos, %d rounds\n" % (processor_name(), time.strftime("%Y-%m-%d"), args.videos, args.rounds))
    print("| way | videos per second |\n|---|---|")
    for name, values in rates.items():
        print("| %s | %.2f |" % (name, median(values)))
    print("\n| ratio | measured | aim |\n|---|---|---|")
    for name, value in ratios.items():
        print("| %s | %.3f | %s |" % (name, value, AIMS.get(name, "")))
    if args.json:
        write_json(args.json, {"machine": processor_name(), "videos_per_second": rates, "ratios": ratios})


if __name__ == "__main__":
    run(main)

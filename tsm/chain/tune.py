#!/usr/bin/env python3
"""Which form of the graph, and which input, is the fastest on the chip of this host: run_all.sh --tune, of which this is a stage.

    python3 tsm/chain/tune.py --model tsm_bs1.onnx --checkpoint tsm_demo.pth --batch_size 8 --chip 310P3 --data_root demo/videos \\
        --ann_file sthv2_val_list_videos.txt

First the three forms with float32, then the fastest of them with uint8 and with AIPP. Each is made, compiled, asked for the answers to
some videos, which have to be the guide's form's, and timed by ais_bench --loop. What any tool refuses is a row with that tool's words.
tune.json keeps the rows; run_all.sh uses its choice on the same chip, CANN and checkpoint.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from typing import Dict, List, NamedTuple, Optional, Tuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # of a script in a folder of a package

from tsm import SUITE
from tsm.chain.npu import atc_options, cann_version, why_it_failed
from tsm.cli import UserError, parser, positive, run, warn
from tsm.files import read_json, sha256, write_json
from tsm.results import TIMES, read_npy
from tsm.workfolder import BINS, TUNE, TUNING

# isort: split
import numpy as np

INPUTS = {"float32": "float32", "uint8": "uint8", "aipp": "uint8_nhwc"}  # with their tensors
HEADING, LINE = ("form", "input", "videos/s", "with transfer", "answers"), "%-6s %-8s %9s %14s   %s"
BENCH = [sys.executable, "-m", "ais_bench", "--model"]
TRIED = 8  # videos whose answers are compared
APART = 0.02  # largest difference of a probability from the guide's form with float32, which the chip computes in fp16 as well


class Candidate(NamedTuple):
    """A form and an input, and what came of it; figures are None as far as it did not come."""

    form: str
    input: str
    commands: List[str]
    refused: str = ""  # by which tool, and its words
    videos_per_second: Optional[float] = None  # of computing alone, which is the guide's figure
    with_transfer: Optional[float] = None  # of computing, and of what goes to the chip and comes back
    largest_difference: Optional[float] = None
    top1_agreement: Optional[int] = None

    @property
    def usable(self) -> bool:
        return not self.refused and self.largest_difference is not None and self.largest_difference <= APART


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    for name in ("model", "checkpoint", "chip", "data_root", "ann_file"):
        cli.add_argument("--" + name, required=True)
    cli.add_argument("--batch_size", type=positive, default=1)
    cli.add_argument("--loop", type=positive, default=20)
    for name in ("protocol", "fusion", "filename_tmpl", "start_index", "precision_mode", "precision_mode_v2"):
        cli.add_argument("--" + name)
    return cli.parse_args()


def given(args: argparse.Namespace, *names: str) -> List[str]:
    """These options again, as far as they were given."""
    return [word for name in names if getattr(args, name) for word in ("--" + name, getattr(args, name))]


def call(tool: str, words: List[str], commands: List[str]) -> str:
    """What a command prints, of a script of the suite by its options; it is added to `commands`. Raises UserError:
    which tool failed, and its words."""
    if tool.endswith(".py"):
        words = [sys.executable, os.path.join(SUITE, tool)] + words
    commands.append(" ".join(map(shlex.quote, words)))
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        ended = "" if done.returncode > 0 else "ended by signal %d; " % -done.returncode
        raise UserError("%s: %s%s" % (tool, ended, why_it_failed(said)))
    return said


def compiled_answers(base: str, options: List[str], chip: str, inputs: str, commands: List[str]) -> Dict[str, np.ndarray]:
    """What ais_bench answers to the tensors `inputs`, probabilities by the names of its files, once atc has compiled
    `base`.onnx to `base`.om by these options. Raises UserError."""
    call("atc", ["atc", "--model=%s.onnx" % base, "--framework=5", "--output=" + base] + options
         + ["--log=error", "--soc_version=Ascend" + re.sub("^Ascend", "", chip)], commands)
    shutil.rmtree(base, ignore_errors=True)
    call("ais_bench", BENCH + [base + ".om", "--input", inputs, "--output", os.path.dirname(base), "--output_dirname",
                               os.path.basename(base), "--outfmt", "NPY"], commands)
    names = sorted(os.listdir(base)) if os.path.isdir(base) else []
    if not names:
        raise UserError("ais_bench: wrote no answers")
    return {name: read_npy(os.path.join(base, name)).astype(np.float64).reshape(-1) for name in names}


def timed(args: argparse.Namespace, form: str, kind: str, source: str, commands: List[str]) -> Tuple[Dict[str, np.ndarray], List[float]]:
    """(a candidate's answers, its milliseconds a batch: computing, to the chip, from it). Raises UserError."""
    base, tensors = os.path.join(TUNING, "%s_%s" % (form, kind)), os.path.join(TUNING, INPUTS[kind])
    call("modify_onnx.py", ["-m1", source, "-m2", base + ".onnx", "-bs", str(args.batch_size), "--target", "ascend", "--form", form,
                            "--input_dtype", kind] + given(args, "protocol", "fusion"), commands)
    call("TSM_preprocess.py", ["--data_root", args.data_root, "--ann_file", args.ann_file, "--range", "0:%d" % TRIED, "--on_error", "skip",
                               "--dtype", INPUTS[kind], "--output_dir", tensors]
         + given(args, "protocol", "filename_tmpl", "start_index"), commands)
    options = atc_options(base + ".cfg" if kind == "aipp" else "", args.precision_mode, args.precision_mode_v2)
    answers = compiled_answers(base, options, args.chip, os.path.join(tensors, BINS), commands)
    said = call("ais_bench", BENCH + [base + ".om", "--loop", str(args.loop), "--batchsize", str(args.batch_size),
                                      "--display_all_summary", "1"], commands)  # else it does not tell the transfer
    means = dict(re.findall(r"(\w+) \(ms\):.*?mean = ([0-9.eE+-]+)", said))
    if not set(TIMES) <= set(means):
        raise UserError("ais_bench: told no " + ", ".join(TIMES))
    return answers, [float(means[name]) for name in TIMES]


def candidate(args: argparse.Namespace, form: str, kind: str, source: str, reference: Dict[str, np.ndarray]) -> Candidate:
    """Try one; what is the first to answer becomes the `reference`."""
    commands: List[str] = []
    try:
        answers, times = timed(args, form, kind, source, commands)
    except UserError as error:
        return Candidate(form, kind, commands, str(error))
    reference.update(answers if not reference else {})
    pairs = [(answers[name], wanted) for name, wanted in reference.items() if name in answers and len(answers[name]) == len(wanted)]
    if len(pairs) < len(reference):
        return Candidate(form, kind, commands, "its answers are not of the same videos and classes as the first candidate's")
    apart = float(np.max([np.abs(one - wanted).max() for one, wanted in pairs]))  # not a number if one is none
    same = sum(int(one.argmax() == wanted.argmax()) for one, wanted in pairs)
    rates = [1000 * args.batch_size / max(1e-9, of) for of in (times[0], sum(times))]
    return Candidate(form, kind, commands, "", round(rates[0], 3), round(rates[1], 3), apart if np.isfinite(apart) else 1.0, same)


def cells_of(row: Candidate, videos: int) -> List[str]:
    """A row of the table: HEADING's."""
    rates = ["" if rate is None else "%.2f" % rate for rate in (row.videos_per_second, row.with_transfer)]
    answers = "top-1 the same on %d of %d, largest difference %.2g%s" % (
        row.top1_agreement or 0, videos, row.largest_difference or 0, "" if row.usable else ", which is too large")
    return [row.form, row.input, *rates, "refused: " + row.refused if row.refused else answers]


def fastest(rows: List[Candidate]) -> Optional[Candidate]:
    """The usable one with the most videos per second, their transfer included."""
    return max((row for row in rows if row.usable), key=lambda row: row.with_transfer or 0, default=None)


def tuned(chip: str, checkpoint: str, inputs: List[str]) -> Optional[Candidate]:
    """What tune.json of this folder says is the fastest of these inputs on this chip; None where it is not of this
    chip, CANN and checkpoint, which is said, or there is none."""
    try:
        found = read_json(TUNE, "tune")
    except FileNotFoundError:
        return None
    here = {"chip": chip, "cann": cann_version(), "checkpoint_sha256": sha256(checkpoint)}
    differs = ["%s %s, not %s" % (name, str(found.get(name))[:20], value[:20]) for name, value in here.items() if found.get(name) != value]
    if differs:
        warn("%s: is of another %s; the guide's form is used, and --tune measures again" % (TUNE, "; ".join(differs)))
        return None
    return fastest([row for row in (Candidate(**row) for row in found["candidates"]) if row.input in inputs])


def main() -> None:
    args = get_args()
    os.makedirs(TUNING, 0o750, exist_ok=True)
    reference: Dict[str, np.ndarray] = {}
    rows: List[Candidate] = []
    sources: Dict[str, str] = {}  # a modified model of each input, whose proof is of every form

    def attempt(form: str, kind: str) -> None:
        row = candidate(args, form, kind, sources.get(kind, args.model), reference)
        if os.path.exists(os.path.join(TUNING, "%s_%s.onnx" % (form, kind))):
            sources.setdefault(kind, os.path.join(TUNING, "%s_%s.onnx" % (form, kind)))
        rows.append(row)
        print(LINE % tuple(cells_of(row, len(reference))), flush=True)

    print(LINE % HEADING, flush=True)
    for form in ("guide", "parts", "mask"):
        attempt(form, "float32")
    best = fastest(rows)
    for kind in ("uint8", "aipp"):
        attempt(best.form if best else "guide", kind)
    best = fastest(rows)
    write_json(TUNE, {
        "chip": args.chip, "cann": cann_version(), "checkpoint_sha256": sha256(args.checkpoint), "batch_size": args.batch_size,
        "videos": len(reference), "tolerance": APART, "candidates": [row._asdict() for row in rows],
        "chosen": {"form": best.form, "input": best.input} if best else None}, "tune")
    shutil.rmtree(TUNING, ignore_errors=True)
    if not best:
        raise UserError("%s: no candidate ran; the rows above say why" % TUNE)
    print("kept: form %s, input %s; wrote %s" % (best.form, best.input, TUNE))


if __name__ == "__main__":
    run(main)

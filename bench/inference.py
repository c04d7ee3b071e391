#!/usr/bin/env python3
"""Inference, every way side by side: ours, the floor, and its rivals at their best, all answers compared with fp32's.

    bench/run.sh inference        # makes what this needs, then runs it

The floor is our network without its shifts on the same engine: the shift moves a quarter of the channels and computes
nothing, so time above the floor is what a better graph could still save. Every way lives in a process of its own, answers some of
the demo's clips, and then takes its turn in every round with those of its precision; figures are medians over the rounds, and each
ratio is the median of that ratio within the rounds (over mmaction2, which has fp32 alone, of the medians), so that a slow spell of the
machine touches both sides alike. A rival that cannot be run is one line. The
strongest one is the quickest whose answers are fp32's but for one in 20 at most, and which computes the shift.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from statistics import median
from typing import Any, Dict, List, NamedTuple, Tuple

from turns import REPO, Way, take_turns  # sets up the path to the suite

from tsm.cli import UserError, non_negative, parser, positive, run
from tsm.files import write_json
from tsm.machine import has_bf16, processor_name

KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "16000000000", "MALLOC_TOP_PAD_": "268435456"}  # freed memory stays
FROZEN = dict(KEPT, TORCHINDUCTOR_FREEZING="1")
ENVIRONMENTS = {"": {}, "kept": KEPT, "frozen": FROZEN, "tuned": dict(FROZEN, TORCHINDUCTOR_MAX_AUTOTUNE="1")}
OURS, FLOOR, APP = "ours", "no shift", "benchmark_app -hint throughput, graph as exported"
AS_EXPORTED = "OpenVINO, graph as exported"
MMACTION2 = "mmaction2, freed memory kept"
NO_SHIFT = (FLOOR, "ncnn, without the shift")
NO_RIVALS = (OURS, "ours, on ONNX Runtime") + NO_SHIFT
AIMS = {"fp32": 1.08, "bf16": 1.2, "int8": 1.15}  # of the strongest rival's time over ours
AIMS_AMX = {"fp32": 1.08, "bf16": 2.0, "int8": 2.0}
LABELS = {  # of the short tables' rows
    "README.md": ("`TSM_infer.py`, seconds per video", "strongest rival", "its seconds per video", "its time / ours (aim)",
                  "mmaction2's time / ours", "answers equal to fp32's: ours; the rival's"),
    "README_zh-CN.md": ("`TSM_infer.py`，每个视频的秒数", "最强的对手", "它的秒数", "它的时间 / 本套件（目标）",
                        "mmaction2 的时间 / 本套件", "与 fp32 结果相同：本套件；对手"),
}


class Row(NamedTuple):
    """A row of the table."""

    name: str
    precision: str
    way: str  # of bench/ways.py
    python: str = "suite"  # or rivals or reference: whose environment it lives in
    environment: str = ""  # of ENVIRONMENTS

    @property
    def clips(self) -> int:
        """How many of the demo's clips it answers: fp32 needs few to be seen right, ours answers all for the others."""
        return 8 if self.precision == "fp32" and self.name != OURS else 40


ROWS = [
    Row(MMACTION2, "fp32", "mmaction2", "reference", "kept"),
    Row("mmaction2, as it is installed", "fp32", "mmaction2", "reference"),
    Row("torch.compile, frozen", "fp32", "torch", "suite", "frozen"),
    Row("torch.compile, frozen, max-autotune", "fp32", "torch", "suite", "tuned"),
    Row("torch.compile, frozen", "bf16", "torch", "suite", "frozen"),
    Row("torch.compile, frozen, max-autotune", "bf16", "torch", "suite", "tuned"),
    Row("torch.compile, frozen, torchao's PT2E", "int8", "torch", "rivals", "frozen"),
    Row("zentorch, frozen", "fp32", "zentorch", "rivals", "frozen"),
    Row("zentorch, frozen", "bf16", "zentorch", "rivals", "frozen"),
    Row("ONNX Runtime, graph as exported", "fp32", "onnxruntime"),
    Row("ONNX Runtime, its own QDQ", "int8", "onnxruntime"),
    Row("ONNX Runtime's OpenVINO provider", "fp32", "openvino_provider", "rivals"),
    Row(AS_EXPORTED, "fp32", "openvino"),
    Row(AS_EXPORTED, "bf16", "openvino"),
    Row(AS_EXPORTED, "int8", "openvino"),
    Row(APP, "fp32", "app"),
    Row(APP, "bf16", "app"),
    Row(APP, "int8", "app"),
    Row("MNN, graph as exported", "fp32", "mnn", "rivals"),
    Row("ncnn, without the shift", "fp32", "ncnn", "rivals"),
    Row("ours, on ONNX Runtime", "fp32", "ours_onnxruntime"),
    Row(OURS, "fp32", "ours"),
    Row(FLOOR, "fp32", "no_shift"),
    Row(OURS, "bf16", "ours"),
    Row(FLOOR, "bf16", "no_shift"),
    Row(OURS, "int8", "ours"),
    Row(FLOOR, "int8", "no_shift"),
]


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--work_dir", required=True, metavar="DIR", help="what bench/run.sh makes")
    cli.add_argument("--reference_python", default="", metavar="PYTHON", help="a Python with mmaction2")
    cli.add_argument("--rivals_python", default="", metavar="PYTHON", help="a Python with requirements-rivals.txt")
    cli.add_argument("--only", nargs="+", metavar="WAY", help="some of the ways of bench/ways.py, and app")
    cli.add_argument("--rounds", type=positive, default=5, metavar="N", help="default: %(default)s")
    cli.add_argument("--burn_in", type=non_negative, default=2, metavar="N", help="rounds before that (default: %(default)s)")
    cli.add_argument("--clips", type=positive, default=40, metavar="N", help="of the demo's, at most, that a way answers (default: all 40)")
    cli.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    return cli.parse_args()


class BenchmarkApp:
    """OpenVINO's own benchmark_app, started anew for each turn, as it is meant to be."""

    def __init__(self, folder: str, precision: str) -> None:
        model, hint = ("export_int8.xml", "f32") if precision == "int8" else ("export.onnx", precision.replace("fp32", "f32"))
        self.command = [os.path.join(os.path.dirname(sys.executable), "benchmark_app"), "-m", os.path.join(folder, model),
                        "-d", "CPU", "-hint", "throughput", "-infer_precision", hint, "-niter", "4" if precision == "fp32" else "8"]
        self.about = "OpenVINO's benchmark_app"

    def seconds(self) -> float:
        done = subprocess.run(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
        found = re.search(r"Throughput:\s+([0-9.]+) FPS", done.stdout)
        if not found:
            raise UserError("%s: %s" % (" ".join(self.command), done.stdout.strip().splitlines()[-1:]))
        return 1 / float(found.group(1))

    def close(self) -> None:
        pass


def start(row: Row, args: argparse.Namespace) -> Any:
    """A row's process, warm; UserError where it cannot be run."""
    if row.precision == "bf16" and not has_bf16():
        raise UserError("this processor has no bfloat16 instructions")
    if row.way == "app":
        return BenchmarkApp(args.work_dir, row.precision)
    python = {"suite": sys.executable, "rivals": args.rivals_python, "reference": args.reference_python}[row.python]
    if not python:
        raise UserError("no environment was given for it (--%s_python)" % row.python)
    command = [python, os.path.join(REPO, "bench", "ways.py"), row.way, row.precision, args.work_dir]
    caches = {"TORCHINDUCTOR_CACHE_DIR": os.path.abspath(os.path.join(args.work_dir, "inductor"))}
    return Way(command, 4 if row.name in (OURS, FLOOR) and row.precision != "fp32" else 1, dict(caches, **ENVIRONMENTS[row.environment]))


def measure(
    rows: List[Row], args: argparse.Namespace, about: Dict[Row, str], answers: Dict[Row, List[int]]
) -> Dict[Row, List[float]]:
    """The seconds per video in each round of those rows that could be run; adds what each ran on, and its answers."""
    ways: Dict[Row, Any] = {}
    lost: Dict[Row, str] = {}
    try:
        for row in rows:
            try:
                ways[row] = start(row, args)
                about[row], answers[row] = ways[row].about, answers_of(row, ways, answers, args.clips)
            except (UserError, OSError) as error:
                lost[row] = str(error)
        return take_turns({row: way for row, way in ways.items() if row not in lost}, args.rounds, args.burn_in, lost)
    finally:
        for way in ways.values():
            way.close()
        for row, why in lost.items():
            print("NOT RUN: %s, %s: %s" % (row.name, row.precision, why.replace("ways.py: error: ", "")), flush=True)


def answers_of(row: Row, ways: Dict[Row, Any], answers: Dict[Row, List[int]], most: int) -> List[int]:
    """A row's answers; benchmark_app gives none, so they are those of the same file on the same engine."""
    if row.way == "app":
        return answers.get(Row(AS_EXPORTED, row.precision, "openvino"), [])
    return ways[row].answers(min(row.clips, most))


def has_amx() -> bool:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return "amx_int8" in file.read()


def of_ours(name: str, precision: str, times: Dict[Row, List[float]]) -> List[float]:
    """The seconds in each round of a row of this name."""
    return next((seconds for row, seconds in times.items() if (row.name, row.precision) == (name, precision)), [])


def ratio(slow: List[float], fast: List[float]) -> float:
    """The median over the rounds; nan where one was not run."""
    return median(a / b for a, b in zip(slow, fast)) if slow and fast else float("nan")


def strongest(precision: str, times: Dict[Row, List[float]], same: Dict[Row, Tuple[int, int]]) -> Row:
    """The quickest rival whose answers are right; UserError where none could be run."""
    right = [row for row in times if row.precision == precision and row.name not in NO_RIVALS and same[row][1]
             and same[row][0] >= (1 if precision == "fp32" else 0.95) * same[row][1]]
    if not right:
        raise UserError("no rival in %s was run" % precision)
    return min(right, key=lambda row: median(times[row]))


def full_table(times: Dict[Row, List[float]], same: Dict[Row, Tuple[int, int]]) -> str:
    """For bench/README.md."""
    lines = ["| way | precision | seconds per video | videos per second | its time / ours | answers as fp32's |", "|---" * 6 + "|"]
    for row, seconds in times.items():
        agree = "%d of %d" % same[row] if same[row][1] and row.name not in NO_SHIFT else "-"
        lines.append("| %s | %s | %.3f | %.2f | %.2f | %s |" % (
            row.name, row.precision, median(seconds), 1 / median(seconds), ratio(seconds, of_ours(OURS, row.precision, times)), agree))
    return "\n".join(lines)


def short_table(page: str, times: Dict[Row, List[float]], same: Dict[Row, Tuple[int, int]]) -> str:
    """For a README: ours beside the strongest rival of each precision."""
    precisions = [row.precision for row in times if row.name == OURS]
    aims = AIMS_AMX if has_amx() else AIMS
    columns, slowest = [], of_ours(MMACTION2, "fp32", times) or [float("nan")]
    for precision in precisions:
        rival, seconds = strongest(precision, times, same), of_ours(OURS, precision, times)
        columns.append([
            "%.3f" % median(seconds), rival.name, "%.3f" % median(times[rival]),
            "%.2f (%.2f)" % (ratio(times[rival], seconds), aims[precision]), "%.2f" % (median(slowest) / median(seconds)),
            "%d of %d; %d of %d" % (same[Row(OURS, precision, "ours")] + same[rival])])
    lines = ["| | %s |" % " | ".join(precisions), "|---" * (1 + len(precisions)) + "|"]
    lines += ["| %s | %s |" % (label, " | ".join(cells)) for label, cells in zip(LABELS[page], zip(*columns))]
    return "\n".join(lines).replace(" of ", " / ") if "zh" in page else "\n".join(lines)


def main() -> None:
    args = get_args()
    about: Dict[Row, str] = {}
    answers: Dict[Row, List[int]] = {}
    times: Dict[Row, List[float]] = {}
    for precision in AIMS:  # all at once would not fit into 24 GB
        times.update(measure([row for row in ROWS if row.precision == precision and (not args.only or row.way in args.only)], args, about,
                             answers))
    expected = answers.get(Row(OURS, "fp32", "ours"), [])
    same = {row: (sum(a == b for a, b in zip(answers[row], expected)), min(len(answers[row]), len(expected))) for row in times}
    print("%s, %s, %d rounds\n\n%s" % (processor_name(), time.strftime("%Y-%m-%d"), args.rounds, full_table(times, same)))
    if not args.only:
        for page in LABELS:
            print("\nFor %s:\n\n%s" % (page, short_table(page, times, same)))
    if args.json:
        write_json(args.json, {
            "machine": processor_name(), "python": platform.python_version(), "date": time.strftime("%Y-%m-%d"),
            "ways": [dict(row._asdict(), on=about[row], seconds=times[row], answers_as_fp32=same[row]) for row in times],
        })


if __name__ == "__main__":
    run(main)

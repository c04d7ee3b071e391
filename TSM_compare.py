#!/usr/bin/env python3
"""Two runs on the same videos: which answers flipped, is it more than chance; or one run, stage by stage: which is to blame.

    python3 TSM_compare.py RUN_A RUN_B                 # fp32 and int8, CPU and NPU, two exporters, two fusions, …
    python3 TSM_compare.py --stages WORK_DIR           # a few videos through the whole chain again
    python3 TSM_compare.py --agreement 8 WORK_DIR      # what a device computed, against fp32 on this CPU

A run is the work folder of run_all.sh, or a report.json. Two runs are joined by the names of their videos, and where
these differ in folder or suffix (videos and their frames) by the rest, if only one video of each run has it; videos that only one
of them has are counted and left out. Printed: top-1 and top-5 of both, McNemar's exact test of the videos that only one of
the two gets right, how far the probabilities are apart, the videos whose answer differs with both answers and their margins
over the runner-up, and the classes that changed. --json, --csv and --html write the same to files. Runs that give a class's name
different numbers are refused; names that are only spelt differently get a warning, and those of RUN_A are shown.

--stages decodes, exports and computes --videos of the run's videos again and says, stage by stage, what it changes: decoding
(decord against OpenCV), tensors (made again against the files), export (PyTorch against the exported graph), surgery, one
view (the form that runs on a CPU), device (the results against fp32 in ONNX Runtime), text (its decimals), fusion (score
against prob), labels (are labels and videos those of the list? does another numbering explain more?); and which is the first
that departs. Where the files are is read from run.json; the options name them for a run by hand. Exit status: 0 also where a
stage departs.

--agreement N prints on how many of N videos the results have another top-1 than fp32, and the largest difference of a
probability; TSM_report.py --agreement shows what --json wrote.
"""

import argparse
import os
from typing import Any, Dict, List, Optional

from tsm.cli import UserError, check_outputs, parser, positive, run
from tsm.files import write_json, write_text
from tsm.report.compare import add_strips, compare, comparison_text, flip_rows, load_run
from tsm.report.findings import write_csv
from tsm.samples import manifest_path
from tsm.workfolder import LABELS, REPORT, RUN, STAGES, SUMMARY

PATHS = ("data_root", "ann_file", "checkpoint", "exported", "model")


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("runs", nargs="+", metavar="RUN", help="two runs to compare; one for --stages and --agreement")
    cli.add_argument("--stages", action="store_true", help="walk through the stages of one run")
    cli.add_argument("--agreement", type=positive, metavar="N", help="compare N of one run's videos with fp32 on this CPU")
    cli.add_argument("--videos", type=positive, default=4, metavar="N", help="how many videos --stages computes again (default: "
                     "%(default)s)")
    cli.add_argument("--json", metavar="FILE", help="also write it as JSON")
    cli.add_argument("--csv", metavar="FILE", help="also write the flipped videos as CSV")
    cli.add_argument("--html", metavar="FILE", help="also write a page to look at, .html")
    cli.add_argument("--data_root", metavar="DIR", help="folder of the videos or frames")
    cli.add_argument("--ann_file", metavar="FILE", help="the list of the videos")
    cli.add_argument("--checkpoint", metavar="FILE", help="the checkpoint")
    cli.add_argument("--exported", metavar="FILE", help="the exported model (default: tsm_bs1.onnx in the work folder)")
    cli.add_argument("--model", metavar="FILE", help="the modified model (default: the work folder's)")
    args = cli.parse_args()
    alone = args.stages or args.agreement
    if args.stages and args.agreement:
        cli.error("--stages or --agreement, not both")
    if len(args.runs) != (1 if alone else 2):
        cli.error("%d runs given; %s" % (len(args.runs), "--stages and --agreement take one" if alone else "give two"))
    if alone and (args.csv or args.html):
        cli.error("--csv and --html: of two runs")
    kept = (REPORT, RUN, STAGES, SUMMARY, LABELS, manifest_path(LABELS))
    inputs = args.runs + [os.path.join(run, name) for run in args.runs for name in kept]
    inputs += filter(None, (getattr(args, name) for name in PATHS))
    check_outputs({"--json": args.json, "--csv": args.csv, "--html": args.html}, inputs)
    return args


def paths_of(args: argparse.Namespace) -> Dict[str, Optional[str]]:
    """The paths that the user names."""
    for name in PATHS:
        path = getattr(args, name)
        if path and not os.path.exists(path):
            raise UserError("%s: no such file or folder; check --%s" % (path, name))
    return {name: getattr(args, name) for name in PATHS}


def compare_two(args: argparse.Namespace) -> None:
    found = compare(*(load_run(path) for path in args.runs))
    print(comparison_text(found))
    if args.json:
        write_json(args.json, found)
    if args.csv:
        write_csv(args.csv, flip_rows(found))
    if args.html:
        from tsm.report.page import compare_page

        add_strips(found, args.data_root)
        write_text(args.html, compare_page(found, args.html))
    for path in filter(None, (args.json, args.csv, args.html)):
        print("wrote " + path)


def walk_stages(args: argparse.Namespace) -> None:
    from tsm.report.diagnose import first_departure, read_chain, row_line, rows_as_json, walk

    rows: List[Any] = []
    for row in walk(read_chain(args.runs[0], paths_of(args)), args.videos):
        if not rows:
            print(row_line(None))
        rows.append(row)
        print(row_line(row), flush=True)
    print("\n" + first_departure(rows))
    if args.json:
        write_text(args.json, rows_as_json(rows))


def agree(args: argparse.Namespace) -> None:
    from tsm.report.diagnose import agreement, read_chain

    found = agreement(read_chain(args.runs[0], paths_of(args)), args.agreement)
    print("top-1 is that of fp32 on %d of %d videos; largest difference of a probability %.6f" % (
        found["videos"] - found["flips"], found["videos"], found["largest_difference"]))
    for flip in found["flipped"]:
        print("  video %(id)d: class %(device)d, in fp32 class %(fp32)d (probability %(fp32_probability).4f)" % flip)
    if args.json:
        write_json(args.json, found, "agreement")


def main() -> None:
    args = get_args()
    if args.stages:
        walk_stages(args)
    elif args.agreement:
        agree(args)
    else:
        compare_two(args)


if __name__ == "__main__":
    run(main)

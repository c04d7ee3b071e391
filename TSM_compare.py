#!/usr/bin/env python3
"""Two runs on the same videos, or one run whose accuracy is too low.

    python3 TSM_compare.py RUN_A RUN_B            # fp32, int8, CPU, NPU, …
    python3 TSM_compare.py --suspects WORK_DIR    # what were weights made for?
    python3 TSM_compare.py --stages WORK_DIR      # which stage is to blame?
    python3 TSM_compare.py --agreement 64 WORK_DIR # a device, and fp32 here

A run is the work folder of run_all.sh, or a report.json. Two runs are joined by
the names of their videos. Printed: top-1 and top-5 of both, McNemar's exact
test, the videos whose answer differs, the classes that changed.

--suspects computes up to --videos (200) of a run's videos under one change at a
time (colours, scaling, crops, sampling, kind of shift, order of the labels, …),
and says which of them explains the accuracy, and what makes the run right.
Ctrl-C prints what is known.

--stages computes --videos (4) of them again, and says what each stage changes,
and which is the first that departs from the suite's definition.

The exit status is 0 whatever is found. docs/reading-a-run.md explains it all.
"""

import argparse
import contextlib
import os
import sys
from typing import Any, List, Optional

from tsm.cli import check_outputs, parser, positive, run
from tsm.files import write_json, write_text
from tsm.report.compare import add_strips, compare, comparison_text, flip_rows, load_run
from tsm.report.findings import write_csv
from tsm.results import flips_in_words
from tsm.samples import manifest_path
from tsm.workfolder import LABELS, REPORT, RUN, STAGES, SUMMARY

PATHS = ("data_root", "ann_file", "checkpoint", "exported", "model")


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.usage = "TSM_compare.py [options] RUN [RUN]"
    cli.add_argument("runs", nargs="+", metavar="RUN", help="two runs to compare, else one")
    alone = cli.add_mutually_exclusive_group()
    alone.add_argument("--suspects", action="store_true", help="what one change explains the accuracy?")
    alone.add_argument("--stages", action="store_true", help="which stage departs?")
    alone.add_argument("--agreement", type=positive, metavar="N", help="compare N of one run's videos with fp32 on this CPU")
    cli.add_argument("--videos", type=positive, metavar="N", help="how many --suspects (200) or --stages (4) compute")
    cli.add_argument("--json", metavar="FILE", help="also write it as JSON; - prints that alone")
    cli.add_argument("--csv", metavar="FILE", help="the flipped videos: video, kind, true name, and answer, probability and margin "
                     "of both")
    cli.add_argument("--html", metavar="FILE", help="also write a page to look at")
    cli.add_argument("--data_root", metavar="DIR", help="folder of the videos or frames")
    cli.add_argument("--ann_file", metavar="FILE", help="the list of the videos")
    cli.add_argument("--checkpoint", metavar="FILE", help="the checkpoint")
    cli.add_argument("--exported", metavar="FILE", help="the exported model (default: tsm_bs1.onnx in the work folder)")
    cli.add_argument("--model", metavar="FILE", help="the modified model (default: the work folder's)")
    args = cli.parse_args()
    one = args.suspects or args.stages or args.agreement
    if len(args.runs) != (1 if one else 2):
        cli.error("%d runs given; %s" % (len(args.runs), "--suspects, --stages and --agreement take one" if one else "give two"))
    if one and args.csv or one and args.html and not args.suspects:
        cli.error("--csv is of two runs, --html of two or of --suspects")
    kept = (REPORT, RUN, STAGES, SUMMARY, LABELS, manifest_path(LABELS))
    inputs = args.runs + [os.path.join(run, name) for run in args.runs for name in kept]
    inputs += filter(None, (getattr(args, name) for name in PATHS))
    check_outputs({"--json": args.json, "--csv": args.csv, "--html": args.html}, inputs)
    return args


def tell_written(*paths: Optional[str]) -> None:
    for path in paths:
        if path not in (None, "-"):
            print("wrote %s" % path)


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
        write_text(args.html, compare_page(found))
    tell_written(args.json, args.csv, args.html)


def walk_stages(args: argparse.Namespace, chain: Any) -> None:
    from tsm.report.diagnose import STAGE_HEADING, first_departure, row_line, stages_of

    rows: List[Any] = []
    for row in stages_of(chain, args.videos or 4):
        if not rows:
            print(STAGE_HEADING)
        rows.append(row)
        print(row_line(row), flush=True)
    print("\n" + first_departure(rows))
    if args.json:
        write_json(args.json, {"stages": [row._asdict() for row in rows], "verdict": first_departure(rows)})


def hunt_suspects(args: argparse.Namespace, chain: Any) -> None:
    from tsm.report.suspects import MOST, Hunt, suspects_json, suspects_text

    hunt, stopped = Hunt(chain, args.videos or MOST), None
    try:
        hunt.race()
    except KeyboardInterrupt as interrupt:  # what is known is told
        stopped = interrupt
        hunt.notes.append("interrupted: a change that was not reached may explain as much")
    found = suspects_json(hunt)
    print(suspects_text(found))
    if args.json:
        write_json(args.json, found)
    if args.html:
        from tsm.report.page import suspects_page

        write_text(args.html, suspects_page(found))
    tell_written(args.json, args.html)
    if stopped:
        raise stopped


def agree(args: argparse.Namespace, chain: Any) -> None:
    from tsm.report.diagnose import agreement_with_fp32

    found = agreement_with_fp32(chain, args.agreement)
    print("top-1: %s; largest difference of a probability %.6f" % (
        flips_in_words(found["flips"], found["videos"], found["listed"]), found["largest_difference"]))
    for flip in found["flipped"]:
        print("  video %(id)d: class %(device)d, in fp32 class %(fp32)d (probability %(fp32_probability).4f)" % flip)
    for row in found.get("aipp", []):
        print("AIPP alone, rounded to half precision %s: %d of %d answers differ; largest difference of a probability %.6f" % (
            row["rounded"], row["flips"], found["videos"], row["largest_difference"]))
    if args.json:
        write_json(args.json, found, "agreement")


def main() -> None:
    args = get_args()
    with contextlib.redirect_stdout(sys.stderr if args.json == "-" else sys.stdout):
        if len(args.runs) == 2:
            return compare_two(args)
        from tsm.report.diagnose import Chain

        paths = {name: getattr(args, name) for name in PATHS}
        for path in filter(None, paths.values()):
            os.stat(path)  # OSError where it is not there
        work = hunt_suspects if args.suspects else walk_stages if args.stages else agree
        work(args, Chain(args.runs[0], paths))


if __name__ == "__main__":
    run(main)

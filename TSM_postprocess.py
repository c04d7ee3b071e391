#!/usr/bin/env python3
"""Top-k accuracy of a TSM, from the result files of ais_bench or TSM_infer.py.

    python3 TSM_postprocess.py --result_path=inference_result/out_summary.json \\
        --info_path=sthv2/sthv2.info

It joins results (TXT, NPY or BIN, a row of class scores per video) and labels
BY ID, the number in the input file's name, and prints top-1 with its 95 %
interval, top-5 and mean class accuracy. A file may hold several rows: row r of
file k is video k * R + r, and rows past the last video are the batch's filler.
A result that is missing, there twice or not finite ends it with one line.

Of an online model with curve.json (TSM_stream.py --curve) it also prints top-1
once 10 %, 20 %, … of each clip was seen; with --clip, beside what the clip's
model reached.

`%f` text rounds to six decimals, so scores may tie: of equal scores the lower
class comes first, and how many verdicts hang on that is shown.
"""

import argparse
import json

from tsm.cli import UserError, parser, run
from tsm.files import write_json
from tsm.results import accuracy_of, read_accuracy


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--result_path", required=True, metavar="FILE", help="summary of the inference, as above")
    cli.add_argument("--info_path", required=True, metavar="FILE", help="labels, `<index> <label>` per line, as above")
    cli.add_argument("--clip", metavar="FILE", help="online: accuracy.json of the clip's model over the same list, to stand beside")
    cli.add_argument("--json", metavar="FILE", help="also write the figures as JSON to FILE, for TSM_report.py; - prints "
                     "them as the last block on stdout")
    return cli.parse_args()


def main() -> None:
    args = get_args()
    accuracy, curve = accuracy_of(args.result_path, args.info_path)
    over = "" if not accuracy.skipped else " of %d (%d skipped)" % (accuracy.videos + accuracy.skipped, accuracy.skipped)
    print("accuracy over %d%s videos" % (accuracy.videos, over))
    print("top-1                %.4f   (95 %% interval %.4f to %.4f)" % ((accuracy.top1_acc,) + accuracy.top1_interval_95))
    print("top-5                %.4f" % accuracy.top5_acc)
    print("mean class accuracy  %.4f" % accuracy.mean_class_accuracy)
    if accuracy.verdicts_on_ties:
        print("%d verdicts hang on equal scores; NPY and BIN results keep more digits than TXT" % accuracy.verdicts_on_ties)
    if curve:
        print("top-1 once a share of each clip was seen")
    for point in curve:
        shown = (100 * point["share"], point["top1_acc"]) + point["top1_interval_95"]
        print("%4.0f %%               %.4f   (95 %% interval %.4f to %.4f)" % shown)
    figures = dict(accuracy._asdict(), **({"curve": curve} if curve else {}))
    if args.clip:
        clip, _ = read_accuracy(args.clip)
        if clip.videos != accuracy.videos:
            raise UserError("%s: is of %d videos, these are %d; name a run over the same list" % (args.clip, clip.videos, accuracy.videos))
        print("the clip's model     %.4f   (95 %% interval %.4f to %.4f)" % ((clip.top1_acc,) + clip.top1_interval_95))
        figures["clip"] = clip._asdict()
    if args.json == "-":
        print(json.dumps(figures, indent=1))
    elif args.json:
        write_json(args.json, figures, "accuracy")


if __name__ == "__main__":
    run(main)

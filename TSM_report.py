#!/usr/bin/env python3
"""What a run found: the closing table, report.json, report.html to look at,
predictions.csv and confusion.csv.

    python3 TSM_report.py --result_path=inference_result/out_summary.json \\
        --info_path=sthv2/sthv2.info --batch_size 1 --model tsm_new_bs1.onnx
    python3 TSM_report.py --redraw report.json --gallery 0

Besides these it reads what lies in the current folder: the manifest beside the
labels, perf/bs<B>.log of --perf_batches, stages.json. With --data_root the page
shows film strips, which are frames of the data: mind its licence. Published
accuracies are shown only of the checkpoint, test and fusion they belong to.
docs/reading-a-run.md explains the page.
"""

import argparse
import os
from typing import Any, Dict

from tsm.cli import check_outputs, non_negative, parser, positive, run
from tsm.files import read_json, write_json, write_text
from tsm.labels import labels_in, read_labels
from tsm.model.offline import read_offline
from tsm.report.collect import collect, report_text
from tsm.report.findings import columns_of, confusion_rows, findings, gallery, prediction_rows, write_csv
from tsm.report.page import report_page
from tsm.results import accuracy_from, read_accuracy, read_curve, read_results, read_summary, views_agree
from tsm.samples import manifest_path, read_info, read_manifest
from tsm.workfolder import CONFUSION, PREDICTIONS, REPORT, STAGES

NEEDED = ("result_path", "info_path", "model", "batch_size")
GALLERY = 12  # videos of each kind
TABLES = (PREDICTIONS, CONFUSION)  # beside the report


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.usage = "TSM_report.py --result_path FILE --info_path FILE --model FILE\n         --batch_size B [options]"
    cli.add_argument("--result_path", metavar="FILE", help="summary of the inference")
    cli.add_argument("--info_path", metavar="FILE", help="labels; the manifest is the .json beside it")
    cli.add_argument("--model", metavar="FILE", help="the modified ONNX model")
    cli.add_argument("--batch_size", type=positive, metavar="B", help="of the inference")
    cli.add_argument("--perf_batches", type=positive, nargs="*", default=[], metavar="B", help="batches whose speed was measured")
    cli.add_argument("--accuracy", metavar="FILE", help="of TSM_postprocess.py --json (default: computed)")
    cli.add_argument("--checkpoint", metavar="FILE", help="if the model does not know its digest")
    cli.add_argument("--device", choices=("cpu", "npu"), default="cpu")
    cli.add_argument("--precision", default="fp32", help="of a CPU (default: fp32)")
    cli.add_argument("--labels", metavar="FILE", help="names of the classes (default: the model's)")
    cli.add_argument("--data_root", metavar="DIR", help="folder of the videos, for the film strips")
    cli.add_argument("--gallery", type=non_negative, metavar="N", help="videos of each kind that are shown (default: %d; with "
                     "--redraw, all of the report)" % GALLERY)
    cli.add_argument("--agreement", metavar="FILE", help="of TSM_compare.py --agreement --json")
    cli.add_argument("--output", default=REPORT, metavar="FILE", help="the report; the others go beside it (default: %(default)s)")
    cli.add_argument("--redraw", metavar="FILE", help="draw a report.json's page again")
    args = cli.parse_args()
    missing = ["--" + name for name in NEEDED if getattr(args, name) is None]
    if missing and not args.redraw:
        cli.error("the following arguments are required: " + ", ".join(missing))
    others = ["--" + name for name in vars(args) if getattr(args, name) != cli.get_default(name) and name not in ("redraw", "gallery")]
    if args.redraw and others:
        cli.error("--redraw goes with --gallery and nothing else; leave out " + ", ".join(others))
    if args.redraw:
        check_outputs({"the page": page_of(args.redraw)}, [args.redraw])
        return args
    tables = {"the table of " + name[:-4]: os.path.join(os.path.dirname(args.output), name) for name in TABLES}
    inputs = [args.result_path, args.info_path, manifest_path(args.info_path), args.model, args.accuracy, args.checkpoint, args.labels,
              args.agreement, STAGES]
    check_outputs(dict({"--output": args.output, "the page": page_of(args.output)}, **tables), filter(None, inputs))
    return args


def page_of(path: str) -> str:
    """The page of the report at `path`, beside it."""
    return os.path.splitext(path)[0] + ".html"


def write_page(path: str, report: Dict[str, Any]) -> None:
    """Write the page of the report at `path`."""
    write_text(page_of(path), report_page(report))
    print("wrote " + page_of(path))


def main() -> None:
    args = get_args()
    if args.redraw:
        report = read_json(args.redraw, "report")
        report["findings"]["gallery"] = {kind: entries[:args.gallery] for kind, entries in report["findings"]["gallery"].items()}
        return write_page(args.redraw, report)
    model, manifest = read_offline(args.model), read_manifest(manifest_path(args.info_path))
    summary, classes = read_summary(args.result_path), model.tested_by.classes
    sources = {entry["id"]: entry["source"] for entry in manifest["samples"]}
    labels = read_info(args.info_path, classes)
    names = read_labels(args.labels, classes) if args.labels else labels_in(model.metadata, classes)
    scores = read_results(args.result_path, labels, classes, summary)
    counted = accuracy_from(scores, labels, len(manifest["skipped"]))
    accuracy, clip = read_accuracy(args.accuracy) if args.accuracy else (counted, None)
    found = findings(columns_of(scores, labels, sources, views_agree(summary)), classes, names)
    found["curve"], found["clip"] = read_curve(args.result_path, labels), clip
    most = GALLERY if args.gallery is None else args.gallery
    found["gallery"] = gallery(found["videos"], scores, most, args.data_root)
    report = collect(vars(args), model, summary, manifest, accuracy, names, found, counted)
    print(report_text(report) + "\n")
    write_json(args.output, report, "report")
    print("wrote " + args.output)
    for name, rows in zip(TABLES, (prediction_rows(found["videos"], names), confusion_rows(found["videos"], names, classes))):
        path = os.path.join(os.path.dirname(args.output), name)
        write_csv(path, rows)
        print("wrote " + path)
    write_page(args.output, report)


if __name__ == "__main__":
    run(main)

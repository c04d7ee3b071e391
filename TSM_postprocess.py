#!/usr/bin/env python3
"""Top-k accuracy of an offline TSM model, from the result files of ais_bench or TSM_infer.py.

    python3 TSM_postprocess.py --result_path=inference_result/out_summary.json --info_path=sthv2/sthv2.info

Reads the summary (which input file gave which result file), the results (TXT, NPY or BIN, one row of 174 class
scores per video) and the labels, joins them BY ID, the number in the input file's name, and prints top-1 with its 95 %
interval, top-5 and mean class accuracy. Order does not matter.

A file may hold several rows (an input file that was a whole batch of R videos): row r of file k is video k * R + r, and
rows past the last video are the batch's filler. A missing, extra or duplicated result, a score that is not finite and a
row of the wrong width each end the script with exit status 1 and one line that names the file.

Limits: it cannot tell how the views were fused (the model does that); `%f` text rounds probabilities to six decimals,
so scores may tie: of equal scores the lower class comes first, and the number of verdicts that hang on a tie is shown.
"""

import argparse
import json
import math
import os
from typing import Dict, Iterator, NamedTuple, Tuple

import numpy as np

from tsm.cli import UserError, parser, run
from tsm.files import read_json, read_npy, write_json
from tsm.protocol import CLASSES
from tsm.samples import manifest_path, read_info

Z95 = 1.959964  # two-sided 95 % quantile of the normal distribution


class Accuracy(NamedTuple):
    """Fractions 0..1 over `videos` videos; the interval is Wilson's (JASA 22, 1927)."""

    videos: int
    skipped: int
    top1_acc: float
    top5_acc: float
    mean_class_accuracy: float
    top1_interval_95: Tuple[float, float]
    verdicts_on_ties: int


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--result_path", required=True, metavar="FILE", help="summary of the inference, as above")
    cli.add_argument("--info_path", required=True, metavar="FILE", help="labels, `<index> <label>` per line, as above")
    cli.add_argument("--json", metavar="FILE", help="also write the figures as JSON to FILE; - prints them as the last "
                     "block on stdout")
    return cli.parse_args()


def as_float64(values: np.ndarray) -> np.ndarray:
    """The values as float64; what is not finite is found later, so numpy need not warn of it here."""
    with np.errstate(all="ignore"):
        return values.astype(np.float64)


def read_scores(path: str) -> np.ndarray:
    """The class scores in a result file, float64 [rows, CLASSES]; TXT, NPY or float32 BIN by its suffix."""
    suffix = os.path.splitext(path)[1].lower()
    try:
        if suffix == ".txt":
            with open(path, encoding="ascii") as file:
                rows = [line.split() for line in file if line.strip()]
            if len({len(row) for row in rows}) > 1:
                raise UserError("%s: its rows differ in width; run the inference again" % path)
            scores = np.array(rows, np.float64)
        elif suffix == ".npy":
            scores = as_float64(read_npy(path))
        elif suffix == ".bin":
            scores = as_float64(np.fromfile(path, np.float32))
        else:
            raise UserError("%s: results are .txt, .npy or .bin files" % path)
    except (ValueError, EOFError) as error:
        raise UserError("%s: cannot be read as class scores (%s); run the inference again" % (path, str(error)[:120]))
    width = scores.shape[-1] if suffix != ".bin" and scores.ndim else scores.size
    if not scores.size or width != CLASSES and (suffix != ".bin" or width % CLASSES):
        raise UserError("%s: %d values in a row instead of %d class scores; is the model's output [batch, %d]?"
                        % (path, width, CLASSES, CLASSES))
    if not np.isfinite(scores).all():
        raise UserError("%s: a score is not finite; look for NaN or infinity in the input or the model" % path)
    return scores.reshape(-1, CLASSES)


def results(summary_path: str) -> Iterator[Tuple[int, str]]:
    """(number in the input file's name, result file) for every input file of a summary."""
    summary = read_json(summary_path)
    try:
        pairs = [(entry["infiles"][0], entry["outfiles"][0], entry) for entry in summary["filesinfo"].values()]
        for infile, outfile, entry in pairs:
            os.fspath(infile), os.fspath(outfile)
            if len(entry["infiles"]) != 1 or len(entry["outfiles"]) != 1:
                raise UserError("%s: %s has more than one input or output file; TSM has one of each"
                                % (summary_path, infile))
    except (KeyError, IndexError, TypeError, AttributeError):
        raise UserError("%s: not a summary of ais_bench or TSM_infer.py (no filesinfo)" % summary_path)
    folder = summary_path[: -len("_summary.json")] if summary_path.endswith("_summary.json") else ""
    for infile, outfile, _ in pairs:
        stem = os.path.basename(infile).split(".")[0]
        if not stem.isdigit() or len(stem) > 9:
            raise UserError("%s: input file %s is not named by a sample's index, as in 0.bin" % (summary_path, infile))
        if not os.path.exists(outfile):  # the results were moved together with their summary
            outfile = os.path.join(folder, os.path.basename(outfile))
        yield int(stem), outfile


def read_results(summary_path: str, labels: Dict[int, int]) -> Dict[int, np.ndarray]:
    """{index: class scores float64 [CLASSES]} for exactly the indices of `labels`; UserError where that cannot be."""
    scores, origin = {}, {}  # type: Dict[int, np.ndarray], Dict[int, str]
    last = max(labels)
    for number, path in results(summary_path):
        rows = read_scores(path)
        for row, values in enumerate(rows):
            index = number * len(rows) + row
            if row and index > last:
                break  # the filler of the last batch
            if index in scores:
                raise UserError("%s: a second result for video %d, which %s has; remove one" % (path, index, origin[index]))
            if index not in labels:
                raise UserError("%s: a result for video %d, which has no label in the info file; are both of the same "
                                "preprocessing?" % (path, index))
            scores[index], origin[index] = values, path
    missing = sorted(set(labels) - set(scores))
    if missing:
        raise UserError("%s: no result for video %d (%d missing of %d); run the inference again"
                        % (summary_path, missing[0], len(missing), len(labels)))
    return scores


def measure(scores: np.ndarray, labels: np.ndarray, skipped: int) -> Accuracy:
    """Accuracy of class scores float [videos, CLASSES] against labels int [videos].

    Mean class accuracy is the mean, over the classes that occur, of the share of their videos that are right (mmaction2's
    mean_class_accuracy).
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    above = (scores > own).sum(1)
    tied = scores == own
    rank = above + np.where(np.arange(scores.shape[1]) < labels[:, None], tied, False).sum(1)
    right = rank < 1
    per_class = [right[labels == label].mean() for label in np.unique(labels)]
    lowest = above + tied.sum(1) - 1  # the rank if every tie went against the label
    ties = sum((above < k) & (lowest >= k) for k in (1, 5)).astype(bool).sum()
    return Accuracy(len(labels), skipped, float(right.mean()), float((rank < 5).mean()), float(np.mean(per_class)),
                    wilson(int(right.sum()), len(labels)), int(ties))


def wilson(hits: int, total: int) -> Tuple[float, float]:
    """Wilson's 95 % score interval of hits / total."""
    share, square = hits / total, Z95 ** 2
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = Z95 / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total ** 2))
    return max(0.0, centre - half), min(1.0, centre + half)


def count_skipped(info_path: str) -> int:
    """How many videos preprocessing was told to skip, from the manifest beside the info file (0 without one)."""
    path = manifest_path(info_path)
    if not os.path.exists(path):
        return 0
    try:
        return len(read_json(path)["skipped"])
    except (KeyError, TypeError):
        raise UserError("%s: not a manifest of TSM_preprocess.py; run it again" % path)


def accuracy_of(result_path: str, info_path: str) -> Accuracy:
    """Accuracy of the inference summed up in `result_path` against the labels in `info_path`."""
    labels = read_info(info_path)
    scores = read_results(result_path, labels)
    order = sorted(labels)
    return measure(np.stack([scores[index] for index in order]), np.array([labels[index] for index in order]),
                   count_skipped(info_path))


def main() -> None:
    args = get_args()
    accuracy = accuracy_of(args.result_path, args.info_path)
    over = "" if not accuracy.skipped else " of %d (%d skipped)" % (accuracy.videos + accuracy.skipped, accuracy.skipped)
    print("accuracy over %d%s videos" % (accuracy.videos, over))
    print("top-1                %.4f   (95 %% interval %.4f to %.4f)" % ((accuracy.top1_acc,) + accuracy.top1_interval_95))
    print("top-5                %.4f" % accuracy.top5_acc)
    print("mean class accuracy  %.4f" % accuracy.mean_class_accuracy)
    if accuracy.verdicts_on_ties:
        print("%d verdicts hang on equal scores; NPY and BIN results keep more digits than TXT" % accuracy.verdicts_on_ties)
    if args.json == "-":
        print(json.dumps(accuracy._asdict(), indent=1))
    elif args.json:
        write_json(args.json, accuracy._asdict())


if __name__ == "__main__":
    run(main)

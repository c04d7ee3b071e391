"""Result files and the summary beside them, as ais_bench defines them: written and read. Its printed figures; and accuracy.

OUTPUT/OUTPUT_DIRNAME/<input's name>_0.<txt|npy|bin> holds one row of class scores per row of the model's output;
OUTPUT/OUTPUT_DIRNAME_summary.json says which input file gave which result file, and how long each batch took.
"""

import contextlib
import json
import math
import os
import re
import sys
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from tsm.cli import UserError, first_line, warn
from tsm.files import read_json, replacing, sealed, unsealed, write_text
from tsm.protocol import SSV2
from tsm.samples import manifest_path, read_info, read_manifest

TIMES = ("NPU_compute_time", "H2D_latency", "D2H_latency")  # figures of a summary, each statistics()
Z95 = 1.959964  # two-sided 95 % quantile of the normal distribution
LARGEST_SCORE = 3.5e38  # of a score: float32's
OWN = "tsm"  # in a summary: what TSM_infer.py and TSM_stream.py add, sealed


def result_name(path: str) -> str:
    """An input file's name up to its first dot; with `_0` and a suffix it names the result."""
    return os.path.basename(path).split(".")[0]


def result_path(folder: str, infile: str, outfmt: str) -> str:
    """Where the result of an input file goes: FOLDER/<name>_0.txt, .npy or .bin."""
    return os.path.join(folder, "%s_0.%s" % (result_name(infile), outfmt.lower()))


def summary_path(folder: str) -> str:
    """The summary of a folder of results: OUTPUT/OUT -> OUTPUT/OUT_summary.json."""
    return folder + "_summary.json"


def write_result(path: str, outfmt: str, output: np.ndarray) -> None:
    """One result file: TXT is `%f ` per value and a line per row; NPY and BIN keep float32 [rows, values]."""
    rows = np.asarray(output, np.float32).reshape(len(output), -1)
    if outfmt == "TXT":
        write_text(path, "".join("".join("%f " % value for value in row) + "\n" for row in rows))
        return
    with replacing(path) as part, open(part, "wb") as file:
        if outfmt == "NPY":
            np.save(file, rows)
        else:
            rows.tofile(file)


def statistics(times: Sequence[float]) -> Dict[str, float]:
    """ais_bench's figures of a list of milliseconds."""
    return {"min": min(times), "max": max(times), "mean": float(np.mean(times)), "median": float(np.median(times)),
            "percentile(99%)": float(np.percentile(times, 99)), "count": len(times)}


def summarise(
    files: Sequence[Tuple[str, str]], times: Sequence[float], waits: Sequence[float], throughput: float, **more: Any
) -> Dict[str, Any]:
    """The summary of a run over `files`, (input file, result file) in the order they were computed in, and what other
    keys hold. `times` and `waits` are ms per batch, of computing and of waiting for files; `throughput` is videos per
    second. A CPU copies nothing."""
    pairs = {str(number): {"infiles": [infile], "outfiles": [outfile]} for number, (infile, outfile) in enumerate(files)}
    figures = dict(zip(TIMES, (statistics(times), statistics(waits), statistics([0.0] * len(times)))))
    return dict({"filesinfo": pairs, "args": sys.argv[1:]}, throughput=throughput, npu_compute_time_list=list(times),
                pid=os.getpid(), **figures, **more)


def write_summary(folder: str, summary: Dict[str, Any]) -> None:
    """Write the summary beside its folder of results, on one line as ais_bench does; what is our own in it (OWN) is sealed.

    One that differs in nothing but the process's number stays as it is: nothing was computed.
    """
    own = {OWN: sealed(summary[OWN], "inference")} if OWN in summary else {}
    text, path = json.dumps(dict(summary, **own)), summary_path(folder)
    with contextlib.suppress(UserError, FileNotFoundError):
        if dict(read_json(path), pid=summary["pid"]) == json.loads(text):
            return
    write_text(path, text + "\n")


def read_summary(path: str) -> Dict[str, Any]:
    """A summary of ais_bench or TSM_infer.py; UserError unless it names one result file for each input file."""
    summary = read_json(path)
    try:
        named = [name for entry in summary["filesinfo"].values() for (name,) in (entry["infiles"], entry["outfiles"])]
        right = b"\0" not in b"".join(map(os.fsencode, named))
    except (KeyError, TypeError, AttributeError, ValueError):
        right = False
    if not right:
        raise UserError("%s: not a summary of ais_bench or TSM_infer.py (no filesinfo that names one result of each input)" % path)
    if OWN in summary and unsealed(summary[OWN], "inference") is None:
        warn("%s: what an inference of this suite adds is of another version, or was changed; views and workers are not told" % path)
    return summary  # type: ignore[no-any-return]


def joined(figures: Sequence[Dict[str, float]]) -> Dict[str, float]:
    """The figures of several runs together, as far as they can be had without the lists: min, max, mean and count."""
    count = sum(figure["count"] for figure in figures)
    return {"min": min(figure["min"] for figure in figures), "max": max(figure["max"] for figure in figures),
            "mean": sum(figure["mean"] * figure["count"] for figure in figures) / count, "count": count}


def rate_line(throughput: float, facts: Mapping[str, Any]) -> str:
    """Videos per second in words; of an online model, whose `facts` know them, above it the ms of a frame."""
    frame = "a frame: p50 %(p50).1f, p90 %(p90).1f, p99 %(p99).1f ms\n" % facts["frame_ms"] if facts.get("frame_ms") else ""
    return frame + "throughput: %s videos per second" % ("%.4g" if throughput < 1000 else "%.0f") % throughput


def throughput_in(text: str) -> Optional[float]:
    """Videos per second from the last such line, or ais_bench's, of what was printed; None if there is none."""
    found = re.findall(r"^(?:\[INFO\] throughput 1000\*batchsize.*|throughput): ([0-9]{1,15}(?:\.[0-9]*)?)(?: videos per second)?\s*$",
                       text, re.MULTILINE)
    return float(found[-1]) if found else None


def read_npy(path: str, mapped: Any = None) -> np.ndarray:
    """The array in an .npy file, or, `mapped` as "r", left there. Raises UserError where it is none, is cut short, or holds objects."""
    try:
        return np.load(path, mapped, allow_pickle=False)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # numpy parses the header as Python text, which can go wrong in any way
        raise UserError("%s: not an .npy array (%s); make it again" % (path, first_line(error, 120)))


def read_scores(path: str, classes: int) -> np.ndarray:
    """The class scores in a result file, float64 [rows, classes]; TXT, NPY or float32 BIN by its suffix. Raises UserError."""
    suffix = os.path.splitext(path)[1].lower()
    try:
        if suffix == ".txt":
            with open(path, encoding="ascii") as file:
                scores = np.array([line.split() for line in file if line.strip()], np.float64)
        else:
            with np.errstate(all="ignore"):  # of what is not finite, which is told below
                scores = (read_npy(path) if suffix == ".npy" else np.fromfile(path, np.float32)).astype(np.float64)
        width = scores.shape[-1] if suffix != ".bin" and scores.ndim else scores.size
        if not scores.size or width != classes and (suffix != ".bin" or width % classes):
            raise ValueError("%d values in a row instead of %d class scores; is the model's output [batch, %d]?"
                             % (width, classes, classes))
        if not np.isfinite(scores).all() or np.abs(scores).max() > LARGEST_SCORE:
            raise ValueError("a score is not finite in float32; look for NaN or infinity in the input or the model")
        return scores.reshape(-1, classes)
    except (ValueError, EOFError) as error:  # also of rows that differ in width
        raise UserError("%s: cannot be read as class scores (%s); run the inference again" % (path, first_line(error)))


def _results(path: str, summary: Mapping[str, Any]) -> Iterator[Tuple[int, str]]:
    """(number in the input file's name, result file) for every input file of the summary, which is that at `path`."""
    folder = path[: -len("_summary.json")] if path.endswith("_summary.json") else ""
    for entry in summary["filesinfo"].values():
        infile, outfile = entry["infiles"][0], entry["outfiles"][0]
        name = result_name(infile)
        if not re.match(r"[0-9]{1,9}\Z", name):
            raise UserError("%s: input file %s is not named by a sample's index, as in 0.bin" % (path, infile))
        beside = os.path.join(folder, os.path.basename(outfile))
        if folder and os.path.exists(beside):  # wherever the summary and its results were moved, or are looked at from
            outfile = beside
        yield int(name), outfile


def views_agree(summary: Mapping[str, Any]) -> Dict[int, int]:
    """{index: how many of the video's views have its answer}, of the results of which the summary knows it."""
    votes = own_entry(summary).get("views_agree") or {}
    return {int(name) * len(counts) + row: count for name, counts in votes.items() for row, count in enumerate(counts)}


def own_entry(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the suite added to a summary (OWN); empty in one of ais_bench."""
    return unsealed(summary.get(OWN), "inference") or {}


def is_time(value: Any) -> bool:
    """Is it a number of ms, as summaries hold them?"""
    return type(value) in (int, float) and 0 <= value <= 1e12


def read_results(path: str, labels: Dict[int, int], classes: int, summary: Optional[Mapping[str, Any]] = None) -> Dict[int, np.ndarray]:
    """{index: class scores float64 [classes]} for exactly the indices of `labels`, from the summary at `path`, read before or not.

    A file may hold several rows (an input file that was a whole batch of R videos): row r of file k is video k * R + r, and
    rows past the last video are the batch's filler. Raises UserError where a result is missing, extra or a second one.
    """
    scores: Dict[int, np.ndarray] = {}
    origin: Dict[int, str] = {}
    last = max(labels)
    for number, file in _results(path, summary or read_summary(path)):
        rows = read_scores(file, classes)
        for row, values in enumerate(rows):
            index = number * len(rows) + row
            if row and index > last:
                break  # the filler of the last batch
            if index in scores or index not in labels:
                raise UserError("%s: a second result for video %d, which %s has; remove one" % (file, index, origin[index])
                                if index in scores else "%s: a result for video %d, which has no label in the info file; are both of the "
                                "same preprocessing?" % (file, index))
            scores[index], origin[index] = values, file
    missing = sorted(set(labels) - set(scores))
    if missing:
        raise UserError("%s: no result for video %d (%d missing of %d); run the inference again"
                        % (path, missing[0], len(missing), len(labels)))
    return scores


class Accuracy(NamedTuple):
    """Fractions 0..1 over `videos` videos; the interval is Wilson's (JASA 22, 1927)."""

    videos: int
    skipped: int
    top1_acc: float
    top5_acc: float
    mean_class_accuracy: float
    top1_interval_95: Tuple[float, float]
    verdicts_on_ties: int


def wilson(hits: int, total: int) -> Tuple[float, float]:
    """Wilson's 95 % score interval of hits / total."""
    share, square = hits / total, Z95 ** 2
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = Z95 / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total ** 2))
    return max(0.0, centre - half), min(1.0, centre + half)


def flips_in_words(flips: int, videos: int, listed: Optional[int]) -> str:
    """That of so many videos, of so many `listed`, some have another answer than in fp32; and how many do at most, by wilson()."""
    most = 100 * wilson(flips, videos)[1]
    if videos == listed:
        return "%d of all %d videos' answers differ from fp32's: of more like them at most %.1f %% do" % (flips, videos, most)
    return "%d of %d answers differ from fp32's: at most %.1f %% do" % (flips, videos, most)


def mcnemar(one: int, other: int) -> float:
    """Exact two-sided p of McNemar's test: `one` videos are right in the first run alone, `other` in the second alone.

    If the runs are equally good, each such video falls to either side like a fair coin (McNemar, Psychometrika 12, 1947).
    """
    total, term, tail = one + other, 1, 1
    for number in range(min(one, other)):
        term = term * (total - number) // (number + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << total))


def ranks(scores: np.ndarray, labels: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The places, from 0, of the labels int [videos] among class scores float [videos, classes], each int [videos]: (of
    equal scores the lower class first, every tie for the label, every tie against it)."""
    own = scores[np.arange(len(labels)), labels][:, None]
    above, tied = (scores > own).sum(1), scores == own
    lower = tied & (np.arange(scores.shape[1]) < labels[:, None])
    return above + lower.sum(1), above, above + tied.sum(1) - 1


def accuracy_from(scores: Mapping[int, np.ndarray], labels: Mapping[int, int], skipped: int) -> Accuracy:
    """Accuracy of class scores float [classes] by index against labels by index.

    Of equal scores the lower class comes first; verdicts that would change if it did not are counted. Mean class accuracy is
    mmaction2's: the mean of the share of a class's videos that are right, over the classes that have a video or were answered; one
    without a video counts as 0.
    """
    order = sorted(labels)
    table, truth = np.stack([scores[index] for index in order]), np.array([labels[index] for index in order])
    rank, best, worst = ranks(table, truth)
    right = rank < 1
    per_class = [right[truth == number].sum() / max(1, (truth == number).sum()) for number in np.union1d(truth, table.argmax(1))]
    ties = np.any([(best < k) & (worst >= k) for k in (1, 5)], 0).sum()
    return Accuracy(len(order), skipped, float(right.mean()), float((rank < 5).mean()), float(np.mean(per_class)),
                    wilson(int(right.sum()), len(order)), int(ties))


def accuracy_of(result_path: str, info_path: str) -> Tuple[Accuracy, List[Dict[str, Any]]]:
    """Accuracy of the inference summed up in `result_path` against the labels in `info_path`, joined by index; and its
    read_curve(). The classes and the skipped videos are as many as the manifest beside the info file says, or
    Something-Something V2's and none."""
    manifest_file = manifest_path(info_path)
    classes, skipped = SSV2.classes, 0
    if os.path.exists(manifest_file):
        manifest = read_manifest(manifest_file)
        classes, skipped = manifest["protocol"]["classes"], len(manifest["skipped"])
    labels: Dict[int, int] = read_info(info_path, classes)
    return accuracy_from(read_results(result_path, labels, classes), labels, skipped), read_curve(result_path, labels)


def curve_path(folder: str) -> str:
    """Where TSM_stream.py --curve writes the answers after shares of the clips, in a folder of results."""
    return os.path.join(folder, "curve.json")


def read_curve(result_path: str, labels: Mapping[int, int]) -> List[Dict[str, Any]]:
    """Accuracy once a share of every clip's frames was seen, {share, top1_acc, top1_interval_95}, fractions 0..1, of the results summed
    up in `result_path`; empty where that was not kept."""
    path = curve_path(result_path[: -len("_summary.json")])
    if not result_path.endswith("_summary.json") or not os.path.exists(path):
        return []
    kept = read_json(path, "curve")
    if sorted(kept["ids"]) != sorted(labels):  # it is of another list
        return []
    hits = (np.array(kept["answers"]) == np.array([labels[index] for index in kept["ids"]])[:, None]).sum(0)
    return [{"share": share, "top1_acc": int(right) / len(labels), "top1_interval_95": wilson(int(right), len(labels))}
            for share, right in zip(kept["shares"], hits)]


def read_accuracy(path: str) -> Tuple[Accuracy, Optional[Dict[str, Any]]]:
    """(the Accuracy that TSM_postprocess.py --json wrote to `path`, that of the clip's model beside it, if it has one)."""
    facts = read_json(path, "accuracy")
    facts.pop("curve", None)
    clip = facts.pop("clip", None)
    return Accuracy(**dict(facts, top1_interval_95=tuple(facts["top1_interval_95"]))), clip

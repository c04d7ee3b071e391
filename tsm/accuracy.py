"""Top-k accuracy: measured from class scores and labels, kept in accuracy.json, read back."""

import math
import os
from typing import Dict, Mapping, NamedTuple, Tuple

import numpy as np

from tsm.files import read_json
from tsm.protocol import SSV2
from tsm.results import read_results
from tsm.samples import manifest_path, read_info, read_manifest

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


def wilson(hits: int, total: int) -> Tuple[float, float]:
    """Wilson's 95 % score interval of hits / total."""
    share, square = hits / total, Z95 ** 2
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = Z95 / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total ** 2))
    return max(0.0, centre - half), min(1.0, centre + half)


def ranks(scores: np.ndarray, labels: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The places, from 0, of the labels int [videos] among class scores float [videos, classes]; each int [videos].

    Returns: (of equal scores the lower class first, every tie for the label, every tie against it).
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    above, tied = (scores > own).sum(1), scores == own
    lower = tied & (np.arange(scores.shape[1]) < labels[:, None])
    return above + lower.sum(1), above, above + tied.sum(1) - 1


def measure(scores: np.ndarray, labels: np.ndarray, skipped: int) -> Accuracy:
    """Accuracy of class scores float [videos, classes] against labels int [videos].

    Of equal scores the lower class comes first; verdicts that would change if it did not are counted. Mean class accuracy
    is the mean, over the classes that occur, of the share of their videos that are right (mmaction2's
    mean_class_accuracy).
    """
    rank, best, worst = ranks(scores, labels)
    right = rank < 1
    per_class = [right[labels == label].mean() for label in np.unique(labels)]
    ties = np.any([(best < k) & (worst >= k) for k in (1, 5)], 0).sum()
    return Accuracy(len(labels), skipped, float(right.mean()), float((rank < 5).mean()), float(np.mean(per_class)),
                    wilson(int(right.sum()), len(labels)), int(ties))


def accuracy_of(result_path: str, info_path: str) -> Accuracy:
    """Accuracy of the inference summed up in `result_path` against the labels in `info_path`, joined by index.

    The number of classes and of skipped videos come from the manifest beside the info file; without one they are those of
    Something-Something V2 and 0.
    """
    manifest_file = manifest_path(info_path)
    classes, skipped = SSV2.classes, 0
    if os.path.exists(manifest_file):
        manifest = read_manifest(manifest_file)
        classes, skipped = manifest["protocol"]["classes"], len(manifest["skipped"])
    labels: Dict[int, int] = read_info(info_path, classes)
    return accuracy_from(read_results(result_path, labels, classes), labels, skipped)


def accuracy_from(scores: Mapping[int, np.ndarray], labels: Mapping[int, int], skipped: int) -> Accuracy:
    """Accuracy of class scores float [classes] by index against labels by index."""
    order = sorted(labels)
    return measure(np.stack([scores[index] for index in order]), np.array([labels[index] for index in order]), skipped)


def read_accuracy(path: str) -> Accuracy:
    """The Accuracy that TSM_postprocess.py --json wrote to `path`."""
    facts = read_json(path, "accuracy")
    return Accuracy(**dict(facts, top1_interval_95=tuple(facts["top1_interval_95"])))

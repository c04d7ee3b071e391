"""What a run found, video by video and class by class: from class scores and labels to what the page and the tables show.

Everything here is plain values, ready for JSON; shares and probabilities are 0..1, classes are numbers. Per-video facts
are columns of equal length (`Columns`), one place per video, in the order of the ids.
"""

import base64
import csv
import itertools
import os
import re
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from tsm.cli import Corrupt
from tsm.files import replacing
from tsm.labels import name_of, top
from tsm.results import mcnemar, ranks, wilson

Columns = Dict[str, List[Any]]
PAIRS = 20  # most confused pairs that are kept
MATRIX = 12  # classes of the small confusion matrix
HISTOGRAM, RELIABILITY, COVERAGE = 20, 15, 50  # bins of the probability, bins of ECE, points of the coverage curve
GAIN, MOST_P = 0.2, 0.01  # of top-1, and McNemar's p, from which another order of the labels explains the accuracy
ANSWERS = 3  # of a video in the gallery that are kept
STRIP = "data:image/jpeg;base64,"  # what a film strip begins with
DIGITS = 6  # of a probability, as in the result files
SWAPS = (("left", "right"), ("up", "down"), ("upwards", "downwards"), ("opening", "closing"), ("open", "close"),
         ("folding", "unfolding"), ("covering", "uncovering"), ("covering something with something", "uncovering something"),
         ("burying something in", "digging something out of"), ("in", "out"), ("putting", "taking"), ("put", "take"),
         ("into", "out of"), ("closer to", "away from"), ("towards", "away from"), ("approaching", "moving away from"),
         ("clockwise", "counterclockwise"), ("forward", "backward"))
POSES = ("thumb up", "thumb down")  # of Jester: whichever way they are played, they stay what they are


def columns_of(scores: Mapping[int, np.ndarray], labels: Mapping[int, int], sources: Mapping[int, str],
               votes: Optional[Mapping[int, int]] = None) -> Columns:
    """The facts of every video.

    Args:
        scores: probabilities float [classes] by id. labels: the truth by id. sources: the videos' names by id, if known.
        votes: how many of a video's views have its answer, by id, if known.
    Returns: columns `id`, `video`, `label`, `answer`, `probability` (of the answer), `truth` (probability of the label),
        `rank` (of the label, from 1; of equal scores the lower class comes first), `margin` (the answer's probability
        less the runner-up's) and `views_agree` (None if not known).
    """
    order = sorted(labels)
    table = np.stack([scores[index] for index in order])
    truth = np.array([labels[index] for index in order])
    places = np.arange(len(order))
    own, best = table[places, truth], table.max(1)
    margin = best - np.sort(table, axis=1)[:, -2:][:, 0]  # 0 of a single class
    return {
        "id": order, "video": [sources.get(index, str(index)) for index in order], "label": truth.tolist(),
        "answer": table.argmax(1).tolist(), "probability": best.round(DIGITS).tolist(), "truth": own.round(DIGITS).tolist(),
        "rank": (1 + ranks(table, truth)[0]).tolist(), "margin": margin.round(DIGITS).tolist(),
        "views_agree": [(votes or {}).get(index) for index in order],
    }


def confusion(columns: Columns, classes: int) -> np.ndarray:
    """How often videos of a class (row) were answered as a class (column), int [classes, classes]."""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (columns["label"], columns["answer"]), 1)
    return counts


def class_rows(columns: Columns, counts: np.ndarray) -> List[Dict[str, Any]]:
    """Per class, those without a video too: its videos, how many are right and in the first five, the 95 % interval of
    the share that is right, how often it was the answer, and what it was most often taken for."""
    label, rank = np.array(columns["label"]), np.array(columns["rank"])
    rows = []
    for number, row in enumerate(counts):
        videos, right = int(row.sum()), int(row[number])
        wrong = row.copy()
        wrong[number] = 0
        rows.append({
            "class": number, "videos": videos, "right": right, "top5": int((rank[label == number] <= 5).sum()),
            "interval_95": list(wilson(right, videos)) if videos else None, "answered": int(counts[:, number].sum()),
            "taken_for": int(wrong.argmax()) if wrong.any() else None, "taken_count": int(wrong.max()),
        })
    return rows


def confused_pairs(counts: np.ndarray, reverse: Mapping[int, int]) -> List[Dict[str, Any]]:
    """The PAIRS most frequent confusions: truth, answer, count, share of the truth's videos, the other direction's
    count, and whether the answer is the truth's action played backwards."""
    off = counts - np.diag(np.diag(counts))
    order = np.argsort(-off, axis=None, kind="stable")[:PAIRS]
    pairs = [divmod(int(place), len(counts)) for place in order]
    return [{"truth": truth, "answer": answer, "count": int(off[truth, answer]),
             "share": float(off[truth, answer] / counts[truth].sum()), "back": int(off[answer, truth]),
             "reversed": reverse.get(truth) == answer}
            for truth, answer in pairs if off[truth, answer]]


def small_matrix(counts: np.ndarray, pairs: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
    """The confusion matrix of the at most MATRIX classes of the most confused pairs; the last row and column are all others."""
    chosen: List[int] = []
    for pair in pairs:
        fresh = [number for number in (pair["truth"], pair["answer"]) if number not in chosen]
        if len(chosen) + len(fresh) <= MATRIX:
            chosen += fresh
    rest = [number for number in range(len(counts)) if number not in chosen]
    groups = [[number] for number in chosen] + ([rest] if rest else [])
    return {"classes": chosen, "counts": [[int(counts[np.ix_(rows, columns)].sum()) for columns in groups] for rows in groups]}


def confidence(columns: Columns) -> Dict[str, Any]:
    """How far the answers' probabilities can be trusted.

    Returns: `right` and `wrong`, counts in HISTOGRAM equal bins of the probability; `reliability`, per non-empty one of
    RELIABILITY equal bins its videos, mean probability and share that is right; `ece`, the expected calibration error over
    these bins (Guo et al., ICML 2017); `coverage`, [share of the videos that are most certain, share of these that is right].
    """
    probability = np.clip(np.array(columns["probability"]), 0, 1)
    right = np.array(columns["rank"]) == 1
    edges = np.linspace(0, 1, HISTOGRAM + 1)
    inside = np.clip(np.ceil(probability * RELIABILITY).astype(int) - 1, 0, RELIABILITY - 1)
    bins = [inside == number for number in range(RELIABILITY)]
    reliability = [{"videos": int(some.sum()), "probability": float(probability[some].mean()),
                    "right": float(right[some].mean())} for some in bins if some.any()]
    sure = right[np.argsort(-probability, kind="stable")]
    points = sorted({max(1, len(sure) * number // COVERAGE) for number in range(1, COVERAGE + 1)})
    return {
        "right": np.histogram(probability[right], edges)[0].tolist(),
        "wrong": np.histogram(probability[~right], edges)[0].tolist(),
        "reliability": reliability, "bins": RELIABILITY,
        "ece": sum(row["videos"] * abs(row["probability"] - row["right"]) for row in reliability) / len(right),
        "coverage": [[count / len(sure), float(sure[:count].mean())] for count in points],
    }


def reverses(names: Optional[Sequence[str]]) -> Dict[int, int]:
    """{class: the class of the same action played backwards}, for the names that say so by their words: "… up" and "…
    down", "opening" and "closing", "from left to right" and "from right to left" (SWAPS). Both directions are in it."""
    plain = {" ".join(name.lower().split()): number for number, name in enumerate(names or ())}
    plain = {name: number for name, number in plain.items() if name not in POSES}
    swaps: Dict[str, List[str]] = {}  # what may stand in the place of a phrase: itself, or an opposite
    for one, other in [*SWAPS, *(pair[::-1] for pair in SWAPS)]:
        swaps.setdefault(one, [one]).append(other)
    phrase = re.compile(r"(?<!\S)(%s)(?!\S)" % "|".join(sorted(swaps, key=len, reverse=True)))
    found: Dict[int, int] = {}
    for name, number in plain.items():
        choices = [swaps.get(part, [part]) for part in phrase.split(name)]
        for chosen in itertools.islice(itertools.product(*choices), 1000):
            back = plain.get("".join(chosen), number)
            if back != number:
                found[number] = back
                found.setdefault(back, number)
    return found


def another_order(truth: np.ndarray, answers: np.ndarray, classes: int, names: Optional[Sequence[str]]) -> Tuple[bool, str]:
    """(does another order of the labels explain the accuracy, in words), of labels and answers int [videos]: the best
    of other_orders() does if it gains GAIN of top-1 by a p below MOST_P."""
    given = "top-1 is %.4f with the labels as they are" % (answers == truth).mean()
    *known, learnt = other_orders(truth, answers, classes, names)
    for found, before, words in sorted(known, key=lambda one: -one[0].mean()) + [learnt]:
        gained, lost = int((found & ~before).sum()), int((before & ~found).sum())
        if gained - lost > GAIN * len(found) and mcnemar(lost, gained) < MOST_P:
            return True, "another order of the labels explains the accuracy: %s, and %.4f %s" % (given, found.mean(), words)
    return False, "%s; no other order explains more%s" % (
        given, "" if len(learnt[0]) else " (no class has two videos, so only the usual ones were tried)")


def other_orders(
    truth: np.ndarray, answers: np.ndarray, classes: int, names: Optional[Sequence[str]]
) -> List[Tuple[np.ndarray, np.ndarray, str]]:
    """(which videos are right, bool; which of them were with the labels as they are; the order in words) for the known ways to
    number classes otherwise (_orders) and, last, for the order that one half of the videos teaches, on the other half."""
    right = answers == truth
    measured, found = permutation(truth, answers)
    return [(answers == order[truth], right, words) for order, words in _orders(truth, classes, names)] + [
        (found, right[measured], "with the classes in another order, learnt on the other half of the videos; number them as the network "
                                 "was trained")]


def _orders(truth: np.ndarray, classes: int, names: Optional[Sequence[str]]) -> Iterator[Tuple[np.ndarray, str]]:
    """(the network's class by label, int [classes]; in words): the ways in which lists number classes that the network has otherwise."""
    numbers = np.arange(classes)
    yield numbers - 1, "with each lowered by one: " + (
        "as if counted from 1; take one from each label of the list, and run again" if truth.min() else
        "is a line too many at the beginning of the labels file?")
    yield numbers + 1, "with each raised by one: " + (
        "was one taken from each?" if truth.max() < classes - 1 else "is a line missing at the beginning of the labels file?")
    yield numbers[::-1], "with the classes in the reverse order"
    for key in (str, str.casefold) if names else ():
        alphabet = np.array(sorted(numbers, key=lambda number, key=key: key(names[number])))  # type: ignore[index,misc]
        yield np.argsort(alphabet), ("with the classes in the alphabet's order, as MIT's code numbers Something-Something V1 and Jester; "
                                     "sort the labels file, and make the lists again with it")
        yield alphabet, "with each name numbered by its place in the alphabet; make the lists again with the network's labels file"
    for first in (0, 1):
        as_text = np.array(sorted(numbers, key=lambda number, first=first: str(first + number)))  # type: ignore[misc]
        for order in (np.argsort(as_text), as_text):
            yield order, "with the numbers of the classes sorted as text (1, 10, 100, 2), as names of folders are"


def permutation(truth: np.ndarray, answers: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """(the videos that it is measured on, bool; of these, which are right if each class is called what it is mostly
    answered as, which is learnt on the other half of each class's videos; a name is given once)."""
    measured = np.zeros(len(truth), bool)
    for number in np.unique(truth):
        measured[np.flatnonzero(truth == number)[1::2]] = True
    names: Dict[int, int] = {}
    pairs, counts = np.unique(np.stack([truth, answers])[:, ~measured], axis=1, return_counts=True)
    for place in np.argsort(-counts, kind="stable"):
        label, answer = (int(value) for value in pairs[:, place])
        if label not in names and answer not in names.values():
            names[label] = answer
    return measured, np.array([names.get(int(label)) == answer for label, answer in zip(truth[measured], answers[measured])], bool)


def findings(columns: Columns, classes: int, names: Optional[Sequence[str]]) -> Dict[str, Any]:
    """All that the page shows of the videos, their gallery apart, as the key `findings` of report.json."""
    counts = confusion(columns, classes)
    pairs = confused_pairs(counts, reverses(names))
    return {"classes": class_rows(columns, counts), "pairs": pairs, "matrix": small_matrix(counts, pairs),
            "confidence": confidence(columns), "videos": columns}


def gallery(
    columns: Columns, scores: Mapping[int, np.ndarray], most: int, data_root: Optional[str]
) -> Dict[str, List[Dict[str, Any]]]:
    """At most `most` videos of each kind, as report.json has them: failures, the most certain first; near misses, where
    the truth came second and closest; successes, drawn at random by a fixed seed.

    Each has its `place` in the columns, its `top` [class, probability] and its `strip`, a data URI, or None without a
    data root; `problem` says why a video has none.
    """
    rank, margin, probability = (np.array(columns[name]) for name in ("rank", "margin", "probability"))
    failures = [int(place) for place in np.argsort(-probability, kind="stable") if rank[place] > 1][:most]
    near = [int(place) for place in np.argsort(margin, kind="stable") if rank[place] == 2 and place not in failures][:most]
    right = np.flatnonzero(rank == 1)
    some = np.sort(np.random.RandomState(0).permutation(len(right))[:most])

    def entry(place: int) -> Dict[str, Any]:
        best = top(scores[columns["id"][place]], None, ANSWERS)
        return dict(zip(("strip", "problem"), strip_of(data_root, columns["video"][place])), place=place,
                    top=[[ranked.class_id, round(ranked.probability, DIGITS)] for ranked in best])

    chosen = {"failures": failures, "near_misses": near, "successes": right[some].tolist()}
    return {kind: list(map(entry, places)) for kind, places in chosen.items()}


def strip_of(data_root: Optional[str], source: str) -> Tuple[Optional[str], Optional[str]]:
    """(the film strip of a video under the data root, as a data URI; why there is none); both None without a data root."""
    if not data_root:
        return None, None
    (made,), problem = strips_of(os.path.join(data_root, source), [(None, None)])
    return made, problem or None


def strips_of(path: str, spans: Sequence[Tuple[Optional[float], Optional[float]]]) -> Tuple[List[Optional[str]], str]:
    """(a film strip, as a data URI, of each span of the video or folder of frames at `path`; why some are None, if they
    are). Spans are (start, end) in seconds, in their order in time; (None, None) is the whole."""
    from tsm.video.windows import Window, strips

    made: List[Optional[str]] = []
    problem = ""
    try:
        made += (STRIP + base64.b64encode(jpeg).decode() for jpeg in strips(path, [Window(*span) for span in spans]))
    except Corrupt as error:
        problem = str(error)
    return made + [None] * (len(spans) - len(made)), problem


def write_csv(path: str, rows: Iterator[Sequence[Any]], bom: bool = False) -> None:
    """A CSV file in UTF-8, whole or not at all; bytes of a name that are not UTF-8 are escaped.

    A text that a spreadsheet would compute, for it begins with = + - @, a tab or a return, gets a ' before it. With
    `bom` the file begins with a byte order mark, by which Excel knows UTF-8.
    """
    with replacing(path) as part, open(part, "w", encoding="utf-8-sig" if bom else "utf-8", errors="backslashreplace", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([_as_text(cell) for cell in row] for row in rows)


def _as_text(cell: Any) -> Any:
    formula = isinstance(cell, str) and cell[:1] in tuple("=+-@\t\r") and not re.match(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?$", cell)
    return "'" + cell if formula else cell


def prediction_rows(columns: Columns, names: Optional[Sequence[str]]) -> Iterator[Sequence[Any]]:
    """predictions.csv: a line per video, after a heading. `views_agree` is the number of views with the same answer, if known."""
    yield ("id", "video", "label", "answer", "true_name", "predicted_name", "probability", "true_probability", "rank", "margin",
           "views_agree")
    for index, video, label, answer, probability, truth, rank, margin, agree in zip(
            *(columns[key] for key in ("id", "video", "label", "answer", "probability", "truth", "rank", "margin", "views_agree"))):
        yield (index, video, label, answer, name_of(label, names), name_of(answer, names), "%.6f" % probability,
               "%.6f" % truth, rank, "%.6f" % margin, "" if agree is None else agree)


def confusion_rows(columns: Columns, names: Optional[Sequence[str]], classes: int) -> Iterator[Sequence[Any]]:
    """confusion.csv: the whole confusion matrix, truth by row, answer by column, after a heading of names."""
    yield ["truth \\ answer"] + [name_of(number, names) for number in range(classes)]
    for number, row in enumerate(confusion(columns, classes)):
        yield [name_of(number, names), *row.tolist()]

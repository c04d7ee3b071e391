"""Names of the classes: read from the files that datasets come with, kept in a model's metadata, put beside probabilities."""

import csv
import json
import re
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from tsm.cli import UserError
from tsm.files import read_text

METADATA = "tsm.labels"  # a JSON list of names, in the order of the classes


class Ranked(NamedTuple):
    """A class and its probability, 0..1; `label` is its name, or its number if no names are known."""

    class_id: int
    label: str
    probability: float


def read_names(path: str) -> List[str]:
    """The names of all classes, in their order.

    Args:
        path: a JSON object {name: class} (Something-Something V2's labels.json; the number may be text), a JSON list of names,
            text with one name per line (mmaction2's label_map.txt, Jester's labels.csv), or a CSV of names and numbers.
    Raises: UserError if it is none of these, or does not name the classes from 0 on, each once.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        try:
            value = _numbered(lines) or lines
        except csv.Error:  # a cell beyond csv's limit
            value = None
    if isinstance(value, dict):
        value = _in_order(value, path)
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
        raise UserError("%s: not label names; wanted: a JSON object {name: class}, a JSON list, one name per line, or a CSV of "
                        "names and numbers" % path)
    return value


def read_labels(path: str, classes: int) -> List[str]:
    """The names of `classes` classes, in their order, as read_names() gives them; UserError if they are not as many."""
    names = read_names(path)
    if len(names) != classes:
        raise UserError("%s: names %d classes, the model has %d; is it the label file of this model?" % (path, len(names), classes))
    return names


def _numbered(lines: List[str]) -> Optional[Dict[str, str]]:
    """{name: class} of the lines of a CSV that has a column of numbers, under a header or not; None where it has none."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    for column in (0, 1):
        for body in (rows, rows[1:]):
            if body and all(len(row) == 2 and row[column].isdigit() for row in body):
                return {row[1 - column]: row[column] for row in body}
    return None


def _in_order(numbers: Mapping[str, object], path: str) -> List[str]:
    """The names of {name: class}, by class."""
    names = {}
    for name, number in numbers.items():
        if not re.match(r"\d{1,6}$", str(number)) or isinstance(number, float):
            raise UserError("%s: %r has %r for a class; wanted: the number of the class" % (path, name, number))
        names[int(str(number))] = name
    if sorted(names) != list(range(len(numbers))):
        raise UserError("%s: %d labels, whose classes are not the numbers 0 to %d, each once" % (path, len(numbers), len(numbers) - 1))
    return [names[number] for number in range(len(names))]


def labels_in(metadata: Mapping[str, str], classes: int) -> Optional[List[str]]:
    """The names that a model's metadata hold, or None."""
    try:
        names = json.loads(metadata.get(METADATA, "null"))
    except ValueError:
        return None
    fits = isinstance(names, list) and len(names) == classes and all(isinstance(name, str) for name in names)
    return names if fits else None


def top(probabilities: np.ndarray, labels: Optional[Sequence[str]], count: int) -> List[Ranked]:
    """The `count` most probable classes of probabilities [classes], the lower class first among equals."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [Ranked(int(index), labels[index] if labels else "class %d" % index, float(probabilities[index])) for index in order]

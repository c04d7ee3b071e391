"""Names of the classes: read from the files that datasets come with, kept in a model's metadata, put beside probabilities."""

import json
from typing import List, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from tsm.cli import UserError

METADATA = "tsm.labels"  # a JSON list of names, in the order of the classes


class Ranked(NamedTuple):
    """A class and its probability, 0..1; `label` is its name, or its number if no names are known."""

    class_id: int
    label: str
    probability: float


def read_labels(path: str, classes: int) -> List[str]:
    """The names of `classes` classes, in their order.

    Args:
        path: a JSON object {name: class} (Something-Something's labels.json; the number may be text), a JSON list of names,
            or text with one name per line (mmaction2's label_map.txt).
    Raises: UserError if it is none of these, or does not name exactly the classes 0 to `classes` - 1.
    """
    with open(path, "rb") as file:
        raw = file.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError("%s: not UTF-8 text; save it as UTF-8" % path)
    try:
        value = json.loads(text)
    except ValueError:
        value = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(value, dict):
        value = _in_order(value, path)
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
        raise UserError("%s: not label names; wanted: a JSON object {name: class}, a JSON list, or one name per line" % path)
    if len(value) != classes:
        raise UserError("%s: names %d classes, the model has %d; is it the label file of this model?" % (path, len(value), classes))
    return value


def _in_order(numbers: Mapping[str, object], path: str) -> List[str]:
    """The names of {name: class}, by class."""
    try:
        names = {int(str(number)): name for name, number in numbers.items()}
    except ValueError:
        raise UserError("%s: not a JSON object of name: class" % path)
    if sorted(names) != list(range(len(numbers))):
        raise UserError("%s: its classes are not the numbers 0 to %d, each once" % (path, len(numbers) - 1))
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

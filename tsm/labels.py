"""Names of the classes: read from the files that datasets come with, kept in a model's metadata, put beside probabilities."""

import collections
import csv
import json
import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from tsm.cli import UserError
from tsm.files import read_text

METADATA = "tsm.labels"  # a JSON list of names, in the order of the classes
_NUMBERED = [re.compile(form) for form in (r"(?P<number>[0-9]{1,6})(?:\s*[:.)]\s*|\s+)(?P<name>\S.*)$",
                                           r"(?P<name>\S.*?)(?:\s*:\s*|\s+)(?P<number>[0-9]{1,6})$")]
_NAME_HEADS = {"name", "label", "label_name", "class", "class_name", "category", "category_name", "action", "template"}
_PARTS = ("id2label", "names", "labels", "classes", "categories")  # of a JSON file that holds more than the names
_NUMBER_HEADS = _NAME_HEADS | {"id", "index", "number", "label_id", "class_id", "category_id"}


class Ranked(NamedTuple):
    """A class and its probability, 0..1; `label` is its name, or its number if no names are known."""

    class_id: int
    label: str
    probability: float


def read_classes(path: str) -> Tuple[List[str], int]:
    """(the names of all classes, in their order; the number that the file gives to the first of them, 0 or 1).

    Forms: a JSON object {name: class} (Something-Something V2's; a number may be text) or {class: name}; a JSON list of names, or
    of lists of words (Diving48's); a CSV or TSV of names and numbers; text with a name per line (mmaction2's label_map.txt, Jester's
    labels.csv), its number before it, behind it (UCF101's classInd.txt), or none.
    Raises: UserError if it is none of these, names a class twice, or does not number them from 0 or 1 on, each once.
    """
    text = read_text(path)
    try:
        found = parse_json(text, path)
    except ValueError:
        try:
            found = _of_lines([line.strip() for line in text.splitlines() if line.strip()])
        except csv.Error:  # a cell beyond csv's limit
            found = None
    first = 0
    if isinstance(found, dict):
        found = next((found[key] for key in _PARTS if isinstance(found.get(key), (dict, list))), found)
    if isinstance(found, list) and found and all(isinstance(entry, dict) for entry in found):
        found = _of_rows([list(found[0])] + [[str(entry.get(key)) for key in found[0]] for entry in found])
    if isinstance(found, dict):
        turned = all(map(is_number, found)) and not all(map(is_number, found.values()))
        found = [(value, key) if turned else (key, value) for key, value in found.items()]
    elif isinstance(found, list):
        found = [" ".join(entry) if isinstance(entry, list) and _are_texts(entry) else entry for entry in found]
    if isinstance(found, list) and found and all(isinstance(entry, tuple) for entry in found):
        found, first = ordered(found, path)
    if not isinstance(found, list) or not found or not _are_texts(found):
        raise UserError("%s: not label names; wanted: a JSON object {name: class}, a JSON list, one name per line, or a CSV of "
                        "names and numbers" % path)
    _refuse_twice(found, path)
    return found, first


def read_labels(path: str, classes: int) -> List[str]:
    """The names of `classes` classes, in their order, as read_classes() gives them; UserError if they are not as many."""
    names = read_classes(path)[0]
    if len(names) != classes:
        raise UserError("%s: names %d classes, the model has %d; is it the label file of this model?" % (path, len(names), classes))
    return names


def parse_json(text: str, path: str) -> Any:
    """The JSON value in the text of the file `path`. Raises ValueError where it is none, UserError where an object has a key twice."""
    def once(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
        _refuse_twice([key for key, _ in pairs], path)
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise ValueError("too deep")


def is_number(value: object) -> bool:
    """Whether a value is the number of a class, or the text of one."""
    return not isinstance(value, float) and re.match(r"[0-9]{1,6}$", str(value)) is not None


def head(cell: str) -> str:
    """The name of a column as tables of synonyms have it: `Label ID` and `labelId` are `label_id`."""
    return re.sub(r"[\W_]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cell.strip())).strip("_").lower()


def _are_texts(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) and value for value in values)


def _refuse_twice(names: Sequence[str], path: str) -> None:
    counts = collections.Counter(names)
    if len(counts) < len(names):
        raise UserError("%s: %r is there twice; mend it" % (path, counts.most_common(1)[0][0]))


def _of_lines(lines: List[str]) -> List[Any]:
    """The names that lines of text hold, or pairs of a name and its number where all lines have one."""
    for mark in "\t;,":
        pairs = _of_rows([[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=mark)])
        if pairs:
            return pairs
    if len(lines) > 1 and set(re.findall(r"\w+", lines[0].lower())) <= _NUMBER_HEADS.union(_PARTS):
        lines = lines[1:]  # a header, or YAML's `names:`
    for form in _NUMBERED:
        pairs = [(match.group("name"), match.group("number")) for match in map(form.match, lines) if match]
        if len({name for name, _ in pairs}) == len(lines):  # else the numbers belong to the names: video 1, video 2
            return pairs
    return [line[1:-1].replace('""', '"') if re.match('"([^"]|"")+"$', line) else line for line in lines]


def _of_rows(rows: List[List[str]]) -> List[Tuple[str, str]]:
    """Pairs of a name and its number of a CSV that has a column of each; of more than two columns its header has to tell."""
    width = len(rows[0]) if rows else 0
    for body in (rows, rows[1:]):
        if width < 2 or not body or any(len(row) != width for row in body):
            return []
        numbers = [column for column in range(width) if all(is_number(row[column]) for row in body)]
        names = [column for column in range(width) if column not in numbers]
        if width > 2:
            numbers = [column for column in numbers if head(rows[0][column]) in _NUMBER_HEADS]
            names = [column for column in names if head(rows[0][column]) in _NAME_HEADS]
        if numbers and names:
            return [(row[names[0]], row[numbers[0]]) for row in body]
    return []


def ordered(pairs: Sequence[Tuple[str, object]], path: str) -> Tuple[List[str], int]:
    """(the names of pairs of a name and its number, by number; the first number)."""
    for name, number in pairs:
        if not is_number(number):
            raise UserError("%s: %r has %r for a class; wanted: the number of the class" % (path, name, number))
    names = {int(str(number)): name for name, number in pairs}
    first = min(names, default=0)
    if first > 1 or sorted(names) != list(range(first, first + len(pairs))):
        raise UserError("%s: %d labels, whose classes are not the numbers 0 to %d or 1 to %d, each once; mend it, or write a JSON list "
                        "of names if the numbers belong to them" % (path, len(pairs), len(pairs) - 1, len(pairs)))
    return [names[number] for number in sorted(names)], first


def labels_in(metadata: Mapping[str, str], classes: int) -> Optional[List[str]]:
    """The names that a model's metadata hold, or None."""
    try:
        names = json.loads(metadata.get(METADATA, "null"))
    except ValueError:
        return None
    fits = isinstance(names, list) and len(names) == classes and all(isinstance(name, str) for name in names)
    return names if fits else None


def name_of(number: int, names: Optional[Sequence[str]]) -> str:
    """A class's name, or its number if no names are known."""
    return names[number] if names else "class %d" % number


def top(probabilities: np.ndarray, labels: Optional[Sequence[str]], count: int) -> List[Ranked]:
    """The `count` most probable classes of probabilities [classes], the lower class first among equals."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [Ranked(int(index), name_of(index, labels), float(probabilities[index])) for index in order]

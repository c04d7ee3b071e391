"""The annotations of a video dataset, in the forms that they come in -> which video is of which class, and the classes' names.

Forms: Something-Something V2's JSON; the CSV of Jester and Something-Something V1 (`id;label`); Kinetics' CSV, whose header names
youtube_id, time_start, time_end and label; a CSV of one's own, `name,label`; a list as TSM_preprocess.py reads it. Numbers and
file names are mmaction2's (tools/data/parse_file_list.py): classes are numbered as the labels file has them, and without
one by the alphabet.
"""

import csv
import json
import os
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from tsm.cli import UserError
from tsm.files import read_text
from tsm.labels import read_names
from tsm.samples import FOLDER_LINE, VIDEO_LINE

SSV2_LIST = "sthv2_val"  # what lists of Something-Something V2 are called (the guide's)
_VIDEO_LINE, _FOLDER_LINE = (re.compile(line, re.ASCII | re.DOTALL) for line in (VIDEO_LINE, FOLDER_LINE))
_KINETICS = ("label", "youtube_id", "time_start", "time_end")


class Entry(NamedTuple):
    """An annotated video: by which names its file may go, the first one being its own, with or without suffix; its class."""

    names: Tuple[str, ...]
    label: int
    where: str  # file and line


class Annotations(NamedTuple):
    """What an annotation file says, in its order."""

    stem: str  # what lists made of it are called
    entries: List[Entry]
    labels: Optional[List[str]]  # names of the classes, where known
    alphabetical: bool  # whether they were numbered by the alphabet, for want of a labels file


def read_annotations(path: str, labels_path: Optional[str]) -> Annotations:
    """The annotations in `path`, whichever form they have.

    Args:
        labels_path: the dataset's labels file, of any form that tsm.labels reads; None where there is none.
    Raises: UserError that names file and line of what is not understood, and of a label that is not among the labels.
    """
    names = read_names(labels_path) if labels_path else None
    if names and len(set(names)) < len(names):
        raise UserError("%s: the label %r is there twice; mend it" % (labels_path, next(n for n in names if names.count(n) > 1)))
    text = read_text(path)
    stem = os.path.splitext(os.path.basename(path))[0]
    if path.lower().endswith(".json") or text.lstrip()[:1] in ("[", "{"):
        if names is None:
            raise UserError("%s: needs --labels, the dataset's file of labels" % path)
        return Annotations(SSV2_LIST, _of_json(text, path, names), names, False)
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError("%s: no annotations in it" % path)
    if _is_list(lines):
        return Annotations(stem, _of_list(lines, path, names), names, False)
    named = _of_csv(lines, path)
    alphabetical = names is None and not all(_is_number(label) for _, label, _ in named)
    if alphabetical:
        names = sorted({label for _, label, _ in named}, key=_plain)
    classes = _classes(names)
    entries = [Entry(files, _number(label, classes, where), where) for files, label, where in named]
    return Annotations(stem, _each_once(entries), names, alphabetical)


def _of_json(text: str, path: str, names: Sequence[str]) -> List[Entry]:
    """Something-Something V2's: a list of objects with an id and a template."""
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError("%s: not JSON (%s); make it again" % (path, error))
    if not isinstance(found, list) or not found:
        raise UserError("%s: not a JSON list of annotations; pass something-something-v2-validation.json" % path)
    entries, numbers = [], _classes(names)
    for number, entry in enumerate(found):
        where = "%s, entry %d" % (path, number)
        try:
            name, template = str(entry["id"]), entry["template"].replace("[", "").replace("]", "")
        except (KeyError, TypeError, AttributeError):
            raise UserError("%s: no id and template; a test split has none, and so no accuracy" % where)
        if template not in numbers:
            raise UserError("%s: template %r is not in the labels; are both of the same dataset?" % (where, template))
        if not re.match(r"[\w-]+$", name):
            raise UserError("%s: id %r is not a number or word" % (where, name))
        entries.append(Entry((name,), numbers[template], where))
    return _each_once(entries)


def _is_list(lines: Sequence[Tuple[int, str]]) -> bool:
    """Whether all lines end in a number of their own, as in a list, and are no CSV whose labels happen to."""
    separators = [mark for mark in ",;" if all(mark in line for _, line in lines)]
    return not separators and all(_VIDEO_LINE.match(line) for _, line in lines)


def _of_list(lines: Sequence[Tuple[int, str]], path: str, names: Optional[Sequence[str]]) -> List[Entry]:
    """A list of TSM_preprocess.py's kind; the number of a folder's frames is counted again."""
    entries, classes = [], _classes(names)
    of_folders = _FOLDER_LINE.match(lines[0][1]) is not None
    for number, line in lines:
        where = "%s, line %d" % (path, number)
        match = (_FOLDER_LINE if of_folders else _VIDEO_LINE).match(line)
        if not match:
            raise UserError("%s: expected '%s', found %r" % (where, "<folder> <frames> <label>" if of_folders else "<file> <label>",
                                                            line[:80]))
        entries.append(Entry((_inside(match.group(1), where),), _number(match.groups()[-1], classes, where), where))
    return _each_once(entries)


def _of_csv(lines: Sequence[Tuple[int, str]], path: str) -> List[Tuple[Tuple[str, ...], str, str]]:
    """(names of the file, label, file and line) of every line of a CSV."""
    mark = ";" if all(";" in line for _, line in lines) else ","
    cells = [[cell.strip() for cell in row] for row in csv.reader([line for _, line in lines], delimiter=mark)]
    header = [cell.lower() for cell in cells[0]]
    if "youtube_id" in header:
        if not set(_KINETICS) <= set(header):
            raise UserError("%s, line %d: a header of Kinetics names %s, and this one %s"
                            % (path, lines[0][0], ", ".join(_KINETICS), ", ".join(header)))
        columns = [header.index(name) for name in _KINETICS]
        return [_of_kinetics(row, columns, "%s, line %d" % (path, number))
                for (number, _), row in list(zip(lines, cells))[1:]]
    found: List[Tuple[Tuple[str, ...], str, str]] = []
    has_header = len(header) == 2 and header[1] in ("label", "class", "class_id", "template", "category")
    for (number, line), row in list(zip(lines, cells))[has_header:]:
        where = "%s, line %d" % (path, number)
        if len(row) != 2 or not all(row):
            raise UserError("%s: expected a video's name and its label, as in 'name%slabel', found %r%s"
                            % (where, mark, line[:80], "; a test split has no labels" if len(row) == 1 else ""))
        found.append(((_inside(row[0], where),), row[1], where))
    if not found:
        raise UserError("%s: no annotations in it" % path)
    return found


def _of_kinetics(row: Sequence[str], columns: Sequence[int], where: str) -> Tuple[Tuple[str, ...], str, str]:
    """A line of Kinetics' CSV. Its video is <youtube_id>_<start>_<end>, in six digits, in a folder of its label or in none."""
    try:
        label, video, start, end = (row[column] for column in columns)
        name = "%s_%06d_%06d" % (video, int(float(start)), int(float(end)))
    except (IndexError, ValueError, OverflowError):
        raise UserError("%s: no %s in it" % (where, ", ".join(_KINETICS)))
    folders = [label.replace('"', ""), _plain(label)]
    return tuple(_inside(one, where) for one in [name] + ["%s/%s" % (folder, name) for folder in folders] + [video]), label, where


def _plain(label: str) -> str:
    """A label as mmaction2 writes Kinetics': without quotes, an underscore for a space."""
    return label.replace('"', "").replace(" ", "_")


def _is_number(text: str) -> bool:
    return re.match(r"\d{1,6}$", text) is not None


def _classes(names: Optional[Sequence[str]]) -> Dict[str, int]:
    """{name: class}, a name also in its plain form."""
    numbers = {_plain(name): number for number, name in enumerate(names or ())}
    return dict(numbers, **{name: number for number, name in enumerate(names or ())})


def _number(label: str, classes: Dict[str, int], where: str) -> int:
    """The class of a label, which is one of the names of the `classes`, or a number."""
    known = classes.get(label, classes.get(_plain(label)))
    if known is not None:
        return known
    if not _is_number(label):
        raise UserError("%s: label %r is not %s" % (where, label, "in the labels; are both of the same dataset?" if classes else
                                                    "a number, as others are; mend it, or name the labels by --labels"))
    count = 1 + max(classes.values(), default=int(label))
    if int(label) >= count:
        raise UserError("%s: label %s is not one of the %d classes; mend the line" % (where, label, count))
    return int(label)


def _inside(name: str, where: str) -> str:
    """A video's name, which must not lead out of the folder of videos."""
    if not name or os.path.isabs(name) or ".." in name.split("/") or "\0" in name or "\n" in name:
        raise UserError("%s: %r is not a name inside the folder of videos" % (where, name[:80]))
    return os.path.normpath(name)


def _each_once(entries: List[Entry]) -> List[Entry]:
    seen: Dict[str, str] = {}
    for entry in entries:
        if entry.names[0] in seen:
            raise UserError("%s: id %s appears twice, first in %s" % (entry.where, entry.names[0], seen[entry.names[0]]))
        seen[entry.names[0]] = entry.where
    return entries

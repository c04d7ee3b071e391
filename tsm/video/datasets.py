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
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from tsm.cli import UserError
from tsm.files import read_text
from tsm.labels import read_names
from tsm.samples import FOLDER_LINE, VIDEO_LINE

SSV2_LIST = "sthv2_val"  # what lists of Something-Something V2 are called (the guide's)
_VIDEO_LINE, _FOLDER_LINE = (re.compile(line, re.ASCII | re.DOTALL) for line in (VIDEO_LINE, FOLDER_LINE))
_KINETICS = ("label", "youtube_id", "time_start", "time_end")
_NAME_HEADS = {"name", "video", "video_name", "video_id", "video_path", "clip", "clip_name", "clip_id", "file", "file_name", "filename",
               "path", "file_path", "filepath", "id"}
_LABEL_HEADS = {"label", "label_id", "label_name", "class", "class_id", "class_name", "class_label", "category", "category_id",
                "category_name", "template", "action", "name", "target"}
_NUMERIC = re.compile(r"[-+]?(\d[\d.,]*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)  # what somebody would call a number, a class or not

IsThere = Callable[[str], bool]  # whether a name is that of a video: by its suffix, or as one is in the folder of videos


class Entry(NamedTuple):
    """An annotated video: by which names its file may go, the first one being its own, with or without suffix; its class."""

    names: Tuple[str, ...]
    label: int
    where: str  # file and line


class Named(NamedTuple):
    """A line of a CSV: by which names its video's file may go, as in Entry; its label as written; file and line."""

    names: Tuple[str, ...]
    label: str
    where: str


class Annotations(NamedTuple):
    """What an annotation file says, in its order."""

    stem: str  # what lists made of it are called
    entries: List[Entry]
    labels: Optional[List[str]]  # names of the classes, where known
    alphabetical: bool  # whether they were numbered by the alphabet, for want of a labels file


def read_annotations(path: str, labels_path: Optional[str], is_there: IsThere) -> Annotations:
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
    if _is_list(lines, is_there):
        return Annotations(stem, _of_list(lines, path, names), names, False)
    named = _of_csv(lines, path, is_there)
    alphabetical = names is None and _are_names(named)
    if alphabetical:
        _check_first(named, is_there)
        names = sorted({one.label for one in named}, key=_plain)
    classes = _classes(names)
    entries = [Entry(one.names, _number(one.label, classes, one.where), one.where) for one in named]
    return Annotations(stem, _each_once(entries), names, alphabetical)


def labels_file(found: Annotations, folder: str) -> str:
    """Where the names of the classes are to be written; empty where they need not be, or are there already.

    Raises: UserError where a file that says something else is in the place.
    """
    path = os.path.join(folder, found.stem + "_labels.json")
    if not found.labels or found.stem == SSV2_LIST:
        return ""
    if not os.path.lexists(path):
        return path
    try:
        same = read_names(path) == found.labels
    except (UserError, OSError):
        same = False
    if not same:
        raise UserError("%s: is there already and does not name these %d classes in this order; move it away, or choose another folder "
                        "by --output_dir" % (path, len(found.labels)))
    return ""


def each_once(entries: Sequence[Entry], found: Sequence[Optional[str]]) -> None:
    """UserError where what was found for two of the entries, None being nothing, is the same."""
    seen: Dict[str, Entry] = {}
    for entry, video in zip(entries, found):
        first = seen.setdefault(video, entry) if video else entry
        if first is not entry:
            raise UserError("%s: %s is the video of %s too, as %s; take one of the lines out"
                            % (entry.where, entry.names[0], first.where, first.names[0]))


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


def _is_list(lines: Sequence[Tuple[int, str]], is_there: IsThere) -> bool:
    """Whether all lines end in a number of their own, as in a list, and are no CSV whose labels happen to.

    Where each has a comma or a semicolon, it is a list if what stands before the numbers are names of videos.
    """
    if not all(_VIDEO_LINE.match(line) for _, line in lines):
        return False
    if not any(all(mark in line for _, line in lines) for mark in ",;"):
        return True
    return any(all(match and is_there(match.group(1)) for match in (form.match(line) for _, line in lines))
               for form in (_VIDEO_LINE, _FOLDER_LINE))


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


def _cells(line: str, mark: str, where: str) -> List[str]:
    """The cells of a line, which is read by itself: a quote that is not closed must not take in the lines that follow."""
    if line.count('"') % 2:
        raise UserError("%s: a quote (\") in it is not closed; close it, or take it out" % where)
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=mark, strict=True))]
    except csv.Error as error:
        raise UserError("%s: is not a line of a CSV (%s); mend it" % (where, error))


def _of_csv(lines: Sequence[Tuple[int, str]], path: str, is_there: IsThere) -> List[Named]:
    """Every line of a CSV but its header."""
    mark = ";" if all(";" in line for _, line in lines) else ","
    places = ["%s, line %d" % (path, number) for number, _ in lines]
    rows = [_cells(line, mark, where) for (_, line), where in zip(lines, places)]
    header = [cell.lower().replace(" ", "_") for cell in rows[0]]
    if "youtube_id" in header:
        if not set(_KINETICS) <= set(header):
            raise UserError("%s: a header of Kinetics names %s, and this one %s" % (places[0], ", ".join(_KINETICS), ", ".join(header)))
        columns = [header.index(name) for name in _KINETICS]
        found = [_of_kinetics(row, columns, where) for row, where in zip(rows[1:], places[1:])]
    else:
        for row, where, (_, line) in zip(rows, places, lines):
            if len(row) != 2 or not all(row):
                raise UserError("%s: expected a video's name and its label, as in 'name%slabel', found %r%s"
                                % (where, mark, line[:80], "; a test split has no labels" if len(row) == 1 else ""))
        start = int(not is_there(rows[0][0]) and _is_header(header, [row[1] for row in rows[1:]]))
        found = [Named((_inside(name, where),), label, where) for (name, label), where in zip(rows[start:], places[start:])]
    if not found:
        raise UserError("%s: no annotations in it" % path)
    return found


def _is_header(cells: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether the two cells of a first line, in lower case, name columns; `labels` are those of the other lines."""
    return cells[1] in _LABEL_HEADS or cells[0] in _NAME_HEADS and cells[1] not in map(str.lower, labels)


def _check_first(named: Sequence[Named], is_there: IsThere) -> None:
    """UserError where the first line seems to be a header: it names no video, as another line does, and has a label of its own."""
    first, *others = named
    own = len(first.names) == 1 and all(one.label != first.label for one in others)  # Kinetics' have several names, and a known header
    if own and not is_there(first.names[0]) and any(is_there(one.names[0]) for one in others):
        raise UserError("%s: there is no video %s, and no other line has the label %r; write a header as name,label, or take the line out"
                        % (first.where, first.names[0], first.label))


def _are_names(named: Sequence[Named]) -> bool:
    """Whether labels are names, not numbers of classes; UserError for the first that is neither where others look like numbers."""
    bad = next((one for one in named if not _is_number(one.label)), None)
    if bad and any(_NUMERIC.match(one.label) for one in named):
        good = next((one for one in named if _is_number(one.label)), None)
        raise UserError("%s: label %r is not the number of a class, a whole one from 0%s; mend it, or name the labels by --labels"
                        % (bad.where, bad.label, ", as that of %s is" % good.where if good else ""))
    return bad is not None


def _of_kinetics(row: Sequence[str], columns: Sequence[int], where: str) -> Named:
    """A line of Kinetics' CSV. Its video is <youtube_id>_<start>_<end>, in six digits, in a folder of its label or in none."""
    try:
        label, video, start, end = (row[column] for column in columns)
        name = "%s_%06d_%06d" % (video, int(float(start)), int(float(end)))
    except (IndexError, ValueError, OverflowError):
        raise UserError("%s: no %s in it" % (where, ", ".join(_KINETICS)))
    folders = [label.replace('"', ""), _plain(label)]
    names = [name] + ["%s/%s" % (folder, name) for folder in folders] + [video]
    return Named(tuple(_inside(one, where) for one in names), label, where)


def _plain(label: str) -> str:
    """A label as mmaction2 writes Kinetics': without quotes, an underscore for a space."""
    return label.replace('"', "").replace(" ", "_")


def _is_number(text: str) -> bool:
    return re.match(r"[0-9]{1,6}$", text) is not None


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

"""The annotations of a video dataset, in the forms that they come in -> which video is of which class, and the classes' names.

Forms: a CSV or TSV whose header names a video and a label, in any order and among other columns; the same as JSON (a list of
objects, an object of them by video, or one on each line); `name,label` or `id;label` without a header; a list as
TSM_preprocess.py reads it; UCF101's lists, whose folders are the labels; HMDB51's split files. Among them are Something-Something
V1 and V2, Jester, Kinetics and Diving48. Numbers and file names are mmaction2's (tools/data/parse_file_list.py): classes are
numbered as the labels file has them, and without one by the alphabet.
"""

import contextlib
import csv
import os
import re
from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from tsm.cli import UserError
from tsm.files import read_text
from tsm.labels import head, is_number, ordered, parse_json, read_classes
from tsm.samples import FOLDER_LINE, VIDEO_LINE

SSV2_LIST = "sthv2_val"  # what lists of Something-Something V2 are called (the guide's)
_VIDEO_LINE, _FOLDER_LINE = (re.compile(line, re.ASCII | re.DOTALL) for line in (VIDEO_LINE, FOLDER_LINE))
_NUMBERS = ("label_id", "class_id", "category_id")
# Names of columns, the first one that is there being used; `name` is a label where no other column is one.
_LABELS = ("template", "label", "label_name", "class", "class_name", "class_label", "category", "category_name", "action", "target",
           *_NUMBERS, "name")
_VIDEOS = ("path", "file_path", "filepath", "video_path", "file", "file_name", "filename", "video", "video_name", "clip", "clip_name",
           "vid", "vid_name", "name", "video_id", "clip_id", "id", "youtube_id")
_TIMES = ("time_start", "time_end")  # of Kinetics, in seconds
_HMDB51 = """
    brush_hair cartwheel catch chew clap climb climb_stairs dive draw_sword dribble drink eat fall_floor fencing flic_flac golf
    handstand hit hug jump kick kick_ball kiss laugh pick pour pullup punch push pushup ride_bike ride_horse run shake_hands
    shoot_ball shoot_bow shoot_gun sit situp smile smoke somersault stand swing_baseball sword sword_exercise talk throw turn walk
    wave"""  # its classes
_NUMERIC = re.compile(r"[-+]?(\d[\d.,]*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)  # what somebody would call a number, a class or not

IsThere = Callable[[str], bool]  # whether a name is that of a video: by its suffix, or as one is in the folder of videos


class Named(NamedTuple):
    """What an annotation says of a video."""

    names: Tuple[str, ...]  # by which its file may go, the first one being its own, with or without suffix
    label: str  # as written
    where: str  # file and line
    number: str = ""  # of the label's class, where a column of its own has it
    template: bool = False  # whether the label is a template of Something-Something V2


class Annotations(NamedTuple):
    """What an annotation file says, in its order."""

    stem: str  # what lists made of it are called
    videos: List[Named]
    classes: List[int]  # of these
    labels: Optional[List[str]]  # names of the classes, where known
    alphabetical: bool  # whether they were numbered by the alphabet, for want of a labels file


def read_annotations(path: str, labels_path: Optional[str], is_there: IsThere) -> Annotations:
    """The annotations in `path`, whichever form they have.

    Args:
        labels_path: the dataset's labels file, of any form that tsm.labels reads; None where there is none.
    Raises: UserError that names file and line of what is not understood, and of a label that is not among the labels.
    """
    names, first = read_classes(labels_path) if labels_path else (None, 0)
    stem, text = os.path.splitext(os.path.basename(path))[0], read_text(path)
    split = _of_hmdb51(path, text)
    if path.lower().endswith((".json", ".jsonl")) or text.lstrip()[:1] in ("[", "{"):
        named = _of_json(text, path)
    elif split:
        stem, named = stem[-len("test_split1") :], split
    else:
        lines = [("%s, line %d" % (path, number), line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        named = _of_text(lines, is_there, names is None) if lines else []
    if not named:
        raise UserError("%s: no annotations in it" % path)
    if any(one.template for one in named):
        stem = SSV2_LIST
        if names is None:
            raise UserError("%s: needs --labels, the dataset's file of labels" % path)
    if names is None and all(one.number for one in named):
        named, names, first = _by_numbers(named)
    alphabetical = names is None and _are_names(named)
    if alphabetical:
        names = sorted({one.label for one in named}, key=_plain)
    elif names is None:
        _check_base(named, path)
    known = {_plain(name): number for number, name in enumerate(names or ())}
    known.update((name, number) for number, name in enumerate(names or ()))
    return Annotations(stem, named, [_number(one.label, known, first, one.where) for one in named], names, alphabetical)


def labels_file(found: Annotations, folder: str) -> str:
    """Where the names of the classes are to be written; empty where they need not be, or are there already.

    Raises: UserError where a file that says something else is in the place.
    """
    path = os.path.join(folder, found.stem + "_labels.json")
    if not found.labels or found.stem == SSV2_LIST:
        return ""
    if not os.path.lexists(path):
        return path
    with contextlib.suppress(UserError, OSError):
        if read_classes(path)[0] == found.labels:
            return ""
    raise UserError("%s: is there already and does not name these %d classes in this order; move it away, or choose another folder by "
                    "--output_dir" % (path, len(found.labels)))


def each_once(named: Sequence[Named], found: Sequence[Optional[str]]) -> None:
    """UserError where what was found for two of these, None being nothing, is the same."""
    seen: Dict[str, Named] = {}
    for one, video in zip(named, found):
        first = seen.setdefault(video, one) if video else one
        if first is not one:
            raise UserError("%s: %s is the video of %s too, as %s; take one of the lines out"
                            % (one.where, one.names[0], first.where, first.names[0]))


def _columns(names: Iterable[str]) -> Tuple[str, str]:
    """Of names of columns, that of the video and that of the label; empty where no column is one."""
    known = set(names)
    label = next((name for name in _LABELS if name in known), "")
    return next((name for name in _VIDEOS if name in known - {label}), ""), label


def _of_json(text: str, path: str) -> List[Named]:
    """A list of objects, an object on each line, or an object of them by video."""
    try:
        try:
            found = parse_json(text, path)
        except ValueError:
            found = [parse_json(line, path) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise UserError("%s: not JSON (%s); make it again" % (path, error))
    if isinstance(found, dict) and not all(_columns(map(head, found))):
        found = [dict(value, id=key, youtube_id=key) if isinstance(value, dict) else {"id": key, "label": value}
                 for key, value in found.items()]
    named = []
    for number, entry in enumerate([found] if isinstance(found, dict) else found if isinstance(found, list) else []):
        where = "%s, entry %d" % (path, number)
        record = {head(key): value for key, value in entry.items()} if isinstance(entry, dict) else {}
        inner = record.get("annotations")
        if isinstance(inner, dict):  # Kinetics'
            record.update(inner)
        if isinstance(record.get("segment"), list):
            record.update(zip(_TIMES, record["segment"]))
        named.append(_of_record(record, where))
    return named


def _of_record(record: Mapping[str, Any], where: str) -> Named:
    """What {column: value} says. Kinetics' videos are <youtube_id>_<start>_<end>, in six digits, in a folder of their label or in none."""
    video, label = _columns(record)
    values = [record.get(column) for column in (video, label)]
    if not all(isinstance(value, (str, int)) and str(value).strip() for value in values):
        raise UserError("%s: names no %s; a test split has no labels, and so no accuracy" % (where, "label" if values[0] else "video"))
    name, text = (str(value).strip() for value in values)
    template = label == "template" and "[" in text  # Closing [something]
    if template:
        text = text.replace("[", "").replace("]", "")
    names = [name]
    if "youtube_id" in record and all(time in record for time in _TIMES):
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # not seconds
            timed = "%s_%06d_%06d" % ((record["youtube_id"],) + tuple(int(float(record[time])) for time in _TIMES))
            names = [timed] + ["%s/%s" % (folder, timed) for folder in (text.replace('"', ""), _plain(text))] + names
    number = next((str(record[column]) for column in _NUMBERS if column != label and is_number(record.get(column))), "")
    return Named(tuple(_inside(one, where) for one in names), text, where, number, template)


def _of_hmdb51(path: str, text: str) -> List[Named]:
    """The test videos of a split of HMDB51, which has a file per class beside `path`, which is one of them; none where that is not one,
    by its name and the first line of its text. Of the numbers 2 is test, 1 train, 0 neither."""
    name, line = re.match(r"(.*)(_test_split\d(\.[^.]*)?)$", os.path.basename(path)), re.compile(r"(\S.*?\.avi)\s+([012])$")
    if not name or name.group(1) not in _HMDB51.split() or not line.match(text.split("\n")[0].strip()):
        return []
    named = []
    for label in _HMDB51.split():
        file = os.path.join(os.path.dirname(path), label + name.group(2))
        for number, given in enumerate(read_text(file).split("\n") if os.path.exists(file) else [], 1):
            where, match = "%s, line %d" % (file, number), line.match(given.strip())
            if given.strip() and not match:
                raise UserError("%s: expected '<video>.avi <0, 1 or 2>' as in HMDB51's split files; mend it, or rename it if it is none"
                                % where)
            if match and match.group(2) == "2":
                named.append(Named(tuple(_inside(one, where) for one in (label + "/" + match.group(1), match.group(1))), label, where))
    return named


def _of_text(lines: Sequence[Tuple[str, str]], is_there: IsThere, unlabelled: bool) -> List[Named]:
    """A CSV with or without a header, a list, or UCF101's; `lines` are pairs of file and line, and the text of it."""
    mark = next((mark for mark in "\t;," if all(mark in line for _, line in lines)), ",")
    cells = lines[0][1].split(mark)
    columns = [head(cell) for cell in cells]
    video, label = _columns(columns)
    if video and label and not is_there(cells[columns.index(video)].strip()):
        rows = [_cells(line, mark, where) for where, line in lines[1:]]
        for (where, _), row in zip(lines[1:], rows):
            if len(row) != len(columns):
                raise UserError("%s: has %d cells, and the header %d; mend it" % (where, len(row), len(columns)))
        return [_of_record(dict(zip(columns, row)), where) for (where, _), row in zip(lines[1:], rows)]
    named = _of_list(lines, is_there)
    if named:
        return named
    rows = [_cells(line, mark, where) for where, line in lines]
    folders = {os.path.dirname(row[0]).strip("/") for row in rows if len(row) == 1}
    if all(len(row) == 1 for row in rows) and "" not in folders and (len(folders) > 1 or not unlabelled):  # UCF101's test lists: labels
        return [Named((_inside(name, where),), os.path.basename(os.path.dirname(name)), where) for (where, _), (name,) in zip(lines, rows)]
    for row, (where, line) in zip(rows, lines):
        if len(row) != 2 or not all(row):
            raise UserError("%s: expected a video's name and its label, as in 'name%slabel', found %r; a header may name them, as "
                            "'video,label'; a list of classes is for --labels; a test split has no labels"
                            % (where, mark, line[:80]))
    named = [Named((_inside(name, where),), label, where) for (name, label), (where, _) in zip(rows, lines)]
    if unlabelled and not is_number(named[0].label):
        _check_first(named, is_there)
    return named


def _of_list(lines: Sequence[Tuple[str, str]], is_there: IsThere) -> List[Named]:
    """A list of TSM_preprocess.py's kind, whose folders' frames are counted again; none where that is not one.

    All its lines end in a number of their own. Where each has a comma or a semicolon, as in a CSV, it is a list if what stands
    before the numbers are names of videos.
    """
    unsure = any(all(mark in line for _, line in lines) for mark in ",;")
    for form in (_FOLDER_LINE, _VIDEO_LINE):
        matches = [form.match(line) for _, line in lines]
        if all(match and (is_there(match.group(1)) or not unsure) for match in matches):
            return [Named((_inside(match.group(1), where),), match.groups()[-1], where)
                    for match, (where, _) in zip(matches, lines) if match]
    return []


def _cells(line: str, mark: str, where: str) -> List[str]:
    """The cells of a line, which is read by itself: a quote that is not closed must not take in the lines that follow."""
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=mark, strict=True))]
    except csv.Error as error:
        raise UserError("%s: is not a line of a CSV (%s); mend it" % (where, error))


def _by_numbers(named: List[Named]) -> Tuple[List[Named], Optional[List[str]], int]:
    """Annotations that have a column of numbers: (they, the names in the order of these from 0 or 1 on, which of the two); where
    not all classes occur, (they with the numbers for labels, None, 0)."""
    with contextlib.suppress(UserError):
        names, first = ordered(list({(one.label, one.number) for one in named}), "")
        if len(set(names)) == len(names):
            return named, names, first
    return [one._replace(label=one.number) for one in named], None, 0


def _check_base(named: Sequence[Named], path: str) -> None:
    """UserError where numbers of classes seem to be counted from 1: each has a folder of its own, as in UCF101's train lists."""
    pairs = {(os.path.dirname(one.names[0]), int(one.label)) for one in named}
    folders, numbers = {folder for folder, _ in pairs}, sorted({number for _, number in pairs})
    if "" not in folders and len(folders) == len(pairs) > 1 and numbers == list(range(1, len(pairs) + 1)):
        raise UserError("%s: its labels are 1 to %d, one per folder, as in UCF101's train lists, where TSM's classes begin with 0; name "
                        "them by --labels (UCF101's classInd.txt)" % (path, len(pairs)))


def _check_first(named: Sequence[Named], is_there: IsThere) -> None:
    """UserError where the first line seems to be a header: it names no video, as another line does, and has a label of its own."""
    first, *others = named
    own = all(one.label != first.label for one in others)
    if own and not is_there(first.names[0]) and any(is_there(one.names[0]) for one in others):
        raise UserError("%s: there is no video %s, and no other line has the label %r; write a header as name,label, or take the line out"
                        % (first.where, first.names[0], first.label))


def _are_names(named: Sequence[Named]) -> bool:
    """Whether labels are names, not numbers of classes; UserError for the first that is neither where others look like numbers."""
    bad = next((one for one in named if not is_number(one.label)), None)
    if bad and any(_NUMERIC.match(one.label) for one in named):
        raise UserError("%s: label %r is not the number of a class, a whole one from 0; mend it, or name the labels by --labels"
                        % (bad.where, bad.label))
    return bad is not None


def _plain(label: str) -> str:
    """A label as mmaction2 writes Kinetics': without quotes, an underscore for a space."""
    return label.replace('"', "").replace(" ", "_")


def _number(label: str, classes: Dict[str, int], first: int, where: str) -> int:
    """The class of a label, which is one of the names of the `classes`, or a number; that of the first class is `first`."""
    known = classes.get(label, classes.get(_plain(label)))
    if known is not None:
        return known
    if not is_number(label):
        raise UserError("%s: label %r is not in the labels; are both of the same dataset?" % (where, label))
    number = int(label) - first
    if classes and not 0 <= number <= max(classes.values()):
        raise UserError("%s: label %s is not one of the %d classes, which the labels file counts from %d; mend the line"
                        % (where, label, 1 + max(classes.values()), first))
    return number


def _inside(name: str, where: str) -> str:
    """A video's name, which must not lead out of the folder of videos."""
    if not name or os.path.isabs(name) or ".." in name.split("/") or "\0" in name or "\n" in name:
        raise UserError("%s: %r is not a name inside the folder of videos" % (where, name[:80]))
    return os.path.normpath(name)

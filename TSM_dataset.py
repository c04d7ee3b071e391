#!/usr/bin/env python3
"""Something-Something V2's annotations and videos -> the lists that TSM_preprocess.py reads, and frames if wanted.

    python3 TSM_dataset.py --annotations something-something-v2-validation.json \\
        --labels something-something-v2-labels.json --videos 20bn-something-something-v2

Writes sthv2_val_list_videos.txt (`<id>.webm <label>`, in the annotations' order). With --rawframes DIR it also extracts
every frame, in its own size, as DIR/<id>/img_00001.jpg, … (JPEG of quality 95) and writes sthv2_val_list_rawframes.txt
(`<id> <frames> <label>`): what the guide's three shell scripts do, restartable, a folder at a time.

Every video is decoded once, as TSM_preprocess.py will decode it, so the two agree on what is usable. Each video that is not
is named, and the run ends without lists; with --on-error skip it is left out.
"""

import argparse
import contextlib
import json
import os
import re
from typing import Dict, List, NamedTuple, Optional

from tsm.cli import Corrupt, UserError, parser, positive, run
from tsm.files import read_json, write_text
from tsm.frames import VIDEO_SUFFIXES, count_frames, extract, reencode, strict
from tsm.machine import cores
from tsm.protocol import SSV2
from tsm.workers import each


class Video(NamedTuple):
    """One annotated video: its file's name in the folder of videos, None if it is missing, and its class."""

    id: str
    file: Optional[str]
    label: int


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--annotations", required=True, metavar="FILE", help="something-something-v2-validation.json")
    cli.add_argument("--labels", required=True, metavar="FILE", help="something-something-v2-labels.json")
    cli.add_argument("--videos", required=True, metavar="DIR", help="folder of <id>.webm (or %s; upper "
                     "case too)" % ", ".join(VIDEO_SUFFIXES[1:]))
    cli.add_argument("--rawframes", metavar="DIR", help="also extract frames, to DIR/<id>/img_%%05d.jpg")
    cli.add_argument("--output_dir", default=".", metavar="DIR", help="where the lists go (default: here)")
    cli.add_argument("--num_worker", type=positive, default=cores(), metavar="N", help="processes (default: one per core)")
    cli.add_argument("--on-error", choices=("fail", "skip"), default="fail", help="what a missing or unreadable video does "
                     "(default: %(default)s)")
    return cli.parse_args()


def read_labels(path: str, classes: int) -> Dict[str, int]:
    """{template without brackets: class}; UserError that says what was found unless it is the dataset's file of all classes."""
    wanted = "wanted: a JSON object of template: class, as in something-something-v2-labels.json"
    with open(path, "rb") as file:
        raw = file.read()
    try:
        labels = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        lines = [line.strip() for line in raw.decode("utf-8", "replace").splitlines() if line.strip()]
        kind = "comma-separated" if lines and all("," in line for line in lines) else "plain"
        raise UserError("%s: not JSON but %s text of %d lines, the first %r; %s"
                        % (path, kind, len(lines), lines[0][:60] if lines else "", wanted))
    if not isinstance(labels, dict):
        found = "a list of %d entries" % len(labels) if isinstance(labels, list) else repr(labels)[:60]
        raise UserError("%s: not a JSON object but %s; %s" % (path, found, wanted))
    numbers = {}
    for template, number in labels.items():
        if not re.match(r"\d{1,6}$", str(number)) or isinstance(number, float):
            raise UserError("%s: %r has %r for a class; %s" % (path, template, number, wanted))
        numbers[template] = int(number)
    if sorted(numbers.values()) != list(range(classes)):
        raise UserError("%s: %d labels, not the classes 0 to %d, each once; %s" % (path, len(numbers), classes - 1, wanted))
    return numbers


def read_annotations(path: str, labels: Dict[str, int], folder: str) -> List[Video]:
    """The annotated videos in the file's order; UserError that names the entry where it is not as the dataset's."""
    entries, videos, seen = read_json(path), [], set()
    if not isinstance(entries, list) or not entries:
        raise UserError("%s: not a JSON list of annotations; pass something-something-v2-validation.json" % path)
    files = files_by_name(folder)
    for number, entry in enumerate(entries):
        where = "%s, entry %d" % (path, number)
        try:
            name, template = str(entry["id"]), entry["template"].replace("[", "").replace("]", "")
        except (KeyError, TypeError, AttributeError):
            raise UserError("%s: no id and template; a test split has none, and so no accuracy" % where)
        if template not in labels:
            raise UserError("%s: template %r is not in the labels; are both of the same dataset?" % (where, template))
        if not re.match(r"[\w-]+$", name):
            raise UserError("%s: id %r is not a number or word" % (where, name))
        if name in seen:
            raise UserError("%s: id %s appears twice" % (where, name))
        seen.add(name)
        videos.append(Video(name, files.get(name), labels[template]))
    return videos


def files_by_name(folder: str) -> Dict[str, str]:
    """{name without suffix: name} of a folder's videos; of several with one name, the first in the order of VIDEO_SUFFIXES."""
    files: Dict[str, str] = {}
    names = sorted(os.listdir(folder))
    for suffix in VIDEO_SUFFIXES:
        for name in names:
            stem, ending = os.path.splitext(name)
            if ending.lower() == suffix:
                files.setdefault(stem, name)
    return files


def main() -> None:
    args = get_args()
    from tqdm import tqdm

    if not os.path.isdir(args.videos):
        raise UserError("%s: no such folder; --videos is where <id>%s are" % (args.videos, VIDEO_SUFFIXES[0]))
    videos = read_annotations(args.annotations, read_labels(args.labels, SSV2.classes), args.videos)
    for folder in filter(None, (args.output_dir, args.rawframes)):
        os.makedirs(folder, exist_ok=True)

    def path_of(video: Video) -> str:
        return os.path.join(args.videos, video.file or video.id + VIDEO_SUFFIXES[0])

    def examine(video: Video) -> int:
        path = path_of(video)
        if video.file is None:
            raise Corrupt("no such file, nor with %s" % " or ".join(VIDEO_SUFFIXES[1:]))
        if args.rawframes:
            return extract(path, os.path.join(args.rawframes, video.id))
        with strict(reencode(path)):
            return count_frames(path)

    frames: Dict[Video, int] = {}
    bad: Dict[Video, Corrupt] = {}
    with contextlib.closing(each(examine, videos, min(args.num_worker, len(videos)))) as results:
        for video, result in tqdm(results, total=len(videos), unit="video", disable=None):
            if isinstance(result, Corrupt):
                bad[video] = result
            else:
                frames[video] = result
    for video in filter(bad.get, videos):
        print("cannot be used: %s: %s" % (path_of(video), bad[video]))
    if bad and args.on_error == "fail" or not frames:
        first = next(filter(bad.get, videos))
        raise UserError("%s: %s; %d of %d videos cannot be used, all named above; mend them, or leave them out by --on-error "
                        "skip" % (path_of(first), bad[first], len(bad), len(videos)))
    good = [video for video in videos if video in frames]
    lists = {"videos": ["%s %d\n" % (video.file, video.label) for video in good]}
    if args.rawframes:
        lists["rawframes"] = ["%s %d %d\n" % (video.id, frames[video], video.label) for video in good]
    for kind, lines in lists.items():
        path = os.path.join(args.output_dir, "sthv2_val_list_%s.txt" % kind)
        write_text(path, "".join(lines))
        print("wrote %s: %d videos, %d left out" % (path, len(good), len(bad)))


if __name__ == "__main__":
    run(main)

#!/usr/bin/env python3
"""Something-Something V2's annotations and videos -> the lists that TSM_preprocess.py reads, and frames if wanted.

    python3 TSM_dataset.py --annotations something-something-v2-validation.json \\
        --labels something-something-v2-labels.json --videos 20bn-something-something-v2

Writes sthv2_val_list_videos.txt (`<id>.webm <label>`, in the annotations' order). With --rawframes DIR it also extracts
every frame, in its own size, as DIR/<id>/img_00001.jpg, … (JPEG of quality 95) and writes sthv2_val_list_rawframes.txt
(`<id> <frames> <label>`): what the guide's three shell scripts do, restartable, a folder at a time.

Every video is opened and its frames are counted, which shows a file that is missing, empty or cut short; only extraction
decodes it. Each one that cannot be used is named, and the run ends without lists; with --on-error skip it is left out.
"""

import argparse
import contextlib
import os
import re
import shutil
from typing import Dict, List, NamedTuple

import cv2

from tsm.cli import Corrupt, UserError, parser, positive, run
from tsm.files import part_name, read_json, write_text
from tsm.frames import count_frames, read_video, strict
from tsm.machine import cores
from tsm.protocol import CLASSES
from tsm.workers import each

SUFFIXES = (".webm", ".mp4", ".avi", ".mkv")  # the dataset's own first
JPEG_QUALITY = 95


class Video(NamedTuple):
    """One annotated video: its file's name in the folder of videos, and its class."""

    id: str
    file: str
    label: int


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--annotations", required=True, metavar="FILE", help="something-something-v2-validation.json")
    cli.add_argument("--labels", required=True, metavar="FILE", help="something-something-v2-labels.json")
    cli.add_argument("--videos", required=True, metavar="DIR", help="folder of <id>.webm (or %s)" % ", ".join(SUFFIXES[1:]))
    cli.add_argument("--rawframes", metavar="DIR", help="also extract frames, to DIR/<id>/img_%%05d.jpg")
    cli.add_argument("--output_dir", default=".", metavar="DIR", help="where the lists go (default: here)")
    cli.add_argument("--num_worker", type=positive, default=cores(), metavar="N", help="processes (default: one per core)")
    cli.add_argument("--on-error", choices=("fail", "skip"), default="fail", help="what a missing or unreadable video does "
                     "(default: %(default)s)")
    return cli.parse_args()


def read_labels(path: str) -> Dict[str, int]:
    """{template without brackets: class}; UserError unless it is the dataset's file of 174 classes."""
    labels = read_json(path)
    try:
        classes = {template: int(number) for template, number in labels.items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError("%s: not a JSON object of template: class; pass something-something-v2-labels.json" % path)
    if sorted(classes.values()) != list(range(CLASSES)):
        raise UserError("%s: not the classes 0 to %d, each once" % (path, CLASSES - 1))
    return classes


def read_annotations(path: str, labels: Dict[str, int], folder: str) -> List[Video]:
    """The annotated videos in the file's order; UserError that names the entry where it is not as the dataset's."""
    entries, videos, seen = read_json(path), [], set()
    if not isinstance(entries, list) or not entries:
        raise UserError("%s: not a JSON list of annotations; pass something-something-v2-validation.json" % path)
    there = set(os.listdir(folder))
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
            raise UserError("%s: id %s stands there twice" % (where, name))
        seen.add(name)
        file = next((name + suffix for suffix in SUFFIXES if name + suffix in there), name + SUFFIXES[0])
        videos.append(Video(name, file, labels[template]))
    return videos


def extract(path: str, frames: int, folder: str) -> None:
    """Make `folder` of the `frames` frames of the video at `path`, whole or not at all; one that is right is left."""
    if os.path.isdir(folder) and os.path.getmtime(folder) >= os.path.getmtime(path) and len(os.listdir(folder)) == frames:
        return
    part = part_name(folder)
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    try:
        with strict():
            for index, frame in read_video(path, range):
                bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
                _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
                with open(os.path.join(part, "img_%05d.jpg" % (index + 1)), "wb") as file:  # imwrite hides a full disk
                    file.write(jpeg)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def main() -> None:
    args = get_args()
    from tqdm import tqdm

    if not os.path.isdir(args.videos):
        raise UserError("%s: no such folder; --videos is where <id>%s are" % (args.videos, SUFFIXES[0]))
    videos = read_annotations(args.annotations, read_labels(args.labels), args.videos)
    for folder in filter(None, (args.output_dir, args.rawframes)):
        os.makedirs(folder, exist_ok=True)
    cv2.setNumThreads(1)

    def examine(video: Video) -> int:
        path = os.path.join(args.videos, video.file)
        if not os.path.isfile(path):
            raise Corrupt("no such file")
        with strict():
            frames = count_frames(path)
        if args.rawframes:
            extract(path, frames, os.path.join(args.rawframes, video.id))
        return frames

    frames, bad = {}, {}  # type: Dict[Video, int], Dict[Video, Corrupt]
    with contextlib.closing(each(examine, videos, min(args.num_worker, len(videos)))) as results:
        for video, result in tqdm(results, total=len(videos), unit="video", disable=None):
            (bad if isinstance(result, Corrupt) else frames)[video] = result
    for video in filter(bad.get, videos):
        print("cannot be used: %s: %s" % (os.path.join(args.videos, video.file), bad[video]))
    if bad and args.on_error == "fail" or not frames:
        first = next(filter(bad.get, videos))
        raise UserError("%s: %s; %d of %d videos cannot be used, all named above; mend them, or leave them out by --on-error "
                        "skip" % (os.path.join(args.videos, first.file), bad[first], len(bad), len(videos)))
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

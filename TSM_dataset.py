#!/usr/bin/env python3
"""Something-Something V2's annotations and videos -> the lists that TSM_preprocess.py reads, and frames if wanted.

    python3 TSM_dataset.py --annotations something-something-v2-validation.json \\
        --labels something-something-v2-labels.json --videos 20bn-something-something-v2

Writes sthv2_val_list_videos.txt (`<id>.webm <label>`, in the annotations' order). With --rawframes DIR it also extracts
every frame, in its own size, as DIR/<id>/img_00001.jpg, … (OpenCV's JPEG at quality 95) and writes
sthv2_val_list_rawframes.txt (`<id> <frames> <label>`): what the guide's three shell scripts do, restartable.

Every video is opened and its frames are counted. One that is missing or unreadable is named and ends the run without a
list; with --on-error skip it is named and left out.
"""

import argparse
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Dict, List, NamedTuple, Optional

from tsm.cli import UserError, parser, positive, run
from tsm.files import part_name, read_json, write_text
from tsm.protocol import CLASSES

SUFFIXES = (".webm", ".mp4", ".avi", ".mkv")  # the dataset's own first
JPEG_QUALITY = 95


class Video(NamedTuple):
    """One annotated video; `path` is None where there is no file for it."""

    id: str
    label: int
    path: Optional[str]


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--annotations", required=True, metavar="FILE", help="something-something-v2-validation.json")
    cli.add_argument("--labels", required=True, metavar="FILE", help="something-something-v2-labels.json")
    cli.add_argument("--videos", required=True, metavar="DIR", help="folder of <id>.webm (or %s)" % ", ".join(SUFFIXES[1:]))
    cli.add_argument("--rawframes", metavar="DIR", help="also extract frames, to DIR/<id>/img_%%05d.jpg")
    cli.add_argument("--output_dir", default=".", metavar="DIR", help="where the lists go (default: here)")
    cli.add_argument("--num_worker", type=positive, default=len(os.sched_getaffinity(0)), metavar="N",
                     help="processes (default: one per processor)")
    cli.add_argument("--on-error", choices=("fail", "skip"), default="fail", help="what a missing or unreadable video does "
                     "(default: %(default)s)")
    return cli.parse_args()


def read_labels(path: str) -> Dict[str, int]:
    """{template without brackets: class index}; UserError unless it is the dataset's file of 174 classes."""
    labels = read_json(path)
    try:
        indices = {template: int(index) for template, index in labels.items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError("%s: not a JSON object of template: index; pass something-something-v2-labels.json" % path)
    if sorted(indices.values()) != list(range(CLASSES)):
        raise UserError("%s: not the %d classes 0 to %d, each once" % (path, CLASSES, CLASSES - 1))
    return indices


def read_annotations(path: str, labels: Dict[str, int], folder: str) -> List[Video]:
    """The annotated videos in the file's order; UserError that names what is wrong with an entry."""
    entries, videos, seen = read_json(path), [], set()
    if not isinstance(entries, list) or not entries:
        raise UserError("%s: not a JSON list of annotations; pass something-something-v2-validation.json" % path)
    there = {os.path.splitext(name)[0]: name for suffix in reversed(SUFFIXES) for name in os.listdir(folder)
             if name.endswith(suffix)}
    for number, entry in enumerate(entries):
        try:
            name, template = str(entry["id"]), entry["template"].replace("[", "").replace("]", "")
        except (KeyError, TypeError, AttributeError):
            raise UserError("%s: entry %d has no id and template; a test split has none, and no accuracy" % (path, number))
        if template not in labels:
            raise UserError("%s: entry %d, template %r is not in the labels" % (path, number, template))
        if not name.isalnum():
            raise UserError("%s: entry %d, id %r is not a number or word" % (path, number, name))
        if name in seen:
            raise UserError("%s: id %s stands there twice" % (path, name))
        seen.add(name)
        videos.append(Video(name, labels[template], there.get(name)))
    return videos


def examine(path: str, frames_dir: Optional[str]) -> Any:
    """In a worker: a video's number of frames, once they are extracted where that is wanted; or the reason it cannot be."""
    import cv2

    from tsm.video import DecodeError, count_frames, decoder_complaints, frames_of

    cv2.setNumThreads(1)
    try:
        with decoder_complaints() as complaints:
            frames = count_frames(path)
            if frames_dir and not os.path.isdir(frames_dir):
                part = part_name(frames_dir)
                shutil.rmtree(part, ignore_errors=True)
                os.makedirs(part)
                for index, image in frames_of(path, range(frames)):
                    name = os.path.join(part, "img_%05d.jpg" % (index + 1))
                    if not cv2.imwrite(name, image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
                        raise OSError("%s: cannot be written; is the disk full?" % name)
                if not complaints:
                    os.rename(part, frames_dir)
        if complaints:
            raise DecodeError(complaints[0])
    except DecodeError as error:
        return str(error)
    if frames_dir and len(os.listdir(frames_dir)) != frames:
        return "%s holds %d files instead of %d frames; remove it" % (frames_dir, len(os.listdir(frames_dir)), frames)
    return frames


def main() -> None:
    args = get_args()
    from tqdm import tqdm

    if not os.path.isdir(args.videos):
        raise UserError("%s: no such folder; --videos is where <id>.webm are" % args.videos)
    videos = read_annotations(args.annotations, read_labels(args.labels), args.videos)
    os.makedirs(args.output_dir, exist_ok=True)
    pool, found = ProcessPoolExecutor(args.num_worker), []
    try:
        for video in videos:
            frames_dir = os.path.join(args.rawframes, video.id) if args.rawframes else None
            path = os.path.join(args.videos, video.path) if video.path else None
            found.append(pool.submit(examine, path, frames_dir) if path else None)
        outcomes = [future.result() if future else "no such file, %s.webm" % video.id for video, future in tqdm(
            list(zip(videos, found)), unit="video", disable=None)]
    finally:
        for future in found:
            if future:
                future.cancel()
        pool.shutdown()
    bad = [(video, outcome) for video, outcome in zip(videos, outcomes) if isinstance(outcome, str)]
    if bad and args.on_error == "fail":
        more = " and %d more" % (len(bad) - 5) if len(bad) > 5 else ""
        raise UserError("%d of %d videos are missing or unreadable: %s%s; mend them, or use --on-error skip" % (
            len(bad), len(videos), "; ".join("%s (%s)" % (video.id, reason) for video, reason in bad[:5]), more))
    for video, reason in bad:
        sys.stderr.write("skipped: %s: %s\n" % (video.id, reason))
    good = [(video, frames) for video, frames in zip(videos, outcomes) if not isinstance(frames, str)]
    if not good:
        raise UserError("%s: none of the %d annotated videos is there" % (args.videos, len(videos)))
    lists = {"sthv2_val_list_videos.txt": ["%s %d" % (video.path, video.label) for video, _ in good]}
    if args.rawframes:
        lists["sthv2_val_list_rawframes.txt"] = ["%s %d %d" % (video.id, frames, video.label) for video, frames in good]
    for name, lines in lists.items():
        write_text(os.path.join(args.output_dir, name), "\n".join(lines) + "\n")
        print("wrote %s: %d videos, %d skipped" % (os.path.join(args.output_dir, name), len(good), len(bad)))


if __name__ == "__main__":
    run(main)

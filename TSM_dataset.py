#!/usr/bin/env python3
"""A dataset's annotations and videos -> the lists for TSM_preprocess.py.

    python3 TSM_dataset.py --videos 20bn-something-something-v2 \\
        --annotations something-something-v2-validation.json \\
        --labels something-something-v2-labels.json
    … --annotations testlist01.txt --labels classInd.txt --videos UCF-101
    python3 TSM_dataset.py --annotations own.csv --videos my_videos

Annotations: a CSV, TSV or JSON that names a video and a label, `name,label`
without a header, a list of `<file> <label>`, UCF101's lists, or one of HMDB51's
split files, which stands for its split (docs/datasets.md).

It writes sthv2_val_list_videos.txt, `<id>.webm <label>` per line, or, of other
annotations, STEM_list_videos.txt and the classes' names, STEM_labels.json.
Where the videos are folders of frames these are counted, and the list is
STEM_list_rawframes.txt. Without --labels, labels that are names are numbered
by the alphabet, which is said.

--rawframes extracts every frame as DIR/<id>/img_00001.jpg, … (JPEG, quality 95)
and lists them: what the guide's three shell scripts do, but restartable.

Every video is decoded once, as TSM_preprocess.py will do it. Those that cannot
be used are named, and there is no list; --on_error skip leaves them out.
"""

import argparse
import contextlib
import functools
import os
import shlex
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from tsm.cli import Corrupt, Killed, UserError, parser, positive, progress, run
from tsm.files import write_json, write_text
from tsm.machine import cores
from tsm.video.datasets import each_once, labels_file, read_annotations
from tsm.video.decode import VIDEO_SUFFIXES, count_frames, extract, reencode
from tsm.video.frames import IMG, Naming, naming_in, strict
from tsm.workers import each


class Video(NamedTuple):
    """An annotated video, and what was found of it."""

    id: str
    file: Optional[str]  # or folder of frames, in the folder of videos; None if it is missing
    label: int  # its class
    frames: int = 0
    naming: Optional[Naming] = None  # of a folder's frames


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--annotations", required=True, metavar="FILE", help="something-something-v2-validation.json, or another form")
    cli.add_argument("--labels", metavar="FILE", help="something-something-v2-labels.json, or another form")
    cli.add_argument("--videos", required=True, metavar="DIR", help="folder of <id>.webm, .mp4, …, or of <id>/ with frames")
    cli.add_argument("--rawframes", metavar="DIR", help="also extract frames, to DIR/<id>/img_%%05d.jpg")
    cli.add_argument("--output_dir", default=".", metavar="DIR", help="where the lists go (default: here)")
    cli.add_argument("--num_worker", type=positive, default=cores(), metavar="N", help="processes (default: one per core)")
    cli.add_argument("--on_error", choices=("fail", "skip"), default="fail", help="what a missing or unreadable video does "
                     "(default: %(default)s)")
    return cli.parse_args()


def found_in(root: str, names: Sequence[str]) -> Tuple[str, Optional[str]]:
    """(id, file, None if it is missing) of the video in the folder `root` that goes by one of these names."""
    for name in names:
        folder, base = os.path.split(name)
        files = files_by_name(os.path.join(root, folder))
        if base in files:
            return os.path.splitext(name)[0] if is_video(base) else name, os.path.join(folder, files[base])
    return names[0], None


def is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


@functools.lru_cache(maxsize=None)
def files_by_name(folder: str) -> Dict[str, str]:
    """{name, with and without suffix: name} of a folder's videos and folders; of several videos with one name, the first in the
    order of VIDEO_SUFFIXES."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    videos = sorted(filter(is_video, names), key=lambda name: VIDEO_SUFFIXES.index(os.path.splitext(name)[1].lower()))
    files = {name: name for name in videos}
    for name in videos:
        files.setdefault(os.path.splitext(name)[0], name)
    for name in names:
        if name not in files and os.path.isdir(os.path.join(folder, name)):
            files[name] = name
    return files


def examine(args: argparse.Namespace, video: Video) -> Video:
    """Decode a video, or count a folder's frames; Corrupt where that fails."""
    if video.file is None:
        raise Corrupt("no such file, nor with %s, …" % ", ".join(VIDEO_SUFFIXES[1:6]))
    path = os.path.join(args.videos, video.file)
    if os.path.isdir(path):
        naming, count = naming_in(path)
        return video._replace(frames=count, naming=naming)
    if args.rawframes:
        return video._replace(frames=extract(path, os.path.join(args.rawframes, video.id)))
    with strict(reencode(path)):
        return video._replace(frames=count_frames(path))


def examined(args: argparse.Namespace, videos: List[Video]) -> List[Video]:
    """The videos that are usable; those that are not are named, and end the run unless they are to be left out."""
    def path_of(video: Video) -> str:
        return os.path.join(args.videos, video.file or video.id + ("" if is_video(video.id) else VIDEO_SUFFIXES[0]))

    found: Dict[Video, Union[Video, Corrupt]] = {}
    with contextlib.closing(each(lambda video: examine(args, video), videos, min(args.num_worker, len(videos)))) as results, progress(
            len(videos), "decoding", "video") as tick:
        for video, result in results:
            tick()
            if isinstance(result, Killed):
                raise UserError("%s: %s" % (path_of(video), result))
            found[video] = result
    bad = [video for video in videos if isinstance(found[video], Corrupt)]
    for video in bad:
        print("cannot be used: %s: %s" % (path_of(video), found[video]))
    if bad and (args.on_error == "fail" or len(bad) == len(videos)):
        raise UserError("%s: %s; %d of %d videos cannot be used, all named above; mend them, or leave them out by --on_error "
                        "skip" % (path_of(bad[0]), found[bad[0]], len(bad), len(videos)))
    return [one for one in map(found.get, videos) if isinstance(one, Video)]


def lists_of(args: argparse.Namespace, good: List[Video]) -> Tuple[Dict[str, List[str]], Optional[Naming]]:
    """({kind of list: its lines}, how frames are called where the videos are folders of them)."""
    kinds = {video.naming: video.file for video in good}
    if len(kinds) > 1:
        raise UserError("%s: %s and %s are no one list; that is of videos, or of folders whose frames are called in one way"
                        % ((args.videos,) + tuple(kinds.values())[:2]))
    (naming,) = kinds
    if naming and args.rawframes:
        raise UserError("%s: holds folders of frames, and --rawframes is for videos" % args.videos)
    lists = {} if naming else {"videos": ["%s %d\n" % (video.file, video.label) for video in good]}
    if naming or args.rawframes:
        lists["rawframes"] = ["%s %d %d\n" % (video.file if naming else video.id, video.frames, video.label) for video in good]
    return lists, naming


def main() -> None:
    args = get_args()
    if not os.path.isdir(args.videos):
        raise UserError("%s: no such folder; --videos is where <id>%s are" % (args.videos, VIDEO_SUFFIXES[0]))
    found = read_annotations(args.annotations, args.labels, lambda name: is_video(name) or found_in(
        args.videos, [os.path.normpath(name)])[1] is not None)
    videos = [Video(*found_in(args.videos, one.names), number) for one, number in zip(found.videos, found.classes)]
    each_once(found.videos, [video.file and (video.id if args.rawframes else video.file) for video in videos])
    path_of_labels = labels_file(found, args.output_dir)
    for folder in filter(None, (args.output_dir, args.rawframes)):
        os.makedirs(folder, exist_ok=True)
    good = examined(args, videos)
    lists, naming = lists_of(args, good)
    if found.alphabetical and found.labels:
        print("note: without --labels the %d labels of %s are numbered by the alphabet, from %s to %s; a network that was trained with "
              "another order needs its own" % (len(found.labels), args.annotations, found.labels[0], found.labels[-1]))
    for kind, lines in lists.items():
        path = os.path.join(args.output_dir, "%s_list_%s.txt" % (found.stem, kind))
        write_text(path, "".join(lines))
        print("wrote %s: %d videos, %d left out" % (path, len(lines), len(videos) - len(lines)))
    if path_of_labels and found.labels:
        write_json(path_of_labels, found.labels)
        print("wrote %s: %d classes" % (path_of_labels, len(found.labels)))
    if naming and naming != IMG:
        print("frames: pass --filename_tmpl %s --start_index %d to the later steps" % (shlex.quote(naming.template), naming.start))


if __name__ == "__main__":
    run(main)

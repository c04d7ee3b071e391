#!/usr/bin/env python3
"""Preprocessing, side by side with mmaction2's own dataset, on one core; then two workers against one.

    python3 bench/preprocess.py --reference_python /path/to/python3.7      # which has mmaction2 0.24.1

Clips are made from the demo's videos: 45 JPEG frames at 240 lines (427x240), the same 256 wide (three equal crops), a clip
of 8 frames (both samples take the same frames), and the videos themselves. The sides take turns, round by round, on the
same core, one OpenCV thread each; every figure is the median over rounds of the milliseconds per clip, computing the
tensor and writing its file apart. mmaction2 makes float32 only; its second row is the same dataset through a DataLoader
with one worker, as the guide's script uses it. Ours also makes a checksum, shown apart. The last row is the part that no
way can leave out: the same OpenCV's decoding and resizing, alone.

Files go to --work_dir, by default in memory (/dev/shm), so that a slow disk does not hide what is compared.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any, Callable, Dict, Iterator, List, Tuple

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, REPO)

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from tsm.cli import UserError, parser, positive, run  # noqa: E402
from tsm.files import write_json  # noqa: E402
from tsm.frames import VIDEO_DECODER, count_frames, read_video  # noqa: E402
from tsm.protocol import SSV2, VIDEO_SHAPE, frame_indices  # noqa: E402
from tsm.samples import Clip, read_list  # noqa: E402
from tsm.machine import keep_freed_memory  # noqa: E402
from TSM_dataset import extract  # noqa: E402
from TSM_preprocess import fill, normalisation, resized_size  # noqa: E402

VIDEOS = os.path.join(REPO, "demo", "videos")
Side = Callable[[], List[float]]  # one round: seconds per clip of computing, checksum, writing


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--reference_python", metavar="PYTHON", help="a Python with mmaction2; without it only ours is timed")
    cli.add_argument("--clips", type=positive, default=8, metavar="N", help="clips of each kind (default: %(default)s)")
    cli.add_argument("--rounds", type=positive, default=7, metavar="N", help="default: %(default)s")
    cli.add_argument("--work_dir", default="/dev/shm" if os.access("/dev/shm", os.W_OK) else None, metavar="DIR",
                     help="where clips and tensors go (default: /dev/shm)")
    cli.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    return cli.parse_args()


def make_clips(folder: str, width: int, height: int, frames: int, count: int) -> str:
    """`count` folders of JPEG frames, cut from the demo's videos one after the other; returns their list's path."""
    os.makedirs(folder)
    videos, pictures = sorted(os.listdir(VIDEOS)), []  # type: List[str], List[np.ndarray]
    lines = []
    for clip in range(count):
        os.makedirs(os.path.join(folder, str(clip)))
        for number in range(1, frames + 1):
            if not pictures:
                path = os.path.join(VIDEOS, videos[0])
                videos = videos[1:] + videos[:1]
                pictures = [frame for _, frame in read_video(path, range)]
            picture = cv2.resize(pictures.pop()[..., ::-1], (width, height), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(os.path.join(folder, str(clip), "img_%05d.jpg" % number), picture)
        lines.append("%d %d 0\n" % (clip, frames))
    with open(os.path.join(folder, "list.txt"), "w") as file:
        file.writelines(lines)
    return file.name


def ours(root: str, clips: List[Clip], dtype: str, folder: str, extract_first: bool = False) -> Side:
    """A round of TSM_preprocess.py's work on `clips`, in this process."""
    table, out = normalisation() if dtype == "float32" else None, np.empty(VIDEO_SHAPE, dtype)

    def once() -> List[float]:
        spent = np.zeros(3)
        for number, clip in enumerate(clips):
            times, path = [time.perf_counter()], os.path.join(root, clip.source)
            if extract_first:
                frames = count_frames(path)
                path = os.path.join(folder, "frames")
                os.makedirs(path, exist_ok=True)
                os.utime(path, (0, 0))  # older than the video: extracted anew
                extract(os.path.join(root, clip.source), frames, path)
                clip = clip._replace(frames=frames)
            fill(path, clip, table, out)
            times.append(time.perf_counter())
            hashlib.sha256(memoryview(out).cast("B")).hexdigest()
            times.append(time.perf_counter())
            with open(os.path.join(folder, "%d.bin" % number), "wb") as file:
                file.write(memoryview(out).cast("B"))
            spent += np.diff(times + [time.perf_counter()])
        return list(spent / len(clips))

    return once


def opencv_alone(root: str, clips: List[Clip]) -> Side:
    """A round of what nobody can leave out: OpenCV's decoding and resizing of the distinct frames, from memory."""
    files = []  # type: List[List[np.ndarray]]
    for clip in clips:
        numbers = [index + 1 for index in sorted(set(frame_indices(clip.frames or 0, SSV2)))]
        files.append([np.fromfile(os.path.join(root, clip.source, "img_%05d.jpg" % number), np.uint8) for number in numbers])

    def once() -> List[float]:
        start = time.perf_counter()
        for clip in files:
            for data in clip:
                frame = cv2.imdecode(data, cv2.IMREAD_COLOR)
                cv2.resize(frame, resized_size(frame.shape[1], frame.shape[0]), interpolation=cv2.INTER_LINEAR)
        return [(time.perf_counter() - start) / len(clips), 0.0, 0.0]

    return once


@contextlib.contextmanager
def reference(python: str, kind: str, root: str, ann_file: str, folder: str) -> Iterator[Dict[str, Side]]:
    """Rounds of mmaction2's dataset on a list, alone and through a DataLoader, in its own process on the same core."""
    script = os.path.join(REPO, "bench", "mmaction2_dataset.py")
    process = subprocess.Popen([python, script, kind, root, ann_file, folder], universal_newlines=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def once(what: str) -> List[float]:
        process.stdin.write(what + "\n")  # type: ignore
        process.stdin.flush()  # type: ignore
        answer = next((line for line in process.stdout if line.startswith("[")), None)  # torch, too, prints there
        if answer is None:
            raise UserError("%s: cannot run mmaction2's dataset; try %s %s" % (python, python, script))
        computing, writing = json.loads(answer)
        return [computing, 0.0, writing]

    try:
        yield {"mmaction2 float32": lambda: once("dataset"), "mmaction2 float32, DataLoader": lambda: once("loader")}
    finally:
        process.kill()
        process.wait()


def take_turns(sides: Dict[str, Side], rounds: int) -> Dict[str, List[float]]:
    """{side: median ms per clip of computing, checksum, writing} over rounds in which every side has its turn."""
    for once in sides.values():
        once()  # warm-up
    times = {name: [] for name in sides}  # type: Dict[str, List[List[float]]]
    for _ in range(rounds):
        for name, once in sides.items():
            times[name].append(once())
    return {name: [1000 * median(part) for part in zip(*rows)] for name, rows in times.items()}


def show(title: str, figures: Dict[str, List[float]]) -> None:
    print("\n| %s | computing, ms | checksum | writing | times mmaction2 (computing) |\n|---|---|---|---|---|" % title)
    base = figures.get("mmaction2 float32")
    for name, row in figures.items():
        ratio = "%.1f" % (base[0] / row[0]) if base else "-"
        print("| %s | %.1f | %.1f | %.1f | %s |" % ((name,) + tuple(row) + (ratio,)), flush=True)


def two_workers(root: str, ann_file: str, folder: str, rounds: int) -> Dict[str, float]:
    """Median seconds of the whole script, uint8, with one worker and with two; and of a run that finds all done."""
    with open(ann_file) as file:
        lines = file.readlines()
    many = ann_file + ".many"
    with open(many, "w") as file:
        file.writelines((lines * 200)[:200])
    times = {"1 worker": [], "2 workers": [], "nothing to do": []}  # type: Dict[str, List[float]]
    out = os.path.join(folder, "out")
    for _ in range(rounds):
        for name in times:
            command = [sys.executable, os.path.join(REPO, "TSM_preprocess.py"), "--data_root", root, "--ann_file", many,
                       "--output_dir", out, "--dtype", "uint8", "--num_worker", "1" if name == "1 worker" else "2"]
            if name != "nothing to do":
                shutil.rmtree(out, ignore_errors=True)
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in times.items()}


def main() -> None:
    args = get_args()
    cv2.setNumThreads(1)  # as in a worker process
    keep_freed_memory()
    processors = os.sched_getaffinity(0)
    figures = {}  # type: Dict[str, Any]
    with tempfile.TemporaryDirectory(dir=args.work_dir) as work:
        folder = os.path.join(work, "tensors")
        os.makedirs(folder)
        videos = os.path.join(work, "videos.txt")
        with open(videos, "w") as file:
            file.writelines("%s 0\n" % name for name in sorted(os.listdir(VIDEOS))[: args.clips])
        kinds = [
            ("45 frames of 427x240", "rawframes", make_clips(os.path.join(work, "wide"), 427, 240, 45, args.clips)),
            ("45 frames of 256x256", "rawframes", make_clips(os.path.join(work, "square"), 256, 256, 45, args.clips)),
            ("8 frames of 427x240", "rawframes", make_clips(os.path.join(work, "short"), 427, 240, 8, args.clips)),
            ("demo videos, %s" % VIDEO_DECODER, "video", videos),
        ]  # type: List[Tuple[str, str, str]]
        os.sched_setaffinity(0, {min(processors)})  # this process and the reference's: the same core
        for title, kind, ann_file in kinds:
            root, clips = VIDEOS if kind == "video" else os.path.dirname(ann_file), read_list(ann_file)
            sides = {"ours float32": ours(root, clips, "float32", folder), "ours uint8": ours(root, clips, "uint8", folder)}
            if kind == "video":
                sides["ours uint8, frames extracted first"] = ours(root, clips, "uint8", folder, extract_first=True)
            else:
                sides["decoding and resizing alone"] = opencv_alone(root, clips)
            with contextlib.ExitStack() as stack:
                if args.reference_python:
                    theirs = stack.enter_context(reference(args.reference_python, kind, root, ann_file, folder))
                    sides = dict(theirs, **sides)
                figures[title] = take_turns(sides, args.rounds)
            show(title, figures[title])
        os.sched_setaffinity(0, processors)
        if len(processors) > 1:
            script = two_workers(os.path.dirname(kinds[0][2]), kinds[0][2], folder, 3)
            script["gain of the second worker"] = script["1 worker"] / script["2 workers"]
            print("\nTSM_preprocess.py, 200 clips, uint8: " + ", ".join("%s %.2f" % item for item in script.items()))
            figures["script, seconds"] = script
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    run(main)

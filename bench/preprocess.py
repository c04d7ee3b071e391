#!/usr/bin/env python3
"""Preprocessing, side by side with mmaction2's own dataset, on one core; then two workers against one.

    python3 bench/preprocess.py --reference_python /path/to/python3.7      # which has mmaction2 0.24.1

Clips are made from the demo's videos: 45 JPEG frames at 240 lines (427x240), the same 256 wide (three equal crops), a clip
of 8 frames (both samples take the same frames), and the videos themselves. The sides take turns, round by round, on the
same core, one OpenCV thread each; every figure is the median over rounds of the milliseconds per clip. The sum is what a
tensor costs until its file is complete: computing it, its checksum (ours alone has one), writing a new file. Ratios are
medians of the ratios within the rounds. mmaction2 makes float32 only; its second row is the same dataset through a
DataLoader with one worker, as the guide's script uses it. The last row is the part that no way can leave out: the same
OpenCV's decoding and resizing, alone.

Files go to --work_dir, by default in memory (/dev/shm), so that a slow disk does not hide what is compared.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import cv2
import numpy as np
from turns import REPO  # sets up the path to the suite

from tsm.cli import UserError, parser, positive, run
from tsm.files import replacing, write_json
from tsm.machine import keep_freed_memory
from tsm.protocol import SSV2, frame_indices
from tsm.samples import Clip, checksum, read_list
from tsm.video.clips import fill, resized, table_for
from tsm.video.decode import VIDEO_DECODER, extract, read_video
from tsm.video.frames import IMG

VIDEOS = os.path.join(REPO, "demo", "videos")
BASE = "mmaction2 float32"
Side = Callable[[], List[float]]  # one round: seconds per clip of computing, checksum, writing


class Figures(NamedTuple):
    """Medians over the rounds: ms per clip, and how many times mmaction2's share of the same round, 0 if it was not run."""

    sum: float
    computing: float
    checksum: float
    writing: float
    times_in_sum: float
    times_in_computing: float


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
    videos = sorted(os.listdir(VIDEOS))
    pictures: List[np.ndarray] = []
    lines = []
    for clip in range(count):
        os.makedirs(os.path.join(folder, str(clip)))
        for index in range(frames):
            if not pictures:
                path = os.path.join(VIDEOS, videos[0])
                videos = videos[1:] + videos[:1]
                pictures = [frame for _, frame in read_video(path, range)]
            picture = cv2.resize(pictures.pop()[..., ::-1], (width, height), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(os.path.join(folder, str(clip), IMG.name(index)), picture)
        lines.append("%d %d 0\n" % (clip, frames))
    with open(os.path.join(folder, "list.txt"), "w") as file:
        file.writelines(lines)
    return file.name


def ours(root: str, clips: List[Clip], dtype: str, folder: str, extract_first: bool = False) -> Side:
    """A round of TSM_preprocess.py's work on `clips`, in this process."""
    table, out = table_for(dtype, SSV2), np.empty(SSV2.video_shape, dtype)

    def once() -> List[float]:
        spent = np.zeros(3)
        for number, clip in enumerate(clips):
            path, tensor = os.path.join(root, clip.source), os.path.join(folder, "%d.bin" % number)
            with contextlib.suppress(FileNotFoundError):
                os.remove(tensor)
            times = [time.perf_counter()]
            if extract_first:
                path = os.path.join(folder, "frames")
                shutil.rmtree(path, ignore_errors=True)
                clip = clip._replace(frames=extract(os.path.join(root, clip.source), path))
            fill(path, clip.frames, SSV2, table, out)
            times.append(time.perf_counter())
            checksum(out)
            times.append(time.perf_counter())
            with replacing(tensor) as part, open(part, "wb") as file:
                file.write(memoryview(out).cast("B"))
            spent += np.diff(times + [time.perf_counter()])
        return list(spent / len(clips))

    return once


def opencv_alone(root: str, clips: List[Clip]) -> Side:
    """A round of what nobody can leave out: OpenCV's decoding and resizing of the distinct frames, from memory."""
    files: List[List[np.ndarray]] = []
    for clip in clips:
        names = [IMG.name(index) for index in sorted(set(frame_indices(clip.frames or 0, SSV2)))]
        files.append([np.fromfile(os.path.join(root, clip.source, name), np.uint8) for name in names])

    def once() -> List[float]:
        start = time.perf_counter()
        for clip in files:
            for data in clip:
                frame = cv2.imdecode(data, cv2.IMREAD_COLOR)
                assert frame is not None
                resized(frame, SSV2)
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
        answer = next((line for line in process.stdout or () if line.startswith("[")), None)  # torch, too, prints there
        if answer is None:
            raise UserError("%s: cannot run mmaction2's dataset; try %s %s" % (python, python, script))
        computing, writing = json.loads(answer)
        return [computing, 0.0, writing]

    try:
        yield {BASE: lambda: once("dataset"), "mmaction2 float32, DataLoader": lambda: once("loader")}
    finally:
        process.kill()
        process.wait()


def take_turns(sides: Dict[str, Side], rounds: int) -> Dict[str, Figures]:
    """{side: its figures} over rounds in which every side has its turn."""
    for once in sides.values():
        once()  # warm-up
    times: Dict[str, List[List[float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, once in sides.items():
            row = once()
            times[name].append([sum(row)] + row)
    figures = {}
    for name, rows in times.items():
        ratios = [0.0, 0.0]
        if BASE in times:
            ratios = [median(base[part] / row[part] for base, row in zip(times[BASE], rows)) for part in (0, 1)]
        figures[name] = Figures(*[1000 * median(part) for part in zip(*rows)] + ratios)
    return figures


def show(title: str, figures: Dict[str, Figures]) -> None:
    print("\n| %s | sum, ms | times mmaction2 | computing | checksum | writing | times mmaction2, computing alone |" % title)
    print("|---|---|---|---|---|---|---|")
    for name, row in figures.items():
        in_sum, alone = ("%.1f" % ratio if ratio else "-" for ratio in (row.times_in_sum, row.times_in_computing))
        print("| %s | %.1f | %s | %.1f | %.1f | %.1f | %s |"
              % (name, row.sum, in_sum, row.computing, row.checksum, row.writing, alone), flush=True)


def two_workers(root: str, ann_file: str, folder: str, rounds: int) -> Dict[str, float]:
    """Median seconds of the whole script, uint8, with one worker and with two; and of a run that finds all done."""
    with open(ann_file) as file:
        lines = file.readlines()
    many = ann_file + ".many"
    with open(many, "w") as file:
        file.writelines((lines * 200)[:200])
    times: Dict[str, List[float]] = {"1 worker": [], "2 workers": [], "nothing to do": []}
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
    figures: Dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=args.work_dir) as work:
        folder = os.path.join(work, "tensors")
        os.makedirs(folder)
        videos = os.path.join(work, "videos.txt")
        with open(videos, "w") as file:
            file.writelines("%s 0\n" % name for name in sorted(os.listdir(VIDEOS))[: args.clips])
        kinds: List[Tuple[str, str, str]] = [
            ("45 frames of 427x240", "rawframes", make_clips(os.path.join(work, "wide"), 427, 240, 45, args.clips)),
            ("45 frames of 256x256", "rawframes", make_clips(os.path.join(work, "square"), 256, 256, 45, args.clips)),
            ("8 frames of 427x240", "rawframes", make_clips(os.path.join(work, "short"), 427, 240, 8, args.clips)),
            ("demo videos, %s" % VIDEO_DECODER, "video", videos),
        ]
        os.sched_setaffinity(0, {min(processors)})  # this process and the reference's: the same core
        for title, kind, ann_file in kinds:
            root, clips = VIDEOS if kind == "video" else os.path.dirname(ann_file), read_list(ann_file, SSV2)
            sides = {"ours float32": ours(root, clips, "float32", folder), "ours uint8": ours(root, clips, "uint8", folder)}
            if kind == "video":
                sides["ours uint8, frames extracted first"] = ours(root, clips, "uint8", folder, extract_first=True)
            else:
                sides["decoding and resizing alone"] = opencv_alone(root, clips)
            with contextlib.ExitStack() as stack:
                if args.reference_python:
                    theirs = stack.enter_context(reference(args.reference_python, kind, root, ann_file, folder))
                    sides = dict(theirs, **sides)
                rows = take_turns(sides, args.rounds)
            show(title, rows)
            figures[title] = {name: row._asdict() for name, row in rows.items()}
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

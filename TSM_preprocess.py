#!/usr/bin/env python3
"""Videos or extracted frames -> the tensors TSM is evaluated on, with a manifest; equal to mmaction2's to the bit.

    python3 TSM_preprocess.py --data_root rawframes --ann_file sthv2_val_list_rawframes.txt --output_dir sthv2 \\
        --batch_size 1

The list's lines are `<frame folder> <frames> <label>` (frames img_00001.jpg, …) or `<video> <label>`; their columns tell.
Per video 48 images: 3 crops x (8 middles + 8 starts of the segments), short side 256, RGB. Output, in --output_dir:

  preprocess_bin/<i>.bin   48 x 3 x 256 x 256, float32 normalised (37.7 MB) or uint8 as it is (9.4 MB); i is the line
  sthv2.info               `<i> <label>` per line
  sthv2.json               the manifest: protocol, versions, and per tensor its source, length and SHA-256

One file per video serves every batch size. A tensor is right when the manifest or the journal of an interrupted run knows
it by the same list line, source (size and time of change), protocol and decoder versions, and its checksum agrees: those
are not made again. An unreadable video ends the run with its line; --on-error skip lists it in the manifest instead.

Frames are decoded by OpenCV, as mmaction2's RawFrameDecode does, and give its tensors bit for bit. Videos are decoded by
decord (OpenCV where it has no wheel): the pixels are the decoder's, the rest is the same.
"""

import argparse
import collections
import ctypes
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Deque, Dict, Iterator, List, NamedTuple, Optional, Tuple

import cv2
import numpy as np

from tsm import __version__
from tsm.cli import UserError, non_negative, parser, positive, run
from tsm.files import locked, replacing, sha256, write_json, write_text
from tsm.protocol import (CROPS, MEAN, SAMPLES, SEGMENTS, SIZE, STD, VIDEO_SHAPE, VIDEO_VALUES, Sample,
                          frame_indices, read_list, read_manifest)
from tsm.video import DecodeError, count_frames, decoder, decoder_complaints, frames_of, picture

FRAME_NAME = "img_%05d.jpg"
LARGEST = 1 << 27  # pixels of a frame; more is not a video clip


class Job(NamedTuple):
    """What a worker needs for one tensor. `known` is the entry of an earlier run, if it may still be right."""

    sample: Sample
    data_root: str
    path: str
    dtype: str
    key: str
    known: Optional[Dict[str, Any]]


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--data_root", required=True, metavar="DIR", help="folder that the list's names are relative to")
    cli.add_argument("--ann_file", required=True, metavar="FILE", help="the list, of TSM_dataset.py or mmaction2")
    cli.add_argument("--output_dir", default="sthv2", metavar="DIR", help="default: %(default)s")
    cli.add_argument("--batch_size", type=positive, default=1, help="accepted, as in the guide; the tensors are the same")
    cli.add_argument("--num_worker", type=positive, default=len(os.sched_getaffinity(0)), metavar="N",
                     help="processes (default: one per processor)")
    cli.add_argument("--dtype", choices=("float32", "uint8"), default="float32", help="uint8 is a quarter of the size; the "
                     "model takes it through modify_onnx.py --input_dtype uint8 (default: %(default)s)")
    cli.add_argument("--on-error", choices=("fail", "skip"), default="fail", help="what an unreadable video does (default: "
                     "%(default)s)")
    cli.add_argument("--range", metavar="START:STOP", help="only the videos START to STOP - 1 of the list, from 0")
    args = cli.parse_args()
    if args.range:
        try:
            start, stop = (non_negative(word) for word in args.range.split(":"))
        except (ValueError, argparse.ArgumentTypeError):
            cli.error("--range %s: expected START:STOP" % args.range)
        args.range = range(start, stop)
    return args


def normalisation_table() -> np.ndarray:
    """float32 [3, 256]: what mmcv.imnormalize makes of each value of R, G and B.

    Its arithmetic, in OpenCV: float32 values minus float64 means, times float64 1 / std, where mean and std were float32
    before. In float64 from the start, a third of the values would differ in the last bit.
    """
    values = np.repeat(np.arange(256, dtype=np.float32)[:, None, None], 3, 2)
    mean, std = (np.float64(np.float32(numbers)).reshape(1, -1) for numbers in (MEAN, STD))
    cv2.subtract(values, mean, values)
    cv2.multiply(values, 1 / std, values)
    return np.ascontiguousarray(values[:, 0].T)


def resized_planes(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> planes uint8 [3, h, w], the short side 256 (mmcv.imrescale, bilinear)."""
    height, width = image.shape[:2]
    if height * width > LARGEST or min(height, width) * 64 < max(height, width):
        raise DecodeError("a frame of %d x %d pixels" % (width, height))
    scale = SIZE / min(height, width)
    image = cv2.resize(image, (int(width * scale + 0.5), int(height * scale + 0.5)), interpolation=cv2.INTER_LINEAR)
    return np.stack(cv2.split(image))


def crop_offsets(height: int, width: int) -> List[Tuple[int, int]]:
    """(top, left) of mmaction2's ThreeCrop: both ends of the long side, then its middle."""
    step = (max(height, width) - SIZE) // 2
    places = (0, 2 * step, step)
    return [(0, place) for place in places] if height == SIZE else [(place, 0) for place in places]


def decoded(job: Job) -> Iterator[Tuple[List[int], np.ndarray]]:
    """(places among the 16 sampled frames, planes RGB uint8 [3, h, w]) for each distinct frame of a video."""
    source = os.path.join(job.data_root, job.sample.source)
    count = job.sample.frames or count_frames(source)
    places = collections.defaultdict(list)  # type: Dict[int, List[int]]
    for place, index in enumerate(frame_indices(count)):
        places[int(index)].append(place)
    if job.sample.frames is None:
        images = frames_of(source, places)
    else:
        check_frames(source, count)
        images = ((index, picture(os.path.join(source, FRAME_NAME % (index + 1)))) for index in sorted(places))
    size = None
    for index, image in images:
        if size not in (None, image.shape):
            raise DecodeError("frame %d is %d x %d pixels, earlier ones %d x %d"
                              % (index + 1, image.shape[1], image.shape[0], size[1], size[0]))  # type: ignore
        size = image.shape
        planes = resized_planes(image)
        yield places[index], planes if job.sample.frames is None else planes[::-1]  # pictures come as BGR


def check_frames(folder: str, count: int) -> None:
    """DecodeError unless `folder` has img_00001.jpg to img_<count>.jpg and is not numbered from 0."""
    try:
        names = set(os.listdir(folder))
    except OSError as error:
        raise DecodeError(error.strerror or str(error))
    if FRAME_NAME % 0 in names:
        raise DecodeError("its frames are numbered from 0, where the protocol's first is %s" % (FRAME_NAME % 1))
    for number in range(1, count + 1):
        if FRAME_NAME % number not in names:
            raise DecodeError("%s is missing of %d frames" % (FRAME_NAME % number, count))


def tensor(job: Job, out: np.ndarray, table: np.ndarray) -> None:
    """Fill `out`, uint8 or float32 VIDEO_SHAPE, with a video's 48 images; every distinct frame is worked on once."""
    images = out.reshape((CROPS, SAMPLES * SEGMENTS) + out.shape[1:])
    for places, planes in decoded(job):
        offsets = crop_offsets(*planes.shape[1:])
        if out.dtype == np.float32:
            planes = np.stack([cv2.LUT(plane, values) for plane, values in zip(planes, table)])
        for crop, (top, left) in enumerate(offsets):
            first = images[crop, places[0]]
            first[:] = planes[:, top : top + SIZE, left : left + SIZE]
            for place in places[1:]:
                images[crop, place] = first


def start_worker() -> None:
    """One OpenCV thread each, one reused buffer, no answer to Ctrl-C, and no life after the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    cv2.setNumThreads(1)
    global _table, _buffers
    _table, _buffers = normalisation_table(), {}


def work(job: Job) -> Tuple[Dict[str, Any], Tuple[float, float, float]]:
    """In a worker: (the manifest entry, or {"reason"} of a failure; seconds of computing, hashing and writing)."""
    known = job.known
    if known and os.path.exists(job.path) and os.path.getsize(job.path) == known["bytes"]:
        if sha256(job.path) == known["sha256"]:
            return known, (0.0, 0.0, 0.0)
    if job.dtype not in _buffers:
        _buffers[job.dtype] = np.empty(VIDEO_SHAPE, job.dtype)
    out, start = _buffers[job.dtype], time.perf_counter()
    try:
        with decoder_complaints() as complaints:
            tensor(job, out, _table)
        if complaints:
            raise DecodeError("its decoder complains: " + complaints[0])
    except DecodeError as error:
        return {"reason": str(error)}, (0.0, 0.0, 0.0)
    except cv2.error as error:
        return {"reason": "OpenCV refuses it: " + " ".join(str(error).split())[:120]}, (0.0, 0.0, 0.0)
    computed = time.perf_counter()
    digest = hashlib.sha256(out).hexdigest()
    hashed = time.perf_counter()
    with replacing(job.path) as part, open(part, "wb") as file:
        file.write(out)
    entry = {"id": job.sample.id, "source": job.sample.source, "label": job.sample.label,
             "file": "preprocess_bin/%d.bin" % job.sample.id, "bytes": out.nbytes, "sha256": digest, "key": job.key}
    return entry, (computed - start, hashed - computed, time.perf_counter() - hashed)


def key_of(sample: Sample, data_root: str, context: str) -> str:
    """What decides a tensor: the context (protocol, versions), the list line, and its sources' size and time of change."""
    source = os.path.join(data_root, sample.source)
    paths = [source]
    if sample.frames:
        paths += [os.path.join(source, FRAME_NAME % (index + 1)) for index in sorted(set(frame_indices(sample.frames)))]
    stats = []  # type: List[Any]
    for path in paths:
        try:
            found = os.stat(path)
            stats.append((found.st_size, found.st_mtime_ns))
        except OSError:
            stats.append(None)
    return hashlib.sha256(repr((context, sample, stats)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def known_entries(manifest_file: str, journal_file: str) -> Dict[int, Dict[str, Any]]:
    """The entries of the last finished run and of one that was interrupted after it, by id."""
    known = {}  # type: Dict[int, Dict[str, Any]]
    try:
        known.update((entry["id"], entry) for entry in read_manifest(manifest_file)["samples"])
    except (FileNotFoundError, UserError):
        pass  # nothing is known to be right
    try:
        with open(journal_file, "rb") as file:
            for line in file:
                try:
                    entry = json.loads(line.decode())
                    known[entry["id"]] = entry
                except (ValueError, KeyError, TypeError):
                    continue  # the line that a kill cut short
    except FileNotFoundError:
        pass
    return {number: entry for number, entry in known.items() if {"key", "bytes", "sha256"} <= set(entry)}


def results(jobs: Iterator[Job], workers: int) -> Iterator[Tuple[Job, Dict[str, Any], Tuple[float, float, float]]]:
    """(job, entry, seconds) for every job, in order, made by `workers` processes with a few jobs waiting."""
    pool = ProcessPoolExecutor(workers, initializer=start_worker)
    waiting = collections.deque()  # type: Deque[Any]
    try:
        for job in jobs:
            waiting.append((job, pool.submit(work, job)))
            if len(waiting) > 3 * workers:
                done, future = waiting.popleft()
                yield (done,) + future.result()
        while waiting:
            done, future = waiting.popleft()
            yield (done,) + future.result()
    except BrokenProcessPool:
        raise UserError("a worker was killed, perhaps for want of memory; run again with a smaller --num_worker")
    finally:
        for _, future in waiting:
            future.cancel()
        pool.shutdown()


def clean(folder: str, ids: range) -> int:
    """Remove temporaries, and tensors that this run's list does not have; how many of the latter."""
    removed = 0
    for name in os.listdir(folder):
        stem, suffix = os.path.splitext(name)
        if name.startswith(".") and suffix == ".part":
            os.remove(os.path.join(folder, name))
        elif suffix == ".bin" and stem.isdigit() and int(stem) not in ids:
            os.remove(os.path.join(folder, name))
            removed += 1
    return removed


def check_space(folder: str, samples: List[Sample], size: int) -> None:
    """UserError where the disk cannot hold the tensors that are still missing."""
    missing = sum(not os.path.exists(os.path.join(folder, "%d.bin" % sample.id)) for sample in samples)
    free = shutil.disk_usage(folder).free
    if missing * size > free:
        raise UserError("%s: %d tensors need %.1f GB, %.1f GB are free; free some, or use --dtype uint8, or run_all.sh "
                        "--chunk" % (folder, missing, missing * size / 1e9, free / 1e9))


def main() -> None:
    args = get_args()
    samples = list(read_list(args.ann_file))
    total = len(samples)
    if args.range:
        samples = samples[args.range.start : args.range.stop]
        if not samples:
            raise UserError("--range %d:%d: the list has %d videos" % (args.range.start, args.range.stop, total))
    if not os.path.isdir(args.data_root):
        raise UserError("%s: no such folder; --data_root is where the list's names are" % args.data_root)
    folder = os.path.join(args.output_dir, "preprocess_bin")
    os.makedirs(folder, exist_ok=True)
    with locked(args.output_dir):
        preprocess(args, samples, total, folder)


def preprocess(args: argparse.Namespace, samples: List[Sample], total: int, folder: str) -> None:
    """Make, check and list the tensors of `samples` in `folder`."""
    from tqdm import tqdm

    manifest_file, journal_file = (os.path.join(args.output_dir, name) for name in ("sthv2.json", ".journal"))
    removed = clean(folder, range(samples[0].id, samples[-1].id + 1))
    if removed:
        print("removed %d tensors that are not in this list" % removed)
    size = VIDEO_VALUES * np.dtype(args.dtype).itemsize
    check_space(folder, samples, size)
    protocol = {"crops": CROPS, "samples": SAMPLES, "segments": SEGMENTS, "size": SIZE, "mean": MEAN, "std": STD,
                "dtype": args.dtype, "layout": "NCHW", "shape": VIDEO_SHAPE}
    frames = samples[0].frames is not None
    versions = {"suite": __version__, "opencv": cv2.__version__, "decoder": "opencv" if frames else decoder()}
    context = json.dumps([protocol, versions])
    known = known_entries(manifest_file, journal_file)

    def jobs() -> Iterator[Job]:
        for sample in samples:
            key = key_of(sample, args.data_root, context)
            entry = known.get(sample.id)
            yield Job(sample, args.data_root, os.path.join(folder, "%d.bin" % sample.id), args.dtype, key,
                      entry if entry and entry["key"] == key else None)

    entries, skipped, seconds, made = [], [], np.zeros(3), 0  # type: List[Any], List[Any], np.ndarray, int
    with open(journal_file, "a") as journal:
        for job, entry, spent in tqdm(results(jobs(), args.num_worker), total=len(samples), unit="video", disable=None):
            if "reason" in entry:
                if os.path.exists(job.path):
                    os.remove(job.path)
                where = "%s, line %d: %s" % (args.ann_file, job.sample.line, job.sample.source)
                if args.on_error == "fail":
                    raise UserError("%s: %s; mend or remove it, or use --on-error skip" % (where, entry["reason"]))
                sys.stderr.write("skipped: %s: %s\n" % (where, entry["reason"]))
                skipped.append({"id": job.sample.id, "line": job.sample.line, "source": job.sample.source,
                                "reason": entry["reason"]})
                continue
            entries.append(entry)
            if entry is not job.known and sum(spent):
                journal.write(json.dumps(entry) + "\n")
                journal.flush()
                seconds += spent
                made += 1
    if not entries:
        raise UserError("%s: none of its %d videos can be read" % (args.ann_file, len(samples)))
    write_json(manifest_file, {
        "protocol": protocol, "versions": versions,
        "list": {"file": os.path.basename(args.ann_file), "sha256": sha256(args.ann_file), "videos": total},
        "samples": entries, "skipped": skipped,
    })
    write_text(os.path.join(args.output_dir, "sthv2.info"),
               "".join("%d %d\n" % (entry["id"], entry["label"]) for entry in entries))
    os.remove(journal_file)
    print("%d tensors of %.1f MB in %s: %d made, %d already right, %d skipped" % (
        len(entries), size / 1e6, folder, made, len(entries) - made, len(skipped)))
    if made:
        print("ms per video and worker: %.1f computing, %.1f checksum, %.1f writing" % tuple(1000 * seconds / made))


if __name__ == "__main__":
    run(main)

#!/usr/bin/env python3
"""The tensors of TSM's test protocol from an annotation list and its videos or extracted frames.

    python3 TSM_preprocess.py --data_root demo/videos --ann_file sthv2_val_list_videos.txt --num_worker 2

Reads lists of videos (`<file> <label>`) and of extracted frames (`<folder> <frames> <label>`, img_%05d.jpg), and writes

    OUT/preprocess_bin/<i>.bin   the i-th clip of the list, 48x3x256x256 = (3 crops x 2 samples x 8 segments) NCHW, RGB:
                                 float32, normalised (37.7 MB), or uint8, 0..255 (9.4 MB; the model then normalises:
                                 modify_onnx.py --input_dtype uint8)
    OUT/sthv2.info               `<i> <label>` per clip
    OUT/sthv2.json               the manifest: protocol, versions, length and SHA-256 of each tensor, what was skipped

float32 is bit for bit what mmaction2 0.24.1 computes. Only the 16 frames that count are decoded, each once.

Run again, it makes what is missing or out of date: a tensor is kept while its clip's files (size and time of change), the
protocol, the decoder's version and the file itself are what they were. It may be killed at any time; sthv2.json is
written last. A clip that a decoder cannot read, or reads only by making something up, ends the run, or with
--on-error skip is left out and listed in the manifest.

Limits: a flipped bit that still decodes without a complaint cannot be told; power loss is not guarded against (no fsync).
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from typing import Any, Container, Dict, Iterator, List, NamedTuple, Optional, Tuple

import cv2
import numpy as np

from tsm import __version__
from tsm.cli import Corrupt, UserError, parser, positive, run
from tsm.files import locked, replacing, sha256, write_json, write_text
from tsm.frames import VIDEO_DECODER, Frame, check_folder_of_frames, read_jpegs, read_video, strict
from tsm.machine import cores
from tsm.protocol import CROPS_3 as CROPS
from tsm.protocol import MEAN, SAMPLES, SEGMENTS, SIZE, SSV2, STD, VIDEO_SHAPE, VIDEO_VALUES, crop_boxes, frame_indices
from tsm.samples import Clip, read_list
from tsm.workers import each

REVISION = 1  # to be raised with any change of this script that changes a tensor: the old ones are then made again
TENSOR, UNFINISHED = r"(0|[1-9]\d*)\.bin", r"\.(\d+)\.bin\.part"  # names in preprocess_bin; any other is not ours


class Made(NamedTuple):
    """A line of the journal: tensor `index`, made from what `key` stands for, has this checksum and time of change (ns)."""

    index: int
    key: str
    sha256: str
    mtime: int


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--data_root", required=True, metavar="DIR", help="the folder that the list's paths start from")
    cli.add_argument("--ann_file", required=True, metavar="FILE", help="the list, as TSM_dataset.py makes it")
    cli.add_argument("--output_dir", default="sthv2", metavar="OUT", help="default: %(default)s")
    cli.add_argument("--batch_size", type=positive, default=1, metavar="B", help="accepted as in the guide: one file per "
                     "clip serves every batch size")
    cli.add_argument("--num_worker", type=positive, default=cores(), metavar="N", help="processes (default: one per core)")
    cli.add_argument("--dtype", choices=("float32", "uint8"), default="float32", help="default: %(default)s")
    cli.add_argument("--on-error", choices=("fail", "skip"), default="fail", help="what an unreadable clip does (default: "
                     "%(default)s)")
    cli.add_argument("--range", type=span, metavar="START:STOP", help="only clips START to STOP-1 of the list; they keep "
                     "their numbers")
    return cli.parse_args()


def span(text: str) -> slice:
    match = re.match(r"(\d{1,9}):(\d{1,9})$", text)
    if not match or int(match.group(1)) >= int(match.group(2)):
        raise argparse.ArgumentTypeError("%r is not START:STOP with START < STOP" % text)
    return slice(int(match.group(1)), int(match.group(2)))


def normalisation() -> np.ndarray:
    """Normalised value of every byte, float32 [3, 256], R G B.

    mmcv.imnormalize_ on each of the 256 values, with its roundings: mean and std go through float32, and OpenCV rounds
    to float32 after the subtraction and again after the multiplication.
    """
    values = np.arange(256, dtype=np.float32).reshape(1, 256)
    table = []
    for mean, std in zip(np.float32(MEAN), np.float32(STD)):
        row = cv2.subtract(values, np.float64([[mean]]))
        table.append(cv2.multiply(row, 1 / np.float64([[std]])))
    return np.concatenate(table)


def resized_size(width: int, height: int) -> Tuple[int, int]:
    """(width, height) with the short side SIZE, rounded as mmcv.rescale_size does."""
    scale = SIZE / min(width, height)
    return int(width * scale + 0.5), int(height * scale + 0.5)


def compute(frames: Iterator[Frame], indices: List[int], bgr: bool, table: Optional[np.ndarray], out: np.ndarray) -> None:
    """Fill `out` [48, 3, 256, 256] from the distinct frames uint8 [H, W, 3]; `indices` are the 16 of the protocol.

    What several views share is computed once per distinct frame: decoding, the resize, the split into planes. Per view
    there is only the copy of a crop, through the table for float32, which costs no more than copying floats.
    """
    views = out.reshape(CROPS, SAMPLES * SEGMENTS, 3, SIZE, SIZE)
    for index, frame in frames:
        height, width = frame.shape[:2]
        size = resized_size(width, height)
        planes = cv2.split(cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR))
        places = [place for place, wanted in enumerate(indices) if wanted == index]
        for channel, plane in enumerate(reversed(planes) if bgr else planes):
            for crop, (x, y) in enumerate(crop_boxes(size[0], size[1], SSV2)):
                pixels = plane[y : y + SIZE, x : x + SIZE]
                for place in places:
                    if table is None:
                        views[crop, place, channel] = pixels
                    else:
                        cv2.LUT(pixels, table[channel], views[crop, place, channel])


def fill(path: str, clip: Clip, table: Optional[np.ndarray], out: np.ndarray) -> None:
    """Fill `out` [48, 3, 256, 256] with the tensor of the clip at `path`; raises Corrupt."""
    with strict():
        if clip.frames is not None:
            check_folder_of_frames(path, clip.frames)
            indices = frame_indices(clip.frames, SSV2)
            return compute(read_jpegs(path, sorted(set(indices))), indices, True, table, out)
        indices = []

        def choose(count: int) -> List[int]:
            indices[:] = frame_indices(count, SSV2)
            return sorted(set(indices))

        compute(read_video(path, choose), indices, False, table, out)


def fingerprint(path: str, clip: Clip, basis: str) -> str:
    """Changes when the tensor might: hash of the basis (protocol, versions) and the clip's path, length, sizes and times."""
    files = [path]
    if clip.frames is not None:
        files = [os.path.join(path, "img_%05d.jpg" % (index + 1)) for index in sorted(set(frame_indices(clip.frames, SSV2)))]
    facts = [basis, clip.source, clip.frames]  # type: List[Any]
    for file in files:
        try:
            status = os.stat(file)
        except OSError as error:
            name = "" if file == path else os.path.basename(file) + ": "
            raise Corrupt(name + (error.strerror or str(error)).lower())
        facts.append((status.st_size, status.st_mtime_ns))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def read_journal(path: str) -> Dict[int, Made]:
    """{index: what was made}, the last entry per index; a line that was cut short by a kill is as if it were not there."""
    made = {}
    if os.path.exists(path):
        with open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                match = re.match(r"(\d+) ([0-9a-f]{64}) ([0-9a-f]{64}) (\d+)\n", line)
                if match:
                    index, key, digest, mtime = match.groups()
                    made[int(index)] = Made(int(index), key, digest, int(mtime))
    return made


def journal_line(made: Made) -> str:
    return "%d %s %s %d\n" % made


def is_intact(path: str, made: Made, size: int) -> bool:
    """Whether the tensor file is the one that the journal knows: by its size and time, or else by its checksum."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return False
    return status.st_size == size and (status.st_mtime_ns == made.mtime or sha256(path) == made.sha256)


def remove_matching(folder: str, pattern: str, keep: Container[int] = ()) -> None:
    """Remove the files whose whole name matches, unless the number in it is to be kept."""
    for name in os.listdir(folder):
        match = re.match(pattern + "$", name)
        if match and int(match.group(1)) not in keep:
            os.remove(os.path.join(folder, name))


def preprocess(args: argparse.Namespace) -> None:
    """Bring the output folder in line with the list."""
    from tqdm import tqdm

    clips = read_list(args.ann_file)
    chosen = dict(list(enumerate(clips))[args.range or slice(None)])
    if not chosen:
        raise UserError("--range %d:%d: the list has %d clips" % (args.range.start, args.range.stop, len(clips)))
    bins, journal_path = os.path.join(args.output_dir, "preprocess_bin"), os.path.join(args.output_dir, ".journal")
    info_path, manifest_path = (os.path.join(args.output_dir, "sthv2" + suffix) for suffix in (".info", ".json"))
    os.makedirs(bins, exist_ok=True)
    size = VIDEO_VALUES * np.dtype(args.dtype).itemsize
    protocol = {"crops": CROPS, "samples": SAMPLES, "segments": SEGMENTS, "size": SIZE, "mean": list(MEAN),
                "std": list(STD), "dtype": args.dtype, "layout": "NCHW", "shape": list(VIDEO_SHAPE)}
    versions = {"opencv": cv2.__version__}
    if clips[0].frames is None:
        versions["video decoder"] = VIDEO_DECODER
    basis = json.dumps([REVISION, protocol, versions])

    def tensor_path(index: int) -> str:
        return os.path.join(bins, "%d.bin" % index)

    def clip_path(clip: Clip) -> str:
        return os.path.join(args.data_root, clip.source)

    # What is already right, what is to be made, what cannot be.
    journal = read_journal(journal_path)
    done, keys, corrupt = {}, {}, {}  # type: Dict[int, Made], Dict[int, str], Dict[int, Corrupt]

    def refuse(index: int, error: Corrupt) -> None:
        if args.on_error == "fail":
            raise UserError("%s, line %d: %s: %s; mend the clip or its line, or leave it out by --on-error skip"
                            % (args.ann_file, chosen[index].line, chosen[index].source, error))
        corrupt[index] = error

    for index, clip in chosen.items():
        try:
            key = fingerprint(clip_path(clip), clip, basis)
        except Corrupt as error:
            refuse(index, error)
            continue
        old = journal.get(index)
        if old and old.key == key and is_intact(tensor_path(index), old, size):
            done[index] = old
        else:
            keys[index] = key
    kept = len(done)
    if keys:  # from here on the folder is unfinished, and must not look otherwise
        for path in (manifest_path, info_path):
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
    remove_matching(bins, TENSOR, keep=done)
    remove_matching(bins, UNFINISHED)
    write_text(journal_path, "".join(map(journal_line, done.values())))
    free, needed = shutil.disk_usage(bins).free, len(keys) * size
    if free < needed:
        raise UserError("%s: %.1f GB needed for %d clips, %.1f GB free; free some, use --dtype uint8 or --range, or choose "
                        "another --output_dir" % (args.output_dir, needed / 1e9, len(keys), free / 1e9))

    cv2.setNumThreads(1)  # the processes are the parallelism
    table = normalisation() if args.dtype == "float32" else None
    out = np.empty(VIDEO_SHAPE, args.dtype)  # each process fills its own copy, again and again
    journal_file = os.open(journal_path, os.O_WRONLY | os.O_APPEND)

    def make(index: int) -> Tuple[Made, List[float]]:
        times = [time.perf_counter()]
        fill(clip_path(chosen[index]), chosen[index], table, out)
        times.append(time.perf_counter())
        data = memoryview(out).cast("B")
        digest = hashlib.sha256(data).hexdigest()
        times.append(time.perf_counter())
        with replacing(tensor_path(index)) as part:
            with open(part, "wb") as file:
                file.write(data)
            made = Made(index, keys[index], digest, os.stat(part).st_mtime_ns)
            os.write(journal_file, journal_line(made).encode())  # before the move: a kill in between costs one tensor
        times.append(time.perf_counter())
        return made, times

    seconds = np.zeros(3)
    try:
        with contextlib.closing(each(make, keys, min(args.num_worker, max(1, len(keys))))) as results:
            for index, result in tqdm(results, total=len(keys), desc="preprocess", unit="clip", disable=None):
                if isinstance(result, Corrupt):
                    refuse(index, result)
                else:
                    done[index] = result[0]
                    seconds += np.diff(result[1])
    finally:
        os.close(journal_file)
        remove_matching(bins, UNFINISHED)
    if not done and not args.range:  # a part of the list may turn out empty
        raise UserError("%s: none of its %d clips could be read (line %d: %s)"
                        % (args.ann_file, len(chosen), chosen[min(corrupt)].line, corrupt[min(corrupt)]))

    write_text(info_path, "".join("%d %d\n" % (index, chosen[index].label) for index in sorted(done)))
    write_json(manifest_path, {
        "protocol": protocol,
        "versions": dict(versions, tsm=__version__),
        "list": {"file": os.path.basename(args.ann_file), "sha256": sha256(args.ann_file), "videos": len(clips)},
        "samples": [
            {"id": index, "source": chosen[index].source, "label": chosen[index].label,
             "file": "preprocess_bin/%d.bin" % index, "bytes": size, "sha256": done[index].sha256}
            for index in sorted(done)
        ],
        "skipped": [
            {"line": chosen[index].line, "source": chosen[index].source, "reason": str(corrupt[index])}
            for index in sorted(corrupt)
        ],
    })
    for index in sorted(corrupt):
        print("skipped: line %d, %s: %s" % (chosen[index].line, ascii(chosen[index].source)[1:-1], corrupt[index]))
    made = len(done) - kept
    print("%d tensors of %.1f MB in %s: %d made, %d already right, %d skipped"
          % (len(done), size / 1e6, bins, made, kept, len(corrupt)))
    if made:
        print("ms per video and worker: %.1f computing, %.1f checksum, %.1f writing" % tuple(1000 * seconds / made))


def main() -> None:
    args = get_args()
    if not os.path.isdir(args.data_root):
        raise UserError("%s: no such folder; --data_root is the folder that the list's paths start from" % args.data_root)
    os.makedirs(args.output_dir, exist_ok=True)
    with locked(args.output_dir):
        preprocess(args)


if __name__ == "__main__":
    run(main)

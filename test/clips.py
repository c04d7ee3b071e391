"""Small clips for the tests of preprocessing, made of the pictures in test/data; lists of the demo's clips for those of whole lists."""

import os
import shutil
import sys
from fractions import Fraction
from pathlib import Path

from tsm.protocol import SSV2

SMALL = SSV2._replace(short_side=64, size=64)  # a sixteenth of the pixels of Something-Something V2's test
DATA = Path(__file__).resolve().parent / "data"
VIDEOS = sorted(DATA.glob("*.webm"))
sys.path.insert(0, str(DATA))

from golden import clip_of  # noqa: E402


def linked(folder, count, shape="landscape", frames=8):
    """A data root of `count` links to one clip, and its list; returns (root, list)."""
    root, ann_file = folder / "root", folder / "list.txt"
    clip_of(shape, frames, str(root / "clip"))
    for number in range(count):
        os.symlink("clip", str(root / ("c%d" % number)))
    ann_file.write_text("".join("c%d %d %d\n" % (number, frames, number % 174) for number in range(count)))
    return root, ann_file


def contents(output_dir):
    """{name: bytes} of all that a run leaves, the journal (which holds times) apart."""
    return {str(path.relative_to(str(output_dir))): path.read_bytes()
            for path in sorted(output_dir.rglob("*")) if path.is_file() and path.name != ".journal"}


def times(output_dir):
    """{tensor file: its time of change, ns}."""
    return {path.name: path.stat().st_mtime_ns for path in (output_dir / "preprocess_bin").glob("*.bin")}


def listed(folder, model, clips):
    """A list of links to the demo's clips, label 0, 1, 2, …, and a copy of a model, in a folder; the folder."""
    (folder / "videos").mkdir(parents=True)
    found = sorted((DATA.parent.parent / "demo/videos").iterdir())
    for number in range(clips):
        os.symlink(str(found[number % len(found)]), str(folder / "videos" / ("%d.webm" % number)))
    (folder / "list.txt").write_text("".join("%d.webm %d\n" % (number, number) for number in range(clips)))
    shutil.copy(str(model), str(folder / "new.onnx"))
    return folder


def arguments(*more):
    """The arguments of TSM_stream.py for listed()."""
    return ["--model", "new.onnx", "--data_root", "videos", "--ann_file", "list.txt", "--output", "res", "--outfmt", "TXT",
            "--backend", "onnxruntime"] + [str(word) for word in more]


def results(folder):
    """{name: bytes} of the result files, the info file and the manifest that arguments() ask for."""
    paths = [path for top in ("res/out", "sthv2") for path in sorted((folder / top).iterdir()) if path.name[0] != "."]
    return {str(path.relative_to(str(folder))): path.read_bytes() for path in paths}


def copy_of(folder, copy):
    """A copy of a run's folder that a test may change, its tensors apart, which are links to the same files; the copy."""

    def put(one, other):
        return (os.link if one.endswith(".bin") else shutil.copy2)(one, other)

    shutil.copytree(str(folder), str(copy), copy_function=put)
    return copy


def filmed(path, pictures, starts=10, codec="mpeg4", sound=None, pix_fmt="yuv420p", options=None):
    """A video of pictures, RGB uint8 [H, W, 3], by PyAV: at a rate, or when `starts` says, in seconds, and last that the last one ends.

    `sound` is a codec: a tone as long as the video.
    """
    import av
    import numpy as np

    pictures = list(pictures)
    unit = Fraction(1, starts if isinstance(starts, int) else 1000)
    starts = np.arange(len(pictures) + 1) / starts if isinstance(starts, int) else np.asarray(starts)
    ticks, written = np.round(starts / float(unit)).astype(int), 0
    with av.open(str(path), "w") as film:
        track = film.add_stream(codec, options=dict({"bf": "0"}, **(options or {})))
        track.height, track.width, track.pix_fmt = pictures[0].shape[0], pictures[0].shape[1], pix_fmt
        track.time_base = track.codec_context.time_base = unit
        heard = film.add_stream(sound, rate=48000) if sound else None
        for number, picture in enumerate(pictures + [None]):
            frame = None
            if picture is not None:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts, frame.time_base = int(ticks[number]), unit
            for packet in track.encode(frame):
                packet.duration = int(ticks[written + 1] - ticks[written])
                written += 1
                film.mux(packet)
        for start in range(0, int(starts[-1] * 48000), 1024) if sound else ():
            count = min(1024, int(starts[-1] * 48000) - start)
            wave = np.sin(np.arange(start, start + count) / 10).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
            film.mux(heard.encode(frame))
        if sound:
            film.mux(heard.encode())

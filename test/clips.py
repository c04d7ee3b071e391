"""Small clips for the tests of preprocessing, made of the pictures in test/data; lists of the demo's clips for those of whole lists."""

import os
import shutil
import sys
from pathlib import Path

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

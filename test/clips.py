"""Small clips for the tests of preprocessing, made of the pictures in test/data."""

import os
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

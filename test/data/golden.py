"""Writes golden.json: SHA-256 of the float32 tensors that mmaction2 itself makes of the frames and videos here.

    /path/to/python3.7 test/data/golden.py [--check]

For the reference stack (Python 3.7, mmaction2 0.24.1, OpenCV 4.5.3, decord 0.6.0). --check compares instead of writing.
A clip of n frames repeats the stored pictures of its shape, as clip_of() says; test_preprocess.py builds the same.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
REPO = os.path.dirname(os.path.dirname(HERE))
SHAPES = ("landscape", "square", "portrait", "wide256", "odd")  # wide256 is exactly 256 wide: its crops differ in height only
LENGTHS = (1, 7, 8, 15, 300)
VIDEOS = ("video_a.webm", "video_b.webm", "video_c.webm")
PICTURES = 12


def clip_of(shape, length, folder):
    """Make `folder` a clip of `length` frames of a shape."""
    os.makedirs(folder)
    for number in range(length):
        shutil.copy(os.path.join(HERE, "%s_%02d.jpg" % (shape, (number * 5 + length) % PICTURES)),
                    os.path.join(folder, "img_%05d.jpg" % (number + 1)))


def hashes(kind, root, lines):
    """mmaction2's SHA-256 per line of a list."""
    with tempfile.NamedTemporaryFile("w") as ann_file:
        ann_file.write("\n".join(lines) + "\n")
        ann_file.flush()
        done = subprocess.run(
            [sys.executable, os.path.join(REPO, "bench", "mmaction2_dataset.py"), kind, root, ann_file.name, root],
            input="sha256\n", stdout=subprocess.PIPE, universal_newlines=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    clips = ["%s_%d" % (shape, length) for shape in SHAPES for length in LENGTHS]
    with tempfile.TemporaryDirectory() as root:
        for name in clips:
            clip_of(name.split("_")[0], int(name.split("_")[1]), os.path.join(root, name))
        golden = dict(zip(clips, hashes("rawframes", root, ["%s %s 0" % (name, name.split("_")[1]) for name in clips])))
    golden.update(zip(VIDEOS, hashes("video", HERE, [name + " 0" for name in VIDEOS])))
    path = os.path.join(HERE, "golden.json")
    if "--check" in sys.argv:
        with open(path) as file:
            stored = json.load(file)
        wrong = sorted(name for name in golden if golden[name] != stored.get(name))
        sys.exit("differ from mmaction2: " + ", ".join(wrong) if wrong else None)
    with open(path, "w") as file:
        file.write(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""TSM_preprocess.py killed, starved and misled: what is right is kept, what is not is made again, nothing is half there.

TSM_KILLS=100 and TSM_MEMORY=2000 (./test/run.sh --full) run the kill and the memory test in full size.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from clips import VIDEOS, clip_of, contents, linked, times
from processes import LONGEST, children_of, ran, started, wait_for

from tsm.files import locked
from tsm.infer.preprocess import read_made
from tsm.protocol import SSV2

KILLS = int(os.environ.get("TSM_KILLS", 2))
MEMORY = int(os.environ.get("TSM_MEMORY", 600))


@pytest.fixture
def start(repo, tmp_path):
    """start(*arguments) -> a running TSM_preprocess.py."""

    def start(*args, **options):
        return started(sys.executable, repo / "TSM_preprocess.py", *args, cwd=tmp_path, **options)

    return start


def arguments(root, ann_file, output_dir="out"):
    return ["--data_root", root, "--ann_file", ann_file, "--output_dir", output_dir, "--dtype", "uint8", "--num_worker", 2]


def counts(stdout):
    """(made, already right, skipped), from what the script prints."""
    return tuple(int(number) for number in re.search(r"(\d+) made, (\d+) already right, (\d+) skipped", stdout).groups())


def finished(output_dir):
    """{tensor: time of change} of the tensors that the journal knows to be right."""
    there = times(output_dir)
    known = {("%d.bin" % made.number, made.mtime) for made in read_made(str(output_dir)).values()}
    return {name: stamp for name, stamp in there.items() if (name, stamp) in known}


def test_killed_again_and_again_it_ends_with_the_same_bytes(works, start, tmp_path):
    root, ann_file = linked(tmp_path, 24)
    begin = time.monotonic()
    works("TSM_preprocess.py", *arguments(root, ann_file, "undisturbed"), cwd=tmp_path, process=True)
    duration = time.monotonic() - begin
    expected, out = contents(tmp_path / "undisturbed"), tmp_path / "out"
    chance, kills, kept = random.Random(0), 0, {}
    while kills < KILLS:
        process = start(*arguments(root, ann_file))
        try:
            process.wait(chance.uniform(0.3, 1.0) * duration)
        except subprocess.TimeoutExpired:
            children = children_of(process.pid)
            process.kill()
            kills += 1
            wait_for(lambda: not any(os.path.exists("/proc/%d" % child) for child in children), "the workers' end")
        process.communicate()
        if (out / ".journal").exists():
            now = finished(out)
            assert all(now.get(name) == stamp for name, stamp in kept.items()), "a right tensor was made again"
            kept = now
        if process.returncode == 0:  # nothing left to disturb: begin anew with some tensors gone
            assert contents(out) == expected
            for name in chance.sample(sorted(kept), 16):
                (out / "preprocess_bin" / name).unlink()
                del kept[name]
    works("TSM_preprocess.py", *arguments(root, ann_file), cwd=tmp_path)
    assert contents(out) == expected
    assert all(times(out)[name] == stamp for name, stamp in kept.items())


def test_changes_invalidate_what_they_must_and_nothing_else(works, tmp_path):
    for number in range(4):
        clip_of("odd", 20 + number, str(tmp_path / "root" / ("c%d" % number)))
    lines = ["c%d %d %d" % (number, 20 + number, number) for number in range(4)]
    out = tmp_path / "out"

    def again(*options):
        (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
        before = times(out) if out.exists() else {}
        printed = works("TSM_preprocess.py", *arguments("root", "list.txt"), *options, cwd=tmp_path)
        after = times(out)
        remade = sorted(int(name[:-4]) for name in after if before.get(name) != after[name])
        assert counts(printed)[:2] == (len(remade), len(after) - len(remade))
        return remade

    assert again() == [0, 1, 2, 3]
    assert again() == []
    os.utime(str(tmp_path / "root/c1/img_00001.jpg"), (1, 1))
    assert again() == [1]
    os.utime(str(tmp_path / "root/c3/img_00023.jpg"), (1, 1))  # the last frame: not one of the 16 that count
    assert again() == []
    lines[2] = "c2 22 99"  # the label is not in the tensor
    assert again() == [] and "2 99\n" in (out / "sthv2.info").read_text()
    lines[0], lines[1] = lines[1], lines[0]
    assert again() == [0, 1]
    lines.pop()
    assert again() == [] and sorted(times(out)) == ["0.bin", "1.bin", "2.bin"]
    with open(str(out / "preprocess_bin/1.bin"), "r+b") as tensor:
        tensor.write(b"\1\2\3")
    assert again() == [1]
    os.utime(str(out / "preprocess_bin/2.bin"), (1, 1))  # touched, but its checksum is right
    assert again() == []
    (out / "preprocess_bin/.2.bin.part").write_bytes(b"a killed run's")
    (out / "preprocess_bin/0.bin").unlink()
    assert again() == [0] and sorted(os.listdir(str(out / "preprocess_bin"))) == ["0.bin", "1.bin", "2.bin"]
    assert again("--dtype", "float32") == [0, 1, 2]


def test_what_no_pixel_depends_on_makes_no_tensor_again(works, tmp_path):
    """Classes and shift; of uint8 also the colours, as its model normalises. The manifest follows."""
    root, ann_file = linked(tmp_path, 2)
    args = arguments(root, ann_file) + ["--protocol", tmp_path / "p.json"]

    def again(made, **changes):
        (tmp_path / "p.json").write_text(json.dumps(SSV2._replace(**changes)._asdict()))
        assert counts(works("TSM_preprocess.py", *args, cwd=tmp_path)) == (made, 2 - made, 0)
        found = json.loads((tmp_path / "out/sthv2.json").read_text())["protocol"]
        assert all(found[name] == value for name, value in changes.items())

    again(2)
    again(0, classes=400)
    again(0, classes=10, shift_div=4)
    again(0, mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])
    again(2, size=224)
    args.extend(["--dtype", "float32"])
    again(2, size=224, classes=10)
    again(0, size=224)
    again(2, size=224, mean=[1.0, 2.0, 3.0])


def test_videos_too_are_made_once_and_other_versions_make_everything_anew(works, patched, tmp_path):
    (tmp_path / "list.txt").write_text("".join(path.name + " 0\n" for path in VIDEOS))
    args = arguments(VIDEOS[0].parent, "list.txt")
    for made in (3, 0):
        assert counts(works("TSM_preprocess.py", *args, cwd=tmp_path)) == (made, 3 - made, 0)
    other = patched("TSM_preprocess.py", "import cv2; cv2.__version__ = '0'")
    assert counts(works(other, *args, cwd=tmp_path)) == (3, 0, 0)


def test_the_second_of_two_runs_stops_at_once(fails, tmp_path):
    root, ann_file = linked(tmp_path, 1)
    (tmp_path / "out").mkdir()
    with locked(str(tmp_path / "out")):
        assert "another run is at work" in fails("TSM_preprocess.py", *arguments(root, ann_file), cwd=tmp_path)


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_leaves_no_worker_and_goes_on(works, start, tmp_path, number, status):
    root, ann_file = linked(tmp_path, 120)
    process = start(*arguments(root, ann_file))
    wait_for(lambda: (tmp_path / "out/preprocess_bin").exists() and len(times(tmp_path / "out")) > 3,
             "four tensors", process)
    children = children_of(process.pid)
    process.send_signal(number)
    errors = process.communicate(timeout=LONGEST)[1].splitlines()
    assert process.returncode == status
    assert len(errors) == 1 and "interrupted" in errors[0]
    wait_for(lambda: not any(os.path.exists("/proc/%d" % child) for child in children), "the workers' end")
    assert len(children) == 2 and not (tmp_path / "out/sthv2.json").exists()
    made, kept, _ = counts(works("TSM_preprocess.py", *arguments(root, ann_file), cwd=tmp_path))
    assert kept > 3 and made + kept == 120


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB, room for two tensors."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.call(["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(folder)], stderr=subprocess.DEVNULL):
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.check_call(["umount", str(folder)])


def test_a_disk_that_is_too_small_or_read_only_is_told_before_any_work(fails, small_disk, tmp_path):
    root, ann_file = linked(tmp_path, 3)
    line = fails("TSM_preprocess.py", *arguments(root, ann_file, small_disk), cwd=tmp_path)
    assert "GB free" in line and not times(small_disk)
    subprocess.check_call(["mount", "-o", "remount,ro", str(small_disk)])
    assert "Read-only file system" in fails("TSM_preprocess.py", *arguments(root, ann_file, small_disk / "out"), cwd=tmp_path)


def test_a_disk_that_fills_up_ends_in_one_line_and_the_next_run_goes_on(works, fails, patched, small_disk, tmp_path):
    root, ann_file = linked(tmp_path, 2)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(10 << 20))
    blind = patched("TSM_preprocess.py", "import shutil, types; shutil.disk_usage = lambda path: types.SimpleNamespace(free=1 << 60)")
    line = fails(blind, *arguments(root, ann_file, small_disk), "--num_worker", 1, cwd=tmp_path)  # as if the disk had been filled since;
    assert "No space left" in line and "free some space" in line  # two could fill it with two halves
    assert len(times(small_disk)) == 1 and not list((small_disk / "preprocess_bin").glob(".*"))
    ballast.unlink()
    assert counts(works("TSM_preprocess.py", *arguments(root, ann_file, small_disk), cwd=tmp_path)) == (1, 1, 0)


@pytest.mark.all
def test_memory_does_not_grow_with_the_number_of_videos(repo, tmp_path):
    root, _ = linked(tmp_path, 0)
    program = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
               "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")  # of the script and its workers, the largest

    def peak(count):
        (tmp_path / "list.txt").write_text("clip 8 1\n" * count)
        bins, stop = tmp_path / str(count) / "preprocess_bin", threading.Event()

        def take_away():  # so that the test needs no disk: a tensor is not read again once it is there
            while not stop.wait(0.05):
                for path in bins.glob("*.bin"):
                    path.unlink()

        thread = threading.Thread(target=take_away)
        thread.start()
        try:
            done = ran(sys.executable, "-c", program, sys.executable, repo / "TSM_preprocess.py",
                       *arguments(root, "list.txt", count), cwd=tmp_path, check=True)
        finally:
            stop.set()
            thread.join()
        assert len(json.loads((tmp_path / str(count) / "sthv2.json").read_text())["samples"]) == count
        return int(done.stdout)

    few, many = peak(MEMORY // 10), peak(MEMORY)
    assert many < 1.05 * few, "%d kB for %d videos, %d kB for %d" % (few, MEMORY // 10, many, MEMORY)

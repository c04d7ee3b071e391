"""TSM_dataset.py: lists as the guide's scripts make them, frames a folder at a time, and no video dropped in silence."""

import json
import shutil

import cv2
import pytest

from tsm.frames import read_video


@pytest.fixture
def dataset(repo, tmp_path):
    """The dataset's two files and a folder with the first six demo videos; returns the script's arguments."""
    entries = json.loads((repo / "demo/annotations/something-something-v2-validation.json").read_text())[:6]
    (tmp_path / "validation.json").write_text(json.dumps(entries))
    (tmp_path / "videos").mkdir()
    for entry in entries:
        shutil.copy(str(repo / "demo/videos" / (entry["id"] + ".webm")), str(tmp_path / "videos"))
    return ["--annotations", "validation.json", "--labels", repo / "demo/annotations/something-something-v2-labels.json",
            "--videos", "videos"]


def test_lists_are_in_the_annotations_order_with_the_dataset_s_labels(works, dataset, tmp_path):
    works("TSM_dataset.py", *dataset, cwd=tmp_path)
    entries = json.loads((tmp_path / "validation.json").read_text())
    labels = json.loads(dataset[3].read_text())
    expected = ["%s.webm %s" % (entry["id"], labels[entry["template"].replace("[", "").replace("]", "")])
                for entry in entries]
    assert (tmp_path / "sthv2_val_list_videos.txt").read_text().splitlines() == expected
    assert not (tmp_path / "sthv2_val_list_rawframes.txt").exists()


def test_frames_are_all_there_and_are_made_once(works, dataset, tmp_path):
    works("TSM_dataset.py", *dataset, "--rawframes", "frames", "--num_worker", 2, cwd=tmp_path)
    lines = (tmp_path / "sthv2_val_list_rawframes.txt").read_text().splitlines()
    assert len(lines) == 6
    for line in lines:
        name, count, _ = line.split()
        frames = dict(read_video(str(tmp_path / "videos" / (name + ".webm")), range))
        assert sorted(path.name for path in (tmp_path / "frames" / name).iterdir()) == [
            "img_%05d.jpg" % (index + 1) for index in range(int(count))] and len(frames) == int(count)
        first = cv2.imread(str(tmp_path / "frames" / name / "img_00001.jpg"))[..., ::-1]
        assert abs(first.astype(int) - frames[0]).mean() < 5  # JPEG's loss, not another frame or channel order

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "frames").rglob("*.jpg")}
    half = tmp_path / "frames" / lines[0].split()[0]
    (half / "img_00003.jpg").unlink()
    works("TSM_dataset.py", *dataset, "--rawframes", "frames", cwd=tmp_path)
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "frames").rglob("*.jpg")}
    assert set(again) == set(stamps)
    assert {path.parent for path in stamps if again[path] != stamps[path]} == {half}


def test_every_video_that_cannot_be_used_is_named(run, fails, works, dataset, tmp_path):
    videos = sorted((tmp_path / "videos").iterdir())
    videos[0].unlink()
    videos[2].write_bytes(videos[2].read_bytes()[:6000])
    videos[4].write_bytes(b"")
    videos[1].rename(videos[1].with_suffix(".WebM"))
    videos[1] = videos[1].with_suffix(".WebM")
    line = fails("TSM_dataset.py", *dataset, cwd=tmp_path)
    assert "3 of 6 videos" in line and videos[0].name in line and "--on-error skip" in line
    assert not (tmp_path / "sthv2_val_list_videos.txt").exists()
    named = [line for line in run("TSM_dataset.py", *dataset, cwd=tmp_path).stdout.splitlines() if "cannot be used" in line]
    assert [path.name in line for path, line in zip(videos[::2], named)] == [True] * 3
    works("TSM_dataset.py", *dataset, "--on-error", "skip", cwd=tmp_path)
    left = [line.split()[0] for line in (tmp_path / "sthv2_val_list_videos.txt").read_text().splitlines()]
    assert left == [path.name for path in videos[1::2]]


@pytest.mark.parametrize("name, text, word", [
    ("validation.json", "{", "not JSON"),
    ("validation.json", "[]", "not a JSON list of annotations"),
    ("validation.json", '[{"id": "1"}]', "entry 0"),
    ("validation.json", '[{"id": "1", "template": "Juggling [something]"}]', "not in the labels"),
    ("validation.json", '[{"id": "../1", "template": "Closing [something]"}]', "id '../1'"),
    ("validation.json", '[{"id": 1, "template": "Closing [something]"}, {"id": 1, "template": "Closing [something]"}]', "twice"),
    ("labels.json", '{"Closing something": "5"}', "1 labels, not the classes 0 to 173"),
    ("labels.json", '["Closing something"]', "not a JSON object but a list of 1 entries; wanted: a JSON object"),
    ("labels.json", '{"Closing something": {}}', "'Closing something' has {} for a class; wanted"),
    ("labels.json", '{"Closing something": 1.5}', "has 1.5 for a class; wanted"),
    ("labels.json", "7", "not a JSON object but 7; wanted"),
    ("labels.json", "id,template\n5,Closing something\n", "comma-separated text of 2 lines, the first 'id,template'; wanted"),
    ("labels.json", "Closing something\nOpening something\n", "plain text of 2 lines, the first 'Closing something'; wanted"),
    ("labels.json", "", "plain text of 0 lines, the first ''; wanted"),
])
def test_files_that_are_not_the_dataset_s_are_refused(fails, dataset, tmp_path, name, text, word):
    shutil.copy(str(dataset[3]), str(tmp_path / "labels.json"))
    (tmp_path / name).write_text(text)
    line = fails("TSM_dataset.py", "--annotations", "validation.json", "--labels", "labels.json", "--videos", "videos",
                 cwd=tmp_path)
    assert name in line and word in line

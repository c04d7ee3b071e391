"""TSM_dataset.py: lists as the guide's scripts make them, frames a folder at a time, and no video dropped in silence."""

import json
import shlex
import shutil

import cv2
import pytest

from tsm.cli import UserError
from tsm.labels import read_classes, read_labels
from tsm.video.datasets import read_annotations
from tsm.video.decode import read_video


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
    assert "3 of 6 videos" in line and videos[0].name in line and "--on_error skip" in line
    assert not (tmp_path / "sthv2_val_list_videos.txt").exists()
    named = [line for line in run("TSM_dataset.py", *dataset, cwd=tmp_path).stdout.splitlines() if "cannot be used" in line]
    assert [path.name in line for path, line in zip(videos[::2], named)] == [True] * 3
    works("TSM_dataset.py", *dataset, "--on_error", "skip", cwd=tmp_path)
    left = [line.split()[0] for line in (tmp_path / "sthv2_val_list_videos.txt").read_text().splitlines()]
    assert left == [path.name for path in videos[1::2]]


@pytest.mark.parametrize("name, text, word", [
    ("validation.json", "{", "not JSON"), ("validation.json", "[]", "validation.json: no annotations in it"),
    ("validation.json", '["1"]', "entry 0: names no video"), ("validation.json", '[{"id": "1"}]', "entry 0"),
    ("validation.json", '[{"id": "1", "template": "Juggling [something]"}]', "not in the labels"),
    ("validation.json", '[{"id": "../1", "template": "Closing [something]"}]', "'../1' is not a name inside"),
    ("labels.json", '{"Closing something": "5"}', "1 labels, whose classes are not the numbers 0 to 0"),
    ("labels.json", '["Closing something"]', "is not in the labels"), ("labels.json", "", "not label names; wanted"),
    ("labels.json", '["Closing something", "Closing something"]', "'Closing something' is there twice"),
    ("labels.json", '{"Closing something": {}}', "'Closing something' has {} for a class; wanted"),
    ("labels.json", '{"Closing something": 1.5}', "has 1.5 for a class; wanted"),
    ("labels.json", "7", "not label names; wanted: a JSON object"),
    ("labels.json", "id,template\n5,Closing something\n", "1 labels, whose classes are not the numbers 0 to 0"),
    ("labels.json", "Closing something\nOpening something\n", "is not in the labels"),
])
def test_files_that_are_not_the_dataset_s_are_refused(fails, dataset, tmp_path, name, text, word):
    shutil.copy(str(dataset[3]), str(tmp_path / "labels.json"))
    (tmp_path / name).write_text(text)
    line = fails("TSM_dataset.py", "--annotations", "validation.json", "--labels", "labels.json", "--videos", "videos",
                 cwd=tmp_path)
    assert (name in line or word == "is not in the labels") and word in line


# Other datasets than Something-Something V2.


@pytest.fixture
def videos(repo, tmp_path):
    """Three demo videos under other names, one of them in a folder."""
    (tmp_path / "videos" / "in a folder").mkdir(parents=True)
    names = ["a b.mp4", "in a folder/c.webm", "d,e.WEBM"]
    for name, source in zip(names, sorted((repo / "demo/videos").iterdir())):
        shutil.copy(str(source), str(tmp_path / "videos" / name))
    return names


def lists(works, folder, *args):
    """(what was printed, {name of a written file: its lines})."""
    said = works("TSM_dataset.py", "--videos", "videos", *args, cwd=folder)
    return said, {path.name: path.read_text().splitlines() for path in folder.iterdir() if "_list_" in path.name}


@pytest.mark.parametrize("labels", [
    "zebra\nant\nbee\n", '["zebra", "ant", "bee"]', '{"bee": 2, "ant": "1", "zebra": 0}', "id,name\n2,bee\n0,zebra\n1,ant\n",
    "ant,1\nbee,2\nzebra,0\n",
])
def test_a_labels_file_of_any_form_numbers_the_classes(works, videos, tmp_path, labels):
    (tmp_path / "labels").write_text(labels)
    (tmp_path / "own.csv").write_text("a b.mp4,zebra\nin a folder/c.webm,ant\n\"d,e.WEBM\",2\n")
    said, made = lists(works, tmp_path, "--annotations", "own.csv", "--labels", "labels")
    assert made["own_list_videos.txt"] == ["a b.mp4 0", "in a folder/c.webm 1", "d,e.WEBM 2"] and "note" not in said
    assert json.loads((tmp_path / "own_labels.json").read_text()) == ["zebra", "ant", "bee"]


def test_a_ready_list_is_checked_and_taken(works, fails, videos, tmp_path):
    (tmp_path / "ready.txt").write_text("a b.mp4 4\nin a folder/c.webm 0\n")
    assert lists(works, tmp_path, "--annotations", "ready.txt")[1] == {
        "ready_list_videos.txt": ["a b.mp4 4", "in a folder/c.webm 0"]}
    (tmp_path / "labels").write_text("zebra\nant\n")
    line = fails("TSM_dataset.py", "--videos", "videos", "--annotations", "ready.txt", "--labels", "labels", cwd=tmp_path)
    assert "ready.txt, line 1: label 4 is not one of the 2 classes" in line


def test_kinetics_names_its_videos_by_their_times(works, repo, tmp_path):
    (tmp_path / "videos" / "playing_guitar").mkdir(parents=True)
    for name, source in zip(("-x1_000010_000020.mp4", "playing_guitar/y_000001_000011.mp4", "z.mp4"),
                            sorted((repo / "demo/videos").iterdir())):
        shutil.copy(str(source), str(tmp_path / "videos" / name))
    (tmp_path / "val.csv").write_text("label,youtube_id,time_start,time_end,split,is_cc\nabseiling,-x1,10,20,val,0\n"
                                      "playing guitar,y,1.0,11.0,val,0\n\"archery\",z,3,13,val,1\n")
    said, made = lists(works, tmp_path, "--annotations", "val.csv")
    assert made == {"val_list_videos.txt": ["-x1_000010_000020.mp4 0", "playing_guitar/y_000001_000011.mp4 2", "z.mp4 1"]}
    (tmp_path / "names.csv").write_text("id,name\n0,playing_guitar\n1,abseiling\n2,archery\n")  # mmaction2's spelling
    (tmp_path / "val_labels.json").unlink()
    assert lists(works, tmp_path, "--annotations", "val.csv", "--labels", "names.csv")[1]["val_list_videos.txt"] == [
        "-x1_000010_000020.mp4 1", "playing_guitar/y_000001_000011.mp4 0", "z.mp4 2"]


def test_jester_s_folders_of_frames_are_counted_and_can_be_preprocessed(works, repo, tmp_path):
    for name, count in (("1", 12), ("22", 5)):
        (tmp_path / "videos" / name).mkdir(parents=True)
        for number in range(count):
            shutil.copy(str(repo / "test/data" / ("square_%02d.jpg" % number)),
                        str(tmp_path / "videos" / name / ("%05d.jpg" % (number + 1))))
    (tmp_path / "jester-v1-labels.csv").write_text("Swiping Left\nDoing other things\n")
    (tmp_path / "validation.csv").write_text("22;Doing other things\n1;Swiping Left\n")
    said, made = lists(works, tmp_path, "--annotations", "validation.csv", "--labels", "jester-v1-labels.csv")
    assert made == {"validation_list_rawframes.txt": ["22 5 1", "1 12 0"]}
    flags = shlex.split(said.split("frames: pass ")[1].split(" to the")[0])
    assert flags == ["--filename_tmpl", "%05d.jpg", "--start_index", "1"]
    works("TSM_preprocess.py", "--data_root", "videos", "--ann_file", "validation_list_rawframes.txt", *flags, cwd=tmp_path)


@pytest.mark.parametrize("text, word", [
    ("a b.mp4\nin a folder/c.webm\n", "own.csv, line 1: expected a video's name and its label"),
    ("a b.mp4,zebra\n../c.webm,ant\n", "own.csv, line 2: '../c.webm' is not a name inside"),
    ("/a.mp4,zebra\n", "own.csv, line 1: '/a.mp4' is not a name inside"), ("", "own.csv: no annotations"),
    ("name,label\n", "own.csv: no annotations"),
    ("a b.mp4,zebra\na b.mp4,ant\n", "own.csv, line 2: a b.mp4 is the video of own.csv, line 1"),
    ("a b.mp4,zebra\nnone.mp4,ant\n", "videos/none.mp4: no such file"), ("a b,zebra,ant\n", "own.csv, line 1: expected"),
    ("label,youtube_id,time_start,time_end\nx,y,start,2\n", "videos/y.webm: no such file"),
    ("label,youtube_id,time_start,time_end\nx,y,1\n", "own.csv, line 2: has 3 cells, and the header 4"),
    ("label,youtube_id,time_start,time_end\n", "own.csv: no annotations"), ("[]", "own.csv: no annotations"),
    ('[{"id": 1, "template": "Closing [something]"}]', "own.csv: needs --labels"),
    ('[{"id": "a b", "label": ["x", "y"]}]', "own.csv, entry 0: names no label"),
    ('{"id": "a b", "label": "x"}\n{"id": "c", "label": ""}\n', "own.csv, entry 1: names no label; a test split has no labels"),
    ('{"a b": "x", "a b": "y"}', "own.csv: 'a b' is there twice"),
    ("uid,label,split\na b.mp4,zebra,val\n", "own.csv, line 1: expected a video's name and its label, as in 'name,label', found 'uid,"),
    ("video_id,frames\na b.mp4,37\n", "own.csv, line 1: there is no video video_id, and no other"),
    ("1 ApplyEyeMakeup\n2 Archery\n", "own.csv, line 1: expected a video's name and its label"),
    ("1 ApplyEyeMakeup\n2 Archery\n", "a list of classes is for --labels"),
    ("a/x.avi 1\nb/y.avi 2\na/z.avi 1\n", "own.csv: its labels are 1 to 2, one per folder, as in UCF101's train lists"),
    ("video,kind\na b.mp4,cat\n", "own.csv, line 1: there is no video video, and no other line has the label 'kind'"),
    ('a b.mp4,"cat\nin a folder/c.webm,dog\n"d,e",fish\n', "own.csv, line 1: is not a line of a CSV (unexpected end of data)"),
    ('a b.mp4,"cat" or dog\n', "own.csv, line 1: is not a line of a CSV"), ("a b.mp4,c\rd,e\n", "own.csv, line 1: is not a line of a CSV"),
    ("a b.mp4,%s\n" % ("x" * 131073), "own.csv, line 1: is not a line of a CSV (field larger than field limit"),
    ("a b.mp4,10\nin a folder/c,9\n\"d,e\",-1\n",
     "own.csv, line 3: label '-1' is not the number of a class, a whole one from 0; mend it"),
    ("a b.mp4,1.0\nin a folder/c,2.0\n", "own.csv, line 1: label '1.0' is not the number of a class, a whole one from 0; mend"),
    ("a b.mp4,9999999\n", "own.csv, line 1: label '9999999' is not the number"),
    ("a b.mp4,1\nin a folder/c,2\n\"d,e\",x\n", "own.csv, line 3: label 'x' is not the number"),
    ("a b.mp4,cat\na b,dog\n", "own.csv, line 2: a b is the video of own.csv, line 1 too, as a b.mp4"),
    ("a b.mp4,cat\na b,cat\n", "own.csv, line 2: a b is the video of"),
    ("first,kind\na b.mp4,cat\n", "own.csv, line 1: there is no video first, and no other line has the label 'kind'"),
])
def test_annotations_that_are_not_understood_are_one_line(fails, videos, tmp_path, text, word):
    (tmp_path / "own.csv").write_bytes(text.encode())
    for more in ((), ("--on_error", "skip")) if "none.mp4" not in text else [()]:
        assert word in fails("TSM_dataset.py", "--annotations", "own.csv", "--videos", "videos", *more, cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.csv", "videos"]


@pytest.mark.parametrize("header", ["filename,class_name", "video,action", "Clip,Label Name", "id,label_id", "videoId,Class"])
def test_a_header_is_no_class(works, videos, tmp_path, header):
    (tmp_path / "own.csv").write_text(header + "\na b.mp4,zebra\nin a folder/c.webm,ant\n")
    lists(works, tmp_path, "--annotations", "own.csv", "--on_error", "skip")
    assert json.loads((tmp_path / "own_labels.json").read_text()) == ["ant", "zebra"]


VIDEO_LABELS = {"a b.mp4": "zebra", "in a folder/c.webm": "ant", "d,e.WEBM": "bee"}


@pytest.mark.parametrize("name, text", [
    ("own.csv", 'name,label\na b.mp4,zebra\nin a folder/c.webm,ant\n"d,e",bee\n'),
    ("own.csv", 'a b,zebra\nin a folder/c,ant\n"d,e.WEBM",bee\n'),
    ("own.csv", "\ufeffa b.mp4;zebra\r\nin a folder/c.webm;ant\r\nd,e.WEBM;bee\r\n"),
    ("own.csv", 'label,frames,video_path\nzebra,3,a b.mp4\nant,4,in a folder/c.webm\nbee,5,"d,e.WEBM"\n'),
    ("own.csv", '\ufeff"Video Name";"Label";"Shape"\r\n"a b";"zebra";"(1; 2)"\r\n"in a folder/c";"ant";""\r\n"d,e";"bee";"x"\r\n'),
    ("own.tsv", "id\tsplit\tclass\na b\tval\tzebra\nin a folder/c\tval\tant\nd,e\tval\tbee\n"),
    ("own.json", json.dumps([{"id": name, "label": label, "placeholders": []} for name, label in VIDEO_LABELS.items()])),
    ("own.json", json.dumps(VIDEO_LABELS)),
    ("own.json", "\ufeff" + json.dumps({name: {"label": label} for name, label in VIDEO_LABELS.items()})),
    ("own.jsonl", "".join(json.dumps({"file_name": name, "label": label}) + "\r\n" for name, label in VIDEO_LABELS.items())),
    ("own.csv", "a b;zebra\nin a folder/c;ant\nd,e;bee\n"),
])
def test_annotations_of_every_form_say_the_same_and_that_the_alphabet_numbers_them(works, videos, tmp_path, name, text):
    """Names with spaces and commas in JSON as in a CSV; a label before its video; other columns, quotes, byte order marks, CRLF."""
    (tmp_path / name).write_bytes(text.encode())
    said, made = lists(works, tmp_path, "--annotations", name)
    assert "3 labels of %s are numbered by the alphabet, from ant to zebra" % name in said
    assert made == {"own_list_videos.txt": ["a b.mp4 2", "in a folder/c.webm 0", "d,e.WEBM 1"]}
    assert json.loads((tmp_path / "own_labels.json").read_text()) == ["ant", "bee", "zebra"]


def annotated(folder, name, text, labels=None):
    """{first name of a video: its class} of annotations, and Annotations."""
    (folder / name).write_text(text)
    if labels:
        (folder / "labels").write_text(labels)
    found = read_annotations(str(folder / name), str(folder / "labels") if labels else None, lambda name: name.endswith((".avi", ".mp4")))
    return {one.names[0]: number for one, number in zip(found.videos, found.classes)}, found


CLASS_IND, JESTER = "1 ApplyEyeMakeup\n2 Archery\n", "video_id,label,frames,label_id,shape,format\n"


@pytest.mark.parametrize("name, text, labels, wanted, names", [
    ("testlist01.txt", "ApplyEyeMakeup/v.avi\nArchery/w.avi\n", CLASS_IND, [0, 1], ["ApplyEyeMakeup", "Archery"]),
    ("testlist01.txt", "UCF-101/Archery/v.avi\nUCF-101/ApplyEyeMakeup/w.avi\n", None, [1, 0], ["ApplyEyeMakeup", "Archery"]),
    ("trainlist01.txt", "ApplyEyeMakeup/v.avi 1\nArchery/w.avi 2\n", CLASS_IND, [0, 1], ["ApplyEyeMakeup", "Archery"]),
    ("own.txt", "x/v.avi 1\ny/w.avi 3\n", None, [1, 3], None),  # no list of UCF101's: classes 0 and 2 have no video in it
    ("own.csv", "v.avi,1\nw.avi,2\n", '{"a": 1, "b": 2}', [0, 1], ["a", "b"]),  # numbers as the labels file has them
    ("own.csv", "v.avi,1\nw.avi,b\n", "a\nb\n", [1, 1], ["a", "b"]),
    ("jester.csv", JESTER + '1,Swiping Left,36,18,"(176, 100)",jpg\n2,Doing other things,37,0,"(176, 100)",jpg\n', None, [18, 0], None),
    ("jester.csv", JESTER + '1,Swiping Left,36,18,"(176, 100)",jpg\n2,Doing other things,37,0,"(176, 100)",jpg\n',
     "Swiping Left\nDoing other things\n", [0, 1], ["Swiping Left", "Doing other things"]),
    ("jester.csv", JESTER + "1,b,36,0,,jpg\n2,a,37,1,,jpg\n", None, [0, 1], ["b", "a"]),
    ("own.csv", "video,class_name,class_id\nv,b,1\nw,a,2\n", None, [0, 1], ["b", "a"]),
    ("Diving48_V2_test.json", '[{"vid_name": "v", "label": 40, "start_frame": 0, "end_frame": 9}, {"vid_name": "w", "label": 8}]', None,
     [40, 8], None),
    ("metadata.jsonl", '{"file_name": "v.mp4", "label": 3}\n', None, [3], None),
    ("kinetics.csv", ",label,youtube_id,time_start,time_end,split,full_path,num_files\n0,b,v,0,276,val,/n/x,3\n1,a,w,1.0,11,val,/n/y,3\n",
     None, [1, 0], ["a", "b"]),
    ("kinetics.json", '{"v": {"annotations": {"label": "b", "segment": [84.0, 94.0]}, "url": "x"}}', None, [0], ["b"]),
    ("test-answers.csv", "7;Moving something, away\n8;Covering something\n",
     '{"Covering something": "0", "Moving something, away": "1"}', [1, 0], ["Covering something", "Moving something, away"]),
])
def test_public_datasets_are_read_as_they_come(tmp_path, name, text, labels, wanted, names):
    classes, found = annotated(tmp_path, name, text, labels)
    assert list(classes.values()) == wanted and found.labels == names
    if name.startswith("kinetics"):
        assert list(classes)[0] == ("v_000000_000276" if name.endswith("csv") else "v_000084_000094")


def test_hmdb51_s_numbers_are_no_classes(tmp_path, fails):
    """0, 1 and 2 say whether a video is in the split, to train or to test; the class is the name of the file."""
    (tmp_path / "wave_test_split1.txt").write_text("w 1.avi 2 \nw2.avi 0 \n")
    (tmp_path / "wave_test_split2.txt").write_text("w2.avi 2\n")
    classes, found = annotated(tmp_path, "brush_hair_test_split1.txt", "b1.avi 1 \nb2.avi 2 \nb3.avi 2 \n")
    assert classes == {"brush_hair/b2.avi": 0, "brush_hair/b3.avi": 0, "wave/w 1.avi": 1} and found.stem == "test_split1"
    assert found.labels == ["brush_hair", "wave"] and found.videos[2].names == ("wave/w 1.avi", "w 1.avi")
    assert list(annotated(tmp_path, "brush_hair_test_split3.txt", "b1.avi 1\nb2.avi 2\n")[0]) == ["brush_hair/b2.avi"]  # one file alone
    (tmp_path / "wave_test_split1.txt").write_text("w 1.avi 2 \nw2.avi\n")
    assert "wave_test_split1.txt, line 2: expected '<video>.avi <0, 1 or 2>' as in HMDB51's" in fails(
        "TSM_dataset.py", "--annotations", "brush_hair_test_split1.txt", "--videos", ".", cwd=tmp_path)


def test_lists_of_one_s_own_that_look_like_a_data_set_s_are_lists(tmp_path):
    """By their names; by one folder for all; by the word template."""
    (tmp_path / "my_test_split1.txt").write_text("x.avi 2\n")
    (tmp_path / "run_test_split1.txt").write_text("x.avi 2\n")
    for name, text, wanted in (("own_test_split1.txt", "a.avi 1\nb.avi 2\nc.avi 0\n", {"a.avi": 1, "b.avi": 2, "c.avi": 0}),
                               ("walk_test_split1.txt", "a.mp4 1\nb.mp4 2\n", {"a.mp4": 1, "b.mp4": 2})):
        classes, found = annotated(tmp_path, name, text)
        assert classes == wanted and found.stem == name[:-4]
    classes, found = annotated(tmp_path, "own.csv", "clip,template\na,greet\nb,bow\n")
    assert (classes, found.stem) == ({"a": 1, "b": 0}, "own")
    classes, _ = annotated(tmp_path, "test.txt", "Archery/v.avi\nArchery/w.avi\n", CLASS_IND)
    assert classes == {"Archery/v.avi": 1, "Archery/w.avi": 1}
    with pytest.raises(UserError, match="a test split has no labels"):
        annotated(tmp_path, "test.txt", "clips/v.avi\nclips/w.avi\n")


@pytest.mark.parametrize("text, wanted", [
    ("0 Approaching\n1 Attaching it\n", ["Approaching", "Attaching it"]), ("1 b c\n0 a\n", ["a", "b c"]), ("a 1\nb c 0\n", ["b c", "a"]),
    ("0: a\n1: b c\n", ["a", "b c"]), ("a: 0\nb c: 1\n", ["a", "b c"]), ("0. a\n1) b\n", ["a", "b"]), ("0\ta\n1\tb c\n", ["a", "b c"]),
    ("b\t1\na\t0\n", ["a", "b"]), ("1,brush hair\n2,cartwheel\n", ["brush hair", "cartwheel"]), ("1 a\n2 b\n3 c\n", ["a", "b", "c"]),
    ('{"0": "a", "1": "b"}', ["a", "b"]), ('{"1": "b", "0": "a"}', ["a", "b"]), ('{"2": "b", "1": "a"}', ["a", "b"]),
    ('{"a": 1, "b": 2}', ["a", "b"]), ('{"a": "1", "b": "0"}', ["b", "a"]),
    ('[["Back", "15som"], ["Back", "25som"]]', ["Back 15som", "Back 25som"]),
    ("id;name;description\n1;b;x, y\n0;a;\n", ["a", "b"]), ("Label,Class ID,split\nb,1,x\na,0,x\n", ["a", "b"]),
    ("name\na\nb\n", ["a", "b"]), ('"a"\n"b ""c"""\n', ["a", 'b "c"']), ('1,"b, c"\r\n0,a\r\n', ["a", "b, c"]),
    ("\ufeff0 a\r\n1 b\r\n", ["a", "b"]),
    ("video 1\nvideo 2\n", ["video 1", "video 2"]), ("3 point shot\nfall\n", ["3 point shot", "fall"]),
    ('{"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}', ["a", "b"]), ('{"labels": ["b", "a"], "version": 1}', ["b", "a"]),
    ('[{"id": 1, "name": "b"}, {"id": 0, "name": "a"}]', ["a", "b"]), ('{"categories": [{"name": "a", "id": 1, "x": 7}]}', ["a"]),
    ("names:\n  0: a\n  1: b c\n", ["a", "b c"]), ("id name\n1 b\n0 a\n", ["a", "b"]), ("name,id,class\na,0,x\nb,1,y\n", ["a", "b"]),
    ("Putting, something\nb\n", ["Putting, something", "b"]),
])
def test_label_files_are_read_as_what_they_are(tmp_path, text, wanted):
    (tmp_path / "labels").write_bytes(text.encode())
    assert read_labels(str(tmp_path / "labels"), len(wanted)) == wanted


@pytest.mark.parametrize("text, says", [
    ("fall\nfall\nwave\n", "'fall' is there twice; mend it"), ('{"fall": 0, "fall": 1, "wave": 2}', "'fall' is there twice"),
    ('{"0": "fall", "1": "fall"}', "'fall' is there twice"), ("0 a\n2 b\n", "2 labels, whose classes are not the numbers 0 to 1 or 1 to 2"),
    ("10 push ups\n20 squats\n", "write a JSON list of names if the numbers belong"), ("0,a\n0,b\n", "2 labels, whose classes"),
    ("2 a\n3 b\n", "2 labels, whose classes"), ('{"0": ["a"]}', "not label names"), ('{"a": null}', "'a' has None for a class"),
])
def test_label_files_that_cannot_be_are_told_why(tmp_path, text, says):
    (tmp_path / "labels").write_text(text)
    with pytest.raises(UserError) as raised:
        read_classes(str(tmp_path / "labels"))
    assert says in str(raised.value) and "labels: " in str(raised.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "gb18030"])
def test_another_encoding_is_one_line(fails, videos, tmp_path, encoding):
    (tmp_path / "own.csv").write_bytes("name,label\na b.mp4,挥手\n".encode(encoding))
    for words in (["own.csv"], ["own.txt", "--labels", "own.csv"]):
        assert "own.csv: not UTF-8 text; save it as UTF-8" in fails(
            "TSM_dataset.py", "--videos", "videos", "--annotations", *words, cwd=tmp_path)


def test_a_video_that_is_called_like_a_column_is_none(works, videos, tmp_path):
    (tmp_path / "videos/a b.mp4").rename(tmp_path / "videos/clip.mp4")
    (tmp_path / "own.csv").write_text("clip,action\nin a folder/c.webm,ant\n")
    assert lists(works, tmp_path, "--annotations", "own.csv")[1]["own_list_videos.txt"] == ["clip.mp4 0", "in a folder/c.webm 1"]


def test_two_videos_of_one_name_do_not_share_their_frames_nor_frames_and_videos_a_list(works, fails, repo, videos, tmp_path):
    wrong = ("TSM_dataset.py", "--annotations", "own.csv", "--videos", "videos")
    shutil.copy(str(tmp_path / "videos/a b.mp4"), str(tmp_path / "videos/a b.webm"))
    (tmp_path / "own.csv").write_text("a b.mp4,cat\na b.webm,dog\n")
    assert "own.csv, line 2: a b.webm is the video of" in fails(*wrong, "--rawframes", "frames", cwd=tmp_path)
    assert lists(works, tmp_path, "--annotations", "own.csv")[1]["own_list_videos.txt"] == ["a b.mp4 0", "a b.webm 1"]
    (tmp_path / "videos" / "f").mkdir()
    shutil.copy(str(repo / "test/data/square_00.jpg"), str(tmp_path / "videos" / "f" / "00001.jpg"))
    (tmp_path / "own.csv").write_text("a b.mp4,zebra\nf,ant\n")
    assert "videos: a b.mp4 and f are no one list" in fails(*wrong, "--output_dir", "other", cwd=tmp_path)
    (tmp_path / "own.csv").write_text("f,ant\n")
    assert "holds folders of frames, and --rawframes is for videos" in fails(
        *wrong, "--rawframes", "frames", "--output_dir", "other", cwd=tmp_path)


@pytest.mark.parametrize("names, suffix", [(("a, b.webm", "c, d.mp4"), ""), (("f, g", "h; i, j"), " 12")])
def test_a_list_whose_names_have_commas_is_no_csv(works, repo, tmp_path, names, suffix):
    for name in names:
        path = tmp_path / "videos" / name
        if suffix:
            path.mkdir(parents=True)
            shutil.copy(str(repo / "test/data/square_00.jpg"), str(path / "img_00001.jpg"))
        else:
            path.parent.mkdir(exist_ok=True)
            shutil.copy(str(next((repo / "demo/videos").iterdir())), str(path))
    (tmp_path / "own.txt").write_text("".join("%s%s %d\n" % (name, suffix, 7 + number) for number, name in enumerate(names)))
    (made,) = lists(works, tmp_path, "--annotations", "own.txt")[1].values()
    assert made == ["%s%s %d" % (name, " 1" if suffix else "", 7 + number) for number, name in enumerate(names)]
    assert not (tmp_path / "own_labels.json").exists()


@pytest.mark.parametrize("text", ['["zebra", "ant", "bee"]\n', "not labels", '{"ant": 0, "bee": 1}'])
def test_a_labels_file_of_the_user_s_is_never_overwritten(works, fails, videos, tmp_path, text):
    (tmp_path / "own.csv").write_text("a b.mp4,zebra\nin a folder/c.webm,ant\n\"d,e\",bee\n")
    (tmp_path / "own_labels.json").write_text(text)
    line = fails("TSM_dataset.py", "--annotations", "own.csv", "--videos", "videos", cwd=tmp_path)
    assert "own_labels.json: is there already and does not name these 3 classes" in line and "--output_dir" in line
    (tmp_path / "own_labels.json").write_text('{"ant": 0, "bee": 1, "zebra": 2}')  # the same, written in another way
    lists(works, tmp_path, "--annotations", "own.csv", "--labels", "own_labels.json")
    assert (tmp_path / "own_labels.json").read_text() == '{"ant": 0, "bee": 1, "zebra": 2}'


@pytest.mark.parametrize("option", ["--output_dir", "--rawframes"])
def test_a_file_in_the_place_of_a_folder_is_named(fails, videos, tmp_path, option):
    (tmp_path / "own.csv").write_text("a b.mp4,zebra\n")
    for place in ("own.csv", "own.csv/deeper"):
        line = fails("TSM_dataset.py", "--annotations", "own.csv", "--videos", "videos", option, place, cwd=tmp_path)
        assert "own.csv" in line and "a folder is needed there; choose another" in line

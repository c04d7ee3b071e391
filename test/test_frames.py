"""Frames on disk: JPEGs of every kind decode as OpenCV decodes them, what is cut short is refused, any naming can be read."""

import random
import shutil
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from clips import DATA, clip_of
from fuzz import FUZZ, damaged

from tsm.cli import Corrupt
from tsm.video import frames as frames_module
from tsm.video.frames import decode_picture, naming_in, strict

PHOTO = cv2.imread(str(DATA / "landscape_00.jpg"))
SAMPLINGS = ("411", "420", "422", "440", "444")


def encoded(picture=PHOTO, **options):
    """A JPEG of a picture; an option is one of OpenCV's IMWRITE_JPEG_…."""
    flags = [number for name, value in options.items() for number in (getattr(cv2, "IMWRITE_JPEG_" + name), value)]
    return cv2.imencode(".jpg", picture, flags)[1].tobytes()


def sampled(picture, sampling):
    """A JPEG with that subsampling of its colours."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(picture), 90, "BGR", sampling)


def segment(code, body):
    """A JPEG's marker segment."""
    return b"\xff" + bytes([code]) + (len(body) + 2).to_bytes(2, "big") + body


def exif(orientation):
    """An Exif segment with an orientation and a whole JPEG as thumbnail."""
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01" + orientation.to_bytes(2, "big") + b"\0\0"
    return segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + entry + bytes(4) + encoded(PHOTO[:16, :16]))


def with_segment(data, extra):
    return data[:2] + extra + data[2:]


def adobe(transform):
    return segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


def cmyk():
    picture = np.random.RandomState(0).randint(0, 256, (20, 30, 4)).astype(np.uint8)
    return simplejpeg.encode_jpeg(picture, 90, "CMYK")


PLAIN = dict(
    {"sampling " + name: sampled(PHOTO, name) for name in SAMPLINGS},
    progressive=encoded(PROGRESSIVE=1), optimised=encoded(OPTIMIZE=1), restarts=encoded(RST_INTERVAL=3),
    both=encoded(PROGRESSIVE=1, RST_INTERVAL=1), worst=encoded(QUALITY=1), best=encoded(QUALITY=100),
    odd=encoded(PHOTO[:37, :53]), column=encoded(PHOTO[:, :1]), pixel=encoded(PHOTO[:1, :1]),
    grayscale=encoded(PHOTO[..., 0]), **{"odd " + name: sampled(PHOTO[:31, :17], name) for name in SAMPLINGS})
OTHER = dict(
    {"exif %d" % orientation: with_segment(encoded(), exif(orientation)) for orientation in range(1, 9)},
    **{"adobe %d" % transform: with_segment(encoded(), adobe(transform)) for transform in range(2)}, cmyk=cmyk())


@pytest.mark.parametrize("name", sorted(PLAIN) + sorted(OTHER))
def test_jpegs_of_every_kind_are_opencv_s_to_the_byte_and_refused_where_they_are_cut(monkeypatch, name):
    """Whatever follows them; also where their thumbnail is whole, and where their rest was lost to zeros."""
    data, chance = PLAIN.get(name, OTHER.get(name)), random.Random(name)
    used, function = [], simplejpeg.decode_jpeg
    with monkeypatch.context() as patch:
        patch.setattr(simplejpeg, "decode_jpeg", lambda *args, **options: (used.append(name), function(*args, **options))[1])
        for after in (b"", b"\n", bytes(5), b"\xff\xd8 a second picture \xff\xd9", b"\xff\xff"):
            with strict():
                picture = decode_picture(data + after, "img_00001.jpg")
            expected = cv2.imdecode(np.frombuffer(data + after, np.uint8), cv2.IMREAD_COLOR)
            assert picture.dtype == np.uint8 and picture.shape == expected.shape and np.array_equal(picture, expected), after
    assert len(used) == 5 * (name in PLAIN)
    for length in sorted({1, 2, 3, len(data) - 2, len(data) - 1} | {chance.randrange(1, len(data)) for _ in range(20)}):
        for rest in (b"", bytes(len(data) - length), b"\n"):
            with pytest.raises(Corrupt, match="img_00001.jpg: |decoder"), strict():
                decode_picture(data[:length] + rest, "img_00001.jpg")


def test_damaged_jpegs_are_refused_or_read_as_by_opencv_alone(monkeypatch):
    chance, verdicts = random.Random("jpegs"), []
    kinds = sorted(PLAIN)
    for number in range(FUZZ):
        data, both = damaged(PLAIN[kinds[number % len(kinds)]], chance), []
        for module in (simplejpeg, None):
            monkeypatch.setattr(frames_module, "simplejpeg", module)
            try:
                with strict():
                    picture = decode_picture(data, "x")
                both.append(picture.tobytes())
            except Corrupt as error:
                both.append(str(error))
        assert both[0] == both[1]
        verdicts.append(isinstance(both[0], bytes))
    assert FUZZ // 20 < sum(verdicts) < FUZZ


def test_a_png_is_whole_or_refused():
    data = cv2.imencode(".png", PHOTO)[1].tobytes()
    with strict():
        assert np.array_equal(decode_picture(data + b"\n", "x.png"), PHOTO)
    for length in (5, 9, 40, len(data) // 2, len(data) - 13, len(data) - 1):
        with pytest.raises(Corrupt, match="x.png"), strict():
            decode_picture(data[:length], "x.png")
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    with pytest.raises(Corrupt, match="x.png"), strict():
        decode_picture(bytes(flipped), "x.png")
    bomb = data[:16] + (1 << 16).to_bytes(4, "big") * 2 + data[24:29]
    bomb += zlib.crc32(bomb[12:29]).to_bytes(4, "big") + data[33:]
    with pytest.raises(Corrupt), strict():
        decode_picture(bomb, "x.png")


STYLES = {  # names in the folder -> flags that read them
    "%06d.jpg": [["--filename_tmpl", "%06d.jpg"], ["--filename_tmpl", "{:06}.jpg"], ["--filename_tmpl={:06d}.jpg"]],
    "%d.jpg": [["--filename_tmpl", "%d.jpg"], ["--filename_tmpl", "{}.jpg"], ["--filename_tmpl", "{:d}.jpg"]],
    "frame-%04d.png": [["--filename_tmpl", "frame-%04d.png"]],
    "img_%05d.JPG": [["--filename_tmpl", "img_{:05}.JPG"]],
    "img_%05d.jpg": [[]],
}


@pytest.mark.parametrize("style, start", [("%06d.jpg", 1), ("%d.jpg", 0), ("%d.jpg", 7), ("frame-%04d.png", 0), ("img_%05d.JPG", 7),
                                          ("img_%05d.jpg", 0), ("img_%05d.jpg", 1)])
def test_frames_of_any_name_are_read_with_the_flags_that_the_refusal_names(works, run, tmp_path, style, start):
    clip_of("landscape", 12, str(tmp_path / "plain/clip"))
    (tmp_path / "root/clip").mkdir(parents=True)
    for index in range(12):
        source = tmp_path / "plain/clip" / ("img_%05d.jpg" % (index + 1))
        target = tmp_path / "root/clip" / (style % (start + index))
        if style.endswith("png"):
            cv2.imwrite(str(target), cv2.imread(str(source)))
        else:
            shutil.copy(str(source), str(target))
    (tmp_path / "list.txt").write_text("clip 12 5\n")
    arguments = ["--ann_file", "list.txt", "--dtype", "uint8"]
    works("TSM_preprocess.py", *arguments, "--data_root", "plain", "--output_dir", "expected", cwd=tmp_path)
    expected = (tmp_path / "expected/preprocess_bin/0.bin").read_bytes()
    for number, flags in enumerate(STYLES[style]):
        flags = flags + ([] if start == 1 else ["--start_index", str(start)])
        works("TSM_preprocess.py", *arguments, *flags, "--data_root", "root", "--output_dir", str(number), cwd=tmp_path)
        assert (tmp_path / str(number) / "preprocess_bin/0.bin").read_bytes() == expected
    if style != "img_%05d.jpg" or start != 1:
        said = run("TSM_preprocess.py", *arguments, "--data_root", "root", cwd=tmp_path).stderr
        assert style % start in said and style % (start + 11) in said
        flags = said.split(": pass ")[1].split(";")[0].split()
        works("TSM_preprocess.py", *arguments, *flags, "--data_root", "root", "--output_dir", "again", cwd=tmp_path)
        assert (tmp_path / "again/preprocess_bin/0.bin").read_bytes() == expected


@pytest.mark.parametrize("template", ["img.jpg", "%s.jpg", "%d_%d.jpg", "{:05}{}.jpg", "a/%05d.jpg", "{x}.jpg", "%05d%%.jpg", ""])
def test_a_template_without_one_number_is_bad_usage(fails, tmp_path, template):
    assert "--filename_tmpl" in fails("TSM_preprocess.py", "--data_root", ".", "--ann_file", "x", "--filename_tmpl=" + template,
                                      cwd=tmp_path, status=2)


def test_a_folder_of_other_things_says_what_it_holds(fails, tmp_path):
    (tmp_path / "root/clip").mkdir(parents=True)
    (tmp_path / "list.txt").write_text("clip 3 5\n")
    for names, says in (((), "img_00001.jpg is missing; it holds no pictures"),
                        (("a.jpg", "b7.png"), "it holds 2 pictures, the first a.jpg")):
        for name in names:
            (tmp_path / "root/clip" / name).write_bytes(b"x")
        assert says in fails("TSM_preprocess.py", "--data_root", "root", "--ann_file", "list.txt", cwd=tmp_path)


@pytest.mark.parametrize("names, says", [
    (["1.jpg", "2.jpg", "3.jpg", "5.jpg"], "5.jpg is the first"), (["img_%05d.jpg" % n for n in (7, 8, 10)], "img_00010.jpg is the first"),
    (["1.jpg", "2.jpeg", "3.jpg"], "2.jpeg is the first that does not follow"), (["1.jpg", "2.jpg", "3.JPG"], "3.JPG is the first"),
    (["x.jpg"], "x.jpg is the first"), (["1.jpg", "2.jpg", "cover.jpg"], "cover.jpg is the first"),
    (["01.jpg", "1.jpg", "02.jpg"], "1.jpg is the first"), (["001.jpg", "02.jpg", "003.jpg"], "02.jpg is the first"),
    (["a%1.jpg", "a%2.jpg"], "a%1.jpg is the first"), (["notes.txt"], "it holds none"),
])
def test_what_is_odd_among_frames_is_named(tmp_path, names, says):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(Corrupt, match="numbered in one way without a gap") as error:
        naming_in(str(tmp_path))
    assert says in str(error.value)

"""TSM_postprocess.py: joined by id, every form of result, and each way a result can be wrong."""

import json

import numpy as np
import pytest

from tsm.files import write_json
from tsm.protocol import SSV2
from tsm.results import accuracy_from, rate_line, read_accuracy, throughput_in, wilson
from tsm.samples import Clip, manifest_of

RNG = np.random.RandomState(7)
VIDEOS = 11


@pytest.fixture
def results(tmp_path):
    """A folder with 11 results as ais_bench leaves them, 8 of them right, 9 in the top five."""
    scores = RNG.permutation(VIDEOS * 174).reshape(VIDEOS, 174) / 1e4
    labels = RNG.randint(0, 174, VIDEOS)
    for index, label in enumerate(labels):
        ranked = np.argsort(-scores[index])
        other = ranked[0 if index < 8 else 3 if index == 8 else 100]
        scores[index, [label, other]] = scores[index, [other, label]]
    write(tmp_path, labels, scores, "txt")
    return tmp_path, labels, scores


def write(folder, labels, scores, form, order=None):
    (folder / "sthv2").mkdir(exist_ok=True)
    (folder / "inference_result/out").mkdir(parents=True, exist_ok=True)
    (folder / "sthv2/sthv2.info").write_text("".join("%d %d\n" % pair for pair in enumerate(labels)))
    infos = {}
    for key, index in enumerate(range(len(scores)) if order is None else order):
        path = "inference_result/out/%d_0.%s" % (index, form)
        rows = np.atleast_2d(scores[index]).astype(np.float32)
        if form == "txt":
            (folder / path).write_text("".join("".join("%f " % value for value in row) + "\n" for row in rows))
        elif form == "npy":
            np.save(str(folder / path), rows)
        else:
            rows.tofile(str(folder / path))
        infos[str(key)] = {"infiles": ["sthv2/preprocess_bin/%d.bin" % index], "outfiles": [path]}
    (folder / "inference_result/out_summary.json").write_text(json.dumps({"filesinfo": infos}))


ARGS = ("--result_path=inference_result/out_summary.json", "--info_path=sthv2/sthv2.info")


def figures(works, folder):
    return json.loads(works("TSM_postprocess.py", *ARGS, "--json", "-", cwd=folder).split("\n", 4)[4])


def test_what_the_clips_model_reached_stands_beside(works, fails, results):
    folder, labels, scores = results
    clip = dict(figures(works, folder), top1_acc=0.9, top1_interval_95=[0.6, 1.0])
    write_json(str(folder / "clip.json"), clip, "accuracy")
    said = works("TSM_postprocess.py", *ARGS, "--clip", "clip.json", "--json", "a.json", cwd=folder)
    assert "the clip's model     0.9000   (95 % interval 0.6000 to 1.0000)" in said
    assert read_accuracy(str(folder / "a.json"))[1] == clip
    write_json(str(folder / "clip.json"), dict(clip, videos=12), "accuracy")
    assert "clip.json: is of 12 videos, these are 11; name a run over the same list" in fails(
        "TSM_postprocess.py", *ARGS, "--clip", "clip.json", cwd=folder)


def test_accuracy_of_known_results(works, fails, results):
    folder = results[0]
    out = works("TSM_postprocess.py", *ARGS, cwd=folder)
    assert "--result_path" in fails("TSM_postprocess.py", cwd=folder, status=2)
    assert "top-1                0.7273" in out and "top-5                0.8182" in out
    assert figures(works, folder)["top1_acc"] == 8 / 11


@pytest.mark.parametrize("form", ["txt", "npy", "bin"])
def test_any_form_order_and_folder_give_the_same_and_files_of_whole_batches_drop_their_filler(works, results, form):
    folder, labels, scores = results
    expected = figures(works, folder)
    write(folder, labels, scores, form, order=RNG.permutation(VIDEOS))
    assert figures(works, folder) == expected
    filled = np.concatenate((scores, scores[8:9])).reshape(3, 4, 174)  # the last batch is filled with its first video
    write(folder, labels, filled, form)
    assert figures(works, folder) == expected
    (folder / "inference_result").rename(folder / "elsewhere")
    moved = ("--result_path=elsewhere/out_summary.json",) + ARGS[1:]
    assert "%.4f" % expected["top1_acc"] in works("TSM_postprocess.py", *moved, cwd=folder)


def test_skipped_videos_are_said(works, results):
    folder, _, _ = results
    (folder / "list.txt").write_text("x.webm 0\n")
    clips = {index: Clip(index + 1, "x.webm", None, 0) for index in range(VIDEOS + 1)}
    write_json(str(folder / "sthv2/sthv2.json"), manifest_of(
        str(folder / "list.txt"), clips, SSV2, "float32", {}, dict.fromkeys(range(VIDEOS), "0" * 32), {VIDEOS: "is empty"}), "manifest")
    assert "accuracy over 11 of 12 (1 skipped) videos" in works("TSM_postprocess.py", *ARGS, cwd=folder)


def _drop(folder):
    (folder / "inference_result/out/3_0.txt").unlink()
    return "3_0.txt"


def _unlabelled(folder):
    lines = (folder / "sthv2/sthv2.info").read_text().splitlines(True)
    (folder / "sthv2/sthv2.info").write_text("".join(lines[:-1]))
    return "10_0.txt"


def _unmeasured(folder):
    with (folder / "sthv2/sthv2.info").open("a") as file:
        file.write("11 0\n")
    return "video 11"


def _twice(folder):
    summary = json.loads((folder / "inference_result/out_summary.json").read_text())
    summary["filesinfo"]["11"] = summary["filesinfo"]["3"]
    (folder / "inference_result/out_summary.json").write_text(json.dumps(summary))
    return "video 3"


def _written(path, text):
    """Another text in a file, which may be made of its words."""
    def damage(folder):
        (folder / path).write_text(text if isinstance(text, str) else text((folder / path).read_text().split()))
        return path.split("/")[-1]

    return damage


@pytest.mark.parametrize("damage", [_drop, _unlabelled, _unmeasured, _twice] + [
    _written("inference_result/out/3_0.txt", text) for text in [
        lambda words, first=first: " ".join([first] + words[1:]) for first in ("nan", "inf", "1e300", "zero")] + [
        "", lambda words: " ".join(words[1:]), lambda words: " ".join(words + ["0"]), lambda words: " ".join(words) + "\n" + words[0]]
] + [_written("inference_result/out_summary.json", text) for text in (
    "{", "[]", "{}", '{"filesinfo": {"0": {"infiles": [], "outfiles": []}}}', '{"filesinfo": {"0": {"infiles": [3], "outfiles": [4]}}}',
    '{"filesinfo": {"0": {"infiles": ["clip.bin"], "outfiles": ["a_0.txt"]}}}')
] + [_written("sthv2/sthv2.info", text) for text in ("", "0\n", "0 174\n", "0 -1\n", "0 1\n0 2\n", "a b\n", "\0\0\0")])
def test_what_is_wrong_is_named_in_one_line(fails, results, damage):
    named = damage(results[0])
    assert named in fails("TSM_postprocess.py", *ARGS, cwd=results[0])


def test_ties_go_to_the_lower_class_and_are_counted():
    scores = np.zeros((2, 174))
    scores[:, [5, 9]] = 0.5
    accuracy = accuracy_from(dict(enumerate(scores)), {0: 5, 1: 9}, 0)
    assert (accuracy.top1_acc, accuracy.top5_acc, accuracy.verdicts_on_ties) == (0.5, 1.0, 2)


def test_mean_class_accuracy_weighs_classes_alike_also_one_that_was_answered_and_has_no_video():
    """As mmaction2 0.24 and 1.2 do: mean_class_accuracy([e0, e0, e0, e7], [0, 0, 0, 3]) is 1 / 3, of the classes 0, 3 and 7."""
    for answers, labels, wanted in (([0, 0, 0, 3, 3], [0, 0, 0, 3, 0], (3 / 4 + 1) / 2), ([0, 0, 0, 7], [0, 0, 0, 3], 1 / 3),
                                    ([7], [7], 1), ([1, 2, 3], [0, 0, 0], 0),
                                    ([5, 5, 1, 9], [5, 5, 5, 5], (2 / 4) / 3)):
        scores = dict(enumerate(np.eye(174)[answers]))
        assert accuracy_from(scores, dict(enumerate(labels)), 0).mean_class_accuracy == pytest.approx(wanted)


def test_wilson_interval_against_published_values():
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81/263 and 15/148
    assert np.allclose(wilson(81, 263), (0.2553, 0.3662), atol=5e-5)
    assert np.allclose(wilson(15, 148), (0.0624, 0.1605), atol=5e-5)


@pytest.mark.parametrize("rate", [0.41178, 2.8712, 97.08, 12345.6])
def test_a_throughput_in_words_is_read_again(rate):
    frame = {"frame_ms": {"p50": 1.0, "p90": 2.0, "p99": 3.0}}
    assert throughput_in("warm\n%s\nmore\n" % rate_line(rate, frame)) == pytest.approx(rate, 1e-3)

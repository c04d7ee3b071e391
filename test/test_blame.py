"""TSM_compare.py of one run: each stage's fault, and each mistake about the weights, is injected and is the one that is named."""

import json
import os
import shutil

import cv2
import numpy as np
import onnx
import pytest
import torch
from clips import copy_of
from onnx import helper, numpy_helper

from tsm.checkpoint import config, pyconfig
from tsm.checkpoint.reader import load, save
from tsm.model.network import load_network, scores
from tsm.protocol import SSV2, frame_indices, fuse
from tsm.report.diagnose import DEPARTS, SAME, UNCHECKED, Chain, first_departure, stages_of
from tsm.report.suspects import AS_IT_WAS, DENSE, STARTS, Hunt, _folders, spread, suspects_of, weights_of
from tsm.results import write_result
from tsm.samples import read_info
from tsm.video import clips
from tsm.workfolder import read_run, write_run

VIDEOS, TRIED = 12, 1


@pytest.fixture
def work(chain, tmp_path):
    """A copy of the run, of VIDEOS of the demo's clips; its tensors are links until a test writes its own."""
    folder = copy_of(chain, tmp_path / "work")
    shutil.copy(str(chain.parent / "list.txt"), str(folder))
    write_run(read_run(str(folder))._replace(ann_file="list.txt"), str(folder))
    return folder


def blamed(folder):
    """(name, text) of the first stage that departs, whose predecessors are all the same."""
    for row in stages_of(Chain(str(folder), {}), TRIED):
        if row.state == DEPARTS:
            return row.stage, row.text
        assert row.state == SAME, row
    return None, None


def tensors_row(folder):
    """What is said of the tensors of samples 0 and 6."""
    return next(row for row in stages_of(Chain(str(folder), {}), 2) if row.stage == "tensors")


def rewrite_tensors(folder, change):
    """Change every tensor, given as float32 [crops, samples, segments, 3, size, size]."""
    for path in (folder / "sthv2/preprocess_bin").iterdir():
        data = np.fromfile(str(path), np.float32).reshape((3, 2, SSV2.segments) + SSV2.frame_shape)
        path.unlink()
        np.ascontiguousarray(change(data), np.float32).tofile(str(path))


def test_no_stage_of_a_sound_run_is_blamed(works, work):
    out = works("TSM_compare.py", "--stages", ".", "--videos", 2, "--json", "rows.json", cwd=work)
    assert out.splitlines()[-1] == "no stage departs"
    rows = {row["stage"]: row for row in json.loads((work / "rows.json").read_text())["stages"]}
    assert list(rows) == ["decoding", "tensors", "export", "surgery", "one view", "device", "text", "fusion", "labels"]
    assert {row["state"] for row in rows.values()} == {SAME} and rows["tensors"]["text"] == "equal"
    assert 0 < rows["export"]["largest"] < 1e-5 and rows["export"]["videos"] == 2 and rows["fusion"]["largest"] > 1e-4


def test_a_wrong_order_of_crops(work):
    rewrite_tensors(work, lambda video: video[[2, 0, 1]])
    stage, text = blamed(work)
    assert stage == "tensors" and "the crops are in the order 3, 1, 2" in text


def test_a_tensor_that_holds_no_numbers_is_told_wherever_it_is(work):
    first = work / "sthv2/preprocess_bin/0.bin"
    data = np.fromfile(str(first), np.float32)
    first.unlink()
    (data * np.float32("nan")).tofile(str(first))
    assert tensors_row(work).state == DEPARTS


def test_another_way_of_resizing_departs_and_files_that_are_gone_are_counted(work, monkeypatch):
    resize = cv2.resize
    monkeypatch.setattr(cv2, "resize", lambda *args, **options: resize(*args, **dict(options, interpolation=cv2.INTER_CUBIC)))
    row = tensors_row(work)
    assert row.state == DEPARTS and "pixels differ by 0." in row.text
    monkeypatch.undo()
    (work / "sthv2/preprocess_bin/6.bin").unlink()
    row = tensors_row(work)
    assert row.state == SAME and row.videos == 1 and "equal; the files of 1 more are gone" in row.text


def test_bgr_for_rgb(work):
    mean, std = (np.array(fact, np.float32).reshape(3, 1, 1) for fact in (SSV2.mean, SSV2.std))
    rewrite_tensors(work, lambda video: ((video * std + mean)[:, :, :, ::-1] - mean) / std)
    stage, text = blamed(work)
    assert stage == "tensors" and "BGR, not RGB" in text


def test_frames_shifted_by_one(work, repo):
    def late(count, protocol):
        return [min(index + 1, count - 1) for index in frame_indices(count, protocol)]

    for entry in json.loads((work / "sthv2/sthv2.json").read_text())["samples"]:
        out, path = np.empty(SSV2.video_shape, np.float32), str(repo / "demo/videos" / entry["source"])
        clips.fill(path, None, SSV2, clips.table_for("float32", SSV2), out, sample=late)
        (work / "sthv2" / entry["file"]).unlink()
        out.tofile(str(work / "sthv2" / entry["file"]))
    stage, text = blamed(work)
    assert stage == "tensors" and "the frames are those after by one" in text


def test_tensors_of_other_videos(work):
    folder = work / "sthv2/preprocess_bin"
    os.rename(str(folder / "0.bin"), str(folder / "kept"))
    os.link(str(folder / "3.bin"), str(folder / "0.bin"))
    (folder / "kept").unlink()
    stage, text = blamed(work)
    assert stage == "tensors" and "file 0.bin holds the video of sample 3" in text


def test_a_shift_in_the_wrong_direction(work):
    """An export whose frames run backwards within a view computes what a shift in the wrong direction does."""
    model = onnx.load(str(work / "tsm_bs1.onnx"))
    name = model.graph.input[0].name
    order = np.arange(SSV2.frames).reshape(-1, SSV2.segments)[:, ::-1].ravel()
    for node in model.graph.node:
        node.input[:] = ["turned" if value == name else value for value in node.input]
    model.graph.initializer.append(numpy_helper.from_array(order, "order"))
    model.graph.node.insert(0, helper.make_node("Gather", [name, "order"], ["turned"], axis=1))
    onnx.save(model, str(work / "tsm_bs1.onnx"))
    stage, text = blamed(work)
    assert stage == "export" and "PyTorch" in text


def changed_weights(works, repo, work, change):
    """Another checkpoint of the thin network, and its exported and modified graphs as other*.onnx."""
    state, _ = load(str(repo / "demo/tsm_thin.pth"))
    change(state)
    torch.save({"state_dict": state}, str(work / "other.pth"))
    works("pytorch2onnx.py", "other.pth", "--output-file", "other.onnx", cwd=work)
    works("modify_onnx.py", "-m1", "other.onnx", "-m2", "other_new.onnx", "-bs", 1, "--target", "cpu", cwd=work)


def test_a_modified_model_of_another_network(works, repo, work):
    changed_weights(works, repo, work, lambda state: state["cls_head.fc_cls.bias"][::2].add_(3))
    shutil.copy(str(work / "other_new.onnx"), str(work / "tsm_new_bs1.onnx"))
    assert blamed(work)[0] == "surgery"


@pytest.mark.all
def test_an_overflow_of_fp16(works, repo, work):
    """A network whose stem's values are beyond fp16, though in fp32 it is the same; a device that saturates there."""
    def raised(state):
        for name in ("weight", "bias"):
            state["backbone.conv1.bn." + name] *= 1e6
        for reader in ("conv1.conv.net", "downsample.conv"):
            state["backbone.layer1.0.%s.weight" % reader] /= 1e6

    changed_weights(works, repo, work, raised)
    write_run(read_run(str(work))._replace(checkpoint="other.pth", model="tsm_bs1.om"), str(work))
    shutil.move(str(work / "other.onnx"), str(work / "tsm_bs1.onnx"))
    shutil.move(str(work / "other_new.onnx"), str(work / "tsm_new_bs1.onnx"))
    net, _ = load_network(str(work / "other.pth"))
    for most, finite in ((65504.0, True), (float("nan"), False)):
        hook = net.backbone.conv1.register_forward_hook(
            lambda module, x, y, most=most: torch.where(y > 65504, torch.full_like(y, most), y))
        video = np.fromfile(str(work / "sthv2/preprocess_bin/0.bin"), np.float32).reshape((1,) + SSV2.video_shape)
        write_result(str(work / "inference_result/out/0_0.txt"), "TXT", fuse(scores(net, video), SSV2.views, "score"))
        hook.remove()
        stage, text = blamed(work)
        assert stage == "device" and "fp16 ends at 65504" in text
        assert ("not finite" in text) != finite


def test_a_stale_om(work):
    write_run(read_run(str(work))._replace(model="tsm_bs1.om"), str(work))
    (work / "tsm_bs1.om").write_bytes(b"om")
    os.utime(str(work / "tsm_bs1.om"), (1000, 1000))
    for path in (work / "inference_result/out").iterdir():
        write_result(str(path), "TXT", np.eye(SSV2.classes)[:1])
    stage, text = blamed(work)
    assert stage == "device" and "tsm_bs1.om is older than tsm_new_bs1.onnx" in text


def test_shuffled_results(work):
    out = work / "inference_result/out"
    texts = [(out / ("%d_0.txt" % index)).read_text() for index in range(VIDEOS)]
    for index, text in enumerate(texts):
        (out / ("%d_0.txt" % ((index + 1) % VIDEOS))).write_text(text)
    stage, text = blamed(work)
    assert stage == "device" and "the results are shuffled" in text and "video 1's is that of 0" in text


@pytest.mark.all
def test_results_of_the_other_fusion(works, work):
    works("modify_onnx.py", "-m1", "tsm_bs1.onnx", "-m2", "prob.onnx", "-bs", 1, "--target", "cpu", "--fusion", "prob", cwd=work)
    works("TSM_infer.py", "--model", "prob.onnx", "--input", "./sthv2/preprocess_bin", "--output", "./inference_result",
          "--output_dirname", "out", "--outfmt", "TXT", cwd=work)
    stage, text = blamed(work)
    assert stage == "fusion" and "the results are fused by prob, and the model says score" in text


@pytest.mark.parametrize("digits", [2, pytest.param(3, marks=pytest.mark.all)])
def test_text_of_few_decimals(work, digits):
    for path in (work / "inference_result/out").glob("*.txt"):
        path.write_text(" ".join("%.*f" % (digits, float(word)) for word in path.read_text().split()) + "\n")
    stage, text = blamed(work)
    assert stage == "text" and "decimals: %d" % digits in text


@pytest.mark.parametrize("named", ["from 1", pytest.param("reverse order", marks=pytest.mark.all), "says"])
def test_labels(work, named):
    labels = [line.split() for line in (work / "sthv2/sthv2.info").read_text().splitlines()]
    change = {"from 1": lambda label: label + 1, "reverse order": lambda label: 173 - label, "says": lambda label: label + 1}
    (work / "sthv2/sthv2.info").write_text("".join("%s %d\n" % (index, change[named](int(label))) for index, label in labels))
    if named != "says":  # the list as well
        lines = [line.rsplit(" ", 1) for line in (work / "list.txt").read_text().splitlines()]
        (work / "list.txt").write_text("".join("%s %d\n" % (name, change[named](int(label))) for name, label in lines))
    stage, text = blamed(work)
    assert stage == "labels" and {"from 1": "from 1", "reverse order": "reverse order", "says": "list.txt, line 1 says"}[named] in text


def test_what_is_missing_is_not_checked(work):
    (work / "run.json").unlink()
    (work / "tsm_bs1.onnx").unlink()
    shutil.rmtree(str(work / "inference_result"))
    rows = list(stages_of(Chain(str(work), {}), 1))
    states = {row.stage: row.state for row in rows}
    assert {states[name] for name in ("decoding", "tensors", "export", "surgery", "device", "labels")} == {UNCHECKED}
    assert states["one view"] == SAME and first_departure(rows).startswith("no stage departs of those checked; not checked: decoding")


def test_bad_input_is_one_line(fails, work, tmp_path):
    assert "tsm_new_bs" in fails("TSM_compare.py", "--stages", tmp_path, cwd=work)
    assert "none.pth: No such file" in fails("TSM_compare.py", "--stages", ".", "--checkpoint", "none.pth", cwd=work)
    assert "modify_onnx.py" in fails("TSM_compare.py", "--stages", ".", "--model", "tsm_bs1.onnx", cwd=work)
    (work / "run.json").write_text('{"infer":')
    assert "run.json" in fails("TSM_compare.py", "--stages", ".", cwd=work)


def test_a_list_in_another_order_whose_labels_agree(work):
    lines = (work / "list.txt").read_text().splitlines(True)
    names, labels = zip(*(line.rsplit(" ", 1) for line in lines))
    (work / "list.txt").write_text("".join("%s %s" % pair for pair in zip(names[1:] + names[:1], labels)))
    stage, text = blamed(work)
    assert stage == "labels" and "list.txt, line 1 is %s, and sample 0 was made of %s" % (names[1], names[0]) in text
    (work / "list.txt").write_text("".join(lines[:-1]))
    assert "is it the run's list?" in blamed(work)[1]


def test_a_malformed_list_is_one_line_before_the_stages_of(run, work):
    (work / "list.txt").write_text((work / "list.txt").read_text() + "no label\n")
    done = run("TSM_compare.py", "--stages", ".", "--json", "rows.json", cwd=work)
    assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert "list.txt, line %d" % (VIDEOS + 1) in done.stderr and not (work / "rows.json").exists()


def test_a_run_of_one_video_has_no_warnings(run, repo, works, work):
    (work / "list.txt").write_text((work / "list.txt").read_text().splitlines(True)[0])
    shutil.rmtree(str(work / "sthv2"))
    works("TSM_preprocess.py", "--data_root", repo / "demo/videos", "--ann_file", "list.txt", "--output_dir", "sthv2", "--batch_size",
          1, cwd=work)
    summary = json.loads((work / "inference_result/out_summary.json").read_text())
    summary["filesinfo"] = {"0": summary["filesinfo"]["0"]}
    (work / "inference_result/out_summary.json").write_text(json.dumps(summary))
    done = run("TSM_compare.py", "--stages", ".", cwd=work)
    assert done.returncode == 0 and done.stderr == "" and "no class has two videos" in done.stdout


@pytest.mark.all
def test_files_of_two_runs_are_one_line(works, fails, work, demo_variants):
    other, bytes_of = demo_variants
    for option in ("--stages", "--agreement=1"):
        assert "segments" in fails("TSM_compare.py", option, ".", "--model", other, cwd=work)
        assert "float32, not uint8" in fails("TSM_compare.py", option, ".", "--model", bytes_of, cwd=work)
    line = works("TSM_compare.py", "--stages", ".", "--exported", "tsm_new_bs1.onnx", cwd=work)
    assert "tsm_new_bs1.onnx does not give 6 rows" in line and "by --exported" in line and "not checked: export, surgery" in line
    info = (work / "sthv2/sthv2.info").read_text()
    for text, words in ((info + "99 3\n", "sample 99 is not both in it"), (info.split("\n", 1)[1], "sample 0 is not both in it")):
        (work / "sthv2/sthv2.info").write_text(text)
        line = fails("TSM_compare.py", "--stages", ".", cwd=work)
        assert words in line and "sthv2.info" in line and "sthv2.json" in line


@pytest.fixture(scope="module")
def demo_variants(works, thin_onnx, tmp_path_factory):
    """The thin network modified under another protocol, and for uint8."""
    folder = tmp_path_factory.mktemp("variants")
    model = onnx.load(str(thin_onnx))
    for entry in model.metadata_props:
        if entry.key == "tsm.protocol":
            entry.value = json.dumps(dict(json.loads(entry.value), segments=16, sampling="uniform"))
    onnx.save(model, str(folder / "segments.onnx"))
    works("modify_onnx.py", "-m1", thin_onnx.parent / "thin.onnx", "-m2", folder / "bytes.onnx", "-bs", 1, "--target", "cpu",
          "--input_dtype", "uint8", cwd=folder)
    return folder / "segments.onnx", folder / "bytes.onnx"


def test_a_run_by_hand_is_told_where_its_files_are(works, repo, work):
    (work / "run.json").unlink()
    options = ("--data_root", repo / "demo/videos", "--ann_file", "list.txt", "--checkpoint", repo / "demo/tsm_thin.pth")
    assert works("TSM_compare.py", "--stages", ".", "--videos", 1, *options, cwd=work).splitlines()[-1] == "no stage departs"


def test_a_run_that_moved_has_its_files_with_it(work, tmp_path):
    work.rename(tmp_path / "moved")
    chain = Chain(str(tmp_path / "moved"), {})
    for path in (chain.ann_file, chain.checkpoint, chain.exported, chain.device_model, chain.data_root):
        assert os.path.exists(path), path
    assert chain.ann_file == str(tmp_path / "moved/list.txt")


def test_agreement_counts_flips_on_a_few_videos(works, work):
    out = works("TSM_compare.py", "--agreement", 3, ".", "--json", "agreement.json", cwd=work)
    assert "top-1: 0 of 3 answers differ from fp32's: at most 56.1 % do" in out
    write_result(str(work / "inference_result/out/4_0.txt"), "TXT", np.eye(SSV2.classes)[:1])  # the first class comes first
    out = works("TSM_compare.py", "--agreement", 3, ".", "--json", "agreement.json", cwd=work)
    found = json.loads((work / "agreement.json").read_text())
    assert "top-1: 1 of 3 answers differ" in out and "video 4: class 0, in fp32 class" in out
    assert found["flips"] == 1 and found["largest_difference"] > 0.5 and found["flipped"][0]["id"] == 4


def test_agreement_of_a_device_whose_tensors_are_gone(works, repo, work):
    """As on an NPU in chunks: a model for ATC, and no tensors."""
    works("modify_onnx.py", "-m1", "tsm_bs1.onnx", "-m2", "tsm_new_bs1.onnx", "-bs", 1, cwd=work)
    write_run(read_run(str(work))._replace(model="tsm_bs1.om", device="npu"), str(work))
    shutil.rmtree(str(work / "sthv2/preprocess_bin"))
    chain = Chain(str(work), {})
    assert chain.data_root == str(repo / "demo/videos") and os.path.normpath(chain.device_model) == str(work / "tsm_bs1.om")
    out = works("TSM_compare.py", "--agreement", 1, ".", "--model", "tsm_new_bs1.onnx", cwd=work)
    assert "top-1: 0 of 1 answers differ" in out


# --suspects: what the weights may have been made for


def hunt_of(folder, videos=200, **facts):
    """A hunt over a run whose protocol says something else than its weights were made for."""
    chain = Chain(str(folder), {})
    chain.protocol = chain.protocol._replace(**facts)
    return Hunt(chain, videos)


def test_labels_are_suspected_without_computing_anything(works, work):
    """Videos that are gone leave the labels, over the results that are there; the other changes are not tried."""
    info = work / "sthv2/sthv2.info"
    labels = read_info(str(info), SSV2.classes)
    as_text = sorted(range(SSV2.classes), key=str)
    info.write_text("".join("%d %d\n" % (index, as_text.index(label)) for index, label in labels.items()))
    out = works("TSM_compare.py", "--suspects", ".", "--data_root", "sthv2", cwd=work)
    assert "with labels, the numbers of the classes sorted as text (1, 10, 100, 2), top-1 is 1.0000" in out  # of four such orders one
    info.write_text("".join("%d %d\n" % (index, label + 1) for index, label in labels.items()))
    out = works("TSM_compare.py", "--suspects", ".", "--data_root", "sthv2", "--json", "s.json", "--html", "s.html", cwd=work)
    assert "note: 12 videos are few" in out and "the videos are missing; --data_root names their folder" in out
    found = json.loads((work / "s.json").read_text())
    assert found["rows"][0]["change"] == "labels, each lowered by one" and found["rows"][0]["gained"] == VIDEOS
    assert "labels, each lowered by one, top-1 is 1.0000 instead of 0.0000 on 12 videos" in out and "counted from 1" in out
    assert found["precision"] in ("fp32", "bf16")
    assert "What was tried" in (work / "s.html").read_text()


def test_a_wrong_mean_is_named_before_the_others(work):
    hunt = hunt_of(work, 8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    hunt.suspects = [one for one in hunt.suspects if one.name in ("BGR frames", "ImageNet's mean and std", "shift none", "shift_div 16")]
    hunt.race()
    rows = {row.change: row for row in hunt.rows()}
    assert hunt.rows()[0] == rows["ImageNet's mean and std"] and rows["ImageNet's mean and std"].after == 1.0
    assert rows["ImageNet's mean and std"].videos == 8 and rows["BGR frames"].after < 0.5
    assert rows["shift_div 16"].problem == "cannot be built for this network"


def test_a_sound_run_is_not_accused_and_a_stage_that_departs_is_told_from_a_change(work):
    hunt = hunt_of(work, 8)
    hunt.suspects = hunt.suspects[:1]
    hunt.race()
    assert hunt.verdict(hunt.rows()).startswith("no single change") and "good already" in hunt.verdict(hunt.rows())
    hunt.given = dict.fromkeys(hunt.given, 0)
    assert "a stage departs, and --stages tells which" in hunt.verdict(hunt.rows())


def test_what_a_change_does_to_a_view():
    base, suspects = suspects_of(SSV2)
    by_name = {one.name: one for one in suspects}
    assert len(by_name) == len(suspects) > 20 and base.protocol.views == 1
    raw = np.random.RandomState(0).randint(0, 256, (8, 3, 4, 4)).astype(np.uint8)
    mean, std = (np.array(fact, np.float32).reshape(1, 3, 1, 1) for fact in (SSV2.mean, SSV2.std))
    for name, wanted in (("BGR frames", ((raw - mean) / std)[:, ::-1]), ("pixels divided by 255 alone", raw / 255),
                         ("mean and std of 127.5", (raw - 127.5) / 127.5), ("frames backwards, or the shift in the other direction",
                                                                            ((raw - mean) / std)[::-1]),
                         ("Caffe's BGR and mean", raw[:, ::-1] - np.array([103.53, 116.28, 123.675]).reshape(1, 3, 1, 1))):
        one = by_name[name]
        assert np.allclose(one._replace(protocol=one.protocol._replace(size=4)).views(raw)[0], wanted, atol=1e-4), name
    named = {one.name: one for one in suspects_of(SSV2._replace(mean=(1.0, 2.0, 3.0), sampling="uniform", size=224))[1]}
    other = named["BGR frames, mean and std of RGB"].views(raw[..., :1, :1].repeat(224, 2).repeat(224, 3))[0]
    assert np.allclose(other[..., 0, 0], (raw[:, ::-1, 0, 0] - [1, 2, 3]) / SSV2.std, atol=1e-4)
    assert by_name["shift past1"].protocol.shift == "past1" and "--shift past1" in by_name["shift past1"].remedy
    assert STARTS(40, SSV2) == [0, 5, 10, 15, 20, 25, 30, 35] and DENSE(640, SSV2)[1] - DENSE(640, SSV2)[0] == 8


def test_a_remedy_is_read_as_what_was_suspected():
    run = SSV2._replace(sampling="uniform", shift_div=4, segments=4, mean=(1.0, 2.0, 3.0))
    read = {}
    for one in suspects_of(run)[1]:
        if "has, and need not have more: " in one.remedy:
            read[one.name] = config.facts(pyconfig.parse(one.remedy.split("more: ")[1], "it"), "it")
            assert read[one.name].pop("sampled") == read[one.name]["segments"]
    changes = {"crops of 224 of a short side of 256": dict(crops="centre", size=224), "16 segments": dict(segments=16), "shift_div 8": dict(
        shift_div=8), "dense sampling": dict(sampling="dense"), "frames at the starts of segments": dict(sampling="twice"),
        "pixels divided by 255 alone": dict(mean=(0.0,) * 3, std=(255.0,) * 3), "BGR frames, mean and std of RGB": dict(
            mean=(3.0, 2.0, 1.0), std=SSV2.std[::-1])}
    same = {name: value for name, value in run._asdict().items() if name not in ("classes", "shift")}
    assert {name: read[name] for name in changes} == {name: dict(same, **change) for name, change in changes.items()} and len(read) > 15


def test_videos_are_spread_and_p_is_corrected(work):
    labels = dict(enumerate([0] * 20 + [1] * 20 + [2]))
    order = spread(labels)
    assert sorted(order) == sorted(labels) and {labels[index] for index in order[:3]} == {0, 1, 2}
    hunt = hunt_of(work)
    names = [one.name for one in hunt.suspects[:2]]
    hunt.given = {}
    for name, gained in ((AS_IT_WAS, 0), (names[0], 12), (names[1], 20)):
        hunt.right[name] = {index: index < gained for index in range(40)}
    first, second = hunt.rows()[:2]
    assert (first.change, second.change) == (names[1], names[0])
    assert first.corrected == pytest.approx(2 * 2 / 2 ** 20) and second.corrected == pytest.approx(2 / 2 ** 12)
    assert "instead of 0.0000 on 40 videos (p = 3.8e-06)" in hunt.verdict([first, second]) and "To make it right" in hunt.verdict([first])


def test_of_equal_changes_the_simplest_stands_first_and_what_cannot_catch_up_is_dropped(work):
    hunt = hunt_of(work)
    hunt.given = {}
    first, second, third = hunt.suspects[3:6]
    for name, gained in ((AS_IT_WAS, 0), (third.name, 40), (second.name, 39.5), (first.name, 10)):
        hunt.right[name] = {index: index < gained for index in range(40)}
    del hunt.right[second.name][39]  # a video that only the others have
    rows = hunt.rows()
    assert [row.change for row in rows[:3]] == [second.name, third.name, first.name]
    assert hunt.verdict(rows).endswith("As good, but not as simple: " + third.name)
    assert [one.name for one in hunt.hopeful(hunt.suspects)] == [second.name, third.name]


def test_fusion_is_suspected_over_all_views_and_a_video_that_cannot_be_read_is_told(work):
    hunt = hunt_of(work, 4)
    hunt.suspects = [one for one in hunt.suspects if one.name.startswith("fusion")]
    assert [one.name for one in hunt.suspects] == ["fusion prob"] and "--fusion prob" in hunt.suspects[0].remedy
    gone = hunt.order[1]
    hunt.chain.sources[gone] = "gone.webm"
    hunt.race()
    row = next(row for row in hunt.rows() if row.change == "fusion prob")
    assert row.videos == 3 and hunt.right["fusion score"] == {
        index: hunt.given[index] == hunt.chain.labels[index] for index in hunt.order if index != gone}
    assert hunt.notes[-1].startswith("1 of the videos cannot be read, and are left out, such as gone.webm: ")


def test_a_folder_whose_videos_are_answered_as_another_class_is_a_hint(work):
    chain = Chain(str(work), {})
    answers = {index: (np.eye(SSV2.classes)[7] if index < 6 else np.eye(SSV2.classes)[chain.labels[index]]) for index in chain.labels}
    chain.sources = {index: "%s/%d.webm" % ("left" if index < 6 else "right", index) for index in answers}
    chain.labels = {index: 8 if index < 6 else label for index, label in chain.labels.items()}
    (note,) = _folders(chain, answers)
    assert note.startswith("6 of the 6 videos in left are surely answered as ") and note.endswith(", which is not their label")
    assert _folders(chain, {index: one * 0.4 for index, one in answers.items()}) == []


def test_weights_that_nobody_trained(works, repo, work):
    state, meta = load(str(repo / "demo/tsm_thin.pth"))
    assert weights_of(Hunt(Chain(str(work), {}), 1).trunk, str(repo / "demo/tsm_thin.pth")) == ""
    for name in [name for name in state if "layer4" in name and name.endswith(("running_mean", "running_var"))]:
        state[name] = torch.full_like(state[name], float(name.endswith("var")))
    save(str(work / "part.pth"), state, {})
    out = works("TSM_compare.py", "--suspects", ".", "--data_root", "sthv2", "--checkpoint", "part.pth", cwd=work)
    assert "\nBatchNorm and classifier" in out and "good already" in out.splitlines()[-1]
    hunt = Hunt(Chain(str(work), {"checkpoint": str(work / "part.pth")}), 1)
    hunt.given = dict.fromkeys(hunt.given, 0)
    assert "in part: 10 of 53 BatchNorm layers have the statistics they were made with" in hunt.verdict(hunt.rows())

"""TSM_stream.py: the files of TSM_preprocess.py + TSM_infer.py with no tensor on disk, restartable, in bounded memory."""

import json
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from clips import arguments, clip_of, listed

from tsm.cli import Corrupt, UserError
from tsm.files import read_json
from tsm.infer import engine
from tsm.infer.engine import Computing, Engine, open_online, run_stream
from tsm.model import offline
from tsm.model.onnxfile import session
from tsm.protocol import SSV2, softmax
from tsm.results import read_scores
from tsm.video.clips import as_video
from tsm.video.windows import paced

CLIPS = 5
TIMES = ("NPU_compute_time", "H2D_latency", "D2H_latency", "throughput", "npu_compute_time_list", "pid", "args")

ARGS = arguments()


@pytest.fixture
def setting(tmp_path, small_onnx):
    """Five demo clips, their list, and a network's model."""
    return listed(tmp_path / "run", small_onnx, CLIPS)


def files(folder):
    """{name: bytes} of what a run leaves, the journals and the times apart."""
    found = {}
    for top in ("res", "sthv2"):
        for path in sorted((folder / top).rglob("*")):
            if path.is_file() and not path.name.startswith(".") and path.suffix != ".bin":
                found[str(path.relative_to(folder))] = path.read_bytes()
    summary = json.loads(found.pop("res/out_summary.json").decode())
    found["files"] = [(entry["infiles"][0].replace("./", ""), entry["outfiles"]) for entry in summary["filesinfo"].values()]
    assert set(TIMES) <= set(summary) and summary["NPU_compute_time"]["count"] == len(summary["filesinfo"])
    return found


def test_no_stream_is_idle_between_two_videos():
    """Two streams and videos of three views, where a view ends only once it has run beside another: even the last of a video
    has the first of the next beside it."""
    protocol = SSV2._replace(size=4, short_side=4, classes=3, sampling="uniform")
    pool, slots, running, beside = ThreadPoolExecutor(2), threading.Semaphore(2), [], threading.Barrier(2)

    def submit(view, take):
        def work():
            beside.wait(timeout=60)
            take(np.full((protocol.segments, protocol.classes), view.flat[0]))
            slots.release()

        slots.acquire()
        running.append(pool.submit(work))

    def videos():
        for number in range(5):
            yield number, Corrupt("no video") if number == 2 else np.full((1,) + protocol.video_shape, number, np.float32)

    engine = Engine("none", 2, submit, lambda: [one.result() for one in running])
    began = time.perf_counter()
    found = list(run_stream(engine, SimpleNamespace(protocol=protocol, fusion="prob", target="cpu", metadata={}), videos()))
    seconds = time.perf_counter() - began
    assert [key for key, _, _, _ in found] == list(range(5)) and isinstance(found[2][1], Corrupt)
    assert all(np.allclose(result, 1 / 3) for key, result, _, _ in found if key != 2)
    assert 0 < sum(computing + waited for _, _, computing, waited in found) <= 1000 * seconds


@pytest.mark.parametrize("error", [UserError("the third"), MemoryError(), KeyboardInterrupt()])
def test_an_error_comes_after_the_results_that_were_begun_before_it(error):
    protocol = SSV2._replace(size=4, short_side=4, classes=3, sampling="uniform")
    pool = ThreadPoolExecutor(1)
    running = []

    def submit(view, take):
        running.append(pool.submit(lambda: (time.sleep(0.01), take(np.zeros((protocol.segments, protocol.classes))))))

    def videos():
        for number in range(2):
            yield number, np.zeros((1,) + protocol.video_shape, np.float32)
        raise error

    found = []
    with pytest.raises(type(error)):
        for key, _, _, _ in run_stream(Engine("none", 1, submit, lambda: [one.result() for one in running]),
                                  SimpleNamespace(protocol=protocol, fusion="prob", target="cpu", metadata={}), videos()):
            found.append(key)
    assert found == [0, 1]


def test_it_leaves_what_the_two_scripts_leave_but_the_tensors(works, setting, small_onnx):
    works("TSM_preprocess.py", "--data_root", "videos", "--ann_file", "list.txt", "--protocol", small_onnx.parent / "protocol.json",
          cwd=setting)
    works("TSM_infer.py", "-m", "new.onnx", "-i", "sthv2/preprocess_bin", "-o", "res", "--output_dirname", "out", "--outfmt",
          "TXT", "--backend", "onnxruntime", cwd=setting)
    expected = files(setting)
    for name in ("res", "sthv2"):
        shutil.rmtree(str(setting / name))
    works("TSM_stream.py", *ARGS, cwd=setting)
    assert files(setting) == expected and not list(setting.rglob("*.bin"))
    out = works("TSM_postprocess.py", "--result_path=res/out_summary.json", "--info_path=sthv2/sthv2.info", cwd=setting)
    assert "accuracy over %d videos" % CLIPS in out


def test_what_is_for_other_models_or_names_no_folder_is_refused_and_nothing_is_removed_but_what_the_run_made(fails, works, setting):
    (setting / "res/own").mkdir(parents=True)
    (setting / "res/own/file").write_text("mine")
    for name in ("", ".", "/", "..", "out/../.."):
        assert "argument --output_dirname: %r names no folder of its own" % name in fails(
            "TSM_stream.py", *ARGS, "--output_dirname", name, cwd=setting, status=2)
    for words in (["--curve"], ["--every", "0.5"]):
        assert words[0] + ": new.onnx is no online model; make one" in fails("TSM_stream.py", *ARGS, *words, cwd=setting)
    works("TSM_stream.py", *ARGS, "--output_dirname", "out//", cwd=setting)
    assert (setting / "res/own/file").read_text() == "mine"
    assert (setting / "res/out_summary.json").exists() and len(list((setting / "res/out").glob("*.txt"))) == CLIPS


def test_a_clip_that_was_mended_is_read_again(fails, works, setting):
    clip_of("landscape", 40, str(setting / "videos/frames"))
    (setting / "list.txt").write_text("frames 40 1\n")
    second = setting / "videos/frames/img_00002.jpg"  # which no sample takes
    second.rename(setting / "kept.jpg")
    assert "img_00002.jpg is missing" in fails("TSM_stream.py", *ARGS, cwd=setting)
    (setting / "kept.jpg").rename(second)
    assert "1 made, 0 already right, 0 skipped" in works("TSM_stream.py", *ARGS, cwd=setting)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_model_with_states_gives_frame_by_frame_what_its_clip_gives(online_onnx, backend):
    model = offline.read_offline(str(online_onnx))
    frames = np.random.RandomState(0).standard_normal((8, 1, 3, 256, 256)).astype(np.float32)
    online = open_online(model, Computing(backend, "fp32", None, ""))
    expected = session(offline.clip_of(model, "view"), "clip", threads=1).run(None, {"input": frames[:, 0]})[0]
    scores = np.stack([online.step(frame) for frame in frames])
    assert np.abs(scores - expected).max() < 1e-5 and np.abs(scores[0] - online.step(frames[0])).max() > 1e-3
    online.reset()
    other, again = online.another(), []
    for frame in frames:
        again.append(online.step(frame))
        other.step(frame[:, :, ::-1].copy())  # whose states are its own
    assert np.array_equal(scores, np.stack(again))


def test_a_state_that_is_not_finite_is_reset_and_a_frame_that_is_not_is_an_error(online_onnx, monkeypatch, capsys):
    model = offline.read_offline(str(online_onnx))
    online = open_online(model, Computing("onnxruntime", "fp32", None, ""))
    frame = np.random.RandomState(0).standard_normal((1, 3, 256, 256)).astype(np.float32)
    first = online.step(frame)
    with pytest.raises(UserError, match="scores are not finite"):
        online.step(frame * np.nan)
    assert np.array_equal(online.step(frame), first)  # nothing of it is left
    scores = iter([np.array([np.nan]), np.array([1.0])])
    monkeypatch.setattr(engine, "_fed_back", lambda *how: ("e", lambda: (lambda: None, lambda frame: next(scores))))
    assert open_online(model, Computing("onnxruntime", "fp32", None, "")).step(frame) == [1.0]
    assert "online.onnx: its states were not finite; they were reset" in capsys.readouterr().err


def test_a_list_is_answered_frame_by_frame_and_the_curve_ends_where_the_clips_do(works, setting, online_onnx):
    """Every view begins with empty states, whatever ran before it, and gives what the clip's graph gives."""
    model = offline.read_offline(str(online_onnx))
    shutil.copy(str(online_onnx), str(setting / "new.onnx"))
    out = works("TSM_stream.py", *ARGS, "--curve", "--streams", 2, cwd=setting)
    assert "2 views at a time, frame by frame, fused by score" in out and "a frame: p50 " in out
    streamed, curve = files(setting), read_json(str(setting / "res/out/curve.json"), "curve")
    clip = session(offline.clip_of(model, "view"), "clip", threads=1)
    works("TSM_preprocess.py", "--data_root", "videos", "--ann_file", "list.txt", cwd=setting)
    for index in range(CLIPS):
        video = np.fromfile(str(setting / ("sthv2/preprocess_bin/%d.bin" % index)), np.float32).reshape(6, 8, 3, 256, 256)
        scores = np.stack([clip.run(None, {"input": view})[0] for view in video])
        found = read_scores(str(setting / ("res/out/%d_0.txt" % index)), 174)[0]
        assert np.abs(softmax(scores.mean((0, 1))) - found).max() < 2e-6
        seen = [scores[:, :frames].mean((0, 1)).argmax() for frames in (1, 2, 2, 3, 4, 5, 6, 6, 7, 8)]
        assert curve["ids"][index] == index and curve["answers"][index] == seen
    said = works("TSM_postprocess.py", "--result_path=res/out_summary.json", "--info_path=sthv2/sthv2.info", "--json", "a.json",
                 cwd=setting)
    hits = sum(answers[-1] == index for index, answers in enumerate(curve["answers"]))
    point = read_json(str(setting / "a.json"), "accuracy")["curve"][-1]
    assert " 100 %%               %.4f   (95 %% interval" % (hits / CLIPS) in said and point["top1_acc"] == hits / CLIPS
    works("TSM_infer.py", "-m", "new.onnx", "-i", "sthv2/preprocess_bin", "-o", "res", "--output_dirname", "out", "--outfmt", "TXT",
          "--backend", "onnxruntime", cwd=setting)
    assert files(setting)["res/out/4_0.txt"] == streamed["res/out/4_0.txt"]
    frame_ms = json.loads((setting / "res/out_summary.json").read_text())["tsm"]["frame_ms"]
    assert 0 < frame_ms["p50"] <= frame_ms["p90"] <= frame_ms["p99"]


def test_a_list_at_a_spacing_is_answered_by_its_centre_and_the_curve_is_of_the_clips_own_time(works, run, setting, online_onnx):
    model = offline.read_offline(str(online_onnx))
    shutil.copy(str(online_onnx), str(setting / "new.onnx"))
    (setting / "videos/frames").mkdir()
    with open(str(setting / "list.txt"), "a") as file:
        file.write("frames 5\n")
    more = ("--every", 0.4, "--curve", "--on_error", "skip")
    done = run("TSM_stream.py", *ARGS, *more, cwd=setting)
    assert done.returncode == 0 and "5 made, 0 already right, 1 skipped" in done.stdout, done.stdout + done.stderr
    curve, one = read_json(str(setting / "res/out/curve.json"), "curve"), SSV2._replace(segments=1, sampling="uniform", crops="centre")
    lengths = set()
    for index, path in enumerate(sorted((setting / "videos").glob("*.webm"))):
        frames = np.concatenate([as_video([image], [0], one, "float32") for _, image in paced(str(path), 0.4, one)])
        clip = session(offline.clip_of(model, "view", segments=len(frames)), "clip", threads=1)
        scores = clip.run(None, {"input": frames})[0]
        found = read_scores(str(setting / ("res/out/%d_0.txt" % index)), 174)[0]
        assert np.abs(softmax(scores.mean(0)) - found).max() < 2e-6
        counts = [-(-len(frames) * tenths // 10) for tenths in range(1, 11)]  # of frames that begin before that share
        assert curve["answers"][index] == [scores[:count].mean(0).argmax() for count in counts]
        lengths.add(len(frames))
    assert len(lengths) > 2 and json.loads((setting / "res/out_summary.json").read_text())["tsm"]["model"]["tsm.every"] == "0.4"
    assert "0 made, 5 already right" in works("TSM_stream.py", *ARGS, *more, cwd=setting)
    assert "5 made, 0 already right" in works("TSM_stream.py", *ARGS, "--every", 0.5, *more[2:], cwd=setting)
    told = ("--result_path=res/out_summary.json", "--info_path=sthv2/sthv2.info")
    works("TSM_postprocess.py", *told, "--json", "a.json", cwd=setting)
    said = works("TSM_report.py", *told, "--model", "new.onnx", "--batch_size", 1, "--accuracy", "a.json", cwd=setting)
    assert "tensors are not of the model's protocol" not in said


@pytest.fixture
def on_a_chip(repo, tmp_path, online_onnx, monkeypatch):
    """The online model, and beside it what the stand-in of atc would make of it; ais_bench is the stand-in."""
    for suffix in (".onnx", ".om"):
        shutil.copy(str(online_onnx), str(tmp_path / ("online" + suffix)))
    monkeypatch.syspath_prepend(str(repo / "test/standins"))
    yield tmp_path / "online.onnx"
    for name in [name for name in sys.modules if name.split(".")[0] == "ais_bench"]:
        del sys.modules[name]


def test_on_a_chip_the_states_stay_there_and_the_scores_come_back(on_a_chip, monkeypatch):
    from ais_bench.infer import interface

    model, fetched = offline.read_offline(str(on_a_chip)), []
    to_host = interface.Tensor.to_host
    monkeypatch.setattr(interface.Tensor, "to_host", lambda tensor: (fetched.append(tensor.values.shape), to_host(tensor)))
    frames = np.random.RandomState(0).standard_normal((5, 1, 3, 256, 256)).astype(np.float32)
    scores = {}
    for backend in ("onnxruntime", "ascend"):
        online = open_online(model, Computing(backend, "fp32", None, ""))
        scores[backend] = [online.step(frame) for frame in frames]
        online.reset()
        assert np.array_equal(online.step(frames[0]), scores[backend][0]) and not np.array_equal(online.step(frames[0]), scores[backend][0])
    assert np.abs(np.subtract(*scores.values())).max() < 1e-5 * np.abs(scores["ascend"]).max()
    assert fetched == [(1, 174)] * 7


def test_what_a_chip_needs_is_named(fails, on_a_chip, thin_onnx, repo, tmp_path):
    (tmp_path / "list.txt").write_text("74225.webm 0\n")
    args = ("--data_root", repo / "demo/videos", "--ann_file", "list.txt", "--output", "res", "--backend", "ascend")
    online = ("TSM_stream.py", "--model", "online.onnx") + args
    assert "atc decided the precision" in fails(*online, "--precision", "bf16", cwd=tmp_path)
    assert "--backend ascend: runs online models" in fails("TSM_stream.py", "--model", thin_onnx, *args, cwd=tmp_path)
    assert "ais_bench: cannot be imported" in fails(*online, cwd=tmp_path)
    (tmp_path / "online.om").write_bytes(thin_onnx.read_bytes())
    with pytest.raises(UserError, match=r"online.om: the chip does not run it \(1 tensors on the device are needed\); look at npu-smi"):
        open_online(offline.read_offline(str(on_a_chip)), Computing("ascend", "", None, "")).step(np.zeros((1, 3, 256, 256), np.float32))
    (tmp_path / "online.om").unlink()
    assert "online.om: not found; compile " in fails(*online, cwd=tmp_path)


@pytest.mark.all
def test_int8_frame_by_frame_is_the_int8_clip_bit_for_bit(works, setting, online_onnx):
    pytest.importorskip("nncf")
    import openvino
    shutil.copy(str(online_onnx), str(setting / "new.onnx"))
    out = works("TSM_quantise.py", "--model", "new.onnx", "--ann_file", "list.txt", "--data_root", "videos", "--clips", 4, cwd=setting)
    assert "frame by frame its scores are those of the int8 clip bit for bit, on 4 views" in out
    inputs = openvino.Core().read_model(str(setting / "tsm_int8.xml")).inputs
    assert [one.get_element_type().get_type_name() for one in inputs] == ["f32"] + ["u8"] * 16  # the states come after a ReLU
    args = [word for word in ARGS if word not in ("--backend", "onnxruntime")]
    assert " answers differ from fp32's: of more like them at most " in works("TSM_stream.py", *args, "--precision", "int8", cwd=setting)

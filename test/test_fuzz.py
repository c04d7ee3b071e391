"""Checkpoints, ONNX models, results, summaries and info files with random damage: success, or one clear line and no file.

(Lists, frames, videos, tensors and manifests: test_corrupt.py.) Every damaged file is given to its script in a process of
its own, forked from one that has imported everything, so a crash or a hang of a library is seen as what it is.
"""

import gzip
import json
import multiprocessing
import os
import random
import resource
import signal
import sys

import numpy as np
import pytest
from fuzz import FUZZ, damaged

PATIENCE = 60  # seconds
STRUCTURE = 40000  # bytes at the start of a model that hold its nodes; the weights come after them
SCRIPTS = multiprocessing.get_context("forkserver")
SCRIPTS.set_forkserver_preload(["__main__", "numpy", "torch", "onnx", "onnxruntime", "openvino", "modify_onnx", "pytorch2onnx",
                                "TSM_infer", "TSM_postprocess", "test_fuzz"])


def export(path):
    """As pytorch2onnx.py reads a checkpoint."""
    from tsm.model.network import load

    load(path)


def surgery(path):
    call("modify_onnx", "-m1", path, "-m2", "new.onnx", "--target", "cpu")


def infer(path):
    call("TSM_infer", "-m", path, "--warmup_count", "0")


def postprocess(_):
    call("TSM_postprocess", "--result_path=out_summary.json", "--info_path=sthv2.info")


def call(script, *args):
    sys.argv = [script + ".py"] + list(args)
    __import__(script).main()


def in_child(work, path, folder, log):
    from tsm.cli import run

    os.chdir(folder)
    for end, name in ((1, os.devnull), (2, log)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), end)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 34, 1 << 34))  # a size that damage made up must not take the machine down
    signal.alarm(PATIENCE)
    run(lambda: work(path))


def survive(work, name, damage, folder, count):
    """`work` on folder/name in `count` damaged forms, each ends well or in one line and leaves nothing; how many were refused."""
    folder.mkdir(exist_ok=True)
    path, log, refused = folder / name, folder.parent / "stderr.txt", 0
    before = sorted(entry.name for entry in folder.iterdir())
    for number in range(count):
        path.write_bytes(damage(random.Random("%s %d" % (name, number))))
        child = SCRIPTS.Process(target=in_child, args=(work, name, str(folder), str(log)))
        child.start()
        child.join()
        said = log.read_text(errors="replace").splitlines()
        where = "damage %d of %s: status %s, %s" % (number, name, child.exitcode, "\n".join(said)[-3000:])
        assert child.exitcode in (0, 1), where
        if child.exitcode:
            refused += 1
            assert len(said) == 1 and "error: " in said[0] and 20 < len(said[0]) < 700, where
            assert sorted(entry.name for entry in folder.iterdir()) == sorted(set(before) | {name}), where
        elif (folder / "new.onnx").exists():
            (folder / "new.onnx").unlink()
    return refused


@pytest.mark.parametrize("zip_format", [True, False])
def test_checkpoints(repo, tmp_path, zip_format):
    torch = pytest.importorskip("torch")
    from tsm.checkpoint.reader import load

    state, _ = load(str(repo / "demo/tsm_thin.pth"))
    torch.save({"state_dict": state, "meta": {"epoch": 1}}, str(tmp_path / "good.pth"), _use_new_zipfile_serialization=zip_format)
    data = (tmp_path / "good.pth").read_bytes()
    spots = (len(data), 3000)  # anywhere, or in what says where everything is (the zip's stands at the end)

    def damage(chance):
        spot = chance.choice(spots)
        if zip_format and spot < len(data):
            return data[:-spot] + damaged(data[-spot:], chance)
        return damaged(data[:spot], chance) + data[spot:]

    count = FUZZ // 2
    assert survive(export, "%d.pth" % zip_format, damage, tmp_path / "work", count) > count // 4


@pytest.fixture(scope="module")
def model(repo, tmp_path_factory):
    """The thin network as mmaction2 exports it, and as modify_onnx.py makes it: two files' bytes."""
    onnx = pytest.importorskip("onnx")
    from test_modify import fill

    from tsm.model.graph import build
    from tsm.model.onnxfile import set_metadata
    from tsm.model.surgery import fold_constants, lift, read_source, weights_leave_inputs
    from tsm.protocol import SSV2

    path = tmp_path_factory.mktemp("model") / "good.onnx"
    specimen = (repo / "test/specimens/mmaction2_torch1.9.onnx.gz").read_bytes()
    exported = fill(onnx.load_model_from_string(gzip.decompress(specimen)))
    raw = exported.SerializeToString()
    weights_leave_inputs(exported)
    trunk, _ = lift(read_source(fold_constants(exported, str(path), str(path))[0], str(path), SSV2), SSV2)
    modified = build(trunk, "cpu", SSV2, 1, "score")
    set_metadata(modified, {"tsm.fusion": "score"})
    return raw, modified.SerializeToString()


@pytest.mark.parametrize("work, which", [(surgery, 0), (infer, 1)])
def test_models(model, tmp_path, work, which):
    data, count = model[which], FUZZ // 2

    def damage(chance):
        spot = chance.choice((STRUCTURE, STRUCTURE, len(data)))
        return damaged(data[:spot], chance) + data[spot:]

    refused = survive(work, work.__name__ + ".onnx", damage, tmp_path / "work", count)
    assert count // 4 < refused < count  # a weight may change and the model still be one


@pytest.mark.parametrize("name", ["out_summary.json", "sthv2.info", "3_0.txt", "3_0.npy", "3_0.bin"])
def test_results(tmp_path, name):
    folder, scores = tmp_path / "work", np.random.RandomState(0).uniform(0, 1, (8, 174)).astype(np.float32)
    folder.mkdir()
    suffix = name[4:] if name.startswith("3_0") else "txt"
    for number, row in enumerate(scores):
        path = folder / ("%d_0.%s" % (number, suffix))
        if suffix == "npy":
            np.save(str(path), row[None])
        else:
            path.write_bytes(row.tobytes() if suffix == "bin" else b"".join(b"%f " % value for value in row) + b"\n")
    infos = {str(number): {"infiles": ["in/%d.bin" % number], "outfiles": ["%d_0.%s" % (number, suffix)]} for number in range(8)}
    (folder / "out_summary.json").write_text(json.dumps({"filesinfo": infos, "throughput": 1.0}))
    (folder / "sthv2.info").write_text("".join("%d %d\n" % (number, number) for number in range(8)))
    data, count = (folder / name).read_bytes(), FUZZ // 2
    assert survive(postprocess, name, lambda chance: damaged(data, chance), folder, count) > count // 5

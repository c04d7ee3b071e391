"""Checkpoints, ONNX models, results, summaries and info files with random damage: success, or one clear line and no file.

(Lists, frames, videos, tensors and manifests: test_corrupt.py.) Every damaged file is given to its script in a process of
its own, so a crash or a hang of a library is seen as what it is.
"""

import gzip
import json
import os
import random

import forked
import numpy as np
import pytest
from fuzz import FUZZ, damaged

PATIENCE = 60  # seconds
MEMORY = 1 << 34  # bytes: a size that damage made up must not take the machine down
STRUCTURE = 40000  # bytes at the start of a model that hold its nodes; the weights come after them
COUNT = max(8, FUZZ // 2)
POSTPROCESS = ("TSM_postprocess.py", "--result_path=out_summary.json", "--info_path=sthv2.info")


def survive(repo, command, name, damage, folder):
    """Run a script on folder/name in COUNT damaged forms, each ends well or in one line and leaves nothing; how many were refused."""
    folder.mkdir(exist_ok=True)
    refused, before = 0, {entry.name for entry in folder.iterdir()} | {name}
    for number in range(COUNT):
        (folder / name).write_bytes(damage(random.Random("%s %d" % (name, number))))
        done = forked.run([str(repo / command[0])] + list(command[1:]), str(folder), os.environ, PATIENCE, MEMORY)
        said = done.stderr.splitlines()
        where = "damage %d of %s: status %s, %s" % (number, name, done.returncode, done.stderr[-3000:])
        assert done.returncode in (0, 1), where
        made = {entry.name for entry in folder.iterdir()} - before
        if done.returncode:
            refused += 1
            assert len(said) == 1 and "error: " in said[0] and 20 < len(said[0]) < 700 and not made, where
        for left in made:
            (folder / left).unlink()
    return refused


@pytest.mark.parametrize("zip_format", [True, False])
def test_checkpoints(repo, tmp_path, zip_format):
    """As far as the network that pytorch2onnx.py would export."""
    import torch

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

    name = "%d.pth" % zip_format
    assert survive(repo, ("TSM_checkpoint.py", name), name, damage, tmp_path / "work") > COUNT // 4


@pytest.fixture(scope="module")
def model(repo, tmp_path_factory):
    """The thin network as mmaction2 exports it, and as modify_onnx.py makes it: two files' bytes."""
    import onnx
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
    trunk, _, _ = lift(read_source(fold_constants(exported, str(path), str(path))[0], str(path), SSV2), SSV2)
    modified = build(trunk, "cpu", SSV2, 1, "score")
    set_metadata(modified, {"tsm.fusion": "score"})
    return raw, modified.SerializeToString()


@pytest.mark.parametrize("which, command", list(enumerate([
    ("modify_onnx.py", "-m1", "m.onnx", "-m2", "new.onnx", "--target", "cpu"), ("TSM_infer.py", "-m", "m.onnx", "--warmup_count", "0"),
])))
def test_models(model, repo, tmp_path, which, command):
    data = model[which]

    def damage(chance):
        spot = chance.choice((STRUCTURE, STRUCTURE, len(data)))
        return damaged(data[:spot], chance) + data[spot:]

    refused = survive(repo, command, "m.onnx", damage, tmp_path / "work")
    assert COUNT // 4 < refused < COUNT  # a weight may change and the model still be one


@pytest.mark.parametrize("name", ["out_summary.json", "sthv2.info", "3_0.txt", "3_0.npy", "3_0.bin"])
def test_results(repo, tmp_path, name):
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
    data = (folder / name).read_bytes()
    assert survive(repo, POSTPROCESS, name, lambda chance: damaged(data, chance), folder) > COUNT // 5

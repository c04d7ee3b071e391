"""Loading checkpoints: whatever stands beside the weights they load, nothing in them runs, and damage is one line."""

import argparse
import collections
import contextlib
import copyreg
import datetime
import io
import os
import pickle
import pickletools
import struct
import sys
import types
import warnings
import zipfile

import numpy as np
import pytest
import torch

from tsm.checkpoint import reader
from tsm.cli import UserError
from tsm.model.network import MOBILENETV2, RESNET101, TSM, load_network, structure_of

ZIPPED = [True, False]
CANARY = '''import os

class New:
    def __new__(cls, path=None, **_):
        if path:
            os.mkdir(path)
        return object.__new__(cls)

class Quiet:
    def __setstate__(self, path):
        os.mkdir(path)
    append = __setstate__

    def __setitem__(self, key, path):
        os.mkdir(path)
'''


@pytest.fixture(scope="module")
def state(thin):
    """Some of a network's weights, at least one of every kind."""
    parts = ("backbone.conv1.", "backbone.layer1.0.", "cls_head.")
    return {key: value for key, value in thin.items() if key.startswith(parts)}


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """Folder of modules that a pickle may name: `canary` does harm when used, `canary_import` when imported."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "canary.py").write_text(CANARY)
    (folder / "canary_import.py").write_text("import os\nos.mkdir(os.environ['CANARY'])\n")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("canary", None)


def save(path, held, zipped=True):
    torch.save(held, str(path), _use_new_zipfile_serialization=zipped)


def assert_same(loaded, state):
    wanted = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    loaded = {key: value for key, value in loaded.items() if not key.endswith("num_batches_tracked")}
    assert set(loaded) == set(wanted)
    for key, value in wanted.items():
        assert loaded[key].dtype == torch.float32 and torch.equal(loaded[key], value.float()), key


def renamed(state, prefix):
    return collections.OrderedDict((prefix + key, value) for key, value in state.items())


def mits(state):
    """The names of MIT's temporal-shift-module for mmaction2's."""
    made = collections.OrderedDict()
    for key, value in state.items():
        key = key.replace("cls_head.fc_cls", "new_fc").replace("backbone.", "base_model.")
        key = key.replace("downsample.conv.", "downsample.0.").replace("downsample.bn.", "downsample.1.")
        for number in "123":
            key = key.replace("conv%s.conv." % number, "conv%s." % number).replace("conv%s.bn." % number, "bn%s." % number)
        made["module." + key] = value
    return made


def mits_mobilenet(state):
    """MIT's names of TSM on MobileNetV2 (archs/mobilenet_v2.py): features counted through, layers of a block as in a list."""
    first = {1: 1, 2: 2, 3: 4, 4: 7, 5: 11, 6: 14, 7: 17}  # of each stage
    made = collections.OrderedDict()
    for key, value in state.items():
        words = key.split(".")[1:]
        last = "module.base_model.features.%s"
        if words[0] == "fc_cls":
            name = "module.new_fc." + words[1]
        elif words[0] in ("conv1", "conv2"):
            name = last % "%d.%d.%s" % (0 if words[0] == "conv1" else 18, words[1] == "bn", words[2])
        else:
            stage, block, number = int(words[0][-1]), int(words[1]), int(words[3])
            net = "net." * (words[4] == "net" and words[-2] == "conv")  # MIT shifts the convolution alone
            place = 3 * number + (words[-2] == "bn")
            name = last % "%d.conv.%d.%s%s" % (first[stage] + block, place, net, words[-1])
        made[name] = value
    return made


@pytest.mark.parametrize("where", ["module.base_model.", "base_model."])
@pytest.mark.parametrize("classifier", ["new_fc.", "base_model.classifier."])
def test_mits_mobilenet_by_its_own_names(tmp_path, where, classifier):
    """The second classifier is that of a training without dropout."""
    torch.manual_seed(0)
    structure = MOBILENETV2._replace(channels=(8, 16, 24, 32, 48, 56, 64, 80))
    net = TSM(width=8, structure=structure).eval()
    for number, value in enumerate(net.state_dict().values()):
        value += 0.001 * number if value.is_floating_point() else 0  # batch normalisations differ
    own = collections.OrderedDict(
        (key.replace("module.base_model.", where).replace("module.new_fc.", where[: -len("base_model.")] + classifier), value)
        for key, value in mits_mobilenet(net.state_dict()).items())
    save(tmp_path / "TSM_kinetics_RGB_mobilenetv2_shift8_blockres_avg_segment8_e100_dense.pth",
         {"epoch": 100, "arch": "mobilenetv2", "state_dict": own, "best_prec1": torch.tensor(69.5)})
    loaded, facts = load_network(str(tmp_path / "TSM_kinetics_RGB_mobilenetv2_shift8_blockres_avg_segment8_e100_dense.pth"))
    assert_same(loaded.state_dict(), net.state_dict())
    assert (facts.network, facts.protocol.segments) == ("TSM MobileNetV2", 8)
    assert any(key.endswith("features.3.conv.0.net.weight") for key in own) and structure_of(net.state_dict()) == structure


@pytest.mark.parametrize("prefix", ["", "module."])
def test_mits_resnet101(tmp_path, prefix):
    net = TSM(width=8, structure=RESNET101).eval()
    own = {key.replace("module.", prefix): value for key, value in mits(net.state_dict()).items()}
    save(tmp_path / "a_segment16_e45.pth.tar", {"epoch": 45, "arch": "resnet101", "state_dict": own})
    loaded, facts = load_network(str(tmp_path / "a_segment16_e45.pth.tar"))
    assert_same(loaded.state_dict(), net.state_dict())
    assert (facts.network, facts.protocol.segments) == ("TSM ResNet-101", 16) and prefix + "base_model.layer3.1.conv1.weight" in own


class Numpy1Scalar:
    """Pickles as numpy 1 wrote a float64; this numpy has no such module of its own."""

    def __reduce__(self):
        return numpy1_scalar, (np.dtype("float64"), struct.pack("<d", 0.5911))


def numpy1_scalar(*_):
    raise AssertionError("called")


numpy1_scalar.__module__, numpy1_scalar.__qualname__, numpy1_scalar.__name__ = "numpy.core.multiarray", "scalar", "scalar"


class HistoryBuffer:
    __module__ = "mmengine.logging.history_buffer"

    def __init__(self):
        self.log, self.numbers = np.arange(3.0), [np.float32(1)]


NUMPY1 = ("numpy.core.multiarray", "scalar", numpy1_scalar)
HISTORY = ("mmengine.logging.history_buffer", "HistoryBuffer", HistoryBuffer)


def trained(state):
    """An optimizer's state as a trainer leaves it, with NumPy numbers in it."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    return dict(optimizer.state_dict(), best=np.float64(0.5), counts=np.int64(3))


def beside(state):
    other = {key: value + 1 if value.is_floating_point() else value for key, value in state.items()}
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    return {
        "bare": state,
        "numpy 1 scalar": {"meta": {"hook_msgs": {"best_score": Numpy1Scalar()}, "epoch": 50}, "state_dict": state},
        "this numpy's scalar": {"meta": {"best": np.float64(0.5), "array": np.ones((2, 2))}, "state_dict": state},
        "mmengine": {"meta": {"cfg": "x = 1", "dataset_meta": {}}, "state_dict": state, "optimizer": trained(state),
                     "message_hub": {"log_scalars": {"loss": HistoryBuffer()}}, "param_schedulers": [trained(state)]},
        "namespace": {"args": argparse.Namespace(lr=0.1), "opt": argparse.Namespace(), "state_dict": state},
        "objects": {"state_dict": state, "when": datetime.datetime(2021, 8, 17), "set": {1, 2}, "frozen": frozenset([1]),
                    "default": collections.defaultdict(list, a=[1]), "tuple key": {(1, "a"): 2}, "type": torch.float16,
                    "device": torch.device("cpu"), "complex": 1j, "bytes": b"\xff", "array": bytearray(b"x"), "big": 1 << 80},
        "other tensors": {"state_dict": state, "complex": torch.zeros(3, dtype=torch.complex64), "bool": torch.ones(2).bool(),
                          "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)},
        "ema beside": {"ema_state_dict": dict(renamed(other, "module."), steps=torch.tensor(5)), "state_dict": state},
        "ema first": {"model_ema": other, "model": state},
        "ema only": {"ema_state_dict": dict(renamed(state, "module."), steps=torch.tensor(5))},
        "ema inside": dict(state, **{"ema_" + key.replace(".", "_"): value for key, value in other.items()}),
        "ema prefix": dict(renamed(other, "ema."), **renamed(state, "model.")),
        "module.": renamed(state, "module."),
        "module.module.": {"state_dict": renamed(state, "module.module.")},
        "nested": {"epoch": 3, "model": {"state_dict": renamed(state, "model.")}},
        "beside in the state dict": dict(state, **{"data_preprocessor.mean": torch.ones(3)}),
        "half": {"state_dict": half},
        "no counters": {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
        "parameters": {key: torch.nn.Parameter(value, value.is_floating_point()) if value.is_floating_point() else value
                       for key, value in state.items()},
        "channels last": {key: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
                          for key, value in state.items()},
        "list": [{"lr": 0.1}, state],
        "deep": {"model": {"net": {"inner": {"weights": state}}}, "optimizer": {"exp_avg": other}},
        "teacher beside": {"state_dict": dict(renamed(other, "teacher."), **renamed(state, "student."))},
        "teacher first": {"teacher": other, "student": state},
        "momentum": dict({key.replace("backbone.", "backbone_m.", 1): value for key, value in other.items()}, **state),
        "momentum before": {"state_dict": dict(renamed(other, "momentum_"), **state)},
        "twice": {"state_dict": state, "model": dict(state)},
        "mit": {"epoch": 45, "arch": "resnet50", "state_dict": mits(state), "best_prec1": torch.tensor(59.1)},
    }


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of torch, about quantised tensors
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    NAMES = list(beside({"weight": torch.ones(1)}))
    STORAGE = torch.arange(100.0).storage()


@pytest.mark.parametrize("zipped", ZIPPED)
@pytest.mark.parametrize("name", NAMES)
def test_what_stands_beside_the_weights_stops_nothing(state, tmp_path, monkeypatch, name, zipped):
    with monkeypatch.context() as patch:
        for module, attribute, value in [HISTORY] + [NUMPY1] * (name == "numpy 1 scalar"):
            made = types.ModuleType(module)
            setattr(made, attribute, value)
            patch.setitem(sys.modules, module, made)
        patch.setitem(sys.modules, "mmengine", types.ModuleType("mmengine"))
        save(tmp_path / "a.pth", beside(state)[name], zipped)
    before = set(sys.modules)
    loaded, meta = reader.load(str(tmp_path / "a.pth"))
    assert_same(loaded, beside(state)["half"]["state_dict"] if name == "half" else state)
    assert "mmengine" not in sys.modules and set(sys.modules) == before
    assert all(type(value) in (str, int, float, bool, type(None), list, tuple) for value in meta.values())


@pytest.mark.parametrize("first, second", [("student.", "other."), ("a.", "b."), ("net1.module.", "net2.module."),
                                           ("encoder_q.", "encoder_k."), ("x/", "y/")])
@pytest.mark.parametrize("naming", [dict, mits])
def test_two_networks_are_named_and_refused(state, tmp_path, first, second, naming):
    """By prefixes in one state dict, or in two of them; whichever is larger."""
    other = {key: value + 1 if value.is_floating_point() else value for key, value in state.items()}
    state, other = naming(state), naming(dict(other, **{"backbone.x.weight": torch.ones(1)}))
    held = {first[:-1]: state, second[:-1]: other} if first[-1] == "/" else dict(renamed(state, first), **renamed(other, second))
    save(tmp_path / "a.pth", {"epoch": 1, "state_dict": held})
    with pytest.raises(UserError) as raised:
        reader.load(str(tmp_path / "a.pth"))
    assert "a.pth: holds more than one network (" in str(raised.value) and "save the state_dict of the one to test" in str(raised.value)
    assert first in str(raised.value) and second in str(raised.value)


@pytest.mark.parametrize("name, passed", [("teacher beside", "state_dict/teacher.…"), ("teacher first", "teacher/…"), ("twice", None),
                                          ("momentum", "backbone_m…"), ("ema beside", "ema_state_dict/module.…"), ("ema only", None)])
def test_a_network_that_is_passed_over_is_told(state, tmp_path, name, passed):
    save(tmp_path / "a.pth", beside(state)[name])
    assert reader.load(str(tmp_path / "a.pth"))[1].get("passed") == passed


@pytest.mark.parametrize("zipped", ZIPPED)
def test_other_precisions_become_float32_and_views_of_one_storage_are_told_apart(state, tmp_path, zipped):
    """Tensors that share a storage, as parts of it, transposed and expanded."""
    flat = torch.arange(1000.0)
    own = {"backbone.a.weight": flat[100:200], "backbone.b.weight": flat[300:400].view(10, 10).t(),
           "backbone.c.bias": flat[:1].expand(7), "backbone.d.bias": flat[5:5]}
    for held in [own] + [{key: value.to(dtype) for key, value in state.items() if value.is_floating_point()}
                         for dtype in (torch.float16, torch.bfloat16, torch.float64)]:
        save(tmp_path / "a.pth", held, zipped)
        assert_same(reader.load(str(tmp_path / "a.pth"))[0], held)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("zipped", ZIPPED)
def test_every_pickle_protocol(state, tmp_path, protocol, zipped):
    held = {"meta": {"best": np.float64(0.5), "config": "x", "names": ["a", "b"], "none": None}, "state_dict": state}
    torch.save(held, str(tmp_path / "a.pth"), pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    loaded, meta = reader.load(str(tmp_path / "a.pth"))
    assert_same(loaded, state)
    assert meta == {"config": "x", "names": ["a", "b"], "none": None}


def test_a_file_without_checksums_loads(state, tmp_path):
    """As torch.serialization.set_crc32_options(False) leaves it: 0 for every checksum."""
    save(tmp_path / "a.pth", state)
    data = bytearray((tmp_path / "a.pth").read_bytes())
    for signature, place in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16), (b"PK\x07\x08", 4)):
        start = data.find(signature)
        while start >= 0:
            data[start + place : start + place + 4] = bytes(4)
            start = data.find(signature, start + 1)
    (tmp_path / "a.pth").write_bytes(data)
    assert_same(reader.load(str(tmp_path / "a.pth"))[0], state)


# Booby traps. Each is a piece of a pickle that makes a folder when Python's own unpickler carries it out.


def text(value):
    raw = str(value).encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def named(module, name):
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def call(function, *args):
    return function + b"(" + b"".join(args) + b"tR"


MKDIR = named("os", "mkdir")
IMPORT_OS = call(named("builtins", "__import__"), text("os"))
TRAPS = {
    "reduce": lambda path: call(MKDIR, text(path)),
    "system": lambda path: call(named("os", "system"), text("mkdir '%s'" % path)),
    "eval": lambda path: call(named("builtins", "eval"), text("__import__('os').mkdir(%r)" % str(path))),
    "exec": lambda path: call(named("builtins", "exec"), text("import os; os.mkdir(%r)" % str(path))),
    "getattr": lambda path: call(call(named("builtins", "getattr"), IMPORT_OS, text("mkdir")), text(path)),
    "stack global": lambda path: call(text("os") + text("mkdir") + b"\x93", text(path)),
    "a name inside torch": lambda path: call(text("torch.serialization") + text("os.mkdir") + b"\x93", text(path)),
    "inst": lambda path: b"(" + text(path) + b"ios\nmkdir\n",
    "obj": lambda path: b"(" + MKDIR + text(path) + b"o",
    "newobj": lambda path: named("canary", "New") + b"(" + text(path) + b"t\x81",
    "newobj_ex": lambda path: named("canary", "New") + b"(" + text(path) + b"t}\x92",
    "build": lambda path: named("canary", "Quiet") + b")\x81" + text(path) + b"b",
    "append": lambda path: named("canary", "Quiet") + b")\x81" + text(path) + b"a",
    "setitem": lambda path: named("canary", "Quiet") + b")\x81" + b"K\x01" + text(path) + b"s",
    "import": lambda path: named("canary_import", "os"),
    "partial": lambda path: call(call(named("functools", "partial"), MKDIR, text(path))),
    "map in a list": lambda path: call(
        named("builtins", "list"), call(named("builtins", "map"), MKDIR, b"]" + text(path) + b"a")),
    "nested pickle": lambda path: call(named("pickle", "loads"), b"C" + bytes([len(inner(path))]) + inner(path)),
    "extension": lambda path: call(b"\x82\xf0", text(path)),
}


def inner(path):
    return b"\x80\x02" + call(MKDIR, text(path)) + b"."


@contextlib.contextmanager
def armed(path, monkeypatch):
    monkeypatch.setenv("CANARY", str(path))
    copyreg.add_extension("os", "mkdir", 240)
    try:
        yield
    finally:
        copyreg.remove_extension("os", "mkdir", 240)
        sys.modules.pop("canary_import", None)


def with_pickle(data, change, number=0):
    """A checkpoint's bytes with its pickle (of the old format: the `number`th of its pickles) changed."""
    if data[:2] != b"PK":
        stream, places = io.BytesIO(data), []
        for _ in range(5):
            start = stream.tell()
            for _ in pickletools.genops(stream):
                pass
            places.append((start, stream.tell()))
        start, end = places[number]
        return data[:start] + change(data[start:end]) + data[end:]
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for info in old.infolist():
            raw = old.read(info)
            new.writestr(info.filename, change(raw) if info.filename.endswith("data.pkl") else raw)
    return made.getvalue()


@pytest.mark.parametrize("trap", sorted(TRAPS))
def test_a_booby_trap_never_goes_off(state, modules, tmp_path, monkeypatch, trap):
    """In the zip format's pickle and in each of the five of the old format; the same trap does go off under pickle."""
    path = tmp_path / "canary"
    with armed(path, monkeypatch):
        opcodes = TRAPS[trap](path)
        pickle.loads(b"\x80\x04" + opcodes + b".")
        assert path.exists()
        path.rmdir()
        for module in ("canary", "canary_import"):
            sys.modules.pop(module, None)
        files = [(True, 0)] + [(False, number) for number in range(5)]
        for zipped, number in files:
            save(tmp_path / "a.pth", {"meta": {"epoch": 1}, "state_dict": state}, zipped)
            change = lambda raw: raw[:2] + opcodes + b"0" + raw[2:]  # noqa: E731
            (tmp_path / "a.pth").write_bytes(with_pickle((tmp_path / "a.pth").read_bytes(), change, number))
            loaded, meta = reader.load(str(tmp_path / "a.pth"))
            assert not path.exists() and "canary" not in sys.modules and "canary_import" not in sys.modules
            assert_same(loaded, state)
            assert meta == {"epoch": 1}


class Reduced:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("zipped", ZIPPED)
def test_traps_in_the_places_that_torch_looks_at(state, tmp_path, zipped):
    """As a tensor's hooks, storage or metadata, as an OrderedDict's items, as a state dict's attributes, as a dict's key."""
    path = tmp_path / "canary"
    trap = Reduced(os.mkdir, (str(path),))
    rebuild, storage = torch._utils._rebuild_tensor_v2, torch.ones(3).storage()
    pairs = [[key, value] for key, value in state.items()]
    held = {
        "state_dict": Reduced(collections.OrderedDict, (pairs,), {"_metadata": {"": trap}, "items": trap, "get": 1}),
        "hooks": Reduced(rebuild, (storage, 0, (3,), (1,), False, trap)),
        "storage": Reduced(rebuild, (trap, 0, (3,), (1,), False, collections.OrderedDict())),
        "arguments": Reduced(rebuild, (trap,)),
        "items": Reduced(collections.OrderedDict, ([["a", trap]],)),
        "key": {trap: 1},
    }
    save(tmp_path / "a.pth", held, zipped)
    assert_same(reader.load(str(tmp_path / "a.pth"))[0], state)
    assert not path.exists()


@pytest.mark.parametrize("zipped", ZIPPED)
def test_weights_that_need_code_are_refused(state, tmp_path, zipped):
    path, key = tmp_path / "canary", "backbone.conv1.conv.weight"
    net = TSM(width=8)
    quantised = torch.quantize_per_tensor(state[key], 0.1, 0, torch.qint8)
    for held, says in [
        (dict(state, **{key: Reduced(os.mkdir, (str(path),))}), "made by %s.mkdir" % os.name),
        (dict(state, **{key: quantised}), "_rebuild_qtensor"),
        (net, "tsm.model.network.TSM"),
        ({"model": net, "epoch": 3}, "tsm.model.network.TSM"),
    ]:
        save(tmp_path / "a.pth", held, zipped)
        with pytest.raises(UserError) as raised:
            reader.load(str(tmp_path / "a.pth"))
        line = str(raised.value)
        assert "a.pth" in line and says in line and "state_dict" in line and "\n" not in line and not path.exists()


def test_a_torchscript_file_is_refused(tmp_path):
    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x)

    torch.jit.script(Small()).save(str(tmp_path / "a.pth"))
    with pytest.raises(UserError, match=r"holds a pickled object \(__torch__\..*; save its state_dict"):
        reader.load(str(tmp_path / "a.pth"))


@pytest.mark.parametrize("zipped", ZIPPED)
@pytest.mark.parametrize("offset, size, stride", [
    (10**9, (8,), (1,)), (0, (101,), (1,)), (0, (1 << 40,), (1,)), (1, (100,), (1,)), (0, (-8,), (1,)), (0, (8,), (-1,)),
    (-1, (8,), (1,)), (0, (8,), (1, 1)), (0, (1 << 61, 8), (8, 1)), (0, (1 << 40,), (0,)), (0, (8,), (1 << 62,)),
    (0, (1,) * 9, (1,) * 9), (0, ("8",), (1,)), (0, (8.0,), (1,)), (0, (True,), (1,)), (None, (8,), (1,)), (0, (1 << 80,), (0,)),
    (0, (1 << 20,) * 3, (0, 0, 0)), (99, (2, 2), (1, 1)), (0, 8, 1), (0, None, None),
])
def test_a_tensor_larger_than_its_storage_is_refused(state, tmp_path, offset, size, stride, zipped):
    wrong = Reduced(torch._utils._rebuild_tensor_v2, (STORAGE, offset, size, stride, False, collections.OrderedDict()))
    save(tmp_path / "a.pth", dict(state, **{"cls_head.fc_cls.bias": wrong}), zipped)
    with pytest.raises(UserError, match="damaged"):
        reader.load(str(tmp_path / "a.pth"))


@pytest.mark.parametrize("zipped", ZIPPED)
def test_a_storage_of_another_size_than_it_says_is_refused(state, tmp_path, zipped):
    """The classifier's number of values in the persistent id of its storage, 174 * 256, becomes another."""
    save(tmp_path / "a.pth", state, zipped)
    data = (tmp_path / "a.pth").read_bytes()
    for new in (b"J\xff\xff\xff\x7f", b"K\x07", b"J\xff\xff\xff\xff", b"N", b"\x8a\x08" + b"\xff" * 7 + b"\x7f"):
        changed = with_pickle(data, lambda raw: raw.replace(b"M" + struct.pack("<H", 174 * 256), new), 3)
        assert changed != with_pickle(data, lambda raw: raw, 3)
        (tmp_path / "a.pth").write_bytes(changed)
        with pytest.raises(UserError):
            reader.load(str(tmp_path / "a.pth"))


def test_many_views_of_one_storage_do_not_fill_the_memory(tmp_path):
    large = torch.zeros(1 << 20).half()
    save(tmp_path / "a.pth", {"backbone.%d.weight" % number: large for number in range(10000)})
    with pytest.raises(UserError, match="damaged"):
        reader.load(str(tmp_path / "a.pth"))


def test_pickles_that_are_nonsense_end_in_one_line(tmp_path, state):
    """Deep nesting, cycles, huge lengths and numbers, empty stacks and unknown opcodes, in place of the object or before it."""
    save(tmp_path / "a.pth", state)
    data = (tmp_path / "a.pth").read_bytes()
    for opcodes in (b")" + b"\x85" * 200000, b"]" + b"\x85" * 200000 + b"}K\x01s", b"]q\x00h\x00a",
                    b"\x8e" + b"\xff" * 7 + b"\x7f", b"\x96" + b"\xff" * 7 + b"\x7f", b"\x8b\xff\xff\xff\x7f",
                    b"r\xff\xff\xff\xff", b"0" * 3, b"R", b"t", b"\xff", b"Q",
                    b"(((((", b"\x95" + b"\xff" * 8, b"I" + b"9" * 5000 + b"\n", b"}" + b")" + b"\x85" * 100000 + b"K\x01s", b".",
                    b")" + b"2\x86" * 60 + b"2\x93"):
        for end in (b"0", b"."):
            (tmp_path / "a.pth").write_bytes(with_pickle(data, lambda raw: raw[:2] + opcodes + end + raw[2:]))
            try:
                reader.load(str(tmp_path / "a.pth"))
            except UserError as error:
                assert "a.pth" in str(error) and "\n" not in str(error) and len(str(error)) < 300


@pytest.mark.parametrize("raw", [b"", b"not a checkpoint", b"PK\x03\x04 cut short", None, {"a": 1}, [torch.zeros(2)], 5,
                                 b"<html>", {"weight": 3}, {}, {"backbone.a": 3, "b.weight": torch.zeros(2)}])
def test_what_is_no_checkpoint_is_said_in_one_line(state, tmp_path, raw):
    path = tmp_path / "a.pth"
    if isinstance(raw, bytes):
        path.write_bytes(raw)
    elif raw is None:
        torch.save(state, str(path))
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        torch.save(raw, str(path))
    with pytest.raises(UserError, match="a.pth: (not a PyTorch checkpoint|no state_dict)"):
        reader.load(str(path))

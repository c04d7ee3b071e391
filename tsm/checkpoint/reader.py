"""What a PyTorch checkpoint holds: its weights and the plain values beside them. A checkpoint is data; nothing in it runs.

PyTorch writes a pickle, a program for a small stack machine that may import and call anything. Here (_Unpickler) a class or a
function that the pickle names becomes a Foreign, which is neither imported nor called, and the few that a tensor is made of
(_CALLS) are known by their names alone. So it does not matter what a trainer put beside the weights: NumPy scalars, hooks.
Both file formats are read: torch's zip archive (torch.serialization._save) and the older stream of pickles (_legacy_save).
"""

import errno
import os
import pickle
import re
import zipfile
from io import BytesIO
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, NamedTuple, Set, Tuple

import numpy as np
import torch
from torch import Tensor

from tsm.cli import UserError
from tsm.files import replacing

_ZIP_MAGIC = b"PK\x03\x04"
_Machine: Any = pickle._Unpickler  # type: ignore[attr-defined]
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_BFLOAT16 = "BFloat16Storage"
_STORAGES = {kind: np.dtype(code) for kind, code in {  # torch's storage classes: the values' type; of bfloat16 int16
    "FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", _BFLOAT16: "i2", "LongStorage": "i8",
    "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "u1",
    "UntypedStorage": "u1", "ComplexFloatStorage": "c8", "ComplexDoubleStorage": "c16", "QInt8Storage": "i1",
    "QUInt8Storage": "u1", "QInt32Storage": "i4", "QUInt4x2Storage": "u1", "QUInt2x4Storage": "u1",
}.items()}
_PARTS = (  # of a network, those that tell detectors and the like included; what else a state dict holds is no part of it
    "backbone", "neck", "cls_head", "base_model", "new_fc", "consensus", "rpn_head", "roi_head", "bbox_head", "mask_head", "keypoint_head",
    "decode_head",
)
_MOBILENET_BLOCKS = (1, 2, 3, 4, 3, 3, 1)  # per stage of MobileNetV2
_ONLINE = {"features.0.0.weight", "features.1.conv.0.weight", "features.18.0.weight", "classifier.weight"}  # of MIT's online demo
_ONLINE_SHIFTED = (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)  # its blocks with a shift: those with both an expansion and a residual connection
_STARTS = tuple((re.compile(start, re.DOTALL), what, remedy) for start, what, remedy in (  # of files of other kinds
    (rb"$", "an empty file", "fetch it again"),
    (rb"\s*<(!doctype|!DOCTYPE|html|HTML|head)", "a web page", "fetch the file itself, by the page's own link for downloads"),
    (rb"version https://git-lfs", "a pointer of Git LFS", "fetch the file that it stands for (git lfs pull)"),
    (rb".{4}\0{4}\{", "a safetensors file", "load it with safetensors.torch.load_file() and torch.save() what that gives"),
    (rb"\x1f\x8b|BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "a compressed file", "unpack it (gunzip, bunzip2, unxz, …)"),
    (rb".{257}ustar", "a tar archive", "unpack it (tar -xf) and pass the checkpoint in it"),
    (rb"\x08[\x01-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]", "an ONNX model", "pass the checkpoint that it was exported from"),
    (rb"\x89HDF", "an HDF5 file, as Keras writes", "pass a checkpoint of PyTorch"),
    (rb"\x93NUMPY", "a NumPy array", "make a dict of tensors of it and torch.save() that"),
    (rb"[\t\n\r\x20-\x7e]{24,}", "a text file", "pass the checkpoint, .pth"),
))
_COPY = re.compile(r"(?:^|[/._-])(ema|swa|averag|momentum|teacher)", re.IGNORECASE)  # beside a network, no other that one would test
_NETWORK = re.compile(r"((?:.*?\.)?)(\w*)(backbone|base_model)(\w*)\.")  # what a weight of one begins with
_PLAIN = (str, int, float, type(None))


class Foreign(NamedTuple):
    """What needs code that is not run: a class, a function, an object; `name` is that of the class or function."""

    name: str

    def __call__(self, *args: Any) -> Any:
        """What a call would give: a tensor or a container where it is one of _CALLS, else itself."""
        try:
            return _CALLS[self.name](*args)
        except (KeyError, TypeError):  # not the arguments that torch gives
            return self

    def append(self, _: Any) -> None:
        """What a pickle puts into an object is passed over."""

    def extend(self, _: Any) -> None:
        """Likewise."""


class _Storage(NamedTuple):
    """Where a tensor's values are: `numel` of them from `start` on in the storage `key`, which holds `whole`."""

    kind: str  # of _STORAGES
    key: str
    whole: int
    start: int
    numel: int


class _Values(NamedTuple):
    """A tensor that is not read yet; every number is as the file gives it, so perhaps nonsense."""

    storage: _Storage
    offset: Any
    size: Any
    stride: Any


class _Unfit(Exception):
    """No checkpoint that can be taken; the text says why, and the remedy."""


def load(path: str) -> Tuple[Dict[str, Tensor], Dict[str, Any]]:
    """The weights in a checkpoint and the plain values beside them, on the CPU.

    Args:
        path: a file of torch.save: a state dict, or one in dicts and lists, under whatever name; a copy, as an EMA's or a teacher's
            (_COPY), only where no other is there.
    Returns: (weights by mmaction2's names, prefixes as `module.` dropped and MIT's names translated, float32 where they
        are floating point; numbers, strings and lists of strings of the checkpoint and of its `meta`, by name, and
        `naming`: MIT, or MIT online for its online demo's, where names were translated, and `passed`: the names of other
        networks that are there).
    Raises: UserError where the file is no checkpoint, is damaged, has no weights that can be read without code, or two networks.
    """
    with open(path, "rb") as file:
        start = file.read(512)
        file.seek(0)
        try:
            root, read = (_open_zip if start.startswith(_ZIP_MAGIC) else _open_legacy)(file)
            whole, passed = _state_in(root)
            online = set(whole).issuperset(_ONLINE)
            whole = {_of_online_demo(key): value for key, value in whole.items()} if online else whole
            state = _translated(whole)
            for key, value in state.items():
                if isinstance(value, Foreign):
                    raise _Unfit("holds weights that only other code can read (%s, made by %s); save a state_dict of plain tensors"
                                 % (key[:100], value.name[:100]))
            tensors = _read_all({key: value for key, value in state.items() if isinstance(value, _Values)}, read,
                                os.fstat(file.fileno()).st_size)
            if not any(tensor.numel() for tensor in tensors.values()):
                raise _Unfit("its weights are empty, as in DeepSpeed's shards; join them (zero_to_fp32.py) and pass what that writes"
                             if tensors else "no state_dict in it; pass a checkpoint of TSM")
        except MemoryError:
            raise
        except Exception as error:  # zipfile, pickle and nonsense in a file raise almost anything
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a place before the file's start
                error.filename = path
                raise
            kind = next((words for pattern, *words in _STARTS if pattern.match(start)), None)
            damaged = "not a PyTorch checkpoint, " + ("but %s; %s" % tuple(kind) if kind else "or a damaged one; fetch it again")
            raise UserError("%s: %s" % (path, error if isinstance(error, _Unfit) else damaged))
    beside = root.get("meta") if isinstance(root, dict) else None
    said = {"naming": "MIT online" if online else "MIT"} if any(key.startswith("base_model.") for key in whole) else {}
    said.update({"passed": passed} if passed else {})
    return tensors, dict(dict(_plain(root), **_plain(beside)), **said)


def save(path: str, state: Dict[str, Tensor], meta: Dict[str, Any]) -> None:
    """Write a checkpoint in mmaction2's form; equal bytes for equal weights and meta, whatever its name."""
    with replacing(path) as part, open(part, "wb") as file:  # a path would put its name into the file
        torch.save({"state_dict": state, "meta": meta}, file)


Read = Callable[[_Storage], np.ndarray]  # a whole storage -> its values


def _open_zip(file: BinaryIO) -> Tuple[Any, Read]:
    """A zip archive of torch.save: (what its pickle holds, the reader of its storages)."""
    archive, room = zipfile.ZipFile(file), os.fstat(file.fileno()).st_size
    records = {info.filename: info for info in archive.infolist()}
    if not any(info.CRC for info in records.values()):  # torch.serialization.set_crc32_options(False)
        for info in records.values():
            del info.CRC
    pickles = [name for name in records if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise _Unfit("not a PyTorch checkpoint, but an archive of other files (zip, NumPy's .npz, …); unpack it and pass the "
                     "checkpoint in it, or make a dict of tensors of its arrays and torch.save() that")
    folder = pickles[0][: -len("data.pkl")]

    def record(name: str) -> bytearray:
        info = records[name]
        if info.compress_type != zipfile.ZIP_STORED or not info.file_size == info.compress_size <= room:
            raise ValueError(name)
        return bytearray(archive.read(info))

    order = ">" if folder + "byteorder" in records and bytes(record(folder + "byteorder")) == b"big" else "<"

    def read(storage: _Storage) -> np.ndarray:
        return _values(record("%sdata/%s" % (folder, storage.key)), storage, order)

    return _Unpickler(BytesIO(record(pickles[0])), {}).load(), read


def _open_legacy(file: BinaryIO) -> Tuple[Any, Read]:
    """A file of torch before 1.6: magic number, version, system, the object, the storages' keys, then their values."""
    stream = _Bounded(file)
    first = _Unpickler(stream, {}).load()
    if isinstance(first, dict) and any(str(key).endswith(("._mean", "@@")) for key in first):
        raise _Unfit("not a PyTorch checkpoint, but weights of PaddlePaddle (.pdparams), as PaddleVideo's TSM, which shifts the other way "
                     "round in time; pass a checkpoint of mmaction2 or MIT, as weights that are only renamed give wrong answers")
    if first != _LEGACY_MAGIC:
        raise _Unfit("not a PyTorch checkpoint, but a pickle that torch.save() did not write (of NumPy arrays or the like); make a dict of "
                     "tensors of it and torch.save() that")
    _Unpickler(stream, {}).load()
    order = "<" if _Unpickler(stream, {}).load()["little_endian"] else ">"
    known: Dict[str, _Storage] = {}
    root = _Unpickler(stream, known).load()
    places: Dict[str, int] = {}
    for key in _Unpickler(stream, {}).load():
        numel = int.from_bytes(file.read(8), "little" if order == "<" else "big")
        places[key] = file.tell()
        if numel != known[key].whole or _nbytes(known[key]) > stream.size - places[key]:
            raise ValueError(key)
        file.seek(_nbytes(known[key]), os.SEEK_CUR)

    def read(storage: _Storage) -> np.ndarray:
        file.seek(places[storage.key])
        data = bytearray(_nbytes(storage))
        file.readinto(data)  # type: ignore[attr-defined]
        return _values(data, storage, order)

    return root, read


class _Bounded:
    """A file from which no more is asked for than it holds, whatever length a damaged pickle names."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size = file, os.fstat(file.fileno()).st_size

    def read(self, count: int) -> bytes:
        return self.file.read(max(0, min(count, self.size - self.file.tell())))

    def readline(self) -> bytes:
        return self.file.readline()


class _Unpickler(_Machine):
    """Python's machine for pickles, without imports and calls; the storages that a pickle names are added to `storages`.

    It makes plain values, lists, dicts with plain keys, what _CALLS gives, and a Foreign for all else. It is the one written in
    Python, as the one in C makes room for whatever index a file names.
    """

    def __init__(self, file: Any, storages: Dict[str, _Storage]) -> None:
        super().__init__(file, encoding="latin-1")  # of Python 2's strings
        self.storages = storages

    def find_class(self, module: str, name: str) -> Foreign:
        return Foreign("%s.%s" % (module, name))

    def get_extension(self, code: int) -> None:
        self.append(Foreign("extension %d" % code))

    def persistent_load(self, given: Any) -> Any:
        """The storage that a persistent id stands for: ("storage", class, key, place, numel[, (view's key, start, numel)])."""
        if type(given) is not tuple or len(given) < 2 or not isinstance(given[1], Foreign):
            return Foreign("persistent id")
        if given[0] != "storage" or len(given) < 5:
            return given[1]
        module, _, kind = given[1].name.rpartition(".")
        kind, key, whole = kind.lstrip("_"), given[2], given[4]
        if module.split(".")[0] != "torch" or kind not in _STORAGES or type(key) is not str or type(whole) is not int or whole < 0:
            return given[1]
        view = given[5] if len(given) > 5 and type(given[5]) is tuple and len(given[5]) == 3 else (key, 0, whole)
        self.storages[key] = _Storage(kind, key, whole, 0, whole)
        return self.storages[key]._replace(start=view[1], numel=view[2])

    def _items(self) -> None:  # of a dict
        items = self.pop_mark()
        _filled(self.stack[-1], items)

    def _item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _filled(self.stack[-1], [key, value])

    def _dict(self) -> None:
        items = self.pop_mark()  # which gives back the stack that append() is of
        self.append(_filled({}, items))

    def _frozenset(self) -> None:
        self.pop_mark()
        self.append(Foreign("frozenset"))

    def _passed_over(self) -> None:  # arguments of an object that is to be made, or a state to be set in one
        self.stack.pop()

    def _both_passed_over(self) -> None:
        del self.stack[-2:]

    def _bytearray(self) -> None:  # Python makes room for it before it reads
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    dispatch = dict(_Machine.dispatch)
    dispatch.update(zip(b"dsu\x90\x91b\x81\x92\x96", (  # DICT, SETITEM, SETITEMS, ADDITEMS, FROZENSET, BUILD, NEWOBJ, NEWOBJ_EX, BYTEARRAY8
        _dict, _item, _items, _Machine.pop_mark, _frozenset, _passed_over, _passed_over, _both_passed_over, _bytearray)))


def _filled(mapping: Any, items: List[Any]) -> Any:
    """`mapping` with items (key, value, key, value, …) where it is a dict; keys that are not plain are passed over."""
    if isinstance(mapping, dict):
        mapping.update((key, value) for key, value in zip(items[::2], items[1::2]) if isinstance(key, _PLAIN))
    return mapping


def _ordered_dict(pairs: Any = ()) -> Dict[Any, Any]:
    return _filled({}, [value for pair in pairs for value in pair[:2]])  # Python 2 gives the items so


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    return _Values(storage, offset, size, stride) if isinstance(storage, _Storage) else storage


def _of_type(function: Any, kind: Any, args: Any, *_: Any) -> Any:
    """A tensor with attributes; one of a class that is not torch's own needs that class."""
    plain = getattr(kind, "name", "") in ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
    return function(*args) if plain else kind


_CALLS: Dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": lambda size: size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": _of_type,
}


def _nbytes(storage: _Storage) -> int:
    """Bytes of a whole storage."""
    return storage.whole * _STORAGES[storage.kind].itemsize


def _values(data: bytearray, storage: _Storage, order: str) -> np.ndarray:
    """The values of a whole storage, in this machine's byte order; bfloat16 as int16."""
    if len(data) != _nbytes(storage):
        raise ValueError(storage.key)
    kind: Any = _STORAGES[storage.kind]
    if not data:  # older numpy refuses an empty buffer
        return np.zeros(0, kind)
    return np.frombuffer(data, kind.newbyteorder(order)).astype(kind, copy=False)


def _read_all(state: Dict[str, _Values], read: Read, room: int) -> Dict[str, Tensor]:
    """The tensors of a state dict, which hold at most `room` values, the file's size, and are read from as many bytes."""
    tensors: Dict[str, Tensor] = {}
    left = room
    cache: Dict[_Storage, np.ndarray] = {}
    for key, (storage, offset, size, stride) in state.items():
        numbers = [offset, storage.start, storage.numel] + list(size) + list(stride)
        if len(size) != len(stride) or len(size) > 8 or any(type(n) is not int or not 0 <= n < 1 << 62 for n in numbers):
            raise ValueError(key)
        numel = int(np.prod(size, dtype=object))
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        whole = storage._replace(start=0, numel=storage.whole)
        room -= numel
        left -= 0 if whole in cache else _nbytes(storage)
        if min(room, left) < 0 or numel and (last >= storage.numel or storage.start + storage.numel > storage.whole):
            raise ValueError(key)
        values = cache[whole] if whole in cache else cache.setdefault(whole, read(whole))
        flat = torch.from_numpy(values)
        flat = flat.view(torch.bfloat16) if storage.kind == _BFLOAT16 else flat
        tensor = torch.as_strided(flat, size, stride, storage.start + offset if numel else 0)
        tensors[key] = (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
    return tensors


def _dicts(value: Any, name: str, depth: int, seen: Set[int]) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """The dicts in a checkpoint that hold weights, with their names, the outer ones first."""
    if not isinstance(value, (dict, list)) or id(value) in seen or "optim" in name:
        return
    seen.add(id(value))
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    if any(str(key).endswith("weight") and isinstance(held, (_Values, Foreign)) for key, held in items):
        yield name, {key: held for key, held in items if isinstance(key, str)}
    if depth:
        for key, held in items:
            yield from _dicts(held, "%s%s/" % (name, key), depth - 1, seen)


def _state_in(root: Any) -> Tuple[Dict[str, Any], str]:
    """(the weights of the network in what a checkpoint holds, without a prefix before all of them, as `module.`, the names of other
    networks there); _Unfit where there is none, or more than one that no name calls a copy (_COPY)."""
    found = list(_dicts(root, "", 5, set()))
    networks = {name + prefix: part for name, state in found for prefix, part in _networks(state).items()}
    most = max(map(len, networks.values()), default=0)
    networks = {name: part for name, part in networks.items() if 9 * len(part) >= most}
    own = {name: part for name, part in networks.items() if re.search(r"(^|[./])$", name)} or networks
    own = {name: part for name, part in own.items() if not _COPY.search(name)} or own
    name, state = next(iter(own.items())) if own else ("", {})
    if any(part != state for part in own.values()):
        raise _Unfit("holds more than one network (%s); save the state_dict of the one to test, without that prefix, and pass that"
                     % ", ".join("%s…" % one for one in own)[:200])
    if own:
        return state, ", ".join("%s…" % one for one, part in networks.items() if part != state)[:200]
    if found:
        state = max((state for _, state in found), key=len)
        return {re.sub(r"^(module\.)+", "", key): value for key, value in state.items()}, ""
    held = root if isinstance(root, dict) else {"": root}
    objects = [value.name for value in held.values() if isinstance(value, Foreign)]
    if objects:
        raise _Unfit("holds a pickled object (%s), which only its own code can read; save its state_dict() and pass that"
                     % objects[0][:200])
    raise _Unfit("no state_dict in it%s; pass a checkpoint of TSM"
                 % (" (but %s)" % ", ".join(map(str, held))[:200] if isinstance(root, dict) and root else ""))


def _networks(state: Dict[str, Any]) -> Dict[str, Dict[str, Any]]:
    """The networks in a state dict: by the prefix of all their weights, or, of one that is beside another, by its backbone's name."""
    found: Dict[str, Dict[str, Any]] = {}
    for prefix, before, word, after in {match.groups() for match in map(_NETWORK.match, state) if match}:
        beside = before + word + after + "." if before or after else ""
        found[prefix + beside[:-1]] = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix + beside)
                                       and (beside or key[len(prefix) :].split(".")[0] in _PARTS)}
    return found


def _translated(state: Dict[str, Any]) -> Dict[str, Any]:
    """The weights of a network by mmaction2's names, without what stands beside them (a data preprocessor, counters); one of another
    naming is returned as it is."""
    if not any(key.startswith(("backbone.", "base_model.")) for key in state):
        return state
    named = {_by_mmaction2(key): value for key, value in state.items() if key.split(".")[0] in _PARTS}
    shifted = {key[: -len("net.conv.weight")] for key in named if key.endswith(".conv.0.net.conv.weight")}
    return {re.sub(r"(?<=\.conv\.0\.)bn\.", "net.bn.", key) if key.rsplit("bn.", 1)[0] in shifted else key: value
            for key, value in named.items()}


def _of_online_demo(key: str) -> str:
    """A name of MIT's online_demo/mobilenet_v2_tsm.py, which tonylins' MobileNetV2 of single images has as well, as its ops/models.py
    has it."""
    found = re.match(r"features\.(\d+)\.conv\.0\.", key)
    net = found is not None and int(found.group(1)) in _ONLINE_SHIFTED
    return "base_model." + (key.replace(".conv.0.", ".conv.0.net.") if net else key)


def _by_mmaction2(key: str) -> str:
    """A name of MIT's temporal-shift-module (ops/models.py) as mmaction2's; others as they are."""
    key = re.sub(r"^(?:new_fc|base_model\.(?:fc|classifier))\.", "cls_head.fc_cls.", key)
    if not key.startswith("base_model."):
        return key
    found = re.match(r"base_model\.features\.(\d+)\.(?:conv\.)?(\d+)\.(net\.)?(\w+)$", key)
    if found:
        return _of_mobilenet(int(found.group(1)), int(found.group(2)), found.group(3) or "", found.group(4))
    key = re.sub(r"\bconv(\d)\.(net\.)?(weight|bias)$", r"conv\1.conv.\2\3", "backbone." + key[len("base_model.") :])
    key = re.sub(r"\bbn(\d)\.(\w+)$", r"conv\1.bn.\2", key)
    key = re.sub(r"\bdownsample\.0\.", "downsample.conv.", key)
    return re.sub(r"\bdownsample\.1\.", "downsample.bn.", key).replace(".nl.", ".non_local_block.")


def _of_mobilenet(number: int, place: int, net: str, last: str) -> str:
    """mmaction2's name of what MIT's MobileNetV2 (archs/mobilenet_v2.py) calls `features.number.conv.place.last`.

    MIT counts the blocks through, between the first convolution and the last, and in a block convolutions, batch
    normalisations and activations.
    """
    what = "%d.%s%s.%s" % (place // 3, net, "bn" if place % 3 else "conv", last)
    if number == 0:
        return "backbone.conv1." + what[2:]
    for stage, blocks in enumerate(_MOBILENET_BLOCKS, 1):
        if number <= blocks:
            return "backbone.layer%d.%d.conv.%s" % (stage, number - 1, what)
        number -= blocks
    return "backbone.conv2." + what[2:]


def _plain(mapping: Any) -> Dict[str, Any]:
    """The numbers, strings and lists of strings of a dict, by name; what else it holds is left out."""
    held = mapping.items() if isinstance(mapping, dict) else ()
    return {
        key: value for key, value in held if isinstance(key, str)
        and (isinstance(value, _PLAIN) or type(value) in (list, tuple) and all(type(item) is str for item in value))
    }

"""Files of tensors, as ais_bench reads them: listed, checked against the manifest, read ahead of their need."""

import contextlib
import json
import os
import queue
import threading
from typing import Any, Dict, Generator, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

from tsm.cli import UserError
from tsm.files import natural
from tsm.model.offline import Offline
from tsm.protocol import Protocol, differences, protocol_from
from tsm.results import read_npy, result_name
from tsm.samples import check_tensor, checksum, read_manifest
from tsm.workfolder import MANIFEST

AHEAD = 2  # videos read before they are needed
SUFFIXES = (".npy", ".NPY", ".bin", ".BIN")


class Inputs(NamedTuple):
    """Tensor files in the order they are computed in, and what the manifest beside them says of each (by file name)."""

    files: List[str]
    entries: Dict[str, Dict[str, Any]]
    manifest: str  # its path; empty if there is none
    protocol: Optional[Protocol]  # that the tensors were made by, if there is a manifest
    dtype: Optional[str]


def list_inputs(given: str) -> Inputs:
    """The files of a comma-separated list in its own order; of a folder those of the manifest beside it, or all, in natural order (0, 1,
    2, …, 10). UserError for an empty folder, and for two files whose results would have one name."""
    inputs = Inputs(given.split(","), {}, "", None, None)
    if os.path.isdir(given):
        manifest_file = os.path.join(os.path.dirname(os.path.abspath(given)), MANIFEST)
        names = [name for name in os.listdir(given) if name.endswith(SUFFIXES)]
        if not names:
            raise UserError("%s: no .bin or .npy files in it; run TSM_preprocess.py first" % given)
        if os.path.exists(manifest_file):
            manifest = read_manifest(manifest_file)
            entries = {os.path.basename(entry["file"]): entry for entry in manifest["samples"]}
            inputs, names = Inputs([], entries, manifest_file, protocol_from(manifest["protocol"], manifest_file),
                                   manifest["protocol"]["dtype"]), list(entries)
        inputs = inputs._replace(files=[os.path.join(given, name) for name in sorted(names, key=natural)])
    origin: Dict[str, str] = {}
    for path in inputs.files:
        first = origin.setdefault(result_name(path), path)
        if first != path:
            raise UserError("%s and %s: their results would have the same name; rename one" % (first, path))
    return inputs


def check_protocol(inputs: Inputs, model: Offline) -> None:
    """UserError unless the tensors were made as a model wants them; what is not known, and what no pixel depends on, is
    not compared."""
    if inputs.protocol is None:
        return
    protocol, dtype = model.protocol, model.dtype.name
    differs = differences(inputs.protocol.pixels(dtype), protocol.pixels(dtype)) if protocol else ""
    if differs:
        raise UserError("%s: its tensors are not of the protocol of %s (%s); preprocess the videos for this model"
                        % (inputs.manifest, model.path, differs))
    if inputs.dtype != dtype:
        raise UserError("%s: its tensors are %s, %s takes %s; make one as the other is, by TSM_preprocess.py --dtype, "
                        "modify_onnx.py --input_dtype, or the model's exporter"
                        % (inputs.manifest, inputs.dtype, model.path, dtype))
    if protocol and protocol.classes != inputs.protocol.classes:
        print("note: %s is of %d classes, %s of %d; before TSM_postprocess.py run TSM_preprocess.py with this model's --protocol, "
              "which makes no tensor again" % (inputs.manifest, inputs.protocol.classes, model.path, protocol.classes))


def read_tensor(path: str, shape: Tuple[int, ...], dtype: np.dtype, entry: Optional[Dict[str, Any]]) -> np.ndarray:
    """A file's samples, [samples, …] in the model's dtype: as many as divide the batch in `shape`, the model's input's.
    Length and checksum are held against `entry`, what the manifest says of the file."""
    with open(path, "rb") as file:
        if path.lower().endswith(".npy"):
            data = np.ascontiguousarray(read_npy(path))
            if data.dtype != dtype:
                raise UserError("%s: holds %s, the model takes %s" % (path, data.dtype, dtype))
            flat = data.reshape(-1)
        else:
            size = os.fstat(file.fileno()).st_size
            flat = np.empty(0 if size % dtype.itemsize else size // dtype.itemsize, dtype)
            file.readinto(memoryview(flat.view(np.uint8)))
    if entry is not None:
        check_tensor(entry, flat, path)
    sample = int(np.prod(shape[1:]))
    total = sample * shape[0]
    if not flat.size or total % flat.size or flat.size % sample:
        raise UserError("%s: [ERROR] arg0 tensorsize: %d filesize: %d not match; was it preprocessed for this model?"
                        % (path, total * dtype.itemsize, os.path.getsize(path)))
    return flat.reshape((-1,) + shape[1:])


def samples_in(path: str, model: Offline) -> int:
    """How many samples a file holds, by its size; at least one, as read_tensor() tells what is wrong with it."""
    npy = path.lower().endswith(".npy")
    values = read_npy(path, "r").size if npy else os.path.getsize(path) // model.dtype.itemsize
    return max(1, values // int(np.prod(model.shape[1:])))


def keys_of_files(inputs: Inputs, basis: str) -> Dict[int, str]:
    """{number of a file: what its result depends on}: the `basis`, its name and its content, which the manifest knows or else its size
    and time of change tell."""
    keys: Dict[int, str] = {}
    for number, path in enumerate(inputs.files):
        entry, status = inputs.entries.get(os.path.basename(path)), os.stat(path)
        content = [entry["xxh3_128"]] if entry else [status.st_size, status.st_mtime_ns]
        keys[number] = checksum(json.dumps([basis, result_name(path), content]).encode())
    return keys


def made_up(model: Offline, kind: str) -> np.ndarray:
    """One video, or for a model that runs whole one batch, of zeros or of normally distributed values."""
    shape = ((1,) if model.fusion else model.shape[:1]) + model.shape[1:]
    if kind == "zero":
        return np.zeros(shape, model.dtype)
    values = np.random.RandomState(0).standard_normal(shape)
    return (values if model.dtype.kind == "f" else 127 + 50 * values).clip(-255, 255).astype(model.dtype)


def reading_ahead(items: Generator[Any, None, None]) -> Iterator[Any]:
    """The items, in order; a thread takes up to AHEAD of them before they are asked for, and closes the generator in the end.

    The thread is a daemon, so that nobody who leaves has to wait for an item that is slow to come; an executor's would be joined.
    """
    ready: "queue.Queue[Tuple[bool, Any]]" = queue.Queue(AHEAD)
    ended = threading.Event()

    def work() -> None:
        failure: Optional[BaseException] = None
        try:
            with contextlib.closing(items):
                for item in items:
                    ready.put((True, item))
                    if ended.is_set():
                        return
        except BaseException as error:  # handed to the reader, who raises it
            failure = error
        ready.put((False, failure))

    threading.Thread(target=work, daemon=True).start()
    try:
        more, item = ready.get()
        while more:
            yield item
            more, item = ready.get()
        if item is not None:
            raise item
    finally:
        ended.set()
        with contextlib.suppress(queue.Empty):
            ready.get_nowait()  # so that there is room, should it wait for some

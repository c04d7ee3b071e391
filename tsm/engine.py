"""Offline models on a CPU: what is known of one, the engines that compute it, and the run over videos.

A model of modify_onnx.py runs view by view: the views of a video are independent, one view's activations fit the caches
better than a batch's, and memory does not grow with the batch. Any other model runs whole.
"""

import hashlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from tsm.cli import UserError, first_line
from tsm.machine import cores
from tsm.protocol import SSV2, Protocol, fuse, protocol_from
from tsm.tensors import reading_ahead

Take = Callable[[np.ndarray], None]


class Offline(NamedTuple):
    """What the suite needs to know of an ONNX file. `fusion` and `protocol` are None for a model that runs whole."""

    path: str
    proto: Any  # onnx.ModelProto
    batch: int
    shape: Tuple[int, ...]  # of the input, the batch included
    dtype: np.dtype
    fusion: Optional[str]
    protocol: Optional[Protocol]
    metadata: Dict[str, str]


class Engine(NamedTuple):
    """A compiled model: submit(x, take) computes x and calls take(output), in any order; wait() returns after the last."""

    name: str
    streams: int
    submit: Callable[[np.ndarray, Take], None]
    wait: Callable[[], None]


def read_offline(path: str) -> Offline:
    """Load and describe a model; UserError unless it has one input, of a fixed shape, and one output."""
    from tsm.onnxfile import load, metadata, signature

    proto = load(path)
    facts = metadata(proto)
    _, shape, dtype, _ = signature(proto, path)
    unfixed = [size for size in shape if not isinstance(size, int)]
    if not shape or unfixed:
        raise UserError("%s: its input [%s] has no fixed size; export it with a fixed --shape"
                        % (path, ", ".join(map(str, shape))))
    fusion = facts.get("tsm.fusion")
    protocol = protocol_from(json.loads(facts["tsm.protocol"]), path) if "tsm.protocol" in facts else SSV2 if fusion else None
    if protocol and shape[1:] != protocol.video_shape:
        raise UserError("%s: its input is %s, and its protocol's is %s; make it again with modify_onnx.py"
                        % (path, list(shape), [shape[0]] + list(protocol.video_shape)))
    return Offline(path, proto, shape[0], shape, dtype, fusion, protocol, facts)


def one_view(model: Offline) -> Any:
    """The ONNX model of one view, [segments, 3, size, size] -> frame scores [segments, classes], of a modified model.

    Raises UserError if it is none, though its metadata say so.
    """
    from tsm.graph import build, trunk_of

    try:
        return build(trunk_of(model.proto), "view", dtype=model.dtype.name)
    except Exception as error:  # an edited model can fail anywhere
        raise UserError("%s: not as modify_onnx.py wrote it (%s: %s); make it again"
                        % (model.path, type(error).__name__, first_line(error)))


def one_view_digest(view: Any) -> str:
    """SHA-256 of a one-view model; the same for every batch size that it was taken from."""
    return hashlib.sha256(view.SerializeToString()).hexdigest()


def default_backend() -> str:
    """openvino if it is installed, else onnxruntime."""
    return "openvino" if find_spec("openvino") else "onnxruntime"


def openvino_engine(network: Any, path: str, precision: str, streams: int) -> Engine:
    """Compile an onnx.ModelProto or an openvino.Model; `path` names it in errors."""
    try:
        import openvino as ov

        core = ov.Core()
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except Exception as error:  # a wheel for another processor or C library fails in many ways
        raise UserError("OpenVINO does not start here (%s); use --backend onnxruntime" % first_line(error))
    if precision == "bf16" and not has_bf16:
        raise UserError("--precision bf16: this processor has no bfloat16 instructions; use fp32")
    config = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": cores(),
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16", "int8": "f32"}[precision],  # of what is not int8
    }
    try:
        if not isinstance(network, ov.Model):
            network = core.read_model(network.SerializeToString())
        compiled = core.compile_model(network, "CPU", config)
    except RuntimeError as error:
        raise UserError("%s: OpenVINO refuses it (%s)" % (path, first_line(str(error).splitlines()[-1], 200)))
    requests = ov.AsyncInferQueue(compiled, streams)
    requests.set_callback(lambda request, take: take(request.get_output_tensor(0).data.copy()))

    def submit(x: np.ndarray, take: Take) -> None:
        def finished(output: np.ndarray, x: np.ndarray = x) -> None:  # holds x, which the request reads in place
            take(output)

        requests.start_async({0: ov.Tensor(x, shared_memory=True)}, finished)

    return Engine("OpenVINO " + ov.__version__.split("-")[0], streams, submit, requests.wait_all)


def onnxruntime_engine(network: Any, path: str, precision: str, streams: int) -> Engine:
    """Open an onnx.ModelProto in ONNX Runtime, in fp32; `path` names it in errors."""
    import onnxruntime

    from tsm.onnxfile import session

    if precision != "fp32":
        raise UserError("--precision %s: needs OpenVINO; install it, or use fp32" % precision)
    opened = session(network, path, threads=max(1, cores() // streams))
    name, pool = opened.get_inputs()[0].name, ThreadPoolExecutor(streams)
    slots = threading.Semaphore(2 * streams)
    pending: List[Any] = []

    def submit(x: np.ndarray, take: Take) -> None:
        def compute() -> None:
            try:
                take(opened.run(None, {name: x})[0])
            finally:
                slots.release()

        slots.acquire()  # no more views in memory than can be worked on
        pending.append(pool.submit(compute))

    def wait() -> None:
        while pending:
            pending.pop().result()

    return Engine("ONNX Runtime " + onnxruntime.__version__, streams, submit, wait)


BACKENDS = {"openvino": openvino_engine, "onnxruntime": onnxruntime_engine}


def even_streams(views: int, most: int) -> int:
    """The most streams, up to `most`, that leave none idle in the last round over a batch's views."""
    return max(count for count in range(1, most + 1) if views % count == 0)


def streams_for(model: Offline) -> int:
    """Views computed at a time by default: one per core, evened out over a batch's views; 1 for a model that runs whole."""
    return even_streams(model.protocol.views * model.batch, cores()) if model.protocol else 1


def compute(engine: Engine, model: Offline, samples: np.ndarray, take: Take) -> None:
    """Submit samples, [samples, …], view by view or whole; take(output [samples, classes]) once all of them are done."""
    if model.protocol is None or model.fusion is None:
        engine.submit(samples, take)
        return
    protocol, fusion = model.protocol, model.fusion
    views = samples.reshape((len(samples) * protocol.views,) + protocol.view_shape)
    outputs: List[Any] = [None] * len(views)
    left, lock = [len(views)], threading.Lock()

    def finish(number: int, output: np.ndarray) -> None:
        outputs[number] = output
        with lock:
            left[0] -= 1
            last = not left[0]
        if last:
            view_scores = np.stack(outputs).mean(1, dtype=np.float64)  # of each view's frames
            take(fuse(view_scores, protocol.views, fusion).astype(np.float32))

    for number, view in enumerate(views):
        engine.submit(view, lambda output, number=number: finish(number, output))  # type: ignore[misc]


def infer(
    engine: Engine, model: Offline, batches: Sequence[List[int]], read: Callable[[int], np.ndarray], loop: int,
    done: Callable[[int, np.ndarray], None], progress: str = "",
) -> Tuple[List[float], List[float]]:
    """Compute every batch of file numbers `loop` times.

    Args:
        read: file number -> samples [samples, …]; called ahead of need, in another thread.
        done: called with a file's number and output [samples, classes], once, after its batch's last run.
        progress: the name of a progress bar; no bar without one.
    Returns: (ms per run, ms that it waited for files). A run lasts from its first view's start to its last view's end.
    """
    from tqdm import tqdm

    runs = [(batch, turn) for batch in batches for turn in range(loop)]
    data = reading_ahead(lambda number=number: read(number) for batch, _ in runs for number in batch)  # type: ignore[misc]
    times, waits = [], []
    for batch, turn in tqdm(runs, desc=progress, unit="batch", disable=None if progress else True):
        outputs, seconds, waited = _run(engine, model, batch, data)
        times.append(1000 * seconds)
        waits.append(1000 * waited)
        for number in batch if turn == loop - 1 else ():
            if not np.isfinite(outputs[number]).all():
                raise UserError("file number %d of the input: its scores are not finite; look for NaN or infinity in it, or "
                                "in the model's weights" % number)
            done(number, outputs[number])
    return times, waits


def _run(
    engine: Engine, model: Offline, batch: List[int], data: Iterator[np.ndarray]
) -> Tuple[Dict[int, np.ndarray], float, float]:
    """One run of a batch: ({file number: output}, seconds, seconds that it waited for files)."""
    outputs: Dict[int, np.ndarray] = {}
    whole: List[np.ndarray] = []
    start, waited = 0.0, 0.0
    for number in batch:
        asked = time.perf_counter()
        samples = next(data)
        arrived = time.perf_counter()
        start = start or arrived
        waited += arrived - asked
        if model.fusion is None:
            whole.append(samples)
        else:
            compute(engine, model, samples, lambda output, number=number: outputs.update({number: output}))  # type: ignore[misc]
    if whole:
        files = model.batch // len(whole[0])
        filled = np.concatenate(whole + [whole[0]] * (files - len(whole)))  # as ais_bench fills up a partial batch
        compute(engine, model, filled, lambda output: outputs.update(zip(batch, np.split(output, files))))
    engine.wait()
    return outputs, time.perf_counter() - start, waited

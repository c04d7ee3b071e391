"""Offline models on a CPU: the engines that compute them, and the runs over videos.

A model of modify_onnx.py runs view by view: the views of a video are independent, one view's activations fit the caches
better than a batch's, and memory does not grow with the batch. Any other model runs whole.
"""

import argparse
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any, Callable, Deque, Dict, Generator, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from tsm import __version__
from tsm.cli import UserError, first_line, non_negative, positive
from tsm.infer.int8 import int8_file, openvino_says, read_int8
from tsm.infer.tensors import reading_ahead
from tsm.machine import cores, peak_memory
from tsm.model.offline import Offline, one_view
from tsm.protocol import fuse

Take = Callable[[np.ndarray], None]


class Engine(NamedTuple):
    """A compiled model: submit(x, take) computes x and calls take(output), in any order; wait() returns after the last."""

    name: str
    streams: int
    submit: Callable[[np.ndarray, Take], None]
    wait: Callable[[], None]


def default_backend() -> str:
    """openvino if it is installed, else onnxruntime."""
    return "openvino" if find_spec("openvino") else "onnxruntime"


def has_bf16() -> bool:
    """Whether OpenVINO is installed and this processor computes in bfloat16."""
    if find_spec("openvino") is None:
        return False
    import openvino as ov

    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def openvino_engine(network: Any, path: str, precision: str, streams: int) -> Engine:
    """Compile an onnx.ModelProto or an openvino.Model; `path` names it in errors."""
    try:
        import openvino as ov

        core = ov.Core()
        known_bf16 = has_bf16()
    except Exception as error:  # a wheel for another processor or C library fails in many ways
        raise UserError("OpenVINO does not start here (%s); use --backend onnxruntime" % first_line(error))
    if precision == "bf16" and not known_bf16:
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
        raise UserError("%s: OpenVINO refuses it (%s); try --backend onnxruntime" % (path, openvino_says(error)))
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

    from tsm.model.onnxfile import session

    if precision != "fp32":
        raise UserError("--precision %s: needs OpenVINO; install it, or use fp32" % precision)
    opened = session(network, path, threads=max(1, cores() // streams))
    name, pool = opened.get_inputs()[0].name, ThreadPoolExecutor(streams)
    slots = threading.Semaphore(2 * streams)
    pending: Deque[Any] = deque()

    def submit(x: np.ndarray, take: Take) -> None:
        def compute() -> None:
            try:
                take(opened.run(None, {name: x})[0])
            finally:
                slots.release()

        while pending and pending[0].done():
            pending.popleft().result()
        slots.acquire()  # no more views in memory than can be worked on
        pending.append(pool.submit(compute))

    def wait() -> None:
        while pending:
            pending.popleft().result()

    return Engine("ONNX Runtime " + onnxruntime.__version__, streams, submit, wait)


BACKENDS = {"openvino": openvino_engine, "onnxruntime": onnxruntime_engine}


def even_streams(views: int, most: int) -> int:
    """The most streams, up to `most`, that leave none idle in the last round over a batch's views."""
    return max(count for count in range(1, most + 1) if views % count == 0)


def streams_for(model: Offline, listed: bool = False) -> int:
    """Views computed at a time by default: one per core, evened out over a batch's views unless one video follows another
    (`listed`, see run_stream()); 1 for a model that runs whole."""
    if model.protocol is None:
        return 1
    return cores() if listed else even_streams(model.protocol.views * model.batch, cores())


class Computing(NamedTuple):
    """What computes a model, and how."""

    backend: str  # openvino or onnxruntime; for an NPU ais_bench
    precision: str
    streams: Optional[int]  # views at a time; None: as streams_for() says
    int8_model: str  # TSM_quantise.py's file; empty unless the precision is int8


def add_options(cli: argparse.ArgumentParser) -> None:
    """The options that computing_of() reads."""
    cli.add_argument("--backend", choices=sorted(BACKENDS), help="default: openvino if it is installed")
    cli.add_argument("--precision", choices=("fp32", "bf16", "int8"), default="fp32", help="what it computes in; bf16 needs "
                     "a processor that has it, int8 TSM_quantise.py's file, both OpenVINO (default: %(default)s)")
    cli.add_argument("--int8_model", metavar="FILE", help="TSM_quantise.py's file (default: tsm_int8.xml beside the model)")
    cli.add_argument("--streams", type=positive, metavar="N", help="views computed at a time (default: one per core; "
                     "of a batch that runs by itself, evened out over its views)")


def add_agreement(cli: argparse.ArgumentParser) -> None:
    """The option on how many videos a precision below fp32 is held against fp32."""
    cli.add_argument("--agreement", type=non_negative, default=8, metavar="N", help="of a precision below fp32: how many videos are "
                     "computed again in fp32, to tell how often the answer is the same (default: %(default)s)")


def agreement_facts(same: Sequence[bool]) -> Dict[str, Dict[str, int]]:
    """For the summary's `tsm` entry, also printed: on how many videos, each being True or False, fp32 gives the same top-1."""
    print("[INFO] top-1 agrees with fp32 on %d of %d videos" % (sum(same), len(same)))
    return {"top1_agreement_with_fp32": {"same": sum(same), "videos": len(same)}}


def computing_of(args: argparse.Namespace, model_path: str) -> Computing:
    """What the options of add_options() choose for a model."""
    int8 = (args.int8_model or int8_file(model_path)) if args.precision == "int8" else ""
    return Computing(args.backend or default_backend(), args.precision, args.streams, int8)


def network_of(model: Offline, computing: Computing) -> Tuple[Any, Dict[str, str]]:
    """(what is to be compiled of a model, what is known of its int8 file). Raises UserError if that file is not of the model."""
    network = one_view(model) if model.protocol else model.proto
    facts: Dict[str, str] = {}
    if computing.precision == "int8":
        if computing.backend != "openvino" or not model.fusion:
            raise UserError("--precision int8: needs OpenVINO and a model of modify_onnx.py; use fp32")
        network, facts = read_int8(computing.int8_model, network, model.path)
    return network, facts


def open_engine(model: Offline, computing: Computing, listed: bool = False) -> Tuple[Engine, Dict[str, str]]:
    """(the model compiled, what is known of its int8 file); `listed` as in streams_for()."""
    network, facts = network_of(model, computing)
    streams = computing.streams or streams_for(model, listed)
    return BACKENDS[computing.backend](network, model.path, computing.precision, streams), facts


def about(engine: Engine, model: Offline, precision: str, int8: Dict[str, str]) -> Dict[str, Any]:
    """What computed, for the summary's `tsm` entry."""
    return {"version": __version__, "engine": engine.name, "precision": precision, "streams": engine.streams,
            "threads": cores(), "model": model.metadata, "int8": int8 or None, "peak_memory_bytes": peak_memory()}


def submit_views(engine: Engine, model: Offline, samples: np.ndarray, take: Take, voted: Optional[Take] = None) -> None:
    """Submit samples, [samples, …], view by view or whole; take(output [samples, classes]) once all of them are done.

    Before that, voted(int [samples]) is told how many of the views have the fused answer, if the model runs view by view.
    """
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
            fused = fuse(view_scores, protocol.views, fusion)
            if voted:
                voted((view_scores.argmax(1).reshape(len(fused), -1) == fused.argmax(1)[:, None]).sum(1))
            take(fused.astype(np.float32))

    for number, view in enumerate(views):
        engine.submit(view, lambda output, number=number: finish(number, output))  # type: ignore[misc]


def run_batches(
    engine: Engine, model: Offline, batches: Sequence[List[int]], read: Callable[[int], np.ndarray], loop: int,
    done: Callable[[int, np.ndarray], None], progress: str = "", voted: Optional[Callable[[int, np.ndarray], None]] = None,
) -> Tuple[List[float], List[float]]:
    """Compute every batch of file numbers `loop` times.

    Args:
        read: file number -> samples [samples, …]; called ahead of need, in another thread.
        done: called with a file's number and output [samples, classes], once, after its batch's last run.
        progress: the name of a progress bar; no bar without one.
        voted: called with a file's number and how many of its views have the fused answer, int [samples]; see submit_views().
    Returns: (ms per run, ms that it waited for files). A run lasts from its first view's start to its last view's end.
    """
    from tqdm import tqdm

    runs = [(batch, turn) for batch in batches for turn in range(loop)]
    data = reading_ahead(read(number) for batch, _ in runs for number in batch)
    times, waits = [], []
    for batch, turn in tqdm(runs, desc=progress, unit="batch", disable=None if progress else True):
        outputs, seconds, waited = _run(engine, model, batch, data, voted)
        times.append(1000 * seconds)
        waits.append(1000 * waited)
        for number in batch if turn == loop - 1 else ():
            if not np.isfinite(outputs[number]).all():
                raise UserError("file number %d of the input: its scores are not finite; look for NaN or infinity in it, or "
                                "in the model's weights" % number)
            done(number, outputs[number])
    return times, waits


def _run(
    engine: Engine, model: Offline, batch: List[int], data: Iterator[np.ndarray],
    voted: Optional[Callable[[int, np.ndarray], None]],
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
            submit_views(engine, model, samples, lambda output, number=number: outputs.update({number: output}),  # type: ignore[misc]
                    voted and (lambda votes, number=number: voted(number, votes)))  # type: ignore[misc]
    if whole:
        files = model.batch // len(whole[0])
        filled = np.concatenate(whole + [whole[0]] * (files - len(whole)))  # as ais_bench fills up a partial batch
        submit_views(engine, model, filled, lambda output: outputs.update(zip(batch, np.split(output, files))))
    engine.wait()
    return outputs, time.perf_counter() - start, waited


class _Begun(NamedTuple):
    """A video whose views were submitted: `results` gets its result and the moment of its end."""

    key: Any
    results: List[Tuple[Any, float]]
    arrived: float
    waited: float  # seconds


def run_stream(
    engine: Engine, model: Offline, videos: Generator[Tuple[Any, Any], None, None],
    voted: Optional[Callable[[Any, int], None]] = None,
) -> Iterator[Tuple[Any, Any, float, float]]:
    """Compute videos as they come; of each, in their order, (key, result, ms of computing, ms that the engine had nothing to do).

    A video is begun while the one before it runs, so that no stream is idle between them. It is computed from when it came, or
    when the one before it was done if that was later, to its end; so these times add up to what a clock shows.

    Args:
        videos: (key, samples [1, frames, 3, size, size]), or (key, an exception), which is passed on as the result. They
            are taken ahead of need, in another thread, which also closes the iterator.
        voted: told, before the result is yielded, a video's key and how many of its views have its answer.
    The result is the fused probabilities, float32 [classes]. An error that ends the work is raised after all results that were
    begun before it.
    """
    begun: Deque[_Begun] = deque()
    ended = 0.0

    def begin(key: Any, samples: Any, asked: float) -> None:
        arrived = time.perf_counter()
        results: List[Tuple[Any, float]] = []
        ends = [one.results[0][1] for one in begun if one.results]
        idle = len(ends) == len(begun)
        begun.append(_Begun(key, results, arrived, max(0.0, arrived - max([asked] + ends)) if idle else 0.0))
        if isinstance(samples, Exception):
            results.append((samples, arrived))
        else:
            submit_views(engine, model, samples, lambda output: results.append((output[0], time.perf_counter())),
                    voted and (lambda votes: voted(key, int(votes[0]))))  # type: ignore[misc]

    def done() -> Iterator[Tuple[Any, Any, float, float]]:
        nonlocal ended
        while begun and begun[0].results:
            key, ((result, end),), arrived, waited = begun.popleft()
            if not isinstance(result, Exception) and not np.isfinite(result).all():
                raise UserError("%s: its scores are not finite; look for NaN or infinity in the model's weights" % (key,))
            seconds, ended = max(0.0, end - max(arrived, ended)), max(ended, end)
            yield key, result, 1000 * seconds, 1000 * waited

    ahead, asked = reading_ahead(videos), time.perf_counter()
    failed: Optional[BaseException] = None
    try:
        for key, samples in ahead:
            begin(key, samples, asked)
            yield from done()
            asked = time.perf_counter()
    except (Exception, KeyboardInterrupt) as error:
        failed = error
    finally:
        engine.wait()
    yield from done()
    if failed is not None:
        raise failed

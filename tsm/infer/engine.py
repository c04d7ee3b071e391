"""Offline models on a CPU: the engines that compute them, and the runs over videos.

A model of modify_onnx.py runs view by view: the views of a video are independent, one view's activations fit the caches
better than a batch's, and memory does not grow with the batch. Any other model runs whole.
"""

import argparse
import importlib
import itertools
import json
import os
import queue
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any, Callable, Deque, Dict, Generator, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from tsm import __version__
from tsm.cli import AGREE_ON, UserError, first_line, non_negative, positive, warn
from tsm.files import sha256
from tsm.infer.int8 import int8_file, read_int8, weights_file
from tsm.infer.tensors import reading_ahead
from tsm.machine import cores, has_bf16, peak_memory
from tsm.model.offline import Offline, clip_of, one_frame, one_view
from tsm.model.onnxfile import compiled, session
from tsm.protocol import CENTRE_VIEW, fuse
from tsm.results import flips_in_words

FORMAT = 2  # to be raised with any change that changes a result, or what a journal says of it
PERCENTILES = (50, 90, 99)
SHARES = [part / 10 for part in range(1, 11)]  # of a clip's frames, after which the answers of an online model are kept
LATEST = 10000  # frames whose times are kept
Take = Callable[[np.ndarray], None]


class Engine(NamedTuple):
    """A compiled model: submit(x, take) computes x and calls take(output), in any order; wait() returns after the last."""

    name: str
    streams: int
    submit: Callable[[np.ndarray, Take], None]
    wait: Callable[[], None]
    precision: str = "fp32"
    int8: Optional[Dict[str, str]] = None  # what is known of the int8 file, if there is one
    frame_ms: Optional[Deque[float]] = None  # of an online model, of the LATEST frames


def default_backend() -> str:
    """openvino if it is installed, else onnxruntime."""
    return "openvino" if find_spec("openvino") else "onnxruntime"


def engine_name(backend: str) -> str:
    """An engine and its version, in words."""
    version = str(importlib.import_module(backend).__version__).split("-")[0]  # type: ignore[attr-defined]
    return {"openvino": "OpenVINO ", "onnxruntime": "ONNX Runtime "}[backend] + version


def openvino_engine(network: Any, path: str, precision: str, streams: int) -> Engine:
    """Compile an onnx.ModelProto or an openvino.Model; `path` names it in errors."""
    made = compiled(network, path, precision, "THROUGHPUT", streams)
    import openvino as ov

    requests = ov.AsyncInferQueue(made, streams)
    requests.set_callback(lambda request, take: take(request.get_output_tensor(0).data.copy()))

    def submit(x: np.ndarray, take: Take) -> None:
        def finished(output: np.ndarray, x: np.ndarray = x) -> None:  # holds x, which the request reads in place
            take(output)

        requests.start_async({0: ov.Tensor(x, shared_memory=True)}, finished)

    return Engine(engine_name("openvino"), streams, submit, requests.wait_all)


def onnxruntime_engine(network: Any, path: str, precision: str, streams: int) -> Engine:
    """Open an onnx.ModelProto in ONNX Runtime, in fp32; `path` names it in errors."""
    runner = session(network, path, threads=max(1, cores() // streams))
    name = runner.get_inputs()[0].name
    return pooled(engine_name("onnxruntime"), streams, lambda x: runner.run(None, {name: x})[0])


def pooled(name: str, streams: int, compute: Callable[[np.ndarray], np.ndarray]) -> Engine:
    """The engine that computes x by compute(x) in so many threads."""
    pool, pending = ThreadPoolExecutor(streams), deque()  # type: ignore[var-annotated]  # futures, the oldest first

    def submit(x: np.ndarray, take: Take) -> None:
        while pending and (pending[0].done() or len(pending) == 2 * streams):  # no more views in memory than can be worked on
            pending.popleft().result()
        pending.append(pool.submit(lambda: take(compute(x))))

    def wait() -> None:
        while pending:
            pending.popleft().result()

    return Engine(name, streams, submit, wait)


BACKENDS = {"openvino": openvino_engine, "onnxruntime": onnxruntime_engine}


def streams_for(model: Offline, listed: bool = False) -> int:
    """Views computed at a time by default: one per core, or, unless one video follows another (`listed`, see run_stream()), the most
    that leave none idle in the last round over a batch's views; 1 for a model that runs whole."""
    if model.protocol is None:
        return 1
    views = model.protocol.views * model.batch
    return cores() if listed else max(count for count in range(1, cores() + 1) if views % count == 0)


class Computing(NamedTuple):
    """What computes a model, and how."""

    backend: str  # openvino or onnxruntime; for an NPU ais_bench
    precision: str
    streams: Optional[int]  # views at a time; None: as streams_for() says
    int8_model: str  # the file that is compiled in the model's place: TSM_quantise.py's for int8, atc's on an NPU; or empty


def add_options(cli: argparse.ArgumentParser, agreement: bool = False) -> None:
    """The options that computing_of() reads; and on how many videos a precision below fp32 is held against fp32."""
    cli.add_argument("--backend", choices=sorted(BACKENDS) + ["ascend"], metavar="NAME", help="openvino (default), onnxruntime; "
                     "online also ascend")
    cli.add_argument("--precision", choices=("fp32", "bf16", "int8"), default="fp32", metavar="P", help="%(default)s, or by OpenVINO bf16 "
                     "or int8")
    cli.add_argument("--int8_model", metavar="FILE", help="TSM_quantise.py's (default: tsm_int8.xml by the model)")
    cli.add_argument("--streams", type=positive, metavar="N", help="views computed at a time (default: one per core)")
    if agreement:
        cli.add_argument("--agreement", type=non_negative, default=AGREE_ON, metavar="N", help="videos to compute again in fp32 "
                         "(default: %(default)s)")


def agreement_facts(same: Sequence[bool], listed: int) -> Dict[str, Dict[str, int]]:
    """For the summary's `tsm` entry, also printed: on how many videos, each being True or False, of so many, fp32 gives the same top-1."""
    if not same:
        return {}
    print("top-1: " + flips_in_words(len(same) - sum(same), len(same), listed))
    return {"top1_agreement_with_fp32": {"same": sum(same), "videos": len(same), "listed": listed}}


def computing_of(args: argparse.Namespace, model_path: str) -> Computing:
    """What the options of add_options() choose for a model. Raises UserError where nothing can be chosen on an NPU."""
    if args.backend == "ascend":
        if args.precision != "fp32" or args.streams:
            raise UserError("--precision and --streams are for a CPU; atc decided the precision of an NPU's model")
        return Computing(args.backend, "as atc chose", 1, os.path.splitext(model_path)[0] + ".om")
    int8 = (args.int8_model or int8_file(model_path)) if args.precision == "int8" else ""
    return Computing(args.backend or default_backend(), args.precision, args.streams, int8)


def digests_of(path: str, computing: Computing) -> Dict[str, str]:
    """{file: SHA-256} of the files that decide what is computed: the model first, then where it has one its int8 file."""
    int8 = computing.int8_model
    files = [path] + [one for one in ((int8, weights_file(int8)) if int8 else ()) if os.path.exists(one)]
    return {file: sha256(file) for file in files}


def basis_of(digests: Dict[str, str], computing: Computing, tensors: Any) -> str:
    """What results depend on: this code, the files of digests_of(), the precision; and of `tensors` what they have in common."""
    return json.dumps([FORMAT, __version__, list(digests.values()), computing.precision, computing.backend, tensors])


def to_compile(model: Offline, computing: Computing) -> Tuple[Any, Optional[Dict[str, str]]]:
    """(what is to be compiled of a model, what is known of its int8 file). Raises UserError if that file is not of the model."""
    online = model.target == "online"
    if computing.precision in ("bf16", "int8") and computing.backend != "openvino":
        raise UserError("--precision %s: needs OpenVINO; install it, or use fp32" % computing.precision)
    if computing.precision != "int8":
        return one_frame(model) if online else one_view(model) if model.protocol else model.proto, None
    view = clip_of(model, "clip") if online else one_view(model)
    if has_bf16() and any(entry.name == "group" and entry.i > 1 for node in view.graph.node for entry in node.attribute):
        warn("--precision int8: convolutions of every channel by itself gain nothing by it; bf16 is faster here, and nearer to fp32")
    return read_int8(computing.int8_model, view, model.path)


def open_engine(model: Offline, computing: Computing, listed: bool = False) -> Engine:
    """The model compiled; `listed` as in streams_for()."""
    streams = computing.streams or streams_for(model, listed)
    if model.target == "online":
        return online_engine(model, computing, streams)
    if computing.backend == "ascend":
        raise UserError("--backend ascend: runs online models; the .om of %s is for TSM_stream.py --device npu" % model.path)
    network, int8 = to_compile(model, computing)
    engine = BACKENDS[computing.backend](network, model.path, computing.precision, streams)
    return engine._replace(precision=computing.precision, int8=int8)


class Online(NamedTuple):
    """An online model, compiled, with states of its own."""

    name: str
    reset: Callable[[], None]  # the next frame is the first of a video
    step: Callable[[np.ndarray], np.ndarray]  # a frame [1, 3, size, size] -> class scores float32 [classes]
    another: Callable[[], Any]  # () -> an Online of the same compiled model, with other states, for another video at the same time
    int8: Optional[Dict[str, str]] = None


def open_online(model: Offline, computing: Computing) -> Online:
    """An online model compiled for one frame at a time, by all cores, or for as many as computing.streams says, on a part of them each.

    What a state holds is worth nothing once it is not finite: then the states are reset, which is said, and the frame is
    computed as a first one. Raises UserError where its scores are not finite even so.
    """
    network, int8 = to_compile(model, computing)
    begin = {"openvino": _stateful, "onnxruntime": _fed_back, "ascend": _on_chip}[computing.backend]
    name, requests = begin(network, model, computing.precision, computing.streams or 1)

    def another() -> Online:
        reset, run = requests()

        def step(frame: np.ndarray) -> np.ndarray:
            scores = run(frame)
            if not np.isfinite(scores).all():
                reset()
                scores = run(frame)
                if not np.isfinite(scores).all():
                    reset()
                    raise UserError("a frame's scores are not finite; look for NaN or infinity in it, or in the weights of %s" % model.path)
                warn("%s: its states were not finite; they were reset" % model.path)
            return scores

        return Online(name, reset, step, another, int8)

    return another()


Requests = Callable[[], Tuple[Callable[[], None], Callable[[np.ndarray], np.ndarray]]]  # () -> (reset, run) of new states


def _stateful(network: Any, model: Offline, precision: str, streams: int) -> Tuple[str, Requests]:
    """By OpenVINO, with the states inside its requests: each is read, zeros at first, where it came in, and assigned where it went out.

    OpenVINO's own MakeStateful gives no zeros, and so no int8: "index '0' out of range".
    """
    import openvino as ov
    from openvino import opset6

    if not isinstance(network, ov.Model):
        network = ov.Core().read_model(network.SerializeToString())
    sinks = []
    for state in model.states:
        given, made = network.input(state.input), network.output(state.output).get_node().input_value(0)
        kind = given.get_element_type()  # to_dtype() is asked before threads start: the first two to ask at once wait for ever
        value = opset6.read_value(opset6.constant(np.zeros(state.shape, kind.to_dtype())), state.input, kind, list(state.shape))
        for reader in given.get_target_inputs():
            reader.replace_source_output(value.output(0))
        whole = made.get_node().get_output_size() == 1  # assign() takes no output of a Split
        sinks.append(opset6.assign(made.get_node() if whole else opset6.multiply(made, np.float32(1)), state.input))
    network = ov.Model([network.output("output").get_node()], sinks, [network.input("input").get_node()])
    ready = compiled(network, model.path, precision, "LATENCY", streams)

    def begin() -> Tuple[Callable[[], None], Callable[[np.ndarray], np.ndarray]]:
        request = ready.create_infer_request()

        def run(frame: np.ndarray) -> np.ndarray:
            request.infer({0: frame}, share_inputs=True)
            scores: np.ndarray = request.get_output_tensor(0).data[0].copy()
            return scores

        return request.reset_state, run

    return engine_name("openvino"), begin


def _fed_back(network: Any, model: Offline, precision: str, streams: int) -> Tuple[str, Requests]:
    """By ONNX Runtime, which is given the states that it gave."""
    runner = session(network, model.path, threads=max(1, cores() // streams))
    taken, given = ["input"] + [state.input for state in model.states], ["output"] + [state.output for state in model.states]
    return engine_name("onnxruntime"), _feeding_back(model, lambda: (
        np.asarray, lambda feeds: runner.run(given, dict(zip(taken, feeds)))))


def _on_chip(network: Any, model: Offline, precision: str, streams: int) -> Tuple[str, Requests]:
    """By ais_bench's InferSession on the first NPU, of X.om beside X.onnx. States stay there and go by order: an om may rename them."""
    om = os.path.splitext(model.path)[0] + ".om"
    if not os.path.isfile(om):
        raise UserError("%s: not found; compile %s with atc, as ./run_all.sh 1 --device npu --online does" % (om, model.path))
    try:
        from ais_bench.infer.interface import InferSession
    except ImportError as error:
        raise UserError("ais_bench: cannot be imported (%s); build its wheel from ascend/tools" % first_line(error))

    def attempt(work: Callable[..., Any], *what: Any) -> Any:
        try:
            return work(*what)
        except RuntimeError as error:
            raise UserError("%s: the chip does not run it (%s); look at npu-smi info" % (om, first_line(error)))

    def begin() -> Tuple[Any, Any]:
        session = attempt(InferSession, 0, om)

        def compute(feeds: List[Any]) -> List[Any]:
            outputs: List[Any] = session.run(feeds, out_array=False)
            outputs[0].to_host()
            return outputs

        return session.create_tensor_from_arrays_to_device, partial(attempt, compute)

    return "ais_bench", _feeding_back(model, begin)


def _feeding_back(model: Offline, begin: Callable[[], Tuple[Any, Any]]) -> Requests:
    """Requests that are given back the states they gave. begin(), called by the thread that runs them, as a chip wants it, gives (from an
    array to where it is computed, [frame, states] there -> [scores, states])."""
    def requests() -> Tuple[Callable[[], None], Callable[[np.ndarray], np.ndarray]]:
        ready: List[Any] = []
        states: List[Any] = []

        def run(frame: np.ndarray) -> np.ndarray:
            put, compute = ready or begin()
            ready[:] = put, compute
            if not states:
                states.extend(put(np.zeros(state.shape, np.float32)) for state in model.states)
            scores, *states[:] = compute([put(frame)] + states)
            return np.array(scores, np.float32).reshape(-1)

        return states.clear, run

    return requests


def online_engine(model: Offline, computing: Computing, streams: int) -> Engine:
    """Views of an online model, frame after frame, several views at a time; the ms of the LATEST frames are kept."""
    first = open_online(model, computing._replace(streams=streams))
    free: "queue.Queue[Online]" = queue.Queue()
    for number in range(streams):
        free.put(first.another() if number else first)
    frame_ms: Deque[float] = deque(maxlen=LATEST)

    def compute(view: np.ndarray) -> np.ndarray:
        online = free.get()
        try:
            online.reset()
            scores = []
            for frame in view:
                began = time.perf_counter()
                scores.append(online.step(frame[None]))
                frame_ms.append(1000 * (time.perf_counter() - began))
            return np.stack(scores)
        finally:
            free.put(online)

    return pooled(first.name, streams, compute)._replace(precision=computing.precision, int8=first.int8, frame_ms=frame_ms)


def for_views(model: Offline, every: Optional[float] = None) -> Offline:
    """A model as TSM_infer.py and TSM_stream.py run it: an online one takes videos, and its views' scores are averaged; or, where a frame
    comes `every` so many seconds, the centre view alone, of as many frames as there are."""
    if model.target != "online":
        return model
    if every:
        paced = dict(model.metadata, **{"tsm.every": "%g" % every})
        model = model._replace(protocol=model.tested_by._replace(**CENTRE_VIEW), metadata=paced)
    return model._replace(shape=(1,) + model.tested_by.video_shape, fusion="score")


def said_of(engine: Engine, model: Offline) -> str:
    """What computes, in words."""
    way = "%d views at a time, %sfused by %s" % (engine.streams, "frame by frame, " if engine.frame_ms is not None else "", model.fusion)
    bound = (engine.int8 or {}).get("bound")
    return "%s on %d threads, %s, %s%s" % (engine.name, cores(), engine.precision, way if model.fusion else "the whole batch at a time",
                                           "; " + bound if bound else "")


def about(engine: Engine) -> Dict[str, Any]:
    """What computed, for the summary's `tsm` entry, to which the model's metadata belong too; of an online model also the ms of a frame."""
    facts = computed_by(engine.name, engine.precision, engine.streams, engine.int8)
    return dict(facts, frame_ms=percentiles(engine.frame_ms)) if engine.frame_ms else facts


def computed_by(name: str, precision: str, streams: int, int8: Optional[Dict[str, str]]) -> Dict[str, Any]:
    """What is told of any engine: its own facts, as Engine and Online have them, and this process's."""
    return {"version": __version__, "engine": name, "precision": precision, "streams": streams,
            "threads": cores(), "int8": int8, "peak_memory_bytes": peak_memory()}


def percentiles(times: Sequence[float]) -> Dict[str, float]:
    """{p50, p90, p99} of times in ms; empty of none."""
    values = np.percentile(times, PERCENTILES) if len(times) else ()
    return {"p%d" % share: round(float(value), 3) for share, value in zip(PERCENTILES, values)}


def submit_views(engine: Engine, model: Offline, samples: np.ndarray, take: Take, seen: Optional[Callable[..., None]] = None) -> None:
    """Submit samples, [samples, …], view by view or whole; take(output [samples, classes]) once all of them are done.

    Before that, if the model runs view by view, seen() is told how many of the views have the fused answer, int [samples], and
    of an online model the answers after each of SHARES of the frames, int [samples, shares].
    """
    if model.protocol is None or model.fusion is None:
        engine.submit(samples, take)
        return
    protocol, fusion = model.protocol, model.fusion
    views = samples.reshape((len(samples) * protocol.views, -1) + protocol.frame_shape)
    middle = 1 - 1e-6 if "tsm.every" in model.metadata else 0.5  # a frame stands at the begin of its part of the clip, or in its middle
    outputs: List[Any] = [None] * len(views)
    left, lock = [len(views)], threading.Lock()

    def fused_after(frames: int) -> np.ndarray:
        return fuse(np.stack(outputs)[:, :frames].mean(1, dtype=np.float64), protocol.views, fusion)

    def finish(number: int, output: np.ndarray) -> None:
        outputs[number] = output
        with lock:
            left[0] -= 1
            last = not left[0]
        if last:
            fused = fused_after(views.shape[1])
            if seen:
                answers = np.stack(outputs).mean(1, dtype=np.float64).argmax(1)
                counts = [max(1, int(share * views.shape[1] + middle)) for share in SHARES]
                seen((answers.reshape(len(fused), -1) == fused.argmax(1)[:, None]).sum(1),
                     np.stack([fused_after(count).argmax(1) for count in counts], 1) if model.target == "online" else None)
            take(fused.astype(np.float32))

    for number, view in enumerate(views):
        engine.submit(view, lambda output, number=number: finish(number, output))  # type: ignore[misc]


def run_batches(
    engine: Engine, model: Offline, files: Sequence[str], read: Callable[[str], np.ndarray], loop: int = 1,
    seen: Optional[Callable[[str, np.ndarray, Optional[np.ndarray]], None]] = None, samples: int = 1,
) -> Iterator[Tuple[List[np.ndarray], List[Tuple[float, float]]]]:
    """Compute files, of which as many as fit make a batch, the last of which may be partial, each batch `loop` times.

    Args:
        read: a file's name -> samples [samples, …]; called ahead of need, in another thread.
        seen: as in run_stream().
        samples: of each file.
    Returns: of each batch, in their order, (the output [samples, classes] of each file, of each time (ms of computing, ms that the
    engine had nothing to do), as run_stream() counts them).
    """
    packed = max(1, model.batch // samples)
    batches = [files[start : start + packed] for start in range(0, len(files), packed)]

    def items() -> Generator[Tuple[str, np.ndarray], None, None]:
        for batch in [batch for batch in batches for _ in range(loop)]:
            if model.fusion:
                yield from ((name, read(name)) for name in batch)
            else:
                whole = list(map(read, batch))
                yield ", ".join(batch), np.concatenate(whole + [whole[0]] * (packed - len(whole)))  # as ais_bench fills up a batch

    results = run_stream(engine, model, items(), seen)
    for batch in batches:
        times: List[Tuple[float, float]] = []
        for _ in range(loop):
            _, outputs, computing, waiting = zip(*itertools.islice(results, len(batch) if model.fusion else 1))
            times.append((sum(computing), sum(waiting)))
        yield list(outputs) if model.fusion else np.split(outputs[0], packed)[: len(batch)], times


def run_stream(
    engine: Engine, model: Offline, videos: Generator[Tuple[Any, Any], None, None],
    seen: Optional[Callable[[Any, np.ndarray, Optional[np.ndarray]], None]] = None,
) -> Iterator[Tuple[Any, Any, float, float]]:
    """Compute videos as they come; of each, in their order, (key, result, ms of computing, ms that the engine had nothing to do).

    A video is begun while the one before it runs, so that no stream is idle between them. It is computed from when it came, or
    when the one before it was done if that was later, to its end; so these times add up to what a clock shows.

    Args:
        videos: (key, samples [samples, …]), or (key, an exception), which is passed on as the result. They are taken ahead of
            need, in another thread, which also closes the iterator.
        seen: told, before the result is yielded, a video's key and what submit_views() tells.
    The result is the model's output, of TSM the fused probabilities, float32 [samples, classes]. An error that ends the work is
    raised after all results that were begun before it.
    """
    # of each video whose views were submitted: its key, [(result, moment of its end)], when it came, seconds waited for it
    begun: Deque[Tuple[Any, List[Tuple[Any, float]], float, float]] = deque()
    ended = 0.0

    def begin(key: Any, samples: Any, asked: float) -> None:
        arrived = time.perf_counter()
        results: List[Tuple[Any, float]] = []
        ends = [before[0][1] for _, before, _, _ in begun if before]
        idle = len(ends) == len(begun)
        begun.append((key, results, arrived, max(0.0, arrived - max([asked] + ends)) if idle else 0.0))
        if isinstance(samples, Exception):
            results.append((samples, arrived))
        else:
            submit_views(engine, model, samples, lambda output: results.append((output, time.perf_counter())),
                         seen and partial(seen, key))

    def done() -> Iterator[Tuple[Any, Any, float, float]]:
        nonlocal ended
        while begun and begun[0][1]:
            key, ((result, end),), arrived, waited = begun.popleft()
            if not isinstance(result, Exception) and not np.isfinite(result).all():
                raise UserError("%s: its scores are not finite; look for NaN or infinity in it, or in the model's weights" % (key,))
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

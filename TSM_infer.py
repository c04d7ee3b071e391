#!/usr/bin/env python3
"""Inference of an offline TSM model on a CPU, with the flags, files and figures of `python -m ais_bench`.

    python3 TSM_infer.py --model tsm_new_bs1.onnx --input sthv2/preprocess_bin --output inference_result \\
        --output_dirname out --outfmt TXT
    python3 TSM_infer.py --model tsm_new_bs1.onnx --loop 20          # throughput alone, on zeros

Input: files, or a folder of .bin and .npy files, which is read in natural order (0, 1, 2, …, 10). Files smaller than the
model's batch are packed: one file per video serves every batch size. Output: OUTPUT/OUTPUT_DIRNAME/<name>_0.txt (or
.npy, .bin) per input file, and OUTPUT/OUTPUT_DIRNAME_summary.json beside the folder. Where the folder's parent holds
TSM_preprocess.py's manifest, every tensor is checked against it before it is used.

A model of modify_onnx.py runs VIEW BY VIEW on parallel streams, whatever its batch: the six views of a video are
independent, one view's activations fit the caches better than a batch's, and memory does not grow with the batch. The
views are then fused as the model says. Any other model runs whole. Reading the next files overlaps with computing.

The measured time of a batch runs from its first view's start to its last view's end: computing, with whatever of reading
and checking the files the overlap does not hide; not the writing of results. There is no filler: the last, partial batch
computes its own videos only, and counts in the throughput as what it is.
"""

import argparse
import hashlib
import json
import os
import queue
import resource
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple
from xml.etree import ElementTree

import numpy as np

from tsm import __version__
from tsm.cli import UserError, non_negative, parser, positive, run
from tsm.files import natural, read_npy, replacing, write_text
from tsm.protocol import SEGMENTS, SIZE, VIEWS, fuse
from tsm.samples import check_folder, check_tensor, read_manifest

AHEAD = 2  # videos read before they are needed
SUFFIXES = (".npy", ".NPY", ".bin", ".BIN")
Submit = Callable[[np.ndarray, Callable[[np.ndarray], None]], None]


class Engine(NamedTuple):
    """A compiled model: submit(x, done) computes x and calls done(output), in any order; wait() returns after the last."""

    name: str
    streams: int
    submit: Submit
    wait: Callable[[], None]


class Model(NamedTuple):
    """What the suite needs to know of an ONNX file. `fusion` is None for a model that runs whole."""

    path: str
    proto: Any
    batch: int
    shape: Tuple[int, ...]  # of the input, the batch included
    dtype: np.dtype
    fusion: Optional[str]
    metadata: Dict[str, str]


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--model", "-m", required=True, metavar="FILE", help="the ONNX model")
    cli.add_argument("--input", "-i", metavar="PATHS", help="files (comma-separated) or one folder; without it the model "
                     "runs on zeros, for its speed")
    cli.add_argument("--output", "-o", metavar="DIR", help="where results go; without it none are written")
    cli.add_argument("--output_dirname", metavar="NAME", help="their folder inside --output (default: a time stamp)")
    cli.add_argument("--outfmt", choices=("NPY", "BIN", "TXT"), default="BIN", help="default: %(default)s")
    cli.add_argument("--loop", "-l", type=positive, default=1, metavar="N", help="computes each batch N times (default: 1)")
    cli.add_argument("--warmup_count", type=non_negative, default=1, metavar="N", help="batches run first, not counted "
                     "(default: 1)")
    cli.add_argument("--batchsize", type=positive, metavar="N", help="of the throughput (default: the model's)")
    cli.add_argument("--device", "-d", default="0", help="accepted for compatibility; there is one CPU")
    cli.add_argument("--pure_data_type", choices=("zero", "random"), default="zero", help="without --input: zeros, or "
                     "normally distributed values (default: %(default)s)")
    cli.add_argument("--backend", choices=("openvino", "onnxruntime"), help="default: openvino where it is installed")
    cli.add_argument("--precision", choices=("fp32", "bf16", "int8"), default="fp32", help="what it computes in; bf16 needs "
                     "a processor that has it, int8 TSM_quantise.py's file, both OpenVINO (default: %(default)s)")
    cli.add_argument("--int8_model", metavar="FILE", help="TSM_quantise.py's file (default: tsm_int8.xml beside the model)")
    cli.add_argument("--agreement", type=non_negative, default=8, metavar="N", help="videos that a precision below fp32 is "
                     "compared on with fp32 (default: %(default)s)")
    cli.add_argument("--streams", type=positive, metavar="N", help="views computed at a time (default: one per core, "
                     "evened out over a batch's views)")
    args = cli.parse_args()
    if args.output_dirname and not args.output:
        cli.error("--output_dirname needs --output")
    return args


def read_model(path: str) -> Model:
    """Load and describe a model; UserError where it is not a static model with one input."""
    from onnx import helper

    from tsm.onnxfile import load, metadata

    proto = load(path)
    graph, known = proto.graph, metadata(proto)
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise UserError("%s: has %d inputs and %d outputs; one of each is supported" % (path, len(inputs), len(graph.output)))
    kind = inputs[0].type.tensor_type
    shape = tuple(dim.dim_value for dim in kind.shape.dim)
    if not shape or 0 in shape:
        raise UserError("%s: its input shape %s is not static; export it with a fixed batch" % (path, list(shape)))
    convert = getattr(helper, "tensor_dtype_to_np_dtype", None)
    if convert is None:  # onnx before 1.13
        from onnx.mapping import TENSOR_TYPE_TO_NP_TYPE

        convert = TENSOR_TYPE_TO_NP_TYPE.__getitem__
    return Model(path, proto, shape[0], shape, np.dtype(convert(kind.elem_type)), known.get("tsm.fusion"), known)


def view_model(model: Model) -> Any:
    """The ONNX model of one view, [8, 3, 256, 256] -> frame scores [8, classes], of a model of modify_onnx.py.

    Raises UserError where it is none, though its metadata say so.
    """
    from tsm.graph import build, trunk_of
    from tsm.onnxfile import protocol_of

    try:
        return build(trunk_of(model.proto), "view", protocol_of(model.proto, model.path), dtype=model.dtype.name)
    except Exception as error:  # what was changed behind modify_onnx.py's back can be wrong in any way
        raise UserError("%s: not as modify_onnx.py wrote it (%s: %s); make it again"
                        % (model.path, type(error).__name__, str(error)[:100]))


def view_digest(view: Any) -> str:
    """SHA-256 of a one-view model; the same for every batch size that it was taken from."""
    return hashlib.sha256(view.SerializeToString()).hexdigest()


def int8_file(model: str) -> str:
    """Where TSM_quantise.py's file of a model is unless it is named."""
    return os.path.join(os.path.dirname(model), "tsm_int8.xml")


def read_int8(path: str, view: Any, given: str) -> Tuple[Any, Dict[str, str]]:
    """(the openvino.Model that TSM_quantise.py made from `view`, what it was made by and on).

    Raises UserError where it is missing, damaged, or made from another network than that of the model `given`.
    """
    import openvino as ov

    again = "make it: python3 TSM_quantise.py --model %s --input FOLDER_OF_TENSORS --output %s" % (given, path)
    if not os.path.exists(path):
        raise UserError("%s: no such file; %s" % (path, again))
    try:
        known = {entry.tag: entry.get("value", "") for entry in ElementTree.parse(path).iterfind("rt_info/tsm/*")}
        network = ov.Core().read_model(path) if known else None
    except (ElementTree.ParseError, RuntimeError) as error:
        raise UserError("%s: not TSM_quantise.py's, or damaged (%s); %s"
                        % (path, str(error).strip().splitlines()[-1][:100], again))
    if known.get("view_sha256") != view_digest(view):
        raise UserError("%s: was not made from the network (or --input_dtype) of %s; %s" % (path, given, again))
    return network, known


def openvino_engine(network: Any, path: str, precision: str, streams: int) -> Engine:
    """Compiles an onnx.ModelProto, or the openvino.Model of read_int8()."""
    import openvino as ov

    core = ov.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
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
        raise UserError("%s: OpenVINO refuses it (%s)" % (path, str(error).splitlines()[-1][:200]))
    requests = ov.AsyncInferQueue(compiled, streams)
    requests.set_callback(lambda request, done: done(request.get_output_tensor(0).data.copy()))

    def submit(x: np.ndarray, done: Callable[[np.ndarray], None]) -> None:
        def finished(output: np.ndarray, x: np.ndarray = x) -> None:  # holds x, which the request reads in place
            done(output)

        requests.start_async({0: ov.Tensor(x, shared_memory=True)}, finished)

    return Engine("OpenVINO " + ov.__version__.split("-")[0], streams, submit, requests.wait_all)


def onnxruntime_engine(network: Any, path: str, precision: str, streams: int) -> Engine:
    from concurrent.futures import ThreadPoolExecutor

    import onnxruntime

    if precision != "fp32":
        raise UserError("--precision %s: needs OpenVINO; install it, or use fp32" % precision)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = max(1, cores() // streams)
    try:
        session = onnxruntime.InferenceSession(network.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors have no common base
        raise UserError("%s: ONNX Runtime refuses it (%s)" % (path, str(error).splitlines()[0][:200]))
    name, pool = session.get_inputs()[0].name, ThreadPoolExecutor(streams)
    slots, pending = threading.Semaphore(2 * streams), []  # type: Tuple[threading.Semaphore, List[Any]]

    def submit(x: np.ndarray, done: Callable[[np.ndarray], None]) -> None:
        def compute() -> None:
            try:
                done(session.run(None, {name: x})[0])
            finally:
                slots.release()

        slots.acquire()  # no more views in memory than can be worked on
        pending.append(pool.submit(compute))

    def wait() -> None:
        while pending:
            pending.pop().result()

    return Engine("ONNX Runtime " + onnxruntime.__version__, streams, submit, wait)


BACKENDS = {"openvino": openvino_engine, "onnxruntime": onnxruntime_engine}


def cores() -> int:
    return len(os.sched_getaffinity(0))


def even_streams(views: int, most: int) -> int:
    """The most streams, up to `most`, that leave none idle in the last round over a batch's views."""
    return max(count for count in range(1, most + 1) if views % count == 0)


def list_inputs(given: str) -> List[str]:
    """The input files: a comma-separated list in its own order, or a folder's in natural order."""
    if os.path.isdir(given):
        names = sorted((name for name in os.listdir(given) if name.endswith(SUFFIXES)), key=natural)
        if not names:
            raise UserError("%s: no .bin or .npy files in it; run TSM_preprocess.py first" % given)
        return [os.path.join(given, name) for name in names]
    return given.split(",")


def stem(path: str) -> str:
    """A file's name up to its first dot, which names its result."""
    return os.path.basename(path).split(".")[0]


def read_tensor(path: str, model: Model, entry: Optional[Dict[str, Any]]) -> np.ndarray:
    """A file's samples, [samples, …] in the model's dtype, checked against the manifest's entry where there is one."""
    with open(path, "rb") as file:
        if path.lower().endswith(".npy"):
            data = np.ascontiguousarray(read_npy(path))
            if data.dtype != model.dtype:
                raise UserError("%s: holds %s, the model takes %s" % (path, data.dtype, model.dtype))
            flat = data.reshape(-1)
        else:
            size = os.fstat(file.fileno()).st_size
            if size % model.dtype.itemsize:
                raise UserError("%s: %d bytes are no whole number of %s values" % (path, size, model.dtype))
            flat = np.empty(size // model.dtype.itemsize, model.dtype)
            file.readinto(flat.view(np.uint8))  # type: ignore
    if entry is not None:
        check_tensor(entry, flat, path)
    sample = int(np.prod(model.shape[1:]))
    total = sample * model.batch
    if not flat.size or total % flat.size or flat.size % sample:
        raise UserError("%s: [ERROR] arg0 tensorsize: %d filesize: %d not match; was it preprocessed for this model?"
                        % (path, total * model.dtype.itemsize, flat.nbytes))
    return flat.reshape((-1,) + model.shape[1:])


def reading_ahead(jobs: Iterator[Callable[[], np.ndarray]]) -> Iterator[np.ndarray]:
    """Results of the jobs, in order; a thread does them up to AHEAD places before they are asked for."""
    ready = queue.Queue(AHEAD)  # type: queue.Queue
    stop = threading.Event()

    def put(item: Tuple[Optional[np.ndarray], Optional[BaseException]]) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for job in jobs:
                put((job(), None))
                if stop.is_set():
                    return
        except BaseException as error:  # handed to the reader, who raises it
            put((None, error))
        put((None, None))

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()


def compute(engine: Engine, model: Model, samples: np.ndarray, take: Callable[[np.ndarray], None]) -> None:
    """Submit samples, [samples, …], view by view or whole; take(output [samples, classes]) once all of them are done."""
    if model.fusion is None:
        return engine.submit(samples, take)
    views = samples.reshape(len(samples) * VIEWS, SEGMENTS, 3, SIZE, SIZE)
    outputs, left, lock = [None] * len(views), [len(views)], threading.Lock()  # type: List[Any], List[int], Any

    def finish(number: int, output: np.ndarray) -> None:
        outputs[number] = output
        with lock:
            left[0] -= 1
            last = not left[0]
        if last:
            view_scores = np.stack(outputs).mean(1, dtype=np.float64)  # of each view's eight frames
            take(fuse(view_scores, VIEWS, model.fusion).astype(np.float32))

    for number, view in enumerate(views):
        engine.submit(view, lambda output, number=number: finish(number, output))


def infer(
    engine: Engine, model: Model, batches: List[List[int]], read: Callable[[int], np.ndarray], loop: int,
    done: Callable[[int, np.ndarray], None], progress: str = "",
) -> Tuple[List[float], List[float]]:
    """Compute every batch `loop` times; done(file number, output) on the last. (ms per run, ms waited for files per run)"""
    from tqdm import tqdm

    order = [number for batch in batches for _ in range(loop) for number in batch]
    data = reading_ahead(lambda number=number: read(number) for number in order)
    times, waits = [], []  # type: List[float], List[float]
    runs = [(batch, turn) for batch in batches for turn in range(loop)]
    for batch, turn in tqdm(runs, desc=progress, unit="batch", disable=None if progress else True):
        outputs, waited, start, first = {}, 0.0, 0.0, True  # type: Dict[int, np.ndarray], float, float, bool
        whole = []
        for number in batch:
            asked = time.perf_counter()
            samples = next(data)
            now = time.perf_counter()
            if first:
                start, first = now, False
            waited += now - asked
            if model.fusion is None:
                whole.append(samples)
            else:
                compute(engine, model, samples, lambda output, number=number: outputs.__setitem__(number, output))
        if whole:
            filled = np.concatenate(whole + [whole[0]] * (model.batch // len(whole[0]) - len(whole)))
            compute(engine, model, filled, lambda output: outputs.update(zip(batch, np.split(
                output, model.batch // len(whole[0])))))
        engine.wait()
        times.append(1000 * (time.perf_counter() - start))
        waits.append(1000 * waited)
        for number in batch if turn == loop - 1 else ():
            if not np.isfinite(outputs[number]).all():
                raise UserError("file number %d of the input: its scores are not finite; look for NaN or infinity in it, or "
                                "in the model's weights" % number)
            done(number, outputs[number])
    return times, waits


def write_result(path: str, form: str, output: np.ndarray) -> None:
    """One result file as ais_bench writes it: `%f ` per value and a line per row, or the plain array."""
    rows = np.asarray(output, np.float32).reshape(len(output), -1)
    if form == "TXT":
        return write_text(path, "".join("".join("%f " % value for value in row) + "\n" for row in rows))
    with replacing(path) as part, open(part, "wb") as file:
        np.save(file, rows) if form == "NPY" else rows.tofile(file)


def statistics(times: List[float]) -> Dict[str, float]:
    """ais_bench's figures of a list of milliseconds."""
    return {"min": min(times), "max": max(times), "mean": float(np.mean(times)), "median": float(np.median(times)),
            "percentile(99%)": float(np.percentile(times, 99)), "count": len(times)}


def peak_memory() -> int:
    """Peak resident memory of this process, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    args = get_args()
    backend = args.backend
    if backend is None:
        from importlib.util import find_spec

        backend = "openvino" if find_spec("openvino") else "onnxruntime"
    model = read_model(args.model)
    files, entries = [], {}  # type: List[str], Dict[str, Dict[str, Any]]
    if args.input:
        files = list_inputs(args.input)
        manifest_file = os.path.join(os.path.dirname(os.path.abspath(args.input)), "sthv2.json")
        if os.path.isdir(args.input) and os.path.exists(manifest_file):
            manifest = read_manifest(manifest_file)
            check_folder(manifest, args.input, manifest_file)
            entries = {os.path.basename(entry["file"]): entry for entry in manifest["samples"]}
        stems = {}  # type: Dict[str, str]
        for path in files:
            if stems.setdefault(stem(path), path) != path:
                raise UserError("%s and %s: their results would have the same name; rename one" % (stems[stem(path)], path))

    folder = ""
    if args.output and files:
        folder = os.path.join(args.output, args.output_dirname or time.strftime("%Y_%m_%d-%H_%M_%S"))
        os.makedirs(folder, exist_ok=True)
        if os.path.exists(folder + "_summary.json"):
            os.remove(folder + "_summary.json")  # it must not outlive the results it sums up

    views = VIEWS * model.batch
    streams = args.streams or (even_streams(views, cores()) if model.fusion else 1)
    network = view_model(model) if model.fusion else model.proto
    quantised = {}  # type: Dict[str, str]
    if args.precision == "int8":
        if backend != "openvino" or not model.fusion:
            raise UserError("--precision int8: needs OpenVINO and a model of modify_onnx.py; use fp32")
        small, quantised = read_int8(args.int8_model or int8_file(args.model), network, args.model)
    engine = BACKENDS[backend](small if quantised else network, args.model, args.precision, streams)
    way = "%s views at a time, fused by %s" % (streams, model.fusion) if model.fusion else "the whole batch at a time"
    print("[INFO] %s on %d threads, %s, %s" % (engine.name, cores(), args.precision, way), flush=True)

    if files:
        def read(number: int) -> np.ndarray:
            return read_tensor(files[number], model, entries.get(os.path.basename(files[number])))

        packed = model.batch // len(read(0))
    else:
        shape = ((1,) if model.fusion else model.shape[:1]) + model.shape[1:]
        made = np.zeros(shape, model.dtype)
        if args.pure_data_type == "random":
            made = np.random.RandomState(0).standard_normal(shape)
            made = (made if model.dtype.kind == "f" else 127 + 50 * made).clip(-255, 255).astype(model.dtype)

        def read(number: int) -> np.ndarray:
            return made

        packed = model.batch if model.fusion else 1
    count = len(files) or packed
    batches = [list(range(count))[start : start + packed] for start in range(0, count, packed)]
    outfiles = {}  # type: Dict[int, str]

    def done(number: int, output: np.ndarray) -> None:
        if folder:
            outfiles[number] = os.path.join(folder, "%s_0.%s" % (stem(files[number]), args.outfmt.lower()))
            write_result(outfiles[number], args.outfmt, output)
        if files and number < args.agreement:
            top1[number] = output.argmax(-1)

    top1 = {}  # type: Dict[int, np.ndarray]
    infer(engine, model, batches[:1] * args.warmup_count, read, 1, lambda number, output: None)
    times, waits = infer(engine, model, batches, read, args.loop, done, "inference")

    report = {"version": __version__, "engine": engine.name, "precision": args.precision, "streams": streams,
              "threads": cores(), "model": model.metadata, "int8": quantised or None, "peak_memory_bytes": peak_memory()}  # type: Dict[str, Any]
    if args.precision != "fp32" and top1:
        exact = {}  # type: Dict[int, np.ndarray]
        reference = BACKENDS[backend](network, args.model, "fp32", streams)
        few = [number for number in range(count) if number in top1]
        infer(reference, model, [[number] for number in few] if model.fusion else batches[: len(few)], read, 1,
              lambda number, output: exact.__setitem__(number, output.argmax(-1)), "fp32, for comparison")
        same = sum(int((top1[number] == exact[number]).sum()) for number in few)
        rows = sum(len(top1[number]) for number in few)
        report["top1_agreement_with_fp32"] = {"same": same, "videos": rows}
        print("[INFO] top-1 agrees with fp32 on %d of %d videos" % (same, rows))

    figures = statistics(times)
    videos = (args.batchsize or model.batch) * len(times)
    if files and not args.batchsize:  # the last batch may be partial
        videos = args.loop * sum(len(batch) for batch in batches) * model.batch // packed
    throughput = 1000 * videos / sum(times)
    print("[INFO] NPU_compute_time (ms): " + ", ".join("%s = %.3f" % item for item in list(figures.items())[:-1]))
    print("[INFO] waited for input files (ms): mean = %.3f" % float(np.mean(waits)))
    print("[INFO] peak memory: %.0f MB" % (peak_memory() / 1e6))
    print("[INFO] throughput 1000*batchsize.mean(%d)/NPU_compute_time.mean(%s): %s"
          % (args.batchsize or model.batch, figures["mean"], throughput))
    if folder:
        summary = {
            "filesinfo": {str(number): {"infiles": [files[number]], "outfiles": [outfiles[number]]} for number in range(count)},
            "args": sys.argv[1:], "NPU_compute_time": figures, "H2D_latency": statistics(waits),
            "D2H_latency": statistics([0.0] * len(times)), "throughput": throughput, "npu_compute_time_list": times,
            "pid": os.getpid(), "tsm": report,
        }
        write_text(folder + "_summary.json", json.dumps(summary) + "\n")


if __name__ == "__main__":
    run(main)

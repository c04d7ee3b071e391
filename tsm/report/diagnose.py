"""Which stage of a run is to blame for a low accuracy: a few of its videos go through the chain again, and each stage
is compared with what it should have given. The reference is the suite's own: PyTorch, and ONNX Runtime in fp32.
"""

import glob
import os
import re
import shutil
import tempfile
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import onnx

from tsm.chain.npu import atc_options
from tsm.chain.tune import compiled_answers
from tsm.cli import Corrupt, UserError
from tsm.files import natural
from tsm.infer.tensors import read_tensor
from tsm.labels import labels_in
from tsm.model import aipp
from tsm.model.offline import one_view, read_offline
from tsm.model.onnxfile import read_onnx, session
from tsm.model.proof import take_scores
from tsm.protocol import FUSIONS, Protocol, differences, frame_indices, fuse, protocol_from
from tsm.report.findings import another_order
from tsm.results import read_results
from tsm.samples import Clip, checksum, evenly, manifest_path, read_info, read_list, read_manifest, stratified
from tsm.video import clips
from tsm.workfolder import BINS, EXPORTED, INFO, MODIFIED, PREPROCESSED, RESULTS, RUN, SUMMARY, read_run, read_stages

SAME, DEPARTS, UNCHECKED = "same", "DEPARTS", "not checked"
EXACT = 1e-4  # largest difference of a probability between two computations in fp32
ROUGH = {"fp32": 1e-3}  # between what was computed on the device and fp32, by precision
ROUGHEST = 0.1  # of bf16, int8 and an NPU's fp16
LEVELS = 1.0  # mean difference of pixels, of 0..255, above which tensors are not the same
ROUNDING = 0.05  # the same where the decoders are those that made the tensors: only the processor may be another
DECODED = 4.0  # the same between two decoders, which convert colours in their own ways
FP16_MOST = 65504.0
_STAGE_LINE = "%-10s %-12s %-10s %-8s %s"
STAGE_HEADING = _STAGE_LINE % ("stage", "", "largest", "flips", "")
Results = Union[Dict[int, np.ndarray], UserError, FileNotFoundError]  # class scores by index, or why there are none


class Stage(NamedTuple):
    """What one stage changes. The largest difference, None if not finite, is of a probability; flips are other answers, of `videos`."""

    stage: str
    state: str
    text: str
    largest: Optional[float] = None
    flips: Optional[int] = None
    videos: int = 0


class Chain:
    """A run's files, as far as they are known (a path that is empty is not), and its model in ONNX Runtime and fp32.

    `given` are the paths that the user names: data_root, ann_file, checkpoint, exported, model; what is None is taken
    from run.json, and of a run by hand, which has none, from run_all.sh's names. Raises UserError, or OSError, for a
    work folder without a modified model, labels or a manifest, and where these are not of one run.
    """

    def __init__(self, folder: str, given: Dict[str, Optional[str]]) -> None:
        run = read_run(folder) if os.path.exists(os.path.join(folder, RUN)) else None

        def known(name: str, default: str = "") -> str:
            path = getattr(run, name) if run else default
            return given.get(name) or (os.path.join(folder, path) if path else "")

        models = sorted(glob.glob(os.path.join(glob.escape(folder), MODIFIED)), key=natural)
        model = given.get("model") or known("modified", os.path.basename(models[0]) if models else "")
        if not model:
            raise UserError("%s: no %s in it; give the work folder of a run, or --model FILE" % (folder, MODIFIED))
        self.folder, self.run, self.model = folder, run, read_offline(model)
        self.data_root, self.ann_file, self.checkpoint, self.config = map(known, ("data_root", "ann_file", "checkpoint", "config"))
        self.exported = known("exported", EXPORTED)
        self.device_model = os.path.join(folder, run.model) if run else model  # what ran: an .om, or the modified model
        self.precision = run.precision if run else "fp32"
        self.result_path = os.path.join(folder, SUMMARY)
        self.folder_of_tensors = os.path.join(folder, run.tensors if run else PREPROCESSED)
        info = os.path.join(self.folder_of_tensors, INFO)
        self.manifest = read_manifest(manifest_path(info))
        self.protocol = protocol_from(self.manifest["protocol"], manifest_path(info))
        self.labels = read_info(info, self.protocol.classes)
        self.names = labels_in(self.model.metadata, self.protocol.classes)
        self.sources = {entry["id"]: entry["source"] for entry in self.manifest["samples"]}
        self._view: Any = None
        self._known: Dict[str, np.ndarray] = {}  # class scores of the views, by the tensor's checksum
        dtype, there = self.model.takes, self.manifest["protocol"]["dtype"]
        differs = differences(self.protocol.pixels(dtype), self.model.tested_by.pixels(dtype))
        differs = differs or ("%s, not %s" % (there, dtype) if there != dtype else "")
        apart = set(self.labels) ^ set(self.sources)
        if differs or apart:
            raise UserError("%s: %s; are they of one run? Name its model by --model, or preprocess again" % (
                info, "its tensors are not those of %s: %s" % (model, differs) if differs else
                "sample %d is not both in it and in %s" % (min(apart), manifest_path(info))))

    def source(self, index: int) -> str:
        """Where the video of a sample is; empty if the data root is not known."""
        return os.path.join(self.data_root, self.sources[index]) if self.data_root else ""

    def made_again(self, index: int, sample: Callable[[int, Protocol], List[int]] = frame_indices, by_opencv: bool = False) -> np.ndarray:
        """The tensor [frames, 3, size, size] of a sample, made from its video by the suite's definition."""
        dtype = self.manifest["protocol"]["dtype"]
        stored, out = clips.empty_for(dtype, self.protocol)
        try:
            clips.fill(self.source(index), None, self.protocol, clips.table_for(dtype, self.protocol), out, None, sample, by_opencv)
        except Corrupt as error:
            raise UserError("%s: %s; --data_root names the folder of the videos" % (self.sources[index], error))
        return out

    def results(self) -> Results:
        """What the run's result files hold."""
        try:
            return read_results(self.result_path, self.labels, self.protocol.classes)
        except (UserError, FileNotFoundError) as error:
            return error

    def tensor_file(self, index: int) -> str:
        """Where the tensor of a sample is, if it was kept."""
        return os.path.join(self.folder_of_tensors, BINS, "%d.bin" % index)

    def tensor(self, index: int) -> np.ndarray:
        """The tensor that the run used: its file, or if no tensors were kept, made again."""
        path = self.tensor_file(index)
        if self.model.takes == "uint8_nhwc":
            return self.normalised(index, clips.normalisation(self.model.tested_by))
        return read_tensor(path, self.model.shape, self.model.dtype, None)[0] if os.path.exists(path) else self.made_again(index)

    def normalised(self, index: int, table: np.ndarray) -> np.ndarray:
        """The tensor of a run whose chip normalises by AIPP, float32, were AIPP such a table [3, 256]."""
        path, (stored, out) = self.tensor_file(index), clips.empty_for("uint8_nhwc", self.protocol)
        if os.path.exists(path):
            stored[:] = np.fromfile(path, np.uint8).reshape(stored.shape)
        else:
            out = self.made_again(index)
        return looked_up(table, out)

    def views(self, tensor: np.ndarray) -> np.ndarray:
        """Class scores of a tensor's views, [views, classes], by the one-view form."""
        self._view = self._view or session(one_view(self.model), self.model.path, arena=False)
        key = checksum(tensor)
        if key not in self._known:
            views = tensor.reshape((self.protocol.views,) + self.protocol.view_shape)
            self._known[key] = np.stack([self._view.run(None, {"input": view})[0].mean(0) for view in views])
        return self._known[key]

    def answer(self, tensor: np.ndarray, fusion: str = "") -> np.ndarray:
        """Probabilities [classes], fused as the model does it, or as asked for."""
        return self.fused(self.views(tensor), fusion)

    def fused(self, view_scores: np.ndarray, fusion: str = "") -> np.ndarray:
        """The same of class scores [views, classes]."""
        return fuse(view_scores, self.protocol.views, fusion or str(self.model.fusion))[0]


def looked_up(table: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """What the network takes, float32, of uint8 pixels [frames, 3, H, W], by a table [3, 256] of the values of each channel's bytes."""
    return np.stack([values[pixels[:, channel]] for channel, values in enumerate(table)], axis=1)


def as_pixels(tensor: np.ndarray, protocol: Protocol) -> np.ndarray:
    """A tensor's pixels 0..255, float32 [crops, samples, segments, 3, size, size] with the crops of a view in their order."""
    pixels = tensor.astype(np.float32)
    if tensor.dtype.kind == "f":
        mean, std = (np.array(fact, np.float32).reshape(-1, 1, 1) for fact in (protocol.mean, protocol.std))
        pixels = pixels * std + mean
    return pixels.reshape((clips.CROPS[protocol.crops], -1, protocol.segments) + protocol.frame_shape)


def compared(stage: str, given: Sequence[np.ndarray], wanted: Sequence[np.ndarray], most: float, text: str = "") -> Stage:
    """A row of two lists of probabilities [classes]; it departs if one of them is more than `most` apart."""
    apart = [float(np.abs(a - b).max()) for a, b in zip(given, wanted)]
    largest = max(apart) if np.isfinite(apart).all() else None
    flips = sum(int(a.argmax() != b.argmax()) for a, b in zip(given, wanted))
    return Stage(stage, DEPARTS if largest is None or largest > most else SAME, text, largest, flips, len(apart))


def check_decoding(chain: Chain, indices: List[int]) -> Stage:
    """decord against OpenCV: the same videos decoded by both."""
    stage = "decoding"
    if os.path.isdir(chain.source(indices[0])):
        return Stage(stage, UNCHECKED, "the videos are folders of frames, which one decoder reads")
    if not clips.VIDEO_DECODER.startswith("decord"):
        return Stage(stage, UNCHECKED, "decord is not installed")
    pairs = [(chain.made_again(index), chain.made_again(index, by_opencv=True)) for index in indices]
    worst = max(levels(a, b, chain.protocol) for a, b in pairs)
    text = "decord and OpenCV differ by %.2f levels of 255 on average" % worst
    row = compared(stage, [chain.answer(a) for a, _ in pairs], [chain.answer(b) for _, b in pairs], float("inf"), text)
    return row._replace(state=DEPARTS if worst > DECODED else SAME)


def check_tensors(chain: Chain, indices: List[int]) -> Stage:
    """The files of tensors against the same videos made again."""
    kept = [index for index in indices if os.path.exists(chain.tensor_file(index))]
    if not kept:
        return Stage("tensors", UNCHECKED, "the run kept no tensors of these videos")
    here, there = clips.versions(), chain.manifest["versions"]
    most = ROUNDING if all(here.get(name) == there[name] for name in set(there) - {"tsm"}) else LEVELS
    files, again = [chain.tensor(index) for index in kept], [chain.made_again(index) for index in kept]
    apart = [levels(file, made, chain.protocol) for file, made in zip(files, again)]
    row, worst = compared("tensors", list(map(chain.answer, files)), list(map(chain.answer, again)), float("inf")), max(apart)
    text, place = "equal" if worst == 0 else "pixels differ by %.2f levels of 255 on average" % worst, apart.index(worst)
    text += explain_pixels(chain, kept[place], files[place], again[place]) if worst > most else ""
    text += "; the files of %d more are gone" % (len(indices) - len(kept)) if len(kept) < len(indices) else ""
    return row._replace(state=SAME if worst <= most else DEPARTS, text=text)


def levels(one: np.ndarray, other: np.ndarray, protocol: Protocol) -> float:
    """The mean difference of the pixels of two tensors, of 0..255; inf where one holds no numbers."""
    return float(np.nan_to_num(np.abs(as_pixels(one, protocol) - as_pixels(other, protocol)).mean(), nan=np.inf))


def explain_pixels(chain: Chain, index: int, file: np.ndarray, made: np.ndarray) -> str:
    """What turns the pixels of a tensor made again into those of the file of sample `index`, in words."""
    pixels, wanted = as_pixels(file, chain.protocol), as_pixels(made, chain.protocol)

    def near(other: np.ndarray) -> bool:
        return bool(np.abs(pixels - other).mean() <= LEVELS)

    order = [int(np.argmin([np.abs(crop - other).mean() for other in wanted])) for crop in pixels]
    for words, other in (("the channels are in the order BGR, not RGB", wanted[:, :, :, ::-1]),
                         ("the crops are in the order %s" % ", ".join(str(number + 1) for number in order), wanted[order]),
                         ("the two samples of the frames have changed places", wanted[:, ::-1]),
                         ("the frames run backwards", wanted[:, :, ::-1])):
        if near(other) and not np.array_equal(other, wanted):
            return ": " + words
    for words, step in (("after", 1), ("before", -1)):
        moved = chain.made_again(index, lambda count, protocol: [
            min(max(number + step, 0), count - 1) for number in frame_indices(count, protocol)])
        if near(as_pixels(moved, chain.protocol)):
            return ": the frames are those %s by one" % words
    for sample in sorted(set(chain.labels) - {index})[:20]:
        if near(as_pixels(chain.made_again(sample), chain.protocol)):
            return ": file %d.bin holds the video of sample %d" % (index, sample)
    return ""


def by_export(chain: Chain, normalised: List[np.ndarray]) -> List[np.ndarray]:
    """Class scores of the views, [views, classes], of each tensor float32, by the exported graph; none if it gives no such."""
    model, wanted = read_onnx(chain.exported), (chain.protocol.views, chain.protocol.classes)
    try:
        take_scores(model, 1, chain.protocol.frames)
        runner = session(model, chain.exported, arena=False)
        name = runner.get_inputs()[0].name
        found = [runner.run(None, {name: tensor[None]})[0] for tensor in normalised]
    except Exception:  # a foreign graph can fail anywhere, and the runtime's errors have no common base
        return []
    return found if {np.shape(one) for one in found} == {wanted} else []


def check_export(chain: Chain, normalised: List[np.ndarray], exported: List[np.ndarray]) -> Stage:
    """PyTorch against the exported graph, on tensors float32."""
    from tsm.model.network import load_network, scores

    if not exported:
        return Stage("export", UNCHECKED, "%s does not give %d rows of %d class scores for one video of this run; name the run's exported "
                     "model by --exported" % (chain.exported, chain.protocol.views, chain.protocol.classes))
    flags = (chain.protocol.shift, chain.protocol.segments) if chain.run and chain.run.protocol else ()  # as run_all.sh may have been told
    net, facts = load_network(chain.checkpoint, chain.config, *flags)
    differs = differences(facts.protocol, chain.protocol)
    if differs:
        return Stage("export", DEPARTS, "the checkpoint's protocol is not the run's: " + differs)
    by_view = (chain.protocol.views,) + chain.protocol.view_shape
    ours = [np.concatenate([scores(net, view[None]) for view in tensor.reshape(by_view)]) for tensor in normalised]
    return compared("export", [chain.fused(one) for one in exported], [chain.fused(one) for one in ours], EXACT,
                    "the exported graph against PyTorch")


def check_surgery(chain: Chain, tensors: List[np.ndarray], exported: List[np.ndarray]) -> Tuple[Stage, List[np.ndarray]]:
    """(the exported graph against the modified one, the modified one's answers)."""
    model = chain.model
    runner = session(model.proto, model.path, arena=False)
    name = runner.get_inputs()[0].name
    answers = [runner.run(None, {name: np.repeat(tensor[None], model.batch, 0)})[0][0] for tensor in tensors]
    if not exported:
        return Stage("surgery", UNCHECKED, "no exported graph of this run"), answers
    wanted = list(map(chain.fused, exported))
    return compared("surgery", answers, wanted, EXACT, "the modified graph against the exported one"), answers


def check_device(chain: Chain, indices: List[int], tensors: List[np.ndarray], results: Results) -> List[Stage]:
    """Rows `device`, `text` and `fusion`: what the result files hold, against fp32."""
    expected = [chain.answer(tensor) for tensor in tensors]
    other_fusion = next(name for name in FUSIONS if name != chain.model.fusion)
    other = [chain.answer(tensor, other_fusion) for tensor in tensors]
    most = ROUGH.get(chain.precision, ROUGHEST) if chain.device_model.endswith(".onnx") else ROUGHEST
    fusion = compared("fusion", other, expected, float("inf"), "%s against %s, as the model has it" % (
        other_fusion, chain.model.fusion))
    if isinstance(results, Exception):
        device = Stage("device", UNCHECKED, "%s is missing" % results.filename) if isinstance(results, FileNotFoundError) else Stage(
            "device", DEPARTS, str(results) + overflow(chain, tensors))
        return [device, Stage("text", UNCHECKED, "the results cannot be read"), fusion]
    given, digits = [results[index] for index in indices], decimals(chain)
    most += 0 if digits is None else 0.5 * 10**-digits  # what the text may add is told by the next row
    device = compared("device", given, expected, most, "the results against fp32 in ONNX Runtime")
    if device.state == DEPARTS:
        swapped = compared("fusion", given, other, most, "the results are fused by %s, and the model says %s" % (
            other_fusion, chain.model.fusion))
        if swapped.state == SAME:
            device = device._replace(state=SAME, largest=swapped.largest, flips=swapped.flips)
            fusion = fusion._replace(state=DEPARTS, text=swapped.text)
        else:
            device = device._replace(text=device.text + explain_results(chain, indices, expected, results, tensors, most))
    on_npu = [check_precision(chain, indices, expected, device)] if chain.run and chain.run.device == "npu" else []
    return [device, *on_npu, check_text(digits, expected), fusion]


def decimals(chain: Chain) -> Optional[int]:
    """How many decimals the result files have; None where they are binary."""
    files = glob.glob(os.path.join(glob.escape(os.path.join(chain.folder, RESULTS)), "*_0.txt"))
    if not files:
        return None
    with open(min(files), encoding="ascii", errors="replace") as file:
        return max([len(found) for found in re.findall(r"\.(\d+)", file.read(1 << 16))] + [0])


def check_precision(chain: Chain, indices: List[int], expected: List[np.ndarray], device: Stage) -> Stage:
    """The same model, compiled by atc in another precision mode than the run's and run on a chip of this host, against fp32."""
    said = " ".join(word for entry in read_stages(chain.folder).values() for word in entry["command"])
    chip, used = re.search(r"--soc_version=(\S+)", said), (re.findall(r"--precision_mode(?:_v2)?=(\S+)", said) or ["force_fp16"])[0]
    files = [path for path in map(chain.tensor_file, indices) if os.path.exists(path)]
    if not chip or not shutil.which("atc") or len(files) < len(indices):
        return Stage("precision", UNCHECKED, "another precision mode wants the run's tensors, and its host with atc on the PATH")
    mode = "allow_fp32_to_fp16" if used in ("force_fp16", "fp16") else "force_fp16"
    with tempfile.TemporaryDirectory(dir=chain.folder) as scratch:
        base, config = os.path.join(scratch, "model"), os.path.splitext(chain.model.path)[0] + ".cfg"
        os.symlink(os.path.abspath(chain.model.path), base + ".onnx")
        options = atc_options(config if chain.model.takes == "uint8_nhwc" else "", mode)
        try:
            answers = compiled_answers(base, options, chip.group(1), ",".join(files), [])
        except UserError as error:
            return Stage("precision", UNCHECKED, str(error))
    row = compared("precision", [answers["%d_0.npy" % index] for index in indices], expected, float("inf"),
                   "the same model by --precision_mode=%s" % mode)
    blamed = device.state == DEPARTS and (row.largest or 0) <= ROUGHEST
    return row._replace(text=row.text + " is right, so %s is to blame" % used) if blamed else row


def check_text(digits: Optional[int], expected: List[np.ndarray]) -> Stage:
    """What rounding to the decimals of the result files changes."""
    if digits is None:
        return Stage("text", SAME, "the results are kept in binary", 0.0, 0, len(expected))
    row = compared("text", [answer.round(digits) for answer in expected], expected, 1e-6, "decimals: %d" % digits)
    return row._replace(text=row.text + ("" if row.flips else ", no answer hangs on them"))


def explain_results(chain: Chain, indices: List[int], expected: List[np.ndarray], results: Dict[int, np.ndarray],
                    tensors: List[np.ndarray], most: float) -> str:
    """Why results are not those of their videos, in words: shuffled, of an older model, an overflow of fp16."""
    order = sorted(results)
    table = np.stack([results[index] for index in order])
    found = [order[int(np.abs(table - answer).max(1).argmin())] for answer in expected]
    near = [float(np.abs(results[place] - answer).max()) <= most for place, answer in zip(found, expected)]
    if all(near) and found != indices:
        pairs = ", ".join("video %d's is that of %d" % pair for pair in zip(found, indices) if pair[0] != pair[1])
        return ": the results are shuffled (the result under %s)" % pairs
    device, model = chain.device_model, os.path.basename(chain.model.path)
    if os.path.exists(device) and os.path.getmtime(device) < os.path.getmtime(chain.model.path) - 1:
        return ": %s is older than %s, from which it has to be made; make it again" % (os.path.basename(device), model)
    return overflow(chain, tensors) or ": as if of another model; was it made from %s?" % model


def overflow(chain: Chain, tensors: List[np.ndarray]) -> str:
    """The first layer whose values are beyond fp16, in words; empty if there is none."""
    model = one_view(chain.model)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(value) for node in model.graph.node
                              for value in node.output if node.op_type == "Conv")
    runner = session(model, chain.model.path, optimise=False, arena=False)
    names = [output.name for output in runner.get_outputs()]
    view = tensors[0].reshape((-1,) + chain.protocol.view_shape)[0]
    for name, values in zip(names[1:], runner.run(names, {"input": view})[1:]):
        peak = float(np.abs(values).max())
        if not peak <= FP16_MOST:
            return ": a value of %s reaches %.0f, and fp16 ends at %.0f" % (name, peak, FP16_MOST)
    return ""


def unlike_the_list(chain: Chain, listed: Sequence[Clip]) -> str:
    """Where the run's labels or sources are not those of its list, in words; empty if they are, or no list is there."""
    for index, label in sorted(chain.labels.items()) if listed else ():
        if index >= len(listed):
            return "%s has %d videos, and the run a sample %d; is it the run's list?" % (chain.ann_file, len(listed), index)
        clip, where = listed[index], "%s, line %d" % (chain.ann_file, listed[index].line)
        if clip.label != label:
            return "%s says %d, and the info file says %d of sample %d; preprocess again" % (where, clip.label, label, index)
        if clip.source != chain.sources[index]:
            return "%s is %s, and sample %d was made of %s: the list is in another order; preprocess again" % (
                where, clip.source, index, chain.sources[index])
    return ""


def check_labels(chain: Chain, listed: Sequence[Clip], results: Results) -> Stage:
    """Do the labels belong to the results: are they those of the list, in the order of the network's classes?"""
    unlike = unlike_the_list(chain, listed)
    if unlike:
        return Stage("labels", DEPARTS, unlike, videos=len(listed))
    if isinstance(results, Exception):
        return Stage("labels", UNCHECKED, "the results cannot be read")
    order = sorted(chain.labels)
    truth, answers = np.array([chain.labels[index] for index in order]), np.array([results[index].argmax() for index in order])
    found, words = another_order(truth, answers, chain.protocol.classes, chain.names)
    if not found and listed:
        words += "; labels and videos are those of the list"
    return Stage("labels", DEPARTS if found else SAME, words, videos=len(truth))


def missing_row(stage: str, path: str, what: str) -> Optional[Stage]:
    """The row of a stage that cannot be checked, as a file is missing; None if it is there."""
    there, words = path and os.path.exists(path), "%s is missing" % path if path else "%s is missing; name it" % what
    return None if there else Stage(stage, UNCHECKED, words)


def stages_of(chain: Chain, videos: int) -> Iterator[Stage]:
    """The stages of a run in their order, each checked on `videos` of its videos; see DEPARTS."""
    listed: List[Clip] = []  # whatever their labels
    if os.path.exists(chain.ann_file):
        listed = read_list(chain.ann_file, chain.protocol._replace(classes=10 ** 6), chain.data_root)
    indices = evenly(sorted(chain.labels), videos)
    for stage, check in (("decoding", check_decoding), ("tensors", check_tensors)):
        yield missing_row(stage, chain.source(indices[0]), "the folder of the videos (--data_root)") or check(chain, indices)
    tensors, exported = [chain.tensor(index) for index in indices], []
    missing = missing_row("export", chain.exported, "the exported graph (--exported)")
    table = clips.normalisation(chain.protocol)
    normalised = [tensor if tensor.dtype.kind == "f" else looked_up(table, tensor) for tensor in tensors]
    if missing is None:
        exported = by_export(chain, normalised)
        missing = missing_row("export", chain.checkpoint, "the checkpoint (--checkpoint)") if exported else None
    yield missing or check_export(chain, normalised, exported)
    row, answers = check_surgery(chain, tensors, exported)
    yield row
    yield compared("one view", [chain.answer(tensor) for tensor in tensors], answers, EXACT, "view by view against the modified graph")
    results = chain.results()
    yield from check_device(chain, indices, tensors, results)
    yield check_labels(chain, listed, results)


def first_departure(rows: Sequence[Stage]) -> str:
    """The verdict over the rows, in one line."""
    found = next((row for row in rows if row.state == DEPARTS), None)
    if found:
        return "the first stage that departs is %s: %s" % (found.stage, found.text)
    unchecked = [row.stage for row in rows if row.state == UNCHECKED]
    return "no stage departs" + (" of those checked; not checked: " + ", ".join(unchecked) if unchecked else "")


def agreement_with_fp32(chain: Chain, videos: int) -> Dict[str, Any]:
    """What the results hold of `videos` of the run's videos, against fp32 in ONNX Runtime on this CPU, for JSON."""
    results = read_results(chain.result_path, chain.labels, chain.protocol.classes)
    indices = stratified({index: int(results[index].argmax()) for index in chain.labels}, videos)
    exact = {index: chain.answer(chain.tensor(index)) for index in indices}
    flipped = [{"id": index, "device": int(results[index].argmax()), "fp32": int(one.argmax()), "fp32_probability": float(one.max())}
               for index, one in exact.items() if one.argmax() != results[index].argmax()]
    largest = max(float(np.abs(one - results[index]).max()) for index, one in exact.items())
    found = {"videos": len(indices), "listed": len(chain.labels), "flips": len(flipped), "largest_difference": largest, "flipped": flipped}
    if chain.model.takes == "uint8_nhwc":  # what AIPP's half precision changes by itself, by both of tables(): the rest is in fp32 here
        rows = [compared(rounded, [chain.answer(chain.normalised(index, table)) for index in indices], list(exact.values()), 0)
                for rounded, table in zip(("at every step", "at the end"), aipp.tables(chain.model.tested_by))]
        found["aipp"] = [{"rounded": row.stage, "flips": row.flips, "largest_difference": row.largest} for row in rows]
    return found


def row_line(row: Stage) -> str:
    """A row for a terminal, below STAGE_HEADING."""
    flips = "" if row.flips is None else "%d of %d" % (row.flips, row.videos)
    largest = "" if row.largest is None else "%.1e" % row.largest
    return (_STAGE_LINE % (row.stage, row.state, largest, flips, row.text)).rstrip()

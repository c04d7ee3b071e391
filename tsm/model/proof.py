"""The proof that what was built from a trunk is the network that was exported: both run on a random video.

Of an online model: that frame by frame it gives what its own clip graph gives, and that what the exported model gives.
"""

import json
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np
import onnx

from tsm.cli import UserError, first_line
from tsm.model.graph import Trunk, build
from tsm.model.onnxfile import State, compiled, graph_digest, session, states_in
from tsm.model.surgery import MOST_PIXELS, few_views, free_first_sizes
from tsm.protocol import Protocol, fuse, softmax

TOLERANCE = 1e-5  # largest difference of a probability
FRAMES = 100  # of the online proof
MATTERS = 1e-3  # least difference, of the largest class score, that states have to make
LOWEST, HIGHEST = 0.1, 1.0  # standard deviations of the random video's views; larger ones saturate the softmax
ALSO_PROVED = {  # beside a file of a target: what an engine runs in its place; for an NPU its other forms
    "cpu": {"one_view": "view"}, "online": {"one_frame": "online_parts"}, "ascend": {"parts": "ascend_parts", "mask": "ascend_mask"},
}
PRINTED = {"file": "proof", "one_view": "proof, view by view", "one_frame": "proof, as engines run it"}
LEVEL, SPREAD = 128, 50  # of its uint8 form: mean, and values per standard deviation


def take_scores(model: onnx.ModelProto, batch: int, frames: int) -> None:
    """Make the exported model take `batch` videos of so many frames and return class scores, without a closing softmax; in
    place."""
    output, producers = model.graph.output[0], {value: node for node in model.graph.node for value in node.output}
    last = producers[output.name]
    while last.op_type == "Identity":
        last = producers[last.input[0]]
    if last.op_type == "Softmax":
        output.name = last.input[0]
    output.type.tensor_type.ClearField("shape")
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (batch, frames)):
        dim.dim_value = size
    del model.graph.value_info[:]


def answer(runner: Any, name: str, x: np.ndarray, path: str) -> np.ndarray:
    """The first output of a session for x at the input `name`; UserError that names `path` where the runtime fails."""
    try:
        return runner.run(None, {name: x})[0]
    except Exception as error:  # the runtime's errors have no common base
        raise UserError("%s: ONNX Runtime cannot run what was made of it (%s); please report this model" % (path, first_line(error, 200)))


def random_videos(count: int, protocol: Protocol, dtype: str) -> Tuple[np.ndarray, np.ndarray, List[float]]:
    """Random videos, [count, frames, 3, size, size] as `dtype` and normalised as float32, and the magnitudes of their views.

    Every view has a standard deviation of its own, so that a mix-up of crops, samples or views shows.
    """
    magnitudes = np.geomspace(LOWEST, HIGHEST, protocol.views) if protocol.views > 1 else np.ones(1)
    noise = np.random.RandomState(3).standard_normal((count,) + protocol.video_shape).astype(np.float32)
    noise *= np.repeat(magnitudes.astype(np.float32), protocol.segments)[:, None, None, None]
    shown = [round(float(magnitude), 3) for magnitude in magnitudes]
    if dtype != "uint8":
        return noise, noise, shown
    videos = np.clip(np.rint(LEVEL + SPREAD * noise), 0, 255).astype(np.uint8)
    mean, std = (np.array(fact, np.float32).reshape(-1, 1, 1) for fact in (protocol.mean, protocol.std))
    return videos, ((videos - mean) * (1 / std.astype(np.float64))).astype(np.float32), shown


def to_prove(trunk: Trunk, target: str, fusion: str, dtype: str, protocol: Protocol) -> Dict[str, onnx.ModelProto]:
    """The graphs that a proof is of: `file`, of one video of few views, and those of ALSO_PROVED."""
    few, forms = few_views(protocol), dict({"file": target}, **ALSO_PROVED[target])
    return {name: build(trunk, form, few, 1, fusion, dtype=dtype) for name, form in forms.items()}


def prove(
    exported: onnx.ModelProto, path: str, batch: int, graphs: Dict[str, onnx.ModelProto], protocol: Protocol, fusion: str,
    dtype: str,
) -> Dict[str, Dict[str, Any]]:
    """Run the exported model and the new ones on a random video; how far their probabilities are apart.

    One network is in memory at a time, and a video has as few views as few_views() says.

    Args:
        exported: is changed, see take_scores(); `batch` is its own, `path` its name in messages.
        graphs: of to_prove(). `one_view` is run view by view and fused by tsm.protocol.fuse(), as TSM_infer.py does.
    Returns: for each of the graphs the SHA-256 of what was run, the number of videos, their views and the magnitudes of
        these, the largest difference of a probability, its tolerance, and on how many videos top-1 agrees.
    """
    videos, scores, magnitudes = run_exported(exported, path, batch, protocol, dtype)
    views, proof = len(magnitudes), {}  # type: ignore[var-annotated]
    expected = fuse(scores, views, fusion)
    for name, model in graphs.items():
        runner = session(model, path, arena=False)
        calls = videos.reshape([-1] + runner.get_inputs()[0].shape)
        outputs = np.stack([answer(runner, "input", x, path) for x in calls])
        actual = fuse(outputs.mean(1), views, fusion) if name == "one_view" else outputs[:, 0]
        proof[name] = {"sha256": graph_digest(model), "videos": len(videos), "views": views, "magnitudes": magnitudes,
                       "largest_difference": _apart(actual, expected), "tolerance": TOLERANCE,
                       "top1_agreement": int((actual.argmax(1) == expected.argmax(1)).sum())}
    return proof


def prove_online(
    exported: onnx.ModelProto, path: str, batch: int, graphs: Dict[str, onnx.ModelProto], trunk: Trunk, protocol: Protocol, dtype: str,
    same: bool,
) -> Dict[str, Dict[str, Any]]:
    """Run online models frame by frame, from zero states, on a view of a random video and what follows, and hold them against their
    trunk's clip graph on all of these frames and against the exported model on the view.

    Args:
        exported, path, batch: as of prove().
        graphs: `file` and `one_frame`, the form that an engine runs in its place.
        same: whether the exported model has the protocol's shift, so that its probabilities have to be equal too.
    Returns: for each of the graphs the SHA-256, the number of frames, the largest difference from the clip and its tolerance, as parts
        of the largest class score, and whether all scores are equal to the bit; of the file also what is left out without its states,
        and the difference of a probability from the exported model's; of one_frame OpenVINO's difference, where that is installed.
    Raises: UserError where an answer does not depend on the states, or is another after a reset; and as prove().
    """
    videos, scores, _ = run_exported(exported, path, batch, protocol, dtype)
    count, one_view = max(FRAMES, protocol.segments), protocol._replace(sampling="uniform", crops="centre")
    more = random_videos(1, one_view._replace(segments=count), dtype)[0][0]
    frames = np.concatenate([videos[0][-protocol.segments :], more])[:count]
    expected = _clip_scores(trunk, one_view, dtype, frames, len(states_in(graphs["file"], path)), path)
    largest, view = float(np.abs(expected).max()), frames[: protocol.segments]
    proof: Dict[str, Dict[str, Any]] = {}
    for name, graph in graphs.items():
        states = states_in(graph, path)
        outputs = ["output"] + [state.output for state in states]
        compute = partial(session(graph, path).run, outputs)
        found = frame_by_frame(compute, states, frames)
        entry = {"sha256": graph_digest(graph), "frames": count, "largest_difference": _apart(found, expected) / largest,
                 "tolerance": TOLERANCE, "bit_equal": bool(np.array_equal(found, expected))}
        proof[name], first = entry, found[: len(view)]
        if name == "one_frame":
            in_openvino = _in_openvino(graph, path, outputs)
            entry["openvino_difference"] = in_openvino and _apart(frame_by_frame(in_openvino, states, view), first) / largest
            continue
        without = _apart(frame_by_frame(compute, states, view, keep=False), first) / largest
        entry["without_states"] = without
        if same:
            entry["exported_difference"] = _apart(softmax(first.mean(0)), softmax(scores[few_views(protocol).views - 1]))
        if not np.array_equal(frame_by_frame(compute, states, view), first):
            raise UserError("%s: its answers are others after a reset of its states; please report this model" % path)
        if not without > MATTERS:
            raise UserError("%s: its answers do not depend on the frames before; is it trained with its shift?" % path)
    return proof


def _clip_scores(trunk: Trunk, protocol: Protocol, dtype: str, frames: np.ndarray, memory: int, path: str) -> np.ndarray:
    """The class scores [frames, classes] of frames by a trunk's clip graph. That takes memory for all frames at once, so it runs on
    stretches of them, which overlap by as many frames as the network remembers, the number of its shifts."""
    count = len(frames)
    stretch = min(count, max(MOST_PIXELS // 2 // protocol.size ** 2, protocol.segments + memory))
    clip = session(build(trunk, "clip", protocol._replace(segments=stretch), dtype=dtype), path, arena=False)
    scores = np.empty((count, protocol.classes), np.float32)
    for begin in range(0, count - memory, stretch - memory):
        start = min(begin, count - stretch)
        known = memory if start else 0
        scores[start + known : start + stretch] = answer(clip, "input", frames[start : start + stretch], path)[known:]
    return scores


Compute = Callable[[Dict[str, np.ndarray]], List[np.ndarray]]  # {input's name: value} -> the scores [1, classes] and the new states


def frame_by_frame(compute: Compute, states: List[State], frames: np.ndarray, keep: bool = True) -> np.ndarray:
    """The class scores [frames, classes] of frames one after another from zero states; without keeping them, each from zero states."""
    from tqdm import tqdm

    held, found = {state.input: np.zeros(state.shape, np.float32) for state in states}, []
    for frame in tqdm(frames, "proof", unit="frame", disable=None, leave=False):
        scores, *new = compute(dict(held, input=frame[None]))
        held = dict(zip(held, new)) if keep else held
        found.append(scores[0])
    return np.stack(found)


def _in_openvino(model: onnx.ModelProto, path: str, outputs: List[str]) -> Optional[Compute]:
    """None where OpenVINO is not installed, or does not start: ONNX Runtime's proof stands."""
    try:
        made = compiled(model, path, "fp32", "LATENCY", 1)
    except UserError:
        return None
    return lambda feed: [made(feed)[name].copy() for name in outputs]


def _apart(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference; infinite where a value is not finite."""
    difference = float(np.abs(found - expected).max())
    return difference if np.isfinite(difference) else float("inf")


def run_exported(
    exported: onnx.ModelProto, path: str, batch: int, protocol: Protocol, dtype: str
) -> Tuple[np.ndarray, np.ndarray, List[float]]:
    """(random videos of few views in `dtype`, the exported model's class scores of each view, the views' magnitudes).

    It runs on one video of few views where its graph allows that, else on as many views, or videos, as it was made for;
    of these the first are kept.
    """
    few = few_views(protocol)
    free_first_sizes(exported)
    for count, tried in dict.fromkeys([(1, few), (1, protocol), (batch, protocol)]):
        videos, normalised, magnitudes = random_videos(count, tried, dtype)
        take_scores(exported, count, tried.frames)
        try:
            runner = session(exported, path, arena=False)
            scores = runner.run(None, {runner.get_inputs()[0].name: normalised})[0]
        except Exception:  # its shapes hold for its own batch only
            continue
        if len(scores) == count * tried.views:
            if tried != few:
                videos, scores = videos[:1, : few.frames], scores[: few.views]
            return videos, scores, magnitudes[: few.views]
    raise UserError("%s: does not run in ONNX Runtime; export it again" % path)


def check_tolerance(proof: Dict[str, Dict[str, Any]], path: str) -> None:
    """UserError, which names the exported model, unless each of the graphs is the same network."""
    for entry in proof.values():
        worst = max(value for key, value in entry.items() if key.endswith("difference") and value is not None)
        if not worst <= entry["tolerance"]:
            raise UserError("%s: the modified graph differs from it by %.1e, so nothing was written; please report this model"
                            % (path, worst))


def in_words(name: str, entry: Dict[str, Any], protocol: Protocol) -> str:
    """An entry of a proof as a sentence."""
    title = PRINTED.get(name, "proof, --form " + name) + ": "
    if "frames" not in entry:
        return title + "largest difference of a probability %.1e (tolerance %.0e), top-1 agrees on %d of %d random videos%s" % (
            entry["largest_difference"], entry["tolerance"], entry["top1_agreement"], entry["videos"],
            " of %d views, not %d" % (entry["views"], protocol.views) if entry["views"] != protocol.views else "")
    words = {"exported_difference": "%.1e of a probability from the exported view", "without_states": "%.1e without its states",
             "openvino_difference": "%.1e in OpenVINO"}
    more = ["; " + words[key] % entry[key] for key in words if entry.get(key) is not None]
    return title + "%d frames one by one, largest difference from the clip %.1e of the largest score (tolerance %.0e)%s" % (
        entry["frames"], entry["largest_difference"], entry["tolerance"],
        "".join([", equal to the bit" if entry["bit_equal"] else ""] + more))


def still_holds(text: str, graphs: Dict[str, onnx.ModelProto]) -> bool:
    """Is the JSON text of a proof a proof of exactly these graphs, within the tolerance?"""
    try:
        entries = json.loads(text)
        proved = {name: entry["sha256"] for name, entry in entries.items() if entry["largest_difference"] <= TOLERANCE}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    return proved == {name: graph_digest(graph) for name, graph in graphs.items()}

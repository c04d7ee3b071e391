"""The proof that what was built from a trunk is the network that was exported: both run on a random video."""

import json
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import onnx

from tsm.cli import UserError, first_line
from tsm.model.onnxfile import graph_digest, session
from tsm.model.surgery import few_views, free_first_sizes
from tsm.protocol import Protocol, fuse

TOLERANCE = 1e-5  # largest difference of a probability
LOWEST, HIGHEST = 0.1, 1.0  # standard deviations of the random video's views; larger ones saturate the softmax
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


def prove(
    exported: onnx.ModelProto, path: str, batch: int, graphs: Dict[str, onnx.ModelProto], protocol: Protocol, fusion: str,
    dtype: str,
) -> Dict[str, Dict[str, Any]]:
    """Run the exported model and the new ones on a random video; how far their probabilities are apart.

    The exported model runs on one video where its graph allows it (whatever it then computes has to agree), else on as many
    as its own batch. One network is in memory at a time, and a video has as few views as few_views() says: the exported
    model runs on those alone where its graph allows it, else on as many as it was made for, of which the first are compared.

    Args:
        exported: is changed, see take_scores(); `batch` is its own, `path` its name in messages.
        graphs: `file`, the new model of one video of few_views(protocol), which fuses the views itself; `one_view`, if
            there, the form that is run view by view and fused by tsm.protocol.fuse(), as TSM_infer.py does.
    Returns: for each of the graphs the SHA-256 of what was run, the number of videos, their views and the magnitudes of
        these, the largest difference of a probability, its tolerance, and on how many videos top-1 agrees.
    """
    videos, scores, magnitudes = run_exported(exported, path, batch, protocol, dtype)
    protocol = few_views(protocol)
    expected = fuse(scores, protocol.views, fusion)

    def whole(runner: Any, video: np.ndarray) -> np.ndarray:
        return answer(runner, "input", video[None], path)

    def by_view(runner: Any, video: np.ndarray) -> np.ndarray:
        views = video.reshape((protocol.views,) + protocol.view_shape)
        return fuse(np.stack([answer(runner, "input", view, path).mean(0) for view in views]), protocol.views, fusion)

    def compare(model: onnx.ModelProto, compute: Callable[[Any, np.ndarray], np.ndarray]) -> Dict[str, Any]:
        runner = session(model, path, arena=False)
        actual = np.concatenate([compute(runner, video) for video in videos])
        difference = float(np.abs(actual - expected).max())
        return {"sha256": graph_digest(model), "videos": len(videos), "views": protocol.views, "magnitudes": magnitudes,
                "largest_difference": difference if np.isfinite(difference) else float("inf"), "tolerance": TOLERANCE,
                "top1_agreement": int((actual.argmax(1) == expected.argmax(1)).sum())}

    return {name: compare(model, by_view if name == "one_view" else whole) for name, model in graphs.items()}


def run_exported(
    exported: onnx.ModelProto, path: str, batch: int, protocol: Protocol, dtype: str
) -> Tuple[np.ndarray, np.ndarray, List[float]]:
    """(random videos of few views in `dtype`, the exported model's class scores of each view, the views' magnitudes)."""
    few = few_views(protocol)
    free_first_sizes(exported)
    for count, tried in [(1, few)] + [(count, protocol) for count in sorted({1, batch}) if (count, protocol) != (1, few)]:
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


def still_holds(text: str, graphs: Dict[str, onnx.ModelProto]) -> bool:
    """Is the JSON text of a proof a proof of exactly these graphs, within the tolerance?"""
    try:
        entries = json.loads(text)
        proved = {name: entry["sha256"] for name, entry in entries.items() if entry["largest_difference"] <= TOLERANCE}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    return proved == {name: graph_digest(graph) for name, graph in graphs.items()}

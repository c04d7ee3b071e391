"""Film strips on a page: of the videos of a run that are worth a look, and of what TSM_predict.py was shown."""

import base64
import os
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from tsm.cli import Corrupt
from tsm.labels import top
from tsm.report.findings import DIGITS, Columns

KINDS = ("failures", "near_misses", "successes")
ANSWERS = 3  # of a video that are kept
STRIP = "data:image/jpeg;base64,"  # what a film strip begins with


def gallery(columns: Columns, most: int) -> Dict[str, List[int]]:
    """The places of at most `most` videos of each kind: failures, the most certain first; near misses, where the truth came
    second and closest; successes, drawn at random by a fixed seed."""
    rank, margin, probability = (np.array(columns[name]) for name in ("rank", "margin", "probability"))
    failures = [int(place) for place in np.argsort(-probability, kind="stable") if rank[place] > 1][:most]
    near = [int(place) for place in np.argsort(margin, kind="stable") if rank[place] == 2 and place not in failures][:most]
    right = np.flatnonzero(rank == 1)
    some = np.sort(np.random.RandomState(0).permutation(len(right))[:most])
    return dict(zip(KINDS, (failures, near, right[some].tolist())))


def with_strips(
    chosen: Mapping[str, List[int]], scores: Mapping[int, np.ndarray], columns: Columns, data_root: Optional[str]
) -> Dict[str, List[Dict[str, Any]]]:
    """The gallery as report.json has it: per video its `place` in the columns, its `top` [class, probability] and its
    `strip`, a data URI, or None without a data root; `problem` says why a video has none."""
    return {kind: [_entry(place, scores[columns["id"][place]], columns["video"][place], data_root) for place in places]
            for kind, places in chosen.items()}


def _entry(place: int, scores: np.ndarray, source: str, data_root: Optional[str]) -> Dict[str, Any]:
    entry: Dict[str, Any] = {"place": place, "strip": None, "problem": None,
             "top": [[ranked.class_id, round(ranked.probability, DIGITS)] for ranked in top(scores, None, ANSWERS)]}
    if data_root:
        from tsm.video.windows import strip

        try:
            entry["strip"] = as_uri(strip(os.path.join(data_root, source)))
        except Corrupt as error:
            entry["problem"] = str(error)
    return entry


def as_uri(jpeg: bytes) -> str:
    """A film strip as a data URI."""
    return STRIP + base64.b64encode(jpeg).decode()


def strips_of(path: str, spans: Sequence[Tuple[Optional[float], Optional[float]]]) -> Tuple[List[Optional[str]], str]:
    """(a film strip, as a data URI, of each span of the video or folder of frames at `path`; why some are None, if they are).

    Args:
        spans: (start, end) in seconds, in their order in time; (None, None) is the whole.
    """
    from tsm.video.windows import Window, strip, strips

    made: List[Optional[str]] = []
    problem = ""
    try:
        if os.path.isdir(path):
            made.append(as_uri(strip(path)))
        else:
            made += map(as_uri, strips(path, [Window(*span) for span in spans]))
    except Corrupt as error:
        problem = str(error)
    return made + [None] * (len(spans) - len(made)), problem

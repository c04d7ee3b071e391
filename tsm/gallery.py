"""The gallery of a run: which videos are worth a look, and their film strips."""

import base64
import os
from typing import Any, Dict, List, Mapping, Optional

import numpy as np

from tsm.cli import Corrupt
from tsm.findings import DIGITS, Columns
from tsm.labels import top

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
        from tsm.clips import strip

        try:
            entry["strip"] = STRIP + base64.b64encode(strip(os.path.join(data_root, source))).decode()
        except Corrupt as error:
            entry["problem"] = str(error)
    return entry

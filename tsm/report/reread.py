"""report.json read back: what every part of it has to be before it is drawn or compared."""

from typing import Any, Dict, Optional

from tsm.accuracy import FACTS
from tsm.cli import UserError, first_line
from tsm.files import read_json
from tsm.protocol import FUSIONS, protocol_from
from tsm.report.collect import FAIL, FORMAT, NOTE, PASS, STAGE
from tsm.report.gallery import KINDS
from tsm.results import FIGURE, OWN, TIMES
from tsm.shape import ANY, COUNT, FLAG, INTERVAL, MOST, PATH, SHARE, TEXT, Check, among, each, finite, is_index, maybe, named, parts, whole

AGREEMENT = parts({"videos": COUNT, "flips": COUNT, "largest_difference": finite()})  # as TSM_compare.py --agreement writes it
RUN = parts({"name": TEXT})
COMPARED = parts({"a": RUN, "b": RUN, "videos": COUNT, "top1": INTERVAL, "flips": each(ANY),
                  "mcnemar": parts({"lost": COUNT, "gained": COUNT, "p": SHARE})})
PUBLISHED = parts({"source": TEXT, "data": TEXT, "videos": maybe(COUNT), "top1_acc": SHARE, "top5_acc": maybe(SHARE)})
LATENCY = parts(dict({name: finite() for name in ("p50", "p90", "p99", "low", "high")}, count=COUNT, bins=each(COUNT, 1)))
REPORT = parts({
    "version": TEXT, "fusion": among(*FUSIONS), "batch_size": whole(1), "checkpoint_sha256": maybe(TEXT), "comparison": TEXT,
    "device": parts(dict.fromkeys(("kind", "name", "precision", "machine", "python"), TEXT)),
    "arguments": parts({}, {name: maybe(PATH) for name in ("result_path", "info_path", "model")}),
    "accuracy": FACTS, "published": maybe(PUBLISHED), "agreement": maybe(AGREEMENT), "compared": each(COMPARED),
    "checks": each(parts({"name": TEXT, "state": among(PASS, FAIL, NOTE), "text": TEXT})),
    "throughput": named(finite(), is_index), "latency": maybe(LATENCY), "model": named(TEXT), "protocol": parts({}),
    "inference": parts({}, dict(dict.fromkeys(TIMES, FIGURE), tsm=parts({}, OWN))),
    "preprocessing_versions": named(TEXT), "skipped": each(parts({"source": TEXT, "reason": TEXT})), "stages": named(STAGE),
    "names": maybe(each(TEXT)), "findings": maybe(parts({"videos": parts({"id": each(ANY)})})),
})


def _findings(classes: int, videos: int) -> Check:
    """The findings of so many videos of so many classes."""
    one, score = whole(0, classes - 1), finite(-MOST)
    columns = {"id": COUNT, "video": TEXT, "label": one, "answer": one, "probability": score, "truth": score,
               "rank": whole(1, classes), "margin": finite(), "views_agree": maybe(COUNT)}
    row = parts({"class": one, "videos": COUNT, "right": COUNT, "top5": COUNT, "interval_95": maybe(INTERVAL), "answered": COUNT,
                 "taken_for": maybe(one), "taken_count": COUNT})
    pair = parts({"truth": one, "answer": one, "count": COUNT, "share": SHARE, "back": COUNT, "reversed": FLAG})
    shown = parts({"place": whole(0, videos - 1), "strip": maybe(TEXT), "problem": maybe(TEXT),
                   "top": each(_pair(one, score))})
    return parts({
        "videos": parts({name: each(check, videos, videos) for name, check in columns.items()}),
        "classes": each(row, classes, classes), "pairs": each(pair), "matrix": _matrix(one),
        "gallery": parts({kind: each(shown) for kind in KINDS}),
        "confidence": parts({
            "right": each(COUNT, 1), "wrong": each(COUNT, 1), "bins": COUNT, "ece": SHARE, "coverage": each(INTERVAL, 1),
            "reliability": each(parts({"videos": COUNT, "probability": SHARE, "right": SHARE}), 1)}),
    })


def _pair(first: Check, second: Check) -> Check:
    """A list of two values."""
    def check(value: Any) -> Optional[str]:
        wrong = each(ANY, 2, 2)(value)
        return wrong if wrong is not None or first(value[0]) is second(value[1]) is None else ""

    return check


def _matrix(one: Check) -> Check:
    """A square matrix of counts, of the listed classes and perhaps all others."""
    def check(value: Any) -> Optional[str]:
        wrong = parts({"classes": each(one), "counts": each(each(COUNT))})(value)
        if wrong is None:
            size = len(value["counts"])
            wrong = None if size - len(value["classes"]) in (0, 1) and all(len(row) == size for row in value["counts"]) else ".counts"
        return wrong

    return check


def _misfit(report: Any, where: str) -> Optional[str]:
    """The place in a report that is not as collect() and complete() of tsm.report.collect make it; None if there is none."""
    wrong = REPORT(report)
    if wrong is not None:
        return wrong
    classes, names, found = protocol_from(report["protocol"], where).classes, report["names"], report["findings"]
    if names is not None and len(names) != classes:
        return ".names"
    if not found:
        return None if found is None else ".findings"
    videos = found["videos"]
    wrong = _findings(classes, len(videos["id"]))(found)
    if wrong is not None:
        return ".findings" + wrong
    if len(found["confidence"]["right"]) != len(found["confidence"]["wrong"]):
        return ".findings.confidence.wrong"
    for place, row in enumerate(found["classes"]):
        if row["class"] != place or (row["interval_95"] is None) != (not row["videos"]):
            return ".findings.classes[%d]" % place
    for place, (rank, label, answer) in enumerate(zip(videos["rank"], videos["label"], videos["answer"])):
        if (rank == 1) != (label == answer):
            return ".findings.videos.rank[%d]" % place
    return None


def check_report(report: Any, where: str) -> None:
    """UserError that names the file `where` and the first part of the report that is damaged or missing, if one is."""
    wrong = _misfit(report, where)
    if wrong is not None:
        raise UserError("%s: is damaged or of another version (see %s); make it again with TSM_report.py"
                        % (where, first_line(wrong[1:] or "its text", 80)))


def read_report(path: str) -> Dict[str, Any]:
    """A whole report.json of this format; UserError where it is something else, damaged, or of another version of the suite."""
    report = read_json(path)
    if not isinstance(report, dict) or "accuracy" not in report:
        raise UserError("%s: not a report of TSM_report.py; make it again" % path)
    if report.get("format") != FORMAT:
        raise UserError("%s: a report of another version of the suite (%s); make it again with TSM_report.py"
                        % (path, report.get("version", "unknown")))
    check_report(report, path)
    return report

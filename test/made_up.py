"""A made-up report of as many videos and classes as a test wants, through the suite's own functions."""

import numpy as np

from tsm.protocol import SSV2
from tsm.report.collect import NOTE, checks_of, latency
from tsm.report.findings import columns_of, findings, gallery
from tsm.results import accuracy_from


def scores_of(videos, classes, right=0.6, seed=0):
    """(probabilities by id, labels by id): about a share `right` of the answers is right."""
    random = np.random.RandomState(seed)
    labels = random.randint(0, classes, videos)
    raised = random.standard_normal((videos, classes)) * 0.8
    raised[np.arange(videos), labels] += random.normal(1.5 + 3 * right, 1.5, videos)
    raised[np.arange(videos), (labels + 1) % classes] += random.normal(1.5, 1.5, videos)
    raised = np.exp(raised - raised.max(1, keepdims=True))
    table = (raised / raised.sum(1, keepdims=True)).round(6)
    return dict(enumerate(table)), dict(enumerate(labels.tolist()))


def report(videos=60, classes=12, names=None, scores=None, labels=None, sources=None, most=12, stages=None):
    """A report as TSM_report.py collects it, over made-up results unless they are given."""
    if scores is None:
        scores, labels = scores_of(videos, classes)
    scores = {index: np.asarray(row) for index, row in scores.items()}
    sources = sources or {index: "%d.webm" % (70000 + index) for index in labels}
    accuracy = accuracy_from(scores, labels, 0)
    found = findings(columns_of(scores, labels, sources), classes, names)
    found["curve"] = []
    found["gallery"] = gallery(found["videos"], scores, most, None)
    facts = {"tsm.fusion": "score", "tsm.checkpoint": "made_up.pth",
             "tsm.proof": '{"file": {"largest_difference": 1e-7, "tolerance": 1e-5}}'}
    protocol = dict(SSV2._asdict(), classes=classes, shape=list(SSV2.video_shape), dtype="float32")
    times = (50 + 5 * np.random.RandomState(1).standard_gamma(2, 500)).tolist()
    made = {
        "version": "1.0.0", "arguments": {"model": "new.onnx", "data_root": None},
        "made": {"date": "2026-11-28 03:06", "host": "host", "folder": "/runs/one"}, "fusion": "score", "batch_size": 1,
        "device": {"kind": "cpu", "name": "A processor, 2 threads fp32", "precision": "fp32", "machine": "x86_64", "python": "3"},
        "checkpoint_sha256": "f" * 64, "accuracy": accuracy._asdict(), "comparison": "no published figure to compare with",
        "published": None, "names": names, "findings": found, "agreement": None, "tune": None,
        "throughput": {"1": 3.5, "4": 3.75}, "latency": latency(times),
        "inference": {"NPU_compute_time": {"mean": 60.0}, "H2D_latency": {"mean": 0.5}, "tsm": {}}, "model": facts, "protocol": protocol,
        "preprocessing_versions": {"opencv": "5"}, "skipped": [],
        "stages": stages or {"infer": {"seconds": 9.0, "peak_mb": 70.0, "command": ["python3", "TSM_infer.py"]}},
    }
    return dict(made, checks=checks_of(made, SSV2._replace(classes=classes), accuracy, NOTE))

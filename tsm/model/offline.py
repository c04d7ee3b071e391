"""Offline models: what the suite needs to know of an ONNX file, and the network of one view inside a modified one."""

import hashlib
import json
from typing import Any, Dict, NamedTuple, Optional, Tuple

import numpy as np

from tsm.cli import UserError, first_line
from tsm.protocol import Protocol


class Offline(NamedTuple):
    """What the suite needs to know of an ONNX file. `fusion` and `protocol` are None for a model that runs whole."""

    path: str
    proto: Any  # onnx.ModelProto
    batch: int
    shape: Tuple[int, ...]  # of the input, the batch included
    dtype: np.dtype
    fusion: Optional[str]
    protocol: Optional[Protocol]
    metadata: Dict[str, str]

    @property
    def tested_by(self) -> Protocol:
        """The protocol of a model of modify_onnx.py; UserError for any other, which has none."""
        if self.protocol is None:
            raise UserError("%s: not a model of modify_onnx.py; make it with that, or run it whole by TSM_infer.py, from tensors"
                            % self.path)
        return self.protocol


def read_offline(path: str) -> Offline:
    """Load and describe a model; UserError unless it has one input, of a fixed shape, and one output."""
    from tsm.model.onnxfile import load, metadata, protocol_of, signature

    proto = load(path)
    facts = metadata(proto)
    _, shape, dtype, _ = signature(proto, path)
    unfixed = [size for size in shape if not isinstance(size, int)]
    if not shape or unfixed:
        raise UserError("%s: its input [%s] has no fixed size; export it with a fixed --shape"
                        % (path, ", ".join(map(str, shape))))
    fusion = facts.get("tsm.fusion")
    protocol = protocol_of(proto, path) if fusion else None
    if protocol and shape[1:] != protocol.video_shape:
        raise UserError("%s: its input is %s, and its protocol's is %s; make it again with modify_onnx.py"
                        % (path, list(shape), [shape[0]] + list(protocol.video_shape)))
    return Offline(path, proto, shape[0], shape, dtype, fusion, protocol, facts)


def one_view(model: Offline) -> Any:
    """The ONNX model of one view, [segments, 3, size, size] -> frame scores [segments, classes], of a modified model.

    Raises UserError if it is none, though its metadata may say so.
    """
    from tsm.model.graph import build, trunk_of
    from tsm.model.onnxfile import graph_digest

    protocol = model.tested_by
    try:
        view = build(trunk_of(model.proto), "view", protocol, dtype=model.dtype.name)
        proved = json.loads(model.metadata["tsm.proof"])["one_view"]["sha256"] if model.metadata.get("tsm.target") == "cpu" else None
    except Exception as error:  # an edited model can fail anywhere
        raise UserError("%s: not as modify_onnx.py wrote it (%s: %s); make it again"
                        % (model.path, type(error).__name__, first_line(error)))
    if proved not in (None, graph_digest(view)):
        raise UserError("%s: its proof is of another graph than the one that would run; make it again with modify_onnx.py"
                        % model.path)
    return view


def one_view_digest(view: Any) -> str:
    """SHA-256 of a one-view model; the same for every batch size that it was taken from."""
    return hashlib.sha256(view.SerializeToString()).hexdigest()

"""Offline models: what the suite needs to know of an ONNX file, and the network of one view inside a modified one."""

import hashlib
import json
from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from tsm.cli import UserError, first_line
from tsm.model.graph import build, trunk_of
from tsm.model.onnxfile import State, graph_digest, metadata, protocol_of, read_onnx, signature, states_in
from tsm.protocol import Protocol


class Offline(NamedTuple):
    """What the suite needs to know of an ONNX file. `protocol` is None for a model that runs whole, `fusion` for an online one, too."""

    path: str
    proto: Any  # onnx.ModelProto
    batch: int
    shape: Tuple[int, ...]  # of the input, the batch included
    dtype: np.dtype
    fusion: Optional[str]
    protocol: Optional[Protocol]
    metadata: Dict[str, str]
    states: Sequence[State] = ()  # of an online model, in order

    @property
    def target(self) -> str:
        """cpu, ascend or online, as modify_onnx.py was told; empty for a model that runs whole."""
        return self.metadata.get("tsm.target", "")

    @property
    def takes(self) -> str:
        """What tensors it takes, of tsm.protocol.TENSORS; once it is compiled, if that changes it."""
        return "uint8_nhwc" if self.metadata.get("tsm.input_dtype") == "aipp" else self.dtype.name

    @property
    def tested_by(self) -> Protocol:
        """The protocol of a model of modify_onnx.py; UserError for any other, which has none."""
        if self.protocol is None:
            raise UserError("%s: not a model of modify_onnx.py; make it with that, or run it whole by TSM_infer.py, from tensors"
                            % self.path)
        return self.protocol


def read_offline(path: str) -> Offline:
    """Load and describe a model; UserError unless it has one input, of a fixed shape, and one output, beside an online one's states."""
    proto = read_onnx(path)
    facts = metadata(proto)
    _, shape, dtype = signature(proto, path)
    if not shape or not all(isinstance(size, int) for size in shape):
        raise UserError("%s: its input [%s] has no fixed size; export it with a fixed --shape"
                        % (path, ", ".join(map(str, shape))))
    fusion = facts.get("tsm.fusion")
    protocol = protocol_of(proto, path) if fusion or facts.get("tsm.target") == "online" else None
    if protocol and facts.get("tsm.input_dtype") == "aipp" and shape[0] % protocol.frames == 0:  # its frames one after another
        shape = (shape[0] // protocol.frames,) + (protocol.frames,) + shape[1:]
    return Offline(path, proto, shape[0], shape, dtype, fusion, protocol, facts, states_in(proto, path))


def one_view(model: Offline) -> Any:
    """The ONNX model of one view, [segments, 3, size, size] -> frame scores [segments, classes], of a modified model; UserError if it is
    none, though its metadata may say so, or an online one."""
    if model.target == "online":
        raise UserError("%s: is an online model; TSM_predict.py and TSM_stream.py run it" % model.path)
    return _written_again(model, "view", "one_view" if model.target == "cpu" else "")


def one_frame(model: Offline) -> Any:
    """The ONNX model of one frame that an engine computes of an online model in fp32 and bf16, with the same inputs and outputs:
    "online_parts" of tsm.model.graph.build(), which is the file's own graph where that is the faster one (MobileNetV2)."""
    return _written_again(model, "online_parts", "one_frame")


def clip_of(model: Offline, form: str, **changes: Any) -> Any:
    """The ONNX model of one view of a modified model, [segments, 3, size, size] -> frame scores: of an online model
    what frame by frame must give. Its form is clip, an online file's own with a Pad `LAYER.shift/behind` in the place
    of each layer's state, or view, one_frame()'s. `changes` are of the protocol, as if the weights had been trained so:
    segments, shift_div, shift (any of MOVES)."""
    return _written_again(model, form, "", **changes)


def _written_again(model: Offline, form: str, proved_as: str, **changes: Any) -> Any:
    """A modified model's network in a form of tsm.model.graph.build(), of its protocol with some changes; UserError unless the model is
    as it was written and, where the form was proved, that is what the proof is of."""
    protocol = model.tested_by._replace(**changes)
    try:
        written = build(trunk_of(model.proto), form, protocol, dtype=model.dtype.name)
        if proved_as and json.loads(model.metadata["tsm.proof"])[proved_as]["sha256"] != graph_digest(written):
            raise ValueError("its proof is of another graph than the one that would run")
    except Exception as error:  # an edited model can fail anywhere
        raise UserError("%s: not as modify_onnx.py wrote it (%s: %s); make it again"
                        % (model.path, type(error).__name__, first_line(error)))
    return written


def one_view_digest(view: Any) -> str:
    """SHA-256 of a one-view model; the same for every batch size that it was taken from."""
    return hashlib.sha256(view.SerializeToString()).hexdigest()

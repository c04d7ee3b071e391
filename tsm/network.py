"""TSM ResNet-50 in plain PyTorch, with mmaction2's state-dict keys, and the one way its checkpoints are read.

Sources: "TSM: Temporal Shift Module for Efficient Video Understanding" (Lin et al., ICCV 2019), shift place
`blockres`; mmaction2 0.24.1, mmaction/models/backbones/resnet_tsm.py and heads/tsm_head.py.
"""

import collections
import inspect
import pickle
import re
import types
import warnings
from typing import Any, Dict, List

import torch
from torch import Tensor, nn
from torch.nn import functional

from tsm.cli import UserError
from tsm.protocol import CLASSES, SEGMENTS, SHIFT_DIV, VIEWS

BLOCKS = (3, 4, 6, 3)  # bottlenecks per stage of a ResNet-50
EXPANSION = 4  # a bottleneck's output channels / its inner channels


def temporal_shift(x: Tensor, fold: int) -> Tensor:
    """Shift channels among the frames of each view.

    Args:
        x: float [views * SEGMENTS, C, H, W], the frames of a view next to each other, in time order.
        fold: channels [0, fold) take the next frame's value, [fold, 2 * fold) the previous frame's, the rest stay;
            where there is no such frame they are 0.
    Returns: the same shape and dtype.
    """
    c, h, w = x.shape[1:]
    ahead, behind, still = x.view(-1, SEGMENTS, c, h * w).split((fold, fold, c - 2 * fold), 2)
    ahead = functional.pad(ahead, (0, 0, 0, 0, -1, 1))  # drops the first frame, appends zeros
    behind = functional.pad(behind, (0, 0, 0, 0, 1, -1))
    return torch.cat((ahead, behind, still), 2).view(-1, c, h, w)


class Shifted(nn.Module):
    """A convolution on temporally shifted input; stands where a plain convolution would (hence the key `conv.net`)."""

    def __init__(self, net: nn.Conv2d, shift: bool) -> None:
        super().__init__()
        self.net = net
        self.fold = net.in_channels // SHIFT_DIV if shift else 0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(temporal_shift(x, self.fold) if self.fold else x)


class ConvBN(nn.Module):
    """Convolution without bias, then batch normalisation (mmcv's ConvModule without its activation)."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Bottleneck(nn.Module):
    """ResNet bottleneck (stride on the 3x3), the input of whose first convolution is shifted."""

    def __init__(self, cin: int, inner: int, stride: int, shift: bool) -> None:
        super().__init__()
        self.conv1 = ConvBN(cin, inner, 1)
        self.conv1.conv = Shifted(self.conv1.conv, shift)
        self.conv2 = ConvBN(inner, inner, 3, stride)
        self.conv3 = ConvBN(inner, inner * EXPANSION, 1)
        self.downsample = None
        if stride != 1 or cin != inner * EXPANSION:
            self.downsample = ConvBN(cin, inner * EXPANSION, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x)))))
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


class Backbone(nn.Module):
    """ResNet-50: float [frames, 3, H, W] -> float [frames, 32 * width, H / 32, W / 32]."""

    def __init__(self, width: int, shift: bool) -> None:
        super().__init__()
        self.conv1 = ConvBN(3, width, 7, 2)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        cin = width
        for stage, blocks in enumerate(BLOCKS):
            inner, layer = width << stage, []  # type: int, List[nn.Module]
            for block in range(blocks):
                layer.append(Bottleneck(cin, inner, 2 if stage and not block else 1, shift))
                cin = inner * EXPANSION
            self.add_module("layer%d" % (stage + 1), nn.Sequential(*layer))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.conv1(x)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class TSM(nn.Module):
    """TSM ResNet-50 as mmaction2's `forward_dummy` runs it: no fusion of the views.

    Args:
        width: channels of the stem; 64 is ResNet-50, 8 the thin network of the demo.
        shift: False gives the same network without its temporal shift.
        softmax: softmax per view, as pytorch2onnx.py's --softmax does.
    """

    def __init__(self, width: int = 64, classes: int = CLASSES, shift: bool = True, softmax: bool = False) -> None:
        super().__init__()
        self.backbone = Backbone(width, shift)
        self.cls_head = nn.Module()
        self.cls_head.fc_cls = nn.Linear(32 * width, classes)
        self.softmax = softmax

    def forward(self, videos: Tensor) -> Tensor:
        """float [N, views * SEGMENTS, 3, H, W] -> float [N * views, classes]: the mean of each view's frame scores."""
        x = self.backbone(videos.reshape((-1,) + videos.shape[2:]))
        scores = self.cls_head.fc_cls(x.mean((2, 3))).view(-1, SEGMENTS, self.cls_head.fc_cls.out_features)
        scores = scores.mean(1)
        return torch.softmax(scores, 1) if self.softmax else scores


def fuse(scores: Tensor, fusion: str) -> Tensor:
    """Fuse the views of each video: class scores [N * VIEWS, classes] -> probabilities [N, classes] (see FUSIONS)."""
    views = scores.view(-1, VIEWS, scores.shape[1])
    return torch.softmax(views.mean(1), 1) if fusion == "score" else torch.softmax(views, 2).mean(1)


_SAFE = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.serialization", "_get_layout"): getattr(torch.serialization, "_get_layout", None),
    ("torch", "Size"): torch.Size,
}  # what a checkpoint of weights is made of, for a torch too old to have weights_only (before 1.13)
_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")


class _WeightsUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _SAFE:
            return _SAFE[module, name]
        if module == "torch" and name in [kind + "Storage" for kind in _STORAGES]:
            return getattr(torch, name)
        raise pickle.UnpicklingError("forbidden %s.%s" % (module, name))


def load_state_dict(path: str) -> Dict[str, Tensor]:
    """The weights in a checkpoint, on the CPU; takes torch's zip and its older format, and runs no code from it.

    Args:
        path: a state dict, or a dict with one under `state_dict` (mmaction2's checkpoints); a leading `module.`
            (DataParallel) is dropped from the keys.
    Raises: UserError where the file is not such a checkpoint, is damaged, or carries anything but weights.
    """
    with open(path, "rb"):  # a missing or unreadable file is its own error
        pass
    if "weights_only" in inspect.signature(torch.load).parameters:
        options = {"weights_only": True}  # type: Dict[str, Any]
    else:
        reader = types.ModuleType("weights_only_pickle")
        reader.Unpickler = _WeightsUnpickler  # type: ignore
        reader.load = lambda file, **kw: _WeightsUnpickler(file, **kw).load()  # type: ignore
        options = {"pickle_module": reader}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damage can lead torch into code that warns
            loaded = torch.load(path, map_location="cpu", **options)
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL\s+(\S+)|forbidden (\S+)", str(error))
        if forbidden:
            raise UserError(
                "%s: holds more than weights (%s), which could run code, so it was not loaded; save its state_dict alone"
                % (path, forbidden.group(1) or forbidden.group(2))
            )
        raise UserError("%s: not a PyTorch checkpoint, or a damaged one; fetch it again" % path)
    except MemoryError:
        raise
    except Exception as error:  # torch raises almost anything on damaged input
        raise UserError("%s: not a PyTorch checkpoint, or a damaged one (%s); fetch it again" % (path, _first(error)))
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError("%s: no state_dict in it; pass a checkpoint of TSM ResNet-50" % path)
    return {key[len("module.") :] if key.startswith("module.") else key: value for key, value in state.items()}


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def load(path: str, **options: Any) -> TSM:
    """The full network with the weights of the checkpoint at `path`, in eval mode; `options` go to TSM().

    Raises: UserError that names the first keys or shapes that differ.
    """
    state, net = load_state_dict(path), TSM(**options)
    wanted = net.state_dict()
    counters = [key for key in wanted if key.endswith("num_batches_tracked")]  # absent from old checkpoints, unused
    wanted = {key: value for key, value in wanted.items() if key not in counters}
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    wrong = ["%s is missing" % key for key in wanted if key not in state]
    wrong += ["%s is not of this network" % key for key in state if key not in wanted]
    wrong += [
        "%s is %s, not %s" % (key, list(state[key].shape), list(value.shape))
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    if wrong:
        more = " and %d more" % (len(wrong) - 3) if len(wrong) > 3 else ""
        raise UserError(
            "%s: not TSM ResNet-50 with %d classes: %s%s; pass the checkpoint that this suite is for"
            % (path, net.cls_head.fc_cls.out_features, "; ".join(wrong[:3]), more)
        )
    broken = [key for key, value in state.items() if not torch.isfinite(value.float()).all()]
    if broken:
        raise UserError("%s: %s holds values that are not finite; fetch it again" % (path, broken[0]))
    net.load_state_dict(state, strict=False)
    return net.eval()

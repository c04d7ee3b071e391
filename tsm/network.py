"""TSM ResNet-50 in plain PyTorch, with mmaction2's state-dict keys: built from a checkpoint, and written out as a trunk.

Sources: "TSM: Temporal Shift Module for Efficient Video Understanding" (Lin et al., ICCV 2019), shift place
`blockres`; mmaction2 0.24.1, mmaction/models/backbones/resnet_tsm.py and heads/tsm_head.py.
"""

from typing import Any, Dict, List, Mapping, Optional, Tuple

import numpy as np
import torch
from onnx import NodeProto, helper
from torch import Tensor, nn
from torch.nn import functional

from tsm import checkpoint
from tsm.cli import UserError
from tsm.facts import Facts, check_supported, facts_of
from tsm.graph import SHIFT, Trunk
from tsm.protocol import SSV2, Protocol

BLOCKS = (3, 4, 6, 3)  # bottlenecks per stage of a ResNet-50
EXPANSION = 4  # a bottleneck's output channels / its inner channels
COLOURS = 3
_COUNTER = "num_batches_tracked"  # of batch normalisation: absent from old checkpoints, of no use here


def temporal_shift(x: Tensor, segments: int, fold: int) -> Tensor:
    """Shift channels among the frames of each view.

    Args:
        x: float [views * segments, C, H, W], the frames of a view next to each other, in time order.
        segments: frames of a view.
        fold: channels [0, fold) take the next frame's value, [fold, 2 * fold) the previous frame's, the rest stay;
            if there is no such frame they are 0.
    Returns: the same shape and dtype.
    """
    c, h, w = x.shape[1:]
    ahead, behind, still = x.view(-1, segments, c, h * w).split((fold, fold, c - 2 * fold), 2)
    ahead = functional.pad(ahead, (0, 0, 0, 0, -1, 1))  # drops the first frame, appends zeros
    behind = functional.pad(behind, (0, 0, 0, 0, 1, -1))
    return torch.cat((ahead, behind, still), 2).view(-1, c, h, w)


class Shifted(nn.Module):
    """A convolution on temporally shifted input, in the place of a plain one (hence the key `conv.net`)."""

    def __init__(self, net: nn.Conv2d, segments: int, fold: int) -> None:
        super().__init__()
        self.net, self.segments, self.fold = net, segments, fold

    def forward(self, x: Tensor) -> Tensor:
        return self.net(temporal_shift(x, self.segments, self.fold) if self.fold else x)


class ConvBN(nn.Module):
    """Convolution without bias, then batch normalisation (mmcv's ConvModule without its activation)."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv: Any = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Bottleneck(nn.Module):
    """ResNet bottleneck (stride on the 3x3) that shifts the input of its first convolution; a fold of 0 shifts nothing."""

    def __init__(self, cin: int, inner: int, stride: int, segments: int, fold: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(cin, inner, 1)
        self.conv1.conv = Shifted(self.conv1.conv, segments, fold)
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

    def __init__(self, protocol: Protocol, width: int, shift: bool) -> None:
        super().__init__()
        self.conv1 = ConvBN(COLOURS, width, 7, 2)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        cin = width
        for stage, blocks in enumerate(BLOCKS):
            inner = width << stage
            layer: List[nn.Module] = []
            for block in range(blocks):
                fold = cin // protocol.shift_div if shift else 0
                layer.append(Bottleneck(cin, inner, 2 if stage and not block else 1, protocol.segments, fold))
                cin = inner * EXPANSION
            self.add_module("layer%d" % (stage + 1), nn.Sequential(*layer))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.conv1(x)))
        for stage in range(1, len(BLOCKS) + 1):
            x = getattr(self, "layer%d" % stage)(x)
        return x


class TSM(nn.Module):
    """TSM ResNet-50 as mmaction2's `forward_dummy` runs it: no fusion of the views.

    Args:
        protocol: its classes, segments and shift_div.
        width: channels of the stem; 64 is ResNet-50, 8 the thin network of the demo.
        shift: False gives the same network without its temporal shift.
        softmax: softmax per view, as pytorch2onnx.py's --softmax does.
    """

    def __init__(self, protocol: Protocol = SSV2, width: int = 64, shift: bool = True, softmax: bool = False) -> None:
        super().__init__()
        self.backbone = Backbone(protocol, width, shift)
        self.cls_head: Any = nn.Module()
        self.cls_head.fc_cls = nn.Linear((width << len(BLOCKS) - 1) * EXPANSION, protocol.classes)
        self.segments, self.softmax = protocol.segments, softmax

    def forward(self, videos: Tensor) -> Tensor:
        """float [N, views * segments, 3, H, W] -> float [N * views, classes]: the mean of each view's frame scores."""
        x = self.backbone(videos.reshape((-1,) + videos.shape[2:]))
        scores = self.cls_head.fc_cls(x.mean((2, 3))).view(-1, self.segments, self.cls_head.fc_cls.out_features)
        scores = scores.mean(1)
        return torch.softmax(scores, 1) if self.softmax else scores


def network_of(state: Mapping[str, Tensor], path: str, protocol: Protocol, width: int = 64, softmax: bool = False) -> TSM:
    """The network with the weights `state`, in eval mode; it takes the tensors over without a copy.

    Raises: UserError that names `path` and the first weights that are missing, of another network, or not finite.
    """
    net = TSM(protocol, width, softmax=softmax)
    wanted = {key: value for key, value in net.state_dict(keep_vars=True).items() if not key.endswith(_COUNTER)}
    given = {key: value for key, value in state.items() if not key.endswith(_COUNTER)}
    wrong = ["%s is missing" % key for key in wanted if key not in given]
    wrong += ["%s is not of this network" % key for key in given if key not in wanted]
    wrong += [
        "%s is %s %s, not %s" % (key, str(given[key].dtype)[len("torch.") :], list(given[key].shape), list(value.shape))
        for key, value in wanted.items()
        if key in given and (given[key].shape != value.shape or given[key].dtype != value.dtype)
    ]
    if wrong:
        more = " and %d more" % (len(wrong) - 3) if len(wrong) > 3 else ""
        raise UserError("%s: not TSM ResNet-50 with %d classes: %s%s; pass the checkpoint of such a network"
                        % (path, protocol.classes, "; ".join(wrong[:3]), more))
    broken = [key for key, value in given.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError("%s: %s holds values that are not finite; fetch it again" % (path, broken[0]))
    for key, value in wanted.items():
        value.data = given[key]
    return net.eval()


def load(path: str, config: str = "", segments: Optional[int] = None, softmax: bool = False) -> Tuple[TSM, Facts]:
    """The network of the checkpoint at `path`, in eval mode, and what the checkpoint is (see tsm.facts.facts_of).

    Raises: UserError where it is no checkpoint, is damaged, or is not of a network that this suite takes.
    """
    state, meta = checkpoint.load(path)
    facts = facts_of(path, state, meta, config, segments)
    check_supported(facts, path)
    return network_of(state, path, facts.protocol, facts.width, softmax), facts


def scores(net: TSM, videos: np.ndarray) -> np.ndarray:
    """The network's answer to float32 [N, views * segments, 3, H, W], by PyTorch: float32 [N * views, classes]."""
    with torch.no_grad():
        return net(torch.from_numpy(videos)).numpy()


def trunk_from(net: TSM) -> Trunk:
    """The trunk of a network in eval mode. Its values and weights are called as the checkpoint calls the layers."""
    nodes: List[NodeProto] = []
    weights: Dict[str, np.ndarray] = {}

    def emit(op: str, inputs: List[str], out: str, **given: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [out], **given))
        return out

    def conv(x: str, block: Any, name: str) -> str:
        """A ConvBN as one Conv, before it the shift if it has one."""
        plain = getattr(block.conv, "net", block.conv)
        if getattr(block.conv, "fold", 0):
            x = emit(SHIFT, [x], name + ".shift")
        weights[name + ".weight"], weights[name + ".bias"] = _folded(plain, block.bn)
        return emit("Conv", [x, name + ".weight", name + ".bias"], name, kernel_shape=list(plain.kernel_size),
                    strides=list(plain.stride), pads=list(plain.padding) * 2, dilations=[1, 1], group=1)

    x = emit("Relu", [conv("frames", net.backbone.conv1, "conv1")], "relu")
    x = emit("MaxPool", [x], "maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage in range(1, len(BLOCKS) + 1):
        for number, block in enumerate(getattr(net.backbone, "layer%d" % stage)):
            name = "layer%d.%d." % (stage, number)
            out = emit("Relu", [conv(x, block.conv1, name + "conv1")], name + "relu1")
            out = emit("Relu", [conv(out, block.conv2, name + "conv2")], name + "relu2")
            out = conv(out, block.conv3, name + "conv3")
            x = x if block.downsample is None else conv(x, block.downsample, name + "downsample")
            x = emit("Add", [out, x], name + "add")
            x = emit("Relu", [x], name + "relu3")
    nodes[-1].output[0] = "features"
    fc = net.cls_head.fc_cls
    return Trunk(nodes, weights, fc.weight.detach().numpy(), fc.bias.detach().numpy())


def _folded(conv: nn.Conv2d, bn: Any) -> Tuple[np.ndarray, np.ndarray]:
    """(weight, bias) of a convolution and the batch normalisation after it as one convolution, worked out in float64.

    w * g and b - m * g, where g = gamma / sqrt(var + eps).
    """
    with torch.no_grad():
        gain = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
        weight = (conv.weight.double() * gain[:, None, None, None]).float().numpy()
        return weight, (bn.bias.double() - bn.running_mean.double() * gain).float().numpy()

"""TSM on a ResNet of bottlenecks or on MobileNetV2, in plain PyTorch: built from a checkpoint, and written out as a trunk.

The keys and shapes of a state dict, mmaction2's, say which network it is: see structure_of(). Sources: "TSM: Temporal Shift
Module for Efficient Video Understanding" (Lin et al., ICCV 2019), shift place `blockres`; mmaction2 0.24.1,
mmaction/models/backbones/resnet_tsm.py, mobilenet_v2_tsm.py and heads/tsm_head.py.
"""

import re
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np
import torch
from onnx import NodeProto, helper
from torch import Tensor, nn
from torch.nn import functional

from tsm.checkpoint import reader
from tsm.checkpoint.identify import Facts, check_supported, facts_of, weights_say
from tsm.cli import UserError
from tsm.model.graph import RELU6, SHIFT, Trunk, shift_step
from tsm.protocol import MOVES, SSV2, Protocol


class Structure(NamedTuple):
    """What the weights of a network say of it beside the width of its stem."""

    blocks: Tuple[int, ...]  # per stage
    channels: Tuple[int, ...] = ()  # MobileNetV2's: of each stage's output, then of the features; empty for a ResNet


RESNET50, RESNET101 = Structure((3, 4, 6, 3)), Structure((3, 4, 23, 3))
MOBILENETV2 = Structure((1, 2, 3, 4, 3, 3, 1), (16, 24, 32, 64, 96, 160, 320, 1280))  # its stem has 32 channels
STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of MobileNetV2's stages
EXPANSION = 4  # a bottleneck's output channels / its inner channels
INVERTED = 6  # an inverted residual's inner channels / its input channels; but for the first stage, which has no expansion
_BLOCK = re.compile(r"backbone\.layer(\d)\.(\d+)\.conv([\d.])")
_COUNTER = "num_batches_tracked"  # of batch normalisation: absent from old checkpoints, of no use here


def temporal_shift(x: Tensor, segments: int, fold: int, shift: str = "bi") -> Tensor:
    """x, float [views * segments, C, H, W] with the frames of a view next to each other, in time order, shifted within
    each view: its first and its second `fold` channels as tsm.protocol.MOVES says of `shift`. What has no next or
    previous frame becomes 0."""
    c, h, w = x.shape[1:]
    folds = x.view(-1, segments, c, h * w).split((fold, fold, c - 2 * fold), 2)
    moved = [torch.zeros_like(part) if step is None else functional.pad(part, (0, 0, 0, 0, -step, step))  # +1 drops the first frame
             for part, step in zip(folds, MOVES[shift] + (0,))]
    return torch.cat(moved, 2).view(-1, c, h, w)


class Shifted(nn.Module):
    """A layer on temporally shifted input, in the place of the plain one (hence `net` in its keys); a fold of 0 shifts nothing."""

    def __init__(self, net: nn.Module, protocol: Protocol, fold: int) -> None:
        super().__init__()
        self.net, self.segments, self.fold, self.shift = net, protocol.segments, fold, protocol.shift

    def forward(self, x: Tensor) -> Tensor:
        return self.net(temporal_shift(x, self.segments, self.fold, self.shift) if self.fold else x)


class ConvBN(nn.Module):
    """Convolution without bias, then batch normalisation (mmcv's ConvModule without its activation)."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv: Any = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Bottleneck(nn.Module):
    """ResNet bottleneck (stride on the 3x3) that shifts the input of its first convolution unless `fold` is None."""

    def __init__(self, cin: int, inner: int, stride: int, protocol: Protocol, fold: Optional[int]) -> None:
        super().__init__()
        self.conv1 = ConvBN(cin, inner, 1)
        if fold is not None:
            self.conv1.conv = Shifted(self.conv1.conv, protocol, fold)
        self.conv2 = ConvBN(inner, inner, 3, stride)
        self.conv3 = ConvBN(inner, inner * EXPANSION, 1)
        self.downsample = None
        if stride != 1 or cin != inner * EXPANSION:
            self.downsample = ConvBN(cin, inner * EXPANSION, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x)))))
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A ResNet of bottlenecks: float [frames, 3, H, W] -> float [frames, 32 * width, H / 32, W / 32]."""

    def __init__(self, structure: Structure, protocol: Protocol, width: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(3, width, 7, 2)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        cin, step = width, shift_step(structure.blocks)
        for stage, blocks in enumerate(structure.blocks):
            inner = width << stage
            layer: List[nn.Module] = []
            for block in range(blocks):
                fold = None if block % step else cin // protocol.shift_div
                layer.append(Bottleneck(cin, inner, 2 if stage and not block else 1, protocol, fold))
                cin = inner * EXPANSION
            self.add_module("layer%d" % (stage + 1), nn.Sequential(*layer))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.conv1(x)))
        for _, block in blocks_of(self):
            x = block(x)
        return x


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1x1 expansion, 3x3 per channel, 1x1; with a residual connection where the shape stays.

    A block that has both an expansion and a residual connection shifts the input of its expansion.
    """

    def __init__(self, cin: int, cout: int, stride: int, expansion: int, protocol: Protocol) -> None:
        super().__init__()
        inner, self.residual = cin * expansion, stride == 1 and cin == cout
        layers: List[nn.Module] = [ConvBN(inner, inner, 3, stride, inner), ConvBN(inner, cout, 1)]
        if expansion != 1:
            layers.insert(0, ConvBN(cin, inner, 1))
            if self.residual:
                layers[0] = Shifted(layers[0], protocol, cin // protocol.shift_div)
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for layer in list(self.conv)[:-1]:
            out = functional.relu6(layer(out))
        out = self.conv[-1](out)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """MobileNetV2: float [frames, 3, H, W] -> float [frames, structure.channels[-1], H / 32, W / 32]."""

    def __init__(self, structure: Structure, protocol: Protocol, width: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(3, width, 3, 2)
        cin = width
        for stage, (blocks, cout, stride) in enumerate(zip(structure.blocks, structure.channels, STRIDES)):
            layer: List[nn.Module] = []
            for block in range(blocks):
                layer.append(InvertedResidual(cin, cout, 1 if block else stride, INVERTED if stage else 1, protocol))
                cin = cout
            self.add_module("layer%d" % (stage + 1), nn.Sequential(*layer))
        self.conv2 = ConvBN(cin, structure.channels[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.conv1(x))
        for _, block in blocks_of(self):
            x = block(x)
        return functional.relu6(self.conv2(x))


def blocks_of(backbone: nn.Module) -> Iterator[Tuple[str, Any]]:
    """(name as `layer1.0`, block) of all blocks, in order."""
    for name, layer in backbone.named_children():
        if name.startswith("layer"):
            for number, block in enumerate(layer.children()):
                yield "%s.%d" % (name, number), block


class TSM(nn.Module):
    """TSM as mmaction2's `forward_dummy` runs it: no fusion of the views.

    `width` is the channels of the stem: 64 of ResNet-50, 8 of the demo's thin network, 32 of MobileNetV2. `softmax` is
    of each view, as pytorch2onnx.py's --softmax.
    """

    def __init__(
        self, protocol: Protocol = SSV2, width: int = 64, softmax: bool = False, structure: Structure = RESNET50
    ) -> None:
        super().__init__()
        self.backbone: Any = (MobileNetV2 if structure.channels else ResNet)(structure, protocol, width)
        features = structure.channels[-1] if structure.channels else (width << len(structure.blocks) - 1) * EXPANSION
        self.cls_head: Any = nn.Module()
        self.cls_head.fc_cls = nn.Linear(features, protocol.classes)
        self.segments, self.softmax = protocol.segments, softmax

    def forward(self, videos: Tensor) -> Tensor:
        """float [N, views * segments, 3, H, W] -> float [N * views, classes]: the mean of each view's frame scores."""
        x = self.backbone(videos.reshape((-1,) + videos.shape[2:]))
        scores = self.cls_head.fc_cls(x.mean((2, 3))).view(-1, self.segments, self.cls_head.fc_cls.out_features)
        scores = scores.mean(1)
        return torch.softmax(scores, 1) if self.softmax else scores


def structure_of(state: Mapping[str, Tensor]) -> Structure:
    """The structure of the network that a state dict is of, by mmaction2's keys; where they do not say, as ResNet-50's or
    MobileNetV2's."""
    found = {match.groups() for match in map(_BLOCK.match, state) if match}
    inverted = any(kind == "." for _, _, kind in found)
    known = MOBILENETV2 if inverted else RESNET50
    blocks = tuple(len({block for stage, block, _ in found if stage == str(number)}) or count
                   for number, count in enumerate(known.blocks, 1))
    if not inverted:
        return Structure(blocks)
    last = ["layer%d.0.conv.%d" % (number, 2 if number > 1 else 1) for number in range(1, len(blocks) + 1)] + ["conv2"]
    weights = [state.get("backbone.%s.conv.weight" % name) for name in last]
    return Structure(blocks, tuple(int(weight.shape[0]) if weight is not None and weight.dim() and weight.numel() else count
                                   for weight, count in zip(weights, known.channels)))


def network_of(state: Mapping[str, Tensor], path: str, protocol: Protocol, softmax: bool = False) -> TSM:
    """The network with the weights `state`, in eval mode; it takes the tensors over without a copy.

    Raises: UserError that names `path`, what the weights are of, and the first of them that are missing, of another network,
        or not finite; and where shift_div shifts nothing.
    """
    structure, said = structure_of(state), weights_say(state)
    width = said.get("width", 0)
    net = TSM(protocol, max(1, width), softmax=softmax, structure=structure)
    wanted = {key: value for key, value in net.state_dict(keep_vars=True).items() if not key.endswith(_COUNTER)}
    given = {key: value for key, value in state.items() if not key.endswith(_COUNTER)}
    here, there = ({key: "%s %s" % (str(value.dtype)[len("torch.") :], list(value.shape)) for key, value in one.items()}
                   for one in (given, wanted))
    wrong = ["%s is %s here, %s in this network" % (key, here.get(key, "missing"), there.get(key, "missing"))
             for key in {**wanted, **given} if here.get(key) != there.get(key)]
    if wrong:
        more = " and %d more" % (len(wrong) - 3) if len(wrong) > 3 else ""
        kind = "MobileNetV2" if structure.channels else "a ResNet of bottlenecks"
        raise UserError("%s: is %s, but its weights are not those of TSM on %s with %d classes: %s%s; pass the checkpoint of "
                        "such a network" % (path, said["network"], kind, protocol.classes, "; ".join(wrong[:3]), more))
    narrowest = min([cout for blocks, cout in zip(structure.blocks, structure.channels) if blocks > 1] or [width])
    if protocol.shift_div > narrowest:
        raise UserError("%s: a shift_div of %d shifts none of the %d channels of its narrowest layer; pass the config that it was "
                        "trained with" % (path, protocol.shift_div, narrowest))
    broken = [key for key, value in given.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError("%s: %s holds values that are not finite; fetch it again" % (path, broken[0]))
    for key, value in wanted.items():
        value.data = given[key]
    return net.eval()


def load_network(path: str, config: str = "", shift: str = "", segments: Optional[int] = None) -> Tuple[TSM, Facts]:
    """The network of the checkpoint at `path`, in eval mode, and what the checkpoint is (see
    tsm.checkpoint.identify.facts_of); UserError where it is none, is damaged, or is of a network that this suite does
    not take."""
    state, meta = reader.load(path)
    facts = facts_of(path, state, meta, config, segments, shift)
    check_supported(facts, path)
    return network_of(state, path, facts.protocol), facts


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

    def conv(x: str, layer: Any, name: str) -> str:
        """A ConvBN as one Conv, before it the shift if it has one, around the whole of it or around its convolution."""
        block = getattr(layer, "net", layer)
        plain = getattr(block.conv, "net", block.conv)
        if getattr(layer, "fold", 0) or getattr(block.conv, "fold", 0):
            x = emit(SHIFT, [x], name + ".shift")
        weights[name + ".weight"], weights[name + ".bias"] = _folded(plain, block.bn)
        return emit("Conv", [x, name + ".weight", name + ".bias"], name, kernel_shape=list(plain.kernel_size),
                    strides=list(plain.stride), pads=list(plain.padding) * 2, dilations=[1, 1], group=plain.groups)

    def bottleneck(x: str, block: Any, name: str) -> str:
        out = emit("Relu", [conv(x, block.conv1, name + ".conv1")], name + ".relu1")
        out = emit("Relu", [conv(out, block.conv2, name + ".conv2")], name + ".relu2")
        out = conv(out, block.conv3, name + ".conv3")
        x = x if block.downsample is None else conv(x, block.downsample, name + ".downsample")
        return emit("Relu", [emit("Add", [out, x], name + ".add")], name + ".relu3")

    def inverted(x: str, block: Any, name: str) -> str:
        out, last = x, len(block.conv) - 1
        for number, layer in enumerate(block.conv):
            out = conv(out, layer, "%s.conv.%d" % (name, number))
            out = out if number == last else emit(RELU6, [out], out + ".relu6")
        return emit("Add", [out, x], name + ".add") if block.residual else out

    backbone, mobile = net.backbone, isinstance(net.backbone, MobileNetV2)
    x = emit(RELU6 if mobile else "Relu", [conv("frames", backbone.conv1, "conv1")], "relu")
    if not mobile:
        x = emit("MaxPool", [x], "maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for name, block in blocks_of(backbone):
        x = (inverted if mobile else bottleneck)(x, block, name)
    if mobile:
        emit(RELU6, [conv(x, backbone.conv2, "conv2")], "last")
    nodes[-1].output[0] = "features"
    fc = net.cls_head.fc_cls
    return Trunk(nodes, weights, fc.weight.detach().numpy(), fc.bias.detach().numpy())


def _folded(conv: nn.Conv2d, bn: Any) -> Tuple[np.ndarray, np.ndarray]:
    """(weight, bias) of a convolution and the batch normalisation after it as one convolution, worked out in float64: w
    * g and b - m * g, where g = gamma / sqrt(var + eps)."""
    with torch.no_grad():
        gain = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
        weight = (conv.weight.double() * gain[:, None, None, None]).float().numpy()
        return weight, (bn.bias.double() - bn.running_mean.double() * gain).float().numpy()

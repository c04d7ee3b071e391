#!/usr/bin/env python3
"""Export a TSM checkpoint to ONNX, with the command line of mmaction2's tools/deployment/pytorch2onnx.py.

    python3 pytorch2onnx.py tsm_demo.pth --output-file tsm_bs1.onnx --softmax --shape 1 48 3 256 256

For hosts without mmaction2 and mmcv: the network is TSM ResNet-50 with 174 classes (tsm/network.py), so the config file
that mmaction2's tool needs may be given and is not read. Output as there: one row per VIEW, [6 * batch, 174], class
scores or, with --softmax, probabilities; modify_onnx.py fuses the views.

The graph is written node by node from the loaded network instead of being traced, which would run the network at the
batch size asked for (20 GB at batch 32) through an exporter that PyTorch is retiring; batch normalisation is folded into
the convolutions in float64. --verify compares every class of every view with PyTorch on random videos. One
self-contained file, opset 11. Only weights are read from the checkpoint: one that carries code is refused, not run.
"""

import argparse
from typing import List

import numpy as np

from tsm.cli import UserError, parser, positive, run
from tsm.files import replacing
from tsm.protocol import SSV2, VIDEO_SHAPE

TOLERANCE = 1e-5  # of --verify, relative to the largest class score


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("config", nargs="?", help="accepted for compatibility with mmaction2's tool, and not read")
    cli.add_argument("checkpoint", help="the checkpoint, .pth")
    cli.add_argument("--output-file", default="tmp.onnx", metavar="FILE", help="default: %(default)s")
    cli.add_argument("--opset-version", type=int, default=11, choices=[11], help="11, as mmaction2's tool")
    cli.add_argument("--shape", type=positive, nargs="+", default=[1] + list(VIDEO_SHAPE), metavar="N",
                     help="input shape, BATCH 48 3 256 256 (default: batch 1)")
    cli.add_argument("--softmax", action="store_true", help="end in a softmax per view")
    cli.add_argument("--verify", action="store_true", help="compare with PyTorch on random videos (some seconds each)")
    cli.add_argument("--show", action="store_true", help="print the graph")
    args = cli.parse_args()
    if tuple(args.shape[1:]) != VIDEO_SHAPE:
        cli.error("--shape %s: TSM takes BATCH %s" % (" ".join(map(str, args.shape)), " ".join(map(str, VIDEO_SHAPE))))
    return args


def trunk_from(net):
    """The tsm.graph.Trunk of a tsm.network.TSM in eval mode."""
    import torch
    from onnx import helper

    from tsm.graph import SHIFT, Trunk

    nodes, weights = [], {}

    def emit(op: str, inputs: List[str], **given: object) -> str:
        out = "%s_%d" % (op, len(nodes))
        nodes.append(helper.make_node(op, inputs, [out], **given))
        return out

    def conv(x: str, block) -> str:
        """A ConvBN as one Conv: w * g and b - m * g, where g = gamma / sqrt(var + eps)."""
        plain, bn = getattr(block.conv, "net", block.conv), block.bn
        if getattr(block.conv, "fold", 0):
            x = emit(SHIFT, [x])
        gain = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
        name = "conv%d" % len(weights)
        weights[name + ".weight"] = (plain.weight.double() * gain[:, None, None, None]).float().numpy()
        weights[name + ".bias"] = (bn.bias.double() - bn.running_mean.double() * gain).float().numpy()
        pads = list(plain.padding) * 2
        return emit("Conv", [x, name + ".weight", name + ".bias"], kernel_shape=list(plain.kernel_size),
                    strides=list(plain.stride), pads=pads, dilations=[1, 1], group=1)

    with torch.no_grad():
        x = emit("Relu", [conv("frames", net.backbone.conv1)])
        x = emit("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        for stage in range(1, 5):
            for block in getattr(net.backbone, "layer%d" % stage):
                out = emit("Relu", [conv(x, block.conv1)])
                out = emit("Relu", [conv(out, block.conv2)])
                out = conv(out, block.conv3)
                x = emit("Add", [out, x if block.downsample is None else conv(x, block.downsample)])
                x = emit("Relu", [x])
        nodes[-1].output[0] = "features"
        fc = net.cls_head.fc_cls
        return Trunk(nodes, weights, fc.weight.numpy(), fc.bias.numpy())


def verify(net, path: str, batch: int) -> float:
    """Largest difference of any class of any view between ONNX Runtime and PyTorch, relative to the largest score."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    videos = np.random.RandomState(0).standard_normal((batch,) + VIDEO_SHAPE).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(videos)).numpy()
    actual = session.run(None, {"input": videos})[0]
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def main() -> None:
    args = get_args()
    import onnx

    from tsm.graph import build
    from tsm.network import load

    net = load(args.checkpoint, softmax=args.softmax)
    model = build(trunk_from(net), "cpu", SSV2, args.shape[0], softmax=args.softmax)
    onnx.checker.check_model(model)
    if args.show:
        print(onnx.helper.printable_graph(model.graph))
    with replacing(args.output_file) as part:
        onnx.save(model, part)
        if args.verify:
            difference = verify(net, part, args.shape[0])
            if not difference <= TOLERANCE:
                raise UserError("%s: differs from PyTorch by %.1e of the largest class score; this is a bug of the "
                                "exporter, please report it" % (args.output_file, difference))
            print("verified: within %.1e of PyTorch, relative to the largest class score" % difference)
    print("wrote %s: input %s, output [%d, %d] per view" % (
        args.output_file, list(args.shape), args.shape[0] * 6, model.graph.output[0].type.tensor_type.shape.dim[1].dim_value))


if __name__ == "__main__":
    run(main)

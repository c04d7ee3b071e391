#!/usr/bin/env python3
"""Make the specimens: what exporters write of a thin TSM, graphs without weights.

    python test/specimens/make.py mmaction2      # in the reference stack: Python 3.7, torch 1.9.0, mmaction2 0.24.1
    python test/specimens/make.py torch          # torch 2.x with onnxscript: its TorchScript and its default exporter

Weights are replaced by zeros, which compress to nothing; the tests fill them with random values. The network is as deep
as ResNet-50 and one eighth as wide; its shift is written as mmaction2 writes it, with `x - x` for zeros.
"""

import gzip
import os
import sys
import tempfile

import numpy as np
import onnx
import torch
from onnx import numpy_helper

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))
WIDTH = 8


def keep(path, name, shrink=1):
    """Write the model at `path`, its weights zeroed and `shrink` times thinner, as NAME.onnx.gz beside this script."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and values.ndim:
            shape = [side // shrink if side >= 64 and side != 174 else side for side in values.shape]
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(shape, np.float32), tensor.name))
    for value in model.graph.input:
        if value.name in {tensor.name for tensor in model.graph.initializer}:
            value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.ClearField("doc_string")
        if hasattr(node, "metadata_props"):
            del node.metadata_props[:]
    with open(os.path.join(HERE, name + ".onnx.gz"), "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(model.SerializeToString())


def mmaction2_network():
    import functools

    from mmaction.models import build_model

    backbone = dict(type="ResNetTSM", depth=50, norm_eval=False, shift_div=8)
    head = dict(type="TSMHead", num_classes=174, in_channels=2048, consensus=dict(type="AvgConsensus", dim=1))
    net = build_model(dict(type="Recognizer2D", backbone=backbone, cls_head=head)).eval()
    net.forward = functools.partial(net.forward_dummy, softmax=True)
    return net


def shift_as_mmaction2(x, segments, fold):
    """The temporal shift in mmaction2's operations (resnet_tsm.py), for exporters to show their idioms on."""
    n, c, h, w = x.size()
    x = x.view(-1, segments, c, h * w)
    ahead, behind, still = x[:, :, :fold], x[:, :, fold : 2 * fold], x[:, :, 2 * fold :]
    ahead = torch.cat((ahead[:, 1:], (ahead - ahead)[:, :1]), 1)
    behind = torch.cat(((behind - behind)[:, :1], behind[:, :-1]), 1)
    return torch.cat((ahead, behind, still), 2).view(n, c, h, w)


def main():
    video = torch.randn(1, 48, 3, 256, 256)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        if sys.argv[1:] == ["mmaction2"]:
            torch.onnx.export(mmaction2_network(), video, path, opset_version=11, keep_initializers_as_inputs=True)
            keep(path, "mmaction2_torch1.9", shrink=64 // WIDTH)  # its width is fixed; its graph reads sizes at run time
        elif sys.argv[1:] == ["torch"]:
            from tsm.model import network

            network.temporal_shift = shift_as_mmaction2
            net = network.TSM(width=WIDTH, softmax=True).eval()
            torch.onnx.export(net, (video,), path, opset_version=11, dynamo=False, keep_initializers_as_inputs=True)
            keep(path, "torchscript_torch2.13")
            torch.onnx.export(net, (video,), path, dynamo=True)
            keep(path, "dynamo_torch2.13")
        else:
            sys.exit("usage: make.py mmaction2|torch")


if __name__ == "__main__":
    main()

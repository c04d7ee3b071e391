#!/usr/bin/env python3
"""One way of computing videos, for bench/inference.py: ours, our network without its shifts, or a rival at its best.

    python3 bench/ways.py ours fp32 bench/work           # WAY PRECISION FOLDER
    python3 bench/ways.py --make openvino int8 bench/work

FOLDER holds what bench/run.sh makes. --make writes to it the files of a way that has some of its own. Without it, says what the
way runs on, and then answers each line of stdin as turns.answer() says. Every rival computes whole videos as exported, unless it is
quicker view by view. A rival that does not freeze, falls back to another engine or is for another processor says so and ends.
"""

import argparse
import contextlib
import os
import subprocess
import sys
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import numpy as np
from turns import answer, random_video  # sets up the path to the suite

from tsm.cli import UserError, parser, run
from tsm.machine import cores, processor_name
from tsm.protocol import SSV2, softmax

CALIBRATION = 32  # clips, as many as TSM_quantise.py takes
FUSION = "prob"  # what mmaction2's own export allows
Compute = Callable[[Sequence[np.ndarray]], List[np.ndarray]]  # videos [1, 48, 3, 256, 256] -> probabilities [views or 1, classes] of each


def clips(folder: str, count: int) -> Iterator[np.ndarray]:
    """The tensors of the demo's first clips, one by one."""
    for number in range(count):
        yield np.fromfile(os.path.join(folder, "sthv2", "preprocess_bin", "%d.bin" % number), np.float32).reshape((1,) + SSV2.video_shape)


def made(folder: str, name: str) -> str:
    """A file that --make writes."""
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        raise UserError("%s: there is no such file; bench/run.sh models makes it, or says why not" % path)
    return path


def calibration_views(folder: str) -> List[np.ndarray]:
    """One view [1, segments, 3, size, size] of each calibration clip, in turn the first to the last."""
    return [video.reshape((-1, 1) + SSV2.view_shape)[number % SSV2.views].copy() for number, video in enumerate(clips(folder, CALIBRATION))]


def one_by_one(score: Callable[[np.ndarray], np.ndarray]) -> Compute:
    return lambda videos: [score(video) for video in videos]


def view_by_view(frame_scores: Callable[[np.ndarray], np.ndarray]) -> Compute:
    """Of what takes a view [segments, 3, size, size] and gives its frames' scores [segments, classes]."""
    def score(video: np.ndarray) -> np.ndarray:
        return softmax(np.stack([frame_scores(view).mean(0) for view in video.reshape((-1,) + SSV2.view_shape)]).astype(np.float64))

    return one_by_one(score)


def mmaction2(folder: str, precision: str) -> Tuple[str, Compute]:
    """mmaction2's own model, its published configuration, in its own Python."""
    import mmaction
    import mmcv
    import torch
    from mmaction.models import build_model
    from mmcv.runner import load_checkpoint

    config = mmcv.Config.fromfile(os.path.join(os.path.dirname(mmaction.__file__), ".mim", "configs", "recognition", "tsm",
                                               "tsm_r50_1x1x8_50e_sthv2_rgb.py"))
    config.model.backbone.pretrained = None
    model = build_model(config.model, test_cfg=config.get("test_cfg"))
    load_checkpoint(model, os.path.join(folder, "tsm_demo.pth"), map_location="cpu")
    model.eval()
    torch.set_num_threads(cores())

    def score(video: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(imgs=torch.from_numpy(video), return_loss=False)

    return "mmaction2 %s, PyTorch %s" % (mmaction.__version__, torch.__version__), one_by_one(score)


def torch_network(folder: str) -> Any:
    """The suite's own network in PyTorch, channels_last."""
    import torch

    from tsm.model.network import load_network

    torch.set_num_threads(cores())
    return load_network(os.path.join(folder, "tsm_demo.pth"))[0].to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def torch_compile(folder: str, precision: str, backend: str = "inductor") -> Tuple[str, Compute]:
    """torch.compile with its weights frozen, on whole videos in fp32, below that view by view: each is the quicker there. int8 is the
    program that torchao quantised."""
    import torch
    from torch._dynamo.utils import counters

    packed = "qconv_weight_prepack_matcher_count" if precision == "int8" else "mkldnn_conv_weight_pack_matcher_count"
    if precision == "int8":
        import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401 - registers the operators of the file

        network = torch.export.load(made(folder, "torchao.pt2")).module()
    else:
        network = torch_network(folder)
    forward = torch.compile(network, backend=backend, dynamic=False)
    lowered = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()

    def score(video: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), lowered:
            parts = torch.from_numpy(video).reshape((-1, 1) + (SSV2.video_shape if precision == "fp32" else SSV2.view_shape))
            return torch.cat([forward(part) for part in parts]).float().softmax(1).numpy()

    score(random_video())
    if not counters["inductor"][packed]:
        raise UserError("torch.compile froze no convolution (TORCHINDUCTOR_FREEZING=1?)")
    return "PyTorch %s, %d convolutions frozen" % (torch.__version__, counters["inductor"][packed]), one_by_one(score)


def make_torchao(folder: str) -> None:
    """torchao.pt2: PyTorch's own int8, after training, as its tutorial for x86 has it."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    views = [torch.from_numpy(view) for view in calibration_views(folder)]
    with torch.no_grad():
        network = torch.export.export(torch_network(folder), (views[0],)).module()
        network = prepare_pt2e(network, X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config()))
        for view in views:
            network(view)
        torch.export.save(torch.export.export(convert_pt2e(network), (views[0],)), os.path.join(folder, "torchao.pt2"))


def zentorch(folder: str, precision: str) -> Tuple[str, Compute]:
    if "AMD" not in processor_name():
        raise UserError("is for AMD's processors, and this is %s" % processor_name())
    import zentorch

    about, compute = torch_compile(folder, precision, "zentorch")
    return "zentorch %s, %s" % (zentorch.__version__, about), compute


def of_engine(network: Any, model: Any, backend: str, precision: str) -> Tuple[str, Compute]:
    """The suite's engines, fed as TSM_infer.py feeds them."""
    from tsm.infer.engine import BACKENDS, run_batches, streams_for

    # Whole batches: one at a time on all cores, which is quicker here than two at a time.
    engine, model = BACKENDS[backend](network, model.path, precision, streams_for(model)), model._replace(fusion=model.fusion and FUSION)

    def compute(videos: Sequence[np.ndarray]) -> List[np.ndarray]:
        batches = run_batches(engine, model, [str(number) for number in range(len(videos))], lambda name: videos[int(name)])
        return [output for (output,), _ in batches]

    return engine.name, compute


def ours(folder: str, precision: str, backend: str = "openvino") -> Tuple[str, Compute]:
    from tsm.infer.int8 import read_int8
    from tsm.model.offline import one_view, read_offline

    model = read_offline(os.path.join(folder, "tsm_new_bs1.onnx"))
    network = one_view(model)
    if precision == "int8":
        network = read_int8(os.path.join(folder, "tsm_int8.xml"), network, model.path)[0]
    return of_engine(network, model, backend, precision)


def no_shift(folder: str, precision: str) -> Tuple[str, Compute]:
    """The floor: our network without its shifts on the same engine."""
    import openvino

    from tsm.model.graph import build, trunk_of
    from tsm.model.offline import read_offline

    model = read_offline(os.path.join(folder, "tsm_new_bs1.onnx"))
    network = build(trunk_of(model.proto), "view", SSV2._replace(shift="none"))
    if precision == "int8":
        network = openvino.Core().read_model(made(folder, "no_shift_int8.xml"))
    return of_engine(network, model, "openvino", precision)


def make_no_shift(folder: str) -> None:
    """no_shift_int8.xml: for speed, not for accuracy."""
    import openvino

    from tsm.infer.int8 import quantise
    from tsm.model.graph import build, trunk_of
    from tsm.model.offline import read_offline

    trunk = trunk_of(read_offline(os.path.join(folder, "tsm_new_bs1.onnx")).proto)
    network = build(trunk, "view", SSV2._replace(shift="none"))
    openvino.save_model(quantise(network, [view[0] for view in calibration_views(folder)]), os.path.join(folder, "no_shift_int8.xml"))


def exported(folder: str, precision: str, backend: str = "openvino") -> Tuple[str, Compute]:
    """The graph of mmaction2's own tool, whole videos; its int8 forms are those of the engines' own quantisers."""
    import openvino

    from tsm.model.offline import read_offline

    model = read_offline(os.path.join(folder, "export.onnx"))
    if precision != "int8":
        return of_engine(model.proto, model, backend, precision)
    if backend == "openvino":
        return of_engine(openvino.Core().read_model(made(folder, "export_int8.xml")), model, backend, precision)
    quantised = read_offline(made(folder, "export_int8.onnx"))
    return of_engine(quantised.proto, quantised, backend, "fp32")


def make_openvino(folder: str) -> None:
    """export_int8.xml: NNCF's, with its defaults, of the graph as exported."""
    import nncf
    import openvino

    network = openvino.Core().read_model(os.path.join(folder, "export.onnx"))
    dataset = nncf.Dataset(list(clips(folder, CALIBRATION)))
    openvino.save_model(nncf.quantize(network, dataset), os.path.join(folder, "export_int8.xml"))


def make_onnxruntime(folder: str) -> None:
    """export_int8.onnx: ONNX Runtime's own quantiser, QDQ, static, weights per channel, activations uint8 as its page for x86 says."""
    import onnx
    import onnx.version_converter
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        left = clips(folder, CALIBRATION)

        def get_next(self) -> Any:
            return next(({name: video} for video in self.left), None)

    given, path = onnx.load(os.path.join(folder, "export.onnx")), os.path.join(folder, "export_int8.onnx")
    name, part = given.graph.input[0].name, path + ".part"
    onnx.save(onnx.version_converter.convert_version(given, 17), part)  # below 13 there are no scales per channel
    quant_pre_process(part, part, skip_symbolic_shape=True)
    quantize_static(part, path, Reader(), per_channel=True, activation_type=QuantType.QUInt8)
    os.remove(part)


def openvino_provider(folder: str, precision: str) -> Tuple[str, Compute]:
    """ONNX Runtime's OpenVINO provider, which is in a build of its own."""
    import onnxruntime

    session = onnxruntime.InferenceSession(os.path.join(folder, "export.onnx"), providers=[
        ("OpenVINOExecutionProvider", {"device_type": "CPU", "precision": "FP32", "num_of_threads": str(cores())})])
    if session.get_providers()[0] != "OpenVINOExecutionProvider":
        raise UserError("computes by %s instead" % session.get_providers()[0])
    name = session.get_inputs()[0].name
    return "ONNX Runtime %s, OpenVINO provider" % onnxruntime.__version__, one_by_one(lambda video: session.run(None, {name: video})[0])


def mnn(folder: str, precision: str) -> Tuple[str, Compute]:
    """MNN on the graph as exported. Version 3.6.1 computes something else, of this and of our view form: its answers show it."""
    import MNN
    import onnx

    graph = onnx.load(os.path.join(folder, "export.onnx"), load_external_data=False).graph
    runtime = MNN.nn.create_runtime_manager(({"backend": "CPU", "numThread": cores(), "precision": "high"},))
    names = [graph.input[0].name], [graph.output[0].name]
    net = MNN.nn.load_module_from_file(made(folder, "export.mnn"), *names, runtime_manager=runtime)

    def score(video: np.ndarray) -> np.ndarray:
        x = MNN.expr.placeholder(list(video.shape), MNN.expr.NCHW)
        x.write(video)
        return np.array(net.forward([x])[0].read())

    return "MNN " + MNN.version(), one_by_one(score)


def make_mnn(folder: str) -> None:
    """export.mnn, by MNN's own converter."""
    converter = os.path.join(os.path.dirname(sys.executable), "mnnconvert")
    subprocess.run([converter, "-f", "ONNX", "--modelFile", "export.onnx", "--MNNModel", "export.mnn"], cwd=folder, check=True)


def ncnn(folder: str, precision: str) -> Tuple[str, Compute]:
    """ncnn, frame by frame and without the shift: its values have no axis for frames."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = cores()
    net.load_param(made(folder, "frame.ncnn.param"))
    net.load_model(made(folder, "frame.ncnn.bin"))

    def of_frame(frame: np.ndarray) -> np.ndarray:
        with net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(frame))
            return np.array(extractor.extract("out0")[1])

    return "ncnn " + ncnn.__version__, view_by_view(lambda view: np.stack([of_frame(frame) for frame in view]))


def make_ncnn(folder: str) -> None:
    """frame.ncnn.param and .bin, by ncnn's own converter."""
    import onnx

    from tsm.model.graph import build, trunk_of
    from tsm.model.offline import read_offline

    trunk = trunk_of(read_offline(os.path.join(folder, "tsm_new_bs1.onnx")).proto)
    onnx.save(build(trunk, "view", SSV2._replace(segments=1, shift="none")), os.path.join(folder, "frame.onnx"))
    converter = os.path.join(os.path.dirname(sys.executable), "pnnx")
    subprocess.run([converter, "frame.onnx", "inputshape=[1,3,256,256]", "fp16=0"], cwd=folder, check=True)


WAYS: Dict[str, Callable[[str, str], Tuple[str, Compute]]] = {  # (folder, precision) -> what it runs on, and what computes
    "mmaction2": mmaction2, "torch": torch_compile, "zentorch": zentorch, "openvino": exported,
    "onnxruntime": partial(exported, backend="onnxruntime"), "openvino_provider": openvino_provider, "mnn": mnn, "ncnn": ncnn,
    "ours": ours, "ours_onnxruntime": partial(ours, backend="onnxruntime"), "no_shift": no_shift,
}
MAKE = {"torch": make_torchao, "openvino": make_openvino, "onnxruntime": make_onnxruntime, "mnn": make_mnn, "ncnn": make_ncnn,
        "no_shift": make_no_shift}


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--make", action="store_true", help="write the way's own files")
    cli.add_argument("way", choices=list(WAYS))
    cli.add_argument("precision", choices=("fp32", "bf16", "int8"))
    cli.add_argument("folder")
    return cli.parse_args()


def main() -> None:
    args = get_args()
    if args.make:
        return MAKE[args.way](args.folder)
    about, compute = WAYS[args.way](args.folder, args.precision)
    video = random_video()
    answer(about, lambda videos: compute([video] * videos),
           lambda count: [int(compute([clip])[0].mean(0).argmax()) for clip in clips(args.folder, count)])


if __name__ == "__main__":
    run(main)

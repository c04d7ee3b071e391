#!/usr/bin/env python3
"""Graph surgery on an exported TSM: cheap shifts, fused views, any batch size; and a proof that it is the same network.

    python3 modify_onnx.py -m1 tsm_bs1.onnx -m2 tsm_new_bs1.onnx -bs 1

Takes the graph of any exporter (mmaction2's tool on any PyTorch, TorchScript or not, or ours) and writes one canonical
graph: `input` [bs, 48, 3, 256, 256] -> `output` [bs, 174], the probabilities of the fused views. Frames, size and classes are
those of the model's protocol, in its metadata or given by --protocol; else Something-Something V2's. Rules, in order:

  weights    weights listed among the graph's inputs become constants
  fold       what depends on constants alone is computed now: shape arithmetic, batch normalisation (ONNX Runtime does it)
  input      the nodes that turn videos into frames become one Reshape
  shift      the nodes before a block's first convolution become the target's form of the temporal shift
  head       pooling, classifier, mean over segments and softmax become the fusion of the views asked for

`input`, `shift` and `head` recognise nodes by what they COMPUTE: run on test data, the nodes between two known places must give
what TSM defines there (to 1e-5 in the head). So the exporter's idiom does not matter, and what is not TSM is refused. `x - x`,
mmaction2's way to write zeros, becomes zero: the two differ only where x is not finite. The shifts must be where the network's
blocks call for them: 16 in ResNet-50, 18 in ResNet-101, 10 in MobileNetV2.

Then both graphs run in ONNX Runtime on a random video whose views differ in magnitude (on some ten views, where it has many);
for --target cpu also the form that TSM_infer.py runs, view by view. The largest differences and the rules' counts are printed
and kept in the model's metadata. Over tolerance, or at any refusal, no file is written.

    python3 modify_onnx.py -m1 tsm_new_bs1.onnx -m2 tsm_new_bs4.onnx -bs 4

-m1 may also be a model that this script wrote. Fusion, target and input dtype are then the model's own. The network is the same,
so its proof is carried over, if the graphs that were proved (by SHA-256) are still those that the suite writes of the network.
"""

import argparse
import json
import os
from typing import Any, Dict, Mapping, Tuple

from tsm import __version__
from tsm.cli import UserError, fail, parser, positive, run
from tsm.files import replacing, sha256
from tsm.machine import keep_freed_memory
from tsm.protocol import FUSIONS, Protocol, differences, read_protocol

CHOICES = {"fusion": FUSIONS, "target": ("ascend", "cpu"), "input_dtype": ("float32", "uint8")}  # of an exported model the first
PRINTED = {"file": "proof", "one_view": "proof, view by view"}  # what was proved
REMEDY = "pass the exported model instead"


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("-m1", "--model1", required=True, metavar="FILE", help="the exported model, or one that this script wrote")
    cli.add_argument("-m2", "--model2", required=True, metavar="FILE", help="the model to write")
    cli.add_argument("-bs", "--batch_size", type=positive, default=1, help="of the output, whatever the input's (default: 1)")
    cli.add_argument("--fusion", choices=CHOICES["fusion"], help="score: mean of all frames' class scores, then softmax (the "
                     "Ascend guide); prob: softmax per view, then mean (mmaction2) (default: score, or as in a modified model)")
    cli.add_argument("--target", choices=CHOICES["target"], help="ascend: operators of the guide's graph, for ATC; cpu: for "
                     "TSM_infer.py (default: ascend, or as in a modified model)")
    cli.add_argument("--input_dtype", choices=CHOICES["input_dtype"], help="uint8: RGB 0..255, normalised in the graph (cpu "
                     "only) (default: float32, or as in a modified model)")
    cli.add_argument("--auto_optimizer", action="store_true", help="also apply auto-optimizer's default knowledges, under the same proof")
    cli.add_argument("--protocol", metavar="FILE", help="how the network is tested, as TSM_checkpoint.py wrote it, for a model "
                     "that does not say it itself (default: Something-Something V2's)")
    cli.add_argument("--labels", metavar="FILE", help="names of the classes, to be kept in the model; forms: see TSM_dataset.py")
    return cli.parse_args()


def settle(args: argparse.Namespace, known: Mapping[str, str]) -> bool:
    """Fill in the options of CHOICES that were not given; whether the model of these metadata is one that this script wrote.
    Raises UserError where an option is not what that was made with; exits with status 2 where options exclude each other."""
    modified = "tsm.fusion" in known
    for key, choices in CHOICES.items():
        given, made = getattr(args, key), known.get("tsm." + key, "") if modified else choices[0]
        if made not in choices:
            raise UserError("%s: not as modify_onnx.py wrote it (its %s is %r); %s" % (args.model1, key, made, REMEDY))
        if modified and given not in (None, made):
            raise UserError("%s: was made with --%s %s, not %s; leave out --%s, or %s" % (args.model1, key, made, given, key, REMEDY))
        setattr(args, key, given or made)
    if args.input_dtype == "uint8" and args.target == "ascend":
        fail("--input_dtype uint8: for --target cpu; on an NPU, normalise by ATC's --insert_op_conf (see --help)", status=2)
    if args.auto_optimizer and args.target == "cpu":
        fail("--auto_optimizer: for --target ascend; TSM_infer.py does not run what it makes (see --help)", status=2)
    return modified


def write(trunk: Any, args: argparse.Namespace, protocol: Protocol, batch: int) -> Tuple[Any, Dict[str, int]]:
    """(the model of `batch` videos, how often auto-optimizer changed it, where it is asked for)."""
    from tsm.model.graph import build
    from tsm.model.surgery import auto_optimize

    model = build(trunk, args.target, protocol, batch, args.fusion, dtype=args.input_dtype)
    if args.auto_optimizer:
        model, applied = auto_optimize(model, os.path.dirname(os.path.abspath(args.model2)))
        return model, {"auto_optimizer": applied}
    return model, {}


def proved_forms(trunk: Any, args: argparse.Namespace, protocol: Protocol) -> Tuple[Dict[str, Any], Dict[str, int]]:
    """({"file": the model of one video, of no more views than few_views() says, "one_view": for a CPU, what TSM_infer.py
    runs}, as write())."""
    from tsm.model.graph import build
    from tsm.model.surgery import few_views

    model, applied = write(trunk, args, few_views(protocol), 1)
    graphs = {"file": model}
    if args.target == "cpu":
        graphs["one_view"] = build(trunk, "view", protocol, dtype=args.input_dtype)
    return graphs, applied


def surgery(exported: Any, args: argparse.Namespace, protocol: Protocol, stated: bool, scratch: str) -> Tuple[Any, Dict[str, str]]:
    """(the trunk of the exported model, what the metadata say of how it was made and proved); prints that."""
    from tsm.model.proof import prove
    from tsm.model.surgery import check_exported, fold_constants, lift, read_source, weights_leave_inputs

    check_exported(exported, args.model1)
    rules = {"weights": weights_leave_inputs(exported)}
    folded, rules["fold"] = fold_constants(exported, args.model1, scratch)
    source = read_source(folded, args.model1, protocol, stated)
    trunk, counts = lift(source, protocol)
    graphs, applied = proved_forms(trunk, args, protocol)
    rules.update(counts, **applied)
    proof = prove(exported, args.model1, source.batch, graphs, protocol, args.fusion, args.input_dtype)
    print("\n".join(["rule           matches"] + ["%-14s %d" % item for item in rules.items()]))
    for name, entry in proof.items():
        print("%s: largest difference of a probability %.1e (tolerance %.0e), top-1 agrees on %d of %d random videos%s" % (
            PRINTED[name], entry["largest_difference"], entry["tolerance"], entry["top1_agreement"], entry["videos"],
            " of %d views, not %d" % (entry["views"], protocol.views) if entry["views"] != protocol.views else ""))
    for entry in proof.values():
        if not entry["largest_difference"] <= entry["tolerance"]:
            raise UserError("%s: the modified graph differs from it by %.1e, so nothing was written; please report this model"
                            % (args.model1, entry["largest_difference"]))
    return trunk, {"tsm.source": os.path.basename(args.model1), "tsm.source_sha256": sha256(args.model1),
                   "tsm.rules": json.dumps(rules), "tsm.proof": json.dumps(proof)}


def carry_over(model: Any, args: argparse.Namespace, protocol: Protocol) -> Any:
    """The trunk of a model that this script wrote; UserError unless its proof is of what would be written now."""
    from tsm.model.graph import trunk_of
    from tsm.model.onnxfile import metadata
    from tsm.model.proof import still_holds

    try:
        trunk = trunk_of(model)
    except ValueError as error:
        raise UserError("%s: not as modify_onnx.py wrote it (%s); %s" % (args.model1, error, REMEDY))
    if not still_holds(metadata(model).get("tsm.proof", ""), proved_forms(trunk, args, protocol)[0]):
        raise UserError("%s: has no proof of the graphs that this version of the suite writes; %s" % (args.model1, REMEDY))
    print("%s: the same network, so its proof is carried over" % args.model1)
    return trunk


def main() -> None:
    args = get_args()
    import onnx

    from tsm.labels import METADATA, read_labels
    from tsm.model.onnxfile import load, metadata, protocol_of, set_metadata

    keep_freed_memory(1 << 30)  # the proof's activations come and go: without it a tenth of the time is the kernel's
    given = load(args.model1)
    known, protocol = metadata(given), protocol_of(given, args.model1)
    modified = settle(args, known)
    if args.protocol:
        stated = read_protocol(args.protocol)
        if "tsm.protocol" in known and stated != protocol:
            raise UserError("%s: was exported for another protocol than that of %s (%s); export the checkpoint again, or leave out "
                            "--protocol" % (args.model1, args.protocol, differences(protocol, stated)))
        protocol = stated
    if args.labels:
        known[METADATA] = json.dumps(read_labels(args.labels, protocol.classes))
    with replacing(args.model2) as part:
        if modified:
            trunk = carry_over(given, args, protocol)
        else:
            says = bool(args.protocol) or "tsm.protocol" in known
            if not says:
                print("%s: says nothing of its protocol; taken as %d segments, %d views, %d pixels" % (
                    args.model1, protocol.segments, protocol.views, protocol.size))
            trunk, facts = surgery(given, args, protocol, says, part)
            known.update(facts)
        model, _ = write(trunk, args, protocol, args.batch_size)
        onnx.checker.check_model(model)
        settled = {"tsm." + key: getattr(args, key) for key in CHOICES}
        set_metadata(model, {**known, **metadata(model), **settled, "tsm.version": __version__, "tsm.batch": str(args.batch_size)})
        onnx.save(model, part)
    print("wrote %s: input %s %s, output [%d, %d], views fused by %s, for %s" % (
        args.model2, [args.batch_size] + list(protocol.video_shape), args.input_dtype, args.batch_size, protocol.classes,
        args.fusion, args.target))


if __name__ == "__main__":
    run(main)

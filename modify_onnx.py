#!/usr/bin/env python3
"""Graph surgery on an exported TSM, and a proof that it is the same network.

    python3 modify_onnx.py -m1 tsm_bs1.onnx -m2 tsm_new_bs1.onnx -bs 1
    python3 modify_onnx.py -m1 tsm_bs1.onnx -m2 tsm_online.onnx --target online
    python3 modify_onnx.py -m1 tsm_new_bs1.onnx -m2 tsm_new_bs4.onnx -bs 4

Writes one canonical graph of any exporter's: `input` [bs, 48, 3, 256, 256] ->
`output` [bs, 174], the probabilities of the fused views; for --target online,
a frame and states -> the frame's class scores and the new states. Nodes are
recognised by what they COMPUTE. Both graphs run in ONNX Runtime on random
videos; over tolerance, or at any refusal, no file is written. The proof of a
model that this script wrote is carried over. See docs/how-it-works.md.
"""

import argparse
import json
import os
from typing import Any, Dict, Mapping, Tuple

from tsm import __version__
from tsm.cli import UserError, fail, parser, positive, run

# isort: split
import onnx

from tsm.files import replacing, sha256, write_text
from tsm.labels import METADATA, read_labels
from tsm.machine import keep_freed_memory
from tsm.model import aipp
from tsm.model.graph import build, trunk_of
from tsm.model.onnxfile import metadata, protocol_of, read_onnx, set_metadata
from tsm.model.proof import ALSO_PROVED, check_tolerance, in_words, prove, prove_online, still_holds, to_prove
from tsm.model.surgery import auto_optimize, check_exported, fold_constants, lift, read_source, shift_to_write, weights_leave_inputs
from tsm.protocol import FUSIONS, Protocol, differences, read_protocol

CHOICES = {"target": ("ascend", "cpu", "online"), "fusion": FUSIONS, "input_dtype": ("float32", "uint8", "aipp")}  # first: the default
WRITTEN_AS = {"guide": "ascend", **ALSO_PROVED["ascend"]}  # forms of tsm.model.graph.build()
FOR = {"ascend": "ATC", "cpu": "TSM_infer.py, TSM_stream.py and TSM_predict.py", "online": "TSM_predict.py and TSM_stream.py"}
REMEDY = "pass the exported model instead"


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("-m1", "--model1", required=True, metavar="FILE", help="the exported model, or one that this script wrote")
    cli.add_argument("-m2", "--model2", required=True, metavar="FILE", help="the model to write")
    cli.add_argument("-bs", "--batch_size", type=positive, default=1, metavar="N", help="videos of a batch (default: 1)")
    cli.add_argument("--target", choices=CHOICES["target"], help="ascend: for ATC; cpu; online: frame by frame (default: ascend)")
    cli.add_argument("--fusion", choices=CHOICES["fusion"], help="how views are fused: by mean scores, as the guide, or mean "
                     "probabilities, as mmaction2 (default: score)")
    cli.add_argument("--input_dtype", choices=CHOICES["input_dtype"], help="uint8: the graph normalises; aipp: ATC's AIPP "
                     "does, by the config that is written beside (default: float32)")
    cli.add_argument("--form", choices=WRITTEN_AS, help="ascend: the guide's graph, or in four dimensions throughout (default: guide)")
    cli.add_argument("--shift", choices=("bi-still", "bi-zero"), help="online: run weights of bi without what they see ahead")
    cli.add_argument("--auto_optimizer", action="store_true", help="ascend: also apply auto-optimizer's default knowledges")
    cli.add_argument("--protocol", metavar="FILE", help="what TSM_checkpoint.py wrote, for a model that does not say it")
    cli.add_argument("--labels", metavar="FILE", help="names of the classes, to be kept in the model")
    return cli.parse_args()


def settle(args: argparse.Namespace, known: Mapping[str, str]) -> bool:
    """Fill in the options of CHOICES that were not given; whether the model of these metadata is one that this script wrote.
    Raises UserError where an option is not what that was made with; exits with status 2 where options exclude each other."""
    modified = "tsm.target" in known
    for key, choices in CHOICES.items():
        if args.target == "online" and key == "fusion":
            if args.fusion or args.batch_size != 1:
                fail("--target online: takes one frame, so it has no batch and fuses no views; leave out -bs and --fusion", status=2)
            continue
        given, made = getattr(args, key), known.get("tsm." + key, "") if modified else choices[0]
        if made not in choices:
            raise UserError("%s: not as modify_onnx.py wrote it (its %s is %r); %s" % (args.model1, key, made, REMEDY))
        if modified and given not in (None, made):
            raise UserError("%s: was made with --%s %s, not %s; leave out --%s, or %s" % (args.model1, key, made, given, key, REMEDY))
        setattr(args, key, given or made)
    print("for %s (--target %s)" % (FOR[args.target], args.target))
    if args.shift and args.target != "online":
        fail("--shift: for --target online; an offline model has the shift that it was exported with (see --help)", status=2)
    only_npu = args.form or args.input_dtype == "aipp" or args.auto_optimizer
    if only_npu and args.target != "ascend" or args.auto_optimizer and args.form not in (None, "guide"):
        fail("--form, --auto_optimizer, --input_dtype aipp: for --target ascend, --auto_optimizer for the form guide (see --help)", 2)
    args.form = args.form or (known.get("tsm.ascend_form") if known.get("tsm.ascend_form") in WRITTEN_AS else "guide")
    return modified


def optimised(model: Any, args: argparse.Namespace) -> Tuple[Any, Dict[str, int]]:
    """(the model, how often auto-optimizer changed it), where that is asked for."""
    if not args.auto_optimizer:
        return model, {}
    model, applied = auto_optimize(model, os.path.dirname(os.path.abspath(args.model2)))
    return model, {"auto_optimizer": applied}


def proved_forms(trunk: Any, args: argparse.Namespace, protocol: Protocol) -> Tuple[Dict[str, Any], Dict[str, int]]:
    """(the graphs that a proof is of, see to_prove(); how often auto-optimizer changed the one there is then)."""
    graphs = to_prove(trunk, args.target, args.fusion, args.input_dtype, protocol)
    graphs["file"], applied = optimised(graphs["file"], args)
    return {"file": graphs["file"]} if args.auto_optimizer else graphs, applied


def surgery(given: Any, args: argparse.Namespace, protocol: Protocol, stated: bool, scratch: str) -> Tuple[Any, Protocol, Dict[str, str]]:
    """(the trunk of the exported model, its protocol, what the metadata say of how it was made and proved); prints that."""
    check_exported(given, args.model1)
    rules = {"weights": weights_leave_inputs(given)}
    folded, rules["fold"] = fold_constants(given, args.model1, scratch)
    source = read_source(folded, args.model1, protocol, stated)
    trunk, counts, found = lift(source, protocol)
    online = args.target == "online"
    protocol = shift_to_write(args.model1, protocol, found, stated, online, args.shift)
    graphs, applied = proved_forms(trunk, args, protocol)
    rules.update(counts, **applied)
    if online:
        proof = prove_online(given, args.model1, source.batch, graphs, trunk, protocol, args.input_dtype, found == protocol.shift)
    else:
        proof = prove(given, args.model1, source.batch, graphs, protocol, args.fusion, args.input_dtype)
    print("[INFO] rules, and how often each matched: " + ", ".join("%s %d" % item for item in rules.items()))
    print("recognised %d shifts and the head" % rules["shift"])
    for name, entry in proof.items():
        print(in_words(name, entry, protocol))
    if found != protocol.shift:
        print("bi-directional weights run causally (%s): not the exported network; measure it before you trust it" % protocol.shift)
    check_tolerance(proof, args.model1)
    approximates = {"tsm.approximates": "bi"} if protocol.shift in ("bi-still", "bi-zero") else {}
    return trunk, protocol, dict(approximates, **{
        "tsm.source": os.path.basename(args.model1), "tsm.source_sha256": sha256(args.model1), "tsm.rules": json.dumps(rules),
        "tsm.proof": json.dumps(proof)})


def carry_over(model: Any, args: argparse.Namespace, protocol: Protocol) -> Any:
    """The trunk of a model that this script wrote; UserError unless its proof is of what would be written now."""
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
    keep_freed_memory(1 << 30)  # the proof's activations come and go: without it a tenth of the time is the kernel's
    given = read_onnx(args.model1)
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
            trunk, protocol, facts = surgery(given, args, protocol, says, part)
            known.update(facts)
        form = WRITTEN_AS[args.form] if args.target == "ascend" else args.target
        model, _ = optimised(build(trunk, form, protocol, args.batch_size, args.fusion, dtype=args.input_dtype), args)
        onnx.checker.check_model(model)
        known.update({"tsm.ascend_form": args.form} if args.target == "ascend" else {})
        if args.input_dtype == "aipp":
            path = os.path.splitext(args.model2)[0] + ".cfg"
            write_text(path, aipp.config(protocol))
            print("wrote %s, for atc --insert_op_conf: the input is then uint8 [frames, %d, %d, 3]"
                  % (path, protocol.size, protocol.size))
        settled = {"tsm." + key: getattr(args, key) for key in CHOICES if getattr(args, key)}
        set_metadata(model, {**known, **metadata(model), **settled, "tsm.version": __version__, "tsm.batch": str(args.batch_size)})
        onnx.save(model, part)
    shape = protocol.frame_shape if args.target == "online" else protocol.video_shape
    print("wrote %s: input %s %s, output [%d, %d], %s, for %s" % (
        args.model2, [args.batch_size] + list(shape), args.input_dtype, args.batch_size, protocol.classes,
        "views fused by " + args.fusion if args.fusion else "the scores of a frame, and its shifts' states", WRITTEN_AS[args.form]
        if args.target == "ascend" else args.target))


if __name__ == "__main__":
    run(main)

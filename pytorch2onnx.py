#!/usr/bin/env python3
"""Export a TSM checkpoint to ONNX, with the command line of mmaction2's tool.

    python3 pytorch2onnx.py tsm_demo.pth --output-file tsm_bs1.onnx --softmax

For hosts without mmaction2 and mmcv. The config may be left out; it is read
without being run. What is known of the network is found out as
TSM_checkpoint.py does, or is what that wrote (--protocol). Output as there:
one row per VIEW, [6 * batch, 174] for Something-Something V2, class scores or,
with --softmax, probabilities; modify_onnx.py fuses the views.

The graph is written node by node from the loaded network, as tracing it would
run it at the batch size asked for. Batch normalisation is folded into the
convolutions in float64. One self-contained file, opset 11.
"""

import argparse
import json
import os

from tsm.cli import UserError, fail, one_line, parser, positive, run

# isort: split
import numpy as np

from tsm.checkpoint.identify import check_supported, facts_of, test_in_words
from tsm.files import replacing, sha256
from tsm.protocol import SHIFTS, SSV2, read_protocol, segments

VERIFIED = 1e-5  # of --verify, relative to the largest class score


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("config", nargs="?", default="", help="the config that the checkpoint was trained with, .py (optional)")
    cli.add_argument("checkpoint", help="the checkpoint, .pth")
    cli.add_argument("--output-file", default="tmp.onnx", metavar="FILE", help="default: %(default)s")
    cli.add_argument("--opset-version", type=int, default=11, choices=[11], help="11, as mmaction2's tool")
    cli.add_argument("--shape", type=positive, nargs="+", metavar="N", help="input shape: batch, frames of a video, 3, height, "
                     "width, as TSM_checkpoint.py prints it, 1 %s for Something-Something V2 (default: batch 1)"
                     % " ".join(map(str, SSV2.video_shape)))
    cli.add_argument("--protocol", default="", metavar="FILE", help="how the network is tested, as TSM_checkpoint.py wrote it "
                     "(default: what the config and the checkpoint say)")
    cli.add_argument("--segments", type=segments, metavar="N", help="frames of a view, where nothing else says it")
    cli.add_argument("--shift", choices=SHIFTS, help="the kind of shift that it was trained with, which the weights do not tell "
                     "(default: what is known of the file, else bi)")
    cli.add_argument("--softmax", action="store_true", help="end in a softmax per view")
    cli.add_argument("--verify", action="store_true", help="compare with PyTorch on random videos (some seconds each)")
    cli.add_argument("--show", action="store_true", help="print the graph")
    return cli.parse_args()


def main() -> None:
    args = get_args()
    import onnx

    from tsm.checkpoint import reader
    from tsm.model.graph import build
    from tsm.model.network import network_of, scores, trunk_from
    from tsm.model.onnxfile import session, set_metadata
    from tsm.model.proof import answer

    state, meta = reader.load(args.checkpoint)
    if args.protocol:
        protocol = read_protocol(args.protocol)
        for name, given in (("segments", args.segments), ("shift", args.shift)):
            if given not in (None, getattr(protocol, name)):
                raise UserError("%s: has %s %s, not the %s of --%s" % (args.protocol, name, getattr(protocol, name), given, name))
    else:
        facts = facts_of(args.checkpoint, state, meta, args.config, args.segments, args.shift or "")
        check_supported(facts, args.checkpoint)
        for note in facts.notes:
            print(one_line(note))
        protocol = facts.protocol
    args.shape = args.shape or [1] + list(protocol.video_shape)
    if tuple(args.shape[1:]) != protocol.video_shape:
        fail("--shape %s: %s takes BATCH %s (%d segments, %s)" % (
            " ".join(map(str, args.shape)), args.checkpoint, " ".join(map(str, protocol.video_shape)), protocol.segments,
            test_in_words(protocol)), status=2)
    batch, net = args.shape[0], network_of(state, args.checkpoint, protocol, args.softmax)
    model = build(trunk_from(net), "cpu", protocol, batch, softmax=args.softmax)
    about = meta.get("about")
    set_metadata(model, {
        **({"tsm.about": about} if isinstance(about, str) else {}),
        "tsm.checkpoint": os.path.basename(args.checkpoint), "tsm.checkpoint_sha256": sha256(args.checkpoint),
        "tsm.protocol": json.dumps(protocol._asdict()),
    })
    onnx.checker.check_model(model)
    if args.show:
        print(onnx.helper.printable_graph(model.graph))
    with replacing(args.output_file) as part:
        onnx.save(model, part)
        if args.verify:
            videos = np.random.RandomState(0).standard_normal((batch,) + protocol.video_shape).astype(np.float32)
            expected = scores(net, videos)
            runner = session(model, args.output_file)
            difference = float(np.abs(answer(runner, "input", videos, args.output_file) - expected).max() / np.abs(expected).max())
            if not difference <= VERIFIED:
                raise UserError("%s: differs from PyTorch by %.1e of the largest class score; this is a bug of the "
                                "exporter, please report it" % (args.output_file, difference))
            print("verified: within %.1e of PyTorch, relative to the largest class score" % difference)
    print("wrote %s: input %s, output [%d, %d] per view"
          % (args.output_file, list(args.shape), batch * protocol.views, protocol.classes))


if __name__ == "__main__":
    run(main)

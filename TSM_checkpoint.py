#!/usr/bin/env python3
"""Fetch a checkpoint if need be, check it, and say what it is and who says so.

    python3 TSM_checkpoint.py official
    python3 TSM_checkpoint.py work_dirs/epoch_50.pth --config my_config.py
    python3 TSM_checkpoint.py --list

The network is read from the weights. Segments, shift and test come from
--segments and --shift, --config (an mmaction2 config), the config that
mmaction2 keeps in the checkpoint, the table of published files and the file's
name, in this order; else they are Something-Something V2's, which is said.
Two sources that contradict each other on the network are an error that names
both (docs/checkpoints.md has the exceptions). Nothing in a file is run.

A file that this suite does not take ends with status 1 and a line that says
what it is. The file is only looked at: --output writes how the network is
tested, for --protocol of the later steps.

`official` and the names of --list are fetched from mmaction2's host. A download
counts only if its SHA-256 begins with the digits that its name ends in
(…-032aa4da.pth); a name without them is taken with a warning.
"""

import argparse
import contextlib
import os
from typing import Optional

from tsm.checkpoint import identify, published
from tsm.cli import UserError, check_outputs, one_line, parser, run
from tsm.files import sha256, write_json
from tsm.labels import read_labels
from tsm.protocol import SHIFTS, SSV2, segments
from tsm.workfolder import PROTOCOL


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("checkpoint", nargs="?", help="a file, an http(s) address, a name of --list, or `official`")
    cli.add_argument("--list", action="store_true", help="print the table of published checkpoints")
    cli.add_argument("--config", default="", metavar="FILE", help="the mmaction2 config that it was trained with, .py")
    cli.add_argument("--segments", type=segments, metavar="N", help="frames of a view, where nothing else says it")
    cli.add_argument("--shift", choices=SHIFTS, help="the kind of shift that it was trained with (default: what is known of "
                     "the file, else bi)")
    cli.add_argument("--labels", metavar="FILE", help="names of the classes, to check that they are as many as the network has")
    cli.add_argument("--output", metavar="FILE", help="write the protocol to FILE, as %s for --protocol of later steps" % PROTOCOL)
    cli.add_argument("--output_dir", default=".", metavar="DIR", help="where a fetched file goes (default: here)")
    args = cli.parse_args()
    if bool(args.checkpoint) == args.list:
        cli.error("give a checkpoint, or --list")
    return args


def address_of(what: str) -> str:
    """The address of what is to be fetched; empty for a file that is here."""
    if "://" in what:
        return what
    row = None if os.path.isfile(what) else published.by_name(what)
    return published.address(row) if row else ""


def tell(found: identify.Facts, where: str) -> None:
    """Print what the checkpoint is, a line a fact, and where that is from."""
    digest = sha256(where)
    print("checkpoint: %s\nsha256: %s" % (where, digest))
    for what, value, origin in identify.table(found):
        print("%s: %s (%s)" % (what, one_line(value), one_line(origin)))
    for what, value in found.frames.items():
        print("%s: %s" % (what, value))
    print("shape: %s" % " ".join(map(str, (1,) + found.protocol.video_shape)))
    row = published.by_sha256(digest)
    if row and row.top1 is not None:
        print("published: top-1 %.2f %% on %s, views fused by %s (mmaction2)" % (row.top1, row.data, published.AVERAGE_CLIPS))
    for note in found.notes:
        print(one_line(note))


def hand_on(found: identify.Facts, where: str, output: Optional[str]) -> None:
    """Write what later steps need to know, or say how, if they need to."""
    if output:
        write_json(output, dict(found.protocol._asdict(), network=found.network, average_clips=found.average_clips, **found.frames,
                                checkpoint=where, fusion=identify.fusion_of(found)[0]))
        print("wrote %s" % output)
    elif found.protocol != SSV2:
        print("note: it is not tested as on Something-Something V2; by hand, write how by --output %s, for --protocol of later steps"
              % PROTOCOL)


def main() -> None:
    args = get_args()
    if args.list:
        print(published.listing())
        return
    url = address_of(args.checkpoint)
    where = published.local_path(url, args.output_dir) if url else args.checkpoint
    if not url and not os.path.exists(where):
        raise UserError("%s: no such file, nor a name of --list; check the path" % where)
    given = [path for path in (where, args.config, args.labels) if path]
    check_outputs({"--output": args.output}, given, None if args.output_dir == os.curdir else args.output_dir)
    fresh = published.fetch(url, where) if url else False
    from tsm.checkpoint import reader
    from tsm.model.network import network_of

    try:
        state, meta = reader.load(where)
    except UserError:
        if fresh and published.digest_in(where) is None:  # a page that says "not found" is no reason not to fetch it again
            with contextlib.suppress(OSError):
                os.remove(where)
        raise
    found = identify.facts_of(where, state, meta, args.config, args.segments, args.shift or "")
    tell(found, where)
    identify.check_supported(found, where)
    network_of(state, where, found.protocol)
    if args.labels:
        read_labels(args.labels, found.protocol.classes)
    hand_on(found, where, args.output)


if __name__ == "__main__":
    run(main)

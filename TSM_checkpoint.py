#!/usr/bin/env python3
"""Fetch a checkpoint if need be, check it, and say what it is: network, classes, segments, test, and what says so.

    python3 TSM_checkpoint.py official
    python3 TSM_checkpoint.py tsm_r50_256h_1x1x8_50e_sthv2_rgb_20210816-032aa4da.pth
    python3 TSM_checkpoint.py work_dirs/epoch_50.pth --config my_config.py

Exit status 1, with one line that says what the file is, where this suite does not take it. The network is read from the
weights; segments, shift_div and the test from --segments, --config (an mmaction2 config, which is read and not run), the
config that mmaction2 keeps in the checkpoint, and the file's name, in this order, or else Something-Something V2's. Nothing
in the file runs.

`official` is the published TSM ResNet-50 for Something-Something V2. By the publishing convention of OpenMMLab the name ends
in a dash and the first 8 hex digits of the file's SHA-256 (`…-032aa4da.pth`); a download counts only if they agree. A name
without them is taken with a warning. A download is resumable: one that was interrupted goes on from its last byte, and a file
that is already there and right is not fetched again. Redirects are followed, and proxies are taken from the environment
(http_proxy, https_proxy, no_proxy).
"""

import argparse
import contextlib
import http.client
import os
import re
import socket
import ssl
import sys
import urllib.error
import urllib.request
from typing import Any, Optional

from tsm import __version__
from tsm.cli import UserError, first_line, parser, positive, run
from tsm.files import CHUNK, part_name, sha256

OFFICIAL = ("https://download.openmmlab.com/mmaction/recognition/tsm/tsm_r50_1x1x8_50e_sthv2_rgb/"
            "tsm_r50_256h_1x1x8_50e_sthv2_rgb_20210816-032aa4da.pth")
USER_AGENT = "tsm-offline-inference/" + __version__  # some hosts answer 403 to urllib's own
TIMEOUT = 30  # seconds without a byte before a connection is given up
BY_HAND = "or fetch it with a browser or on another machine and pass its path"


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("checkpoint", help="a file, an http(s) address, or `official`")
    cli.add_argument("--config", default="", metavar="FILE", help="the mmaction2 config that it was trained with, .py")
    cli.add_argument("--segments", type=positive, metavar="N", help="frames of a view, where nothing else says it")
    cli.add_argument("--output_dir", default=".", metavar="DIR", help="where a fetched file goes (default: here)")
    cli.add_argument("--where", action="store_true", help="only print the path that the file has or will have")
    return cli.parse_args()


class Redirects(urllib.request.HTTPRedirectHandler):
    """As Python's own, and 308 (permanent) as 307 (temporary), which Python takes from 3.11 on."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


def expected_digest(name: str) -> Optional[str]:
    """The hex digits between the last dash and the suffix of a published checkpoint's name; None without them."""
    found = re.search(r"-([0-9a-f]{8,64})\.[^.]+$", name)
    return found.group(1) if found else None


def download(url: str, part: str) -> None:
    """Append to `part` what it still lacks of `url`; start over if the server cannot resume.

    Raises: UserError where the host cannot be reached, answers with an error, or breaks off.
    """
    from tqdm import tqdm

    have = os.path.getsize(part) if os.path.exists(part) else 0
    try:
        headers = dict({"User-Agent": USER_AGENT}, **({"Range": "bytes=%d-" % have} if have else {}))
        opener = urllib.request.build_opener(Redirects)
        with opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
            have = have if answer.status == 206 else 0
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length else None
            with open(part, "ab" if have else "wb") as file, tqdm(
                total=total, initial=have, unit="B", unit_scale=True, desc=os.path.basename(url)
            ) as bar:
                for piece in iter(lambda: answer.read(CHUNK), b""):
                    file.write(piece)
                    bar.update(len(piece))
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing left to send: `part` is whole, or wrong, which its digest tells
            return
        raise UserError("%s: the server answered %d %s; check the address, %s" % (url, error.code, error.reason, BY_HAND))
    except (urllib.error.URLError, ConnectionError, socket.timeout, ssl.SSLError, http.client.HTTPException,
            ValueError) as error:
        reason = first_line(getattr(error, "reason", error))
        raise UserError("%s: cannot be reached (%s); run again to go on, check the proxy settings, %s" % (url, reason, BY_HAND))
    if total is not None and os.path.getsize(part) != total:
        raise UserError("%s: the connection broke at %d of %d bytes; run again to go on"
                        % (url, os.path.getsize(part), total))


def local_path(url: str, folder: str) -> str:
    """The path in `folder` of the file at `url`."""
    name = os.path.basename(url.split("?")[0].split("#")[0])
    if not url.startswith(("http://", "https://")) or not name:
        raise UserError("%s: not the http(s) address of a file" % url)
    return os.path.normpath(os.path.join(folder, name))


def fetch(url: str, path: str) -> bool:
    """Have the file at `url` at `path`, whole; whether it was fetched just now."""
    name = os.path.basename(path)
    expected = expected_digest(name)
    if os.path.exists(path) and (expected is None or sha256(path).startswith(expected)):
        print("%s is already here" % path)
        return False
    part = part_name(path)
    download(url, part)
    actual = sha256(part)
    if expected is None:
        sys.stderr.write("warning: %s: its name carries no digest, so it was not checked\n" % name)
    elif not actual.startswith(expected):
        os.remove(part)
        raise UserError("%s: SHA-256 begins with %s, not %s as its name says, so it was removed; fetch it again"
                        % (url, actual[: len(expected)], expected))
    os.replace(part, path)
    return True


def main() -> None:
    args = get_args()
    url = OFFICIAL if args.checkpoint == "official" else args.checkpoint if "://" in args.checkpoint else ""
    where = local_path(url, args.output_dir) if url else args.checkpoint
    if args.where:
        print(where)
        return
    fresh = fetch(url, where) if url else False
    from tsm import checkpoint, facts
    from tsm.network import network_of

    try:
        state, meta = checkpoint.load(where)
    except UserError:
        if fresh and expected_digest(where) is None:  # a page that says "not found" is no reason not to fetch it again
            with contextlib.suppress(OSError):
                os.remove(where)
        raise
    found = facts.facts_of(where, state, meta, args.config, args.segments)
    print("checkpoint: %s\nsha256: %s" % (where, sha256(where)))
    for what, value, origin in facts.table(found):
        print("%s: %s (%s)" % (what, value, origin))
    if facts.note(found, where):
        print(facts.note(found, where))
    facts.check_supported(found, where)
    network_of(state, where, found.protocol, found.width)


if __name__ == "__main__":
    run(main)

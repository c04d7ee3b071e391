#!/usr/bin/env python3
"""Fetch a published checkpoint: resumable, checked, and moved into place only when it is whole.

    python3 TSM_checkpoint.py https://download.openmmlab.com/mmaction/recognition/tsm/tsm_r50_1x1x8_50e_sthv2_rgb/tsm_r50_256h_1x1x8_50e_sthv2_rgb_20210816-032aa4da.pth

By the publishing convention of OpenMMLab the name ends in a dash and the first 8 hex digits of the file's SHA-256
(`…-032aa4da.pth`); the download counts only when they agree. A name without them is taken with a warning. An
interrupted download goes on where it stopped; a file that is already there and right is not fetched again.
"""

import argparse
import http.client
import os
import re
import socket
import ssl
import sys
import urllib.error
import urllib.request
from typing import Optional

from tsm.cli import UserError, parser, run
from tsm.files import CHUNK, part_name, sha256

TIMEOUT = 30  # seconds without a byte before a connection is given up


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("url", help="http(s) address of the file")
    cli.add_argument("--output_dir", default=".", help="where the file goes, under its own name (default: here)")
    return cli.parse_args()


def expected_digest(name: str) -> Optional[str]:
    """The hex digits between the last dash and the suffix of a published checkpoint's name; None without them."""
    found = re.search(r"-([0-9a-f]{8,64})\.[^.]+$", name)
    return found.group(1) if found else None


def download(url: str, part: str) -> None:
    """Append to `part` what it still lacks of `url`; starts over where the server cannot resume."""
    from tqdm import tqdm

    have = os.path.getsize(part) if os.path.exists(part) else 0
    try:
        request = urllib.request.Request(url, headers={"Range": "bytes=%d-" % have} if have else {})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
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
        raise UserError("%s: the server answered %d %s; check the address" % (url, error.code, error.reason))
    except (urllib.error.URLError, ConnectionError, socket.timeout, ssl.SSLError, http.client.HTTPException,
            ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError("%s: cannot be reached (%s); run again to go on, or fetch it elsewhere and pass its path"
                        % (url, reason))
    if total is not None and os.path.getsize(part) != total:
        raise UserError("%s: the connection broke at %d of %d bytes; run again to go on"
                        % (url, os.path.getsize(part), total))


def main() -> None:
    args = get_args()
    name = os.path.basename(args.url.split("?")[0].split("#")[0])
    if not args.url.startswith(("http://", "https://")) or not name:
        raise UserError("%s: not the http(s) address of a file" % args.url)
    path = os.path.join(args.output_dir, name)
    expected = expected_digest(name)
    if os.path.exists(path) and (expected is None or sha256(path).startswith(expected)):
        print("%s is already here" % path)
        return
    part = part_name(path)
    download(args.url, part)
    actual = sha256(part)
    if expected is None:
        sys.stderr.write("warning: %s: its name carries no digest, so it was not checked\n" % name)
    elif not actual.startswith(expected):
        os.remove(part)
        raise UserError("%s: SHA-256 begins with %s, not %s as its name says, so it was removed; fetch it again"
                        % (args.url, actual[: len(expected)], expected))
    os.replace(part, path)
    print("%s  sha256 %s" % (path, actual))


if __name__ == "__main__":
    run(main)

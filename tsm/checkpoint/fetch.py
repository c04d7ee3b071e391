"""A file from an http(s) address: resumed where it was interrupted, and checked by the digest in its name.

By the publishing convention of OpenMMLab a checkpoint's name ends in a dash and the first 8 hex digits of its SHA-256.
"""

import http.client
import os
import socket
import ssl
import sys
import urllib.error
import urllib.request
from typing import Any

from tsm import __version__
from tsm.checkpoint.published import digest_in
from tsm.cli import UserError, first_line
from tsm.files import CHUNK, part_name, sha256

USER_AGENT = "tsm-offline-inference/" + __version__  # some hosts answer 403 to urllib's own
TIMEOUT = 30  # seconds without a byte before a connection is given up
BY_HAND = "fetch it with a browser or on another machine and pass its path"


class Redirects(urllib.request.HTTPRedirectHandler):
    """As Python's own, and 308 (permanent) as 307 (temporary), which Python takes from 3.11 on."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


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
        raise UserError("%s: the server answered %d %s; check the address, or %s" % (url, error.code, error.reason, BY_HAND))
    except (urllib.error.URLError, ConnectionError, socket.timeout, ssl.SSLError, http.client.HTTPException,
            ValueError) as error:
        reason = first_line(getattr(error, "reason", error))
        raise UserError("%s: cannot be reached (%s); run again to go on, check the proxy settings, or %s" % (url, reason, BY_HAND))
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
    expected = digest_in(name)
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

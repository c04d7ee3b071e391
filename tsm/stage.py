#!/usr/bin/env python3
"""Run one stage of a chain: show its command, time it, and skip it where its result is already there.

    python3 tsm/stage.py export --in tsm.pth --out tsm_bs1.onnx -- python3 pytorch2onnx.py tsm.pth --output-file tsm_bs1.onnx

Keeps `stages.json` in the working directory: per stage its command, the digests of what went in (the --in files, the
scripts, the suite's shared code, the installed versions of its requirements) and of what came out (--out), its seconds
and its peak memory. A stage is skipped when all of that still holds; one without --out always runs. The exit status is
the command's own; `stages.json` learns of a stage only once it has succeeded.
"""

import argparse
import glob
import hashlib
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional

SUITE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, SUITE)

from tsm.cli import UserError, parser, run  # noqa: E402
from tsm.files import read_json, sha256, write_json  # noqa: E402

STATE = "stages.json"


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("name", help="the stage's name in stages.json and in the report")
    cli.add_argument("--title", help="the heading to print (default: the name)")
    cli.add_argument("--in", dest="inputs", action="append", default=[], metavar="PATH", help="file or folder it reads")
    cli.add_argument("--out", dest="outputs", action="append", default=[], metavar="PATH", help="file or folder it makes")
    cli.add_argument("--tee", metavar="FILE", help="also keep what the command prints on stdout in FILE")
    cli.add_argument("command", nargs="+", help="after --: the command, run as it stands")
    return cli.parse_args()


def digest(path: str) -> Optional[str]:
    """SHA-256 of a file, or of the names and contents of a folder's files; None where there is nothing."""
    if os.path.isdir(path):
        names = sorted(name for name in os.listdir(path) if not name.startswith("."))
        parts = [name + (digest(os.path.join(path, name)) or "") for name in names]
        return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
    return sha256(path) if os.path.exists(path) else None


def code(command: List[str]) -> str:
    """Digest of what decides how the command works: its script, the shared modules, the requirements' versions."""
    scripts = [word for word in command if word.endswith((".py", ".sh")) and os.path.isfile(word)]
    files = scripts + sorted(glob.glob(os.path.join(SUITE, "tsm", "*.py")))
    with open(os.path.join(SUITE, "requirements.txt"), encoding="utf-8") as file:
        wanted = {re.split("[^A-Za-z0-9-]", line, 1)[0].lower().replace("-", "_") for line in file if line[:1].isalpha()}
    found = {os.path.basename(path) for place in sys.path for path in glob.glob(os.path.join(place, "*.dist-info"))}
    versions = sorted(name for name in found if name.split("-")[0].lower().replace("-", "_") in wanted)
    return hashlib.sha256(repr([[sha256(path) for path in files], versions, sys.version]).encode()).hexdigest()


def read_state() -> Dict[str, Any]:
    try:
        state = read_json(STATE)
        return state if isinstance(state, dict) else {}
    except (UserError, FileNotFoundError):
        return {}  # nothing is known to be done


def execute(command: List[str], tee: Optional[str]) -> int:
    """Run the command; its exit status, as a shell would give it. Signals meant for us reach it too."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE if tee else None)
    except OSError as error:
        raise UserError("%s: %s; is it installed and on the PATH?" % (command[0], error.strerror))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the command as well, which answers for both
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    if tee and process.stdout:
        with open(tee, "wb") as file:
            for line in process.stdout:
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
                file.write(line)
    status = process.wait()
    return status if status >= 0 else 128 - status


def main() -> None:
    args = get_args()
    print("\n== %s" % (args.title or args.name))
    print("$ " + " ".join(shlex.quote(word) for word in args.command), flush=True)
    known = {
        "command": args.command,
        "code": code(args.command),
        "inputs": {path: digest(path) for path in args.inputs},
    }
    state = read_state()
    before = state.get(args.name, {})
    if args.outputs and all(before.get(key) == value for key, value in known.items()):
        if before.get("outputs") == {path: digest(path) for path in args.outputs}:
            print("up to date: %s (made in %.1f s)" % (", ".join(args.outputs), before["seconds"]))
            return
    start = time.time()
    status = execute(args.command, args.tee)
    if status:
        sys.exit(status)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    missing = [path for path in args.outputs if not os.path.exists(path)]
    if missing:
        raise UserError("%s: not made by the command above, though it reported success" % missing[0])
    state = read_state()
    state[args.name] = dict(
        known,
        outputs={path: digest(path) for path in args.outputs},
        seconds=round(time.time() - start, 3),
        peak_mb=round(usage.ru_maxrss / 1024, 1),  # of the largest process
    )
    write_json(STATE, state)


if __name__ == "__main__":
    run(main)

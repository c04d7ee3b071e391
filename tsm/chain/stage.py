#!/usr/bin/env python3
"""Run one stage of a chain: show its command, time it, and skip it if its result is already there.

    python3 tsm/chain/stage.py export --in tsm.pth --out tsm_bs1.onnx -- python3 pytorch2onnx.py tsm.pth --output-file tsm_bs1.onnx

Keeps `stages.json` in the working directory: per stage its command, the digests of what went in (the --in files, the
script and what it imports of the suite, the installed versions of the suite's requirements) and of what came out (--out),
its seconds, its peak memory, when it ended and what it printed. A stage is skipped when all of that still holds; one without
--out always runs. A script that sees by itself what is left to do is run even so (--check); where it changed nothing, the
seconds and the memory stay those of the run that did the work. The exit status is the command's own; `stages.json` learns of
a stage only once it has succeeded.

`run.log` has all that a stage printed, on stdout and on stderr, and with what status it failed. Lines of stdout that begin with [INFO]
or [DEBUG], as ais_bench has them, are for that alone; the others are shown too.
"""

import argparse
import contextlib
import fcntl
import glob
import hashlib
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import termios
import threading
import time
from modulefinder import ModuleFinder
from typing import Any, BinaryIO, Dict, List, NoReturn, Optional, Tuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # of a script in a folder of a package

from tsm import SUITE
from tsm.chain.npu import remedy
from tsm.cli import fail, parser, run
from tsm.files import sha256, write_json
from tsm.machine import die_with_parent, processor_name
from tsm.workfolder import LOG, STAGES, now, read_stages

KILLED = 128 + signal.SIGKILL  # as a shell gives it
DETAILS = b"[INFO]", b"[DEBUG]"  # how lines for run.log alone begin
LINGERS = 5  # seconds that the end of stderr is waited for where a process that the command left behind holds it


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("name", help="the stage's name in stages.json and in the report")
    cli.add_argument("--title", help="the heading to print (default: the name)")
    cli.add_argument("--in", dest="inputs", action="append", default=[], metavar="PATH", help="file or folder it reads")
    cli.add_argument("--out", dest="outputs", action="append", default=[], metavar="PATH", help="file or folder it makes")
    cli.add_argument("--check", action="store_true", help="run it even where its results are there")
    cli.add_argument("--measure", metavar="FILE", help="its result is what it prints, kept in FILE, and is this machine's")
    cli.add_argument("--say", action="store_true", help="where it is skipped, print again what it printed")
    cli.add_argument("command", nargs="+", help="after --: the command, run as it stands")
    return cli.parse_args()


def digest(path: str) -> Optional[str]:
    """SHA-256 of a file, or of the names and contents of a folder's files; None if there is nothing."""
    if os.path.isdir(path):
        names = sorted(name for name in os.listdir(path) if not name.startswith("."))
        parts = [name + (digest(os.path.join(path, name)) or "") for name in names]
        return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
    return sha256(path) if os.path.exists(path) else None


def imports(path: str) -> List[str]:
    """A Python file, and the suite's own that it imports, at its top or inside a function, by itself or through another."""
    finder: Any = ModuleFinder([SUITE, os.path.dirname(os.path.abspath(path))])
    with contextlib.suppress(SyntaxError, ValueError):  # running it will tell
        finder.run_script(path)
    return sorted({path} | {module.__file__ for module in finder.modules.values() if module.__file__})


def code(command: List[str]) -> str:
    """Digest of what decides how a command works: its scripts, what they import of the suite, the requirements' versions."""
    scripts = [word for word in command if word.endswith((".py", ".sh")) and os.path.isfile(word)]
    files = [file for script in scripts for file in (imports(script) if script.endswith(".py") else [script])]
    with open(os.path.join(SUITE, "requirements.txt"), encoding="utf-8") as file:
        lines = [line for line in file if line[:1].isalpha()]
    wanted = {re.split("[^A-Za-z0-9-]", line, maxsplit=1)[0].lower().replace("-", "_") for line in lines}
    found = {os.path.basename(path) for place in sys.path for path in glob.glob(os.path.join(place, "*.dist-info"))}
    versions = sorted(name for name in found if name.split("-")[0].lower() in wanted)
    return hashlib.sha256(repr([[sha256(path) for path in files], versions, sys.version]).encode()).hexdigest()


def execute(command: List[str], copies: List[str]) -> Tuple[int, str]:
    """Run the command; (its exit status, as a shell would give it, what was shown of its stdout). All that it prints is
    added to run.log, its stdout is what the `copies` hold. Signals meant for us reach the command too."""
    process: Optional["subprocess.Popen[bytes]"] = None
    told: List[int] = []
    shown: List[bytes] = []

    def hand_on(number: int, _: Any) -> None:
        told.append(number)
        if process:
            process.terminate()

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, hand_on)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(LOG, "ab", buffering=0))
        files: List[Any] = [log] + [stack.enter_context(open(path, "wb")) for path in copies]
        errors, theirs = _channel()
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs)
        except OSError as error:
            give_up("%s: %s; is it installed and on the PATH?" % (command[0], error.strerror))
        finally:
            os.close(theirs)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the command as well, which answers for both
        if told:  # while it was started
            process.terminate()
        relay = threading.Thread(target=_relay, args=(errors, log), daemon=True)
        relay.start()
        for line in process.stdout or ():
            for file in files:
                file.write(line)
            if not line.startswith(DETAILS):
                shown.append(line)
                _show(line)
        status = process.wait()
        relay.join(LINGERS)
    return (status if status >= 0 else 128 - status), b"".join(shown).decode("utf-8", "replace")


def _channel() -> Tuple[int, int]:
    """(our end, the command's) of what carries its stderr: a terminal where ours is one, so that its bars are shown as ever."""
    with contextlib.suppress(OSError):  # a container may have no terminal to give
        if os.isatty(2):
            ours, theirs = os.openpty()
            mode = termios.tcgetattr(theirs)
            mode[1] &= ~termios.OPOST  # the real one ends lines
            termios.tcsetattr(theirs, termios.TCSANOW, mode)
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, fcntl.ioctl(2, termios.TIOCGWINSZ, bytes(8)))
            return ours, theirs
    return os.pipe()


def _relay(errors: int, log: BinaryIO) -> None:
    """Show what comes as it comes, and log it line by line, of a bar the last state."""
    line = b""
    while True:
        try:
            piece = os.read(errors, 1 << 16)
        except OSError:  # of a terminal whose last writer has ended
            piece = b""
        *lines, line = (line + piece).split(b"\n")
        with contextlib.suppress(OSError):  # the disk is full, which its work will tell
            for one in lines + [line] * (not piece and line != b""):
                log.write(one.rstrip(b"\r").rpartition(b"\r")[2] + b"\n")
        if not piece:
            return
        with contextlib.suppress(OSError):  # our terminal, or its reader, is gone
            while piece:
                piece = piece[os.write(2, piece) :]


def _show(line: bytes) -> None:
    """Print a line of the command's. A terminal that is gone is no fault; a reader that has left ends the stage."""
    try:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError:
        pass


def peak_mb() -> float:
    """Peak memory, MB, of the largest process that the command was made of."""
    return round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 1)


def is_done(before: Dict[str, Any], known: Dict[str, Any], outputs: List[str]) -> bool:
    """Does what stages.json holds of a stage still hold, inputs, code and results?"""
    if not outputs or any(before.get(key) != value for key, value in known.items()):
        return False
    return bool(before.get("outputs") == {path: digest(path) for path in outputs})


def note(text: str) -> None:
    """Add a line to run.log."""
    with open(LOG, "a", encoding="utf-8", errors="surrogateescape") as log:
        log.write("%s\n" % text)


def give_up(said: str, status: int = 1) -> NoReturn:
    """End with a line, which run.log has too."""
    note("error: " + said)
    fail(said, status)


def main() -> None:
    args = get_args()
    die_with_parent(signal.SIGTERM)  # run_all.sh, killed, leaves nothing at work
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what runs in its background
    heading = "\n== %s\n$ %s" % (args.title or args.name, " ".join(shlex.quote(word) for word in args.command))
    print(heading, flush=True)
    outputs = args.outputs + ([args.measure] if args.measure else [])
    known = {
        "command": args.command,
        "code": code(args.command),
        "inputs": dict({path: digest(path) for path in args.inputs}, **({"machine": processor_name()} if args.measure else {})),
    }
    before = read_stages().get(args.name, {})
    if not args.check and is_done(before, known, outputs):
        print("up to date: %s (made in %.1f s)" % (", ".join(outputs), before["seconds"]) + ("\n" + before["said"] if args.say else ""))
        return
    note(heading)
    start = time.time()
    status, said = execute(args.command, [args.measure] if args.measure else [])
    if status == KILLED:
        give_up("%s: its command was killed (SIGKILL), most likely because memory ran out: it had used up to %.0f MB; free some, "
               "or allow the container more, and run the same command again" % (args.name, peak_mb()), status)
    if status and args.command[0] == "atc" and remedy(said):
        give_up("atc: failed" + remedy(said), status)
    if status:
        note("ended with status %d" % status)
        sys.exit(status)
    missing = [path for path in outputs if not os.path.exists(path)]
    if missing:
        give_up("%s: not made by the command above, though it reported success" % missing[0])
    if not args.measure and is_done(before, known, outputs):  # it found all done
        return
    entry = dict(known, outputs={path: digest(path) for path in outputs}, seconds=round(time.time() - start, 3), peak_mb=peak_mb(),
                 ended=now(), said=said)
    write_json(STAGES, dict(read_stages(), **{args.name: entry}), "stages")


if __name__ == "__main__":
    run(main)

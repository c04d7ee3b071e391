"""How every script of the suite meets its user: arguments, one-line errors, exit status.

Exit status: 0 done; 1 the work failed, with one line on stderr; 2 bad usage, with one line on stderr;
130 interrupted.
"""

import argparse
import errno
import os
import sys
from typing import Callable, NoReturn, Optional

from tsm import __version__


class UserError(Exception):
    """What the user can mend. Its text is one line that names the file or value, then the remedy."""


class Corrupt(Exception):
    """A clip that cannot be used as it is; the text says what is wrong, and with which frame where that is known."""


def first_line(error: object, limit: int = 160) -> str:
    """The first line of a foreign error's text, or its type's name where it has none; at most `limit` characters."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:limit]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.stderr.write("%s: error: %s (see --help)\n" % (self.prog, " ".join(message.split())))
        sys.exit(2)


def parser(doc: Optional[str]) -> argparse.ArgumentParser:
    """An argument parser whose --help is the script's docstring and whose errors are one line, exit status 2."""
    made = _Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    made.add_argument("--version", action="version", version="%(prog)s " + __version__)
    return made


def positive(text: str) -> int:
    """argparse type: an int of at least 1."""
    return _at_least(text, 1)


def non_negative(text: str) -> int:
    """argparse type: an int of at least 0."""
    return _at_least(text, 0)


def _at_least(text: str, low: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError("%r is not a whole number" % text)
    if value < low:
        raise argparse.ArgumentTypeError("%s is below %d" % (text, low))
    return value


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's main() and exit; what a user can cause ends in one line on stderr, never in a traceback."""
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to go on", status=130)
    except BrokenPipeError:  # the reader of our output left: nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(describe(error))
    except MemoryError:
        _fail("out of memory; use a smaller batch size or fewer workers")
    sys.exit(0)


def describe(error: OSError) -> str:
    """One line for an operating system error: the file, what went wrong, what to do."""
    remedies = {
        errno.ENOSPC: "free some space and run the same command again",
        errno.EDQUOT: "free some space and run the same command again",
        errno.EROFS: "choose a folder that can be written to",
        errno.EACCES: "check its permissions or choose another folder",
        errno.ENOENT: "check the path",
        errno.ENOTDIR: "a folder is needed there",
        errno.EISDIR: "a file is needed there",
    }
    name = error.filename if error.filename is not None else "input/output"
    remedy = remedies.get(error.errno)
    return "%s: %s%s" % (os.fsdecode(name), error.strerror or error, "; " + remedy if remedy else "")


def _fail(message: str, status: int = 1) -> NoReturn:
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(message.split()))
    sys.stderr.write("%s: error: %s\n" % (os.path.basename(sys.argv[0]), line))
    sys.exit(status)

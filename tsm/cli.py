"""How every script of the suite meets its user: arguments, one-line errors, exit status, text in any locale.

Exit status: 0 done; 1 the work failed, with one line on stderr; 2 bad usage, with one line on stderr; 128 + the
signal's number if it was ended by Ctrl-C (130), SIGTERM (143) or SIGHUP (129), which all keep what was done.
"""

import argparse
import codecs
import contextlib
import errno
import functools
import math
import os
import re
import signal
import stat
import sys
import tempfile
import unicodedata
from typing import Any, Callable, Dict, Iterable, Iterator, Mapping, NoReturn, Optional, Tuple

from tsm import __version__

MOST_SECONDS = 10**6  # of a window: eleven days
AGREE_ON = 64  # videos whose answers are held against fp32's, unless --agreement says otherwise
# Options of before 1.0, taken until the next version; so are dashes where an underscore stands now.
RENAMED = {"--page": "--html", "--stride": "--every"}
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # how a user, a container, a scheduler and a closed terminal end a run
_SPACE = " \t\r\n\v\f"  # not those that a name may hold, such as U+00A0 and U+3000


class UserError(Exception):
    """What the user can mend. Its text is one line that names the file or value, then the remedy."""


class Corrupt(Exception):
    """A clip that cannot be used as it is; the text says what is wrong, and with which frame where that is known."""


class Killed(Corrupt):
    """A clip whose decoder was killed. That is not the clip's fault, so no list leaves it out: another run tries it again."""


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP, the argument, which is like Ctrl-C wherever that is handled."""


def status_of(interrupt: KeyboardInterrupt) -> int:
    """The exit status of a run that a signal ended."""
    return 128 + (interrupt.args[0] if isinstance(interrupt, Stopped) else signal.SIGINT)


def first_line(error: object, limit: int = 160) -> str:
    """The first line of a foreign error's text, or its type's name where it has none; at most `limit` characters."""
    lines = [line.strip(_SPACE) for line in re.split("[\r\n]+", str(error)) if line.strip(_SPACE)]
    return (lines or [type(error).__name__])[0][:limit]


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def,override]
        words = list(sys.argv[1:] if args is None else args)
        options = words[: words.index("--")] if "--" in words else words
        return super().parse_known_args([self._of_today(word) for word in options] + words[len(options) :], namespace)

    def _of_today(self, word: str) -> str:
        """A word of the command line, an option's old spelling made today's, with a note."""
        old, sign, value = word.partition("=")
        new = RENAMED.get(old, "--" + old[2:].replace("-", "_"))
        if not old.startswith("--") or old in self._option_string_actions or new not in self._option_string_actions:
            return word
        warn("%s is spelt %s now; the old spelling will go with the next version" % (old, new))
        return new + sign + value

    def error(self, message: str) -> NoReturn:
        fail("%s (see --help)" % message, status=2)


def parser(doc: Optional[str]) -> argparse.ArgumentParser:
    """An argument parser whose --help is the script's docstring and whose errors are one line, exit status 2."""
    form = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=26, width=80)
    made = _Parser(description=doc, formatter_class=form, allow_abbrev=False)  # type: ignore[arg-type]
    made.add_argument("--version", action="version", version="%(prog)s " + __version__)
    return made


def _between(text: str, low: int, high: float = math.inf, whole: bool = False) -> Any:
    """argparse type: the number in `text`, an int from `low` to `high`, or a finite number above `low`."""
    with contextlib.suppress(ValueError):
        value = int(text) if whole else float(text)
        if low <= value <= high and (whole or low < value < math.inf):
            return value
    wanted = ("whole number >= %d" if whole else "number > %d") % low + (" and <= %d" % high if high < math.inf else "")
    raise argparse.ArgumentTypeError("%r is no %s" % (text, wanted))


positive, non_negative = functools.partial(_between, low=1, whole=True), functools.partial(_between, low=0, whole=True)
camera_number = functools.partial(_between, low=0, high=2**31 - 1, whole=True)  # which OpenCV takes as a C int
above_zero, seconds = functools.partial(_between, low=0), functools.partial(_between, low=0, high=MOST_SECONDS)


def folder_name(text: str) -> str:
    """argparse type: a folder inside another one, without slashes at its end."""
    name = os.path.normpath(text) if text else ""
    if name in ("", ".", "/") or os.path.basename(name) == "..":
        raise argparse.ArgumentTypeError("%r names no folder of its own inside --output; the default is one" % text)
    return name


@contextlib.contextmanager
def progress(total: int, what: str, unit: str, ready: int = 0) -> Iterator[Callable[..., None]]:
    """A function to be told of what is done, as by tick(1); a note, as in tick(0, "host: 2"), stays until the next. Of
    `total` units, `ready` were done before. On a terminal it moves a bar; elsewhere it prints a line per 10 %."""
    from tqdm import tqdm

    done, out = ready, sys.stdout
    with tqdm(total=total, initial=ready, desc=what, unit=unit, disable=None) as bar:

        def tick(count: int = 1, note: Optional[str] = None) -> None:
            nonlocal done
            tenths, done = done * 10 // total, done + count
            if note is not None:
                bar.set_postfix_str(note, refresh=False)
            bar.update(count)
            if bar.disable and done * 10 // total > tenths:
                print("%s: %d %% (%d of %d)" % (what, done * 100 // total, done, total), file=out, flush=True)

        yield tick


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's main() and exit; what a user can cause ends in one line on stderr, never in a traceback."""
    use_utf8()
    ours = [number for number in STOPPING[1:] if signal.getsignal(number) == signal.SIG_DFL]  # not what nohup has ignored
    try:
        for number in ours:
            signal.signal(number, _stop)
        main()
        if sys.stdout:  # None where it is closed
            sys.stdout.flush()
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt as interrupt:
        fail("interrupted; run the same command again to go on", status=status_of(interrupt))
    except BrokenPipeError:  # the reader of our output left: nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        fail(describe(error))
    except MemoryError:
        fail("out of memory; use a smaller batch size or fewer workers")
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
    sys.exit(0)


def _stop(number: int, frame: object) -> NoReturn:
    """Signal handler: raise Stopped, once; a second signal does not keep the first one's results from being written."""
    for one in STOPPING[1:]:
        signal.signal(one, signal.SIG_IGN)
    for output in (1, 2):  # a terminal that is gone fails every write
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(output).st_mode) and not os.isatty(output):
                os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    raise Stopped(number)


def use_utf8() -> None:
    """Make names of files mean the same in every locale, and printing fail in none.

    Lists, manifests and decoders hold names as UTF-8. Where Python would read the command line and the folders by
    another encoding (the locale is ISO-8859-1, GB18030, or C without PEP 538 and 540), the script is started again in
    UTF-8 mode (PEP 540), its output still in the locale's encoding. What that cannot show is escaped.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name != "utf-8":
        output = codecs.lookup(getattr(sys.stdout, "encoding", None) or "ascii").name
        if output != "ascii":  # a C locale knows nothing of the terminal
            os.environ.setdefault("PYTHONIOENCODING", output)
        with open("/proc/self/cmdline", "rb") as file:  # sys.argv does not give every byte back in every locale
            words = file.read().split(b"\0")[1:-1]
        os.execv(sys.executable, [os.fsencode(sys.executable), b"-X", b"utf8"] + words)
    codecs.register_error("readable", _readable)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # None where it is closed
            stream.reconfigure(errors="readable", line_buffering=True)  # a log is read while the work goes on


def _readable(error: Any) -> Tuple[bytes, int]:
    """Encoding error handler: bytes that came as surrogates are shown as UTF-8 if they are, all else is escaped."""
    return _decoded(error.object[error.start : error.end]).encode(error.encoding, "backslashreplace"), error.end


def _decoded(text: str) -> str:
    """`text` with its surrogates (PEP 383) read as UTF-8 where they are, and as \\xff where they are not."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates of another origin, as "\ud800" in a JSON file
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def describe(error: OSError) -> str:
    """One line for an operating system error: the file, what went wrong, what to do."""
    remedies = {
        errno.ENOSPC: "free some space and run the same command again",
        errno.EDQUOT: "free some space and run the same command again",
        errno.EROFS: "choose a folder that can be written to",
        errno.EACCES: "check its permissions or choose another folder",
        errno.ENOENT: "check the path",
        errno.EEXIST: "a folder is needed there; choose another",
        errno.ENOTDIR: "a folder is needed there; choose another",
        errno.EISDIR: "a file is needed there",
    }
    name = error.filename if error.filename is not None else "input/output"
    remedy = remedies.get(error.errno or 0)
    return "%s: %s%s" % (os.fsdecode(name), error.strerror or error, "; " + remedy if remedy else "")


def check_outputs(outputs: Mapping[str, Optional[str]], inputs: Iterable[str], folder: Optional[str] = None) -> None:
    """Before any work, refuse outputs that cannot be written; one that is an input or another output too is wrong usage.

    Args:
        outputs: {option: the file that it names, `-` for stdout, or None}.
        inputs: files that are not to be overwritten.
        folder: of outputs; made if it is not there.
    """
    given = {option: path for option, path in outputs.items() if path not in (None, "-")}
    taken: Dict[object, str] = {identity(path): path for path in inputs}
    if folder == "":
        fail("'' is no name of a folder (see --help)", status=2)
    for option, path in given.items():
        shown = "%s %s" % (option, path)
        other = taken.setdefault(identity(path), shown)
        if not os.path.basename(path):
            fail("%s %r is no name of a file (see --help)" % (option, path), status=2)
        if other != shown:
            fail("%s would overwrite %s; choose another name (see --help)" % (shown, other), status=2)
    if folder is not None:
        os.makedirs(folder, exist_ok=True)
        _check_writable(os.path.join(folder, ""))
    for path in given.values():
        _check_writable(path)


def identity(path: str) -> object:
    """What all names of one file have in common, and no two files; a path that is not there is itself."""
    try:
        found = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


def _check_writable(path: str) -> None:
    """OSError that names `path` unless a file can be made beside it, to replace it; a name that ends in / is a folder's."""
    place, name = os.path.split(path)
    try:
        if name and os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.NamedTemporaryFile(prefix=".%s." % name, dir=place or "."):
            pass
    except OSError as error:
        error.filename = path
        raise
    if name and os.path.exists(path) and not os.path.isfile(path):
        raise UserError("%s: is no regular file, so it cannot be replaced; choose another name" % path)


def one_line(message: str) -> str:
    """`message` without line breaks and with what a terminal would obey or hide escaped; every kind of space is kept."""
    return printable(re.sub("[ \t]*[\t\n\r\v\f]+[ \t]*", " ", message.strip(_SPACE)))


def printable(text: str) -> str:
    """`text` with what a terminal would obey or hide escaped, line breaks too; every kind of space is kept."""
    shown = (c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode() for c in _decoded(text))
    return "".join(shown)


def warn(message: str) -> None:
    """Print one line on stderr; the work goes on."""
    sys.stderr.write("%s: warning: %s\n" % (os.path.basename(sys.argv[0]), one_line(message)))


def complain(message: str) -> None:
    """Print one line on stderr about a part of the work that failed; the rest goes on."""
    sys.stderr.write("%s: error: %s\n" % (os.path.basename(sys.argv[0]), one_line(message)))


def fail(message: str, status: int = 1) -> NoReturn:
    """Print one line on stderr and exit."""
    complain(message)
    sys.exit(status)

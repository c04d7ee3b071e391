"""Work spread over processes that may crash, be killed or hang, each on an item of its own.

A decoder that meets a corrupt file can take its process down. multiprocessing.Pool then waits for ever, and
ProcessPoolExecutor gives up without telling which item it was; here the item is known and the others go on.
"""

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection, wait
from typing import Any, Callable, Dict, Generator, Iterable, List, Optional, Tuple

from tsm.cli import Corrupt, UserError
from tsm.machine import die_with_parent, keep_freed_memory

PATIENCE = 300.0  # seconds that one item may take
_NONE_LEFT = object()


def each(work: Callable[[Any], Any], items: Iterable[Any], count: int) -> Generator[Tuple[Any, Any], None, None]:
    """Yield (item, work(item)) for every item as it is done, in any order, computed in `count` processes.

    A result may be a Corrupt: the one that work raised, or one that says how the process crashed or how long it hung. Any
    other exception is raised here. Close the iterator (contextlib.closing) to end the processes at once.
    """
    context, left = multiprocessing.get_context("fork"), iter(items)
    running: Dict[Connection, Tuple[Any, Any, float]] = {}

    def start() -> Tuple[Any, Connection]:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(work, theirs, os.getpid()), daemon=True)
        process.start()
        theirs.close()  # so that the process's end is the end of the pipe
        return process, ours

    def assign(process: Any, pipe: Connection) -> None:
        item = next(left, _NONE_LEFT)
        if item is _NONE_LEFT:
            return _end(process, pipe)
        running[pipe] = process, item, time.monotonic() + PATIENCE
        pipe.send(item)

    try:
        for _ in range(count):
            assign(*start())
        while running:
            soonest = min(limit for _, _, limit in running.values())
            ready: List[Any] = wait(list(running), max(0.0, soonest - time.monotonic()))
            overdue = [pipe for pipe, (_, _, limit) in running.items() if limit < time.monotonic() and pipe not in ready]
            for pipe in ready + overdue:
                process, item, _ = running[pipe]
                error: Any = None
                if pipe in overdue:
                    result, error = None, Corrupt("decoding it takes more than %d s" % PATIENCE)
                    _end(process, pipe)
                else:
                    try:
                        result, error = pipe.recv()
                    except (EOFError, ConnectionResetError):
                        process.join()
                        result, error = None, _died(process.exitcode)
                del running[pipe]
                if error is not None and not isinstance(error, Corrupt):
                    _end(process, pipe)
                    raise error
                assign(*((process, pipe) if process.is_alive() else start()))
                yield item, result if error is None else error
    finally:
        for pipe, (process, _, _) in running.items():
            _end(process, pipe)


def unrolled(work: Callable[[Any], Iterable[Any]], items: Iterable[Any]) -> Generator[Tuple[Any, Any], None, None]:
    """Yield (item, value) for every value of every work(item), in order; each item has a process of its own.

    A process waits until its last value was taken, so memory is bounded. A Corrupt that ends an item is its last value, as
    is one that says how its process crashed or how long it hung. Any other exception is raised here.
    """
    context = multiprocessing.get_context("fork")
    for item in items:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_send_all, args=(work, item, theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            value: Any = None
            error: Optional[Exception] = None
            more = True
            while more:
                if not ours.poll(PATIENCE):
                    value, error, more = None, Corrupt("decoding it takes more than %d s" % PATIENCE), False
                else:
                    try:
                        value, error, more = ours.recv()
                    except (EOFError, ConnectionResetError):
                        process.join()
                        value, error, more = None, _died(process.exitcode), False
                if error is not None and not isinstance(error, Corrupt):
                    raise error
                if more or error is not None:
                    yield item, value if error is None else error
        finally:
            _end(process, ours)


def _end(process: Any, pipe: Connection) -> None:
    process.kill()
    process.join()
    pipe.close()


def _died(exitcode: Optional[int]) -> Exception:
    exitcode = exitcode or 0
    if exitcode in (-signal.SIGKILL, -signal.SIGTERM):
        return UserError("a worker process was killed, perhaps for want of memory; run the same command again, with a "
                         "smaller --num_worker if that was the reason")
    return Corrupt("the decoder crashed (%s)" % (signal.Signals(-exitcode).name if exitcode < 0 else exitcode))


def _begin() -> None:
    """Make this process a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    die_with_parent()
    keep_freed_memory()


def _send_all(work: Callable[[Any], Iterable[Any]], item: Any, pipe: Connection) -> None:
    _begin()
    try:
        for value in work(item):
            pipe.send((value, None, True))
        pipe.send((None, None, False))
    except Exception as error:
        pipe.send((None, error, False))


def _serve(work: Callable[[Any], Any], pipe: Connection, parent: int) -> None:
    _begin()
    while os.getppid() == parent:
        item = pipe.recv()
        result: Any = None
        failure = None
        try:
            result = work(item)
        except Exception as error:
            failure = error
        pipe.send((result, failure))

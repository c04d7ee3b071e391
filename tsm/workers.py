"""Work spread over processes that may crash, be killed or hang, each on an item of its own.

A decoder that meets a corrupt file can take its process down. multiprocessing.Pool then waits for ever, and
ProcessPoolExecutor gives up without telling which item it was; here the item is known and the others go on.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection, wait
from typing import Any, Callable, Dict, Generator, Iterable, List, Optional, Tuple

from tsm.cli import STOPPING, Corrupt, Killed
from tsm.machine import die_with_parent, keep_freed_memory

PATIENCE = 300.0  # seconds that one item, or one value of it, may take
_NONE_LEFT = object()


def each(work: Callable[[Any], Any], items: Iterable[Any], count: int, unrolled: bool = False) -> Generator[Tuple[Any, Any], None, None]:
    """(item, work(item)) for every item as it is done, in any order, computed in `count` processes.

    The processes are forked before this returns, so call it before a library starts threads, whose locks a fork would
    copy. If `unrolled`, work(item) gives many values, each of them is yielded, and a process waits until its last value
    was taken; with a count of 1 items come in order.

    A result may be a Corrupt: the one that work raised, or one that says how the process crashed or how long it hung,
    or a Killed, also where the memory was not enough. Any other exception is raised here. Close the iterator
    (contextlib.closing) to end the processes at once.
    """
    results = _each(work, items, count, unrolled)
    next(results)
    return results


def _each(work: Callable[[Any], Any], items: Iterable[Any], count: int, unrolled: bool) -> Generator[Tuple[Any, Any], None, None]:
    """A (None, None) once the processes are there, then what each() promises."""
    context, left = multiprocessing.get_context("fork"), iter(items)
    running: Dict[Connection, Tuple[Any, Any, float]] = {}

    def start() -> Tuple[Any, Connection]:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(work, unrolled, theirs, os.getpid()), daemon=True)
        process.start()
        theirs.close()  # so that the process's end is the end of the pipe
        return process, ours

    def assign(process: Any, pipe: Connection) -> None:
        item = next(left, _NONE_LEFT)
        if item is _NONE_LEFT:
            return _end(process, pipe)
        running[pipe] = process, item, time.monotonic() + PATIENCE
        with contextlib.suppress(OSError):  # killed meanwhile: the pipe's end tells so
            pipe.send(item)

    try:
        for _ in range(count):
            assign(*start())
        yield None, None
        while running:
            soonest = min(limit for _, _, limit in running.values())
            ready: List[Any] = wait(list(running), max(0.0, soonest - time.monotonic()))
            overdue = [pipe for pipe, (_, _, limit) in running.items() if limit < time.monotonic() and pipe not in ready]
            for pipe in ready + overdue:
                process, item, _ = running.pop(pipe)
                more, value, error = _received(process, pipe, pipe in overdue)
                if error is not None and not isinstance(error, Corrupt):
                    _end(process, pipe)
                    raise error
                if more:
                    running[pipe] = process, item, time.monotonic() + PATIENCE
                else:
                    assign(*((process, pipe) if process.is_alive() else start()))
                if error is not None or more or not unrolled:
                    yield item, value if error is None else error
    finally:
        for pipe, (process, _, _) in running.items():
            _end(process, pipe)


def _received(process: Any, pipe: Connection, overdue: bool) -> Tuple[bool, Any, Any]:
    """(whether more will come of the item, a value of it, what went wrong with it) from a process that wrote, ended or hangs."""
    if overdue:
        _end(process, pipe)
        return False, None, Corrupt("decoding it takes more than %d s; a long video is for TSM_predict.py --window" % PATIENCE)
    try:
        return pipe.recv()  # type: ignore[no-any-return]
    except (EOFError, OSError):
        process.join()
        pipe.close()
    code = process.exitcode or 0
    if code == -signal.SIGKILL:
        return False, None, Killed("its decoder was killed, perhaps for want of memory; run the same command again, with a smaller "
                                   "--num_worker if that was the reason")
    return False, None, Corrupt("the decoder crashed (%s)" % (signal.Signals(-code).name if code < 0 else code))


def _end(process: Any, pipe: Connection) -> None:
    process.kill()
    process.join()
    pipe.close()


@atexit.register
def _end_all() -> None:
    """Before multiprocessing asks them to end by a signal that they ignore, and waits."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()  # type: ignore[attr-defined]


def _serve(work: Callable[[Any], Any], unrolled: bool, pipe: Connection, parent: int) -> None:
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)  # it is the parent's to handle
    die_with_parent()
    keep_freed_memory()
    while os.getppid() == parent:
        item = pipe.recv()
        result: Any = None
        failure: Optional[Exception] = None
        try:
            if unrolled:
                for value in work(item):
                    pipe.send((True, value, None))
            else:
                result = work(item)
        except MemoryError:
            failure = Killed("it needs more memory than there is; run the same command again, with a smaller --num_worker")
        except Exception as error:
            failure = error
        pipe.send((False, result, failure))

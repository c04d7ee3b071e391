"""The folder of tensors of a list of clips: what is right in it is kept, what is missing or out of date is made; restartable."""

import contextlib
import os
import re
import shutil
import time
from typing import Callable, Container, Dict, Generator, List, NamedTuple, Tuple

import numpy as np

from tsm.cli import Corrupt, UserError
from tsm.files import replacing
from tsm.infer.journal import Journal, Origin, keys_of
from tsm.samples import Clip, checksum
from tsm.video.clips import basis, empty_for, fill, table_for
from tsm.workers import each
from tsm.workfolder import BINS, INFO, MANIFEST

TENSOR, UNFINISHED = r"(0|[1-9]\d*)\.bin", r"\.(\d+)\.bin\.part"  # names in its folder of tensors; any other is not ours


class Tensors(NamedTuple):
    """What is to be made: of which clips, from where, made into what, and in which folder."""

    clips: Dict[int, Clip]  # the chosen ones, by their index in the list
    source: Origin
    folder: str
    refuse: Callable[[int, Corrupt], None]  # ends the run, or returns for the clip to be left out

    def file(self, *names: str) -> str:
        """A file in the output folder."""
        return os.path.join(self.folder, *names)

    def tensor(self, index: int) -> str:
        """The tensor of a clip."""
        return self.file(BINS, "%d.bin" % index)

    @property
    def nbytes(self) -> int:
        """Bytes of a tensor."""
        return self.source.protocol.nbytes(self.source.dtype)


class Made(NamedTuple):
    """A line of the journal: tensor `number`, made from what `key` stands for, has this checksum and time of change (ns)."""

    number: int
    key: str
    xxh3_128: str
    mtime: int


def read_made(folder: str) -> Dict[int, Made]:
    """{index: what was made}, the last entry per index."""
    return {value[0]: Made(*value) for value in Journal(folder).read() if len(value) == len(Made._fields)}


def is_intact(path: str, made: Made, size: int) -> bool:
    """Whether the tensor file is the one that the journal knows: by its size and time, or else by its checksum."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return False
    return status.st_size == size and (status.st_mtime_ns == made.mtime
                                       or checksum(np.fromfile(path, np.uint8)) == made.xxh3_128)


def state_of(job: Tensors) -> Tuple[Dict[int, Made], Dict[int, str]]:
    """(the tensors that are right already, {index: key} of those that are to be made)."""
    _, naming, protocol, dtype = job.source
    keys, corrupt = keys_of(job.source, job.clips, basis(job.clips, protocol.pixels(dtype), dtype, naming))
    for index, error in corrupt.items():
        job.refuse(index, error)
    done = {index: made for index, made in read_made(job.folder).items()
            if keys.get(index) == made.key and is_intact(job.tensor(index), made, job.nbytes)}
    return done, {index: key for index, key in keys.items() if index not in done}


def invalidate(job: Tensors, done: Dict[int, Made], unfinished: bool) -> None:
    """Remove every tensor that is not right, and of an unfinished folder also what makes it look finished."""
    for name in (MANIFEST, INFO) if unfinished else ():
        with contextlib.suppress(FileNotFoundError):
            os.remove(job.file(name))
    remove_matching(job.file(BINS), TENSOR, keep=done)
    remove_matching(job.file(BINS), UNFINISHED)
    Journal(job.folder).write(done.values())


def remove_matching(folder: str, pattern: str, keep: Container[int] = ()) -> None:
    """Remove the files whose whole name matches, unless the number in it is to be kept."""
    for name in os.listdir(folder):
        match = re.match(pattern + "$", name)
        if match and int(match.group(1)) not in keep:
            os.remove(os.path.join(folder, name))


def check_space(folder: str, needed: int, what: str, remedy: str) -> None:
    """UserError, which ends with the remedy, unless so many bytes more, which are those of `what`, fit on the disk of a folder."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError("%s: %.1f GB needed for %s, %.1f GB free; free some, %s" % (folder, needed / 1e9, what, free / 1e9, remedy))


def make(job: Tensors, keys: Dict[int, str], done: Dict[int, Made], workers: int) -> Generator[np.ndarray, None, None]:
    """Make the tensors of `keys`, entered in `done` and the journal as they come; yields of each clip the seconds of computing,
    checksum and writing, which are 0 of one that cannot be read."""
    data_root, naming, protocol, dtype = job.source
    table, (stored, out) = table_for(dtype, protocol), empty_for(dtype, protocol)  # of each process its own

    def work(index: int) -> Tuple[Made, List[float]]:
        times, clip = [time.perf_counter()], job.clips[index]
        fill(os.path.join(data_root, clip.source), clip.frames, protocol, table, out, naming)
        times.append(time.perf_counter())
        digest = checksum(stored)
        times.append(time.perf_counter())
        with replacing(job.tensor(index)) as part:
            with open(part, "wb") as file:
                file.write(memoryview(stored).cast("B"))
            made = Made(index, keys[index], digest, os.stat(part).st_mtime_ns)
            append(made)  # before the move: a kill in between costs one tensor
        times.append(time.perf_counter())
        return made, times

    try:
        with Journal(job.folder).appending() as append, contextlib.closing(each(work, keys, min(workers, max(1, len(keys))))) as results:
            for index, result in results:
                if isinstance(result, Corrupt):
                    job.refuse(index, result)
                    yield np.zeros(3)
                else:
                    done[index] = result[0]
                    yield np.diff(result[1])
    finally:
        remove_matching(job.file(BINS), UNFINISHED)

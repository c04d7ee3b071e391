"""Ways to compute the same thing, side by side: each in a process of its own, taking turns. Import this before tsm."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, Dict, List, Optional, TypeVar

import numpy as np

Key = TypeVar("Key")  # of a way: its name, say
REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, REPO)

from tsm.cli import UserError  # noqa: E402
from tsm.protocol import SSV2  # noqa: E402


def random_video() -> np.ndarray:
    """One video's tensor, float32 [1, frames, 3, size, size]; no way's speed depends on its values."""
    return np.random.RandomState(0).standard_normal((1,) + SSV2.video_shape).astype(np.float32)


def link_clips(folder: str, videos: int) -> None:
    """Make `folder` anew: videos, links to the demo's clips, and list.txt, the list of them."""
    clips = sorted(os.listdir(os.path.join(REPO, "demo", "videos")))
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(os.path.join(folder, "videos"))
    with open(os.path.join(folder, "list.txt"), "w", encoding="utf-8") as file:
        for number in range(videos):
            os.symlink(os.path.join(REPO, "demo", "videos", clips[number % len(clips)]),
                       os.path.join(folder, "videos", "%d.webm" % number))
            file.write("%d.webm 0\n" % number)


def answer(name: str, compute: Callable[[int], Any], clips: Optional[Callable[[int], List[int]]] = None) -> None:
    """Say what `compute(videos)` runs on, then time it for every number on stdin; of "clips N" say the classes clips(N)."""
    compute(1)
    print(json.dumps(name), flush=True)
    for line in sys.stdin:
        count, start = int(line.split()[-1]), time.perf_counter()
        if clips and line.startswith("clips"):
            print(json.dumps(" ".join(map(str, clips(count)))), flush=True)
            continue
        compute(count)
        print(json.dumps((time.perf_counter() - start) / count), flush=True)


class Way:
    """A process that computes videos on request, `videos` of them a turn."""

    def __init__(self, command: List[str], videos: int = 1, environment: Optional[Dict[str, str]] = None) -> None:
        self.command, self.videos = " ".join(command), videos
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
                                        universal_newlines=True, env=dict(os.environ, **(environment or {})))
        self.about = self.read()

    def read(self) -> Any:
        for line in self.process.stdout:  # type: ignore
            if re.match(r'["0-9]', line):  # some libraries talk, too
                return json.loads(line)
        self.close()
        self.errors.seek(0)
        raise UserError((self.errors.read().decode(errors="replace").strip().splitlines() or [self.command + ": ended early"])[-1])

    def seconds(self) -> float:
        """Per video, of one turn."""
        print(self.videos, file=self.process.stdin, flush=True)
        return self.read()

    def answers(self, clips: int) -> List[int]:
        """The classes of the demo's first clips."""
        print("clips %d" % clips, file=self.process.stdin, flush=True)
        return [int(word) for word in str(self.read()).split()]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def take_turns(ways: Dict[Key, Any], rounds: int, burn_in: int = 0, lost: Optional[Dict[Key, str]] = None) -> Dict[Key, List[float]]:
    """{way: seconds per video in each round}, after burn_in rounds that do not count.

    A way that fails ends it, or, where `lost` is given, takes no more turns: that tells {way: why}.
    """
    from tqdm import tqdm

    times: Dict[Key, List[float]] = {name: [] for name in ways}
    for number in tqdm(range(-burn_in, rounds), desc="rounds", disable=None):
        for name in list(times):
            try:
                times[name] += [ways[name].seconds()][: number >= 0]
            except (UserError, OSError) as error:
                if lost is None:
                    raise
                lost[name] = str(error)
                del times[name]
    return times

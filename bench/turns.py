"""Ways to compute the same thing, side by side: each in a process of its own, taking turns. Import this before tsm."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from typing import Any, Callable, Dict, List, Optional

import numpy as np

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


def answer(name: str, compute: Callable[[int], None]) -> None:
    """Say what `compute(videos)` runs on, then time it for every number on stdin."""
    compute(1)
    print(json.dumps(name), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        compute(int(line))
        print(json.dumps((time.perf_counter() - start) / int(line)), flush=True)


class Way:
    """A process that computes videos on request, `videos` of them a turn."""

    def __init__(self, command: List[str], videos: int = 1, environment: Optional[Dict[str, str]] = None) -> None:
        self.command, self.videos = " ".join(command), videos
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        universal_newlines=True, env=dict(os.environ, **(environment or {})))
        self.about = self.read()

    def read(self) -> Any:
        for line in self.process.stdout:  # type: ignore
            if re.match(r'["0-9]', line):  # some libraries talk, too
                return json.loads(line)
        raise UserError("%s: ended early (%s)" % (self.command, self.process.stderr.read().strip().splitlines()[-1:]))  # type: ignore

    def seconds(self) -> float:
        """Per video, of one turn."""
        print(self.videos, file=self.process.stdin, flush=True)
        return self.read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def take_turns(ways: Dict[str, Any], rounds: int) -> Dict[str, List[float]]:
    """{way: seconds per video in each round}."""
    from tqdm import tqdm

    times: Dict[str, List[float]] = {name: [] for name in ways}
    for _ in tqdm(range(rounds), desc="rounds", disable=None):
        for name, way in ways.items():
            times[name].append(way.seconds())
    return times

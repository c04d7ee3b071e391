#!/usr/bin/env python3
"""What it costs to divide a list into chunks, and where dividing it over more hosts or chips stops paying off.

    bench/run.sh scale_out       # makes what this needs, then runs it; needs requirements-cluster.txt

Measured: the same list by TSM_stream.py here, and in chunks on a Ray cluster of one node, in int8, by whole processes' wall
clock, in turns. Ray's own start is not in it, as a cluster is there before. Then the time of one chunk beyond its videos, from
the journal.

Simulated, from these: the videos of Something-Something V2's validation set on 1 to 64 such hosts, and on 1 to 16 chips, two
to a host, with one host in ten dying at a random moment of the run. What was not measured here is an option, and shown.
"""

import argparse
import heapq
import os
import random
import shutil
import subprocess
import sys
import time
from statistics import median
from typing import Any, Dict, List, NamedTuple, Tuple

from turns import REPO, link_clips  # sets up the path to the suite

from tsm.checkpoint.published import VIDEOS
from tsm.cli import UserError, above_zero, parser, positive, run
from tsm.files import write_json
from tsm.infer.journal import read_pieces
from tsm.infer.lists import WORK_SECONDS
from tsm.machine import cores, processor_name
from tsm.protocol import SSV2
from tsm.report.collect import ATLAS_THROUGHPUT
from tsm.samples import TENSOR_BYTES

AIMS = {"Ray": "< 8 %"}


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--work_dir", required=True, metavar="DIR", help="holds tsm_u8_bs1.onnx and tsm_u8_int8.xml, as bench/run.sh "
                     "makes them")
    cli.add_argument("--videos", type=positive, default=400, metavar="N", help="default: %(default)s")
    cli.add_argument("--chunk", type=positive, default=200, metavar="N", help="videos per chunk (default: %(default)s)")
    cli.add_argument("--rounds", type=positive, default=1, metavar="N", help="default: %(default)s")
    cli.add_argument("--notice", type=above_zero, default=35.0, metavar="S", help="seconds until a dead host is noticed; Ray's "
                     "documents give 15 to 55 (default: %(default)s)")
    cli.add_argument("--chip_start", type=above_zero, default=8.0, metavar="S", help="seconds that preprocessing and ais_bench "
                     "take to start, per chunk; an estimate (default: %(default)s)")
    cli.add_argument("--feed", type=above_zero, default=0.0025, metavar="S", help="seconds of preprocessing per video on a host "
                     "of 10 cores; an estimate (default: %(default)s)")
    cli.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    return cli.parse_args()


def timed(folder: str, *more: str) -> float:
    """Seconds of a run from nothing."""
    for name in ("sthv2", "results"):
        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
    command = [sys.executable, os.path.join(REPO, "TSM_stream.py"), "--model", "../tsm_u8_bs1.onnx", "--precision", "int8", "--int8_model",
               "../tsm_u8_int8.xml", "--agreement", "0", "--data_root", "videos", "--ann_file", "list.txt", "--output", "results",
               "--outfmt", "TXT"] + list(more)
    began = time.time()
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    if done.returncode:
        raise UserError(done.stderr.strip().splitlines()[-1])
    return time.time() - began


def beyond_videos(folder: str) -> Tuple[float, float]:
    """(seconds per video, seconds of a chunk beyond its videos), from the journal of the last run."""
    records = sorted(read_pieces(os.path.join(folder, "results", "out")), key=lambda record: record.began)
    videos = sum(len(record.done) for record in records)
    per_video = sum(compute for record in records for compute, _ in record.times) / 1000 / videos
    whole = records[-1].ended - records[0].began
    return per_video, max(0.0, (whole - videos * per_video) / len(records))


def measure(args: argparse.Namespace, folder: str) -> Dict[str, Any]:
    """{way: {seconds: [of each round], per_video, per_chunk}}."""
    nodes = subprocess.Popen([sys.executable, os.path.join(REPO, "bench", "nodes.py"), "1"], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True)
    address = (nodes.stdout.readline() if nodes.stdout else "").strip()
    if not address:
        raise UserError("no Ray cluster starts here; %s -m pip install -r requirements-cluster.txt" % sys.executable)
    ways: Dict[str, List[str]] = {"here": [], "Ray": ["--chunk", str(args.chunk), "--ray", address]}
    measured: Dict[str, Any] = {way: {"seconds": []} for way in ways}
    try:
        for _ in range(args.rounds):
            for way, words in ways.items():
                measured[way]["seconds"].append(timed(folder, *words))
                measured[way]["per_video"], measured[way]["per_chunk"] = beyond_videos(folder)
    finally:
        nodes.communicate()
    return measured


class Site(NamedTuple):
    """What is simulated: workers, in hosts of `per_host`, and what each chunk costs them, in seconds."""

    workers: int
    per_host: int
    chunk: int  # videos
    per_video: float
    per_chunk: float
    start: float  # of a host, once
    feed: float  # per video, by a host for its workers one after the other
    driver: float  # per piece, by the driver, one after the other
    notice: float  # until the death of a host is noticed


def simulate(site: Site, videos: int, share_dying: float, seed: int = 0) -> float:
    """Seconds until the last piece is written; hosts that die do so at a random moment of an undisturbed run."""
    chance = random.Random(seed)
    hosts = -(-site.workers // site.per_host)
    ideal = site.start + videos * site.per_video / site.workers
    dying = chance.sample(range(hosts), int(share_dying * hosts + 0.5)) if hosts > 1 else []
    deaths = {host: chance.uniform(0, ideal) for host in dying}
    ready = [(0.0, start) for start in range(0, videos, site.chunk)]  # (when it can be taken, its first video)
    heapq.heapify(ready)
    free = [(site.start, worker) for worker in range(site.workers)]
    heapq.heapify(free)
    fed = [site.start] * hosts  # when a host's preprocessing is free
    pieces: List[float] = []
    while ready:
        moment, worker = heapq.heappop(free)
        host, death = worker // site.per_host, deaths.get(worker // site.per_host, float("inf"))
        if moment >= death:
            continue
        possible, start = heapq.heappop(ready)
        count = min(site.chunk, videos - start)
        fed[host] = max(fed[host], possible) + count * site.feed  # ahead of the chip, while it is at the chunk before
        ended = max(moment, possible, fed[host]) + site.per_chunk + count * site.per_video
        if ended > death:
            heapq.heappush(ready, (death + site.notice, start))
            continue
        pieces.append(ended)
        heapq.heappush(free, (ended, worker))
    done = 0.0
    for ended in sorted(pieces):
        done = max(done, ended) + site.driver
    return done


def why(site: Site, videos: int) -> str:
    """What keeps a site from being as fast as its workers, the largest part, without hosts dying."""
    seconds = simulate(site, videos, 0)
    without = {
        "%d chunks for %d workers" % (-(-videos // site.chunk), site.workers):
            site._replace(chunk=1, per_chunk=site.per_chunk / site.chunk, driver=site.driver / site.chunk),
        "starting": site._replace(start=0.0), "what a chunk costs beyond its videos": site._replace(per_chunk=0.0),
        "preprocessing": site._replace(feed=0.0), "the driver": site._replace(driver=0.0),
    }
    gains = {reason: seconds - simulate(other, videos, 0) for reason, other in without.items()}
    return max(gains, key=lambda reason: gains[reason])


def scaling(args: argparse.Namespace, measured: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Rows of the second table."""
    ray, videos = measured["Ray"], VIDEOS["Something-V2"]
    start = max(0.0, median(ray["seconds"]) - args.videos * ray["per_video"] - args.videos / args.chunk * ray["per_chunk"])
    rows = []
    cpu_chunk = max(1, int(WORK_SECONDS / ray["per_video"] + 0.999))
    sites = [("hosts", Site(count, 1, cpu_chunk, ray["per_video"], ray["per_chunk"], start, 0.0, 0.05, args.notice))
             for count in (1, 2, 4, 8, 16, 32, 64)]
    for count in (1, 2, 4, 8, 16):
        chunk = TENSOR_BYTES // SSV2.nbytes("float32") // min(2, count)
        sites.append(("chips", Site(count, min(2, count), chunk, 1 / ATLAS_THROUGHPUT[1], args.chip_start, start, args.feed, 0.05,
                                    args.notice)))
    for kind, site in sites:
        alone = videos * site.per_video
        whole, disturbed = simulate(site, videos, 0), median(simulate(site, videos, 0.1, seed) for seed in range(9))
        rows.append({"kind": kind, "workers": site.workers, "chunk": site.chunk, "minutes": whole / 60,
                     "efficiency": alone / whole / site.workers, "minutes_one_in_ten_dying": disturbed / 60, "why": why(site, videos)})
    return rows


def main() -> None:
    args = get_args()
    folder = os.path.abspath(os.path.join(args.work_dir, "scale_out"))
    link_clips(folder, args.videos)
    measured = measure(args, folder)
    shutil.rmtree(folder)
    print("%s, %s, int8, %d videos in chunks of %d, %d rounds, %d cores\n" % (
        processor_name(), time.strftime("%Y-%m-%d"), args.videos, args.chunk, args.rounds, cores()))
    print("| way | videos per second | over here | aim | of a chunk beyond its videos, s |\n|---|---|---|---|---|")
    for way, found in measured.items():
        over = median(a / b - 1 for a, b in zip(found["seconds"], measured["here"]["seconds"]))
        found["overhead"] = over
        print("| %s | %.2f | %s | %s | %s |" % (
            way, args.videos / median(found["seconds"]), "%+.1f %%" % (100 * over) if way in AIMS else "", AIMS.get(way, ""),
            "%.2f" % found["per_chunk"] if way in AIMS else ""))
    rows = scaling(args, measured)
    print("\n%d videos, simulated; a dead host is noticed after %.0f s; chips: %.2f videos per second each (the guide), %.0f s to "
          "start a chunk\n" % (VIDEOS["Something-V2"], args.notice, ATLAS_THROUGHPUT[1], args.chip_start))
    print("| | chunk | minutes | efficiency | one host in ten dies: minutes | the most is lost to |\n|---|---|---|---|---|---|")
    for row in rows:
        print("| %(workers)d %(kind)s | %(chunk)d | %(minutes).1f | %(efficiency).2f | %(minutes_one_in_ten_dying).1f | %(why)s |" % row)
    if args.json:
        write_json(args.json, {"machine": processor_name(), "measured": measured, "simulated": rows})


if __name__ == "__main__":
    run(main)

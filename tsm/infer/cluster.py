"""Chunks on the hosts of a Ray cluster: https://docs.ray.io. Ray starts the processes, carries chunks to them and pieces back, tries
again what fails, and notices when a host dies; what a chunk is, and what is done already, is tsm.infer.lists' and
tsm.infer.journal's.

A host works at one chunk at a time with all its cores, or at one per NPU chip. Nothing of the data passes through Ray: the
suite, the videos and the model must be under the same paths on every host, and each host is examined first.
"""

import glob
import hashlib
import importlib
import importlib.util
import logging
import os
import platform
import re
import socket
import sys
import time
from collections import Counter, deque
from typing import Any, Dict, Iterator, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from tsm import SUITE, __version__
from tsm.cli import UserError, first_line, warn
from tsm.files import sha256
from tsm.infer import ascend
from tsm.infer.journal import Piece, keys_of
from tsm.infer.lists import Chunk, Flight, Job, run_in_memory
from tsm.machine import cores
from tsm.video import clips

WITHOUT_HOSTS = 30  # seconds without any host that could do something
RETRIES = 3  # by Ray, of a chunk that fails on a host
MEMORY = 10**8  # bytes of the object store of a Ray that is started here: pieces are small
ENVIRONMENT = {  # for Ray's processes: no reports of usage, and chips keep their numbers
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
    "RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES": "1",
}


class HostCannot(Exception):
    """This host cannot do the job as it is; the text says why, on one line."""


class Host(NamedTuple):
    """A node of the cluster: what it is called, and how many chunks it does at a time, each with these resources."""

    name: str
    places: int
    resources: Dict[str, Any]


def connect(address: str) -> Any:
    """Ray, connected to the cluster at an address, to the one that RAY_ADDRESS names or that is found here (auto), or to one that is
    started in this host whatever RAY_ADDRESS says (local); UserError where that cannot be."""
    if sys.version_info < (3, 10) or importlib.util.find_spec("ray") is None:
        raise UserError("--ray: Ray is not installed here, and needs Python 3.10 or newer; use --shard, which needs nothing, or run %s -m "
                        "pip install -r %s" % (sys.executable, os.path.join(SUITE, "requirements-cluster.txt")))
    said, stated = "--ray %s" % address, os.environ.get("RAY_ADDRESS", "")
    if address == "auto" and stated:
        said, address = "--ray auto, which is RAY_ADDRESS=%s here" % stated, stated
    os.environ.update(ENVIRONMENT)
    options: Dict[str, Any] = {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": MEMORY}
    try:
        if address not in ("auto", "local"):
            _check_address(address)
        import ray

        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **(options if address == "local" else {}))
    except Exception as error:  # ConnectionError, ValueError, RuntimeError: whatever keeps a cluster from being reached
        reason = getattr(error, "strerror", None) or first_line(error)
        remedy = "start one with ray start --head, or use --ray local"
        if address == "local":
            remedy = "use --shard, which needs none"
        if "AF_UNIX" in str(error):
            reason, remedy = "the path of the folder for temporary files is too long for its sockets", "set TMPDIR=/tmp"
        raise UserError("%s: no cluster is reached (%s); %s" % (said, reason, remedy))
    return ray


def _check_address(address: str) -> None:
    """ValueError, OSError or OverflowError unless somebody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not re.match("[0-9]{1,5}$", port):
        raise ValueError("it is neither auto nor local nor HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), 10).close()


def versions_here(device: str, backend: str) -> Dict[str, str]:
    """What must be the same on every host for the results to be the same, as far as versions can tell."""
    digest = hashlib.sha256()
    for path in sorted(glob.glob(os.path.join(glob.escape(SUITE), "tsm", "**", "*.py"), recursive=True)):
        digest.update(sha256(path).encode())
    found = {"suite": "%s (%s)" % (__version__, digest.hexdigest()[:12]), "python": platform.python_version(), "numpy": np.__version__}
    found.update(clips.versions())
    library = backend if device == "cpu" else "ais_bench"
    if importlib.util.find_spec(library) is None:
        found[library] = "none"
    else:
        found[library] = str(getattr(importlib.import_module(library), "__version__", "there")) if device == "cpu" else "there"
    return found


def check_host(job: Job, wanted: Dict[str, str]) -> None:
    """HostCannot unless this host has the `wanted` versions, the job's files, and the folder of its videos."""
    here = versions_here(job.device, job.computing.backend)
    for name, version in wanted.items():
        if here.get(name) != version:
            raise HostCannot("has %s %s, and the run %s" % (name, here.get(name, "none"), version))
    for path, digest in [(job.source.data_root, "")] + list(job.digests.items()):
        if not os.path.exists(path):
            raise HostCannot("has no %s" % path)
        if digest and sha256(path) != digest:
            raise HostCannot("has another %s than the run (by its SHA-256)" % path)


def check_clips(job: Job, chunk: Chunk) -> None:
    """HostCannot unless the chunk's videos are here what they are where the list was read, by their sizes and times of change."""
    here, missing = keys_of(job.source, chunk.clips, job.basis)
    for index, key in chunk.keys.items():
        if here.get(index) != key:
            path = os.path.join(job.source.data_root, chunk.clips[index].source)
            what = "has another %s than the run (by its size or time of change)" % path
            raise HostCannot("has no usable %s: %s" % (path, missing[index]) if index in missing else what)


def _carry(job: Job, chunk: Chunk) -> Piece:
    """On a host: carry out a chunk."""
    import ray

    check_clips(job, chunk)
    if job.device == "cpu":
        return run_in_memory(job, chunk)
    os.environ.pop("ASCEND_RT_VISIBLE_DEVICES", None)  # where Ray was started without ENVIRONMENT, it renumbers chips
    return ascend.run_on_chip(job, chunk, ray.get_runtime_context().get_accelerator_ids()["NPU"][0])


def hosts_of(nodes: Sequence[Dict[str, Any]], device: str) -> Dict[str, Host]:
    """{node id: Host} of the living nodes in ray.nodes() that can do something."""
    hosts: Dict[str, Host] = {}
    names = Counter(node["NodeManagerHostname"] for node in nodes)
    for node in nodes:
        name = node["NodeManagerHostname"]
        if names[name] > 1:
            name += "-" + node["NodeID"][:6]
        cpus, npus = int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("NPU", 0))
        if node["Alive"] and device == "cpu" and cpus:
            hosts[node["NodeID"]] = Host(name, 1, {"num_cpus": cpus})
        elif node["Alive"] and device == "npu" and npus:
            hosts[node["NodeID"]] = Host(name, npus, {"num_cpus": 0, "resources": {"NPU": 1}})
    return hosts


def most_chips(address: str) -> int:
    """The most NPU chips that one host of the cluster has."""
    return max([host.places for host in hosts_of(connect(address).nodes(), "npu").values()] or [1])


def on_ray(job: Job, chunks: Sequence[Chunk], flight: Flight, address: str) -> Iterator[Piece]:
    """Carrier: on the hosts of a Ray cluster.

    Ray tries a chunk that fails RETRIES times more; then its host is named and not used, as is one that lacks the data or the
    model, or has other versions. Hosts may join and go at any time. A chunk whose host fails, dies, or is cut off, is another's:
    Ray itself would wait minutes for the answer of one that is cut off.
    """
    ray = connect(address)
    ask, carry = ray.remote(num_cpus=0, max_retries=0)(check_host), ray.remote(max_retries=RETRIES, retry_exceptions=True)(_carry)
    shared, wanted = ray.put(job), versions_here(job.device, job.computing.backend)
    waiting, refused, idle_since = deque(chunks), [], time.monotonic()  # type: ignore[var-annotated]
    seen: Dict[str, Host] = {}  # by node id; a host keeps its name
    fit: Set[str] = set()  # nodes that may be given chunks
    running: Dict[Any, Tuple[str, Optional[Chunk]]] = {}  # of a reference the node, and the chunk unless the node is examined
    while waiting or any(chunk for _, chunk in running.values()):
        alive = hosts_of(ray.nodes(), job.device)
        for reference, (node, chunk) in list(running.items()):
            if node not in alive:
                del running[reference]
                if chunk:
                    waiting.appendleft(chunk)
                    warn("host %s is gone; %s: another host's now" % (seen[node].name, chunk.name))
        for node in sorted(set(alive) - set(seen)):
            seen[node] = alive[node]
            running[ask.options(scheduling_strategy=_on(node)).remote(shared, wanted)] = node, None
        for node in sorted(fit & set(alive)):
            places = alive[node].places - sum(at == node for at, _ in running.values())
            for chunk in [waiting.popleft() for _ in range(min(places, len(waiting)))]:
                running[carry.options(scheduling_strategy=_on(node), **alive[node].resources).remote(shared, chunk)] = node, chunk
        flight(dict(Counter(seen[node].name for node, chunk in running.values() if chunk)))
        if running:
            idle_since = time.monotonic()
        elif refused or time.monotonic() > idle_since + WITHOUT_HOSTS:
            raise UserError("--ray %s: no host of the cluster can be used (%s); what is done is kept"
                            % (address, "; ".join(refused) or "none has a %s" % {"cpu": "CPU", "npu": "NPU"}[job.device]))
        else:
            time.sleep(1.0)
        for reference in ray.wait(list(running), timeout=1.0)[0] if running else ():
            node, chunk = running.pop(reference)
            try:
                piece = ray.get(reference)
            except Exception as error:  # of the host, or of Ray itself, where a process died
                fit.discard(node)
                waiting.extendleft([chunk] if chunk else [])
                line = "host %s %s" % (seen[node].name, reason_of(error, chunk))
                if line not in refused:  # as by each of its chips
                    refused.append(line)
                    warn("%s; it is not used" % line)
                continue
            fit.add(node)
            if chunk:
                yield piece._replace(host=seen[node].name)


def reason_of(error: Exception, chunk: Optional[Chunk]) -> str:
    """Why a host is not used: what it lacks, or the error that is left once Ray has tried again."""
    cause = getattr(error, "cause", None)  # of what a function of ours raised there; else Ray's last line says it, its first does not
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = first_line(cause if isinstance(cause, Exception) else (lines or [type(error).__name__])[-1])
    if isinstance(cause, HostCannot):
        return reason
    if chunk:
        return "failed on %s (%s)" % (chunk.name, reason)
    return "cannot be examined (%s); is the suite there under %s?" % (reason, SUITE)


def _on(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)

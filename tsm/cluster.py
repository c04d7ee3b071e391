"""Chunks on the hosts of a Ray cluster: https://docs.ray.io. Ray starts the processes, carries chunks to them and pieces back,
and notices when one dies; what a chunk is, and what is done already, is tsm.chunks' and tsm.journal's.

A host works at one chunk at a time with all its cores, or at one per NPU chip. Nothing of the data passes through Ray: the
suite, the list, the videos and the model must be under the same paths on every host, and each host is examined first.
"""

import importlib.util
import logging
import os
import socket
import sys
import time
from collections import Counter, deque
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from tsm import chips
from tsm.chunks import ATTEMPTS, SUITE, Chunk, Flight, Job, Unfit, examine, run_chunk
from tsm.cli import UserError, first_line, warn
from tsm.journal import Piece
from tsm.machine import cores

PATIENCE = 30  # seconds without any host that could do something
RETRIES = 3  # by Ray itself on the same host, when a process dies
MEMORY = 10**8  # bytes of the object store of a Ray that is started here: pieces are small
ENVIRONMENT = {  # for Ray's processes: no reports of usage, and chips keep their numbers
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
    "RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES": "1",
}


class Answer(NamedTuple):
    """What became of a chunk on a host: a piece, or the `problem`; `unfit` where the host cannot do any other either."""

    piece: Optional[Piece]
    problem: str
    unfit: bool


class Host(NamedTuple):
    """A node of the cluster: what it is called, and how many chunks it does at a time, each with these resources."""

    name: str
    places: int
    resources: Dict[str, Any]


class Cluster(NamedTuple):
    """Ray, and the remote forms of _examine and _carry."""

    ray: Any
    examine: Any
    carry: Any
    job: Any  # a reference to the Job


def connect(address: str) -> Any:
    """Ray, connected to the cluster at an address, to the one found here (auto), or to one started in this host (local).

    Raises UserError where that cannot be.
    """
    if sys.version_info < (3, 10):
        raise UserError("--ray: Ray needs Python 3.10 or newer, and this is %d.%d; use --shard, which needs nothing" % sys.version_info[:2])
    if importlib.util.find_spec("ray") is None:
        raise UserError("--ray: Ray is not installed here; run %s -m pip install -r %s"
                        % (sys.executable, os.path.join(SUITE, "requirements-cluster.txt")))
    if "://" in address:
        raise UserError("--ray %s: Ray Client is not used; run this on a host of the cluster, with --ray auto or HOST:PORT" % address)
    os.environ.update(ENVIRONMENT)
    if address not in ("auto", "local"):
        check_address(address)
    import ray

    options: Dict[str, Any] = {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": MEMORY}
    try:
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **(options if address == "local" else {"address": address}))
    except Exception as error:  # ConnectionError, ValueError, RuntimeError: whatever keeps a cluster from being reached
        raise UserError("--ray %s: no cluster is reached (%s); start one with ray start --head, or use --ray local"
                        % (address, first_line(error)))
    return ray


def check_address(address: str) -> None:
    """UserError unless somebody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UserError("--ray %s: is neither auto nor local nor HOST:PORT" % address)
    try:
        socket.create_connection((host.strip("[]"), int(port)), 10).close()
    except OSError as error:
        raise UserError("--ray %s: no cluster is reached (%s); start one with ray start --head, or use --ray local"
                        % (address, error.strerror or error))


def _examine(job: Job) -> str:
    """On a host: what makes it unfit; empty if nothing does."""
    try:
        examine(job)
    except Unfit as error:
        return str(error)
    except Exception as error:  # the host is not used, whatever it is
        return "cannot be examined (%s: %s)" % (type(error).__name__, first_line(error))
    return ""


def _carry(job: Job, chunk: Chunk) -> Answer:
    """On a host: carry out a chunk."""
    import ray

    try:
        if job.device == "npu":
            os.environ.pop("ASCEND_RT_VISIBLE_DEVICES", None)  # where Ray was started without ENVIRONMENT, it renumbers chips
            piece = chips.run_chunk(job, chunk, ray.get_runtime_context().get_accelerator_ids()["NPU"][0])
        else:
            piece = run_chunk(job, chunk)
        return Answer(piece, "", False)
    except Exception as error:  # told to the driver, who decides
        problem = first_line(error)
        return Answer(None, problem, True) if isinstance(error, Unfit) else Answer(None, "failed (%s)" % problem, False)


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


class State(NamedTuple):
    """How far on_ray() is; node ids name hosts, references of Ray name what is under way."""

    names: Dict[str, Host]  # every host that was ever seen
    asked: Dict[Any, str]  # hosts that are being examined
    known: Set[str]  # hosts that were asked
    fit: Dict[str, Host]
    waiting: Any  # chunks that nobody is at, a deque
    running: Dict[Any, Tuple[Chunk, str]]
    attempts: "Counter[int]"  # at a chunk, by its start
    failures: "Counter[str]"  # of a host, in a row
    refused: List[str]  # why hosts are not used


def on_ray(job: Job, chunks: Sequence[Chunk], flight: Flight, address: str) -> Iterator[Tuple[Chunk, Piece]]:
    """Carrier: on the hosts of a Ray cluster.

    A host that lacks the data or the model, or has other versions, is named and not used; so is one that fails ATTEMPTS
    times in a row. Hosts may join and go at any time. A chunk whose host dies, or is cut off, is done by another; one that
    fails ATTEMPTS times ends the run.
    """
    ray = connect(address)
    cluster = Cluster(ray, ray.remote(num_cpus=0, max_retries=0)(_examine), ray.remote(max_retries=RETRIES)(_carry), ray.put(job))
    state = State({}, {}, set(), {}, deque(chunks), {}, Counter(), Counter(), [])
    idle_since = time.monotonic()
    while state.waiting or state.running:
        hosts = hosts_of(ray.nodes(), job.device)
        for node, host in hosts.items():
            state.names.setdefault(node, host)  # so that a host keeps its name
        alive = set(hosts)
        usable = [node for node in sorted(alive) if node in state.fit]
        forget(state, alive)
        ask(cluster, state, alive)
        dispatch(cluster, state, usable)
        flight(dict(Counter(state.names[node].name for _, node in state.running.values() if node in alive)))
        if usable or state.asked:
            idle_since = time.monotonic()
        if not usable and not state.asked and (state.refused or time.monotonic() > idle_since + PATIENCE):
            raise UserError("--ray %s: no host of the cluster can be used (%s); what is done is kept"
                            % (address, "; ".join(state.refused) or "none has a %s" % {"cpu": "CPU", "npu": "NPU"}[job.device]))
        pending = list(state.asked) + list(state.running)
        if not pending:
            time.sleep(1.0)
            continue
        for reference in ray.wait(pending, timeout=1.0)[0]:
            if reference in state.asked:
                told(ray, state, reference)
            else:
                done = taken(ray, state, reference)
                if done:
                    yield done


def _on(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def forget(state: State, alive: Set[str]) -> None:
    """Take back what hosts that are gone were at. Ray itself would wait minutes for the answer of one that is cut off."""
    for reference in [one for one, node in state.asked.items() if node not in alive]:
        del state.asked[reference]
    for reference, (_, node) in list(state.running.items()):
        if node not in alive:
            again(state, reference, Answer(None, "is gone", False))


def ask(cluster: Cluster, state: State, alive: Set[str]) -> None:
    """Have every host examined that was not yet."""
    for node in sorted(alive - state.known):
        state.known.add(node)
        state.asked[cluster.examine.options(scheduling_strategy=_on(node)).remote(cluster.job)] = node


def dispatch(cluster: Cluster, state: State, usable: Sequence[str]) -> None:
    """Give every host that has a place free a chunk."""
    busy = Counter(node for _, node in state.running.values())
    for node in usable:
        host = state.fit[node]
        while state.waiting and busy[node] < host.places:
            chunk = state.waiting.popleft()
            carry = cluster.carry.options(scheduling_strategy=_on(node), **host.resources)
            state.running[carry.remote(cluster.job, chunk)] = chunk, node
            busy[node] += 1


def told(ray: Any, state: State, reference: Any) -> None:
    """Take what the examination of a host says."""
    node = state.asked.pop(reference)
    try:
        problem = ray.get(reference)
    except Exception as error:  # it died, or cannot import the suite
        problem = "cannot be examined (%s); is the suite there under %s?" % (first_line(last_words(error)), SUITE)
    if problem:
        set_aside(state, node, problem)
    else:
        state.fit[node] = state.names[node]


def taken(ray: Any, state: State, reference: Any) -> Optional[Tuple[Chunk, Piece]]:
    """(chunk, its piece), or None where it has to be done again; UserError once that has happened too often."""
    chunk, node = state.running[reference]
    try:
        answer = ray.get(reference)
    except Exception as error:  # the process or the host died, more often than Ray tries again
        answer = Answer(None, "failed (%s)" % first_line(last_words(error)), False)
    if answer.piece is None:
        again(state, reference, answer)
        return None
    del state.running[reference]
    state.failures[node] = 0
    return chunk, answer.piece._replace(host=state.names[node].name)


def again(state: State, reference: Any, answer: Answer) -> None:
    """Have a chunk done again; UserError once that has happened too often."""
    chunk, node = state.running.pop(reference)
    state.waiting.appendleft(chunk)
    if answer.unfit:
        set_aside(state, node, answer.problem)
        return
    name = state.names[node].name
    state.attempts[chunk.start] += 1
    state.failures[node] += 1
    if state.attempts[chunk.start] >= ATTEMPTS:
        raise UserError("%s: given up after %d hosts, the last of which, %s, %s" % (chunk.name, ATTEMPTS, name, answer.problem))
    warn("host %s %s; %s: tried again" % (name, answer.problem, chunk.name))
    if state.failures[node] >= ATTEMPTS:
        set_aside(state, node, "failed %d times in a row" % ATTEMPTS)


def set_aside(state: State, node: str, problem: str) -> None:
    """Name a host that is not used, once."""
    state.fit.pop(node, None)
    line = "host %s %s" % (state.names[node].name, problem)
    if line not in state.refused:
        state.refused.append(line)
        warn("%s; it is not used" % line)


def last_words(error: BaseException) -> str:
    """The last line of an error of Ray's, which says what its first, a traceback's head, does not."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

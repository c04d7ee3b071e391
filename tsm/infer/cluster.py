"""Chunks on the hosts of a Ray cluster: https://docs.ray.io. Ray starts the processes, carries chunks to them and pieces back,
and notices when one dies; what a chunk is, and what is done already, is tsm.infer.lists' and tsm.infer.journal's.

A host works at one chunk at a time with all its cores, or at one per NPU chip. Nothing of the data passes through Ray: the
suite, the list, the videos and the model must be under the same paths on every host, and each host is examined first.
"""

import importlib.util
import logging
import os
import re
import socket
import sys
import time
from collections import Counter, deque
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from tsm.cli import UserError, first_line, warn
from tsm.infer import ascend
from tsm.infer.journal import Piece
from tsm.infer.lists import ATTEMPTS, SUITE, Chunk, Flight, Job, Unfit, examine, run_chunk
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
    if not host or not re.match("[0-9]{1,5}$", port) or int(port) > 65535:
        raise UserError("--ray %s: is neither auto nor local nor HOST:PORT" % address)
    try:
        socket.create_connection((host.strip("[]"), int(port)), 10).close()
    except (OSError, UnicodeError) as error:  # the latter of a name that none can have
        raise UserError("--ray %s: no cluster is reached (%s); start one with ray start --head, or use --ray local"
                        % (address, getattr(error, "strerror", None) or error))


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
            piece = ascend.run_chunk(job, chunk, ray.get_runtime_context().get_accelerator_ids()["NPU"][0])
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


class Dispatch:
    """Which host is at which chunk; node ids name hosts, references of Ray name what is under way."""

    def __init__(self, ray: Any, job: Job, chunks: Sequence[Chunk]) -> None:
        self.ray, self.job = ray, ray.put(job)
        self._examine, self._carry = ray.remote(num_cpus=0, max_retries=0)(_examine), ray.remote(max_retries=RETRIES)(_carry)
        self.names: Dict[str, Host] = {}  # every host that was ever seen
        self.asked: Dict[Any, str] = {}  # hosts that are being examined
        self.known: Set[str] = set()  # hosts that were asked
        self.fit: Dict[str, Host] = {}
        self.waiting = deque(chunks)  # chunks that nobody is at
        self.running: Dict[Any, Tuple[Chunk, str]] = {}
        self.attempts: "Counter[int]" = Counter()  # at a chunk, by its start
        self.failures: "Counter[str]" = Counter()  # of a host, in a row
        self.refused: List[str] = []  # why hosts are not used

    def see(self, hosts: Dict[str, Host]) -> None:
        """Take note of the hosts that are alive: have new ones examined, and give every one that has a place free a chunk."""
        for node, host in hosts.items():
            self.names.setdefault(node, host)  # so that a host keeps its name
        self._forget(set(hosts))
        for node in sorted(set(hosts) - self.known):
            self.known.add(node)
            self.asked[self._examine.options(scheduling_strategy=_on(node)).remote(self.job)] = node
        busy = Counter(node for _, node in self.running.values())
        for node in sorted(set(hosts) & set(self.fit)):
            host = self.fit[node]
            while self.waiting and busy[node] < host.places:
                chunk = self.waiting.popleft()
                carry = self._carry.options(scheduling_strategy=_on(node), **host.resources)
                self.running[carry.remote(self.job, chunk)] = chunk, node
                busy[node] += 1

    def _forget(self, alive: Set[str]) -> None:
        """Take back what hosts that are gone were at. Ray itself would wait minutes for the answer of one that is cut off."""
        for reference in [one for one, node in self.asked.items() if node not in alive]:
            del self.asked[reference]
        for reference, (_, node) in list(self.running.items()):
            if node not in alive:
                self._again(reference, Answer(None, "is gone", False))

    def at_work(self) -> Dict[str, int]:
        """{host: chunks under way there}."""
        return dict(Counter(self.names[node].name for _, node in self.running.values()))

    def answers(self) -> Iterator[Piece]:
        """The pieces that come within a second."""
        pending = list(self.asked) + list(self.running)
        if not pending:
            time.sleep(1.0)
            return
        for reference in self.ray.wait(pending, timeout=1.0)[0]:
            if reference in self.asked:
                self._told(reference)
            else:
                yield from self._taken(reference)

    def _told(self, reference: Any) -> None:
        """Take what the examination of a host says."""
        node = self.asked.pop(reference)
        try:
            problem = self.ray.get(reference)
        except Exception as error:  # it died, or cannot import the suite
            problem = "cannot be examined (%s); is the suite there under %s?" % (first_line(last_words(error)), SUITE)
        if problem:
            self._set_aside(node, problem)
        else:
            self.fit[node] = self.names[node]

    def _taken(self, reference: Any) -> Iterator[Piece]:
        """The piece of a chunk, or nothing where it has to be done again; UserError once that has happened too often."""
        _, node = self.running[reference]
        try:
            answer = self.ray.get(reference)
        except Exception as error:  # the process or the host died, more often than Ray tries again
            answer = Answer(None, "failed (%s)" % first_line(last_words(error)), False)
        if answer.piece is None:
            self._again(reference, answer)
            return
        del self.running[reference]
        self.failures[node] = 0
        yield answer.piece._replace(host=self.names[node].name)

    def _again(self, reference: Any, answer: Answer) -> None:
        """Have a chunk done again; UserError once that has happened too often."""
        chunk, node = self.running.pop(reference)
        self.waiting.appendleft(chunk)
        if answer.unfit:
            self._set_aside(node, answer.problem)
            return
        name = self.names[node].name
        self.attempts[chunk.start] += 1
        self.failures[node] += 1
        if self.attempts[chunk.start] >= ATTEMPTS:
            raise UserError("%s: given up after %d hosts, the last of which, %s, %s" % (chunk.name, ATTEMPTS, name, answer.problem))
        warn("host %s %s; %s: tried again" % (name, answer.problem, chunk.name))
        if self.failures[node] >= ATTEMPTS:
            self._set_aside(node, "failed %d times in a row" % ATTEMPTS)

    def _set_aside(self, node: str, problem: str) -> None:
        """Name a host that is not used, once."""
        self.fit.pop(node, None)
        line = "host %s %s" % (self.names[node].name, problem)
        if line not in self.refused:
            self.refused.append(line)
            warn("%s; it is not used" % line)


def _on(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def on_ray(job: Job, chunks: Sequence[Chunk], flight: Flight, address: str) -> Iterator[Piece]:
    """Carrier: on the hosts of a Ray cluster.

    A host that lacks the data or the model, or has other versions, is named and not used; so is one that fails ATTEMPTS
    times in a row. Hosts may join and go at any time. A chunk whose host dies, or is cut off, is done by another; one that
    fails ATTEMPTS times ends the run.
    """
    ray = connect(address)
    dispatch = Dispatch(ray, job, chunks)
    idle_since = time.monotonic()
    while dispatch.waiting or dispatch.running:
        hosts = hosts_of(ray.nodes(), job.device)
        dispatch.see(hosts)
        flight(dispatch.at_work())
        if dispatch.asked or set(hosts) & set(dispatch.fit):
            idle_since = time.monotonic()
        elif dispatch.refused or time.monotonic() > idle_since + PATIENCE:
            raise UserError("--ray %s: no host of the cluster can be used (%s); what is done is kept"
                            % (address, "; ".join(dispatch.refused) or "none has a %s" % {"cpu": "CPU", "npu": "NPU"}[job.device]))
        yield from dispatch.answers()


def last_words(error: BaseException) -> str:
    """The last line of an error of Ray's, which says what its first, a traceback's head, does not."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

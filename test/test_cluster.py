"""TSM_stream.py --ray on a real Ray cluster of several nodes on this machine: the same files, whatever joins, dies or differs."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from clips import arguments, listed, results
from processes import LONGEST, children_of, command_of, ran, started, wait_for

from tsm.files import sha256
from tsm.infer.cluster import ENVIRONMENT, HostCannot, check_clips, check_host, versions_here
from tsm.infer.engine import Computing
from tsm.infer.journal import Origin, keys_of, read_pieces
from tsm.infer.lists import Chunk, Job
from tsm.protocol import SSV2
from tsm.samples import Clip
from tsm.video.frames import IMG

CLIPS, CHUNK = 40, 5
RAY = os.path.join(os.path.dirname(sys.executable), "ray")
NEEDS_RAY = pytest.mark.skipif(sys.version_info < (3, 10) or not os.path.exists(RAY),
                               reason="NOT RUN: needs Ray (requirements-cluster.txt) and Python 3.10 or newer")


def summary(folder):
    return json.loads((folder / "res/out_summary.json").read_text())


def clear(folder):
    for name in ("res", "sthv2"):
        shutil.rmtree(str(folder / name), ignore_errors=True)


@pytest.fixture(scope="module")
def setting(thin_onnx, tmp_path_factory):
    return listed(tmp_path_factory.mktemp("cluster"), thin_onnx, CLIPS)


@pytest.fixture(scope="module")
def expected(works, setting):
    """What TSM_stream.py leaves."""
    works("TSM_stream.py", *arguments(), cwd=setting)
    found = results(setting)
    assert len(found) == CLIPS + 2
    clear(setting)
    return found


@pytest.fixture
def fresh(setting):
    clear(setting)
    yield setting
    clear(setting)


@pytest.fixture(scope="module")
def cluster():
    """A head that computes nothing, and one node; nodes that tests add are theirs to remove."""
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={
        "num_cpus": 0, "include_dashboard": False, "object_store_memory": 10**8,
        "_system_config": {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 3}})
    made.first = add(made)
    yield made
    made.shutdown()
    os.environ.clear()
    os.environ.update(before)


def add(cluster, cpus=1):
    return cluster.add_node(num_cpus=cpus, object_store_memory=10**8)


def start(repo, folder, cluster, *more):
    """A driver in a process group of its own."""
    args = arguments("--ray", cluster.address, "--chunk", CHUNK, *more)
    return started(sys.executable, repo / "TSM_stream.py", *args, cwd=folder, start_new_session=True)


def records(folder):
    return read_pieces(str(folder / "res/out"))


def hosts(folder):
    """The hosts that have finished a chunk."""
    return {record.host for record in records(folder)}


def ended(process):
    """(stdout, stderr) of a driver that must succeed."""
    try:
        out, err = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("the driver did not end: %s%s" % process.communicate())
    assert process.returncode == 0 and "Traceback" not in err, out + err
    return out, err


def workers_of(node):
    """Process ids of a node's workers, also of one that has not named itself ray::… yet; its raylet has other children as well."""
    found = [child for process in node.all_processes["raylet"] for child in children_of(process.process.pid)]
    return [child for child in found if command_of(child).startswith(b"ray::") or b"default_worker.py" in command_of(child)]


@contextlib.contextmanager
def standing_still(*nodes):
    """Nodes that live, as far as Ray's head can tell, and get on with nothing, their new workers neither: a list at which one
    of them is lasts until another node has had its turn."""
    over = threading.Event()

    def tell(number):
        for node in nodes:
            for worker in workers_of(node):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, number)

    def hold():
        while not over.wait(0.02):
            tell(signal.SIGSTOP)

    tell(signal.SIGSTOP)
    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        tell(signal.SIGCONT)


@pytest.mark.ray
@NEEDS_RAY
def test_one_node_and_another_that_joins_late_give_the_same_files(repo, fresh, expected, cluster):
    process = start(repo, fresh, cluster)
    wait_for(lambda: records(fresh), "the first chunk", process)
    with standing_still(cluster.first):
        late = add(cluster)
        wait_for(lambda: len(hosts(fresh)) == 2, "a chunk of the second host", process)
    try:
        out, err = ended(process)
    finally:
        cluster.remove_node(late)
    assert results(fresh) == expected and err == "", err
    found = summary(fresh)
    workers = found["tsm"]["workers"]
    assert len(workers) == 2 and all(worker["host"].startswith(socket.gethostname() + "-") for worker in workers)
    assert sum(worker["videos"] for worker in workers) == CLIPS and sum(worker["chunks"] for worker in workers) == CLIPS // CHUNK
    assert found["NPU_compute_time"]["count"] == CLIPS and len(found["filesinfo"]) == CLIPS
    assert 0.8 * found["throughput"] < CLIPS / max(worker["seconds"] for worker in workers) and "%d made" % CLIPS in out


@pytest.mark.ray
@NEEDS_RAY
def test_a_node_that_dies_in_the_middle_of_a_chunk_costs_that_chunk(repo, fresh, expected, cluster):
    others = [add(cluster), add(cluster)]
    process = start(repo, fresh, cluster)
    try:
        wait_for(lambda: records(fresh), "the first chunk", process)
        with standing_still(cluster.first, others[1]):
            wait_for(lambda: any(host.endswith(others[0].node_id[:6]) for host in hosts(fresh)), "a chunk of the first other", process)
            before = len(records(fresh))
            cluster.remove_node(others.pop(0), allow_graceful=False)
        _, err = ended(process)
    finally:
        for node in others:
            cluster.remove_node(node)
    assert results(fresh) == expected and before < CLIPS // CHUNK
    assert all(line.startswith("TSM_stream.py: warning: host ") for line in err.splitlines()), err
    numbers = [one.number for record in records(fresh) for one in record.done]
    assert sorted(numbers) == list(range(CLIPS))  # each video exactly once
    assert len(summary(fresh)["tsm"]["workers"]) == 3


@pytest.mark.ray
@NEEDS_RAY
def test_a_killed_driver_goes_on_where_it_was_in_any_way(repo, works, fresh, expected, cluster):
    process = start(repo, fresh, cluster)
    wait_for(lambda: len(records(fresh)) >= 2, "the second chunk", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = sum(len(record.done) for record in records(fresh))
    assert not (fresh / "res/out_summary.json").exists() and not (fresh / "sthv2/sthv2.json").exists()
    assert "%d of %d videos are done, 0 cannot be read, %d are to do" % (kept, CLIPS, CLIPS - kept) in works(
        "TSM_stream.py", *arguments("--status"), cwd=fresh)
    works("TSM_stream.py", *arguments("--shard", "1/2", "--chunk", CHUNK), cwd=fresh)
    done = sum(len(record.done) for path in (fresh / "res/out").glob(".shard_*") for record in read_pieces(str(path)))
    assert 0 < done <= CLIPS // 2
    process = start(repo, fresh, cluster)
    out, _ = ended(process)
    assert "%d made, %d already right" % (CLIPS - kept - done, kept + done) in out
    assert results(fresh) == expected
    assert "0 made, %d already right" % CLIPS in works("TSM_stream.py", *arguments(), cwd=fresh)


@pytest.mark.ray
@NEEDS_RAY
def test_chips_of_a_cluster_s_host_share_a_list(repo, works, small_om, small_onnx, tmp_path, cluster):
    """Over the stand-in for ais_bench, of which every second call on chip 1 fails, the first not."""
    folder = listed(tmp_path / "run", small_om, 7)
    standins = {"PYTHONPATH": str(repo / "test/standins"), "STANDIN_CALLS": str(tmp_path / "calls"), "STANDIN_WITHOUT_WARMUP": "1",
                "STANDIN_FLAKY": str(tmp_path / "flaky")}
    (tmp_path / "flaky").mkdir()
    (tmp_path / "flaky/1").write_text(".")
    args = [word for word in arguments("--model", small_om, "--protocol", small_onnx.parent / "protocol.json", "--chunk", 2)
            if word not in ("--backend", "onnxruntime")]
    node = cluster.add_node(num_cpus=1, resources={"NPU": 2}, object_store_memory=10**8, env_vars=standins)
    try:
        done = ran(sys.executable, repo / "TSM_stream.py", *args, "--ray", cluster.address, cwd=folder,
                   env={"PYTHONPATH": standins["PYTHONPATH"]}, timeout=LONGEST)
    finally:
        cluster.remove_node(node)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    workers = summary(folder)["tsm"]["workers"]
    assert [worker["device"] for worker in workers] == ["chip 0", "chip 1"] and sum(worker["videos"] for worker in workers) == 7
    assert len((tmp_path / "calls").read_text().split()) >= 4 and not done.stderr  # Ray tries again what fails
    assert sorted(one.number for record in records(folder) for one in record.done) == list(range(7))
    assert "0 made, 7 already right" in works("TSM_stream.py", *args, "--devices", "0", cwd=folder, env=standins)


def namespaces(*flags):
    return shutil.which("unshare") and subprocess.call(["unshare", *flags, "true"], stderr=subprocess.DEVNULL) == 0


@pytest.mark.ray
@NEEDS_RAY
@pytest.mark.skipif(not namespaces("-m"), reason="NOT RUN: no mount namespaces here, so no node can lack what the others have")
def test_a_node_without_the_model_is_named_and_a_chunk_of_nothing_readable_is_passed_by(repo, thin_onnx, tmp_path, cluster):
    folder = listed(tmp_path / "run", thin_onnx, 6)
    for number in (2, 3):
        (folder / "videos" / ("%d.webm" % number)).unlink()
        (folder / "videos" / ("%d.webm" % number)).write_bytes(b"")
    (folder / "model").mkdir()
    shutil.move(str(folder / "new.onnx"), str(folder / "model"))
    command = "mount -t tmpfs none %s && exec %s start --address=%s --num-cpus=1 --object-store-memory=100000000 --block" % (
        folder / "model", RAY, cluster.address)
    node = subprocess.Popen(["unshare", "-m", "sh", "-c", command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            start_new_session=True)
    try:
        wait_for(lambda: len(alive(cluster)) == 3, "the other node", node)
        with standing_still(cluster.first):  # until the other node was examined
            process = start(repo, folder, cluster, "--model", "model/new.onnx", "--chunk", 2, "--on_error", "skip")
            said = process.stderr.readline()
        out, err = ended(process)
    finally:
        os.killpg(node.pid, signal.SIGTERM)
        node.wait()
    assert not err and "has no %s; it is not used" % (folder / "model/new.onnx") in said
    assert "4 of 6 videos are done, 2 cannot be read, 0 are to do" in out
    assert len(summary(folder)["tsm"]["workers"]) == 1 and len(records(folder)) == 3
    manifest = json.loads((folder / "sthv2/sthv2.json").read_text())
    assert [entry["source"] for entry in manifest["skipped"]] == ["2.webm", "3.webm"]


def alive(cluster):
    """The nodes that the cluster's head knows to be alive; not asked so often that it is busy with that."""
    from ray._raylet import GcsClient

    time.sleep(0.2)
    return [node for node in GcsClient(address=cluster.address).get_all_node_info().values() if node.state == 0]


@pytest.fixture
def other_host(cluster):
    """A node with an address of its own, in a network namespace; cut() takes its network away."""
    name, ours, theirs = "tsm%d" % os.getpid(), "tsmo%d" % (os.getpid() % 10**6), "tsmt%d" % (os.getpid() % 10**6)
    net = "10.%d.%d." % (200 + os.getpid() % 50, os.getpid() // 50 % 250)

    def ip(*words):
        subprocess.check_call(["ip", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    inside = ("netns", "exec", name, "ip")
    before, node = len(alive(cluster)), None
    try:
        try:
            ip("netns", "add", name)
            ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
            ip("addr", "add", net + "1/24", "dev", ours)
            ip("link", "set", ours, "up")
            ip(*inside, "addr", "add", net + "2/24", "dev", theirs)
            ip(*inside, "link", "set", theirs, "up")
            ip(*inside, "link", "set", "lo", "up")
            ip(*inside, "route", "add", "default", "via", net + "1")
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("NOT RUN: no network namespaces here, so no host can be cut off")
        command = ["ip", "netns", "exec", name, RAY, "start", "--address=" + cluster.address, "--node-ip-address=" + net + "2",
                   "--num-cpus=1", "--object-store-memory=100000000", "--block"]
        node = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: len(alive(cluster)) > before, "the other host", node)
        yield lambda: ip("link", "set", ours, "down")
    finally:
        pids = subprocess.run(["ip", "netns", "pids", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True)
        for pid in pids.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if node:
            node.wait()
        subprocess.call(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)
        subprocess.call(["ip", "link", "del", ours], stderr=subprocess.DEVNULL)


@pytest.mark.ray
@NEEDS_RAY
@pytest.mark.skipif(not shutil.which("ip"), reason="NOT RUN: no ip command, so no host can be cut off")
def test_a_host_that_is_cut_off_costs_its_chunk(repo, fresh, expected, cluster, other_host):
    process = start(repo, fresh, cluster)
    wait_for(lambda: records(fresh), "the first chunk", process)  # of either host: the first may not have begun
    with standing_still(cluster.first):
        wait_for(lambda: any(not host.endswith(cluster.first.node_id[:6]) for host in hosts(fresh)), "a chunk of the other host", process)
        assert len(records(fresh)) < CLIPS // CHUNK
        other_host()
    ended(process)
    assert results(fresh) == expected
    assert sorted(one.number for record in records(fresh) for one in record.done) == list(range(CLIPS))


@pytest.mark.ray
@NEEDS_RAY
def test_a_local_cluster_is_started_whatever_ray_address_says(works, thin_onnx, tmp_path):
    folder = listed(tmp_path / "run", thin_onnx, 2)
    assert "2 made" in works("TSM_stream.py", *arguments("--ray", "local"), cwd=folder, env={"RAY_ADDRESS": "127.0.0.1:9"}, process=True)


@NEEDS_RAY
def test_a_ray_that_does_not_start_or_is_not_reached_names_the_remedy(fails, fresh, tmp_path):
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    line = fails("TSM_stream.py", *arguments("--ray", "local"), cwd=fresh, env={"TMPDIR": str(deep)}, process=True)
    assert "--ray local: no cluster is reached (the path of the folder for temporary files is too long" in line and "TMPDIR=/tmp" in line
    for stated, says in (("127.0.0.1:9", "no cluster is reached"), ("ray://x:1", "neither auto nor local"),
                         ("x", "neither auto nor local")):
        line = fails("TSM_stream.py", *arguments("--ray", "auto"), cwd=fresh, env={"RAY_ADDRESS": stated}, process=True)
        assert "--ray auto, which is RAY_ADDRESS=%s here: " % stated in line and says in line


@NEEDS_RAY
def test_no_cluster_is_one_line(fails, fresh):
    line = fails("TSM_stream.py", *arguments("--ray", "127.0.0.1:9"), cwd=fresh)
    assert "--ray 127.0.0.1:9: no cluster is reached" in line and "ray start --head" in line
    for address in ("here", "here:\u00b2", "ray://x:1"):
        assert "neither auto nor local nor HOST:PORT" in fails("TSM_stream.py", *arguments("--ray", address), cwd=fresh)


def job(folder, **changes):
    model = folder / "m.onnx"
    model.write_bytes(b"model")
    made = Job(Origin(str(folder), None, None, "float32"), "", "cpu", str(model), Computing("onnxruntime", "fp32", None, ""), None,
               "", "", {str(model): sha256(str(model))})
    return made._replace(**changes)


def test_a_host_that_differs_or_whose_videos_do_says_how(tmp_path):
    here = versions_here("cpu", "onnxruntime")
    check_host(job(tmp_path), here)
    for says, versions, changes in (
            ("has numpy .*, and the run 0.1", {"numpy": "0.1"}, {}), ("has no /nowhere/m.onnx", {}, {"digests": {"/nowhere/m.onnx": "0"}}),
            ("has another .*m.onnx than the run", {}, {"digests": {str(tmp_path / "m.onnx"): "0"}}),
            ("has no /nowhere/videos", {}, {"source": Origin("/nowhere/videos", None, None, "float32")})):
        with pytest.raises(HostCannot, match=says):
            check_host(job(tmp_path, **changes), dict(here, **versions))
    for name in ("a.webm", "b.webm"):
        (tmp_path / name).write_bytes(b"video")
    source, clips = Origin(str(tmp_path), IMG, SSV2, "float32"), {3: Clip(4, "a.webm", None, 0), 5: Clip(6, "b.webm", None, 0)}
    chunk = Chunk(3, 6, clips, keys_of(source, clips, "basis")[0])
    host = job(tmp_path, source=source, basis="basis")
    check_clips(host, chunk)
    os.utime(str(tmp_path / "b.webm"), (1, 1))
    with pytest.raises(HostCannot, match="has another .*b.webm than the run"):
        check_clips(host, chunk)
    (tmp_path / "a.webm").unlink()
    with pytest.raises(HostCannot, match="has no usable .*a.webm: no such file"):
        check_clips(host, chunk)


def test_where_ray_is_missing_one_line_says_what_to_install(repo, setting):
    program = ("import importlib.util, sys; find = importlib.util.find_spec\n"
               "importlib.util.find_spec = lambda name, *rest: None if name == 'ray' else find(name, *rest)\n"
               "del sys.argv[0]; sys.path.insert(0, %r); import runpy\nrunpy.run_path(sys.argv[0], run_name='__main__')" % str(repo))
    done = ran(sys.executable, "-c", program, repo / "TSM_stream.py", *arguments("--ray", "auto"), cwd=setting)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "requirements-cluster.txt" in done.stderr and "Python 3.10 or newer" in done.stderr


@pytest.mark.skipif(sys.version_info < (3, 10), reason="NOT RUN: Ray needs Python 3.10 or newer")
def test_nothing_is_reported_to_ray_s_makers(fails, setting, tmp_path):
    """What Ray's reports of usage go by is set before Ray is imported; a stand-in for Ray tells."""
    (tmp_path / "ray.py").write_text("import json, os\njson.dump(dict(os.environ), open(%r, 'w'))\ndef is_initialized(): return False\n"
                                     "def init(**how): raise ConnectionError('nobody here')\n" % str(tmp_path / "seen"))
    line = fails("TSM_stream.py", *arguments("--ray", "auto"), cwd=setting, env={"PYTHONPATH": str(tmp_path)})
    seen = json.loads((tmp_path / "seen").read_text())
    assert "--ray auto: no cluster is reached (nobody here)" in line
    assert seen["RAY_USAGE_STATS_ENABLED"] == "0" and seen["RAY_USAGE_STATS_REPORT_URL"] == "http://127.0.0.1:9/"
    assert seen["RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES"] == "1"


def test_both_lists_of_requirements_pin_the_ray_that_was_tested(repo):
    one, other = ([line.split("#")[0].strip() for line in (repo / name).read_text().splitlines() if line.startswith("ray")]
                  for name in ("requirements-cluster.txt", "test/requirements.txt"))
    assert one == other and len(one) == 1

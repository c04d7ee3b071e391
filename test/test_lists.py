"""TSM_stream.py in shards, what it records, and what it refuses: the same files as of one run, and nothing done twice."""

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import time
import zlib

import numpy as np
import pytest
from clips import arguments, listed, results
from processes import ran, started

from tsm.cli import Corrupt, Killed, UserError
from tsm.files import locked
from tsm.infer import ascend, journal, lists
from tsm.infer.engine import add_options
from tsm.infer.journal import JOURNAL, Done, Journal, Piece, Progress, Skipped, Work, as_line, read_pieces, recording
from tsm.infer.lists import Chunk, Job, missing_shards, plan, rate_in, rounds, shard_of
from tsm.protocol import PIPELINES, SSV2
from tsm.samples import Clip, chunk_size, refuse_killed

CLIPS, CHUNK = 5, 2
POST = ("--result_path", "res/out_summary.json", "--info_path", "sthv2/sthv2.info", "--json", "-")


@pytest.fixture
def setting(small_onnx, tmp_path):
    return listed(tmp_path / "run", small_onnx, CLIPS)


@pytest.fixture(scope="module")
def expected(small_onnx, works, tmp_path_factory):
    """What TSM_stream.py leaves."""
    folder = listed(tmp_path_factory.mktemp("stream"), small_onnx, CLIPS)
    works("TSM_stream.py", *arguments(), cwd=folder)
    return {name: data for name, data in results(folder).items() if name.startswith("res")}


def same(folder, expected):
    """Whether the results are the expected ones; the manifest's are held against TSM_stream.py's in test_cluster.py."""
    found = results(folder)
    return {name: data for name, data in found.items() if name.startswith("res")} == expected and "sthv2/sthv2.json" in found


def told(piece):
    """What a piece says of videos that cannot be read."""
    return [(one.number, one.key, str(one.error)) for one in piece.skipped]


def records(folder):
    return read_pieces(str(folder / "res/out"))


def test_what_a_run_records(works, setting, expected):
    out = works("TSM_stream.py", *arguments(), cwd=setting)
    assert "to do: 5 videos, chunks: 1" in out and "5 made, 0 already right" in out
    assert same(setting, expected) and len(records(setting)) == CLIPS
    summary = json.loads((setting / "res/out_summary.json").read_text())
    (worker,) = summary["tsm"]["workers"]
    assert worker["videos"] == worker["chunks"] == CLIPS and worker["device"] == "cpu"
    assert summary["throughput"] == pytest.approx(1000 / summary["NPU_compute_time"]["mean"])  # of computing alone
    assert summary["throughput"] >= CLIPS / worker["seconds"] and summary["tsm"]["engine"] and summary["tsm"]["model"]
    assert summary["tsm"]["views_agree"].keys() == {str(number) for number in range(CLIPS)}
    (setting / "videos/2.webm").unlink()
    shutil.copy(str(setting / "videos/3.webm"), str(setting / "videos/2.webm"))
    assert "1 made, 4 already right" in works("TSM_stream.py", *arguments("--chunk", CHUNK), cwd=setting)
    assert not list(setting.rglob("*.part"))
    (setting / "list.txt").write_text("".join((setting / "list.txt").read_text().splitlines(True)[:3]))
    works("TSM_stream.py", *arguments(), cwd=setting)
    assert len(list((setting / "res/out").glob("*.txt"))) == 3  # none of the longer list is left
    with (setting / "new.onnx").open("ab") as file:
        file.write(b"\x72\x00")  # an empty metadata entry: another model under the same name is another work
    assert "0 of 3 videos are done" in works("TSM_stream.py", *arguments("--status"), cwd=setting)


def test_the_automatic_size_is_measured_on_a_sample_that_counts():
    listed, found = dict.fromkeys(range(100)), Progress([], {}, dict.fromkeys(range(100), "k"), {})
    job = Job(None, "", "cpu", "", None, None, "", "", {})
    turns = rounds(0, listed, job, found, 1)
    (sample,) = next(turns)
    assert sorted(sample.keys) == list(range(8))
    found.pieces.append(record("h", 0, 4, range(8), ms=2000))
    for number in range(8):
        del found.keys[number]
    (chunks,) = turns
    assert [(chunk.start, chunk.stop) for chunk in chunks] == [(8, 38), (38, 68), (68, 98), (98, 100)]  # of 60 s
    assert [len(chunk.keys) for chunks in rounds(0, listed, job, found, 0) for chunk in chunks] == [92]  # here, in turn


def test_killed_at_any_moment_it_goes_on(repo, works, setting, expected):
    for wanted in (1, 3):
        process = started(sys.executable, repo / "TSM_stream.py", *arguments(), cwd=setting, start_new_session=True)
        while process.poll() is None and len(records(setting)) < wanted:
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if process.returncode:
            assert not (setting / "res/out_summary.json").exists() and not (setting / "sthv2/sthv2.json").exists()
    before = len(records(setting))
    assert "%d made, %d already right" % (CLIPS - before, before) in works("TSM_stream.py", *arguments(), cwd=setting)
    assert same(setting, expected) and not list(setting.rglob("*.part"))


def test_what_is_damaged_is_done_again_and_nothing_else(works, setting, expected):
    works("TSM_stream.py", *arguments("--chunk", CHUNK), cwd=setting)
    text = (setting / "res/out/1_0.txt").read_text()
    (setting / "res/out/1_0.txt").write_text(text.replace("0.0", "0.1", 1))  # as long as before
    (setting / "res/out/4_0.txt").unlink()
    assert "2 made, 3 already right" in works("TSM_stream.py", *arguments("--chunk", CHUNK), cwd=setting)
    assert same(setting, expected)
    written = setting / "res/out" / JOURNAL
    lines = written.read_text().splitlines(True)
    damaged = lines[0].replace("cpu", "cqu") if '"cpu"' in lines[0] else lines[0][::-1]
    written.write_text(damaged + "\n" + "".join(lines[1:-1]) + lines[-1][: len(lines[-1]) // 2])  # and one that a kill cut short
    kept = sum(len(record.done) for record in records(setting))
    assert 0 < kept < CLIPS
    out = works("TSM_stream.py", *arguments("--chunk", CHUNK), cwd=setting)
    assert "%d made, %d already right" % (CLIPS - kept, kept) in out and same(setting, expected)
    assert sorted(one.number for record in records(setting) for one in record.done) == list(range(CLIPS))


def test_shards_are_merged_and_a_missing_one_is_named(works, fails, setting, expected):
    assert "0 of 5 videos are done, 0 cannot be read, 5 are to do" in works("TSM_stream.py", *arguments("--status"), cwd=setting)
    assert not (setting / "res").exists() and not (setting / "sthv2").exists()
    for number in (0, 2):
        out = works("TSM_stream.py", *arguments("--shard", "%d/3" % number, "--chunk", CHUNK), cwd=setting)
        assert "%d of %d videos are done" % (len(shard_of(CLIPS, number, 3)), len(shard_of(CLIPS, number, 3))) in out
        assert not (setting / "res/out_summary.json").exists()
    left = len(shard_of(CLIPS, 1, 3))
    line = fails("TSM_stream.py", *arguments("--merge"), cwd=setting)
    assert "list.txt: %d of 5 videos are not done: --shard 1/3 has %d of its %d videos to do" % (left, left, left) in line
    before = sorted(path.name for path in setting.rglob("*"))
    assert "--shard 1/3 has" in works("TSM_stream.py", *arguments("--status"), cwd=setting)
    assert "0 of %d videos are done, 0 cannot be read, %d are to do" % (left, left) in works(
        "TSM_stream.py", *arguments("--shard", "1/3", "--status"), cwd=setting)
    assert sorted(path.name for path in setting.rglob("*")) == before
    works("TSM_stream.py", *arguments("--shard", "1/3", "--merge"), cwd=setting)
    with (setting / "new.onnx").open("ab") as file:
        file.write(b"\x72\x00")
    fails("TSM_stream.py", *arguments("--merge"), cwd=setting)  # nothing of this model is done, and what is there stays
    with (setting / "new.onnx").open("r+b") as file:
        file.truncate((setting / "new.onnx").stat().st_size - 2)
    assert (setting / "res/out_summary.json").exists()
    assert same(setting, expected) and not list((setting / "res/out").glob(".shard_*"))
    assert "0 made, 5 already right" in works("TSM_stream.py", *arguments("--chunk", CHUNK), cwd=setting)


def test_an_unreadable_video_ends_the_run_and_loses_nothing_or_is_left_out(works, fails, setting):
    for number in (2, 3):
        (setting / "videos" / ("%d.webm" % number)).unlink()
        (setting / "videos" / ("%d.webm" % number)).write_bytes(b"")
    assert "list.txt, line 3: 2.webm: is empty" in fails("TSM_stream.py", *arguments("--chunk", CHUNK), cwd=setting)
    assert not (setting / "res/out_summary.json").exists()
    skip = arguments("--chunk", CHUNK, "--on_error", "skip")
    assert "3 results in res/out: " in works("TSM_stream.py", *skip, cwd=setting)  # some were made before line 3 was come to
    assert "accuracy over 3 of 5 (2 skipped) videos" in works("TSM_postprocess.py", *POST, cwd=setting)
    assert "0 made, 3 already right, 2 skipped" in works("TSM_stream.py", *skip, cwd=setting)
    assert "list.txt, line 3" in fails("TSM_stream.py", *arguments(), cwd=setting)
    for path in (setting / "videos").iterdir():
        path.unlink()
        path.write_bytes(b"")
    assert "list.txt: none of its 5 clips could be read (line 1: is empty" in fails("TSM_stream.py", *skip, cwd=setting)


@pytest.mark.all
def test_the_int8_file_belongs_to_the_work_whether_it_is_named_or_not(setting, monkeypatch):
    """As far as what is recorded goes: the file need not be one that OpenVINO reads."""
    def key_of(args):
        """What a video's result depends on, of a command line."""
        cli = argparse.ArgumentParser()
        lists.add_inputs(cli)
        add_options(cli)
        parsed = cli.parse_known_args(args)[0]
        parsed.device, parsed.scratch, parsed.ray, parsed.shard, parsed.curve, parsed.every = "cpu", None, None, None, False, None
        job, work, listed, _ = lists.job_of(parsed)
        assert len(job.digests) == 3
        return lists.so_far(job, work, listed).keys[0]

    monkeypatch.chdir(setting)
    for name, more in (("tsm_int8", []), ("int8_own", ["--int8_model", "int8_own.xml"])):
        for suffix in (".xml", ".bin"):
            (setting / (name + suffix)).write_bytes(b"first")
        keys = []
        for text in (b"first", b"first", b"remade"):
            (setting / (name + ".bin")).write_bytes(text)
            keys.append(key_of(without_backend("--precision", "int8") + more))
        assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("args, status, says", [
    (("--shard", "3/3"), 2, "--shard"), (("--shard", "x"), 2, "--shard"), (("--devices", "0,0"), 2, "--devices"),
    (("--devices", "0"), 2, "for an NPU"), (("--ray", "auto", "--shard", "0/2"), 2, "--ray goes with"), (("--chunk", "0"), 2, "--chunk"),
    (("--model", "none.onnx"), 1, "none.onnx"), (("--model", "none.om"), 2, "for a CPU"), (("--data_root", "none"), 1, "none"),
    (("--ann_file", "none.txt"), 1, "none.txt"), (("--output", "list.txt"), 1, "list.txt/out: Not a directory; a folder is needed there"),
    (("--merge",), 1, "5 of 5 videos are not done: no shard has done them"), (("--devices", "0,00"), 2, "'0,00' is no list of chips"),
    (("--protocol", "p.json"), 2, "a CPU takes the protocol from the model"),
    (("--ray", "a..b:6379"), 1, "--ray"), (("--ray", "a:²"), 1, "--ray"),
    (("--output_dir", "list.txt"), 1, "list.txt: File exists; a folder is needed there"),
    (("--output_dirname", "../list.txt"), 1, "a folder is needed there"), (("--output", "list.txt/x"), 1, "a folder is needed there"),
])
def test_bad_usage_is_one_line(fails, setting, args, status, says):
    assert says in fails("TSM_stream.py", *arguments(*args), cwd=setting, status=status)


def everything(folder):
    """{name: bytes} of all files."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}


def without_backend(*more):
    return [word for word in arguments(*more) if word not in ("--backend", "onnxruntime")]


def test_a_refused_command_leaves_a_finished_run_as_it_is(works, fails, setting):
    """Each of these has all videos to do again, and cannot."""
    works("TSM_stream.py", *arguments("--chunk", CHUNK), cwd=setting)
    (setting / "model.om").write_bytes(b"no model")
    (setting / "damaged.onnx").write_bytes((setting / "new.onnx").read_bytes()[:-9000])
    (setting / "short.txt").write_text("0.webm 0\nnone.webm 1\n")
    before, finished, summary = everything(setting), results(setting), (setting / "res/out_summary.json").read_bytes()
    npu = ["--model", "model.om"] + without_backend()[2:]
    refused = [
        arguments("--precision", "int8"), arguments("--precision", "bf16"), without_backend("--precision", "int8"),
        arguments("--precision", "int8", "--ray", "127.0.0.1:1"), npu, npu + ["--ray", "127.0.0.1:1"],
        npu + ["--devices", "0", "--scratch", "none"], ["--model", "damaged.onnx"] + arguments()[2:], arguments("--ann_file", "short.txt"),
    ]
    for args in refused:
        fails("TSM_stream.py", *args, cwd=setting)
        assert everything(setting) == before, args
    video = setting / "videos/2.webm"
    video.unlink()
    video.write_bytes(b"no video" * 1000)
    assert "2.webm" in fails("TSM_stream.py", *arguments(), cwd=setting)  # found out by decoding it, and recorded in the journal
    assert results(setting) == finished and (setting / "res/out_summary.json").read_bytes() == summary


def test_a_disk_that_fills_up_is_said_and_what_is_recorded_counts(works, repo, setting):
    def small():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # a result in binary, and a few lines of the journal

    done = ran(sys.executable, repo / "TSM_stream.py", *arguments("--outfmt", "BIN"), cwd=setting, preexec_fn=small)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and JOURNAL in line
    kept = sum(len(record.done) for record in records(setting))
    assert 0 < kept < CLIPS
    assert "%d made, %d already right" % (CLIPS - kept, kept) in works(
        "TSM_stream.py", *arguments("--chunk", CHUNK, "--outfmt", "BIN"), cwd=setting)
    assert sorted(one.number for record in records(setting) for one in record.done) == list(range(CLIPS))


def test_a_journal_cut_at_any_byte_goes_on(tmp_path):
    Journal(str(tmp_path)).write([as_line(record("h", 0, 1, [number])) for number in range(3)])
    lines = (tmp_path / JOURNAL).read_text().splitlines(True)
    text, work = "".join(lines), Work(str(tmp_path), "BIN", {})
    for cut in range(len(text) + 1):
        (tmp_path / JOURNAL).write_text(text[:cut])
        with recording(work, Progress([], {}, {9: "k"}, {}), str(tmp_path)) as keep:
            keep(Piece("h", "cpu", 1, 2, [], [Skipped(9, Corrupt("is empty"))], [], {}, {}))
        *kept, last = read_pieces(str(tmp_path))
        whole = sum(len("".join(lines[: number + 1])) - 1 <= cut for number in range(3))  # but for its line break
        assert [one.done[0].number for one in kept] == list(range(whole)) and told(last) == [(9, "k", "is empty")]


def test_a_clip_whose_decoder_was_killed_is_named_and_tried_again(tmp_path):
    """It is not left out, as one that cannot be read is, and not recorded."""
    clips = {9: Clip(10, "a.webm", None, 0), 11: Clip(12, "b.webm", None, 0)}
    found = Progress([], {}, {9: "k", 11: "l"}, {})
    with recording(Work(str(tmp_path), "BIN", {}), found, str(tmp_path)) as keep:
        left_out = [Skipped(9, Killed("its decoder was killed")), Skipped(11, Corrupt("is empty"))]
        keep(Piece("h", "cpu", 1, 2, [], left_out, [], {}, {}))
    (written,) = read_pieces(str(tmp_path))
    assert told(written) == [(11, "l", "is empty")] and found.keys == {9: "k"}
    with pytest.raises(UserError, match="list.txt, line 10: a.webm: its decoder was killed"):
        refuse_killed("list.txt", clips, found.corrupt)


def test_what_a_command_says_may_be_in_any_encoding():
    words = [sys.executable, "-c", r"import sys; sys.stdout.buffer.write(b'\xd0\xbe \xff\n'); sys.exit(3)"]
    assert ascend.run_command(words, []) == (3, "\u043e \\xff")


def test_one_run_at_a_time_works_in_a_folder_of_results_and_waits_for_no_shard_nor_a_shard_for_it(works, fails, setting):
    """Wherever the other one has its info file."""
    works("TSM_stream.py", *arguments("--shard", "0/2"), cwd=setting)
    before = sorted(path.name for path in (setting / "res/out").iterdir())
    with locked(str(setting / "res/out"), shared=True):  # as while another shard is at work
        for more in ((), ("--merge",)):
            assert "out: another run is at work in this folder" in fails("TSM_stream.py", *arguments(*more), cwd=setting)
        assert sorted(path.name for path in (setting / "res/out").iterdir()) == before
        works("TSM_stream.py", *arguments("--shard", "1/2"), cwd=setting)
    with locked(str(setting / "res/out")):
        for more in (("--shard", "0/2"), ("--output_dir", "elsewhere")):
            assert "out: another run is at work in this folder" in fails("TSM_stream.py", *arguments(*more), cwd=setting)
    assert "0 made, %d already right" % CLIPS in works("TSM_stream.py", *arguments("--merge"), cwd=setting)
    works("TSM_stream.py", *arguments("--output_dir", "res/out"), cwd=setting)  # both in one folder is no second run


def test_the_size_of_a_chunk_keeps_two_of_them_under_20_gb():
    for videos, dtype, size in ((529, "float32", 0), (530, "float32", 264), (2119, "uint8", 0), (2120, "uint8", 1059)):
        assert chunk_size(videos, dtype, 2, SSV2) == size and chunk_size(videos, dtype, 3, SSV2) in (0, size * 2 // 3)
    assert chunk_size(42, "float32", 2, SSV2._replace(**PIPELINES["dense-ten"])) == 20  # each video takes 482 MB


def record(host, began, ended, numbers, ms=100.0, device="cpu"):
    return Piece(host, device, began, ended, [Done(number, "c", None, None, "k", "r") for number in numbers], [],
                  [(ms, 0.0) for _ in numbers], {}, {})


def test_what_workers_did_adds_up():
    found = [record("a", 0, 10, range(4)), record("b", 5, 15, range(4, 6)), record("a", 100, 110, [6])]
    assert journal.busy_seconds(found) == 25 and rate_in(found) == pytest.approx(10)
    assert [(row["host"], row["chunks"], row["videos"], row["seconds"], row["videos_per_second"]) for row in journal.workers_of(found)] == [
        ("a", 2, 5, 20, 0.25), ("b", 1, 2, 10, 0.2)]
    assert journal.busy_seconds([]) == 0 and rate_in([]) == 0


def test_chunks_cover_what_is_left_and_span_no_more_than_their_size(tmp_path):
    left = [0, 1, 2, 7, 8, 30, 31, 39]
    chunks = plan(dict.fromkeys(range(40)), {index: "k%d" % index for index in left}, 8)
    assert [sorted(chunk.keys) for chunk in chunks] == [[0, 1, 2, 7], [8], [30, 31], [39]]
    assert [(chunk.start, chunk.stop) for chunk in chunks] == [(0, 8), (8, 9), (30, 32), (39, 40)] and isinstance(chunks[0], Chunk)
    for count in (1, 3, 7):
        assert [index for number in range(count) for index in shard_of(40, number, count)] == list(range(40))
    found = Progress([], {}, {39: "k"}, {})
    (tmp_path / ".shard_0_of_4").mkdir()
    assert missing_shards(Work(str(tmp_path), "BIN", {}), found, 40) == ["--shard 3/4 has 1 of its 10 videos to do"]


def test_a_line_of_the_journal_holds_or_does_not_count(tmp_path):
    one = record("ä host", 1.5, 2.5, [3])._replace(skipped=[Skipped(4, Corrupt("is empty"), "k")], facts={"engine": "e"})
    Journal(str(tmp_path)).write([as_line(one)])
    path = tmp_path / JOURNAL
    line = path.read_text()
    random = np.random.RandomState(0)
    (whole,) = read_pieces(str(tmp_path))
    assert whole.host == "ä host" and whole.done == one.done and told(whole) == told(one)
    before = ["h", "cpu", 0, 1, [[3, "k", "c", "r", [2], None]], [[4, "k", "is empty"]], [[1.0, 0.0]], {}, {}]
    assert as_line(one._replace(host="h", began=0, ended=1, done=[Done(3, "c", [2], None, "k", "r")], times=[(1.0, 0.0)], facts={})) == [
        [tuple(item) for item in value] if isinstance(value, list) else value for value in before]
    for _ in range(50):
        data = bytearray(line.encode())
        data[random.randint(len(data) - 1)] ^= 1 << random.randint(7)
        path.write_bytes(bytes(data))
        assert read_pieces(str(tmp_path)) == []
    path.write_text(line[:-1])
    assert read_pieces(str(tmp_path)) == []
    start = '["h", "cpu", 0, 1, '
    for text in ("[1, 2]", "7", start + '[[[0], "k", "c", "r", null, null]], [], [], {}, {}]', start + '[[]], [[]], [], {}, {}]',
                 start + '[], [[{}, "k", "r"]], [], {}, {}]'):  # of another version
        path.write_text("%08x %s\n" % (zlib.crc32(text.encode()), text))
        assert read_pieces(str(tmp_path)) == []

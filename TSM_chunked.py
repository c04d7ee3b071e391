#!/usr/bin/env python3
"""Preprocess and infer a list chunk by chunk, so that only two chunks' tensors are ever on disk; restartable.

    python3 TSM_chunked.py --chunk 200 \\
        --preprocess "python3 TSM_preprocess.py --data_root videos --ann_file list.txt" \\
        --infer "python3 TSM_infer.py --model tsm_new_bs1.onnx"

The two commands are run as given, with the chunk's range, input and output added, and shown. While one chunk is inferred
the next is preprocessed; a chunk's tensors are removed once its results are there. First comes an estimate of disk and
time, from a measured sample, and an error where the disk is too small. At the end sthv2/ and inference_result/ hold what
an undivided run leaves there, but the tensors: sthv2.info, sthv2.json and out_summary.json over all videos.

A finished chunk is not done again while the commands, the model, the list's lines and the videos (size and time of
change) are the same. What a killed run was at is gone on with.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from typing import Any, Dict, List, NamedTuple, Optional

from TSM_preprocess import fingerprint
from tsm import __version__
from tsm.cli import Corrupt, UserError, parser, positive, run
from tsm.files import locked, read_json, sha256, write_json, write_text
from tsm.protocol import VIDEO_VALUES
from tsm.samples import read_list, read_manifest

SAMPLE = 8  # clips that the estimate measures preprocessing on
RESULTS = "inference_result"


class Chunk(NamedTuple):
    """Videos start to stop - 1 of the list; `folder` takes its tensors and manifest, `name` is that of its results."""

    start: int
    stop: int
    folder: str
    name: str
    key: str


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--chunk", type=positive, required=True, metavar="N", help="videos per chunk")
    cli.add_argument("--preprocess", required=True, metavar="COMMAND", help="a TSM_preprocess.py command, as one argument, "
                     "without --range and --output_dir")
    cli.add_argument("--infer", required=True, metavar="COMMAND", help="a TSM_infer.py or ais_bench command, as one "
                     "argument, without input and output")
    cli.add_argument("--output_dir", default="sthv2", metavar="DIR", help="for lists, manifests and tensors (default: sthv2)")
    args = cli.parse_args()
    args.preprocess, args.infer = shlex.split(args.preprocess), shlex.split(args.infer)
    return args


def option(command: List[str], name: str, default: str = "") -> str:
    """The value of `--name value` or `--name=value` in a command."""
    for word, following in zip(command, command[1:] + [""]):
        if word == name:
            return following
        if word.startswith(name + "="):
            return word[len(name) + 1 :]
    return default


def plan(args: argparse.Namespace) -> List[Chunk]:
    """The chunks of the list, each with the digest of everything its results depend on."""
    clips, data_root = read_list(option(args.preprocess, "--ann_file")), option(args.preprocess, "--data_root")
    models = [option(args.infer, name) for name in ("--model", "--int8_model")]
    basis = json.dumps([args.preprocess, args.infer, [sha256(path) for path in models if path], __version__])
    chunks = []
    for start in range(0, len(clips), args.chunk):
        part = clips[start : start + args.chunk]
        marks = []
        for clip in part:
            try:
                marks.append(fingerprint(os.path.join(data_root, clip.source), clip, basis))
            except Corrupt as error:
                marks.append(str(error))  # preprocessing will name it
        key = hashlib.sha256("".join(marks).encode()).hexdigest()
        name = "chunk_%d_%d" % (start, start + len(part))
        chunks.append(Chunk(start, start + len(part), os.path.join(args.output_dir, name), name, key))
    return chunks


def summary_file(chunk: Chunk) -> str:
    return os.path.join(RESULTS, chunk.name + "_summary.json")


def manifest_of(chunk: Chunk) -> Dict[str, Any]:
    return read_manifest(os.path.join(chunk.folder, "sthv2.json"))


def results_digest(chunk: Chunk) -> Optional[str]:
    """SHA-256 of the chunk's summary; None where none of its videos could be read, so that there is none."""
    return sha256(summary_file(chunk)) if manifest_of(chunk)["samples"] else None


def is_done(chunk: Chunk) -> bool:
    """Are the chunk's results there, and made from what is there now?"""
    try:
        return read_json(os.path.join(chunk.folder, "done.json")) == {"key": chunk.key, "summary": results_digest(chunk)}
    except (OSError, UserError):
        return False


def preprocess_command(args: argparse.Namespace, chunk: Chunk) -> List[str]:
    return args.preprocess + ["--output_dir", chunk.folder, "--range", "%d:%d" % (chunk.start, chunk.stop)]


def start(command: List[str], title: str) -> "subprocess.Popen[bytes]":
    """Show and start a command."""
    print("\n-- %s\n$ %s" % (title, " ".join(shlex.quote(word) for word in command)), flush=True)
    try:
        return subprocess.Popen(command)
    except OSError as error:
        raise UserError("%s: %s; is it installed and on the PATH?" % (command[0], error.strerror))


def finish(process: "subprocess.Popen[bytes]") -> None:
    """Wait for a command; one that fails has said why, and its exit status becomes ours."""
    status = process.wait()
    if status:
        sys.exit(status if status > 0 else 128 - status)


def estimate(args: argparse.Namespace, chunks: List[Chunk]) -> None:
    """Print what the rest will take, from a measured sample; UserError where the disk is too small for two chunks."""
    videos, largest = sum(chunk.stop - chunk.start for chunk in chunks), max(chunk.stop - chunk.start for chunk in chunks)
    size = VIDEO_VALUES * (1 if option(args.preprocess, "--dtype") == "uint8" else 4)
    need, free = min(2 * largest, videos) * size, shutil.disk_usage(args.output_dir).free
    if need > free:
        raise UserError("%s: two chunks of %d videos need %.1f GB, %.1f GB are free; free some, or use a smaller --chunk"
                        % (args.output_dir, largest, need / 1e9, free / 1e9))
    sample = chunks[0]._replace(stop=min(chunks[0].stop, chunks[0].start + SAMPLE))
    began = time.time()
    finish(start(preprocess_command(args, sample), "estimate: preprocessing, on %d videos" % (sample.stop - sample.start)))
    preprocessing = (time.time() - began) / (sample.stop - sample.start)
    command = args.infer + ["--loop=2"]
    print("\n-- estimate: inference\n$ %s" % " ".join(map(shlex.quote, command)), flush=True)
    measured = subprocess.run(command, stdout=subprocess.PIPE, universal_newlines=True)
    found = re.findall(r"throughput 1000\*batchsize.*: ([0-9.]+)", measured.stdout)
    if measured.returncode or not found:
        sys.exit(measured.returncode or 1)
    inference = 1 / float(found[-1])
    print("\nto do: %d videos in %d chunks; at most %.1f GB of tensors at a time (%.1f GB free), %.1f GB in all\n"
          "time: preprocessing %.2f s, inference %.2f s a video: between %.0f and %.0f minutes, as the two overlap" % (
              videos, len(chunks), need / 1e9, free / 1e9, videos * size / 1e9, preprocessing, inference,
              videos * max(preprocessing, inference) / 60, videos * (preprocessing + inference) / 60), flush=True)


def process(args: argparse.Namespace, chunks: List[Chunk]) -> None:
    """Preprocess and infer the chunks, one ahead of the other."""
    title = "chunk %d:%d"
    ahead = start(preprocess_command(args, chunks[0]), "preprocess " + title % chunks[0][:2])
    try:
        for chunk, following in zip(chunks, chunks[1:] + [None]):  # type: ignore
            finish(ahead)
            if following:
                ahead = start(preprocess_command(args, following), "preprocess " + title % following[:2])
            tensors = os.path.join(chunk.folder, "preprocess_bin")
            if manifest_of(chunk)["samples"]:
                finish(start(args.infer + ["--input", tensors, "--output", RESULTS, "--output_dirname", chunk.name,
                                           "--outfmt", "TXT"], "infer " + title % chunk[:2]))
            write_json(os.path.join(chunk.folder, "done.json"), {"key": chunk.key, "summary": results_digest(chunk)})
            shutil.rmtree(tensors)
    finally:
        if ahead.poll() is None:
            ahead.terminate()
            ahead.wait()


def merge(args: argparse.Namespace, chunks: List[Chunk]) -> None:
    """Write the manifest, the info file and the summary of all chunks, as an undivided run would have."""
    manifests = [manifest_of(chunk) for chunk in chunks]
    summaries = [read_json(summary_file(chunk)) for chunk, manifest in zip(chunks, manifests) if manifest["samples"]]
    if not summaries:
        skipped = manifests[0]["skipped"][0]
        raise UserError("%s: none of its videos could be read (line %d: %s)"
                        % (option(args.preprocess, "--ann_file"), skipped["line"], skipped["reason"]))
    whole = dict(manifests[0], samples=[], skipped=[])
    for manifest in manifests:
        whole["samples"] += manifest["samples"]
        whole["skipped"] += manifest["skipped"]
    infos = [entry for summary in summaries for entry in summary["filesinfo"].values()]
    seconds = sum(len(summary["filesinfo"]) / summary["throughput"] for summary in summaries)
    merged = dict(summaries[-1], filesinfo={str(key): entry for key, entry in enumerate(infos)},
                  npu_compute_time_list=[ms for summary in summaries for ms in summary["npu_compute_time_list"]],
                  throughput=len(infos) / seconds)  # type: Dict[str, Any]
    for figure in ("NPU_compute_time", "H2D_latency", "D2H_latency"):
        merged.pop(figure, None)  # of the last chunk alone
    agreements = [summary.get("tsm", {}).get("top1_agreement_with_fp32") for summary in summaries]
    if all(agreements):
        total = {key: sum(agreement[key] for agreement in agreements) for key in agreements[0]}
        merged["tsm"] = dict(merged["tsm"], top1_agreement_with_fp32=total)
    write_json(os.path.join(args.output_dir, "sthv2.json"), whole)
    write_text(os.path.join(args.output_dir, "sthv2.info"),
               "".join("%d %d\n" % (entry["id"], entry["label"]) for entry in whole["samples"]))
    write_text(os.path.join(RESULTS, "out_summary.json"), json.dumps(merged) + "\n")


def main() -> None:
    args = get_args()
    os.makedirs(args.output_dir, exist_ok=True)
    with locked(args.output_dir):
        chunks = plan(args)
        current = {chunk.name for chunk in chunks}
        for name in os.listdir(args.output_dir):
            if name == "preprocess_bin" or name.startswith("chunk_") and name not in current:
                shutil.rmtree(os.path.join(args.output_dir, name))  # of a run that was divided otherwise
        left = [chunk for chunk in chunks if not is_done(chunk)]
        print("%d of %d chunks are done" % (len(chunks) - len(left), len(chunks)))
        if left:
            estimate(args, left)
            process(args, left)
        merge(args, chunks)


if __name__ == "__main__":
    run(main)

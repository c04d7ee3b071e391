#!/usr/bin/env python3
"""Preprocess and infer a list chunk by chunk, so that only two chunks' tensors are ever on disk; restartable.

    python3 TSM_chunked.py --chunk 200 \\
        --preprocess "python3 TSM_preprocess.py --data_root videos --ann_file list.txt" \\
        --infer "python3 TSM_infer.py --model tsm_new_bs1.onnx"
    python3 TSM_chunked.py --size --ann_file list.txt --dtype float32     # how many videos a chunk may hold

The two commands are run as given, with the chunk's range, input and output added, and shown. While one chunk is inferred
the next is preprocessed; a chunk's tensors are removed once its results exist. First comes an estimate of disk and time,
from a measured sample, and an error if the disk is too small. At the end sthv2/ and inference_result/ hold what an
undivided run leaves there, except the tensors: sthv2.info, sthv2.json and out_summary.json over all videos.

A finished chunk is not done again while the commands, the model (and its int8 file), the list's lines and the videos (size
and time of change) are the same. A killed run continues where it stopped.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from typing import List, Optional

from tsm.chunks import RESULTS, Chunk, chunk_size, is_done, manifest_of, mark_done, merge_chunks, plan
from tsm.cli import UserError, parser, positive, run
from tsm.files import locked
from tsm.frames import Naming, add_naming
from tsm.int8 import int8_file, weights_file
from tsm.protocol import read_protocol
from tsm.results import throughput_in
from tsm.samples import read_list

SAMPLE = 8  # clips that the estimate measures preprocessing on


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--chunk", type=positive, metavar="N", help="videos per chunk")
    cli.add_argument("--preprocess", metavar="COMMAND", help="a TSM_preprocess.py command, as one argument, without --range "
                     "and --output_dir")
    cli.add_argument("--infer", metavar="COMMAND", help="a TSM_infer.py or ais_bench command, as one argument, without input "
                     "and output")
    cli.add_argument("--output_dir", default="sthv2", metavar="DIR", help="for lists, manifests and tensors (default: sthv2)")
    cli.add_argument("--size", action="store_true", help="only print how many videos of --ann_file a chunk may hold so that "
                     "20 GB of tensors are on disk at most; 0 if all fit at once")
    cli.add_argument("--ann_file", metavar="FILE", help="with --size: the list")
    cli.add_argument("--dtype", choices=("float32", "uint8"), default="float32", help="with --size: of the tensors")
    cli.add_argument("--protocol", default="", metavar="FILE", help="with --size: TSM_checkpoint.py's, as for TSM_preprocess.py")
    args = cli.parse_args()
    if args.size and not args.ann_file:
        cli.error("--size needs --ann_file")
    if not args.size and not (args.chunk and args.preprocess and args.infer):
        cli.error("--chunk, --preprocess and --infer are needed")
    if not args.size:
        args.preprocess, args.infer = shlex.split(args.preprocess), shlex.split(args.infer)
        preprocessing = preprocessing_inputs(args.preprocess)
        args.ann_file, args.data_root, args.dtype = preprocessing.ann_file, preprocessing.data_root, preprocessing.dtype
        args.protocol = preprocessing.protocol
        args.naming = Naming(preprocessing.filename_tmpl, preprocessing.start_index)
        args.models = model_files(args.infer)
    return args


def preprocessing_inputs(command: List[str]) -> argparse.Namespace:
    """The list, the data root, the dtype and the names of frames that a TSM_preprocess.py command gives."""
    cli = parser("--preprocess: a TSM_preprocess.py command")
    cli.add_argument("--ann_file", required=True)
    cli.add_argument("--data_root", required=True)
    cli.add_argument("--dtype", default="float32")
    cli.add_argument("--protocol", default="")
    add_naming(cli)
    return cli.parse_known_args(command)[0]


def model_files(command: List[str]) -> List[str]:
    """The files that decide what a TSM_infer.py or ais_bench command computes: the model, and for int8 its int8 file."""
    cli = parser("--infer: a TSM_infer.py or ais_bench command")
    cli.add_argument("--model", "-m", required=True)
    cli.add_argument("--int8_model")
    cli.add_argument("--precision")
    known, _ = cli.parse_known_args(command)
    files = [known.model]
    if known.precision == "int8":
        quantised = known.int8_model or int8_file(known.model)
        files += [path for path in (quantised, weights_file(quantised)) if os.path.exists(path)]
    return files


def preprocess_command(args: argparse.Namespace, chunk: Chunk) -> List[str]:
    return args.preprocess + ["--output_dir", chunk.folder, "--range", "%d:%d" % (chunk.start, chunk.stop)]


def start(command: List[str], title: str, stdout: Optional[int] = None) -> "subprocess.Popen[str]":
    """Show and start a command."""
    print("\n-- %s\n$ %s" % (title, " ".join(shlex.quote(word) for word in command)), flush=True)
    try:
        return subprocess.Popen(command, stdout=stdout, universal_newlines=True)
    except OSError as error:
        raise UserError("%s: %s; is it installed and on the PATH?" % (command[0], error.strerror))


def finish(process: "subprocess.Popen[str]") -> str:
    """Wait for a command, and return what it wrote to a pipe; one that fails has said why, and its exit status becomes ours."""
    written, _ = process.communicate()
    if process.returncode:
        sys.exit(process.returncode if process.returncode > 0 else 128 - process.returncode)
    return written or ""


def estimate(args: argparse.Namespace, chunks: List[Chunk]) -> None:
    """Print what the rest will take, from a measured sample; UserError if the disk is too small for two chunks."""
    videos, largest = sum(chunk.stop - chunk.start for chunk in chunks), max(chunk.stop - chunk.start for chunk in chunks)
    size = read_protocol(args.protocol).nbytes(args.dtype)
    need, free = min(2 * largest, videos) * size, shutil.disk_usage(args.output_dir).free
    if need > free:
        raise UserError("%s: two chunks of %d videos need %.1f GB, %.1f GB are free; free some, or use a smaller --chunk"
                        % (args.output_dir, largest, need / 1e9, free / 1e9))
    sample = chunks[0]._replace(stop=min(chunks[0].stop, chunks[0].start + SAMPLE))
    began = time.time()
    finish(start(preprocess_command(args, sample), "estimate: preprocessing, on %d videos" % (sample.stop - sample.start)))
    preprocessing = (time.time() - began) / (sample.stop - sample.start)
    printed = finish(start(args.infer + ["--loop=2"], "estimate: inference", subprocess.PIPE))
    throughput = throughput_in(printed)
    if not throughput:
        raise UserError("%s: printed no throughput line of ais_bench; is it TSM_infer.py or ais_bench?" % " ".join(args.infer))
    inference = 1 / throughput
    print("\nto do: %d videos in %d chunks; at most %.1f GB of tensors at a time (%.1f GB free), %.1f GB in all\n"
          "time: preprocessing %.2f s, inference %.2f s a video: between %.0f and %.0f minutes, as the two overlap" % (
              videos, len(chunks), need / 1e9, free / 1e9, videos * size / 1e9, preprocessing, inference,
              videos * max(preprocessing, inference) / 60, videos * (preprocessing + inference) / 60), flush=True)


def process(args: argparse.Namespace, chunks: List[Chunk]) -> None:
    """Preprocess and infer the chunks, one ahead of the other."""
    title = "chunk %d:%d"
    ahead = start(preprocess_command(args, chunks[0]), "preprocess " + title % chunks[0][:2])
    try:
        for number, chunk in enumerate(chunks):
            finish(ahead)
            for following in chunks[number + 1 : number + 2]:
                ahead = start(preprocess_command(args, following), "preprocess " + title % following[:2])
            tensors = os.path.join(chunk.folder, "preprocess_bin")
            if manifest_of(chunk)["samples"]:
                finish(start(args.infer + ["--input", tensors, "--output", RESULTS, "--output_dirname", chunk.name,
                                           "--outfmt", "TXT"], "infer " + title % chunk[:2]))
            mark_done(chunk)
            shutil.rmtree(tensors)
    finally:
        if ahead.poll() is None:
            ahead.terminate()
            ahead.wait()


def main() -> None:
    args = get_args()
    if args.size:
        protocol = read_protocol(args.protocol)
        print(chunk_size(len(read_list(args.ann_file, protocol)), args.dtype, protocol))
        return
    os.makedirs(args.output_dir, exist_ok=True)
    with locked(args.output_dir):
        chunks = plan(args.ann_file, args.data_root, args.naming, args.chunk, args.output_dir, [args.preprocess, args.infer],
                      args.models, read_protocol(args.protocol))
        current = {chunk.name for chunk in chunks}
        for name in os.listdir(args.output_dir):
            if name == "preprocess_bin" or name.startswith("chunk_") and name not in current:
                shutil.rmtree(os.path.join(args.output_dir, name))  # of a run that was divided otherwise
        left = [chunk for chunk in chunks if not is_done(chunk)]
        print("%d of %d chunks are done" % (len(chunks) - len(left), len(chunks)))
        if left:
            estimate(args, left)
            process(args, left)
        merge_chunks(chunks, args.output_dir, args.ann_file)


if __name__ == "__main__":
    run(main)

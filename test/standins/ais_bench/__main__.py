"""The command line, files and figures of `python3 -m ais_bench` (Ascend/tools, June 2023), for a static model with one
input and one output; only the execution is ONNX Runtime's. Written apart from the suite, so that the two can be compared.

With STANDIN_GENERATION=2025 it is that of December 2025, which looks at paths, owners and permissions before it runs.
STANDIN_FLAKY=FOLDER holds files called by a device: that device fails every second time, or with `dead` in it each time.
STANDIN_CALLS=FILE is told the device of each call. STANDIN_CRASHES=TEXT ends at a model whose path holds the text, as a crash does.
"""

import argparse
import json
import os
import re
import signal
import stat
import sys
import time

import numpy as np
import onnxruntime

GENERATION = os.environ.get("STANDIN_GENERATION", "2023")
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
SUFFIXES = (".npy", ".NPY", ".bin", ".BIN")


def whole(low, high=None):
    def convert(text):
        if GENERATION == "2025" and not text.isdigit():
            raise argparse.ArgumentTypeError("%s contains special characters other than numbers." % text)
        value = int(text)
        if value < low or high is not None and value > high:
            raise argparse.ArgumentTypeError("%s is out of range" % text)
        return value
    return convert


def devices(text):
    return [whole(0, 255)(part) for part in text.split(",")]


def yes_or_no(text):
    if text.lower() not in ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"):
        raise argparse.ArgumentTypeError("Boolean value expected true, 1, false, 0 with case insensitive.")
    return text.lower() in ("yes", "true", "t", "y", "1")


def legal(path, refused, most):
    """Exit with status 2, as the ais_bench of December 2025 does, if it would not take `path`."""
    full = os.path.abspath(path)
    try:
        if re.search("[^_A-Za-z0-9/.-]", full):
            raise PermissionError("path contains illegal char, legal chars include A-Z a-z 0-9 _ - / .")
        if os.path.islink(full):
            raise PermissionError("path :%s is a soft link, not supported, please import file(or directory) directly" % full)
        found = os.stat(full)
        if path.endswith(".onnx"):
            raise PermissionError("path:%s, file type not in ['om']" % full)
        if found.st_uid != os.geteuid() and found.st_gid not in os.getgroups():
            raise PermissionError("current user isn't path:%s's owner or ownergroup" % full)
        if found.st_mode & refused:
            raise PermissionError("The file %s is group writable, or is others writable, permission should not be over %s"
                                  % (full, most))
    except PermissionError as error:
        print("[ERROR] %s" % error)
        sys.stderr.write("ais_bench: error: path:%s is illegal. Please check.\n" % path)
        sys.exit(2)


def check_security(args):
    inputs = args.input.split(",") if args.input else []
    if args.input and os.path.isdir(args.input):
        inputs += input_files(args.input)
    for path in [args.model] + inputs:
        legal(path, OTHERS_WRITE, "0o755(rwxr-xr-x)")
    if args.output and os.path.lexists(args.output):
        legal(args.output, OTHERS_WRITE | stat.S_IROTH | stat.S_IXOTH, "0o750(rwxr-x---)")


def get_args():
    cli = argparse.ArgumentParser(prog="ais_bench")
    cli.add_argument("--model", "-m", required=True)
    cli.add_argument("--input", "-i")
    cli.add_argument("--output", "-o")
    cli.add_argument("--output_dirname")
    cli.add_argument("--outfmt", default="BIN", choices=["NPY", "BIN", "TXT"])
    cli.add_argument("--loop", "-l", type=whole(1, 100000 if GENERATION == "2025" else None), default=1)
    cli.add_argument("--warmup_count", type=whole(0), default=1)
    cli.add_argument("--batchsize", type=whole(1))
    cli.add_argument("--device", "-d", type=devices, default=[0])
    cli.add_argument("--pure_data_type", default="zero", choices=["zero", "random"])
    cli.add_argument("--run_mode", default="array", choices=["array", "files", "tensor", "full"])
    cli.add_argument("--output_batchsize_axis", type=whole(0), default=0)
    for name in ("debug", "display_all_summary", "profiler", "dump"):
        cli.add_argument("--" + name, type=yes_or_no, default=False)
    args = cli.parse_args()
    if args.output_dirname and not args.output:
        stop("parameter --output_dirname cann't be used alone. Please use it together with the parameter --output!")
    if (args.profiler or args.dump) and not args.output:
        stop("when dump or profiler, miss output path, please check them!")
    if GENERATION == "2025":
        check_security(args)
    return args


def stop(text):
    print("[ERROR] " + text)
    sys.exit(1)


def natural(name):
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", name)]


def input_files(given):
    if os.path.isdir(given):
        names = [name for name in os.listdir(given) if os.path.splitext(name)[1] in SUFFIXES]
        files = [os.path.join(given, name) for name in sorted(names, key=natural)]
    else:
        files = given.split(",")
    for path in files:
        if not os.path.isfile(path):
            stop("Invalid input path: %s does not exist" % path)
    if not files:
        stop("%s has no .npy or .bin files" % given)
    return files


def contents(path, dtype):
    """A file's values, flat."""
    return np.load(path).reshape(-1) if path.lower().endswith(".npy") else np.fromfile(path, dtype)


def packed(files, shape, dtype):
    """(files of the batch, the batch) for each run of the model, the last one filled up with its own first file."""
    need = int(np.prod(shape)) * np.dtype(dtype).itemsize
    each = contents(files[0], dtype).nbytes
    if not each or need % each:
        stop("arg0 tensorsize: %d filesize: %d not match" % (need, each))
    per_run = need // each
    for first in range(0, len(files), per_run):
        names = files[first:first + per_run]
        parts = [contents(name, dtype) for name in names]
        for part in parts:
            if part.nbytes != each:
                stop("arg0 tensorsize: %d filesize: %d not match" % (need, part.nbytes))
        parts += [parts[0]] * (per_run - len(parts))
        yield names, np.concatenate(parts).reshape(shape)


def divided(output, names, count, axis):
    """The output of a batch by its files."""
    if output.shape[axis] % count:
        print("[ERROR] save out files error array shape:%s filesinfo:%s files_count_perbatch:%d ndata.shape%d:%d" % (
            output.shape, [names], count, axis, output.shape[axis]))
        raise RuntimeError()
    return np.split(output, count, axis=axis)


def save(path, array, fmt):
    """Write one file's output; the path it got."""
    path += "." + fmt.lower()
    if fmt == "NPY":
        np.save(path, array)
    elif fmt == "BIN":
        array.tofile(path)
    else:
        with open(path, "w") as file:
            for row in array.reshape(-1, array.shape[-1]):
                file.write("".join("%f " % value for value in row) + "\n")
    return path


def statistics(times):
    return {"min": min(times), "max": max(times), "mean": float(np.mean(times)), "median": float(np.median(times)),
            "percentile(99%)": float(np.percentile(times, 99)), "count": len(times)}


def wear(device):
    """Tell of the call, and fail if that is asked of the device."""
    if "STANDIN_CALLS" in os.environ:
        with open(os.environ["STANDIN_CALLS"], "a") as file:
            file.write("%d\n" % device)
    path = os.path.join(os.environ.get("STANDIN_FLAKY", "/nowhere"), str(device))
    if os.path.exists(path):
        with open(path, "r+") as file:
            said = file.read()
            file.write(".")
        if said.startswith("dead") or len(said) % 2 == 0:
            stop("aclrtSetDevice failed on device %d, error code 507008" % device)


def crash(model):
    """Die of a model, if that is asked."""
    if os.environ.get("STANDIN_CRASHES", "\n") in model:
        os.kill(os.getpid(), signal.SIGSEGV)


def main():
    args = get_args()
    wear(args.device[0])
    crash(args.model)
    if not os.path.isfile(args.model):
        stop("%s: no such model" % args.model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with open(args.model, "rb") as file:
        session = onnxruntime.InferenceSession(file.read(), options, providers=["CPUExecutionProvider"])
    tensor, *more = session.get_inputs()
    rest = {each.name: np.zeros(each.shape, np.float32) for each in more}  # as pure inference fills every input
    if rest and args.input:
        stop("%s: has %d inputs, and --input gives one" % (args.model, 1 + len(rest)))
    shape, dtype = tensor.shape, {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}[tensor.type]
    if args.input:
        runs = packed(input_files(args.input), shape, dtype)
    else:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        data = bytes(size) if args.pure_data_type == "zero" else os.urandom(size)
        runs = iter([(["pure_infer_data"], np.frombuffer(data, dtype).reshape(shape))])
    folder = None
    if args.output:
        folder = os.path.join(args.output, args.output_dirname or time.strftime("%Y_%m_%d-%H_%M_%S"))
        for made in (args.output, folder):
            os.makedirs(made, 0o750 if GENERATION == "2025" else 0o777, exist_ok=True)

    filesinfo, to_device, execute, from_device = {}, [], [], []

    def timed(times, work):
        start = time.perf_counter()
        result = work()
        times.append(1000 * (time.perf_counter() - start))
        return result

    for number, (names, batch) in enumerate(runs):
        if number == 0 and "STANDIN_WITHOUT_WARMUP" not in os.environ:  # a CPU gains nothing by it
            for _ in range(args.warmup_count):
                session.run(None, dict(rest, **{tensor.name: batch}))
        there = timed(to_device, batch.copy)
        for _ in range(args.loop):
            output = timed(execute, lambda: session.run(None, dict(rest, **{tensor.name: there}))[0])
        output = timed(from_device, output.copy)
        if folder:
            per_file = int(np.prod(shape)) // contents(names[0], dtype).size if args.input else 1
            for name, part in zip(names, divided(output, names, per_file, args.output_batchsize_axis)):
                stem = os.path.basename(name).split(".")[0]
                saved = save(os.path.join(folder, stem + "_0"), part, args.outfmt)
                filesinfo[len(filesinfo)] = {"infiles": [name], "outfiles": [saved]}

    throughput = 1000 * (args.batchsize or shape[0]) / np.mean(execute)
    summary = {
        "filesinfo": filesinfo, "args": sys.argv, "NPU_compute_time": statistics(execute),
        "H2D_latency": statistics(to_device), "D2H_latency": statistics(from_device), "throughput": throughput,
        "npu_compute_time_list": execute, "pid": os.getpid(),
    }
    print("[INFO] -----------------Performance Summary------------------")
    for name in ("H2D_latency", "NPU_compute_time", "D2H_latency") if args.display_all_summary else ("NPU_compute_time",):
        figures = ", ".join("%s = %s" % item for item in summary[name].items() if item[0] != "count")
        print("[INFO] %s (ms): %s" % (name, figures))
    print("[INFO] throughput 1000*batchsize.mean(%d)/NPU_compute_time.mean(%s): %s"
          % (args.batchsize or shape[0], np.mean(execute), throughput))
    print("[INFO] ------------------------------------------------------")
    if folder:
        with open(folder + "_summary.json", "w") as file:
            json.dump(summary, file)


if __name__ == "__main__":
    main()

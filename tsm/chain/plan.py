#!/usr/bin/env python3
"""What run_all.sh decides, in three steps that print assignments for the shell, and how it ends.

    python3 tsm/chain/plan.py begin 1 --device cpu    # the options, before anything is done: by any Python, without a package
    python3 tsm/chain/plan.py tools "$plan"           # in the work folder, by the interpreter of the stages: what they need of it
    python3 tsm/chain/plan.py stages "$plan"          # once the checkpoint was examined and the list is there; writes run.json
    python3 tsm/chain/plan.py end "$plan"             # prints the closing words, and what to run next

`plan` is what the step before knew, as JSON.
"""

import argparse
import contextlib
import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from typing import Any, Callable, Dict, List, Optional, Tuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # of a script in a folder of a package

from tsm import SUITE, workfolder
from tsm.chain import npu
from tsm.cli import AGREE_ON, UserError, fail, non_negative, parser, positive, run, warn
from tsm.files import read_json
from tsm.machine import has_bf16

PACKAGES = ("cv2", "jinja2", "numpy", "onnx", "onnxruntime", "torch", "tqdm", "xxhash")
EXPORTER = "tools/deployment/pytorch2onnx.py"  # of mmaction2
GUIDE_S = "configs/recognition/tsm/tsm_r50_1x1x8_50e_sthv2_rgb.py"  # its config of the guide's network:
NETWORK = "TSM ResNet-50"
DEMO = "tsm_demo.pth", "demo/videos", "sthv2_val_list_videos.txt", "demo/annotations/something-something-v2-labels.json"
USUAL = {"on_error": "fail", "precision": "fp32", "agreement": AGREE_ON, "dtype": "float32", "input_dtype": "float32", "fusion": "score",
         "form": "guide", "output_dir": workfolder.PREPROCESSED, "chunk": "0", "gallery": 12}  # values that no command has to be told
DEMO_ONLINE = "tsm_demo_uni.pth"  # whose shift is from the past alone
ABOUT = """usage: ./run_all.sh BATCH_SIZE [options]

  ./run_all.sh 1                                the bundled demo, in work/
  ./run_all.sh 1 --checkpoint official --data_root VIDEOS --ann_file LIST
  ./run_all.sh --model_only --checkpoint my.pth            no dataset needed

Running it again does what is missing. Each option: docs/datasets.md, atlas.md."""
AFTER = "exit status: 0 done; 1 a stage failed; 2 wrong usage; 130, 143 stopped"


def get_args(words: Optional[List[str]] = None) -> argparse.Namespace:
    cli = parser(ABOUT)
    cli.usage, cli.epilog, some = argparse.SUPPRESS, AFTER, like(".+", "wants a value")
    cli.add_argument("batch", nargs="?", type=positive, help=argparse.SUPPRESS)
    cli.add_argument("--data_root", type=some, metavar="DIR", help="the videos or frames that --ann_file names")
    cli.add_argument("--ann_file", type=some, metavar="FILE", help="list of TSM_dataset.py")
    cli.add_argument("--checkpoint", type=some, metavar="WHAT", help="path, address, published name, or official")
    cli.add_argument("--config", type=some, metavar="FILE", help="its mmaction2 config; read, not run")
    cli.add_argument("--segments", type=positive, metavar="N", help="frames of a view, where nothing says it")
    cli.add_argument("--labels", type=some, metavar="FILE", help="names of the classes")
    cli.add_argument("--model_only", action="store_true", help="make the proved model, measure nothing")
    cli.add_argument("--online", action="store_true", help="a model that answers at every frame")
    cli.add_argument("--clip", type=some, help=argparse.SUPPRESS)
    cli.add_argument("--every", type=like(r"\d*\.?\d+", "seconds above 0"), help=argparse.SUPPRESS)
    cli.add_argument("--shift", type=some, metavar="KIND", help="of the checkpoint: bi, past1, bi-still, …")
    cli.add_argument("--filename_tmpl", type=some, metavar="TMPL", help="names of frames (img_%%05d.jpg)")
    cli.add_argument("--start_index", type=non_negative, metavar="N", help="number of the first frame (1)")
    cli.add_argument("--on_error", choices=("fail", "skip"), default="fail", metavar="DO", help="of unreadable videos: fail, or skip")
    cli.add_argument("--dtype", choices=("float32", "uint8"), default="float32", metavar="T", help="of tensors: float32, or uint8")
    cli.add_argument("--tune", action="store_true", help="npu: try forms of the model on the chip, use the best")
    cli.add_argument("--aipp", action="store_true", help=argparse.SUPPRESS)
    cli.add_argument("--precision_mode", type=some, metavar="M", help=argparse.SUPPRESS)
    cli.add_argument("--precision_mode_v2", type=some, metavar="M", help=argparse.SUPPRESS)
    cli.add_argument("--num_worker", type=positive, metavar="N", help="decoding processes (all processors)")
    cli.add_argument("--stream", action="store_true", help="cpu: no tensors on disk; the default above 20 GB")
    cli.add_argument("--chunk", type=like("auto|0|[1-9][0-9]{0,6}", "a whole number, 0 or auto"), default="auto", metavar="N",
                     help="npu, --ray: N videos at a time; 0: all")
    cli.add_argument("--devices", type=like(r"(?!.*\b(\d+),(.*,)?\1\b)\d{1,3}(,\d{1,3})*", "a list of chips, each once, as in 0,1"),
                     metavar="LIST", help="npu: on these chips at once, as in 0,1")
    cli.add_argument("--ray", type=like("auto|local|[^/]+:[0-9]{1,5}", "auto, local or HOST:PORT"), metavar="ADDRESS",
                     help="on a Ray cluster: auto, local, HOST:PORT")
    cli.add_argument("--device", choices=("auto", "cpu", "npu"), default="auto", metavar="D", help="cpu, npu or auto: npu if CANN is here")
    cli.add_argument("--fusion", choices=("score", "prob"), metavar="HOW", help="of views: score or prob (as the model was tested)")
    cli.add_argument("--precision", choices=("fp32", "bf16", "int8"), default="fp32", metavar="P", help="cpu: fp32, bf16 or int8")
    cli.add_argument("--backend", choices=("openvino", "onnxruntime"), metavar="B", help="cpu: openvino or onnxruntime")
    cli.add_argument("--exporter", choices=("auto", "builtin", "mmaction2"), default="auto", metavar="E",
                     help="mmaction2, builtin, or auto: whichever works")
    cli.add_argument("--chip", type=some, metavar="NAME", help="npu: 310P3, … (asks npu-smi)")
    cli.add_argument("--perf_batches", type=like("[1-9][0-9]{0,6}(,[1-9][0-9]{0,6})*", "whole numbers above 0, as in 1,4,8"),
                     metavar="LIST", help="batch sizes to measure, as in 1,4,8")
    cli.add_argument("--loop", type=positive, metavar="N", help="repetitions of that measurement")
    cli.add_argument("--again", action="store_true", help="measure the speed again")
    cli.add_argument("--agreement", type=non_negative, metavar="N", default=AGREE_ON,
                     help="videos compared with fp32 here (%(default)s); 0: none")
    cli.add_argument("--gallery", type=non_negative, metavar="N", default=12, help="videos a kind that the page shows (12)")
    cli.add_argument("--work_dir", type=some, metavar="DIR", help="where all goes (work/ beside this)")
    cli.add_argument("--clean", nargs="?", const="tensors", choices=("tensors", "all"), metavar="all",
                     help="delete the tensors there; all: all that runs made")
    args = cli.parse_args(words)
    args.work_dir = args.work_dir or os.path.join(SUITE, "work/online" if args.online else "work")
    args.batch = args.batch or (1 if args.model_only or args.clean else cli.error("BATCH_SIZE is missing, as in ./run_all.sh 1"))
    return args


def like(pattern: str, remedy: str) -> Callable[[str], str]:
    """An argparse type: text, all of which is as `pattern` says."""
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text, re.DOTALL):
            raise argparse.ArgumentTypeError("%r: %s" % (text, remedy))
        return text

    return check


def begin(args: argparse.Namespace) -> Optional[Dict[str, Any]]:
    """Before anything is done: find the device, refuse what cannot go well, make paths absolute, and the work folder."""
    args.here, args.work_dir, args.begun = os.getcwd(), absolute(args.work_dir), workfolder.now()
    if args.clean:
        return print("deleted: %s" % (", ".join(workfolder.clean(args.work_dir, args.clean == "all")) or "nothing, as nothing is there"))
    python = os.environ.get("PYTHON", "")
    set_env, why = find_device(args)
    args.chosen = {"device": "%s, %s" % (args.device, why)}
    check_usage(args)
    for name in ("data_root", "ann_file", "labels", "config", "checkpoint", "clip"):
        path, is_there = getattr(args, name), os.path.isdir if name == "data_root" else os.path.isfile
        if path and is_there(path):
            setattr(args, name, absolute(path))
        elif path and not (name == "checkpoint" and re.match("official$|https?://|tsm_.*-", path)):  # what TSM_checkpoint.py may know
            raise UserError("%s: no such file or folder; check --%s" % (path, name))
    with contextlib.suppress(OSError):  # the next line tells
        os.makedirs(args.work_dir, exist_ok=True)
    if not os.access(args.work_dir, os.W_OK | os.X_OK):
        raise UserError("%s: cannot be made, or not be written to; choose another --work_dir" % args.work_dir)
    args.suite = from_folder(os.path.realpath(args.work_dir))
    args.given_exporter, args.mmaction2 = args.exporter, absolute(os.environ.get("MMACTION2", ""))
    own = "python3" if args.device == "npu" else args.suite + ".venv/bin/python"
    examine = [args.checkpoint or (DEMO_ONLINE if args.online else "")] + flags(vars(args), "config segments shift labels")
    return dict(python=(absolute(python) if "/" in python else python) or own, s=args.suite, device=args.device, work_dir=args.work_dir,
                set_env=set_env, said="Running on the %s (%s), in %s" % (args.device.upper(), why, typed(args, args.work_dir)),
                own_checkpoint=args.checkpoint or "", fetched="" if os.path.isabs(args.checkpoint or "/") else "yes",
                own_data=args.data_root or "", online="yes" if args.online else "",
                demo=DEMO_ONLINE if args.online else DEMO[0], model_only="yes" if args.model_only else "",
                again="yes" if args.again else "", examine=examine + ["--output", workfolder.PROTOCOL],
                examined=[word for path in (examine[0], args.config, args.labels) if path for word in ("--in", path)])


def from_folder(work: str) -> str:
    """How paths of the suite begin for commands in this folder: relative inside the suite, so that it may be moved."""
    suite = os.path.realpath(SUITE)
    if work == suite:
        return ""
    return (os.path.relpath(suite, work) if work.startswith(suite + "/") else SUITE) + "/"


def typed(args: argparse.Namespace, path: str) -> str:
    """A path as the caller can type it: from where they stand, if it lies below."""
    return shlex.quote(os.path.relpath(path, args.here) if (path + "/").startswith(args.here.rstrip("/") + "/") else path)


def absolute(path: str) -> str:
    """A path of the caller's, for a command in the work folder."""
    return os.path.join(os.getcwd(), path) if path else ""


def find_device(args: argparse.Namespace) -> Tuple[str, str]:
    """(CANN's set_env.sh, how the device was chosen); sets the device where it is auto. CANN's tools decide, and the
    hardware has a say. Tests put ASCEND_SYSROOT before the system's folders."""
    root, home = os.environ.get("ASCEND_SYSROOT", ""), os.environ.get("HOME", "")
    found = npu.toolkits([root + "/usr/local/Ascend", home + "/Ascend"])
    set_env = absolute(os.environ.get("ASCEND_SET_ENV", "")) or (found or [""])[0]
    cann = shutil.which("atc") or (set_env if os.path.isfile(set_env) else "")
    newest = "; of %d versions of CANN the newest, %s" % (len(found), set_env) if len(found) > 1 and cann == found[0] else ""
    if args.device != "auto":
        return set_env, "by --device" + (newest if args.device == "npu" else "")
    args.device = "npu" if cann else "cpu"
    signs = glob.glob(root + "/dev/davinci*") + glob.glob(root + "/usr/local/Ascend/driver") + list(filter(None, [shutil.which("npu-smi")]))
    if signs and not cann:
        warn("this host has an NPU (%s) but no CANN toolkit: no atc on the PATH, no set_env.sh in %s/usr/local/Ascend or ~/Ascend; so the "
             "CPU is used; name its set_env.sh with ASCEND_SET_ENV" % (" ".join(signs), root))
    return set_env, "%s found here%s" % (cann or "no Ascend toolkit", newest)


def check_usage(args: argparse.Namespace) -> None:
    """Exit 2, with one line, where options do not go together."""
    on_npu, spread = args.device == "npu", args.devices or args.ray
    for wrong, said in (
        (bool(args.data_root) != bool(args.ann_file), "--data_root and --ann_file go together"),
        ((args.config or args.segments or args.shift) and not args.checkpoint, "--config, --segments and --shift are for --checkpoint"),
        ((args.clip or args.every) and not args.online, "--clip and --every are for --online"),
        (args.online and (args.batch != 1 or spread or args.perf_batches),
         "--online takes a frame at a time, on this host, so BATCH_SIZE is 1; leave out --perf_batches, --devices and --ray"),
        (args.backend == "onnxruntime" and args.precision != "fp32", "--precision %s needs --backend openvino" % args.precision),
        (args.stream and (spread or args.chunk != "auto"),
         "--stream is this host's CPU, without chunks; leave it out, or --chunk, --devices, --ray"),
        (args.devices and args.ray, "--devices are this host's, --ray's are a cluster's; leave out one of them"),
        (spread and args.chunk == "0", "--chunk 0 is all at once here; leave it out with --devices and --ray"),
        (on_npu and args.precision != "fp32", "--precision is for the CPU; atc decides it on an NPU"),
        (on_npu and args.backend, "--backend is for the CPU; ais_bench runs the model on an NPU"),
        (args.tune and (args.online or args.model_only or not on_npu), "--tune measures clips on an NPU's chip, where CANN is installed; "
         "leave it out, or --online and --model_only"),
        (args.aipp and (args.online or not on_npu), "--aipp is for clips on an NPU; leave it out, or --online"),
        (args.aipp and args.dtype != "float32", "--aipp takes uint8 as it is; leave out --dtype"),
        (not on_npu and (args.precision_mode or args.precision_mode_v2), "--precision_mode and --precision_mode_v2 are for atc, on an NPU"),
        (args.precision_mode and args.precision_mode_v2, "--precision_mode and --precision_mode_v2 say the same; leave out one of them"),
        (on_npu and args.stream, "--stream is for the CPU; ais_bench reads tensors from files (--chunk bounds how many)"),
        (not on_npu and args.devices, "--devices is for an NPU; a CPU is one device"),
        (args.model_only and (args.data_root or args.precision == "int8"),
         "--model_only measures nothing and takes no videos; leave out --data_root, --ann_file and --precision int8"),
    ):
        if wrong:
            fail(said + " (see --help)", 2)


def tools(args: argparse.Namespace) -> Dict[str, Any]:
    """What the stages need of the host and of this interpreter; the work folder, which this is, is made ready for ais_bench."""
    python, on_npu = sys.executable, args.device == "npu"
    missing = [name for name in PACKAGES if not find_spec(name)]
    if on_npu and shutil.which("atc"):
        args.chip = args.chip or npu.the_chip(npu.smi_info())
    for wrong, said in (
        (on_npu and not shutil.which("atc"),
         "atc: not found; it comes with the CANN toolkit; name its set_env.sh with ASCEND_SET_ENV, or use --device cpu"),
        (on_npu and not find_spec("ais_bench"),
         "ais_bench: %s has no such package; build its wheel from ascend/tools (ais-bench_workload/tool/ais_bench)" % python),
        (missing, "%s lacks packages of the suite (%s); run %s -m pip install -r %s/requirements.txt" % (
            python, ", ".join(missing), python, SUITE)),
        (args.ray and not find_spec("ray"), "--ray %s: %s has no Ray (Python 3.10 or newer); run %s -m pip install -r "
         "%s/requirements-cluster.txt" % (args.ray, python, python, SUITE)),
    ):
        if wrong:
            raise UserError(said)
    if on_npu:
        npu.check_path(os.getcwd())
        npu.prepare(os.getcwd())
    if args.exporter != "builtin":
        args.exporter = find_exporter(args)
    return dict(chip=args.chip or "")


def find_exporter(args: argparse.Namespace) -> str:
    """mmaction2's folder, if it can be used; else builtin. UserError where it is asked for."""
    package = find_spec("mmaction")
    installed = os.path.join(next(iter(package.submodule_search_locations or [""])), ".mim") if package else ""
    places = [place for place in (args.mmaction2, "mmaction2", args.suite + "mmaction2", installed)
              if os.path.isfile(os.path.join(place, EXPORTER))]
    if places:
        imported = subprocess.run([sys.executable, "-c", "import mmaction, mmcv"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if imported.returncode == 0:
            return places[0]
        warn("%s is there, but %s cannot import mmaction with mmcv 1.x" % (places[0], sys.executable))
    if args.exporter == "mmaction2":
        raise UserError("mmaction2: not usable; clone it to ./mmaction2 and install it with mmcv 1.x, set MMACTION2, or use --exporter "
                        "builtin")
    return "builtin"


def stages(args: argparse.Namespace) -> Dict[str, Any]:
    """The options of the stages after the checkpoint's and the list's; writes run.json."""
    from tsm.protocol import SSV2, protocol_from
    from tsm.samples import chunk_size, read_list

    facts: Dict[str, Any] = {"checkpoint": DEMO[0], "network": NETWORK, "fusion": "score"}  # the demo's
    protocol = SSV2
    if args.checkpoint or args.online:
        facts = read_json(workfolder.PROTOCOL)
        protocol = protocol_from(facts, workfolder.PROTOCOL)
    stated = workfolder.PROTOCOL if protocol != SSV2 else ""  # else the guide's commands say it all
    if not args.checkpoint:
        args.labels = args.labels or args.suite + DEMO[3]
    if not args.data_root and not args.model_only:
        args.data_root, args.ann_file, args.labels = args.suite + DEMO[1], DEMO[2], args.labels or args.suite + DEMO[3]
    form = fastest_form(args, facts["checkpoint"]) if args.device == "npu" and not args.online and not args.tune else "guide"
    dtype = "uint8_nhwc" if args.aipp else args.dtype
    if args.model_only:
        args.chunk = "0"
    elif args.chunk == "auto" and not (args.stream or args.devices or args.ray):
        args.chunk = "auto" if chunk_size(len(read_list(args.ann_file, protocol)), dtype, 2, protocol) else "0"
    streamed, on_npu = args.stream or args.online or args.chunk != "0", args.device == "npu"
    export = exporting(args, facts, stated)
    modified = workfolder.ONLINE_MODEL if args.online else workfolder.MODIFIED.replace("*", str(args.batch))
    model = modified.replace("new_", "").replace(".onnx", ".om") if on_npu else modified
    told = workfolder.Run(
        args.data_root, args.ann_file, facts["checkpoint"], args.config or "", args.labels or "", stated,
        args.filename_tmpl or facts.get("filename_tmpl", ""), facts.get("start_index") if args.start_index is None else args.start_index,
        workfolder.EXPORTED, modified, model, args.device, args.precision, args.backend or "",
        args.fusion or facts["fusion"], dtype, workfolder.folder_of(args.ann_file or ""), args.batch,
        sorted({int(size) for size in (args.perf_batches or str(args.batch)).split(",")}),
        dict(args.chosen, form="no tensors on disk" if streamed else "tensors on disk"))
    workfolder.write_run(told)
    args.modified, options = told.modified, options_of(args, told, form)
    args.tune = False  # the next time by what it found
    return dict({name: value for name, value in told._asdict().items() if isinstance(value, (str, list))}, **options,
                export=export, shape=(1,) + protocol.video_shape, streamed="yes" if streamed else "")


def exporting(args: argparse.Namespace, facts: Dict[str, Any], stated: str) -> List[str]:
    """The exporter's script, and what it takes before the output."""
    if args.exporter != "builtin" and args.online:
        args.exporter = "builtin"  # the other knows one kind of shift
    if args.exporter != "builtin" and not args.config and (stated or facts["network"] != NETWORK):
        if args.given_exporter == "mmaction2":
            raise UserError("%s: mmaction2's exporter needs its config; give it by --config" % facts["checkpoint"])
        warn("mmaction2's exporter needs the checkpoint's config, which --config gives; the built-in one is used")
        args.exporter = "builtin"
    args.chosen["exporter"] = args.exporter
    if args.exporter != "builtin":
        return [os.path.join(args.exporter, EXPORTER), args.config or os.path.join(args.exporter, GUIDE_S), facts["checkpoint"]]
    return [args.suite + "pytorch2onnx.py"] + ([args.config] if args.config else []) + [facts["checkpoint"]] + flags(
        {"segments": args.segments, "protocol": stated}, "segments protocol")


def fastest_form(args: argparse.Namespace, checkpoint: str) -> str:
    """The form that tune.json says is the fastest; its input is set, unless the user chose one."""
    from tsm.chain import tune

    chosen = "aipp" if args.aipp else args.dtype
    found = tune.tuned(args.chip, checkpoint, list(tune.INPUTS) if chosen == "float32" else [chosen])
    if not found:
        return "guide"
    args.aipp, args.dtype = found.input == "aipp", "uint8" if found.input == "uint8" else "float32"
    args.chosen["tuned"] = "form %s, input %s: %.2f videos/s with their transfer (%s)" % (
        found.form, found.input, found.with_transfer or 0, workfolder.TUNE)
    print("run_all.sh: the fastest on this chip is " + args.chosen["tuned"], file=sys.stderr)
    return found.form


def options_of(args: argparse.Namespace, told: workfolder.Run, form: str) -> Dict[str, Any]:
    """The options of the stages, as far as a run's differ from those of the guide."""
    on_npu, int8 = told.device == "npu", workfolder.INT8 if told.precision == "int8" else ""
    by_ais_bench = on_npu and not args.online
    known = dict(vars(args), **told._asdict(), int8_model=int8, form=form)
    made_by = dict(known, target="online" if args.online else "ascend" if on_npu else "cpu", fusion="score" if args.online else told.fusion,
                   input_dtype="aipp" if args.aipp else told.dtype)
    computed_by = dict(known, output_dir=told.tensors, chunk=args.chunk.replace("auto", "0"), **(
        {} if by_ais_bench else {"protocol": "", "dtype": ""}))
    reported = dict(known, model=told.modified, agreement=workfolder.AGREEMENT if by_ais_bench and args.agreement else "")
    videos = flags(known, "data_root ann_file on_error num_worker filename_tmpl start_index")
    engine = ["--backend", "ascend"] * args.online if on_npu else flags(known, "precision agreement backend int8_model")
    batches = sorted({told.batch, *told.perf_batches})
    config = workfolder.MODIFIED.replace("*", str(batches[0])).replace(".onnx", ".cfg") if args.aipp else ""
    return dict(
        videos=videos, preprocess=videos + ["--batch_size", str(told.batch)] + flags(known, "dtype protocol"),
        modify=flags(made_by, "target fusion protocol input_dtype form labels"),
        tune=["--model", told.exported, "--batch_size", str(told.batch)] + flags(
            known, "checkpoint chip data_root ann_file loop protocol fusion filename_tmpl start_index precision_mode precision_mode_v2"
        ) if args.tune else [],
        atc=npu.atc_options(config, args.precision_mode, args.precision_mode_v2), aipp=config,
        bench=["-m", "ais_bench"] if by_ais_bench else [args.suite + "TSM_infer.py"] + engine,
        stream=[args.suite + "TSM_stream.py"] + engine + flags(computed_by, "output_dir devices ray protocol dtype chunk")
        + ["--curve"] * args.online + flags(known, "every"),
        clip=args.clip or "",
        report=["--perf_batches", *told.perf_batches, "--batch_size", str(told.batch)] + flags(
            reported, "checkpoint device precision model data_root gallery agreement"),
        batches=batches, int8=int8,
        models=told.modified if args.online else workfolder.COMPILED if on_npu else workfolder.MODIFIED,
        loop=args.loop or (20 if on_npu else ""), agreement=args.agreement if by_ais_bench else 0,
        **({"model": told.modified} if args.online else {}))


def flags(values: Dict[str, Any], names: str) -> List[str]:
    """A command's words for those of these options that have a value, and not their usual one."""
    return [word for name in names.split() if values[name] not in (None, "", USUAL.get(name)) for word in ("--" + name, str(values[name]))]


def in_shell(settings: Dict[str, Any]) -> str:
    """Assignments for bash, a sequence as an array."""
    def value(given: Any) -> str:
        return "(%s)" % " ".join(map(value, given)) if isinstance(given, (list, tuple)) else shlex.quote(str(given))

    return "".join("%s=%s\n" % (name, value(given)) for name, given in settings.items())


def end(args: argparse.Namespace) -> None:
    """The closing words: where to look, what to run next; that nothing was to do where no stage did anything."""
    def of_suite(name: str) -> str:
        return typed(args, os.path.join(SUITE, name))

    def of_work(name: str) -> str:
        return typed(args, os.path.join(args.work_dir, name))

    entries = workfolder.read_stages().values()
    done = not entries or any(entry.get("ended", "") >= args.begun for entry in entries)
    print("\n%s %s" % ("Done." if done else "Nothing to do: all is as the last run left it (--again measures the speed again).",
                       "The model is %s" % of_work(args.modified) if args.model_only else "Open %s" % of_work(workfolder.PAGE)))
    python = shlex.quote(sys.executable) if os.environ.get("PYTHON") else of_suite(".venv/bin/python")
    video = "VIDEO" if args.checkpoint else of_suite("demo/videos/74225.webm")
    print("Next:   %s %s --model %s %s" % (python, of_suite("TSM_predict.py"), of_work(args.modified), video))
    if args.device == "cpu" and args.precision == "fp32" and not args.model_only:
        script = of_suite("run_all.sh")
        print("Faster: %s %d … --precision %s (the report says how often the answers are those of fp32)" % (
            script if "/" in script else "./" + script, args.batch, "bf16" if has_bf16() else "int8"))


STEPS = {"begin": begin, "tools": tools, "stages": stages, "end": end}


def main() -> None:
    sys.argv[0] = "run_all.sh"  # whose words these are
    step, words = (sys.argv[1], sys.argv[2:]) if sys.argv[1:2] and sys.argv[1] in STEPS else ("begin", sys.argv[1:])
    args = get_args(words) if step == "begin" else argparse.Namespace(**json.loads(words[0]))
    settings = STEPS[step](args)
    if settings is None:
        return
    sys.stdout.buffer.write(os.fsencode(in_shell(dict(plan=json.dumps(vars(args)), **settings))))


if __name__ == "__main__":
    run(main)

#!/usr/bin/env bash
# The whole chain, stage by stage; ./run_all.sh --help tells how to use it. Every decision that takes more than a line
# is in the script that a stage runs; each stage prints its command, so any of them can be copied and run by hand.
set -euo pipefail
unset CDPATH

usage() {
    cat <<'HELP'
usage: ./run_all.sh BATCH_SIZE [options]

From a TSM checkpoint to measured accuracy and throughput: lists, preprocessing, export, graph surgery, inference, top-k,
throughput, and a report: a table, a page (report.html) and report.json. With no options it runs the bundled demo; running it
again redoes only what is missing or out of date.

data and model
  --data_root DIR        folder of the videos, or of the extracted frames, that --ann_file names
  --ann_file FILE        list of TSM_dataset.py: `<video> <label>` or `<frame folder> <frames> <label>` per line
  --checkpoint WHAT      a path, an http(s) address, a name of `TSM_checkpoint.py --list`, or `official` (the guide's, which is
                         fetched); default: the demo's. It is examined before anything else is done
  --config FILE          the mmaction2 config that it was trained with; it is read, not run
  --segments N           frames of a view, where neither a config nor the checkpoint says it
  --labels FILE          names of the classes, kept in the model for TSM_predict.py and the report
  --filename_tmpl TMPL, --start_index N    names of extracted frames (default: img_%05d.jpg, from 1)
  --on-error fail|skip   what an unreadable video does (default: fail)
  --dtype float32|uint8  tensors on disk: float32 is the guide's, uint8 a quarter of it, cpu only (default: float32)
  --num_worker N         preprocessing processes (default: the processors that this process may use)
  --stream               cpu only: decode, infer and forget, with no tensor on disk
  --chunk N              npu and --ray: in chunks of N videos, of which only scores are kept; cpu: as --stream; 0: all at once
                         (default: all at once while that is under 20 GB; else on a cpu --stream, on an npu as many as fit)
  --devices LIST         npu only: in chunks on these chips at once, as in 0,1 (default of a list in chunks: all of npu-smi's)
  --ray ADDRESS          in chunks on the hosts of a Ray cluster: auto, HOST:PORT, or local (see TSM_stream.py --help)
how it runs
  --device auto|cpu|npu  npu: atc and ais_bench on an Atlas host; cpu: TSM_infer.py (default: npu if CANN is installed)
  --fusion score|prob    score: mean of the class scores, then softmax (the guide); prob: softmax per view, then mean
                         (default: score for the guide's network and test, else what the config says, else prob)
  --precision P          cpu only: fp32, bf16, or int8, calibrated on 32 of the videos (default: fp32)
  --backend B            cpu only: openvino or onnxruntime (default: openvino if it is installed)
  --exporter E           auto, builtin, or mmaction2 (./mmaction2, $MMACTION2 or the installed package; default: auto)
  --chip NAME            npu only: chip name, e.g. 310P3 (default: read from npu-smi)
  --loop N               repetitions of the throughput measurement (default: 20; cpu: about 8 videos in all)
  --perf_batches LIST    batch sizes to measure, e.g. 1,4,8,16,32 (default: BATCH_SIZE)
  --agreement N          how many videos are computed again in fp32 on this CPU, to tell what a device or a precision changes;
                         0: none (default: 8)
  --gallery N            how many videos of each kind the page shows as film strips: failures, near misses, successes;
                         0: none, so that it holds no frame of the data (default: 12)
  --work_dir DIR         where everything goes (default: this folder)

PYTHON=/path/to/python uses that interpreter's environment as it is and installs nothing; otherwise the first run sets up
.venv in this folder (cpu), or python3 is used as it is (npu). CANN is looked for in ascend-toolkit and cann, of
/usr/local/Ascend and ~/Ascend; ASCEND_SET_ENV=/path/to/set_env.sh names it.
exit status: 0 done; 1 a stage failed (or the failing tool's own status); 2 wrong usage
HELP
}
misuse() { echo "run_all.sh: error: $* (see --help)" >&2; exit 2; }
fail() { echo "run_all.sh: error: $*" >&2; exit 1; }
warn() { echo "run_all.sh: warning: $*" >&2; }

suite=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
batch='' data_root='' ann_file='' checkpoint='' on_error=fail dtype=float32 num_worker='' chunk=auto
device=auto fusion='' precision=fp32 backend='' exporter=auto chip='' loop='' perf_batches='' work_dir=$suite
stream='' devices='' ray='' labels='' filename_tmpl='' start_index='' config='' segments='' protocol='' agreement='' gallery=''
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --stream) stream=1; shift ;;
    --data_root | --ann_file | --labels | --filename_tmpl | --start_index | --checkpoint | --config | --segments | --on-error | \
        --dtype | --num_worker | --chunk | --devices | --ray | --device | --fusion | --precision | --backend | --exporter | --chip | \
        --loop | --perf_batches | --agreement | --gallery | --work_dir)
        [ -n "${2:-}" ] || misuse "$1 wants a value"
        name=${1#--}
        printf -v "${name//-/_}" %s "$2"
        shift 2
        ;;
    -*) misuse "unknown option $1" ;;
    *) [ -z "$batch" ] || misuse "one batch size, not $batch and $1"; batch=$1; shift ;;
    esac
done
count='^[1-9][0-9]{0,6}$' counts='^[1-9][0-9]{0,6}(,[1-9][0-9]{0,6})*$'
one_of() { local name=$1 value=$2; shift 2; case " $* " in *" $value "*) ;; *) misuse "$name $value: choose from $*" ;; esac; }
[ -n "$batch" ] || misuse "BATCH_SIZE is missing, as in ./run_all.sh 1"
perf_batches=${perf_batches:-$batch}
for value in "$batch" "${num_worker:-1}" "${loop:-1}" "${segments:-1}"; do
    [[ $value =~ $count ]] || misuse "$value is not a whole number above 0"
done
[[ $perf_batches =~ $counts ]] || misuse "--perf_batches $perf_batches: whole numbers above 0, as in 1,4,8"
for value in "${agreement:-0}" "${gallery:-0}"; do
    [[ $value =~ ^[0-9]{1,6}$ ]] || misuse "$value is not a whole number; --agreement and --gallery take one"
done
[[ $chunk =~ ^(auto|0)$ || $chunk =~ $count ]] || misuse "--chunk $chunk: a whole number, 0 or auto"
one_of --on-error "$on_error" fail skip
one_of --dtype "$dtype" float32 uint8
one_of --device "$device" auto cpu npu
one_of --fusion "${fusion:-score}" score prob
one_of --precision "$precision" fp32 bf16 int8
one_of --backend "${backend:-openvino}" openvino onnxruntime
one_of --exporter "$exporter" auto builtin mmaction2
[ "$backend" != onnxruntime ] || [ "$precision" = fp32 ] || misuse "--precision $precision needs --backend openvino"
[ -n "$data_root" ] && [ -n "$ann_file" ] || [ -z "$data_root$ann_file" ] || misuse "--data_root and --ann_file go together"
[ -z "$data_root" ] || [ -d "$data_root" ] || fail "$data_root: no such folder; --data_root names the videos or frames"
[ -z "$ann_file" ] || [ -f "$ann_file" ] || fail "$ann_file: no such file; make it with TSM_dataset.py"
[ -z "$labels" ] || [ -f "$labels" ] || fail "$labels: no such file; --labels names the file of label names"
[ -z "$config" ] || [ -f "$config" ] || fail "$config: no such file; --config names the config of --checkpoint"
[ -n "$checkpoint" ] || [ -z "$config$segments" ] || misuse "--config and --segments are for --checkpoint"
[ -z "$stream" ] || [ "$chunk$devices$ray" = auto ] || misuse "--stream is this host's CPU, without chunks; leave it out, or --chunk, --devices, --ray"
[ -z "$devices" ] || [ -z "$ray" ] || misuse "--devices are this host's, --ray's are a cluster's; leave out one of them"
[ -z "$devices$ray" ] || [ "$chunk" != 0 ] || misuse "--chunk 0 is all at once here; leave it out with --devices and --ray"
[[ $devices =~ ^([0-9]{1,3}(,[0-9]{1,3})*)?$ ]] || misuse "--devices $devices: a list of chips, as in 0,1"
for value in ${devices//,/ }; do
    [[ ,${devices//,/,,}, != *",$value,"*",$value,"* ]] || misuse "--devices $devices: names chip $value twice"
done
[[ $ray =~ ^(|auto|local|[^/]+:[0-9]{1,5})$ ]] || misuse "--ray $ray: auto, local or HOST:PORT"
case $checkpoint in
'' | official | http://* | https://*) ;;
tsm_*-*) ;;  # a file, or a name of TSM_checkpoint.py --list, which tells
*) [ -f "$checkpoint" ] || fail "$checkpoint: no such file; --checkpoint takes a path, an http(s) address or official" ;;
esac

# Paths from the caller's folder stay right after the change to the work folder.
absolute() { case $1 in '' | /* | official | http://* | https://*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }
data_root=$(absolute "$data_root") ann_file=$(absolute "$ann_file")
[ ! -f "$checkpoint" ] || checkpoint=$(absolute "$checkpoint")
labels=$(absolute "$labels") config=$(absolute "$config") work_dir=$(absolute "$work_dir")
case ${PYTHON:-} in */*) PYTHON=$(absolute "$PYTHON") ;; esac
MMACTION2=$(absolute "${MMACTION2:-}") set_env=$(absolute "${ASCEND_SET_ENV:-}")

# The device: CANN's tools decide, and the hardware has a say. Tests put ASCEND_SYSROOT before the system's folders.
root=${ASCEND_SYSROOT:-}
for place in "$root/usr/local/Ascend"/{ascend-toolkit,cann} "${HOME:-}/Ascend"/{ascend-toolkit,cann}; do
    [ -n "$set_env" ] || [ ! -f "$place/set_env.sh" ] || set_env=$place/set_env.sh
done
cann=$(command -v atc || true)
[ -n "$cann" ] || [ ! -f "$set_env" ] || cann=$set_env
if [ $device = auto ]; then
    [ -n "$cann" ] && device=npu || device=cpu
    echo "device: $device, since ${cann:-no CANN toolkit} is installed here (--device cpu or npu decides otherwise)"
    signs=''
    for sign in "$root"/dev/davinci* "$root/usr/local/Ascend/driver" "$(command -v npu-smi || true)"; do
        [ ! -e "$sign" ] || signs+=" $sign"
    done
    [ $device = npu ] || [ -z "$signs" ] || warn "this host has an NPU (${signs# }) but no CANN toolkit: no atc on the PATH, no" \
        "set_env.sh in $root/usr/local/Ascend or ~/Ascend; so the CPU is used; name its set_env.sh with ASCEND_SET_ENV"
fi
if [ $device = npu ]; then
    [ "$precision" = fp32 ] || misuse "--precision is for the CPU; atc decides it on an NPU"
    [ -z "$backend" ] || misuse "--backend is for the CPU; ais_bench runs the model on an NPU"
    [ "$dtype" = float32 ] || misuse "--dtype $dtype is for the CPU; the NPU's model takes float32"
    [ -z "$stream" ] || misuse "--stream is for the CPU; ais_bench reads tensors from files (--chunk bounds how many)"
else
    [ -z "$devices" ] || misuse "--devices is for an NPU; a CPU is one device"
fi

# The work folder.
mkdir -p -- "$work_dir" 2>/dev/null && cd -- "$work_dir" 2>/dev/null && [ -w . ] ||
    fail "$work_dir: cannot be made, or not be written to; choose another --work_dir"
s=$suite/
[ ! . -ef "$suite" ] || s=''

# The tools and the interpreter.
python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail "$python: not found; PYTHON names the interpreter"
if [ $device = npu ]; then
    if ! command -v atc >/dev/null && [ -f "$set_env" ]; then
        set +eu; . "$set_env"; set -eu
    fi
    command -v atc >/dev/null ||
        fail "atc: not found; it comes with the CANN toolkit; name its set_env.sh with ASCEND_SET_ENV, or use --device cpu"
    umask g-w,o-w  # ais_bench refuses models and inputs that others can write
    chip=$("$python" "$suite/tsm/chain/npu.py" ${chip:+--chip "$chip"})
    "$python" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("ais_bench"))' ||
        fail "ais_bench: $python has no such package; build its wheel from ascend/tools (ais-bench_workload/tool/ais_bench)"
    "$python" -c 'import sys; sys.path.insert(0, sys.argv[1]); import tsm, cv2, numpy, onnx, onnxruntime, torch, tqdm, xxhash, jinja2' "$suite" \
        2>/dev/null || fail "$python lacks packages of the suite; run $python -m pip install -r $suite/requirements.txt"
    bench=("$python" -m ais_bench) model=tsm_bs suffix=om target=ascend
elif [ -z "${PYTHON:-}" ]; then
    "$suite/setup.sh"
    python=${s}.venv/bin/python
    unset PYTHONHOME
fi
[ -z "$ray" ] || "$python" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("ray"))' ||
    fail "--ray $ray: $python has no Ray (Python 3.10 or newer); run $python -m pip install -r $suite/requirements-cluster.txt"
[ $device = npu ] || bench=("$python" "${s}TSM_infer.py") model=tsm_new_bs suffix=onnx target=cpu

# The exporter: mmaction2's own if it is at hand.
mmaction2=''
if [ "$exporter" != builtin ]; then
    installed=$("$python" -c 'import importlib.util as u; s = u.find_spec("mmaction"); print(s.submodule_search_locations[0] if s else "")')
    for place in "$MMACTION2" mmaction2 "${s}mmaction2" "$installed/.mim"; do
        [ -z "$mmaction2" ] && [ -f "$place/tools/deployment/pytorch2onnx.py" ] && mmaction2=$place
    done
    if [ -n "$mmaction2" ] && ! "$python" -c 'import mmaction, mmcv' 2>/dev/null; then
        echo "note: $mmaction2 is there, but $python cannot import mmaction with mmcv 1.x"
        mmaction2=''
    fi
    [ -n "$mmaction2" ] || [ "$exporter" = auto ] ||
        fail "mmaction2: not usable; clone it to ./mmaction2 and install it with mmcv 1.x, set MMACTION2, or use --exporter builtin"
fi

{ exec 9<>.lock || exec 9<.lock; } 2>/dev/null || fail "$PWD: cannot be written to; choose another --work_dir"
flock -n 9 2>/dev/null || case $? in
1) fail "$PWD: another run is at work in this folder; wait for it or choose another --work_dir" ;;
*) warn "$PWD: cannot be locked; let no second run work in this folder" ;;
esac
declare -i number=0
stage() { # stage NAME TITLE [--in PATH]... [--out PATH]... [--tee FILE] -- COMMAND...
    number+=1
    "$python" "$suite/tsm/chain/stage.py" "$1" --title "$number. $2" "${@:3}"
}

# Data: the checkpoint, the lists, the tensors. What the demo's is tested by is the guide's.
network='TSM ResNet-50' shape='1 48 3 256 256'
if [ -z "$checkpoint" ]; then
    checkpoint=tsm_demo.pth
    stage checkpoint "The demo's checkpoint" --in "${s}demo/tsm_thin.pth" --out "$checkpoint" -- \
        "$python" "${s}demo/expand.py" --output "$checkpoint"
else
    stage checkpoint "The checkpoint" --tee checkpoint.txt -- "$python" "${s}TSM_checkpoint.py" "$checkpoint" \
        ${config:+--config "$config"} ${segments:+--segments "$segments"} ${labels:+--labels "$labels"}
    found() { sed -n "s/^$1: \(.*\)/\1/p" checkpoint.txt; }  # a fact that it printed
    without_origin() { found "$1" | sed 's/ (.*//'; }
    checkpoint=$(found checkpoint) protocol=$(found protocol) shape=$(found shape)
    network=$(without_origin network)
    fusion=${fusion:-$(without_origin fusion)}
    filename_tmpl=${filename_tmpl:-$(found filename_tmpl)}
    start_index=${start_index:-$(found start_index)}
fi
if [ -z "$data_root" ]; then
    data_root=${s}demo/videos ann_file=sthv2_val_list_videos.txt
    annotations=${s}demo/annotations/something-something-v2
    stage lists "Lists of the demo clips" --in "$data_root" --in "$annotations-validation.json" \
        --in "$annotations-labels.json" --out "$ann_file" -- \
        "$python" "${s}TSM_dataset.py" --annotations "$annotations-validation.json" \
        --labels "$annotations-labels.json" --videos "$data_root"
    labels=${labels:-$annotations-labels.json}
fi
videos=(--data_root "$data_root" --ann_file "$ann_file")
[ "$on_error" = fail ] || videos+=(--on-error "$on_error")
[ -z "$num_worker" ] || videos+=(--num_worker "$num_worker")
[ -z "$filename_tmpl" ] || videos+=(--filename_tmpl "$filename_tmpl")
[ -z "$start_index" ] || videos+=(--start_index "$start_index")
preprocess=("$python" "${s}TSM_preprocess.py" "${videos[@]}" --batch_size "$batch")
[ "$dtype" = float32 ] || preprocess+=(--dtype "$dtype")
[ -z "$protocol" ] || preprocess+=(--protocol "$protocol")
if [ "$chunk" = auto ] && [ -z "$stream$devices$ray" ]; then
    chunk=$("$python" -c 'import sys
sys.path.insert(0, sys.argv[1])
from tsm import cli, protocol, samples
sys.argv[0] = "run_all.sh"
def size(suite, ann_file, dtype, path=""):
    test = protocol.read_protocol(path)
    print(samples.chunk_size(len(samples.read_list(ann_file, test)), dtype, 2, test))
cli.run(lambda: size(*sys.argv[1:]))' "$suite" "$ann_file" "$dtype" ${protocol:+"$protocol"})
    [ "$chunk" = 0 ] || [ $device = npu ] || stream=1
    [ "$chunk" = 0 ] || chunk=auto
fi
[ -n "$stream" ] || [ "$chunk" != 0 ] || stage preprocess "Preprocess the videos" -- "${preprocess[@]}" --output_dir sthv2

# Model: one export, then one modified model per batch size; the first is proved, the others carry its proof.
if [ -n "$mmaction2" ] && [ -z "$config" ] && { [ -n "$protocol" ] || [ "$network" != 'TSM ResNet-50' ]; }; then
    [ "$exporter" = auto ] || fail "$checkpoint: mmaction2's exporter needs its config; give it by --config"
    echo "note: mmaction2's exporter needs the checkpoint's config, which --config gives; the built-in one is used"
    mmaction2=''
fi
if [ -n "$mmaction2" ]; then
    export=("$python" "$mmaction2/tools/deployment/pytorch2onnx.py"
        "${config:-$mmaction2/configs/recognition/tsm/tsm_r50_1x1x8_50e_sthv2_rgb.py}" "$checkpoint")
else
    export=("$python" "${s}pytorch2onnx.py" ${config:+"$config"} "$checkpoint" ${segments:+--segments "$segments"}
        ${protocol:+--protocol "$protocol"})
fi
stage export "Checkpoint to ONNX" --in "$checkpoint" ${config:+--in "$config"} ${protocol:+--in "$protocol"} \
    --out tsm_bs1.onnx -- \
    "${export[@]}" --output-file tsm_bs1.onnx --softmax --shape $shape
perf_batches=$(printf '%s\n' ${perf_batches//,/ } | sort -nu)
source=tsm_bs1.onnx
for bs in $(printf '%s\n' "$batch" $perf_batches | sort -nu); do
    modify=("$python" "${s}modify_onnx.py" -m1 "$source" -m2 "tsm_new_bs$bs.onnx" -bs "$bs" --target $target)
    [ "${fusion:-score}" = score ] || modify+=(--fusion "$fusion")
    [ -z "$protocol" ] || modify+=(--protocol "$protocol")
    [ "$dtype" = float32 ] || modify+=(--input_dtype "$dtype")
    [ -z "$labels" ] || modify+=(--labels "$labels")
    stage "surgery_bs$bs" "Graph surgery, batch $bs" --in "$source" ${labels:+--in "$labels"} ${protocol:+--in "$protocol"} \
        --out "tsm_new_bs$bs.onnx" -- "${modify[@]}"
    [ "$source" != tsm_bs1.onnx ] || source=tsm_new_bs$bs.onnx
    [ $device = cpu ] || stage "atc_bs$bs" "ATC, batch $bs" --in "tsm_new_bs$bs.onnx" --out "tsm_bs$bs.om" -- \
        atc --model="tsm_new_bs$bs.onnx" --framework=5 --output="tsm_bs$bs" --input_format=ND --log=error \
        --soc_version="Ascend${chip#Ascend}"
done

# Inference, accuracy, throughput, the table.
engine=()
[ "$precision" = fp32 ] || engine+=(--precision "$precision")
[ $device = npu ] || [ -z "$agreement" ] || engine+=(--agreement "$agreement")
[ -z "$backend" ] || engine+=(--backend "$backend")
needs=(--in "$model$batch.$suffix")
if [ "$precision" = int8 ]; then
    stage quantise "Quantisation to int8" --in "$ann_file" --in "tsm_new_bs$batch.onnx" --out tsm_int8.xml --out tsm_int8.bin -- \
        "$python" "${s}TSM_quantise.py" --model "tsm_new_bs$batch.onnx" "${videos[@]}" --output tsm_int8.xml
    engine+=(--int8_model tsm_int8.xml)
    needs+=(--in tsm_int8.xml --in tsm_int8.bin)
fi
bench+=(${engine[@]+"${engine[@]}"})  # so for bash before 4.4, to which an empty array is an unset variable
infer=("${bench[@]}" --model "./$model$batch.$suffix")
if [ "$chunk" = 0 ] && [ -z "$stream" ]; then
    stage infer "Inference" "${needs[@]}" --in sthv2/sthv2.json --out inference_result/out \
        --out inference_result/out_summary.json -- \
        "${infer[@]}" --input ./sthv2/preprocess_bin --output ./inference_result --output_dirname out --outfmt TXT
else
    [ -z "$devices" ] || engine+=(--devices "$devices")
    [ -z "$ray" ] || engine+=(--ray "$ray")
    [ $device = cpu ] || [ -z "$protocol" ] || engine+=(--protocol "$protocol")
    case $chunk in auto | 0) ;; *) engine+=(--chunk "$chunk") ;; esac
    stage infer "Decoding and inference" -- "$python" "${s}TSM_stream.py" ${engine[@]+"${engine[@]}"} --model "./$model$batch.$suffix" \
        "${videos[@]}" --output ./inference_result --output_dirname out --outfmt TXT
fi
results=(--result_path=inference_result/out_summary.json --info_path=sthv2/sthv2.info)
stage accuracy "Accuracy" -- "$python" "${s}TSM_postprocess.py" --json accuracy.json "${results[@]}"
mkdir -p perf
[ $device = cpu ] || loop=${loop:-20}
for bs in $perf_batches; do
    stage "throughput_bs$bs" "Throughput, batch $bs" --tee "perf/bs$bs.log" -- \
        "${bench[@]}" "--model=$model$bs.$suffix" ${loop:+"--loop=$loop"}
done
report=("${results[@]}" --accuracy accuracy.json --checkpoint "$checkpoint" --device "$device" --precision "$precision"
    --batch_size "$batch" --perf_batches $perf_batches --model "tsm_new_bs$batch.onnx" --data_root "$data_root")
[ -z "$gallery" ] || report+=(--gallery "$gallery")
agreement=${agreement:-8}
if [ $device = npu ] && [ "$agreement" != 0 ]; then
    stage agreement "Agreement with fp32 on this CPU" -- "$python" "${s}TSM_compare.py" --agreement "$agreement" . \
        --model "tsm_new_bs$batch.onnx" --data_root "$data_root" --json agreement.json
    report+=(--agreement agreement.json)
fi
stage report "Report" -- "$python" "${s}TSM_report.py" "${report[@]}"

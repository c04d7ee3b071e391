#!/usr/bin/env bash
# The whole chain, stage by stage; ./run_all.sh --help tells how to use it. What there is to decide, tsm/chain/plan.py decides: in three
# steps, each of which prints variables. Each stage prints its command, so any of them can be copied and run by hand.
set -euo pipefail
unset CDPATH
fail() { echo "run_all.sh: error: $*" >&2; exit 1; }

suite=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
python=${PYTHON:-${BASE_PYTHON:-python3}}
command -v "$python" >/dev/null || fail "$python: not found; PYTHON names the interpreter"
plan() { "$python" "$suite/tsm/chain/plan.py" "$@"; }
variables=$(plan begin "$@")
[[ $variables == plan=* ]] || { echo "$variables"; exit; }  # --help, --version, --clean
eval "$variables"
echo "$said"

# The work folder, the interpreter, the tools.
cd -- "$work_dir"
if [ "$device" = npu ]; then
    if ! command -v atc >/dev/null && [ -f "$set_env" ]; then
        set +eu; . "$set_env"; set -eu
    fi
    umask g-w,o-w  # ais_bench refuses models and inputs that others can write
elif [ -z "${PYTHON:-}" ]; then
    "$suite/setup.sh"
    unset PYTHONHOME
fi
variables=$(plan tools "$plan")
eval "$variables"
{ exec 9<>.lock || exec 9<.lock; } 2>/dev/null || fail "$PWD: cannot be written to; choose another --work_dir"
flock -n 9 2>/dev/null || case $? in
1) fail "$PWD: another run is at work in this folder; wait for it or choose another --work_dir" ;;
*) echo "run_all.sh: warning: $PWD: cannot be locked; let no second run work in this folder" >&2 ;;
esac

# A stage runs in the background, so that a signal that reaches this shell alone is heard while it works, and handed on; Ctrl-C reaches
# the stage by itself. The chain ends as the stage does.
declare -i number=0
child='' stopped=''
stage() { # stage NAME TITLE [--in PATH]... [--out PATH]... [--check] [--say] [--measure FILE] -- COMMAND...
    number+=1
    "$python" "$suite/tsm/chain/stage.py" "$1" --title "$number. $2" "${@:3}" <&0 &
    child=$!
    local status=0
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do
        status=0
        wait "$child" || status=$?
    done
    child=''
    [ "$status" = 0 ] || exit "$status"
    [ -z "$stopped" ] || exit "$stopped"
}
stop() { stopped=$1; [ -n "$child" ] || exit "$1"; }
trap 'stop 130' INT
trap 'stop 143; kill -TERM "$child" 2>/dev/null || true' TERM HUP

# Data: the checkpoint, the lists, the tensors.
thin=${s}demo/tsm_thin${online:+_uni}.pth
[ -n "$own_checkpoint" ] || stage demo "The demo's checkpoint" --in "$thin" --out "$demo" -- \
    "$python" "${s}demo/expand.py" --output "$demo" ${online:+--thin "$thin"}
[ -z "$own_checkpoint$online" ] || stage checkpoint "The checkpoint" ${fetched:+--check} "${examined[@]}" \
    --out protocol.json -- "$python" "${s}TSM_checkpoint.py" "${examine[@]}"
sthv2=${s}demo/annotations/something-something-v2
[ -n "$own_data$model_only" ] || stage lists "Lists of the demo clips" --in "${s}demo/videos" --in "$sthv2-validation.json" \
    --in "$sthv2-labels.json" --out sthv2_val_list_videos.txt -- \
    "$python" "${s}TSM_dataset.py" --annotations "$sthv2-validation.json" --labels "$sthv2-labels.json" --videos "${s}demo/videos"
variables=$(plan stages "$plan")
eval "$variables"
export_model() {
    stage export "Checkpoint to ONNX" --in "$checkpoint" ${config:+--in "$config"} ${protocol:+--in "$protocol"} --out tsm_bs1.onnx -- \
        "$python" "${export[@]}" --output-file tsm_bs1.onnx --softmax --shape "${shape[@]}"
}
if [ "${#tune[@]}" -gt 0 ]; then
    export_model
    stage tune "Forms on this chip" --check --in tsm_bs1.onnx --out tune.json -- "$python" "${s}tsm/chain/tune.py" "${tune[@]}"
    variables=$(plan stages "$plan")  # by what was found
    eval "$variables"
fi
[ -n "$streamed$model_only" ] || stage preprocess "Preprocess the videos" --check --in "$ann_file" --out "$tensors/sthv2.json" -- \
    "$python" "${s}TSM_preprocess.py" "${preprocess[@]}" --output_dir "$tensors"

# Model: one export, then one modified model per batch size; the first is proved, the others carry its proof.
export_model
source=tsm_bs1.onnx
for bs in "${batches[@]}"; do
    tag=_bs$bs new=tsm_new_bs$bs.onnx om=tsm_bs$bs.om
    [ -z "$online" ] || tag='' new=$modified om=${modified%.onnx}.om
    stage "surgery$tag" "Graph surgery${tag/_bs/, batch }" --in "$source" ${labels:+--in "$labels"} ${protocol:+--in "$protocol"} \
        --out "$new" -- \
        "$python" "${s}modify_onnx.py" -m1 "$source" -m2 "$new" -bs "$bs" "${modify[@]}"
    [[ $source != tsm_bs1.onnx || " ${modify[*]} " == *" --form "* ]] || source=$new  # a form may drop weights of zeros
    [ "$device" = cpu ] || stage "atc$tag" "ATC${tag/_bs/, batch }" --in "$new" ${aipp:+--in "$aipp"} --out "$om" -- \
        atc --model="$new" --framework=5 --output="${om%.om}" "${atc[@]}" --log=error --soc_version="Ascend${chip#Ascend}"
done
[ -z "$model_only" ] || { plan end "$plan"; exit; }
mkdir -p perf
[ "$device$online" != npuyes ] || stage frame "A frame without its states" ${again:+--check} --in "$om" --measure perf/frame.log -- \
    "$python" -m ais_bench "--model=$om" "--loop=$loop"
[ -z "$int8" ] || stage quantise "Quantisation to int8" --in "$ann_file" --in "$modified" --out "$int8" --out "${int8%.xml}.bin" -- \
    "$python" "${s}TSM_quantise.py" --model "$modified" "${videos[@]}" --output "$int8"

# Inference, accuracy, throughput, the table.
results=(--output ./inference_result --output_dirname out --outfmt TXT)
if [ -n "$streamed" ]; then
    stage infer "Decoding and inference" --check --in "$model" --in "$ann_file" --out inference_result/out_summary.json -- \
        "$python" "${stream[@]}" --model "./$model" "${videos[@]}" "${results[@]}"
else
    stage infer "Inference" --in "$model" ${int8:+--in "$int8" --in "${int8%.xml}.bin"} --in "$tensors/sthv2.json" \
        --out inference_result/out --out inference_result/out_summary.json -- \
        "$python" "${bench[@]}" --model "./$model" --input "./$tensors/preprocess_bin" "${results[@]}"
fi
results=(--result_path=inference_result/out_summary.json "--info_path=$tensors/sthv2.info")
made=(--in inference_result/out --in inference_result/out_summary.json --in "$tensors/sthv2.json")
stage accuracy "Accuracy" "${made[@]}" ${clip:+--in "$clip"} --out accuracy.json -- \
    "$python" "${s}TSM_postprocess.py" --json accuracy.json ${clip:+--clip "$clip"} "${results[@]}"
for bs in "${perf_batches[@]}"; do
    stage "throughput_bs$bs" "Throughput, batch $bs" ${again:+--check} --in "${models/\*/$bs}" ${int8:+--in "$int8"} \
        --measure "perf/bs$bs.log" -- "$python" "${bench[@]}" "--model=${models/\*/$bs}" ${loop:+"--loop=$loop"} ${aipp:+"--batchsize=$bs"}
done
[ "$agreement" = 0 ] || stage agreement "Agreement with fp32 on this CPU" "${made[@]}" --in "$modified" --out agreement.json -- \
    "$python" "${s}TSM_compare.py" --agreement "$agreement" . --model "$modified" --data_root "$data_root" --json agreement.json
stage report "Report" --say "${made[@]}" --in accuracy.json --in perf --in run.json --out report.json --out report.html -- \
    "$python" "${s}TSM_report.py" "${results[@]}" --accuracy accuracy.json "${report[@]}"
plan end "$plan"

#!/usr/bin/env bash
# The benchmarks. bench/run.sh [models|inference|batches|forms|networks|online|preprocess|stream|scale_out]... (default: all but networks,
# online and scale_out, about 70 minutes on two cores; scale_out takes 8, and needs requirements-cluster.txt in the environment; models
# makes what inference needs, and measures nothing)
# Each part prints its table and writes bench/results/<part>.json and .md. Run it on a machine that does nothing else.
# Sets up .venv, .venv-reference (mmaction2) and .venv-rivals, and makes its models in bench/work, all once. PYTHON=…,
# REFERENCE_PYTHON=… and RIVALS_PYTHON=… use those environments as they are.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -gt 0 ] || set -- inference batches forms preprocess stream
parts=("$@")
for part in "${parts[@]}"; do
    case $part in inference | batches | forms | networks | online | preprocess | stream | scale_out | models) ;; *) sed -n 2,7p bench/run.sh | cut -c3- >&2; exit 2 ;; esac
done
if [ -z "${PYTHON:-}" ]; then
    case " ${parts[*]} " in *" scale_out "*) ./setup.sh requirements-cluster.txt ;; *) ./setup.sh ;; esac
    PYTHON=$PWD/.venv/bin/python
fi
if [ -z "${REFERENCE_PYTHON:-}" ]; then
    [[ "${parts[*]}" =~ ^(networks|online|networks online)$ ]] || test/reference/setup.sh
    REFERENCE_PYTHON=$PWD/.venv-reference/bin/python
fi
if [ -z "${RIVALS_PYTHON:-}" ] && [[ " ${parts[*]} " =~ \ (inference|models)\  ]]; then # on top of PYTHON's packages
    RIVALS_PYTHON=$PWD/.venv-rivals/bin/python
    [ -x "$RIVALS_PYTHON" ] || "$PYTHON" -m venv .venv-rivals
    "$PYTHON" -c 'import site; print(*site.getsitepackages(), sep="\n")' >"$(echo .venv-rivals/lib/python3*/site-packages)/suite.pth"
    sed -n 's/ *#.*//; /./p' bench/requirements-rivals.txt | while read -r package; do
        "$RIVALS_PYTHON" -m pip --disable-pip-version-check install -q --no-deps "$package" ||
            echo "NOT RUN: what needs $package: it cannot be installed (pip's reason is above)"
    done
fi
export PYTHON REFERENCE_PYTHON RIVALS_PYTHON
mkdir -p bench/work bench/results

make_models() { # in bench/work: the demo's checkpoint, mmaction2's own export of it, and what run_all.sh makes of that
    cd bench/work
    suite=../.. annotations=../../demo/annotations/something-something-v2
    make() { # make WHAT [--in FILE]… -- COMMAND…: unless it is there and up to date
        echo "bench/work/$1"
        "$PYTHON" $suite/tsm/chain/stage.py "$1" --out "$@" >make.log 2>&1 || { tail -3 make.log >&2; exit 1; }
    }
    make tsm_demo.pth -- "$PYTHON" $suite/demo/expand.py --output tsm_demo.pth
    tools=$("$REFERENCE_PYTHON" -c 'import mmaction; print(mmaction.__path__[0] + "/.mim")' | tail -1)
    make export.onnx --in tsm_demo.pth -- "$REFERENCE_PYTHON" "$tools/tools/deployment/pytorch2onnx.py" \
        "$tools/configs/recognition/tsm/tsm_r50_1x1x8_50e_sthv2_rgb.py" tsm_demo.pth --output-file export.onnx --softmax \
        --shape 1 48 3 256 256
    make tsm_new_bs1.onnx --in export.onnx -- "$PYTHON" $suite/modify_onnx.py -m1 export.onnx -m2 tsm_new_bs1.onnx -bs 1 \
        --target cpu
    make tsm_new_bs32.onnx --in tsm_new_bs1.onnx -- "$PYTHON" $suite/modify_onnx.py -m1 tsm_new_bs1.onnx \
        -m2 tsm_new_bs32.onnx -bs 32 --target cpu
    make sthv2_val_list_videos.txt -- "$PYTHON" $suite/TSM_dataset.py --annotations $annotations-validation.json \
        --labels $annotations-labels.json --videos $suite/demo/videos
    make sthv2/sthv2.json --in sthv2_val_list_videos.txt -- "$PYTHON" $suite/TSM_preprocess.py \
        --data_root $suite/demo/videos --ann_file sthv2_val_list_videos.txt --output_dir sthv2
    make tsm_u8_bs1.onnx --in export.onnx -- "$PYTHON" $suite/modify_onnx.py -m1 export.onnx -m2 tsm_u8_bs1.onnx -bs 1 \
        --target cpu --input_dtype uint8
    make tsm_u8_int8.xml --in tsm_u8_bs1.onnx --in sthv2_val_list_videos.txt --out tsm_u8_int8.bin -- \
        "$PYTHON" $suite/TSM_quantise.py --model tsm_u8_bs1.onnx --ann_file sthv2_val_list_videos.txt \
        --data_root $suite/demo/videos --output tsm_u8_int8.xml
    make tsm_int8.xml --in tsm_new_bs1.onnx --in sthv2/sthv2.json --out tsm_int8.bin -- \
        "$PYTHON" $suite/TSM_quantise.py --model tsm_new_bs1.onnx --input sthv2/preprocess_bin
    case $1 in inference | models) ;; *) return 0 ;; esac
    rival() { (make "${@:3}" --in sthv2/sthv2.json -- "$1" $suite/bench/ways.py --make "$2" int8 .) || true; } # without it, it is not run
    rival "$PYTHON" no_shift no_shift_int8.xml --in tsm_new_bs1.onnx --out no_shift_int8.bin
    rival "$PYTHON" openvino export_int8.xml --in export.onnx --out export_int8.bin
    rival "$PYTHON" onnxruntime export_int8.onnx --in export.onnx
    rival "$RIVALS_PYTHON" torch torchao.pt2 --in tsm_demo.pth
    rival "$RIVALS_PYTHON" mnn export.mnn --in export.onnx
    rival "$RIVALS_PYTHON" ncnn frame.ncnn.param --in tsm_new_bs1.onnx --out frame.ncnn.bin
}
for part in "${parts[@]}"; do
    echo "== $part"
    options=(--json "bench/results/$part.json")
    case $part in inference | preprocess) options+=(--reference_python "$REFERENCE_PYTHON") ;; esac
    [ "$part" != inference ] || options+=(--rivals_python "$RIVALS_PYTHON")
    case $part in preprocess | networks | online) ;; *)
        (make_models "$part")
        options+=(--work_dir bench/work) ;;
    esac
    [ "$part" != models ] || continue
    "$PYTHON" "bench/$part.py" "${options[@]}" | tee "bench/results/$part.md"
done

#!/usr/bin/env bash
# The suite against mmaction2 itself, on the Ascend guide's own versions. ./test/run.sh --reference [PYTEST_ARGUMENTS]
# TSM_CLIPS=DIR also compares the tensors of the videos in DIR.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
test/reference/setup.sh
echo "reference stack: $(.venv-reference/bin/python --version), $(.venv-reference/bin/python -m pip freeze |
    grep -E '^(torch|mmcv|mmaction2|numpy|onnx|onnxruntime|opencv-python|decord)==' | paste -sd ' ')"
# mmaction2's activations are GBs that come and go: kept in the process, they cost no page faults (a third of its time).
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=16000000000
places=(test/reference)
for word in "$@"; do
    [ ! -e "${word%%::*}" ] || places=()  # the arguments name some
done
exec .venv-reference/bin/python -m pytest -q -p no:cacheprovider -rs --tb=short -W ignore --durations=15 "${places[@]}" "$@"

#!/usr/bin/env bash
# The suite against mmaction2 itself, on the Ascend guide's own versions. ./test/run.sh --reference [PYTEST_ARGUMENTS]
# Makes .venv-reference once, from the first Python 3.7 on the PATH or under pyenv; without one it fails.
# TSM_CLIPS=DIR also compares the tensors of the videos in DIR.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
fail() { echo "test/reference/run.sh: error: $*" >&2; exit 1; }

base=''
for candidate in python3.7 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.7.*/bin/python; do
    # A pyenv shim is on the PATH even where its version is not chosen; then it does not run.
    if [ -z "$base" ] && "$candidate" -c 'import sys, venv; sys.exit(sys.version_info[:2] != (3, 7))' 2>/dev/null; then
        base=$candidate
    fi
done
[ -n "$base" ] || fail "no Python 3.7, on the PATH or under pyenv; install one: pyenv install 3.7"

list=test/reference/requirements.txt stamp=.venv-reference/stamp
exec 8<test/reference/run.sh  # one set-up at a time
flock 8
made_from=$("$base" -c 'import sys; print(sys.version, sys.base_prefix)' && cat "$list")
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$made_from" ]; then
    echo "setting up .venv-reference from $list (once)"
    rm -rf .venv-reference
    "$base" -m venv .venv-reference
    pip() { .venv-reference/bin/python -m pip --disable-pip-version-check install -q "$@"; }
    # mmcv 1.3.9 is built by a setup.py that needs the pkg_resources of older setuptools.
    { pip pip==23.3 && pip 'setuptools<60' wheel && pip --no-deps --no-build-isolation -r "$list"; } ||
        fail "$list could not be installed (pip's reason is above)"
    echo "$made_from" >"$stamp"
fi
flock -u 8
echo "reference stack: $(.venv-reference/bin/python --version), $(.venv-reference/bin/python -m pip freeze |
    grep -E '^(torch|mmcv|mmaction2|numpy|onnx|onnxruntime|opencv-python|decord)==' | paste -sd ' ')"
# mmaction2's activations are GBs that come and go: kept in the process, they cost no page faults (a third of its time).
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=16000000000
exec .venv-reference/bin/python -m pytest -q -p no:cacheprovider -rs --tb=short -W ignore test/reference "$@"

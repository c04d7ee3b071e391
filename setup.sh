#!/usr/bin/env bash
# Makes .venv beside this file: what requirements.txt lists, and the lists named as arguments on top.
#
#     ./setup.sh [MORE_REQUIREMENTS ...]
#
# Done once: it returns at once while the lists and the interpreter are the ones that .venv was made from.
# BASE_PYTHON=/path/to/python makes .venv from that interpreter instead of python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
fail() { echo "setup.sh: error: $*" >&2; exit 1; }

base=${BASE_PYTHON:-python3}
command -v "$base" >/dev/null || fail "$base: not found; install Python 3.9 or newer"
"$base" -c 'import sys; sys.exit(sys.version_info < (3, 9))' ||
    fail "$("$base" --version 2>&1) is too old; install Python 3.9 or newer, or name one by BASE_PYTHON"

exec 8<setup.sh  # one set-up at a time
flock -n 8 || { echo "waiting for another set-up to finish"; flock 8; }

quiet=-q
[ ! -t 1 ] || quiet=  # on a terminal, pip's own progress bars
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

for list in requirements.txt "$@"; do
    stamp=.venv/stamp-${list//\//-}
    made_from=$("$base" -c 'import sys; print(sys.version, sys.base_prefix)' && cat "$list")
    [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$made_from" ] || continue
    echo "setting up .venv from $list (once)"
    if [ "$list" = requirements.txt ]; then
        rm -rf .venv
        "$base" -m venv .venv >/dev/null || fail "$base cannot make a virtual environment; install its venv module (Debian: python3-venv)"
        # On x86-64 PyPI has PyTorch as a CUDA build of several GB, so PyTorch's own CPU index is tried first, once.
        pip install -q --no-deps --retries 0 --timeout 10 --index-url https://download.pytorch.org/whl/cpu \
            -r <(grep '^torch' "$list") >/dev/null 2>&1 ||
            echo "PyTorch's CPU index cannot be reached; taking PyPI's build, which can be several GB"
    fi
    pip install $quiet -r "$list" || fail "$list could not be installed (pip's reason is above); mend it and run this again"
    echo "$made_from" >"$stamp"
done

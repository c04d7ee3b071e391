#!/usr/bin/env bash
# Makes .venv beside this file: what requirements.txt lists, and the lists named as arguments on top.
#
#     ./setup.sh [MORE_REQUIREMENTS ...]
#
# Done once: it returns at once while the lists and the interpreter are the ones that .venv was made from.
# BASE_PYTHON=/path/to/python makes .venv from that interpreter instead of python3.
set -euo pipefail
unset CDPATH
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
fail() { echo "setup.sh: error: $*" >&2; exit 1; }

base=${BASE_PYTHON:-python3}
command -v "$base" >/dev/null || fail "$base: not found; install Python 3.9 or newer"
"$base" -c 'import sys; sys.exit(sys.version_info < (3, 9))' ||
    fail "$("$base" --version 2>&1) is too old; install Python 3.9 or newer, or name one by BASE_PYTHON"

made_from() { "$base" -c 'import sys; print(sys.version, sys.base_prefix)' && cat "$1"; }
stamp() { echo ".venv/stamp-${1//\//-}"; }
is_made() { [ -f "$(stamp "$1")" ] && [ "$(cat "$(stamp "$1")")" = "$(made_from "$1")" ]; }
all_made() { local list; for list in "$@"; do is_made "$list" || return 1; done; }
all_made requirements.txt "$@" && exit

# One set-up at a time; the lock file is opened for writing, which NFS wants.
{ exec 8<>.setup.lock; } 2>/dev/null || fail "$PWD: cannot be written to, and .venv belongs there; use PYTHON=/path/to/python"
flock -n 8 2>/dev/null || case $? in
1) echo "waiting for another set-up to finish"; flock 8 ;;
*) echo "setup.sh: warning: $PWD: cannot be locked; let no second set-up work here" >&2 ;;
esac
[ -d "${TMPDIR:-/tmp}" ] && [ -w "${TMPDIR:-/tmp}" ] ||
    fail "TMPDIR, ${TMPDIR:-/tmp}: no folder that can be written to; set TMPDIR to one with space for temporary files"

quiet=-q
[ ! -t 1 ] || quiet=  # on a terminal, pip's own progress bars
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

for list in requirements.txt "$@"; do
    ! is_made "$list" || continue
    echo "setting up .venv from $list (once)"
    if [ "$list" = requirements.txt ]; then
        rm -rf .venv
        "$base" -m venv .venv >/dev/null || fail "$base cannot make a virtual environment; install its venv module (Debian: python3-venv)"
        # On x86-64 PyPI has PyTorch as a CUDA build of several GB, so PyTorch's own CPU index is tried first, once.
        pip install -q --no-deps --retries 0 --timeout 10 --index-url https://download.pytorch.org/whl/cpu \
            -r <(grep '^torch' "$list") >/dev/null 2>&1 ||
            echo "PyTorch's CPU index cannot be reached; taking PyPI's build, which can be several GB"
    fi
    pip install $quiet -r "$list" ||
        fail "$list could not be installed (pip's reason is above; it needs space here and in ${TMPDIR:-/tmp}, or in another TMPDIR)"
    made_from "$list" >"$(stamp "$list")"
done

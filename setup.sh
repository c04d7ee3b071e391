#!/usr/bin/env bash
# Makes .venv beside this file; ./setup.sh --help tells how. What .venv has decides whether it is right; the stamps in it only save asking.
set -euo pipefail
unset CDPATH PYTHONHOME PYTHONPATH
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
usage() {
    cat <<'HELP'
usage: ./setup.sh [MORE_REQUIREMENTS ...]

Makes .venv beside this file (1.8 GB): what requirements.txt lists, and the
lists named as arguments on top. It returns at once where that is done, sets a
moved or copied folder right, and leaves a .venv that was there in its place
until the new one works. pip's own settings say where packages come from
(index-url, find-links, proxy, cert, …), but not where they go. Nothing outside
this folder changes.

BASE_PYTHON=/path/to/python makes .venv from that interpreter instead of
python3 (Python 3.9 or newer).
HELP
}
fail() { echo "setup.sh: error: $*" >&2; exit "${status:-1}"; }
for list in "$@"; do
    case $list in
    -h | --help) usage; exit ;;
    -*) status=2 fail "unknown option $list (see --help)" ;;
    *) [ -f "$list" ] || fail "$list: no such file in $PWD; name a list of requirements" ;;
    esac
done
base=${BASE_PYTHON:-python3}
[ -z "${BASE_PYTHON:-}" ] || command -v "$base" >/dev/null || fail "$base: not found; BASE_PYTHON names a Python 3.9 or newer"

python=.venv/bin/python
pip=("$python" -m pip --disable-pip-version-check)
isolated=(env PIP_CONFIG_FILE=/dev/null "${pip[@]}" --isolated install -q --no-index)  # whatever pip.conf and PIP_USER, PIP_TARGET, … say
modules='cv2, jinja2, numpy, onnx, onnxruntime, torch, tqdm, xxhash'
stamp() { echo ".venv/stamp-${1//\//-}"; }
made_from() { "$python" -c 'import sys; print(sys.version, sys.prefix)' && cat "$1"; } 2>/dev/null
based_on() { "$1" -c 'import sys; print(sys.version, sys.base_prefix)'; } 2>/dev/null
of_base() { [ -z "${BASE_PYTHON:-}" ] || [ "$(based_on "$base")" = "$(based_on "$python")" ]; }
is_made() { of_base && [ -s "$(stamp "$1")" ] && [ "$(cat "$(stamp "$1")")" = "$(made_from "$1")" ]; }
works() { of_base && run "${isolated[@]}" --no-deps -r "$1" && run "$python" -c "import $modules"; }
every() { local list; for list in requirements.txt "${@:2}"; do "$1" "$list" || return 1; done; }
ready() {
    printf 'Environment ready: %s with requirements.txt%s. To use the scripts yourself: . %q\n' "$("$python" --version)" "${*/#/ }" \
        "$PWD/.venv/bin/activate"
    exit
}
rename='import os, re, sys  # the commands in .venv/bin name their interpreter by its whole path
for path in filter(os.path.isfile, sys.argv[1:]):
    text = open(path, "rb").read()
    head = re.match(rb"#!.{0,300}?/\.venv/bin/(python[\d.]*).*?\n(?=[^\x27])", text, re.DOTALL)
    if head:
        new = b"\x27\x27\x27exec\x27 \"%s\" \"$0\" \"$@\"\n\x27 \x27\x27\x27\n" % os.path.abspath(b".venv/bin/" + head.group(1))
        open(path, "wb").write(b"#!/bin/sh\n" + new + text[head.end() :])'
run() { "$@" <&0 & wait $!; }  # so that a signal is heard at once, and not when pip has ended

every is_made "$@" && ready "$@"
# One set-up at a time; the lock file is opened for writing, which NFS wants.
{ exec 8<>.setup.lock; } 2>/dev/null || { every works "$@" 2>/dev/null && ready "$@"; } ||
    fail "$PWD: cannot be written to, and .venv belongs there; use PYTHON=/path/to/python"
flock -n 8 2>/dev/null || case $? in
1) echo "waiting for another set-up to finish"; flock 8 ;;
*) echo "setup.sh: warning: $PWD: cannot be locked; let no second set-up work here" >&2 ;;
esac
[ -d "${TMPDIR:-/tmp}" ] && [ -w "${TMPDIR:-/tmp}" ] ||
    fail "TMPDIR, ${TMPDIR:-/tmp}: no folder that can be written to; set TMPDIR to one with space for temporary files"

# The old .venv is aside while the new one is made under its own name, which it could not change later; this puts it back.
restore() { [ ! -e .venv-old ] || { rm -rf .venv && mv .venv-old .venv && echo "setup.sh: the .venv that was there stays" >&2; }; }
trap 'kill $(jobs -p) 2>/dev/null || true; wait; restore' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
is_made requirements.txt && rm -rf .venv-old || restore

quiet=-q
[ ! -t 1 ] || quiet=  # on a terminal, pip's own progress bars
for list in requirements.txt "$@"; do
    ! is_made "$list" || continue
    if works "$list" 2>/dev/null; then  # it was moved, or its list says the same in other words
        "$python" -m venv --without-pip .venv
        "$python" -c "$rename" .venv/bin/*
    else
        echo "Setting up .venv from $list, once"
        if [ "$list" = requirements.txt ]; then
            command -v "$base" >/dev/null || fail "$base: not found; install Python 3.9 or newer"
            "$base" -c 'import sys; sys.exit(sys.version_info < (3, 9))' ||
                fail "$("$base" --version 2>&1) is too old; install Python 3.9 or newer, or name one by BASE_PYTHON"
            [ ! -e .venv ] || mv .venv .venv-old
            run "$base" -m venv .venv >/dev/null ||
                fail "$base cannot make a virtual environment; install its venv module (Debian: python3-venv)"
            # On x86-64 PyPI has PyTorch as a CUDA build of several GB, so PyTorch's own CPU index is tried first, once.
            run "${pip[@]}" wheel -q --no-deps --retries 0 --timeout 10 --index-url https://download.pytorch.org/whl/cpu -w .venv/wheels \
                -r <(grep '^torch' "$list") >/dev/null 2>&1 ||
                echo "PyTorch's CPU index cannot be reached; taking PyPI's build, which can be several GB"
        fi
        mkdir -p .venv/wheels
        { run "${pip[@]}" wheel $quiet -w .venv/wheels --find-links .venv/wheels -r "$list" &&
            echo "Fetched $(ls .venv/wheels | wc -l) packages, $(du -sh .venv/wheels | cut -f1); installing them" &&
            run "${isolated[@]}" --find-links .venv/wheels -r "$list"; } ||
            fail "$list could not be installed (pip's reason is above; it needs space here and in ${TMPDIR:-/tmp}, or in another TMPDIR)"
        rm -rf .venv/wheels
        echo "Installed: .venv has $(du -sh .venv | cut -f1); trying it"
        works "$list" || fail "$list was installed, but cannot be used (the reason is above)"
    fi
    made_from "$list" >"$(stamp "$list")"
done
rm -rf .venv-old
ready "$@"

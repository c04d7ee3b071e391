#!/usr/bin/env bash
# Makes .venv-reference once: mmaction2 0.24.1 on the Ascend guide's own versions (requirements.txt beside this file), from
# the first Python 3.7 on the PATH or under pyenv; without one it fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
fail() { echo "test/reference/setup.sh: error: $*" >&2; exit 1; }

base=''
for candidate in python3.7 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.7.*/bin/python; do
    # A pyenv shim is on the PATH even where its version is not chosen; then it does not run.
    if [ -z "$base" ] && "$candidate" -c 'import sys, venv; sys.exit(sys.version_info[:2] != (3, 7))' 2>/dev/null; then
        base=$candidate
    fi
done
[ -n "$base" ] || fail "no Python 3.7, on the PATH or under pyenv; install one: pyenv install 3.7"

list=test/reference/requirements.txt stamp=.venv-reference/stamp
exec 8<test/reference/setup.sh  # one set-up at a time
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

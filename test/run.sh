#!/usr/bin/env bash
# Every test, after ruff and mypy. ./test/run.sh [PYTEST_ARGUMENTS]  sets up .venv as run_all.sh does, with what the tests
# need on top; PYTHON=/path/to/python uses that interpreter as it is.
# ./test/run.sh --full [PYTEST_ARGUMENTS]  in full size: 100 kills, 2,000 damaged files of each kind, 2,000 videos for memory.
# ./test/run.sh --reference  proves the suite against mmaction2 itself, in its own environment (Python 3.7).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" = --reference ]; then
    exec test/reference/run.sh "${@:2}"
fi
if [ "${1:-}" = --full ]; then
    shift
    export TSM_KILLS=100 TSM_FUZZ=2000 TSM_MEMORY=2000
fi
given=${PYTHON:-}
if [ -z "$given" ]; then
    ./setup.sh test/requirements.txt
    PYTHON=.venv/bin/python
fi
check() { # check MODULE ARGUMENTS...: one that a given interpreter lacks is passed over, aloud
    if [ -n "$given" ] && ! "$PYTHON" -c "import $1" 2>/dev/null; then
        echo "NOT RUN: $1, which $PYTHON lacks"
    else
        echo "$1: " && "$PYTHON" -m "$@"
    fi
}
check ruff check --no-cache .
check mypy --cache-dir=/dev/null
chromium=$(command -v chromium chromium-browser google-chrome google-chrome-stable chrome | head -1) || true
echo "pages: ${chromium:-NOT RUN in a browser, as there is no chromium or chrome on the PATH}"
"$PYTHON" -c 'import ray' 2>/dev/null || echo "NOT RUN on a Ray cluster: $PYTHON has no ray (it needs Python 3.10 or newer)"
exec "$PYTHON" -m pytest -q -p no:cacheprovider "${@:-test}"

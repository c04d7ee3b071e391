#!/usr/bin/env bash
# The tests (test/README.md tells more). The first run sets up .venv as run_all.sh does, with what the tests need on top;
# PYTHON=/path/to/python uses that interpreter as it is.
#     ./test/run.sh                     what every change is held against: ruff, mypy, and the tests that take minutes
#     ./test/run.sh --all               these and all others
#     ./test/run.sh --full              the same in full size: 100 kills, 2,000 damaged files of each kind, 2,000 videos for memory
#     ./test/run.sh --reference         the suite against mmaction2 itself, in its own environment (Python 3.7)
#     ./test/run.sh PYTEST_ARGUMENTS    the tests that they name, of whatever leg: ./test/run.sh test/test_report.py -k page
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
leg=()
case ${1:-} in
--reference) exec test/reference/run.sh "${@:2}" ;;
--full) export TSM_KILLS=100 TSM_FUZZ=2000 TSM_MEMORY=2000; shift ;;
--all) export TSM_KILLS=12 TSM_FUZZ=80; shift ;;
'') leg=(-m 'not all') ;;
esac
if [ -z "${PYTHON:-}" ]; then
    ./setup.sh test/requirements.txt
    PYTHON=.venv/bin/python
fi
has() { "$PYTHON" -c "import $1" 2>/dev/null; }
pytest=("$PYTHON" -m pytest -q -p no:cacheprovider)
[ $# = 0 ] || exec "${pytest[@]}" "$@"

"$PYTHON" test/size.py
for module in ruff mypy; do
    has $module || echo "NOT RUN: $module, which $PYTHON lacks"
done
if [ ${#leg[@]} = 0 ]; then
    chromium=$(command -v chromium chromium-browser google-chrome google-chrome-stable chrome | head -1) || true
    echo "pages: ${chromium:-NOT RUN in a browser, as there is no chromium or chrome on the PATH}"
    has ray || echo "NOT RUN on a Ray cluster: $PYTHON has no ray (it needs Python 3.10 or newer)"
fi
if has xdist; then
    export OMP_NUM_THREADS=1  # two tests at a time, of a thread each
    pytest+=(-n 2 --dist loadfile --no-loadscope-reorder)
fi
exec "${pytest[@]}" --durations=15 "${leg[@]}" test

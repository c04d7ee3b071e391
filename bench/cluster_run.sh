#!/usr/bin/env bash
# CLIPS links to the demo's clips (default: 2000) on a Ray cluster of three nodes on this machine, one of which is killed on the way.
# bench/cluster_run.sh [run_all.sh OPTIONS, such as --dtype uint8 --precision int8]
# Prints the accuracy, who did how much, and the report's table. Its work folder is bench/work/cluster. PYTHON=… uses that
# interpreter's environment as it is; otherwise .venv is made, with requirements-cluster.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
clips=${CLIPS:-2000} work=$PWD/bench/work/cluster
if [ -z "${PYTHON:-}" ]; then
    ./setup.sh requirements-cluster.txt
    PYTHON=$PWD/.venv/bin/python
fi
export PYTHON
. bench/clips.sh
make_clips "$PYTHON" "$work" "$clips"

coproc nodes { exec "$PYTHON" bench/nodes.py 3 2>"$work/nodes.log"; }
read -r address <&"${nodes[0]}" || { tail -1 "$work/nodes.log" >&2; exit 1; }
echo "a cluster of three nodes at $address"
results() { find "$work/inference_result/out" -name '*_0.txt' 2>/dev/null | wc -l; }
./run_all.sh 1 --device cpu --data_root "$work/videos" --ann_file "$work/list.txt" --work_dir "$work" --ray "$address" --chunk 50 \
    "$@" >"$work/run.log" 2>&1 &
run=$!
while [ "$(results)" -lt $((clips / 3)) ] && kill -0 "$run" 2>/dev/null; do sleep 1; done
echo kill >&"${nodes[1]}"
echo "one node killed with $(results) of $clips results written"
wait "$run" || { tail -3 "$work/run.log" >&2; exit 1; }
grep -E 'videos are done|, cpu: |already right' "$work/run.log"
sed -n '/^== .* Accuracy/,/^== .* Throughput/p; /^== .* Report/,$p' "$work/run.log" | grep -v '^\$'

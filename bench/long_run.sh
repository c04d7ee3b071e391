#!/usr/bin/env bash
# A long streamed run, killed twice on the way (kill -9 of everything), over CLIPS links to the demo's clips (default: 2000).
# bench/long_run.sh [run_all.sh OPTIONS, such as --dtype uint8 --precision int8]
# Prints what each run found done, the accuracy, the report's table, and the largest disk use. Its work folder is bench/work/long.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
clips=${CLIPS:-2000} work=$PWD/bench/work/long
[ -n "${PYTHON:-}" ] || { ./setup.sh; demo_python=.venv/bin/python; }
. bench/clips.sh
make_clips "${PYTHON:-$demo_python}" "$work" "$clips"

run() { # run LOG OPTIONS…: in a process group of its own
    setsid ./run_all.sh 1 --device cpu --data_root "$work/videos" --ann_file "$work/list.txt" --work_dir "$work" --stream \
        "${@:2}" >"$work/$1" 2>&1 &
    group=$!
}
results() { find "$work/inference_result/out" -name '*.txt' 2>/dev/null | wc -l; }
most=0
watch_disk() { # the most MB that the run's own files took so far, the models apart
    local now
    now=$(du -sm --apparent-size "$work"/sthv2 "$work"/inference_result 2>/dev/null | awk '{ sum += $1 } END { print sum }' || true)
    [ "${now:-0}" -le "$most" ] || most=$now
}

for after in $((clips / 4)) $((clips * 3 / 5)); do
    run "killed_after_$after.log" "$@"
    while [ "$(results)" -lt "$after" ] && kill -0 "$group" 2>/dev/null; do watch_disk; sleep 1; done
    kill -9 -- "-$group"
    wait "$group" 2>/dev/null || true
    echo "killed with $(results) of $clips results"
done
began=$SECONDS before=$(results)
run whole.log "$@"
while kill -0 "$group" 2>/dev/null; do watch_disk; sleep 1; done
wait "$group" || { tail -5 "$work/whole.log"; exit 1; }
echo "the last run did the other $((clips - before)) in $((SECONDS - began)) s, report and throughput included"
grep -h "already right" "$work/whole.log"
sed -n '/^== .* Accuracy/,/^== .* Throughput/p; /^== .* Report/,$p' "$work/whole.log" | grep -v '^\$'
echo "most disk: $most MB; files with unfinished names left: $(find "$work" -name '*.part*' | wc -l)"

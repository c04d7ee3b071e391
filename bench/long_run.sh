#!/usr/bin/env bash
# A long run that is killed: run_all.sh, 200 clips at a time, over 2,000 links to the demo's clips; kill -9 of everything it
# started during the third chunk and during the seventh; then once more, to its end. Shows the closing table, what was done
# again, and the most tensors that were ever on the disk.
#
#     bench/long_run.sh [OPTIONS OF run_all.sh]      # e.g. --dtype uint8 --precision int8 (25 minutes on two cores)
#
# CLIPS and CHUNK change the sizes. PYTHON=… uses that environment as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
clips=${CLIPS:-2000} chunk=${CHUNK:-200} work=$PWD/bench/work/long
rm -rf "$work"
mkdir -p "$work/videos"

annotations=demo/annotations/something-something-v2
[ -n "${PYTHON:-}" ] || { ./setup.sh; demo_python=.venv/bin/python; }
"${PYTHON:-$demo_python}" TSM_dataset.py --annotations $annotations-validation.json --labels $annotations-labels.json \
    --videos demo/videos --output_dir "$work" >"$work/lists.log"
mapfile -t lines <"$work/sthv2_val_list_videos.txt"
for ((number = 0; number < clips; number++)); do
    read -r video label <<<"${lines[number % ${#lines[@]}]}"
    ln -s "$PWD/demo/videos/$video" "$work/videos/$number.webm"
    echo "$number.webm $label"
done >"$work/list.txt"

run() { # run LOG OPTIONS…: in a process group of its own
    setsid ./run_all.sh 1 --data_root "$work/videos" --ann_file "$work/list.txt" --work_dir "$work" --chunk "$chunk" "${@:2}" \
        >"$work/$1" 2>&1 &
    group=$!
}
done_chunks() { find "$work" -name done.json | wc -l; }
most=0
watch_disk() { # the most MB of tensors so far
    local now
    now=$(du -sm --apparent-size "$work"/sthv2 2>/dev/null | cut -f1 || true)
    [ "${now:-0}" -le "$most" ] || most=$now
}

for after in 2 6; do
    run "killed_after_$after.log" "$@"
    while [ "$(done_chunks)" -lt $after ] && kill -0 "$group" 2>/dev/null; do watch_disk; sleep 1; done
    sleep 10  # into the next chunk
    kill -9 -- "-$group"
    wait "$group" 2>/dev/null || true
    echo "killed with $(done_chunks) chunks done"
done
run whole.log "$@"
while kill -0 "$group" 2>/dev/null; do watch_disk; sleep 1; done
wait "$group" || { tail -5 "$work/whole.log"; exit 1; }
grep -hE "chunks are done|^to do:|^time:" "$work"/killed_after_*.log "$work/whole.log"
sed -n '/^== .* Accuracy/,/^== .* Throughput/p; /^== .* Report/,$p' "$work/whole.log" | grep -v '^\$'
echo "most tensors on the disk at a time: $most MB; files with unfinished names left: $(find "$work" -name '*.part*' | wc -l)"

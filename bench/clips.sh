# For the long runs, which source it: make_clips PYTHON WORK COUNT makes WORK/videos, COUNT links to the demo's clips, and
# WORK/list.txt, their list with the true labels, in a folder WORK that begins empty.
make_clips() {
    local python=$1 work=$2 count=$3 annotations=demo/annotations/something-something-v2 lines number video label
    rm -rf "$work"
    mkdir -p "$work/videos"
    "$python" TSM_dataset.py --annotations $annotations-validation.json --labels $annotations-labels.json --videos demo/videos \
        --output_dir "$work" >"$work/lists.log"
    mapfile -t lines <"$work/sthv2_val_list_videos.txt"
    for ((number = 0; number < count; number++)); do
        read -r video label <<<"${lines[number % ${#lines[@]}]}"
        ln -s "$PWD/demo/videos/$video" "$work/videos/$number.webm"
        echo "$number.webm $label"
    done >"$work/list.txt"
}

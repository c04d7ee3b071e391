#!/usr/bin/env bash
# The README's picture of the demo's page: ./demo/screenshot.sh [REPORT.html]  writes demo/report.png (default: report.html).
# Needs Chromium or Chrome. Make the page first: ./run_all.sh 1. A test holds demo/report.sha256, what the page was drawn with, against
# the templates: when they change, so must the picture. An older report is drawn again by TSM_report.py --redraw.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
page=$(realpath "${1:-report.html}")
[ -f "$page" ] || { echo "screenshot.sh: error: $page: no such file; ./run_all.sh 1 makes it" >&2; exit 1; }
chromium=$(command -v chromium chromium-browser google-chrome google-chrome-stable chrome | head -1) || true
[ -n "$chromium" ] || { echo "screenshot.sh: error: no chromium or chrome on the PATH; install Debian's chromium" >&2; exit 1; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$chromium" --headless --no-sandbox --disable-gpu --hide-scrollbars --disable-background-networking --user-data-dir="$scratch" \
    --blink-settings=preferredColorScheme=1 --window-size=1000,1100 --screenshot="$here/report.png" "file://$page" 2>/dev/null
(cd "$here/../tsm/report/templates" && cat frame.html.j2 parts.html.j2 report.html.j2 page.css) | sha256sum | cut -d" " -f1 > "$here/report.sha256"
echo "wrote $here/report.png ($(stat -c %s "$here/report.png") bytes)"

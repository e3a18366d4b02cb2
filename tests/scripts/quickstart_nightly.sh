#!/usr/bin/env bash
# usage: quickstart_nightly.sh SOURCE
# The quick start from a source that cannot be written, by an ordinary user, with nothing to install: it builds, and trains two ranks well
# enough and fast enough.
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
mkdir "$work/source" "$work/mine"
(cd "$1" && tar -c --exclude=.git --exclude='./build*' --exclude=./runs .) | tar -x -C "$work/source"
chmod -R a-w,a+rX "$work/source"
chmod a+rwx "$work/mine" && chmod a+rx "$work"
user=()
[ "$(id -u)" != 0 ] || user=(runuser -u nobody --)
"${user[@]}" env HOME="$work/mine" WEFT_INSTALL=no WEFT_BUILD_DIR="$work/mine/build" WEFT_RUN_DIR="$work/mine/run" \
    bash "$work/source/scripts/quickstart.sh" | tee "$work/said"
line=$(tail -n 1 "$work/said")
[[ $line =~ ^Trained:\ test\ accuracy\ ([0-9.]+)\ %,\ ([0-9.]+)\ s,.*\ 2\ ranks\. ]] || { echo "FAILED: its last line is '$line'" && exit 1; }
awk -v accuracy="${BASH_REMATCH[1]}" -v seconds="${BASH_REMATCH[2]}" 'BEGIN { exit !(accuracy >= 90 && seconds < 120) }' ||
    { echo "FAILED: not 90 % within 120 s: $line" && exit 1; }
for file in metrics.jsonl loss.svg model.safetensors; do
    [ -s "$work/mine/run/$file" ] || { echo "FAILED: there is no $file" && exit 1; }
done

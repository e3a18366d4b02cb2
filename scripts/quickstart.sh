#!/usr/bin/env bash
# Installs what Weft needs, builds it, and trains a convolutional network on Fashion-MNIST with two worker processes.
# The results land in runs/quickstart/. scripts/lib.sh lists the variables that change folders and the like.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
case ${1:-} in
    -h | --help) sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}" && sed -n '3,8s/^# \?//p' "$source_dir/scripts/lib.sh" && exit ;;
    "") ;;
    *) die "unknown argument '$1'; quickstart.sh --help says what there is" ;;
esac

run_dir=$(make_folder "${WEFT_RUN_DIR:-$source_dir/runs/quickstart}" WEFT_RUN_DIR)
install_packages "${packages_build[@]}"
report_parts
say "Building in $build_dir:"
# A folder where the tests are built keeps them: they are there already, and ctest would find stale ones otherwise.
options=()
[ -f "$build_dir/CMakeCache.txt" ] || options=(-DWEFT_TESTS=OFF)
build "$build_dir" "${options[@]}"
say "Training on Fashion-MNIST, two worker processes (results in $run_dir):"
"$build_dir/bin/weftrun" -n 2 "$build_dir/bin/train_images" --model cnn --epochs 3 --batch 64 \
    --log "$run_dir/metrics.jsonl" --plot "$run_dir/loss.svg" --checkpoint "$run_dir/model.safetensors"

# The one line: from the last event of the log, which the program writes when it ends well.
end=$(tail -n 1 "$run_dir/metrics.jsonl")
value() { sed -n "s/.*\"$1\": *\([0-9.eE+-]*\).*/\1/p" <<<"$end"; }
[[ $end == *'"event":"end"'* || $end == *'"event": "end"'* ]] || die "the run ended without its last line in metrics.jsonl"
awk -v accuracy="$(value test_accuracy)" -v seconds="$(value train_seconds)" -v rate="$(value samples_per_second)" \
    -v ranks="$(value ranks)" -v run="$run_dir" 'BEGIN {
        printf "Trained: test accuracy %.2f %%, %.1f s, %.0f samples/s, %d ranks. See %s/{metrics.jsonl,loss.svg," \
               "model.safetensors}\n", accuracy <= 1 ? 100 * accuracy : accuracy, seconds, rate, ranks, run }'

#!/usr/bin/env bash
# usage: run.sh [RESULTS_FOLDER] [TEST...]
# Runs the GPU's tests of the folder that pack.sh made, and says at the end which passed; each one's output is in the results' folder. The
# tests: open device conformance train samples.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
results=${1:-$here/results}
[ $# -gt 0 ] && shift
tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(open device train conformance samples)
mkdir -p "$results"
results=$(cd "$results" && pwd)
export LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} WEFT_TEST_BIN=$here/bin
chmod +x "$here"/bin/*
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || echo "nvidia-smi does not work"

# Samples on the GPU: a small GPT on this very script, and networks on images where WEFT_DATA names a folder of them.
samples() {
    local status=0 run
    cd "$results" || return 1
    export WEFT_DEVICE=cuda
    for run in "" "$here/bin/weftrun -n 2"; do
        $run "$here/bin/train_text" --text "$here/run.sh" --layers 2 --heads 2 --width 64 --context 64 --max-steps 60 --sample 40 || status=1
        [ -n "${WEFT_DATA:-}" ] || continue
        $run "$here/bin/train_images" --data "$WEFT_DATA" --model mlp --epochs 1 --quiet || status=1
        $run "$here/bin/train_images" --data "$WEFT_DATA" --model cnn --epochs 1 --quiet || status=1
    done
    return $status
}

summary=() failed=0
for test in "${tests[@]}"; do
    begin=$(date +%s.%N)
    if [ "$test" = samples ]; then
        (samples) >"$results/$test.txt" 2>&1
    else
        timeout 400 "$here/bin/cuda_test_$test" --verbose=0 >"$results/$test.txt" 2>&1
    fi
    status=$?
    line=$(printf '%-12s %s  %.1f s  %s' "$test" "$([ $status = 0 ] && echo passed || echo "FAILED ($status)")" \
        "$(echo "$(date +%s.%N) - $begin" | bc 2>/dev/null || echo 0)" "$(grep -a 'Synthesis' "$results/$test.txt" | tail -1)")
    [ $status = 0 ] || { failed=1 && grep -aE '\[FAIL\]|\[----\]|^  ' "$results/$test.txt" | head -40; }
    echo "$line"
    summary+=("$line")
done
printf '\n-- summary --\n'
printf '%s\n' "${summary[@]}"
exit $failed

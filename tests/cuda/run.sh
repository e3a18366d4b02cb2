#!/usr/bin/env bash
# usage: run.sh [RESULTS_FOLDER] [TEST...]
# Runs the GPU's tests of the folder that pack.sh made, and says at the end which passed; each one's output is in the results' folder. The
# tests: open device conformance train samples nccl sanitizer. nccl needs libnccl.so.2 and takes one GPU or more; sanitizer, which is not run unless
# it is named, needs compute-sanitizer.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
results=${1:-$here/results}
[ $# -gt 0 ] && shift
tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(open device train conformance samples nccl)
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

# Ranks that share the first GPU, each of which NCCL takes for a host of its own (hosted.sh): sums are verified and timed by NCCL, by wires and by both, and
# training gives the variables that it gives over wires: the same bits on two ranks.
nccl() {
    local status=0 ranks by
    cd "$results" || return 1
    for ranks in 2 3 4; do
        timeout 100 "$here/bin/weft-bench" allreduce --device cuda --share-gpu --ranks $ranks --sizes 4:16M --windows 3 --seconds 0.05 || status=1
    done
    timeout 100 "$here/bin/weft-bench" allreduce --device cuda --share-gpu --by nodes:2 --ranks 4 --sizes 4:16M --windows 3 --seconds 0.05 || status=1
    export WEFT_DEVICE=cuda WEFT_THREADS=1 RUN_DESCRIBE=1
    for by in off force; do
        WEFT_NCCL=$by timeout 100 "$here/bin/weftrun" -n 2 "$here/bin/hosted.sh" train_program_parity adam f32 1 30 "nccl-$by.bin" >"nccl-$by.txt" 2>&1 || status=1
        grep -E "loss |collectives on the device's memory|parity:" "nccl-$by.txt"
    done
    cmp nccl-off.bin nccl-force.bin && echo "two ranks by NCCL: the same bits as over wires" || status=1
    return $status
}

# The conformance suite under compute-sanitizer (of the PATH, or what COMPUTE_SANITIZER names), a few ops at a time, so that no command takes long.
# SANITIZER_TOOLS="memcheck" is quicker than all three.
sanitizer() {
    local status=0 tool ops program=${COMPUTE_SANITIZER:-$(command -v compute-sanitizer)}
    if [ -z "$program" ]; then
        echo "unmeasured: there is no compute-sanitizer (COMPUTE_SANITIZER names it)"
        return 0
    fi
    for tool in ${SANITIZER_TOOLS:-memcheck racecheck synccheck}; do
        while read -r ops; do
            WEFT_TEST_OPS=$ops timeout 450 "$program" --tool "$tool" --target-processes all --error-exitcode 9 \
                "$here/bin/cuda_test_conformance" --verbose=0 --filter '*/computes_what_is_defined' >"$results/sanitizer-last.txt" 2>&1 && continue
            status=1
            echo "  $tool of $ops:"
            grep -aE '=========|FAIL' "$results/sanitizer-last.txt" | head -20 | sed 's/^/  /'
        done < <(xargs -n 8 <"$here/ops.txt" | tr ' ' ',')
    done
    return $status
}

summary=() failed=0
for test in "${tests[@]}"; do
    begin=$(date +%s.%N)
    if [ "$test" = samples ] || [ "$test" = nccl ] || [ "$test" = sanitizer ]; then
        ("$test") >"$results/$test.txt" 2>&1
    else
        timeout 400 "$here/bin/cuda_test_$test" --verbose=0 >"$results/$test.txt" 2>&1
    fi
    status=$?
    line=$(printf '%-12s %s  %.1f s  %s' "$test" "$([ $status = 0 ] && echo passed || echo "FAILED ($status)")" \
        "$(echo "$(date +%s.%N) - $begin" | bc 2>/dev/null || echo 0)" "$(grep -a 'Synthesis' "$results/$test.txt" | tail -1)")
    [ $status = 0 ] || { failed=1 && grep -aE '\[FAIL\]|\[----\]|^  ' "$results/$test.txt" | head -40; }
    grep -a '^unmeasured' "$results/$test.txt"
    echo "$line"
    summary+=("$line")
done
printf '\n-- summary --\n'
printf '%s\n' "${summary[@]}"
exit $failed

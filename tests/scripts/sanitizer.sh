#!/usr/bin/env bash
# usage: sanitizer.sh SOURCE
# Tries how tests/cuda/run.sh runs the conformance suite under compute-sanitizer, with programs in the place of both: every op is looked at once by each
# tool, what is found fails the test and is shown, and without the tool it says so.
set -u
source_root=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
    echo "FAILED: $*"
    exit 1
}
mkdir -p "$work/bin" "$work/tools" "$work/empty"
cp "$source_root/tests/cuda/run.sh" "$work/"
"$source_root/tests/cuda/ops.sh" >"$work/ops.txt"
[ "$(grep -c . "$work/ops.txt")" -gt 80 ] || fail "ops.sh lists $(grep -c . "$work/ops.txt") ops"
grep -qx matmul "$work/ops.txt" && grep -qx max_pool2d_backward "$work/ops.txt" || fail "ops.sh forgets some"
! grep -qx all_reduce "$work/ops.txt" || fail "ops.sh lists what no device computes"
touch "$work/bin/cuda_test_conformance"
cat >"$work/tools/compute-sanitizer" <<'END'
#!/bin/sh
echo "$2 $WEFT_TEST_OPS" >>"$SANITIZER_CALLS"
case "$2,$WEFT_TEST_OPS," in $SANITIZER_FINDS) echo "========= Invalid __global__ read"; exit 9 ;; esac
END
chmod +x "$work/tools/compute-sanitizer"
export COMPUTE_SANITIZER=$work/tools/compute-sanitizer SANITIZER_CALLS=$work/calls SANITIZER_FINDS=none

said=$(bash "$work/run.sh" "$work/results" sanitizer) || fail "nothing is found, and it fails: $said"
for tool in memcheck racecheck synccheck; do
    sed -n "s/^$tool //p" "$work/calls" | tr ',' '\n' | sort >"$work/seen"
    sort "$work/ops.txt" | cmp -s - "$work/seen" || fail "$tool does not look at each op once"
done
said=$(SANITIZER_FINDS='memcheck*,softmax,*' bash "$work/run.sh" "$work/results" sanitizer) && fail "what is found does not fail: $said"
grep -q 'memcheck of .*softmax' <<<"$said" && grep -q 'Invalid __global__ read' <<<"$said" || fail "what is found is not shown: $said"
said=$(COMPUTE_SANITIZER='' PATH=$work/empty:/usr/bin:/bin bash "$work/run.sh" "$work/results" sanitizer) || fail "without the tool it fails: $said"
grep -q '^unmeasured: there is no compute-sanitizer' <<<"$said" || fail "without the tool it does not say so: $said"
echo "as promised"

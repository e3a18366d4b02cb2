#!/usr/bin/env bash
# usage: smoke.sh BIN
# Runs every benchmark of weft-bench at toy size, and looks at what it reports; those on GPUs are tried where there is one (tests/cuda).
set -u
bench=$1/weft-bench
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
    echo "FAILED: $*"
    exit 1
}
# try RECORDS NAME OPTION...: it ends well, no result is wrong, and RECORDS objects or more have a figure above 0.
try() {
    local least=$1 said records
    shift
    rm -f "$work/json"
    said=$("$bench" "$@" --json "$work/json" 2>&1) || fail "weft-bench $*: $said"
    records=$(grep -cE '"(median|regret|loss)": (0\.0*[1-9]|[1-9])' "$work/json")
    [ "$records" -ge "$least" ] || fail "weft-bench $*: $records records instead of $least: $(cat "$work/json")"
    ! grep -q '"wrong": [1-9]' "$work/json" || fail "weft-bench $*: $(cat "$work/json")"
    tried="$tried $1"
}
tried=""
for kind in allreduce reduce-scatter allgather broadcast alltoall reduce gather scatter; do
    try 4 $kind --wire shm --ranks 2 --sizes 32K:64K --windows 1 --seconds 0.0002
    try 4 $kind --wire shm --foreign --ranks 2 --sizes 64K:128K --windows 1 --seconds 0.0002
    try 4 $kind --wire tcp --ranks 2 --sizes 8:16 --windows 1 --seconds 0.0002
done
for kind in sendrecv latency; do
    try 4 $kind --wire shm --sizes 8:16 --windows 1 --seconds 0.0002
    try 4 $kind --wire tcp --sizes 8:16 --windows 1 --seconds 0.0002
done
try 4 server --sizes 4K:4K --rows 1000 --keys 1000 --windows 1 --seconds 0.0002
try 4 server --wire tcp --sizes 4K:4K --rows 1000 --keys 1000 --windows 1 --seconds 0.0002
try 40 staleness --workers 2 --clocks 4 --slow-ms 1
try 4 blocks --rows 200 --columns 80 --ratings 2000 --factors 4 --windows 1
try 2 mesh --strategy tensor=2 --width 64 --rows 32 --windows 1 --steps 1
try 1 auto --program mlp --windows 1 --steps 1
try 1 partition --width 32 --edge 4 --windows 1
try 4 experts --seconds 0.0002
"$bench" paper --layers 4 --width 256 | grep -q 1024 || fail "weft-bench paper does not come to 1024 ranks"
said=$("$bench" paper --simulate 1024 --ranks 16 2>&1) || fail "weft-bench paper --simulate: $said"
awk -F '|' '$2 + 0 > 1 { n++; if ($4 <= 0 || $10 / $4 < 0.95 || $10 / $4 > 1.05) exit 1 } END { if (n != 4) exit 1 }' <<<"$said" ||
    fail "steps of up to 16 ranks take another time on the simulated wire than by the model: $said"
tried="$tried paper"
try 4 gemm --threads 1 --seconds 0.0002
try 4 codec --sizes 4K:4K --seconds 0.0002
# Its last part reads gzip files, where there are some.
said=$("$bench" files --folder "$work" --megabytes 1 2>&1)
if [ $? != 0 ] && grep -qi zlib <<<"$said"; then
    echo "weft-bench files is left out: this build has no zlib"
    tried="$tried files"
else
    try 2 files --folder "$work" --megabytes 1
fi
said=$("$bench" tune --wire shm --ranks 2 --sizes 64:64 --seconds 0.0002 --out "$work/tuning" 2>&1) || fail "weft-bench tune: $said"
[ -s "$work/tuning" ] || fail "weft-bench tune wrote nothing"

# None is left out: a benchmark that is new is to be tried here.
"$bench" --help | sed -n 's/^  \([a-z-]*\) .*/\1/p' | while read -r name; do
    case $name in
    cuda-* | tune) ;;
    *) [[ "$tried " == *" $name "* ]] || fail "weft-bench $name is not tried" ;;
    esac
done || exit 1
"$bench" abacus >/dev/null 2>&1 && fail "weft-bench abacus should be refused"
exit 0

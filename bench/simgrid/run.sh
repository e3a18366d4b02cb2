#!/usr/bin/env bash
# Runs the library's collectives on clusters that SimGrid simulates, and writes what they take beside what the cost model says.
#
#   run.sh [OUT [RANKS...]]
#
# OUT: the folder for scaling.jsonl and scaling.md (default: the build's simgrid/). RANKS: 8 16 32 64 128 256 512 by default; with SMALL=1 no
# payload is larger than 64 KiB. WEFT_BUILD_DIR: a built Weft (default: build/ beside this source), whose libweft.a is what runs.
#
# The cluster: a fat tree of hosts, 16 on a switch and 16 switches above, links of 100 Gb/s, 2 us from host to host across the upper switches; with one
# rank a host, and with eight, which reach each other at 20 GB/s in 0.3 us and share their host's link. Messages take latency plus bytes over
# bandwidth, shared fairly by those on a link; no protocol is added. Reductions take 0.08 ns for each byte read or written.
# Exit status 77, with a word, where SimGrid cannot be had.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
build=${WEFT_BUILD_DIR:-$root/build}
out=${1:-$build/simgrid}
[ $# = 0 ] || shift
ranks=("$@")
[ ${#ranks[@]} != 0 ] || ranks=(8 16 32 64 128 256 512)

skip() {
    echo "skipped: $*"
    exit 77
}
for tool in smpicc smpirun python3; do
    command -v $tool >/dev/null || skip "there is no $tool here (Debian: simgrid libsimgrid-dev python3)"
done
[ -f "$build/libweft.a" ] || skip "there is no libweft.a in $build"
mkdir -p "$out"
out=$(cd "$out" && pwd)

libraries=()
for name in $(sed -n 's/^Requires: //p' "$build/cmake/weft.pc"); do libraries+=("-l${name#lib}"); done
libraries=("${libraries[@]/#-lzlib/-lz}")
smpicc -O2 -std=gnu17 -D_GNU_SOURCE -I"$root/src" -I"$root/include" "$here/scaling.c" "$here/wire_smpi.c" "$build/libweft.a" \
    -o "$out/scaling" -lm -lpthread -ldl "${libraries[@]}"

cat >"$out/cluster.xml" <<'XML'
<?xml version='1.0'?>
<!DOCTYPE platform SYSTEM "https://simgrid.org/simgrid.dtd">
<platform version="4.1">
  <cluster id="cluster" prefix="host" suffix="" radical="0-511" speed="1Gf" bw="12.5GBps" lat="500ns" loopback_bw="20GBps"
           loopback_lat="300ns" topology="FAT_TREE" topo_parameters="2;16,32;1,16;1,1" sharing_policy="SPLITDUPLEX"/>
</platform>
XML

# one RANKS PER_NODE MOST_BYTES
one() {
    local i
    for ((i = 0; i < $1; i++)); do echo "host$((i / $2))"; done >"$out/hosts"
    smpirun -np "$1" -platform "$out/cluster.xml" -hostfile "$out/hosts" --cfg=smpi/simulate-computation:no --cfg=smpi/host-speed:1Gf \
        --cfg=smpi/test:0 --cfg=smpi/lat-factor:0:1 --cfg=smpi/bw-factor:0:1 --log=root.thres:critical \
        "$out/scaling" 300 20 2000 12.5 "$2" "$3" | grep '^{' >>"$out/scaling.jsonl"
}

: >"$out/scaling.jsonl"
for n in "${ranks[@]}"; do
    most=$((16 << 20))
    [ "$n" -le 64 ] || most=$((1 << 20)) # memory: all ranks live in this one machine's
    [ -z "${SMALL:-}" ] || most=$((64 << 10))
    echo "simulating $n ranks"
    one "$n" 1 $most
    [ $((n % 8)) != 0 ] || [ "$n" -le 8 ] || one "$n" 8 $most
done
python3 "$here/tables.py" "$out/scaling.jsonl" >"$out/scaling.md"
! grep -q '"right": false' "$out/scaling.jsonl" || {
    echo "error: there are wrong results in $out/scaling.jsonl" >&2
    exit 1
}
echo "$(wc -l <"$out/scaling.jsonl") results in $out/scaling.jsonl, all right; tables in $out/scaling.md"

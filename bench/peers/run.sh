#!/usr/bin/env bash
# usage: bench/peers/run.sh [name...]
# Measures Weft beside its peers, in turns on the same machine, and writes bench/results/<name>.jsonl. With no name it
# lists what can be measured. The peers live in a folder of their own, with pinned versions; nothing else is touched.
#
#   WEFT_PEERS_DIR   that folder (default: ~/.cache/weft-peers; PyTorch takes 5.5 GB there)
#   WEFT_BUILD_DIR   a built Weft (default: build/ beside this source)
#   WEFT_RESULTS_DIR where the results go (default: bench/results)
#   WEFT_COMPARE     options for compare.py: a part of the collectives, as in "--kinds allgather,alltoall --ranks 2 --add"
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
peers=${WEFT_PEERS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/weft-peers}
build=${WEFT_BUILD_DIR:-$root/build}
results=${WEFT_RESULTS_DIR:-$root/bench/results}
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

if [ $# = 0 ] || [ "$1" = --help ] || [ "$1" = -h ]; then
    sed -n '2,9s/^# \?//p' "${BASH_SOURCE[0]}"
    echo
    python3 "$here/compare.py" --list
    exit
fi

# Python packages, once per list of versions.
stamp=$peers/$(cksum <"$here/requirements.txt" | cut -d' ' -f1).installed
needs_python() {
    [ ! -f "$stamp" ] || return 0
    echo "Installing the Python peers of bench/peers/requirements.txt into $peers (about 3 GB to download)"
    mkdir -p "$peers"
    python3 -m venv "$peers/python" || die "python3 cannot make a virtual environment (Debian: python3-venv)"
    "$peers/python/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt" ||
        die "pip could not install bench/peers/requirements.txt"
    touch "$stamp"
}
needs_mpi() {
    local name
    command -v mpicc.openmpi >/dev/null && command -v mpirun.openmpi >/dev/null ||
        die "Open MPI is not installed (Debian: libopenmpi-dev openmpi-bin)"
    mkdir -p "$peers"
    rm -f "$peers"/mpi_collective_*
    for name in openmpi mpich; do
        if command -v mpicc.$name >/dev/null; then
            mpicc.$name -O2 -o "$peers/mpi_collective_$name" "$here/mpi_collective.c" -lm
        else
            echo "MPICH is not installed (Debian: libmpich-dev mpich), so it is not among the peers"
        fi
    done
}
needs_blas() {
    local name library
    mkdir -p "$peers"
    for name in openblas blis; do
        library=$(find /usr/lib /usr/local/lib -path "*/$name-serial/lib$name.a" | head -n 1)
        [ -n "$library" ] || die "the static $name is not installed (Debian: lib$name-serial-dev)"
        # The folder of cblas.h has the library's name, in a folder of headers that gcc searches.
        cc -O2 -w $(printf -- '-I%s ' /usr/include/*/$name-serial /usr/include/$name-serial) -o "$peers/gemm_$name" \
            "$here/blas_gemm.c" "$library" -lm -lpthread
    done
}
# ps-lite at the commit below, on the system's ZeroMQ and protobuf instead of those that it would download and build.
needs_pslite() {
    local commit=15b8adf17e9871ff6112c80e4b290fa38c2b4656 source=$peers/ps-lite name
    command -v protoc >/dev/null && [ -e /usr/include/zmq.h ] ||
        die "ps-lite needs ZeroMQ and protobuf (Debian: libzmq3-dev protobuf-compiler libprotobuf-dev)"
    if [ ! -f "$source/$commit.built" ]; then
        mkdir -p "$peers"
        [ -d "$source/.git" ] || git clone --quiet "${WEFT_PSLITE_URL:-https://github.com/dmlc/ps-lite}" "$source" ||
            die "cannot fetch ps-lite (WEFT_PSLITE_URL: another place to clone it from)"
        git -C "$source" checkout --quiet "$commit" || die "this ps-lite has no commit $commit"
        protoc --cpp_out="$source/src" --proto_path="$source/src" "$source/src/meta.proto"
        for name in customer.cc postoffice.cc van.cc meta.pb.cc; do
            g++ -std=c++17 -O3 -march=native -w -I"$source/src" -I"$source/include" -c "$source/src/$name" -o "$source/$name.o"
        done
        touch "$source/$commit.built"
    fi
    g++ -std=c++17 -O3 -march=native -w -I"$source/src" -I"$source/include" -o "$peers/pslite_server" "$here/pslite_server.cc" "$source"/*.o \
        -lzmq -lprotobuf-lite -lpthread
}
[ -x "$build/bin/weftrun" ] || die "no built Weft in $build; build it or set WEFT_BUILD_DIR"

for name in "$@"; do
    needs=$(python3 "$here/compare.py" --needs "$name") || exit 1
    for need in $needs; do "needs_$need"; done
    python=python3
    [ ! -x "$peers/python/bin/python" ] || python=$peers/python/bin/python
    mkdir -p "$results"
    "$python" "$here/compare.py" "$name" --build "$build" --peers "$peers" --out "$results/$name.jsonl" ${WEFT_COMPARE:-}
done

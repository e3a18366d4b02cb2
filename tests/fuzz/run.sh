#!/usr/bin/env bash
# usage: tests/fuzz/run.sh WHAT [SECONDS] : looks for new inputs that break fuzz_WHAT, with clang's libFuzzer, ASan and UBSan.
# Works in $WEFT_FUZZ_FOLDER (/tmp/weft-fuzz). What it finds lies there as crash-…; put it into corpus/WHAT with its fix.
set -euo pipefail
what=${1:?which target, as in idx}
source=$(cd "$(dirname "$0")/../.." && pwd)
folder=${WEFT_FUZZ_FOLDER:-/tmp/weft-fuzz}
mkdir -p "$folder/$what"
cd "$folder"
shopt -s extglob
rooms=("$source"/src/core/base/*.c "$source"/src/io/*.c)
libraries=(-lz -lm -lpthread)
if grep -q '"transport/' "$source/tests/fuzz/fuzz_$what.c" "$source/tests/fuzz/fuzz_net.h"; then
    rooms+=("$source"/src/transport/!(*mpi*|*verbs*).c)
    libraries+=(-lsodium -ldl)
fi
if grep -q '"core/tensor/codec' "$source/tests/fuzz/fuzz_$what.c"; then rooms+=("$source"/src/core/tensor/codec*.c); fi
"${CC:-clang}" -g -O1 -std=c17 -D_GNU_SOURCE -DWEFTI_HAVE_ZLIB -DWEFTI_HAVE_SODIUM -fsanitize=fuzzer,address,undefined \
    -fno-sanitize-recover=all -I"$source/include" -I"$source/src" "$source/tests/fuzz/fuzz_$what.c" "${rooms[@]}" \
    "${libraries[@]}" -o "fuzz_$what"
"./fuzz_$what" -max_total_time="${2:-60}" -max_len=4096 "$what" "$source/tests/fuzz/corpus/$what"

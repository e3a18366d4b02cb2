#!/usr/bin/env bash
# usage: run.sh BUILD_FOLDER CMAKE CC [CXX]
# Installs the build into a prefix of its own, moves it (an installed copy must not know where it was made), and builds
# and runs programs that train, outside of the source tree, against it: in C and C++17, by the CMake package and by pkg-config.
# CXX empty: the C++ half is left out, with a word.
set -euo pipefail
build=$1 cmake=$2 cc=$3 cxx=${4:-}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset CMAKE_PREFIX_PATH PKG_CONFIG_PATH

DESTDIR=$work/stage "$cmake" --install "$build" --prefix /opt/weft >"$work/install.log"
mkdir "$work/moved"
mv "$work/stage/opt/weft" "$work/moved/prefix"
prefix=$work/moved/prefix
if grep -rIl -e "$work/stage" -e "$build" "$prefix" --include='*.cmake' --include='*.pc' --include='*.h'; then
    echo "FAILED: these installed files name the folder they were built or first installed in"
    exit 1
fi
cp -r "$here/project" "$work/project"

# Every program trains alone and on two ranks under the installed weftrun. It learns, and all come to the same loss: C and C++, however
# they were built, to the digit; two ranks to rounding.
check() { # check PROGRAM
    local alone together
    alone=$("$1") || { echo "FAILED: $1 ended with status $?" && exit 1; }
    together=$("$prefix/bin/weftrun" -n 2 "$1") || { echo "FAILED: two ranks of $1 ended with status $?" && exit 1; }
    [[ $alone =~ ^"outside: 1 ranks, loss "(0\.0[0-9]+)$ ]] || { echo "FAILED: $1 said '$alone'" && exit 1; }
    loss=${loss:-${BASH_REMATCH[1]}}
    [ "$loss" = "${BASH_REMATCH[1]}" ] || { echo "FAILED: $1 came to the loss ${BASH_REMATCH[1]}, others to $loss" && exit 1; }
    [[ $together =~ ^"[0] outside: 2 ranks, loss "(0\.0[0-9]+)$ ]] || { echo "FAILED: two ranks of $1 said '$together'" && exit 1; }
    awk -v one="$loss" -v two="${BASH_REMATCH[1]}" 'BEGIN { exit !((one - two) ^ 2 < (0.01 * one) ^ 2) }' ||
        { echo "FAILED: $1 came to the loss ${BASH_REMATCH[1]} on two ranks, to $loss on one" && exit 1; }
    echo "ok: $(basename "$1"), loss $loss, on two ranks ${BASH_REMATCH[1]}"
}

loss=
if [ -n "$cxx" ]; then
    languages=(-DOUTSIDE_LANGUAGES="C;CXX" -DCMAKE_CXX_COMPILER="$cxx")
else
    languages=(-DOUTSIDE_LANGUAGES=C)
    echo "no C++ compiler: the C++ program was not tried"
fi
"$cmake" -S "$work/project" -B "$work/build" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_C_COMPILER="$cc" "${languages[@]}" >"$work/log" ||
    { cat "$work/log" && exit 1; }
"$cmake" --build "$work/build" >"$work/log" 2>&1 || { cat "$work/log" && exit 1; }
check "$work/build/outside_c"
[ -z "$cxx" ] || check "$work/build/outside_cpp"

export PKG_CONFIG_PATH
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name weft.pc)")
flags=$(pkg-config --static --cflags --libs weft)
"$cc" -std=c17 -Wall -Wextra -Werror "$work/project/main.c" -o "$work/pc_c" $flags
check "$work/pc_c"
if [ -n "$cxx" ]; then
    "$cxx" -std=c++17 -Wall -Wextra -Werror "$work/project/main.cpp" -o "$work/pc_cpp" $flags
    check "$work/pc_cpp"
fi
# The README's program, as a newcomer would take it.
sed -n '/^```c$/,/^```$/p' "$here/../../README.md" | grep -v '^```' >"$work/program.c"
grep -q 'int main' "$work/program.c" || { echo "FAILED: the README has no program" && exit 1; }
"$cc" -std=c17 -Wall -Wextra -Werror "$work/program.c" -o "$work/program" $flags
said=$(cd "$work" && WEFT_RANK=0 ./program 2>&1) && { echo "FAILED: the README's program starts as half a job" && exit 1; }
[[ $said == *"WEFT_WORLD_SIZE is not"* ]] || { echo "FAILED: the README's program says '$said'" && exit 1; }
echo "ok: the README's program"
"$prefix/bin/weftrun" --help >/dev/null
echo "ok: weftrun"

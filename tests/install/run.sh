#!/usr/bin/env bash
# usage: run.sh BUILD_FOLDER CMAKE CC [CXX]
# Installs the build into a prefix of its own, moves it (an installed copy must not know where it was made), and builds
# and runs programs outside of the source tree against it: in C and C++17, by the CMake package and by pkg-config.
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

check() { # check PROGRAM
    local said
    said=$("$1")
    [ "$said" = "outside: as expected" ] || { echo "FAILED: $1 said '$said'" && exit 1; }
    echo "ok: $(basename "$1")"
}

if [ -n "$cxx" ]; then
    "$cmake" -S "$work/project" -B "$work/build" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_C_COMPILER="$cc" \
        -DCMAKE_CXX_COMPILER="$cxx" >"$work/log" || { cat "$work/log" && exit 1; }
    "$cmake" --build "$work/build" >"$work/log" 2>&1 || { cat "$work/log" && exit 1; }
    check "$work/build/outside_c"
    check "$work/build/outside_cpp"
else
    echo "no C++ compiler: the CMake package and the C++ program were not tried"
fi

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

#!/usr/bin/env bash
# usage: run.sh SOURCE
# Tries what scripts/lib.sh promises without installing or building anything.
set -u
source_root=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
    echo "FAILED: $*"
    exit 1
}
expect() { # expect STATUS PATTERN COMMAND: the command, after lib.sh, in a shell of its own
    local said
    said=$(bash -euo pipefail -c "source '$source_root/scripts/lib.sh'; $3" 2>&1)
    [ $? = "$1" ] || fail "'$3' should end with $1: $said"
    grep -qE -e "$2" <<<"$said" || fail "'$3' should say '$2': $said"
}

expect 0 "CUDA toolkit: " "report_parts"
expect 1 "WEFT_REQUIRE knows cuda, nccl, verbs and mpi, not 'abacus'" "WEFT_REQUIRE=abacus; report_parts"
# Where nothing is found, everything that is required is named.
none='first_program() { :; }; library_path() { :; };'
expect 0 "CUDA driver: +not found" "$none WEFT_REQUIRE=; report_parts"
expect 1 "cuda \(toolkit and driver\); nccl .*; verbs .*; mpi" "$none WEFT_REQUIRE=cuda,nccl,verbs,mpi; report_parts"
all='first_program() { echo /bin/$1; }; library_path() { echo /lib/$1; };'
expect 0 "NCCL: +/lib/libnccl" "$all WEFT_REQUIRE=cuda,nccl,verbs,mpi; report_parts"

touch "$work/file"
expect 1 "cannot write to $work/file/build; set WEFT_BUILD_DIR" "make_folder '$work/file/build' WEFT_BUILD_DIR"
expect 0 "^$work/new/folder$" "make_folder '$work/new/folder' WEFT_RUN_DIR"

# Packages: nothing to do, nothing may be done, nobody may do it, apt fails.
expect 0 "Nothing to install" "is_installed() { true; }; install_packages 'a word'"
expect 0 "Missing, and not installed because WEFT_INSTALL=no: b" \
    "is_installed() { [ \$1 = a ]; }; WEFT_INSTALL=no; install_packages 'a first' 'b second'"
missing='is_installed() { false; };'
expect 1 "no such package.*|apt could not install: a" \
    "$missing as_root() { [[ \$* == *update* ]] || { echo no such package; false; }; }; install_packages 'a word'"
expect 1 "apt could not install: a" "$missing as_root() { false; }; install_packages 'a word'"
expect 0 "  a: word" "$missing as_root() { true; }; install_packages 'a word'"

# The scripts refuse what they do not know, and leave help to be read.
for script in quickstart.sh test.sh; do
    bash "$source_root/scripts/$script" --frobnicate >"$work/out" 2>&1 && fail "$script takes any argument"
    grep -q "unknown argument '--frobnicate'" "$work/out" || fail "$script: $(cat "$work/out")"
    bash "$source_root/scripts/$script" --help | grep -qi "weft" || fail "$script has no help"
done
echo "scripts: as expected"

#!/usr/bin/env bash
# Installs what Weft and its tests need, builds, and runs the tests with ctest: the ordinary build, then those suites
# that apply with the address and undefined-behaviour sanitizers, with the thread sanitizer, and with everything
# optional off.
#
#   scripts/test.sh [--nightly] [--only NAME[,NAME...]]     NAME: release, asan, tsan, minimal
#
# --nightly also runs what is too long for every day. The verbs wire is tried in guests on a soft RDMA device (two minutes, label
# guest), which needs QEMU: where it cannot be installed that test is skipped. scripts/lib.sh lists the variables that change folders.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
stages=(release asan tsan minimal)
select=(-LE nightly)
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) sed -n '2,9s/^# \?//p' "${BASH_SOURCE[0]}" && exit ;;
        --nightly) select=() ;;
        --only) IFS=, read -r -a stages <<<"${2:?--only wants names}" && shift ;;
        *) die "unknown argument '$1'; test.sh --help says what there is" ;;
    esac
    shift
done

install_packages "${packages_build[@]}" "${packages_test[@]}"
case " ${stages[*]} " in *" release "*) (install_packages "${packages_guest[@]}") || say "The guests are left out: no QEMU." ;; esac
report_parts
# What tests write goes to memory where there is room for it: what they synchronise took most of some suites' time on a slow disk.
if [ -z "${TMPDIR:-}" ] && [ "$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1)" -gt 4000000 ] 2>/dev/null; then
    TMPDIR=$(mktemp -d /dev/shm/tests-XXXXXX)
    export TMPDIR
    trap 'rm -rf "$TMPDIR"' EXIT
fi
# A quarantine of 32 MiB: pages that are always new cost more than all that the tests compute.
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_stack_use_after_return=1:strict_string_checks=1:quarantine_size_mb=32}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
export TSAN_OPTIONS=${TSAN_OPTIONS:-halt_on_error=1:second_deadlock_stack=1}

failed=()
for stage in "${stages[@]}"; do
    folder=$build_dir
    case $stage in
        release) ;;
        asan | tsan | minimal) folder=$build_dir-$stage ;;
        *) die "no such build: $stage (there are release, asan, tsan and minimal)" ;;
    esac
    started=$SECONDS
    printf '\n%s: building in %s\n' "$stage" "$folder"
    build "$folder" --preset "$stage" -DWEFT_WERROR="${WEFT_WERROR:-OFF}"
    say "$stage: built in $((SECONDS - started)) s, testing"
    started=$SECONDS
    # The same launcher, headers and objects of the rooms that know no optional part as in the first build: nothing new to learn from them.
    less=()
    [ "$stage" != minimal ] || less=(-E '^(launcher|lint|install|scripts|autodiff|cpu|device|graph|learn|parallel|plan|rules|simulation|tensor)_|^train_test_(bubble|expert|mesh|overlap|sequence|tensor|zero)$|^server_test_downpour$')
    # What fails is tried once more: on a machine that others share even generous limits of time are passed now and then. A test
    # that passed the second time is shown with both results.
    ctest --test-dir "$folder" -j2 --repeat until-pass:2 --output-on-failure --no-tests=error "${select[@]}" "${less[@]}" ||
        failed+=("$stage")
    say "$stage: tested in $((SECONDS - started)) s"
done

say ""
[ ${#failed[@]} = 0 ] || die "tests failed in: ${failed[*]}"
say "All tests passed: ${stages[*]} (${SECONDS} s)"

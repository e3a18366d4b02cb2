# What the tests share that start processes from a shell. Sourced, not run. Every process that a case starts carries a mark in its
# environment, so that what is left behind can be found afterwards, whatever group, session or parent it has by then.
work=$(mktemp -d)
export WEFT_TEST_MARK="$work"

fail() {
    echo "FAILED: $*"
    exit 1
}
skip() {
    echo "$*: skipped"
    exit 77
}
same() { # same WHAT EXPECTED GOT
    [ "$2" = "$3" ] || fail "$1: expected '$2', got '$3'"
}
matches() { # matches WHAT PATTERN TEXT
    grep -qE -e "$2" <<<"$3" || fail "$1: expected something like '$2', got '$3'"
}
# One search through all environments: with two programs for each of them a look takes seconds where others use the cores.
marked() { # the processes that carry our mark
    local environs=(/proc/[0-9]*/environ) # listed before the search, which carries the mark itself
    grep -lzxF -e "WEFT_TEST_MARK=$work" "${environs[@]}" 2>/dev/null | tr -dc '0-9\n'
}
marked_with() { # marked_with PROGRAM PATTERN: those of that program with such a line in their environment
    local pid
    for pid in $(marked); do
        [ "/proc/$pid/exe" -ef "$1" ] && grep -qzxE -e "$2" "/proc/$pid/environ" && echo "$pid"
    done 2>/dev/null
}
nothing_left() { [ -z "$(marked)" ]; }
wait_for() { # wait_for SECONDS CONDITION...
    local tenths=$(($1 * 10))
    shift
    while ! "$@"; do
        [ $((tenths--)) -gt 0 ] || fail "waited too long for: $*"
        sleep 0.1
    done
}

patience=0          # tenths of a second that what a case used may take to end after it
before_end() { :; } # what a case has to stop
after_end() { :; }  # what else must not be left
clean_up() {
    local status=$? left tenths=$patience
    before_end
    while [ $((tenths--)) -gt 0 ] && ! nothing_left; do sleep 0.1; done
    left=$(marked)
    if [ -n "$left" ]; then
        [ $status != 0 ] || { echo "FAILED: left behind: $(ps -o pid=,args= -p "${left//$'\n'/,}")" && status=1; }
        kill -9 $left 2>/dev/null
    fi
    after_end || status=1
    rm -rf "$work"
    exit $status
}
trap clean_up EXIT

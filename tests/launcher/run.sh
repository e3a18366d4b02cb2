#!/usr/bin/env bash
# usage: run.sh WEFTRUN CASE
# Tries the launcher from outside.
set -u
source "$(dirname "${BASH_SOURCE[0]}")/../common/processes.sh"
weftrun=$1
trains=$(dirname "$1")/train_program_run # a small training run
unset WEFT_WIRE WEFT_RANK
shm_before=$(ls /dev/shm 2>/dev/null)

lines_are() { [ "$(grep -c . "$1" 2>/dev/null)" = "$2" ]; }
all_are() { # all_are STATE PROGRAM: whether every marked process of the program is in that state of ps(1)
    local states
    states=$(for pid in $(marked); do [ "/proc/$pid/exe" -ef "$2" ] && ps -o state= -p "$pid"; done | sort -u)
    [ "$states" = "$1" ]
}
many_are() { [ "$(marked | wc -l)" -ge "$1" ]; }
after_end() {
    [ "$shm_before" = "$(ls /dev/shm 2>/dev/null | grep -v '^sem\.bxf')" ] || [ -z "$(find /dev/shm -newer "$work" -name '*weft*' 2>/dev/null)" ] ||
        { echo "FAILED: something is left in /dev/shm" && false; }
}

case_help() {
    local text
    text=$("$weftrun" --help) || fail "--help does not succeed"
    matches "help" "^usage: weftrun -n RANKS" "$text"
}

case_bad_command_line() {
    local text
    bad() { # bad PATTERN ARGUMENT...
        local pattern=$1
        shift
        text=$("$weftrun" "$@" 2>&1)
        same "status of weftrun $*" 2 $?
        matches "message of weftrun $*" "$pattern" "$text"
    }
    bad "positive number of ranks, not '0'" -n 0 true
    bad "positive number of ranks, not '-3'" -n -3 true
    bad "positive number of ranks, not '2x'" -n 2x true
    bad "positive number of ranks, not '99999999999999999999'" -n 99999999999999999999 true
    bad "positive number of ranks, not 'nothing'" -n
    bad "-n 1000000 is too many: one machine runs at most [0-9]+ ranks" -n 1000000 true
    bad "how many ranks" true
    bad "how many ranks"
    bad "which program" -n 2
    bad "which program" -n 2 --
    bad "unknown option '--frobnicate'" -n 2 --frobnicate true
    bad "unknown option '-x'" -x
    bad "shm, tcp, verbs, mpi or auto, not 'pigeon'" -n 2 --wire pigeon true
    bad "seconds from 0" -n 2 --grace soon true
    bad "seconds from 0" -n 2 --settle=-1 true
    bad "seconds from 0" -n 2 --settle=nan true
}

case_program_cannot_run() {
    local text
    text=$("$weftrun" -n 2 no-such-program-here 2>&1)
    same "status" 127 $?
    same "message" "weftrun: cannot run 'no-such-program-here': No such file or directory" "$text"
    text=$("$weftrun" -n 2 /etc/passwd 2>&1)
    same "status" 126 $?
    matches "message" "cannot run '/etc/passwd': Permission denied" "$text"
}

case_environment() {
    local text
    text=$(WEFT_STORE_FD=77 "$weftrun" -n 3 --wire tcp bash -c \
        'echo $WEFT_RANK $WEFT_WORLD_SIZE $WEFT_LOCAL_RANK $WEFT_LOCAL_SIZE $WEFT_WIRE ${WEFT_STORE_FD+fd}' | sort)
    same "ranks" "$(printf '[0] 0 3 0 3 tcp fd\n[1] 1 3 1 3 tcp\n[2] 2 3 2 3 tcp')" "$text"
    text=$("$weftrun" -n 3 --no-prefix bash -c 'echo $WEFT_JOB $WEFT_STORE $WEFT_SECRET' | sort -u)
    matches "one job, store and secret" '^[0-9a-f]{16} 127\.0\.0\.1:[0-9]+ [0-9a-f]{64}$' "$text"
    same "the same on all ranks" 1 "$(wc -l <<<"$text")"
    [ "$text" != "$("$weftrun" -n 1 --no-prefix bash -c 'echo $WEFT_JOB $WEFT_STORE $WEFT_SECRET')" ] ||
        fail "two runs share a job"
    same "encryption" "[0] 1" "$("$weftrun" -n 1 --encrypt bash -c 'echo $WEFT_ENCRYPT')"
    same "no encryption" "[0] 0" "$(WEFT_ENCRYPT=0 "$weftrun" -n 1 bash -c 'echo $WEFT_ENCRYPT')"
    same "WEFT_WIRE stays" "[0] pigeon" "$(WEFT_WIRE=pigeon "$weftrun" -n 1 bash -c 'echo $WEFT_WIRE')"
}

# The store's port is open before any rank runs, and its descriptor is a listening socket of rank 0 alone.
case_store() {
    local text
    text=$("$weftrun" -n 2 bash -c '
        exec 9<>"/dev/tcp/${WEFT_STORE/://}" || exit 1
        fds=$(ls -l /proc/self/fd | grep -c socket:)
        [ $WEFT_RANK = 0 ] && { readlink /proc/self/fd/$WEFT_STORE_FD | grep -q ^socket: || exit 1; }
        echo sockets $fds
        [ $WEFT_RANK = 1 ] && touch "$WEFT_TEST_MARK/connected"
        until [ -e "$WEFT_TEST_MARK/connected" ]; do sleep 0.05; done # rank 0 takes the socket with it' | sort)
    same "status and sockets" "$(printf '[0] sockets 2\n[1] sockets 1')" "$text"
}

case_prefix() {
    local text
    text=$("$weftrun" -n 2 bash -c 'printf "one\n\ntwo"; printf "three\n" >&2' 2>"$work/err" | sort)
    same "stdout" "$(printf '[0] \n[0] one\n[0] two\n[1] \n[1] one\n[1] two')" "$text"
    same "stderr" "$(printf '[0] three\n[1] three')" "$(sort "$work/err")"
    text=$("$weftrun" -n 2 --no-prefix bash -c 'echo plain')
    same "--no-prefix" "$(printf 'plain\nplain')" "$text"
    # A line that arrives in pieces stays one line, whatever other ranks write meanwhile.
    text=$("$weftrun" -n 2 bash -c 'for i in 1 2 3 4; do printf "$WEFT_RANK"; sleep 0.05; done; echo' | sort)
    same "pieces" "$(printf '[0] 0000\n[1] 1111')" "$text"
    # One that is too long comes in pieces, each with its prefix, and nothing is lost.
    text=$("$weftrun" -n 1 bash -c 'head -c 50000 /dev/zero | tr "\0" x' | sed 's/^\[0\] //' | tr -d '\n' | wc -c)
    same "long line" 50000 "$text"
}

case_much_output() {
    local bytes
    "$weftrun" -n 3 bash -c 'seq 200000 | sed "s/$/ $WEFT_RANK/"' | { sleep 1; cat; } >"$work/out"
    for rank in 0 1 2; do
        bytes=$(grep "^\[$rank\] " "$work/out" | cmp - <(seq 200000 | sed "s/.*/[$rank] & $rank/") && echo whole)
        same "rank $rank" whole "$bytes"
    done
    same "lines" 600000 "$(wc -l <"$work/out")"
}

case_status() {
    "$weftrun" -n 4 true || fail "success is not 0"
    "$weftrun" -n 3 bash -c 'exit $((WEFT_RANK == 1 ? 42 : 0))' 2>"$work/err"
    same "status" 42 $?
    matches "message" "rank 1 failed with status 42" "$(cat "$work/err")"
    "$weftrun" -n 3 bash -c '[ $WEFT_RANK = 2 ] && kill -SEGV $$; exit 0' 2>"$work/err"
    same "signal" 139 $?
    matches "message" "rank 2 was killed by signal 11 \(Segmentation fault\)" "$(cat "$work/err")"
    "$weftrun" -n 3 bash -c 'sleep $((2 - WEFT_RANK)); exit $((10 + WEFT_RANK))' 2>"$work/err"
    same "the first failure counts" 12 $?
}

case_one_failing_ends_all() {
    local start=$SECONDS
    "$weftrun" -n 3 --settle 0.5 bash -c '[ $WEFT_RANK = 1 ] && exit 9; sleep 100 & wait' 2>"$work/err"
    same "status" 9 $?
    [ $((SECONDS - start)) -le 5 ] || fail "it took $((SECONDS - start)) s"
    # The others may say what they saw before they are asked to end.
    "$weftrun" -n 2 --settle 5 bash -c '[ $WEFT_RANK = 1 ] && exit 9; sleep 0.7; echo saw it' >"$work/out" 2>/dev/null
    same "status" 9 $?
    same "last words" "[0] saw it" "$(cat "$work/out")"
}

# Ranks are promised to name a lost one within 5 s; they get the time to say so.
case_settles_long_enough() {
    "$weftrun" -n 2 bash -c '[ $WEFT_RANK = 1 ] && exit 9; sleep 5.2; echo saw it' >"$work/out" 2>/dev/null
    same "status" 9 $?
    same "last words" "[0] saw it" "$(cat "$work/out")"
}

milliseconds() { echo $(($(date +%s%N) / 1000000)); }

case_stubborn_ranks_are_killed() {
    local start took
    start=$(milliseconds)
    "$weftrun" -n 2 --settle 0.4 --grace 0.8 bash -c \
        'trap "echo asked" TERM; [ $WEFT_RANK = 1 ] && exit 3; while :; do sleep 0.1; done' >"$work/out" 2>/dev/null
    same "status" 3 $?
    took=$(($(milliseconds) - start))
    same "asked first" "[0] asked" "$(cat "$work/out")"
    [ $took -ge 1200 ] || fail "killed after $took ms, before 0.4 s to settle and 0.8 s of grace were over"
    [ $took -le 6000 ] || fail "it took $took ms"
}

start_waiting() { # start_waiting RANKS SCRIPT [OPTION...]: starts it and waits until every rank has written a line
    local ranks=$1 script=$2
    shift 2
    : >"$work/out"
    "$weftrun" -n "$ranks" "$@" bash -c "$script" >"$work/out" 2>"$work/err" &
    front=$!
    wait_for 10 lines_are "$work/out" "$ranks"
}

case_forwards_signals() {
    start_waiting 3 'trap "echo usr1" USR1; trap "echo term; exit 0" TERM; echo ready; while :; do sleep 0.1; done'
    kill -USR1 $front
    wait_for 10 lines_are "$work/out" 6
    kill -TERM $front
    wait $front
    same "ranks that end well" 0 $?
    same "each saw both" "3 3" "$(grep -c usr1 "$work/out") $(grep -c term "$work/out")"
    start_waiting 2 'trap - TERM; echo ready; exec sleep 100'
    kill -TERM $front
    wait $front
    same "ranks that die of it" 143 $?
}

# A job that is suspended for longer than silence is allowed, and than operations may take, goes on as if nothing had been.
case_suspends_and_goes_on() {
    RUN_PAUSE_MS=20 RUN_TIMEOUT_MS=3000 WEFT_THREADS=1 "$weftrun" -n 2 "$trains" "$work/model" 120 10 >"$work/out" 2>&1 &
    front=$!
    wait_for 30 test -s "$work/model"
    kill -TSTP $front
    wait_for 10 all_are T "$trains"
    sleep 6
    kill -CONT $front
    wait $front
    same "status" "0: [0] done 120" "$?: $(sed 's/ loss.*//' "$work/out")"
}

# A training run says on SIGUSR1 what each rank has been doing, and goes on.
case_dumps_on_signal() {
    [ -x "$fits" ] || { echo "no samples here: skipped" && exit 77; }
    WEFT_THREADS=1 "$weftrun" -n 2 "$fits" --epochs 1000 >"$work/out" 2>"$work/err" &
    front=$!
    wait_for 30 grep -q "epoch 3 done" "$work/out"
    kill -USR1 $front
    wait_for 10 grep -q '^\[1\] rank 1, process' "$work/err"
    wait_for 10 grep -q '^\[0\] rank 0, process' "$work/err"
    matches "operations" 'operation [0-9]+ of group 0, (allreduce|barrier)' "$(cat "$work/err")"
    kill -0 $front || fail "the run has ended: $(cat "$work/err")"
    kill -TERM $front
    wait $front
    same "status" 143 $?
}

case_second_signal_kills() {
    local start=$SECONDS
    start_waiting 2 'trap "echo asked" TERM; echo ready; while :; do sleep 0.1; done' --grace 50
    kill -TERM $front
    wait_for 10 lines_are "$work/out" 4 # two signals that come at once are one
    kill -TERM $front
    wait $front
    same "status" 137 $?
    [ $((SECONDS - start)) -le 20 ] || fail "it took $((SECONDS - start)) s"
}

# A child that left the process group and the session as well.
family='setsid sleep 300 & sleep 300 & (setsid bash -c "sleep 300 & wait" &) ; echo ready; wait'

case_front_killed() {
    start_waiting 3 "$family"
    wait_for 10 many_are 15
    kill -9 $front
    wait_for 5 nothing_left
}

case_keeper_killed() {
    start_waiting 3 "$family"
    kill -9 "$(cat /proc/$front/task/$front/children)"
    wait $front
    same "status" 137 $?
    nothing_left || fail "left behind: $(marked)"
}

case_front_and_keeper_killed() { # what the kernel alone guarantees: the ranks themselves
    start_waiting 3 'echo ready; exec sleep 300'
    kill -9 $front "$(cat /proc/$front/task/$front/children)"
    wait_for 5 nothing_left
}

# What the ranks of a training run hold outside of their own memory: named shared memory, and abstract sockets of shm wires.
mapped() { cat $(marked | sed 's|.*|/proc/&/maps|') 2>/dev/null | grep -oE "$1" | sort -u; }
sockets() { awk '$8 ~ /^@weft-/ { print $8 }' /proc/net/unix | sort -u; }
none_listed() { [ -z "$(comm -12 "$1" <(sockets))" ]; }

# Whoever of the launcher is killed in the middle of training, nothing stays: no process, no shared memory, no socket.
case_killed_while_training() {
    local wire victim
    for wire in shm tcp; do
        for victim in front keeper both; do
            sockets >"$work/before"
            RUN_PAUSE_MS=5 WEFT_THREADS=1 "$weftrun" -n 3 --wire $wire "$trains" "$work/$wire-$victim" 100000 10 >"$work/out" 2>&1 &
            front=$!
            wait_for 30 test -s "$work/$wire-$victim"
            sockets | comm -13 "$work/before" - >"$work/during"
            same "named shared memory over $wire" "" "$(mapped '/dev/shm/.*')"
            if [ $wire = shm ]; then
                matches "memory of the shm wire" memfd "$(mapped '/memfd:weft')"
                matches "sockets of the shm wire" @weft- "$(cat "$work/during")"
            fi
            keeper=$(cat /proc/$front/task/$front/children)
            case $victim in
                front) kill -9 $front ;;
                keeper) kill -9 $keeper ;;
                both) kill -9 $front $keeper ;;
            esac
            wait_for 10 nothing_left
            wait_for 10 none_listed "$work/during" # another test's sockets may be among them, for a while
        done
    done
}

case_rank_killed() {
    start_waiting 2 'echo ready $$; exec sleep 300' --settle 0
    kill -9 "$(sed -n 's/^\[1\] ready //p' "$work/out")"
    wait $front
    same "status" 137 $?
    matches "message" "rank 1 was killed by signal 9" "$(cat "$work/err")"
}

case_leftovers_of_ranks() {
    "$weftrun" -n 2 --grace 0.5 bash -c "(trap '' TERM HUP; setsid sleep 300 &) ; exit 0"
    same "status" 0 $?
    nothing_left || fail "left behind: $(marked)"
}

case_reader_goes_away() {
    local statuses
    "$weftrun" -n 2 bash -c 'while :; do echo line || exit 0; done' 2>/dev/null | head -n 1 >/dev/null
    statuses=${PIPESTATUS[0]}
    [ "$statuses" -ge 128 ] || fail "status $statuses"
}

case_standard_input() {
    same "rank 0 reads" "[0] word" "$(echo word | "$weftrun" -n 2 bash -c 'read -r x && echo $x')"
}

# Rank 0 has the terminal itself; the lines of the others begin on a fresh one.
case_terminal() {
    script -qec true /dev/null </dev/null >/dev/null 2>&1 || { echo "script(1) gets no terminal here: skipped" && exit 77; }
    script -qec "'$weftrun' -n 2 bash -c 'if [ -t 1 ]; then echo tty \$WEFT_RANK; else echo pipe \$WEFT_RANK; fi'" \
        /dev/null </dev/null >"$work/out" 2>&1 || fail "status $?: $(cat "$work/out")"
    matches "rank 0" '^tty 0|[^] ]tty 0' "$(tr -d '\r' <"$work/out")"
    matches "rank 1" '\[1\] pipe 1' "$(cat "$work/out")"
}

case_many_ranks() {
    same "lines" 300 "$("$weftrun" -n 300 echo here | sort -u | wc -l)"
    # A limit that cannot be raised is named.
    (ulimit -n 40 && "$weftrun" -n 100 true) 2>"$work/err"
    same "status" 125 $?
    matches "message" "rank [0-9]+: cannot make a pipe: Too many open files" "$(cat "$work/err")"
}

# The starters of others, by their environments, and Open MPI's own where it is: two ranks that meet and train.
train_together() { # train_together NAME COMMAND...: what the log says of the world
    local name=$1
    shift
    WEFT_THREADS=1 timeout 60 "$@" "$fits" --quiet --epochs 2 --log "$work/$name.jsonl" >"$work/$name.out" 2>&1
}
started_by() { # started_by NAME LAUNCHER: both ranks were one world, and trained as weftrun's do
    [ -x "$fits" ] || { echo "no samples here: skipped" && exit 77; }
    matches "the world" "rank 0 of 2,.* started by $2\"" "$(head -n 1 "$work/$1.jsonl")"
    train_together weftrun "$weftrun" -n 2 || fail "weftrun: $(cat "$work/weftrun.out")"
    same "the loss" "$(tail -n 1 "$work/weftrun.jsonl" | grep -o '"train_loss":[^,]*')" \
        "$(tail -n 1 "$work/$1.jsonl" | grep -o '"train_loss":[^,]*')"
}
fits=$(dirname "$weftrun")/fit_custom
both() { # both NAME VARIABLE...: ranks 0 and 1 with the variables, where R stands for the rank
    local name=$1 rank ranks=()
    shift
    for rank in 0 1; do
        train_together "$name" env "${@//=R/=$rank}" &
        ranks+=($!)
    done
    for rank in 0 1; do wait "${ranks[$rank]}" || fail "rank $rank: $(cat "$work/$name.out")"; done
}
case_environment_of_torchrun() {
    both torchrun RANK=R WORLD_SIZE=2 LOCAL_RANK=R LOCAL_WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=$((20000 + $$ % 11000))
    started_by torchrun torchrun
}
case_environment_of_slurm() {
    both slurm SLURM_PROCID=R SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=R SLURM_JOB_ID=$$ SLURM_STEP_ID=0 SLURM_STEP_NODELIST=localhost \
        SLURM_STEP_NUM_NODES=1 SLURM_STEP_TASKS_PER_NODE=2
    started_by slurm Slurm
}
case_mpirun() {
    command -v mpirun >/dev/null || { echo "no mpirun here: skipped" && exit 77; }
    train_together mpirun env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun --oversubscribe -n 2 ||
        fail "$(cat "$work/mpirun.out")"
    started_by mpirun "Open MPI"
}

"case_$2"

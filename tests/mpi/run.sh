#!/usr/bin/env bash
# usage: run.sh BIN FLAVOUR CASE
# Tries Weft under the launcher of one MPI (openmpi, mpich). Status 77: that MPI is not here, or has no module.
set -u
bin=$1
flavour=$2
source "$(dirname "${BASH_SOURCE[0]}")/../common/processes.sh"
patience=50 # launchers clear up after themselves
export TMPDIR="$work" WEFT_TEST_SHARED="$work/shared" WEFT_THREADS=1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_btl_base_warn_component_unused=0
export ASAN_OPTIONS="${ASAN_OPTIONS:-}:detect_leaks=0" # MPI keeps memory to its end
unset WEFT_WIRE WEFT_RANK WEFT_WORLD_SIZE WEFT_STORE WEFT_MPI WEFT_MPI_DIR
limit=60

launcher=$(command -v "mpirun.$flavour" || command -v mpirun || true)
case $("${launcher:-false}" --version 2>/dev/null | head -n 3) in
    *"Open MPI"* | *OpenRTE*) here=openmpi ;;
    *HYDRA*) here=mpich ;;
    *) here=none ;;
esac
[ $here = "$flavour" ] || skip "no mpirun of $flavour here"
[ -e "$bin/../lib/libweft_mpi_$flavour.so" ] || skip "built without a module for $flavour"

launch() { # launch RANKS PROGRAM...: as a user would, on fewer cores than ranks; options of the launcher in more[@]
    local ranks=$1
    shift
    if [ "$flavour" = openmpi ]; then
        timeout $limit "$launcher" --oversubscribe "${more[@]}" -n "$ranks" "$@"
    else
        timeout $limit "$launcher" "${more[@]}" -n "$ranks" "$@"
    fi
}
more=()

through() { # through RANKS WHAT: mpi_ranks ends well on all of them; not by the status, since faults leave MPI unfinalised
    local rank
    rm -f "$work"/shared*
    : >"$WEFT_TEST_SHARED"
    launch "$1" "$bin/mpi_ranks" "$2" >"$work/out" 2>&1
    [ $? != 124 ] || fail "$2 with $1 ranks hangs: $(cat "$work/out")"
    for ((rank = 0; rank < $1; rank++)); do [ -e "$WEFT_TEST_SHARED.$rank" ] || fail "$2: rank $rank did not get through: $(cat "$work/out")"; done
}

each() { # each WHAT RANKS...: with fewer where time is short
    local what=$1 ranks
    shift
    for ranks in "$@"; do [ "$ranks" -gt "${WEFT_TEST_RANKS:-9}" ] || through "$ranks" "$what"; done
}
case_conforms() { each conform 2 3 4; }
case_collectives() { each collectives 2 3; }
# MPI's own collectives, as the algorithm "mpi".
case_own_collectives() { each own 2 3 4; }
case_own_groups() {
    each own_groups 2 3 4
    each own_in_flight 2 3 4
    each own_numbers 2 3 4
}
case_own_calls_differ() {
    each own_headers_differ 2 3
    each own_counts_differ 2 3
}
case_own_late() {
    each own_late 2 3
    each own_stopped 2 3
}
case_mpi_that_fails() { through 2 errors; }
case_mpi_that_is_over() { through 2 over; }
case_mpi_of_the_program() {
    launch 2 "$bin/mpi_program_$flavour" >"$work/out" 2>&1 || fail "status $?: $(cat "$work/out")"
    matches "both" "^rank [01] of 2: wire mpi, sum 1, and MPI goes on" "$(cat "$work/out")"
}
case_no_world_that_shrinks() { through 2 shrink; }
case_large_nightly() { through 2 large; }

# The same where ranks are to outlive each other. Hydra ends them all, whatever it is told, so MPICH's are started without it.
can_outlive() { [ "$flavour" = openmpi ] || command -v python3 >/dev/null; }
launch_outliving() { # launch_outliving RANKS PROGRAM...
    local more=(--enable-recovery)
    if [ "$flavour" = openmpi ]; then
        launch "$@"
    else
        timeout $limit python3 "$(dirname "${BASH_SOURCE[0]}")/outlive.py" "$@"
    fi
}

# Open MPI (4.1) falls over itself now and then: its runtime reports an error of its own about the death, and a survivor never comes out of MPI. That is no
# verdict on Weft, so it is tried again.
outlive() { # outlive WHAT RANK...: of three ranks of which one dies, these get through
    local what=$1 rank tries missing
    shift
    can_outlive || skip "no python3 to start ranks by, and this launcher lets nobody outlive a rank"
    limit=30
    for tries in 1 2 3; do
        rm -f "$work"/shared*
        : >"$WEFT_TEST_SHARED"
        launch_outliving 3 "$bin/mpi_ranks" "$what" >"$work/out" 2>&1
        missing=""
        for rank in "$@"; do [ -e "$WEFT_TEST_SHARED.$rank" ] || missing="$missing $rank"; done
        [ -n "$missing" ] || return 0
        grep -q "PMIX ERROR" "$work/out" || break
    done
    fail "$what, try $tries: not through:$missing: $(cat "$work/out")"
}
case_dead_rank() { outlive dead 1 2; }
case_own_dead_rank() { outlive own_dead 0 1; }

train() { # train NAME COMMAND...: leaves NAME.safetensors and NAME.jsonl
    local name=$1
    shift
    "$@" "$bin/fit_custom" --quiet --epochs 2 --log "$work/$name.jsonl" --checkpoint "$work/$name.safetensors" >"$work/$name.out" 2>&1 ||
        fail "$name: status $?: $(cat "$work/$name.out")"
}
has_samples() { [ -x "$bin/fit_custom" ] || skip "no samples here"; }

# The same parameters as over shared memory, to the bit where both add in the same order.
case_trains() {
    local ranks
    has_samples
    for ranks in 2 4; do
        WEFT_WIRE=shm WEFT_ALGORITHM=ring train "shm$ranks" "$bin/weftrun" -n $ranks
        WEFT_WIRE=mpi WEFT_ALGORITHM=ring train "mpi$ranks" launch $ranks
        matches "the world" "rank 0 of $ranks,.* wire mpi, started by" "$(head -n 1 "$work/mpi$ranks.jsonl")"
        cmp "$work/shm$ranks.safetensors" "$work/mpi$ranks.safetensors" || fail "$ranks ranks got other parameters than over shared memory"
    done
    # Two numbers have one order.
    WEFT_WIRE=mpi WEFT_ALGORITHM=mpi train own2 launch 2
    cmp "$work/shm2.safetensors" "$work/own2.safetensors" || fail "MPI's own collectives got other parameters"
    WEFT_WIRE=mpi WEFT_TUNING="measure:$work/tuning" train tuned2 launch 2
    cmp "$work/shm2.safetensors" "$work/tuned2.safetensors" || fail "what the tuning chose got other parameters"
    matches "the tuning" "^wire mpi" "$(sed -n 2p "$work/tuning")"
}

# By a parameter server, whose links are a second wire over the same MPI: the same weights as over shared memory, to the bit.
case_serves() {
    local ranks
    [ -x "$bin/train_clicks" ] || skip "no samples here"
    awk 'BEGIN { srand(1); for (i = 0; i < 3000; i++) { a = int(rand() * 50) + 1; b = a + 1 + int(rand() * 50); print (rand() < a / 50), a ":1", b ":0.5" } }' \
        >"$work/clicks"
    clicks() { "$@" "$bin/train_clicks" --data "$work/clicks" --epochs 2 --staleness 0 --quiet --model "$work/model" >"$work/out" 2>&1 ||
        fail "$*: status $?: $(cat "$work/out")"; }
    for ranks in 2 3; do
        WEFT_WIRE=shm clicks "$bin/weftrun" -n $ranks
        mv "$work/model" "$work/wanted"
        WEFT_WIRE=mpi clicks launch $ranks
        cmp "$work/wanted" "$work/model" || fail "$ranks ranks got other weights than over shared memory"
    done
}

# Without a word about wires: shared memory on one host. Any wire may ride on the rendezvous over MPI.
case_starts_by_itself() {
    has_samples
    train plain launch 2
    matches "the world" "rank 0 of 2,.* wire shm, started by" "$(head -n 1 "$work/plain.jsonl")"
    WEFT_STORE=mpi WEFT_WIRE=tcp train tcp launch 2
    matches "the world" "rank 0 of 2,.* wire tcp, started by" "$(head -n 1 "$work/tcp.jsonl")"
    cmp "$work/plain.safetensors" "$work/tcp.safetensors" || fail "the wires got different parameters"
}

# A rank is killed in the middle of training: everyone ends, soon, and says who it was where the launcher lets it.
kill_one() { # kill_one LAUNCH: of three ranks that train; status is the launcher's
    local trains=$bin/train_program_run rank start took
    rm -f "$work/model"
    WEFT_WIRE=mpi RUN_PAUSE_MS=2 "$1" 3 "$trains" "$work/model" 100000 10 >"$work/out" 2>&1 &
    wait_for 45 test -s "$work/model"
    rank=$(marked_with "$trains" "(OMPI_COMM_WORLD_RANK|PMI_RANK)=1")
    [ -n "$rank" ] || fail "no rank 1 trains: $(cat "$work/out")"
    start=$(date +%s%N)
    kill -9 "$rank"
    wait $!
    status=$?
    took=$((($(date +%s%N) - start) / 1000000))
    # A second or two beside others; what only a deadline ends takes the 30 s of Weft's waits.
    [ $took -lt 25000 ] || fail "it took $took ms, status $status: $(cat "$work/out")"
    wait_for 10 nothing_left
}
case_killed_rank() {
    kill_one launch
    [ $status != 0 ] && [ $status != 124 ] || fail "status $status: $(cat "$work/out")"
    can_outlive || return 0 # Hydra ends everyone at once
    kill_one launch_outliving
    # A step that ended with it says its own rank first; what ends with it between steps (an agreement of all ranks) names no step.
    [ "$(grep -Ec "WEFT_E_PEER (rank [02], .*: )?rank 1 failed: its process has ended" "$work/out")" = 2 ] ||
        fail "the survivors' words: $(cat "$work/out")"
}

said() { # said PATTERN COMMAND...: the command fails, saying so
    local pattern=$1
    shift
    "$@" >"$work/said" 2>&1 && fail "it succeeds: $*: $(cat "$work/said")"
    matches "the words of $*" "$pattern" "$(cat "$work/said")"
}
case_says_what_is_wrong() {
    has_samples
    said "not started by an MPI launcher.*mpirun" timeout $limit env WEFT_WIRE=mpi WEFT_RANK=0 WEFT_WORLD_SIZE=2 "$bin/fit_custom"
    said "there is no wire 'pigeon'.*there are: auto, .*mpi" env WEFT_WIRE=pigeon timeout $limit "$bin/weftrun" -n 2 "$bin/fit_custom"
    local other=mpich
    [ "$flavour" = openmpi ] || other=openmpi
    WEFT_WIRE=mpi WEFT_MPI=/nowhere/at/all.so said "/nowhere/at/all.so cannot be loaded" launch 2 "$bin/fit_custom"
    WEFT_WIRE=mpi WEFT_MPI=nonesuch said "no module libweft_mpi_nonesuch.so" launch 2 "$bin/fit_custom"
    [ ! -e "$bin/../lib/libweft_mpi_$other.so" ] ||
        WEFT_WIRE=mpi WEFT_MPI=$other said "says 2 ranks, and MPI .* has 1 process" launch 2 "$bin/fit_custom"
    [ "$flavour" != openmpi ] || said "not enough slots" timeout $limit "$launcher" --host localhost:2 -n 3 "$bin/fit_custom"
}

"case_$3"

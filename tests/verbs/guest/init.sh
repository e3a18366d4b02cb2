#!/bin/sh
# PID 1 of a guest that guest.sh boots. The kernel's command line says which part it plays: part=alone, part=first or
# part=second. What is to be judged goes to the console as lines "verdict NAME: ok, S s" or "verdict NAME: FAILED, S s".
export PATH=/sbin:/bin LD_LIBRARY_PATH=/lib HOME=/tmp WEFT_WIRE=verbs WEFT_VERBS_TESTED=1 NO_COLOR=1

prepare() {
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t devtmpfs devtmpfs /dev
    mkdir -p /dev/shm
    mount -t tmpfs tmpfs /dev/shm
    mount -t tmpfs tmpfs /tmp
    /bin/ip link set lo up
    echo 3 >/proc/sys/kernel/printk
    echo # what the firmware said has no end of line
}

give_up() {
    echo "verdict $1: FAILED, 0 s"
    poweroff -f
}

# Runs a function of this file, or a program, under a limit of seconds and tells how it ended.
judge() { # judge NAME LIMIT COMMAND...
    name=$1 limit=$2 began=$(cut -d. -f1 /proc/uptime)
    shift 2
    result=FAILED
    timeout -s KILL "$limit" /init "$@" && result=ok
    echo "verdict $name: $result, $(($(cut -d. -f1 /proc/uptime) - began)) s"
}

# A soft RDMA device on a network interface that has an address.
set_up() { # set_up INTERFACE ADDRESS DEVICE
    /bin/ip link set "$1" up && /bin/ip addr add "$2/24" dev "$1" && modprobe -a crc32_generic rdma_rxe rdma_ucm &&
        rdma link add "$3" type rxe netdev "$1" || give_up "a soft RDMA device"
}

# --- alone ---

train() {
    WEFT_WIRE= fit_custom --epochs 2 --quiet >/tmp/one || return 1
    weftrun -n 2 --wire verbs --no-prefix fit_custom --epochs 2 --quiet >/tmp/two || return 1
    echo "one rank: $(cat /tmp/one); two ranks over verbs: $(cat /tmp/two)"
    # Sums in another order: equal to rounding.
    awk '{ error[NR] = $NF } END { ratio = error[2] / error[1]; exit !(NR == 2 && ratio > 0.999 && ratio < 1.001) }' /tmp/one /tmp/two
}

# A small transformer split along a tensor axis, and into a pipeline: the loss of one rank.
last_loss() { # last_loss RANKS ARGUMENT...
    count=$1
    shift
    weftrun -n "$count" --wire verbs --no-prefix train_gpt --model tiny --layers 2 --heads 4 --width 32 --text /init --vocabulary 256 --context 32 --batch 8 \
        --max-steps 8 --rate 0.01 --warmup 2 --quiet --log /tmp/steps "$@" && sed -n 's/.*"event":"end".*"train_loss":\([0-9.]*\).*/\1/p' /tmp/steps
}
split() {
    whole=$(last_loss 1) && tensor=$(last_loss 2 --mesh tensor=2) && pipeline=$(last_loss 2 --mesh pipeline=2 --accumulate 4) || return 1
    echo "one rank: loss $whole; over verbs, tensor=2: $tensor; pipeline=2: $pipeline"
    awk "BEGIN { exit !($whole < 5 && $tensor / $whole < 1.0001 && $whole / $tensor < 1.0001 && $pipeline / $whole < 1.0001 && $whole / $pipeline < 1.0001) }"
}

# Bandwidth of one MiB messages one way in MB/s: by rdma-core's own measure, and by ours, in turns. The best of each counts, and there
# are more turns where the machine was too busy for a fair one.
peer_bandwidth() {
    ib_write_bw -d rxe0 -x 1 -F -s 1048576 -n 250 --report_gbits >/tmp/server 2>&1 &
    sleep 1
    ib_write_bw -d rxe0 -x 1 -F -s 1048576 -n 250 --report_gbits 10.0.0.1 >/tmp/client 2>&1 || { cat /tmp/server /tmp/client && return 1; }
    wait
    awk '$1 == 1048576 { print $4 * 125 }' /tmp/client
}
own_bandwidth() { weft-bench sendrecv --wire verbs --sizes 1M:1M --windows 3 --seconds 0.7 --no-limit | awk '$1 == "1M" { printf "%.1f\n", 1048576 / $2 }'; }

bandwidth() {
    : >/tmp/turns
    for turn in 1 2 3 4 5 6 7 8; do
        echo "$(peer_bandwidth) $(own_bandwidth)" >>/tmp/turns
        awk 'NF == 2 && $1 > 0 { n++; if ($1 > peer) peer = $1; if ($2 > own) own = $2 }
             END { printf "sendrecv reaches %.2f of ib_write_bw (%d and %d MB/s, the best of %d)\n", own / peer, own, peer, n; exit !(n >= 3 && own >= 0.9 * peer) }' /tmp/turns >/tmp/share &&
            break
    done
    enough=$?
    sed 's/^/bandwidth in MB\/s of ib_write_bw, and of sendrecv: /' /tmp/turns
    cat /tmp/share
    [ $enough = 0 ] || return 1
    weft-bench allreduce --wire verbs --ranks 2 --sizes 1M:1M --windows 3 --seconds 0.5 --check >/tmp/allreduce || return 1
    cat /tmp/allreduce
    awk '$1 == "1M" { wrong = $NF; seen = 1 } END { exit !(seen && wrong == 0) }' /tmp/allreduce
}

# Two ranks are refused in these words.
refuses() { # refuses WORDS [VARIABLE=VALUE...]
    words=$1
    shift
    if env "$@" weftrun -n 2 --wire verbs fit_custom --epochs 1 --quiet >/tmp/said 2>&1 || ! grep -q "$words" /tmp/said; then
        echo "not said: $words; but:"
        cat /tmp/said
        return 1
    fi
}

nothing_there() {
    mv /lib/libibverbs.so.1 /tmp
    refuses "libibverbs cannot be used"
    without_library=$?
    mv /tmp/libibverbs.so.1 /lib
    refuses "this host has no RDMA device" && return $without_library
}

bad_input() {
    refuses "WEFT_VERBS_DEVICE names 'mlx5_0'.* there are: rxe0: port 1 active" WEFT_VERBS_DEVICE=mlx5_0 || return 1
    refuses "WEFT_VERBS_GID=200: rxe0:1 has no such GID; it has: .*10.0.0.1 (RoCE v2)" WEFT_VERBS_GID=200 || return 1
    echo "nobody:x:65534:65534::/tmp:/bin/sh" >/etc/passwd
    chmod 666 /dev/infiniband/*
    ulimit -l 64
    refuses "RLIMIT_MEMLOCK is 64 KiB; raise it" >/tmp/as_root && return 1 # root is not bound by it
    su nobody -c "weftrun -n 2 --wire verbs fit_custom --epochs 1 --quiet" >/tmp/said 2>&1
    grep -q "RLIMIT_MEMLOCK is 64 KiB; raise it" /tmp/said || { cat /tmp/said && return 1; }
}

# The same weights as over shared memory, to the bit.
serve() {
    awk 'BEGIN { srand(1); for (i = 0; i < 1000; i++) { a = int(rand() * 50) + 1; b = a + 1 + int(rand() * 50); print (rand() < a / 50), a ":1", b ":0.5" } }' >/tmp/clicks
    for wire in shm verbs; do
        weftrun -n 2 --wire $wire train_clicks --data /tmp/clicks --batch 50 --staleness 0 --quiet --model /tmp/weights-$wire || return 1
    done
    [ -s /tmp/weights-verbs ] && cmp /tmp/weights-shm /tmp/weights-verbs
}

side_by_side() { WEFT_VERBS_DEVICE=all verbs_test_verbs_device --filter 'verbs_device/*2_ranks'; }

play_alone() {
    judge "nothing there" 40 nothing_there
    modprobe dummy numdummies=2
    set_up dummy0 10.0.0.1 rxe0
    judge "bad input" 40 bad_input
    judge "conformance and collectives" 120 verbs_test_verbs_device
    judge training 60 train
    judge "parameter server" 60 serve
    judge "model parallelism" 90 split
    judge bandwidth 150 bandwidth
    set_up dummy1 10.0.1.1 rxe1
    judge "two devices side by side" 60 side_by_side
}

# --- one of two ---

# Both ranks of this guest, of four.
ranks() { # ranks FIRST ARGUMENT...
    first=$1
    shift
    WEFT_RANK=$first verbs_guest_ranks "$@" &
    one=$!
    WEFT_RANK=$((first + 1)) verbs_guest_ranks "$@" &
    two=$!
    wait $one
    bad=$?
    wait $two
    worse=$?
    [ $bad = 0 ] && return $worse
    [ $worse = 0 ] || [ $worse = 3 ] || return $worse
    return $bad
}

# Over a link that loses some.
reaches() { # reaches ADDRESS
    for try in 1 2 3 4; do ping -c 1 -W 2 "$1" >/dev/null && return; done
    return 1
}

# Runs the ranks again where they were told that a guest gave no answer over a link that is whole: its host did not let it run for a second.
# All four are told of it, so both guests take the same turns.
turns() { # turns FIRST OTHER PORT ROUNDS BYTES [CUT]
    first=$1 probe="/init reaches $2" port=$3 rounds=$4 bytes=$5
    shift 5
    for turn in 1 2 3 4 5 6; do
        WEFT_STORE=10.0.0.1:$((port + turn)) ranks "$first" "$rounds" "$bytes" "$probe" "$@"
        ended=$?
        [ $ended = 3 ] || return $ended
        echo "turn $turn was none: a guest was not let run"
    done
    return 3
}

# Cuts the link, silently and both ways, once the ranks here are in the middle of an operation: the other guest does the same.
cut_the_link() {
    until [ -e /tmp/cut ]; do usleep 20000; done
    /bin/tc qdisc change dev eth0 root netem loss 100%
    echo "the link is cut"
}

play_one_of_two() { # play_one_of_two OWN OTHER FIRST_RANK
    modprobe virtio_pci && modprobe virtio_net && modprobe sch_netem || give_up "modules of the network"
    set_up eth0 "$1" rxe0
    export WEFT_INTERFACE=$1 WEFT_WORLD_SIZE=4 WEFT_THREADS=1 WEFT_SECRET=to-be-known-by-both-guests
    /bin/tc qdisc add dev eth0 root netem delay 1ms loss 1%
    tries=0
    until ping -c 1 -W 1 "$2" >/tmp/ping; do
        tries=$((tries + 1))
        [ $tries -lt 60 ] || give_up "a way to the other guest"
    done
    export WEFT_STORE=10.0.0.1:7000
    # What is tried is loss, not a host that is late.
    WEFT_VERBS_TIMEOUT=16 judge "allreduce with loss and delay" 150 turns "$3" "$2" 7000 10 1000000
    cut_the_link &
    judge "a link that is cut" 150 turns "$3" "$2" 7010 1 4000000 /tmp/cut
    touch /tmp/cut
    wait
}

if [ $# -gt 0 ]; then # what judge runs
    "$@"
    exit
fi
prepare
case $(sed 's/.*part=\([a-z]*\).*/\1/' /proc/cmdline) in
    alone) play_alone ;;
    first) play_one_of_two 10.0.0.1 10.0.0.2 0 ;;
    second) play_one_of_two 10.0.0.2 10.0.0.1 2 ;;
esac
echo "verdict part: ok, all of it was run"
poweroff -f

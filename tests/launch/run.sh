#!/usr/bin/env bash
# usage: run.sh BIN SOURCE CASE
# Starts real ranks as the launchers of clusters do: under a Slurm of our own, in Kubernetes' environment, by ssh; with the files of
# samples/launch as far as one machine goes. Status 77: what the case needs is not here.
set -u
bin=$1
tree=$2
source "$(dirname "${BASH_SOURCE[0]}")/../common/processes.sh"
patience=50 # daemons take a moment to end
export WEFT_THREADS=1
unset WEFT_WIRE WEFT_RANK WEFT_WORLD_SIZE WEFT_STORE WEFT_MPI WEFT_SECRET WEFT_SECRET_FILE WEFT_INTERFACE WEFT_JOB
fits=$bin/fit_custom
trains=$bin/train_program_run
in_time() { # in_time COMMAND...: within what is left of the case's time, which ends before ctest's, so that everything is cleared up
    timeout $((SECONDS < 120 ? 120 - SECONDS : 1)) "$@"
}
free_port() { # one that nobody listens at now
    local port
    while port=$((20000 + RANDOM % 8000)) && (exec 9<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
    echo "$port"
}
[ -x "$fits" ] && [ -x "$trains" ] || skip "no samples here"

train() { # train NAME RANKS LAUNCHER COMMAND...: they were one world, started by that, and trained as weftrun's do
    local name=$1 ranks=$2 launcher=$3
    shift 3
    in_time "$@" "$fits" --quiet --epochs 2 --log "$work/$name.jsonl" >"$work/$name.out" 2>&1 || fail "$name: status $?: $(cat "$work/$name.out")"
    judge "$name" "$ranks" "$launcher"
}
loss_of() { tail -n 1 "$work/$1.jsonl" | grep -o '"train_loss":[^,]*'; }
judge() { # judge NAME RANKS LAUNCHER
    local wire
    matches "the world of $1" "rank 0 of $2,.* started by $3\"" "$(head -n 1 "$work/$1.jsonl")"
    wire=$(head -n 1 "$work/$1.jsonl" | grep -o 'wire [a-z]*')
    [ -e "$work/by_weftrun_$2.jsonl" ] || WEFT_WIRE=${wire#wire } WEFT_STORE='' in_time "$bin/weftrun" -n "$2" "$fits" --quiet --epochs 2 \
        --log "$work/by_weftrun_$2.jsonl" >"$work/weftrun.out" 2>&1 || fail "weftrun: $(cat "$work/weftrun.out")"
    [ "$(loss_of "$1")" = "$(loss_of "by_weftrun_$2")" ] || fail "$1: loss $(loss_of "$1"), by weftrun $(loss_of "by_weftrun_$2")"
}

# --- Slurm ---

start_slurm() { # two nodes on this host, all in $work
    local name first second
    name=$(hostname -s)
    first=$(free_port) second=$(free_port)
    mkdir "$work/state" "$work/tmp.$name" "$work/tmp.weft2"
    (umask 077 && head -c 64 /dev/urandom >"$work/key")
    export SLURM_CONF=$work/slurm.conf
    cat >"$SLURM_CONF" <<END
ClusterName=weft
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=$(free_port)
AuthType=auth/munge
AuthInfo=socket=$work/munge
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool.%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.%n.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
PlugStackConfig=/dev/null
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
EnforcePartLimits=ALL
TmpFS=$work/tmp.%n
KillWait=2
NodeName=$name NodeAddr=127.0.0.1 Port=$first CPUs=2 State=UNKNOWN
NodeName=weft2 NodeAddr=127.0.0.1 Port=$second CPUs=2 State=UNKNOWN
PartitionName=all Nodes=$name,weft2 Default=YES MaxTime=INFINITE State=UP
END
    munged --key-file="$work/key" --socket="$work/munge" --pid-file="$work/munged.pid" --log-file="$work/munge.log" \
        --seed-file="$work/seed" --num-threads=1 --force >"$work/munge.out" 2>&1 || skip "munged does not start here ($(tail -n 1 "$work/munge.out"))"
    before_end() { kill $(cat "$work"/*.pid 2>/dev/null) 2>/dev/null; }
    slurmctld >"$work/slurmctld.out" 2>&1 && slurmd -N "$name" >"$work/slurmd.out" 2>&1 && slurmd -N weft2 >>"$work/slurmd.out" 2>&1 ||
        skip "Slurm does not start here ($(cat "$work"/slurm*.{out,log} 2>/dev/null | grep -iE 'error|fatal' | tail -n 2))"
    while ! nodes_are_idle; do
        [ $SECONDS -lt 60 ] || skip "Slurm's nodes do not come up here ($(tail -qn 1 "$work"/slurm*.log | tr '\n' ' '))"
        sleep 0.1
    done
}
nodes_are_idle() { [ "$(sinfo -h -o %T 2>/dev/null)" = idle ] && [ "$(sinfo -h -o %D 2>/dev/null)" = 2 ]; }

case_slurm() {
    command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null || skip "no slurmctld, slurmd and munged here"
    getent hosts "$(hostname -s)" >/dev/null || skip "this host's own name is not known"
    start_slurm
    export WEFT_SECRET=0123456789abcdef0123456789abcdef # the first node's name may be another address than loopback
    train srun 4 Slurm srun --nodes=2 --ntasks=4
    WEFT_WIRE=tcp train tcp 2 Slurm srun --nodes=2 --ntasks=2
    unset WEFT_SECRET # the sample makes one
    in_time sbatch --quiet --wait --output="$work/sbatch.out" "$tree/samples/launch/slurm.sbatch" "$fits" --quiet --epochs 2 \
        --log "$work/sbatch.jsonl" || fail "sbatch: status $?: $(cat "$work/sbatch.out")"
    judge sbatch 4 Slurm
    export WEFT_SECRET=0123456789abcdef0123456789abcdef
    if [ -e "$bin/../lib/libweft_mpi_openmpi.so" ] && srun --mpi=list 2>&1 | grep -qw pmix; then
        WEFT_WIRE=mpi train mpi 2 Slurm srun --mpi=pmix --nodes=2 --ntasks=2
        matches "the wire" "wire mpi" "$(head -n 1 "$work/mpi.jsonl")"
    fi
    # A rank is killed: the others say who, and the step ends.
    RUN_PAUSE_MS=2 in_time srun --nodes=2 --ntasks=3 "$trains" "$work/model" 100000 10 >"$work/killed.out" 2>&1 &
    wait_for 30 test -s "$work/model"
    kill -9 "$(marked_with "$trains" SLURM_PROCID=1)"
    wait $! && fail "srun does not see that a rank was killed"
    matches "the survivors' words" "WEFT_E_PEER rank [02], .*: rank 1 failed: its process has ended" "$(cat "$work/killed.out")"
    # More ranks than there is room for are refused at once.
    in_time srun --ntasks=5 true >"$work/many.out" 2>&1 && fail "five tasks on four processors"
    matches "too many" "Unable to allocate resources: " "$(cat "$work/many.out")"
}

# --- Kubernetes ---

pods() { # pods NAME RANKS VARIABLE...: ranks as pods of an indexed job have them
    local name=$1 ranks=$2 rank started=()
    shift 2
    for ((rank = 0; rank < ranks; rank++)); do
        in_time env JOB_COMPLETION_INDEX=$rank HOSTNAME=weft-$rank WEFT_WORLD_SIZE="$ranks" "$@" "$fits" --quiet --epochs 2 \
            --log "$work/$name.jsonl" >"$work/$name.$rank" 2>&1 &
        started+=($!)
    done
    for ((rank = 0; rank < ranks; rank++)); do wait "${started[$rank]}" || fail "rank $rank: $(cat "$work/$name.$rank")"; done
}
case_kubernetes() {
    pods pods 3 WEFT_STORE=localhost:"$(free_port)"
    judge pods 3 Kubernetes
    JOB_COMPLETION_INDEX=1 WEFT_WORLD_SIZE=2 in_time "$fits" >"$work/nowhere" 2>&1 && fail "a pod without WEFT_STORE runs"
    matches "no store" "Kubernetes says 2 ranks, but not where they meet: set WEFT_STORE" "$(cat "$work/nowhere")"
    JOB_COMPLETION_INDEX=2 WEFT_WORLD_SIZE=2 in_time "$fits" >"$work/beyond" 2>&1 && fail "a pod beyond the last runs"
    matches "beyond" "JOB_COMPLETION_INDEX=2 and WEFT_WORLD_SIZE=2: ranks go from 0 to 1" "$(cat "$work/beyond")"
}
# Rank 0's name appears when its pod does: in name spaces of our own, the list of hosts gets it after the ranks have begun.
case_kubernetes_name_comes_late() {
    unshare -m true 2>/dev/null || skip "no mount name spaces here"
    cp /etc/hosts "$work/hosts"
    (sleep 1.5 && echo "127.0.0.1 weft-0.weft" >>"$work/hosts") &
    export -f pods in_time fail
    export work fits
    unshare -m bash -c "SECONDS=$SECONDS; mount --bind '$work/hosts' /etc/hosts && pods late 2 WEFT_STORE=weft-0.weft:$(free_port)" || fail "the ranks did not wait for the name"
    judge late 2 Kubernetes
}
case_kubernetes_file() {
    python3 -c 'import yaml' 2>/dev/null || skip "no PyYAML here"
    python3 - "$tree/samples/launch/kubernetes.yaml" <<'END' || fail "the file is not what it should be"
import sys, yaml
service, job = yaml.safe_load_all(open(sys.argv[1]))
assert service["kind"] == "Service" and job["kind"] == "Job" and job["apiVersion"] == "batch/v1"
spec, pod = job["spec"], job["spec"]["template"]["spec"]
name, port = service["metadata"]["name"], service["spec"]["ports"][0]["port"]
assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"] is True
assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]} and pod["subdomain"] == name
assert spec["completionMode"] == "Indexed" and pod["restartPolicy"] == "Never"
container = pod["containers"][0]
env = {e["name"]: e for e in container["env"]}
assert str(spec["completions"]) == str(spec["parallelism"]) == env["WEFT_WORLD_SIZE"]["value"]
assert env["WEFT_STORE"]["value"] == f'{job["metadata"]["name"]}-0.{name}:{port}'
assert [m["name"] for m in container["volumeMounts"]] == [v["name"] for v in pod["volumes"]]
assert container["command"][container["command"].index("--checkpoint") + 1].startswith(container["volumeMounts"][0]["mountPath"] + "/")
assert set(env["WEFT_SECRET"]["valueFrom"]["secretKeyRef"]) == {"name", "key"}
END
}

# --- ssh ---

# In the place of ssh: what would run there runs here, by the login shell, with nothing of this environment but what it says.
fake_ssh() {
    mkdir "$work/bin"
    cat >"$work/bin/ssh" <<'END'
#!/bin/bash
[ "$1 $2" = "-o BatchMode=yes" ] || exit 3
echo "$3" >>"$FAKE_SSH_LOG"
shift 3
exec env -i HOME="$HOME" PATH="/usr/bin:/bin" WEFT_THREADS=1 WEFT_TEST_MARK="$WEFT_TEST_MARK" RUN_PAUSE_MS="${RUN_PAUSE_MS:-}" sh -c "$*"
END
    chmod +x "$work/bin/ssh"
    export PATH="$work/bin:$PATH" FAKE_SSH_LOG=$work/ssh.log WEFT_PORT
    WEFT_PORT=$(free_port)
    printf '# two hosts\nlocalhost 2\n\n127.0.0.1' >"$work/hosts"
}
case_ssh() {
    local front
    fake_ssh
    train ssh 3 weftrun bash "$tree/samples/launch/ssh.sh" "$work/hosts"
    [ "$(sort "$work/ssh.log" | tr '\n' ' ')" = "127.0.0.1 localhost localhost " ] || fail "the hosts were $(cat "$work/ssh.log")"
    # The status of the first rank that fails, and what the others say of it.
    in_time bash "$tree/samples/launch/ssh.sh" "$work/hosts" bash -c '[ $WEFT_RANK != 1 ] || exit 7; sleep 1; echo "here $WEFT_RANK a  b"' >"$work/out" 2>&1
    [ $? = 7 ] || fail "not the status of the rank that failed"
    [ "$(sort "$work/out" | tr '\n' ';')" = "here 0 a  b;here 2 a  b;" ] || fail "the others' words: $(cat "$work/out")"
    # Whatever becomes of the script, nothing outlives it.
    mkdir "$work/tmp"
    TMPDIR=$work/tmp RUN_PAUSE_MS=2 bash "$tree/samples/launch/ssh.sh" "$work/hosts" "$trains" "$work/model" 100000 10 >"$work/out" 2>&1 &
    front=$!
    wait_for 30 test -s "$work/model"
    kill -9 $front
    wait_for 10 nothing_left
    same "what is left of its files" "" "$(ls "$work/tmp")"
}

# --- all ---

case_files() {
    local file
    for file in "$tree"/samples/launch/*.sh "$tree"/samples/launch/*.sbatch; do bash -n "$file" || fail "$file"; done
    matches "without arguments" "usage|HOSTS PROGRAM" "$(bash "$tree/samples/launch/ssh.sh" 2>&1)"
}

"case_$3"

#!/usr/bin/env bash
# Starts ranks on several hosts by plain ssh, with nothing but a shell there.
#
#   samples/launch/ssh.sh HOSTS PROGRAM [ARGUMENT...]
#
# HOSTS is a file with a line for each host: its name, as all hosts know it, and how many ranks it runs (1 where nothing is said);
# rank 0 is on the first. The program lies at the same path everywhere. WEFT_PORT is where rank 0 listens (29400). A secret
# of its own for each run goes through ssh's standard input, so it is in no list of processes. When this script ends, for
# whatever reason, so do the ranks; its status is that of the first rank that failed.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,10s/^# \?//p' "$0" >&2 && exit 2; }
hosts=()
while read -r host ranks _ || [ -n "$host" ]; do
    [ -z "$host" ] || [ "${host:0:1}" = "#" ] && continue
    for ((i = 0; i < ${ranks:-1}; i++)); do hosts+=("$host"); done
done <"$1"
shift
[ ${#hosts[@]} -gt 0 ] || { echo "no hosts in the file" >&2 && exit 2; }

secret=$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')
folder=$(printf '%q' "$PWD")
program=$(printf '%q ' "$@")
pipes=$(mktemp -d)
pids=()
lines=()
trap '' PIPE
trap 'rm -rf "$pipes"; kill "${pids[@]}" 2>/dev/null || true' EXIT
for rank in "${!hosts[@]}"; do
    mine="WEFT_RANK=$rank WEFT_WORLD_SIZE=${#hosts[@]} WEFT_STORE=${hosts[0]}:${WEFT_PORT:-29400} WEFT_JOB=ssh-$$"
    # There: the secret is the first line, and the end of standard input means that this script is gone.
    there="read -r WEFT_SECRET; export WEFT_SECRET $mine; cd $folder || exit; exec 3<&0; $program </dev/null 3<&- & rank=\$!
        { cat <&3 >/dev/null; kill \$rank; } 2>/dev/null & watch=\$!; exec 3<&-; wait \$rank; status=\$?; kill \$watch; exit \$status"
    mkfifo -m 600 "$pipes/$rank"
    (
        for line in "${lines[@]}"; do exec {line}>&-; done # only this script is to hold them open
        exec ssh -o BatchMode=yes "${hosts[$rank]}" "$there" <"$pipes/$rank"
    ) &
    pids+=($!)
    exec {line}>"$pipes/$rank" # both ends are open: the name is needed no more
    rm "$pipes/$rank"
    lines+=("$line")
    echo "$secret" >&"$line"
done
rmdir "$pipes"
status=0
for _ in "${pids[@]}"; do
    wait -n "${pids[@]}" && continue
    status=$?
    for ((i = 0; i < 60; i++)); do # the others see it, and say so
        [ -n "$(jobs -rp)" ] || break
        sleep 0.1
    done
    break
done
exit $status

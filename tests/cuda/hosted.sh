#!/bin/sh
# usage: hosted.sh PROGRAM [ARGUMENT...]
# Runs a rank as if on a host of its own, so that NCCL lets ranks share a GPU: for tests, over sockets on this machine.
export NCCL_HOSTID="weft-rank-$WEFT_RANK" NCCL_NET=Socket NCCL_SOCKET_IFNAME=lo NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1
here=$(dirname "$0")
program=$1
shift
exec "$here/$program" "$@"

#!/usr/bin/env python3
"""Starts ranks of an MPI that speaks PMI-1 (MPICH, and all that come of it), and lets them outlive each other, which its own launcher does not.

usage: outlive.py RANKS PROGRAM [ARGUMENT...]    on this host; exits with the number of ranks that did not end well

A rank asks by lines on the socket PMI_FD names: puts and gets of short texts, and barriers of all, by which MPI_Init finds the others.
"""
import os
import selectors
import socket
import subprocess
import sys


def answer(store, state, line):
    """What is said to one rank; None: nothing yet."""
    words = dict(word.split("=", 1) for word in line.split(" ") if "=" in word)
    command = words.get("cmd")
    if command == "init":
        return "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0"
    if command == "get_maxes":
        return "cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=1024"
    if command == "get_appnum":
        return "cmd=appnum appnum=0"
    if command == "get_universe_size":
        return f"cmd=universe_size size={state['ranks']}"
    if command == "get_my_kvsname":
        return "cmd=my_kvsname kvsname=kvs"
    if command == "put":
        store[words["key"]] = line.split("value=", 1)[1]
        return "cmd=put_result rc=0 msg=success"
    if command == "get":
        value = store.get(words["key"])
        return f"cmd=get_result rc=0 msg=success value={value}" if value is not None else "cmd=get_result rc=-1 msg=key_not_found value=unknown"
    if command == "barrier_in":
        return None
    if command == "finalize":
        return "cmd=finalize_ack"
    return f"cmd={command} rc=-1"


def main():
    ranks, program = int(sys.argv[1]), sys.argv[2:]
    store, state = {"PMI_process_mapping": f"(vector,(0,1,{ranks}))"}, {"ranks": ranks}
    selector, children, waiting = selectors.DefaultSelector(), [], []
    for rank in range(ranks):
        ours, theirs = socket.socketpair()
        environment = dict(os.environ, PMI_FD=str(theirs.fileno()), PMI_RANK=str(rank), PMI_SIZE=str(ranks), MPI_LOCALRANKID=str(rank), MPI_LOCALNRANKS=str(ranks))
        children.append(subprocess.Popen(program, env=environment, pass_fds=[theirs.fileno()]))
        theirs.close()
        selector.register(ours, selectors.EVENT_READ, {"text": ""})
    while selector.get_map():
        for key, _ in selector.select():
            try:
                got = key.fileobj.recv(4096).decode()
            except ConnectionResetError:
                got = ""
            if not got:
                selector.unregister(key.fileobj)
                key.fileobj.close()
                continue
            key.data["text"] += got
            while "\n" in key.data["text"]:
                line, key.data["text"] = key.data["text"].split("\n", 1)
                said = answer(store, state, line)
                if said is not None:
                    key.fileobj.sendall((said + "\n").encode())
                    continue
                waiting.append(key.fileobj)
                if len(waiting) == ranks:
                    for other in waiting:
                        other.sendall(b"cmd=barrier_out\n")
                    waiting.clear()
    sys.exit(sum(child.wait() != 0 for child in children))


main()

"""Parameter servers: Weft and ps-lite in turns, a worker and a server on a core each, in windows of equally many calls."""
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from collectives import command_output, objects

ROUNDS = 3
EFFORT = ["--windows", 10, "--seconds", 0.02]  # a round; in all 30 windows a case
PATIENCE = 170
# What Weft's cases are held against.
PEERS = {"sparse push": ["sparse push, hashed", "sparse push, numbered"], "sparse pull": ["sparse pull, hashed", "sparse pull, numbered"]}


def free_port():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return holder.getsockname()[1]


def measure_pslite(options, wire, pinned):
    """Now and then its server is asked before it is ready, and ends; then it is tried again."""
    for _ in range(3):
        records = try_pslite(options, wire, pinned)
        if records:
            return records
    sys.exit("error: ps-lite failed three times")


def try_pslite(options, wire, pinned):
    """Records by case. Local sockets beside shared memory; threads of a process on one core, or where the system puts them: it has several."""
    program = os.path.join(options.peers, "pslite_server")
    common = {**os.environ, "DMLC_NUM_SERVER": "1", "DMLC_NUM_WORKER": "1", "DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_NODE_HOST": "127.0.0.1",
              "DMLC_PS_ROOT_PORT": str(free_port()), "DMLC_LOCAL": "1" if wire == "shm" else "0"}
    cores = sorted(os.sched_getaffinity(0))

    def start(role, core, **how):
        place = ["taskset", "-c", str(cores[core])] if pinned and len(cores) > 1 else []
        return subprocess.Popen([*place, program, *map(str, EFFORT)], env={**common, "DMLC_ROLE": role}, **how)

    others = [start("scheduler", 0), start("server", 1)]
    worker = start("worker", 0, stdout=subprocess.PIPE, text=True)
    try:
        while all(process.poll() is None for process in [worker, *others]):
            time.sleep(0.05)
        if others[1].poll():
            return None
        text, _ = worker.communicate(timeout=PATIENCE)
        if worker.returncode:
            sys.exit(f"error: ps-lite's worker failed with {worker.returncode}")
        for other in others:
            other.wait(timeout=20)
    finally:
        for process in [worker, *others]:
            if process.poll() is None:
                process.kill()
    return {record["case"]: record for record in objects(text)}


def measure_weft(options, wire, more):
    with tempfile.TemporaryDirectory() as work:
        path = os.path.join(work, "weft.jsonl")
        command_output([os.path.join(options.build, "bin", "weft-bench"), "server", "--wire", wire, *EFFORT, "--json", path, *more])
        with open(path, encoding="utf-8") as file:
            return {(record["case"], record["metric"]): record for record in objects(file.read())}


def record_of(case, metric, runs, peer, peer_values):
    """One line: medians over the rounds. Bandwidth, or for a round trip time."""
    median = statistics.median(run["median"] for run in runs)
    limits = [run["limit"] for run in runs if isinstance(run["limit"], float | int)]
    bounds = [run["bound"] for run in runs if run.get("bound")]
    record = {"bench": "server", "case": case, "metric": metric, "unit": runs[0]["unit"], "median": median, "low": min(run["low"] for run in runs),
              "high": max(run["high"] for run in runs), "runs": sum(run["runs"] for run in runs),
              "limit": statistics.median(limits) if limits else "unmeasured", "bound": statistics.median(bounds) if bounds else "unmeasured"}
    if limits:
        record["of_limit"] = round(record["limit"] / median if metric == "time" else median / record["limit"], 3)
    if peer_values:
        theirs = statistics.median(peer_values)
        record |= {"peer": peer, "peer_median": theirs, "ratio": round(theirs / median if metric == "time" else median / theirs, 3)}
    return record


def servers(options, wire):
    ours, theirs = {}, {}
    for round_number in range(ROUNDS):
        for more in [[], ["--foreign", "--rows", 0, "--keys", 0]] if wire == "shm" else [[]]:
            for key, record in measure_weft(options, wire, more).items():
                ours.setdefault(key, []).append(record)
        for case, record in measure_pslite(options, wire, round_number % 2 == 0).items():
            theirs.setdefault(case, []).append(record)
        print(f"  server, {wire}: round {round_number + 1} of {ROUNDS}", flush=True)
    for (case, metric), runs in ours.items():
        small = "round trip" in case
        if metric == "traffic":
            without = runs[0]["without_key_set"]
            yield {**{k: v for k, v in runs[0].items() if k != "without_key_set"}, "peer": "a list of keys with each request", "peer_median": without,
                   "ratio": round(without / runs[0]["median"], 3)}
        elif metric == ("time" if small else "busbw"):
            size, name = case.split(", ", 1)
            name = name.removesuffix(", foreign")
            for peer_case in PEERS.get(name, [name]):
                records = theirs.get(f"{size}, {peer_case}", [])
                peer = "ps-lite" + (", " + peer_case.split(", ")[1] if ", " in peer_case else "")
                yield record_of(case, metric, runs, peer, [record["median" if small else "busbw"] for record in records])

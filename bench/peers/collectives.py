"""Comparisons of collectives and messages: Weft, Open MPI, MPICH and Gloo in turns, size by size."""
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
EFFORT = ["--windows", 5, "--seconds", 0.05]
PATIENCE = 150  # seconds for all sizes of one kind
LARGE = 1 << 20  # from here on bandwidth is what counts, below it time

# The ways in which each MPI is fast here; the best one counts, size by size.
MPI_WAYS = {
    ("open mpi", "shm"): [["--mca", "btl", "vader,self"],
                          ["--mca", "btl", "vader,self", "--mca", "btl_vader_single_copy_mechanism", "none"]],
    ("open mpi", "tcp"): [["--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo"]],
    ("mpich", "shm"): [{}],
    # As if each rank were a host of its own.
    ("mpich", "tcp"): [{"MPIR_CVAR_NOLOCAL": 1, "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo"}],
}
KINDS = ["reduce-scatter", "allgather", "broadcast", "alltoall", "reduce", "gather", "scatter", "sendrecv", "latency"]
GLOO_KINDS = ["allreduce", "allgather", "broadcast"]


def objects(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def command_output(command, **variables):
    """What a command prints; of one that does not end (MPICH over TCP, with more ranks than cores) what it got to print."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=PATIENCE,
                              env={**os.environ, **{k: str(v) for k, v in variables.items()}})
    except subprocess.TimeoutExpired as expired:
        print(f"  {' '.join(map(str, command))}: not done after {PATIENCE} s", flush=True)
        return (expired.stdout or b"").decode()
    if done.returncode:
        sys.exit(f"error: {' '.join(map(str, command))} failed with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def keep_best(best, records):
    for record in records:
        key = (record["bytes"], record["metric"])
        better = min if record["metric"] == "time" else max
        best[key] = better(best.get(key, record["median"]), record["median"])


def measure_mpi(options, peer, kind, wire, ranks, sizes):
    # weft-bench gives each rank a core of its own where there are enough; the same here.
    enough = len(os.sched_getaffinity(0)) >= ranks
    best, last = {}, ["-n", ranks, os.path.join(options.peers, f"mpi_collective_{peer.replace(' ', '')}"), kind,
                      "--min", sizes[0], "--max", sizes[1], *EFFORT]
    for way in MPI_WAYS[peer, wire]:
        if peer == "mpich":
            places = ["-bind-to", "core"] if enough else []
            text = command_output(["mpirun.mpich", *places, *last], **way)
        else:
            places = ["--bind-to", "core", "--map-by", "core"] if enough else ["--oversubscribe"]
            text = command_output(["mpirun.openmpi", "--allow-run-as-root", *places, "--mca", "pml", "ob1", *way, *last])
        keep_best(best, objects(text))
    return best


def measure_gloo(_options, _peer, kind, _wire, ranks, sizes):
    best = {}
    keep_best(best, objects(command_output([sys.executable, os.path.join(HERE, "gloo_collective.py"), kind, "--ranks", ranks,
                                            "--min", sizes[0], "--max", sizes[1], *EFFORT])))
    return best


def measure_weft(options, kind, wire, ranks, sizes):
    """Records by size, metric and case: in the exported region, and over shared memory with foreign buffers too."""
    records = []
    points = [] if kind in ("sendrecv", "latency") else ["--ranks", ranks]
    with tempfile.TemporaryDirectory() as work:
        path = os.path.join(work, "weft.jsonl")
        for foreign in [[], ["--foreign"]] if wire == "shm" else [[]]:
            command_output([os.path.join(options.build, "bin", "weft-bench"), kind, "--wire", wire, *points, *EFFORT,
                            "--sizes", f"{sizes[0]}:{sizes[1]}", "--json", path, *foreign])
            with open(path, encoding="utf-8") as file:
                records += objects(file.read())
    sizes = [int(re.match(r"\d+", record["case"]).group()) for record in records]
    return {(size, record["metric"], record["case"]): record for size, record in zip(sizes, records)}


def peers_of(options, kind, wire):
    peers = {"open mpi": measure_mpi}
    if os.path.exists(os.path.join(options.peers, "mpi_collective_mpich")):
        peers["mpich"] = measure_mpi
    if wire == "tcp" and kind in GLOO_KINDS:
        peers["gloo"] = measure_gloo
    return peers


def compare(options, kind, wire, ranks, sizes, rounds):
    """Bandwidth from 1 MiB, time below; each of Weft's cases against each peer."""
    peers = peers_of(options, kind, wire)
    theirs, ours, limits, last = {}, {}, {}, {}
    for round_number in range(rounds):
        for peer, measure in list(peers.items()):
            best = measure(options, peer, kind, wire, ranks, sizes)
            for key, value in best.items():
                theirs.setdefault((peer, *key), []).append(value)
            if not best:
                del peers[peer]  # no other turn for one that got nowhere
        for key, record in measure_weft(options, kind, wire, ranks, sizes).items():
            ours.setdefault(key, []).append(record["median"])
            limits.setdefault(key, []).append(record.get("limit"))
            last[key] = record
        print(f"  {kind}, {wire}, {ranks} ranks: round {round_number + 1} of {rounds}", flush=True)
    for (size, metric, case), values in sorted(ours.items()):
        if metric != ("busbw" if size >= LARGE and kind != "latency" else "time"):
            continue
        key = (size, metric, case)
        limit = [value for value in limits[key] if value]
        for peer in peers:
            if (peer, size, metric) not in theirs:
                continue
            peer_median, median = statistics.median(theirs[peer, size, metric]), statistics.median(values)
            yield {"bench": f"{kind}-{wire}", "case": case, "metric": metric, "unit": last[key]["unit"],
                   "median": round(median, 4), "low": round(min(values), 4), "high": round(max(values), 4),
                   "runs": len(values), "limit": round(statistics.median(limit), 6) if limit else None,
                   "algorithm": last[key].get("algorithm"), "peer": peer, "peer_median": peer_median,
                   "ratio": round(peer_median / median if metric == "time" else median / peer_median, 3)}


def allreduce(options, wire, ranks, rounds):
    yield from compare(options, "allreduce", wire, ranks, (8, 64 << 20), rounds)


def others(options, wire, rounds):
    """The other kinds, from small to large, on 2 and 4 ranks."""
    for kind in KINDS:
        for ranks in (2,) if kind in ("sendrecv", "latency") else (2, 4):
            yield from compare(options, kind, wire, ranks, (64, 64 << 10 if kind == "latency" else 16 << 20), rounds)

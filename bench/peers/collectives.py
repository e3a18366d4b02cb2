"""Comparisons of collectives and messages: Weft, Open MPI, MPICH and Gloo in turns, size by size."""
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
EFFORT = {"windows": 5, "seconds": 0.03}
PATIENCE = {"seconds": 60}  # for all sizes of one kind; who needs more in a turn has what it printed until then, and no other turn
TRIES = 2  # of a turn in which the cores changed places; then it is left out
NEAR_US = 0.1  # a cache line from core to core and back, halved: below it, they share a cache
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


def effort():
    return [part for name, value in EFFORT.items() for part in (f"--{name}", value)]


def command_output(command, **variables):
    """What a command prints, and whether it ended; of one that does not (MPICH with more ranks than cores) what it got to print."""
    limited = ["timeout", "--kill-after=5", PATIENCE["seconds"], *command]
    done = subprocess.run([str(part) for part in limited], capture_output=True, text=True, check=False,
                          env={**os.environ, **{k: str(v) for k, v in variables.items()}})
    if done.returncode in (124, 137):
        print(f"  {' '.join(map(str, command))}: not done after {PATIENCE['seconds']} s", flush=True)
        return done.stdout, False
    if done.returncode:
        sys.exit(f"error: {' '.join(map(str, command))} failed with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout, True


def keep_best(best, records):
    for record in records:
        key = (record["bytes"], record["metric"])
        better = min if record["metric"] == "time" else max
        best[key] = better(best.get(key, record["median"]), record["median"])


def measure_mpi(options, peer, kind, wire, ranks, sizes):
    # weft-bench gives each rank a core of its own where there are enough; the same here.
    enough = len(os.sched_getaffinity(0)) >= ranks
    best, all_ended, last = {}, True, ["-n", ranks, os.path.join(options.peers, f"mpi_collective_{peer.replace(' ', '')}"), kind,
                      "--min", sizes[0], "--max", sizes[1], *effort()]
    for way in MPI_WAYS[peer, wire]:
        if peer == "mpich":
            places = ["-bind-to", "core"] if enough else []
            text, ended = command_output(["mpirun.mpich", *places, *last], **way)
        else:
            places = ["--bind-to", "core", "--map-by", "core"] if enough else ["--oversubscribe"]
            text, ended = command_output(["mpirun.openmpi", "--allow-run-as-root", *places, "--mca", "pml", "ob1", *way, *last])
        all_ended &= ended
        keep_best(best, objects(text))
    return best, all_ended


def measure_gloo(_options, _peer, kind, _wire, ranks, sizes):
    best = {}
    text, ended = command_output([sys.executable, os.path.join(HERE, "gloo_collective.py"), kind, "--ranks", ranks,
                                  "--min", sizes[0], "--max", sizes[1], *effort()])
    keep_best(best, objects(text))
    return best, ended


def measure_weft(options, kind, wire, ranks, sizes):
    """Records by size, metric and case: in the exported region, and over shared memory with foreign buffers too."""
    records = []
    points = [] if kind in ("sendrecv", "latency") else ["--ranks", ranks]
    points += ["--in-place"] if kind == "broadcast" else []  # as MPI_Bcast is
    with tempfile.TemporaryDirectory() as work:
        path = os.path.join(work, "weft.jsonl")
        for foreign in [[], ["--foreign"]] if wire == "shm" else [[]]:
            command_output([os.path.join(options.build, "bin", "weft-bench"), kind, "--wire", wire, *points, *effort(),
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


def distance(options):
    """Whether the first two cores share a cache now. On a shared machine a guest's cores are moved about within seconds, and what
    goes from core to core is then three times as fast, or as slow."""
    with tempfile.TemporaryDirectory() as work:
        path = os.path.join(work, "line.jsonl")
        command_output([os.path.join(options.build, "bin", "weft-bench"), "allreduce", "--wire", "shm", "--sizes", "8:8", "--windows", 1,
                        "--seconds", 0.005, "--json", path])
        with open(path, encoding="utf-8") as file:
            return "near" if objects(file.read())[0]["limit"] < NEAR_US else "far"


def settled(options, measure, *what):
    """A turn during which the cores stayed where they are, and where that was; (None, None) where they never did."""
    for _ in range(TRIES):
        before = distance(options)
        result = measure(options, *what)
        if distance(options) == before:
            return before, result
    return None, None


class Comparison:
    """Turns of Weft and its peers at one kind; medians are over those turns in which the cores were equally near."""

    def __init__(self, options, kind, wire, ranks, sizes):
        self.options, self.what = options, (kind, wire, ranks, sizes)
        self.peers, self.given_up = peers_of(options, kind, wire), set()
        self.theirs, self.ours, self.limits, self.last = {}, {}, {}, {}

    def turn(self):
        for peer, measure in self.peers.items():
            if peer in self.given_up:
                continue
            place, result = settled(self.options, measure, peer, *self.what)
            if not place:
                continue
            best, ended = result
            for key, value in best.items():
                self.theirs.setdefault((place, peer, *key), []).append(value)
            if not ended:
                self.given_up.add(peer)
        place, records = settled(self.options, measure_weft, *self.what)
        for key, record in (records or {}).items():
            self.ours.setdefault((place, *key), []).append(record["median"])
            self.limits.setdefault((place, *key), []).append(record.get("limit"))
            self.last[key] = record

    def records(self):
        """Bandwidth from 1 MiB, time below; each of Weft's cases against each peer."""
        kind, wire = self.what[:2]
        for (place, size, metric, case), values in sorted(self.ours.items()):
            if metric != ("busbw" if size >= LARGE and kind != "latency" else "time"):
                continue
            record, limit = self.last[size, metric, case], [value for value in self.limits[place, size, metric, case] if value]
            for peer in self.peers:
                theirs = self.theirs.get((place, peer, size, metric))
                if not theirs and peer not in self.given_up:
                    continue
                median, peer_median = statistics.median(values), statistics.median(theirs) if theirs else None
                ratio = {"ratio": None, "peer_did": f"not finish within {PATIENCE['seconds']:g} s"} if not theirs else {
                    "ratio": round(peer_median / median if metric == "time" else median / peer_median, 3)}
                yield {"bench": f"{kind}-{wire}", "case": case, "cores": place, "metric": metric, "unit": record["unit"],
                       "median": round(median, 4), "low": round(min(values), 4), "high": round(max(values), 4),
                       "runs": len(values), "limit": round(statistics.median(limit), 6) if limit else None,
                       "algorithm": record.get("algorithm"), "peer": peer, "peer_median": peer_median, "peer_runs": len(theirs or []), **ratio}


def compare(options, kind, wire, ranks, sizes, rounds):
    comparison = Comparison(options, kind, wire, ranks, sizes)
    for round_number in range(rounds):
        comparison.turn()
        print(f"  {kind}, {wire}, {ranks} ranks: round {round_number + 1} of {rounds}", flush=True)
    yield from comparison.records()


def limits_of(options):
    """What of a comparison was asked for; it takes long, and a shared machine may be had for minutes only."""
    EFFORT["seconds"] = options.seconds or EFFORT["seconds"]
    PATIENCE["seconds"] = options.patience or PATIENCE["seconds"]


def allreduce(options, wire, ranks, rounds):
    limits_of(options)
    yield from compare(options, "allreduce", wire, ranks, options.sizes or (8, 64 << 20), options.rounds or rounds)


def sizes_of(kind):
    return (8, 64 << 10) if kind == "latency" else (1 << 10, 4 << 20)


def others(options, wire, rounds):
    """The other kinds, from small to large, on 2 and 4 ranks."""
    limits_of(options)
    for kind in options.kinds or KINDS:
        for ranks in (2,) if kind in ("sendrecv", "latency") else options.ranks or (2, 4):
            yield from compare(options, kind, wire, ranks, options.sizes or sizes_of(kind), options.rounds or rounds)

"""Sharded data parallelism: strategy.zero over TCP beside PyTorch's FSDP over Gloo, both on loopback, one thread a rank, in turns."""
import os
import statistics
import subprocess
import sys
import tempfile

from collectives import objects

HERE = os.path.dirname(os.path.abspath(__file__))
SHAPES = ((1024, 4, 128), (2048, 4, 512))  # width, layers, rows of the global batch
WINDOWS, STEPS = 3, 4


def output(command):
    process = subprocess.run([str(part) for part in command], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if process.returncode:
        sys.exit(f"error: {' '.join(map(str, command))} failed with {process.returncode}:\n{process.stderr[-3000:]}")
    return process.stdout


def weft(options, strategy, shape):
    """Median seconds of a step in one turn."""
    width, layers, rows = shape
    with tempfile.TemporaryDirectory() as work:
        log = os.path.join(work, "mesh.jsonl")
        output([os.path.join(options.build, "bin", "weft-bench"), "mesh", "--strategy", strategy, "--wire", "tcp", "--ranks", 2, "--windows", WINDOWS,
                "--steps", STEPS, "--width", width, "--layers", layers, "--rows", rows, "--json", log])
        with open(log, encoding="utf-8") as file:
            return next(record["median"] for record in objects(file.read()) if record.get("metric") == "time")


def torch(shape):
    width, layers, rows = shape
    text = output([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, os.path.join(HERE, "torch_fsdp.py"),
                   "--width", width, "--layers", layers, "--rows", rows, "--windows", WINDOWS, "--steps", STEPS])
    record = objects(text)[-1]
    return statistics.median(record["seconds"]), record["version"]


def sharded(options, rounds):
    for shape in SHAPES:
        own, peers, version = [], [], ""
        for turn in range(options.rounds or rounds):
            own.append(weft(options, "data=2,zero=3", shape))
            peer, version = torch(shape)
            peers.append(peer)
            print(f"  {shape[0]} wide, {shape[2]} rows, turn {turn + 1}: Weft {own[-1]:.4f} s, PyTorch {peer:.4f} s", flush=True)
        yield {"bench": "sharded", "case": f"mlp {shape[0]} wide, {shape[1]} layers, {shape[2]} rows, 2 ranks of 1 thread, tcp, zero 3", "metric": "time",
               "unit": "s", "median": round(statistics.median(own), 5), "low": round(min(own), 5), "high": round(max(own), 5), "runs": len(own),
               "limit": "unmeasured", "peer": f"pytorch {version} fully_shard gloo", "peer_median": round(statistics.median(peers), 5),
               "ratio": round(statistics.median(peers) / statistics.median(own), 3)}

"""Splits of a model: Weft's strategies over TCP beside PyTorch's own ways over Gloo, both on loopback, two ranks of one thread, in turns."""
import os
import statistics
import subprocess
import sys
import tempfile

from collectives import objects

HERE = os.path.dirname(os.path.abspath(__file__))
WAYS = {  # PyTorch's, and the strategy
    "data": "data=2", "zero": "data=2,zero=3", "tensor": "tensor=2", "gpipe": "pipeline=2,accumulate=8,schedule=gpipe",
    "1f1b": "pipeline=2,accumulate=8,schedule=1f1b", "interleaved": "pipeline=2,accumulate=8,schedule=interleaved",
    "zero-bubble": "pipeline=2,accumulate=8,schedule=zero-bubble"}
SHAPE = {"width": 2048, "layers": 4, "rows": 512}
WINDOWS, STEPS = 3, 4


def output(command):
    process = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if process.returncode:
        sys.exit(f"error: {' '.join(map(str, command))} failed with {process.returncode}:\n{process.stderr[-3000:]}")
    return process.stdout


def arguments():
    return [part for name, value in {**SHAPE, "windows": WINDOWS, "steps": STEPS}.items() for part in (f"--{name}", value)]


def weft(options, strategy):
    """Median seconds of a step in one turn."""
    with tempfile.TemporaryDirectory() as work:
        log = os.path.join(work, "mesh.jsonl")
        output([os.path.join(options.build, "bin", "weft-bench"), "mesh", "--strategy", strategy, "--wire", "tcp", *arguments(), "--json", log])
        with open(log, encoding="utf-8") as file:
            return next(record["median"] for record in objects(file.read()) if record.get("metric") == "time")


def splits(options, rounds):
    shape = "mlp {width} wide, {layers} layers, {rows} rows".format(**SHAPE)
    for way, strategy in WAYS.items():
        if options.kinds and way not in options.kinds:
            continue
        own, peers, version = [], [], ""
        for turn in range(options.rounds or rounds):
            own.append(weft(options, strategy))
            peer = objects(output([sys.executable, os.path.join(HERE, "torch_splits.py"), way, *arguments()]))[0]
            peers.append(peer["median"])
            version = peer["version"]
            print(f"  {way}, turn {turn + 1}: Weft {own[-1]:.4f} s, PyTorch {peers[-1]:.4f} s", flush=True)
        yield {"bench": "splits", "case": f"{strategy}, {shape}, 2 ranks of 1 thread, tcp", "metric": "time", "unit": "s",
               "median": round(statistics.median(own), 5), "low": round(min(own), 5), "high": round(max(own), 5), "runs": len(own),
               "limit": "unmeasured", "peer": f"pytorch {version} {way}, gloo", "peer_median": round(statistics.median(peers), 5),
               "ratio": round(statistics.median(peers) / statistics.median(own), 3)}

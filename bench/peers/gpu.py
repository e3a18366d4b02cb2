#!/usr/bin/env python3
"""Weft beside PyTorch and JAX on one GPU, a line of figures at a time: gpu.py LINE... writes RESULTS/gpu-LINE.jsonl; without a line it lists them.

Each line is a command of its own of at most eight minutes: runs of Weft and of each peer in turns, of which medians count, in one file in the form
of bench/results. What a machine lacks is "unmeasured". It needs a folder with Weft's programs (a build's bin, or what tests/cuda/pack.sh
made) and Python; peers where Python has them. --toy tries all of it at toy size on the CPU, or on the device that WEFT_DEVICE names: no figure
of that counts, and the files say so.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

GPT = {"gpt2": (12, 12, 768), "xl": (48, 25, 1600), "toy": (1, 2, 32)}


class Line:
    """A network at a size; `least` is the ratio that is wanted to the peer in the mode."""

    def __init__(self, what, net, batch, least, modes, precision="bf16", model=None, jax=True, steps=50):
        self.what, self.net, self.batch, self.least, self.modes = what, net, batch, least, modes
        self.precision, self.model, self.jax, self.steps = precision, model, jax, steps


LINES = {
    "gpt2": Line("GPT-2 124M, context 1024, batch 64, bf16", "gpt", 64, 1.1, ["compile"], model="gpt2"),
    "gpt2-xl": Line("GPT-2 1.5B, context 1024, batch 16, bf16", "gpt", 16, 1.1, ["compile"], model="xl", steps=20),
    "resnet50": Line("ResNet-50, 224 pixels, batch 256, bf16", "resnet50", 256, 1.0, ["compile"]),
    "gpt2-1": Line("GPT-2 124M, context 1024, batch 1, bf16", "gpt", 1, 2.0, ["eager", "graphs"], model="gpt2"),
    "mlp": Line("MLP 784-512-256-10, batch 64, f32", "mlp", 64, 2.0, ["eager", "graphs"], precision="f32"),
}
BENCHES = {"kernels": ["cuda-kernels"], "rows": ["cuda-rows"], "products": ["cuda-matmul"], "epilogues": ["cuda-epilogue"],
           "attention": ["cuda-attention"], "convolutions": ["cuda-conv"], "residual": ["cuda-residual"], "adamw": ["cuda-adamw"], "norm": ["cuda-norm"]}
TURNS, WARMUP, SECONDS = 2, 20, 460


def run(command, seconds, **environment):
    """What it printed; None where it failed, with its last words."""
    try:
        done = subprocess.run([str(part) for part in command], env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=max(1, seconds), check=False, text=True)
    except (subprocess.TimeoutExpired, OSError) as error:
        print(f"  {command[0]}: {str(error)[:200]}", flush=True)
        return None
    if done.returncode:
        print(f"  {os.path.basename(str(command[0]))} ended with {done.returncode}: {(done.stderr or done.stdout)[-300:]}", flush=True)
    return done.stdout if done.returncode == 0 else None


def make_ids(path, vocabulary, count):
    state, ids = 1, bytearray()
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        ids += ((state >> 33) % vocabulary).to_bytes(2, "little")
    with open(path, "wb") as file:
        file.write(ids)


def make_images(folder, rows):
    for name, head in (("images", [rows, 28, 28]), ("labels", [rows])):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(bytes([0, 0, 8, len(head)]) + b"".join(n.to_bytes(4, "big") for n in head))
            file.write(os.urandom(rows * 784) if name == "images" else bytes(i % 10 for i in range(rows)))


def weft_command(options, line, log, work):
    steps = WARMUP + line.steps if not options.toy else 4
    common = ["--max-steps", steps, "--log", log, "--log-every", 1, "--quiet", "--describe"]
    binary = lambda name: os.path.join(options.bin, name)
    if line.net == "gpt":
        layers, heads, width = GPT["toy" if options.toy else line.model]
        context, vocabulary, batch = (16, 64, 2) if options.toy else (1024, 50304, line.batch)
        ids = os.path.join(work, "ids")
        if not os.path.exists(ids):
            make_ids(ids, min(vocabulary, 50257), batch * context * 12 + 1)
        return [binary("train_gpt"), "--model", "tiny", "--layers", layers, "--heads", heads, "--width", width, "--data", ids, "--vocabulary", vocabulary,
                "--context", context, "--batch", batch, "--warmup", 2, "--precision", line.precision, *common], batch * context
    if line.net == "mlp":
        batch = 8 if options.toy else line.batch
        if not os.path.exists(os.path.join(work, "images")):
            make_images(work, 256 if options.toy else 60000)
        files = [part for name in ("images", "labels", "test-images", "test-labels") for part in (f"--{name}", os.path.join(work, name.replace("test-", "")))]
        return [binary("train_images"), "--model", "mlp", "--batch", batch, "--epochs", 100, "--precision", line.precision, *files, *common], batch
    side, batch = (8, 4) if options.toy else (224, line.batch)
    return [binary("train_images"), "--model", "resnet50", "--made", side, "--made-rows", 4 * batch, "--classes", 1000, "--batch", batch, "--epochs", 100,
            "--precision", line.precision, *common], batch


def weft_once(options, line, work, seconds):
    """Units a second over the steps behind the warm-up, and MiB that the plan holds."""
    log = os.path.join(work, "weft.jsonl")
    command, per_step = weft_command(options, line, log, work)
    said = run(command, seconds, WEFT_DEVICE=os.environ.get("WEFT_DEVICE", "cuda"))
    if said is None:
        return None
    held = re.search(r"^  total +(\d+)$", said, re.MULTILINE)
    with open(log, encoding="utf-8") as file:
        events = [json.loads(text) for text in file if text.startswith("{")]
    times = [event["step_seconds"] for event in events if event["event"] == "step" and event["step"] > (1 if options.toy else WARMUP)]
    return (per_step / statistics.median(times), int(held.group(1)) / 2**20 if held else None) if times else None


def peer_once(options, script, line, mode, seconds):
    command = [options.python, os.path.join(os.path.dirname(os.path.abspath(__file__)), script), "--net", line.net, "--batch", line.batch,
               "--precision", line.precision, "--steps", line.steps]
    if line.net == "gpt":
        layers, heads, width = GPT[line.model]
        command += ["--layers", layers, "--heads", heads, "--width", width]
    if script == "torch_gpu.py":
        command += ["--mode", mode]
    if options.toy:
        command += ["--cpu", "--batch", 2, "--layers", 1, "--heads", 2, "--width", 32, "--context", 16, "--vocabulary", 64, "--warmup", 1, "--steps", 2,
                    "--windows", 2] + (["--side", 8] if line.net == "resnet50" else [])
        if script == "torch_gpu.py":
            command += ["--mode", "eager"]
    said = run(command, seconds)
    found = [json.loads(text) for text in (said or "").splitlines() if text.startswith("{")]
    of = {row["metric"]: row for row in found}
    if "throughput" not in of or of["throughput"]["median"] == "unmeasured":
        return None
    memory = of["memory"]["median"]
    return of["throughput"]["median"], None if memory == "unmeasured" else memory, of["throughput"].get("version", "")


def measure(options, name):
    line, begin = LINES[name], time.monotonic()
    left = lambda: SECONDS - (time.monotonic() - begin)
    peers = [("torch_gpu.py", mode, f"pytorch {mode}") for mode in line.modes] + ([("jax_gpu.py", "jit", "jax jit")] if line.jax else [])
    weft, others = [], {label: [] for _, _, label in peers}
    with tempfile.TemporaryDirectory() as work:
        for _ in range(1 if options.toy else TURNS):
            weft.append(weft_once(options, line, work, left()))
            for script, mode, label in peers:
                if left() > 20:
                    others[label].append(peer_once(options, script, line, mode, left()))
    weft, rows = [value for value in weft if value], []
    for label, values in others.items():
        values = [value for value in values if value]
        peer = f"{label} {values[0][2] if values else ''}".strip()
        unit = "tokens/s" if line.net == "gpt" else "samples/s"
        rows.append(row_of(options, line, "throughput", unit, [value[0] for value in weft], peer, [value[0] for value in values], line.least))
        rows.append(row_of(options, line, "memory", "MiB", [value[1] for value in weft if value[1]], peer, [value[1] for value in values if value[1]], 1.11))
    return rows


def row_of(options, line, metric, unit, weft, peer, others, wanted):
    """One line of the file; a ratio above 1 means that Weft is the better."""
    row = {"bench": "gpu", "case": line.what, "metric": metric, "unit": unit, "runs": len(weft), "peer": peer, "ratio": "unmeasured", "wanted": wanted}
    for name, pick in (("median", statistics.median), ("low", min), ("high", max)):
        row[name] = round(pick(weft), 1) if weft else "unmeasured"
    row["peer_median"] = round(statistics.median(others), 1) if others else "unmeasured"
    if weft and others and not options.toy:
        row["ratio"] = round(row["peer_median"] / row["median"] if metric == "memory" else row["median"] / row["peer_median"], 3)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = os.path.dirname(os.path.abspath(__file__))
    parser.add_argument("lines", nargs="*", metavar="LINE")
    parser.add_argument("--bin", default=os.path.join(here, "..", "..", "build", "bin"), help="Weft's programs")
    parser.add_argument("--results", default="results", help="folder for the figures")
    parser.add_argument("--python", default=sys.executable, help="that has the peers")
    parser.add_argument("--machine", default="", help="what stands in the files")
    parser.add_argument("--toy", action="store_true", help="at toy size: no figure counts")
    options = parser.parse_args()
    if not options.lines:
        for name, line in LINES.items():
            print(f"{name:14} {line.what}; wanted: {line.least} of pytorch {line.modes[0]}")
        for name, command in BENCHES.items():
            print(f"{name:14} weft-bench {' '.join(command)}")
        return 0
    unknown = [name for name in options.lines if name not in LINES and name not in BENCHES]
    if unknown:
        sys.exit(f"error: there is no line {unknown[0]}; there are {', '.join([*LINES, *BENCHES])}")
    os.makedirs(options.results, exist_ok=True)
    failed = False
    for name in options.lines:
        path = os.path.join(options.results, f"gpu-{name}.jsonl")
        if name in BENCHES:
            failed |= run([os.path.join(options.bin, "weft-bench"), *BENCHES[name], "--json", path], SECONDS) is None
            continue
        rows = measure(options, name)
        with open(path, "w", encoding="utf-8") as file:
            for row in rows:
                row.update(machine="toy size, no figure counts" if options.toy else options.machine, date=time.strftime("%Y-%m-%d"))
                file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
        failed |= any(row["median"] == "unmeasured" for row in rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

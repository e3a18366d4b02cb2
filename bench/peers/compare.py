#!/usr/bin/env python3
"""Runs one comparison: Weft and its peers in turns, ratios of medians. Called by run.sh, which prepares the peers.

Every comparison is a function in COMPARISONS that yields records, one JSON object each: bench, case,
metric, unit, median, low, high, runs, limit, peer, peer_median, ratio; a ratio above 1 means that Weft is the better.
"""
import argparse
import concurrent.futures
import datetime
import gzip
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import collectives
import servers as parameter_servers
import splits
from collectives import objects

HERE = os.path.dirname(os.path.abspath(__file__))
ROUNDS = 5  # turns that each side gets; the ratio is that of the medians over all of them


def run(command, **variables):
    """Runs a command and gives its standard output and its peak of resident memory in MiB."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=err,
                                   env={**os.environ, **{k: str(v) for k, v in variables.items()}})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            sys.exit(f"error: {' '.join(map(str, command))} failed with {process.returncode}:\n{err.read()[-3000:]}")
        return out.read(), usage.ru_maxrss / 1024


def spread(values):
    return {"median": round(statistics.median(values), 4), "low": round(min(values), 4),
            "high": round(max(values), 4), "runs": len(values)}


# --- training ---

# The sample, its arguments, what a row counts for, the batch, its steps, how many of them are compared by loss.
TRAININGS = {
    "mlp": ("train_images", ["--model", "mlp", "--batch", 64, "--epochs", 3], 1, 64, 2812, 900),
    "cnn": ("train_images", ["--model", "cnn", "--batch", 64, "--epochs", 1], 1, 64, 937, 600),
    "gpt": ("train_text", ["--batch", 12, "--max-steps", 30, "--sample", 0], 256, 12, 30, 30),
}
LOSS_ROOM = 0.15  # by how much the mean losses of the second half may differ, relative: other random numbers, same fall


def train_weft(options, net, work):
    """One run of the sample: rate in samples (for gpt tokens) a second, memory, and loss by step."""
    program, arguments = TRAININGS[net][:2]
    log = os.path.join(work, "metrics.jsonl")
    command = [os.path.join(options.build, "bin", program), *arguments, "--quiet", "--log", log]
    if net == "gpt":
        command += ["--text", options.text]
    _, memory = run(command, WEFT_THREADS=options.threads)
    with open(log, encoding="utf-8") as file:
        events = objects(file.read())
    losses = {e["step"]: e["loss"] for e in events if e["event"] == "step"}
    rate = events[-1]["tokens_per_second" if net == "gpt" else "samples_per_second"]
    first = next((e for e in events if e["event"] == "step" and e["step"] == 1), None)
    if first:  # few steps, all of them logged: without the first, which touches memory anew, as the peer's figures are
        seconds, taken = events[-1]["train_seconds"], first["step_seconds"] + first["wait_seconds"]
        rate = (rate * seconds - TRAININGS[net][2] * TRAININGS[net][3]) / (seconds - taken)
    return rate, memory, losses


def train_torch(options, net, mode, losses=0):
    command = [sys.executable, os.path.join(HERE, "torch_train.py"), "--net", net, "--mode", mode,
               "--threads", options.threads, "--windows", 3, "--window-seconds", 6 if net == "gpt" else 1.5]
    if net == "gpt":
        command += ["--text", options.text]
    if losses:
        command += ["--losses", losses, "--steps", TRAININGS[net][4]]
    text, _ = run(command)
    return {record["metric"]: record for record in objects(text)}


def second_half(losses, steps):
    """The mean loss of the second half of the first `steps` steps, by those that were logged."""
    tail = [loss for step, loss in losses.items() if steps / 2 < step <= steps]
    return sum(tail) / len(tail)


def train(options, net):
    modes = ["eager", "compile"] + (["eager-nhwc", "compile-nhwc"] if net == "cnn" else [])
    first = {mode: train_torch(options, net, mode) for mode in modes}
    for mode in modes:
        print(f"  PyTorch {mode}: {first[mode]['throughput']['median']}", flush=True)
    best = max(modes, key=lambda mode: first[mode]["throughput"]["median"])
    batch, steps = TRAININGS[net][3], TRAININGS[net][5]
    rates, memories, peers, limits, peer_memories, falls = [], [], [], [], [], []
    with tempfile.TemporaryDirectory() as work:
        for round_number in range(ROUNDS):
            peer = train_torch(options, net, best, losses=steps if round_number == 0 else 0)
            rate, memory, losses = train_weft(options, net, work)
            rates.append(rate)
            memories.append(memory)
            peers.append(peer["throughput"]["median"])
            limits.append(peer["throughput"]["limit"])
            peer_memories.append(peer["memory"]["median"])
            if round_number == 0:
                theirs = dict(enumerate(peer["losses"]["losses"], 1))
                falls = [second_half(losses, steps), second_half(theirs, steps)]
            print(f"  round {round_number + 1}: Weft {rate:.0f}, PyTorch {peers[-1]:.0f} {peer['throughput']['unit']}",
                  flush=True)
    name = f"pytorch {peer['throughput']['version']} {best}"
    common = {"bench": "train", "case": f"{net} batch {batch} threads {options.threads}"}
    yield {**common, "metric": "throughput", "unit": peer["throughput"]["unit"], **spread(rates),
           "limit": round(statistics.median(limits), 1), "peer": name, "peer_median": statistics.median(peers),
           "ratio": round(statistics.median(rates) / statistics.median(peers), 3)}
    yield {**common, "metric": "memory", "unit": "MiB", **spread(memories), "peer": name,
           "peer_median": statistics.median(peer_memories), "peer_anonymous": peer["memory"]["anonymous"],
           "ratio": round(statistics.median(peer_memories) / statistics.median(memories), 3)}
    yield {**common, "metric": f"mean loss of steps {steps // 2 + 1} to {steps}", "unit": "nat",
           "median": round(falls[0], 4), "runs": 1, "peer": name, "peer_median": round(falls[1], 4),
           "ratio": round(falls[1] / falls[0], 3)}
    if abs(falls[0] / falls[1] - 1) > LOSS_ROOM:
        sys.exit(f"error: the losses do not fall alike: Weft {falls[0]:.4f}, PyTorch {falls[1]:.4f}")


# --- ranks beside independent copies ---

FASHION = "/usr/share/datasets/fashion-mnist"
RANK_STEPS = {"mlp": 2000, "cnn": 120}  # about 5 s
LOCAL_BATCH = 64
RANK_ROUNDS = 6  # more and shorter than elsewhere: cores of a shared machine change their speed within seconds


def unpack_images(work):
    """Fashion-MNIST without gzip, and 500 test images, so that little but the training takes time."""
    for kind, skip, row in (("images-idx3", 16, 28 * 28), ("labels-idx1", 8, 1)):
        for name, rows in (("train", 60000), ("t10k", 500)):
            with gzip.open(f"{FASHION}/{name}-{kind}-ubyte.gz") as file:
                head, body = file.read(skip), file.read(rows * row)
            with open(os.path.join(work, f"{name}-{kind}-ubyte"), "wb") as file:
                file.write(head[:4] + rows.to_bytes(4, "big") + head[8:] + body)


def images(options, net, batch, work, log):
    paths = [part for option, name in (("--images", "train-images-idx3"), ("--labels", "train-labels-idx1"),
                                       ("--test-images", "t10k-images-idx3"), ("--test-labels", "t10k-labels-idx1"))
             for part in (option, os.path.join(work, f"{name}-ubyte"))]
    return [os.path.join(options.build, "bin", "train_images"), "--model", net, "--batch", batch, "--epochs", 10,
            "--max-steps", RANK_STEPS[net], "--quiet", "--log", log, *paths]


DISTURBED = 0.03  # the share of the cores' time from which on a turn is taken again
TURN_TRIES = 20


def cpu_seconds():
    """What all processes of the machine have used of its cores, and what the children of this one have."""
    with open("/proc/stat", encoding="utf-8") as file:
        user, nice, system, _, _, irq, softirq = map(int, file.readline().split()[1:8])
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK"), own.ru_utime + own.ru_stime


def undisturbed(turn, *arguments):
    """Takes a turn, and again while other processes used the cores beside it, whatever it measured."""
    for _ in range(TURN_TRIES):
        begin, (all_begin, own_begin) = time.monotonic(), cpu_seconds()
        result = turn(*arguments)
        all_end, own_end = cpu_seconds()
        others = (all_end - all_begin) - (own_end - own_begin)
        share = others / (os.cpu_count() * (time.monotonic() - begin))
        if share <= DISTURBED:
            return result
        print(f"  again: other processes took {100 * share:.0f} % of the cores", flush=True)
    sys.exit(f"error: other processes took more than {100 * DISTURBED:.0f} % of the cores in each of {TURN_TRIES} turns")


def log_end(path):
    with open(path, encoding="utf-8") as file:
        return objects(file.read())[-1]


def ranks_together(options, net, work):
    """Two ranks under weftrun: samples a second of both, and the share of the time that rank 0 waited."""
    log = os.path.join(work, "ranks.jsonl")
    run([os.path.join(options.build, "bin", "weftrun"), "-n", 2, "--wire", "shm",
         *images(options, net, 2 * LOCAL_BATCH, work, log)], WEFT_THREADS=1)
    end = log_end(log)
    return end["samples_per_second"], end["wait_share"]


def ranks_apart(options, net, work):
    """Two runs of one rank at the same time: the samples a second of each."""
    logs = [os.path.join(work, f"copy{i}.jsonl") for i in range(2)]
    with concurrent.futures.ThreadPoolExecutor() as both:
        list(both.map(lambda log: run(images(options, net, LOCAL_BATCH, work, log), WEFT_THREADS=1), logs))
    return [log_end(log)["samples_per_second"] for log in logs]


def ranks(options, net):
    """Two ranks of one thread with a global batch of 128 against two copies of one rank with 64, which run at the same
    time and know nothing of each other: what is lost is what talking costs, and waiting for the slower core. The limit
    is what ranks that never wait for the wire would do: twice the slower copy. The sides take turns at being first.
    A turn that was disturbed is taken again."""
    together, apart, limits, waits = [], [], [], []
    with tempfile.TemporaryDirectory() as work:
        unpack_images(work)
        for round_number in range(RANK_ROUNDS):
            for ranks_turn in (True, False) if round_number % 2 == 0 else (False, True):
                if ranks_turn:
                    rate, wait = undisturbed(ranks_together, options, net, work)
                    together.append(rate)
                    waits.append(wait)
                else:
                    rates = undisturbed(ranks_apart, options, net, work)
                    apart.append(sum(rates))
                    limits.append(2 * min(rates))
            print(f"  round {round_number + 1}: ranks {together[-1]:.0f}, copies {apart[-1]:.0f} samples/s, twice the "
                  f"slower {limits[-1]:.0f}, waiting {100 * waits[-1]:.1f} %", flush=True)
    yield {"bench": "ranks", "case": f"{net} 2 ranks of 1 thread, local batch {LOCAL_BATCH}, shm", "metric": "throughput",
           "unit": "samples/s", **spread(together), "limit": round(statistics.median(limits), 4),
           "wait_share": round(statistics.median(waits), 4), "peer": "two independent copies",
           "peer_median": round(statistics.median(apart), 4),
           "ratio": round(statistics.median(together) / statistics.median(apart), 3)}


# --- matrix products ---


def gemm(options):
    """Weft's matrix products beside OpenBLAS and BLIS, both static; all on one thread."""
    rates, names = {}, ("weft", "openblas", "blis")
    with tempfile.TemporaryDirectory() as work:
        for round_number in range(ROUNDS):
            for name in names:
                if name == "weft":
                    log = os.path.join(work, "gemm.jsonl")
                    run([os.path.join(options.build, "bin", "weft-bench"), "gemm", "--json", log])
                    with open(log, encoding="utf-8") as file:
                        records = objects(file.read())
                    os.unlink(log)
                else:
                    records = objects(run([os.path.join(options.peers, f"gemm_{name}"), name])[0])
                for record in records:
                    rates.setdefault(record["case"], {}).setdefault(name, []).append(record["median"])
            print(f"  round {round_number + 1} of {ROUNDS}")
    for case, by_name in rates.items():
        for name in names[1:]:
            peer = statistics.median(by_name[name])
            yield {"bench": "gemm", "case": case, "metric": "rate", "unit": "GFLOP/s", **spread(by_name["weft"]),
                   "peer": name, "peer_median": peer, "ratio": round(statistics.median(by_name["weft"]) / peer, 3)}


COMPARISONS = {  # name: what it compares, what it needs, how
    "train-mlp": ("MLP 784-512-256-10, batch 64: PyTorch", "python", lambda o: train(o, "mlp")),
    "train-cnn": ("the quickstart's CNN, batch 64: PyTorch", "python", lambda o: train(o, "cnn")),
    "train-gpt": ("character GPT, 6 layers, 384 wide, context 256, batch 12: PyTorch", "python",
                  lambda o: train(o, "gpt")),
    "ranks-mlp": ("2 ranks of 1 thread training the MLP: two copies that do not talk", "", lambda o: ranks(o, "mlp")),
    "ranks-cnn": ("2 ranks of 1 thread training the CNN: two copies that do not talk", "", lambda o: ranks(o, "cnn")),
    "gemm": ("matrix products on one thread: OpenBLAS, BLIS", "blas", gemm),
    "allreduce-shm": ("allreduce of 2 ranks over shared memory: Open MPI, MPICH", "mpi",
                      lambda o: collectives.allreduce(o, "shm", 2, ROUNDS)),
    "allreduce-tcp": ("allreduce of 2 ranks over TCP on loopback: Open MPI, MPICH, Gloo", "mpi python",
                      lambda o: collectives.allreduce(o, "tcp", 2, ROUNDS)),
    "allreduce-shm-4": ("allreduce of 4 ranks over shared memory: Open MPI, MPICH", "mpi",
                        lambda o: collectives.allreduce(o, "shm", 4, 3)),
    "allreduce-tcp-4": ("allreduce of 4 ranks over TCP on loopback: Open MPI, MPICH, Gloo", "mpi python",
                        lambda o: collectives.allreduce(o, "tcp", 4, 3)),
    "collectives-shm": ("the other collectives, 2 and 4 ranks over shared memory: Open MPI, MPICH", "mpi",
                        lambda o: collectives.others(o, "shm", 3)),
    "splits": ("a perceptron over 2 ranks by data, zero, tensor and pipelines, over TCP: PyTorch over Gloo", "python",
               lambda o: splits.splits(o, ROUNDS)),
    "server-shm": ("the parameter server, a worker and a server over shared memory: ps-lite over local sockets", "pslite",
                   lambda o: parameter_servers.servers(o, "shm")),
    "server-tcp": ("the parameter server, a worker and a server over TCP on loopback: ps-lite", "pslite",
                   lambda o: parameter_servers.servers(o, "tcp")),
    "collectives-tcp": ("the other collectives, 2 and 4 ranks over TCP: Open MPI, MPICH, Gloo", "mpi python",
                        lambda o: collectives.others(o, "tcp", 3)),
}


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown")
    return {"machine": f"{name}, {os.cpu_count()} cores", "date": datetime.date.today().isoformat()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--needs", metavar="NAME")
    parser.add_argument("--build")
    parser.add_argument("--peers")
    parser.add_argument("--out")
    parser.add_argument("--threads", type=int, default=2)
    part = parser.add_argument_group("a part of a comparison of collectives, or of splits")
    part.add_argument("--kinds", type=lambda text: text.split(","), metavar="A,B", help="of the other collectives; of splits")
    part.add_argument("--ranks", type=lambda text: [int(number) for number in text.split(",")], metavar="2,4")
    part.add_argument("--sizes", type=lambda text: [int(number) for number in text.split(":")], metavar="FIRST:LAST", help="in bytes")
    part.add_argument("--rounds", type=int, help="turns of each side")
    part.add_argument("--seconds", type=float, help="length of a window")
    part.add_argument("--patience", type=float, help="seconds for all sizes of one kind")
    part.add_argument("--add", action="store_true", help="to the file of an earlier part")
    parser.add_argument("--text", default=os.environ.get("WEFT_TEXT", "/usr/share/common-licenses/GPL-3"))
    options = parser.parse_args()
    if options.list:
        for name, (words, _, _) in COMPARISONS.items():
            print(f"  {name:14} {words}")
        return
    name = options.needs or options.name
    if name not in COMPARISONS:
        sys.exit(f"error: no comparison is called '{name}'; there are {', '.join(COMPARISONS)}")
    if options.needs:
        print(COMPARISONS[name][1])
        return
    print(f"{name}: {COMPARISONS[name][0]}")
    records = list(COMPARISONS[name][2](options))
    adds = options.add and os.path.exists(options.out)
    with open(options.out, "a" if adds else "w", encoding="utf-8") as file:
        for record in records if adds else [machine(), *records]:
            file.write(json.dumps(record) + "\n")
    for record in records:
        ratio = f", ratio {record['ratio']}" if "ratio" in record else ""
        where = f", {record['cores']}" if "cores" in record else ""
        print(f"  {record['case']}{where} {record['metric']}: {record['median']} {record['unit']}, "
              f"{record.get('peer', 'no peer')} {record.get('peer_median', '')}{ratio}")


if __name__ == "__main__":
    main()

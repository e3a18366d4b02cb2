#!/usr/bin/env python3
"""PyTorch's own ways to split a perceptron's training over ranks, over Gloo on the CPU: the yardstick of weft-bench mesh, whose network,
batch, loss and solver these are (equal layers with relu, mean squared error, SGD). One JSON object.

usage: torch_splits.py HOW [--ranks N] [--width N] [--layers N] [--rows N] [--accumulate N] [--windows N] [--steps N]

HOW is data (DistributedDataParallel), zero (fully_shard: FSDP2), tensor (parallelize_module: a layer by columns, the next by rows), or a
schedule of torch.distributed.pipelining: gpipe, 1f1b, interleaved, zero-bubble. Each rank has one thread. Losses must be those
of one process before a time counts.
"""
import argparse
import json
import os
import socket
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn as nn
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh

PIPELINES = ["gpipe", "1f1b", "interleaved", "zero-bubble"]
CHUNKS = 2  # of each rank, where the schedule has several


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return F.relu(self.linear(x))


def network(args):
    torch.manual_seed(1)
    return nn.Sequential(*[Layer(args.width) for _ in range(args.layers)])


def batch(args):
    generator = torch.Generator().manual_seed(2)
    return [2 * torch.rand(args.rows, args.width, generator=generator) - 1 for _ in range(2)]


def solver_of(parameters):
    return torch.optim.SGD(parameters, lr=0.01, foreach=True)


def share(tensor, rank, ranks):
    return tensor.chunk(ranks)[rank].contiguous()


def stepper(model, x, y):
    """Steps of a model that is called as if it were whole."""
    solver = solver_of(model.parameters())

    def step():
        solver.zero_grad(set_to_none=True)
        loss = F.mse_loss(model(x), y)
        loss.backward()
        solver.step()
        return loss.item()

    return step


def by_data(args, rank, model):
    x, y = (share(part, rank, args.ranks) for part in batch(args))
    return stepper(nn.parallel.DistributedDataParallel(model), x, y)


def by_zero(args, rank, model):
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (args.ranks,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    x, y = (share(part, rank, args.ranks) for part in batch(args))
    return stepper(model, x, y)


def by_tensor(args, rank, model):
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (args.ranks,))
    plan = {f"{i}.linear": (ColwiseParallel() if i % 2 == 0 else RowwiseParallel()) for i in range(args.layers)}
    return stepper(parallelize_module(model, mesh, plan), *batch(args))


def by_pipeline(args, rank, model):
    from torch.distributed import pipelining

    schedule = {"gpipe": pipelining.ScheduleGPipe, "1f1b": pipelining.Schedule1F1B, "interleaved": pipelining.ScheduleInterleaved1F1B,
                "zero-bubble": pipelining.ScheduleInterleavedZeroBubble}[args.how]
    chunks = CHUNKS if args.how in ("interleaved", "zero-bubble") else 1
    total = chunks * args.ranks
    each = args.layers // total
    stages = [pipelining.PipelineStage(model[i * each:(i + 1) * each], i, total, torch.device("cpu")) for i in range(rank, total, args.ranks)]
    solver = solver_of([p for stage in stages for p in stage.submod.parameters()])
    run = schedule(stages if chunks > 1 else stages[0], n_microbatches=args.accumulate, loss_fn=F.mse_loss)
    x, y = batch(args)

    def step():
        solver.zero_grad(set_to_none=True)
        losses = []
        if rank == 0 and args.ranks > 1:
            run.step(x)
        else:
            run.step(target=y, losses=losses)
        solver.step()
        return sum(loss.item() for loss in losses) / len(losses) if losses else float("nan")

    return step


WAYS = {"data": by_data, "zero": by_zero, "tensor": by_tensor, **{name: by_pipeline for name in PIPELINES}}


def window(step, steps):
    dist.barrier()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    slowest = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return slowest.item() / steps


def rank_main(rank, args):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{args.port}", rank=rank, world_size=args.ranks)
    alone = stepper(network(args), *batch(args))
    expected = [alone() for _ in range(3)]
    del alone
    step = WAYS[args.how](args, rank, network(args))
    found = torch.tensor([step() for _ in range(3)], dtype=torch.float64)
    if args.how in ("data", "zero"):  # each rank has the mean of its rows
        dist.all_reduce(found, op=dist.ReduceOp.SUM)
        found /= args.ranks
    off = max(abs(a / b - 1) for a, b in zip(found.tolist(), expected))
    assert off < 1e-4 or (args.how in PIPELINES and rank != args.ranks - 1), f"the losses are {found.tolist()}, not {expected}"
    times = sorted(window(step, args.steps) for _ in range(args.windows))
    if rank == 0:
        print(json.dumps({"bench": "torch-splits", "case": args.how, "metric": "time", "unit": "s", "median": round(statistics.median(times), 6),
                          "low": round(times[0], 6), "high": round(times[-1], 6), "runs": len(times), "version": torch.__version__}), flush=True)
    dist.barrier()
    os._exit(0)  # taking the group apart aborts now and then, where one rank is gone before the other


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("how", choices=WAYS)
    for name, usual in (("ranks", 2), ("width", 2048), ("layers", 4), ("rows", 512), ("accumulate", 8), ("windows", 5), ("steps", 4)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    args = parser.parse_args()
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        args.port = one.getsockname()[1]
    multiprocessing.spawn(rank_main, (args,), nprocs=args.ranks)


if __name__ == "__main__":
    main()

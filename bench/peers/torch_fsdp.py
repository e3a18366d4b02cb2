#!/usr/bin/env python3
"""PyTorch's FSDP over Gloo on CPU cores, started by torch.distributed.run: the perceptron of weft-bench mesh, one thread a rank.

Parameters, gradients and solver states in parts: fully_shard of each layer, which is FSDP2, as FSDP1 does not run on CPUs. Rank 0
prints one JSON object: seconds of a step, by the slowest rank, of each window.
"""
import argparse
import json
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--width", type=int, default=2048)
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--rows", type=int, default=512, help="of the global batch")
parser.add_argument("--windows", type=int, default=3)
parser.add_argument("--steps", type=int, default=4)
args = parser.parse_args()
torch.set_num_threads(1)
dist.init_process_group("gloo")
ranks = dist.get_world_size()
torch.manual_seed(1)


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(args.width))
        self.layers = nn.ModuleList(nn.Linear(args.width, args.width) for _ in range(args.layers))

    def forward(self, x):
        x = x + self.shift
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


net = Perceptron()
mesh = init_device_mesh("cpu", (ranks,))
for layer in net.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(net, mesh=mesh)
solver = torch.optim.SGD(net.parameters(), lr=0.01)
torch.manual_seed(2 + dist.get_rank())
x, y = (2 * torch.rand(args.rows // ranks, args.width) - 1 for _ in range(2))


def step():
    solver.zero_grad()
    loss = nn.functional.mse_loss(net(x), y)
    loss.backward()
    solver.step()
    return loss.detach()


seconds, losses = [], []
for window in range(-1, args.windows):  # the first is not counted
    dist.barrier()
    begin = time.perf_counter()
    for _ in range(2 if window < 0 else args.steps):
        losses.append(step())
    took = torch.tensor([time.perf_counter() - begin], dtype=torch.float64)
    dist.all_reduce(took, op=dist.ReduceOp.MAX)
    if window >= 0:
        seconds.append(took.item() / args.steps)
if dist.get_rank() == 0:
    if not losses[-1] < losses[0]:
        raise SystemExit(f"the loss does not fall: {losses[0]} to {losses[-1]}")
    print(json.dumps({"seconds": seconds, "version": torch.__version__}))
dist.destroy_process_group()

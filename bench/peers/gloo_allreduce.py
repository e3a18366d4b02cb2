#!/usr/bin/env python3
"""Allreduce by Gloo, through torch.distributed: the other yardstick over TCP. One JSON object a line and size.

usage: gloo_allreduce.py [--ranks N] [--min BYTES] [--max BYTES] [--seconds S] [--windows N]
The call's way through Python (some 20 us) is part of what is measured: that is how Gloo is used.
"""
import argparse
import json
import os
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def window(tensor, operations):
    dist.barrier()
    start = time.perf_counter()
    for _ in range(operations):
        dist.all_reduce(tensor)
    slowest = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return slowest.item() / operations


def rank_main(rank, args):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{args.port}", rank=rank, world_size=args.ranks)
    size = args.min
    while size <= args.max:
        tensor = (torch.arange(size // 4) % 7).float() + rank
        expected = (torch.arange(size // 4) % 7).float() * args.ranks + sum(range(args.ranks))
        dist.all_reduce(tensor)
        assert torch.equal(tensor, expected), f"the sum of {size} bytes is wrong"
        tensor.zero_()
        one = min(window(tensor, 3), window(tensor, 3))
        operations = torch.tensor([max(2, min(100000, int(args.seconds / one)))])
        dist.broadcast(operations, 0)
        times = sorted(window(tensor, int(operations.item())) for _ in range(args.windows))
        if rank == 0:
            median, factor = statistics.median(times), 2 * (args.ranks - 1) / args.ranks * size / 1e9
            common = {"bench": "gloo-allreduce", "case": f"{size} bytes, {args.ranks} ranks", "bytes": size}
            print(json.dumps({**common, "metric": "time", "unit": "us", "median": round(median * 1e6, 3),
                              "low": round(times[0] * 1e6, 3), "high": round(times[-1] * 1e6, 3),
                              "runs": args.windows}))
            print(json.dumps({**common, "metric": "busbw", "unit": "GB/s", "median": round(factor / median, 4),
                              "low": round(factor / times[-1], 4), "high": round(factor / times[0], 4),
                              "runs": args.windows}), flush=True)
        size *= 2
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--min", type=int, default=8)
    parser.add_argument("--max", type=int, default=64 << 20)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--windows", type=int, default=9)
    parser.add_argument("--port", type=int, default=29511)
    args = parser.parse_args()
    multiprocessing.spawn(rank_main, args=(args,), nprocs=args.ranks)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Collectives by Gloo, through torch.distributed: the other yardstick over TCP. One JSON object a line and size.

usage: gloo_collective.py allreduce|allgather|broadcast [--ranks N] [--min BYTES] [--max BYTES] [--seconds S] [--windows N]
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


KINDS = {  # the call on a rank's tensor and one for the result; what the result is to be; busbw over algbw on n ranks
    "allreduce": (lambda tensor, whole: dist.all_reduce(tensor), lambda inputs: sum(inputs), lambda n: 2 * (n - 1) / n),
    "broadcast": (lambda tensor, whole: dist.broadcast(tensor, 0), lambda inputs: inputs[0], lambda n: 1),
    "allgather": (lambda tensor, whole: dist.all_gather_into_tensor(whole, tensor), torch.cat, lambda n: (n - 1) / n),
}


def window(call, operations):
    dist.barrier()
    start = time.perf_counter()
    for _ in range(operations):
        call()
    slowest = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return slowest.item() / operations


def rank_main(rank, args):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{args.port}", rank=rank, world_size=args.ranks)
    run, expected, bus_factor = KINDS[args.kind]
    size = args.min
    while size <= args.max:
        elements = size // 4 // (args.ranks if args.kind == "allgather" else 1)
        inputs = [(torch.arange(elements) % 7).float() + r for r in range(args.ranks)]
        tensor, whole = inputs[rank].clone(), torch.zeros(elements * args.ranks)

        def call():
            run(tensor, whole)

        call()
        result = whole if args.kind == "allgather" else tensor
        assert torch.equal(result, expected(inputs)), f"the result of {size} bytes is wrong"
        tensor.zero_()
        one = min(window(call, 3), window(call, 3))
        operations = torch.tensor([max(2, min(100000, int(args.seconds / one)))])
        dist.broadcast(operations, 0)
        times = sorted(window(call, int(operations.item())) for _ in range(args.windows))
        if rank == 0:
            median, factor = statistics.median(times), bus_factor(args.ranks) * size / 1e9
            common = {"bench": f"gloo-{args.kind}", "case": f"{size} bytes, {args.ranks} ranks", "bytes": size}
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
    parser.add_argument("kind", choices=KINDS)
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

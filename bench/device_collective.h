/* weft-bench allreduce --device cuda: sums of buffers in GPUs' memory, by NCCL and by copies through host memory and a wire. */
#ifndef WEFT_BENCH_DEVICE_COLLECTIVE_H
#define WEFT_BENCH_DEVICE_COLLECTIVE_H

#include "harness.h"

typedef struct bench_device_options {
    const char *wire, *by; /* by: "nccl", "wires", "both", "nodes", "nodes:N" */
    int         ranks, windows;
    double      seconds;   /* of a window */
    bench_sizes sizes;
    bool        share_gpu; /* ranks may share one GPU: each looks to NCCL as if on a host of its own, over sockets */
    bool        check;
    FILE       *json;
} bench_device_options;

/* Exit status. Of f32; in the manner of the benchmark on host memory. */
int bench_allreduce_on_device(const bench_device_options *options);

#endif

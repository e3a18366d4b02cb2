/* The benchmarks of weft-bench. */
#ifndef WEFT_BENCH_BENCH_H
#define WEFT_BENCH_BENCH_H

#include "harness.h"

int bench_allreduce(int argc, char **argv);
int bench_reduce_scatter(int argc, char **argv);
int bench_allgather(int argc, char **argv);
int bench_broadcast(int argc, char **argv);
int bench_alltoall(int argc, char **argv);
int bench_reduce(int argc, char **argv);
int bench_gather(int argc, char **argv);
int bench_scatter(int argc, char **argv);
int bench_tune(int argc, char **argv);
int bench_sendrecv(int argc, char **argv);
int bench_latency(int argc, char **argv);
int bench_files(int argc, char **argv);
int bench_server(int argc, char **argv);
int bench_staleness(int argc, char **argv);
int bench_blocks(int argc, char **argv);
int bench_mesh(int argc, char **argv);
int bench_auto(int argc, char **argv);
int bench_paper(int argc, char **argv);
int bench_partition(int argc, char **argv);
int bench_gemm(int argc, char **argv);
int bench_experts(int argc, char **argv);
int bench_codec(int argc, char **argv);
int bench_cuda_matmul(int argc, char **argv);
int bench_cuda_epilogue(int argc, char **argv);
int bench_cuda_conv(int argc, char **argv);
int bench_cuda_rows(int argc, char **argv);
int bench_cuda_kernels(int argc, char **argv);
int bench_cuda_attention(int argc, char **argv);
int bench_cuda_residual(int argc, char **argv);
int bench_cuda_adamw(int argc, char **argv);
int bench_cuda_norm(int argc, char **argv);

#endif

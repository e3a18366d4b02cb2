/* weft-bench: one program for all benchmarks. */
#include <stdio.h>
#include <string.h>

#include "bench.h"

static const bench_command commands[] = {
    {"allreduce", "sum over all ranks, in the manner of nccl-tests", bench_allreduce},
    {"reduce-scatter", "each rank gets its part of the sum", bench_reduce_scatter},
    {"allgather", "each rank gets everyone's part", bench_allgather},
    {"broadcast", "everyone gets the root's data", bench_broadcast},
    {"alltoall", "everyone gets its part of everyone's data", bench_alltoall},
    {"reduce", "sum over all ranks, at the root", bench_reduce},
    {"gather", "the root gets everyone's part", bench_gather},
    {"scatter", "each rank gets its part of the root's data", bench_scatter},
    {"tune", "measures links, memory and algorithms, and writes the file for WEFT_TUNING", bench_tune},
    {"sendrecv", "one-way bandwidth between two ranks", bench_sendrecv},
    {"server", "the parameter server: dense and sparse pushes and pulls", bench_server},
    {"staleness", "the parameter server: convergence by staleness", bench_staleness},
    {"blocks", "classic model parallelism: time to the minimum on one rank and on more", bench_blocks},
    {"mesh", "training by pipelines and tensor parallelism, against independent copies side by side", bench_mesh},
    {"auto", "automatic strategies beside all that could have been chosen", bench_auto},
    {"paper", "on paper: a large GPT on 1 to 1,024 ranks, by the model of automatic strategies", bench_paper},
    {"partition", "partitioned networks, locally and fully connected", bench_partition},
    {"gemm", "matrix products of the CPU device", bench_gemm},
    {"experts", "products of rows with the matrices that they chose, on the CPU device", bench_experts},
    {"codec", "codecs of gradients, on one thread", bench_codec},
    {"cuda-matmul", "matrix products of the CUDA device", bench_cuda_matmul},
    {"cuda-epilogue", "matrix products of the CUDA device with what follows them", bench_cuda_epilogue},
    {"cuda-conv", "convolutions of the CUDA device", bench_cuda_conv},
    {"cuda-kernels", "elementwise, reductions, moves and updates of the CUDA device", bench_cuda_kernels},
    {"cuda-rows", "normalisation, softmax, cross-entropy of the CUDA device", bench_cuda_rows},
    {"cuda-attention", "attention of the CUDA device, by cuDNN and by own kernels", bench_cuda_attention},
    {"cuda-residual", "residual and norm in one, and their gradient, of the CUDA device", bench_cuda_residual},
    {"cuda-adamw", "AdamW of all of a network's tensors on the CUDA device", bench_cuda_adamw},
    {"cuda-norm", "the norm of all of a network's gradients on the CUDA device", bench_cuda_norm},
    {"latency", "half a round trip between two ranks", bench_latency},
    {"files", "loaders and checkpoints", bench_files},
};

int main(int argc, char **argv) {
    if (argc >= 2)
        for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
            if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
    bool help = argc >= 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0);
    FILE *out = help ? stdout : stderr;
    if (argc >= 2 && !help) fprintf(out, "error: there is no benchmark '%s'\n", argv[1]);
    fprintf(out, "usage: weft-bench WHAT [option...]   (weft-bench WHAT --help lists its options)\n\n");
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        fprintf(out, "  %-16s %s\n", commands[i].name, commands[i].help);
    return help ? 0 : 2;
}

/* Training on a GPU beside training on the CPU: programs of tests/train, run as processes on either device. They share seeds and data, so what
 * differs is the order of sums. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/effort.h"
#include "cuda/gpu.h"
#include "train/run.h"

enum { STEPS = UNDER_ADDRESS_SANITIZER ? 6 : 30 }; /* a step's accesses are those of all */

typedef struct run {
    const char *solver, *dtype;
    int         micro, steps, ranks;
} run;

static double *train(const char *device, run how, size_t *count_out) {
    static int  runs;
    char        name[64], arguments[1024];
    snprintf(name, sizeof name, "variables-%d", runs++);
    const char *path = temporary_path(name), *output = temporary_path("output");
    snprintf(arguments, sizeof arguments, "%s %s %d %d %s", how.solver, how.dtype, how.micro, how.steps, path);
    setenv("WEFT_DEVICE", device, 1);
    int   status = run_ranks(how.ranks, how.ranks ? "shm" : NULL, "train_program_parity", arguments, output);
    char *text = read_text(output);
    cr_assert_eq(status, 0, "%s, %s %s on %d ranks: exit status %d: %s", device, how.solver, how.dtype, how.ranks, status, text);
    free(text);
    return read_doubles(path, count_out);
}

/* The network has convolution, batch and layer norm, pooling, dropout, gelu, ignored labels and smoothing. */
static void agrees(run how, double tolerance) {
    size_t  n, m;
    double *cpu = train("cpu", how, &n), *cuda = train("cuda", how, &m), difference = 0, size = 0;
    cr_assert_eq(n, m);
    for (size_t i = 0; i < n; i++) {
        difference += (cpu[i] - cuda[i]) * (cpu[i] - cuda[i]);
        size += cpu[i] * cpu[i];
    }
    double off = sqrt(difference / size);
    fprintf(stderr, "  %s %s, %d ranks, %d micro-batches, %d steps: off by %.3g\n", how.solver, how.dtype, how.ranks, how.micro, how.steps, off);
    cr_assert(off <= tolerance, "%s %s on %d ranks is off by %.3g, allowed %.3g", how.solver, how.dtype, how.ranks, off, tolerance);
    free(cpu);
    free(cuda);
}

Test(cuda_train, sgd_in_f32_as_on_the_cpu) {
    NEEDS_GPU();
    agrees((run){"sgd", "f32", 1, STEPS, 0}, 1e-4);
}
Test(cuda_train, adam_in_f64_as_on_the_cpu) {
    NEEDS_GPU();
    agrees((run){"adam", "f64", 1, STEPS, 0}, 1e-8);
}
Test(cuda_train, momentum_with_micro_batches_as_on_the_cpu) {
    NEEDS_GPU();
    agrees((run){"momentum", "f64", 3, STEPS, 0}, 1e-8);
}
Test(cuda_train, adagrad_with_group_lasso_as_on_the_cpu) {
    NEEDS_GPU();
    agrees((run){"adagrad", "f64", 1, 2 * STEPS / 3, 0}, 1e-6);
}
Test(cuda_train, bf16_near_the_cpu) {
    NEEDS_GPU();
    agrees((run){"sgd", "bf16", 1, 2 * STEPS / 3, 0}, 2e-2);
}
/* With a scale of the loss that is found on the way. */
Test(cuda_train, f16_near_the_cpu) {
    NEEDS_GPU();
    agrees((run){"adam", "f16", 1, 2 * STEPS / 3, 0}, 2e-2);
}

/* Factors of 10 bits: not those of f32, and near them. */
Test(cuda_train, tf32_where_it_is_asked_for) {
    NEEDS_GPU();
    size_t  n, m;
    run     how = {"sgd", "f32", 1, 10, 0};
    double *full = train("cuda", how, &n), difference = 0, size = 0;
    setenv("WEFT_CUDA_TF32", "1", 1);
    double *short_factors = train("cuda", how, &m);
    cr_assert_eq(n, m);
    for (size_t i = 0; i < n; i++) {
        difference += (full[i] - short_factors[i]) * (full[i] - short_factors[i]);
        size += full[i] * full[i];
    }
    double off = sqrt(difference / size);
    fprintf(stderr, "  tf32 is off by %.3g\n", off);
    cr_assert(off > 1e-7 && off < 1e-2, "%.3g", off);
    free(full);
    free(short_factors);
}

Test(cuda_train, losses_by_chunks_of_rows_as_on_the_cpu) {
    NEEDS_GPU();
    setenv("RUN_CLASSES", "4104", 1);
    setenv("RUN_CHUNK", "8", 1);
    agrees((run){"sgd", "bf16", 1, 4, 0}, 2e-2);
    if (!UNDER_ADDRESS_SANITIZER) agrees((run){"adam", "f64", 2, 4, 0}, 1e-8);
}
Test(cuda_train, lbfgs_as_on_the_cpu) {
    NEEDS_GPU();
    agrees((run){"lbfgs", "f64", 1, 6, 0}, 1e-6);
}
Test(cuda_train, two_ranks_on_one_gpu_as_on_the_cpu) {
    NEEDS_GPU();
    agrees((run){"adam", "f64", 1, STEPS, 2}, 1e-8);
}
Test(cuda_train, three_ranks_on_one_gpu_with_micro_batches) {
    NEEDS_GPU();
    agrees((run){"sgd", "f32", 2, STEPS, 3}, 1e-4);
}

/* --- compressed gradients --- */

/* The exit status; what was printed, to be freed. */
static int compress(const char *device, const char *codec, const char *out, char **text_out) {
    char        arguments[1024];
    const char *output = temporary_path("output");
    snprintf(arguments, sizeof arguments, "%s 10 %s", codec, out);
    setenv("WEFT_DEVICE", device, 1);
    int status = run_ranks(2, "shm", "train_program_compress", arguments, output);
    *text_out = read_text(output);
    return status;
}

static double *compressed(const char *device, const char *codec, size_t *count_out) {
    char        path[2][1024], *text;
    const char *out = temporary_path(device);
    size_t      n;
    int         status = compress(device, codec, out, &text);
    cr_assert_eq(status, 0, "%s on %s: exit status %d: %s", codec, device, status, text);
    free(text);
    for (int rank = 0; rank < 2; rank++) snprintf(path[rank], sizeof path[rank], "%s.%d", out, rank);
    double *first = read_doubles(path[0], count_out), *second = read_doubles(path[1], &n);
    cr_assert(n == *count_out && memcmp(first, second, n * sizeof *first) == 0, "%s on %s: ranks have different bits", codec, device);
    free(second);
    return first;
}

Test(cuda_train, compresses_with_operations_that_it_has) {
    NEEDS_GPU();
    static const char *const codecs[] = {"bf16", "powersgd"};
    for (int c = 0; c < 2; c++) {
        size_t  n, m;
        double *cpu = compressed("cpu", codecs[c], &n), *cuda = compressed("cuda", codecs[c], &m), off = 0, size = 0;
        cr_assert_eq(n, m);
        for (size_t i = 0; i < n; i++) {
            off += (cpu[i] - cuda[i]) * (cpu[i] - cuda[i]);
            size += cpu[i] * cpu[i];
        }
        cr_assert_leq(sqrt(off / size), 5e-3, "%s is off by %.3g", codecs[c], sqrt(off / size));
        free(cpu);
        free(cuda);
    }
}

Test(cuda_train, refuses_codecs_that_it_has_no_kernels_for) {
    NEEDS_GPU();
    static const char *const codecs[] = {"fp8", "fp8-e5m2", "topk"};
    for (int c = 0; c < 3; c++) {
        char *text;
        cr_assert_eq(compress("cuda", codecs[c], temporary_path("refused"), &text), 1, "%s: %s", codecs[c], text);
        cr_assert(strstr(text, "WEFT_E_UNSUPPORTED") && strstr(text, "has no kernels for the codec ") && strstr(text, codecs[c]) &&
                      strstr(text, "bf16 or powersgd"), "%s: %s", codecs[c], text);
        free(text);
    }
}

static void gives_the_same_bits(run how) {
    size_t  n, m;
    double *first = train("cuda", how, &n), *second = train("cuda", how, &m);
    cr_assert_eq(n, m);
    cr_assert_eq(memcmp(first, second, n * sizeof *first), 0, "two runs on %d ranks differ", how.ranks);
    free(first);
    free(second);
}
Test(cuda_train, gives_the_same_bits_from_run_to_run) {
    NEEDS_GPU();
    gives_the_same_bits((run){"adam", "f32", 1, STEPS, 0});
    gives_the_same_bits((run){"adam", "f32", 1, STEPS, 2});
}
Test(cuda_train, gives_the_same_bits_captured_and_not) {
    NEEDS_GPU();
    run     how = {"adam", "f32", 2, STEPS, 0};
    size_t  n, m;
    double *captured = train("cuda", how, &n);
    setenv("WEFT_CUDA_CAPTURE", "0", 1);
    double *eager = train("cuda", how, &m);
    cr_assert_eq(n, m);
    cr_assert_eq(memcmp(captured, eager, n * sizeof *captured), 0, "captured and call by call differ");
    free(captured);
    free(eager);
}

/* A run that is saved and resumed goes on to the same bits. */
Test(cuda_train, resumes_to_the_same_bits) {
    NEEDS_GPU();
    const char *whole = temporary_path("whole"), *parts = temporary_path("parts"), *output = temporary_path("output");
    const char *calls[] = {"24 100", "11 100", "24 100"};
    char        arguments[1024], command[2048];
    setenv("WEFT_DEVICE", "cuda", 1);
    for (int ranks = 0; ranks <= 2; ranks += 2) {
        remove(whole);
        remove(parts);
        for (int i = 0; i < 3; i++) {
            snprintf(arguments, sizeof arguments, "%s %s", i == 0 ? whole : parts, calls[i]);
            int   status = run_ranks(ranks, ranks ? "shm" : NULL, "train_program_run", arguments, output);
            char *text = read_text(output);
            cr_assert_eq(status, 0, "exit status %d: %s", status, text);
            free(text);
        }
        snprintf(command, sizeof command, "cmp %s %s", whole, parts);
        cr_assert_eq(system(command), 0, "the checkpoints of %d ranks differ", ranks);
    }
}

/* Matrix products as training has them, on one thread or several, beside the BLAS that is linked (on one thread: it has no
 * others) and the machine's peak of fused multiply-adds, measured between the products.
 *
 * The shapes are those of a multi-layer perceptron (784-512-256-10), a small convolutional network and a character GPT (384
 * wide), forward and both gradients. Each result is verified before it is timed. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "core/cpu/cpu.h"
#include "weft.h"

#if __has_include(<cblas.h>)
#include <cblas.h>
#define HAVE_BLAS 1
#endif

enum { RUNS = 15, CHECKED = 200 };

typedef struct product {
    const char *name;
    bool        trans_a, trans_b;
    int64_t     m, n, k;
} product;

static const product products[] = {
    {"mlp 1 forward", false, false, 64, 512, 784},        {"mlp 1 weights", true, false, 784, 512, 64},
    {"mlp 2 forward", false, false, 64, 256, 512},        {"mlp 2 input", false, true, 64, 512, 256},
    {"mlp 3 forward", false, false, 64, 10, 256},         {"cnn dense forward", false, false, 64, 128, 3136},
    {"cnn dense weights", true, false, 3136, 128, 64},    {"cnn dense input", false, true, 64, 3136, 128},
    {"cnn columns", false, false, 64, 196, 288},          {"gpt qkv forward", false, false, 3072, 1152, 384},
    {"gpt qkv input", false, true, 3072, 384, 1152},      {"gpt qkv weights", true, false, 384, 1152, 3072},
    {"gpt up forward", false, false, 3072, 1536, 384},    {"gpt down forward", false, false, 3072, 384, 1536},
    {"gpt up weights", true, false, 384, 1536, 3072},     {"square", false, false, 1024, 1024, 1024},
};

typedef struct operands {
    float *a, *b, *c;
    size_t a_bytes, b_bytes, c_bytes;
} operands;

static void fail(const char *what) {
    fprintf(stderr, "error: %s: %s\n", what, weft_error_message());
    exit(1);
}

static float *allocate(size_t bytes) {
    void *memory = NULL;
    if (wefti_alloc_raw(bytes, 64, "a matrix", &memory) != WEFT_OK) fail("gemm");
    return memory;
}

static void fill(float *x, int64_t count, uint32_t seed) {
    for (int64_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) * 0x1p-24f - 0.5f;
    }
}

/* The greatest error of some elements, relative to the sum of absolute products, which bounds what rounding may do. */
static double worst_error(const product *p, const operands *x) {
    double   worst = 0;
    uint32_t seed = 7;
    for (int i = 0; i < CHECKED; i++) {
        seed = seed * 1664525u + 1013904223u;
        int64_t row = (int64_t)(seed >> 8) % p->m, column = (int64_t)(seed >> 4) % p->n;
        double  sum = 0, size = 0;
        for (int64_t k = 0; k < p->k; k++) {
            double term = (double)x->a[p->trans_a ? k * p->m + row : row * p->k + k] *
                          (double)x->b[p->trans_b ? column * p->k + k : k * p->n + column];
            sum += term;
            size += fabs(term);
        }
        worst = fmax(worst, fabs(sum - (double)x->c[row * p->n + column]) / size);
    }
    return worst;
}

static wefti_operand matrix(int64_t rows, int64_t columns, int32_t buffer) {
    wefti_operand operand = {.dtype = WEFT_F32, .shape = weft_shape(rows, columns), .buffer = buffer};
    wefti_contiguous_strides(operand.shape, operand.stride);
    return operand;
}

typedef struct timing {
    bench_spread spread; /* seconds */
    double       error;
} timing;

static timing time_weft(wefti_device *device, const product *p, const operands *x) {
    wefti_attrs attrs;
    memset(&attrs, 0, sizeof attrs);
    attrs.matmul.trans_a = p->trans_a;
    attrs.matmul.trans_b = p->trans_b;
    wefti_operand inputs[2] = {p->trans_a ? matrix(p->k, p->m, 0) : matrix(p->m, p->k, 0),
                               p->trans_b ? matrix(p->n, p->k, 1) : matrix(p->k, p->n, 1)};
    wefti_operand output = matrix(p->m, p->n, 2);
    wefti_call    call = {.op = WEFT_OP_MATMUL, .attrs = &attrs, .n_inputs = 2, .n_outputs = 1, .inputs = inputs, .outputs = &output,
                          .scratch_buffer = 3, .name = p->name};
    wefti_segment  segment = {.calls = &call, .n_calls = 1, .n_buffers = 4};
    wefti_program *program = NULL;
    if (device->vtable->query(device, &call, &call.scratch_bytes) != WEFT_OK) fail(p->name);
    float *scratch = allocate((size_t)call.scratch_bytes);
    if (device->vtable->compile(device, &segment, &program) != WEFT_OK) fail(p->name);
    void        *buffers[4] = {x->a, x->b, x->c, scratch};
    wefti_launch launch = {.buffers = buffers};
    double       samples[RUNS];
    int          times = (int)fmax(1, 2e7 / (double)(p->m * p->n * p->k));
    memset(x->c, 0xff, x->c_bytes);
    if (device->vtable->launch(program, &launch) != WEFT_OK) fail(p->name);
    timing result = {.error = worst_error(p, x)};
    for (int run = 0; run < RUNS; run++) {
        double begin = bench_now_s();
        for (int i = 0; i < times; i++)
            if (device->vtable->launch(program, &launch) != WEFT_OK) fail(p->name);
        samples[run] = (bench_now_s() - begin) / times;
    }
    device->vtable->release_program(program);
    wefti_free(scratch, (size_t)call.scratch_bytes);
    result.spread = bench_spread_of(samples, RUNS);
    return result;
}

static double time_blas(const product *p, const operands *x) {
#ifdef HAVE_BLAS
    double samples[RUNS];
    int    times = (int)fmax(1, 2e7 / (double)(p->m * p->n * p->k));
    for (int run = 0; run <= RUNS; run++) { /* the first is a warm-up */
        double begin = bench_now_s();
        for (int i = 0; i < times; i++)
            cblas_sgemm(CblasRowMajor, p->trans_a ? CblasTrans : CblasNoTrans, p->trans_b ? CblasTrans : CblasNoTrans, (int)p->m,
                        (int)p->n, (int)p->k, 1, x->a, (int)(p->trans_a ? p->m : p->k), x->b, (int)(p->trans_b ? p->k : p->n), 0,
                        x->c, (int)p->n);
        if (run) samples[run - 1] = (bench_now_s() - begin) / times;
    }
    return bench_spread_of(samples, RUNS).median;
#else
    (void)p, (void)x;
    return BENCH_UNMEASURED;
#endif
}

/* FLOP/s of one core: independent fused multiply-adds on registers, the best of a few tries. */
static double peak_of_core(void) {
#if defined(__x86_64__)
    bool   wide = wefti_cpu_has(WEFTI_CPU_AVX512);
    double best = 0;
    if (!wefti_cpu_has(WEFTI_CPU_AVX2)) return BENCH_UNMEASURED;
    for (int try = 0; try < 5; try++) {
        long   count = 2000000, left = count;
        double begin = bench_now_s();
#define FMA(i) "vfmadd231ps %%ymm14,%%ymm15,%%ymm" #i "\n"
#define WIDE(i) "vfmadd231ps %%zmm14,%%zmm15,%%zmm" #i "\n"
#define TWELVE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define CLOBBERED "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11"
        if (wide)
            __asm__ __volatile__("1:\n" TWELVE(WIDE) "dec %0\njnz 1b" : "+r"(left)::CLOBBERED);
        else
            __asm__ __volatile__("1:\n" TWELVE(FMA) "dec %0\njnz 1b" : "+r"(left)::CLOBBERED);
        best = fmax(best, (double)count * 12 * (wide ? 32 : 16) / (bench_now_s() - begin));
    }
    return best;
#else
    return BENCH_UNMEASURED;
#endif
}

static void measure(wefti_device *device, int threads, const product *p, FILE *json) {
    operands x = {.a_bytes = (size_t)(p->m * p->k) * 4, .b_bytes = (size_t)(p->k * p->n) * 4, .c_bytes = (size_t)(p->m * p->n) * 4};
    x.a = allocate(x.a_bytes);
    x.b = allocate(x.b_bytes);
    x.c = allocate(x.c_bytes);
    fill(x.a, p->m * p->k, 1);
    fill(x.b, p->k * p->n, 2);
    timing weft = time_weft(device, p, &x);
    double blas = threads == 1 ? time_blas(p, &x) : BENCH_UNMEASURED, flops = 2.0 * (double)(p->m * p->n * p->k);
    double peak = peak_of_core() * threads;
    char   name[80], extra[160], blas_text[32] = "unmeasured", ratio[32] = "";
    if (weft.error > 1e-6) {
        fprintf(stderr, "error: %s is wrong: relative error %g\n", p->name, weft.error);
        exit(1);
    }
    snprintf(name, sizeof name, "%s %lldx%lldx%lld threads %d", p->name, (long long)p->m, (long long)p->n, (long long)p->k, threads);
    if (!isnan(blas)) {
        snprintf(blas_text, sizeof blas_text, "%.1f", flops / blas * 1e-9);
        snprintf(ratio, sizeof ratio, "%.2f", blas / weft.spread.median);
        snprintf(extra, sizeof extra, "\"peer\": \"blas\", \"peer_median\": %.2f, \"ratio\": %.3f", flops / blas * 1e-9,
                 blas / weft.spread.median);
    }
    printf("%-46s %8.1f %8s %6s %8.1f\n", name, flops / weft.spread.median * 1e-9, blas_text, ratio, peak * 1e-9);
    bench_record record = {.bench = "gemm", .what = name, .metric = "rate", .unit = "GFLOP/s",
                           .spread = bench_spread_over(weft.spread, flops * 1e-9), .limit = peak * 1e-9,
                           .extra = isnan(blas) ? NULL : extra};
    bench_write(json, &record);
    wefti_free(x.a, x.a_bytes);
    wefti_free(x.b, x.b_bytes);
    wefti_free(x.c, x.c_bytes);
}

int bench_gemm(int argc, char **argv) {
    double             threads = 1;
    const char        *path = NULL;
    const bench_option options[] = {{"threads", "threads of the CPU device (1)", BENCH_NUMBER, &threads},
                                    {"json", "append the records to this file", BENCH_TEXT, &path},
                                    {NULL, NULL, BENCH_FLAG, NULL}};
    bench_read_options(argc, argv, "Matrix products of the CPU device, in GFLOP/s. WEFT_CPU_ISA forces an instruction set.", options);
    wefti_cpu_options cpu = {.threads = {.count = (int32_t)threads}};
    wefti_device     *device = NULL;
    if (wefti_cpu_create(&cpu, &device) != WEFT_OK) fail("gemm");
    FILE *json = bench_open_json(path);
    printf("%-46s %8s %8s %6s %8s\n", "GFLOP/s", "weft", "blas", "ratio", "peak");
    for (size_t i = 0; i < sizeof products / sizeof products[0]; i++) measure(device, (int)threads, &products[i], json);
    device->vtable->release(device);
    if (json) fclose(json);
    return 0;
}

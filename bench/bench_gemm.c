/* Matrix products of the CPU device at the shapes of the yardstick networks; bench/peers/blas_gemm.c has the same list for the
 * packaged BLAS libraries. Includes all that the device does: packing, cutting, the call itself. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "core/cpu/cpu.h"

enum { WINDOWS = 9 };

typedef struct shape {
    int64_t     m, n, k;
    const char *layout; /* nn, nt (B transposed), tn (A transposed) */
    const char *where;
} shape;

static const shape shapes[] = {
    {64, 512, 784, "nt", "mlp layer 1"},          {512, 784, 64, "tn", "mlp layer 1, weight gradient"},
    {64, 256, 512, "nt", "mlp layer 2"},          {64, 512, 256, "nn", "mlp layer 2, input gradient"},
    {64, 10, 256, "nt", "mlp head"},              {64, 196, 288, "nn", "cnn convolution 2, an image"},
    {64, 128, 3136, "nt", "cnn linear"},          {128, 3136, 64, "tn", "cnn linear, weight gradient"},
    {3072, 1152, 384, "nt", "gpt qkv"},           {3072, 1536, 384, "nt", "gpt up"},
    {1536, 384, 3072, "tn", "gpt up, weight gradient"}, {1024, 1024, 1024, "nn", "square"},
};

static void must(weft_status status) {
    if (status == WEFT_OK) return;
    fprintf(stderr, "error: %s\n", weft_error_message());
    exit(1);
}

typedef struct product {
    wefti_device  *device;
    wefti_program *program;
    void          *buffers[4]; /* a, b, c, scratch */
    size_t         bytes[4];
} product;

static wefti_operand matrix(int32_t buffer, int64_t rows, int64_t columns) {
    return (wefti_operand){.dtype = WEFT_F32, .shape = weft_shape(rows, columns), .stride = {columns, 1}, .buffer = buffer};
}

static void open_product(product *p, const shape *s, wefti_attrs *attrs) {
    bool ta = s->layout[0] == 't', tb = s->layout[1] == 't';
    *attrs = (wefti_attrs){.matmul = {.trans_a = ta, .trans_b = tb}};
    wefti_operand inputs[2] = {ta ? matrix(0, s->k, s->m) : matrix(0, s->m, s->k), tb ? matrix(1, s->n, s->k) : matrix(1, s->k, s->n)};
    wefti_operand output = matrix(2, s->m, s->n);
    wefti_call    call = {.op = WEFT_OP_MATMUL, .attrs = attrs, .n_inputs = 2, .n_outputs = 1, .inputs = inputs, .outputs = &output,
                          .scratch_buffer = 3, .name = s->where};
    must(p->device->vtable->query(p->device, &call, &call.scratch_bytes));
    wefti_segment segment = {.calls = &call, .n_calls = 1, .n_buffers = 4};
    must(p->device->vtable->compile(p->device, &segment, &p->program));
    p->bytes[0] = (size_t)(s->m * s->k) * 4;
    p->bytes[1] = (size_t)(s->n * s->k) * 4;
    p->bytes[2] = (size_t)(s->m * s->n) * 4;
    p->bytes[3] = (size_t)call.scratch_bytes;
    for (int i = 0; i < 4; i++) must(p->device->vtable->allocate(p->device, p->bytes[i], s->where, &p->buffers[i]));
    for (size_t i = 0; i < p->bytes[0] / 4; i++) ((float *)p->buffers[0])[i] = (float)(i * 37 % 101) / 101 - 0.5f;
    for (size_t i = 0; i < p->bytes[1] / 4; i++) ((float *)p->buffers[1])[i] = (float)(i * 53 % 97) / 97 - 0.5f;
}

static void close_product(product *p) {
    p->device->vtable->release_program(p->program);
    for (int i = 0; i < 4; i++) p->device->vtable->deallocate(p->device, p->buffers[i], p->bytes[i]);
}

static void multiply(product *p) { must(p->device->vtable->launch(p->program, &(wefti_launch){.buffers = p->buffers})); }

/* A hundred elements against sums in double precision. */
static void verify(const product *p, const shape *s) {
    const float *a = p->buffers[0], *b = p->buffers[1], *c = p->buffers[2];
    for (int64_t probe = 0; probe < 100; probe++) {
        int64_t i = probe * 7919 % s->m, j = probe * 104729 % s->n;
        double  sum = 0;
        for (int64_t q = 0; q < s->k; q++)
            sum += (double)(s->layout[0] == 't' ? a[q * s->m + i] : a[i * s->k + q]) * (double)(s->layout[1] == 't' ? b[j * s->k + q] : b[q * s->n + j]);
        if (fabs(sum - (double)c[i * s->n + j]) <= 1e-3 * (1 + fabs(sum))) continue;
        fprintf(stderr, "error: %s is wrong at %lld, %lld\n", s->where, (long long)i, (long long)j);
        exit(1);
    }
}

static bench_spread rate_of(product *p, const shape *s, double seconds) {
    double rates[WINDOWS], flops = 2.0 * (double)s->m * (double)s->n * (double)s->k;
    multiply(p);
    verify(p, s);
    for (int window = 0; window < WINDOWS; window++) {
        int    count = 0;
        double begin = bench_now_s(), end = begin;
        for (; end - begin < seconds; end = bench_now_s(), count++) multiply(p);
        rates[window] = 1e-9 * flops * count / (end - begin);
    }
    return bench_spread_of(rates, WINDOWS);
}

int bench_gemm(int argc, char **argv) {
    double      threads = 1, seconds = 0.05;
    const char *json_path = NULL;
    const bench_option options[] = {{"threads", "threads of the device", BENCH_NUMBER, &threads},
                                    {"seconds", "of a window; there are nine", BENCH_NUMBER, &seconds},
                                    {"json", "file for the records", BENCH_TEXT, &json_path},
                                    {0}};
    bench_read_options(argc, argv, "Matrix products of the CPU device, f32.", options);
    FILE   *json = bench_open_json(json_path);
    product p = {0};
    must(wefti_cpu_create(&(wefti_cpu_options){.threads = {.count = (int32_t)threads}}, &p.device));
    printf("%s, %d thread%s\n%-48s %10s %10s %10s\n", wefti_cpu_isa_name(wefti_cpu_isa_of(p.device)), (int)threads, threads == 1 ? "" : "s",
           "m x n x k", "GFLOP/s", "low", "high");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const shape *s = &shapes[i];
        wefti_attrs  attrs;
        char         what[96];
        open_product(&p, s, &attrs);
        bench_spread spread = rate_of(&p, s, seconds);
        close_product(&p);
        snprintf(what, sizeof what, "%lld x %lld x %lld %s, %s", (long long)s->m, (long long)s->n, (long long)s->k, s->layout, s->where);
        printf("%-48s %10.1f %10.1f %10.1f\n", what, spread.median, spread.low, spread.high);
        bench_write(json, &(bench_record){.bench = "gemm", .what = what, .metric = "rate", .unit = "GFLOP/s", .spread = spread, .limit = BENCH_UNMEASURED});
    }
    p.device->vtable->release(p.device);
    if (json) fclose(json);
    return 0;
}

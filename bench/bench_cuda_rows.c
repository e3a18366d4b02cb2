/* Row-local ops of the CUDA device as a share of the bandwidth that a copy reaches in the same run.
 *
 * Each case is checked by the CPU device on its first and last row (slice of the first axis), then timed. Bytes are those of operands, each
 * once: what must move. Operands are larger than any second-level cache. */
#include <stdlib.h>
#include <string.h>

#include "core/cpu/cpu.h"
#include "core/iface/world.h"
#include "core/tensor/operand.h"
#include "cuda_call.h"

enum { TIMES = 16 };

/* --- checking --- */

/* Slice `at` of the first axis of each operand, computed by the CPU device; false where an output differs. */
static bool check_slice(cuda_call *self, wefti_device *cpu, int64_t at) {
    cuda_call one = *self;
    bool      good = true;
    one.device = cpu;
    for (int32_t i = 0; i < self->n_inputs + self->n_outputs; i++) one.operand[i].shape.dim[0] = 1;
    cuda_call_open(&one, 1);
    for (int32_t i = 0; i < self->n_inputs; i++)
        cuda_call_must(self->device->vtable->read(self->device, one.buffers[i], (char *)self->buffers[i] + (size_t)at * one.bytes[i], one.bytes[i]));
    cuda_call_launch(&one);
    for (int32_t i = self->n_inputs; i < self->n_inputs + self->n_outputs && good; i++) {
        weft_dtype dtype = self->operand[i].dtype;
        char      *got = malloc(one.bytes[i]);
        double     unit = dtype == WEFT_BF16 ? 0x1p-7 : dtype == WEFT_F16 ? 0x1p-10 : 1e-5;
        if (!got) exit(1);
        cuda_call_must(self->device->vtable->read(self->device, got, (char *)self->buffers[i] + (size_t)at * one.bytes[i], one.bytes[i]));
        for (int64_t j = 0; j < wefti_operand_elements(&one.operand[i]) && good; j++) {
            double have = wefti_load_f64(got, j, dtype), want = wefti_load_f64(one.buffers[i], j, dtype);
            good = fabs(have - want) <= unit * fabs(want) + 1e-6;
            if (!good) fprintf(stderr, "error: %s: output %d, slice %lld, element %lld is %.9g and should be %.9g\n", self->name,
                               (int)(i - self->n_inputs), (long long)at, (long long)j, have, want);
        }
        free(got);
    }
    cuda_call_close(&one);
    return good;
}

/* --- cases --- */

typedef struct rows_case {
    const char *name;
    weft_op     op;
    weft_dtype  dtype;
    int64_t     rows, length;
    int32_t     rms;
} rows_case;

static const rows_case cases[] = {
    {"layer norm", WEFT_OP_NORMALIZE, WEFT_BF16, 131072, 768, 0},
    {"layer norm gradient", WEFT_OP_NORMALIZE_BACKWARD, WEFT_BF16, 131072, 768, 0},
    {"rms norm", WEFT_OP_NORMALIZE, WEFT_BF16, 32768, 4096, 1},
    {"rms norm gradient", WEFT_OP_NORMALIZE_BACKWARD, WEFT_BF16, 32768, 4096, 1},
    {"layer norm", WEFT_OP_NORMALIZE, WEFT_F32, 65536, 1024, 0},
    {"rms norm of heads", WEFT_OP_NORMALIZE, WEFT_BF16, 1048576, 128, 1},
    {"softmax", WEFT_OP_SOFTMAX, WEFT_BF16, 131072, 1024, 0},
    {"softmax gradient", WEFT_OP_SOFTMAX_BACKWARD, WEFT_BF16, 131072, 1024, 0},
    {"softmax", WEFT_OP_SOFTMAX, WEFT_F32, 16384, 4096, 0},
    {"softmax of a vocabulary", WEFT_OP_SOFTMAX, WEFT_BF16, 8192, 50304, 0},
    {"cross-entropy", WEFT_OP_CROSS_ENTROPY, WEFT_BF16, 8192, 50304, 0},
    {"cross-entropy gradient", WEFT_OP_CROSS_ENTROPY_BACKWARD, WEFT_BF16, 8192, 50304, 0},
    {"cross-entropy of an odd vocabulary", WEFT_OP_CROSS_ENTROPY, WEFT_BF16, 8192, 50257, 0},
    {"cross-entropy of ten classes", WEFT_OP_CROSS_ENTROPY, WEFT_F32, 4194304, 10, 0},
};

static void make(cuda_call *call, const rows_case *c) {
    weft_shape x = weft_shape(c->rows, c->length), row = weft_shape(c->rows);
    weft_dtype wide = c->dtype == WEFT_F64 ? WEFT_F64 : WEFT_F32;
    switch (c->op) {
    case WEFT_OP_NORMALIZE:
        cuda_call_begin(call, c->op, c->name, 1, 2);
        cuda_call_operand(call, 0, c->dtype, x), cuda_call_operand(call, 1, c->dtype, x), cuda_call_operand(call, 2, wide, row);
        break;
    case WEFT_OP_NORMALIZE_BACKWARD:
        cuda_call_begin(call, c->op, c->name, 3, 1);
        cuda_call_operand(call, 0, c->dtype, x), cuda_call_operand(call, 1, c->dtype, x), cuda_call_operand(call, 2, wide, row);
        cuda_call_operand(call, 3, c->dtype, x);
        break;
    case WEFT_OP_SOFTMAX_BACKWARD:
        cuda_call_begin(call, c->op, c->name, 2, 1);
        for (int i = 0; i < 3; i++) cuda_call_operand(call, i, c->dtype, x);
        break;
    case WEFT_OP_CROSS_ENTROPY:
        cuda_call_begin(call, c->op, c->name, 2, 2);
        cuda_call_operand(call, 0, c->dtype, x), cuda_call_operand(call, 1, WEFT_I32, row);
        cuda_call_operand(call, 2, wide, row), cuda_call_operand(call, 3, wide, row);
        break;
    case WEFT_OP_CROSS_ENTROPY_BACKWARD:
        cuda_call_begin(call, c->op, c->name, 4, 1);
        cuda_call_operand(call, 0, wide, row), cuda_call_operand(call, 1, c->dtype, x), cuda_call_operand(call, 2, WEFT_I32, row);
        cuda_call_operand(call, 3, wide, row), cuda_call_operand(call, 4, c->dtype, x);
        break;
    default:
        cuda_call_begin(call, c->op, c->name, 1, 1);
        cuda_call_operand(call, 0, c->dtype, x), cuda_call_operand(call, 1, c->dtype, x);
    }
    call->label_end = c->length;
    call->attrs.rows.axes = 1;
    if (wefti_ops[c->op].family == WEFTI_ROWS) call->attrs.rows.rms = c->rms, call->attrs.rows.eps = 1e-5;
    else memset(&call->attrs, 0, sizeof call->attrs);
}

static bench_spread rate_of(cuda_call *call, double window_s) {
    double bytes = 0;
    for (int32_t i = 0; i < call->n_inputs + call->n_outputs; i++) bytes += (double)call->bytes[i];
    bench_spread s = cuda_call_time(call, TIMES, window_s);
    return (bench_spread){.median = bytes / s.median * 1e-9, .low = bytes / s.high * 1e-9, .high = bytes / s.low * 1e-9, .runs = s.runs};
}

/* GB/s, read and written, of a copy. */
static double copy_rate(wefti_device *device, double window_s) {
    cuda_call call = {.device = device};
    cuda_call_begin(&call, WEFT_OP_COPY, "copy", 1, 1);
    for (int i = 0; i < 2; i++) cuda_call_operand(&call, i, WEFT_F32, weft_shape(INT64_C(1) << 27));
    cuda_call_open(&call, TIMES);
    double rate = rate_of(&call, window_s).median;
    cuda_call_close(&call);
    return rate;
}

int bench_cuda_rows(int argc, char **argv) {
    const char        *name = "cuda", *path = NULL;
    double             window_s = 0.02;
    bool               good = true;
    weft_world        *world = NULL;
    wefti_device      *cpu = NULL;
    const bench_option options[] = {{"device", "cuda or cuda:N", BENCH_TEXT, &name},
                                    {"seconds", "of a window; there are five", BENCH_NUMBER, &window_s},
                                    {"json", "file for the records", BENCH_TEXT, &path},
                                    {0}};
    bench_read_options(argc, argv, "Row-local ops of the CUDA device, as a share of the bandwidth of a copy.", options);
    if (!cuda_call_open_gpu(name, &world)) return 0;
    cuda_call_must(wefti_cpu_create(&(wefti_cpu_options){.threads = {.count = 2}}, &cpu));
    FILE *json = bench_open_json(path);
    double copy = copy_rate(world->device, window_s);
    printf("limit: %.0f GB/s, a copy of 512 MiB, read and written\n", copy);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const rows_case *c = &cases[i];
        cuda_call        call = {.device = world->device};
        char             what[96];
        make(&call, c);
        cuda_call_open(&call, TIMES);
        bench_spread rate = rate_of(&call, window_s);
        bool right = check_slice(&call, cpu, 0);
        right = check_slice(&call, cpu, c->rows - 1) && right;
        snprintf(what, sizeof what, "%s %s [%lld,%lld]", c->name, weft_dtype_name(c->dtype), (long long)c->rows, (long long)c->length);
        printf("  %-64s %8.0f GB/s (%.0f to %.0f)  %5.1f %%%s\n", what, rate.median, rate.low, rate.high, 100 * rate.median / copy,
               right ? "" : "  WRONG");
        fflush(stdout);
        if (right) bench_write(json, &(bench_record){.bench = "cuda-rows", .what = what, .metric = "bandwidth", .unit = "GB/s", .spread = rate, .limit = copy});
        good = good && right;
        cuda_call_close(&call);
    }
    if (json) fclose(json);
    cpu->vtable->release(cpu);
    weft_world_release(world);
    return good ? 0 : 1;
}

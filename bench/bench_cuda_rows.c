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
    {"cross-entropy gradient of an odd vocabulary", WEFT_OP_CROSS_ENTROPY_BACKWARD, WEFT_BF16, 8192, 50257, 0},
    {"cross-entropy of ten classes", WEFT_OP_CROSS_ENTROPY, WEFT_F32, 4194304, 10, 0},
    {"cross-entropy gradient of ten classes", WEFT_OP_CROSS_ENTROPY_BACKWARD, WEFT_F32, 4194304, 10, 0},
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

/* --- a loss with its gradient behind it --- */

enum { BOTH_BUFFERS = 6 }; /* logits, labels, gradients of rows, losses, log-sum-exps, gradients */

/* Both calls TIMES/2 times over in one program, or one of them once. */
static wefti_program *both_program(wefti_device *device, const wefti_operand *x, const wefti_attrs *attrs, int first, int count) {
    wefti_operand operand[9] = {x[0], x[1], x[3], x[4], x[2], x[0], x[1], x[4], x[5]};
    wefti_call    pair[2] = {{.op = WEFT_OP_CROSS_ENTROPY, .attrs = attrs, .n_inputs = 2, .n_outputs = 2, .inputs = operand, .outputs = operand + 2, .name = "loss"},
                             {.op = WEFT_OP_CROSS_ENTROPY_BACKWARD, .attrs = attrs, .n_inputs = 4, .n_outputs = 1, .inputs = operand + 4, .outputs = operand + 8,
                              .name = "gradient"}};
    wefti_call     calls[TIMES];
    wefti_program *program = NULL;
    for (int i = 0; i < count; i++) calls[i] = pair[(first + i) % 2];
    cuda_call_must(device->vtable->compile(device, &(wefti_segment){.calls = calls, .n_calls = count, .n_buffers = BOTH_BUFFERS}, &program));
    return program;
}

/* Time of a pair; whether losses and gradients are those of the calls by themselves, bit for bit. */
static bench_spread both_time(wefti_device *device, int64_t rows, int64_t classes, double window_s, double *bytes_out, bool *right_out) {
    static const wefti_attrs none;
    cuda_call                self = {.device = device, .label_end = classes};
    cuda_call_begin(&self, WEFT_OP_CROSS_ENTROPY_BACKWARD, "loss and gradient", 3, 3); /* a holder of buffers, of which three are filled */
    self.label_end = classes;
    for (int32_t i = 0; i < BOTH_BUFFERS; i++)
        cuda_call_operand(&self, i, i == 0 || i == 5 ? WEFT_BF16 : i == 1 ? WEFT_I32 : WEFT_F32, i == 0 || i == 5 ? weft_shape(rows, classes) : weft_shape(rows));
    cuda_call_hold(&self);
    wefti_program *apart[2] = {both_program(device, self.operand, &none, 0, 1), both_program(device, self.operand, &none, 1, 1)};
    char          *values[2] = {malloc(self.bytes[5] + self.bytes[3]), malloc(self.bytes[5] + self.bytes[3])};
    if (!values[0] || !values[1]) exit(1);
    self.program = both_program(device, self.operand, &none, 0, TIMES);
    for (int k = 0; k < 2; k++) {
        if (k == 0)
            for (int p = 0; p < 2; p++) cuda_call_must(device->vtable->launch(apart[p], &(wefti_launch){.buffers = self.buffers}));
        else cuda_call_launch(&self);
        cuda_call_must(device->vtable->read(device, values[k], self.buffers[5], self.bytes[5]));
        cuda_call_must(device->vtable->read(device, values[k] + self.bytes[5], self.buffers[3], self.bytes[3]));
    }
    *right_out = memcmp(values[0], values[1], self.bytes[5] + self.bytes[3]) == 0;
    *bytes_out = 0;
    for (int i = 0; i < BOTH_BUFFERS; i++) *bytes_out += (double)self.bytes[i];
    bench_spread time = cuda_call_time(&self, TIMES / 2, window_s);
    for (int p = 0; p < 2; p++) device->vtable->release_program(apart[p]), free(values[p]);
    cuda_call_close(&self);
    return time;
}

static bool measure_both(wefti_device *device, int64_t rows, double copy, double window_s, FILE *json) {
    double       bytes;
    bool         right;
    bench_spread time = both_time(device, rows, 50304, window_s, &bytes, &right);
    bench_spread rate = {.median = bytes / time.median * 1e-9, .low = bytes / time.high * 1e-9, .high = bytes / time.low * 1e-9, .runs = time.runs};
    char         what[96];
    snprintf(what, sizeof what, "cross-entropy with its gradient bf16 [%lld,50304]", (long long)rows);
    cuda_call_show(json, "cuda-rows", what, rate, copy, right);
    return right;
}

int bench_cuda_rows(int argc, char **argv) {
    const char        *name = "cuda", *path = NULL;
    double             window_s = 0.02, most = 0;
    bool               good = true;
    weft_world        *world = NULL;
    wefti_device      *cpu = NULL;
    const bench_option options[] = {{"device", "cuda or cuda:N", BENCH_TEXT, &name},
                                    {"seconds", "of a window; there are five", BENCH_NUMBER, &window_s},
                                    {"rows", "of each case at most; 0: as many as fill a GPU", BENCH_NUMBER, &most},
                                    {"json", "file for the records", BENCH_TEXT, &path},
                                    {0}};
    bench_read_options(argc, argv, "Row-local ops of the CUDA device, as a share of the bandwidth of a copy.", options);
    if (!cuda_call_open_gpu(name, &world)) return 0;
    cuda_call_must(wefti_cpu_create(&(wefti_cpu_options){.threads = {.count = 2}}, &cpu));
    FILE *json = bench_open_json(path);
    double copy = cuda_call_copy_rate(world->device, most > 0 ? 1 << 12 : 1 << 27, window_s);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rows_case fewer = cases[i];
        if (most > 0 && (double)fewer.rows > most) fewer.rows = (int64_t)most;
        const rows_case *c = &fewer;
        cuda_call        call = {.device = world->device};
        char             what[96];
        make(&call, c);
        cuda_call_open(&call, TIMES);
        bench_spread rate = rate_of(&call, window_s);
        bool right = check_slice(&call, cpu, 0);
        right = check_slice(&call, cpu, c->rows - 1) && right;
        snprintf(what, sizeof what, "%s %s [%lld,%lld]", c->name, weft_dtype_name(c->dtype), (long long)c->rows, (long long)c->length);
        cuda_call_show(json, "cuda-rows", what, rate, copy, right);
        good = good && right;
        cuda_call_close(&call);
    }
    good = measure_both(world->device, most > 0 && most < 8192 ? (int64_t)most : 8192, copy, window_s, json) && good;
    if (json) fclose(json);
    cpu->vtable->release(cpu);
    weft_world_release(world);
    return good ? 0 : 1;
}

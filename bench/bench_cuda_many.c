/* What a step does once with all tensors of a network, on the CUDA device, as a share of the bandwidth that a copy reaches in the same run: AdamW
 * (cuda-adamw), and the global norm of gradients (cuda-norm).
 *
 * The tensors are GPT-2 124M's, a call each in one program, as plans put them, so what is measured is how they are done together. Each case is first
 * computed with the tensors of a narrow network, by the CPU device too, and compared; then timed. Bytes are those that must move: an update reads
 * parameter, gradient and two moments and writes all but the gradient; a norm reads gradients, and writes those that it widens on the way. */
#include <stdlib.h>
#include <string.h>

#include "core/cpu/cpu.h"
#include "core/iface/rule.h"
#include "core/iface/world.h"
#include "core/rules/rules.h"
#include "core/tensor/operand.h"
#include "cuda_call.h"

enum { LAYERS = 12, TENSORS = 4 + 12 * LAYERS, AT_ONCE = 15 /* sums that a program of a plan adds up */, CHAINS = (TENSORS + AT_ONCE - 1) / AT_ONCE };
enum { THETA, GRADIENT, HYPER, FIRST, SECOND, UPDATE_BUFFERS };
enum { X, WIDENED, SUMS, TOTALS, SCRATCH, NORM_BUFFERS };
enum { APART = 64 /* elements: where a tensor begins is a multiple of it */ };

typedef struct many_case {
    const char *name;
    weft_dtype  dtype; /* of parameters; of gradients */
    bool        widens;
} many_case;
static const many_case updates[] = {{"adamw f32", WEFT_F32, false}, {"adamw bf16, rounded at random", WEFT_BF16, false}};
static const many_case norms[] = {{"norm of gradients f32", WEFT_F32, false},
                                  {"norm of gradients bf16", WEFT_BF16, false},
                                  {"norm of gradients bf16 that are widened", WEFT_BF16, true}};

/* One program of all tensors. */
typedef struct many {
    cuda_call     call; /* a holder of buffers and the program */
    int32_t       n_calls;
    int64_t       elements; /* of all tensors; in memory with what lies between them */
    size_t        room;
    weft_shape    shape[TENSORS];
    int64_t       at[TENSORS];
    wefti_attrs   attrs[TENSORS + CHAINS];
    wefti_fused   squares[TENSORS], chains[CHAINS];
    wefti_operand inputs[TENSORS + CHAINS][AT_ONCE + 1], outputs[TENSORS + CHAINS][2];
    wefti_call    calls[TENSORS + CHAINS];
} many;

/* --- tensors --- */

static void place(many *self, int64_t vocabulary, int64_t context, int64_t w) {
    weft_shape *to = self->shape;
    *to++ = weft_shape(vocabulary, w);
    *to++ = weft_shape(context, w);
    for (int layer = 0; layer < LAYERS; layer++) {
        const weft_shape layers[] = {weft_shape(w),     weft_shape(w), weft_shape(w, 3 * w), weft_shape(3 * w), weft_shape(w, w),     weft_shape(w),
                                     weft_shape(w),     weft_shape(w), weft_shape(w, 4 * w), weft_shape(4 * w), weft_shape(4 * w, w), weft_shape(w)};
        memcpy(to, layers, sizeof layers);
        to += sizeof layers / sizeof *layers;
    }
    *to++ = weft_shape(w);
    *to++ = weft_shape(w);
    for (int32_t i = 0; i < TENSORS; i++) {
        int64_t n = weft_shape_elements(self->shape[i]);
        self->at[i] = (int64_t)self->room;
        self->elements += n;
        self->room += (size_t)((n + APART - 1) / APART * APART);
    }
}

static wefti_operand operand(int32_t buffer, weft_dtype dtype, weft_shape shape, int64_t at) {
    wefti_operand x = {.dtype = dtype, .shape = shape, .buffer = buffer, .offset_bytes = at * (int64_t)weft_dtype_bytes(dtype)};
    wefti_contiguous_strides(shape, x.stride);
    return x;
}

static wefti_call *add_call(many *self, weft_op op, const char *name, int32_t n_inputs, int32_t n_outputs) {
    int32_t     i = self->n_calls++;
    wefti_call *call = &self->calls[i];
    *call = (wefti_call){.op = op, .attrs = &self->attrs[i], .n_inputs = n_inputs, .n_outputs = n_outputs, .inputs = self->inputs[i], .outputs = self->outputs[i],
                         .scratch_buffer = SCRATCH, .name = name};
    return call;
}

/* Memory that is filled where it is read: of second moments, with numbers that are not below 0. */
static void hold(many *self, int32_t buffer, size_t bytes, weft_dtype dtype, bool positive) {
    wefti_device *device = self->call.device;
    self->call.bytes[buffer] = bytes;
    cuda_call_must(device->vtable->allocate(device, bytes, "tensors", &self->call.buffers[buffer]));
    int64_t slice = 1 << 20;
    size_t  each = weft_dtype_bytes(dtype), slice_bytes = (size_t)slice * each;
    char   *host = malloc(slice_bytes);
    if (!host) exit(1);
    for (int64_t i = 0; i < slice; i++) {
        double x = (double)((uint32_t)i * 2654435761u + (uint32_t)buffer * 40503u) * 0x1p-31 - 1;
        wefti_store_f64(host, i, dtype, positive && x < 0 ? -x : x);
    }
    for (size_t at = 0; at < bytes; at += slice_bytes)
        cuda_call_must(device->vtable->write(device, (char *)self->call.buffers[buffer] + at, host, bytes - at < slice_bytes ? bytes - at : slice_bytes));
    free(host);
}

static void compile(many *self, int32_t n_buffers) {
    wefti_device *device = self->call.device;
    self->call.n_inputs = n_buffers - 1; /* the last one stands where cuda_call has scratch */
    cuda_call_must(device->vtable->compile(device, &(wefti_segment){.calls = self->calls, .n_calls = self->n_calls, .n_buffers = n_buffers}, &self->call.program));
}

/* --- AdamW --- */

static void make_updates(many *self, const many_case *c) {
    const double hyper[WEFTI_HYPER_COUNT] = {1e-3, 1, 0, 3, 0, 0.9, 0.95, 1e-8, 1};
    for (int32_t i = 0; i < TENSORS; i++) {
        wefti_call    *call = add_call(self, WEFT_OP_UPDATE, "update", 5, 1);
        wefti_operand *of = self->inputs[i];
        for (int32_t k = 0; k < UPDATE_BUFFERS; k++) of[k] = operand(k, k == THETA ? c->dtype : WEFT_F32, self->shape[i], self->at[i]);
        of[HYPER] = operand(HYPER, WEFT_F64, weft_shape(WEFTI_HYPER_COUNT), 0);
        call->outputs = of; /* in place */
        self->attrs[i].update.rule = wefti_rule_of(WEFTI_RULE_ADAM);
        self->attrs[i].update.decay = self->shape[i].rank > 1 ? 0.1 : 0;
        self->attrs[i].update.key = c->dtype == WEFT_BF16 ? 1000 + (uint64_t)i : 0;
    }
    for (int32_t k = 0; k < UPDATE_BUFFERS; k++)
        if (k != HYPER) hold(self, k, self->room * weft_dtype_bytes(k == THETA ? c->dtype : WEFT_F32), k == THETA ? c->dtype : WEFT_F32, k == SECOND);
    hold(self, HYPER, sizeof hyper, WEFT_F64, true);
    cuda_call_must(self->call.device->vtable->write(self->call.device, self->call.buffers[HYPER], hyper, sizeof hyper));
    compile(self, UPDATE_BUFFERS);
}

/* --- the norm --- */

static int32_t add_instruction(wefti_fused *fused, weft_op op, weft_dtype dtype, int32_t a, int32_t b) {
    fused->instruction[fused->n_instructions] = (wefti_fused_instruction){.op = op, .dtype = dtype, .source = {a, b}};
    if (op == WEFT_OP_CAST) fused->instruction[fused->n_instructions].attrs.cast.dtype = (int32_t)dtype;
    return -++fused->n_instructions;
}

/* The sum of a tensor's squares, in f32, whose elements are widened before; and the wider ones, where those are wanted. */
static void add_squares(many *self, const many_case *c, int32_t i) {
    wefti_fused *fused = &self->squares[i];
    weft_shape   one = self->shape[i];
    wefti_call  *call = add_call(self, WEFT_OP_FUSED, "squares", 1, c->widens ? 2 : 1);
    int32_t      wide = c->dtype == WEFT_F32 ? 0 : add_instruction(fused, WEFT_OP_CAST, WEFT_F32, 0, 0), last;
    for (int32_t axis = 0; axis < one.rank; axis++) one.dim[axis] = 1;
    last = add_instruction(fused, WEFT_OP_SQUARE, WEFT_F32, wide, 0);
    fused->space = self->shape[i];
    fused->n_inputs = 1;
    self->inputs[i][0] = operand(X, c->dtype, self->shape[i], self->at[i]);
    if (c->widens) {
        self->outputs[i][fused->n_outputs] = operand(WIDENED, WEFT_F32, self->shape[i], self->at[i]);
        fused->output[fused->n_outputs++] = (wefti_fused_output){.instruction = -1 - wide, .reduce = -1};
    }
    self->outputs[i][fused->n_outputs] = operand(SUMS, WEFT_F32, one, i * APART);
    fused->output[fused->n_outputs++] = (wefti_fused_output){.instruction = -1 - last, .reduce = WEFT_OP_SUM, .axes = (1u << one.rank) - 1};
    self->attrs[i].fused.fused = fused;
    call->attrs = &self->attrs[i];
}

/* Adds sums up in f64, as many in a program as a plan has, the total so far first; the last one takes the root. */
static void add_chain(many *self, int32_t chain) {
    wefti_fused *fused = &self->chains[chain];
    int32_t      begin = chain * AT_ONCE, end = begin + AT_ONCE < TENSORS ? begin + AT_ONCE : TENSORS, at = self->n_calls, total = 0;
    wefti_call  *call = add_call(self, WEFT_OP_FUSED, "total", 0, 1);
    fused->space = weft_shape_scalar();
    if (chain > 0) self->inputs[at][fused->n_inputs++] = operand(TOTALS, WEFT_F64, fused->space, (chain - 1) * APART);
    for (int32_t i = begin; i < end; i++) {
        self->inputs[at][fused->n_inputs] = operand(SUMS, WEFT_F32, fused->space, i * APART);
        int32_t wide = add_instruction(fused, WEFT_OP_CAST, WEFT_F64, fused->n_inputs++, 0);
        total = i == 0 ? wide : add_instruction(fused, WEFT_OP_ADD, WEFT_F64, total, wide);
    }
    if (end == TENSORS) total = add_instruction(fused, WEFT_OP_SQRT, WEFT_F64, total, 0);
    fused->output[fused->n_outputs++] = (wefti_fused_output){.instruction = -1 - total, .reduce = -1};
    self->outputs[at][0] = operand(TOTALS, WEFT_F64, fused->space, chain * APART);
    self->attrs[at].fused.fused = fused;
    call->n_inputs = fused->n_inputs;
}

static void make_norm(many *self, const many_case *c) {
    size_t scratch = 0;
    for (int32_t i = 0; i < TENSORS; i++) add_squares(self, c, i);
    for (int32_t k = 0; k < CHAINS; k++) add_chain(self, k);
    for (int32_t i = 0; i < self->n_calls; i++) {
        cuda_call_must(self->call.device->vtable->query(self->call.device, &self->calls[i], &self->calls[i].scratch_bytes));
        self->calls[i].scratch_offset = (int64_t)scratch;
        scratch += ((size_t)self->calls[i].scratch_bytes + 255) / 256 * 256;
    }
    hold(self, X, self->room * weft_dtype_bytes(c->dtype), c->dtype, false);
    hold(self, WIDENED, (c->widens ? self->room : APART) * sizeof(float), WEFT_F32, false);
    hold(self, SUMS, TENSORS * APART * sizeof(float), WEFT_F32, false);
    hold(self, TOTALS, CHAINS * APART * sizeof(double), WEFT_F64, false);
    hold(self, SCRATCH, scratch + 256, WEFT_F32, false);
    compile(self, NORM_BUFFERS);
}

/* Whether the device takes the case. */
static bool takes(const many_case *c, wefti_device *device) {
    many   *probe = calloc(1, sizeof *probe);
    int64_t scratch;
    bool    good = true;
    if (!probe) exit(1);
    place(probe, 512, 64, 32);
    for (int32_t i = 0; i < TENSORS; i++) add_squares(probe, c, i);
    for (int32_t i = 0; i < TENSORS && good; i++) good = device->vtable->query(device, &probe->calls[i], &scratch) == WEFT_OK;
    free(probe);
    return good;
}

/* --- computing --- */

static many *open_many(const many_case *c, wefti_device *device, bool narrow) {
    many *self = calloc(1, sizeof *self);
    if (!self) exit(1);
    self->call.device = device;
    if (narrow) place(self, 503, 64, 33); /* of sizes that fill no access */
    else place(self, 50304, 1024, 768);
    if (c >= updates && c < updates + sizeof updates / sizeof *updates) make_updates(self, c);
    else make_norm(self, c);
    return self;
}
static void close_many(many *self) {
    cuda_call_close(&self->call);
    free(self);
}

static bool same(many *here, many *there, int32_t which, weft_dtype dtype) {
    char  *have = malloc(here->call.bytes[which]);
    double unit = dtype == WEFT_BF16 ? 0x1p-7 : 1e-5;
    bool   good = true;
    if (!have) exit(1);
    cuda_call_must(here->call.device->vtable->read(here->call.device, have, here->call.buffers[which], here->call.bytes[which]));
    for (int64_t i = 0; i < (int64_t)(here->call.bytes[which] / weft_dtype_bytes(dtype)) && good; i++) {
        double x = wefti_load_f64(have, i, dtype), y = wefti_load_f64(there->call.buffers[which], i, dtype);
        good = fabs(x - y) <= unit * fabs(y) + 1e-6;
        if (!good) fprintf(stderr, "error: buffer %d, element %lld is %.9g and should be %.9g\n", (int)which, (long long)i, x, y);
    }
    free(have);
    return good;
}

/* The case with a narrow network, here and on the CPU device. */
static bool check(const many_case *c, wefti_device *device, wefti_device *cpu, bool norm) {
    many *here = open_many(c, device, true), *there = open_many(c, cpu, true);
    bool  good = true;
    cuda_call_launch(&here->call);
    cuda_call_launch(&there->call);
    if (norm) good = same(here, there, SUMS, WEFT_F32) && same(here, there, TOTALS, WEFT_F64) && same(here, there, WIDENED, WEFT_F32);
    for (int32_t k = 0; k < UPDATE_BUFFERS && !norm && good; k++) good = k == HYPER || same(here, there, k, k == THETA ? c->dtype : WEFT_F32);
    close_many(here);
    close_many(there);
    return good;
}

static double bytes_of(const many *self, const many_case *c, bool norm) {
    double each = (double)weft_dtype_bytes(c->dtype);
    return (double)self->elements * (norm ? each + (c->widens ? 4 : 0) : 2 * each + 5 * 4);
}

static int measure_all(int argc, char **argv, const char *bench, const char *help, const many_case *cases, int n, bool norm) {
    const char        *name = "cuda", *path = NULL;
    double             window_s = 0.02;
    bool               toy = false, good = true;
    weft_world        *world = NULL;
    wefti_device      *cpu = NULL;
    const bench_option options[] = {{"device", "cuda, cuda:N or cpu", BENCH_TEXT, &name},
                                    {"toy", "a narrow network: for trying the program, not the device", BENCH_FLAG, &toy},
                                    {"seconds", "of a window; there are five", BENCH_NUMBER, &window_s},
                                    {"json", "file for the records", BENCH_TEXT, &path},
                                    {0}};
    bench_read_options(argc, argv, help, options);
    FILE  *json = bench_open_json(path);
    bool   there = cuda_call_open_gpu(name, &world);
    double limit = BENCH_UNMEASURED;
    cuda_call_must(wefti_cpu_create(&(wefti_cpu_options){.threads = {.count = 2}}, &cpu));
    if (there) limit = cuda_call_copy_rate(world->device, toy ? 1 << 12 : 1 << 27, window_s);
    for (int i = 0; i < n; i++) {
        char what[112];
        snprintf(what, sizeof what, "%s, %d tensors of %s", cases[i].name, (int)TENSORS, toy ? "a narrow network" : "GPT-2 124M");
        if (!there || (norm && !takes(&cases[i], world->device))) {
            cuda_call_unmeasured(json, bench, what, limit);
            continue;
        }
        bool         right = check(&cases[i], world->device, cpu, norm);
        many        *self = open_many(&cases[i], world->device, toy);
        bench_spread s = cuda_call_time(&self->call, 1, window_s);
        cuda_call_show(json, bench, what, bench_spread_over(s, bytes_of(self, &cases[i], norm) * 1e-9), limit, right);
        close_many(self);
        good = good && right;
    }
    if (json) fclose(json);
    cpu->vtable->release(cpu);
    weft_world_release(world);
    return good ? 0 : 1;
}

int bench_cuda_adamw(int argc, char **argv) {
    return measure_all(argc, argv, "cuda-adamw", "AdamW of all tensors of GPT-2 124M on the CUDA device, as a share of the bandwidth of a copy.", updates,
                       (int)(sizeof updates / sizeof *updates), false);
}
int bench_cuda_norm(int argc, char **argv) {
    return measure_all(argc, argv, "cuda-norm", "The norm of all gradients of GPT-2 124M on the CUDA device, as a share of the bandwidth of a copy.", norms,
                       (int)(sizeof norms / sizeof *norms), true);
}

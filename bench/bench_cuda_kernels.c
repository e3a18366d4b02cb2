/* Elementwise ops and fused programs, reductions, moves, picks and updates of the CUDA device, as a share of the bandwidth that a copy reaches
 * in the same run.
 *
 * Each case is first computed small, by the CPU device too, and compared; then timed at its size, where operands are larger than any
 * second-level cache. Bytes are those that must move: each operand once, a variable that is updated twice. `--device cpu --toy` runs the whole
 * of it anywhere, in seconds, for trying this file. */
#include <stdlib.h>
#include <string.h>

#include "core/cpu/cpu.h"
#include "core/iface/rule.h"
#include "core/iface/world.h"
#include "core/rules/rules.h"
#include "core/tensor/operand.h"
#include "cuda_call.h"

enum { TIMES = 8, SMALL_ROWS = 48 };

/* --- cases --- */

typedef struct kernel_case kernel_case;
struct kernel_case {
    const char *name;
    weft_op     op;
    weft_dtype  from, to; /* of inputs and outputs */
    int64_t     rows, length;
    void      (*make)(cuda_call *call, const kernel_case *c, int64_t rows);
    int32_t     kind; /* axes, rule, or program */
};

static void make_elementwise(cuda_call *call, const kernel_case *c, int64_t rows) {
    int32_t n = wefti_ops[c->op].inputs_max;
    cuda_call_begin(call, c->op, c->name, n, 1);
    for (int32_t i = 0; i < n; i++) cuda_call_operand(call, i, c->from, weft_shape(rows, c->length));
    cuda_call_operand(call, n, c->to, weft_shape(rows, c->length));
    if (c->op == WEFT_OP_CAST) call->attrs.cast.dtype = (int32_t)c->to;
}

/* Fused programs: chains as the planner makes them of layers. */
typedef enum fused_kind { BIAS_GELU, DROPOUT_ADD, GELU_GRADIENT, SWIGLU, LONG_CHAIN, BIAS_GELU_SUM } fused_kind;
static wefti_fused program;

static int32_t add_instruction(weft_op op, weft_dtype dtype, int32_t a, int32_t b) {
    wefti_fused_instruction *it = &program.instruction[program.n_instructions++];
    it->op = op;
    it->dtype = dtype;
    it->source[0] = a;
    it->source[1] = b;
    if (op == WEFT_OP_DROPOUT) it->attrs.dropout.p = 0.1, it->attrs.dropout.key = 77;
    return -program.n_instructions;
}

static void make_fused(cuda_call *call, const kernel_case *c, int64_t rows) {
    static const int32_t inputs[] = {[BIAS_GELU] = 2, [DROPOUT_ADD] = 3, [GELU_GRADIENT] = 2, [SWIGLU] = 2, [LONG_CHAIN] = 3, [BIAS_GELU_SUM] = 2};
    weft_shape space = weft_shape(rows, c->length);
    int32_t    n = inputs[c->kind], last = 0;
    memset(&program, 0, sizeof program);
    cuda_call_begin(call, WEFT_OP_FUSED, c->name, n, 1);
    for (int32_t i = 0; i <= n; i++) cuda_call_operand(call, i, c->from, space);
    switch ((fused_kind)c->kind) {
    case BIAS_GELU:
    case BIAS_GELU_SUM:
        cuda_call_operand(call, 1, c->from, weft_shape(c->length));
        last = add_instruction(WEFT_OP_GELU_TANH, c->from, add_instruction(WEFT_OP_ADD, c->from, 0, 1), 0);
        break;
    case DROPOUT_ADD:
        cuda_call_operand(call, 2, WEFT_I64, weft_shape_scalar());
        last = add_instruction(WEFT_OP_ADD, c->from, add_instruction(WEFT_OP_DROPOUT, c->from, 0, 2), 1);
        break;
    case GELU_GRADIENT: last = add_instruction(WEFT_OP_GELU_TANH_BACKWARD, c->from, 0, 1); break;
    case SWIGLU: last = add_instruction(WEFT_OP_MUL, c->from, add_instruction(WEFT_OP_SILU, c->from, 0, 0), 1); break;
    default:
        cuda_call_operand(call, 2, c->from, weft_shape(rows, 1));
        last = add_instruction(WEFT_OP_MUL, c->from, 0, 2);
        for (int k = 0; k < 8; k++) last = add_instruction(k % 2 ? WEFT_OP_MUL : WEFT_OP_ADD, c->from, last, 1);
    }
    program.space = space;
    program.n_inputs = n;
    program.n_outputs = 1;
    program.output[0] = (wefti_fused_output){.instruction = -1 - last, .reduce = -1};
    if (c->kind == BIAS_GELU_SUM) {
        call->n_outputs = program.n_outputs = 2;
        program.output[1] = (wefti_fused_output){.instruction = -1 - last, .reduce = WEFT_OP_SUM, .axes = 1};
        cuda_call_operand(call, n + 1, c->from, weft_shape(1, c->length));
    }
    call->attrs.fused.fused = &program;
}

static void make_reduction(cuda_call *call, const kernel_case *c, int64_t rows) {
    cuda_call_begin(call, c->op, c->name, 1, 1);
    cuda_call_operand(call, 0, c->from, weft_shape(rows, c->length));
    cuda_call_operand(call, 1, c->op == WEFT_OP_ARGMAX ? WEFT_I64 : c->to,
                      c->kind == 3 ? weft_shape_scalar() : c->kind == 1 ? weft_shape(c->length) : weft_shape(rows));
    call->attrs.reduce.axes = (uint32_t)c->kind;
}

/* Heads to the front, as attention wants them; and plain transposition. */
static void make_permutation(cuda_call *call, const kernel_case *c, int64_t rows) {
    static const int32_t heads[4] = {0, 2, 1, 3}, turned[4] = {0, 1, 3, 2};
    int64_t              t = rows < 64 ? 16 : 1024, from[4] = {rows / t, t, c->length / 64, 64}, to[4];
    if (c->kind) from[0] = 1, from[1] = 1, from[2] = rows, from[3] = c->length;
    cuda_call_begin(call, WEFT_OP_PERMUTE, c->name, 1, 1);
    for (int i = 0; i < 4; i++) {
        call->attrs.view.axes[i] = (c->kind ? turned : heads)[i];
        to[i] = from[call->attrs.view.axes[i]];
    }
    cuda_call_operand(call, 0, c->from, weft_shape_of(4, from));
    cuda_call_operand(call, 1, c->from, weft_shape_of(4, to));
}

/* Picks from a table of `kind` slices. */
static void make_picks(cuda_call *call, const kernel_case *c, int64_t rows) {
    weft_shape table = weft_shape(c->kind, c->length), picked = weft_shape(rows, c->length);
    bool       scatter = c->op == WEFT_OP_SCATTER_ADD;
    cuda_call_begin(call, c->op, c->name, scatter ? 3 : 2, 1);
    cuda_call_operand(call, 0, c->from, table);
    cuda_call_operand(call, 1, WEFT_I32, weft_shape(rows));
    if (scatter) cuda_call_operand(call, 2, c->from, picked);
    cuda_call_operand(call, scatter ? 3 : 2, c->from, scatter ? table : picked);
    call->label_end = c->kind;
}

static void make_random(cuda_call *call, const kernel_case *c, int64_t rows) {
    cuda_call_begin(call, WEFT_OP_RANDOM, c->name, 1, 1);
    cuda_call_operand(call, 0, WEFT_I64, weft_shape_scalar());
    cuda_call_operand(call, 1, c->to, weft_shape(rows, c->length));
    call->attrs.random.key = 5;
    call->attrs.random.kind = WEFTI_RANDOM_NORMAL;
}

static void make_update(cuda_call *call, const kernel_case *c, int64_t rows) {
    const wefti_rule *rule = wefti_rule_of((wefti_rule_id)c->kind);
    cuda_call_begin(call, WEFT_OP_UPDATE, c->name, 3 + rule->n_states, 1);
    for (int32_t i = 0; i < 4 + rule->n_states; i++) cuda_call_operand(call, i, c->from, weft_shape(rows, c->length));
    cuda_call_operand(call, 2, WEFT_F64, weft_shape(WEFTI_HYPER_COUNT));
    call->operand[3 + rule->n_states].buffer = 0; /* in place */
    call->attrs.update.rule = rule;
    call->attrs.update.decay = 0.1;
}

static const kernel_case cases[] = {
    {"add", WEFT_OP_ADD, WEFT_F32, WEFT_F32, 65536, 1024, make_elementwise, 0},
    {"add", WEFT_OP_ADD, WEFT_BF16, WEFT_BF16, 131072, 1024, make_elementwise, 0},
    {"cast", WEFT_OP_CAST, WEFT_F32, WEFT_BF16, 131072, 1024, make_elementwise, 0},
    {"cast", WEFT_OP_CAST, WEFT_BF16, WEFT_F32, 131072, 1024, make_elementwise, 0},
    {"exp", WEFT_OP_EXP, WEFT_F32, WEFT_F32, 65536, 1024, make_elementwise, 0},
    {"gelu", WEFT_OP_GELU, WEFT_BF16, WEFT_BF16, 65536, 3072, make_elementwise, 0},
    {"relu gradient", WEFT_OP_RELU_BACKWARD, WEFT_BF16, WEFT_BF16, 65536, 3072, make_elementwise, 0},
    {"equal", WEFT_OP_EQ, WEFT_F32, WEFT_BOOL, 65536, 1024, make_elementwise, 0},
    {"fused bias, gelu", WEFT_OP_FUSED, WEFT_BF16, WEFT_BF16, 65536, 3072, make_fused, BIAS_GELU},
    {"fused bias, gelu", WEFT_OP_FUSED, WEFT_F32, WEFT_F32, 32768, 3072, make_fused, BIAS_GELU},
    {"fused gelu gradient", WEFT_OP_FUSED, WEFT_BF16, WEFT_BF16, 65536, 3072, make_fused, GELU_GRADIENT},
    {"fused dropout, residual", WEFT_OP_FUSED, WEFT_BF16, WEFT_BF16, 131072, 768, make_fused, DROPOUT_ADD},
    {"fused swiglu", WEFT_OP_FUSED, WEFT_BF16, WEFT_BF16, 32768, 4096, make_fused, SWIGLU},
    {"fused chain of nine", WEFT_OP_FUSED, WEFT_F32, WEFT_F32, 65536, 1024, make_fused, LONG_CHAIN},
    {"fused bias, gelu and its column sums", WEFT_OP_FUSED, WEFT_BF16, WEFT_BF16, 65536, 3072, make_fused, BIAS_GELU_SUM},
    {"sum of rows", WEFT_OP_SUM, WEFT_BF16, WEFT_BF16, 131072, 1024, make_reduction, 2},
    {"sum of rows", WEFT_OP_SUM, WEFT_F32, WEFT_F32, 2048, 65536, make_reduction, 2},
    {"sum of columns", WEFT_OP_SUM, WEFT_BF16, WEFT_BF16, 65536, 3072, make_reduction, 1},
    {"sum of columns", WEFT_OP_SUM, WEFT_F32, WEFT_F32, 65536, 768, make_reduction, 1},
    {"sum of all", WEFT_OP_SUM, WEFT_F32, WEFT_F32, 131072, 1024, make_reduction, 3},
    {"maximum of columns", WEFT_OP_MAX, WEFT_F32, WEFT_F32, 65536, 1024, make_reduction, 1},
    {"argmax of rows", WEFT_OP_ARGMAX, WEFT_BF16, WEFT_I64, 16384, 50304 / 8, make_reduction, 2},
    {"permute heads", WEFT_OP_PERMUTE, WEFT_BF16, WEFT_BF16, 131072, 768, make_permutation, 0},
    {"transpose", WEFT_OP_PERMUTE, WEFT_F32, WEFT_F32, 8192, 8192, make_permutation, 1},
    {"transpose", WEFT_OP_PERMUTE, WEFT_BF16, WEFT_BF16, 16384, 8192, make_permutation, 1},
    {"gather from 50304", WEFT_OP_GATHER, WEFT_BF16, WEFT_BF16, 131072, 768, make_picks, 50304},
    {"scatter-add to 50304", WEFT_OP_SCATTER_ADD, WEFT_F32, WEFT_F32, 65536, 768, make_picks, 50304},
    {"scatter-add to 64", WEFT_OP_SCATTER_ADD, WEFT_F32, WEFT_F32, 65536, 768, make_picks, 64},
    {"normal numbers", WEFT_OP_RANDOM, WEFT_F32, WEFT_F32, 65536, 1024, make_random, 0},
    {"update by sgd with momentum", WEFT_OP_UPDATE, WEFT_F32, WEFT_F32, 65536, 1024, make_update, WEFTI_RULE_MOMENTUM},
    {"update by adamw", WEFT_OP_UPDATE, WEFT_F32, WEFT_F32, 65536, 1024, make_update, WEFTI_RULE_ADAM},
    {"update by adamw, small", WEFT_OP_UPDATE, WEFT_F32, WEFT_F32, 1, 768, make_update, WEFTI_RULE_ADAM},
};

/* --- computing --- */

/* Opens a call, with hyperparameters that make sense where it has any. */
static void open_call(cuda_call *call, int32_t times) {
    static const double hyper[WEFTI_HYPER_COUNT] = {1e-3, 1, 0, 3, 0, 0.9, 0.999, 1e-8, 1};
    if (call->label_end == 0) call->label_end = 1000; /* integers that are no index */
    cuda_call_open(call, times);
    if (call->op == WEFT_OP_UPDATE) cuda_call_must(call->device->vtable->write(call->device, call->buffers[2], hyper, sizeof hyper));
}

/* Bytes that must move. */
static double bytes_of(const cuda_call *call) {
    double bytes = 0;
    for (int32_t i = 0; i < call->n_inputs + call->n_outputs; i++) bytes += (double)call->bytes[i];
    for (int32_t i = 3; call->op == WEFT_OP_UPDATE && i < call->n_inputs; i++) bytes += (double)call->bytes[i];
    if (call->op == WEFT_OP_GATHER) bytes += (double)call->bytes[2] - (double)call->bytes[0]; /* of the table, what is picked */
    return bytes;
}

static bool same(const cuda_call *call, int32_t which, const void *have, const void *want) {
    weft_dtype dtype = call->operand[which].dtype;
    double     unit = dtype == WEFT_BF16 ? 0x1p-7 : dtype == WEFT_F16 ? 0x1p-10 : 1e-5;
    for (int64_t i = 0; i < wefti_operand_elements(&call->operand[which]); i++) {
        double x = wefti_load_f64(have, i, dtype), y = wefti_load_f64(want, i, dtype);
        if (fabs(x - y) <= unit * fabs(y) + 1e-4 || (isnan(x) && isnan(y))) continue;
        fprintf(stderr, "error: %s: operand %d, element %lld is %.9g and should be %.9g\n", call->name, (int)which, (long long)i, x, y);
        return false;
    }
    return true;
}

/* The case with few rows, here and on the CPU device. */
static bool check(const kernel_case *c, wefti_device *device, wefti_device *cpu) {
    cuda_call here = {.device = device}, there = {.device = cpu};
    int64_t   rows = c->rows < SMALL_ROWS ? c->rows : SMALL_ROWS;
    bool      good = true;
    c->make(&here, c, rows);
    open_call(&here, 1);
    c->make(&there, c, rows);
    open_call(&there, 1);
    cuda_call_launch(&here);
    cuda_call_launch(&there);
    int32_t first = c->op == WEFT_OP_UPDATE ? 0 : here.n_inputs, end = c->op == WEFT_OP_UPDATE ? here.n_inputs : here.n_inputs + here.n_outputs;
    for (int32_t i = first; i < end && good; i++) {
        void *have = malloc(here.bytes[i]);
        if (!have) exit(1);
        cuda_call_must(device->vtable->read(device, have, here.buffers[i], here.bytes[i]));
        good = same(&here, i, have, there.buffers[i]);
        free(have);
    }
    cuda_call_close(&here);
    cuda_call_close(&there);
    return good;
}

static bool is_taken(const kernel_case *c, wefti_device *device) {
    cuda_call call = {.device = device};
    int64_t   scratch;
    c->make(&call, c, c->rows < SMALL_ROWS ? c->rows : SMALL_ROWS);
    wefti_call one = {.op = call.op, .attrs = &call.attrs, .n_inputs = call.n_inputs, .n_outputs = call.n_outputs, .inputs = call.operand,
                      .outputs = call.operand + call.n_inputs, .name = call.name};
    return device->vtable->query(device, &one, &scratch) == WEFT_OK;
}

static bench_spread time_of(const kernel_case *c, wefti_device *device, int64_t rows, double window_s, double *bytes_out) {
    cuda_call call = {.device = device};
    c->make(&call, c, rows);
    open_call(&call, TIMES);
    *bytes_out = bytes_of(&call);
    bench_spread s = cuda_call_time(&call, TIMES, window_s);
    cuda_call_close(&call);
    return s;
}
static bench_spread rate_of(const kernel_case *c, wefti_device *device, int64_t rows, double window_s) {
    double       bytes;
    bench_spread s = time_of(c, device, rows, window_s, &bytes);
    return (bench_spread){.median = bytes / s.median * 1e-9, .low = bytes / s.high * 1e-9, .high = bytes / s.low * 1e-9, .runs = s.runs};
}

int bench_cuda_kernels(int argc, char **argv) {
    static const kernel_case copy = {"copy", WEFT_OP_COPY, WEFT_F32, WEFT_F32, 131072, 1024, make_elementwise, 0};
    const char        *name = "cuda", *path = NULL, *only = NULL;
    double             window_s = 0.02;
    bool               good = true, toy = false;
    weft_world        *world = NULL;
    wefti_device      *cpu = NULL;
    const bench_option options[] = {{"device", "cuda, cuda:N or cpu", BENCH_TEXT, &name},
                                    {"only", "cases whose name has this in it", BENCH_TEXT, &only},
                                    {"toy", "few rows: for trying the program, not the device", BENCH_FLAG, &toy},
                                    {"seconds", "of a window; there are five", BENCH_NUMBER, &window_s},
                                    {"json", "file for the records", BENCH_TEXT, &path},
                                    {0}};
    bench_read_options(argc, argv, "Memory-bound kernels of the CUDA device, as a share of the bandwidth of a copy.", options);
    if (!cuda_call_open_gpu(name, &world)) return 0;
    cuda_call_must(wefti_cpu_create(&(wefti_cpu_options){.threads = {.count = 2}}, &cpu));
    FILE  *json = bench_open_json(path);
    double limit = rate_of(&copy, world->device, toy ? SMALL_ROWS : copy.rows, window_s).median;
    printf("limit: %.0f GB/s, a copy, read and written\n", limit);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const kernel_case *c = &cases[i];
        char               what[112];
        if (only && !strstr(c->name, only)) continue;
        snprintf(what, sizeof what, "%s %s%s%s [%lld,%lld]", c->name, weft_dtype_name(c->from), c->from != c->to ? " to " : "",
                 c->from != c->to ? weft_dtype_name(c->to) : "", (long long)c->rows, (long long)c->length);
        if (!is_taken(c, world->device)) {
            printf("  %-64s unmeasured: %s\n", what, weft_error_message());
            continue;
        }
        bool         right = check(c, world->device, cpu);
        bench_spread rate = rate_of(c, world->device, toy && c->rows > SMALL_ROWS ? SMALL_ROWS : c->rows, window_s);
        cuda_call_show(toy ? NULL : json, "cuda-kernels", what, rate, limit, right);
        good = good && right;
    }
    if (json) fclose(json);
    cpu->vtable->release(cpu);
    weft_world_release(world);
    return good ? 0 : 1;
}

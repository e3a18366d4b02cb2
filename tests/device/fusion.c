/* Fused programs against the same instructions as calls of their own: equal to the bit. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor/operand.h"
#include "device/conformance.h"

enum { PROGRAMS = 150, CHAIN = 12 };

static uint64_t next(uint64_t *state) {
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return *state >> 33;
}

static const weft_op any_ops[] = {WEFT_OP_ADD, WEFT_OP_SUB, WEFT_OP_MUL,    WEFT_OP_DIV,   WEFT_OP_MAXIMUM,
                                  WEFT_OP_NEG, WEFT_OP_ABS, WEFT_OP_SQUARE, WEFT_OP_RELU,  WEFT_OP_CLAMP,
                                  WEFT_OP_LT,  WEFT_OP_EQ,  WEFT_OP_CAST,   WEFT_OP_WHERE, WEFT_OP_SIGN,
                                  WEFT_OP_NE,  WEFT_OP_LE,  WEFT_OP_GT,     WEFT_OP_GE,    WEFT_OP_MINIMUM,
                                  WEFT_OP_COPY};
/* Of two bools, where there are any. */
static const weft_op logical_ops[] = {WEFT_OP_AND, WEFT_OP_OR, WEFT_OP_NOT, WEFT_OP_EQ};
static const weft_op float_ops[] = {
    WEFT_OP_EXP,   WEFT_OP_TANH, WEFT_OP_SIGMOID,       WEFT_OP_GELU,          WEFT_OP_GELU_TANH,     WEFT_OP_SILU,
    WEFT_OP_LOG1P, WEFT_OP_SQRT, WEFT_OP_RSQRT,         WEFT_OP_RECIPROCAL,    WEFT_OP_ERF,           WEFT_OP_SOFTPLUS,
    WEFT_OP_SIN,   WEFT_OP_POW,  WEFT_OP_GELU_BACKWARD, WEFT_OP_RELU_BACKWARD, WEFT_OP_SILU_BACKWARD, WEFT_OP_DROPOUT,
    WEFT_OP_COS,   WEFT_OP_LOG,  WEFT_OP_EXPM1,         WEFT_OP_FLOOR,         WEFT_OP_CEIL,          WEFT_OP_ROUND,
    WEFT_OP_ISFINITE, WEFT_OP_GELU_TANH_BACKWARD};

typedef struct program {
    wefti_fused fused;
    argument    inputs[4]; /* 0..2 data, 3 the step of dropout */
} program;

static weft_dtype dtype_at(const program *p, int32_t source) {
    return source < 0 ? p->fused.instruction[-1 - source].dtype : p->inputs[source].dtype;
}

/* A random earlier value of the dtype; input 0 has the main one. */
static int32_t pick(const program *p, weft_dtype dtype, uint64_t *state) {
    int32_t found[CHAIN + 3], n = 0;
    for (int32_t i = 0; i < 3; i++)
        if (p->inputs[i].dtype == dtype) found[n++] = i;
    for (int32_t j = 0; j < p->fused.n_instructions; j++)
        if (p->fused.instruction[j].dtype == dtype) found[n++] = -1 - j;
    return n ? found[next(state) % (uint64_t)n] : INT32_MIN;
}

static void add_instruction(program *p, uint64_t *state) {
    int32_t                  j = p->fused.n_instructions, x = next(state) % 4 ? -j : 0;
    bool                     logical = next(state) % 8 == 0; /* input 2 is one */
    if (logical) x = pick(p, WEFT_BOOL, state);
    else if (x == 0 || dtype_at(p, x) == WEFT_BOOL) x = pick(p, p->inputs[0].dtype, state);
    weft_dtype               dtype = dtype_at(p, x);
    wefti_fused_instruction *it = &p->fused.instruction[j];
    bool                     floating = weft_dtype_is_float(dtype) && next(state) % 2;
    it->op = logical ? logical_ops[next(state) % WEFTI_COUNT(logical_ops)]
             : floating ? float_ops[next(state) % WEFTI_COUNT(float_ops)] : any_ops[next(state) % WEFTI_COUNT(any_ops)];
    it->dtype = dtype;
    it->source[0] = x;
    it->source[1] = pick(p, dtype, state);
    it->source[2] = pick(p, dtype, state);
    if (it->op == WEFT_OP_CLAMP) it->attrs.clamp.lo = -1, it->attrs.clamp.hi = 2;
    if ((it->op >= WEFT_OP_EQ && it->op <= WEFT_OP_GE) || it->op == WEFT_OP_ISFINITE) it->dtype = WEFT_BOOL;
    if (it->op == WEFT_OP_DROPOUT) it->source[1] = 3, it->attrs.dropout.p = 0.25, it->attrs.dropout.key = 99;
    if (it->op == WEFT_OP_CAST) {
        static const weft_dtype to[] = {WEFT_F32, WEFT_BF16, WEFT_F16, WEFT_F64, WEFT_I32};
        it->dtype = to[next(state) % WEFTI_COUNT(to)];
        it->attrs.cast.dtype = it->dtype;
    }
    if (it->op == WEFT_OP_WHERE) {
        it->source[1] = x;
        it->source[0] = pick(p, WEFT_BOOL, state);
        if (it->source[0] == INT32_MIN) it->op = WEFT_OP_NEG, it->source[0] = x;
    }
    p->fused.n_instructions++;
}

static program random_program(uint64_t seed) {
    static const weft_shape spaces[] = {{0, {0}},        {1, {5}},      {2, {7, 33}},  {3, {4, 5, 6}},
                                        {2, {130, 257}}, {2, {1, 300}}, {3, {2, 0, 3}},  {2, {700, 96}}, {3, {5, 40, 24}}};
    static const weft_dtype dtypes[] = {WEFT_F32, WEFT_F32, WEFT_F64, WEFT_BF16, WEFT_F16, WEFT_I32};
    program                 p;
    uint64_t                state = seed * 77 + 5;
    memset(&p, 0, sizeof p);
    next(&state);
    p.fused.space = spaces[next(&state) % WEFTI_COUNT(spaces)];
    p.fused.n_inputs = 4;
    weft_dtype dtype = dtypes[next(&state) % WEFTI_COUNT(dtypes)];
    for (int i = 0; i < 3; i++) {
        layout how = (layout)(next(&state) % LAYOUT_COUNT);
        p.inputs[i] = (argument){i == 2 ? WEFT_BOOL : dtype, p.fused.space, how, -3, 3, i == 0 && seed % 3 == 0};
    }
    p.inputs[3] = (argument){WEFT_I64, p.fused.space, PLAIN, 5, 6, false};
    int32_t length = 1 + (int32_t)(next(&state) % CHAIN);
    while (p.fused.n_instructions < length) add_instruction(&p, &state);
    p.fused.n_outputs = 1 + (int32_t)(next(&state) % 3);
    for (int32_t k = 0; k < p.fused.n_outputs; k++) {
        wefti_fused_output *out = &p.fused.output[k];
        out->instruction = k == 0 ? length - 1 : (int32_t)(next(&state) % (uint64_t)length);
        out->reduce = -1;
        weft_dtype result = p.fused.instruction[out->instruction].dtype;
        if (next(&state) % 2 || result == WEFT_BOOL || weft_shape_elements(p.fused.space) == 0) continue;
        static const weft_op reduces[] = {WEFT_OP_SUM, WEFT_OP_MEAN, WEFT_OP_MAX, WEFT_OP_MIN};
        out->reduce = reduces[next(&state) % (weft_dtype_is_float(result) ? 4 : 1)];
        out->axes = (uint32_t)(next(&state) % (1u << p.fused.space.rank));
        out->count = out->reduce == WEFT_OP_MEAN && next(&state) % 2 ? 13 : 0;
    }
    return p;
}

static size_t bytes_of(argument one) { return (size_t)weft_shape_elements(one.shape) * weft_dtype_bytes(one.dtype); }

/* A result as an input of the next call. */
static tensor read_tensor(argument one, const void *data) {
    tensor t = tensor_create(one.dtype, one.shape);
    for (int64_t i = 0; i < t.n; i++) {
        if (weft_dtype_is_float(one.dtype)) t.f[i] = wefti_load_f64(data, i, one.dtype);
        else t.i[i] = wefti_load_i64(data, i, one.dtype), t.f[i] = (double)t.i[i];
    }
    return t;
}

/* NaNs may differ in sign and payload: those are no values. */
static bool same_values(argument one, const void *a, const void *b) {
    if (memcmp(a, b, bytes_of(one)) == 0) return true;
    for (int64_t i = 0; i < weft_shape_elements(one.shape); i++) {
        size_t bytes = weft_dtype_bytes(one.dtype);
        double x = wefti_load_f64(a, i, one.dtype), y = wefti_load_f64(b, i, one.dtype);
        if (memcmp((const char *)a + (size_t)i * bytes, (const char *)b + (size_t)i * bytes, bytes) != 0 &&
            !(isnan(x) && isnan(y)))
            return false;
    }
    return true;
}

static test_case one_instruction(const program *p, int32_t j) {
    const wefti_fused_instruction *it = &p->fused.instruction[j];
    test_case                      one;
    memset(&one, 0, sizeof one);
    one.op = it->op;
    one.attrs = it->attrs;
    one.n_inputs = wefti_ops[it->op].inputs_max;
    one.n_outputs = 1;
    for (int32_t k = 0; k < one.n_inputs; k++) {
        int32_t s = it->source[k];
        one.inputs[k] =
            s < 0 ? (argument){.dtype = p->fused.instruction[-1 - s].dtype, .shape = p->fused.space} : p->inputs[s];
        if (it->op == WEFT_OP_DROPOUT && k == 1)
            one.inputs[k] = (argument){WEFT_I64, weft_shape_scalar(), PLAIN, 5, 6, false};
    }
    one.outputs[0] = (argument){.dtype = it->dtype, .shape = p->fused.space};
    return one;
}

static argument output_type(const program *p, int32_t k) {
    const wefti_fused_output *out = &p->fused.output[k];
    argument                  one = {.dtype = p->fused.instruction[out->instruction].dtype, .shape = p->fused.space};
    for (int32_t axis = 0; out->reduce >= 0 && axis < one.shape.rank; axis++)
        if (out->axes >> axis & 1) one.shape.dim[axis] = 1;
    return one;
}

/* The reduction of an instruction's stored result. */
static test_case one_reduction(const program *p, int32_t k) {
    const wefti_fused_output *out = &p->fused.output[k];
    test_case                 one;
    memset(&one, 0, sizeof one);
    one.op = (weft_op)out->reduce;
    one.attrs.reduce.axes = out->axes;
    one.attrs.reduce.keep = 1;
    one.attrs.reduce.count = out->count;
    one.n_inputs = one.n_outputs = 1;
    one.inputs[0] = (argument){.dtype = p->fused.instruction[out->instruction].dtype, .shape = p->fused.space};
    one.outputs[0] = output_type(p, k);
    return one;
}

static bool check_program(wefti_device *device, program *p, uint64_t seed, char why[256]) {
    tensor    inputs[4], values[CHAIN];
    void     *stored[CHAIN] = {NULL}, *whole[3] = {NULL};
    test_case fused;
    memset(&fused, 0, sizeof fused);
    fused.op = WEFT_OP_FUSED;
    fused.attrs.fused.fused = &p->fused;
    fused.n_inputs = 4;
    fused.n_outputs = p->fused.n_outputs;
    for (int i = 0; i < 4; i++)
        fused.inputs[i] = p->inputs[i], inputs[i] = tensor_draw(&p->inputs[i], seed + (uint64_t)i);
    for (int32_t k = 0; k < fused.n_outputs; k++) fused.outputs[k] = output_type(p, k);
    bool good = compute(device, &fused, inputs, whole, why);
    int32_t done = 0;
    for (int32_t j = 0; good && j < p->fused.n_instructions; j++) {
        test_case one = one_instruction(p, j);
        tensor    sources[3];
        for (int32_t k = 0; k < one.n_inputs; k++) {
            int32_t s = p->fused.instruction[j].source[k];
            sources[k] = s < 0 ? values[-1 - s] : inputs[s];
        }
        int64_t step = 5;
        if (one.op == WEFT_OP_DROPOUT) sources[1] = (tensor){.dtype = WEFT_I64, .n = 1, .i = &step};
        good = compute(device, &one, sources, &stored[j], why);
        if (good) values[done++] = read_tensor(one.outputs[0], stored[j]);
    }
    for (int32_t k = 0; good && k < fused.n_outputs; k++) {
        const wefti_fused_output *out = &p->fused.output[k];
        void                     *apart = NULL;
        test_case                 reduction = one_reduction(p, k);
        if (out->reduce >= 0 && !compute(device, &reduction, &values[out->instruction], &apart, why)) good = false;
        else if (!same_values(fused.outputs[k], whole[k], apart ? apart : stored[out->instruction])) {
            snprintf(why, 256, "output %d (%s of %s) differs", (int)k,
                     out->reduce >= 0 ? wefti_ops[out->reduce].name : "whole",
                     wefti_ops[p->fused.instruction[out->instruction].op].name);
            good = false;
        }
        free(apart);
    }
    for (int i = 0; i < 4; i++) tensor_release(&inputs[i]);
    for (int32_t j = 0; j < done; j++) tensor_release(&values[j]);
    for (int32_t j = 0; j < CHAIN; j++) free(stored[j]);
    for (int32_t k = 0; k < 3; k++) free(whole[k]);
    return good;
}

int conformance_programs = PROGRAMS;

void conformance_fusion(wefti_device *device) {
    int wrong = 0;
    for (uint64_t seed = 1; seed <= (uint64_t)conformance_programs; seed++) {
        program p = random_program(seed);
        char    why[256] = "";
        for (int32_t k = 0; k < p.fused.n_outputs && !device->vtable->fuses_reductions; k++)
            p.fused.output[k] = (wefti_fused_output){.instruction = p.fused.output[k].instruction, .reduce = -1};
        if (check_program(device, &p, seed, why) || ++wrong > 10) continue;
        fprintf(stderr, "  program %d over %s of %s:", (int)seed, weft_shape_text(p.fused.space).text,
                weft_dtype_name(p.inputs[0].dtype));
        for (int32_t j = 0; j < p.fused.n_instructions; j++)
            fprintf(stderr, " %s", wefti_ops[p.fused.instruction[j].op].name);
        fprintf(stderr, ": %s\n", why);
    }
    cr_assert_eq(wrong, 0, "%d of %d programs differ", wrong, conformance_programs);
}

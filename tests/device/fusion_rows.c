/* Fused programs that normalise rows, against their definition in f64: the chain before and behind, both results of the normalisation, and sums over
 * all rows. What is rounded on the way is so here, too; it may then fall to the other side. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor/operand.h"
#include "device/conformance.h"

static int32_t add(wefti_fused *p, weft_op op, weft_dtype dtype, int32_t a, int32_t b) {
    wefti_fused_instruction *it = &p->instruction[p->n_instructions++];
    *it = (wefti_fused_instruction){.op = op, .dtype = dtype, .source = {a, b}};
    return -p->n_instructions;
}
static int32_t normalize(wefti_fused *p, weft_op op, weft_dtype dtype, int32_t x, int32_t y, int32_t scale, int32_t axes, int32_t rms) {
    int32_t it = add(p, op, dtype, x, y);
    p->instruction[-1 - it].source[2] = scale;
    p->instruction[-1 - it].attrs.rows.axes = axes, p->instruction[-1 - it].attrs.rows.rms = rms, p->instruction[-1 - it].attrs.rows.eps = 1e-3;
    return it;
}
static void give(wefti_fused *p, int32_t instruction, int32_t reduce, uint32_t axes) {
    p->output[p->n_outputs++] = (wefti_fused_output){.instruction = -1 - instruction, .reduce = reduce, .axes = axes};
}

typedef struct rows_case {
    weft_dtype dtype;
    weft_shape space;
    int32_t    axes, rms;
} rows_case;

/* The axes that rows have, and the others, as masks. */
static uint32_t row_mask(const rows_case *c) { return (1u << c->space.rank) - (1u << (c->space.rank - c->axes)); }
static uint32_t lead_mask(const rows_case *c) { return (1u << (c->space.rank - c->axes)) - 1; }
static weft_shape without(weft_shape shape, uint32_t axes) {
    for (int32_t axis = 0; axis < shape.rank; axis++)
        if (axes >> axis & 1) shape.dim[axis] = 1;
    return shape;
}

static void describe(const rows_case *c, const wefti_fused *p, test_case *one) {
    memset(one, 0, sizeof *one);
    one->op = WEFT_OP_FUSED;
    one->attrs.fused.fused = (wefti_fused *)(uintptr_t)p;
    one->n_inputs = p->n_inputs;
    one->n_outputs = p->n_outputs;
    for (int32_t i = 0; i < p->n_inputs; i++) one->inputs[i] = (argument){c->dtype, c->space, PLAIN, -2, 3, false};
    for (int32_t k = 0; k < p->n_outputs; k++) {
        const wefti_fused_output *out = &p->output[k];
        one->outputs[k] = (argument){.dtype = out->reduce == WEFT_OP_NORMALIZE ? WEFT_F32 : p->instruction[out->instruction].dtype,
                                     .shape = out->reduce < 0 ? c->space : without(c->space, out->axes)};
    }
}

/* y = normalize(a + b), z = y * gamma + a in f32; outputs a + b, y, the rows' scales, z, and the sum of y over rows. */
static wefti_fused forward_of(const rows_case *c) {
    wefti_fused p;
    memset(&p, 0, sizeof p);
    p.space = c->space;
    p.n_inputs = 3;
    int32_t x = add(&p, WEFT_OP_ADD, c->dtype, 0, 1), y = normalize(&p, WEFT_OP_NORMALIZE, c->dtype, x, 0, 0, c->axes, c->rms);
    int32_t z = add(&p, WEFT_OP_ADD, c->dtype, add(&p, WEFT_OP_MUL, c->dtype, y, 2), 0);
    give(&p, x, -1, 0);
    give(&p, y, -1, 0);
    give(&p, y, WEFT_OP_NORMALIZE, row_mask(c));
    give(&p, z, -1, 0);
    give(&p, y, WEFT_OP_SUM, lead_mask(c));
    return p;
}

/* From gradient dz of normalize(x) * gamma, y, scales: dx + rest; sums over rows of dz, of dz * y, and of the result. */
static wefti_fused backward_of(const rows_case *c) {
    wefti_fused p;
    memset(&p, 0, sizeof p);
    p.space = c->space;
    p.n_inputs = 5; /* dz, y, scales, gamma, rest */
    int32_t dz = add(&p, WEFT_OP_COPY, c->dtype, 0, 0), m = add(&p, WEFT_OP_MUL, c->dtype, 0, 1), g = add(&p, WEFT_OP_MUL, c->dtype, 0, 3);
    int32_t dx = normalize(&p, WEFT_OP_NORMALIZE_BACKWARD, c->dtype, g, 1, 2, c->axes, c->rms), sum = add(&p, WEFT_OP_ADD, c->dtype, dx, 4);
    give(&p, sum, -1, 0);
    give(&p, dz, WEFT_OP_SUM, lead_mask(c));
    give(&p, m, WEFT_OP_SUM, lead_mask(c));
    give(&p, sum, WEFT_OP_MEAN, lead_mask(c));
    return p;
}

/* --- what is to come out --- */

static double at(const tensor *t, int64_t r, int64_t i, int64_t length) { /* of a whole input, a row for all, or an element a row */
    int64_t elements = t->n;
    return elements == length ? t->f[i] : t->f[elements % length == 0 && elements > length ? r * length + i : r];
}

static void expect_forward(const rows_case *c, const tensor *in, int64_t rows, int64_t length, double **out) {
    for (int64_t r = 0; r < rows; r++) {
        double mean = 0, second = 0, *x = out[0] + r * length;
        for (int64_t i = 0; i < length; i++) x[i] = round_to(in[0].f[r * length + i] + in[1].f[r * length + i], c->dtype), mean += x[i] / (double)length;
        if (c->rms) mean = 0;
        for (int64_t i = 0; i < length; i++) second += (x[i] - mean) * (x[i] - mean) / (double)length;
        out[2][r] = pow(second + 1e-3, -0.5);
        for (int64_t i = 0; i < length; i++) {
            double y = round_to((x[i] - mean) * out[2][r], c->dtype);
            out[1][r * length + i] = y;
            out[3][r * length + i] = round_to(round_to(y * at(&in[2], r, i, length), c->dtype) + in[0].f[r * length + i], c->dtype);
            out[4][i] += y;
        }
    }
}

static void expect_backward(const rows_case *c, const tensor *in, int64_t rows, int64_t length, double **out) {
    for (int64_t r = 0; r < rows; r++) {
        const double *dz = in[0].f + r * length, *y = in[1].f + r * length, *rest = in[4].f + r * length;
        double        mean = 0, along = 0;
        for (int64_t i = 0; i < length; i++) {
            double g = round_to(dz[i] * at(&in[3], r, i, length), c->dtype);
            mean += c->rms ? 0 : g / (double)length;
            along += g * y[i] / (double)length;
            out[1][i] += dz[i];
            out[2][i] += round_to(dz[i] * y[i], c->dtype);
        }
        for (int64_t i = 0; i < length; i++) {
            double g = round_to(dz[i] * at(&in[3], r, i, length), c->dtype);
            double sum = round_to(round_to(in[2].f[r] * (g - mean - y[i] * along), c->dtype) + rest[i], c->dtype);
            out[0][r * length + i] = sum;
            out[3][i] += sum / (double)rows;
        }
    }
}

static bool check(wefti_device *device, const rows_case *c, bool backward, char why[256]) {
    wefti_fused p = backward ? backward_of(c) : forward_of(c);
    test_case   one;
    tensor      in[5];
    double     *want[5] = {NULL};
    void       *got[MOST_OUTPUTS] = {NULL};
    int64_t     rows = weft_shape_elements(without(c->space, row_mask(c))), length = weft_shape_elements(c->space) / rows;
    double      unit = c->dtype == WEFT_BF16 ? 0x1p-7 : c->dtype == WEFT_F16 ? 0x1p-10 : 1e-6;
    describe(c, &p, &one);
    if (backward) one.inputs[2] = (argument){WEFT_F32, without(c->space, row_mask(c)), PLAIN, 0.2, 2, false}, one.inputs[3].shape = without(c->space, lead_mask(c));
    else one.inputs[2].shape = without(c->space, lead_mask(c));
    for (int32_t i = 0; i < p.n_inputs; i++) in[i] = tensor_draw(&one.inputs[i], 31 + 7 * (uint64_t)i);
    for (int32_t k = 0; k < p.n_outputs; k++) cr_assert_not_null(want[k] = calloc((size_t)(rows * length), sizeof *want[k]));
    (backward ? expect_backward : expect_forward)(c, in, rows, length, want);
    bool good = compute(device, &one, in, got, why);
    for (int32_t k = 0; k < p.n_outputs && good; k++) {
        bool   summed = p.output[k].reduce == WEFT_OP_SUM || p.output[k].reduce == WEFT_OP_MEAN;
        double size = p.output[k].reduce == WEFT_OP_SUM ? (double)rows : 1; /* of the terms, each of which may have been rounded otherwise */
        for (int64_t i = 0; i < weft_shape_elements(one.outputs[k].shape) && good; i++) {
            double have = wefti_load_f64(got[k], i, one.outputs[k].dtype);
            good = fabs(have - want[k][i]) <= 2 * unit * fabs(want[k][i]) + (summed ? sqrt(size) * 4 : 8) * unit;
            if (!good) snprintf(why, 256, "output %d, element %lld is %.9g and should be %.9g", (int)k, (long long)i, have, want[k][i]);
        }
    }
    for (int32_t i = 0; i < p.n_inputs; i++) tensor_release(&in[i]);
    for (int32_t k = 0; k < p.n_outputs; k++) free(want[k]), free(got[k]);
    return good;
}

void conformance_fused_rows(wefti_device *device) {
    static const rows_case cases[] = {{WEFT_BF16, {2, {37, 768}}, 1, 0},  {WEFT_BF16, {3, {3, 5, 1536}}, 1, 1}, {WEFT_F32, {2, {9, 260}}, 1, 0},
                                      {WEFT_F16, {3, {7, 4, 136}}, 2, 0}, {WEFT_F32, {2, {2, 5000}}, 1, 1},     {WEFT_BF16, {2, {1700, 256}}, 1, 0}};
    int                    wrong = 0;
    for (size_t i = 0; i < WEFTI_COUNT(cases); i++)
        for (int backward = 0; backward < 2; backward++) {
            char why[256] = "";
            if (check(device, &cases[i], backward, why)) continue;
            wrong++;
            fprintf(stderr, "  normalised rows %s of %s%s: %s\n", weft_shape_text(cases[i].space).text, weft_dtype_name(cases[i].dtype),
                    backward ? ", backward" : "", why);
        }
    cr_assert_eq(wrong, 0, "%d programs with normalised rows differ", wrong);
}

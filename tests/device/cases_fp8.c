/* Cases and definition of FP8_CAST and FP8_MATMUL. What a code stands for is written down here by the formats' definition (Micikevicius et al. 2022),
 * apart from the conversions that are tried; casts are the nearest of all 256 numbers, by looking at each. */
#include <math.h>
#include <string.h>

#include "core/tensor/fp8.h"
#include "device/conformance.h"

double conformance_fp8_sums;

static double number_of(int64_t code, int32_t form) {
    int    fraction = form == WEFTI_FP8_E4M3 ? 3 : 2, bias = form == WEFTI_FP8_E4M3 ? 7 : 15;
    int    exponent = (int)(code >> fraction & (form == WEFTI_FP8_E4M3 ? 15 : 31)), bits = (int)(code & ((1 << fraction) - 1));
    double sign = code & 128 ? -1 : 1;
    if (form == WEFTI_FP8_E4M3 && exponent == 15 && bits == 7) return copysign(NAN, sign);
    if (form == WEFTI_FP8_E5M2 && exponent == 31) return bits ? copysign(NAN, sign) : sign * INFINITY;
    if (exponent == 0) return sign * ldexp(bits, 1 - bias - fraction);
    return sign * ldexp((1 << fraction) + bits, exponent - bias - fraction);
}

/* The nearest code, the even one of two: NaN and what is infinite go by themselves. */
static int64_t code_of(double value, double scale, int32_t form) {
    int64_t sign = signbit(value) ? 128 : 0, best = 0;
    int64_t largest = form == WEFTI_FP8_E4M3 ? 0x7e : 0x7b;
    if (isnan(value)) return sign | 0x7f;
    if (isinf(value)) return sign | (form == WEFTI_FP8_E4M3 ? 0x7f : 0x7c);
    for (int64_t code = 1; code <= largest; code++) {
        double here = fabs(number_of(code, form) - fabs(value) / scale), there = fabs(number_of(best, form) - fabs(value) / scale);
        if (here < there || (here == there && code % 2 == 0)) best = code;
    }
    return sign | best;
}

/* The least power of two, from 2^-126 on, under which nothing finite is beyond the largest number. */
static double scale_of(const tensor *x, int32_t form) {
    double most = 0, largest = form == WEFTI_FP8_E4M3 ? 448 : 57344;
    for (int64_t i = 0; i < x->n; i++)
        if (isfinite(x->f[i]) && fabs(x->f[i]) > most) most = fabs(x->f[i]);
    int exponent = -126;
    while (ldexp(largest, exponent) < most) exponent++;
    return ldexp(1, exponent);
}

static void define_cast(const test_case *self, const tensor *x, tensor *outputs) {
    int64_t columns = x->shape.dim[x->shape.rank - 1], rows = columns ? x->n / columns : 0;
    int32_t form = self->attrs.fp8.form[0], layouts = self->attrs.fp8.layouts;
    double  scale = scale_of(x, form);
    for (int64_t i = 0; i < x->n; i++) {
        int64_t code = code_of(x->f[i], scale, form);
        if (layouts & WEFTI_FP8_ROWS) outputs[0].i[i] = code;
        if (layouts & WEFTI_FP8_COLUMNS) outputs[1].i[i % columns * rows + i / columns] = code;
    }
    outputs[2].f[0] = scale;
}

void define_fp8(const test_case *self, const tensor *inputs, tensor *outputs) {
    const tensor *a = &inputs[0], *b = &inputs[1];
    if (self->op == WEFT_OP_FP8_CAST) {
        define_cast(self, a, outputs);
        return;
    }
    int64_t m = a->shape.dim[0], n = b->shape.dim[0], k = a->shape.dim[1];
    double  scale = inputs[2].f[0] * inputs[3].f[0];
    for (int64_t i = 0; i < m * n; i++) {
        double sum = 0, size = 0;
        for (int64_t l = 0; l < k; l++) {
            double term = number_of(a->i[i / n * k + l], self->attrs.fp8.form[0]) * number_of(b->i[i % n * k + l], self->attrs.fp8.form[1]);
            sum += term;
            size += fabs(term);
        }
        outputs[0].f[i] = sum * scale;
        outputs[0].scale[i] = size * scale * (conformance_fp8_sums > 0 ? conformance_fp8_sums / 2e-6 : 1); /* conformance.c allows 2e-6 of it */
    }
}

/* ---- casts ---- */

/* All 256 numbers, and those halfway between neighbours, a little below and a little above: as many as there is room for. */
static void give_all_numbers(const test_case *self, tensor *inputs) {
    int32_t form = self->attrs.fp8.form[0];
    for (int64_t i = 0; i < inputs[0].n; i++) {
        int64_t code = i % 256, way = i / 256;
        double  value = number_of(code, form), next = number_of((code & 127) < (form == WEFTI_FP8_E4M3 ? 0x7e : 0x7b) ? code + 1 : code, form);
        if (way > 0 && isfinite(value)) value = (value + next) / 2 * (way == 1 ? 1 : way == 2 ? 1 - 0x1p-7 : 1 + 0x1p-7);
        inputs[0].f[i] = round_to(value, inputs[0].dtype);
    }
}

/* Magnitudes over the whole range of the type, subnormal ones of the form's too. */
static void give_all_sizes(const test_case *self, tensor *inputs) {
    (void)self;
    for (int64_t i = 0; i < inputs[0].n; i++)
        if (isfinite(inputs[0].f[i])) inputs[0].f[i] = round_to(ldexp(inputs[0].f[i], (int)(i * 7 % 50) - 25), inputs[0].dtype);
}

static test_case cast_case(weft_dtype dtype, weft_shape x, int32_t form, int32_t layouts, layout how) {
    int64_t   columns = x.dim[x.rank - 1], rows = columns ? weft_shape_elements(x) / columns : 0;
    test_case one;
    memset(&one, 0, sizeof one);
    one.op = WEFT_OP_FP8_CAST;
    one.n_inputs = 1;
    one.n_outputs = 3;
    one.inputs[0] = (argument){dtype, x, how, -3, 3, false};
    one.outputs[0] = (argument){.dtype = WEFT_U8, .shape = weft_shape(layouts & WEFTI_FP8_ROWS ? rows : 0, columns)};
    one.outputs[1] = (argument){.dtype = WEFT_U8, .shape = weft_shape(layouts & WEFTI_FP8_COLUMNS ? columns : 0, rows)};
    one.outputs[2] = (argument){.dtype = WEFT_F32, .shape = weft_shape_scalar()};
    one.attrs.fp8.form[0] = form;
    one.attrs.fp8.layouts = layouts;
    one.seed = 17;
    return one;
}

static void visit_casts(case_visitor visit, void *context, weft_dtype dtype, int32_t form) {
    const weft_shape shapes[] = {weft_shape(1), weft_shape(7), weft_shape(1, 5), weft_shape(5, 1), weft_shape(3, 0), weft_shape(0, 3),
                                 weft_shape(16, 32), weft_shape(33, 65), weft_shape(2, 3, 20), weft_shape(129, 200), weft_shape(64, 384)};
    for (size_t s = 0; s < WEFTI_COUNT(shapes); s++)
        for (int32_t layouts = 1; layouts <= 3; layouts++) {
            if (s >= 9 && dtype != WEFT_BF16) continue; /* large: several blocks */
            test_case one = cast_case(dtype, shapes[s], form, layouts, PLAIN);
            one.inputs[0].special = s % 2 == 0;
            one.derive = s >= 6 ? give_all_sizes : NULL;
            visit(context, &one);
            if (s != 7 && s != 8) continue;
            for (int how = GAPPED; how <= TURNED; how++) {
                one.inputs[0].layout = (layout)how;
                visit(context, &one);
            }
        }
    test_case one = cast_case(dtype, weft_shape(16, 64), form, WEFTI_FP8_ROWS | WEFTI_FP8_COLUMNS, PLAIN);
    one.derive = give_all_numbers;
    visit(context, &one);
}

/* ---- products ---- */

/* Codes of both signs without those that are not finite, which would leave little else to look at; the last row of a keeps them. */
static void give_codes(const test_case *self, tensor *inputs) {
    for (int32_t side = 0; side < 2; side++)
        for (int64_t i = 0; i < inputs[side].n; i++) {
            bool last = side == 0 && i >= inputs[0].n - inputs[0].shape.dim[1] && self->inputs[0].special;
            if (!last && (inputs[side].i[i] & 127) >= 0x70) inputs[side].i[i] -= 0x20;
            inputs[side].f[i] = (double)inputs[side].i[i];
        }
}

static void visit_products_of(case_visitor visit, void *context, weft_dtype dtype, weft_shape a, weft_shape b, weft_shape y, int32_t form_a, int32_t form_b) {
    test_case one;
    memset(&one, 0, sizeof one);
    one.op = WEFT_OP_FP8_MATMUL;
    one.n_inputs = 4;
    one.n_outputs = 1;
    one.inputs[0] = (argument){WEFT_U8, a, PLAIN, 0, 256, form_a == form_b};
    one.inputs[1] = (argument){WEFT_U8, b, PLAIN, 0, 256, false};
    for (int i = 2; i < 4; i++) one.inputs[i] = (argument){WEFT_F32, weft_shape_scalar(), PLAIN, 0x1p-12, 0x1p-8, false};
    one.outputs[0] = (argument){.dtype = dtype, .shape = y};
    one.attrs.fp8.form[0] = form_a;
    one.attrs.fp8.form[1] = form_b;
    one.derive = give_codes;
    one.seed = 29;
    visit(context, &one);
}

void visit_fp8(case_visitor visit, void *context) {
    static const weft_dtype dtypes[] = {WEFT_F32, WEFT_BF16, WEFT_F16};
    static const int32_t    forms[][2] = {{WEFTI_FP8_E4M3, WEFTI_FP8_E4M3}, {WEFTI_FP8_E5M2, WEFTI_FP8_E4M3}, {WEFTI_FP8_E4M3, WEFTI_FP8_E5M2}};
    static const int64_t    sizes[][3] = {{16, 16, 16}, {32, 16, 48}, {16, 80, 32}, {64, 144, 416}};
    for (size_t d = 0; d < WEFTI_COUNT(dtypes); d++)
        for (int32_t form = WEFTI_FP8_E4M3; form <= WEFTI_FP8_E5M2; form++) visit_casts(visit, context, dtypes[d], form);
    for (size_t f = 0; f < WEFTI_COUNT(forms); f++)
        for (size_t s = 0; s < WEFTI_COUNT(sizes); s++) {
            int64_t m = sizes[s][0], n = sizes[s][1], k = sizes[s][2];
            visit_products_of(visit, context, WEFT_BF16, weft_shape(m, k), weft_shape(n, k), s == 1 ? weft_shape(2, m / 2, n) : weft_shape(m, n),
                              forms[f][0], forms[f][1]);
        }
}

/* The edges of what numbers hold: integers that wrap, bool, constants that saturate, NaN and infinities in sums and rows. */
#include <math.h>
#include <string.h>

#include "device/conformance.h"

static const weft_dtype floats[] = {WEFT_F32, WEFT_F64, WEFT_BF16, WEFT_F16};
static const weft_dtype integers[] = {WEFT_I64, WEFT_I32, WEFT_U8};

static test_case edge_case(weft_op op, int32_t n_inputs, weft_dtype dtype, weft_shape shape) {
    test_case one;
    memset(&one, 0, sizeof one);
    one.op = op;
    one.n_inputs = n_inputs;
    one.n_outputs = 1;
    for (int32_t i = 0; i < n_inputs; i++) one.inputs[i] = (argument){dtype, shape, PLAIN, -3, 3, false};
    one.outputs[0] = (argument){.dtype = op >= WEFT_OP_EQ && op <= WEFT_OP_GE ? WEFT_BOOL : dtype, .shape = shape};
    one.seed = (uint64_t)op * 31 + (uint64_t)dtype;
    return one;
}

/* --- integers over their whole range --- */

static int64_t extreme(weft_dtype dtype, uint64_t bits) {
    int64_t least = dtype == WEFT_I64 ? INT64_MIN : dtype == WEFT_I32 ? INT32_MIN : 0;
    int64_t most = dtype == WEFT_I64 ? INT64_MAX : dtype == WEFT_I32 ? INT32_MAX : 255;
    int64_t any = (int64_t)(bits * UINT64_C(0x9e3779b97f4a7c15));
    int64_t small[5] = {least, most, dtype == WEFT_U8 ? 255 : -1, 0, 1};
    return bits % 3 == 0 ? small[bits / 3 % 5] : dtype == WEFT_I32 ? (int32_t)(any >> 20) : dtype == WEFT_U8 ? any & 255 : any;
}

static void whole_range(const test_case *self, tensor *inputs) {
    for (int32_t k = 0; k < self->n_inputs; k++)
        for (int64_t i = 0; i < inputs[k].n; i++) {
            inputs[k].i[i] = extreme(inputs[k].dtype, (uint64_t)(k == 0 ? i : i / 7 + 13 * i) + 5);
            inputs[k].f[i] = (double)inputs[k].i[i];
        }
}

static void visit_integers(case_visitor visit, void *context) {
    static const weft_op ops[] = {WEFT_OP_NEG, WEFT_OP_ABS, WEFT_OP_SQUARE, WEFT_OP_SIGN, WEFT_OP_RELU, WEFT_OP_ADD, WEFT_OP_SUB,
                                  WEFT_OP_MUL, WEFT_OP_DIV, WEFT_OP_MAXIMUM, WEFT_OP_MINIMUM, WEFT_OP_EQ, WEFT_OP_NE, WEFT_OP_LT,
                                  WEFT_OP_LE, WEFT_OP_GT, WEFT_OP_GE};
    for (size_t d = 0; d < WEFTI_COUNT(integers); d++)
        for (size_t k = 0; k < WEFTI_COUNT(ops); k++) {
            test_case one = edge_case(ops[k], ops[k] < WEFT_OP_ADD ? 1 : 2, integers[d], weft_shape(7, 45));
            one.derive = whole_range;
            visit(context, &one);
            one.inputs[0].layout = TURNED;
            visit(context, &one);
        }
    static const weft_op reductions[] = {WEFT_OP_SUM, WEFT_OP_MAX, WEFT_OP_MIN, WEFT_OP_ARGMAX};
    for (size_t d = 0; d < WEFTI_COUNT(integers); d++)
        for (size_t k = 0; k < WEFTI_COUNT(reductions); k++)
            for (int32_t axis = 0; axis < 2; axis++) {
                test_case one = edge_case(reductions[k], 1, integers[d], weft_shape(21, 37));
                one.derive = whole_range;
                one.attrs.reduce.axes = 1u << axis;
                one.outputs[0].shape = weft_shape(axis == 0 ? 37 : 21);
                if (reductions[k] == WEFT_OP_ARGMAX) one.outputs[0].dtype = WEFT_I64;
                visit(context, &one);
            }
}

/* --- bool, and constants --- */

static void visit_bools(case_visitor visit, void *context) {
    static const weft_op ops[] = {WEFT_OP_COPY, WEFT_OP_DETACH, WEFT_OP_EQ, WEFT_OP_NE, WEFT_OP_LT, WEFT_OP_LE, WEFT_OP_GT, WEFT_OP_GE};
    for (size_t k = 0; k < WEFTI_COUNT(ops); k++)
        for (int how = 0; how < LAYOUT_COUNT; how++) {
            test_case one = edge_case(ops[k], ops[k] < WEFT_OP_EQ ? 1 : 2, WEFT_BOOL, weft_shape(9, 33));
            one.inputs[0].layout = (layout)how;
            visit(context, &one);
        }
}

static void visit_constants(case_visitor visit, void *context) {
    static const double values[] = {300, -1, 1e30, -1e30, 255.9, NAN, INFINITY, -INFINITY, -0.0};
    for (int dtype = 0; dtype < WEFT_DTYPE_COUNT; dtype++)
        for (size_t k = 0; k < WEFTI_COUNT(values); k++) {
            if (dtype == WEFT_BOOL && isnan(values[k])) continue;
            test_case one = edge_case(WEFT_OP_FULL, 0, (weft_dtype)dtype, weft_shape(3, 5));
            one.attrs.full.value = values[k];
            visit(context, &one);
        }
}

/* --- NaN and infinities --- */

/* Row r gets, by r % 6: one -infinity, one infinity, only -infinity, a NaN, both infinities, nothing. */
static void bad_values(const test_case *self, tensor *inputs) {
    tensor *x = &inputs[0];
    int64_t length = x->shape.dim[x->shape.rank - 1];
    (void)self;
    for (int64_t i = 0; i < x->n; i++) {
        int64_t kind = i / length % 6, at = i % length;
        if (kind == 2 || ((kind == 0 || kind == 4) && at == 1)) x->f[i] = -INFINITY;
        if ((kind == 1 || kind == 4) && at == length - 1) x->f[i] = INFINITY;
        if (kind == 3 && at == length / 2) x->f[i] = NAN;
    }
}

static void visit_sums(case_visitor visit, void *context, weft_dtype dtype, weft_shape shape) {
    for (int mean = 0; mean < 2; mean++)
        for (int32_t axis = 0; axis < 2; axis++) {
            test_case one = edge_case(mean ? WEFT_OP_MEAN : WEFT_OP_SUM, 1, dtype, shape);
            one.derive = bad_values;
            one.attrs.reduce.axes = 1u << axis;
            one.outputs[0].shape = weft_shape(shape.dim[1 - axis]);
            visit(context, &one);
        }
}

static void visit_bad_rows(case_visitor visit, void *context, weft_dtype dtype, weft_shape shape) {
    for (int logarithm = 0; logarithm < 2; logarithm++) {
        test_case one = edge_case(logarithm ? WEFT_OP_LOG_SOFTMAX : WEFT_OP_SOFTMAX, 1, dtype, shape);
        one.derive = bad_values;
        visit(context, &one);
    }
    for (int kind = 0; kind < 4; kind++) {
        weft_dtype wide = dtype == WEFT_F64 ? WEFT_F64 : WEFT_F32;
        test_case  one = edge_case(WEFT_OP_CROSS_ENTROPY, 2, dtype, shape);
        one.inputs[1] = (argument){WEFT_I32, weft_shape(shape.dim[0]), PLAIN, 0, 3, false};
        one.derive = bad_values;
        one.attrs.loss.smoothing = kind % 2 ? 0.1 : 0;
        one.attrs.loss.has_ignored = kind / 2;
        one.attrs.loss.ignored = 1;
        one.n_outputs = 2;
        one.outputs[0] = one.outputs[1] = (argument){.dtype = wide, .shape = weft_shape(shape.dim[0])};
        visit(context, &one);
    }
}

void visit_edges(case_visitor visit, void *context) {
    static const weft_shape shapes[] = {{2, {13, 3}}, {2, {7, 40}}, {2, {12, 300}}};
    visit_integers(visit, context);
    visit_bools(visit, context);
    visit_constants(visit, context);
    for (size_t d = 0; d < WEFTI_COUNT(floats); d++)
        for (size_t s = 0; s < WEFTI_COUNT(shapes); s++) {
            visit_sums(visit, context, floats[d], shapes[s]);
            visit_bad_rows(visit, context, floats[d], shapes[s]);
        }
}

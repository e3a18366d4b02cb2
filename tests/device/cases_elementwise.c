/* Elementwise ops: every op in every dtype, over awkward shapes, strides and broadcasts, with special values. */
#include <math.h>
#include <string.h>

#include "core/tensor/philox.h"
#include "device/conformance.h"

static const weft_dtype floats[] = {WEFT_F32, WEFT_F64, WEFT_BF16, WEFT_F16};
static const weft_dtype numbers[] = {WEFT_F32, WEFT_F64, WEFT_BF16, WEFT_F16, WEFT_I64, WEFT_I32, WEFT_U8};

typedef struct op_row {
    weft_op op;
    double  low, high;
    bool    integers; /* has meaning for integers too */
    bool    special;  /* NaN and infinities have a defined result */
} op_row;

static const op_row unary_ops[] = {
    {WEFT_OP_COPY, -9, 9, true, true},         {WEFT_OP_DETACH, -9, 9, true, true},
    {WEFT_OP_NEG, -9, 9, true, true},          {WEFT_OP_ABS, -9, 9, true, true},
    {WEFT_OP_SIGN, -3, 3, true, true},         {WEFT_OP_SQUARE, -9, 9, true, true},
    {WEFT_OP_EXP, -12, 9, false, true},        {WEFT_OP_EXPM1, -3, 3, false, true},
    {WEFT_OP_LOG, 0.01, 30, false, true},      {WEFT_OP_LOG1P, -0.9, 9, false, true},
    {WEFT_OP_SQRT, 0, 30, false, true},        {WEFT_OP_RSQRT, 0.01, 30, false, true},
    {WEFT_OP_RECIPROCAL, 0.1, 9, false, true}, {WEFT_OP_SIN, -9, 9, false, true},
    {WEFT_OP_COS, -9, 9, false, true},         {WEFT_OP_TANH, -5, 5, false, true},
    {WEFT_OP_SIGMOID, -9, 9, false, true},     {WEFT_OP_ERF, -3, 3, false, true},
    {WEFT_OP_SOFTPLUS, -9, 9, false, true},    {WEFT_OP_RELU, -3, 3, true, true},
    {WEFT_OP_GELU, -4, 4, false, false},       {WEFT_OP_GELU_TANH, -4, 4, false, false},
    {WEFT_OP_SILU, -6, 6, false, false},       {WEFT_OP_FLOOR, -9, 9, false, true},
    {WEFT_OP_CEIL, -9, 9, false, true},        {WEFT_OP_ROUND, -9, 9, false, true},
    {WEFT_OP_CLAMP, -9, 9, true, true},        {WEFT_OP_ISFINITE, -9, 9, false, true},
};
static const op_row binary_ops[] = {
    {WEFT_OP_ADD, -9, 9, true, true},      {WEFT_OP_SUB, -9, 9, true, true},      {WEFT_OP_MUL, -9, 9, true, true},
    {WEFT_OP_DIV, -9, 9, true, true},      {WEFT_OP_POW, 0.1, 3, false, false},   {WEFT_OP_MAXIMUM, -3, 3, true, true},
    {WEFT_OP_MINIMUM, -3, 3, true, true},  {WEFT_OP_EQ, -2, 2, true, true},       {WEFT_OP_NE, -2, 2, true, true},
    {WEFT_OP_LT, -2, 2, true, true},       {WEFT_OP_LE, -2, 2, true, true},       {WEFT_OP_GT, -2, 2, true, true},
    {WEFT_OP_GE, -2, 2, true, true},       {WEFT_OP_RELU_BACKWARD, -3, 3, false, false},
    {WEFT_OP_GELU_BACKWARD, -4, 4, false, false}, {WEFT_OP_GELU_TANH_BACKWARD, -4, 4, false, false},
    {WEFT_OP_SILU_BACKWARD, -6, 6, false, false},
};

static bool is_predicate(weft_op op) {
    return op == WEFT_OP_ISFINITE || op == WEFT_OP_NOT || op == WEFT_OP_AND || op == WEFT_OP_OR ||
           (op >= WEFT_OP_EQ && op <= WEFT_OP_GE);
}

/* ---- definitions ---- */

static double normal_cdf(double x) { return 0.5 * (1 + erf(x / sqrt(2))); }
static double normal_pdf(double x) { return exp(-x * x / 2) / sqrt(2 * acos(-1)); }
static double logistic(double x) { return x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x)); }
static double tanh_argument(double x) { return sqrt(2 / acos(-1)) * (x + 0.044715 * pow(x, 3)); }

static double of_one(const test_case *self, double x) {
    double lo = self->attrs.clamp.lo, hi = self->attrs.clamp.hi;
    switch (self->op) {
    case WEFT_OP_NEG: return 0 - x == 0 ? -x : 0 - x;
    case WEFT_OP_ABS: return signbit(x) ? -x : x;
    case WEFT_OP_SIGN: return isnan(x) ? x : (x > 0) - (x < 0);
    case WEFT_OP_SQUARE: return pow(x, 2);
    case WEFT_OP_EXP: return exp(x);
    case WEFT_OP_EXPM1: return expm1(x);
    case WEFT_OP_LOG: return log(x);
    case WEFT_OP_LOG1P: return log1p(x);
    case WEFT_OP_SQRT: return sqrt(x);
    case WEFT_OP_RSQRT: return 1 / sqrt(x);
    case WEFT_OP_RECIPROCAL: return 1 / x;
    case WEFT_OP_SIN: return sin(x);
    case WEFT_OP_COS: return cos(x);
    case WEFT_OP_TANH: return tanh(x);
    case WEFT_OP_SIGMOID: return logistic(x);
    case WEFT_OP_ERF: return erf(x);
    case WEFT_OP_SOFTPLUS: return isnan(x) ? x : (x > 0 ? x : 0) + log1p(exp(-fabs(x)));
    case WEFT_OP_RELU: return isnan(x) || x > 0 ? x : 0;
    case WEFT_OP_GELU: return x * normal_cdf(x);
    case WEFT_OP_GELU_TANH: return 0.5 * x * (1 + tanh(tanh_argument(x)));
    case WEFT_OP_SILU: return x * logistic(x);
    case WEFT_OP_FLOOR: return floor(x);
    case WEFT_OP_CEIL: return ceil(x);
    case WEFT_OP_ROUND: return nearbyint(x);
    case WEFT_OP_CLAMP: return isnan(x) ? x : fmin(fmax(x, lo), hi);
    default: return x;
    }
}

static double of_two(weft_op op, double a, double b) {
    double t, s;
    switch (op) {
    case WEFT_OP_ADD: return a + b;
    case WEFT_OP_SUB: return a - b;
    case WEFT_OP_MUL: return a * b;
    case WEFT_OP_DIV: return a / b;
    case WEFT_OP_POW: return pow(a, b);
    case WEFT_OP_MAXIMUM: return isnan(a) || isnan(b) ? NAN : fmax(a, b);
    case WEFT_OP_MINIMUM: return isnan(a) || isnan(b) ? NAN : fmin(a, b);
    case WEFT_OP_RELU_BACKWARD: return b > 0 ? a : 0;
    case WEFT_OP_GELU_BACKWARD: return a * (normal_cdf(b) + b * normal_pdf(b));
    case WEFT_OP_GELU_TANH_BACKWARD:
        t = tanh(tanh_argument(b));
        return a * (0.5 * (1 + t) + 0.5 * b * (1 - t * t) * sqrt(2 / acos(-1)) * (1 + 3 * 0.044715 * b * b));
    default: s = logistic(b); return a * (s + b * s * (1 - s));
    }
}

static int64_t wrapped(int64_t x, weft_dtype dtype) {
    return dtype == WEFT_I32 ? (int32_t)x : dtype == WEFT_U8 ? (uint8_t)x : x;
}

static int64_t of_one_integer(const test_case *self, int64_t x) {
    switch (self->op) {
    case WEFT_OP_NEG: return (int64_t)(0 - (uint64_t)x);
    case WEFT_OP_ABS: return (int64_t)(x < 0 ? 0 - (uint64_t)x : (uint64_t)x);
    case WEFT_OP_SIGN: return x > 0 ? 1 : x < 0 ? -1 : 0;
    case WEFT_OP_SQUARE: return (int64_t)((uint64_t)x * (uint64_t)x);
    case WEFT_OP_RELU: return x > 0 ? x : 0;
    case WEFT_OP_CLAMP: return (int64_t)fmin(fmax((double)x, self->attrs.clamp.lo), self->attrs.clamp.hi);
    default: return x;
    }
}

/* All results wrap around. */
static int64_t of_two_integers(weft_op op, int64_t a, int64_t b) {
    switch (op) {
    case WEFT_OP_ADD: return (int64_t)((uint64_t)a + (uint64_t)b);
    case WEFT_OP_SUB: return (int64_t)((uint64_t)a - (uint64_t)b);
    case WEFT_OP_MUL: return (int64_t)((uint64_t)a * (uint64_t)b);
    case WEFT_OP_DIV: return b == -1 ? (int64_t)(0 - (uint64_t)a) : b ? a / b : 0;
    case WEFT_OP_MAXIMUM: return a < b ? b : a;
    default: return b < a ? b : a;
    }
}

static bool predicate(weft_op op, double a, double b) {
    switch (op) {
    case WEFT_OP_ISFINITE: return !isnan(a) && !isinf(a);
    case WEFT_OP_NOT: return !(a != 0);
    case WEFT_OP_AND: return a != 0 && b != 0;
    case WEFT_OP_OR: return a != 0 || b != 0;
    case WEFT_OP_EQ: return a == b;
    case WEFT_OP_NE: return !(a == b);
    case WEFT_OP_LT: return a < b;
    case WEFT_OP_LE: return a < b || a == b;
    case WEFT_OP_GT: return a > b;
    default: return a > b || a == b;
    }
}

static bool predicate_of_integers(weft_op op, int64_t a, int64_t b) {
    int order = (a > b) - (a < b);
    return predicate(op, order, 0);
}

static void define_cast(const tensor *x, int64_t at, tensor *y, int64_t i) {
    double most = y->dtype == WEFT_I32 ? INT32_MAX : y->dtype == WEFT_U8 ? 255 : 0x1p63;
    double least = y->dtype == WEFT_I32 ? INT32_MIN : y->dtype == WEFT_U8 ? 0 : -0x1p63;
    if (weft_dtype_is_float(y->dtype)) y->f[i] = x->f[at];
    else if (y->dtype == WEFT_BOOL) y->i[i] = x->f[at] != 0;
    else if (!weft_dtype_is_float(x->dtype)) y->i[i] = wrapped(x->i[at], y->dtype);
    else if (isnan(x->f[at])) y->i[i] = 0;
    else if (x->f[at] >= most) y->i[i] = y->dtype == WEFT_I64 ? INT64_MAX : (int64_t)most;
    else if (x->f[at] <= least) y->i[i] = y->dtype == WEFT_I64 ? INT64_MIN : (int64_t)least;
    else y->i[i] = (int64_t)trunc(x->f[at]);
}

static double dropped(const test_case *self, const tensor *x, int64_t at, int64_t step, const int64_t *index) {
    const wefti_window *window = &self->attrs.dropout.window;
    weft_shape          global = x->shape;
    int64_t             there[WEFT_MAX_RANK];
    memcpy(there, index, sizeof there);
    if (window->split) {
        global.dim[window->axis] = window->global;
        there[window->axis] += window->begin;
    }
    bool keep = wefti_uniform(self->attrs.dropout.key, (uint64_t)step, ravel(global, there)) >= self->attrs.dropout.p;
    return keep ? x->f[at] / (1 - self->attrs.dropout.p) : 0;
}

/* Flat element of the input that output index `index` reads. */
static int64_t source(weft_shape from, weft_shape to, const int64_t *index) {
    int64_t own[WEFT_MAX_RANK];
    for (int32_t axis = 0; axis < from.rank; axis++)
        own[axis] = from.dim[axis] == 1 ? 0 : index[to.rank - from.rank + axis];
    return ravel(from, own);
}

void define_elementwise(const test_case *self, const tensor *inputs, tensor *outputs) {
    tensor *y = &outputs[0];
    for (int64_t i = 0; i < y->n; i++) {
        int64_t index[WEFT_MAX_RANK] = {0}, at[3] = {0};
        unravel(y->shape, i, index);
        for (int32_t k = 0; k < self->n_inputs; k++) at[k] = source(inputs[k].shape, y->shape, index);
        const tensor *a = &inputs[0], *b = &inputs[1], *c = &inputs[2];
        bool          unary = self->n_inputs == 1, floating = weft_dtype_is_float(y->dtype);
        if (self->op == WEFT_OP_CAST) define_cast(a, at[0], y, i);
        else if (self->op == WEFT_OP_DROPOUT) y->f[i] = dropped(self, a, at[0], b->i[0], index);
        else if (self->op == WEFT_OP_WHERE && floating) y->f[i] = a->i[at[0]] ? b->f[at[1]] : c->f[at[2]];
        else if (self->op == WEFT_OP_WHERE) y->i[i] = a->i[at[0]] ? b->i[at[1]] : c->i[at[2]];
        else if (self->op >= WEFT_OP_EQ && self->op <= WEFT_OP_GE && !weft_dtype_is_float(a->dtype))
            y->i[i] = predicate_of_integers(self->op, a->i[at[0]], b->i[at[1]]);
        else if (is_predicate(self->op)) y->i[i] = predicate(self->op, a->f[at[0]], unary ? 0 : b->f[at[1]]);
        else if (floating) y->f[i] = unary ? of_one(self, a->f[at[0]]) : of_two(self->op, a->f[at[0]], b->f[at[1]]);
        else
            y->i[i] =
                wrapped(unary ? of_one_integer(self, a->i[at[0]]) : of_two_integers(self->op, a->i[at[0]], b->i[at[1]]),
                        y->dtype);
        /* Where 1 + erf or 1 - t*t cancels, the size of the factor beside it bounds the error. */
        bool cancels = self->op == WEFT_OP_GELU || self->op == WEFT_OP_GELU_TANH || self->op == WEFT_OP_GELU_BACKWARD ||
                       self->op == WEFT_OP_GELU_TANH_BACKWARD || self->op == WEFT_OP_SILU_BACKWARD;
        if (cancels && isfinite(y->f[i])) y->scale[i] = fabs(a->f[at[0]]) * (unary ? 1 : 1 + fabs(b->f[at[1]]));
        if (self->op == WEFT_OP_SIN || self->op == WEFT_OP_COS)
            y->scale[i] = 0.1; /* beside zeros, the argument's own rounding */
    }
}

/* ---- cases ---- */

static const weft_shape shapes[] = {
    {0, {0}},       {1, {1}},      {1, {7}},
    {1, {0}},       {2, {3, 5}},   {3, {2, 0, 4}},
    {3, {2, 3, 4}}, {2, {33, 65}}, {5, {2, 1, 3, 2, 2}},
};

static test_case unary_case(op_row row, weft_dtype dtype, weft_shape shape, layout how) {
    test_case one;
    memset(&one, 0, sizeof one);
    one.op = row.op;
    one.n_inputs = one.n_outputs = 1;
    one.inputs[0] = (argument){dtype, shape, how, row.low, row.high, row.special};
    one.outputs[0] = (argument){.dtype = is_predicate(row.op) ? WEFT_BOOL : dtype, .shape = shape};
    one.seed = (uint64_t)row.op * 100 + (uint64_t)dtype;
    if (row.op == WEFT_OP_CLAMP) one.attrs.clamp.lo = -2, one.attrs.clamp.hi = 3;
    return one;
}

static void visit_unary(case_visitor visit, void *context, op_row row) {
    for (size_t d = 0; d < WEFTI_COUNT(numbers); d++) {
        if (!weft_dtype_is_float(numbers[d]) && !row.integers) continue;
        for (size_t s = 0; s < WEFTI_COUNT(shapes); s++)
            for (int k = 0; k < 2; k++) {
                /* Plain, and one of the other layouts in turn. */
                layout    how = k == 0 ? PLAIN : (layout)(1 + (s + d + row.op) % (LAYOUT_COUNT - 1));
                test_case one = unary_case(row, numbers[d], shapes[s], how);
                visit(context, &one);
            }
        test_case in_place = unary_case(row, numbers[d], weft_shape(9, 11), PLAIN);
        in_place.in_place = in_place.outputs[0].dtype == numbers[d];
        visit(context, &in_place);
        test_case large = unary_case(row, numbers[d], d == 0 ? weft_shape(3, 7001) : weft_shape(3, 3001), PLAIN);
        if (d == 0 || (row.op + d) % 3 == 0) visit(context, &large);
    }
}

typedef struct shape_pair {
    weft_shape a, b, out;
} shape_pair;
static const shape_pair pairs[] = {
    {{0, {0}}, {0, {0}}, {0, {0}}},
    {{1, {7}}, {1, {7}}, {1, {7}}},
    {{1, {0}}, {1, {1}}, {1, {0}}},
    {{2, {3, 5}}, {1, {5}}, {2, {3, 5}}},
    {{2, {3, 1}}, {2, {1, 5}}, {2, {3, 5}}},
    {{0, {0}}, {2, {4, 3}}, {2, {4, 3}}},
    {{3, {2, 3, 4}}, {2, {3, 1}}, {3, {2, 3, 4}}},
    {{2, {33, 65}}, {2, {33, 65}}, {2, {33, 65}}},
    {{2, {33, 65}}, {2, {33, 1}}, {2, {33, 65}}},
    {{4, {2, 3, 4, 5}}, {3, {3, 1, 1}}, {4, {2, 3, 4, 5}}},
};

static test_case binary_case(op_row row, weft_dtype dtype, shape_pair pair, layout a, layout b) {
    test_case one = unary_case(row, dtype, pair.out, PLAIN);
    one.n_inputs = 2;
    one.inputs[0] = (argument){dtype, pair.a, a, row.low, row.high, row.special};
    one.inputs[1] = (argument){dtype, pair.b, b, row.low, row.high, row.special};
    return one;
}

static void visit_binary(case_visitor visit, void *context, op_row row) {
    for (size_t d = 0; d < WEFTI_COUNT(numbers); d++) {
        if (!weft_dtype_is_float(numbers[d]) && !row.integers) continue;
        for (size_t s = 0; s < WEFTI_COUNT(pairs); s++)
            for (int k = 0; k < 3; k++) {
                size_t              how = k == 0 ? 0 : (s + d + row.op + (size_t)k) % 6;
                static const layout ways[6][2] = {{PLAIN, PLAIN},     {GAPPED, PLAIN},   {PLAIN, TURNED},
                                                  {REPEATED, GAPPED}, {PLAIN, REPEATED}, {TURNED, TURNED}};
                test_case one = binary_case(row, numbers[d], pairs[s], ways[how][0], ways[how][1]);
                visit(context, &one);
            }
        test_case in_place = binary_case(
            row, numbers[d], (shape_pair){weft_shape(9, 11), weft_shape(11), weft_shape(9, 11)}, PLAIN, PLAIN);
        in_place.in_place = in_place.outputs[0].dtype == numbers[d];
        visit(context, &in_place);
        int64_t   length = d == 0 ? 7001 : 3001;
        test_case large = binary_case(
            row, numbers[d], (shape_pair){weft_shape(3, length), weft_shape(length), weft_shape(3, length)}, PLAIN, PLAIN);
        if (d == 0 || (row.op + d) % 3 == 0) visit(context, &large);
    }
}

static void visit_casts(case_visitor visit, void *context) {
    for (int from = 0; from < WEFT_DTYPE_COUNT; from++)
        for (int to = 0; to < WEFT_DTYPE_COUNT; to++)
            for (int how = 0; how < LAYOUT_COUNT; how++) {
                op_row    small = {WEFT_OP_CAST, -300, 300, true, true}, wide = {WEFT_OP_CAST, -1e10, 1e10, true, true};
                test_case one = unary_case(small, (weft_dtype)from, weft_shape(5, 31), (layout)how);
                one.outputs[0].dtype = (weft_dtype)to;
                one.attrs.cast.dtype = to;
                visit(context, &one);
                if (from == WEFT_F16 || from == WEFT_I32 || from == WEFT_U8) continue;
                one.inputs[0].low = wide.low;
                one.inputs[0].high = wide.high;
                visit(context, &one);
            }
}

static void visit_choices(case_visitor visit, void *context) {
    static const weft_op logical[] = {WEFT_OP_NOT, WEFT_OP_AND, WEFT_OP_OR};
    for (int how = 0; how < LAYOUT_COUNT; how++)
        for (size_t s = 0; s < WEFTI_COUNT(pairs); s++) {
            for (size_t k = 0; k < 3; k++) {
                test_case one =
                    binary_case((op_row){logical[k], 0, 2, true, false}, WEFT_BOOL, pairs[s], (layout)how, PLAIN);
                if (k == 0) one.n_inputs = 1, one.outputs[0].shape = pairs[s].a;
                visit(context, &one);
            }
            for (int d = 0; d < WEFT_DTYPE_COUNT; d++) {
                test_case one = binary_case((op_row){WEFT_OP_WHERE, -9, 9, true, true}, (weft_dtype)d, pairs[s], PLAIN,
                                            (layout)how);
                one.n_inputs = 3;
                one.inputs[2] = one.inputs[1];
                one.inputs[1] = one.inputs[0];
                one.inputs[0] = (argument){WEFT_BOOL, s % 2 ? pairs[s].b : pairs[s].out, (layout)how, 0, 2, false};
                visit(context, &one);
            }
        }
}

static void visit_dropout(case_visitor visit, void *context) {
    for (size_t d = 0; d < WEFTI_COUNT(floats); d++)
        for (size_t s = 0; s < WEFTI_COUNT(shapes); s++)
            for (int how = 0; how < LAYOUT_COUNT; how++) {
                test_case one =
                    unary_case((op_row){WEFT_OP_DROPOUT, -3, 3, false, false}, floats[d], shapes[s], (layout)how);
                one.n_inputs = 2;
                one.inputs[1] = (argument){WEFT_I64, weft_shape_scalar(), PLAIN, 3, 900, false};
                one.attrs.dropout.p = how * 0.3;
                one.attrs.dropout.key = UINT64_C(0x1234567890abcdef);
                visit(context, &one);
                if (shapes[s].rank < 2) continue;
                for (int32_t axis = 0; axis < 2; axis++) {
                    one.attrs.dropout.window =
                        (wefti_window){.split = 1, .axis = axis, .begin = 4, .global = shapes[s].dim[axis] + 9};
                    visit(context, &one);
                }
            }
}

void visit_elementwise(case_visitor visit, void *context) {
    for (size_t k = 0; k < WEFTI_COUNT(unary_ops); k++) visit_unary(visit, context, unary_ops[k]);
    for (size_t k = 0; k < WEFTI_COUNT(binary_ops); k++) visit_binary(visit, context, binary_ops[k]);
    visit_casts(visit, context);
    visit_choices(visit, context);
    visit_dropout(visit, context);
}

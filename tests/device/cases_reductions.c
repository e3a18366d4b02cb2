/* Reductions over every set of axes, and updates by solver rules. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/iface/rule.h"
#include "core/rules/rules.h"
#include "device/conformance.h"

static double extent_of(const test_case *self, weft_shape shape) {
    double extent = 1;
    for (int32_t axis = 0; axis < shape.rank; axis++)
        if (self->attrs.reduce.axes >> axis & 1) extent *= (double)shape.dim[axis];
    return self->attrs.reduce.count != 0 ? self->attrs.reduce.count : extent;
}

/* The output element that input index `index` goes into. */
static int64_t destination(const test_case *self, weft_shape x, const int64_t *index) {
    int64_t to = 0;
    for (int32_t axis = 0; axis < x.rank; axis++)
        if (!(self->attrs.reduce.axes >> axis & 1)) to = to * x.dim[axis] + index[axis];
    return to;
}

static int64_t along(const test_case *self, weft_shape x, const int64_t *index) {
    for (int32_t axis = 0; axis < x.rank; axis++)
        if (self->attrs.reduce.axes >> axis & 1) return index[axis];
    return 0;
}

static bool beats(weft_op op, double a, double b) {
    if (isnan(b)) return false;
    return isnan(a) || (op == WEFT_OP_MIN ? a < b : a > b);
}

static bool integer_beats(weft_op op, int64_t a, int64_t b) { return op == WEFT_OP_MIN ? a < b : a > b; }

static void take_in(const test_case *self, const tensor *x, int64_t i, const int64_t *index, tensor *y, int64_t *best,
                    bool *any) {
    int64_t to = destination(self, x->shape, index);
    bool    floating = weft_dtype_is_float(x->dtype);
    if (self->op == WEFT_OP_SUM || self->op == WEFT_OP_MEAN) {
        y->f[to] += x->f[i];
        y->i[to] = (int64_t)((uint64_t)y->i[to] + (uint64_t)x->i[i]);
        y->scale[to] += fabs(x->f[i]);
    } else if (!any[to] || (floating ? beats(self->op, x->f[i], x->f[best[to]])
                                     : integer_beats(self->op, x->i[i], x->i[best[to]]))) {
        best[to] = i;
        any[to] = true;
        y->f[to] = x->f[i];
        y->i[to] = self->op == WEFT_OP_ARGMAX ? along(self, x->shape, index) : floating ? 0 : x->i[i];
    }
}

void define_reduction(const test_case *self, const tensor *inputs, tensor *outputs) {
    const tensor *x = &inputs[0];
    tensor       *y = &outputs[0];
    if (self->op == WEFT_OP_EXTENT) {
        y->f[0] = extent_of(self, x->shape);
        return;
    }
    if (self->op == WEFT_OP_MEAN_BACKWARD) {
        for (int64_t i = 0; i < y->n; i++) {
            int64_t index[WEFT_MAX_RANK];
            unravel(y->shape, i, index);
            y->f[i] = x->f[destination(self, y->shape, index)] / extent_of(self, y->shape);
        }
        return;
    }
    int64_t best[4096]; /* flat elements of x */
    bool    any[4096] = {false};
    for (int64_t i = 0; i < x->n; i++) {
        int64_t index[WEFT_MAX_RANK];
        unravel(x->shape, i, index);
        take_in(self, x, i, index, y, best, any);
    }
    for (int64_t i = 0; i < y->n; i++) {
        if (self->op == WEFT_OP_MEAN) {
            y->f[i] /= extent_of(self, x->shape);
            y->scale[i] /= extent_of(self, x->shape);
        }
        if (y->dtype == WEFT_I32) y->i[i] = (int32_t)y->i[i];
        if (y->dtype == WEFT_U8) y->i[i] = (uint8_t)y->i[i];
        if (!isfinite(y->scale[i])) y->scale[i] = 0;
    }
}

/* ---- updates ---- */

/* One element by the rules' papers, in the order of core/iface/rule.h: its states and its parameter. *step_out is the step for its
 * gradient, *unit_out that for one that stayed 1. */
static void update_one(const test_case *self, const double *h, double gradient, double *theta, double *m, double *v, double *step_out,
                       double *unit_out) {
    double rate = h[WEFTI_HYPER_RATE], a = h[WEFTI_HYPER_A], b = h[WEFTI_HYPER_B], eps = h[WEFTI_HYPER_EPS], t = h[WEFTI_HYPER_STEP];
    double g = gradient * h[WEFTI_HYPER_SCALE], step = 0, unit = 1, built = 0;
    if (h[WEFTI_HYPER_CLIP] > 0) g = fmin(fmax(g, -h[WEFTI_HYPER_CLIP]), h[WEFTI_HYPER_CLIP]);
    g += self->attrs.update.l2 * *theta;
    for (int i = 0; i < (int)t; i++) built = a * built + 1;
    switch (self->attrs.update.rule->id) {
    case WEFTI_RULE_MOMENTUM: step = *m = a * *m + g, unit = built; break;
    case WEFTI_RULE_NESTEROV: *m = a * *m + g, step = g + a * *m, unit = 1 + a * built; break;
    case WEFTI_RULE_ADAGRAD: *m += g * g, unit = 1 / (sqrt(*m) + eps), step = g * unit; break;
    case WEFTI_RULE_RMSPROP: *m = a * *m + (1 - a) * g * g, unit = 1 / (sqrt(*m) + eps), step = g * unit; break;
    case WEFTI_RULE_ADAM:
        *m = a * *m + (1 - a) * g;
        *v = b * *v + (1 - b) * g * g;
        unit = 1 / (sqrt(*v / (1 - pow(b, t))) + eps);
        step = *m / (1 - pow(a, t)) * unit;
        break;
    default: step = g;
    }
    double soft = rate * unit * self->attrs.update.l1;
    *theta = *theta - rate * self->attrs.update.decay * *theta - rate * step;
    if (soft > 0) *theta = *theta > 0 ? fmax(*theta - soft, 0) : fmin(*theta + soft, 0);
    *step_out = step;
    *unit_out = rate * unit;
}

/* The proximal step of one row's norm, its length found by halving an interval. */
static void shrink_row(double weight, int64_t count, double *theta, const double *unit) {
    double low = 0, high = 0;
    for (int64_t i = 0; i < count; i++) high += theta[i] * theta[i];
    high = sqrt(high);
    for (int round = 0; round < 60; round++) {
        double middle = 0.5 * (low + high), sum = 0;
        for (int64_t i = 0; i < count; i++) {
            double share = theta[i] / (middle + weight * unit[i]);
            sum += share * share;
        }
        *(sum > 1 ? &low : &high) = middle;
    }
    for (int64_t i = 0; i < count; i++) theta[i] *= low / (low + weight * unit[i]);
}

void define_update(const test_case *self, const tensor *inputs, tensor *outputs) {
    const double *h = inputs[2].f;
    bool          skip = h[WEFTI_HYPER_SKIP] != 0;
    double       *unit = malloc((size_t)(outputs[0].n + 1) * sizeof *unit);
    for (int64_t i = 0; i < outputs[0].n; i++) {
        double theta = inputs[0].f[i], states[2] = {0}, step = 0;
        for (int k = 0; k < self->n_written; k++) states[k] = inputs[3 + k].f[i];
        if (!skip) update_one(self, h, inputs[1].f[i], &theta, &states[0], &states[1], &step, &unit[i]);
        outputs[0].f[i] = theta;
        outputs[0].scale[i] = fabs(inputs[0].f[i]) + h[WEFTI_HYPER_RATE] * (fabs(step) + 1);
        if (outputs[0].dtype == WEFT_BF16) outputs[0].scale[i] += 2000 * fabs(theta); /* rounded to either side: the last unit, not half of it */
        for (int k = 0; k < self->n_written; k++) {
            outputs[1 + k].f[i] = states[k];
            outputs[1 + k].scale[i] = fabs(inputs[3 + k].f[i]) + fabs(states[k]) + 1;
        }
    }
    int64_t row = outputs[0].shape.rank > 1 && outputs[0].n ? outputs[0].n / outputs[0].shape.dim[0] : 1;
    for (int64_t begin = 0; begin < outputs[0].n && self->attrs.update.group > 0 && !skip; begin += row)
        shrink_row(self->attrs.update.group, row, outputs[0].f + begin, unit + begin);
    free(unit);
}

static void set_hyper(const test_case *self, tensor *inputs) {
    static const double hyper[WEFTI_HYPER_COUNT] = {0.1, 0.5, 0, 3, 0, 0.9, 0.99, 1e-8};
    memcpy(inputs[2].f, hyper, sizeof hyper);
    if (self->seed % 2) inputs[2].f[WEFTI_HYPER_CLIP] = 0.4;
    if (self->seed % 7 == 6) inputs[2].f[WEFTI_HYPER_SKIP] = 1;
}

/* Every rule, plain and with each kind of regularisation and all of them, clipped or not (by the seed), in f32 and f64. */
static void visit_update(case_visitor visit, void *context, wefti_rule_id rule, weft_dtype dtype, weft_shape shape, int kind, int seed) {
    test_case one;
    memset(&one, 0, sizeof one);
    one.op = WEFT_OP_UPDATE;
    one.attrs.update.rule = wefti_rule_of(rule);
    one.n_written = one.attrs.update.rule->n_states;
    one.n_inputs = 3 + one.n_written;
    one.n_outputs = 1;
    for (int32_t i = 0; i < one.n_inputs; i++)
        one.inputs[i] = (argument){i > 0 && dtype == WEFT_BF16 ? WEFT_F32 : dtype, shape, i == 1 ? (layout)(kind % LAYOUT_COUNT) : PLAIN, i < 3 ? -2 : 0.1, 2, false};
    one.inputs[2] = (argument){WEFT_F64, weft_shape(WEFTI_HYPER_COUNT), PLAIN, 0, 1, false};
    one.outputs[0] = one.inputs[0];
    one.in_place = true;
    one.seed = (uint64_t)seed;
    one.derive = set_hyper;
    if (kind == 1 || kind == 4) one.attrs.update.l2 = 0.3;
    if (kind == 2 || kind == 4) one.attrs.update.decay = 0.2;
    if (kind == 3 || kind == 4) one.attrs.update.l1 = 0.3;
    if (kind == 4 || kind == 5) one.attrs.update.group = 1;
    if (shape.rank == 1) one.attrs.update.group *= 0.3;
    if (dtype == WEFT_BF16) one.attrs.update.group = 0, one.attrs.update.key = 77;
    visit(context, &one);
}

static void visit_updates(case_visitor visit, void *context) {
    static const weft_shape shapes[] = {{0, {0}}, {1, {7}}, {1, {0}}, {2, {9, 65}}};
    for (int rule = 0; rule < WEFTI_RULE_USER; rule++)
        for (int dtype = WEFT_F32; dtype <= WEFT_BF16; dtype++) {
            for (int kind = 0; kind < (dtype == WEFT_BF16 ? 4 : 6); kind++)
                for (int clip = 0; clip < 2; clip++)
                    for (int s = 0; s < (int)WEFTI_COUNT(shapes); s++)
                        visit_update(visit, context, (wefti_rule_id)rule, (weft_dtype)dtype, shapes[s], kind, 2 * (kind + s) + clip);
            visit_update(visit, context, (wefti_rule_id)rule, (weft_dtype)dtype, weft_shape(20001), 3 * (rule % 2), 1);
            if (rule % 2 && dtype != WEFT_BF16) visit_update(visit, context, (wefti_rule_id)rule, (weft_dtype)dtype, weft_shape(9, 2, 1001), 5, 2);
        }
}

/* ---- reductions ---- */

static test_case reduction_case(weft_op op, weft_dtype dtype, weft_shape shape, uint32_t axes, layout how) {
    test_case one;
    memset(&one, 0, sizeof one);
    one.op = op;
    one.attrs.reduce.axes = axes;
    one.attrs.reduce.keep = (int32_t)(axes % 2);
    one.n_inputs = one.n_outputs = 1;
    one.inputs[0] = (argument){dtype, shape, how, -5, 5, op != WEFT_OP_SUM && op != WEFT_OP_MEAN};
    one.outputs[0].dtype = op == WEFT_OP_ARGMAX ? WEFT_I64 : dtype;
    for (int32_t axis = 0; axis < shape.rank; axis++) {
        bool away = axes >> axis & 1;
        if (!away || one.attrs.reduce.keep)
            one.outputs[0].shape.dim[one.outputs[0].shape.rank++] = away ? 1 : shape.dim[axis];
    }
    one.seed = (uint64_t)op * 100 + axes;
    return one;
}

static bool extreme_of_nothing(const test_case *one) {
    return one->op != WEFT_OP_SUM && one->op != WEFT_OP_MEAN && weft_shape_elements(one->inputs[0].shape) == 0;
}

static void visit_sets(case_visitor visit, void *context, weft_op op, weft_dtype dtype, weft_shape shape, layout how) {
    for (uint32_t axes = 0; axes < 1u << shape.rank; axes++) {
        test_case one = reduction_case(op, dtype, shape, axes, how);
        if (op == WEFT_OP_ARGMAX && __builtin_popcount(axes) != 1) continue;
        if (extreme_of_nothing(&one)) continue;
        visit(context, &one);
        if (op != WEFT_OP_MEAN) continue;
        one.attrs.reduce.count = 17;
        visit(context, &one);
        if (weft_shape_elements(shape) == 0) continue;
        argument x = one.inputs[0];
        one.op = WEFT_OP_MEAN_BACKWARD;
        one.attrs.reduce.shape = shape;
        one.inputs[0] = one.outputs[0];
        one.inputs[0].layout = how;
        one.inputs[0].low = -5, one.inputs[0].high = 5;
        one.outputs[0] = x;
        for (int count = 0; count < 2; count++) {
            one.attrs.reduce.count = count * 11;
            visit(context, &one);
        }
    }
}

static void visit_extents(case_visitor visit, void *context) {
    static const weft_dtype dtypes[] = {WEFT_F32, WEFT_F64, WEFT_BF16, WEFT_F16, WEFT_I64, WEFT_BOOL};
    for (size_t d = 0; d < WEFTI_COUNT(dtypes); d++)
        for (int count = 0; count < 2; count++) {
            test_case one = reduction_case(WEFT_OP_EXTENT, dtypes[d], weft_shape(3, 4, 5), 5, PLAIN);
            one.outputs[0] = (argument){.dtype = weft_dtype_is_float(dtypes[d]) ? dtypes[d] : WEFT_F32,
                                        .shape = weft_shape_scalar()};
            one.attrs.reduce.count = count * 9;
            visit(context, &one);
        }
}

void visit_reductions(case_visitor visit, void *context) {
    static const weft_op    ops[] = {WEFT_OP_SUM, WEFT_OP_MEAN, WEFT_OP_MAX, WEFT_OP_MIN, WEFT_OP_ARGMAX};
    static const weft_dtype dtypes[] = {WEFT_F32, WEFT_F64, WEFT_BF16, WEFT_F16, WEFT_I64, WEFT_I32, WEFT_U8};
    static const weft_shape shapes[] = {{0, {0}},    {1, {1}},       {1, {0}},       {1, {301}},
                                        {2, {3, 5}}, {3, {2, 0, 4}}, {3, {5, 3, 7}}, {4, {2, 3, 1, 17}}};
    static const weft_shape large[] = {{1, {50001}}, {2, {70, 333}}, {2, {1000, 5}}, {3, {9, 17, 130}},
                                        {2, {70, 328}}, {2, {2, 33024}}};
    for (size_t k = 0; k < WEFTI_COUNT(ops); k++)
        for (size_t d = 0; d < WEFTI_COUNT(dtypes); d++) {
            if (ops[k] == WEFT_OP_MEAN && !weft_dtype_is_float(dtypes[d])) continue;
            for (size_t s = 0; s < WEFTI_COUNT(shapes); s++)
                for (int how = (int)((s + d) % 2); how < LAYOUT_COUNT; how += 2)
                    visit_sets(visit, context, ops[k], dtypes[d], shapes[s], (layout)how);
            for (size_t s = 0; s < WEFTI_COUNT(large); s++)
                if (d < (s < 4 ? 2 : 4)) /* the last ones lie in whole vectors of every float */
                    for (uint32_t axes = 1; axes < 1u << large[s].rank; axes++) {
                        test_case one = reduction_case(ops[k], dtypes[d], large[s], axes, PLAIN);
                        if (ops[k] == WEFT_OP_ARGMAX && __builtin_popcount(axes) != 1) continue;
                        if (weft_shape_elements(one.outputs[0].shape) <= 4096) visit(context, &one);
                    }
        }
    visit_extents(visit, context);
    visit_updates(visit, context);
}

/* Builders of elementwise ops. Each is one node, or none where there is nothing to do. */
#include <math.h>

#include "core/graph/build.h"

weft_tensor *weft_neg(weft_tensor *x) { return wefti_unary(WEFT_OP_NEG, x); }
weft_tensor *weft_abs(weft_tensor *x) { return wefti_unary(WEFT_OP_ABS, x); }
weft_tensor *weft_sign(weft_tensor *x) { return wefti_unary(WEFT_OP_SIGN, x); }
weft_tensor *weft_square(weft_tensor *x) { return wefti_unary(WEFT_OP_SQUARE, x); }
weft_tensor *weft_exp(weft_tensor *x) { return wefti_unary(WEFT_OP_EXP, x); }
weft_tensor *weft_expm1(weft_tensor *x) { return wefti_unary(WEFT_OP_EXPM1, x); }
weft_tensor *weft_log(weft_tensor *x) { return wefti_unary(WEFT_OP_LOG, x); }
weft_tensor *weft_log1p(weft_tensor *x) { return wefti_unary(WEFT_OP_LOG1P, x); }
weft_tensor *weft_sqrt(weft_tensor *x) { return wefti_unary(WEFT_OP_SQRT, x); }
weft_tensor *weft_rsqrt(weft_tensor *x) { return wefti_unary(WEFT_OP_RSQRT, x); }
weft_tensor *weft_reciprocal(weft_tensor *x) { return wefti_unary(WEFT_OP_RECIPROCAL, x); }
weft_tensor *weft_sin(weft_tensor *x) { return wefti_unary(WEFT_OP_SIN, x); }
weft_tensor *weft_cos(weft_tensor *x) { return wefti_unary(WEFT_OP_COS, x); }
weft_tensor *weft_tanh(weft_tensor *x) { return wefti_unary(WEFT_OP_TANH, x); }
weft_tensor *weft_sigmoid(weft_tensor *x) { return wefti_unary(WEFT_OP_SIGMOID, x); }
weft_tensor *weft_erf(weft_tensor *x) { return wefti_unary(WEFT_OP_ERF, x); }
weft_tensor *weft_softplus(weft_tensor *x) { return wefti_unary(WEFT_OP_SOFTPLUS, x); }
weft_tensor *weft_relu(weft_tensor *x) { return wefti_unary(WEFT_OP_RELU, x); }
weft_tensor *weft_gelu(weft_tensor *x) { return wefti_unary(WEFT_OP_GELU, x); }
weft_tensor *weft_gelu_tanh(weft_tensor *x) { return wefti_unary(WEFT_OP_GELU_TANH, x); }
weft_tensor *weft_silu(weft_tensor *x) { return wefti_unary(WEFT_OP_SILU, x); }
weft_tensor *weft_floor(weft_tensor *x) { return wefti_unary(WEFT_OP_FLOOR, x); }
weft_tensor *weft_ceil(weft_tensor *x) { return wefti_unary(WEFT_OP_CEIL, x); }
weft_tensor *weft_round(weft_tensor *x) { return wefti_unary(WEFT_OP_ROUND, x); }
weft_tensor *weft_not(weft_tensor *x) { return wefti_unary(WEFT_OP_NOT, x); }
weft_tensor *weft_isfinite(weft_tensor *x) { return wefti_unary(WEFT_OP_ISFINITE, x); }
weft_tensor *weft_detach(weft_tensor *x) { return wefti_unary(WEFT_OP_DETACH, x); }

weft_tensor *weft_clamp(weft_tensor *x, double low, double high) {
    if (!(low <= high))
        return wefti_graph_fail(wefti_graph_of(x), WEFT_E_INVALID, "clamp of '%s': low %g is not below high %g",
                                weft_tensor_name(x), low, high);
    wefti_attrs attrs = wefti_no_attrs();
    attrs.clamp.lo = low;
    attrs.clamp.hi = high;
    return wefti_unary_with(WEFT_OP_CLAMP, &attrs, x);
}

weft_tensor *weft_cast(weft_tensor *x, weft_dtype dtype) {
    if (wefti_usable(x) && x->dtype == dtype) return x;
    wefti_attrs attrs = wefti_no_attrs();
    attrs.cast.dtype = (int32_t)dtype;
    return wefti_unary_with(WEFT_OP_CAST, &attrs, x);
}

weft_tensor *weft_add(weft_tensor *x, weft_tensor *y) { return wefti_binary(WEFT_OP_ADD, x, y); }
weft_tensor *weft_sub(weft_tensor *x, weft_tensor *y) { return wefti_binary(WEFT_OP_SUB, x, y); }
weft_tensor *weft_mul(weft_tensor *x, weft_tensor *y) { return wefti_binary(WEFT_OP_MUL, x, y); }
weft_tensor *weft_div(weft_tensor *x, weft_tensor *y) { return wefti_binary(WEFT_OP_DIV, x, y); }
weft_tensor *weft_pow(weft_tensor *x, weft_tensor *y) { return wefti_binary(WEFT_OP_POW, x, y); }
weft_tensor *weft_maximum(weft_tensor *x, weft_tensor *y) { return wefti_binary(WEFT_OP_MAXIMUM, x, y); }
weft_tensor *weft_minimum(weft_tensor *x, weft_tensor *y) { return wefti_binary(WEFT_OP_MINIMUM, x, y); }
weft_tensor *weft_eq(weft_tensor *x, weft_tensor *y) { return wefti_binary(WEFT_OP_EQ, x, y); }
weft_tensor *weft_ne(weft_tensor *x, weft_tensor *y) { return wefti_binary(WEFT_OP_NE, x, y); }
weft_tensor *weft_lt(weft_tensor *x, weft_tensor *y) { return wefti_binary(WEFT_OP_LT, x, y); }
weft_tensor *weft_le(weft_tensor *x, weft_tensor *y) { return wefti_binary(WEFT_OP_LE, x, y); }
weft_tensor *weft_gt(weft_tensor *x, weft_tensor *y) { return wefti_binary(WEFT_OP_GT, x, y); }
weft_tensor *weft_ge(weft_tensor *x, weft_tensor *y) { return wefti_binary(WEFT_OP_GE, x, y); }
weft_tensor *weft_and(weft_tensor *x, weft_tensor *y) { return wefti_binary(WEFT_OP_AND, x, y); }
weft_tensor *weft_or(weft_tensor *x, weft_tensor *y) { return wefti_binary(WEFT_OP_OR, x, y); }
weft_tensor *weft_training(weft_tensor *a, weft_tensor *b) { return wefti_binary(WEFT_OP_MODE, a, b); }

weft_tensor *weft_where(weft_tensor *condition, weft_tensor *x, weft_tensor *y) {
    weft_tensor *inputs[3] = {condition, x, y};
    return wefti_apply(WEFT_OP_WHERE, NULL, inputs, 3, NULL);
}

static weft_tensor *with_scalar(weft_op op, weft_tensor *x, double value) {
    return wefti_binary(op, x, wefti_scalar_like(x, value));
}

weft_tensor *weft_add_scalar(weft_tensor *x, double value) { return with_scalar(WEFT_OP_ADD, x, value); }
weft_tensor *weft_mul_scalar(weft_tensor *x, double value) { return with_scalar(WEFT_OP_MUL, x, value); }
weft_tensor *weft_maximum_scalar(weft_tensor *x, double value) { return with_scalar(WEFT_OP_MAXIMUM, x, value); }
weft_tensor *weft_minimum_scalar(weft_tensor *x, double value) { return with_scalar(WEFT_OP_MINIMUM, x, value); }
weft_tensor *weft_eq_scalar(weft_tensor *x, double value) { return with_scalar(WEFT_OP_EQ, x, value); }
weft_tensor *weft_ne_scalar(weft_tensor *x, double value) { return with_scalar(WEFT_OP_NE, x, value); }
weft_tensor *weft_lt_scalar(weft_tensor *x, double value) { return with_scalar(WEFT_OP_LT, x, value); }
weft_tensor *weft_le_scalar(weft_tensor *x, double value) { return with_scalar(WEFT_OP_LE, x, value); }
weft_tensor *weft_gt_scalar(weft_tensor *x, double value) { return with_scalar(WEFT_OP_GT, x, value); }
weft_tensor *weft_ge_scalar(weft_tensor *x, double value) { return with_scalar(WEFT_OP_GE, x, value); }

weft_tensor *weft_pow_scalar(weft_tensor *x, double value) {
    /* The common ones have cheaper ops, which also differentiate to cheaper ones. */
    if (value == 2) return weft_square(x);
    if (wefti_usable(x) && weft_dtype_is_float(x->dtype)) {
        if (value == 1) return x;
        if (value == 0.5) return weft_sqrt(x);
        if (value == -0.5) return weft_rsqrt(x);
        if (value == -1) return weft_reciprocal(x);
    }
    return with_scalar(WEFT_OP_POW, x, value);
}

/* ---- reductions ---- */

bool wefti_axis(weft_tensor *x, int32_t axis, const char *what, int32_t *axis_out) {
    *axis_out = axis < 0 ? axis + x->shape.rank : axis;
    if (*axis_out >= 0 && *axis_out < x->shape.rank) return true;
    wefti_graph_fail(x->graph, WEFT_E_INVALID, "%s of %s %s: axis %d is out of range", what, x->node->name,
                     weft_shape_text(x->shape).text, axis);
    return false;
}

bool wefti_axes(weft_tensor *x, weft_axes_list axes, const char *what, uint32_t *mask_out) {
    *mask_out = axes.count == 0 ? (1u << x->shape.rank) - 1 : 0;
    if (axes.count < 0 || axes.count > WEFT_MAX_RANK) {
        wefti_graph_fail(x->graph, WEFT_E_INVALID, "%s of %s: a list of %d axes", what, x->node->name, axes.count);
        return false;
    }
    for (int32_t i = 0; i < axes.count; i++) {
        int32_t axis;
        if (!wefti_axis(x, axes.axis[i], what, &axis)) return false;
        if (*mask_out >> axis & 1) {
            wefti_graph_fail(x->graph, WEFT_E_INVALID, "%s of %s: axis %d is named twice", what, x->node->name, axis);
            return false;
        }
        *mask_out |= 1u << axis;
    }
    return true;
}

weft_tensor *wefti_reduced(weft_op op, weft_tensor *x, uint32_t axes, bool keep) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.reduce.axes = axes;
    attrs.reduce.keep = keep;
    return wefti_unary_with(op, &attrs, x);
}

weft_tensor *wefti_extent(weft_tensor *x, uint32_t axes, weft_dtype dtype) {
    /* Half types cannot count far: the cast is never computed, only its shape is looked at. */
    weft_tensor *wide = wefti_usable(x) && x->dtype != wefti_wide(dtype) ? weft_cast(x, wefti_wide(dtype)) : x;
    return weft_cast(wefti_reduced(WEFT_OP_EXTENT, wide, axes, false), dtype);
}

static weft_tensor *reduce_with(weft_op op, weft_tensor *x, const weft_reduce_options *options) {
    weft_reduce_options defaults = {0}, o = options ? *options : defaults;
    uint32_t            mask;
    if (!wefti_usable(x)) return wefti_unusable(x, wefti_ops[op].name);
    if (!wefti_axes(x, o.axes, wefti_ops[op].name, &mask)) return &x->graph->poison;
    return wefti_reduced(op, x, mask, o.keep);
}

weft_tensor *weft_sum_with(weft_tensor *x, const weft_reduce_options *options) {
    return reduce_with(WEFT_OP_SUM, x, options);
}
weft_tensor *weft_mean_with(weft_tensor *x, const weft_reduce_options *options) {
    return reduce_with(WEFT_OP_MEAN, x, options);
}
weft_tensor *weft_max_with(weft_tensor *x, const weft_reduce_options *options) {
    return reduce_with(WEFT_OP_MAX, x, options);
}
weft_tensor *weft_min_with(weft_tensor *x, const weft_reduce_options *options) {
    return reduce_with(WEFT_OP_MIN, x, options);
}

weft_tensor *weft_argmax(weft_tensor *x, int32_t axis) {
    int32_t resolved;
    if (!wefti_usable(x)) return wefti_unusable(x, "argmax");
    if (!wefti_axis(x, axis, "argmax", &resolved)) return &x->graph->poison;
    return wefti_reduced(WEFT_OP_ARGMAX, x, 1u << resolved, false);
}

weft_tensor *weft_variance_with(weft_tensor *x, const weft_variance_options *options) {
    weft_variance_options defaults = {0}, o = options ? *options : defaults;
    uint32_t              mask;
    if (!wefti_usable(x)) return wefti_unusable(x, "variance");
    if (!wefti_axes(x, o.axes, "variance", &mask)) return &x->graph->poison;
    weft_tensor *centred = weft_sub(x, wefti_reduced(WEFT_OP_MEAN, x, mask, true));
    weft_tensor *variance = wefti_reduced(WEFT_OP_MEAN, weft_square(centred), mask, o.keep);
    if (o.correction == 0) return variance;
    weft_tensor *count = wefti_extent(x, mask, wefti_wide(x->dtype));
    weft_tensor *factor = weft_div(count, weft_add_scalar(count, -o.correction));
    return weft_mul(variance, weft_cast(factor, x->dtype));
}

/* |x|^p. For p < 1 the slope at 0 is infinite, which would make the gradient there NaN: the power is never taken of 0. */
static weft_tensor *powers(weft_tensor *x, double p) {
    if (p == 2) return weft_square(x);
    if (p > 1) return weft_pow_scalar(weft_abs(x), p);
    weft_tensor *zero = weft_eq_scalar(x, 0);
    weft_tensor *safe = weft_where(zero, wefti_scalar_like(x, 1), weft_abs(x));
    return weft_where(zero, wefti_scalar_like(x, 0), weft_pow_scalar(safe, p));
}

weft_tensor *weft_norm_with(weft_tensor *x, const weft_norm_options *options) {
    weft_norm_options defaults = {0}, o = options ? *options : defaults;
    uint32_t          mask;
    double            p = o.p == 0 ? 2 : o.p;
    if (!wefti_usable(x)) return wefti_unusable(x, "norm");
    if (!wefti_axes(x, o.axes, "norm", &mask)) return &x->graph->poison;
    if (!(p > 0))
        return wefti_graph_fail(x->graph, WEFT_E_INVALID, "norm of '%s': p must be positive, not %g", x->node->name, p);
    if (p == INFINITY) return wefti_reduced(WEFT_OP_MAX, weft_abs(x), mask, o.keep);
    if (p == 1) return wefti_reduced(WEFT_OP_SUM, weft_abs(x), mask, o.keep);
    weft_tensor *sum = wefti_reduced(WEFT_OP_SUM, powers(x, p), mask, o.keep);
    /* The root has an infinite slope at 0, which would make the gradient there NaN: it is never taken of 0. */
    weft_tensor *zero = weft_eq_scalar(sum, 0), *none = wefti_scalar_like(sum, 0);
    weft_tensor *safe = weft_where(zero, wefti_scalar_like(sum, 1), sum);
    return weft_where(zero, none, weft_pow_scalar(safe, 1 / p));
}

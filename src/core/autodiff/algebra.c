/* The arithmetic of gradients. Each function is a builder that first looks whether its result is known: a constant, an
 * operand as it is, or the same thing on fewer elements. A constant is one number seen through views, so it is never
 * stored. What a fold leaves behind unused is pruned by the plan. */
#include "core/autodiff/autodiff.h"

static bool usable(const weft_tensor *x) { return x->node && x->graph->status == WEFT_OK; }

/* The tensor whose elements x repeats, if x is a broadcast; x otherwise. */
static weft_tensor *unexpanded(weft_tensor *x) { return x->node->op == WEFT_OP_EXPAND ? x->node->inputs[0] : x; }

bool wefti_is_constant(const weft_tensor *x, double *value_out) {
    const wefti_node *node = x->node;
    while (node && (node->op == WEFT_OP_EXPAND || node->op == WEFT_OP_RESHAPE)) node = node->inputs[0]->node;
    if (!node || node->op != WEFT_OP_FULL) return false;
    *value_out = node->attrs.full.value;
    return true;
}

static bool is_value(const weft_tensor *x, double value) {
    double known;
    return wefti_is_constant(x, &known) && known == value;
}

weft_tensor *wefti_node2(weft_op op, const wefti_attrs *attrs, weft_tensor *a, weft_tensor *b) {
    weft_tensor *inputs[2] = {a, b};
    return wefti_apply(op, attrs, inputs, 2, NULL);
}

weft_tensor *wefti_node3(weft_op op, const wefti_attrs *attrs, weft_tensor *a, weft_tensor *b, weft_tensor *c) {
    weft_tensor *inputs[3] = {a, b, c};
    return wefti_apply(op, attrs, inputs, 3, NULL);
}

weft_tensor *wefti_expanded(weft_tensor *x, weft_shape shape) { return weft_expand(x, shape); }

weft_tensor *wefti_constant_like(const weft_tensor *x, double value) {
    return wefti_expanded(weft_scalar(x->graph, x->dtype, value), x->shape);
}

/* The shape that a and b broadcast to; they do, since forward nodes have checked it. */
static weft_shape joint(const weft_tensor *a, const weft_tensor *b) {
    weft_shape shape = a->shape.rank >= b->shape.rank ? a->shape : b->shape;
    weft_shape other = a->shape.rank >= b->shape.rank ? b->shape : a->shape;
    for (int32_t axis = 0; axis < other.rank; axis++) {
        int64_t *dim = &shape.dim[shape.rank - other.rank + axis];
        if (*dim == 1) *dim = other.dim[axis];
    }
    return shape;
}

/* An elementwise node of two, in which a broadcast operand is read where it is stored: the other one has the shape
 * already. */
static weft_tensor *elementwise(weft_op op, weft_tensor *a, weft_tensor *b) {
    weft_shape shape = joint(a, b);
    if (weft_shape_equal(b->shape, shape)) a = unexpanded(a);
    if (weft_shape_equal(a->shape, shape)) b = unexpanded(b);
    return wefti_node2(op, NULL, a, b);
}

weft_tensor *wefti_scaled(weft_tensor *x, double factor) {
    double value;
    if (!usable(x) || factor == 1) return x;
    if (wefti_is_constant(x, &value)) return wefti_constant_like(x, value * factor);
    if (factor == -1) return wefti_negated(x);
    weft_tensor *stored = unexpanded(x);
    return wefti_expanded(weft_mul_scalar(stored, factor), x->shape);
}

weft_tensor *wefti_shifted(weft_tensor *x, double term) {
    double value;
    if (!usable(x) || term == 0) return x;
    if (wefti_is_constant(x, &value)) return wefti_constant_like(x, value + term);
    return weft_add_scalar(x, term);
}

weft_tensor *wefti_negated(weft_tensor *x) {
    double value;
    if (!usable(x)) return x;
    if (wefti_is_constant(x, &value)) return wefti_constant_like(x, -value);
    return wefti_expanded(weft_neg(unexpanded(x)), x->shape);
}

weft_tensor *wefti_times(weft_tensor *a, weft_tensor *b) {
    double value;
    if (!usable(a) || !usable(b)) return usable(a) ? b : a;
    weft_shape shape = joint(a, b);
    if (wefti_is_constant(a, &value)) return wefti_expanded(wefti_scaled(b, value), shape);
    if (wefti_is_constant(b, &value)) return wefti_expanded(wefti_scaled(a, value), shape);
    return elementwise(WEFT_OP_MUL, a, b);
}

weft_tensor *wefti_plus(weft_tensor *a, weft_tensor *b) {
    if (!usable(a) || !usable(b)) return usable(a) ? b : a;
    if (is_value(a, 0)) return wefti_expanded(b, joint(a, b));
    if (is_value(b, 0)) return wefti_expanded(a, joint(a, b));
    return elementwise(WEFT_OP_ADD, a, b);
}

weft_tensor *wefti_minus(weft_tensor *a, weft_tensor *b) {
    if (!usable(a) || !usable(b)) return usable(a) ? b : a;
    if (is_value(a, 0)) return wefti_expanded(wefti_negated(b), joint(a, b));
    if (is_value(b, 0)) return wefti_expanded(a, joint(a, b));
    return elementwise(WEFT_OP_SUB, a, b);
}

weft_tensor *wefti_over(weft_tensor *a, weft_tensor *b) {
    double value;
    if (!usable(a) || !usable(b)) return usable(a) ? b : a;
    if (wefti_is_constant(b, &value) && value != 0) return wefti_expanded(wefti_scaled(a, 1 / value), joint(a, b));
    weft_tensor *stored_a = unexpanded(a), *stored_b = unexpanded(b);
    weft_shape   shape = joint(a, b);
    if (weft_shape_equal(joint(stored_a, stored_b), shape)) return elementwise(WEFT_OP_DIV, a, b);
    return wefti_expanded(wefti_node2(WEFT_OP_DIV, NULL, stored_a, stored_b), shape);
}

/* ---- sums ---- */

static weft_tensor *sum_node(weft_tensor *x, uint32_t axes) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.reduce.axes = axes;
    attrs.reduce.keep = true;
    return wefti_node1(WEFT_OP_SUM, &attrs, x);
}

/* Whether x, broadcast to `shape`, is the same all along `axes`. */
static bool constant_along(const weft_tensor *x, weft_shape shape, uint32_t axes) {
    for (int32_t axis = 0; axis < shape.rank; axis++) {
        int32_t own = axis - (shape.rank - x->shape.rank);
        if (axes >> axis & 1 && own >= 0 && x->shape.dim[own] != 1) return false;
    }
    return true;
}

weft_tensor *wefti_summed(weft_tensor *x, uint32_t axes) {
    if (!usable(x) || axes == 0) return x;
    wefti_node *node = x->node;
    if (node->op == WEFT_OP_NEG && node->flags & WEFTI_NODE_BACKWARD)
        return wefti_negated(wefti_summed(node->inputs[0], axes));
    /* sum(a*b) = a*sum(b) where a does not vary along the axes: a smaller product, and a sum that others may share. */
    if ((node->op == WEFT_OP_MUL || node->op == WEFT_OP_DIV) && node->flags & WEFTI_NODE_BACKWARD) {
        weft_tensor *a = node->inputs[0], *b = node->inputs[1];
        if (constant_along(b, x->shape, axes) && weft_shape_equal(a->shape, x->shape))
            return node->op == WEFT_OP_MUL ? wefti_times(wefti_summed(a, axes), b)
                                           : wefti_over(wefti_summed(a, axes), b);
        if (node->op == WEFT_OP_MUL && constant_along(a, x->shape, axes) && weft_shape_equal(b->shape, x->shape))
            return wefti_times(a, wefti_summed(b, axes));
    }
    return sum_node(x, axes);
}

weft_tensor *wefti_summed_to(weft_tensor *x, weft_shape shape) {
    if (!usable(x) || weft_shape_equal(x->shape, shape)) return x;
    uint32_t axes = 0;
    for (int32_t axis = 0; axis < x->shape.rank; axis++) {
        int32_t own = axis - (x->shape.rank - shape.rank);
        if (own < 0 || (shape.dim[own] == 1 && x->shape.dim[axis] != 1)) axes |= 1u << axis;
    }
    weft_tensor *sum = wefti_summed(x, axes);
    return usable(sum) && weft_shape_equal(sum->shape, shape) ? sum : weft_reshape(sum, shape);
}

weft_tensor *wefti_kept(weft_tensor *reduced, weft_shape whole, uint32_t axes) {
    for (int32_t axis = 0; axis < whole.rank; axis++)
        if (axes >> axis & 1) whole.dim[axis] = 1;
    return usable(reduced) && weft_shape_equal(reduced->shape, whole) ? reduced : weft_reshape(reduced, whole);
}

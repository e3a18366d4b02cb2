/* Shape rules of row-local ops, losses and attention. */
#include "core/graph/internal.h"

/* The leading axes of x, without the last `axes`. */
static weft_shape leading(weft_shape x, int32_t axes) {
    weft_shape shape = weft_shape_scalar();
    shape.rank = x.rank - axes;
    for (int32_t axis = 0; axis < shape.rank; axis++) shape.dim[axis] = x.dim[axis];
    return shape;
}

weft_status wefti_shape_rows(wefti_infer_call *call) {
    weft_shape x = call->inputs[0]->shape;
    WEFTI_TRY(wefti_floating(call, 0));
    WEFTI_TRY(wefti_one_dtype(call, 0, call->n_inputs - 1));
    if (x.rank < 1) return wefti_misfit(call, WEFT_E_SHAPE, "a scalar has no last axis to work over");
    if (call->n_inputs > 1) WEFTI_TRY(wefti_shaped(call, 1, x, "the result of the forward pass"));
    return wefti_shape_same(call);
}

weft_status wefti_shape_normalize(wefti_infer_call *call) {
    weft_shape x = call->inputs[0]->shape;
    int32_t    axes = call->attrs->rows.axes;
    WEFTI_TRY(wefti_floating(call, 0));
    if (axes < 1 || axes > x.rank)
        return wefti_misfit(call, WEFT_E_INVALID, "the last %d axes of %d cannot be normalised", axes, x.rank);
    for (int32_t axis = x.rank - axes; axis < x.rank; axis++)
        if (x.dim[axis] == 0)
            return wefti_misfit(call, WEFT_E_SHAPE, "axis %d is empty: there is no mean of nothing", axis);
    if (!(call->attrs->rows.eps >= 0))
        return wefti_misfit(call, WEFT_E_INVALID, "eps must not be negative, got %g", call->attrs->rows.eps);
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, x);
    wefti_type_set(&call->outputs[1], wefti_wide(call->inputs[0]->dtype), leading(x, axes));
    return WEFT_OK;
}

static weft_status wide_input(const wefti_infer_call *call, int32_t i, weft_dtype beside, const char *what) {
    if (call->inputs[i]->dtype == wefti_wide(beside)) return WEFT_OK;
    return wefti_misfit(call, WEFT_E_DTYPE, "%s must be %s, not %s", what, weft_dtype_name(wefti_wide(beside)),
                        weft_dtype_name(call->inputs[i]->dtype));
}

weft_status wefti_shape_normalize_backward(wefti_infer_call *call) {
    weft_shape x = call->inputs[0]->shape;
    int32_t    axes = call->attrs->rows.axes;
    WEFTI_TRY(wefti_floating(call, 0));
    WEFTI_TRY(wefti_one_dtype(call, 0, 1));
    if (axes < 1 || axes > x.rank)
        return wefti_misfit(call, WEFT_E_INVALID, "the last %d axes of %d cannot be normalised", axes, x.rank);
    WEFTI_TRY(wefti_shaped(call, 1, x, "the result of the forward pass"));
    WEFTI_TRY(wefti_shaped(call, 2, leading(x, axes), "rstd"));
    WEFTI_TRY(wide_input(call, 2, call->inputs[0]->dtype, "rstd"));
    return wefti_shape_same(call);
}

weft_status wefti_shape_rotary(wefti_infer_call *call) {
    weft_shape x = call->inputs[0]->shape;
    WEFTI_TRY(wefti_floating(call, 0));
    if (x.rank < 2 || x.dim[x.rank - 1] % 2)
        return wefti_misfit(call, WEFT_E_SHAPE, "the input must be [..., T, D] with an even D");
    if (!(call->attrs->rotary.base > 0))
        return wefti_misfit(call, WEFT_E_INVALID, "the base must be positive, not %g", call->attrs->rotary.base);
    return wefti_shape_same(call);
}

/* ---- losses ---- */

static weft_status loss_fits(const wefti_infer_call *call, int32_t logits, int32_t label) {
    weft_shape x = call->inputs[logits]->shape;
    double     s = call->attrs->loss.smoothing;
    WEFTI_TRY(wefti_floating(call, logits));
    WEFTI_TRY(wefti_index(call, label));
    if (x.rank < 1 || x.dim[x.rank - 1] < 1)
        return wefti_misfit(call, WEFT_E_SHAPE, "the logits must be [..., classes] with at least one class");
    WEFTI_TRY(wefti_shaped(call, label, leading(x, 1), "the label"));
    if (!(s >= 0 && s <= 1)) return wefti_misfit(call, WEFT_E_INVALID, "smoothing must be in [0, 1], not %g", s);
    return WEFT_OK;
}

weft_status wefti_shape_cross_entropy(wefti_infer_call *call) {
    WEFTI_TRY(loss_fits(call, 0, 1));
    weft_dtype wide = wefti_wide(call->inputs[0]->dtype);
    wefti_type_set(&call->outputs[0], wide, call->inputs[1]->shape);
    wefti_type_set(&call->outputs[1], wide, call->inputs[1]->shape);
    return WEFT_OK;
}

weft_status wefti_shape_cross_entropy_backward(wefti_infer_call *call) {
    WEFTI_TRY(loss_fits(call, 1, 2));
    weft_dtype dtype = call->inputs[1]->dtype;
    WEFTI_TRY(wefti_shaped(call, 0, call->inputs[2]->shape, "the gradient"));
    WEFTI_TRY(wide_input(call, 0, dtype, "the gradient"));
    WEFTI_TRY(wefti_shaped(call, 3, call->inputs[2]->shape, "the log-sum-exp"));
    WEFTI_TRY(wide_input(call, 3, dtype, "the log-sum-exp"));
    wefti_type_set(&call->outputs[0], dtype, call->inputs[1]->shape);
    return WEFT_OK;
}

/* ---- attention ---- */

/* Checks q, k, v from input `first` on, and gives the shape of o. */
static weft_status attention_fits(const wefti_infer_call *call, int32_t first, weft_shape *shape_out) {
    weft_shape q = call->inputs[first]->shape, k = call->inputs[first + 1]->shape, v = call->inputs[first + 2]->shape;
    WEFTI_TRY(wefti_floating(call, first));
    WEFTI_TRY(wefti_one_dtype(call, first, first + 2));
    if (q.rank != 4 || k.rank != 4 || v.rank != 4)
        return wefti_misfit(call, WEFT_E_SHAPE, "queries, keys and values must be [B, heads, length, size]");
    if (k.dim[0] != q.dim[0] || v.dim[0] != q.dim[0])
        return wefti_misfit(call, WEFT_E_SHAPE, "batch sizes %lld, %lld and %lld differ", (long long)q.dim[0],
                            (long long)k.dim[0], (long long)v.dim[0]);
    if (k.dim[1] != v.dim[1] || k.dim[1] < 1 || q.dim[1] % k.dim[1])
        return wefti_misfit(call, WEFT_E_SHAPE,
                            "%lld query heads need key and value heads that divide them, not %lld and %lld",
                            (long long)q.dim[1], (long long)k.dim[1], (long long)v.dim[1]);
    if (k.dim[2] != v.dim[2])
        return wefti_misfit(call, WEFT_E_SHAPE, "%lld keys and %lld values differ", (long long)k.dim[2],
                            (long long)v.dim[2]);
    if (k.dim[3] != q.dim[3])
        return wefti_misfit(call, WEFT_E_SHAPE, "query size %lld and key size %lld differ", (long long)q.dim[3],
                            (long long)k.dim[3]);
    if (k.dim[2] < 1) return wefti_misfit(call, WEFT_E_SHAPE, "there are no keys to attend to");
    if (call->attrs->attention.causal && q.dim[2] > k.dim[2])
        return wefti_misfit(call, WEFT_E_SHAPE,
                            "causal: the first of %lld queries would see none of %lld keys (the last are aligned)",
                            (long long)q.dim[2], (long long)k.dim[2]);
    *shape_out = weft_shape(q.dim[0], q.dim[1], q.dim[2], v.dim[3]);
    return WEFT_OK;
}

weft_status wefti_shape_attention(wefti_infer_call *call) {
    weft_shape shape;
    WEFTI_TRY(attention_fits(call, 0, &shape));
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, shape);
    wefti_type_set(&call->outputs[1], wefti_wide(call->inputs[0]->dtype), leading(shape, 1));
    return WEFT_OK;
}

weft_status wefti_shape_attention_backward(wefti_infer_call *call) {
    weft_shape shape;
    WEFTI_TRY(attention_fits(call, 1, &shape));
    WEFTI_TRY(wefti_one_dtype(call, 0, 4));
    WEFTI_TRY(wefti_shaped(call, 0, shape, "the gradient"));
    WEFTI_TRY(wefti_shaped(call, 4, shape, "the result of the forward pass"));
    WEFTI_TRY(wefti_shaped(call, 5, leading(shape, 1), "the log-sum-exp"));
    WEFTI_TRY(wide_input(call, 5, call->inputs[1]->dtype, "the log-sum-exp"));
    for (int32_t i = 0; i < 3; i++)
        wefti_type_set(&call->outputs[i], call->inputs[i + 1]->dtype, call->inputs[i + 1]->shape);
    return WEFT_OK;
}

/* Shape rules of elementwise ops and reductions. */
#include "core/graph/internal.h"

weft_status wefti_shape_same(wefti_infer_call *call) {
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, call->inputs[0]->shape);
    return WEFT_OK;
}

weft_status wefti_shape_cast(wefti_infer_call *call) {
    int32_t dtype = call->attrs->cast.dtype;
    if ((uint32_t)dtype >= WEFT_DTYPE_COUNT) return wefti_misfit(call, WEFT_E_DTYPE, "%d is no dtype", dtype);
    wefti_type_set(&call->outputs[0], (weft_dtype)dtype, call->inputs[0]->shape);
    return WEFT_OK;
}

/* The broadcast shape of inputs `first`... */
static weft_status broadcast_inputs(wefti_infer_call *call, int32_t first, weft_shape *shape_out) {
    weft_shape shape = call->inputs[first]->shape;
    for (int32_t i = first + 1; i < call->n_inputs; i++)
        if (!wefti_broadcast(shape, call->inputs[i]->shape, &shape))
            return wefti_misfit(call, WEFT_E_SHAPE,
                                "%s and %s do not broadcast: aligned from the right, sizes must agree or be 1",
                                weft_shape_text(shape).text, weft_shape_text(call->inputs[i]->shape).text);
    *shape_out = shape;
    return WEFT_OK;
}

static weft_status elementwise(wefti_infer_call *call) {
    weft_shape shape;
    WEFTI_TRY(wefti_one_dtype(call, 0, call->n_inputs - 1));
    WEFTI_TRY(broadcast_inputs(call, 0, &shape));
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, shape);
    return WEFT_OK;
}

weft_status wefti_shape_arithmetic(wefti_infer_call *call) {
    for (int32_t i = 0; i < call->n_inputs; i++)
        if (call->inputs[i]->dtype == WEFT_BOOL)
            return wefti_misfit(call, WEFT_E_DTYPE, "arithmetic is not defined for bool: use weft_cast");
    return elementwise(call);
}

weft_status wefti_shape_floating(wefti_infer_call *call) {
    for (int32_t i = 0; i < call->n_inputs; i++) WEFTI_TRY(wefti_floating(call, i));
    return elementwise(call);
}

weft_status wefti_shape_logical(wefti_infer_call *call) {
    for (int32_t i = 0; i < call->n_inputs; i++)
        if (call->inputs[i]->dtype != WEFT_BOOL)
            return wefti_misfit(call, WEFT_E_DTYPE, "input %d must be bool, not %s: compare, or use weft_cast", i,
                                weft_dtype_name(call->inputs[i]->dtype));
    return elementwise(call);
}

weft_status wefti_shape_predicate(wefti_infer_call *call) {
    WEFTI_TRY(wefti_floating(call, 0));
    wefti_type_set(&call->outputs[0], WEFT_BOOL, call->inputs[0]->shape);
    return WEFT_OK;
}

weft_status wefti_shape_compare(wefti_infer_call *call) {
    WEFTI_TRY(elementwise(call));
    call->outputs[0].dtype = WEFT_BOOL;
    return WEFT_OK;
}

weft_status wefti_shape_where(wefti_infer_call *call) {
    if (call->inputs[0]->dtype != WEFT_BOOL)
        return wefti_misfit(call, WEFT_E_DTYPE, "the condition must be bool, not %s",
                            weft_dtype_name(call->inputs[0]->dtype));
    weft_shape shape;
    WEFTI_TRY(wefti_one_dtype(call, 1, 2));
    WEFTI_TRY(broadcast_inputs(call, 0, &shape));
    wefti_type_set(&call->outputs[0], call->inputs[1]->dtype, shape);
    return WEFT_OK;
}

weft_status wefti_shape_dropout(wefti_infer_call *call) {
    double p = call->attrs->dropout.p;
    WEFTI_TRY(wefti_floating(call, 0));
    if (!(p >= 0 && p < 1))
        return wefti_misfit(call, WEFT_E_INVALID, "p must be at least 0 and less than 1, not %g", p);
    if (call->inputs[1]->dtype != WEFT_I64 || call->inputs[1]->shape.rank != 0)
        return wefti_misfit(call, WEFT_E_SHAPE, "input 1 must be the step, i64 []");
    return wefti_shape_same(call);
}

/* ---- reductions ---- */

static weft_status reduced_shape(wefti_infer_call *call, weft_shape x, weft_shape *shape_out) {
    weft_shape shape = weft_shape_scalar();
    uint32_t   axes = call->attrs->reduce.axes;
    if (axes >> x.rank)
        return wefti_misfit(call, WEFT_E_INVALID, "an axis to reduce is out of range for rank %d", x.rank);
    for (int32_t axis = 0; axis < x.rank; axis++) {
        bool gone = axes >> axis & 1;
        if (!gone) shape.dim[shape.rank++] = x.dim[axis];
        if (gone && call->attrs->reduce.keep) shape.dim[shape.rank++] = 1;
    }
    *shape_out = shape;
    return WEFT_OK;
}

/* An extreme over no elements has no value. Where the result is empty too there is nothing to decide. */
static weft_status nothing_empty(wefti_infer_call *call, weft_shape result) {
    weft_shape x = call->inputs[0]->shape;
    for (int32_t axis = 0; axis < x.rank; axis++)
        if (call->attrs->reduce.axes >> axis & 1 && x.dim[axis] == 0 && weft_shape_elements(result) != 0)
            return wefti_misfit(call, WEFT_E_SHAPE, "axis %d is empty: there is no %s of nothing", axis,
                                call->op == WEFT_OP_MIN ? "minimum" : "maximum");
    return WEFT_OK;
}

weft_status wefti_shape_reduce(wefti_infer_call *call) {
    weft_shape shape;
    if (call->inputs[0]->dtype == WEFT_BOOL)
        return wefti_misfit(call, WEFT_E_DTYPE, "arithmetic is not defined for bool: use weft_cast");
    WEFTI_TRY(reduced_shape(call, call->inputs[0]->shape, &shape));
    if (call->op == WEFT_OP_MAX || call->op == WEFT_OP_MIN) WEFTI_TRY(nothing_empty(call, shape));
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, shape);
    return WEFT_OK;
}

weft_status wefti_shape_reduce_floating(wefti_infer_call *call) {
    WEFTI_TRY(wefti_floating(call, 0));
    if (!(call->attrs->reduce.count >= 0))
        return wefti_misfit(call, WEFT_E_INVALID, "the count to divide by must not be negative");
    return wefti_shape_reduce(call);
}

weft_status wefti_shape_argreduce(wefti_infer_call *call) {
    if (__builtin_popcount(call->attrs->reduce.axes) != 1)
        return wefti_misfit(call, WEFT_E_INVALID, "takes exactly one axis, got %d",
                            __builtin_popcount(call->attrs->reduce.axes));
    WEFTI_TRY(wefti_shape_reduce(call));
    WEFTI_TRY(nothing_empty(call, call->outputs[0].shape));
    call->outputs[0].dtype = WEFT_I64;
    return WEFT_OK;
}

weft_status wefti_shape_extent(wefti_infer_call *call) {
    weft_shape  unused;
    weft_dtype  dtype = call->inputs[0]->dtype;
    WEFTI_TRY(reduced_shape(call, call->inputs[0]->shape, &unused));
    wefti_type_set(&call->outputs[0], weft_dtype_is_float(dtype) ? dtype : WEFT_F32, weft_shape_scalar());
    return WEFT_OK;
}

weft_status wefti_shape_mean_backward(wefti_infer_call *call) {
    weft_shape shape = call->attrs->reduce.shape, reduced;
    WEFTI_TRY(wefti_floating(call, 0));
    if (weft_shape_elements(shape) < 0)
        return wefti_misfit(call, WEFT_E_SHAPE, "%s is no shape", weft_shape_text(shape).text);
    WEFTI_TRY(reduced_shape(call, shape, &reduced));
    WEFTI_TRY(wefti_shaped(call, 0, reduced, "the gradient"));
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, shape);
    return WEFT_OK;
}

/* Shape rules of views and moves. */
#include "core/graph/internal.h"

weft_status wefti_shape_reshape(wefti_infer_call *call) {
    weft_shape shape = call->attrs->view.shape, x = call->inputs[0]->shape;
    int64_t    have = weft_shape_elements(x), want = weft_shape_elements(shape);
    if (want < 0)
        return wefti_misfit(call, WEFT_E_SHAPE, "%s is no shape: sizes must not be negative, nor overflow",
                            weft_shape_text(shape).text);
    if (have != want)
        return wefti_misfit(call, WEFT_E_SHAPE, "%s has %lld elements, %s has %lld", weft_shape_text(x).text,
                            (long long)have, weft_shape_text(shape).text, (long long)want);
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, shape);
    return WEFT_OK;
}

weft_status wefti_shape_permute(wefti_infer_call *call) {
    weft_shape x = call->inputs[0]->shape, shape = x;
    uint32_t   seen = 0;
    for (int32_t i = 0; i < x.rank; i++) {
        int32_t axis = call->attrs->view.axes[i];
        if (axis < 0 || axis >= x.rank || seen >> axis & 1)
            return wefti_misfit(call, WEFT_E_INVALID, "each of the %d axes must be named once: axis %d is %s", x.rank,
                                axis, axis < 0 || axis >= x.rank ? "out of range" : "named twice");
        seen |= 1u << axis;
        shape.dim[i] = x.dim[axis];
    }
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, shape);
    return WEFT_OK;
}

weft_status wefti_shape_slice(wefti_infer_call *call) {
    weft_shape x = call->inputs[0]->shape, shape = x;
    for (int32_t axis = 0; axis < x.rank; axis++) {
        int64_t start = call->attrs->slice.start[axis], step = call->attrs->slice.step[axis], last;
        int64_t size = call->attrs->slice.size[axis];
        if (step < 1)
            return wefti_misfit(call, WEFT_E_INVALID, "axis %d: the step must be at least 1, not %lld", axis,
                                (long long)step);
        if (start < 0 || size < 0 || start > x.dim[axis] ||
            (size > 0 &&
             (!wefti_mul_i64(size - 1, step, &last) || !wefti_add_i64(start, last, &last) || last >= x.dim[axis])))
            return wefti_misfit(call, WEFT_E_SHAPE,
                                "axis %d: %lld elements from %lld with step %lld leave its size %lld", axis,
                                (long long)size, (long long)start, (long long)step, (long long)x.dim[axis]);
        shape.dim[axis] = size;
    }
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, shape);
    return WEFT_OK;
}

weft_status wefti_shape_expand(wefti_infer_call *call) {
    weft_shape shape = call->attrs->view.shape, x = call->inputs[0]->shape, joint;
    if (weft_shape_elements(shape) < 0)
        return wefti_misfit(call, WEFT_E_SHAPE, "%s is no shape: sizes must not be negative, nor overflow",
                            weft_shape_text(shape).text);
    if (!wefti_broadcast(x, shape, &joint) || !weft_shape_equal(joint, shape))
        return wefti_misfit(call, WEFT_E_SHAPE,
                            "%s does not broadcast to %s: aligned from the right, sizes must agree or be 1",
                            weft_shape_text(x).text, weft_shape_text(shape).text);
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, shape);
    return WEFT_OK;
}

weft_status wefti_shape_concat(wefti_infer_call *call) {
    int32_t    axis = call->attrs->axis.axis;
    weft_shape shape = call->inputs[0]->shape;
    if (axis < 0 || axis >= shape.rank)
        return wefti_misfit(call, WEFT_E_INVALID, "axis %d is out of range for rank %d", axis, shape.rank);
    WEFTI_TRY(wefti_one_dtype(call, 0, call->n_inputs - 1));
    for (int32_t i = 1; i < call->n_inputs; i++) {
        weft_shape other = call->inputs[i]->shape, expected = shape;
        if (other.rank == shape.rank) expected.dim[axis] = other.dim[axis];
        if (!weft_shape_equal(other, expected))
            return wefti_misfit(call, WEFT_E_SHAPE, "%s and %s ('%s') must agree in all axes but axis %d",
                                weft_shape_text(call->inputs[0]->shape).text, weft_shape_text(other).text,
                                call->inputs[i]->node->name, axis);
        if (!wefti_add_i64(shape.dim[axis], other.dim[axis], &shape.dim[axis]))
            return wefti_misfit(call, WEFT_E_OVERFLOW, "the sizes of axis %d add up to more than 63 bits", axis);
    }
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, shape);
    return WEFT_OK;
}

weft_status wefti_shape_pad(wefti_infer_call *call) {
    weft_shape shape = call->inputs[0]->shape;
    for (int32_t axis = 0; axis < shape.rank; axis++) {
        int64_t low = call->attrs->pad.low[axis], high = call->attrs->pad.high[axis],
                inner = call->attrs->pad.interior[axis];
        int64_t size = shape.dim[axis], fill = 0;
        if (low < 0 || high < 0 || inner < 0)
            return wefti_misfit(call, WEFT_E_INVALID, "axis %d: padding must not be negative: slice instead", axis);
        if ((size > 1 && !wefti_mul_i64(size - 1, inner, &fill)) || !wefti_add_i64(size, fill, &size) ||
            !wefti_add_i64(size, low, &size) || !wefti_add_i64(size, high, &size))
            return wefti_misfit(call, WEFT_E_OVERFLOW, "axis %d: the padded size does not fit 63 bits", axis);
        shape.dim[axis] = size;
    }
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, shape);
    return WEFT_OK;
}

/* x[:axis] + index.shape + x[axis+1:] */
static weft_status gathered(wefti_infer_call *call, weft_shape *shape_out) {
    weft_shape x = call->inputs[0]->shape, index = call->inputs[1]->shape, shape = weft_shape_scalar();
    int32_t    axis = call->attrs->axis.axis;
    WEFTI_TRY(wefti_index(call, 1));
    if (axis < 0 || axis >= x.rank)
        return wefti_misfit(call, WEFT_E_INVALID, "axis %d is out of range for rank %d", axis, x.rank);
    if (x.rank - 1 + index.rank > WEFT_MAX_RANK)
        return wefti_misfit(call, WEFT_E_SHAPE, "the result would have %d dimensions, at most %d are possible",
                            x.rank - 1 + index.rank, WEFT_MAX_RANK);
    for (int32_t i = 0; i < axis; i++) shape.dim[shape.rank++] = x.dim[i];
    for (int32_t i = 0; i < index.rank; i++) shape.dim[shape.rank++] = index.dim[i];
    for (int32_t i = axis + 1; i < x.rank; i++) shape.dim[shape.rank++] = x.dim[i];
    *shape_out = shape;
    return WEFT_OK;
}

weft_status wefti_shape_gather(wefti_infer_call *call) {
    weft_shape shape;
    WEFTI_TRY(gathered(call, &shape));
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, shape);
    return WEFT_OK;
}

weft_status wefti_shape_scatter_add(wefti_infer_call *call) {
    weft_shape shape;
    WEFTI_TRY(gathered(call, &shape));
    WEFTI_TRY(wefti_shaped(call, 2, shape, "the updates"));
    if (call->inputs[0]->dtype == WEFT_BOOL)
        return wefti_misfit(call, WEFT_E_DTYPE, "arithmetic is not defined for bool: use weft_cast");
    if (call->inputs[2]->dtype != call->inputs[0]->dtype)
        return wefti_misfit(call, WEFT_E_DTYPE, "%s and %s differ: give both one dtype with weft_cast",
                            weft_dtype_name(call->inputs[0]->dtype), weft_dtype_name(call->inputs[2]->dtype));
    return wefti_shape_same(call);
}

weft_status wefti_shape_occurrence(wefti_infer_call *call) {
    WEFTI_TRY(wefti_index(call, 0));
    weft_shape shape = call->inputs[0]->shape;
    if (shape.rank != 2 || weft_shape_elements(shape) > INT32_MAX)
        return wefti_misfit(call, WEFT_E_SHAPE, "the index must be [rows, columns] with at most %d elements", INT32_MAX);
    if (call->attrs->expert.experts < 1 || call->attrs->expert.experts > INT32_MAX)
        return wefti_misfit(call, WEFT_E_INVALID, "there must be at least one value to count, not %lld", (long long)call->attrs->expert.experts);
    wefti_type_set(&call->outputs[0], WEFT_I32, shape);
    return WEFT_OK;
}

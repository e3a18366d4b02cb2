/* Gradients of reductions, views and moves: each is undone by its counterpart. */
#include <string.h>

#include "core/autodiff/autodiff.h"

#define G call->gy[0]

/* ---- reductions ---- */

/* The gradient of a reduction's output, with the reduced axes as 1. */
static weft_tensor *kept_gradient(wefti_gradient_call *call) {
    return wefti_kept(G, call->node->inputs[0]->shape, call->node->attrs.reduce.axes);
}

void wefti_gradient_sum(wefti_gradient_call *call) {
    call->gx[0] = wefti_expanded(kept_gradient(call), call->node->inputs[0]->shape);
}

void wefti_gradient_mean(wefti_gradient_call *call) {
    weft_tensor *x = call->node->inputs[0];
    wefti_attrs  attrs = call->node->attrs;
    if (x->dtype == WEFT_F32 || x->dtype == WEFT_F64) {
        /* Divided while it is small; what is repeated is a view. Only the shape of x is looked at. */
        weft_tensor *count = wefti_node1(WEFT_OP_EXTENT, &attrs, x);
        call->gx[0] = wefti_expanded(wefti_over(kept_gradient(call), count), x->shape);
        return;
    }
    attrs.reduce.shape = x->shape; /* half types cannot hold the count */
    call->gx[0] = wefti_node1(WEFT_OP_MEAN_BACKWARD, &attrs, G);
}

void wefti_gradient_mean_backward(wefti_gradient_call *call) {
    wefti_attrs attrs = call->node->attrs;
    memset(&attrs.reduce.shape, 0, sizeof attrs.reduce.shape);
    call->gx[0] = wefti_node1(WEFT_OP_MEAN, &attrs, G);
}

/* All elements that reach the extreme share its gradient. */
static void extreme(wefti_gradient_call *call) {
    uint32_t     axes = call->node->attrs.reduce.axes;
    weft_tensor *x = wefti_primal(call, 0), *y = wefti_kept(wefti_result(call, 0), x->shape, axes);
    weft_tensor *mask = weft_eq(x, y), *count = wefti_summed(weft_cast(mask, x->dtype), axes);
    weft_tensor *share = wefti_over(kept_gradient(call), count);
    call->gx[0] = weft_where(mask, share, weft_scalar(call->graph, x->dtype, 0));
}

void wefti_gradient_max(wefti_gradient_call *call) { extreme(call); }
void wefti_gradient_min(wefti_gradient_call *call) { extreme(call); }

/* ---- views ---- */

void wefti_gradient_reshape(wefti_gradient_call *call) { call->gx[0] = weft_reshape(G, call->node->inputs[0]->shape); }

void wefti_gradient_permute(wefti_gradient_call *call) {
    weft_axes_list inverse = {.count = call->node->inputs[0]->shape.rank};
    for (int32_t i = 0; i < inverse.count; i++) inverse.axis[call->node->attrs.view.axes[i]] = i;
    call->gx[0] = weft_permute(G, inverse);
}

void wefti_gradient_slice(wefti_gradient_call *call) {
    const wefti_attrs *slice = &call->node->attrs;
    weft_shape         x = call->node->inputs[0]->shape;
    wefti_attrs        attrs = wefti_no_attrs();
    for (int32_t axis = 0; axis < x.rank; axis++) {
        int64_t size = slice->slice.size[axis], step = slice->slice.step[axis];
        attrs.pad.interior[axis] = size > 1 ? step - 1 : 0;
        attrs.pad.low[axis] = slice->slice.start[axis];
        attrs.pad.high[axis] = x.dim[axis] - slice->slice.start[axis] - (size > 0 ? (size - 1) * step + 1 : 0);
    }
    call->gx[0] = wefti_node1(WEFT_OP_PAD, &attrs, G);
}

void wefti_gradient_expand(wefti_gradient_call *call) { wefti_give(call, 0, G); }

/* ---- moves ---- */

/* Elements start, start + step, ... of every axis, shaped as `shape`. */
static weft_tensor *sliced(weft_tensor *x, const int64_t *start, const int64_t *step, weft_shape shape) {
    wefti_attrs attrs = wefti_no_attrs();
    for (int32_t axis = 0; axis < shape.rank; axis++) {
        attrs.slice.start[axis] = start[axis];
        attrs.slice.step[axis] = step[axis];
        attrs.slice.size[axis] = shape.dim[axis];
    }
    return wefti_node1(WEFT_OP_SLICE, &attrs, x);
}

void wefti_gradient_concat(wefti_gradient_call *call) {
    int64_t start[WEFT_MAX_RANK] = {0}, step[WEFT_MAX_RANK];
    for (int32_t axis = 0; axis < WEFT_MAX_RANK; axis++) step[axis] = 1;
    for (int32_t i = 0; i < call->node->n_inputs; i++) {
        weft_shape shape = call->node->inputs[i]->shape;
        if (call->needed[i]) call->gx[i] = sliced(G, start, step, shape);
        start[call->node->attrs.axis.axis] += shape.dim[call->node->attrs.axis.axis];
    }
}

void wefti_gradient_pad(wefti_gradient_call *call) {
    int64_t    step[WEFT_MAX_RANK];
    weft_shape shape = call->node->inputs[0]->shape;
    int64_t    start[WEFT_MAX_RANK];
    for (int32_t axis = 0; axis < shape.rank; axis++) {
        step[axis] = call->node->attrs.pad.interior[axis] + 1;
        start[axis] = call->node->attrs.pad.low[axis];
    }
    call->gx[0] = sliced(G, start, step, shape);
}

void wefti_gradient_gather(wefti_gradient_call *call) {
    weft_tensor *none = wefti_constant_like(call->node->inputs[0], 0);
    if (call->needed[0])
        call->gx[0] = wefti_node3(WEFT_OP_SCATTER_ADD, &call->node->attrs, none, wefti_primal(call, 1), G);
}

void wefti_gradient_scatter_add(wefti_gradient_call *call) {
    if (call->needed[0]) call->gx[0] = G;
    if (call->needed[2]) call->gx[2] = wefti_node2(WEFT_OP_GATHER, &call->node->attrs, G, wefti_primal(call, 1));
}

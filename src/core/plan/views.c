/* Views: RESHAPE, PERMUTE, SLICE and EXPAND become strided windows on memory that is there already.
 *
 * Everything but a RESHAPE of elements that lie apart can be a window; such a RESHAPE stays an item and copies. Transpositions that
 * feed a MATMUL go into its flags, so that devices see plain matrices. Outputs that are not memory of the plan, or lie apart, get a
 * copy of their own. Linear. */
#include <string.h>

#include "core/plan/ir.h"

/* --- the windows --- */

typedef struct axes_list {
    int32_t count;
    int64_t dim[WEFT_MAX_RANK], stride[WEFT_MAX_RANK];
} axes_list;

/* The axes that matter, neighbours merged where they run through. */
static axes_list merged_axes(const wefti_value *value) {
    axes_list list = {0};
    for (int32_t axis = 0; axis < value->shape.rank; axis++) {
        int64_t dim = value->shape.dim[axis], stride = value->stride[axis];
        if (dim == 1) continue;
        int32_t last = list.count - 1;
        if (last >= 0 && list.stride[last] == dim * stride) {
            list.dim[last] *= dim;
            list.stride[last] = stride;
        } else {
            list.dim[list.count] = dim;
            list.stride[list.count++] = stride;
        }
    }
    return list;
}

bool wefti_reshape_strides(const wefti_value *value, weft_shape shape, int64_t *stride_out) {
    if (weft_shape_elements(shape) == 0 || wefti_value_is_dense(value)) {
        wefti_dense_strides(shape, stride_out);
        return true;
    }
    axes_list list = merged_axes(value);
    int32_t   own = list.count - 1;
    int64_t   left = own >= 0 ? list.dim[own] : 1, stride = own >= 0 ? list.stride[own] : 1;
    /* From the last axis: each new axis takes its factor out of one merged axis. */
    for (int32_t axis = shape.rank - 1; axis >= 0; axis--) {
        int64_t dim = shape.dim[axis];
        stride_out[axis] = stride;
        if (dim == 1) continue;
        if (left == 1 && --own >= 0) {
            left = list.dim[own];
            stride_out[axis] = stride = list.stride[own];
        }
        if (left % dim) return false;
        left /= dim;
        stride *= dim;
    }
    return true;
}

static bool view_of(const wefti_item *item, const wefti_value *in, wefti_value *out) {
    int64_t stride[WEFT_MAX_RANK] = {0}, offset = in->offset;
    int32_t missing = out->shape.rank - in->shape.rank;
    switch (item->op) {
    case WEFT_OP_RESHAPE:
        if (!wefti_reshape_strides(in, out->shape, stride)) return false;
        break;
    case WEFT_OP_PERMUTE:
        for (int32_t axis = 0; axis < out->shape.rank; axis++) stride[axis] = in->stride[item->attrs->view.axes[axis]];
        break;
    case WEFT_OP_SLICE:
        for (int32_t axis = 0; axis < out->shape.rank; axis++) {
            offset += item->attrs->slice.start[axis] * in->stride[axis];
            stride[axis] = in->stride[axis] * item->attrs->slice.step[axis];
        }
        if (weft_shape_elements(out->shape) == 0) offset = in->offset; /* never past the end */
        break;
    default: /* EXPAND */
        for (int32_t axis = missing; axis < out->shape.rank; axis++)
            stride[axis] = in->shape.dim[axis - missing] == 1 ? 0 : in->stride[axis - missing];
        break;
    }
    out->root = in->root;
    out->offset = offset;
    memcpy(out->stride, stride, sizeof stride);
    out->uniform = in->uniform;
    out->constant = in->constant;
    return true;
}

/* --- matrices --- */

/* Whether the last two axes lie transposed: columns side by side. */
static bool lies_transposed(const wefti_value *value) {
    int32_t rank = value->shape.rank;
    return value->root >= 0 && rank >= 2 && value->shape.dim[rank - 1] > 1 && value->shape.dim[rank - 2] > 1 &&
           value->stride[rank - 2] == 1 && value->stride[rank - 1] >= value->shape.dim[rank - 2];
}

static weft_status swap_last(wefti_ir *ir, int32_t from, int32_t *value_out) {
    WEFTI_TRY(wefti_ir_value(ir, ir->values[from].dtype, ir->values[from].shape, -1, 0, value_out));
    wefti_value *value = &ir->values[*value_out], *source = &ir->values[from];
    int32_t      last = value->shape.rank - 1;
    value->root = source->root;
    value->offset = source->offset;
    memcpy(value->stride, source->stride, sizeof value->stride);
    value->shape.dim[last] = source->shape.dim[last - 1];
    value->shape.dim[last - 1] = source->shape.dim[last];
    value->stride[last] = source->stride[last - 1];
    value->stride[last - 1] = source->stride[last];
    return WEFT_OK;
}

static weft_status absorb_transposes(wefti_ir *ir, int32_t index) {
    bool swap[2];
    for (int32_t i = 0; i < 2; i++) swap[i] = lies_transposed(&ir->values[ir->items[index].inputs[i]]);
    if (!swap[0] && !swap[1]) return WEFT_OK;
    wefti_attrs *attrs;
    WEFTI_TRY(wefti_ir_attrs(ir, &attrs));
    attrs->matmul = ir->items[index].attrs->matmul;
    attrs->matmul.trans_a ^= swap[0];
    attrs->matmul.trans_b ^= swap[1];
    ir->items[index].attrs = attrs;
    for (int32_t i = 0; i < 2; i++)
        if (swap[i]) WEFTI_TRY(swap_last(ir, ir->items[index].inputs[i], &ir->items[index].inputs[i]));
    return WEFT_OK;
}

/* --- outputs --- */

/* What may be handed out as it is: dense, and memory of the plan or of a variable. */
static bool can_be_output(const wefti_ir *ir, const wefti_value *value) {
    wefti_home place = ir->values[value->root].place;
    return wefti_value_is_dense(value) && !value->uniform && (place == WEFTI_HOME_ARENA || place == WEFTI_HOME_VARIABLE);
}

static weft_status own_outputs(wefti_ir *ir) {
    int64_t last = (int64_t)(ir->graph->n_nodes + 2) * WEFTI_KEY_STEP;
    for (int32_t i = 0; i < ir->n_outputs; i++)
        if (!can_be_output(ir, &ir->values[ir->outputs[i]]))
            WEFTI_TRY(wefti_ir_copy(ir, ir->outputs[i], last, "output", &ir->outputs[i]));
    return WEFT_OK;
}

weft_status wefti_pass_views(wefti_ir *ir) {
    for (int32_t k = 0; k < ir->n_order; k++) {
        int32_t     index = ir->order[k];
        wefti_item *item = &ir->items[index];
        if (item->op == WEFT_OP_MATMUL) WEFTI_TRY(absorb_transposes(ir, index));
        if (wefti_ops[item->op].family != WEFTI_VIEW) continue;
        wefti_value *out = &ir->values[item->outputs[0]];
        if (!view_of(item, &ir->values[item->inputs[0]], out)) continue;
        out->item = -1;
        item->dead = true;
    }
    WEFTI_TRY(own_outputs(ir));
    return wefti_ir_settle(ir);
}

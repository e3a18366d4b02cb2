/* Layout: images with channels last, where the device would rather have them so.
 *
 * Programs say [N, C, H, W]. A device may compute convolutions the faster with the channels of a pixel side by side (device.h,
 * channels_last). What such a convolution gives is then a value [N, H, W, C], and the image that the program knows is a PERMUTE of it, which
 * the views' pass makes a window. Elementwise ops and reductions of it go on in [N, H, W, C], pooling if the device likes; whoever else
 * reads it looks through the window. An image that comes to a convolution in the program's order is written the other way where it is
 * computed, if that is elementwise, else copied; so is a kernel of more than one element. Gradients of kernels are read through a window by
 * what adds them to parameters, which keep their order.
 * Nothing changes but the order in memory, and with it that of long sums. Linear. */
#include <string.h>

#include "core/plan/ir.h"

enum { DEEP = 16 /* of elementwise chains that are written the other way, back from a convolution */ };

typedef struct layouter {
    wefti_ir  *ir;
    int32_t   *moved; /* by value: it with channels last; -1: there is none */
    int32_t    n_values;
    wefti_uses uses;
} layouter;

static const int32_t to_last[4] = {0, 2, 3, 1}, from_last[4] = {0, 3, 1, 2};

static int32_t moved_of(const layouter *l, int32_t value) { return value < l->n_values ? l->moved[value] : -1; }

static weft_shape last_shape(weft_shape shape) {
    return weft_shape(shape.dim[0], shape.dim[2], shape.dim[3], shape.dim[1]);
}

/* --- views --- */

/* Adds a RESHAPE to `shape`, or a PERMUTE by `axes`. Its output is `output`, or a value that is made where that is -1. */
static weft_status add_view(wefti_ir *ir, int32_t input, weft_shape shape, const int32_t *axes, const wefti_item *like, int64_t key, int32_t output,
                            int32_t *value_out) {
    wefti_attrs *attrs;
    int32_t      item;
    uint32_t     flags = like->flags;
    WEFTI_TRY(wefti_ir_attrs(ir, &attrs));
    attrs->view.shape = shape;
    if (axes) memcpy(attrs->view.axes, axes, 4 * sizeof *axes);
    WEFTI_TRY(wefti_ir_item(ir, axes ? WEFT_OP_PERMUTE : WEFT_OP_RESHAPE, attrs, 1, 1, like->name, key, &item));
    ir->items[item].inputs[0] = input;
    ir->items[item].flags = flags;
    ir->items[item].graph_ops = 0;
    *value_out = output;
    if (output < 0) return wefti_ir_value(ir, ir->values[input].dtype, shape, item, 0, value_out);
    ir->items[item].outputs[0] = output;
    ir->values[output].item = item;
    ir->values[output].output = 0;
    return WEFT_OK;
}

/* Output `o` of the item becomes [N, H, W, C]; the value that it was, a PERMUTE of that. */
static weft_status leave_last(layouter *l, int32_t index, int32_t o, int32_t *last_out) {
    wefti_ir *ir = l->ir;
    int32_t   value = ir->items[index].outputs[o], same;
    weft_shape shape = ir->values[value].shape;
    WEFTI_TRY(wefti_ir_value(ir, ir->values[value].dtype, last_shape(shape), index, o, last_out));
    wefti_item like = ir->items[index];
    return add_view(ir, *last_out, shape, from_last, &like, like.key, value, &same); /* equal keys: made later, stands behind */
}

/* The value, broadcast to four axes, with channels last, for the item to read. */
static weft_status last_view(layouter *l, int32_t index, int32_t value, int32_t *view_out) {
    wefti_ir   *ir = l->ir;
    wefti_item  like = ir->items[index];
    weft_shape  shape = ir->values[value].shape, four = weft_shape(1, 1, 1, 1);
    *view_out = moved_of(l, value);
    if (*view_out >= 0 && ir->items[ir->values[*view_out].item].key < like.key) return WEFT_OK; /* else it is a later convolution's copy */
    *view_out = value;
    if (weft_shape_elements(shape) == 1) return WEFT_OK;
    for (int32_t axis = 0; axis < shape.rank; axis++) four.dim[4 - shape.rank + axis] = shape.dim[axis];
    if (shape.rank < 4) WEFTI_TRY(add_view(ir, value, four, NULL, &like, like.key - 1, -1, &value));
    return add_view(ir, value, last_shape(four), to_last, &like, like.key - 1, -1, view_out);
}

/* --- what follows its inputs --- */

static bool may_follow(const wefti_ir *ir, const wefti_item *item) {
    return wefti_op_is_elementwise(item->op) && item->op != WEFT_OP_DROPOUT && ir->values[item->outputs[0]].shape.rank == 4;
}

/* The item that computes `value`, if it may be written the other way for a reader's sake; -1: none. */
static int32_t producer_to_move(const layouter *l, int32_t value, bool alone) {
    const wefti_ir *ir = l->ir;
    int32_t         item = ir->values[value].item;
    if (value >= l->n_values || item < 0 || !may_follow(ir, &ir->items[item])) return -1;
    if (alone && l->uses.start[value + 1] - l->uses.start[value] != 1) return -1;
    return item;
}

static weft_status move_elementwise(layouter *l, int32_t index, int depth) {
    wefti_ir *ir = l->ir;
    int32_t   value = ir->items[index].outputs[0], last;
    for (int32_t i = 0; i < ir->items[index].n_inputs; i++) {
        int32_t input = ir->items[index].inputs[i], producer;
        bool    whole = weft_shape_equal(ir->values[input].shape, ir->values[value].shape);
        if (whole && depth > 0 && moved_of(l, input) < 0 && (producer = producer_to_move(l, input, true)) >= 0)
            WEFTI_TRY(move_elementwise(l, producer, depth - 1));
        WEFTI_TRY(last_view(l, index, input, &input));
        ir->items[index].inputs[i] = input;
    }
    WEFTI_TRY(leave_last(l, index, 0, &last));
    l->moved[value] = last;
    return WEFT_OK;
}

static weft_status follow(layouter *l, int32_t index) {
    const wefti_ir   *ir = l->ir;
    const wefti_item *item = &ir->items[index];
    if (!may_follow(ir, item) || moved_of(l, item->outputs[0]) >= 0) return WEFT_OK;
    for (int32_t i = 0; i < item->n_inputs; i++)
        if (moved_of(l, item->inputs[i]) >= 0 && weft_shape_equal(ir->values[item->inputs[i]].shape, ir->values[item->outputs[0]].shape))
            return move_elementwise(l, index, DEEP);
    return WEFT_OK;
}

/* A reduction whose kept elements come in the same order either way. */
static weft_status reduce(layouter *l, int32_t index) {
    wefti_ir   *ir = l->ir;
    wefti_item *item = &ir->items[index];
    int32_t     input = item->inputs[0], last = moved_of(l, input), value = item->outputs[0];
    uint32_t    axes = item->attrs->reduce.axes, turned = 0, wide = 0;
    if (last < 0 || value >= l->n_values) return WEFT_OK;
    for (int32_t axis = 0; axis < 4; axis++) {
        if (axes >> to_last[axis] & 1) turned |= UINT32_C(1) << axis;
        if (!(axes >> axis & 1) && ir->values[input].shape.dim[axis] > 1) wide |= UINT32_C(1) << axis;
    }
    bool keeps = ir->values[value].shape.rank == 4;
    if (!keeps && (wide & 2) && (wide & 12)) return WEFT_OK;
    wefti_attrs *attrs;
    WEFTI_TRY(wefti_ir_attrs(ir, &attrs));
    *attrs = *item->attrs;
    attrs->reduce.axes = turned;
    item->attrs = attrs;
    item->inputs[0] = last;
    if (!keeps) return WEFT_OK;
    WEFTI_TRY(leave_last(l, index, 0, &last));
    l->moved[value] = last;
    return WEFT_OK;
}

/* --- convolutions and pooling --- */

static weft_status is_preferred(const wefti_ir *ir, const wefti_item *item, bool *preferred_out) {
    wefti_operand operands[4];
    wefti_call    call;
    wefti_item_call(ir, item, operands, operands + item->n_inputs, &call);
    *preferred_out = ir->device->vtable->channels_last(ir->device, &call);
    return WEFT_OK;
}

/* Sees to it that a convolution's operand lies with channels last: where it is computed, or in a copy. */
static weft_status bring(layouter *l, int32_t index, int32_t i) {
    wefti_ir  *ir = l->ir;
    int32_t    value = ir->items[index].inputs[i], view;
    weft_shape shape = ir->values[value].shape;
    if (shape.dim[1] == 1 || shape.dim[2] * shape.dim[3] == 1) return WEFT_OK; /* it is the same */
    int32_t producer = moved_of(l, value) < 0 ? producer_to_move(l, value, false) : -1;
    if (producer >= 0) WEFTI_TRY(move_elementwise(l, producer, DEEP));
    wefti_item like = ir->items[index];
    WEFTI_TRY(last_view(l, index, value, &view));
    if (moved_of(l, value) < 0) {
        WEFTI_TRY(wefti_ir_copy(ir, view, like.key, like.name, &view));
        ir->items[ir->values[view].item].flags = like.flags;
        if (value < l->n_values) l->moved[value] = view;
    }
    return add_view(ir, view, shape, from_last, &like, like.key - 1, -1, &ir->items[index].inputs[i]);
}

static weft_status convolve(layouter *l, int32_t index) {
    wefti_ir *ir = l->ir;
    bool      preferred;
    int32_t   value = ir->items[index].outputs[0], last;
    WEFTI_TRY(is_preferred(ir, &ir->items[index], &preferred));
    if (!preferred) return WEFT_OK;
    for (int32_t i = 0; i < 2; i++) WEFTI_TRY(bring(l, index, i));
    WEFTI_TRY(leave_last(l, index, 0, &last));
    if (ir->items[index].op != WEFT_OP_CONV2D_BACKWARD_WEIGHT) l->moved[value] = last;
    ir->items[index].last = true;
    return WEFT_OK;
}

static weft_status pool(layouter *l, int32_t index) {
    wefti_ir *ir = l->ir;
    bool      preferred = false;
    int32_t   last;
    for (int32_t i = 0; i < ir->items[index].n_inputs; i++) preferred |= moved_of(l, ir->items[index].inputs[i]) >= 0;
    if (preferred) WEFTI_TRY(is_preferred(ir, &ir->items[index], &preferred));
    if (!preferred) return WEFT_OK;
    for (int32_t o = 0; o < ir->items[index].n_outputs; o++) {
        int32_t value = ir->items[index].outputs[o];
        WEFTI_TRY(leave_last(l, index, o, &last));
        l->moved[value] = last;
    }
    ir->items[index].last = true;
    return WEFT_OK;
}

static weft_status walk(layouter *l) {
    wefti_ir *ir = l->ir;
    for (int32_t k = 0; k < ir->n_order; k++) {
        int32_t index = ir->order[k];
        weft_op op = ir->items[index].op;
        if (wefti_op_is_elementwise(op)) WEFTI_TRY(follow(l, index));
        else if (wefti_op_is_reduction(op)) WEFTI_TRY(reduce(l, index));
        else if (wefti_ops[op].family == WEFTI_CONV) WEFTI_TRY(convolve(l, index));
        else if (wefti_ops[op].family == WEFTI_POOL) WEFTI_TRY(pool(l, index));
    }
    return wefti_ir_settle(ir);
}

weft_status wefti_pass_layout(wefti_ir *ir) {
    layouter    l = {.ir = ir, .n_values = ir->n_values};
    size_t      bytes = (size_t)ir->n_values * sizeof *l.moved;
    weft_status status;
    if (!ir->device->vtable->channels_last) return WEFT_OK;
    WEFTI_TRY(wefti_ir_uses(ir, false, &l.uses));
    WEFTI_TRY_GOTO(wefti_alloc(bytes, "a plan", &l.moved), done);
    memset(l.moved, 0xff, bytes);
    status = walk(&l);
done:
    wefti_uses_release(&l.uses);
    wefti_free(l.moved, bytes);
    return status;
}

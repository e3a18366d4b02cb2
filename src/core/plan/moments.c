/* Moments: the mean of x and that of (x - mean)^2, which batch norm takes of every activation, in one pass over x instead of two.
 *
 * The second is the mean of (x - k)^2, less (mean - k)^2, for any k. Here k is the first of the elements that are averaged, so it lies where
 * they do, and nothing is lost by subtracting (Chan, Golub & LeVeque 1983, "shifted data"). So both are sums of what can be computed
 * without having seen x before, which the fuser makes in one go.
 * Only of what was widened from 16 bits, whose own rounding is coarser than anything that this changes, and where x lies in memory anyway.
 * Linear. */
#include <string.h>

#include "core/plan/ir.h"

enum { ITEMS = 8 /* that one becomes */ };

/* Who computes the value; NULL: nobody, or it is a view. */
static const wefti_item *producer(const wefti_ir *ir, int32_t value) {
    const wefti_value *v = &ir->values[value];
    return v->root == value && v->item >= 0 ? &ir->items[v->item] : NULL;
}

/* Of a MEAN of (x - mean of x)^2: x and that mean; false where it is something else. */
static bool match(const wefti_ir *ir, const wefti_item *item, int32_t *x_out, int32_t *mean_out) {
    const wefti_item *square, *centred, *mean, *cast;
    if (item->op != WEFT_OP_MEAN || !(square = producer(ir, item->inputs[0])) || square->op != WEFT_OP_SQUARE) return false;
    if (!(centred = producer(ir, square->inputs[0])) || centred->op != WEFT_OP_SUB) return false;
    *x_out = centred->inputs[0], *mean_out = centred->inputs[1];
    if (!(mean = producer(ir, *mean_out)) || mean->op != WEFT_OP_MEAN || mean->inputs[0] != *x_out) return false;
    if (memcmp(mean->attrs, item->attrs, sizeof *item->attrs) != 0) return false;
    if (!weft_shape_equal(ir->values[*mean_out].shape, ir->values[item->outputs[0]].shape)) return false;
    if (ir->values[*mean_out].shape.rank != ir->values[*x_out].shape.rank) return false; /* without reduced axes it may be stretched along others */
    if (!(cast = producer(ir, *x_out)) || cast->op != WEFT_OP_CAST || ir->values[*x_out].dtype != WEFT_F32) return false;
    const wefti_value *narrow = &ir->values[cast->inputs[0]];
    int32_t            behind = ir->values[narrow->root].item;
    if (narrow->dtype != WEFT_BF16 && narrow->dtype != WEFT_F16) return false;
    return !narrow->uniform && weft_shape_elements(narrow->shape) > 0 && weft_shape_equal(narrow->shape, ir->values[*x_out].shape) &&
           (behind < 0 || !wefti_op_is_elementwise(ir->items[behind].op));
}

/* A window on the first element of those that are averaged together, of `shape` or, where that is the whole one, repeated. */
static weft_status add_first(wefti_ir *ir, int32_t narrow, weft_shape shape, uint32_t axes, int32_t *value_out) {
    WEFTI_TRY(wefti_ir_value(ir, ir->values[narrow].dtype, shape, -1, 0, value_out));
    wefti_value *first = &ir->values[*value_out], *source = &ir->values[narrow];
    first->root = source->root;
    first->offset = source->offset;
    for (int32_t axis = 0; axis < shape.rank; axis++) first->stride[axis] = axes >> axis & 1 ? 0 : source->stride[axis];
    return WEFT_OK;
}

/* Adds an item of one or two inputs (-1: none) at `like`'s place, which moves on; its output is `output`, or made where that is -1. */
static weft_status add_item(wefti_ir *ir, weft_op op, const wefti_attrs *attrs, int32_t a, int32_t b, wefti_item *like, weft_shape shape,
                            int32_t output, int32_t *value_out) {
    wefti_attrs *own = NULL;
    int32_t      item;
    if (!attrs) WEFTI_TRY(wefti_ir_attrs(ir, &own));
    if (op == WEFT_OP_CAST) own->cast.dtype = WEFT_F32;
    WEFTI_TRY(wefti_ir_item(ir, op, attrs ? attrs : own, b < 0 ? 1 : 2, 1, like->name, like->key, &item));
    like->key += 2; /* items are copied to in between */
    ir->items[item].inputs[0] = a;
    if (b >= 0) ir->items[item].inputs[1] = b;
    ir->items[item].flags = like->flags;
    ir->items[item].micro = like->micro;
    ir->items[item].flops = (double)weft_shape_elements(op == WEFT_OP_MEAN ? ir->values[a].shape : shape);
    ir->items[item].graph_ops = 0;
    *value_out = output;
    if (output < 0) return wefti_ir_value(ir, WEFT_F32, shape, item, 0, value_out);
    ir->items[item].outputs[0] = output;
    ir->values[output].item = item;
    ir->values[output].output = 0;
    return WEFT_OK;
}

static weft_status rewrite(wefti_ir *ir, int32_t index, int32_t x, int32_t mean) {
    wefti_item like = ir->items[index];
    weft_shape whole = ir->values[x].shape, small = ir->values[mean].shape;
    uint32_t   axes = like.attrs->reduce.axes;
    int32_t    narrow = ir->items[ir->values[x].item].inputs[0], first, k, shifted, squared, moment, off, off_squared, variance = like.outputs[0];
    ir->items[index].dead = true;
    like.key -= 2 * (ITEMS - 1); /* the last one stands where it stood */
    WEFTI_TRY(add_first(ir, narrow, whole, axes, &first));
    WEFTI_TRY(add_item(ir, WEFT_OP_CAST, NULL, first, -1, &like, whole, -1, &k));
    WEFTI_TRY(add_item(ir, WEFT_OP_SUB, NULL, x, k, &like, whole, -1, &shifted));
    WEFTI_TRY(add_item(ir, WEFT_OP_SQUARE, NULL, shifted, -1, &like, whole, -1, &squared));
    WEFTI_TRY(add_item(ir, WEFT_OP_MEAN, like.attrs, squared, -1, &like, small, -1, &moment));
    WEFTI_TRY(add_first(ir, narrow, small, axes, &first));
    WEFTI_TRY(add_item(ir, WEFT_OP_CAST, NULL, first, -1, &like, small, -1, &k));
    WEFTI_TRY(add_item(ir, WEFT_OP_SUB, NULL, mean, k, &like, small, -1, &off));
    WEFTI_TRY(add_item(ir, WEFT_OP_SQUARE, NULL, off, -1, &like, small, -1, &off_squared));
    WEFTI_TRY(add_item(ir, WEFT_OP_SUB, NULL, moment, off_squared, &like, small, variance, &variance));
    ir->items[ir->values[variance].item].graph_ops = like.graph_ops;
    return WEFT_OK;
}

weft_status wefti_pass_moments(wefti_ir *ir) {
    int32_t x, mean, n = ir->n_order;
    if (ir->options.base.no_fusion || !ir->device->vtable->fuses_reductions) return WEFT_OK;
    for (int32_t k = 0; k < n; k++)
        if (match(ir, &ir->items[ir->order[k]], &x, &mean)) WEFTI_TRY(rewrite(ir, ir->order[k], x, mean));
    return wefti_ir_settle(ir);
}

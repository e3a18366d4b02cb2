/* Heads side by side: attention's results where products of rows want them, so that nobody copies them there.
 *
 * Queries, keys and values are usually slices of one product's rows, [B, T, heads, D], seen head by head; views do that. The way back is a
 * copy: of the result, before the product that follows it, and of three gradients, put side by side (CONCAT). Where the device says that
 * it can write by rows, the copy goes and attention's output is what the copy's was (attrs.attention.by_rows). Linear. */
#include <string.h>

#include "core/plan/ir.h"

/* A value of [B, H, T, D] becomes a window on `root`, whose rows have `heads` heads side by side, from head `first` on. */
static void lay_by_rows(wefti_ir *ir, int32_t index, int32_t root, int64_t first, int64_t heads) {
    wefti_value *value = &ir->values[index];
    int64_t      depth = value->shape.dim[3];
    value->root = root;
    value->item = -1;
    value->offset = first * depth;
    value->stride[0] = value->shape.dim[2] * heads * depth;
    value->stride[1] = depth;
    value->stride[2] = heads * depth;
    value->stride[3] = 1;
}

/* Whether `value` is [B, T, H, D] of the whole root, which lies as [B, H, T, D]. */
static bool is_turned(const wefti_ir *ir, int32_t value, int32_t root) {
    const wefti_value *turned = &ir->values[value], *of = &ir->values[root];
    if (turned->root != root || turned->offset != 0 || turned->dtype != of->dtype || turned->shape.rank != 4 || of->shape.rank != 4) return false;
    static const int32_t axes[4] = {0, 2, 1, 3};
    for (int32_t axis = 0; axis < 4; axis++) {
        if (turned->shape.dim[axis] != of->shape.dim[axes[axis]]) return false;
        if (turned->shape.dim[axis] > 1 && turned->stride[axis] != of->stride[axes[axis]]) return false;
    }
    return true;
}

static void give(wefti_ir *ir, int32_t value, int32_t item) {
    ir->items[item].outputs[0] = value;
    ir->values[value].item = item;
    ir->values[value].output = 0;
}

static weft_status ask_for_rows(wefti_ir *ir, int32_t item) {
    wefti_attrs *attrs;
    WEFTI_TRY(wefti_ir_attrs(ir, &attrs));
    attrs->attention = ir->items[item].attrs->attention;
    attrs->attention.by_rows = 1;
    ir->items[item].attrs = attrs;
    return WEFT_OK;
}

/* Whether all who read the root read it as it is, or turned as the copy does; they go on to do so when it lies by rows. */
static bool is_read_plainly(const wefti_ir *ir, const wefti_uses *uses, int32_t root) {
    for (int32_t u = uses->start[root]; u < uses->start[root + 1]; u++) {
        const wefti_item *user = &ir->items[uses->users[u]];
        for (int32_t i = 0; i < user->n_inputs; i++)
            if (ir->values[user->inputs[i]].root == root && user->inputs[i] != root && !is_turned(ir, user->inputs[i], root)) return false;
    }
    return true;
}

/* The copy `item` (a RESHAPE of [B, T, H, D] turned) of what an ATTENTION computed goes. */
static weft_status turn_result(wefti_ir *ir, const wefti_uses *uses, int32_t item) {
    wefti_item *copy = &ir->items[item];
    int32_t     root = ir->values[copy->inputs[0]].root, attention = ir->values[root].item, result = copy->outputs[0];
    if (attention < 0 || ir->values[result].root != result || ir->items[attention].op != WEFT_OP_ATTENTION || ir->values[root].output != 0 || ir->items[attention].attrs->attention.by_rows ||
        !is_turned(ir, copy->inputs[0], root) || wefti_ir_is_output(ir, root) || !is_read_plainly(ir, uses, root))
        return WEFT_OK;
    for (int32_t u = uses->start[root]; u < uses->start[root + 1]; u++) {
        const wefti_item *user = &ir->items[uses->users[u]];
        for (int32_t i = 0; i < user->n_inputs; i++) {
            wefti_value *turned = &ir->values[user->inputs[i]];
            if (user->inputs[i] == root || turned->root != root) continue;
            turned->root = result;
            wefti_dense_strides(turned->shape, turned->stride);
        }
    }
    lay_by_rows(ir, root, result, 0, ir->values[root].shape.dim[1]);
    give(ir, result, attention);
    copy->dead = true;
    return ask_for_rows(ir, attention);
}

/* Whether input i of the CONCAT is output i of the gradient, turned, and nobody else wants that. */
static bool is_own_gradient(const wefti_ir *ir, const wefti_uses *uses, const wefti_item *concat, int32_t i, int32_t attention) {
    int32_t root = ir->values[concat->inputs[i]].root;
    return ir->values[root].item == attention && ir->values[root].output == i && is_turned(ir, concat->inputs[i], root) && !wefti_ir_is_output(ir, root) &&
           uses->start[root + 1] - uses->start[root] == 1;
}

/* The CONCAT `item` of an ATTENTION_BACKWARD's outputs, heads side by side, goes. */
static weft_status join_gradients(wefti_ir *ir, const wefti_uses *uses, int32_t item) {
    wefti_item *concat = &ir->items[item];
    if (concat->n_inputs != 3 || concat->attrs->axis.axis != 2) return WEFT_OK;
    int32_t attention = ir->values[ir->values[concat->inputs[0]].root].item;
    if (attention < 0 || ir->items[attention].op != WEFT_OP_ATTENTION_BACKWARD || ir->items[attention].attrs->attention.by_rows) return WEFT_OK;
    for (int32_t i = 0; i < 3; i++)
        if (!is_own_gradient(ir, uses, concat, i, attention)) return WEFT_OK;
    const wefti_value *dq = &ir->values[ir->values[concat->inputs[0]].root], *dk = &ir->values[ir->values[concat->inputs[1]].root];
    const wefti_value *dv = &ir->values[ir->values[concat->inputs[2]].root], *joined = &ir->values[concat->outputs[0]];
    int64_t heads = dq->shape.dim[1];
    if (dk->shape.dim[1] != heads || dk->shape.dim[2] != dq->shape.dim[2] || dk->shape.dim[3] != dv->shape.dim[3] || joined->root != concat->outputs[0])
        return WEFT_OK;
    for (int32_t i = 0; i < 3; i++) lay_by_rows(ir, ir->values[concat->inputs[i]].root, concat->outputs[0], i * heads, 3 * heads);
    concat->dead = true;
    ir->items[attention].n_outputs = 1;
    give(ir, concat->outputs[0], attention);
    return ask_for_rows(ir, attention);
}

weft_status wefti_pass_heads(wefti_ir *ir) {
    if (!ir->device->vtable->attention_by_rows) return WEFT_OK;
    wefti_uses  uses = {0};
    weft_status status = wefti_ir_uses(ir, true, &uses);
    for (int32_t k = 0; k < ir->n_order && status == WEFT_OK; k++) {
        int32_t item = ir->order[k];
        if (ir->items[item].op == WEFT_OP_RESHAPE) status = turn_result(ir, &uses, item);
        if (ir->items[item].op == WEFT_OP_CONCAT && status == WEFT_OK) status = join_gradients(ir, &uses, item);
    }
    wefti_uses_release(&uses);
    return status == WEFT_OK ? wefti_ir_settle(ir) : status;
}

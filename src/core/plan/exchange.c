/* Gathering and scattering along any axis, evenly or not, in terms of what engines do: equal parts, one behind the other.
 *
 * ALL_GATHER: each rank's part is padded to the longest and gathered as [ranks, part]; the parts are then joined along the axis.
 * REDUCE_SCATTER: the parts are cut out, padded and laid as [ranks, part]; what comes back is cut to length. Parts are weft_batch_share's.
 * Where the axis is the outermost that counts and all parts are equal, that is what memory looks like anyway, and nothing is done. */
#include <string.h>

#include "core/plan/ir.h"
#include "weft/batch.h"

typedef struct exchange {
    wefti_ir  *ir;
    wefti_item item; /* a copy of what is replaced */
    int32_t    axis, ranks, index;
    int64_t    longest;
    int64_t    key;  /* of the next item */
} exchange;

static weft_status add(exchange *x, weft_op op, const wefti_attrs *attrs, const int32_t *inputs, int32_t n_inputs,
                       weft_shape shape, int32_t *value_out) {
    wefti_ir    *ir = x->ir;
    wefti_attrs *kept;
    int32_t      item;
    WEFTI_TRY(wefti_ir_attrs(ir, &kept));
    *kept = *attrs;
    WEFTI_TRY(wefti_ir_item(ir, op, kept, n_inputs, 1, x->item.name, x->key, &item));
    memcpy(ir->items[item].inputs, inputs, (size_t)n_inputs * sizeof *inputs);
    ir->items[item].flags = x->item.flags;
    ir->items[item].graph_ops = 0;
    return wefti_ir_value(ir, ir->values[inputs[0]].dtype, shape, item, 0, value_out);
}

static weft_status reshape(exchange *x, int32_t value, weft_shape shape, int32_t *value_out) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.view.shape = shape;
    return add(x, WEFT_OP_RESHAPE, &attrs, &value, 1, shape, value_out);
}

/* `count` indices from `first` along the axis. */
static weft_status slice(exchange *x, int32_t value, int64_t first, int64_t count, int32_t *value_out) {
    wefti_attrs attrs = wefti_no_attrs();
    weft_shape  shape = x->ir->values[value].shape;
    for (int32_t i = 0; i < shape.rank; i++) {
        attrs.slice.step[i] = 1;
        attrs.slice.size[i] = shape.dim[i];
    }
    attrs.slice.start[x->axis] = first;
    attrs.slice.size[x->axis] = shape.dim[x->axis] = count;
    return add(x, WEFT_OP_SLICE, &attrs, &value, 1, shape, value_out);
}

/* Makes the axis as long as the longest part. */
static weft_status pad(exchange *x, int32_t value, int32_t *value_out) {
    wefti_attrs attrs = wefti_no_attrs();
    weft_shape  shape = x->ir->values[value].shape;
    *value_out = value;
    if (shape.dim[x->axis] == x->longest) return WEFT_OK;
    attrs.pad.high[x->axis] = x->longest - shape.dim[x->axis];
    shape.dim[x->axis] = x->longest;
    return add(x, WEFT_OP_PAD, &attrs, &value, 1, shape, value_out);
}

static weft_status concat(exchange *x, const int32_t *parts, int32_t axis, weft_shape shape, int32_t *value_out) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.axis.axis = axis;
    return add(x, WEFT_OP_CONCAT, &attrs, parts, x->ranks, shape, value_out);
}

static weft_status communicate(exchange *x, int32_t value, weft_shape shape, int32_t *value_out) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.comm = x->item.attrs->comm;
    attrs.comm.axis = 0;
    attrs.comm.global = shape;
    return add(x, x->item.op, &attrs, &value, 1, shape, value_out);
}

/* [count, dims...] of one dimension. */
static weft_status flat_of(weft_shape shape, int64_t count, weft_shape *flat_out) {
    *flat_out = weft_shape(count, weft_shape_elements(shape));
    return WEFT_OK;
}

static weft_status gather(exchange *x, int32_t *parts, int32_t *value_out) {
    int32_t    value = x->item.inputs[0];
    weft_shape flat, whole = x->ir->values[x->item.outputs[0]].shape;
    WEFTI_TRY(pad(x, value, &value));
    weft_shape part = x->ir->values[value].shape;
    WEFTI_TRY(flat_of(part, 1, &flat));
    WEFTI_TRY(reshape(x, value, flat, &value));
    flat.dim[0] = x->ranks;
    WEFTI_TRY(communicate(x, value, flat, &value));
    for (int32_t r = 0; r < x->ranks; r++) {
        exchange rows = *x;
        int64_t  first, count;
        weft_batch_share(whole.dim[x->axis], r, x->ranks, &first, &count);
        rows.axis = 0;
        WEFTI_TRY(slice(&rows, value, r, 1, &parts[r]));
        WEFTI_TRY(reshape(x, parts[r], part, &parts[r]));
        WEFTI_TRY(slice(x, parts[r], 0, count, &parts[r]));
    }
    return concat(x, parts, x->axis, whole, value_out);
}

static weft_status scatter(exchange *x, int32_t *parts, int32_t *value_out) {
    int32_t    source = x->item.inputs[0], value;
    weft_shape whole = x->ir->values[source].shape, flat, own = x->ir->values[x->item.outputs[0]].shape, part = own;
    part.dim[x->axis] = x->longest;
    WEFTI_TRY(flat_of(part, 1, &flat));
    for (int32_t r = 0; r < x->ranks; r++) {
        int64_t first, count;
        weft_batch_share(whole.dim[x->axis], r, x->ranks, &first, &count);
        WEFTI_TRY(slice(x, source, first, count, &parts[r]));
        WEFTI_TRY(pad(x, parts[r], &parts[r]));
        WEFTI_TRY(reshape(x, parts[r], flat, &parts[r]));
    }
    flat.dim[0] = x->ranks;
    WEFTI_TRY(concat(x, parts, 0, flat, &value));
    flat.dim[0] = 1;
    WEFTI_TRY(communicate(x, value, flat, &value));
    WEFTI_TRY(reshape(x, value, part, &value));
    return slice(x, value, 0, own.dim[x->axis], value_out);
}

/* The next items stand where the old one stood, in the order in which they are added. */
static weft_status replace(wefti_ir *ir, int32_t index, const struct wefti_group *group, int32_t *value_out) {
    exchange   x = {.ir = ir, .item = ir->items[index], .axis = ir->items[index].attrs->comm.axis, .ranks = group->size,
                    .index = group->index, .key = ir->items[index].key};
    bool       gathers = x.item.op == WEFT_OP_ALL_GATHER;
    weft_shape whole = ir->values[gathers ? x.item.outputs[0] : x.item.inputs[0]].shape;
    weft_shape part = ir->values[gathers ? x.item.inputs[0] : x.item.outputs[0]].shape;
    int64_t    first, own, outer = 1, total = whole.dim[x.axis];
    weft_batch_share(total, x.index, x.ranks, &first, &own);
    if (part.dim[x.axis] != own)
        return wefti_fail(WEFT_E_SHAPE, "%s '%s': rank %d of %d has %lld of %lld along axis %d, its share is %lld",
                          wefti_ops[x.item.op].name, x.item.name, x.index, x.ranks, (long long)part.dim[x.axis],
                          (long long)total, x.axis, (long long)own);
    for (int32_t i = 0; i < x.axis; i++) outer *= whole.dim[i];
    if (outer == 1 && total % x.ranks == 0) return WEFT_OK;
    x.longest = total / x.ranks + (total % x.ranks != 0);
    int32_t *parts;
    WEFTI_TRY(wefti_bump_take(&ir->keep, (size_t)x.ranks * sizeof *parts, &parts));
    WEFTI_TRY(gathers ? gather(&x, parts, value_out) : scatter(&x, parts, value_out));
    ir->items[index].dead = true;
    return WEFT_OK;
}

static weft_status replace_all(wefti_ir *ir, int32_t *stands_for, int32_t n_values, bool *any_out) {
    for (int32_t v = 0; v < n_values; v++) stands_for[v] = v;
    for (int32_t k = 0; k < ir->n_order; k++) {
        wefti_item item = ir->items[ir->order[k]];
        for (int32_t i = 0; i < item.n_inputs; i++) item.inputs[i] = stands_for[item.inputs[i]];
        if ((item.op != WEFT_OP_ALL_GATHER && item.op != WEFT_OP_REDUCE_SCATTER) || item.attrs->comm.each > 0) continue;
        WEFTI_TRY(replace(ir, ir->order[k], wefti_ir_group(ir, &item), &stands_for[item.outputs[0]]));
        *any_out = true;
    }
    for (int32_t o = 0; o < ir->n_outputs; o++) ir->outputs[o] = stands_for[ir->outputs[o]];
    return WEFT_OK;
}

weft_status wefti_pass_exchange(wefti_ir *ir) {
    bool     any = false;
    int32_t *stands_for, n_values = ir->n_values;
    size_t   bytes = (size_t)n_values * sizeof *stands_for;
    WEFTI_TRY(wefti_alloc(bytes, "a plan", &stands_for));
    weft_status status = replace_all(ir, stands_for, n_values, &any);
    wefti_free(stands_for, bytes);
    if (status != WEFT_OK || !any) return status;
    return wefti_ir_settle(ir);
}

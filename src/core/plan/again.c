/* Again: activations in 16 bits that only the gradient of a convolution's kernel reads in the backward pass are computed again there instead of being
 * kept from the forward pass.
 *
 * Such an activation is a few cheap operations on a convolution's result, which batch norm's gradient reads anyway. They are written once more
 * where that gradient's sums are made, so that fusion makes them there on the way, with nothing read twice; the kernel's gradient is computed
 * right behind, if whoever reads it can wait. So it costs writing the activation once more, and it saves its memory from one pass to the
 * other, a sixth of what a residual network keeps. The values are the same, to the bit. Devices that fuse rows alone do this, as they fuse the sums.
 * Linear in items; chains are short. */
#include <string.h>

#include "core/plan/fuse.h"
#include "core/plan/ir.h"

enum {
    LEAST = 1 << 9,  /* elements of a row: below, it saves nothing */
    MOST_CHAIN = 16, /* operations that are done again */
    MOST_WALK = 24   /* of the gradient, up to its sums */
};

typedef struct repeater {
    wefti_ir  *ir;
    wefti_uses uses;  /* by root */
    int32_t   *ended; /* by value: wefti_ir_endings */
    int32_t    chain[MOST_CHAIN], n_chain; /* items, each behind what it reads */
    int64_t    leaf_bytes;                 /* of the large values that they come from */
    int64_t    first_sum, last_sum;        /* keys */
} repeater;

static bool is_large(const wefti_ir *ir, int32_t value, int64_t elements) {
    return wefti_value_elements(&ir->values[value]) == elements && !ir->values[value].uniform;
}

/* Whether the value is that of a variable which is not there any more when the sums have been made. */
static bool is_overwritten(const repeater *r, int32_t value) {
    int32_t by = r->ended[r->ir->values[value].root];
    return by >= 0 && r->ir->items[by].key <= r->last_sum;
}

/* Adds the cheap items that make `value` to the chain; what it does not add is a leaf. False: it is too long. */
static bool add_maker(repeater *r, int32_t value, int64_t elements) {
    wefti_ir          *ir = r->ir;
    const wefti_value *v = &ir->values[value];
    const wefti_item  *item = v->root == value && v->item >= 0 ? &ir->items[v->item] : NULL;
    if (!item || !wefti_op_is_cheap(item->op) || item->flags & WEFTI_NODE_APART) {
        r->leaf_bytes += wefti_value_bytes(v);
        return ir->values[v->root].place == WEFTI_HOME_ARENA;
    }
    for (int32_t i = 0; i < item->n_inputs; i++) {
        if (is_large(ir, item->inputs[i], elements)) {
            if (!add_maker(r, item->inputs[i], elements)) return false;
        } else if (is_overwritten(r, item->inputs[i])) {
            return false;
        }
    }
    if (r->n_chain == MOST_CHAIN) return false;
    r->chain[r->n_chain++] = v->item;
    return true;
}

/* Whether `reader` alone reads the value in the backward pass, and all others in the forward pass, where no fusion moves them to other readers. */
static bool is_kept_for(const repeater *r, int32_t value, int32_t reader) {
    const wefti_ir *ir = r->ir;
    for (int32_t o = 0; o < ir->n_outputs; o++)
        if (ir->values[ir->outputs[o]].root == value) return false;
    for (int32_t u = r->uses.start[value]; u < r->uses.start[value + 1]; u++) {
        const wefti_item *user = &ir->items[r->uses.users[u]];
        if (r->uses.users[u] != reader && (user->flags & WEFTI_NODE_BACKWARD || wefti_op_is_elementwise(user->op))) return false;
    }
    return true;
}

/* Follows the gradient through elementwise items, to the sums that are made of it: their keys. */
static void find_sums(repeater *r, int32_t value, int64_t elements, int *walked) {
    const wefti_ir *ir = r->ir;
    for (int32_t u = r->uses.start[value]; u < r->uses.start[value + 1] && *walked < MOST_WALK; u++) {
        const wefti_item *item = &ir->items[r->uses.users[u]];
        ++*walked;
        if (item->op == WEFT_OP_SUM && weft_shape_elements(ir->values[item->inputs[0]].shape) == elements) {
            r->first_sum = wefti_min_i64(r->first_sum, item->key);
            r->last_sum = wefti_max_i64(r->last_sum, item->key);
        } else if (wefti_op_is_elementwise(item->op) && wefti_value_elements(&ir->values[item->outputs[0]]) == elements) {
            find_sums(r, item->outputs[0], elements, walked);
        }
    }
}

/* The gradient of the activation that the kernel's gradient is computed from: beside it, from the same incoming gradient. */
static int32_t sibling(const repeater *r, const wefti_item *weight) {
    const wefti_ir *ir = r->ir;
    int32_t         root = ir->values[weight->inputs[0]].root;
    for (int32_t u = r->uses.start[root]; u < r->uses.start[root + 1]; u++) {
        const wefti_item *item = &ir->items[r->uses.users[u]];
        if (item->op == WEFT_OP_CONV2D_BACKWARD_INPUT && ir->values[item->inputs[0]].root == root) return item->outputs[0];
    }
    return -1;
}

/* Moves the kernel's gradient behind the sums, with what casts it; false where a reader cannot wait. */
static bool move_behind(repeater *r, int32_t index, int64_t key) {
    wefti_ir *ir = r->ir;
    int32_t   value = ir->items[index].outputs[0];
    for (int pass = 0; pass < 2; pass++) {
        for (int32_t u = r->uses.start[value]; u < r->uses.start[value + 1]; u++) {
            wefti_item *reader = &ir->items[r->uses.users[u]];
            if (reader->key > key + 1) continue;
            if (!wefti_op_is_elementwise(reader->op)) return false;
            int32_t made = reader->outputs[0];
            for (int32_t w = r->uses.start[made]; w < r->uses.start[made + 1]; w++)
                if (ir->items[r->uses.users[w]].key <= key + 2) return false;
            if (pass == 1) reader->key = key + 2;
        }
    }
    ir->items[index].key = key + 1;
    return true;
}

/* Writes the chain again just before `key`; *value_out: what it makes. */
static weft_status repeat(repeater *r, int64_t key, int32_t *value_out) {
    wefti_ir *ir = r->ir;
    int32_t   made[MOST_CHAIN];
    for (int32_t c = 0; c < r->n_chain; c++) {
        wefti_item item = ir->items[r->chain[c]];
        int32_t    copy;
        WEFTI_TRY(wefti_ir_item(ir, item.op, item.attrs, item.n_inputs, 1, item.name, key - 1, &copy));
        for (int32_t i = 0; i < item.n_inputs; i++) {
            int32_t input = item.inputs[i];
            for (int32_t b = 0; b < c; b++)
                if (ir->items[r->chain[b]].outputs[0] == input) input = made[b];
            ir->items[copy].inputs[i] = input;
        }
        ir->items[copy].flags = item.flags | WEFTI_NODE_BACKWARD;
        ir->items[copy].flops = item.flops;
        ir->items[copy].graph_ops = 0;
        WEFTI_TRY(wefti_ir_value(ir, ir->values[item.outputs[0]].dtype, ir->values[item.outputs[0]].shape, copy, 0, &made[c]));
    }
    *value_out = made[r->n_chain - 1];
    return WEFT_OK;
}

/* A window on `fresh` like that of `value` on its root. */
static weft_status look_at(wefti_ir *ir, int32_t value, int32_t fresh, int32_t *value_out) {
    const wefti_value from = ir->values[value];
    *value_out = fresh;
    if (from.root == value) return WEFT_OK;
    WEFTI_TRY(wefti_ir_value(ir, from.dtype, from.shape, -1, 0, value_out));
    ir->values[*value_out].root = fresh;
    ir->values[*value_out].offset = from.offset;
    memcpy(ir->values[*value_out].stride, from.stride, sizeof from.stride);
    return WEFT_OK;
}

/* By what all ranks have alike: they have different rows, at the end of an epoch even none, and must order their messages alike. */
static int64_t elements_of_a_row(const wefti_value *value) {
    int64_t elements = 1;
    for (int32_t axis = 1; axis < value->shape.rank; axis++) elements *= value->shape.dim[axis];
    return elements;
}

static weft_status consider(repeater *r, int32_t index) {
    wefti_ir   *ir = r->ir;
    wefti_item *weight = &ir->items[index];
    int32_t     seen = weight->inputs[1], root = ir->values[seen].root, fresh, gradient, walked = 0;
    int64_t     elements = wefti_value_elements(&ir->values[root]);
    if (weft_dtype_bytes(ir->values[root].dtype) != 2 || elements_of_a_row(&ir->values[root]) < LEAST || ir->values[root].place != WEFTI_HOME_ARENA) return WEFT_OK;
    r->n_chain = 0, r->leaf_bytes = 0, r->first_sum = INT64_MAX, r->last_sum = 0;
    if (!is_kept_for(r, root, index) || (gradient = sibling(r, weight)) < 0) return WEFT_OK;
    find_sums(r, gradient, elements, &walked);
    if (r->first_sum == INT64_MAX || r->first_sum < weight->key) return WEFT_OK;
    if (!add_maker(r, root, elements) || r->n_chain == 0 || r->leaf_bytes > wefti_value_bytes(&ir->values[root])) return WEFT_OK;
    if (!move_behind(r, index, r->last_sum)) return WEFT_OK;
    WEFTI_TRY(repeat(r, r->first_sum, &fresh));
    WEFTI_TRY(look_at(ir, seen, fresh, &fresh));
    ir->items[index].inputs[1] = fresh;
    return WEFT_OK;
}

weft_status wefti_pass_again(wefti_ir *ir) {
    weft_status status = WEFT_OK;
    repeater    r = {.ir = ir};
    int32_t     n = ir->n_order;
    size_t      ended_bytes = (size_t)ir->n_values * sizeof *r.ended;
    if (ir->options.base.no_fusion || !ir->device->vtable->fuses_rows) return WEFT_OK;
    WEFTI_TRY_GOTO(wefti_ir_uses(ir, true, &r.uses), done);
    WEFTI_TRY_GOTO(wefti_alloc(ended_bytes, "a plan", &r.ended), done);
    WEFTI_TRY_GOTO(wefti_ir_endings(ir, r.ended), done);
    for (int32_t k = 0; k < n; k++)
        if (ir->items[ir->order[k]].op == WEFT_OP_CONV2D_BACKWARD_WEIGHT) WEFTI_TRY_GOTO(consider(&r, ir->order[k]), done);
    status = wefti_ir_settle(ir);
done:
    wefti_uses_release(&r.uses);
    wefti_free(r.ended, ended_bytes);
    return status;
}

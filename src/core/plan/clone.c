/* Computing again instead of storing: a cheap elementwise item whose readers are all elementwise or reductions over the same space is copied into each,
 * so that after fusion it is a few instructions there and needs no memory of its own.
 *
 * It pays where the item's own large inputs take no more bytes than its result: a bias added, a number multiplied, a cast to a wider type;
 * or where those inputs can be computed again themselves, from 16-bit activations that take no more: what a mask or a gradient makes of them.
 * The inputs then live as long as the result would have. Walking backwards lets whole chains move. Nothing that reads a variable
 * is moved behind the item that writes it. Linear in uses; at most MOST_READERS copies an item. */
#include <string.h>

#include "core/plan/fuse.h"

enum { MOST_READERS = 6, MOST_OF_NARROW = 16 /* where what is read is smaller than the result */ };

/* Readers of each value's memory, as lists that grow while items are copied. */
typedef struct reader {
    int32_t item, next;
} reader;

typedef struct cloner {
    wefti_ir *ir;
    int32_t  *head; /* by value: of its readers; -1: none */
    reader   *readers;
    int32_t   n_readers, readers_capacity;
    int32_t  *ended;   /* by value: wefti_ir_endings */
    uint8_t  *is_output; /* by value */
    int32_t   n_values;
} cloner;

bool wefti_op_is_cheap(weft_op op) {
    switch (op) {
    case WEFT_OP_CAST: case WEFT_OP_NEG: case WEFT_OP_ABS: case WEFT_OP_SQUARE: case WEFT_OP_RELU: case WEFT_OP_CLAMP:
    case WEFT_OP_NOT: case WEFT_OP_ADD: case WEFT_OP_SUB: case WEFT_OP_MUL: case WEFT_OP_MAXIMUM: case WEFT_OP_MINIMUM:
    case WEFT_OP_EQ: case WEFT_OP_NE: case WEFT_OP_LT: case WEFT_OP_LE: case WEFT_OP_GT: case WEFT_OP_GE:
    case WEFT_OP_AND: case WEFT_OP_OR: case WEFT_OP_WHERE: case WEFT_OP_RELU_BACKWARD: return true;
    default: return false;
    }
}

static weft_status add_reader(cloner *c, int32_t value, int32_t item) {
    WEFTI_TRY(wefti_ir_room(&c->readers, c->n_readers, &c->readers_capacity, sizeof *c->readers));
    int32_t root = c->ir->values[value].root;
    if (root >= c->n_values) return WEFT_OK; /* a clone's value: it has one reader, and nobody asks */
    c->readers[c->n_readers] = (reader){item, c->head[root]};
    c->head[root] = c->n_readers++;
    return WEFT_OK;
}

/* Whether the item can be fused with what it reads: elementwise, or a reduction where the device takes those. */
static bool takes_in_step(const wefti_ir *ir, const wefti_item *item) {
    if (wefti_op_is_elementwise(item->op)) return true;
    bool reduces = item->op == WEFT_OP_SUM || item->op == WEFT_OP_MEAN || item->op == WEFT_OP_MAX || item->op == WEFT_OP_MIN;
    return reduces && item->attrs->reduce.axes != 0 && ir->device->vtable->fuses_reductions;
}

enum { MOST_LEAVES = 4, DEEP = 8 };
typedef struct leaf_list {
    int32_t n, value[MOST_LEAVES];
} leaf_list;

static bool is_large(const wefti_value *value, int64_t elements) { return wefti_value_elements(value) * 4 >= elements && !value->uniform; }

static bool add_leaf(leaf_list *leaves, int32_t value) {
    for (int32_t i = 0; i < leaves->n; i++)
        if (leaves->value[i] == value) return true;
    if (leaves->n == MOST_LEAVES) return false;
    leaves->value[leaves->n++] = value;
    return true;
}

static int64_t leaf_bytes(const cloner *c, const leaf_list *leaves) {
    int64_t bytes = 0;
    for (int32_t i = 0; i < leaves->n; i++) bytes += wefti_value_bytes(&c->ir->values[leaves->value[i]]);
    return bytes;
}

/* The large values that the item comes from, through cheap items whose own inputs take no more bytes than their results. False: too many. */
static bool add_leaves(const cloner *c, const wefti_item *item, int depth, leaf_list *leaves) {
    const wefti_ir *ir = c->ir;
    int64_t         elements = wefti_value_elements(&ir->values[item->outputs[0]]);
    for (int32_t i = 0; i < item->n_inputs; i++) {
        int32_t            value = item->inputs[i];
        const wefti_value *in = &ir->values[value];
        leaf_list          behind = {0};
        if (!is_large(in, elements)) continue;
        bool cheap = depth > 0 && in->root == value && in->item >= 0 && wefti_op_is_cheap(ir->items[in->item].op) && wefti_value_elements(in) == elements &&
                     add_leaves(c, &ir->items[in->item], depth - 1, &behind) && leaf_bytes(c, &behind) <= wefti_value_bytes(in);
        if (!cheap) behind = (leaf_list){1, {value}};
        for (int32_t k = 0; k < behind.n; k++)
            if (!add_leaf(leaves, behind.value[k])) return false;
    }
    return true;
}

/* Bytes that the item reads when it is computed again from where 16-bit activations lie; INT64_MAX: it does not come from such. */
static int64_t bytes_from_far(const cloner *c, const wefti_item *item) {
    leaf_list leaves = {0};
    bool      narrow = false;
    if (!add_leaves(c, item, DEEP, &leaves)) return INT64_MAX;
    for (int32_t i = 0; i < leaves.n; i++) narrow |= weft_dtype_bytes(c->ir->values[leaves.value[i]].dtype) == 2;
    return narrow ? leaf_bytes(c, &leaves) : INT64_MAX;
}

/* Whether copying the item into its readers saves memory and traffic; its readers then stand in readers_out. */
static bool pays(const cloner *c, const wefti_item *item, int32_t *readers_out, int32_t *n_out) {
    const wefti_ir    *ir = c->ir;
    const wefti_value *out = &ir->values[item->outputs[0]];
    int64_t            large = 0, written = INT64_MAX;
    *n_out = 0;
    if (!wefti_op_is_cheap(item->op) || c->is_output[item->outputs[0]] || wefti_value_elements(out) < 2) return false;
    for (int32_t i = 0; i < item->n_inputs; i++) {
        const wefti_value *in = &ir->values[item->inputs[i]];
        if (is_large(in, wefti_value_elements(out))) large += wefti_value_bytes(in);
        int32_t ended = in->root < c->n_values ? c->ended[in->root] : -1;
        if (ended >= 0 && ir->items[ended].key < written) written = ir->items[ended].key;
    }
    if (large > wefti_value_bytes(out)) large = bytes_from_far(c, item);
    if (large > wefti_value_bytes(out)) return false;
    for (int32_t r = c->head[item->outputs[0]]; r >= 0; r = c->readers[r].next) {
        const wefti_item *user = &ir->items[c->readers[r].item];
        if (user->dead) continue;
        if (*n_out == (large > 0 && large < wefti_value_bytes(out) ? MOST_OF_NARROW : MOST_READERS) || !takes_in_step(ir, user) || user->key >= written) return false;
        for (int32_t i = 0; i < user->n_inputs; i++)
            if (ir->values[user->inputs[i]].root == item->outputs[0] && user->inputs[i] != item->outputs[0]) return false;
        if (wefti_op_is_elementwise(user->op) && !weft_shape_equal(ir->values[user->outputs[0]].shape, out->shape)) return false;
        bool known = false;
        for (int32_t k = 0; k < *n_out; k++) known |= readers_out[k] == c->readers[r].item;
        if (!known) readers_out[(*n_out)++] = c->readers[r].item;
    }
    /* One reader: the item moves to it, so that the activations are read when its other inputs are there. */
    return *n_out >= 2 || (*n_out == 1 && bytes_from_far(c, item) <= wefti_value_bytes(out));
}

static weft_status clone_into(cloner *c, int32_t index, int32_t user) {
    wefti_ir  *ir = c->ir;
    wefti_item item = ir->items[index];
    int32_t    copy, value;
    WEFTI_TRY(wefti_ir_item(ir, item.op, item.attrs, item.n_inputs, 1, item.name, ir->items[user].key - 1, &copy));
    memcpy(ir->items[copy].inputs, item.inputs, (size_t)item.n_inputs * sizeof *item.inputs);
    ir->items[copy].flags = item.flags | (ir->items[user].flags & WEFTI_NODE_BACKWARD);
    ir->items[copy].flops = item.flops;
    ir->items[copy].graph_ops = 0;
    WEFTI_TRY(wefti_ir_value(ir, ir->values[item.outputs[0]].dtype, ir->values[item.outputs[0]].shape, copy, 0, &value));
    for (int32_t i = 0; i < ir->items[user].n_inputs; i++)
        if (ir->items[user].inputs[i] == item.outputs[0]) ir->items[user].inputs[i] = value;
    for (int32_t i = 0; i < item.n_inputs; i++) WEFTI_TRY(add_reader(c, item.inputs[i], copy));
    return WEFT_OK;
}

static weft_status walk(cloner *c) {
    wefti_ir *ir = c->ir;
    int32_t   readers[MOST_OF_NARROW], n;
    for (int32_t k = ir->n_order - 1; k >= 0; k--) {
        int32_t index = ir->order[k];
        if (!wefti_op_is_elementwise(ir->items[index].op) || !pays(c, &ir->items[index], readers, &n)) continue;
        for (int32_t r = 0; r < n; r++) WEFTI_TRY(clone_into(c, index, readers[r]));
        /* The first copy stands for the original in counts. */
        ir->items[ir->n_items - n].graph_ops = ir->items[index].graph_ops;
        ir->items[index].dead = true;
    }
    return wefti_ir_settle(ir);
}

static weft_status collect(cloner *c) {
    wefti_ir *ir = c->ir;
    memset(c->head, 0xff, (size_t)c->n_values * sizeof *c->head);
    for (int32_t o = 0; o < ir->n_outputs; o++) c->is_output[ir->values[ir->outputs[o]].root] = 1;
    for (int32_t k = 0; k < ir->n_order; k++) {
        const wefti_item *item = &ir->items[ir->order[k]];
        for (int32_t i = 0; i < item->n_inputs; i++) WEFTI_TRY(add_reader(c, item->inputs[i], ir->order[k]));
    }
    return wefti_ir_endings(ir, c->ended);
}

weft_status wefti_clone_cheap(wefti_ir *ir) {
    weft_status status;
    cloner      c = {.ir = ir, .n_values = ir->n_values};
    size_t      n = (size_t)ir->n_values;
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *c.head, "a plan", &c.head), done);
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *c.ended, "a plan", &c.ended), done);
    WEFTI_TRY_GOTO(wefti_alloc(n, "a plan", &c.is_output), done);
    WEFTI_TRY_GOTO(collect(&c), done);
    status = walk(&c);
done:
    wefti_free(c.head, n * sizeof *c.head);
    wefti_free(c.ended, n * sizeof *c.ended);
    wefti_free(c.is_output, n);
    wefti_free(c.readers, (size_t)c.readers_capacity * sizeof *c.readers);
    return status;
}

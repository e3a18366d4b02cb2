/* Chunks: a cross-entropy over many classes, with the product that makes its logits and all that follows from their gradient, is computed by
 * some rows at a time, so that neither logits nor their gradient are ever there as a whole.
 *
 * Idea: what the gradient of a loss's rows is multiplied with (one over the count of labels, a scale, weights of rows) hardly ever depends on
 * the logits. So a chunk's gradient can be computed right behind its loss, while its logits are there, and nothing is computed twice (as in
 * Liger Kernel: Hsu et al. 2024). What a chunk gives by rows is put one behind the other; what is a sum over rows is added up, in f32.
 *
 * From the loss the pass walks to all that is as large as the logits: products that make it, elementwise items, the gradient. It gives up,
 * with a word in the plan's description, where somebody reads something of it whole. Whether it does depends on what all ranks have alike,
 * the graph and the number of classes, and never on rows: ranks with other rows still have their collectives in one order. Linear in the
 * plan for each such loss. */
#include "core/plan/chunk.h"

#include <string.h>

enum {
    CHUNK_CLASSES = 4096, /* fewer are not worth it: logits are then hardly larger than what makes them */
    /* Each chunk adds a gradient as large as the product's weight to those before. So many rows make that a few percent of a chunk's time, at
     * what GPUs and CPUs multiply while they move a byte. */
    CHUNK_ROWS_DEVICE = 8192,
    CHUNK_ROWS_HOST = 1024
};

bool wefti_chunk_is_whole(const wefti_ir *ir, const wefti_value *value) {
    return value->offset == 0 && wefti_value_is_dense(value) && !value->uniform &&
           wefti_value_elements(value) == wefti_value_elements(&ir->values[value->root]);
}

static bool is_inside(const wefti_chunks *c, int32_t value) {
    int32_t item = c->ir->values[c->ir->values[value].root].item;
    return item >= 0 && item < c->n_items && c->role[item] != WEFTI_CHUNK_NONE;
}

/* --- who belongs to it --- */

static void give_up(wefti_chunks *c, const char *why) {
    if (!c->why) c->why = why;
}

/* Whether the value has a row of classes for each row of the loss. */
static bool is_as_large(const wefti_chunks *c, const wefti_value *value) {
    return value->shape.rank >= 1 && value->shape.dim[value->shape.rank - 1] == c->classes &&
           wefti_value_elements(value) == c->rows * c->classes;
}

static bool is_map(const wefti_chunks *c, const wefti_item *item) {
    return wefti_op_is_elementwise(item->op) && item->op != WEFT_OP_DROPOUT && is_as_large(c, &c->ir->values[item->outputs[0]]);
}

static bool is_matrices(const wefti_ir *ir, const wefti_item *item) {
    return item->op == WEFT_OP_MATMUL && ir->values[item->inputs[0]].shape.rank == 2 && ir->values[item->inputs[1]].shape.rank == 2;
}

static wefti_chunk_role role_of_maker(const wefti_chunks *c, const wefti_item *item) {
    if (is_map(c, item)) return WEFTI_CHUNK_MAP;
    if (item->op == WEFT_OP_CROSS_ENTROPY_BACKWARD) return WEFTI_CHUNK_SLOPE;
    return is_matrices(c->ir, item) && is_as_large(c, &c->ir->values[item->outputs[0]]) ? WEFTI_CHUNK_MAKE : WEFTI_CHUNK_NONE;
}

static wefti_chunk_role role_of_product(const wefti_ir *ir, const wefti_item *item, int32_t root) {
    bool first = ir->values[item->inputs[0]].root == root, second = ir->values[item->inputs[1]].root == root;
    if (!is_matrices(ir, item) || first == second) return WEFTI_CHUNK_NONE;
    if (first) return item->attrs->matmul.trans_a ? WEFTI_CHUNK_INNER : WEFTI_CHUNK_ROWS;
    return item->attrs->matmul.trans_b ? WEFTI_CHUNK_NONE : WEFTI_CHUNK_INNER;
}

/* What a reader of something large is; NONE: it wants it whole. */
static wefti_chunk_role role_of_reader(const wefti_chunks *c, const wefti_item *item, int32_t root) {
    const wefti_ir *ir = c->ir;
    for (int32_t i = 0; i < item->n_inputs; i++) {
        const wefti_value *value = &ir->values[item->inputs[i]];
        if (value->root == root && (!wefti_chunk_is_whole(ir, value) || !is_as_large(c, value))) return WEFTI_CHUNK_NONE;
    }
    int32_t  last = ir->values[item->inputs[0]].shape.rank - 1;
    uint32_t classes = last < 0 ? 0 : UINT32_C(1) << last;
    switch (item->op) {
    case WEFT_OP_CROSS_ENTROPY: return item == &ir->items[c->loss] ? WEFTI_CHUNK_LOSS : WEFTI_CHUNK_NONE;
    case WEFT_OP_CROSS_ENTROPY_BACKWARD: return ir->values[item->inputs[1]].root == root ? WEFTI_CHUNK_SLOPE : WEFTI_CHUNK_NONE;
    case WEFT_OP_MATMUL: return role_of_product(ir, item, root);
    case WEFT_OP_ARGMAX: return item->attrs->reduce.axes == classes ? WEFTI_CHUNK_PICK : WEFTI_CHUNK_NONE;
    case WEFT_OP_SUM: return last > 0 && item->attrs->reduce.axes == classes - 1 ? WEFTI_CHUNK_SUM : WEFTI_CHUNK_NONE;
    default: return is_map(c, item) ? WEFTI_CHUNK_MAP : WEFTI_CHUNK_NONE;
    }
}

static void join(wefti_chunks *c, int32_t item, wefti_chunk_role role) {
    if (c->role[item] != WEFTI_CHUNK_NONE) {
        if (c->role[item] != role) give_up(c, "one operation reads its logits in two ways");
        return;
    }
    c->role[item] = (uint8_t)role;
    c->members[c->n_members++] = item;
}

static void join_makers(wefti_chunks *c, const wefti_item *item) {
    for (int32_t i = 0; i < item->n_inputs; i++) {
        const wefti_value *value = &c->ir->values[item->inputs[i]];
        int32_t            maker = c->ir->values[value->root].item;
        if (maker < 0 || !is_as_large(c, value) || !wefti_chunk_is_whole(c->ir, value)) continue;
        wefti_chunk_role role = role_of_maker(c, &c->ir->items[maker]);
        if (role != WEFTI_CHUNK_NONE) join(c, maker, role);
    }
}

static weft_status join_readers(wefti_chunks *c, int32_t root) {
    wefti_ir *ir = c->ir;
    c->large[root] = 1;
    for (int32_t o = 0; o < ir->n_outputs; o++)
        if (ir->values[ir->outputs[o]].root == root) give_up(c, "an output of the plan needs them whole");
    for (int32_t u = c->uses.start[root]; u < c->uses.start[root + 1] && !c->why; u++) {
        int32_t          reader = c->uses.users[u];
        wefti_chunk_role role = role_of_reader(c, &ir->items[reader], root);
        if (role != WEFTI_CHUNK_NONE) {
            join(c, reader, role);
            continue;
        }
        wefti_text text = {0};
        const char *why = NULL;
        wefti_text_add(&text, "%s '%s' needs them whole", wefti_ops[ir->items[reader].op].name, ir->items[reader].name);
        weft_status status = wefti_bump_string(&ir->keep, text.bytes ? text.bytes : "something needs them whole", &why);
        wefti_text_release(&text);
        WEFTI_TRY(status);
        give_up(c, why);
    }
    return WEFT_OK;
}

static weft_status collect(wefti_chunks *c) {
    wefti_ir *ir = c->ir;
    bool      made = false;
    join(c, c->loss, WEFTI_CHUNK_LOSS);
    for (int32_t m = 0; m < c->n_members && !c->why; m++) {
        const wefti_item *item = &ir->items[c->members[m]];
        wefti_chunk_role  role = (wefti_chunk_role)c->role[c->members[m]];
        made |= role == WEFTI_CHUNK_MAKE;
        if (role == WEFTI_CHUNK_LOSS || role == WEFTI_CHUNK_SLOPE || role == WEFTI_CHUNK_MAP) join_makers(c, item);
        if (role == WEFTI_CHUNK_MAKE || role == WEFTI_CHUNK_SLOPE || role == WEFTI_CHUNK_MAP) WEFTI_TRY(join_readers(c, item->outputs[0]));
    }
    if (!made) give_up(c, "no product of two matrices makes its logits");
    if (!c->why && !is_inside(c, ir->items[c->loss].inputs[0])) give_up(c, "its logits are read in another order than they are computed in");
    return WEFT_OK;
}

/* --- how they read --- */

/* An item over all of the rows and classes sees each input as [rows, classes]. */
static bool read_map(const wefti_chunks *c, const wefti_item *item, const wefti_value *value, wefti_chunk_read *read) {
    weft_shape space = c->ir->values[item->outputs[0]].shape;
    read->shape = weft_shape(c->rows, c->classes);
    if (value->shape.rank > space.rank) return false;
    return wefti_stretched_strides(value, space, read->shape, read->stride);
}

static void read_matrix(const wefti_value *value, int32_t axis, wefti_chunk_read *read) {
    read->axis = axis;
    read->shape = value->shape;
    memcpy(read->stride, value->stride, sizeof read->stride);
}

bool wefti_chunk_reads(const wefti_chunks *c, int32_t index, int32_t input, wefti_chunk_read *read) {
    const wefti_ir    *ir = c->ir;
    const wefti_item  *item = &ir->items[index];
    const wefti_value *value = &ir->values[item->inputs[input]];
    *read = (wefti_chunk_read){0};
    if (is_inside(c, item->inputs[input])) {
        /* Rows of the loss are known to the gradient alone, which reads their log-sum-exp. */
        read->inside = true;
        return c->large[value->root] || (c->role[index] == WEFTI_CHUNK_SLOPE && input == 3 && wefti_chunk_is_whole(ir, value) &&
                                         value->root == ir->items[c->loss].outputs[1]);
    }
    switch ((wefti_chunk_role)c->role[index]) {
    case WEFTI_CHUNK_MAP: return read_map(c, item, value, read);
    case WEFTI_CHUNK_LOSS:
    case WEFTI_CHUNK_SLOPE: /* labels, gradients of rows */
        read->shape = weft_shape(c->rows);
        return wefti_value_elements(value) == c->rows && wefti_reshape_strides(value, read->shape, read->stride);
    case WEFTI_CHUNK_MAKE:
        if (input == 0) read_matrix(value, item->attrs->matmul.trans_a ? 1 : 0, read);
        else read->whole = true;
        return true;
    case WEFTI_CHUNK_INNER:
        read_matrix(value, input == 0 ? (item->attrs->matmul.trans_a ? 0 : 1) : (item->attrs->matmul.trans_b ? 1 : 0), read);
        return true;
    default: read->whole = true; return true;
    }
}

/* --- whether it can be done where the loss stands --- */

/* What the gradient reads and is computed behind the loss must not follow from it; it goes before. */
static void find_before(wefti_chunks *c) {
    const wefti_ir *ir = c->ir;
    int32_t         loss_at = c->position[c->loss];
    for (int32_t k = ir->n_order - 1; k > loss_at && !c->why; k--) {
        const wefti_item *item = &ir->items[ir->order[k]];
        bool              member = c->role[ir->order[k]] != WEFTI_CHUNK_NONE;
        if (!member && !c->before[ir->order[k]]) continue;
        if (!member && (wefti_item_has_effect(item) || wefti_item_is_point(item))) {
            give_up(c, "its gradient waits for a message, or for a variable that the step writes");
            return;
        }
        for (int32_t i = 0; i < item->n_inputs; i++) {
            int32_t maker = ir->values[ir->values[item->inputs[i]].root].item;
            if (maker < 0) continue;
            bool inside = c->role[maker] != WEFTI_CHUNK_NONE;
            if ((!member && inside) || c->after[maker]) give_up(c, "its gradient depends on its value");
            if (!inside && c->position[maker] > loss_at) c->before[maker] = 1;
        }
    }
}

/* What moves behind the loss must not find a variable written there meanwhile. */
static bool reads_old_variables(const wefti_chunks *c, int32_t index) {
    const wefti_ir   *ir = c->ir;
    const wefti_item *item = &ir->items[index];
    for (int32_t i = 0; i < item->n_inputs; i++) {
        int32_t writer = c->ended[ir->values[item->inputs[i]].root];
        if (writer >= 0 && c->position[writer] <= c->position[c->loss]) return true;
    }
    return false;
}

/* What reads their results and stands before the loss goes behind it. */
static void find_after(wefti_chunks *c) {
    const wefti_ir *ir = c->ir;
    for (int32_t k = 0; k < c->position[c->loss]; k++) {
        int32_t           index = ir->order[k];
        const wefti_item *item = &ir->items[index];
        bool              reads = false;
        for (int32_t i = 0; i < item->n_inputs; i++) {
            int32_t maker = ir->values[ir->values[item->inputs[i]].root].item;
            bool    member = maker >= 0 && c->role[maker] != WEFTI_CHUNK_NONE;
            if (c->role[index] == WEFTI_CHUNK_NONE) reads |= member || (maker >= 0 && c->after[maker]);
            else if (maker >= 0 && c->after[maker]) give_up(c, "its logits are computed from some of their own");
        }
        c->after[index] = reads;
        if (reads && (wefti_item_has_effect(item) || wefti_item_is_point(item) || reads_old_variables(c, index)))
            give_up(c, "something that is computed with its logits has to be done before it");
    }
}

static void check(wefti_chunks *c) {
    wefti_chunk_read read;
    for (int32_t m = 0; m < c->n_members && !c->why; m++) {
        int32_t index = c->members[m];
        for (int32_t i = 0; i < c->ir->items[index].n_inputs; i++)
            if (!wefti_chunk_reads(c, index, i, &read)) give_up(c, "what it is computed with lies in memory in another order, or follows from its value");
        if (reads_old_variables(c, index)) give_up(c, "a variable that it is computed with is written before it");
    }
    if (!c->why) find_after(c);
    if (!c->why) find_before(c);
}

/* --- one loss --- */

static void sort_members(wefti_chunks *c) {
    int32_t n = 0;
    for (int32_t k = 0; k < c->ir->n_order; k++)
        if (c->role[c->ir->order[k]] != WEFTI_CHUNK_NONE) c->members[n++] = c->ir->order[k];
}

static weft_status chunk_loss(wefti_chunks *c) {
    wefti_ir         *ir = c->ir;
    const wefti_item *loss = &ir->items[c->loss];
    const wefti_value *logits = &ir->values[loss->inputs[0]];
    c->rows = wefti_value_elements(&ir->values[loss->inputs[1]]);
    c->classes = logits->shape.dim[logits->shape.rank - 1];
    for (int32_t k = 0; k < ir->n_order; k++) c->position[ir->order[k]] = k;
    WEFTI_TRY(wefti_ir_uses(ir, true, &c->uses));
    WEFTI_TRY(wefti_ir_endings(ir, c->ended));
    WEFTI_TRY(collect(c));
    if (!c->why) check(c);
    if (c->why) {
        if (!ir->whole_why) ir->whole_why = c->why, ir->whole_loss = loss->name;
        return WEFT_OK;
    }
    sort_members(c);
    return wefti_chunks_emit(c);
}

static weft_status chunk_one(wefti_ir *ir, int32_t loss, int64_t rows_each) {
    weft_status  status;
    wefti_chunks c = {.ir = ir, .loss = loss, .rows_each = rows_each, .n_items = ir->n_items, .n_values = ir->n_values};
    size_t       items = (size_t)ir->n_items, values = (size_t)ir->n_values;
    WEFTI_TRY_GOTO(wefti_alloc(items * sizeof *c.position, "a plan", &c.position), done);
    WEFTI_TRY_GOTO(wefti_alloc(values * sizeof *c.ended, "a plan", &c.ended), done);
    WEFTI_TRY_GOTO(wefti_alloc(items, "a plan", &c.role), done);
    WEFTI_TRY_GOTO(wefti_alloc(items, "a plan", &c.before), done);
    WEFTI_TRY_GOTO(wefti_alloc(items, "a plan", &c.after), done);
    WEFTI_TRY_GOTO(wefti_alloc(values, "a plan", &c.large), done);
    WEFTI_TRY_GOTO(wefti_alloc(items * sizeof *c.members, "a plan", &c.members), done);
    WEFTI_TRY_GOTO(wefti_alloc(values * sizeof *c.now, "a plan", &c.now), done);
    status = chunk_loss(&c);
done:
    wefti_uses_release(&c.uses);
    wefti_free(c.position, items * sizeof *c.position);
    wefti_free(c.ended, values * sizeof *c.ended);
    wefti_free(c.role, items);
    wefti_free(c.before, items);
    wefti_free(c.after, items);
    wefti_free(c.large, values);
    wefti_free(c.members, items * sizeof *c.members);
    wefti_free(c.now, values * sizeof *c.now);
    return status;
}

static bool is_large_loss(const wefti_ir *ir, const wefti_item *item) {
    const wefti_value *logits = item->op == WEFT_OP_CROSS_ENTROPY ? &ir->values[item->inputs[0]] : NULL;
    return logits && !item->dead && logits->shape.dim[logits->shape.rank - 1] >= CHUNK_CLASSES;
}

weft_status wefti_pass_chunk(wefti_ir *ir) {
    int64_t rows = ir->options.base.loss_chunk_rows;
    int32_t n = ir->n_items; /* those that are added here are chunks */
    if (rows < 0) return WEFT_OK;
    if (rows == 0) rows = ir->device->vtable->host_memory ? CHUNK_ROWS_HOST : CHUNK_ROWS_DEVICE;
    for (int32_t i = 0; i < n; i++)
        if (is_large_loss(ir, &ir->items[i])) WEFTI_TRY(chunk_one(ir, i, rows));
    return WEFT_OK;
}

/* Products with what is done to their results: one FUSED_MATMUL item in the place of several, where the device has such an epilogue.
 *
 * From a product on, the chain of elementwise items that read what came before is followed as long as the device takes the whole of it: the
 * bias, the activation, the residual; in the backward pass the activation's gradient and its sums over rows, which are the gradient of the bias.
 * What others read, too, becomes a further output, if the device gives it. Else a product may give the sums over rows of what it multiplies:
 * the gradient of a bias, beside that of the weight.
 *
 * The chain stands where its last member stood, a product with an operand's sums where the first of both did; so nobody outside may read of it before,
 * no variable that it reads may be overwritten before, and all of it must be there. Sums of a result are only made earlier than they were. Whether it is quicker is the device's to know. Linear; devices without
 * `fuses_products` pass it by. */
#include <string.h>

#include "core/plan/ir.h"

enum { MOST_MEMBERS = 6 };

typedef struct chain {
    int32_t     member[MOST_MEMBERS]; /* items; the first is the product, whose instruction is the one before the program's first */
    int32_t     n_members;
    int32_t     value[MOST_MEMBERS];  /* what each makes */
    int32_t     sum[MOST_MEMBERS];    /* by member: the SUM over rows of it that is made, too; -1 */
    int32_t     beside;               /* the SUM of an operand; -1 */
    int32_t     sums;                 /* … and of which */
    int64_t     key;                  /* where it stands */
    wefti_fused program;
    int32_t     inputs[MOST_MEMBERS + 2]; /* values: of the product, then of the program */
    int32_t     n_inputs;
} chain;

typedef struct fuser {
    wefti_ir  *ir;
    wefti_uses uses;  /* by root */
    int32_t   *ended; /* by value: wefti_ir_endings */
    chain      best, next;
} fuser;

/* Whether the value shows all of its root in row-major order, maybe in another shape, as rows of so many elements. */
static bool shows_rows(const wefti_ir *ir, int32_t value, int64_t columns) {
    const wefti_value *v = &ir->values[value];
    return v->offset == 0 && !v->uniform && v->shape.rank > 0 && wefti_value_is_dense(v) && v->shape.dim[v->shape.rank - 1] == columns &&
           wefti_value_elements(v) == wefti_value_elements(&ir->values[v->root]);
}

static int64_t columns_of(const wefti_ir *ir, int32_t value) { return ir->values[value].shape.dim[ir->values[value].shape.rank - 1]; }

static bool is_member(const chain *c, int32_t item) {
    for (int32_t m = 0; m < c->n_members; m++)
        if (c->member[m] == item || c->sum[m] == item) return true;
    return c->beside == item;
}

/* --- growing --- */

static uint32_t all_but_last(weft_shape shape) { return (1u << (shape.rank - 1)) - 1; }

/* Whether the item is the SUM over all rows of so many elements of the memory of `root`. */
static bool sums_rows(const fuser *f, const wefti_item *item, int32_t root, int64_t columns) {
    const wefti_value *in = &f->ir->values[item->inputs[0]];
    return item->op == WEFT_OP_SUM && in->root == root && shows_rows(f->ir, item->inputs[0], columns) && in->shape.rank > 1 &&
           item->attrs->reduce.axes == all_but_last(in->shape);
}

/* A reader of the gate alone, x > 0 of RELU_BACKWARD(g, x), sees the same in relu(x). */
static bool reads_gate(const fuser *f, const wefti_item *item, int32_t root) {
    return item->op == WEFT_OP_RELU_BACKWARD && item->inputs[1] == root && f->ir->values[item->inputs[0]].root != root;
}

/* Whether what member m makes is needed in memory. */
static bool is_needed(const fuser *f, const chain *c, int32_t m) {
    bool gated = m + 1 < c->n_members && f->ir->items[c->member[m + 1]].op == WEFT_OP_RELU;
    if (m + 1 == c->n_members || wefti_ir_is_output(f->ir, c->value[m])) return true;
    for (int32_t u = f->uses.start[c->value[m]]; u < f->uses.start[c->value[m] + 1]; u++) {
        const wefti_item *user = &f->ir->items[f->uses.users[u]];
        if (!is_member(c, f->uses.users[u]) && !(gated && reads_gate(f, user, c->value[m]))) return true;
    }
    return false;
}

/* Whether somebody outside reads a value before `key`. */
static bool is_read_before(const fuser *f, const chain *c, int32_t value, int64_t key) {
    for (int32_t u = f->uses.start[value]; u < f->uses.start[value + 1]; u++)
        if (!is_member(c, f->uses.users[u]) && f->ir->items[f->uses.users[u]].key < key) return true;
    return false;
}

/* Whether the chain may stand at its key: all that it reads is there, and nobody has read of it. */
static bool may_stand(const fuser *f, const chain *c) {
    const wefti_ir *ir = f->ir;
    for (int32_t i = 0; i < c->n_inputs; i++) {
        int32_t root = ir->values[c->inputs[i]].root, ended = f->ended[root], item = ir->values[root].item;
        if (ended >= 0 && ir->items[ended].key < c->key) return false;
        if (item >= 0 && ir->items[item].key >= c->key) return false;
    }
    for (int32_t m = 0; m < c->n_members; m++)
        if (is_read_before(f, c, c->value[m], c->key)) return false;
    return c->beside < 0 || !is_read_before(f, c, ir->items[c->beside].outputs[0], c->key);
}

/* The item that goes on where the chain ends: the first that reads its result, if it does so element by element. -1: none. */
static int32_t follower(const fuser *f, const chain *c) {
    const wefti_ir   *ir = f->ir;
    int32_t           last = c->value[c->n_members - 1], found = -1;
    const wefti_item *product = &ir->items[c->member[0]];
    for (int32_t u = f->uses.start[last]; u < f->uses.start[last + 1]; u++) {
        int32_t user = f->uses.users[u];
        if (found < 0 || ir->items[user].key < ir->items[found].key) found = user;
    }
    if (found < 0 || c->n_members == MOST_MEMBERS || wefti_ir_is_output(ir, last)) return -1;
    const wefti_item *item = &ir->items[found];
    if (item->dead || !wefti_op_is_elementwise(item->op) || item->flags & WEFTI_NODE_APART ||
        (item->flags ^ product->flags) & WEFTI_NODE_RECOMPUTED || c->n_inputs + item->n_inputs - 1 > MOST_MEMBERS + 2)
        return -1;
    weft_shape space = ir->values[item->outputs[0]].shape;
    for (int32_t i = 0; i < item->n_inputs; i++)
        for (int32_t m = 0; m < c->n_members; m++) {
            if (ir->values[item->inputs[i]].root != c->value[m]) continue;
            if (!shows_rows(ir, item->inputs[i], columns_of(ir, last)) || !weft_shape_equal(ir->values[item->inputs[i]].shape, space)) return -1;
        }
    return c->n_members > 1 && !weft_shape_equal(space, c->program.space) ? -1 : found;
}

/* Where the program finds a value: what a member made, else an input, which is added. */
static int32_t source_of(const fuser *f, chain *c, int32_t value) {
    for (int32_t m = 0; m < c->n_members; m++)
        if (f->ir->values[value].root == c->value[m]) return -m; /* the product is input 0, then come instructions */
    for (int32_t i = 2; i < c->n_inputs; i++)
        if (c->inputs[i] == value) return i - 1;
    c->inputs[c->n_inputs++] = value;
    return c->n_inputs - 2;
}

static void add_member(const fuser *f, chain *c, int32_t index) {
    const wefti_item *item = &f->ir->items[index];
    if (c->n_members > 0) {
        wefti_fused_instruction *it = &c->program.instruction[c->program.n_instructions++];
        memset(it, 0, sizeof *it);
        it->op = item->op;
        it->dtype = f->ir->values[item->outputs[0]].dtype;
        it->attrs = *item->attrs;
        for (int32_t i = 0; i < item->n_inputs; i++) it->source[i] = source_of(f, c, item->inputs[i]);
        c->program.space = f->ir->values[item->outputs[0]].shape;
    }
    c->sum[c->n_members] = -1;
    c->value[c->n_members] = item->outputs[0];
    c->key = item->key;
    c->member[c->n_members++] = index;
}

/* The SUM over rows of what the chain ends with; -1: none. */
static int32_t sum_of_result(const fuser *f, const chain *c) {
    int32_t last = c->value[c->n_members - 1];
    for (int32_t u = f->uses.start[last]; u < f->uses.start[last + 1]; u++) {
        const wefti_item *item = &f->ir->items[f->uses.users[u]];
        if (!item->dead && sums_rows(f, item, last, columns_of(f->ir, last))) return f->uses.users[u];
    }
    return -1;
}

/* The SUM over the inner index of operand i of a product, where that comes first in memory; -1: none. What is made element by element is better summed
 * as it is made. */
static int32_t sum_of_operand(const fuser *f, const wefti_item *product, int32_t i) {
    const wefti_ir *ir = f->ir;
    int32_t         root = ir->values[product->inputs[i]].root, maker = ir->values[root].item;
    bool            inner_first = i == 0 ? product->attrs->matmul.trans_a : !product->attrs->matmul.trans_b;
    if (!inner_first || !shows_rows(ir, product->inputs[i], columns_of(ir, product->inputs[i]))) return -1;
    if (maker >= 0 && wefti_op_is_elementwise(ir->items[maker].op) && ir->device->vtable->fuses_reductions) return -1;
    for (int32_t u = f->uses.start[root]; u < f->uses.start[root + 1]; u++) {
        const wefti_item *item = &ir->items[f->uses.users[u]];
        if (!item->dead && sums_rows(f, item, root, columns_of(ir, product->inputs[i])) && !((item->flags ^ product->flags) & WEFTI_NODE_RECOMPUTED)) return f->uses.users[u];
    }
    return -1;
}

/* --- asking the device --- */

/* Lists the program's outputs, and the values that they are. */
static int32_t list_outputs(const fuser *f, chain *c, int32_t *values) {
    wefti_fused *program = &c->program;
    program->n_inputs = c->n_inputs - 1;
    program->n_outputs = 0;
    for (int32_t reduced = 0; reduced < 2; reduced++) /* whole ones first */
        for (int32_t m = 1; m < c->n_members; m++) {
            if (reduced ? c->sum[m] < 0 : !is_needed(f, c, m)) continue;
            values[program->n_outputs] = reduced ? f->ir->items[c->sum[m]].outputs[0] : c->value[m];
            program->output[program->n_outputs++] =
                (wefti_fused_output){.instruction = m - 1, .reduce = reduced ? WEFT_OP_SUM : -1, .axes = reduced ? all_but_last(program->space) : 0};
        }
    int32_t n = program->n_outputs;
    if (c->n_members == 1) values[n++] = c->value[0];
    if (c->beside >= 0) values[n++] = f->ir->items[c->beside].outputs[0];
    return n;
}

/* Adds the chain's item, dead, with the program as it stands in the chain. */
static weft_status add_item(fuser *f, chain *c, int32_t *item_out) {
    wefti_ir         *ir = f->ir;
    const wefti_item *product = &ir->items[c->member[0]];
    int32_t           values[2 * MOST_MEMBERS + 1], n = list_outputs(f, c, values);
    wefti_attrs      *attrs;
    WEFTI_TRY(wefti_ir_attrs(ir, &attrs));
    attrs->matmul = product->attrs->matmul;
    attrs->matmul.sums = c->sums;
    attrs->matmul.fused = c->n_members > 1 ? &c->program : NULL;
    WEFTI_TRY(wefti_ir_item(ir, WEFT_OP_FUSED_MATMUL, attrs, c->n_inputs, n, product->name, c->key, item_out));
    wefti_item *item = &ir->items[*item_out];
    memcpy(item->inputs, c->inputs, (size_t)c->n_inputs * sizeof *item->inputs);
    memcpy(item->outputs, values, (size_t)n * sizeof *item->outputs);
    item->dead = true;
    return WEFT_OK;
}

/* Whether the device takes the chain; the first refusal of a chain of two is kept for descriptions. */
static weft_status ask(fuser *f, chain *c, bool *takes_out) {
    int32_t item;
    int64_t scratch_bytes;
    *takes_out = false;
    if (c->n_members > 1 && is_needed(f, c, 0)) return WEFT_OK; /* the product itself is read */
    if (!may_stand(f, c)) return WEFT_OK;
    WEFTI_TRY(add_item(f, c, &item));
    weft_status status = wefti_item_query(f->ir, &f->ir->items[item], &scratch_bytes);
    f->ir->items[item].attrs = f->ir->items[c->member[0]].attrs; /* the program is the next chain's */
    *takes_out = status == WEFT_OK;
    if (status != WEFT_E_UNSUPPORTED) return status;
    if (f->ir->plain_why || c->n_members != 2) return WEFT_OK;
    f->ir->plain_product = f->ir->items[item].name;
    return wefti_bump_string(&f->ir->keep, weft_error_message(), &f->ir->plain_why);
}

static weft_status grow(fuser *f, int32_t product) {
    const wefti_item *item = &f->ir->items[product];
    chain            *best = &f->best, *next = &f->next;
    bool              takes = true;
    memset(best, 0, sizeof *best);
    best->beside = -1;
    memcpy(best->inputs, item->inputs, 2 * sizeof *best->inputs);
    best->n_inputs = 2;
    add_member(f, best, product);
    while (takes) {
        int32_t with = follower(f, best);
        if (with < 0) break;
        *next = *best;
        add_member(f, next, with);
        WEFTI_TRY(ask(f, next, &takes));
        if (takes) *best = *next;
    }
    if (best->n_members > 1) {
        int32_t sum = sum_of_result(f, best);
        if (sum < 0) return WEFT_OK;
        *next = *best;
        next->sum[next->n_members - 1] = sum;
        WEFTI_TRY(ask(f, next, &takes));
        if (takes) *best = *next;
        return WEFT_OK;
    }
    for (int32_t i = 0; i < 2 && best->beside < 0; i++) {
        *next = *best;
        next->beside = sum_of_operand(f, &f->ir->items[product], i);
        next->sums = i == 0 ? WEFTI_SUMS_A : WEFTI_SUMS_B;
        if (next->beside < 0) continue;
        next->key = wefti_min_i64(next->key, f->ir->items[next->beside].key); /* who reads the sums may come before the product */
        WEFTI_TRY(ask(f, next, &takes));
        if (takes) *best = *next;
    }
    return WEFT_OK;
}

/* --- putting it in --- */

/* What was read of a value before RELU for its sign is read behind it: the value is not stored. */
static void move_gates(fuser *f, const chain *c, int32_t m) {
    for (int32_t u = f->uses.start[c->value[m]]; u < f->uses.start[c->value[m] + 1]; u++) {
        wefti_item *user = &f->ir->items[f->uses.users[u]];
        if (!is_member(c, f->uses.users[u])) user->inputs[1] = c->value[m + 1];
    }
}

static void take_over(fuser *f, wefti_item *item, int32_t from) {
    wefti_item *member = &f->ir->items[from];
    item->flops += member->flops;
    item->graph_ops += member->graph_ops;
    item->flags |= member->flags;
    member->dead = true;
}

static weft_status replace(fuser *f, chain *c) {
    wefti_ir    *ir = f->ir;
    int32_t      index;
    wefti_fused *program = NULL;
    if (c->n_members == 1 && c->beside < 0) return WEFT_OK;
    WEFTI_TRY(add_item(f, c, &index));
    if (c->n_members > 1) {
        wefti_attrs *attrs;
        WEFTI_TRY(wefti_ir_attrs(ir, &attrs));
        WEFTI_TRY(wefti_bump_take(&ir->keep, sizeof *program, &program));
        *program = c->program;
        *attrs = *ir->items[index].attrs;
        attrs->matmul.fused = program;
        ir->items[index].attrs = attrs;
    }
    wefti_item *item = &ir->items[index];
    item->dead = false;
    item->graph_ops = 0;
    item->micro = ir->items[c->member[0]].micro;
    for (int32_t m = 0; m < c->n_members; m++)
        if (m > 0 && m + 1 < c->n_members && !is_needed(f, c, m)) move_gates(f, c, m);
    for (int32_t m = 0; m < c->n_members; m++) {
        take_over(f, item, c->member[m]);
        if (c->sum[m] >= 0) take_over(f, item, c->sum[m]);
    }
    if (c->beside >= 0) take_over(f, item, c->beside);
    for (int32_t o = 0; o < item->n_outputs; o++) {
        ir->values[item->outputs[o]].item = index;
        ir->values[item->outputs[o]].output = o;
    }
    ir->n_fused_products++;
    ir->fused_product_ops += item->graph_ops;
    return WEFT_OK;
}

static weft_status walk(fuser *f) {
    wefti_ir *ir = f->ir;
    for (int32_t k = 0; k < ir->n_order; k++) {
        int32_t           index = ir->order[k];
        const wefti_item *item = &ir->items[index];
        if (item->dead || item->op != WEFT_OP_MATMUL || item->flags & WEFTI_NODE_APART) continue;
        if (ir->values[item->inputs[0]].shape.rank != 2 || ir->values[item->inputs[1]].shape.rank != 2) continue;
        WEFTI_TRY(grow(f, index));
        WEFTI_TRY(replace(f, &f->best));
    }
    return wefti_ir_settle(ir);
}

weft_status wefti_pass_epilogue(wefti_ir *ir) {
    weft_status status;
    fuser      *f = NULL;
    size_t      ended_bytes = (size_t)ir->n_values * sizeof *f->ended;
    if (ir->options.base.no_fusion || !ir->device->vtable->fuses_products) return WEFT_OK;
    WEFTI_TRY(wefti_alloc(sizeof *f, "a plan", &f));
    f->ir = ir;
    WEFTI_TRY_GOTO(wefti_alloc(ended_bytes, "a plan", &f->ended), done);
    WEFTI_TRY_GOTO(wefti_ir_endings(ir, f->ended), done);
    WEFTI_TRY_GOTO(wefti_ir_uses(ir, true, &f->uses), done);
    status = walk(f);
done:
    wefti_uses_release(&f->uses);
    wefti_free(f->ended, ended_bytes);
    wefti_free(f, sizeof *f);
    return status;
}

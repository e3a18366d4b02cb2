/* Together: small items of one kind side by side, for devices that do such neighbours in one launch (device.h, joins_calls).
 *
 * A network has hundreds of parameters, and each is cast to the type in which products compute, and its gradient back; on a GPU every one of these
 * is a launch, which takes longer than the work. So casts of parameters move to the start of the step, and what only updates read, casts of
 * gradients and products of sums, to just before the first update, by kind: updates then follow one another, too. An elementwise item that stands alone
 * becomes a program of one instruction, which is what the device joins. Sums of squares, of which a norm is made, stand in one row before what adds them
 * up. What is only assigned, running statistics, goes to one place, too. Nothing is computed differently.
 *
 * Values live longer, but for few bytes: what is cast early would be read again in the backward pass anyway; what waits for its cast is of
 * the narrower type. So a cast that a collective takes, as one of a part that is gathered for its readers (src/parallel/zero.c), stays where it is: all
 * that is gathered would lie in memory from the start. And what would keep more than it makes stays, unless it is a program of small values. Linear. */
#include <string.h>

#include "core/plan/ir.h"

enum {
    MOST = 1 << 22, /* elements that are moved: larger ones fill a device by themselves */
    SMALL = 1 << 16 /* of what is computed by a program */
};

typedef struct gatherer {
    wefti_ir  *ir;
    wefti_uses uses;  /* by root */
    int32_t   *ended; /* by value: wefti_ir_endings */
    int64_t    update; /* the key of the first UPDATE; INT64_MAX: there is none */
} gatherer;

static int64_t elements_of(const wefti_ir *ir, const wefti_item *item) { return wefti_value_elements(&ir->values[item->outputs[0]]); }

/* --- early: casts of parameters --- */

static bool is_cast_of_parameter(const gatherer *g, const wefti_item *item) {
    const wefti_ir *ir = g->ir;
    int32_t         value = item->outputs[0];
    if (item->op != WEFT_OP_CAST || item->flags & WEFTI_NODE_RECOMPUTED || elements_of(ir, item) > MOST) return false;
    for (int32_t u = g->uses.start[value]; u < g->uses.start[value + 1]; u++)
        if (wefti_item_is_comm(&ir->items[g->uses.users[u]])) return false;
    const wefti_value *root = &ir->values[ir->values[item->inputs[0]].root];
    return root->place == WEFTI_HOME_VARIABLE && root->item < 0;
}

/* --- late: what only updates read --- */

static bool is_for_updates(const gatherer *g, const wefti_item *item) {
    const wefti_ir *ir = g->ir;
    if (!wefti_op_is_elementwise(item->op) || item->flags & WEFTI_NODE_APART) return false;
    if (elements_of(ir, item) > (item->op == WEFT_OP_CAST ? MOST : SMALL)) return false;
    int32_t value = item->outputs[0];
    if (wefti_ir_is_output(ir, value)) return false;
    for (int32_t u = g->uses.start[value]; u < g->uses.start[value + 1]; u++)
        if (ir->items[g->uses.users[u]].op != WEFT_OP_UPDATE) return false;
    return g->uses.start[value] < g->uses.start[value + 1];
}

/* Whether the item may stand just before the first update: what it reads is there, and not overwritten yet. */
static bool may_stand(const gatherer *g, const wefti_item *item) {
    const wefti_ir *ir = g->ir;
    for (int32_t i = 0; i < item->n_inputs; i++) {
        int32_t root = ir->values[item->inputs[i]].root, maker = ir->values[root].item;
        if (maker >= 0 && (ir->items[maker].key >= g->update - WEFTI_KEY_STEP / 2 || wefti_item_is_comm(&ir->items[maker]))) return false;
        if (g->ended[root] >= 0 && ir->items[g->ended[root]].key < g->update) return false;
    }
    return true;
}

/* Whether root `value` is in memory just before the first update, whoever waits for it. */
static bool is_there_then(const gatherer *g, int32_t value, int32_t index) {
    const wefti_ir *ir = g->ir;
    if (ir->values[value].place != WEFTI_HOME_ARENA || wefti_ir_is_output(ir, value)) return true;
    for (int32_t u = g->uses.start[value]; u < g->uses.start[value + 1]; u++)
        if (g->uses.users[u] != index && ir->items[g->uses.users[u]].key >= g->update - 2) return true;
    return false;
}

/* Whether more bytes would live until then for the item alone than it makes; small values that programs read do not count. */
static bool keeps_more(const gatherer *g, int32_t index) {
    const wefti_ir   *ir = g->ir;
    const wefti_item *item = &ir->items[index];
    int64_t           kept = 0;
    for (int32_t i = 0; i < item->n_inputs; i++) {
        int32_t root = ir->values[item->inputs[i]].root;
        bool    spared = (item->op != WEFT_OP_CAST && wefti_value_elements(&ir->values[root]) <= SMALL) || is_there_then(g, root, index);
        for (int32_t j = 0; j < i && !spared; j++) spared = ir->values[item->inputs[j]].root == root;
        if (!spared) kept += wefti_value_bytes(&ir->values[root]);
    }
    return kept > wefti_value_bytes(&ir->values[item->outputs[0]]);
}

/* The item as a program of one instruction, if the device takes that. */
static weft_status make_program(wefti_ir *ir, int32_t index) {
    wefti_item  *item = &ir->items[index];
    wefti_item   before = *item;
    wefti_fused *fused;
    wefti_attrs *attrs;
    int64_t      scratch_bytes;
    WEFTI_TRY(wefti_bump_take(&ir->keep, sizeof *fused, &fused));
    WEFTI_TRY(wefti_ir_attrs(ir, &attrs));
    attrs->fused.fused = fused;
    fused->space = ir->values[item->outputs[0]].shape;
    fused->n_inputs = item->n_inputs;
    fused->n_instructions = fused->n_outputs = 1;
    fused->instruction[0].op = item->op;
    fused->instruction[0].dtype = ir->values[item->outputs[0]].dtype;
    for (int32_t i = 0; i < item->n_inputs; i++) fused->instruction[0].source[i] = i;
    fused->instruction[0].attrs = *item->attrs;
    fused->output[0].reduce = -1;
    item->op = WEFT_OP_FUSED;
    item->attrs = attrs;
    weft_status status = wefti_item_query(ir, item, &scratch_bytes);
    if (status == WEFT_E_UNSUPPORTED) {
        *item = before;
        return WEFT_OK;
    }
    return status;
}

/* --- what is only assigned --- */

/* The ASSIGN that alone reads what a small program makes, if nobody reads the new value; -1: there is none. */
static int32_t assigned_by(const gatherer *g, const wefti_item *item) {
    const wefti_ir *ir = g->ir;
    if (item->op != WEFT_OP_FUSED || item->n_outputs != 1 || item->attrs->fused.fused->output[0].reduce >= 0 || elements_of(ir, item) > SMALL) return -1;
    int32_t value = item->outputs[0], user = g->uses.start[value] < g->uses.start[value + 1] ? g->uses.users[g->uses.start[value]] : -1;
    if (user < 0 || g->uses.start[value + 1] - g->uses.start[value] != 1 || ir->items[user].op != WEFT_OP_ASSIGN) return -1;
    int32_t after = ir->items[user].outputs[0];
    return g->uses.start[after] == g->uses.start[after + 1] && g->ended[after] < 0 ? user : -1; /* nor anybody writes there again */
}

static bool reads_till_then(const gatherer *g, const wefti_item *item, int32_t assign, int64_t key) {
    const wefti_ir *ir = g->ir;
    for (int32_t i = 0; i < item->n_inputs; i++) {
        int32_t by = g->ended[ir->values[item->inputs[i]].root];
        if (by >= 0 && by != assign && ir->items[by].key <= key) return false;
    }
    return true;
}

/* Puts such programs to where the last of them stands, those of as many instructions together; then their ASSIGNs. */
static void gather_assigned(gatherer *g) {
    wefti_ir *ir = g->ir;
    int64_t   last = 0;
    for (int32_t k = 0; k < ir->n_order; k++)
        if (assigned_by(g, &ir->items[ir->order[k]]) >= 0) last = wefti_max_i64(last, ir->items[ir->order[k]].key);
    for (int32_t k = 0; k < ir->n_order; k++) {
        wefti_item *item = &ir->items[ir->order[k]];
        int32_t     assign = assigned_by(g, item);
        if (assign < 0 || !reads_till_then(g, item, assign, last + 2 * WEFTI_FUSED_MAX)) continue;
        item->key = last + item->attrs->fused.fused->n_instructions;
        ir->items[assign].key = wefti_max_i64(ir->items[assign].key, last + 2 * WEFTI_FUSED_MAX);
    }
}

/* --- sums over everything --- */

bool wefti_item_sums_all(const wefti_item *item) {
    const wefti_fused *fused = item->op == WEFT_OP_FUSED ? item->attrs->fused.fused : NULL;
    int32_t            sums = 0;
    if (!fused || fused->n_inputs != 1 || fused->n_instructions > 2) return false;
    for (int32_t k = 0; k < fused->n_outputs; k++) {
        const wefti_fused_output *out = &fused->output[k];
        if (out->reduce >= 0 && (out->reduce != WEFT_OP_SUM || out->axes != (1u << fused->space.rank) - 1)) return false;
        sums += out->reduce >= 0;
    }
    return sums == 1;
}

/* Among items that only compute, those sums move up to the first of them, by the dtype that they read, if what they sum is there by then: what adds
 * some of them up had stood in between. */
static void gather_sums(wefti_ir *ir) {
    int64_t first = -1;
    for (int32_t k = 0; k < ir->n_order; k++) {
        wefti_item *item = &ir->items[ir->order[k]];
        bool        sums = wefti_item_sums_all(item);
        if (!sums && item->op != WEFT_OP_FUSED && !wefti_op_is_elementwise(item->op)) first = -1;
        if (!sums) continue;
        const wefti_value *x = &ir->values[item->inputs[0]];
        int32_t            maker = ir->values[x->root].item;
        if (first < 0) first = item->key;
        if (maker < 0 || ir->items[maker].key < first) item->key = wefti_min_i64(item->key, first + (x->dtype == WEFT_F32 ? 0 : 1));
    }
}

static weft_status move(gatherer *g) {
    wefti_ir *ir = g->ir;
    gather_assigned(g);
    gather_sums(ir);
    for (int32_t k = 0; k < ir->n_order; k++) {
        wefti_item *item = &ir->items[ir->order[k]];
        if (is_cast_of_parameter(g, item)) {
            item->key = 1;
            continue;
        }
        if (item->key == g->update || !is_for_updates(g, item) || !may_stand(g, item) || keeps_more(g, ir->order[k])) continue;
        item->key = g->update - (item->op == WEFT_OP_CAST ? 2 : 1);
        if (item->op != WEFT_OP_CAST) WEFTI_TRY(make_program(ir, ir->order[k]));
    }
    return wefti_ir_settle(ir);
}

weft_status wefti_pass_together(wefti_ir *ir) {
    weft_status status;
    gatherer    g = {.ir = ir, .update = INT64_MAX};
    size_t      ended_bytes = (size_t)ir->n_values * sizeof *g.ended;
    if (ir->options.base.no_fusion || !ir->device->vtable->joins_calls) return WEFT_OK;
    for (int32_t k = ir->n_order - 1; k >= 0; k--)
        if (ir->items[ir->order[k]].op == WEFT_OP_UPDATE) g.update = ir->items[ir->order[k]].key;
    if (g.update == INT64_MAX) return WEFT_OK;
    WEFTI_TRY_GOTO(wefti_ir_uses(ir, true, &g.uses), done);
    WEFTI_TRY_GOTO(wefti_alloc(ended_bytes, "a plan", &g.ended), done);
    WEFTI_TRY_GOTO(wefti_ir_endings(ir, g.ended), done);
    status = move(&g);
done:
    wefti_uses_release(&g.uses);
    wefti_free(g.ended, ended_bytes);
    return status;
}

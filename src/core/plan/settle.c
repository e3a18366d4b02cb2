/* Settle: what is computed only to be assigned is computed where the variable lies, and the ASSIGN goes.
 *
 * An ASSIGN copies. Where its source is the whole result of an elementwise or fused item, which nobody else reads, and nobody reads the old value
 * of the variable from that item on but the item itself, element by element, the item writes the variable. So a batch norm's running
 * statistics, kept in a step that is skipped, are one item each. Works on the finished order. Linear in reads. */
#include <string.h>

#include "core/plan/ir.h"

typedef struct settler {
    wefti_ir  *ir;
    wefti_uses uses;     /* by root */
    int32_t   *position; /* by item */
    int32_t   *writers;  /* by variable: how many items write it */
} settler;

/* All of its root, as that lies in memory. */
static bool is_whole(const wefti_ir *ir, const wefti_value *value) {
    return value->offset == 0 && !value->uniform && wefti_value_is_dense(value) && wefti_value_elements(value) == wefti_value_elements(&ir->values[value->root]);
}

/* Whether the item's output, a value, is written element by element, and read by `reader` alone. */
static bool is_for(const settler *s, int32_t value, int32_t reader) {
    const wefti_value *v = &s->ir->values[value];
    const wefti_item  *maker = v->item >= 0 ? &s->ir->items[v->item] : NULL;
    if (!maker || v->place != WEFTI_HOME_ARENA || wefti_ir_is_output(s->ir, value)) return false;
    if (maker->op == WEFT_OP_FUSED ? maker->attrs->fused.fused->output[v->output].reduce >= 0 : !wefti_op_is_elementwise(maker->op)) return false;
    return s->uses.start[value + 1] - s->uses.start[value] == 1 && s->uses.users[s->uses.start[value]] == reader;
}

/* Whether the memory of root `variable` may be overwritten by the item at position `k`: what reads it has been there, or reads it in step. */
static bool is_done_with(const settler *s, int32_t variable, int32_t k, int32_t assign) {
    const wefti_ir *ir = s->ir;
    for (int32_t u = s->uses.start[variable]; u < s->uses.start[variable + 1]; u++) {
        int32_t           user = s->uses.users[u];
        const wefti_item *item = &ir->items[user];
        if (user == assign || s->position[user] < k) continue;
        if (s->position[user] > k) return false;
        for (int32_t i = 0; i < item->n_inputs; i++) {
            const wefti_value *seen = &ir->values[item->inputs[i]]; /* as many elements as there are results, in the same order */
            if (seen->root == variable && !is_whole(ir, seen)) return false;
        }
    }
    return true;
}

/* Lets the ASSIGN's source be the variable, where that may be. */
static void settle(settler *s, int32_t index) {
    wefti_ir          *ir = s->ir;
    wefti_item        *assign = &ir->items[index];
    const wefti_value *source = &ir->values[assign->inputs[1]];
    wefti_value       *result = &ir->values[source->root], *old = &ir->values[ir->values[assign->inputs[0]].root];
    if (!is_whole(ir, source) || result->dtype != old->dtype || wefti_value_elements(result) != wefti_value_elements(old)) return;
    if (s->writers[old->index] != 1 || !is_for(s, source->root, index)) return;
    int32_t k = s->position[result->item];
    if (!is_done_with(s, ir->values[assign->inputs[0]].root, k, index)) return;
    result->place = WEFTI_HOME_VARIABLE;
    result->index = old->index;
    wefti_value *after = &ir->values[assign->outputs[0]]; /* who reads the new value waits for the maker now */
    after->item = result->item;
    after->output = result->output;
    ir->items[result->item].graph_ops += assign->graph_ops;
    assign->dead = true;
}

static void walk(settler *s) {
    wefti_ir *ir = s->ir;
    int32_t   n = 0;
    for (int32_t k = 0; k < ir->n_order; k++) {
        const wefti_item *item = &ir->items[ir->order[k]];
        s->position[ir->order[k]] = k;
        for (int32_t i = 0; wefti_item_has_effect(item) && i < item->n_inputs; i++)
            if (wefti_item_writes(item, i)) s->writers[ir->values[ir->values[item->inputs[i]].root].index]++;
    }
    for (int32_t k = 0; k < ir->n_order; k++)
        if (ir->items[ir->order[k]].op == WEFT_OP_ASSIGN) settle(s, ir->order[k]);
    for (int32_t k = 0; k < ir->n_order; k++)
        if (!ir->items[ir->order[k]].dead) ir->order[n++] = ir->order[k];
    ir->n_order = n;
}

weft_status wefti_pass_settle(wefti_ir *ir) {
    weft_status status = WEFT_OK;
    settler     s = {.ir = ir};
    size_t      position_bytes = (size_t)ir->n_items * sizeof *s.position, writers_bytes = (size_t)ir->n_variables * sizeof *s.writers;
    if (ir->options.base.no_in_place || ir->n_variables == 0) return WEFT_OK;
    WEFTI_TRY_GOTO(wefti_ir_uses(ir, true, &s.uses), done);
    WEFTI_TRY_GOTO(wefti_alloc(position_bytes, "a plan", &s.position), done);
    WEFTI_TRY_GOTO(wefti_alloc(writers_bytes, "a plan", &s.writers), done);
    walk(&s);
done:
    wefti_uses_release(&s.uses);
    wefti_free(s.position, position_bytes);
    wefti_free(s.writers, writers_bytes);
    return status;
}

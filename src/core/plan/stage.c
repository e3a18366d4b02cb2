/* Staging: what collectives give must lie in memory of its own, in the exported region.
 *
 * A collective works in place on values that the plan computes and that nobody else reads once it has started; all others (variables,
 * fed arrays, constants, windows, outputs, what is read later or sent twice) are copied just before. Works on the finished
 * order. Linear. */
#include <string.h>

#include "core/plan/ir.h"

typedef struct stager {
    wefti_ir  *ir;
    wefti_uses uses;
    int32_t   *position;  /* by item */
    uint8_t   *is_output; /* by value */
    int32_t   *order;     /* the new one */
    int32_t    n_order, capacity;
} stager;

static weft_status append(stager *s, int32_t item) {
    WEFTI_TRY(wefti_ir_room(&s->order, s->n_order, &s->capacity, sizeof *s->order));
    s->order[s->n_order++] = item;
    return WEFT_OK;
}

/* Whether the collective at position k may take the value's own memory. */
static bool can_give(const stager *s, int32_t v, int32_t k, const wefti_item *item, int32_t input) {
    const wefti_ir    *ir = s->ir;
    const wefti_value *value = &ir->values[v];
    /* A SEND only reads: what others read, or send, too may go from where it lies. */
    if (item->op == WEFT_OP_SEND) return value->root == v && value->item >= 0 && (value->place == WEFTI_HOME_ARENA || value->place == WEFTI_HOME_EXPORTED);
    if (value->root != v || value->item < 0 || value->place != WEFTI_HOME_ARENA || s->is_output[v]) return false;
    if (wefti_item_is_comm(&ir->items[value->item])) return false;
    for (int32_t i = 0; i < input; i++)
        if (item->inputs[i] == v) return false;
    for (int32_t u = s->uses.start[v]; u < s->uses.start[v + 1]; u++) {
        const wefti_item *user = &ir->items[s->uses.users[u]];
        if (s->uses.users[u] != ir->order[k] && (wefti_item_is_comm(user) || s->position[s->uses.users[u]] > k)) return false;
    }
    return true;
}

static weft_status stage_item(stager *s, int32_t k) {
    wefti_ir *ir = s->ir;
    int32_t   index = ir->order[k];
    if (wefti_item_has_effect(&ir->items[index])) return append(s, index); /* variables that are gathered in place */
    for (int32_t i = 0; wefti_item_is_comm(&ir->items[index]) && i < ir->items[index].n_inputs; i++) {
        int32_t value = ir->items[index].inputs[i], copy;
        if (!can_give(s, value, k, &ir->items[index], i)) {
            WEFTI_TRY(wefti_ir_copy(ir, value, ir->items[index].key, ir->items[index].name, &copy));
            WEFTI_TRY(append(s, ir->n_items - 1));
            ir->items[index].inputs[i] = copy;
            value = copy;
        }
        ir->values[value].place = WEFTI_HOME_EXPORTED;
        ir->values[value].sent |= ir->items[index].op == WEFT_OP_SEND;
    }
    for (int32_t o = 0; wefti_item_is_comm(&ir->items[index]) && o < ir->items[index].n_outputs; o++)
        ir->values[ir->items[index].outputs[o]].place = WEFTI_HOME_EXPORTED;
    return append(s, index);
}

weft_status wefti_pass_stage(wefti_ir *ir) {
    weft_status status = WEFT_OK;
    stager      s = {.ir = ir};
    size_t      position_bytes = (size_t)ir->n_items * sizeof *s.position, n_values = (size_t)ir->n_values;
    bool        any = false;
    for (int32_t k = 0; k < ir->n_order; k++) any |= wefti_item_is_comm(&ir->items[ir->order[k]]);
    if (!any) return WEFT_OK;
    WEFTI_TRY_GOTO(wefti_ir_uses(ir, true, &s.uses), done);
    WEFTI_TRY_GOTO(wefti_alloc(position_bytes, "a plan", &s.position), done);
    WEFTI_TRY_GOTO(wefti_alloc(n_values, "a plan", &s.is_output), done);
    for (int32_t k = 0; k < ir->n_order; k++) s.position[ir->order[k]] = k;
    for (int32_t o = 0; o < ir->n_outputs; o++) s.is_output[ir->values[ir->outputs[o]].root] = 1;
    for (int32_t k = 0; k < ir->n_order; k++) WEFTI_TRY_GOTO(stage_item(&s, k), done);
    wefti_free(ir->order, (size_t)ir->order_capacity * sizeof *ir->order);
    ir->order = s.order;
    ir->n_order = s.n_order;
    ir->order_capacity = s.capacity;
    s.order = NULL;
    s.capacity = 0;
done:
    wefti_uses_release(&s.uses);
    wefti_free(s.position, position_bytes);
    wefti_free(s.is_output, n_values);
    wefti_free(s.order, (size_t)s.capacity * sizeof *s.order);
    return status;
}

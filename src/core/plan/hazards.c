/* Hazards: a variable's value is what it was when the step began, wherever it is read; ASSIGN and UPDATE write in place.
 *
 * A variable's memory goes through versions: what the step finds, then what each writer leaves. Whoever reads a version after the
 * next writer in the order of ids is given a copy made just before that writer; everyone else reads in place, and the schedule keeps
 * readers before writers. Copies are rare: updates come last. Linear in reads of variables. */
#include <string.h>

#include "core/plan/ir.h"

typedef struct version {
    int32_t value;  /* its root; -1: a state that an UPDATE left, which nobody can name */
    int32_t writer; /* the item that ends it; -1: none does */
} version;

typedef struct hazards {
    wefti_ir  *ir;
    wefti_uses uses;
    int32_t   *position; /* by item */
    int32_t   *current;  /* by variable: its latest version, an index into versions */
    version   *versions;
    int32_t    n_versions;
} hazards;

/* A view of `copy` that looks at it as `value` looks at its root. */
static weft_status redirect(wefti_ir *ir, int32_t value, int32_t copy, int32_t *value_out) {
    const wefti_value from = ir->values[value];
    *value_out = copy;
    if (from.root == value) return WEFT_OK;
    WEFTI_TRY(wefti_ir_value(ir, from.dtype, from.shape, -1, 0, value_out));
    wefti_value *view = &ir->values[*value_out];
    view->root = copy;
    view->offset = from.offset;
    memcpy(view->stride, from.stride, sizeof view->stride);
    return WEFT_OK;
}

static weft_status snapshot(hazards *h, const version *v, int32_t *copy) {
    if (*copy >= 0) return WEFT_OK;
    return wefti_ir_copy(h->ir, v->value, h->ir->items[v->writer].key, h->ir->items[v->writer].name, copy);
}

static weft_status protect(hazards *h, const version *v) {
    wefti_ir *ir = h->ir;
    int32_t   copy = -1;
    if (v->value < 0 || v->writer < 0) return WEFT_OK;
    for (int32_t u = h->uses.start[v->value]; u < h->uses.start[v->value + 1]; u++) {
        int32_t reader = h->uses.users[u];
        /* The writer itself may not read what it writes, but at the very place: kernels need not bear that. */
        if (h->position[reader] < h->position[v->writer]) continue;
        for (int32_t i = 0; i < ir->items[reader].n_inputs; i++) {
            int32_t value = ir->items[reader].inputs[i], fresh;
            if (ir->values[value].root != v->value || wefti_item_writes(&ir->items[reader], i)) continue;
            WEFTI_TRY(snapshot(h, v, &copy));
            WEFTI_TRY(redirect(ir, value, copy, &fresh));
            ir->items[reader].inputs[i] = fresh;
        }
    }
    for (int32_t o = 0; o < ir->n_outputs; o++) {
        if (ir->values[ir->outputs[o]].root != v->value) continue;
        WEFTI_TRY(snapshot(h, v, &copy));
        WEFTI_TRY(redirect(ir, ir->outputs[o], copy, &ir->outputs[o]));
    }
    return WEFT_OK;
}

/* The versions of all variables, in the order of writers. */
static void collect(hazards *h) {
    wefti_ir *ir = h->ir;
    for (int32_t i = 0; i < ir->n_variables; i++) {
        h->current[i] = h->n_versions;
        h->versions[h->n_versions++] = (version){ir->variables[i].value, -1};
    }
    for (int32_t k = 0; k < ir->n_order; k++) {
        const wefti_item *item = &ir->items[ir->order[k]];
        h->position[ir->order[k]] = k;
        for (int32_t i = 0; wefti_item_has_effect(item) && i < item->n_inputs; i++) {
            if (!wefti_item_writes(item, i)) continue;
            int32_t variable = ir->values[ir->values[item->inputs[i]].root].index;
            h->versions[h->current[variable]].writer = ir->order[k];
            h->current[variable] = h->n_versions;
            h->versions[h->n_versions++] = (version){i == 0 ? item->outputs[0] : -1, -1};
        }
    }
}

weft_status wefti_pass_hazards(wefti_ir *ir) {
    weft_status status;
    hazards     h = {.ir = ir};
    size_t      most = (size_t)ir->n_variables, position_bytes = (size_t)ir->n_items * sizeof(int32_t);
    for (int32_t k = 0; k < ir->n_order; k++)
        if (wefti_item_has_effect(&ir->items[ir->order[k]])) most += (size_t)ir->items[ir->order[k]].n_inputs;
    if (most == (size_t)ir->n_variables) return WEFT_OK; /* nobody writes */
    size_t current_bytes = (size_t)ir->n_variables * sizeof(int32_t), version_bytes = most * sizeof(version);
    WEFTI_TRY_GOTO(wefti_ir_uses(ir, true, &h.uses), done);
    WEFTI_TRY_GOTO(wefti_alloc(position_bytes, "a plan", &h.position), done);
    WEFTI_TRY_GOTO(wefti_alloc(current_bytes, "a plan", &h.current), done);
    WEFTI_TRY_GOTO(wefti_alloc(version_bytes, "a plan", &h.versions), done);
    collect(&h);
    for (int32_t i = 0; i < h.n_versions; i++) WEFTI_TRY_GOTO(protect(&h, &h.versions[i]), done);
    status = wefti_ir_settle(ir);
done:
    wefti_uses_release(&h.uses);
    wefti_free(h.position, position_bytes);
    wefti_free(h.current, current_bytes);
    wefti_free(h.versions, version_bytes);
    return status;
}

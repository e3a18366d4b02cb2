/* Divide: ranks update large parameters together, each its part.
 *
 * *Asked for.* Where the strategy keeps solver states in parts (src/parallel/zero.c), an UPDATE says which part is this rank's; here it is given
 * windows, and the parameter is gathered in place, as below where ranks reach each other's memory, else by a message for each.
 *
 * *Of its own accord*, where ranks reach each other's memory.
 * An UPDATE of a gradient that was reduced over the ranks does the same work on every rank. Here ALL_REDUCE, UPDATE becomes
 * REDUCE_SCATTER, UPDATE of this rank's part, and at the end one ALL_GATHER of all such parameters in place, before which a rank stores its
 * parts to the others' memory, or after which it loads theirs. The bytes on the way are the same, a rank has a part of the memory traffic of
 * the update, and no bit changes, for rules work element by element and sums are taken in the order of the ranks either way. Solver
 * states are kept up to date in parts (variables_shared.c).
 *
 * Left whole: what is not worth another message, rows that shrink together, rules of the application, gradients that
 * somebody else reads too (clipping by norm), variables that are not shared. All ranks decide alike: nothing here depends on the
 * rank but which part is its own. Linear. */
#include "core/iface/rule.h"
#include "core/plan/ir.h"

/* What each rank must be spared of memory traffic to make up for a message: some 10 us of it. */
enum { WORTH_BYTES = 96 << 10 };

typedef struct divider {
    wefti_ir   *ir;
    int32_t    *divided; /* [ir->n_divided] updates */
    wefti_uses  uses;
    uint8_t    *is_output; /* by root */
} divider;

/* Bytes that an update reads and writes for each byte of the parameter, beside the sending of it: gradient, and each state twice. */
static bool pays(const wefti_ir *ir, const wefti_item *update, int32_t ranks) {
    int64_t bytes = wefti_value_bytes(&ir->values[update->outputs[0]]), least = ir->options.base.divide_bytes;
    if (least != 0) return least > 0 && bytes >= least;
    return bytes / ranks * (ranks - 1) * (1 + 2 * update->attrs->update.rule->n_states) >= WORTH_BYTES;
}

static bool is_shared(const wefti_ir *ir, int32_t value) {
    const wefti_value *root = &ir->values[ir->values[value].root];
    if (root->place != WEFTI_HOME_VARIABLE || root->item >= 0) return false;
    int32_t index = weft_variables_find(ir->options.base.variables, ir->variables[root->index].name);
    return index >= 0 && wefti_variables_shared(ir->options.base.variables, index);
}

/* The reduction that gives the update its gradient, and nobody else anything; -1: there is none. */
static int32_t reduction_of(const divider *d, int32_t update) {
    const wefti_ir    *ir = d->ir;
    const wefti_value *gradient = &ir->values[ir->items[update].inputs[1]];
    const wefti_value *root = &ir->values[gradient->root];
    if (root->item < 0 || ir->items[root->item].op != WEFT_OP_ALL_REDUCE || ir->items[root->item].n_inputs != 1) return -1;
    if (ir->items[root->item].attrs->comm.reduce != WEFTI_REDUCE_SUM || d->is_output[gradient->root]) return -1;
    if (gradient->offset != 0 || !wefti_value_is_dense(gradient) || wefti_value_elements(gradient) != wefti_value_elements(root)) return -1;
    if (wefti_value_elements(gradient) != wefti_value_elements(&ir->values[ir->items[update].outputs[0]])) return -1;
    for (int32_t u = d->uses.start[gradient->root]; u < d->uses.start[gradient->root + 1]; u++)
        if (d->uses.users[u] != update) return -1;
    return root->item;
}

static bool can_divide(const divider *d, const wefti_item *update, const struct wefti_group *group) {
    const wefti_ir *ir = d->ir;
    int32_t         out = update->outputs[0];
    if (group != ir->world->group || update->attrs->update.rule->id >= WEFTI_RULE_USER || update->attrs->update.group > 0) return false;
    if (ir->values[out].dtype == WEFT_BF16) return false; /* its lines have other elements than its states' */
    if (!pays(ir, update, group->size) || d->is_output[out] || d->uses.start[out] != d->uses.start[out + 1]) return false;
    for (int32_t i = 0; i < update->n_inputs; i++)
        if (i != 1 && i != 2 && !is_shared(ir, update->inputs[i])) return false;
    return true;
}

/* A window on a dense value, from element `first` on. */
static weft_status window(wefti_ir *ir, int32_t value, int64_t first, weft_shape shape, int32_t *window_out) {
    WEFTI_TRY(wefti_ir_value(ir, ir->values[value].dtype, shape, -1, 0, window_out));
    ir->values[*window_out].root = ir->values[value].root;
    ir->values[*window_out].offset = ir->values[value].offset + first;
    return WEFT_OK;
}

/* What the update leaves is a window on the parameter. */
static void narrow(wefti_ir *ir, int32_t update, int64_t first, weft_shape shape) {
    wefti_value *out = &ir->values[ir->items[update].outputs[0]];
    int64_t      elements = wefti_value_elements(out);
    ir->items[update].flops *= elements ? (double)weft_shape_elements(shape) / (double)elements : 1;
    ir->items[update].divided = true;
    out->shape = shape;
    out->offset = first;
    wefti_dense_strides(shape, out->stride);
}

static weft_status divide(wefti_ir *ir, int32_t update, int32_t reduction, const struct wefti_group *group) {
    const wefti_item    it = ir->items[update];
    int32_t             out = it.outputs[0], reduced, value;
    int64_t             elements = wefti_value_elements(&ir->values[out]);
    wefti_variable_part part = wefti_variable_part_of(elements, ir->values[out].dtype, group->size, group->index);
    ir->items[reduction].op = WEFT_OP_REDUCE_SCATTER;
    ir->items[reduction].divided = true;
    WEFTI_TRY(wefti_ir_value(ir, ir->values[out].dtype, weft_shape(part.each), reduction, 0, &reduced));
    WEFTI_TRY(window(ir, reduced, 0, weft_shape(part.count), &it.inputs[1]));
    for (int32_t i = 0; i < it.n_inputs; i++) {
        if (i == 1 || i == 2) continue;
        if (i >= 3) ir->variables[ir->values[ir->values[it.inputs[i]].root].index].divided = true;
        WEFTI_TRY(window(ir, it.inputs[i], part.first, weft_shape(part.count), &value));
        it.inputs[i] = value;
    }
    narrow(ir, update, part.first, weft_shape(part.count));
    return WEFT_OK;
}

/* The gathering of all divided parameters, behind the last update. */
static weft_status gather(const divider *d, const wefti_attrs *attrs) {
    wefti_ir *ir = d->ir;
    int32_t   last = d->divided[ir->n_divided - 1], item, value;
    WEFTI_TRY(wefti_ir_item(ir, WEFT_OP_ALL_GATHER, attrs, ir->n_divided, ir->n_divided, ir->items[last].name, ir->items[last].key + 1, &item));
    ir->items[item].divided = true;
    ir->items[item].graph_ops = 0;
    for (int32_t i = 0; i < ir->n_divided; i++) {
        int32_t     part = ir->items[d->divided[i]].outputs[0], index = ir->values[part].index;
        const weft_tensor *leaf = ir->variables[index].leaf;
        ir->items[item].inputs[i] = part;
        WEFTI_TRY(wefti_ir_value(ir, leaf->dtype, leaf->shape, item, i, &value));
        ir->values[value].place = WEFTI_HOME_VARIABLE;
        ir->values[value].index = index;
    }
    return WEFT_OK;
}

/* --- what was asked for --- */

/* A rank's part, as rows where rows shrink together. */
static weft_shape part_shape(const wefti_ir *ir, const wefti_item *update, int64_t count) {
    weft_shape whole = ir->values[update->inputs[0]].shape;
    int64_t    row = wefti_rule_row(whole);
    return update->attrs->update.group > 0 ? weft_shape(row > 0 ? count / row : 0, row) : weft_shape(count);
}

/* Windows on what the update reads and writes. */
static weft_status take_part(wefti_ir *ir, int32_t update) {
    const wefti_item         it = ir->items[update];
    const wefti_update_part *part = &it.attrs->update.part;
    weft_shape               shape = part_shape(ir, &it, part->count);
    for (int32_t i = 0; i < it.n_inputs; i++) {
        int32_t value = it.inputs[i];
        if (i == 2) continue;
        if (!wefti_value_is_dense(&ir->values[value])) WEFTI_TRY(wefti_ir_copy(ir, value, it.key, it.name, &value));
        WEFTI_TRY(window(ir, value, i == 0 ? part->first : 0, shape, &it.inputs[i]));
    }
    narrow(ir, update, part->first, shape);
    return WEFT_OK;
}

/* Whether ranks reach the parameter in each other's memory, and would divide it so by themselves. */
static bool meets(const wefti_ir *ir, const wefti_item *update, const struct wefti_group *group) {
    const wefti_value  *root = &ir->values[ir->values[update->inputs[0]].root];
    wefti_variable_part own = wefti_variable_part_of(wefti_value_elements(root), root->dtype, group->size, group->index);
    return group == ir->world->group && ir->options.base.variables && is_shared(ir, update->inputs[0]) && update->attrs->update.part.each == own.each;
}

/* The whole parameter by a message, behind its update. */
static weft_status gather_one(wefti_ir *ir, int32_t update) {
    const wefti_item it = ir->items[update];
    wefti_attrs     *attrs;
    int32_t          item, value, variable = ir->values[it.outputs[0]].index;
    WEFTI_TRY(wefti_ir_attrs(ir, &attrs));
    attrs->comm.group = it.attrs->update.part.group;
    attrs->comm.each = it.attrs->update.part.each;
    WEFTI_TRY(wefti_ir_item(ir, WEFT_OP_ALL_GATHER, attrs, 1, 1, it.name, it.key + 1, &item));
    ir->items[item].divided = ir->items[item].by_message = true;
    ir->items[item].graph_ops = 0;
    ir->items[item].inputs[0] = it.outputs[0];
    WEFTI_TRY(wefti_ir_value(ir, ir->variables[variable].leaf->dtype, ir->variables[variable].leaf->shape, item, 0, &value));
    ir->values[value].place = WEFTI_HOME_VARIABLE;
    ir->values[value].index = variable;
    return WEFT_OK;
}

/* The group that the parameter is gathered by; NULL: it is not, or ranks meet for all of them together. */
static weft_status part_update(divider *d, int32_t index, const wefti_attrs **attrs_out) {
    wefti_ir                *ir = d->ir;
    const wefti_item         it = ir->items[index];
    const wefti_update_part *part = &it.attrs->update.part;
    wefti_attrs              comm = wefti_no_attrs();
    comm.comm.group = part->group;
    const wefti_item gather = {.op = WEFT_OP_ALL_GATHER, .attrs = &comm};
    const struct wefti_group *group = part->each > 0 ? wefti_ir_group(ir, &gather) : NULL;
    bool                      together = group && meets(ir, &it, group);
    WEFTI_TRY(take_part(ir, index));
    if (!group) return WEFT_OK;
    if (!together) return gather_one(ir, index);
    wefti_attrs *kept;
    WEFTI_TRY(wefti_ir_attrs(ir, &kept));
    *kept = comm;
    *attrs_out = kept;
    d->divided[ir->n_divided++] = index;
    return WEFT_OK;
}

static weft_status divide_all(divider *d) {
    wefti_ir          *ir = d->ir;
    const wefti_attrs *attrs = NULL;
    bool               may_divide = ir->options.base.variables && ir->world->size > 1 && ir->options.base.divide_bytes >= 0, parts = false;
    for (int32_t o = 0; o < ir->n_outputs; o++) d->is_output[ir->values[ir->outputs[o]].root] = 1;
    for (int32_t k = 0; k < ir->n_order; k++) {
        int32_t index = ir->order[k];
        if (ir->items[index].op != WEFT_OP_UPDATE) continue;
        if (ir->items[index].attrs->update.part.parts > 0) {
            parts = true;
            WEFTI_TRY(part_update(d, index, &attrs));
            continue;
        }
        int32_t reduction = may_divide ? reduction_of(d, index) : -1;
        if (reduction < 0) continue;
        const struct wefti_group *group = wefti_ir_group(ir, &ir->items[reduction]);
        if (!can_divide(d, &ir->items[index], group)) continue;
        WEFTI_TRY(divide(ir, index, reduction, group));
        d->divided[ir->n_divided++] = index;
        attrs = ir->items[reduction].attrs;
    }
    if (attrs) WEFTI_TRY(gather(d, attrs));
    return attrs || parts ? wefti_ir_settle(ir) : WEFT_OK;
}

weft_status wefti_pass_divide(wefti_ir *ir) {
    weft_status status;
    divider     d = {.ir = ir};
    size_t      bytes = (size_t)ir->n_values, divided_bytes = (size_t)ir->n_order * sizeof *d.divided;
    if (ir->world->size == 1) return WEFT_OK;
    WEFTI_TRY_GOTO(wefti_ir_uses(ir, true, &d.uses), done);
    WEFTI_TRY_GOTO(wefti_alloc(bytes, "a plan", &d.is_output), done);
    WEFTI_TRY_GOTO(wefti_alloc(divided_bytes, "a plan", &d.divided), done);
    status = divide_all(&d);
done:
    wefti_uses_release(&d.uses);
    wefti_free(d.is_output, bytes);
    wefti_free(d.divided, divided_bytes);
    return status;
}

/* --- how parts come to the others --- */

/* Whether an item reads a parameter that this rank's peers update a part of. */
static bool reads_divided(const wefti_ir *ir, const wefti_item *item, const bool *divided) {
    for (int32_t i = 0; i < item->n_inputs; i++) {
        const wefti_value *root = &ir->values[ir->values[item->inputs[i]].root];
        if (root->place == WEFTI_HOME_VARIABLE && divided[root->index]) return true;
    }
    return false;
}

static bool launches_reader(const wefti_ir *ir, const wefti_plan_segment *segment, const bool *divided) {
    for (int32_t k = segment->begin; k < segment->end; k++) {
        const wefti_item *item = &ir->items[ir->order[k]];
        if (!(item->op == WEFT_OP_UPDATE && item->divided) && reads_divided(ir, item, divided)) return true;
    }
    return false;
}

/* Nobody's update begins before every rank has started the last divided reduction; if all readers of the parameters run before that,
 * on every rank alike, a rank may store its parts where its peers keep theirs. */
static bool may_push(const wefti_ir *ir, const bool *divided) {
    bool reads = false, scattered = false;
    for (int32_t s = ir->n_steps - 1; s >= 0 && !scattered; s--) {
        const wefti_plan_step *step = &ir->steps[s];
        const wefti_item      *item = step->kind == WEFTI_STEP_LAUNCH ? NULL : &ir->items[ir->collectives[step->index].item];
        if (!item) reads = reads || launches_reader(ir, &ir->segments[step->index], divided);
        else if (!item->divided) reads = reads || reads_divided(ir, item, divided);
        scattered = step->kind == WEFTI_STEP_START && item->op == WEFT_OP_REDUCE_SCATTER && item->divided;
    }
    return scattered && !reads;
}

weft_status wefti_pass_push(wefti_ir *ir) {
    bool *divided = NULL;
    if (ir->n_divided == 0) return WEFT_OK;
    WEFTI_TRY(wefti_alloc((size_t)ir->n_variables * sizeof *divided, "a plan", &divided));
    for (int32_t k = 0; k < ir->n_order; k++) {
        const wefti_item *item = &ir->items[ir->order[k]];
        for (int32_t i = 0; item->op == WEFT_OP_ALL_GATHER && item->divided && !item->by_message && i < item->n_inputs; i++)
            divided[ir->values[item->inputs[i]].index] = true;
    }
    ir->pushes = may_push(ir, divided);
    wefti_free(divided, (size_t)ir->n_variables * sizeof *divided);
    return WEFT_OK;
}

/* Which variables are dealt out with their experts: matrices that rows choose, biases that are read by the same choices, and what solvers keep of
 * them. The program says by its ops which these are; there is nothing to weigh. Every rank finds the same in the same graph. */
#include <string.h>

#include "core/iface/rule.h"
#include "parallel/expert.h"

const wefti_node *wefti_expert_root(const weft_tensor *w) {
    while (wefti_ops[w->node->op].family == WEFTI_UNARY) w = w->node->inputs[0];
    return w->node;
}

typedef struct chooser {
    wefti_tensor_split *split;
    const weft_graph   *graph;
    int64_t             rows; /* of the batch, in this graph */
    int32_t             capacity;
} chooser;

static int32_t find(const wefti_tensor_split *split, const char *name) {
    for (int32_t i = 0; i < split->n_windows; i++)
        if (strcmp(split->windows[i].name, name) == 0) return i;
    return -1;
}

static weft_status add(chooser *c, const wefti_node *leaf, int64_t unit) {
    wefti_tensor_split *split = c->split;
    weft_shape          shape = leaf->outputs[0].shape;
    char               *name = NULL;
    int32_t             known = find(split, leaf->name);
    if (known >= 0) {
        if (unit > 0) split->units[known] = unit;
        return WEFT_OK;
    }
    if (shape.dim[0] % split->ranks)
        return wefti_fail(WEFT_E_INVALID, "strategy: expert = %d: '%s' %s has %lld experts along axis 0, which %d ranks do not divide evenly: take a divisor of %lld",
                          split->ranks, leaf->name, weft_shape_text(shape).text, (long long)shape.dim[0], split->ranks, (long long)shape.dim[0]);
    WEFTI_TRY(wefti_copy_string(leaf->name, &name));
    split->windows[split->n_windows] = (wefti_named_window){name, {.ranks = split->ranks, .rank = split->rank, .axis = 0, .n_sections = 1, .section = {shape.dim[0]}}};
    split->units[split->n_windows++] = unit;
    return WEFT_OK;
}

static weft_status add_product(chooser *c, const wefti_node *node) {
    const wefti_node *root = wefti_expert_root(node->inputs[1]);
    int64_t           choices = node->inputs[2]->shape.dim[0];
    if (root->op != WEFT_OP_PARAMETER) return WEFT_OK;
    if (c->rows == 0 || choices % c->rows)
        return wefti_fail(WEFT_E_INVALID, "strategy: expert = %d: the %lld choices of '%s' are not those of %lld rows of the batch: every rank needs rows, each with "
                          "as many tokens", c->split->ranks, (long long)choices, node->name, (long long)c->rows);
    return add(c, root, choices / c->rows);
}

/* Read along axis 0 by the choices of a product: a bias. */
static weft_status add_bias(chooser *c, const wefti_node *node) {
    const wefti_node *root = wefti_expert_root(node->inputs[0]);
    if (root->op != WEFT_OP_PARAMETER || node->attrs.axis.axis != 0) return WEFT_OK;
    for (int32_t id = 0; id < c->graph->n_nodes; id++) {
        const wefti_node *product = c->graph->nodes[id];
        if (product->op != WEFT_OP_EXPERT_MATMUL || product->inputs[2] != node->inputs[1]) continue;
        if (find(c->split, wefti_expert_root(product->inputs[1])->name) >= 0 && product->inputs[1]->shape.dim[0] == root->outputs[0].shape.dim[0])
            return add(c, root, 0);
    }
    return WEFT_OK;
}

/* Rules of the application's own may look at a whole parameter. */
static weft_status add_states(chooser *c, const wefti_node *update) {
    if (find(c->split, update->inputs[0]->node->name) < 0) return WEFT_OK;
    if (update->attrs.update.rule->id >= WEFTI_RULE_USER)
        return wefti_fail(WEFT_E_UNSUPPORTED, "strategy: expert = %d does not go with the solver's rule '%s' yet, which may look at the whole of '%s'", c->split->ranks,
                          update->attrs.update.rule->name, update->inputs[0]->node->name);
    for (int32_t i = 3; i < update->n_inputs; i++) WEFTI_TRY(add(c, update->inputs[i]->node, 0));
    return WEFT_OK;
}

static weft_status find_all(chooser *c) {
    static const weft_op ops[] = {WEFT_OP_EXPERT_MATMUL, WEFT_OP_GATHER, WEFT_OP_UPDATE}; /* each finds what the one before found */
    static weft_status (*const adds[])(chooser *, const wefti_node *) = {add_product, add_bias, add_states};
    for (int32_t k = 0; k < 3; k++)
        for (int32_t id = 0; id < c->graph->n_nodes; id++)
            if (c->graph->nodes[id]->op == ops[k]) WEFTI_TRY(adds[k](c, c->graph->nodes[id]));
    if (c->split->n_windows > 0) return WEFT_OK;
    return wefti_fail(WEFT_E_INVALID, "strategy: expert = %d, and the program has no mixture of experts to deal out: leave expert 0, or use weft_mixture_of_experts",
                      c->split->ranks);
}

static weft_status write_notes(chooser *c) {
    wefti_text *text = &c->split->notes;
    wefti_text_add(text, "expert: over %d ranks, each has part of %d variables\n", c->split->ranks, c->split->n_windows);
    for (int32_t i = 0; i < c->split->n_windows; i++)
        wefti_text_add(text, "  '%s': %lld of %lld experts\n", c->split->windows[i].name, (long long)(c->split->windows[i].window.section[0] / c->split->ranks),
                       (long long)c->split->windows[i].window.section[0]);
    return text->failed ? wefti_fail(WEFT_E_NO_MEMORY, "no memory for the text about experts") : WEFT_OK;
}

weft_status wefti_expert_choose(int32_t rank, int32_t ranks, int64_t group, int32_t stretches, const wefti_partition *batch, weft_graph *graph,
                                wefti_tensor_split *split) {
    int64_t first;
    chooser c = {.split = split, .graph = graph};
    *split = (wefti_tensor_split){.along = WEFTI_MESH_EXPERT, .rank = rank, .ranks = ranks, .group = group, .stretches = stretches};
    weft_batch_share(batch->rows, batch->rank, batch->ranks, &first, &c.rows);
    split->windows_room = graph->n_leaves;
    weft_status status = wefti_alloc((size_t)graph->n_leaves * sizeof *split->windows, "windows on variables", &split->windows);
    if (status == WEFT_OK) status = wefti_alloc((size_t)graph->n_leaves * sizeof *split->units, "windows on variables", &split->units);
    if (status == WEFT_OK) status = find_all(&c);
    if (status == WEFT_OK) status = write_notes(&c);
    if (status != WEFT_OK) wefti_tensor_release(split);
    return status;
}

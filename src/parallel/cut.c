/* The cut: who needs what of whom, and one rank's part of it.
 *
 * Needs are found from the end: outputs by all ranks, inputs of a placed node at its place, inputs of a node without a place wherever
 * that is needed. A tensor that is needed at other places than its own is sent to each once, as soon as it is computed, and received once.
 *
 * Nobody waits for ever, by this invariant: all ranks cut by one order of all nodes, so the nodes of each rank's graph (whose ids the planner
 * takes for an order) stand in it, a SEND where its tensor is computed and a RECEIVE at the same point of the one order. Whoever waits for a
 * message waits for something earlier in it. The messages between two ranks are in one order on both for the same reason.
 *
 * Cost: nodes x ranks in time, tensors x ranks in bytes; both while planning. */
#include "parallel/cut.h"
#include "parallel/partition.h"

typedef struct cutter {
    const wefti_cut *cut;
    weft_graph      *from, *to;
    int32_t         *first;    /* [n_nodes] number of a node's first output among all tensors */
    int32_t          n_tensors;
    uint8_t         *needed;   /* [n_tensors * ranks] */
    weft_tensor    **at;       /* [n_tensors] here */
    size_t           first_bytes, needed_bytes, at_bytes;
} cutter;

static bool is_variable(const wefti_node *node) { return node->op == WEFT_OP_PARAMETER || node->op == WEFT_OP_STATE; }

bool wefti_cut_is_light(const wefti_node *node) {
    switch (node->op) {
    case WEFT_OP_RESHAPE:
    case WEFT_OP_PERMUTE:
    case WEFT_OP_EXPAND:
    case WEFT_OP_DETACH:
    case WEFT_OP_COPY: return true;
    default: return wefti_ops[node->op].family == WEFTI_LEAF && !is_variable(node);
    }
}

static bool writes(const wefti_node *node, int32_t input) {
    if (node->op == WEFT_OP_ASSIGN) return input == 0;
    return node->op == WEFT_OP_UPDATE && (input == 0 || input >= 3);
}

/* --- places for all --- */

/* Variables go to who writes them, else to who reads them first. */
static void place_variables(weft_graph *graph) {
    for (int32_t pass = 0; pass < 2; pass++)
        for (int32_t id = 0; id < graph->n_nodes; id++) {
            const wefti_node *node = graph->nodes[id];
            for (int32_t i = 0; i < node->n_inputs && node->place > 0; i++) {
                wefti_node *input = node->inputs[i]->node;
                if (is_variable(input) && input->place == 0 && (pass == 1 || writes(node, i))) input->place = node->place;
            }
        }
}

static void place_rest(weft_graph *graph) {
    for (int32_t id = 0; id < graph->n_nodes; id++) {
        wefti_node *node = graph->nodes[id];
        for (int32_t i = 0; i < node->n_inputs && node->place == 0 && !wefti_cut_is_light(node); i++) {
            const wefti_node *input = node->inputs[i]->node;
            while (input->place == 0 && input->n_inputs > 0 && wefti_cut_is_light(input)) input = input->inputs[0]->node;
            node->place = input->place;
        }
    }
}

/* Whoever has a parameter gives its gradient to a server. */
static void place_contributions(weft_graph *graph) {
    for (int32_t id = 0; id < graph->n_nodes; id++) {
        wefti_node *parameter = wefti_contribution_of(graph, graph->nodes[id]);
        if (!parameter) continue;
        if (parameter->place == 0) parameter->place = 1;
        graph->nodes[id]->inputs[0]->node->place = parameter->place;
    }
}

void wefti_cut_settle(weft_graph *graph) {
    place_variables(graph);
    place_rest(graph);
    place_variables(graph);
    place_contributions(graph);
    for (int32_t id = 0; id < graph->n_nodes; id++) { /* what only reads what is everywhere, and writes: somewhere */
        wefti_node *node = graph->nodes[id];
        if (is_variable(node) && node->place == 0) node->place = 1;
        if (node->op == WEFT_OP_ASSIGN || node->op == WEFT_OP_UPDATE) node->place = node->inputs[0]->node->place;
    }
}

/* --- needs --- */

static uint8_t *needs(const cutter *c, const weft_tensor *tensor, int32_t rank) {
    return &c->needed[(size_t)(c->first[tensor->node->id] + tensor->index) * (size_t)c->cut->ranks + (size_t)rank];
}

static bool needs_any(const cutter *c, const wefti_node *node, int32_t rank) {
    for (int32_t o = 0; o < node->n_outputs; o++)
        if (*needs(c, &node->outputs[o], rank)) return true;
    return false;
}

static bool is_live(const cutter *c, const wefti_node *node) {
    for (int32_t r = 0; r < c->cut->ranks; r++)
        if (needs_any(c, node, r)) return true;
    return false;
}

/* Whether the rank computes the node. */
static bool computes(const cutter *c, const wefti_node *node, int32_t rank) {
    return node->place > 0 ? node->place - 1 == rank && is_live(c, node) : needs_any(c, node, rank);
}

static const wefti_node *in_order(const cutter *c, int32_t k) { return c->from->nodes[c->cut->order ? c->cut->order[k] : k]; }

static void find_needs(cutter *c, weft_tensor *const *outputs, int32_t n_outputs, bool training) {
    for (int32_t i = 0; i < n_outputs; i++)
        for (int32_t r = 0; r < c->cut->ranks; r++) *needs(c, outputs[i], r) = 1;
    for (int32_t i = 0; i < c->from->n_effects && training; i++) {
        const wefti_node *effect = c->from->effects[i];
        *needs(c, &effect->outputs[0], effect->place - 1) = 1;
    }
    for (int32_t k = c->from->n_nodes - 1; k >= 0; k--) {
        const wefti_node *node = in_order(c, k);
        if ((training && node->op == WEFT_OP_UPDATE) || (wefti_op_is_message(node->op) && node->place > 0)) *needs(c, &node->outputs[0], node->place - 1) = 1;
        for (int32_t r = 0; r < c->cut->ranks; r++)
            for (int32_t i = 0; i < node->n_inputs && computes(c, node, r); i++) *needs(c, node->inputs[i], r) = 1;
    }
}

/* --- emission --- */

static weft_tensor **here(const cutter *c, const weft_tensor *tensor) { return &c->at[c->first[tensor->node->id] + tensor->index]; }

static weft_status copy_node(cutter *c, const wefti_node *node) {
    weft_graph   *to = c->to;
    weft_tensor **inputs = wefti_graph_memory(to, sizeof *inputs * (size_t)(node->n_inputs + 1)), *made;
    if (!inputs) return wefti_graph_status(to);
    to->flags = node->flags;
    to->micro = node->micro;
    to->segment = node->segment;
    if (wefti_ops[node->op].family == WEFTI_LEAF) {
        made = wefti_emit_leaf(to, node->op, &node->attrs, node->outputs[0].dtype, node->outputs[0].shape, node->leaf, node->name);
    } else {
        for (int32_t i = 0; i < node->n_inputs; i++) inputs[i] = *here(c, node->inputs[i]);
        made = wefti_emit(to, node->op, &node->attrs, inputs, node->n_inputs, node->name);
    }
    to->flags = 0;
    to->micro = 0;
    to->segment = 0;
    if (wefti_poisoned(made)) return wefti_graph_status(to);
    for (int32_t o = 0; o < node->n_outputs; o++) *here(c, &node->outputs[o]) = &made->node->outputs[o];
    return WEFT_OK;
}

static weft_status add_message(cutter *c, weft_op op, const weft_tensor *tensor, int32_t peer) {
    wefti_attrs  attrs = wefti_no_attrs();
    weft_tensor *made;
    attrs.comm.group = c->cut->group;
    attrs.comm.peer = peer;
    if (op == WEFT_OP_SEND) {
        made = wefti_emit(c->to, op, &attrs, here(c, tensor), 1, tensor->node->name);
    } else {
        attrs.comm.dtype = (int32_t)tensor->dtype;
        attrs.comm.global = tensor->shape;
        made = wefti_emit(c->to, op, &attrs, NULL, 0, tensor->node->name);
        *here(c, tensor) = made;
    }
    return wefti_poisoned(made) ? wefti_graph_status(c->to) : WEFT_OK;
}

static weft_status cut_node(cutter *c, const wefti_node *node) {
    int32_t own = c->cut->rank, place = node->place - 1;
    bool    computed = computes(c, node, own);
    if (computed) WEFTI_TRY(copy_node(c, node));
    for (int32_t o = 0; o < node->n_outputs && place >= 0; o++) {
        const weft_tensor *tensor = &node->outputs[o];
        for (int32_t r = 0; r < c->cut->ranks && computed; r++)
            if (r != own && *needs(c, tensor, r)) WEFTI_TRY(add_message(c, WEFT_OP_SEND, tensor, r));
        if (!computed && *needs(c, tensor, own)) WEFTI_TRY(add_message(c, WEFT_OP_RECEIVE, tensor, place));
    }
    return WEFT_OK;
}

static weft_status cut_all(cutter *c, weft_tensor *const *outputs, int32_t n_outputs, bool training, weft_tensor **outputs_out) {
    int32_t ranks = c->cut->ranks;
    for (int32_t id = 0; id < c->from->n_nodes; id++)
        if (c->from->nodes[id]->place > ranks)
            return wefti_fail(WEFT_E_INTERNAL, "'%s' is placed at %d of %d", c->from->nodes[id]->name, (int)c->from->nodes[id]->place - 1, (int)ranks);
    find_needs(c, outputs, n_outputs, training);
    for (int32_t k = 0; k < c->from->n_nodes; k++) WEFTI_TRY(cut_node(c, in_order(c, k)));
    for (int32_t i = 0; i < c->from->n_effects && training; i++)
        if (c->from->effects[i]->place - 1 == c->cut->rank) wefti_graph_effect(*here(c, &c->from->effects[i]->outputs[0]));
    for (int32_t i = 0; i < n_outputs; i++) outputs_out[i] = *here(c, outputs[i]);
    c->to->n_segments = c->from->n_segments;
    c->to->in_order = true;
    return wefti_graph_status(c->to);
}

weft_status wefti_cut_graph(const wefti_cut *cut, weft_graph *source, weft_tensor *const *outputs, int32_t n_outputs, bool training,
                            weft_graph **graph_out, weft_tensor **outputs_out) {
    weft_status status;
    cutter      c = {.cut = cut, .from = source};
    *graph_out = NULL;
    WEFTI_TRY(weft_graph_create(&(weft_graph_options){.seed = source->seed, .name = source->name}, &c.to));
    c.first_bytes = (size_t)source->n_nodes * sizeof *c.first;
    WEFTI_TRY_GOTO(wefti_alloc(c.first_bytes, "a plan", &c.first), done);
    for (int32_t id = 0; id < source->n_nodes; id++) {
        c.first[id] = c.n_tensors;
        c.n_tensors += source->nodes[id]->n_outputs;
    }
    c.needed_bytes = (size_t)c.n_tensors * (size_t)cut->ranks;
    c.at_bytes = (size_t)c.n_tensors * sizeof *c.at;
    WEFTI_TRY_GOTO(wefti_alloc(c.needed_bytes, "a plan", &c.needed), done);
    WEFTI_TRY_GOTO(wefti_alloc(c.at_bytes, "a plan", &c.at), done);
    WEFTI_TRY_GOTO(cut_all(&c, outputs, n_outputs, training, outputs_out), done);
    *graph_out = c.to;
    c.to = NULL;
done:
    wefti_free(c.first, c.first_bytes);
    wefti_free(c.needed, c.needed_bytes);
    wefti_free(c.at, c.at_bytes);
    weft_graph_release(c.to);
    return status;
}

/* Which parameters are split, and along which axis: the choice that costs least.
 *
 * A choice is tried by analysing the whole graph with it (layouts, no nodes are made) and adding up, in bytes sent, what a step of it takes: bytes
 * of messages, a constant for each, arithmetic that is not shared, and what a rank holds. Parameters are gone through from the largest
 * on; each takes the best of whole, its axes, and its axes by sections, given the others, until a round changes nothing. A
 * parameter whose gradient then comes out in parts follows: with the columns of a product the rows of the next, and biases between them.
 * So pairs of products, heads between projections and tables before a loss come out by themselves.
 *
 * Cost: parameters x choices x nodes, a few rounds; in large graphs parameters of repeated scopes ("block3.up.weight") are one choice. All ranks
 * compute the same numbers from the same graph, so they choose alike. */
#include <stdio.h>
#include <string.h>

#include "core/iface/rule.h"
#include "parallel/partition.h"
#include "parallel/tensor.h"

#define FLOPS_A_BYTE  8.0    /* arithmetic that takes as long as sending a byte, give or take: a core does 20 GFLOP/s and sends 2.5 GB/s */
#define MESSAGE_BYTES 8192.0 /* sent in the time that a message takes whatever its size, and that ranks wait for each other */
#define HELD_WEIGHT   0.5    /* a byte that a rank holds from step to step, and reads and writes in each */
#define PARAMETER_GATHERED 16.0 /* times as bad as an activation: what was split must not be put together again at every step */
enum { ROUNDS = 4, MANY = 4000000 };

typedef struct candidate {
    int32_t id;    /* of the leaf */
    int32_t like;  /* an earlier candidate that it does as; itself: it has a choice */
    bool    rows;  /* only along axis 0: rows shrink together */
    bool    free;  /* may be split at all */
    bool    fixed; /* stays as it is */
    int32_t update; /* -1: none */
} candidate;

typedef struct chooser {
    wefti_tensor_split  *split;
    weft_graph          *graph;
    wefti_tensor_layouts layouts;
    wefti_layout        *leaf;       /* [n_nodes] */
    int32_t             *parameter;  /* [n_nodes] of a solver state: the leaf it belongs to; else -1 */
    candidate           *candidates; /* [n] */
    int32_t              n;
    wefti_layout        *before, *best; /* [n_nodes] of leaf, while one candidate is tried */
    wefti_layout        *unshared;      /* [n_nodes] of leaf, while rows are shared on trial */
} chooser;

/* --- cost --- */

static double bytes_of(const weft_tensor *tensor) { return (double)weft_shape_elements(tensor->shape) * (double)weft_dtype_bytes(tensor->dtype); }

static double cost_of_messages(const chooser *c, const wefti_node *node, int32_t output) {
    const wefti_tensor_value *value = &c->layouts.values[node->id][output];
    double share = (double)(c->split->ranks - 1) / c->split->ranks, bytes = bytes_of(&node->outputs[output]), cost = 0;
    bool   variable = node->op == WEFT_OP_PARAMETER || node->op == WEFT_OP_STATE;
    if (value->completed) cost += MESSAGE_BYTES + 2 * share * bytes;
    if (value->gathered) cost += MESSAGE_BYTES + (value->layout.kind == WEFTI_PARTIAL ? 2 : variable ? PARAMETER_GATHERED : 1) * share * bytes;
    if (value->landed) cost += MESSAGE_BYTES + share * bytes;
    if (value->scattered && !value->gathered) cost += MESSAGE_BYTES + share * bytes;
    return cost;
}

static double cost_of_node(const chooser *c, const wefti_node *node) {
    const wefti_layout *wanted = c->layouts.wanted[node->id];
    wefti_layout        out = c->layouts.values[node->id][0].layout;
    bool                shared = out.kind == WEFTI_SPLIT;
    double              cost = 0;
    for (int32_t i = 0; i < node->n_inputs; i++) shared = shared || wanted[i].kind == WEFTI_SPLIT;
    for (int32_t o = 0; o < node->n_outputs; o++) cost += cost_of_messages(c, node, o);
    if (node->op == WEFT_OP_CROSS_ENTROPY && wefti_tensor_way_of(node, wanted, &out) == WEFTI_BY_CLASSES)
        cost += 2 * MESSAGE_BYTES + 6 * bytes_of(&node->outputs[0]);
    if (node->op == WEFT_OP_PARAMETER || node->op == WEFT_OP_STATE)
        cost += HELD_WEIGHT * (node->op == WEFT_OP_PARAMETER ? 2 : 1) * bytes_of(&node->outputs[0]) / (shared ? c->split->ranks : 1);
    return cost + wefti_node_flops(node) / FLOPS_A_BYTE / (shared ? c->split->ranks : 1);
}

static double cost_of(chooser *c) {
    double cost = 0;
    wefti_tensor_analyse(&c->layouts, c->leaf);
    for (int32_t id = 0; id < c->graph->n_nodes; id++)
        if (c->layouts.needed[id]) cost += cost_of_node(c, c->graph->nodes[id]);
    return cost;
}

/* --- candidates --- */

/* Whether two names differ in the numbers of their scopes alone: "block3.up.weight" and "block11.up.weight". */
static bool repeats(const char *a, const char *b) {
    const char *last = strrchr(a, '.'), *end = a; /* from here on names count as they are */
    for (const char *at = a; last && at < last; at++)
        if (*at == '.') end = at;
    while (*a && *b) {
        bool digits = a < end && *a >= '0' && *a <= '9' && *b >= '0' && *b <= '9';
        while (digits && *a >= '0' && *a <= '9') a++;
        while (digits && *b >= '0' && *b <= '9') b++;
        if (digits) continue;
        if (*a++ != *b++) return false;
    }
    return *a == *b;
}

static void join_repeated(chooser *c) {
    for (int32_t i = 0; i < c->n; i++)
        for (int32_t k = 0; k < i && c->candidates[i].like == i; k++) {
            const wefti_node *a = c->graph->nodes[c->candidates[k].id], *b = c->graph->nodes[c->candidates[i].id];
            if (c->candidates[k].like == k && weft_shape_equal(a->outputs[0].shape, b->outputs[0].shape) && repeats(a->name, b->name))
                c->candidates[i].like = k;
        }
}

static candidate *candidate_of(chooser *c, int32_t id) {
    for (int32_t i = 0; i < c->n; i++)
        if (c->candidates[i].id == id) return &c->candidates[i];
    c->candidates[c->n] = (candidate){.id = id, .like = c->n, .free = true, .update = -1};
    return &c->candidates[c->n++];
}

/* Rules of the application's own may look at a whole row. */
static void add_update(chooser *c, const wefti_node *update) {
    candidate *it = candidate_of(c, update->inputs[0]->node->id);
    it->update = update->id;
    it->rows = update->attrs.update.group > 0;
    it->free = update->attrs.update.rule->id < WEFTI_RULE_USER;
    for (int32_t i = 3; i < update->n_inputs; i++) c->parameter[update->inputs[i]->node->id] = it->id;
}

/* States that are assigned; where a gradient goes to a server, with its parameter. */
static void add_assigned(chooser *c, const wefti_node *assign) {
    const wefti_node *state = assign->inputs[0]->node, *parameter = wefti_contribution_of(c->graph, assign);
    if (!parameter && state->op == WEFT_OP_STATE) (void)candidate_of(c, state->id);
    if (!parameter) return;
    candidate *it = candidate_of(c, parameter->id);
    it->update = assign->id;
    c->parameter[state->id] = it->id;
}

static double size_of(const chooser *c, int32_t index) { return bytes_of(&c->graph->nodes[c->candidates[index].id]->outputs[0]); }

/* Parameters that are used, states that are assigned; solver states go with their parameter. */
static void find_candidates(chooser *c) {
    for (int32_t id = 0; id < c->graph->n_nodes; id++) c->parameter[id] = -1;
    for (int32_t id = 0; id < c->graph->n_nodes; id++) {
        const wefti_node *node = c->graph->nodes[id];
        if (!c->layouts.needed[id]) continue;
        if (node->op == WEFT_OP_PARAMETER) (void)candidate_of(c, id);
        if (node->op == WEFT_OP_ASSIGN) add_assigned(c, node);
        if (node->op == WEFT_OP_UPDATE) add_update(c, node);
    }
    /* The largest first: vectors then follow the products that they are added to. Of equals, the first in the graph first. */
    for (int32_t i = 1; i < c->n; i++)
        for (int32_t k = i; k > 0 && size_of(c, k) > size_of(c, k - 1); k--) {
            candidate other = c->candidates[k];
            c->candidates[k] = c->candidates[k - 1];
            c->candidates[k - 1] = other;
        }
    for (int32_t i = 0; i < c->n; i++) c->candidates[i].like = i;
    if ((double)c->n * c->graph->n_nodes > MANY) join_repeated(c);
}

/* --- sections --- */

/* The pieces that slices cut a tensor into, where they tile an axis. */
static void add_sections(chooser *c, const weft_tensor *tensor) {
    int64_t begin[WEFTI_SECTIONS_MAX], extent[WEFTI_SECTIONS_MAX], at = 0, sorted[WEFTI_SECTIONS_MAX];
    int32_t n = 0, axis = -1, found = 0;
    for (int32_t id = tensor->node->id + 1; id < c->graph->n_nodes; id++) {
        const wefti_node *node = c->graph->nodes[id];
        if (!c->layouts.needed[id] || node->op != WEFT_OP_SLICE || node->inputs[0] != tensor) continue;
        for (int32_t a = 0; a < tensor->shape.rank; a++) {
            if (node->attrs.slice.size[a] == tensor->shape.dim[a]) continue;
            if ((axis >= 0 && a != axis) || node->attrs.slice.step[a] != 1 || n == WEFTI_SECTIONS_MAX) return;
            axis = a;
            begin[n] = node->attrs.slice.start[a];
            extent[n++] = node->attrs.slice.size[a];
        }
    }
    for (int32_t k = 0; axis >= 0 && k < n; k++)
        for (int32_t i = 0; i < n; i++)
            if (begin[i] == at && extent[i] > 0 && found < n) {
                sorted[found++] = extent[i];
                at += extent[i];
                break;
            }
    if (axis >= 0 && found > 1 && at == tensor->shape.dim[axis]) (void)wefti_tensor_pattern(c->split, sorted, found);
}

static void find_sections(chooser *c) {
    (void)wefti_tensor_pattern(c->split, (int64_t[]){1}, 1);
    for (int32_t id = 0; id < c->graph->n_nodes; id++) {
        const wefti_node *node = c->graph->nodes[id];
        if (c->layouts.needed[id] && node->op == WEFT_OP_SLICE) add_sections(c, node->inputs[0]);
    }
}

/* --- the search --- */

static void set(chooser *c, int32_t candidate_index, wefti_layout layout) {
    for (int32_t i = candidate_index; i < c->n; i++)
        if (c->candidates[i].like == candidate_index) c->leaf[c->candidates[i].id] = layout;
    for (int32_t id = 0; id < c->graph->n_nodes; id++)
        if (c->parameter[id] >= 0) c->leaf[id] = c->leaf[c->parameter[id]];
}

/* Where a gradient comes out in parts, its whole parameter is split alike: the next product's rows, biases, scales. */
static bool follow(chooser *c) {
    bool any = false;
    for (int32_t i = 0; i < c->n; i++) {
        const candidate *it = &c->candidates[i];
        if (it->like != i || it->update < 0 || !it->free || c->leaf[it->id].kind != WEFTI_WHOLE) continue;
        const wefti_layout *gradient = &wefti_tensor_value_of(&c->layouts, c->graph->nodes[it->update]->inputs[1])->layout;
        if (gradient->kind != WEFTI_SPLIT || (it->rows && gradient->axis > 0)) continue;
        set(c, i, *gradient);
        any = true;
    }
    return any;
}

static double try(chooser *c) {
    double cost = cost_of(c);
    return follow(c) ? cost_of(c) : cost;
}

/* The best layout of one candidate, with what follows it and the others as they are; whether it is better than what was. */
static bool improve(chooser *c, int32_t index, double *cost) {
    const candidate *it = &c->candidates[index];
    weft_shape       shape = c->graph->nodes[it->id]->outputs[0].shape;
    size_t           bytes = (size_t)c->graph->n_nodes * sizeof *c->leaf;
    wefti_layout     had = c->leaf[it->id];
    bool             better = false;
    memcpy(c->before, c->leaf, bytes);
    for (int32_t axis = -1; axis < (it->rows && shape.rank > 0 ? 1 : shape.rank); axis++)
        for (int32_t pattern = 0; pattern < (axis < 0 ? 1 : c->split->n_patterns); pattern++) {
            wefti_layout layout = axis < 0 ? wefti_layout_whole() : wefti_tensor_split_of(c->split, axis, shape.dim[axis], pattern);
            if ((axis >= 0 && layout.kind == WEFTI_WHOLE) || wefti_layout_same(&layout, &had)) continue;
            memcpy(c->leaf, c->before, bytes);
            set(c, index, layout);
            double tried = try(c);
            if (tried >= *cost * (1 - 1e-9)) continue;
            *cost = tried;
            better = true;
            memcpy(c->best, c->leaf, bytes);
        }
    memcpy(c->leaf, better ? c->best : c->before, bytes);
    return better;
}

static double search(chooser *c) {
    double cost = cost_of(c);
    bool   changed = true;
    for (int32_t round = 0; changed && round < ROUNDS; round++) {
        changed = false;
        for (int32_t i = 0; i < c->n; i++)
            if (c->candidates[i].like == i && c->candidates[i].free && !c->candidates[i].fixed) changed = improve(c, i, &cost) || changed;
    }
    return cost_of(c);
}

/* Matrices stay as they are split: ranks are there to hold parts of them. Vectors, which went with one or another, are chosen anew. */
static double search_with_rows(chooser *c) {
    c->split->shares_rows = true;
    for (int32_t i = 0; i < c->n; i++) {
        candidate *it = &c->candidates[i];
        it->fixed = c->graph->nodes[it->id]->outputs[0].shape.rank > 1 && c->leaf[it->id].kind == WEFTI_SPLIT;
        if (it->like == i && !it->fixed) set(c, i, wefti_layout_whole());
    }
    return search(c);
}

/* Whether rows between products are shared, as asked, or by which of both costs less. */
static void choose_rows(chooser *c, int32_t asked) {
    size_t bytes = (size_t)c->graph->n_nodes * sizeof *c->leaf;
    double whole = search(c);
    if (asked < 0) return;
    memcpy(c->unshared, c->leaf, bytes);
    if (search_with_rows(c) < whole * (1 - 1e-9) || asked > 0) return;
    c->split->shares_rows = false;
    memcpy(c->leaf, c->unshared, bytes);
    (void)cost_of(c);
}

/* --- the result --- */

static const char *why_whole(const chooser *c, weft_shape shape) {
    for (int32_t axis = 0; axis < shape.rank; axis++) {
        wefti_layout layout = wefti_tensor_split_of(c->split, axis, shape.dim[axis], 0);
        if (layout.kind == WEFTI_SPLIT) return "the messages would cost more than they save";
    }
    return "no axis divides";
}

/* What rows that are shared spare a rank, of results that would be whole on each. */
static void note_rows(chooser *c) {
    double  whole = 0, own = 0;
    int32_t messages = 0;
    if (!c->split->shares_rows) return;
    for (int32_t id = 0; id < c->graph->n_nodes; id++)
        for (int32_t o = 0; c->layouts.needed[id] && o < c->graph->nodes[id]->n_outputs; o++) {
            const wefti_tensor_value *value = &c->layouts.values[id][o];
            messages += value->landed || (value->scattered && !value->gathered);
            if (value->layout.kind != WEFTI_SPLIT || !value->layout.shared || wefti_ops[c->graph->nodes[id]->op].family == WEFTI_VIEW) continue;
            whole += bytes_of(&c->graph->nodes[id]->outputs[o]);
            own += bytes_of(&c->graph->nodes[id]->outputs[o]) / c->split->ranks;
        }
    wefti_text_add(&c->split->notes, "tensor: rows between split products are shared: each computes %.0f of %.0f bytes of results, and %d sums come as shares\n", own, whole, messages);
}

static void write_notes(chooser *c) {
    wefti_text *text = &c->split->notes;
    double      held = 0, all = 0;
    for (int32_t i = 0; i < c->n; i++) {
        const wefti_node *node = c->graph->nodes[c->candidates[i].id];
        all += bytes_of(&node->outputs[0]);
        held += bytes_of(&node->outputs[0]) / (c->leaf[node->id].kind == WEFTI_SPLIT ? c->split->ranks : 1);
    }
    wefti_text_add(text, "tensor: over %d ranks, each holds %.0f of %.0f bytes of parameters\n", c->split->ranks, held, all);
    note_rows(c);
    for (int32_t i = 0; i < c->n; i++) {
        const wefti_node   *node = c->graph->nodes[c->candidates[i].id];
        const wefti_layout *layout = &c->leaf[node->id];
        weft_shape          shape = node->outputs[0].shape;
        if (layout->kind == WEFTI_SPLIT)
            wefti_text_add(text, "  '%s' %s is split along axis %d%s\n", node->name, weft_shape_text(shape).text, layout->axis,
                           layout->sections ? ", by sections" : "");
        else wefti_text_add(text, "  '%s' %s is whole: %s\n", node->name, weft_shape_text(shape).text, why_whole(c, shape));
    }
}

static weft_status keep_windows(chooser *c) {
    int32_t n = 0;
    for (int32_t id = 0; id < c->graph->n_nodes; id++) n += c->leaf[id].kind == WEFTI_SPLIT;
    WEFTI_TRY(wefti_alloc((size_t)n * sizeof *c->split->windows, "windows on variables", &c->split->windows));
    c->split->n_windows = c->split->windows_room = n;
    n = 0;
    for (int32_t id = 0; id < c->graph->n_nodes; id++) {
        const wefti_node *node = c->graph->nodes[id];
        char             *name = NULL;
        if (c->leaf[id].kind != WEFTI_SPLIT) continue;
        WEFTI_TRY(wefti_copy_string(node->name, &name));
        c->split->windows[n].name = name;
        c->split->windows[n++].window = wefti_tensor_window(c->split, &c->leaf[id], node->outputs[0].shape);
    }
    write_notes(c);
    return c->split->notes.failed ? wefti_fail(WEFT_E_NO_MEMORY, "no memory for the text about the tensor split") : WEFT_OK;
}

weft_status wefti_tensor_choose(int32_t rank, int32_t ranks, int64_t group, int32_t rows, weft_graph *graph, weft_tensor *const *outputs, int32_t n_outputs,
                                wefti_tensor_split *split) {
    *split = (wefti_tensor_split){.along = WEFTI_MESH_TENSOR, .rank = rank, .ranks = ranks, .group = group};
    chooser     c = {.split = split, .graph = graph};
    size_t      n = (size_t)graph->n_nodes;
    weft_status status;
    WEFTI_TRY_GOTO(wefti_tensor_layouts_open(split, graph, outputs, n_outputs, true, &c.layouts), done);
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *c.leaf, "a tensor split", &c.leaf), done);
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *c.before, "a tensor split", &c.before), done);
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *c.best, "a tensor split", &c.best), done);
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *c.unshared, "a tensor split", &c.unshared), done);
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *c.parameter, "a tensor split", &c.parameter), done);
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *c.candidates, "a tensor split", &c.candidates), done);
    find_sections(&c);
    find_candidates(&c);
    choose_rows(&c, rows);
    status = keep_windows(&c);
done:
    wefti_free(c.leaf, n * sizeof *c.leaf);
    wefti_free(c.before, n * sizeof *c.before);
    wefti_free(c.best, n * sizeof *c.best);
    wefti_free(c.unshared, n * sizeof *c.unshared);
    wefti_free(c.parameter, n * sizeof *c.parameter);
    wefti_free(c.candidates, n * sizeof *c.candidates);
    wefti_tensor_layouts_close(&c.layouts);
    if (status != WEFT_OK) wefti_tensor_release(split);
    return status;
}

void wefti_tensor_release(wefti_tensor_split *split) {
    for (int32_t i = 0; i < split->n_windows; i++) wefti_free_string((char *)(uintptr_t)split->windows[i].name);
    wefti_free(split->windows, (size_t)split->windows_room * sizeof *split->windows);
    wefti_free(split->units, (size_t)split->windows_room * sizeof *split->units);
    wefti_text_release(&split->notes);
    *split = (wefti_tensor_split){0};
}

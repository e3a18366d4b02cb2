/* Stages of a pipeline.
 *
 * Which: forward operations stand in the order in which the program was built; what an operation costs is its own time and that of its
 * gradients, by the model of place.c. Of all ways to cut that order into runs, the one is taken whose slowest stage is quickest, where a stage
 * also pays for the tensors that come to it and for their gradients (dynamic programming over at most MOST_CUTS places to cut). Gradients go to
 * the operation that they come back through, variables to their first reader, updates to their variable. */
#include <stdio.h>
#include <string.h>

#include "parallel/cut.h"
#include "parallel/place.h"
#include "parallel/stages.h"

enum { MOST_CUTS = 1024, NONE = -1, SEVERAL = -2 };

static bool is_variable(const wefti_node *node) { return node->op == WEFT_OP_PARAMETER || node->op == WEFT_OP_STATE; }
static bool has_wish(const wefti_node *node) { return node->wish && (node->wish->said & WEFTI_WISH_STAGE); }
static bool writes_variable(const wefti_node *node) { return node->op == WEFT_OP_ASSIGN || node->op == WEFT_OP_UPDATE; }

/* Through views to what computes; may be a leaf. */
static wefti_node *base_of(wefti_node *node) {
    while (node->place == 0 && node->n_inputs > 0 && wefti_cut_is_light(node)) node = node->inputs[0]->node;
    return node;
}

/* --- which stage --- */

typedef struct assigner {
    weft_graph *graph;
    int32_t     stages;
    bool       *everywhere; /* [n_nodes] depends on nothing but what is fed, drawn and known */
    bool       *backward;   /* [n_nodes] a gradient, or made of one */
    double     *cost;       /* [n_nodes] of forward nodes, with their gradients' */
    bool        keep;       /* the places of variables */
    int32_t    *forward;    /* [n_forward] ids */
    int32_t     n_forward;
} assigner;

/* What is cut is what takes time and has gradients: the rest, as the guard behind the loss, goes with what it reads, or where the program wants it. */
static void classify(assigner *a) {
    weft_graph *graph = a->graph;
    for (int32_t id = 0; id < graph->n_nodes; id++) {
        wefti_node *node = graph->nodes[id];
        bool        everywhere = !is_variable(node) && !writes_variable(node), backward = node->flags & WEFTI_NODE_BACKWARD;
        for (int32_t i = 0; i < node->n_inputs; i++) {
            everywhere &= a->everywhere[node->inputs[i]->node->id];
            backward |= a->backward[node->inputs[i]->node->id];
        }
        a->everywhere[id] = everywhere;
        a->backward[id] = backward;
        if (!a->keep || !is_variable(node)) node->place = 0;
        if (backward && node->beside > 0) a->cost[base_of(graph->nodes[node->beside - 1])->id] += wefti_place_seconds(node);
    }
    for (int32_t id = 0; id < graph->n_nodes; id++) {
        const wefti_node *node = graph->nodes[id];
        bool              light = is_variable(node) || writes_variable(node) || wefti_cut_is_light(node);
        if (light || a->everywhere[id] || a->backward[id] || (a->cost[id] <= 0 && !a->keep)) {
            if (!a->keep && has_wish(node) && !wefti_cut_is_light(node)) a->graph->nodes[id]->place = node->wish->stage + 1;
            continue;
        }
        a->forward[a->n_forward++] = id;
        a->cost[id] += wefti_place_seconds(node);
    }
}

/* --- the cut of the forward order --- */

typedef struct division {
    int32_t  n;        /* places to cut: behind forward[at[k] - 1]; at[0] is 0, at[n-1] the end */
    int32_t *at;       /* [n] */
    double  *before;   /* [n] cost of all that stands before */
    double  *transfer; /* [n] of what passes there, both ways */
    int32_t *wish;     /* [n] the stage that the program wants for what stands between here and the next place; NONE, or SEVERAL */
    double  *slowest;  /* [n] of the best division of what stands before into so many stages … */
    int32_t *from;     /* [stages * n] … and where its last stage begins */
} division;

/* Seconds for what is made before each position and read behind it, as it passes; by position in the forward order. */
static weft_status passing(const assigner *a, double *seconds) {
    int32_t *position = NULL, *last = NULL;
    size_t   bytes = (size_t)a->graph->n_nodes * sizeof *position;
    weft_status status;
    WEFTI_TRY_GOTO(wefti_alloc(bytes, "stages", &position), done);
    WEFTI_TRY_GOTO(wefti_alloc(bytes, "stages", &last), done);
    for (int32_t id = 0; id < a->graph->n_nodes; id++) position[id] = -1;
    for (int32_t k = 0; k < a->n_forward; k++) position[a->forward[k]] = last[a->forward[k]] = k;
    for (int32_t k = 0; k < a->n_forward; k++) {
        const wefti_node *node = a->graph->nodes[a->forward[k]];
        for (int32_t i = 0; i < node->n_inputs; i++) last[base_of(node->inputs[i]->node)->id] = k;
    }
    for (int32_t k = 0; k < a->n_forward; k++) {
        const wefti_node *node = a->graph->nodes[a->forward[k]];
        double            each = 0;
        for (int32_t o = 0; o < node->n_outputs; o++) each += 2 * wefti_place_transfer(&node->outputs[o]);
        for (int32_t at = k + 1; at <= last[node->id] && at - k < 4096; at++) seconds[at] += each;
    }
done:
    wefti_free(position, bytes);
    wefti_free(last, bytes);
    return status;
}

/* Keeps at most MOST_CUTS places: of each stretch of equal cost the one where least passes. */
static void choose_places(const assigner *a, const double *seconds, division *d) {
    double all = 0, sum = 0;
    for (int32_t k = 0; k < a->n_forward; k++) all += a->cost[a->forward[k]];
    d->n = 1;
    int32_t stretch = -1;
    for (int32_t k = 0; k < a->n_forward; k++) {
        int32_t now = a->n_forward <= MOST_CUTS - 2 ? k : (int32_t)(sum / (all > 0 ? all : 1) * (MOST_CUTS - 3));
        if (k > 0 && (now != stretch || seconds[k] < d->transfer[d->n - 1])) {
            if (now != stretch) d->n++;
            d->at[d->n - 1] = k;
            d->before[d->n - 1] = sum;
            d->transfer[d->n - 1] = seconds[k];
        }
        stretch = k > 0 ? now : -1;
        sum += a->cost[a->forward[k]];
    }
    d->at[d->n] = a->n_forward;
    d->before[d->n++] = sum;
}

static void find_wishes(const assigner *a, division *d) {
    for (int32_t k = 0; k < d->n; k++) {
        d->wish[k] = NONE;
        for (int32_t f = d->at[k]; k + 1 < d->n && f < d->at[k + 1]; f++) {
            const wefti_node *node = a->graph->nodes[a->forward[f]];
            if (has_wish(node)) d->wish[k] = d->wish[k] == NONE || d->wish[k] == node->wish->stage ? node->wish->stage : SEVERAL;
        }
    }
}

static const double NEVER = 1e300;

/* The best last stage `stage` of what stands before place `end`. */
static void extend(division *d, int32_t stage, const double *earlier, int32_t end) {
    d->slowest[end] = NEVER;
    for (int32_t begin = end - 1; begin >= 0 && (d->wish[begin] == NONE || d->wish[begin] == stage); begin--) {
        double own = d->before[end] - d->before[begin] + d->transfer[begin];
        double slowest = own > earlier[begin] ? own : earlier[begin];
        if (d->before[end] - d->before[begin] <= 0 || slowest >= d->slowest[end]) continue; /* a stage has work */
        d->slowest[end] = slowest;
        d->from[stage * d->n + end] = begin;
    }
}

/* Why there is no division. */
static weft_status refuse(const assigner *a) {
    int32_t           working = 0;
    const wefti_node *before = NULL;
    for (int32_t k = 0; k < a->n_forward; k++) {
        const wefti_node *node = a->graph->nodes[a->forward[k]];
        working += a->cost[a->forward[k]] > 0;
        if (!has_wish(node)) continue;
        if (before && before->wish->stage > node->wish->stage)
            return wefti_fail(WEFT_E_INVALID, "'%s' at '%s' and '%s' at '%s' contradict each other: stages are runs of the forward pass, and the first comes "
                              "before the second", before->name, before->wish->text, node->name, node->wish->text);
        before = node;
    }
    return wefti_fail(WEFT_E_INVALID, "strategy: pipeline: %d stages (times chunks) leave one without work%s: the forward pass has %d operations that take time; "
                      "take fewer", (int)a->stages, before ? ", where the program says which" : "", (int)working);
}

static weft_status divide(assigner *a, division *d, double *earlier) {
    for (int32_t k = 0; k < d->n; k++) d->slowest[k] = k == 0 ? 0 : NEVER;
    for (int32_t stage = 0; stage < a->stages; stage++) {
        memcpy(earlier, d->slowest, (size_t)d->n * sizeof *earlier);
        for (int32_t end = d->n - 1; end >= 0; end--) extend(d, stage, earlier, end);
    }
    if (d->slowest[d->n - 1] >= NEVER)
        return refuse(a);
    for (int32_t stage = a->stages - 1, end = d->n - 1; stage >= 0; stage--) {
        int32_t begin = d->from[stage * d->n + end];
        for (int32_t f = d->at[begin]; f < d->at[end]; f++) a->graph->nodes[a->forward[f]]->place = stage + 1;
        end = begin;
    }
    return WEFT_OK;
}

static weft_status cut_forward(assigner *a) {
    weft_status status;
    division    d = {0};
    double     *seconds = NULL, *earlier = NULL;
    size_t      most = (size_t)(a->n_forward < MOST_CUTS ? a->n_forward : MOST_CUTS) + 2, all = ((size_t)a->n_forward + 1) * sizeof *seconds;
    size_t      ints = most * sizeof(int32_t), doubles = most * sizeof(double), from = ints * (size_t)a->stages;
    WEFTI_TRY_GOTO(wefti_alloc(all, "stages", &seconds), done);
    WEFTI_TRY_GOTO(wefti_alloc(doubles, "stages", &earlier), done);
    WEFTI_TRY_GOTO(wefti_alloc(doubles, "stages", &d.before), done);
    WEFTI_TRY_GOTO(wefti_alloc(doubles, "stages", &d.transfer), done);
    WEFTI_TRY_GOTO(wefti_alloc(doubles, "stages", &d.slowest), done);
    WEFTI_TRY_GOTO(wefti_alloc(ints, "stages", &d.at), done);
    WEFTI_TRY_GOTO(wefti_alloc(ints, "stages", &d.wish), done);
    WEFTI_TRY_GOTO(wefti_alloc(from, "stages", &d.from), done);
    WEFTI_TRY_GOTO(passing(a, seconds), done);
    choose_places(a, seconds, &d);
    find_wishes(a, &d);
    status = divide(a, &d, earlier);
done:
    wefti_free(seconds, all);
    wefti_free(earlier, doubles);
    wefti_free(d.before, doubles);
    wefti_free(d.transfer, doubles);
    wefti_free(d.slowest, doubles);
    wefti_free(d.at, ints);
    wefti_free(d.wish, ints);
    wefti_free(d.from, from);
    return status;
}

/* --- the rest --- */

/* Where variables stand, their readers go: never before what they read. */
static void follow_variables(assigner *a) {
    for (int32_t k = 0; k < a->n_forward; k++) {
        wefti_node *node = a->graph->nodes[a->forward[k]];
        int32_t     place = 1;
        for (int32_t i = 0; i < node->n_inputs; i++) {
            const wefti_node *input = base_of(node->inputs[i]->node);
            if (input->place > place) place = input->place;
        }
        node->place = place;
    }
}

/* Where a gradient belongs: beside what it comes back through, or what that looks at. 0: anywhere. */
static int32_t beside(const assigner *a, const wefti_node *node) {
    for (int32_t id = node->beside; id > 0;) {
        wefti_node *forward = a->graph->nodes[id - 1];
        int32_t     place = base_of(forward)->place;
        if (place > 0) return place;
        id = forward->beside;
    }
    return 0;
}

static void place_gradients(const assigner *a) {
    for (int32_t id = 0; id < a->graph->n_nodes; id++) {
        wefti_node *node = a->graph->nodes[id];
        if (!a->backward[id] || a->everywhere[id] || node->place > 0 || wefti_cut_is_light(node) || writes_variable(node)) continue;
        node->place = beside(a, node);
    }
}

/* What takes no time to speak of, as the sum behind a residual branch: to the last of the stages that it reads from, and gradients to the first, so
 * that micro-batches go on in one direction. */
static void place_others(const assigner *a) {
    for (int32_t id = 0; id < a->graph->n_nodes; id++) {
        wefti_node *node = a->graph->nodes[id];
        bool        light = is_variable(node) || writes_variable(node) || wefti_cut_is_light(node), back = node->flags & WEFTI_NODE_BACKWARD;
        int32_t     place = 0;
        for (int32_t i = 0; i < node->n_inputs && node->place == 0 && !light && !a->everywhere[id]; i++) {
            int32_t other = base_of(node->inputs[i]->node)->place;
            if (other > 0 && (place == 0 || (back ? other < place : other > place)) && !is_variable(base_of(node->inputs[i]->node))) place = other;
        }
        if (place > 0) node->place = place;
    }
}

weft_status wefti_stages_assign(weft_graph *graph, int32_t stages, bool keep) {
    weft_status status;
    assigner    a = {.graph = graph, .stages = stages, .keep = keep};
    size_t      n = (size_t)graph->n_nodes;
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *a.everywhere, "stages", &a.everywhere), done);
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *a.backward, "stages", &a.backward), done);
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *a.cost, "stages", &a.cost), done);
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *a.forward, "stages", &a.forward), done);
    classify(&a);
    if (keep) follow_variables(&a);
    else WEFTI_TRY_GOTO(cut_forward(&a), done);
    place_gradients(&a);
    place_others(&a);
    wefti_cut_settle(graph);
    status = WEFT_OK;
done:
    wefti_free(a.everywhere, n * sizeof *a.everywhere);
    wefti_free(a.backward, n * sizeof *a.backward);
    wefti_free(a.cost, n * sizeof *a.cost);
    wefti_free(a.forward, n * sizeof *a.forward);
    return status;
}

void wefti_stages_keep(weft_graph *from, weft_graph *to) {
    for (int32_t i = 0; i < to->n_leaves; i++) {
        if (!is_variable(to->leaves[i])) continue;
        const weft_tensor *other = weft_graph_find(from, to->leaves[i]->name);
        to->leaves[i]->place = other ? other->node->place : 1;
    }
}

/* Stages of a pipeline are balanced: of chains of layers of all sizes the slowest stage is, to a tenth, as quick as the best of all cuts allows, by arithmetic; a layer's
 * gradients are where the layer is. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph/graph.h"
#include "parallel/stages.h"
#include "weft/layers.h"

enum { ROWS = 512, LAYERS = 12, MOST_STAGES = 6, PROGRAMS = 40 };

typedef struct chain {
    weft_graph  *graph;
    weft_tensor *weights[LAYERS];
    double       work[LAYERS]; /* of a layer's products, forth and back */
} chain;

static unsigned draw(unsigned *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 16;
}

static chain build(unsigned seed) {
    chain       c = {.graph = NULL};
    weft_tensor *targets[LAYERS], *leaves[LAYERS];
    int64_t      width = 256;
    cr_assert_eq(weft_graph_create(NULL, &c.graph), WEFT_OK);
    weft_tensor *x = weft_input(c.graph, "x", WEFT_F32, weft_shape(ROWS, width));
    for (int i = 0; i < LAYERS; i++) {
        int64_t out = 64 * (1 + (int64_t)(draw(&seed) % 16));
        char    name[16];
        snprintf(name, sizeof name, "w%d", i);
        c.weights[i] = leaves[i] = weft_parameter(c.graph, name, weft_shape(width, out));
        c.work[i] = (i == 0 ? 2 : 3) * 2.0 * ROWS * (double)(width * out); /* what is fed has no gradient */
        x = weft_relu(weft_matmul(x, leaves[i]));
        width = out;
    }
    cr_assert_eq(weft_gradients(weft_mean(weft_square(x)), leaves, LAYERS, targets), WEFT_OK, "%s", weft_error_message());
    return c;
}

/* The slowest of so many runs of layers from `first` on, of the best cuts. */
static double best_of(const double *work, int first, int stages) {
    double sum = 0, best = INFINITY;
    for (int i = first; i < LAYERS; i++) {
        sum += work[i];
        if (stages == 1) continue;
        best = fmin(best, fmax(sum, best_of(work, i + 1, stages - 1)));
    }
    return stages == 1 && first < LAYERS ? sum : best;
}

static void is_balanced(unsigned seed, int stages) {
    chain  c = build(seed);
    double by_layers[MOST_STAGES] = {0}, by_nodes[MOST_STAGES] = {0}, slowest = 0, best = best_of(c.work, 0, stages);
    int    before = 0;
    cr_assert_eq(wefti_stages_assign(c.graph, stages, false), WEFT_OK, "%s", weft_error_message());
    for (int i = 0; i < LAYERS; i++) {
        int stage = c.weights[i]->node->place - 1;
        cr_assert(stage >= before && stage < stages, "program %u: layer %d is in stage %d of %d, behind one of stage %d", seed, i, stage, stages, before);
        by_layers[stage] += c.work[i];
        before = stage;
    }
    for (int32_t id = 0; id < c.graph->n_nodes; id++) {
        const wefti_node *node = c.graph->nodes[id];
        if (node->op == WEFT_OP_MATMUL) by_nodes[node->place - 1] += wefti_node_flops(node);
    }
    for (int s = 0; s < stages; s++) {
        slowest = fmax(slowest, by_layers[s]);
        cr_expect(by_nodes[s] == by_layers[s], "program %u, stage %d of %d has layers of %g operations and computes %g", seed, s, stages, by_layers[s], by_nodes[s]);
    }
    cr_expect_leq(slowest, 1.1 * best, "program %u: the slowest of %d stages has %g operations, and could have %g", seed, stages, slowest, best);
    weft_graph_release(c.graph);
}

Test(stages, are_cut_where_the_slowest_is_quickest) {
    for (unsigned seed = 0; seed < PROGRAMS; seed++)
        for (int stages = 2; stages <= MOST_STAGES; stages++) is_balanced(seed, stages);
}

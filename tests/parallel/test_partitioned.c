/* Partitioned models as DistBelief has them (Dean et al. 2012): layers in blocks, a block on each rank. What crosses between ranks, in bytes: an activation at a
 * boundary once for each rank that needs it, however many units there read it. A locally connected network sends its edges, and a fully connected one all. */
#include <criterion/criterion.h>
#include <stdio.h>

#include "core/iface/world.h"
#include "weft.h"
#include "transport/ranks.h"

enum { ROWS = 6, WIDTH = 20, EDGE = 2, LAYERS = 3, MOST = 4 };

static int32_t n_ranks;
static bool    local;

/* What block `r` of the next layer reads of block `from`; NULL: nothing. What is cut out is cut out where it is, so that no more travels. */
static weft_tensor *seen(weft_graph *g, weft_tensor *const *blocks, int32_t from, int32_t r) {
    char place[16];
    if (from < 0 || from >= n_ranks) return NULL;
    if (from == r || !local) return blocks[from];
    if (from != r - 1 && from != r + 1) return NULL;
    snprintf(place, sizeof place, "rank %d", (int)from);
    weft_place_begin(g, place);
    weft_tensor *edge = from < r ? weft_slice(blocks[from], 1, WIDTH - EDGE, WIDTH) : weft_slice(blocks[from], 1, 0, EDGE);
    weft_place_end(g);
    return edge;
}

/* Two units read each input: one message all the same. */
static weft_tensor *next_block(weft_graph *g, weft_tensor *const *blocks, int32_t r, int layer) {
    weft_tensor *inputs[MOST], *all;
    int32_t      n = 0;
    char         place[16], name[32];
    for (int32_t from = 0; from < n_ranks; from++) {
        weft_tensor *input = seen(g, blocks, from, r);
        if (input) inputs[n++] = input;
    }
    snprintf(place, sizeof place, "rank %d", (int)r);
    weft_place_begin(g, place);
    all = n > 1 ? weft_concat(inputs, n, 1) : inputs[0];
    snprintf(name, sizeof name, "layer%d.block%d.a", layer, (int)r);
    weft_tensor *a = weft_linear(all, name, .out = WIDTH);
    snprintf(name, sizeof name, "layer%d.block%d.b", layer, (int)r);
    weft_tensor *b = weft_linear(n > 1 ? weft_concat(inputs, n, 1) : inputs[0], name, .out = WIDTH);
    weft_tensor *out = weft_tanh(weft_add(a, b));
    weft_place_end(g);
    return out;
}

static weft_tensor *network(weft_graph *g) {
    weft_tensor *blocks[MOST], *next[MOST], *x = weft_input(g, "x", WEFT_F32, weft_shape(ROWS, WIDTH));
    for (int32_t r = 0; r < n_ranks; r++) {
        char place[16], name[16];
        snprintf(place, sizeof place, "rank %d", (int)r);
        snprintf(name, sizeof name, "first%d", (int)r);
        weft_place_begin(g, place);
        blocks[r] = weft_tanh(weft_linear(x, name, .out = WIDTH));
        weft_place_end(g);
    }
    for (int layer = 0; layer < LAYERS; layer++) {
        for (int32_t r = 0; r < n_ranks; r++) next[r] = next_block(g, blocks, r, layer);
        for (int32_t r = 0; r < n_ranks; r++) blocks[r] = next[r];
    }
    weft_tensor *sums[MOST], *sum;
    for (int32_t r = 0; r < n_ranks; r++) {
        char place[16];
        snprintf(place, sizeof place, "rank %d", (int)r);
        weft_place_begin(g, place);
        sums[r] = weft_sum(blocks[r]);
        weft_place_end(g);
    }
    weft_place_begin(g, "rank 0");
    sum = sums[0];
    for (int32_t r = 1; r < n_ranks; r++) sum = weft_add(sum, sums[r]);
    weft_place_end(g);
    return sum;
}

/* What rank `r` sends for its blocks, layer by layer, and for its sum; rank 0 gives the output to all. */
static int64_t expected(int32_t r) {
    int64_t neighbours = (r > 0) + (r < n_ranks - 1), each = local ? neighbours * ROWS * EDGE * 4 : (n_ranks - 1) * ROWS * WIDTH * 4;
    return LAYERS * each + (r > 0 ? 4 : 4 * (n_ranks - 1));
}

static weft_status count(ranks *all, int32_t rank) {
    weft_world      *world = NULL;
    weft_graph      *graph = NULL;
    weft_plan       *plan = NULL;
    weft_plan_totals totals;
    float            x[ROWS * WIDTH];
    (void)all;
    for (int i = 0; i < ROWS * WIDTH; i++) x[i] = (float)(i % 7) / 7;
    WEFTI_TRY(weft_world_create(&(weft_world_options){.threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS}, &world));
    weft_status  status = weft_graph_create(NULL, &graph);
    weft_tensor *output = status == WEFT_OK ? network(graph) : NULL;
    if (status == WEFT_OK) status = weft_plan_create(world, graph, &(weft_plan_options){.outputs = &output, .n_outputs = 1}, &plan);
    weft_plan_totals_read(plan, &totals);
    if (status == WEFT_OK && totals.sent_bytes != expected(rank))
        status = wefti_fail(WEFT_E_INTERNAL, "%lld bytes are sent, not %lld", (long long)totals.sent_bytes, (long long)expected(rank));
    if (status == WEFT_OK) status = weft_plan_run(plan, &(weft_feed){"x", WEFT_F32, weft_shape(ROWS, WIDTH), x}, 1);
    weft_plan_release(plan);
    weft_graph_release(graph);
    weft_world_release(world);
    return status;
}

static void counts(int32_t n, bool locally) {
    n_ranks = n;
    local = locally;
    ranks *all = ranks_start(n, count);
    ranks_join(all);
    for (int32_t r = 0; r < n; r++)
        cr_expect(atomic_load(&all->results[r].finished) && all->results[r].status == WEFT_OK, "rank %d: %s", (int)r, all->results[r].message);
    ranks_free(all);
}

Test(partitioned, locally_connected_on_two) { counts(2, true); }
Test(partitioned, locally_connected_on_four) { counts(4, true); }
Test(partitioned, fully_connected_on_two) { counts(2, false); }
Test(partitioned, fully_connected_on_four) { counts(4, false); }

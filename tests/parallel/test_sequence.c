/* How time is dealt out over ranks: under a causal mask each has as much arithmetic as the others, and all together have what one process has, no pair of a query and
 * a key more or less; where blocks do not come out even, ranks have one stretch each, and it is said so. Results: tests/train/test_sequence.c. */
#include <criterion/criterion.h>
#include <string.h>

#include "parallel/sequence.h"
#include "weft/layers.h"
#include "weft/loss.h"

enum { ROWS = 2, WIDTH = 16, LETTERS = 12, MOST_LEAVES = 16, MOST_RANKS = 8 };

typedef struct work {
    double attention, all;
} work;

static bool is_attention(const wefti_node *node) { return node->op == WEFT_OP_ATTENTION || node->op == WEFT_OP_ATTENTION_BACKWARD; }

static work work_of(const weft_graph *graph) {
    work sum = {0, 0};
    for (int32_t id = 0; id < graph->n_nodes; id++) {
        double flops = wefti_node_flops(graph->nodes[id]);
        sum.all += flops;
        if (is_attention(graph->nodes[id])) sum.attention += flops;
    }
    return sum;
}

/* A layer of attention and one of letters, its loss and its gradients. */
static int32_t build(int64_t time, bool causal, weft_graph **graph_out, weft_tensor **targets_out) {
    weft_tensor *leaves[MOST_LEAVES];
    int32_t      n = 0;
    cr_assert_eq(weft_graph_create(&(weft_graph_options){.seed = 5}, graph_out), WEFT_OK);
    weft_graph  *g = *graph_out;
    weft_tensor *ids = weft_input(g, "tokens", WEFT_I32, weft_shape(ROWS, time)), *next = weft_input(g, "targets", WEFT_I32, weft_shape(ROWS, time));
    weft_tensor *x = weft_embedding(ids, "tokens", .count = LETTERS, .size = WIDTH);
    x = weft_add(x, weft_self_attention(weft_layer_norm(x, "norm"), "attention", .heads = 2, .causal = causal, .rotary = true));
    targets_out[0] = weft_cross_entropy(weft_linear(weft_dropout(x, 0.1), "head", .out = LETTERS), next);
    for (int32_t i = 0; i < g->n_leaves; i++)
        if (g->leaves[i]->op == WEFT_OP_PARAMETER && n < MOST_LEAVES) leaves[n++] = &g->leaves[i]->outputs[0];
    cr_assert_eq(weft_gradients(targets_out[0], leaves, n, targets_out + 1), WEFT_OK, "%s", weft_error_message());
    return n + 1;
}

/* Of each rank; whether all of them have the same nodes, and what is said of the split. */
static bool deal_out(int64_t time, bool causal, int32_t ranks, work *whole_out, work *work_out, char *notes_out, size_t room) {
    weft_tensor *targets[MOST_LEAVES + 1], *outputs[MOST_LEAVES + 1];
    weft_graph  *graph, *parts[MOST_RANKS];
    bool         same = true;
    int32_t      n = build(time, causal, &graph, targets);
    *whole_out = work_of(graph);
    for (int32_t r = 0; r < ranks; r++) {
        wefti_tensor_split split;
        cr_assert_eq(wefti_sequence_choose(r, ranks, 2, graph, targets, n, &split), WEFT_OK, "%s", weft_error_message());
        cr_assert_eq(wefti_tensor_graph(&split, graph, targets, n, true, &parts[r], outputs), WEFT_OK, "%s", weft_error_message());
        snprintf(notes_out, room, "%s", split.notes.bytes);
        wefti_tensor_release(&split);
        work_out[r] = work_of(parts[r]);
        same = same && parts[r]->n_nodes == parts[0]->n_nodes;
        for (int32_t id = 0; same && id < parts[0]->n_nodes; id++) {
            const wefti_node *one = parts[0]->nodes[id], *other = parts[r]->nodes[id];
            same = one->op == other->op && weft_shape_equal(one->outputs[0].shape, other->outputs[0].shape);
        }
    }
    for (int32_t r = 0; r < ranks; r++) weft_graph_release(parts[r]);
    weft_graph_release(graph);
    return same;
}

static double sum_of(const work *of, int32_t ranks) {
    double sum = 0;
    for (int32_t r = 0; r < ranks; r++) sum += of[r].attention;
    return sum;
}

Test(sequence, ranks_have_as_much_to_do_as_each_other) {
    for (int32_t ranks = 2; ranks <= MOST_RANKS; ranks *= 2) {
        char notes[1024];
        work whole, of[MOST_RANKS];
        cr_expect(deal_out(48, true, ranks, &whole, of, notes, sizeof notes), "%d ranks: another graph on another rank", ranks);
        cr_expect_not_null(strstr(notes, "half of them from either end"), "%d ranks: %s", ranks, notes);
        for (int32_t r = 1; r < ranks; r++) {
            cr_expect_eq(of[r].attention, of[0].attention, "rank %d of %d: %g operations of attention, not %g", r, ranks, of[r].attention, of[0].attention);
            cr_expect_eq(of[r].all, of[0].all, "rank %d of %d: %g operations, not %g", r, ranks, of[r].all, of[0].all);
        }
        cr_expect_eq(sum_of(of, ranks), whole.attention, "%d ranks: %g operations of attention, not %g", ranks, sum_of(of, ranks), whole.attention);
    }
}

Test(sequence, in_one_piece_where_nothing_else_is_even) {
    char notes[1024];
    work whole, of[MOST_RANKS];
    (void)deal_out(20, true, 4, &whole, of, notes, sizeof notes);
    cr_expect_not_null(strstr(notes, "one behind the other: the last ranks' see most keys"), "%s", notes);
    cr_expect_eq(sum_of(of, 4), whole.attention);
    cr_expect_gt(of[3].attention, 3 * of[0].attention, "%g and %g", of[3].attention, of[0].attention);
    (void)deal_out(48, false, 4, &whole, of, notes, sizeof notes);
    cr_expect_null(strstr(notes, "either end"), "%s", notes);
    for (int32_t r = 0; r < 4; r++) cr_expect_eq(of[r].attention, whole.attention / 4);
}

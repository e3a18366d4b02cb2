/* The order in which a pipeline's ranks work on micro-batches.
 *
 * A rank's work is a row of slots, each a pass of one of its chunks (a stage; by turns, rank r has stages r, r + P, ...) over one micro-batch: forward,
 * backward, or, where the order parts them, weights: what of the backward pass no other stage waits for. The four functions below write a rank's
 * row. A node stands in its slot, or in a later one whose results it needs; then all rows are laid into one order, which exists unless the
 * micro-batches need one another.
 *
 * GPipe (Huang et al. 2019): all forward passes, then all backward. 1F1B (Narayanan et al. 2019): a stage begins with as many forward passes as there
 * are stages behind it, then takes turns, so no more than that many micro-batches are kept. Interleaved (Narayanan et al. 2021): as that, in rounds of P
 * micro-batches that go through one chunk after another. Zero bubble (Qi et al. 2023, ZB-H1): 1F1B in which stage s is s micro-batches behind with
 * its weights' gradients, which then fill its idle end; it keeps what 1F1B's first stage keeps. */
#include <string.h>

#include "core/base/base.h"
#include "parallel/cut.h"
#include "parallel/stages.h"

typedef enum pass_kind { FORWARD, BACKWARD, WEIGHTS, PASSES } pass_kind;

typedef struct sequencer {
    const wefti_pipeline *pipeline;
    const weft_graph     *graph;
    int32_t              *table;   /* [stages * PASSES * micro] slots, from 1 */
    int32_t               filled;  /* slots of the row that is being written */
    uint8_t              *pass;    /* [n_nodes] */
    int32_t              *slot;    /* [n_nodes] */
    int32_t              *row;     /* [n_nodes] placed nodes, rank by rank, each by slot and id */
    int32_t              *begin;   /* [ranks + 1] in row */
    uint8_t              *done;    /* [n_nodes] */
    int32_t              *order, n_order;
} sequencer;

/* --- rows --- */

static int32_t stages_of(const wefti_pipeline *p) { return p->ranks * p->chunks; }
static int32_t slots_of(const wefti_pipeline *p) { return p->chunks * PASSES * p->micro + 2; } /* the first and the last: of no micro-batch */
static int32_t rank_of(const sequencer *s, const wefti_node *node) { return (node->place - 1) % s->pipeline->ranks; }

static int32_t *slot_at(const sequencer *s, int32_t stage, pass_kind pass, int32_t m) {
    return &s->table[((stage * PASSES) + (int32_t)pass) * s->pipeline->micro + m];
}

/* The row's next slot, of a micro-batch that there is. */
static void put(sequencer *s, int32_t stage, pass_kind pass, int32_t m) {
    if (m >= 0 && m < s->pipeline->micro) *slot_at(s, stage, pass, m) = ++s->filled;
}

static void put_gpipe(sequencer *s, int32_t rank) {
    for (int32_t m = 0; m < s->pipeline->micro; m++) put(s, rank, FORWARD, m);
    for (int32_t m = 0; m < s->pipeline->micro; m++) put(s, rank, BACKWARD, m);
}

/* With weights `late` micro-batches behind; -1: in the backward pass. */
static void put_1f1b(sequencer *s, int32_t rank, int32_t late) {
    int32_t ahead = s->pipeline->ranks - 1 - rank, end = s->pipeline->micro + (late > 0 ? late : 0);
    for (int32_t m = 0; m < ahead; m++) put(s, rank, FORWARD, m);
    for (int32_t m = 0; m < end; m++) {
        put(s, rank, FORWARD, m + ahead);
        put(s, rank, BACKWARD, m);
        if (late >= 0) put(s, rank, WEIGHTS, m - late);
    }
}

/* The k-th pass in rounds of as many micro-batches as there are ranks; backwards from the last chunk. */
static void put_round(sequencer *s, int32_t rank, pass_kind pass, int32_t k) {
    int32_t ranks = s->pipeline->ranks, round = ranks * s->pipeline->chunks, chunk = k % round / ranks;
    put(s, (pass == FORWARD ? chunk : s->pipeline->chunks - 1 - chunk) * ranks + rank, pass, k / round * ranks + k % ranks);
}

static void put_interleaved(sequencer *s, int32_t rank) {
    int32_t ranks = s->pipeline->ranks, chunks = s->pipeline->chunks;
    int32_t all = (s->pipeline->micro + ranks - 1) / ranks * ranks * chunks, ahead = 2 * (ranks - 1 - rank) + (chunks - 1) * ranks;
    for (int32_t k = 0; k < all + ahead; k++) {
        if (k < all) put_round(s, rank, FORWARD, k);
        if (k >= ahead) put_round(s, rank, BACKWARD, k - ahead);
    }
}

static void fill_table(sequencer *s) {
    bool parted = s->pipeline->order == WEFT_ZERO_BUBBLE;
    for (int32_t rank = 0; rank < s->pipeline->ranks; rank++) {
        s->filled = 0;
        switch (s->pipeline->order) {
        case WEFT_GPIPE: put_gpipe(s, rank); break;
        case WEFT_1F1B: put_1f1b(s, rank, -1); break;
        case WEFT_ZERO_BUBBLE: put_1f1b(s, rank, rank); break;
        case WEFT_INTERLEAVED: put_interleaved(s, rank); break;
        }
    }
    for (int32_t stage = 0; stage < stages_of(s->pipeline) && !parted; stage++)
        memcpy(slot_at(s, stage, WEIGHTS, 0), slot_at(s, stage, BACKWARD, 0), (size_t)s->pipeline->micro * sizeof *s->table);
}

/* --- nodes --- */

/* Through views to what computes. */
static const wefti_node *base_of(const wefti_node *node) {
    while (node->place == 0 && node->n_inputs > 0 && wefti_cut_is_light(node)) node = node->inputs[0]->node;
    return node;
}

/* Backward: a gradient, or made of one for the same micro-batch. What of that no other stage reads, at the end of whatever way, is of the weights. */
static void find_passes(sequencer *s) {
    const weft_graph *graph = s->graph;
    for (int32_t id = 0; id < graph->n_nodes; id++) {
        const wefti_node *node = graph->nodes[id];
        bool              backward = node->flags & WEFTI_NODE_BACKWARD;
        for (int32_t i = 0; i < node->n_inputs && node->micro > 0; i++)
            backward |= node->inputs[i]->node->micro == node->micro && s->pass[node->inputs[i]->node->id] != FORWARD;
        s->pass[id] = !backward ? FORWARD : wefti_op_is_message(node->op) ? BACKWARD : WEIGHTS; /* another rank waits for a message */
    }
    for (int32_t id = graph->n_nodes - 1; id >= 0; id--) {
        const wefti_node *node = graph->nodes[id];
        int32_t           place = base_of(node)->place;
        for (int32_t i = 0; i < node->n_inputs && node->micro > 0 && s->pass[id] != FORWARD; i++) {
            const wefti_node *input = node->inputs[i]->node;
            bool              waits = s->pass[id] == BACKWARD || (place > 0 && base_of(input)->place > 0 && base_of(input)->place != place);
            if (waits && input->micro == node->micro && s->pass[input->id] == WEIGHTS) s->pass[input->id] = BACKWARD;
        }
    }
}

/* What is of no micro-batch comes first, or behind all if it is made of one that does and is elsewhere. */
static void find_slots(sequencer *s) {
    int32_t last = slots_of(s->pipeline) - 1;
    for (int32_t id = 0; id < s->graph->n_nodes; id++) {
        const wefti_node *node = s->graph->nodes[id];
        int32_t           slot = 0;
        if (node->op == WEFT_OP_RECEIVE && id > 0 && s->graph->nodes[id - 1]->op == WEFT_OP_SEND) slot = s->slot[id - 1]; /* of a ring: behind what is sent round */
        if (slot == 0 && node->place > 0 && node->micro > 0) slot = *slot_at(s, node->place - 1, s->pass[id], node->micro - 1);
        for (int32_t i = 0; i < node->n_inputs; i++) {
            const wefti_node *input = node->inputs[i]->node;
            bool              same = input->place == 0 || node->place == 0 || rank_of(s, input) == rank_of(s, node);
            if (same && s->slot[input->id] > slot) slot = s->slot[input->id];
            if (!same && node->micro == 0 && s->slot[input->id] > 0) slot = last;
        }
        s->slot[id] = slot;
    }
}

/* Counting sort: by rank, then by slot; ids stay in order. */
static weft_status fill_rows(sequencer *s) {
    int32_t  slots = slots_of(s->pipeline), n = s->pipeline->ranks * slots + 1, *start = NULL;
    size_t   bytes = (size_t)n * sizeof *start;
    WEFTI_TRY(wefti_alloc(bytes, "a pipeline's order", &start));
    for (int32_t pass = 0; pass < 2; pass++) {
        for (int32_t id = 0; id < s->graph->n_nodes; id++) {
            const wefti_node *node = s->graph->nodes[id];
            if (node->place == 0) continue;
            int32_t at = rank_of(s, node) * slots + s->slot[id];
            if (pass == 0) start[at + 1]++;
            else s->row[start[at]++] = id;
        }
        for (int32_t i = 1; i < n && pass == 0; i++) start[i] += start[i - 1];
        for (int32_t rank = 0; rank <= s->pipeline->ranks && pass == 0; rank++) s->begin[rank] = start[rank * slots];
    }
    wefti_free(start, bytes);
    return WEFT_OK;
}

/* --- one order --- */

static void append(sequencer *s, int32_t id) {
    s->done[id] = 1;
    s->order[s->n_order++] = id;
}

/* Appends what of the node's inputs is computed wherever it is needed; false where one of a stage is not done. */
static bool is_ready(sequencer *s, const wefti_node *node) {
    for (int32_t i = 0; i < node->n_inputs; i++) {
        const wefti_node *input = node->inputs[i]->node;
        if (s->done[input->id]) continue;
        if (input->place > 0 || !is_ready(s, input)) return false;
        append(s, input->id);
    }
    return true;
}

static weft_status merge_rows(sequencer *s, int32_t *at) {
    int32_t ranks = s->pipeline->ranks, left = s->begin[ranks];
    memcpy(at, s->begin, (size_t)ranks * sizeof *at);
    for (bool moved = true; moved && left > 0;) {
        moved = false;
        for (int32_t rank = 0; rank < ranks; rank++)
            for (; at[rank] < s->begin[rank + 1] && is_ready(s, s->graph->nodes[s->row[at[rank]]]); at[rank]++, left--) {
                append(s, s->row[at[rank]]);
                moved = true;
            }
    }
    for (int32_t rank = 0; rank < ranks && left > 0; rank++)
        if (at[rank] < s->begin[rank + 1])
            return wefti_fail(WEFT_E_UNSUPPORTED, "strategy: the pipeline's order cannot be kept: '%s' of its rank %d needs what this rank or another computes "
                              "later; something of all micro-batches (a batch norm, the balance or capacity of a mixture of experts) is needed by each. Use schedule = WEFT_GPIPE or accumulate = 1",
                              s->graph->nodes[s->row[at[rank]]]->name, (int)rank);
    for (int32_t id = 0; id < s->graph->n_nodes; id++)
        if (!s->done[id] && is_ready(s, s->graph->nodes[id])) append(s, id);
    return WEFT_OK;
}

weft_status wefti_stages_order(const wefti_pipeline *pipeline, const weft_graph *graph, int32_t *order_out) {
    weft_status status;
    sequencer   s = {.pipeline = pipeline, .graph = graph, .order = order_out};
    int32_t    *at = NULL;
    size_t      n = (size_t)graph->n_nodes, ranks = ((size_t)pipeline->ranks + 1) * sizeof(int32_t);
    size_t      table = (size_t)stages_of(pipeline) * PASSES * (size_t)pipeline->micro * sizeof *s.table;
    WEFTI_TRY_GOTO(wefti_alloc(table, "a pipeline's order", &s.table), done);
    WEFTI_TRY_GOTO(wefti_alloc(n, "a pipeline's order", &s.pass), done);
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *s.slot, "a pipeline's order", &s.slot), done);
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *s.row, "a pipeline's order", &s.row), done);
    WEFTI_TRY_GOTO(wefti_alloc(ranks, "a pipeline's order", &s.begin), done);
    WEFTI_TRY_GOTO(wefti_alloc(ranks, "a pipeline's order", &at), done);
    WEFTI_TRY_GOTO(wefti_alloc(n, "a pipeline's order", &s.done), done);
    fill_table(&s);
    find_passes(&s);
    find_slots(&s);
    WEFTI_TRY_GOTO(fill_rows(&s), done);
    status = merge_rows(&s, at);
done:
    wefti_free(s.table, table);
    wefti_free(s.pass, n);
    wefti_free(s.slot, n * sizeof *s.slot);
    wefti_free(s.row, n * sizeof *s.row);
    wefti_free(s.begin, ranks);
    wefti_free(at, ranks);
    wefti_free(s.done, n);
    return status;
}

/* Memory: every value that the plan computes gets a place in one of two static regions, the arena and the exported region.
 *
 * Values are grouped into *blocks*, which live over an interval of the order: from the item that first writes to the last that reads; an
 * operand of a collective is busy until the collective is waited for. What a collective takes in and gives out is one block: an
 * ALL_REDUCE works in place on its whole list, a gather on its own part. An elementwise result takes over the block of an operand
 * that dies there. Scratch is a block alive during one item, or a row of items that a device does together. Offsets come from offsets.c.
 *
 * Invariant: two blocks alive at the same position never overlap (tests/plan checks it over random graphs). Linear but for the
 * layout. */
#include <string.h>

#include "core/plan/ir.h"

typedef struct planner {
    wefti_ir  *ir;
    wefti_uses uses;
    int32_t   *position; /* by item */
    int32_t   *last;     /* by root value: last position that reads it */
    int32_t   *until;    /* by position: where the row of items ends that a device does together with this one */
} planner;

/* Elements of such a row at most. What one of them reads stays until all are done, and so the more memory is held the longer rows are. */
#define TOGETHER_ELEMENTS (INT64_C(1) << 24)

static int64_t padded(int64_t bytes) { return (int64_t)wefti_align_up((size_t)bytes, WEFTI_ALIGNMENT); }

static weft_status add_block(wefti_ir *ir, wefti_home place, int64_t bytes, int32_t first, int32_t last, int32_t *block_out) {
    WEFTI_TRY(wefti_ir_room(&ir->blocks, ir->n_blocks, &ir->blocks_capacity, sizeof *ir->blocks));
    ir->blocks[ir->n_blocks] = (wefti_block_range){place, padded(bytes), 0, first, last};
    *block_out = ir->n_blocks++;
    return WEFT_OK;
}

/* --- liveness --- */

/* The position before which the collective must be waited for: that of its first reader, or the end, if not before. */
static int32_t wait_position(const planner *p, const wefti_item *item) {
    int32_t wait = item->landed >= 0 ? p->position[item->landed] : wefti_ir_sent_by(p->ir, p->position[item - p->ir->items]);
    for (int32_t o = 0; o < item->n_outputs; o++)
        for (int32_t u = p->uses.start[item->outputs[o]]; u < p->uses.start[item->outputs[o] + 1]; u++)
            if (p->position[p->uses.users[u]] < wait) wait = p->position[p->uses.users[u]];
    return wait;
}

/* Sums over everything that stand side by side (together.c) are done at once, so none may write where another reads, or leaves partial sums. */
static void find_rows(planner *p) {
    const wefti_ir *ir = p->ir;
    for (int32_t k = 0, end; k < ir->n_order; k = end) {
        int64_t elements = 0;
        end = k + 1;
        for (int32_t j = k; ir->device->vtable->joins_calls && j < ir->n_order && wefti_item_sums_all(&ir->items[ir->order[j]]); j++) {
            elements += wefti_value_elements(&ir->values[ir->items[ir->order[j]].inputs[0]]);
            if (j > k && elements > TOGETHER_ELEMENTS) break;
            end = j + 1;
        }
        for (int32_t j = k; j < end; j++) p->until[j] = end - 1;
    }
}

static void find_last(planner *p) {
    wefti_ir *ir = p->ir;
    for (int32_t k = 0; k < ir->n_order; k++) {
        const wefti_item *item = &ir->items[ir->order[k]];
        int32_t           until = wefti_item_is_comm(item) ? wait_position(p, item) : p->until[k];
        for (int32_t i = 0; i < item->n_inputs; i++) {
            int32_t root = ir->values[item->inputs[i]].root;
            if (until > p->last[root]) p->last[root] = until;
        }
        for (int32_t o = 0; o < item->n_outputs; o++)
            if (until > p->last[item->outputs[o]]) p->last[item->outputs[o]] = until;
    }
    for (int32_t o = 0; o < ir->n_outputs; o++) {
        int32_t root = ir->values[ir->outputs[o]].root;
        ir->values[root].kept = true;
        p->last[root] = ir->n_order;
    }
}

/* --- collectives --- */

static void put(wefti_ir *ir, int32_t value, int32_t block, int64_t inside_bytes) {
    ir->values[value].block = block;
    ir->values[value].inside_bytes = inside_bytes;
}

/* A divided reduction leaves this rank's part where it lies in the whole, which is padded to equal parts. A paced one leaves it elsewhere, so that
 * the whole can go. */
static weft_status place_divided(planner *p, const wefti_item *item) {
    wefti_ir *ir = p->ir;
    int32_t   in = item->inputs[0], out = item->outputs[0], block;
    bool      paced = wefti_item_is_paced(item);
    int32_t   last = paced || p->last[in] > p->last[out] ? p->last[in] : p->last[out];
    int64_t   part = wefti_value_bytes(&ir->values[out]);
    const struct wefti_group *group = wefti_ir_group(ir, item);
    WEFTI_TRY(add_block(ir, WEFTI_HOME_EXPORTED, part * group->size, p->position[ir->values[in].item], last, &block));
    put(ir, in, block, 0);
    put(ir, out, block, part * group->index);
    if (!paced) return WEFT_OK;
    WEFTI_TRY(add_block(ir, WEFTI_HOME_EXPORTED, part, p->position[ir->values[out].item], p->last[out], &block));
    put(ir, out, block, 0);
    return WEFT_OK;
}

/* What is sent lies where it was computed, or where another collective left it; a SEND's output is what it sends. */
static weft_status place_point(planner *p, const wefti_item *item) {
    wefti_ir *ir = p->ir;
    int32_t   out = item->outputs[0], value = item->n_inputs ? item->inputs[0] : out, block;
    if (ir->values[value].block < 0) {
        int32_t last = p->last[value] > p->last[out] ? p->last[value] : p->last[out];
        WEFTI_TRY(add_block(ir, WEFTI_HOME_EXPORTED, wefti_value_bytes(&ir->values[value]), p->position[ir->values[value].item], last, &block));
        put(ir, value, block, 0);
    }
    if (value == out) return WEFT_OK;
    block = ir->values[value].block;
    put(ir, out, block, ir->values[value].inside_bytes);
    if (p->last[out] > ir->blocks[block].last) ir->blocks[block].last = p->last[out];
    return WEFT_OK;
}

static weft_status place_comm(planner *p, int32_t index) {
    wefti_ir         *ir = p->ir;
    const wefti_item *item = &ir->items[index];
    if (item->divided) return item->op == WEFT_OP_REDUCE_SCATTER ? place_divided(p, item) : WEFT_OK; /* gathered where variables lie */
    if (wefti_item_is_point(item)) return place_point(p, item);
    bool    gathers = item->op == WEFT_OP_ALL_GATHER;
    bool    apart = item->op == WEFT_OP_REDUCE_SCATTER || item->op == WEFT_OP_ALL_TO_ALL || item->op == WEFT_OP_EXCHANGE_ROWS; /* the result lies elsewhere */
    int64_t bytes = 0;
    int32_t first = INT32_MAX, last = 0, block;
    for (int32_t i = 0; i < item->n_inputs; i++) {
        int32_t in = item->inputs[i], out = apart ? in : item->outputs[i];
        int32_t begin = p->position[ir->values[in].item];
        if (begin < first) first = begin;
        if (p->last[in] > last) last = p->last[in];
        if (p->last[out] > last) last = p->last[out];
        bytes += padded(wefti_value_bytes(&ir->values[gathers ? out : in]));
    }
    WEFTI_TRY(add_block(ir, WEFTI_HOME_EXPORTED, bytes, first, last, &block));
    int64_t at = 0;
    for (int32_t i = 0; i < item->n_inputs; i++) {
        int32_t in = item->inputs[i], out = item->outputs[apart ? 0 : i];
        int64_t part = wefti_value_bytes(&ir->values[in]);
        put(ir, in, block, at + (gathers ? wefti_ir_group(ir, item)->index * part : 0));
        if (!apart) put(ir, out, block, at);
        at += padded(wefti_value_bytes(&ir->values[gathers ? out : in]));
    }
    if (!apart) return WEFT_OK;
    int32_t out = item->outputs[0];
    WEFTI_TRY(add_block(ir, WEFTI_HOME_EXPORTED, wefti_value_bytes(&ir->values[out]), p->position[index], p->last[out], &block));
    put(ir, out, block, 0);
    return WEFT_OK;
}

/* --- in place --- */

/* Whether the item may write output `out` over input `i`: whole, of the same layout, and dying here. */
static bool may_overwrite(const planner *p, const wefti_item *item, int32_t i, int32_t out, int32_t k) {
    const wefti_ir    *ir = p->ir;
    const wefti_value *in = &ir->values[item->inputs[i]], *root = &ir->values[in->root], *to = &ir->values[out];
    if (root->place != WEFTI_HOME_ARENA || root->block < 0 || root->kept || ir->blocks[root->block].last != k) return false;
    if (ir->blocks[root->block].place != WEFTI_HOME_ARENA) return false;
    if (weft_dtype_bytes(in->dtype) != weft_dtype_bytes(to->dtype) || !weft_shape_equal(in->shape, to->shape)) return false;
    if (in->offset != 0 || !wefti_value_is_dense(in) || wefti_value_elements(root) != wefti_value_elements(in)) return false;
    for (int32_t j = 0; j < item->n_inputs; j++) { /* nobody may look at the same memory in another way */
        const wefti_value *other = &ir->values[item->inputs[j]];
        if (ir->values[other->root].block != root->block || ir->values[other->root].place != WEFTI_HOME_ARENA) continue;
        if (other->root != in->root || other->offset != 0 || !wefti_value_is_dense(other) ||
            !weft_shape_equal(other->shape, in->shape))
            return false;
    }
    return true;
}

static bool is_whole(const wefti_item *item, int32_t output) {
    return item->op != WEFT_OP_FUSED || item->attrs->fused.fused->output[output].reduce < 0;
}

/* The input whose block the output takes over; -1: none. `taken` has a bit for each input that another output took. */
static int32_t overwritten(const planner *p, const wefti_item *item, int32_t output, int32_t k, uint64_t taken) {
    if (p->ir->options.base.no_in_place || !is_whole(item, output)) return -1;
    if (!wefti_op_is_elementwise(item->op) && item->op != WEFT_OP_FUSED) return -1;
    for (int32_t i = 0; i < item->n_inputs && i < 64; i++) {
        bool free = true;
        for (int32_t j = 0; j < i; j++)
            if (taken >> j & 1 && p->ir->values[item->inputs[j]].root == p->ir->values[item->inputs[i]].root) free = false;
        if (free && !(taken >> i & 1) && may_overwrite(p, item, i, item->outputs[output], k)) return i;
    }
    return -1;
}

/* --- the walk --- */

static weft_status place_outputs(planner *p, int32_t k) {
    wefti_ir   *ir = p->ir;
    wefti_item *item = &ir->items[ir->order[k]];
    uint64_t    taken = 0;
    for (int32_t o = 0; o < item->n_outputs; o++) {
        wefti_value *value = &ir->values[item->outputs[o]];
        if (value->place != WEFTI_HOME_ARENA) continue; /* a variable's new value, or laid out with its collective */
        int32_t i = overwritten(p, item, o, k, taken);
        if (i >= 0) {
            int32_t block = ir->values[ir->values[item->inputs[i]].root].block;
            for (int32_t j = i; j < item->n_inputs && j < 64; j++)
                if (ir->values[item->inputs[j]].root == ir->values[item->inputs[i]].root) taken |= UINT64_C(1) << j;
            put(ir, item->outputs[o], block, 0);
            ir->blocks[block].last = p->last[item->outputs[o]];
            continue;
        }
        int32_t block;
        WEFTI_TRY(add_block(ir, WEFTI_HOME_ARENA, wefti_value_bytes(value), k, p->last[item->outputs[o]], &block));
        put(ir, item->outputs[o], block, 0);
    }
    return WEFT_OK;
}

static weft_status place_item(planner *p, int32_t k) {
    wefti_ir   *ir = p->ir;
    int32_t     index = ir->order[k];
    if (wefti_item_is_comm(&ir->items[index])) return WEFT_OK;
    WEFTI_TRY(place_outputs(p, k));
    WEFTI_TRY(wefti_item_query(ir, &ir->items[index], &ir->items[index].scratch_bytes));
    if (ir->items[index].scratch_bytes == 0) return WEFT_OK;
    return add_block(ir, WEFTI_HOME_ARENA, ir->items[index].scratch_bytes, k, p->until[k], &ir->items[index].scratch_block);
}

static weft_status place_all(planner *p) {
    wefti_ir *ir = p->ir;
    int64_t   peak_arena, peak_exported;
    for (int32_t k = 0; k < ir->n_order; k++) p->position[ir->order[k]] = k;
    for (int32_t v = 0; v < ir->n_values; v++) p->last[v] = -1;
    find_rows(p);
    find_last(p);
    for (int32_t k = 0; k < ir->n_order; k++)
        if (wefti_item_is_comm(&ir->items[ir->order[k]])) WEFTI_TRY(place_comm(p, ir->order[k]));
    for (int32_t k = 0; k < ir->n_order; k++) WEFTI_TRY(place_item(p, k));
    bool reuse = !ir->options.base.no_reuse;
    WEFTI_TRY(wefti_lay_out(ir->blocks, ir->n_blocks, WEFTI_HOME_ARENA, reuse, &ir->arena_bytes, &peak_arena));
    WEFTI_TRY(wefti_lay_out(ir->blocks, ir->n_blocks, WEFTI_HOME_EXPORTED, reuse, &ir->exported_bytes, &peak_exported));
    ir->peak_bytes = peak_arena + peak_exported;
    for (int32_t b = 0; b < ir->n_blocks; b++) ir->value_bytes += ir->blocks[b].bytes;
    return WEFT_OK;
}

weft_status wefti_pass_memory(wefti_ir *ir) {
    weft_status status;
    planner     p = {.ir = ir};
    size_t      position_bytes = (size_t)ir->n_items * sizeof *p.position, last_bytes = (size_t)ir->n_values * sizeof *p.last,
                until_bytes = (size_t)ir->n_order * sizeof *p.until;
    WEFTI_TRY_GOTO(wefti_ir_uses(ir, true, &p.uses), done);
    WEFTI_TRY_GOTO(wefti_alloc(position_bytes, "a plan", &p.position), done);
    WEFTI_TRY_GOTO(wefti_alloc(last_bytes, "a plan", &p.last), done);
    WEFTI_TRY_GOTO(wefti_alloc(until_bytes, "a plan", &p.until), done);
    status = place_all(&p);
done:
    wefti_uses_release(&p.uses);
    wefti_free(p.position, position_bytes);
    wefti_free(p.last, last_bytes);
    wefti_free(p.until, until_bytes);
    return status;
}

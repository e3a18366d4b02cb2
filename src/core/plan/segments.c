/* Segments: runs of items that the device is handed whole, cut where a collective starts or its result is first read.
 *
 * A collective is started as soon as what stands before it has been launched, and waited for right before its first reader, or at
 * the end of the run. What is waited for first has the highest priority: a batch statistic that the backward pass stands still for
 * overtakes gradients that are only wanted at the end. A SEND is waited for at the end of the run, unless it says by when (attrs.comm.axis): then its memory
 * is free again from there on. Linear in items, reads, and SENDs between one and the one that it is waited for by. */
#include <string.h>

#include "core/plan/ir.h"

typedef struct cutter {
    wefti_ir *ir;
    int32_t  *collective_of; /* by item: index; -1 */
    uint8_t  *pending;       /* by collective */
    int32_t  *sent_by;       /* by collective: wefti_ir_sent_by */
    int32_t   begin;         /* of the open segment */
} cutter;

static weft_status add_step(wefti_ir *ir, wefti_step_kind kind, int32_t index) {
    WEFTI_TRY(wefti_ir_room(&ir->steps, ir->n_steps, &ir->steps_capacity, sizeof *ir->steps));
    ir->steps[ir->n_steps++] = (wefti_plan_step){kind, index};
    return WEFT_OK;
}

static weft_status cut(cutter *c, int32_t position) {
    wefti_ir *ir = c->ir;
    if (position > c->begin) {
        WEFTI_TRY(wefti_ir_room(&ir->segments, ir->n_segments, &ir->segments_capacity, sizeof *ir->segments));
        ir->segments[ir->n_segments] = (wefti_plan_segment){c->begin, position};
        for (int32_t k = c->begin; k < position; k++) ir->items[ir->order[k]].segment = ir->n_segments;
        WEFTI_TRY(add_step(ir, WEFTI_STEP_LAUNCH, ir->n_segments++));
    }
    c->begin = position;
    return WEFT_OK;
}

static weft_status wait_for(cutter *c, int32_t collective, int32_t position) {
    WEFTI_TRY(cut(c, position));
    WEFTI_TRY(add_step(c->ir, WEFTI_STEP_WAIT, collective));
    c->pending[collective] = 0;
    return WEFT_OK;
}

/* Waits for those that are to have landed before the item at `position`, which is a collective. */
static weft_status wait_for_landings(cutter *c, int32_t position) {
    wefti_ir *ir = c->ir;
    for (int32_t i = 0; i < ir->n_collectives; i++)
        if (c->pending[i] && ir->items[ir->collectives[i].item].landed == ir->order[position]) WEFTI_TRY(wait_for(c, i, position));
    return WEFT_OK;
}

/* Waits for those collectives in flight that the item at `position` reads from. */
static weft_status wait_for_inputs(cutter *c, int32_t position) {
    wefti_ir         *ir = c->ir;
    const wefti_item *item = &ir->items[ir->order[position]];
    for (int32_t i = 0; i < item->n_inputs; i++) {
        int32_t producer = ir->values[ir->values[item->inputs[i]].root].item;
        int32_t collective = producer >= 0 ? c->collective_of[producer] : -1;
        if (collective < 0 || !c->pending[collective]) continue;
        WEFTI_TRY(wait_for(c, collective, position));
    }
    return WEFT_OK;
}

/* Waits for those SENDs in flight that are to have ended when the one at `position` begins. */
static weft_status wait_for_sent(cutter *c, int32_t position) {
    wefti_ir *ir = c->ir;
    if (ir->items[ir->order[position]].op != WEFT_OP_SEND) return WEFT_OK;
    for (int32_t i = 0; i < ir->n_collectives; i++) {
        if (!c->pending[i] || c->sent_by[i] != position) continue;
        WEFTI_TRY(cut(c, position));
        WEFTI_TRY(add_step(ir, WEFTI_STEP_WAIT, i));
        c->pending[i] = 0;
    }
    return WEFT_OK;
}

/* Whether the world's group for the device's memory does it; notes why not. */
static weft_status choose_way(wefti_ir *ir, const wefti_item *item, bool *direct_out) {
    struct wefti_group *group = ir->world->device_group;
    *direct_out = false;
    if (!group || wefti_item_is_point(item) || item->op == WEFT_OP_EXCHANGE_ROWS || wefti_ir_group(ir, item) != ir->world->group) return WEFT_OK;
    wefti_collective_call call = wefti_ir_comm_call(ir, item);
    *direct_out = group->engine->supports(group, &call) == WEFT_OK;
    if (*direct_out || ir->indirect_why) return WEFT_OK;
    return wefti_bump_string(&ir->keep, weft_error_message(), &ir->indirect_why);
}

static weft_status start(cutter *c, int32_t position) {
    wefti_ir *ir = c->ir;
    int32_t   index = ir->order[position];
    WEFTI_TRY(cut(c, position));
    WEFTI_TRY(wefti_ir_room(&ir->collectives, ir->n_collectives, &ir->collectives_capacity, sizeof *ir->collectives));
    wefti_plan_collective *collective = &ir->collectives[ir->n_collectives];
    *collective = (wefti_plan_collective){.item = index, .point = wefti_item_is_point(&ir->items[index])};
    ir->has_points |= collective->point;
    if (ir->items[index].n_inputs == 0) collective->bytes = wefti_value_bytes(&ir->values[ir->items[index].outputs[0]]);
    for (int32_t i = 0; i < ir->items[index].n_inputs; i++)
        collective->bytes += wefti_value_bytes(&ir->values[ir->items[index].inputs[i]]);
    WEFTI_TRY(choose_way(ir, &ir->items[index], &collective->direct));
    c->collective_of[index] = ir->n_collectives;
    c->pending[ir->n_collectives] = 1;
    c->sent_by[ir->n_collectives] = wefti_ir_sent_by(ir, position);
    c->begin = position + 1;
    return add_step(ir, WEFTI_STEP_START, ir->n_collectives++);
}

static weft_status cut_all(cutter *c) {
    wefti_ir *ir = c->ir;
    for (int32_t k = 0; k < ir->n_order; k++) {
        WEFTI_TRY(wait_for_inputs(c, k));
        if (wefti_item_is_paced(&ir->items[ir->order[k]])) WEFTI_TRY(wait_for_landings(c, k));
        WEFTI_TRY(wait_for_sent(c, k));
        if (wefti_item_is_comm(&ir->items[ir->order[k]])) WEFTI_TRY(start(c, k));
    }
    WEFTI_TRY(cut(c, ir->n_order));
    for (int32_t i = 0; i < ir->n_collectives; i++)
        if (c->pending[i]) WEFTI_TRY(add_step(ir, WEFTI_STEP_WAIT, i));
    for (int32_t i = 0; i < ir->n_steps; i++)
        if (ir->steps[i].kind == WEFTI_STEP_WAIT) ir->collectives[ir->steps[i].index].priority = ir->n_steps - i;
    return WEFT_OK;
}

weft_status wefti_pass_segments(wefti_ir *ir) {
    weft_status status;
    cutter      c = {.ir = ir};
    size_t      items_bytes = (size_t)ir->n_items * sizeof *c.collective_of, pending_bytes = (size_t)ir->n_order, sent_bytes = pending_bytes * sizeof *c.sent_by;
    WEFTI_TRY_GOTO(wefti_alloc(items_bytes, "a plan", &c.collective_of), done);
    WEFTI_TRY_GOTO(wefti_alloc(pending_bytes, "a plan", &c.pending), done);
    WEFTI_TRY_GOTO(wefti_alloc(sent_bytes, "a plan", &c.sent_by), done);
    memset(c.collective_of, 0xff, items_bytes);
    status = cut_all(&c);
done:
    wefti_free(c.collective_of, items_bytes);
    wefti_free(c.pending, pending_bytes);
    wefti_free(c.sent_by, sent_bytes);
    return status;
}

/* Drawing plans: each rank tells what it does, rank 0 lays all of it out and writes the file.
 *
 * Cost: some 130 bytes for each operation of each rank, at rank 0. */
#include "train/draw.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/iface/collective.h"
#include "core/plan/object.h"
#include "io/sink.h"
#include "parallel/mesh.h"
#include "train/trainer.h"

/* --- one rank --- */

typedef struct collector {
    const wefti_ir  *ir;
    wefti_draw_lane *lane;
} collector;

static weft_status add(collector *c, const wefti_draw_event *event) {
    size_t used = (size_t)c->lane->head.n_events * sizeof *event;
    if (used == c->lane->room) {
        size_t wider = c->lane->room ? 2 * c->lane->room : 256 * sizeof *event;
        WEFTI_TRY(wefti_grow(&c->lane->events, c->lane->room, wider, "a drawing"));
        c->lane->room = wider;
    }
    c->lane->events[c->lane->head.n_events++] = *event;
    return WEFT_OK;
}

static wefti_draw_event event_of(const wefti_item *item) {
    wefti_draw_event event = {.op = (int32_t)item->op, .micro = item->micro, .count = item->graph_ops > 1 ? item->graph_ops : 1, .flops = item->flops,
                              .peer = -1, .message = -1};
    event.pass = item->flags & WEFTI_NODE_BACKWARD ? WEFTI_DRAW_BACKWARD : item->op == WEFT_OP_UPDATE ? WEFTI_DRAW_UPDATE : WEFTI_DRAW_FORWARD;
    snprintf(event.name, sizeof event.name, "%s", item->name);
    return event;
}

static uint64_t members_of(const wefti_group *group) {
    uint64_t members = 0;
    for (int32_t i = 0; i < group->size; i++)
        if (group->ranks[i] < WEFTI_DRAW_RANKS) members |= UINT64_C(1) << group->ranks[i];
    return members;
}

/* How many of its kind came before: collectives of the same members, or messages with the same peer in the same group and direction. */
static int32_t sequence_of(const collector *c, const wefti_draw_event *event) {
    int32_t n = 0;
    for (int32_t i = 0; i < c->lane->head.n_events; i++) {
        const wefti_draw_event *other = &c->lane->events[i];
        if (other->kind != WEFTI_DRAW_START || other->members != event->members || other->peer != event->peer) continue;
        n += event->peer < 0 ? 1 : other->op == event->op;
    }
    return n;
}

static weft_status add_communication(collector *c, wefti_draw_kind kind, int32_t index) {
    const wefti_ir    *ir = c->ir;
    const wefti_item  *item = &ir->items[ir->collectives[index].item];
    const wefti_group *group = wefti_ir_group(ir, item);
    bool               point = wefti_item_is_point(item);
    if (!group) return WEFT_OK;
    wefti_draw_event event = event_of(item);
    event.kind = kind;
    event.message = index;
    event.count = 1;
    event.members = members_of(group);
    event.axis = (int32_t)item->attrs->comm.group;
    event.bytes = ir->collectives[index].bytes;
    if (point) event.peer = group->ranks[item->attrs->comm.peer];
    if (item->op == WEFT_OP_RECEIVE) event.bytes = wefti_value_bytes(&ir->values[item->outputs[0]]);
    if (kind == WEFTI_DRAW_START) event.sequence = sequence_of(c, &event);
    return add(c, &event);
}

static weft_status add_segment(collector *c, const wefti_plan_segment *segment) {
    for (int32_t k = segment->begin; k < segment->end; k++) {
        const wefti_item *item = &c->ir->items[c->ir->order[k]];
        if (wefti_item_is_comm(item) && wefti_ir_group(c->ir, item)) continue;
        wefti_draw_event event = event_of(item);
        WEFTI_TRY(add(c, &event));
    }
    return WEFT_OK;
}

/* What is of no pass by itself (copies, sums over micro-batches, a norm over all gradients) goes with what it follows, or, behind the last backward pass, to the
 * updates. */
static void settle_passes(wefti_draw_event *events, int32_t n) {
    int32_t first_backward = n, last_backward = -1, last_forward = -1;
    for (int32_t i = 0; i < n; i++) {
        if (events[i].kind != WEFTI_DRAW_OPS) continue;
        if (events[i].pass == WEFTI_DRAW_BACKWARD) last_backward = i;
        if (events[i].pass == WEFTI_DRAW_BACKWARD && i < first_backward) first_backward = i;
        if (events[i].pass == WEFTI_DRAW_FORWARD && events[i].micro > 0 && events[i].flops > 0) last_forward = i;
    }
    const wefti_draw_event *before = NULL;
    for (int32_t i = 0; i < n; i++) {
        wefti_draw_event *event = &events[i];
        if (event->kind != WEFTI_DRAW_OPS) continue;
        bool neutral = event->pass == WEFTI_DRAW_FORWARD && (event->micro == 0 || (i > last_forward && event->flops == 0));
        if (neutral && i > last_backward && last_backward >= 0) {
            event->pass = WEFTI_DRAW_UPDATE;
            event->micro = 0;
        } else if (neutral && before && (i > first_backward || event->flops == 0)) {
            event->pass = before->pass;
            event->micro = before->micro;
            event->name[0] = '\0';
        }
        if (event->pass == WEFTI_DRAW_BACKWARD && event->micro == 0 && before && before->pass == WEFTI_DRAW_BACKWARD) event->micro = before->micro;
        before = event;
    }
}

/* "data 1, tensor 0": along the axes of which this rank has more than one place. */
static void describe_place(const wefti_ir *ir, int32_t index[WEFTI_MESH_AXES], char *text, size_t size) {
    size_t used = 0;
    text[0] = '\0';
    for (int32_t axis = WEFTI_MESH_AXES - 1; axis >= 0; axis--) {
        index[axis] = 0;
        int32_t g = (int32_t)wefti_mesh_group((wefti_mesh_axis)axis);
        if (g >= ir->options.n_groups || !ir->options.groups || !ir->options.groups[g] || used >= size) continue;
        index[axis] = ir->options.groups[g]->index;
        used += (size_t)snprintf(text + used, size - used, "%s%s %d", used ? ", " : "", wefti_mesh_name((wefti_mesh_axis)axis), (int)ir->options.groups[g]->index);
    }
}

weft_status wefti_draw_collect(const weft_plan *plan, wefti_draw_lane *lane) {
    const wefti_ir  *ir = &plan->ir;
    collector        c = {.ir = ir, .lane = lane};
    weft_plan_totals totals;
    *lane = (wefti_draw_lane){.head = {.rank = ir->world->rank}};
    weft_plan_totals_read(plan, &totals);
    lane->head.flops = totals.flops;
    lane->head.sent_bytes = totals.sent_bytes;
    lane->head.held_bytes = totals.total_bytes;
    snprintf(lane->head.device, sizeof lane->head.device, "%s", ir->device->vtable->kind);
    describe_place(ir, lane->head.index, lane->head.place, sizeof lane->head.place);
    weft_status status = WEFT_OK;
    for (int32_t s = 0; s < ir->n_steps && status == WEFT_OK; s++) {
        const wefti_plan_step *step = &ir->steps[s];
        if (step->kind == WEFTI_STEP_LAUNCH) status = add_segment(&c, &ir->segments[step->index]);
        else status = add_communication(&c, step->kind == WEFTI_STEP_START ? WEFTI_DRAW_START : WEFTI_DRAW_WAIT, step->index);
    }
    if (status != WEFT_OK) wefti_draw_lane_release(lane);
    else settle_passes(lane->events, lane->head.n_events);
    return status;
}

void wefti_draw_lane_release(wefti_draw_lane *lane) {
    wefti_free(lane->events, lane->room);
    *lane = (wefti_draw_lane){.events = NULL};
}

/* --- all ranks --- */

/* Every lane at rank 0, in the order of ranks; elsewhere none. Heads and events travel as bytes, each rank's in the room of the longest. */
static weft_status gather_lanes(weft_world *world, const wefti_draw_lane *own, wefti_draw_lane *lanes) {
    int64_t               longest = own->head.n_events;
    unsigned char        *given = NULL, *all = NULL;
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_I64, .op = WEFTI_REDUCE_MAX, .send = &longest, .receive = &longest, .count = 1};
    WEFTI_TRY(wefti_collective_run(world->group, &call));
    size_t      each = (sizeof own->head + (size_t)longest * sizeof *own->events + 63) / 64 * 64, whole = each * (size_t)world->size;
    weft_status status = wefti_alloc(each, "a drawing", &given);
    if (status == WEFT_OK && world->rank == 0) status = wefti_alloc(whole, "a drawing", &all);
    status = wefti_agree(world, status, "drawing the plan");
    if (status == WEFT_OK) {
        memcpy(given, &own->head, sizeof own->head);
        if (own->head.n_events) memcpy(given + sizeof own->head, own->events, (size_t)own->head.n_events * sizeof *own->events);
        call = (wefti_collective_call){.kind = WEFTI_GATHER, .dtype = WEFT_I64, .send = given, .receive = all, .count = (int64_t)(each / sizeof(int64_t))};
        status = wefti_collective_run(world->group, &call);
    }
    for (int32_t r = 0; r < world->size && status == WEFT_OK && world->rank == 0; r++) {
        const unsigned char *from = all + each * (size_t)r;
        memcpy(&lanes[r].head, from, sizeof lanes[r].head);
        size_t bytes = (size_t)lanes[r].head.n_events * sizeof *own->events;
        if (bytes == 0) continue;
        status = wefti_alloc(bytes, "a drawing", &lanes[r].events);
        if (status != WEFT_OK) break;
        lanes[r].room = bytes;
        memcpy(lanes[r].events, from + sizeof lanes[r].head, bytes);
    }
    wefti_free(given, each);
    if (all) wefti_free(all, whole);
    return status;
}

static weft_status write_file(const wefti_text *text, const char *path) {
    wefti_sink *sink = NULL;
    if (text->failed) return wefti_fail(WEFT_E_NO_MEMORY, "out of memory for the drawing '%s'", path);
    WEFTI_TRY(wefti_sink_create(path, &sink));
    weft_status status = wefti_sink_append(sink, text->bytes, text->length);
    if (status == WEFT_OK) status = wefti_sink_commit(sink);
    wefti_sink_release(sink);
    return status;
}

/* Those that talk stand side by side: tensor ranks, then stages of a pipeline. */
static int by_place(const void *a, const void *b) {
    static const wefti_mesh_axis order[] = {WEFTI_MESH_DATA, WEFTI_MESH_EXPERT, WEFTI_MESH_SEQUENCE, WEFTI_MESH_PIPELINE, WEFTI_MESH_TENSOR};
    const wefti_draw_head       *x = &((const wefti_draw_lane *)a)->head, *y = &((const wefti_draw_lane *)b)->head;
    for (size_t i = 0; i < WEFTI_COUNT(order); i++)
        if (x->index[order[i]] != y->index[order[i]]) return x->index[order[i]] < y->index[order[i]] ? -1 : 1;
    return x->rank < y->rank ? -1 : x->rank > y->rank;
}

static weft_status draw_lanes(wefti_draw_lane *lanes, int32_t n_lanes, const char *path, const weft_draw_options *how) {
    qsort(lanes, (size_t)n_lanes, sizeof *lanes, by_place);
    wefti_draw_scene scene = {.lanes = lanes, .n_lanes = n_lanes};
    wefti_text       text = {0};
    weft_status      status = wefti_draw_lay_out(&scene, how->most_boxes > 0 ? how->most_boxes : 40);
    if (status == WEFT_OK) wefti_draw_write(&scene, how->title, &text);
    if (status == WEFT_OK) status = write_file(&text, path);
    wefti_text_release(&text);
    wefti_draw_scene_release(&scene);
    return status;
}

weft_status weft_plan_draw(const weft_plan *plan, const char *path, const weft_draw_options *options) {
    static const weft_draw_options defaults;
    if (!plan || !path) return wefti_fail(WEFT_E_INVALID, "weft_plan_draw: the %s is NULL", plan ? "path" : "plan");
    const weft_draw_options *how = options ? options : &defaults;
    weft_world              *world = plan->ir.world;
    wefti_draw_lane          own = {.events = NULL}, lanes[WEFTI_DRAW_RANKS] = {{.events = NULL}};
    bool                     together = !how->alone && world->size > 1;
    if (together && world->size > WEFTI_DRAW_RANKS)
        return wefti_fail(WEFT_E_UNSUPPORTED, "weft_plan_draw: the world has %d ranks, and %d are drawn at most; draw one alone", (int)world->size, WEFTI_DRAW_RANKS);
    weft_status status = wefti_draw_collect(plan, &own);
    if (!together) {
        if (status == WEFT_OK) status = draw_lanes(&own, 1, path, how);
    } else {
        status = wefti_agree(world, status, "drawing the plan");
        if (status == WEFT_OK) status = gather_lanes(world, &own, lanes);
        if (status == WEFT_OK && world->rank == 0) status = draw_lanes(lanes, world->size, path, how);
        status = wefti_agree(world, status, "drawing the plan");
    }
    for (int32_t r = 0; r < WEFTI_DRAW_RANKS; r++) wefti_draw_lane_release(&lanes[r]);
    wefti_draw_lane_release(&own);
    return status;
}

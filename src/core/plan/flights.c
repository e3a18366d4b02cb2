/* A run's collectives in flight: started in the order of the plan, landed in the order in which they end.
 *
 * Where the device's memory is the host's, an operation works on the plan's values themselves. Where it is not, the exported region has a
 * mirror in host memory: what is sent is first copied out beside the computing (the flight is *boarding*), the operation works on the
 * mirror, and what came is copied back when it lands; the device orders what it computes next after that copy. Nobody waits for a copy but
 * the host, where it has nothing else to do. Where the world has a group for the device's memory (NCCL), operations that it does work on the
 * values themselves again, beside the computing, and are not waited for but *joined*: the device goes on after them. Large messages go straight from and
 * to the device's memory where the wire reaches it: they board until what computes with that memory is done, and nothing is copied.
 *
 * SENDs and RECEIVEs never hold a run up where it starts them: their peer may be waiting for what comes after. Where the group takes no more
 * operations, or enough of them with this peer are on the way, they board like what is being copied, and take off when there is room. Of one
 * member's, and of each direction, so few fly at once that the others and the collectives find places.
 *
 * Invariants: flights are listed in the order of their starts, and take off in it among those that are matched by it: the collectives of a
 * group, the messages to a member, those from one. Two operations never share memory while both are in flight, for the planner keeps their
 * blocks apart. */
#include "core/plan/object.h"

enum {
    SHORT_WAIT_NS = 50000,  /* between looks at what still boards, and at other groups */
    POINTS_MOST = 32, /* messages that fly at once, of the 64 operations that a group takes unless it is told otherwise */
    POINTS_EACH = 4   /* with one member, in one direction */
};

void *wefti_plan_address(const weft_plan *plan, int32_t value) {
    int32_t buffer;
    int64_t offset;
    wefti_plan_locate(plan, &plan->ir.values[value], &buffer, &offset);
    return (char *)plan->buffers[buffer] + offset;
}

static wefti_collective_call call_of(const weft_plan *plan, const wefti_item *item) {
    wefti_collective_call call = wefti_ir_comm_call(&plan->ir, item);
    call.send = wefti_plan_address(plan, item->n_inputs ? item->inputs[0] : item->outputs[0]);
    call.receive = wefti_plan_address(plan, item->outputs[0]);
    if (call.kind == WEFTI_ALLREDUCE) { /* the list lies in one piece, from the first to the end of the last */
        int32_t last = item->inputs[item->n_inputs - 1];
        size_t  bytes = (size_t)((char *)wefti_plan_address(plan, last) - (char *)call.receive + wefti_value_bytes(&plan->ir.values[last]));
        call.count = bytes / weft_dtype_bytes(call.dtype);
    }
    return call;
}

/* Elements for each member, of rows; false where there are more than `rows`. */
static bool count_elements(const int32_t *counts, int32_t members, int64_t rows, int64_t elements, size_t *counts_out) {
    int64_t sum = 0;
    for (int32_t i = 0; i < members; i++) {
        if (counts[i] < 0) return false;
        sum += counts[i];
        counts_out[i] = (size_t)(counts[i] * elements);
    }
    return sum <= rows;
}

/* An EXCHANGE_ROWS by the counts that the plan has computed, in host memory. */
static weft_status count_rows(const weft_plan *plan, const wefti_item *item, const int32_t *counts, size_t *elements, wefti_collective_call *call) {
    const wefti_value *from = &plan->ir.values[item->inputs[0]], *to = &plan->ir.values[item->outputs[0]];
    int32_t            members = wefti_ir_group(&plan->ir, item)->size;
    int64_t            rows = from->shape.dim[0], room = to->shape.dim[0], row = 1;
    for (int32_t axis = 1; axis < from->shape.rank; axis++) row *= from->shape.dim[axis];
    if (!count_elements(counts, members, rows, row, elements) || !count_elements(counts + members, members, room, row, elements + members))
        return wefti_fail(WEFT_E_CORRUPT, "exchange_rows '%s': the counts of rows to and from %d ranks do not fit %lld rows and room for %lld", item->name, members,
                          (long long)rows, (long long)room);
    call->counts = elements;
    call->receive_counts = elements + members;
    return WEFT_OK;
}

static const wefti_item *item_of(const weft_plan *plan, int32_t c) { return &plan->ir.items[plan->ir.collectives[c].item]; }

/* Whether the wire moves it from or to the device's memory. */
static bool is_reached(const weft_plan *plan, int32_t c) {
    const wefti_plan_collective *collective = &plan->ir.collectives[c];
    return collective->point && (size_t)collective->bytes >= WEFTI_FOREIGN_LEAST_BYTES && wefti_arena_is_reached(plan->arena);
}

/* Whether the collective works in the mirror. */
static bool is_staged(const weft_plan *plan, int32_t c) {
    return !plan->ir.collectives[c].direct && wefti_arena_mirror(plan->arena) && !is_reached(plan, c);
}

static wefti_group *group_of(const weft_plan *plan, int32_t c) {
    return plan->ir.collectives[c].direct ? plan->ir.world->device_group : wefti_ir_group(&plan->ir, item_of(plan, c));
}

/* --- the mirror --- */

static void *mirrored(const weft_plan *plan, const void *memory) {
    return (char *)wefti_arena_mirror(plan->arena) + ((const char *)memory - (const char *)plan->buffers[WEFTI_BUFFER_EXPORTED]);
}

/* Bytes that a call reads here, and writes. */
static void extents(const weft_plan *plan, int32_t c, const wefti_collective_call *call, size_t *sent_out, size_t *received_out) {
    size_t bytes = call->count * weft_dtype_bytes(call->dtype), members = (size_t)wefti_ir_group(&plan->ir, item_of(plan, c))->size;
    *sent_out = call->kind == WEFTI_REDUCE_SCATTER || call->kind == WEFTI_ALLTOALL ? bytes * members : bytes;
    *received_out = call->kind == WEFTI_ALLGATHER || call->kind == WEFTI_ALLTOALL ? bytes * members : bytes;
    if (call->kind == WEFTI_ALLTOALL_V) { /* rows and their counts lie in one piece */
        const wefti_item *item = item_of(plan, c);
        const char       *counts = wefti_plan_address(plan, item->inputs[1]);
        *sent_out = (size_t)(counts - (const char *)call->send + wefti_value_bytes(&plan->ir.values[item->inputs[1]]));
        *received_out = (size_t)wefti_value_bytes(&plan->ir.values[item->outputs[0]]);
    }
    if (call->kind == WEFTI_RECEIVE) *sent_out = 0;
    if (call->kind == WEFTI_SEND) *received_out = 0;
}

/* Also for what only comes, or is not copied: a copy of nothing is over when those who still compute with the memory that it comes to are done. */
static weft_status board(weft_plan *plan, int32_t c) {
    wefti_device         *device = plan->ir.device;
    wefti_collective_call call = call_of(plan, item_of(plan, c));
    size_t                sent, received;
    extents(plan, c, &call, &sent, &received);
    if (is_reached(plan, c)) sent = 0;
    WEFTI_TRY(device->vtable->copy_out(device, mirrored(plan, call.send), call.send, sent, &plan->flights[c].ticket));
    plan->flights[c].copying = true;
    return WEFT_OK;
}

static weft_status unboard(weft_plan *plan, int32_t c) {
    wefti_device         *device = plan->ir.device;
    wefti_collective_call call = call_of(plan, item_of(plan, c));
    size_t                sent, received;
    extents(plan, c, &call, &sent, &received);
    return device->vtable->copy_in(device, call.receive, mirrored(plan, call.receive), received);
}

/* --- landing --- */

static void leave_list(weft_plan *plan, int32_t c) {
    int32_t before = -1;
    for (int32_t i = plan->first_flight; i != c; i = plan->flights[i].next) before = i;
    if (before < 0) plan->first_flight = plan->flights[c].next;
    else plan->flights[before].next = plan->flights[c].next;
    if (plan->last_flight == c) plan->last_flight = before;
}

/* Ends the flight of collective `c`, whose operation was just seen to be over, or never started. */
static void land(weft_plan *plan, int32_t c, weft_status status) {
    wefti_in_flight *flight = &plan->flights[c];
    flight->operation = NULL;
    flight->boarding = flight->copying = false;
    if (status == WEFT_OK && is_staged(plan, c)) status = unboard(plan, c);
    flight->status = status;
    leave_list(plan, c);
    wefti_trace_add(&plan->trace, (weft_trace_event){WEFT_TRACE_COLLECTIVE, plan->runs, c, item_of(plan, c)->name, plan->ir.collectives[c].bytes,
                                                     flight->begin_ns, plan->trace.events ? wefti_plan_now() : 0});
}

/* The oldest of a group that flies; -1 where all are boarding or there is none. */
static int32_t oldest_flying(const weft_plan *plan, const wefti_group *group) {
    for (int32_t c = plan->first_flight; c >= 0; c = plan->flights[c].next)
        if (plan->flights[c].operation && plan->flights[c].operation->group == group) return c;
    return -1;
}

static bool are_matched_alike(const weft_plan *plan, int32_t a, int32_t b) {
    const wefti_item *left = item_of(plan, a), *right = item_of(plan, b);
    if (group_of(plan, a) != group_of(plan, b) || plan->ir.collectives[a].point != plan->ir.collectives[b].point) return false;
    return !plan->ir.collectives[a].point || (left->op == right->op && left->attrs->comm.peer == right->attrs->comm.peer);
}

/* Whether those that are matched by their order with a listed flight have taken off before it, and few enough messages fly. */
static bool has_turn(const weft_plan *plan, int32_t c) {
    int32_t flying = 0, peers = group_of(plan, c)->size - 1, most = POINTS_MOST / (2 * peers);
    if (most > POINTS_EACH) most = POINTS_EACH;
    for (int32_t i = plan->first_flight; i != c; i = plan->flights[i].next) {
        if (!are_matched_alike(plan, i, c)) continue;
        if (!plan->flights[i].operation) return false;
        flying++;
    }
    return !plan->ir.collectives[c].point || flying == 0 || flying < most;
}

/* Starts the operation of a flight that is listed. WEFT_E_AGAIN: not its turn, too many in flight, or still being copied. */
static weft_status take_off(weft_plan *plan, int32_t c) {
    const wefti_item     *item = item_of(plan, c);
    wefti_in_flight      *flight = &plan->flights[c];
    wefti_collective_call call = call_of(plan, item);
    call.priority = plan->ir.collectives[c].priority;
    if (flight->copying) {
        WEFTI_TRY(plan->ir.device->vtable->copy_test(plan->ir.device, flight->ticket));
        flight->copying = false;
    }
    if (is_staged(plan, c)) {
        call.send = mirrored(plan, call.send);
        call.receive = mirrored(plan, call.receive);
    }
    call.foreign = is_reached(plan, c);
    if (!has_turn(plan, c)) return WEFT_E_AGAIN;
    if (flight->counts) {
        const void *counts = wefti_plan_address(plan, item->inputs[1]);
        WEFTI_TRY(count_rows(plan, item, is_staged(plan, c) ? mirrored(plan, counts) : counts, flight->counts, &call));
    }
    weft_status status = wefti_collective_start(group_of(plan, c), &call, &flight->operation);
    if (status == WEFT_OK) {
        flight->boarding = false;
        return WEFT_OK;
    }
    flight->operation = NULL;
    if (status != WEFT_E_AGAIN) return wefti_while(status, "starting %s '%s'", wefti_ops[item->op].name, item->name);
    if (oldest_flying(plan, group_of(plan, c)) < 0) return wefti_fail(WEFT_E_INTERNAL, "'%s': the group takes no operation, and none is in flight", item->name);
    return status;
}

/* Whether the flight of collective `c`, which flies, need not be looked at: an older one of its group, which ends first, was. */
static bool waits_in_line(const weft_plan *plan, int32_t c, const wefti_group *seen) {
    return plan->flights[c].operation->group == seen && !plan->ir.collectives[c].point;
}

/* --- for the runner --- */

void wefti_flights_progress(weft_plan *plan) {
    const wefti_group *seen = NULL;
    for (int32_t c = plan->first_flight, next; c >= 0 && plan->fault == WEFT_OK; c = next) {
        wefti_in_flight *flight = &plan->flights[c];
        next = flight->next;
        if (flight->boarding) {
            weft_status status = take_off(plan, c);
            if (status != WEFT_OK && status != WEFT_E_AGAIN) plan->fault = status;
            continue;
        }
        if (waits_in_line(plan, c, seen)) continue;
        weft_status status = wefti_collective_test(flight->operation);
        if (status == WEFT_E_AGAIN) {
            if (!plan->ir.collectives[c].point) seen = flight->operation->group;
            continue;
        }
        land(plan, c, status);
        if (flight->status != WEFT_OK) plan->fault = flight->status;
    }
}

static void list(weft_plan *plan, int32_t c) {
    if (plan->last_flight >= 0) plan->flights[plan->last_flight].next = c;
    else plan->first_flight = c;
    plan->last_flight = c;
}

weft_status wefti_flight_start(weft_plan *plan, int32_t c) {
    wefti_in_flight *flight = &plan->flights[c];
    flight->begin_ns = wefti_plan_now();
    flight->next = -1;
    flight->boarding = true;
    list(plan, c);
    if (is_staged(plan, c) || is_reached(plan, c)) return board(plan, c);
    for (;;) {
        weft_status status = take_off(plan, c);
        if (status == WEFT_OK || (status == WEFT_E_AGAIN && plan->ir.has_points)) return WEFT_OK;
        if (status != WEFT_E_AGAIN) return status;
        /* Too many in flight: the oldest has to end first; its own deadline bounds the wait. */
        int32_t oldest = oldest_flying(plan, group_of(plan, c));
        land(plan, oldest, wefti_collective_wait(plan->flights[oldest].operation, 0));
        WEFTI_TRY(plan->flights[oldest].status);
    }
}

static bool is_in_flight(const wefti_in_flight *flight) { return flight->operation || flight->boarding; }

/* Whether nothing but the group of collective `c` has to get on while that is waited for. */
static bool flies_alone(const weft_plan *plan, int32_t c) {
    if (is_staged(plan, c) || !plan->flights[c].operation) return false;
    for (int32_t i = plan->first_flight; i >= 0; i = plan->flights[i].next)
        if (!plan->flights[i].operation || plan->flights[i].operation->group != plan->flights[c].operation->group) return false;
    return true;
}

/* Until collective `c` has landed, with others still boarding behind it or before it. */
static void fly(weft_plan *plan, int32_t c) {
    const wefti_host *host = wefti_host_system();
    wefti_in_flight  *flight = &plan->flights[c];
    while (is_in_flight(flight) && plan->fault == WEFT_OK) {
        wefti_flights_progress(plan);
        if (!is_in_flight(flight) || plan->fault != WEFT_OK) break;
        int32_t flying = flight->operation ? c : oldest_flying(plan, group_of(plan, c));
        if (flying < 0) {
            host->yield(host->context);
            continue;
        }
        weft_status status = wefti_collective_wait(plan->flights[flying].operation, SHORT_WAIT_NS);
        if (status == WEFT_E_AGAIN) continue;
        land(plan, flying, status);
        if (plan->flights[flying].status != WEFT_OK && flying != c) plan->fault = plan->flights[flying].status;
    }
    if (plan->fault != WEFT_OK && flight->status == WEFT_OK) flight->status = plan->fault;
}

weft_status wefti_flight_wait(weft_plan *plan, int32_t c) {
    wefti_in_flight *flight = &plan->flights[c];
    if (is_in_flight(flight)) {
        uint64_t begin = wefti_plan_now();
        while (plan->ir.collectives[c].direct && flight->boarding && plan->fault == WEFT_OK) wefti_flights_progress(plan);
        if (plan->ir.collectives[c].direct && flight->operation) land(plan, c, plan->ir.world->device_group->engine->join(flight->operation));
        else if (flies_alone(plan, c)) land(plan, c, wefti_collective_wait(flight->operation, 0));
        else fly(plan, c);
        uint64_t end = wefti_plan_now();
        plan->wait_ns += end - begin;
        wefti_trace_add(&plan->trace, (weft_trace_event){WEFT_TRACE_WAIT, plan->runs, c, "", 0, begin, end});
    }
    if (flight->status == WEFT_OK && is_staged(plan, c)) return plan->ir.device->vtable->copy_join(plan->ir.device);
    return flight->status;
}

void wefti_flights_end(weft_plan *plan) {
    while (plan->first_flight >= 0) {
        int32_t      c = plan->first_flight;
        wefti_in_flight *flight = &plan->flights[c];
        land(plan, c, flight->operation ? wefti_collective_wait(flight->operation, 0) : WEFT_E_ABORTED);
    }
    if (wefti_arena_mirror(plan->arena)) (void)!plan->ir.device->vtable->copy_join(plan->ir.device);
}

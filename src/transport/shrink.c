/* Going on after a fault, and coming in place of a rank that is lost: those who are left gather (gather.h), and join a world of their own as ranks join any.
 *
 * Who is lost while they join ends the new world before it has begun, and those who are left gather again, under a higher epoch. What is under
 * way hangs on the lost world, which stays poisoned. Cost: that of opening a world, and two frames a rank. */
#include <stdio.h>
#include <string.h>

#include "transport/transport_inside.h"

/* For one who has said that it waits, and calls all in turn. */
#define WEFTI_NEWCOMER_NS (5 * WEFTI_SECOND_NS)

static weft_status can_shrink(transport_inside *lost) {
    wefti_transport *transport = &lost->transport;
    if (wefti_fault_status(transport->fault) == WEFT_OK)
        return wefti_fail(WEFT_E_STATE, "weft_world_shrink: nothing has happened to this world of %d rank%s; it is for worlds whose operations "
                          "end with a fault", (int)transport->size, transport->size == 1 ? "" : "s");
    if (lost->met_by_mpi || strcmp(transport->wire_name, "mpi") == 0)
        return wefti_fail(WEFT_E_UNSUPPORTED, "weft_world_shrink: MPI does not survive the death of a process: start the job again from its checkpoint, or "
                          "start it by weftrun or over another wire (%s)", transport->wire_name);
    if (wefti_fault_verdict(transport->fault) == WEFT_E_PEER && wefti_fault_rank(transport->fault) == transport->rank)
        return wefti_fail(WEFT_E_PEER, "weft_world_shrink: this rank, %d, was given up by the others, who go on without it: %s",
                          (int)transport->rank, wefti_fault_cause(transport->fault));
    if (lost->left_behind)
        return wefti_fail(WEFT_E_PEER, "weft_world_shrink: this rank, %d, was left behind before: more than half of those who were alive then did not come, "
                          "and may have gone on without it, and ended since", (int)transport->rank);
    for (int32_t rank = 0; rank < transport->size; rank++)
        if (!lost->door || (lost->doors && !lost->doors[lost->members[rank]].bytes))
            return wefti_fail(WEFT_E_UNSUPPORTED, "weft_world_shrink: rank %d could not open a door where the others would find it after a fault "
                              "(its log says why)", (int)(lost->door ? rank : transport->rank));
    return WEFT_OK;
}

/* The place in the new world: its rank 0 is met at its door. */
static weft_status take_place(const transport_inside *lost, const wefti_gathering *gathering, transport_inside *next) {
    wefti_place *place = &next->place;
    size_t       doors_bytes = (size_t)lost->seats * sizeof *next->doors, members_bytes = (size_t)gathering->size * sizeof *next->members;
    next->seat = lost->seat;
    next->seats = lost->seats;
    if (lost->doors) {
        WEFTI_TRY(wefti_alloc(doors_bytes, "the ranks' doors", &next->doors));
        memcpy(next->doors, lost->doors, doors_bytes);
    }
    next->heard_epoch = gathering->epoch;
    next->transport.size = gathering->size; /* of the members, should what follows fail */
    WEFTI_TRY(wefti_alloc(members_bytes, "seats", &next->members));
    memcpy(next->members, gathering->members, members_bytes);
    next->door = wefti_door_retain(lost->door);
    next->named_doors = lost->named_doors;
    next->takes_newcomers = lost->takes_newcomers;
    memcpy(next->wish, lost->wish, sizeof next->wish);
    next->transport.is_newcomer = !lost->transport.fault; /* it was in no world before */
    *place = lost->place;
    place->rank = gathering->rank;
    place->size = gathering->size;
    place->local_rank = place->local_size = -1;
    place->store_ports = 1;
    place->store_descriptor = place->rank == 0 ? wefti_door_socket(next->door) : -1;
    place->epoch = gathering->epoch;
    if (lost->doors) snprintf(place->store, sizeof place->store, "%s", wefti_socket_text(&lost->doors[gathering->members[0]]).text);
    next->transport.encrypts = place->encrypt && place->size > 1;
    return WEFT_OK;
}

static weft_status join_survivors(transport_inside *lost, const wefti_transport_options *options, const wefti_gathering *gathering) {
    WEFTI_TRY(wefti_transport_create(options, &lost->going.next));
    transport_inside *next = lost->going.next;
    next->calls = lost->going.calls;
    WEFTI_TRY(take_place(lost, gathering, next));
    weft_status status = wefti_transport_enter(next, options, lost->named_doors ? lost->wish : lost->transport.wire_name);
    if (status != WEFT_OK && next->control) wefti_transport_fail(&next->transport, status, weft_error_message());
    return status;
}

static void leave_next(transport_inside *lost) {
    if (lost->going.next) wefti_transport_close(&lost->going.next->transport);
    lost->going.next = NULL;
}

void wefti_transport_stop_going(transport_inside *lost) {
    leave_next(lost); /* it uses the others */
    wefti_gather_close(lost->going.gather);
    wefti_calls_close(lost->going.calls);
    wefti_calls_close(lost->going.announcing);
    wefti_transport_forget_starts(lost);
    lost->going = (wefti_transport_going){0};
}

/* Once: gathers, and joins those who came. */
static weft_status go_on(transport_inside *lost, const wefti_transport_options *options, const wefti_shrink_terms *terms, bool *joining_out) {
    const wefti_fault   *fault = lost->transport.fault;
    *joining_out = false;
    bool                 one_waits = wefti_fault_verdict(fault) == WEFT_E_PEER && wefti_fault_rank(fault) < 0; /* control_server.c */
    wefti_gathering      gathering;
    wefti_gather_options how = {.host = lost->transport.host, .seat = lost->seat, .seats = lost->seats, .door = lost->door, .calls = lost->going.calls,
                                .members = lost->members, .size = lost->transport.size,
                                .blamed = wefti_fault_verdict(fault) == WEFT_E_PEER ? wefti_fault_rank(fault) : -1,
                                .epoch = lost->heard_epoch, .least = terms->least, .patience_ns = terms->patience_ns,
                                .replacement_ns = lost->named_doors ? terms->replacement_ns : 0, .newcomers = one_waits,
                                .is_gone = wefti_transport_is_gone, .context = lost};
    WEFTI_TRY(wefti_transport_note_starts(lost));
    if (lost->going.starts) how.fence = wefti_transport_fence;
    if (one_waits && how.replacement_ns && how.replacement_ns < WEFTI_NEWCOMER_NS) how.replacement_ns = WEFTI_NEWCOMER_NS;
    WEFTI_TRY(wefti_gather_open(&how, &lost->going.gather));
    wefti_door_attend(lost->door, true);
    weft_status status = wefti_gather_run(lost->going.gather, &gathering);
    bool        lets_in = status == WEFT_OK && gathering.rank == 0; /* once more, at the same door, as their store */
    if (!lets_in) wefti_door_attend(lost->door, false);
    if (status == WEFT_OK) {
        *joining_out = true;
        lost->heard_epoch = gathering.epoch;
        status = join_survivors(lost, options, &gathering);
    } else if (wefti_gather_left_behind(lost->going.gather)) {
        lost->left_behind = true; /* for good: when those have ended too, nothing would tell that they went on */
    }
    if (lets_in) wefti_door_attend(lost->door, false);
    wefti_gather_close(lost->going.gather);
    lost->going.gather = NULL;
    wefti_transport_forget_starts(lost);
    return status;
}

static weft_status open_calls(transport_inside *lost, bool announcing, wefti_calls **calls_out) {
    return wefti_calls_open(&(wefti_calls_options){.host = lost->transport.host, .place = &lost->place, .network = lost->network, .seat = lost->seat,
                                                   .seats = lost->seats, .door = lost->door, .doors = lost->doors,
                                                   .most_bytes = WEFTI_GATHER_FRAME_BYTES, .announcing = announcing},
                            calls_out);
}

/* Of another one that was lost on the way. */
static bool is_of_peers(weft_status status) { return status == WEFT_E_PEER || status == WEFT_E_LINK || status == WEFT_E_TIMEOUT; }

/* What has come about is the caller's; the rest ends here. */
static void give_next(transport_inside *lost, weft_status status, wefti_transport **transport_out) {
    if (status == WEFT_OK) {
        *transport_out = &lost->going.next->transport;
        lost->going.next->calls = NULL;
        lost->going.next = NULL;
    }
    wefti_transport_stop_going(lost);
}

weft_status wefti_transport_shrink(wefti_transport *lost_transport, const wefti_transport_options *options, const wefti_shrink_terms *terms,
                                   wefti_transport **transport_out) {
    transport_inside       *lost = (transport_inside *)lost_transport;
    wefti_transport_options own = *options;
    weft_status             status;
    bool                    joining;
    *transport_out = NULL;
    WEFTI_TRY(can_shrink(lost));
    own.host = lost_transport->host;
    own.network = lost->network;
    own.own_wire = lost->own_wire;
    lost->takes_newcomers = lost->named_doors && terms->replacement_ns > 0;
    WEFTI_TRY(open_calls(lost, false, &lost->going.calls));
    int32_t tries = 2 * lost->seats; /* each time somebody was lost, or had not heard of it */
    do {
        leave_next(lost);
        status = go_on(lost, &own, terms, &joining);
    } while (joining && is_of_peers(status) && --tries > 0);
    give_next(lost, status, transport_out);
    return status;
}

/* --- a newcomer --- */

static wefti_door *open_door(void *context) {
    transport_inside *outside = context;
    if (outside->network) return outside->door = wefti_door_open_network(outside->network);
    wefti_socket_address address = outside->doors[outside->seat]; /* it may be tried again */
    outside->door = wefti_door_open(&outside->place, "", &address);
    return outside->door;
}

static void shut_door(void *context) {
    transport_inside *outside = context;
    wefti_door_release(outside->door);
    outside->door = NULL;
}

/* Once: finds those who wait for it, and joins them. */
static weft_status come_in(transport_inside *outside, const wefti_transport_options *options, bool *joining_out) {
    wefti_gathering      gathering;
    wefti_gather_options how = {.host = outside->transport.host, .seat = outside->seat, .seats = outside->seats, .calls = outside->going.calls,
                                .blamed = -1, .epoch = outside->heard_epoch, .least = 1, .patience_ns = outside->transport.timeout_ns,
                                .open_door = open_door, .shut_door = shut_door, .context = outside,
                                .announcing = outside->going.announcing};
    *joining_out = false;
    WEFTI_TRY(wefti_gather_open(&how, &outside->going.gather));
    weft_status status = wefti_gather_run_newcomer(outside->going.gather, &gathering);
    if (status == WEFT_OK) {
        *joining_out = true;
        outside->heard_epoch = gathering.epoch;
        status = join_survivors(outside, options, &gathering);
    }
    wefti_gather_close(outside->going.gather);
    outside->going.gather = NULL;
    return status;
}

weft_status wefti_transport_come_in(transport_inside *outside, const wefti_transport_options *options, wefti_transport **transport_out) {
    bool joining = false;
    outside->seat = outside->place.rank;
    outside->seats = outside->place.size;
    if (!outside->network) WEFTI_TRY(wefti_alloc((size_t)outside->seats * sizeof *outside->doors, "the ranks' doors", &outside->doors));
    WEFTI_TRY(wefti_transport_name_doors(outside));
    if (!outside->named_doors)
        return wefti_fail(WEFT_E_INVALID, "WEFT_REJOIN is set, but not where the other ranks are: set WEFT_DOORS to host:port of each rank's door, on every "
                          "rank from the start (weftrun --elastic does)");
    outside->takes_newcomers = true; /* it is one */
    WEFTI_TRY(open_calls(outside, false, &outside->going.calls));
    WEFTI_TRY(open_calls(outside, true, &outside->going.announcing));
    weft_status status;
    int32_t     tries = 2 * outside->seats;
    do {
        leave_next(outside);
        if (outside->door) shut_door(outside);
        status = come_in(outside, options, &joining);
    } while (joining && is_of_peers(status) && --tries > 0);
    give_next(outside, status, transport_out);
    return status;
}

/* Lanes: how message algorithms run without a thread or a schedule in memory.
 *
 * A lane runs rounds; in each it has up to `fan` sends and receives on the way. Its step function is called when all of
 * them are done, works on what came in, and queues the next round. A large operation has several lanes that take turns
 * at its segments, so that one lane's reduction overlaps with the others' transfers. Everything a lane needs was
 * allocated with the group.
 *
 * Between two ranks, the transfers of one lane happen in a fixed order under one tag, so tags need no round number:
 * [channel 8][group 10][epoch 6][sequence 20][step 20]. Sends and receives have a channel of their own.
 *
 * Invariant: a transfer that was posted is waited for before its buffer or struct is used again, also when the
 * operation has failed: then the group aborts the wire. */
#include <stddef.h>
#include <string.h>

#include "transport/coll.h"

#define SETTLE_NS (200 * WEFTI_MILLISECOND_NS)
#define TELL_NS (500 * WEFTI_MILLISECOND_NS)

uint64_t wefti_coll_tag(const coll_group *group, uint64_t sequence, uint32_t step) {
    return WEFTI_TAG_COLLECTIVE | (uint64_t)(group->id & 0x3ff) << 46 | (uint64_t)(group->epoch & 0x3f) << 40 |
           (sequence & 0xfffff) << 20 | (step & 0xfffff);
}

void wefti_coll_lane_begin(coll_operation *operation, int32_t index,
                           weft_status (*step)(coll_operation *operation, coll_lane *lane)) {
    coll_lane *lane = &operation->lanes[index];
    lane->step = step;
    lane->queued = lane->posted = lane->round = 0;
    lane->part_status = WEFT_OK;
    lane->index = index;
    lane->segment = (size_t)index;
    lane->finished = false;
    if (index >= operation->lane_count) operation->lane_count = index + 1;
}

static wefti_wire_op *next_transfer(coll_operation *operation, coll_lane *lane, uint32_t step) {
    wefti_wire_op *transfer = &lane->transfers[lane->queued++];
    memset(transfer, 0, sizeof *transfer);
    transfer->flags = WEFTI_WIRE_SILENT;
    transfer->tag = wefti_coll_tag(coll_group_of(operation), operation->sequence, step);
    if (wefti_collective_is_point(operation->call.kind)) transfer->tag |= WEFTI_TAG_POINT;
    return transfer;
}

void wefti_coll_lane_send(coll_operation *operation, coll_lane *lane, int32_t to, uint32_t step, const void *buffer,
                          size_t bytes) {
    wefti_wire_op *transfer = next_transfer(operation, lane, step);
    transfer->kind = WEFTI_WIRE_SEND;
    transfer->peer = coll_group_of(operation)->base.ranks[to];
    transfer->buffer = (void *)buffer;
    transfer->bytes = bytes;
    transfer->user = (void *)(intptr_t)to;
}

void wefti_coll_lane_recv(coll_operation *operation, coll_lane *lane, int32_t from, uint32_t step, void *buffer,
                          size_t bytes) {
    wefti_wire_op *transfer = next_transfer(operation, lane, step);
    transfer->kind = WEFTI_WIRE_RECV;
    transfer->peer = coll_group_of(operation)->base.ranks[from];
    transfer->buffer = buffer;
    transfer->bytes = bytes;
    transfer->user = (void *)(intptr_t)from;
}

static void take_piece(wefti_wire_op *transfer, const void *data, size_t offset, size_t bytes) {
    coll_lane *lane = transfer->piece_context, *first = lane - lane->index;
    coll_operation *operation = (coll_operation *)((uint8_t *)first - offsetof(coll_operation, lanes));
    weft_status status = lane->part(operation, lane, data, offset, bytes);
    if (lane->part_status == WEFT_OK) lane->part_status = status;
}

void wefti_coll_lane_recv_parts(coll_operation *operation, coll_lane *lane, int32_t from, uint32_t step, void *buffer, size_t bytes,
                                bool whole, weft_status (*part)(coll_operation *operation, coll_lane *lane, const void *data, size_t offset, size_t bytes)) {
    wefti_coll_lane_recv(operation, lane, from, step, buffer, bytes);
    if (!coll_in_parts(operation)) return;
    wefti_wire_op *transfer = &lane->transfers[lane->queued - 1];
    transfer->flags |= WEFTI_WIRE_PIECES | (whole ? WEFTI_WIRE_WHOLE : 0);
    transfer->piece = take_piece;
    transfer->piece_context = lane;
    lane->part = part;
}

/* Puts what is queued on the wire. WEFT_E_AGAIN where it is full or a peer is gone (which the fault object decides). */
static weft_status post_queued(coll_operation *operation, coll_lane *lane) {
    wefti_wire *wire = operation->base.group->wire;
    while (lane->posted < lane->queued) {
        wefti_wire_op *transfer = &lane->transfers[lane->posted];
        weft_status status = wire->ops->post(wire, transfer);
        if (status == WEFT_E_PEER) {
            wefti_coll_suspect(operation, (int32_t)(intptr_t)transfer->user);
            return WEFT_E_AGAIN;
        }
        if (status != WEFT_OK) return status;
        lane->posted++;
    }
    return WEFT_OK;
}

/* Whether a wrong length is better left to the exchange of headers, which says more. Where this rank has seen the header of its
 * neighbour, two others will find that theirs differ; they are given a moment to say so. Counts of an all-to-allv are in no
 * header. */
static bool headers_will_tell(coll_operation *operation, int32_t index) {
    const coll_group *group = coll_group_of(operation);
    if (operation->lane_count != COLL_LANES + 1) return false;
    if (!operation->lanes[COLL_LANES].finished) return true;
    if (operation->call.kind == WEFTI_ALLTOALL_V || wefti_collective_is_point(operation->call.kind)) return false;
    uint64_t now_ns = wefti_host_now(group->host);
    operation->waits_for = index;
    if (operation->wrong_ns == 0) operation->wrong_ns = now_ns;
    return now_ns - operation->wrong_ns < TELL_NS;
}

/* What has become of a transfer that is done. Headers and what carries them may be shorter than their buffer: their
 * length is looked at with their content. */
static weft_status look_at(coll_operation *operation, const wefti_wire_op *transfer) {
    int32_t index = (int32_t)(intptr_t)transfer->user;
    uint32_t step = (uint32_t)(transfer->tag & 0xfffff);
    bool carries_header = step == 0 || step > COLL_LANES;
    switch (transfer->status) {
    case WEFT_OK:
        if (transfer->kind != WEFTI_WIRE_RECV || carries_header || transfer->done_bytes == transfer->bytes)
            return WEFT_OK;
        break;
    case WEFT_E_MISMATCH: break;
    case WEFT_E_PEER:
    case WEFT_E_LINK: wefti_coll_suspect(operation, index); return WEFT_E_AGAIN;
    default: return wefti_fail(transfer->status, "a collective's transfer was ended by the wire");
    }
    if (headers_will_tell(operation, index)) return WEFT_E_AGAIN;
    return wefti_coll_wrong_length(operation, index, transfer->done_bytes, transfer->bytes);
}

/* WEFT_OK once all of a round's transfers are done and well. Looks at all of them, so that a peer that is gone is seen
 * also while another one is merely late. */
static weft_status round_done(coll_operation *operation, coll_lane *lane) {
    weft_status outcome = WEFT_OK;
    for (int32_t i = 0; i < lane->queued; i++) {
        const wefti_wire_op *transfer = &lane->transfers[i];
        if (!transfer->done) {
            operation->waits_for = (int32_t)(intptr_t)transfer->user;
            outcome = WEFT_E_AGAIN;
            continue;
        }
        weft_status status = look_at(operation, transfer);
        if (status == WEFT_E_AGAIN)
            outcome = status;
        else if (status != WEFT_OK)
            return status;
    }
    return outcome;
}

static weft_status lane_advance(coll_operation *operation, coll_lane *lane) {
    for (;;) {
        if (lane->posted < lane->queued) WEFTI_TRY(post_queued(operation, lane));
        WEFTI_TRY(round_done(operation, lane));
        WEFTI_TRY(lane->part_status);
        lane->queued = lane->posted = 0;
        coll_group_of(operation)->moves++;
        weft_status status = lane->step(operation, lane);
        if (status != WEFT_E_AGAIN || lane->queued == 0) return status;
    }
}

weft_status wefti_coll_lanes_advance(coll_operation *operation) {
    bool finished = true;
    for (int32_t i = 0; i < operation->lane_count; i++) { /* the last one first: it is the greeting, where there is one */
        coll_lane *lane = &operation->lanes[i == 0 ? operation->lane_count - 1 : i - 1];
        if (lane->finished) continue;
        weft_status status = lane_advance(operation, lane);
        if (status == WEFT_OK)
            lane->finished = true;
        else if (status == WEFT_E_AGAIN)
            finished = false;
        else
            return status;
    }
    return finished ? WEFT_OK : WEFT_E_AGAIN;
}

/* --- the exchange of headers --- */

static weft_status greet_step(coll_operation *operation, coll_lane *lane) {
    coll_group *group = coll_group_of(operation);
    int32_t size = coll_size(group), me = coll_index(group);
    int32_t right = (me + 1) % size, left = (me + size - 1) % size;
    uint8_t *in = operation->inbox + (size_t)group->fan * group->message_bytes;
    uint8_t *out = operation->outbox + (size_t)group->fan * group->message_bytes;
    bool run_ahead = operation->call.kind == WEFTI_BROADCAST && !wefti_coll_is_strict(operation);
    bool hears = !run_ahead || me != operation->call.root, tells = !run_ahead || right != operation->call.root;
    if (lane->round++ == 0) {
        coll_opening opening = wefti_coll_opening(operation);
        memcpy(out, &opening, sizeof opening);
        /* Room for a small message, so that a rank that took another algorithm is understood too. */
        if (hears) wefti_coll_lane_recv(operation, lane, left, (uint32_t)lane->segment, in, group->message_bytes);
        if (!tells) return hears ? WEFT_E_AGAIN : WEFT_OK;
        wefti_coll_lane_send(operation, lane, right, (uint32_t)lane->segment, out, sizeof opening);
        lane->transfers[lane->queued - 1].flags |= WEFTI_WIRE_MORE; /* goes along with the first segment */
        return WEFT_E_AGAIN;
    }
    return hears ? wefti_coll_compare_opening(operation, left, (const coll_opening *)in) : WEFT_OK;
}

void wefti_coll_greet(coll_operation *operation, uint32_t step) {
    for (int32_t i = operation->lane_count; i < COLL_LANES; i++) operation->lanes[i].finished = true;
    wefti_coll_lane_begin(operation, COLL_LANES, greet_step);
    operation->lanes[COLL_LANES].segment = step;
}

/* --- the end --- */

/* Whether the wire still has transfers; takes back the receives among them where it can. */
static bool holds_transfers(coll_group *group) {
    const wefti_wire_ops *ops = group->base.wire->ops;
    bool holds = false;
    if (group->asks && !group->question.done) (void)!ops->cancel(group->base.wire, &group->question);
    holds |= group->asks && !group->question.done;
    for (int32_t i = 0; i < group->in_flight; i++) {
        coll_operation *operation = &group->operations[i];
        for (int32_t k = 0; k < operation->lane_count; k++) {
            coll_lane *lane = &operation->lanes[k];
            for (int32_t t = 0; t < lane->posted; t++) {
                wefti_wire_op *transfer = &lane->transfers[t];
                if (!transfer->done && transfer->kind == WEFTI_WIRE_RECV)
                    (void)!ops->cancel(group->base.wire, transfer);
                holds |= !transfer->done;
            }
        }
    }
    return holds;
}

bool wefti_coll_settle(coll_group *group, bool (*holds)(coll_group *group)) {
    uint64_t until_ns = wefti_deadline_after(wefti_host_now(group->host), SETTLE_NS);
    while (holds(group)) {
        uint64_t now_ns = wefti_host_now(group->host);
        if (now_ns >= until_ns || wefti_wire_progress(group->base.wire, now_ns) != WEFT_OK) return false;
        group->host->yield(group->host->context);
    }
    return true;
}

void wefti_coll_lanes_end(coll_group *group) {
    if (!group->transfers || !holds_transfers(group)) return;
    /* A healthy wire has other users: it is not taken down for sends that only need a moment. */
    if (!group->failed && wefti_coll_settle(group, holds_transfers)) return;
    int32_t rank = wefti_fault_rank(group->base.fault);
    group->base.wire->ops->abort(group->base.wire, rank >= 0 ? WEFT_E_PEER : WEFT_E_ABORTED, rank);
}

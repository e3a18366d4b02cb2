/* The verbs wire: large transfers, as chunks of RDMA.
 *
 * A transfer is divided among the rails of its link, and each rail's part into chunks, of which a few are on the way at
 * once, so that what is said meanwhile need not wait for all of it. The last chunk of each part of a SEND goes with immediate
 * data, the receiver's token: when every part has said so, all bytes are there. A buffer that cannot be registered goes through the
 * stages, over the first rail. Transfers begin in order; those that a peer has cleared are bounded by its tokens, one-sided ones
 * by ours. Memory: none but the link's table. */
#include <arpa/inet.h>
#include <string.h>

#include "transport/wire_verbs.h"

#define SHARE_LEAST_BYTES ((size_t)256 << 10) /* below it a second rail costs more than it saves */

int32_t wefti_verbs_move_rails(const verbs_link *link, size_t bytes) {
    return bytes < SHARE_LEAST_BYTES ? 1 : link->rails;
}

static bool is_one_sided(verbs_move move) { return move == VERBS_MOVE_WRITE || move == VERBS_MOVE_READ; }

verbs_transfer *wefti_verbs_move_of(verbs_link *link, const wefti_wire_op *op) {
    verbs_transfer *transfer = &link->transfers[op->scratch[1] % VERBS_TRANSFERS];
    return transfer->op == op ? transfer : NULL;
}

/* What each rail carries of it. */
static void divide(const verbs_link *link, verbs_transfer *transfer, bool notifies) {
    size_t  bytes = transfer->op->bytes;
    int32_t rails = wefti_verbs_move_rails(link, bytes);
    bool    spread = transfer->memory && !notifies; /* a notice on the first rail would overtake chunks on another */
    size_t  share = spread ? wefti_align_up((bytes + (size_t)rails - 1) / (size_t)rails, 4096) : bytes, begin = 0;
    for (int32_t r = 0; r < rails; r++) {
        size_t end = begin + share < bytes ? begin + share : bytes;
        transfer->at[r] = begin;
        transfer->end[r] = end;
        /* Each rail says when its part is through, also an empty one. */
        if (end > begin || transfer->move == VERBS_MOVE_SEND) transfer->open |= 1u << r;
        begin = end;
    }
    if (transfer->move == VERBS_MOVE_STREAM) transfer->open = 1;
}

bool wefti_verbs_move_begin(verbs_wire *wire, int32_t peer, wefti_wire_op *op, verbs_move move, const verbs_head *where) {
    verbs_link *link = wire->links[peer];
    uint32_t    index = 0;
    bool        small = is_one_sided(move) && op->bytes <= VERBS_PAYLOAD_BYTES; /* a copy costs less than a registration */
    if (is_one_sided(move) && link->one_sided == VERBS_TRANSFERS - VERBS_TOKENS) return false;
    while (index < VERBS_TRANSFERS && link->transfers[index].op) index++;
    if (index == VERBS_TRANSFERS) return false;
    verbs_transfer *transfer = &link->transfers[index];
    *transfer = (verbs_transfer){.op = op, .move = move, .held = is_one_sided(move) && (op->flags & WEFTI_WIRE_NOTIFY)};
    op->scratch[1] = index;
    if (where) {
        transfer->address = where->address;
        transfer->id = where->id;
        memcpy(transfer->keys, where->keys, sizeof transfer->keys);
    } else {
        const wefti_told_region *region = &wire->regions.told[peer].slots[op->region - 1];
        transfer->address = region->address + op->offset;
        memcpy(transfer->keys, region->keys, sizeof transfer->keys);
    }
    if (move != VERBS_MOVE_STREAM && !small)
        transfer->memory = wefti_verbs_memory_take(wire, op, op->bytes, move == VERBS_MOVE_READ);
    divide(link, transfer, transfer->held);
    link->one_sided += is_one_sided(move);
    if (link->active_last)
        link->active_last->next = transfer;
    else
        link->active_first = transfer;
    link->active_last = transfer;
    return true;
}

/* One chunk of a rail's part; false: no room. */
static bool begin_chunk(verbs_wire *wire, int32_t peer, verbs_transfer *transfer, int32_t r) {
    verbs_link  *link = wire->links[peer];
    verbs_queue *queue = &link->queues[r];
    bool         reads = transfer->move == VERBS_MOVE_READ;
    size_t       left = transfer->end[r] - transfer->at[r];
    size_t       most = transfer->memory ? wire->rails[r].chunk_bytes : VERBS_PAYLOAD_BYTES, bytes = left < most ? left : most;
    uint8_t     *buffer = (uint8_t *)transfer->op->buffer + transfer->at[r], *from = buffer;
    if (queue->chunks >= VERBS_CHUNKS || !verbs_queue_has_room(queue, 1)) return false;
    bool staged = !transfer->memory && bytes > 0;
    if (staged) {
        if (!(from = wefti_verbs_stage(wire, link))) return false;
        if (!reads && !wefti_verbs_copy(wire, link, transfer->op, from, buffer, bytes)) return false;
    }
    uint32_t           local = transfer->memory ? transfer->memory->registered[r]->lkey : r == 0 ? link->arena_memory->lkey : 0;
    struct ibv_sge     where = {.addr = (uintptr_t)from, .length = (uint32_t)bytes, .lkey = local};
    bool               ends = transfer->move == VERBS_MOVE_SEND && bytes == left;
    struct ibv_send_wr request = {.sg_list = &where,
                                  .num_sge = bytes > 0,
                                  .opcode = reads ? IBV_WR_RDMA_READ : ends ? IBV_WR_RDMA_WRITE_WITH_IMM : IBV_WR_RDMA_WRITE,
                                  .imm_data = htonl(transfer->id),
                                  .wr.rdma = {.remote_addr = transfer->address + transfer->at[r], .rkey = transfer->keys[r]}};
    verbs_sent sent = {.transfer = transfer, .target = staged && reads ? buffer : NULL, .bytes = (uint32_t)bytes, .staged = staged};
    if (!wefti_verbs_request(wire, peer, r, &request, sent, true)) return false;
    transfer->pending++;
    transfer->at[r] += bytes;
    if (transfer->at[r] == transfer->end[r]) transfer->open &= ~(1u << r);
    return true;
}

/* One message of a stream; false: no room. */
static bool say_part(verbs_wire *wire, int32_t peer, verbs_transfer *transfer) {
    size_t     left = transfer->end[0] - transfer->at[0], bytes = left < VERBS_PAYLOAD_BYTES ? left : VERBS_PAYLOAD_BYTES;
    verbs_head head = {.kind = VERBS_DATA, .id = transfer->id, .tag = transfer->at[0]};
    if (!wefti_verbs_say_part(wire, peer, &head, transfer->op, transfer->at[0], bytes)) return false;
    transfer->at[0] += bytes;
    if (transfer->at[0] == transfer->end[0]) transfer->open = 0;
    return true;
}

void wefti_verbs_move_advance(verbs_wire *wire, int32_t peer) {
    verbs_link      *link = wire->links[peer];
    verbs_transfer **place = &link->active_first, *before = NULL;
    uint32_t         full = 0; /* rails that take no more now */
    while (*place && full != (1u << link->rails) - 1) {
        verbs_transfer *transfer = *place;
        while (transfer->move == VERBS_MOVE_STREAM && transfer->open)
            if (!say_part(wire, peer, transfer)) break;
        for (int32_t r = 0; r < link->rails && transfer->move != VERBS_MOVE_STREAM; r++)
            while ((transfer->open & 1u << r) && !(full & 1u << r))
                if (!begin_chunk(wire, peer, transfer, r)) full |= 1u << r;
        if (transfer->open) {
            before = transfer;
            place = &transfer->next;
            continue;
        }
        *place = transfer->next;
        if (link->active_last == transfer) link->active_last = before;
        wefti_verbs_move_settle(wire, peer, transfer);
    }
}

static void release(verbs_wire *wire, verbs_link *link, verbs_transfer *transfer) {
    wefti_verbs_memory_give(wire, transfer->memory);
    link->one_sided -= is_one_sided(transfer->move);
    transfer->op = NULL;
}

void wefti_verbs_move_settle(verbs_wire *wire, int32_t peer, verbs_transfer *transfer) {
    wefti_wire_op *op = transfer->op;
    if (transfer->open || transfer->pending || transfer->held) return;
    if (transfer->move == VERBS_MOVE_READ && transfer->memory && !wefti_verbs_arrived(wire, wire->links[peer], op)) return; /* the link ends, and this with it */
    release(wire, wire->links[peer], transfer);
    if (op->kind == WEFTI_WIRE_READ) wire->base.counts.received_bytes += op->bytes;
    wefti_wire_finish(&wire->base, op, WEFT_OK, peer, op->bytes);
}

void wefti_verbs_move_flush(verbs_wire *wire, int32_t peer, weft_status status, int32_t rank) {
    verbs_link *link = wire->links[peer];
    for (int i = 0; i < VERBS_TRANSFERS; i++) {
        wefti_wire_op *op = link->transfers[i].op;
        if (!op) continue;
        bool held = link->transfers[i].held; /* still in the list of what is to be said, and ends with that */
        release(wire, link, &link->transfers[i]);
        if (!held) wefti_wire_finish(&wire->base, op, status, rank, 0);
    }
    link->active_first = link->active_last = NULL;
}

/* The verbs wire: posting and sending.
 *
 * A message goes into a receive slot of the peer, for which a credit stands; it is copied, inline into the request or into a
 * stage, and so is done at once. A large one is offered, and written into the receiver's buffer when that has been posted
 * (wire_verbs_move.c). What is said on a link keeps its order; chunks of large transfers and answers to offers do not wait
 * for it. Credits come back with every head; where nothing is said the other way, a message of their own brings them, for
 * which the last credit is kept: so that two ends that send and have no credit left never wait for each other. */
#include <errno.h>
#include <string.h>

#include "transport/wire_verbs.h"

/* What an operation does next; in scratch[3]. scratch[0] is its token, or the peer's. */
typedef enum verbs_step { STEP_MESSAGE, STEP_OFFER, STEP_WRITE, STEP_NOTICE, STEP_READ } verbs_step;

/* --- saying --- */

bool wefti_verbs_request(verbs_wire *wire, int32_t peer, int32_t rail, struct ibv_send_wr *request, verbs_sent sent, bool aloud) {
    verbs_link         *link = wire->links[peer];
    verbs_queue        *queue = &link->queues[rail];
    struct ibv_send_wr *bad = NULL;
    aloud = aloud || queue->silent + 1 >= VERBS_SILENT_MOST;
    request->wr_id = (uint64_t)peer << 32 | queue->posted;
    if (aloud) request->send_flags |= IBV_SEND_SIGNALED;
    int error = wire->api->post_send(queue->qp, request, &bad);
    if (error == ENOMEM || error == EAGAIN) return false; /* full, whatever we counted */
    if (error) {
        wefti_verbs_break(link, false, "%s refuses a request: %s", wire->rails[rail].name, strerror(error));
        return false;
    }
    queue->sent[queue->posted++ % VERBS_QUEUE] = sent;
    queue->silent = aloud ? 0 : queue->silent + 1;
    queue->chunks += sent.transfer != NULL;
    link->stage_posted += sent.staged;
    return true;
}

uint8_t *wefti_verbs_stage(const verbs_wire *wire, const verbs_link *link) {
    if (link->stage_posted - link->stage_retired == wire->stages) return NULL;
    return link->arena + (size_t)(wire->slots + wire->tokens + link->stage_posted % wire->stages) * VERBS_SLOT_BYTES;
}

static size_t head_bytes(verbs_kind kind) {
    return kind == VERBS_MESSAGE || kind == VERBS_DATA ? VERBS_SHORT_BYTES : sizeof(verbs_head);
}

/* Whether a message of so many bytes, head included, can go now. */
static bool can_say(const verbs_wire *wire, const verbs_link *link, verbs_kind kind, size_t bytes) {
    uint32_t kept = kind == VERBS_CREDIT || kind == VERBS_BYE ? 0 : 1;
    return link->credits > kept && !link->broken && verbs_queue_has_room(&link->queues[0], 1) &&
           (bytes <= wire->inline_bytes || wefti_verbs_stage(wire, link));
}

bool wefti_verbs_say(verbs_wire *wire, int32_t peer, const verbs_head *head) { return wefti_verbs_say_part(wire, peer, head, NULL, 0, 0); }

bool wefti_verbs_say_part(verbs_wire *wire, int32_t peer, const verbs_head *head, const wefti_wire_op *op, size_t first, size_t bytes) {
    verbs_link *link = wire->links[peer];
    uint8_t     small[VERBS_INLINE_BYTES];
    size_t      before = head_bytes((verbs_kind)head->kind), total = before + bytes;
    bool        inlined = total <= wire->inline_bytes;
    if (!can_say(wire, link, (verbs_kind)head->kind, total)) return false;
    uint8_t   *from = inlined ? small : wefti_verbs_stage(wire, link);
    verbs_head told = *head;
    told.credits = (uint16_t)link->owed;
    memcpy(from, &told, before);
    if (bytes && !wefti_verbs_copy(wire, link, op, from + before, (const uint8_t *)op->buffer + first, bytes)) return false;
    struct ibv_sge     where = {.addr = (uintptr_t)from, .length = (uint32_t)total, .lkey = link->arena_memory->lkey};
    struct ibv_send_wr request = {.sg_list = &where, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = inlined ? IBV_SEND_INLINE : 0};
    if (!wefti_verbs_request(wire, peer, 0, &request, (verbs_sent){.staged = !inlined}, head->kind == VERBS_BYE)) return false;
    link->credits--;
    link->owed = 0;
    return true;
}

/* --- what is to be said --- */

/* The next steps of each list: true when nothing is left that could go, false where there is no room. */

static bool tell_news(verbs_wire *wire, int32_t peer) {
    verbs_link *link = wire->links[peer];
    uint32_t    told = link->told;
    for (const wefti_region_news *news; (news = wefti_regions_next_news(&wire->regions, &told)); link->told = told) {
        verbs_head head = {.kind = news->gone ? VERBS_WITHDRAWN : VERBS_REGION, .id = news->id};
        if (!news->gone) {
            const wefti_own_region *own = wire->regions.own[news->id - 1];
            const verbs_memory     *memory = own->extra;
            head.bytes = own->region.size_bytes;
            head.address = (uintptr_t)own->region.base;
            for (int32_t r = 0; r < wire->rail_count; r++) head.keys[r] = memory->registered[r]->rkey;
        }
        if (!wefti_verbs_say(wire, peer, &head)) return false;
    }
    link->told = told;
    return true;
}

static verbs_incoming *free_incoming(verbs_wire *wire, verbs_link *link) {
    for (uint32_t i = 0; i < wire->tokens; i++)
        if (!link->incoming[i].op) return &link->incoming[i];
    return NULL;
}

/* Clears a receive, or refuses what is too long for it; false: no room, or all tokens are out. */
static bool grant(verbs_wire *wire, int32_t peer, wefti_wire_op *op) {
    verbs_link *link = wire->links[peer];
    if (!can_say(wire, link, VERBS_CLEAR, sizeof(verbs_head))) return false;
    verbs_head head = {.kind = VERBS_REFUSE, .token = op->scratch[0]};
    if (op->done_bytes > op->bytes) {
        if (!wefti_verbs_say(wire, peer, &head)) return false;
        wefti_op_remove(&link->grants, op);
        wefti_wire_finish_recv(&wire->base, op, peer, op->done_bytes);
        return true;
    }
    verbs_incoming *incoming = free_incoming(wire, link);
    if (!incoming) return false;
    verbs_memory *memory = wefti_verbs_memory_take(wire, op, op->done_bytes, true);
    head.kind = memory ? VERBS_CLEAR : VERBS_CLEAR_DATA;
    head.id = (incoming->turn + 1) << 8 | (uint32_t)(incoming - link->incoming);
    head.address = memory ? (uintptr_t)op->buffer : 0;
    for (int32_t r = 0; memory && r < wire->rail_count; r++) head.keys[r] = memory->registered[r]->rkey;
    if (!wefti_verbs_say(wire, peer, &head)) {
        wefti_verbs_memory_give(wire, memory);
        return false;
    }
    wefti_op_remove(&link->grants, op);
    *incoming = (verbs_incoming){.op = op, .memory = memory, .turn = incoming->turn + 1, .streams = !memory,
                                 .parts = wefti_verbs_move_rails(link, op->done_bytes)};
    return true;
}

static void finish(verbs_wire *wire, verbs_link *link, wefti_wire_op *op) {
    wefti_op_remove(&link->out_ops, op);
    wefti_wire_finish(&wire->base, op, WEFT_OK, op->peer, op->bytes);
}

/* A write with a notice: the notice follows the last chunk on the same queue pair, and so is heard after it. */
static bool send_write(verbs_wire *wire, int32_t peer, wefti_wire_op *op) {
    verbs_link *link = wire->links[peer];
    if (op->scratch[3] == STEP_WRITE) {
        if (op->bytes && !wefti_verbs_move_begin(wire, peer, op, VERBS_MOVE_WRITE, NULL)) return false;
        op->scratch[3] = STEP_NOTICE;
        wefti_verbs_move_advance(wire, peer);
    }
    verbs_transfer *transfer = op->bytes ? wefti_verbs_move_of(link, op) : NULL;
    if (transfer && transfer->open) return false;
    verbs_head head = {.kind = VERBS_NOTICE, .tag = op->tag, .bytes = op->bytes};
    if (!wefti_verbs_say(wire, peer, &head)) return false;
    if (!transfer) {
        finish(wire, link, op);
        return true;
    }
    wefti_op_remove(&link->out_ops, op);
    transfer->held = false;
    wefti_verbs_move_settle(wire, peer, transfer);
    return true;
}

static bool send_operation(verbs_wire *wire, int32_t peer, wefti_wire_op *op) {
    verbs_link *link = wire->links[peer];
    verbs_head  head = {.kind = VERBS_MESSAGE, .tag = op->tag};
    if (op->scratch[3] == STEP_MESSAGE) {
        if (!wefti_verbs_say_part(wire, peer, &head, op, 0, op->bytes)) return false;
        finish(wire, link, op);
        return true;
    }
    if (op->scratch[3] != STEP_OFFER) return send_write(wire, peer, op);
    head.kind = VERBS_OFFER;
    head.bytes = op->bytes;
    head.token = op->scratch[0] = wire->last_token + 1;
    if (!wefti_verbs_say(wire, peer, &head)) return false;
    wire->last_token++;
    wefti_op_remove(&link->out_ops, op);
    wefti_op_append(&link->offered, op);
    return true;
}

static void begin_bulk(verbs_wire *wire, int32_t peer) {
    verbs_link *link = wire->links[peer];
    for (wefti_wire_op *op; (op = link->bulk_ops.first);) {
        verbs_move move = op->kind == WEFTI_WIRE_READ ? VERBS_MOVE_READ : VERBS_MOVE_WRITE;
        if (!wefti_verbs_move_begin(wire, peer, op, move, NULL)) return;
        wefti_op_remove(&link->bulk_ops, op);
    }
}

bool wefti_verbs_has_output(const verbs_wire *wire, const verbs_link *link) {
    return link->out_ops.first || link->grants.first || link->bulk_ops.first || link->active_first ||
           link->told < wire->regions.log_count || link->owed >= wire->slots / 2;
}

void wefti_verbs_advance(verbs_wire *wire, int32_t peer) {
    verbs_link *link = wire->links[peer];
    if (!link || peer == wire->base.wire.rank || link->state != WEFTI_LINK_UP || link->broken || wire->base.aborted) return;
    if (link->told == wire->regions.log_count || tell_news(wire, peer)) {
        while (link->grants.first && grant(wire, peer, link->grants.first)) continue;
        while (link->out_ops.first && send_operation(wire, peer, link->out_ops.first)) continue;
    }
    if (link->bulk_ops.first) begin_bulk(wire, peer);
    if (link->active_first) wefti_verbs_move_advance(wire, peer);
    if (link->owed >= wire->slots / 2) wefti_verbs_say(wire, peer, &(verbs_head){.kind = VERBS_CREDIT});
}

/* --- posting --- */

void wefti_verbs_take_offer(verbs_wire *wire, int32_t peer, wefti_wire_op *op, uint64_t bytes, uint64_t token) {
    op->done_peer = peer;
    op->done_bytes = bytes;
    op->scratch[0] = token;
    wefti_op_append(&wire->links[peer]->grants, op);
}

static weft_status fail_link(const verbs_wire *wire, int32_t peer) {
    const verbs_link *link = wire->links[peer];
    return wefti_wire_fail_link(&wire->base.wire, peer, link ? link->state : WEFTI_LINK_NONE);
}

static weft_status post_recv(verbs_wire *wire, wefti_wire_op *op) {
    wefti_match   *match = &wire->base.match;
    wefti_message *message = wefti_match_posted(match, op);
    if (!message) {
        const verbs_link *link = op->peer == WEFTI_WIRE_ANY_PEER ? NULL : wire->links[op->peer];
        if (op->peer == WEFTI_WIRE_ANY_PEER || (link && link->state == WEFTI_LINK_UP)) return WEFT_OK;
        wefti_op_remove(&match->posted[op->peer], op);
        return fail_link(wire, op->peer);
    }
    int32_t     peer = message->peer;
    verbs_link *link = wire->links[peer];
    if (peer == wire->base.wire.rank) {
        wefti_self_take(&wire->base, &link->offered, op, message);
        return WEFT_OK;
    }
    if (message->kind == VERBS_NOTICE) {
        wefti_wire_finish(&wire->base, op, WEFT_OK, peer, message->bytes);
    } else if (message->kind == VERBS_MESSAGE) {
        size_t fits = message->bytes < op->bytes ? message->bytes : op->bytes;
        if (fits && !wefti_verbs_copy(wire, link, op, op->buffer, message->data, fits)) wefti_wire_finish(&wire->base, op, WEFT_E_DEVICE, peer, 0);
        else wefti_wire_finish_recv(&wire->base, op, peer, message->bytes);
    } else if (link->state == WEFTI_LINK_UP) {
        wefti_verbs_take_offer(wire, peer, op, message->bytes, message->token[0]);
        wefti_verbs_advance(wire, peer);
    } else {
        wefti_wire_finish(&wire->base, op, WEFT_E_PEER, peer, 0);
    }
    wefti_match_free(match, message);
    return WEFT_OK;
}

static weft_status post_to_self(verbs_wire *wire, wefti_wire_op *op) {
    uint8_t *memory = op->kind == WEFTI_WIRE_SEND ? NULL : wefti_regions_memory(&wire->regions, op->region, op->offset, op->bytes);
    const wefti_own_region *own = memory ? wire->regions.own[op->region - 1] : NULL;
    if (own && own->extra && ((const verbs_memory *)own->extra)->foreign)
        return wefti_fail(WEFT_E_UNSUPPORTED, "verbs: region %u is a device's memory, which only peers reach by the wire", (unsigned)op->region);
    return op->kind == WEFTI_WIRE_SEND ? wefti_self_send(&wire->base, &wire->links[op->peer]->offered, op)
                                       : wefti_self_one_sided(&wire->base, memory, op);
}

/* Sends at once where nothing is before it. */
static void post_to_peer(verbs_wire *wire, verbs_link *link, wefti_wire_op *op) {
    bool notifies = op->kind == WEFTI_WIRE_WRITE && (op->flags & WEFTI_WIRE_NOTIFY);
    if (op->kind != WEFTI_WIRE_SEND && !notifies && op->bytes == 0) {
        wefti_wire_finish(&wire->base, op, WEFT_OK, op->peer, 0);
        return;
    }
    op->scratch[3] = op->kind == WEFTI_WIRE_READ    ? STEP_READ
                     : op->kind == WEFTI_WIRE_WRITE ? STEP_WRITE
                     : op->bytes > VERBS_PAYLOAD_BYTES ? STEP_OFFER
                                                       : STEP_MESSAGE;
    wefti_op_append(op->kind == WEFTI_WIRE_SEND || notifies ? &link->out_ops : &link->bulk_ops, op);
    wefti_verbs_advance(wire, op->peer);
}

weft_status wefti_verbs_post(wefti_wire *self, wefti_wire_op *op) {
    verbs_wire *wire = (verbs_wire *)self;
    WEFTI_TRY(wefti_wire_check_post(&wire->base, op));
    verbs_link *link = op->peer == WEFTI_WIRE_ANY_PEER ? NULL : wire->links[op->peer];
    if (link && link->state == WEFTI_LINK_CONNECTING) return WEFT_E_AGAIN;
    if (op->kind == WEFTI_WIRE_RECV) return post_recv(wire, op);
    if (!link || link->state != WEFTI_LINK_UP) return fail_link(wire, op->peer);
    if (op->kind != WEFTI_WIRE_SEND) WEFTI_TRY(wefti_regions_check(&wire->regions, op, link->state));
    if (op->peer == self->rank) {
        weft_status status = post_to_self(wire, op);
        if (status != WEFT_OK) return status;
    } else {
        post_to_peer(wire, link, op);
    }
    wire->base.counts.sent_messages++;
    wire->base.counts.sent_bytes += op->bytes;
    return WEFT_OK;
}

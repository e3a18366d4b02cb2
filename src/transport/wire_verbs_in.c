/* The verbs wire: completions, and what peers say.
 *
 * Send requests complete in order, so one completion retires all before it. A message is dealt with where it lies in its
 * receive slot, which then goes back to the queue pair and is owed to the peer as a credit; where there is no room to keep a
 * message aside, its slot and those after it wait, and the peer runs out of credits. Everything in a head is checked; nonsense
 * ends the link, as does any completion that failed. */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "transport/wire_verbs.h"

typedef enum taken { TAKEN, LATER, NONSENSE } taken;

enum { COMPLETIONS = 16, ROUNDS_A_POLL = 8 };

/* --- what went wrong --- */

void wefti_verbs_break(verbs_link *link, bool consequence, const char *cause, ...) {
    if (link->broken && (consequence || link->blamed)) return;
    link->broken = true;
    link->blamed = !consequence;
    va_list arguments;
    va_start(arguments, cause);
    vsnprintf(link->cause, sizeof link->cause, cause, arguments);
    va_end(arguments);
}

/* A failed completion in words that say what to look at. */
static const char *words_of(enum ibv_wc_status status) {
    switch (status) {
    case IBV_WC_RETRY_EXC_ERR: return "no answer to what was sent (transport retries exceeded): is the network gone?";
    case IBV_WC_RNR_RETRY_EXC_ERR: return "the peer has no receive for what was sent (receiver-not-ready retries exceeded)";
    case IBV_WC_REM_ACCESS_ERR: return "the peer's device refuses access to its memory";
    case IBV_WC_REM_INV_REQ_ERR: return "the peer's device refuses the request";
    case IBV_WC_REM_OP_ERR: return "the peer's device failed";
    case IBV_WC_LOC_PROT_ERR: return "this device may not access the buffer";
    case IBV_WC_LOC_LEN_ERR: return "a message is longer than its buffer";
    case IBV_WC_LOC_QP_OP_ERR: return "this device's queue pair failed";
    case IBV_WC_WR_FLUSH_ERR: return "the queue pair was shut down";
    case IBV_WC_FATAL_ERR: return "this device failed";
    default: return "a request failed";
    }
}

/* --- what a message asks for --- */

static wefti_wire_op *find_offered(const verbs_link *link, uint64_t token) {
    wefti_wire_op *op = link->offered.first;
    while (op && op->scratch[0] != token) op = op->next;
    return op;
}

static verbs_incoming *find_incoming(const verbs_wire *wire, verbs_link *link, uint32_t id) {
    uint32_t index = id & 0xff;
    if (index >= wire->tokens || !link->incoming[index].op || (link->incoming[index].turn & 0xffffff) != id >> 8) return NULL;
    return &link->incoming[index];
}

static taken take_message(verbs_wire *wire, int32_t peer, const verbs_head *head, const uint8_t *payload, size_t bytes) {
    wefti_wire_op *op = wefti_match_arrived(&wire->base.match, peer, head->tag);
    if (op) {
        size_t fits = bytes < op->bytes ? bytes : op->bytes;
        if (fits && !wefti_verbs_copy(wire, wire->links[peer], op, op->buffer, payload, fits)) wefti_wire_finish(&wire->base, op, WEFT_E_DEVICE, peer, 0);
        else wefti_wire_finish_recv(&wire->base, op, peer, bytes);
    } else {
        wefti_message *message = wefti_match_keep(&wire->base.match, peer, head->tag, bytes, bytes);
        if (!message) return LATER;
        message->kind = VERBS_MESSAGE;
        message->filled = bytes;
        if (bytes) memcpy(message->data, payload, bytes);
    }
    wire->base.counts.received_messages++;
    wire->base.counts.received_bytes += bytes;
    return TAKEN;
}

/* OFFER and NOTICE: what matters is elsewhere. */
static taken take_announcement(verbs_wire *wire, int32_t peer, const verbs_head *head) {
    wefti_wire_op *op = wefti_match_arrived(&wire->base.match, peer, head->tag);
    if (op && head->kind == VERBS_OFFER) {
        wefti_verbs_take_offer(wire, peer, op, head->bytes, head->token);
    } else if (op) {
        wefti_wire_finish(&wire->base, op, WEFT_OK, peer, head->bytes);
    } else {
        wefti_message *message = wefti_match_keep(&wire->base.match, peer, head->tag, head->bytes, 0);
        if (!message) return LATER;
        message->kind = head->kind;
        message->token[0] = head->token;
    }
    wire->base.counts.received_messages++;
    wire->base.counts.received_bytes += head->bytes;
    return TAKEN;
}

static taken take_answer(verbs_wire *wire, int32_t peer, const verbs_head *head) {
    verbs_link    *link = wire->links[peer];
    wefti_wire_op *op = find_offered(link, head->token);
    if (!op) return NONSENSE;
    if (head->kind == VERBS_REFUSE) {
        wefti_op_remove(&link->offered, op);
        wefti_wire_finish(&wire->base, op, WEFT_OK, peer, op->bytes);
        return TAKEN;
    }
    wefti_op_remove(&link->offered, op);
    if (wefti_verbs_move_begin(wire, peer, op, head->kind == VERBS_CLEAR ? VERBS_MOVE_SEND : VERBS_MOVE_STREAM, head)) return TAKEN;
    wefti_op_append(&link->offered, op); /* to be flushed with the rest */
    return NONSENSE;                     /* more than its tokens allow */
}

static void incoming_done(verbs_wire *wire, int32_t peer, verbs_incoming *incoming) {
    wefti_wire_op *op = incoming->op;
    if (incoming->memory && !wefti_verbs_arrived(wire, wire->links[peer], op)) return; /* the link ends, and this with it */
    wefti_verbs_memory_give(wire, incoming->memory);
    incoming->op = NULL;
    incoming->memory = NULL;
    wefti_wire_finish_recv(&wire->base, op, peer, op->done_bytes);
}

static taken take_data(verbs_wire *wire, int32_t peer, const verbs_head *head, const uint8_t *payload, size_t bytes) {
    verbs_incoming *incoming = find_incoming(wire, wire->links[peer], head->id);
    if (!incoming || !incoming->streams || head->tag != incoming->got || bytes > incoming->op->done_bytes - incoming->got)
        return NONSENSE;
    if (!wefti_verbs_copy(wire, wire->links[peer], incoming->op, (uint8_t *)incoming->op->buffer + incoming->got, payload, bytes)) return TAKEN;
    incoming->got += bytes;
    if (incoming->got == incoming->op->done_bytes) incoming_done(wire, peer, incoming);
    return TAKEN;
}

static taken take_region(verbs_wire *wire, int32_t peer, const verbs_head *head) {
    wefti_told_region what = {.size_bytes = head->bytes,
                              .address = head->address,
                              .state = head->kind == VERBS_REGION ? WEFTI_REGION_KNOWN : WEFTI_REGION_GONE};
    memcpy(what.keys, head->keys, sizeof what.keys);
    return wefti_regions_hear(&wire->regions, peer, head->id, &what) ? TAKEN : NONSENSE;
}

static taken take_slot(verbs_wire *wire, int32_t peer, const verbs_arrival *arrival) {
    verbs_link    *link = wire->links[peer];
    const uint8_t *slot = link->arena + (size_t)arrival->slot * VERBS_SLOT_BYTES;
    verbs_head     head = {0};
    memcpy(&head, slot, arrival->bytes < sizeof head ? arrival->bytes : sizeof head);
    bool brief = head.kind == VERBS_MESSAGE || head.kind == VERBS_DATA;
    if (!brief && arrival->bytes != sizeof head) return NONSENSE;
    if (head.kind == VERBS_BYE) {
        link->heard_bye = true;
        return TAKEN;
    }
    if (wire->base.aborted) return TAKEN;
    switch ((verbs_kind)head.kind) {
    case VERBS_MESSAGE: return take_message(wire, peer, &head, slot + VERBS_SHORT_BYTES, arrival->bytes - VERBS_SHORT_BYTES);
    case VERBS_DATA: return take_data(wire, peer, &head, slot + VERBS_SHORT_BYTES, arrival->bytes - VERBS_SHORT_BYTES);
    case VERBS_OFFER:
    case VERBS_NOTICE: return take_announcement(wire, peer, &head);
    case VERBS_CLEAR:
    case VERBS_CLEAR_DATA:
    case VERBS_REFUSE: return take_answer(wire, peer, &head);
    case VERBS_REGION:
    case VERBS_WITHDRAWN: return take_region(wire, peer, &head);
    case VERBS_CREDIT:
    case VERBS_BYE: return TAKEN;
    }
    return NONSENSE;
}

void wefti_verbs_handle(verbs_wire *wire, int32_t peer) {
    verbs_link *link = wire->links[peer];
    /* What came before a link broke is still received. */
    while (link->handled != link->arrived && !link->heard_bye) {
        const verbs_arrival *arrival = &link->arrivals[link->handled % VERBS_ARRIVALS];
        taken                result = take_slot(wire, peer, arrival);
        if (result == LATER) return;
        link->handled++;
        link->owed++;
        if (result == NONSENSE) {
            wefti_verbs_break(link, false, "it sent a message that is none (kind %u)",
                              link->arena[(size_t)arrival->slot * VERBS_SLOT_BYTES]);
            link->handled = link->arrived; /* nor is what follows to be trusted */
        } else if (!link->broken && !wefti_verbs_slot_post(wire, link, peer, 0, arrival->slot)) {
            wefti_verbs_break(link, false, "%s takes no receive", wire->rails[0].name);
        }
    }
}

/* --- completions --- */

static void part_is_in(verbs_wire *wire, int32_t peer, uint32_t id) {
    verbs_link     *link = wire->links[peer];
    verbs_incoming *incoming = find_incoming(wire, link, id);
    if (wire->base.aborted) return;
    if (!incoming || incoming->streams) {
        wefti_verbs_break(link, false, "it ended a transfer that was not begun");
        return;
    }
    if (--incoming->parts == 0) incoming_done(wire, peer, incoming);
}

static void message_is_in(verbs_link *link, uint32_t slot, uint32_t bytes) {
    verbs_head head;
    if (bytes < VERBS_SHORT_BYTES || bytes > VERBS_SLOT_BYTES || link->arrived - link->handled == VERBS_ARRIVALS) {
        wefti_verbs_break(link, false, "it sent a message of %u bytes", bytes);
        return;
    }
    memcpy(&head, link->arena + (size_t)slot * VERBS_SLOT_BYTES, VERBS_SHORT_BYTES);
    link->credits += head.credits; /* at once: also while messages before it wait */
    link->arrivals[link->arrived++ % VERBS_ARRIVALS] = (verbs_arrival){slot, bytes};
    if (link->credits > VERBS_SLOTS) wefti_verbs_break(link, false, "it gave back %u credits too many", link->credits - VERBS_SLOTS);
}

static void receive_done(verbs_wire *wire, int32_t peer, int32_t rail, const struct ibv_wc *done) {
    verbs_link *link = wire->links[peer];
    uint32_t    slot = (uint32_t)done->wr_id;
    if (done->opcode == IBV_WC_RECV_RDMA_WITH_IMM) {
        part_is_in(wire, peer, ntohl(done->imm_data));
        if (!wefti_verbs_slot_post(wire, link, peer, rail, slot))
            wefti_verbs_break(link, false, "%s takes no receive", wire->rails[rail].name);
    } else if (rail == 0) {
        message_is_in(link, slot, done->byte_len);
    } else {
        wefti_verbs_break(link, false, "it sent a message over a rail that takes none");
    }
}

/* Everything up to the completed request is through. */
static void requests_done(verbs_wire *wire, int32_t peer, int32_t rail, uint32_t number) {
    verbs_link  *link = wire->links[peer];
    verbs_queue *queue = &link->queues[rail];
    if (number - queue->retired >= queue->posted - queue->retired) return; /* was never posted */
    while (queue->retired != number + 1) {
        verbs_sent sent = queue->sent[queue->retired++ % VERBS_QUEUE];
        bool       copied = true;
        if (sent.staged) {
            uint32_t stage = link->stage_retired++ % wire->stages;
            if (sent.target && sent.transfer->op)
                copied = wefti_verbs_copy(wire, link, sent.transfer->op, sent.target,
                                          link->arena + (size_t)(wire->slots + wire->tokens + stage) * VERBS_SLOT_BYTES, sent.bytes);
        }
        if (!sent.transfer) continue;
        queue->chunks--;
        sent.transfer->pending--;
        if (sent.transfer->op && copied) wefti_verbs_move_settle(wire, peer, sent.transfer);
    }
}

static void take_completion(verbs_wire *wire, int32_t rail, const struct ibv_wc *done) {
    bool        received = done->wr_id >> 63;
    int32_t     peer = (int32_t)(done->wr_id >> 32 & 0x7fffffff);
    verbs_link *link = peer < wire->base.wire.size ? wire->links[peer] : NULL;
    if (!link || !link->queues[rail].qp) return; /* it has ended */
    if (done->status != IBV_WC_SUCCESS)
        wefti_verbs_break(link, done->status == IBV_WC_WR_FLUSH_ERR, "%s (%s, completion status %d, vendor's %#x)",
                          words_of(done->status), wire->rails[rail].name, (int)done->status, done->vendor_err);
    else if (received)
        receive_done(wire, peer, rail, done);
    else
        requests_done(wire, peer, rail, (uint32_t)done->wr_id);
}

bool wefti_verbs_receive(verbs_wire *wire) {
    struct ibv_wc done[COMPLETIONS];
    bool          any = false;
    for (int32_t rail = 0; rail < wire->rail_count; rail++)
        for (int round = 0; round < ROUNDS_A_POLL; round++) {
            int count = wire->api->poll_cq(wire->rails[rail].cq, COMPLETIONS, done);
            for (int32_t peer = 0; count < 0 && peer < wire->base.wire.size; peer++)
                if (peer != wire->base.wire.rank && wire->links[peer] && wire->links[peer]->state == WEFTI_LINK_UP)
                    wefti_verbs_break(wire->links[peer], false, "%s: its completion queue failed", wire->rails[rail].name);
            for (int i = 0; i < count; i++) take_completion(wire, rail, &done[i]);
            any = any || count != 0;
            if (count < COMPLETIONS) break;
        }
    return any;
}

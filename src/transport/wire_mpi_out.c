/* The MPI wire: posting, and what goes out.
 *
 * A frame is copied into a stage, which MPI has until it is sent; so a small send is done when post returns. A large one is
 * announced, and goes straight from its buffer in chunks, each of which the receiver has a receive posted for before it
 * grants it: MPI never holds a buffer of ours for which nothing is coming to meet it, which is what makes taking buffers
 * back possible. Order on a link: answers first, news of regions, operations as posted. */
#include <string.h>

#include "transport/wire_mpi.h"

wefti_mpi_request *wefti_mpiw_request(mpiw_wire *wire, mpiw_use use, int32_t peer, size_t bytes, void *of) {
    int32_t index = wire->request_count++;
    wire->infos[index] = (mpiw_info){use, peer, bytes, of};
    wire->chunks_out += use == MPIW_USE_OUT;
    wire->chunks_in += use == MPIW_USE_IN;
    return &wire->requests[index];
}

void wefti_mpiw_unrequest(mpiw_wire *wire) {
    mpiw_use use = wire->infos[--wire->request_count].use;
    wire->chunks_out -= use == MPIW_USE_OUT;
    wire->chunks_in -= use == MPIW_USE_IN;
}

/* --- frames --- */

bool wefti_mpiw_frame(mpiw_wire *wire, int32_t peer, mpiw_head head, const void *payload, size_t payload_bytes) {
    mpiw_stage *stage = wire->free_stage;
    mpiw_link  *link = &wire->links[peer];
    if (!stage) return false;
    wire->free_stage = stage->next;
    head.rank = wire->base.wire.rank;
    memcpy(stage->bytes, &head, sizeof head);
    if (payload_bytes) memcpy(stage->bytes + sizeof head, payload, payload_bytes);
    wefti_mpi_request *request = wefti_mpiw_request(wire, MPIW_USE_STAGE, peer, 0, stage);
    int code = wire->api->isend(stage->bytes, sizeof head + payload_bytes, link->process, link->tag, request);
    if (code == 0) return true;
    wefti_mpiw_unrequest(wire);
    stage->next = wire->free_stage;
    wire->free_stage = stage;
    wefti_mpiw_failed(wire, peer, code, "a send");
    return true; /* it went the way of its link */
}

bool wefti_mpiw_say(mpiw_wire *wire, int32_t peer, const mpiw_head *head) {
    mpiw_link *link = &wire->links[peer];
    if (!link->notes && wefti_mpiw_frame(wire, peer, *head, NULL, 0)) return true;
    mpiw_note *note = wire->free_notes;
    if (note)
        wire->free_notes = note->next;
    else if (wefti_alloc(sizeof *note, "an answer to a peer", &note) != WEFT_OK)
        return false;
    *note = (mpiw_note){NULL, *head};
    if (link->notes)
        link->last_note->next = note;
    else
        link->notes = note;
    link->last_note = note;
    return true;
}

/* false: no stage for it now. */
static bool send_operation(mpiw_wire *wire, int32_t peer, wefti_wire_op *op) {
    mpiw_link *link = &wire->links[peer];
    mpiw_head  head = {.tag = op->tag, .bytes = op->bytes, .region = op->region, .offset = op->offset,
                       .flags = (uint8_t)(op->flags & WEFTI_WIRE_NOTIFY)};
    bool       small = op->bytes <= MPIW_PAYLOAD_BYTES, writes = op->kind == WEFTI_WIRE_WRITE;
    if (!wire->free_stage) return false;
    wefti_op_remove(&link->out_ops, op);
    if (op->kind == WEFTI_WIRE_READ && op->bytes == 0) {
        wefti_wire_finish(&wire->base, op, WEFT_OK, peer, 0);
        return true;
    }
    if (op->kind == WEFTI_WIRE_READ) {
        mpiw_in *in = wefti_mpiw_begin_in(wire, peer, MPIW_READ, op->buffer, op->bytes);
        if (!in) {
            wefti_wire_finish(&wire->base, op, WEFT_E_LINK, peer, 0);
            return true;
        }
        in->op = op;
        in->ask = head;
        return true;
    }
    if (small) {
        head.kind = writes ? MPIW_WRITE : MPIW_MESSAGE;
        wefti_mpiw_frame(wire, peer, head, op->buffer, op->bytes);
        wefti_wire_finish(&wire->base, op, link->state == WEFTI_LINK_UP ? WEFT_OK : WEFT_E_PEER, peer,
                          link->state == WEFTI_LINK_UP ? op->bytes : 0);
        return true;
    }
    head.kind = writes ? MPIW_WRITE_READY : MPIW_READY;
    head.token = ++wire->last_token;
    op->scratch[0] = head.token;
    wefti_op_append(&link->waiting, op); /* first: where the frame fails, the link's end finds it there */
    wefti_mpiw_frame(wire, peer, head, NULL, 0);
    return true;
}

static bool send_news(mpiw_wire *wire, int32_t peer) {
    mpiw_link *link = &wire->links[peer];
    if (link->told >= wire->regions.log_count || !wire->free_stage) return false;
    const wefti_region_news *news = wefti_regions_next_news(&wire->regions, &link->told);
    if (!news) return false;
    mpiw_head head = {.kind = news->gone ? MPIW_WITHDRAWN : MPIW_REGION, .region = news->id};
    if (!news->gone) head.bytes = wire->regions.own[news->id - 1]->region.size_bytes;
    return wefti_mpiw_frame(wire, peer, head, NULL, 0);
}

void wefti_mpiw_send_link(mpiw_wire *wire, int32_t peer) {
    mpiw_link *link = &wire->links[peer];
    while (link->notes && wire->free_stage) {
        mpiw_note *note = link->notes;
        link->notes = note->next;
        mpiw_head head = note->head;
        note->next = wire->free_notes;
        wire->free_notes = note;
        wefti_mpiw_frame(wire, peer, head, NULL, 0);
        if (link->state > WEFTI_LINK_UP) return;
    }
    if (link->state != WEFTI_LINK_UP) return;
    while (send_news(wire, peer) && link->state == WEFTI_LINK_UP) continue;
    while (link->state == WEFTI_LINK_UP && link->out_ops.first && send_operation(wire, peer, link->out_ops.first)) continue;
}

/* --- chunks --- */

static size_t chunk_of(size_t bytes, size_t begun) {
    return bytes - begun < MPIW_CHUNK_BYTES ? bytes - begun : MPIW_CHUNK_BYTES;
}

/* Sends what the peer has granted. */
static void send_chunks(mpiw_wire *wire) {
    for (mpiw_out *out = wire->outs, *next; out; out = next) {
        next = out->next;
        while (out->granted && wire->chunks_out < MPIW_MOST_OUT) {
            size_t             part = chunk_of(out->bytes, out->begun);
            wefti_mpi_request *request = wefti_mpiw_request(wire, MPIW_USE_OUT, out->peer, part, out);
            int code = wire->api->isend(out->memory + out->begun, part, wire->links[out->peer].process, out->data_tag, request);
            if (code != 0) {
                wefti_mpiw_unrequest(wire);
                wefti_mpiw_failed(wire, out->peer, code, "a send");
                return; /* the list has changed */
            }
            out->begun += part;
            out->pending++;
            out->granted--;
        }
    }
}

/* Tells the sender of what has been posted for it since. false: no memory. */
static bool grant(mpiw_wire *wire, mpiw_in *in) {
    mpiw_head head = in->granted ? (mpiw_head){.kind = MPIW_MORE} : in->ask;
    head.data_tag = in->data_tag;
    head.chunks = (uint16_t)in->owed;
    if (!in->granted) {
        head.kind = in->kind == MPIW_READ ? MPIW_READ : MPIW_CLEAR;
        head.token = in->token;
    }
    if (!in->owed) return true;
    in->owed = 0;
    in->granted = true;
    return wefti_mpiw_say(wire, in->peer, &head);
}

/* Posts receives for what large transfers bring next, oldest transfer first. */
static void receive_chunks(mpiw_wire *wire) {
    for (mpiw_in *in = wire->ins, *next; in; in = next) {
        next = in->next;
        int32_t peer = in->peer;
        while (in->begun < in->bytes && in->pending < MPIW_WINDOW && wire->chunks_in < MPIW_MOST_IN) {
            size_t             part = chunk_of(in->bytes, in->begun);
            wefti_mpi_request *request = wefti_mpiw_request(wire, MPIW_USE_IN, peer, part, in);
            int code = wire->api->irecv(in->memory + in->begun, part, wire->links[peer].process, in->data_tag, request);
            if (code != 0) {
                wefti_mpiw_unrequest(wire);
                wefti_mpiw_failed(wire, peer, code, "a receive");
                return;
            }
            in->begun += part;
            in->pending++;
            in->owed++;
        }
        if (!grant(wire, in)) {
            wefti_mpiw_link_end(wire, peer, WEFTI_LINK_DOWN, "out of memory for an answer");
            return;
        }
        if (wire->links[peer].state != WEFTI_LINK_UP) return; /* the list has changed */
    }
}

void wefti_mpiw_send(mpiw_wire *wire) {
    if (wire->ins) receive_chunks(wire);
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++) {
        mpiw_link *link = &wire->links[peer];
        if (peer == wire->base.wire.rank || (link->state != WEFTI_LINK_UP && link->state != WEFTI_LINK_CONNECTING)) continue;
        if (link->notes || link->out_ops.first || link->told < wire->regions.log_count) wefti_mpiw_send_link(wire, peer);
    }
    if (wire->outs) send_chunks(wire);
}

/* --- posting --- */

static weft_status post_recv(mpiw_wire *wire, wefti_wire_op *op) {
    wefti_match   *match = &wire->base.match;
    wefti_message *message = wefti_match_posted(match, op);
    if (!message) {
        if (op->peer == WEFTI_WIRE_ANY_PEER || wire->links[op->peer].state == WEFTI_LINK_UP) return WEFT_OK;
        wefti_op_remove(&match->posted[op->peer], op);
        return wefti_wire_fail_link(&wire->base.wire, op->peer, wire->links[op->peer].state);
    }
    int32_t    peer = message->peer;
    mpiw_link *link = &wire->links[peer];
    if (peer == wire->base.wire.rank) {
        wefti_self_take(&wire->base, &link->waiting, op, message);
    } else if (message->kind == MPIW_READY) {
        uint64_t bytes = message->bytes, token = message->token[0];
        wefti_match_free(match, message);
        if (link->state != WEFTI_LINK_UP)
            wefti_wire_finish(&wire->base, op, WEFT_E_PEER, peer, 0);
        else
            wefti_mpiw_take_ready(wire, peer, op, bytes, (uint32_t)token);
    } else if (message->kind == MPIW_WRITE_READY && message->filled < message->bytes) {
        message->op = op; /* finished when the bytes of the write are in */
    } else if (message->kind == MPIW_WRITE || message->kind == MPIW_WRITE_READY) {
        wefti_wire_finish(&wire->base, op, WEFT_OK, peer, message->bytes);
        wefti_match_free(match, message);
    } else {
        wefti_wire_take_early(&wire->base, op, message);
    }
    return WEFT_OK;
}

static weft_status post(mpiw_wire *wire, wefti_wire_op *op) {
    wefti_wire *self = &wire->base.wire;
    WEFTI_TRY(wefti_wire_check_post(&wire->base, op));
    mpiw_link *link = op->peer == WEFTI_WIRE_ANY_PEER ? NULL : &wire->links[op->peer];
    if (link && link->state == WEFTI_LINK_CONNECTING) return WEFT_E_AGAIN;
    if (op->kind == WEFTI_WIRE_RECV) {
        WEFTI_TRY(post_recv(wire, op));
        if (wire->ins) receive_chunks(wire);
        return WEFT_OK;
    }
    if (link->state != WEFTI_LINK_UP) return wefti_wire_fail_link(self, op->peer, link->state);
    bool one_sided = op->kind != WEFTI_WIRE_SEND;
    if (one_sided) WEFTI_TRY(wefti_regions_check(&wire->regions, op, link->state));
    if (op->peer == self->rank) {
        uint8_t *memory = one_sided ? wefti_regions_memory(&wire->regions, op->region, op->offset, op->bytes) : NULL;
        WEFTI_TRY(one_sided ? wefti_self_one_sided(&wire->base, memory, op) : wefti_self_send(&wire->base, &link->waiting, op));
    } else {
        wefti_op_append(&link->out_ops, op);
        wefti_mpiw_send_link(wire, op->peer);
        if (wire->ins && op->kind == WEFTI_WIRE_READ) receive_chunks(wire);
    }
    wire->base.counts.sent_messages++;
    wire->base.counts.sent_bytes += op->bytes;
    return WEFT_OK;
}

weft_status wefti_mpiw_post(wefti_wire *self, wefti_wire_op *op) {
    mpiw_wire *wire = (mpiw_wire *)self;
    if (wefti_mpi_poisoned() && !wire->base.aborted)
        return wefti_fail(WEFT_E_PEER, "mpi: MPI cannot go on in this process: %s", wefti_mpi_poisoned());
    if (!wefti_mpi_lock(true))
        return wefti_fail(WEFT_E_STATE, "mpi: the program initialised MPI for one thread alone, and this is another: ask "
                          "MPI_Init_thread for MPI_THREAD_SERIALIZED");
    weft_status status = post(wire, op);
    wefti_mpi_unlock();
    return status;
}

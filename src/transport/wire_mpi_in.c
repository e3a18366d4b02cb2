/* The MPI wire: what comes in.
 *
 * Frames come into a ring of receives from anybody. MPI matches them in the order in which they were posted, and so they are
 * served, which keeps the order of each peer. A frame for which there is no room stays in its slot, and the ring waits.
 * Every head is checked: kind, sender against MPI's own word for it, tokens, bounds; nonsense ends the link. */
#include <stdio.h>
#include <string.h>

#include "transport/wire_mpi.h"

typedef enum taken { TAKEN, LATER, NONSENSE } taken;

enum { FRAMES_A_POLL = 64 };

static void count(mpiw_wire *wire, size_t bytes) {
    wire->base.counts.received_messages++;
    wire->base.counts.received_bytes += bytes;
}

/* --- large transfers --- */

mpiw_in *wefti_mpiw_begin_in(mpiw_wire *wire, int32_t peer, mpiw_kind kind, void *memory, size_t bytes) {
    mpiw_in *in = wire->free_ins;
    if (in)
        wire->free_ins = in->next;
    else if (wefti_alloc(sizeof *in, "a large transfer", &in) != WEFT_OK)
        return NULL;
    *in = (mpiw_in){.memory = memory, .bytes = bytes, .peer = peer, .kind = kind, .data_tag = wefti_mpi_data_tag(wire->mpi)};
    if (wire->ins)
        wire->last_in->next = in;
    else
        wire->ins = in;
    wire->last_in = in;
    return in;
}

void wefti_mpiw_take_ready(mpiw_wire *wire, int32_t peer, wefti_wire_op *op, uint64_t bytes, uint32_t token) {
    if (bytes > op->bytes) {
        mpiw_head refuse = {.kind = MPIW_REFUSE, .token = token};
        wefti_wire_finish_recv(&wire->base, op, peer, bytes);
        if (!wefti_mpiw_say(wire, peer, &refuse)) wefti_mpiw_link_end(wire, peer, WEFTI_LINK_DOWN, "out of memory for an answer");
        return;
    }
    mpiw_in *in = wefti_mpiw_begin_in(wire, peer, MPIW_READY, op->buffer, bytes);
    if (!in) {
        wefti_wire_finish(&wire->base, op, WEFT_E_NO_MEMORY, peer, 0);
        return;
    }
    in->op = op;
    in->token = token;
}

static void free_in(mpiw_wire *wire, mpiw_in *in) {
    mpiw_in **at = &wire->ins, *before = NULL;
    while (*at != in) {
        before = *at;
        at = &(*at)->next;
    }
    *at = in->next;
    if (wire->last_in == in) wire->last_in = before;
    in->next = wire->free_ins;
    wire->free_ins = in;
}

static void free_out(mpiw_wire *wire, mpiw_out *out) {
    mpiw_out **at = &wire->outs;
    while (*at != out) at = &(*at)->next;
    *at = out->next;
    out->next = wire->free_outs;
    wire->free_outs = out;
}

static bool begin_out(mpiw_wire *wire, int32_t peer, wefti_wire_op *op, const uint8_t *memory, size_t bytes, const mpiw_head *head) {
    mpiw_out *out = wire->free_outs;
    if (out)
        wire->free_outs = out->next;
    else if (wefti_alloc(sizeof *out, "a large transfer", &out) != WEFT_OK)
        return false;
    *out = (mpiw_out){.next = NULL, .op = op, .memory = memory, .bytes = bytes, .peer = peer, .data_tag = head->data_tag,
                      .granted = head->chunks};
    mpiw_out **at = &wire->outs; /* at the end: the oldest goes first */
    while (*at) at = &(*at)->next;
    *at = out;
    return true;
}

static void finish_in(mpiw_wire *wire, mpiw_in *in) {
    wefti_wire_op *op = in->op;
    int32_t        peer = in->peer;
    size_t         bytes = in->bytes;
    if (in->kind == MPIW_WRITE_READY) {
        wefti_message *message = in->message;
        if (message) {
            message->filled = message->bytes;
            op = message->op;
            if (op) wefti_match_free(&wire->base.match, message);
        }
    } else if (in->kind == MPIW_READ) {
        wire->base.counts.received_bytes += bytes;
    }
    free_in(wire, in);
    if (op) wefti_wire_finish(&wire->base, op, WEFT_OK, peer, bytes);
}

/* --- requests that are done --- */

static void chunk_is_out(mpiw_wire *wire, mpiw_out *out, size_t bytes) {
    out->pending--;
    out->finished += bytes;
    if (out->finished < out->bytes) return;
    if (out->op) wefti_wire_finish(&wire->base, out->op, WEFT_OK, out->peer, out->bytes);
    free_out(wire, out);
}

static void chunk_is_in(mpiw_wire *wire, mpiw_in *in, size_t bytes) {
    in->pending--;
    in->finished += bytes;
    if (in->finished == in->bytes) finish_in(wire, in);
}

/* Takes an entry out of the table; the last one comes into its place. */
static void drop_request(mpiw_wire *wire, int32_t index) {
    wire->chunks_out -= wire->infos[index].use == MPIW_USE_OUT;
    wire->chunks_in -= wire->infos[index].use == MPIW_USE_IN;
    int32_t last = --wire->request_count;
    wire->requests[index] = wire->requests[last];
    wire->infos[index] = wire->infos[last];
}

static void request_is_done(mpiw_wire *wire, mpiw_info info, const wefti_mpi_status *status) {
    if (info.use == MPIW_USE_STAGE) {
        mpiw_stage *stage = info.of;
        stage->next = wire->free_stage;
        wire->free_stage = stage;
    }
    if (status->error != 0) {
        /* Its transfer stays as it is: the end of the link finds it, with nothing more in MPI's hands. */
        if (info.use == MPIW_USE_OUT) ((mpiw_out *)info.of)->pending--;
        if (info.use == MPIW_USE_IN) ((mpiw_in *)info.of)->pending--;
        wefti_mpiw_failed(wire, info.peer, status->error, info.use == MPIW_USE_IN ? "a receive" : "a send");
    } else if (status->cancelled && info.use == MPIW_USE_IN) {
        ((mpiw_in *)info.of)->pending--;
    } else if (info.use == MPIW_USE_OUT) {
        chunk_is_out(wire, info.of, info.bytes);
    } else if (info.use == MPIW_USE_IN) {
        if (status->bytes != info.bytes)
            wefti_mpiw_link_end(wire, info.peer, WEFTI_LINK_DOWN, "it sent a part of the wrong length");
        else
            chunk_is_in(wire, info.of, info.bytes);
    }
}

bool wefti_mpiw_complete(mpiw_wire *wire) {
    int              done = 0, indices[MPIW_REQUESTS];
    wefti_mpi_status statuses[MPIW_REQUESTS];
    mpiw_info        infos[MPIW_REQUESTS];
    if (wire->request_count == 0) return true;
    int code = wire->api->test_some(wire->requests, wire->request_count, &done, indices, statuses);
    if (code != 0) {
        wefti_mpiw_failed(wire, -1, code, "a look at what is under way");
        return false;
    }
    /* Out of the table before anything is made of them: a link that ends goes through the table. From the highest index
     * down, since the last entry fills each gap. */
    for (int i = 0; i < done; i++) infos[i] = wire->infos[indices[i]];
    for (int i = 1; i < done; i++) { /* MPI gives them in any order */
        int              index = indices[i], at = i;
        wefti_mpi_status status = statuses[i];
        mpiw_info        info = infos[i];
        for (; at > 0 && indices[at - 1] < index; at--) {
            indices[at] = indices[at - 1];
            statuses[at] = statuses[at - 1];
            infos[at] = infos[at - 1];
        }
        indices[at] = index;
        statuses[at] = status;
        infos[at] = info;
    }
    for (int i = 0; i < done; i++) drop_request(wire, indices[i]);
    wire->finishing = infos;
    /* The end of a link takes its transfers out of what is left of this list. */
    for (wire->finishing_count = done; wire->finishing_count > 0;) {
        int last = --wire->finishing_count;
        if (infos[last].of) request_is_done(wire, infos[last], &statuses[last]);
    }
    wire->finishing = NULL;
    return true;
}

/* --- what a frame asks for --- */

static wefti_wire_op *find_waiting(const mpiw_link *link, uint32_t token) {
    for (wefti_wire_op *op = link->waiting.first; op; op = op->next)
        if (op->scratch[0] == token) return op;
    return NULL;
}

static taken take_message(mpiw_wire *wire, const mpiw_head *head, const uint8_t *payload, size_t payload_bytes) {
    wefti_match   *match = &wire->base.match;
    wefti_wire_op *op = NULL;
    if (head->kind == MPIW_MESSAGE && head->bytes != payload_bytes) return NONSENSE;
    if (head->kind == MPIW_READY && (head->bytes <= MPIW_PAYLOAD_BYTES || head->bytes > PTRDIFF_MAX)) return NONSENSE;
    if ((op = wefti_match_arrived(match, head->rank, head->tag))) {
        if (head->kind == MPIW_READY) {
            wefti_mpiw_take_ready(wire, head->rank, op, head->bytes, head->token);
        } else {
            size_t fits = payload_bytes < op->bytes ? payload_bytes : op->bytes;
            if (fits) memcpy(op->buffer, payload, fits);
            wefti_wire_finish_recv(&wire->base, op, head->rank, payload_bytes);
        }
    } else {
        wefti_message *message = wefti_match_keep(match, head->rank, head->tag, head->bytes, payload_bytes);
        if (!message) return LATER;
        message->kind = head->kind;
        message->token[0] = head->token;
        message->filled = payload_bytes;
        if (payload_bytes) memcpy(message->data, payload, payload_bytes);
    }
    count(wire, head->bytes);
    return TAKEN;
}

static taken take_clear(mpiw_wire *wire, const mpiw_head *head) {
    mpiw_link     *link = &wire->links[head->rank];
    wefti_wire_op *op = find_waiting(link, head->token);
    if (!op || head->chunks == 0 || (size_t)(head->chunks - 1) * MPIW_CHUNK_BYTES >= op->bytes) return NONSENSE;
    if (!begin_out(wire, head->rank, op, op->buffer, op->bytes, head)) return LATER;
    wefti_op_remove(&link->waiting, op);
    return TAKEN;
}

static taken take_refuse(mpiw_wire *wire, const mpiw_head *head) {
    mpiw_link     *link = &wire->links[head->rank];
    wefti_wire_op *op = find_waiting(link, head->token);
    if (!op || op->kind != WEFTI_WIRE_SEND) return NONSENSE;
    wefti_op_remove(&link->waiting, op);
    wefti_wire_finish(&wire->base, op, WEFT_OK, head->rank, op->bytes);
    return TAKEN;
}

static taken take_more(mpiw_wire *wire, const mpiw_head *head) {
    mpiw_out *out = wire->outs;
    while (out && (out->peer != head->rank || out->data_tag != head->data_tag)) out = out->next;
    if (!out || head->chunks == 0) return NONSENSE;
    uint64_t after = out->begun + (uint64_t)(out->granted + head->chunks - 1) * MPIW_CHUNK_BYTES;
    if (after >= out->bytes) return NONSENSE;
    out->granted += head->chunks;
    return TAKEN;
}

static taken take_write(mpiw_wire *wire, const mpiw_head *head, const uint8_t *payload, size_t payload_bytes) {
    wefti_match   *match = &wire->base.match;
    uint8_t       *memory = wefti_regions_memory(&wire->regions, head->region, head->offset, head->bytes);
    bool           large = head->kind == MPIW_WRITE_READY, notify = head->flags & WEFTI_WIRE_NOTIFY;
    wefti_message *message = NULL;
    if (!memory || (large ? head->bytes <= MPIW_PAYLOAD_BYTES : head->bytes != payload_bytes)) return NONSENSE;
    wefti_wire_op *op = notify ? wefti_match_arrived(match, head->rank, head->tag) : NULL;
    if (notify && !op) {
        if (!(message = wefti_match_keep(match, head->rank, head->tag, head->bytes, 0))) return LATER;
        message->kind = head->kind;
    }
    if (notify) count(wire, head->bytes);
    if (large) {
        mpiw_in *in = wefti_mpiw_begin_in(wire, head->rank, MPIW_WRITE_READY, memory, head->bytes);
        if (!in) {
            if (op) wefti_wire_finish(&wire->base, op, WEFT_E_NO_MEMORY, head->rank, 0);
            return NONSENSE; /* the write cannot be made: its link ends */
        }
        in->op = op;
        in->message = message;
        in->token = head->token;
        return TAKEN;
    }
    if (payload_bytes) memcpy(memory, payload, payload_bytes);
    if (message) message->filled = head->bytes;
    if (op) wefti_wire_finish(&wire->base, op, WEFT_OK, head->rank, head->bytes);
    return TAKEN;
}

static taken take_read(mpiw_wire *wire, const mpiw_head *head) {
    const uint8_t *memory = wefti_regions_memory(&wire->regions, head->region, head->offset, head->bytes);
    if (!memory || head->bytes == 0 || head->chunks == 0 || (size_t)(head->chunks - 1) * MPIW_CHUNK_BYTES >= head->bytes) return NONSENSE;
    return begin_out(wire, head->rank, NULL, memory, head->bytes, head) ? TAKEN : LATER;
}

static taken take_region(mpiw_wire *wire, const mpiw_head *head) {
    wefti_told_region what = {.size_bytes = head->bytes, .state = head->kind == MPIW_REGION ? WEFTI_REGION_KNOWN : WEFTI_REGION_GONE};
    return wefti_regions_hear(&wire->regions, head->rank, head->region, &what) ? TAKEN : NONSENSE;
}

static taken take_head(mpiw_wire *wire, const mpiw_head *head, const uint8_t *payload, size_t payload_bytes) {
    switch ((mpiw_kind)head->kind) {
    case MPIW_MESSAGE:
    case MPIW_READY: return take_message(wire, head, payload, payload_bytes);
    case MPIW_CLEAR: return take_clear(wire, head);
    case MPIW_REFUSE: return take_refuse(wire, head);
    case MPIW_MORE: return take_more(wire, head);
    case MPIW_WRITE:
    case MPIW_WRITE_READY: return take_write(wire, head, payload, payload_bytes);
    case MPIW_READ: return take_read(wire, head);
    case MPIW_REGION:
    case MPIW_WITHDRAWN: return take_region(wire, head);
    default: return NONSENSE;
    }
}

static bool is_of_data(mpiw_kind kind) { return kind == MPIW_MESSAGE || kind == MPIW_WRITE; }

/* A frame from MPI's process `source`. LATER: it keeps its slot. */
static taken take_frame(mpiw_wire *wire, const uint8_t *frame, const wefti_mpi_status *status, bool leaving) {
    mpiw_head head;
    if (status->bytes < sizeof head) return TAKEN; /* from nobody that we know: nothing to end */
    memcpy(&head, frame, sizeof head);
    size_t payload_bytes = status->bytes - sizeof head;
    if (head.rank < 0 || head.rank >= wire->base.wire.size || head.rank == wire->base.wire.rank) return TAKEN;
    mpiw_link *link = &wire->links[head.rank];
    if (link->process >= 0 && link->process != status->source) return TAKEN;
    if (head.kind == MPIW_HELLO) {
        if (head.tag != wire->job) return TAKEN; /* another job's or epoch's */
        link->heard = true;
        if (link->state == WEFTI_LINK_CONNECTING) link->state = WEFTI_LINK_UP;
        return TAKEN;
    }
    if (head.kind == MPIW_BYE) {
        link->heard_bye = wire->ending = true; /* the link ends when what was sent before is in */
        return TAKEN;
    }
    if (leaving || link->state != WEFTI_LINK_UP) return TAKEN;
    if (payload_bytes && !is_of_data((mpiw_kind)head.kind)) return NONSENSE;
    taken result = take_head(wire, &head, frame + sizeof head, payload_bytes);
    if (result == NONSENSE) {
        char cause[MPIW_CAUSE_BYTES];
        snprintf(cause, sizeof cause, "it sent a frame that is none (kind %u)", head.kind);
        wefti_mpiw_link_end(wire, head.rank, WEFTI_LINK_DOWN, cause);
        return TAKEN;
    }
    return result;
}

/* --- the ring --- */

bool wefti_mpiw_post_slot(mpiw_wire *wire, int32_t index) {
    int code = wire->api->irecv(wire->slots + (size_t)index * MPIW_FRAME_BYTES, MPIW_FRAME_BYTES, WEFTI_MPI_ANY, wire->tag,
                                &wire->slot_requests[index]);
    wire->slot_posted[index] = code == 0;
    if (code != 0) wefti_mpiw_failed(wire, -1, code, "a receive");
    return code == 0;
}

void wefti_mpiw_receive(mpiw_wire *wire, bool leaving) {
    for (int frames = 0; frames < FRAMES_A_POLL && !wefti_mpi_poisoned(); frames++) {
        int32_t          index = wire->head;
        bool             done = false;
        wefti_mpi_status status = wire->held_status;
        if (!wire->held) {
            if (!wire->slot_posted[index]) return;
            int code = wire->api->test(&wire->slot_requests[index], &done, &status);
            if (code == 0 && !done) return;
            wire->slot_posted[index] = false;
            if (code != 0 || status.error != 0) {
                wefti_mpiw_failed(wire, -1, code ? code : status.error, "a receive");
                return;
            }
        }
        wire->held = take_frame(wire, wire->slots + (size_t)index * MPIW_FRAME_BYTES, &status, leaving) == LATER;
        wire->held_status = status;
        if (wire->held || wefti_mpi_poisoned() || !wefti_mpiw_post_slot(wire, index)) return;
        wire->head = (index + 1) % MPIW_SLOTS;
    }
}

/* The TCP wire: receiving.
 *
 * Headers and small payloads come through a stage, read ahead as far as one system call gives; the bytes of a larger payload
 * go straight to where they belong (the posted buffer, a region), with the stage as the tail of the same call, so that
 * the next header comes along. A message without a receive is kept aside; where there is no room for it the link is not read
 * on until there is. Every header is checked: kind, token, region, bounds; nonsense ends the link. */
#include <errno.h>
#include <string.h>
#include <sys/uio.h>

#include "transport/wire_tcp.h"

typedef enum taken { TAKEN, LATER, NONSENSE } taken;

enum { CALLS_A_POLL = 8 };

static wefti_wire_op *find_token(const wefti_op_list *list, uint64_t token, wefti_wire_op_kind kind) {
    for (wefti_wire_op *op = list->first; op; op = op->next)
        if (op->scratch[0] == token && op->kind == kind) return op;
    return NULL;
}

static void begin_payload(tcp_in *in, void *target, size_t fits, size_t bytes) {
    in->in_payload = true;
    in->target = target;
    in->left = fits < bytes ? fits : bytes;
    in->skip = bytes - in->left;
    in->given = in->later = 0;
    in->pad = -bytes & (TCP_LINE_BYTES - 1);
}

static bool in_pieces(const tcp_in *in) { return in->op && (in->op->flags & WEFTI_WIRE_PIECES); }

/* The payload of in->op, which is a receive. */
static void begin_receive(tcp_in *in, size_t bytes) {
    begin_payload(in, in->op->buffer, in->op->bytes, bytes);
    if (!in_pieces(in) || in->left <= WEFTI_WIRE_PIECE_BYTES) return;
    in->later = in->left - WEFTI_WIRE_PIECE_BYTES;
    in->left = WEFTI_WIRE_PIECE_BYTES;
}

/* Hands out a piece that is whole, and begins the next. False where there is none. */
static bool next_piece(tcp_in *in) {
    bool     whole = in->op->flags & WEFTI_WIRE_WHOLE;
    uint8_t *piece = (uint8_t *)in->op->buffer + (whole ? in->given : 0);
    size_t   bytes = (size_t)(in->target - piece);
    if (bytes) in->op->piece(in->op, piece, in->given, bytes);
    in->given += bytes;
    if (!whole) in->target = piece;
    in->left = in->later < WEFTI_WIRE_PIECE_BYTES ? in->later : WEFTI_WIRE_PIECE_BYTES;
    in->later -= in->left;
    return in->left > 0;
}

void wefti_tcp_take_ready(tcp_wire *wire, int32_t peer, wefti_wire_op *op, uint64_t bytes, uint64_t token) {
    op->done_peer = peer;
    op->done_bytes = bytes;
    op->scratch[1] = token;
    op->scratch[3] = STEP_CLEAR;
    wefti_op_append(&wire->links[peer].out_ops, op);
    if (!wire->links[peer].out.head_bytes) wefti_tcp_send(wire, peer);
}

/* --- what a header asks for --- */

static taken take_message(tcp_wire *wire, int32_t peer, const tcp_header *header) {
    tcp_in *in = &wire->links[peer].in;
    if (header->bytes > TCP_EAGER_BYTES) return NONSENSE;
    in->op = wefti_match_arrived(&wire->base.match, peer, header->tag);
    in->message = NULL;
    if (in->op) {
        in->op->done_peer = peer;
        begin_receive(in, header->bytes);
    } else {
        if (in->ended && header->bytes > TCP_COPY_BYTES) {
            in->held_at = wire->polls;
            return LATER;
        }
        in->message = wefti_match_keep(&wire->base.match, peer, header->tag, header->bytes, header->bytes);
        if (!in->message) return LATER;
        in->message->kind = TCP_MESSAGE;
        begin_payload(in, in->message->data, header->bytes, header->bytes);
    }
    wire->base.counts.received_messages++;
    wire->base.counts.received_bytes += header->bytes;
    return TAKEN;
}

static taken take_ready(tcp_wire *wire, int32_t peer, const tcp_header *header) {
    wefti_wire_op *op = wefti_match_arrived(&wire->base.match, peer, header->tag);
    if (op) {
        wefti_tcp_take_ready(wire, peer, op, header->bytes, header->token);
    } else {
        wefti_message *message = wefti_match_keep(&wire->base.match, peer, header->tag, header->bytes, 0);
        if (!message) return LATER;
        message->kind = TCP_READY;
        message->token[0] = header->token;
    }
    wire->base.counts.received_messages++;
    wire->base.counts.received_bytes += header->bytes;
    return TAKEN;
}

static taken take_clear(tcp_wire *wire, int32_t peer, const tcp_header *header) {
    tcp_link      *link = &wire->links[peer];
    wefti_wire_op *op = find_token(&link->waiting, header->token, WEFTI_WIRE_SEND);
    if (!op) return NONSENSE;
    wefti_op_remove(&link->waiting, op);
    op->scratch[1] = header->offset;
    op->scratch[3] = STEP_DATA;
    wefti_op_append(&link->out_ops, op);
    if (!link->out.head_bytes) wefti_tcp_send(wire, peer);
    return TAKEN;
}

static taken take_data(tcp_wire *wire, int32_t peer, const tcp_header *header) {
    tcp_link      *link = &wire->links[peer];
    wefti_wire_op *op = find_token(&link->waiting, header->token, WEFTI_WIRE_RECV);
    if (!op || op->done_bytes != header->bytes) return NONSENSE;
    wefti_op_remove(&link->waiting, op);
    link->in.op = op;
    begin_receive(&link->in, header->bytes);
    return TAKEN;
}

static taken take_read_data(tcp_wire *wire, int32_t peer, const tcp_header *header) {
    tcp_link      *link = &wire->links[peer];
    wefti_wire_op *op = find_token(&link->waiting, header->token, WEFTI_WIRE_READ);
    if (!op || (header->bytes != op->bytes && header->bytes != 0)) return NONSENSE;
    wefti_op_remove(&link->waiting, op);
    link->in.op = op;
    begin_payload(&link->in, op->buffer, op->bytes, header->bytes);
    return TAKEN;
}

static taken take_write(tcp_wire *wire, int32_t peer, const tcp_header *header) {
    uint8_t *memory = wefti_regions_memory(&wire->regions, header->region, header->offset, header->bytes);
    if (!memory) return NONSENSE;
    wire->links[peer].in.op = NULL;
    begin_payload(&wire->links[peer].in, memory, header->bytes, header->bytes);
    return TAKEN;
}

static taken take_read(tcp_wire *wire, int32_t peer, const tcp_header *header) {
    tcp_link *link = &wire->links[peer];
    if (!wefti_regions_memory(&wire->regions, header->region, header->offset, header->bytes)) return NONSENSE;
    tcp_serve *serve = wire->free_serves;
    if (serve)
        wire->free_serves = serve->next;
    else if (wefti_alloc(sizeof *serve, "a read of a peer", &serve) != WEFT_OK)
        return LATER;
    *serve = (tcp_serve){NULL, header->region, header->offset, header->bytes, header->token};
    if (link->serve_last)
        link->serve_last->next = serve;
    else
        link->serve_first = serve;
    link->serve_last = serve;
    return TAKEN;
}

static taken take_region(tcp_wire *wire, int32_t peer, const tcp_header *header) {
    wefti_told_region what = {.size_bytes = header->bytes,
                              .state = header->kind == TCP_REGION ? WEFTI_REGION_KNOWN : WEFTI_REGION_GONE};
    return wefti_regions_hear(&wire->regions, peer, header->region, &what) ? TAKEN : NONSENSE;
}

static taken take_header(tcp_wire *wire, int32_t peer, const tcp_header *header) {
    switch ((tcp_kind)header->kind) {
    case TCP_MESSAGE: return take_message(wire, peer, header);
    case TCP_READY: return take_ready(wire, peer, header);
    case TCP_CLEAR: return take_clear(wire, peer, header);
    case TCP_DATA: return take_data(wire, peer, header);
    case TCP_WRITE: return take_write(wire, peer, header);
    case TCP_READ: return take_read(wire, peer, header);
    case TCP_READ_DATA: return take_read_data(wire, peer, header);
    case TCP_REGION:
    case TCP_WITHDRAWN: return take_region(wire, peer, header);
    case TCP_BYE: wire->links[peer].heard_bye = true; return TAKEN;
    }
    return NONSENSE;
}

/* --- the end of a payload --- */

/* false: there is no room for the notice now. */
static bool payload_is_in(tcp_wire *wire, int32_t peer) {
    tcp_in        *in = &wire->links[peer].in;
    wefti_wire_op *op = in->op;
    switch ((tcp_kind)in->header.kind) {
    case TCP_MESSAGE:
        if (in->message) {
            wefti_message *message = in->message;
            message->filled = message->bytes;
            if (message->op) {
                wefti_wire_fill(message->op, message->data, message->bytes);
                wefti_wire_finish_recv(&wire->base, message->op, peer, message->bytes);
                wefti_match_free(&wire->base.match, message);
            }
        } else {
            wefti_wire_finish_recv(&wire->base, op, peer, in->header.bytes);
        }
        break;
    case TCP_DATA: wefti_wire_finish_recv(&wire->base, op, peer, in->header.bytes); break;
    case TCP_READ_DATA:
        wire->base.counts.received_bytes += in->header.bytes;
        wefti_wire_finish(&wire->base, op, in->header.bytes == op->bytes ? WEFT_OK : WEFT_E_LINK, peer, in->header.bytes);
        break;
    default: /* TCP_WRITE */
        if (!(in->header.flags & WEFTI_WIRE_NOTIFY)) break;
        if ((op = wefti_match_arrived(&wire->base.match, peer, in->header.tag))) {
            wefti_wire_finish(&wire->base, op, WEFT_OK, peer, in->header.bytes);
        } else {
            wefti_message *message = wefti_match_keep(&wire->base.match, peer, in->header.tag, in->header.bytes, 0);
            if (!message) return false;
            message->kind = TCP_WRITE;
        }
        wire->base.counts.received_messages++;
        wire->base.counts.received_bytes += in->header.bytes;
        break;
    }
    in->ended |= op != NULL;
    in->in_payload = false;
    in->op = NULL;
    in->message = NULL;
    return true;
}

/* --- bytes --- */

/* Takes what lies in the stage: true while it was possible to go on. */
static bool take_stage(tcp_wire *wire, int32_t peer) {
    tcp_link *link = &wire->links[peer];
    tcp_in   *in = &link->in;
    while (link->state == WEFTI_LINK_UP) {
        if (in->in_payload) {
            size_t there = in->have - in->used, part = in->left < there ? in->left : there;
            if (part) {
                memcpy(in->target, in->stage + in->used, part);
                in->target += part;
                in->left -= part;
                in->used += part;
                there -= part;
            }
            if (in->left == 0 && in_pieces(in) && next_piece(in)) continue;
            part = in->left ? 0 : in->skip < there ? in->skip : there;
            in->skip -= part;
            in->used += part;
            if (in->left || in->skip) return true;
            if (!payload_is_in(wire, peer)) return false;
            continue;
        }
        size_t there = in->have - in->used, pad = in->pad < there ? in->pad : there;
        in->pad -= pad;
        in->used += pad;
        if (there - pad < TCP_HEADER_BYTES) return true;
        taken result = wefti_tcp_header_read(in->stage + in->used, &in->header) ? take_header(wire, peer, &in->header) : NONSENSE;
        if (result == LATER) return false;
        if (result == NONSENSE) {
            wefti_log(WEFT_LOG_WARNING, "tcp: rank %d sent a header that is none (kind %u)", (int)peer, in->header.kind);
            wefti_tcp_link_end(wire, peer, WEFTI_LINK_DOWN, "it sent a header that is none");
            return false;
        }
        in->used += TCP_HEADER_BYTES;
    }
    return false;
}

/* One system call's worth: 1 more may be there, 0 nothing now, -1 the end. */
static int read_more(tcp_link *link) {
    tcp_in      *in = &link->in;
    struct iovec parts[2];
    int          count = 0;
    size_t       direct = in->in_payload ? in->left : 0, room;
    if (in->used) { /* what is left is less than a header, or nothing */
        memmove(in->stage, in->stage + in->used, in->have - in->used);
        in->have -= in->used;
        in->used = 0;
    }
    if (direct) parts[count++] = (struct iovec){in->target, direct};
    room = direct && in->later ? 0 : TCP_STAGE_BYTES - in->have; /* what follows a piece goes straight to its place too */
    if (room) parts[count++] = (struct iovec){in->stage + in->have, room};
    ssize_t got;
    do got = wefti_tcp_link_receive(link, parts, count);
    while (got < 0 && errno == EINTR);
    if (got < 0 && errno == EAGAIN) return 0;
    if (got <= 0) return -1;
    size_t straight = (size_t)got < direct ? (size_t)got : direct;
    if (straight) in->target += straight; /* there may be no target */
    in->left -= straight;
    in->have += (size_t)got - straight;
    return (size_t)got == direct + room;
}

void wefti_tcp_receive(tcp_wire *wire, int32_t peer) {
    tcp_link *link = &wire->links[peer];
    link->in.ended = false;
    for (int call = 0; call < CALLS_A_POLL && link->state == WEFTI_LINK_UP; call++) {
        if (!take_stage(wire, peer)) return;
        int more = read_more(link);
        if (more < 0) {
            const char *cause = link->stream ? wire->medium->cause(wire, peer) : wefti_seal_cause(link->seal);
            wefti_tcp_link_end(wire, peer, link->heard_bye ? WEFTI_LINK_LEFT : WEFTI_LINK_DOWN, cause);
            return;
        }
        if (!take_stage(wire, peer)) return;
        if (link->heard_bye) {
            wefti_tcp_link_end(wire, peer, WEFTI_LINK_LEFT, NULL);
            return;
        }
        if (!more) return;
    }
}

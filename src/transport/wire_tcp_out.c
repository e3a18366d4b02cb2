/* The TCP wire: posting and sending.
 *
 * A post with nothing before it tries the socket at once, so a message costs one system call; frames that wait together
 * go together, up to the first one with a long payload. Order of choice: announcements of regions, then operations in
 * posted order (answers to large messages among them), then reads of the peer. A send is done when the system has taken
 * all that went with it: whoever has seen it done need not poll for it. */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

#include "transport/wire_tcp.h"

enum { CALLS_A_TIME = 64 };

/* --- headers: little endian, whatever the host --- */

static uint8_t *put64(uint8_t *at, uint64_t value) {
    for (int i = 0; i < 8; i++) at[i] = (uint8_t)(value >> 8 * i);
    return at + 8;
}
static size_t rest_of_line(size_t bytes) { return -bytes & (TCP_LINE_BYTES - 1); }
static uint64_t get64(const uint8_t *at) {
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) value |= (uint64_t)at[i] << 8 * i;
    return value;
}

void wefti_tcp_header_write(uint8_t *bytes, const tcp_header *header) {
    uint64_t first = (uint64_t)header->kind | (uint64_t)header->flags << 8 | UINT64_C(0xf17e) << 16 |
                     (uint64_t)header->region << 32;
    bytes = put64(bytes, first);
    bytes = put64(bytes, header->tag);
    bytes = put64(bytes, header->bytes);
    bytes = put64(bytes, header->token);
    bytes = put64(bytes, header->offset);
    memset(bytes, 0, TCP_HEADER_BYTES - 40);
}

bool wefti_tcp_header_read(const uint8_t *bytes, tcp_header *header) {
    uint64_t first = get64(bytes);
    *header = (tcp_header){.kind = (uint8_t)first, .flags = (uint8_t)(first >> 8), .region = (uint32_t)(first >> 32),
                           .tag = get64(bytes + 8), .bytes = get64(bytes + 16), .token = get64(bytes + 24),
                           .offset = get64(bytes + 32)};
    return (first >> 16 & 0xffff) == 0xf17e && (get64(bytes + 40) | get64(bytes + 48) | get64(bytes + 56)) == 0 && header->kind >= TCP_MESSAGE && header->kind <= TCP_BYE;
}

/* --- choosing the next frame --- */

/* Adds a frame. Its payload is copied behind it, or where it is long noted as what comes last. */
static void add_frame(tcp_out *out, const tcp_header *header, const void *payload, size_t payload_bytes) {
    memset(out->head + out->head_bytes, 0, out->pad); /* only the first frame of a call finds any */
    out->head_bytes += out->pad;
    out->pad = 0;
    wefti_tcp_header_write(out->head + out->head_bytes, header);
    out->head_bytes += TCP_HEADER_BYTES;
    if (payload_bytes > TCP_COPY_BYTES || payload_bytes + TCP_LINE_BYTES > TCP_HEAD_BYTES - out->head_bytes) {
        out->payload = payload;
        out->payload_bytes = payload_bytes;
        return;
    }
    if (payload_bytes) memcpy(out->head + out->head_bytes, payload, payload_bytes);
    out->head_bytes += payload_bytes;
    memset(out->head + out->head_bytes, 0, rest_of_line(payload_bytes));
    out->head_bytes += rest_of_line(payload_bytes);
    out->whole_bytes = out->head_bytes;
}

/* Adds a frame that the peer answers: the operation waits from now on, since the answer may come before all that goes
 * with it is sent. */
static void add_question(tcp_wire *wire, tcp_link *link, wefti_wire_op *op, tcp_header header) {
    uint64_t token = op->scratch[0] = ++wire->last_token;
    if (header.kind == TCP_CLEAR)
        header.offset = token;
    else
        header.token = token;
    add_frame(&link->out, &header, NULL, 0);
    op->scratch[3] = STEP_WAIT;
    wefti_op_append(&link->waiting, op);
}

static void add_operation(tcp_wire *wire, tcp_link *link, wefti_wire_op *op) {
    tcp_header header = {.tag = op->tag, .bytes = op->bytes};
    switch ((tcp_step)op->scratch[3]) {
    case STEP_MESSAGE: header.kind = TCP_MESSAGE; break;
    case STEP_DATA:
        header.kind = TCP_DATA;
        header.token = op->scratch[1];
        break;
    case STEP_WRITE:
        header.kind = TCP_WRITE;
        header.flags = op->flags & WEFTI_WIRE_NOTIFY;
        header.region = op->region;
        header.offset = op->offset;
        break;
    case STEP_READY:
        header.kind = TCP_READY;
        add_question(wire, link, op, header);
        return;
    case STEP_READ:
        header.kind = TCP_READ;
        header.region = op->region;
        header.offset = op->offset;
        add_question(wire, link, op, header);
        return;
    default: /* STEP_CLEAR */
        add_question(wire, link, op, (tcp_header){.kind = TCP_CLEAR, .token = op->scratch[1]});
        return;
    }
    add_frame(&link->out, &header, op->buffer, op->bytes);
    wefti_op_append(&link->out.ops, op);
}

static bool add_news(tcp_wire *wire, tcp_link *link) {
    const wefti_region_news *news = wefti_regions_next_news(&wire->regions, &link->told);
    if (!news) return false;
    tcp_header header = {.kind = news->gone ? TCP_WITHDRAWN : TCP_REGION, .region = news->id};
    if (!news->gone) header.bytes = wire->regions.own[news->id - 1]->region.size_bytes;
    add_frame(&link->out, &header, NULL, 0);
    return true;
}

static bool add_serve(tcp_wire *wire, tcp_link *link) {
    tcp_serve *serve = link->serve_first;
    if (!serve) return false;
    link->serve_first = serve->next;
    if (!serve->next) link->serve_last = NULL;
    const uint8_t *memory = wefti_regions_memory(&wire->regions, serve->region, serve->offset, serve->bytes);
    /* Checked when it came in; released since against the contract: the empty answer tells the reader. */
    tcp_header header = {.kind = TCP_READ_DATA, .bytes = memory ? serve->bytes : 0, .token = serve->token};
    add_frame(&link->out, &header, memory, header.bytes);
    serve->next = wire->free_serves;
    wire->free_serves = serve;
    return true;
}

/* Gathers what goes with the next system call; false where there is nothing. */
static bool gather(tcp_wire *wire, tcp_link *link) {
    tcp_out *out = &link->out;
    while (!out->payload && TCP_HEAD_BYTES - out->head_bytes >= out->pad + TCP_HEADER_BYTES) {
        if (link->told < wire->regions.log_count && add_news(wire, link)) continue;
        wefti_wire_op *op = wefti_op_take_first(&link->out_ops);
        if (op)
            add_operation(wire, link, op);
        else if (!add_serve(wire, link))
            break;
    }
    return out->head_bytes > 0;
}

/* --- sending --- */

/* One system call; false where the socket takes no more. */
static bool send_some(tcp_link *link) {
    tcp_out *out = &link->out;
    struct iovec parts[2];
    int          count = 0;
    if (out->sent < out->head_bytes) parts[count++] = (struct iovec){out->head + out->sent, out->head_bytes - out->sent};
    if (out->payload) {
        size_t before = out->sent > out->head_bytes ? out->sent - out->head_bytes : 0;
        parts[count++] = (struct iovec){(void *)(out->payload + before), out->payload_bytes - before};
    }
    ssize_t sent = wefti_tcp_link_send(link, parts, count);
    if (sent < 0 && errno == EINTR) return true;
    if (sent < 0 && (errno == EAGAIN || errno == ENOBUFS)) return false;
    if (sent <= 0) {
        link->broken = true; /* the receiving side finds the end, after what still lies there */
        return false;
    }
    out->sent += (size_t)sent;
    return true;
}

bool wefti_tcp_has_output(const tcp_wire *wire, const tcp_link *link) {
    return link->out.head_bytes || link->out_ops.first || link->serve_first || link->told < wire->regions.log_count;
}

void wefti_tcp_send(tcp_wire *wire, int32_t peer) {
    tcp_link *link = &wire->links[peer];
    tcp_out  *out = &link->out;
    for (int calls = 0; calls < CALLS_A_TIME && link->state == WEFTI_LINK_UP && !link->broken; calls++) {
        if (!out->head_bytes && !gather(wire, link)) return;
        if (!send_some(link)) return;
        if (out->sent < out->head_bytes + out->payload_bytes) continue;
        out->pad = rest_of_line(out->payload_bytes);
        out->head_bytes = out->whole_bytes = out->payload_bytes = out->sent = 0;
        out->payload = NULL;
        wefti_wire_op *op;
        while ((op = wefti_op_take_first(&out->ops)))
            wefti_wire_finish(&wire->base, op, WEFT_OK, op->peer, op->bytes);
    }
}

/* --- posting --- */

static weft_status post_recv(tcp_wire *wire, wefti_wire_op *op) {
    wefti_match   *match = &wire->base.match;
    wefti_message *message = wefti_match_posted(match, op);
    if (!message) {
        if (op->peer == WEFTI_WIRE_ANY_PEER || wire->links[op->peer].state == WEFTI_LINK_UP) return WEFT_OK;
        wefti_op_remove(&match->posted[op->peer], op);
        return wefti_wire_fail_link(&wire->base.wire, op->peer, wire->links[op->peer].state);
    }
    int32_t peer = message->peer;
    if (peer == wire->base.wire.rank) {
        wefti_self_take(&wire->base, &wire->links[peer].waiting, op, message);
    } else if (message->kind == TCP_READY) {
        if (wire->links[peer].state == WEFTI_LINK_UP)
            wefti_tcp_take_ready(wire, peer, op, message->bytes, message->token[0]);
        else
            wefti_wire_finish(&wire->base, op, WEFT_E_PEER, peer, 0);
        wefti_match_free(match, message);
    } else if (message->kind == TCP_WRITE) {
        wefti_wire_finish(&wire->base, op, WEFT_OK, peer, message->bytes);
        wefti_match_free(match, message);
    } else if (message->filled < message->bytes) {
        message->op = op; /* finished when the rest is in */
    } else {
        wefti_wire_take_early(&wire->base, op, message);
    }
    return WEFT_OK;
}

weft_status wefti_tcp_post(wefti_wire *self, wefti_wire_op *op) {
    tcp_wire *wire = (tcp_wire *)self;
    WEFTI_TRY(wefti_wire_check_post(&wire->base, op));
    tcp_link *link = op->peer == WEFTI_WIRE_ANY_PEER ? NULL : &wire->links[op->peer];
    if (link && link->state == WEFTI_LINK_CONNECTING) return WEFT_E_AGAIN;
    if (op->kind == WEFTI_WIRE_RECV) return post_recv(wire, op);
    if (link->state != WEFTI_LINK_UP) return wefti_wire_fail_link(self, op->peer, link->state);
    bool one_sided = op->kind != WEFTI_WIRE_SEND;
    if (one_sided) WEFTI_TRY(wefti_regions_check(&wire->regions, op, link->state));
    weft_status status = WEFT_OK;
    if (op->peer == self->rank) {
        uint8_t *memory = one_sided ? wefti_regions_memory(&wire->regions, op->region, op->offset, op->bytes) : NULL;
        status = one_sided ? wefti_self_one_sided(&wire->base, memory, op)
                           : wefti_self_send(&wire->base, &link->waiting, op);
    } else {
        op->scratch[3] = op->kind == WEFTI_WIRE_WRITE  ? STEP_WRITE
                         : op->kind == WEFTI_WIRE_READ ? STEP_READ
                         : op->bytes > TCP_EAGER_BYTES ? STEP_READY
                                                       : STEP_MESSAGE;
        wefti_op_append(&link->out_ops, op);
        /* Where something is being sent, the socket was full a moment ago. */
        if (!link->out.head_bytes && !(op->flags & WEFTI_WIRE_MORE)) wefti_tcp_send(wire, op->peer);
    }
    if (status != WEFT_OK) return status;
    wire->base.counts.sent_messages++;
    wire->base.counts.sent_bytes += op->bytes;
    return WEFT_OK;
}

/* Only the last of the operations that are being sent may have its bytes elsewhere than in the head. */
void wefti_tcp_send_from(wefti_wire *self, wefti_wire_op *op, const void *buffer) {
    tcp_out *out = &((tcp_wire *)self)->links[op->peer].out;
    if (out->ops.last == op && out->payload == op->buffer) out->payload = buffer;
    op->buffer = (void *)buffer;
}

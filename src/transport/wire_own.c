/* A wire of the program's own: what weft/wire.h has of streams of bytes, made whole by the engine of wires over streams (wire_tcp.h).
 *
 * Each link is a stream that asks the program. Nothing the program says is believed beyond its range: counts, states, statuses. Memory
 * as the TCP wire's, and a few words for each peer. */
#include <stdio.h>
#include <string.h>

#include "transport/wire_tcp.h"

typedef struct own_wire own_wire;
typedef struct own_stream {
    wefti_stream stream; /* first */
    own_wire    *wire;
    int32_t      peer;
    weft_status  over; /* what has ended it in both directions, for good; WEFT_OK: nothing */
    char         cause[TCP_CAUSE_BYTES];
} own_stream;

struct own_wire {
    tcp_wire              tcp; /* first */
    const weft_wire_kind *kind;
    void                 *inside; /* the program's */
    bool                  is_open;
    own_stream           *streams; /* [size] */
    char                  name[WEFT_WIRE_NAME_BYTES + 1];
};

static weft_status own_fail(const own_wire *wire, weft_status status, const char *what) {
    return wefti_fail(status, "the program's own wire '%s' could not %s: %s", wire->name, what, weft_status_text(status));
}

/* --- streams --- */

/* Believes what the program said of a call, or ends the stream: bytes that are not accounted for leave nothing to go on with. */
static weft_status believe(own_stream *stream, const char *call, weft_status status, size_t count, size_t most) {
    const char *name = stream->wire->name;
    if (status == WEFT_E_AGAIN || status == WEFT_E_LINK || (status == WEFT_OK && count > 0 && count <= most)) return status;
    if (status == WEFT_OK)
        snprintf(stream->cause, sizeof stream->cause, "%s of the program's own wire '%s' says %zu of %zu bytes", call, name, count, most);
    else
        snprintf(stream->cause, sizeof stream->cause, "%s of the program's own wire '%s': %s", call, name, weft_status_text(status));
    return stream->over = status == WEFT_OK ? WEFT_E_CORRUPT : status;
}

static weft_status send_bytes(wefti_stream *stream, const void *bytes, size_t count, size_t *sent_out) {
    own_stream *to = (own_stream *)stream;
    if (to->over != WEFT_OK) return to->over;
    weft_status status = to->wire->kind->send(to->wire->inside, to->peer, bytes, count, sent_out);
    return believe(to, "send", status, *sent_out, count);
}

static weft_status receive_bytes(wefti_stream *stream, void *bytes, size_t most, size_t *received_out) {
    own_stream *from = (own_stream *)stream;
    if (from->over != WEFT_OK) return from->over;
    weft_status status = from->wire->kind->receive(from->wire->inside, from->peer, bytes, most, received_out);
    return believe(from, "receive", status, *received_out, most);
}

static void close_nothing(wefti_stream *stream) { (void)stream; } /* the program closes all of its wire at once */
static const wefti_stream_ops stream_ops = {send_bytes, receive_bytes, close_nothing};

/* --- the medium --- */

static weft_status own_address(wefti_wire *self, void *address_out, size_t *bytes_out) {
    own_wire   *wire = (own_wire *)self;
    weft_status status = wire->kind->address(wire->inside, address_out, bytes_out);
    if (status != WEFT_OK) return own_fail(wire, status, "tell its address");
    if (*bytes_out > WEFTI_WIRE_ADDRESS_BYTES)
        return wefti_fail(WEFT_E_OVERFLOW, "the program's own wire '%s' gave an address of %zu bytes; at most %d", wire->name, *bytes_out,
                          WEFTI_WIRE_ADDRESS_BYTES);
    return WEFT_OK;
}

static weft_status own_connect(wefti_wire *self, int32_t peer, const void *address, size_t bytes) {
    own_wire *wire = (own_wire *)self;
    if (peer < 0 || peer >= self->size)
        return wefti_fail(WEFT_E_INVALID, "%s: there is no rank %d among %d", wire->name, (int)peer, (int)self->size);
    weft_status status = wire->kind->connect(wire->inside, peer, address, bytes);
    if (status != WEFT_OK) return own_fail(wire, status, "connect");
    bool is_known = peer == self->rank || wire->tcp.links[peer].state != WEFTI_LINK_NONE;
    return is_known ? WEFT_OK : wefti_tcp_prepare(&wire->tcp, peer);
}

static void service(tcp_wire *tcp, uint64_t now_ns) {
    own_wire *wire = (own_wire *)tcp;
    (void)now_ns;
    if (wire->kind->progress) wire->kind->progress(wire->inside);
    for (int32_t peer = 0; peer < tcp->base.wire.size; peer++) {
        tcp_link *link = &tcp->links[peer];
        if (link->state != WEFTI_LINK_CONNECTING) continue;
        switch (wire->kind->link(wire->inside, peer)) {
        case WEFT_WIRE_CONNECTING: break;
        case WEFT_WIRE_UP:
            link->stream = &wire->streams[peer].stream;
            link->state = WEFTI_LINK_UP;
            break;
        default: wefti_tcp_link_end(tcp, peer, WEFTI_LINK_DOWN, "the program's own wire could not connect"); break;
        }
    }
}

static const char *cause(const tcp_wire *tcp, int32_t peer) {
    const char *text = ((const own_wire *)tcp)->streams[peer].cause;
    return *text ? text : NULL;
}

static void close_own(tcp_wire *tcp) {
    own_wire *wire = (own_wire *)tcp;
    if (wire->is_open) wire->kind->close(wire->inside);
    wefti_free(wire->streams, (size_t)tcp->base.wire.size * sizeof *wire->streams);
}

static const tcp_medium medium = {.wire_bytes = sizeof(own_wire),
                                  .name = "own",
                                  .address = own_address,
                                  .connect = own_connect,
                                  .service = service,
                                  .cause = cause,
                                  .close = close_own};

static weft_status open_inside(own_wire *wire, const wefti_wire_options *options) {
    weft_wire_setup setup = {.rank = options->rank, .size = options->size, .job = options->job ? options->job : ""};
    WEFTI_TRY(wefti_alloc((size_t)options->size * sizeof *wire->streams, "streams", &wire->streams));
    for (int32_t peer = 0; peer < options->size; peer++) wire->streams[peer] = (own_stream){.stream = {&stream_ops}, .wire = wire, .peer = peer};
    weft_status status = wire->kind->open(wire->kind->context, &setup, &wire->inside);
    wire->is_open = status == WEFT_OK;
    return wire->is_open ? WEFT_OK : own_fail(wire, status, "open");
}

weft_status wefti_wire_own_open(const wefti_wire_options *options, wefti_wire **wire_out) {
    own_wire *wire = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *wire, "a wire of the program's own", &wire));
    wire->kind = options->own;
    snprintf(wire->name, sizeof wire->name, "%s", options->own->name);
    weft_status status = wefti_tcp_open(&wire->tcp, options, &medium);
    wire->tcp.base.wire.can.name = wire->name;
    if (options->own->same_host) wire->tcp.base.wire.can.flags |= WEFTI_WIRE_SAME_HOST;
    if (status == WEFT_OK) status = open_inside(wire, options);
    if (status != WEFT_OK)
        wefti_tcp_free(&wire->tcp);
    else
        *wire_out = &wire->tcp.base.wire;
    return status;
}

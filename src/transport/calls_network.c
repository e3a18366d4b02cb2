/* Calls in a network that has no sockets: its own streams, between those who need not prove who they are. As after a handshake, a caller hears
 * (by one byte) that the one who let him in wants such calls; it is hung up on him otherwise. Memory: 16 bytes a seat. */
#include "transport/calls.h"

typedef struct knock {
    wefti_stream *stream; /* NULL: none under way */
    uint64_t      next_ns;
} knock;

typedef struct network_calls {
    wefti_calls         base; /* first */
    wefti_calls_options options;
    knock              *knocks; /* [seats] */
    int32_t             called; /* a seat; -1: nobody */
    wefti_stream       *dialled;
    uint64_t            dialled_ns;
} network_calls;

/* So long a call may take to be taken, as a handshake. */
#define LIMIT_NS (5 * WEFTI_SECOND_NS)

weft_status wefti_calls_accept_network(const wefti_network *network, bool announcing, int32_t *seat_out, wefti_stream **stream_out) {
    int purpose;
    while (network->accept(network->context, seat_out, &purpose, stream_out) == WEFT_OK) {
        wefti_stream *stream = *stream_out;
        size_t        sent = 0;
        if (purpose == announcing && stream->ops->send(stream, "", 1, &sent) == WEFT_OK) return WEFT_OK;
        stream->ops->close(stream);
    }
    return WEFT_E_AGAIN;
}

static weft_status let_in(wefti_calls *calls, uint64_t now_ns, int32_t *seat_out, wefti_frames *frames_out) {
    network_calls       *self = (network_calls *)calls;
    const wefti_network *network = self->options.network;
    wefti_stream        *stream = NULL;
    if (wefti_calls_accept_network(network, self->options.announcing, seat_out, &stream) != WEFT_OK) return WEFT_E_AGAIN;
    wefti_frames_open_stream(frames_out, stream, self->options.most_bytes, now_ns);
    return WEFT_OK;
}

static void hang_up(wefti_calls *calls) {
    network_calls *self = (network_calls *)calls;
    if (self->dialled) self->dialled->ops->close(self->dialled);
    self->dialled = NULL;
    self->called = -1;
}

static weft_status call(wefti_calls *calls, int32_t seat, uint64_t now_ns, wefti_frames *frames_out) {
    network_calls       *self = (network_calls *)calls;
    const wefti_network *network = self->options.network;
    if (self->called != seat) hang_up(calls);
    self->called = seat;
    char   word;
    size_t got = 0;
    if (!self->dialled) {
        if (network->dial(network->context, seat, self->options.announcing, &self->dialled) != WEFT_OK) return WEFT_E_LINK;
        self->dialled_ns = now_ns;
    }
    weft_status status = network->connected(self->dialled);
    if (status == WEFT_OK) status = self->dialled->ops->receive(self->dialled, &word, 1, &got);
    if (status == WEFT_E_AGAIN && now_ns - self->dialled_ns < LIMIT_NS) return status;
    if (status == WEFT_E_AGAIN) status = WEFT_E_LINK;
    if (status == WEFT_OK) {
        wefti_frames_open_stream(frames_out, self->dialled, self->options.most_bytes, now_ns);
        self->dialled = NULL;
    }
    hang_up(calls);
    return status;
}

static weft_status knock_at(wefti_calls *calls, int32_t seat, uint64_t now_ns) {
    network_calls       *self = (network_calls *)calls;
    const wefti_network *network = self->options.network;
    knock               *it = &self->knocks[seat];
    if (!it->stream) {
        if (now_ns < it->next_ns || network->dial(network->context, seat, false, &it->stream) != WEFT_OK) return WEFT_E_AGAIN;
        it->next_ns = now_ns + WEFTI_KNOCK_LIMIT_NS;
    }
    weft_status status = network->connected(it->stream);
    if (status == WEFT_E_AGAIN && now_ns < it->next_ns) return status;
    it->stream->ops->close(it->stream);
    *it = (knock){NULL, now_ns + WEFTI_KNOCK_NS};
    return status == WEFT_E_LINK ? WEFT_OK : status; /* it took the call */
}

static void close_calls(wefti_calls *calls) {
    network_calls *self = (network_calls *)calls;
    hang_up(calls);
    for (int32_t i = 0; self->knocks && i < self->options.seats; i++)
        if (self->knocks[i].stream) self->knocks[i].stream->ops->close(self->knocks[i].stream);
    wefti_free(self->knocks, (size_t)self->options.seats * sizeof *self->knocks);
    wefti_free(self, sizeof *self);
}

static const wefti_calls_ops network_ops = {let_in, call, hang_up, knock_at, close_calls};

weft_status wefti_calls_open_network(const wefti_calls_options *options, wefti_calls **calls_out) {
    network_calls *self = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *self, "calls after a fault", &self));
    *self = (network_calls){.base = {&network_ops}, .options = *options, .called = -1};
    weft_status status = wefti_alloc((size_t)options->seats * sizeof *self->knocks, "ranks that are looked for", &self->knocks);
    if (status == WEFT_OK) *calls_out = &self->base;
    else close_calls(&self->base);
    return status;
}

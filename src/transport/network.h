/* What a transport can stand on instead of sockets, threads and this machine: a network in which everyone is connected from the
 * start and nobody has to prove who he is. The simulator is one (sim.h). */
#ifndef WEFTI_TRANSPORT_NETWORK_H
#define WEFTI_TRANSPORT_NETWORK_H

#include "core/iface/wire.h"

typedef struct wefti_stream wefti_stream;

/* A stream of bytes both ways, as a connected socket that never blocks. */
typedef struct wefti_stream_ops {
    /* WEFT_OK with at least one byte moved; WEFT_E_AGAIN; WEFT_E_LINK once the other end has gone, which is told after the last
     * byte that it sent. */
    weft_status (*send)(wefti_stream *stream, const void *bytes, size_t count, size_t *sent_out);
    weft_status (*receive)(wefti_stream *stream, void *bytes, size_t most, size_t *received_out);
    void (*close)(wefti_stream *stream);
} wefti_stream_ops;
struct wefti_stream {
    const wefti_stream_ops *ops;
};

typedef struct wefti_network {
    const char *wire_name;
    weft_status (*open)(const wefti_wire_options *options, wefti_wire **wire_out); /* the wire, with `shared` */
    void    *shared;
    uint64_t host_number; /* equal on ranks of one host */
    /* The next stream to `peer`, which asks for its end of it in the same order. */
    weft_status (*stream)(void *context, int32_t peer, wefti_stream **stream_out);
    /* For going on after a fault; NULL where nobody does. Begins to listen, or ends; as often. */
    void (*listen)(void *context, bool listens);
    /* Begins to call a peer, who listens or does not; `purpose` is a small number. */
    weft_status (*dial)(void *context, int32_t peer, int purpose, wefti_stream **stream_out);
    /* Of a stream that was dialled: WEFT_OK: it may be used; WEFT_E_AGAIN; WEFT_E_PEER: nobody listens there. */
    weft_status (*connected)(const wefti_stream *stream);
    /* The next stream that somebody has dialled, who, and why; WEFT_E_AGAIN. */
    weft_status (*accept)(void *context, int32_t *peer_out, int *purpose_out, wefti_stream **stream_out);
    /* Has the process of a peer that lives and does not come ended, as a launcher does; NULL: nobody can. */
    void (*fence)(void *context, int32_t peer);
    /* Runs a function beside the caller; join waits until it has returned. Waits of both are the host's. */
    weft_status (*spawn)(void *context, void (*function)(void *argument), void *argument, void **thread_out);
    void (*join)(void *context, void *thread);
    void *context;
} wefti_network;

#endif

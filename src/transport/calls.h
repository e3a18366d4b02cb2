/* Calls from door to door: how a gathering lets callers in, calls its leader, and finds out whose process lives. Over TCP (calls_tcp.c) every
 * caller proves himself by the handshake; in a network (calls_network.c) everyone is who he is. Nothing here waits. */
#ifndef WEFTI_TRANSPORT_CALLS_H
#define WEFTI_TRANSPORT_CALLS_H

#include "transport/door.h"
#include "transport/frames.h"

typedef struct wefti_calls wefti_calls;

typedef struct wefti_calls_options {
    const wefti_host    *host;
    const wefti_place   *place;   /* job, secret, whether to encrypt */
    const wefti_network *network; /* instead of TCP; NULL: none */
    int32_t              seat, seats;
    wefti_door          *door;    /* this rank's */
    const wefti_socket_address *doors; /* [seats] of all; NULL in a network. Borrowed, as all pointers here */
    uint32_t             most_bytes;   /* of a frame's payload */
    bool                 announcing;   /* by newcomers to those who do not gather: nobody takes such a call for one to a leader */
} wefti_calls_options;

typedef struct wefti_calls_ops {
    /* The next one who has called and is of this job: WEFT_OK with his seat and the connection, or WEFT_E_AGAIN. Only while the door is
     * attended to. */
    weft_status (*let_in)(wefti_calls *calls, uint64_t now_ns, int32_t *seat_out, wefti_frames *frames_out);
    /* Goes on calling a seat, one at a time: another one ends the call before. WEFT_OK with the connection; WEFT_E_AGAIN; WEFT_E_PEER: its
     * process has ended; WEFT_E_TIMEOUT: nothing answers there, it may be cut off; WEFT_E_LINK: it lives and is not ready. */
    weft_status (*call)(wefti_calls *calls, int32_t seat, uint64_t now_ns, wefti_frames *frames_out);
    void (*hang_up)(wefti_calls *calls); /* ends that call, and on whoever is being let in */
    /* Whether a process has the door of a seat, looked at every 250 ms: WEFT_OK, WEFT_E_AGAIN: not known; WEFT_E_PEER and WEFT_E_TIMEOUT as
     * above. */
    weft_status (*knock)(wefti_calls *calls, int32_t seat, uint64_t now_ns);
    void (*close)(wefti_calls *calls);
} wefti_calls_ops;

struct wefti_calls {
    const wefti_calls_ops *ops;
};

#define WEFTI_KNOCK_NS (250 * WEFTI_MILLISECOND_NS)
#define WEFTI_KNOCK_LIMIT_NS WEFTI_SECOND_NS /* what has no answer by then is tried again */

WEFT_MUST_CHECK weft_status wefti_calls_open(const wefti_calls_options *options, wefti_calls **calls_out);
WEFT_MUST_CHECK weft_status wefti_calls_open_network(const wefti_calls_options *options, wefti_calls **calls_out);
/* The next one who has called in a network, for this purpose; on the others it is hung up. WEFT_E_AGAIN: nobody. */
weft_status wefti_calls_accept_network(const wefti_network *network, bool announcing, int32_t *seat_out, wefti_stream **stream_out);
void wefti_calls_close(wefti_calls *calls); /* NULL is fine */

#endif

/* Survivors of a fault that come together again: by the roster (roster.h), over TCP.
 *
 * Every rank keeps a door: a listening socket whose address all others know. The leader lets callers in at its door; who has proved himself
 * by the handshake waits there until the leader has decided. The new world then meets at the
 * door of its rank 0 as any other does at its store. */
#ifndef WEFTI_TRANSPORT_GATHER_H
#define WEFTI_TRANSPORT_GATHER_H

#include "transport/door.h"

typedef struct wefti_gather_options {
    const wefti_host           *host;
    const wefti_place          *place;  /* job, secret */
    int32_t                     seat, seats;
    wefti_door                 *door;   /* this rank's, which the caller attends to meanwhile */
    const wefti_socket_address *doors;  /* [seats] of all */
    uint8_t                    *known;  /* [seats] wefti_seat, as for the roster; changed */
    uint32_t                    epoch;  /* the last one that this rank knows of */
    int32_t                     least;
    uint64_t                    patience_ns;
} wefti_gather_options;

/* The new world. Released by wefti_gathering_release. */
typedef struct wefti_gathering {
    uint32_t epoch;   /* above all that its members know of */
    int32_t  rank, size, seats;
    int32_t *members; /* [seats] the seat of each rank, the first `size` of them */
} wefti_gathering;

/* Blocks until the new world is decided. WEFT_E_PEER: this rank cannot go on. */
WEFT_MUST_CHECK weft_status wefti_gather(const wefti_gather_options *options, wefti_gathering *gathering_out);
void wefti_gathering_release(wefti_gathering *gathering);

#endif

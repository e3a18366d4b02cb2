/* Survivors of a fault that come together again: by the roster (roster.h), over calls from door to door (calls.h), so over TCP and in the
 * simulator alike.
 *
 * The leader lets callers in at its door; who is let in waits there until the leader has decided. The new world then meets at the door of its
 * rank 0 as any other does at its store.
 *
 * How a replacement could come in: a process that holds the job's secret passes the handshake of calls_tcp.c as the seat whose place it takes
 * (one that the roster has as empty; a wrong or doubled number is refused there), so no door needs another lock. It says so by another frame
 * than HELLO, with the address of a door of its own; the leader seats it as WEFTI_SEAT_HERE like a survivor, and MEMBERS then carries the
 * doors that are new beside the seats, for all to put into their list before they meet. It has no epoch and no members of its own: it takes
 * both from MEMBERS. Nobody waits for one, so the leader has to be told by its options how long to, once all survivors are in. Until then
 * it calls doors in the order of their seats, as survivors do; whoever does not lead hangs up on it (wefti_door_drain). */
#ifndef WEFTI_TRANSPORT_GATHER_H
#define WEFTI_TRANSPORT_GATHER_H

#include "transport/calls.h"

enum { WEFTI_GATHER_FRAME_BYTES = 1 << 20 }; /* 256 Ki seats */

typedef struct wefti_gather wefti_gather;

typedef struct wefti_gather_options {
    const wefti_host *host;
    int32_t           seat, seats;
    wefti_door       *door;    /* this rank's, which the caller attends to meanwhile */
    wefti_calls      *calls;
    const int32_t    *members; /* [size] the seats of the world that was lost; all others are empty */
    int32_t           size;
    int32_t           blamed;  /* the rank that its verdict names: it may live, and is not waited for; -1: none */
    uint32_t          epoch;   /* the last one that this rank knows of */
    int32_t           least;
    uint64_t          patience_ns;
} wefti_gather_options;

/* The new world. */
typedef struct wefti_gathering {
    uint32_t       epoch;   /* above all that its members know of */
    int32_t        rank, size;
    const int32_t *members; /* [size] the seat of each rank; the gather's */
} wefti_gathering;

WEFT_MUST_CHECK weft_status wefti_gather_open(const wefti_gather_options *options, wefti_gather **gather_out);
/* Blocks until the new world is decided. WEFT_E_PEER: this rank cannot go on. */
WEFT_MUST_CHECK weft_status wefti_gather_run(wefti_gather *gather, wefti_gathering *gathering_out);
/* Ends its connections. NULL is fine. */
void wefti_gather_close(wefti_gather *gather);

#endif

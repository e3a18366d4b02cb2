/* Survivors of a fault that come together again: by the roster (roster.h), over calls from door to door (calls.h), so over TCP and in the
 * simulator alike.
 *
 * The leader lets callers in at its door; who is let in waits there until the leader has decided. The new world then meets at the door of its
 * rank 0 as any other does at its store.
 *
 * A newcomer, in place of a lost process, holds the job's secret and passes the handshake of calls_tcp.c as the seat that it takes. It calls all
 * others in turn; whoever does not lead hangs up on it (wefti_door_drain). Its door is where WEFT_DOORS says, so nobody has to be told; it opens
 * the door once a leader has taken its call, before it says who it is, and shuts it where that came to nothing: while nobody has let it
 * in, its seat is empty to all, and while the others wait for it, they find that its process lives. It takes epoch and members from MEMBERS. */
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
    uint64_t          replacement_ns; /* for newcomers in place of those who are lost; 0: none is waited for, or let in */
    int32_t           newcomers;      /* that have said that they wait, and take part in no world yet */
    void (*fence)(void *context, int32_t seat);   /* ends the process of a rank that lives and does not come; NULL: nobody can */
    bool (*is_gone)(void *context, int32_t seat); /* whether nobody will come in place of a lost rank; NULL: not known */
    /* For a newcomer: opens its door, which it has until it is shut; NULL: it cannot. */
    wefti_door *(*open_door)(void *context);
    void (*shut_door)(void *context);
    void *context;
    wefti_calls *announcing; /* by which it tells who lives and does not gather that it waits */
} wefti_gather_options;

/* The new world. */
typedef struct wefti_gathering {
    uint32_t       epoch;   /* above all that its members know of */
    int32_t        rank, size;
    const int32_t *members; /* [size] the seat of each rank, the first one's no newcomer's, the others in order; the gather's */
} wefti_gathering;

WEFT_MUST_CHECK weft_status wefti_gather_open(const wefti_gather_options *options, wefti_gather **gather_out);
/* Blocks until the new world is decided. WEFT_E_PEER: this rank cannot go on. */
WEFT_MUST_CHECK weft_status wefti_gather_run(wefti_gather *gather, wefti_gathering *gathering_out);
/* The same for a newcomer, which has no door yet: calls all others in turn until one leads and lets it in, for patience_ns at most. members, size,
 * least and replacement_ns are not looked at. WEFT_E_PEER: nobody did, or nobody is left. */
WEFT_MUST_CHECK weft_status wefti_gather_run_newcomer(wefti_gather *gather, wefti_gathering *gathering_out);
/* Whether a gathering that failed leaves others who may have gone on without this rank. */
bool wefti_gather_left_behind(const wefti_gather *gather);
/* Ends its connections. NULL is fine. */
void wefti_gather_close(wefti_gather *gather);

#endif

/* Who goes on: the decision that the survivors of a fault make together.
 *
 * Seats are the ranks that the job was started with. A roster is one rank's view of them: a state machine that is told what happened and
 * asked what to do, with no clock, socket or memory of anybody else's, so that tests can drive it. */
#ifndef WEFTI_TRANSPORT_ROSTER_H
#define WEFTI_TRANSPORT_ROSTER_H

#include "core/iface/host.h"

typedef enum wefti_seat {
    WEFTI_SEAT_EMPTY,    /* its process has ended, or it was left behind before */
    WEFTI_SEAT_SILENT,   /* the verdict names it, but its process may live: not waited for, and counted as if it might go on elsewhere */
    WEFTI_SEAT_EXPECTED, /* not known to be lost */
    WEFTI_SEAT_HERE      /* has come to this leader */
} wefti_seat;

typedef struct wefti_roster_options {
    int32_t  me, seats;
    int32_t  least;       /* of them to go on with; at least 1 */
    uint64_t patience_ns; /* with those who are expected, seem to be alive, and do not come */
    uint64_t replacement_ns; /* with seats that are lost, for another process to take them; 0: none is waited for */
    int32_t  newcomers;      /* that are known to wait for seats which were empty before */
    bool     fence;          /* somebody can end the processes of those who live and do not come */
} wefti_roster_options;

typedef struct wefti_roster {
    wefti_roster_options options;
    uint8_t *seats;       /* [seats] wefti_seat; the caller's, who fills in what is known of each */
    int32_t  taken;       /* seats that were not empty at the start, and newcomers: as many may come */
    uint64_t leads_ns;    /* when this rank began to lead; 0: it does not */
    uint64_t fenced_ns;   /* when it had those ended who live and did not come; 0: it has not */
    uint64_t called_ns;   /* when it began to call the one that it takes for the leader … */
    int32_t  called;      /* … which is that one; -1 */
    bool     let_in;      /* by that one: the caller's to set */
    int32_t  gone;        /* of them that will not: the caller's to set */
    int32_t  passed;      /* how many times it went on to another one */
    bool     left_behind; /* it failed, and the others may have gone on without it */
} wefti_roster;

typedef enum wefti_roster_do {
    WEFTI_ROSTER_CALL,   /* call `leader` */
    WEFTI_ROSTER_LEAD,   /* let the others in */
    WEFTI_ROSTER_FENCE,  /* the same, and have the processes of those ended who may live and are not here; said once */
    WEFTI_ROSTER_DECIDE, /* those who are here are the new world; this rank leads it */
    WEFTI_ROSTER_FAIL    /* this rank cannot go on; the thread's message says why */
} wefti_roster_do;

/* `seats` lives as long as the roster; this rank's own is set to be here. */
void wefti_roster_open(wefti_roster *roster, const wefti_roster_options *options, uint8_t *seats);
/* What is so: a seat is taken here; whoever sat there is lost. */
void wefti_roster_here(wefti_roster *roster, int32_t seat);
void wefti_roster_lost(wefti_roster *roster, int32_t seat);
/* The leader lives and has not let this rank in for a while. Where replacements are waited for, another one is called then: it may be a newcomer,
 * who sits in front of the one that leads. */
void wefti_roster_pass(wefti_roster *roster);
/* What is to be done. WEFT_E_PEER, with the message, comes with FAIL. */
weft_status wefti_roster_progress(wefti_roster *roster, uint64_t now_ns, wefti_roster_do *do_out, int32_t *leader_out);
int32_t wefti_roster_count(const wefti_roster *roster, wefti_seat state);

#endif

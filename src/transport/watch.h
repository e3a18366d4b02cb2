/* What a rank has been doing of late: for people who ask why a run stands still, and for naming a rank that the others wait for.
 *
 * Every group keeps a track: a ring of its latest operations. One thread writes to it, the group's; any thread may read it, while it is
 * written. Noting an operation is a handful of plain stores. */
#ifndef WEFTI_TRANSPORT_WATCH_H
#define WEFTI_TRANSPORT_WATCH_H

#include <pthread.h>
#include <stdatomic.h>

#include "core/iface/collective.h"

enum { WEFTI_TRACK_KEEPS = 16, WEFTI_TRACK_HEADER_WORDS = 4 };

/* One operation. `number` is 0 while it is written; readers look at it before and after. */
typedef struct wefti_track_record {
    _Atomic uint64_t number; /* of the record in its track, from 1 */
    _Atomic uint64_t header[WEFTI_TRACK_HEADER_WORDS]; /* a coll_header */
    _Atomic uint64_t started_ns, ended_ns;             /* 0: not seen yet; as of the last look at the clock */
    _Atomic uint64_t state;                            /* 1 + status where it has ended (0: in flight), and << 32 1 + the member waited for */
} wefti_track_record;

typedef struct wefti_track {
    struct wefti_track *next;
    uint16_t            id;    /* of the group */
    int32_t             size;
    int32_t            *ranks; /* [size] */
    uint64_t            noted; /* the writer's */
    wefti_track_record  records[WEFTI_TRACK_KEEPS];
} wefti_track;

struct wefti_watch {
    const wefti_host *host;
    pthread_mutex_t   lock;   /* of the list */
    wefti_track      *tracks;
    _Atomic uint64_t  waited_ns, operations; /* in all groups, since the beginning */
};

WEFT_MUST_CHECK weft_status wefti_watch_create(const wefti_host *host, wefti_watch **watch_out);
void wefti_watch_release(wefti_watch *watch);
/* A group's track; NULL where memory is short: then nothing is noted. `watch` may be NULL. */
wefti_track *wefti_watch_add(wefti_watch *watch, uint16_t id, const int32_t *ranks, int32_t size);
void wefti_watch_remove(wefti_watch *watch, wefti_track *track);
/* One line for each operation that is known, oldest first; those in flight say how long, and for whom. Any thread. */
void wefti_watch_describe(wefti_watch *watch, wefti_text *text);

/* --- for the writer; NULL is allowed --- */

/* Notes an operation; gives what to end it with. */
uint64_t wefti_track_begin(wefti_track *track, const void *header, uint64_t now_ns);

static inline wefti_track_record *wefti_track_find(wefti_track *track, uint64_t number) {
    wefti_track_record *record = track ? &track->records[number % WEFTI_TRACK_KEEPS] : NULL;
    return record && atomic_load_explicit(&record->number, memory_order_relaxed) == number ? record : NULL;
}
static inline void wefti_track_time(wefti_track *track, uint64_t number, uint64_t now_ns) {
    wefti_track_record *record = wefti_track_find(track, number);
    if (record) atomic_store_explicit(&record->started_ns, now_ns, memory_order_relaxed);
}
static inline void wefti_track_wait(wefti_track *track, uint64_t number, int32_t member) {
    wefti_track_record *record = wefti_track_find(track, number);
    if (record) atomic_store_explicit(&record->state, (uint64_t)(member + 1) << 32, memory_order_relaxed);
}
static inline void wefti_track_end(wefti_track *track, uint64_t number, weft_status status, uint64_t now_ns) {
    wefti_track_record *record = wefti_track_find(track, number);
    if (!record) return;
    atomic_store_explicit(&record->ended_ns, now_ns, memory_order_relaxed);
    atomic_store_explicit(&record->state, 1 + (uint64_t)status, memory_order_relaxed);
}

#endif

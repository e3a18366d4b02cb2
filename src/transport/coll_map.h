/* What lies in the memory that a mapped group shares, between coll_map.c and coll_share.c. */
#ifndef WEFTI_TRANSPORT_COLL_MAP_H
#define WEFTI_TRANSPORT_COLL_MAP_H

#include "core/base/stream.h"
#include "transport/coll.h"

enum { SLOT_INLINE_BYTES = 32 };
/* What is read and stored before going on: fits the first cache with its sources. */
#define BLOCK_BYTES ((size_t)16 << 10)
/* Staging of one rank for one large operation with foreign buffers: in and out, two halves each. */
#define STAGE_HALF_BYTES ((size_t)1 << 20)
#define STAGE_BYTES (4 * STAGE_HALF_BYTES)

/* One rank's side of one operation. Only its owner writes to it. */
typedef struct map_slot {
    /* What the others check, and tiny data, in one line: one transfer between cores is all that 8 bytes take. */
    _Alignas(64) _Atomic uint64_t stamp; /* place + 1, stored last: the line (and the next) is complete */
    uint64_t count;
    uint8_t kind, dtype, op, algorithm;
    int32_t root;
    uint64_t before; /* hash of the calls before */
    uint8_t data[SLOT_INLINE_BYTES];
    /* twoshot: where the buffers are; region 0: in staging. */
    uint32_t send_region, receive_region;
    uint64_t send_offset, receive_offset;
    uint64_t extra; /* of the header, where it is not 0 */
    uint32_t in_place;
    uint8_t reads;         /* its owner can read all others' memory (coll_pull.c) … */
    uint8_t pulls;         /* … and, of who decides that, the operation is to go that way */
    uint8_t fed;           /* of a broadcast's root: its data comes through its feed (coll_feed.c) … */
    uint64_t feed_first;   /* … where it begins there */
    uint64_t send_address; /* in its owner's process */
    /* twoshot: how far its owner is. */
    _Alignas(64) _Atomic uint64_t staged; /* segments of its send buffer that lie in its staging */
    _Atomic uint64_t worked;              /* segments of its share that it has reduced and stored everywhere */
    _Atomic uint64_t copied;              /* segments that it has copied out of its staging */
    _Atomic uint64_t done;                /* 1: reads and writes nobody's memory any more; 2: that, after a refusal */
    _Atomic uint64_t refused;             /* 1: somebody's memory could not be read: all go through staging */
} map_slot;
_Static_assert(sizeof(map_slot) == 192, "three cache lines");

/* Where the others say goodbye to a member, at the end of its region: the only words there that others write. */
typedef struct map_farewell {
    uint64_t members, index; /* of the group; its owner's */
    _Atomic uint64_t left[]; /* [members] 1 + the first operation that the member does not take part in; 0: it is there */
} map_farewell;

/* A ring of data that its owner broadcasts, behind this; positions count bytes from the group's beginning. */
#define FEED_BYTES ((size_t)1 << 20)
typedef struct map_line {
    _Alignas(WEFTI_CACHE_LINE) _Atomic uint64_t position;
} map_line;
typedef struct map_feed {
    map_line written; /* by its owner */
    map_line taken[]; /* [members] what its owner has taken out of each member's feed */
} map_feed;

/* What a peer's region is like here. */
typedef struct map_peer {
    uint8_t *base;              /* of its region in this rank's memory; NULL until known */
    uint64_t info[2];           /* what it sent: region id, layout */
    wefti_wire_op transfers[2]; /* receive, send */
    bool sent, received;        /* posted */
} map_peer;

/* Which of two ways is the quicker, for operations of a kind and length: of every MAP_EVERY a few in a row go the first way and are timed, then a few
 * the second, and the quickest tells. In a row, as each leaves the caches to the next. */
enum { MAP_EVERY = 256, MAP_TRIES = 3 };
typedef struct map_race {
    uint64_t best_ns[2]; /* 0: not tried */
    uint32_t operations; /* so far */
    bool     second;     /* it won the last time */
} map_race;
/* How operations go best in which buffers are not mapped: through staging, or by pulls. */
typedef struct map_way {
    map_race race;
    bool     foreign;
} map_way;
enum { MAP_LENGTHS = 14 }; /* 16 KiB to 128 MiB and more */
typedef enum map_reads { MAP_READS_UNKNOWN, MAP_READS_ALL, MAP_READS_NOT_ALL } map_reads;

struct coll_map {
    wefti_wire_region *region; /* this rank's: slots, then their payloads, then staging, then the farewell */
    map_peer *peers;           /* [size] */
    uint64_t info[2];
    uint64_t depth; /* slots: 2 · in_flight + COLL_STRICT_EVERY */
    size_t payload_offset, stage_offset, feed_offset, ring_offset, farewell_offset, size_bytes;
    uint64_t feed_end;   /* where this member's next data begins in its feed … */
    uint64_t feed_until; /* … and how far it is known to be free */
    bool led;            /* this member has been a broadcast's root, and met all the others there */
    coll_share *shares; /* [in_flight] */
    void **pointers;    /* [in_flight · 2 · size]: the shares' */
    wefti_pace pace;    /* of copies to staging */
    map_reads reads; /* of all other members' memory */
    map_way ways[WEFTI_COLLECTIVE_KIND_COUNT][MAP_LENGTHS];
    map_race stores[WEFTI_COLLECTIVE_KIND_COUNT][MAP_LENGTHS]; /* of results that leave past the caches, or through them */
    uint8_t *block;     /* [BLOCK_BYTES] what was just reduced */
};

/* A large operation's view of the others. */
struct coll_share {
    uint8_t **send, **receive;       /* [size] where each member's buffer begins here; NULL: foreign, use its staging */
    uint64_t staged, worked, copied; /* as in the slot */
    uint64_t segments, cleared;      /* of all; of those this rank may work on without another look at the others */
    size_t piece;                    /* elements of one share in a segment; all of it where nobody is foreign */
    size_t cursor;                   /* elements of this rank's share that are done */
    int32_t resolved, done;          /* members */
    bool foreign;                    /* somebody's buffers go through staging */
    bool stream;                     /* results leave past the caches */
    bool root_copies;                /* of a broadcast: into its own result, and nobody else does … */
    size_t own;                      /* … bytes of it so far */
    bool over;                       /* has said that it is done */
    bool fed;                        /* it goes through the root's feed */
    bool pull, refused;              /* it goes by pulls; it did, and begins again */
    int trial, store_trial;          /* its number among those that tell which way is the quicker; 0: it is none */
    int32_t pulled;                  /* members whose part is here; `cursor` then counts bytes of the next */
    uint64_t resolved_ns;            /* of a trial */
};

/* Gives an operation its number among the trials, 0 where it is none; whether it goes the second way. */
static inline bool map_race_enter(map_race *race, int *trial_out) {
    int turn = (int)(race->operations++ % MAP_EVERY);
    *trial_out = turn < 2 * MAP_TRIES ? turn + 1 : 0;
    return *trial_out ? turn >= MAP_TRIES : race->second;
}
/* After a trial that went one way. */
static inline void map_race_note(map_race *race, int trial, bool second, uint64_t took_ns) {
    uint64_t *best_ns = &race->best_ns[second];
    if (*best_ns == 0 || took_ns < *best_ns) *best_ns = took_ns;
    if (trial < 2 * MAP_TRIES) return;
    if (race->best_ns[0] != 0 && race->best_ns[1] != 0) race->second = race->best_ns[1] < race->best_ns[0]; /* else one was not tried: as before */
    race->best_ns[0] = race->best_ns[1] = 0;
}
/* Whether the second way, of which a trial took so long, need not be tried again: the first took half as long. */
static inline bool map_race_is_lost(const map_race *race, uint64_t took_ns) {
    return race->best_ns[0] != 0 && took_ns / 2 > race->best_ns[0];
}
/* The place of a length in tables of lengths. */
static inline int map_length(size_t bytes) {
    int length = 63 - __builtin_clzll((unsigned long long)bytes) - 14;
    return length < MAP_LENGTHS ? length : MAP_LENGTHS - 1;
}

/* Of an operation by its place. */
static inline map_slot *map_slot_of(const coll_map *map, int32_t member, uint64_t place) {
    return (map_slot *)map->peers[member].base + place % map->depth;
}
static inline uint8_t *map_payload_of(const coll_map *map, int32_t member, uint64_t place) {
    return map->peers[member].base + map->payload_offset + (size_t)(place % map->depth) * COLL_SMALL_BYTES;
}

static inline map_farewell *map_farewell_of(const coll_map *map, int32_t member) {
    return (map_farewell *)(map->peers[member].base + map->farewell_offset);
}

static inline map_feed *map_feed_of(const coll_map *map, int32_t member) { return (map_feed *)(map->peers[member].base + map->feed_offset); }
static inline uint8_t *map_ring_of(const coll_map *map, int32_t member) { return map->peers[member].base + map->ring_offset; }

/* Writes this rank's slot but for the stamp. */
map_slot *wefti_coll_slot_fill(coll_operation *operation);
static inline void map_slot_publish(map_slot *slot, uint64_t place) {
    atomic_store_explicit(&slot->stamp, place + 1, memory_order_release);
}
/* WEFT_OK once the slots of all members have been seen and agree with ours. */
weft_status wefti_coll_slots_seen(coll_operation *operation);

/* WEFT_OK once a broadcast's root is known to make the same call, and has put its data next to its slot, or says there where it is; now and then, once all are. */
weft_status wefti_coll_root_seen(coll_operation *operation);
/* How far a member that has been met is: grows with each operation that it begins, and with what it puts into feeds and takes out of them. */
uint64_t wefti_coll_moved(const coll_group *group, int32_t member);
/* Copies to memory that the others read next. */
void wefti_coll_copy_to_stage(coll_group *group, void *to, const void *from, size_t bytes);

/* --- coll_feed.c --- */

/* Says in the root's slot whether, and where, a broadcast goes through the feed. */
void wefti_coll_feed_offer(coll_operation *operation, map_slot *slot);
/* Whether it does, once the root has been seen. */
bool wefti_coll_feed_chosen(const coll_operation *operation);
weft_status wefti_coll_feed_advance(coll_operation *operation);

/* --- coll_pull.c --- */

/* Fills this rank's slot with what pulls need. */
void wefti_coll_pull_offer(coll_operation *operation, map_slot *slot);
/* Whether an operation goes by pulls, once all slots have been seen; all members see the same. */
bool wefti_coll_pull_chosen(const coll_operation *operation);
/* Pulls about `budget` bytes; WEFT_OK once what so many members have is here, this one's own last. Where the system refuses, the operation is
 * no pull any more. */
weft_status wefti_coll_pull_advance(coll_operation *operation, int32_t members, size_t budget);
/* Whether another member was refused: then, too. */
bool wefti_coll_pull_refused(coll_operation *operation);
/* After a trial. */
void wefti_coll_pull_note(coll_operation *operation);

/* --- coll_map.c --- */

/* Whether member `index` can still be waited for; tells the fault object where not. */
void wefti_coll_look_at_peer(coll_operation *operation, int32_t index);

#endif

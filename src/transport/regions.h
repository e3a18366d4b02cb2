/* Own exported regions, what was said of them to peers, and what peers said of theirs: for wires whose ranks tell each
 * other of regions by messages. Ids grow and are never used again; the log keeps announcements in order, and each link
 * remembers how far its peer was told. */
#ifndef WEFTI_TRANSPORT_REGIONS_H
#define WEFTI_TRANSPORT_REGIONS_H

#include "core/iface/wire.h"

enum {
    WEFTI_MOST_REGIONS = 65536, /* in the life of a wire; also bounds what a peer may announce */
    WEFTI_REGION_KEYS = 4
};

typedef struct wefti_own_region {
    wefti_wire_region region; /* first: a region is one of these */
    bool              owned;  /* its memory is the wire's */
    void             *extra;  /* the wire's, from add to remove */
} wefti_own_region;

typedef enum wefti_region_state { WEFTI_REGION_UNKNOWN, WEFTI_REGION_KNOWN, WEFTI_REGION_GONE } wefti_region_state;
typedef struct wefti_told_region {
    size_t             size_bytes;
    wefti_region_state state;
    uint64_t           address; /* where the peer has it; for wires that address memory */
    uint32_t           keys[WEFTI_REGION_KEYS];
} wefti_told_region;

typedef struct wefti_told_regions {
    wefti_told_region *slots; /* [capacity] by id - 1 */
    uint32_t           capacity;
} wefti_told_regions;

typedef struct wefti_region_news {
    uint32_t id;
    bool     gone;
} wefti_region_news;

typedef struct wefti_regions {
    wefti_wire         *wire;
    wefti_own_region  **own; /* [count] by id - 1; NULL: released */
    wefti_region_news  *log;
    wefti_told_regions *told; /* [size] by peer */
    uint32_t            count, capacity, log_count, log_capacity;
} wefti_regions;

WEFT_MUST_CHECK weft_status wefti_regions_open(wefti_regions *regions, wefti_wire *wire);
/* Frees the memory of those that are left, and all tables. `extra` must be gone. */
void wefti_regions_close(wefti_regions *regions);
/* Zeroed memory for a region of at least `size_bytes`, page-aligned; *size_out is its rounded size. Free with wefti_free. */
WEFT_MUST_CHECK weft_status wefti_regions_memory_create(const wefti_wire *wire, size_t size_bytes, void **memory_out, size_t *size_out);
/* Both in one, for wires that need nothing else of a region: the memory is the region's. */
WEFT_MUST_CHECK weft_status wefti_regions_create(wefti_regions *regions, size_t size_bytes, wefti_wire_region **region_out);
/* Enters memory as a region, and its news into the log. */
WEFT_MUST_CHECK weft_status wefti_regions_add(wefti_regions *regions, void *base, size_t size_bytes, bool owned, void *extra,
                                              wefti_wire_region **region_out);
/* Takes a region out and frees what is ours of it; the news go into the log. */
void wefti_regions_remove(wefti_regions *regions, wefti_wire_region *region);
/* The next news that still matter to a peer who was told the first *told of the log; NULL where there are none. */
const wefti_region_news *wefti_regions_next_news(const wefti_regions *regions, uint32_t *told);

/* [offset, offset + bytes) of an own region; NULL where there is no such memory. */
uint8_t *wefti_regions_memory(const wefti_regions *regions, uint32_t id, uint64_t offset, uint64_t bytes);
/* region_of */
wefti_wire_region *wefti_regions_find(const wefti_regions *regions, const void *memory, size_t bytes);
/* peer_region, where the link to the peer is in state `link`. Nothing is mapped but this rank's own. */
weft_status wefti_regions_peer(const wefti_regions *regions, int32_t peer, uint32_t id, wefti_wire_link link,
                               wefti_wire_peer_region *region_out);
/* Takes down what a peer said. false: nonsense, or no memory. */
bool wefti_regions_hear(wefti_regions *regions, int32_t peer, uint32_t id, const wefti_told_region *what);
/* What a WRITE or READ must satisfy: within a region that the peer has announced. */
weft_status wefti_regions_check(const wefti_regions *regions, const wefti_wire_op *op, wefti_wire_link link);

#endif

/* The in-process wire: several ranks in one process, each used by a thread of its own or all by one.
 *
 * The ring wire with segments in a hub. Every address of a peer is valid here, so large messages are copied once from
 * buffer to buffer and every region maps. The hub's lock is taken to connect, to look for deaths and for regions; messages
 * take none. Memory: size² rings in the hub. */
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "transport/wire_ring.h"

typedef struct hub_seat {
    ring_segment *segment;
    int           doorbell; /* a duplicate that the hub owns, so that late rings hit no reused descriptor */
    bool          killed;
    bool          taken;    /* a wire sits here, or did */
    ring_wire    *wire;     /* while open */
} hub_seat;

typedef struct buried_region {
    struct buried_region *next;
    void                 *base;
    size_t                size_bytes;
    int32_t               rank; /* whose it was */
    uint32_t              id;
} buried_region;

struct wefti_inproc_hub {
    pthread_mutex_t  lock;
    _Atomic uint32_t changes; /* of seats: lets wires look without the lock */
    int32_t          size;
    size_t           data_bytes;
    hub_seat        *seats; /* [size] */
    buried_region   *buried; /* of closed wires; peers may still be reading them */
};

typedef struct inproc_wire {
    ring_wire         ring;
    wefti_inproc_hub *hub, *own; /* own: the hub, where the wire is alone in it */
    uint32_t          seen_changes;
} inproc_wire;

weft_status wefti_inproc_hub_create(int32_t size, wefti_inproc_hub **hub_out) {
    if (size < 1) return wefti_fail(WEFT_E_INVALID, "a hub of %d ranks", (int)size);
    wefti_inproc_hub *hub = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *hub, "a hub", &hub));
    hub->size = size;
    hub->data_bytes = wefti_ring_data_bytes(&(wefti_wire_options){.size = size});
    weft_status status = wefti_alloc((size_t)size * sizeof *hub->seats, "a hub's seats", &hub->seats);
    if (status == WEFT_OK && pthread_mutex_init(&hub->lock, NULL) != 0)
        status = wefti_fail(WEFT_E_NO_MEMORY, "cannot create a hub's lock");
    if (status != WEFT_OK) {
        wefti_free(hub->seats, (size_t)size * sizeof *hub->seats);
        wefti_free(hub, sizeof *hub);
        return status;
    }
    for (int32_t rank = 0; rank < size; rank++) hub->seats[rank].doorbell = -1;
    *hub_out = hub;
    return WEFT_OK;
}

void wefti_inproc_hub_release(wefti_inproc_hub *hub) {
    if (!hub) return;
    for (int32_t rank = 0; rank < hub->size; rank++) {
        wefti_free(hub->seats[rank].segment, ring_segment_bytes(hub->size, hub->data_bytes));
        if (hub->seats[rank].doorbell >= 0) close(hub->seats[rank].doorbell);
    }
    for (buried_region *buried = hub->buried, *next; buried; buried = next) {
        next = buried->next;
        wefti_free(buried->base, buried->size_bytes);
        wefti_free(buried, sizeof *buried);
    }
    pthread_mutex_destroy(&hub->lock);
    wefti_free(hub->seats, (size_t)hub->size * sizeof *hub->seats);
    wefti_free(hub, sizeof *hub);
}

static void ring_everyone(wefti_inproc_hub *hub) {
    for (int32_t rank = 0; rank < hub->size; rank++)
        if (hub->seats[rank].doorbell >= 0) {
            ssize_t ignored = write(hub->seats[rank].doorbell, &(uint64_t){1}, 8);
            (void)ignored;
        }
}

void wefti_inproc_hub_kill(wefti_inproc_hub *hub, int32_t rank) {
    pthread_mutex_lock(&hub->lock);
    hub->seats[rank].killed = true;
    atomic_fetch_add(&hub->changes, 1);
    ring_everyone(hub);
    pthread_mutex_unlock(&hub->lock);
}

static void inproc_service(ring_wire *ring, uint64_t now_ns) {
    (void)now_ns;
    inproc_wire *wire = (inproc_wire *)ring;
    uint32_t     changes = atomic_load(&wire->hub->changes);
    if (changes == wire->seen_changes) return;
    wire->seen_changes = changes;
    pthread_mutex_lock(&wire->hub->lock);
    for (int32_t peer = 0; peer < wire->hub->size; peer++) {
        hub_seat  *seat = &wire->hub->seats[peer];
        ring_link *link = &ring->links[peer];
        if (link->state == WEFTI_LINK_CONNECTING && seat->segment)
            wefti_ring_link_up(ring, peer, seat->segment, seat->doorbell, true);
        if (seat->killed && peer != ring->base.wire.rank) link->broken = true;
    }
    pthread_mutex_unlock(&wire->hub->lock);
}

static weft_status inproc_address(wefti_wire *wire, void *address_out, size_t *bytes_out) {
    memcpy(address_out, &wire->rank, sizeof wire->rank);
    *bytes_out = sizeof wire->rank;
    return WEFT_OK;
}

static weft_status inproc_connect(wefti_wire *self, int32_t peer, const void *address, size_t bytes) {
    inproc_wire *wire = (inproc_wire *)self;
    if (peer < 0 || peer >= self->size)
        return wefti_fail(WEFT_E_INVALID, "inproc: there is no rank %d among %d", (int)peer, (int)self->size);
    if (bytes != sizeof peer || memcmp(address, &peer, sizeof peer) != 0)
        return wefti_fail(WEFT_E_CORRUPT, "inproc: the address of rank %d is none of this wire", (int)peer);
    if (wire->ring.links[peer].state != WEFTI_LINK_NONE) return WEFT_OK;
    wire->ring.links[peer].state = WEFTI_LINK_CONNECTING;
    wire->seen_changes = atomic_load(&wire->hub->changes) - 1; /* look again */
    return WEFT_OK;
}

static weft_status inproc_region(wefti_wire *self, void *memory, size_t size_bytes, bool owned,
                                 wefti_wire_region **region_out) {
    inproc_wire *wire = (inproc_wire *)self;
    pthread_mutex_lock(&wire->hub->lock);
    weft_status status = wefti_ring_region_add(&wire->ring, memory, size_bytes, -1, owned, region_out);
    pthread_mutex_unlock(&wire->hub->lock);
    return status;
}

static weft_status inproc_region_create(wefti_wire *self, size_t size_bytes, wefti_wire_region **region_out) {
    void *memory = NULL;
    if (size_bytes > PTRDIFF_MAX - 4096) return wefti_fail(WEFT_E_OVERFLOW, "a region of %zu bytes", size_bytes);
    size_bytes = wefti_align_up(size_bytes ? size_bytes : 1, 4096);
    WEFTI_TRY(wefti_alloc_raw(size_bytes, 4096, "an exported region", &memory));
    memset(memory, 0, size_bytes);
    weft_status status = inproc_region(self, memory, size_bytes, true, region_out);
    if (status != WEFT_OK) wefti_free(memory, size_bytes);
    return status;
}

static weft_status inproc_region_register(wefti_wire *self, void *memory, size_t size_bytes,
                                          wefti_wire_region **region_out) {
    return inproc_region(self, memory, size_bytes, false, region_out);
}

static void inproc_region_release(wefti_wire_region *region) {
    if (!region) return;
    inproc_wire *wire = (inproc_wire *)region->wire;
    ring_region *entry = (ring_region *)region;
    if (entry->owned) wefti_free(region->base, region->size_bytes);
    pthread_mutex_lock(&wire->hub->lock);
    wefti_ring_region_remove(&wire->ring, entry);
    pthread_mutex_unlock(&wire->hub->lock);
}

/* A region of a rank that has closed its wire; NULL where it has none of that id. */
static const buried_region *find_buried(const wefti_inproc_hub *hub, int32_t rank, uint32_t id) {
    for (const buried_region *buried = hub->buried; buried; buried = buried->next)
        if (buried->rank == rank && buried->id == id) return buried;
    return NULL;
}

static weft_status inproc_peer_region(wefti_wire *self, int32_t peer, uint32_t id, wefti_wire_peer_region *region_out) {
    inproc_wire *wire = (inproc_wire *)self;
    if (peer < 0 || peer >= self->size || wire->ring.links[peer].state == WEFTI_LINK_NONE || id == 0)
        return wefti_fail(WEFT_E_INVALID, "inproc: region %u of rank %d: not connected, or no such id", id, (int)peer);
    weft_status status = WEFT_OK;
    pthread_mutex_lock(&wire->hub->lock);
    const ring_wire     *theirs = wire->hub->seats[peer].wire;
    const buried_region *buried = theirs ? NULL : find_buried(wire->hub, peer, id);
    if (buried)
        *region_out = (wefti_wire_peer_region){buried->base, buried->size_bytes};
    else if (wire->hub->seats[peer].taken && (!theirs || wire->hub->seats[peer].killed))
        status = wefti_fail(WEFT_E_PEER, "inproc: rank %d is gone, and its region %u with it", (int)peer, id);
    else if (!theirs || id > theirs->region_count)
        status = WEFT_E_AGAIN;
    else if (!theirs->regions[id - 1])
        status = wefti_fail(WEFT_E_NOT_FOUND, "inproc: region %u of rank %d was released", id, (int)peer);
    else
        *region_out = (wefti_wire_peer_region){theirs->regions[id - 1]->region.base,
                                               theirs->regions[id - 1]->region.size_bytes};
    pthread_mutex_unlock(&wire->hub->lock);
    return status;
}

static int inproc_descriptor(wefti_wire *wire) { return ((ring_wire *)wire)->doorbell; }

/* Leaves a region of a closing wire to the hub. Out of memory: lost, rather than taken from under a reader. */
static void bury(inproc_wire *wire, ring_region *entry) {
    buried_region *buried = NULL;
    if (entry->owned && wefti_alloc(sizeof *buried, "a closed wire's region", &buried) == WEFT_OK) {
        *buried = (buried_region){wire->hub->buried, entry->region.base, entry->region.size_bytes, wire->ring.base.wire.rank,
                                  entry->region.id};
        wire->hub->buried = buried;
    }
    wefti_ring_region_remove(&wire->ring, entry);
}

static void inproc_close(wefti_wire *self, uint64_t linger_ns) {
    inproc_wire *wire = (inproc_wire *)self;
    wefti_ring_leave(&wire->ring, linger_ns);
    pthread_mutex_lock(&wire->hub->lock);
    for (uint32_t i = 0; i < wire->ring.region_count; i++)
        if (wire->ring.regions[i]) bury(wire, wire->ring.regions[i]);
    wire->hub->seats[self->rank].wire = NULL;
    pthread_mutex_unlock(&wire->hub->lock);
    wefti_inproc_hub *own = wire->own;
    wefti_ring_close(&wire->ring);
    wefti_free(wire, sizeof *wire);
    wefti_inproc_hub_release(own);
}

static const wefti_wire_ops inproc_ops = {
    .address = inproc_address,
    .connect = inproc_connect,
    .link = wefti_ring_link_state,
    .region_create = inproc_region_create,
    .region_register = inproc_region_register,
    .region_release = inproc_region_release,
    .region_retire = wefti_ring_region_retire,
    .peer_region = inproc_peer_region,
    .region_of = wefti_ring_region_of,
    .post = wefti_ring_post,
    .poll = wefti_ring_poll,
    .cancel = wefti_wire_cancel,
    .abort = wefti_ring_abort,
    .descriptor = inproc_descriptor,
    .arm = wefti_ring_arm,
    .counts = wefti_wire_read_counts,
    .close = inproc_close,
};
static const ring_front inproc_front = {.service = inproc_service, .peer_region = inproc_peer_region};

/* Takes the seat of the rank with a fresh segment. */
static weft_status sit_down(wefti_inproc_hub *hub, inproc_wire *wire) {
    hub_seat   *seat = &hub->seats[wire->ring.base.wire.rank];
    weft_status status = WEFT_OK;
    pthread_mutex_lock(&hub->lock);
    int doorbell = dup(wire->ring.doorbell);
    if (seat->taken) {
        status = wefti_fail(WEFT_E_EXISTS, "inproc: rank %d is open in this hub already", (int)wire->ring.base.wire.rank);
    } else if (doorbell < 0) {
        status = wefti_fail_errno("inproc: cannot duplicate a doorbell");
    } else {
        *seat = (hub_seat){wire->ring.segment, doorbell, false, true, &wire->ring};
        atomic_fetch_add(&hub->changes, 1);
        ring_everyone(hub);
    }
    pthread_mutex_unlock(&hub->lock);
    if (status != WEFT_OK && doorbell >= 0) close(doorbell);
    return status;
}

weft_status wefti_wire_inproc_open(const wefti_wire_options *options, wefti_wire **wire_out) {
    wefti_inproc_hub *hub = options->shared, *own = NULL;
    if (!hub && options->size == 1) { /* nobody is to be met */
        WEFTI_TRY(wefti_inproc_hub_create(1, &own));
        hub = own;
    }
    if (!hub || hub->size != options->size)
        return wefti_fail(WEFT_E_INVALID, "inproc: needs a hub of %d ranks in `shared`", (int)options->size);
    inproc_wire  *wire = NULL;
    ring_segment *segment = NULL;
    size_t        segment_bytes = ring_segment_bytes(hub->size, hub->data_bytes);
    weft_status status = wefti_alloc(sizeof *wire, "an inproc wire", &wire);
    if (status == WEFT_OK) status = wefti_alloc(segment_bytes, "an inproc wire's rings", &segment);
    if (status == WEFT_OK)
        status = wefti_ring_open(&wire->ring, options, &inproc_ops, &inproc_front, segment, hub->data_bytes);
    if (status != WEFT_OK) goto failed;
    wire->hub = hub;
    wire->own = own;
    wire->ring.base.wire.can.name = "inproc";
    if ((status = sit_down(hub, wire)) == WEFT_OK) {
        *wire_out = &wire->ring.base.wire;
        return WEFT_OK;
    }
    wefti_ring_close(&wire->ring);
failed:
    wefti_free(segment, segment_bytes);
    wefti_free(wire, sizeof *wire);
    wefti_inproc_hub_release(own);
    return status;
}

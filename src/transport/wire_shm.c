/* The shared-memory wire: ranks that are processes of one host.
 *
 * The ring wire with segments in memfds, which go over Unix sockets: nothing has a name in any file system, so nothing
 * outlives a kill. Each rank listens on a socket in the abstract name space under a random name; of a pair the higher rank
 * dials. Both prove that they were given the other's address by the cookie in it and are of the same user, and then swap
 * their segment and doorbell. The socket stays: regions are announced over it, and its end tells of a dead peer within
 * a service interval. Memory: a segment of size rings for each rank (pages are taken when touched first). */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "transport/wire_shm.h"

enum { SERVICE_NS = 200000 }; /* how often sockets are looked at while messages are polled for */

/* --- memory that can be passed on --- */

/* Where it would lie is said too: people know shared memory as /dev/shm, and look there. */
static weft_status fail_memory(size_t size_bytes, const char *what, int error) {
    struct rlimit limit = {.rlim_cur = RLIM_INFINITY};
    getrlimit(RLIMIT_FSIZE, &limit);
    char remedy[160] = "free memory, raise the limit of the container or cgroup, start fewer ranks, or use the tcp wire";
    if (error == EFBIG && limit.rlim_cur != RLIM_INFINITY)
        snprintf(remedy, sizeof remedy, "the limit on the size of files (RLIMIT_FSIZE) is %llu bytes: raise it (ulimit -f unlimited), or use the tcp wire",
                 (unsigned long long)limit.rlim_cur);
    else if (error == EMFILE || error == ENFILE)
        snprintf(remedy, sizeof remedy, "raise the limit on open files (ulimit -n), or use the tcp wire");
    bool scarce = error == ENOMEM || error == ENOSPC || error == EDQUOT;
    return wefti_fail(scarce ? WEFT_E_NO_MEMORY : WEFT_E_IO,
                      "shm: the system refuses %zu bytes of shared memory for %s (a memfd, which counts as memory of this process, not "
                      "against /dev/shm): %s; %s", size_bytes, what, strerror(error), remedy);
}

/* Whether a file may be that large; where not, making it so would raise SIGXFSZ, which ends a program. */
static bool is_allowed(size_t size_bytes) {
    struct rlimit limit;
    return getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY || size_bytes <= limit.rlim_cur;
}

weft_status wefti_shm_memory_create(size_t size_bytes, const char *what, int *memory_out, void **base_out) {
    if (!is_allowed(size_bytes)) return fail_memory(size_bytes, what, EFBIG);
    int memory = memfd_create("weft", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (memory < 0) return fail_memory(size_bytes, what, errno);
    void *base = MAP_FAILED;
    if (ftruncate(memory, (off_t)size_bytes) == 0 &&
        fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
        base = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (base == MAP_FAILED) {
        int error = errno;
        close(memory);
        return fail_memory(size_bytes, what, error);
    }
    *memory_out = memory;
    *base_out = base;
    return WEFT_OK;
}

void *wefti_shm_memory_map(int memory, size_t size_bytes) {
    /* A peer could shrink a file under our feet, and every access would then kill us; a sealed one can't. */
    struct stat info;
    int         seals = fcntl(memory, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(memory, &info) != 0 || info.st_size < 0 ||
        (uint64_t)info.st_size < size_bytes)
        return NULL;
    void *base = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    return base == MAP_FAILED ? NULL : base;
}

/* --- announcements --- */

static weft_status log_add(shm_wire *wire, shm_packet_kind kind, uint32_t region) {
    if (wire->log_count == wire->log_capacity) {
        uint32_t capacity = wire->log_capacity ? wire->log_capacity * 2 : 32;
        WEFTI_TRY(wefti_grow(&wire->log, wire->log_capacity * sizeof *wire->log, capacity * sizeof *wire->log,
                             "announcements of regions"));
        wire->log_capacity = capacity;
    }
    wire->log[wire->log_count++] = (shm_announcement){kind, region};
    return WEFT_OK;
}

/* Sends what the peer has not been told yet, as far as the socket takes it. */
static void announce(shm_wire *wire, shm_link *link) {
    for (; link->told < wire->log_count; link->told++) {
        const shm_announcement *news = &wire->log[link->told];
        const ring_region      *region = wire->ring.regions[news->region - 1];
        int                     memory = -1;
        shm_packet              packet = {.magic = SHM_MAGIC, .kind = news->kind, .region = news->region};
        if (news->kind == SHM_REGION) {
            if (!region) continue; /* released since; the peer never needs to hear of it, but of its id being used */
            packet.bytes = region->region.size_bytes;
            memory = region->memory;
        }
        if (!wefti_shm_packet_send(link->socket, &packet, &memory, memory >= 0)) return;
    }
}

static void announce_all(shm_wire *wire) {
    for (int32_t peer = 0; peer < wire->ring.base.wire.size; peer++)
        if (wire->links[peer].socket >= 0 && wire->ring.links[peer].state == WEFTI_LINK_UP)
            announce(wire, &wire->links[peer]);
}

/* --- what peers announce --- */

/* The place of region `id` of a peer, growing the table; NULL where that fails. */
static shm_peer_region *peer_slot(shm_link *link, uint32_t id) {
    if (id == 0 || id > SHM_MOST_REGIONS) return NULL;
    if (id > link->region_capacity) {
        uint32_t capacity = link->region_capacity ? link->region_capacity : 16;
        while (capacity < id) capacity *= 2;
        if (wefti_grow(&link->regions, link->region_capacity * sizeof *link->regions, capacity * sizeof *link->regions,
                       "the table of a peer's regions") != WEFT_OK)
            return NULL;
        link->region_capacity = capacity;
    }
    return &link->regions[id - 1];
}

static void hear_region(shm_link *link, const shm_packet *packet, int memory) {
    shm_peer_region *slot = peer_slot(link, packet->region);
    if (!slot || memory < 0 || slot->state != SHM_REGION_UNKNOWN) return;
    slot->base = wefti_shm_memory_map(memory, packet->bytes);
    slot->size_bytes = packet->bytes;
    slot->state = slot->base ? SHM_REGION_MAPPED : SHM_REGION_GONE;
}

static void hear_withdrawal(shm_link *link, const shm_packet *packet) {
    shm_peer_region *slot = peer_slot(link, packet->region);
    if (!slot) return;
    /* Gives the memory back but keeps the addresses: a peer that has seen a fault releases what this rank, which has not
     * seen it yet, may be reading in an operation that is doomed; that must not be the death of this rank too. */
    if (slot->base && slot->state == SHM_REGION_MAPPED &&
        mmap(slot->base, slot->size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE,
             -1, 0) == MAP_FAILED)
        wefti_log(WEFT_LOG_WARNING, "shm: a withdrawn region stays mapped until the wire closes");
    slot->state = SHM_REGION_GONE;
}

static void listen_to_peer(shm_wire *wire, int32_t peer) {
    shm_link *link = &wire->links[peer];
    for (;;) {
        shm_packet packet;
        int        given[SHM_PASSED] = {-1, -1};
        int        got = wefti_shm_packet_receive(link->socket, &packet, given);
        if (got == 0) return;
        if (got < 0) { /* the peer has closed its end, or died */
            epoll_ctl(wire->poller, EPOLL_CTL_DEL, link->socket, NULL);
            close(link->socket);
            link->socket = -1;
            wire->ring.links[peer].broken = true;
            return;
        }
        if (packet.kind == SHM_REGION)
            hear_region(link, &packet, given[0]);
        else if (packet.kind == SHM_REGION_WITHDRAWN)
            hear_withdrawal(link, &packet);
        for (int i = 0; i < SHM_PASSED; i++)
            if (given[i] >= 0) close(given[i]);
    }
}

/* --- service --- */

static void shm_service(ring_wire *ring, uint64_t now_ns) {
    shm_wire *wire = (shm_wire *)ring;
    if (now_ns - wire->served_ns < SERVICE_NS && !wire->look_now) return;
    wire->served_ns = now_ns;
    wire->look_now = false;
    wefti_shm_dial(wire, now_ns);
    struct epoll_event events[16];
    int                count = epoll_wait(wire->poller, events, 16, 0);
    for (int i = 0; i < count; i++) {
        uint32_t token = events[i].data.u32;
        if (token == SHM_TOKEN_DOORBELL) continue;
        if (token == SHM_TOKEN_LISTENER)
            wefti_shm_accept(wire, now_ns);
        else if (token >= SHM_TOKEN_GUEST)
            wefti_shm_hear_guest(wire, (int32_t)(token - SHM_TOKEN_GUEST));
        else if (ring->links[token].state == WEFTI_LINK_CONNECTING)
            wefti_shm_hear_answer(wire, (int32_t)token);
        else if (wire->links[token].socket >= 0)
            listen_to_peer(wire, (int32_t)token);
    }
    wefti_shm_drop_slow_guests(wire, now_ns);
    announce_all(wire);
}

static weft_status shm_arm(wefti_wire *self) {
    ((shm_wire *)self)->look_now = true;
    return wefti_ring_arm(self);
}

static int shm_descriptor(wefti_wire *self) { return ((shm_wire *)self)->poller; }

/* --- regions --- */

static weft_status shm_region_create(wefti_wire *self, size_t size_bytes, wefti_wire_region **region_out) {
    shm_wire *wire = (shm_wire *)self;
    int       memory = -1;
    void     *base = NULL;
    if (size_bytes > PTRDIFF_MAX - 4096) return wefti_fail(WEFT_E_OVERFLOW, "shm: a region of %zu bytes", size_bytes);
    if (wire->ring.region_count == SHM_MOST_REGIONS)
        return wefti_fail(WEFT_E_UNSUPPORTED, "shm: more than %d regions in the life of a wire", SHM_MOST_REGIONS);
    size_bytes = wefti_align_up(size_bytes ? size_bytes : 1, 4096);
    WEFTI_TRY(wefti_shm_memory_create(size_bytes, "an exported region", &memory, &base));
    madvise(base, size_bytes, MADV_HUGEPAGE); /* where the system grants it to shared memory; no matter where not */
    weft_status status = wefti_ring_region_add(&wire->ring, base, size_bytes, memory, true, region_out);
    if (status == WEFT_OK) {
        status = log_add(wire, SHM_REGION, (*region_out)->id);
        if (status != WEFT_OK) wefti_ring_region_remove(&wire->ring, (ring_region *)*region_out);
    }
    if (status != WEFT_OK) {
        munmap(base, size_bytes);
        close(memory);
        return status;
    }
    announce_all(wire);
    return WEFT_OK;
}

static void free_region(shm_wire *wire, ring_region *entry) {
    munmap(entry->region.base, entry->region.size_bytes);
    close(entry->memory);
    wefti_ring_region_remove(&wire->ring, entry);
}

static void shm_region_release(wefti_wire_region *region) {
    if (!region) return;
    shm_wire *wire = (shm_wire *)region->wire;
    uint32_t  id = region->id;
    free_region(wire, (ring_region *)region);
    /* Out of memory: peers keep a mapping that they do not use, until they close. */
    if (log_add(wire, SHM_REGION_WITHDRAWN, id) == WEFT_OK) announce_all(wire);
}

static shm_region_state region_state(const shm_link *link, uint32_t id) {
    return id <= link->region_capacity ? link->regions[id - 1].state : SHM_REGION_UNKNOWN;
}

static weft_status shm_peer_region_of(wefti_wire *self, int32_t peer, uint32_t id, wefti_wire_peer_region *region_out) {
    shm_wire *wire = (shm_wire *)self;
    if (peer < 0 || peer >= self->size || wire->ring.links[peer].state == WEFTI_LINK_NONE || id == 0)
        return wefti_fail(WEFT_E_INVALID, "shm: region %u of rank %d: not connected, or no such id", id, (int)peer);
    if (peer == self->rank) {
        if (id > wire->ring.region_count) return WEFT_E_AGAIN;
        const ring_region *own = wire->ring.regions[id - 1];
        if (!own) return wefti_fail(WEFT_E_NOT_FOUND, "shm: region %u of rank %d was released", id, (int)peer);
        *region_out = (wefti_wire_peer_region){own->region.base, own->region.size_bytes};
        return WEFT_OK;
    }
    shm_link *link = &wire->links[peer];
    bool      here = wire->ring.links[peer].state == WEFTI_LINK_UP || wire->ring.links[peer].state == WEFTI_LINK_CONNECTING;
    /* Its goodbye came through the ring, and what it announced before may still lie in the socket. */
    if (!here && region_state(link, id) == SHM_REGION_UNKNOWN && link->socket >= 0) listen_to_peer(wire, peer);
    shm_region_state state = region_state(link, id);
    if (state == SHM_REGION_MAPPED) {
        *region_out = (wefti_wire_peer_region){link->regions[id - 1].base, link->regions[id - 1].size_bytes};
        return WEFT_OK;
    }
    if (state == SHM_REGION_GONE)
        return wefti_fail(WEFT_E_NOT_FOUND, "shm: region %u of rank %d was released", id, (int)peer);
    if (here) {
        wire->look_now = true;
        return WEFT_E_AGAIN;
    }
    return wefti_fail(WEFT_E_PEER, "shm: rank %d is gone, and its region %u with it", (int)peer, id);
}

/* --- opening and closing --- */

static void shm_close(wefti_wire *self, uint64_t linger_ns) {
    shm_wire *wire = (shm_wire *)self;
    announce_all(wire); /* what a socket did not take before: peers may need it to finish */
    wefti_ring_leave(&wire->ring, linger_ns);
    /* Without a word: peers keep their mappings, which they may still be reading, until they close too. */
    for (uint32_t i = 0; i < wire->ring.region_count; i++)
        if (wire->ring.regions[i]) free_region(wire, wire->ring.regions[i]);
    for (int32_t peer = 0; peer < self->size; peer++) {
        shm_link *link = &wire->links[peer];
        for (uint32_t i = 0; i < link->region_capacity; i++)
            if (link->regions[i].base) munmap(link->regions[i].base, link->regions[i].size_bytes);
        wefti_free(link->regions, link->region_capacity * sizeof *link->regions);
        if (link->segment) munmap(link->segment, wire->segment_bytes);
        if (link->socket >= 0) close(link->socket);
        if (peer != self->rank && wire->ring.links[peer].doorbell >= 0) close(wire->ring.links[peer].doorbell);
    }
    wefti_shm_hang_up(wire);
    munmap(wire->ring.segment, wire->segment_bytes);
    close(wire->segment_memory);
    close(wire->poller);
    wefti_free(wire->log, wire->log_capacity * sizeof *wire->log);
    wefti_free(wire->links, (size_t)self->size * sizeof *wire->links);
    wefti_ring_close(&wire->ring);
    wefti_free(wire, sizeof *wire);
}

static const wefti_wire_ops shm_ops = {
    .address = wefti_shm_address,
    .connect = wefti_shm_connect,
    .link = wefti_ring_link_state,
    .region_create = shm_region_create,
    .region_release = shm_region_release,
    .region_retire = wefti_ring_region_retire,
    .peer_region = shm_peer_region_of,
    .region_of = wefti_ring_region_of,
    .peer_read = wefti_ring_peer_read,
    .post = wefti_ring_post,
    .poll = wefti_ring_poll,
    .cancel = wefti_wire_cancel,
    .abort = wefti_ring_abort,
    .descriptor = shm_descriptor,
    .arm = shm_arm,
    .counts = wefti_wire_read_counts,
    .close = shm_close,
};
static const ring_front shm_front = {.service = shm_service, .peer_region = shm_peer_region_of};

/* The descriptors of an end: the poller over its doorbell and its listener. */
static weft_status open_descriptors(shm_wire *wire) {
    wire->poller = epoll_create1(EPOLL_CLOEXEC);
    if (wire->poller < 0) return wefti_fail_errno("shm: cannot create a poller (epoll)");
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = SHM_TOKEN_DOORBELL};
    if (epoll_ctl(wire->poller, EPOLL_CTL_ADD, wire->ring.doorbell, &event) != 0)
        return wefti_fail_errno("shm: cannot poll the doorbell");
    return wefti_shm_listen(wire);
}

weft_status wefti_wire_shm_open(const wefti_wire_options *options, wefti_wire **wire_out) {
    shm_wire   *wire = NULL;
    void       *segment = NULL;
    weft_status status;
    if (options->size < 1)
        return wefti_fail(WEFT_E_INVALID, "shm: a world of %d ranks", (int)options->size);
    WEFTI_TRY(wefti_alloc(sizeof *wire, "a shm wire", &wire));
    wire->poller = wire->listener = wire->segment_memory = -1;
    size_t data_bytes = wefti_ring_data_bytes(options), links_bytes = (size_t)options->size * sizeof *wire->links;
    wire->segment_bytes = wefti_align_up(ring_segment_bytes(options->size, data_bytes), 4096);
    wire->epoch = options->epoch;
    wire->job = wefti_shm_job(options->job);
    WEFTI_TRY_GOTO(wefti_alloc(links_bytes, "links", &wire->links), failed);
    for (int32_t peer = 0; peer < options->size; peer++) wire->links[peer].socket = -1;
    WEFTI_TRY_GOTO(wefti_shm_memory_create(wire->segment_bytes, "rings", &wire->segment_memory, &segment), failed);
    status = wefti_ring_open(&wire->ring, options, &shm_ops, &shm_front, segment, data_bytes);
    if (status != WEFT_OK) goto failed;
    wire->ring.base.wire.can.name = "shm";
    if ((status = open_descriptors(wire)) == WEFT_OK) {
        *wire_out = &wire->ring.base.wire;
        return WEFT_OK;
    }
    wefti_shm_hang_up(wire);
    wefti_ring_close(&wire->ring);
failed:
    if (wire->poller >= 0) close(wire->poller);
    if (segment) munmap(segment, wire->segment_bytes);
    if (wire->segment_memory >= 0) close(wire->segment_memory);
    wefti_free(wire->links, links_bytes);
    wefti_free(wire, sizeof *wire);
    return status;
}

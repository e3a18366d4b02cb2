/* The MPI wire: whatever the cluster's MPI moves bytes over.
 *
 * Everything is Isend, Irecv and Test on one communicator of Weft's own; nothing blocks. Frames (heads with up to 32 KiB
 * behind them) carry our tags, which are wider than MPI's, and come into a ring of posted receives; what is larger goes
 * straight between the buffers in chunks of 8 MiB that the receiver grants, so that messages are as long as memory is.
 * WRITE and READ are messages too. MPI has nothing to sleep on: who waits looks again after short naps.
 *
 * Faults: the end of a process of this host is seen by its id, MPI's errors end the link with MPI's words. Where MPI itself
 * cannot go on, all links go down and the group above is poisoned; see wire_mpi_take.c. Most MPI launchers end the whole job
 * when a process dies; then there is nobody left to tell.
 *
 * Memory: 1.1 MiB of frames in, 1.6 MiB out, and the early messages. */
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "transport/wire_mpi.h"

enum { EARLY_BYTES = 256 << 20 };
#define GOODBYE_NS (200 * WEFTI_MILLISECOND_NS)
#define BUSY_NS (20 * WEFTI_MILLISECOND_NS) /* a chunk takes less, or its peer is away */
#define COLLECTIVE_NS WEFTI_SECOND_NS       /* nobody knows how far one of MPI's own is */

/* --- regions --- */

static void tell_everyone(mpiw_wire *wire) {
    if (wefti_mpi_poisoned() || wire->base.aborted || !wefti_mpi_lock(true)) return;
    wefti_mpiw_send(wire);
    wefti_mpi_unlock();
}

static weft_status mpiw_region_create(wefti_wire *self, size_t size_bytes, wefti_wire_region **region_out) {
    mpiw_wire *wire = (mpiw_wire *)self;
    WEFTI_TRY(wefti_regions_create(&wire->regions, size_bytes, region_out));
    tell_everyone(wire);
    return WEFT_OK;
}

static weft_status mpiw_region_register(wefti_wire *self, void *memory, size_t size_bytes, wefti_wire_region **region_out) {
    mpiw_wire *wire = (mpiw_wire *)self;
    WEFTI_TRY(wefti_regions_add(&wire->regions, memory, size_bytes, false, NULL, region_out));
    tell_everyone(wire);
    return WEFT_OK;
}

static void mpiw_region_release(wefti_wire_region *region) {
    if (!region) return;
    mpiw_wire *wire = (mpiw_wire *)region->wire;
    wefti_regions_remove(&wire->regions, region);
    tell_everyone(wire);
}

static weft_status mpiw_peer_region(wefti_wire *self, int32_t peer, uint32_t id, wefti_wire_peer_region *region_out) {
    mpiw_wire      *wire = (mpiw_wire *)self;
    wefti_wire_link link = peer >= 0 && peer < self->size ? wire->links[peer].state : WEFTI_LINK_NONE;
    return wefti_regions_peer(&wire->regions, peer, id, link, region_out);
}

static wefti_wire_region *mpiw_region_of(wefti_wire *self, const void *memory, size_t bytes) {
    return wefti_regions_find(&((mpiw_wire *)self)->regions, memory, bytes);
}

/* --- connecting --- */

static weft_status mpiw_get_address(wefti_wire *self, void *address_out, size_t *bytes_out) {
    mpiw_wire   *wire = (mpiw_wire *)self;
    mpiw_address address = {.magic = MPIW_ADDRESS_MAGIC, .version = MPIW_VERSION, .rank = self->rank,
                            .process = wire->mpi->facts.rank, .tag = wire->tag, .job = wire->job};
    wefti_mpiw_describe_self(&address);
    memcpy(address_out, &address, sizeof address);
    *bytes_out = sizeof address;
    return WEFT_OK;
}

static weft_status check_address(const mpiw_wire *wire, int32_t peer, const void *bytes_in, size_t bytes, mpiw_address *address) {
    const wefti_wire *self = &wire->base.wire;
    if (peer < 0 || peer >= self->size)
        return wefti_fail(WEFT_E_INVALID, "mpi: there is no rank %d among %d", (int)peer, (int)self->size);
    if (bytes != sizeof *address) return wefti_fail(WEFT_E_CORRUPT, "mpi: %zu bytes are no address of an MPI wire", bytes);
    memcpy(address, bytes_in, sizeof *address);
    if (address->magic != MPIW_ADDRESS_MAGIC || address->rank != peer)
        return wefti_fail(WEFT_E_CORRUPT, "mpi: the address of rank %d is none of an MPI wire, or another rank's", (int)peer);
    if (address->version != MPIW_VERSION)
        return wefti_fail(WEFT_E_MISMATCH, "mpi: rank %d speaks version %u of the MPI wire and this rank version %u: build all from the "
                          "same Weft", (int)peer, address->version, MPIW_VERSION);
    if (address->process < 0 || address->process >= wire->mpi->facts.size || address->tag <= 0 ||
        address->tag > wire->mpi->facts.most_tag)
        return wefti_fail(WEFT_E_CORRUPT, "mpi: the address of rank %d says process %d with tag %d, and MPI has %d processes", (int)peer,
                          (int)address->process, (int)address->tag, wire->mpi->facts.size);
    if (address->job != wire->job)
        return wefti_fail(WEFT_E_MISMATCH, "mpi: rank %d is of another job or epoch", (int)peer);
    if ((address->process == wire->mpi->facts.rank) != (peer == self->rank))
        return wefti_fail(WEFT_E_UNSUPPORTED, "mpi: ranks %d and %d are one process of MPI, which carries nothing between two ranks of a "
                          "process", (int)self->rank, (int)peer);
    return WEFT_OK;
}

static weft_status mpiw_connect(wefti_wire *self, int32_t peer, const void *address_in, size_t bytes) {
    mpiw_wire   *wire = (mpiw_wire *)self;
    mpiw_address address;
    WEFTI_TRY(check_address(wire, peer, address_in, bytes, &address));
    mpiw_link *link = &wire->links[peer];
    if (link->state != WEFTI_LINK_NONE) return WEFT_OK;
    if (wefti_mpi_poisoned()) return wefti_fail(WEFT_E_PEER, "mpi: MPI cannot go on in this process: %s", wefti_mpi_poisoned());
    link->process = address.process;
    link->tag = address.tag;
    link->state = link->heard ? WEFTI_LINK_UP : WEFTI_LINK_CONNECTING;
    wefti_mpiw_watch(wire, peer, &address);
    if (!wefti_mpi_lock(true)) return wefti_fail(WEFT_E_STATE, "mpi: the program's MPI may not be called from this thread");
    mpiw_head hello = {.kind = MPIW_HELLO, .tag = wire->job};
    bool      said = wefti_mpiw_say(wire, peer, &hello);
    wefti_mpi_unlock();
    return said ? WEFT_OK : wefti_fail(WEFT_E_NO_MEMORY, "mpi: no memory for the greeting of rank %d", (int)peer);
}

static wefti_wire_link mpiw_link_state(const wefti_wire *self, int32_t peer) {
    return peer < 0 || peer >= self->size ? WEFTI_LINK_NONE : ((const mpiw_wire *)self)->links[peer].state;
}

static const char *mpiw_cause(const wefti_wire *self, int32_t peer) {
    const mpiw_link *link = &((const mpiw_wire *)self)->links[peer];
    return link->state == WEFTI_LINK_DOWN && link->cause[0] ? link->cause : NULL;
}

/* --- polling --- */

static void end_all(mpiw_wire *wire, const char *cause) {
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++)
        if (peer != wire->base.wire.rank && wire->links[peer].state != WEFTI_LINK_NONE)
            wefti_mpiw_link_end(wire, peer, WEFTI_LINK_DOWN, cause);
}

static weft_status mpiw_poll(wefti_wire *self, uint64_t now_ns, wefti_wire_op **ops_out, int32_t capacity, int32_t *count_out) {
    mpiw_wire *wire = (mpiw_wire *)self;
    if (!wire->base.aborted && wefti_mpi_lock(false)) {
        if (!wefti_mpi_poisoned()) wefti_mpiw_receive(wire, false);
        if (!wefti_mpi_poisoned()) wefti_mpiw_complete(wire);
        if (!wefti_mpi_poisoned()) wefti_mpiw_look_for_ends(wire, now_ns);
        if (!wefti_mpi_poisoned()) wefti_mpiw_send(wire);
        if (wire->request_count != wire->were_under_way) wire->moved_ns = now_ns;
        wire->were_under_way = wire->request_count;
        if (wefti_mpi_poisoned()) end_all(wire, wefti_mpi_poisoned());
        wefti_mpi_unlock();
    }
    *count_out = wefti_wire_hand_out(&wire->base, ops_out, capacity);
    return WEFT_OK;
}

static int mpiw_descriptor(wefti_wire *self) { return (void)self, -1; }

/* MPI moves bytes only while it is called: who naps in the middle of a transfer stops it. */
static weft_status mpiw_arm(wefti_wire *self) {
    mpiw_wire *wire = (mpiw_wire *)self;
    if (wire->request_count == 0 && wire->collectives == 0) return WEFT_OK;
    if (wefti_host_now(self->host) - wire->moved_ns > (wire->collectives ? COLLECTIVE_NS : BUSY_NS)) return WEFT_OK;
    self->host->yield(self->host->context);
    return WEFT_E_AGAIN;
}

/* --- ends --- */

static void mpiw_abort(wefti_wire *self, weft_status status, int32_t rank) {
    mpiw_wire *wire = (mpiw_wire *)self;
    if (wire->base.aborted) return;
    wire->base.aborted = true;
    wire->base.abort_status = status;
    wire->base.abort_rank = rank;
    for (int32_t peer = 0; peer <= self->size; peer++) wefti_wire_flush(&wire->base, &wire->base.match.posted[peer], status, rank);
    for (int32_t peer = 0; peer < self->size; peer++) {
        mpiw_link *link = &wire->links[peer];
        wefti_wire_flush(&wire->base, &link->out_ops, status, rank);
        wefti_wire_flush(&wire->base, &link->waiting, status, rank);
    }
    bool locked = wefti_mpi_lock(true);
    if (!locked) wefti_mpi_poison("a wire was ended by a thread from which the program's MPI may not be called");
    wefti_mpiw_take_back(wire, status, rank);
    if (locked) wefti_mpi_unlock();
}

/* Whether frames to ranks that are there have yet to leave. */
static bool is_sending(const mpiw_wire *wire) {
    for (int32_t i = 0; i < wire->request_count; i++)
        if (wire->links[wire->infos[i].peer].state == WEFTI_LINK_UP) return true;
    return false;
}

static bool waits_for_goodbye(const mpiw_wire *wire) {
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++)
        if (peer != wire->base.wire.rank && wire->links[peer].state == WEFTI_LINK_UP && !wire->links[peer].heard_bye) return true;
    return false;
}

/* Sees everything off, says goodbye, and hears the others' for a moment, so that what they sent meanwhile is not left with MPI. */
static void leave(mpiw_wire *wire, uint64_t linger_ns) {
    const wefti_host *host = wire->base.wire.host;
    uint64_t          begun_ns = wefti_host_now(host), deadline_ns = wefti_deadline_after(begun_ns, linger_ns), now_ns = begun_ns;
    int32_t           peer = 0;
    while (!wefti_mpi_poisoned()) {
        for (; peer < wire->base.wire.size; peer++) {
            mpiw_link *link = &wire->links[peer];
            wefti_mpiw_drop_notes(wire, link);
            if (peer == wire->base.wire.rank || (link->state != WEFTI_LINK_UP && link->state != WEFTI_LINK_CONNECTING)) continue;
            if (!wefti_mpiw_frame(wire, peer, (mpiw_head){.kind = MPIW_BYE}, NULL, 0)) break;
        }
        wefti_mpiw_receive(wire, true);
        if (wefti_mpi_poisoned() || !wefti_mpiw_complete(wire)) return;
        wefti_mpiw_look_for_ends(wire, now_ns);
        bool all_said = peer == wire->base.wire.size;
        now_ns = wefti_host_now(host);
        if (now_ns >= deadline_ns) return;
        if (all_said && !is_sending(wire) && (!waits_for_goodbye(wire) || now_ns - begun_ns >= GOODBYE_NS)) return;
        host->yield(host->context);
    }
}

static void free_lists(mpiw_wire *wire) {
    for (mpiw_out *out = wire->free_outs, *next; out; out = next) {
        next = out->next;
        wefti_free(out, sizeof *out);
    }
    for (mpiw_in *in = wire->free_ins, *next; in; in = next) {
        next = in->next;
        wefti_free(in, sizeof *in);
    }
    for (mpiw_note *note = wire->free_notes, *next; note; note = next) {
        next = note->next;
        wefti_free(note, sizeof *note);
    }
}

static void free_wire(mpiw_wire *wire) {
    for (int32_t peer = 0; wire->links && peer < wire->base.wire.size; peer++) {
        wefti_mpiw_drop_notes(wire, &wire->links[peer]);
        if (wire->links[peer].watch >= 0) close(wire->links[peer].watch);
    }
    if (wire->watcher >= 0) close(wire->watcher);
    free_lists(wire);
    wefti_regions_close(&wire->regions);
    wefti_free(wire->links, (size_t)wire->base.wire.size * sizeof *wire->links);
    wefti_free(wire->slots, MPIW_SLOTS * MPIW_FRAME_BYTES);
    if (!wire->keeps_stages) wefti_free(wire->stage_bytes, MPIW_STAGES * MPIW_FRAME_BYTES);
    wefti_wire_base_close(&wire->base);
    wefti_free(wire, sizeof *wire);
}

/* Whether MPI may be finalised, as far as this wire knows: with a rank that is not there any more it would hang. */
static bool ended_well(const mpiw_wire *wire) {
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++)
        if (wire->links[peer].state == WEFTI_LINK_DOWN || wire->links[peer].died) return false;
    return !wire->keeps_stages && wire->base.abort_status == WEFT_E_ABORTED;
}

static void mpiw_close(wefti_wire *self, uint64_t linger_ns) {
    mpiw_wire *wire = (mpiw_wire *)self;
    mpiw_abort(self, WEFT_E_ABORTED, -1);
    if (wefti_mpi_lock(true)) {
        if (!wefti_mpi_poisoned()) leave(wire, linger_ns);
        if (!wefti_mpi_poisoned()) wefti_mpiw_give_up(wire);
        wefti_mpi_unlock();
    }
    wefti_mpi_leave(ended_well(wire));
    free_wire(wire);
}

static const wefti_wire_ops mpiw_ops = {
    .address = mpiw_get_address,
    .connect = mpiw_connect,
    .link = mpiw_link_state,
    .cause = mpiw_cause,
    .region_create = mpiw_region_create,
    .region_register = mpiw_region_register,
    .region_release = mpiw_region_release,
    .peer_region = mpiw_peer_region,
    .region_of = mpiw_region_of,
    .post = wefti_mpiw_post,
    .poll = mpiw_poll,
    .cancel = wefti_wire_cancel,
    .abort = mpiw_abort,
    .descriptor = mpiw_descriptor,
    .arm = mpiw_arm,
    .counts = wefti_wire_read_counts,
    .close = mpiw_close,
};

bool wefti_mpiw_is(const wefti_wire *wire) { return wire->ops == &mpiw_ops; }

/* --- opening --- */

/* A number of what both ends must agree on. */
static uint64_t job_number(const wefti_wire_options *options) {
    const char *job = options->job ? options->job : "";
    uint64_t    hash = wefti_hash(WEFTI_HASH_BEGIN, job, strlen(job) + 1);
    hash = wefti_hash(hash, options->secret, options->secret_bytes);
    hash = wefti_hash(hash, &options->epoch, sizeof options->epoch);
    return wefti_hash(hash, &options->size, sizeof options->size);
}

static weft_status open_parts(mpiw_wire *wire) {
    WEFTI_TRY(wefti_alloc((size_t)wire->base.wire.size * sizeof *wire->links, "links", &wire->links));
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++) {
        wire->links[peer].watch = -1;
        wire->links[peer].process = -1;
    }
    wire->links[wire->base.wire.rank].state = WEFTI_LINK_UP;
    WEFTI_TRY(wefti_regions_open(&wire->regions, &wire->base.wire));
    WEFTI_TRY(wefti_alloc_raw(MPIW_SLOTS * MPIW_FRAME_BYTES, WEFTI_CACHE_LINE, "frames that come in", &wire->slots));
    WEFTI_TRY(wefti_alloc_raw(MPIW_STAGES * MPIW_FRAME_BYTES, WEFTI_CACHE_LINE, "frames that go out", &wire->stage_bytes));
    for (int32_t i = MPIW_STAGES - 1; i >= 0; i--) {
        wire->stages[i] = (mpiw_stage){wire->free_stage, wire->stage_bytes + (size_t)i * MPIW_FRAME_BYTES};
        wire->free_stage = &wire->stages[i];
    }
    wire->watcher = epoll_create1(EPOLL_CLOEXEC);
    if (wire->watcher < 0) return wefti_fail_errno("mpi: cannot create a poller (epoll)");
    if (!wefti_mpi_lock(true)) return wefti_fail(WEFT_E_STATE, "mpi: the program's MPI may not be called from this thread");
    wire->tag = wefti_mpi_wire_tag(wire->mpi);
    for (int32_t i = 0; i < MPIW_SLOTS && !wefti_mpi_poisoned(); i++) (void)wefti_mpiw_post_slot(wire, i);
    wefti_mpi_unlock();
    return wefti_mpi_poisoned() ? wefti_fail(WEFT_E_LINK, "mpi: %s", wefti_mpi_poisoned()) : WEFT_OK;
}

weft_status wefti_mpiw_open_with(const wefti_mpi *mpi, const wefti_wire_options *options, wefti_wire **wire_out) {
    mpiw_wire *wire = NULL;
    if (options->size > mpi->facts.size)
        return wefti_fail(WEFT_E_MISMATCH, "mpi: the world has %d ranks, and MPI %d process%s: start all ranks with one mpirun (or srun "
                          "--mpi=...), of the same MPI as %s", (int)options->size, mpi->facts.size, mpi->facts.size == 1 ? "" : "es",
                          mpi->facts.version);
    WEFTI_TRY(wefti_alloc(sizeof *wire, "an mpi wire", &wire));
    wire->mpi = mpi;
    wire->api = mpi->api;
    wire->watcher = -1;
    wire->base.wire.can = (wefti_wire_capabilities){.name = "mpi",
                                                    .flags = WEFTI_WIRE_ONE_SIDED,
                                                    .max_message_bytes = PTRDIFF_MAX,
                                                    .inline_bytes = MPIW_PAYLOAD_BYTES,
                                                    .eager_bytes = MPIW_PAYLOAD_BYTES,
                                                    .latency_ns = 2000,
                                                    .bytes_per_ns = 5};
    weft_status status = wefti_wire_base_open(&wire->base, options, &mpiw_ops, EARLY_BYTES);
    if (status != WEFT_OK) {
        wefti_free(wire, sizeof *wire);
        return status;
    }
    wire->job = job_number(options);
    if ((status = open_parts(wire)) != WEFT_OK) {
        if (wefti_mpi_lock(true)) {
            if (!wefti_mpi_poisoned()) wefti_mpiw_give_up(wire);
            wefti_mpi_unlock();
        }
        free_wire(wire);
        return status;
    }
    *wire_out = &wire->base.wire;
    return WEFT_OK;
}

weft_status wefti_wire_mpi_open(const wefti_wire_options *options, wefti_wire **wire_out) {
    const wefti_mpi *mpi = NULL;
    WEFTI_TRY(wefti_mpi_start(&mpi));
    weft_status status = wefti_mpiw_open_with(mpi, options, wire_out);
    if (status != WEFT_OK) wefti_mpi_leave(false);
    return status;
}

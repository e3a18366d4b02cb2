/* The ring wire: posting, polling and ending.
 *
 * Each rank owns a segment with one ring from every rank, so every ring has one producer and one consumer and no lock.
 * A ring is 256 cells of one cache line and a data area. A cell is filled by storing its turn last; the consumer looks at
 * the next cell only, so an 8-byte message is one cache line that changes hands. Small messages travel in the cell,
 * middling ones through the data area (two copies), large ones are announced and copied once, straight between the
 * two buffers, where either lies in memory that the other end can reach; else they are streamed through the data area.
 *
 * Invariants: cells of a ring are taken in order, so messages of one peer match in posted order; nothing stays in a ring
 * for want of a receive (it is kept aside), so tags never wait for each other; an operation is on exactly one list
 * (posted, out, waiting, copying, done) or the caller's. */
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "transport/wire_ring.h"

enum { EARLY_BYTES = 64 << 20 };
#define SWEEP_NS WEFTI_MILLISECOND_NS

size_t wefti_ring_data_bytes(const wefti_wire_options *options) {
    size_t bytes = options->ring_bytes;
    if (!bytes) { /* 4 MiB a rank in all, but enough for a few eager messages a pair, and not beyond the second cache */
        bytes = ((size_t)4 << 20) / (size_t)(options->size > 0 ? options->size : 1);
        bytes = bytes > ((size_t)256 << 10) ? (size_t)256 << 10 : bytes;
    }
    if (bytes < ((size_t)32 << 10)) bytes = (size_t)32 << 10;
    return wefti_align_up(bytes, 4096);
}

ring_view wefti_ring_view(ring_segment *segment, size_t data_bytes, int32_t from) {
    uint8_t  *base = segment->rings + (size_t)from * ring_stride(data_bytes);
    ring_view view = {.head = (ring_head *)base, .cells = (ring_cell *)(base + sizeof(ring_head))};
    view.data = (uint8_t *)(view.cells + RING_CELLS);
    return view;
}

weft_status wefti_ring_open(ring_wire *wire, const wefti_wire_options *options, const wefti_wire_ops *ops,
                            const ring_front *front, ring_segment *segment, size_t data_bytes) {
    WEFTI_TRY(wefti_wire_base_open(&wire->base, options, ops, EARLY_BYTES));
    wire->front = front;
    wire->segment = segment;
    wire->data_bytes = data_bytes;
    wire->base.wire.can = (wefti_wire_capabilities){
        .flags = WEFTI_WIRE_ONE_SIDED | WEFTI_WIRE_MAPS_PEERS | WEFTI_WIRE_WAIT_DESCRIPTOR | WEFTI_WIRE_SAME_HOST,
        .max_message_bytes = PTRDIFF_MAX,
        .inline_bytes = RING_INLINE_BYTES,
        .eager_bytes = data_bytes / 8 < WEFTI_MESSAGE_MOST_BYTES ? data_bytes / 8 : WEFTI_MESSAGE_MOST_BYTES,
        .latency_ns = 300,
        .bytes_per_ns = 5,
    };
    size_t      size = (size_t)options->size;
    weft_status status = wefti_alloc(size * sizeof *wire->links, "links", &wire->links);
    if (status != WEFT_OK) goto failed;
    for (size_t peer = 0; peer < size; peer++) wire->links[peer].doorbell = -1;
    wire->doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wire->doorbell < 0) {
        status = wefti_fail_errno("cannot create a doorbell (eventfd)");
        goto failed;
    }
    segment->magic = RING_MAGIC;
    segment->version = RING_VERSION;
    segment->size = (uint32_t)options->size;
    segment->cells = RING_CELLS;
    segment->data_bytes = data_bytes;
    wefti_ring_link_up(wire, options->rank, segment, wire->doorbell, true);
    return WEFT_OK;
failed:
    wefti_free(wire->links, size * sizeof *wire->links);
    wire->links = NULL;
    wefti_wire_base_close(&wire->base);
    return status;
}

void wefti_ring_close(ring_wire *wire) {
    close(wire->doorbell);
    wefti_free(wire->links, (size_t)wire->base.wire.size * sizeof *wire->links);
    wefti_free(wire->regions, wire->region_capacity * sizeof *wire->regions);
    wefti_wire_base_close(&wire->base);
}

void wefti_ring_link_up(ring_wire *wire, int32_t peer, ring_segment *peers_segment, int doorbell, bool direct) {
    ring_link *link = &wire->links[peer];
    link->in = wefti_ring_view(wire->segment, wire->data_bytes, peer);
    link->out = wefti_ring_view(peers_segment, wire->data_bytes, wire->base.wire.rank);
    link->asleep = &peers_segment->asleep;
    link->doorbell = doorbell;
    link->direct = direct;
    link->state = WEFTI_LINK_UP;
}

wefti_wire_link wefti_ring_link_state(const wefti_wire *wire, int32_t peer) {
    if (peer < 0 || peer >= wire->size) return WEFTI_LINK_NONE;
    return ((const ring_wire *)wire)->links[peer].state;
}

void wefti_ring_link_end(ring_wire *wire, int32_t peer, wefti_wire_link state) {
    ring_link *link = &wire->links[peer];
    link->state = state;
    wefti_wire_flush(&wire->base, &link->out_ops, WEFT_E_PEER, peer);
    wefti_wire_flush(&wire->base, &link->waiting, WEFT_E_PEER, peer);
    for (wefti_wire_op *op = wire->copying.first, *next; op; op = next) {
        next = op->next;
        if (ring_peer_of(op) != peer) continue;
        wefti_op_remove(&wire->copying, op);
        wefti_wire_finish(&wire->base, op, WEFT_E_PEER, peer, 0);
    }
    wefti_wire_flush_peer(&wire->base, peer);
}

/* --- regions --- */

weft_status wefti_ring_region_add(ring_wire *wire, void *base, size_t size_bytes, int memory, bool owned,
                                  wefti_wire_region **region_out) {
    if (wire->region_count == wire->region_capacity) {
        uint32_t capacity = wire->region_capacity ? wire->region_capacity * 2 : 16;
        WEFTI_TRY(wefti_grow(&wire->regions, wire->region_capacity * sizeof *wire->regions,
                             capacity * sizeof *wire->regions, "the table of regions"));
        wire->region_capacity = capacity;
    }
    ring_region *region = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *region, "a region", &region));
    *region = (ring_region){.region = {&wire->base.wire, base, size_bytes, wire->region_count + 1},
                            .memory = memory,
                            .owned = owned};
    wire->regions[wire->region_count++] = region;
    *region_out = &region->region;
    return WEFT_OK;
}

void wefti_ring_region_remove(ring_wire *wire, ring_region *region) {
    wire->regions[region->region.id - 1] = NULL;
    wefti_free(region, sizeof *region);
}

void wefti_ring_region_retire(wefti_wire_region *region, bool (*unused)(const void *context), const void *context) {
    ring_wire   *wire = (ring_wire *)region->wire;
    ring_region *entry = (ring_region *)region;
    if (unused(context)) {
        wire->base.wire.ops->region_release(region);
        return;
    }
    entry->unused = unused;
    entry->context = context;
    entry->next = wire->retired;
    wire->retired = entry;
}

/* Releases the retired regions that nobody uses any more. */
static void sweep(ring_wire *wire, uint64_t now_ns) {
    if (now_ns - wire->swept_ns < SWEEP_NS) return;
    wire->swept_ns = now_ns;
    for (ring_region **at = &wire->retired; *at;) {
        ring_region *entry = *at;
        if (!entry->unused(entry->context)) {
            at = &entry->next;
            continue;
        }
        *at = entry->next;
        wire->base.wire.ops->region_release(&entry->region);
    }
}

/* The newest first: what is asked for is mostly the arena of the latest plan. */
wefti_wire_region *wefti_ring_region_of(wefti_wire *self, const void *memory, size_t bytes) {
    const ring_wire *wire = (const ring_wire *)self;
    uintptr_t        at = (uintptr_t)memory;
    for (uint32_t i = wire->region_count; i-- > 0;) {
        ring_region *region = wire->regions[i];
        if (!region) continue;
        uintptr_t base = (uintptr_t)region->region.base;
        if (at >= base && at - base <= region->region.size_bytes && bytes <= region->region.size_bytes - (at - base))
            return &region->region;
    }
    return NULL;
}

/* --- posting --- */

static weft_status post_recv(ring_wire *wire, wefti_wire_op *op) {
    wefti_match   *match = &wire->base.match;
    wefti_message *message = wefti_match_posted(match, op);
    int32_t        peer = op->peer;
    if (!message) {
        if (peer == WEFTI_WIRE_ANY_PEER || wire->links[peer].state == WEFTI_LINK_UP) return WEFT_OK;
        wefti_op_remove(&match->posted[peer], op);
        return wefti_wire_fail_link(&wire->base.wire, peer, wire->links[peer].state);
    }
    if (message->kind == CELL_READY) {
        if (wire->links[message->peer].state == WEFTI_LINK_UP)
            wefti_ring_take_ready(wire, message->peer, op, message->bytes, message->token);
        else
            wefti_wire_finish(&wire->base, op, WEFT_E_PEER, message->peer, 0);
    } else if (message->kind == CELL_NOTIFY) {
        wefti_wire_finish(&wire->base, op, WEFT_OK, message->peer, message->bytes);
    } else {
        size_t fits = message->bytes < op->bytes ? message->bytes : op->bytes;
        if (fits) memcpy(op->buffer, message->data, fits);
        wefti_wire_finish_recv(&wire->base, op, message->peer, message->bytes);
    }
    wefti_match_free(match, message);
    return WEFT_OK;
}

static weft_status post_one_sided(ring_wire *wire, wefti_wire_op *op) {
    wefti_wire_peer_region region;
    WEFTI_TRY(wire->front->peer_region(&wire->base.wire, op->peer, op->region, &region));
    if (op->offset > region.size_bytes || op->bytes > region.size_bytes - op->offset)
        return wefti_fail(WEFT_E_INVALID, "%s: bytes %llu to %llu are outside region %u of rank %d, which has %zu",
                          wire->base.wire.can.name, (unsigned long long)op->offset,
                          (unsigned long long)(op->offset + op->bytes), op->region, (int)op->peer, region.size_bytes);
    wefti_ring_copy(wire, op, (uint8_t *)region.base + op->offset,
                    op->kind == WEFTI_WIRE_WRITE ? STEP_COPY_WRITE : STEP_COPY_READ);
    return WEFT_OK;
}

weft_status wefti_ring_post(wefti_wire *self, wefti_wire_op *op) {
    ring_wire *wire = (ring_wire *)self;
    WEFTI_TRY(wefti_wire_check_post(&wire->base, op));
    ring_link *link = op->peer == WEFTI_WIRE_ANY_PEER ? NULL : &wire->links[op->peer];
    if (link && link->state == WEFTI_LINK_CONNECTING) return WEFT_E_AGAIN;
    if (op->kind == WEFTI_WIRE_RECV) return post_recv(wire, op);
    if (link->state != WEFTI_LINK_UP) return wefti_wire_fail_link(self, op->peer, link->state);
    wire->base.counts.sent_messages++;
    wire->base.counts.sent_bytes += op->bytes;
    if (op->kind != WEFTI_WIRE_SEND) return post_one_sided(wire, op);
    op->scratch[3] = STEP_START;
    if (link->out_ops.first || !wefti_ring_put(wire, link, op)) wefti_op_append(&link->out_ops, op);
    return WEFT_OK;
}

/* --- polling --- */

static void wake_up(ring_wire *wire) {
    wire->armed = false;
    atomic_store_explicit(&wire->segment->asleep, 0, memory_order_relaxed);
    uint64_t rings;
    ssize_t  ignored = read(wire->doorbell, &rings, sizeof rings);
    (void)ignored;
}

weft_status wefti_ring_poll(wefti_wire *self, uint64_t now_ns, wefti_wire_op **ops_out, int32_t capacity,
                            int32_t *count_out) {
    ring_wire *wire = (ring_wire *)self;
    if (wire->armed) wake_up(wire);
    wire->front->service(wire, now_ns);
    if (wire->retired) sweep(wire, now_ns);
    if (!wire->base.aborted) {
        for (int32_t peer = 0; peer < self->size; peer++) {
            ring_link *link = &wire->links[peer];
            if (link->state != WEFTI_LINK_UP) continue;
            wefti_ring_consume(wire, peer);
            /* One turn each, so that a stream at the head does not hold up what is behind it. */
            wefti_wire_op *last = link->out_ops.last;
            for (wefti_wire_op *op = link->out_ops.first; op; op = link->out_ops.first) {
                bool was_last = op == last;
                bool stream = ring_step_of(op) == STEP_STREAM;
                wefti_op_remove(&link->out_ops, op);
                if (!wefti_ring_put(wire, link, op)) {
                    if (!stream) { /* no room: keep the order */
                        op->next = link->out_ops.first;
                        if (op->next) op->next->previous = op; else link->out_ops.last = op;
                        link->out_ops.first = op;
                        break;
                    }
                    wefti_op_append(&link->out_ops, op);
                }
                if (was_last) break;
            }
        }
        if (wire->copying.first) wefti_ring_copy_some(wire);
    }
    *count_out = wefti_wire_hand_out(&wire->base, ops_out, capacity);
    return WEFT_OK;
}

/* Whether anything can be done without a peer. */
static bool busy(const ring_wire *wire) {
    if (wire->copying.first || wire->base.done.first) return true;
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++) {
        ring_link *link = &wire->links[peer];
        if (link->state != WEFTI_LINK_UP) continue;
        const ring_cell *cell = &link->in.cells[link->in_position % RING_CELLS];
        if (link->out_ops.first || atomic_load(&cell->turn) == (uint32_t)(link->in_position + 1)) return true;
    }
    return false;
}

weft_status wefti_ring_arm(wefti_wire *self) {
    ring_wire *wire = (ring_wire *)self;
    /* Ordered against the producer, which stores the turn and then loads `asleep`, both sequentially consistent. */
    wire->armed = true;
    atomic_store(&wire->segment->asleep, 1);
    if (!wire->base.aborted && busy(wire)) {
        wake_up(wire);
        return WEFT_E_AGAIN;
    }
    return WEFT_OK;
}

/* --- ending --- */

void wefti_ring_abort(wefti_wire *self, weft_status status, int32_t rank) {
    ring_wire *wire = (ring_wire *)self;
    if (wire->base.aborted) return;
    wire->base.aborted = true;
    wire->base.abort_status = status;
    wire->base.abort_rank = rank;
    for (int32_t peer = 0; peer <= self->size; peer++)
        wefti_wire_flush(&wire->base, &wire->base.match.posted[peer], status, rank);
    for (int32_t peer = 0; peer < self->size; peer++) {
        wefti_wire_flush(&wire->base, &wire->links[peer].out_ops, status, rank);
        wefti_wire_flush(&wire->base, &wire->links[peer].waiting, status, rank);
    }
    wefti_wire_flush(&wire->base, &wire->copying, status, rank);
}

void wefti_ring_leave(ring_wire *wire, uint64_t linger_ns) {
    const wefti_host *host = wire->base.wire.host;
    uint64_t          deadline_ns = wefti_deadline_after(wefti_host_now(host), linger_ns);
    wefti_ring_abort(&wire->base.wire, WEFT_E_ABORTED, -1);
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++) {
        ring_link *link = &wire->links[peer];
        if (peer == wire->base.wire.rank || link->state != WEFTI_LINK_UP) continue;
        for (;;) {
            uint64_t taken = atomic_load_explicit(&link->out.head->cells_taken, memory_order_acquire);
            if (link->out_position - taken < RING_CELLS) break;
            if (wefti_host_now(host) >= deadline_ns || link->broken) goto next;
            host->yield(host->context);
        }
        ring_cell *cell = &link->out.cells[link->out_position % RING_CELLS];
        cell->kind = CELL_BYE;
        atomic_store(&cell->turn, (uint32_t)(++link->out_position));
        if (atomic_load(link->asleep)) {
            ssize_t ignored = write(link->doorbell, &(uint64_t){1}, 8);
            (void)ignored;
        }
    next:;
    }
}

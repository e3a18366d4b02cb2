/* The ring wire: moving bytes through rings and between buffers.
 *
 * A large message takes one of four ways, decided where the receive is matched, cheapest first: the receiver copies from
 * the sender's address (same process), from its own mapping of the sender's exported region, or with process_vm_readv
 * where the system lets it; else the sender copies into its mapping of the receiver's exported region; else parts go
 * through the data area. Tokens are the addresses of operations; they come back only while the operation is on
 * the waiting list of that link, and links of one job trust each other with memory anyway. */
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "transport/wire_ring.h"

enum {
    COPY_AT_ONCE_BYTES = 64 << 10, /* shorter copies are not worth a place on the list */
    COPY_PIECE_BYTES = 1 << 20,    /* a poll copies at most this much: about 0.2 ms */
    CONSUME_CELLS = 64
};

/* --- producing --- */

static ring_cell *claim_cell(ring_link *link) {
    if (link->out_position - link->out_taken == RING_CELLS) {
        link->out_taken = atomic_load_explicit(&link->out.head->cells_taken, memory_order_acquire);
        if (link->out_position - link->out_taken == RING_CELLS) return NULL;
    }
    return &link->out.cells[link->out_position % RING_CELLS];
}

/* Room for `bytes` in one piece in the data area; false where there is none now. */
static bool claim_data(const ring_wire *wire, ring_link *link, size_t bytes, uint64_t *start_out) {
    uint64_t start = link->data_position, in_lap = start % wire->data_bytes;
    if (in_lap + bytes > wire->data_bytes) start += wire->data_bytes - in_lap;
    if (start + bytes - link->data_taken > wire->data_bytes) {
        link->data_taken = atomic_load_explicit(&link->out.head->data_taken, memory_order_acquire);
        if (start + bytes - link->data_taken > wire->data_bytes) return false;
    }
    *start_out = start;
    return true;
}

static void publish(ring_link *link, ring_cell *cell, ring_cell_kind kind) {
    cell->kind = (uint16_t)kind;
    /* Sequentially consistent with the owner's `asleep`: either it sees the turn before it sleeps, or it is woken. */
    atomic_store(&cell->turn, (uint32_t)(++link->out_position));
    if (atomic_load(link->asleep)) {
        ssize_t ignored = write(link->doorbell, &(uint64_t){1}, 8);
        (void)ignored; /* full means rung already */
    }
}

/* The region of this wire that holds [memory, memory + bytes), or 0. */
static uint32_t region_of(ring_wire *wire, const void *memory, size_t bytes, uint64_t *offset_out) {
    const wefti_wire_region *region = wefti_ring_region_of(&wire->base.wire, memory, bytes);
    *offset_out = region ? (uint64_t)((const uint8_t *)memory - (const uint8_t *)region->base) : 0;
    return region ? region->id : 0;
}

static bool put_start(ring_wire *wire, ring_link *link, wefti_wire_op *op) {
    ring_cell *cell = claim_cell(link);
    if (!cell) return false;
    if (op->bytes <= RING_INLINE_BYTES) {
        if (op->bytes) memcpy(cell->data, op->buffer, op->bytes);
    } else if (op->bytes <= wire->base.wire.can.eager_bytes) {
        uint64_t start;
        if (!claim_data(wire, link, op->bytes, &start)) return false;
        memcpy(link->out.data + start % wire->data_bytes, op->buffer, op->bytes);
        link->data_position = wefti_align_up(start + op->bytes, WEFTI_CACHE_LINE);
        cell->word[0] = start;
        cell->word[1] = link->data_position;
    }
    cell->tag = op->tag;
    cell->bytes = op->bytes;
    if (op->bytes <= wire->base.wire.can.eager_bytes) {
        publish(link, cell, op->bytes <= RING_INLINE_BYTES ? CELL_INLINE : CELL_EAGER);
        wefti_wire_finish(&wire->base, op, WEFT_OK, op->peer, op->bytes);
        return true;
    }
    cell->word[0] = (uint64_t)(uintptr_t)op;
    cell->word[1] = (uint64_t)(uintptr_t)op->buffer;
    cell->word[2] = region_of(wire, op->buffer, op->bytes, &cell->word[3]);
    op->scratch[3] = STEP_WAIT;
    wefti_op_append(&link->waiting, op);
    publish(link, cell, CELL_READY);
    return true;
}

static bool put_stream(ring_wire *wire, ring_link *link, wefti_wire_op *op) {
    size_t part_bytes = wire->data_bytes / 4;
    while (op->scratch[2] < op->bytes) {
        size_t     left = op->bytes - op->scratch[2], bytes = left < part_bytes ? left : part_bytes;
        uint64_t   start;
        ring_cell *cell = claim_cell(link);
        if (!cell || !claim_data(wire, link, bytes, &start)) return false;
        memcpy(link->out.data + start % wire->data_bytes, (const uint8_t *)op->buffer + op->scratch[2], bytes);
        link->data_position = wefti_align_up(start + bytes, WEFTI_CACHE_LINE);
        cell->tag = op->scratch[2];
        cell->bytes = bytes;
        cell->word[0] = op->scratch[0];
        cell->word[1] = start;
        cell->word[2] = link->data_position;
        op->scratch[2] += bytes;
        publish(link, cell, CELL_PART);
    }
    wefti_wire_finish(&wire->base, op, WEFT_OK, op->peer, op->bytes);
    return true;
}

/* The steps that are one cell and no data. */
static bool put_word(ring_wire *wire, ring_link *link, wefti_wire_op *op) {
    ring_cell *cell = claim_cell(link);
    if (!cell) return false;
    cell->word[0] = op->scratch[0];
    switch (ring_step_of(op)) {
    case STEP_TAKEN:
        publish(link, cell, CELL_TAKEN);
        wefti_wire_finish_recv(&wire->base, op, op->done_peer, op->done_bytes);
        break;
    case STEP_FILLED:
        publish(link, cell, CELL_FILLED);
        wefti_wire_finish(&wire->base, op, WEFT_OK, op->peer, op->bytes);
        break;
    case STEP_NOTIFY:
        cell->tag = op->tag;
        cell->bytes = op->bytes;
        publish(link, cell, CELL_NOTIFY);
        wefti_wire_finish(&wire->base, op, WEFT_OK, op->peer, op->bytes);
        break;
    default: /* STEP_CLEAR */
        cell->word[1] = (uint64_t)(uintptr_t)op;
        cell->word[2] = region_of(wire, op->buffer, op->done_bytes, &cell->word[3]);
        op->scratch[2] = 0;
        op->scratch[3] = STEP_WAIT;
        wefti_op_append(&link->waiting, op);
        publish(link, cell, CELL_CLEAR);
        break;
    }
    return true;
}

bool wefti_ring_put(ring_wire *wire, ring_link *link, wefti_wire_op *op) {
    switch (ring_step_of(op)) {
    case STEP_START: return put_start(wire, link, op);
    case STEP_STREAM: return put_stream(wire, link, op);
    default: return put_word(wire, link, op);
    }
}

static void put_later(ring_wire *wire, wefti_wire_op *op, ring_step step) {
    ring_link *link = &wire->links[ring_peer_of(op)];
    op->scratch[3] = step;
    if (link->out_ops.first || !wefti_ring_put(wire, link, op)) wefti_op_append(&link->out_ops, op);
}

/* --- copying --- */

static size_t copy_length(const wefti_wire_op *op) { return op->kind == WEFTI_WIRE_RECV ? op->done_bytes : op->bytes; }

/* Bytes that the system has copied from the other process's memory, which may be fewer; 0 where it has not. */
static size_t read_process(const ring_link *link, void *to, uint64_t address, size_t bytes) {
    struct iovec here = {to, bytes}, there = {(void *)(uintptr_t)address, bytes};
    ssize_t      got = process_vm_readv(link->pid, &here, 1, &there, 1, 0);
    return got > 0 ? (size_t)got : 0;
}

weft_status wefti_ring_peer_read(wefti_wire *self, int32_t peer, void *to, uint64_t address, size_t bytes) {
    ring_link *link = &((ring_wire *)self)->links[peer];
    if (link->state == WEFTI_LINK_CONNECTING) return WEFT_E_AGAIN;
    for (size_t done = 0, got; done < bytes && link->reads_memory; done += got) {
        got = read_process(link, (uint8_t *)to + done, address + done, bytes - done);
        if (got == 0) link->reads_memory = false;
    }
    return link->reads_memory ? WEFT_OK : WEFT_E_UNSUPPORTED;
}

/* Copies up to `most` bytes more; false where the other process cannot be read. */
static bool copy_piece(ring_wire *wire, wefti_wire_op *op, size_t most) {
    size_t   left = copy_length(op) - op->scratch[2], bytes = left < most ? left : most;
    uint8_t *mine = (uint8_t *)op->buffer + op->scratch[2];
    uint64_t theirs = op->scratch[1] + op->scratch[2];
    switch (ring_step_of(op)) {
    case STEP_COPY_SEND:
    case STEP_COPY_WRITE: memcpy((void *)(uintptr_t)theirs, mine, bytes); break;
    case STEP_COPY_VM: {
        bytes = read_process(&wire->links[op->done_peer], mine, theirs, bytes);
        if (bytes == 0) return false;
        break;
    }
    default: memcpy(mine, (const void *)(uintptr_t)theirs, bytes); break;
    }
    op->scratch[2] += bytes;
    return true;
}

static void copy_finished(ring_wire *wire, wefti_wire_op *op) {
    switch (ring_step_of(op)) {
    case STEP_COPY_RECV:
    case STEP_COPY_VM: put_later(wire, op, STEP_TAKEN); break;
    case STEP_COPY_SEND: put_later(wire, op, STEP_FILLED); break;
    case STEP_COPY_WRITE:
        if (op->flags & WEFTI_WIRE_NOTIFY) {
            put_later(wire, op, STEP_NOTIFY);
            break;
        }
        wefti_wire_finish(&wire->base, op, WEFT_OK, op->peer, op->bytes);
        break;
    default:
        wire->base.counts.received_bytes += op->bytes;
        wefti_wire_finish(&wire->base, op, WEFT_OK, op->peer, op->bytes);
        break;
    }
}

void wefti_ring_copy(ring_wire *wire, wefti_wire_op *op, void *address, ring_step step) {
    op->scratch[1] = (uint64_t)(uintptr_t)address;
    op->scratch[2] = 0;
    op->scratch[3] = step;
    size_t length = copy_length(op);
    if (length > COPY_AT_ONCE_BYTES || step == STEP_COPY_VM) {
        wefti_op_append(&wire->copying, op);
        return;
    }
    if (length) copy_piece(wire, op, length);
    copy_finished(wire, op);
}

void wefti_ring_copy_some(ring_wire *wire) {
    wefti_wire_op *op = wefti_op_take_first(&wire->copying);
    if (!copy_piece(wire, op, COPY_PIECE_BYTES)) {
        /* The system has changed its mind about reading the other process, or it is gone: stream from the start. */
        wire->links[op->done_peer].reads_memory = false;
        put_later(wire, op, STEP_CLEAR);
    } else if (op->scratch[2] == copy_length(op)) {
        copy_finished(wire, op);
    } else {
        wefti_op_append(&wire->copying, op);
    }
}

/* --- consuming --- */

void wefti_ring_take_ready(ring_wire *wire, int32_t peer, wefti_wire_op *op, uint64_t bytes, const uint64_t *word) {
    ring_link             *link = &wire->links[peer];
    wefti_wire_peer_region region;
    op->done_peer = peer;
    op->done_bytes = bytes;
    op->scratch[0] = word[0];
    if (bytes > op->bytes) {
        put_later(wire, op, STEP_TAKEN);
    } else if (link->direct) {
        wefti_ring_copy(wire, op, (void *)(uintptr_t)word[1], STEP_COPY_RECV);
    } else if (word[2] && wire->front->peer_region(&wire->base.wire, peer, (uint32_t)word[2], &region) == WEFT_OK &&
               word[3] <= region.size_bytes && bytes <= region.size_bytes - word[3]) {
        wefti_ring_copy(wire, op, (uint8_t *)region.base + word[3], STEP_COPY_RECV);
    } else if (link->reads_memory) {
        wefti_ring_copy(wire, op, (void *)(uintptr_t)word[1], STEP_COPY_VM);
    } else {
        put_later(wire, op, STEP_CLEAR);
    }
}

static bool take_message(ring_wire *wire, int32_t peer, const ring_cell *cell) {
    ring_link     *link = &wire->links[peer];
    bool           here = cell->kind == CELL_INLINE || cell->kind == CELL_EAGER;
    const uint8_t *data = cell->kind == CELL_INLINE ? cell->data : link->in.data + cell->word[0] % wire->data_bytes;
    wefti_wire_op *op = wefti_match_arrived(&wire->base.match, peer, cell->tag);
    if (!op) {
        wefti_message *message =
            wefti_match_keep(&wire->base.match, peer, cell->tag, cell->bytes, here ? cell->bytes : 0);
        if (!message) return false;
        message->kind = cell->kind;
        if (here && cell->bytes) memcpy(message->data, data, cell->bytes);
        if (!here) memcpy(message->token, cell->word, sizeof message->token);
    } else if (here) {
        size_t fits = cell->bytes < op->bytes ? cell->bytes : op->bytes;
        if (fits) memcpy(op->buffer, data, fits);
        wefti_wire_finish_recv(&wire->base, op, peer, cell->bytes);
    } else if (cell->kind == CELL_NOTIFY) {
        wefti_wire_finish(&wire->base, op, WEFT_OK, peer, cell->bytes);
    } else {
        wefti_ring_take_ready(wire, peer, op, cell->bytes, cell->word);
    }
    wire->base.counts.received_messages++;
    wire->base.counts.received_bytes += cell->bytes;
    if (cell->kind == CELL_EAGER) link->in_data = cell->word[1];
    return true;
}

static void take_part(ring_wire *wire, ring_link *link, const ring_cell *cell) {
    wefti_wire_op *op = (wefti_wire_op *)(uintptr_t)cell->word[0];
    memcpy((uint8_t *)op->buffer + cell->tag, link->in.data + cell->word[1] % wire->data_bytes, cell->bytes);
    link->in_data = cell->word[2];
    op->scratch[2] += cell->bytes;
    if (op->scratch[2] < op->done_bytes) return;
    wefti_op_remove(&link->waiting, op);
    wefti_wire_finish_recv(&wire->base, op, op->done_peer, op->done_bytes);
}

static void take_clear(ring_wire *wire, int32_t peer, const ring_cell *cell) {
    wefti_wire_op         *op = (wefti_wire_op *)(uintptr_t)cell->word[0];
    wefti_wire_peer_region region;
    wefti_op_remove(&wire->links[peer].waiting, op);
    op->scratch[0] = cell->word[1];
    if (cell->word[2] && wire->front->peer_region(&wire->base.wire, peer, (uint32_t)cell->word[2], &region) == WEFT_OK &&
        cell->word[3] <= region.size_bytes && op->bytes <= region.size_bytes - cell->word[3]) {
        wefti_ring_copy(wire, op, (uint8_t *)region.base + cell->word[3], STEP_COPY_SEND);
        return;
    }
    op->scratch[2] = 0;
    put_later(wire, op, STEP_STREAM);
}

/* Takes one cell: false where it has to stay. */
static bool take_cell(ring_wire *wire, int32_t peer, const ring_cell *cell) {
    ring_link     *link = &wire->links[peer];
    wefti_wire_op *op = (wefti_wire_op *)(uintptr_t)cell->word[0];
    switch ((ring_cell_kind)cell->kind) {
    case CELL_INLINE:
    case CELL_EAGER:
    case CELL_READY:
    case CELL_NOTIFY: return take_message(wire, peer, cell);
    case CELL_CLEAR: take_clear(wire, peer, cell); return true;
    case CELL_PART: take_part(wire, link, cell); return true;
    case CELL_FILLED:
        wefti_op_remove(&link->waiting, op);
        wefti_wire_finish_recv(&wire->base, op, peer, op->done_bytes);
        return true;
    case CELL_TAKEN:
        wefti_op_remove(&link->waiting, op);
        wefti_wire_finish(&wire->base, op, WEFT_OK, peer, op->bytes);
        return true;
    case CELL_BYE: wefti_ring_link_end(wire, peer, WEFTI_LINK_LEFT); return true;
    }
    wefti_ring_link_end(wire, peer, WEFTI_LINK_DOWN);
    return true;
}

void wefti_ring_consume(ring_wire *wire, int32_t peer) {
    ring_link *link = &wire->links[peer];
    int        taken = 0;
    bool       broken = link->broken; /* read before the cells: what was written before the break is seen */
    for (; taken < CONSUME_CELLS && link->state == WEFTI_LINK_UP; taken++) {
        const ring_cell *cell = &link->in.cells[link->in_position % RING_CELLS];
        if (atomic_load_explicit(&cell->turn, memory_order_acquire) != (uint32_t)(link->in_position + 1)) break;
        if (!take_cell(wire, peer, cell)) break;
        link->in_position++;
    }
    if (taken) {
        atomic_store_explicit(&link->in.head->data_taken, link->in_data, memory_order_release);
        atomic_store_explicit(&link->in.head->cells_taken, link->in_position, memory_order_release);
    } else if (broken && link->state == WEFTI_LINK_UP) {
        wefti_ring_link_end(wire, peer, WEFTI_LINK_DOWN);
    }
}

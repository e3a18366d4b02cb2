/* The simulated wire: messages as events of the simulator (sim.h).
 *
 * Up to 64 KiB are copied when they are posted, and their send is done; what is longer stays the sender's until it has arrived and
 * is matched, and is done a latency later. Messages of one peer and tag arrive in order, others overtake each other as chance will.
 * What arrives waits in the inbox until poll, as on a real wire: a rank that is stopped takes nothing, but regions are written and
 * read without it.
 *
 * Invariant: an operation of this end that waits for an answer is in `pending` and knows the one message that is under way for it
 * (scratch[1]), which knows it; who ends first, takes itself out of the other. Links come up as soon as both ends have called
 * connect. Memory: 8 bytes a peer and the tables of matching, beside the messages themselves. */
#include <string.h>

#include "transport/regions.h"
#include "transport/sim_inside.h"

enum { EAGER_BYTES = SIM_MOST_CHUNK, EARLY_BYTES = 256 << 20 };
#define ADDRESS_MAGIC UINT64_C(0x314d4953544657)

typedef struct sim_address {
    uint64_t magic;
    int32_t  seat;
    uint32_t epoch, number;
} sim_address;

typedef struct sim_peer {
    wefti_wire_link state;
    int32_t         seat;
    uint32_t        number; /* of its wire at that seat */
} sim_peer;

struct sim_wire {
    wefti_wire_base base; /* first */
    wefti_sim      *sim;
    sim_seat       *seat;
    sim_wire       *next;    /* of the same seat */
    sim_peer       *peers;   /* [size] */
    wefti_op_list   pending; /* that wait for an answer */
    wefti_op_list   own;     /* large sends to this rank itself */
    sim_message    *first, *last; /* the inbox */
    wefti_regions   regions;
    uint32_t        epoch, number; /* number: of the seat's wires, from 1 on: a rank may have several of one epoch; 0: its process has died */
};

static sim_wire *wire_at(sim_seat *seat, uint32_t number) {
    sim_wire *wire = seat->wires;
    while (wire && wire->number != number) wire = wire->next;
    return wire;
}

/* --- operations under way --- */

static void tie(wefti_wire_op *op, sim_message *message) {
    op->scratch[1] = (uint64_t)(uintptr_t)message;
    message->op = op;
}
static void untie(wefti_wire_op *op) {
    sim_message *message = (sim_message *)(uintptr_t)op->scratch[1];
    if (message) message->op = NULL;
    op->scratch[1] = 0;
}

static void finish(sim_wire *wire, wefti_wire_op *op, weft_status status, int32_t peer, size_t bytes) {
    wefti_op_remove(&wire->pending, op);
    untie(op);
    wefti_wire_finish(&wire->base, op, status, peer, bytes);
}

static void flush_pending(sim_wire *wire, int32_t peer, weft_status status, int32_t rank) {
    for (wefti_wire_op *op = wire->pending.first, *next; op; op = next) {
        next = op->next;
        if (peer < 0 || op->peer == peer) finish(wire, op, status, rank, 0);
    }
}

/* --- what arrives --- */

/* Sends a message back to where it came from, as something else. */
static void answer(sim_wire *wire, sim_message *message, sim_kind kind, size_t bytes) {
    int32_t from = message->to;
    message->to = message->from;
    message->from = from;
    message->wire = wire->peers[message->rank].number;
    message->rank = wire->base.wire.rank;
    message->kind = (uint8_t)kind;
    wefti_sim_send(wire->sim, message, bytes, 0);
}

/* A receive gets its message, which is spent. */
static void deliver(sim_wire *wire, wefti_wire_op *recv, sim_message *message) {
    size_t      fits = message->bytes < recv->bytes ? (size_t)message->bytes : recv->bytes;
    const void *from = message->kind == SIM_LARGE ? message->op->buffer : message->data;
    if (message->kind == SIM_NOTICE) {
        wefti_wire_finish(&wire->base, recv, WEFT_OK, message->rank, (size_t)message->bytes);
        wefti_sim_message_free(wire->sim, message);
        return;
    }
    if (fits) memcpy(recv->buffer, from, fits);
    wire->base.counts.received_messages++;
    wire->base.counts.received_bytes += message->bytes;
    wefti_wire_finish_recv(&wire->base, recv, message->rank, (size_t)message->bytes);
    if (message->kind == SIM_LARGE)
        answer(wire, message, SIM_ACK, 0);
    else
        wefti_sim_message_free(wire->sim, message);
}

/* The sender has taken it back. */
static bool is_void(const sim_message *message) { return message->kind == SIM_LARGE && !message->op; }

/* Matches a message; false: there is no room for it now. */
static bool take_message(sim_wire *wire, sim_message *message) {
    wefti_match *match = &wire->base.match;
    if (wire->base.aborted || is_void(message)) {
        wefti_sim_message_free(wire->sim, message);
        return true;
    }
    wefti_wire_op *recv = wefti_match_arrived(match, message->rank, message->tag);
    if (recv) {
        deliver(wire, recv, message);
        return true;
    }
    wefti_message *early = wefti_match_keep(match, message->rank, message->tag, message->bytes, 0);
    if (!early) return false;
    early->token[0] = (uint64_t)(uintptr_t)message;
    return true;
}

static void end_link(sim_wire *wire, int32_t peer, wefti_wire_link state) {
    if (wire->peers[peer].state == WEFTI_LINK_LEFT || wire->peers[peer].state == WEFTI_LINK_DOWN) return;
    wire->peers[peer].state = state;
    wefti_wire_flush_peer(&wire->base, peer);
    flush_pending(wire, peer, WEFT_E_PEER, peer);
}

static bool take(sim_wire *wire, sim_message *message) {
    switch ((sim_kind)message->kind) {
    case SIM_DATA:
    case SIM_LARGE:
    case SIM_NOTICE: wefti_sim_spend(wire->sim, wire->sim->options.post_ns); return take_message(wire, message);
    case SIM_ACK:
    case SIM_ANSWER:
        if (message->op) finish(wire, message->op, WEFT_OK, message->op->peer, message->op->bytes);
        break;
    case SIM_BYE: end_link(wire, message->rank, WEFTI_LINK_LEFT); break;
    case SIM_RESET: end_link(wire, message->rank, WEFTI_LINK_DOWN); break;
    default: break;
    }
    wefti_sim_message_free(wire->sim, message);
    return true;
}

static void into_inbox(sim_wire *wire, sim_message *message) {
    message->next = NULL;
    if (wire->last)
        wire->last->next = message;
    else
        wire->first = message;
    wire->last = message;
}

/* A WRITE reaches memory without the rank, and a READ leaves it so. */
static void write_region(sim_wire *wire, sim_message *message) {
    const wefti_wire_op *op = message->op;
    uint8_t *memory = wefti_regions_memory(&wire->regions, message->region, message->offset, message->bytes);
    if (memory && message->bytes) memcpy(memory, op->buffer, (size_t)message->bytes);
    if (op->flags & WEFTI_WIRE_NOTIFY) {
        sim_message *notice = wefti_sim_message(wire->sim, 0);
        if (notice) {
            notice->kind = SIM_NOTICE;
            notice->from = message->from;
            notice->to = message->to;
            notice->rank = message->rank;
            notice->tag = message->tag;
            notice->bytes = message->bytes;
            into_inbox(wire, notice);
        } else {
            wire->sim->failed = WEFT_E_NO_MEMORY;
        }
    }
    answer(wire, message, SIM_ACK, 0);
}

static void read_answered(sim_wire *wire, sim_message *message) {
    wefti_wire_op *op = message->op;
    sim_wire      *theirs = wire_at(&wire->sim->seats[message->from], wire->peers[op->peer].number);
    const uint8_t *memory = theirs ? wefti_regions_memory(&theirs->regions, message->region, message->offset, op->bytes) : NULL;
    if (memory && op->bytes) memcpy(op->buffer, memory, op->bytes);
}

void wefti_sim_wire_arrived(wefti_sim *sim, sim_message *message) {
    sim_seat *seat = &sim->seats[message->to];
    sim_wire *wire = wire_at(seat, message->wire);
    bool      needs_op = message->kind == SIM_LARGE || message->kind == SIM_WRITE || message->kind == SIM_READ ||
                    message->kind == SIM_ANSWER || message->kind == SIM_ACK;
    if (!wire || (needs_op && !message->op)) {
        wefti_sim_message_free(sim, message);
        return;
    }
    if (message->kind == SIM_WRITE) {
        write_region(wire, message);
    } else if (message->kind == SIM_READ) {
        answer(wire, message, SIM_ANSWER, message->op->bytes);
        return;
    } else {
        if (message->kind == SIM_ANSWER) read_answered(wire, message);
        into_inbox(wire, message);
    }
    wefti_sim_wake(seat);
}

static weft_status sim_poll(wefti_wire *self, uint64_t now_ns, wefti_wire_op **ops_out, int32_t capacity, int32_t *count_out) {
    sim_wire *wire = (sim_wire *)self;
    (void)now_ns;
    while (wire->first) {
        sim_message *message = wire->first, *next = message->next;
        if (!take(wire, message)) break;
        wire->first = next;
        if (!next) wire->last = NULL;
    }
    *count_out = wefti_wire_hand_out(&wire->base, ops_out, capacity);
    return WEFT_OK;
}

/* --- posting --- */

static weft_status post_recv(sim_wire *wire, wefti_wire_op *op) {
    bool            any = op->peer == WEFTI_WIRE_ANY_PEER;
    wefti_wire_link state = any ? WEFTI_LINK_UP : wire->peers[op->peer].state;
    if (state == WEFTI_LINK_NONE) return wefti_wire_fail_link(&wire->base.wire, op->peer, state);
    for (wefti_message *early; (early = wefti_match_posted(&wire->base.match, op));) {
        if (early->peer == wire->base.wire.rank) {
            wefti_self_take(&wire->base, &wire->own, op, early);
            return WEFT_OK;
        }
        sim_message *message = (sim_message *)(uintptr_t)early->token[0];
        wefti_match_free(&wire->base.match, early);
        if (!is_void(message)) {
            deliver(wire, op, message);
            return WEFT_OK;
        }
        wefti_sim_message_free(wire->sim, message);
    }
    if (state != WEFTI_LINK_LEFT && state != WEFTI_LINK_DOWN) return WEFT_OK;
    wefti_op_remove(&wire->base.match.posted[op->peer], op);
    return wefti_wire_fail_link(&wire->base.wire, op->peer, state);
}

/* When the last message of the same tag that is still on the way to a peer arrives. */
static uint64_t behind_tag(const sim_wire *wire, int32_t to, uint64_t tag) {
    const sim_way *way = &wire->sim->ways[(size_t)wire->seat->index * (size_t)wire->sim->options.size + (size_t)to];
    uint64_t       at_ns = 0;
    for (const sim_message *message = way->last; message; message = message->previous)
        if (message->tag == tag && message->kind < SIM_CHUNK && message->event.at_ns > at_ns) at_ns = message->event.at_ns;
    return at_ns;
}

static weft_status send(sim_wire *wire, wefti_wire_op *op) {
    int32_t to = wire->peers[op->peer].seat;
    bool    large = op->kind != WEFTI_WIRE_SEND || op->bytes > EAGER_BYTES;
    sim_message *message = wefti_sim_message(wire->sim, large ? 0 : op->bytes);
    if (!message) return WEFT_E_AGAIN;
    message->from = wire->seat->index;
    message->to = to;
    message->rank = wire->base.wire.rank;
    message->wire = wire->peers[op->peer].number;
    message->tag = op->tag;
    message->bytes = op->bytes;
    message->region = op->region;
    message->offset = op->offset;
    message->kind = (uint8_t)(op->kind == WEFTI_WIRE_WRITE ? SIM_WRITE : op->kind == WEFTI_WIRE_READ ? SIM_READ : large ? SIM_LARGE : SIM_DATA);
    if (large) {
        tie(op, message);
        wefti_op_append(&wire->pending, op);
    } else {
        if (op->bytes) memcpy(message->data, op->buffer, op->bytes);
        wefti_wire_finish(&wire->base, op, WEFT_OK, op->peer, op->bytes);
    }
    if (op->kind != WEFTI_WIRE_READ) {
        wire->base.counts.sent_messages += op->kind == WEFTI_WIRE_SEND;
        wire->base.counts.sent_bytes += op->bytes;
    }
    wefti_sim_send(wire->sim, message, op->kind == WEFTI_WIRE_READ ? 0 : op->bytes, behind_tag(wire, to, op->tag));
    return WEFT_OK;
}

static weft_status sim_peer_region(wefti_wire *self, int32_t peer, uint32_t id, wefti_wire_peer_region *region_out);

static weft_status check_region(sim_wire *wire, const wefti_wire_op *op) {
    wefti_wire_peer_region region;
    WEFTI_TRY(sim_peer_region(&wire->base.wire, op->peer, op->region, &region));
    if (op->offset > region.size_bytes || op->bytes > region.size_bytes - op->offset)
        return wefti_fail(WEFT_E_INVALID, "sim: bytes from %llu on are outside region %u of rank %d, which has %zu",
                          (unsigned long long)op->offset, op->region, (int)op->peer, region.size_bytes);
    return WEFT_OK;
}

static weft_status sim_post(wefti_wire *self, wefti_wire_op *op) {
    sim_wire *wire = (sim_wire *)self;
    WEFTI_TRY(wefti_wire_check_post(&wire->base, op));
    if (op->kind == WEFTI_WIRE_RECV) return post_recv(wire, op);
    wefti_wire_link state = wire->peers[op->peer].state;
    if (state == WEFTI_LINK_CONNECTING) return WEFT_E_AGAIN;
    if (state != WEFTI_LINK_UP) return wefti_wire_fail_link(self, op->peer, state);
    if (op->kind != WEFTI_WIRE_SEND) WEFTI_TRY(check_region(wire, op));
    op->scratch[1] = 0;
    if (op->peer == self->rank) {
        if (op->kind == WEFTI_WIRE_SEND) {
            WEFTI_TRY(wefti_self_send(&wire->base, &wire->own, op));
            wire->base.counts.sent_messages++;
            wire->base.counts.sent_bytes += op->bytes;
            return WEFT_OK;
        }
        return wefti_self_one_sided(&wire->base, wefti_regions_memory(&wire->regions, op->region, op->offset, op->bytes), op);
    }
    wefti_sim_about_to_send(wire->seat);
    return send(wire, op);
}

/* What is not done is read when it arrives, from where it is then. */
static void sim_send_from(wefti_wire *self, wefti_wire_op *op, const void *buffer) {
    (void)self;
    op->buffer = (void *)buffer;
}

/* --- links and regions --- */

static weft_status sim_get_address(wefti_wire *self, void *address_out, size_t *bytes_out) {
    const sim_wire *wire = (const sim_wire *)self;
    sim_address     address = {ADDRESS_MAGIC, wire->seat->index, wire->epoch, wire->number};
    memcpy(address_out, &address, sizeof address);
    *bytes_out = sizeof address;
    return WEFT_OK;
}

static weft_status sim_connect(wefti_wire *self, int32_t peer, const void *bytes, size_t count) {
    sim_wire   *wire = (sim_wire *)self;
    sim_address address = {0};
    if (peer < 0 || peer >= self->size)
        return wefti_fail(WEFT_E_INVALID, "sim: there is no rank %d among %d", (int)peer, (int)self->size);
    if (count == sizeof address) memcpy(&address, bytes, sizeof address);
    if (address.magic != ADDRESS_MAGIC || address.seat < 0 || address.seat >= wire->sim->options.size || address.epoch != wire->epoch)
        return wefti_fail(WEFT_E_CORRUPT, "sim: the address of rank %d is none of this wire", (int)peer);
    if (wire->peers[peer].state != WEFTI_LINK_NONE) return WEFT_OK;
    wire->peers[peer] = (sim_peer){WEFTI_LINK_CONNECTING, address.seat, address.number};
    sim_seat *seat = &wire->sim->seats[address.seat];
    sim_wire *theirs = wire_at(seat, address.number);
    if (!theirs || theirs->base.wire.size != self->size || theirs->peers[self->rank].state != WEFTI_LINK_CONNECTING) return WEFT_OK;
    theirs->peers[self->rank].state = wire->peers[peer].state = WEFTI_LINK_UP;
    wefti_sim_wake(seat);
    return WEFT_OK;
}

static wefti_wire_link sim_link_state(const wefti_wire *self, int32_t peer) {
    return peer < 0 || peer >= self->size ? WEFTI_LINK_NONE : ((const sim_wire *)self)->peers[peer].state;
}

static const char *sim_cause(const wefti_wire *self, int32_t peer) {
    return sim_link_state(self, peer) == WEFTI_LINK_DOWN ? "its process has ended" : NULL;
}

static weft_status sim_region_create(wefti_wire *self, size_t size_bytes, wefti_wire_region **region_out) {
    void  *memory = NULL;
    size_t size = 0;
    WEFTI_TRY(wefti_regions_memory_create(self, size_bytes, &memory, &size));
    weft_status status = wefti_regions_add(&((sim_wire *)self)->regions, memory, size, true, NULL, region_out);
    if (status != WEFT_OK) wefti_free(memory, size);
    return status;
}
static weft_status sim_region_register(wefti_wire *self, void *memory, size_t size_bytes, wefti_wire_region **region_out) {
    return wefti_regions_add(&((sim_wire *)self)->regions, memory, size_bytes, false, NULL, region_out);
}
static void sim_region_release(wefti_wire_region *region) {
    if (region) wefti_regions_remove(&((sim_wire *)region->wire)->regions, region);
}

static weft_status sim_peer_region(wefti_wire *self, int32_t peer, uint32_t id, wefti_wire_peer_region *region_out) {
    sim_wire       *wire = (sim_wire *)self;
    wefti_wire_link state = sim_link_state(self, peer);
    const sim_wire *theirs = state == WEFTI_LINK_NONE ? NULL : wire_at(&wire->sim->seats[wire->peers[peer].seat], wire->peers[peer].number);
    if (peer == self->rank || state == WEFTI_LINK_NONE || id == 0)
        return wefti_regions_peer(&wire->regions, peer, id, state, region_out);
    if (state == WEFTI_LINK_LEFT || state == WEFTI_LINK_DOWN || !theirs)
        return wefti_fail(WEFT_E_PEER, "sim: rank %d is gone, and its region %u with it", (int)peer, id);
    if (id > theirs->regions.count) return WEFT_E_AGAIN;
    const wefti_own_region *own = theirs->regions.own[id - 1];
    if (!own) return wefti_fail(WEFT_E_NOT_FOUND, "sim: region %u of rank %d was released", id, (int)peer);
    *region_out = (wefti_wire_peer_region){NULL, own->region.size_bytes};
    return WEFT_OK;
}

static wefti_wire_region *sim_region_of(wefti_wire *self, const void *memory, size_t bytes) {
    return wefti_regions_find(&((sim_wire *)self)->regions, memory, bytes);
}

static weft_status sim_arm(wefti_wire *self) { return ((sim_wire *)self)->first ? WEFT_E_AGAIN : WEFT_OK; }

/* --- ends --- */

static void drop_early(sim_wire *wire) {
    wefti_match *match = &wire->base.match;
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++)
        for (wefti_message *early = match->early[peer].first, *next; early; early = next) {
            next = early->next;
            if (peer == wire->base.wire.rank) continue; /* their operations are in `own` */
            wefti_match_unlink(match, early);
            wefti_sim_message_free(wire->sim, (sim_message *)(uintptr_t)early->token[0]);
            wefti_match_free(match, early);
        }
}

static void sim_abort(wefti_wire *self, weft_status status, int32_t rank) {
    sim_wire *wire = (sim_wire *)self;
    if (wire->base.aborted) return;
    wire->base.aborted = true;
    for (int32_t peer = 0; peer <= self->size; peer++) wefti_wire_flush(&wire->base, &wire->base.match.posted[peer], status, rank);
    flush_pending(wire, -1, status, rank);
    wefti_wire_flush(&wire->base, &wire->own, status, rank);
    drop_early(wire);
}

/* Tells a peer of the end, behind all that is on the way to it. */
static void say(sim_wire *wire, int32_t peer, sim_kind kind) {
    const sim_peer *to = &wire->peers[peer];
    sim_message    *message = to->state == WEFTI_LINK_UP && peer != wire->base.wire.rank ? wefti_sim_message(wire->sim, 0) : NULL;
    if (!message) return;
    message->kind = (uint8_t)kind;
    message->from = wire->seat->index;
    message->to = to->seat;
    message->rank = wire->base.wire.rank;
    message->wire = to->number;
    wefti_sim_send(wire->sim, message, 0,
                   wire->sim->ways[(size_t)message->from * (size_t)wire->sim->options.size + (size_t)message->to].last_ns);
}

/* What the others see of a rank that dies: nothing more of its large messages, and a broken link. */
void wefti_sim_wires_break(sim_seat *seat) {
    for (sim_wire *wire = seat->wires; wire; wire = wire->next) {
        for (wefti_wire_op *op = wire->pending.first; op; op = op->next) untie(op);
        for (int32_t peer = 0; peer < wire->base.wire.size; peer++) say(wire, peer, SIM_RESET);
        wire->number = 0; /* nothing reaches it any more, also when another process has its seat */
    }
}

static void sim_close(wefti_wire *self, uint64_t linger_ns) {
    sim_wire *wire = (sim_wire *)self;
    (void)linger_ns;
    sim_abort(self, WEFT_E_ABORTED, -1);
    if (wire->number)
        for (int32_t peer = 0; peer < self->size; peer++) say(wire, peer, SIM_BYE);
    sim_wire **at = &wire->seat->wires;
    while (*at != wire) at = &(*at)->next;
    *at = wire->next;
    for (sim_message *message = wire->first, *next; message; message = next) {
        next = message->next;
        wefti_sim_message_free(wire->sim, message);
    }
    wefti_regions_close(&wire->regions);
    wefti_free(wire->peers, (size_t)self->size * sizeof *wire->peers);
    wefti_wire_base_close(&wire->base);
    wefti_free(wire, sizeof *wire);
}

static const wefti_wire_ops sim_ops = {
    .address = sim_get_address,
    .connect = sim_connect,
    .link = sim_link_state,
    .cause = sim_cause,
    .region_create = sim_region_create,
    .region_register = sim_region_register,
    .region_release = sim_region_release,
    .peer_region = sim_peer_region,
    .region_of = sim_region_of,
    .post = sim_post,
    .poll = sim_poll,
    .cancel = wefti_wire_cancel,
    .send_from = sim_send_from,
    .abort = sim_abort,
    .arm = sim_arm,
    .counts = wefti_wire_read_counts,
    .close = sim_close,
};

weft_status wefti_wire_sim_open(const wefti_wire_options *options, wefti_wire **wire_out) {
    wefti_sim *sim = options->shared;
    sim_wire  *wire = NULL;
    if (!sim || !options->host || !options->host->wakes)
        return wefti_fail(WEFT_E_INVALID, "sim: needs the simulator in `shared`, and a rank's host of its");
    WEFTI_TRY(wefti_alloc(sizeof *wire, "a simulated wire", &wire));
    weft_status status = wefti_wire_base_open(&wire->base, options, &sim_ops, EARLY_BYTES);
    if (status != WEFT_OK) {
        wefti_free(wire, sizeof *wire);
        return status;
    }
    wire->sim = sim;
    wire->seat = options->host->context;
    wire->epoch = options->epoch;
    wire->base.wire.can = (wefti_wire_capabilities){.name = "sim",
                                                    .flags = WEFTI_WIRE_ONE_SIDED,
                                                    .max_message_bytes = sim->options.most_bytes,
                                                    .inline_bytes = EAGER_BYTES,
                                                    .eager_bytes = EAGER_BYTES,
                                                    .latency_ns = sim->options.far.latency_ns,
                                                    .bytes_per_ns = sim->options.far.bytes_per_ns};
    status = wefti_alloc((size_t)options->size * sizeof *wire->peers, "peers", &wire->peers);
    if (status == WEFT_OK) status = wefti_regions_open(&wire->regions, &wire->base.wire);
    if (status != WEFT_OK) {
        wefti_free(wire->peers, (size_t)options->size * sizeof *wire->peers);
        wefti_wire_base_close(&wire->base);
        wefti_free(wire, sizeof *wire);
        return status;
    }
    wire->number = ++wire->seat->opened;
    wire->peers[options->rank] = (sim_peer){WEFTI_LINK_UP, wire->seat->index, wire->number};
    wire->next = wire->seat->wires;
    wire->seat->wires = wire;
    *wire_out = &wire->base.wire;
    return WEFT_OK;
}

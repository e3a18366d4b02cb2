/* The delay wire: a slow link put before another wire, for tests of overlap and of cost models.
 *
 * A send waits here until it would have arrived over a link of the given latency and bandwidth (each direction of each
 * pair is a link of its own, and carries one message at a time; all that leave a rank may share a port), and is then posted to the wire beneath. Nobody computes
 * or spins for the delay, as nobody does on a real link. Peers' regions are not mapped, because loads and stores would
 * go round the link. Receives, regions and everything else pass through. */
#include "transport/wire_common.h"

typedef struct delay_link {
    wefti_op_list held;         /* sends by due time, which is scratch[0] */
    uint64_t      free_ns;      /* when the link has carried what was given to it */
} delay_link;

typedef struct delay_wire {
    wefti_wire_base base;       /* its done list: what never reached the wire beneath */
    wefti_wire     *inner;
    delay_link     *links;      /* [size] */
    uint64_t        latency_ns;
    double          bytes_per_ns, port_bytes_per_ns; /* of a link, and of all that leave this rank; 0: no bound */
    uint64_t        port_free_ns;
} delay_wire;

static wefti_wire *inner_of(const wefti_wire *wire) { return ((const delay_wire *)wire)->inner; }

static weft_status delay_address(wefti_wire *wire, void *address_out, size_t *bytes_out) {
    return inner_of(wire)->ops->address(inner_of(wire), address_out, bytes_out);
}
static weft_status delay_connect(wefti_wire *wire, int32_t peer, const void *address, size_t bytes) {
    return inner_of(wire)->ops->connect(inner_of(wire), peer, address, bytes);
}
static wefti_wire_link delay_link_state(const wefti_wire *wire, int32_t peer) {
    return inner_of(wire)->ops->link(inner_of(wire), peer);
}
static const char *delay_cause(const wefti_wire *wire, int32_t peer) {
    wefti_wire *inner = inner_of(wire);
    return inner->ops->cause ? inner->ops->cause(inner, peer) : NULL;
}
static weft_status delay_region_create(wefti_wire *wire, size_t size_bytes, wefti_wire_region **region_out) {
    return inner_of(wire)->ops->region_create(inner_of(wire), size_bytes, region_out);
}
static weft_status delay_region_register(wefti_wire *wire, void *memory, size_t size_bytes, wefti_wire_region **region_out) {
    wefti_wire *inner = inner_of(wire);
    if (!inner->ops->region_register)
        return wefti_fail(WEFT_E_UNSUPPORTED, "%s: memory of the caller cannot be registered", inner->can.name);
    return inner->ops->region_register(inner, memory, size_bytes, region_out);
}
static void delay_region_release(wefti_wire_region *region) {
    if (region) region->wire->ops->region_release(region); /* the wire beneath, which made it */
}
static weft_status delay_peer_region(wefti_wire *wire, int32_t peer, uint32_t id, wefti_wire_peer_region *region_out) {
    weft_status status = inner_of(wire)->ops->peer_region(inner_of(wire), peer, id, region_out);
    if (status == WEFT_OK) region_out->base = NULL;
    return status;
}
static wefti_wire_region *delay_region_of(wefti_wire *wire, const void *memory, size_t bytes) {
    wefti_wire *inner = inner_of(wire);
    return inner->ops->region_of ? inner->ops->region_of(inner, memory, bytes) : NULL;
}
static weft_status delay_cancel(wefti_wire *wire, wefti_wire_op *op) {
    return inner_of(wire)->ops->cancel(inner_of(wire), op);
}
static void delay_counts(const wefti_wire *wire, wefti_wire_counts *counts_out) {
    inner_of(wire)->ops->counts(inner_of(wire), counts_out);
}

static uint64_t later(uint64_t a, uint64_t b) { return a > b ? a : b; }
static uint64_t carry_ns(const wefti_wire_op *op, double bytes_per_ns) { return bytes_per_ns > 0 ? (uint64_t)((double)op->bytes / bytes_per_ns) : 0; }

static weft_status delay_post(wefti_wire *self, wefti_wire_op *op) {
    delay_wire *wire = (delay_wire *)self;
    WEFTI_TRY(wefti_wire_check_post(&wire->base, op));
    if (op->kind == WEFTI_WIRE_RECV || op->peer == self->rank) return wire->inner->ops->post(wire->inner, op);
    wefti_wire_link state = wire->inner->ops->link(wire->inner, op->peer);
    if (state == WEFTI_LINK_CONNECTING) return WEFT_E_AGAIN;
    if (state != WEFTI_LINK_UP) return wefti_wire_fail_link(self, op->peer, state);
    if (op->kind != WEFTI_WIRE_SEND) {
        wefti_wire_peer_region region;
        WEFTI_TRY(wire->inner->ops->peer_region(wire->inner, op->peer, op->region, &region));
        if (op->offset > region.size_bytes || op->bytes > region.size_bytes - op->offset)
            return wefti_fail(WEFT_E_INVALID, "%s: outside region %u of rank %d, which has %zu bytes", self->can.name,
                              op->region, (int)op->peer, region.size_bytes);
    }
    delay_link *link = &wire->links[op->peer];
    uint64_t    now_ns = wefti_host_now(self->host), start_ns = later(now_ns, later(link->free_ns, wire->port_free_ns));
    link->free_ns = start_ns + carry_ns(op, wire->bytes_per_ns);
    wire->port_free_ns = start_ns + carry_ns(op, wire->port_bytes_per_ns);
    op->scratch[0] = later(link->free_ns, wire->port_free_ns) + wire->latency_ns * (op->kind == WEFTI_WIRE_READ ? 2 : 1);
    wefti_op_append(&link->held, op);
    return WEFT_OK;
}

static void release_due(delay_wire *wire, int32_t peer, uint64_t now_ns) {
    delay_link *link = &wire->links[peer];
    while (link->held.first && link->held.first->scratch[0] <= now_ns) {
        wefti_wire_op *op = link->held.first;
        uint64_t       due_ns = op->scratch[0];
        wefti_op_remove(&link->held, op);
        weft_status status = wire->inner->ops->post(wire->inner, op);
        if (status == WEFT_E_AGAIN) { /* the wire beneath is full: back to the front */
            wefti_op_list rest = link->held;
            op->scratch[0] = due_ns;
            link->held = (wefti_op_list){0};
            wefti_op_append(&link->held, op);
            link->held.first->next = rest.first;
            if (rest.first) {
                rest.first->previous = op;
                link->held.last = rest.last;
            }
            return;
        }
        if (status != WEFT_OK) wefti_wire_finish(&wire->base, op, status, peer, 0);
    }
}

static weft_status delay_poll(wefti_wire *self, uint64_t now_ns, wefti_wire_op **ops_out, int32_t capacity,
                              int32_t *count_out) {
    delay_wire *wire = (delay_wire *)self;
    for (int32_t peer = 0; peer < self->size; peer++) release_due(wire, peer, now_ns);
    int32_t     own = wefti_wire_hand_out(&wire->base, ops_out, capacity), beneath = 0;
    weft_status status = wire->inner->ops->poll(wire->inner, now_ns, ops_out ? ops_out + own : NULL, capacity - own, &beneath);
    *count_out = own + beneath;
    return status;
}

static void delay_abort(wefti_wire *self, weft_status status, int32_t rank) {
    delay_wire *wire = (delay_wire *)self;
    if (wire->base.aborted) return;
    wire->base.aborted = true;
    for (int32_t peer = 0; peer < self->size; peer++) wefti_wire_flush(&wire->base, &wire->links[peer].held, status, rank);
    wire->inner->ops->abort(wire->inner, status, rank);
}

static void delay_close(wefti_wire *self, uint64_t linger_ns) {
    delay_wire *wire = (delay_wire *)self;
    delay_abort(self, WEFT_E_ABORTED, -1);
    wire->inner->ops->close(wire->inner, linger_ns);
    wefti_free(wire->links, (size_t)self->size * sizeof *wire->links);
    wefti_wire_base_close(&wire->base);
    wefti_free(wire, sizeof *wire);
}

static const wefti_wire_ops delay_ops = {
    .address = delay_address,
    .connect = delay_connect,
    .link = delay_link_state,
    .cause = delay_cause,
    .region_create = delay_region_create,
    .region_register = delay_region_register,
    .region_release = delay_region_release,
    .peer_region = delay_peer_region,
    .region_of = delay_region_of,
    .post = delay_post,
    .poll = delay_poll,
    .cancel = delay_cancel,
    .abort = delay_abort,
    .counts = delay_counts,
    .close = delay_close,
};

weft_status wefti_wire_delay_open(wefti_wire *inner, uint64_t latency_ns, double bytes_per_ns, double port_bytes_per_ns, wefti_wire **wire_out) {
    delay_wire        *wire = NULL;
    wefti_wire_options options = {.host = inner->host, .rank = inner->rank, .size = inner->size};
    WEFTI_TRY(wefti_alloc(sizeof *wire, "a delay wire", &wire));
    weft_status status = wefti_wire_base_open(&wire->base, &options, &delay_ops, 1 << 20);
    if (status == WEFT_OK) {
        status = wefti_alloc((size_t)inner->size * sizeof *wire->links, "delayed links", &wire->links);
        if (status != WEFT_OK) wefti_wire_base_close(&wire->base);
    }
    if (status != WEFT_OK) {
        wefti_free(wire, sizeof *wire);
        return status;
    }
    wire->inner = inner;
    wire->latency_ns = latency_ns;
    wire->bytes_per_ns = bytes_per_ns;
    wire->port_bytes_per_ns = port_bytes_per_ns;
    wire->base.wire.can = inner->can;
    wire->base.wire.can.flags &= ~(uint32_t)(WEFTI_WIRE_MAPS_PEERS | WEFTI_WIRE_WAIT_DESCRIPTOR);
    wire->base.wire.can.inline_bytes = 0;
    wire->base.wire.can.latency_ns += latency_ns;
    wire->base.wire.can.near_bytes_per_ns = 0; /* nobody is near behind it */
    const double bounds[] = {bytes_per_ns, port_bytes_per_ns};
    for (int i = 0; i < 2; i++)
        if (bounds[i] > 0 && bounds[i] < wire->base.wire.can.bytes_per_ns) wire->base.wire.can.bytes_per_ns = bounds[i];
    *wire_out = &wire->base.wire;
    return WEFT_OK;
}

/* The verbs wire: RDMA over InfiniBand and RoCE, by reliable connections on libibverbs.
 *
 * Ranks meet over TCP as with the tcp wire (the mesh), and connect a queue pair on each rail. Small messages go into
 * receive slots of the peer, large ones straight into the receiver's buffer, writes and reads into registered regions. One
 * completion queue for each rail serves all links; it is polled, or slept on by its channel. Any failed completion ends its link
 * with the cause in words; a peer that dies is known by the end of its socket. What is still pending on a link that ends, or
 * when the wire is aborted, completes at once: first the queue pairs are destroyed, so that no device touches a buffer that
 * is the caller's again. Memory: about 0.7 MiB for each link, locked. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "transport/wire_verbs.h"

enum { EARLY_BYTES = 256 << 20, CROWD = 16, TOKEN_OTHER = 1 << 24 };
#define SERVICE_NS (WEFTI_MILLISECOND_NS)
#define BUSY_SERVICE_NS (WEFTI_MILLISECOND_NS / 5)
#define GRACE_NS (20 * WEFTI_MILLISECOND_NS) /* after the socket's end, for what the device has still to hand over */

/* --- ends --- */

static void flush_incoming(verbs_wire *wire, verbs_link *link, weft_status status, int32_t rank) {
    for (int i = 0; i < VERBS_TOKENS; i++) {
        verbs_incoming *incoming = &link->incoming[i];
        if (!incoming->op) continue;
        wefti_verbs_memory_give(wire, incoming->memory);
        wefti_wire_finish(&wire->base, incoming->op, status, rank, 0);
        incoming->op = NULL;
    }
}

static bool touches_buffers(const verbs_link *link) {
    for (int i = 0; i < VERBS_TOKENS; i++)
        if (link->incoming[i].op) return true;
    for (int i = 0; i < VERBS_TRANSFERS; i++)
        if (link->transfers[i].op) return true;
    return false;
}

/* Everything that waits on a link; where a device may touch buffers of it, the queue pairs go first. */
static void flush_link(verbs_wire *wire, int32_t peer, weft_status status, int32_t rank) {
    verbs_link *link = wire->links[peer];
    if (touches_buffers(link)) wefti_verbs_link_stop(wire, link);
    wefti_verbs_move_flush(wire, peer, status, rank);
    flush_incoming(wire, link, status, rank);
    wefti_wire_flush(&wire->base, &link->out_ops, status, rank);
    wefti_wire_flush(&wire->base, &link->offered, status, rank);
    wefti_wire_flush(&wire->base, &link->bulk_ops, status, rank);
    wefti_wire_flush(&wire->base, &link->grants, status, rank);
}

void wefti_verbs_link_end(verbs_wire *wire, int32_t peer, wefti_wire_link state, const char *cause, ...) {
    verbs_link *link = wire->links[peer];
    va_list     arguments;
    va_start(arguments, cause);
    vsnprintf(link->cause, sizeof link->cause, cause, arguments);
    va_end(arguments);
    link->state = state;
    if (state == WEFTI_LINK_DOWN)
        wefti_log(WEFT_LOG_WARNING, "verbs: the link to rank %d is down: %s", (int)peer, link->cause);
    wefti_verbs_link_stop(wire, link);
    flush_link(wire, peer, WEFT_E_PEER, peer);
    wefti_wire_flush_peer(&wire->base, peer);
    if (link->socket >= 0) close(link->socket);
    link->socket = -1;
}

static void verbs_abort(wefti_wire *self, weft_status status, int32_t rank) {
    verbs_wire *wire = (verbs_wire *)self;
    if (wire->base.aborted) return;
    wire->base.aborted = true;
    wire->base.abort_status = status;
    wire->base.abort_rank = rank;
    for (int32_t peer = 0; peer <= self->size; peer++)
        wefti_wire_flush(&wire->base, &wire->base.match.posted[peer], status, rank);
    for (int32_t peer = 0; peer < self->size; peer++)
        if (wire->links[peer]) flush_link(wire, peer, status, rank);
}

/* --- polling --- */

static void look_at_socket(verbs_wire *wire, int32_t peer, uint64_t now_ns) {
    verbs_link *link = wire->links[peer];
    uint8_t     byte;
    if (!link || link->state != WEFTI_LINK_UP || link->socket < 0 || link->ended_ns) return;
    ssize_t got = recv(link->socket, &byte, 1, MSG_DONTWAIT | MSG_PEEK);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got > 0) {
        wefti_verbs_break(link, false, "it said something on a socket that is only there to end");
        return;
    }
    link->ended_ns = now_ns;
    epoll_ctl(wire->poller, EPOLL_CTL_DEL, link->socket, NULL);
}

/* Sockets: who comes, who is being set up, who has gone. */
static void service(verbs_wire *wire, uint64_t now_ns) {
    struct epoll_event events[32];
    if (now_ns - wire->served_ns < (wire->busy ? BUSY_SERVICE_NS : SERVICE_NS)) return;
    wire->served_ns = now_ns;
    wefti_mesh_service(&wire->mesh, now_ns);
    int count = epoll_wait(wire->poller, events, 32, 0);
    for (int i = 0; i < count; i++)
        if (events[i].data.u32 < (uint32_t)wire->base.wire.size) look_at_socket(wire, (int32_t)events[i].data.u32, now_ns);
    wire->busy = false;
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++) {
        verbs_link *link = wire->links[peer];
        if (!link) continue;
        if (link->state == WEFTI_LINK_CONNECTING) wefti_verbs_link_set_up(wire, peer);
        wire->busy = wire->busy || link->state == WEFTI_LINK_CONNECTING || (link->ended_ns && link->state == WEFTI_LINK_UP);
    }
}

static void poll_link(verbs_wire *wire, int32_t peer, uint64_t now_ns) {
    verbs_link *link = wire->links[peer];
    if (link->handled != link->arrived) wefti_verbs_handle(wire, peer);
    if (link->heard_bye) { /* and what it did not answer any more says nothing */
        wefti_verbs_link_end(wire, peer, WEFTI_LINK_LEFT, "it has left");
    } else if (link->broken) {
        char cause[VERBS_CAUSE_BYTES];
        memcpy(cause, link->cause, sizeof cause);
        wefti_verbs_link_end(wire, peer, WEFTI_LINK_DOWN, "%s", cause);
    } else if (link->ended_ns && now_ns - link->ended_ns > GRACE_NS) {
        wefti_verbs_link_end(wire, peer, WEFTI_LINK_DOWN, "its process ended");
    } else if (wefti_verbs_has_output(wire, link)) {
        wefti_verbs_advance(wire, peer);
    }
}

static weft_status verbs_poll(wefti_wire *self, uint64_t now_ns, wefti_wire_op **ops_out, int32_t capacity, int32_t *count_out) {
    verbs_wire *wire = (verbs_wire *)self;
    if (!wire->base.aborted) {
        service(wire, now_ns);
        wefti_verbs_receive(wire);
        for (int32_t peer = 0; peer < self->size; peer++)
            if (peer != self->rank && wire->links[peer] && wire->links[peer]->state == WEFTI_LINK_UP) poll_link(wire, peer, now_ns);
    }
    *count_out = wefti_wire_hand_out(&wire->base, ops_out, capacity);
    return WEFT_OK;
}

static int verbs_descriptor(wefti_wire *self) { return ((verbs_wire *)self)->poller; }

/* Events of the channels that have been slept on. */
static void drain_channels(verbs_wire *wire) {
    for (int32_t r = 0; r < wire->rail_count; r++) {
        struct ibv_cq *cq;
        void          *user;
        while (wire->api->get_cq_event(wire->rails[r].channel, &cq, &user) == 0) wire->api->ack_cq_events(cq, 1);
    }
}

static weft_status verbs_arm(wefti_wire *self) {
    verbs_wire *wire = (verbs_wire *)self;
    if (wire->base.done.first) return WEFT_E_AGAIN;
    wire->served_ns = 0; /* look at the sockets first, whatever wakes us */
    for (int32_t peer = 0; peer < self->size && !wire->base.aborted; peer++) {
        const verbs_link *link = wire->links[peer];
        if (!link || peer == self->rank) continue;
        if (link->state == WEFTI_LINK_UP && (link->broken || (link->handled != link->arrived && !link->ended_ns))) return WEFT_E_AGAIN;
        if (link->state != WEFTI_LINK_CONNECTING && !(link->state == WEFTI_LINK_UP && link->ended_ns)) continue;
        wire->mesh.served_ns = 0; /* handshakes have no descriptor here: a short nap instead */
        self->host->sleep(self->host->context, BUSY_SERVICE_NS);
        return WEFT_E_AGAIN;
    }
    drain_channels(wire);
    for (int32_t r = 0; r < wire->rail_count; r++)
        if (wire->api->req_notify_cq(wire->rails[r].cq, 0) != 0) return WEFT_E_AGAIN;
    /* What completed before that wakes nobody. */
    return !wire->base.aborted && wefti_verbs_receive(wire) ? WEFT_E_AGAIN : WEFT_OK;
}

/* --- links, regions --- */

static weft_status verbs_address(wefti_wire *self, void *address_out, size_t *bytes_out) {
    return wefti_mesh_address(&((verbs_wire *)self)->mesh, address_out, bytes_out);
}

static weft_status verbs_connect(wefti_wire *self, int32_t peer, const void *address, size_t bytes) {
    verbs_wire *wire = (verbs_wire *)self;
    WEFTI_TRY(wefti_mesh_connect(&wire->mesh, peer, address, bytes));
    if (wire->links[peer]) return WEFT_OK;
    weft_status status = wefti_verbs_link_create(wire, peer);
    if (status != WEFT_OK) wire->mesh.calls[peer].state = WEFTI_MESH_OVER;
    wire->busy = true;
    return status;
}

static void joined(void *context, int32_t peer, int socket, wefti_seal *seal) {
    wefti_seal_release(seal); /* there is none: wires that do not encrypt are refused where that is asked for */ wefti_verbs_link_greet(context, peer, socket); }
static void refused(void *context, int32_t peer) {
    wefti_verbs_link_end(context, peer, WEFTI_LINK_DOWN, "%s", weft_error_message());
}

static wefti_wire_link verbs_link_state(const wefti_wire *self, int32_t peer) {
    const verbs_wire *wire = (const verbs_wire *)self;
    return peer >= 0 && peer < self->size && wire->links[peer] ? wire->links[peer]->state : WEFTI_LINK_NONE;
}

static const char *verbs_cause(const wefti_wire *self, int32_t peer) {
    const verbs_wire *wire = (const verbs_wire *)self;
    return verbs_link_state(self, peer) == WEFTI_LINK_DOWN && wire->links[peer]->cause[0] ? wire->links[peer]->cause : NULL;
}

static weft_status verbs_peer_region(wefti_wire *self, int32_t peer, uint32_t id, wefti_wire_peer_region *region_out) {
    return wefti_regions_peer(&((verbs_wire *)self)->regions, peer, id, verbs_link_state(self, peer), region_out);
}

static wefti_wire_region *verbs_region_of(wefti_wire *self, const void *memory, size_t bytes) {
    return wefti_regions_find(&((verbs_wire *)self)->regions, memory, bytes);
}

/* --- opening and closing --- */

/* Says goodbye on a link; true when there is nothing more to wait for. */
static bool part(verbs_wire *wire, int32_t peer) {
    verbs_link *link = wire->links[peer];
    if (!link || peer == wire->base.wire.rank || link->state != WEFTI_LINK_UP || !link->queues[0].qp) return true;
    wefti_verbs_handle(wire, peer);
    if (link->broken || link->heard_bye) return true;
    if (!link->said_bye) link->said_bye = wefti_verbs_say(wire, peer, &(verbs_head){.kind = VERBS_BYE});
    return link->said_bye && link->queues[0].retired == link->queues[0].posted;
}

/* What was sent has arrived when its request completes: the goodbye is the last. */
static void leave(verbs_wire *wire, uint64_t linger_ns) {
    const wefti_host *host = wire->base.wire.host;
    uint64_t          deadline_ns = wefti_deadline_after(wefti_host_now(host), linger_ns);
    for (;;) {
        bool waits = false;
        for (int32_t peer = 0; peer < wire->base.wire.size; peer++) waits = !part(wire, peer) || waits;
        if (!waits || wefti_host_now(host) >= deadline_ns) return;
        if (!wefti_verbs_receive(wire)) host->sleep(host->context, WEFTI_MILLISECOND_NS / 20);
    }
}

static void free_wire(verbs_wire *wire) {
    wefti_verbs_detach(wire); /* first: from now on the device tells nobody */
    for (int32_t peer = 0; wire->links && peer < wire->base.wire.size; peer++) wefti_verbs_link_free(wire, peer);
    for (uint32_t i = 0; i < wire->regions.count; i++) {
        verbs_memory *registered = wire->regions.own[i] ? wire->regions.own[i]->extra : NULL;
        if (!registered) continue;
        wefti_verbs_deregister(wire, registered->registered);
        wefti_free(registered, sizeof *registered);
    }
    wefti_verbs_cache_close(wire);
    wefti_verbs_rails_close(wire);
    wefti_mesh_close(&wire->mesh);
    wefti_regions_close(&wire->regions);
    if (wire->poller >= 0) close(wire->poller);
    wefti_free(wire->links, (size_t)wire->base.wire.size * sizeof *wire->links);
    wefti_wire_base_close(&wire->base);
    wefti_free(wire, sizeof *wire);
}

static void verbs_close(wefti_wire *self, uint64_t linger_ns) {
    verbs_wire *wire = (verbs_wire *)self;
    verbs_abort(self, WEFT_E_ABORTED, -1);
    leave(wire, linger_ns);
    free_wire(wire);
}

static const wefti_wire_ops verbs_ops = {
    .address = verbs_address,
    .connect = verbs_connect,
    .link = verbs_link_state,
    .cause = verbs_cause,
    .region_create = wefti_verbs_region_create,
    .region_register = wefti_verbs_region_register,
    .attach = wefti_verbs_attach,
    .region_release = wefti_verbs_region_release,
    .peer_region = verbs_peer_region,
    .region_of = verbs_region_of,
    .post = wefti_verbs_post,
    .poll = verbs_poll,
    .cancel = wefti_wire_cancel,
    .abort = verbs_abort,
    .descriptor = verbs_descriptor,
    .arm = verbs_arm,
    .counts = wefti_wire_read_counts,
    .close = verbs_close,
};

static weft_status watch(verbs_wire *wire, int descriptor) {
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = TOKEN_OTHER};
    return epoll_ctl(wire->poller, EPOLL_CTL_ADD, descriptor, &event) == 0
               ? WEFT_OK
               : wefti_fail_errno("verbs: a descriptor cannot be watched (epoll)");
}

static weft_status open_parts(verbs_wire *wire, const wefti_wire_options *options) {
    wefti_wire *self = &wire->base.wire;
    bool        crowd = options->size > CROWD; /* locked memory is scarce: many peers get fewer slots each */
    wire->slots = crowd ? VERBS_SLOTS / 2 : VERBS_SLOTS;
    wire->tokens = crowd ? VERBS_TOKENS / 2 : VERBS_TOKENS;
    wire->stages = crowd ? VERBS_STAGES / 2 : VERBS_STAGES;
    wire->inline_bytes = VERBS_INLINE_BYTES;
    wire->mesh.joined = joined;
    wire->mesh.refused = refused;
    wire->mesh.context = wire;
    WEFTI_TRY(wefti_alloc((size_t)options->size * sizeof *wire->links, "links", &wire->links));
    WEFTI_TRY(wefti_regions_open(&wire->regions, self));
    WEFTI_TRY(wefti_verbs_cache_open(wire));
    WEFTI_TRY(wefti_verbs_rails_open(wire, options));
    WEFTI_TRY(wefti_mesh_open(&wire->mesh, self, options));
    wire->poller = epoll_create1(EPOLL_CLOEXEC);
    if (wire->poller < 0) return wefti_fail_errno("verbs: cannot create a poller (epoll)");
    WEFTI_TRY(watch(wire, wire->mesh.listener));
    for (int32_t r = 0; r < wire->rail_count; r++) {
        WEFTI_TRY(watch(wire, wire->rails[r].channel->fd));
        self->can.bytes_per_ns += wire->rails[r].bytes_per_ns;
    }
    return wefti_verbs_link_create(wire, options->rank);
}

weft_status wefti_verbs_open_with(const wefti_verbs_api *api, const wefti_wire_options *options, wefti_wire **wire_out) {
    verbs_wire *wire = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *wire, "a verbs wire", &wire));
    wire->api = api;
    wire->poller = -1;
    wire->base.wire.can = (wefti_wire_capabilities){.name = "verbs",
                                                    .flags = WEFTI_WIRE_ONE_SIDED | WEFTI_WIRE_WAIT_DESCRIPTOR,
                                                    .max_message_bytes = PTRDIFF_MAX,
                                                    .inline_bytes = VERBS_PAYLOAD_BYTES,
                                                    .eager_bytes = VERBS_PAYLOAD_BYTES,
                                                    .latency_ns = 3000};
    weft_status status = wefti_wire_base_open(&wire->base, options, &verbs_ops, EARLY_BYTES);
    if (status != WEFT_OK) {
        wefti_free(wire, sizeof *wire);
        return status;
    }
    if ((status = open_parts(wire, options)) != WEFT_OK) {
        free_wire(wire);
        return status;
    }
    *wire_out = &wire->base.wire;
    return WEFT_OK;
}

void wefti_verbs_first_rail(const wefti_wire *base, char device[static 64], int *port_out, int *gid_out) {
    const verbs_rail *rail = &((const verbs_wire *)base)->rails[0];
    snprintf(device, 64, "%.*s", (int)strcspn(rail->name, ":"), rail->name);
    *port_out = rail->port;
    *gid_out = (int)rail->gid_index;
}

weft_status wefti_wire_verbs_open(const wefti_wire_options *options, wefti_wire **wire_out) {
    const wefti_verbs_api *api = NULL;
    WEFTI_TRY(wefti_verbs_api_load(&api));
    return wefti_verbs_open_with(api, options, wire_out);
}

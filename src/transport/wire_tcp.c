/* The TCP wire: between hosts, or inside one.
 *
 * One connection for each pair of ranks, non-blocking, without Nagle's delay; of a pair the higher rank dials. Both ends
 * prove themselves by the handshake, with the cookie of the listener's address and, off loopback always, the job's
 * secret. Messages up to 2 MiB are sent at once; larger ones are announced and sent when their receive is posted, so that
 * they go straight into its buffer. Writes go straight into the region. All of it goes through the seal (seal.h) where encryption is
 * asked for. Memory: for each link 4 KiB to send and 16 KiB to receive, 192 KiB more where it is encrypted, and the early
 * messages. */
#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <unistd.h>

#include "transport/wire_tcp.h"

enum { EARLY_BYTES = 256 << 20, MOST_DIRECT_LINKS = 3, LOCAL_BYTES_PER_NS = 8 };

/* --- regions --- */

static void tell_everyone(tcp_wire *wire) {
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++)
        if (peer != wire->base.wire.rank && wire->links[peer].state == WEFTI_LINK_UP) wefti_tcp_send(wire, peer);
}

static weft_status tcp_region_create(wefti_wire *self, size_t size_bytes, wefti_wire_region **region_out) {
    tcp_wire *wire = (tcp_wire *)self;
    WEFTI_TRY(wefti_regions_create(&wire->regions, size_bytes, region_out));
    tell_everyone(wire);
    return WEFT_OK;
}

static weft_status tcp_region_register(wefti_wire *self, void *memory, size_t size_bytes, wefti_wire_region **region_out) {
    tcp_wire *wire = (tcp_wire *)self;
    WEFTI_TRY(wefti_regions_add(&wire->regions, memory, size_bytes, false, NULL, region_out));
    tell_everyone(wire);
    return WEFT_OK;
}

static void tcp_region_release(wefti_wire_region *region) {
    if (!region) return;
    tcp_wire *wire = (tcp_wire *)region->wire;
    wefti_regions_remove(&wire->regions, region);
    tell_everyone(wire);
}

static weft_status tcp_peer_region(wefti_wire *self, int32_t peer, uint32_t id, wefti_wire_peer_region *region_out) {
    tcp_wire       *wire = (tcp_wire *)self;
    wefti_wire_link link = peer >= 0 && peer < self->size ? wire->links[peer].state : WEFTI_LINK_NONE;
    return wefti_regions_peer(&wire->regions, peer, id, link, region_out);
}

static wefti_wire_region *tcp_region_of(wefti_wire *self, const void *memory, size_t bytes) {
    return wefti_regions_find(&((tcp_wire *)self)->regions, memory, bytes);
}

/* --- connecting --- */

static weft_status tcp_address(wefti_wire *self, void *address_out, size_t *bytes_out) {
    return wefti_mesh_address(&((tcp_wire *)self)->mesh, address_out, bytes_out);
}

weft_status wefti_tcp_prepare(tcp_wire *wire, int32_t peer) {
    tcp_link *link = &wire->links[peer];
    if (link->state != WEFTI_LINK_NONE) return WEFT_OK;
    weft_status status = wefti_alloc_raw(TCP_STAGE_BYTES, WEFTI_CACHE_LINE, "a link's stage", &link->in.stage);
    link->state = status == WEFT_OK ? WEFTI_LINK_CONNECTING : WEFTI_LINK_DOWN;
    return status;
}

static weft_status tcp_connect(wefti_wire *self, int32_t peer, const void *address, size_t bytes) {
    tcp_wire *wire = (tcp_wire *)self;
    WEFTI_TRY(wefti_mesh_connect(&wire->mesh, peer, address, bytes));
    return wefti_tcp_prepare(wire, peer);
}

static wefti_wire_link tcp_link_state(const wefti_wire *self, int32_t peer) {
    return peer < 0 || peer >= self->size ? WEFTI_LINK_NONE : ((const tcp_wire *)self)->links[peer].state;
}

static void joined(void *context, int32_t peer, int socket, wefti_seal *seal) {
    tcp_wire          *wire = context;
    tcp_link          *link = &wire->links[peer];
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)peer};
    link->socket = socket;
    link->seal = seal;
    link->state = WEFTI_LINK_UP;
    if (epoll_ctl(wire->poller, EPOLL_CTL_ADD, socket, &event) != 0)
        wefti_tcp_link_end(wire, peer, WEFTI_LINK_DOWN, "it cannot be polled (epoll)");
}

static void refused(void *context, int32_t peer) { wefti_tcp_link_end(context, peer, WEFTI_LINK_DOWN, weft_error_message()); }

static const char *tcp_cause(const wefti_wire *self, int32_t peer) {
    const char *cause = peer < 0 || peer >= self->size ? "" : ((const tcp_wire *)self)->links[peer].cause;
    return *cause ? cause : NULL;
}

/* --- streams --- */

/* What sendmsg and recvmsg would return; what a later part meets is met again by the next call. */
static ssize_t count_parts(size_t total, weft_status status) {
    if (total > 0) return (ssize_t)total;
    errno = status == WEFT_E_AGAIN ? EAGAIN : EPIPE;
    return -1;
}

ssize_t wefti_tcp_link_send(tcp_link *link, const struct iovec *parts, int count) {
    if (!link->stream) return wefti_seal_send(link->seal, link->socket, parts, count);
    size_t      total = 0;
    weft_status status = WEFT_OK;
    for (int i = 0; i < count && status == WEFT_OK; i++) {
        size_t sent = 0;
        status = link->stream->ops->send(link->stream, parts[i].iov_base, parts[i].iov_len, &sent);
        if (status == WEFT_OK) total += sent;
        if (sent < parts[i].iov_len) break;
    }
    return count_parts(total, status);
}

ssize_t wefti_tcp_link_receive(tcp_link *link, const struct iovec *parts, int count) {
    if (!link->stream) return wefti_seal_receive(link->seal, link->socket, parts, count);
    size_t      total = 0;
    weft_status status = WEFT_OK;
    for (int i = 0; i < count && status == WEFT_OK; i++) {
        size_t got = 0;
        status = link->stream->ops->receive(link->stream, parts[i].iov_base, parts[i].iov_len, &got);
        if (status == WEFT_OK) total += got;
        if (got < parts[i].iov_len) break;
    }
    return count_parts(total, status);
}

/* --- polling --- */

static void poll_links(tcp_wire *wire) {
    struct epoll_event events[32];
    if (wire->direct) {
        for (int32_t peer = 0; peer < wire->base.wire.size; peer++)
            if (peer != wire->base.wire.rank && wire->links[peer].state == WEFTI_LINK_UP) wefti_tcp_receive(wire, peer);
    } else {
        int count = epoll_wait(wire->poller, events, 32, 0);
        for (int i = 0; i < count; i++) {
            uint32_t peer = events[i].data.u32;
            if (peer < (uint32_t)wire->base.wire.size && wire->links[peer].state == WEFTI_LINK_UP)
                wefti_tcp_receive(wire, (int32_t)peer);
        }
    }
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++) {
        tcp_link *link = &wire->links[peer];
        if (peer == wire->base.wire.rank || link->state != WEFTI_LINK_UP) continue;
        /* What could not be kept aside for want of room or was left for this poll, and what came along with an encrypted record, is tried again without
         * news from the socket. */
        bool waiting = link->in.have - link->in.used >= TCP_HEADER_BYTES && link->in.held_at != wire->polls;
        if (!wire->direct && (waiting || wefti_seal_holds(link->seal)))
            wefti_tcp_receive(wire, peer);
        if (wefti_tcp_has_output(wire, link)) wefti_tcp_send(wire, peer);
    }
}

static weft_status tcp_poll(wefti_wire *self, uint64_t now_ns, wefti_wire_op **ops_out, int32_t capacity,
                            int32_t *count_out) {
    tcp_wire *wire = (tcp_wire *)self;
    wire->polls++;
    if (!wire->base.aborted) {
        wire->medium->service(wire, now_ns);
        poll_links(wire);
    }
    *count_out = wefti_wire_hand_out(&wire->base, ops_out, capacity);
    return WEFT_OK;
}

static int tcp_descriptor(wefti_wire *self) { return ((tcp_wire *)self)->poller; }

static weft_status tcp_arm(wefti_wire *self) {
    tcp_wire *wire = (tcp_wire *)self;
    if (wire->base.done.first) return WEFT_E_AGAIN;
    for (int32_t peer = 0; peer < self->size && !wire->base.aborted; peer++) {
        tcp_link *link = &wire->links[peer];
        if (peer == self->rank) continue;
        if (link->state == WEFTI_LINK_CONNECTING) {
            wire->mesh.served_ns = 0; /* look at once after the nap, which is short: handshakes have no descriptor here */
            self->host->sleep(self->host->context, WEFTI_MILLISECOND_NS / 5);
            return WEFT_E_AGAIN;
        }
        if (link->state != WEFTI_LINK_UP) continue;
        if (link->in.held_at == wire->polls || wefti_seal_holds(link->seal)) return WEFT_E_AGAIN;
        bool wants_out = wefti_tcp_has_output(wire, link) && !link->broken;
        if (wants_out == link->wants_out) continue;
        struct epoll_event event = {.events = EPOLLIN | (wants_out ? EPOLLOUT : 0), .data.u32 = (uint32_t)peer};
        epoll_ctl(wire->poller, EPOLL_CTL_MOD, link->socket, &event);
        link->wants_out = wants_out;
    }
    return WEFT_OK;
}

/* --- ends --- */

static void flush_current(tcp_wire *wire, tcp_link *link, weft_status status, int32_t rank) {
    if (link->in.in_payload && link->in.op) wefti_wire_finish(&wire->base, link->in.op, status, rank, 0);
    if (link->in.in_payload && link->in.message) {
        wefti_message *message = link->in.message;
        if (message->op)
            wefti_wire_finish(&wire->base, message->op, status, rank, 0);
        else
            wefti_match_unlink(&wire->base.match, message); /* it will never be whole */
        wefti_match_free(&wire->base.match, message);
    }
    link->in.op = NULL;
    link->in.message = NULL;
    link->in.in_payload = false;
    wefti_wire_flush(&wire->base, &link->out.ops, status, rank);
    wefti_wire_flush(&wire->base, &link->out_ops, status, rank);
    wefti_wire_flush(&wire->base, &link->waiting, status, rank);
}

void wefti_tcp_link_end(tcp_wire *wire, int32_t peer, wefti_wire_link state, const char *cause) {
    tcp_link *link = &wire->links[peer];
    link->state = state;
    snprintf(link->cause, sizeof link->cause, "%s", cause ? cause : "");
    flush_current(wire, link, WEFT_E_PEER, peer);
    wefti_wire_flush_peer(&wire->base, peer);
    if (link->socket >= 0) close(link->socket);
    link->socket = -1;
    wefti_seal_release(link->seal);
    link->seal = NULL;
    link->stream = NULL;
}

static void tcp_abort(wefti_wire *self, weft_status status, int32_t rank) {
    tcp_wire *wire = (tcp_wire *)self;
    if (wire->base.aborted) return;
    wire->base.aborted = true;
    wire->base.abort_status = status;
    wire->base.abort_rank = rank;
    for (int32_t peer = 0; peer <= self->size; peer++)
        wefti_wire_flush(&wire->base, &wire->base.match.posted[peer], status, rank);
    for (int32_t peer = 0; peer < self->size; peer++) flush_current(wire, &wire->links[peer], status, rank);
}

/* Whether bytes are on their way to a peer that lives. Throws away what came in: closing with unread bytes resets the
 * connection, and what is on its way would be lost. */
static bool is_sending(tcp_link *link) {
    int             pending = 0;
    struct tcp_info info = {0};
    socklen_t       length = sizeof info;
    while (recv(link->socket, link->in.stage, TCP_STAGE_BYTES, MSG_DONTWAIT) > 0) continue;
    if (ioctl(link->socket, SIOCOUTQ, &pending) != 0 || pending == 0) return false;
    /* A peer that is gone acknowledges nothing any more. */
    return getsockopt(link->socket, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 && info.tcpi_state != TCP_CLOSE;
}

/* Hands the system all of the bytes; false where it did not take them in time. */
static bool send_all(tcp_wire *wire, tcp_link *link, const uint8_t *bytes, size_t count, uint64_t deadline_ns) {
    const wefti_host *host = wire->base.wire.host;
    while (count > 0) {
        struct iovec part = {(void *)bytes, count};
        ssize_t      sent = wefti_tcp_link_send(link, &part, 1);
        if (sent > 0) {
            bytes += sent;
            count -= (size_t)sent;
        } else if ((sent < 0 && errno != EAGAIN && errno != EINTR) || wefti_host_now(host) >= deadline_ns) {
            return false;
        } else if (errno == EAGAIN) {
            host->sleep(host->context, WEFTI_MILLISECOND_NS / 10);
        }
    }
    return true;
}

/* Ends frames that were begun, says goodbye where none was cut in two, and sees the bytes off. */
static void leave(tcp_wire *wire, uint64_t linger_ns) {
    const wefti_host *host = wire->base.wire.host;
    uint64_t          deadline_ns = wefti_deadline_after(wefti_host_now(host), linger_ns);
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++) {
        tcp_link      *link = &wire->links[peer];
        const tcp_out *out = &link->out;
        size_t         last = out->sent + wefti_seal_pending(link->seal); /* begun up to there */
        if (link->state != WEFTI_LINK_UP || (link->socket < 0 && !link->stream) || last > out->whole_bytes) continue;
        uint8_t bytes[TCP_LINE_BYTES + TCP_HEADER_BYTES] = {0}, *bye = bytes + out->pad; /* which is 0 where something was begun */
        wefti_tcp_header_write(bye, &(tcp_header){.kind = TCP_BYE});
        size_t begun = last ? out->whole_bytes - out->sent : 0;
        if (send_all(wire, link, out->head + out->sent, begun, deadline_ns))
            (void)send_all(wire, link, bytes, out->pad + TCP_HEADER_BYTES, deadline_ns);
        if (link->socket >= 0) shutdown(link->socket, SHUT_WR);
    }
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++)
        while (wire->links[peer].socket >= 0 && is_sending(&wire->links[peer]) && wefti_host_now(host) < deadline_ns)
            host->sleep(host->context, WEFTI_MILLISECOND_NS / 10);
}

void wefti_tcp_free(tcp_wire *wire) {
    wire->medium->close(wire);
    for (int32_t peer = 0; wire->links && peer < wire->base.wire.size; peer++) {
        tcp_link *link = &wire->links[peer];
        if (link->socket >= 0) close(link->socket);
        for (tcp_serve *serve = link->serve_first, *next; serve; serve = next) {
            next = serve->next;
            wefti_free(serve, sizeof *serve);
        }
        wefti_seal_release(link->seal);
        wefti_free(link->in.stage, TCP_STAGE_BYTES);
    }
    for (tcp_serve *serve = wire->free_serves, *next; serve; serve = next) {
        next = serve->next;
        wefti_free(serve, sizeof *serve);
    }
    wefti_regions_close(&wire->regions);
    wefti_free(wire->links, (size_t)wire->base.wire.size * sizeof *wire->links);
    wefti_wire_base_close(&wire->base);
    wefti_free(wire, wire->medium->wire_bytes);
}

static void tcp_close(wefti_wire *self, uint64_t linger_ns) {
    tcp_abort(self, WEFT_E_ABORTED, -1);
    leave((tcp_wire *)self, linger_ns);
    wefti_tcp_free((tcp_wire *)self);
}

static const wefti_wire_ops shared_slots = {
    .link = tcp_link_state,
    .cause = tcp_cause,
    .region_create = tcp_region_create,
    .region_register = tcp_region_register,
    .region_release = tcp_region_release,
    .peer_region = tcp_peer_region,
    .region_of = tcp_region_of,
    .post = wefti_tcp_post,
    .poll = tcp_poll,
    .cancel = wefti_wire_cancel,
    .send_from = wefti_tcp_send_from,
    .abort = tcp_abort,
    .counts = wefti_wire_read_counts,
    .close = tcp_close,
};

static weft_status open_links(tcp_wire *wire, const wefti_wire_options *options) {
    WEFTI_TRY(wefti_alloc((size_t)options->size * sizeof *wire->links, "links", &wire->links));
    for (int32_t peer = 0; peer < options->size; peer++) wire->links[peer].socket = -1;
    wire->links[options->rank].state = WEFTI_LINK_UP;
    return wefti_regions_open(&wire->regions, &wire->base.wire);
}

weft_status wefti_tcp_open(tcp_wire *wire, const wefti_wire_options *options, const tcp_medium *medium) {
    wire->medium = medium;
    wire->ops = shared_slots;
    wire->ops.address = medium->address;
    wire->ops.connect = medium->connect;
    wire->ops.descriptor = medium->descriptor;
    wire->ops.arm = medium->arm;
    wire->base.wire.can = (wefti_wire_capabilities){.name = medium->name,
                                                    .flags = WEFTI_WIRE_ONE_SIDED | WEFTI_WIRE_GIVES_PIECES,
                                                    .max_message_bytes = PTRDIFF_MAX,
                                                    .eager_bytes = TCP_EAGER_BYTES,
                                                    .segment_bytes = TCP_SEGMENT_BYTES,
                                                    .latency_ns = 10000,
                                                    .bytes_per_ns = 2};
    wire->direct = true;
    wire->poller = -1;
    WEFTI_TRY(wefti_wire_base_open(&wire->base, options, &wire->ops, EARLY_BYTES));
    return open_links(wire, options);
}

/* --- TCP itself --- */

static void service_mesh(tcp_wire *wire, uint64_t now_ns) { wefti_mesh_service(&wire->mesh, now_ns); }

static void close_mesh(tcp_wire *wire) {
    wefti_mesh_close(&wire->mesh);
    if (wire->poller >= 0) close(wire->poller);
}

static const tcp_medium sockets = {.wire_bytes = sizeof(tcp_wire),
                                   .name = "tcp",
                                   .address = tcp_address,
                                   .connect = tcp_connect,
                                   .descriptor = tcp_descriptor,
                                   .arm = tcp_arm,
                                   .service = service_mesh,
                                   .close = close_mesh};

static weft_status open_mesh(tcp_wire *wire, const wefti_wire_options *options) {
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = TCP_TOKEN_LISTENER};
    wire->direct = options->size <= MOST_DIRECT_LINKS;
    wire->mesh.joined = joined;
    wire->mesh.refused = refused;
    wire->mesh.context = wire;
    WEFTI_TRY(wefti_mesh_open(&wire->mesh, &wire->base.wire, options));
    wire->poller = epoll_create1(EPOLL_CLOEXEC);
    if (wire->poller < 0 || epoll_ctl(wire->poller, EPOLL_CTL_ADD, wire->mesh.listener, &event) != 0)
        return wefti_fail_errno("tcp: cannot create a poller (epoll)");
    return WEFT_OK;
}

weft_status wefti_wire_tcp_open(const wefti_wire_options *options, wefti_wire **wire_out) {
    tcp_wire *wire = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *wire, "a tcp wire", &wire));
    weft_status status = wefti_tcp_open(wire, options, &sockets);
    wire->base.wire.can.flags |= WEFTI_WIRE_WAIT_DESCRIPTOR | WEFTI_WIRE_ENCRYPTS;
    wire->base.wire.can.near_bytes_per_ns = LOCAL_BYTES_PER_NS;
    if (status == WEFT_OK) status = open_mesh(wire, options);
    if (status != WEFT_OK)
        wefti_tcp_free(wire);
    else
        *wire_out = &wire->base.wire;
    return status;
}

/* The TCP wire: between hosts, or inside one.
 *
 * One connection for each pair of ranks, non-blocking, without Nagle's delay; of a pair the higher rank dials. Both ends
 * prove themselves by the handshake, with the cookie of the listener's address and, off loopback always, the job's
 * secret. Messages up to 256 KiB are sent at once; larger ones are announced and sent when their receive is posted, so that
 * they go straight into its buffer. Writes go straight into the region. Memory: a stage of 8 KiB for each link, and
 * the early messages. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <linux/sockios.h>
#include <unistd.h>

#include "transport/wire_tcp.h"

enum { EARLY_BYTES = 256 << 20, MOST_DIRECT_LINKS = 3 };
#define REDIAL_NS (5 * WEFTI_MILLISECOND_NS)
#define SERVICE_NS (WEFTI_MILLISECOND_NS / 2)
#define ADDRESS_MAGIC UINT64_C(0x5043543146544557)

typedef struct tcp_address {
    uint64_t             magic;
    wefti_socket_address socket;
    uint8_t              cookie[WEFTI_COOKIE_BYTES];
} tcp_address;
_Static_assert(sizeof(tcp_address) <= WEFTI_WIRE_ADDRESS_BYTES, "an address fits");

/* --- regions --- */

uint8_t *wefti_tcp_region_memory(const tcp_wire *wire, uint32_t id, uint64_t offset, uint64_t bytes) {
    const tcp_region *region = id >= 1 && id <= wire->region_count ? wire->regions[id - 1] : NULL;
    if (!region || offset > region->region.size_bytes || bytes > region->region.size_bytes - offset) return NULL;
    return (uint8_t *)region->region.base + offset;
}

tcp_peer_region *wefti_tcp_peer_slot(tcp_link *link, uint32_t id) {
    if (id == 0 || id > TCP_MOST_REGIONS) return NULL;
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

static weft_status announce(tcp_wire *wire, tcp_kind kind, uint32_t id) {
    if (wire->log_count == wire->log_capacity) {
        uint32_t capacity = wire->log_capacity ? wire->log_capacity * 2 : 32;
        WEFTI_TRY(wefti_grow(&wire->log, wire->log_capacity * sizeof *wire->log, capacity * sizeof *wire->log,
                             "announcements of regions"));
        wire->log_capacity = capacity;
    }
    wire->log[wire->log_count++] = (tcp_announcement){kind, id};
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++)
        if (peer != wire->base.wire.rank && wire->links[peer].state == WEFTI_LINK_UP) wefti_tcp_send(wire, peer);
    return WEFT_OK;
}

static weft_status add_region(tcp_wire *wire, void *base, size_t size_bytes, bool owned, wefti_wire_region **region_out) {
    if (wire->region_count == TCP_MOST_REGIONS)
        return wefti_fail(WEFT_E_UNSUPPORTED, "tcp: more than %d regions in the life of a wire", TCP_MOST_REGIONS);
    if (wire->region_count == wire->region_capacity) {
        uint32_t capacity = wire->region_capacity ? wire->region_capacity * 2 : 16;
        WEFTI_TRY(wefti_grow(&wire->regions, wire->region_capacity * sizeof *wire->regions,
                             capacity * sizeof *wire->regions, "the table of regions"));
        wire->region_capacity = capacity;
    }
    tcp_region *region = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *region, "a region", &region));
    *region = (tcp_region){{&wire->base.wire, base, size_bytes, wire->region_count + 1}, owned};
    wire->regions[wire->region_count++] = region;
    weft_status status = announce(wire, TCP_REGION, region->region.id);
    if (status != WEFT_OK) {
        wire->regions[region->region.id - 1] = NULL;
        wefti_free(region, sizeof *region);
        return status;
    }
    *region_out = &region->region;
    return WEFT_OK;
}

static weft_status tcp_region_create(wefti_wire *self, size_t size_bytes, wefti_wire_region **region_out) {
    void *memory = NULL;
    if (size_bytes > PTRDIFF_MAX - 4096) return wefti_fail(WEFT_E_OVERFLOW, "tcp: a region of %zu bytes", size_bytes);
    size_bytes = wefti_align_up(size_bytes ? size_bytes : 1, 4096);
    WEFTI_TRY(wefti_alloc_raw(size_bytes, 4096, "an exported region", &memory));
    memset(memory, 0, size_bytes);
    weft_status status = add_region((tcp_wire *)self, memory, size_bytes, true, region_out);
    if (status != WEFT_OK) wefti_free(memory, size_bytes);
    return status;
}

static weft_status tcp_region_register(wefti_wire *self, void *memory, size_t size_bytes, wefti_wire_region **region_out) {
    return add_region((tcp_wire *)self, memory, size_bytes, false, region_out);
}

static void free_region(tcp_region *region) {
    if (region->owned) wefti_free(region->region.base, region->region.size_bytes);
    wefti_free(region, sizeof *region);
}

static void tcp_region_release(wefti_wire_region *region) {
    if (!region) return;
    tcp_wire *wire = (tcp_wire *)region->wire;
    uint32_t  id = region->id;
    wire->regions[id - 1] = NULL;
    free_region((tcp_region *)region);
    /* Out of memory: peers go on believing in it, and an access would end the link. */
    if (announce(wire, TCP_WITHDRAWN, id) != WEFT_OK) wefti_log(WEFT_LOG_WARNING, "tcp: %s", weft_error_message());
}

weft_status wefti_tcp_peer_region(wefti_wire *self, int32_t peer, uint32_t id, wefti_wire_peer_region *region_out) {
    tcp_wire *wire = (tcp_wire *)self;
    if (peer < 0 || peer >= self->size || wire->links[peer].state == WEFTI_LINK_NONE || id == 0)
        return wefti_fail(WEFT_E_INVALID, "tcp: region %u of rank %d: not connected, or no such id", id, (int)peer);
    if (peer == self->rank) {
        if (id > wire->region_count) return WEFT_E_AGAIN;
        const tcp_region *own = wire->regions[id - 1];
        if (!own) return wefti_fail(WEFT_E_NOT_FOUND, "tcp: region %u of rank %d was released", id, (int)peer);
        *region_out = (wefti_wire_peer_region){own->region.base, own->region.size_bytes};
        return WEFT_OK;
    }
    const tcp_link  *link = &wire->links[peer];
    tcp_region_state state = id <= link->region_capacity ? link->regions[id - 1].state : TCP_REGION_UNKNOWN;
    if (state == TCP_REGION_GONE)
        return wefti_fail(WEFT_E_NOT_FOUND, "tcp: region %u of rank %d was released", id, (int)peer);
    if (link->state != WEFTI_LINK_UP && link->state != WEFTI_LINK_CONNECTING)
        return wefti_fail(WEFT_E_PEER, "tcp: rank %d is gone, and its region %u with it", (int)peer, id);
    if (state == TCP_REGION_UNKNOWN) return WEFT_E_AGAIN;
    *region_out = (wefti_wire_peer_region){NULL, link->regions[id - 1].size_bytes};
    return WEFT_OK;
}

static wefti_wire_region *tcp_region_of(wefti_wire *self, const void *memory, size_t bytes) {
    const tcp_wire *wire = (const tcp_wire *)self;
    uintptr_t       at = (uintptr_t)memory;
    for (uint32_t i = wire->region_count; i-- > 0;) {
        tcp_region *region = wire->regions[i];
        uintptr_t   base = region ? (uintptr_t)region->region.base : 0;
        if (region && at >= base && at - base <= region->region.size_bytes &&
            bytes <= region->region.size_bytes - (at - base))
            return &region->region;
    }
    return NULL;
}

/* --- connecting --- */

static weft_status tcp_address_of(wefti_wire *self, void *address_out, size_t *bytes_out) {
    tcp_wire   *wire = (tcp_wire *)self;
    tcp_address address = {.magic = ADDRESS_MAGIC, .socket = wire->address};
    memcpy(address.cookie, wire->cookie, sizeof address.cookie);
    memcpy(address_out, &address, sizeof address);
    *bytes_out = sizeof address;
    return WEFT_OK;
}

static weft_status tcp_connect(wefti_wire *self, int32_t peer, const void *bytes, size_t size_bytes) {
    tcp_wire   *wire = (tcp_wire *)self;
    tcp_address address;
    if (peer < 0 || peer >= self->size)
        return wefti_fail(WEFT_E_INVALID, "tcp: there is no rank %d among %d", (int)peer, (int)self->size);
    if (size_bytes != sizeof address || (memcpy(&address, bytes, sizeof address), address.magic != ADDRESS_MAGIC))
        return wefti_fail(WEFT_E_CORRUPT, "tcp: the address of rank %d is none of this wire", (int)peer);
    tcp_link *link = &wire->links[peer];
    if (link->state != WEFTI_LINK_NONE) return WEFT_OK;
    WEFTI_TRY(wefti_alloc_raw(TCP_STAGE_BYTES, WEFTI_CACHE_LINE, "a link's stage", &link->in.stage));
    link->address = address.socket;
    memcpy(link->cookie, address.cookie, sizeof link->cookie);
    link->terms = wire->terms;
    link->terms.cookie = link->cookie;
    link->dials = self->rank > peer;
    link->state = WEFTI_LINK_CONNECTING;
    wire->settled = false;
    return WEFT_OK;
}

static wefti_wire_link tcp_link_state(const wefti_wire *self, int32_t peer) {
    return peer < 0 || peer >= self->size ? WEFTI_LINK_NONE : ((const tcp_wire *)self)->links[peer].state;
}

static void link_up(tcp_wire *wire, int32_t peer, int socket) {
    tcp_link          *link = &wire->links[peer];
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)peer};
    link->socket = socket;
    link->state = WEFTI_LINK_UP;
    if (epoll_ctl(wire->poller, EPOLL_CTL_ADD, socket, &event) != 0) wefti_tcp_link_end(wire, peer, WEFTI_LINK_DOWN);
}

static void hang_up(tcp_link *link, uint64_t now_ns) {
    close(link->socket);
    link->socket = -1;
    link->connected = false;
    link->redial_ns = now_ns + REDIAL_NS;
}

static void dial(tcp_wire *wire, int32_t peer, uint64_t now_ns) {
    tcp_link *link = &wire->links[peer];
    if (link->socket < 0) {
        if (now_ns < link->redial_ns) return;
        if (wefti_socket_dial(&link->address, &link->socket) != WEFT_OK) {
            link->socket = -1;
            link->redial_ns = now_ns + REDIAL_NS;
            return;
        }
    }
    if (!link->connected) {
        weft_status status = wefti_socket_connected(link->socket);
        if (status == WEFT_OK) status = wefti_handshake_call(&link->shake, &link->terms, link->socket, peer, now_ns);
        if (status != WEFT_OK) {
            if (status != WEFT_E_AGAIN) hang_up(link, now_ns);
            return;
        }
        link->connected = true;
    }
    weft_status status = wefti_handshake_progress(&link->shake, now_ns);
    if (status == WEFT_OK) {
        link_up(wire, peer, link->socket);
    } else if (status == WEFT_E_LINK || status == WEFT_E_TIMEOUT) {
        hang_up(link, now_ns);
    } else if (status != WEFT_E_AGAIN) {
        wefti_log(WEFT_LOG_ERROR, "tcp: rank %d cannot be joined: %s", (int)peer, weft_error_message());
        wefti_tcp_link_end(wire, peer, WEFTI_LINK_DOWN);
    }
}

static weft_status admit(void *context, int32_t rank) {
    tcp_wire *wire = context;
    if (rank < wire->base.wire.rank) return WEFT_E_EXISTS; /* those are dialled from here */
    switch (wire->links[rank].state) {
    case WEFTI_LINK_NONE: return WEFT_E_AGAIN;
    case WEFTI_LINK_CONNECTING: return WEFT_OK;
    default: return WEFT_E_EXISTS;
    }
}

static void drop_guest(tcp_wire *wire, tcp_guest *guest) {
    close(guest->socket);
    guest->socket = -1;
    wire->strangers++;
}

static void accept_guests(tcp_wire *wire, uint64_t now_ns) {
    for (int i = 0; i < TCP_MOST_GUESTS; i++) {
        int accepted = wefti_socket_accept(wire->listener);
        if (accepted < 0) return;
        tcp_guest *place = &wire->guests[0];
        for (int g = 0; g < TCP_MOST_GUESTS && place->socket >= 0; g++)
            if (wire->guests[g].socket < 0 || wire->guests[g].shake.deadline_ns < place->shake.deadline_ns)
                place = &wire->guests[g];
        if (place->socket >= 0) drop_guest(wire, place); /* full: the oldest gives way */
        place->socket = accepted;
        if (wefti_handshake_answer(&place->shake, &wire->terms, accepted, now_ns) != WEFT_OK) drop_guest(wire, place);
    }
}

static void hear_guests(tcp_wire *wire, uint64_t now_ns) {
    for (int i = 0; i < TCP_MOST_GUESTS; i++) {
        tcp_guest *guest = &wire->guests[i];
        if (guest->socket < 0) continue;
        weft_status status = wefti_handshake_progress(&guest->shake, now_ns);
        if (status == WEFT_E_AGAIN) continue;
        if (status == WEFT_OK && wire->links[guest->shake.peer].state == WEFTI_LINK_CONNECTING) {
            link_up(wire, guest->shake.peer, guest->socket);
            guest->socket = -1;
            continue;
        }
        if (status == WEFT_E_LINK) wire->strangers--; /* came too early, not from outside */
        drop_guest(wire, guest);
    }
}

/* Who is expected, and who comes unasked. */
static void service(tcp_wire *wire, uint64_t now_ns) {
    if (now_ns - wire->served_ns < (wire->settled ? SERVICE_NS * 20 : SERVICE_NS)) return;
    wire->served_ns = now_ns;
    bool settled = true;
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++) {
        if (wire->links[peer].state == WEFTI_LINK_CONNECTING && wire->links[peer].dials) dial(wire, peer, now_ns);
        settled = settled && wire->links[peer].state != WEFTI_LINK_CONNECTING;
    }
    accept_guests(wire, now_ns);
    hear_guests(wire, now_ns);
    wire->settled = settled;
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
        /* What could not be kept aside for want of room is tried again without news from the socket. */
        if (!wire->direct && link->in.have - link->in.used >= TCP_HEADER_BYTES) wefti_tcp_receive(wire, peer);
        if (wefti_tcp_has_output(wire, link)) wefti_tcp_send(wire, peer);
    }
}

static weft_status tcp_poll(wefti_wire *self, uint64_t now_ns, wefti_wire_op **ops_out, int32_t capacity,
                            int32_t *count_out) {
    tcp_wire *wire = (tcp_wire *)self;
    if (!wire->base.aborted) {
        service(wire, now_ns);
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
            wire->served_ns = 0; /* look at once after the nap, which is short: handshakes have no descriptor here */
            self->host->sleep(self->host->context, WEFTI_MILLISECOND_NS / 5);
            return WEFT_E_AGAIN;
        }
        if (link->state != WEFTI_LINK_UP) continue;
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
    if (link->out.active && link->out.op) wefti_wire_finish(&wire->base, link->out.op, status, rank, 0);
    link->out.op = NULL;
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
    wefti_wire_flush(&wire->base, &link->out_ops, status, rank);
    wefti_wire_flush(&wire->base, &link->waiting, status, rank);
}

void wefti_tcp_link_end(tcp_wire *wire, int32_t peer, wefti_wire_link state) {
    tcp_link *link = &wire->links[peer];
    link->state = state;
    flush_current(wire, link, WEFT_E_PEER, peer);
    wefti_wire_flush_peer(&wire->base, peer);
    if (link->socket >= 0) close(link->socket);
    link->socket = -1;
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

/* Says goodbye where no frame was cut in two, and sees the bytes off. */
static void leave(tcp_wire *wire, uint64_t linger_ns) {
    const wefti_host *host = wire->base.wire.host;
    uint64_t          deadline_ns = wefti_deadline_after(wefti_host_now(host), linger_ns);
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++) {
        tcp_link *link = &wire->links[peer];
        if (link->state != WEFTI_LINK_UP || link->socket < 0 || (link->out.active && link->out.sent > 0)) continue;
        uint8_t bytes[TCP_HEADER_BYTES];
        wefti_tcp_header_write(bytes, &(tcp_header){.kind = TCP_BYE});
        while (send(link->socket, bytes, sizeof bytes, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno == EAGAIN &&
               wefti_host_now(host) < deadline_ns)
            host->sleep(host->context, WEFTI_MILLISECOND_NS / 10);
        shutdown(link->socket, SHUT_WR);
    }
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++) {
        int pending = 0; /* closing with unread bytes resets the connection, and what is on its way would be lost */
        while (wire->links[peer].socket >= 0 && ioctl(wire->links[peer].socket, SIOCOUTQ, &pending) == 0 && pending > 0 &&
               wefti_host_now(host) < deadline_ns)
            host->sleep(host->context, WEFTI_MILLISECOND_NS / 10);
    }
}

static void free_wire(tcp_wire *wire) {
    for (int i = 0; i < TCP_MOST_GUESTS; i++)
        if (wire->guests[i].socket >= 0) close(wire->guests[i].socket);
    for (int32_t peer = 0; wire->links && peer < wire->base.wire.size; peer++) {
        tcp_link *link = &wire->links[peer];
        if (link->socket >= 0) close(link->socket);
        for (tcp_serve *serve = link->serve_first, *next; serve; serve = next) {
            next = serve->next;
            wefti_free(serve, sizeof *serve);
        }
        wefti_free(link->in.stage, TCP_STAGE_BYTES);
        wefti_free(link->regions, link->region_capacity * sizeof *link->regions);
    }
    for (tcp_serve *serve = wire->free_serves, *next; serve; serve = next) {
        next = serve->next;
        wefti_free(serve, sizeof *serve);
    }
    for (uint32_t i = 0; i < wire->region_count; i++)
        if (wire->regions[i]) free_region(wire->regions[i]);
    if (wire->listener >= 0) close(wire->listener);
    if (wire->poller >= 0) close(wire->poller);
    wefti_free(wire->regions, wire->region_capacity * sizeof *wire->regions);
    wefti_free(wire->log, wire->log_capacity * sizeof *wire->log);
    wefti_free(wire->links, (size_t)wire->base.wire.size * sizeof *wire->links);
    wefti_wire_base_close(&wire->base);
    explicit_bzero(wire->secret, sizeof wire->secret);
    wefti_free(wire, sizeof *wire);
}

static void tcp_close(wefti_wire *self, uint64_t linger_ns) {
    tcp_abort(self, WEFT_E_ABORTED, -1);
    leave((tcp_wire *)self, linger_ns);
    free_wire((tcp_wire *)self);
}

static const wefti_wire_ops tcp_ops = {
    .address = tcp_address_of,
    .connect = tcp_connect,
    .link = tcp_link_state,
    .region_create = tcp_region_create,
    .region_register = tcp_region_register,
    .region_release = tcp_region_release,
    .peer_region = wefti_tcp_peer_region,
    .region_of = tcp_region_of,
    .post = wefti_tcp_post,
    .poll = tcp_poll,
    .cancel = wefti_wire_cancel,
    .abort = tcp_abort,
    .descriptor = tcp_descriptor,
    .arm = tcp_arm,
    .counts = wefti_wire_read_counts,
    .close = tcp_close,
};

static weft_status open_listener(tcp_wire *wire, const wefti_wire_options *options) {
    char        text[300];
    const char *interface = options->interface && *options->interface ? options->interface : "127.0.0.1";
    snprintf(text, sizeof text, strchr(interface, ':') ? "[%.250s]:0" : "%.250s:0", interface);
    WEFTI_TRY(wefti_socket_resolve(text, &wire->address));
    static const struct in6_addr any;
    const struct sockaddr_in    *four = (const struct sockaddr_in *)&wire->address.storage;
    const struct sockaddr_in6   *six = (const struct sockaddr_in6 *)&wire->address.storage;
    if (wire->address.storage.ss_family == AF_INET ? four->sin_addr.s_addr == 0 : !memcmp(&six->sin6_addr, &any, sizeof any))
        return wefti_fail(WEFT_E_INVALID, "tcp: '%s' is every interface; name the address by which the others reach this host",
                          interface);
    if (!wefti_socket_is_loopback(&wire->address) && (!wire->terms.secret_bytes || !wefti_can_authenticate()))
        return wefti_fail(WEFT_E_AUTH, "tcp: '%s' is not loopback, which demands a secret: %s", interface,
                          wefti_can_authenticate() ? "set WEFT_SECRET or WEFT_SECRET_FILE on every rank"
                                                   : "but this build lacks libsodium");
    WEFTI_TRY(wefti_socket_listen(&wire->address, &wire->listener));
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = TCP_TOKEN_LISTENER};
    wire->poller = epoll_create1(EPOLL_CLOEXEC);
    if (wire->poller < 0 || epoll_ctl(wire->poller, EPOLL_CTL_ADD, wire->listener, &event) != 0)
        return wefti_fail_errno("tcp: cannot create a poller (epoll)");
    return wire->terms.host->random(wire->terms.host->context, wire->cookie, sizeof wire->cookie);
}

weft_status wefti_wire_tcp_open(const wefti_wire_options *options, wefti_wire **wire_out) {
    tcp_wire *wire = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *wire, "a tcp wire", &wire));
    wire->listener = wire->poller = -1;
    for (int i = 0; i < TCP_MOST_GUESTS; i++) wire->guests[i].socket = -1;
    wire->base.wire.can = (wefti_wire_capabilities){.name = "tcp",
                                                    .flags = WEFTI_WIRE_ONE_SIDED | WEFTI_WIRE_WAIT_DESCRIPTOR,
                                                    .max_message_bytes = PTRDIFF_MAX,
                                                    .eager_bytes = TCP_EAGER_BYTES,
                                                    .latency_ns = 10000,
                                                    .bytes_per_ns = 2};
    weft_status status = wefti_wire_base_open(&wire->base, options, &tcp_ops, EARLY_BYTES);
    if (status != WEFT_OK) {
        wefti_free(wire, sizeof *wire);
        return status;
    }
    WEFTI_TRY_GOTO(wefti_alloc((size_t)options->size * sizeof *wire->links, "links", &wire->links), failed);
    for (int32_t peer = 0; peer < options->size; peer++) wire->links[peer].socket = -1;
    wire->links[options->rank].state = WEFTI_LINK_UP;
    wire->direct = options->size <= MOST_DIRECT_LINKS;
    snprintf(wire->job, sizeof wire->job, "%s", options->job ? options->job : "");
    if (options->secret_bytes > sizeof wire->secret) {
        status = wefti_fail(WEFT_E_INVALID, "tcp: a secret of %zu bytes; at most %zu", options->secret_bytes,
                            sizeof wire->secret);
        goto failed;
    }
    if (options->secret_bytes) memcpy(wire->secret, options->secret, options->secret_bytes);
    wire->terms = (wefti_terms){.host = wire->base.wire.host, .purpose = WEFTI_FOR_WIRE, .rank = options->rank,
                                .size = options->size, .epoch = options->epoch, .job = wire->job, .cookie = wire->cookie,
                                .secret = wire->secret, .secret_bytes = options->secret_bytes, .admit = admit,
                                .context = wire};
    if ((status = open_listener(wire, options)) != WEFT_OK) goto failed;
    *wire_out = &wire->base.wire;
    return WEFT_OK;
failed:
    free_wire(wire);
    return status;
}

/* The shared-memory wire: how two ends find and trust each other.
 *
 * Dialling is retried until the far end listens with room. A guest (a connection that has not said who it is) has a
 * deadline and there is a cap on them, the oldest giving way; one that is of another user, lacks the cookie or
 * belongs to another job, epoch or world is dropped and counted, and nothing else happens. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "transport/wire_shm.h"

enum { REDIAL_NS = 1000000 };
#define GUEST_DEADLINE_NS (5 * WEFTI_SECOND_NS)

uint64_t wefti_shm_job(const char *job) {
    return wefti_hash(WEFTI_HASH_BEGIN, job, job ? strlen(job) : 0);
}

/* --- packets --- */

bool wefti_shm_packet_send(int socket, const shm_packet *packet, const int *memory, int count) {
    struct iovec  part = {(void *)packet, sizeof *packet};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(SHM_PASSED * sizeof(int))] = {0};
    if (count > 0) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
        memcpy(CMSG_DATA(header), memory, (size_t)count * sizeof(int));
    }
    ssize_t sent = sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    return sent >= 0 || (errno != EAGAIN && errno != ENOBUFS && errno != EINTR && errno != ETOOMANYREFS);
}

int wefti_shm_packet_receive(int socket, shm_packet *packet_out, int given_out[SHM_PASSED]) {
    struct iovec  part = {packet_out, sizeof *packet_out};
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(SHM_PASSED * sizeof(int))];
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    for (int i = 0; i < SHM_PASSED; i++) given_out[i] = -1;
    ssize_t got = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
    int count = 0;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        size_t passed = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < passed; i++) {
            int descriptor;
            memcpy(&descriptor, CMSG_DATA(header) + i * sizeof(int), sizeof descriptor);
            if (count < SHM_PASSED)
                given_out[count++] = descriptor;
            else
                close(descriptor);
        }
    }
    if (got == sizeof *packet_out && packet_out->magic == SHM_MAGIC) return 1;
    for (int i = 0; i < SHM_PASSED; i++) {
        if (given_out[i] >= 0) close(given_out[i]);
        given_out[i] = -1;
    }
    return -1;
}

/* --- addresses --- */

static weft_status own_address(shm_wire *wire, shm_address *address) {
    static const char digits[] = "0123456789abcdef";
    uint8_t           random[8];
    const wefti_host *host = wire->ring.base.wire.host;
    *address = (shm_address){.magic = SHM_MAGIC};
    WEFTI_TRY(host->random(host->context, address->cookie, sizeof address->cookie));
    WEFTI_TRY(host->random(host->context, random, sizeof random));
    memcpy(address->name, "weft-", 5);
    for (size_t i = 0; i < sizeof random; i++) {
        address->name[5 + 2 * i] = digits[random[i] >> 4];
        address->name[6 + 2 * i] = digits[random[i] & 15];
    }
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (file) { /* without it all hosts look alike, and a wrong one is found out when nobody listens there */
        char   text[40] = "";
        size_t used = 0;
        if (!fgets(text, sizeof text, file)) text[0] = 0;
        fclose(file);
        for (const char *at = text; *at && used < 32; at++) {
            int digit = *at >= '0' && *at <= '9' ? *at - '0' : *at >= 'a' && *at <= 'f' ? *at - 'a' + 10 : -1;
            if (digit < 0) continue;
            address->host[used / 2] = (uint8_t)(address->host[used / 2] << 4 | digit);
            used++;
        }
    }
    struct stat info;
    if (stat("/proc/self/ns/net", &info) == 0) address->network = info.st_ino;
    return WEFT_OK;
}

weft_status wefti_shm_address(wefti_wire *self, void *address_out, size_t *bytes_out) {
    memcpy(address_out, &((shm_wire *)self)->address, sizeof(shm_address));
    *bytes_out = sizeof(shm_address);
    return WEFT_OK;
}

static socklen_t socket_name(const shm_address *address, struct sockaddr_un *name) {
    *name = (struct sockaddr_un){.sun_family = AF_UNIX};
    size_t length = strnlen(address->name, SHM_NAME_BYTES);
    memcpy(name->sun_path + 1, address->name, length); /* a leading zero byte: the abstract name space */
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
}

weft_status wefti_shm_connect(wefti_wire *self, int32_t peer, const void *bytes, size_t size_bytes) {
    shm_wire *wire = (shm_wire *)self;
    if (peer < 0 || peer >= self->size)
        return wefti_fail(WEFT_E_INVALID, "shm: there is no rank %d among %d", (int)peer, (int)self->size);
    shm_address address;
    if (size_bytes != sizeof address || (memcpy(&address, bytes, sizeof address), address.magic != SHM_MAGIC))
        return wefti_fail(WEFT_E_CORRUPT, "shm: the address of rank %d is none of this wire", (int)peer);
    if (memcmp(address.host, wire->address.host, sizeof address.host) != 0 || address.network != wire->address.network)
        return wefti_fail(WEFT_E_UNSUPPORTED,
                          "shm: rank %d is on another host or in another network name space; use the tcp wire", (int)peer);
    if (wire->ring.links[peer].state != WEFTI_LINK_NONE) return WEFT_OK;
    wire->links[peer].address = address;
    wire->links[peer].dials = self->rank > peer;
    wire->ring.links[peer].state = WEFTI_LINK_CONNECTING;
    wire->look_now = true;
    return WEFT_OK;
}

weft_status wefti_shm_listen(shm_wire *wire) {
    WEFTI_TRY(own_address(wire, &wire->address));
    wire->probe = SHM_MAGIC;
    struct sockaddr_un name;
    socklen_t          length = socket_name(&wire->address, &name);
    wire->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = SHM_TOKEN_LISTENER};
    if (wire->listener < 0 || bind(wire->listener, (struct sockaddr *)&name, length) != 0 ||
        listen(wire->listener, 128) != 0 || epoll_ctl(wire->poller, EPOLL_CTL_ADD, wire->listener, &event) != 0)
        return wefti_fail_errno("shm: cannot listen on a Unix socket");
    return WEFT_OK;
}

void wefti_shm_hang_up(shm_wire *wire) {
    for (int32_t i = 0; i < SHM_MOST_GUESTS; i++)
        if (wire->guests[i].socket) close(wire->guests[i].socket);
    if (wire->listener >= 0) close(wire->listener);
    wire->listener = -1;
}

/* --- the handshake --- */

static shm_packet introduction(const shm_wire *wire, shm_packet_kind kind, int32_t to) {
    const wefti_wire *self = &wire->ring.base.wire;
    return (shm_packet){.magic = SHM_MAGIC,
                        .kind = kind,
                        .version = RING_VERSION,
                        .from = self->rank,
                        .to = to,
                        .size = self->size,
                        .epoch = wire->epoch,
                        .job = wire->job,
                        .data_bytes = wire->ring.data_bytes,
                        .probe = (uint64_t)(uintptr_t)&wire->probe};
}

/* Whether the word at `address` of the process can be read. */
static bool memory_is_readable(pid_t pid, uint64_t address) {
    uint64_t     word = 0;
    struct iovec here = {&word, sizeof word}, there = {(void *)(uintptr_t)address, sizeof word};
    return process_vm_readv(pid, &here, 1, &there, 1, 0) == sizeof word && word == SHM_MAGIC;
}

/* Maps the peer's segment and doorbell, and the link is up. Takes the descriptors. */
static bool settle(shm_wire *wire, int32_t peer, int socket, const shm_packet *packet, const int given[SHM_PASSED]) {
    ring_link    *ring = &wire->ring.links[peer];
    ring_segment *segment = given[0] >= 0 && given[1] >= 0 ? wefti_shm_memory_map(given[0], wire->segment_bytes) : NULL;
    if (given[0] >= 0) close(given[0]);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)peer};
    bool sound = segment && segment->magic == RING_MAGIC && segment->version == RING_VERSION &&
                 segment->size == (uint32_t)wire->ring.base.wire.size && segment->cells == RING_CELLS &&
                 segment->data_bytes == wire->ring.data_bytes && packet->data_bytes == wire->ring.data_bytes &&
                 (epoll_ctl(wire->poller, EPOLL_CTL_ADD, socket, &event) == 0 || errno == EEXIST);
    if (!sound) {
        if (segment) munmap(segment, wire->segment_bytes);
        if (given[1] >= 0) close(given[1]);
        return false;
    }
    struct ucred owner = {0};
    socklen_t    length = sizeof owner;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &owner, &length) == 0 && owner.pid > 0) {
        ring->pid = owner.pid;
        ring->reads_memory = memory_is_readable(owner.pid, packet->probe);
    }
    wire->links[peer].segment = segment;
    wire->links[peer].socket = socket;
    wire->links[peer].dials = false;
    wefti_ring_link_up(&wire->ring, peer, segment, given[1], false);
    return true;
}

static bool same_user(int socket) {
    struct ucred owner;
    socklen_t    length = sizeof owner;
    return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &owner, &length) == 0 && owner.uid == geteuid();
}

static bool belongs(const shm_wire *wire, const shm_packet *packet, shm_packet_kind kind) {
    const wefti_wire *self = &wire->ring.base.wire;
    return packet->kind == (uint32_t)kind && packet->version == RING_VERSION && packet->size == self->size &&
           packet->epoch == wire->epoch && packet->job == wire->job && packet->to == self->rank && packet->from >= 0 &&
           packet->from < self->size && packet->from != self->rank;
}

void wefti_shm_dial(shm_wire *wire, uint64_t now_ns) {
    for (int32_t peer = 0; peer < wire->ring.base.wire.size; peer++) {
        shm_link *link = &wire->links[peer];
        if (!link->dials || link->socket >= 0 || wire->ring.links[peer].state != WEFTI_LINK_CONNECTING) continue;
        if (now_ns < link->redial_ns) continue;
        link->redial_ns = now_ns + REDIAL_NS;
        struct sockaddr_un name;
        socklen_t          length = socket_name(&link->address, &name);
        int                dialled = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (dialled < 0) continue;
        shm_packet hello = introduction(wire, SHM_HELLO, peer);
        memcpy(hello.cookie, link->address.cookie, sizeof hello.cookie);
        int                pass[SHM_PASSED] = {wire->segment_memory, wire->ring.doorbell};
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)peer};
        if (connect(dialled, (struct sockaddr *)&name, length) == 0 && same_user(dialled) &&
            wefti_shm_packet_send(dialled, &hello, pass, SHM_PASSED) &&
            epoll_ctl(wire->poller, EPOLL_CTL_ADD, dialled, &event) == 0)
            link->socket = dialled;
        else
            close(dialled);
    }
}

void wefti_shm_hear_answer(shm_wire *wire, int32_t peer) {
    shm_link  *link = &wire->links[peer];
    shm_packet packet;
    int        given[SHM_PASSED];
    int        got = wefti_shm_packet_receive(link->socket, &packet, given);
    if (got == 0) return;
    int socket = link->socket;
    if (got > 0) {
        if (belongs(wire, &packet, SHM_WELCOME) && packet.from == peer) {
            if (settle(wire, peer, socket, &packet, given)) return;
        } else {
            for (int i = 0; i < SHM_PASSED; i++)
                if (given[i] >= 0) close(given[i]);
        }
    }
    close(socket); /* dialled again by and by: its end may have been full */
    link->socket = -1;
}

static void forget_guest(shm_wire *wire, shm_guest *guest) {
    epoll_ctl(wire->poller, EPOLL_CTL_DEL, guest->socket, NULL);
    close(guest->socket);
    guest->socket = 0;
    wire->strangers++;
}

void wefti_shm_accept(shm_wire *wire, uint64_t now_ns) {
    for (int i = 0; i < SHM_MOST_GUESTS; i++) {
        int socket = accept4(wire->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (socket < 0) return;
        if (!same_user(socket)) {
            close(socket);
            wire->strangers++;
            continue;
        }
        shm_guest *place = &wire->guests[0];
        for (int32_t g = 0; g < SHM_MOST_GUESTS && place->socket; g++)
            if (!wire->guests[g].socket || wire->guests[g].since_ns < place->since_ns) place = &wire->guests[g];
        if (place->socket) forget_guest(wire, place); /* full: the oldest gives way */
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = SHM_TOKEN_GUEST + (uint32_t)(place - wire->guests)};
        if (epoll_ctl(wire->poller, EPOLL_CTL_ADD, socket, &event) != 0) {
            close(socket);
            continue;
        }
        *place = (shm_guest){socket, now_ns};
    }
}

void wefti_shm_hear_guest(shm_wire *wire, int32_t index) {
    shm_guest *guest = &wire->guests[index];
    shm_packet packet;
    int        given[SHM_PASSED];
    if (!guest->socket) return;
    int got = wefti_shm_packet_receive(guest->socket, &packet, given);
    if (got == 0) return;
    bool welcome = got > 0 && belongs(wire, &packet, SHM_HELLO) && packet.from > packet.to &&
                   memcmp(packet.cookie, wire->address.cookie, sizeof packet.cookie) == 0;
    if (welcome && wire->ring.links[packet.from].state == WEFTI_LINK_NONE) {
        /* The peer has our address before we have its own: it dials again when we have. */
        welcome = false;
        wire->strangers--;
    }
    welcome = welcome && wire->ring.links[packet.from].state == WEFTI_LINK_CONNECTING;
    if (!welcome) {
        for (int i = 0; i < SHM_PASSED && got > 0; i++)
            if (given[i] >= 0) close(given[i]);
        forget_guest(wire, guest);
        return;
    }
    shm_packet answer = introduction(wire, SHM_WELCOME, packet.from);
    int        pass[SHM_PASSED] = {wire->segment_memory, wire->ring.doorbell};
    epoll_ctl(wire->poller, EPOLL_CTL_DEL, guest->socket, NULL);
    int socket = guest->socket;
    guest->socket = 0;
    if (!settle(wire, packet.from, socket, &packet, given)) {
        close(socket);
        wire->strangers++;
        return;
    }
    /* A fresh socket always has room for one packet. */
    if (!wefti_shm_packet_send(socket, &answer, pass, SHM_PASSED)) wire->ring.links[packet.from].broken = true;
}

void wefti_shm_drop_slow_guests(shm_wire *wire, uint64_t now_ns) {
    for (int32_t i = 0; i < SHM_MOST_GUESTS; i++)
        if (wire->guests[i].socket && now_ns - wire->guests[i].since_ns > GUEST_DEADLINE_NS)
            forget_guest(wire, &wire->guests[i]);
}

/* A wire of one's own, to copy: streams of bytes between ranks over Unix sockets, without a library's help.
 *
 * Each rank listens under a name that nobody can guess, and hands it out as its address. Of each pair the higher rank calls and says who
 * it is; the lower one looks at who calls before it believes that. Nothing waits: what is under way is gone on with in `progress`. */
#include "local_wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

typedef struct way {
    int                socket; /* -1: none yet */
    bool               is_wanted;
    struct sockaddr_un name; /* of the peer */
} way;

typedef struct wire {
    int32_t            rank, size;
    int                listener, caller; /* caller: has not said who it is; -1: nobody */
    struct sockaddr_un name;
    way               *ways; /* [size], by peer */
} wire;

static void close_wire(void *self) {
    wire *w = self;
    for (int32_t peer = 0; w->ways && peer < w->size; peer++)
        if (w->ways[peer].socket >= 0) close(w->ways[peer].socket);
    if (w->caller >= 0) close(w->caller);
    if (w->listener >= 0) close(w->listener);
    free(w->ways);
    free(w);
}

static weft_status open_wire(void *context, const weft_wire_setup *setup, void **wire_out) {
    wire *w = calloc(1, sizeof *w);
    (void)context;
    if (!w) return WEFT_E_NO_MEMORY;
    *w = (wire){.rank = setup->rank, .size = setup->size, .listener = -1, .caller = -1, .name.sun_family = AF_UNIX};
    w->ways = calloc((size_t)setup->size, sizeof *w->ways);
    for (int32_t peer = 0; w->ways && peer < setup->size; peer++) w->ways[peer].socket = -1;
    w->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    /* After the first byte, zero, comes a name that lives in no folder and goes with the socket. */
    if (!w->ways || w->listener < 0 || getrandom(w->name.sun_path + 1, 32, 0) != 32 ||
        bind(w->listener, (struct sockaddr *)&w->name, sizeof w->name) != 0 || listen(w->listener, setup->size) != 0) {
        close_wire(w);
        return WEFT_E_IO;
    }
    *wire_out = w;
    return WEFT_OK;
}

static weft_status address(void *self, void *address_out, size_t *bytes_out) {
    const wire *w = self;
    memcpy(address_out, &w->name, sizeof w->name);
    *bytes_out = sizeof w->name;
    return WEFT_OK;
}

static weft_status connect_to(void *self, int32_t peer, const void *bytes, size_t count) {
    wire              *w = self;
    struct sockaddr_un name;
    if (count != sizeof name) return WEFT_E_CORRUPT;
    memcpy(&name, bytes, sizeof name);
    if (name.sun_family != AF_UNIX || name.sun_path[0] != 0) return WEFT_E_CORRUPT;
    if (!w->ways[peer].is_wanted) w->ways[peer].name = name; /* its socket may be here already: it may have called first */
    w->ways[peer].is_wanted = true;
    return WEFT_OK;
}

/* Whether a process of this user is at the other end. */
static bool is_one_of_us(int socket) {
    struct ucred who;
    socklen_t    bytes = sizeof who;
    return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &bytes) == 0 && who.uid == geteuid();
}

/* Calls a lower rank; again later, where it has no room for callers now. */
static void call(wire *w, int32_t peer) {
    way *to = &w->ways[peer];
    int  called = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (called >= 0 && connect(called, (struct sockaddr *)&to->name, sizeof to->name) == 0 && is_one_of_us(called) &&
        send(called, &w->rank, sizeof w->rank, MSG_NOSIGNAL) == sizeof w->rank)
        to->socket = called;
    else if (called >= 0)
        close(called);
}

/* Looks at who calls, one at a time. */
static void answer(wire *w) {
    int32_t rank = -1;
    if (w->caller < 0 && (w->caller = accept4(w->listener, NULL, NULL, SOCK_CLOEXEC)) < 0) return;
    bool ours = is_one_of_us(w->caller);
    if (ours && recv(w->caller, &rank, sizeof rank, MSG_DONTWAIT) < 0 && errno == EAGAIN) return;
    if (ours && rank > w->rank && rank < w->size && w->ways[rank].socket < 0)
        w->ways[rank].socket = w->caller;
    else
        close(w->caller); /* a stranger, or a rank that is here already */
    w->caller = -1;
}

static void progress(void *self) {
    wire *w = self;
    for (int32_t peer = 0; peer < w->rank; peer++)
        if (w->ways[peer].is_wanted && w->ways[peer].socket < 0) call(w, peer);
    answer(w);
}

static weft_wire_link link_state(void *self, int32_t peer) {
    const wire *w = self;
    return w->ways[peer].socket >= 0 ? WEFT_WIRE_UP : WEFT_WIRE_CONNECTING;
}

static weft_status send_bytes(void *self, int32_t peer, const void *bytes, size_t count, size_t *sent_out) {
    const wire *w = self;
    ssize_t     sent = send(w->ways[peer].socket, bytes, count, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN || errno == EINTR ? WEFT_E_AGAIN : WEFT_E_LINK;
    *sent_out = (size_t)sent;
    return WEFT_OK;
}

static weft_status receive_bytes(void *self, int32_t peer, void *bytes, size_t most, size_t *received_out) {
    const wire *w = self;
    ssize_t     got = recv(w->ways[peer].socket, bytes, most, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return WEFT_E_AGAIN;
    if (got <= 0) return WEFT_E_LINK;
    *received_out = (size_t)got;
    return WEFT_OK;
}

const weft_wire_kind local_wire = {
    .name = "local",
    .same_host = true,
    .open = open_wire,
    .address = address,
    .connect = connect_to,
    .progress = progress,
    .link = link_state,
    .send = send_bytes,
    .receive = receive_bytes,
    .close = close_wire,
};

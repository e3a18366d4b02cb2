/* Doors: listening, and hanging up.
 *
 * Where the process has no descriptor left to accept by, the door rests for a moment instead of waking its thread without end. Cost: an
 * accept and a close a call. */
#include "transport/door.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "transport/handshake.h"

enum { ADDRESS_BYTES = 256, DRAIN_AT_ONCE = 64 }; /* so that heartbeats come in between */
#define REST_NS (100 * WEFTI_MILLISECOND_NS)

struct wefti_door {
    int              socket; /* -1: the network's */
    const wefti_network *network;
    _Atomic int32_t  holders, attended;
    _Atomic uint64_t rests_until_ns;
};

static bool may_listen(const wefti_place *place, const wefti_socket_address *address) {
    return wefti_socket_is_loopback(address) || (place->secret_bytes && wefti_can_authenticate());
}

bool wefti_door_named(int32_t rank, int32_t ranks, wefti_socket_address *address_out, weft_status *status_out) {
    const char *list = getenv("WEFT_DOORS"), *at = list;
    char        text[ADDRESS_BYTES];
    int32_t     count = 1;
    *status_out = WEFT_OK;
    if (!list || !*list) return false;
    for (const char *comma = list; (comma = strchr(comma, ',')); comma++) count++;
    for (int32_t i = 0; i < rank && at; i++) at = (at = strchr(at, ',')) ? at + 1 : NULL;
    size_t length = at ? strcspn(at, ",") : 0;
    if (count != ranks || length == 0 || length >= sizeof text) {
        *status_out = wefti_fail(WEFT_E_INVALID, "WEFT_DOORS lists %d addresses, for %d ranks: it is host:port of each rank, by commas", (int)count, (int)ranks);
        return true;
    }
    snprintf(text, sizeof text, "%.*s", (int)length, at);
    *status_out = wefti_socket_resolve(text, address_out);
    return true;
}

wefti_door *wefti_door_open(const wefti_place *place, const char *interface, wefti_socket_address *address) {
    wefti_door *door = NULL;
    bool        named = address->bytes > 0, found = named;
    if (!named) {
        memset(address, 0, sizeof *address);
        found = wefti_interface_find(interface, address) == WEFT_OK;
        if (found) wefti_socket_set_port(address, 0);
    }
    if (found && may_listen(place, address) && wefti_alloc(sizeof *door, "a rank's door", &door) == WEFT_OK) {
        door->holders = 1;
        if (wefti_socket_listen(address, &door->socket) == WEFT_OK) return door;
    }
    wefti_log(WEFT_LOG_WARNING, "this rank cannot be called after a fault (weft_world_shrink): no door on %s",
              named ? wefti_socket_text(address).text : interface);
    address->bytes = 0;
    wefti_free(door, sizeof *door);
    return NULL;
}

wefti_door *wefti_door_open_network(const wefti_network *network) {
    wefti_door *door = NULL;
    if (!network->listen || wefti_alloc(sizeof *door, "a rank's door", &door) != WEFT_OK) return NULL;
    door->socket = -1;
    door->network = network;
    door->holders = 1;
    network->listen(network->context, true);
    return door;
}

wefti_door *wefti_door_retain(wefti_door *door) {
    atomic_fetch_add(&door->holders, 1);
    return door;
}

void wefti_door_release(wefti_door *door) {
    if (!door || atomic_fetch_sub(&door->holders, 1) > 1) return;
    if (door->network) door->network->listen(door->network->context, false);
    else close(door->socket);
    wefti_free(door, sizeof *door);
}

void wefti_door_attend(wefti_door *door, bool attends) { atomic_fetch_add(&door->attended, attends ? 1 : -1); }

int wefti_door_socket(const wefti_door *door) { return door->socket; }

bool wefti_door_is_open(const wefti_door *door, uint64_t now_ns) {
    return !atomic_load(&door->attended) && now_ns >= atomic_load(&door->rests_until_ns);
}

int wefti_door_descriptor(const wefti_door *door, uint64_t now_ns) { return door && wefti_door_is_open(door, now_ns) ? door->socket : -1; }

void wefti_door_drain(wefti_door *door, uint64_t now_ns) {
    if (wefti_door_is_open(door, now_ns)) wefti_door_hang_up(door, now_ns);
}

int wefti_door_accept(wefti_door *door, uint64_t now_ns) {
    int  caller = wefti_socket_accept(door->socket);
    bool none = caller >= 0 || errno == EAGAIN || errno == EWOULDBLOCK || errno == ECONNABORTED || errno == EINTR;
    if (!none) atomic_store(&door->rests_until_ns, now_ns + REST_NS);
    return caller;
}

static void hang_up_network(const wefti_network *network) {
    int32_t       peer;
    int           purpose;
    wefti_stream *stream;
    while (network->accept(network->context, &peer, &purpose, &stream) == WEFT_OK) stream->ops->close(stream);
}

void wefti_door_hang_up(wefti_door *door, uint64_t now_ns) {
    if (door->network) {
        hang_up_network(door->network);
        return;
    }
    for (int i = 0; i < DRAIN_AT_ONCE; i++) {
        int caller = wefti_door_accept(door, now_ns);
        if (caller < 0) return;
        close(caller);
    }
}

/* Doors: listening, and hanging up.
 *
 * Where the process has no descriptor left to accept by, the door rests for a moment instead of waking its thread without end. Cost: an
 * accept and a close a call. */
#include "transport/door.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "transport/handshake.h"

enum { DRAIN_AT_ONCE = 64 }; /* so that heartbeats come in between */
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

wefti_door *wefti_door_open(const wefti_place *place, const char *interface, wefti_socket_address *address_out) {
    wefti_door *door = NULL;
    memset(address_out, 0, sizeof *address_out);
    if (wefti_alloc(sizeof *door, "a rank's door", &door) == WEFT_OK && wefti_interface_find(interface, address_out) == WEFT_OK &&
        may_listen(place, address_out)) {
        wefti_socket_set_port(address_out, 0);
        door->holders = 1;
        if (wefti_socket_listen(address_out, &door->socket) == WEFT_OK) return door;
    }
    wefti_log(WEFT_LOG_WARNING, "this rank cannot be called after a fault (weft_world_shrink): no door on %s", interface);
    address_out->bytes = 0;
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

static bool is_open(const wefti_door *door, uint64_t now_ns) {
    return !atomic_load(&door->attended) && now_ns >= atomic_load(&door->rests_until_ns);
}

int wefti_door_descriptor(const wefti_door *door, uint64_t now_ns) { return door && is_open(door, now_ns) ? door->socket : -1; }

void wefti_door_drain(wefti_door *door, uint64_t now_ns) {
    if (is_open(door, now_ns)) wefti_door_hang_up(door, now_ns);
}

static void hang_up_network(const wefti_network *network) {
    int32_t       peer;
    wefti_stream *stream;
    while (network->accept(network->context, &peer, &stream) == WEFT_OK) stream->ops->close(stream);
}

void wefti_door_hang_up(wefti_door *door, uint64_t now_ns) {
    if (door->network) {
        hang_up_network(door->network);
        return;
    }
    for (int i = 0; i < DRAIN_AT_ONCE; i++) {
        int caller = wefti_socket_accept(door->socket);
        if (caller < 0) {
            bool none = errno == EAGAIN || errno == EWOULDBLOCK || errno == ECONNABORTED || errno == EINTR;
            if (!none) atomic_store(&door->rests_until_ns, now_ns + REST_NS);
            return;
        }
        close(caller);
    }
}

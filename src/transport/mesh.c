/* Dialling, listening and proving, for the wires that meet over TCP. Everything is non-blocking and driven by service. A stranger costs
 * a slot for at most the handshake's limit; where all slots are taken the oldest gives way. Memory: a call for each
 * rank, and 64 guests. */
#include "transport/mesh.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define REDIAL_NS (5 * WEFTI_MILLISECOND_NS)
#define SERVICE_NS (WEFTI_MILLISECOND_NS / 2)
#define ADDRESS_MAGIC UINT64_C(0x5043543146544557)

typedef struct mesh_address {
    uint64_t             magic;
    wefti_socket_address socket;
    uint8_t              cookie[WEFTI_COOKIE_BYTES];
} mesh_address;
_Static_assert(sizeof(mesh_address) <= WEFTI_WIRE_ADDRESS_BYTES, "an address fits");

weft_status wefti_mesh_address(const wefti_mesh *mesh, void *address_out, size_t *bytes_out) {
    mesh_address address = {.magic = ADDRESS_MAGIC, .socket = mesh->address};
    memcpy(address.cookie, mesh->cookie, sizeof address.cookie);
    memcpy(address_out, &address, sizeof address);
    *bytes_out = sizeof address;
    return WEFT_OK;
}

weft_status wefti_mesh_connect(wefti_mesh *mesh, int32_t peer, const void *bytes, size_t size_bytes) {
    const char  *name = mesh->wire->can.name;
    mesh_address address;
    if (peer < 0 || peer >= mesh->wire->size)
        return wefti_fail(WEFT_E_INVALID, "%s: there is no rank %d among %d", name, (int)peer, (int)mesh->wire->size);
    if (size_bytes != sizeof address || (memcpy(&address, bytes, sizeof address), address.magic != ADDRESS_MAGIC))
        return wefti_fail(WEFT_E_CORRUPT, "%s: the address of rank %d is none of this wire", name, (int)peer);
    wefti_mesh_call *call = &mesh->calls[peer];
    if (call->state != WEFTI_MESH_IDLE || peer == mesh->wire->rank) return WEFT_OK;
    call->address = address.socket;
    memcpy(call->cookie, address.cookie, sizeof call->cookie);
    call->terms = mesh->terms;
    call->terms.cookie = call->cookie;
    call->state = WEFTI_MESH_WANTED;
    mesh->settled = false;
    return WEFT_OK;
}

/* --- dialling --- */

static void hang_up(wefti_mesh_call *call, uint64_t now_ns) {
    close(call->socket);
    call->socket = -1;
    call->connected = false;
    call->redial_ns = now_ns + REDIAL_NS;
}

static void refuse(wefti_mesh *mesh, int32_t peer, int socket) {
    close(socket);
    mesh->calls[peer].state = WEFTI_MESH_OVER;
    wefti_log(WEFT_LOG_ERROR, "%s: rank %d cannot be joined: %s", mesh->wire->can.name, (int)peer, weft_error_message());
    mesh->refused(mesh->context, peer);
}

static void join(wefti_mesh *mesh, int32_t peer, int socket, wefti_handshake *shake) {
    wefti_seal *seal = NULL;
    if (wefti_seal_create(shake, &seal) != WEFT_OK) {
        refuse(mesh, peer, socket);
        return;
    }
    mesh->calls[peer].state = WEFTI_MESH_OVER;
    mesh->joined(mesh->context, peer, socket, seal);
}

static void dial(wefti_mesh *mesh, int32_t peer, uint64_t now_ns) {
    wefti_mesh_call *call = &mesh->calls[peer];
    if (call->socket < 0) {
        if (now_ns < call->redial_ns) return;
        if (wefti_socket_dial(&call->address, &call->socket) != WEFT_OK) {
            call->socket = -1;
            call->redial_ns = now_ns + REDIAL_NS;
            return;
        }
    }
    if (!call->connected) {
        weft_status status = wefti_socket_connected(call->socket);
        if (status == WEFT_OK) status = wefti_handshake_call(&call->shake, &call->terms, call->socket, peer, now_ns);
        if (status != WEFT_OK) {
            if (status != WEFT_E_AGAIN) hang_up(call, now_ns);
            return;
        }
        call->connected = true;
    }
    weft_status status = wefti_handshake_progress(&call->shake, now_ns);
    if (status == WEFT_E_AGAIN) return;
    if (status == WEFT_E_LINK || status == WEFT_E_TIMEOUT) {
        hang_up(call, now_ns);
        return;
    }
    int socket = call->socket;
    call->socket = -1;
    if (status == WEFT_OK)
        join(mesh, peer, socket, &call->shake);
    else
        refuse(mesh, peer, socket);
}

/* --- being called --- */

static weft_status admit(void *context, int32_t rank) {
    const wefti_mesh *mesh = context;
    if (rank < mesh->wire->rank) return WEFT_E_EXISTS; /* those are dialled from here */
    switch (mesh->calls[rank].state) {
    case WEFTI_MESH_IDLE: return WEFT_E_AGAIN;
    case WEFTI_MESH_WANTED: return WEFT_OK;
    default: return WEFT_E_EXISTS;
    }
}

static void drop_guest(wefti_mesh *mesh, wefti_mesh_guest *guest) {
    close(guest->socket);
    guest->socket = -1;
    mesh->strangers++;
}

static void accept_guests(wefti_mesh *mesh, uint64_t now_ns) {
    for (int i = 0; i < WEFTI_MESH_GUESTS; i++) {
        int accepted = wefti_socket_accept(mesh->listener);
        if (accepted < 0) return;
        wefti_mesh_guest *place = &mesh->guests[0];
        for (int g = 0; g < WEFTI_MESH_GUESTS && place->socket >= 0; g++)
            if (mesh->guests[g].socket < 0 || mesh->guests[g].shake.deadline_ns < place->shake.deadline_ns)
                place = &mesh->guests[g];
        if (place->socket >= 0) drop_guest(mesh, place); /* full: the oldest gives way */
        place->socket = accepted;
        if (wefti_handshake_answer(&place->shake, &mesh->terms, accepted, now_ns) != WEFT_OK) drop_guest(mesh, place);
    }
}

static void hear_guests(wefti_mesh *mesh, uint64_t now_ns) {
    for (int i = 0; i < WEFTI_MESH_GUESTS; i++) {
        wefti_mesh_guest *guest = &mesh->guests[i];
        if (guest->socket < 0) continue;
        weft_status status = wefti_handshake_progress(&guest->shake, now_ns);
        if (status == WEFT_E_AGAIN) continue;
        if (status == WEFT_OK && mesh->calls[guest->shake.peer].state == WEFTI_MESH_WANTED) {
            int socket = guest->socket;
            guest->socket = -1;
            join(mesh, guest->shake.peer, socket, &guest->shake);
            continue;
        }
        if (status == WEFT_E_LINK) mesh->strangers--; /* came too early, not from outside */
        drop_guest(mesh, guest);
    }
}

void wefti_mesh_service(wefti_mesh *mesh, uint64_t now_ns) {
    if (now_ns - mesh->served_ns < (mesh->settled ? SERVICE_NS * 20 : SERVICE_NS)) return;
    mesh->served_ns = now_ns;
    bool settled = true;
    for (int32_t peer = 0; peer < mesh->wire->size; peer++) {
        if (mesh->calls[peer].state == WEFTI_MESH_WANTED && peer < mesh->wire->rank) dial(mesh, peer, now_ns);
        settled = settled && mesh->calls[peer].state != WEFTI_MESH_WANTED;
    }
    accept_guests(mesh, now_ns);
    hear_guests(mesh, now_ns);
    mesh->settled = settled;
}

/* --- opening and closing --- */

static weft_status listen_at(wefti_mesh *mesh, const wefti_wire_options *options) {
    const char *name = mesh->wire->can.name;
    const char *interface = options->interface && *options->interface ? options->interface : "127.0.0.1";
    char        list[WEFTI_INTERFACES_BYTES];
    WEFTI_TRY(wefti_interface_find(interface, &mesh->address));
    static const struct in6_addr any;
    const struct sockaddr_in    *four = (const struct sockaddr_in *)&mesh->address.storage;
    const struct sockaddr_in6   *six = (const struct sockaddr_in6 *)&mesh->address.storage;
    if (mesh->address.storage.ss_family == AF_INET ? four->sin_addr.s_addr == 0 : !memcmp(&six->sin6_addr, &any, sizeof any)) {
        wefti_interface_list(list, sizeof list);
        return wefti_fail(WEFT_E_INVALID, "%s: '%s' is every interface; name the one, or its address, by which the others reach this host; there "
                          "are: %s", name, interface, list);
    }
    WEFTI_TRY(wefti_interface_check(&mesh->address));
    if (!wefti_socket_is_loopback(&mesh->address) && (!mesh->terms.secret_bytes || !wefti_can_authenticate()))
        return wefti_fail(WEFT_E_AUTH, "%s: '%s' is not loopback, which demands a secret: %s", name, interface,
                          wefti_can_authenticate() ? "set WEFT_SECRET or WEFT_SECRET_FILE on every rank"
                                                   : "but this build lacks libsodium");
    WEFTI_TRY(wefti_socket_listen(&mesh->address, &mesh->listener));
    return mesh->terms.host->random(mesh->terms.host->context, mesh->cookie, sizeof mesh->cookie);
}

weft_status wefti_mesh_open(wefti_mesh *mesh, const wefti_wire *wire, const wefti_wire_options *options) {
    mesh->wire = wire;
    mesh->listener = -1;
    for (int i = 0; i < WEFTI_MESH_GUESTS; i++) mesh->guests[i].socket = -1;
    WEFTI_TRY(wefti_alloc((size_t)wire->size * sizeof *mesh->calls, "calls to peers", &mesh->calls));
    for (int32_t peer = 0; peer < wire->size; peer++) mesh->calls[peer].socket = -1;
    snprintf(mesh->job, sizeof mesh->job, "%s", options->job ? options->job : "");
    if (options->secret_bytes > sizeof mesh->secret)
        return wefti_fail(WEFT_E_INVALID, "%s: a secret of %zu bytes; at most %zu", wire->can.name, options->secret_bytes,
                          sizeof mesh->secret);
    if (options->secret_bytes) memcpy(mesh->secret, options->secret, options->secret_bytes);
    mesh->terms = (wefti_terms){.host = wire->host, .purpose = WEFTI_FOR_WIRE, .rank = wire->rank, .size = wire->size,
                                .epoch = options->epoch, .job = mesh->job, .cookie = mesh->cookie, .secret = mesh->secret,
                                .secret_bytes = options->secret_bytes, .encrypt = options->encrypt, .admit = admit,
                                .context = mesh};
    WEFTI_TRY(wefti_can_encrypt(options->encrypt, options->secret_bytes));
    return listen_at(mesh, options);
}

void wefti_mesh_close(wefti_mesh *mesh) {
    if (!mesh->wire) return;
    for (int i = 0; i < WEFTI_MESH_GUESTS; i++)
        if (mesh->guests[i].socket >= 0) close(mesh->guests[i].socket);
    for (int32_t peer = 0; mesh->calls && peer < mesh->wire->size; peer++)
        if (mesh->calls[peer].socket >= 0) close(mesh->calls[peer].socket);
    if (mesh->listener >= 0) close(mesh->listener);
    wefti_free(mesh->calls, (size_t)mesh->wire->size * sizeof *mesh->calls);
    explicit_bzero(mesh->secret, sizeof mesh->secret);
    mesh->wire = NULL;
}

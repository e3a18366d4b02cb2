/* The rendezvous over MPI: what the ranks need to meet at the control channel's store goes over MPI itself, so that mpirun and
 * srun need no address, no port and no secret from the user.
 *
 * Two collectives: everyone says its rank and host, so that all see whether one host holds them all and which process is rank
 * 0; rank 0 then listens, on loopback or on an address of its own, and broadcasts where, a fresh secret and the job's name. */
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "transport/handshake.h"
#include "transport/meet_mpi.h"
#include "transport/socket.h"
#include "transport/wire_mpi_api.h"

typedef struct presence {
    int32_t  rank, size;
    uint64_t host;
} presence;

typedef struct invitation {
    uint32_t status;
    char     cause[300]; /* of rank 0, where it cannot */
    char     store[256], job[64];
    uint8_t  secret[64];
    uint64_t secret_bytes;
} invitation;

/* Waits for a collective, at most until the deadline. */
static weft_status finish(const wefti_mpi *mpi, const wefti_host *host, wefti_mpi_request *request, int code, uint64_t deadline_ns) {
    wefti_mpi_status status = {0};
    char             text[WEFTI_MPI_TEXT_BYTES];
    bool             done = false;
    while (code == 0 && !done) {
        if (!wefti_mpi_lock(true)) return wefti_fail(WEFT_E_STATE, "mpi: the program's MPI may not be called from this thread");
        code = mpi->api->test(request, &done, &status);
        wefti_mpi_unlock();
        if (done) code = status.error;
        if (code == 0 && !done && wefti_host_now(host) >= deadline_ns) {
            wefti_mpi_poison("the ranks did not meet in time, and MPI still waits for them");
            return wefti_fail(WEFT_E_TIMEOUT, "mpi: the %d processes that MPI started did not all come to make the world in time",
                              mpi->facts.size);
        }
        if (code == 0 && !done) host->sleep(host->context, WEFTI_MILLISECOND_NS / 10);
    }
    if (code == 0) return WEFT_OK;
    mpi->api->error_text(code, text, sizeof text);
    return wefti_fail(WEFT_E_LINK, "mpi: the ranks cannot meet: %s", text);
}

/* Which process is rank 0; checks that ranks and processes are the same many. */
static weft_status find_root(const wefti_mpi *mpi, const wefti_place *place, const presence *all, int *root_out, bool *one_host_out) {
    *root_out = -1;
    *one_host_out = true;
    for (int i = 0; i < mpi->facts.size; i++) {
        if (all[i].size != place->size)
            return wefti_fail(WEFT_E_MISMATCH, "mpi: this rank is of a world of %d, and process %d of MPI says %d", (int)place->size, i,
                              (int)all[i].size);
        if (all[i].rank == 0) *root_out = i;
        *one_host_out = *one_host_out && all[i].host == all[0].host;
    }
    return *root_out >= 0 ? WEFT_OK : wefti_fail(WEFT_E_MISMATCH, "mpi: no process of MPI is rank 0");
}

/* An address of this host that others reach: that of its name where it is one of ours, else the first that is up. */
static weft_status pick_interface(char *text_out, size_t text_bytes) {
    struct ifaddrs  *list = NULL;
    struct addrinfo *named = NULL, hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
    char             name[256] = "";
    in_addr_t        best = 0;
    if (getifaddrs(&list) != 0) return wefti_fail_errno("mpi: cannot list this host's interfaces");
    if (gethostname(name, sizeof name - 1) == 0) (void)getaddrinfo(name, NULL, &hints, &named);
    for (const struct ifaddrs *at = list; at; at = at->ifa_next) {
        if (!at->ifa_addr || at->ifa_addr->sa_family != AF_INET || !(at->ifa_flags & IFF_UP) || (at->ifa_flags & IFF_LOOPBACK)) continue;
        in_addr_t address = ((const struct sockaddr_in *)(const void *)at->ifa_addr)->sin_addr.s_addr;
        for (const struct addrinfo *is = named; is; is = is->ai_next)
            if (((const struct sockaddr_in *)(const void *)is->ai_addr)->sin_addr.s_addr == address) best = address;
        if (!best) best = address;
    }
    if (named) freeaddrinfo(named);
    freeifaddrs(list);
    if (!best)
        return wefti_fail(WEFT_E_NOT_FOUND, "mpi: rank 0's host has no interface but loopback, and the ranks are on several hosts: set "
                          "WEFT_INTERFACE to an address by which they reach it");
    return inet_ntop(AF_INET, &best, text_out, (socklen_t)text_bytes) ? WEFT_OK : wefti_fail_errno("mpi: an address in words");
}

/* What rank 0 does: listens, and writes the invitation. */
static weft_status invite(wefti_place *place, const wefti_host *host, bool one_host, invitation *all) {
    char                 interface[64] = "127.0.0.1";
    wefti_socket_address address;
    if (place->interface[0])
        snprintf(interface, sizeof interface, "%s", place->interface);
    else if (!one_host)
        WEFTI_TRY(pick_interface(interface, sizeof interface));
    WEFTI_TRY(wefti_interface_find(interface, &address));
    if (!wefti_socket_is_loopback(&address) && !wefti_can_authenticate())
        return wefti_fail(WEFT_E_AUTH, "mpi: the ranks are on several hosts, which demands a secret, and this build lacks libsodium");
    if (place->secret_bytes == 0 && wefti_can_authenticate()) {
        place->secret_bytes = 32;
        WEFTI_TRY(host->random(host->context, place->secret, place->secret_bytes));
    }
    WEFTI_TRY(wefti_socket_listen(&address, &place->store_descriptor));
    snprintf(all->store, sizeof all->store, "%s", wefti_socket_text(&address).text);
    snprintf(all->job, sizeof all->job, "%s", place->job);
    memcpy(all->secret, place->secret, place->secret_bytes);
    all->secret_bytes = place->secret_bytes;
    return WEFT_OK;
}

static weft_status accept_invitation(wefti_place *place, const invitation *all, int root) {
    if (all->status != WEFT_OK)
        return wefti_fail(all->status < WEFT_STATUS_COUNT ? (weft_status)all->status : WEFT_E_PEER, "rank 0 (process %d of MPI) cannot "
                          "receive the others: %.299s", root, all->cause);
    if (all->secret_bytes > sizeof place->secret || !memchr(all->store, 0, sizeof all->store) || !memchr(all->job, 0, sizeof all->job))
        return wefti_fail(WEFT_E_CORRUPT, "mpi: rank 0's invitation is none: build all ranks from the same Weft");
    memcpy(place->store, all->store, sizeof all->store);
    memcpy(place->job, all->job, sizeof all->job);
    memcpy(place->secret, all->secret, all->secret_bytes);
    place->secret_bytes = all->secret_bytes;
    place->store_ports = 1;
    return WEFT_OK;
}

static weft_status gather(const wefti_mpi *mpi, const wefti_host *host, const presence *mine, presence *all, uint64_t deadline_ns) {
    wefti_mpi_request request;
    if (!wefti_mpi_lock(true)) return wefti_fail(WEFT_E_STATE, "mpi: the program's MPI may not be called from this thread");
    int code = mpi->api->collective(NULL, &(wefti_mpi_call){.kind = WEFTI_ALLGATHER, .element_bytes = 1, .send = mine, .receive = all,
                                                            .count = sizeof *mine}, &request);
    wefti_mpi_unlock();
    return finish(mpi, host, &request, code, deadline_ns);
}

static weft_status broadcast(const wefti_mpi *mpi, const wefti_host *host, invitation *all, int root, uint64_t deadline_ns) {
    wefti_mpi_request request;
    if (!wefti_mpi_lock(true)) return wefti_fail(WEFT_E_STATE, "mpi: the program's MPI may not be called from this thread");
    int code = mpi->api->collective(NULL, &(wefti_mpi_call){.kind = WEFTI_BROADCAST, .element_bytes = 1, .root = root, .receive = all,
                                                            .count = sizeof *all}, &request);
    wefti_mpi_unlock();
    return finish(mpi, host, &request, code, deadline_ns);
}

static weft_status meet(const wefti_mpi *mpi, wefti_place *place, const wefti_host *host, uint64_t host_number, uint64_t timeout_ns) {
    if (mpi->facts.size != place->size)
        return wefti_fail(WEFT_E_MISMATCH, "mpi: %s says %d ranks, and MPI (%s) has %d process%s: start the program with the launcher of that "
                          "MPI", place->launcher, (int)place->size, mpi->facts.version, mpi->facts.size,
                          mpi->facts.size == 1 ? "" : "es");
    uint64_t   deadline_ns = wefti_deadline_after(wefti_host_now(host), timeout_ns);
    presence   mine = {place->rank, place->size, host_number}, *all = NULL;
    size_t     all_bytes = (size_t)mpi->facts.size * sizeof *all;
    invitation letter = {0};
    int        root = -1;
    bool       one_host = false;
    WEFTI_TRY(wefti_alloc(all_bytes, "who is where", &all));
    weft_status status = gather(mpi, host, &mine, all, deadline_ns);
    if (status == WEFT_OK) status = find_root(mpi, place, all, &root, &one_host);
    wefti_free(all, all_bytes);
    WEFTI_TRY(status);
    if (place->rank == 0 && (status = invite(place, host, one_host, &letter)) != WEFT_OK) {
        letter.status = (uint32_t)status;
        snprintf(letter.cause, sizeof letter.cause, "%s", weft_error_message());
    }
    weft_status sent = broadcast(mpi, host, &letter, root, deadline_ns);
    if (status == WEFT_OK) status = sent;
    if (status == WEFT_OK) status = accept_invitation(place, &letter, root);
    explicit_bzero(&letter, sizeof letter);
    return status;
}

weft_status wefti_meet_by_mpi(wefti_place *place, const wefti_host *host, uint64_t host_number, uint64_t timeout_ns) {
    const wefti_mpi *mpi = NULL;
    WEFTI_TRY(wefti_mpi_start(&mpi));
    weft_status status = meet(mpi, place, host, host_number, timeout_ns);
    if (status != WEFT_OK) wefti_mpi_leave(false);
    return status;
}

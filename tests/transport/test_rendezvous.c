/* Meeting: ranks that agree, ranks that do not, and strangers at the door. */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ranks.h"
#include "transport/handshake.h"
#include "transport/socket.h"

#define SECRET "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

/* Opens, passes a number round the ring by the wire, exchanges, closes. */
static weft_status meet_with(const wefti_transport_options *options, int32_t rank) {
    wefti_transport *transport = NULL;
    WEFTI_TRY(wefti_transport_open(options, &transport));
    int32_t       size = transport->size, from = (rank + size - 1) % size, got = -1, mine = rank * 7, all[RANKS_MOST];
    weft_status   status = WEFT_OK;
    wefti_wire_op recv = wefti_wire_recv(from, WEFTI_TAG_TEST, &got, sizeof got);
    wefti_wire_op send = wefti_wire_send((rank + 1) % size, WEFTI_TAG_TEST, &mine, sizeof mine);
    recv.flags = send.flags = WEFTI_WIRE_SILENT;
    if (transport->rank != rank || (size > 1 && !transport->wire))
        status = wefti_fail(WEFT_E_INTERNAL, "rank %d of %d", (int)transport->rank, (int)size);
    if (size > 1 && status == WEFT_OK) {
        status = wefti_wire_post(transport->wire, &recv);
        if (status == WEFT_OK) status = wefti_wire_post(transport->wire, &send);
        while (status == WEFT_OK && !(recv.done && send.done)) {
            status = wefti_wire_progress(transport->wire, wefti_host_now(transport->host));
            if (status == WEFT_OK) status = wefti_fault_status(transport->fault);
        }
        if (status == WEFT_OK && got != from * 7) status = wefti_fail(WEFT_E_INTERNAL, "got %d from %d", (int)got, (int)from);
    }
    for (int round = 0; round < 3 && status == WEFT_OK; round++) {
        status = wefti_transport_exchange(transport, "numbers", &mine, sizeof mine, all);
        for (int32_t peer = 0; peer < size && status == WEFT_OK; peer++)
            if (all[peer] != peer * 7) status = wefti_fail(WEFT_E_INTERNAL, "exchange gave %d of %d", (int)all[peer], (int)peer);
    }
    if (status == WEFT_OK && transport->local_size != size)
        status = wefti_fail(WEFT_E_INTERNAL, "%d ranks on this host", (int)transport->local_size);
    wefti_transport_close(transport);
    weft_memory_counts counts;
    weft_memory_read(&counts);
    if (status == WEFT_OK && counts.held_bytes) status = wefti_fail(WEFT_E_INTERNAL, "%llu bytes are left",
                                                                    (unsigned long long)counts.held_bytes);
    return status;
}

static weft_status meet(ranks *all, int32_t rank) {
    (void)all;
    return meet_with(NULL, rank);
}

static void expect_all_well(ranks *all) {
    for (int32_t rank = 0; rank < all->size; rank++)
        cr_expect(atomic_load(&all->results[rank].finished) && all->results[rank].status == WEFT_OK, "rank %d: %s: %s",
                  (int)rank, weft_status_name(all->results[rank].status), all->results[rank].message);
}

static void meet_well(int32_t size, rank_function function) {
    ranks *all = ranks_start(size, function);
    ranks_join(all);
    expect_all_well(all);
    ranks_free(all);
}

static weft_status meet_over_tcp(ranks *all, int32_t rank) {
    (void)all;
    return meet_with(&(wefti_transport_options){.wire = "tcp"}, rank);
}
static weft_status meet_without_threads(ranks *all, int32_t rank) {
    (void)all;
    return meet_with(&(wefti_transport_options){.no_control_thread = true}, rank);
}
static weft_status meet_late(ranks *all, int32_t rank) {
    if (rank == 0) usleep(300000); /* the others dial before there is anybody */
    return meet(all, rank);
}
static weft_status meet_by_program(ranks *all, int32_t rank) {
    for (const char *const *name = (const char *const[]){"WEFT_RANK", "WEFT_WORLD_SIZE", "WEFT_STORE", NULL}; *name; name++)
        unsetenv(*name);
    return meet_with(&(wefti_transport_options){.rank = rank, .size = all->size, .store = all->store}, rank);
}

Test(rendezvous, ranks_meet) {
    for (int32_t size = 1; size <= 4; size++) meet_well(size, meet);
}
Test(rendezvous, ranks_meet_over_tcp) {
    meet_well(2, meet_over_tcp);
    meet_well(4, meet_over_tcp);
}
Test(rendezvous, ranks_meet_without_control_threads) { meet_well(3, meet_without_threads); }
Test(rendezvous, ranks_meet_when_rank_0_comes_late) { meet_well(3, meet_late); }
Test(rendezvous, ranks_meet_by_program) { meet_well(3, meet_by_program); }
Test(rendezvous, ranks_meet_with_a_secret) {
    setenv("WEFT_SECRET", SECRET, 1);
    meet_well(3, meet);
    meet_well(3, meet_over_tcp);
}


static weft_status meet_encrypted(ranks *all, int32_t rank) {
    (void)all;
    return meet_with(&(wefti_transport_options){.wire = rank % 2 ? "tcp" : NULL, .encrypt = true}, rank);
}
Test(rendezvous, ranks_meet_encrypted) {
    if (!wefti_can_authenticate()) cr_skip_test("this build lacks libsodium");
    setenv("WEFT_SECRET", SECRET, 1);
    setenv("WEFT_WIRE", "tcp", 1);
    meet_well(2, meet_encrypted);
    meet_well(4, meet_encrypted);
    setenv("WEFT_ENCRYPT", "1", 1);
    meet_well(3, meet_over_tcp);
    setenv("WEFT_WIRE", "shm", 1); /* stays inside this host; the control channel is encrypted */
    meet_well(3, meet);
}

/* A launcher that listens before it starts rank 0, so that nobody can take the port between. */
Test(rendezvous, rank_0_takes_over_a_listening_socket) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t          length = sizeof address;
    int                listener = socket(AF_INET, SOCK_STREAM, 0);
    char               text[64];
    cr_assert(bind(listener, (struct sockaddr *)&address, length) == 0 && listen(listener, 16) == 0);
    getsockname(listener, (struct sockaddr *)&address, &length);
    snprintf(text, sizeof text, "127.0.0.1:%d", ntohs(address.sin_port));
    setenv("WEFT_STORE", text, 1);
    snprintf(text, sizeof text, "%d", listener);
    setenv("WEFT_STORE_FD", text, 1);
    meet_well(3, meet);
    close(listener);
}

/* --- ranks that do not agree --- */

static void expect_all_fail(ranks *all, weft_status status, const char *words) {
    for (int32_t rank = 0; rank < all->size; rank++) {
        const rank_result *result = &all->results[rank];
        cr_expect(atomic_load(&result->finished) && result->status == status && strstr(result->message, words),
                  "rank %d%s: %s: %s (expected %s with '%s')", (int)rank,
                  atomic_load(&result->finished) ? "" : " (not finished)", weft_status_name(result->status), result->message,
                  weft_status_name(status), words);
    }
}

static weft_status with_another_size(ranks *all, int32_t rank) {
    if (rank == 1) setenv("WEFT_WORLD_SIZE", "3", 1);
    return meet(all, rank);
}
Test(rendezvous, names_sizes_that_disagree) {
    ranks *all = ranks_start(2, with_another_size);
    ranks_join(all);
    expect_all_fail(all, WEFT_E_MISMATCH, "2 ranks");
    expect_all_fail(all, WEFT_E_MISMATCH, "3 ranks");
    ranks_free(all);
}

/* A program that says itself how many there are, under a launcher that says something else; also one that started it alone. */
Test(rendezvous, names_a_launcher_that_disagrees_with_the_program) {
    static const struct { const char *rank, *size; } launchers[] = {{"1", "4"}, {"0", "2"}, {"0", "1"}};
    for (size_t i = 0; i < WEFTI_COUNT(launchers); i++) {
        wefti_transport *transport = NULL;
        char             store[64], words[64];
        ranks_pick_store(store);
        setenv("WEFT_RANK", launchers[i].rank, 1);
        setenv("WEFT_WORLD_SIZE", launchers[i].size, 1);
        snprintf(words, sizeof words, "(weftrun) rank %s of %s", launchers[i].rank, launchers[i].size);
        weft_status status = wefti_transport_open(
            &(wefti_transport_options){.rank = 1, .size = 2, .store = store, .timeout_ns = WEFTI_SECOND_NS}, &transport);
        cr_expect_eq(status, WEFT_E_MISMATCH, "%s", weft_error_message());
        cr_expect(strstr(weft_error_message(), "the program says rank 1 of 2") && strstr(weft_error_message(), words), "%s",
                  weft_error_message());
        cr_expect_null(transport);
        wefti_transport_close(transport);
    }
}

static weft_status with_wrong_secret(ranks *all, int32_t rank) {
    setenv("WEFT_SECRET", rank == 1 ? "another secret, long enough" : SECRET, 1);
    (void)all;
    return meet_with(&(wefti_transport_options){.timeout_ns = 2 * WEFTI_SECOND_NS}, rank);
}
static weft_status with_no_secret(ranks *all, int32_t rank) {
    if (rank != 1) setenv("WEFT_SECRET", SECRET, 1);
    (void)all;
    return meet_with(&(wefti_transport_options){.timeout_ns = 2 * WEFTI_SECOND_NS}, rank);
}
static weft_status with_secret_alone(ranks *all, int32_t rank) {
    if (rank == 1) setenv("WEFT_SECRET", SECRET, 1);
    (void)all;
    return meet_with(&(wefti_transport_options){.timeout_ns = 2 * WEFTI_SECOND_NS}, rank);
}
Test(rendezvous, refuses_a_rank_with_a_wrong_secret) {
    static const rank_function cases[] = {with_wrong_secret, with_no_secret, with_secret_alone};
    if (!wefti_can_authenticate()) return;
    for (size_t i = 0; i < WEFTI_COUNT(cases); i++) {
        ranks *all = ranks_start(2, cases[i]);
        ranks_join(all);
        cr_expect_eq(all->results[1].status, WEFT_E_AUTH, "case %zu: %s", i, all->results[1].message);
        cr_expect(strstr(all->results[1].message, "secret"), "%s", all->results[1].message);
        cr_expect_eq(all->results[0].status, WEFT_E_TIMEOUT, "case %zu: %s", i, all->results[0].message);
        cr_expect(strstr(all->results[0].message, "rank 1 of 2 did not come"), "%s", all->results[0].message);
        ranks_free(all);
    }
}

static weft_status with_one_missing(ranks *all, int32_t rank) {
    if (rank == 2) return WEFT_OK;
    (void)all;
    return meet_with(&(wefti_transport_options){.timeout_ns = WEFTI_SECOND_NS}, rank);
}
Test(rendezvous, names_ranks_that_do_not_come) {
    ranks *all = ranks_start(4, with_one_missing);
    ranks_join(all);
    for (int32_t rank = 0; rank < 4; rank++) {
        if (rank == 2) continue;
        cr_expect_eq(all->results[rank].status, WEFT_E_TIMEOUT, "rank %d: %s", (int)rank, all->results[rank].message);
        cr_expect(strstr(all->results[rank].message, "rank 2 of 4 did not come"), "rank %d: %s", (int)rank,
                  all->results[rank].message);
    }
    ranks_free(all);
}

static weft_status without_rank_0(ranks *all, int32_t rank) {
    if (rank == 0) return WEFT_OK;
    (void)all;
    return meet_with(&(wefti_transport_options){.timeout_ns = WEFTI_SECOND_NS / 2}, rank);
}
Test(rendezvous, says_that_rank_0_is_not_there) {
    ranks *all = ranks_start(2, without_rank_0);
    ranks_join(all);
    cr_expect_eq(all->results[1].status, WEFT_E_TIMEOUT);
    cr_expect(strstr(all->results[1].message, all->store) && strstr(all->results[1].message, "rank 0"), "%s",
              all->results[1].message);
    ranks_free(all);
}

static weft_status with_one_number_twice(ranks *all, int32_t rank) {
    if (rank == 2) { /* mostly after the other one */
        usleep(200000);
        setenv("WEFT_RANK", "1", 1);
    }
    (void)all;
    return meet_with(&(wefti_transport_options){.timeout_ns = WEFTI_SECOND_NS}, rank);
}
Test(rendezvous, refuses_a_rank_that_is_there_already) {
    ranks *all = ranks_start(3, with_one_number_twice);
    ranks_join(all);
    /* Whichever of the two comes second. */
    const rank_result *late = &all->results[all->results[1].status == WEFT_E_EXISTS ? 1 : 2];
    cr_expect_eq(late->status, WEFT_E_EXISTS, "%s", late->message);
    cr_expect(strstr(late->message, "WEFT_RANK"), "%s", late->message);
    ranks_free(all);
}

static weft_status at_different_places(ranks *all, int32_t rank) {
    wefti_transport *transport = NULL;
    int32_t          got[RANKS_MOST];
    WEFTI_TRY(wefti_transport_open(NULL, &transport));
    weft_status status = wefti_transport_exchange(transport, rank == 1 ? "plan" : "variables", &rank, sizeof rank, got);
    wefti_transport_close(transport);
    (void)all;
    return status;
}
Test(rendezvous, names_ranks_at_different_places) {
    ranks *all = ranks_start(3, at_different_places);
    ranks_join(all);
    expect_all_fail(all, WEFT_E_MISMATCH, "'plan'");
    expect_all_fail(all, WEFT_E_MISMATCH, "'variables'");
    ranks_free(all);
}

static weft_status with_different_wires(ranks *all, int32_t rank) {
    setenv("WEFT_WIRE", rank == 1 ? "tcp" : "shm", 1);
    return meet(all, rank);
}
Test(rendezvous, names_wires_that_disagree) {
    ranks *all = ranks_start(2, with_different_wires);
    ranks_join(all);
    expect_all_fail(all, WEFT_E_MISMATCH, "'tcp'");
    ranks_free(all);
}

static weft_status with_encryption_on_one(ranks *all, int32_t rank) {
    (void)all;
    return meet_with(&(wefti_transport_options){.encrypt = rank == 1, .timeout_ns = 5 * WEFTI_SECOND_NS}, rank);
}
Test(rendezvous, names_encryption_that_disagrees) {
    if (!wefti_can_authenticate()) cr_skip_test("this build lacks libsodium");
    setenv("WEFT_SECRET", SECRET, 1);
    ranks *all = ranks_start(2, with_encryption_on_one);
    ranks_join(all);
    expect_all_fail(all, WEFT_E_MISMATCH, "WEFT_ENCRYPT");
    ranks_free(all);
}

Test(rendezvous, refuses_encryption_that_cannot_be_had) {
    wefti_transport        *transport = NULL;
    wefti_transport_options options = {.size = 2, .store = "127.0.0.1:1", .encrypt = true};
    weft_status             status = wefti_transport_open(&options, &transport);
    cr_expect_eq(status, wefti_can_authenticate() ? WEFT_E_AUTH : WEFT_E_UNSUPPORTED);
    cr_expect(strstr(weft_error_message(), wefti_can_authenticate() ? "WEFT_SECRET" : "libsodium"), "%s", weft_error_message());
    setenv("WEFT_ENCRYPT", "yes", 1);
    options.encrypt = false;
    cr_expect_eq(wefti_transport_open(&options, &transport), WEFT_E_INVALID);
    cr_expect(strstr(weft_error_message(), "WEFT_ENCRYPT=yes"), "%s", weft_error_message());
}

/* --- the port, the interface, the wire --- */

Test(rendezvous, says_that_the_port_is_taken) {
    char             store[64];
    wefti_transport *transport = NULL;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t          length = sizeof address;
    int                taker = socket(AF_INET, SOCK_STREAM, 0);
    cr_assert(bind(taker, (struct sockaddr *)&address, length) == 0 && listen(taker, 1) == 0);
    getsockname(taker, (struct sockaddr *)&address, &length);
    snprintf(store, sizeof store, "127.0.0.1:%d", ntohs(address.sin_port));
    wefti_transport_options options = {.size = 2, .store = store};
    cr_expect_eq(wefti_transport_open(&options, &transport), WEFT_E_EXISTS);
    cr_expect(strstr(weft_error_message(), store) && strstr(weft_error_message(), "taken"), "%s", weft_error_message());
    cr_expect_null(transport);
    close(taker);
}

Test(rendezvous, demands_a_secret_off_loopback) {
    wefti_transport        *transport = NULL;
    wefti_transport_options options = {.size = 2, .store = "0.0.0.0:0", .timeout_ns = WEFTI_SECOND_NS / 5};
    cr_expect_eq(wefti_transport_open(&options, &transport), WEFT_E_AUTH);
    cr_expect(strstr(weft_error_message(), "secret"), "%s", weft_error_message());
    wefti_wire        *wire = NULL;
    wefti_wire_options wire_options = {.size = 2, .interface = "0.0.0.0"};
    cr_expect_eq(wefti_wire_tcp_open(&wire_options, &wire), WEFT_E_INVALID);
    wire_options.interface = "not-a-host.invalid";
    cr_expect_eq(wefti_wire_tcp_open(&wire_options, &wire), WEFT_E_NOT_FOUND);
    char name[200] = "";
    gethostname(name, sizeof name - 1);
    wire_options.interface = name; /* some address of this host; loopback on some machines, which then works */
    weft_status status = wefti_wire_tcp_open(&wire_options, &wire);
    cr_expect(status == WEFT_E_AUTH || status == WEFT_OK || status == WEFT_E_NOT_FOUND, "%s", weft_error_message());
    if (status == WEFT_OK) wire->ops->close(wire, 0);
}

static void expect_words(const char *const *words) {
    for (; *words; words++) cr_expect(strstr(weft_error_message(), *words), "'%s' is not in: %s", *words, weft_error_message());
}

Test(rendezvous, says_which_interfaces_there_are) {
    static const struct { const char *interface, *reason; weft_status status; } cases[] = {
        {"nowhere.invalid", "neither a network interface nor an address", WEFT_E_NOT_FOUND},
        {"203.0.113.77", "cannot listen on 203.0.113.77:0", WEFT_E_NOT_FOUND}, /* of the block for documentation */
        {"0.0.0.0", "every interface", WEFT_E_INVALID}};
    for (size_t i = 0; i < WEFTI_COUNT(cases); i++) {
        wefti_wire *wire = NULL;
        cr_expect_eq(wefti_wire_tcp_open(&(wefti_wire_options){.size = 2, .interface = cases[i].interface}, &wire), cases[i].status, "%s",
                     weft_error_message());
        expect_words((const char *const[]){cases[i].interface, cases[i].reason, "lo (127.0.0.1", NULL});
    }
    wefti_transport        *transport = NULL;
    wefti_transport_options options = {.size = 2, .store = "203.0.113.77:4711"};
    cr_expect_eq(wefti_transport_open(&options, &transport), WEFT_E_NOT_FOUND);
    expect_words((const char *const[]){"rank 0 cannot serve", "'203.0.113.77:4711'", "WEFT_STORE", "lo (127.0.0.1", NULL});
}

/* Every interface of this host by its name: loopback as it is, another one with a secret, one that is down not at all. */
Test(rendezvous, takes_interfaces_by_name) {
    struct ifaddrs *all = NULL;
    int             loopbacks = 0;
    cr_assert_eq(getifaddrs(&all), 0);
    for (const struct ifaddrs *at = all; at; at = at->ifa_next) {
        wefti_wire        *wire = NULL;
        wefti_wire_options options = {.size = 2, .interface = at->ifa_name};
        weft_status        status = wefti_wire_tcp_open(&options, &wire);
        bool               up = at->ifa_flags & IFF_UP, loopback = at->ifa_flags & IFF_LOOPBACK;
        if (!up) {
            cr_expect(status == WEFT_E_LINK && strstr(weft_error_message(), "is down"), "%s: %s", at->ifa_name, weft_error_message());
        } else if (loopback) {
            cr_expect_eq(status, WEFT_OK, "%s: %s", at->ifa_name, weft_error_message());
            loopbacks++;
        } else if (at->ifa_addr && at->ifa_addr->sa_family == AF_INET) {
            cr_expect(status == WEFT_E_AUTH && strstr(weft_error_message(), "secret"), "%s: %s", at->ifa_name, weft_error_message());
            options.secret = (const uint8_t *)SECRET;
            options.secret_bytes = strlen(SECRET);
            if (wefti_can_authenticate()) status = wefti_wire_tcp_open(&options, &wire);
            if (wefti_can_authenticate()) cr_expect_eq(status, WEFT_OK, "%s: %s", at->ifa_name, weft_error_message());
        }
        if (status == WEFT_OK) wire->ops->close(wire, 0);
    }
    freeifaddrs(all);
    cr_expect_gt(loopbacks, 0);
    setenv("WEFT_INTERFACE", "lo", 1);
    meet_well(2, meet_over_tcp);
}

Test(rendezvous, refuses_bad_options) {
    wefti_transport        *transport = NULL;
    wefti_transport_options options = {.size = 2, .rank = 2, .store = "127.0.0.1:1"};
    cr_expect_eq(wefti_transport_open(&options, &transport), WEFT_E_INVALID);
    options = (wefti_transport_options){.size = 2};
    cr_expect_eq(wefti_transport_open(&options, &transport), WEFT_E_INVALID);
    cr_expect(strstr(weft_error_message(), "WEFT_STORE"), "%s", weft_error_message());
    static const char *const stores[] = {"nowhere", "127.0.0.1:", "127.0.0.1:99999", ":80", "127.0.0.1:8x"};
    for (size_t i = 0; i < WEFTI_COUNT(stores); i++) {
        options = (wefti_transport_options){.size = 2, .store = stores[i]};
        cr_expect_eq(wefti_transport_open(&options, &transport), WEFT_E_INVALID, "%s", stores[i]);
    }
    options = (wefti_transport_options){.size = 2, .store = "127.0.0.1:1", .wire = "pigeon"};
    cr_expect_eq(wefti_transport_open(&options, &transport), WEFT_E_NOT_FOUND);
    cr_expect(strstr(weft_error_message(), "shm, tcp"), "%s", weft_error_message());
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_expect_eq(counts.held_bytes, 0);
    wefti_transport_close(NULL);
}

/* --- strangers --- */

static weft_status meet_after_the_strangers(ranks *all, int32_t rank) {
    if (rank != 0)
        while (atomic_load(&all->step) == 0) usleep(1000);
    return meet(all, rank);
}

static int call(const char *store) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                  .sin_port = htons((uint16_t)atoi(strchr(store, ':') + 1))};
    int stranger = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_geq(stranger, 0, "%s", strerror(errno));
    for (int i = 0; i < 2000; i++) {
        if (connect(stranger, (struct sockaddr *)&address, sizeof address) == 0) return stranger;
        usleep(2000);
    }
    cr_assert_fail("the store does not listen");
    return -1;
}

static bool is_hung_up_on(int stranger) {
    char           byte;
    struct timeval limit = {.tv_sec = 8};
    setsockopt(stranger, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return recv(stranger, &byte, 1, 0) <= 0;
}

Test(rendezvous, strangers_disturb_nothing) {
    ranks *all = ranks_start(3, meet_after_the_strangers);
    static const char http[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n", tls[] = "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    uint8_t garbage[500];
    for (size_t i = 0; i < sizeof garbage; i++) garbage[i] = (uint8_t)(i * 131 + 7);
    int web = call(all->store), secure = call(all->store), noise = call(all->store), half = call(all->store);
    cr_assert(send(web, http, sizeof http - 1, MSG_NOSIGNAL) > 0);
    cr_assert(send(secure, tls, sizeof tls - 1, MSG_NOSIGNAL) > 0);
    cr_assert(send(noise, garbage, sizeof garbage, MSG_NOSIGNAL) > 0);
    cr_assert(send(half, "WEFT\r\n", 6, MSG_NOSIGNAL) > 0); /* begins well, and is silent then */
    cr_expect(is_hung_up_on(web), "HTTP was answered");
    cr_expect(is_hung_up_on(secure), "TLS was answered");
    cr_expect(is_hung_up_on(noise), "garbage was answered");
    enum { MANY = 1000 };
    struct rlimit files;
    cr_assert_eq(getrlimit(RLIMIT_NOFILE, &files), 0);
    files.rlim_cur = files.rlim_max; /* shells often allow 1024 */
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &files), 0);
    static int silent[MANY];
    for (int i = 0; i < MANY; i++) silent[i] = call(all->store);
    atomic_store(&all->step, 1);
    ranks_join(all);
    expect_all_well(all);
    cr_expect(is_hung_up_on(half), "the half handshake is still open");
    for (int i = 0; i < MANY; i++) close(silent[i]);
    close(web), close(secure), close(noise), close(half);
    ranks_free(all);
}

/* A handshake of another job on the same port is none of ours. */
static weft_status of_another_job(ranks *all, int32_t rank) {
    if (rank == 2) setenv("WEFT_JOB", "another job", 1);
    if (rank == 2) setenv("WEFT_RANK", "1", 1);
    if (rank == 2) setenv("WEFT_WORLD_SIZE", "2", 1);
    if (rank != 2) setenv("WEFT_WORLD_SIZE", "2", 1);
    if (rank == 1) usleep(400000);
    (void)all;
    return meet_with(&(wefti_transport_options){.timeout_ns = 2 * WEFTI_SECOND_NS}, rank == 2 ? 1 : rank);
}
Test(rendezvous, a_rank_of_another_job_is_a_stranger) {
    ranks *all = ranks_start(3, of_another_job);
    ranks_join(all);
    cr_expect_eq(all->results[0].status, WEFT_OK, "%s", all->results[0].message);
    cr_expect_eq(all->results[1].status, WEFT_OK, "%s", all->results[1].message);
    cr_expect_eq(all->results[2].status, WEFT_E_TIMEOUT, "%s", all->results[2].message);
    ranks_free(all);
}

/* Where a launcher names no port of ours, a few are tried; what listens on one and speaks another version may be another job's. */
static weft_status stand_in_the_way(ranks *all, uint16_t port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int                listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), told = 0, yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 16) != 0)
        return wefti_fail_errno("port %d", port);
    atomic_store(&all->ready, 1);
    while (!(atomic_load(&all->results[0].finished) && atomic_load(&all->results[1].finished))) {
        uint8_t challenge[WEFTI_CHALLENGE_BYTES] = {'W', 'E', 'F', 'T', '\r', '\n', 0x1a, 1, WEFTI_PROTOCOL_VERSION + 1};
        int     guest = accept(listener, NULL, NULL);
        if (guest >= 0 && send(guest, challenge, sizeof challenge, MSG_NOSIGNAL) == sizeof challenge) told++;
        usleep(1000);
        if (guest >= 0) close(guest);
    }
    close(listener);
    return told ? WEFT_OK : wefti_fail(WEFT_E_STATE, "nobody called");
}

/* --- another version --- */

/* As rank 1 of an older Weft, which calls until it is heard. */
static weft_status call_as_older(ranks *all) {
    wefti_socket_address address;
    wefti_terms          terms = {.host = wefti_host_system(), .purpose = WEFTI_FOR_STORE, .rank = 1, .size = 2, .job = getenv("WEFT_JOB")};
    uint8_t              said[WEFTI_HELLO_BYTES + WEFTI_MAC_BYTES] = {0}; /* without a secret the proof is zeros */
    wefti_handshake      shake;
    (void)!wefti_handshake_call(&shake, &terms, -1, 0, 0);
    memcpy(said, shake.out, WEFTI_HELLO_BYTES);
    said[8] = WEFTI_PROTOCOL_VERSION - 1;
    WEFTI_TRY(wefti_socket_resolve(all->store, &address));
    while (!atomic_load(&all->results[0].finished)) {
        int to = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(to, (struct sockaddr *)&address.storage, address.bytes) == 0 && send(to, said, sizeof said, MSG_NOSIGNAL) > 0) usleep(50000);
        close(to);
        usleep(1000);
    }
    return WEFT_OK;
}
static weft_status beside_an_older_client(ranks *all, int32_t rank) {
    return rank == 1 ? call_as_older(all) : meet_with(&(wefti_transport_options){.timeout_ns = 10 * WEFTI_SECOND_NS}, rank);
}
static weft_status beside_a_newer_server(ranks *all, int32_t rank) {
    if (rank == 0) { /* in the way of nobody but rank 1 */
        atomic_store(&all->results[0].finished, 1);
        return stand_in_the_way(all, (uint16_t)atoi(strchr(all->store, ':') + 1));
    }
    for (int i = 0; i < 5000 && !atomic_load(&all->ready); i++) usleep(1000);
    return meet_with(&(wefti_transport_options){.timeout_ns = 10 * WEFTI_SECOND_NS}, rank);
}
Test(rendezvous, names_a_rank_of_another_version) {
    char  words[100];
    ranks *all = ranks_start(2, beside_an_older_client);
    ranks_join(all);
    snprintf(words, sizeof words, "rank 1 speaks version %d of the protocol, this rank version %d: build all ranks from the same Weft",
             WEFTI_PROTOCOL_VERSION - 1, WEFTI_PROTOCOL_VERSION);
    cr_expect(all->results[0].status == WEFT_E_MISMATCH && strstr(all->results[0].message, words), "%s", all->results[0].message);
    ranks_free(all);
    all = ranks_start(2, beside_a_newer_server);
    ranks_join(all);
    snprintf(words, sizeof words, "rank 0 speaks version %d of the protocol, this rank version %d", WEFTI_PROTOCOL_VERSION + 1, WEFTI_PROTOCOL_VERSION);
    cr_expect(all->results[1].status == WEFT_E_MISMATCH && strstr(all->results[1].message, words), "%s", all->results[1].message);
    ranks_free(all);
}

static weft_status meet_beside_another_version(ranks *all, int32_t rank) {
    char port[16], number[16];
    int  store = atoi(strchr(all->store, ':') + 1);
    if (rank == 2) {
        weft_status status = stand_in_the_way(all, (uint16_t)(store + 1));
        atomic_store(&all->ready, 1); /* or it could not */
        return status;
    }
    snprintf(port, sizeof port, "%d", store);
    snprintf(number, sizeof number, "%d", (int)rank);
    for (const char *const *name = (const char *const[]){"WEFT_RANK", "WEFT_WORLD_SIZE", "WEFT_STORE", "WEFT_JOB", NULL}; *name; name++)
        unsetenv(*name);
    setenv("RANK", number, 1), setenv("LOCAL_RANK", number, 1);
    setenv("WORLD_SIZE", "2", 1), setenv("LOCAL_WORLD_SIZE", "2", 1);
    setenv("MASTER_ADDR", "127.0.0.1", 1), setenv("MASTER_PORT", port, 1);
    for (int i = 0; i < 5000 && !atomic_load(&all->ready); i++) usleep(1000);
    return meet(all, rank);
}
Test(rendezvous, passes_over_another_version_where_ports_are_tried) {
    for (int tries = 0;; tries++) {
        ranks *all = ranks_start(3, meet_beside_another_version);
        ranks_join(all);
        bool taken = strstr(all->results[2].message, "in use") != NULL; /* by another test, which runs beside this one */
        if (!taken || tries == 19) expect_all_well(all);
        ranks_free(all);
        if (!taken || tries == 19) return;
    }
}

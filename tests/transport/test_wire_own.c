/* Wires of the program's own: the one of samples/wire_template through the conformance suite, and what a bad one is told. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "conformance.h"
#include "ranks.h"
#include "../../samples/wire_template/local_wire.h"

static weft_status open_local(const wefti_wire_options *options, wefti_wire **wire_out) {
    wefti_wire_options with = *options;
    with.own = &local_wire;
    return wefti_wire_open("local", &with, wire_out);
}
static const wire_setup processes = {.name = "the template", .mode = AS_PROCESSES, .open = open_local};
static const wire_setup threads = {.name = "the template as threads", .mode = AS_THREADS, .open = open_local};

Test(wire_own, the_template_conforms_with_2_processes) { conformance_run(&processes, 2); }
Test(wire_own, the_template_conforms_with_4_processes) { conformance_run(&processes, 4); }
Test(wire_own, the_template_conforms_with_3_threads) { conformance_run(&threads, 3); }

/* A peer that calls before this end was told of it is not forgotten. */
Test(wire_own, the_template_keeps_who_calls_first) {
    const weft_wire_kind *kind = &local_wire;
    void    *ends[2];
    uint8_t  addresses[2][WEFT_WIRE_ADDRESS_BYTES], byte = 0;
    size_t   bytes[2], moved = 0;
    for (int32_t i = 0; i < 2; i++) {
        cr_assert_eq(kind->open(kind->context, &(weft_wire_setup){.rank = i, .size = 2, .job = "first"}, &ends[i]), WEFT_OK);
        cr_assert_eq(kind->address(ends[i], addresses[i], &bytes[i]), WEFT_OK);
    }
    cr_assert_eq(kind->connect(ends[1], 0, addresses[0], bytes[0]), WEFT_OK);
    kind->progress(ends[1]);
    kind->progress(ends[0]);
    cr_assert_eq(kind->connect(ends[0], 1, addresses[1], bytes[1]), WEFT_OK);
    for (int32_t i = 0; i < 2; i++) cr_expect_eq(kind->link(ends[i], 1 - i), WEFT_WIRE_UP, "rank %d", (int)i);
    cr_expect_eq(kind->send(ends[0], 1, "x", 1, &moved), WEFT_OK);
    cr_expect(kind->receive(ends[1], 0, &byte, 1, &moved) == WEFT_OK && byte == 'x');
    for (int32_t i = 0; i < 2; i++) kind->close(ends[i]);
}

/* --- worlds --- */

static weft_status meet(ranks *all, int32_t rank) {
    wefti_transport *transport = NULL;
    WEFTI_TRY(wefti_transport_open(&(wefti_transport_options){.own_wire = &local_wire}, &transport));
    int32_t     got[RANKS_MOST];
    weft_status status = wefti_transport_exchange(transport, "numbers", &rank, sizeof rank, got);
    const char *expected = getenv("TEST_WIRE") ? getenv("TEST_WIRE") : "local";
    if (status == WEFT_OK && strcmp(transport->wire_name, expected) != 0)
        status = wefti_fail(WEFT_E_INTERNAL, "the wire is %s", transport->wire_name);
    wefti_transport_close(transport);
    (void)all;
    return status;
}
static void meet_well(void) {
    ranks *all = ranks_start(3, meet);
    ranks_join(all);
    for (int32_t rank = 0; rank < 3; rank++) cr_expect_eq(all->results[rank].status, WEFT_OK, "rank %d: %s", (int)rank, all->results[rank].message);
    ranks_free(all);
}

Test(wire_own, is_taken_unless_another_is_asked_for) {
    meet_well();
    setenv("WEFT_WIRE", "local", 1);
    meet_well();
    setenv("WEFT_WIRE", "tcp", 1);
    setenv("TEST_WIRE", "tcp", 1);
    meet_well();
}

/* --- wires beside a world's own, as the parameter server's are --- */

static uint64_t       slow_until_ns; /* rank 0 takes its link to rank 1 for one that still connects until then … */
static weft_wire_link slow_link_is;  /* … and for this afterwards */

static weft_wire_link slow_link(void *wire, int32_t peer) {
    if (peer != 1 || !slow_until_ns) return local_wire.link(wire, peer);
    return ranks_now() < slow_until_ns ? WEFT_WIRE_CONNECTING : slow_link_is;
}

static weft_status open_beside(ranks *all, int32_t rank) {
    weft_wire_kind   slow = local_wire;
    wefti_transport *transport = NULL;
    wefti_wire      *wire = NULL;
    (void)all;
    slow.link = slow_link;
    WEFTI_TRY(wefti_transport_open(&(wefti_transport_options){.own_wire = &slow}, &transport));
    if (rank == 0) slow_until_ns = ranks_now() + 150 * WEFTI_MILLISECOND_NS;
    weft_status status = wefti_transport_open_wire(transport, "a test", &wire);
    slow_until_ns = 0;
    if (status == WEFT_OK) wire->ops->close(wire, WEFTI_SECOND_NS);
    wefti_transport_close(transport);
    return status;
}

static ranks *open_beside_on_3(weft_wire_link ends_as) {
    slow_link_is = ends_as;
    ranks *all = ranks_start(3, open_beside);
    ranks_join(all);
    return all;
}

Test(wire_own, who_closes_one_at_once_is_no_fault_to_who_still_connects) {
    ranks *all = open_beside_on_3(WEFT_WIRE_UP);
    for (int32_t rank = 0; rank < 3; rank++) cr_expect_eq(all->results[rank].status, WEFT_OK, "rank %d: %s", (int)rank, all->results[rank].message);
    ranks_free(all);
}

Test(wire_own, one_that_a_rank_cannot_connect_is_nobodys) {
    ranks *all = open_beside_on_3(WEFT_WIRE_DOWN);
    for (int32_t rank = 0; rank < 3; rank++) {
        const char *part = rank ? "rank 0 could not connect" : "the local link to rank 1 broke while the ranks connected";
        cr_expect_eq(all->results[rank].status, WEFT_E_PEER, "rank %d: %s", (int)rank, all->results[rank].message);
        cr_expect(strstr(all->results[rank].message, part), "rank %d: %s", (int)rank, all->results[rank].message);
    }
    ranks_free(all);
}

Test(wire_own, stays_inside_the_host_where_the_rest_is_encrypted) {
    wefti_wire        *wire = NULL;
    weft_wire_kind     far = local_wire;
    wefti_wire_options options = {.size = 2, .own = &far, .encrypt = true};
    cr_assert_eq(wefti_wire_open("local", &options, &wire), WEFT_OK);
    wire->ops->close(wire, 0);
    far.same_host = false;
    cr_expect_eq(wefti_wire_open("local", &options, &wire), WEFT_E_UNSUPPORTED);
    cr_expect(strstr(weft_error_message(), "'local' does not encrypt"), "%s", weft_error_message());
}

/* --- bad ones --- */

static weft_status refuse_to_open(void *context, const weft_wire_setup *setup, void **wire_out) {
    (void)context, (void)setup, (void)wire_out;
    return WEFT_E_DEVICE;
}
static weft_status claim_too_much(void *wire, int32_t peer, const void *bytes, size_t count, size_t *sent_out) {
    (void)wire, (void)peer, (void)bytes;
    *sent_out = count + 1;
    return WEFT_OK;
}
static weft_status long_address(void *wire, void *address_out, size_t *bytes_out) {
    (void)wire, (void)address_out;
    *bytes_out = 257;
    return WEFT_OK;
}

Test(wire_own, what_is_wrong_with_one_is_said) {
    wefti_transport        *transport = NULL;
    weft_wire_kind          bad = local_wire;
    wefti_transport_options options = {.size = 2, .store = "127.0.0.1:1", .own_wire = &bad};
    static const char *const names[] = {NULL, "", "tcp", "auto", "a name that is too long"};
    for (size_t i = 0; i < WEFTI_COUNT(names); i++) {
        bad.name = names[i];
        cr_expect_eq(wefti_transport_open(&options, &transport), WEFT_E_INVALID);
        cr_expect(strstr(weft_error_message(), "name"), "%s", weft_error_message());
    }
    bad = local_wire;
    bad.receive = NULL;
    cr_expect_eq(wefti_transport_open(&options, &transport), WEFT_E_INVALID);
    cr_expect(strstr(weft_error_message(), "lacks a function"), "%s", weft_error_message());
    bad = local_wire;
    options.wire = "pigeon";
    cr_expect_eq(wefti_transport_open(&options, &transport), WEFT_E_NOT_FOUND);
    cr_expect(strstr(weft_error_message(), "the program's own local"), "%s", weft_error_message());
    wefti_wire        *wire = NULL;
    wefti_wire_options wire_options = {.size = 2, .own = &bad};
    bad.open = refuse_to_open;
    cr_expect_eq(wefti_wire_open("local", &wire_options, &wire), WEFT_E_DEVICE);
    cr_expect(strstr(weft_error_message(), "'local' could not open"), "%s", weft_error_message());
    bad = local_wire;
    bad.address = long_address;
    cr_assert_eq(wefti_wire_open("local", &wire_options, &wire), WEFT_OK);
    uint8_t address[WEFTI_WIRE_ADDRESS_BYTES];
    size_t  bytes;
    cr_expect_eq(wire->ops->address(wire, address, &bytes), WEFT_E_OVERFLOW);
    cr_expect_eq(wire->ops->connect(wire, 1, "x", 1), WEFT_E_CORRUPT);
    wire->ops->close(wire, 0);
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_expect_eq(counts.held_bytes, 0);
}

/* More bytes sent than there were: the link ends and says so, nothing is read beyond its end. */
Test(wire_own, a_count_out_of_range_ends_the_link) {
    weft_wire_kind mad = local_wire;
    wefti_wire    *wires[2];
    uint8_t        address[2][WEFTI_WIRE_ADDRESS_BYTES];
    size_t         bytes[2];
    mad.send = claim_too_much;
    for (int32_t rank = 0; rank < 2; rank++) {
        cr_assert_eq(wefti_wire_open("local", &(wefti_wire_options){.rank = rank, .size = 2, .own = rank ? &mad : &local_wire}, &wires[rank]), WEFT_OK);
        cr_assert_eq(wires[rank]->ops->address(wires[rank], address[rank], &bytes[rank]), WEFT_OK);
    }
    for (int32_t rank = 0; rank < 2; rank++)
        cr_assert_eq(wires[rank]->ops->connect(wires[rank], 1 - rank, address[1 - rank], bytes[1 - rank]), WEFT_OK);
    uint64_t      number = 1, got = 0;
    wefti_wire_op send = wefti_wire_send(0, 5, &number, 8), recv = wefti_wire_recv(1, 5, &got, 8);
    for (int i = 0; i < 100; i++)
        for (int32_t rank = 0; rank < 2; rank++) cr_assert_eq(wefti_wire_progress(wires[rank], world_now()), WEFT_OK);
    cr_assert_eq(wefti_wire_post(wires[1], &send), WEFT_OK);
    cr_assert_eq(wefti_wire_post(wires[0], &recv), WEFT_OK);
    for (int i = 0; i < 100; i++) cr_assert_eq(wefti_wire_progress(wires[1], world_now()), WEFT_OK);
    cr_expect(send.done && send.status == WEFT_E_PEER);
    cr_expect_eq(wires[1]->ops->link(wires[1], 0), WEFTI_LINK_DOWN);
    const char *cause = wires[1]->ops->cause(wires[1], 0);
    cr_expect(cause && strstr(cause, "send of the program's own wire 'local' says"), "%s", cause ? cause : "no cause");
    wires[1]->ops->close(wires[1], 0);
    for (int i = 0; i < 100 && !recv.done; i++) cr_assert_eq(wefti_wire_progress(wires[0], world_now()), WEFT_OK);
    cr_expect(recv.done && recv.status == WEFT_E_PEER);
    wires[0]->ops->close(wires[0], 0);
}

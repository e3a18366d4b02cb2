/* The delay wire: still a wire by the conformance suite, and as slow as asked. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "conformance.h"

static weft_status open_slow(const wefti_wire_options *options, wefti_wire **wire_out) {
    wefti_wire *inner = NULL;
    WEFTI_TRY(wefti_wire_inproc_open(options, &inner));
    return wefti_wire_delay_open(inner, 20000, 4, 8, wire_out);
}
static const wire_setup slow = {.name = "inproc with a delay", .mode = AS_THREADS, .open = open_slow};

Test(wire_delay, conforms_with_3_ranks) { conformance_run(&slow, 3); }

/* Through the environment, as programs get it. 3 ms, and 0.8 Gb/s: 100 bytes a microsecond. */
static weft_status open_by_name(const wefti_wire_options *options, wefti_wire **wire_out) {
    return wefti_wire_open("shm", options, wire_out);
}
static const wire_setup named = {.name = "shm with a delay", .mode = AS_PROCESSES, .open = open_by_name};

static void is_as_slow_as_asked(rank_world *world) {
    enum { BYTES = 200000 };
    uint8_t *buffer = calloc(1, BYTES);
    for (int round = 0; round < 3; round++) {
        uint64_t since = world_now();
        world_barrier(world);
        if (world->rank == 0) {
            world_send(world, 1, 1, buffer, 8);
            world_recv(world, 1, 2, buffer, BYTES);
            /* One way 3 ms, the other 3 ms and 2 ms for its bytes. */
            CHECK(world_now() - since >= 8 * WEFTI_MILLISECOND_NS, "came back after %g ms",
                  (double)(world_now() - since) / 1e6);
        } else {
            world_recv(world, 0, 1, buffer, 8);
            world_send(world, 0, 2, buffer, BYTES);
        }
    }
    /* Two messages share the bandwidth, not the latency: 3 + 2 + 2 ms. Posting waits for none of it: at least once of several
     * times, because a busy machine may stop this process in the middle. */
    uint64_t posting = UINT64_MAX;
    for (int round = 0; round < 5; round++) {
        world_barrier(world);
        if (world->rank == 0) {
            wefti_wire_op first = wefti_wire_send(1, 3, buffer, BYTES), second = wefti_wire_send(1, 4, buffer, BYTES);
            first.flags = second.flags = WEFTI_WIRE_SILENT;
            uint64_t since = world_now();
            world_post(world, &first);
            world_post(world, &second);
            if (world_now() - since < posting) posting = world_now() - since;
            world_finish(world, &first);
            world_finish(world, &second);
            CHECK(world_now() - since >= 7 * WEFTI_MILLISECOND_NS, "done after %g ms", (double)(world_now() - since) / 1e6);
        } else {
            world_recv(world, 0, 3, buffer, BYTES);
            world_recv(world, 0, 4, buffer, BYTES);
        }
    }
    CHECK(world->rank != 0 || posting < 3 * WEFTI_MILLISECOND_NS, "posting took %g ms, as long as the delay itself", (double)posting / 1e6);
    free(buffer);
}

Test(wire_delay, is_as_slow_as_the_environment_asks) {
    setenv("WEFT_WIRE_DELAY_US", "3000", 1);
    setenv("WEFT_WIRE_GBPS", "0.8", 1);
    conformance_run_one(&named, 2, "is_as_slow_as_asked", is_as_slow_as_asked);
}

/* Two links, and one port of 0.8 Gb/s before both: 3 + 2 + 2 ms, where links alone would take 3 + 2. */
static void share_a_port(rank_world *world) {
    enum { BYTES = 200000 };
    uint8_t *buffer = calloc(1, BYTES);
    world_barrier(world);
    if (world->rank == 0) {
        wefti_wire_op first = wefti_wire_send(1, 3, buffer, BYTES), second = wefti_wire_send(2, 3, buffer, BYTES);
        first.flags = second.flags = WEFTI_WIRE_SILENT;
        uint64_t since = world_now();
        world_post(world, &first);
        world_post(world, &second);
        world_finish(world, &first);
        world_finish(world, &second);
        CHECK(world_now() - since >= 7 * WEFTI_MILLISECOND_NS, "done after %g ms", (double)(world_now() - since) / 1e6);
    } else world_recv(world, 0, 3, buffer, BYTES);
    free(buffer);
}

Test(wire_delay, has_a_port_for_all_links) {
    setenv("WEFT_WIRE_DELAY_US", "3000", 1);
    setenv("WEFT_WIRE_PORT_GBPS", "0.8", 1);
    conformance_run_one(&named, 3, "share_a_port", share_a_port);
}

Test(wire_delay, refuses_bad_amounts_and_names) {
    wefti_wire        *wire = NULL;
    wefti_wire_options options = {.size = 1};
    cr_assert_eq(wefti_wire_open("carrier-pigeon", &options, &wire), WEFT_E_NOT_FOUND);
    cr_assert(strstr(weft_error_message(), "inproc, shm, tcp"));
    static const char *const bad[] = {"fast", "-1", "1x", "nan", "1e30"};
    for (size_t i = 0; i < WEFTI_COUNT(bad); i++) {
        setenv("WEFT_WIRE_DELAY_US", bad[i], 1);
        cr_assert_eq(wefti_wire_open("shm", &options, &wire), WEFT_E_INVALID, "%s", bad[i]);
        cr_assert(strstr(weft_error_message(), "WEFT_WIRE_DELAY_US"));
    }
}

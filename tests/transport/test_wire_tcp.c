/* The TCP wire through the conformance suite, as processes and as threads, and what is its own. */
#include <criterion/criterion.h>
#include <string.h>

#include "conformance.h"
#include "transport/handshake.h"

static const wire_setup processes = {.name = "tcp", .mode = AS_PROCESSES, .open = wefti_wire_tcp_open};
static const wire_setup threads = {.name = "tcp as threads", .mode = AS_THREADS, .open = wefti_wire_tcp_open};
static const wire_setup encrypted = {.name = "encrypted tcp", .mode = AS_PROCESSES, .open = wefti_wire_tcp_open, .encrypt = true};
static const wire_setup encrypted_threads = {.name = "encrypted tcp as threads", .mode = AS_THREADS, .open = wefti_wire_tcp_open,
                                             .encrypt = true};

Test(wire_tcp, conforms_with_2_processes) { conformance_run(&processes, 2); }
Test(wire_tcp, conforms_with_3_processes) { conformance_run(&processes, 3); }
Test(wire_tcp, conforms_with_4_processes) { conformance_run(&processes, 4); }
Test(wire_tcp, conforms_with_3_threads) { conformance_run(&threads, 3); }

static void conform_encrypted(const wire_setup *setup, int32_t ranks) {
    if (!wefti_can_authenticate()) cr_skip_test("this build lacks libsodium");
    conformance_run(setup, ranks);
}
Test(wire_tcp, conforms_encrypted_with_2_processes) { conform_encrypted(&encrypted, 2); }
Test(wire_tcp, conforms_encrypted_with_4_processes) { conform_encrypted(&encrypted, 4); }
Test(wire_tcp, conforms_encrypted_with_3_threads) { conform_encrypted(&encrypted_threads, 3); }

/* --- what waits together --- */

enum { MESSAGES = 70, LONGEST = 300000, EARLY = 40, EARLY_BYTES = 3000 };

static size_t length_of(int message) {
    static const size_t lengths[] = {0, 1, 40, 2048, 2049, 5000, LONGEST}; /* copied, too long for that, and asked for first */
    return lengths[message % (int)WEFTI_COUNT(lengths)];
}

/* Messages of all lengths that are kept back until the last one: they come whole, and in order. */
static void frames_go_together(rank_world *world) {
    static uint8_t       bytes[MESSAGES][LONGEST];
    static wefti_wire_op ops[MESSAGES];
    for (int i = 0; i < MESSAGES; i++) {
        memset(bytes[i], world->rank == 0 ? i + 1 : 0, length_of(i));
        ops[i] = world->rank == 0 ? wefti_wire_send(1, 7, bytes[i], length_of(i)) : wefti_wire_recv(0, 7, bytes[i], LONGEST);
        ops[i].flags = WEFTI_WIRE_SILENT | (world->rank == 0 && i < MESSAGES - 1 ? WEFTI_WIRE_MORE : 0);
        world_post(world, &ops[i]);
    }
    for (int i = 0; i < MESSAGES; i++) {
        world_finish(world, &ops[i]);
        CHECK(ops[i].status == WEFT_OK && ops[i].done_bytes == length_of(i), "message %d has %zu bytes", i, ops[i].done_bytes);
        for (size_t k = 0; k < length_of(i); k++)
            CHECK(bytes[i][k] == (uint8_t)(i + 1), "byte %zu of message %d is %d", k, i, bytes[i][k]);
    }
    /* One that is kept back while nothing follows goes with the next poll. */
    uint64_t number = 5;
    ops[0] = world->rank == 0 ? wefti_wire_send(1, 8, &number, 8) : wefti_wire_recv(0, 8, &number, 8);
    ops[0].flags = WEFTI_WIRE_SILENT | (world->rank == 0 ? WEFTI_WIRE_MORE : 0);
    world_post(world, &ops[0]);
    world_finish(world, &ops[0]);
    world_barrier(world);
}

/* The pool of early messages grows to what waited at once, and no further. */
static void early_messages_are_pooled(rank_world *world) {
    static uint8_t     bytes[EARLY_BYTES];
    weft_memory_counts before = {0}, after;
    for (int round = 1; round <= 3; round++) {
        for (int i = 0; i < EARLY && world->rank == 1; i++) world_send(world, 0, 9, bytes, sizeof bytes);
        wefti_wire_counts counts = {0};
        uint64_t          since_ns = wefti_host_now(world->wire->host);
        while (world->rank == 0 && counts.received_messages < (uint64_t)(round * EARLY)) {
            world_poll(world, since_ns);
            world->wire->ops->counts(world->wire, &counts);
        }
        if (round == 2) weft_memory_read(&before);
        for (int i = 0; i < EARLY && world->rank == 0; i++) world_recv(world, 1, 9, bytes, sizeof bytes);
        world_barrier(world);
    }
    weft_memory_read(&after);
    CHECK(before.allocations == after.allocations, "%lld allocations", (long long)(after.allocations - before.allocations));
}

Test(wire_tcp, frames_go_together) { conformance_run_one(&processes, 2, "frames_go_together", frames_go_together); }
Test(wire_tcp, encrypted_frames_go_together) {
    if (!wefti_can_authenticate()) cr_skip_test("this build lacks libsodium");
    conformance_run_one(&encrypted, 2, "frames_go_together", frames_go_together);
}
Test(wire_tcp, early_messages_are_pooled) {
    conformance_run_one(&processes, 2, "early_messages_are_pooled", early_messages_are_pooled);
}

/* The verbs wire over the fake fabric, through the conformance suite of all wires: as it is, over devices side by side, and
 * where registering, posting or the device's limits get in the way. */
#include <criterion/criterion.h>
#include <poll.h>
#include <stdlib.h>

#include "fake_verbs.h"
#include "collective/cases.h"

static weft_status open_fake(const wefti_wire_options *options, wefti_wire **wire_out) {
    return wefti_verbs_open_with(&fake_verbs, options, wire_out);
}
static const wire_setup plain = {.name = "verbs", .mode = AS_THREADS, .open = open_fake};

/* Runs the suite under the settings that were made, and looks at what was left and done wrong. */
static void conform(int32_t ranks) {
    conformance_run(&plain, ranks);
    fake_verbs_counts counts = fake_verbs_read();
    cr_expect_eq(counts.misuse, 0, "%d times, first: %s", counts.misuse, counts.what);
    cr_expect_eq(counts.objects, 0, "%d objects of verbs were left", counts.objects);
}

TestSuite(wire_verbs, .init = fake_verbs_reset);

Test(wire_verbs, conforms_with_2_ranks) { conform(2); }
Test(wire_verbs, conforms_with_4_ranks) { conform(4); }

Test(wire_verbs, conforms_over_devices_side_by_side) {
    setenv("WEFT_VERBS_DEVICE", "all", 1);
    fake_verbs_set()->devices = 3;
    conform(3);
}

/* Nothing but slots and regions can be registered: every other large message is copied through the slots. */
Test(wire_verbs, conforms_where_no_buffer_can_be_registered) {
    fake_verbs_set()->refuse_buffers = true;
    conform(3);
}

/* --- sleeping on the completion queues' events --- */

enum { SLEPT_MESSAGES = 30, MOST_WAKES = 8 }; /* wakes: of one message, of which a large one takes several completions */

/* Until the operation is done, polling only when the descriptor says so. Gives the number of times it did. */
static int sleep_until_done(rank_world *world, const wefti_wire_op *op) {
    wefti_wire *wire = world->wire;
    int         wakes = 0;
    while (!op->done) {
        if (wire->ops->arm(wire) == WEFT_OK) {
            struct pollfd wait = {.fd = wire->ops->descriptor(wire), .events = POLLIN};
            CHECK(poll(&wait, 1, 10000) == 1, "nothing woke it");
            wakes++;
        }
        CHECK_OK(wefti_wire_progress(wire, world_now()));
    }
    CHECK_OK(op->status);
    return wakes;
}

/* Rank 0 sends when rank 1 has gone to sleep, or, every third time, before that. */
static void sleep_on_events(rank_world *world) {
    static const size_t sizes[] = {0, 8, 5000, 300000};
    _Atomic int64_t *asleep = &world->shared->note[0];
    uint8_t *memory = malloc(sizes[3]);
    int      wakes = 0;
    CHECK(memory && world->wire->can.flags & WEFTI_WIRE_WAIT_DESCRIPTOR, "no memory, or no descriptor");
    world_barrier(world);
    for (int i = 0; i < SLEPT_MESSAGES; i++) {
        size_t bytes = sizes[i % 4];
        bool   late = i % 3 == 0; /* the receiver: what came before it armed is not lost */
        if (world->rank == 0) {
            while (!late && atomic_load(asleep) <= i) world->wire->host->sleep(world->wire->host->context, 100000);
            if (!late) world->wire->host->sleep(world->wire->host->context, 3 * WEFTI_MILLISECOND_NS);
            fill(memory, bytes, (uint32_t)i);
        } else if (late) {
            world->wire->host->sleep(world->wire->host->context, 3 * WEFTI_MILLISECOND_NS);
        }
        wefti_wire_op op = world->rank == 0 ? wefti_wire_send(1, WEFTI_TAG_TEST, memory, bytes) : wefti_wire_recv(0, WEFTI_TAG_TEST, memory, bytes);
        op.flags = WEFTI_WIRE_SILENT;
        world_post(world, &op);
        if (world->rank == 1) atomic_store(asleep, i + 1);
        wakes += sleep_until_done(world, &op);
        CHECK(world->rank == 0 || filled(memory, bytes, (uint32_t)i), "message %d has other bytes", i);
    }
    CHECK(world->rank == 0 || wakes >= SLEPT_MESSAGES / 3, "it slept %d times only", wakes);
    CHECK(wakes <= SLEPT_MESSAGES * MOST_WAKES, "it was woken %d times", wakes);
    free(memory);
    world_barrier(world);
}
Test(wire_verbs, sleeps_until_something_completes) { conformance_run_one(&plain, 2, "sleep_on_events", sleep_on_events); }
Test(wire_verbs, sleeps_on_the_queues_of_all_devices) {
    setenv("WEFT_VERBS_DEVICE", "all", 1);
    fake_verbs_set()->devices = 3;
    conformance_run_one(&plain, 2, "sleep_on_events", sleep_on_events);
}

/* --- collectives on top --- */

static void run_collectives(rank_world *world) {
    static const size_t                counts[] = {0, 1, 2049, 300007};
    static const wefti_collective_kind kinds[] = {WEFTI_ALLREDUCE, WEFTI_REDUCE_SCATTER, WEFTI_ALLGATHER, WEFTI_BROADCAST, WEFTI_BARRIER};
    arenas                             memory;
    wefti_group                       *group = group_of_all(world, NULL);
    arenas_open(world, &memory, (size_t)8 << 20);
    for (size_t c = 0; c < WEFTI_COUNT(counts); c++)
        for (size_t k = 0; k < WEFTI_COUNT(kinds); k++)
            for (int where = 0; where < PLACEMENTS; where++)
                call_run(world, group, &memory,
                         (call_case){.kind = kinds[k], .dtype = WEFT_F32, .count = counts[c], .in_place = where % 2,
                                     .where = (placement)where, .seed = (uint32_t)c});
    CLOSE(group);
    arenas_close(world, &memory);
}
Test(wire_verbs, carries_collectives_of_3_ranks) { conformance_run_one(&plain, 3, "run_collectives", run_collectives); }

/* --- devices that are not as they should be --- */

Test(wire_verbs, conforms_on_a_poor_device) {
    fake_verbs_set()->most_inline = 0;
    fake_verbs_set()->most_message_bytes = 40000;
    fake_verbs_set()->refuse_every = 7;
    fake_verbs_set()->seed = 99;
    conform(2);
}

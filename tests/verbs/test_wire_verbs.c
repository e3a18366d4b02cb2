/* The verbs wire over the fake fabric, through the conformance suite of all wires: as it is, over devices side by side, and
 * where registering, posting or the device's limits get in the way. */
#include <criterion/criterion.h>
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

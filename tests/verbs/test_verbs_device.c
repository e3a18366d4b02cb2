/* The verbs wire on a real device, soft ones included: the conformance suite, collectives, and memory that comes and goes. Where
 * the host has no device there is nothing to try. guest.sh runs this where there is one. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "collective/cases.h"

static const wire_setup verbs = {.name = "verbs", .mode = AS_PROCESSES, .open = wefti_wire_verbs_open};

/* Leaves the test where there is no device; with WEFT_VERBS_TESTED set, that is a failure. */
static bool has_device(void) {
    wefti_wire *wire = NULL;
    weft_status status = wefti_wire_verbs_open(&(wefti_wire_options){.size = 1}, &wire);
    if (status == WEFT_OK) wire->ops->close(wire, 0);
    cr_assert(status == WEFT_OK || !getenv("WEFT_VERBS_TESTED"), "%s", weft_error_message());
    return status == WEFT_OK;
}

static void conform(int32_t ranks) {
    if (has_device()) conformance_run(&verbs, ranks);
}
Test(verbs_device, conforms_with_2_ranks) { conform(2); }
Test(verbs_device, conforms_with_3_ranks) { conform(3); }

/* --- collectives --- */

static void run_collectives(rank_world *world) {
    static const char *const algorithms[] = {NULL, "direct", "doubling", "tree", "ring", "chain"};
    static const size_t      counts[] = {0, 1, 1025, 8193, 300007};
    static const wefti_collective_kind kinds[] = {WEFTI_ALLREDUCE, WEFTI_REDUCE_SCATTER, WEFTI_ALLGATHER, WEFTI_BROADCAST, WEFTI_BARRIER};
    arenas memory;
    arenas_open(world, &memory, (size_t)8 << 20);
    for (size_t a = 0; a < WEFTI_COUNT(algorithms); a++) {
        wefti_group *group = group_of_all(world, &(wefti_group_options){.algorithm = algorithms[a]});
        for (size_t c = 0; c < WEFTI_COUNT(counts); c++)
            for (size_t k = 0; k < WEFTI_COUNT(kinds); k++)
                call_run(world, group, &memory,
                         (call_case){.kind = kinds[k], .dtype = WEFT_F32, .count = counts[c], .root = (int32_t)c % world->size,
                                     .in_place = k % 2, .where = (placement)((a + c) % PLACEMENTS), .seed = (uint32_t)c});
        CLOSE(group);
    }
    arenas_close(world, &memory);
}
Test(verbs_device, computes_collectives_on_2_ranks) {
    if (has_device()) conformance_run_one(&verbs, 2, "run_collectives", run_collectives);
}
Test(verbs_device, computes_collectives_on_3_ranks) {
    if (has_device()) conformance_run_one(&verbs, 3, "run_collectives", run_collectives);
}

/* Buffers at the same address, again and again other pages: a registration that outlived its pages would lose the bytes. */
static void receive_into_fresh_pages(rank_world *world) {
    enum { BYTES = 300000, ROUNDS = 30 };
    void *place = NULL;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint8_t *memory = mmap(place, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | (place ? MAP_FIXED : 0), -1, 0);
        CHECK(memory != MAP_FAILED, "no memory");
        if (world->rank == 0) {
            fill(memory, BYTES, round);
            world_send(world, 1, 1, memory, BYTES);
        } else {
            world_recv(world, 0, 1, memory, BYTES);
            CHECK(filled(memory, BYTES, round), "round %u", round);
        }
        if (round % 3 == 1)
            madvise(memory, BYTES, MADV_DONTNEED);
        else if (round % 3 == 2)
            munmap(memory, BYTES);
        place = memory;
    }
    munmap(place, BYTES);
}
Test(verbs_device, receives_into_fresh_pages_at_an_old_address) {
    if (has_device()) conformance_run_one(&verbs, 2, "receive_into_fresh_pages", receive_into_fresh_pages);
}

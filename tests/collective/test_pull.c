/* Large collectives of buffers that nobody maps: pulled out of the others' memory, or through staging, with the same results; also where the system
 * refuses to have it read, from the beginning or in the middle. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "cases.h"
#include "transport/coll_map.h"
#include "transport/refuse.h"

static weft_status open_refused(const wefti_wire_options *options, wefti_wire **wire_out) {
    if (!refuse_reading()) return wefti_fail(WEFT_E_STATE, "the system cannot be made to refuse");
    return wefti_wire_shm_open(options, wire_out);
}

static const wire_setup inproc = {.name = "inproc", .mode = AS_THREADS, .open = wefti_wire_inproc_open};
static const wire_setup shm = {.name = "shm", .mode = AS_PROCESSES, .open = wefti_wire_shm_open};
static const wire_setup refused = {.name = "shm, refused", .mode = AS_PROCESSES, .open = open_refused};

static const wefti_collective_kind moving[] = {WEFTI_ALLGATHER, WEFTI_BROADCAST,   WEFTI_GATHER,
                                               WEFTI_SCATTER,   WEFTI_ALLTOALL, WEFTI_ALLGATHER_V};

enum { TURNS = 8 }; /* of a kind and length: more than tell which way is quicker, and half of these go each way */

static bool last_was_pulled(const wefti_group *base) {
    const coll_group *group = (const coll_group *)base;
    bool pulled = false;
    for (int32_t i = 0; i < group->in_flight; i++) pulled |= group->map->shares[i].pull && group->operations[i].sequence == base->sequence - 1;
    return pulled;
}

/* Calls every kind TURNS times in each placement; how many were pulled, the same at all members. */
static int64_t call_all(rank_world *world, wefti_group *group, arenas *memory, size_t count) {
    int64_t pulled = 0;
    for (int where = FOREIGN; where <= MIXED; where++)
        for (size_t k = 0; k < WEFTI_COUNT(moving); k++)
            for (int turn = 0; turn < TURNS; turn++) {
                call_run(world, group, memory,
                         (call_case){.kind = moving[k], .count = count, .root = turn / 2 % world->size, .in_place = turn / 2 % 2, .where = (placement)where, .seed = (uint32_t)turn});
                pulled += last_was_pulled(group);
            }
    check_equal_everywhere(world, pulled, "the number of pulls");
    return pulled;
}

static map_reads reads_of(const wefti_group *group) { return ((const coll_group *)group)->map->reads; }

/* Sizes of one piece, and of some with a rest. */
static const size_t counts[] = {5000, 150003};
#define ARENA_BYTES ((size_t)16 << 20)

static void pulls_what_is_foreign(rank_world *world) {
    arenas memory;
    arenas_open(world, &memory, ARENA_BYTES);
    wefti_group *group = group_of_all(world, NULL);
    bool may = wefti_wire_reads_peers(world->wire, NULL, world->size) == WEFT_OK;
    for (size_t c = 0; c < WEFTI_COUNT(counts); c++) {
        int64_t pulled = call_all(world, group, &memory, counts[c]);
        /* Three trials of each kind at the least, where all that a member sends is foreign; of broadcasts each root tries, which is too seldom here. */
        CHECK(!may || pulled >= 3 * ((int64_t)WEFTI_COUNT(moving) - 1), "only %lld calls were pulled", (long long)pulled);
    }
    for (int turn = 0; turn < TURNS; turn++) {
        call_run(world, group, &memory, (call_case){.kind = WEFTI_ALLREDUCE, .count = counts[1], .where = FOREIGN});
        CHECK(!last_was_pulled(group), "sums are worked on, not moved");
        call_run(world, group, &memory, (call_case){.kind = WEFTI_ALLGATHER, .count = counts[1], .where = EXPORTED});
        CHECK(!last_was_pulled(group), "what is mapped needs no pull");
    }
    CLOSE(group);
    arenas_close(world, &memory);
}

static void reads_nothing(rank_world *world) {
    arenas memory;
    arenas_open(world, &memory, ARENA_BYTES);
    wefti_group *group = group_of_all(world, NULL);
    call_all(world, group, &memory, counts[1]);
    CHECK(reads_of(group) == MAP_READS_NOT_ALL, "the group reads through the kernel");
    CLOSE(group);
    arenas_close(world, &memory);
}

/* Threads: what is mapped is pulled into what is not, and nothing is read through the kernel. */
static void pulls_from_mapped_memory(rank_world *world) { reads_nothing(world); }

static void stages_where_the_system_refuses(rank_world *world) {
    CHECK(wefti_wire_reads_peers(world->wire, NULL, world->size) == WEFT_E_UNSUPPORTED, "the wire was refused, and does not know");
    reads_nothing(world);
}

/* The last rank is refused after a while; the call that finds out begins again at all members, those that are through included. */
static void begins_again_where_it_is_refused_later(rank_world *world) {
    arenas memory;
    arenas_open(world, &memory, ARENA_BYTES);
    for (size_t k = 0; k < WEFTI_COUNT(moving); k++) {
        wefti_group *group = group_of_all(world, &(wefti_group_options){.id = (uint16_t)(1 + k)});
        ((coll_group *)group)->crowded = false; /* else a broadcast's root feeds the others, and nothing of it is read */
        call_case what = {.kind = moving[k], .count = counts[1], .where = FOREIGN};
        for (int turn = 0; turn < TURNS; turn++) {
            bool refuses = k == WEFTI_COUNT(moving) / 2 && turn == 2; /* the next call is a trial pull */
            if (refuses && world->rank == world->size - 1) CHECK(refuse_reading(), "the system cannot be made to refuse");
            what.seed = (uint32_t)turn;
            what.in_place = turn % 2;
            call_run(world, group, &memory, what);
        }
        bool before = k < WEFTI_COUNT(moving) / 2 && wefti_wire_reads_peers(world->wire, NULL, world->size) == WEFT_OK;
        CHECK(!before || reads_of(group) == MAP_READS_ALL, "nobody was refused yet");
        CLOSE(group);
    }
    weft_status last = wefti_wire_reads_peers(world->wire, NULL, world->size);
    CHECK(world->rank < world->size - 1 || last == WEFT_E_UNSUPPORTED, "the wire does not know that it is refused");
    arenas_close(world, &memory);
}

/* Results that leave past the caches or through them are the same, and both ways are tried. */
static void stores_either_way(rank_world *world) {
    arenas memory;
    arenas_open(world, &memory, ARENA_BYTES);
    wefti_group *group = group_of_all(world, NULL);
    enum { COUNT = 600001 };
    for (int turn = 0; turn < TURNS; turn++)
        call_run(world, group, &memory, (call_case){.kind = WEFTI_ALLREDUCE, .count = COUNT, .where = EXPORTED, .seed = (uint32_t)turn});
    const map_race *race = &((const coll_group *)group)->map->stores[WEFTI_ALLREDUCE][map_length(COUNT * sizeof(float))];
    CHECK(race->operations >= TURNS && race->best_ns[0] == 0, "no race was over after %u calls", race->operations);
    CLOSE(group);
    arenas_close(world, &memory);
}

Test(collective_pull, the_quicker_way_wins) {
    for (int quicker = 0; quicker < 2; quicker++) {
        map_race race = {0};
        for (int i = 0; i < 3 * MAP_EVERY; i++) {
            int  trial, turn = i % MAP_EVERY;
            bool second = map_race_enter(&race, &trial);
            cr_assert(trial == (turn < 2 * MAP_TRIES ? turn + 1 : 0));
            cr_assert(second == (trial ? turn >= MAP_TRIES : quicker), "operation %d went the other way", i);
            if (trial) map_race_note(&race, trial, second, second == quicker ? (uint64_t)(90 + turn) : 100);
        }
    }
}

/* Calls may count as trials and not be timed, as those that go by pulls are of stores: no verdict comes of that. */
Test(collective_pull, a_way_that_was_not_timed_neither_wins_nor_loses) {
    for (int second = 0; second < 2; second++) {
        map_race race = {.second = second};
        cr_assert_not(map_race_is_lost(&race, 1000), "lost to a way that nobody timed");
        map_race_note(&race, 2 * MAP_TRIES, true, 1000);
        cr_assert(race.second == second, "one way was timed alone, and the other one judged");
        map_race_note(&race, MAP_TRIES, false, 400);
        cr_assert(map_race_is_lost(&race, 802) && !map_race_is_lost(&race, 801));
    }
}

#define ON(setup, ranks, function) conformance_run_one(&setup, ranks, #function, function)

Test(collective_pull, inproc_2) { ON(inproc, 2, pulls_from_mapped_memory); }
Test(collective_pull, inproc_3) { ON(inproc, 3, pulls_from_mapped_memory); }
Test(collective_pull, shm_2) { ON(shm, 2, pulls_what_is_foreign); }
Test(collective_pull, shm_3) { ON(shm, 3, pulls_what_is_foreign); }
Test(collective_pull, shm_4) { ON(shm, 4, pulls_what_is_foreign); }
Test(collective_pull, refused_2) { ON(refused, 2, stages_where_the_system_refuses); }
Test(collective_pull, refused_3) { ON(refused, 3, stages_where_the_system_refuses); }
Test(collective_pull, refused_later_2) { ON(shm, 2, begins_again_where_it_is_refused_later); }
Test(collective_pull, refused_later_4) { ON(shm, 4, begins_again_where_it_is_refused_later); }
Test(collective_pull, stores_2) { ON(shm, 2, stores_either_way); }
Test(collective_pull, stores_inproc_3) { ON(inproc, 3, stores_either_way); }

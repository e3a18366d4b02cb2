/* Every kind of collective against the oracle: dtypes, reductions, sizes, ranks, wires, algorithms, places of buffers.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"
#include "common/effort.h"
#include "transport/coll.h"

static const wire_setup inproc = {.name = "inproc", .mode = AS_THREADS, .open = wefti_wire_inproc_open};
static const wire_setup shm = {.name = "shm", .mode = AS_PROCESSES, .open = wefti_wire_shm_open};
static const wire_setup tcp = {.name = "tcp", .mode = AS_PROCESSES, .open = wefti_wire_tcp_open};

/* NULL is the choice by cost; the others fall back to it where they do not fit. Between them, these take every way that
 * there is for small calls, and for large ones. */
static const char *const small_ways[] = {NULL,   "twoshot", "direct", "doubling",     "tree",
                                         "ring", "swap",    "chain",  "dissemination"};
static const char *const large_ways[] = {NULL, "ring", "swap", "chain"};
static const char *const ways[] = {NULL, "twoshot", "doubling", "ring", "swap"};

static bool maps_peers(const rank_world *world) { return world->wire->can.flags & WEFTI_WIRE_MAPS_PEERS; }

/* NULL where the way is none on this wire. */
static wefti_group *group_by(rank_world *world, const char *algorithm) {
    if (algorithm && strcmp(algorithm, "twoshot") == 0 && !maps_peers(world)) return NULL;
    return group_of_all(world, &(wefti_group_options){.algorithm = algorithm});
}

/* --- all dtypes and reductions, at few sizes --- */

static void every_dtype_and_op(rank_world *world) {
    static const size_t counts[] = {1, 7, 1000};
    arenas memory;
    arenas_open(world, &memory, 1 << 20);
    for (size_t a = 0; a < WEFTI_COUNT(ways); a++) {
        wefti_group *group = group_by(world, ways[a]);
        if (!group) continue;
        for (int dtype = 0; dtype < WEFT_DTYPE_COUNT; dtype++)
            for (int op = 0; op < WEFTI_REDUCE_OP_COUNT; op++)
                for (size_t c = 0; c < WEFTI_COUNT(counts); c++)
                    for (int kind = WEFTI_ALLREDUCE; kind <= WEFTI_REDUCE_SCATTER; kind++) {
                        if (dtype == WEFT_BOOL && op == WEFTI_REDUCE_AVG) continue;
                        call_run(world, group, &memory,
                                 (call_case){.kind = (wefti_collective_kind)kind,
                                             .dtype = (weft_dtype)dtype,
                                             .op = (wefti_reduce_op)op,
                                             .count = counts[c],
                                             .seed = (uint32_t)c});
                    }
        CLOSE(group);
    }
    arenas_close(world, &memory);
}

/* --- all kinds at all sizes, in place and not, wherever the buffers are --- */

enum { VARIANTS = 2 * PLACEMENTS, VARIANT_STEP = UNDER_THREAD_SANITIZER ? 13 : 1 }; /* 13: one of them every other time */

static void every_size(rank_world *world, const size_t *counts, size_t count_count, const char *const *algorithms,
                       size_t algorithm_count) {
    static const weft_dtype dtypes[] = {WEFT_F32, WEFT_U8, WEFT_F64};
    arenas memory;
    arenas_open(world, &memory, (size_t)24 << 20);
    for (size_t a = 0; a < algorithm_count; a++) {
        wefti_group *group = group_by(world, algorithms[a]);
        if (!group) continue;
        for (size_t c = 0; c < count_count; c++)
            for (size_t k = 0; k < every_kind_count; k++)
                for (int variant = (int)(a + c + k) % VARIANT_STEP; variant < VARIANTS; variant += VARIANT_STEP)
                    call_run(world, group, &memory,
                             (call_case){.kind = every_kind[k],
                                         .dtype = dtypes[(c + k) % WEFTI_COUNT(dtypes)],
                                         .count = counts[c],
                                         .root = (int32_t)(c + (size_t)variant) % world->size,
                                         .in_place = variant % 2,
                                         .where = (placement)(variant / 2),
                                         .seed = (uint32_t)variant});
        CLOSE(group);
    }
    arenas_close(world, &memory);
}

static void every_small_size(rank_world *world) {
    static const size_t counts[] = {0, 1, 6, 11, 255, 1025, 2048, 2049, 8193};
    every_size(world, counts, WEFTI_COUNT(counts), small_ways, WEFTI_COUNT(small_ways));
}

static void every_large_size(rank_world *world) {
    static const size_t counts[] = {65537, 200003};
    every_size(world, counts, WEFTI_COUNT(counts), large_ways, WEFTI_COUNT(large_ways));
}

/* --- many in flight --- */

enum { FLIGHTS = 40 };

/* Ends them in an order that differs from rank to rank, with pauses. */
static void finish_shuffled(rank_world *world, wefti_collective **handles, int count, unsigned *random) {
    for (int left = count; left > 0;) {
        int pick = (int)(rand_r(random) % (unsigned)left);
        weft_status status;
        if (rand_r(random) % 3 == 0)
            status = wefti_collective_wait(handles[pick], (uint64_t)(rand_r(random) % 100000) + 1);
        else
            status = wefti_collective_test(handles[pick]);
        if (status == WEFT_E_AGAIN) continue;
        CHECK_OK(status);
        handles[pick] = handles[--left];
        if (rand_r(random) % 8 == 0) world->wire->host->yield(world->wire->host->context);
    }
}

static void many_in_flight(rank_world *world) {
    static const size_t counts[] = {1, 100, 3000, 70000};
    arenas memory;
    unsigned random = (unsigned)world->rank * 7919 + 1;
    arenas_open(world, &memory, (size_t)48 << 20);
    for (size_t a = 0; a < WEFTI_COUNT(ways); a++) {
        wefti_group *group = group_by(world, ways[a]);
        if (!group) continue;
        ready_call ready[FLIGHTS];
        wefti_collective *handles[FLIGHTS];
        memory.used = 0;
        for (int i = 0; i < FLIGHTS; i++) {
            call_prepare(world, &memory,
                         (call_case){.kind = every_kind[(size_t)i % every_kind_count],
                                     .count = counts[i / 5 % 4],
                                     .root = i % world->size,
                                     .in_place = i % 2,
                                     .where = (placement)(i % 3),
                                     .seed = (uint32_t)i},
                         &ready[i]);
            ready[i].call.priority = i % 7 == 3 ? i : i % 2;
            CHECK_OK(wefti_collective_start(group, &ready[i].call, &handles[i]));
            CHECK(group->engine->sequence(handles[i]) == (uint64_t)i, "sequence numbers count the calls");
            if (rand_r(&random) % 4 == 0) CHECK_OK(group->engine->progress(group, world_now()));
        }
        finish_shuffled(world, handles, FLIGHTS, &random);
        for (int i = 0; i < FLIGHTS; i++) call_check(world, &ready[i]);
        CLOSE(group);
    }
    arenas_close(world, &memory);
}

/* --- bits --- */

static int64_t reduce_noise(rank_world *world, wefti_group *group, float *buffer, size_t count) {
    uint32_t random = (uint32_t)world->rank + 17;
    for (size_t i = 0; i < count; i++) {
        random = random * 1664525u + 1013904223u;
        buffer[i] = (float)random / 1e9f - 1;
    }
    wefti_collective *handle = NULL;
    wefti_collective_call call = {
        .kind = WEFTI_ALLREDUCE, .dtype = WEFT_F32, .send = buffer, .receive = buffer, .count = count};
    if (world_now() / 1000 % 2) world->wire->host->sleep(world->wire->host->context, world_now() % 300000);
    CHECK_OK(wefti_collective_start(group, &call, &handle));
    CHECK_OK(wefti_collective_wait(handle, 0));
    return hash_floats(buffer, count);
}

/* Sums of numbers that round: the same bits on all ranks, and in every run. */
static void equal_bits(rank_world *world) {
    static const size_t counts[] = {3, 1500, 50001, 400000};
    arenas memory;
    arenas_open(world, &memory, (size_t)2 << 20);
    for (size_t a = 0; a < WEFTI_COUNT(ways); a++) {
        wefti_group *group = group_by(world, ways[a]);
        if (!group) continue;
        for (size_t c = 0; c < WEFTI_COUNT(counts); c++) {
            float *buffer = (float *)(c % 2 ? memory.exported : memory.foreign);
            int64_t first = reduce_noise(world, group, buffer, counts[c]);
            check_equal_everywhere(world, first, "a sum");
            for (int again = 0; again < 2; again++)
                CHECK(reduce_noise(world, group, buffer, counts[c]) == first, "run %d gives other bits", again);
        }
        CLOSE(group);
    }
    arenas_close(world, &memory);
}

/* --- sub-groups, and several at once --- */

static void two_groups_at_once(rank_world *world) {
    /* All ranks, in reverse; and the even or odd ones. */
    int32_t reverse[MOST_RANKS], mine[MOST_RANKS], members = 0, index = 0;
    for (int32_t i = 0; i < world->size; i++) reverse[i] = world->size - 1 - i;
    for (int32_t i = world->rank % 2; i < world->size; i += 2) {
        if (i == world->rank) index = members;
        mine[members++] = i;
    }
    const wefti_collective_engine *engine = wefti_collective_engine_weft();
    wefti_group *all = NULL, *some = NULL;
    CHECK_OK(engine->open(&(wefti_group_options){.wire = world->wire,
                                                 .ranks = reverse,
                                                 .size = world->size,
                                                 .index = world->size - 1 - world->rank,
                                                 .id = 1},
                          &all));
    CHECK_OK(engine->open(
        &(wefti_group_options){
            .wire = world->wire, .ranks = mine, .size = members, .index = index, .id = (uint16_t)(2 + world->rank % 2)},
        &some));
    for (int round = 0; round < 50; round++) {
        int64_t one = world->rank + round, two = world->rank + 10, gathered[MOST_RANKS];
        wefti_collective *first = NULL, *second = NULL;
        CHECK_OK(wefti_collective_start(
            all,
            &(wefti_collective_call){
                .kind = WEFTI_ALLGATHER, .dtype = WEFT_I64, .send = &one, .receive = gathered, .count = 1},
            &first));
        CHECK_OK(wefti_collective_start(
            some,
            &(wefti_collective_call){
                .kind = WEFTI_ALLREDUCE, .dtype = WEFT_I64, .send = &two, .receive = &two, .count = 1},
            &second));
        CHECK_OK(wefti_collective_wait(second, 0));
        CHECK_OK(wefti_collective_wait(first, 0));
        int64_t sum = 0;
        for (int32_t i = 0; i < members; i++) sum += mine[i] + 10;
        CHECK(two == sum, "the part's sum is %lld", (long long)two);
        for (int32_t i = 0; i < world->size; i++) CHECK(gathered[i] == reverse[i] + round, "wrong order of members");
    }
    CLOSE(some);
    CLOSE(all);
}

/* --- nothing is allocated once a group is open --- */

/* By the mapped algorithms. Those that send messages are settled once no more come before their receives than ever waited at once before,
 * which a busy machine puts off. */
static void allocates_nothing(rank_world *world) {
    arenas memory;
    arenas_open(world, &memory, (size_t)8 << 20);
    wefti_group *group = group_by(world, NULL);
    enum { MOST_ROUNDS = 24 };
    int64_t made = 1;
    for (int round = 0; round < MOST_ROUNDS && made; round++) {
        weft_memory_counts before, after;
        world_barrier(world);
        weft_memory_read(&before);
        for (int half = 0; half < 2; half++)
            for (size_t k = 0; k < every_kind_count; k++)
                for (size_t count = 1; count < 200000; count *= 17)
                    call_run(world, group, &memory, (call_case){.kind = every_kind[k], .count = count, .where = (placement)half});
        weft_memory_read(&after);
        world->shared->note[world->rank] = after.allocations - before.allocations;
        world_barrier(world);
        made = 0;
        for (int32_t rank = 0; rank < world->size; rank++) made += world->shared->note[rank];
        if (round == 0) made = 1; /* the first operations of a kind take their memory then */
    }
    CHECK(made == 0, "%lld allocations in the last of %d rounds", (long long)made, MOST_ROUNDS);
    CLOSE(group);
    arenas_close(world, &memory);
}

/* --- the choice by size --- */

typedef struct choice {
    wefti_collective_kind kind;
    size_t bytes;                     /* of the call's count */
    const char *mapped, *pair, *many; /* what is taken where memory is mapped; else by two ranks, and by more */
} choice;
static const choice choices[] = {
    {WEFTI_ALLREDUCE, 8, "oneshot", "doubling", "direct"},
    {WEFTI_ALLREDUCE, 2048, "oneshot", "doubling", "direct"},
    {WEFTI_ALLREDUCE, 8192, "twoshot", "swap", "direct"},
    {WEFTI_ALLREDUCE, 65536, "twoshot", "swap", "halving"},
    {WEFTI_ALLREDUCE, (size_t)128 << 10, "twoshot", "swap", "halving"},
    {WEFTI_ALLREDUCE, (size_t)256 << 10, "twoshot", "ring", "halving"},
    {WEFTI_ALLREDUCE, (size_t)64 << 20, "twoshot", "ring", "ring"},
    {WEFTI_REDUCE_SCATTER, 8, "oneshot", "direct", "direct"},
    {WEFTI_REDUCE_SCATTER, 65536, "twoshot", "ring", "ring"},
    {WEFTI_ALLGATHER, 8, "oneshot", "direct", "direct"},
    {WEFTI_ALLGATHER, 65536, "twoshot", "ring", "bruck"},
    {WEFTI_BROADCAST, 8, "oneshot", "tree", "tree"},
    {WEFTI_BROADCAST, (size_t)1 << 20, "twoshot", "chain", "chain"},
    {WEFTI_BARRIER, 0, "oneshot", "dissemination", "dissemination"},
    {WEFTI_REDUCE_TO, 8, "oneshot", "tree", "tree"},
    {WEFTI_REDUCE_TO, (size_t)16 << 20, "twoshot", "tree", "chain"},
    {WEFTI_GATHER, 8, "oneshot", "tree", "linear"},
    {WEFTI_SCATTER, (size_t)1 << 20, "twoshot", "linear", "linear"},
    {WEFTI_ALLTOALL, 8, "oneshot", "pairwise", "pairwise"},
    {WEFTI_ALLTOALL, (size_t)1 << 20, "twoshot", "pairwise", "pairwise"},
    {WEFTI_ALLTOALL_V, 0, "pairwise", "pairwise", "pairwise"},
    {WEFTI_ALLGATHER_V, 65536, "twoshot", "ring", "bruck"},
    {WEFTI_SEND, 8, "point", "point", "point"},
};

static void the_choice_by_size(rank_world *world) {
    wefti_group *group = group_by(world, NULL);
    for (size_t i = 0; i < WEFTI_COUNT(choices); i++) {
        const choice *due = &choices[i];
        const char *name = maps_peers(world) ? due->mapped : world->size == 2 ? due->pair : due->many;
        wefti_collective_call call = {.kind = due->kind, .count = due->bytes / sizeof(float)};
        const coll_algorithm *taken = wefti_coll_choose((const coll_group *)group, &call, due->bytes);
        CHECK(strcmp(taken->name, name) == 0, "kind %d of %zu bytes takes %s and not %s", (int)due->kind, due->bytes,
              taken->name, name);
    }
    CLOSE(group);
    /* A name forces it, and where it does not fit the choice is as before. */
    group = group_by(world, "direct");
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE};
    CHECK(strcmp(wefti_coll_choose((const coll_group *)group, &call, 64)->name, "direct") == 0, "not forced");
    CHECK(strcmp(wefti_coll_choose((const coll_group *)group, &call, 1 << 20)->name, "direct") != 0, "too large for it");
    CLOSE(group);
}

#define ON(setup, ranks, function) conformance_run_one(&setup, ranks, #function, function)

Test(collective_inproc, dtypes_and_ops_1) { ON(inproc, 1, every_dtype_and_op); }
Test(collective_inproc, dtypes_and_ops_2) { ON(inproc, 2, every_dtype_and_op); }
Test(collective_inproc, dtypes_and_ops_3) { ON(inproc, 3, every_dtype_and_op); }
Test(collective_inproc, dtypes_and_ops_5) { ON(inproc, 5, every_dtype_and_op); }
Test(collective_inproc, small_sizes_1) { ON(inproc, 1, every_small_size); }
Test(collective_inproc, small_sizes_2) { ON(inproc, 2, every_small_size); }
Test(collective_inproc, small_sizes_3) { ON(inproc, 3, every_small_size); }
Test(collective_inproc, small_sizes_4) { ON(inproc, 4, every_small_size); }
Test(collective_inproc, large_sizes_2) { ON(inproc, 2, every_large_size); }
Test(collective_inproc, large_sizes_3) { ON(inproc, 3, every_large_size); }
Test(collective_inproc, many_in_flight_2) { ON(inproc, 2, many_in_flight); }
Test(collective_inproc, many_in_flight_4) { ON(inproc, 4, many_in_flight); }
Test(collective_inproc, equal_bits_2) { ON(inproc, 2, equal_bits); }
Test(collective_inproc, equal_bits_5) { ON(inproc, 5, equal_bits); }
Test(collective_inproc, two_groups_2) { ON(inproc, 2, two_groups_at_once); }
Test(collective_inproc, two_groups_5) { ON(inproc, 5, two_groups_at_once); }

Test(collective_shm, dtypes_and_ops_2) { ON(shm, 2, every_dtype_and_op); }
Test(collective_shm, small_sizes_2) { ON(shm, 2, every_small_size); }
Test(collective_shm, small_sizes_5) { ON(shm, 5, every_small_size); }
Test(collective_shm, large_sizes_2) { ON(shm, 2, every_large_size); }
Test(collective_shm, large_sizes_4) { ON(shm, 4, every_large_size); }
Test(collective_shm, many_in_flight_2) { ON(shm, 2, many_in_flight); }
Test(collective_shm, many_in_flight_3) { ON(shm, 3, many_in_flight); }
Test(collective_shm, equal_bits_3) { ON(shm, 3, equal_bits); }
Test(collective_shm, two_groups_4) { ON(shm, 4, two_groups_at_once); }
Test(collective_shm, allocates_nothing) { ON(shm, 2, allocates_nothing); }

Test(collective_tcp, dtypes_and_ops_2) { ON(tcp, 2, every_dtype_and_op); }
Test(collective_tcp, small_sizes_2) { ON(tcp, 2, every_small_size); }
Test(collective_tcp, small_sizes_3) { ON(tcp, 3, every_small_size); }
Test(collective_tcp, small_sizes_4) { ON(tcp, 4, every_small_size); }
Test(collective_tcp, large_sizes_2) { ON(tcp, 2, every_large_size); }
Test(collective_tcp, large_sizes_3) { ON(tcp, 3, every_large_size); }
Test(collective_tcp, many_in_flight_2) { ON(tcp, 2, many_in_flight); }
Test(collective_tcp, many_in_flight_4) { ON(tcp, 4, many_in_flight); }
Test(collective_tcp, equal_bits_2) { ON(tcp, 2, equal_bits); }
Test(collective_tcp, equal_bits_3) { ON(tcp, 3, equal_bits); }
Test(collective_tcp, two_groups_4) { ON(tcp, 4, two_groups_at_once); }

Test(collective_choice, inproc) { ON(inproc, 2, the_choice_by_size); }
Test(collective_choice, shm) { ON(shm, 3, the_choice_by_size); }
Test(collective_choice, tcp_2) { ON(tcp, 2, the_choice_by_size); }
Test(collective_choice, tcp_4) { ON(tcp, 4, the_choice_by_size); }

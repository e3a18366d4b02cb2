/* Every algorithm of the table, by name: each kind that it does, with every dtype and reduction, sizes from nothing to several
 * segments, one to eight ranks; against the oracle, and its bytes on the wire against its formula. In one process, and a
 * slice of it between processes over shared memory and TCP; in a simulation where messages overtake each other. */
#include <criterion/criterion.h>
#include <string.h>

#include "cases.h"
#include "common/effort.h"
#include "transport/coll.h"

static const wire_setup inproc = {.name = "inproc", .mode = AS_THREADS, .open = wefti_wire_inproc_open};
static const wire_setup shm = {.name = "shm", .mode = AS_PROCESSES, .open = wefti_wire_shm_open};
static const wire_setup tcp = {.name = "tcp", .mode = AS_PROCESSES, .open = wefti_wire_tcp_open};
#ifndef __SANITIZE_THREAD__ /* which sees nothing in one thread, and does not know its fibers */
static const wefti_sim_options stormy = {.seed = 4, .jitter_ns = 20000, .lost = 1000, .again_ns = WEFTI_MILLISECOND_NS};
static const wire_setup sim = {.name = "sim", .mode = AS_FIBERS, .open = wefti_wire_sim_open, .simulated = &stormy};
#endif

enum { EVERY = UNDER_THREAD_SANITIZER ? 83 : UNDER_ADDRESS_SANITIZER ? 4 : 1 }; /* of the cases, in turn */
/* The thread sanitizer clears its shadow of each world's memory again and again: fewer worlds there. */
#define PLAIN .disabled = UNDER_THREAD_SANITIZER

/* Nodes of different sizes, and not one behind the other; of one size, few and large, and many and small. */
static const int32_t nodes[][MOST_RANKS] = {{0, 0, 1, 0, 1, 2, 2, 0}, {0, 0, 0, 0, 1, 1, 1, 1}, {0, 1, 0, 1, 2, 2, 3, 3}};
static int maps_of_nodes(const coll_algorithm *algorithm) { return strcmp(algorithm->name, "hierarchical") == 0 ? WEFTI_COUNT(nodes) : 1; }

static bool maps_peers(const rank_world *world) { return world->wire->can.flags & WEFTI_WIRE_MAPS_PEERS; }

/* MPI's own collectives are tried by tests/mpi, under MPI's launchers. */
static bool is_here(const rank_world *world, const coll_algorithm *algorithm) {
    return (!algorithm->mapped || maps_peers(world)) && strcmp(algorithm->name, "mpi") != 0;
}

/* NULL where the algorithm is none for this wire. */
static wefti_group *group_by(rank_world *world, const coll_algorithm *algorithm, int map) {
    if (!is_here(world, algorithm)) return NULL;
    return group_of_all(world, &(wefti_group_options){.algorithm = algorithm->name, .nodes = nodes[map]});
}

/* Whether the algorithm does this case and is what the group takes for it. */
static bool takes(const rank_world *world, const wefti_group *group, const coll_algorithm *algorithm, const call_case *what) {
    wefti_collective_call call = {.kind = what->kind, .dtype = what->dtype, .op = what->op};
    size_t longest = 0;
    for (int32_t i = 0; i < world->size; i++) {
        size_t part = what->kind == WEFTI_ALLTOALL_V ? 0 : case_part(what, i, i);
        longest = part > longest ? part : longest;
    }
    size_t bytes = what->kind == WEFTI_BARRIER ? 0 : longest * weft_dtype_bytes(what->dtype);
    return (algorithm->kinds >> what->kind & 1) && wefti_coll_choose((const coll_group *)group, &call, bytes) == algorithm;
}

static const wefti_reduce_op ops[] = {WEFTI_REDUCE_SUM, WEFTI_REDUCE_PROD, WEFTI_REDUCE_MIN,
                                      WEFTI_REDUCE_MAX, WEFTI_REDUCE_AVG,  WEFTI_REDUCE_USER};

/* Gives whether it was one for the algorithm, and its turn. */
static bool run_case(rank_world *world, wefti_group *group, const coll_algorithm *algorithm, arenas *memory, int *turn, call_case what) {
    if (what.dtype == WEFT_BOOL && what.op == WEFTI_REDUCE_AVG) return false;
    if (world->size > 1 && !takes(world, group, algorithm, &what)) return false;
    if (++*turn % EVERY) return false;
    call_run(world, group, memory, what);
    return true;
}

/* All dtypes and reductions at small sizes, a few at large ones. Gives how many were run. */
static int cases_of(rank_world *world, wefti_group *group, const coll_algorithm *algorithm, wefti_collective_kind kind,
                     arenas *memory, int *turn) {
    static const size_t small[] = {0, 1, 7, 1025}, large[] = {70001, 300007};
    size_t op_count = kind_reduces(kind) ? WEFTI_COUNT(ops) : 1;
    int done = 0;
    for (size_t c = 0; c < WEFTI_COUNT(small); c++)
        for (int dtype = 0; dtype < WEFT_DTYPE_COUNT; dtype++)
            for (size_t o = 0; o < op_count; o++)
                done += run_case(world, group, algorithm, memory, turn,
                         (call_case){.kind = kind, .dtype = (weft_dtype)dtype, .op = ops[o], .count = small[c],
                                     .root = (dtype + (int)o) % world->size, .in_place = (dtype + (int)o) % 2,
                                     .where = (placement)((dtype + (int)o) % PLACEMENTS), .seed = (uint32_t)(o + c)});
    for (size_t c = 0; c < WEFTI_COUNT(large); c++) {
        static const weft_dtype dtypes[] = {WEFT_U8, WEFT_F32, WEFT_BF16};
        done += run_case(world, group, algorithm, memory, turn,
                 (call_case){.kind = kind, .dtype = dtypes[(c + (size_t)world->size) % WEFTI_COUNT(dtypes)],
                             .count = kind == WEFTI_ALLREDUCE ? large[c] : large[c] / (size_t)world->size,
                             .root = world->size - 1, .in_place = c, .where = (placement)c, .seed = (uint32_t)c});
    }
    return done;
}

static void every_algorithm(rank_world *world) {
    arenas memory;
    arenas_open(world, &memory, (size_t)16 << 20);
    for (int a = 0; a < wefti_coll_algorithm_count; a++) {
        const coll_algorithm *algorithm = &wefti_coll_algorithms[a];
        int done = 0, turn = EVERY - 1 - EVERY / 8; /* of those it takes one at the least */
        for (int map = 0; map < maps_of_nodes(algorithm); map++) {
            wefti_group *group = group_by(world, algorithm, map);
            for (size_t k = 0; group && k < every_kind_count; k++)
                done += cases_of(world, group, algorithm, every_kind[k], &memory, &turn);
            if (group) CLOSE(group);
        }
        bool pairs = strcmp(algorithm->name, "swap") == 0, apart = strcmp(algorithm->name, "point") == 0;
        bool possible = world->size > 2 && !pairs && !apart && is_here(world, algorithm);
        CHECK(done > 0 || !possible, "%s was never taken", algorithm->name);
    }
    arenas_close(world, &memory);
}

/* --- bytes on the wire --- */

static uint64_t sent_by_all(rank_world *world) {
    wefti_wire_counts counts;
    uint64_t sum = 0;
    world->wire->ops->counts(world->wire, &counts);
    atomic_store(&world->shared->note[world->rank], (int64_t)counts.sent_bytes);
    world_barrier(world);
    for (int32_t i = 0; i < world->size; i++) sum += (uint64_t)atomic_load(&world->shared->note[i]);
    world_barrier(world);
    return sum;
}

enum { TURNS = 5 };

static int bytes_of_case(rank_world *world, wefti_group *group, const coll_algorithm *algorithm, arenas *memory, call_case what) {
    bool differ = what.kind >= WEFTI_REDUCE_SCATTER_V;
    if (differ || !takes(world, group, algorithm, &what)) return 0;
    size_t bytes = what.kind == WEFTI_BARRIER ? 0 : what.count * sizeof(float);
    uint64_t sent = 0;
    uint64_t due = algorithm->sent_bytes((coll_group *)group, what.kind, bytes) +
                   sizeof(coll_opening) * algorithm->headers((coll_group *)group, what.kind);
    for (int turn = 0; turn < TURNS && sent != due; turn++) {
        uint64_t before = sent_by_all(world);
        call_run(world, group, memory, what);
        sent = sent_by_all(world) - before;
        /* Who waited long for another has asked it, which is in no formula. */
        if (sent < due || (sent - due) % sizeof(coll_header)) break;
    }
    CHECK(sent == due, "%s, kind %d, %zu bytes, %d ranks: %llu bytes were sent, by the formula it is %llu", algorithm->name,
          (int)what.kind, bytes, (int)world->size, (unsigned long long)sent, (unsigned long long)due);
    return 1;
}

static void bytes_by_formula(rank_world *world) {
    static const size_t counts[] = {0, 1, 1000, 100003};
    arenas memory;
    int checked = 0;
    arenas_open(world, &memory, (size_t)16 << 20);
    for (int a = 0; a < wefti_coll_algorithm_count; a++) {
        const coll_algorithm *algorithm = &wefti_coll_algorithms[a];
        for (int map = 0; map < maps_of_nodes(algorithm) && !algorithm->mapped && is_here(world, algorithm); map++) {
            wefti_group *group = group_by(world, algorithm, map);
            for (size_t k = 0; k < every_kind_count; k++)
                for (size_t c = 0; c < WEFTI_COUNT(counts); c++)
                    checked += bytes_of_case(world, group, algorithm, &memory, (call_case){.kind = every_kind[k], .count = counts[c], .root = 1});
            CLOSE(group);
        }
    }
    CHECK(checked >= 30, "only %d cases", checked);
    arenas_close(world, &memory);
}

/* --- sends and receives --- */

/* Around the ring, many at once, of all sizes, between other calls; received before and after they are sent. */
static void messages_between_ranks(rank_world *world) {
    enum { MESSAGES = 12 };
    static const size_t sizes[] = {0, 1, 500, 20000, 700001};
    arenas memory;
    arenas_open(world, &memory, (size_t)24 << 20);
    wefti_group *group = group_of_all(world, NULL);
    int32_t right = (world->rank + 1) % world->size, left = (world->rank + world->size - 1) % world->size;
    wefti_collective *sends[MESSAGES], *receives[MESSAGES];
    uint8_t *out = memory.exported, *in = memory.foreign;
    for (int round = 0; round < 2; round++) {
        size_t used = 0;
        for (int i = 0; i < MESSAGES; i++) {
            size_t bytes = sizes[(size_t)(i + round) % WEFTI_COUNT(sizes)];
            CHECK(2 * used + 2 * bytes <= memory.bytes, "too many");
            memset(out + used, world->rank * 31 + i, bytes);
            memset(in + memory.bytes / 2 + used, 0xee, bytes);
            wefti_collective_call send = {.kind = WEFTI_SEND, .dtype = WEFT_U8, .root = right, .send = out + used, .count = bytes};
            wefti_collective_call receive = {.kind = WEFTI_RECEIVE, .dtype = WEFT_U8, .root = left,
                                             .receive = in + memory.bytes / 2 + used, .count = bytes};
            bool first = (world->rank + round) % 2;
            CHECK_OK(wefti_collective_start(group, first ? &send : &receive, first ? &sends[i] : &receives[i]));
            if (i == 3) CHECK_OK(wefti_collective_run(group, &(wefti_collective_call){.kind = WEFTI_BARRIER}));
            CHECK_OK(wefti_collective_start(group, first ? &receive : &send, first ? &receives[i] : &sends[i]));
            CHECK(group->engine->sequence(sends[i]) == (uint64_t)(round * MESSAGES + i), "a number between the two");
            used += bytes;
        }
        CHECK(group->sequence == (uint64_t)(round + 1), "messages take no number of the group");
        used = 0;
        for (int i = 0; i < MESSAGES; i++) {
            size_t bytes = sizes[(size_t)(i + round) % WEFTI_COUNT(sizes)];
            CHECK_OK(wefti_collective_wait(receives[i], 0));
            CHECK_OK(wefti_collective_wait(sends[i], 0));
            for (size_t at = 0; at < bytes; at++)
                CHECK(in[memory.bytes / 2 + used + at] == (uint8_t)(left * 31 + i), "message %d, byte %zu of %zu", i, at, bytes);
            used += bytes;
        }
    }
    CLOSE(group);
    arenas_close(world, &memory);
}

/* --- priority --- */

/* Of many large ones that wait for scratch, the last and most urgent one overtakes those in the middle. */
static void the_urgent_overtake(rank_world *world) {
    enum { MANY = 24, COUNT = 200000 };
    arenas memory;
    arenas_open(world, &memory, (size_t)MANY * COUNT * sizeof(float) + 4096);
    wefti_group *group = group_of_all(world, &(wefti_group_options){.algorithm = "ring"});
    wefti_collective *handles[MANY];
    float *data = (float *)memory.foreign;
    for (int i = 0; i < MANY; i++) {
        for (int k = 0; k < COUNT; k += 1000) data[(size_t)i * COUNT + (size_t)k] = (float)i;
        wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .op = WEFTI_REDUCE_MAX, .send = data + (size_t)i * COUNT,
                                      .receive = data + (size_t)i * COUNT, .count = COUNT, .priority = i == MANY - 1};
        if (i == MANY - 1) world_barrier(world); /* all others have been started everywhere */
        CHECK_OK(wefti_collective_start(group, &call, &handles[i]));
    }
    weft_status status;
    while ((status = wefti_collective_test(handles[MANY - 1])) == WEFT_E_AGAIN) world->wire->host->yield(world->wire->host->context);
    CHECK_OK(status);
    int finished = 0;
    for (int i = 0; i < MANY - 1; i++) {
        coll_operation *operation = (coll_operation *)handles[i];
        finished += operation->finished;
    }
    CHECK(finished < MANY / 2, "%d of %d older ones were finished before", finished, MANY - 1);
    for (int i = 0; i < MANY - 1; i++) CHECK_OK(wefti_collective_wait(handles[i], 0));
    for (int i = 0; i < MANY; i++)
        for (int k = 0; k < COUNT; k += 1000) CHECK(data[(size_t)i * COUNT + (size_t)k] == (float)i, "operation %d", i);
    CLOSE(group);
    arenas_close(world, &memory);
}

#define ON(setup, ranks, function) conformance_run_one(&setup, ranks, #function, function)

Test(algorithms_inproc, ranks_1, PLAIN) { ON(inproc, 1, every_algorithm); }
Test(algorithms_inproc, ranks_2) { ON(inproc, 2, every_algorithm); }
Test(algorithms_inproc, ranks_3, PLAIN) { ON(inproc, 3, every_algorithm); }
Test(algorithms_inproc, ranks_4) { ON(inproc, 4, every_algorithm); }
Test(algorithms_inproc, ranks_5, PLAIN) { ON(inproc, 5, every_algorithm); }
Test(algorithms_inproc, ranks_6, PLAIN) { ON(inproc, 6, every_algorithm); }
Test(algorithms_inproc, ranks_7, PLAIN) { ON(inproc, 7, every_algorithm); }
Test(algorithms_inproc, ranks_8) { ON(inproc, 8, every_algorithm); }
Test(algorithms_shm, ranks_3) { ON(shm, 3, every_algorithm); }
Test(algorithms_tcp, ranks_4) { ON(tcp, 4, every_algorithm); }
Test(algorithms_tcp, ranks_5, PLAIN) { ON(tcp, 5, every_algorithm); }

#ifndef __SANITIZE_THREAD__
Test(algorithms_sim, ranks_3) { ON(sim, 3, every_algorithm); }
Test(algorithms_sim, ranks_6) { ON(sim, 6, every_algorithm); }
Test(algorithms_sim, ranks_8) { ON(sim, 8, every_algorithm); }
Test(algorithms_bytes, sim_4) { ON(sim, 4, bytes_by_formula); }
Test(algorithms_bytes, sim_7) { ON(sim, 7, bytes_by_formula); }
Test(algorithms_point, sim_3) { ON(sim, 3, messages_between_ranks); }
Test(algorithms_priority, sim_3) { ON(sim, 3, the_urgent_overtake); }
#endif

Test(algorithms_bytes, inproc_2) { ON(inproc, 2, bytes_by_formula); }
Test(algorithms_bytes, inproc_5, PLAIN) { ON(inproc, 5, bytes_by_formula); }
Test(algorithms_bytes, inproc_8, PLAIN) { ON(inproc, 8, bytes_by_formula); }
Test(algorithms_bytes, tcp_4) { ON(tcp, 4, bytes_by_formula); }
Test(algorithms_bytes, tcp_7, PLAIN) { ON(tcp, 7, bytes_by_formula); }

Test(algorithms_point, inproc_2) { ON(inproc, 2, messages_between_ranks); }
Test(algorithms_point, shm_3) { ON(shm, 3, messages_between_ranks); }
Test(algorithms_point, tcp_2) { ON(tcp, 2, messages_between_ranks); }
Test(algorithms_point, tcp_4) { ON(tcp, 4, messages_between_ranks); }

Test(algorithms_priority, inproc_3) { ON(inproc, 3, the_urgent_overtake); }
Test(algorithms_priority, tcp_2) { ON(tcp, 2, the_urgent_overtake); }
Test(algorithms_priority, shm_2) { ON(shm, 2, the_urgent_overtake); }

/* MPI's own collectives as the algorithm "mpi", on ranks that a launcher has started. */
#include "mpi/ranks/own.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "collective/cases.h"
#include "transport/coll_mpi.h"
#include "transport/wire_mpi_api.h"

enum { ARENA_BYTES = 24 << 20 };

static wefti_group *group_by_mpi(rank_world *world, wefti_group_options options) {
    options.algorithm = "mpi";
    return group_of_all(world, &options);
}

/* The name of the algorithm that a call is done by. */
static const char *taken(wefti_group *group, const wefti_collective_call *call) {
    size_t count = call->count;
    if (coll_kind_has_counts(call->kind))
        for (int32_t i = count = 0; i < group->size; i++) count = call->counts[i] > count ? call->counts[i] : count;
    return wefti_coll_choose((coll_group *)group, call, count * weft_dtype_bytes(call->dtype))->name;
}

/* --- every kind, dtype and operation --- */

static void check_call(rank_world *world, wefti_group *group, arenas *memory, call_case what) {
    bool ours = what.op == WEFTI_REDUCE_USER; /* MPI has no way to tell a function whose it is */
    memory->used = 0;
    ready_call ready;
    call_prepare(world, memory, what, &ready);
    CHECK(strcmp(taken(group, &ready.call), "mpi") == 0 || ours, "kind %d, %s, %s is done by %s", (int)what.kind,
          weft_dtype_name(what.dtype), wefti_reduce_op_name(what.op), taken(group, &ready.call));
    CHECK_OK(wefti_collective_run(group, &ready.call));
    call_check(world, &ready);
}

static void everything(rank_world *world) {
    static const size_t counts[] = {0, 1, 7, 1000, 20011, 300007};
    static const wefti_reduce_op ops[] = {WEFTI_REDUCE_SUM, WEFTI_REDUCE_PROD, WEFTI_REDUCE_MIN, WEFTI_REDUCE_MAX, WEFTI_REDUCE_AVG, WEFTI_REDUCE_USER};
    arenas memory;
    uint32_t seed = 1;
    arenas_open(world, &memory, ARENA_BYTES);
    wefti_group *group = group_by_mpi(world, (wefti_group_options){.id = 1});
    for (size_t k = 0; k < every_kind_count; k++)
        for (size_t c = 0; c < WEFTI_COUNT(counts); c++)
            for (weft_dtype dtype = 0; dtype < WEFT_DTYPE_COUNT; dtype++)
                for (size_t o = 0; o < WEFTI_COUNT(ops); o++) {
                    if ((!kind_reduces(every_kind[k]) && o != 0) || (dtype == WEFT_BOOL && ops[o] == WEFTI_REDUCE_AVG)) continue;
                    if (counts[c] > 1000 && (dtype % 3 || o % 2)) continue; /* the long ones less often */
                    call_case what = {.kind = every_kind[k], .dtype = dtype, .op = ops[o], .count = counts[c], .seed = seed++,
                                      .root = (int32_t)(seed % (uint32_t)world->size), .in_place = seed % 2,
                                      .where = (placement)(seed % PLACEMENTS)};
                    check_call(world, group, &memory, what);
                }
    CLOSE(group);
    world_barrier(world);
    arenas_close(world, &memory);
}

/* --- several in flight, and in several groups --- */

/* The members of every second rank, and those of the others, in descending order. */
static wefti_group *half_group(rank_world *world, uint16_t id) {
    int32_t ranks[MOST_RANKS], size = 0, index = -1;
    for (int32_t rank = world->size - 1; rank >= 0; rank--) {
        if (rank % 2 != world->rank % 2) continue;
        if (rank == world->rank) index = size;
        ranks[size++] = rank;
    }
    wefti_group *group = NULL;
    CHECK_OK(wefti_collective_engine_weft()->open(
        &(wefti_group_options){.wire = world->wire, .ranks = ranks, .size = size, .index = index, .id = id, .algorithm = size > 1 ? "mpi" : NULL},
        &group));
    return group;
}

/* The sum of the numbers of a group's ranks, so that members of another one would be seen. */
static void sum_of_ranks(rank_world *world, wefti_group *group, int32_t round, int32_t *value, wefti_collective **operation_out) {
    *value = world->rank + 100 * round;
    CHECK_OK(wefti_collective_start(group, &(wefti_collective_call){.kind = WEFTI_ALLREDUCE, .dtype = WEFT_I32, .send = value, .receive = value,
                                                                    .count = 1, .priority = round % 3}, operation_out));
}
static int32_t expected_sum(const wefti_group *group, int32_t round) {
    int32_t sum = 0;
    for (int32_t i = 0; i < group->size; i++) sum += group->ranks[i] + 100 * round;
    return sum;
}

static void groups(rank_world *world) {
    enum { ROUNDS = 12, TIMES = 3 };
    static int32_t values[2][ROUNDS];
    wefti_group *all = group_by_mpi(world, (wefti_group_options){.id = 1});
    for (int time = 0; time < TIMES; time++) { /* a group's id is free again when it is closed */
        wefti_collective *operations[2][ROUNDS];
        wefti_group *half = half_group(world, 2);
        CHECK(half->size == 1 || ((coll_group *)half)->mpi, "MPI has no communicator for a group of %d", (int)half->size);
        for (int32_t round = 0; round < ROUNDS; round++) {
            sum_of_ranks(world, round % 2 ? all : half, round, &values[0][round], &operations[0][round]);
            sum_of_ranks(world, round % 2 ? half : all, round, &values[1][round], &operations[1][round]);
        }
        for (int32_t round = ROUNDS - 1; round >= 0; round--) /* the last one first */
            for (int g = 0; g < 2; g++) {
                wefti_group *group = operations[g][round]->group;
                weft_status status;
                /* Both groups get on while one is waited for, as a world sees to it. */
                while ((status = wefti_collective_test(operations[g][round])) == WEFT_E_AGAIN) {
                    (void)!all->engine->progress(all, world_now());
                    (void)!half->engine->progress(half, world_now());
                }
                CHECK_OK(status);
                CHECK(values[g][round] == expected_sum(group, round), "round %d: %d, not %d", (int)round, (int)values[g][round],
                      (int)expected_sum(group, round));
            }
        CLOSE(half);
    }
    CLOSE(all);
    world_barrier(world);
}

/* Calls of all kinds at once, started in one order and waited for in another. */
static void in_flight(rank_world *world) {
    enum { CALLS = 24 };
    static ready_call calls[CALLS];
    wefti_collective *operations[CALLS];
    arenas memory;
    arenas_open(world, &memory, ARENA_BYTES);
    wefti_group *group = group_by_mpi(world, (wefti_group_options){.id = 1, .in_flight = CALLS});
    for (uint32_t turn = 0; turn < 4; turn++) {
        memory.used = 0;
        for (uint32_t i = 0; i < CALLS; i++) {
            call_case what = {.kind = every_kind[i % every_kind_count], .dtype = (weft_dtype)(i % WEFT_DTYPE_COUNT), .count = i % 5 ? 1000 : 9001,
                              .root = (int32_t)(i % (uint32_t)world->size), .seed = 1 + i + turn * 100, .in_place = i % 3 == 0};
            call_prepare(world, &memory, what, &calls[i]);
            calls[i].call.priority = (int32_t)((i + (uint32_t)world->rank) % 4); /* members may differ in it */
            CHECK_OK(wefti_collective_start(group, &calls[i].call, &operations[i]));
        }
        for (uint32_t i = 0; i < CALLS; i++) {
            uint32_t at = (i * 7 + turn) % CALLS;
            CHECK_OK(wefti_collective_wait(operations[at], 0));
            call_check(world, &calls[at]);
        }
    }
    CLOSE(group);
    world_barrier(world);
    arenas_close(world, &memory);
}

/* --- the contract of numbers --- */

/* Sums whose last bits depend on the order: the same on all ranks. And minima hand on NaN, which MPI's own would not. */
static void numbers(rank_world *world) {
    enum { COUNT = 5003 };
    static float in[COUNT], out[COUNT], again[COUNT];
    wefti_group *group = group_by_mpi(world, (wefti_group_options){.id = 1});
    for (int i = 0; i < COUNT; i++) in[i] = (float)(sin(i * 12.9898 + world->rank * 78.233) * pow(10, i % 7));
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .send = in, .receive = out, .count = COUNT};
    CHECK_OK(wefti_collective_run(group, &call));
    check_equal_everywhere(world, hash_floats(out, COUNT), "a sum");
    call.receive = again;
    CHECK_OK(wefti_collective_run(group, &call));
    CHECK(memcmp(out, again, sizeof out) == 0, "the same sum has other bits the second time");
    for (int least = 0; least < 2; least++) {
        for (int i = 0; i < COUNT; i++) in[i] = i % world->size == world->rank ? NAN : (float)world->rank;
        call.op = least ? WEFTI_REDUCE_MIN : WEFTI_REDUCE_MAX;
        CHECK_OK(wefti_collective_run(group, &call));
        for (int i = 0; i < COUNT; i++) CHECK(isnan(again[i]), "the %s of a NaN is %g", least ? "minimum" : "maximum", (double)again[i]);
    }
    CLOSE(group);
    world_barrier(world);
}

/* --- calls that differ --- */

/* Before MPI has seen anything, so that it can go on afterwards: the next group works. */
static void differ(rank_world *world, wefti_collective_call call, const char *words) {
    static uint16_t id = 10;
    wefti_group *group = group_by_mpi(world, (wefti_group_options){.id = id++});
    call.timeout_ns = 2 * WEFTI_SECOND_NS;
    weft_status status = wefti_collective_run(group, &call);
    /* Who has nobody that differs to hear it from is told by the world's control channel, which is not here: it may end by its deadline. */
    CHECK(status == WEFT_E_MISMATCH || status == WEFT_E_PEER || status == WEFT_E_TIMEOUT, "%s: %s", weft_status_name(status), weft_error_message());
    if (status == WEFT_E_MISMATCH) {
        CHECK(strstr(weft_error_message(), words), "no '%s' in: %s", words, weft_error_message());
        atomic_fetch_add(&world->shared->note[0], 1);
    }
    CHECK(!wefti_mpi_poisoned(), "MPI was given calls that differ: %s", wefti_mpi_poisoned());
    CLOSE(group);
    world_barrier(world);
}

static void mismatches_of_headers(rank_world *world) {
    static int32_t in[64], out[64];
    bool odd = world->rank == world->size - 1;
    differ(world, (wefti_collective_call){.kind = WEFTI_ALLREDUCE, .dtype = WEFT_I32, .send = in, .receive = out, .count = odd ? 63 : 64}, "allreduce of 63 i32");
    CHECK(atomic_load(&world->shared->note[0]) > 0, "nobody saw that counts differ");
}
static void mismatches_of_counts(rank_world *world) {
    static int32_t in[64], out[64];
    size_t sent[MOST_RANKS], received[MOST_RANKS];
    for (int32_t i = 0; i < world->size; i++) sent[i] = received[i] = 4;
    if (world->rank == 0) sent[world->size - 1] = 3;
    differ(world, (wefti_collective_call){.kind = WEFTI_ALLTOALL_V, .dtype = WEFT_I32, .send = in, .receive = out, .counts = sent, .receive_counts = received},
           world->rank == world->size - 1 ? "rank 0 sends 3 elements where" : "all-to-allv");
    CHECK(atomic_load(&world->shared->note[0]) > 0, "nobody saw that counts differ");
}

/* --- a member that does not come, or goes --- */

/* Its deadline ends the call, in words; and one that MPI has already is given up, with MPI. */
static void late(rank_world *world) {
    static int32_t in[4], out[4];
    wefti_group *group = group_by_mpi(world, (wefti_group_options){.id = 1});
    if (world->rank != world->size - 1) {
        uint64_t begin_ns = world_now();
        weft_status status = wefti_collective_run(group, &(wefti_collective_call){.kind = WEFTI_ALLREDUCE, .dtype = WEFT_I32, .send = in, .receive = out, .count = 4,
                                                                                    .timeout_ns = WEFTI_SECOND_NS});
        CHECK(status == WEFT_E_TIMEOUT && strstr(weft_error_message(), "allreduce of 4 i32 (sum, mpi)") && strstr(weft_error_message(), "no answer from rank"),
              "%s: %s", weft_status_name(status), weft_error_message());
        CHECK(world_now() - begin_ns < 5 * WEFTI_SECOND_NS, "it took %g s", (double)(world_now() - begin_ns) / 1e9);
        CHECK(!wefti_mpi_poisoned(), "MPI was given a call that not all members had started");
    }
    atomic_fetch_add(&world->shared->note[0], 1);
    while (atomic_load(&world->shared->note[0]) < world->size) world_poll(world, world_now());
    CLOSE(group);
    world_barrier(world);
}

/* MPI has the call, and the last rank does not go on with it: the others' deadline ends it, and MPI is given up. */
static void stopped(rank_world *world) {
    enum { COUNT = 1 << 23 }; /* far more than MPI moves while it is given the call and asked once or twice */
    static float in[COUNT], out[COUNT];
    wefti_group *group = group_by_mpi(world, (wefti_group_options){.id = 1, .in_flight = 1});
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .send = in, .receive = out, .count = COUNT};
    CHECK_OK(wefti_collective_run(group, &call));
    call.timeout_ns = WEFTI_SECOND_NS;
    if (world->rank != world->size - 1) {
        /* A member may have what it needs; it then waits for the last rank's next call. */
        weft_status status = wefti_collective_run(group, &call);
        bool begun = status != WEFT_OK;
        if (!begun) status = wefti_collective_run(group, &call);
        CHECK(status == WEFT_E_TIMEOUT && strstr(weft_error_message(), "allreduce of 8388608 f32 (sum, mpi)"), "%s: %s", weft_status_name(status),
              weft_error_message());
        CHECK(strstr(weft_error_message(), begun ? "not done within 1 s" : "no answer from rank"), "%s", weft_error_message());
        CHECK(!begun || (wefti_mpi_poisoned() && strstr(wefti_mpi_poisoned(), "collectives")), "MPI goes on");
        if (begun) atomic_fetch_add(&world->shared->note[0], 1);
    } else {
        const coll_mpi_call *mine = ((coll_group *)group)->mpi->calls;
        wefti_collective *operation = NULL;
        CHECK_OK(wefti_collective_start(group, &call, &operation));
        while (mine->state != COLL_MPI_GIVEN) CHECK(wefti_collective_test(operation) == WEFT_E_AGAIN, "%s", weft_error_message());
    }
    atomic_fetch_add(&world->shared->finished, 1);
    while (atomic_load(&world->shared->finished) < world->size) world->wire->host->sleep(world->wire->host->context, WEFTI_MILLISECOND_NS);
    CHECK(atomic_load(&world->shared->note[0]) > 0, "nobody had to give MPI up");
    CLOSE(group);
    world->wire->ops->close(world->wire, 0);
    world->gone = true; /* what MPI has stays with it */
}

/* The last rank is killed while all are in large reductions; the others say who it was, soon. */
static void dead(rank_world *world) {
    enum { COUNT = 1 << 20 };
    static float in[COUNT], out[COUNT];
    wefti_group *group = group_by_mpi(world, (wefti_group_options){.id = 1, .timeout_ns = 20 * WEFTI_SECOND_NS});
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .send = in, .receive = out, .count = COUNT};
    int32_t last = world->size - 1;
    weft_status status = WEFT_OK;
    for (int i = 0; i < 5; i++) CHECK_OK(wefti_collective_run(group, &call));
    uint64_t begin_ns = world_now();
    if (world->rank == last) {
        wefti_collective *operation = NULL;
        (void)!wefti_collective_start(group, &call, &operation);
        /* Headers are through, and MPI has the call: it was given to it, or cannot be any more. */
        for (int i = 0; i < 200; i++) (void)!group->engine->progress(group, world_now());
        raise(SIGKILL);
    }
    for (int i = 0; i < 100000 && status == WEFT_OK; i++) status = wefti_collective_run(group, &call);
    char words[64];
    snprintf(words, sizeof words, "rank %d", (int)last);
    CHECK((status == WEFT_E_PEER || status == WEFT_E_LINK) && strstr(weft_error_message(), words) && strstr(weft_error_message(), "allreduce"),
          "%s: %s", weft_status_name(status), weft_error_message());
    CHECK(world_now() - begin_ns < 15 * WEFTI_SECOND_NS, "it took %g s", (double)(world_now() - begin_ns) / 1e9);
    CHECK(wefti_collective_run(group, &call) == status, "the verdict does not stay");
    CLOSE(group);
    atomic_fetch_add(&world->shared->finished, 1); /* no survivor leaves before the others are through */
    while (atomic_load(&world->shared->finished) < last) world->wire->host->sleep(world->wire->host->context, WEFTI_MILLISECOND_NS);
    world->wire->ops->close(world->wire, 0);
    world->gone = true;
}

void (*own_find(const char *name))(rank_world *world) {
    static const struct {
        const char *name;
        void (*run)(rank_world *world);
    } cases[] = {{"own", everything},           {"own_groups", groups},
                 {"own_in_flight", in_flight},  {"own_numbers", numbers},
                 {"own_headers_differ", mismatches_of_headers}, {"own_counts_differ", mismatches_of_counts},
                 {"own_late", late},            {"own_stopped", stopped}, {"own_dead", dead}};
    for (size_t i = 0; i < WEFTI_COUNT(cases); i++)
        if (strcmp(cases[i].name, name) == 0) return cases[i].run;
    return NULL;
}

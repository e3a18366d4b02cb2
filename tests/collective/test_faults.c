/* What goes wrong between ranks: calls that differ, a rank that does not come, a rank that dies at a random moment. Every
 * rank ends with the same verdict, which names what happened, and none hangs. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "transport/coll.h"
#include "transport/ranks.h"

enum { ELEMENTS = 200000, OTHER = 1 };

static const char *wire;
static weft_status open_transport(wefti_transport **transport_out) {
    return wefti_transport_open(&(wefti_transport_options){.wire = wire}, transport_out);
}

static void expect_all(const ranks *all, int32_t except, weft_status status, const char *needle, const char *what) {
    for (int32_t rank = 0; rank < all->size; rank++) {
        const rank_result *result = &all->results[rank];
        if (rank == except) continue;
        cr_expect(atomic_load(&result->finished) && result->status == status && strstr(result->message, needle),
                  "%s, %s, rank %d of %d: %s: %s (expected: %s)", what, wire, (int)rank, (int)all->size,
                  weft_status_name(result->status), result->message, needle);
    }
}

/* --- calls that differ --- */

typedef struct difference {
    const char *what, *words;          /* words: of the message */
    wefti_collective_call call, other; /* what everybody calls, and what rank OTHER calls */
} difference;
static const difference *differ;

static const size_t some[8] = {3, 1, 4, 1, 5, 9, 2, 6}, more[8] = {3, 2, 4, 1, 5, 9, 2, 6};
static void keep_first(void *context, void *into, const void *more_of, size_t count, weft_dtype dtype) {
    (void)context, (void)into, (void)more_of, (void)count, (void)dtype;
}
static const wefti_reduce_function by_first = {"first", keep_first, NULL}, by_last = {"last", keep_first, NULL};

static weft_status call_differently(ranks *all, int32_t rank) {
    (void)all;
    wefti_transport *transport = NULL;
    WEFTI_TRY(open_transport(&transport));
    wefti_collective_call call = rank == OTHER ? differ->other : differ->call;
    uint8_t *memory = calloc(2 * ELEMENTS, 8);
    call.send = memory;
    call.receive = memory + (size_t)ELEMENTS * 8;
    weft_status status = wefti_collective_run(transport->group, &(wefti_collective_call){.kind = WEFTI_BARRIER});
    if (status == WEFT_OK) status = wefti_collective_run(transport->group, &call);
    /* A rank that needed nothing from the others may be through; the next call tells it. */
    for (int i = 0; i < 1000 && status == WEFT_OK; i++)
        status = wefti_collective_run(transport->group, &(wefti_collective_call){.kind = WEFTI_BARRIER});
    wefti_transport_close(transport);
    free(memory);
    return status;
}

#define CALL(...)                                                                                                      \
    { __VA_ARGS__ }
static const difference differences[] = {
    {"the kind", "rank 1 calls", CALL(.kind = WEFTI_ALLREDUCE, .count = 10), CALL(.kind = WEFTI_BARRIER)},
    {"the kind and size", "rank 1 calls allgather of 200 f32", CALL(.kind = WEFTI_ALLREDUCE, .count = ELEMENTS),
     CALL(.kind = WEFTI_ALLGATHER, .count = 200)},
    {"a large and a small", "rank 1 calls allreduce of 5 f32", CALL(.kind = WEFTI_ALLREDUCE, .count = ELEMENTS),
     CALL(.kind = WEFTI_ALLREDUCE, .count = 5)},
    {"the count", "rank 1 calls allreduce of 12 f32", CALL(.kind = WEFTI_ALLREDUCE, .count = 10),
     CALL(.kind = WEFTI_ALLREDUCE, .count = 12)},
    {"the count, large", "rank 1 calls allreduce of 199999 f32", CALL(.kind = WEFTI_ALLREDUCE, .count = ELEMENTS),
     CALL(.kind = WEFTI_ALLREDUCE, .count = ELEMENTS - 1)},
    {"the dtype", "rank 1 calls allreduce of 10 i32", CALL(.kind = WEFTI_ALLREDUCE, .count = 10),
     CALL(.kind = WEFTI_ALLREDUCE, .dtype = WEFT_I32, .count = 10)},
    {"the reduction", "rank 1 calls reduce-scatter of 50000 f32 (max",
     CALL(.kind = WEFTI_REDUCE_SCATTER, .count = 50000, .op = WEFTI_REDUCE_MIN),
     CALL(.kind = WEFTI_REDUCE_SCATTER, .count = 50000, .op = WEFTI_REDUCE_MAX)},
    {"the root", "from member 1", CALL(.kind = WEFTI_BROADCAST, .count = 9),
     CALL(.kind = WEFTI_BROADCAST, .count = 9, .root = 1)},
    {"the count of a broadcast", "rank 1 calls broadcast of 9001 f32", CALL(.kind = WEFTI_BROADCAST, .count = 9000),
     CALL(.kind = WEFTI_BROADCAST, .count = 9001)},
    {"a broadcast and a smaller one", "rank 1 calls broadcast of 5 f32", CALL(.kind = WEFTI_BROADCAST, .count = 9000),
     CALL(.kind = WEFTI_BROADCAST, .count = 5)},
    {"the root of a reduce", "to member 1", CALL(.kind = WEFTI_REDUCE_TO, .count = ELEMENTS),
     CALL(.kind = WEFTI_REDUCE_TO, .count = ELEMENTS, .root = 1)},
    {"gather and scatter", "rank 1 calls scatter of 9 f32", CALL(.kind = WEFTI_GATHER, .count = 9),
     CALL(.kind = WEFTI_SCATTER, .count = 9)},
    {"the count of a gather", "rank 1 calls gather of 7 f32", CALL(.kind = WEFTI_GATHER, .count = 9),
     CALL(.kind = WEFTI_GATHER, .count = 7)},
    {"the count of an all-to-all", "rank 1 calls all-to-all of 8 f32", CALL(.kind = WEFTI_ALLTOALL, .count = 9),
     CALL(.kind = WEFTI_ALLTOALL, .count = 8)},
    {"the counts of an allgatherv", "rank 1 calls allgatherv", CALL(.kind = WEFTI_ALLGATHER_V, .counts = some),
     CALL(.kind = WEFTI_ALLGATHER_V, .counts = more)},
    {"the counts of a reduce-scatterv", "rank 1 calls reduce-scatterv", CALL(.kind = WEFTI_REDUCE_SCATTER_V, .counts = some),
     CALL(.kind = WEFTI_REDUCE_SCATTER_V, .counts = more)},
    {"the function", "rank 1 calls allreduce of 9 f32",
     CALL(.kind = WEFTI_ALLREDUCE, .op = WEFTI_REDUCE_USER, .function = &by_first, .count = 9),
     CALL(.kind = WEFTI_ALLREDUCE, .op = WEFTI_REDUCE_USER, .function = &by_last, .count = 9)},
    {"kinds of parts", "rank 1 calls allgather of 9 f32", CALL(.kind = WEFTI_ALLGATHER_V, .counts = some),
     CALL(.kind = WEFTI_ALLGATHER, .count = 9)},
};

/* OTHER waits for a member that sends it nothing, and is through when the others wait: who is asked says so. */
static const difference roots[] = {
    {"a root that is none", "rank 1 calls broadcast of 9 f32 from member 2", CALL(.kind = WEFTI_BROADCAST, .count = 9),
     CALL(.kind = WEFTI_BROADCAST, .count = 9, .root = 2)},
    {"a root that is none, in a tree", "from member 2 (", CALL(.kind = WEFTI_BROADCAST, .count = 9000),
     CALL(.kind = WEFTI_BROADCAST, .count = 9000, .root = 2)},
    {"a root that is none, large", "from member 2 (", CALL(.kind = WEFTI_BROADCAST, .count = ELEMENTS),
     CALL(.kind = WEFTI_BROADCAST, .count = ELEMENTS, .root = 2)},
    {"two roots, large", "from member 1 (", CALL(.kind = WEFTI_BROADCAST, .count = ELEMENTS),
     CALL(.kind = WEFTI_BROADCAST, .count = ELEMENTS, .root = 1)},
};

static void try_differences(const char *name, int32_t size, const difference *list, size_t count) {
    wire = name;
    for (size_t i = 0; i < count; i++) {
        differ = &list[i];
        ranks *all = ranks_start(size, call_differently);
        uint64_t since_ns = ranks_now();
        ranks_join(all);
        expect_all(all, -1, WEFT_E_MISMATCH, differ->words, differ->what);
        expect_all(all, -1, WEFT_E_MISMATCH, "operation 1 of group", differ->what);
        cr_expect(ranks_now() - since_ns < 10 * WEFTI_SECOND_NS, "%s took too long", differ->what);
        ranks_free(all);
    }
}

/* Counts that the two ends of a pair see differently, and messages: nobody else knows of them. */
static weft_status exchange_differently(ranks *all, int32_t rank) {
    (void)all;
    wefti_transport *transport = NULL;
    WEFTI_TRY(open_transport(&transport));
    uint8_t *memory = calloc(2 * ELEMENTS, 8);
    size_t out[8], in[8];
    for (int32_t i = 0; i < 8; i++) out[i] = in[i] = 10;
    if (rank == OTHER) in[0] = 0; /* a part that rank 0 has for it */
    wefti_collective_call call = {.kind = WEFTI_ALLTOALL_V, .send = memory, .receive = memory + (size_t)ELEMENTS * 8,
                                  .counts = out, .receive_counts = in};
    weft_status status = wefti_collective_run(transport->group, &call);
    for (int i = 0; i < 1000 && status == WEFT_OK; i++)
        status = wefti_collective_run(transport->group, &(wefti_collective_call){.kind = WEFTI_BARRIER});
    wefti_transport_close(transport);
    free(memory);
    return status;
}

static size_t sent_elements;
static weft_status message_differently(ranks *all, int32_t rank) {
    (void)all;
    wefti_transport *transport = NULL;
    WEFTI_TRY(open_transport(&transport));
    uint8_t *memory = calloc(ELEMENTS, 8);
    weft_status status = WEFT_OK;
    wefti_collective_call call = {.kind = rank == OTHER ? WEFTI_RECEIVE : WEFTI_SEND, .root = rank == OTHER ? 0 : OTHER,
                                  .send = memory, .receive = memory, .count = rank == OTHER ? 77 : sent_elements};
    if (rank == OTHER || rank == 0) status = wefti_collective_run(transport->group, &call);
    for (int i = 0; i < 1000 && status == WEFT_OK; i++)
        status = wefti_collective_run(transport->group, &(wefti_collective_call){.kind = WEFTI_BARRIER});
    wefti_transport_close(transport);
    free(memory);
    return status;
}

static void try_different_parts(const char *name) {
    wire = name;
    ranks *all = ranks_start(3, exchange_differently);
    ranks_join(all);
    expect_all(all, -1, WEFT_E_MISMATCH, "rank 0 sent 40 bytes where 0 were due", "counts of an all-to-allv");
    ranks_free(all);
    static const size_t sizes[] = {76, ELEMENTS};
    for (size_t i = 0; i < WEFTI_COUNT(sizes); i++) {
        char words[64];
        sent_elements = sizes[i];
        snprintf(words, sizeof words, "it sends %zu f32, and 77 f32 are received", sent_elements);
        all = ranks_start(3, message_differently);
        ranks_join(all);
        expect_all(all, -1, WEFT_E_MISMATCH, words, "a message");
        ranks_free(all);
    }
}

Test(collective_faults, different_parts_are_named_shm) { try_different_parts("shm"); }
Test(collective_faults, different_parts_are_named_tcp) { try_different_parts("tcp"); }

Test(collective_faults, different_calls_are_named_shm_2) { try_differences("shm", 2, differences, WEFTI_COUNT(differences)); }
Test(collective_faults, different_calls_are_named_shm_3) { try_differences("shm", 3, differences, WEFTI_COUNT(differences)); }
Test(collective_faults, different_calls_are_named_tcp_2) { try_differences("tcp", 2, differences, WEFTI_COUNT(differences)); }
Test(collective_faults, different_calls_are_named_tcp_3) { try_differences("tcp", 3, differences, WEFTI_COUNT(differences)); }

/* --- a rank that does not come --- */

static weft_status stay_away(ranks *all, int32_t rank) {
    wefti_transport *transport = NULL;
    wefti_group *group = NULL;
    WEFTI_TRY(open_transport(&transport));
    const wefti_collective_engine *engine = wefti_collective_engine_weft();
    wefti_group_options options = {.wire = transport->wire,
                                   .size = transport->size,
                                   .index = transport->rank,
                                   .id = 7,
                                   .timeout_ns = 3 * WEFTI_SECOND_NS / 2,
                                   .fault = transport->fault};
    weft_status status = engine->open(&options, &group);
    float values[4] = {0};
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .send = values, .receive = values, .count = 4};
    if (status == WEFT_OK) status = wefti_collective_run(group, &call);
    if (status == WEFT_OK && rank != OTHER) status = wefti_collective_run(group, &call);
    while (status == WEFT_OK && rank == OTHER) {
        usleep(1000);
        status = wefti_fault_status(transport->fault);
    }
    (void)all;
    engine->close(group);
    wefti_transport_close(transport);
    return status;
}

static void try_staying_away(const char *name, int32_t size) {
    wire = name;
    ranks *all = ranks_start(size, stay_away);
    ranks_join(all);
    expect_all(all, -1, WEFT_E_TIMEOUT, "operation 1 of group 7, allreduce of 4 f32", "a rank that does not come");
    expect_all(all, -1, WEFT_E_TIMEOUT, "no answer from rank 1", "a rank that does not come");
    ranks_free(all);
}

Test(collective_faults, a_rank_that_does_not_come_is_named_shm) {
    try_staying_away("shm", 2);
    try_staying_away("shm", 3);
}
Test(collective_faults, a_rank_that_does_not_come_is_named_tcp) {
    try_staying_away("tcp", 2);
    try_staying_away("tcp", 3);
}

/* --- a rank that leaves ahead of the others --- */

enum { AHEAD_US = 2500000 }; /* by how much; longer than any wait that closing could be given */

static weft_status open_group(wefti_transport *transport, wefti_group **group_out) {
    return wefti_collective_engine_weft()->open(&(wefti_group_options){.wire = transport->wire,
                                                                       .size = transport->size,
                                                                       .index = transport->rank,
                                                                       .id = 7,
                                                                       .fault = transport->fault},
                                                group_out);
}

/* Runs a call on which the others are seconds late, though they have started it and so given what OTHER needs of them. */
static weft_status run_late(wefti_group *group, const wefti_collective_call *call, bool late) {
    wefti_collective *operation = NULL;
    WEFTI_TRY(wefti_collective_start(group, call, &operation));
    if (late) {
        WEFTI_TRY(group->engine->progress(group, ranks_now()));
        usleep(AHEAD_US);
    }
    return wefti_collective_wait(operation, 0);
}

/* The sum of 1 … size in each element. */
static weft_status sum_late(wefti_group *group, bool late, size_t count) {
    float values[100];
    for (size_t i = 0; i < count; i++) values[i] = (float)(group->index + 1);
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .send = values, .receive = values, .count = count};
    WEFTI_TRY(run_late(group, &call, late));
    for (size_t i = 0; i < count; i++)
        if (values[i] != (float)(group->size * (group->size + 1) / 2))
            return wefti_fail(WEFT_E_INTERNAL, "element %zu is %g", i, (double)values[i]);
    return WEFT_OK;
}

/* The very first operation of a group is its last: nobody knows of anybody's memory before. */
static weft_status leave_ahead(ranks *all, int32_t rank) {
    wefti_transport *transport = NULL;
    WEFTI_TRY(open_transport(&transport));
    weft_status status = sum_late(transport->group, rank != OTHER, 100);
    wefti_transport_close(transport);
    (void)all;
    return status;
}

/* The root is through once the system has taken its bytes, which is more than its peers have room for. */
static weft_status broadcast_and_leave(ranks *all, int32_t rank) {
    wefti_transport *transport = NULL;
    WEFTI_TRY(open_transport(&transport));
    size_t bytes = (size_t)1 << 20;
    uint8_t *memory = malloc(bytes);
    memset(memory, rank == OTHER ? 42 : 0, bytes);
    wefti_collective_call call = {.kind = WEFTI_BROADCAST,
                                  .dtype = WEFT_U8,
                                  .root = OTHER,
                                  .send = memory,
                                  .receive = memory,
                                  .count = bytes};
    weft_status status = run_late(transport->group, &call, rank != OTHER);
    for (size_t i = 0; i < bytes && status == WEFT_OK; i++)
        if (memory[i] != 42) status = wefti_fail(WEFT_E_INTERNAL, "byte %zu is %d", i, memory[i]);
    wefti_transport_close(transport);
    free(memory);
    (void)all;
    return status;
}

/* OTHER closes one group and goes on with another, over the same wire. */
static weft_status close_one_group_ahead(ranks *all, int32_t rank) {
    wefti_transport *transport = NULL;
    wefti_group *group = NULL;
    WEFTI_TRY(open_transport(&transport));
    weft_status status = open_group(transport, &group);
    if (status == WEFT_OK) status = sum_late(group, rank != OTHER, 100);
    wefti_collective_engine_weft()->close(group);
    for (int round = 0; round < 3 && status == WEFT_OK; round++) { /* the same id once more, over and over */
        status = open_group(transport, &group);
        if (status == WEFT_OK) status = sum_late(group, false, 100);
        wefti_collective_engine_weft()->close(group);
        if (status == WEFT_OK) status = sum_late(transport->group, false, 1);
    }
    wefti_transport_close(transport);
    (void)all;
    return status;
}

static void try_ahead(const char *name, int32_t size, rank_function function, bool waits) {
    wire = name;
    ranks *all = ranks_start(size, function);
    ranks_join(all);
    for (int32_t rank = 0; rank < size; rank++)
        cr_expect(all->results[rank].status == WEFT_OK, "%s, rank %d of %d: %s", name, (int)rank, (int)size,
                  all->results[rank].message);
    uint64_t ahead_ns = all->results[0].at_ns - all->results[OTHER].at_ns;
    if (!waits) /* of 2.5 s, a busy machine may take some */
        cr_expect(ahead_ns > WEFTI_SECOND_NS && ahead_ns < 60 * WEFTI_SECOND_NS, "%s: it was ahead by %g s only", name,
                  (double)ahead_ns / 1e9);
    ranks_free(all);
}

Test(collective_faults, roots_that_differ_are_named_3) { try_differences("tcp", 3, roots, WEFTI_COUNT(roots)); }
Test(collective_faults, roots_that_differ_are_named_4) { try_differences("tcp", 4, roots, WEFTI_COUNT(roots)); }
Test(collective_faults, roots_that_differ_are_named_shm) { try_differences("shm", 3, roots, WEFTI_COUNT(roots)); }

Test(collective_faults, who_is_late_finishes_when_others_have_left_shm) {
    try_ahead("shm", 2, leave_ahead, false);
    try_ahead("shm", 3, leave_ahead, false);
}
Test(collective_faults, who_is_late_finishes_when_others_have_left_tcp) {
    try_ahead("tcp", 3, leave_ahead, false);
    try_ahead("tcp", 2, broadcast_and_leave, false);
}
Test(collective_faults, a_group_closed_ahead_leaves_the_wire_whole) {
    try_ahead("shm", 3, close_one_group_ahead, true);
    try_ahead("tcp", 3, close_one_group_ahead, true);
}

/* --- a rank that closes a group of which others want more --- */

static weft_status close_the_group_only(ranks *all, int32_t rank) {
    wefti_transport *transport = NULL;
    wefti_group *group = NULL;
    WEFTI_TRY(open_transport(&transport));
    weft_status status = open_group(transport, &group);
    if (status == WEFT_OK) status = sum_late(group, false, 10);
    if (status == WEFT_OK && rank != OTHER) status = sum_late(group, false, 10);
    wefti_collective_engine_weft()->close(group);
    while (status == WEFT_OK && rank == OTHER) {
        usleep(1000);
        status = wefti_fault_status(transport->fault);
    }
    wefti_transport_close(transport);
    (void)all;
    return status;
}

Test(collective_faults, a_rank_that_closed_its_group_is_named) {
    wire = "shm";
    uint64_t since_ns = ranks_now();
    ranks *all = ranks_start(3, close_the_group_only);
    ranks_join(all);
    expect_all(all, -1, WEFT_E_PEER, "rank 1 failed: it closed its group before operation 1 of group 7", "a closed group");
    cr_expect(ranks_now() - since_ns < 15 * WEFTI_SECOND_NS, "took %g s", (double)(ranks_now() - since_ns) / 1e9);
    ranks_free(all);
}

/* --- a rank that is killed at a random moment --- */

static int32_t victim;

/* A few of all kinds on the way, of all sizes, until something is wrong. */
static weft_status work_until_the_end(ranks *all, int32_t rank) {
    enum { FLIGHT = 4 };
    wefti_transport *transport = NULL;
    WEFTI_TRY(open_transport(&transport));
    wefti_group *group = transport->group;
    wefti_wire_region *region = NULL;
    const size_t part = (size_t)1 << 20;
    weft_status status = WEFT_OK;
    uint8_t *memory = NULL;
    if (transport->wire->ops->region_create(transport->wire, 2 * FLIGHT * part, &region) == WEFT_OK)
        memory = region->base;
    wefti_collective *flight[FLIGHT] = {0};
    for (int step = 0; status == WEFT_OK; step++) {
        static const size_t counts[] = {1, 300, 20000, 60000};
        int place = step % FLIGHT;
        wefti_collective_call call = {.kind = (wefti_collective_kind)(step % WEFTI_REDUCE_SCATTER_V), /* those without counts */
                                      .root = step % all->size,
                                      .count = counts[step / 3 % 4],
                                      .send = memory + (size_t)(2 * place) * part,
                                      .receive = memory + (size_t)(2 * place + 1) * part};
        if (flight[place]) status = wefti_collective_wait(flight[place], 0);
        flight[place] = NULL;
        if (status == WEFT_OK) status = wefti_collective_start(group, &call, &flight[place]);
        if (step == 20) atomic_fetch_add(&all->ready, 1);
    }
    for (int i = 0; i < FLIGHT; i++) /* every operation ends, by itself or with the verdict */
        if (flight[i]) (void)!wefti_collective_wait(flight[i], 0);
    weft_status verdict = wefti_fault_status(transport->fault);
    all->results[rank].fault_rank = wefti_fault_rank(transport->fault);
    wefti_transport_close(transport);
    return verdict;
}

/* Broadcasts of what nobody maps, from changing roots that wait for nobody, as where ranks share cores; a message now and then. */
static weft_status broadcast_until_the_end(ranks *all, int32_t rank) {
    static const size_t sizes[] = {30, 8192, 9000, 40000, 700000};
    wefti_transport *transport = NULL;
    WEFTI_TRY(open_transport(&transport));
    ((coll_group *)transport->group)->crowded = true;
    uint8_t *memory = calloc(1, sizes[WEFTI_COUNT(sizes) - 1]), word = 0;
    weft_status status = WEFT_OK;
    for (int step = 0; status == WEFT_OK; step++) {
        wefti_collective_call call = {.kind = WEFTI_BROADCAST, .dtype = WEFT_U8, .root = step / 50 % all->size, .count = sizes[step / 7 % 5], .send = memory, .receive = memory};
        status = wefti_collective_run(transport->group, &call);
        call = (wefti_collective_call){.kind = rank ? WEFTI_RECEIVE : WEFTI_SEND, .dtype = WEFT_U8, .root = !rank, .count = 1, .send = &word, .receive = &word};
        if (status == WEFT_OK && rank < 2 && step % 9 == 8) status = wefti_collective_run(transport->group, &call);
        if (step == 20) atomic_fetch_add(&all->ready, 1);
    }
    status = wefti_fault_status(transport->fault);
    all->results[rank].fault_rank = wefti_fault_rank(transport->fault);
    wefti_transport_close(transport);
    free(memory);
    return status;
}

static void kill_at_random(const char *name, int rounds, rank_function function) {
    unsigned random = 12345;
    wire = name;
    for (int round = 0; round < rounds; round++) {
        int32_t size = 2 + round % 3;
        victim = (int32_t)(rand_r(&random) % (unsigned)size);
        ranks *all = ranks_start(size, function);
        ranks_wait_ready(all, size);
        usleep(rand_r(&random) % 20000);
        uint64_t killed_ns = ranks_now();
        kill(all->children[victim], SIGKILL);
        ranks_join(all);
        char words[32];
        snprintf(words, sizeof words, "rank %d", (int)victim);
        expect_all(all, victim, WEFT_E_PEER, words, "killed");
        for (int32_t rank = 0; rank < size; rank++)
            if (rank != victim) {
                cr_expect_eq(all->results[rank].fault_rank, victim, "%s, round %d: rank %d blames %d, not %d", name,
                             round, (int)rank, (int)all->results[rank].fault_rank, (int)victim);
                cr_expect(all->results[rank].at_ns - killed_ns < 5 * WEFTI_SECOND_NS, "%s, round %d: rank %d took %g s",
                          name, round, (int)rank, (double)(all->results[rank].at_ns - killed_ns) / 1e9);
            }
        ranks_free(all);
    }
}

Test(collective_faults, a_rank_killed_at_a_random_moment_shm) { kill_at_random("shm", 12, work_until_the_end); }
Test(collective_faults, a_rank_killed_at_a_random_moment_tcp) { kill_at_random("tcp", 12, work_until_the_end); }
Test(collective_faults, a_rank_killed_among_broadcasts_shm) { kill_at_random("shm", 12, broadcast_until_the_end); }

/* --- bad calls, which start nothing --- */

Test(collective_faults, bad_calls_are_refused) {
    const wefti_collective_engine *engine = wefti_collective_engine_weft();
    wefti_group *group = NULL;
    wefti_collective *operation = NULL;
    float value = 1;
    cr_assert_eq(engine->open(&(wefti_group_options){.size = 1}, &group), WEFT_OK);
    const struct {
        wefti_collective_call call;
        weft_status status;
        const char *words;
    } bad[] = {
        {{.kind = (wefti_collective_kind)99}, WEFT_E_UNSUPPORTED, "kind 99"},
        {{.kind = WEFTI_ALLREDUCE, .send = &value, .count = 1}, WEFT_E_INVALID, "receive buffer is NULL"},
        {{.kind = WEFTI_ALLREDUCE, .receive = &value, .count = 1}, WEFT_E_INVALID, "send buffer is NULL"},
        {{.kind = WEFTI_ALLREDUCE, .dtype = (weft_dtype)77, .send = &value, .receive = &value, .count = 1},
         WEFT_E_DTYPE,
         "77"},
        {{.kind = WEFTI_ALLREDUCE,
          .dtype = WEFT_BOOL,
          .op = WEFTI_REDUCE_AVG,
          .send = &value,
          .receive = &value,
          .count = 1},
         WEFT_E_DTYPE,
         "bool has no average"},
        {{.kind = WEFTI_ALLREDUCE, .op = WEFTI_REDUCE_USER, .send = &value, .receive = &value, .count = 1},
         WEFT_E_INVALID,
         "wants a function"},
        {{.kind = WEFTI_ALLGATHER_V, .send = &value, .receive = &value}, WEFT_E_INVALID, "counts is NULL"},
        {{.kind = WEFTI_ALLTOALL_V, .counts = some, .send = &value, .receive = &value}, WEFT_E_INVALID, "receive_counts is NULL"},
        {{.kind = WEFTI_ALLTOALL, .send = &value, .receive = &value, .count = 1}, WEFT_E_INVALID, "in place"},
        {{.kind = WEFTI_GATHER, .root = 1, .send = &value, .receive = &value, .count = 1}, WEFT_E_INVALID, "no member 1"},
        {{.kind = WEFTI_SEND, .send = &value, .count = 1}, WEFT_E_INVALID, "itself"},
        {{.kind = WEFTI_REDUCE_SCATTER, .op = (wefti_reduce_op)9, .send = &value, .receive = &value, .count = 1},
         WEFT_E_INVALID,
         "9 is no reduction"},
        {{.kind = WEFTI_ALLGATHER, .send = &value, .receive = &value, .count = SIZE_MAX / 2},
         WEFT_E_OVERFLOW,
         "memory"},
        {{.kind = WEFTI_BROADCAST, .send = &value, .receive = &value, .count = 1, .root = 1},
         WEFT_E_INVALID,
         "no member 1"},
        {{.kind = WEFTI_BROADCAST, .send = &value, .receive = &value, .count = 1, .root = -1},
         WEFT_E_INVALID,
         "no member -1"},
        {{.kind = WEFTI_ALLREDUCE, .send = &value, .receive = &value, .count = 1, .stream = &value},
         WEFT_E_UNSUPPORTED,
         "stream"},
    };
    for (size_t i = 0; i < WEFTI_COUNT(bad); i++) {
        cr_expect_eq(engine->start(group, &bad[i].call, &operation), bad[i].status, "case %zu: %s", i,
                     weft_error_message());
        cr_expect(strstr(weft_error_message(), bad[i].words), "case %zu: %s", i, weft_error_message());
        cr_expect_eq(engine->supports(group, &bad[i].call), bad[i].status);
        cr_expect_null(operation);
    }
    cr_expect_eq(group->sequence, 0, "no number was taken");
    engine->close(group);
    engine->close(NULL);
}

Test(collective_faults, too_many_in_flight_are_refused) {
    const wefti_collective_engine *engine = wefti_collective_engine_weft();
    wefti_group *group = NULL;
    wefti_collective *first = NULL, *second = NULL;
    cr_assert_eq(engine->open(&(wefti_group_options){.size = 1, .in_flight = 1}, &group), WEFT_OK);
    wefti_collective_call barrier = {.kind = WEFTI_BARRIER};
    cr_expect_eq(engine->start(group, &barrier, &first), WEFT_OK);
    cr_expect_eq(engine->start(group, &barrier, &second), WEFT_E_AGAIN);
    cr_expect_eq(group->sequence, 1);
    cr_expect_eq(engine->test(first), WEFT_OK);
    cr_expect_eq(engine->start(group, &barrier, &second), WEFT_OK);
    cr_expect_eq(engine->wait(second, 0), WEFT_OK);
    engine->close(group);
}

Test(collective_faults, bad_groups_are_refused) {
    const wefti_collective_engine *engine = wefti_collective_engine_weft();
    wefti_group *group = NULL;
    cr_expect_eq(engine->open(&(wefti_group_options){.size = 0}, &group), WEFT_E_INVALID);
    cr_expect_eq(engine->open(&(wefti_group_options){.size = 2, .index = 2}, &group), WEFT_E_INVALID);
    cr_expect_eq(engine->open(&(wefti_group_options){.size = 2}, &group), WEFT_E_INVALID, "needs a wire");
    cr_expect_eq(engine->open(&(wefti_group_options){.size = 1, .id = 1024}, &group), WEFT_E_INVALID);
    cr_expect_eq(engine->open(&(wefti_group_options){.size = 1, .in_flight = -1}, &group), WEFT_E_INVALID);
    cr_expect_null(group);
    wefti_inproc_hub *hub = NULL;
    wefti_wire *rank = NULL;
    cr_assert_eq(wefti_inproc_hub_create(2, &hub), WEFT_OK);
    cr_assert_eq(wefti_wire_inproc_open(&(wefti_wire_options){.size = 2, .shared = hub}, &rank), WEFT_OK);
    int32_t wrong[] = {1, 0};
    cr_expect_eq(engine->open(&(wefti_group_options){.wire = rank, .ranks = wrong, .size = 2}, &group), WEFT_E_INVALID);
    wefti_group_options unknown = {.wire = rank, .size = 2, .algorithm = "carrier-pigeon"};
    cr_expect_eq(engine->open(&unknown, &group), WEFT_E_NOT_FOUND);
    cr_expect(strstr(weft_error_message(), "carrier-pigeon") && strstr(weft_error_message(), "twoshot"), "%s",
              weft_error_message());
    setenv("WEFT_ALGORITHM", "allreduce:raven", 1);
    cr_expect_eq(engine->open(&(wefti_group_options){.wire = rank, .size = 2}, &group), WEFT_E_NOT_FOUND);
    cr_expect(strstr(weft_error_message(), "WEFT_ALGORITHM") && strstr(weft_error_message(), "raven"), "%s",
              weft_error_message());
    cr_expect_null(group);
    rank->ops->close(rank, 0);
    wefti_inproc_hub_release(hub);
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_expect_eq(counts.held_bytes, 0, "%llu bytes are left", (unsigned long long)counts.held_bytes);
}

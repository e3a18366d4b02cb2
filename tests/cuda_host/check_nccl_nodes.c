/* NCCL inside nodes and wires across them, on a stand-in of libnccl: kinds against the oracle of tests/collective and against NCCL of all ranks, with
 * ranks as processes that are told to be in nodes; nodes of different size; what goes wrong. */
#include <signal.h>

#include "cuda_host/nccl_ranks.h"

static const wire_setup shm = {.name = "shm", .mode = AS_PROCESSES, .open = wefti_wire_shm_open};
static const wire_setup tcp = {.name = "tcp", .mode = AS_PROCESSES, .open = wefti_wire_tcp_open};
/* Of the test's ranks, which are forked. */
static bool           lazy, alltoall; /* alltoall: these nodes do it */
static const int32_t *nodes;

static void rank_open(rank_world *world, nccl_rank *rank, size_t bytes, int32_t in_flight) {
    nccl_rank_open(world, wefti_collective_engine_nccl_nodes(), bytes, lazy, (wefti_group_options){.in_flight = in_flight, .nodes = nodes}, rank);
}

static bool is_done(const nccl_rank *rank, call_case what) {
    wefti_collective_call call = {.kind = what.kind, .dtype = what.dtype, .op = what.op, .count = what.count, .counts = (const size_t[8]){0}};
    return rank->group->engine->supports(rank->group, &call) == WEFT_OK;
}

/* --- kinds, sizes, dtypes --- */

/* The last are of several pieces, with a rest. */
static const size_t sizes[] = {0, 1, 3, 11, 1025, 65537, 1100001, 5300003};

static void every_kind_and_size(rank_world *world) {
    nccl_rank rank;
    int        done[WEFTI_COLLECTIVE_KIND_COUNT] = {0}, refused = 0;
    rank_open(world, &rank, (size_t)240 << 20, 0);
    for (size_t c = 0; c < WEFTI_COUNT(sizes); c++)
        for (size_t k = 0; k < every_kind_count; k++)
            for (int in_place = 0; in_place < 2; in_place++) {
                call_case what = {.kind = every_kind[k], .dtype = WEFT_F32, .count = sizes[c], .root = (int32_t)(c + (size_t)in_place) % world->size,
                                  .in_place = in_place, .seed = (uint32_t)c};
                if (c + 1 == WEFTI_COUNT(sizes) && what.kind != WEFTI_ALLREDUCE && what.kind != WEFTI_BROADCAST) continue;
                if (is_done(&rank, what)) call_run(world, rank.group, &rank.memory, what), done[what.kind]++;
                else refused++;
            }
    for (int kind = WEFTI_ALLREDUCE; kind <= WEFTI_ALLTOALL_V; kind++) {
        bool refuses = kind == WEFTI_GATHER || kind == WEFTI_SCATTER || kind == WEFTI_ALLTOALL_V;
        if (kind != WEFTI_ALLTOALL) CHECK(refuses == (done[kind] == 0), "kind %d was done %d times", kind, done[kind]);
    }
    CHECK((done[WEFTI_ALLTOALL] > 0) == alltoall && refused > 0, "%d all-to-alls done, %d calls refused", done[WEFTI_ALLTOALL], refused);
    nccl_rank_close(&rank);
}

static void every_dtype_and_op(rank_world *world) {
    nccl_rank rank;
    int        done = 0;
    rank_open(world, &rank, 1 << 20, 0);
    for (int dtype = 0; dtype < WEFT_DTYPE_COUNT; dtype++)
        for (int op = 0; op < WEFTI_REDUCE_OP_COUNT; op++)
            for (int kind = WEFTI_ALLREDUCE; kind <= WEFTI_BROADCAST; kind++) {
                call_case what = {.kind = (wefti_collective_kind)kind, .dtype = (weft_dtype)dtype, .op = (wefti_reduce_op)op, .count = 1003};
                bool half = dtype == WEFT_F16 || dtype == WEFT_BF16, adds = op == WEFTI_REDUCE_SUM || op == WEFTI_REDUCE_PROD;
                bool reduces = kind_reduces(what.kind);
                if (reduces && half && adds) CHECK(!is_done(&rank, what), "a sum that would be rounded twice was taken");
                if (is_done(&rank, what)) call_run(world, rank.group, &rank.memory, what), done++;
            }
    CHECK(done > 20, "%d done", done);
    nccl_rank_close(&rank);
}

/* --- the same bits as NCCL of all ranks, where sums are exact --- */

static void as_flat(rank_world *world) {
    enum { COUNT = 2500003 };
    nccl_rank    rank;
    wefti_group *flat = NULL;
    rank_open(world, &rank, (size_t)32 << 20, 0);
    CHECK_OK(wefti_collective_engine_nccl()->open(&(wefti_group_options){.device = rank.device, .over = rank.over, .size = world->size, .index = world->rank},
                                                  &flat));
    float *mine = (float *)(void *)rank.memory.exported, *by_nodes = mine + COUNT, *by_nccl = by_nodes + COUNT;
    for (size_t i = 0; i < COUNT; i++) mine[i] = (float)((i * 31 + (size_t)world->rank * 7) % 1013) / 64.0f;
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_F32, .send = mine, .receive = by_nodes, .count = COUNT};
    CHECK_OK(wefti_collective_run(rank.group, &call));
    call.receive = by_nccl;
    CHECK_OK(wefti_collective_run(flat, &call));
    CHECK(memcmp(by_nodes, by_nccl, COUNT * sizeof *mine) == 0, "the sum by nodes is another than NCCL's");
    check_equal_everywhere(world, hash_floats(by_nodes, COUNT), "the sum");
    flat->engine->close(flat);
    nccl_rank_close(&rank);
}

/* --- many in flight, and joined --- */

enum { FLIGHTS = 24 };

static void many_in_flight(rank_world *world) {
    static const wefti_collective_kind kinds[] = {WEFTI_ALLREDUCE, WEFTI_BROADCAST, WEFTI_BARRIER};
    nccl_rank         rank;
    ready_call        ready[FLIGHTS];
    wefti_collective *handles[FLIGHTS], *more;
    rank_open(world, &rank, (size_t)160 << 20, FLIGHTS);
    for (int i = 0; i < FLIGHTS; i++) {
        size_t count = (size_t)i * (i % 8 == 0 ? 60001 : 97);
        call_prepare(world, &rank.memory, (call_case){.kind = kinds[i % 3], .count = count, .root = i % world->size, .seed = (uint32_t)i}, &ready[i]);
        CHECK_OK(rank.group->engine->start(rank.group, &ready[i].call, &handles[i]));
        CHECK(rank.group->engine->sequence(handles[i]) == (uint64_t)i, "operation %d has another number", i);
    }
    CHECK(rank.group->engine->start(rank.group, &ready[0].call, &more) == WEFT_E_AGAIN, "one too many was taken");
    for (int i = 0; i < FLIGHTS; i++) { /* each rank in an order of its own */
        int pick = world->rank % 2 ? FLIGHTS - 1 - i : i;
        CHECK_OK(wefti_collective_wait(handles[pick], 0));
        call_check(world, &ready[pick]);
    }
    nccl_rank_close(&rank);
}

static void joined(rank_world *world) {
    enum { COUNT = 5003, ROUNDS = 60 };
    static float host[COUNT];
    nccl_rank    rank;
    rank_open(world, &rank, (size_t)1 << 20, 8);
    wefti_device         *device = rank.device;
    float                *x = (float *)(void *)rank.memory.exported;
    wefti_collective_call sum = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_F32, .send = x, .receive = x, .count = COUNT};
    wefti_collective_call from = {.kind = WEFTI_BROADCAST, .dtype = WEFT_F32, .send = x, .receive = x, .count = COUNT};
    for (int round = 0; round < ROUNDS; round++) {
        wefti_collective *handle = NULL;
        for (int i = 0; i < COUNT; i++) host[i] = (float)(world->rank + round + i % 7);
        CHECK_OK(device->vtable->write(device, x, host, sizeof host)); /* before it, in the order of the calls */
        from.root = round % world->size;
        CHECK_OK(rank.group->engine->start(rank.group, round % 2 ? &sum : &from, &handle));
        CHECK_OK(rank.group->engine->join(handle));
        if (round % 3 == 2) continue;
        CHECK_OK(device->vtable->read(device, host, x, sizeof host));
        for (int i = 0; i < COUNT; i++) {
            float due = round % 2 ? 0 : (float)(from.root + round + i % 7);
            for (int32_t r = 0; r < world->size && round % 2; r++) due += (float)(r + round + i % 7);
            CHECK(host[i] == due, "round %d: element %d is %g, not %g", round, i, (double)host[i], (double)due);
        }
    }
    nccl_rank_close(&rank);
}

/* Parts of different length, of several pieces each, joined one after the other; also reductions to one. */
static void joined_v(rank_world *world) {
    enum { COUNT = 1300001 };
    nccl_rank rank;
    size_t    counts[8], before[9] = {0}, size = (size_t)world->size, me = (size_t)world->rank;
    rank_open(world, &rank, (size_t)96 << 20, 8);
    for (size_t i = 0; i < size; i++) before[i + 1] = before[i] + (counts[i] = i == 1 ? 0 : COUNT / (i + 1));
    size_t            all = before[size];
    float            *whole = (float *)(void *)rank.memory.exported, *part = whole + all, *again = part + COUNT, *one = again + all;
    wefti_collective *handle = NULL;
    for (size_t i = 0; i < all; i++) whole[i] = (float)(i % 251) + (float)me;
    wefti_collective_call scatter = {.kind = WEFTI_REDUCE_SCATTER_V, .dtype = WEFT_F32, .send = whole, .receive = part, .counts = counts};
    wefti_collective_call gather = {.kind = WEFTI_ALLGATHER_V, .dtype = WEFT_F32, .send = part, .receive = again, .counts = counts};
    wefti_collective_call reduce = {.kind = WEFTI_REDUCE_TO, .dtype = WEFT_F32, .send = whole, .receive = one, .count = all, .root = (int32_t)size - 1};
    wefti_collective_call calls[] = {scatter, gather, reduce};
    for (size_t i = 0; i < WEFTI_COUNT(calls); i++) {
        CHECK_OK(rank.group->engine->start(rank.group, &calls[i], &handle));
        CHECK_OK(rank.group->engine->join(handle));
    }
    float *host = malloc(2 * all * sizeof *host);
    CHECK_OK(rank.device->vtable->read(rank.device, host, again, all * sizeof *host));
    CHECK_OK(rank.device->vtable->read(rank.device, host + all, one, all * sizeof *host));
    for (size_t i = 0; i < all; i++) {
        float due = (float)(i % 251) * (float)size + (float)(size * (size - 1) / 2);
        CHECK(host[i] == due, "element %zu is %g, not %g", i, (double)host[i], (double)due);
        CHECK(me + 1 < size || host[all + i] == due, "element %zu of the reduction is %g, not %g", i, (double)host[all + i], (double)due);
    }
    free(host);
    nccl_rank_close(&rank);
}

/* Parts that go by several pieces, joined. */
static void joined_parts(rank_world *world) {
    enum { COUNT = 700001 };
    nccl_rank rank;
    rank_open(world, &rank, (size_t)64 << 20, 8);
    size_t            size = (size_t)world->size;
    float            *whole = (float *)(void *)rank.memory.exported, *part = whole + COUNT * size, *again = part + COUNT;
    wefti_collective *handle = NULL;
    for (size_t i = 0; i < COUNT * size; i++) whole[i] = (float)(i % 251) + (float)world->rank;
    wefti_collective_call scatter = {.kind = WEFTI_REDUCE_SCATTER, .dtype = WEFT_F32, .send = whole, .receive = part, .count = COUNT};
    wefti_collective_call gather = {.kind = WEFTI_ALLGATHER, .dtype = WEFT_F32, .send = part, .receive = again, .count = COUNT};
    CHECK_OK(rank.group->engine->start(rank.group, &scatter, &handle));
    CHECK_OK(rank.group->engine->join(handle));
    CHECK_OK(rank.group->engine->start(rank.group, &gather, &handle)); /* reads what is joined */
    CHECK_OK(rank.group->engine->join(handle));
    float *host = malloc(COUNT * size * sizeof *host);
    CHECK_OK(rank.device->vtable->read(rank.device, host, again, COUNT * size * sizeof *host));
    for (size_t i = 0; i < COUNT * size; i++) {
        float due = (float)(i % 251) * (float)size + (float)(size * (size - 1) / 2);
        CHECK(host[i] == due, "element %zu is %g, not %g", i, (double)host[i], (double)due);
    }
    free(host);
    nccl_rank_close(&rank);
}

static const int32_t pairs[] = {0, 0, 1, 1}, crossed[] = {5, 9, 5, 9}, uneven[] = {0, 0, 0, 1, 1}, lone[] = {0, 0, 1}, singles[] = {0, 1}, one[] = {4, 4};

static void on(const int32_t *map, int32_t size, const char *name, void (*function)(rank_world *world)) {
    nodes = map;
    alltoall = map != uneven && map != lone && map != singles; /* nodes alike, of more than one rank */
    conformance_run_one(&shm, size, name, function);
}
#define ON(map, function) on(map, (int32_t)WEFTI_COUNT(map), #function, function)

Test(cuda_nccl_nodes, kinds_and_sizes) { ON(pairs, every_kind_and_size); }
Test(cuda_nccl_nodes, kinds_and_sizes_of_nodes_in_turns) { ON(crossed, every_kind_and_size); }
Test(cuda_nccl_nodes, kinds_and_sizes_of_uneven_nodes) {
    ON(uneven, every_kind_and_size);
    ON(lone, every_kind_and_size);
}
Test(cuda_nccl_nodes, kinds_and_sizes_of_one_node_and_of_nodes_of_one) {
    ON(one, every_kind_and_size);
    ON(singles, every_kind_and_size);
}
Test(cuda_nccl_nodes, dtypes_and_ops) {
    ON(pairs, every_dtype_and_op);
    ON(lone, every_dtype_and_op);
}
Test(cuda_nccl_nodes, sums_as_nccl_of_all) {
    ON(pairs, as_flat);
    ON(uneven, as_flat);
}
Test(cuda_nccl_nodes, sums_over_tcp) {
    nodes = pairs;
    conformance_run_one(&tcp, 4, "as_flat", as_flat);
}
Test(cuda_nccl_nodes, many_in_flight) {
    ON(pairs, many_in_flight);
    setenv("WEFT_NCCL_STAND_IN", "slow=2", 1);
    ON(lone, many_in_flight);
}
Test(cuda_nccl_nodes, many_in_flight_lazily) {
    lazy = true;
    ON(pairs, many_in_flight);
}
Test(cuda_nccl_nodes, joined) {
    ON(pairs, joined);
    lazy = true;
    ON(lone, joined);
    ON(crossed, joined);
}
Test(cuda_nccl_nodes, joined_parts) {
    ON(crossed, joined_parts);
    ON(uneven, joined_parts);
    lazy = true;
    ON(pairs, joined_parts);
    ON(lone, joined_parts);
}
Test(cuda_nccl_nodes, joined_parts_of_different_length) {
    ON(pairs, joined_v);
    ON(uneven, joined_v);
    lazy = true;
    ON(crossed, joined_v);
    ON(lone, joined_v);
}

/* --- faults: every rank ends with the same verdict, and none hangs --- */

enum { ELEMENTS = 3000000, OTHER = 1 };
static struct plan {
    const char *stand_in, *libraries; /* WEFT_NCCL_STAND_IN; WEFT_CUDA_LIBRARIES of rank OTHER alone */
    uint64_t    timeout_ns;
    int         dies, fails, lags; /* call before which rank OTHER is killed, declares a fault of its own, or starts no more; -1: never */
    bool        joins;
} plan;

static weft_status run_calls(ranks *all, int32_t rank, wefti_transport *transport, wefti_device *device, wefti_group *group, void *memory) {
    static float          host[16];
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_F32, .send = memory, .receive = memory, .count = ELEMENTS};
    for (int i = 0; i < 12; i++) {
        wefti_collective *operation = NULL;
        if (i == 3) all->wrecked_ns = ranks_now();
        if (rank == OTHER && i == plan.dies) raise(SIGKILL);
        if (rank == OTHER && i == plan.fails) wefti_transport_fail(transport, WEFT_E_NO_MEMORY, "the test's own fault");
        while (rank == OTHER && i == plan.lags) WEFTI_TRY(wefti_fault_status(transport->fault));
        WEFTI_TRY(wefti_collective_start(group, &call, &operation));
        if (!plan.joins) WEFTI_TRY(wefti_collective_wait(operation, 0));
        else WEFTI_TRY(group->engine->join(operation));
        if (plan.joins) WEFTI_TRY(device->vtable->read(device, host, memory, sizeof host));
    }
    return WEFT_OK;
}

static weft_status run_rank(ranks *all, int32_t rank) {
    wefti_transport *transport = NULL;
    wefti_device    *device = NULL;
    wefti_group     *group = NULL;
    void            *memory = NULL;
    char             message[WEFTI_MESSAGE_BYTES];
    snprintf(message, sizeof message, "rank %d", (int)rank);
    setenv("NCCL_HOSTID", message, 1);
    if (plan.stand_in) setenv("WEFT_NCCL_STAND_IN", plan.stand_in, 1);
    if (plan.libraries && rank == OTHER) setenv("WEFT_CUDA_LIBRARIES", plan.libraries, 1);
    wefti_cuda_host_reset(&(wefti_cuda_host_options){.seed = 1, .quiet = true});
    WEFTI_TRY(wefti_transport_open(&(wefti_transport_options){.wire = "shm"}, &transport));
    WEFTI_TRY(wefti_cuda_create(NULL, &device));
    WEFTI_TRY(device->vtable->allocate(device, ELEMENTS * sizeof(float), "a test's buffer", &memory));
    memset(memory, 0, ELEMENTS * sizeof(float));
    wefti_group_options how = {.device = device, .over = transport->group, .size = transport->size, .index = rank, .id = 1023, .nodes = nodes,
                               .fault = transport->fault, .timeout_ns = plan.timeout_ns};
    weft_status status = wefti_collective_engine_nccl_nodes()->open(&how, &group);
    if (status == WEFT_OK) status = run_calls(all, rank, transport, device, group, memory);
    snprintf(message, sizeof message, "%s", weft_error_message());
    wefti_collective_engine_nccl_nodes()->close(group);
    device->vtable->deallocate(device, memory, ELEMENTS * sizeof(float));
    device->vtable->release(device);
    wefti_transport_close(transport);
    return status == WEFT_OK ? status : wefti_fail(status, "%s", message);
}

static void expect(const int32_t *map, int size, struct plan how, weft_status status, const char *words, double most_s) {
    plan = how;
    nodes = map;
    nccl_ranks_expect(size, run_rank, how.dies >= 0 ? OTHER : -1, status, words, most_s);
}

#define NEVER .dies = -1, .fails = -1, .lags = -1

Test(cuda_nccl_nodes, no_fault_no_error) { expect(pairs, 4, (struct plan){NEVER}, WEFT_OK, "", 40); }
Test(cuda_nccl_nodes, a_rank_that_dies_is_named_in_all_nodes) {
    expect(pairs, 4, (struct plan){.dies = 3, .fails = -1, .lags = -1}, WEFT_E_PEER, "rank 1 failed", 10);
    expect(lone, 3, (struct plan){.dies = 3, .fails = -1, .lags = -1, .joins = true}, WEFT_E_PEER, "rank 1 failed", 10);
}
Test(cuda_nccl_nodes, a_rank_that_does_not_come_is_a_timeout) {
    expect(pairs, 4, (struct plan){.lags = 3, .fails = -1, .dies = -1, .timeout_ns = 2 * WEFTI_SECOND_NS}, WEFT_E_TIMEOUT, "", 20);
    expect(lone, 3, (struct plan){.lags = 3, .fails = -1, .dies = -1, .joins = true, .timeout_ns = 2 * WEFTI_SECOND_NS}, WEFT_E_TIMEOUT, "", 20);
}
Test(cuda_nccl_nodes, a_fault_of_the_world_ends_operations) {
    expect(pairs, 4, (struct plan){.fails = 3, .dies = -1, .lags = -1}, WEFT_E_NO_MEMORY, "the test's own fault", 10);
}
Test(cuda_nccl_nodes, nccl_that_fails_in_one_node_is_told_to_all) {
    expect(pairs, 4, (struct plan){.stand_in = "error=3@1", NEVER}, WEFT_E_LINK, "NCCL: remote process exited", 15);
    expect(pairs, 4, (struct plan){.libraries = "none", NEVER}, WEFT_E_UNSUPPORTED, "rank 1 cannot use NCCL: libnccl.so.2 cannot be loaded", 20);
}

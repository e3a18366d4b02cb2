/* The NCCL engine on a stand-in of libnccl: every kind of collective against the oracle of tests/collective, on device memory, with ranks as
 * processes; in streams that run at once, and in lazy ones that run in random order when somebody waits. */
#include "cuda_host/nccl_ranks.h"

static const wire_setup shm = {.name = "shm", .mode = AS_PROCESSES, .open = wefti_wire_shm_open};
static bool             lazy; /* of the test's ranks, which are forked */

static void rank_open(rank_world *world, nccl_rank *rank, size_t bytes, int32_t in_flight) {
    nccl_rank_open(world, wefti_collective_engine_nccl(), bytes, lazy, (wefti_group_options){.in_flight = in_flight}, rank);
}

/* --- dtypes and reductions --- */

static void every_dtype_and_op(rank_world *world) {
    static const size_t counts[] = {1, 7, 1000};
    nccl_rank           rank;
    int                 done = 0, refused = 0;
    rank_open(world, &rank, 1 << 20, 0);
    for (int dtype = 0; dtype < WEFT_DTYPE_COUNT; dtype++)
        for (int op = 0; op < WEFTI_REDUCE_OP_COUNT; op++)
            for (int kind = WEFTI_ALLREDUCE; kind <= WEFTI_REDUCE_SCATTER; kind++) {
                call_case             what = {.kind = (wefti_collective_kind)kind, .dtype = (weft_dtype)dtype, .op = (wefti_reduce_op)op};
                wefti_collective_call call = {.kind = what.kind, .dtype = what.dtype, .op = what.op, .count = 1};
                bool half = dtype == WEFT_F16 || dtype == WEFT_BF16, adds = op == WEFTI_REDUCE_SUM || op == WEFTI_REDUCE_PROD;
                bool due = op != WEFTI_REDUCE_AVG && (adds ? !half || world->size == 2 : !weft_dtype_is_float((weft_dtype)dtype));
                weft_status status = rank.group->engine->supports(rank.group, &call);
                CHECK(status == (due ? WEFT_OK : WEFT_E_UNSUPPORTED), "%s of %s: %s", wefti_reduce_op_name(what.op), weft_dtype_name(what.dtype),
                      weft_status_name(status));
                due ? done++ : refused++;
                for (size_t c = 0; due && c < WEFTI_COUNT(counts); c++) {
                    what.count = counts[c];
                    what.seed = (uint32_t)c;
                    call_run(world, rank.group, &rank.memory, what);
                }
            }
    CHECK(done > 0 && refused > 0, "%d combinations done, %d refused", done, refused);
    nccl_rank_close(&rank);
}

/* --- kinds and sizes --- */

static void every_kind_and_size(rank_world *world) {
    static const size_t     counts[] = {0, 1, 11, 1025, 65537, 200003};
    static const weft_dtype dtypes[] = {WEFT_F32, WEFT_U8, WEFT_F64};
    nccl_rank               rank;
    rank_open(world, &rank, (size_t)24 << 20, 0);
    for (size_t c = 0; c < WEFTI_COUNT(counts); c++)
        for (size_t k = 0; k < every_kind_count; k++)
            for (int in_place = 0; in_place < 2; in_place++)
                call_run(world, rank.group, &rank.memory,
                         (call_case){.kind = every_kind[k], .dtype = dtypes[(c + k) % WEFTI_COUNT(dtypes)], .count = counts[c],
                                     .root = (int32_t)(c + (size_t)in_place) % world->size, .in_place = in_place, .seed = (uint32_t)c});
    nccl_rank_close(&rank);
}

/* --- many in flight --- */

enum { FLIGHTS = 60 };

static void many_in_flight(rank_world *world) {
    nccl_rank         rank;
    ready_call        ready[FLIGHTS];
    wefti_collective *handles[FLIGHTS];
    rank_open(world, &rank, (size_t)48 << 20, FLIGHTS);
    for (int i = 0; i < FLIGHTS; i++) {
        call_prepare(world, &rank.memory, (call_case){.kind = every_kind[(size_t)i % every_kind_count], .count = (size_t)i * 97, .seed = (uint32_t)i}, &ready[i]);
        CHECK_OK(rank.group->engine->start(rank.group, &ready[i].call, &handles[i]));
        CHECK(rank.group->engine->sequence(handles[i]) == (uint64_t)i, "operation %d has another number", i);
    }
    wefti_collective *more;
    CHECK(rank.group->engine->start(rank.group, &ready[0].call, &more) == WEFT_E_AGAIN, "one too many was taken");
    for (int i = 0; i < FLIGHTS; i++) { /* each rank in an order of its own */
        int pick = world->rank % 2 ? FLIGHTS - 1 - i : i;
        CHECK_OK(wefti_collective_wait(handles[pick], 0));
        call_check(world, &ready[pick]);
    }
    nccl_rank_close(&rank);
}

/* --- messages between two --- */

static void messages(rank_world *world) {
    nccl_rank rank;
    rank_open(world, &rank, (size_t)4 << 20, 0);
    float *memory = (float *)rank.memory.exported, *into = memory + 300000;
    int32_t right = (world->rank + 1) % world->size, left = (world->rank + world->size - 1) % world->size;
    for (size_t count = 1; count < 300000; count *= 61) {
        wefti_collective *out = NULL, *in = NULL;
        for (size_t i = 0; i < count; i++) memory[i] = (float)(world->rank * 1000) + (float)(i % 1000);
        wefti_collective_call send = {.kind = WEFTI_SEND, .dtype = WEFT_F32, .root = right, .send = memory, .count = count};
        wefti_collective_call receive = {.kind = WEFTI_RECEIVE, .dtype = WEFT_F32, .root = left, .receive = into, .count = count};
        bool first = world->rank % 2 == 0; /* NCCL's messages wait for each other in the stream */
        CHECK_OK(rank.group->engine->start(rank.group, first ? &send : &receive, first ? &out : &in));
        CHECK_OK(rank.group->engine->start(rank.group, first ? &receive : &send, first ? &in : &out));
        CHECK_OK(wefti_collective_wait(in, 0));
        CHECK_OK(wefti_collective_wait(out, 0));
        for (size_t i = 0; i < count; i++) CHECK(into[i] == (float)(left * 1000) + (float)(i % 1000), "element %zu is %g", i, (double)into[i]);
    }
    nccl_rank_close(&rank);
}

/* --- joined: the device goes on after them, and nobody waits --- */

static void joined(rank_world *world) {
    enum { COUNT = 5000, ROUNDS = 200 };
    nccl_rank    rank;
    static float host[COUNT];
    rank_open(world, &rank, (size_t)1 << 20, 8);
    wefti_device         *device = rank.device;
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_F32, .send = rank.memory.exported, .receive = rank.memory.exported, .count = COUNT};
    weft_memory_counts    before = {0}, after;
    for (int round = 0; round < ROUNDS; round++) {
        wefti_collective *handle = NULL;
        for (int i = 0; i < COUNT; i++) host[i] = (float)(world->rank + round + i % 7);
        CHECK_OK(device->vtable->write(device, rank.memory.exported, host, sizeof host)); /* before it, in the order of the calls */
        if (round == 10) weft_memory_read(&before);
        CHECK_OK(rank.group->engine->start(rank.group, &call, &handle));
        CHECK_OK(rank.group->engine->join(handle));
        if (round % 5 != 0) continue;
        CHECK_OK(device->vtable->read(device, host, rank.memory.exported, sizeof host));
        for (int i = 0; i < COUNT; i++) {
            float due = 0;
            for (int32_t r = 0; r < world->size; r++) due += (float)(r + round + i % 7);
            CHECK(host[i] == due, "round %d: element %d is %g, not %g", round, i, (double)host[i], (double)due);
        }
    }
    weft_memory_read(&after);
    CHECK(before.allocations == after.allocations, "%lld allocations", (long long)(after.allocations - before.allocations));
    nccl_rank_close(&rank);
}

#define ON(ranks, function) conformance_run_one(&shm, ranks, #function, function)

Test(cuda_nccl, dtypes_and_ops) {
    ON(2, every_dtype_and_op);
    ON(3, every_dtype_and_op);
}
Test(cuda_nccl, kinds_and_sizes) {
    ON(2, every_kind_and_size);
    ON(4, every_kind_and_size);
}
Test(cuda_nccl, kinds_and_sizes_lazily) {
    lazy = true;
    ON(3, every_kind_and_size);
}
/* Calls that NCCL has not put on the stream yet when it returns. */
Test(cuda_nccl, kinds_and_sizes_while_connecting) {
    setenv("WEFT_NCCL_STAND_IN", "slow=3", 1);
    ON(3, every_kind_and_size);
}
Test(cuda_nccl, many_in_flight) {
    ON(2, many_in_flight);
    lazy = true;
    setenv("WEFT_NCCL_STAND_IN", "slow=2", 1);
    ON(3, many_in_flight);
}
Test(cuda_nccl, messages) {
    ON(2, messages);
    ON(4, messages);
}
Test(cuda_nccl, joined) {
    ON(2, joined);
    lazy = true;
    ON(3, joined);
}

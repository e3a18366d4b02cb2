/* The oracle and the buffers of the tests of collectives. A rank's input repeats after PERIOD elements, a prime, so that large buffers are
 * filled and compared by blocks; a part that lands at a wrong place differs all the same. */
#include "cases.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD_BYTES = 64, GUARD = 0xA5, PERIOD = 1021, MOST_ELEMENT_BYTES = 8 };

/* --- elements --- */

static void put(weft_dtype dtype, void *array, size_t i, double value) {
    switch (dtype) {
    case WEFT_F32: ((float *)array)[i] = (float)value; break;
    case WEFT_F64: ((double *)array)[i] = value; break;
    case WEFT_F16: ((_Float16 *)array)[i] = (_Float16)value; break;
    case WEFT_BF16: {
        float single = (float)value;
        uint32_t bits;
        memcpy(&bits, &single, 4);
        ((uint16_t *)array)[i] = (uint16_t)(bits >> 16); /* inputs are exact */
        break;
    }
    case WEFT_I64: ((int64_t *)array)[i] = (int64_t)value; break;
    case WEFT_I32: ((int32_t *)array)[i] = (int32_t)value; break;
    default: ((uint8_t *)array)[i] = (uint8_t)value; break;
    }
}

static double get(weft_dtype dtype, const void *array, size_t i) {
    switch (dtype) {
    case WEFT_F32: return (double)((const float *)array)[i];
    case WEFT_F64: return ((const double *)array)[i];
    case WEFT_F16: return (double)((const _Float16 *)array)[i];
    case WEFT_BF16: {
        uint32_t bits = (uint32_t)((const uint16_t *)array)[i] << 16;
        float single;
        memcpy(&single, &bits, 4);
        return (double)single;
    }
    case WEFT_I64: return (double)((const int64_t *)array)[i];
    case WEFT_I32: return (double)((const int32_t *)array)[i];
    default: return (double)((const uint8_t *)array)[i];
    }
}

const wefti_collective_kind every_kind[] = {WEFTI_ALLREDUCE, WEFTI_REDUCE_SCATTER,   WEFTI_ALLGATHER,   WEFTI_BROADCAST,
                                            WEFTI_BARRIER,   WEFTI_REDUCE_TO,        WEFTI_GATHER,      WEFTI_SCATTER,
                                            WEFTI_ALLTOALL,  WEFTI_REDUCE_SCATTER_V, WEFTI_ALLGATHER_V, WEFTI_ALLTOALL_V};
const size_t every_kind_count = WEFTI_COUNT(every_kind);

bool kind_reduces(wefti_collective_kind kind) {
    return kind == WEFTI_ALLREDUCE || kind == WEFTI_REDUCE_SCATTER || kind == WEFTI_REDUCE_SCATTER_V || kind == WEFTI_REDUCE_TO;
}

size_t case_part(const call_case *what, int32_t from, int32_t to) {
    bool square = what->kind == WEFTI_ALLTOALL_V, owned = what->kind == WEFTI_REDUCE_SCATTER_V || what->kind == WEFTI_ALLGATHER_V;
    if (!square && !owned) return what->count;
    unsigned mixed = (unsigned)(square ? from * 5 : 0) + (unsigned)to * 3 + what->seed;
    return mixed % 4 == 0 ? 0 : what->count * (mixed % 4) / 2;
}

double input_value(weft_dtype dtype, wefti_reduce_op op, int32_t rank, size_t i, uint32_t seed) {
    uint32_t mixed = (uint32_t)(i % PERIOD + 1) * 2654435761u ^ ((uint32_t)rank + 1) * 40503u * 65537u ^ seed * 97u;
    mixed ^= mixed >> 15;
    mixed *= 2246822519u;
    mixed ^= mixed >> 13;
    if (dtype == WEFT_BOOL) return mixed % 3 == 0;
    if (op == WEFTI_REDUCE_PROD) return rank < 5 ? 1 + mixed % 3 : 1; /* 243 at most */
    return dtype == WEFT_U8 ? mixed % 17 : (double)(mixed % 17) - 8;
}

static double expected_value(const call_case *what, int32_t ranks, size_t i) {
    double result = input_value(what->dtype, what->op, 0, i, what->seed);
    for (int32_t rank = 1; rank < ranks; rank++) {
        double value = input_value(what->dtype, what->op, rank, i, what->seed);
        switch (what->op) {
        case WEFTI_REDUCE_PROD: result *= value; break;
        case WEFTI_REDUCE_MIN: result = fmin(result, value); break;
        case WEFTI_REDUCE_MAX: result = fmax(result, value); break;
        default: result += value; break;
        }
    }
    if (what->dtype == WEFT_BOOL) return what->op == WEFTI_REDUCE_SUM || what->op == WEFTI_REDUCE_USER ? result != 0 : result;
    if (what->op == WEFTI_REDUCE_AVG) {
        result /= ranks;
        if (!weft_dtype_is_float(what->dtype)) result = trunc(result);
    }
    return result;
}

/* What may lie between the oracle and a right answer, relative: only an average is ever rounded here. */
static double tolerance(const call_case *what) {
    if (what->op != WEFTI_REDUCE_AVG) return 0;
    switch (what->dtype) {
    case WEFT_F32: return 0x1p-23;
    case WEFT_F64: return 0x1p-52;
    case WEFT_F16: return 0x1p-10;
    case WEFT_BF16: return 0x1p-7;
    default: return 0;
    }
}

/* --- memory --- */

void arenas_open(rank_world *world, arenas *memory, size_t bytes) {
    *memory = (arenas){.bytes = bytes};
    if (world->wire->ops->region_create(world->wire, bytes, &memory->region) == WEFT_OK)
        memory->exported = memory->region->base;
    memory->foreign = malloc(bytes);
    CHECK(memory->foreign, "out of memory");
    if (!memory->exported) memory->exported = memory->foreign;
}

void arenas_close(rank_world *world, arenas *memory) {
    world_barrier(world); /* nobody looks into the region any more */
    if (memory->region) world->wire->ops->region_release(memory->region);
    free(memory->foreign);
}

static bool is_foreign(const rank_world *world, placement where) {
    return where == FOREIGN || (where == MIXED && world->rank % 2 == 1);
}

static bool from_root(wefti_collective_kind kind) { return kind == WEFTI_BROADCAST || kind == WEFTI_SCATTER; }
static bool to_root(wefti_collective_kind kind) { return kind == WEFTI_REDUCE_TO || kind == WEFTI_GATHER; }

/* Whether this rank's send, or receive, buffer has a part for each rank. */
static bool sends_parts(wefti_collective_kind kind) {
    return kind == WEFTI_REDUCE_SCATTER || kind == WEFTI_REDUCE_SCATTER_V || kind == WEFTI_SCATTER || kind == WEFTI_ALLTOALL ||
           kind == WEFTI_ALLTOALL_V;
}
static bool receives_parts(wefti_collective_kind kind) {
    return kind == WEFTI_ALLGATHER || kind == WEFTI_ALLGATHER_V || kind == WEFTI_GATHER || kind == WEFTI_ALLTOALL ||
           kind == WEFTI_ALLTOALL_V;
}

/* Elements before part `part` of what `rank` sends; with the number of ranks, all of them. */
static size_t sent_before(const rank_world *world, const call_case *what, int32_t rank, int32_t part) {
    size_t sum = 0;
    for (int32_t to = 0; to < part; to++) sum += case_part(what, rank, to);
    (void)world;
    return sum;
}
static size_t received_before(const rank_world *world, const call_case *what, int32_t part) {
    size_t sum = 0;
    for (int32_t from = 0; from < part; from++)
        sum += case_part(what, from, what->kind == WEFTI_ALLTOALL_V ? world->rank : from);
    return sum;
}
/* Elements of received part `part`. */
static size_t received_part(const rank_world *world, const call_case *what, int32_t part) {
    if (!receives_parts(what->kind)) return case_part(what, 0, world->rank);
    return received_before(world, what, part + 1) - received_before(world, what, part);
}

static size_t sent_elements(const rank_world *world, const call_case *what) {
    if (what->kind == WEFTI_BARRIER || (from_root(what->kind) && world->rank != what->root)) return 0;
    return sends_parts(what->kind) ? sent_before(world, what, world->rank, world->size) : case_part(what, 0, world->rank);
}
static int32_t received_parts(const rank_world *world, const call_case *what) {
    if (what->kind == WEFTI_BARRIER || (to_root(what->kind) && world->rank != what->root)) return 0;
    return receives_parts(what->kind) ? world->size : 1;
}
static size_t received_elements(const rank_world *world, const call_case *what) {
    int32_t parts = received_parts(world, what);
    return receives_parts(what->kind) ? received_before(world, what, parts) : parts ? received_part(world, what, 0) : 0;
}

static void place_buffers(const rank_world *world, ready_call *ready) {
    const call_case *what = &ready->what;
    size_t element = weft_dtype_bytes(what->dtype);
    bool all = what->kind == WEFTI_ALLTOALL || what->kind == WEFTI_ALLTOALL_V, root = world->rank == what->root;
    uint8_t *send = ready->block + GUARD_BYTES, *receive = send + ready->send_bytes + GUARD_BYTES;
    bool alone = (from_root(what->kind) || to_root(what->kind)) && what->kind != WEFTI_BROADCAST && !root;
    if (what->in_place && !all && !alone) {
        if (receives_parts(what->kind))
            send = receive + received_before(world, what, world->rank) * element;
        else if (sends_parts(what->kind))
            receive = send + sent_before(world, what, world->rank, world->rank) * element;
        else
            receive = send = from_root(what->kind) ? receive : send;
    }
    ready->call.send = send;
    ready->call.receive = receive;
}

/* A user's sum. */
static void add(void *context, void *into, const void *more, size_t count, weft_dtype dtype) {
    (void)context;
    for (size_t i = 0; i < count; i++) {
        double sum = get(dtype, into, i) + get(dtype, more, i);
        put(dtype, into, i, dtype == WEFT_BOOL ? (double)(sum != 0) : sum);
    }
}

void call_prepare(rank_world *world, arenas *memory, call_case what, ready_call *ready) {
    static const wefti_reduce_function function = {.name = "add", .combine = add};
    size_t element = weft_dtype_bytes(what.dtype);
    *ready = (ready_call){.what = what};
    ready->send_bytes = sent_elements(world, &what) * element;
    ready->receive_bytes = received_elements(world, &what) * element;
    size_t total = wefti_align_up(3 * GUARD_BYTES + ready->send_bytes + ready->receive_bytes, 64);
    CHECK(memory->used + total <= memory->bytes, "the arena is too small");
    ready->block = (is_foreign(world, what.where) ? memory->foreign : memory->exported) + memory->used;
    memory->used += total;
    memset(ready->block, GUARD, total);
    for (int32_t i = 0; i < world->size; i++) {
        ready->counts[0][i] = case_part(&what, world->rank, i);
        ready->counts[1][i] = case_part(&what, i, world->rank);
    }
    ready->call = (wefti_collective_call){.kind = what.kind, .dtype = what.dtype, .op = what.op, .root = what.root,
                                          .count = what.count, .counts = ready->counts[0], .receive_counts = ready->counts[1],
                                          .function = &function};
    place_buffers(world, ready);
    size_t n = ready->send_bytes / element;
    for (size_t i = 0; i < n && i < PERIOD; i++)
        put(what.dtype, (void *)ready->call.send, i, input_value(what.dtype, what.op, world->rank, i, what.seed));
    for (size_t i = PERIOD; i < n; i += PERIOD)
        memcpy((uint8_t *)ready->call.send + i * element, ready->call.send, (n - i < PERIOD ? n - i : PERIOD) * element);
}

/* Element i of part `part` of what this rank receives. */
static double expected_at(const rank_world *world, const call_case *what, int32_t part, size_t i) {
    int32_t me = world->rank;
    switch (what->kind) {
    case WEFTI_ALLREDUCE:
    case WEFTI_REDUCE_TO: return expected_value(what, world->size, i);
    case WEFTI_REDUCE_SCATTER:
    case WEFTI_REDUCE_SCATTER_V: return expected_value(what, world->size, sent_before(world, what, me, me) + i);
    case WEFTI_ALLGATHER:
    case WEFTI_ALLGATHER_V:
    case WEFTI_GATHER: return input_value(what->dtype, what->op, part, i, what->seed);
    case WEFTI_ALLTOALL:
    case WEFTI_ALLTOALL_V:
        return input_value(what->dtype, what->op, part, sent_before(world, what, part, me) + i, what->seed);
    case WEFTI_SCATTER:
        return input_value(what->dtype, what->op, what->root, sent_before(world, what, what->root, me) + i, what->seed);
    default: return input_value(what->dtype, what->op, what->root, i, what->seed);
    }
}

static void check_elements(rank_world *world, const ready_call *ready, int32_t part, size_t from, size_t to) {
    const call_case *what = &ready->what;
    size_t before = receives_parts(what->kind) ? received_before(world, what, part) : 0;
    for (size_t i = from; i < to; i++) {
        double expected = expected_at(world, what, part, i), got = get(what->dtype, ready->call.receive, before + i);
        CHECK(fabs(got - expected) <= tolerance(what) * fabs(expected),
              "kind %d, %s, %s, count %zu, root %d, %s, placement %d, %d ranks: element %zu of part %d is %g, not %g",
              (int)what->kind, weft_dtype_name(what->dtype), wefti_reduce_op_name(what->op), what->count,
              (int)what->root, what->in_place ? "in place" : "out of place", (int)what->where, (int)world->size, i, (int)part,
              got, expected);
    }
}

/* By blocks where the right answer is exact; the elements of a block that differs are looked at one by one. */
static void check_part(rank_world *world, const ready_call *ready, int32_t part) {
    const call_case *what = &ready->what;
    size_t count = received_part(world, what, part), element = weft_dtype_bytes(what->dtype);
    if (count <= PERIOD || tolerance(what) > 0) {
        check_elements(world, ready, part, 0, count);
        return;
    }
    size_t before = receives_parts(what->kind) ? received_before(world, what, part) : 0;
    const uint8_t *received = (const uint8_t *)ready->call.receive + before * element;
    _Alignas(8) uint8_t block[PERIOD * MOST_ELEMENT_BYTES];
    for (size_t i = 0; i < PERIOD; i++) put(what->dtype, block, i, expected_at(world, what, part, i));
    for (size_t i = 0, n; i < count; i += n) {
        n = count - i < PERIOD ? count - i : PERIOD;
        if (memcmp(received + i * element, block, n * element) != 0) check_elements(world, ready, part, i, i + n);
    }
}

static void check_guard(rank_world *world, const uint8_t *guard, const char *which) {
    for (int i = 0; i < GUARD_BYTES; i++) CHECK(guard[i] == GUARD, "the bytes %s the buffers were written to", which);
}

void call_check(rank_world *world, const ready_call *ready) {
    for (int32_t part = 0; part < received_parts(world, &ready->what); part++) check_part(world, ready, part);
    check_guard(world, ready->block, "before");
    check_guard(world, ready->block + GUARD_BYTES + ready->send_bytes, "between");
    check_guard(world, ready->block + 2 * GUARD_BYTES + ready->send_bytes + ready->receive_bytes, "after");
}

void call_run(rank_world *world, wefti_group *group, arenas *memory, call_case what) {
    memory->used = 0;
    ready_call ready;
    call_prepare(world, memory, what, &ready);
    CHECK_OK(wefti_collective_run(group, &ready.call));
    call_check(world, &ready);
}

/* --- groups --- */

wefti_group *group_of_all(rank_world *world, const wefti_group_options *options) {
    wefti_group_options all = options ? *options : (wefti_group_options){0};
    wefti_group *group = NULL;
    all.wire = world->wire;
    all.size = world->size;
    all.index = world->rank;
    all.epoch = world->groups++;
    CHECK_OK(wefti_collective_engine_weft()->open(&all, &group));
    return group;
}

int64_t hash_floats(const float *x, size_t count) {
    uint64_t hash = UINT64_C(1469598103934665603);
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        hash = (hash ^ bits) * UINT64_C(1099511628211);
    }
    return (int64_t)hash;
}

void check_equal_everywhere(rank_world *world, int64_t mine, const char *what) {
    atomic_store(&world->shared->note[world->rank], mine);
    world_barrier(world);
    for (int32_t rank = 0; rank < world->size; rank++)
        CHECK(atomic_load(&world->shared->note[rank]) == mine, "%s differs between ranks %d and %d", what, (int)rank,
              (int)world->rank);
    world_barrier(world);
}

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

double input_value(weft_dtype dtype, wefti_reduce_op op, int32_t rank, size_t i, uint32_t seed) {
    uint32_t mixed = (uint32_t)(i % PERIOD + 1) * 2654435761u ^ ((uint32_t)rank + 1) * 40503u * 65537u ^ seed * 97u;
    mixed ^= mixed >> 15;
    mixed *= 2246822519u;
    mixed ^= mixed >> 13;
    if (dtype == WEFT_BOOL) return mixed % 3 == 0;
    if (op == WEFTI_REDUCE_PROD) return 1 + mixed % 3;
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
    if (what->dtype == WEFT_BOOL) return what->op == WEFTI_REDUCE_SUM ? result != 0 : result;
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

static int32_t parts_sent(const call_case *what, int32_t ranks) {
    return what->kind == WEFTI_REDUCE_SCATTER ? ranks : 1;
}
static int32_t parts_received(const call_case *what, int32_t ranks) {
    return what->kind == WEFTI_ALLGATHER ? ranks : 1;
}

static void place_buffers(const rank_world *world, ready_call *ready) {
    const call_case *what = &ready->what;
    size_t part = what->count * weft_dtype_bytes(what->dtype);
    uint8_t *send = ready->block + GUARD_BYTES, *receive = send + ready->send_bytes + GUARD_BYTES;
    if (what->in_place) {
        if (what->kind == WEFTI_ALLGATHER)
            send = receive + (size_t)world->rank * part;
        else if (what->kind == WEFTI_REDUCE_SCATTER)
            receive = send + (size_t)world->rank * part;
        else
            receive = send;
    }
    ready->call.send = send;
    ready->call.receive = receive;
}

ready_call call_prepare(rank_world *world, arenas *memory, call_case what) {
    ready_call ready = {.what = what};
    size_t element = weft_dtype_bytes(what.dtype), part = what.count * element;
    int32_t ranks = world->size;
    ready.send_bytes = part * (size_t)parts_sent(&what, ranks);
    ready.receive_bytes = part * (size_t)parts_received(&what, ranks);
    size_t total = wefti_align_up(3 * GUARD_BYTES + ready.send_bytes + ready.receive_bytes, 64);
    CHECK(memory->used + total <= memory->bytes, "the arena is too small");
    ready.block = (is_foreign(world, what.where) ? memory->foreign : memory->exported) + memory->used;
    memory->used += total;
    memset(ready.block, GUARD, total);
    ready.call = (wefti_collective_call){
        .kind = what.kind, .dtype = what.dtype, .op = what.op, .root = what.root, .count = what.count};
    place_buffers(world, &ready);
    if (what.kind == WEFTI_BARRIER || (what.kind == WEFTI_BROADCAST && world->rank != what.root)) return ready;
    size_t n = ready.send_bytes / element;
    for (size_t i = 0; i < n && i < PERIOD; i++)
        put(what.dtype, (void *)ready.call.send, i, input_value(what.dtype, what.op, world->rank, i, what.seed));
    for (size_t i = PERIOD; i < n; i += PERIOD)
        memcpy((uint8_t *)ready.call.send + i * element, ready.call.send, (n - i < PERIOD ? n - i : PERIOD) * element);
    return ready;
}

/* Element i of part `part` of what this rank receives. */
static double expected_at(const rank_world *world, const call_case *what, size_t part, size_t i) {
    switch (what->kind) {
    case WEFTI_ALLREDUCE: return expected_value(what, world->size, i);
    case WEFTI_REDUCE_SCATTER: return expected_value(what, world->size, (size_t)world->rank * what->count + i);
    case WEFTI_ALLGATHER: return input_value(what->dtype, what->op, (int32_t)part, i, what->seed);
    default: return input_value(what->dtype, what->op, what->root, i, what->seed);
    }
}

static void check_elements(rank_world *world, const ready_call *ready, size_t part, size_t from, size_t to) {
    const call_case *what = &ready->what;
    for (size_t i = from; i < to; i++) {
        size_t at = part * what->count + i;
        double expected = expected_at(world, what, part, i), got = get(what->dtype, ready->call.receive, at);
        CHECK(fabs(got - expected) <= tolerance(what) * fabs(expected),
              "kind %d, %s, %s, count %zu, root %d, %s, placement %d, %d ranks: element %zu is %g, not %g",
              (int)what->kind, weft_dtype_name(what->dtype), wefti_reduce_op_name(what->op), what->count,
              (int)what->root, what->in_place ? "in place" : "out of place", (int)what->where, (int)world->size, at, got,
              expected);
    }
}

/* By blocks where the right answer is exact; the elements of a block that differs are looked at one by one. */
static void check_part(rank_world *world, const ready_call *ready, size_t part) {
    const call_case *what = &ready->what;
    if (what->count <= PERIOD || tolerance(what) > 0) {
        check_elements(world, ready, part, 0, what->count);
        return;
    }
    size_t         element = weft_dtype_bytes(what->dtype);
    const uint8_t *received = (const uint8_t *)ready->call.receive + part * what->count * element;
    _Alignas(8) uint8_t block[PERIOD * MOST_ELEMENT_BYTES];
    for (size_t i = 0; i < PERIOD; i++) put(what->dtype, block, i, expected_at(world, what, part, i));
    for (size_t i = 0, n; i < what->count; i += n) {
        n = what->count - i < PERIOD ? what->count - i : PERIOD;
        if (memcmp(received + i * element, block, n * element) != 0) check_elements(world, ready, part, i, i + n);
    }
}

static void check_guard(rank_world *world, const uint8_t *guard, const char *which) {
    for (int i = 0; i < GUARD_BYTES; i++) CHECK(guard[i] == GUARD, "the bytes %s the buffers were written to", which);
}

void call_check(rank_world *world, const ready_call *ready) {
    if (ready->what.kind == WEFTI_BARRIER) return;
    for (size_t part = 0; part < (size_t)parts_received(&ready->what, world->size); part++) check_part(world, ready, part);
    check_guard(world, ready->block, "before");
    check_guard(world, ready->block + GUARD_BYTES + ready->send_bytes, "between");
    check_guard(world, ready->block + 2 * GUARD_BYTES + ready->send_bytes + ready->receive_bytes, "after");
}

void call_run(rank_world *world, wefti_group *group, arenas *memory, call_case what) {
    memory->used = 0;
    ready_call ready = call_prepare(world, memory, what);
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

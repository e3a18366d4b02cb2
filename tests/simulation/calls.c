/* Calls whose every element is known everywhere, and their check. */
#include <stdlib.h>
#include <string.h>

#include "world.h"

static int32_t input(const sim_call *call, int32_t rank, size_t i) { return (rank + 1) * (int32_t)(i % 97 + 1) + call->number * 7; }

/* Elements that `from` has for `to`, of the kinds whose parts differ. */
static size_t part(const sim_call *call, int32_t from, int32_t to) {
    if (call->kind == WEFTI_ALLTOALL_V) return call->count * (size_t)((from + to) % 3) / 2;
    if (call->kind == WEFTI_REDUCE_SCATTER_V || call->kind == WEFTI_ALLGATHER_V) return call->count * (size_t)(to % 3) / 2;
    return call->count;
}
static size_t before(const sim_call *call, int32_t from, int32_t to) {
    size_t sum = 0;
    for (int32_t i = 0; i < to; i++) sum += part(call, from, i);
    return sum;
}

static bool gives_parts(wefti_collective_kind kind) {
    return kind == WEFTI_REDUCE_SCATTER || kind == WEFTI_REDUCE_SCATTER_V || kind == WEFTI_SCATTER || kind == WEFTI_ALLTOALL || kind == WEFTI_ALLTOALL_V;
}
static bool gets_parts(wefti_collective_kind kind) {
    return kind == WEFTI_ALLGATHER || kind == WEFTI_ALLGATHER_V || kind == WEFTI_GATHER || kind == WEFTI_ALLTOALL || kind == WEFTI_ALLTOALL_V;
}

typedef struct layout {
    int32_t *send, *receive;
    size_t  *counts, *receive_counts;
    size_t sent;
} layout;

static size_t most_elements(const sim_call *call, int32_t size) {
    return call->count * (gives_parts(call->kind) || gets_parts(call->kind) ? (size_t)size : 1) + 16;
}

size_t sim_call_bytes(const sim_call *call, int32_t size) { return 2 * most_elements(call, size) * sizeof(int32_t) + 2 * (size_t)size * sizeof(size_t); }

static layout lay_out(const sim_call *call, int32_t size, int32_t me, const void *memory) {
    layout at = {.counts = (size_t *)(uintptr_t)memory};
    at.receive_counts = at.counts + size;
    at.send = (int32_t *)(at.receive_counts + size);
    at.receive = at.send + most_elements(call, size);
    at.sent = gives_parts(call->kind) ? before(call, me, size) : part(call, me, me);
    return at;
}

void sim_call_prepare(const sim_call *call, int32_t size, int32_t me, void *memory, wefti_collective_call *out) {
    layout at = lay_out(call, size, me, memory);
    for (int32_t i = 0; i < size; i++) {
        at.counts[i] = part(call, me, i);
        at.receive_counts[i] = part(call, i, me);
    }
    for (size_t i = 0; i < at.sent; i++) at.send[i] = input(call, me, i);
    memset(at.receive, 0xff, most_elements(call, size) * sizeof(int32_t));
    *out = (wefti_collective_call){.kind = call->kind, .dtype = WEFT_I32, .op = WEFTI_REDUCE_SUM, .root = call->root, .send = at.send,
                                   .receive = at.receive, .count = call->count, .counts = at.counts, .receive_counts = at.receive_counts};
}

/* Element i of what comes from `from`. */
static int32_t expected(const sim_call *call, int32_t size, int32_t me, int32_t from, size_t i) {
    int32_t sum = 0;
    size_t place = call->kind == WEFTI_REDUCE_SCATTER || call->kind == WEFTI_REDUCE_SCATTER_V ? before(call, me, me) + i : i;
    switch (call->kind) {
    case WEFTI_ALLREDUCE:
    case WEFTI_REDUCE_TO:
    case WEFTI_REDUCE_SCATTER:
    case WEFTI_REDUCE_SCATTER_V:
        for (int32_t rank = 0; rank < size; rank++) sum += input(call, rank, place);
        return sum;
    case WEFTI_BROADCAST: return input(call, call->root, i);
    case WEFTI_SCATTER: return input(call, call->root, before(call, call->root, me) + i);
    case WEFTI_ALLTOALL:
    case WEFTI_ALLTOALL_V: return input(call, from, before(call, from, me) + i);
    default: return input(call, from, i);
    }
}

weft_status sim_call_check(const sim_call *call, int32_t size, int32_t me, const void *memory) {
    layout at = lay_out(call, size, me, memory);
    bool nothing = call->kind == WEFTI_BARRIER || ((call->kind == WEFTI_REDUCE_TO || call->kind == WEFTI_GATHER) && me != call->root);
    size_t seen = 0;
    for (int32_t from = 0; from < (nothing ? 0 : gets_parts(call->kind) ? size : 1); from++) {
        size_t count = call->kind == WEFTI_ALLTOALL_V ? part(call, from, me) : part(call, me, gets_parts(call->kind) ? from : me);
        for (size_t i = 0; i < count; i++, seen++)
            if (at.receive[seen] != expected(call, size, me, from, i))
                return wefti_fail(WEFT_E_INTERNAL, "call %d of kind %d, %zu elements, root %d, rank %d of %d: element %zu of part %d is %d, not %d",
                                  (int)call->number, (int)call->kind, call->count, (int)call->root, (int)me, (int)size, i, (int)from,
                                  (int)at.receive[seen], (int)expected(call, size, me, from, i));
    }
    if (at.receive[seen] != -1) return wefti_fail(WEFT_E_INTERNAL, "call %d of kind %d wrote past its end", (int)call->number, (int)call->kind);
    return WEFT_OK;
}

weft_status sim_call_run(wefti_group *group, const sim_call *call, void *memory) {
    wefti_collective_call real;
    sim_call_prepare(call, group->size, group->index, memory, &real);
    WEFTI_TRY(wefti_collective_run(group, &real));
    return sim_call_check(call, group->size, group->index, memory);
}

/* The list of algorithms, and the choice among them.
 *
 * Each algorithm that fits a call has a cost by a model of latency α, time per byte β of the wire and time per byte γ
 * of memory; the least one is taken. The choice depends on nothing but the group and the call, so all members choose
 * the same; headers compare it nevertheless. A name from the options or from WEFT_ALLREDUCE, WEFT_REDUCE_SCATTER,
 * WEFT_ALLGATHER or WEFT_BROADCAST forces one wherever it fits. */
#include <stdlib.h>
#include <string.h>

#include "transport/coll.h"

/* Rough constants of today's machines; the wire gives its own α and β. */
#define FLAG_NS 100.0           /* a cache line from one core to another, seen by polling */
#define MEMORY_NS_PER_BYTE 0.08 /* read or write, one core */
#define GREETING_NS 400.0       /* a header that goes by itself, along with the data */

static double alpha(const coll_group *group) { return (double)group->base.wire->can.latency_ns + 200.0; }
static double beta(const coll_group *group) {
    double rate = group->base.wire->can.bytes_per_ns;
    return rate > 0 ? 1 / rate : 1.0;
}
static double log2_up(int32_t size) {
    int32_t steps = 0;
    while ((int64_t)1 << steps < size) steps++;
    return steps;
}

/* --- what fits ---
 * `bytes` is those of the call's `count` elements. */

static bool fits_direct(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    (void)call;
    return coll_size(group) <= COLL_DIRECT_MOST && bytes + sizeof(coll_header) <= group->message_bytes;
}
static bool fits_small(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    (void)call;
    return bytes + sizeof(coll_header) <= group->message_bytes;
}
static bool fits_any(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    (void)group, (void)call, (void)bytes;
    return true;
}
static bool fits_pair(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    (void)call, (void)bytes;
    return coll_size(group) == 2;
}
static bool fits_slot(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    return (call->kind == WEFTI_REDUCE_SCATTER ? bytes * (size_t)coll_size(group) : bytes) <= COLL_SMALL_BYTES;
}

/* --- what it costs --- */

static double cost_direct(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    double others = coll_size(group) - 1, data = (double)bytes;
    return alpha(group) + others * (200.0 + data * (beta(group) + 3 * MEMORY_NS_PER_BYTE));
}
static double cost_doubling(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    double rounds = log2_up(coll_size(group)) + ((coll_size(group) & (coll_size(group) - 1)) ? 1 : 0);
    return rounds * (alpha(group) + (double)bytes * (beta(group) + 3 * MEMORY_NS_PER_BYTE));
}
static double cost_tree(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    return log2_up(coll_size(group)) * (alpha(group) + (double)bytes * beta(group));
}
static double cost_ring(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    double steps = coll_size(group) - 1, size = coll_size(group), data = (double)bytes;
    if (kind == WEFTI_ALLREDUCE)
        return GREETING_NS + 2 * steps * (alpha(group) + data / size * (beta(group) + MEMORY_NS_PER_BYTE));
    return GREETING_NS + steps * (alpha(group) + data * (beta(group) + MEMORY_NS_PER_BYTE));
}
/* Measured: reducing all of it instead of a half costs this much of the ring's work on memory. */
static double cost_swap(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    return GREETING_NS + alpha(group) + (double)bytes * (beta(group) + 1.6 * MEMORY_NS_PER_BYTE);
}
static double cost_chain(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    double segment = (double)bytes < (double)COLL_SEGMENT_BYTES ? (double)bytes : (double)COLL_SEGMENT_BYTES;
    return (coll_size(group) - 2) * (alpha(group) + segment * beta(group)) + 2 * alpha(group) +
           (double)bytes * beta(group);
}
static double cost_oneshot(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    double size = coll_size(group), data = (double)bytes * (kind == WEFTI_REDUCE_SCATTER ? size : 1);
    double read = kind == WEFTI_REDUCE_SCATTER ? (double)bytes * size : kind == WEFTI_BROADCAST ? data : data * size;
    return size * FLAG_NS + (data + read) * MEMORY_NS_PER_BYTE;
}
static double cost_twoshot(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    double size = coll_size(group), data = (double)bytes;
    double moved = kind == WEFTI_ALLREDUCE ? 2 * data : kind == WEFTI_BROADCAST ? 2 * data / size : data * (size + 1);
    return 3 * size * FLAG_NS + moved * MEMORY_NS_PER_BYTE;
}

#define BIT(kind) (1u << WEFTI_##kind)
#define DATA_KINDS (BIT(ALLREDUCE) | BIT(REDUCE_SCATTER) | BIT(ALLGATHER) | BIT(BROADCAST))

const coll_algorithm wefti_coll_algorithms[] = {
    {"direct", BIT(ALLREDUCE) | BIT(REDUCE_SCATTER) | BIT(ALLGATHER), false, false, fits_direct, cost_direct,
     wefti_coll_direct_begin, wefti_coll_lanes_advance},
    {"doubling", BIT(ALLREDUCE), false, false, fits_small, cost_doubling, wefti_coll_doubling_begin,
     wefti_coll_lanes_advance},
    {"tree", BIT(BROADCAST), false, false, fits_small, cost_tree, wefti_coll_tree_begin, wefti_coll_lanes_advance},
    {"dissemination", BIT(BARRIER), false, false, fits_any, cost_tree, wefti_coll_dissemination_begin,
     wefti_coll_lanes_advance},
    {"ring", BIT(ALLREDUCE) | BIT(REDUCE_SCATTER) | BIT(ALLGATHER), false, true, fits_any, cost_ring,
     wefti_coll_ring_begin, wefti_coll_lanes_advance},
    {"swap", BIT(ALLREDUCE), false, true, fits_pair, cost_swap, wefti_coll_swap_begin, wefti_coll_lanes_advance},
    {"chain", BIT(BROADCAST), false, true, fits_any, cost_chain, wefti_coll_chain_begin, wefti_coll_lanes_advance},
    {"oneshot", DATA_KINDS | BIT(BARRIER), true, false, fits_slot, cost_oneshot, wefti_coll_oneshot_begin,
     wefti_coll_oneshot_advance},
    {"twoshot", DATA_KINDS, true, true, fits_any, cost_twoshot, wefti_coll_twoshot_begin, wefti_coll_twoshot_advance},
};
const int wefti_coll_algorithm_count = (int)WEFTI_COUNT(wefti_coll_algorithms);

static bool usable(const coll_group *group, const coll_algorithm *algorithm, wefti_collective_kind kind) {
    return (algorithm->kinds >> kind & 1) && (!algorithm->mapped || group->map);
}

const coll_algorithm *wefti_coll_choose(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    const coll_algorithm *best = group->forced[call->kind];
    if (best && best->fits(group, call, bytes)) return best;
    best = NULL;
    double least = 0;
    for (int i = 0; i < wefti_coll_algorithm_count; i++) {
        const coll_algorithm *algorithm = &wefti_coll_algorithms[i];
        /* Where memory is mapped, messages would only copy what can be read where it lies. */
        if (!usable(group, algorithm, call->kind) || algorithm->mapped != (group->map != NULL)) continue;
        if (!algorithm->fits(group, call, bytes)) continue;
        double cost = algorithm->cost_ns(group, call->kind, bytes);
        if (best && cost >= least) continue;
        best = algorithm;
        least = cost;
    }
    return best; /* never NULL: every kind has one of each sort that fits any call */
}

static weft_status force(coll_group *group, uint32_t kinds, const char *name, const char *where) {
    bool known = false;
    for (int i = 0; i < wefti_coll_algorithm_count; i++) {
        const coll_algorithm *algorithm = &wefti_coll_algorithms[i];
        if (strcmp(algorithm->name, name) != 0) continue;
        for (int kind = 0; kind < WEFTI_COLLECTIVE_KIND_COUNT; kind++)
            if ((kinds >> kind & 1) && usable(group, algorithm, (wefti_collective_kind)kind)) {
                group->forced[kind] = algorithm;
                known = true;
            }
    }
    if (known) return WEFT_OK;
    char list[160] = "";
    size_t length = 0;
    for (int i = 0; i < wefti_coll_algorithm_count; i++)
        for (int kind = 0; kind < WEFTI_COLLECTIVE_KIND_COUNT; kind++)
            if ((kinds >> kind & 1) && usable(group, &wefti_coll_algorithms[i], (wefti_collective_kind)kind)) {
                const char *also = wefti_coll_algorithms[i].name;
                size_t bytes = strlen(also) + 2;
                if (length + bytes >= sizeof list) break;
                memcpy(list + length, length ? ", " : "", length ? 2 : 0);
                length += length ? 2 : 0;
                memcpy(list + length, also, strlen(also) + 1);
                length += strlen(also);
                break;
            }
    return wefti_fail(WEFT_E_NOT_FOUND, "%s: no algorithm \"%s\" on wire %s; there are: %s", where, name,
                      group->base.wire->can.name, list);
}

weft_status wefti_coll_read_forced(coll_group *group, const char *name) {
    static const struct {
        const char *variable;
        uint32_t kind;
    } variables[] = {{"WEFT_ALLREDUCE", BIT(ALLREDUCE)},
                     {"WEFT_REDUCE_SCATTER", BIT(REDUCE_SCATTER)},
                     {"WEFT_ALLGATHER", BIT(ALLGATHER)},
                     {"WEFT_BROADCAST", BIT(BROADCAST)}};
    for (size_t i = 0; i < WEFTI_COUNT(variables); i++) {
        const char *value = getenv(variables[i].variable);
        if (value && *value) WEFTI_TRY(force(group, variables[i].kind, value, variables[i].variable));
    }
    if (name) WEFTI_TRY(force(group, DATA_KINDS | BIT(BARRIER), name, "the group's algorithm"));
    return WEFT_OK;
}

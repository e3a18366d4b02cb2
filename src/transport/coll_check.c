/* Checks of collective calls: each on its own when it is started, and against the other members' when they meet.
 *
 * Members match calls by sequence number alone, so a program whose ranks disagree would mix bytes or wait for ever.
 * Every operation therefore sees the header of each rank whose data it uses before it ends, and a difference becomes
 * one sentence that names both calls; the lower index comes first, so that all ranks say the same. */
#include <stdio.h>
#include <string.h>

#include "transport/coll.h"

const char *wefti_coll_kind_name(wefti_collective_kind kind) {
    static const char *const names[WEFTI_COLLECTIVE_KIND_COUNT] = {[WEFTI_ALLREDUCE] = "allreduce",
                                                                   [WEFTI_REDUCE_SCATTER] = "reduce-scatter",
                                                                   [WEFTI_ALLGATHER] = "allgather",
                                                                   [WEFTI_BROADCAST] = "broadcast",
                                                                   [WEFTI_BARRIER] = "barrier",
                                                                   [WEFTI_REDUCE_TO] = "reduce",
                                                                   [WEFTI_GATHER] = "gather",
                                                                   [WEFTI_SCATTER] = "scatter",
                                                                   [WEFTI_ALLTOALL] = "all-to-all",
                                                                   [WEFTI_REDUCE_SCATTER_V] = "reduce-scatterv",
                                                                   [WEFTI_ALLGATHER_V] = "allgatherv",
                                                                   [WEFTI_ALLTOALL_V] = "all-to-allv",
                                                                   [WEFTI_SEND] = "send",
                                                                   [WEFTI_RECEIVE] = "receive"};
    return (unsigned)kind < WEFTI_COLLECTIVE_KIND_COUNT ? names[kind] : "an unknown kind";
}

void wefti_coll_header_words(const coll_header *header, char *text_out, size_t text_bytes) {
    wefti_collective_kind kind = (wefti_collective_kind)header->kind;
    const char *how = header->algorithm < wefti_coll_algorithm_count ? wefti_coll_algorithms[header->algorithm].name
                                                                     : "an unknown algorithm";
    char size[64], op[32] = "", root[32] = "";
    if (kind == WEFTI_BARRIER) {
        snprintf(text_out, text_bytes, "a barrier (%s)", how);
        return;
    }
    if (kind == WEFTI_ALLTOALL_V)
        snprintf(size, sizeof size, "%s", weft_dtype_name((weft_dtype)header->dtype));
    else
        snprintf(size, sizeof size, "%s%llu %s", coll_kind_has_counts(kind) ? "at most " : "",
                 (unsigned long long)header->count, weft_dtype_name((weft_dtype)header->dtype));
    if (coll_kind_reduces(kind)) snprintf(op, sizeof op, "%s, ", wefti_reduce_op_name((wefti_reduce_op)header->op));
    if (coll_kind_has_root(kind))
        snprintf(root, sizeof root, " %s member %d", kind == WEFTI_REDUCE_TO || kind == WEFTI_GATHER ? "to" : "from",
                 (int)header->root);
    snprintf(text_out, text_bytes, "%s of %s%s (%s%s%s)", wefti_coll_kind_name(kind), size, root, op, how,
             !header->extra                ? ""
             : coll_kind_has_counts(kind) ? ", with its counts"
                                          : ", with its function");
}

void wefti_coll_words(const coll_operation *operation, char *text_out, size_t text_bytes) {
    char call[160];
    coll_header header = wefti_coll_header(operation);
    wefti_coll_header_words(&header, call, sizeof call);
    const coll_group *group = coll_group_of(operation);
    if (wefti_collective_is_point(operation->call.kind)) {
        bool sends = operation->call.kind == WEFTI_SEND;
        snprintf(text_out, text_bytes, "message %llu %s rank %d in group %u, %s of %zu %s",
                 (unsigned long long)operation->sequence, sends ? "to" : "from", (int)group->ranks[operation->call.root],
                 (unsigned)group->id, wefti_coll_kind_name(operation->call.kind), operation->call.count,
                 weft_dtype_name(operation->call.dtype));
        return;
    }
    snprintf(text_out, text_bytes, "operation %llu of group %u, %s", (unsigned long long)operation->sequence,
             (unsigned)group->id, call);
}

uint64_t wefti_coll_extra(const coll_group *group, const wefti_collective_call *call) {
    bool counts = call->kind == WEFTI_REDUCE_SCATTER_V || call->kind == WEFTI_ALLGATHER_V;
    bool function = coll_kind_reduces(call->kind) && call->op == WEFTI_REDUCE_USER;
    if (!counts && !function) return 0;
    uint64_t hash = WEFTI_HASH_BEGIN;
    if (counts) hash = wefti_hash(hash, call->counts, sizeof *call->counts * (size_t)coll_size(group));
    if (function) hash = wefti_hash(hash, call->function->name, strlen(call->function->name));
    return hash | 1; /* never 0 */
}

coll_header wefti_coll_header(const coll_operation *operation) {
    const wefti_collective_call *call = &operation->call;
    /* The two ends of a message say the same. */
    bool point = wefti_collective_is_point(call->kind);
    return (coll_header){.count = call->kind == WEFTI_BARRIER ? 0 : call->count,
                         .sequence = (uint32_t)operation->sequence,
                         .kind = point ? WEFTI_SEND : (uint8_t)call->kind,
                         .dtype = call->kind == WEFTI_BARRIER ? 0 : (uint8_t)call->dtype,
                         .op = coll_kind_reduces(call->kind) ? (uint8_t)call->op : 0,
                         .algorithm = (uint8_t)(operation->algorithm - wefti_coll_algorithms),
                         .root = coll_kind_has_root(call->kind) ? call->root : 0,
                         .magic = COLL_MAGIC,
                         .extra = operation->extra};
}

coll_opening wefti_coll_opening(const coll_operation *operation) {
    coll_opening opening = operation->opening;
    opening.header = wefti_coll_header(operation);
    return opening;
}

weft_status wefti_coll_compare(coll_operation *operation, int32_t index, const coll_header *theirs) {
    coll_header ours = wefti_coll_header(operation);
    return wefti_coll_compare_headers(coll_group_of(operation), operation->sequence, index, &ours, theirs);
}

/* Of an opening, the call before. */
static coll_header header_before(const coll_opening *opening, uint64_t sequence) {
    return (coll_header){.count = opening->last.count, .sequence = (uint32_t)sequence, .kind = opening->last.kind, .dtype = opening->last.dtype,
                         .op = opening->last.op, .algorithm = opening->last.algorithm, .root = opening->last.root, .magic = COLL_MAGIC};
}

weft_status wefti_coll_compare_opening(coll_operation *operation, int32_t index, const coll_opening *theirs) {
    WEFTI_TRY(wefti_coll_compare(operation, index, &theirs->header));
    const coll_opening *ours = &operation->opening;
    if (ours->before == theirs->before) return WEFT_OK;
    const coll_group *group = coll_group_of(operation);
    uint64_t before = operation->sequence - 1;
    coll_header mine = header_before(ours, before), other = header_before(theirs, before);
    WEFTI_TRY(wefti_coll_compare_headers(group, before, index, &mine, &other));
    return wefti_coll_other_calls(operation, index);
}

weft_status wefti_coll_other_calls(const coll_operation *operation, int32_t index) {
    const coll_group *group = coll_group_of(operation);
    char words[224];
    wefti_coll_words(operation, words, sizeof words);
    return wefti_fail(WEFT_E_MISMATCH, "%s: ranks %d and %d have not issued the same calls in the same order before it", words,
                      (int)group->ranks[coll_index(group)], (int)group->ranks[index]);
}

weft_status wefti_coll_compare_headers(const coll_group *group, uint64_t sequence, int32_t index, const coll_header *ours, const coll_header *theirs) {
    if (memcmp(ours, theirs, sizeof *ours) == 0) return WEFT_OK;
    int32_t me = coll_index(group);
    if (theirs->magic != COLL_MAGIC)
        return wefti_fail(WEFT_E_MISMATCH,
                          "operation %llu of group %u: rank %d sent no header; does it run another version?",
                          (unsigned long long)sequence, (unsigned)group->id, (int)group->base.ranks[index]);
    char mine[160], other[160];
    wefti_coll_header_words(ours, mine, sizeof mine);
    wefti_coll_header_words(theirs, other, sizeof other);
    bool mine_first = me < index;
    return wefti_fail(
        WEFT_E_MISMATCH,
        "ranks disagree on operation %llu of group %u: rank %d calls %s, rank %d calls %s; all members must "
        "issue the same calls in the same order",
        (unsigned long long)sequence, (unsigned)group->id, (int)group->base.ranks[mine_first ? me : index],
        mine_first ? mine : other, (int)group->base.ranks[mine_first ? index : me], mine_first ? other : mine);
}

weft_status wefti_coll_wrong_length(coll_operation *operation, int32_t index, size_t bytes, size_t expected) {
    char words[224];
    wefti_coll_words(operation, words, sizeof words);
    return wefti_fail(WEFT_E_MISMATCH,
                      "%s: rank %d sent %zu bytes where %zu were due; do all ranks make the same call?", words,
                      (int)coll_group_of(operation)->base.ranks[index], bytes, expected);
}

void wefti_coll_suspect(coll_operation *operation, int32_t index) {
    if (operation->suspected) return;
    operation->suspected = true;
    const coll_group *group = coll_group_of(operation);
    char words[224], cause[480];
    const wefti_wire *wire = group->base.wire;
    int32_t rank = group->base.ranks[index];
    bool left = wire->ops->link(wire, rank) == WEFTI_LINK_LEFT;
    const char *why = wire->ops->cause ? wire->ops->cause(wire, rank) : NULL;
    const char *how = wefti_coll_has_left(operation, index) ? "it closed its group before"
                      : left                                ? "it left during"
                                                            : "the link to it broke during";
    wefti_coll_words(operation, words, sizeof words);
    snprintf(cause, sizeof cause, "%s %s%s%.160s", how, words, why ? ": " : "", why ? why : "");
    wefti_fault_suspect(group->base.fault, rank, cause);
}

/* --- calls on their own --- */

static size_t sum_of(const size_t *counts, int32_t size) {
    size_t sum = 0;
    for (int32_t i = 0; i < size; i++) sum += counts[i];
    return sum;
}

size_t wefti_coll_sent_count(const coll_group *group, const wefti_collective_call *call, int32_t index) {
    size_t size = (size_t)coll_size(group);
    switch (call->kind) {
    case WEFTI_BARRIER:
    case WEFTI_RECEIVE: return 0;
    case WEFTI_BROADCAST: return index == call->root ? call->count : 0;
    case WEFTI_SCATTER: return index == call->root ? call->count * size : 0;
    case WEFTI_REDUCE_SCATTER:
    case WEFTI_ALLTOALL: return call->count * size;
    case WEFTI_REDUCE_SCATTER_V:
    case WEFTI_ALLTOALL_V: return sum_of(call->counts, coll_size(group));
    case WEFTI_ALLGATHER_V: return call->counts[index];
    default: return call->count;
    }
}

size_t wefti_coll_received_count(const coll_group *group, const wefti_collective_call *call, int32_t index) {
    size_t size = (size_t)coll_size(group);
    switch (call->kind) {
    case WEFTI_BARRIER:
    case WEFTI_SEND: return 0;
    case WEFTI_REDUCE_TO: return index == call->root ? call->count : 0;
    case WEFTI_GATHER: return index == call->root ? call->count * size : 0;
    case WEFTI_ALLGATHER:
    case WEFTI_ALLTOALL: return call->count * size;
    case WEFTI_ALLGATHER_V: return sum_of(call->counts, coll_size(group));
    case WEFTI_ALLTOALL_V: return sum_of(call->receive_counts, coll_size(group));
    case WEFTI_REDUCE_SCATTER_V: return call->counts[index];
    default: return call->count;
    }
}

static weft_status check_buffers(const coll_group *group, const wefti_collective_call *call) {
    size_t sent = wefti_coll_sent_count(group, call, coll_index(group));
    size_t received = wefti_coll_received_count(group, call, coll_index(group));
    bool all = call->kind == WEFTI_ALLTOALL || call->kind == WEFTI_ALLTOALL_V;
    if ((sent && !call->send) || (received && !call->receive))
        return wefti_fail(WEFT_E_INVALID, "%s of %zu %s: the %s buffer is NULL", wefti_coll_kind_name(call->kind),
                          received && !call->receive ? received : sent, weft_dtype_name(call->dtype),
                          received && !call->receive ? "receive" : "send");
    if (all && sent && call->send == call->receive)
        return wefti_fail(WEFT_E_INVALID, "%s: send and receive are the same memory; it does not work in place",
                          wefti_coll_kind_name(call->kind));
    return WEFT_OK;
}

static weft_status check_sizes(const coll_group *group, const wefti_collective_call *call) {
    const char *kind = wefti_coll_kind_name(call->kind);
    size_t bytes, most = call->count, elements = (size_t)coll_size(group);
    if (coll_kind_has_counts(call->kind)) {
        if (!call->counts || (call->kind == WEFTI_ALLTOALL_V && !call->receive_counts))
            return wefti_fail(WEFT_E_INVALID, "%s: %s is NULL; it wants %d numbers of elements, one for each member", kind,
                              call->counts ? "receive_counts" : "counts", (int)coll_size(group));
        most = 0;
        for (int32_t i = 0; i < coll_size(group); i++) {
            most = call->counts[i] > most ? call->counts[i] : most;
            if (call->kind == WEFTI_ALLTOALL_V && call->receive_counts[i] > most) most = call->receive_counts[i];
        }
    }
    if (!wefti_mul_size(most, weft_dtype_bytes(call->dtype), &bytes) || !wefti_mul_size(bytes, elements, &bytes) ||
        bytes > PTRDIFF_MAX)
        return wefti_fail(WEFT_E_OVERFLOW, "%s of %zu %s on %d ranks does not fit into memory", kind, most,
                          weft_dtype_name(call->dtype), (int)coll_size(group));
    return WEFT_OK;
}

static weft_status check_root(const coll_group *group, const wefti_collective_call *call) {
    const char *kind = wefti_coll_kind_name(call->kind);
    bool point = wefti_collective_is_point(call->kind);
    if (!point && !coll_kind_has_root(call->kind)) return WEFT_OK;
    if (call->root < 0 || call->root >= coll_size(group))
        return wefti_fail(WEFT_E_INVALID, "%s: there is no member %d in a group of %d", kind, (int)call->root,
                          (int)coll_size(group));
    if (point && call->root == coll_index(group))
        return wefti_fail(WEFT_E_INVALID, "%s: member %d is this rank itself; messages go to others", kind, (int)call->root);
    return WEFT_OK;
}

static weft_status check_reduction(const wefti_collective_call *call) {
    const char *kind = wefti_coll_kind_name(call->kind);
    if (!coll_kind_reduces(call->kind)) return WEFT_OK;
    if (call->op == WEFTI_REDUCE_USER) {
        if (!call->function || !call->function->combine || !call->function->name)
            return wefti_fail(WEFT_E_INVALID, "%s: a reduction of the user's own wants a function and its name", kind);
        return WEFT_OK;
    }
    if ((unsigned)call->op >= WEFTI_REDUCE_OP_COUNT)
        return wefti_fail(WEFT_E_INVALID, "%s: %d is no reduction", kind, (int)call->op);
    if (call->dtype == WEFT_BOOL && call->op == WEFTI_REDUCE_AVG)
        return wefti_fail(WEFT_E_DTYPE, "%s: bool has no average", kind);
    return WEFT_OK;
}

_Static_assert(COLL_SMALL_BYTES < WEFTI_FOREIGN_LEAST_BYTES && COLL_SMALL_PAIR_BYTES < WEFTI_FOREIGN_LEAST_BYTES, "what goes with a header is copied by the host");

static weft_status check_foreign(const coll_group *group, const wefti_collective_call *call) {
    if (!call->foreign) return WEFT_OK;
    if (wefti_collective_is_point(call->kind) && group->base.wire && (group->base.wire->can.flags & WEFTI_WIRE_MEMORY_FOREIGN) &&
        call->count * weft_dtype_bytes(call->dtype) >= WEFTI_FOREIGN_LEAST_BYTES)
        return WEFT_OK;
    return wefti_fail(WEFT_E_UNSUPPORTED, "%s of %zu %s: only messages of at least %zu bytes go from and to a device's memory, by a wire to which it is attached",
                      wefti_coll_kind_name(call->kind), call->count, weft_dtype_name(call->dtype), WEFTI_FOREIGN_LEAST_BYTES);
}

weft_status wefti_coll_check_call(const coll_group *group, const wefti_collective_call *call) {
    const char *kind = wefti_coll_kind_name(call->kind);
    if ((unsigned)call->kind >= WEFTI_COLLECTIVE_KIND_COUNT)
        return wefti_fail(WEFT_E_UNSUPPORTED, "collective kind %d is none that this engine does", (int)call->kind);
    if (call->stream)
        return wefti_fail(WEFT_E_UNSUPPORTED, "%s: this engine moves host memory and follows no device stream", kind);
    if (call->kind == WEFTI_BARRIER) return WEFT_OK;
    if ((unsigned)call->dtype >= WEFT_DTYPE_COUNT)
        return wefti_fail(WEFT_E_DTYPE, "%s: %d is no dtype", kind, (int)call->dtype);
    WEFTI_TRY(check_reduction(call));
    WEFTI_TRY(check_root(group, call));
    WEFTI_TRY(check_sizes(group, call));
    WEFTI_TRY(check_foreign(group, call));
    return check_buffers(group, call);
}

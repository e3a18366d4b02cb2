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
                                                                   [WEFTI_BARRIER] = "barrier"};
    return (unsigned)kind < WEFTI_COLLECTIVE_KIND_COUNT ? names[kind] : "an unknown kind";
}

static bool reduces(wefti_collective_kind kind) { return kind == WEFTI_ALLREDUCE || kind == WEFTI_REDUCE_SCATTER; }

static void header_words(const coll_header *header, char *text_out, size_t text_bytes) {
    wefti_collective_kind kind = (wefti_collective_kind)header->kind;
    const char *how = header->algorithm < wefti_coll_algorithm_count ? wefti_coll_algorithms[header->algorithm].name
                                                                     : "an unknown algorithm";
    if (kind == WEFTI_BARRIER)
        snprintf(text_out, text_bytes, "a barrier (%s)", how);
    else if (reduces(kind))
        snprintf(text_out, text_bytes, "%s of %llu %s (%s, %s)", wefti_coll_kind_name(kind),
                 (unsigned long long)header->count, weft_dtype_name((weft_dtype)header->dtype),
                 wefti_reduce_op_name((wefti_reduce_op)header->op), how);
    else if (kind == WEFTI_BROADCAST)
        snprintf(text_out, text_bytes, "%s of %llu %s from member %d (%s)", wefti_coll_kind_name(kind),
                 (unsigned long long)header->count, weft_dtype_name((weft_dtype)header->dtype), (int)header->root, how);
    else
        snprintf(text_out, text_bytes, "%s of %llu %s (%s)", wefti_coll_kind_name(kind),
                 (unsigned long long)header->count, weft_dtype_name((weft_dtype)header->dtype), how);
}

void wefti_coll_words(const coll_operation *operation, char *text_out, size_t text_bytes) {
    char call[160];
    coll_header header = wefti_coll_header(operation);
    header_words(&header, call, sizeof call);
    snprintf(text_out, text_bytes, "operation %llu of group %u, %s", (unsigned long long)operation->sequence,
             (unsigned)coll_group_of(operation)->id, call);
}

coll_header wefti_coll_header(const coll_operation *operation) {
    const wefti_collective_call *call = &operation->call;
    bool op = reduces(call->kind), root = call->kind == WEFTI_BROADCAST;
    return (coll_header){.count = call->kind == WEFTI_BARRIER ? 0 : call->count,
                         .sequence = (uint32_t)operation->sequence,
                         .kind = (uint8_t)call->kind,
                         .dtype = call->kind == WEFTI_BARRIER ? 0 : (uint8_t)call->dtype,
                         .op = op ? (uint8_t)call->op : 0,
                         .algorithm = (uint8_t)(operation->algorithm - wefti_coll_algorithms),
                         .root = root ? call->root : 0,
                         .magic = COLL_MAGIC};
}

weft_status wefti_coll_compare(coll_operation *operation, int32_t index, const coll_header *theirs) {
    coll_header ours = wefti_coll_header(operation);
    if (memcmp(&ours, theirs, sizeof ours) == 0) return WEFT_OK;
    const coll_group *group = coll_group_of(operation);
    int32_t me = coll_index(group);
    if (theirs->magic != COLL_MAGIC)
        return wefti_fail(WEFT_E_MISMATCH,
                          "operation %llu of group %u: rank %d sent no header; does it run another version?",
                          (unsigned long long)operation->sequence, (unsigned)group->id, (int)group->base.ranks[index]);
    char mine[160], other[160];
    header_words(&ours, mine, sizeof mine);
    header_words(theirs, other, sizeof other);
    bool mine_first = me < index;
    return wefti_fail(
        WEFT_E_MISMATCH,
        "ranks disagree on operation %llu of group %u: rank %d calls %s, rank %d calls %s; all members must "
        "issue the same calls in the same order",
        (unsigned long long)operation->sequence, (unsigned)group->id, (int)group->base.ranks[mine_first ? me : index],
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

static weft_status check_buffers(const coll_group *group, const wefti_collective_call *call, size_t total_bytes) {
    bool root = call->kind != WEFTI_BROADCAST || call->root == coll_index(group);
    if (total_bytes == 0) return WEFT_OK;
    if (!call->receive || (root && !call->send))
        return wefti_fail(WEFT_E_INVALID, "%s of %zu %s: the %s buffer is NULL", wefti_coll_kind_name(call->kind),
                          call->count, weft_dtype_name(call->dtype), call->receive ? "send" : "receive");
    return WEFT_OK;
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
    if (reduces(call->kind) && (unsigned)call->op >= WEFTI_REDUCE_OP_COUNT)
        return wefti_fail(WEFT_E_INVALID, "%s: %d is no reduction", kind, (int)call->op);
    if (reduces(call->kind) && call->dtype == WEFT_BOOL && call->op == WEFTI_REDUCE_AVG)
        return wefti_fail(WEFT_E_DTYPE, "%s: bool has no average", kind);
    if (call->kind == WEFTI_BROADCAST && (call->root < 0 || call->root >= coll_size(group)))
        return wefti_fail(WEFT_E_INVALID, "broadcast: there is no member %d in a group of %d", (int)call->root,
                          (int)coll_size(group));
    size_t bytes;
    if (!wefti_mul_size(call->count, weft_dtype_bytes(call->dtype), &bytes) ||
        !wefti_mul_size(bytes, (size_t)coll_size(group), &bytes) || bytes > PTRDIFF_MAX)
        return wefti_fail(WEFT_E_OVERFLOW, "%s of %zu %s on %d ranks does not fit into memory", kind, call->count,
                          weft_dtype_name(call->dtype), (int)coll_size(group));
    return check_buffers(group, call, bytes);
}

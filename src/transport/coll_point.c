/* point: send and receive between two members.
 *
 * They are matched by their order between the two, under tags of their own, so they take no number of the group. The
 * sender says what it sends in a header; what is small goes along with it, the rest follows in segments straight from
 * buffer to buffer, several on the way. The receiver compares the header with its own call. */
#include <string.h>

#include "transport/coll.h"

#define POINT_SEGMENT_BYTES ((size_t)1 << 20)

static bool is_small(const coll_operation *operation) {
    return coll_bytes(operation) + sizeof(coll_opening) <= coll_group_of(operation)->message_bytes;
}

static weft_status compare(coll_operation *operation, const coll_header *theirs) {
    coll_header ours = wefti_coll_header(operation);
    if (memcmp(&ours, theirs, sizeof ours) == 0) return WEFT_OK;
    const coll_group *group = coll_group_of(operation);
    int32_t rank = group->ranks[operation->call.root];
    if (theirs->magic != COLL_MAGIC)
        return wefti_fail(WEFT_E_MISMATCH, "receive %llu of group %u: rank %d sent no header; does it run another version?",
                          (unsigned long long)operation->sequence, (unsigned)group->id, (int)rank);
    return wefti_fail(WEFT_E_MISMATCH,
                      "ranks disagree on message %llu from rank %d to rank %d in group %u: it sends %llu %s, and %zu %s are "
                      "received; sends and receives of two ranks are matched in their order",
                      (unsigned long long)operation->sequence, (int)rank, (int)group->ranks[coll_index(group)],
                      (unsigned)group->id, (unsigned long long)theirs->count, weft_dtype_name((weft_dtype)theirs->dtype),
                      operation->call.count, weft_dtype_name(operation->call.dtype));
}

static weft_status header_step(coll_operation *operation, coll_lane *lane) {
    const wefti_collective_call *call = &operation->call;
    size_t bytes = is_small(operation) ? coll_bytes(operation) : 0;
    bool sends = call->kind == WEFTI_SEND;
    if (lane->round++ == 0) {
        coll_opening header = wefti_coll_opening(operation);
        if (!sends) {
            wefti_coll_lane_recv(operation, lane, call->root, 0, operation->inbox, coll_group_of(operation)->message_bytes);
            return WEFT_E_AGAIN;
        }
        memcpy(operation->outbox, &header, sizeof header);
        if (bytes) memcpy(operation->outbox + sizeof header, call->send, bytes);
        wefti_coll_lane_send(operation, lane, call->root, 0, operation->outbox, sizeof header + bytes);
        if (!is_small(operation)) lane->transfers[lane->queued - 1].flags |= WEFTI_WIRE_MORE;
        return WEFT_E_AGAIN;
    }
    if (sends) return WEFT_OK;
    size_t done = lane->transfers[0].done_bytes;
    if (done < sizeof(coll_opening)) return wefti_coll_wrong_length(operation, call->root, done, sizeof(coll_opening) + bytes);
    WEFTI_TRY(compare(operation, &((const coll_opening *)operation->inbox)->header));
    if (done != sizeof(coll_opening) + bytes)
        return wefti_coll_wrong_length(operation, call->root, done, sizeof(coll_opening) + bytes);
    if (bytes) memcpy(call->receive, operation->inbox + sizeof(coll_opening), bytes);
    return WEFT_OK;
}

static weft_status segment_step(coll_operation *operation, coll_lane *lane) {
    const wefti_collective_call *call = &operation->call;
    size_t all = coll_bytes(operation), most = coll_group_of(operation)->base.wire->can.max_message_bytes;
    most = most < POINT_SEGMENT_BYTES ? most : POINT_SEGMENT_BYTES;
    if (lane->round++ > 0) lane->segment += COLL_LANES;
    size_t first = lane->segment * most, bytes = all - first < most ? all - first : most;
    if (first >= all) return WEFT_OK;
    if (call->kind == WEFTI_SEND)
        wefti_coll_lane_send(operation, lane, call->root, 1 + (uint32_t)lane->index, (const uint8_t *)call->send + first, bytes);
    else
        wefti_coll_lane_recv(operation, lane, call->root, 1 + (uint32_t)lane->index, (uint8_t *)call->receive + first, bytes);
    if (call->foreign) lane->transfers[lane->queued - 1].flags |= WEFTI_WIRE_FOREIGN;
    return WEFT_E_AGAIN;
}

void wefti_coll_point_begin(coll_operation *operation) {
    for (int32_t i = 0; i < COLL_LANES; i++) {
        wefti_coll_lane_begin(operation, i, segment_step);
        operation->lanes[i].finished = is_small(operation);
    }
    wefti_coll_lane_begin(operation, COLL_LANES, header_step);
}

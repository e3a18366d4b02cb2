/* Exchanges of parts: every transfer goes straight from a buffer of the caller's to another's, but for Bruck's all-to-all.
 *
 * pairwise: an all-to-all in n-1 exchanges; in number s a rank sends to the one s+1 further on and receives from the one
 * s+1 before it, several at once. With counts, empty parts are sent too: that is how a count that the two ends see
 * differently is found.
 *
 * linear: the root's transfers with everyone, several at once.
 *
 * bruck: Bruck, Ho, Kipnis, Upfal and Weathersby's algorithms (IEEE TPDS 8, 1997) in ceil(log2 n) rounds, for any n. In an
 * allgather a rank hands the parts that it has to the one 2^k before it. In an all-to-all it hands on, to the one 2^k
 * further on, all parts that have a distance with that bit to go: more bytes for fewer messages. */
#include "transport/coll.h"

#define MESSAGE_BYTES ((size_t)64 << 20) /* most of one, where the wire takes as much */

/* A segment is the exchange with one other; its rounds are the messages that a part takes. */
static size_t others(const coll_operation *operation) { return (size_t)coll_size(coll_group_of(operation)) - 1; }
static size_t message_most(const coll_operation *operation) {
    size_t most = operation->base.group->wire->can.max_message_bytes;
    return (most < MESSAGE_BYTES ? most : MESSAGE_BYTES) / operation->element_bytes;
}
static int32_t messages(const coll_operation *operation, size_t longest) {
    size_t count = coll_segments(longest, message_most(operation));
    return count ? (int32_t)count : 1;
}
/* Message `round` of a part. */
static coll_range message_of(const coll_operation *operation, coll_range part, int32_t round) {
    size_t most = message_most(operation), before = (size_t)round * most;
    if (before >= part.count) return (coll_range){part.first, 0};
    size_t rest = part.count - before;
    return (coll_range){part.first + before, rest < most ? rest : most};
}

/* --- pairwise --- */

/* The part that goes to member `index`, and the one that comes from it. */
static coll_range out_part(const coll_operation *operation, int32_t index) { return wefti_coll_part_of(operation, index); }
static coll_range in_part(const coll_operation *operation, int32_t index) {
    const size_t *counts = operation->call.receive_counts;
    if (operation->call.kind != WEFTI_ALLTOALL_V) return wefti_coll_part_of(operation, index);
    coll_range part = {0, counts[index]};
    for (int32_t i = 0; i < index; i++) part.first += counts[i];
    return part;
}

static void pairwise_prepare(coll_operation *operation, coll_lane *lane) {
    int32_t me = coll_index(coll_group_of(operation));
    coll_range out = out_part(operation, me), in = in_part(operation, me);
    if (lane->segment != 0) return;
    wefti_coll_copy(operation, coll_at(operation, operation->call.receive, in.first),
                    coll_at(operation, operation->call.send, out.first), in.count);
}

static int32_t pairwise_rounds(const coll_operation *operation) {
    size_t longest = 0;
    for (int32_t i = 0; i < coll_size(coll_group_of(operation)); i++) {
        size_t out = out_part(operation, i).count, in = in_part(operation, i).count;
        longest = out > longest ? out : longest;
        longest = in > longest ? in : longest;
    }
    return messages(operation, longest);
}

static void pairwise_queue(coll_operation *operation, coll_lane *lane, int32_t round) {
    const coll_group *group = coll_group_of(operation);
    int32_t distance = (int32_t)lane->segment + 1, me = coll_index(group);
    int32_t to = coll_around(group, me, distance), from = coll_around(group, me, -distance);
    coll_range out = message_of(operation, out_part(operation, to), round);
    coll_range in = message_of(operation, in_part(operation, from), round);
    uint32_t step = 1 + (uint32_t)lane->index;
    bool always = operation->call.kind == WEFTI_ALLTOALL_V && round == 0;
    if (in.count || always)
        wefti_coll_lane_recv(operation, lane, from, step, coll_at(operation, operation->call.receive, in.first),
                             in.count * operation->element_bytes);
    if (out.count || always)
        wefti_coll_lane_send(operation, lane, to, step, coll_at(operation, operation->call.send, out.first),
                             out.count * operation->element_bytes);
}

void wefti_coll_pairwise_begin(coll_operation *operation) {
    static const coll_program program = {others, pairwise_rounds, pairwise_prepare, pairwise_queue, NULL};
    wefti_coll_program_begin(operation, &program);
}

/* --- linear --- */

static void linear_prepare(coll_operation *operation, coll_lane *lane) {
    const wefti_collective_call *call = &operation->call;
    int32_t me = coll_index(coll_group_of(operation));
    if (lane->segment != 0 || me != call->root) return;
    size_t own = (size_t)me * call->count;
    if (call->kind == WEFTI_GATHER)
        wefti_coll_copy(operation, coll_at(operation, call->receive, own), call->send, call->count);
    else
        wefti_coll_copy(operation, call->receive, coll_at(operation, call->send, own), call->count);
}

static int32_t linear_rounds(const coll_operation *operation) { return messages(operation, operation->call.count); }

static void linear_queue(coll_operation *operation, coll_lane *lane, int32_t round) {
    const coll_group *group = coll_group_of(operation);
    const wefti_collective_call *call = &operation->call;
    int32_t me = coll_index(group), other = coll_around(group, call->root, (int32_t)lane->segment + 1);
    bool gather = call->kind == WEFTI_GATHER;
    coll_range part = message_of(operation, (coll_range){0, call->count}, round);
    size_t whole = (size_t)other * call->count + part.first;
    if (me == call->root && gather)
        wefti_coll_program_recv(operation, lane, other, coll_at(operation, call->receive, whole), part.count);
    else if (me == call->root)
        wefti_coll_program_send(operation, lane, other, coll_at(operation, call->send, whole), part.count);
    else if (me == other && gather)
        wefti_coll_program_send(operation, lane, call->root, coll_at(operation, call->send, part.first), part.count);
    else if (me == other)
        wefti_coll_program_recv(operation, lane, call->root, coll_at(operation, call->receive, part.first), part.count);
}

void wefti_coll_linear_begin(coll_operation *operation) {
    static const coll_program program = {others, linear_rounds, linear_prepare, linear_queue, NULL};
    wefti_coll_program_begin(operation, &program);
}

/* --- Bruck's allgather --- */

static size_t one_segment(const coll_operation *operation) {
    (void)operation;
    return 1;
}
static int32_t bruck_rounds(const coll_operation *operation) {
    return wefti_coll_log2_up(coll_size(coll_group_of(operation)));
}

static void gather_prepare(coll_operation *operation, coll_lane *lane) {
    (void)lane;
    coll_range own = wefti_coll_part_of(operation, coll_index(coll_group_of(operation)));
    wefti_coll_copy(operation, coll_at(operation, operation->call.receive, own.first), operation->call.send, own.count);
}

/* The parts of `count` members from `first` on, around the group: up to the last member, and from member 0 on. */
static void around_parts(const coll_operation *operation, int32_t first, int32_t count, coll_range parts_out[2]) {
    int32_t size = coll_size(coll_group_of(operation)), end = first + count < size ? first + count : size;
    int32_t wrapped = first + count - end;
    coll_range begin = wefti_coll_part_of(operation, first), last = wefti_coll_part_of(operation, end - 1);
    parts_out[0] = (coll_range){begin.first, last.first + last.count - begin.first};
    parts_out[1] = (coll_range){0, 0};
    if (wrapped == 0) return;
    last = wefti_coll_part_of(operation, wrapped - 1);
    parts_out[1].count = last.first + last.count;
}

static void gather_queue(coll_operation *operation, coll_lane *lane, int32_t round) {
    const coll_group *group = coll_group_of(operation);
    int32_t distance = 1 << round, size = coll_size(group), me = coll_index(group);
    int32_t count = size - distance < distance ? size - distance : distance;
    int32_t from = coll_around(group, me, distance), to = coll_around(group, me, -distance);
    coll_range in[2], out[2];
    around_parts(operation, from, count, in);
    around_parts(operation, me, count, out);
    for (int i = 0; i < 2; i++)
        wefti_coll_program_recv(operation, lane, from, coll_at(operation, operation->call.receive, in[i].first), in[i].count);
    for (int i = 0; i < 2; i++)
        wefti_coll_program_send(operation, lane, to, coll_at(operation, operation->call.receive, out[i].first), out[i].count);
}

/* --- Bruck's all-to-all --- */

/* Scratch: the parts by the distance that they go, those that leave, and those that come. */
static size_t all_most(const coll_operation *operation) {
    size_t parts = 2 * (size_t)coll_size(coll_group_of(operation)) + 2;
    size_t most = 2 * COLL_SEGMENT_BYTES / operation->element_bytes / parts;
    return most ? most : 1;
}
static size_t all_segments(const coll_operation *operation) { return coll_segments(operation->call.count, all_most(operation)); }
static uint8_t *part_at(const coll_operation *operation, const coll_lane *lane, int32_t part) {
    size_t count = wefti_coll_segment(lane, operation->call.count, all_most(operation)).count;
    return coll_at(operation, lane->scratch, (size_t)part * count);
}

static void all_prepare(coll_operation *operation, coll_lane *lane) {
    const coll_group *group = coll_group_of(operation);
    coll_range segment = wefti_coll_segment(lane, operation->call.count, all_most(operation));
    for (int32_t i = 0; i < coll_size(group); i++) {
        size_t to = (size_t)coll_around(group, coll_index(group), i);
        wefti_coll_copy(operation, part_at(operation, lane, i),
                        coll_at(operation, operation->call.send, to * operation->call.count + segment.first), segment.count);
    }
}

static int32_t parts_with(int32_t size, int32_t bit) {
    int32_t parts = 0;
    for (int32_t i = 0; i < size; i++) parts += (i & bit) != 0;
    return parts;
}

static void all_queue(coll_operation *operation, coll_lane *lane, int32_t round) {
    const coll_group *group = coll_group_of(operation);
    int32_t size = coll_size(group), bit = 1 << round, packed = 0, half = size / 2 + 1;
    size_t count = wefti_coll_segment(lane, operation->call.count, all_most(operation)).count;
    for (int32_t i = 0; i < size; i++)
        if (i & bit) wefti_coll_copy(operation, part_at(operation, lane, size + packed++), part_at(operation, lane, i), count);
    wefti_coll_program_recv(operation, lane, coll_around(group, coll_index(group), -bit),
                            part_at(operation, lane, size + half), (size_t)parts_with(size, bit) * count);
    wefti_coll_program_send(operation, lane, coll_around(group, coll_index(group), bit), part_at(operation, lane, size),
                            (size_t)packed * count);
}

static weft_status all_work(coll_operation *operation, coll_lane *lane, int32_t round) {
    const coll_group *group = coll_group_of(operation);
    int32_t size = coll_size(group), bit = 1 << round, unpacked = 0, half = size / 2 + 1;
    coll_range segment = wefti_coll_segment(lane, operation->call.count, all_most(operation));
    for (int32_t i = 0; i < size; i++)
        if (i & bit)
            wefti_coll_copy(operation, part_at(operation, lane, i), part_at(operation, lane, size + half + unpacked++),
                            segment.count);
    if (bit * 2 < size) return WEFT_OK;
    for (int32_t i = 0; i < size; i++) {
        size_t from = (size_t)coll_around(group, coll_index(group), -i);
        wefti_coll_copy(operation, coll_at(operation, operation->call.receive, from * operation->call.count + segment.first),
                        part_at(operation, lane, i), segment.count);
    }
    return WEFT_OK;
}

void wefti_coll_bruck_begin(coll_operation *operation) {
    static const coll_program gather = {one_segment, bruck_rounds, gather_prepare, gather_queue, NULL},
                              all = {all_segments, bruck_rounds, all_prepare, all_queue, all_work};
    wefti_coll_program_begin(operation, operation->call.kind == WEFTI_ALLTOALL ? &all : &gather);
}

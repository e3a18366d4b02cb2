/* Algorithms over messages whose headers go by themselves: for large operations, and for pairs.
 *
 * ring: the data of an allreduce is cut into one part a member. A part travels once around the ring and is reduced at
 * each stop (reduce-scatter), then once more and is stored at each stop (allgather); the kinds of these names are its
 * halves. A rank sends and receives 2(n-1)/n of the bytes, the least there can be. Part i is reduced in the order i+1,
 * i+2, …, i, wherever and whenever that happens: all ranks get equal bits in every run.
 *
 * swap: two ranks send each other all of their data, and both reduce all of it: as many bytes as the ring's in one
 * exchange instead of two, for twice the work. Operands are in the order of the members: equal bits.
 *
 * chain: in a broadcast, each member hands on what it gets, segment by segment.
 *
 * What is sent is cut into segments, which the lanes take in turn; while one lane reduces, the others' segments are on
 * the way. What is being reduced stays in the lane's scratch until it is complete, or is reduced piece by piece as it comes
 * in, where the wire gives pieces: the cache holds those still. Only results, or what they are made of, are written to `receive`, and `send`
 * may be the same memory. Scratch: two segments a lane. */
#include <string.h>

#include "transport/coll.h"

static size_t segment_elements(const coll_operation *operation) {
    return coll_segment_bytes(operation) / operation->element_bytes;
}

/* Segment `segment` of part `index`; empty where the part is shorter. */
static coll_range segment_of(const coll_operation *operation, int32_t index, size_t segment) {
    coll_range part = wefti_coll_part_of(operation, index);
    size_t most = segment_elements(operation), before = segment * most;
    if (before >= part.count) return (coll_range){part.first, 0};
    size_t rest = part.count - before;
    return (coll_range){part.first + before, rest < most ? rest : most};
}

static size_t segment_count(const coll_operation *operation, size_t count) {
    return coll_segments(count, segment_elements(operation));
}

/* Segments of the ring's longest part. */
static size_t ring_segments(const coll_operation *operation) {
    return segment_count(operation, wefti_coll_longest_part(operation));
}

static int32_t around(const coll_group *group, int32_t index) {
    int32_t size = coll_size(group);
    return ((index % size) + size) % size;
}

static int32_t left_of(const coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    return around(group, coll_index(group) - 1);
}

/* Where the partial result of round `round` is made. */
static uint8_t *ring_partial(const coll_operation *operation, const coll_lane *lane, int32_t round) {
    return lane->scratch + (size_t)(round & 1) * coll_segment_bytes(operation);
}

static void ring_send(coll_operation *operation, coll_lane *lane, coll_range out, const void *from) {
    const coll_group *group = coll_group_of(operation);
    if (out.count)
        wefti_coll_lane_send(operation, lane, around(group, coll_index(group) + 1), 1 + (uint32_t)lane->index, from,
                             out.count * operation->element_bytes);
}

/* Where what is reduced in round `round` goes: in the last one, to the result. */
static uint8_t *ring_result(const coll_operation *operation, const coll_lane *lane, int32_t round, coll_range range) {
    const coll_group *group = coll_group_of(operation);
    size_t first = range.first;
    if (round != coll_size(group) - 2) return ring_partial(operation, lane, round);
    if (operation->call.kind != WEFTI_ALLREDUCE) first -= wefti_coll_part_of(operation, coll_index(group)).first;
    return (uint8_t *)operation->call.receive + first * operation->element_bytes;
}

static const uint8_t *ring_own(const coll_operation *operation, coll_range range) {
    return (const uint8_t *)operation->call.send + range.first * operation->element_bytes;
}

/* Reduces `bytes` of what comes in round `round`: into the other ranks' partial result, or the finished part of this one. */
static weft_status ring_reduce(coll_operation *operation, coll_lane *lane, int32_t round, const void *data, size_t offset, size_t bytes) {
    coll_group *group = coll_group_of(operation);
    coll_range range = segment_of(operation, around(group, coll_index(group) - round - 2), lane->segment);
    group->sources[0] = data;
    group->sources[1] = ring_own(operation, range) + offset;
    return wefti_coll_reduce(operation, ring_result(operation, lane, round, range) + offset, 2, bytes / operation->element_bytes,
                             round == coll_size(group) - 2);
}

/* The same as it comes in, while what goes out in this round is elsewhere: another member's part, or the other partial result. */
static weft_status ring_part(coll_operation *operation, coll_lane *lane, const void *data, size_t offset, size_t bytes) {
    return ring_reduce(operation, lane, lane->round - 1, data, offset, bytes);
}

/* The same when all of it lies in the partial result's place, because the wire gives no pieces. */
static weft_status ring_reduce_whole(coll_operation *operation, coll_lane *lane, int32_t round) {
    const coll_group *group = coll_group_of(operation);
    coll_range range = segment_of(operation, around(group, coll_index(group) - round - 2), lane->segment);
    if (coll_in_parts(operation)) return WEFT_OK;
    uint8_t *result = ring_result(operation, lane, round, range);
    const uint8_t *data = result == ring_own(operation, range) ? ring_partial(operation, lane, round) : result;
    return ring_reduce(operation, lane, round, data, 0, range.count * operation->element_bytes);
}

/* Queues round `round` of the first time around. */
static void ring_queue_reduce(coll_operation *operation, coll_lane *lane, int32_t round) {
    coll_group *group = coll_group_of(operation);
    int32_t me = coll_index(group);
    coll_range out = segment_of(operation, around(group, me - round - 1), lane->segment);
    coll_range in = segment_of(operation, around(group, me - round - 2), lane->segment);
    const uint8_t *from = round == 0 ? ring_own(operation, out) : ring_partial(operation, lane, round - 1);
    uint8_t *result = ring_result(operation, lane, round, in);
    bool apart = result != ring_own(operation, in); /* what comes in may lie where the result will */
    if (in.count)
        wefti_coll_lane_recv_parts(operation, lane, left_of(operation), 1 + (uint32_t)lane->index,
                                   apart ? result : ring_partial(operation, lane, round), in.count * operation->element_bytes, apart,
                                   ring_part);
    ring_send(operation, lane, out, from);
}

/* Queues round `round` of the second. */
static void ring_queue_gather(coll_operation *operation, coll_lane *lane, int32_t round) {
    coll_group *group = coll_group_of(operation);
    int32_t me = coll_index(group);
    coll_range out = segment_of(operation, around(group, me - round), lane->segment);
    coll_range in = segment_of(operation, around(group, me - round - 1), lane->segment);
    uint8_t *receive = operation->call.receive;
    if (in.count)
        wefti_coll_lane_recv(operation, lane, left_of(operation), 1 + (uint32_t)lane->index, receive + in.first * operation->element_bytes,
                             in.count * operation->element_bytes);
    ring_send(operation, lane, out, receive + out.first * operation->element_bytes);
}

/* In an allgather: puts this rank's own part where the second time around sends it from. */
static void ring_place_own(coll_operation *operation, const coll_lane *lane) {
    coll_range own = segment_of(operation, coll_index(coll_group_of(operation)), lane->segment);
    size_t bytes = own.count * operation->element_bytes;
    uint8_t *to = (uint8_t *)operation->call.receive + own.first * operation->element_bytes;
    const void *from = (const uint8_t *)operation->call.send + lane->segment * coll_segment_bytes(operation);
    if (bytes && to != from) memcpy(to, from, bytes);
}

/* One segment after the other: rounds 0 … n-2 reduce, the next n-1 gather. Starting a round that has nothing to send or
 * receive here (parts differ in length) goes straight on to the next. */
static weft_status ring_step(coll_operation *operation, coll_lane *lane) {
    wefti_collective_kind kind = operation->call.kind;
    int32_t steps = coll_size(coll_group_of(operation)) - 1;
    bool gathers_only = kind == WEFTI_ALLGATHER || kind == WEFTI_ALLGATHER_V;
    int32_t reduces = gathers_only ? 0 : steps, gathers = kind == WEFTI_ALLREDUCE || gathers_only ? steps : 0;
    size_t segments = ring_segments(operation);
    for (;;) {
        if (lane->segment >= segments) return WEFT_OK;
        int32_t round = lane->round++; /* the one to begin; the one before it is done */
        if (round > 0 && round <= reduces) WEFTI_TRY(ring_reduce_whole(operation, lane, round - 1));
        if (round == 0 && gathers_only) ring_place_own(operation, lane);
        if (round == reduces + gathers) {
            lane->round = 0;
            lane->segment += COLL_LANES;
            continue;
        }
        if (round < reduces)
            ring_queue_reduce(operation, lane, round);
        else
            ring_queue_gather(operation, lane, round - reduces);
        if (lane->queued > 0) return WEFT_E_AGAIN;
    }
}

void wefti_coll_ring_begin(coll_operation *operation) {
    wefti_coll_lanes_begin(operation, ring_segments(operation), ring_step);
}

/* --- chain --- */

/* Of a segment: what the last member waits for before its first grows with it, so it is short, but between two. */
static size_t chain_elements(const coll_operation *operation) {
    size_t bytes = coll_size(coll_group_of(operation)) == 2 ? coll_segment_bytes(operation) : COLL_SEGMENT_BYTES;
    return bytes / operation->element_bytes;
}

static weft_status chain_step(coll_operation *operation, coll_lane *lane) {
    const coll_group *group = coll_group_of(operation);
    const wefti_collective_call *call = &operation->call;
    int32_t size = coll_size(group), me = coll_index(group);
    int32_t place = around(group, me - call->root);
    uint32_t step = 1 + (uint32_t)lane->index;
    for (;;) {
        size_t begin = lane->segment * chain_elements(operation);
        if (begin >= call->count) return WEFT_OK;
        size_t count = call->count - begin < chain_elements(operation) ? call->count - begin : chain_elements(operation);
        size_t bytes = count * operation->element_bytes, offset = begin * operation->element_bytes;
        uint8_t *to = (uint8_t *)call->receive + offset;
        int32_t round = lane->round++;
        if (round == 0 && place != 0) {
            wefti_coll_lane_recv(operation, lane, around(group, me - 1), step, to, bytes);
            return WEFT_E_AGAIN;
        }
        if (round <= 1 && place != size - 1) {
            const uint8_t *from = place == 0 ? (const uint8_t *)call->send + offset : to;
            lane->round = 2;
            wefti_coll_lane_send(operation, lane, around(group, me + 1), step, from, bytes);
            if (place == 0 && from != to) memcpy(to, from, bytes);
            return WEFT_E_AGAIN;
        }
        lane->round = 0;
        lane->segment += COLL_LANES;
    }
}

void wefti_coll_chain_begin(coll_operation *operation) {
    wefti_coll_lanes_begin(operation, coll_segments(operation->call.count, chain_elements(operation)), chain_step);
}

/* --- swap --- */

/* Elements of the lane's segment; 0 behind the last one. */
static size_t swap_count(const coll_operation *operation, const coll_lane *lane) {
    size_t most = segment_elements(operation), first = lane->segment * most;
    if (first >= operation->call.count) return 0;
    size_t rest = operation->call.count - first;
    return rest < most ? rest : most;
}

static weft_status swap_step(coll_operation *operation, coll_lane *lane) {
    coll_group *group = coll_group_of(operation);
    const wefti_collective_call *call = &operation->call;
    int32_t me = coll_index(group), other = 1 - me;
    if (lane->round++ > 0) {
        size_t offset = lane->segment * coll_segment_bytes(operation);
        group->sources[me] = (const uint8_t *)call->send + offset;
        group->sources[other] = lane->scratch;
        WEFTI_TRY(wefti_coll_reduce(operation, (uint8_t *)call->receive + offset, 2, swap_count(operation, lane), true));
        lane->segment += COLL_LANES;
    }
    size_t bytes = swap_count(operation, lane) * operation->element_bytes;
    if (bytes == 0) return WEFT_OK;
    uint32_t step = 1 + (uint32_t)lane->index;
    wefti_coll_lane_recv(operation, lane, other, step, lane->scratch, bytes);
    wefti_coll_lane_send(operation, lane, other, step, (const uint8_t *)call->send + lane->segment * coll_segment_bytes(operation),
                         bytes);
    return WEFT_E_AGAIN;
}

void wefti_coll_swap_begin(coll_operation *operation) {
    wefti_coll_lanes_begin(operation, segment_count(operation, operation->call.count), swap_step);
}

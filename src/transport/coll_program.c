/* Programs: message algorithms that are written as rounds on one segment.
 *
 * Each lane takes every COLL_LANES-th segment and runs all rounds of the program on it. What a round sends, receives and
 * computes follows from the segment and the round's number alone, so there is no schedule in memory, and both ends of a
 * transfer work out the same one. Headers go by themselves, along with the first transfers. */
#include <string.h>

#include "transport/coll.h"

void wefti_coll_lanes_begin(coll_operation *operation, size_t segments,
                            weft_status (*step)(coll_operation *operation, coll_lane *lane)) {
    for (int32_t i = 0; i < COLL_LANES && (i == 0 || (size_t)i < segments); i++)
        wefti_coll_lane_begin(operation, i, step);
    wefti_coll_greet(operation, 0);
}

static weft_status program_step(coll_operation *operation, coll_lane *lane) {
    const coll_program *program = operation->program;
    size_t segments = program->segments(operation);
    int32_t rounds = program->rounds(operation);
    for (;;) {
        if (lane->segment >= segments) return WEFT_OK;
        int32_t round = lane->round++; /* the one to begin; the one before it is done */
        if (round == 0 && program->prepare) program->prepare(operation, lane);
        if (round > 0 && program->work) WEFTI_TRY(program->work(operation, lane, round - 1));
        if (round == rounds) {
            lane->round = 0;
            lane->segment += COLL_LANES;
            continue;
        }
        program->queue(operation, lane, round);
        if (lane->queued > 0) return WEFT_E_AGAIN;
    }
}

void wefti_coll_program_begin(coll_operation *operation, const coll_program *program) {
    operation->program = program;
    wefti_coll_lanes_begin(operation, program->segments(operation), program_step);
}

/* --- what programs share --- */

coll_range wefti_coll_segment(const coll_lane *lane, size_t count, size_t most) {
    size_t first = lane->segment * most;
    if (first >= count) return (coll_range){count, 0};
    size_t rest = count - first;
    return (coll_range){first, rest < most ? rest : most};
}

void wefti_coll_program_send(coll_operation *operation, coll_lane *lane, int32_t to, const void *buffer, size_t count) {
    if (count) wefti_coll_lane_send(operation, lane, to, 1 + (uint32_t)lane->index, buffer, count * operation->element_bytes);
}

void wefti_coll_program_recv(coll_operation *operation, coll_lane *lane, int32_t from, void *buffer, size_t count) {
    if (count) wefti_coll_lane_recv(operation, lane, from, 1 + (uint32_t)lane->index, buffer, count * operation->element_bytes);
}

void wefti_coll_copy(const coll_operation *operation, void *to, const void *from, size_t count) {
    const wefti_reducer *reducer = coll_group_of(operation)->reducer;
    if (!count || to == from) return;
    memcpy(to, from, count * operation->element_bytes);
    if (reducer->copied) reducer->copied(reducer->context, count * operation->element_bytes);
}

weft_status wefti_coll_reduce_two(coll_operation *operation, void *dst, const void *left, const void *right, size_t count,
                                  bool last) {
    coll_group *group = coll_group_of(operation);
    group->sources[0] = left;
    group->sources[1] = right;
    return wefti_coll_reduce(operation, dst, 2, count, last);
}

int32_t wefti_coll_power_below(int32_t size) {
    int32_t power = 1;
    while (power <= size / 2) power *= 2;
    return power;
}

int32_t wefti_coll_log2_up(int32_t size) {
    int32_t steps = 0;
    while ((int64_t)1 << steps < size) steps++;
    return steps;
}

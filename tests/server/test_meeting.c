/* Reductions by way of the server: those of a group while all are there, and of who is left afterwards. */
#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>

#include "parallel/server/meeting.h"
#include "serving.h"

#include "core/iface/world.h"

static const weft_server_options two = {.servers = 2, .functions = &wefti_meeting_rule, .function_count = 1},
                                 kept = {.replicas = 1, .functions = &wefti_meeting_rule, .function_count = 1};

static weft_status reduce(wefti_group *group, weft_dtype dtype, wefti_reduce_op op, void *values, size_t count) {
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = dtype, .op = op, .send = values, .receive = values, .count = count};
    return wefti_collective_run(group, &call);
}

/* Rank r gives r + 1 and 10 r; ranks of `there` (bits) are, the last of four being rank 3. */
static weft_status reduce_all(wefti_group *group, int32_t rank, uint32_t there) {
    double sum = 0, least = INFINITY, most = -INFINITY, members = 0;
    for (int32_t r = 0; r < 4; r++) {
        if (!(there >> r & 1)) continue;
        members++;
        sum += r + 1;
        least = fmin(least, r + 1);
        most = fmax(most, r + 1);
    }
    double  reals[2] = {rank + 1, 10.0 * rank}, ends[1] = {rank + 1}, bad[1] = {rank == 0 ? NAN : 1};
    float   mean[3] = {(float)rank + 1, 1, 0}, floor[1] = {(float)rank + 1};
    int64_t whole[1] = {rank + 1}, sooner[1] = {-rank};
    int32_t count[1] = {12};
    WEFTI_TRY(reduce(group, WEFT_F64, WEFTI_REDUCE_SUM, reals, 2));
    EXPECT(fabs(reals[0] - sum * 4 / members) < 1e-12 && fabs(reals[1] - 10 * (sum - members) * 4 / members) < 1e-12, "sums %g, %g", reals[0], reals[1]);
    EXPECT(wefti_meeting_members(group) == (int32_t)members, "%d members", (int)wefti_meeting_members(group));
    WEFTI_TRY(reduce(group, WEFT_F32, WEFTI_REDUCE_AVG, mean, 3));
    EXPECT(fabs(mean[0] - sum / members) < 1e-6 && mean[1] == 1 && mean[2] == 0, "means %g, %g, %g", (double)mean[0], (double)mean[1], (double)mean[2]);
    WEFTI_TRY(reduce(group, WEFT_F64, WEFTI_REDUCE_MAX, ends, 1));
    EXPECT(ends[0] == most, "greatest %g", ends[0]);
    WEFTI_TRY(reduce(group, WEFT_F32, WEFTI_REDUCE_MIN, floor, 1));
    EXPECT(floor[0] == (float)least, "least %g", (double)floor[0]);
    WEFTI_TRY(reduce(group, WEFT_I64, WEFTI_REDUCE_SUM, whole, 1));
    EXPECT(whole[0] == llround(sum * 4 / members), "whole %lld", (long long)whole[0]);
    WEFTI_TRY(reduce(group, WEFT_I32, WEFTI_REDUCE_SUM, count, 1));
    EXPECT(count[0] == 48, "count %d", (int)count[0]);
    WEFTI_TRY(reduce(group, WEFT_I64, WEFTI_REDUCE_MIN, sooner, 1));
    EXPECT(sooner[0] == -(int64_t)(most - 1), "sooner %lld", (long long)sooner[0]);
    WEFTI_TRY(reduce(group, WEFT_F64, WEFTI_REDUCE_MAX, bad, 1));
    EXPECT(there & 1 ? isnan(bad[0]) : bad[0] == 1, "NaN is %g", bad[0]);
    return WEFT_OK;
}

/* Several at once, of one length and of two: matched by their order. */
static weft_status reduce_at_once(wefti_group *group, int32_t rank) {
    wefti_collective *flying[8];
    double            values[8][3];
    for (int i = 0; i < 8; i++) {
        for (int k = 0; k < 3; k++) values[i][k] = rank + i;
        wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_F64, .op = WEFTI_REDUCE_SUM, .send = values[i], .receive = values[i],
                                      .count = i % 3 == 0 ? 3 : 1};
        WEFTI_TRY(wefti_collective_start(group, &call, &flying[i]));
    }
    for (int i = 7; i >= 0; i--) WEFTI_TRY(wefti_collective_wait(flying[i], 0));
    for (int i = 0; i < 8; i++) EXPECT(values[i][0] == 6 + 4 * i, "reduction %d: %g", i, values[i][0]);
    return WEFT_OK;
}

static weft_status meet(serving *self, int32_t victim) {
    wefti_group *group = NULL;
    uint8_t      word[4] = {(uint8_t)self->rank, 1, 2, 3};
    WEFTI_TRY(wefti_meeting_open(self->server, self->world->group, &group));
    WEFTI_TRY(reduce_all(group, self->rank, 0xf));
    WEFTI_TRY(reduce_at_once(group, self->rank));
    wefti_collective_call call = {.kind = WEFTI_BROADCAST, .dtype = WEFT_U8, .root = 2, .send = word, .receive = word, .count = 4};
    WEFTI_TRY(wefti_collective_run(group, &call));
    EXPECT(word[0] == 2, "%d was sent", (int)word[0]);
    WEFTI_TRY(reduce(group, WEFT_F64, WEFTI_REDUCE_SUM, (double[1]){1}, 1)); /* all have it */
    if (self->rank == victim) raise(SIGKILL);
    uint64_t begin_ns = ranks_now();
    for (int i = 0; i < 3; i++) {
        double waits = 1;
        WEFTI_TRY(reduce(group, WEFT_F64, WEFTI_REDUCE_SUM, &waits, 1)); /* the first may still see it: who is left agrees on that */
        EXPECT(waits == 4, "%g", waits);
    }
    EXPECT(ranks_now() - begin_ns < WEFTI_SECOND_NS, "they waited for %g s", (double)(ranks_now() - begin_ns) / 1e9);
    if (victim >= 0) WEFTI_TRY(reduce_all(group, self->rank, 0xfu & ~(1u << victim)));
    weft_server_release(self->server); /* it has the tables' handles */
    self->server = NULL;
    wefti_meeting_close(group);
    return WEFT_OK;
}
static weft_status all_stay(serving *self) { return meet(self, -1); }
static weft_status second_dies(serving *self) { return meet(self, 1); }
static weft_status first_dies(serving *self) { return meet(self, 0); }

Test(meeting, of_all) { serve_case("shm", 4, &two, all_stay); }
Test(meeting, of_all_tcp) { serve_case("tcp", 4, &kept, all_stay); }
Test(meeting, of_who_is_left) { ranks_free(serve_case_with("shm", 4, &two, second_dies, 1u << 1)); }
Test(meeting, of_who_is_left_where_it_served) { ranks_free(serve_case_with("tcp", 4, &kept, first_dies, 1u << 0)); }

/* Learning-rate schedules: pure functions of the step. */
#include <math.h>

#include "core/base/base.h"
#include "weft/solver.h"

static double cosine(double from, double to, double share) {
    return to + (from - to) * 0.5 * (1 + cos(3.14159265358979323846 * share));
}

static double share_of(int64_t t, double steps) {
    double share = (double)t / steps;
    return share > 1 ? 1 : share;
}

static double one_cycle(const weft_schedule *s, int64_t t) {
    double start = s->start != 0 ? s->start : 0.04, rise = (s->rise != 0 ? s->rise : 0.3) * (double)s->steps;
    if ((double)t < rise) return cosine(start, 1, (double)t / rise);
    double fall = (double)s->steps - rise;
    return cosine(1, s->floor, fall <= 0 ? 1 : fmin(1, ((double)t - rise) / fall));
}

static weft_status check(const weft_schedule *s) {
    bool has_end = s->kind == WEFT_COSINE || s->kind == WEFT_LINEAR || s->kind == WEFT_ONE_CYCLE;
    if ((unsigned)s->kind > WEFT_ONE_CYCLE)
        return wefti_fail(WEFT_E_INVALID, "schedule: kind %d is none of weft_schedule_kind", (int)s->kind);
    if (s->warmup < 0) return wefti_fail(WEFT_E_INVALID, "schedule: warmup is %lld; it must not be negative", (long long)s->warmup);
    if (has_end && s->steps <= 0)
        return wefti_fail(WEFT_E_INVALID, "schedule: this kind needs .steps, its length, to be positive; it is %lld",
                          (long long)s->steps);
    if (s->kind == WEFT_STEP_DECAY && s->every <= 0)
        return wefti_fail(WEFT_E_INVALID, "schedule: WEFT_STEP_DECAY needs .every to be positive; it is %lld", (long long)s->every);
    if (!(s->rise >= 0 && s->rise < 1))
        return wefti_fail(WEFT_E_INVALID, "schedule: rise is %g; it is a share, from 0 to below 1", s->rise);
    return WEFT_OK;
}

weft_status weft_schedule_at(const weft_schedule *schedule, int64_t t, double *multiple_out) {
    WEFTI_TRY(check(schedule));
    if (t < schedule->warmup) {
        *multiple_out = (double)(t + 1) / (double)schedule->warmup;
        return WEFT_OK;
    }
    t -= schedule->warmup;
    switch (schedule->kind) {
    case WEFT_CONSTANT: *multiple_out = 1; break;
    case WEFT_STEP_DECAY:
        *multiple_out = pow(schedule->gamma != 0 ? schedule->gamma : 0.1, (double)(t / schedule->every));
        break;
    case WEFT_COSINE: *multiple_out = cosine(1, schedule->floor, share_of(t, (double)schedule->steps)); break;
    case WEFT_LINEAR: *multiple_out = 1 + (schedule->floor - 1) * share_of(t, (double)schedule->steps); break;
    case WEFT_ONE_CYCLE: *multiple_out = one_cycle(schedule, t); break;
    }
    return WEFT_OK;
}

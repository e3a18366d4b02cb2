/* What a table's dtype, rule and start may be together. Fields that a rule does not use are not looked at. */
#include <float.h>
#include <math.h>

#include "core/rules/rules.h"
#include "core/tensor/half.h"
#include "parallel/server/store.h"

static weft_status not_negative(const char *name, double value) {
    if (value >= 0 && isfinite(value)) return WEFT_OK;
    return wefti_fail(WEFT_E_INVALID, "%s is %g; it must be finite and at least 0", name, value);
}

static weft_status check_solver(const weft_table_rule *rule) {
    WEFTI_TRY(wefti_solver_check(&rule->solver));
    if (!wefti_rule_for(&rule->solver))
        return wefti_fail(WEFT_E_INVALID, "rule.solver is L-BFGS, which needs all rows at once; take SGD, Adagrad, RMSprop or Adam");
    if (rule->solver.clip_norm > 0)
        return wefti_fail(WEFT_E_INVALID, "rule.solver.clip_norm is %g: no server sees the whole gradient; clip it before the push, or take "
                          "clip_value", rule->solver.clip_norm);
    if (rule->solver.schedule.kind != WEFT_CONSTANT || rule->solver.schedule.warmup != 0)
        return wefti_fail(WEFT_E_INVALID, "rule.solver.schedule: a table's rate follows no schedule, as rows have no common step; scale what is "
                          "pushed");
    WEFTI_TRY(not_negative("rule.regulariser.l2", rule->regulariser.l2));
    WEFTI_TRY(not_negative("rule.regulariser.l1", rule->regulariser.l1));
    return not_negative("rule.regulariser.group", rule->regulariser.group);
}

static weft_status check_ftrl(const weft_table_options *o) {
    WEFTI_TRY(not_negative("rule.alpha", o->rule.alpha));
    WEFTI_TRY(not_negative("rule.beta", o->rule.beta));
    WEFTI_TRY(not_negative("rule.l1", o->rule.l1));
    WEFTI_TRY(not_negative("rule.l2", o->rule.l2));
    if (o->start == WEFT_START_ZERO) return WEFT_OK;
    return wefti_fail(WEFT_E_INVALID, "start: rows of the FTRL rule begin with zero, as they follow from its sums alone; leave it WEFT_START_ZERO");
}

static weft_status check_rule(const weft_table_options *o) {
    const weft_table_rule *rule = &o->rule;
    bool                   gradient = rule->kind == WEFT_TABLE_SOLVER || rule->kind == WEFT_TABLE_FTRL;
    if ((unsigned)rule->kind > WEFT_TABLE_USER)
        return wefti_fail(WEFT_E_INVALID, "rule.kind %d is none of weft_table_rule_kind", (int)rule->kind);
    if (gradient && !weft_dtype_is_float(o->dtype))
        return wefti_fail(WEFT_E_DTYPE, "the %s rule takes gradients, which %s does not hold; take F32, F64, BF16 or F16, or another rule",
                          rule->kind == WEFT_TABLE_FTRL ? "FTRL" : "solver", weft_dtype_name(o->dtype));
    if (rule->mean && o->staleness != 0)
        return wefti_fail(WEFT_E_INVALID, "rule.mean is of the sum of a clock, which there is with staleness 0 only; it is %d", (int)o->staleness);
    switch (rule->kind) {
    case WEFT_TABLE_ADD: return WEFT_OK;
    case WEFT_TABLE_AVERAGE:
        if (o->staleness != 0)
            return wefti_fail(WEFT_E_INVALID, "the average rule is of a clock's pushes, and so needs staleness 0; it is %d", (int)o->staleness);
        if (rule->mean) return wefti_fail(WEFT_E_INVALID, "rule.mean: the average rule divides already, by those that pushed the row; leave it out");
        return WEFT_OK;
    case WEFT_TABLE_SOLVER: return check_solver(rule);
    case WEFT_TABLE_FTRL: return check_ftrl(o);
    case WEFT_TABLE_USER:
        if (rule->function && rule->function[0]) return WEFT_OK;
        return wefti_fail(WEFT_E_INVALID, "rule.function: a rule of one's own needs the name of one of the server's functions");
    }
    return WEFT_OK;
}

/* Whether the dtype holds the number: floats to rounding, but not as infinity; integers as it is. */
static bool holds(weft_dtype dtype, double value) {
    switch (dtype) {
    case WEFT_F64: return isfinite(value);
    case WEFT_BF16: return isfinite(wefti_bf16_to_f32(wefti_f32_to_bf16((float)value)));
    case WEFT_F16: return isfinite(wefti_f16_to_f32(wefti_f32_to_f16((float)value)));
    case WEFT_I32: return value >= -0x1p31 && value < 0x1p31 && trunc(value) == value;
    case WEFT_I64: return value >= -0x1p63 && value < 0x1p63 && trunc(value) == value;
    default: return isfinite((float)value);
    }
}

static weft_status check_held(const weft_table_options *o, const char *name, double value) {
    if (holds(o->dtype, value)) return WEFT_OK;
    return wefti_fail(WEFT_E_INVALID, "%s is %g, which %s does not hold", name, value, weft_dtype_name(o->dtype));
}

static weft_status check_start(const weft_table_options *o) {
    if ((unsigned)o->start > WEFT_START_NORMAL) return wefti_fail(WEFT_E_INVALID, "start %d is none of weft_table_start", (int)o->start);
    if (o->start == WEFT_START_ZERO) return WEFT_OK;
    bool random = o->start != WEFT_START_CONSTANT;
    if (random && !weft_dtype_is_float(o->dtype))
        return wefti_fail(WEFT_E_DTYPE, "start: random first values are for floats, not for %s; take WEFT_START_ZERO or WEFT_START_CONSTANT",
                          weft_dtype_name(o->dtype));
    WEFTI_TRY(check_held(o, "low", o->low));
    if (!random) return WEFT_OK;
    WEFTI_TRY(check_held(o, "high", o->high));
    if (o->start == WEFT_START_NORMAL) return not_negative("high (the deviation)", o->high);
    if (o->low > o->high) return wefti_fail(WEFT_E_INVALID, "low is %g, above high, which is %g", o->low, o->high);
    if (!isfinite(o->high - o->low)) return wefti_fail(WEFT_E_INVALID, "low %g and high %g are too far apart", o->low, o->high);
    return WEFT_OK;
}

/* What has states, or rows that are not zero where nothing was pushed, is dense by nature. */
static weft_status check_hybrid(const weft_table_options *o) {
    static const char *const rules[] = {[WEFT_TABLE_ADD] = "add", [WEFT_TABLE_AVERAGE] = "average", [WEFT_TABLE_SOLVER] = "solver",
                                        [WEFT_TABLE_FTRL] = "FTRL", [WEFT_TABLE_USER] = "user"};
    if (o->rule.kind != WEFT_TABLE_ADD)
        return wefti_fail(WEFT_E_UNSUPPORTED, "hybrid: rows that are hashes only add up what is pushed, and the rule is '%s'; take WEFT_TABLE_ADD, or "
                          "leave hybrid out", rules[o->rule.kind]);
    if (o->dtype == WEFT_F16 || o->dtype == WEFT_BF16)
        return wefti_fail(WEFT_E_DTYPE, "hybrid: rows that are hashes are of I32, I64, F32 or F64, not of %s; servers keep that as F32 anyway",
                          weft_dtype_name(o->dtype));
    if (o->start != WEFT_START_ZERO) return wefti_fail(WEFT_E_INVALID, "hybrid: rows that are hashes begin with zero; leave start WEFT_START_ZERO");
    if (o->width < UINT32_MAX) return WEFT_OK;
    return wefti_fail(WEFT_E_SHAPE, "hybrid: rows that are hashes have less than 2^32-1 elements, not %lld", (long long)o->width);
}

static weft_status check(const weft_table_options *o) {
    switch (o->dtype) {
    case WEFT_F32: case WEFT_F64: case WEFT_BF16: case WEFT_F16: case WEFT_I32: case WEFT_I64: break;
    default:
        return wefti_fail(WEFT_E_DTYPE, "dtype %d (%s) is none that tables have: F32, F64, BF16, F16, I32, I64", (int)o->dtype,
                          weft_dtype_name(o->dtype));
    }
    WEFTI_TRY(check_rule(o));
    WEFTI_TRY(check_start(o));
    return o->hybrid ? check_hybrid(o) : WEFT_OK;
}

weft_status wefti_store_check(const weft_table_options *options) {
    weft_status status = check(options);
    return status == WEFT_OK ? status : wefti_while(status, "table '%s'", options->name ? options->name : "");
}

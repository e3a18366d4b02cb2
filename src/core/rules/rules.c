/* Solver rules as loops over elements, one template for f32 and f64 (rules_body.h), compiled for two instruction sets; the bits are the same on both.
 * A rule reads its scalars once, in the element type, so that cutting a row anywhere gives the same bits. */
#include <math.h>
#include <string.h>

#include "core/rules/rules.h"

#define WIDE_FILE "core/rules/rules_loops.h"
#define WIDE_OPTIMIZE "O3", "no-trapping-math", "no-math-errno"
#include "core/base/wide.h"

static const wefti_rule *rule_at(wefti_rule_id id) { return &(*WIDE_PICK(rules))[id]; }

const wefti_rule *wefti_rule_of(wefti_rule_id id) {
    return (unsigned)id < WEFTI_RULE_COUNT && rule_at(id)->name ? rule_at(id) : NULL;
}

const wefti_rule *wefti_rule_for(const weft_solver *solver) {
    switch (solver->kind) {
    case WEFT_SGD:
        return rule_at(solver->momentum == 0 ? WEFTI_RULE_SGD : solver->nesterov ? WEFTI_RULE_NESTEROV : WEFTI_RULE_MOMENTUM);
    case WEFT_ADAGRAD: return rule_at(WEFTI_RULE_ADAGRAD);
    case WEFT_RMSPROP: return rule_at(WEFTI_RULE_RMSPROP);
    case WEFT_ADAM: return rule_at(WEFTI_RULE_ADAM);
    case WEFT_LBFGS: break;
    }
    return NULL;
}

static double or_default(double value, double otherwise) { return value != 0 ? value : otherwise; }

weft_status wefti_hyper_fill(const weft_solver *solver, int64_t step, double hyper_out[WEFTI_HYPER_COUNT]) {
    double multiple = 1;
    WEFTI_TRY(weft_schedule_at(&solver->schedule, step - 1, &multiple));
    hyper_out[WEFTI_HYPER_RATE] = solver->rate * multiple;
    hyper_out[WEFTI_HYPER_SCALE] = 1;
    hyper_out[WEFTI_HYPER_CLIP] = solver->clip_value;
    hyper_out[WEFTI_HYPER_STEP] = (double)step;
    hyper_out[WEFTI_HYPER_SKIP] = 0;
    hyper_out[WEFTI_HYPER_A] = solver->kind == WEFT_SGD       ? solver->momentum
                               : solver->kind == WEFT_RMSPROP ? or_default(solver->rho, 0.99)
                                                              : or_default(solver->beta1, 0.9);
    hyper_out[WEFTI_HYPER_B] = or_default(solver->beta2, 0.999);
    hyper_out[WEFTI_HYPER_LOSS_SCALE] = 1;
    hyper_out[WEFTI_HYPER_EPS] = or_default(solver->epsilon, solver->kind == WEFT_ADAGRAD ? 1e-10 : 1e-8);
    return WEFT_OK;
}

void wefti_hyper_ftrl(double alpha, double beta, double hyper_out[WEFTI_HYPER_COUNT]) {
    memset(hyper_out, 0, WEFTI_HYPER_COUNT * sizeof *hyper_out);
    hyper_out[WEFTI_HYPER_RATE] = or_default(alpha, 0.1);
    hyper_out[WEFTI_HYPER_SCALE] = hyper_out[WEFTI_HYPER_STEP] = hyper_out[WEFTI_HYPER_LOSS_SCALE] = 1;
    hyper_out[WEFTI_HYPER_A] = or_default(beta, 1);
}

static weft_status in_range(const char *name, double value, double low, double high) {
    if (value >= low && value < high) return WEFT_OK;
    return wefti_fail(WEFT_E_INVALID, "solver: %s is %g; it must be at least %g and below %g", name, value, low, high);
}

/* What L-BFGS has no meaning for must not look as if it had. */
static weft_status check_lbfgs(const weft_solver *s) {
    const char *name = s->momentum != 0                                                  ? "momentum"
                       : s->nesterov                                                     ? "nesterov"
                       : s->weight_decay != 0                                            ? "weight_decay"
                       : s->clip_norm != 0                                               ? "clip_norm"
                       : s->clip_value != 0                                              ? "clip_value"
                       : s->schedule.kind != WEFT_CONSTANT || s->schedule.warmup != 0 ? "schedule"
                                                                                         : NULL;
    if (!name) return WEFT_OK;
    return wefti_fail(WEFT_E_INVALID, "solver: L-BFGS does not use %s: its line search chooses the step; leave it zero%s", name,
                      strcmp(name, "weight_decay") == 0 ? " and regularise with weft_l2" : "");
}

weft_status wefti_solver_check(const weft_solver *solver) {
    if ((unsigned)solver->kind > WEFT_LBFGS)
        return wefti_fail(WEFT_E_INVALID, "solver: kind %d is none of weft_solver_kind", (int)solver->kind);
    if (!(solver->rate > 0 && isfinite(solver->rate)) && !(solver->kind == WEFT_LBFGS && solver->rate == 0))
        return wefti_fail(WEFT_E_INVALID, "solver: the learning rate is %g; it must be positive and finite", solver->rate);
    WEFTI_TRY(in_range("momentum", solver->momentum, 0, 1));
    WEFTI_TRY(in_range("beta1", solver->beta1, 0, 1));
    WEFTI_TRY(in_range("beta2", solver->beta2, 0, 1));
    WEFTI_TRY(in_range("rho", solver->rho, 0, 1));
    WEFTI_TRY(in_range("epsilon", solver->epsilon, 0, HUGE_VAL));
    WEFTI_TRY(in_range("weight_decay", solver->weight_decay, 0, HUGE_VAL));
    WEFTI_TRY(in_range("clip_norm", solver->clip_norm, 0, HUGE_VAL));
    WEFTI_TRY(in_range("clip_value", solver->clip_value, 0, HUGE_VAL));
    double multiple;
    WEFTI_TRY(weft_schedule_at(&solver->schedule, 0, &multiple));
    return solver->kind == WEFT_LBFGS ? check_lbfgs(solver) : WEFT_OK;
}

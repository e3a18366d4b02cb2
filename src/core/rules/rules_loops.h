/* The rules' loops for both element types and the list of them, included by rules.c once per instruction set (core/base/wide.h). */

/* A parameter, its gradient and states are arrays of their own: GCC believes `restrict` of arguments only. */
#if defined(__GNUC__) && !defined(__clang__)
#define INDEPENDENT _Pragma("GCC ivdep")
#else
#define INDEPENDENT
#endif

#define REAL float
#define RULE(name) NAME(name##_f32)
#define SQRT sqrtf
#define FABS fabsf
#include "core/rules/rules_body.h"
#undef REAL
#undef RULE
#undef SQRT
#undef FABS

#define REAL double
#define RULE(name) NAME(name##_f64)
#define SQRT sqrt
#define FABS fabs
#include "core/rules/rules_body.h"
#undef REAL
#undef RULE
#undef SQRT
#undef FABS

#define BOTH(name) NAME(name##_f32), NAME(name##_f64)
static const wefti_rule NAME(rules)[WEFTI_RULE_COUNT] = {
    [WEFTI_RULE_SGD] = {WEFTI_RULE_SGD, "sgd", 0, {0, 0}, BOTH(sgd), BOTH(shrink_sgd)},
    [WEFTI_RULE_MOMENTUM] = {WEFTI_RULE_MOMENTUM, "momentum", 1, {0, 0}, BOTH(momentum), BOTH(shrink_momentum)},
    [WEFTI_RULE_NESTEROV] = {WEFTI_RULE_NESTEROV, "nesterov", 1, {0, 0}, BOTH(nesterov), BOTH(shrink_nesterov)},
    [WEFTI_RULE_ADAGRAD] = {WEFTI_RULE_ADAGRAD, "adagrad", 1, {0, 0}, BOTH(adagrad), BOTH(shrink_root)},
    [WEFTI_RULE_RMSPROP] = {WEFTI_RULE_RMSPROP, "rmsprop", 1, {0, 0}, BOTH(rmsprop), BOTH(shrink_root)},
    [WEFTI_RULE_ADAM] = {WEFTI_RULE_ADAM, "adam", 2, {0, 0}, BOTH(adam), BOTH(shrink_adam)},
    [WEFTI_RULE_FTRL] = {WEFTI_RULE_FTRL, "ftrl", 2, {0, 0}, BOTH(ftrl), BOTH(shrink_none)},
};
#undef BOTH
#undef INDEPENDENT

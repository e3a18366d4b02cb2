/* The rules' loops, included by rules.c once for each element type: REAL, RULE(name), SQRT and FABS are given.
 * Every element goes through the same order: scale, clip, regularise, step, soft threshold (core/iface/rule.h). */

typedef struct RULE(scalars) {
    REAL rate, scale, clip, l2, decay, shrink, a, b, eps;
    bool clips, shrinks;
} RULE(scalars);

static RULE(scalars) RULE(read)(const wefti_rule_args *args) {
    const double *h = args->hyper;
    return (RULE(scalars)){.rate = (REAL)h[WEFTI_HYPER_RATE],
                           .scale = (REAL)h[WEFTI_HYPER_SCALE],
                           .clip = (REAL)h[WEFTI_HYPER_CLIP],
                           .l2 = (REAL)args->l2,
                           .decay = (REAL)(1 - h[WEFTI_HYPER_RATE] * args->decay),
                           .shrink = (REAL)(h[WEFTI_HYPER_RATE] * args->l1),
                           .a = (REAL)h[WEFTI_HYPER_A],
                           .b = (REAL)h[WEFTI_HYPER_B],
                           .eps = (REAL)h[WEFTI_HYPER_EPS],
                           .clips = h[WEFTI_HYPER_CLIP] > 0,
                           .shrinks = args->l1 != 0};
}

/* The gradient as the rule sees it. NaN stays NaN. */
static inline REAL RULE(gradient)(const RULE(scalars) * s, REAL gradient, REAL theta) {
    REAL g = s->scale * gradient;
    if (s->clips) g = g > s->clip ? s->clip : g < -s->clip ? -s->clip : g;
    return g + s->l2 * theta;
}

/* Soft threshold, the proximal step of the l1 norm. */
static inline REAL RULE(finish)(const RULE(scalars) * s, REAL theta) {
    if (!s->shrinks) return theta;
    REAL size = FABS(theta) - s->shrink;
    return size <= 0 ? 0 : theta > 0 ? size : -size;
}

#define PROLOGUE                                   \
    if (args->hyper[WEFTI_HYPER_SKIP] != 0) return; \
    const RULE(scalars) s = RULE(read)(args);      \
    REAL *restrict theta = args->parameter;        \
    const REAL *restrict gradient = args->gradient

static void RULE(sgd)(const wefti_rule_args *args) {
    PROLOGUE;
    for (int64_t i = 0; i < args->count; i++) {
        REAL g = RULE(gradient)(&s, gradient[i], theta[i]);
        theta[i] = RULE(finish)(&s, s.decay * theta[i] - s.rate * g);
    }
}

static void RULE(momentum)(const wefti_rule_args *args) {
    PROLOGUE;
    REAL *restrict v = args->states[0];
    for (int64_t i = 0; i < args->count; i++) {
        REAL g = RULE(gradient)(&s, gradient[i], theta[i]);
        v[i] = s.a * v[i] + g;
        theta[i] = RULE(finish)(&s, s.decay * theta[i] - s.rate * v[i]);
    }
}

static void RULE(nesterov)(const wefti_rule_args *args) {
    PROLOGUE;
    REAL *restrict v = args->states[0];
    for (int64_t i = 0; i < args->count; i++) {
        REAL g = RULE(gradient)(&s, gradient[i], theta[i]);
        v[i] = s.a * v[i] + g;
        theta[i] = RULE(finish)(&s, s.decay * theta[i] - s.rate * (g + s.a * v[i]));
    }
}

static void RULE(adagrad)(const wefti_rule_args *args) {
    PROLOGUE;
    REAL *restrict h = args->states[0];
    for (int64_t i = 0; i < args->count; i++) {
        REAL g = RULE(gradient)(&s, gradient[i], theta[i]);
        h[i] = h[i] + g * g;
        theta[i] = RULE(finish)(&s, s.decay * theta[i] - s.rate * g / (SQRT(h[i]) + s.eps));
    }
}

static void RULE(rmsprop)(const wefti_rule_args *args) {
    PROLOGUE;
    REAL *restrict h = args->states[0];
    for (int64_t i = 0; i < args->count; i++) {
        REAL g = RULE(gradient)(&s, gradient[i], theta[i]);
        h[i] = s.a * h[i] + (1 - s.a) * (g * g);
        theta[i] = RULE(finish)(&s, s.decay * theta[i] - s.rate * g / (SQRT(h[i]) + s.eps));
    }
}

static void RULE(adam)(const wefti_rule_args *args) {
    PROLOGUE;
    REAL *restrict m = args->states[0];
    REAL *restrict v = args->states[1];
    const double step = args->hyper[WEFTI_HYPER_STEP];
    const REAL   rate = (REAL)(args->hyper[WEFTI_HYPER_RATE] / (1 - pow(args->hyper[WEFTI_HYPER_A], step)));
    const REAL   unbias = (REAL)(1 / sqrt(1 - pow(args->hyper[WEFTI_HYPER_B], step)));
    for (int64_t i = 0; i < args->count; i++) {
        REAL g = RULE(gradient)(&s, gradient[i], theta[i]);
        m[i] = s.a * m[i] + (1 - s.a) * g;
        v[i] = s.b * v[i] + (1 - s.b) * (g * g);
        theta[i] = RULE(finish)(&s, s.decay * theta[i] - rate * m[i] / (SQRT(v[i]) * unbias + s.eps));
    }
}
#undef PROLOGUE

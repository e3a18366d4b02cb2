/* The rules' loops, included by rules_loops.h once for each element type: REAL, RULE(name), SQRT and FABS are given.
 * Every element goes through the same order: scale, clip, regularise, step, soft threshold; then rows (core/iface/rule.h). */

typedef struct RULE(scalars) {
    REAL rate, scale, clip, l2, decay, shrink, a, b, eps;
    bool clips, shrinks;
} RULE(scalars);

TARGET static RULE(scalars) RULE(read)(const wefti_rule_args *args, wefti_rule_id id) {
    const double *h = args->hyper;
    return (RULE(scalars)){.rate = (REAL)h[WEFTI_HYPER_RATE],
                           .scale = (REAL)h[WEFTI_HYPER_SCALE],
                           .clip = (REAL)h[WEFTI_HYPER_CLIP],
                           .l2 = (REAL)args->l2,
                           .decay = (REAL)(1 - h[WEFTI_HYPER_RATE] * args->decay),
                           .shrink = args->l1 != 0 ? (REAL)(h[WEFTI_HYPER_RATE] * wefti_rule_gain(id, h) * args->l1) : 0,
                           .a = (REAL)h[WEFTI_HYPER_A],
                           .b = (REAL)h[WEFTI_HYPER_B],
                           .eps = (REAL)h[WEFTI_HYPER_EPS],
                           .clips = h[WEFTI_HYPER_CLIP] > 0,
                           .shrinks = args->l1 != 0};
}

/* The gradient as the rule sees it. NaN stays NaN. */
TARGET static inline REAL RULE(gradient)(const RULE(scalars) * s, REAL gradient, REAL theta) {
    REAL g = s->scale * gradient;
    if (s->clips) g = g > s->clip ? s->clip : g < -s->clip ? -s->clip : g;
    return g + s->l2 * theta;
}

/* Soft threshold, the proximal step of the l1 norm. NaN stays NaN. */
TARGET static inline REAL RULE(finish)(const RULE(scalars) * s, REAL theta, REAL shrink) {
    if (!s->shrinks) return theta;
    REAL size = FABS(theta) - shrink;
    return size <= 0 ? 0 : theta > 0 ? size : -size;
}

#define PROLOGUE(id)                                    \
    if (args->hyper[WEFTI_HYPER_SKIP] != 0) return;     \
    const RULE(scalars) s = RULE(read)(args, id);       \
    const int64_t count = args->count;                  \
    REAL *restrict theta = args->parameter;             \
    const REAL *restrict gradient = args->gradient

TARGET static void RULE(sgd)(const wefti_rule_args *args) {
    PROLOGUE(WEFTI_RULE_SGD);
    INDEPENDENT for (int64_t i = 0; i < count; i++) {
        REAL g = RULE(gradient)(&s, gradient[i], theta[i]);
        theta[i] = RULE(finish)(&s, s.decay * theta[i] - s.rate * g, s.shrink);
    }
}

TARGET static void RULE(momentum)(const wefti_rule_args *args) {
    PROLOGUE(WEFTI_RULE_MOMENTUM);
    REAL *restrict v = args->states[0];
    INDEPENDENT for (int64_t i = 0; i < count; i++) {
        REAL g = RULE(gradient)(&s, gradient[i], theta[i]);
        v[i] = s.a * v[i] + g;
        theta[i] = RULE(finish)(&s, s.decay * theta[i] - s.rate * v[i], s.shrink);
    }
}

TARGET static void RULE(nesterov)(const wefti_rule_args *args) {
    PROLOGUE(WEFTI_RULE_NESTEROV);
    REAL *restrict v = args->states[0];
    INDEPENDENT for (int64_t i = 0; i < count; i++) {
        REAL g = RULE(gradient)(&s, gradient[i], theta[i]);
        v[i] = s.a * v[i] + g;
        theta[i] = RULE(finish)(&s, s.decay * theta[i] - s.rate * (g + s.a * v[i]), s.shrink);
    }
}

TARGET static void RULE(adagrad)(const wefti_rule_args *args) {
    PROLOGUE(WEFTI_RULE_ADAGRAD);
    REAL *restrict h = args->states[0];
    INDEPENDENT for (int64_t i = 0; i < count; i++) {
        REAL g = RULE(gradient)(&s, gradient[i], theta[i]);
        h[i] = h[i] + g * g;
        REAL root = SQRT(h[i]) + s.eps;
        theta[i] = RULE(finish)(&s, s.decay * theta[i] - s.rate * g / root, h[i] > 0 ? s.shrink / root : s.shrink);
    }
}

TARGET static void RULE(rmsprop)(const wefti_rule_args *args) {
    PROLOGUE(WEFTI_RULE_RMSPROP);
    REAL *restrict h = args->states[0];
    INDEPENDENT for (int64_t i = 0; i < count; i++) {
        REAL g = RULE(gradient)(&s, gradient[i], theta[i]);
        h[i] = s.a * h[i] + (1 - s.a) * (g * g);
        REAL root = SQRT(h[i]) + s.eps;
        theta[i] = RULE(finish)(&s, s.decay * theta[i] - s.rate * g / root, h[i] > 0 ? s.shrink / root : s.shrink);
    }
}

typedef struct RULE(moments) { REAL rate, unbias; } RULE(moments);
TARGET static inline __attribute__((always_inline)) void RULE(adam_loop)(const wefti_rule_args *args, RULE(scalars) s, RULE(moments) now) {
    const int64_t count = args->count;
    REAL *restrict theta = args->parameter;
    const REAL *restrict gradient = args->gradient;
    REAL *restrict m = args->states[0];
    REAL *restrict v = args->states[1];
    INDEPENDENT for (int64_t i = 0; i < count; i++) {
        REAL g = RULE(gradient)(&s, gradient[i], theta[i]);
        m[i] = s.a * m[i] + (1 - s.a) * g;
        v[i] = s.b * v[i] + (1 - s.b) * (g * g);
        REAL root = SQRT(v[i]) * now.unbias + s.eps;
        theta[i] = RULE(finish)(&s, s.decay * theta[i] - now.rate * m[i] / root, v[i] > 0 ? s.shrink / root : s.shrink);
    }
}

TARGET static void RULE(adam)(const wefti_rule_args *args) {
    if (args->hyper[WEFTI_HYPER_SKIP] != 0) return;
    RULE(scalars) s = RULE(read)(args, WEFTI_RULE_ADAM);
    const double step = args->hyper[WEFTI_HYPER_STEP];
    const double a_power = args->a_power != 0 ? args->a_power : pow(args->hyper[WEFTI_HYPER_A], step);
    const double b_power = args->b_power != 0 ? args->b_power : pow(args->hyper[WEFTI_HYPER_B], step);
    RULE(moments) now = {(REAL)(args->hyper[WEFTI_HYPER_RATE] / (1 - a_power)), (REAL)(1 / sqrt(1 - b_power))};
    if (s.clips || s.shrinks) {
        RULE(adam_loop)(args, s, now);
        return;
    }
    s.clips = s.shrinks = false; /* said to the compiler, which makes no vectors of a loop of this length with both choices inside */
    RULE(adam_loop)(args, s, now);
}
#undef PROLOGUE

/* FTRL-proximal (McMahan et al. 2013, algorithm 1), with theta kept beside its two sums and made anew of them: `rate` is its alpha, `a` its beta. The
 * roots' difference is taken as g^2 over their sum, which loses no digits. */
TARGET static void RULE(ftrl)(const wefti_rule_args *args) {
    if (args->hyper[WEFTI_HYPER_SKIP] != 0) return;
    RULE(scalars) s = RULE(read)(args, WEFTI_RULE_FTRL);
    const REAL l1 = (REAL)args->l1, l2 = s.l2, inverse = 1 / s.rate;
    const int64_t count = args->count;
    s.l2 = 0; /* it is in the closed form below, not in the gradient */
    REAL *restrict theta = args->parameter;
    const REAL *restrict gradient = args->gradient;
    REAL *restrict z = args->states[0];
    REAL *restrict n = args->states[1];
    INDEPENDENT for (int64_t i = 0; i < count; i++) {
        REAL g = RULE(gradient)(&s, gradient[i], theta[i]), square = g * g;
        REAL before = SQRT(n[i]), after = SQRT(n[i] + square), sum = before + after;
        REAL sigma = square / (sum > 0 ? sum : 1) * inverse;
        z[i] = z[i] + g - sigma * theta[i];
        n[i] = n[i] + square;
        REAL size = FABS(z[i]) - l1, step = size / ((s.a + after) * inverse + l2);
        theta[i] = size <= 0 ? 0 : z[i] > 0 ? -step : step;
    }
}

/* --- rows --- */

/* Steps of a row's elements: size/(sqrt(second)*unbias + eps), or size where there is no second moment. */
typedef struct RULE(steps) {
    const REAL *second;
    double      size, unbias, eps;
} RULE(steps);
TARGET static inline double RULE(step)(const RULE(steps) * c, int64_t i) {
    return c->second && c->second[i] > 0 ? c->size / (sqrt((double)c->second[i]) * c->unbias + c->eps) : c->size;
}

/* The root's Newton steps go to 1/sqrt(sum) = 1, which is nearly linear: a few are exact. NaN stays NaN. */
TARGET static void RULE(shrink_row)(int64_t count, REAL *theta, const RULE(steps) * c) {
    double at_zero = 0, square = 0, longest = 0;
    for (int64_t i = 0; i < count; i++) {
        double step = RULE(step)(c, i), share = (double)theta[i] / step;
        at_zero += share * share;
        square += (double)theta[i] * (double)theta[i];
        if (step > longest) longest = step;
    }
    double norm = at_zero <= 1 ? 0 : fmax(sqrt(square) - longest, 0);
    for (int round = 0; round < 30 && at_zero > 1; round++) {
        double sum = 0, slope = 0;
        for (int64_t i = 0; i < count; i++) {
            double width = norm + RULE(step)(c, i), share = (double)theta[i] / width;
            sum += share * share;
            slope += share * share / width;
        }
        double next = norm + sum / slope * (sqrt(sum) - 1);
        bool   same = fabs(next - norm) <= 1e-15 * next;
        norm = next;
        if (same) break;
    }
    for (int64_t i = 0; i < count; i++) theta[i] = (REAL)(theta[i] * (norm / (norm + RULE(step)(c, i))));
}

TARGET static void RULE(shrink)(const wefti_rule_args *args, wefti_rule_id id, const REAL *second, double unbias) {
    double size = args->hyper[WEFTI_HYPER_RATE] * wefti_rule_gain(id, args->hyper) * args->group;
    if (args->hyper[WEFTI_HYPER_SKIP] != 0 || !(size > 0)) return;
    for (int64_t begin = 0; begin < args->count; begin += args->row) {
        RULE(steps) c = {second ? second + begin : NULL, size, unbias, args->hyper[WEFTI_HYPER_EPS]};
        RULE(shrink_row)(args->row, (REAL *)args->parameter + begin, &c);
    }
}
TARGET static void RULE(shrink_none)(const wefti_rule_args *args) { (void)args; }
TARGET static void RULE(shrink_sgd)(const wefti_rule_args *args) { RULE(shrink)(args, WEFTI_RULE_SGD, NULL, 1); }
TARGET static void RULE(shrink_momentum)(const wefti_rule_args *args) { RULE(shrink)(args, WEFTI_RULE_MOMENTUM, NULL, 1); }
TARGET static void RULE(shrink_nesterov)(const wefti_rule_args *args) { RULE(shrink)(args, WEFTI_RULE_NESTEROV, NULL, 1); }
TARGET static void RULE(shrink_root)(const wefti_rule_args *args) { RULE(shrink)(args, WEFTI_RULE_ADAGRAD, args->states[0], 1); }
TARGET static void RULE(shrink_adam)(const wefti_rule_args *args) {
    double unbias = 1 / sqrt(1 - pow(args->hyper[WEFTI_HYPER_B], args->hyper[WEFTI_HYPER_STEP]));
    RULE(shrink)(args, WEFTI_RULE_ADAM, args->states[1], unbias);
}

/* The body of update.c for one element type: T, SQRT, ABS and UPDATE(name) for the names. */

typedef struct UPDATE(scalars) {
    T    rate, scale, clip, l2, decay, shrink, a, b, eps, adam_rate, unbias;
    bool clips, shrinks;
} UPDATE(scalars);

static UPDATE(scalars) UPDATE(read)(const wefti_attrs *attrs, const double *h) {
    double gain = wefti_rule_gain(attrs->update.rule->id, h);
    double rate = h[WEFTI_HYPER_RATE], step = h[WEFTI_HYPER_STEP];
    return (UPDATE(scalars)){.rate      = (T)rate,
                             .scale     = (T)h[WEFTI_HYPER_SCALE],
                             .clip      = (T)h[WEFTI_HYPER_CLIP],
                             .l2        = (T)attrs->update.l2,
                             .decay     = (T)(1 - rate * attrs->update.decay),
                             .shrink    = (T)(rate * gain * attrs->update.l1),
                             .a         = (T)h[WEFTI_HYPER_A],
                             .b         = (T)h[WEFTI_HYPER_B],
                             .eps       = (T)h[WEFTI_HYPER_EPS],
                             .adam_rate = (T)(rate / (1 - pow(h[WEFTI_HYPER_A], step))),
                             .unbias    = (T)(1 / sqrt(1 - pow(h[WEFTI_HYPER_B], step))),
                             .clips     = h[WEFTI_HYPER_CLIP] > 0,
                             .shrinks   = attrs->update.l1 != 0};
}

/* One element: the rule, with its branches known when the loop is compiled. */
WEFTI_INLINE void UPDATE(element)(wefti_rule_id rule, bool clips, bool shrinks, const UPDATE(scalars) * s, T *theta, T gradient,
                                  T *m, T *v) {
    T g = s->scale * gradient;
    if (clips) {
        T below = g < -s->clip ? -s->clip : g;
        g       = g > s->clip ? s->clip : below;
    }
    g      = g + s->l2 * *theta;
    T kept = s->decay * *theta, next = kept, root = 1; /* root: what divides the proximal step */
    switch (rule) {
    case WEFTI_RULE_MOMENTUM:
        *m   = s->a * *m + g;
        next = kept - s->rate * *m;
        break;
    case WEFTI_RULE_NESTEROV:
        *m   = s->a * *m + g;
        next = kept - s->rate * (g + s->a * *m);
        break;
    case WEFTI_RULE_ADAGRAD:
        *m   = *m + g * g;
        root = SQRT(*m) + s->eps;
        next = kept - s->rate * g / root;
        root = *m > 0 ? root : 1;
        break;
    case WEFTI_RULE_RMSPROP:
        *m   = s->a * *m + (1 - s->a) * (g * g);
        root = SQRT(*m) + s->eps;
        next = kept - s->rate * g / root;
        root = *m > 0 ? root : 1;
        break;
    case WEFTI_RULE_ADAM:
        *m   = s->a * *m + (1 - s->a) * g;
        *v   = s->b * *v + (1 - s->b) * (g * g);
        root = SQRT(*v) * s->unbias + s->eps;
        next = kept - s->adam_rate * *m / root;
        root = *v > 0 ? root : 1;
        break;
    default: next = kept - s->rate * g; break;
    }
    if (shrinks) {
        T size = ABS(next) - s->shrink / root, side = next > 0 ? size : -size;
        next = size <= 0 ? 0 : side;
    }
    *theta = next;
}

#define LOOP(states, clips, shrinks)                                                                              \
    _Pragma("GCC ivdep") for (int64_t i = 0; i < count; i++) {                                                    \
        T t = theta[i], x = (states) > 0 ? m[i] : 0, y = (states) > 1 ? v[i] : 0;                                 \
        UPDATE(element)(rule, clips, shrinks, &s, &t, gradient[i], &x, &y);                                       \
        theta[i] = t;                                                                                             \
        if ((states) > 0) m[i] = x;                                                                               \
        if ((states) > 1) v[i] = y;                                                                               \
    }
WEFTI_INLINE void UPDATE(loop)(wefti_rule_id rule, int states, UPDATE(scalars) s, int64_t count, T *theta,
                               const T *gradient, T *m, T *v) {
    if (s.clips && s.shrinks) {
        LOOP(states, true, true)
    } else if (s.clips) {
        LOOP(states, true, false)
    } else if (s.shrinks) {
        LOOP(states, false, true)
    } else {
        LOOP(states, false, false)
    }
}
#undef LOOP

static void UPDATE(run)(const wefti_attrs *attrs, const double *hyper, int64_t count, void *parameter, const void *gradient,
                        void *const *states) {
    UPDATE(scalars) s = UPDATE(read)(attrs, hyper);
    T *m = states[0], *v = states[1];
    switch (attrs->update.rule->id) {
    case WEFTI_RULE_SGD: UPDATE(loop)(WEFTI_RULE_SGD, 0, s, count, parameter, gradient, m, v); return;
    case WEFTI_RULE_MOMENTUM: UPDATE(loop)(WEFTI_RULE_MOMENTUM, 1, s, count, parameter, gradient, m, v); return;
    case WEFTI_RULE_NESTEROV: UPDATE(loop)(WEFTI_RULE_NESTEROV, 1, s, count, parameter, gradient, m, v); return;
    case WEFTI_RULE_ADAGRAD: UPDATE(loop)(WEFTI_RULE_ADAGRAD, 1, s, count, parameter, gradient, m, v); return;
    case WEFTI_RULE_RMSPROP: UPDATE(loop)(WEFTI_RULE_RMSPROP, 1, s, count, parameter, gradient, m, v); return;
    default: UPDATE(loop)(WEFTI_RULE_ADAM, 2, s, count, parameter, gradient, m, v); return;
    }
}

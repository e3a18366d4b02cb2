/* Solver rules against formulas written down a second time, in double precision, one element at a time. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "core/rules/rules.h"

enum { N = 37 };

static double noise(int i, int salt) { return sin(12.9898 * i + 78.233 * salt) * 1.7; }

typedef struct setting {
    const char *name;
    weft_solver solver;
    double      l2, decay, l1;
} setting;

/* One element, one update, from the papers' formulas. */
static void expected(const setting *s, const double *h, double raw, double *theta, double *a, double *b) {
    double g = h[WEFTI_HYPER_SCALE] * raw, rate = h[WEFTI_HYPER_RATE], t = h[WEFTI_HYPER_STEP];
    double clip = h[WEFTI_HYPER_CLIP];
    if (clip > 0) g = fmax(-clip, fmin(clip, g));
    double before = *theta, length = rate, a1 = h[WEFTI_HYPER_A]; /* length: of the step for a gradient that stayed 1 */
    *theta -= rate * s->decay * before;
    g += s->l2 * before;
    switch (s->solver.kind) {
    case WEFT_SGD:
        if (s->solver.momentum == 0) *theta -= rate * g;
        else {
            *a = s->solver.momentum * *a + g;
            *theta -= rate * (s->solver.nesterov ? g + s->solver.momentum * *a : *a);
            double built = 0;
            for (int i = 0; i < (int)t; i++) built = a1 * built + 1;
            length = rate * (s->solver.nesterov ? 1 + a1 * built : built);
        }
        break;
    case WEFT_ADAGRAD:
        *a += g * g;
        length = rate / (sqrt(*a) + 1e-10);
        *theta -= length * g;
        break;
    case WEFT_RMSPROP:
        *a = 0.99 * *a + 0.01 * g * g;
        length = rate / (sqrt(*a) + 1e-8);
        *theta -= length * g;
        break;
    case WEFT_ADAM:
        *a = 0.9 * *a + 0.1 * g;
        *b = 0.999 * *b + 0.001 * g * g;
        length = rate / (sqrt(*b / (1 - pow(0.999, t))) + 1e-8);
        *theta -= length * *a / (1 - pow(0.9, t));
        break;
    case WEFT_LBFGS: break;
    }
    double size = fabs(*theta) - length * s->l1;
    if (s->l1 > 0) *theta = size <= 0 ? 0 : copysign(size, *theta);
}

static const setting settings[] = {
    {"sgd", {.rate = 0.1}, 0, 0, 0},
    {"sgd l2", {.rate = 0.1}, 0.3, 0, 0},
    {"sgd l1", {.rate = 0.1}, 0, 0, 0.8},
    {"momentum", {.rate = 0.1, .momentum = 0.9}, 0, 0, 0},
    {"momentum l1", {.rate = 0.1, .momentum = 0.9}, 0, 0, 0.3},
    {"adagrad l1", {.rate = 0.1, .kind = WEFT_ADAGRAD}, 0, 0, 0.5},
    {"rmsprop l1", {.rate = 0.01, .kind = WEFT_RMSPROP}, 0, 0, 0.5},
    {"momentum decoupled", {.rate = 0.1, .momentum = 0.9}, 0, 0.2, 0},
    {"nesterov", {.rate = 0.1, .momentum = 0.8, .nesterov = true}, 0.1, 0, 0.1},
    {"adagrad", {.rate = 0.1, .kind = WEFT_ADAGRAD}, 0, 0, 0},
    {"rmsprop", {.rate = 0.01, .kind = WEFT_RMSPROP}, 0.1, 0, 0},
    {"adam", {.rate = 0.01, .kind = WEFT_ADAM}, 0, 0, 0},
    {"adamw", {.rate = 0.01, .kind = WEFT_ADAM}, 0, 0.1, 0},
    {"adam clipped", {.rate = 0.01, .kind = WEFT_ADAM, .clip_value = 0.5}, 0, 0, 0.02},
    {"adamw l2 clipped", {.rate = 0.01, .kind = WEFT_ADAM, .clip_value = 0.2}, 0.4, 0.1, 0.02},
};

static void run(const setting *s, bool wide, int cut, double *theta_out) {
    double           theta[N], states[2][N], gradient[N], hyper[WEFTI_HYPER_COUNT];
    float            theta32[N], states32[2][N], gradient32[N];
    const wefti_rule *rule = wefti_rule_for(&s->solver);
    memset(states, 0, sizeof states);
    memset(states32, 0, sizeof states32);
    for (int i = 0; i < N; i++) theta[i] = theta32[i] = (float)noise(i, 0);
    for (int step = 1; step <= 5; step++) {
        cr_assert_eq(wefti_hyper_fill(&s->solver, step, hyper), WEFT_OK);
        hyper[WEFTI_HYPER_SCALE] = 0.5;
        for (int i = 0; i < N; i++) gradient[i] = gradient32[i] = (float)noise(i, step);
        for (int part = 0; part < 2; part++) {
            int   at = part ? cut : 0, count = part ? N - cut : cut;
            void *wide_states[2] = {states[0] + at, states[1] + at}, *slim_states[2] = {states32[0] + at, states32[1] + at};
            wefti_rule_args args = {.count = count, .parameter = wide ? (void *)(theta + at) : theta32 + at,
                                    .gradient = wide ? (void *)(gradient + at) : gradient32 + at,
                                    .states = wide ? wide_states : slim_states, .hyper = hyper, .l2 = s->l2,
                                    .decay = s->decay, .l1 = s->l1};
            (wide ? rule->apply_f64 : rule->apply_f32)(&args);
        }
    }
    for (int i = 0; i < N; i++) theta_out[i] = wide ? theta[i] : theta32[i];
}

Test(rules, follow_their_formulas) {
    for (size_t k = 0; k < WEFTI_COUNT(settings); k++) {
        const setting *s = &settings[k];
        double         wide[N], slim[N];
        run(s, true, N, wide);
        run(s, false, N, slim);
        for (int i = 0; i < N; i++) {
            double theta = (float)noise(i, 0), a = 0, b = 0, hyper[WEFTI_HYPER_COUNT];
            for (int step = 1; step <= 5; step++) {
                cr_assert_eq(wefti_hyper_fill(&s->solver, step, hyper), WEFT_OK);
                hyper[WEFTI_HYPER_SCALE] = 0.5;
                expected(s, hyper, (float)noise(i, step), &theta, &a, &b);
            }
            cr_assert_float_eq(wide[i], theta, 1e-12 * (1 + fabs(theta)), "%s: element %d is %.17g, not %.17g", s->name, i, wide[i], theta);
            cr_assert_float_eq(slim[i], theta, 2e-6 * (1 + fabs(theta)), "%s in f32: element %d is %.9g, not %.9g", s->name, i, slim[i], theta);
        }
    }
}

Test(rules, do_not_depend_on_how_a_row_is_cut) {
    for (size_t k = 0; k < WEFTI_COUNT(settings); k++)
        for (int wide = 0; wide < 2; wide++) {
            double whole[N], cut[N];
            run(&settings[k], wide, N, whole);
            for (int at = 1; at < N; at += 5) {
                run(&settings[k], wide, at, cut);
                cr_assert_arr_eq(whole, cut, sizeof whole, "%s cut at %d", settings[k].name, at);
            }
        }
}

/* McMahan et al. 2013, algorithm 1: the weights are lazily made of z and n there, here after each update. In one run and in pieces. */
Test(rules, ftrl_follows_its_algorithm_however_it_is_cut) {
    const struct { double alpha, beta, l1, l2, clip; } cases[] = {{0, 0, 0, 0, 0}, {0.5, 2, 0.3, 0.3, 0}, {0.05, 0, 0.1, 0, 0.4}};
    for (size_t k = 0; k < WEFTI_COUNT(cases); k++) {
        double hyper[WEFTI_HYPER_COUNT], w[N] = {0}, z[N] = {0}, n[N] = {0}, g[N], theta[N] = {0}, sums[2][N] = {{0}};
        float  g32[N], theta32[N] = {0}, sums32[2][N] = {{0}};
        double alpha = cases[k].alpha > 0 ? cases[k].alpha : 0.1, beta = cases[k].beta > 0 ? cases[k].beta : 1;
        int    zeros = 0;
        wefti_hyper_ftrl(cases[k].alpha, cases[k].beta, hyper);
        hyper[WEFTI_HYPER_SCALE] = 0.5;
        hyper[WEFTI_HYPER_CLIP] = cases[k].clip;
        const wefti_rule *rule = wefti_rule_of(WEFTI_RULE_FTRL);
        cr_assert(rule && rule->n_states == 2);
        for (int step = 1; step <= 6; step++) {
            for (int i = 0; i < N; i++) {
                g32[i] = (float)noise(i, step);
                g[i] = (double)g32[i];
                double raw = 0.5 * g[i], one = cases[k].clip > 0 ? fmax(-cases[k].clip, fmin(cases[k].clip, raw)) : raw;
                z[i] += one - (sqrt(n[i] + one * one) - sqrt(n[i])) / alpha * w[i];
                n[i] += one * one;
                w[i] = fabs(z[i]) <= cases[k].l1 ? 0 : -(z[i] - copysign(cases[k].l1, z[i])) / ((beta + sqrt(n[i])) / alpha + cases[k].l2);
            }
            for (int part = 0, at = 0, count = 11; part < 2; part++, at = 11, count = N - 11) {
                void           *wide[2] = {sums[0] + at, sums[1] + at}, *slim[2] = {sums32[0] + at, sums32[1] + at};
                wefti_rule_args args = {.count = count, .parameter = theta + at, .gradient = g + at, .states = wide, .hyper = hyper,
                                        .l1 = cases[k].l1, .l2 = cases[k].l2};
                rule->apply_f64(&args);
                args.parameter = theta32 + at;
                args.gradient = g32 + at;
                args.states = slim;
                rule->apply_f32(&args);
            }
        }
        for (int i = 0; i < N; i++) {
            cr_assert_float_eq(theta[i], w[i], 1e-12 * (1 + fabs(w[i])), "case %zu: element %d is %.17g, not %.17g", k, i, theta[i], w[i]);
            cr_assert_float_eq((double)theta32[i], w[i], 4e-6 * (1 + fabs(w[i])), "case %zu in f32: element %d", k, i);
            zeros += theta[i] == 0;
        }
        cr_assert(cases[k].l1 > 0 ? zeros > 0 && zeros < N : zeros == 0, "case %zu: %d zeros", k, zeros);
    }
    double theta = 3, gradient = 0, sums[2] = {0, 0}, hyper[WEFTI_HYPER_COUNT]; /* no gradient ever: no division by zero */
    wefti_hyper_ftrl(0, 0, hyper);
    wefti_rule_of(WEFTI_RULE_FTRL)->apply_f64(&(wefti_rule_args){.count = 1, .parameter = &theta, .gradient = &gradient,
                                                                 .states = (void *[]){&sums[0], &sums[1]}, .hyper = hyper});
    cr_assert_eq(theta, 0);
    cr_assert_null(wefti_rule_of(WEFTI_RULE_USER));
}

Test(rules, l1_makes_exact_zeros_and_skip_changes_nothing) {
    double           theta[3] = {0.05, -0.05, 2}, gradient[3] = {0, 0, 0}, hyper[WEFTI_HYPER_COUNT];
    weft_solver      solver = weft_sgd(0.1);
    wefti_rule_args  args = {.count = 3, .parameter = theta, .gradient = gradient, .hyper = hyper, .l1 = 1};
    const wefti_rule *rule = wefti_rule_for(&solver);
    cr_assert_eq(wefti_hyper_fill(&solver, 1, hyper), WEFT_OK);
    hyper[WEFTI_HYPER_SKIP] = 1;
    rule->apply_f64(&args);
    cr_assert_eq(theta[0], 0.05);
    hyper[WEFTI_HYPER_SKIP] = 0;
    rule->apply_f64(&args);
    cr_assert_eq(theta[0], 0);
    cr_assert_eq(theta[1], 0);
    cr_assert_float_eq(theta[2], 1.9, 1e-15);
}

static double at(weft_schedule schedule, int64_t t) {
    double multiple = -1;
    cr_assert_eq(weft_schedule_at(&schedule, t, &multiple), WEFT_OK, "%s", weft_error_message());
    return multiple;
}

Test(schedule, takes_the_values_of_its_definition) {
    cr_assert_eq(at((weft_schedule){0}, 1000), 1);
    weft_schedule step = {.kind = WEFT_STEP_DECAY, .every = 10};
    cr_assert_float_eq(at(step, 9), 1, 1e-15);
    cr_assert_float_eq(at(step, 25), 0.01, 1e-15);
    weft_schedule cosine = {.kind = WEFT_COSINE, .warmup = 4, .steps = 100, .floor = 0.1};
    cr_assert_float_eq(at(cosine, 0), 0.25, 1e-15);
    cr_assert_float_eq(at(cosine, 4), 1, 1e-15);
    cr_assert_float_eq(at(cosine, 54), 0.55, 1e-12);
    cr_assert_float_eq(at(cosine, 104), 0.1, 1e-12);
    cr_assert_float_eq(at(cosine, 5000), 0.1, 1e-12);
    weft_schedule cycle = {.kind = WEFT_ONE_CYCLE, .steps = 100};
    cr_assert_float_eq(at(cycle, 0), 0.04, 1e-12);
    cr_assert_float_eq(at(cycle, 30), 1, 1e-12);
    cr_assert_float_eq(at(cycle, 65), 0.5, 1e-12);
    cr_assert_float_eq(at(cycle, 100), 0, 1e-12);
    weft_schedule line = {.kind = WEFT_LINEAR, .steps = 10, .floor = 0.5};
    cr_assert_float_eq(at(line, 5), 0.75, 1e-12);
}

Test(schedule, refuses_what_makes_no_sense) {
    double multiple;
    cr_assert_eq(weft_schedule_at(&(weft_schedule){.kind = WEFT_COSINE}, 0, &multiple), WEFT_E_INVALID);
    cr_assert_not_null(strstr(weft_error_message(), ".steps"));
    cr_assert_eq(weft_schedule_at(&(weft_schedule){.kind = WEFT_STEP_DECAY}, 0, &multiple), WEFT_E_INVALID);
    cr_assert_not_null(strstr(weft_error_message(), ".every"));
    cr_assert_eq(weft_schedule_at(&(weft_schedule){.warmup = -1}, 0, &multiple), WEFT_E_INVALID);
    cr_assert_eq(weft_schedule_at(&(weft_schedule){.kind = (weft_schedule_kind)99}, 0, &multiple), WEFT_E_INVALID);
}

Test(solver, refuses_settings_by_name) {
    struct { weft_solver solver; const char *word; } bad[] = {
        {weft_sgd(0), "learning rate"},           {weft_sgd(-1), "learning rate"},
        {weft_sgd(NAN), "learning rate"},         {weft_sgd(0.1, .momentum = 1), "momentum"},
        {weft_adam(0.1, .beta1 = 1.5), "beta1"},  {weft_adam(0.1, .beta2 = -0.1), "beta2"},
        {weft_rmsprop(0.1, .rho = 1), "rho"},     {weft_sgd(0.1, .clip_norm = -1), "clip_norm"},
        {weft_adamw(0.1, .weight_decay = -1), "weight_decay"},
        {weft_lbfgs(1, .momentum = 0.9), "momentum"}, {weft_lbfgs(1, .weight_decay = 0.1), "weft_l2"},
        {weft_lbfgs(1, .clip_norm = 1), "clip_norm"}, {weft_lbfgs(1, .clip_value = 1), "clip_value"},
        {weft_lbfgs(1, .nesterov = true), "nesterov"}, {weft_lbfgs(1, .schedule = {.warmup = 3}), "schedule"},
        {weft_lbfgs(1, .schedule = {.kind = WEFT_COSINE, .steps = 9}), "schedule"},
    };
    for (size_t i = 0; i < WEFTI_COUNT(bad); i++) {
        cr_assert_eq(wefti_solver_check(&bad[i].solver), WEFT_E_INVALID);
        cr_assert_not_null(strstr(weft_error_message(), bad[i].word), "'%s' lacks '%s'", weft_error_message(), bad[i].word);
    }
    cr_assert_eq(wefti_solver_check(&(weft_solver){.kind = WEFT_LBFGS}), WEFT_OK);
    weft_solver good = weft_adamw(1e-3);
    cr_assert_eq(good.weight_decay, 0.01);
    cr_assert_eq(wefti_solver_check(&good), WEFT_OK);
}

/* Solvers, schedules and regularisers: plain values with nothing to free.
 *
 *     .solver = weft_adamw(1e-3, .weight_decay = 0.1, .schedule = {.kind = WEFT_COSINE, .warmup = 100, .steps = 5000})
 *
 * In C++, fill a weft_solver and pass it to weft_adamw_with and its like. */
#ifndef WEFT_SOLVER_H
#define WEFT_SOLVER_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --- schedules: the learning rate as a multiple of the solver's rate --- */

typedef enum weft_schedule_kind {
    WEFT_CONSTANT,  /* 1 */
    WEFT_STEP_DECAY, /* gamma^floor(t / every) */
    WEFT_COSINE,    /* from 1 to `floor` along half a cosine over `steps` (Loshchilov & Hutter 2017) */
    WEFT_LINEAR,    /* from 1 to `floor` along a line over `steps` */
    WEFT_ONE_CYCLE  /* up from `start` to 1 over `rise` of `steps`, then down to `floor`, both along cosines (Smith & Topin 2018) */
} weft_schedule_kind;

typedef struct weft_schedule {
    weft_schedule_kind kind;
    int64_t warmup; /* steps of linear warm-up before: (t + 1) / warmup; the schedule's own t starts after it */
    int64_t steps;  /* length of COSINE, LINEAR and ONE_CYCLE, warm-up not counted; the last value holds afterwards */
    int64_t every;  /* STEP_DECAY: steps between decays */
    double  gamma;  /* STEP_DECAY: factor; 0: 0.1 */
    double  floor;  /* least multiple, from 0 */
    double  start;  /* ONE_CYCLE: first multiple; 0: 0.04 */
    double  rise;   /* ONE_CYCLE: share of the steps that rise; 0: 0.3 */
} weft_schedule;

/* The multiple at step t (from 0). Pure. WEFT_E_INVALID names the field that is missing or out of range. */
WEFT_MUST_CHECK weft_status weft_schedule_at(const weft_schedule *schedule, int64_t t, double *multiple_out);

/* --- solvers --- */

typedef enum weft_solver_kind {
    WEFT_SGD, WEFT_ADAGRAD, WEFT_RMSPROP, WEFT_ADAM, WEFT_LBFGS
} weft_solver_kind;

/* A solver and its settings. A zero field takes the default that is named here; fields that are marked with other solvers are not
 * read. L-BFGS chooses its steps by itself: it takes rate, history and line_search only, and refuses momentum, nesterov,
 * weight_decay, clip_norm, clip_value and schedule (WEFT_E_INVALID). */
typedef struct weft_solver {
    double           rate;         /* learning rate; L-BFGS: the first step's length, 0: 1 */
    weft_solver_kind kind;
    double           momentum;     /* SGD: 0 is none */
    bool             nesterov;     /* SGD: Nesterov's form (Sutskever et al. 2013) */
    double           beta1, beta2; /* Adam: 0.9, 0.999 (Kingma & Ba 2015) */
    double           rho;          /* RMSprop: 0.99 */
    double           epsilon;      /* Adam, RMSprop 1e-8; Adagrad 1e-10; added outside the square root */
    double           weight_decay; /* decoupled (Loshchilov & Hutter 2019): theta -= rate*weight_decay*theta; 0 is none. Not
                                      applied to biases, norm scales and other unregularised parameters */
    int32_t          history;      /* L-BFGS: pairs kept, 0: 10 (Liu & Nocedal 1989) */
    int32_t          line_search;  /* L-BFGS: most evaluations a step, 0: 20 (strong Wolfe, Nocedal & Wright 2006, alg. 3.5) */
    double           clip_norm;    /* > 0: the gradient of all parameters is scaled down to this global 2-norm; the regulariser's part is
                                      not clipped, with any solver */
    double           clip_value;   /* > 0: each gradient element is clipped to +- this, after clip_norm */
    bool             stochastic_rounding; /* parameters in bf16 (weft_graph_options.bf16_parameters) are updated without an f32 copy: the sum is rounded up or down
                                             at random, so that its mean is right and small steps are not lost (Gupta et al. 2015). Gradients are summed, and
                                             states kept, in f32. Random numbers are those of (graph seed, name, step, element of what the rank has): runs on CPUs
                                             and GPUs give the same bits. Without it such parameters are refused, as they would stand still. Not with L-BFGS,
                                             group regularisers, WEFT_SERVER and strategy.zero; no effect on parameters in f32 */
    weft_schedule    schedule;
} weft_solver;

static inline weft_solver wefti_solver_of(weft_solver solver, weft_solver_kind kind) {
    solver.kind = kind;
    return solver;
}
static inline weft_solver weft_sgd_with(weft_solver solver) { return wefti_solver_of(solver, WEFT_SGD); }
static inline weft_solver weft_adagrad_with(weft_solver solver) { return wefti_solver_of(solver, WEFT_ADAGRAD); }
static inline weft_solver weft_rmsprop_with(weft_solver solver) { return wefti_solver_of(solver, WEFT_RMSPROP); }
static inline weft_solver weft_adam_with(weft_solver solver) { return wefti_solver_of(solver, WEFT_ADAM); }
static inline weft_solver weft_lbfgs_with(weft_solver solver) { return wefti_solver_of(solver, WEFT_LBFGS); }
/* Adam with decoupled weight decay of 0.01 where none is given. */
static inline weft_solver weft_adamw_with(weft_solver solver) {
    if (solver.weight_decay == 0) solver.weight_decay = 0.01;
    return wefti_solver_of(solver, WEFT_ADAM);
}

/* weft_sgd(0.1, .momentum = 0.9) and so on: the learning rate, then any fields. */
#define weft_sgd(...) weft_sgd_with((weft_solver){.rate = __VA_ARGS__})
#define weft_adagrad(...) weft_adagrad_with((weft_solver){.rate = __VA_ARGS__})
#define weft_rmsprop(...) weft_rmsprop_with((weft_solver){.rate = __VA_ARGS__})
#define weft_adam(...) weft_adam_with((weft_solver){.rate = __VA_ARGS__})
#define weft_adamw(...) weft_adamw_with((weft_solver){.rate = __VA_ARGS__})
#define weft_lbfgs(...) weft_lbfgs_with((weft_solver){.rate = __VA_ARGS__})

/* --- regularisers --- */

/* Omega(theta) = l2/2*|theta|_2^2 + l1*|theta|_1 + group*sum over rows of |row|_2, over all parameters but those created as
 * unregularised. A row is a parameter's slice along axis 0 (one element where it has but that axis). The smooth part goes with the
 * gradient, the others by a proximal step after each update, so that zeros are exact. It is measured by the solver's own steps, momentum
 * and preconditioner included: any solver that converges ends at an optimum of L + Omega. */
typedef struct weft_regulariser {
    double l2, l1, group;
} weft_regulariser;

static inline weft_regulariser weft_l2(double weight) {
    weft_regulariser r = {0, 0, 0};
    r.l2 = weight;
    return r;
}
static inline weft_regulariser weft_l1(double weight) {
    weft_regulariser r = {0, 0, 0};
    r.l1 = weight;
    return r;
}
static inline weft_regulariser weft_elastic_net(double l1, double l2) {
    weft_regulariser r = {0, 0, 0};
    r.l1 = l1;
    r.l2 = l2;
    return r;
}
static inline weft_regulariser weft_group_lasso(double weight) {
    weft_regulariser r = {0, 0, 0};
    r.group = weight;
    return r;
}

#ifdef __cplusplus
}
#endif
#endif

/* A solver rule: the update of parameters from gradients, element by element, so that trainers run it on whole
 * parameters and servers on single rows. A rule keeps no memory of its own; its state arrays are shaped as the row.
 *
 * The order of one update, the same for every rule: g = scale*gradient, clipped to +-clip where that is > 0; smooth
 * regularisation g += l2*theta; decoupled weight decay, as in AdamW, theta -= rate*decay*theta; the rule's step; then the proximal
 * steps of l1*||theta||_1 and of group*sum over rows of ||row||_2 (Yuan & Lin 2006).
 *
 * A proximal step is as long as the step that the rule takes for a gradient that stays 1: momentum makes that longer by and by, a
 * preconditioner scales it element by element (not where there never was a gradient). So what stays where it is, is an optimum of
 * L + Omega with every rule; the plain rate would weigh Omega ten times too lightly beside a momentum of 0.9, and Adam would hardly
 * see it. With steps c_i the l1 norm's is a soft threshold by c_i*l1 (Duchi et al. 2011); the rows' is theta_i*s/(s + c_i*group), where
 * the norm s of the result solves sum (theta_i/(s + c_i*group))^2 = 1, or zero where there is no such s.
 */
#ifndef WEFTI_RULE_H
#define WEFTI_RULE_H

#include <math.h>

#include "core/iface/op.h"

/* What changes from step to step lives in an f64[WEFTI_HYPER_COUNT] tensor, so that a planned or captured step is
 * never rebuilt for it. */
enum {
    WEFTI_HYPER_RATE,  /* learning rate of this step */
    WEFTI_HYPER_SCALE, /* multiplies the gradient: clipping by norm, loss scaling, 1/accumulation */
    WEFTI_HYPER_CLIP,  /* > 0: clips the scaled gradient's elements to +- this */
    WEFTI_HYPER_STEP,  /* 1-based count of updates, for bias correction */
    WEFTI_HYPER_SKIP,  /* not 0: leave everything as it is (a bad step) */
    WEFTI_HYPER_A,     /* the rule's own: momentum, beta1, rho, FTRL's beta */
    WEFTI_HYPER_B,     /* beta2 */
    WEFTI_HYPER_EPS,
    WEFTI_HYPER_LOSS_SCALE, /* the loss was multiplied by this before it was differentiated; SCALE undoes it. No rule reads it */
    WEFTI_HYPER_COUNT
};

typedef enum wefti_rule_id {
    WEFTI_RULE_SGD, WEFTI_RULE_MOMENTUM, WEFTI_RULE_NESTEROV, WEFTI_RULE_ADAGRAD, WEFTI_RULE_RMSPROP, WEFTI_RULE_ADAM,
    WEFTI_RULE_USER, /* from here on devices have no kernels of their own */
    WEFTI_RULE_FTRL, /* FTRL-proximal: RATE is alpha, A beta; l1 and l2 belong to its closed form (no soft threshold, and not in the gradient), decay and
                        group are not looked at */
    WEFTI_RULE_COUNT
} wefti_rule_id;

enum { WEFTI_RULE_STATES = 8 }; /* states that a rule may have */

/* One update of `count` consecutive elements; results do not depend on how a parameter is cut into such runs (of whole rows, for
 * shrink). */
typedef struct wefti_rule_args {
    int64_t       count;
    void         *parameter; /* f32 or f64 [count] */
    const void   *gradient;  /* same dtype [count] */
    void *const  *states;    /* rule->n_states arrays [count] of the same dtype */
    const double *hyper;     /* [WEFTI_HYPER_COUNT] */
    double        l2, decay, l1, group;
    int64_t       row;       /* elements of a row; shrink only */
    double        a_power, b_power; /* A and B to the power of STEP, for apply, where they are known: they cost as much as a short row. 0: they are not */
} wefti_rule_args;

typedef struct wefti_rule {
    wefti_rule_id id;
    const char   *name;
    int32_t       n_states;
    double        initial[2]; /* initial value of each state */
    /* All but the rows' proximal step. */
    void (*apply_f32)(const wefti_rule_args *args);
    void (*apply_f64)(const wefti_rule_args *args);
    /* The rows' proximal step on what apply left in parameter and states; where group > 0. */
    void (*shrink_f32)(const wefti_rule_args *args);
    void (*shrink_f64)(const wefti_rule_args *args);
} wefti_rule;

/* How much longer than the rate a step is that the rule, but for its preconditioner, takes for a gradient that stayed 1 so far. */
static inline double wefti_rule_gain(wefti_rule_id id, const double *hyper) {
    if (id != WEFTI_RULE_MOMENTUM && id != WEFTI_RULE_NESTEROV) return 1;
    double a = hyper[WEFTI_HYPER_A], built = (1 - pow(a, hyper[WEFTI_HYPER_STEP])) / (1 - a);
    return id == WEFTI_RULE_MOMENTUM ? built : 1 + a * built;
}

/* Elements of a row, a slice along axis 0; 1 where there is but one axis. */
static inline int64_t wefti_rule_row(weft_shape shape) {
    int64_t elements = 1;
    for (int32_t axis = 1; axis < shape.rank; axis++) elements *= shape.dim[axis];
    return elements;
}

#endif

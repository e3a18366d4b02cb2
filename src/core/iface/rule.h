/* A solver rule: the update of parameters from gradients, element by element, so that trainers run it on whole
 * parameters and servers on single rows. A rule keeps no memory of its own; its state arrays are shaped as the row.
 *
 * The order of one update, the same for every rule: g = scale*gradient, clipped to +-clip where that is > 0; smooth
 * regularisation g += l2*theta; decoupled weight decay, as in AdamW, theta -= rate*decay*theta; the rule's step; then the proximal
 * step of l1*||theta||_1 (soft threshold by rate*l1). Group lasso needs whole groups and is a pass of its own. */
#ifndef WEFTI_RULE_H
#define WEFTI_RULE_H

#include "core/iface/op.h"

/* What changes from step to step lives in an f64[WEFTI_HYPER_COUNT] tensor, so that a planned or captured step is
 * never rebuilt for it. */
enum {
    WEFTI_HYPER_RATE,  /* learning rate of this step */
    WEFTI_HYPER_SCALE, /* multiplies the gradient: clipping by norm, loss scaling, 1/accumulation */
    WEFTI_HYPER_CLIP,  /* > 0: clips the scaled gradient's elements to +- this */
    WEFTI_HYPER_STEP,  /* 1-based count of updates, for bias correction */
    WEFTI_HYPER_SKIP,  /* not 0: leave everything as it is (a bad step) */
    WEFTI_HYPER_A,     /* the rule's own: momentum, beta1, rho */
    WEFTI_HYPER_B,     /* beta2 */
    WEFTI_HYPER_EPS,
    WEFTI_HYPER_COUNT
};

typedef enum wefti_rule_id {
    WEFTI_RULE_SGD, WEFTI_RULE_MOMENTUM, WEFTI_RULE_NESTEROV, WEFTI_RULE_ADAGRAD, WEFTI_RULE_RMSPROP, WEFTI_RULE_ADAM,
    WEFTI_RULE_USER, WEFTI_RULE_COUNT
} wefti_rule_id;

/* One update of `count` consecutive elements; results do not depend on how a row is cut into such runs. */
typedef struct wefti_rule_args {
    int64_t       count;
    void         *parameter; /* f32 or f64 [count] */
    const void   *gradient;  /* same dtype [count] */
    void *const  *states;    /* rule->n_states arrays [count] of the same dtype */
    const double *hyper;     /* [WEFTI_HYPER_COUNT] */
    double        l2, decay, l1;
} wefti_rule_args;

typedef struct wefti_rule {
    wefti_rule_id id;
    const char   *name;
    int32_t       n_states;
    double        initial[2]; /* initial value of each state */
    void (*apply_f32)(const wefti_rule_args *args);
    void (*apply_f64)(const wefti_rule_args *args);
} wefti_rule;

#endif

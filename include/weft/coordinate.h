/* L1 and elastic-net problems by coordinate descent on many ranks: classic model parallelism. Every rank has the data, and changes its part of the weights
 * only; which those are is scheduled anew in each round.
 *
 *     weft_columns columns = {.rows = n, .columns = d, .start = start, .row = row, .value = value};
 *     weft_coordinate_problem problem = {.data = &columns, .label = label, .loss = WEFT_COORDINATE_LOGISTIC, .l1 = 1e-3};
 *     if ((s = weft_coordinate_minimise(world, &problem, NULL, weights, &intercept, &report)) != WEFT_OK) goto done;
 *
 * Minimises (1/n) * sum over rows of weight[i] * loss(x_i.w + b, label[i]) + l1*|w|_1 + l2/2*|w|^2, with loss(m, y) = (m - y)^2/2 or
 * log(1 + exp(-y*m)), y = 1 where the label is > 0, else -1. Glmnet's lambda and alpha are l1 = lambda*alpha, l2 = lambda*(1 - alpha).
 *
 * Scheduling (STRADS: Lee, Kim, Zheng, Ho, Gibson, Xing, "On model parallelization and scheduling strategies for distributed machine learning", NIPS 2014;
 * Kim et al., EuroSys 2016). Two weights that are changed at the same time, each as if the other stood still, undo each other's work where their columns
 * are alike: parallel coordinate descent then slows down or diverges. So each round takes those weights that have most to gain, and gives them to ranks so that
 * columns of different ranks are weakly coupled (|cosine| at most `coupling`, by sketches of the columns); what is strongly coupled goes to one rank,
 * which changes its weights one after another, or waits for a later round. Should the objective rise all the same, the round's weights are taken back
 * and fewer are changed at once, down to one.
 *
 * Bits depend on the number of ranks; the minimum does not. */
#ifndef WEFT_COORDINATE_H
#define WEFT_COORDINATE_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/status.h"
#include "weft/world.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A sparse matrix by columns; the same on all ranks. Only read, and only during the call. */
typedef struct weft_columns {
    int64_t        rows, columns; /* below 2^31 */
    const int64_t *start;         /* [columns + 1] column j has the entries from start[j] to start[j + 1]; start[0] is 0 */
    const int32_t *row;           /* [start[columns]] ascending within a column */
    const float   *value;         /* [start[columns]] */
} weft_columns;

typedef enum weft_coordinate_loss { WEFT_COORDINATE_SQUARED, WEFT_COORDINATE_LOGISTIC } weft_coordinate_loss;

/* The same on all ranks. */
typedef struct weft_coordinate_problem {
    const weft_columns  *data;
    const float         *label;  /* [rows] */
    const float         *weight; /* [rows] of rows, not negative; NULL: 1 each */
    weft_coordinate_loss loss;
    double               l1, l2;
    bool                 no_intercept; /* b stays 0 */
} weft_coordinate_problem;

typedef struct weft_coordinate_report {
    int64_t  pass;        /* over all columns, each of which says how far from the minimum the weights are */
    int64_t  sweep;       /* over the weights that had something to gain */
    int64_t  rounds, changes; /* rounds of sweeps; weights that were computed anew, by all ranks */
    int64_t  deferred;    /* weights that were coupled too strongly and waited for a later round */
    int64_t  taken_back;  /* sweeps */
    int64_t  entries;     /* of columns, that this rank went through in rounds */
    int64_t  outer;       /* quadratic models of the loss */
    double   objective;
    double   violation;   /* largest |subgradient| of a weight, as a multiple of the loss's largest |gradient| where all weights are 0 */
    int64_t  nonzero;     /* weights that are not 0 */
    double   coupling;    /* largest estimate among weights of different ranks in a round */
    uint64_t compute_ns, wait_ns; /* of this rank in rounds: with its weights, and for the others */
} weft_coordinate_report;

/* Zero means the default. The same on all ranks, but .progress and its context. */
typedef struct weft_coordinate_options {
    double   tolerance;  /* ends where violation <= tolerance; 0: 1e-6 */
    int64_t  passes;     /* at most; 0: 1000 */
    int32_t  block;      /* weights that a rank changes in a round, at most; 0: by what a round's message costs */
    double   coupling;   /* 0: 0.4, which sketches tell well enough from none; 1 and more: whatever comes first, strongly coupled or not */
    uint64_t seed;       /* of the sketches */
    weft_status (*progress)(void *context, const weft_coordinate_report *report); /* after each pass, on every rank; WEFT_END ends the run well on all ranks
                                                                                     where any gives it, another status than WEFT_OK with that status */
    void *progress_context;
} weft_coordinate_options;

/* Minimises. Collective over the world; blocks. `options` may be NULL. `weights` [columns] and *intercept: the start on rank 0, which the others get; on return
 * the minimum, the same bits on all ranks. *intercept is only written where there is one; NULL with no_intercept. report_out may be NULL. Memory of
 * a rank: 48 bytes a row and 600 a column. Errors are the same on all ranks: WEFT_E_INVALID, WEFT_E_SHAPE (entries out of order or range: named),
 * WEFT_E_MISMATCH (problems or options differ between ranks), WEFT_E_NAN (data that are not finite), WEFT_E_NO_MEMORY, those of `progress`, a fault.
 * From src/learn/coordinate.c. */
WEFT_MUST_CHECK weft_status weft_coordinate_minimise(weft_world *world, const weft_coordinate_problem *problem, const weft_coordinate_options *options,
                                                     double *weights, double *intercept, weft_coordinate_report *report_out);

#ifdef __cplusplus
}
#endif
#endif

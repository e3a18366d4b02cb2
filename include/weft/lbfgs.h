/* L-BFGS on a parameter server (Sandblaster: Dean et al., "Large scale distributed deep networks", 2012, algorithm 2; Liu & Nocedal 1989).
 *
 *     static weft_status part(void *context, int64_t unit, const double *point, double *loss_out, double *gradient) {
 *         ... loss and gradient of the unit's rows: gradient[i] += ... ...
 *     }
 *     weft_lbfgs_problem problem = {.parameters = n, .units = 64, .evaluate = part, .context = &rows};
 *     if ((s = weft_lbfgs_minimise(server, &problem, NULL, point, &report)) != WEFT_OK) goto done;
 *
 * The function to be minimised is a sum over units of work: parts of the data, such as batches of rows, which every worker can read. Servers keep all
 * vectors (2*history + 5 of them) and do the arithmetic where they lie. Rank 0 coordinates: it sends commands and gets numbers, so what it moves
 * does not depend on the number of parameters (where it is .dedicated). Units go to whoever is idle: a worker asks for one, pulls the point once an
 * evaluation, and pushes the unit's gradient. Towards the end of an evaluation, units that are under way at a slow worker are given a second time where that is
 * sooner; the first answer counts, the other is dropped. So make units smaller than a worker's share: eight a worker or more.
 *
 * Bits. Gradients of units are added in a tree that the number of units fixes, whoever computed them and whenever they came, and losses in the order of
 * units: where `evaluate` gives the same bits for a unit on all workers, a run has the same bits on as many servers, whatever workers there are.
 *
 * Faults. Units of a worker that dies are given to others. A server with .replicas keeps every vector on two ranks, and any one server may die: the run goes on with
 * the same bits, at the price of at most one evaluation. Without replicas, or without the coordinator, all ranks end with WEFT_E_PEER. */
#ifndef WEFT_LBFGS_H
#define WEFT_LBFGS_H

#include "weft/batch.h"
#include "weft/graph.h"
#include "weft/server.h"
#include "weft/solver.h"
#include "weft/variables.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The same on all workers. */
typedef struct weft_lbfgs_problem {
    int64_t parameters; /* n */
    int64_t units;      /* 0 .. units-1 */
    /* Loss of one unit at `point` [n], and its gradient, which is added to `gradient` [n], zero before. Called by the thread that called
     * weft_lbfgs_minimise. What it returns beside WEFT_OK ends the run on all ranks. */
    weft_status (*evaluate)(void *context, int64_t unit, const double *point, double *loss_out, double *gradient);
    void  *context;
    double l2; /* adds l2/2*|point|^2, once */
} weft_lbfgs_problem;

typedef enum weft_lbfgs_end {
    WEFT_LBFGS_RUNNING,
    WEFT_LBFGS_GRADIENT,   /* the gradient is small enough */
    WEFT_LBFGS_DECREASE,   /* as is what an iteration gains */
    WEFT_LBFGS_NO_DESCENT, /* nothing is gained any more in this precision */
    WEFT_LBFGS_ITERATIONS, /* as many as there may be */
    WEFT_LBFGS_STOPPED     /* by .progress */
} weft_lbfgs_end;

typedef struct weft_lbfgs_report {
    int64_t iteration;     /* that are done */
    int64_t evaluations;   /* of all units */
    int64_t given, repeated; /* units that were given out; of those, for a second time or to replace a lost worker */
    double  loss;          /* at the point, l2 included */
    double  gradient_norm; /* there */
    double  point_norm;
    double  step;          /* length of the latest step, as a multiple of the direction */
    int32_t end;           /* weft_lbfgs_end */
    weft_table *point;     /* .progress: where the point is; may be pulled. Else NULL */
} weft_lbfgs_report;

/* Zero means the default. The same on all workers, but .progress, which rank 0 calls. */
typedef struct weft_lbfgs_options {
    const char *name;        /* tables are called NAME.x0 and so on, up to 40 bytes; NULL: "lbfgs". Another problem on the same server with another number of
                                parameters needs another name */
    int32_t history;         /* pairs kept; 0: 10 */
    int32_t line_search;     /* most evaluations an iteration (strong Wolfe: Nocedal & Wright 2006, alg. 3.5); 0: 20 */
    int64_t iterations;      /* at most; 0: 100 */
    double  gradient;        /* ends where |gradient| <= gradient*max(1, |point|); 0: 1e-5; negative: never */
    double  decrease;        /* ends where an iteration gains less than decrease*max(1, |loss|); 0: never */
    double  rate;            /* length of the first step tried, as a multiple of the direction; 0: 1 */
    bool    dedicated;       /* rank 0 coordinates only: it computes no units, and does not hold the point */
    bool    once;            /* no unit is given twice, but those of lost workers */
    int64_t timeout_ns;      /* the longest that no unit may end in an evaluation, and that rank 0 may take between two; 0: the server's */
    weft_status (*progress)(void *context, const weft_lbfgs_report *report); /* after each iteration, from 0 on; WEFT_END stops the run well, another status
                                                                                than WEFT_OK ends it on all ranks */
    void   *progress_context;
} weft_lbfgs_options;

/* Minimises. Collective over the workers of the server; blocks. `options` may be NULL. `point` [n]: on return the minimum, on every worker but a dedicated
 * coordinator, whose is not looked at; at the beginning the start, that of rank 0 (1 where rank 0 is dedicated), the others' being overwritten;
 * NULL: a start at 0, and nothing is returned. report_out may be NULL; it is the same on all workers. Errors are the same on all ranks that live:
 * WEFT_E_INVALID, WEFT_E_NAN (the loss at the start is not finite), WEFT_E_NO_MEMORY, WEFT_E_TIMEOUT (naming who has which unit), WEFT_E_PEER, those of
 * `evaluate` and `progress`. From src/parallel/server/lbfgs.c. */
WEFT_MUST_CHECK weft_status weft_lbfgs_minimise(weft_server *server, const weft_lbfgs_problem *problem, const weft_lbfgs_options *options, double *point,
                                                weft_lbfgs_report *report_out);

/* --- a program's loss --- */

/* Data as whole arrays, which every worker has; a unit is a run of rows. */
typedef struct weft_lbfgs_data {
    weft_batch_field field[WEFT_BATCH_MAX_FIELDS]; /* [rows, ...] of an input of the graph each, named as that */
    int32_t          field_count;
    int64_t          unit_rows; /* 0: as many as the graph was built for. The last unit has the rest */
    bool             sums;      /* the loss is a sum over the rows of a batch; else the mean over them, as those of weft/loss.h are by default, and a
                                   unit counts by its rows (ignored labels make that inexact) */
} weft_lbfgs_data;

/* Minimises a loss, as it would be given to a trainer, over all the data: plans of one rank compute loss and gradient of a unit. Parameters are those that the
 * loss depends on and that are not frozen, F32 or F64, in F64 where they are minimised. They start as rank 0's `variables` (1's where rank 0 is
 * dedicated), and on return every worker's, but those of a dedicated coordinator, are the minimum. The graph is extended by gradients. Dropout drops the
 * same elements each time. Collective over the workers; blocks. Errors: those of weft_lbfgs_minimise and weft_plan_run; WEFT_E_UNSUPPORTED for l1
 * or group of the regulariser, which are not smooth, and a graph with states that steps change. From src/train/lbfgs_units.c. */
WEFT_MUST_CHECK weft_status weft_lbfgs_train(weft_server *server, weft_tensor *loss, weft_regulariser regulariser, const weft_lbfgs_data *data,
                                             const weft_lbfgs_options *options, weft_variables *variables, weft_lbfgs_report *report_out);

#ifdef __cplusplus
}
#endif
#endif

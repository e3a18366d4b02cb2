/* The training loop that most programs want: epochs over a loader, with progress, metrics, a plot, checkpoints, resume
 * and evaluation. A program that wants another loop writes its own: see weft/trainer.h. */
#ifndef WEFT_FIT_H
#define WEFT_FIT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "weft/loader.h"
#include "weft/trainer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_fit_options {
    /* Evaluation, after every epoch (and at the end): all may be NULL. */
    weft_loader *test;          /* one epoch of it, in order */
    weft_tensor *test_loss;     /* mean over a batch, a scalar */
    weft_tensor *test_correct;  /* how many samples of a batch were classified right, a scalar; gives test_accuracy */

    const char *log_path;        /* metrics.jsonl: one JSON object a line ("start", "step", "epoch", "end"); rank 0 writes */
    const char *plot_path;       /* SVG of the loss, and of the accuracy where there is one; rank 0 writes */
    const char *checkpoint_path; /* written after every epoch and at the end */
    int64_t     checkpoint_every; /* > 0: also every so many steps */
    bool        resume;          /* go on from checkpoint_path where that file exists */

    int64_t     epochs;          /* that the loader was opened with, for the time left; 0: 1 */
    FILE       *progress;        /* rank 0 reports here; NULL: silence. On a terminal a live line, else a line every few seconds */
    int64_t     units_per_row;   /* what throughput counts: tokens of a row; 0: 1, samples */
    const char *unit;            /* "samples" where NULL */
    int64_t     max_steps;       /* > 0: ends after so many steps, counted from the start of the first run */
    int64_t     log_every;       /* steps between "step" events; 0: about 200 an epoch, or of max_steps where those are fewer */

    /* Going on after a fault (weft_world_shrink, weft_trainer_renew): a rank that dies or falls silent ends neither the run nor its epoch. */
    bool        elastic;         /* also where WEFT_ELASTIC=1 is set */
    int64_t     keep_every;      /* steps between copies of the run's state in each rank's memory, after which at most so many are done again;
                                    0: as often as costs 2 % of the time */
    int32_t     least;           /* ranks to go on with; fewer end the run with WEFT_E_PEER; 0: WEFT_LEAST, or 1 */
} weft_fit_options;

/* What came of it. */
typedef struct weft_fit_result {
    int64_t steps, epochs;      /* done in all */
    double  train_loss;         /* mean over the last epoch, or what was seen of it */
    double  test_loss;          /* of the last evaluation; NaN without one */
    double  test_accuracy;      /* 0 to 1; NaN without one */
    double  train_seconds;      /* spent in steps and in waiting for batches; without evaluation and saving */
    double  units_per_second;   /* over train_seconds; 0 where there was nothing left to train */
    double  wait_share;         /* of train_seconds, waiting for other ranks */
} weft_fit_result;

/* Trains until the loader ends. The loaders become those of this rank's share of the batch by the trainer's strategy (weft_loader_share), whatever rank and
 * ranks they were opened with: a program need not know how it is split. Collective; blocks. The last line of the log has "event":"end", test_accuracy, train_seconds,
 * samples_per_second, ranks. On an error what was saved stays, and the log ends with "event":"error" and the message. Errors: those
 * of weft_trainer_step, weft_loader_next, weft_trainer_save, and paths that cannot be written (found before training starts). What
 * fails on one rank alone gives WEFT_E_PEER on the others, with the rank and its message. `result_out` may be NULL.
 *
 * Elastic runs. After a fault the ranks that are left make a world of their own, which goes with the trainer (weft_trainer_world; the one
 * before stays the caller's, as it is), and go on from the latest step that any of them kept, with the same batches as before, split among
 * those who are left. The log gets "event":"fault" with the message, and "event":"renewed" with the step gone on from, ranks, and the
 * seconds that it took; "step" events after that step come twice. Where rank 0 was lost the new one goes on with its files. A rank whose own
 * error ended it is not waited for. Where a fault cannot be survived the message says why, and that of the fault: too few ranks left
 * (WEFT_E_PEER), a wire or launcher that does not allow it (WEFT_E_UNSUPPORTED).
 * With WEFT_SERVER (.replicas) nothing is kept and no step is done again: steps go on without a lost rank, and after that in which it was lost,
 * or another came, all go over with their rows; with staleness after an epoch. */
WEFT_MUST_CHECK weft_status weft_fit(weft_trainer *trainer, weft_loader *loader, const weft_fit_options *options,
                                     weft_fit_result *result_out);

#ifdef __cplusplus
}
#endif
#endif

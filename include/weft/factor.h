/* Matrix factorisation by rotating blocks (DSGD: Gemulla, Nijkamp, Haas, Sismanis, "Large-scale matrix factorization with distributed
 * stochastic gradient descent", KDD 2011): classic model parallelism. Each rank holds the data that it needs and changes its part of the
 * model only.
 *
 *     weft_ratings ratings = {.rows = users, .columns = films, .count = n, .row = row, .column = column, .value = value};
 *     if ((s = weft_factor_train(world, &ratings, &(weft_factor_options){.factors = 32, .l2 = 0.1}, &factors, &report)) != WEFT_OK) goto done;
 *
 * Minimises 1/2 * sum over ratings of (value - w[row].h[column])^2 + l2/2 * (|W|^2 + |H|^2) over W [rows, factors], H [columns, factors].
 *
 * Rows and columns are cut into as many blocks. A rank has the ratings and factors of its rows for good, and column blocks go round: in each of the
 * `blocks` steps of an epoch every row block meets one column block, no two the same, so ranks change different factors and need no locks; then column
 * blocks move on by one. An epoch moves each column's factors `ranks` times. With more blocks than ranks, blocks travel while others are computed with.
 *
 * Epochs are of stochastic gradient descent, which comes near quickly; then sweeps of coordinate descent on the same rounds (CCD++: Yu, Hsieh, Si, Dhillon,
 * ICDM 2012), which go down to the minimum: a sweep solves for one factor of all rows exactly, then of all columns, and so on for the others. It moves 16 bytes
 * a column 2*factors + 1 times round.
 *
 * Bits. With the same number of blocks a run has the same bits on any number of ranks, one among them.
 *
 * Memory of a rank: 12 bytes a rating of its rows (16 in sweeps), factors of its rows, columns/ranks*(1 + 1/its blocks) of those of columns, and 12 bytes
 * a row and a column (36 and 28 in sweeps). */
#ifndef WEFT_FACTOR_H
#define WEFT_FACTOR_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/status.h"
#include "weft/world.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_factors weft_factors; /* the two matrices, in parts */

/* Entries of a matrix, in any order; those of this rank's rows: weft_batch_share(rows, rank, ranks). Only read, and only during the call. An entry may come
 * more than once, and then counts so. */
typedef struct weft_ratings {
    int64_t        rows, columns; /* of the whole matrix; the same on all ranks; below 2^31 */
    int64_t        count;         /* entries here; may be 0 */
    const int32_t *row, *column;  /* [count] global, from 0 */
    const float   *value;         /* [count] */
} weft_ratings;

typedef struct weft_factor_report {
    int64_t  epoch, sweep; /* that are done */
    double   loss;         /* the objective; .progress: errors as they were met, each before its step, so it is a bit behind */
    double   error;        /* root of the mean squared error, likewise */
    double   rate;         /* the latest step length */
    int64_t  restarts;     /* from the beginning with a shorter step, after a loss that was not finite */
    uint64_t sent_bytes;   /* of factors, from this rank */
    uint64_t compute_ns, wait_ns; /* of this rank: with its blocks, and for blocks of others */
} weft_factor_report;

/* Zero means the default. The same on all ranks, but .progress and its context. */
typedef struct weft_factor_options {
    int32_t  factors;  /* columns of W and H; 0: 16; at most 4096 */
    int32_t  blocks;   /* a multiple of the world's size, at most rows and columns; 0: twice the size where that fits, else the size */
    int64_t  epochs;   /* at most; 0: 30; negative: none */
    int64_t  sweeps;   /* thereafter, at most; 0: 100; negative: none */
    double   l2;       /* 0: none */
    bool     weighted; /* l2 counts for a row and a column once for each of its ratings (Zhou et al. 2008) */
    double   rate;     /* length of the first steps; 0: by the size of the values. Then it grows by 5 % after an epoch that lowered the loss, and halves after
                          one that did not ("bold driver") */
    double   decrease; /* ends epochs, and sweeps, where three in a row gain less than decrease*loss; 0: 1e-7; negative: never */
    uint64_t seed;     /* of the start, which is drawn by the global index, and of the order of a block's ratings */
    weft_status (*progress)(void *context, const weft_factor_report *report); /* after each epoch and sweep, on every rank; WEFT_END ends the run well on all ranks where
                                                                                 any gives it, another status than WEFT_OK with that status */
    void *progress_context;
} weft_factor_options;

/* Trains. Collective over the world; blocks. `options` may be NULL. *factors_out: the caller's, to be released before the world; NULL on error. report_out
 * may be NULL; loss, error, rate and epochs are the same on all ranks. Errors are the same on all ranks: WEFT_E_INVALID, WEFT_E_SHAPE (a rating that is
 * not of this rank's rows, or of no column: named), WEFT_E_MISMATCH (sizes or options differ between ranks), WEFT_E_NO_MEMORY, WEFT_E_NAN (values that are not
 * finite, or steps that diverge however short), those of `progress`, a fault. From src/learn/factor.c. */
WEFT_MUST_CHECK weft_status weft_factor_train(weft_world *world, const weft_ratings *ratings, const weft_factor_options *options,
                                              weft_factors **factors_out, weft_factor_report *report_out);
/* NULL is allowed. */
void weft_factors_release(weft_factors *factors);

/* The factors of this rank's rows, and of the columns that are at home here (weft_batch_share of either): row-major, `stride` floats from one to the next, the
 * ones behind `factors` being 0. Borrowed, as long as
 * the factors live. */
typedef struct weft_factors_view {
    int64_t      first, count;
    int32_t      factors, stride;
    const float *values;
} weft_factors_view;
weft_factors_view weft_factors_rows(const weft_factors *factors);
weft_factors_view weft_factors_columns(const weft_factors *factors);
/* All columns' factors, dense, into columns_out [columns * factors], on every rank. Collective; blocks. */
WEFT_MUST_CHECK weft_status weft_factors_gather_columns(weft_factors *factors, float *columns_out);

#ifdef __cplusplus
}
#endif
#endif

/* Matrix factorisation inside: the parts of the two matrices, this rank's ratings by pairs of blocks, and one pass over them. */
#ifndef WEFTI_LEARN_FACTOR_H
#define WEFTI_LEARN_FACTOR_H

#include "learn/learn.h"
#include "weft/factor.h"

struct weft_factors {
    weft_group *group;
    int32_t     ranks, rank, blocks, own; /* row blocks first_block .. first_block + own - 1 are here */
    int32_t     first_block;
    int32_t     factors, stride;
    int64_t     rows, columns, first_row, row_count, longest; /* longest: columns of the largest block */
    float      *row_values;  /* [row_count, stride] */
    float      *memory;      /* [slots, longest, stride]; NULL once trained */
    float     **slot;        /* [slots] slot[b] is the column block that row block first_block + b has now; with more ranks, slot[own] is free */
    int32_t     slots;       /* own, and with more ranks one more */
    float      *home;        /* [home_count, stride] once trained: what is at home here, instead of slots */
    int64_t     home_count;
};

typedef struct wefti_rating {
    int32_t row, column; /* within this rank's rows, and within the column block */
    float   value;
} wefti_rating;

typedef struct wefti_factor_run wefti_factor_run;

/* What goes round: of each column block `width` floats a column, in slots as those of weft_factors. */
typedef struct wefti_ring {
    float **slot;
    int32_t width;
} wefti_ring;
/* Works on the ratings [begin, end) of one pair of blocks; `columns` is what goes round of the column block, whose first column is `first`. Gives what is
 * added up for the row block. */
typedef double (*wefti_visit)(wefti_factor_run *run, int64_t begin, int64_t end, float *columns, int64_t first);

/* A row during sweeps: one of its factors, and what becomes of it. */
typedef struct wefti_row {
    float now, next;         /* of the factor in hand, before and after */
    float was, became;       /* of the factor before that, which residuals do not know of yet */
    float numerator, denominator;
} wefti_row;

struct wefti_factor_run {
    weft_factors      *f;
    const weft_factor_options *options;
    wefti_rating      *ratings;    /* [count] by row block, then column block */
    int64_t            count;
    int64_t           *start;      /* [own * blocks + 1] */
    float             *row_decay;  /* [row_count] what l2 comes to at each rating of a row */
    float             *column_decay; /* [columns] */
    double            *row_weight; /* [row_count] what |w|^2 counts in the objective; [columns] follow */
    double            *errors;     /* [own, 2] two sums by row block, */
    double            *sums;       /* [blocks, 2] and everyone's */
    double             l2;
    int64_t            total;      /* ratings of all ranks */
    float              rate;       /* of the epoch */
    float             *residual;   /* [count] during sweeps: values less products */
    wefti_row         *row;        /* [row_count] during sweeps */
    wefti_ring         carriers;   /* during sweeps: of each column a factor, and two numbers more */
    float             *carried;    /* their memory */
    weft_factor_report report;
};

/* Sorts the ratings into their pairs of blocks, each in an order of its own, and counts what l2 needs. Collective. */
WEFT_MUST_CHECK weft_status wefti_factor_lay_out(wefti_factor_run *run, const weft_ratings *ratings, double *mean_square_out);
void wefti_factor_lay_out_end(wefti_factor_run *run);
/* Adds up the two sums over all blocks, in their order, so that ranks and numbers of ranks get the same bits. Collective. */
WEFT_MUST_CHECK weft_status wefti_factor_total(wefti_factor_run *run, double total_out[2]);
/* The factors' start. Local. */
void wefti_factor_draw(weft_factors *f, uint64_t seed, double scale);
/* Once round: every pair of blocks is visited, and everything is at home again. errors[2 * b] is what was added up for row block b. */
WEFT_MUST_CHECK weft_status wefti_factor_round(wefti_factor_run *run, wefti_ring *ring, wefti_visit visit);
/* Of row block b and of the column block that is at home there: what the regulariser comes to, doubled. */
double wefti_factor_norms(const wefti_factor_run *run, int32_t b);
/* One epoch; a rate of 0 changes nothing and so gives the exact objective. The sum of squared errors and the regulariser, the same bits on all ranks. */
WEFT_MUST_CHECK weft_status wefti_factor_pass(wefti_factor_run *run, float rate, double *squares_out, double *norms_out);
/* Sweeps of coordinate descent: begin, each of them, end. Collective. */
WEFT_MUST_CHECK weft_status wefti_factor_sweep_begin(wefti_factor_run *run);
WEFT_MUST_CHECK weft_status wefti_factor_sweep(wefti_factor_run *run, double *squares_out, double *norms_out);
void wefti_factor_sweep_end(wefti_factor_run *run);

#endif

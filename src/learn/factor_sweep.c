/* A sweep of coordinate descent by rotating blocks (CCD++: Yu, Hsieh, Si, Dhillon, "Scalable coordinate descent approaches to parallel matrix factorization for
 * recommender systems", ICDM 2012): factor by factor, first all rows' exactly, then all columns' exactly, so the objective falls at every step and there is no
 * step length to choose.
 *
 * Column factors stay at home; what goes round is a *carrier*, of each column the factor in hand and two numbers. One round gathers what rows need (and brings
 * residuals up to date with the factor before), one gathers, on the way, what columns need; so a sweep goes 2*factors + 1 times round with 16 bytes a column.
 * Sums are taken in the order of the blocks: the bits do not depend on the number of ranks. */
#include "learn/factor.h"
#include "weft/batch.h"

enum { WIDTH = 4 };

/* Of a column: while rows are updated, and while columns are. */
typedef struct carrier {
    float now;
    float was, became;            /* of the factor before */
    float unused;
} carrier;
typedef struct gatherer {
    float now;
    float numerator, denominator;
    float unused;
} gatherer;
_Static_assert(sizeof(carrier) == WIDTH * sizeof(float) && sizeof(gatherer) == WIDTH * sizeof(float), "carriers are floats for those who move them");

/* Residuals learn what became of the factor before; gives the sum of their squares. */
static double settle(wefti_factor_run *run, int64_t begin, int64_t end, float *columns, int64_t first) {
    const carrier *c = (const carrier *)columns;
    double         sum = 0;
    (void)first;
    for (int64_t e = begin; e < end; e++) {
        const wefti_row *row = run->row + run->ratings[e].row;
        const carrier   *column = c + run->ratings[e].column;
        float            residual = run->residual[e] + (row->was * column->was - row->became * column->became);
        run->residual[e] = residual;
        sum += (double)residual * residual;
    }
    return sum;
}

static double serve_rows(wefti_factor_run *run, int64_t begin, int64_t end, float *columns, int64_t first) {
    const carrier *c = (const carrier *)columns;
    (void)first;
    for (int64_t e = begin; e < end; e++) {
        wefti_row     *row = run->row + run->ratings[e].row;
        const carrier *column = c + run->ratings[e].column;
        float          residual = run->residual[e] + (row->was * column->was - row->became * column->became);
        run->residual[e] = residual;
        row->numerator += (residual + row->now * column->now) * column->now;
        row->denominator += column->now * column->now;
    }
    return 0;
}

static double serve_columns(wefti_factor_run *run, int64_t begin, int64_t end, float *columns, int64_t first) {
    gatherer *c = (gatherer *)columns;
    (void)first;
    for (int64_t e = begin; e < end; e++) {
        const wefti_row *row = run->row + run->ratings[e].row;
        gatherer        *column = c + run->ratings[e].column;
        column->numerator += (run->residual[e] + row->now * column->now) * row->next;
        column->denominator += row->next * row->next;
    }
    return 0;
}

/* --- factor by factor --- */

/* A factor that nothing speaks for is 0. */
static float quotient(float numerator, float denominator, double weight) {
    double below = denominator + weight;
    return below > 0 ? (float)(numerator / below) : 0;
}

/* For each column at home: where it is in its block's slot, its factors, and its weight. */
typedef struct columns_at_home {
    int64_t       count;
    float        *values;
    const double *weight;
    float        *carried;
} columns_at_home;

static columns_at_home at_home(const wefti_factor_run *run, int32_t b) {
    const weft_factors *f = run->f;
    int64_t             first, count;
    weft_batch_share(f->columns, f->first_block + b, f->blocks, &first, &count);
    return (columns_at_home){count, f->slot[b], run->row_weight + f->row_count + first, run->carriers.slot[b]};
}

/* Takes factor k in hand, the one before being settled on the way. */
static void take_rows(wefti_factor_run *run, int32_t k) {
    const weft_factors *f = run->f;
    for (int64_t i = 0; i < f->row_count; i++) {
        wefti_row *row = run->row + i;
        float      now = f->row_values[i * f->stride + k];
        *row = (wefti_row){.now = now, .next = now, .was = row->now, .became = row->next};
    }
}

static void turn_rows(wefti_factor_run *run, int32_t k) {
    weft_factors *f = run->f;
    for (int64_t i = 0; i < f->row_count; i++) {
        wefti_row *row = run->row + i;
        row->next = quotient(row->numerator, row->denominator, run->row_weight[i]);
        row->was = row->became = 0; /* settled */
        f->row_values[i * f->stride + k] = row->next;
    }
}

/* The columns' factor before is what the gatherer found, which is written home; k < 0 takes none in hand. */
static void take_columns(wefti_factor_run *run, int32_t before, int32_t k) {
    const weft_factors *f = run->f;
    for (int32_t b = 0; b < f->own; b++) {
        columns_at_home home = at_home(run, b);
        for (int64_t i = 0; i < home.count; i++) {
            carrier *c = (carrier *)home.carried + i;
            float   *values = home.values + i * f->stride;
            carrier  next = {.now = k < 0 ? 0 : values[k]};
            if (before >= 0) {
                const gatherer *found = (const gatherer *)c;
                next.was = found->now;
                values[before] = next.became = quotient(found->numerator, found->denominator, home.weight[i]);
            }
            *c = next;
        }
    }
}

static void turn_columns(wefti_factor_run *run) {
    for (int32_t b = 0; b < run->f->own; b++) {
        columns_at_home home = at_home(run, b);
        for (int64_t i = 0; i < home.count; i++) {
            gatherer *g = (gatherer *)home.carried + i;
            *g = (gatherer){.now = g->now};
        }
    }
}

weft_status wefti_factor_sweep(wefti_factor_run *run, double *squares_out, double *norms_out) {
    const weft_factors *f = run->f;
    double              total[2];
    for (int64_t i = 0; i < f->row_count; i++) run->row[i] = (wefti_row){0};
    for (int32_t k = 0; k < f->factors; k++) {
        take_rows(run, k);
        take_columns(run, k - 1, k);
        WEFTI_TRY(wefti_factor_round(run, &run->carriers, serve_rows));
        turn_rows(run, k);
        turn_columns(run);
        WEFTI_TRY(wefti_factor_round(run, &run->carriers, serve_columns));
    }
    for (int64_t i = 0; i < f->row_count; i++) run->row[i] = (wefti_row){.was = run->row[i].now, .became = run->row[i].next};
    take_columns(run, f->factors - 1, -1);
    WEFTI_TRY(wefti_factor_round(run, &run->carriers, settle));
    for (int32_t b = 0; b < f->own; b++) run->errors[2 * b + 1] = wefti_factor_norms(run, b);
    WEFTI_TRY(wefti_factor_total(run, total));
    *squares_out = total[0];
    *norms_out = total[1];
    return WEFT_OK;
}

/* --- begin and end --- */

static size_t carried_bytes(const weft_factors *f) { return (size_t)f->slots * (size_t)f->longest * WIDTH * sizeof(float); }

static weft_status allocate(wefti_factor_run *run) {
    const weft_factors *f = run->f;
    WEFTI_TRY(wefti_alloc((size_t)run->count * sizeof *run->residual, "residuals of ratings", &run->residual));
    WEFTI_TRY(wefti_alloc((size_t)f->row_count * sizeof *run->row, "a factor of rows", &run->row));
    WEFTI_TRY(wefti_alloc((size_t)f->slots * sizeof *run->carriers.slot, "a factor of columns", &run->carriers.slot));
    WEFTI_TRY(wefti_alloc(carried_bytes(f), "a factor of columns", &run->carried));
    for (int32_t b = 0; b < f->slots; b++) run->carriers.slot[b] = run->carried + (size_t)b * (size_t)f->longest * WIDTH;
    run->carriers.width = WIDTH;
    return WEFT_OK;
}

weft_status wefti_factor_sweep_begin(wefti_factor_run *run) {
    double squares, norms;
    WEFTI_TRY(wefti_learn_agree(run->f->group, allocate(run), "weft_factor_train"));
    return wefti_factor_pass(run, 0, &squares, &norms); /* fills the residuals */
}

void wefti_factor_sweep_end(wefti_factor_run *run) {
    const weft_factors *f = run->f;
    wefti_free(run->residual, (size_t)run->count * sizeof *run->residual);
    wefti_free(run->row, (size_t)f->row_count * sizeof *run->row);
    wefti_free(run->carriers.slot, (size_t)f->slots * sizeof *run->carriers.slot);
    wefti_free(run->carried, carried_bytes(f));
    run->residual = NULL;
}

/* Laying out a rank's ratings: by row block, then by column block, and in each such pair in an order drawn from the seed, so that steps do not follow the
 * order in which ratings were collected. Linear; one counting sort straight out of the caller's arrays. */
#include <math.h>
#include <string.h>

#include "core/tensor/philox.h"
#include "learn/factor.h"
#include "weft/batch.h"

/* The block of `blocks` that index `i` of `n` is in: the inverse of weft_batch_share. */
static int32_t block_of(int64_t i, int64_t n, int32_t blocks) { return (int32_t)(((i + 1) * blocks - 1) / n); }

static weft_status check(const weft_factors *f, const weft_ratings *ratings) {
    for (int64_t e = 0; e < ratings->count; e++) {
        int64_t row = ratings->row[e], column = ratings->column[e];
        if (row < f->first_row || row >= f->first_row + f->row_count)
            return wefti_fail(WEFT_E_SHAPE, "rank %d: rating %lld is of row %lld; this rank of %d has rows %lld to %lld of %lld (weft_batch_share)", f->rank,
                              (long long)e, (long long)row, f->ranks, (long long)f->first_row, (long long)(f->first_row + f->row_count - 1),
                              (long long)f->rows);
        if (column < 0 || column >= f->columns)
            return wefti_fail(WEFT_E_SHAPE, "rank %d: rating %lld is of column %lld; there are %lld", f->rank, (long long)e, (long long)column,
                              (long long)f->columns);
        if (!isfinite(ratings->value[e]))
            return wefti_fail(WEFT_E_NAN, "rank %d: rating %lld, of row %lld and column %lld, is %g", f->rank, (long long)e, (long long)row, (long long)column,
                              ratings->value[e]);
    }
    return WEFT_OK;
}

static int64_t pair_of(const weft_factors *f, const weft_ratings *ratings, int64_t e) {
    int64_t row_block = block_of(ratings->row[e], f->rows, f->blocks) - f->first_block;
    return row_block * f->blocks + block_of(ratings->column[e], f->columns, f->blocks);
}

static void sort(wefti_factor_run *run, const weft_ratings *ratings) {
    const weft_factors *f = run->f;
    int64_t             pairs = (int64_t)f->own * f->blocks, first, unused;
    for (int64_t e = 0; e < run->count; e++) run->start[pair_of(f, ratings, e) + 1]++;
    for (int64_t p = 0; p < pairs; p++) run->start[p + 1] += run->start[p];
    for (int64_t e = 0; e < run->count; e++) { /* start[p] moves to where pair p ends, which is where p + 1 began */
        weft_batch_share(f->columns, block_of(ratings->column[e], f->columns, f->blocks), f->blocks, &first, &unused);
        run->ratings[run->start[pair_of(f, ratings, e)]++] =
            (wefti_rating){(int32_t)(ratings->row[e] - f->first_row), (int32_t)(ratings->column[e] - first), ratings->value[e]};
    }
    memmove(run->start + 1, run->start, (size_t)pairs * sizeof *run->start);
    run->start[0] = 0;
}

/* Fisher and Yates' shuffle, by counter: the pair's number in the whole matrix is its stream. */
static void shuffle(wefti_factor_run *run) {
    const weft_factors *f = run->f;
    for (int64_t p = 0; p < (int64_t)f->own * f->blocks; p++) {
        wefti_rating *list = run->ratings + run->start[p];
        uint64_t      stream = (uint64_t)(p + (int64_t)f->first_block * f->blocks);
        for (int64_t i = run->start[p + 1] - run->start[p] - 1; i > 0; i--) {
            wefti_philox block = wefti_philox_block(run->options->seed ^ UINT64_C(0x7261746564), stream, (uint64_t)i);
            int64_t      j = (int64_t)(((uint64_t)block.word[0] << 32 | block.word[1]) % (uint64_t)(i + 1));
            wefti_rating swap = list[i];
            list[i] = list[j];
            list[j] = swap;
        }
    }
}

/* The weight of one row or column with `n` ratings: at each of them, and in all. */
static void weigh(const wefti_factor_run *run, double n, float *each_out, double *all_out) {
    bool weighted = run->options->weighted;
    *each_out = n == 0 ? 0 : (float)(weighted ? run->l2 : run->l2 / n);
    *all_out = weighted ? run->l2 * n : run->l2;
}

static weft_status weigh_all(wefti_factor_run *run, const weft_ratings *ratings) {
    weft_factors *f = run->f;
    double       *weight = run->row_weight, *columns = weight + f->row_count;
    for (int64_t e = 0; e < run->count; e++) {
        weight[ratings->row[e] - f->first_row]++;
        columns[ratings->column[e]]++;
    }
    WEFTI_TRY(weft_group_allreduce(f->group, columns, columns, (size_t)f->columns, WEFT_F64, WEFT_COMBINE_SUM));
    for (int64_t i = 0; i < f->row_count; i++) weigh(run, weight[i], &run->row_decay[i], &weight[i]);
    for (int64_t i = 0; i < f->columns; i++) weigh(run, columns[i], &run->column_decay[i], &columns[i]);
    return WEFT_OK;
}

/* How large values are: by row block, so that it has the same bits on any number of ranks. */
static weft_status measure(wefti_factor_run *run, double *mean_square_out) {
    const weft_factors *f = run->f;
    double              total[2];
    for (int32_t b = 0; b < f->own; b++) {
        int64_t begin = run->start[(int64_t)b * f->blocks], end = run->start[(int64_t)(b + 1) * f->blocks];
        double  sum = 0;
        for (int64_t e = begin; e < end; e++) sum += (double)run->ratings[e].value * run->ratings[e].value;
        run->errors[2 * b] = sum;
        run->errors[2 * b + 1] = (double)(end - begin);
    }
    WEFTI_TRY(wefti_factor_total(run, total));
    run->total = (int64_t)total[1];
    *mean_square_out = total[1] > 0 ? total[0] / total[1] : 0;
    return WEFT_OK;
}

static weft_status allocate(wefti_factor_run *run) {
    const weft_factors *f = run->f;
    WEFTI_TRY(wefti_alloc((size_t)run->count * sizeof *run->ratings, "ratings in order", &run->ratings));
    WEFTI_TRY(wefti_alloc(((size_t)f->own * (size_t)f->blocks + 1) * sizeof *run->start, "ratings in order", &run->start));
    WEFTI_TRY(wefti_alloc((size_t)f->row_count * sizeof *run->row_decay, "weights of rows", &run->row_decay));
    WEFTI_TRY(wefti_alloc((size_t)f->columns * sizeof *run->column_decay, "weights of columns", &run->column_decay));
    WEFTI_TRY(wefti_alloc((size_t)(f->row_count + f->columns) * sizeof *run->row_weight, "weights of rows and columns", &run->row_weight));
    WEFTI_TRY(wefti_alloc((size_t)f->own * 2 * sizeof *run->errors, "sums of errors", &run->errors));
    return wefti_alloc((size_t)f->blocks * 2 * sizeof *run->sums, "sums of errors", &run->sums);
}

weft_status wefti_factor_lay_out(wefti_factor_run *run, const weft_ratings *ratings, double *mean_square_out) {
    run->count = ratings->count;
    weft_status status = check(run->f, ratings);
    if (status == WEFT_OK) status = allocate(run);
    WEFTI_TRY(wefti_learn_agree(run->f->group, status, "weft_factor_train"));
    sort(run, ratings);
    shuffle(run);
    WEFTI_TRY(weigh_all(run, ratings));
    return measure(run, mean_square_out);
}

void wefti_factor_lay_out_end(wefti_factor_run *run) {
    const weft_factors *f = run->f;
    wefti_free(run->ratings, (size_t)run->count * sizeof *run->ratings);
    wefti_free(run->start, ((size_t)f->own * (size_t)f->blocks + 1) * sizeof *run->start);
    wefti_free(run->row_decay, (size_t)f->row_count * sizeof *run->row_decay);
    wefti_free(run->column_decay, (size_t)f->columns * sizeof *run->column_decay);
    wefti_free(run->row_weight, (size_t)(f->row_count + f->columns) * sizeof *run->row_weight);
    wefti_free(run->errors, (size_t)f->own * 2 * sizeof *run->errors);
    wefti_free(run->sums, (size_t)f->blocks * 2 * sizeof *run->sums);
}

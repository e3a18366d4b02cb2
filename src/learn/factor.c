/* Matrix factorisation: checks, the loop over epochs with its step lengths, and what is left of it afterwards.
 *
 * Step lengths follow the "bold driver" that DSGD uses: a little longer after an epoch that lowered the loss, half as long after one that did not. The loss is
 * that of ratings as they are met, which costs no pass of its own. Stochastic steps come near the minimum quickly and then slowly nearer: measured on a
 * matrix of 90 x 70, within 1 % after 25 epochs, and 0.5 % after 70. Sweeps of coordinate descent (factor_sweep.c) then go all the way. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "learn/factor.h"
#include "weft/batch.h"

enum { RESTARTS = 10, LANES = 8, QUIET = 3, MOST_FACTORS = 4096 };

static weft_status check(const weft_world *world, const weft_ratings *ratings, const weft_factor_options *o, int32_t *blocks_out) {
    int32_t ranks = weft_world_size(world);
    if (!ratings) return wefti_fail(WEFT_E_INVALID, "weft_factor_train: the ratings are NULL");
    if (ratings->rows < 1 || ratings->columns < 1 || ratings->rows > INT32_MAX || ratings->columns > INT32_MAX || ratings->count < 0)
        return wefti_fail(WEFT_E_INVALID, "weft_factor_train: %lld rows, %lld columns, %lld ratings: rows and columns are 1 to 2^31 - 1, ratings 0 or more",
                          (long long)ratings->rows, (long long)ratings->columns, (long long)ratings->count);
    if (ratings->count > 0 && (!ratings->row || !ratings->column || !ratings->value))
        return wefti_fail(WEFT_E_INVALID, "weft_factor_train: %lld ratings, and no %s", (long long)ratings->count,
                          !ratings->row ? "rows" : !ratings->column ? "columns" : "values");
    if (o->factors < 0 || o->factors > MOST_FACTORS || !(o->l2 >= 0 && isfinite(o->l2)) || !(o->rate >= 0 && isfinite(o->rate)) ||
        !isfinite(o->decrease))
        return wefti_fail(WEFT_E_INVALID, "weft_factor_train: factors %d (0 to %d), l2 %g, rate %g, decrease %g: none but decrease may be negative",
                          o->factors, MOST_FACTORS, o->l2, o->rate, o->decrease);
    int64_t most = wefti_min_i64(ratings->rows, ratings->columns);
    *blocks_out = o->blocks ? o->blocks : ranks > 1 && 2 * (int64_t)ranks <= most ? 2 * ranks : ranks;
    if (*blocks_out < ranks || *blocks_out % ranks || *blocks_out > most)
        return wefti_fail(WEFT_E_INVALID, "weft_factor_train: %d blocks for %d ranks, %lld rows and %lld columns: blocks are a multiple of the ranks, and no more "
                          "than rows or columns", *blocks_out, ranks, (long long)ratings->rows, (long long)ratings->columns);
    return WEFT_OK;
}

/* What must be the same everywhere. */
static uint64_t hash_of(const weft_ratings *ratings, const weft_factor_options *o, int32_t blocks) {
    const double numbers[] = {(double)ratings->rows, (double)ratings->columns, o->factors, blocks, (double)o->epochs, (double)o->sweeps, o->l2, o->weighted, o->rate, o->decrease};
    return wefti_hash(wefti_hash(WEFTI_HASH_BEGIN, numbers, sizeof numbers), &o->seed, sizeof o->seed);
}

static void leave_slots(weft_factors *f) {
    wefti_free(f->memory, (size_t)f->slots * (size_t)f->longest * (size_t)f->stride * sizeof(float));
    wefti_free(f->slot, (size_t)f->slots * sizeof *f->slot);
    f->memory = NULL;
    f->slot = NULL;
}

static weft_status allocate(weft_factors *f) {
    size_t stride = (size_t)f->stride * sizeof(float);
    f->slots = f->own + (f->ranks > 1);
    WEFTI_TRY(wefti_alloc((size_t)f->row_count * stride, "factors of rows", &f->row_values));
    WEFTI_TRY(wefti_alloc((size_t)f->slots * sizeof *f->slot, "factors of columns", &f->slot));
    WEFTI_TRY(wefti_alloc((size_t)f->slots * (size_t)f->longest * stride, "factors of columns", &f->memory));
    for (int32_t b = 0; b < f->slots; b++) f->slot[b] = f->memory + (size_t)b * (size_t)f->longest * (size_t)f->stride;
    return WEFT_OK;
}

static weft_status make(weft_world *world, const weft_ratings *ratings, const weft_factor_options *o, weft_factors *f) {
    int32_t blocks = 0;
    f->ranks = weft_world_size(world);
    f->rank = weft_world_rank(world);
    WEFTI_TRY(weft_group_create(world, NULL, &f->group));
    WEFTI_TRY(wefti_learn_agree(f->group, check(world, ratings, o, &blocks), "weft_factor_train"));
    WEFTI_TRY(wefti_learn_compare(f->group, hash_of(ratings, o, blocks), "sizes and options of weft_factor_train"));
    f->blocks = blocks;
    f->own = blocks / f->ranks;
    f->first_block = f->own * f->rank;
    f->factors = o->factors ? o->factors : 16;
    f->stride = (f->factors + LANES - 1) / LANES * LANES;
    f->rows = ratings->rows;
    f->columns = ratings->columns;
    f->longest = (f->columns + blocks - 1) / blocks;
    weft_batch_share(f->rows, f->rank, f->ranks, &f->first_row, &f->row_count);
    return wefti_learn_agree(f->group, allocate(f), "weft_factor_train");
}

/* From blocks to what is at home here, in one piece. */
static weft_status come_home(weft_factors *f) {
    int64_t first, count, at = 0;
    weft_batch_share(f->columns, f->rank, f->ranks, &first, &f->home_count);
    size_t      bytes = (size_t)f->home_count * (size_t)f->stride * sizeof(float);
    weft_status status = wefti_alloc(bytes, "factors of columns", &f->home);
    WEFTI_TRY(wefti_learn_agree(f->group, status, "weft_factor_train"));
    for (int32_t b = 0; b < f->own; b++, at += count) {
        weft_batch_share(f->columns, f->first_block + b, f->blocks, &first, &count);
        memcpy(f->home + at * f->stride, f->slot[b], (size_t)(count * f->stride) * sizeof(float));
    }
    leave_slots(f);
    return WEFT_OK;
}

/* --- epochs --- */

typedef struct driver {
    double  rate, before; /* before: the loss of the epoch before */
    int32_t quiet;        /* epochs in a row that gained next to nothing */
    double  scale;        /* of the start */
} driver;

static void restart(wefti_factor_run *run, driver *d) {
    wefti_factor_draw(run->f, run->options->seed, d->scale);
    d->before = INFINITY;
    d->quiet = 0;
}

static void note(wefti_factor_run *run, double squares, double norms) {
    run->report.loss = 0.5 * (squares + norms);
    run->report.error = run->total > 0 ? sqrt(squares / (double)run->total) : 0;
}

/* Whether there was next to nothing to be gained, a few times in a row. */
static bool is_over(wefti_factor_run *run, driver *d, double *gain_out) {
    double loss = run->report.loss, least = run->options->decrease != 0 ? run->options->decrease : 1e-7;
    *gain_out = d->before - loss;
    d->quiet = least > 0 && *gain_out < least * loss ? d->quiet + 1 : 0;
    d->before = loss;
    return d->quiet >= QUIET;
}

static weft_status tell(wefti_factor_run *run) {
    const weft_factor_options *o = run->options;
    return wefti_learn_agree(run->f->group, o->progress ? o->progress(o->progress_context, &run->report) : WEFT_OK, "progress of weft_factor_train");
}

static weft_status descend(wefti_factor_run *run, driver *d) {
    int64_t most = run->options->epochs ? run->options->epochs : 30;
    double  squares, norms, gain;
    restart(run, d);
    while (run->report.epoch < most) {
        run->report.rate = d->rate;
        WEFTI_TRY(wefti_factor_pass(run, (float)d->rate, &squares, &norms));
        if (!isfinite(squares + norms)) {
            if (++run->report.restarts > RESTARTS)
                return wefti_fail(WEFT_E_NAN, "weft_factor_train: the loss is not finite even with steps of %g: scale the values down, or set rate", d->rate);
            d->rate *= 0.25;
            run->report.epoch = 0;
            restart(run, d);
            continue;
        }
        note(run, squares, norms);
        run->report.epoch++;
        WEFTI_TRY(tell(run));
        if (is_over(run, d, &gain)) break;
        d->rate *= gain < 0 || d->quiet ? 0.5 : 1.05;
    }
    return WEFT_OK;
}

static weft_status sweep(wefti_factor_run *run, driver *d) {
    int64_t most = run->options->sweeps ? run->options->sweeps : 100;
    double  squares, norms, gain;
    if (most < 0) return WEFT_OK;
    d->before = INFINITY;
    d->quiet = 0;
    WEFTI_TRY(wefti_factor_sweep_begin(run));
    while (run->report.sweep < most) {
        WEFTI_TRY(wefti_factor_sweep(run, &squares, &norms));
        note(run, squares, norms);
        run->report.sweep++;
        WEFTI_TRY(tell(run));
        if (is_over(run, d, &gain)) break;
    }
    return WEFT_OK;
}

static weft_status optimise(wefti_factor_run *run, driver *d) {
    double      squares, norms;
    weft_status status = descend(run, d);
    if (status == WEFT_OK) status = sweep(run, d);
    wefti_factor_sweep_end(run);
    if (status != WEFT_END) WEFTI_TRY(status);
    WEFTI_TRY(wefti_factor_pass(run, 0, &squares, &norms)); /* exactly */
    note(run, squares, norms);
    return WEFT_OK;
}

static weft_status train(wefti_factor_run *run, const weft_ratings *ratings) {
    double mean_square;
    run->l2 = run->options->l2;
    WEFTI_TRY(wefti_factor_lay_out(run, ratings, &mean_square));
    double size = mean_square > 0 ? sqrt(mean_square) : 1;
    /* Products of the start are a tenth of the values; at a rating, steps contract as long as rate*|h|^2 < 2, and |h|^2 is about `size`. */
    driver d = {.rate = run->options->rate > 0 ? run->options->rate : 0.05 / size, .scale = sqrt(0.1 * size / sqrt((double)run->f->factors))};
    return optimise(run, &d);
}

weft_status weft_factor_train(weft_world *world, const weft_ratings *ratings, const weft_factor_options *options, weft_factors **factors_out,
                              weft_factor_report *report_out) {
    static const weft_factor_options none;
    wefti_factor_run run = {.options = options ? options : &none};
    if (!factors_out) return wefti_fail(WEFT_E_INVALID, "weft_factor_train: no place for the factors");
    *factors_out = NULL;
    if (!world) return wefti_fail(WEFT_E_INVALID, "weft_factor_train: the world is NULL");
    weft_factors *f = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *f, "factors", &f));
    weft_status status = make(world, ratings, run.options, f);
    run.f = f;
    if (status == WEFT_OK) {
        status = train(&run, ratings);
        wefti_factor_lay_out_end(&run);
        if (status == WEFT_OK) status = come_home(f);
    }
    if (report_out) *report_out = run.report;
    if (status != WEFT_OK) {
        weft_factors_release(f);
        return status;
    }
    *factors_out = f;
    return WEFT_OK;
}

/* --- afterwards --- */

void weft_factors_release(weft_factors *f) {
    if (!f) return;
    size_t stride = (size_t)f->stride * sizeof(float);
    weft_group_release(f->group);
    leave_slots(f);
    wefti_free(f->row_values, (size_t)f->row_count * stride);
    wefti_free(f->home, (size_t)f->home_count * stride);
    wefti_free(f, sizeof *f);
}

weft_factors_view weft_factors_rows(const weft_factors *f) {
    return (weft_factors_view){f->first_row, f->row_count, f->factors, f->stride, f->row_values};
}

weft_factors_view weft_factors_columns(const weft_factors *f) {
    int64_t first, count;
    weft_batch_share(f->columns, f->rank, f->ranks, &first, &count);
    return (weft_factors_view){first, count, f->factors, f->stride, f->home};
}

weft_status weft_factors_gather_columns(weft_factors *f, float *columns_out) {
    if (!f) return wefti_fail(WEFT_E_INVALID, "weft_factors_gather_columns: the factors are NULL");
    size_t     *counts = NULL, bytes = (size_t)f->ranks * sizeof *counts, row = (size_t)f->factors * sizeof(float);
    int64_t     first, count;
    weft_status status = columns_out ? wefti_alloc(bytes, "counts of columns", &counts) : wefti_fail(WEFT_E_INVALID, "weft_factors_gather_columns: no place for them");
    WEFTI_TRY_GOTO(wefti_learn_agree(f->group, status, "weft_factors_gather_columns"), done);
    for (int32_t r = 0; r < f->ranks; r++) {
        weft_batch_share(f->columns, r, f->ranks, &first, &count);
        counts[r] = (size_t)(count * f->factors);
    }
    weft_batch_share(f->columns, f->rank, f->ranks, &first, &count);
    float *own = columns_out + first * f->factors;
    for (int64_t i = 0; i < count; i++) memcpy(own + i * f->factors, f->home + i * f->stride, row);
    status = weft_group_allgatherv(f->group, own, columns_out, counts, WEFT_F32);
done:
    wefti_free(counts, bytes);
    return status;
}

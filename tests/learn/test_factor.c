/* Matrix factorisation against alternating least squares in f64, which is written here on plain arrays: both minimise the same objective exactly, by other
 * means, so the two must meet. Then bits over ranks, bytes, refusals, and a death. */
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "learn/learning.h"
#include "weft/batch.h"

enum { ROWS = 90, COLUMNS = 70, PLANTED = 3, FACTORS = 3, MOST = ROWS * COLUMNS };

static int    n_ratings;
static int    row_of[MOST], column_of[MOST];
static double value_of[MOST];

/* A third of a matrix of rank 3, with noise. */
static void make_ratings(void) {
    n_ratings = 0;
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLUMNS; j++) {
            if (learn_noise((uint64_t)(i * COLUMNS + j)) > -0.3) continue;
            double value = 0.1 * learn_noise((uint64_t)(i * COLUMNS + j + 1000000));
            for (int k = 0; k < PLANTED; k++) value += 2 * learn_noise((uint64_t)(i * 7 + k + 2000000)) * learn_noise((uint64_t)(j * 7 + k + 3000000));
            row_of[n_ratings] = i;
            column_of[n_ratings] = j;
            value_of[n_ratings++] = (float)value;
        }
}

/* --- the oracle --- */

typedef struct oracle {
    double w[ROWS][FACTORS], h[COLUMNS][FACTORS];
    double l2;
    bool   weighted;
} oracle;

/* Solves a x = b, a symmetric and positive definite, in place. */
static void solve(double a[FACTORS][FACTORS], double b[FACTORS]) {
    for (int k = 0; k < FACTORS; k++)
        for (int i = k + 1; i < FACTORS; i++) {
            double by = a[i][k] / a[k][k];
            for (int j = k; j < FACTORS; j++) a[i][j] -= by * a[k][j];
            b[i] -= by * b[k];
        }
    for (int k = FACTORS - 1; k >= 0; k--) {
        for (int j = k + 1; j < FACTORS; j++) b[k] -= a[k][j] * b[j];
        b[k] /= a[k][k];
    }
}

/* Exact factors of one side, the other's being given. */
static void solve_side(double (*mine)[FACTORS], double (*other)[FACTORS], int count, const int *mine_of, const int *other_of, const oracle *o) {
    for (int i = 0; i < count; i++) {
        double a[FACTORS][FACTORS] = {{0}}, b[FACTORS] = {0};
        int    met = 0;
        for (int e = 0; e < n_ratings; e++) {
            if (mine_of[e] != i) continue;
            met++;
            for (int k = 0; k < FACTORS; k++) {
                b[k] += value_of[e] * other[other_of[e]][k];
                for (int l = 0; l < FACTORS; l++) a[k][l] += other[other_of[e]][k] * other[other_of[e]][l];
            }
        }
        for (int k = 0; k < FACTORS; k++) a[k][k] += o->weighted ? o->l2 * met : o->l2;
        solve(a, b);
        memcpy(mine[i], b, sizeof b);
    }
}

static double objective(const oracle *o) {
    double sum = 0, rows[ROWS] = {0}, columns[COLUMNS] = {0};
    for (int e = 0; e < n_ratings; e++) {
        double error = value_of[e];
        for (int k = 0; k < FACTORS; k++) error -= o->w[row_of[e]][k] * o->h[column_of[e]][k];
        sum += error * error;
        rows[row_of[e]]++;
        columns[column_of[e]]++;
    }
    for (int i = 0; i < ROWS; i++)
        for (int k = 0; k < FACTORS; k++) sum += o->l2 * (o->weighted ? rows[i] : 1) * o->w[i][k] * o->w[i][k];
    for (int i = 0; i < COLUMNS; i++)
        for (int k = 0; k < FACTORS; k++) sum += o->l2 * (o->weighted ? columns[i] : 1) * o->h[i][k] * o->h[i][k];
    return sum / 2;
}

static double least(double l2, bool weighted) {
    oracle *o = calloc(1, sizeof *o);
    double  before = INFINITY, now = 0;
    o->l2 = l2;
    o->weighted = weighted;
    for (int i = 0; i < COLUMNS; i++)
        for (int k = 0; k < FACTORS; k++) o->h[i][k] = learn_noise((uint64_t)(i * FACTORS + k + 5000000));
    for (int times = 0; times < 20000 && !(before - now < 1e-13 * before); times++) {
        if (times) before = now;
        solve_side(o->w, o->h, ROWS, row_of, column_of, o);
        solve_side(o->h, o->w, COLUMNS, column_of, row_of, o);
        now = objective(o);
    }
    free(o);
    return now;
}

/* --- ranks --- */

typedef struct outcome {
    weft_factor_report report[RANKS_MOST];
    float              rows[ROWS][FACTORS], columns[COLUMNS][FACTORS], gathered[RANKS_MOST][COLUMNS][FACTORS];
    int                killed;
} outcome;
static outcome            *out;
static weft_factor_options how;
static int                 stop_at, kill_at, odd_rank; /* 0, 0, -1: not */

static void setup(void) {
    out = learn_share(sizeof *out);
    make_ratings();
    how = (weft_factor_options){.factors = FACTORS, .l2 = 0.5, .sweeps = 4000, .decrease = 1e-10, .seed = 5};
    stop_at = kill_at = 0;
    odd_rank = -1;
}
TestSuite(factor, .init = setup);

static int32_t my_rank;
static weft_status see(void *context, const weft_factor_report *report) {
    (void)context;
    if (kill_at && my_rank == 1 && report->epoch == kill_at) raise(SIGKILL);
    return stop_at && my_rank == 1 && report->epoch == stop_at ? WEFT_END : WEFT_OK;
}

/* This rank's ratings. */
static int choose(weft_world *world, int32_t *row, int32_t *column, float *value) {
    int64_t first, count;
    int     n = 0;
    weft_batch_share(ROWS, weft_world_rank(world), weft_world_size(world), &first, &count);
    for (int e = 0; e < n_ratings; e++) {
        if (row_of[e] < first || row_of[e] >= first + count) continue;
        row[n] = row_of[e];
        column[n] = column_of[e];
        value[n++] = (float)value_of[e];
    }
    return n;
}

static void keep(weft_factors *f) {
    weft_factors_view rows = weft_factors_rows(f), columns = weft_factors_columns(f);
    for (int64_t i = 0; i < rows.count; i++) memcpy(out->rows[rows.first + i], rows.values + i * rows.stride, sizeof out->rows[0]);
    for (int64_t i = 0; i < columns.count; i++) memcpy(out->columns[columns.first + i], columns.values + i * columns.stride, sizeof out->columns[0]);
}

static weft_status train(weft_world *world) {
    static int32_t row[MOST], column[MOST];
    static float   value[MOST];
    my_rank = weft_world_rank(world);
    weft_ratings        ratings = {ROWS, COLUMNS, choose(world, row, column, value), row, column, value};
    weft_factor_options options = how;
    weft_factors       *f = NULL;
    options.progress = see;
    if (odd_rank == my_rank) {
        if (how.rate == 1) options.l2 = 7;
        else if (how.rate == 2) value[3] = NAN;
        else row[0] = my_rank ? 0 : ROWS - 1;
    }
    WEFTI_TRY(weft_factor_train(world, &ratings, &options, &f, &out->report[my_rank]));
    keep(f);
    weft_status status = weft_factors_gather_columns(f, out->gathered[my_rank][0]);
    weft_factors_release(f);
    return status;
}

static void expect_optimum(const char *wire, int32_t size, double wanted) {
    memset(out, 0, sizeof *out);
    learn_on(wire, size, train);
    for (int32_t r = 0; r < size; r++) {
        double off = out->report[r].loss / wanted - 1;
        cr_expect(fabs(off) < 1e-6, "%s, rank %d of %d: %.9g after %d epochs and %d sweeps, the optimum is %.9g: off by %.2g", wire, (int)r, (int)size, out->report[r].loss,
                  (int)out->report[r].epoch, (int)out->report[r].sweep, wanted, off);
    }
}

Test(factor, reaches_the_optimum_of_alternating_least_squares) {
    double wanted = least(how.l2, false);
    expect_optimum("shm", 1, wanted);
    expect_optimum("shm", 2, wanted);
    expect_optimum("tcp", 4, wanted);
}

Test(factor, reaches_the_optimum_with_weights_by_count) {
    how.weighted = true;
    how.l2 = 0.03;
    expect_optimum("shm", 2, least(how.l2, true));
}

Test(factor, any_number_of_ranks_gives_the_same_bits) {
    how.blocks = 4;
    how.epochs = 20;
    how.sweeps = 10;
    outcome *first = malloc(sizeof *first);
    for (int size = 1; size <= 4; size *= 2) {
        learn_on(size == 4 ? "tcp" : "shm", size, train);
        if (size == 1) *first = *out;
        cr_expect(memcmp(first->rows, out->rows, sizeof out->rows) == 0, "rows differ with %d ranks", size);
        cr_expect(memcmp(first->columns, out->columns, sizeof out->columns) == 0, "columns differ with %d ranks", size);
        cr_expect(first->report[0].loss == out->report[0].loss && first->report[0].rate == out->report[0].rate);
        for (int r = 0; r < size; r++) cr_expect(memcmp(out->gathered[r], out->columns, sizeof out->columns) == 0, "rank %d of %d gathered others", r, size);
    }
    free(first);
}

Test(factor, an_epoch_moves_each_columns_factors_once_a_rank) {
    how.blocks = 4;
    how.epochs = 3;
    how.sweeps = -1;
    how.decrease = -1;
    learn_on("shm", 2, train);
    uint64_t row = 8 * sizeof(float), passes = 3 + 1, sent = 0; /* a pass more says what the loss is */
    for (int r = 0; r < 2; r++) sent += out->report[r].sent_bytes;
    cr_expect(sent == passes * COLUMNS * row * 2, "%llu bytes, not %llu", (unsigned long long)sent, (unsigned long long)(passes * COLUMNS * row * 2));
}

Test(factor, a_steep_start_is_begun_again_with_shorter_steps) {
    how.rate = 50;
    how.epochs = 100;
    how.sweeps = -1;
    learn_on("shm", 2, train);
    cr_expect(out->report[0].restarts > 0 && isfinite(out->report[0].loss) && out->report[0].error < 0.5, "%d restarts, loss %g, error %g",
              (int)out->report[0].restarts, out->report[0].loss, out->report[0].error);
}

Test(factor, any_rank_ends_the_run) {
    stop_at = 3;
    learn_on("shm", 3, train);
    for (int r = 0; r < 3; r++) cr_expect(out->report[r].epoch == 3);
}

/* --- refusals --- */

static void expect_refusal(int32_t count, weft_status wanted, const char *what) {
    ranks *all = learn_and_see("shm", count, train);
    for (int r = 0; r < count; r++)
        cr_expect(all->results[r].status == wanted && ((odd_rank >= 0 && r != odd_rank) || strstr(all->results[r].message, what)), "rank %d: %s: %s", r,
                  weft_status_name(all->results[r].status), all->results[r].message);
    ranks_free(all);
}

Test(factor, refuses_a_rating_of_another_ranks_rows_on_all_ranks) {
    odd_rank = 1;
    expect_refusal(2, WEFT_E_SHAPE, "rating 0 is of row 0; this rank of 2 has rows 45 to 89");
}
Test(factor, refuses_options_that_differ) {
    odd_rank = 1;
    how.rate = 1;
    expect_refusal(2, WEFT_E_MISMATCH, "differ between ranks");
}
Test(factor, refuses_a_value_that_is_not_finite) {
    odd_rank = 0;
    how.rate = 2;
    expect_refusal(2, WEFT_E_NAN, "rating 3, of row 0");
}
Test(factor, refuses_blocks_that_ranks_do_not_divide) {
    how.blocks = 3;
    expect_refusal(2, WEFT_E_INVALID, "3 blocks for 2 ranks");
}
Test(factor, refuses_more_blocks_than_columns) {
    how.blocks = 80;
    expect_refusal(2, WEFT_E_INVALID, "no more than rows or columns");
}

Test(factor, a_killed_rank_ends_the_others) {
    kill_at = 5;
    how.decrease = -1;
    ranks *all = learn_and_see("shm", 3, train);
    for (int r = 0; r < 3; r++) {
        if (r == 1) continue;
        cr_expect(all->results[r].finished && all->results[r].status == WEFT_E_PEER && strstr(all->results[r].message, "rank 1 failed"), "rank %d: %s", r, all->results[r].message);
    }
    ranks_free(all);
}

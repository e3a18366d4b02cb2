/* Coordinate descent against plain cyclic coordinate descent in f64, which is written here for dense data with its optimality checked by subgradients. Then what
 * scheduling is for: strongly coupled columns, work that falls with ranks; refusals, and a death. */
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "learn/learning.h"

enum { ROWS = 160, COLUMNS = 240, MOST = ROWS * COLUMNS, ALIKE = 6 /* columns of a group of near copies */ };

static double  dense[COLUMNS][ROWS];
static int64_t start[COLUMNS + 1];
static int32_t row[MOST];
static float   value[MOST], label[ROWS], weight[ROWS];
static weft_columns data = {ROWS, COLUMNS, start, row, value};

/* `alike`: every column is near to ALIKE - 1 others; else columns are as they fall. */
static void make_data(bool alike, bool classes) {
    for (int j = 0; j < COLUMNS; j++) {
        start[j + 1] = start[j];
        for (int i = 0; i < ROWS; i++) {
            int    kind = alike ? j / ALIKE : j;
            double x = learn_noise((uint64_t)(kind * ROWS + i));
            if (fabs(x) > 0.5) x = 0;
            else if (alike) x += 0.03 * learn_noise((uint64_t)(j * ROWS + i + 9000000));
            dense[j][i] = (float)x;
            if (dense[j][i] == 0) continue;
            row[start[j + 1]] = i;
            value[start[j + 1]++] = (float)x;
        }
    }
    for (int i = 0; i < ROWS; i++) {
        double y = 0.5 + 0.05 * learn_noise((uint64_t)i + 7000000);
        for (int j = 0; j < COLUMNS; j += 11) y += 2 * learn_noise((uint64_t)j + 8000000) * dense[j][i];
        label[i] = (float)(classes ? (y + 0.3 * learn_noise((uint64_t)i + 6000000) > 0.5 ? 1 : -1) : y);
        weight[i] = (float)(1 + 0.5 * learn_noise((uint64_t)i + 5000000));
    }
}

/* --- the oracle --- */

static double loss_at(const weft_coordinate_problem *p, int i, double m, double *first_out, double *second_out) {
    double y = p->label[i], a = (p->weight ? p->weight[i] : 1) / (double)ROWS;
    if (p->loss == WEFT_COORDINATE_SQUARED) {
        *first_out = a * (m - y);
        *second_out = a;
        return a * 0.5 * (m - y) * (m - y);
    }
    double s = y > 0 ? 1 : -1, q = 1 / (1 + exp(s * m));
    *first_out = -a * s * q;
    *second_out = a * 0.25; /* a bound: steps never go too far */
    return a * (s * m > 0 ? log1p(exp(-s * m)) : log1p(exp(s * m)) - s * m);
}

static double least(const weft_coordinate_problem *p) {
    static double w[COLUMNS + 1], m[ROWS];
    double        worst = 1, objective = 0, first, second;
    memset(w, 0, sizeof w);
    memset(m, 0, sizeof m);
    for (int times = 0; times < 200000 && worst > 1e-10; times++) {
        worst = 0;
        for (int j = 0; j <= COLUMNS; j++) {
            bool   free = j == COLUMNS;
            double l1 = free ? 0 : p->l1, l2 = free ? 0 : p->l2, g = l2 * w[j], h = l2;
            for (int i = 0; i < ROWS; i++) {
                double x = free ? 1 : dense[j][i];
                (void)loss_at(p, i, m[i], &first, &second);
                g += first * x;
                h += second * x * x;
            }
            worst = fmax(worst, w[j] != 0 ? fabs(g + (w[j] > 0 ? l1 : -l1)) : fmax(fabs(g) - l1, 0));
            double to = h * w[j] - g, next = to > l1 ? (to - l1) / h : to < -l1 ? (to + l1) / h : 0;
            for (int i = 0; i < ROWS && next != w[j]; i++) m[i] += (next - w[j]) * (free ? 1 : dense[j][i]);
            w[j] = next;
        }
    }
    for (int i = 0; i < ROWS; i++) objective += loss_at(p, i, m[i], &first, &second);
    for (int j = 0; j < COLUMNS; j++) objective += p->l1 * fabs(w[j]) + 0.5 * p->l2 * w[j] * w[j];
    cr_assert(worst <= 1e-10, "the oracle is off by %g", worst);
    return objective;
}

static double objective_of(const weft_coordinate_problem *p, const double *w, double b) {
    double objective = 0, first, second;
    for (int i = 0; i < ROWS; i++) {
        double m = b;
        for (int j = 0; j < COLUMNS; j++) m += w[j] * dense[j][i];
        objective += loss_at(p, i, m, &first, &second);
    }
    for (int j = 0; j < COLUMNS; j++) objective += p->l1 * fabs(w[j]) + 0.5 * p->l2 * w[j] * w[j];
    return objective;
}

/* --- ranks --- */

typedef struct outcome {
    weft_coordinate_report report[RANKS_MOST];
    double                 w[RANKS_MOST][COLUMNS], b[RANKS_MOST];
} outcome;
static outcome                *out;
static weft_coordinate_problem problem;
static weft_coordinate_options how;
static int                     kill_at, stop_at, odd_rank;

static void setup(void) {
    out = learn_share(sizeof *out);
    problem = (weft_coordinate_problem){.data = &data, .label = label, .l1 = 0.002};
    how = (weft_coordinate_options){.tolerance = 1e-7, .block = 6};
    kill_at = stop_at = 0;
    odd_rank = -1;
    make_data(false, false);
}
TestSuite(coordinate, .init = setup);

static int32_t my_rank;
static weft_status see(void *context, const weft_coordinate_report *report) {
    (void)context;
    if (kill_at && my_rank == 1 && report->outer >= kill_at) raise(SIGKILL);
    return stop_at && my_rank == 1 && report->outer >= stop_at ? WEFT_END : WEFT_OK;
}

static weft_status minimise(weft_world *world) {
    weft_coordinate_options options = how;
    weft_coordinate_problem mine = problem;
    my_rank = weft_world_rank(world);
    options.progress = see;
    if (odd_rank == my_rank) {
        if (how.passes == 77) mine.l1 = 5;
        else if (how.passes == 78) value[2] = INFINITY;
        else row[1] = row[0];
    }
    return weft_coordinate_minimise(world, &mine, &options, out->w[my_rank], &out->b[my_rank], &out->report[my_rank]);
}

static void expect_optimum(const char *wire, int32_t count, double wanted) {
    memset(out, 0, sizeof *out);
    learn_on(wire, count, minimise);
    for (int32_t r = 0; r < count; r++) {
        double off = objective_of(&problem, out->w[r], out->b[r]) / wanted - 1, told = out->report[r].objective / wanted - 1;
        cr_expect(fabs(off) < 1e-6 && fabs(told) < 1e-6, "%s, rank %d of %d: off by %.2g, told %.2g, after %d passes, %d rounds, violation %.2g", wire, (int)r, (int)count,
                  off, told, (int)out->report[r].pass, (int)out->report[r].rounds, out->report[r].violation);
        cr_expect(memcmp(out->w[r], out->w[0], sizeof out->w[0]) == 0 && out->b[r] == out->b[0], "rank %d of %d has other weights than rank 0", (int)r, (int)count);
    }
}

Test(coordinate, lasso_reaches_the_serial_optimum) {
    double wanted = least(&problem);
    expect_optimum("shm", 1, wanted);
    expect_optimum("shm", 2, wanted);
    expect_optimum("tcp", 4, wanted);
    cr_expect(out->report[0].nonzero > 5 && out->report[0].nonzero < COLUMNS / 2);
}

Test(coordinate, weighted_elastic_net_reaches_the_serial_optimum) {
    problem.l2 = 0.01;
    problem.weight = weight;
    double wanted = least(&problem);
    expect_optimum("shm", 1, wanted);
    expect_optimum("shm", 3, wanted);
}

Test(coordinate, logistic_regression_reaches_the_serial_optimum) {
    make_data(false, true);
    problem.loss = WEFT_COORDINATE_LOGISTIC;
    problem.l1 = 0.004;
    problem.l2 = 0.001;
    double wanted = least(&problem);
    expect_optimum("shm", 1, wanted);
    expect_optimum("shm", 2, wanted);
    expect_optimum("tcp", 4, wanted);
}

Test(coordinate, alike_columns_reach_the_serial_optimum_however_they_are_scheduled) {
    make_data(true, false);
    problem.l1 = 0.0005;
    problem.l2 = 0.02;
    double wanted = least(&problem);
    how.block = 24;
    expect_optimum("shm", 4, wanted);
    cr_expect(out->report[0].coupling <= 0.4 && out->report[0].deferred > 0, "coupling %g, deferred %d", out->report[0].coupling, (int)out->report[0].deferred);
    int64_t taken_back = out->report[0].taken_back;
    how.coupling = 1;
    expect_optimum("shm", 4, wanted);
    cr_expect(out->report[0].taken_back > taken_back, "sweeps taken back: %d scheduled, %d as they come", (int)taken_back, (int)out->report[0].taken_back);
}

Test(coordinate, a_ranks_work_falls_with_the_number_of_ranks) {
    int64_t entries[5] = {0};
    for (int count = 1; count <= 4; count *= 2) {
        memset(out, 0, sizeof *out);
        learn_on("shm", count, minimise);
        for (int r = 0; r < count; r++) entries[count] = entries[count] > out->report[r].entries ? entries[count] : out->report[r].entries;
    }
    cr_expect((double)entries[2] < 0.7 * (double)entries[1] && (double)entries[4] < 0.45 * (double)entries[1], "entries of the busiest rank: %d, %d, %d", (int)entries[1],
              (int)entries[2], (int)entries[4]);
}

Test(coordinate, goes_on_from_weights_that_it_is_given) {
    learn_on("shm", 2, minimise);
    int64_t passes = out->report[0].pass;
    learn_on("shm", 2, minimise); /* from where the first run ended */
    cr_expect(passes > 3 && out->report[0].pass == 1, "%d passes, then %d", (int)passes, (int)out->report[0].pass);
}

Test(coordinate, any_rank_ends_the_run) {
    make_data(false, true);
    problem.loss = WEFT_COORDINATE_LOGISTIC;
    stop_at = 2;
    learn_on("shm", 3, minimise);
    for (int r = 0; r < 3; r++) cr_expect(out->report[r].outer == 2);
}

/* --- refusals --- */

static void expect_refusal(int32_t count, weft_status wanted, const char *what) {
    ranks *all = learn_and_see("shm", count, minimise);
    for (int r = 0; r < count; r++)
        cr_expect(all->results[r].status == wanted && ((odd_rank >= 0 && r != odd_rank) || strstr(all->results[r].message, what)), "rank %d: %s: %s", r,
                  weft_status_name(all->results[r].status), all->results[r].message);
    ranks_free(all);
}

Test(coordinate, refuses_rows_out_of_order_on_all_ranks) {
    odd_rank = 1;
    expect_refusal(2, WEFT_E_SHAPE, "entry 1, of column 0, is of row");
}
Test(coordinate, refuses_problems_that_differ) {
    odd_rank = 1;
    how.passes = 77;
    expect_refusal(2, WEFT_E_MISMATCH, "differ between ranks");
}
Test(coordinate, refuses_a_value_that_is_not_finite) {
    odd_rank = 0;
    how.passes = 78;
    expect_refusal(2, WEFT_E_NAN, "entry 2, of column 0");
}
Test(coordinate, refuses_a_negative_penalty) {
    problem.l1 = -1;
    expect_refusal(2, WEFT_E_INVALID, "l1 -1");
}

Test(coordinate, a_killed_rank_ends_the_others) {
    make_data(false, true);
    problem.loss = WEFT_COORDINATE_LOGISTIC;
    kill_at = 2;
    ranks *all = learn_and_see("shm", 3, minimise);
    for (int r = 0; r < 3; r++)
        cr_expect(r == 1 || (all->results[r].finished && all->results[r].status == WEFT_E_PEER && strstr(all->results[r].message, "rank 1 failed")), "rank %d: %s", r,
                  all->results[r].message);
    ranks_free(all);
}

/* Solvers on problems whose optimum is known otherwise: least squares by its normal equations, logistic regression with
 * L1 by a long run of a proximal method written here, group lasso by its optimality conditions. All in f64, one rank. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "weft.h"

enum { ROWS = 60, COLUMNS = 6 };

typedef struct problem {
    double  x[ROWS][COLUMNS], y[ROWS][1];
    double  target[ROWS][1]; /* 0 or 1 */
} problem;

static void make_problem(problem *p) {
    uint32_t state = 99;
    for (int i = 0; i < ROWS; i++) {
        double sum = 0.5;
        for (int k = 0; k < COLUMNS; k++) {
            state = state * 1664525u + 1013904223u;
            p->x[i][k] = (double)(state >> 8) / 8388608.0 - 1;
            sum += p->x[i][k] * (k % 2 ? 0.1 : 1.0 + k);
        }
        state = state * 1664525u + 1013904223u;
        p->y[i][0] = sum + 0.2 * ((double)(state >> 8) / 8388608.0 - 1);
        p->target[i][0] = p->y[i][0] > 0.5;
    }
}

typedef enum loss_kind { SQUARES, LOGISTIC } loss_kind;

/* Trains `steps` full-batch steps and gives the weights; returns the last reported loss. */
static double solve(loss_kind kind, weft_solver solver, weft_regulariser regulariser, int steps, double *w_out) {
    problem p;
    make_problem(&p);
    weft_world   *world = NULL;
    weft_graph   *graph = NULL;
    weft_trainer *trainer = NULL;
    weft_report   report = {0};
    cr_assert_eq(weft_world_create(&(weft_world_options){.size = 1}, &world), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_graph_create(NULL, &graph), WEFT_OK);
    weft_tensor *x = weft_input(graph, "x", WEFT_F64, weft_shape(ROWS, COLUMNS));
    weft_tensor *y = weft_input(graph, "y", WEFT_F64, weft_shape(ROWS, 1));
    weft_tensor *w = weft_parameter(graph, "w", weft_shape(COLUMNS, 1), .dtype = WEFT_F64, .init = weft_init_zeros());
    weft_tensor *guess = weft_matmul(x, w);
    weft_tensor *loss = kind == SQUARES ? weft_mul_scalar(weft_mse(guess, y), 0.5) : weft_bce_with_logits(guess, y);
    weft_program program = {.loss = loss, .solver = solver, .regulariser = regulariser};
    cr_assert_eq(weft_trainer_create(world, &program, &trainer), WEFT_OK, "%s", weft_error_message());
    weft_batch batch = {.field_count = 2, .global_rows = ROWS, .local_rows = ROWS};
    batch.field[0] = (weft_batch_field){"x", WEFT_F64, weft_shape(ROWS, COLUMNS), p.x};
    batch.field[1] = (weft_batch_field){"y", WEFT_F64, weft_shape(ROWS, 1), kind == SQUARES ? p.y : p.target};
    for (int i = 0; i < steps; i++) cr_assert_eq(weft_trainer_step(trainer, &batch, &report), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_variables_get(weft_trainer_variables(trainer), "w", w_out, sizeof(double) * COLUMNS), WEFT_OK);
    weft_trainer_release(trainer);
    weft_graph_release(graph);
    weft_world_release(world);
    return report.loss;
}

/* (XᵀX/n + l2·I) w = Xᵀy/n by Gaussian elimination. */
static void normal_equations(double l2, double *w) {
    problem p;
    double  a[COLUMNS][COLUMNS + 1] = {{0}};
    make_problem(&p);
    for (int i = 0; i < ROWS; i++)
        for (int r = 0; r < COLUMNS; r++) {
            for (int c = 0; c < COLUMNS; c++) a[r][c] += p.x[i][r] * p.x[i][c] / ROWS;
            a[r][COLUMNS] += p.x[i][r] * p.y[i][0] / ROWS;
        }
    for (int r = 0; r < COLUMNS; r++) a[r][r] += l2;
    for (int k = 0; k < COLUMNS; k++)
        for (int r = 0; r < COLUMNS; r++) {
            if (r == k) continue;
            double factor = a[r][k] / a[k][k];
            for (int c = k; c <= COLUMNS; c++) a[r][c] -= factor * a[k][c];
        }
    for (int r = 0; r < COLUMNS; r++) w[r] = a[r][COLUMNS] / a[r][r];
}

static void close_to(const double *w, const double *expected, double tolerance, const char *what) {
    for (int k = 0; k < COLUMNS; k++)
        cr_assert_float_eq(w[k], expected[k], tolerance, "%s: w[%d] is %.12g, not %.12g", what, k, w[k], expected[k]);
}

Test(convergence, least_squares_by_every_solver) {
    double w[COLUMNS], expected[COLUMNS];
    normal_equations(0.05, expected);
    struct { const char *name; weft_solver solver; int steps; double tolerance; } runs[] = {
        {"sgd", weft_sgd(0.8), 3000, 1e-9},
        {"momentum", weft_sgd(0.3, .momentum = 0.8), 1500, 1e-9},
        {"nesterov", weft_sgd(0.3, .momentum = 0.8, .nesterov = true), 1500, 1e-9},
        {"adagrad", weft_adagrad(1.0), 3000, 1e-6},
        {"adam, decaying", weft_adam(0.2, .schedule = {.kind = WEFT_COSINE, .steps = 3000}), 3000, 1e-4},
        {"rmsprop, decaying", weft_rmsprop(0.05, .schedule = {.kind = WEFT_COSINE, .steps = 3000}), 3000, 1e-3},
        {"l-bfgs", weft_lbfgs(1), 30, 1e-9},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        solve(SQUARES, runs[i].solver, weft_l2(0.05), runs[i].steps, w);
        close_to(w, expected, runs[i].tolerance, runs[i].name);
    }
}

Test(convergence, lbfgs_needs_few_steps) {
    double w[COLUMNS], expected[COLUMNS];
    normal_equations(0, expected);
    solve(SQUARES, weft_lbfgs(1), weft_l2(0), 12, w);
    close_to(w, expected, 1e-6, "12 steps");
}

/* Proximal gradient with a tiny step, many steps: slow and plain. */
static void long_reference(double l1, double l2, double *w) {
    problem p;
    make_problem(&p);
    memset(w, 0, sizeof(double) * COLUMNS);
    for (int step = 0; step < 60000; step++) {
        double g[COLUMNS] = {0};
        for (int i = 0; i < ROWS; i++) {
            double z = 0;
            for (int k = 0; k < COLUMNS; k++) z += p.x[i][k] * w[k];
            double d = 1 / (1 + exp(-z)) - p.target[i][0];
            for (int k = 0; k < COLUMNS; k++) g[k] += d * p.x[i][k] / ROWS;
        }
        for (int k = 0; k < COLUMNS; k++) {
            double v = w[k] - 0.5 * (g[k] + l2 * w[k]), size = fabs(v) - 0.5 * l1;
            w[k] = size <= 0 ? 0 : copysign(size, v);
        }
    }
}

Test(convergence, logistic_regression_with_l1) {
    double w[COLUMNS], expected[COLUMNS];
    int    zeros = 0;
    long_reference(0.03, 0, expected);
    solve(LOGISTIC, weft_sgd(2), weft_l1(0.03), 8000, w);
    close_to(w, expected, 1e-7, "l1");
    for (int k = 0; k < COLUMNS; k++) {
        cr_assert_eq(w[k] == 0, expected[k] == 0, "w[%d] is %g, the reference's %g", k, w[k], expected[k]);
        zeros += w[k] == 0;
    }
    cr_assert(zeros > 0 && zeros < COLUMNS, "%d zeros: the problem tells nothing", zeros);
}

/* The optimum is that of L + Omega whatever the solver: a proximal step is measured by the solver's own steps. */
Test(convergence, logistic_regression_with_l1_by_other_solvers) {
    double w[COLUMNS], expected[COLUMNS];
    struct { const char *name; weft_solver solver; int steps; double tolerance; } runs[] = {
        {"momentum", weft_sgd(0.4, .momentum = 0.9), 4000, 1e-7},
        {"nesterov", weft_sgd(0.4, .momentum = 0.9, .nesterov = true), 4000, 1e-7},
        {"adagrad", weft_adagrad(0.5), 6000, 1e-5},
        {"rmsprop, decaying", weft_rmsprop(0.05, .schedule = {.kind = WEFT_COSINE, .steps = 4000}), 4000, 1e-3},
        {"adam, decaying", weft_adam(0.1, .schedule = {.kind = WEFT_COSINE, .steps = 4000}), 4000, 1e-4},
    };
    long_reference(0.03, 0, expected);
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        solve(LOGISTIC, runs[i].solver, weft_l1(0.03), runs[i].steps, w);
        close_to(w, expected, runs[i].tolerance, runs[i].name);
    }
}

Test(convergence, logistic_regression_with_elastic_net) {
    double w[COLUMNS], expected[COLUMNS];
    long_reference(0.02, 0.01, expected);
    solve(LOGISTIC, weft_sgd(2), weft_elastic_net(0.02, 0.01), 6000, w);
    close_to(w, expected, 1e-7, "elastic net");
}

/* For rows of one element the group lasso is the l1 norm. */
Test(convergence, group_lasso_of_single_elements_is_l1) {
    double group[COLUMNS], expected[COLUMNS];
    long_reference(0.03, 0, expected);
    solve(LOGISTIC, weft_sgd(2), weft_group_lasso(0.03), 8000, group);
    close_to(group, expected, 1e-7, "group lasso");
}

enum { TARGETS = 3 };

/* Trains w [COLUMNS, TARGETS] on half of the mean of (x w - y)^2, and gives it and the loss's gradient there. */
static void solve_rows(weft_solver solver, double weight, int steps, double w[COLUMNS][TARGETS], double g[COLUMNS][TARGETS]) {
    static double y[ROWS][TARGETS];
    problem       p;
    weft_world   *world = NULL;
    weft_graph   *graph = NULL;
    weft_trainer *trainer = NULL;
    make_problem(&p);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < TARGETS; j++) {
            y[i][j] = 0.1 * p.y[i][0];
            for (int k = 0; k < COLUMNS; k++) y[i][j] += p.x[i][k] * (k % 2 ? 0.01 : 1.0 + k) * (j - 0.5);
        }
    cr_assert_eq(weft_world_create(&(weft_world_options){.size = 1}, &world), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_graph_create(NULL, &graph), WEFT_OK);
    weft_tensor *x = weft_input(graph, "x", WEFT_F64, weft_shape(ROWS, COLUMNS));
    weft_tensor *target = weft_input(graph, "y", WEFT_F64, weft_shape(ROWS, TARGETS));
    weft_tensor *guess = weft_matmul(x, weft_parameter(graph, "w", weft_shape(COLUMNS, TARGETS), .dtype = WEFT_F64));
    weft_program program = {
        .loss = weft_mul_scalar(weft_mse(guess, target), 0.5), .solver = solver, .regulariser = weft_group_lasso(weight)};
    cr_assert_eq(weft_trainer_create(world, &program, &trainer), WEFT_OK, "%s", weft_error_message());
    weft_batch batch = {.field_count = 2, .global_rows = ROWS, .local_rows = ROWS};
    batch.field[0] = (weft_batch_field){"x", WEFT_F64, weft_shape(ROWS, COLUMNS), p.x};
    batch.field[1] = (weft_batch_field){"y", WEFT_F64, weft_shape(ROWS, TARGETS), y};
    for (int i = 0; i < steps; i++) cr_assert_eq(weft_trainer_step(trainer, &batch, NULL), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_variables_get(weft_trainer_variables(trainer), "w", w, sizeof(double) * COLUMNS * TARGETS), WEFT_OK);
    weft_trainer_release(trainer);
    weft_graph_release(graph);
    weft_world_release(world);
    memset(g, 0, sizeof(double) * COLUMNS * TARGETS);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < TARGETS; j++) {
            double off = -y[i][j];
            for (int k = 0; k < COLUMNS; k++) off += p.x[i][k] * w[k][j];
            for (int k = 0; k < COLUMNS; k++) g[k][j] += off * p.x[i][k] / (ROWS * TARGETS);
        }
}

/* Optimality of L + weight*sum of rows' norms: the gradient of a row that is zero is no longer than the weight, that of another
 * is the weight's length against the row. */
Test(convergence, group_lasso_by_every_solver) {
    const double weight = 0.02;
    struct { const char *name; weft_solver solver; int steps; double tolerance; } runs[] = {
        {"sgd", weft_sgd(5), 2000, 1e-9},
        {"momentum", weft_sgd(1, .momentum = 0.9), 2000, 1e-9},
        {"adagrad", weft_adagrad(1), 3000, 1e-6},
        {"adam, decaying", weft_adam(0.1, .schedule = {.kind = WEFT_COSINE, .steps = 3000}), 3000, 1e-5},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        double w[COLUMNS][TARGETS], g[COLUMNS][TARGETS];
        int    zeros = 0;
        solve_rows(runs[i].solver, weight, runs[i].steps, w, g);
        for (int k = 0; k < COLUMNS; k++) {
            double size = 0, slope = 0, off = 0;
            for (int j = 0; j < TARGETS; j++) size += w[k][j] * w[k][j], slope += g[k][j] * g[k][j];
            size = sqrt(size);
            for (int j = 0; j < TARGETS && size > 0; j++) off = fmax(off, fabs(g[k][j] + weight * w[k][j] / size));
            zeros += size == 0;
            cr_assert(size > 0 || sqrt(slope) <= weight, "%s: row %d is zero where the gradient is %g long", runs[i].name, k, sqrt(slope));
            cr_assert_leq(off, runs[i].tolerance, "%s: row %d is off by %g", runs[i].name, k, off);
        }
        cr_assert(zeros > 0 && zeros < COLUMNS, "%s: %d rows of zeros tell nothing", runs[i].name, zeros);
    }
}

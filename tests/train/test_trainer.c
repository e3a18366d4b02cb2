/* What a trainer refuses, and what it does when a loss is not finite. One rank, in process. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/files.h"
#include "weft.h"

static weft_world *world;
static weft_graph *graph;

static void open_world(void) {
    cr_assert_eq(weft_world_create(&(weft_world_options){.size = 1}, &world), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_graph_create(NULL, &graph), WEFT_OK);
}
static void close_world(void) {
    weft_graph_release(graph);
    weft_world_release(world);
}
TestSuite(trainer, .init = open_world, .fini = close_world);

static void refused(const weft_program *program, weft_status status, const char *word) {
    weft_trainer *trainer = (weft_trainer *)&trainer;
    weft_status   got = weft_trainer_create(world, program, &trainer);
    cr_assert_eq(got, status, "%s: %s", weft_status_name(got), weft_error_message());
    cr_assert_null(trainer);
    cr_assert_not_null(strstr(weft_error_message(), word), "'%s' lacks '%s'", weft_error_message(), word);
}

/* mean((x w - y)^2) on 4 rows */
static weft_tensor *line(void) {
    weft_tensor *x = weft_input(graph, "x", WEFT_F32, weft_shape(4, 2)), *y = weft_input(graph, "y", WEFT_F32, weft_shape(4, 1));
    return weft_mse(weft_linear(x, "layer", .out = 1), y);
}

Test(trainer, refuses_a_program_without_a_loss) { refused(&(weft_program){.solver = weft_sgd(0.1)}, WEFT_E_INVALID, "loss"); }
Test(trainer, refuses_a_loss_of_many_elements) {
    weft_tensor *x = weft_input(graph, "x", WEFT_F32, weft_shape(4, 2));
    refused(&(weft_program){.loss = weft_linear(x, "layer", .out = 3), .solver = weft_sgd(0.1)}, WEFT_E_SHAPE, "[4, 3]");
}
Test(trainer, refuses_a_loss_without_parameters) {
    weft_tensor *x = weft_input(graph, "x", WEFT_F32, weft_shape(4, 2));
    refused(&(weft_program){.loss = weft_mean(x), .solver = weft_sgd(0.1)}, WEFT_E_INVALID, "no parameter");
}
Test(trainer, refuses_a_solver_without_a_rate) { refused(&(weft_program){.loss = line()}, WEFT_E_INVALID, "learning rate"); }
Test(trainer, refuses_negative_regularisers) {
    refused(&(weft_program){.loss = line(), .solver = weft_sgd(0.1), .regulariser = weft_l1(-1)}, WEFT_E_INVALID, "regulariser");
}
Test(trainer, refuses_lbfgs_with_l1) {
    refused(&(weft_program){.loss = line(), .solver = weft_lbfgs(1), .regulariser = weft_l1(0.1)}, WEFT_E_UNSUPPORTED, "smooth");
}
Test(trainer, refuses_a_strategy_of_other_ranks) {
    refused(&(weft_program){.loss = line(), .solver = weft_sgd(0.1), .strategy = {.data = 3}}, WEFT_E_INVALID, "data = 3");
}
Test(trainer, refuses_places_rather_than_forget_them) {
    weft_tensor *x = weft_input(graph, "x", WEFT_F32, weft_shape(4, 2)), *y = weft_input(graph, "y", WEFT_F32, weft_shape(4, 1));
    weft_tensor *placed = weft_place(weft_linear(x, "layer", .out = 1), "rank 0");
    refused(&(weft_program){.loss = weft_mse(placed, y), .solver = weft_sgd(0.1)}, WEFT_E_UNSUPPORTED, "is placed at 'rank 0'");
}
Test(trainer, refuses_places_of_what_is_evaluated) {
    weft_trainer   *trainer = NULL;
    weft_evaluator *evaluator = (weft_evaluator *)&evaluator;
    weft_tensor    *loss = line();
    cr_assert_eq(weft_trainer_create(world, &(weft_program){.loss = loss, .solver = weft_sgd(0.1)}, &trainer), WEFT_OK, "%s", weft_error_message());
    weft_tensor *twice = weft_place(weft_square(loss), "cpu");
    cr_assert_eq(weft_evaluator_create(trainer, &twice, 1, &evaluator), WEFT_E_UNSUPPORTED);
    cr_assert_null(evaluator);
    cr_assert_not_null(strstr(weft_error_message(), "is placed at 'cpu'"), "%s", weft_error_message());
    weft_trainer_release(trainer);
}
Test(trainer, hands_on_the_graphs_own_error) {
    weft_tensor *x = weft_input(graph, "x", WEFT_F32, weft_shape(4, 2)), *y = weft_input(graph, "y", WEFT_F32, weft_shape(3, 7));
    weft_tensor *loss = weft_mean(weft_matmul(x, y));
    weft_trainer *trainer = NULL;
    cr_assert_eq(weft_trainer_create(world, &(weft_program){.loss = loss, .solver = weft_sgd(0.1)}, &trainer), WEFT_E_SHAPE);
    cr_assert_not_null(strstr(weft_error_message(), "matmul"), "%s", weft_error_message());
}

static void step_with(weft_trainer *trainer, float bad, weft_status expected, weft_report *report) {
    float      x[8] __attribute__((aligned(64))) = {1, 2, 3, 4, 5, 6, 7, bad}, y[4] __attribute__((aligned(64))) = {1, 2, 3, 4};
    weft_batch batch = {.field_count = 2, .global_rows = 4, .local_rows = 4};
    batch.field[0] = (weft_batch_field){"x", WEFT_F32, weft_shape(4, 2), x};
    batch.field[1] = (weft_batch_field){"y", WEFT_F32, weft_shape(4, 1), y};
    weft_status status = weft_trainer_step(trainer, &batch, report);
    cr_assert_eq(status, expected, "%s: %s", weft_status_name(status), weft_error_message());
}

Test(trainer, stops_on_nan_and_has_changed_nothing) {
    weft_trainer *trainer = NULL;
    weft_report   report;
    float         before[2], after[2];
    cr_assert_eq(weft_trainer_create(world, &(weft_program){.loss = line(), .solver = weft_adam(0.01)}, &trainer), WEFT_OK, "%s", weft_error_message());
    step_with(trainer, 8, WEFT_OK, &report);
    cr_assert_eq(report.step, 1);
    cr_assert(isfinite(report.loss));
    cr_assert_eq(weft_variables_get(weft_trainer_variables(trainer), "layer.weight", before, sizeof before), WEFT_OK);
    step_with(trainer, NAN, WEFT_E_NAN, &report);
    cr_assert_not_null(strstr(weft_error_message(), "step 2"), "%s", weft_error_message());
    cr_assert_not_null(strstr(weft_error_message(), "rank 0"), "%s", weft_error_message());
    cr_assert_eq(weft_variables_get(weft_trainer_variables(trainer), "layer.weight", after, sizeof after), WEFT_OK);
    cr_assert_arr_eq(before, after, sizeof before);
    step_with(trainer, 8, WEFT_OK, &report);
    weft_trainer_release(trainer);
}

/* sqrt has an infinite slope at 0: a finite loss without a usable gradient. */
Test(trainer, names_the_gradient_where_the_loss_is_finite) {
    weft_trainer *trainer = NULL;
    weft_report   report;
    weft_tensor  *w = weft_parameter(graph, "w", weft_shape(2), .init = weft_init_zeros());
    weft_tensor  *x = weft_input(graph, "x", WEFT_F32, weft_shape(4, 2)), *y = weft_input(graph, "y", WEFT_F32, weft_shape(4, 1));
    weft_program  program = {.loss = weft_mean(weft_add(weft_mul(x, weft_sqrt(w)), y)), .solver = weft_sgd(0.1, .clip_norm = 1)};
    cr_assert_eq(weft_trainer_create(world, &program, &trainer), WEFT_OK, "%s", weft_error_message());
    step_with(trainer, 8, WEFT_E_NAN, &report);
    cr_assert(isfinite(report.loss));
    cr_assert(strstr(weft_error_message(), "the gradient's norm is inf, though the loss is 2.5"), "%s", weft_error_message());
    weft_trainer_release(trainer);
}

Test(trainer, may_skip_nan) {
    weft_trainer *trainer = NULL;
    weft_report   report;
    cr_assert_eq(weft_trainer_create(world, &(weft_program){.loss = line(), .solver = weft_sgd(0.01, .clip_norm = 1), .ignore_nan = true}, &trainer), WEFT_OK);
    step_with(trainer, INFINITY, WEFT_OK, &report);
    cr_assert(report.skipped);
    step_with(trainer, 8, WEFT_OK, &report);
    cr_assert_not(report.skipped);
    cr_assert(report.gradient_norm > 0);
    weft_trainer_release(trainer);
}

/* A bad step leaves states alone too: running statistics, and a state that assigns what another assignment gave. */
static void keeps_states(weft_solver solver, bool ignore) {
    static const char *const names[] = {"norm.running_mean", "norm.running_variance", "seen", "twice"};
    weft_trainer *trainer = NULL;
    weft_report   report;
    float         before[4][2] = {{0}}, after[4][2] = {{0}};
    weft_tensor  *x = weft_input(graph, "x", WEFT_F32, weft_shape(4, 2)), *y = weft_input(graph, "y", WEFT_F32, weft_shape(4, 1));
    weft_tensor  *seen = weft_assign(weft_state(graph, "seen", weft_shape(2)), weft_sum(x, .axes = weft_axes(0)));
    weft_tensor  *twice = weft_assign(weft_state(graph, "twice", weft_shape(2)), weft_add(seen, seen));
    weft_tensor  *h = weft_add(weft_batch_norm(x, "norm"), weft_mul_scalar(weft_detach(twice), 1e-3));
    weft_program  program = {.loss = weft_mse(weft_linear(h, "layer", .out = 1), y), .solver = solver, .ignore_nan = ignore};
    cr_assert_eq(weft_trainer_create(world, &program, &trainer), WEFT_OK, "%s", weft_error_message());
    weft_variables *variables = weft_trainer_variables(trainer);
    step_with(trainer, 8, WEFT_OK, &report);
    for (int i = 0; i < 4; i++)
        cr_assert_eq(weft_variables_get(variables, names[i], before[i], sizeof before[i]), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(before[2][1], 20);
    cr_assert_eq(before[3][1], 40);
    step_with(trainer, NAN, ignore ? WEFT_OK : WEFT_E_NAN, &report);
    for (int i = 0; i < 4; i++) cr_assert_eq(weft_variables_get(variables, names[i], after[i], sizeof after[i]), WEFT_OK);
    cr_assert_arr_eq(before, after, sizeof before);
    step_with(trainer, 9, WEFT_OK, &report);
    for (int i = 0; i < 4; i++) cr_assert_eq(weft_variables_get(variables, names[i], after[i], sizeof after[i]), WEFT_OK);
    cr_assert_eq(after[2][1], 21);
    cr_assert_eq(after[3][1], 42);
    cr_assert_neq(after[0][1], before[0][1]);
    weft_trainer_release(trainer);
}

Test(trainer, keeps_states_in_a_bad_step) { keeps_states(weft_sgd(0.01), false); }
Test(trainer, keeps_states_in_a_skipped_step) { keeps_states(weft_adamw(0.01, .clip_norm = 1), true); }
Test(trainer, keeps_states_in_a_bad_step_of_lbfgs) { keeps_states(weft_lbfgs(1), false); }

/* Weights 0.5 and -1 and bias 0.25 before, where they are after one step of `program`, and the gradient of line() there. */
static const float weight_before[2] = {0.5f, -1}, bias_before = 0.25f;
static void one_step(const weft_program *program, double gradient_out[3], double after_out[3], weft_report *report_out) {
    static const double x[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    weft_trainer       *trainer = NULL;
    float               weight[2], bias;
    memset(gradient_out, 0, 3 * sizeof *gradient_out);
    for (int row = 0; row < 4; row++) {
        double off = 2 * (x[2 * row] * weight_before[0] + x[2 * row + 1] * weight_before[1] + bias_before - (row + 1)) / 4;
        gradient_out[0] += off * x[2 * row];
        gradient_out[1] += off * x[2 * row + 1];
        gradient_out[2] += off;
    }
    cr_assert_eq(weft_trainer_create(world, program, &trainer), WEFT_OK, "%s", weft_error_message());
    weft_variables *variables = weft_trainer_variables(trainer);
    cr_assert_eq(weft_variables_set(variables, "layer.weight", WEFT_F32, weft_shape(1, 2), weight_before), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_variables_set(variables, "layer.bias", WEFT_F32, weft_shape(1), &bias_before), WEFT_OK);
    step_with(trainer, 8, WEFT_OK, report_out);
    cr_assert_eq(weft_variables_get(variables, "layer.weight", weight, sizeof weight), WEFT_OK);
    cr_assert_eq(weft_variables_get(variables, "layer.bias", &bias, sizeof bias), WEFT_OK);
    after_out[0] = weight[0], after_out[1] = weight[1], after_out[2] = bias;
    weft_trainer_release(trainer);
}

/* The regulariser, coupled and decoupled at once, is none of what is clipped, and leaves the bias alone. */
Test(trainer, clips_the_gradient_of_the_loss_only) {
    double      g[3], after[3];
    weft_report report;
    one_step(&(weft_program){.loss = line(), .regulariser = weft_l2(0.2),
                             .solver = weft_sgd(0.5, .clip_norm = 2, .clip_value = 1.2, .weight_decay = 0.1)}, g, after, &report);
    double norm = sqrt(g[0] * g[0] + g[1] * g[1] + g[2] * g[2]);
    cr_assert(norm > 2);
    cr_assert_float_eq(report.gradient_norm, norm, 1e-5 * norm);
    for (int i = 0; i < 3; i++) {
        double before = i < 2 ? weight_before[i] : bias_before, clipped = fmin(fmax(g[i] * 2 / norm, -1.2), 1.2);
        double expected = before - 0.5 * clipped - (i < 2 ? 0.5 * (0.2 + 0.1) * before : 0);
        cr_assert_float_eq(after[i], expected, 1e-6, "element %d is %.9g, not %.9g", i, after[i], expected);
    }
}

/* The rate that is reported is the schedule's at that step, and the one that the update is made with. */
Test(trainer, reports_the_rate_that_it_uses) {
    weft_solver   solver = weft_sgd(0.02, .schedule = {.kind = WEFT_LINEAR, .warmup = 2, .steps = 4, .floor = 0.25});
    weft_trainer *trainer = NULL;
    weft_report   report;
    cr_assert_eq(weft_trainer_create(world, &(weft_program){.loss = line(), .solver = solver}, &trainer), WEFT_OK, "%s", weft_error_message());
    weft_variables *variables = weft_trainer_variables(trainer);
    for (int step = 0; step < 8; step++) {
        float  before[2], bias, after[2];
        double multiple, slope = 0;
        cr_assert_eq(weft_variables_get(variables, "layer.weight", before, sizeof before), WEFT_OK);
        cr_assert_eq(weft_variables_get(variables, "layer.bias", &bias, sizeof bias), WEFT_OK);
        for (int row = 0; row < 4; row++)
            slope += 0.5 * (2 * row + 1) * ((2 * row + 1) * before[0] + (2 * row + 2) * before[1] + bias - (row + 1));
        step_with(trainer, 8, WEFT_OK, &report);
        cr_assert_eq(weft_schedule_at(&solver.schedule, step, &multiple), WEFT_OK);
        cr_assert_float_eq(report.rate, 0.02 * multiple, 1e-15, "step %d", step);
        cr_assert_eq(weft_variables_get(variables, "layer.weight", after, sizeof after), WEFT_OK);
        cr_assert_float_eq(after[0], before[0] - 0.02 * multiple * slope, 2e-6 * (1 + fabs(slope)), "step %d", step);
    }
    weft_trainer_release(trainer);
}

/* Of three parameters that have the same gradient, one is frozen, one is spared by the regulariser, one is not. */
Test(trainer, leaves_frozen_and_unregularised_parameters_alone) {
    static const char *const names[3] = {"frozen", "spared", "shrunk"};
    weft_trainer *trainer = NULL;
    weft_report   report;
    double        g[2] = {0};
    float         w[3][2] = {{0.5f, -0.25f}, {0.5f, -0.25f}, {0.5f, -0.25f}}, after[3][2];
    weft_tensor  *x = weft_input(graph, "x", WEFT_F32, weft_shape(4, 2)), *y = weft_input(graph, "y", WEFT_F32, weft_shape(4, 1));
    weft_tensor  *frozen = weft_parameter(graph, "frozen", weft_shape(2, 1), .frozen = true);
    weft_tensor  *spared = weft_parameter(graph, "spared", weft_shape(2, 1), .unregularised = true);
    weft_tensor  *sum = weft_add(weft_add(frozen, spared), weft_parameter(graph, "shrunk", weft_shape(2, 1)));
    weft_program  program = {.loss = weft_mse(weft_matmul(x, sum), y), .regulariser = {.l1 = 3, .l2 = 0.5, .group = 2},
                             .solver = weft_sgd(0.01, .weight_decay = 4)};
    cr_assert_eq(weft_trainer_create(world, &program, &trainer), WEFT_OK, "%s", weft_error_message());
    weft_variables *variables = weft_trainer_variables(trainer);
    for (int i = 0; i < 3; i++) cr_assert_eq(weft_variables_set(variables, names[i], WEFT_F32, weft_shape(2, 1), w[i]), WEFT_OK);
    for (int row = 0; row < 4; row++) {
        double off = 3 * ((2 * row + 1) * 0.5 - (2 * row + 2) * 0.25) - (row + 1);
        g[0] += off * (2 * row + 1) / 2;
        g[1] += off * (2 * row + 2) / 2;
    }
    step_with(trainer, 8, WEFT_OK, &report);
    for (int i = 0; i < 3; i++) cr_assert_eq(weft_variables_get(variables, names[i], after[i], sizeof after[i]), WEFT_OK);
    cr_assert_arr_eq(after[0], w[0], sizeof w[0]);
    for (int i = 0; i < 2; i++) {
        double plain = 0.5 - 0.75 * i - 0.01 * g[i], decayed = plain - 0.01 * (0.5 + 4) * (0.5 - 0.75 * i);
        double shrunk = copysign(fmax(fabs(decayed) - 0.01 * (3 + 2), 0), decayed); /* rows of one element: as L1 */
        cr_assert_float_eq(after[1][i], plain, 1e-6, "spared %d is %.9g, not %.9g", i, after[1][i], plain);
        cr_assert_float_eq(after[2][i], shrunk, 1e-6, "shrunk %d is %.9g, not %.9g", i, after[2][i], shrunk);
    }
    weft_trainer_release(trainer);
}

/* A pool of the program's own, which counts what it is asked for. */
static int32_t two_threads(void *context) { return (void)context, 2; }
static void    run_in_turn(void *context, int32_t count, void (*task)(void *given, int32_t index), void *given) {
    ++*(int *)context;
    for (int32_t i = 0; i < count; i++) task(given, i);
}

Test(trainer, computes_on_a_pool_that_is_lent) {
    int                runs = 0;
    weft_world        *lent = NULL;
    weft_trainer      *trainer = NULL;
    static float       x[512 * 64];
    weft_world_options options = {.size = 1, .threads = {.pool = {two_threads, run_in_turn, &runs}}};
    cr_assert_eq(weft_world_create(&options, &lent), WEFT_OK, "%s", weft_error_message());
    weft_tensor *h = weft_linear(weft_input(graph, "x", WEFT_F32, weft_shape(512, 64)), "l", .out = 64);
    cr_assert_eq(weft_trainer_create(lent, &(weft_program){.loss = weft_mean(weft_square(h)), .solver = weft_sgd(0.1)}, &trainer), WEFT_OK,
                 "%s", weft_error_message());
    weft_batch batch = {.field_count = 1, .global_rows = 512, .local_rows = 512};
    batch.field[0] = (weft_batch_field){"x", WEFT_F32, weft_shape(512, 64), x};
    cr_assert_eq(weft_trainer_step(trainer, &batch, NULL), WEFT_OK, "%s", weft_error_message());
    cr_assert_gt(runs, 0);
    weft_trainer_release(trainer);
    weft_world_release(lent);
}

/* The arena of a deep network's step. */
static long long arena_of(int32_t accumulate, bool recompute) {
    weft_trainer    *trainer = NULL;
    weft_graph      *deep = NULL;
    weft_plan_totals totals;
    cr_assert_eq(weft_graph_create(NULL, &deep), WEFT_OK);
    weft_tensor *h = weft_input(deep, "x", WEFT_F32, weft_shape(512, 16));
    for (int32_t block = 0; block < 4; block++) {
        char name[2][16];
        for (int i = 0; i < 2; i++) snprintf(name[i], sizeof name[i], "w%d%d", block, i);
        if (recompute) weft_recompute_begin(deep);
        for (int i = 0; i < 2; i++) h = weft_gelu(weft_linear(h, name[i], .out = 16));
        if (recompute) weft_recompute_end(deep);
    }
    weft_program program = {.loss = weft_mean(weft_square(h)), .solver = weft_sgd(0.1), .strategy = {.accumulate = accumulate}};
    cr_assert_eq(weft_trainer_create(world, &program, &trainer), WEFT_OK, "%s", weft_error_message());
    weft_plan_totals_read(weft_trainer_plan(trainer), &totals);
    weft_trainer_release(trainer);
    weft_graph_release(deep);
    return totals.arena_bytes;
}

Test(trainer, needs_less_memory_with_accumulation_and_recomputation) {
    long long plain = arena_of(1, false), parts = arena_of(8, false), again = arena_of(1, true), both = arena_of(8, true);
    cr_assert_lt(parts, plain / 4, "%lld bytes in 8 micro-batches, %lld at once", parts, plain);
    cr_assert_lt(again, plain * 3 / 4, "%lld bytes with recomputation, %lld without", again, plain);
    cr_assert_lt(both, parts * 4 / 5, "%lld bytes with both, %lld in 8 micro-batches", both, parts);
}

/* However often its line search computes the loss, a step of L-BFGS assigns once, reports L alone, and takes no memory. */
Test(trainer, steps_once_with_lbfgs) {
    weft_trainer      *trainer = NULL;
    weft_report        report;
    weft_memory_counts before, after;
    float              count = 0, weight[2], bias;
    weft_tensor       *counter = weft_state(graph, "count", weft_shape(1));
    weft_assign(counter, weft_add_scalar(counter, 1));
    weft_program program = {.loss = line(), .solver = weft_lbfgs(1), .regulariser = weft_l2(0.3)};
    cr_assert_eq(weft_trainer_create(world, &program, &trainer), WEFT_OK, "%s", weft_error_message());
    weft_variables *variables = weft_trainer_variables(trainer);
    for (int step = 1; step <= 4; step++) {
        double loss = 0;
        cr_assert_eq(weft_variables_get(variables, "layer.weight", weight, sizeof weight), WEFT_OK);
        cr_assert_eq(weft_variables_get(variables, "layer.bias", &bias, sizeof bias), WEFT_OK);
        for (int row = 0; row < 4; row++) loss += pow((2 * row + 1) * weight[0] + (2 * row + 2) * weight[1] + bias - (row + 1), 2) / 4;
        weft_memory_read(&before);
        step_with(trainer, 8, WEFT_OK, &report);
        weft_memory_read(&after);
        if (step > 1) cr_assert_eq(before.allocations, after.allocations);
        if (step == 1) cr_assert(report.evaluations > 1, "%d evaluations tell nothing", report.evaluations);
        cr_assert_float_eq(report.loss, loss, 1e-5 * (1 + loss), "step %d reports %g, not %g", step, report.loss, loss);
        cr_assert_eq(weft_variables_get(variables, "count", &count, sizeof count), WEFT_OK);
        cr_assert_eq(count, step, "%g after %d steps", count, step);
    }
    weft_trainer_release(trainer);
}

Test(trainer, refuses_batches_that_do_not_fit) {
    weft_trainer *trainer = NULL;
    float         x[8] = {0}, y[4] = {0};
    cr_assert_eq(weft_trainer_create(world, &(weft_program){.loss = line(), .solver = weft_sgd(0.01)}, &trainer), WEFT_OK);
    weft_batch batch = {.field_count = 1, .global_rows = 4, .local_rows = 4};
    batch.field[0] = (weft_batch_field){"x", WEFT_F32, weft_shape(4, 2), x};
    cr_assert_eq(weft_trainer_step(trainer, &batch, NULL), WEFT_E_NOT_FOUND);
    cr_assert_not_null(strstr(weft_error_message(), "'y'"), "%s", weft_error_message());
    batch.field_count = 2;
    batch.field[1] = (weft_batch_field){"y", WEFT_F64, weft_shape(4, 1), y};
    cr_assert_eq(weft_trainer_step(trainer, &batch, NULL), WEFT_E_DTYPE);
    batch.field[1] = (weft_batch_field){"y", WEFT_F32, weft_shape(4, 2), y};
    cr_assert_eq(weft_trainer_step(trainer, &batch, NULL), WEFT_E_SHAPE);
    batch.local_rows = 3;
    cr_assert_eq(weft_trainer_step(trainer, &batch, NULL), WEFT_E_SHAPE);
    batch.global_rows = 0;
    cr_assert_eq(weft_trainer_step(trainer, &batch, NULL), WEFT_E_INVALID);
    cr_assert_eq(weft_trainer_step(trainer, NULL, NULL), WEFT_E_INVALID);
    weft_trainer_release(trainer);
}

/* --- resuming under another seed --- */

static weft_trainer *with_seed(uint64_t seed, double dropped, weft_graph **graph_out) {
    weft_trainer *trainer = NULL;
    cr_assert_eq(weft_graph_create(&(weft_graph_options){.seed = seed}, graph_out), WEFT_OK);
    weft_tensor *x = weft_input(*graph_out, "x", WEFT_F32, weft_shape(4, 2)), *y = weft_input(*graph_out, "y", WEFT_F32, weft_shape(4, 1));
    weft_tensor *loss = weft_mse(weft_linear(weft_dropout(x, dropped), "layer", .out = 1), y);
    cr_assert_eq(weft_trainer_create(world, &(weft_program){.loss = loss, .solver = weft_sgd(0.01)}, &trainer), WEFT_OK, "%s", weft_error_message());
    return trainer;
}

/* A run that was saved under `saved` goes on under `other`. */
static weft_status resume_under(uint64_t saved, uint64_t other, double dropped) {
    char          path[64];
    weft_graph   *graphs[2];
    weft_trainer *first = with_seed(saved, dropped, &graphs[0]), *second = with_seed(other, dropped, &graphs[1]);
    weft_report   report;
    snprintf(path, sizeof path, "%s/weft-seed-%d", temporary_root(), (int)getpid());
    step_with(first, 8, WEFT_OK, &report);
    cr_assert_eq(weft_trainer_save(first, path, NULL), WEFT_OK, "%s", weft_error_message());
    weft_status status = weft_trainer_load(second, path, NULL);
    cr_assert_eq(weft_trainer_steps(second), status == WEFT_OK);
    unlink(path);
    weft_trainer_release(first);
    weft_trainer_release(second);
    for (int i = 0; i < 2; i++) weft_graph_release(graphs[i]);
    return status;
}

Test(trainer, resumes_random_numbers_under_their_own_seed_only) {
    cr_assert_eq(resume_under(7, 7, 0.5), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(resume_under(7, 8, 0.5), WEFT_E_MISMATCH);
    cr_assert(strstr(weft_error_message(), "seed 7") && strstr(weft_error_message(), "seed 8"), "%s", weft_error_message());
    cr_assert_eq(resume_under(7, 8, 0), WEFT_OK, "nothing is drawn here: %s", weft_error_message());
}

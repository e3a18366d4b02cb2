/* What is assigned is computed where the variable lies, and small items stand side by side where the device joins them; with the results that plans
 * without either have. */
#include "plan/support.h"

enum { LENGTH = 24 };

typedef weft_tensor *(*builder)(weft_graph *g, weft_tensor *x, weft_tensor *state);

/* Runs three steps; gives the output's and the state's last values, and how many ASSIGNs the plan has. */
static int32_t run(builder build, bool in_place, float *values_out) {
    weft_world  *world = world_open(WEFTI_CPU_AUTO);
    weft_graph  *g = graph_new(3);
    float        x[LENGTH];
    weft_tensor *input = weft_input(g, "x", WEFT_F32, weft_shape(LENGTH));
    weft_tensor *state = weft_state(g, "state", weft_shape(LENGTH), .init = weft_init_ones());
    weft_tensor *out = build(g, input, state);
    weft_plan   *plan = plan_of(world, g, true, (weft_plan_options){.no_in_place = !in_place}, LIST(out));
    int32_t      assigns = count_ops(plan, WEFT_OP_ASSIGN);
    for (int step = 0; step < 3; step++) {
        fill(x, LENGTH, (uint32_t)step + 1);
        OK(weft_plan_run(plan, &(weft_feed){.name = "x", .dtype = WEFT_F32, .shape = weft_shape(LENGTH), .data = x}, 1));
    }
    OK(weft_plan_fetch(plan, 0, values_out, LENGTH * sizeof(float)));
    OK(weft_variables_get(weft_plan_variables(plan), "state", values_out + LENGTH, LENGTH * sizeof(float)));
    if (in_place) check_layout(plan);
    weft_plan_release(plan);
    weft_graph_release(g);
    world_close(world);
    return assigns;
}

static void check(builder build, int32_t due) {
    float settled[2 * LENGTH], copied[2 * LENGTH];
    int32_t with = run(build, true, settled), without = run(build, false, copied);
    cr_assert_eq(with, due, "%d ASSIGNs, not %d", (int)with, (int)due);
    cr_assert_geq(without, 1);
    cr_assert_arr_eq(settled, copied, sizeof settled);
}

static weft_tensor *average(weft_graph *g, weft_tensor *x, weft_tensor *state) {
    (void)g;
    weft_assign(state, weft_add(weft_mul_scalar(state, 0.9), weft_mul_scalar(x, 0.1)));
    return weft_square(x);
}
Test(plan_settle, averages_are_computed_in_place) { check(average, 0); }

/* In another shape than the variable's. */
static weft_tensor *reshaped(weft_graph *g, weft_tensor *x, weft_tensor *state) {
    (void)g;
    weft_shape shape = weft_shape(1, LENGTH, 1);
    weft_assign(state, weft_reshape(weft_add(weft_reshape(state, shape), weft_reshape(x, shape)), weft_shape(LENGTH)));
    return weft_square(x);
}
Test(plan_settle, in_another_shape) { check(reshaped, 0); }

/* The old value is read between the computation and the assignment. */
static weft_tensor *read_between(weft_graph *g, weft_tensor *x, weft_tensor *state) {
    (void)g;
    weft_tensor *next = weft_add_scalar(x, 0.5), *old = weft_softmax(state, 0);
    weft_assign(state, next);
    return old;
}
Test(plan_settle, not_where_the_old_value_is_read_meanwhile) { check(read_between, 1); }

/* The old value is wanted afterwards: it is copied on the way. */
static weft_tensor *read_late(weft_graph *g, weft_tensor *x, weft_tensor *state) {
    (void)g;
    weft_assign(state, weft_add(weft_mul_scalar(state, 0.5), x));
    return weft_softmax(state, 0);
}
Test(plan_settle, beside_a_copy_of_the_old_value) { check(read_late, 0); }

/* What is assigned is given out, too. */
static weft_tensor *given_out(weft_graph *g, weft_tensor *x, weft_tensor *state) {
    (void)g;
    weft_tensor *next = weft_add(weft_mul_scalar(state, 0.5), x);
    weft_assign(state, next);
    return next;
}
Test(plan_settle, not_where_the_result_is_wanted) { check(given_out, 1); }

/* Elements come to other places than they were read from. */
static weft_tensor *turned(weft_graph *g, weft_tensor *x, weft_tensor *state) {
    (void)g;
    weft_shape   shape = weft_shape(4, LENGTH / 4);
    weft_tensor *sum = weft_add(weft_reshape(state, shape), weft_reshape(x, shape));
    weft_assign(state, weft_reshape(weft_permute(sum, weft_axes(1, 0)), weft_shape(LENGTH)));
    return weft_square(x);
}
Test(plan_settle, not_where_elements_change_places) { check(turned, 1); }

/* A variable that is assigned twice. */
static weft_tensor *twice(weft_graph *g, weft_tensor *x, weft_tensor *state) {
    (void)g;
    weft_assign(state, weft_add(state, x));
    weft_assign(state, weft_mul_scalar(weft_add(state, x), 2));
    return weft_square(x);
}
Test(plan_settle, not_where_a_variable_is_assigned_twice) { check(twice, 2); }

/* Running plans: values, feeds, outputs, variables, steps, and every error on the way. */
#include "plan/support.h"

Test(plan_run, computes_an_expression) {
    weft_world  *world = world_open(WEFTI_CPU_REFERENCE);
    weft_graph  *g = graph_new(1);
    weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(2, 3)), *w = weft_parameter(g, "w", weft_shape(3, 2), .init = weft_init_ones());
    weft_tensor *y = weft_add_scalar(weft_matmul(x, w), 0.5);
    weft_plan   *plan = plan_of(world, g, false, (weft_plan_options){0}, LIST(y));
    float        data[6] = {1, 2, 3, 4, 5, 6}, out[4];
    OK(weft_plan_run(plan, &(weft_feed){"x", WEFT_F32, weft_shape(2, 3), data}, 1));
    OK(weft_plan_fetch(plan, 0, out, sizeof out));
    cr_assert(out[0] == 6.5f && out[1] == 6.5f && out[2] == 15.5f && out[3] == 15.5f);
    const char *text;
    OK(weft_plan_describe(plan, &text));
    cr_assert(strstr(text, "matmul"), "%s", text);
    weft_plan_release(plan);
    weft_graph_release(g);
    world_close(world);
}

/* A small network with its gradients and updates by hand, run with and without every optimisation: the same bits. */
static void train(weft_plan_options options, float *losses, int32_t n, wefti_cpu_isa isa) {
    weft_world  *world = world_open(isa);
    weft_graph  *g = graph_new(7);
    weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(8, 1, 6, 6)), *label = weft_input(g, "label", WEFT_I32, weft_shape(8));
    weft_tensor *h = weft_relu(weft_conv2d(x, "conv", .filters = 4, .kernel = 3));
    h = weft_max_pool2d(h, .window = 2);
    h = weft_gelu(weft_linear(weft_flatten(h), "fc", .out = 16));
    weft_tensor *loss = weft_cross_entropy(weft_linear(h, "head", .out = 5), label);
    weft_tensor *wrt[8], *grad[8];
    int32_t      count = weft_graph_parameter_count(g);
    for (int32_t i = 0; i < count; i++) wrt[i] = weft_graph_parameter(g, i);
    OK(weft_gradients(loss, wrt, count, grad));
    for (int32_t i = 0; i < count; i++) weft_assign(wrt[i], weft_sub(wrt[i], weft_mul_scalar(grad[i], 0.5)));
    weft_plan *plan = plan_of(world, g, true, options, LIST(loss));
    float      data[8 * 36] __attribute__((aligned(64)));
    int32_t    labels[8];
    fill(data, 8 * 36, 3);
    for (int32_t i = 0; i < 8; i++) labels[i] = i % 5;
    weft_feed feeds[] = {{"x", WEFT_F32, weft_shape(8, 1, 6, 6), data}, {"label", WEFT_I32, weft_shape(8), labels}};
    for (int32_t i = 0; i < n; i++) {
        OK(weft_plan_run(plan, feeds, 2));
        OK(weft_plan_fetch(plan, 0, &losses[i], sizeof(float)));
    }
    weft_plan_release(plan);
    weft_graph_release(g);
    world_close(world);
}

static void same_bits(wefti_cpu_isa isa) {
    enum { STEPS = 12 };
    float plain[STEPS], other[STEPS];
    train((weft_plan_options){.no_simplify = true, .no_fusion = true, .no_in_place = true, .no_reuse = true}, plain, STEPS, isa);
    cr_assert(plain[STEPS - 1] < 0.95f * plain[0], "training does not learn: %g to %g", plain[0], plain[STEPS - 1]);
    weft_plan_options some[] = {{0}, {.no_fusion = true}, {.no_simplify = true}, {.no_in_place = true}, {.no_reuse = true}};
    for (size_t i = 0; i < WEFTI_COUNT(some); i++) {
        train(some[i], other, STEPS, isa);
        for (int32_t s = 0; s < STEPS; s++) cr_assert_eq(memcmp(&plain[s], &other[s], 4), 0, "variant %zu, step %d: %g, %g", i, s, other[s], plain[s]);
    }
}

Test(plan_run, optimisations_change_no_bit_of_the_reference_kernels) { same_bits(WEFTI_CPU_REFERENCE); }
Test(plan_run, optimisations_change_no_bit_of_the_fast_kernels) { same_bits(WEFTI_CPU_AUTO); }

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

/* --- feeds and outputs --- */

typedef struct scene {
    weft_world *world;
    weft_graph *g;
    weft_plan  *plan;
} scene;
static scene open_scene(void) {
    scene        s = {world_open(WEFTI_CPU_REFERENCE), graph_new(1), NULL};
    weft_tensor *x = weft_input(s.g, "x", WEFT_F32, weft_shape(2, 3)), *label = weft_input(s.g, "label", WEFT_I32, weft_shape(2));
    weft_input(s.g, "other", WEFT_F32, weft_shape(5));
    s.plan = plan_of(s.world, s.g, false, (weft_plan_options){0}, LIST(weft_cross_entropy(x, label), x));
    return s;
}
static void close_scene(scene *s) {
    weft_plan_release(s->plan);
    weft_graph_release(s->g);
    world_close(s->world);
}

Test(plan_run, says_what_is_wrong_with_feeds) {
    scene     s = open_scene();
    float     x[6] = {0}, out[6];
    int32_t   label[2] = {0};
    weft_feed good[] = {{"x", WEFT_F32, weft_shape(2, 3), x}, {"label", WEFT_I32, weft_shape(2), label}}, bad[3];
    FAILS(WEFT_E_STATE, weft_plan_fetch(s.plan, 0, out, 4), "has not run");
    FAILS(WEFT_E_NOT_FOUND, weft_plan_run(s.plan, good, 1), "input 'label' (i32 [2]) was not fed");
    FAILS(WEFT_E_NOT_FOUND, weft_plan_run(s.plan, NULL, 0), "input 'x'");
    FAILS(WEFT_E_INVALID, weft_plan_run(s.plan, NULL, 2), "no list");
    memcpy(bad, good, sizeof good);
    bad[2] = (weft_feed){"imgae", WEFT_F32, weft_shape(2, 3), x};
    FAILS(WEFT_E_NOT_FOUND, weft_plan_run(s.plan, bad, 3), "feed 'imgae' is no input of graph 'graph'; there are: 'x', 'label', 'other'");
    bad[2] = (weft_feed){"other", WEFT_F64, weft_shape(1), NULL};
    OK(weft_plan_run(s.plan, bad, 3)); /* not read, not looked at */
    bad[2] = good[0];
    FAILS(WEFT_E_INVALID, weft_plan_run(s.plan, bad, 3), "'x' was fed twice");
    bad[2].name = NULL;
    FAILS(WEFT_E_INVALID, weft_plan_run(s.plan, bad, 3), "no name");
    bad[0].dtype = WEFT_F64;
    FAILS(WEFT_E_DTYPE, weft_plan_run(s.plan, bad, 2), "input 'x' is f32 [2, 3], was fed f64");
    bad[0] = (weft_feed){"x", WEFT_F32, weft_shape(3, 2), x};
    FAILS(WEFT_E_SHAPE, weft_plan_run(s.plan, bad, 2), "shape [2, 3] in this plan, was fed [3, 2]");
    bad[0] = (weft_feed){"x", WEFT_F32, weft_shape(2, 3), NULL};
    FAILS(WEFT_E_INVALID, weft_plan_run(s.plan, bad, 2), "'x' was fed NULL");
    OK(weft_plan_run(s.plan, good, 2));
    close_scene(&s);
}

Test(plan_run, says_what_is_wrong_with_outputs_and_reports) {
    scene           s = open_scene();
    float           x[6] = {1, 2, 3, 4, 5, 6}, out[6];
    int32_t         label[2] = {0};
    weft_feed       feeds[] = {{"x", WEFT_F32, weft_shape(2, 3), x}, {"label", WEFT_I32, weft_shape(2), label}};
    weft_plan_value value;
    weft_plan_op    op;
    const char     *text;
    OK(weft_plan_output(s.plan, 1, &value));
    cr_assert(value.dtype == WEFT_F32 && value.bytes == 24 && value.data == NULL);
    OK(weft_plan_run(s.plan, feeds, 2));
    OK(weft_plan_output(s.plan, 1, &value));
    x[0] = 99; /* an output that is an input is the plan's own copy */
    cr_assert_eq(((const float *)value.data)[0], 1);
    FAILS(WEFT_E_INVALID, weft_plan_output(s.plan, 2, &value), "no output 2: there are 2");
    FAILS(WEFT_E_INVALID, weft_plan_fetch(s.plan, -1, out, 4), "no output -1");
    FAILS(WEFT_E_MISMATCH, weft_plan_fetch(s.plan, 1, out, 4), "24 bytes; there is room for 4");
    FAILS(WEFT_E_INVALID, weft_plan_fetch(s.plan, 1, NULL, 24), "NULL");
    FAILS(WEFT_E_INVALID, weft_plan_op_at(s.plan, 99, &op), "no operation 99");
    FAILS(WEFT_E_STATE, weft_plan_profile(s.plan, &text), "without options.profile");
    FAILS(WEFT_E_INVALID, weft_plan_run(NULL, feeds, 2), "NULL");
    FAILS(WEFT_E_INVALID, weft_plan_commit(NULL), "NULL");
    FAILS(WEFT_E_INVALID, weft_plan_describe(NULL, &text), "NULL");
    cr_assert_eq(weft_plan_trace(s.plan, NULL, 0), 0);
    weft_plan_release(NULL);
    cr_assert_null(weft_plan_retain(NULL));
    close_scene(&s);
}

Test(plan_run, says_what_is_wrong_with_a_plan) {
    weft_world     *world = world_open(WEFTI_CPU_REFERENCE), *elsewhere = world_open(WEFTI_CPU_REFERENCE);
    weft_graph     *g = graph_new(1), *other = graph_new(2);
    weft_tensor    *x = weft_parameter(g, "w", weft_shape(2)), *y = weft_parameter(other, "w", weft_shape(3)), *none = NULL;
    weft_plan      *plan = (weft_plan *)&x, *there;
    weft_variables *v;
    FAILS(WEFT_E_INVALID, weft_plan_create(NULL, g, NULL, &plan), "world is NULL");
    cr_assert_null(plan);
    FAILS(WEFT_E_INVALID, weft_plan_create(world, NULL, NULL, &plan), "graph is NULL");
    FAILS(WEFT_E_INVALID, weft_plan_create(world, g, &(weft_plan_options){.outputs = &y, .n_outputs = 1}, &plan), "output 0, 'w', belongs to another graph");
    FAILS(WEFT_E_INVALID, weft_plan_create(world, g, &(weft_plan_options){.outputs = &none, .n_outputs = 1}, &plan), "output 0 is NULL");
    FAILS(WEFT_E_INVALID, weft_plan_create(world, g, &(weft_plan_options){.n_outputs = 1}, &plan), "no list");
    FAILS(WEFT_E_INVALID, weft_plan_create(world, g, &(weft_plan_options){.bucket_bytes = -2}, &plan), "bucket_bytes is -2");
    OK(weft_plan_create(elsewhere, g, NULL, &there)); /* nothing to do is fine */
    OK(weft_plan_run(there, NULL, 0));
    FAILS(WEFT_E_INVALID, weft_plan_create(world, g, &(weft_plan_options){.arena_of = there}, &plan), "another world");
    OK(weft_variables_create(world, other, &v));
    FAILS(WEFT_E_MISMATCH, weft_plan_create(world, g, &(weft_plan_options){.outputs = &x, .n_outputs = 1, .variables = v}, &plan), "'w' is a parameter f32 [3]");
    weft_tensor *z = weft_parameter(g, "block.w2", weft_shape(2));
    FAILS(WEFT_E_NOT_FOUND, weft_plan_create(world, g, &(weft_plan_options){.outputs = &z, .n_outputs = 1, .variables = v}, &plan), "'block.w2'");
    weft_matmul(x, x);
    FAILS(WEFT_E_SHAPE, weft_plan_create(world, g, NULL, &plan), "matmul");
    cr_assert_null(plan);
    weft_variables_release(v);
    weft_plan_release(there);
    weft_graph_release(g);
    weft_graph_release(other);
    world_close(world);
    world_close(elsewhere);
}

Test(plan_run, reads_aligned_feeds_in_place_and_copies_the_rest) {
    weft_world        *world = world_open(WEFTI_CPU_REFERENCE);
    weft_graph        *g = graph_new(1);
    weft_tensor       *x = weft_input(g, "x", WEFT_F32, weft_shape(5));
    weft_plan         *plan = plan_of(world, g, false, (weft_plan_options){0}, LIST(weft_neg(x)));
    _Alignas(64) float data[6] = {1, 2, 3, 4, 5, 6};
    for (int32_t at = 0; at < 2; at++) {
        float out[5];
        OK(weft_plan_run(plan, &(weft_feed){"x", WEFT_F32, weft_shape(5), data + at}, 1));
        OK(weft_plan_fetch(plan, 0, out, sizeof out));
        cr_assert(out[0] == -1 - (float)at && out[4] == -5 - (float)at);
        cr_assert_eq(plan->staging[0] != NULL, at == 1);
        cr_assert_eq(data[0], 1, "a feed was written to");
    }
    weft_plan_release(plan);
    weft_graph_release(g);
    world_close(world);
}

Test(plan_run, empty_batches_run) {
    weft_world  *world = world_open(WEFTI_CPU_AUTO);
    weft_graph  *g = graph_new(1);
    weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(0, 4)), *label = weft_input(g, "label", WEFT_I32, weft_shape(0));
    weft_tensor *w = weft_parameter(g, "w", weft_shape(3, 4)), *grad;
    weft_tensor *rows = weft_matmul(x, w, .transpose_b = true), *loss = weft_sum(weft_square(rows));
    OK(weft_gradients(loss, &w, 1, &grad));
    weft_plan *plan = plan_of(world, g, true, (weft_plan_options){0}, LIST(loss, grad, rows, weft_cross_entropy(rows, label)));
    float      out[12] = {1, 1, 1};
    OK(weft_plan_run(plan, (weft_feed[]){{"x", WEFT_F32, weft_shape(0, 4), NULL}, {"label", WEFT_I32, weft_shape(0), NULL}}, 2));
    OK(weft_plan_fetch(plan, 0, out, 4));
    cr_assert_eq(out[0], 0);
    OK(weft_plan_fetch(plan, 1, out, sizeof out));
    for (int32_t i = 0; i < 12; i++) cr_assert_eq(out[i], 0);
    OK(weft_plan_fetch(plan, 2, NULL, 0));
    weft_plan_release(plan);
    weft_graph_release(g);
    world_close(world);
}

Test(plan_run, draws_by_step_and_profiles) {
    weft_world  *world = world_open(WEFTI_CPU_AUTO);
    weft_graph  *g = graph_new(1);
    weft_tensor *r = weft_random_normal(g, WEFT_F32, weft_shape(300)), *kept = weft_dropout(weft_full(g, WEFT_F32, weft_shape(300), 1), 0.5);
    weft_plan   *plan = plan_of(world, g, true, (weft_plan_options){.profile = true, .trace = true}, LIST(r, kept, weft_step(g)));
    float        a[4][300], b[4][300];
    int64_t      step;
    const char  *text;
    FAILS(WEFT_E_STATE, weft_plan_profile(plan, &text), "has not run");
    for (int32_t i = 0; i < 4; i++) {
        weft_plan_set_step(plan, i % 2 ? INT64_C(1) << 40 : 0);
        OK(weft_plan_run(plan, NULL, 0));
        OK(weft_plan_fetch(plan, 0, a[i], sizeof a[i]));
        OK(weft_plan_fetch(plan, 1, b[i], sizeof b[i]));
        OK(weft_plan_fetch(plan, 2, &step, sizeof step));
        cr_assert_eq(step, i % 2 ? INT64_C(1) << 40 : 0);
    }
    cr_assert(memcmp(a[0], a[2], sizeof a[0]) == 0 && memcmp(b[1], b[3], sizeof b[1]) == 0, "the same step draws the same");
    cr_assert(memcmp(a[0], a[1], sizeof a[0]) != 0 && memcmp(b[0], b[1], sizeof b[0]) != 0, "another step draws others");
    OK(weft_plan_profile(plan, &text));
    cr_assert(strstr(text, "random") && strstr(text, "GB/s") && strstr(text, "roof %"), "%s", text);
    const char *roof = strstr(text, "roof: ");
    cr_assert(roof && atof(roof + 6) > 0.01 && atof(roof + 6) < 1e5 && strstr(roof, "GB/s by a copy"), "%s", text);
    weft_trace_event events[4];
    cr_assert_eq(weft_plan_trace(plan, events, 4), 4);
    cr_assert(events[3].kind == WEFT_TRACE_RUN && events[3].run == 3 && events[2].kind == WEFT_TRACE_SEGMENT);
    cr_assert_leq(events[3].begin_ns, events[2].begin_ns);
    weft_plan_release(plan);
    weft_graph_release(g);
    world_close(world);
}

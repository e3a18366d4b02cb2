/* What layers, losses and compositions compute, against formulas written out here. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "common/interp.h"
#include "weft/layers.h"
#include "weft/loss.h"

static weft_graph *graph;
static void open_graph(void) { cr_assert_eq(weft_graph_create(&(weft_graph_options){.seed = 5}, &graph), WEFT_OK); }
static void close_graph(void) {
    weft_graph_release(graph);
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_assert_eq(counts.held_bytes, 0, "%llu bytes leaked", (unsigned long long)counts.held_bytes);
}
TestSuite(graph_values, .init = open_graph, .fini = close_graph);

static weft_tensor *f64(const char *name, weft_shape shape) { return weft_input(graph, name, WEFT_F64, shape); }

/* Computes y with leaf x set to values, and compares. */
static void expect(weft_tensor *y, weft_tensor *x, const double *values, const double *expected) {
    interp *in = interp_open(graph, &y, 1, true);
    interp_set(in, x, values);
    interp_run(in, 0);
    for (int64_t i = 0; i < weft_shape_elements(y->shape); i++)
        cr_assert_float_eq(interp_get(in, y, i), expected[i], 1e-12, "[%d] is %.15g, not %.15g", (int)i,
                           interp_get(in, y, i), expected[i]);
    interp_close(in);
}

static const double six[] = {1, -2, 3, 4, 0, -5};

Test(graph_values, variance_and_norms) {
    weft_tensor *x = f64("x", weft_shape(2, 3));
    expect(weft_variance(x, .axes = weft_axes(1)), x, six, (double[]){38.0 / 9, 122.0 / 9});
    expect(weft_variance(x, .axes = weft_axes(1), .correction = 1), x, six, (double[]){38.0 / 6, 122.0 / 6});
    expect(weft_norm(x), x, six, (double[]){sqrt(55)});
    expect(weft_norm(x, .p = 1, .axes = weft_axes(0), .keep = true), x, six, (double[]){5, 2, 8});
    expect(weft_norm(x, .p = INFINITY), x, six, (double[]){5});
    expect(weft_norm(x, .p = 3, .axes = weft_axes(1)), x, six, (double[]){cbrt(36), cbrt(189)});
    expect(weft_norm(x), x, (double[6]){0}, (double[]){0});
}

Test(graph_values, norm_has_gradient_zero_at_zero_and_keeps_nan) {
    weft_tensor *x = f64("x", weft_shape(3)), *y = weft_norm(x), *g;
    cr_assert_eq(weft_gradients(y, &x, 1, &g), WEFT_OK);
    expect(g, x, (double[3]){0}, (double[3]){0});
    expect(g, x, (double[]){3, 0, 4}, (double[]){0.6, 0, 0.8});
    interp *in = interp_open(graph, &y, 1, true);
    interp_set(in, x, (double[]){1, NAN, 2});
    interp_run(in, 0);
    cr_assert(isnan(interp_get(in, y, 0)));
    interp_close(in);
}

Test(graph_values, split_concat_pad_and_slices) {
    weft_tensor *x = f64("x", weft_shape(2, 3)), *parts[3];
    weft_split(x, 1, 3, parts);
    expect(weft_concat((weft_tensor *[]){parts[2], parts[0]}, 2, 0), x, six, (double[]){3, -5, 1, 4});
    expect(weft_pad(x, .low = {0, 1}, .high = {1}, .value = 9), x, six,
           (double[]){9, 1, -2, 3, 9, 4, 0, -5, 9, 9, 9, 9});
    expect(weft_slice_step(x, 1, 0, INT64_MAX, 2), x, six, (double[]){1, 3, 4, -5});
    expect(weft_slice(x, -1, -1, INT64_MAX), x, six, (double[]){3, -5});
    expect(weft_softmax(x, 0), x, six,
           (double[]){1 / (1 + exp(3)), 1 / (1 + exp(2)), 1 / (1 + exp(-8)), 1 / (1 + exp(-3)), 1 / (1 + exp(-2)),
                      1 / (1 + exp(8))});
}

Test(graph_values, scalars_and_constants) {
    weft_tensor *x = f64("x", weft_shape(2, 3));
    expect(weft_add_scalar(weft_mul_scalar(x, 2), -1), x, six, (double[]){1, -5, 5, 7, -1, -11});
    expect(weft_cast(weft_ge_scalar(x, 0), WEFT_F64), x, six, (double[]){1, 0, 1, 1, 1, 0});
    double       values[6] = {1, 2, 3, 4, 5, 6};
    weft_array  *array, *part;
    cr_assert_eq(weft_array_create_from(WEFT_F64, weft_shape(2, 3), values, &array), WEFT_OK);
    cr_assert_eq(weft_array_slice(array, 1, 1, 3, &part), WEFT_OK);
    weft_tensor *whole = weft_constant(graph, "table", array), *cut = weft_constant(graph, NULL, part);
    weft_array_release(part);
    weft_array_release(array);
    expect(weft_mul(x, whole), x, six, (double[]){1, -4, 9, 16, 0, -30});
    expect(weft_mul(weft_slice(x, 1, 0, 2), cut), x, six, (double[]){2, -6, 20, 0});
    cr_assert_eq(weft_graph_find(graph, "table"), whole);
    cr_assert_not(weft_tensor_ok(weft_constant(graph, "none", NULL)));
    cr_assert_eq(weft_graph_check(graph), WEFT_E_INVALID);
}

Test(graph_values, cross_entropy_divides_by_the_labels_that_count) {
    weft_tensor *x = f64("x", weft_shape(3, 2)), *label = weft_input(graph, "label", WEFT_I32, weft_shape(3));
    weft_tensor *loss = weft_cross_entropy(x, label, .ignore = true, .ignored = -1), *g;
    cr_assert_eq(weft_gradients(loss, &x, 1, &g), WEFT_OK, "%s", weft_graph_message(graph));
    weft_tensor *targets[2] = {loss, g};
    interp      *in = interp_open(graph, targets, 2, true);
    interp_set(in, x, six);
    interp_set(in, label, (double[]){1, -1, 0});
    interp_run(in, 0);
    double first = log1p(exp(3)), third = log1p(exp(-5));
    cr_assert_float_eq(interp_get(in, loss, 0), (first + third) / 2, 1e-12);
    cr_assert_float_eq(interp_get(in, g, 0), 1 / (1 + exp(-3)) / 2, 1e-12);
    cr_assert_eq(interp_get(in, g, 2), 0);
    interp_set(in, label, (double[]){-1, -1, -1});
    interp_run(in, 0);
    cr_assert_eq(interp_get(in, loss, 0), 0);
    cr_assert_eq(interp_get(in, g, 0), 0);
    interp_close(in);
}

Test(graph_values, losses) {
    weft_tensor *x = f64("x", weft_shape(2, 3)), *t = weft_full(graph, WEFT_F64, weft_shape(2, 3), 1);
    expect(weft_mse(x, t), x, six, (double[]){(0 + 9 + 4 + 9 + 1 + 36) / 6.0});
    expect(weft_mae(x, t, .reduction = WEFT_SUM), x, six, (double[]){15});
    expect(weft_huber(x, t, .reduction = WEFT_NONE, .delta = 2), x, six, (double[]){0, 4, 2, 4, 0.5, 10});
    double plain[6], weighted[6];
    for (int i = 0; i < 6; i++) {
        plain[i] = log1p(exp(-six[i]));
        weighted[i] = 3 * plain[i];
    }
    expect(weft_bce_with_logits(x, t, .reduction = WEFT_NONE), x, six, plain);
    expect(weft_bce_with_logits(x, t, .reduction = WEFT_NONE, .positive_weight = 3), x, six, weighted);
    weft_tensor *large = weft_bce_with_logits(weft_mul_scalar(x, 1e4), t, .reduction = WEFT_NONE);
    expect(large, x, six, (double[]){0, 2e4, 0, 0, log(2), 5e4});
}

Test(graph_values, batch_norm_tracks_its_statistics) {
    weft_tensor *x = f64("x", weft_shape(4, 2)), *y = weft_batch_norm(x, "bn", .momentum = 0.25, .eps = 1e-12);
    const double values[8] = {1, 10, 2, 20, 3, 30, 6, 40}; /* means 3, 25; variances 3.5, 125; unbiased times 4/3 */
    weft_tensor *targets[3] = {y, &graph->effects[0]->outputs[0], &graph->effects[1]->outputs[0]};
    weft_tensor *mean = weft_graph_find(graph, "bn.running_mean"),
                *variance = weft_graph_find(graph, "bn.running_variance");
    interp      *in = interp_open(graph, targets, 3, true), *evaluation = interp_open(graph, &y, 1, false);
    interp_set(in, x, values);
    interp_set(in, weft_graph_find(graph, "bn.weight"), (double[]){1, 2});
    interp_set(in, weft_graph_find(graph, "bn.bias"), (double[]){0, 5});
    interp_set(in, mean, (double[]){1, 1});
    interp_set(in, variance, (double[]){1, 1});
    interp_run(in, 0);
    cr_assert_float_eq(interp_get(in, y, 0), -2 / sqrt(3.5), 1e-9);
    cr_assert_float_eq(interp_get(in, y, 7), 5 + 2 * 15 / sqrt(125), 1e-9);
    cr_assert_float_eq(interp_get(in, mean, 0), 0.75 + 0.25 * 3, 1e-12);
    cr_assert_float_eq(interp_get(in, mean, 1), 0.75 + 0.25 * 25, 1e-12);
    cr_assert_float_eq(interp_get(in, variance, 0), 0.75 + 0.25 * 3.5 * 4 / 3, 1e-12);
    cr_assert_float_eq(interp_get(in, variance, 1), 0.75 + 0.25 * 125 * 4 / 3, 1e-12);
    interp_set(evaluation, x, values);
    interp_set(evaluation, weft_graph_find(graph, "bn.weight"), (double[]){1, 2});
    interp_set(evaluation, mean, (double[]){0, 10});
    interp_set(evaluation, variance, (double[]){4, 9});
    interp_run(evaluation, 0);
    cr_assert_float_eq(interp_get(evaluation, y, 6), 3, 1e-9);
    cr_assert_float_eq(interp_get(evaluation, y, 7), 20, 1e-9);
    interp_close(evaluation);
    interp_close(in);
}

Test(graph_values, grouped_norms) {
    weft_tensor *x = f64("x", weft_shape(1, 2, 3));
    weft_tensor *y = weft_group_norm(x, "gn", .groups = 1, .no_affine = true, .eps = 1e-12);
    double       mean = 1.0 / 6, variance = 55.0 / 6 - mean * mean, expected[6];
    for (int i = 0; i < 6; i++) expected[i] = (six[i] - mean) / sqrt(variance + 1e-12);
    expect(y, x, six, expected);
    expect(weft_rms_norm(x, "rms", .no_affine = true, .axes = 2, .eps = 1e-12), x, six,
           (double[]){1 / sqrt(55.0 / 6), -2 / sqrt(55.0 / 6), 3 / sqrt(55.0 / 6), 4 / sqrt(55.0 / 6), 0,
                      -5 / sqrt(55.0 / 6)});
}

Test(graph_values, pooling_goes_before_bias_and_relu_and_gives_the_same_bits) {
    weft_tensor *x = weft_input(graph, "x", WEFT_F32, weft_shape(2, 1, 9, 9)),
                *w = weft_parameter(graph, "w", weft_shape(3, 1, 3, 3));
    weft_tensor *h = weft_relu(weft_conv2d(x, "c", .weight = w, .bias = weft_parameter(graph, "b", weft_shape(3))));
    weft_tensor *early = weft_max_pool2d(h, .window = 3, .stride = 2, .pad = 1);
    weft_tensor *late = weft_max_pool2d(weft_neg(weft_neg(h)), .window = 3, .stride = 2, .pad = 1);
    cr_assert_eq(early->node->op, WEFT_OP_RELU);
    cr_assert_eq(late->node->op, WEFT_OP_MAX_POOL2D);
    weft_tensor *targets[2] = {early, late};
    interp      *in = interp_open(graph, targets, 2, true);
    for (int i = 0; i < 162; i++) interp_set_one(in, x, i, sin(i * 1.9));
    for (int i = 0; i < 27; i++) interp_set_one(in, w, i, cos(i * 2.3));
    for (int i = 0; i < 3; i++) interp_set_one(in, weft_graph_find(graph, "b"), i, 0.3 * i - 0.4);
    interp_run(in, 0);
    cr_assert_eq(memcmp(interp_data(in, early), interp_data(in, late), 2 * 3 * 16 * sizeof(float)), 0);
    interp_close(in);
}

Test(graph_values, dropout_keeps_the_mean_and_changes_with_the_step) {
    weft_tensor *x = weft_full(graph, WEFT_F64, weft_shape(100, 100), 1), *y = weft_dropout(x, 0.25),
                *z = weft_dropout(x, 0.25);
    weft_tensor *targets[2] = {y, z};
    interp      *in = interp_open(graph, targets, 2, true);
    double       sum[2] = {0}, same = 0;
    double      *before = malloc(10000 * sizeof *before);
    for (int step = 0; step < 2; step++) {
        interp_run(in, step);
        for (int i = 0; i < 10000; i++) {
            double v = interp_get(in, y, i);
            cr_assert(v == 0 || fabs(v - 1 / 0.75) < 1e-12);
            sum[step] += v;
            if (step == 1) same += before[i] == v;
            before[i] = v;
        }
        cr_assert_float_eq(sum[step] / 10000, 1, 0.03);
    }
    cr_assert_lt(same, 7000);
    same = 0;
    for (int i = 0; i < 10000; i++) same += interp_get(in, y, i) == interp_get(in, z, i);
    cr_assert_lt(same, 7000, "two dropouts of one name must not share a mask");
    free(before);
    interp_close(in);
}

/* Images with channels last (core/plan/layout.c) and moments in one pass (moments.c) change the order of sums and nothing else: a network with
 * all that they touch is trained with and without, in 16 bits, and beside the CPU. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "weft.h"
#include "core/plan/object.h"

enum { ROWS = 6, SIDE = 12, CHANNELS = 3, CLASSES = 4, STEPS = 4 };

/* Convolutions of all kinds, batch norm, a residual, pooling, means over planes and over everything, dropout, and a reshape in between. */
static weft_tensor *network(weft_tensor *x) {
    x = weft_batch_norm(weft_conv2d(x, "stem", .filters = 8, .kernel = 3, .pad = 1, .stride = 2, .no_bias = true), "stem_norm");
    x = weft_max_pool2d(weft_relu(x), .window = 3, .stride = 2, .pad = 1);
    weft_tensor *h = weft_relu(weft_batch_norm(weft_conv2d(x, "narrow", .filters = 4, .kernel = 1), "narrow_norm"));
    h = weft_batch_norm(weft_conv2d(h, "wide", .filters = 8, .kernel = 3, .pad = 1, .no_bias = true), "wide_norm");
    x = weft_dropout(weft_relu(weft_add(h, x)), 0.1);
    x = weft_avg_pool2d(weft_conv2d(x, "grouped", .filters = 8, .kernel = 3, .pad = 1, .groups = 2), .window = 2, .stride = 1);
    weft_tensor *flat = weft_linear(weft_flatten(weft_conv2d(x, "last", .filters = 4, .kernel = 1)), "flat", .out = CLASSES);
    return weft_add(flat, weft_linear(weft_global_avg_pool2d(x), "head", .out = CLASSES));
}

static void make_batch(float *image, int32_t *label) {
    uint32_t state = 7;
    for (int i = 0; i < ROWS; i++) label[i] = i % CLASSES;
    for (int i = 0; i < ROWS * CHANNELS * SIDE * SIDE; i++) {
        state = state * 1664525u + 1013904223u;
        image[i] = (float)(state >> 8) / 8388608.0f - 1 + 0.5f * (float)(i / (SIDE * SIDE) % CHANNELS);
    }
}

/* Losses, then all parameters and states; to be freed. */
static double *train(weft_dtype precision, const char *device, const char *last, const char *compiled, size_t *count_out) {
    weft_world   *world = NULL;
    weft_graph   *g = NULL;
    weft_trainer *trainer = NULL;
    static float  image[ROWS * CHANNELS * SIDE * SIDE];
    int32_t       label[ROWS];
    double       *values = NULL;
    make_batch(image, label);
    setenv("WEFT_DEVICE", device, 1);
    setenv("WEFT_CUDA_CHANNELS_LAST", last, 1);
    setenv("WEFT_CUDA_NVRTC", compiled, 1);
    cr_assert_eq(weft_world_create(NULL, &world), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_graph_create(&(weft_graph_options){.seed = 3}, &g), WEFT_OK);
    weft_batch_field fields[2] = {{"image", WEFT_F32, weft_shape(ROWS, CHANNELS, SIDE, SIDE), image}, {"label", WEFT_I32, weft_shape(ROWS), label}};
    weft_tensor     *x = weft_input(g, "image", fields[0].dtype, fields[0].shape);
    weft_tensor     *loss = weft_cross_entropy(network(x), weft_input(g, "label", WEFT_I32, weft_shape(ROWS)));
    weft_program     program = {.loss = loss, .solver = weft_sgd(0.05, .momentum = 0.9), .strategy = {.precision = precision}};
    cr_assert_eq(weft_trainer_create(world, &program, &trainer), WEFT_OK, "%s", weft_error_message());
    const weft_variables *variables = weft_trainer_variables(trainer);
    size_t                n = STEPS;
    for (int step = 0; step < STEPS; step++) {
        weft_report report;
        weft_batch  batch = {.field_count = 2, .field = {fields[0], fields[1]}, .global_rows = ROWS, .local_rows = ROWS};
        cr_assert_eq(weft_trainer_step(trainer, &batch, &report), WEFT_OK, "%s", weft_error_message());
        values = realloc(values, STEPS * sizeof *values);
        values[step] = report.loss;
    }
    for (int32_t i = 0; i < weft_variables_count(variables); i++) {
        weft_variable_info info;
        cr_assert_eq(weft_variables_info(variables, i, &info), WEFT_OK);
        if (info.dtype != WEFT_F32) continue;
        size_t elements = (size_t)info.bytes / sizeof(float);
        float *own = malloc((size_t)info.bytes + 1);
        cr_assert_eq(weft_variables_get(variables, info.name, own, (size_t)info.bytes), WEFT_OK, "%s", weft_error_message());
        values = realloc(values, (n + elements) * sizeof *values);
        for (size_t k = 0; k < elements; k++) values[n++] = own[k];
        free(own);
    }
    weft_trainer_release(trainer);
    weft_graph_release(g);
    weft_world_release(world);
    *count_out = n;
    return values;
}

static void agrees(const char *what, const double *a, size_t n, const double *b, size_t m, double most) {
    double difference = 0, size = 0;
    cr_assert_eq(n, m);
    for (size_t i = 0; i < n; i++) {
        difference += (a[i] - b[i]) * (a[i] - b[i]);
        size += b[i] * b[i];
    }
    double off = sqrt(difference / size);
    fprintf(stderr, "  %s: off by %.3g\n", what, off);
    cr_assert(off <= most, "%s is off by %.3g, allowed %.3g", what, off, most);
}

/* What 16 bits round moves results where sums come in another order: f16 by an eighth of what bf16 does. */
static void compare(weft_dtype precision, double most) {
    size_t  n[4];
    double *cpu = train(precision, "cpu", "1", "0", &n[0]), *planes = train(precision, "cuda", "0", "0", &n[1]);
    double *last = train(precision, "cuda", "1", "0", &n[2]);
    agrees("in planes, beside the CPU", planes, n[1], cpu, n[0], most);
    agrees("channels last, beside the CPU", last, n[2], cpu, n[0], most);
#ifndef WEFT_SANITIZED
    double *fused = train(precision, "cuda", "1", "1", &n[3]);
    agrees("channels last, compiled, beside the CPU", fused, n[3], cpu, n[0], most);
    free(fused);
#endif
    free(cpu);
    free(planes);
    free(last);
}

Test(cuda_layout, changes_nothing_but_the_order_of_sums_in_bf16) { compare(WEFT_BF16, 3e-2); }
Test(cuda_layout, changes_nothing_but_the_order_of_sums_in_f16) { compare(WEFT_F16, 4e-3); }

/* --- where maxima were found --- */

/* A pool with the given window, its gradient with respect to what is pooled, and what kind of index lies between; to be freed. */
static float *pooled(const char *device, int window, int stride, int pad, weft_dtype *index_out, size_t *count_out) {
    weft_world  *world = NULL;
    weft_graph  *g = NULL;
    weft_plan   *plan = NULL;
    weft_tensor *gradient = NULL;
    setenv("WEFT_DEVICE", device, 1);
    cr_assert_eq(weft_world_create(NULL, &world), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_graph_create(&(weft_graph_options){.seed = 9}, &g), WEFT_OK);
    weft_tensor *x = weft_parameter(g, "x", weft_shape(2, 5, 21, 19));
    weft_tensor *y = weft_max_pool2d(x, .window = window, .stride = stride, .pad = pad);
    weft_tensor *loss = weft_sum(weft_square(y));
    cr_assert_eq(weft_gradients(loss, &x, 1, &gradient), WEFT_OK, "%s", weft_error_message());
    weft_tensor *outputs[2] = {y, gradient};
    size_t       bytes[2] = {(size_t)weft_shape_elements(weft_tensor_shape(y)) * sizeof(float), 2 * 5 * 21 * 19 * sizeof(float)};
    cr_assert_eq(weft_plan_create(world, g, &(weft_plan_options){.outputs = outputs, .n_outputs = 2, .training = true}, &plan), WEFT_OK, "%s",
                 weft_error_message());
    *index_out = WEFT_DTYPE_COUNT;
    for (int32_t i = 0; i < plan->ir.n_items; i++)
        if (plan->ir.items[i].op == WEFT_OP_MAX_POOL2D) *index_out = plan->ir.values[plan->ir.items[i].outputs[1]].dtype;
    cr_assert_eq(weft_plan_run(plan, NULL, 0), WEFT_OK, "%s", weft_error_message());
    float *values = malloc(bytes[0] + bytes[1]);
    cr_assert_eq(weft_plan_fetch(plan, 0, values, bytes[0]), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_plan_fetch(plan, 1, values + bytes[0] / sizeof *values, bytes[1]), WEFT_OK, "%s", weft_error_message());
    *count_out = (bytes[0] + bytes[1]) / sizeof *values;
    weft_plan_release(plan);
    weft_graph_release(g);
    weft_world_release(world);
    return values;
}

static void pools_alike(int window, int stride, int pad, weft_dtype index) {
    weft_dtype there, here;
    size_t     n, m;
    float     *cuda = pooled("cuda", window, stride, pad, &there, &n), *cpu = pooled("cpu", window, stride, pad, &here, &m);
    cr_expect_eq(here, WEFT_I32);
    cr_expect_eq(there, index, "a window of %d has an index of %s", window, weft_dtype_name(there));
    cr_assert_eq(n, m);
    for (size_t i = 0; i < n; i++) /* a wrong place is off by a term; the CPU adds those of overlapping windows in f32 */
        cr_assert(fabsf(cuda[i] - cpu[i]) <= 1e-5f * (1 + fabsf(cpu[i])), "a window of %d, every %d, padded by %d: number %zu is %.9g, on the CPU %.9g", window, stride,
                  pad, i, (double)cuda[i], (double)cpu[i]);
    free(cuda);
    free(cpu);
}
Test(cuda_layout, keeps_places_of_maxima_in_bytes) {
    pools_alike(2, 2, 0, WEFT_U8);
    pools_alike(3, 2, 1, WEFT_U8);
    pools_alike(5, 1, 2, WEFT_U8);
    pools_alike(15, 1, 7, WEFT_U8);
    pools_alike(16, 1, 8, WEFT_I32); /* 256 places are one too many */
}

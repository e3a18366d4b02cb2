/* Every differentiable op against differences, first and second order, with awkward shapes and broadcasting. */
#include <criterion/criterion.h>
#include <math.h>

#include "autodiff/gradcheck.h"
#include "weft/layers.h"
#include "weft/loss.h"

static weft_graph *graph;

static void open_graph(void) { cr_assert_eq(weft_graph_create(&(weft_graph_options){.seed = 3}, &graph), WEFT_OK); }
static void close_graph(void) {
    weft_graph_release(graph);
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_assert_eq(counts.held_bytes, 0, "%llu bytes leaked", (unsigned long long)counts.held_bytes);
}
TestSuite(autodiff_ops, .init = open_graph, .fini = close_graph);

/* The dtype of floating leaves: F64 for differences; the others are held against it. */
static weft_dtype   floating = WEFT_F64;
static weft_tensor *f64(const char *name, weft_shape shape) { return weft_input(graph, name, floating, shape); }
static weft_tensor *i32(const char *name, weft_shape shape) { return weft_input(graph, name, WEFT_I32, shape); }
#define X f64("x", weft_shape(3, 1, 5))
#define Y f64("y", weft_shape(2, 1))
static void again(void) {
    weft_graph_release(graph);
    open_graph();
}
/* One check, in a fresh graph. */
#define CHECK(expression, ...)                                            \
    do {                                                                  \
        check_gradients(expression, (gradcheck){.name = #expression, __VA_ARGS__}); \
        again();                                                          \
    } while (0)

static void unary(void) {
    CHECK(weft_neg(X), .low = -1, .high = 1);
    CHECK(weft_abs(X), .low = -1, .high = 1);
    CHECK(weft_square(X), .low = -1, .high = 1);
    CHECK(weft_exp(X), .low = -1, .high = 1);
    CHECK(weft_expm1(X), .low = -1, .high = 1);
    CHECK(weft_log(X), .low = 0.3, .high = 3);
    CHECK(weft_log1p(X), .low = -0.5, .high = 3);
    CHECK(weft_sqrt(X), .low = 0.3, .high = 3);
    CHECK(weft_rsqrt(X), .low = 0.3, .high = 3);
    CHECK(weft_reciprocal(X), .low = 0.3, .high = 3);
    CHECK(weft_sin(X), .low = -3, .high = 3);
    CHECK(weft_cos(X), .low = -3, .high = 3);
    CHECK(weft_tanh(X), .low = -2, .high = 2);
    CHECK(weft_sigmoid(X), .low = -3, .high = 3);
    CHECK(weft_erf(X), .low = -2, .high = 2);
    CHECK(weft_softplus(X), .low = -3, .high = 3);
    CHECK(weft_relu(X), .low = -1, .high = 1);
    CHECK(weft_gelu(X), .low = -3, .high = 3);
    CHECK(weft_gelu_tanh(X), .low = -3, .high = 3);
    CHECK(weft_silu(X), .low = -3, .high = 3);
    CHECK(weft_clamp(X, -0.4, 0.3), .low = -1, .high = 1);
    CHECK(weft_clamp(X, -INFINITY, 0.3), .low = -1, .high = 1);
    CHECK(weft_clamp(weft_square(X), 0.2, INFINITY), .low = -1, .high = 1);
    CHECK(weft_clamp(X, -INFINITY, INFINITY), .low = -1, .high = 1);
    CHECK(weft_mul(X, weft_floor(weft_mul_scalar(f64("z", weft_shape(5)), 7))), .first_only = true);
    CHECK(weft_cast(weft_cast(X, WEFT_F32), WEFT_F64), .first_only = true, .tolerance = 2e-2);
}

static void binary_with_broadcasting(void) {
    CHECK(weft_add(X, Y), .low = -1, .high = 1);
    CHECK(weft_sub(Y, X), .low = -1, .high = 1);
    CHECK(weft_mul(X, Y), .low = -1, .high = 1);
    CHECK(weft_div(X, Y), .low = 0.5, .high = 2);
    CHECK(weft_div(Y, X), .low = 0.5, .high = 2);
    CHECK(weft_pow(X, Y), .low = 0.5, .high = 2);
    CHECK(weft_maximum(X, Y), .low = -1, .high = 1);
    CHECK(weft_minimum(X, Y), .low = -1, .high = 1);
    CHECK(weft_where(weft_input(graph, "c", WEFT_BOOL, weft_shape(2, 5)), X, Y), .low = -1, .high = 1);
    CHECK(weft_mul(X, weft_scalar(graph, floating, 3)), .low = -1, .high = 1);
    CHECK(weft_mul(X, f64("s", weft_shape_scalar())), .low = -1, .high = 1);
    CHECK(weft_mul(f64("e", weft_shape(0, 3)), f64("b", weft_shape(3))), .low = -1, .high = 1);
}

static void one_tensor_used_twice(void) {
    weft_tensor *x = X;
    CHECK(weft_mul(weft_add(x, x), weft_sub(weft_exp(x), weft_mul(x, x))), .low = -1, .high = 1);
}

static void powers_by_numbers(void) {
    static const double exponents[] = {-2, -1, -0.5, 0, 0.5, 1, 1.7, 2, 3};
    for (size_t i = 0; i < WEFTI_COUNT(exponents); i++) CHECK(weft_pow_scalar(X, exponents[i]), .low = 0.4, .high = 2);
    CHECK(weft_pow_scalar(X, 3), .low = -1, .high = 1);
}

static void reductions(void) {
    CHECK(weft_sum(weft_square(X)), .low = -1, .high = 1);
    CHECK(weft_sum(weft_square(X), .axes = weft_axes(0, 2)), .low = -1, .high = 1);
    CHECK(weft_sum(weft_square(X), .axes = weft_axes(-1), .keep = true), .low = -1, .high = 1);
    CHECK(weft_mean(weft_square(X)), .low = -1, .high = 1);
    CHECK(weft_mean(weft_square(X), .axes = weft_axes(0)), .low = -1, .high = 1);
    CHECK(weft_square(weft_mean(X, .axes = weft_axes(0, 1), .keep = true)), .low = -1, .high = 1);
    CHECK(weft_square(weft_max(X, .axes = weft_axes(2))), .low = -1, .high = 1);
    CHECK(weft_square(weft_min(X, .axes = weft_axes(0), .keep = true)), .low = -1, .high = 1);
    CHECK(weft_variance(X, .axes = weft_axes(2)), .low = -1, .high = 1);
    CHECK(weft_variance(X, .correction = 1), .low = -1, .high = 1);
    CHECK(weft_norm(X, .axes = weft_axes(2)), .low = 0.2, .high = 1);
    CHECK(weft_norm(X, .p = 1), .low = 0.2, .high = 1);
    CHECK(weft_norm(X, .p = 3), .low = 0.2, .high = 1);
    CHECK(weft_norm(X, .p = INFINITY, .axes = weft_axes(0)), .low = 0.2, .high = 1);
}

/* Indices are drawn from three: rows of the third have no expert. */
static weft_tensor *expert_product(int64_t repeat, bool trans) {
    wefti_attrs  attrs = wefti_no_attrs();
    weft_tensor *inputs[3] = {f64("x", weft_shape(4, 3)), f64("w", trans ? weft_shape(2, 5, 3) : weft_shape(2, 3, 5)), i32("i", weft_shape(4 * repeat))};
    attrs.expert.repeat = repeat;
    attrs.expert.trans = trans;
    inputs[0] = weft_square(inputs[0]);
    return wefti_apply(WEFT_OP_EXPERT_MATMUL, &attrs, inputs, 3, NULL);
}

static void views_and_moves(void) {
    weft_tensor *x = f64("m", weft_shape(2, 3, 4));
    weft_tensor *s = weft_square(x);
    CHECK(weft_reshape(s, weft_shape(4, -1)), .low = -1, .high = 1);
#define S weft_square(f64("m", weft_shape(2, 3, 4)))
    CHECK(weft_permute(S, weft_axes(2, 0, 1)), .low = -1, .high = 1);
    CHECK(weft_slice(S, 1, 1, 3), .low = -1, .high = 1);
    CHECK(weft_slice_step(S, 2, 0, 4, 3), .low = -1, .high = 1);
    CHECK(weft_slice_step(S, 2, 1, 4, 2), .low = -1, .high = 1);
    CHECK(weft_slice(S, 1, 2, 2), .low = -1, .high = 1);
    CHECK(weft_expand(weft_square(f64("v", weft_shape(3, 1))), weft_shape(2, 3, 4)), .low = -1, .high = 1);
    CHECK(weft_concat(
              (weft_tensor *[]){S, weft_square(f64("v", weft_shape(2, 1, 4))), weft_exp(f64("u", weft_shape(2, 0, 4)))},
              3, 1),
          .low = -1, .high = 1);
    CHECK(weft_pad(S, .low = {1, 0, 2}, .high = {0, 1}, .value = 2), .low = -1, .high = 1);
    CHECK(weft_gather(S, i32("i", weft_shape(2, 2)), 1), .integers = 4);
    CHECK(weft_gather(S, i32("i", weft_shape_scalar()), 0), .integers = 2);
    CHECK(weft_scatter_add(S, i32("i", weft_shape(3)), weft_square(f64("u", weft_shape(2, 3, 3))), -1), .integers = 5);
    CHECK(weft_unsqueeze(weft_transpose(S, 0, 2), 1), .low = -1, .high = 1);
    CHECK(expert_product(1, false), .integers = 3);
    CHECK(expert_product(2, false), .integers = 3);
    CHECK(expert_product(2, true), .integers = 3);
#undef S
}

static void slices_that_part_overlap_and_leave_gaps(void) {
    weft_tensor *m = f64("m", weft_shape(2, 7)), *parts[3];
    weft_split_sizes(m, 1, (int64_t[]){2, 4, 1}, 3, parts);
    CHECK(weft_concat((weft_tensor *[]){weft_exp(parts[2]), weft_square(parts[0]), weft_sin(parts[1])}, 3, 1),
          .low = -1, .high = 1);
    m = f64("m", weft_shape(2, 7));
    weft_tensor *sum = weft_sum(weft_square(weft_slice(m, 1, 1, 3)));
    sum = weft_add(sum, weft_sum(weft_exp(weft_slice(m, 1, 2, 5))));
    sum = weft_add(sum, weft_sum(weft_sin(weft_slice(m, 1, 5, 6))));
    sum = weft_add(sum, weft_sum(weft_square(weft_slice(m, 0, 1, 2))));
    sum = weft_add(sum, weft_sum(weft_square(weft_slice(m, 0, 0, 2))));
    sum = weft_add(sum, weft_sum(weft_square(weft_slice(m, 1, 4, 4))));
    CHECK(weft_add(sum, weft_sum(weft_exp(m))), .low = -1, .high = 1);
}

static void products(void) {
    for (int flags = 0; flags < 4; flags++) {
        bool         ta = flags & 1, tb = flags & 2;
        weft_tensor *a = f64("a", ta ? weft_shape(4, 3) : weft_shape(3, 4)),
                    *b = f64("b", tb ? weft_shape(2, 4) : weft_shape(4, 2));
        CHECK(weft_matmul(a, b, .transpose_a = ta, .transpose_b = tb), .low = -1, .high = 1);
        a = f64("a", ta ? weft_shape(2, 1, 4, 3) : weft_shape(2, 1, 3, 4));
        b = f64("b", tb ? weft_shape(3, 2, 4) : weft_shape(3, 4, 2));
        CHECK(weft_matmul(a, b, .transpose_a = ta, .transpose_b = tb), .low = -1, .high = 1);
        a = f64("a", ta ? weft_shape(2, 4, 3) : weft_shape(2, 3, 4));
        b = f64("b", tb ? weft_shape(2, 4) : weft_shape(4, 2));
        CHECK(weft_matmul(a, b, .transpose_a = ta, .transpose_b = tb), .low = -1, .high = 1);
    }
    CHECK(weft_matmul(f64("a", weft_shape(1, 1)), f64("b", weft_shape(1, 3))), .low = -1, .high = 1);
    CHECK(weft_matmul(f64("a", weft_shape(2, 0)), f64("b", weft_shape(0, 3))), .low = -1, .high = 1);
}

static void convolutions(void) {
    weft_tensor *x = f64("x", weft_shape(2, 2, 5, 4));
    CHECK(weft_conv2d(x, "c", .weight = f64("w", weft_shape(3, 2, 3, 2))), .low = -1, .high = 1);
    x = f64("x", weft_shape(1, 4, 5, 6));
    CHECK(weft_conv2d(x, "c", .weight = f64("w", weft_shape(2, 2, 2, 3)), .bias = f64("b", weft_shape(2)), .groups = 2,
                      .stride_of = {2, 1}, .pad_of = {1, 0, 2, 1}, .dilation_of = {1, 2}),
          .low = -1, .high = 1);
    x = f64("x", weft_shape(1, 2, 4, 4));
    CHECK(weft_conv2d(x, "c", .weight = f64("w", weft_shape(4, 1, 3, 3)), .groups = 2, .same = true), .low = -1,
          .high = 1);
}

static void pooling(void) {
    CHECK(weft_max_pool2d(f64("x", weft_shape(2, 1, 5, 4)), .window = 2), .low = -1, .high = 1);
    CHECK(weft_square(weft_max_pool2d(f64("x", weft_shape(1, 2, 5, 6)), .window = 3, .stride = 2, .pad = 1)), .low = -1,
          .high = 1);
    CHECK(weft_square(weft_avg_pool2d(f64("x", weft_shape(1, 2, 5, 6)), .window_of = {3, 2}, .stride = 2,
                                      .pad_of = {1, 0, 0, 1})),
          .low = -1, .high = 1);
    CHECK(weft_square(weft_avg_pool2d(f64("x", weft_shape(1, 2, 5, 5)), .window = 3, .stride = 2, .pad = 1,
                                      .exclude_pad = true)),
          .low = -1, .high = 1);
    CHECK(weft_square(weft_global_avg_pool2d(f64("x", weft_shape(2, 3, 2, 3)))), .low = -1, .high = 1);
    CHECK(weft_square(weft_global_max_pool2d(f64("x", weft_shape(2, 3, 2, 3)))), .low = -1, .high = 1);
}

static void pooling_after_bias_and_relu(void) {
    weft_tensor *x = f64("x", weft_shape(1, 2, 5, 4)), *w = f64("w", weft_shape(2, 2, 2, 2)),
                *b = f64("b", weft_shape(2));
    CHECK(weft_max_pool2d(weft_relu(weft_conv2d(x, "c", .weight = w, .bias = b)), .window = 2), .low = -1, .high = 1);
}

static void rows(void) {
    CHECK(weft_softmax(f64("x", weft_shape(3, 5)), -1), .low = -2, .high = 2);
    CHECK(weft_softmax(f64("x", weft_shape(3, 2, 2)), 0), .low = -2, .high = 2);
    CHECK(weft_log_softmax(f64("x", weft_shape(3, 5)), 1), .low = -2, .high = 2);
    CHECK(weft_log_softmax(f64("x", weft_shape(3, 5)), 0), .low = -2, .high = 2);
    CHECK(weft_rotary(f64("x", weft_shape(2, 3, 4)), .base = 100, .offset = 2), .low = -2, .high = 2);
    CHECK(weft_layer_norm(f64("x", weft_shape(2, 3, 4)), "n"), .low = -1, .high = 1);
    CHECK(weft_layer_norm(f64("x", weft_shape(2, 3, 4)), "n", .axes = 2, .eps = 0.1), .low = -1, .high = 1);
    CHECK(weft_rms_norm(f64("x", weft_shape(2, 3, 4)), "n"), .low = -1, .high = 1);
    CHECK(weft_group_norm(f64("x", weft_shape(2, 4, 3)), "n", .groups = 2), .low = -1, .high = 1);
}

static void outputs_beside_the_first(void) {
    /* rstd of a norm and the log-sum-exp of cross-entropy are differentiable too. */
    weft_tensor *x = f64("x", weft_shape(2, 5));
    for (int32_t rms = 0; rms < 2; rms++) {
        wefti_attrs attrs = wefti_no_attrs();
        attrs.rows.axes = 1;
        attrs.rows.rms = rms;
        attrs.rows.eps = 0.01;
        weft_tensor *y = wefti_apply(WEFT_OP_NORMALIZE, &attrs, &x, 1, NULL);
        CHECK(weft_add(weft_sum(y), weft_cast(weft_sum(wefti_output(y, 1)), floating)), .low = -1, .high = 1);
        x = f64("x", weft_shape(2, 5));
    }
    weft_tensor *inputs[2] = {x, i32("label", weft_shape(2))};
    weft_tensor *rows = wefti_apply(WEFT_OP_CROSS_ENTROPY, NULL, inputs, 2, NULL);
    CHECK(weft_add(rows, weft_square(wefti_output(rows, 1))), .integers = 5);
}

static void batch_norm(void) {
    CHECK(weft_batch_norm(f64("x", weft_shape(3, 2, 2, 2)), "bn"), .tolerance = 1e-5);
    CHECK(weft_batch_norm(f64("x", weft_shape(5, 2)), "bn", .eps = 0.1), .low = -1, .high = 1);
    CHECK(weft_batch_norm(f64("x", weft_shape(5, 2)), "bn"), .evaluation = true);
    CHECK(weft_batch_norm(f64("x", weft_shape(3, 2, 4)), "bn", .no_affine = true, .eps = 0.1), .low = -1, .high = 1);
}

static void dropout_by_mode(void) {
    CHECK(weft_dropout(weft_square(f64("x", weft_shape(6, 5))), 0.4), .low = -1, .high = 1);
    CHECK(weft_dropout(weft_square(f64("x", weft_shape(6, 5))), 0.4), .evaluation = true);
    CHECK(weft_training(weft_square(X), weft_sin(f64("z", weft_shape(3, 1, 5)))), .low = -1, .high = 1);
    CHECK(weft_training(weft_square(X), weft_sin(f64("z", weft_shape(3, 1, 5)))), .evaluation = true);
}

static void dense_layers(void) {
    CHECK(weft_tanh(weft_linear(f64("x", weft_shape(2, 3, 4)), "l", .out = 3)), .low = -1, .high = 1);
    CHECK(weft_linear(f64("x", weft_shape(4)), "l", .out = 3, .no_bias = true), .low = -1, .high = 1);
    CHECK(weft_tanh(weft_embedding(i32("i", weft_shape(2, 3)), "e", .weight = f64("w", weft_shape(4, 2)))),
          .integers = 5);
}

static void attention(void) {
    CHECK(weft_attention(f64("q", weft_shape(1, 2, 3, 4)), f64("k", weft_shape(1, 2, 5, 4)),
                         f64("v", weft_shape(1, 2, 5, 3))),
          .first_only = true);
    CHECK(weft_attention(f64("q", weft_shape(2, 4, 3, 2)), f64("k", weft_shape(2, 2, 3, 2)),
                         f64("v", weft_shape(2, 2, 3, 2)), .causal = true),
          .first_only = true);
    CHECK(weft_attention(f64("q", weft_shape(1, 2, 2, 2)), f64("k", weft_shape(1, 1, 4, 2)),
                         f64("v", weft_shape(1, 1, 4, 2)), .causal = true, .scale = 0.3),
          .first_only = true);
    CHECK(weft_self_attention(f64("x", weft_shape(2, 3, 8)), "a", .heads = 2, .kv_heads = 1, .causal = true,
                              .rotary = true),
          .first_only = true);
}

static void losses(void) {
#define LOGITS f64("x", weft_shape(4, 3))
#define LABEL i32("label", weft_shape(4))
    CHECK(weft_cross_entropy(LOGITS, LABEL), .integers = 3);
    CHECK(weft_cross_entropy(LOGITS, LABEL, .smoothing = 0.2, .reduction = WEFT_NONE), .integers = 3);
    CHECK(weft_cross_entropy(LOGITS, LABEL, .ignore = true, .ignored = 1), .integers = 3);
    CHECK(weft_cross_entropy(LOGITS, LABEL, .ignore = true, .ignored = 1, .reduction = WEFT_SUM, .smoothing = 0.1),
          .integers = 3);
    CHECK(weft_cross_entropy(f64("x", weft_shape(2, 2, 3)), i32("label", weft_shape(2, 2))), .integers = 3);
    CHECK(weft_mse(X, f64("t", weft_shape(3, 1, 5))), .low = -1, .high = 1);
    CHECK(weft_mae(X, f64("t", weft_shape(3, 1, 5)), .reduction = WEFT_SUM), .low = -1, .high = 1);
    CHECK(weft_huber(X, f64("t", weft_shape(3, 1, 5)), .delta = 0.4, .reduction = WEFT_NONE), .low = -1, .high = 1);
    CHECK(weft_bce_with_logits(X, f64("t", weft_shape(3, 1, 5))), .low = 0.1, .high = 0.9);
    CHECK(weft_bce_with_logits(X, f64("t", weft_shape(3, 1, 5)), .positive_weight = 3), .low = 0.1, .high = 0.9);
}

/* No samples at all: gradients of parameters are zero, those of samples have no elements. */
static void nothing(void) {
    CHECK(weft_exp(f64("x", weft_shape(0, 3))), .low = -1, .high = 1);
    CHECK(weft_sum(weft_square(f64("x", weft_shape(0, 3))), .axes = weft_axes(0)), .low = -1, .high = 1);
    CHECK(weft_matmul(f64("a", weft_shape(0, 3)), f64("b", weft_shape(3, 2))), .low = -1, .high = 1);
    CHECK(weft_linear(f64("x", weft_shape(0, 4)), "l", .out = 3), .low = -1, .high = 1);
    CHECK(weft_conv2d(f64("x", weft_shape(0, 2, 5, 4)), "c", .weight = f64("w", weft_shape(3, 2, 3, 2))), .low = -1, .high = 1);
    CHECK(weft_max_pool2d(f64("x", weft_shape(0, 2, 5, 4)), .window = 2), .low = -1, .high = 1);
    CHECK(weft_avg_pool2d(f64("x", weft_shape(0, 2, 5, 4)), .window = 2, .pad = 1), .low = -1, .high = 1);
    CHECK(weft_softmax(f64("x", weft_shape(0, 5)), -1), .low = -1, .high = 1);
    CHECK(weft_log_softmax(f64("x", weft_shape(0, 5)), -1), .low = -1, .high = 1);
    CHECK(weft_layer_norm(f64("x", weft_shape(0, 4)), "n"), .low = -1, .high = 1);
    CHECK(weft_rms_norm(f64("x", weft_shape(0, 4)), "n"), .low = -1, .high = 1);
    CHECK(weft_group_norm(f64("x", weft_shape(0, 4, 3)), "n", .groups = 2), .low = -1, .high = 1);
    CHECK(weft_batch_norm(f64("x", weft_shape(0, 2, 3)), "bn"), .evaluation = true);
    CHECK(weft_rotary(f64("x", weft_shape(2, 0, 4))), .low = -1, .high = 1);
    CHECK(weft_embedding(i32("i", weft_shape(0)), "e", .weight = f64("w", weft_shape(4, 2))), .integers = 4);
    CHECK(weft_gather(f64("x", weft_shape(3, 2)), i32("i", weft_shape(0)), 0), .integers = 3);
    CHECK(weft_cross_entropy(f64("x", weft_shape(0, 3)), i32("label", weft_shape(0)), .reduction = WEFT_SUM), .integers = 3);
    CHECK(weft_attention(f64("q", weft_shape(0, 2, 3, 4)), f64("k", weft_shape(0, 2, 5, 4)), f64("v", weft_shape(0, 2, 5, 3))),
          .first_only = true);
    CHECK(weft_dropout(f64("x", weft_shape(0, 3)), 0.4), .low = -1, .high = 1);
}

Test(autodiff_ops, unary) { unary(); }
Test(autodiff_ops, binary_with_broadcasting) { binary_with_broadcasting(); }
Test(autodiff_ops, one_tensor_used_twice) { one_tensor_used_twice(); }
Test(autodiff_ops, powers_by_numbers) { powers_by_numbers(); }
Test(autodiff_ops, reductions) { reductions(); }
Test(autodiff_ops, views_and_moves) { views_and_moves(); }
Test(autodiff_ops, slices_that_part_overlap_and_leave_gaps) { slices_that_part_overlap_and_leave_gaps(); }
Test(autodiff_ops, products) { products(); }
Test(autodiff_ops, convolutions) { convolutions(); }
Test(autodiff_ops, pooling) { pooling(); }
Test(autodiff_ops, pooling_after_bias_and_relu) { pooling_after_bias_and_relu(); }
Test(autodiff_ops, rows) { rows(); }
Test(autodiff_ops, outputs_beside_the_first) { outputs_beside_the_first(); }
Test(autodiff_ops, batch_norm) { batch_norm(); }
Test(autodiff_ops, dropout_by_mode) { dropout_by_mode(); }
Test(autodiff_ops, dense_layers) { dense_layers(); }
Test(autodiff_ops, attention) { attention(); }
Test(autodiff_ops, losses) { losses(); }
Test(autodiff_ops, nothing) { nothing(); }

static void every_check(void) {
    unary();
    binary_with_broadcasting();
    one_tensor_used_twice();
    powers_by_numbers();
    reductions();
    views_and_moves();
    slices_that_part_overlap_and_leave_gaps();
    products();
    convolutions();
    pooling();
    pooling_after_bias_and_relu();
    rows();
    outputs_beside_the_first();
    batch_norm();
    dropout_by_mode();
    dense_layers();
    attention();
    losses();
    nothing();
}

/* Beside half types statistics are wider: every gradient in f64 first, then in the dtype. */
static void all_in(weft_dtype dtype) {
    gradcheck_keep(dtype);
    every_check();
    gradcheck_compare();
    floating = dtype;
    every_check();
    gradcheck_end();
    floating = WEFT_F64;
}
Test(autodiff_ops, all_in_bf16) { all_in(WEFT_BF16); }
Test(autodiff_ops, all_in_f16) { all_in(WEFT_F16); }
Test(autodiff_ops, all_in_f32) { all_in(WEFT_F32); }

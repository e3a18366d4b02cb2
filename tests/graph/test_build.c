/* Builders: defaults, axes, names of parameters, starts of parameters, and every error that builders decide. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "core/graph/graph.h"
#include "weft/layers.h"
#include "weft/loss.h"

static weft_graph *graph;

static void open_graph(void) { cr_assert_eq(weft_graph_create(&(weft_graph_options){.seed = 7}, &graph), WEFT_OK); }
static void close_graph(void) {
    weft_graph_release(graph);
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_assert_eq(counts.held_bytes, 0, "%llu bytes leaked", (unsigned long long)counts.held_bytes);
}
TestSuite(graph_build, .init = open_graph, .fini = close_graph);

static void assert_shape(weft_tensor *x, weft_shape shape) {
    cr_assert_eq(weft_graph_check(graph), WEFT_OK, "%s", weft_graph_message(graph));
    cr_assert(weft_shape_equal(weft_tensor_shape(x), shape), "%s is not %s", weft_shape_text(x->shape).text,
              weft_shape_text(shape).text);
}

static weft_tensor *input(const char *name, weft_shape shape) { return weft_input(graph, name, WEFT_F32, shape); }

Test(graph_build, shapes_of_the_first_program) {
    weft_tensor *image = weft_input(graph, "image", WEFT_F32, weft_shape(64, 1, 28, 28));
    weft_tensor *label = weft_input(graph, "label", WEFT_I32, weft_shape(64));
    weft_tensor *h = weft_relu(weft_conv2d(image, "conv1", .filters = 32, .kernel = 3));
    assert_shape(h, weft_shape(64, 32, 26, 26));
    h = weft_max_pool2d(h, .window = 2);
    assert_shape(h, weft_shape(64, 32, 13, 13));
    weft_tensor *logits = weft_linear(weft_flatten(h), "head", .out = 10);
    assert_shape(logits, weft_shape(64, 10));
    assert_shape(weft_cross_entropy(logits, label), weft_shape_scalar());
    cr_assert_eq(weft_graph_parameter_count(graph), 4);
    static const char *const names[] = {"conv1.weight", "conv1.bias", "head.weight", "head.bias"};
    for (int32_t i = 0; i < 4; i++) cr_assert_str_eq(weft_tensor_name(weft_graph_parameter(graph, i)), names[i]);
    assert_shape(weft_graph_find(graph, "head.weight"), weft_shape(10, 5408));
    cr_assert(weft_graph_find(graph, "head.bias")->node->leaf->unregularised);
    cr_assert_not(weft_graph_find(graph, "head.weight")->node->leaf->unregularised);
    cr_assert_eq(image->node->leaf->batch_axis, 0);
}

Test(graph_build, starts_parameters_by_their_fans) {
    const wefti_leaf *leaf =
        weft_parameter(graph, "k", weft_shape(8, 3, 5, 5), .init = weft_init_kaiming_normal())->node->leaf;
    cr_assert_eq(leaf->init, WEFTI_INIT_NORMAL);
    cr_assert_float_eq(leaf->b, sqrt(2.0 / 75), 1e-12);
    leaf = weft_parameter(graph, "x", weft_shape(8, 3), .init = weft_init_xavier_uniform())->node->leaf;
    cr_assert_eq(leaf->init, WEFTI_INIT_UNIFORM);
    cr_assert_float_eq(leaf->b, sqrt(6.0 / 11), 1e-12);
    cr_assert_float_eq(leaf->a, -leaf->b, 1e-12);
    leaf = weft_linear(input("in", weft_shape(2, 16)), "l", .out = 4)->node->inputs[1]->node->leaf;
    cr_assert_eq(leaf->init, WEFTI_INIT_UNIFORM);
    cr_assert_float_eq(leaf->b, 0.25, 1e-12);
    cr_assert_eq(weft_parameter(graph, "z", weft_shape(3))->node->leaf->init, WEFTI_INIT_ZEROS);
    cr_assert_eq(weft_parameter(graph, "v", weft_shape(3), .init = weft_init_value(4))->node->leaf->a, 4);
    cr_assert_neq(weft_graph_find(graph, "k")->node->leaf->key, weft_graph_find(graph, "x")->node->leaf->key);
}

Test(graph_build, resolves_shapes) {
    weft_tensor *x = input("x", weft_shape(2, 3, 4));
    assert_shape(weft_reshape(x, weft_shape(4, -1)), weft_shape(4, 6));
    assert_shape(weft_flatten(x), weft_shape(2, 12));
    assert_shape(weft_transpose(x, 0, -1), weft_shape(4, 3, 2));
    assert_shape(weft_permute(x, weft_axes(2, 0, -2)), weft_shape(4, 2, 3));
    assert_shape(weft_unsqueeze(x, -1), weft_shape(2, 3, 4, 1));
    assert_shape(weft_unsqueeze(x, 0), weft_shape(1, 2, 3, 4));
    assert_shape(weft_squeeze(weft_unsqueeze(x, 1), 1), weft_shape(2, 3, 4));
    assert_shape(weft_expand(input("y", weft_shape(3, 1)), weft_shape(2, 3, 4)), weft_shape(2, 3, 4));
    assert_shape(weft_slice(x, 1, -2, INT64_MAX), weft_shape(2, 2, 4));
    assert_shape(weft_slice_step(x, -1, 1, 4, 2), weft_shape(2, 3, 2));
    assert_shape(weft_slice(x, 1, 2, 2), weft_shape(2, 0, 4));
    assert_shape(weft_concat((weft_tensor *[]){x, x}, 2, -1), weft_shape(2, 3, 8));
    assert_shape(weft_pad(x, .low = {1}, .high = {0, 0, 2}), weft_shape(3, 3, 6));
    assert_shape(weft_gather(x, weft_input(graph, "i", WEFT_I64, weft_shape(5, 6)), 1), weft_shape(2, 5, 6, 4));
    assert_shape(weft_sum(x, .axes = weft_axes(0, -1)), weft_shape(3));
    assert_shape(weft_mean(x, .axes = weft_axes(1), .keep = true), weft_shape(2, 1, 4));
    assert_shape(weft_max(x), weft_shape_scalar());
    assert_shape(weft_argmax(x, -1), weft_shape(2, 3));
    assert_shape(weft_variance(x, .axes = weft_axes(2), .correction = 1), weft_shape(2, 3));
    assert_shape(weft_norm(x, .axes = weft_axes(0)), weft_shape(3, 4));
    weft_tensor *parts[3];
    weft_split(x, 2, 2, parts);
    assert_shape(parts[1], weft_shape(2, 3, 2));
    weft_split_sizes(x, 1, (int64_t[]){1, 0, 2}, 3, parts);
    assert_shape(parts[1], weft_shape(2, 0, 4));
    assert_shape(weft_matmul(x, input("w", weft_shape(4, 5))), weft_shape(2, 3, 5));
    assert_shape(weft_matmul(x, x, .transpose_b = true), weft_shape(2, 3, 3));
    assert_shape(weft_matmul(x, input("b", weft_shape(7, 1, 4, 2))), weft_shape(7, 2, 3, 2));
    assert_shape(weft_softmax(x, 0), weft_shape(2, 3, 4));
}

Test(graph_build, layers_give_the_shapes_they_say) {
    weft_tensor *x = input("x", weft_shape(2, 6, 9, 7));
    assert_shape(weft_conv2d(x, "a", .filters = 4, .kernel_of = {3, 5}, .stride = 2, .same = true),
                 weft_shape(2, 4, 5, 4));
    assert_shape(weft_conv2d(x, "b", .filters = 4, .kernel = 3, .pad = 1, .dilation = 2, .groups = 2),
                 weft_shape(2, 4, 7, 5));
    assert_shape(weft_graph_find(graph, "b.weight"), weft_shape(4, 3, 3, 3));
    assert_shape(weft_avg_pool2d(x, .window = 3, .stride = 2, .pad_of = {1, 0, 0, 1}), weft_shape(2, 6, 4, 3));
    assert_shape(weft_global_avg_pool2d(x), weft_shape(2, 6));
    assert_shape(weft_global_max_pool2d(x), weft_shape(2, 6));
    weft_tensor *bn = weft_batch_norm(x, "bn");
    assert_shape(bn, weft_shape(2, 6, 9, 7));
    cr_assert_str_eq(weft_tensor_name(bn), "bn");
    cr_assert_eq(graph->n_effects, 2);
    assert_shape(weft_graph_find(graph, "bn.running_variance"), weft_shape(6));
    assert_shape(weft_group_norm(x, "gn", .groups = 3), weft_shape(2, 6, 9, 7));
    assert_shape(weft_layer_norm(x, "ln", .axes = 2), weft_shape(2, 6, 9, 7));
    assert_shape(weft_graph_find(graph, "ln.bias"), weft_shape(9, 7));
    assert_shape(weft_rms_norm(x, "rms"), weft_shape(2, 6, 9, 7));
    cr_assert_null(weft_graph_find(graph, "rms.bias"));
    weft_tensor *tokens = weft_input(graph, "tokens", WEFT_I32, weft_shape(2, 5));
    weft_tensor *e = weft_embedding(tokens, "wte", .count = 11, .size = 8);
    assert_shape(e, weft_shape(2, 5, 8));
    assert_shape(weft_self_attention(e, "attn", .heads = 4, .kv_heads = 2, .causal = true, .rotary = true),
                 weft_shape(2, 5, 8));
    assert_shape(weft_graph_find(graph, "attn.qkv.weight"), weft_shape(16, 8));
    assert_shape(weft_linear(e, "tied", .weight = weft_graph_find(graph, "wte.weight")), weft_shape(2, 5, 11));
    cr_assert_null(weft_graph_find(graph, "tied.bias"));
    assert_shape(weft_dropout(e, 0.5), weft_shape(2, 5, 8));
    cr_assert_eq(weft_dropout(e, 0), e);
}

Test(graph_build, half_layers_keep_wide_parameters) {
    weft_tensor *x = weft_input(graph, "x", WEFT_BF16, weft_shape(2, 6));
    weft_tensor *y = weft_layer_norm(weft_linear(x, "l", .out = 3), "n");
    cr_assert_eq(weft_tensor_dtype(y), WEFT_BF16);
    cr_assert_eq(weft_tensor_dtype(weft_graph_find(graph, "l.weight")), WEFT_F32);
    cr_assert_eq(weft_tensor_dtype(weft_batch_norm(x, "bn")), WEFT_BF16);
    cr_assert_eq(weft_tensor_dtype(weft_graph_find(graph, "bn.running_mean")), WEFT_F32);
    weft_tensor *label = weft_input(graph, "label", WEFT_I64, weft_shape(2));
    cr_assert_eq(weft_tensor_dtype(weft_cross_entropy(y, label)), WEFT_F32);
    cr_assert_eq(weft_graph_check(graph), WEFT_OK, "%s", weft_graph_message(graph));
}

Test(graph_build, scopes_reach_into_layers) {
    weft_scope_push(graph, "block0");
    weft_linear(input("x", weft_shape(2, 3)), "fc", .out = 2);
    weft_scope_pop(graph);
    cr_assert_not_null(weft_graph_find(graph, "block0.fc.weight"));
}

/* Each builds something wrong; the message must contain the part. */
typedef struct wrong {
    weft_status status;
    const char *part;
} wrong;

static void assert_wrong(weft_tensor *tensor, weft_status status, const char *part) {
    cr_assert_not(weft_tensor_ok(tensor), "not refused: '%s'", part);
    cr_assert_eq(weft_graph_check(graph), status, "%s for '%s': %s", weft_status_name(graph->status), part,
                 graph->message);
    cr_assert(strstr(weft_graph_message(graph), part), "'%s' lacks '%s'", weft_graph_message(graph), part);
    weft_graph_release(graph);
    open_graph();
}
#define X(...) input("x", weft_shape(__VA_ARGS__))

Test(graph_build, refuses_bad_leaves) {
    assert_wrong(weft_input(graph, "x", WEFT_F32, weft_shape(2), .batch_axis = 1), WEFT_E_INVALID,
                 "input 'x': batch axis 1");
    assert_wrong(weft_parameter(graph, "p", weft_shape(2), .dtype = WEFT_F16), WEFT_E_DTYPE,
                 "parameter 'p': parameters are f32, f64 or bf16");
    assert_wrong(weft_parameter(graph, "p", weft_shape(2), .init = weft_init_uniform(1, 0)), WEFT_E_INVALID,
                 "uniform with 1 and 0");
    assert_wrong(weft_parameter(graph, "p", weft_shape(2), .init = weft_init_normal(0, -1)), WEFT_E_INVALID,
                 "normal with 0 and -1");
    assert_wrong(weft_parameter(graph, "p", weft_shape(2), .init = {.kind = 77}), WEFT_E_INVALID, "77 is no kind");
    assert_wrong(weft_state(graph, "s", weft_shape(2), .dtype = WEFT_I64, .init = weft_init_normal(0, 1)), WEFT_E_DTYPE,
                 "state 's'");
    assert_wrong(weft_random_normal(graph, WEFT_I32, weft_shape(2)), WEFT_E_DTYPE, "random: values are floating");
    assert_wrong(weft_arange(graph, WEFT_BOOL, 3, 0, 1), WEFT_E_DTYPE, "arange");
    assert_wrong(weft_arange(graph, WEFT_F32, -3, 0, 1), WEFT_E_SHAPE, "negative");
    assert_wrong(weft_named(X(2), "y"), WEFT_E_INVALID, "input 'x' is a leaf");
    assert_wrong(weft_named(weft_neg(X(2)), ""), WEFT_E_INVALID, "needs a name");
}

Test(graph_build, refuses_bad_axes_and_shapes) {
    assert_wrong(weft_sum(X(2, 3), .axes = weft_axes(2)), WEFT_E_INVALID, "sum of x [2, 3]: axis 2 is out of range");
    assert_wrong(weft_sum(X(2, 3), .axes = weft_axes(1, -1)), WEFT_E_INVALID, "axis 1 is named twice");
    assert_wrong(weft_sum(X(2, 3), .axes = {.count = 9}), WEFT_E_INVALID, "9 axes");
    assert_wrong(weft_argmax(X(2, 3), 5), WEFT_E_INVALID, "argmax of x [2, 3]: axis 5");
    assert_wrong(weft_norm(X(2), .p = -1), WEFT_E_INVALID, "p must be positive, not -1");
    assert_wrong(weft_reshape(X(2, 3), weft_shape(-1, -1)), WEFT_E_SHAPE, "only one size may be -1");
    assert_wrong(weft_reshape(X(2, 3), weft_shape(4, -1)), WEFT_E_SHAPE, "its 6 elements leave nothing for -1");
    assert_wrong(weft_reshape(X(2, 3), weft_shape(4, 2)), WEFT_E_SHAPE, "[2, 3] has 6 elements, [4, 2] has 8");
    assert_wrong(weft_flatten(weft_scalar(graph, WEFT_F32, 1)), WEFT_E_SHAPE, "flatten");
    assert_wrong(weft_permute(X(2, 3), weft_axes(0)), WEFT_E_INVALID, "1 axes are named");
    assert_wrong(weft_permute(X(2, 3), weft_axes(0, 0)), WEFT_E_INVALID, "axis 0 is named twice");
    assert_wrong(weft_transpose(X(2, 3), 0, 2), WEFT_E_INVALID, "transpose of x");
    assert_wrong(weft_squeeze(X(2, 3), 0), WEFT_E_SHAPE, "axis 0 has not size 1");
    assert_wrong(weft_unsqueeze(X(2, 3), 4), WEFT_E_INVALID, "axis 4 is out of range");
    assert_wrong(weft_expand(X(2, 3), weft_shape(3, 2)), WEFT_E_SHAPE, "[2, 3] does not broadcast to [3, 2]");
    assert_wrong(weft_slice(X(2, 3), 1, 2, 4), WEFT_E_INVALID, "2 to 4 with step 1 is out of range for axis 1");
    assert_wrong(weft_slice(X(2, 3), 1, -4, 3), WEFT_E_INVALID, "-4 to 3");
    assert_wrong(weft_slice_step(X(2, 3), 1, 0, 3, 0), WEFT_E_INVALID, "step 0");
    assert_wrong(weft_concat(NULL, 0, 0) == &wefti_orphan ? weft_slice(X(1), 0, 0, 2) : NULL, WEFT_E_INVALID, "slice");
    assert_wrong(weft_pad(X(2), .low = {0, 1}), WEFT_E_INVALID, "pad of x [2]: axis 1 is out of range");
    assert_wrong(weft_pad(X(2), .low = {-1}), WEFT_E_INVALID, "slice instead");
    weft_tensor *parts[2];
    weft_split(X(3), 0, 2, parts);
    assert_wrong(parts[1], WEFT_E_SHAPE, "axis 0 does not divide into 2 parts");
    weft_split_sizes(X(3), 0, (int64_t[]){1, 1}, 2, parts);
    assert_wrong(parts[0], WEFT_E_SHAPE, "the 2 sizes add up to 2, axis 0 has 3");
    weft_split(X(3), 1, 2, parts);
    assert_wrong(parts[0], WEFT_E_INVALID, "split of x [3]: axis 1");
    assert_wrong(weft_clamp(X(3), 1, 0), WEFT_E_INVALID, "low 1 is not below high 0");
}

Test(graph_build, refuses_bad_layers) {
    assert_wrong(weft_linear(X(2, 3), "l"), WEFT_E_INVALID, "linear 'l': .out must be at least 1");
    assert_wrong(weft_linear(weft_scalar(graph, WEFT_F32, 1), "l", .out = 2), WEFT_E_SHAPE, "a scalar has no features");
    assert_wrong(weft_linear(X(2, 3), "l", .weight = weft_parameter(graph, "w", weft_shape(4, 2))), WEFT_E_SHAPE,
                 "must be [out, 3], not [4, 2]");
    assert_wrong(weft_embedding(weft_input(graph, "i", WEFT_I32, weft_shape(2)), "e", .size = 3), WEFT_E_INVALID,
                 "embedding 'e'");
    assert_wrong(weft_embedding(X(2), "e", .count = 2, .size = 3), WEFT_E_DTYPE, "gather 'e'");
    assert_wrong(weft_embedding(weft_input(graph, "i", WEFT_I32, weft_shape(2)), "e", .count = 2, .size = 3, .dtype = WEFT_I32), WEFT_E_DTYPE,
                 "f32, f64 or bf16, not i32");
    assert_wrong(weft_conv2d(X(2, 3), "c", .filters = 1, .kernel = 1), WEFT_E_SHAPE,
                 "conv2d 'c' of x [2, 3]: the image must be");
    assert_wrong(weft_conv2d(X(2, 3, 4, 4), "c", .filters = 1), WEFT_E_INVALID, ".kernel must be at least 1");
    assert_wrong(weft_conv2d(X(2, 3, 4, 4), "c", .filters = 4, .kernel = 1, .groups = 2), WEFT_E_SHAPE,
                 "do not divide into 2 groups");
    assert_wrong(weft_conv2d(X(2, 3, 4, 4), "c", .filters = 1, .kernel = 5), WEFT_E_SHAPE,
                 "a kernel of 5 x 5 with dilation 1 x 1 is larger than the padded image, 4 x 4");
    assert_wrong(weft_conv2d(X(2, 3, 4, 4), "c", .filters = 1, .kernel = 3, .same = true, .pad = 1), WEFT_E_INVALID,
                 ".same chooses");
    assert_wrong(weft_conv2d(X(2, 3, 4, 4), "c", .filters = 1, .kernel = 3, .stride = -1), WEFT_E_INVALID,
                 "stride must be at least 1");
    assert_wrong(weft_max_pool2d(X(2, 3, 4, 4)), WEFT_E_INVALID, "the window must be at least 1");
    assert_wrong(weft_max_pool2d(X(2, 3, 4, 4), .window = 2, .pad = 2), WEFT_E_INVALID,
                 "less than the window of 2, not 2");
    assert_wrong(weft_global_avg_pool2d(X(2, 3)), WEFT_E_SHAPE, "global_avg_pool2d of x [2, 3]");
    assert_wrong(weft_batch_norm(X(2), "bn"), WEFT_E_SHAPE, "batch_norm 'bn' of x [2]");
    assert_wrong(weft_batch_norm(weft_input(graph, "i", WEFT_I32, weft_shape(2, 2)), "bn"), WEFT_E_DTYPE,
                 "batch_norm 'bn'");
    assert_wrong(weft_group_norm(X(2, 3), "gn", .groups = 2), WEFT_E_SHAPE, "group_norm 'gn'");
    assert_wrong(weft_layer_norm(X(2, 3), "ln", .axes = 3), WEFT_E_INVALID, "normalize 'ln'");
    assert_wrong(weft_softmax(X(2, 3), 2), WEFT_E_INVALID, "softmax of x [2, 3]: axis 2");
    assert_wrong(weft_dropout(X(2, 3), 1), WEFT_E_INVALID, "p must be at least 0 and less than 1");
    assert_wrong(weft_self_attention(X(2, 3, 5), "a", .heads = 2), WEFT_E_SHAPE, "self_attention 'a'");
    assert_wrong(weft_rotary(X(2, 3)), WEFT_E_SHAPE, "even D");
}

Test(graph_build, refuses_bad_losses) {
    weft_tensor *l = weft_input(graph, "l", WEFT_I32, weft_shape(2));
    assert_wrong(weft_mse(X(2, 1), input("t", weft_shape(2))), WEFT_E_SHAPE,
                 "mse of x [2, 1] and target t [2]: the shapes must be the same");
    (void)l;
    l = weft_input(graph, "l", WEFT_I32, weft_shape(3));
    assert_wrong(weft_cross_entropy(X(2, 5), l), WEFT_E_SHAPE, "the label must be [2], not [3]");
    l = weft_input(graph, "l", WEFT_F32, weft_shape(2));
    assert_wrong(weft_cross_entropy(X(2, 5), l), WEFT_E_DTYPE, "must be i32 or i64");
    l = weft_input(graph, "l", WEFT_I32, weft_shape(2));
    assert_wrong(weft_cross_entropy(X(2, 5), l, .smoothing = 1.5), WEFT_E_INVALID, "smoothing must be in [0, 1]");
    l = weft_input(graph, "l", WEFT_I32, weft_shape(2));
    assert_wrong(weft_cross_entropy(X(2, 5), l, .ignore = true, .ignored = INT64_C(1) << 40), WEFT_E_INVALID,
                 "out of range for i32");
    assert_wrong(weft_huber(X(2), input("t", weft_shape(2)), .delta = -1), WEFT_E_INVALID, "delta must be positive");
    assert_wrong(weft_bce_with_logits(X(2), input("t", weft_shape(2)), .positive_weight = -1), WEFT_E_INVALID,
                 "positive weight");
    assert_wrong(weft_mse(X(2), input("t", weft_shape(2)), .reduction = 9), WEFT_E_INVALID, "9 is no reduction");
}

Test(graph_build, survives_null_everywhere) {
    cr_assert_not(weft_tensor_ok(weft_relu(weft_add(NULL, NULL))));
    cr_assert_not(weft_tensor_ok(weft_linear(NULL, "l", .out = 2)));
    cr_assert_not(weft_tensor_ok(weft_input(NULL, "x", WEFT_F32, weft_shape(2))));
    cr_assert_not(weft_tensor_ok(weft_parameter(NULL, "x", weft_shape(2))));
    cr_assert_not(weft_tensor_ok(weft_conv2d(NULL, "c", .filters = 1, .kernel = 1)));
    cr_assert_not(weft_tensor_ok(weft_batch_norm(NULL, "b")));
    cr_assert_not(weft_tensor_ok(weft_mse(NULL, NULL)));
    cr_assert_not(weft_tensor_ok(weft_cross_entropy(NULL, NULL, .ignore = true)));
    cr_assert_not(weft_tensor_ok(weft_reshape(NULL, weft_shape(2))));
    cr_assert_not(weft_tensor_ok(weft_assign(NULL, NULL)));
    cr_assert_not(weft_tensor_ok(weft_add_scalar(NULL, 1)));
    cr_assert_eq(weft_graph_check(NULL), WEFT_E_INVALID);
    weft_tensor *x = X(2);
    assert_wrong(weft_add(x, NULL), WEFT_E_INVALID, "input 1 is NULL");
}

/* The walk: what is differentiated, what is not, what is refused, what is computed again, and that little is built. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "autodiff/gradcheck.h"
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
TestSuite(autodiff_walk, .init = open_graph, .fini = close_graph);

static weft_tensor *f64(const char *name, weft_shape shape) { return weft_input(graph, name, WEFT_F64, shape); }

/* Whether computing `target` needs `tensor`; EXTENT needs a shape only. */
static bool needs(const weft_tensor *target, const weft_tensor *tensor) {
    bool *seen = calloc((size_t)graph->n_nodes, 1);
    seen[target->node->id] = true;
    for (int32_t id = target->node->id; id >= 0; id--)
        for (int32_t i = 0; seen[id] && graph->nodes[id]->op != WEFT_OP_EXTENT && i < graph->nodes[id]->n_inputs; i++)
            seen[graph->nodes[id]->inputs[i]->node->id] = true;
    bool found = seen[tensor->node->id];
    free(seen);
    return found;
}

/* Nodes of an op that computing `target` needs; WEFT_OP_COUNT: of any op that computes. */
static int32_t count_of(const weft_tensor *target, weft_op op) {
    int32_t count = 0;
    for (int32_t id = 0; id <= target->node->id; id++) {
        const wefti_node *node = graph->nodes[id];
        bool computes = wefti_ops[node->op].family != WEFTI_LEAF && wefti_ops[node->op].family != WEFTI_VIEW &&
                        node->op != WEFT_OP_EXTENT;
        if (op == WEFT_OP_COUNT ? computes : node->op == op) count += needs(target, &node->outputs[0]);
    }
    return count;
}

Test(autodiff_walk, reaches_intermediate_tensors_and_leaves_at_once) {
    weft_tensor *x = f64("x", weft_shape(3)), *h = weft_exp(x), *loss = weft_sum(weft_square(h)), *g[3];
    weft_tensor *wrt[3] = {h, x, h};
    cr_assert_eq(weft_gradients(loss, wrt, 3, g), WEFT_OK);
    cr_assert_eq(g[0], g[2]);
    interp *in = interp_open(graph, g, 3, true);
    interp_set(in, x, (double[]){0, 1, -1});
    interp_run(in, 0);
    cr_assert_float_eq(interp_get(in, g[0], 1), 2 * exp(1), 1e-12);
    cr_assert_float_eq(interp_get(in, g[1], 1), 2 * exp(2), 1e-12);
    interp_close(in);
}

Test(autodiff_walk, gives_zeros_where_nothing_depends) {
    weft_tensor *x = f64("x", weft_shape(3)), *other = f64("other", weft_shape(2, 2)), *loss = weft_sum(x), *g[2];
    weft_tensor *later, *wrt[2] = {other, NULL};
    later = wrt[1] = weft_exp(x);
    cr_assert_eq(weft_gradients(loss, wrt, 2, g), WEFT_OK);
    cr_assert(weft_shape_equal(g[0]->shape, weft_shape(2, 2)));
    interp *in = interp_open(graph, g, 2, true);
    interp_run(in, 0);
    cr_assert_eq(interp_get(in, g[0], 3), 0);
    cr_assert_eq(interp_get(in, g[1], 2), 0);
    interp_close(in);
    (void)later;
}

Test(autodiff_walk, stops_at_detach_comparisons_and_integers) {
    weft_tensor *x = f64("x", weft_shape(3)), *g;
    weft_tensor *loss = weft_sum(weft_mul(weft_detach(weft_exp(x)), x));
    loss = weft_add(loss, weft_sum(weft_cast(weft_gt_scalar(x, 0), WEFT_F64)));
    loss = weft_add(loss, weft_sum(weft_cast(weft_cast(weft_exp(x), WEFT_I32), WEFT_F64)));
    cr_assert_eq(weft_gradients(loss, &x, 1, &g), WEFT_OK);
    interp *in = interp_open(graph, &g, 1, true);
    interp_set(in, x, (double[]){0, 1, -1});
    interp_run(in, 0);
    cr_assert_float_eq(interp_get(in, g, 1), exp(1), 1e-12);
    interp_close(in);
}

Test(autodiff_walk, builds_only_what_is_needed) {
    weft_tensor *x = weft_input(graph, "x", WEFT_F32, weft_shape(8, 4)),
                *label = weft_input(graph, "label", WEFT_I32, weft_shape(8));
    weft_tensor *h = weft_relu(weft_linear(x, "a", .out = 6));
    weft_tensor *loss = weft_cross_entropy(weft_linear(h, "b", .out = 3), label);
    weft_tensor *wrt[4], *g[4];
    for (int32_t i = 0; i < 4; i++) wrt[i] = weft_graph_parameter(graph, i);
    int32_t before = graph->n_nodes;
    cr_assert_eq(weft_gradients(loss, wrt, 4, g), WEFT_OK);
    /* One loss backward, one product each for both weights and the hidden layer, one relu, two bias sums, one division
     * by the count. */
    int32_t products = 0, moves = 0, computing = 0;
    for (int32_t id = before; id < graph->n_nodes; id++) {
        const wefti_node *node = graph->nodes[id];
        cr_assert(node->flags & WEFTI_NODE_BACKWARD);
        products += node->op == WEFT_OP_MATMUL;
        moves += node->op == WEFT_OP_PERMUTE || wefti_ops[node->op].family == WEFTI_MOVE;
        computing += wefti_ops[node->op].family != WEFTI_LEAF && wefti_ops[node->op].family != WEFTI_VIEW &&
                     node->op != WEFT_OP_EXTENT;
    }
    cr_assert_eq(products, 3);
    cr_assert_eq(moves, 0);
    cr_assert_eq(computing, 1 + 3 + 1 + 2 + 1, "%d nodes compute", computing);
    cr_assert(strstr(weft_tensor_name(g[0]), "a/matmul_"), "%s", weft_tensor_name(g[0]));
    cr_assert_not(graph->nodes[before - 1]->flags & WEFTI_NODE_BACKWARD);
    cr_assert_eq(graph->flags, 0);
}

Test(autodiff_walk, relu_reads_its_result_so_that_its_input_can_go) {
    weft_tensor *x = f64("x", weft_shape(4)), *a = weft_exp(x), *y = weft_relu(weft_neg(a)), *g;
    cr_assert_eq(weft_gradients(weft_sum(y), &a, 1, &g), WEFT_OK);
    const wefti_node *relu = NULL;
    for (int32_t id = 0; id < graph->n_nodes; id++)
        if (graph->nodes[id]->op == WEFT_OP_RELU_BACKWARD) relu = graph->nodes[id];
    cr_assert_eq(relu->inputs[1], y);
}

Test(autodiff_walk, lays_the_gradients_of_parts_side_by_side) {
    weft_tensor *x = weft_input(graph, "x", WEFT_F32, weft_shape(2, 3, 8)), *g;
    weft_tensor *loss = weft_sum(weft_self_attention(x, "a", .heads = 2));
    cr_assert_eq(weft_gradients(loss, &x, 1, &g), WEFT_OK);
    cr_assert_eq(count_of(g, WEFT_OP_CONCAT), 1);
    cr_assert_eq(count_of(g, WEFT_OP_PAD), 0);
}

Test(autodiff_walk, folds_constants_of_means_and_scalars) {
    weft_tensor *x = f64("x", weft_shape(5, 7)), *g;
    cr_assert_eq(weft_gradients(weft_sum(weft_mul_scalar(weft_mul_scalar(x, 3), 0.5)), &x, 1, &g), WEFT_OK);
    cr_assert_eq(count_of(g, WEFT_OP_COUNT), 0, "a constant gradient needs no computing");
    cr_assert_eq(weft_gradients(weft_mean(weft_square(x)), &x, 1, &g), WEFT_OK);
    cr_assert_eq(count_of(g, WEFT_OP_COUNT), 3, "%d", count_of(g, WEFT_OP_COUNT)); /* 1/count, times 2, times x */
}

Test(autodiff_walk, batch_norm_sums_need_the_gradient_and_the_centred_input_only) {
    weft_tensor *x = f64("x", weft_shape(4, 3, 5, 5)), *y = weft_batch_norm(x, "bn"), *g[3];
    weft_tensor *wrt[3] = {x, weft_graph_find(graph, "bn.weight"), weft_graph_find(graph, "bn.bias")};
    int32_t      before = graph->n_nodes;
    cr_assert_eq(weft_gradients(weft_sum(weft_mul(y, f64("w", weft_shape(4, 3, 5, 5)))), wrt, 3, g), WEFT_OK);
    /* Sums over the input that are not of products of two full tensors must be of one full tensor. */
    for (int32_t id = before; id < graph->n_nodes; id++) {
        const wefti_node *node = graph->nodes[id];
        if (node->op != WEFT_OP_SUM || (!needs(g[0], &node->outputs[0]) && !needs(g[1], &node->outputs[0]))) continue;
        const wefti_node *term = node->inputs[0]->node;
        for (int32_t i = 0; term->op == WEFT_OP_MUL && i < 2; i++)
            cr_assert_eq(weft_shape_elements(term->inputs[i]->shape), 300, "%s is summed of a product with %s",
                         node->name, term->inputs[i]->node->name);
    }
}

/* ---- recomputation ---- */

/* Two blocks with dropout, checkpointed or not; the gradients of all parameters at one step. */
static void two_blocks(bool checkpointed, double *gradients_out, int32_t *kept_out) {
    weft_tensor *x = weft_tanh(f64("x", weft_shape(3, 4))), *wrt[8], *g[8];
    for (int32_t block = 0; block < 2; block++) {
        char name[16];
        snprintf(name, sizeof name, "b%d", block);
        weft_scope_push(graph, name);
        if (checkpointed) weft_recompute_begin(graph);
        weft_tensor *h = weft_dropout(weft_gelu(weft_linear(weft_layer_norm(x, "n"), "fc", .out = 4)), 0.3);
        x = weft_add(x, weft_mul(h, weft_random_uniform(graph, WEFT_F64, weft_shape(4))));
        if (checkpointed) weft_recompute_end(graph);
        weft_scope_pop(graph);
    }
    int32_t forward = graph->n_nodes;
    weft_tensor *loss = weft_sum(weft_square(x));
    for (int32_t i = 0; i < 8; i++) wrt[i] = weft_graph_parameter(graph, i);
    cr_assert_eq(weft_gradients(loss, wrt, 8, g), WEFT_OK, "%s", weft_graph_message(graph));
    /* What the backward pass reads of the blocks' own values. */
    bool *read = calloc((size_t)forward, 1);
    for (int32_t id = forward; id < graph->n_nodes; id++)
        for (int32_t i = 0; i < graph->nodes[id]->n_inputs; i++)
            if (graph->nodes[id]->inputs[i]->node->id < forward && graph->nodes[id]->op != WEFT_OP_EXTENT)
                read[graph->nodes[id]->inputs[i]->node->id] = true;
    *kept_out = 0;
    for (int32_t id = 0; id < forward; id++)
        *kept_out += read[id] && wefti_ops[graph->nodes[id]->op].family != WEFTI_LEAF;
    free(read);
    interp *in = interp_open(graph, g, 8, true);
    for (int32_t i = 0; i < graph->n_leaves; i++) {
        const weft_tensor *leaf = &graph->leaves[i]->outputs[0];
        for (int64_t e = 0; e < weft_shape_elements(leaf->shape); e++)
            interp_set_one(in, leaf, e, sin(1.7 * (double)e + i));
    }
    interp_run(in, 4);
    for (int32_t i = 0, n = 0; i < 8; i++)
        for (int64_t e = 0; e < weft_shape_elements(g[i]->shape); e++) gradients_out[n++] = interp_get(in, g[i], e);
    interp_close(in);
}

Test(autodiff_walk, recomputed_segments_give_the_same_bits_and_keep_less) {
    double  plain[2 * (4 + 4 + 16 + 4)], again[2 * (4 + 4 + 16 + 4)];
    int32_t kept_plain, kept_again;
    two_blocks(false, plain, &kept_plain);
    weft_graph_release(graph);
    open_graph();
    two_blocks(true, again, &kept_again);
    cr_assert_arr_eq(plain, again, sizeof plain);
    cr_assert_eq(kept_plain, 7, "%d", kept_plain);
    cr_assert_eq(kept_again, 3, "%d", kept_again); /* what enters each segment, and the end, which the loss reads */
    int32_t copies = 0;
    for (int32_t id = 0; id < graph->n_nodes; id++) {
        const wefti_node *node = graph->nodes[id];
        if (!(node->flags & WEFTI_NODE_RECOMPUTED)) continue;
        copies++;
        cr_assert(node->flags & WEFTI_NODE_BACKWARD);
        cr_assert_neq(node->segment, 0);
        cr_assert_neq(node->op, WEFT_OP_STEP, "%s", node->name);
        for (int32_t i = 0; i < node->n_inputs; i++) {
            const wefti_node *from = node->inputs[i]->node;
            cr_assert(from->segment != node->segment || from->flags & WEFTI_NODE_RECOMPUTED ||
                          wefti_ops[from->op].family == WEFTI_LEAF,
                      "%s reads %s", node->name, from->name);
        }
    }
    cr_assert_gt(copies, 8);
}

Test(autodiff_walk, recompute_segments_must_match) {
    weft_recompute_end(graph);
    cr_assert_eq(weft_graph_check(graph), WEFT_E_STATE);
    weft_graph_release(graph);
    open_graph();
    weft_recompute_begin(graph);
    weft_recompute_begin(graph);
    cr_assert_eq(weft_graph_check(graph), WEFT_E_STATE);
}

Test(autodiff_walk, long_chains_do_not_recurse) {
    weft_tensor *x = f64("x", weft_shape(2)), *y = x, *g;
    weft_recompute_begin(graph);
    for (int i = 0; i < 20000; i++) y = weft_sin(y);
    weft_recompute_end(graph);
    cr_assert_eq(weft_gradients(weft_sum(y), &x, 1, &g), WEFT_OK);
}

/* ---- custom ops ---- */

static weft_status cube_shape(const weft_custom_type *inputs, const void *options, weft_custom_type *outputs_out) {
    (void)options;
    if (inputs[0].dtype != WEFT_F64) return WEFT_E_DTYPE;
    outputs_out[0] = inputs[0];
    return WEFT_OK;
}
static weft_status cube_forward(const weft_custom_data *inputs, const void *options, weft_custom_data *outputs_out) {
    const double *x = inputs[0].data, scale = *(const double *)options;
    for (int64_t i = 0; i < weft_shape_elements(inputs[0].shape); i++)
        ((double *)outputs_out[0].data)[i] = scale * x[i] * x[i] * x[i];
    return WEFT_OK;
}
static weft_status cube_backward(const weft_custom_data *inputs, const weft_custom_data *outputs,
                                 const weft_custom_data *gy, const void *options, weft_custom_data *gx_out) {
    (void)outputs;
    const double *x = inputs[0].data, scale = *(const double *)options;
    for (int64_t i = 0; gx_out[0].data && i < weft_shape_elements(inputs[0].shape); i++)
        ((double *)gx_out[0].data)[i] = 3 * scale * x[i] * x[i] * ((const double *)gy[0].data)[i];
    return WEFT_OK;
}
static const weft_custom_op cube = {.name = "cube",
                                    .n_inputs = 1,
                                    .n_outputs = 1,
                                    .shape = cube_shape,
                                    .forward = cube_forward,
                                    .backward = cube_backward,
                                    .row_local = true};

Test(autodiff_walk, custom_ops_are_differentiated_by_their_own_function) {
    weft_tensor *x = f64("x", weft_shape(3, 2)), *s = weft_sin(x);
    double       scale = 0.5;
    weft_tensor *y = weft_custom(graph, &cube, &s, 1, "c", &scale, sizeof scale);
    scale = NAN; /* the graph has its own copy */
    check_gradients(y, (gradcheck){.name = "custom", .first_only = true});
}

Test(autodiff_walk, custom_ops_refuse) {
    weft_tensor *x = weft_input(graph, "x", WEFT_F32, weft_shape(3));
    cr_assert_not(weft_tensor_ok(weft_custom(graph, &cube, &x, 1, "c", NULL, 0)));
    cr_assert(
        strstr(weft_graph_message(graph), "custom 'c' of x f32 [3]: the shape rule of op 'cube' refuses these inputs"),
        "%s", weft_graph_message(graph));
    weft_graph_release(graph);
    open_graph();
    weft_tensor *two[2] = {f64("x", weft_shape(3)), f64("y", weft_shape(3))};
    cr_assert_not(weft_tensor_ok(weft_custom(graph, &cube, two, 2, "c", NULL, 0)));
    cr_assert(strstr(weft_graph_message(graph), "op 'cube' takes 1 inputs, got 2"));
    weft_graph_release(graph);
    open_graph();
    weft_custom_op silent = cube;
    silent.backward = NULL;
    weft_tensor *z = f64("x", weft_shape(3)), *g;
    weft_tensor *loss = weft_sum(weft_custom(graph, &silent, &z, 1, "c", &(double){1}, sizeof(double)));
    cr_assert_eq(weft_gradients(loss, &z, 1, &g), WEFT_E_UNSUPPORTED);
    cr_assert(strstr(weft_error_message(), "op 'cube' of 'c' has no backward function"));
    cr_assert_not(weft_tensor_ok(g));
    weft_graph_release(graph);
    open_graph();
    silent.shape = NULL;
    cr_assert_not(weft_tensor_ok(weft_custom(graph, &silent, NULL, 0, "c", NULL, 0)));
    cr_assert(strstr(weft_graph_message(graph), "an op needs a name, a shape rule and a forward function"));
}

/* ---- what is refused ---- */

static void assert_refused(weft_tensor *loss, weft_tensor *wrt, weft_status status, const char *part) {
    weft_tensor *g = NULL;
    cr_assert_eq(weft_gradients(loss, &wrt, 1, &g), status, "%s", weft_error_message());
    cr_assert(strstr(weft_error_message(), part), "'%s' lacks '%s'", weft_error_message(), part);
    cr_assert_not(weft_tensor_ok(g));
    weft_graph_release(graph);
    open_graph();
}

Test(autodiff_walk, refuses_what_has_no_gradient) {
    weft_tensor *x = f64("x", weft_shape(3));
    assert_refused(weft_square(x), x, WEFT_E_SHAPE, "must have one element, not [3]: take weft_mean or weft_sum of it");
    x = f64("x", weft_shape(3));
    assert_refused(weft_sum(weft_cast(x, WEFT_I32)), x, WEFT_E_DTYPE, "the loss 'sum_2' must be floating, not i32");
    x = weft_input(graph, "x", WEFT_I64, weft_shape(3));
    assert_refused(weft_sum(weft_cast(x, WEFT_F32)), x, WEFT_E_DTYPE,
                   "'x' is i64: only floating tensors have gradients");
    x = f64("x", weft_shape(3));
    assert_refused(weft_sum(x), NULL, WEFT_E_INVALID, "tensor 0 ('') is NULL");
    assert_refused(NULL, NULL, WEFT_E_INVALID, "the loss is NULL");
    x = f64("x", weft_shape(3));
    assert_refused(weft_sum(weft_add(x, f64("y", weft_shape(2)))), x, WEFT_E_SHAPE, "do not broadcast");
}

Test(autodiff_walk, refuses_attention_twice_by_name) {
    weft_tensor *q = f64("q", weft_shape(1, 1, 2, 2)), *g;
    weft_tensor *loss = weft_sum(weft_square(weft_attention(q, q, q, .name = "attn")));
    cr_assert_eq(weft_gradients(loss, &q, 1, &g), WEFT_OK);
    assert_refused(weft_sum(weft_square(g)), q, WEFT_E_UNSUPPORTED, "attention_backward 'attn/attention_backward_");
}

Test(autodiff_walk, goes_around_what_it_cannot_differentiate) {
    weft_tensor *q = f64("q", weft_shape(1, 1, 2, 2)), *x = f64("x", weft_shape(3)), *g;
    weft_tensor *loss = weft_sum(weft_attention(q, q, q));
    cr_assert_eq(weft_gradients(loss, &q, 1, &g), WEFT_OK);
    weft_tensor *second = weft_add(weft_sum(weft_detach(g)), weft_sum(weft_square(x)));
    cr_assert_eq(weft_gradients(second, &x, 1, &g), WEFT_OK, "%s", weft_error_message());
}

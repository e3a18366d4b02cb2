/* Any split of parameters gives the unsplit result: programs of every kind of op, whose operands are all parameters, are split along every axis
 * (and by sections), in all combinations or many drawn ones, and evaluated rank by rank in this process: results and gradients are held
 * against the whole graph in f64. Gradients are wanted whole, and again as the parts that an assignment keeps.
 *
 * A message is made a leaf of each rank's graph: all ranks run, what they bring to the first one is joined and set on each, all run again
 * for the second, and so on. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/effort.h"
#include "common/interp.h"
#include "core/iface/op.h"
#include "parallel/tensor.h"
#include "weft/layers.h"
#include "weft/loss.h"

enum { MOST_RANKS = 4, MOST_LEAVES = 12, MOST_TARGETS = MOST_LEAVES + 2, MOST_MESSAGES = 96 };

typedef struct design {
    const char *name;
    weft_tensor *(*build)(weft_graph *g); /* of any shape, floating */
} design;

#define P(name, ...) weft_parameter(g, name, weft_shape(__VA_ARGS__), .dtype = WEFT_F64)

/* --- programs --- */

static weft_tensor *broadcast(weft_graph *g) { return weft_mul(weft_add(P("a", 4, 8), P("b", 8)), weft_add(P("c", 4, 1), P("d", 1, 8))); }
static weft_tensor *choices(weft_graph *g) {
    weft_tensor *a = P("a", 4, 8), *b = P("b", 8);
    return weft_where(weft_gt(a, b), weft_maximum(a, P("c", 4, 1)), weft_clamp(weft_sub(b, a), -0.5, 0.5));
}
static weft_tensor *unaries(weft_graph *g) {
    weft_tensor *a = P("a", 4, 8);
    return weft_add(weft_add(weft_gelu(weft_tanh(a)), weft_relu(weft_sin(a))), weft_add(weft_silu(a), weft_detach(weft_sqrt(weft_exp(a)))));
}
static weft_tensor *product(weft_graph *g) { return weft_matmul(P("a", 4, 8), P("b", 8, 16)); }
static weft_tensor *product_turned(weft_graph *g) { return weft_matmul(P("a", 8, 4), P("b", 16, 8), .transpose_a = true, .transpose_b = true); }
static weft_tensor *products(weft_graph *g) { return weft_matmul(P("a", 4, 8, 4), P("b", 4, 4, 8)); }
static weft_tensor *products_with_one(weft_graph *g) { return weft_matmul(P("a", 4, 8, 4), P("b", 4, 8)); }
static weft_tensor *pair(weft_graph *g) {
    weft_tensor *h = weft_gelu(weft_linear(P("x", 4, 8), "up", .out = 16));
    return weft_linear(weft_dropout(h, 0.3), "down", .out = 8);
}
static weft_tensor *channels(weft_graph *g) {
    weft_tensor *h = weft_relu(weft_conv2d(P("x", 4, 4, 5, 4), "one", .filters = 8, .kernel = 3, .pad = 1));
    return weft_conv2d(weft_max_pool2d(h, .window = 2), "two", .filters = 4, .kernel = 2);
}
static weft_tensor *groups(weft_graph *g) { return weft_avg_pool2d(weft_conv2d(P("x", 4, 4, 4, 4), "c", .filters = 8, .kernel = 3, .groups = 2), .window = 2); }
static weft_tensor *attention(weft_graph *g) { return weft_attention(P("q", 4, 8, 3, 4), P("k", 4, 4, 3, 4), P("v", 4, 4, 3, 4), .causal = true); }
static weft_tensor *self_attention(weft_graph *g) {
    return weft_self_attention(P("x", 4, 3, 8), "a", .heads = 4, .causal = true, .rotary = true);
}
static weft_tensor *index_of(weft_graph *g, int64_t n) { return weft_input(g, "index", WEFT_I32, weft_shape(n)); }
static weft_tensor *rows_of_a_table(weft_graph *g) { return weft_gather(P("table", 8, 4), index_of(g, 6), 0); }
static weft_tensor *columns_of_a_table(weft_graph *g) { return weft_gather(P("table", 4, 8), index_of(g, 6), 1); }
static weft_tensor *scatter(weft_graph *g) { return weft_scatter_add(P("base", 8, 4), index_of(g, 4), P("values", 4, 4), 0); }
static weft_tensor *entropy(weft_graph *g) {
    weft_tensor *logits = P("logits", 4, 8), *label = index_of(g, 4);
    weft_tensor *mean = weft_cross_entropy(logits, label, .ignore = true, .ignored = 1, .smoothing = 0.1);
    return weft_add(mean, weft_mul_scalar(weft_cross_entropy(logits, label, .reduction = WEFT_NONE), 0.1));
}
static weft_tensor *softmaxes(weft_graph *g) {
    weft_tensor *a = P("a", 4, 8);
    return weft_add(weft_softmax(a, 0), weft_log_softmax(weft_mul(a, P("b", 4, 8)), 1));
}
static weft_tensor *norms(weft_graph *g) {
    weft_tensor *x = P("x", 4, 8);
    return weft_add(weft_rms_norm(weft_layer_norm(x, "layer"), "rms"), weft_group_norm(x, "group", .groups = 2));
}
static weft_tensor *batch_norm(weft_graph *g) { return weft_batch_norm(P("x", 4, 4, 3), "b", .eps = 0.1); }
static weft_tensor *sums(weft_graph *g) {
    weft_tensor *x = P("x", 4, 8, 4);
    weft_tensor *over = weft_sum(weft_square(x), .axes = weft_axes(0)), *within = weft_mean(x, .axes = weft_axes(1, 2), .keep = true);
    return weft_add(weft_mul(x, within), over);
}
static weft_tensor *norm_of_all(weft_graph *g) {
    weft_tensor *x = P("x", 4, 8);
    return weft_add(weft_norm(x), weft_norm(weft_add(x, P("y", 4, 8)), .axes = weft_axes(0), .p = 3));
}
static weft_tensor *extremes(weft_graph *g) {
    weft_tensor *x = P("x", 4, 8), *ties = weft_add(weft_floor(weft_mul_scalar(x, 2)), weft_sub(x, weft_detach(x)));
    weft_tensor *most = weft_add(weft_max(ties, .axes = weft_axes(1), .keep = true), weft_min(x));
    return weft_add(weft_mul(x, most), weft_cast(weft_argmax(x, 0), WEFT_F64));
}
static weft_tensor *shapes(weft_graph *g) {
    weft_tensor *x = weft_permute(weft_reshape(P("x", 4, 16), weft_shape(4, 2, 8)), weft_axes(2, 0, 1));
    return weft_reshape(weft_tanh(x), weft_shape(8, 8));
}
static weft_tensor *cuts(weft_graph *g) {
    weft_tensor *x = P("x", 4, 16);
    return weft_mul(weft_slice(x, 1, 0, 8), weft_add(weft_slice(x, 1, 8, 16), weft_slice(weft_exp(x), 1, 4, 12)));
}
static weft_tensor *joined(weft_graph *g) {
    weft_tensor *wide = weft_concat((weft_tensor *[]){P("a", 4, 8), weft_exp(P("b", 4, 8))}, 2, 1);
    return weft_pad(weft_concat((weft_tensor *[]){wide, P("c", 4, 16)}, 2, 0), .low = {0, 2}, .high = {1, 0}, .value = 0.5);
}
static weft_tensor *expanded(weft_graph *g) { return weft_mul(weft_expand(P("a", 1, 8), weft_shape(4, 8)), weft_expand(P("b", 4, 1), weft_shape(4, 8))); }
static weft_tensor *dropped(weft_graph *g) { return weft_dropout(weft_dropout(P("x", 4, 8), 0.3), 0.2); }
static weft_tensor *rotary(weft_graph *g) { return weft_rotary(P("x", 4, 4, 8), .base = 10, .offset = 1); }
static weft_tensor *errors(weft_graph *g) {
    weft_tensor *x = P("x", 4, 8), *y = weft_tanh(P("y", 4, 8));
    return weft_add(weft_add(weft_mse(x, y), weft_huber(x, y, .delta = 0.1)), weft_bce_with_logits(x, weft_sigmoid(y)));
}

static weft_tensor *more_unaries(weft_graph *g) {
    weft_tensor *a = P("a", 4, 8), *positive = weft_add(weft_square(a), weft_full(g, WEFT_F64, weft_shape(4, 8), 0.5));
    weft_tensor *some = weft_add(weft_add(weft_abs(a), weft_sign(a)), weft_add(weft_neg(weft_expm1(a)), weft_add(weft_cos(a), weft_erf(a))));
    weft_tensor *more = weft_add(weft_add(weft_softplus(a), weft_ceil(a)), weft_add(weft_round(weft_mul_scalar(a, 3)), weft_gelu_tanh(a)));
    return weft_add(weft_add(some, more), weft_add(weft_add(weft_log(positive), weft_log1p(positive)), weft_add(weft_rsqrt(positive), weft_reciprocal(positive))));
}
static weft_tensor *more_choices(weft_graph *g) {
    weft_tensor *a = P("a", 4, 8), *b = P("b", 8), *positive = weft_add(weft_square(a), weft_full(g, WEFT_F64, weft_shape(4, 8), 0.5));
    weft_tensor *some = weft_or(weft_and(weft_lt(a, b), weft_ne(a, b)), weft_and(weft_le(b, a), weft_not(weft_isfinite(a))));
    return weft_add(weft_where(some, weft_pow(positive, b), weft_minimum(a, b)), weft_where(weft_ge(a, b), weft_div(b, positive), weft_training(a, weft_sub(a, b))));
}
static weft_tensor *drawn(weft_graph *g) {
    weft_tensor *numbers = weft_reshape(weft_arange(g, WEFT_F64, 32, 0.5, 0.25), weft_shape(4, 8));
    return weft_mul(weft_add(P("a", 4, 8), weft_random_uniform(g, WEFT_F64, weft_shape(4, 8))), weft_add(numbers, weft_random_normal(g, WEFT_F64, weft_shape(4, 8))));
}
static weft_tensor *spread_along(weft_tensor *x, int32_t axis) { /* as gradients of means in 16-bit floats are */
    wefti_attrs attrs = wefti_no_attrs();
    attrs.reduce.axes = 1u << axis;
    attrs.reduce.keep = 1;
    attrs.reduce.shape = weft_shape(4, 8);
    return wefti_apply(WEFT_OP_MEAN_BACKWARD, &attrs, &x, 1, NULL);
}
static weft_tensor *spread(weft_graph *g) {
    wefti_attrs  attrs = wefti_no_attrs();
    weft_tensor *a = spread_along(P("a", 4, 1), 1);
    return weft_mul(wefti_apply(WEFT_OP_COPY, &attrs, &a, 1, NULL), spread_along(P("b", 1, 8), 0));
}
static weft_tensor *gradient_of_pools(weft_graph *g) {
    weft_tensor *x = P("x", 4, 4, 4, 4), *back = NULL;
    cr_assert_eq(weft_gradients(weft_sum(weft_square(weft_max_pool2d(x, .window = 2))), &x, 1, &back), WEFT_OK, "%s", weft_error_message());
    return back;
}

/* Norms, residuals and dropout between pairs of products, as in a transformer. */
static weft_tensor *block(weft_graph *g) {
    weft_tensor *x = P("x", 4, 4, 8);
    x = weft_add(x, weft_dropout(weft_linear(weft_gelu(weft_linear(weft_layer_norm(x, "one"), "up", .out = 16)), "down", .out = 8), 0.3));
    return weft_add(x, weft_linear(weft_silu(weft_linear(weft_rms_norm(x, "two"), "wide", .out = 8, .no_bias = true)), "narrow", .out = 8));
}

static weft_tensor *expert_products(weft_graph *g, bool trans) {
    wefti_attrs  attrs = wefti_no_attrs();
    weft_tensor *inputs[3] = {P("x", 4, 8), trans ? P("w", 4, 16, 8) : P("w", 4, 8, 16), index_of(g, 8)};
    attrs.expert.repeat = 2;
    attrs.expert.trans = trans;
    return wefti_apply(WEFT_OP_EXPERT_MATMUL, &attrs, inputs, 3, NULL);
}
static weft_tensor *rows_of_experts(weft_graph *g) { return expert_products(g, false); }
static weft_tensor *rows_of_experts_turned(weft_graph *g) { return expert_products(g, true); }
static weft_tensor *mixture(weft_graph *g) {
    weft_tensor *balance;
    weft_tensor *y = weft_mixture_of_experts(P("x", 8, 4), "m", .experts = 4, .choices = 2, .hidden = 8, .capacity = 0.7, .balance_out = &balance);
    return weft_add(y, balance);
}

#define ROW(f) {#f, f}
static const design models[] = {
    ROW(broadcast), ROW(choices), ROW(unaries), ROW(product), ROW(product_turned), ROW(products), ROW(products_with_one), ROW(pair), ROW(block), ROW(channels),
    ROW(groups), ROW(attention), ROW(self_attention), ROW(rows_of_a_table), ROW(columns_of_a_table), ROW(scatter), ROW(entropy), ROW(softmaxes),
    ROW(norms), ROW(batch_norm), ROW(sums), ROW(norm_of_all), ROW(extremes), ROW(shapes), ROW(cuts), ROW(joined), ROW(expanded), ROW(dropped),
    ROW(rotary), ROW(errors), ROW(more_unaries), ROW(more_choices), ROW(drawn), ROW(spread), ROW(gradient_of_pools), ROW(rows_of_experts), ROW(rows_of_experts_turned), ROW(mixture)};

/* --- the whole --- */

typedef struct whole {
    weft_graph  *graph;
    weft_tensor *leaf[MOST_LEAVES], *targets[MOST_TARGETS];
    int32_t      n_leaves, n_targets;
} whole;

/* The result and the gradient of every parameter; `kept`: gradients are assigned to states, and these are the targets. */
static void build(const design *model, bool kept, whole *w) {
    *w = (whole){0};
    cr_assert_eq(weft_graph_create(&(weft_graph_options){.seed = 11}, &w->graph), WEFT_OK);
    weft_tensor *y = weft_cast(model->build(w->graph), WEFT_F64), *loss = weft_add(weft_mean(weft_square(y)), weft_sum(weft_sin(y)));
    for (int32_t i = 0; i < w->graph->n_leaves; i++) {
        if (w->graph->leaves[i]->op != WEFT_OP_PARAMETER) continue;
        cr_assert_lt(w->n_leaves, MOST_LEAVES);
        w->leaf[w->n_leaves++] = &w->graph->leaves[i]->outputs[0];
    }
    w->targets[0] = y;
    w->targets[1] = loss;
    w->n_targets = w->n_leaves + 2;
    cr_assert_eq(weft_gradients(loss, w->leaf, w->n_leaves, w->targets + 2), WEFT_OK, "%s: %s", model->name, weft_error_message());
    for (int32_t i = 0; kept && i < w->n_leaves; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s.kept", weft_tensor_name(w->leaf[i]));
        w->targets[i + 2] = weft_assign(weft_state(w->graph, name, w->leaf[i]->shape, .dtype = WEFT_F64), w->targets[i + 2]);
    }
    cr_assert_eq(wefti_graph_status(w->graph), WEFT_OK, "%s: %s", model->name, weft_error_message());
}

/* The value of a leaf's element by its place in the whole. */
static double value_of(const wefti_node *node, int64_t element) {
    uint64_t bits = (uint64_t)element + 1;
    for (const char *c = node->name; *c; c++) bits = (bits ^ (unsigned char)*c) * UINT64_C(0x100000001b3);
    bits = (bits ^ bits >> 31) * UINT64_C(0xbf58476d1ce4e5b9);
    double unit = (double)((bits ^ bits >> 29) >> 11) * 0x1p-53;
    return !weft_dtype_is_float(node->outputs[0].dtype) ? floor(8 * unit) : node->op == WEFT_OP_STATE ? 0.5 + unit : 2 * unit - 1;
}

/* --- its split --- */

typedef struct part {
    weft_graph        *graph;
    interp            *in;
    weft_tensor       *targets[MOST_TARGETS];
    const weft_tensor *messages[MOST_MESSAGES];
    weft_op            kind[MOST_MESSAGES];
} part;

static const wefti_window_of *window_of(const wefti_tensor_split *split, const char *name) {
    for (int32_t i = 0; i < split->n_windows; i++)
        if (strcmp(split->windows[i].name, name) == 0) return &split->windows[i].window;
    return NULL;
}

static weft_shape shape_of(const whole *w, const char *name) {
    for (int32_t i = 0; i < w->graph->n_leaves; i++)
        if (strcmp(w->graph->leaves[i]->name, name) == 0) return w->graph->leaves[i]->outputs[0].shape;
    cr_assert_fail("no leaf is called '%s'", name);
    return weft_shape_scalar();
}

static bool is_message(const weft_tensor *const *messages, const weft_tensor *leaf) {
    for (int32_t k = 0; messages && messages[k]; k++)
        if (messages[k] == leaf) return true;
    return false;
}

static void fill(const whole *w, const wefti_tensor_split *split, interp *in, const weft_graph *graph, const weft_tensor *const *messages) {
    for (int32_t i = 0; i < graph->n_leaves; i++) {
        const wefti_node  *node = graph->leaves[i];
        const weft_tensor *leaf = &node->outputs[0];
        if ((node->op != WEFT_OP_INPUT && node->op != WEFT_OP_PARAMETER && node->op != WEFT_OP_STATE) || is_message(messages, leaf)) continue;
        const wefti_window_of *window = split ? window_of(split, node->name) : NULL;
        weft_shape             shape = shape_of(w, node->name);
        for (int64_t k = 0; k < weft_shape_elements(leaf->shape); k++)
            interp_set_one(in, leaf, k, value_of(node, window ? wefti_window_index(window, shape, k) : k));
    }
}

static void open_part(const whole *w, const wefti_tensor_split *split, part *self, const char *name) {
    weft_tensor *wanted[MOST_TARGETS + MOST_MESSAGES];
    int32_t      n = 0;
    cr_assert_eq(wefti_tensor_graph(split, w->graph, w->targets, w->n_targets, true, &self->graph, self->targets), WEFT_OK, "%s: %s", name,
                 weft_error_message());
    memcpy(wanted, self->targets, sizeof *wanted * (size_t)w->n_targets);
    for (int32_t id = 0; id < self->graph->n_nodes; id++) {
        wefti_node *node = self->graph->nodes[id];
        if (node->op != WEFT_OP_ALL_REDUCE && node->op != WEFT_OP_ALL_GATHER && node->op != WEFT_OP_REDUCE_SCATTER) continue;
        cr_assert_lt(n, MOST_MESSAGES - 1, "%s", name);
        self->kind[n] = node->op;
        node->op = WEFT_OP_STATE;
        wanted[w->n_targets + n] = node->inputs[0];
        self->messages[n++] = &node->outputs[0];
    }
    self->messages[n] = NULL;
    self->in = interp_open(self->graph, wanted, w->n_targets + n, true);
}

static double join(wefti_reduce_op reduce, double a, double b) {
    if (reduce == WEFTI_REDUCE_MAX) return fmax(a, b);
    if (reduce == WEFTI_REDUCE_MIN) return fmin(a, b);
    cr_assert_eq(reduce, WEFTI_REDUCE_SUM);
    return a + b;
}

static double brought(const part *rank, int32_t k, int64_t element) {
    return interp_get(rank->in, rank->messages[k]->node->inputs[0], element);
}

static double joined_value(const part *ranks, int32_t n, int32_t k, int64_t element) {
    double value = brought(&ranks[0], k, element);
    for (int32_t r = 1; r < n; r++) value = join((wefti_reduce_op)ranks[0].messages[k]->node->attrs.comm.reduce, value, brought(&ranks[r], k, element));
    return value;
}

/* What a rank gets of its k-th message: of a gathering, element by element of everyone's parts; of a scattered sum, its part. */
static double received(const part *ranks, int32_t n, int32_t k, int32_t rank, int64_t element) {
    const weft_tensor *out = ranks[rank].messages[k], *in = out->node->inputs[0];
    weft_op            kind = ranks[rank].kind[k];
    if (kind == WEFT_OP_ALL_REDUCE) return joined_value(ranks, n, k, element);
    int32_t axis = out->node->attrs.comm.axis;
    int64_t inner = 1, own = in->shape.dim[axis], got = out->shape.dim[axis];
    for (int32_t a = axis + 1; a < out->shape.rank; a++) inner *= out->shape.dim[a];
    int64_t behind = element % inner, along = element / inner % got, before = element / inner / got;
    if (kind == WEFT_OP_ALL_GATHER) return brought(&ranks[along / own], k, (before * own + along % own) * inner + behind);
    return joined_value(ranks, n, k, (before * own + rank * got + along) * inner + behind);
}

/* Ranks send the same messages in the same order. */
static bool messages_agree(const part *ranks, int32_t n, int32_t k, const char *name) {
    const weft_tensor *first = ranks[0].messages[k];
    for (int32_t r = 1; r < n; r++) {
        const weft_tensor *other = ranks[r].messages[k];
        cr_assert_eq(other == NULL, first == NULL, "%s: rank %d has another number of messages", name, r);
        if (!first) continue;
        cr_assert(weft_shape_equal(other->shape, first->shape) && other->dtype == first->dtype && ranks[r].kind[k] == ranks[0].kind[k], "%s", name);
        cr_assert_eq(other->node->id, first->node->id, "%s: ranks emit other nodes", name);
        cr_assert_eq(other->node->attrs.comm.reduce, first->node->attrs.comm.reduce, "%s", name);
    }
    return first != NULL;
}

static void run_parts(const whole *w, const wefti_tensor_split *splits, part *ranks, int32_t n, const char *name) {
    double *values[MOST_RANKS][MOST_MESSAGES];
    int32_t known = 0;
    for (;;) {
        for (int32_t r = 0; r < n; r++) {
            fill(w, &splits[r], ranks[r].in, ranks[r].graph, ranks[r].messages);
            for (int32_t k = 0; k < known; k++) interp_set(ranks[r].in, ranks[r].messages[k], values[r][k]);
            interp_run(ranks[r].in, 3);
        }
        if (!messages_agree(ranks, n, known, name)) break;
        for (int32_t r = 0; r < n; r++) {
            int64_t elements = weft_shape_elements(ranks[r].messages[known]->shape);
            values[r][known] = malloc(sizeof(double) * (size_t)(elements + 1));
            for (int64_t i = 0; i < elements; i++) values[r][known][i] = received(ranks, n, known, r, i);
        }
        known++;
    }
    for (int32_t r = 0; r < n; r++)
        for (int32_t k = 0; k < known; k++) free(values[r][k]);
}

static void compare(const interp *in, const weft_tensor *expected, const part *rank, int32_t t, const char *name) {
    double  scale = 1;
    int64_t elements = weft_shape_elements(expected->shape);
    cr_assert(weft_shape_equal(rank->targets[t]->shape, expected->shape), "%s: target %d has another shape", name, t);
    for (int64_t i = 0; i < elements; i++) scale = fmax(scale, fabs(interp_get(in, expected, i)));
    for (int64_t i = 0; i < elements; i++) {
        double want = interp_get(in, expected, i), got = interp_get(rank->in, rank->targets[t], i);
        cr_assert((isnan(want) && isnan(got)) || fabs(got - want) <= 1e-12 * scale, "%s: target %d element %lld is %.17g, not %.17g", name, t,
                  (long long)i, got, want);
    }
}

/* --- all splits --- */

/* Layouts that a leaf may have, from 0: whole. */
static wefti_layout layout_number(const wefti_tensor_split *split, weft_shape shape, int32_t number, int32_t *count_out) {
    wefti_layout found = wefti_layout_whole();
    int32_t      n = 1;
    for (int32_t axis = 0; axis < shape.rank; axis++)
        for (int32_t pattern = 0; pattern < split->n_patterns; pattern++) {
            wefti_layout layout = wefti_tensor_split_of(split, axis, shape.dim[axis], pattern);
            if (layout.kind == WEFTI_SPLIT && n++ == number) found = layout;
        }
    *count_out = n;
    return found;
}

static void check_one(const whole *w, const interp *in, wefti_tensor_split *splits, int32_t ranks, const char *name) {
    part parts[MOST_RANKS];
    for (int32_t r = 0; r < ranks; r++) open_part(w, &splits[r], &parts[r], name);
    run_parts(w, splits, parts, ranks, name);
    for (int32_t r = 0; r < ranks; r++) {
        for (int32_t t = 0; t < w->n_targets; t++) compare(in, w->targets[t], &parts[r], t, name);
        interp_close(parts[r].in);
        weft_graph_release(parts[r].graph);
    }
}

/* The split in which each leaf has the layout of that number, its kept gradient too. */
static void choose(const whole *w, const int32_t *numbers, bool kept, int32_t ranks, wefti_tensor_split *splits, wefti_named_window *windows) {
    static char names[MOST_LEAVES][64];
    for (int32_t r = 0; r < ranks; r++) {
        splits[r].n_windows = 0;
        splits[r].windows = windows + r * 2 * MOST_LEAVES;
        for (int32_t i = 0; i < w->n_leaves; i++) {
            int32_t         count;
            wefti_layout    layout = layout_number(&splits[r], w->leaf[i]->shape, numbers[i], &count);
            wefti_window_of window = wefti_tensor_window(&splits[r], &layout, w->leaf[i]->shape);
            if (layout.kind != WEFTI_SPLIT) continue;
            snprintf(names[i], sizeof names[i], "%s.kept", weft_tensor_name(w->leaf[i]));
            splits[r].windows[splits[r].n_windows++] = (wefti_named_window){weft_tensor_name(w->leaf[i]), window};
            if (kept) splits[r].windows[splits[r].n_windows++] = (wefti_named_window){names[i], window};
        }
    }
}

static void open_splits(int32_t ranks, bool rows, wefti_tensor_split *splits) {
    for (int32_t r = 0; r < ranks; r++) {
        splits[r] = (wefti_tensor_split){.rank = r, .ranks = ranks, .group = 2, .shares_rows = rows};
        (void)wefti_tensor_pattern(&splits[r], (int64_t[]){1}, 1);
        (void)wefti_tensor_pattern(&splits[r], (int64_t[]){1, 1}, 2);
        (void)wefti_tensor_pattern(&splits[r], (int64_t[]){1, 1, 1}, 3);
    }
}

/* All combinations where there are few, else drawn ones. */
static void check(const design *model, int32_t ranks, bool kept, bool rows, int64_t splits_at_most) {
    wefti_tensor_split splits[MOST_RANKS];
    wefti_named_window windows[MOST_RANKS * 2 * MOST_LEAVES];
    whole              w;
    int32_t            counts[MOST_LEAVES], numbers[MOST_LEAVES];
    int64_t            all = 1;
    uint64_t           state = 88172645463325252u;
    build(model, kept, &w);
    open_splits(ranks, rows, splits);
    interp *in = interp_open(w.graph, w.targets, w.n_targets, true);
    fill(&w, NULL, in, w.graph, NULL);
    interp_run(in, 3);
    for (int32_t i = 0; i < w.n_leaves; i++) {
        (void)layout_number(&splits[0], w.leaf[i]->shape, -1, &counts[i]);
        all = all > splits_at_most ? all : all * counts[i];
    }
    cr_assert_gt(all, 1, "%s has nothing to split", model->name);
    for (int64_t at = 0; at < (all < splits_at_most ? all : splits_at_most); at++) {
        char    name[256];
        int64_t rest = at;
        int     end = snprintf(name, sizeof name, "%s on %d ranks%s%s", model->name, (int)ranks, kept ? ", kept" : "", rows ? ", rows shared" : "");
        for (int32_t i = 0; i < w.n_leaves; i++) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            numbers[i] = (int32_t)(all <= splits_at_most ? rest % counts[i] : (int64_t)((state >> 11) % (uint64_t)counts[i]));
            rest /= counts[i];
            end += snprintf(name + end, sizeof name - (size_t)end, "%s%s %d", i ? ", " : ": ", weft_tensor_name(w.leaf[i]), numbers[i]);
        }
        choose(&w, numbers, kept, ranks, splits, windows);
        check_one(&w, in, splits, ranks, name);
    }
    interp_close(in);
    weft_graph_release(w.graph);
}

static void check_all(int32_t ranks, bool kept, bool rows, int64_t splits_at_most) {
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) check(&models[i], ranks, kept, rows, splits_at_most);
}
Test(tensor, two_ranks) { check_all(2, false, false, 24); }
Test(tensor, two_ranks_that_keep_parts_of_gradients) { check_all(2, true, false, 12); }
Test(tensor, two_ranks_that_share_rows) { check_all(2, true, true, UNDER_ADDRESS_SANITIZER ? 4 : 16); }
Test(tensor, four_ranks) { check_all(4, false, false, 8); }
Test(tensor, four_ranks_that_keep_parts_of_gradients) { check_all(4, true, false, 8); }
Test(tensor, four_ranks_that_share_rows) { check_all(4, false, true, UNDER_ADDRESS_SANITIZER ? 3 : 8); }

/* --- messages that are one --- */

/* What a rank of two sends of a kind, where leaves "a", "b", … are split along these axes (-1: whole), and gradients are not asked for. */
static int32_t messages_of(weft_tensor *(*model)(weft_graph *g), const int32_t *axes, weft_op op) {
    weft_graph  *g, *mine;
    weft_tensor *target, *out;
    int32_t      found = 0;
    cr_assert_eq(weft_graph_create(NULL, &g), WEFT_OK);
    target = model(g);
    wefti_tensor_split split = {.ranks = 2, .group = 2};
    wefti_named_window windows[4];
    split.windows = windows;
    (void)wefti_tensor_pattern(&split, (int64_t[]){1}, 1);
    for (int32_t i = 0; i < g->n_leaves; i++) {
        weft_shape   shape = g->leaves[i]->outputs[0].shape;
        int32_t      axis = axes[g->leaves[i]->name[0] - 'a'];
        wefti_layout layout = axis < 0 ? wefti_layout_whole() : wefti_tensor_split_of(&split, axis, shape.dim[axis], 0);
        if (axis >= 0) windows[split.n_windows++] = (wefti_named_window){g->leaves[i]->name, wefti_tensor_window(&split, &layout, shape)};
    }
    cr_assert_eq(wefti_tensor_graph(&split, g, &target, 1, true, &mine, &out), WEFT_OK, "%s", weft_error_message());
    for (int32_t id = 0; id < mine->n_nodes; id++) found += mine->nodes[id]->op == op;
    weft_graph_release(mine);
    weft_graph_release(g);
    return found;
}

static weft_tensor *read_whole_twice(weft_graph *g) {
    weft_tensor *y = weft_tanh(P("a", 4, 8));
    return weft_add(weft_softmax(y, 1), weft_log_softmax(y, 1));
}
static weft_tensor *sum_read_twice(weft_graph *g) {
    weft_tensor *y = weft_matmul(P("a", 4, 8), P("b", 8, 4));
    return weft_add(weft_tanh(y), weft_exp(y));
}
static weft_tensor *sums_added(weft_graph *g) { return weft_tanh(weft_add(weft_matmul(P("a", 4, 8), P("b", 8, 4)), weft_matmul(P("c", 4, 8), P("d", 8, 4)))); }
static weft_tensor *sum_kept_in_parts(weft_graph *g) { return weft_exp(weft_add(P("c", 4, 4), weft_matmul(P("a", 4, 8), P("b", 8, 4)))); }
static weft_tensor *losses_of_classes(weft_graph *g) { return weft_cross_entropy(P("a", 4, 8), weft_cast(weft_parameter(g, "b", weft_shape(4), .dtype = WEFT_F64), WEFT_I64)); }

Test(tensor, equal_messages_are_one_and_sums_are_merged) {
    cr_expect_eq(messages_of(read_whole_twice, (int32_t[]){1}, WEFT_OP_ALL_GATHER), 1);
    cr_expect_eq(messages_of(sum_read_twice, (int32_t[]){1, 0}, WEFT_OP_ALL_REDUCE), 1);
    cr_expect_eq(messages_of(sums_added, (int32_t[]){1, 0, 1, 0}, WEFT_OP_ALL_REDUCE), 1, "sums are not summed before they are sent");
    cr_expect_eq(messages_of(sum_kept_in_parts, (int32_t[]){1, 0, 0}, WEFT_OP_REDUCE_SCATTER), 1);
    cr_expect_eq(messages_of(sum_kept_in_parts, (int32_t[]){1, 0, 0}, WEFT_OP_ALL_REDUCE), 0, "a sum of which a part is wanted is sent as a whole");
    cr_expect_eq(messages_of(losses_of_classes, (int32_t[]){1, -1}, WEFT_OP_ALL_REDUCE), 2, "a maximum, and two sums as one");
}

/* --- every operation --- */

/* What no program above has, and where it is tried, or why not. Layouts with channels last and moments in one pass are no operations, but planning's, behind all
 * rewrites. */
static const struct {
    weft_op     op;
    const char *why;
} elsewhere[] = {
    {WEFT_OP_CONSTANT, "a leaf that is whole on all ranks"},
    {WEFT_OP_UPDATE, "the trainer's: tests/train/test_tensor.c holds every step, of parts of parameters and states, against one process"},
    {WEFT_OP_CUSTOM, "is given all of its inputs; rows of the batch: test_partition.c"},
    {WEFT_OP_CUSTOM_BACKWARD, "as it"},
    {WEFT_OP_FUSED, "planning makes it of what is split already, as what follows: tests/plan, and tests/train with plans of ranks"},
    {WEFT_OP_FUSED_MATMUL, "planning's: epilogues of products"},
    {WEFT_OP_FP8_CAST, "planning's: of products that are marked"},
    {WEFT_OP_FP8_MATMUL, "planning's, as it"},
    {WEFT_OP_ENCODE, "the batch's rewrite makes it of gradients, and is refused beside this axis: test_compress.c"},
    {WEFT_OP_DECODE, "as it"},
    {WEFT_OP_ALL_REDUCE, "what rewrites make, here too; of other axes' messages beside this one: tests/train/test_mesh.c"},
    {WEFT_OP_ALL_GATHER, "as it"},
    {WEFT_OP_REDUCE_SCATTER, "as it"},
    {WEFT_OP_ALL_TO_ALL, "of experts: tests/train/test_mesh.c with expert and tensor"},
    {WEFT_OP_EXCHANGE_ROWS, "of experts: tests/train/test_mesh.c with expert and tensor"},
    {WEFT_OP_SEND, "of the ring: tests/train/test_mesh.c with sequence and tensor"},
    {WEFT_OP_RECEIVE, "as it"},
    {WEFT_OP_BROADCAST, "no rewrite makes it: engines' own test is tests/collective"},
};

Test(tensor, every_operation_is_tried_or_named) {
    bool tried[WEFT_OP_COUNT] = {false};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        whole w;
        build(&models[i], true, &w);
        for (int32_t id = 0; id < w.graph->n_nodes; id++) tried[w.graph->nodes[id]->op] = true;
        weft_graph_release(w.graph);
    }
    for (size_t i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++) {
        cr_expect(!tried[elsewhere[i].op], "%s is tried here, and need not be named (%s)", wefti_ops[elsewhere[i].op].name, elsewhere[i].why);
        tried[elsewhere[i].op] = true;
    }
    for (int32_t op = 0; op < WEFT_OP_COUNT; op++) cr_expect(tried[op], "%s is in no program of this file, and not said to be tried elsewhere", wefti_ops[op].name);
}

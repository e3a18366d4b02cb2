/* Any split of a graph is the whole graph: programs of every kind of op, and their gradients, are split over ranks and micro-batches
 * (uneven ones, and such without rows), evaluated rank by rank in this process, and held against the whole graph in f64.
 *
 * An ALL_REDUCE is made a leaf of each rank's graph: all ranks run, what they bring to the first one is joined and set on each,
 * all run again for the second, and so on. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/interp.h"
#include "parallel/partition.h"
#include "weft/custom.h"
#include "weft/layers.h"
#include "weft/loss.h"

enum { MOST_RANKS = 3, MOST_TARGETS = 16, MOST_SUMS = 64, BUILT = 5 };

/* What a model is made of: inputs of `rows` samples. */
typedef struct parts {
    weft_graph  *graph;
    int64_t      rows;
    weft_tensor *x;       /* [rows, 4, 6] */
    weft_tensor *flat;    /* [rows, 24], x again */
    weft_tensor *picture; /* [rows, 4, 5, 3], another input */
    weft_tensor *index;   /* i32 [rows, 3], 0 .. 3 */
    weft_tensor *label;   /* i32 [rows], 0 .. 3 */
} parts;

typedef struct design {
    const char *name;
    weft_tensor *(*build)(const parts *p); /* of any shape, floating */
} design;

/* --- programs --- */

static weft_tensor *weight(const parts *p, const char *name, weft_shape shape) {
    return weft_parameter(p->graph, name, shape, .dtype = WEFT_F64);
}

static weft_tensor *linear(const parts *p) { return weft_linear(p->flat, "l", .out = 3); }
static weft_tensor *gram(const parts *p) { return weft_matmul(p->flat, p->flat, .transpose_a = true); }
static weft_tensor *products_of_samples(const parts *p) { return weft_matmul(p->x, p->x, .transpose_b = true); }
static weft_tensor *between_samples(const parts *p) { return weft_matmul(p->flat, p->flat, .transpose_b = true); }
static weft_tensor *conv(const parts *p) {
    return weft_max_pool2d(weft_conv2d(p->picture, "c", .filters = 6, .kernel = 3, .pad = 1, .groups = 2), .window = 2);
}
static weft_tensor *average_pool(const parts *p) { return weft_avg_pool2d(p->picture, .window = 2, .pad = 1, .exclude_pad = true); }
static weft_tensor *global_pools(const parts *p) {
    return weft_add(weft_global_avg_pool2d(p->picture), weft_global_max_pool2d(p->picture));
}
static weft_tensor *self_attention(const parts *p) {
    weft_tensor *x = weft_reshape(p->flat, weft_shape(-1, 3, 8));
    return weft_self_attention(x, "a", .heads = 2, .kv_heads = 1, .causal = true, .rotary = true);
}
static weft_tensor *attention_over_samples(const parts *p) {
    weft_tensor *q = weft_permute(weft_reshape(p->flat, weft_shape(-1, 2, 3, 4)), weft_axes(2, 1, 0, 3));
    return weft_attention(q, q, q);
}
static weft_tensor *embedding(const parts *p) { return weft_embedding(p->index, "e", .count = 5, .size = 2); }
static weft_tensor *gather_between_samples(const parts *p) { return weft_gather(weft_tanh(p->flat), p->label, 0); }
static weft_tensor *gather_by_sample(const parts *p) {
    return weft_gather(weight(p, "table", weft_shape(5, 3)), p->label, 0);
}
static weft_tensor *scatter(const parts *p) {
    return weft_scatter_add(weight(p, "base", weft_shape(5, 24)), p->label, p->flat, 0);
}
static weft_tensor *rotary(const parts *p) { return weft_rotary(p->x, .base = 10, .offset = 1); }
static weft_tensor *norms(const parts *p) {
    weft_tensor *y = weft_rms_norm(weft_layer_norm(p->x, "layer"), "rms");
    return weft_add(y, weft_group_norm(p->x, "group", .groups = 2));
}
static weft_tensor *batch_norm(const parts *p) { return weft_batch_norm(p->picture, "b", .eps = 0.1); }
static weft_tensor *softmaxes(const parts *p) { return weft_add(weft_softmax(p->flat, -1), weft_log_softmax(p->flat, 1)); }
static weft_tensor *softmax_over_samples(const parts *p) { return weft_softmax(p->flat, 0); }
static weft_tensor *sums(const parts *p) {
    weft_tensor *over = weft_sum(weft_square(p->x), .axes = weft_axes(0)), *within = weft_mean(p->x, .axes = weft_axes(1), .keep = true);
    return weft_add(weft_mul(p->x, within), over);
}
static weft_tensor *spread(const parts *p) {
    weft_tensor *all = weft_sqrt(weft_add_scalar(weft_variance(p->flat, .axes = weft_axes(0), .correction = 0.5), 0.1));
    return weft_div(weft_sub(p->flat, weft_mean(p->flat, .axes = weft_axes(0))), all);
}
static weft_tensor *norm_of_all(const parts *p) { return weft_add(weft_norm(p->x), weft_norm(p->x, .axes = weft_axes(0), .p = 3)); }
/* Rounded, so that samples tie. */
static weft_tensor *extremes(const parts *p) {
    weft_tensor *ties = weft_add(weft_floor(weft_mul_scalar(p->flat, 2)), weft_sub(p->flat, weft_detach(p->flat)));
    weft_tensor *over = weft_add(weft_max(ties, .axes = weft_axes(0)), weft_min(ties, .axes = weft_axes(0)));
    return weft_add(weft_mul(p->flat, over), weft_max(ties, .axes = weft_axes(1), .keep = true));
}
static weft_tensor *extreme_of_all(const parts *p) { return weft_add(weft_max(p->x), weft_min(p->picture)); }
static weft_tensor *argmaxes(const parts *p) {
    weft_tensor *within = weft_cast(weft_argmax(p->flat, 1), WEFT_F64), *over = weft_cast(weft_argmax(p->flat, 0), WEFT_F64);
    return weft_add(weft_mul(p->flat, over), weft_unsqueeze(within, 1));
}
static weft_tensor *side_by_side(const parts *p) {
    weft_tensor *wide = weft_concat((weft_tensor *[]){p->flat, weft_exp(p->flat), weft_slice(p->flat, 1, 3, 7)}, 3, 1);
    return weft_pad(wide, .low = {0, 2}, .high = {0, 1}, .value = 0.5);
}
static weft_tensor *below_each_other(const parts *p) { return weft_concat((weft_tensor *[]){p->flat, weft_sin(p->flat)}, 2, 0); }
static weft_tensor *first_samples(const parts *p) { return weft_slice(weft_tanh(p->flat), 0, 0, 2); }
static weft_tensor *shapes(const parts *p) {
    weft_tensor *tokens = weft_reshape(p->x, weft_shape(-1, 6)); /* [rows*4, 6] */
    weft_tensor *back = weft_reshape(weft_linear(tokens, "t", .out = 2), weft_shape(-1, 4, 2));
    return weft_permute(back, weft_axes(2, 0, 1));
}
static weft_tensor *choices(const parts *p) {
    weft_tensor *shift = weight(p, "shift", weft_shape(24));
    return weft_where(weft_gt_scalar(p->flat, 0.1), weft_mul(p->flat, shift), weft_clamp(weft_sub(shift, p->flat), -0.5, 0.5));
}
static weft_tensor *dropped(const parts *p) { return weft_dropout(weft_dropout(p->x, 0.3), 0.2); }
static weft_tensor *entropy(const parts *p) {
    weft_tensor *logits = weft_linear(p->flat, "l", .out = 4);
    weft_tensor *mean = weft_cross_entropy(logits, p->label, .ignore = true, .ignored = 1, .smoothing = 0.1);
    return weft_add(mean, weft_mul_scalar(weft_cross_entropy(logits, p->label, .reduction = WEFT_NONE), 0.1));
}
static weft_tensor *errors(const parts *p) {
    weft_tensor *y = weft_tanh(p->flat);
    return weft_add(weft_add(weft_mse(p->flat, y), weft_huber(p->flat, y, .delta = 0.1)), weft_bce_with_logits(p->flat, weft_sigmoid(y)));
}
static weft_tensor *kept_less(const parts *p) {
    weft_recompute_begin(p->graph);
    weft_tensor *h = weft_dropout(weft_gelu(weft_linear(p->flat, "one", .out = 8)), 0.3);
    weft_recompute_end(p->graph);
    return weft_linear(weft_batch_norm(h, "b", .eps = 0.1), "two", .out = 3);
}

/* Who is dropped is a matter of all samples, and so is the balance. */
static weft_tensor *mixture(const parts *p, int32_t choices, double capacity) {
    weft_tensor *balance, *z;
    weft_tensor *y = weft_mixture_of_experts(p->x, "m", .experts = 3, .choices = choices, .hidden = 5, .capacity = capacity, .balance_out = &balance, .z_out = &z);
    return weft_add(y, weft_add(balance, z));
}
static weft_tensor *experts(const parts *p) { return mixture(p, 1, 0.7); }
static weft_tensor *experts_of_two(const parts *p) { return mixture(p, 2, 0.8); }
static weft_tensor *experts_without_limit(const parts *p) { return mixture(p, 2, INFINITY); }

static weft_status cube_shape(const weft_custom_type *inputs, const void *options, weft_custom_type *outputs_out) {
    (void)options;
    outputs_out[0] = inputs[0];
    return WEFT_OK;
}
/* y = x^3, or, where options say so, x^3 plus the sum of all x. */
static weft_status cube_forward(const weft_custom_data *inputs, const void *options, weft_custom_data *outputs_out) {
    const double *x = inputs[0].data;
    int64_t       n = weft_shape_elements(inputs[0].shape);
    double        sum = 0;
    for (int64_t i = 0; i < n && *(const int *)options; i++) sum += x[i];
    for (int64_t i = 0; i < n; i++) ((double *)outputs_out[0].data)[i] = x[i] * x[i] * x[i] + sum;
    return WEFT_OK;
}
static weft_status cube_backward(const weft_custom_data *inputs, const weft_custom_data *outputs, const weft_custom_data *gy,
                                 const void *options, weft_custom_data *gx_out) {
    const double *x = inputs[0].data, *g = gy[0].data;
    int64_t       n = weft_shape_elements(inputs[0].shape);
    double        sum = 0;
    (void)outputs;
    for (int64_t i = 0; i < n && *(const int *)options; i++) sum += g[i];
    for (int64_t i = 0; i < n; i++) ((double *)gx_out[0].data)[i] = 3 * x[i] * x[i] * g[i] + sum;
    return WEFT_OK;
}
static weft_tensor *custom(const parts *p, bool row_local) {
    weft_custom_op op = {.name = "cube", .n_inputs = 1, .n_outputs = 1, .shape = cube_shape, .forward = cube_forward,
                         .backward = cube_backward, .row_local = row_local};
    weft_tensor *x = weft_sin(p->flat);
    return weft_custom(p->graph, &op, &x, 1, "c", &(int){!row_local}, sizeof(int));
}
static weft_tensor *custom_by_row(const parts *p) { return custom(p, true); }
static weft_tensor *custom_of_all(const parts *p) { return custom(p, false); }

static weft_tensor *more_unaries(const parts *p) {
    weft_tensor *a = p->flat, *positive = weft_add_scalar(weft_square(a), 0.5);
    weft_tensor *some = weft_add(weft_add(weft_abs(a), weft_sign(a)), weft_add(weft_neg(weft_expm1(a)), weft_add(weft_cos(a), weft_erf(a))));
    weft_tensor *more = weft_add(weft_add(weft_softplus(a), weft_ceil(a)), weft_add(weft_round(weft_mul_scalar(a, 3)), weft_add(weft_gelu_tanh(a), weft_floor(a))));
    weft_tensor *most = weft_add(weft_add(weft_gelu(a), weft_silu(a)), weft_add(weft_relu(a), weft_add(weft_sigmoid(a), weft_tanh(a))));
    weft_tensor *last = weft_add(weft_add(weft_log(positive), weft_log1p(positive)), weft_add(weft_rsqrt(positive), weft_add(weft_reciprocal(positive), weft_sqrt(positive))));
    return weft_add(weft_add(some, more), weft_add(most, weft_add(last, weft_detach(weft_exp(a)))));
}
static weft_tensor *more_choices(const parts *p) {
    weft_tensor *a = p->flat, *b = weight(p, "w", weft_shape(24)), *positive = weft_add_scalar(weft_square(a), 0.5);
    weft_tensor *some = weft_or(weft_and(weft_lt(a, b), weft_ne(a, b)), weft_and(weft_le(b, a), weft_not(weft_isfinite(a))));
    weft_tensor *others = weft_where(weft_eq(a, b), weft_maximum(a, b), weft_where(weft_gt(a, b), weft_div(b, positive), weft_training(a, weft_sub(a, b))));
    return weft_add(weft_where(some, weft_pow(positive, b), weft_minimum(a, b)), weft_where(weft_ge(a, b), weft_clamp(a, -0.5, 0.5), others));
}
static weft_tensor *drawn(const parts *p) {
    weft_shape shape = p->flat->shape;
    return weft_mul(weft_add(p->flat, weft_random_uniform(p->graph, WEFT_F64, shape)), weft_add(weft_arange(p->graph, WEFT_F64, 24, 0.5, 0.25), weft_random_normal(p->graph, WEFT_F64, shape)));
}
/* Gradients of means in 16-bit floats; they are exact in f64. */
static weft_tensor *spread_back(const parts *p) {
    wefti_attrs  attrs = wefti_no_attrs();
    weft_tensor *x = weft_sum(p->flat, .axes = weft_axes(1), .keep = true), *copy = wefti_apply(WEFT_OP_COPY, &attrs, &x, 1, NULL);
    attrs.reduce.axes = 1u << 1;
    attrs.reduce.keep = 1;
    attrs.reduce.shape = p->flat->shape;
    return weft_mul(wefti_apply(WEFT_OP_MEAN_BACKWARD, &attrs, &copy, 1, NULL), p->flat);
}
static weft_tensor *gradient_of_pools(const parts *p) {
    weft_tensor *x = p->picture, *back = NULL;
    cr_assert_eq(weft_gradients(weft_sum(weft_square(weft_max_pool2d(x, .window = 2))), &x, 1, &back), WEFT_OK, "%s", weft_error_message());
    return back;
}

static const design models[] = {
    {"linear", linear}, {"gram", gram}, {"products of samples", products_of_samples}, {"between samples", between_samples},
    {"conv", conv}, {"average pool", average_pool}, {"global pools", global_pools}, {"self-attention", self_attention},
    {"embedding", embedding}, {"gather by sample", gather_by_sample}, {"scatter", scatter}, {"rotary", rotary}, {"norms", norms},
    {"batch norm", batch_norm}, {"softmaxes", softmaxes}, {"sums", sums}, {"spread", spread}, {"norm of all", norm_of_all},
    {"extremes", extremes}, {"extreme of all", extreme_of_all}, {"argmaxes", argmaxes}, {"side by side", side_by_side},
    {"shapes", shapes}, {"choices", choices}, {"dropped", dropped}, {"entropy", entropy}, {"errors", errors}, {"kept less", kept_less},
    {"experts", experts}, {"experts of two", experts_of_two}, {"experts without limit", experts_without_limit},
    {"custom by row", custom_by_row}, {"custom of all", custom_of_all}, {"more unaries", more_unaries}, {"more choices", more_choices},
    {"drawn", drawn}, {"spread back", spread_back}, {"gradient of pools", gradient_of_pools},
};

/* Their gradients have the batch size built in: another is refused. */
static const design fixed_models[] = {
    {"attention over samples", attention_over_samples},
    {"gather between samples", gather_between_samples},
    {"softmax over samples", softmax_over_samples},
    {"below each other", below_each_other},
    {"first samples", first_samples},
};

/* --- the whole, and its split --- */

/* Whether the loss depends on a leaf. */
static bool depends(const weft_graph *graph, const weft_tensor *loss, const wefti_node *leaf) {
    bool *reached = calloc((size_t)graph->n_nodes, 1);
    reached[loss->node->id] = true;
    for (int32_t id = loss->node->id; id >= 0; id--)
        for (int32_t i = 0; reached[id] && i < graph->nodes[id]->n_inputs; i++) reached[graph->nodes[id]->inputs[i]->node->id] = true;
    bool found = reached[leaf->id];
    free(reached);
    return found;
}

/* A graph of the model: its result, a loss, and the gradients of all floating leaves that it has. Gives how many these are. */
static int32_t build(const design *model, int64_t rows, weft_graph **graph_out, weft_tensor **targets_out) {
    parts        p = {.rows = rows};
    weft_tensor *leaves[MOST_TARGETS];
    int32_t      n = 0;
    cr_assert_eq(weft_graph_create(&(weft_graph_options){.seed = 11}, &p.graph), WEFT_OK);
    p.x = weft_input(p.graph, "x", WEFT_F64, weft_shape(rows, 4, 6));
    p.flat = weft_reshape(p.x, weft_shape(-1, 24));
    p.picture = weft_input(p.graph, "picture", WEFT_F64, weft_shape(rows, 4, 5, 3));
    p.index = weft_input(p.graph, "index", WEFT_I32, weft_shape(rows, 3));
    p.label = weft_input(p.graph, "label", WEFT_I32, weft_shape(rows));
    weft_tensor *y = weft_cast(model->build(&p), WEFT_F64);
    weft_tensor *loss = weft_add(weft_mean(weft_square(y)), weft_sum(weft_sin(y)));
    for (int32_t i = 0; i < p.graph->n_leaves; i++) {
        weft_op op = p.graph->leaves[i]->op;
        if ((op != WEFT_OP_INPUT && op != WEFT_OP_PARAMETER) || !weft_dtype_is_float(p.graph->leaves[i]->outputs[0].dtype)) continue;
        if (!depends(p.graph, loss, p.graph->leaves[i])) continue;
        cr_assert_lt(n, MOST_TARGETS - 2);
        leaves[n++] = &p.graph->leaves[i]->outputs[0];
    }
    targets_out[0] = y;
    targets_out[1] = loss;
    cr_assert_eq(weft_gradients(loss, leaves, n, targets_out + 2), WEFT_OK, "%s: %s", model->name, weft_error_message());
    *graph_out = p.graph;
    return n + 2;
}

/* The value of a leaf's element, the same whoever asks: its place is in the global batch. */
static double value_of(const wefti_node *node, int64_t element) {
    uint64_t bits = (uint64_t)element + 1;
    for (const char *c = node->name; *c; c++) bits = (bits ^ (unsigned char)*c) * UINT64_C(0x100000001b3);
    bits = (bits ^ bits >> 31) * UINT64_C(0xbf58476d1ce4e5b9);
    double unit = (double)((bits ^ bits >> 29) >> 11) * 0x1p-53;
    return !weft_dtype_is_float(node->outputs[0].dtype) ? floor(4 * unit) : node->op == WEFT_OP_STATE ? 0.5 + unit : 2 * unit - 1;
}

static void fill(interp *in, const weft_graph *graph, int64_t first_row) {
    for (int32_t i = 0; i < graph->n_leaves; i++) {
        const wefti_node  *node = graph->leaves[i];
        const weft_tensor *leaf = &node->outputs[0];
        if (node->op != WEFT_OP_INPUT && node->op != WEFT_OP_PARAMETER && node->op != WEFT_OP_STATE) continue;
        int64_t elements = weft_shape_elements(leaf->shape), row = 1;
        for (int32_t axis = 1; axis < leaf->shape.rank; axis++) row *= leaf->shape.dim[axis];
        for (int64_t k = 0; k < elements; k++)
            interp_set_one(in, leaf, k, value_of(node, node->op == WEFT_OP_INPUT ? first_row * row + k : k));
    }
}

/* One rank of a split. */
typedef struct part {
    weft_graph        *graph;
    interp            *in;
    weft_tensor       *targets[MOST_TARGETS];
    const weft_tensor *sums[MOST_SUMS];
    int64_t            first_row;
} part;

static void open_part(part *self, weft_graph *graph, weft_tensor *const *targets, int32_t n, wefti_partition how, const char *name) {
    weft_tensor *wanted[MOST_TARGETS + MOST_SUMS];
    int64_t      rows;
    int32_t      n_sums = 0;
    cr_assert_eq(wefti_partition_graph(&how, graph, targets, n, true, &self->graph, self->targets), WEFT_OK, "%s: %s", name,
                 weft_error_message());
    weft_batch_share(how.rows, how.rank, how.ranks, &self->first_row, &rows);
    memcpy(wanted, self->targets, sizeof *wanted * (size_t)n);
    for (int32_t id = 0; id < self->graph->n_nodes; id++) {
        wefti_node *node = self->graph->nodes[id];
        if (node->op != WEFT_OP_ALL_REDUCE) continue;
        cr_assert_lt(n_sums, MOST_SUMS - 1, "%s", name);
        node->op = WEFT_OP_STATE;
        wanted[n + n_sums] = node->inputs[0];
        self->sums[n_sums++] = &node->outputs[0];
    }
    self->sums[n_sums] = NULL;
    self->in = interp_open(self->graph, wanted, n + n_sums, true);
}

static double join(wefti_reduce_op reduce, double a, double b) {
    if (reduce == WEFTI_REDUCE_MAX) return fmax(a, b);
    if (reduce == WEFTI_REDUCE_MIN) return fmin(a, b);
    cr_assert_eq(reduce, WEFTI_REDUCE_SUM);
    return a + b;
}

/* Joins what the ranks bring to their k-th sum; false where there is none. */
static bool join_sum(const part *ranks, int32_t n, int32_t k, double **values) {
    const weft_tensor *sum = ranks[0].sums[k];
    for (int32_t r = 1; r < n; r++) {
        cr_assert_eq(ranks[r].sums[k] == NULL, sum == NULL, "rank %d has another number of messages", r);
        if (!sum) continue;
        cr_assert(weft_shape_equal(ranks[r].sums[k]->shape, sum->shape) && ranks[r].sums[k]->dtype == sum->dtype);
        cr_assert_eq(ranks[r].sums[k]->node->attrs.comm.reduce, sum->node->attrs.comm.reduce);
    }
    if (!sum) return false;
    int64_t elements = weft_shape_elements(sum->shape);
    values[k] = malloc(sizeof(double) * (size_t)(elements + 1));
    for (int64_t i = 0; i < elements; i++)
        for (int32_t r = 0; r < n; r++) {
            double brought = interp_get(ranks[r].in, ranks[r].sums[k]->node->inputs[0], i);
            values[k][i] = r == 0 ? brought : join((wefti_reduce_op)sum->node->attrs.comm.reduce, values[k][i], brought);
        }
    return true;
}

/* Runs all ranks until every sum is known. */
static void run_parts(part *ranks, int32_t n) {
    double *values[MOST_SUMS];
    int32_t known = 0;
    do {
        for (int32_t r = 0; r < n; r++) {
            fill(ranks[r].in, ranks[r].graph, ranks[r].first_row);
            for (int32_t k = 0; k < known; k++) interp_set(ranks[r].in, ranks[r].sums[k], values[k]);
            interp_run(ranks[r].in, 3);
        }
    } while (join_sum(ranks, n, known, values) && ++known);
    while (known > 0) free(values[--known]);
}

/* Holds a target of all ranks against the whole one: each has it whole, or its rows of it. */
static void compare(const interp *in, const weft_tensor *whole, const part *ranks, int32_t n, int32_t t, const char *name) {
    int32_t axis = -1;
    int64_t begin = 0, inner = 1;
    double  scale = 1;
    for (int32_t r = 0; r < n; r++)
        for (int32_t a = 0; a < whole->shape.rank; a++)
            if (ranks[r].targets[t]->shape.dim[a] != whole->shape.dim[a]) axis = a;
    for (int32_t a = axis + 1; axis >= 0 && a < whole->shape.rank; a++) inner *= whole->shape.dim[a];
    for (int64_t i = 0; i < weft_shape_elements(whole->shape); i++) scale = fmax(scale, fabs(interp_get(in, whole, i)));
    for (int32_t r = 0; r < n; r++) {
        const weft_tensor *own = ranks[r].targets[t];
        cr_assert_eq(own->shape.rank, whole->shape.rank, "%s", name);
        int64_t block = axis < 0 ? 1 : own->shape.dim[axis] * inner, stride = axis < 0 ? 1 : whole->shape.dim[axis] * inner;
        for (int64_t i = 0; i < weft_shape_elements(own->shape); i++) {
            double expected = interp_get(in, whole, i / block * stride + begin + i % block), got = interp_get(ranks[r].in, own, i);
            cr_assert((isnan(expected) && isnan(got)) || fabs(got - expected) <= 1e-12 * scale,
                      "%s: target %d element %lld of rank %d is %.17g, not %.17g", name, t, (long long)i, r, got, expected);
        }
        begin += axis < 0 ? 0 : block;
    }
    if (axis >= 0) cr_assert_eq(begin, whole->shape.dim[axis] * inner, "%s: target %d is not all there", name, t);
}

static void check(const design *model, int64_t rows, int32_t ranks, int32_t micro, bool refused) {
    weft_graph  *graph, *whole;
    weft_tensor *targets[MOST_TARGETS], *expected[MOST_TARGETS];
    part         split[MOST_RANKS];
    char         name[128];
    int32_t      n = build(model, BUILT, &graph, targets);
    cr_assert_eq(build(model, rows, &whole, expected), n);
    if (refused) {
        weft_status status = wefti_partition_graph(&(wefti_partition){.ranks = ranks, .micro = micro, .rows = rows}, graph, targets, n, true,
                                                   &split[0].graph, split[0].targets);
        cr_assert_eq(status, WEFT_E_SHAPE, "%s: %s", model->name, weft_error_message());
        cr_assert(strstr(weft_error_message(), "built for 5"), "%s: %s", model->name, weft_error_message());
        weft_graph_release(graph);
        weft_graph_release(whole);
        return;
    }
    snprintf(name, sizeof name, "%s, %lld rows on %d ranks in %d micro-batches", model->name, (long long)rows, ranks, micro);
    for (int32_t r = 0; r < ranks; r++)
        open_part(&split[r], graph, targets, n, (wefti_partition){.rank = r, .ranks = ranks, .micro = micro, .rows = rows}, name);
    run_parts(split, ranks);
    interp *in = interp_open(whole, expected, n, true);
    fill(in, whole, 0);
    interp_run(in, 3);
    for (int32_t t = 0; t < n; t++) compare(in, expected[t], split, ranks, t, name);
    interp_close(in);
    for (int32_t r = 0; r < ranks; r++) {
        interp_close(split[r].in);
        weft_graph_release(split[r].graph);
    }
    weft_graph_release(graph);
    weft_graph_release(whole);
}

static void check_all(int64_t rows, int32_t ranks, int32_t micro) {
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) check(&models[i], rows, ranks, micro, false);
    for (size_t i = 0; i < sizeof fixed_models / sizeof *fixed_models; i++) check(&fixed_models[i], rows, ranks, micro, rows != BUILT);
}

Test(partition, one_rank_in_one_piece) { check_all(BUILT, 1, 1); }
Test(partition, one_rank_in_micro_batches) { check_all(BUILT, 1, 2); }
Test(partition, two_ranks) { check_all(BUILT, 2, 1); }
Test(partition, three_ranks_in_micro_batches) { check_all(BUILT, 3, 2); }
Test(partition, another_batch_on_one_rank) { check_all(3, 1, 2); }
Test(partition, another_batch_on_two_ranks) { check_all(3, 2, 2); }
Test(partition, a_rank_and_micro_batches_without_rows) { check_all(2, 3, 2); }

/* --- every operation --- */

/* What no program above has, and where it is tried, or why not. */
static const struct {
    weft_op     op;
    const char *why;
} elsewhere[] = {
    {WEFT_OP_CONSTANT, "a leaf that is whole on all ranks"},
    {WEFT_OP_UPDATE, "the trainer's: tests/train/test_parity.c holds every step against one process"},
    {WEFT_OP_FUSED, "planning makes it of what is split already, as what follows: tests/plan, and tests/train with plans of ranks"},
    {WEFT_OP_FUSED_MATMUL, "planning's: epilogues of products"},
    {WEFT_OP_FP8_CAST, "planning's: of products that are marked"},
    {WEFT_OP_FP8_MATMUL, "planning's, as it"},
    {WEFT_OP_ENCODE, "made of gradients by this rewrite: test_compress.c"},
    {WEFT_OP_DECODE, "as it"},
    {WEFT_OP_ALL_REDUCE, "what this rewrite makes"},
    {WEFT_OP_ALL_GATHER, "of rewrites behind this one, as what follows: test_tensor.c, tests/train/test_mesh.c"},
    {WEFT_OP_REDUCE_SCATTER, "as it"},
    {WEFT_OP_ALL_TO_ALL, "as it"},
    {WEFT_OP_EXCHANGE_ROWS, "as it"},
    {WEFT_OP_SEND, "as it"},
    {WEFT_OP_RECEIVE, "as it"},
    {WEFT_OP_BROADCAST, "no rewrite makes it: tests/collective"},
};

static void note_operations(const design *model, bool *tried) {
    weft_graph  *graph;
    weft_tensor *targets[MOST_TARGETS];
    (void)build(model, BUILT, &graph, targets);
    for (int32_t id = 0; id < graph->n_nodes; id++) tried[graph->nodes[id]->op] = true;
    weft_graph_release(graph);
}

Test(partition, every_operation_is_tried_or_named) {
    bool tried[WEFT_OP_COUNT] = {false};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) note_operations(&models[i], tried);
    for (size_t i = 0; i < sizeof fixed_models / sizeof *fixed_models; i++) note_operations(&fixed_models[i], tried);
    for (size_t i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++) {
        cr_expect(!tried[elsewhere[i].op], "%s is tried here, and need not be named (%s)", wefti_ops[elsewhere[i].op].name, elsewhere[i].why);
        tried[elsewhere[i].op] = true;
    }
    for (int32_t op = 0; op < WEFT_OP_COUNT; op++) cr_expect(tried[op], "%s is in no program of this file, and not said to be tried elsewhere", wefti_ops[op].name);
}

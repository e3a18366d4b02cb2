/* Mixture of experts: a gate chooses for each token, and products are of each row with the matrices that it chose (EXPERT_MATMUL). So tokens stay
 * where they are, whatever the split, and there is no buffer of an expert's that has to be padded. What is of the whole batch is small: the
 * choices' places among equal ones (OCCURRENCE), which decide who is dropped, and the balance's means. */
#include <math.h>

#include "core/graph/build.h"
#include "weft/layers.h"

/* What the gate says of T tokens. */
typedef struct gate {
    weft_tensor *logits, *p; /* [T, E] */
    weft_tensor *index;      /* i32 [T, k] */
    weft_tensor *chosen;     /* [T, k] probabilities of these */
    weft_tensor *share;      /* [E] of all choices, before any is dropped */
} gate;

static weft_tensor *column(weft_tensor *x) { return weft_unsqueeze(x, 1); }

/* The k largest one after another: k is small, and so is a row of the gate beside a token. */
static gate choose(weft_tensor *logits, int32_t experts, int32_t choices) {
    gate          g = {.logits = logits, .p = weft_softmax(logits, -1)};
    weft_graph   *graph = logits->graph;
    weft_tensor **index = wefti_graph_memory(graph, sizeof *index * (size_t)choices * 2), **chosen = index + choices;
    if (!index) return (gate){&graph->poison, &graph->poison, &graph->poison, &graph->poison, &graph->poison};
    weft_tensor *names = weft_arange(graph, WEFT_I32, experts, 0, 1), *left = weft_detach(g.p), *counts = NULL;
    for (int32_t i = 0; i < choices; i++) {
        weft_tensor *best = column(weft_cast(weft_argmax(left, 1), WEFT_I32)), *is_best = weft_eq(best, names);
        index[i]  = best;
        chosen[i] = weft_sum(weft_where(is_best, g.p, wefti_scalar_like(g.p, 0)), .axes = weft_axes(1), .keep = true);
        left      = weft_where(is_best, wefti_scalar_like(g.p, -1), left);
        weft_tensor *taken = weft_cast(is_best, g.p->dtype);
        counts = counts ? weft_add(counts, taken) : taken;
    }
    g.index  = choices == 1 ? index[0] : weft_concat(index, choices, 1);
    g.chosen = choices == 1 ? chosen[0] : weft_concat(chosen, choices, 1);
    if (choices > 1) g.chosen = weft_div(g.chosen, weft_sum(g.chosen, .axes = weft_axes(1), .keep = true));
    g.share = weft_mul_scalar(weft_mean(counts, .axes = weft_axes(0)), 1.0 / choices);
    return g;
}

/* i32 [T, k]: the expert, or -1 where it is full. */
static weft_tensor *kept(weft_tensor *index, weft_tensor *p, const weft_mixture_of_experts_options *o) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.expert.experts = o->experts;
    if (isinf(o->capacity) || wefti_poisoned(index)) return index;
    weft_tensor *place = wefti_apply(WEFT_OP_OCCURRENCE, &attrs, &index, 1, NULL);
    /* Up to a little, so that 1.1*30/3 is 11 and not 12. In whole numbers up to 2^53. */
    double       for_each_token = o->capacity * o->choices / o->experts * (1 - 1e-12);
    weft_tensor *limit = weft_ceil(weft_mul_scalar(weft_cast(wefti_extent(p, 1, p->dtype == WEFT_F64 ? WEFT_F64 : WEFT_F32), WEFT_F64), for_each_token));
    return weft_where(weft_lt(weft_cast(place, WEFT_F64), limit), index, wefti_scalar_like(index, -1));
}

/* One of the two products of every token's experts, and their biases. */
static weft_tensor *product(weft_tensor *x, const char *name, weft_tensor *index, int64_t out, int64_t repeat, weft_init init,
                            const weft_mixture_of_experts_options *o) {
    if (!wefti_usable(x)) return x;
    wefti_attrs attrs = wefti_no_attrs();
    attrs.expert.repeat = repeat;
    attrs.expert.share = isinf(o->capacity) ? 0 : o->capacity / o->experts;
    int64_t   in = x->shape.dim[1];
    double    bound = in > 0 ? 1 / sqrt((double)in) : 0;
    weft_init even = weft_init_uniform(-bound, bound);
    weft_tensor *w = wefti_layer_parameter(x, name, "weight", weft_shape(o->experts, in, out), init.kind == WEFT_INIT_DEFAULT ? even : init, false);
    weft_tensor *inputs[3] = {x, w, index}, *y = wefti_apply(WEFT_OP_EXPERT_MATMUL, &attrs, inputs, 3, name);
    return o->no_bias ? y : weft_add(y, weft_gather(wefti_layer_parameter(x, name, "bias", weft_shape(o->experts, out), even, true), index, 0));
}

static void report(const gate *g, weft_tensor *kept_index, const weft_mixture_of_experts_options *o) {
    if (o->balance_out)
        *o->balance_out = weft_mul_scalar(weft_sum(weft_mul(g->share, weft_mean(g->p, .axes = weft_axes(0)))), o->experts);
    if (o->z_out) {
        /* With the largest taken out, which as a constant changes no gradient. */
        weft_tensor *most = weft_max(weft_detach(g->logits), .axes = weft_axes(1), .keep = true);
        weft_tensor *lse = weft_add(weft_log(weft_sum(weft_exp(weft_sub(g->logits, most)), .axes = weft_axes(1), .keep = true)), most);
        *o->z_out = weft_mean(weft_square(lse));
    }
    if (o->dropped_out) *o->dropped_out = weft_mean(weft_cast(weft_lt_scalar(kept_index, 0), wefti_usable(g->p) ? g->p->dtype : WEFT_F32));
}

static weft_tensor *refuse(weft_graph *graph, const char *name, const weft_mixture_of_experts_options *o) {
    if (o->experts < 1) return wefti_graph_fail(graph, WEFT_E_INVALID, "mixture_of_experts '%s': .experts must be at least 1, not %d", name, o->experts);
    if (o->hidden < 1)
        return wefti_graph_fail(graph, WEFT_E_INVALID, "mixture_of_experts '%s': .hidden must be at least 1, not %lld", name, (long long)o->hidden);
    if (o->choices < 1 || o->choices > o->experts)
        return wefti_graph_fail(graph, WEFT_E_INVALID, "mixture_of_experts '%s': .choices must be from 1 to .experts = %d, not %d", name, o->experts, o->choices);
    if (!(o->capacity > 0))
        return wefti_graph_fail(graph, WEFT_E_INVALID, "mixture_of_experts '%s': .capacity must be positive (0 means 1.25, INFINITY no limit), not %g", name,
                                o->capacity);
    return NULL;
}

weft_tensor *weft_mixture_of_experts_with(weft_tensor *x, const char *name, const weft_mixture_of_experts_options *options) {
    weft_mixture_of_experts_options defaults = {0}, o = options ? *options : defaults;
    weft_tensor *poison = wefti_usable(x) ? &x->graph->poison : wefti_unusable(x, "mixture_of_experts"), **outs[] = {o.balance_out, o.z_out, o.dropped_out};
    for (size_t i = 0; i < WEFTI_COUNT(outs); i++)
        if (outs[i]) *outs[i] = poison; /* until there is more to say */
    if (!wefti_usable(x)) return poison;
    weft_graph *graph = x->graph;
    name = wefti_layer_name(graph, name, "mixture_of_experts");
    if (o.choices == 0) o.choices = 1;
    if (o.capacity == 0) o.capacity = 1.25;
    weft_tensor *refused = refuse(graph, name, &o);
    if (refused) return refused;
    if (x->shape.rank < 1)
        return wefti_graph_fail(graph, WEFT_E_SHAPE, "mixture_of_experts '%s' of %s: a scalar has no features", name, x->node->name);
    weft_shape   shape = x->shape;
    int64_t      width = shape.dim[shape.rank - 1];
    weft_tensor *rows = wefti_reshaped(x, weft_shape(weft_shape_elements(shape) / (width > 0 ? width : 1), width));
    if (!wefti_usable(rows)) return rows;
    weft_tensor *logits = weft_linear_with(rows, wefti_graph_join(graph, name, "gate"),
                                           &(weft_linear_options){.out = o.experts, .no_bias = true, .weight_init = o.gate_init});
    if (!wefti_usable(logits)) return logits;
    gate         g = choose(logits, o.experts, o.choices);
    weft_tensor *index = kept(g.index, g.p, &o);
    report(&g, index, &o);
    if (!wefti_usable(index)) return index;
    int64_t      tokens = rows->shape.dim[0], choices = o.choices;
    weft_tensor *each = wefti_reshaped(index, weft_shape(tokens * choices));
    weft_tensor *h = product(rows, wefti_graph_join(graph, name, "in"), each, o.hidden, choices, o.init, &o);
    h = o.relu ? weft_relu(h) : weft_gelu(h);
    weft_tensor *y = product(h, wefti_graph_join(graph, name, "out"), each, width, 1, o.out_init, &o);
    y = weft_mul(weft_reshape(y, weft_shape(tokens, choices, width)), weft_unsqueeze(g.chosen, -1));
    return wefti_reshaped(weft_sum(y, .axes = weft_axes(1)), shape);
}

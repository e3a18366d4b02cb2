/* Gradients of row-local ops, losses, attention, and the application's own ops. In comments u is the incoming gradient,
 * sums and means run over the row, K is its length. */
#include "core/autodiff/autodiff.h"

#define G call->gy[0]

/* Statistics of rows are f32 beside half types. */
static weft_tensor *as(weft_tensor *x, const weft_tensor *like) { return weft_cast(x, like->dtype); }

static weft_tensor *mean_kept(weft_tensor *x, uint32_t axes) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.reduce.axes = axes;
    attrs.reduce.keep = true;
    return wefti_node1(WEFT_OP_MEAN, &attrs, x);
}

/* ---- normalisation ---- */

void wefti_gradient_normalize(wefti_gradient_call *call) {
    const wefti_attrs *attrs = &call->node->attrs;
    weft_tensor       *x = call->node->inputs[0], *y = wefti_result(call, 0), *rstd = wefti_result(call, 1), *gx = NULL;
    if (G) gx = wefti_node3(WEFT_OP_NORMALIZE_BACKWARD, attrs, G, y, rstd);
    if (call->gy[1]) { /* d rstd / dx = -rstd^2 * y / K, with or without the mean */
        uint32_t axes = wefti_last_axes(x->shape.rank, attrs->rows.axes);
        wefti_attrs extent = wefti_no_attrs();
        extent.reduce.axes = axes;
        weft_tensor *wide = weft_cast(x, rstd->dtype), *count = wefti_node1(WEFT_OP_EXTENT, &extent, wide);
        weft_tensor *scale = wefti_over(wefti_negated(wefti_times(call->gy[1], weft_square(rstd))), count);
        weft_tensor *part = wefti_times(as(wefti_kept(scale, x->shape, axes), x), y);
        gx = gx ? wefti_plus(gx, part) : part;
    }
    call->gx[0] = gx;
}

/* out = rstd*(g - mean(g) - y*mean(g*y)), without mean(g) for rms. */
void wefti_gradient_normalize_backward(wefti_gradient_call *call) {
    const wefti_attrs *attrs = &call->node->attrs;
    weft_tensor       *g = wefti_primal(call, 0), *y = wefti_primal(call, 1), *rstd = wefti_primal(call, 2), *u = G;
    uint32_t           axes = wefti_last_axes(g->shape.rank, attrs->rows.axes);
    if (call->needed[0])
        call->gx[0] = wefti_node3(WEFT_OP_NORMALIZE_BACKWARD, attrs, u, y, rstd); /* self-adjoint in g */
    if (call->needed[1]) { /* -rstd*(u*mean(g*y) + g*mean(u*y)) */
        weft_tensor *sum = wefti_plus(wefti_times(u, mean_kept(wefti_times(g, y), axes)),
                                      wefti_times(g, mean_kept(wefti_times(u, y), axes)));
        call->gx[1] = wefti_negated(wefti_times(sum, as(wefti_kept(rstd, g->shape, axes), g)));
    }
    if (call->needed[2]) { /* sum(u*out)/rstd */
        weft_tensor *sum = wefti_summed(wefti_times(u, wefti_result(call, 0)), axes);
        call->gx[2] = wefti_over(as(weft_reshape(sum, rstd->shape), rstd), rstd);
    }
}

/* ---- softmax ---- */

static uint32_t last(const weft_tensor *x) { return wefti_last_axes(x->shape.rank, 1); }

void wefti_gradient_softmax(wefti_gradient_call *call) {
    call->gx[0] = wefti_node2(WEFT_OP_SOFTMAX_BACKWARD, NULL, G, wefti_result(call, 0));
}

/* out = y*(g - sum(g*y)) */
void wefti_gradient_softmax_backward(wefti_gradient_call *call) {
    weft_tensor *g = wefti_primal(call, 0), *y = wefti_primal(call, 1), *u = G;
    if (call->needed[0]) call->gx[0] = wefti_node2(WEFT_OP_SOFTMAX_BACKWARD, NULL, u, y); /* self-adjoint in g */
    if (call->needed[1]) { /* u*(g - sum(g*y)) - g*sum(u*y) */
        weft_tensor *centred = wefti_minus(g, wefti_summed(wefti_times(g, y), last(g)));
        call->gx[1] = wefti_minus(wefti_times(u, centred), wefti_times(g, wefti_summed(wefti_times(u, y), last(g))));
    }
}

void wefti_gradient_log_softmax(wefti_gradient_call *call) {
    call->gx[0] = wefti_node2(WEFT_OP_LOG_SOFTMAX_BACKWARD, NULL, G, wefti_result(call, 0));
}

/* out = g - exp(y)*sum(g) */
void wefti_gradient_log_softmax_backward(wefti_gradient_call *call) {
    weft_tensor *g = wefti_primal(call, 0), *u = G, *weighted = wefti_times(u, weft_exp(wefti_primal(call, 1)));
    if (call->needed[0]) call->gx[0] = wefti_minus(u, wefti_summed(weighted, last(g)));
    if (call->needed[1]) call->gx[1] = wefti_negated(wefti_times(weighted, wefti_summed(g, last(g))));
}

void wefti_gradient_rotary(wefti_gradient_call *call) {
    wefti_attrs attrs = call->node->attrs;
    attrs.rotary.inverse = !attrs.rotary.inverse;
    call->gx[0] = wefti_node1(WEFT_OP_ROTARY, &attrs, G);
}

/* ---- cross-entropy ---- */

static weft_tensor *entropy_backward(const wefti_attrs *attrs, weft_tensor *g, weft_tensor *logits, weft_tensor *label,
                                     weft_tensor *lse) {
    weft_tensor *inputs[4] = {g, logits, label, lse};
    return wefti_apply(WEFT_OP_CROSS_ENTROPY_BACKWARD, attrs, inputs, 4, NULL);
}

/* softmax(logits) = exp(logits - lse), as wide as lse. */
static weft_tensor *probabilities(weft_tensor *logits, weft_tensor *lse) {
    return weft_exp(weft_sub(weft_cast(logits, lse->dtype), weft_unsqueeze(lse, -1)));
}

void wefti_gradient_cross_entropy(wefti_gradient_call *call) {
    weft_tensor *logits = wefti_primal(call, 0), *lse = wefti_result(call, 1), *gx = NULL;
    if (!call->needed[0]) return;
    if (G) gx = entropy_backward(&call->node->attrs, G, logits, wefti_primal(call, 1), lse);
    if (call->gy[1]) {
        weft_tensor *part = as(wefti_times(weft_unsqueeze(call->gy[1], -1), probabilities(logits, lse)), logits);
        gx = gx ? wefti_plus(gx, part) : part;
    }
    call->gx[0] = gx;
}

/* (g, logits, label, lse): out = g*(exp(logits - lse) - target), 0 for ignored rows. */
void wefti_gradient_cross_entropy_backward(wefti_gradient_call *call) {
    const wefti_attrs *attrs = &call->node->attrs;
    weft_tensor       *g = wefti_primal(call, 0), *logits = wefti_primal(call, 1), *label = wefti_primal(call, 2);
    weft_tensor       *lse = wefti_primal(call, 3), *u = weft_cast(G, lse->dtype);
    uint32_t           classes = last(logits);
    if (call->needed[0]) {
        weft_tensor *slope = entropy_backward(attrs, wefti_constant_like(g, 1), logits, label, lse);
        call->gx[0] = weft_reshape(wefti_summed(wefti_times(u, weft_cast(slope, lse->dtype)), classes), g->shape);
    }
    if (!call->needed[1] && !call->needed[3]) return;
    if (attrs->loss.has_ignored)
        g = weft_where(weft_eq_scalar(label, (double)attrs->loss.ignored), weft_scalar(g->graph, g->dtype, 0), g);
    weft_tensor *part = wefti_times(wefti_times(u, probabilities(logits, lse)), weft_unsqueeze(g, -1));
    if (call->needed[1]) call->gx[1] = as(part, logits);
    if (call->needed[3]) call->gx[3] = wefti_negated(weft_reshape(wefti_summed(part, classes), lse->shape));
}

/* ---- attention ---- */

void wefti_gradient_attention(wefti_gradient_call *call) {
    if (call->gy[1]) {
        wefti_graph_fail(call->graph, WEFT_E_UNSUPPORTED,
                         "gradients: attention '%s' is not differentiated through its log-sum-exp", call->node->name);
        return;
    }
    weft_tensor *inputs[6] = {G,
                              wefti_primal(call, 0),
                              wefti_primal(call, 1),
                              wefti_primal(call, 2),
                              wefti_result(call, 0),
                              wefti_result(call, 1)};
    weft_tensor *backward = wefti_apply(WEFT_OP_ATTENTION_BACKWARD, &call->node->attrs, inputs, 6, NULL);
    for (int32_t i = 0; i < 3; i++) call->gx[i] = wefti_output(backward, i);
}

/* ---- the application's own ---- */

void wefti_gradient_custom(wefti_gradient_call *call) {
    wefti_node *node = call->node;
    if (!node->attrs.custom.custom->op.backward) {
        wefti_graph_fail(call->graph, WEFT_E_UNSUPPORTED, "gradients: op '%s' of '%s' has no backward function",
                         node->attrs.custom.custom->op.name, node->name);
        return;
    }
    weft_tensor *inputs[WEFT_CUSTOM_MAX_INPUTS + 2 * WEFT_CUSTOM_MAX_OUTPUTS];
    int32_t      count = 0;
    for (int32_t i = 0; i < node->n_inputs; i++) inputs[count++] = wefti_primal(call, i);
    for (int32_t k = 0; k < node->n_outputs; k++) inputs[count++] = wefti_result(call, k);
    for (int32_t k = 0; k < node->n_outputs; k++) inputs[count++] = wefti_incoming(call, k);
    weft_tensor *backward = wefti_apply(WEFT_OP_CUSTOM_BACKWARD, &node->attrs, inputs, count, NULL);
    for (int32_t i = 0; i < node->n_inputs; i++) call->gx[i] = wefti_output(backward, i);
}

/* Losses, of elementwise ops and means. The divisor of a mean is the global count, which MEAN carries; where labels may
 * be ignored it is counted in the graph. */
#include "core/graph/build.h"
#include "weft/loss.h"

static weft_tensor *reduced_loss(weft_tensor *terms, weft_reduction reduction, const char *what) {
    if (!wefti_usable(terms)) return wefti_unusable(terms, what);
    uint32_t all = (1u << terms->shape.rank) - 1;
    switch (reduction) {
    case WEFT_MEAN: return wefti_reduced(WEFT_OP_MEAN, terms, all, false);
    case WEFT_SUM: return wefti_reduced(WEFT_OP_SUM, terms, all, false);
    case WEFT_NONE: return terms;
    default: return wefti_graph_fail(terms->graph, WEFT_E_INVALID, "%s: %d is no reduction", what, (int)reduction);
    }
}

weft_tensor *weft_cross_entropy_with(weft_tensor *logits, weft_tensor *label,
                                     const weft_cross_entropy_options *options) {
    weft_cross_entropy_options defaults = {0}, o = options ? *options : defaults;
    wefti_attrs                attrs = wefti_no_attrs();
    attrs.loss.has_ignored = o.ignore;
    attrs.loss.ignored = o.ignore ? o.ignored : 0;
    attrs.loss.smoothing = o.smoothing;
    weft_tensor *inputs[2] = {logits, label};
    weft_tensor *rows = wefti_apply(WEFT_OP_CROSS_ENTROPY, &attrs, inputs, 2, NULL);
    if (!o.ignore || o.reduction != WEFT_MEAN) return reduced_loss(rows, o.reduction, "cross_entropy");
    if (!wefti_usable(rows)) return rows;
    int64_t most =
        label->dtype == WEFT_I32 ? INT32_MAX : INT64_C(1) << 53; /* f64, in which scalars travel, counts so far */
    if (o.ignored > most || o.ignored < -most - 1)
        return wefti_graph_fail(rows->graph, WEFT_E_INVALID,
                                "cross_entropy: the ignored label %lld is out of range for %s", (long long)o.ignored,
                                weft_dtype_name(label->dtype));
    weft_tensor *counts = weft_cast(weft_ne_scalar(label, (double)o.ignored), rows->dtype);
    weft_tensor *count = reduced_loss(counts, WEFT_SUM, "cross_entropy");
    return weft_div(reduced_loss(rows, WEFT_SUM, "cross_entropy"), weft_maximum_scalar(count, 1));
}

/* Whether x and target have one shape; poisons otherwise. */
static bool same_shape(weft_tensor *x, weft_tensor *target, const char *what, weft_tensor **poison_out) {
    if (!wefti_usable(x) || !wefti_usable(target)) {
        *poison_out = wefti_binary(WEFT_OP_SUB, x, target);
        return false;
    }
    if (weft_shape_equal(x->shape, target->shape)) return true;
    *poison_out = wefti_graph_fail(x->graph, WEFT_E_SHAPE, "%s of %s %s and target %s %s: the shapes must be the same",
                                   what, x->node->name, weft_shape_text(x->shape).text, target->node->name,
                                   weft_shape_text(target->shape).text);
    return false;
}

weft_tensor *weft_mse_with(weft_tensor *x, weft_tensor *target, const weft_loss_options *options) {
    weft_tensor *poison;
    if (!same_shape(x, target, "mse", &poison)) return poison;
    return reduced_loss(weft_square(weft_sub(x, target)), options ? options->reduction : WEFT_MEAN, "mse");
}

weft_tensor *weft_mae_with(weft_tensor *x, weft_tensor *target, const weft_loss_options *options) {
    weft_tensor *poison;
    if (!same_shape(x, target, "mae", &poison)) return poison;
    return reduced_loss(weft_abs(weft_sub(x, target)), options ? options->reduction : WEFT_MEAN, "mae");
}

weft_tensor *weft_huber_with(weft_tensor *x, weft_tensor *target, const weft_loss_options *options) {
    weft_tensor *poison;
    double       delta = options && options->delta != 0 ? options->delta : 1;
    if (!same_shape(x, target, "huber", &poison)) return poison;
    if (!(delta > 0))
        return wefti_graph_fail(x->graph, WEFT_E_INVALID, "huber of '%s': delta must be positive, not %g",
                                x->node->name, delta);
    /* With c = min(d, delta): c*(d - c/2) is both branches at once. */
    weft_tensor *d = weft_abs(weft_sub(x, target)), *c = weft_clamp(d, 0, delta);
    return reduced_loss(weft_mul(c, weft_sub(d, weft_mul_scalar(c, 0.5))), options ? options->reduction : WEFT_MEAN,
                        "huber");
}

weft_tensor *weft_bce_with_logits_with(weft_tensor *x, weft_tensor *target, const weft_loss_options *options) {
    weft_tensor *poison, *terms;
    double       weight = options && options->positive_weight != 0 ? options->positive_weight : 1;
    if (!same_shape(x, target, "bce_with_logits", &poison)) return poison;
    if (!(weight > 0))
        return wefti_graph_fail(x->graph, WEFT_E_INVALID,
                                "bce_with_logits of '%s': the positive weight must be positive, not %g", x->node->name,
                                weight);
    if (weight == 1) { /* softplus(x) - t*x */
        terms = weft_sub(weft_softplus(x), weft_mul(target, x));
    } else { /* (1-t)*x + (1 + (w-1)*t)*softplus(-x) */
        weft_tensor *rest = weft_mul(weft_add_scalar(weft_neg(target), 1), x);
        weft_tensor *scale = weft_add_scalar(weft_mul_scalar(target, weight - 1), 1);
        terms = weft_add(rest, weft_mul(scale, weft_softplus(weft_neg(x))));
    }
    return reduced_loss(terms, options ? options->reduction : WEFT_MEAN, "bce_with_logits");
}

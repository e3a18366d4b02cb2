/* Layers on vectors: linear, embedding, normalisation, softmax, dropout, attention. Each is a few nodes; the only rules
 * that live here are which parameters there are and how they start. */
#include <math.h>

#include "core/graph/build.h"
#include "weft/layers.h"

/* How a parameter starts: as the application says, else as its layer's parameters do. */
static weft_init default_to(weft_init init, weft_init fallback) {
    return init.kind == WEFT_INIT_DEFAULT ? fallback : init;
}

weft_tensor *weft_linear_with(weft_tensor *x, const char *name, const weft_linear_options *options) {
    weft_linear_options defaults = {0}, o = options ? *options : defaults;
    if (!wefti_usable(x)) return wefti_unusable(x, "linear");
    weft_graph *graph = x->graph;
    name = wefti_layer_name(graph, name, "linear");
    if (x->shape.rank < 1)
        return wefti_graph_fail(graph, WEFT_E_SHAPE, "linear '%s' of %s: a scalar has no features", name,
                                x->node->name);
    int64_t      in = x->shape.dim[x->shape.rank - 1];
    double       bound = in > 0 ? 1 / sqrt((double)in) : 0;
    weft_tensor *weight = o.weight ? weft_cast(o.weight, x->dtype) : NULL,
                *bias = o.bias ? weft_cast(o.bias, x->dtype) : NULL;
    if (!weight) {
        if (o.out < 1)
            return wefti_graph_fail(graph, WEFT_E_INVALID, "linear '%s': .out must be at least 1, not %lld", name,
                                    (long long)o.out);
        weight = wefti_layer_parameter(x, name, "weight", weft_shape(o.out, in),
                                       default_to(o.weight_init, weft_init_uniform(-bound, bound)), false);
        if (!bias && !o.no_bias)
            bias = wefti_layer_parameter(x, name, "bias", weft_shape(o.out),
                                         default_to(o.bias_init, weft_init_uniform(-bound, bound)), true);
    } else if (wefti_usable(weight) && (weight->shape.rank != 2 || weight->shape.dim[1] != in)) {
        return wefti_graph_fail(graph, WEFT_E_SHAPE, "linear '%s' of %s %s: the weight must be [out, %lld], not %s",
                                name, x->node->name, weft_shape_text(x->shape).text, (long long)in,
                                weft_shape_text(weight->shape).text);
    }
    if (!wefti_usable(weight)) return wefti_unusable(weight, "linear");
    weft_shape result = x->shape, flat = weft_shape(1, in);
    result.dim[result.rank - 1] = weight->shape.dim[0];
    for (int32_t axis = 0; axis + 1 < x->shape.rank; axis++)
        if (!wefti_mul_i64(flat.dim[0], x->shape.dim[axis], &flat.dim[0]))
            return wefti_graph_fail(graph, WEFT_E_OVERFLOW, "linear '%s' of %s %s: too many rows", name, x->node->name,
                                    weft_shape_text(x->shape).text);
    /* The product on two axes, so that its gradients are plain products; the bias on all, beside what is elementwise.
     */
    weft_matmul_options product = {.transpose_b = true, .name = name};
    weft_tensor        *y = wefti_reshaped(weft_matmul_with(wefti_reshaped(x, flat), weight, &product), result);
    return bias ? weft_add(y, bias) : y;
}

weft_tensor *weft_embedding_with(weft_tensor *index, const char *name, const weft_embedding_options *options) {
    weft_embedding_options defaults = {0}, o = options ? *options : defaults;
    if (!wefti_usable(index)) return wefti_unusable(index, "embedding");
    weft_graph *graph = index->graph;
    name = wefti_layer_name(graph, name, "embedding");
    if (!o.weight) {
        if (o.count < 1 || o.size < 1)
            return wefti_graph_fail(graph, WEFT_E_INVALID,
                                    "embedding '%s': .count and .size must be at least 1, not %lld and %lld", name,
                                    (long long)o.count, (long long)o.size);
        weft_parameter_options parameter = {.dtype = o.dtype == WEFT_F32 ? wefti_layer_dtype(graph, o.dtype) : o.dtype, .init = default_to(o.init, weft_init_normal(0, 1))};
        o.weight = weft_parameter_with(graph, wefti_graph_join(graph, name, "weight"), weft_shape(o.count, o.size),
                                       &parameter);
    }
    weft_tensor *inputs[2] = {o.weight, index};
    wefti_attrs  attrs = wefti_no_attrs();
    weft_tensor *rows = wefti_apply(WEFT_OP_GATHER, &attrs, inputs, 2, name);
    return graph->bf16_parameters ? weft_cast(rows, wefti_wide(rows->dtype)) : rows;
}

/* ---- normalisation over rows ---- */

static weft_tensor *normalized(weft_tensor *x, const char *name, int32_t axes, double eps, bool rms) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.rows.axes = axes;
    attrs.rows.rms = rms;
    attrs.rows.eps = eps == 0 ? 1e-5 : eps;
    return wefti_apply(WEFT_OP_NORMALIZE, &attrs, &x, 1, name);
}

static weft_tensor *row_norm(weft_tensor *x, const char *name, const weft_norm_layer_options *options, bool rms) {
    weft_norm_layer_options defaults = {0}, o = options ? *options : defaults;
    const char             *kind = rms ? "rms_norm" : "layer_norm";
    if (!wefti_usable(x)) return wefti_unusable(x, kind);
    name = wefti_layer_name(x->graph, name, kind);
    int32_t      axes = o.axes == 0 ? 1 : o.axes;
    weft_tensor *y = normalized(x, name, axes, o.eps, rms);
    if (o.no_affine || wefti_poisoned(y)) return y;
    weft_shape shape = weft_shape_of(axes, x->shape.dim + x->shape.rank - axes);
    y = weft_mul(y, wefti_layer_parameter(x, name, "weight", shape, weft_init_ones(), true));
    if (rms || o.no_bias) return y;
    return weft_add(y, wefti_layer_parameter(x, name, "bias", shape, weft_init_zeros(), true));
}

weft_tensor *weft_layer_norm_with(weft_tensor *x, const char *name, const weft_norm_layer_options *options) {
    return row_norm(x, name, options, false);
}

weft_tensor *weft_rms_norm_with(weft_tensor *x, const char *name, const weft_norm_layer_options *options) {
    return row_norm(x, name, options, true);
}

weft_tensor *weft_group_norm_with(weft_tensor *x, const char *name, const weft_norm_layer_options *options) {
    weft_norm_layer_options defaults = {0}, o = options ? *options : defaults;
    if (!wefti_usable(x)) return wefti_unusable(x, "group_norm");
    weft_graph *graph = x->graph;
    name = wefti_layer_name(graph, name, "group_norm");
    weft_shape shape = x->shape;
    if (shape.rank < 2 || o.groups < 1 || shape.dim[1] % o.groups)
        return wefti_graph_fail(graph, WEFT_E_SHAPE,
                                "group_norm '%s' of %s %s: needs [N, C, ...] with C a multiple of .groups = %d", name,
                                x->node->name, weft_shape_text(shape).text, o.groups);
    weft_shape rest = shape;
    rest.dim[0] = 1;
    weft_shape   grouped = weft_shape(shape.dim[0], o.groups, weft_shape_elements(rest) / o.groups);
    weft_tensor *y = wefti_reshaped(normalized(wefti_reshaped(x, grouped), name, 1, o.eps, false), shape);
    if (o.no_affine) return y;
    weft_shape channels = weft_shape_of(shape.rank - 1, shape.dim + 1);
    for (int32_t axis = 1; axis < channels.rank; axis++) channels.dim[axis] = 1;
    weft_shape flat = weft_shape(shape.dim[1]);
    y = weft_mul(y, wefti_reshaped(wefti_layer_parameter(x, name, "weight", flat, weft_init_ones(), true), channels));
    if (o.no_bias) return y;
    return weft_add(y, wefti_reshaped(wefti_layer_parameter(x, name, "bias", flat, weft_init_zeros(), true), channels));
}

/* ---- softmax, dropout ---- */

static weft_tensor *along(weft_op op, weft_tensor *x, int32_t axis) {
    int32_t resolved;
    if (!wefti_usable(x)) return wefti_unusable(x, wefti_ops[op].name);
    if (!wefti_axis(x, axis, wefti_ops[op].name, &resolved)) return &x->graph->poison;
    if (resolved == x->shape.rank - 1) return wefti_unary(op, x);
    return weft_transpose(wefti_unary(op, weft_transpose(x, resolved, -1)), resolved, -1);
}

weft_tensor *weft_softmax(weft_tensor *x, int32_t axis) { return along(WEFT_OP_SOFTMAX, x, axis); }
weft_tensor *weft_log_softmax(weft_tensor *x, int32_t axis) { return along(WEFT_OP_LOG_SOFTMAX, x, axis); }

weft_tensor *weft_dropout(weft_tensor *x, double p) {
    if (!wefti_usable(x)) return wefti_unusable(x, "dropout");
    if (p == 0) return x;
    wefti_attrs attrs = wefti_no_attrs();
    attrs.dropout.p = p;
    attrs.dropout.key = wefti_graph_key(x->graph, "dropout", false);
    weft_tensor *inputs[2] = {x, wefti_graph_step(x->graph)};
    return weft_training(wefti_apply(WEFT_OP_DROPOUT, &attrs, inputs, 2, NULL), x);
}

/* ---- attention ---- */

weft_tensor *weft_attention_with(weft_tensor *q, weft_tensor *k, weft_tensor *v,
                                 const weft_attention_options *options) {
    weft_attention_options defaults = {0}, o = options ? *options : defaults;
    if (!wefti_usable(q)) return wefti_unusable(q, "attention");
    int64_t size = q->shape.rank > 0 ? q->shape.dim[q->shape.rank - 1] : 0;
    wefti_attrs attrs = wefti_no_attrs();
    attrs.attention.causal = o.causal;
    attrs.attention.scale = o.scale != 0 ? o.scale : size > 0 ? 1 / sqrt((double)size) : 1;
    weft_tensor *inputs[3] = {q, k, v};
    return wefti_apply(WEFT_OP_ATTENTION, &attrs, inputs, 3, o.name);
}

weft_tensor *weft_rotary_with(weft_tensor *x, const weft_rotary_options *options) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.rotary.base = options && options->base != 0 ? options->base : 10000;
    attrs.rotary.offset = options ? options->offset : 0;
    return wefti_unary_with(WEFT_OP_ROTARY, &attrs, x);
}

/* Heads [first, first + count) of qkv [B, T, heads, D], as [B, count, T, D]. */
static weft_tensor *heads(weft_tensor *qkv, int64_t first, int64_t count) {
    return weft_permute(weft_slice(qkv, 2, first, first + count), weft_axes(0, 2, 1, 3));
}

weft_tensor *weft_self_attention_with(weft_tensor *x, const char *name, const weft_self_attention_options *options) {
    weft_self_attention_options defaults = {0}, o = options ? *options : defaults;
    if (!wefti_usable(x)) return wefti_unusable(x, "self_attention");
    weft_graph *graph = x->graph;
    name = wefti_layer_name(graph, name, "self_attention");
    if (o.kv_heads == 0) o.kv_heads = o.heads;
    if (x->shape.rank != 3 || o.heads < 1 || x->shape.dim[2] % o.heads || o.kv_heads < 1 || o.heads % o.kv_heads)
        return wefti_graph_fail(graph, WEFT_E_SHAPE,
                                "self_attention '%s' of %s %s: needs [B, T, K] with K a multiple of .heads = %d, and "
                                "these of .kv_heads = %d",
                                name, x->node->name, weft_shape_text(x->shape).text, o.heads, o.kv_heads);
    int64_t b = x->shape.dim[0], t = x->shape.dim[1], width = x->shape.dim[2], d = width / o.heads,
            all = o.heads + 2 * o.kv_heads;
    weft_tensor *qkv =
        weft_linear_with(x, wefti_graph_join(graph, name, "qkv"),
                         &(weft_linear_options){.out = all * d, .no_bias = o.no_bias, .weight_init = o.init});
    qkv = wefti_reshaped(qkv, weft_shape(b, t, all, d));
    weft_tensor *q = heads(qkv, 0, o.heads), *k = heads(qkv, o.heads, o.kv_heads),
                *v = heads(qkv, o.heads + o.kv_heads, o.kv_heads);
    if (o.rotary) {
        weft_rotary_options rotary = {.base = o.rotary_base};
        q = weft_rotary_with(q, &rotary);
        k = weft_rotary_with(k, &rotary);
    }
    weft_tensor *y = weft_attention_with(q, k, v, &(weft_attention_options){.causal = o.causal, .name = name});
    y = wefti_reshaped(weft_permute(y, weft_axes(0, 2, 1, 3)), weft_shape(b, t, width));
    return weft_linear_with(y, wefti_graph_join(graph, name, "out"),
                            &(weft_linear_options){.out = width, .no_bias = o.no_bias, .weight_init = o.out_init});
}

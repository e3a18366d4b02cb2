/* Layers on images: convolution, pooling, batch norm. */
#include <math.h>

#include "core/graph/build.h"
#include "weft/layers.h"

/* What options say of one axis: the value for this axis, else the one for both, else a default. */
static int32_t of_axis(const int32_t own[2], int32_t both, int32_t axis, int32_t fallback) {
    if (own[axis] != 0) return own[axis];
    return both != 0 ? both : fallback;
}

static void pads_of(const int32_t own[4], int32_t both, int32_t pad_out[4]) {
    bool any = own[0] || own[1] || own[2] || own[3];
    for (int32_t i = 0; i < 4; i++) pad_out[i] = any ? own[i] : both;
}

/* Padding along one axis for a result of ceil(size/stride). */
static void same_pads(int64_t size, int64_t window, int64_t stride, int64_t dilation, int32_t *low_out,
                      int32_t *high_out) {
    int64_t result = (size + stride - 1) / stride, total = (result - 1) * stride + dilation * (window - 1) + 1 - size;
    if (total < 0) total = 0;
    *low_out = (int32_t)(total / 2);
    *high_out = (int32_t)(total - total / 2);
}

static bool conv_attrs(weft_tensor *x, const char *name, const weft_conv2d_options *o, const int64_t kernel[2],
                       wefti_attrs *attrs) {
    for (int32_t axis = 0; axis < 2; axis++) {
        attrs->conv.stride[axis] = of_axis(o->stride_of, o->stride, axis, 1);
        attrs->conv.dilation[axis] = of_axis(o->dilation_of, o->dilation, axis, 1);
    }
    attrs->conv.groups = o->groups ? o->groups : 1;
    pads_of(o->pad_of, o->pad, attrs->conv.pad);
    if (!o->same) return true;
    if (attrs->conv.stride[0] < 1 || attrs->conv.stride[1] < 1 || attrs->conv.dilation[0] < 1 ||
        attrs->conv.dilation[1] < 1 || attrs->conv.pad[0] || attrs->conv.pad[1] || attrs->conv.pad[2] ||
        attrs->conv.pad[3]) {
        wefti_graph_fail(x->graph, WEFT_E_INVALID,
                         "conv2d '%s': .same chooses the padding itself, and needs strides and dilations of at least 1",
                         name);
        return false;
    }
    for (int32_t axis = 0; axis < 2; axis++)
        same_pads(x->shape.dim[2 + axis], kernel[axis], attrs->conv.stride[axis], attrs->conv.dilation[axis],
                  &attrs->conv.pad[2 * axis], &attrs->conv.pad[2 * axis + 1]);
    return true;
}

/* [C] as [C, 1, ...]: one number a channel, for x [N, C, ...]. */
static weft_tensor *by_channel(weft_tensor *values, int32_t rank) {
    if (!wefti_usable(values)) return values;
    weft_shape shape = weft_shape_scalar();
    shape.rank = rank - 1;
    for (int32_t axis = 0; axis < shape.rank; axis++)
        shape.dim[axis] = axis == 0 ? weft_shape_elements(values->shape) : 1;
    return wefti_reshaped(values, shape);
}

weft_tensor *weft_conv2d_with(weft_tensor *x, const char *name, const weft_conv2d_options *options) {
    weft_conv2d_options defaults = {0}, o = options ? *options : defaults;
    if (!wefti_usable(x)) return wefti_unusable(x, "conv2d");
    weft_graph *graph = x->graph;
    name = wefti_layer_name(graph, name, "conv2d");
    if (x->shape.rank != 4)
        return wefti_graph_fail(graph, WEFT_E_SHAPE, "conv2d '%s' of %s %s: the image must be [N, C, H, W]", name,
                                x->node->name, weft_shape_text(x->shape).text);
    int64_t      kernel[2] = {of_axis(o.kernel_of, o.kernel, 0, 0), of_axis(o.kernel_of, o.kernel, 1, 0)};
    weft_tensor *weight = o.weight ? weft_cast(o.weight, x->dtype) : NULL,
                *bias = o.bias ? weft_cast(o.bias, x->dtype) : NULL;
    if (wefti_usable(weight) && weight->shape.rank == 4) {
        kernel[0] = weight->shape.dim[2];
        kernel[1] = weight->shape.dim[3];
    }
    if (!weight && (o.filters < 1 || kernel[0] < 1 || kernel[1] < 1))
        return wefti_graph_fail(graph, WEFT_E_INVALID,
                                "conv2d '%s': .filters and .kernel must be at least 1, not %d and %lld x %lld", name,
                                o.filters, (long long)kernel[0], (long long)kernel[1]);
    wefti_attrs attrs = wefti_no_attrs();
    if (!conv_attrs(x, name, &o, kernel, &attrs)) return &graph->poison;
    if (!weight) {
        int32_t groups = attrs.conv.groups;
        if (groups < 1 || x->shape.dim[1] % groups || o.filters % groups)
            return wefti_graph_fail(
                graph, WEFT_E_SHAPE, "conv2d '%s' of %s %s: %lld channels and %d filters do not divide into %d groups",
                name, x->node->name, weft_shape_text(x->shape).text, (long long)x->shape.dim[1], o.filters, groups);
        int64_t   channels = x->shape.dim[1] / groups;
        double    fan = (double)channels * (double)kernel[0] * (double)kernel[1], bound = fan > 0 ? 1 / sqrt(fan) : 0;
        weft_init uniform = weft_init_uniform(-bound, bound);
        weight = wefti_layer_parameter(x, name, "weight", weft_shape(o.filters, channels, kernel[0], kernel[1]),
                                       o.weight_init.kind ? o.weight_init : uniform, false);
        if (!bias && !o.no_bias)
            bias = wefti_layer_parameter(x, name, "bias", weft_shape(o.filters),
                                         o.bias_init.kind ? o.bias_init : uniform, true);
    }
    weft_tensor *inputs[2] = {x, weight};
    weft_tensor *y = wefti_apply(WEFT_OP_CONV2D, &attrs, inputs, 2, name);
    return bias ? weft_add(y, by_channel(bias, 4)) : y;
}

/* ---- pooling ---- */

static weft_tensor *pool(weft_op op, weft_tensor *x, const weft_pool2d_options *options) {
    weft_pool2d_options defaults = {0}, o = options ? *options : defaults;
    wefti_attrs         attrs = wefti_no_attrs();
    for (int32_t axis = 0; axis < 2; axis++) {
        attrs.pool.window[axis] = of_axis(o.window_of, o.window, axis, 0);
        attrs.pool.stride[axis] = of_axis(o.stride_of, o.stride, axis, attrs.pool.window[axis]);
    }
    pads_of(o.pad_of, o.pad, attrs.pool.pad);
    attrs.pool.exclude_pad = op == WEFT_OP_AVG_POOL2D && o.exclude_pad;
    return wefti_unary_with(op, &attrs, x);
}

/* Whether x is the same all over each plane of an image: [C, 1, 1] or smaller. */
static bool constant_on_planes(const weft_tensor *x) {
    for (int32_t back = 1; back <= 2 && back <= x->shape.rank; back++)
        if (x->shape.dim[x->shape.rank - back] != 1) return false;
    return true;
}

/* The maximum of relu(x + bias) is relu(the maximum of x, + bias), also when rounded, for both never decrease. Pooled
 * first, they work on a fraction of the elements, forward and backward. */
static weft_tensor *max_pool(weft_tensor *x, const weft_pool2d_options *options) {
    if (!wefti_usable(x) || x->shape.rank != 4) return pool(WEFT_OP_MAX_POOL2D, x, options);
    wefti_node *node = x->node;
    if (node->op == WEFT_OP_RELU) return weft_relu(max_pool(node->inputs[0], options));
    if (node->op == WEFT_OP_ADD && node->inputs[0]->node->op == WEFT_OP_CONV2D && constant_on_planes(node->inputs[1]))
        return weft_add(max_pool(node->inputs[0], options), node->inputs[1]);
    return pool(WEFT_OP_MAX_POOL2D, x, options);
}

weft_tensor *weft_max_pool2d_with(weft_tensor *x, const weft_pool2d_options *options) {
    return max_pool(x, options);
}
weft_tensor *weft_avg_pool2d_with(weft_tensor *x, const weft_pool2d_options *options) {
    return pool(WEFT_OP_AVG_POOL2D, x, options);
}

static weft_tensor *global_pool(weft_op op, weft_tensor *x, const char *what) {
    if (!wefti_usable(x)) return wefti_unusable(x, what);
    if (x->shape.rank != 4)
        return wefti_graph_fail(x->graph, WEFT_E_SHAPE, "%s of %s %s: the image must be [N, C, H, W]", what,
                                x->node->name, weft_shape_text(x->shape).text);
    return wefti_reduced(op, x, 1u << 2 | 1u << 3, false);
}

weft_tensor *weft_global_avg_pool2d(weft_tensor *x) { return global_pool(WEFT_OP_MEAN, x, "global_avg_pool2d"); }
weft_tensor *weft_global_max_pool2d(weft_tensor *x) { return global_pool(WEFT_OP_MAX, x, "global_max_pool2d"); }

/* ---- batch norm ---- */

/* Keeps `running` near the batch's statistic, with `momentum` for the new. In the statistic's shape, so that all of it can be fused. */
static void track(weft_tensor *running, weft_tensor *statistic, double momentum) {
    if (!wefti_usable(running) || !wefti_usable(statistic)) return;
    weft_tensor *old = weft_mul_scalar(wefti_reshaped(running, statistic->shape), 1 - momentum);
    weft_assign(running, wefti_reshaped(weft_add(old, weft_mul_scalar(statistic, momentum)), running->shape));
}

weft_tensor *weft_batch_norm_with(weft_tensor *x, const char *name, const weft_batch_norm_options *options) {
    weft_batch_norm_options defaults = {0}, o = options ? *options : defaults;
    if (!wefti_usable(x)) return wefti_unusable(x, "batch_norm");
    weft_graph *graph = x->graph;
    name = wefti_layer_name(graph, name, "batch_norm");
    int32_t rank = x->shape.rank;
    if (rank < 2)
        return wefti_graph_fail(graph, WEFT_E_SHAPE, "batch_norm '%s' of %s %s: needs [N, C, ...]", name, x->node->name,
                                weft_shape_text(x->shape).text);
    if (!weft_dtype_is_float(x->dtype))
        return wefti_graph_fail(graph, WEFT_E_DTYPE, "batch_norm '%s' of %s: needs a floating input, not %s", name,
                                x->node->name, weft_dtype_name(x->dtype));
    uint32_t   others = ((1u << rank) - 1) & ~2u;
    weft_dtype dtype = wefti_wide(x->dtype);
    double     momentum = o.momentum == 0 ? 0.1 : o.momentum;
    weft_shape channels = weft_shape(x->shape.dim[1]);

    weft_tensor *wide = weft_cast(x, dtype), *running[2], *statistic[2];
    weft_state_options state[2] = {{.dtype = dtype}, {.dtype = dtype, .init = weft_init_ones()}};
    running[0] = weft_state_with(graph, wefti_graph_join(graph, name, "running_mean"), channels, &state[0]);
    running[1] = weft_state_with(graph, wefti_graph_join(graph, name, "running_variance"), channels, &state[1]);
    /* The variance does not depend on what it is taken around, here a number that happens to be the mean: so no gradient goes to the mean
     * from there, which would be a sum over the whole input that is known to be zero. The term behind is zero, too, and its gradient's
     * gradient is not. */
    statistic[0] = wefti_reduced(WEFT_OP_MEAN, wide, others, true);
    weft_tensor *around = weft_detach(statistic[0]);
    weft_tensor *spread = wefti_reduced(WEFT_OP_MEAN, weft_square(weft_sub(wide, around)), others, true);
    statistic[1] = weft_sub(spread, weft_square(weft_sub(statistic[0], around)));
    if (!wefti_usable(statistic[1])) return &graph->poison;
    weft_tensor *count = wefti_extent(wide, others, dtype);
    weft_tensor *unbiased = weft_mul(statistic[1], weft_div(count, weft_maximum_scalar(weft_add_scalar(count, -1), 1)));
    track(running[0], statistic[0], momentum);
    track(running[1], unbiased, momentum);

    weft_tensor *mean = weft_training(statistic[0], wefti_reshaped(running[0], statistic[0]->shape));
    weft_tensor *variance = weft_training(statistic[1], wefti_reshaped(running[1], statistic[1]->shape));
    weft_tensor *scale = weft_rsqrt(weft_add_scalar(variance, o.eps == 0 ? 1e-5 : o.eps));
    weft_tensor *shift = NULL;
    if (!o.no_affine) {
        scale = weft_mul(
            scale, by_channel(wefti_layer_parameter(wide, name, "weight", channels, weft_init_ones(), true), rank));
        shift = by_channel(wefti_layer_parameter(wide, name, "bias", channels, weft_init_zeros(), true), rank);
    }
    weft_tensor *y = weft_mul(weft_sub(wide, mean), scale);
    if (shift) y = weft_add(y, shift);
    y = weft_cast(y, x->dtype);
    return wefti_usable(y) ? weft_named(y, name) : y;
}

/* Shape rules of matrix products, convolutions and pooling. */
#include "core/graph/internal.h"

weft_status wefti_shape_matmul(wefti_infer_call *call) {
    weft_shape a = call->inputs[0]->shape, b = call->inputs[1]->shape, shape;
    WEFTI_TRY(wefti_floating(call, 0));
    WEFTI_TRY(wefti_one_dtype(call, 0, 1));
    if (a.rank < 2 || b.rank < 2)
        return wefti_misfit(call, WEFT_E_SHAPE, "both must have at least 2 dimensions: use weft_unsqueeze for vectors");
    bool    ta = call->attrs->matmul.trans_a, tb = call->attrs->matmul.trans_b;
    int64_t m = a.dim[a.rank - (ta ? 1 : 2)], ka = a.dim[a.rank - (ta ? 2 : 1)];
    int64_t n = b.dim[b.rank - (tb ? 2 : 1)], kb = b.dim[b.rank - (tb ? 1 : 2)];
    if (ka != kb)
        return wefti_misfit(call, WEFT_E_SHAPE, "inner sizes %lld and %lld differ (of a%s x b%s)", (long long)ka,
                            (long long)kb, ta ? " transposed" : "", tb ? " transposed" : "");
    a.dim[a.rank - 2] = a.dim[a.rank - 1] = b.dim[b.rank - 2] = b.dim[b.rank - 1] = 1;
    if (!wefti_broadcast(a, b, &shape))
        return wefti_misfit(call, WEFT_E_SHAPE, "leading axes do not broadcast: sizes must agree or be 1");
    shape.dim[shape.rank - 2] = m;
    shape.dim[shape.rank - 1] = n;
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, shape);
    return WEFT_OK;
}

/* Rows x [R, in], and R*repeat of an index, one for each row of the result. */
static weft_status expert_rows(const wefti_infer_call *call) {
    weft_shape x = call->inputs[0]->shape, index = call->inputs[2]->shape;
    int64_t    repeat = call->attrs->expert.repeat, rows;
    WEFTI_TRY(wefti_floating(call, 0));
    WEFTI_TRY(wefti_one_dtype(call, 0, 1));
    WEFTI_TRY(wefti_index(call, 2));
    if (repeat < 1 || x.rank != 2 || index.rank != 1 || !wefti_mul_i64(x.dim[0], repeat, &rows) || rows != index.dim[0])
        return wefti_misfit(call, WEFT_E_SHAPE, "x must be [rows, in] and the index [rows * %lld], not %s and %s", (long long)repeat,
                            weft_shape_text(x).text, weft_shape_text(index).text);
    return WEFT_OK;
}

weft_status wefti_shape_expert_matmul(wefti_infer_call *call) {
    WEFTI_TRY(expert_rows(call));
    weft_shape w = call->inputs[1]->shape;
    bool       trans = call->attrs->expert.trans;
    if (w.rank != 3 || w.dim[trans ? 2 : 1] != call->inputs[0]->shape.dim[1])
        return wefti_misfit(call, WEFT_E_SHAPE, "the weights must be %s with as many inputs as the rows have, %lld", trans ? "[E, out, in]" : "[E, in, out]",
                            (long long)call->inputs[0]->shape.dim[1]);
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, weft_shape(call->inputs[2]->shape.dim[0], w.dim[trans ? 1 : 2]));
    return WEFT_OK;
}

weft_status wefti_shape_expert_matmul_backward_weight(wefti_infer_call *call) {
    WEFTI_TRY(expert_rows(call));
    weft_shape g = call->inputs[1]->shape;
    int64_t    in = call->inputs[0]->shape.dim[1], experts = call->attrs->expert.experts;
    if (experts < 1) return wefti_misfit(call, WEFT_E_INVALID, "there must be at least one expert, not %lld", (long long)experts);
    if (g.rank != 2 || g.dim[0] != call->inputs[2]->shape.dim[0])
        return wefti_misfit(call, WEFT_E_SHAPE, "the gradient must have a row for each of the index's %lld, and have two axes",
                            (long long)call->inputs[2]->shape.dim[0]);
    bool trans = call->attrs->expert.trans;
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, weft_shape(experts, trans ? g.dim[1] : in, trans ? in : g.dim[1]));
    return WEFT_OK;
}

int64_t wefti_window_size(int64_t input, int64_t window, int64_t stride, int64_t pad, int64_t dilation) {
    int64_t span, room;
    if (!wefti_mul_i64(dilation, window - 1, &span) || !wefti_add_i64(input, pad, &room) || room <= span) return 0;
    return (room - span - 1) / stride + 1;
}

static weft_status conv_attrs_fit(const wefti_infer_call *call) {
    const int32_t *stride = call->attrs->conv.stride, *pad = call->attrs->conv.pad,
                  *dilation = call->attrs->conv.dilation;
    if (stride[0] < 1 || stride[1] < 1)
        return wefti_misfit(call, WEFT_E_INVALID, "the stride must be at least 1, not %d x %d", stride[0], stride[1]);
    if (dilation[0] < 1 || dilation[1] < 1)
        return wefti_misfit(call, WEFT_E_INVALID, "the dilation must be at least 1, not %d x %d", dilation[0],
                            dilation[1]);
    for (int32_t i = 0; i < 4; i++)
        if (pad[i] < 0) return wefti_misfit(call, WEFT_E_INVALID, "the padding must not be negative, got %d", pad[i]);
    if (call->attrs->conv.groups < 1)
        return wefti_misfit(call, WEFT_E_INVALID, "groups must be at least 1, not %d", call->attrs->conv.groups);
    return WEFT_OK;
}

/* The result of convolving x [N,C,H,W] with w [O,C/groups,KH,KW], whichever of the call's inputs these are. */
static weft_status conv_result(const wefti_infer_call *call, weft_shape x, weft_shape w, weft_shape *shape_out) {
    WEFTI_TRY(conv_attrs_fit(call));
    int32_t        groups = call->attrs->conv.groups;
    const int32_t *stride = call->attrs->conv.stride, *pad = call->attrs->conv.pad,
                  *dilation = call->attrs->conv.dilation;
    if (x.rank != 4 || w.rank != 4)
        return wefti_misfit(call, WEFT_E_SHAPE,
                            "the image must be [N, C, H, W] and the weight [O, C/groups, KH, KW], not %s and %s",
                            weft_shape_text(x).text, weft_shape_text(w).text);
    if (x.dim[1] % groups || x.dim[1] / groups != w.dim[1])
        return wefti_misfit(call, WEFT_E_SHAPE, "%lld channels in %d groups need a weight with %lld channels, not %lld",
                            (long long)x.dim[1], groups, (long long)(x.dim[1] / groups), (long long)w.dim[1]);
    if (w.dim[0] % groups)
        return wefti_misfit(call, WEFT_E_SHAPE, "%lld filters do not divide into %d groups", (long long)w.dim[0],
                            groups);
    if (w.dim[2] < 1 || w.dim[3] < 1) return wefti_misfit(call, WEFT_E_SHAPE, "the kernel must not be empty");
    int64_t oh = wefti_window_size(x.dim[2], w.dim[2], stride[0], (int64_t)pad[0] + pad[1], dilation[0]);
    int64_t ow = wefti_window_size(x.dim[3], w.dim[3], stride[1], (int64_t)pad[2] + pad[3], dilation[1]);
    if (oh < 1 || ow < 1)
        return wefti_misfit(
            call, WEFT_E_SHAPE,
            "a kernel of %lld x %lld with dilation %d x %d is larger than the padded image, %lld x %lld",
            (long long)w.dim[2], (long long)w.dim[3], dilation[0], dilation[1], (long long)(x.dim[2] + pad[0] + pad[1]),
            (long long)(x.dim[3] + pad[2] + pad[3]));
    *shape_out = weft_shape(x.dim[0], w.dim[0], oh, ow);
    return WEFT_OK;
}

weft_status wefti_shape_conv2d(wefti_infer_call *call) {
    weft_shape shape;
    WEFTI_TRY(wefti_floating(call, 0));
    WEFTI_TRY(wefti_one_dtype(call, 0, 1));
    WEFTI_TRY(conv_result(call, call->inputs[0]->shape, call->inputs[1]->shape, &shape));
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, shape);
    return WEFT_OK;
}

weft_status wefti_shape_conv2d_backward_input(wefti_infer_call *call) {
    weft_shape shape;
    WEFTI_TRY(wefti_floating(call, 0));
    WEFTI_TRY(wefti_one_dtype(call, 0, 1));
    WEFTI_TRY(conv_result(call, call->attrs->conv.input, call->inputs[1]->shape, &shape));
    WEFTI_TRY(wefti_shaped(call, 0, shape, "the gradient"));
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, call->attrs->conv.input);
    return WEFT_OK;
}

weft_status wefti_shape_conv2d_backward_weight(wefti_infer_call *call) {
    weft_shape shape;
    WEFTI_TRY(wefti_floating(call, 0));
    WEFTI_TRY(wefti_one_dtype(call, 0, 1));
    WEFTI_TRY(conv_result(call, call->inputs[1]->shape, call->attrs->conv.weight, &shape));
    WEFTI_TRY(wefti_shaped(call, 0, shape, "the gradient"));
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, call->attrs->conv.weight);
    return WEFT_OK;
}

/* ---- pooling ---- */

static weft_status pool_result(const wefti_infer_call *call, weft_shape x, weft_shape *shape_out) {
    const int32_t *window = call->attrs->pool.window, *stride = call->attrs->pool.stride, *pad = call->attrs->pool.pad;
    if (x.rank != 4)
        return wefti_misfit(call, WEFT_E_SHAPE, "the image must be [N, C, H, W], not %s", weft_shape_text(x).text);
    if (window[0] < 1 || window[1] < 1)
        return wefti_misfit(call, WEFT_E_INVALID, "the window must be at least 1, not %d x %d", window[0], window[1]);
    if (stride[0] < 1 || stride[1] < 1)
        return wefti_misfit(call, WEFT_E_INVALID, "the stride must be at least 1, not %d x %d", stride[0], stride[1]);
    for (int32_t i = 0; i < 4; i++)
        if (pad[i] < 0 || pad[i] >= window[i / 2])
            return wefti_misfit(call, WEFT_E_INVALID,
                                "the padding must be at least 0 and less than the window of %d, not %d", window[i / 2],
                                pad[i]);
    int64_t oh = wefti_window_size(x.dim[2], window[0], stride[0], (int64_t)pad[0] + pad[1], 1);
    int64_t ow = wefti_window_size(x.dim[3], window[1], stride[1], (int64_t)pad[2] + pad[3], 1);
    if (oh < 1 || ow < 1 || x.dim[2] < 1 || x.dim[3] < 1)
        return wefti_misfit(call, WEFT_E_SHAPE, "a window of %d x %d is larger than the padded image, %lld x %lld",
                            window[0], window[1], (long long)(x.dim[2] + pad[0] + pad[1]),
                            (long long)(x.dim[3] + pad[2] + pad[3]));
    *shape_out = weft_shape(x.dim[0], x.dim[1], oh, ow);
    return WEFT_OK;
}

/* The index of an element in its plane is an i32. */
static weft_status plane_fits(const wefti_infer_call *call, weft_shape x) {
    int64_t plane;
    if (x.rank == 4 && (!wefti_mul_i64(x.dim[2], x.dim[3], &plane) || plane > INT32_MAX))
        return wefti_misfit(call, WEFT_E_OVERFLOW, "a plane of %lld x %lld has more elements than an i32 can index",
                            (long long)x.dim[2], (long long)x.dim[3]);
    return WEFT_OK;
}

weft_status wefti_shape_max_pool2d(wefti_infer_call *call) {
    weft_shape shape;
    WEFTI_TRY(wefti_floating(call, 0));
    WEFTI_TRY(pool_result(call, call->inputs[0]->shape, &shape));
    WEFTI_TRY(plane_fits(call, call->inputs[0]->shape));
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, shape);
    wefti_type_set(&call->outputs[1], WEFT_I32, shape);
    return WEFT_OK;
}

static weft_status pool_index(const wefti_infer_call *call, weft_shape planes) {
    if (call->inputs[1]->dtype != WEFT_I32)
        return wefti_misfit(call, WEFT_E_DTYPE, "the index must be i32, not %s",
                            weft_dtype_name(call->inputs[1]->dtype));
    weft_shape index = call->inputs[1]->shape;
    if (planes.rank != 4 || index.rank != 4 || planes.dim[0] != index.dim[0] || planes.dim[1] != index.dim[1])
        return wefti_misfit(call, WEFT_E_SHAPE, "the planes %s and the index %s must agree in N and C",
                            weft_shape_text(planes).text, weft_shape_text(index).text);
    return plane_fits(call, planes);
}

weft_status wefti_shape_max_pool2d_backward(wefti_infer_call *call) {
    WEFTI_TRY(wefti_floating(call, 0));
    WEFTI_TRY(wefti_shaped(call, 0, call->inputs[1]->shape, "the gradient"));
    WEFTI_TRY(pool_index(call, call->attrs->pool.input));
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, call->attrs->pool.input);
    return WEFT_OK;
}

weft_status wefti_shape_max_pool2d_take(wefti_infer_call *call) {
    WEFTI_TRY(wefti_floating(call, 0));
    WEFTI_TRY(pool_index(call, call->inputs[0]->shape));
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, call->inputs[1]->shape);
    return WEFT_OK;
}

weft_status wefti_shape_avg_pool2d(wefti_infer_call *call) {
    weft_shape shape;
    WEFTI_TRY(wefti_floating(call, 0));
    WEFTI_TRY(pool_result(call, call->inputs[0]->shape, &shape));
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, shape);
    return WEFT_OK;
}

weft_status wefti_shape_avg_pool2d_backward(wefti_infer_call *call) {
    weft_shape shape;
    WEFTI_TRY(wefti_floating(call, 0));
    WEFTI_TRY(pool_result(call, call->attrs->pool.input, &shape));
    WEFTI_TRY(wefti_shaped(call, 0, shape, "the gradient"));
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, call->attrs->pool.input);
    return WEFT_OK;
}

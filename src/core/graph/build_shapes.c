/* Builders of views, moves and matrix products. They resolve what shape rules do not know: -1, ends counted from the
 * end, axes by name. */
#include <string.h>

#include "core/graph/build.h"

static weft_tensor *view(weft_op op, weft_tensor *x, weft_shape shape) {
    wefti_attrs attrs = wefti_no_attrs();
    for (int32_t axis = shape.rank < 0 ? 0 : shape.rank; axis < WEFT_MAX_RANK; axis++) shape.dim[axis] = 0;
    attrs.view.shape = shape;
    return wefti_unary_with(op, &attrs, x);
}

weft_tensor *wefti_reshaped(weft_tensor *x, weft_shape shape) {
    return wefti_usable(x) && weft_shape_equal(x->shape, shape) ? x : view(WEFT_OP_RESHAPE, x, shape);
}

weft_tensor *weft_reshape(weft_tensor *x, weft_shape shape) {
    if (!wefti_usable(x)) return wefti_unusable(x, "reshape");
    int32_t    open = -1;
    weft_shape known = shape;
    for (int32_t axis = 0; axis < shape.rank; axis++) {
        if (shape.dim[axis] != -1) continue;
        if (open >= 0)
            return wefti_graph_fail(x->graph, WEFT_E_SHAPE, "reshape of %s %s to %s: only one size may be -1",
                                    x->node->name, weft_shape_text(x->shape).text, weft_shape_text(shape).text);
        open = axis;
        known.dim[axis] = 1;
    }
    if (open >= 0) {
        int64_t rest = weft_shape_elements(known), have = weft_shape_elements(x->shape);
        if (rest <= 0 || have % rest)
            return wefti_graph_fail(x->graph, WEFT_E_SHAPE,
                                    "reshape of %s %s to %s: its %lld elements leave nothing for -1", x->node->name,
                                    weft_shape_text(x->shape).text, weft_shape_text(shape).text, (long long)have);
        shape.dim[open] = have / rest;
    }
    return view(WEFT_OP_RESHAPE, x, shape);
}

weft_tensor *weft_flatten(weft_tensor *x) {
    if (!wefti_usable(x)) return wefti_unusable(x, "flatten");
    if (x->shape.rank < 1)
        return wefti_graph_fail(x->graph, WEFT_E_SHAPE, "flatten of %s: a scalar has no first axis to keep",
                                x->node->name);
    weft_shape rest = x->shape;
    rest.dim[0] = 1;
    return wefti_reshaped(x, weft_shape(x->shape.dim[0], weft_shape_elements(rest)));
}

weft_tensor *weft_permute(weft_tensor *x, weft_axes_list axes) {
    if (!wefti_usable(x)) return wefti_unusable(x, "permute");
    if (axes.count != x->shape.rank)
        return wefti_graph_fail(x->graph, WEFT_E_INVALID,
                                "permute of %s %s: %d axes are named, each of the %d must be, once", x->node->name,
                                weft_shape_text(x->shape).text, axes.count, x->shape.rank);
    wefti_attrs attrs = wefti_no_attrs();
    for (int32_t i = 0; i < axes.count; i++)
        attrs.view.axes[i] = axes.axis[i] < 0 ? axes.axis[i] + x->shape.rank : axes.axis[i];
    return wefti_unary_with(WEFT_OP_PERMUTE, &attrs, x);
}

weft_tensor *weft_transpose(weft_tensor *x, int32_t axis_a, int32_t axis_b) {
    if (!wefti_usable(x)) return wefti_unusable(x, "transpose");
    int32_t a, b;
    if (!wefti_axis(x, axis_a, "transpose", &a) || !wefti_axis(x, axis_b, "transpose", &b)) return &x->graph->poison;
    weft_axes_list axes = {.count = x->shape.rank};
    for (int32_t i = 0; i < axes.count; i++) axes.axis[i] = i == a ? b : i == b ? a : i;
    return weft_permute(x, axes);
}

weft_tensor *weft_squeeze(weft_tensor *x, int32_t axis) {
    int32_t gone;
    if (!wefti_usable(x)) return wefti_unusable(x, "squeeze");
    if (!wefti_axis(x, axis, "squeeze", &gone)) return &x->graph->poison;
    weft_shape shape = x->shape;
    if (shape.dim[gone] != 1)
        return wefti_graph_fail(x->graph, WEFT_E_SHAPE, "squeeze of %s %s: axis %d has not size 1", x->node->name,
                                weft_shape_text(shape).text, axis);
    for (int32_t i = gone; i + 1 < shape.rank; i++) shape.dim[i] = shape.dim[i + 1];
    shape.dim[--shape.rank] = 0;
    return view(WEFT_OP_RESHAPE, x, shape);
}

weft_tensor *weft_unsqueeze(weft_tensor *x, int32_t axis) {
    if (!wefti_usable(x)) return wefti_unusable(x, "unsqueeze");
    weft_shape shape = x->shape;
    int32_t    fresh = axis < 0 ? axis + shape.rank + 1 : axis;
    if (fresh < 0 || fresh > shape.rank || shape.rank == WEFT_MAX_RANK)
        return wefti_graph_fail(x->graph, WEFT_E_INVALID, "unsqueeze of %s %s: axis %d is out of range", x->node->name,
                                weft_shape_text(shape).text, axis);
    for (int32_t i = shape.rank++; i > fresh; i--) shape.dim[i] = shape.dim[i - 1];
    shape.dim[fresh] = 1;
    return view(WEFT_OP_RESHAPE, x, shape);
}

weft_tensor *weft_expand(weft_tensor *x, weft_shape shape) {
    if (wefti_usable(x) && weft_shape_equal(x->shape, shape)) return x;
    return view(WEFT_OP_EXPAND, x, shape);
}

/* ---- slices ---- */

weft_tensor *weft_slice(weft_tensor *x, int32_t axis, int64_t begin, int64_t end) {
    return weft_slice_step(x, axis, begin, end, 1);
}

weft_tensor *weft_slice_step(weft_tensor *x, int32_t axis, int64_t begin, int64_t end, int64_t step) {
    int32_t along;
    if (!wefti_usable(x)) return wefti_unusable(x, "slice");
    if (!wefti_axis(x, axis, "slice", &along)) return &x->graph->poison;
    int64_t size = x->shape.dim[along], first = begin < 0 ? begin + size : begin;
    int64_t last = end == INT64_MAX ? size : end < 0 ? end + size : end;
    if (first < 0 || last > size || first > last || step < 1)
        return wefti_graph_fail(
            x->graph, WEFT_E_INVALID, "slice of %s %s: %lld to %lld with step %lld is out of range for axis %d",
            x->node->name, weft_shape_text(x->shape).text, (long long)begin, (long long)end, (long long)step, axis);
    wefti_attrs attrs = wefti_no_attrs();
    for (int32_t i = 0; i < x->shape.rank; i++) {
        attrs.slice.step[i] = 1;
        attrs.slice.size[i] = x->shape.dim[i];
    }
    attrs.slice.start[along] = first;
    attrs.slice.step[along] = step;
    attrs.slice.size[along] = last == first ? 0 : (last - first - 1) / step + 1;
    return wefti_unary_with(WEFT_OP_SLICE, &attrs, x);
}

static void poison_all(weft_tensor *poison, int32_t count, weft_tensor **parts_out) {
    for (int32_t i = 0; i < count; i++) parts_out[i] = poison;
}

void weft_split_sizes(weft_tensor *x, int32_t axis, const int64_t *sizes, int32_t count, weft_tensor **parts_out) {
    int32_t along;
    int64_t total = 0;
    if (!wefti_usable(x)) {
        poison_all(wefti_unusable(x, "split"), count, parts_out);
        return;
    }
    if (!wefti_axis(x, axis, "split", &along)) {
        poison_all(&x->graph->poison, count, parts_out);
        return;
    }
    bool fits = true;
    for (int32_t i = 0; i < count; i++) fits = fits && sizes[i] >= 0 && wefti_add_i64(total, sizes[i], &total);
    if (!fits || total != x->shape.dim[along]) {
        poison_all(wefti_graph_fail(x->graph, WEFT_E_SHAPE,
                                    "split of %s %s: the %d sizes add up to %lld, axis %d has %lld", x->node->name,
                                    weft_shape_text(x->shape).text, count, (long long)total, axis,
                                    (long long)x->shape.dim[along]),
                   count, parts_out);
        return;
    }
    int64_t begin = 0;
    for (int32_t i = 0; i < count; begin += sizes[i++]) parts_out[i] = weft_slice(x, along, begin, begin + sizes[i]);
}

void weft_split(weft_tensor *x, int32_t axis, int32_t count, weft_tensor **parts_out) {
    int32_t along;
    if (!wefti_usable(x)) {
        poison_all(wefti_unusable(x, "split"), count, parts_out);
        return;
    }
    if (!wefti_axis(x, axis, "split", &along)) {
        poison_all(&x->graph->poison, count, parts_out);
        return;
    }
    int64_t size = x->shape.dim[along];
    if (count < 1 || size % count) {
        poison_all(wefti_graph_fail(x->graph, WEFT_E_SHAPE, "split of %s %s: axis %d does not divide into %d parts",
                                    x->node->name, weft_shape_text(x->shape).text, axis, count),
                   count, parts_out);
        return;
    }
    for (int32_t i = 0; i < count; i++)
        parts_out[i] = weft_slice(x, along, i * (size / count), (i + 1) * (size / count));
}

/* ---- moves ---- */

weft_tensor *weft_concat(weft_tensor *const *tensors, int32_t count, int32_t axis) {
    if (!tensors || count < 1) return wefti_graph_fail(NULL, WEFT_E_INVALID, "concat: there are no tensors");
    wefti_attrs attrs = wefti_no_attrs();
    attrs.axis.axis = axis < 0 ? axis + weft_tensor_shape(tensors[0]).rank : axis;
    return wefti_apply(WEFT_OP_CONCAT, &attrs, tensors, count, NULL);
}

weft_tensor *weft_pad_with(weft_tensor *x, const weft_pad_options *options) {
    wefti_attrs attrs = wefti_no_attrs();
    if (options) {
        memcpy(attrs.pad.low, options->low, sizeof attrs.pad.low);
        memcpy(attrs.pad.high, options->high, sizeof attrs.pad.high);
        attrs.pad.value = options->value;
        for (int32_t axis = wefti_usable(x) ? x->shape.rank : WEFT_MAX_RANK; axis < WEFT_MAX_RANK; axis++)
            if (options->low[axis] || options->high[axis])
                return wefti_graph_fail(x->graph, WEFT_E_INVALID, "pad of %s %s: axis %d is out of range",
                                        x->node->name, weft_shape_text(x->shape).text, axis);
    }
    return wefti_unary_with(WEFT_OP_PAD, &attrs, x);
}

weft_tensor *weft_gather(weft_tensor *x, weft_tensor *index, int32_t axis) {
    weft_tensor *inputs[2] = {x, index};
    wefti_attrs  attrs = wefti_no_attrs();
    attrs.axis.axis = axis < 0 ? axis + weft_tensor_shape(x).rank : axis;
    return wefti_apply(WEFT_OP_GATHER, &attrs, inputs, 2, NULL);
}

weft_tensor *weft_scatter_add(weft_tensor *x, weft_tensor *index, weft_tensor *updates, int32_t axis) {
    weft_tensor *inputs[3] = {x, index, updates};
    wefti_attrs  attrs = wefti_no_attrs();
    attrs.axis.axis = axis < 0 ? axis + weft_tensor_shape(x).rank : axis;
    return wefti_apply(WEFT_OP_SCATTER_ADD, &attrs, inputs, 3, NULL);
}

/* ---- products ---- */

/* [..., K] as [rows, K]; false where the rows cannot be counted. */
static bool rows_of(weft_shape shape, weft_shape *flat_out) {
    int64_t rows = 1;
    for (int32_t axis = 0; axis + 1 < shape.rank; axis++)
        if (!wefti_mul_i64(rows, shape.dim[axis], &rows)) return false;
    *flat_out = weft_shape(rows, shape.dim[shape.rank - 1]);
    return true;
}

weft_tensor *weft_matmul_with(weft_tensor *a, weft_tensor *b, const weft_matmul_options *options) {
    weft_matmul_options defaults = {0}, o = options ? *options : defaults;
    wefti_attrs         attrs = wefti_no_attrs();
    attrs.matmul.trans_a = o.transpose_a;
    attrs.matmul.trans_b = o.transpose_b;
    weft_tensor *inputs[2] = {a, b};
    weft_shape   flat;
    /* One matrix for all leading axes: one large product, forward and in the gradients, in place of many small ones. */
    if (wefti_usable(a) && wefti_usable(b) && b->shape.rank == 2 && a->shape.rank > 2 && !o.transpose_a &&
        a->shape.dim[a->shape.rank - 1] == b->shape.dim[o.transpose_b ? 1 : 0] && rows_of(a->shape, &flat)) {
        weft_shape result = a->shape;
        result.dim[result.rank - 1] = b->shape.dim[o.transpose_b ? 0 : 1];
        inputs[0] = wefti_reshaped(a, flat);
        return wefti_reshaped(wefti_apply(WEFT_OP_MATMUL, &attrs, inputs, 2, o.name), result);
    }
    return wefti_apply(WEFT_OP_MATMUL, &attrs, inputs, 2, o.name);
}

/* ---- the application's own ---- */

weft_tensor *weft_custom(weft_graph *graph, const weft_custom_op *op, weft_tensor *const *inputs, int32_t n_inputs,
                         const char *name, const void *options, int32_t options_bytes) {
    if (!op || !op->name || !op->shape || !op->forward)
        return wefti_graph_fail(graph, WEFT_E_INVALID,
                                "custom '%s': an op needs a name, a shape rule and a forward function",
                                name ? name : "");
    if (options_bytes < 0 || (options_bytes > 0 && !options))
        return wefti_graph_fail(graph, WEFT_E_INVALID, "custom '%s': %d bytes of options at %p", name ? name : op->name,
                                options_bytes, options);
    wefti_custom custom = {.op = *op};
    wefti_attrs  attrs = wefti_no_attrs();
    attrs.custom.custom = &custom; /* the graph makes its own copy */
    attrs.custom.options = (void *)(uintptr_t)options;
    attrs.custom.options_bytes = options_bytes;
    return wefti_emit(graph, WEFT_OP_CUSTOM, &attrs, inputs, n_inputs, name);
}

weft_tensor *weft_custom_output(weft_tensor *output0, int32_t index) {
    if (!output0) return wefti_graph_fail(NULL, WEFT_E_INVALID, "custom output: the tensor is NULL");
    return wefti_output(output0, index);
}

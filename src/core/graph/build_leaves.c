/* Builders of leaves: inputs, parameters, states, and tensors that are generated. */
#include <math.h>
#include <stdio.h>

#include "core/graph/build.h"

weft_tensor *weft_input_with(weft_graph *graph, const char *name, weft_dtype dtype, weft_shape shape,
                             const weft_input_options *options) {
    weft_input_options defaults = {0}, o = options ? *options : defaults;
    int32_t            axis = o.batch_axis < 0 ? o.batch_axis + shape.rank : o.batch_axis;
    if (shape.rank == 0) o.replicated = true;
    if (!o.replicated && shape.rank > 0 && (axis < 0 || axis >= shape.rank))
        return wefti_graph_fail(graph, WEFT_E_INVALID, "input '%s': batch axis %d is out of range for %s",
                                name ? name : "", o.batch_axis, weft_shape_text(shape).text);
    wefti_leaf leaf = {.batch_axis = o.replicated ? -1 : axis};
    return wefti_emit_leaf(graph, WEFT_OP_INPUT, NULL, dtype, shape, &leaf, name);
}

/* What `init` means for a tensor of this shape: constants and plain ranges in place of fans. */
static bool resolve_init(weft_graph *graph, const char *what, const char *name, weft_init init, weft_shape shape,
                         wefti_leaf *leaf) {
    double receptive = 1, fan_in, fan_out, deviation;
    for (int32_t axis = 2; axis < shape.rank; axis++) receptive *= (double)shape.dim[axis];
    fan_in = shape.rank > 1 ? (double)shape.dim[1] * receptive : (double)weft_shape_elements(shape);
    fan_out = shape.rank > 1 ? (double)shape.dim[0] * receptive : fan_in;
    leaf->a = init.a;
    leaf->b = init.b;
    switch (init.kind) {
    case WEFT_INIT_DEFAULT:
    case WEFT_INIT_ZEROS: leaf->init = WEFTI_INIT_ZEROS; break;
    case WEFT_INIT_ONES: leaf->init = WEFTI_INIT_ONES; break;
    case WEFT_INIT_VALUE: leaf->init = WEFTI_INIT_VALUE; break;
    case WEFT_INIT_UNIFORM: leaf->init = WEFTI_INIT_UNIFORM; break;
    case WEFT_INIT_NORMAL: leaf->init = WEFTI_INIT_NORMAL; break;
    case WEFT_INIT_KAIMING_UNIFORM:
    case WEFT_INIT_KAIMING_NORMAL:
    case WEFT_INIT_XAVIER_UNIFORM:
    case WEFT_INIT_XAVIER_NORMAL: {
        bool kaiming = init.kind == WEFT_INIT_KAIMING_UNIFORM || init.kind == WEFT_INIT_KAIMING_NORMAL;
        bool uniform = init.kind == WEFT_INIT_KAIMING_UNIFORM || init.kind == WEFT_INIT_XAVIER_UNIFORM;
        double gain = init.a != 0 ? init.a : kaiming ? sqrt(2) : 1, fan = kaiming ? fan_in : (fan_in + fan_out) / 2;
        deviation = fan > 0 ? gain / sqrt(fan) : 0;
        leaf->init = uniform ? WEFTI_INIT_UNIFORM : WEFTI_INIT_NORMAL;
        leaf->a = uniform ? -sqrt(3) * deviation : 0;
        leaf->b = uniform ? sqrt(3) * deviation : deviation;
        break;
    }
    default:
        wefti_graph_fail(graph, WEFT_E_INVALID, "%s '%s': %d is no kind of initialisation", what, name ? name : "",
                         (int)init.kind);
        return false;
    }
    bool range = leaf->init == WEFTI_INIT_UNIFORM;
    if (!(leaf->a == leaf->a) || !(leaf->b == leaf->b) || (range && leaf->b < leaf->a) ||
        (leaf->init == WEFTI_INIT_NORMAL && leaf->b < 0)) {
        wefti_graph_fail(graph, WEFT_E_INVALID, "%s '%s': %s with %g and %g is no initialisation", what,
                         name ? name : "", range ? "uniform" : "normal", leaf->a, leaf->b);
        return false;
    }
    return true;
}

weft_tensor *weft_parameter_with(weft_graph *graph, const char *name, weft_shape shape,
                                 const weft_parameter_options *options) {
    weft_parameter_options defaults = {0}, o = options ? *options : defaults;
    wefti_leaf             leaf = {.frozen = o.frozen, .unregularised = o.unregularised, .batch_axis = -1};
    if (o.dtype != WEFT_F32 && o.dtype != WEFT_F64 && o.dtype != WEFT_BF16)
        return wefti_graph_fail(graph, WEFT_E_DTYPE, "parameter '%s': parameters are f32, f64 or bf16, not %s",
                                name ? name : "", weft_dtype_name(o.dtype));
    if (o.init.kind == WEFT_INIT_DEFAULT && shape.rank >= 2) o.init.kind = WEFT_INIT_XAVIER_UNIFORM;
    if (!resolve_init(graph, "parameter", name, o.init, shape, &leaf)) return graph ? &graph->poison : &wefti_orphan;
    leaf.key = wefti_graph_key(graph, name, true);
    return wefti_emit_leaf(graph, WEFT_OP_PARAMETER, NULL, o.dtype, shape, &leaf, name);
}

weft_tensor *weft_state_with(weft_graph *graph, const char *name, weft_shape shape, const weft_state_options *options) {
    weft_state_options defaults = {0}, o = options ? *options : defaults;
    wefti_leaf         leaf = {.batch_axis = -1};
    if (!resolve_init(graph, "state", name, o.init, shape, &leaf)) return graph ? &graph->poison : &wefti_orphan;
    bool random = leaf.init == WEFTI_INIT_UNIFORM || leaf.init == WEFTI_INIT_NORMAL;
    if (random && !weft_dtype_is_float(o.dtype))
        return wefti_graph_fail(graph, WEFT_E_DTYPE, "state '%s': random values are floating, not %s", name ? name : "",
                                weft_dtype_name(o.dtype));
    leaf.key = wefti_graph_key(graph, name, true);
    return wefti_emit_leaf(graph, WEFT_OP_STATE, NULL, o.dtype, shape, &leaf, name);
}

weft_tensor *weft_assign(weft_tensor *state, weft_tensor *x) {
    weft_tensor *assigned = wefti_binary(WEFT_OP_ASSIGN, state, x);
    wefti_graph_effect(assigned);
    return assigned;
}

weft_tensor *weft_constant(weft_graph *graph, const char *name, weft_array *array) {
    if (!array) return wefti_graph_fail(graph, WEFT_E_INVALID, "constant '%s': the array is NULL", name ? name : "");
    weft_array *dense = NULL;
    if (weft_array_is_contiguous(array)) {
        dense = weft_array_retain(array);
    } else {
        weft_status status = weft_array_copy(array, &dense);
        if (status != WEFT_OK) return wefti_graph_latch(graph, status);
    }
    wefti_leaf   leaf = {.batch_axis = -1, .value = dense};
    weft_tensor *tensor =
        wefti_emit_leaf(graph, WEFT_OP_CONSTANT, NULL, weft_array_dtype(dense), weft_array_shape(dense), &leaf, name);
    weft_array_release(dense); /* the leaf has its own reference */
    return tensor;
}

weft_tensor *weft_full(weft_graph *graph, weft_dtype dtype, weft_shape shape, double value) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.full.value = value;
    return wefti_emit_leaf(graph, WEFT_OP_FULL, &attrs, dtype, shape, NULL, NULL);
}

weft_tensor *weft_scalar(weft_graph *graph, weft_dtype dtype, double value) {
    return weft_full(graph, dtype, weft_shape_scalar(), value);
}

weft_tensor *wefti_scalar_like(weft_tensor *x, double value) {
    return wefti_usable(x) ? weft_scalar(x->graph, x->dtype, value) : wefti_unusable(x, "scalar");
}

weft_tensor *weft_arange(weft_graph *graph, weft_dtype dtype, int64_t count, double start, double step) {
    if (dtype == WEFT_BOOL)
        return wefti_graph_fail(graph, WEFT_E_DTYPE, "arange: bool has no range: compare one of numbers");
    wefti_attrs attrs = wefti_no_attrs();
    attrs.arange.start = start;
    attrs.arange.step = step;
    return wefti_emit_leaf(graph, WEFT_OP_ARANGE, &attrs, dtype, weft_shape(count), NULL, NULL);
}

static weft_tensor *random_leaf(weft_graph *graph, weft_dtype dtype, weft_shape shape, wefti_random_kind kind) {
    if (!weft_dtype_is_float(dtype))
        return wefti_graph_fail(graph, WEFT_E_DTYPE, "random: values are floating (f32, f64, bf16 or f16), not %s",
                                weft_dtype_name(dtype));
    wefti_attrs attrs = wefti_no_attrs();
    attrs.random.key = wefti_graph_key(graph, "random", false);
    attrs.random.kind = (int32_t)kind;
    return wefti_emit_leaf(graph, WEFT_OP_RANDOM, &attrs, dtype, shape, NULL, NULL);
}

weft_tensor *weft_random_uniform(weft_graph *graph, weft_dtype dtype, weft_shape shape) {
    return random_leaf(graph, dtype, shape, WEFTI_RANDOM_UNIFORM);
}

weft_tensor *weft_random_normal(weft_graph *graph, weft_dtype dtype, weft_shape shape) {
    return random_leaf(graph, dtype, shape, WEFTI_RANDOM_NORMAL);
}

weft_tensor *weft_step(weft_graph *graph) { return wefti_graph_step(graph); }

/* ---- what layers use ---- */

weft_tensor *wefti_unusable(weft_tensor *x, const char *what) {
    if (!x) return wefti_graph_fail(NULL, WEFT_E_INVALID, "%s: the input is NULL", what);
    return x->graph ? &x->graph->poison : &wefti_orphan;
}

const char *wefti_layer_name(weft_graph *graph, const char *name, const char *kind) {
    if (name && *name) return name;
    char text[64];
    snprintf(text, sizeof text, "%s_%d", kind, graph->n_nodes);
    return wefti_graph_text(graph, text);
}

weft_tensor *wefti_layer_parameter(weft_tensor *x, const char *name, const char *suffix, weft_shape shape,
                                   weft_init init, bool unregularised) {
    weft_parameter_options options = {.dtype = wefti_layer_dtype(x->graph, x->dtype), .init = init, .unregularised = unregularised};
    return weft_cast(weft_parameter_with(x->graph, wefti_graph_join(x->graph, name, suffix), shape, &options),
                     x->dtype);
}

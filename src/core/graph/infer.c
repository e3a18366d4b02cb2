/* Shape inference: the table of rules, generated from ops.def, and what rules have in common. A rule looks at dtypes,
 * shapes and attributes only; it writes its message through wefti_misfit, which puts op, name and inputs before it. */
#include <stdio.h>
#include <string.h>

#include "core/graph/internal.h"

static wefti_shape_rule *const rules[WEFT_OP_COUNT] = {
#define WEFTI_OP(NAME, name, family, in_min, in_max, outs, shape, gradient, shard, flops) \
    [WEFT_OP_##NAME] = wefti_shape_##shape,
#define ANY WEFTI_ANY
#include "weft/ops.def"
#undef ANY
#undef WEFTI_OP
};

enum { SHOWN_INPUTS = 4 };

weft_status wefti_misfit(const wefti_infer_call *call, weft_status status, const char *format, ...) {
    char   text[WEFTI_MESSAGE_BYTES];
    size_t used = (size_t)snprintf(text, sizeof text, "%s '%.80s'", wefti_ops[call->op].name, call->name);
    for (int32_t i = 0; i < call->n_inputs && i < SHOWN_INPUTS && used < sizeof text; i++) {
        const weft_tensor *x = call->inputs[i];
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%.80s %s %s", i ? ", " : " of ", x->node->name,
                                 weft_dtype_name(x->dtype), weft_shape_text(x->shape).text);
    }
    if (call->n_inputs > SHOWN_INPUTS && used < sizeof text)
        used += (size_t)snprintf(text + used, sizeof text - used, ", and %d more", call->n_inputs - SHOWN_INPUTS);
    char    reason[WEFTI_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    return wefti_fail(status, "%s: %s", text, reason);
}

weft_status wefti_one_dtype(const wefti_infer_call *call, int32_t first, int32_t last) {
    weft_dtype expected = call->inputs[first]->dtype;
    for (int32_t i = first + 1; i <= last; i++)
        if (call->inputs[i]->dtype != expected)
            return wefti_misfit(call, WEFT_E_DTYPE, "%s and %s differ: give both one dtype with weft_cast",
                                weft_dtype_name(expected), weft_dtype_name(call->inputs[i]->dtype));
    return WEFT_OK;
}

weft_status wefti_floating(const wefti_infer_call *call, int32_t i) {
    if (weft_dtype_is_float(call->inputs[i]->dtype)) return WEFT_OK;
    return wefti_misfit(call, WEFT_E_DTYPE, "input %d must be floating (f32, f64, bf16 or f16), not %s: use weft_cast",
                        i, weft_dtype_name(call->inputs[i]->dtype));
}

weft_status wefti_index(const wefti_infer_call *call, int32_t i) {
    weft_dtype dtype = call->inputs[i]->dtype;
    if (dtype == WEFT_I32 || dtype == WEFT_I64) return WEFT_OK;
    return wefti_misfit(call, WEFT_E_DTYPE, "input %d must be i32 or i64, not %s", i, weft_dtype_name(dtype));
}

weft_status wefti_shaped(const wefti_infer_call *call, int32_t i, weft_shape expected, const char *what) {
    if (weft_shape_equal(call->inputs[i]->shape, expected)) return WEFT_OK;
    return wefti_misfit(call, WEFT_E_SHAPE, "%s must be %s, not %s", what, weft_shape_text(expected).text,
                        weft_shape_text(call->inputs[i]->shape).text);
}

bool wefti_broadcast(weft_shape a, weft_shape b, weft_shape *shape_out) {
    weft_shape shape = weft_shape_scalar();
    shape.rank = a.rank > b.rank ? a.rank : b.rank;
    for (int32_t axis = 0; axis < shape.rank; axis++) {
        int32_t in_a = axis - (shape.rank - a.rank), in_b = axis - (shape.rank - b.rank);
        int64_t da = in_a < 0 ? 1 : a.dim[in_a], db = in_b < 0 ? 1 : b.dim[in_b];
        if (da != db && da != 1 && db != 1) return false;
        shape.dim[axis] = da == 1 ? db : da;
    }
    *shape_out = shape;
    return true;
}

weft_status wefti_infer(weft_op op, const wefti_attrs *attrs, weft_tensor *const *inputs, int32_t n_inputs,
                        const char *name, wefti_type *outputs_out, int32_t *n_outputs_out) {
    *n_outputs_out = 0;
    if ((unsigned)op >= WEFT_OP_COUNT) return wefti_fail(WEFT_E_INTERNAL, "%d is no op", (int)op);
    const wefti_op_info *info = &wefti_ops[op];
    wefti_infer_call call = {
        op, name ? name : "", attrs, inputs, n_inputs, outputs_out, info->outputs < 0 ? 1 : info->outputs};
    if (n_inputs < info->inputs_min || (info->inputs_max >= 0 && n_inputs > info->inputs_max))
        return wefti_misfit(&call, WEFT_E_INVALID, "takes %s%d input%s, got %d",
                            info->inputs_max == info->inputs_min ? "" : "at least ", info->inputs_min,
                            info->inputs_min == 1 ? "" : "s", n_inputs);
    WEFTI_TRY(rules[op](&call));
    for (int32_t i = 0; i < call.n_outputs; i++) {
        weft_shape *shape = &outputs_out[i].shape;
        if (shape->rank > WEFT_MAX_RANK)
            return wefti_misfit(&call, WEFT_E_SHAPE, "the result would have %d dimensions, at most %d are possible",
                                shape->rank, WEFT_MAX_RANK);
        for (int32_t axis = shape->rank; axis < WEFT_MAX_RANK; axis++) shape->dim[axis] = 0;
        int64_t elements = weft_shape_elements(*shape);
        if (elements < 0 || elements > INT64_MAX / (int64_t)weft_dtype_bytes(outputs_out[i].dtype))
            return wefti_misfit(&call, WEFT_E_OVERFLOW, "the result %s %s has more bytes than 63 bits can count",
                                weft_dtype_name(outputs_out[i].dtype), weft_shape_text(*shape).text);
    }
    *n_outputs_out = call.n_outputs;
    return WEFT_OK;
}

weft_status wefti_shape_planned(wefti_infer_call *call) {
    return wefti_misfit(call, WEFT_E_INTERNAL, "it is made while planning, and never part of a graph");
}

weft_status wefti_shape_leaf(wefti_infer_call *call) {
    return wefti_misfit(call, WEFT_E_INTERNAL, "a leaf's shape is given, not inferred");
}

/* Shape rules of what plans decide, of effects, of communication, and of the application's own ops. */
#include "core/graph/internal.h"
#include "core/tensor/codec.h"

weft_status wefti_shape_mode(wefti_infer_call *call) {
    WEFTI_TRY(wefti_one_dtype(call, 0, 1));
    WEFTI_TRY(wefti_shaped(call, 1, call->inputs[0]->shape, "what stands in when not training"));
    return wefti_shape_same(call);
}

static weft_status variable(const wefti_infer_call *call, int32_t i) {
    weft_op op = call->inputs[i]->node->op;
    if (op == WEFT_OP_STATE || op == WEFT_OP_PARAMETER) return WEFT_OK;
    return wefti_misfit(call, WEFT_E_INVALID, "input %d must be a state or a parameter, '%s' is %s", i,
                        call->inputs[i]->node->name, wefti_ops[op].name);
}

weft_status wefti_shape_assign(wefti_infer_call *call) {
    WEFTI_TRY(variable(call, 0));
    WEFTI_TRY(wefti_one_dtype(call, 0, 1));
    WEFTI_TRY(wefti_shaped(call, 1, call->inputs[0]->shape, "what is assigned"));
    return wefti_shape_same(call);
}

/* Of a parameter that several ranks update, gradient and states have as much as this one updates, or more. */
static weft_status updated(const wefti_infer_call *call, int32_t i, const char *what) {
    const wefti_update_part *part = &call->attrs->update.part;
    if (part->parts == 0) return wefti_shaped(call, i, call->inputs[0]->shape, what);
    if (weft_shape_elements(call->inputs[i]->shape) >= part->count) return WEFT_OK;
    return wefti_misfit(call, WEFT_E_SHAPE, "%s %s has less than the %lld elements that are updated", what, weft_shape_text(call->inputs[i]->shape).text,
                        (long long)part->count);
}

weft_status wefti_shape_update(wefti_infer_call *call) {
    weft_dtype dtype = wefti_wide(call->inputs[0]->dtype); /* of gradient and states */
    WEFTI_TRY(variable(call, 0));
    if (call->inputs[0]->dtype != dtype && call->inputs[0]->dtype != WEFT_BF16)
        return wefti_misfit(call, WEFT_E_DTYPE, "parameters are f32, f64 or bf16, not %s", weft_dtype_name(call->inputs[0]->dtype));
    if (call->inputs[1]->dtype != dtype)
        return wefti_misfit(call, WEFT_E_DTYPE, "the gradient must be %s, not %s", weft_dtype_name(dtype), weft_dtype_name(call->inputs[1]->dtype));
    WEFTI_TRY(updated(call, 1, "the gradient"));
    if (call->inputs[2]->dtype != WEFT_F64 || call->inputs[2]->shape.rank != 1)
        return wefti_misfit(call, WEFT_E_DTYPE, "input 2 must be the rule's numbers, f64 with one axis");
    for (int32_t i = 3; i < call->n_inputs; i++) {
        WEFTI_TRY(variable(call, i));
        WEFTI_TRY(updated(call, i, "the rule's state"));
        if (call->inputs[i]->dtype != dtype)
            return wefti_misfit(call, WEFT_E_DTYPE, "the rule's state must be %s, not %s", weft_dtype_name(dtype),
                                weft_dtype_name(call->inputs[i]->dtype));
    }
    return wefti_shape_same(call);
}

weft_status wefti_shape_fused(wefti_infer_call *call) {
    const wefti_fused *fused = call->attrs->fused.fused;
    if (!fused || fused->n_inputs != call->n_inputs || fused->n_outputs < 1 || fused->n_outputs > WEFTI_FUSED_MAX ||
        fused->n_instructions < 1 || fused->n_instructions > WEFTI_FUSED_MAX)
        return wefti_misfit(call, WEFT_E_INTERNAL, "the fused program does not fit its call");
    for (int32_t i = 0; i < call->n_inputs; i++) {
        weft_shape joint;
        if (!wefti_broadcast(call->inputs[i]->shape, fused->space, &joint) || !weft_shape_equal(joint, fused->space))
            return wefti_misfit(call, WEFT_E_INTERNAL, "input %d does not broadcast to the fused space %s", i,
                                weft_shape_text(fused->space).text);
    }
    call->n_outputs = fused->n_outputs;
    for (int32_t i = 0; i < fused->n_outputs; i++) {
        const wefti_fused_output *output = &fused->output[i];
        if (output->instruction < 0 || output->instruction >= fused->n_instructions)
            return wefti_misfit(call, WEFT_E_INTERNAL, "output %d is of instruction %d, which does not exist", i,
                                output->instruction);
        weft_shape shape = fused->space;
        for (int32_t axis = 0; output->reduce >= 0 && axis < shape.rank; axis++)
            if (output->axes >> axis & 1) shape.dim[axis] = 1;
        wefti_type_set(&call->outputs[i], fused->instruction[output->instruction].dtype, shape);
    }
    return WEFT_OK;
}

/* ---- communication ---- */

weft_status wefti_shape_all_reduce(wefti_infer_call *call) {
    WEFTI_TRY(wefti_one_dtype(call, 0, call->n_inputs - 1));
    call->n_outputs = call->n_inputs;
    for (int32_t i = 0; i < call->n_inputs; i++)
        wefti_type_set(&call->outputs[i], call->inputs[i]->dtype, call->inputs[i]->shape);
    return WEFT_OK;
}

/* The result is attrs.comm.global, which agrees with the input in all axes but attrs.comm.axis. */
static weft_status exchanged(wefti_infer_call *call) {
    weft_shape x = call->inputs[0]->shape, result = call->attrs->comm.global, expected = result;
    int32_t    axis = call->attrs->comm.axis;
    if (axis < 0 || axis >= x.rank)
        return wefti_misfit(call, WEFT_E_INVALID, "axis %d is out of range for rank %d", axis, x.rank);
    if (result.rank == x.rank) expected.dim[axis] = x.dim[axis];
    if (!weft_shape_equal(x, expected))
        return wefti_misfit(call, WEFT_E_SHAPE, "%s and its result %s must agree in all axes but axis %d",
                            weft_shape_text(x).text, weft_shape_text(result).text, axis);
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, result);
    return WEFT_OK;
}

weft_status wefti_shape_all_gather(wefti_infer_call *call) { return exchanged(call); }

weft_status wefti_shape_reduce_scatter(wefti_infer_call *call) {
    if (call->attrs->comm.each == 0) return exchanged(call);
    wefti_type_set(&call->outputs[0], call->inputs[0]->dtype, weft_shape(call->attrs->comm.each));
    return WEFT_OK;
}

weft_status wefti_shape_exchange_rows(wefti_infer_call *call) {
    weft_shape counts = call->inputs[1]->shape;
    if (call->attrs->comm.axis != 0) return wefti_misfit(call, WEFT_E_INVALID, "rows are of axis 0, not of axis %d", call->attrs->comm.axis);
    WEFTI_TRY(exchanged(call));
    if (call->inputs[1]->dtype != WEFT_I32 || counts.rank != 2 || counts.dim[0] != 2)
        return wefti_misfit(call, WEFT_E_SHAPE, "the counts must be i32 [2, ranks], not %s %s", weft_dtype_name(call->inputs[1]->dtype), weft_shape_text(counts).text);
    return WEFT_OK;
}

weft_status wefti_shape_receive(wefti_infer_call *call) {
    if ((unsigned)call->attrs->comm.dtype >= WEFT_DTYPE_COUNT)
        return wefti_misfit(call, WEFT_E_DTYPE, "%d is no dtype", call->attrs->comm.dtype);
    wefti_type_set(&call->outputs[0], (weft_dtype)call->attrs->comm.dtype, call->attrs->comm.global);
    return WEFT_OK;
}

/* ---- codecs ---- */

/* Bytes of a part in the form that the attributes name; 0 where they make no sense. */
static int64_t part_bytes(const wefti_infer_call *call) {
    const wefti_codec_functions *codec = wefti_codec_of(call->attrs->codec.codec)->functions;
    int64_t                      part = call->attrs->codec.part, kept = call->attrs->codec.kept;
    if (!codec || part < 1 || kept < 0 || kept > part || (codec->grain == 0) != (kept > 0)) return 0;
    return codec->bytes(part, kept);
}

weft_status wefti_shape_encode(wefti_infer_call *call) {
    int64_t elements = weft_shape_elements(call->inputs[0]->shape), part = call->attrs->codec.part, bytes = part_bytes(call);
    int64_t parts = call->attrs->codec.count;
    if (call->inputs[0]->dtype != WEFT_F32) return wefti_misfit(call, WEFT_E_DTYPE, "codecs take f32");
    if (bytes == 0)
        return wefti_misfit(call, WEFT_E_INVALID, "codec %d does not keep %lld of %lld elements", call->attrs->codec.codec,
                            (long long)call->attrs->codec.kept, (long long)part);
    if (parts < 1 || parts > INT64_MAX / bytes || elements / part + (elements % part != 0) > parts || (call->attrs->codec.kept && parts > 1))
        return wefti_misfit(call, WEFT_E_INVALID, "%lld elements do not go into %lld parts of %lld", (long long)elements, (long long)parts,
                            (long long)part);
    wefti_type_set(&call->outputs[0], WEFT_U8, weft_shape(parts, bytes));
    return WEFT_OK;
}

weft_status wefti_shape_decode(wefti_infer_call *call) {
    weft_shape x = call->inputs[0]->shape;
    int64_t    bytes = part_bytes(call), part = call->attrs->codec.part, elements = call->attrs->codec.count;
    if (call->inputs[0]->dtype != WEFT_U8) return wefti_misfit(call, WEFT_E_DTYPE, "what was encoded is u8");
    if (bytes == 0 || x.rank != 2 || x.dim[1] != bytes)
        return wefti_misfit(call, WEFT_E_SHAPE, "parts of %lld elements are rows of %lld bytes", (long long)part, (long long)bytes);
    int64_t parts = call->attrs->codec.sum ? 1 : x.dim[0];
    if (elements < 0 || elements / part + (elements % part != 0) > parts)
        return wefti_misfit(call, WEFT_E_SHAPE, "there are not %lld elements in %lld parts of %lld", (long long)elements, (long long)parts,
                            (long long)part);
    wefti_type_set(&call->outputs[0], WEFT_F32, weft_shape(elements));
    return WEFT_OK;
}

/* ---- the application's own ---- */

weft_status wefti_shape_custom(wefti_infer_call *call) {
    if (!call->attrs->custom.custom) return wefti_misfit(call, WEFT_E_INTERNAL, "there is no custom op");
    const weft_custom_op *op = &call->attrs->custom.custom->op;
    if (call->n_inputs != op->n_inputs)
        return wefti_misfit(call, WEFT_E_INVALID, "op '%s' takes %d inputs, got %d", op->name, op->n_inputs,
                            call->n_inputs);
    if (op->n_inputs > WEFT_CUSTOM_MAX_INPUTS || op->n_outputs < 1 || op->n_outputs > WEFT_CUSTOM_MAX_OUTPUTS ||
        !op->shape)
        return wefti_misfit(call, WEFT_E_INVALID, "op '%s' must have 0 to %d inputs, 1 to %d outputs and a shape rule",
                            op->name, WEFT_CUSTOM_MAX_INPUTS, WEFT_CUSTOM_MAX_OUTPUTS);
    weft_custom_type inputs[WEFT_CUSTOM_MAX_INPUTS], outputs[WEFT_CUSTOM_MAX_OUTPUTS];
    for (int32_t i = 0; i < call->n_inputs; i++)
        inputs[i] = (weft_custom_type){call->inputs[i]->dtype, call->inputs[i]->shape};
    for (int32_t i = 0; i < op->n_outputs; i++) outputs[i] = (weft_custom_type){WEFT_F32, weft_shape_scalar()};
    weft_status status = op->shape(inputs, call->attrs->custom.options, outputs);
    if (status != WEFT_OK)
        return wefti_misfit(call, status, "the shape rule of op '%s' refuses these inputs (%s)", op->name,
                            weft_status_text(status));
    call->n_outputs = op->n_outputs;
    for (int32_t i = 0; i < op->n_outputs; i++) {
        if ((unsigned)outputs[i].dtype >= WEFT_DTYPE_COUNT || weft_shape_elements(outputs[i].shape) < 0)
            return wefti_misfit(call, WEFT_E_SHAPE,
                                "the shape rule of op '%s' gave no valid dtype and shape for output %d", op->name, i);
        wefti_type_set(&call->outputs[i], outputs[i].dtype, outputs[i].shape);
    }
    return WEFT_OK;
}

/* Inputs are the forward op's inputs, outputs, and gradients of the outputs; the results are shaped as the inputs. */
weft_status wefti_shape_custom_backward(wefti_infer_call *call) {
    if (!call->attrs->custom.custom) return wefti_misfit(call, WEFT_E_INTERNAL, "there is no custom op");
    const weft_custom_op *op = &call->attrs->custom.custom->op;
    if (call->n_inputs != op->n_inputs + 2 * op->n_outputs || op->n_inputs < 1)
        return wefti_misfit(call, WEFT_E_INVALID,
                            "op '%s' has %d inputs and %d outputs: its backward takes %d inputs, got %d", op->name,
                            op->n_inputs, op->n_outputs, op->n_inputs + 2 * op->n_outputs, call->n_inputs);
    for (int32_t i = 0; i < op->n_outputs; i++)
        WEFTI_TRY(wefti_shaped(call, op->n_inputs + op->n_outputs + i, call->inputs[op->n_inputs + i]->shape,
                               "an output's gradient"));
    call->n_outputs = op->n_inputs;
    for (int32_t i = 0; i < op->n_inputs; i++)
        wefti_type_set(&call->outputs[i], call->inputs[i]->dtype, call->inputs[i]->shape);
    return WEFT_OK;
}

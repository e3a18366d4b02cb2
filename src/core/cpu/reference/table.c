/* Which plain kernel computes which op, and the check that a call is one that they can take.
 *
 * The check guards memory: after it, no kernel reads or writes outside its operands, whatever a planner handed in. */
#include "core/cpu/reference/reference.h"
#include "core/iface/rule.h"

#define ELEMENTWISE &wefti_reference_elementwise
const wefti_cpu_kernel *const wefti_cpu_reference[WEFT_OP_COUNT] = {
    [WEFT_OP_FULL] = &wefti_reference_fill,
    [WEFT_OP_ARANGE] = &wefti_reference_fill,
    [WEFT_OP_RANDOM] = &wefti_reference_random,
    [WEFT_OP_COPY] = ELEMENTWISE,
    [WEFT_OP_CAST] = ELEMENTWISE,
    [WEFT_OP_DETACH] = ELEMENTWISE,
    [WEFT_OP_NEG] = ELEMENTWISE,
    [WEFT_OP_ABS] = ELEMENTWISE,
    [WEFT_OP_SIGN] = ELEMENTWISE,
    [WEFT_OP_SQUARE] = ELEMENTWISE,
    [WEFT_OP_EXP] = ELEMENTWISE,
    [WEFT_OP_EXPM1] = ELEMENTWISE,
    [WEFT_OP_LOG] = ELEMENTWISE,
    [WEFT_OP_LOG1P] = ELEMENTWISE,
    [WEFT_OP_SQRT] = ELEMENTWISE,
    [WEFT_OP_RSQRT] = ELEMENTWISE,
    [WEFT_OP_RECIPROCAL] = ELEMENTWISE,
    [WEFT_OP_SIN] = ELEMENTWISE,
    [WEFT_OP_COS] = ELEMENTWISE,
    [WEFT_OP_TANH] = ELEMENTWISE,
    [WEFT_OP_SIGMOID] = ELEMENTWISE,
    [WEFT_OP_ERF] = ELEMENTWISE,
    [WEFT_OP_SOFTPLUS] = ELEMENTWISE,
    [WEFT_OP_RELU] = ELEMENTWISE,
    [WEFT_OP_GELU] = ELEMENTWISE,
    [WEFT_OP_GELU_TANH] = ELEMENTWISE,
    [WEFT_OP_SILU] = ELEMENTWISE,
    [WEFT_OP_FLOOR] = ELEMENTWISE,
    [WEFT_OP_CEIL] = ELEMENTWISE,
    [WEFT_OP_ROUND] = ELEMENTWISE,
    [WEFT_OP_CLAMP] = ELEMENTWISE,
    [WEFT_OP_NOT] = ELEMENTWISE,
    [WEFT_OP_ISFINITE] = ELEMENTWISE,
    [WEFT_OP_DROPOUT] = ELEMENTWISE,
    [WEFT_OP_ADD] = ELEMENTWISE,
    [WEFT_OP_SUB] = ELEMENTWISE,
    [WEFT_OP_MUL] = ELEMENTWISE,
    [WEFT_OP_DIV] = ELEMENTWISE,
    [WEFT_OP_POW] = ELEMENTWISE,
    [WEFT_OP_MAXIMUM] = ELEMENTWISE,
    [WEFT_OP_MINIMUM] = ELEMENTWISE,
    [WEFT_OP_EQ] = ELEMENTWISE,
    [WEFT_OP_NE] = ELEMENTWISE,
    [WEFT_OP_LT] = ELEMENTWISE,
    [WEFT_OP_LE] = ELEMENTWISE,
    [WEFT_OP_GT] = ELEMENTWISE,
    [WEFT_OP_GE] = ELEMENTWISE,
    [WEFT_OP_AND] = ELEMENTWISE,
    [WEFT_OP_OR] = ELEMENTWISE,
    [WEFT_OP_RELU_BACKWARD] = ELEMENTWISE,
    [WEFT_OP_GELU_BACKWARD] = ELEMENTWISE,
    [WEFT_OP_GELU_TANH_BACKWARD] = ELEMENTWISE,
    [WEFT_OP_SILU_BACKWARD] = ELEMENTWISE,
    [WEFT_OP_WHERE] = ELEMENTWISE,
    [WEFT_OP_FUSED] = &wefti_reference_fused,
    [WEFT_OP_SUM] = &wefti_reference_reduce,
    [WEFT_OP_MEAN] = &wefti_reference_reduce,
    [WEFT_OP_MAX] = &wefti_reference_reduce,
    [WEFT_OP_MIN] = &wefti_reference_reduce,
    [WEFT_OP_EXTENT] = &wefti_reference_extent,
    [WEFT_OP_MEAN_BACKWARD] = &wefti_reference_mean_backward,
    [WEFT_OP_ARGMAX] = &wefti_reference_argmax,
    [WEFT_OP_RESHAPE] = &wefti_reference_view,
    [WEFT_OP_PERMUTE] = &wefti_reference_view,
    [WEFT_OP_SLICE] = &wefti_reference_view,
    [WEFT_OP_EXPAND] = &wefti_reference_view,
    [WEFT_OP_CONCAT] = &wefti_reference_concat,
    [WEFT_OP_PAD] = &wefti_reference_pad,
    [WEFT_OP_GATHER] = &wefti_reference_gather,
    [WEFT_OP_SCATTER_ADD] = &wefti_reference_scatter_add,
    [WEFT_OP_MATMUL] = &wefti_reference_matmul,
    [WEFT_OP_ASSIGN] = &wefti_reference_assign,
    [WEFT_OP_UPDATE] = &wefti_reference_update,
    [WEFT_OP_CUSTOM] = &wefti_reference_custom,
    [WEFT_OP_CUSTOM_BACKWARD] = &wefti_reference_custom_backward,
};

static weft_status refuse(weft_status status, const wefti_call *call, const char *why) {
    return wefti_fail(status, "cpu: %s '%s': %s", wefti_ops[call->op].name, call->name ? call->name : "", why);
}

weft_status wefti_cpu_check(const wefti_call *call) {
    if ((unsigned)call->op >= WEFT_OP_COUNT) return wefti_fail(WEFT_E_INVALID, "cpu: no operation %d", (int)call->op);
    if (!wefti_cpu_reference[call->op]) return refuse(WEFT_E_UNSUPPORTED, call, "not something that a device computes");
    const wefti_op_info *info = &wefti_ops[call->op];
    if (call->n_inputs < info->inputs_min || (info->inputs_max != WEFTI_ANY && call->n_inputs > info->inputs_max) ||
        (info->outputs != WEFTI_ANY && call->n_outputs != info->outputs))
        return refuse(WEFT_E_INVALID, call, "wrong number of inputs or outputs");
    for (int32_t i = 0; i < call->n_inputs + call->n_outputs; i++) {
        const wefti_operand *operand = i < call->n_inputs ? &call->inputs[i] : &call->outputs[i - call->n_inputs];
        if (!weft_dtype_bytes(operand->dtype)) return refuse(WEFT_E_DTYPE, call, "an operand has no known dtype");
        if (wefti_operand_elements(operand) < 0) return refuse(WEFT_E_SHAPE, call, "an operand's shape is not valid");
        if (i >= call->n_inputs && !wefti_operand_is_contiguous(operand))
            return refuse(WEFT_E_INVALID, call, "an output is not contiguous");
    }
    if (call->op == WEFT_OP_UPDATE && call->outputs[0].dtype != WEFT_F32 && call->outputs[0].dtype != WEFT_F64)
        return refuse(WEFT_E_UNSUPPORTED, call, "solver rules work on f32 and f64; keep a master copy in f32");
    return WEFT_OK;
}

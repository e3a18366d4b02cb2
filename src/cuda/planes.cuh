/* What pooling and convolution share: counting in 32 bits where everything fits, which divides several times faster than in 64. */
#ifndef WEFTI_CUDA_PLANES_CUH
#define WEFTI_CUDA_PLANES_CUH

#include "cuda/kernel.cuh"

/* Whether offsets into operands of four axes, and coordinates with their padding, stay well below 2^31. `reach` is the largest number of
 * those that attributes give: windows, strides, dilations and paddings, and what they are multiplied by. */
static inline bool wefti_planes_fit_32(const wefti_call *call, int64_t reach) {
    const int64_t most = INT64_C(1) << 30;
    if (reach > most / 4) return false;
    for (int32_t i = 0; i < call->n_inputs + call->n_outputs; i++) {
        const wefti_operand *operand = i < call->n_inputs ? &call->inputs[i] : &call->outputs[i - call->n_inputs];
        int64_t              extent  = wefti_operand_elements(operand);
        for (int axis = 0; axis < 4; axis++) {
            if (operand->shape.dim[axis] > 1 && operand->stride[axis] > most / operand->shape.dim[axis]) return false;
            if (operand->shape.dim[axis] > 1) extent += operand->shape.dim[axis] * operand->stride[axis];
        }
        if (extent > most) return false;
    }
    return true;
}

#endif

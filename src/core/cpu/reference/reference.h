/* The plain kernels: right by being obvious. They take whatever op.h allows, at any strides, and are the oracle and the
 * fallback of the fast ones. */
#ifndef WEFTI_CPU_REFERENCE_H
#define WEFTI_CPU_REFERENCE_H

#include "core/cpu/cpu.h"

extern const wefti_cpu_kernel wefti_reference_fill, wefti_reference_random;
extern const wefti_cpu_kernel wefti_reference_elementwise, wefti_reference_fused, wefti_reference_reduce;
extern const wefti_cpu_kernel wefti_reference_argmax, wefti_reference_extent, wefti_reference_mean_backward;
extern const wefti_cpu_kernel wefti_reference_view, wefti_reference_concat, wefti_reference_pad, wefti_reference_gather;
extern const wefti_cpu_kernel wefti_reference_scatter_add;
extern const wefti_cpu_kernel wefti_reference_occurrence;
extern const wefti_cpu_kernel wefti_reference_matmul, wefti_reference_expert_matmul, wefti_reference_expert_matmul_backward_weight;
extern const wefti_cpu_kernel wefti_reference_conv2d, wefti_reference_conv2d_backward_input;
extern const wefti_cpu_kernel wefti_reference_conv2d_backward_weight;
extern const wefti_cpu_kernel wefti_reference_max_pool2d, wefti_reference_max_pool2d_backward;
extern const wefti_cpu_kernel wefti_reference_max_pool2d_take;
extern const wefti_cpu_kernel wefti_reference_avg_pool2d, wefti_reference_avg_pool2d_backward;
extern const wefti_cpu_kernel wefti_reference_normalize, wefti_reference_normalize_backward;
extern const wefti_cpu_kernel wefti_reference_softmax, wefti_reference_softmax_backward, wefti_reference_rotary;
extern const wefti_cpu_kernel wefti_reference_cross_entropy, wefti_reference_cross_entropy_backward;
extern const wefti_cpu_kernel wefti_reference_attention, wefti_reference_attention_backward;
extern const wefti_cpu_kernel wefti_reference_assign, wefti_reference_update;
extern const wefti_cpu_kernel wefti_reference_encode, wefti_reference_decode;
extern const wefti_cpu_kernel wefti_reference_fp8_cast, wefti_reference_fp8_matmul;
extern const wefti_cpu_kernel wefti_reference_custom, wefti_reference_custom_backward;

/* Elements per chunk of elementwise work; fixed, so that chunks follow from sizes alone. */
enum { WEFTI_REFERENCE_GRAIN = 8192 };

/* Reads element `index` of operand i of the run, where index is a sum of coordinates times strides. */
static inline double wefti_in(const wefti_cpu_run *run, int32_t i, int64_t index) {
    return wefti_load_f64(run->inputs[i], index, run->call->inputs[i].dtype);
}
static inline void wefti_out(const wefti_cpu_run *run, int32_t i, int64_t index, double value) {
    wefti_store_f64(run->outputs[i], index, run->call->outputs[i].dtype, value);
}

/* Where flat (row-major) element `flat` of the operand lies, in elements. */
static inline int64_t wefti_place(const wefti_operand *operand, int64_t flat) {
    int64_t offset = 0;
    for (int32_t axis = operand->shape.rank - 1; axis >= 0; axis--) {
        offset += flat % operand->shape.dim[axis] * operand->stride[axis];
        flat /= operand->shape.dim[axis];
    }
    return offset;
}

/* Copies a strided operand to row-major memory. */
void wefti_reference_pack(const wefti_cpu_run *run, const wefti_operand *operand, const void *from, void *to);

#endif

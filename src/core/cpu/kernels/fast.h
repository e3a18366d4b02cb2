/* The fast kernels, for table.c. Each is defined in the file of its family. */
#ifndef WEFTI_KERNELS_FAST_H
#define WEFTI_KERNELS_FAST_H

#include "core/cpu/cpu.h"

#define wefti_kernel_matmul WEFTI_CPU_NAME(wefti_kernel_matmul)
#define wefti_kernel_expert_matmul WEFTI_CPU_NAME(wefti_kernel_expert_matmul)
#define wefti_kernel_expert_matmul_backward_weight WEFTI_CPU_NAME(wefti_kernel_expert_matmul_backward_weight)
extern const wefti_cpu_kernel wefti_kernel_matmul, wefti_kernel_expert_matmul, wefti_kernel_expert_matmul_backward_weight;

#define wefti_kernel_fp8_matmul WEFTI_CPU_NAME(wefti_kernel_fp8_matmul)
extern const wefti_cpu_kernel wefti_kernel_fp8_matmul;

#define wefti_kernel_elementwise WEFTI_CPU_NAME(wefti_kernel_elementwise)
#define wefti_kernel_fused WEFTI_CPU_NAME(wefti_kernel_fused)
#define wefti_kernel_reduce WEFTI_CPU_NAME(wefti_kernel_reduce)
extern const wefti_cpu_kernel wefti_kernel_elementwise, wefti_kernel_fused, wefti_kernel_reduce;

#define wefti_kernel_conv WEFTI_CPU_NAME(wefti_kernel_conv)
#define wefti_kernel_conv_weight WEFTI_CPU_NAME(wefti_kernel_conv_weight)
extern const wefti_cpu_kernel wefti_kernel_conv, wefti_kernel_conv_weight;

#define wefti_kernel_normalize WEFTI_CPU_NAME(wefti_kernel_normalize)
#define wefti_kernel_normalize_backward WEFTI_CPU_NAME(wefti_kernel_normalize_backward)
#define wefti_kernel_softmax WEFTI_CPU_NAME(wefti_kernel_softmax)
#define wefti_kernel_softmax_backward WEFTI_CPU_NAME(wefti_kernel_softmax_backward)
#define wefti_kernel_cross_entropy WEFTI_CPU_NAME(wefti_kernel_cross_entropy)
#define wefti_kernel_cross_entropy_backward WEFTI_CPU_NAME(wefti_kernel_cross_entropy_backward)
#define wefti_kernel_rotary WEFTI_CPU_NAME(wefti_kernel_rotary)
extern const wefti_cpu_kernel wefti_kernel_normalize, wefti_kernel_normalize_backward, wefti_kernel_softmax,
    wefti_kernel_softmax_backward, wefti_kernel_cross_entropy, wefti_kernel_cross_entropy_backward, wefti_kernel_rotary;

#define wefti_kernel_max_pool2d WEFTI_CPU_NAME(wefti_kernel_max_pool2d)
#define wefti_kernel_max_pool2d_backward WEFTI_CPU_NAME(wefti_kernel_max_pool2d_backward)
#define wefti_kernel_max_pool2d_take WEFTI_CPU_NAME(wefti_kernel_max_pool2d_take)
#define wefti_kernel_avg_pool2d WEFTI_CPU_NAME(wefti_kernel_avg_pool2d)
#define wefti_kernel_avg_pool2d_backward WEFTI_CPU_NAME(wefti_kernel_avg_pool2d_backward)
extern const wefti_cpu_kernel wefti_kernel_max_pool2d, wefti_kernel_max_pool2d_backward,
    wefti_kernel_max_pool2d_take, wefti_kernel_avg_pool2d, wefti_kernel_avg_pool2d_backward;

#define wefti_kernel_attention WEFTI_CPU_NAME(wefti_kernel_attention)
#define wefti_kernel_attention_backward WEFTI_CPU_NAME(wefti_kernel_attention_backward)
extern const wefti_cpu_kernel wefti_kernel_attention, wefti_kernel_attention_backward;

#define wefti_kernel_update WEFTI_CPU_NAME(wefti_kernel_update)
extern const wefti_cpu_kernel wefti_kernel_update;

/* As wefti_cpu_reduce. */
#define wefti_fast_reduce WEFTI_CPU_NAME(wefti_fast_reduce)
weft_status wefti_fast_reduce(void *context, void *dst, const void *const *sources, int32_t source_count, size_t count,
                              weft_dtype dtype, wefti_reduce_op op, int32_t divisor);

#define wefti_kernel_view WEFTI_CPU_NAME(wefti_kernel_view)
#define wefti_kernel_assign WEFTI_CPU_NAME(wefti_kernel_assign)
#define wefti_kernel_concat WEFTI_CPU_NAME(wefti_kernel_concat)
#define wefti_kernel_pad WEFTI_CPU_NAME(wefti_kernel_pad)
#define wefti_kernel_full WEFTI_CPU_NAME(wefti_kernel_full)
#define wefti_kernel_mean_backward WEFTI_CPU_NAME(wefti_kernel_mean_backward)
#define wefti_kernel_gather WEFTI_CPU_NAME(wefti_kernel_gather)
#define wefti_kernel_scatter_add WEFTI_CPU_NAME(wefti_kernel_scatter_add)
extern const wefti_cpu_kernel wefti_kernel_view, wefti_kernel_assign, wefti_kernel_concat, wefti_kernel_pad, wefti_kernel_full;
extern const wefti_cpu_kernel wefti_kernel_mean_backward, wefti_kernel_gather, wefti_kernel_scatter_add;

#endif

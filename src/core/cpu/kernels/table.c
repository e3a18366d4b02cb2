/* The fast kernels of one instruction set, op by op, in order of preference. The device tries each and falls back to the
 * reference kernel. */
#include "core/cpu/kernels/fast.h"

const wefti_cpu_fast WEFTI_CPU_NAME(wefti_cpu_fast) = {
    .kernels = {
        [WEFT_OP_MATMUL] = {&wefti_kernel_matmul},
    },
    .reduce = wefti_cpu_reduce,
};

/* The fast kernels of one instruction set, op by op, in order of preference. The device tries each and falls back to the
 * reference kernel. */
#include "core/cpu/cpu.h"

const wefti_cpu_fast WEFTI_CPU_NAME(wefti_cpu_fast) = {
    .reduce = wefti_cpu_reduce,
};

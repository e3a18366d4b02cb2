/* The fast kernels, for table.c. Each is defined in the file of its family. */
#ifndef WEFTI_KERNELS_FAST_H
#define WEFTI_KERNELS_FAST_H

#include "core/cpu/cpu.h"

#define wefti_kernel_matmul WEFTI_CPU_NAME(wefti_kernel_matmul)
extern const wefti_cpu_kernel wefti_kernel_matmul;

#define wefti_kernel_elementwise WEFTI_CPU_NAME(wefti_kernel_elementwise)
#define wefti_kernel_fused WEFTI_CPU_NAME(wefti_kernel_fused)
#define wefti_kernel_reduce WEFTI_CPU_NAME(wefti_kernel_reduce)
extern const wefti_cpu_kernel wefti_kernel_elementwise, wefti_kernel_fused, wefti_kernel_reduce;

#endif

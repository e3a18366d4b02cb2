/* All inline PTX of the kernels (sm_80 and newer), each with a twin that a host compiler runs. */
#ifndef WEFTI_CUDA_PTX_CUH
#define WEFTI_CUDA_PTX_CUH

#include "cuda/kernel.cuh"

/* 2^x, to a few units in the seventh digit; subnormal results are zero. Without that flush it would be four instructions. */
#ifdef __CUDACC__
static __device__ __forceinline__ float wefti_power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#else
static inline float wefti_power_of_two(float x) { return exp2f(x); }
#endif

#endif

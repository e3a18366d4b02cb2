/* All inline PTX of the kernels (sm_80 and newer), each with a twin that a host compiler runs. */
#ifndef WEFTI_CUDA_PTX_CUH
#define WEFTI_CUDA_PTX_CUH

#include "cuda/kernel.cuh"

/* 2^x, to a few units in the seventh digit; subnormal results are zero. Without that flush it would be four instructions. Scalar functions
 * are for the host too, which has its own. */
static __host__ __device__ __forceinline__ float wefti_power_of_two(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}
/* 1/x, to a unit in the last place; subnormal numbers are zero. */
static __host__ __device__ __forceinline__ float wefti_reciprocal(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return 1.0f / x;
#endif
}

/* The larger; NaN where one of them is. */
static __device__ __forceinline__ float wefti_maximum(float a, float b) {
#ifdef __CUDA_ARCH__
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
#else
    return a > b || a != a ? a : b;
#endif
}

#endif

/* The scalar functions of elementwise ops for kernels that nvcc or a host compiler compiles; the list itself is scalars.def. */
#ifndef WEFTI_CUDA_SCALARS_CUH
#define WEFTI_CUDA_SCALARS_CUH

#include "cuda/ptx.cuh"

#define SCALAR static __host__ __device__ __forceinline__

SCALAR float s_of_f16(uint16_t bits) {
    __half_raw raw;
    raw.x = bits;
    return __half2float(__half(raw));
}
SCALAR uint16_t s_to_f16(float x) { return static_cast<__half_raw>(__float2half_rn(x)).x; }
SCALAR float    s_of_bf16(uint16_t bits) {
    __nv_bfloat16_raw raw;
    raw.x = bits;
    return __bfloat162float(__nv_bfloat16(raw));
}
SCALAR uint16_t s_to_bf16(float x) { return static_cast<__nv_bfloat16_raw>(__float2bfloat16_rn(x)).x; }
SCALAR float    s_reciprocal(float x) { return wefti_reciprocal(x); }
SCALAR float    s_power_of_two(float x) { return wefti_power_of_two(x); }

#define WEFTI_SCALAR(...) __VA_ARGS__
#include "cuda/scalars.def"
#undef WEFTI_SCALAR

#endif

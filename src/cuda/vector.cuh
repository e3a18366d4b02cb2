/* Elements of a row as they lie in memory, in registers: pairs of 16-bit floats share one, and become floats, or come of them, two at a
 * time. An array of such floats would have a register for each, and cost twice the instructions to take apart. */
#ifndef WEFTI_CUDA_VECTOR_CUH
#define WEFTI_CUDA_VECTOR_CUH

#include "cuda/kernel.cuh"

template <typename T, int N, bool PAIRS = sizeof(T) == 2 && N % 2 == 0> struct alignas(sizeof(T) * N) wefti_vector {
    typedef typename wefti_wide<T>::type W;
    T                                    at[N];
    __device__ __forceinline__ void widen(W *x) const {
#pragma unroll
        for (int k = 0; k < N; k++) x[k] = wefti_widen(at[k]);
    }
    __device__ __forceinline__ void narrow(const W *x) {
#pragma unroll
        for (int k = 0; k < N; k++) at[k] = wefti_narrow<T>(x[k]);
    }
};

static __device__ __forceinline__ void wefti_widen_pair(__half, uint32_t pair, float *x) {
    float2 both = __half22float2(*reinterpret_cast<const __half2 *>(&pair));
    x[0] = both.x, x[1] = both.y;
}
static __device__ __forceinline__ void wefti_widen_pair(__nv_bfloat16, uint32_t pair, float *x) {
    x[0] = __uint_as_float(pair << 16), x[1] = __uint_as_float(pair & 0xffff0000u);
}
static __device__ __forceinline__ uint32_t wefti_narrow_pair(__half, const float *x) {
    __half2 both = __floats2half2_rn(x[0], x[1]);
    return *reinterpret_cast<const uint32_t *>(&both);
}
static __device__ __forceinline__ uint32_t wefti_narrow_pair(__nv_bfloat16, const float *x) {
    __nv_bfloat162 both = __floats2bfloat162_rn(x[0], x[1]);
    return *reinterpret_cast<const uint32_t *>(&both);
}
template <typename T, int N> struct alignas(sizeof(T) * N) wefti_vector<T, N, true> {
    uint32_t                        pair[N / 2];
    __device__ __forceinline__ void widen(float *x) const {
#pragma unroll
        for (int k = 0; k < N / 2; k++) wefti_widen_pair(T(), pair[k], x + 2 * k);
    }
    __device__ __forceinline__ void narrow(const float *x) {
#pragma unroll
        for (int k = 0; k < N / 2; k++) pair[k] = wefti_narrow_pair(T(), x + 2 * k);
    }
};

#endif

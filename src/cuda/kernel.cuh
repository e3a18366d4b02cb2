/* What every kernel source begins with: the launch helper, element types, and the few words that differ between nvcc and the host.
 *
 * Kernel sources are compiled by nvcc for GPUs, and unchanged by a host compiler for the tests (tests/cuda_host), which supplies
 * threadIdx and friends, shared memory, barriers, shuffles and atomics. So: no inline PTX outside ptx.cuh, every launch through
 * wefti_cuda_launch, dynamic shared memory through WEFTI_SHARED, and no CUDA header that the host cannot read (CUB, cuda_pipeline.h).
 *
 * Floating point: compiled with -fmad=false, so that fusing never changes rounding; products that want it call fma themselves. f16 and
 * bf16 are computed in float and rounded once, to nearest even. */
#ifndef WEFTI_CUDA_KERNEL_CUH
#define WEFTI_CUDA_KERNEL_CUH

#include "cuda/cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifdef __CUDACC__
#define WEFTI_SHARED(type, name) extern __shared__ __align__(16) unsigned char name##_bytes_[]; type *name = reinterpret_cast<type *>(name##_bytes_)

/* Enqueues kernel<<<grid, block, shared_bytes, run stream>>>(args...). A refused launch (a grid too large, too much shared memory) is a
 * status that names the kernel. The kernel's template name goes in parentheses: wefti_cuda_launch(run, "softmax", (kernel<float, 4>), ...). */
template <typename... Parameters, typename... Arguments>
static inline weft_status wefti_cuda_launch(const wefti_cuda_run *run, const char *name, void (*kernel)(Parameters...), dim3 grid,
                                            dim3 block, size_t shared_bytes, Arguments... arguments) {
    auto enqueue = [&](Parameters... converted) {
        void *pointers[sizeof...(Parameters) + 1] = {const_cast<void *>(static_cast<const void *>(&converted))...};
        return cudaLaunchKernel(reinterpret_cast<const void *>(kernel), grid, block, pointers, shared_bytes, run->stream);
    };
    return wefti_cuda_check(run->cuda, enqueue(static_cast<Parameters>(arguments)...), name);
}
#elif !defined WEFTI_SHARED
#error "compile kernel sources with nvcc, or for the host with -include tests/cuda_host/shim.h"
#endif

/* Parameters that are indexed, or whose address is taken, stay where they are, instead of being copied to every thread's stack. */
#ifdef __CUDACC__
#define WEFTI_IN_PLACE const __grid_constant__
#else
#define WEFTI_IN_PLACE const
#endif

/* --- element types --- */

/* The type in which elements of T are computed. */
template <typename T> struct wefti_wide { typedef T type; };
template <> struct wefti_wide<__half> { typedef float type; };
template <> struct wefti_wide<__nv_bfloat16> { typedef float type; };

template <typename T> static __host__ __device__ __forceinline__ typename wefti_wide<T>::type wefti_widen(T x) { return x; }
template <> __host__ __device__ __forceinline__ float wefti_widen<__half>(__half x) { return __half2float(x); }
template <> __host__ __device__ __forceinline__ float wefti_widen<__nv_bfloat16>(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T> static __host__ __device__ __forceinline__ T wefti_narrow(typename wefti_wide<T>::type x) { return x; }
template <> __host__ __device__ __forceinline__ __half wefti_narrow<__half>(float x) { return __float2half_rn(x); }
template <> __host__ __device__ __forceinline__ __nv_bfloat16 wefti_narrow<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

/* A statement for the C++ type T of a dtype. DISPATCH gives WEFT_E_INTERNAL for any other dtype: check beforehand. */
#define WEFTI_FLOAT_CASE(DTYPE, TYPE, ...) case DTYPE: { typedef TYPE T; __VA_ARGS__ } break;
#define WEFTI_DISPATCH_FLOAT(dtype, ...)                                                                                          \
    switch (dtype) {                                                                                                              \
        WEFTI_FLOAT_CASE(WEFT_F32, float, __VA_ARGS__)                                                                            \
        WEFTI_FLOAT_CASE(WEFT_F64, double, __VA_ARGS__)                                                                           \
        WEFTI_FLOAT_CASE(WEFT_BF16, __nv_bfloat16, __VA_ARGS__)                                                                   \
        WEFTI_FLOAT_CASE(WEFT_F16, __half, __VA_ARGS__)                                                                           \
    default: return wefti_fail(WEFT_E_INTERNAL, "cuda: %s is no floating dtype", weft_dtype_name(dtype));                         \
    }
#define WEFTI_DISPATCH_ANY(dtype, ...)                                                                                            \
    switch (dtype) {                                                                                                              \
        WEFTI_FLOAT_CASE(WEFT_F32, float, __VA_ARGS__)                                                                            \
        WEFTI_FLOAT_CASE(WEFT_F64, double, __VA_ARGS__)                                                                           \
        WEFTI_FLOAT_CASE(WEFT_BF16, __nv_bfloat16, __VA_ARGS__)                                                                   \
        WEFTI_FLOAT_CASE(WEFT_F16, __half, __VA_ARGS__)                                                                           \
        WEFTI_FLOAT_CASE(WEFT_I64, int64_t, __VA_ARGS__)                                                                          \
        WEFTI_FLOAT_CASE(WEFT_I32, int32_t, __VA_ARGS__)                                                                          \
        WEFTI_FLOAT_CASE(WEFT_U8, uint8_t, __VA_ARGS__)                                                                           \
        WEFTI_FLOAT_CASE(WEFT_BOOL, uint8_t, __VA_ARGS__)                                                                         \
    default: return wefti_fail(WEFT_E_INTERNAL, "cuda: there is no dtype %d", (int)(dtype));                                      \
    }

/* Blocks for `items` by `per_block`, at most `most` (0: 2^31-1): kernels loop over the grid where it may be cut. */
static inline unsigned wefti_cuda_blocks(int64_t items, int64_t per_block, int64_t most) {
    int64_t blocks = items / per_block + (items % per_block != 0);
    if (most <= 0 || most > 0x7fffffff) most = 0x7fffffff;
    return (unsigned)(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

/* Offset of flat element i (row-major over the view's dims). */
static __host__ __device__ __forceinline__ int64_t wefti_cuda_offset(const wefti_cuda_view_of &view, int64_t i) {
    int64_t offset = 0;
    for (int32_t axis = view.rank - 1; axis > 0; axis--) {
        int64_t above = i / view.dim[axis];
        offset += (i - above * view.dim[axis]) * view.stride[axis];
        i = above;
    }
    return offset + i * view.stride[0];
}

#endif

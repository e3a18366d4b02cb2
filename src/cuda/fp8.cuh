/* 8-bit floats on the device: the conversions of core/tensor/fp8_code.h, and the forms as element types, which are widened to what they stand for. */
#ifndef WEFTI_CUDA_FP8_CUH
#define WEFTI_CUDA_FP8_CUH

#include "cuda/kernel.cuh"

#include "core/tensor/fp8.h"

#define FP8(x) wefti_fp8_device_##x
#define FP8_FUNCTION static __host__ __device__ __forceinline__
#include "core/tensor/fp8_code.h"
#undef FP8_FUNCTION
#undef FP8

template <int FORM> struct wefti_fp8_code { uint8_t code; };
template <int FORM> struct wefti_wide<wefti_fp8_code<FORM>> { typedef float type; };
template <int FORM> static __host__ __device__ __forceinline__ float wefti_widen(wefti_fp8_code<FORM> x) { return wefti_fp8_device_decode(x.code, FORM); }

#endif

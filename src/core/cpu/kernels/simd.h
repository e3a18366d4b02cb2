/* Vectors of the instruction set that this file is compiled for, in GCC's vector types: `vf` of VF floats, `vd` of VD
 * doubles, with the few things that the language has no operator for. Everything else is written with + - * / on them,
 * or as plain loops that the compiler turns into SIMD.
 *
 * Only vf_fma and vd_fma (and WEFTI_FMA) fuse a multiplication with an addition, where the set has that; sets without
 * it round twice. So results of two sets may differ in the last bits, results of one set never do. */
#ifndef WEFTI_KERNELS_SIMD_H
#define WEFTI_KERNELS_SIMD_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX__) || defined(__SSE__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define VECTOR_REGISTERS 32
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#define VECTOR_REGISTERS 16
#else
#define VECTOR_BYTES 16
#define VECTOR_REGISTERS 16
#endif
enum { VF = VECTOR_BYTES / 4, VD = VECTOR_BYTES / 8 };

typedef float  vf __attribute__((vector_size(VECTOR_BYTES)));
typedef double vd __attribute__((vector_size(VECTOR_BYTES)));

#define WEFTI_INLINE static inline __attribute__((always_inline, unused))

WEFTI_INLINE vf vf_load(const float *from) {
    vf value;
    memcpy(&value, from, sizeof value);
    return value;
}
WEFTI_INLINE vd vd_load(const double *from) {
    vd value;
    memcpy(&value, from, sizeof value);
    return value;
}
WEFTI_INLINE void vf_store(float *to, vf value) { memcpy(to, &value, sizeof value); }
WEFTI_INLINE void vd_store(double *to, vd value) { memcpy(to, &value, sizeof value); }
/* Past the caches, to aligned memory. */
#if defined(__AVX512F__)
WEFTI_INLINE void vf_stream(float *to, vf value) { _mm512_stream_ps(to, (__m512)value); }
WEFTI_INLINE void vd_stream(double *to, vd value) { _mm512_stream_pd(to, (__m512d)value); }
#elif defined(__AVX2__)
WEFTI_INLINE void vf_stream(float *to, vf value) { _mm256_stream_ps(to, (__m256)value); }
WEFTI_INLINE void vd_stream(double *to, vd value) { _mm256_stream_pd(to, (__m256d)value); }
#else
WEFTI_INLINE void vf_stream(float *to, vf value) { vf_store(to, value); }
WEFTI_INLINE void vd_stream(double *to, vd value) { vd_store(to, value); }
#endif
WEFTI_INLINE vf vf_set(float value) { return value - (vf){0}; }
WEFTI_INLINE vd vd_set(double value) { return value - (vd){0}; }

#if defined(__AVX512F__)
WEFTI_INLINE vf vf_fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
WEFTI_INLINE vd vd_fma(vd a, vd b, vd c) { return (vd)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
#elif defined(__FMA__)
WEFTI_INLINE vf vf_fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
WEFTI_INLINE vd vd_fma(vd a, vd b, vd c) { return (vd)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
#else
WEFTI_INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
WEFTI_INLINE vd vd_fma(vd a, vd b, vd c) { return a * b + c; }
#endif

/* Scalar forms for loops that the compiler vectorises. */
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define WEFTI_FMA_F32(a, b, c) __builtin_fmaf(a, b, c)
#define WEFTI_FMA_F64(a, b, c) __builtin_fma(a, b, c)
#else
#define WEFTI_FMA_F32(a, b, c) ((a) * (b) + (c))
#define WEFTI_FMA_F64(a, b, c) ((a) * (b) + (c))
#endif

#endif

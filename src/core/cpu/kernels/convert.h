/* Rows of 16-bit floats to f32 and back, rounding to nearest even, as core/tensor/half.h does element by element. */
#ifndef WEFTI_KERNELS_CONVERT_H
#define WEFTI_KERNELS_CONVERT_H

#include "core/cpu/kernels/simd.h"
#include "core/tensor/half.h"
#include "weft/dtype.h"

WEFTI_INLINE void convert_bf16_to_f32(const uint16_t *from, int64_t count, float *to) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(&to[i], &bits, sizeof bits);
    }
}

WEFTI_INLINE void convert_f32_to_bf16(const float *from, int64_t count, uint16_t *to) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &from[i], sizeof bits);
        uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
        uint32_t quiet   = bits >> 16 | 0x40;
        to[i]            = (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
    }
}

static inline __attribute__((unused)) void convert_f16_to_f32(const uint16_t *from, int64_t count, float *to) {
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= count; i += 16)
        _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(from + i))));
#elif defined(__F16C__)
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(from + i))));
#endif
    for (; i < count; i++) to[i] = wefti_f16_to_f32(from[i]);
}

static inline __attribute__((unused)) void convert_f32_to_f16(const float *from, int64_t count, uint16_t *to) {
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= count; i += 16)
        _mm256_storeu_si256((__m256i *)(void *)(to + i), _mm512_cvtps_ph(_mm512_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < count; i++) to[i] = wefti_f32_to_f16(from[i]);
}

/* Any float type but f64. */
static inline __attribute__((unused)) void convert_to_f32(const void *from, weft_dtype dtype, int64_t count, float *to) {
    if (dtype == WEFT_BF16)
        convert_bf16_to_f32(from, count, to);
    else if (dtype == WEFT_F16)
        convert_f16_to_f32(from, count, to);
    else
        memcpy(to, from, (size_t)count * sizeof *to);
}
static inline __attribute__((unused)) void convert_from_f32(const float *from, weft_dtype dtype, int64_t count, void *to) {
    if (dtype == WEFT_BF16)
        convert_f32_to_bf16(from, count, to);
    else if (dtype == WEFT_F16)
        convert_f32_to_f16(from, count, to);
    else
        memcpy(to, from, (size_t)count * sizeof *from);
}

#endif

/* f16 (IEEE binary16) and bf16 (upper half of binary32), in plain integer arithmetic that rounds exactly to nearest
 * even, so that every machine and instruction set gives the same bits. A NaN stays a NaN (made quiet, payload cut).
 * Wider types go through f32: op.h says that results in these types are computed in f32 and rounded once. */
#ifndef WEFTI_HALF_H
#define WEFTI_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t wefti_f32_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline float wefti_f32_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float wefti_bf16_to_f32(uint16_t half) { return wefti_f32_from_bits((uint32_t)half << 16); }

static inline uint16_t wefti_f32_to_bf16(float value) {
    uint32_t bits = wefti_f32_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

static inline float wefti_f16_to_f32(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31) return wefti_f32_from_bits(sign | 0x7f800000u | fraction << 13 | (fraction ? 0x400000u : 0));
    if (exponent) return wefti_f32_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    /* Zero or subnormal: fraction * 2^-24, exact in f32. */
    float magnitude = (float)fraction * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

static inline uint16_t wefti_f32_to_f16(float value) {
    uint32_t bits = wefti_f32_bits(value), magnitude = bits & 0x7fffffffu;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x1ff));
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00); /* 65520 and above round to infinity */
    if (magnitude >= 0x38800000u) {                                  /* normal: 2^-14 and above */
        uint32_t rounded = magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1);
        return (uint16_t)(sign | rounded >> 13);
    }
    if (magnitude < 0x33000000u) return sign; /* below 2^-25 */
    /* Subnormal: shift the significand so that its unit is 2^-24, rounding what falls off. */
    uint32_t shift = 126 - (magnitude >> 23), significand = (magnitude & 0x7fffffu) | 0x800000u;
    uint32_t kept = significand >> shift, rest = significand & ((1u << shift) - 1), tie = 1u << (shift - 1);
    kept += rest > tie || (rest == tie && (kept & 1));
    return (uint16_t)(sign | kept);
}

#endif

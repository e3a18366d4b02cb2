/* Conversions between f32 and 8-bit floats under a scale that is a power of two, which is exact to apply and to undo. Included wherever they are
 * wanted, after fp8.h: FP8(x) names this copy's function x, FP8_FUNCTION is what stands before it (an instruction set, __device__).
 *
 * The scale is such that the largest finite magnitude comes to lie in (1.75 * 2^(t-1), 1.75 * 2^t], where 1.75 * 2^t is the form's largest
 * number: nothing saturates. So a number rounds alike under any scale, but for those that come to be subnormal. Rounding is to nearest even.
 * Nothing but integers, shifts, and floats that are exact or rounded once: every copy gives the same bytes. Choices are by masks, for a
 * branch keeps compilers from making vectors. `form` is a constant wherever these are inlined well. */

#define FP8_CHOOSE(condition, yes, no) ((no) ^ (((yes) ^ (no)) & (0 - (uint32_t)(condition))))

FP8_FUNCTION float FP8(float_of)(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
FP8_FUNCTION uint32_t FP8(bits_of)(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

FP8_FUNCTION wefti_fp8_format FP8(format)(int32_t form) {
    wefti_fp8_format e4m3 = {3, 7, 8, 0x7f, 0x7f}, e5m2 = {2, 15, 15, 0x7c, 0x7f};
    return form == WEFTI_FP8_E5M2 ? e5m2 : e4m3;
}

/* The magnitude of an f32, given as bits, where it counts for the scale: 0 for what is not finite. */
FP8_FUNCTION uint32_t FP8(finite)(uint32_t bits) {
    int32_t magnitude = (int32_t)(bits & 0x7fffffffu);
    return (uint32_t)(magnitude < 0x7f800000 ? magnitude : 0);
}
/* The scale's exponent for the largest finite magnitude, given as bits: a byte b for 2^(b-127), in [1, 254 - largest + 1]. */
FP8_FUNCTION uint32_t FP8(scale)(uint32_t largest_bits, int32_t form) {
    int32_t exponent = (int32_t)(largest_bits >> 23) - FP8(format)(form).largest + ((largest_bits & 0x7fffffu) > 0x600000u);
    return (uint32_t)(exponent < 1 ? 1 : exponent);
}
/* What codes are multiplied with, and what numbers are before they are encoded. */
FP8_FUNCTION float FP8(factor)(uint32_t scale) { return FP8(float_of)(scale << 23); }
FP8_FUNCTION float FP8(inverse)(uint32_t scale) { return FP8(float_of)((254 - scale) << 23); }

/* The code of an f32, given as bits, under the scale whose inverse this is. Infinities become the form's, or its NaN. */
FP8_FUNCTION uint32_t FP8(encode)(uint32_t bits, float inverse, int32_t form) {
    wefti_fp8_format f = FP8(format)(form);
    /* Adding this puts the unit of the smallest numbers at the end of the fraction, rounded to nearest even. */
    float    magic = FP8(float_of)((uint32_t)(127 + 1 - f.bias - f.fraction + 23) << 23);
    uint32_t shift = 23 - (uint32_t)f.fraction, base = (uint32_t)(127 - f.bias) << 23;
    int32_t  least = (128 - f.bias) << 23;
    uint32_t magnitude = bits & 0x7fffffffu, sign = bits >> 24 & 0x80;
    uint32_t scaled = FP8(bits_of)(FP8(float_of)(magnitude) * inverse);
    uint32_t normal = (scaled - base + (1u << (shift - 1)) - 1 + (scaled >> shift & 1)) >> shift;
    uint32_t small = FP8(bits_of)(FP8(float_of)(scaled) + magic) - FP8(bits_of)(magic);
    uint32_t code = FP8_CHOOSE((int32_t)scaled < least, small, normal);
    code = FP8_CHOOSE((int32_t)magnitude > 0x7f7fffff, f.infinity, code);
    code = FP8_CHOOSE((int32_t)magnitude > 0x7f800000, f.nan, code);
    return sign | code;
}

/* The number of a code, unscaled. */
FP8_FUNCTION float FP8(decode)(uint32_t byte, int32_t form) {
    wefti_fp8_format f = FP8(format)(form);
    float    unit = FP8(float_of)((uint32_t)(127 + 1 - f.bias - f.fraction) << 23);
    uint32_t shift = 23 - (uint32_t)f.fraction, base = (uint32_t)(127 - f.bias) << 23;
    int32_t  least = 1 << f.fraction, first_nan = (int32_t)(f.infinity < f.nan ? f.infinity + 1 : f.nan);
    int32_t  code = (int32_t)(byte & 0x7f);
    uint32_t sign = (byte & 0x80u) << 24;
    uint32_t normal = ((uint32_t)code << shift) + base;
    uint32_t small = FP8(bits_of)((float)code * unit);
    uint32_t bits = FP8_CHOOSE(code < least, small, normal);
    bits = FP8_CHOOSE(code >= (int32_t)f.infinity, 0x7f800000u, bits);
    bits = FP8_CHOOSE(code >= first_nan, 0x7fc00000u, bits);
    return FP8(float_of)(bits | sign);
}

#undef FP8_CHOOSE

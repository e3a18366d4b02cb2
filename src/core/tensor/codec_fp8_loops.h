/* fp8's loops over blocks, included by codec_fp8.c once per instruction set: NAME(x) names the copy and TARGET is its function attribute.
 * Nothing but integers, shifts, and floats that are exact or rounded once: every copy gives the same bytes. Choices are by masks, for a
 * branch keeps compilers from making vectors. */

#define CHOOSE(condition, yes, no) ((no) ^ (((yes) ^ (no)) & (0 - (uint32_t)(condition))))

/* Of their own, as functions with other attributes are not inlined. */
TARGET static inline __attribute__((always_inline)) float NAME(float_of)(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
TARGET static inline __attribute__((always_inline)) uint32_t NAME(bits_of)(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* One block of 32. `f` is a constant where this is inlined, so that all of it becomes straight vector code. */
TARGET static inline __attribute__((always_inline)) void NAME(encode_block)(const float *x, uint8_t *codes, uint8_t *scale_out, format f) {
    uint32_t bits[BLOCK];
    int32_t  largest = 0;
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < BLOCK; i++) {
        int32_t magnitude = (int32_t)(bits[i] & 0x7fffffffu), finite = magnitude < 0x7f800000 ? magnitude : 0;
        largest = finite > largest ? finite : largest;
    }
    uint32_t scale = scale_of((uint32_t)largest, f.largest);
    float    inverse = NAME(float_of)((254 - scale) << 23);
    /* Adding this puts the unit of the smallest numbers at the end of the fraction, rounded to nearest even. */
    float    magic = NAME(float_of)((uint32_t)(127 + 1 - f.bias - f.fraction + 23) << 23);
    uint32_t shift = 23 - (uint32_t)f.fraction, base = (uint32_t)(127 - f.bias) << 23;
    int32_t  least = (128 - f.bias) << 23;
    for (int i = 0; i < BLOCK; i++) {
        uint32_t magnitude = bits[i] & 0x7fffffffu, sign = bits[i] >> 24 & 0x80;
        uint32_t scaled = NAME(bits_of)(NAME(float_of)(magnitude) * inverse);
        uint32_t normal = (scaled - base + (1u << (shift - 1)) - 1 + (scaled >> shift & 1)) >> shift;
        uint32_t small = NAME(bits_of)(NAME(float_of)(scaled) + magic) - NAME(bits_of)(magic);
        uint32_t code = CHOOSE((int32_t)scaled < least, small, normal);
        code = CHOOSE((int32_t)magnitude > 0x7f7fffff, f.infinity, code);
        code = CHOOSE((int32_t)magnitude > 0x7f800000, f.nan, code);
        codes[i] = (uint8_t)(sign | code);
    }
    *scale_out = (uint8_t)scale;
}

TARGET static inline __attribute__((always_inline)) void NAME(decode_block)(const uint8_t *codes, uint32_t scale, float *x_out, format f, bool add) {
    float    unit = NAME(float_of)((uint32_t)(127 + 1 - f.bias - f.fraction) << 23), factor = NAME(float_of)(scale << 23);
    uint32_t shift = 23 - (uint32_t)f.fraction, base = (uint32_t)(127 - f.bias) << 23;
    int32_t  least = 1 << f.fraction, first_nan = (int32_t)(f.infinity < f.nan ? f.infinity + 1 : f.nan);
    factor = scale == 255 ? NAME(float_of)(0x7fc00000u) : factor;
    for (int i = 0; i < BLOCK; i++) {
        int32_t  code = codes[i] & 0x7f;
        uint32_t sign = (uint32_t)(codes[i] & 0x80u) << 24;
        uint32_t normal = ((uint32_t)code << shift) + base;
        uint32_t small = NAME(bits_of)((float)code * unit);
        uint32_t bits = CHOOSE(code < least, small, normal);
        bits = CHOOSE(code >= (int32_t)f.infinity, 0x7f800000u, bits);
        bits = CHOOSE(code >= first_nan, 0x7fc00000u, bits);
        float value = NAME(float_of)(bits | sign) * factor;
        x_out[i] = add ? x_out[i] + value : value;
    }
}

/* Blocks `first` to `end` of a vector, that may end within a block, or lie behind what is given. */
TARGET static inline __attribute__((always_inline)) void NAME(encode_blocks)(const fp8_work *w, int64_t first, int64_t end, format f) {
    for (int64_t block = first; block < end; block++) {
        int64_t begin = block * BLOCK, wanted = wefti_min_i64(BLOCK, w->part->elements - begin);
        int64_t given = wefti_min_i64(BLOCK, w->part->given - begin);
        if (given == BLOCK) {
            NAME(encode_block)(w->x + begin, w->codes_out + begin, &w->scales_out[block], f);
            continue;
        }
        float   padded[BLOCK] = {0};
        uint8_t codes[BLOCK];
        if (given > 0) memcpy(padded, w->x + begin, (size_t)given * sizeof *padded);
        NAME(encode_block)(padded, codes, &w->scales_out[block], f);
        memcpy(w->codes_out + begin, codes, (size_t)wanted);
    }
}

TARGET static inline __attribute__((always_inline)) void NAME(decode_blocks)(const fp8_work *w, int64_t first, int64_t end, format f, bool add) {
    for (int64_t block = first; block < end; block++) {
        int64_t begin = block * BLOCK, wanted = wefti_min_i64(BLOCK, w->part->given - begin);
        if (wanted == BLOCK) {
            NAME(decode_block)(w->codes + begin, w->scales[block], w->x_out + begin, f, add);
            continue;
        }
        float   values[BLOCK] = {0};
        uint8_t codes[BLOCK] = {0};
        memcpy(codes, w->codes + begin, (size_t)wanted);
        if (add) memcpy(values, w->x_out + begin, (size_t)wanted * sizeof *values);
        NAME(decode_block)(codes, w->scales[block], values, f, add);
        memcpy(w->x_out + begin, values, (size_t)wanted * sizeof *values);
    }
}

#define LOOPS_OF(format)                                                                                    \
    TARGET static void NAME(encode_##format)(const fp8_work *w, int64_t first, int64_t end) {               \
        NAME(encode_blocks)(w, first, end, format);                                                         \
    }                                                                                                       \
    TARGET static void NAME(decode_##format)(const fp8_work *w, int64_t first, int64_t end) {               \
        if (w->add) NAME(decode_blocks)(w, first, end, format, true);                                       \
        else NAME(decode_blocks)(w, first, end, format, false);                                             \
    }
LOOPS_OF(e4m3)
LOOPS_OF(e5m2)
#undef LOOPS_OF
#undef CHOOSE

static const loops NAME(loops) = {{NAME(encode_e4m3), NAME(encode_e5m2)}, {NAME(decode_e4m3), NAME(decode_e5m2)}};

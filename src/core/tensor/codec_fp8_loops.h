/* fp8's loops over blocks, included by codec_fp8.c once per instruction set: NAME(x) names the copy and TARGET is its function attribute.
 * What an element becomes stands in fp8_code.h. */

#define FP8(x) NAME(fp8_##x)
#define FP8_FUNCTION TARGET static inline __attribute__((always_inline, unused)) /* of its own, as functions with other attributes are not inlined */
#include "core/tensor/fp8_code.h"
#undef FP8_FUNCTION

/* One block of 32. `form` is a constant where this is inlined, so that all of it becomes straight vector code. */
TARGET static inline __attribute__((always_inline)) void NAME(encode_block)(const float *x, uint8_t *codes, uint8_t *scale_out, int32_t form) {
    uint32_t bits[BLOCK];
    int32_t  largest = 0;
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < BLOCK; i++) {
        int32_t finite = (int32_t)FP8(finite)(bits[i]);
        largest = finite > largest ? finite : largest;
    }
    uint32_t scale = FP8(scale)((uint32_t)largest, form);
    float    inverse = FP8(inverse)(scale);
    for (int i = 0; i < BLOCK; i++) codes[i] = (uint8_t)FP8(encode)(bits[i], inverse, form);
    *scale_out = (uint8_t)scale;
}

TARGET static inline __attribute__((always_inline)) void NAME(decode_block)(const uint8_t *codes, uint32_t scale, float *x_out, int32_t form, bool add) {
    float factor = scale == 255 ? FP8(float_of)(0x7fc00000u) : FP8(factor)(scale);
    for (int i = 0; i < BLOCK; i++) {
        float value = FP8(decode)(codes[i], form) * factor;
        x_out[i] = add ? x_out[i] + value : value;
    }
}

/* Blocks `first` to `end` of a vector, that may end within a block, or lie behind what is given. */
TARGET static inline __attribute__((always_inline)) void NAME(encode_blocks)(const fp8_work *w, int64_t first, int64_t end, int32_t form) {
    for (int64_t block = first; block < end; block++) {
        int64_t begin = block * BLOCK, wanted = wefti_min_i64(BLOCK, w->part->elements - begin);
        int64_t given = wefti_min_i64(BLOCK, w->part->given - begin);
        if (given == BLOCK) {
            NAME(encode_block)(w->x + begin, w->codes_out + begin, &w->scales_out[block], form);
            continue;
        }
        float   padded[BLOCK] = {0};
        uint8_t codes[BLOCK];
        if (given > 0) memcpy(padded, w->x + begin, (size_t)given * sizeof *padded);
        NAME(encode_block)(padded, codes, &w->scales_out[block], form);
        memcpy(w->codes_out + begin, codes, (size_t)wanted);
    }
}

TARGET static inline __attribute__((always_inline)) void NAME(decode_blocks)(const fp8_work *w, int64_t first, int64_t end, int32_t form, bool add) {
    for (int64_t block = first; block < end; block++) {
        int64_t begin = block * BLOCK, wanted = wefti_min_i64(BLOCK, w->part->given - begin);
        if (wanted == BLOCK) {
            NAME(decode_block)(w->codes + begin, w->scales[block], w->x_out + begin, form, add);
            continue;
        }
        float   values[BLOCK] = {0};
        uint8_t codes[BLOCK] = {0};
        memcpy(codes, w->codes + begin, (size_t)wanted);
        if (add) memcpy(values, w->x_out + begin, (size_t)wanted * sizeof *values);
        NAME(decode_block)(codes, w->scales[block], values, form, add);
        memcpy(w->x_out + begin, values, (size_t)wanted * sizeof *values);
    }
}

#define LOOPS_OF(name, form)                                                                                \
    TARGET static void NAME(encode_##name)(const fp8_work *w, int64_t first, int64_t end) {                 \
        NAME(encode_blocks)(w, first, end, form);                                                           \
    }                                                                                                       \
    TARGET static void NAME(decode_##name)(const fp8_work *w, int64_t first, int64_t end) {                 \
        if (w->add) NAME(decode_blocks)(w, first, end, form, true);                                         \
        else NAME(decode_blocks)(w, first, end, form, false);                                               \
    }
LOOPS_OF(e4m3, WEFTI_FP8_E4M3)
LOOPS_OF(e5m2, WEFTI_FP8_E5M2)
#undef LOOPS_OF
#undef FP8

static const loops NAME(loops) = {{NAME(encode_e4m3), NAME(encode_e5m2)}, {NAME(decode_e4m3), NAME(decode_e5m2)}};

/* Included by store_loops.c once per instruction set: NAME(x) names the copy and TARGET is its function attribute. */

/* Of their own, with the target of their callers, as functions with other attributes are not inlined. */
TARGET static inline __attribute__((always_inline)) float NAME(same_f32)(float x) { return x; }
TARGET static inline __attribute__((always_inline)) double NAME(same_f64)(double x) { return x; }
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
TARGET static inline __attribute__((always_inline)) float NAME(wide_bf16)(uint16_t x) { return NAME(float_of)((uint32_t)x << 16); }
/* By masks: of branches compilers make no vectors. */
#define CHOOSE(condition, yes, no) ((no) ^ (((yes) ^ (no)) & (0 - (uint32_t)(condition))))
/* As core/tensor/half.h. A subnormal is put below 2^-14, which is then taken away: exact. */
TARGET static inline __attribute__((always_inline)) float NAME(wide_f16)(uint16_t x) {
    int32_t  magnitude = x & 0x7fff;
    uint32_t shifted = (uint32_t)magnitude << 13, normal = shifted + (112u << 23);
    uint32_t small = NAME(bits_of)(NAME(float_of)(shifted + (113u << 23)) - 0x1p-14f);
    uint32_t special = shifted | 0x7f800000u | CHOOSE(magnitude > 0x7c00, 0x400000u, 0u);
    uint32_t bits = CHOOSE(magnitude < 0x400, small, CHOOSE(magnitude >= 0x7c00, special, normal));
    return NAME(float_of)(bits | (uint32_t)(x & 0x8000) << 16);
}
/* Adding a half puts the unit of subnormals, 2^-24, at the end of the fraction, rounded to nearest even. */
TARGET static inline __attribute__((always_inline)) uint16_t NAME(narrow_f16)(float x) {
    uint32_t bits = NAME(bits_of)(x), sign = bits >> 16 & 0x8000;
    int32_t  magnitude = (int32_t)(bits & 0x7fffffffu);
    uint32_t normal = ((uint32_t)magnitude - 0x38000000u + 0xfffu + ((uint32_t)magnitude >> 13 & 1)) >> 13;
    uint32_t small = NAME(bits_of)(NAME(float_of)((uint32_t)magnitude) + 0.5f) - NAME(bits_of)(0.5f);
    uint32_t nan = 0x7e00 | ((uint32_t)magnitude >> 13 & 0x1ff);
    uint32_t half = CHOOSE(magnitude >= 0x477ff000, 0x7c00u, CHOOSE(magnitude < 0x38800000, small, normal));
    return (uint16_t)(sign | CHOOSE(magnitude > 0x7f800000, nan, half));
}

#define TAKE_FLOAT(name, HELD, GIVEN, widen)                                                                                             \
    TARGET static void NAME(take_##name)(void *to, const void *from, int64_t count, double scale, int64_t divisor) {                    \
        HELD *restrict out = to;                                                                                                         \
        const GIVEN *restrict in = from;                                                                                                 \
        const HELD factor = (HELD)scale, share = (HELD)divisor;                                                                          \
        if (divisor != 1)                                                                                                                \
            for (int64_t i = 0; i < count; i++) out[i] = widen(in[i]) / share;                                                           \
        else                                                                                                                             \
            for (int64_t i = 0; i < count; i++) out[i] = factor * widen(in[i]);                                                          \
    }                                                                                                                                    \
    TARGET static void NAME(begin_##name)(void *to, const void *from, int64_t count) {                                                  \
        HELD *restrict out = to;                                                                                                         \
        const GIVEN *restrict in = from;                                                                                                 \
        for (int64_t i = 0; i < count; i++) out[i] = widen(in[i]);                                                                       \
    }                                                                                                                                    \
    TARGET static void NAME(more_##name)(void *to, const void *from, int64_t count) {                                                   \
        HELD *restrict out = to;                                                                                                         \
        const GIVEN *restrict in = from;                                                                                                 \
        for (int64_t i = 0; i < count; i++) out[i] += widen(in[i]);                                                                      \
    }
TAKE_FLOAT(f32, float, float, NAME(same_f32))
TAKE_FLOAT(f64, double, double, NAME(same_f64))
TAKE_FLOAT(bf16, float, uint16_t, NAME(wide_bf16))
TAKE_FLOAT(f16, float, uint16_t, NAME(wide_f16))
#undef TAKE_FLOAT

/* Division of integers is C's, toward zero. */
#define TAKE_INTEGER(name, HELD, GIVEN)                                                                                                  \
    TARGET static void NAME(take_##name)(void *to, const void *from, int64_t count, double scale, int64_t divisor) {                    \
        HELD *restrict out = to;                                                                                                         \
        const GIVEN *restrict in = from;                                                                                                 \
        (void)scale;                                                                                                                     \
        if (divisor != 1)                                                                                                                \
            for (int64_t i = 0; i < count; i++) out[i] = (HELD)(in[i] / divisor);                                                        \
        else                                                                                                                             \
            for (int64_t i = 0; i < count; i++) out[i] = (HELD)in[i];                                                                    \
    }
TAKE_INTEGER(i32, int32_t, int32_t)
TAKE_INTEGER(i64, int64_t, int64_t)
TAKE_INTEGER(i32_of_i64, int32_t, int64_t)
#undef TAKE_INTEGER

#define SUM_INTEGER(name, GIVEN)                                                                                                         \
    TARGET static void NAME(begin_##name)(void *to, const void *from, int64_t count) {                                                  \
        int64_t *restrict out = to;                                                                                                      \
        const GIVEN *restrict in = from;                                                                                                 \
        for (int64_t i = 0; i < count; i++) out[i] = in[i];                                                                              \
    }                                                                                                                                    \
    TARGET static void NAME(more_##name)(void *to, const void *from, int64_t count) {                                                   \
        uint64_t *restrict out = to;                                                                                                     \
        const GIVEN *restrict in = from;                                                                                                 \
        for (int64_t i = 0; i < count; i++) out[i] += (uint64_t)(int64_t)in[i];                                                          \
    }
SUM_INTEGER(i32, int32_t)
SUM_INTEGER(i64, int64_t)
#undef SUM_INTEGER

TARGET static void NAME(add_f32)(void *to, const void *from, int64_t count, double scale) {
    float *restrict out = to;
    const float *restrict in = from;
    const float factor = (float)scale;
    for (int64_t i = 0; i < count; i++) out[i] += factor * in[i];
}
TARGET static void NAME(add_f64)(void *to, const void *from, int64_t count, double scale) {
    double *restrict out = to;
    const double *restrict in = from;
    for (int64_t i = 0; i < count; i++) out[i] += scale * in[i];
}
#define BOTH(name, HELD)                                                                                                                 \
    TARGET static void NAME(both_##name)(void *to, const void *from, const void *more, int64_t count) {                                 \
        HELD *restrict out = to;                                                                                                         \
        const HELD *restrict a = from, *restrict b = more;                                                                               \
        for (int64_t i = 0; i < count; i++) out[i] = a[i] + b[i];                                                                        \
    }                                                                                                                                    \
    TARGET static void NAME(trade_##name)(void *to, void *other, int64_t count) {                                                       \
        HELD *restrict out = to, *restrict more = other;                                                                                 \
        for (int64_t i = 0; i < count; i++) {                                                                                            \
            const HELD before = out[i];                                                                                                  \
            out[i] = before + more[i];                                                                                                   \
            more[i] = before;                                                                                                            \
        }                                                                                                                                \
    }
BOTH(f32, float)
BOTH(f64, double)
#undef BOTH
/* Unsigned, so that they wrap. */
TARGET static void NAME(add_i32)(void *to, const void *from, int64_t count, double scale) {
    uint32_t *restrict out = to;
    const uint32_t *restrict in = from;
    (void)scale;
    for (int64_t i = 0; i < count; i++) out[i] += in[i];
}
TARGET static void NAME(add_i64)(void *to, const void *from, int64_t count, double scale) {
    uint64_t *restrict out = to;
    const uint64_t *restrict in = from;
    (void)scale;
    for (int64_t i = 0; i < count; i++) out[i] += in[i];
}

TARGET static void NAME(round_bf16)(void *to, const void *from, int64_t count) {
    uint16_t *restrict out = to;
    const uint32_t *restrict in = from; /* the bits of f32 */
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = in[i], quiet = bits >> 16 | 0x40, nearest = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
        out[i] = (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? quiet : nearest);
    }
}
TARGET static void NAME(round_f16)(void *to, const void *from, int64_t count) {
    uint16_t *restrict out = to;
    const float *restrict in = from;
    for (int64_t i = 0; i < count; i++) out[i] = NAME(narrow_f16)(in[i]);
}

#define HALVES(slot) [WEFT_BF16] = NAME(slot##_bf16), [WEFT_F16] = NAME(slot##_f16)
#define WIDES(slot) \
    [WEFT_F32] = NAME(slot##_f32), [WEFT_F64] = NAME(slot##_f64), [WEFT_I32] = NAME(slot##_i32), [WEFT_I64] = NAME(slot##_i64)
static const wefti_loops NAME(loops) = {
    .take = {WIDES(take), HALVES(take)},
    .take_i32_of_i64 = NAME(take_i32_of_i64),
    .add = {WIDES(add)},
    .both = {[WEFT_F32] = NAME(both_f32), [WEFT_F64] = NAME(both_f64)},
    .trade = {[WEFT_F32] = NAME(trade_f32), [WEFT_F64] = NAME(trade_f64)},
    .begin = {WIDES(begin), HALVES(begin)},
    .more = {WIDES(more), HALVES(more)},
    .round = {HALVES(round)},
};
#undef CHOOSE
#undef HALVES
#undef WIDES

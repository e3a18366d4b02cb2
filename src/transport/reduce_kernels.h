/* The loops of the portable reducer, included by reduce.c once per instruction set: NAME(x) names the copy and TARGET is
 * its function attribute. All loops run over one block, so that the accumulator stays in the first cache. */

/* value of the reduction of a and b, by operation; MIN and MAX hand on NaN from either side */
#define SUM_OF(a, b) ((a) + (b))
#define PROD_OF(a, b) ((a) * (b))
#define MIN_OF(a, b) ((a) < (b) || (a) != (a) ? (a) : (b))
#define MAX_OF(a, b) ((a) > (b) || (a) != (a) ? (a) : (b))

#define NATIVE_LOOP(type, name, OF)                                                                                  \
    TARGET static void NAME(type##_##name)(void *dst, const void *left, const void *right, size_t count) {            \
        type       *out = dst;                                                                                       \
        const type *a = left, *b = right;                                                                            \
        for (size_t i = 0; i < count; i++) out[i] = (type)OF(a[i], b[i]);                                            \
    }
#define NATIVE_LOOPS(type)             \
    NATIVE_LOOP(type, sum, SUM_OF)     \
    NATIVE_LOOP(type, prod, PROD_OF)   \
    NATIVE_LOOP(type, min, MIN_OF)     \
    NATIVE_LOOP(type, max, MAX_OF)     \
    TARGET static void NAME(type##_divide)(void *dst, const void *unused, int32_t divisor, size_t count) { \
        (void)unused;                                                                                                \
        type *out = dst;                                                                                             \
        for (size_t i = 0; i < count; i++) out[i] = (type)(out[i] / (type)divisor);                                  \
    }

NATIVE_LOOPS(float)
NATIVE_LOOPS(double)
/* Unsigned: integer sums and products wrap, as they do on every device. */
NATIVE_LOOP(uint64_t, sum, SUM_OF)
NATIVE_LOOP(uint64_t, prod, PROD_OF)
NATIVE_LOOP(uint32_t, sum, SUM_OF)
NATIVE_LOOP(uint32_t, prod, PROD_OF)
NATIVE_LOOP(uint8_t, sum, SUM_OF)
NATIVE_LOOP(uint8_t, prod, PROD_OF)
NATIVE_LOOP(int64_t, min, MIN_OF)
NATIVE_LOOP(int64_t, max, MAX_OF)
NATIVE_LOOP(int32_t, min, MIN_OF)
NATIVE_LOOP(int32_t, max, MAX_OF)
NATIVE_LOOP(uint8_t, min, MIN_OF)
NATIVE_LOOP(uint8_t, max, MAX_OF)

TARGET static void NAME(widen_bf16)(float *out, const void *source, size_t count) {
    const uint16_t *in = source;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)in[i] << 16;
        memcpy(&out[i], &bits, sizeof bits);
    }
}
TARGET static void NAME(narrow_bf16)(void *dst, const float *in, size_t count) {
    uint16_t *out = dst;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &in[i], sizeof bits);
        uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16; /* to nearest, ties to even */
        uint32_t nan = bits >> 16 | 0x40;
        out[i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
    }
}

static const kernel_table NAME(kernels) = {
    .native = {[WEFT_F32] = {NAME(float_sum), NAME(float_prod), NAME(float_min), NAME(float_max)},
               [WEFT_F64] = {NAME(double_sum), NAME(double_prod), NAME(double_min), NAME(double_max)},
               [WEFT_I64] = {NAME(uint64_t_sum), NAME(uint64_t_prod), NAME(int64_t_min), NAME(int64_t_max)},
               [WEFT_I32] = {NAME(uint32_t_sum), NAME(uint32_t_prod), NAME(int32_t_min), NAME(int32_t_max)},
               [WEFT_U8] = {NAME(uint8_t_sum), NAME(uint8_t_prod), NAME(uint8_t_min), NAME(uint8_t_max)},
               /* 0 and 1: or is the larger, and the smaller */
               [WEFT_BOOL] = {NAME(uint8_t_max), NAME(uint8_t_min), NAME(uint8_t_min), NAME(uint8_t_max)}},
    .divide_f32 = NAME(float_divide),
    .divide_f64 = NAME(double_divide),
    .widen_bf16 = NAME(widen_bf16),
    .narrow_bf16 = NAME(narrow_bf16),
};

#undef NATIVE_LOOPS
#undef NATIVE_LOOP
#undef SUM_OF
#undef PROD_OF
#undef MIN_OF
#undef MAX_OF

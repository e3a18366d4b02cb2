/* The portable reducer for host memory.
 *
 * Two sources of a native type go through one loop. Anything else goes block by block: the first source is copied (or
 * widened to f32) into a block on the stack, the others are added from the left, and the block is divided, narrowed and
 * stored once; so dst may be any of the sources, and f16 and bf16 are rounded once. Reads each source once and writes
 * dst once; holds 8 KiB of stack.
 *
 * The loops exist twice, for the baseline and for AVX2, chosen at run time. Neither uses fused multiply-add, so both
 * give the same bits. */
#include <string.h>

#include "core/iface/collective.h"

enum { BLOCK_BYTES = 8192 };

typedef void (*binary_loop)(void *dst, const void *left, const void *right, size_t count);
typedef struct kernel_table {
    binary_loop native[WEFT_DTYPE_COUNT][4]; /* SUM, PROD, MIN, MAX */
    void (*divide_f32)(void *dst, const void *unused, int32_t divisor, size_t count);
    void (*divide_f64)(void *dst, const void *unused, int32_t divisor, size_t count);
    void (*widen_bf16)(float *out, const void *source, size_t count);
    void (*narrow_bf16)(void *dst, const float *in, size_t count);
} kernel_table;

#define WIDE_FILE "transport/reduce_kernels.h"
#define WIDE_OPTIMIZE "O3"
#include "core/base/wide.h"

static float float_of_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff, bits;
    if (exponent == 31) {
        bits = sign | 0x7f800000 | fraction << 13;
    } else if (exponent != 0) {
        bits = sign | (exponent + 112) << 23 | fraction << 13;
    } else { /* zero or subnormal: fraction · 2^-24, exact in f32 */
        float value = (float)fraction * 0x1p-24f;
        memcpy(&bits, &value, sizeof bits);
        bits |= sign;
    }
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint16_t half_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (bits >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* rounds beyond 65504 */
    if (bits < 0x38800000) { /* subnormal: adding 0.5 aligns the bits that stay, and the adder rounds to even */
        float magnitude;
        memcpy(&magnitude, &bits, sizeof magnitude);
        magnitude += 0.5f;
        memcpy(&bits, &magnitude, sizeof bits);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    bits += 0xfff + (bits >> 13 & 1);
    return (uint16_t)(sign | (bits - 0x38000000) >> 13);
}

static void widen(const kernel_table *table, weft_dtype dtype, float *out, const void *source, size_t count) {
    if (dtype == WEFT_BF16) {
        table->widen_bf16(out, source, count);
        return;
    }
    const uint16_t *in = source;
    for (size_t i = 0; i < count; i++) out[i] = float_of_half(in[i]);
}

static void narrow(const kernel_table *table, weft_dtype dtype, void *dst, const float *in, size_t count) {
    if (dtype == WEFT_BF16) {
        table->narrow_bf16(dst, in, count);
        return;
    }
    uint16_t *out = dst;
    for (size_t i = 0; i < count; i++) out[i] = half_of_float(in[i]);
}

static void divide(const kernel_table *table, weft_dtype dtype, void *dst, int32_t divisor, size_t count) {
    switch (dtype) {
    case WEFT_F32: table->divide_f32(dst, NULL, divisor, count); break;
    case WEFT_F64: table->divide_f64(dst, NULL, divisor, count); break;
    case WEFT_I64:
        for (size_t i = 0; i < count; i++) ((int64_t *)dst)[i] /= divisor;
        break;
    case WEFT_I32:
        for (size_t i = 0; i < count; i++) ((int32_t *)dst)[i] /= divisor;
        break;
    case WEFT_U8:
        for (size_t i = 0; i < count; i++) ((uint8_t *)dst)[i] = (uint8_t)(((uint8_t *)dst)[i] / divisor);
        break;
    default: break;
    }
}

/* One block of a half-width type, accumulated in f32. */
static void half_block(const kernel_table *table, void *dst, const void *const *sources, int32_t source_count,
                       size_t first, size_t count, weft_dtype dtype, int op, int32_t divisor) {
    float sum[BLOCK_BYTES / 2 / sizeof(float)], other[BLOCK_BYTES / 2 / sizeof(float)];
    widen(table, dtype, sum, (const uint16_t *)sources[0] + first, count);
    for (int32_t k = 1; k < source_count; k++) {
        widen(table, dtype, other, (const uint16_t *)sources[k] + first, count);
        table->native[WEFT_F32][op](sum, sum, other, count);
    }
    if (divisor != 1) table->divide_f32(sum, NULL, divisor, count);
    narrow(table, dtype, (uint16_t *)dst + first, sum, count);
}

/* One block of a native type. The block is summed aside, because dst may be one of the later sources. */
static void native_block(const kernel_table *table, void *dst, const void *const *sources, int32_t source_count,
                         size_t first, size_t count, weft_dtype dtype, int op, int32_t divisor) {
    _Alignas(64) uint8_t sum[BLOCK_BYTES];
    size_t      width = weft_dtype_bytes(dtype), offset = first * width;
    binary_loop loop = table->native[dtype][op];
    if (source_count == 1)
        memcpy(sum, (const char *)sources[0] + offset, count * width);
    else
        loop(sum, (const char *)sources[0] + offset, (const char *)sources[1] + offset, count);
    for (int32_t k = 2; k < source_count; k++) loop(sum, sum, (const char *)sources[k] + offset, count);
    if (divisor != 1) divide(table, dtype, sum, divisor, count);
    memcpy((char *)dst + offset, sum, count * width);
}

static weft_status host_reduce(void *context, void *dst, const void *const *sources, int32_t source_count, size_t count,
                               weft_dtype dtype, wefti_reduce_op op, int32_t divisor) {
    (void)context;
    if ((unsigned)dtype >= WEFT_DTYPE_COUNT || (unsigned)op >= WEFTI_REDUCE_OP_COUNT || source_count < 1 || divisor < 1)
        return wefti_fail(WEFT_E_INVALID, "reduce: bad dtype %d, operation %d, %d sources or divisor %d", (int)dtype,
                          (int)op, (int)source_count, (int)divisor);
    if (dtype == WEFT_BOOL && (op == WEFTI_REDUCE_AVG || divisor != 1))
        return wefti_fail(WEFT_E_DTYPE, "reduce: bool has no average");
    const kernel_table *table = WIDE_PICK(kernels);
    int                 loop = op == WEFTI_REDUCE_AVG ? WEFTI_REDUCE_SUM : (int)op;
    bool                half = dtype == WEFT_F16 || dtype == WEFT_BF16;
    if (!half && source_count == 2 && divisor == 1) {
        table->native[dtype][loop](dst, sources[0], sources[1], count);
        return WEFT_OK;
    }
    size_t block = half ? BLOCK_BYTES / 2 / sizeof(float) : BLOCK_BYTES / weft_dtype_bytes(dtype);
    for (size_t first = 0; first < count; first += block) {
        size_t part = count - first < block ? count - first : block;
        if (half)
            half_block(table, dst, sources, source_count, first, part, dtype, loop, divisor);
        else
            native_block(table, dst, sources, source_count, first, part, dtype, loop, divisor);
    }
    return WEFT_OK;
}

const wefti_reducer *wefti_reducer_host(void) {
    static const wefti_reducer reducer = {.reduce = host_reduce};
    return &reducer;
}

const char *wefti_reduce_op_name(wefti_reduce_op op) {
    static const char *const names[WEFTI_REDUCE_OP_COUNT] = {
        [WEFTI_REDUCE_SUM] = "sum", [WEFTI_REDUCE_PROD] = "prod", [WEFTI_REDUCE_MIN] = "min",
        [WEFTI_REDUCE_MAX] = "max", [WEFTI_REDUCE_AVG] = "avg"};
    return (unsigned)op < WEFTI_REDUCE_OP_COUNT ? names[op] : op == WEFTI_REDUCE_USER ? "user" : "?";
}

/* The portable reducer against plain arithmetic, over every dtype, operation, number of sources and awkward count. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "core/iface/collective.h"

enum { MOST = 3000 };

static double read_value(weft_dtype dtype, const void *array, size_t i) {
    switch (dtype) {
    case WEFT_F32: return ((const float *)array)[i];
    case WEFT_F64: return ((const double *)array)[i];
    case WEFT_I64: return (double)((const int64_t *)array)[i];
    case WEFT_I32: return ((const int32_t *)array)[i];
    case WEFT_U8:
    case WEFT_BOOL: return ((const uint8_t *)array)[i];
    case WEFT_BF16: {
        uint32_t bits = (uint32_t)((const uint16_t *)array)[i] << 16;
        float    value;
        memcpy(&value, &bits, 4);
        return value;
    }
    case WEFT_F16: {
        uint16_t half = ((const uint16_t *)array)[i];
        int      exponent = half >> 10 & 31;
        double   magnitude = exponent == 31  ? (half & 0x3ff ? NAN : INFINITY)
                             : exponent == 0 ? ldexp(half & 0x3ff, -24)
                                             : ldexp(1024 + (half & 0x3ff), exponent - 25);
        return half & 0x8000 ? -magnitude : magnitude;
    }
    default: return NAN;
    }
}

/* Small integers, so that every dtype holds them and their sums and products exactly. */
static void write_value(weft_dtype dtype, void *array, size_t i, int value) {
    switch (dtype) {
    case WEFT_F32: ((float *)array)[i] = (float)value; break;
    case WEFT_F64: ((double *)array)[i] = value; break;
    case WEFT_I64: ((int64_t *)array)[i] = value; break;
    case WEFT_I32: ((int32_t *)array)[i] = value; break;
    case WEFT_U8: ((uint8_t *)array)[i] = (uint8_t)value; break;
    case WEFT_BOOL: ((uint8_t *)array)[i] = value != 0; break;
    case WEFT_BF16: {
        float    real = (float)value;
        uint32_t bits;
        memcpy(&bits, &real, 4);
        ((uint16_t *)array)[i] = (uint16_t)(bits >> 16);
        break;
    }
    case WEFT_F16: {
        int sign = value < 0, magnitude = abs(value), exponent = 0;
        while (magnitude >> exponent > 1) exponent++;
        ((uint16_t *)array)[i] =
            magnitude == 0 ? 0
                           : (uint16_t)(sign << 15 | (exponent + 15) << 10 | ((magnitude << (10 - exponent)) & 0x3ff));
        break;
    }
    default: break;
    }
}

static double reference(weft_dtype dtype, wefti_reduce_op op, double a, double b) {
    if (dtype == WEFT_BOOL && op == WEFTI_REDUCE_SUM) return a != 0 || b != 0;
    switch (op) {
    case WEFTI_REDUCE_SUM:
    case WEFTI_REDUCE_AVG: return a + b;
    case WEFTI_REDUCE_PROD: return a * b;
    case WEFTI_REDUCE_MIN: return a < b ? a : b;
    default: return a > b ? a : b;
    }
}

static _Alignas(64) uint8_t inputs[4][MOST * 8 + 64], output[MOST * 8 + 64];

static void check(weft_dtype dtype, wefti_reduce_op op, int32_t sources, size_t count, int aliased) {
    const void *list[4];
    for (int32_t k = 0; k < sources; k++) {
        for (size_t i = 0; i < count; i++) write_value(dtype, inputs[k], i, (int)((i * 7 + (size_t)k * 3) % 5) + (k == 0));
        list[k] = inputs[k];
    }
    double want[MOST];
    int    divisor = op == WEFTI_REDUCE_AVG ? 2 : 1;
    for (size_t i = 0; i < count; i++) {
        want[i] = read_value(dtype, inputs[0], i);
        for (int32_t k = 1; k < sources; k++) want[i] = reference(dtype, op, want[i], read_value(dtype, inputs[k], i));
        want[i] /= divisor;
        if (!weft_dtype_is_float(dtype)) want[i] = trunc(want[i]);
    }
    uint8_t *dst = aliased >= 0 ? inputs[aliased] : output;
    size_t   end = count * weft_dtype_bytes(dtype);
    memset(dst + end, 0xab, 16);
    cr_assert_eq(wefti_reducer_host()->reduce(NULL, dst, list, sources, count, dtype, op, divisor), WEFT_OK);
    for (size_t i = 0; i < count; i++)
        cr_assert_eq(read_value(dtype, dst, i), want[i], "%s %s, %d sources, element %zu of %zu: %g, not %g",
                     weft_dtype_name(dtype), wefti_reduce_op_name(op), (int)sources, i, count, read_value(dtype, dst, i),
                     want[i]);
    for (int i = 0; i < 16; i++) cr_assert_eq(dst[end + (size_t)i], 0xab, "wrote past the end");
}

Test(reduce, equals_plain_arithmetic) {
    static const size_t counts[] = {0, 1, 3, 31, 64, 1000, 1025, MOST};
    for (int dtype = 0; dtype < WEFT_DTYPE_COUNT; dtype++)
        for (int op = 0; op < WEFTI_REDUCE_OP_COUNT; op++)
            for (int32_t sources = 1; sources <= 4; sources++)
                for (size_t c = 0; c < WEFTI_COUNT(counts); c++) {
                    if (dtype == WEFT_BOOL && op == WEFTI_REDUCE_AVG) continue;
                    check((weft_dtype)dtype, (wefti_reduce_op)op, sources, counts[c], -1);
                    check((weft_dtype)dtype, (wefti_reduce_op)op, sources, counts[c], sources - 1);
                    check((weft_dtype)dtype, (wefti_reduce_op)op, sources, counts[c], 0);
                }
}

Test(reduce, rounds_half_types_once) {
    /* 256 + 1 + 1 in bf16 (8 bits of precision): 258 when rounded once, 256 when rounded after each step. */
    const uint16_t big = 0x4380, one = 0x3f80;
    const void    *list[] = {&big, &one, &one};
    uint16_t       got = 0;
    cr_assert_eq(wefti_reducer_host()->reduce(NULL, &got, list, 3, 1, WEFT_BF16, WEFTI_REDUCE_SUM, 1), WEFT_OK);
    cr_assert_eq(got, 0x4381);
    /* f16: every finite value and infinity survives the way through f32. */
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        uint16_t    half = (uint16_t)bits, back = 0;
        const void *single[] = {&half};
        cr_assert_eq(wefti_reducer_host()->reduce(NULL, &back, single, 1, 1, WEFT_F16, WEFTI_REDUCE_SUM, 1), WEFT_OK);
        if ((bits & 0x7fff) > 0x7c00)
            cr_assert((back & 0x7fff) > 0x7c00, "NaN lost");
        else
            cr_assert_eq(back, half, "%#x became %#x", bits, back);
    }
    /* Ties go to even: 2049 lies between 2048 and 2050, 2051 between 2050 and 2052. */
    const uint16_t f2048 = 0x6800, f2050 = 0x6801, f1 = 0x3c00;
    const void    *tie[] = {&f2048, &f1}, *odd[] = {&f2050, &f1};
    cr_assert_eq(wefti_reducer_host()->reduce(NULL, &got, tie, 2, 1, WEFT_F16, WEFTI_REDUCE_SUM, 1), WEFT_OK);
    cr_assert_eq(got, 0x6800);
    cr_assert_eq(wefti_reducer_host()->reduce(NULL, &got, odd, 2, 1, WEFT_F16, WEFTI_REDUCE_SUM, 1), WEFT_OK);
    cr_assert_eq(got, 0x6802);
}

Test(reduce, hands_on_nan) {
    for (int op = WEFTI_REDUCE_MIN; op <= WEFTI_REDUCE_MAX; op++)
        for (int at = 0; at < 3; at++) {
            float values[3] = {1, 2, 3}, got = 0;
            values[at] = NAN;
            const void *list[] = {&values[0], &values[1], &values[2]};
            cr_assert_eq(wefti_reducer_host()->reduce(NULL, &got, list, 3, 1, WEFT_F32, (wefti_reduce_op)op, 1), WEFT_OK);
            cr_assert(isnan(got));
        }
}

Test(reduce, refuses_bad_calls) {
    uint8_t     byte = 1;
    const void *list[] = {&byte};
    const wefti_reducer *host = wefti_reducer_host();
    cr_assert_eq(host->reduce(NULL, &byte, list, 1, 1, WEFT_BOOL, WEFTI_REDUCE_AVG, 2), WEFT_E_DTYPE);
    cr_assert_eq(host->reduce(NULL, &byte, list, 0, 1, WEFT_U8, WEFTI_REDUCE_SUM, 1), WEFT_E_INVALID);
    cr_assert_eq(host->reduce(NULL, &byte, list, 1, 1, WEFT_U8, WEFTI_REDUCE_SUM, 0), WEFT_E_INVALID);
    cr_assert_eq(host->reduce(NULL, &byte, list, 1, 1, (weft_dtype)99, WEFTI_REDUCE_SUM, 1), WEFT_E_INVALID);
    cr_assert_eq(host->reduce(NULL, &byte, list, 1, 1, WEFT_U8, (wefti_reduce_op)99, 1), WEFT_E_INVALID);
}

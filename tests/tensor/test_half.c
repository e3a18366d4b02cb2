/* f16 and bf16: every one of the 65536 values, and rounding at every boundary between two of them. */
#include <criterion/criterion.h>
#include <math.h>

#include "core/tensor/half.h"

/* What a 16-bit float means, from the definition. */
static double meaning(uint16_t bits, int exponent_bits, int fraction_bits) {
    int    bias = (1 << (exponent_bits - 1)) - 1, exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1);
    double fraction = (bits & ((1 << fraction_bits) - 1)) * ldexp(1, -fraction_bits);
    double sign = bits & 0x8000 ? -1 : 1;
    if (exponent == (1 << exponent_bits) - 1) return fraction != 0 ? NAN : sign * INFINITY;
    return sign * (exponent ? ldexp(1 + fraction, exponent - bias) : ldexp(fraction, 1 - bias));
}

typedef float (*widen)(uint16_t bits);
typedef uint16_t (*narrow)(float value);

static void check_values(widen to, narrow from, int exponent_bits, int fraction_bits) {
    for (uint32_t bits = 0; bits < 65536; bits++) {
        double expected = meaning((uint16_t)bits, exponent_bits, fraction_bits), got = to((uint16_t)bits);
        if (isnan(expected)) {
            cr_assert(isnan(got) && isnan(to(from((float)got))), "%04x", bits);
            continue;
        }
        cr_assert_eq(got, expected, "%04x", bits);
        cr_assert_eq(signbit(got), signbit(expected), "%04x", bits);
        cr_assert_eq(from((float)got), bits, "%04x", bits);
    }
}

/* Between two neighbours: below the middle goes down, above it up, the middle to the even one. */
static void check_boundaries(widen to, narrow from, int exponent_bits, int fraction_bits) {
    uint32_t infinity = ((1u << exponent_bits) - 1) << fraction_bits;
    for (uint32_t bits = 0; bits < infinity; bits++) {
        double low = to((uint16_t)bits);
        double high = bits + 1 == infinity ? low + (low - to((uint16_t)(bits - 1))) : to((uint16_t)(bits + 1));
        float  middle = (float)((low + high) / 2);
        if (!isfinite(middle)) continue; /* bf16's last boundary lies beyond f32's rounding */
        cr_assert_eq(from(middle), bits + (bits & 1), "middle above %04x", bits);
        cr_assert_eq(from(nextafterf(middle, 0)), bits, "below the middle above %04x", bits);
        cr_assert_eq(from(nextafterf(middle, INFINITY)), bits + 1, "above the middle above %04x", bits);
        cr_assert_eq(from(-middle), 0x8000 | (bits + (bits & 1)), "minus the middle above %04x", bits);
    }
}

Test(half_f16, converts_every_value) { check_values(wefti_f16_to_f32, wefti_f32_to_f16, 5, 10); }
Test(half_bf16, converts_every_value) { check_values(wefti_bf16_to_f32, wefti_f32_to_bf16, 8, 7); }
Test(half_f16, rounds_to_nearest_even) { check_boundaries(wefti_f16_to_f32, wefti_f32_to_f16, 5, 10); }
Test(half_bf16, rounds_to_nearest_even) { check_boundaries(wefti_bf16_to_f32, wefti_f32_to_bf16, 8, 7); }

Test(half_f16, overflows_to_infinity) {
    cr_assert_eq(wefti_f32_to_f16(65519.996f), 0x7bff);
    cr_assert_eq(wefti_f32_to_f16(65520), 0x7c00);
    cr_assert_eq(wefti_f32_to_f16(-1e30f), 0xfc00);
    cr_assert_eq(wefti_f32_to_f16(INFINITY), 0x7c00);
    cr_assert_eq(wefti_f32_to_f16(1e-30f), 0);
    cr_assert_eq(wefti_f32_to_bf16(3.4e38f), 0x7f80);
    cr_assert_eq(wefti_f32_to_bf16(INFINITY), 0x7f80);
}

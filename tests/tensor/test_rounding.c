/* Stochastic rounding to bf16: always to a neighbour, never moving what bf16 holds, with the right mean; by Philox's words alone. */
#include <criterion/criterion.h>
#include <math.h>

#include "core/tensor/rounding.h"

enum { MANY = 1 << 16 };

static float wide(uint16_t half) { return wefti_bf16_to_f32(half); }

Test(rounding, goes_to_one_of_two_neighbours_and_keeps_what_is_exact) {
    for (uint32_t i = 0; i < 1 << 16; i++) {
        uint32_t bits = i * UINT32_C(2654435761), random = i * 40503u & 0xffffu;
        float    x = wefti_f32_from_bits(bits);
        uint16_t got = wefti_bf16_randomly(bits, random);
        if (isnan(x)) cr_assert(isnan(wide(got)));
        else if (isinf(x)) cr_assert_eq(wide(got), x);
        else cr_assert(got == bits >> 16 || got == (bits >> 16) + 1, "%a became %a", (double)x, (double)wide(got));
        cr_assert_eq(wefti_bf16_randomly(i << 16, random) & 0x7fbfu, i & 0x7fbfu, "%a was exact", (double)wide((uint16_t)i));
        if ((i & 0x7f80u) != 0x7f80u) cr_assert_eq(wefti_bf16_randomly(i << 16, random), i);
    }
}

/* Of 65536 draws of 65536 numbers exactly as many go up as the share of the way up says. */
Test(rounding, has_the_right_chance_to_the_last_bit) {
    for (uint32_t part = 0; part < 65536; part += 4369) {
        uint32_t up = 0;
        for (uint32_t random = 0; random < 65536; random++) up += wefti_bf16_randomly(0x3f800000u | part, random) != 0x3f80;
        cr_assert_eq(up, part);
    }
}

/* The mean over many steps, within four of its standard deviations, for either sign, large and small. */
Test(rounding, is_unbiased_over_steps) {
    static const float values[] = {1.001f, -1.001f, 3.14159f, 1e-20f, -7.7e19f, 1.0039f, 0.99999f};
    for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
        double   sum = 0, below = wide((uint16_t)(wefti_f32_bits(values[v]) >> 16)), unit = fabs((double)wide((uint16_t)((wefti_f32_bits(values[v]) >> 16) + 1)) - below);
        uint16_t got;
        for (uint64_t step = 1; step <= MANY; step++) {
            wefti_round_randomly(&values[v], &got, 11, 1, 5, step);
            sum += (double)wide(got) - (double)values[v];
        }
        cr_assert_leq(fabs(sum / MANY), 4 * 0.5 * unit / sqrt(MANY), "%g is off by %g units", (double)values[v], sum / MANY / unit);
    }
}

Test(rounding, does_not_depend_on_how_a_tensor_is_cut) {
    float    x[37];
    uint16_t whole[37], parts[37], other[37];
    int      differ = 0;
    for (int i = 0; i < 37; i++) x[i] = 1 + (float)i * 0.0013f;
    wefti_round_randomly(x, whole, 0, 37, 9, 4);
    for (int first = 0, n = 1; first < 37; first += n, n = first + 5 < 37 ? 5 : 37 - first) wefti_round_randomly(x + first, parts + first, first, n, 9, 4);
    wefti_round_randomly(x, other, 0, 37, 9, 5);
    for (int i = 0; i < 37; i++) {
        cr_assert_eq(whole[i], parts[i], "element %d", i);
        differ += whole[i] != other[i];
    }
    cr_assert_gt(differ, 5, "another step draws the same numbers");
}

/* Random numbers: the generator's published known answers, and what its numbers look like. */
#include <criterion/criterion.h>
#include <string.h>

#include "core/tensor/philox.h"

static void expect(wefti_philox counter, uint32_t key0, uint32_t key1, wefti_philox answer) {
    wefti_philox got = wefti_philox_rounds(counter, key0, key1);
    for (int i = 0; i < 4; i++) cr_assert_eq(got.word[i], answer.word[i], "word %d is %08x", i, got.word[i]);
}

/* The vectors for philox4x32 with 10 rounds that its authors publish with Random123. */
Test(philox, gives_the_known_answers) {
    expect((wefti_philox){{0, 0, 0, 0}}, 0, 0, (wefti_philox){{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
    expect((wefti_philox){{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}}, 0xffffffff, 0xffffffff,
           (wefti_philox){{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
    expect((wefti_philox){{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0,
           (wefti_philox){{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

static void check_moments(weft_dtype dtype, bool normal) {
    enum { N = 200000 };
    double sum = 0, squares = 0, fourths = 0, neighbours = 0, last = 0;
    for (int64_t i = 0; i < N; i++) {
        double x = normal ? wefti_random_normal(42, 7, i, dtype) : wefti_random_uniform(42, 7, i, dtype);
        if (!normal) cr_assert(x >= 0 && x < 1);
        double centred = normal ? x : x - 0.5;
        sum += centred;
        squares += centred * centred;
        fourths += centred * centred * centred * centred;
        neighbours += centred * last;
        last = centred;
    }
    /* Five standard errors of each mean; bf16's uniform numbers lie on a grid of 1/256, half a step low. */
    double variance = normal ? 1 : 1.0 / 12, fourth = normal ? 3 : 1.0 / 80;
    double bias = normal ? 0 : dtype == WEFT_BF16 ? 0.5 / 256 : dtype == WEFT_F16 ? 0.5 / 2048 : 0;
    cr_assert_float_eq(sum / N, -bias, 5 * sqrt(variance / N));
    cr_assert_float_eq(squares / N, variance + bias * bias, 5 * sqrt((fourth - variance * variance) / N) + 1e-5);
    cr_assert_float_eq(neighbours / N, bias * bias, 5 * variance / sqrt(N));
    if (normal) cr_assert_float_eq(fourths / N, 3, 5 * sqrt(96.0 / N));
}

Test(philox, uniform_numbers_have_the_right_moments) {
    check_moments(WEFT_F32, false);
    check_moments(WEFT_F64, false);
    check_moments(WEFT_F16, false);
    check_moments(WEFT_BF16, false);
}
Test(philox, normal_numbers_have_the_right_moments) {
    check_moments(WEFT_F32, true);
    check_moments(WEFT_F64, true);
}

Test(philox, streams_differ_by_key_and_step) {
    int same = 0;
    for (int64_t i = 0; i < 1000; i++) {
        float x = wefti_uniform(1, 1, i);
        same += x == wefti_uniform(2, 1, i);
        same += x == wefti_uniform(1, 2, i);
        same += x == wefti_uniform(1, 1, i + 1000);
        same += x == wefti_uniform(UINT64_C(1) << 32 | 1, 1, i);
    }
    cr_assert_leq(same, 3);
}

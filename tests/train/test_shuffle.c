/* The shuffle is a bijection, differs by seed and epoch, and favours no order. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "train/shuffle.h"

Test(shuffle, visits_every_row_once) {
    const uint64_t sizes[] = {1, 2, 3, 5, 16, 17, 63, 64, 65, 1000, 4096, 4097, 60000, 262145};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint8_t      *seen = calloc(sizes[i], 1);
        wefti_shuffle shuffle = wefti_shuffle_of(sizes[i], 7, i);
        for (uint64_t place = 0; place < sizes[i]; place++) {
            uint64_t row = wefti_shuffle_at(&shuffle, place);
            cr_assert_lt(row, sizes[i]);
            cr_assert_eq(seen[row]++, 0, "row %llu of %llu twice", (unsigned long long)row, (unsigned long long)sizes[i]);
        }
        free(seen);
    }
}

Test(shuffle, works_for_huge_data_sets) {
    wefti_shuffle shuffle = wefti_shuffle_of(UINT64_C(1) << 61, 1, 1);
    uint64_t      a = wefti_shuffle_at(&shuffle, 0), b = wefti_shuffle_at(&shuffle, (UINT64_C(1) << 61) - 1);
    cr_assert_lt(a, UINT64_C(1) << 61);
    cr_assert_lt(b, UINT64_C(1) << 61);
    cr_assert_neq(a, b);
}

Test(shuffle, differs_by_seed_and_by_epoch) {
    wefti_shuffle base = wefti_shuffle_of(10000, 1, 0), seed = wefti_shuffle_of(10000, 2, 0),
                  epoch = wefti_shuffle_of(10000, 1, 1), again = wefti_shuffle_of(10000, 1, 0);
    int same_seed = 0, same_epoch = 0;
    for (uint64_t place = 0; place < 10000; place++) {
        uint64_t row = wefti_shuffle_at(&base, place);
        cr_assert_eq(row, wefti_shuffle_at(&again, place));
        same_seed += row == wefti_shuffle_at(&seed, place);
        same_epoch += row == wefti_shuffle_at(&epoch, place);
    }
    /* Two random orders agree in one place on average, with variance 1. */
    cr_assert_lt(same_seed, 10);
    cr_assert_lt(same_epoch, 10);
}

/* Pearson's statistic of `cells` counts around `expected`. */
static double pearson(const int *count, int cells, double expected) {
    double sum = 0;
    for (int i = 0; i < cells; i++) sum += (count[i] - expected) * (count[i] - expected) / expected;
    return sum;
}

Test(shuffle, reaches_every_order_of_four_rows_alike) {
    int count[24] = {0};
    enum { trials = 24000 };
    for (uint64_t epoch = 0; epoch < trials; epoch++) {
        wefti_shuffle shuffle = wefti_shuffle_of(4, 99, epoch);
        int           row[4], code = 0;
        for (uint64_t place = 0; place < 4; place++) row[place] = (int)wefti_shuffle_at(&shuffle, place);
        for (int i = 0; i < 4; i++) {
            int smaller = 0;
            for (int k = i + 1; k < 4; k++) smaller += row[k] < row[i];
            code = code * (4 - i) + smaller;
        }
        count[code]++;
    }
    /* 23 degrees of freedom: above 49.7 with probability 0.001. */
    double statistic = pearson(count, 24, trials / 24.0);
    cr_assert_lt(statistic, 49.7, "chi-square %g", statistic);
}

Test(shuffle, spreads_neighbours_over_the_whole_range) {
    enum { rows = 60000, trials = 400, cells = 16 };
    int count[cells * cells] = {0};
    for (uint64_t epoch = 0; epoch < trials; epoch++) {
        wefti_shuffle shuffle = wefti_shuffle_of(rows, 5, epoch);
        for (uint64_t place = 0; place < 64; place++) {
            uint64_t a = wefti_shuffle_at(&shuffle, place) * cells / rows;
            uint64_t b = wefti_shuffle_at(&shuffle, place + 1) * cells / rows;
            count[a * cells + b]++;
        }
    }
    /* 255 degrees of freedom; overlapping pairs widen it a little: the mean is 255 and the deviation about 23. */
    double statistic = pearson(count, cells * cells, trials * 64.0 / (cells * cells));
    cr_assert(statistic > 160 && statistic < 360, "chi-square %g", statistic);
}

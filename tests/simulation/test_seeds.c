/* Worlds by seed: calls of every kind in a row and several at once, while messages are held up, overtake each other and are lost, and
 * one rank stops, dies or falls silent. Whatever happens, every living rank has right results or the one verdict, in time.
 *
 *   WEFT_SIM_SEED=17 build/bin/simulation_test_seeds --filter seeds/end_well_or_with_one_verdict
 *
 * runs that seed alone and prints its history. */
#include <criterion/criterion.h>

#include "common/effort.h"
#include "seeds.h"

enum { SEEDS = UNDER_ADDRESS_SANITIZER ? 200 : 1000 };

Test(seeds, end_well_or_with_one_verdict) { seeds_run(1, SEEDS, 0); }

Test(seeds, of_many_ranks) {
    for (int32_t i = 1; i <= (UNDER_ADDRESS_SANITIZER ? 1 : 4); i++) seeds_run((uint64_t)i, 1, 48 + i * 5);
}

Test(seeds, give_the_same_history_again) {
    uint64_t hashes[2][12];
    int different = 0;
    char words[1000];
    for (int run = 0; run < 2; run++)
        for (uint64_t seed = 1; seed <= 12; seed++) cr_assert_null(seeds_try(seed, 0, NULL, words, sizeof words, &hashes[run][seed - 1]), "%s", words);
    for (int i = 0; i < 12; i++) {
        cr_expect_eq(hashes[0][i], hashes[1][i], "seed %d has two histories", i + 1);
        different += i > 0 && hashes[0][i] != hashes[0][i - 1];
    }
    cr_expect_eq(different, 11, "seeds give the same history");
}

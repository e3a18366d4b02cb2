/* As test_server.c, through the night. */
#include <criterion/criterion.h>

#include "common/effort.h"
#include "servers.h"

static void run_seeds(void (*make)(story *of, uint64_t seed), uint64_t first, uint64_t last, const char *test) {
    static story of;
    char         words[1600];
    int          wrong = 0;
    for (uint64_t seed = first; seed < last && wrong < 5; seed++) {
        make(&of, seed);
        const char *what = story_run(&of, NULL, words, sizeof words);
        wrong += what != NULL;
        cr_expect_null(what, "seed %llu: %s\nThis history again, event by event: WEFT_SIM_SEED=%llu %s/simulation_test_server --filter server/%s",
                       (unsigned long long)seed, what, (unsigned long long)seed, WEFT_BIN_DIR, test);
        story_free_models(&of);
    }
}
Test(server_nightly, seeds) { run_seeds(story_make, 100000, UNDER_ADDRESS_SANITIZER ? 102000 : 120000, "seeds"); }
Test(server_nightly, seeds_of_entries) { run_seeds(story_make_entries, 200000, UNDER_ADDRESS_SANITIZER ? 201000 : 210000, "seeds_of_entries"); }

/* As test_server.c, through the night. */
#include <criterion/criterion.h>

#include "common/effort.h"
#include "servers.h"

Test(server_nightly, seeds) {
    static story of;
    char         words[1600];
    int          wrong = 0;
    for (uint64_t seed = 100000; seed < (UNDER_ADDRESS_SANITIZER ? 102000 : 120000) && wrong < 5; seed++) {
        story_make(&of, seed);
        const char *what = story_run(&of, NULL, words, sizeof words);
        wrong += what != NULL;
        cr_expect_null(what, "seed %llu: %s\nThis history again, event by event: WEFT_SIM_SEED=%llu %s/simulation_test_server --filter server/seeds",
                       (unsigned long long)seed, what, (unsigned long long)seed, WEFT_BIN_DIR);
        story_free_models(&of);
    }
}

/* Parameter servers by seed: dense and sparse tables, every staleness, servers beside workers and apart, while messages are held up, overtake
 * each other and are lost, requests come twice, and one rank dies, stops or falls silent at any message. See servers.h for what is checked.
 *
 *   WEFT_SIM_SEED=17 build/bin/simulation_test_server --filter server/seeds
 *
 * runs that seed alone and prints its history. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/effort.h"
#include "servers.h"

enum { SEEDS = UNDER_ADDRESS_SANITIZER ? 60 : 300 };

static void print_line(void *context, const char *line) {
    (void)context;
    puts(line);
}

static void run_seeds(void (*make)(story *of, uint64_t seed), const char *test) {
    static story of;
    const char  *one = getenv("WEFT_SIM_SEED"), *many = getenv("WEFT_SIM_SEEDS");
    char         words[1600];
    uint64_t     first = one ? strtoull(one, NULL, 0) : 1, last = one ? first : many ? strtoull(many, NULL, 0) : SEEDS, repeated = 0;
    int          wrong = 0, struck = 0;
    for (uint64_t seed = first; seed <= last && wrong < 5; seed++) {
        make(&of, seed);
        const char *what = story_run(&of, one ? print_line : NULL, words, sizeof words);
        wrong += what != NULL;
        struck += of.strikes;
        repeated += of.repeated;
        cr_expect_null(what, "seed %llu: %s\nThis history again, event by event: WEFT_SIM_SEED=%llu %s/simulation_test_server --filter server/%s",
                       (unsigned long long)seed, what, (unsigned long long)seed, WEFT_BIN_DIR, test);
        story_free_models(&of);
    }
    if (one || wrong) return;
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_expect_eq(counts.held_bytes, 0, "%llu bytes are left behind", (unsigned long long)counts.held_bytes);
    cr_expect_gt(repeated, last, "only %llu requests came twice", (unsigned long long)repeated);
    cr_expect_gt(struck, (int)last / 2, "only %d faults", struck);
}

Test(server, seeds) { run_seeds(story_make, "seeds"); }
/* Whatever dies, all workers that live end well, and nothing that was acknowledged is lost. */
Test(server, seeds_with_replicas) { run_seeds(story_make_replicated, "seeds_with_replicas"); }

/* Both again, by entries of rows and of rows that are hashes. */
Test(server, seeds_of_entries) { run_seeds(story_make_entries, "seeds_of_entries"); }

/* A rank that serves and is cut off: the others are told of it, and it ends as well. */
Test(server, servers_that_are_cut_off_end) {
    enum { ENOUGH = UNDER_ADDRESS_SANITIZER ? 8 : 20 };
    static const uint64_t known[] = {100598, 100656, 100760, 101010};
    static story          of;
    char                  words[1600];
    int                   apart = 0, beside = 0;
    for (uint64_t i = 0; i < 4000 && (apart < ENOUGH || beside < ENOUGH); i++) {
        uint64_t seed = i < WEFTI_COUNT(known) ? known[i] : i + 1000;
        story_make(&of, seed);
        bool cut = of.strikes && of.fault.act == WEFTI_SIM_CUT && of.fault.rank >= of.first_server;
        int *count = of.roles.dedicated ? &apart : &beside;
        if (cut && *count < ENOUGH) {
            const char *what = story_run(&of, NULL, words, sizeof words);
            cr_expect_null(what, "seed %llu: %s", (unsigned long long)seed, what);
            ++*count;
        }
        story_free_models(&of);
    }
    cr_expect(apart == ENOUGH && beside == ENOUGH, "%d and %d were cut off", apart, beside);
}

Test(server, the_same_history_again) {
    static story of;
    uint64_t     hashes[2][20];
    char         words[1600];
    for (int run = 0; run < 2; run++)
        for (uint64_t seed = 1; seed <= 20; seed++) {
            story_make(&of, seed);
            cr_expect_null(story_run(&of, NULL, words, sizeof words), "seed %llu: %s", (unsigned long long)seed, words);
            hashes[run][seed - 1] = of.hash;
            story_free_models(&of);
        }
    for (int i = 0; i < 20; i++) {
        cr_expect_eq(hashes[0][i], hashes[1][i], "seed %d has two histories", i + 1);
        if (i) cr_expect_neq(hashes[0][i], hashes[0][i - 1], "seeds %d and %d have one", i, i + 1);
    }
}

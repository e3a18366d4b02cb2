/* A rank of a parameter server dies at every message that it sends in a short run: just before its first, its second, … Worker or server, the
 * others end in time, and rows tell that what it pushed whole counts, and nothing of what it did not. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "common/effort.h"
#include "servers.h"

enum { EVERY = UNDER_ADDRESS_SANITIZER ? 5 : 1 };

static bool replicated;

static void begin(story *of, uint64_t seed, int32_t workers, int32_t servers, bool dedicated) {
    *of = (story){.seed = seed, .random = seed, .workers = workers, .servers = servers, .clocks = 3, .repeats = true,
                  .size = dedicated ? workers + servers : workers,
                  .roles = {.servers = servers, .dedicated = dedicated, .replicas = replicated, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS}};
    of->first_server = of->size - servers;
    of->options = (wefti_sim_options){.seed = seed, .size = of->size, .jitter_ns = 5000, .limit_ns = 200 * WEFTI_SECOND_NS, .most_bytes = 5000};
}

/* Gives how many deaths there were. */
static int die(story *of, wefti_sim_act act) {
    char     words[1600];
    uint64_t sent[STORY_RANKS];
    int      deaths = 0;
    const char *what = story_run(of, NULL, words, sizeof words);
    cr_expect_null(what, "%s", what);
    for (int32_t rank = 0; rank < of->size; rank++) sent[rank] = of->sent[rank];
    of->strikes = true;
    for (int32_t rank = 0; rank < of->size && !what; rank++) {
        if (act == WEFTI_SIM_CUT && rank >= of->workers) continue; /* no world could tell it which workers are there */
        story_free_models(of); /* they are of one victim */
        for (uint64_t message = 1; message <= sent[rank] && !what; message++) {
            if ((message + (uint64_t)rank) % EVERY) continue;
            of->fault = (wefti_sim_fault){.act = act, .rank = rank, .message = message};
            what = story_run(of, NULL, words, sizeof words);
            cr_expect_null(what, "%s", what);
            deaths++;
        }
    }
    story_free_models(of);
    return deaths;
}

static void die_in(int32_t workers, int32_t servers, bool dedicated, wefti_sim_act act, int32_t only) {
    static story         of;
    static const int32_t stalenesses[] = {0, 1, WEFT_TABLE_ASYNCHRONOUS};
    int                  deaths = 0, runs = 0;
    for (uint64_t seed = 1; seed <= 6; seed++) {
        int32_t staleness = stalenesses[seed % 3];
        if (only >= 0 && (int32_t)seed != only) continue;
        begin(&of, seed, workers, servers, dedicated);
        /* Bodies of several messages, some of which stay the sender's until they are taken. */
        story_add_table(&of, (weft_table_options){.dtype = seed % 2 ? WEFT_F32 : WEFT_I64, .staleness = staleness, .sparse = seed > 3}, 40, seed % 2 ? 150 : 20);
        if (seed == 2) of.options.most_bytes = 70000;
        deaths += die(&of, act);
        runs++;
    }
    cr_expect(deaths * EVERY >= 30 * runs, "only %d deaths", deaths);
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_expect_eq(counts.held_bytes, 0, "%llu bytes are left behind", (unsigned long long)counts.held_bytes);
}

Test(server_deaths, of_2_workers_and_1_server) { die_in(2, 1, true, WEFTI_SIM_KILL, -1); }
Test(server_deaths, of_3_workers_and_2_servers) { die_in(3, 2, true, WEFTI_SIM_KILL, -1); }
Test(server_deaths, of_3_that_are_both) { die_in(3, 3, false, WEFTI_SIM_KILL, -1); }
Test(server_deaths, of_2_workers_and_2_servers_with_replicas) {
    replicated = true;
    die_in(2, 2, true, WEFTI_SIM_KILL, -1);
}
Test(server_deaths, falling_silent) { die_in(2, 2, true, WEFTI_SIM_CUT, 3); }
Test(server_deaths, stopping) { die_in(3, 1, true, WEFTI_SIM_STOP, 1); }

/* Several ranks find different faults at the same time, while much of what the control channel carries comes late: one verdict for all. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "common/effort.h"
#include "world.h"

static weft_status find_faults(sim_rank *self) {
    const wefti_host *host = self->transport->host;
    char cause[64];
    uint64_t random = 0;
    WEFTI_TRY(host->random(host->context, &random, sizeof random));
    host->sleep(host->context, random % (3 * WEFTI_MILLISECOND_NS));
    snprintf(cause, sizeof cause, "rank %d found it", (int)self->rank);
    if (self->rank % 3 != 1) wefti_fault_raise(self->transport->fault, WEFT_E_PEER, self->rank, cause);
    if (self->rank % 3 == 1) wefti_fault_suspect(self->transport->fault, self->rank - 1, cause);
    weft_status status;
    while ((status = wefti_fault_status(self->transport->fault)) == WEFT_OK) host->sleep(host->context, WEFTI_MILLISECOND_NS);
    return status;
}

/* Gives whose fault it was in the end. */
static int32_t try_seed(uint64_t seed, int32_t size) {
    const wefti_sim_options options = {.seed = seed, .size = size, .jitter_ns = 500000, .lost_control = 200000,
                                       .again_ns = 400 * WEFTI_MILLISECOND_NS, .limit_ns = 60 * WEFTI_SECOND_NS};
    sim_world world = {.function = find_faults, .timeout_ns = 10 * WEFTI_SECOND_NS};
    sim_world_run(&world, &options, NULL);
    int32_t blamed = world.ranks[0].fault_rank;
    char words[700];
    const char *wrong = sim_world_judge(&world, blamed, true, words, sizeof words);
    cr_expect_null(wrong, "seed %llu, %d ranks: %s", (unsigned long long)seed, (int)size, wrong);
    if (!wrong) sim_world_free(&world);
    return blamed;
}

Test(verdicts, are_one_where_many_are_found) {
    int blamed[9] = {0}, ranks = 0;
    for (uint64_t seed = 1; seed <= (UNDER_ADDRESS_SANITIZER ? 40 : 400); seed++) {
        int32_t rank = try_seed(seed, 2 + (int32_t)(seed % 8));
        if (rank < 0 || rank >= 9) return;
        blamed[rank]++;
    }
    for (int rank = 0; rank < 9; rank++) ranks += blamed[rank] > 0;
    cr_expect_geq(ranks, 3, "only %d ranks were blamed: nobody but they ever came first", ranks);
}

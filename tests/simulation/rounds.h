/* What ranks do in simulated worlds that lose and gain members: they add up, round by round, who is there. */
#ifndef WEFT_TESTS_SIMULATION_ROUNDS_H
#define WEFT_TESTS_SIMULATION_ROUNDS_H

#include "world.h"

/* A world as one of its ranks saw it. */
typedef struct sim_view {
    uint32_t seats; /* a bit for each member, as the sums say */
    int32_t  size, rounds;
} sim_view;

/* Opens the rank's group, and takes rounds, with a pause after each, until rank 0 says that it was the last, as it does after `end_ns`.
 * WEFT_E_INTERNAL where the sums are not those of the members. */
weft_status sim_run_rounds(sim_rank *self, const uint64_t *end_ns, uint64_t pause_ns, sim_view *seen);

/* xorshift64* */
uint64_t sim_draw(uint64_t *random, uint64_t below);

#endif

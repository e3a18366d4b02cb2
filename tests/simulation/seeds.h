/* Worlds by seed. */
#ifndef WEFT_TESTS_SIMULATION_SEEDS_H
#define WEFT_TESTS_SIMULATION_SEEDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Runs one seed with `size` ranks (0: as the seed says); gives what is wrong, or NULL. `trace` hears of every event; may be NULL. */
const char *seeds_try(uint64_t seed, int32_t size, void (*trace)(void *context, const char *line), char *words_out, size_t words_bytes,
                      uint64_t *hash_out);
/* Runs `count` seeds from `first` on with `size` ranks (0: as each says), and asserts; what fails is given with the command that
 * replays it. With WEFT_SIM_SEED in the environment, and WEFT_SIM_RANKS where it was so printed, runs that one and prints its events. */
void seeds_run(uint64_t first, int count, int32_t size);

#endif

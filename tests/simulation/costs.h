/* The choice among algorithms, held against the time that each of them takes in a simulated world. */
#ifndef WEFT_TESTS_SIMULATION_COSTS_H
#define WEFT_TESTS_SIMULATION_COSTS_H

#include <stdbool.h>
#include <stddef.h>

/* 64 ranks, each on its own host, or eight on each of eight. For each kind, whole buffers of `least` bytes, and on by the factor `step` up
 * to `most`: what is chosen takes at most 1.3 times as long as the quickest. WEFT_SIM_COSTS=1 has it print all times. */
void costs_run(bool by_eights, size_t least, size_t most, size_t step);

#endif

/* The choice among algorithms, held against the time that each of them takes in a simulated world. */
#ifndef WEFT_TESTS_SIMULATION_COSTS_H
#define WEFT_TESTS_SIMULATION_COSTS_H

#include <stddef.h>
#include <stdint.h>

/* Up to 64 ranks, `here` of them on each host. For each kind, whole buffers of `least` bytes, and on by the factor `step` up
 * to `most`: what is chosen takes at most 1.3 times as long as the quickest, and half to twice its estimate. WEFT_SIM_COSTS=1 has it print
 * all times. */
void costs_run(int32_t ranks, int32_t here, size_t least, size_t most, size_t step);

#endif

/* Random numbers from a seed and the names of what they are for, so that they do not depend on who draws them, or in which order. */
#ifndef SAMPLES_RANDOM_H
#define SAMPLES_RANDOM_H

#include <stdint.h>

static inline uint64_t next_random(uint64_t *state) { /* SplitMix64 (Steele et al. 2014) */
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}
static inline double next_uniform(uint64_t *state) { return (double)(next_random(state) >> 11) * 0x1p-53; }

/* Where the stream of (seed, first, second) begins. */
static inline uint64_t random_stream(int64_t seed, int64_t first, int64_t second) {
    uint64_t state = (uint64_t)seed * UINT64_C(0xd1342543de82ef95) + (uint64_t)first;
    state = next_random(&state) + (uint64_t)second;
    return next_random(&state);
}

#endif

/* Stochastic rounding of f32 to bf16: up or down with the probabilities that make the mean right, so that what is added up in bf16 by small steps gets there
 * on the average, where rounding to nearest would stand still (Gupta et al. 2015, "Deep learning with limited numerical precision"). By 16 random bits an
 * element, the upper ones of word i % 4 of Philox's block i / 4 of (key, step): a function of these alone, so that machines, threads and runs agree. */
#ifndef WEFTI_ROUNDING_H
#define WEFTI_ROUNDING_H

#include "core/tensor/half.h"
#include "core/tensor/philox.h"

/* The upper half of `bits`, those of an f32, after `random` (16 bits) has been added to the lower: that carries with the probability of what is cut off.
 * What is not finite stays so. */
static inline uint16_t wefti_bf16_randomly(uint32_t bits, uint32_t random) {
    if ((bits & 0x7f800000u) == 0x7f800000u) return (uint16_t)(bits >> 16 | ((bits & 0x7fffffu) ? 0x40 : 0));
    return (uint16_t)((bits + random) >> 16);
}

/* Elements [first, first + count) of a tensor. */
static inline void wefti_round_randomly(const float *from, uint16_t *to, int64_t first, int64_t count, uint64_t key, uint64_t step) {
    for (int64_t i = 0; i < count;) {
        wefti_philox block = wefti_philox_block(key, step, (uint64_t)(first + i) / 4);
        for (uint64_t k = (uint64_t)(first + i) % 4; k < 4 && i < count; k++, i++) to[i] = wefti_bf16_randomly(wefti_f32_bits(from[i]), block.word[k] >> 16);
    }
}

#endif

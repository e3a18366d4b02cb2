/* Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2,
 * 3", SC 2011). Element i of stream (key, step) is a pure function of the three, so that any split over threads, ranks
 * or devices draws the same numbers.
 *
 * Which word element i gets: f32, f16 and bf16 draw word i % 4 of block i / 4; f64 draws words 2*(i % 2) and 2*(i % 2)
 * + 1 of block i / 2. Normal numbers are Box-Muller pairs over elements 2j and 2j + 1 of the same words. Block b of
 * (key, step) is Philox of counter {low b, high b, low step, high step} and key {low key, high key}. */
#ifndef WEFTI_PHILOX_H
#define WEFTI_PHILOX_H

#include <math.h>
#include <stdint.h>

#include "weft/dtype.h"

typedef struct wefti_philox { uint32_t word[4]; } wefti_philox;

static inline wefti_philox wefti_philox_rounds(wefti_philox counter, uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; round++) {
        uint64_t a = UINT64_C(0xD2511F53) * counter.word[0], b = UINT64_C(0xCD9E8D57) * counter.word[2];
        counter = (wefti_philox){{(uint32_t)(b >> 32) ^ counter.word[1] ^ key0, (uint32_t)b,
                                  (uint32_t)(a >> 32) ^ counter.word[3] ^ key1, (uint32_t)a}};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

/* Block `block` of stream (key, step). */
static inline wefti_philox wefti_philox_block(uint64_t key, uint64_t step, uint64_t block) {
    wefti_philox counter = {{(uint32_t)block, (uint32_t)(block >> 32), (uint32_t)step, (uint32_t)(step >> 32)}};
    return wefti_philox_rounds(counter, (uint32_t)key, (uint32_t)(key >> 32));
}

/* 24 bits of a word as a number in [0, 1); what DROPOUT compares with p, whatever the dtype. */
static inline float wefti_uniform_of_word(uint32_t word) { return (float)(word >> 8) * 0x1p-24f; }
static inline float wefti_uniform(uint64_t key, uint64_t step, int64_t index) {
    wefti_philox block = wefti_philox_block(key, step, (uint64_t)index / 4);
    return wefti_uniform_of_word(block.word[(uint64_t)index % 4]);
}

/* 53 bits of two words in [0, 1). */
static inline double wefti_uniform_of_words(uint32_t high, uint32_t low) {
    return (double)(((uint64_t)high << 32 | low) >> 11) * 0x1p-53;
}

/* Element `index` of a uniform tensor in [0, 1): a number that the dtype holds exactly. */
static inline double wefti_random_uniform(uint64_t key, uint64_t step, int64_t index, weft_dtype dtype) {
    uint64_t i = (uint64_t)index;
    if (dtype == WEFT_F64) {
        wefti_philox block = wefti_philox_block(key, step, i / 2);
        return wefti_uniform_of_words(block.word[2 * (i % 2)], block.word[2 * (i % 2) + 1]);
    }
    uint32_t word = wefti_philox_block(key, step, i / 4).word[i % 4];
    if (dtype == WEFT_F16) return (word >> 21) * 0x1p-11;
    if (dtype == WEFT_BF16) return (word >> 24) * 0x1p-8;
    return wefti_uniform_of_word(word);
}

/* Element `index` of a standard normal tensor, in f64, to be rounded to the dtype (Box and Muller 1958). */
static inline double wefti_random_normal(uint64_t key, uint64_t step, int64_t index, weft_dtype dtype) {
    uint64_t i = (uint64_t)index;
    double   first, second; /* first in (0, 1], so that its logarithm is finite */
    if (dtype == WEFT_F64) {
        wefti_philox block = wefti_philox_block(key, step, i / 2);
        first = 1 - wefti_uniform_of_words(block.word[0], block.word[1]);
        second = wefti_uniform_of_words(block.word[2], block.word[3]);
    } else {
        wefti_philox block = wefti_philox_block(key, step, i / 4);
        first = (block.word[i % 4 / 2 * 2] + 1.0) * 0x1p-32;
        second = block.word[i % 4 / 2 * 2 + 1] * 0x1p-32;
    }
    double radius = sqrt(-2 * log(first)), angle = 6.283185307179586476925 * second;
    return radius * (i % 2 ? sin(angle) : cos(angle));
}

#endif

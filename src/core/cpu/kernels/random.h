/* Philox4x32-10 over runs of consecutive indices, many blocks at a time; the same words as core/tensor/philox.h. */
#ifndef WEFTI_KERNELS_RANDOM_H
#define WEFTI_KERNELS_RANDOM_H

#include "core/cpu/kernels/simd.h"
#include "core/tensor/philox.h"

enum { PHILOX_BLOCKS = 16 }; /* that are computed side by side */

/* word[4*j + i]: word i of block first + j. */
static inline __attribute__((unused)) void philox_blocks(uint64_t key, uint64_t step, uint64_t first,
                                                         uint32_t word[4 * PHILOX_BLOCKS]) {
    uint32_t c0[PHILOX_BLOCKS], c1[PHILOX_BLOCKS], c2[PHILOX_BLOCKS], c3[PHILOX_BLOCKS];
    uint32_t key0 = (uint32_t)key, key1 = (uint32_t)(key >> 32);
    for (int j = 0; j < PHILOX_BLOCKS; j++) {
        c0[j] = (uint32_t)(first + (uint64_t)j);
        c1[j] = (uint32_t)((first + (uint64_t)j) >> 32);
        c2[j] = (uint32_t)step;
        c3[j] = (uint32_t)(step >> 32);
    }
    for (int round = 0; round < 10; round++) {
        for (int j = 0; j < PHILOX_BLOCKS; j++) {
            uint64_t a = UINT64_C(0xD2511F53) * c0[j], b = UINT64_C(0xCD9E8D57) * c2[j];
            c0[j] = (uint32_t)(b >> 32) ^ c1[j] ^ key0;
            c2[j] = (uint32_t)(a >> 32) ^ c3[j] ^ key1;
            c1[j] = (uint32_t)b;
            c3[j] = (uint32_t)a;
        }
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    for (int j = 0; j < PHILOX_BLOCKS; j++) {
        word[4 * j]     = c0[j];
        word[4 * j + 1] = c1[j];
        word[4 * j + 2] = c2[j];
        word[4 * j + 3] = c3[j];
    }
}

/* word[i] is that of element index + i, for i < count. */
static inline __attribute__((unused)) void philox_run(uint64_t key, uint64_t step, uint64_t index, int64_t count, uint32_t *word) {
    uint32_t some[4 * PHILOX_BLOCKS];
    while (count > 0) {
        int64_t skip = (int64_t)(index % 4), have = 4 * PHILOX_BLOCKS - skip, take = have < count ? have : count;
        philox_blocks(key, step, index / 4, some);
        memcpy(word, some + skip, (size_t)take * sizeof *word);
        word += take;
        index += (uint64_t)take;
        count -= take;
    }
}

#endif

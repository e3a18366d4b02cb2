/* A permutation of 0..n-1 that is computed place by place. */
#ifndef WEFTI_SHUFFLE_H
#define WEFTI_SHUFFLE_H

#include <stdint.h>

enum { wefti_shuffle_rounds = 8 };

typedef struct wefti_shuffle {
    uint64_t rows, key[wefti_shuffle_rounds], mask;
    int      half_bits;
} wefti_shuffle;

/* The permutation of `rows` (1 to 2^62) that belongs to a seed and an epoch. */
wefti_shuffle wefti_shuffle_of(uint64_t rows, uint64_t seed, uint64_t epoch);
/* What comes at `place`, below `rows`. */
uint64_t wefti_shuffle_at(const wefti_shuffle *shuffle, uint64_t place);

#endif

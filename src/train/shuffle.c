/* Shuffling without a table.
 *
 * Idea: a Feistel network is a bijection of 2h-bit numbers whatever its round function is; h is chosen so that 4^h is at
 * least n, and a value that falls at n or above goes through again until it falls below ("cycle walking"), which makes
 * it a bijection of 0..n-1. At least 6 bits are used: narrower halves have too few round functions to reach every order
 * of a handful of rows.
 * Cost: 8 mixes a pass, under 4 passes on average from 16 rows on; no memory.
 * Source: J. Black, P. Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002. The mix is the finaliser of
 * SplitMix64 (G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014). */
#include "train/shuffle.h"

static uint64_t mix(uint64_t value) {
    value ^= value >> 30;
    value *= 0xbf58476d1ce4e5b9u;
    value ^= value >> 27;
    value *= 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

wefti_shuffle wefti_shuffle_of(uint64_t rows, uint64_t seed, uint64_t epoch) {
    wefti_shuffle shuffle = {.rows = rows, .half_bits = 3};
    while (shuffle.half_bits < 31 && (UINT64_C(1) << 2 * shuffle.half_bits) < rows) shuffle.half_bits++;
    shuffle.mask = (UINT64_C(1) << shuffle.half_bits) - 1;
    uint64_t state = mix(seed + 0x9e3779b97f4a7c15u) ^ mix(epoch * 0xd1342543de82ef95u + 0x632be59bd9b4e019u);
    for (int round = 0; round < wefti_shuffle_rounds; round++) shuffle.key[round] = mix(state += 0x9e3779b97f4a7c15u);
    return shuffle;
}

uint64_t wefti_shuffle_at(const wefti_shuffle *shuffle, uint64_t place) {
    do {
        uint64_t left = place >> shuffle->half_bits, right = place & shuffle->mask;
        for (int round = 0; round < wefti_shuffle_rounds; round++) {
            uint64_t next = left ^ (mix(right + shuffle->key[round]) & shuffle->mask);
            left = right;
            right = next;
        }
        place = left << shuffle->half_bits | right;
    } while (place >= shuffle->rows);
    return place;
}

/* Counts of words by topic in a hybrid table: words by Zipf's law (the r-th as often as 1/r), the topic of each token at random, which is the case
 * with the most entries a word. Every row that is read must be the one that was counted, a sixth of dense memory be enough, and no more
 * be held than the formula's and a tenth. */
#ifndef WEFT_TESTS_SERVER_WORDS_H
#define WEFT_TESTS_SERVER_WORDS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "parallel/server/hybrid.h"
#include "serving.h"

static inline uint64_t words_next(uint64_t *state) { /* xorshift */
    *state ^= *state << 13, *state ^= *state >> 7;
    return *state ^= *state << 17;
}

static inline uint64_t words_resident_bytes(void) {
    unsigned long long all, resident = 0;
    FILE              *file = fopen("/proc/self/statm", "r");
    if (file && fscanf(file, "%llu %llu", &all, &resident) != 2) resident = 0;
    if (file) fclose(file);
    return (uint64_t)resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static inline weft_status count_words(serving *self, uint32_t words, uint32_t topics, int64_t tokens) {
    const wefti_hybrid_shape shape = {topics, WEFT_I32};
    weft_table        *table = NULL;
    weft_server_counts counts;
    uint64_t           random = 88172645463325252u, formula = 0, before, resident, dense = (uint64_t)words * topics * sizeof(int32_t);
    double             harmonic = 0;
    int32_t           *row = malloc(topics * sizeof *row), *got = malloc(topics * sizeof *got);
    before = words_resident_bytes();
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "words", .rows = words, .width = topics, .dtype = WEFT_I32, .hybrid = true,
                                                                    .staleness = WEFT_TABLE_ASYNCHRONOUS}, &table));
    for (uint32_t r = 1; r <= words; r++) harmonic += 1.0 / r;
    for (uint64_t key = 0; key < words; key++) {
        int64_t  of_word = (int64_t)((double)tokens / harmonic / (double)(key + 1) + 0.5);
        uint32_t entries = 0;
        memset(row, 0, topics * sizeof *row);
        for (int64_t i = 0; i < of_word; i++) row[(words_next(&random) >> 32) * topics >> 32]++;
        for (uint32_t k = 0; k < topics; k++) entries += row[k] != 0;
        formula += wefti_hybrid_formula(&shape, entries) + sizeof(wefti_hybrid_row);
        WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, &key, 1, row, NULL));
        WEFTI_TRY(weft_table_call_rows(table, WEFT_PULL, &key, 1, NULL, got));
        EXPECT(memcmp(row, got, topics * sizeof *row) == 0, "word %llu", (unsigned long long)key);
    }
    weft_server_count(self->server, &counts);
    resident = words_resident_bytes() - before;
    fprintf(stderr, "%u words, %u topics, %lld tokens: %llu bytes are held (%llu resident more than before), by the formula %llu, dense %llu (%.2f times)\n",
            words, topics, (long long)tokens, (unsigned long long)counts.held_bytes, (unsigned long long)resident, (unsigned long long)formula,
            (unsigned long long)dense, (double)dense / (double)counts.held_bytes);
    EXPECT((double)counts.held_bytes <= 1.1 * (double)formula, "%llu bytes, %llu by the formula", (unsigned long long)counts.held_bytes,
           (unsigned long long)formula);
    EXPECT(6 * counts.held_bytes <= dense, "%llu bytes, %llu dense", (unsigned long long)counts.held_bytes, (unsigned long long)dense);
    weft_table_release(table);
    free(row), free(got);
    return WEFT_OK;
}

#endif

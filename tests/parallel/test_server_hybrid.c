/* Rows of hybrid tables: the values of dense ones after any additions, the bytes of the formula, dense at its crossing, nothing changed by an
 * allocation that fails, and a sixth of dense memory at most on counts that are distributed as words are. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/server/hybrid.h"
#include "weft/memory.h"

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s: %s", #call, weft_error_message())

static uint64_t held(void) {
    weft_memory_counts counts;
    weft_memory_read(&counts);
    return counts.held_bytes;
}

static uint64_t next(uint64_t *state) { /* xorshift */
    *state ^= *state << 13, *state ^= *state >> 7;
    return *state ^= *state << 17;
}

/* --- the same as dense --- */

typedef union cell { int32_t i32; int64_t i64; float f32; double f64; } cell;
static cell update_of(weft_dtype dtype, uint64_t random) {
    int64_t small = (int64_t)(random % 5) - 2; /* often zero, and often what takes a value back to zero */
    if (random >> 60 == 0) small = (int64_t)random;
    switch (dtype) {
    case WEFT_I32: return (cell){.i32 = (int32_t)small};
    case WEFT_I64: return (cell){.i64 = small};
    case WEFT_F64: return (cell){.f64 = random >> 59 == 9 ? -0.0 : (double)small / 3};
    default: return (cell){.f32 = random >> 59 == 9 ? -0.0f : (float)small / 3};
    }
}
static void dense_add(weft_dtype dtype, cell *row, uint32_t column, cell update) {
    switch (dtype) {
    case WEFT_I32: row[column].i32 = (int32_t)((uint32_t)row[column].i32 + (uint32_t)update.i32); break;
    case WEFT_I64: row[column].i64 = (int64_t)((uint64_t)row[column].i64 + (uint64_t)update.i64); break;
    case WEFT_F64: row[column].f64 += update.f64; break;
    default: row[column].f32 += update.f32;
    }
}

static void compare(const wefti_hybrid_shape *shape, const wefti_hybrid_row *row, const cell *dense, uint64_t seed) {
    const size_t element = weft_dtype_bytes(shape->dtype);
    uint8_t     *values = malloc(shape->width * element);
    wefti_hybrid_read(shape, row, values);
    for (uint32_t i = 0; i < shape->width; i++)
        cr_assert_eq(memcmp(values + i * element, &dense[i], element), 0, "seed %llu, column %u of %u", (unsigned long long)seed, i, shape->width);
    free(values);
}

Test(server_hybrid, any_additions_give_the_bits_of_a_dense_row) {
    static const weft_dtype dtypes[] = {WEFT_I32, WEFT_I64, WEFT_F32, WEFT_F64};
    static const uint32_t   widths[] = {1, 2, 7, 100, 1000, 65535, 65536, 100000};
    const uint64_t          before = held();
    for (uint64_t seed = 1; seed <= 96; seed++) {
        wefti_hybrid_shape shape = {widths[seed % 8], dtypes[seed / 8 % 4]};
        wefti_hybrid_row   row = {0};
        cell              *dense = calloc(shape.width, sizeof *dense);
        uint64_t           random = seed * UINT64_C(0x9e3779b97f4a7c15);
        uint32_t           columns = seed % 3 ? shape.width : (shape.width + 9) / 10; /* every third stays a hash */
        uint32_t           count = shape.width < 1000 ? 3000 : 30000, most = 0, nonzero = 0;
        for (uint32_t i = 0; i < count; i++) {
            uint32_t column = i % 50 == 0 ? shape.width - 1 : (uint32_t)(next(&random) % columns);
            cell     update = update_of(shape.dtype, next(&random)), zero = {.i64 = 0};
            size_t   element = weft_dtype_bytes(shape.dtype);
            nonzero -= memcmp(&dense[column], &zero, element) != 0;
            dense_add(shape.dtype, dense, column, update);
            nonzero += memcmp(&dense[column], &zero, element) != 0;
            if (nonzero > most) most = nonzero;
            OK(wefti_hybrid_add(&shape, &row, column, &update));
            cr_assert_eq(wefti_hybrid_bytes(&shape, &row), wefti_hybrid_formula(&shape, most), "seed %llu", (unsigned long long)seed);
            if (i % (count / 4) == 0) compare(&shape, &row, dense, seed);
        }
        compare(&shape, &row, dense, seed);
        cr_assert_eq(held() - before, wefti_hybrid_bytes(&shape, &row));
        wefti_hybrid_release(&shape, &row);
        free(dense);
    }
    cr_assert_eq(held(), before);
}

/* --- its size --- */

Test(server_hybrid, turns_dense_where_that_is_smaller) {
    const wefti_hybrid_shape shape = {10000, WEFT_I32};
    const int32_t            one = 1;
    wefti_hybrid_row         row = {0};
    uint32_t                 turned = 0;
    for (uint32_t n = 1; n <= shape.width; n++) {
        OK(wefti_hybrid_add(&shape, &row, (n * 7919u) % shape.width, &one));
        cr_assert_eq(wefti_hybrid_bytes(&shape, &row), wefti_hybrid_formula(&shape, n), "%u entries", n);
        cr_assert_leq(wefti_hybrid_bytes(&shape, &row), (size_t)40000);
        if (!turned && row.room == WEFTI_HYBRID_DENSE) turned = n;
    }
    cr_assert_eq(turned, 5299u, "dense with %u entries", turned); /* as the header says */
    wefti_hybrid_release(&shape, &row);
}

/* Words by Zipf's law (the r-th as often as 1/r), the topic of each token at random: the case with the most entries a word. */
static void count_tokens(uint32_t words, uint32_t topics, uint64_t tokens) {
    const wefti_hybrid_shape shape = {topics, WEFT_I32};
    const uint64_t           before = held();
    const int32_t            one = 1;
    wefti_hybrid_row        *rows = calloc(words, sizeof *rows);
    uint32_t                *counts = malloc(topics * sizeof *counts), entries;
    uint64_t                 random = 88172645463325252u, formula = 0, total = 0, given = 0;
    double                   harmonic = 0;
    for (uint32_t r = 1; r <= words; r++) harmonic += 1.0 / r;
    for (uint32_t r = 1; r <= words; r++) {
        uint64_t of_word = (uint64_t)((double)tokens / harmonic / r + 0.5);
        for (uint64_t i = 0; i < of_word; i++)
            OK(wefti_hybrid_add(&shape, &rows[r - 1], (uint32_t)((next(&random) >> 32) * topics >> 32), &one));
        given += of_word;
    }
    for (uint32_t r = 0; r < words; r++) {
        wefti_hybrid_read(&shape, &rows[r], counts);
        entries = 0;
        for (uint32_t k = 0; k < topics; k++) total += counts[k], entries += counts[k] != 0;
        formula += wefti_hybrid_formula(&shape, entries) + sizeof *rows;
    }
    uint64_t memory = held() - before + words * sizeof *rows, dense = (uint64_t)words * topics * sizeof one;
    printf("%u words, %u topics, %llu tokens: %llu bytes, by the formula %llu, dense %llu (%.2f times)\n", words, topics, (unsigned long long)given,
           (unsigned long long)memory, (unsigned long long)formula, (unsigned long long)dense, (double)dense / (double)memory);
    cr_assert_eq(total, given);
    cr_assert((double)memory <= 1.1 * (double)formula);
    cr_assert_leq(6 * memory, dense);
    for (uint32_t r = 0; r < words; r++) wefti_hybrid_release(&shape, &rows[r]);
    free(counts);
    free(rows);
}

Test(server_hybrid, counts_of_words_take_a_sixth_of_dense_memory) {
    count_tokens(10000, 1000, 1000000);
}

/* --- allocations that fail --- */

static bool  refuse;
static void *scarce(void *context, size_t bytes, size_t alignment) {
    (void)context;
    return refuse ? NULL : aligned_alloc(alignment, wefti_align_up(bytes, alignment));
}
static void give_back(void *context, void *memory, size_t bytes) {
    (void)context;
    (void)bytes;
    free(memory);
}

Test(server_hybrid, an_addition_that_finds_no_memory_changes_nothing) {
    const wefti_hybrid_shape shape = {300, WEFT_I64};
    static cell              dense[300];
    wefti_hybrid_row         row = {0};
    int                      failed = 0;
    OK(weft_set_allocator(&(weft_allocator){scarce, give_back, NULL}));
    for (uint32_t n = 0; n < shape.width; n++) {
        uint32_t column = n * 7 % shape.width;
        cell     update = {.i64 = n + 1};
        refuse = true;
        weft_status status = wefti_hybrid_add(&shape, &row, column, &update);
        refuse = false;
        if (status != WEFT_OK) {
            cr_assert_eq(status, WEFT_E_NO_MEMORY);
            compare(&shape, &row, dense, n);
            OK(wefti_hybrid_add(&shape, &row, column, &update));
            failed++;
        }
        dense[column].i64 += update.i64;
        compare(&shape, &row, dense, n);
    }
    cr_assert_eq(row.room, WEFTI_HYBRID_DENSE);
    cr_assert_gt(failed, 5);
    wefti_hybrid_release(&shape, &row);
    OK(weft_set_allocator(NULL));
}

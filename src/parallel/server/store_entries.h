/* Entries of rows: how they lie in messages, and what stores do with them.
 *
 *     u32 [rows]       how many each row has
 *     values [count]   of the table's dtype, from a multiple of 8 bytes on
 *     columns [count]  of 2 bytes where rows have at most 65,536 elements, else of 4; from a multiple of 8 bytes on
 *
 * Values lie before columns, so that every array is aligned wherever the message begins at 8 bytes. */
#ifndef WEFTI_SERVER_STORE_ENTRIES_H
#define WEFTI_SERVER_STORE_ENTRIES_H

#include "parallel/server/store.h"

/* A look at a message. counts NULL: there are none. */
typedef struct wefti_entries {
    const uint32_t *counts;
    const uint8_t  *columns, *values;
    uint64_t        count;
    uint32_t        column_bytes, element_bytes;
} wefti_entries;

static inline uint32_t wefti_entries_column_bytes(int64_t width) { return width <= INT64_C(1) << 16 ? sizeof(uint16_t) : sizeof(uint32_t); }
static inline uint32_t wefti_entries_column(const uint8_t *columns, uint32_t column_bytes, uint64_t at) {
    return column_bytes == sizeof(uint16_t) ? ((const uint16_t *)(const void *)columns)[at] : ((const uint32_t *)(const void *)columns)[at];
}
static inline void wefti_entries_put_column(uint8_t *columns, uint32_t column_bytes, uint64_t at, uint32_t column) {
    if (column_bytes == sizeof(uint16_t)) ((uint16_t *)(void *)columns)[at] = (uint16_t)column;
    else ((uint32_t *)(void *)columns)[at] = column;
}

/* Where the arrays of so many entries of so many rows begin, and the bytes of all; false where that is more than there are addresses. */
typedef struct wefti_entries_layout { size_t values, columns, bytes; } wefti_entries_layout;
bool wefti_entries_lay_out(uint64_t rows, uint64_t count, int64_t width, size_t element_bytes, wefti_entries_layout *layout_out);

/* Believes nothing: WEFT_E_CORRUPT where arrays do not fit the bytes, a row has more entries than elements, a column is out of range, or (`ascend`)
 * columns of a row do not ascend. Bytes are aligned to 8. */
WEFT_MUST_CHECK weft_status wefti_entries_read(const uint8_t *bytes, size_t size_bytes, uint64_t rows, int64_t width, size_t element_bytes, bool ascend,
                                               wefti_entries *entries_out);

/* As wefti_store_apply and wefti_sum_add, of updates that are zero elsewhere, of ADD. What they say of failures holds: a hybrid store has changed
 * no row then. */
WEFT_MUST_CHECK weft_status wefti_store_apply_entries(wefti_store *store, const uint64_t *places, uint64_t begin, int64_t count,
                                                      const wefti_entries *entries);
WEFT_MUST_CHECK weft_status wefti_sum_add_entries(wefti_sum *sum, const uint64_t *places, uint64_t begin, int64_t count, const wefti_entries *entries);

/* What is not zero of a row as wefti_store_read reads it, in no order; `row` [width] of the table's dtype is to work in. columns_out NULL: only how many. */
WEFT_MUST_CHECK weft_status wefti_store_read_entries(wefti_store *store, uint64_t key, uint64_t place, void *row, uint8_t *columns_out, uint8_t *values_out,
                                                     uint32_t *count_out);

/* row[column] += value, or = value (`set`), of a dense row and values of this dtype. */
void wefti_entries_add(weft_dtype dtype, void *row, const uint8_t *columns, uint32_t column_bytes, const void *values, uint32_t count, bool set);

#endif

/* Entries of a table: elements of its rows by column, for rows of which little is pushed or is not zero, as counts of words by topics are.
 *
 *     uint64_t words[2] = {3, 7};
 *     weft_entries changes = {.counts = (uint32_t[]){2, 1}, .columns = (uint32_t[]){5, 80, 5}, .values = (int32_t[]){1, -1, 1}}, rows = {0};
 *     if ((s = weft_table_push_entries(counts, words, 2, &changes)) != WEFT_OK) goto done;   (3: column 5 and 80; 7: column 5)
 *     if ((s = weft_table_clock(counts)) != WEFT_OK) goto done;
 *     if ((s = weft_table_pull_entries(counts, words, 2, &rows)) != WEFT_OK) goto done;
 *     for (int64_t row = 0, at = 0; row < 2; row++)
 *         for (uint32_t i = 0; i < rows.counts[row]; i++, at++) ... rows.columns[at], ((const int32_t *)rows.values)[at] ...
 *     done: weft_entries_release(&rows);
 *
 * Tables are dense or sparse, hybrid or not, of rows of less than 2^32 elements. A push of entries is that of rows which are zero everywhere else: its
 * rows count as pushed, also those of no entries, and clocks, staleness, replicas and repeated requests are as of rows; but the sign of a zero may be
 * another. All of it takes effect or nothing does. With WEFT_TABLE_ADD only: what other rules make of a row depends on all of it (WEFT_E_UNSUPPORTED).
 * A pull of entries is of any table: what is not zero (of either sign) of the rows as they would be pulled.
 *
 * Bytes: 4 for each row, and for each entry its value and its column, which takes 2 where rows have at most 65,536 elements, else 4. The codecs of the table do
 * not apply: entries travel as they are, and are pushed beside what a codec keeps of rows. weft_server_counts has them in moved_value_bytes. */
#ifndef WEFT_ENTRIES_H
#define WEFT_ENTRIES_H

#include "weft/server.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Entries of some rows, one row after the other, in the order of the rows. What is pushed is the caller's; what was pulled is the struct's own
 * (zeroed before the first pull), until it is pulled into again or released. */
struct weft_entries {
    const uint32_t *counts;  /* [rows] how many entries each row has */
    const uint32_t *columns; /* [entries] strictly ascending within a row */
    const void     *values;  /* [entries] of the table's dtype */
    int64_t         count;   /* entries; pulled only */
    void           *memory;  /* Weft's */
    size_t          bytes;   /* Weft's */
};

/* Start and wait; `rows` as in weft_table_call_rows. weft_table_start_call does either by .entries and .pulled, also with key sets and in one request
 * (PUSH_PULL). Errors: those of weft_table_start_call and weft_request_test; WEFT_E_INVALID for columns that do not ascend or are out of range, with the row. From
 * src/parallel/server/entries.c. */
WEFT_MUST_CHECK weft_status weft_table_push_entries(weft_table *table, const uint64_t *rows, int64_t row_count, const weft_entries *entries);
WEFT_MUST_CHECK weft_status weft_table_pull_entries(weft_table *table, const uint64_t *rows, int64_t row_count, weft_entries *pulled);
/* Frees what was pulled; NULL and a zeroed struct are fine. */
void weft_entries_release(weft_entries *pulled);

#ifdef __cplusplus
}
#endif
#endif

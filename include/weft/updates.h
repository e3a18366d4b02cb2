/* Updates of a table that any number of threads add up here before they are sent: local aggregation.
 *
 *     weft_updates *updates = NULL;
 *     if ((s = weft_updates_create(table, &updates)) != WEFT_OK) goto done;
 *     #pragma omp parallel for
 *     for (int64_t i = 0; i < tokens; i++) add_entry(updates, word[i], topic[i], &one);
 *     if ((s = weft_updates_flush(updates)) != WEFT_OK) goto done;        (each row that was touched is pushed once, or of it what was touched)
 *
 * Sums are exact: integers wrap as the table's do, floats are added in fixed point that is wide enough for every bit of every number, and rounded once, to
 * nearest, when they are sent. So what is sent depends on what was added alone, and neither on the number of threads nor on who came first. NaN
 * and infinities come out as of any order: NaN where there was one, or infinities of both signs. A sum that is zero is +0. With staleness 0
 * servers then add workers' sums in the order of ranks: sums of integers are exact for any number of workers, too.
 *
 * Bytes: a request brings rows, or their entries (weft/entries.h) where these are fewer bytes: rows of K elements of E bytes of which about n are touched
 * take K E or 4 + n (E + C), columns being of C = 2 bytes where K is at most 65,536, else 4. Entries are sent where the rule is ADD, and the table's
 * codec of pushes none or NONZERO.
 *
 * Memory is for the elements that were touched: 24 bytes and a sum of 8 (integers), 48 (F32, F16, BF16) or 272 (F64), with room to double; that is what
 * lets wide rows of counts be added up by their entries. Rows are dealt out to 64 parts with a lock each, so threads wait for each other
 * seldom, and the longest where many add to one row. */
#ifndef WEFT_UPDATES_H
#define WEFT_UPDATES_H

#include "weft/server.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_updates weft_updates;

/* For one table, which outlives it, with rows of less than 2^32 elements (WEFT_E_SHAPE). F16 and BF16 are added up as F32 is, and rounded once to what
 * they are. WEFT_E_NO_MEMORY.
 * From src/parallel/server/updates.c. */
WEFT_MUST_CHECK weft_status weft_updates_create(weft_table *table, weft_updates **updates_out);
/* What was not flushed is forgotten. NULL is fine. Not beside another call. */
void weft_updates_release(weft_updates *updates);

/* Adds values [width] of the table's dtype to a row, or one value to an element; the row counts as touched also where all are zero. By any number of
 * threads at once, also beside a flush: then the call is wholly in that flush, or in the next. WEFT_E_INVALID (no such row or column: named);
 * WEFT_E_NO_MEMORY: nothing was added. */
WEFT_MUST_CHECK weft_status weft_updates_add(weft_updates *updates, uint64_t row, const void *values);
WEFT_MUST_CHECK weft_status weft_updates_add_entry(weft_updates *updates, uint64_t row, int64_t column, const void *value);

/* Pushes the sums, each row that was touched once, in ascending order, in requests of some MiB; blocks until servers have them. Does not end the
 * worker's clock. An error is that of the request (weft_table_start_call) or WEFT_E_NO_MEMORY; rows from that request on stay here and go first
 * in the next flush (after WEFT_E_TIMEOUT servers may have taken some of them: then release it). */
WEFT_MUST_CHECK weft_status weft_updates_flush(weft_updates *updates);

/* Rows that flushes have pushed, all together. */
int64_t weft_updates_pushed(weft_updates *updates);

#ifdef __cplusplus
}
#endif
#endif

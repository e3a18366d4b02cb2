/* A row of a hybrid table: nothing while all of it is zero, then an open hash from columns to values, then dense, as soon as that is smaller.
 *
 * Bytes of a row of K columns of E bytes that has had at most n of them beside zero at once, columns being kept in C bytes (2 where K is at
 * most 65535, else 4):
 *
 *     bytes(n) = 0 where n is 0, else the less of K x E and room(n) x (E + C)
 *     room(n)  = the first of 4, 5, 7, 9, 12, 15, … (each the one before and a quarter of it, rounded up) with 4/5 room >= n
 *
 * Rows that are given many values at once make room for all that are new before any is added, also where others become zero by that.
 * So a hash of some entries takes between 5/4 and about 25/16 of (E + C) bytes an entry, and an I32 row of 10,000 columns turns dense with its
 * 5,299th entry. What becomes zero leaves the hash, and its room is used again; a row does not shrink. The 16 bytes of wefti_hybrid_row come
 * beside that. */
#ifndef WEFTI_SERVER_HYBRID_H
#define WEFTI_SERVER_HYBRID_H

#include "core/base/base.h"
#include "weft/dtype.h"

typedef struct wefti_hybrid_shape {
    uint32_t   width; /* K, at most UINT32_MAX - 1 */
    weft_dtype dtype; /* I32, I64, F32, F64 */
} wefti_hybrid_shape;

/* Zeroed: a row of zeros. room: of the hash; WEFTI_HYBRID_DENSE: `memory` is [width]. */
typedef struct wefti_hybrid_row {
    uint8_t *memory; /* [room] values, then [room] columns */
    uint32_t used, room;
} wefti_hybrid_row;
#define WEFTI_HYBRID_DENSE UINT32_MAX

size_t wefti_hybrid_formula(const wefti_hybrid_shape *shape, uint32_t entries);                   /* bytes(n) above */
size_t wefti_hybrid_bytes(const wefti_hybrid_shape *shape, const wefti_hybrid_row *row);          /* that it holds */

/* row[column] += *update, of the shape's dtype; integers wrap. The bits that a dense row of zeros would have. WEFT_E_NO_MEMORY: the row is as it
 * was. */
WEFT_MUST_CHECK weft_status wefti_hybrid_add(const wefti_hybrid_shape *shape, wefti_hybrid_row *row, uint32_t column, const void *update);
/* How many elements of `values` [width] beside zero have no place in the row yet; 0 of a dense row. */
uint32_t wefti_hybrid_missing(const wefti_hybrid_shape *shape, const wefti_hybrid_row *row, const void *values);
/* What it would hold with room for so many entries, at least what it holds; and that room, so that additions up to there cannot fail.
 * WEFT_E_NO_MEMORY: the row is as it was. */
size_t wefti_hybrid_bytes_with(const wefti_hybrid_shape *shape, const wefti_hybrid_row *row, uint64_t entries);
WEFT_MUST_CHECK weft_status wefti_hybrid_reserve(const wefti_hybrid_shape *shape, wefti_hybrid_row *row, uint64_t entries);
/* row += values [width], for which there is room (wefti_hybrid_reserve with what is missing). */
void wefti_hybrid_add_row(const wefti_hybrid_shape *shape, wefti_hybrid_row *row, const void *values);
/* The same of entries: columns of 2 or 4 bytes, each there once, and their values. */
uint32_t wefti_hybrid_missing_entries(const wefti_hybrid_shape *shape, const wefti_hybrid_row *row, const uint8_t *columns, uint32_t column_bytes,
                                      const uint8_t *values, uint32_t count);
void wefti_hybrid_add_entries(const wefti_hybrid_shape *shape, wefti_hybrid_row *row, const uint8_t *columns, uint32_t column_bytes, const void *values,
                              uint32_t count);
/* What is not zero, in no order; how many. columns_out NULL: only that. */
uint32_t wefti_hybrid_read_entries(const wefti_hybrid_shape *shape, const wefti_hybrid_row *row, uint8_t *columns_out, uint32_t column_bytes,
                                   uint8_t *values_out);
void wefti_hybrid_clear(const wefti_hybrid_shape *shape, wefti_hybrid_row *row); /* zeros; its room stays */
void wefti_hybrid_read(const wefti_hybrid_shape *shape, const wefti_hybrid_row *row, void *values_out); /* [width] */
void wefti_hybrid_release(const wefti_hybrid_shape *shape, wefti_hybrid_row *row); /* it is a row of zeros then */

#endif

/* Rows and key lists in fewer bytes, as functions that know neither servers nor workers.
 *
 * Values of rows [rows, width], by codec:
 *   bf16, fp8, fixed …    the codec's bytes of all rows * width elements (core/tensor/codec.h)
 *   topk                  k places of elements and k values; rows that have none are not chosen
 *   significant, nonzero  which rows, then their values as they are. Which: a byte 0 for all; 1 and a bit a row; or 2, how many, and the gaps
 *                         between them, whichever is the shortest
 * A list of keys: the first, and what lies between one and the next. How many and gaps are numbers of 7 bits a byte, the low ones first, with the
 * high bit where more follow; a list is filled up to whole 8 bytes, so that values behind it lie well.
 *
 * Reading believes nothing: WEFT_E_CORRUPT, and nothing is written outside of what is given. */
#ifndef WEFTI_SERVER_CODING_H
#define WEFTI_SERVER_CODING_H

#include "core/tensor/codec.h"
#include "weft/server.h"

typedef struct wefti_coding {
    const weft_compression *how;
    weft_dtype              dtype;
    int64_t                 width;
    uint64_t                key, stream; /* of the random numbers */
} wefti_coding;

/* What of a table's options does not go with its codecs, by name, and what would. */
WEFT_MUST_CHECK weft_status wefti_coding_check(const weft_table_options *options);
bool wefti_coding_feeds_back(const weft_compression *how);
/* Whether rows may be left out. */
bool wefti_coding_chooses(const weft_compression *how);

/* Bytes that so many rows take: exactly, or at most where rows are left out. Elements fit the codec's (wefti_coding_fits). */
size_t wefti_coding_bytes(const wefti_coding *coding, int64_t rows);
bool   wefti_coding_fits(const wefti_coding *coding, int64_t rows);
size_t wefti_coding_scratch(const wefti_coding *coding, int64_t rows); /* of writing, aligned as u64 */
/* `sent` [rows]: which rows are; of the codecs of whole rows. Bytes that were written. */
size_t wefti_coding_write(const wefti_coding *coding, const void *values, int64_t rows, const uint8_t *sent, uint8_t *bytes_out, void *scratch);
/* rows_out [rows]: the first *count_out of them are the rows that came, ascending; values_out [rows, width] theirs. */
WEFT_MUST_CHECK weft_status wefti_coding_read(const wefti_coding *coding, const uint8_t *bytes, size_t size_bytes, int64_t rows, uint64_t *rows_out,
                                              int64_t *count_out, void *values_out);
/* nonzero: whether a row has something in it; zeros of either sign are none. */
bool wefti_coding_is_zero(const wefti_coding *coding, const void *row);

/* Bytes of a list of ascending keys, whole 8. */
size_t wefti_list_bytes(const uint64_t *keys, int64_t count);
void   wefti_list_write(const uint64_t *keys, int64_t count, uint8_t *bytes_out);
WEFT_MUST_CHECK weft_status wefti_list_read(const uint8_t *bytes, size_t size_bytes, int64_t count, uint64_t *keys_out);

#endif

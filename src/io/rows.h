/* Rows of an IDX file at random: straight from a plain file of bytes, otherwise from an unpacked copy. */
#ifndef WEFTI_ROWS_H
#define WEFTI_ROWS_H

#include "core/base/base.h"
#include "weft/idx.h"

typedef struct wefti_rows {
    weft_idx_info info;
    char         *path;
    int           descriptor; /* the file itself or the nameless copy; -1 where the rows are in memory */
    uint64_t      data_offset;
    uint8_t      *memory; /* NULL where they are in a file */
    size_t        memory_bytes;
} wefti_rows;

/* Reads all of a file that has to be unpacked, verifying it to its end. */
WEFT_MUST_CHECK weft_status wefti_rows_open(const char *path, int64_t memory_limit_bytes, wefti_rows *rows_out);
/* One row, in memory where it is there, else read into `scratch` (info.row_bytes bytes). Thread-safe. */
WEFT_MUST_CHECK weft_status wefti_rows_get(const wefti_rows *rows, int64_t row, void *scratch, const void **row_out);
/* This row is asked for next: where rows are in memory it is on its way to the cache meanwhile. */
void wefti_rows_expect(const wefti_rows *rows, int64_t row);
void wefti_rows_close(wefti_rows *rows);

#endif

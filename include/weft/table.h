/* Tables of numbers as text: CSV (also separated by tabs, semicolons or blanks) and libsvm's sparse rows; plain or gzip.
 *
 * Both readers stream: they hold the line in hand and the rows that were asked for, whatever the size of the file. Errors
 * name the path, the line and the column. Numbers are read alike in every locale, correctly rounded. A reader belongs to
 * one thread at a time; calls block on the file system only. */
#ifndef WEFT_TABLE_H
#define WEFT_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/dtype.h"
#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- CSV ---- */

typedef struct weft_csv weft_csv;

typedef struct weft_csv_options {
    char    separator; /* 0: the first of tab, ',', ';' that the first line has, else blanks. ' ' takes runs of blanks */
    bool    header;    /* the first line has the names of the columns */
    int64_t columns;   /* expected; 0 means as many as the first line has */
    char    comment;   /* lines that begin with it are left out; 0 means none */
} weft_csv_options;

/* Opens `path` and reads its first line. `options` may be NULL. *csv_out gets one reference, NULL on error.
 * WEFT_E_NOT_FOUND, WEFT_E_IO; WEFT_E_CORRUPT for an empty file or one that is no text; WEFT_E_SHAPE where the columns
 * are not as expected. */
WEFT_MUST_CHECK weft_status weft_csv_open(const char *path, const weft_csv_options *options, weft_csv **csv_out);
int64_t weft_csv_columns(const weft_csv *csv);
/* The column's name; NULL without a header or out of range. Valid until release. */
const char *weft_csv_column_name(const weft_csv *csv, int64_t column);

/* Reads up to `max_rows` further rows to values_out, [max_rows, columns] of F32 or F64, and says how many. Fields may be
 * quoted. Empty fields, "NA", "N/A", "null", "?" and "nan" are missing values and become NaN. Empty lines are left out.
 * WEFT_END, with 0 rows, after the last. WEFT_E_CORRUPT for a field that is no number and for a row of another number of fields; the reader
 * then stands behind that line. */
WEFT_MUST_CHECK weft_status weft_csv_read(weft_csv *csv, int64_t max_rows, weft_dtype dtype, void *values_out,
                                          int64_t *rows_read_out);
/* NULL is allowed. */
void weft_csv_release(weft_csv *csv);

/* ---- libsvm ---- */

typedef struct weft_libsvm weft_libsvm;

typedef struct weft_libsvm_options {
    bool    zero_based; /* the file's first column is 0; otherwise it is 1 */
    int64_t columns;    /* an index beyond is an error; 0 means up to 2^31 - 1 */
} weft_libsvm_options;

/* Rows in compressed form; the reader's memory, valid until its next call. */
typedef struct weft_libsvm_rows {
    int64_t        rows;
    const float   *label;     /* [rows] */
    const int64_t *query;     /* [rows], the number after "qid:", or -1 */
    const int64_t *row_start; /* [rows + 1]: row i has the entries from row_start[i] to row_start[i + 1] */
    const int32_t *column;    /* [entries], ascending within a row, from 0 */
    const float   *value;     /* [entries] */
    int64_t        columns;   /* the largest column of these rows + 1 */
} weft_libsvm_rows;

/* Opens `path`. `options` may be NULL. *libsvm_out gets one reference, NULL on error. */
WEFT_MUST_CHECK weft_status weft_libsvm_open(const char *path, const weft_libsvm_options *options,
                                             weft_libsvm **libsvm_out);
/* Reads up to `max_rows` further rows "label [qid:n] index:value … [# comment]". WEFT_END, with 0 rows, after the last.
 * WEFT_E_CORRUPT for what is no such row: indices must ascend. */
WEFT_MUST_CHECK weft_status weft_libsvm_read(weft_libsvm *libsvm, int64_t max_rows, weft_libsvm_rows *rows_out);
/* Back to the first row. */
WEFT_MUST_CHECK weft_status weft_libsvm_rewind(weft_libsvm *libsvm);
/* NULL is allowed. */
void weft_libsvm_release(weft_libsvm *libsvm);

#ifdef __cplusplus
}
#endif
#endif

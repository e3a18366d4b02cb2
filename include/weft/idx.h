/* IDX files, plain or gzip: the format of MNIST and its relatives.
 *
 * A reader streams rows (the slices along the first dimension) in file order and holds a small fixed buffer, whatever
 * the size of the file. Values come in the host's byte order. Every byte of the header is checked, and a file that is
 * truncated, too long or damaged is refused by path, offset and what was expected; a gzip file's checksum is verified
 * when its last row has been read.
 *
 * A reader belongs to one thread at a time. Calls block on the file system only.
 * Format: Y. LeCun, C. Cortes, C. Burges, "The MNIST database", section "File formats"; gzip: RFC 1952. */
#ifndef WEFT_IDX_H
#define WEFT_IDX_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/dtype.h"
#include "weft/shape.h"
#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_idx weft_idx;

typedef struct weft_idx_info {
    weft_dtype  dtype;       /* as rows are handed out: U8, I32 (also for i8 and i16, widened), F32 or F64 */
    const char *stored;      /* as in the file: "u8", "i8", "i16", "i32", "f32" or "f64"; static storage */
    weft_shape  shape;       /* of the whole file; dim[0] is the number of rows */
    int64_t     row_bytes;   /* of one row as handed out */
    bool        compressed;  /* a gzip file */
    int64_t     data_offset; /* where the first row begins, in bytes of the uncompressed stream */
} weft_idx_info;

/* Opens `path` and checks its header; a plain file's length is checked too. *idx_out gets one reference, NULL on error.
 * WEFT_E_NOT_FOUND, WEFT_E_IO; WEFT_E_CORRUPT for a bad header or length; WEFT_E_OVERFLOW where the sizes do not fit;
 * WEFT_E_UNSUPPORTED for more than WEFT_MAX_RANK dimensions, or for gzip in a build without zlib. */
WEFT_MUST_CHECK weft_status weft_idx_open(const char *path, weft_idx **idx_out);

/* Valid until the reader is released. */
const weft_idx_info *weft_idx_describe(const weft_idx *idx);

/* Reads up to `max_rows` further rows into rows_out (max_rows * row_bytes bytes), and says how many. WEFT_END, with 0
 * rows, after the last. WEFT_E_CORRUPT where the file ends early or late or is damaged: the rows are then not to be
 * used. After an error every further read gives WEFT_E_STATE. */
WEFT_MUST_CHECK weft_status weft_idx_read(weft_idx *idx, int64_t max_rows, void *rows_out, int64_t *rows_read_out);

/* NULL is allowed. */
void weft_idx_release(weft_idx *idx);

#ifdef __cplusplus
}
#endif
#endif

/* NumPy's .npy files: one array each, also gzip-compressed.
 *
 * Every byte of the header is checked, and the length of the data. Values come in the host's byte order and in row-major
 * order, whatever the file has. A reader belongs to one thread at a time; calls block on the file system only.
 * Format: numpy.lib.format, versions 1.0, 2.0 and 3.0. */
#ifndef WEFT_NPY_H
#define WEFT_NPY_H

#include <stdbool.h>

#include "weft/dtype.h"
#include "weft/shape.h"
#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_npy weft_npy;

typedef struct weft_npy_info {
    weft_dtype  dtype;        /* as handed out: i1, i2 and u2 come as I32, u4 as I64 */
    const char *stored;       /* as in the file, as in "<f4"; valid until release */
    weft_shape  shape;
    bool        column_major; /* in the file */
} weft_npy_info;

/* Opens `path` and reads its header. *npy_out gets one reference, NULL on error. WEFT_E_NOT_FOUND, WEFT_E_IO,
 * WEFT_E_CORRUPT; WEFT_E_UNSUPPORTED for types that Weft has not (complex, text, records, …) and too many dimensions;
 * WEFT_E_OVERFLOW. */
WEFT_MUST_CHECK weft_status weft_npy_open(const char *path, weft_npy **npy_out);
/* Valid until the reader is released. */
const weft_npy_info *weft_npy_describe(const weft_npy *npy);
/* Reads the whole array, once, to data_out (the shape's elements of the dtype, dense and row-major). WEFT_E_CORRUPT where the file
 * ends early or goes on, or a bool is neither 0 nor 1: data_out is then not to be used. WEFT_E_STATE the second time. */
WEFT_MUST_CHECK weft_status weft_npy_read(weft_npy *npy, void *data_out);
/* NULL is allowed. */
void weft_npy_release(weft_npy *npy);

/* Writes an array, dense and row-major, to `path`: whole or not at all. WEFT_E_UNSUPPORTED for BF16, which NumPy has not. */
WEFT_MUST_CHECK weft_status weft_npy_save(const char *path, weft_dtype dtype, weft_shape shape, const void *data);

#ifdef __cplusplus
}
#endif
#endif

/* Arrays: memory with a dtype and a shape, that programs feed to a graph and fetch from it.
 *
 * An array is a view of storage; several arrays may share one storage, which lives as long as the last of them. Memory
 * enters in one of three ways: copied (weft_array_create_from), borrowed (weft_array_borrow: the caller keeps it alive)
 * or taken (weft_array_take: the array frees it). Arrays of this header lie in host memory.
 *
 * Counts of references are atomic, so any thread may retain and release; the elements themselves are the program's to
 * guard. Nothing here blocks or communicates. Sizes that overflow give WEFT_E_OVERFLOW, shapes with a negative
 * dimension WEFT_E_SHAPE, a value that is no dtype WEFT_E_DTYPE. */
#ifndef WEFT_ARRAY_H
#define WEFT_ARRAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weft/dlpack.h"
#include "weft/dtype.h"
#include "weft/shape.h"
#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_array weft_array;

/* --- where memory comes from; each gives one reference --- */

/* New memory, zeroed, row-major, aligned to 64 bytes. WEFT_E_NO_MEMORY names the bytes. */
WEFT_MUST_CHECK weft_status weft_array_create(weft_dtype dtype, weft_shape shape, weft_array **array_out);
/* New memory filled from `data`: row-major elements, as many as the shape has. */
WEFT_MUST_CHECK weft_status weft_array_create_from(weft_dtype dtype, weft_shape shape, const void *data,
                                                   weft_array **array_out);
/* The caller's row-major memory, which must outlive the array and every view of it. `data` must be aligned to the
 * element (WEFT_E_INVALID), and may be NULL only where the shape has no elements. */
WEFT_MUST_CHECK weft_status weft_array_borrow(weft_dtype dtype, weft_shape shape, void *data, weft_array **array_out);
/* As weft_array_borrow, but the array owns the memory: when its last view is released, `deleter(context, data)` is
 * called once, on the releasing thread. On failure nothing is taken and the deleter is not called. */
WEFT_MUST_CHECK weft_status weft_array_take(weft_dtype dtype, weft_shape shape, void *data,
                                            void (*deleter)(void *context, void *data), void *context,
                                            weft_array **array_out);

/* One more reference; returns the array. NULL is nothing. */
weft_array *weft_array_retain(weft_array *array);
/* Gives a reference back; the last one frees. NULL is nothing. */
void weft_array_release(weft_array *array);

/* --- questions; all take an array that is alive --- */

/* Address of element 0. Valid while the array lives. */
void      *weft_array_data(const weft_array *array);
weft_dtype weft_array_dtype(const weft_array *array);
weft_shape weft_array_shape(const weft_array *array);
int64_t    weft_array_elements(const weft_array *array);
/* Elements times their size: what the values need, whatever the strides. */
size_t weft_array_bytes(const weft_array *array);
/* Distance of neighbours along `axis`, in elements; 0 for an axis that the array has not. */
int64_t weft_array_stride(const weft_array *array, int32_t axis);
/* True where the elements lie in row-major order without gaps. */
bool weft_array_is_contiguous(const weft_array *array);

/* --- views share the storage; each gives one reference --- */

/* The same elements in row-major order under another shape. WEFT_E_SHAPE where the counts differ, WEFT_E_INVALID where
 * the array is not contiguous (copy it first). One dimension may be -1: it follows from the others. */
WEFT_MUST_CHECK weft_status weft_array_reshape(weft_array *array, weft_shape shape, weft_array **view_out);
/* Elements [begin, end) of `axis`. WEFT_E_SHAPE where there are none such. */
WEFT_MUST_CHECK weft_status weft_array_slice(weft_array *array, int32_t axis, int64_t begin, int64_t end,
                                             weft_array **view_out);

/* --- values --- */

/* A contiguous copy in new memory. */
WEFT_MUST_CHECK weft_status weft_array_copy(const weft_array *array, weft_array **copy_out);
/* Copies values from one array into another of the same dtype and shape (WEFT_E_DTYPE, WEFT_E_SHAPE); any strides. The
 * two must not overlap. */
WEFT_MUST_CHECK weft_status weft_array_assign(weft_array *array, const weft_array *values);

/* --- exchange with other libraries, without copying --- */

/* Hands the array out as a DLPack tensor that keeps the storage alive until its deleter is called. */
WEFT_MUST_CHECK weft_status weft_array_to_dlpack(weft_array *array, weft_dl_managed **managed_out);
/* Takes a DLPack tensor in: on success the array owns it and calls its deleter when the last view is released; on
 * failure it stays the caller's. WEFT_E_UNSUPPORTED for memory that the host cannot read, lanes, dtypes that Weft has
 * not, negative strides, or misaligned data; WEFT_E_SHAPE for more than WEFT_MAX_RANK dimensions. */
WEFT_MUST_CHECK weft_status weft_array_from_dlpack(weft_dl_managed *managed, weft_array **array_out);

#ifdef __cplusplus
}
#endif
#endif

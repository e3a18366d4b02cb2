/* safetensors files: named arrays with a small JSON header, as used by Hugging Face and others.
 *
 * Reading checks everything before a byte of data is used: the header's length and JSON, every dtype, shape and range,
 * duplicates, and that the arrays fill the file without holes or overlaps. Data is mapped, and can also be copied out.
 *
 * Writing streams: arrays are declared first, then written in pieces and in any order, so that no copy of the whole is
 * made. The file appears at its path whole or not at all, and is on the disk once commit returns.
 *
 * Files written here carry a checksum of the header and of each array in their metadata ("weft.checksum"); it is
 * verified when opening (header) and when an array is read. Files without one are read all the same.
 *
 * An open file may be used by several threads at once, a writer by one. Calls block on the file system only.
 * Format: https://github.com/huggingface/safetensors, section "Format". */
#ifndef WEFT_SAFETENSORS_H
#define WEFT_SAFETENSORS_H

#include <stdint.h>

#include "weft/dtype.h"
#include "weft/shape.h"
#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Reading ---- */

typedef struct weft_safetensors weft_safetensors;

/* One array of a file; all pointers are valid until the file is released. */
typedef struct weft_safetensors_entry {
    const char *name;
    const char *stored; /* the file's word for the dtype, as in "F32" */
    weft_dtype  dtype;  /* WEFT_DTYPE_COUNT for a type that Weft has not, as in "I8" or "F8_E4M3" */
    weft_shape  shape;
    uint64_t    offset; /* of the data, in bytes from the beginning of the file */
    uint64_t    bytes;
    const void *data; /* mapped, read-only; aligned to the dtype only if the file's writer took care. Shortening the
                         file while it is mapped is not survivable through this pointer; weft_safetensors_read is. */
} weft_safetensors_entry;

/* Opens and checks `path`: a file, or where its name ends in .safetensors.index.json an index of several (a JSON object with a "weight_map" from arrays to files
 * of its folder), whose arrays and metadata are then as of one file: WEFT_E_CORRUPT where two have the same array, while of metadata that several have the
 * first one's counts. Offsets are those within each. *file_out gets one reference, NULL on error. WEFT_E_NOT_FOUND, WEFT_E_IO, WEFT_E_CORRUPT with
 * the offset or name at fault; WEFT_E_UNSUPPORTED for an array of more than WEFT_MAX_RANK dimensions. */
WEFT_MUST_CHECK weft_status weft_safetensors_open(const char *path, weft_safetensors **file_out);

/* Arrays, in the order of their data. */
int64_t                       weft_safetensors_count(const weft_safetensors *file);
const weft_safetensors_entry *weft_safetensors_at(const weft_safetensors *file, int64_t index);
/* The array called `name`, or NULL. */
const weft_safetensors_entry *weft_safetensors_find(const weft_safetensors *file, const char *name);

/* Metadata: texts by key. The value of `key`, or NULL; and all of them in order of their keys. */
const char *weft_safetensors_metadata(const weft_safetensors *file, const char *key);
int64_t     weft_safetensors_metadata_count(const weft_safetensors *file);
void        weft_safetensors_metadata_at(const weft_safetensors *file, int64_t index, const char **key_out,
                                         const char **value_out);

/* Copies an array of this file to `data_out` (entry->bytes bytes) and verifies its checksum where the file has one.
 * WEFT_E_CORRUPT where it does not match, or a bool is neither 0 nor 1: data_out is then written but not to be used. */
WEFT_MUST_CHECK weft_status weft_safetensors_read(const weft_safetensors *file, const weft_safetensors_entry *entry,
                                                  void *data_out);
/* Verifies all checksums; WEFT_E_NOT_FOUND where the file has none. */
WEFT_MUST_CHECK weft_status weft_safetensors_verify(const weft_safetensors *file);

/* NULL is allowed. */
void weft_safetensors_release(weft_safetensors *file);

/* ---- Writing ---- */

typedef struct weft_safetensors_writer weft_safetensors_writer;

/* Begins to write `path`. What is there stays until commit. WEFT_E_STATE where another writer is at the same path;
 * WEFT_E_INVALID where it is no regular file, or named as an index is; otherwise what the system says. */
WEFT_MUST_CHECK weft_status weft_safetensors_writer_create(const char *path, weft_safetensors_writer **writer_out);

/* Declares an array, or a metadata text; all before the first write. Names and texts are copied. WEFT_E_EXISTS for a
 * name or key that is taken; WEFT_E_INVALID for an empty or reserved name and for text that is not UTF-8. */
WEFT_MUST_CHECK weft_status weft_safetensors_writer_add(weft_safetensors_writer *writer, const char *name,
                                                        weft_dtype dtype, weft_shape shape);
WEFT_MUST_CHECK weft_status weft_safetensors_writer_metadata(weft_safetensors_writer *writer, const char *key,
                                                             const char *value);

/* Writes the next `bytes` bytes of an array. Arrays may be written in any order and in turns. The first write fixes the
 * layout: wide elements first, so that every array is aligned to its elements. */
WEFT_MUST_CHECK weft_status weft_safetensors_writer_write(weft_safetensors_writer *writer, const char *name,
                                                          const void *data, uint64_t bytes);

/* Writes the header, syncs, and puts the file at its path. WEFT_E_STATE where an array is not complete. On any error the
 * file that was at the path before is untouched (unless the message says that only the folder's sync failed). */
WEFT_MUST_CHECK weft_status weft_safetensors_writer_commit(weft_safetensors_writer *writer);

/* Frees the writer and removes what was not committed. NULL is allowed. */
void weft_safetensors_writer_release(weft_safetensors_writer *writer);

#ifdef __cplusplus
}
#endif
#endif

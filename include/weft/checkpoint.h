/* Checkpoints: everything a run needs to go on with the same bits, in one safetensors file.
 *
 * A checkpoint holds named arrays and named values. Parameters stand under their own names, so that other programs find
 * them; whatever else belongs to the run (solver state, buffers of layers, the position of loaders) stands under names
 * that begin with "weft.", as in "weft.solver.moment1/conv1.weight". Values are whole numbers, floating-point numbers
 * (kept exactly) and texts; they lie in the file's metadata.
 *
 * Saving is atomic: until commit succeeds the last good checkpoint stays as it was, whatever fails. Every array is
 * verified by its checksum when it is read.
 *
 *     if ((s = weft_checkpoint_create(path, &writer)) != WEFT_OK) goto done;
 *     if ((s = weft_checkpoint_add(writer, "w", WEFT_F32, shape, w)) != WEFT_OK) goto done;
 *     if ((s = weft_checkpoint_add_i64(writer, "step", step)) != WEFT_OK) goto done;
 *     s = weft_checkpoint_commit(writer);
 *     done: weft_checkpoint_writer_release(writer);
 *
 * A writer or reader belongs to one thread at a time. Nothing here communicates: one rank writes, or each its own file.
 * Calls block on the file system only. */
#ifndef WEFT_CHECKPOINT_H
#define WEFT_CHECKPOINT_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/dtype.h"
#include "weft/shape.h"
#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Writing ---- */

typedef struct weft_checkpoint_writer weft_checkpoint_writer;

/* Begins a checkpoint at `path`; errors as of weft_safetensors_writer_create. */
WEFT_MUST_CHECK weft_status weft_checkpoint_create(const char *path, weft_checkpoint_writer **writer_out);

/* Adds an array in host memory, dense and row-major. `data` is borrowed until commit or release. WEFT_E_EXISTS for a
 * name that is taken. */
WEFT_MUST_CHECK weft_status weft_checkpoint_add(weft_checkpoint_writer *writer, const char *name, weft_dtype dtype,
                                                weft_shape shape, const void *data);

/* Copies bytes [offset, offset + bytes) of an array to `out`; called by commit, in order, at most 1 MiB at a time. */
typedef weft_status (*weft_checkpoint_fetch)(void *context, uint64_t offset, uint64_t bytes, void *out);
/* Adds an array that is fetched in pieces at commit, as from a device. */
WEFT_MUST_CHECK weft_status weft_checkpoint_add_fetched(weft_checkpoint_writer *writer, const char *name, weft_dtype dtype,
                                                        weft_shape shape, weft_checkpoint_fetch fetch, void *context);

/* Adds a value. WEFT_E_EXISTS for a key that is taken. A f64 keeps its bits, except that a NaN loses its payload. */
WEFT_MUST_CHECK weft_status weft_checkpoint_add_i64(weft_checkpoint_writer *writer, const char *key, int64_t value);
WEFT_MUST_CHECK weft_status weft_checkpoint_add_u64(weft_checkpoint_writer *writer, const char *key, uint64_t value);
WEFT_MUST_CHECK weft_status weft_checkpoint_add_f64(weft_checkpoint_writer *writer, const char *key, double value);
WEFT_MUST_CHECK weft_status weft_checkpoint_add_text(weft_checkpoint_writer *writer, const char *key, const char *value);

/* Writes it all, syncs, and puts the file at its path. On any error what was at the path stays. */
WEFT_MUST_CHECK weft_status weft_checkpoint_commit(weft_checkpoint_writer *writer);

/* NULL is allowed. */
void weft_checkpoint_writer_release(weft_checkpoint_writer *writer);

/* ---- Reading ---- */

typedef struct weft_checkpoint weft_checkpoint;

/* Opens a checkpoint, or any safetensors file; errors as of weft_safetensors_open. */
WEFT_MUST_CHECK weft_status weft_checkpoint_open(const char *path, weft_checkpoint **checkpoint_out);

/* True where the file has such an array; its form then in *dtype_out and *shape_out, which may be NULL. */
bool weft_checkpoint_find(const weft_checkpoint *checkpoint, const char *name, weft_dtype *dtype_out,
                          weft_shape *shape_out);

/* Reads an array into host memory. WEFT_E_NOT_FOUND where it is missing; WEFT_E_DTYPE and WEFT_E_SHAPE where it is not
 * what is asked for, naming both; WEFT_E_CORRUPT where its checksum does not match (data_out is then not to be used). */
WEFT_MUST_CHECK weft_status weft_checkpoint_read(weft_checkpoint *checkpoint, const char *name, weft_dtype dtype,
                                                 weft_shape shape, void *data_out);

/* Reads a value. WEFT_E_NOT_FOUND where it is missing, WEFT_E_DTYPE where it is of another type. A text is valid until
 * release. */
WEFT_MUST_CHECK weft_status weft_checkpoint_read_i64(const weft_checkpoint *checkpoint, const char *key, int64_t *value_out);
WEFT_MUST_CHECK weft_status weft_checkpoint_read_u64(const weft_checkpoint *checkpoint, const char *key, uint64_t *value_out);
WEFT_MUST_CHECK weft_status weft_checkpoint_read_f64(const weft_checkpoint *checkpoint, const char *key, double *value_out);
WEFT_MUST_CHECK weft_status weft_checkpoint_read_text(const weft_checkpoint *checkpoint, const char *key, const char **value_out);

/* To be called when everything wanted has been read: WEFT_E_MISMATCH naming the arrays that were not, of which a program
 * that does not know them would lose the contents. `prefix` limits it to names that begin so; NULL means all. */
WEFT_MUST_CHECK weft_status weft_checkpoint_expect_all_read(const weft_checkpoint *checkpoint, const char *prefix);

/* NULL is allowed. */
void weft_checkpoint_release(weft_checkpoint *checkpoint);

#ifdef __cplusplus
}
#endif
#endif

/* Batches: what a loader gives and a trainer takes.
 *
 * A batch is described globally: `global_rows` rows over all ranks, of which this rank holds the `local_rows` rows from
 * `first_row` on. Rank r of N holds rows [b*r/N, b*(r+1)/N) of a batch of b rows, so a batch smaller than N leaves some
 * ranks with none. Fields of one batch have the same number of local rows. */
#ifndef WEFT_BATCH_H
#define WEFT_BATCH_H

#include <stdint.h>
#include <string.h>

#include "weft/dtype.h"
#include "weft/shape.h"

#ifdef __cplusplus
extern "C" {
#endif

#define WEFT_BATCH_MAX_FIELDS 8

/* One named array, as in "image" f32 [local_rows, 1, 28, 28]. */
typedef struct weft_batch_field {
    const char *name;
    weft_dtype  dtype;
    weft_shape  shape; /* local: dim[0] is local_rows */
    const void *data;  /* host memory, row-major and dense, aligned to 64 bytes; owned by who made the batch */
} weft_batch_field;

typedef struct weft_batch {
    int32_t          field_count;
    weft_batch_field field[WEFT_BATCH_MAX_FIELDS];
    int64_t          global_rows; /* over all ranks; less than the batch size in an uneven last batch */
    int64_t          first_row;   /* of this rank, within the global batch */
    int64_t          local_rows;  /* of this rank; may be 0 */
    int64_t          epoch;       /* from 0 */
    int64_t          index;       /* of the batch within its epoch, from 0 */
    int64_t          count;       /* batches in an epoch */
} weft_batch;

/* The rows of a global batch that a rank holds: [*first_out, *first_out + *count_out). The products stay below 2^63 for
 * any batch of fewer than 2^32 rows on fewer than 2^31 ranks. */
static inline void weft_batch_share(int64_t global_rows, int32_t rank, int32_t ranks, int64_t *first_out,
                                    int64_t *count_out) {
    int64_t first = global_rows * rank / ranks;
    *first_out = first;
    *count_out = global_rows * (rank + 1) / ranks - first;
}

/* The field called `name`, or NULL. */
static inline const weft_batch_field *weft_batch_find(const weft_batch *batch, const char *name) {
    for (int32_t i = 0; i < batch->field_count; i++)
        if (strcmp(batch->field[i].name, name) == 0) return &batch->field[i];
    return NULL;
}

#ifdef __cplusplus
}
#endif
#endif

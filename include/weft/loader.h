/* Loaders: batches from data sets, shuffled, sharded, prefetched and resumable.
 *
 * Every epoch visits every row once, in an order that the seed and the epoch's number decide and nothing else: not the
 * number of ranks, of threads, or where a run was interrupted. The order is computed row by row and takes no memory, so
 * data sets may be larger than memory. Rank r of N gets rows [b*r/N, b*(r+1)/N) of each global batch of b rows.
 *
 * A thread reads ahead into a fixed set of buffers; once it runs, taking a batch allocates nothing. A loader belongs to
 * one thread at a time. Nothing here communicates: each rank opens its own loader with the same options but its rank.
 *
 *     weft_image_source  data = {.images = "train-images.gz", .labels = "train-labels.gz", .mean = 0.2860, .deviation = 0.3530};
 *     weft_loader_options how = {.batch = 64, .rank = rank, .ranks = ranks, .seed = 1, .epochs = 3};
 *     if ((s = weft_loader_open_images(&data, &how, &loader)) != WEFT_OK) goto done;
 *     while ((s = weft_loader_next(loader, &batch)) == WEFT_OK) …
 *     if (s != WEFT_END) …
 */
#ifndef WEFT_LOADER_H
#define WEFT_LOADER_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/batch.h"
#include "weft/checkpoint.h"
#include "weft/status.h"
#include "weft/tokens.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_loader weft_loader;

typedef struct weft_loader_options {
    int64_t  batch;       /* rows of a global batch, below 2^32; required */
    int32_t  rank, ranks; /* this rank of how many; ranks 0 means 1 */
    uint64_t seed;        /* of the shuffling */
    int64_t  epochs;      /* 0 means 1; negative means for ever */
    bool     in_order;    /* rows as they lie in the file, for evaluation */
    bool     drop_last;   /* leave out an uneven last batch */
    int32_t  ahead;       /* batches read ahead; 0 means 2 */
    bool     no_thread;   /* read when asked, on the caller's thread */
} weft_loader_options;

/* Images and labels from a pair of IDX files, plain or gzip: fields "image" f32 and "label" i32 [rows]. A row of
 * [H, W] becomes [1, H, W]; of more dimensions it stays as it is. A pixel becomes (v - mean) / deviation, where v is the
 * stored value, u8 divided by 255. Large plain files of bytes are read where they lie. Others (gzip, or values to be
 * converted, or under 4 MiB) are read when opening: into memory up to `memory_bytes` each, beyond that into a nameless
 * file in $TMPDIR (or /var/tmp). */
typedef struct weft_image_source {
    const char *images, *labels; /* labels may be NULL: then there is no such field */
    int64_t     first_row, rows; /* the part to use; rows 0 means all from first_row on */
    double      mean, deviation; /* deviation 0 means 1 */
    int64_t     memory_bytes;    /* 0 means 1 GiB */
    int32_t     classes;         /* > 0: labels are from 0 to classes-1, and any other is an error; 0: they are what they are */
} weft_image_source;

/* Windows of `length` tokens: fields "tokens" and "targets", i32 [rows, length], the targets one token further on. Row w
 * begins at token first_token + w * stride. */
typedef struct weft_text_source {
    const char          *path;
    int32_t              id_bytes;            /* 1 (also 0), or 2 for 16-bit ids */
    int64_t              length;              /* T; required */
    int64_t              stride;              /* 0 means length */
    int64_t              first_token, tokens; /* the part to use; tokens 0 means all from first_token on */
    const weft_alphabet *alphabet;            /* maps bytes to ids; NULL leaves them; copied */
} weft_text_source;

/* Opens a loader on files. *loader_out gets one reference, NULL on error. All errors of weft_idx_open and
 * weft_tokens_open; WEFT_E_SHAPE where images and labels do not fit; WEFT_E_INVALID for options out of range, for a data set
 * without a single batch, and for a label of no class, by row and file (from large files only when its batch comes). */
WEFT_MUST_CHECK weft_status weft_loader_open_images(const weft_image_source *source, const weft_loader_options *options,
                                                    weft_loader **loader_out);
WEFT_MUST_CHECK weft_status weft_loader_open_text(const weft_text_source *source, const weft_loader_options *options,
                                                  weft_loader **loader_out);
/* Opens a loader on arrays in memory, one row of each field a sample: shape.dim[0] of every field is the number of rows.
 * The arrays are borrowed until release and must not change; the names are copied. */
WEFT_MUST_CHECK weft_status weft_loader_open_arrays(const weft_batch_field *fields, int32_t field_count,
                                                    const weft_loader_options *options, weft_loader **loader_out);

/* Hands out the next batch; its memory stays the loader's and is valid until the next call on the loader. WEFT_END after
 * the last batch of the last epoch, and again on every later call. Blocks until the batch has been read. Errors of reading come
 * at the batch that they concern, and stay. */
WEFT_MUST_CHECK weft_status weft_loader_next(weft_loader *loader, weft_batch *batch_out);

/* A batch's form without reading one: field names, dtypes and shapes for the largest share of this rank, data NULL,
 * global_rows the batch size. */
void weft_loader_describe(const weft_loader *loader, weft_batch *batch_out);

/* Rows of the data set, and batches of an epoch. */
int64_t weft_loader_rows(const weft_loader *loader);
int64_t weft_loader_batches(const weft_loader *loader);

/* Where a loader stands: the batch that comes next. The same on all ranks, and good for any number of ranks. */
typedef struct weft_loader_state {
    int64_t  epoch, batch;     /* of the next batch */
    uint64_t seed;
    int64_t  rows, batch_rows; /* of the data set and the options; checked by restore */
    bool     in_order, drop_last;
} weft_loader_state;

void weft_loader_save(const weft_loader *loader, weft_loader_state *state_out);
/* Goes on at `state`, its seed included, as if the loader had come there by itself. WEFT_E_MISMATCH where it was taken
 * from a data set of another size or with another batch or order: the loader is then unchanged. */
WEFT_MUST_CHECK weft_status weft_loader_restore(weft_loader *loader, const weft_loader_state *state);
/* The same by way of a checkpoint, as values under "loader.<name>.…". */
WEFT_MUST_CHECK weft_status weft_loader_save_to(const weft_loader *loader, const char *name,
                                                weft_checkpoint_writer *writer);
WEFT_MUST_CHECK weft_status weft_loader_restore_from(weft_loader *loader, const char *name,
                                                     const weft_checkpoint *checkpoint);
/* Only reads such a position, and moves no loader. */
WEFT_MUST_CHECK weft_status weft_loader_state_read(const weft_checkpoint *checkpoint, const char *name,
                                                   weft_loader_state *state_out);
/* Back to the first batch of epoch 0. */
WEFT_MUST_CHECK weft_status weft_loader_rewind(weft_loader *loader);

/* Goes on as rank `rank` of `ranks`, at the batch that comes next: after ranks were lost or came. Batches handed out before are
 * gone; where it is that rank already nothing happens. WEFT_E_INVALID, WEFT_E_NO_MEMORY: the loader is then unchanged. */
WEFT_MUST_CHECK weft_status weft_loader_share(weft_loader *loader, int32_t rank, int32_t ranks);

/* Stops the thread and frees everything. NULL is allowed. */
void weft_loader_release(weft_loader *loader);

#ifdef __cplusplus
}
#endif
#endif

/* What computing a large loss by chunks of rows is made of (chunk.c, chunk_emit.c). */
#ifndef WEFTI_PLAN_CHUNK_H
#define WEFTI_PLAN_CHUNK_H

#include "core/plan/ir.h"

/* What an item is among those that have something as large as the logits. */
typedef enum wefti_chunk_role {
    WEFTI_CHUNK_NONE,
    WEFTI_CHUNK_MAKE, /* a product whose rows are rows of logits */
    WEFTI_CHUNK_MAP,  /* elementwise, as large as the logits */
    WEFTI_CHUNK_LOSS,
    WEFTI_CHUNK_SLOPE, /* CROSS_ENTROPY_BACKWARD */
    WEFTI_CHUNK_PICK,  /* ARGMAX over classes: a number a row */
    WEFTI_CHUNK_ROWS,  /* a product of something large whose rows are its rows */
    WEFTI_CHUNK_INNER, /* a product that adds up over rows */
    WEFTI_CHUNK_SUM    /* SUM over rows */
} wefti_chunk_role;

/* How an item reads one of its inputs: as it is, or as its rows [first, first + count) of a chunk. */
typedef struct wefti_chunk_read {
    bool    whole, inside; /* inside: computed by the chunk itself */
    int32_t axis;          /* of the rows in `shape` */
    weft_shape shape;      /* as which the value is seen */
    int64_t stride[WEFT_MAX_RANK];
} wefti_chunk_read;

typedef struct wefti_chunks {
    wefti_ir  *ir;
    wefti_uses uses;     /* by root */
    int32_t   *position; /* by item */
    int32_t   *ended;    /* by value: wefti_ir_endings */
    uint8_t   *role;     /* by item: a wefti_chunk_role */
    uint8_t   *large;    /* by value: computed among them, as large as the logits */
    int32_t   *members;  /* [n_members] items, at last in their order */
    uint8_t   *before;   /* by item: to be done before the loss, behind which it stands … */
    uint8_t   *after;    /* … and the other way round */
    int32_t   *now;      /* by value: what stands for it in the chunk that is written */
    int32_t    n_members, n_items, n_values;
    int32_t    loss;
    int64_t    rows, classes, rows_each;
    const char *why; /* not: what is in the way. NULL: nothing */
} wefti_chunks;

/* How the member reads its input; false where that cannot be said with strides. */
bool wefti_chunk_reads(const wefti_chunks *c, int32_t item, int32_t input, wefti_chunk_read *read_out);
/* Whether the value is its root, whole and in order, maybe in another shape. */
bool wefti_chunk_is_whole(const wefti_ir *ir, const wefti_value *value);
/* Writes the members chunk by chunk where the loss stood. chunk_emit.c */
WEFT_MUST_CHECK weft_status wefti_chunks_emit(wefti_chunks *c);

#endif

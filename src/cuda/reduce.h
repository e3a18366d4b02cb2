/* How a reduction is cut: by its shape and axes alone, so that its tree, and with it every bit of the result, is the same wherever the
 * elements come from (reduce.cu, or a fused program that computes them on the way).
 *
 * The axes are kept or reduced away; kept elements k and reduced elements r are counted row-major over theirs. The reduced elements are cut
 * into `pieces` of `per_piece`; each gives a partial result, and partial results are combined in a pass of their own where there are several.
 * - By rows, where neighbours in memory are reduced together: a team of 32 or 256 threads has a piece. Thread t takes the GROUP elements
 *   from t*GROUP on, then those a team's GROUPs further, and so on; a group is combined as a balanced tree, and groups in order. The
 *   team's threads are combined by halves in each warp, and the warps in order.
 * - By columns, where neighbours are kept: a thread of `team` has every team-th element of a piece, in order; the team is combined in
 *   order. Teams are the larger the fewer columns there are, so that a block always has whole cache lines.
 * Partial results are combined by halves in a warp whose lane l combines partial results l, l + 32, ... in order. */
#ifndef WEFTI_CUDA_REDUCE_H
#define WEFTI_CUDA_REDUCE_H

#include "cuda/cuda.h"

enum {
    WEFTI_REDUCE_GROUP = 8,    /* 16 bytes of a 16-bit type, two such accesses of f32 */
    WEFTI_REDUCE_BLOCK = 256,
    WEFTI_REDUCE_BLOCKS = 2112, /* as many pieces as keep a large GPU busy (two rounds of eight blocks on 132 multiprocessors), where there are few results */
    WEFTI_REDUCE_COLUMN_BLOCKS = 528, /* by columns: one round of four blocks, for a round that is not full is as long as one that is */
    WEFTI_REDUCE_COLUMN_RESIDENT = 4,
    WEFTI_REDUCE_COLUMN_BYTES = 16 /* of a row that a thread takes; counted for 16-bit elements: what it is follows from the dtype */
};

typedef struct wefti_cuda_reduction {
    bool    by_rows;
    int32_t team;
    int64_t kept, reduced, pieces, per_piece;
} wefti_cuda_reduction;

static inline wefti_cuda_reduction wefti_cuda_reduction_of(weft_shape space, uint32_t axes) {
    wefti_cuda_reduction r;
    r.kept = r.reduced = 1;
    r.by_rows = false;
    for (int32_t axis = 0; axis < space.rank; axis++) {
        bool away = axes >> axis & 1;
        *(away ? &r.reduced : &r.kept) *= space.dim[axis];
        if (space.dim[axis] != 1) r.by_rows = away; /* the last one says it */
    }
    if (r.reduced <= 2 * WEFTI_REDUCE_GROUP) r.by_rows = false;
    int64_t blocks, least; /* without cutting; elements that are worth a piece */
    if (r.by_rows) {
        r.team = r.reduced > 4 * 32 * WEFTI_REDUCE_GROUP ? WEFTI_REDUCE_BLOCK : 32;
        blocks = r.kept;
        least = 4 * WEFTI_REDUCE_BLOCK * WEFTI_REDUCE_GROUP;
    } else {
        int64_t across = WEFTI_REDUCE_BLOCK * WEFTI_REDUCE_COLUMN_BYTES / 2; /* columns of a block, were its team of one */
        r.team = r.reduced >= 32 ? 8 : 1;
        while (r.team > 1 && r.team < 32 && r.kept * r.team <= across / 2 && r.reduced >= 16 * r.team) r.team *= 2;
        blocks = (r.kept * r.team + across - 1) / across;
        least = 8 * (int64_t)r.team;
    }
    int64_t most = r.reduced / least, wanted = blocks > 0 ? (r.by_rows ? WEFTI_REDUCE_BLOCKS : WEFTI_REDUCE_COLUMN_BLOCKS) / blocks : 1;
    r.pieces = wanted < most ? wanted : most;
    if (r.pieces < 1) r.pieces = 1;
    r.per_piece = (r.reduced + r.pieces - 1) / r.pieces;
    if (r.by_rows) { /* whole rounds of the team, so that pieces begin where vectors do */
        int64_t round = (int64_t)r.team * WEFTI_REDUCE_GROUP;
        r.per_piece = (r.per_piece + round - 1) / round * round;
    }
    if (r.per_piece < 1) r.per_piece = 1;
    r.pieces = r.reduced > 0 ? (r.reduced + r.per_piece - 1) / r.per_piece : 1;
    return r;
}

/* Bytes of partial results, of 8 bytes each: [pieces][kept]; none where there is one piece. */
static inline int64_t wefti_cuda_reduction_scratch(const wefti_cuda_reduction *r) { return r->pieces > 1 ? r->pieces * r->kept * 8 : 0; }

#ifdef __cplusplus
extern "C" {
#endif
/* Partial results of a reduction by `op` (SUM, MEAN, MAX, MIN), f32 for f32, f16 and bf16, f64 for f64 and i64 for integers; the divisor is
 * MEAN's. */
typedef struct wefti_cuda_partials {
    weft_op     op;
    weft_dtype  dtype;
    double      divisor;
    const void *from;
    void       *to;
} wefti_cuda_partials;
enum { WEFTI_REDUCE_AT_ONCE = 8 };
/* Enqueues the last pass over those of up to WEFTI_REDUCE_AT_ONCE reductions that were cut alike. */
WEFT_MUST_CHECK weft_status wefti_cuda_reduce_partials(const wefti_cuda_run *run, const wefti_cuda_reduction *r, const wefti_cuda_partials *partials,
                                                       int32_t n);
#ifdef __cplusplus
}
#endif
#endif

/* Compressed sums over ranks: what a gradient's ALL_REDUCE becomes where the strategy compresses (weft/compression.h).
 *
 * Begun and ended apart: between the two, other gradients can be begun, so that nobody waits for a first message with nothing else on
 * the way. What is emitted is the same on every rank. */
#ifndef WEFTI_COMPRESS_H
#define WEFTI_COMPRESS_H

#include "core/graph/graph.h"
#include "core/tensor/codec.h"

typedef struct wefti_compress {
    const weft_compression *how;
    weft_graph             *graph;      /* of one rank, where it is emitted */
    int32_t                 ranks, rank;
    int64_t                 group;      /* attrs.comm.group of what goes between them */
    weft_tensor            *loss_scale; /* f32 scalar that gradients are multiplied by; NULL: they are not */
} wefti_compress;

/* One gradient on its way; in graph memory. */
typedef struct wefti_compressed {
    const wefti_compress    *compress;
    const char              *parameter; /* name */
    weft_tensor             *sum;       /* this rank's, what was fed back included */
    weft_tensor             *sent;      /* the result of the first message */
    weft_tensor             *own;       /* what this rank sent, in f32; NULL: nothing is fed back */
    weft_tensor             *error, *basis, *next_basis; /* states, and what the second becomes; NULL: none */
    weft_tensor             *result;    /* NULL: not ended yet */
    struct wefti_compressed *next;      /* for whoever keeps a list */
} wefti_compressed;

/* WEFT_E_INVALID naming the field. */
WEFT_MUST_CHECK weft_status wefti_compress_check(const weft_compression *how);
/* Whether a parameter's gradient is compressed. */
bool wefti_compress_takes(const weft_compression *how, weft_dtype dtype, weft_shape shape);
/* Whether a rank keeps what it leaves out. */
bool wefti_compress_feeds_back(const weft_compression *how);

/* Begins the sum over ranks of `sum`, of the parameter of that name; NULL (error latched in the graph) where there is no memory. */
wefti_compressed *wefti_compress_begin(const wefti_compress *compress, weft_tensor *sum, const char *parameter);
/* The sum over all ranks. */
weft_tensor *wefti_compress_end(wefti_compressed *one);
/* Keeps what was left out for the next step, but where `skip` (bool scalar). Once, after the end. */
void wefti_compress_keep(wefti_compressed *one, weft_tensor *skip);

#define WEFTI_COMPRESS_ERROR "weft.compress.error/"
#define WEFTI_COMPRESS_BASIS "weft.compress.basis/"
#define WEFTI_COMPRESS_PUSHES "weft.compress.pushes" /* to servers, by which random rounding draws */

/* --- for the files of the codecs --- */

/* Prefix and name, in graph memory; never NULL. */
const char *wefti_compress_name(const wefti_compress *compress, const char *prefix, const char *parameter);
weft_tensor *wefti_compress_communicate(const wefti_compress *compress, weft_op op, weft_tensor *x, weft_shape result);
weft_tensor *wefti_compress_state(const wefti_compress *compress, const char *prefix, const char *parameter, weft_shape shape,
                                  wefti_init_kind init);
int64_t wefti_compress_rank_of(const weft_compression *how, weft_shape shape);
void wefti_factor_begin(wefti_compressed *one);
void wefti_factor_end(wefti_compressed *one);

#endif

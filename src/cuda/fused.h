/* FUSED programs as text: what fused_text.c writes of one, and what fused.c needs to know of it. */
#ifndef WEFTI_CUDA_FUSED_H
#define WEFTI_CUDA_FUSED_H

#include "cuda/nvrtc.h"
#include "cuda/reduce.h"

enum {
    WEFTI_FUSED_BLOCK = WEFTI_REDUCE_BLOCK,
    WEFTI_FUSED_LANES = 8,
    WEFTI_FUSED_HELD = 32,    /* elements of a row that a thread holds at most */
    WEFTI_FUSED_STAYING = 396 /* blocks that go through all rows: three of 128 threads for each of 132 multiprocessors */
};

/* What a kernel goes through: each element once, or in the order of one of reduce.h's reductions, so that sums are made on
 * the way, or row after row, each of which is normalised. */
typedef enum wefti_fused_walk { WEFTI_FUSED_FLAT, WEFTI_FUSED_ROWS, WEFTI_FUSED_COLUMNS, WEFTI_FUSED_NORMALIZED } wefti_fused_walk;

typedef struct wefti_fused_loop {
    wefti_fused_walk     walk;
    wefti_cuda_reduction how;    /* ROWS, COLUMNS; NORMALIZED: kept are a row's elements, reduced are rows, pieces are blocks */
    uint32_t             axes;   /* that are reduced away on the way */
    int32_t              lanes;  /* neighbours that a thread computes at a time */
    int64_t              blocks;
    int32_t              threads, team; /* of a block; NORMALIZED: that share a row */
} wefti_fused_loop;
/* Follows from the call alone. */
wefti_fused_loop wefti_cuda_fused_loop(const wefti_call *call, const wefti_fused *fused);
/* Whether a kernel can be written for it. */
bool wefti_cuda_fused_takes(const wefti_call *call, const wefti_fused *fused);
/* Whether output k is summed on the way; then its word is the address of partial results, [pieces][kept]. Else a reduced output's word is
 * that of all its elements, which somebody has yet to reduce. */
static inline bool wefti_cuda_fused_sums(const wefti_fused_loop *loop, const wefti_fused *fused, int32_t k) {
    const wefti_fused_output *out = &fused->output[k];
    return loop->walk != WEFTI_FUSED_FLAT && (out->reduce == WEFT_OP_SUM || out->reduce == WEFT_OP_MEAN) && out->axes == loop->axes;
}

/* The kernel "weft_fused" of a program, and its argument: an array of 64-bit words. The addresses of inputs stand from input_word on, those
 * of outputs from output_word on. `words` has room for wefti_cuda_fused_words(). */
typedef struct wefti_fused_text {
    wefti_text text;
    int32_t    n_words, input_word, output_word;
    int64_t    elements;
} wefti_fused_text;
int32_t wefti_cuda_fused_words(const wefti_call *call, int32_t n_instructions);
/* `many`, where it is not 0: a kernel for up to so many programs of one text, of those that go through each element once. Its argument is a struct of many + 1
 * numbers of 32 bits, the block with which each begins, and so many arrays of words. */
WEFT_MUST_CHECK weft_status wefti_cuda_fused_write(const wefti_call *call, const wefti_fused *fused, int32_t many, uint64_t *words, wefti_fused_text *text_out);

#endif

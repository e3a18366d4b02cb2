/* What the kernels of attention know of a call: sizes, strides, what is seen. Plain C, for attention.cu and dnn_attention.c. */
#ifndef WEFTI_CUDA_ATTENTION_H
#define WEFTI_CUDA_ATTENTION_H

#include "cuda/cuda.h"

typedef struct wefti_cuda_heads {
    int64_t batch, heads, key_heads, queries, keys, depth, value_depth;
    double  scale;
    int64_t causal, shift; /* all eight bytes wide: compared as bytes */
} wefti_cuda_heads;

/* Of ATTENTION (first = 0) or ATTENTION_BACKWARD (first = 1): where q is among the inputs. */
static inline wefti_cuda_heads wefti_cuda_heads_of(const wefti_call *call, int32_t first) {
    const wefti_operand *q = &call->inputs[first], *k = q + 1, *v = q + 2;
    wefti_cuda_heads     heads;
    heads.batch = q->shape.dim[0], heads.heads = q->shape.dim[1], heads.key_heads = k->shape.dim[1];
    heads.queries = q->shape.dim[2], heads.keys = k->shape.dim[2];
    heads.depth = q->shape.dim[3], heads.value_depth = v->shape.dim[3];
    heads.scale = call->attrs->attention.scale, heads.causal = call->attrs->attention.causal;
    heads.shift = heads.causal ? call->attrs->attention.shift : 0;
    return heads;
}

/* Where a result lies: elements from one batch, head and row to the next, and to the first. */
typedef struct wefti_cuda_heads_out {
    int64_t first, batch, head, row;
} wefti_cuda_heads_out;
/* Of o (which = 0 of ATTENTION), or of dq, dk and dv (which = 0, 1, 2 of its gradient). */
static inline wefti_cuda_heads_out wefti_cuda_heads_result(const wefti_call *call, int32_t which) {
    bool             backward = call->op == WEFT_OP_ATTENTION_BACKWARD;
    wefti_cuda_heads is = wefti_cuda_heads_of(call, backward);
    int64_t          depth = backward && which < 2 ? is.depth : is.value_depth, heads = backward && which > 0 ? is.key_heads : is.heads;
    int64_t          rows = backward && which > 0 ? is.keys : is.queries, all = backward ? 3 * is.heads : is.heads;
    wefti_cuda_heads_out packed = {0, heads * rows * depth, rows * depth, depth};
    wefti_cuda_heads_out by_rows = {which * is.heads * depth, rows * all * depth, depth, all * depth};
    return call->attrs->attention.by_rows ? by_rows : packed;
}

#endif

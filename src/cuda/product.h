/* A MATMUL call as the product kernels see it: sizes, strides after the transposes, and a batch whose axes are merged. */
#ifndef WEFTI_CUDA_PRODUCT_H
#define WEFTI_CUDA_PRODUCT_H

#include "cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* c [batches, m, n] contiguous = a [batch, m, k] times b [batch, k, n]; strides in elements, 0 where repeated. */
typedef struct wefti_cuda_product {
    int64_t m, n, k;
    int64_t a_row, a_inner, b_inner, b_column;
    int64_t batches; /* the product of batch[0, batch_rank) */
    int32_t batch_rank;
    int64_t batch[WEFT_MAX_RANK], a_batch[WEFT_MAX_RANK], b_batch[WEFT_MAX_RANK];
} wefti_cuda_product;

/* The batch becomes rows where b is the same for all of it and a's rows follow each other evenly; what is left of it loses axes of
 * size 1, and neighbours that lie in one piece in both operands merge. */
void wefti_cuda_product_of(const wefti_call *call, wefti_cuda_product *product_out);

#ifdef __cplusplus
}
#endif
#endif

/* Products' sizes and strides (product.h). */
#include "cuda/product.h"

#include <string.h>

/* Strides of the operand's leading axes over the batch. */
static void batch_strides(const wefti_operand *operand, weft_shape batch, int64_t stride_out[WEFT_MAX_RANK]) {
    wefti_operand leading = *operand;
    leading.shape.rank -= 2;
    wefti_operand_expand(&leading, batch, stride_out);
}

/* Drops axes of size 1 and merges neighbours. */
static void merge_axes(wefti_cuda_product *p) {
    int32_t rank = 0;
    for (int32_t axis = 0; axis < p->batch_rank; axis++) {
        int64_t dim = p->batch[axis], a = p->a_batch[axis], b = p->b_batch[axis];
        if (dim == 1) continue;
        if (rank > 0 && p->a_batch[rank - 1] == dim * a && p->b_batch[rank - 1] == dim * b) {
            p->batch[rank - 1] *= dim;
            p->a_batch[rank - 1] = a;
            p->b_batch[rank - 1] = b;
            continue;
        }
        p->batch[rank]   = dim;
        p->a_batch[rank] = a;
        p->b_batch[rank] = b;
        rank++;
    }
    p->batch_rank = rank;
}

/* One axis is left, b repeats along it, and a goes on where its rows end: more rows. */
static void merge_rows(wefti_cuda_product *p) {
    if (p->batch_rank != 1 || p->b_batch[0] != 0) return;
    if (p->m == 1) p->a_row = p->a_batch[0];
    else if (p->a_batch[0] != p->m * p->a_row) return;
    p->m *= p->batch[0];
    p->batch_rank = 0;
    p->batches    = 1;
}

void wefti_cuda_product_of(const wefti_call *call, wefti_cuda_product *product_out) {
    const wefti_operand *a = &call->inputs[0], *b = &call->inputs[1], *c = &call->outputs[0];
    int32_t              a_last = a->shape.rank - 1, b_last = b->shape.rank - 1;
    int32_t              trans_a = call->attrs->matmul.trans_a != 0, trans_b = call->attrs->matmul.trans_b != 0;
    weft_shape           batch = c->shape;
    wefti_cuda_product  *p     = product_out;
    batch.rank -= 2;
    memset(p, 0, sizeof *p);
    p->m          = c->shape.dim[c->shape.rank - 2];
    p->n          = c->shape.dim[c->shape.rank - 1];
    p->k          = a->shape.dim[a_last - trans_a];
    p->a_row      = a->stride[a_last - 1 + trans_a];
    p->a_inner    = a->stride[a_last - trans_a];
    p->b_inner    = b->stride[b_last - 1 + trans_b];
    p->b_column   = b->stride[b_last - trans_b];
    p->batches    = weft_shape_elements(batch);
    p->batch_rank = batch.rank;
    for (int32_t axis = 0; axis < batch.rank; axis++) p->batch[axis] = batch.dim[axis];
    batch_strides(a, batch, p->a_batch);
    batch_strides(b, batch, p->b_batch);
    merge_axes(p);
    merge_rows(p);
}

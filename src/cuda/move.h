/* What kernels of several families need moved. */
#ifndef WEFTI_CUDA_MOVE_H
#define WEFTI_CUDA_MOVE_H

#include "cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Enqueues a copy of the elements of `space` from one strided place to another (strides in elements, [space.rank]; 0 in `from` where
 * it repeats). The places do not overlap. */
WEFT_MUST_CHECK weft_status wefti_cuda_copy(const wefti_cuda_run *run, weft_dtype dtype, weft_shape space, const void *from,
                                            const int64_t *from_stride, void *to, const int64_t *to_stride);
/* As wefti_cuda_copy of an operand, expanded to `space`, to row-major memory. */
WEFT_MUST_CHECK weft_status wefti_cuda_pack(const wefti_cuda_run *run, const wefti_operand *operand, weft_shape space, const void *from,
                                            void *to);

#ifdef __cplusplus
}
#endif
#endif

/* Which kernels compute which op, best first. A row without kernels is an op that the CUDA device does not compute: its query says so. */
#include "cuda/cuda.h"

const wefti_cuda_kernel *const wefti_cuda_kernels[WEFT_OP_COUNT][WEFTI_CUDA_CHOICES] = {
    [WEFT_OP_CUSTOM] = {&wefti_cuda_custom},
    [WEFT_OP_CUSTOM_BACKWARD] = {&wefti_cuda_custom},
};

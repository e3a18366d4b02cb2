/* Which kernels compute which op, best first. A row without kernels is an op that the CUDA device does not compute: its query says so. */
#include "cuda/cuda.h"

#ifdef WEFT_HAVE_CUDNN
#define DNN(kernel) &kernel,
#else
#define DNN(kernel)
#endif

const wefti_cuda_kernel *const wefti_cuda_kernels[WEFT_OP_COUNT][WEFTI_CUDA_CHOICES] = {
    [WEFT_OP_MATMUL] = {&wefti_cuda_matmul_blas, &wefti_cuda_matmul},
    [WEFT_OP_CONV2D] = {DNN(wefti_cuda_conv2d_dnn) &wefti_cuda_conv2d},
    [WEFT_OP_CONV2D_BACKWARD_INPUT] = {DNN(wefti_cuda_conv2d_backward_input_dnn) &wefti_cuda_conv2d_backward_input},
    [WEFT_OP_CONV2D_BACKWARD_WEIGHT] = {DNN(wefti_cuda_conv2d_backward_weight_dnn) &wefti_cuda_conv2d_backward_weight},
    [WEFT_OP_MAX_POOL2D] = {&wefti_cuda_max_pool2d},
    [WEFT_OP_MAX_POOL2D_BACKWARD] = {&wefti_cuda_max_pool2d_backward},
    [WEFT_OP_MAX_POOL2D_TAKE] = {&wefti_cuda_max_pool2d_take},
    [WEFT_OP_AVG_POOL2D] = {&wefti_cuda_avg_pool2d},
    [WEFT_OP_AVG_POOL2D_BACKWARD] = {&wefti_cuda_avg_pool2d_backward},
    [WEFT_OP_NORMALIZE] = {&wefti_cuda_normalize},
    [WEFT_OP_NORMALIZE_BACKWARD] = {&wefti_cuda_normalize_backward},
    [WEFT_OP_SOFTMAX] = {&wefti_cuda_softmax},
    [WEFT_OP_LOG_SOFTMAX] = {&wefti_cuda_softmax},
    [WEFT_OP_SOFTMAX_BACKWARD] = {&wefti_cuda_softmax_backward},
    [WEFT_OP_LOG_SOFTMAX_BACKWARD] = {&wefti_cuda_softmax_backward},
    [WEFT_OP_ROTARY] = {&wefti_cuda_rotary},
    [WEFT_OP_CROSS_ENTROPY] = {&wefti_cuda_cross_entropy},
    [WEFT_OP_CROSS_ENTROPY_BACKWARD] = {&wefti_cuda_cross_entropy_backward},
    [WEFT_OP_ATTENTION] = {&wefti_cuda_attention},
    [WEFT_OP_ATTENTION_BACKWARD] = {&wefti_cuda_attention_backward},
    [WEFT_OP_CUSTOM] = {&wefti_cuda_custom},
    [WEFT_OP_CUSTOM_BACKWARD] = {&wefti_cuda_custom},
};

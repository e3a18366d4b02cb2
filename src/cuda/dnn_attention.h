/* Graphs of cuDNN that its engines know as flash attention: which operands they have, and how they are made. */
#ifndef WEFTI_CUDA_DNN_ATTENTION_H
#define WEFTI_CUDA_DNN_ATTENTION_H

#include "cuda/attention.h"
#include "cuda/dnn.h"

/* Operands by id. Those from SCALE on are single numbers given by value; SUM and QUERIES are the library's room in our scratch. */
typedef enum wefti_cuda_dnn_attention_id {
    WEFTI_DNN_Q = 1, WEFTI_DNN_K, WEFTI_DNN_V, WEFTI_DNN_O, WEFTI_DNN_LSE, WEFTI_DNN_G, WEFTI_DNN_DQ, WEFTI_DNN_DK, WEFTI_DNN_DV,
    WEFTI_DNN_SUM, WEFTI_DNN_QUERIES, WEFTI_DNN_SCALE, WEFTI_DNN_NOTHING, WEFTI_DNN_ONE, WEFTI_DNN_KEY_COUNT, WEFTI_DNN_QUERY_COUNT,
    WEFTI_DNN_INNER = 100 /* and on: what is never stored */
} wefti_cuda_dnn_attention_id;

typedef struct wefti_cuda_dnn_attention {
    wefti_cuda_heads is;
    weft_dtype       dtype;
    int32_t          ordered; /* backward: dq is added up in one order */
    int64_t          q[4], k[4], v[4], o[4], g[4], result[3][4]; /* strides; results: o, or dq, dk and dv */
} wefti_cuda_dnn_attention;

enum { WEFTI_DNN_ATTENTION_OPERATIONS = 40 };
/* Make the operations of a graph and give their number; the graph latches what fails. */
int32_t wefti_cuda_dnn_attention_forward(wefti_cuda_dnn_graph *graph, const wefti_cuda_dnn_attention *what,
                                         cudnnBackendDescriptor_t *operations_out);
int32_t wefti_cuda_dnn_attention_backward(wefti_cuda_dnn_graph *graph, const wefti_cuda_dnn_attention *what,
                                          cudnnBackendDescriptor_t *operations_out);

#endif

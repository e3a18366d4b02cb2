/* cuDNN from inside: the table of its functions, what a device keeps of it, and graphs of its operations made into plans.
 *
 * A graph collects descriptors and latches the first error, so that making one reads without a check a line:
 *
 *     wefti_cuda_dnn_graph graph;
 *     wefti_cuda_dnn_begin(&graph, cuda->dnn);
 *     cudnnBackendDescriptor_t x = wefti_cuda_dnn_tensor(&graph, &(wefti_cuda_dnn_operand){.id = 'x', ...});
 *     ...
 *     status = wefti_cuda_dnn_plan_make(cuda, &graph, &operation, 1, &wishes, &plan);  // says what failed, if anything did
 *     wefti_cuda_dnn_end(&graph);                                                      // the plan stays
 */
#ifndef WEFTI_CUDA_DNN_H
#define WEFTI_CUDA_DNN_H

#include <cudnn.h>

#include "cuda/cuda.h"
#include "cuda/library.h"

#define WEFTI_CUDA_DNN_FUNCTIONS(X)                                                                              \
    X(cudnnGetVersion) X(cudnnGetErrorString) X(cudnnGetLastErrorString) X(cudnnCreate) X(cudnnDestroy)          \
    X(cudnnSetStream) X(cudnnBackendCreateDescriptor) X(cudnnBackendDestroyDescriptor) X(cudnnBackendFinalize)   \
    X(cudnnBackendSetAttribute) X(cudnnBackendGetAttribute) X(cudnnBackendExecute)
typedef struct wefti_cuda_dnn_functions {
    WEFTI_CUDA_DNN_FUNCTIONS(WEFTI_CUDA_FUNCTION)
} wefti_cuda_dnn_functions;

/* What a device keeps: made by the first call that is prepared, released with the device. */
typedef struct wefti_cuda_dnn {
    const wefti_cuda_dnn_functions *f;
    cudnnHandle_t                   handle;
    uint64_t                        version;
    struct wefti_cuda_dnn_attention_plan   *attention;    /* by shape (dnn_attention.c) */
    struct wefti_cuda_dnn_convolution_plan *convolutions; /* likewise (dnn_conv.c) */
    /* Properties of a device that is not there, in place of the handle: for tests of what cuDNN makes of graphs. NULL: none. */
    cudnnBackendDescriptor_t properties;
} wefti_cuda_dnn;
/* Release what attention and convolutions keep there. */
void wefti_cuda_dnn_attention_close(wefti_cuda *cuda);
void wefti_cuda_dnn_convolutions_close(wefti_cuda *cuda);

/* The library's functions, loaded at the first call; NULL, with the reason in *why_out (which may be NULL), where it is not there. */
const wefti_cuda_dnn_functions *wefti_cuda_dnn_load(const char **why_out);
/* Fills cuda->dnn. WEFT_E_UNSUPPORTED where the library is not there, WEFT_E_DEVICE where it does not start. */
WEFT_MUST_CHECK weft_status wefti_cuda_dnn_open(wefti_cuda *cuda);

/* --- graphs --- */

enum { WEFTI_CUDA_DNN_MADE = 160 };
typedef struct wefti_cuda_dnn_graph {
    const wefti_cuda_dnn    *dnn;
    cudnnBackendDescriptor_t made[WEFTI_CUDA_DNN_MADE];
    int32_t                  n_made;
    cudnnStatus_t            status; /* the first that is no success; later calls do nothing then */
    char                     failed[96];
} wefti_cuda_dnn_graph;

void wefti_cuda_dnn_begin(wefti_cuda_dnn_graph *graph, const wefti_cuda_dnn *dnn);
/* Destroys all descriptors that the graph made. */
void wefti_cuda_dnn_end(wefti_cuda_dnn_graph *graph);
/* A descriptor that the graph owns, to be filled and finished; NULL after an error. */
cudnnBackendDescriptor_t wefti_cuda_dnn_make(wefti_cuda_dnn_graph *graph, cudnnBackendDescriptorType_t type);
void wefti_cuda_dnn_set(wefti_cuda_dnn_graph *graph, cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                        cudnnBackendAttributeType_t type, int64_t count, const void *values);
void wefti_cuda_dnn_finish(wefti_cuda_dnn_graph *graph, cudnnBackendDescriptor_t descriptor, const char *what);

typedef struct wefti_cuda_dnn_operand {
    int64_t         id;
    cudnnDataType_t dtype;
    int32_t         rank;
    const int64_t  *dim, *stride;
    int64_t         alignment; /* bytes; 0: 16 */
    bool            is_virtual, by_value;
} wefti_cuda_dnn_operand;
cudnnBackendDescriptor_t wefti_cuda_dnn_tensor(wefti_cuda_dnn_graph *graph, const wefti_cuda_dnn_operand *operand);

/* Float dtypes as cuDNN calls them. */
static inline cudnnDataType_t wefti_cuda_dnn_dtype(weft_dtype dtype) {
    return dtype == WEFT_F64    ? CUDNN_DATA_DOUBLE
           : dtype == WEFT_BF16 ? CUDNN_DATA_BFLOAT16
           : dtype == WEFT_F16  ? CUDNN_DATA_HALF
                                : CUDNN_DATA_FLOAT;
}

/* --- plans --- */

/* What a plan may be. Engines that add in an order of chance, sum in 16 bits, or round factors below their dtype are never taken, unless
 * the device rounds f32 factors to tf32. */
typedef struct wefti_cuda_dnn_wishes {
    weft_dtype dtype;           /* of the factors */
    int64_t    workspace_bytes; /* at most */
    /* For measuring: all operands that have memory, and their bytes. n_operands 0: the heuristic's first is taken. */
    int32_t        n_operands;
    int32_t        result; /* which of them is written */
    const int64_t *ids, *bytes;
    const void    *key; /* what the choice depends on, apart from the library and the device, for keeping it on disk */
    size_t         key_bytes;
} wefti_cuda_dnn_wishes;

typedef struct wefti_cuda_dnn_plan {
    cudnnBackendDescriptor_t plan, config;
    int64_t                  workspace_bytes;
} wefti_cuda_dnn_plan;

/* WEFT_E_UNSUPPORTED, saying why, where cuDNN has no engine for the graph (or the graph has latched an error). */
WEFT_MUST_CHECK weft_status wefti_cuda_dnn_plan_make(wefti_cuda *cuda, wefti_cuda_dnn_graph *graph, const cudnnBackendDescriptor_t *operations,
                                                     int32_t n_operations, const wefti_cuda_dnn_wishes *wishes,
                                                     wefti_cuda_dnn_plan *plan_out);
void wefti_cuda_dnn_plan_release(wefti_cuda *cuda, wefti_cuda_dnn_plan *plan);
/* What was seen of a candidate's result. */
enum { WEFTI_CUDA_DNN_SEEN = 2048, WEFTI_CUDA_DNN_NONE = -2 };
typedef struct wefti_cuda_dnn_sample {
    double  value[WEFTI_CUDA_DNN_SEEN];
    int64_t n;
} wefti_cuda_dnn_sample;
/* The fastest of n candidates with whose samples at least half of all agree, and another one where there are several; those that took
 * less than no time did not run. WEFTI_CUDA_DNN_NONE where there is none such. */
int32_t wefti_cuda_dnn_choose(const wefti_cuda_dnn_sample *samples, const float *ms, int32_t n);

/* Enqueues the plan on operands by id; by-value operands are host memory. */
WEFT_MUST_CHECK weft_status wefti_cuda_dnn_execute(wefti_cuda *cuda, const wefti_cuda_dnn_plan *plan, int32_t n_operands, const int64_t *ids,
                                                   void *const *pointers, void *workspace, cudaStream_t stream);

#endif

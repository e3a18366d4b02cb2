/* cuDNN: loading it, and its graphs (dnn.h). Plans are in dnn_plan.c. */
#include "cuda/dnn.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

/* --- the library --- */

static struct {
    wefti_cuda_dnn_functions        loaded;
    const wefti_cuda_dnn_functions *functions;
    char                            why[256];
} library;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void load(void) {
    static const char *const names[] = {WEFTI_CUDA_DNN_FUNCTIONS(WEFTI_CUDA_FUNCTION_NAME)};
    if (wefti_cuda_library_wanted("cuDNN", "WEFT_CUDA_DNN") == WEFT_OK &&
        wefti_cuda_library_load("libcudnn.so.9", names, WEFTI_COUNT(names), &library.loaded) == WEFT_OK) {
        library.functions = &library.loaded;
        return;
    }
    snprintf(library.why, sizeof library.why, "%s", weft_error_message());
    wefti_log(WEFT_LOG_WARNING, "cuda: convolutions run on kernels of Weft's own, which are slower: %s", library.why);
}

const wefti_cuda_dnn_functions *wefti_cuda_dnn_load(const char **why_out) {
    pthread_once(&once, load);
    if (why_out) *why_out = library.functions ? NULL : library.why;
    return library.functions;
}

bool wefti_cuda_dnn_is_there(void) { return wefti_cuda_dnn_load(NULL) != NULL; }

weft_status wefti_cuda_dnn_open(wefti_cuda *cuda) {
    if (cuda->dnn) return WEFT_OK;
    const char                     *why;
    wefti_cuda_dnn                 *dnn;
    const wefti_cuda_dnn_functions *f = wefti_cuda_dnn_load(&why);
    if (!f) return wefti_fail(WEFT_E_UNSUPPORTED, "%s", why);
    WEFTI_TRY(wefti_alloc(sizeof *dnn, "cuDNN's state", &dnn));
    memset(dnn, 0, sizeof *dnn);
    dnn->f       = f;
    dnn->version = f->cudnnGetVersion();
    cudnnStatus_t status = f->cudnnCreate(&dnn->handle);
    if (status == CUDNN_STATUS_SUCCESS) {
        cuda->dnn = dnn;
        return WEFT_OK;
    }
    wefti_free(dnn, sizeof *dnn);
    return wefti_fail(WEFT_E_DEVICE, "cuDNN does not start: %s", f->cudnnGetErrorString(status));
}

void wefti_cuda_dnn_close(wefti_cuda *cuda) {
    if (!cuda->dnn) return;
    wefti_cuda_dnn_attention_close(cuda);
    wefti_cuda_dnn_convolutions_close(cuda);
    if (cuda->dnn->handle) cuda->dnn->f->cudnnDestroy(cuda->dnn->handle);
    wefti_free(cuda->dnn, sizeof *cuda->dnn);
    cuda->dnn = NULL;
}

/* --- graphs --- */

void wefti_cuda_dnn_begin(wefti_cuda_dnn_graph *graph, const wefti_cuda_dnn *dnn) {
    memset(graph, 0, sizeof *graph);
    graph->dnn    = dnn;
    graph->status = CUDNN_STATUS_SUCCESS;
}

void wefti_cuda_dnn_end(wefti_cuda_dnn_graph *graph) {
    while (graph->n_made > 0) graph->dnn->f->cudnnBackendDestroyDescriptor(graph->made[--graph->n_made]);
}

static void note(wefti_cuda_dnn_graph *graph, cudnnStatus_t status, const char *what, int number) {
    if (status == CUDNN_STATUS_SUCCESS || graph->status != CUDNN_STATUS_SUCCESS) return;
    graph->status = status;
    snprintf(graph->failed, sizeof graph->failed, "%s %d", what, number);
}

cudnnBackendDescriptor_t wefti_cuda_dnn_make(wefti_cuda_dnn_graph *graph, cudnnBackendDescriptorType_t type) {
    cudnnBackendDescriptor_t made = NULL;
    if (graph->n_made == WEFTI_CUDA_DNN_MADE) note(graph, CUDNN_STATUS_INTERNAL_ERROR, "too many descriptors; type", (int)type);
    if (graph->status != CUDNN_STATUS_SUCCESS) return NULL;
    note(graph, graph->dnn->f->cudnnBackendCreateDescriptor(type, &made), "creating a descriptor of type", (int)type);
    if (graph->status != CUDNN_STATUS_SUCCESS) return NULL;
    graph->made[graph->n_made++] = made;
    return made;
}

void wefti_cuda_dnn_set(wefti_cuda_dnn_graph *graph, cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                        cudnnBackendAttributeType_t type, int64_t count, const void *values) {
    if (graph->status != CUDNN_STATUS_SUCCESS) return;
    note(graph, graph->dnn->f->cudnnBackendSetAttribute(descriptor, name, type, count, values), "setting attribute", (int)name);
}

void wefti_cuda_dnn_finish(wefti_cuda_dnn_graph *graph, cudnnBackendDescriptor_t descriptor, const char *what) {
    if (graph->status != CUDNN_STATUS_SUCCESS) return;
    note(graph, graph->dnn->f->cudnnBackendFinalize(descriptor), what, graph->n_made);
}

cudnnBackendDescriptor_t wefti_cuda_dnn_tensor(wefti_cuda_dnn_graph *graph, const wefti_cuda_dnn_operand *operand) {
    cudnnBackendDescriptor_t tensor    = wefti_cuda_dnn_make(graph, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    int64_t                  alignment = operand->alignment > 0 ? operand->alignment : 16;
    wefti_cuda_dnn_set(graph, tensor, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &operand->id);
    wefti_cuda_dnn_set(graph, tensor, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &operand->dtype);
    wefti_cuda_dnn_set(graph, tensor, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    wefti_cuda_dnn_set(graph, tensor, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, operand->rank, operand->dim);
    wefti_cuda_dnn_set(graph, tensor, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, operand->rank, operand->stride);
    if (operand->is_virtual)
        wefti_cuda_dnn_set(graph, tensor, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &operand->is_virtual);
    if (operand->by_value) wefti_cuda_dnn_set(graph, tensor, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &operand->by_value);
    wefti_cuda_dnn_finish(graph, tensor, "finishing a tensor, descriptor");
    return tensor;
}

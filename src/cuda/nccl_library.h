/* NCCL's functions, loaded at run time. */
#ifndef WEFTI_CUDA_NCCL_LIBRARY_H
#define WEFTI_CUDA_NCCL_LIBRARY_H

#include <nccl.h>

#include "cuda/library.h"

#define WEFTI_CUDA_NCCL_FUNCTIONS(X)                                                                                           \
    X(ncclGetVersion) X(ncclGetUniqueId) X(ncclCommInitRankConfig) X(ncclCommFinalize) X(ncclCommDestroy) X(ncclCommAbort)      \
    X(ncclCommGetAsyncError) X(ncclGetErrorString) X(ncclGetLastError) X(ncclGroupStart) X(ncclGroupEnd) X(ncclAllReduce)       \
    X(ncclReduceScatter) X(ncclAllGather) X(ncclBroadcast) X(ncclReduce) X(ncclSend) X(ncclRecv)

typedef struct wefti_cuda_nccl_functions {
    WEFTI_CUDA_NCCL_FUNCTIONS(WEFTI_CUDA_FUNCTION)
} wefti_cuda_nccl_functions;

/* Loads it once; the table lives for ever. WEFT_E_UNSUPPORTED as wefti_cuda_nccl_version (nccl_engine.h). */
WEFT_MUST_CHECK weft_status wefti_cuda_nccl_load(const wefti_cuda_nccl_functions **functions_out, int32_t *version_out);
/* "2.28.9" of 22809. */
const char *wefti_cuda_nccl_version_text(int32_t version, char text[24]);

#endif

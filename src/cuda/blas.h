/* cuBLASLt from inside: the table of its functions, what a device keeps of it, and how an algorithm is chosen for a product. */
#ifndef WEFTI_CUDA_BLAS_H
#define WEFTI_CUDA_BLAS_H

#include <cublasLt.h>

#include "cuda/cuda.h"
#include "cuda/library.h"
#include "cuda/product.h"

#define WEFTI_CUDA_BLAS_FUNCTIONS(X)                                                                                              \
    X(cublasLtCreate) X(cublasLtDestroy) X(cublasLtGetVersion) X(cublasLtGetStatusString)                                         \
    X(cublasLtMatmulDescCreate) X(cublasLtMatmulDescDestroy) X(cublasLtMatmulDescSetAttribute)                                    \
    X(cublasLtMatrixLayoutCreate) X(cublasLtMatrixLayoutDestroy) X(cublasLtMatrixLayoutSetAttribute)                              \
    X(cublasLtMatmulPreferenceCreate) X(cublasLtMatmulPreferenceDestroy) X(cublasLtMatmulPreferenceSetAttribute)                  \
    X(cublasLtMatmulAlgoGetHeuristic) X(cublasLtMatmulAlgoCheck) X(cublasLtMatmul)
typedef struct wefti_cuda_blas_functions {
    WEFTI_CUDA_BLAS_FUNCTIONS(WEFTI_CUDA_FUNCTION)
} wefti_cuda_blas_functions;

/* The library's functions, loaded at the first call; NULL, with the reason in *why_out (which may be NULL), where it is not there. */
const wefti_cuda_blas_functions *wefti_cuda_blas_load(const char **why_out);

/* What a device keeps: made by the first product that is prepared, released with the device. */
typedef struct wefti_cuda_blas {
    const wefti_cuda_blas_functions *f;
    cublasLtHandle_t                 handle;
    cublasLtMatmulPreference_t       preference;
    struct wefti_cuda_blas_known    *known; /* algorithms chosen so far */
} wefti_cuda_blas;

/* Opens the library for the device, where it is not open yet. WEFT_E_UNSUPPORTED where it is not there. */
WEFT_MUST_CHECK weft_status wefti_cuda_blas_open(wefti_cuda *cuda);

/* What decides on an algorithm; compared as bytes, so zeroed before it is filled. The first matrix is column-major [n, k] after op, the
 * second [k, m], the result [n, m]. */
typedef struct wefti_cuda_blas_key {
    uint64_t version; /* of the library */
    char     device[48];
    int32_t  major, minor, multiprocessors, format; /* format: of this struct */
    int32_t  dtype, compute, first_turned, second_turned;
    int32_t  epilogue, adds, side_alignment, vector_alignment; /* cublasLtEpilogue_t; whether a matrix is added; alignments of what these read and write */
    int64_t  m, n, k, first_ld, second_ld;
    int64_t  batch, first_stride, second_stride, result_stride;
    int32_t  first_alignment, second_alignment, result_alignment, reduction; /* bytes; the schemes allowed for split sums */
    int64_t  workspace_bytes;                                               /* at most */
} wefti_cuda_blas_key;

/* Whether a product with its epilogue is quicker than both apart. */
typedef enum wefti_cuda_blas_verdict { WEFTI_CUDA_BLAS_UNKNOWN, WEFTI_CUDA_BLAS_TOGETHER, WEFTI_CUDA_BLAS_APART } wefti_cuda_blas_verdict;

/* A product as cuBLASLt takes it. */
typedef struct wefti_cuda_blas_product {
    wefti_cuda_blas_key    key;
    cublasLtMatmulDesc_t   operation;
    cublasLtMatrixLayout_t first, second, result;
    cublasLtMatmulAlgo_t   algo;
    size_t                 workspace_bytes; /* of the algorithm */
    wefti_cuda_blas_verdict verdict;        /* as far as it was measured */
} wefti_cuda_blas_product;

/* Where the matrices of one product lie; `added`, `vector` (a bias, or sums) and `side` (what stood before an activation) are as the epilogue
 * has them, NULL where it has none. */
typedef struct wefti_cuda_blas_places {
    const void *first, *second, *added;
    void       *result, *vector, *side, *workspace;
} wefti_cuda_blas_places;
/* Enqueues one product (or strided batch). */
cublasStatus_t wefti_cuda_blas_multiply(const wefti_cuda_blas *blas, const wefti_cuda_blas_product *p, const wefti_cuda_blas_places *places,
                                        cudaStream_t stream);
/* Fills `algo` and `workspace_bytes` for a product with descriptors: what was chosen before for the key, in this process or an earlier one;
 * else the fastest of the heuristic's best, measured, where the product is large enough to be worth it; else the heuristic's first.
 * WEFT_E_UNSUPPORTED where cuBLASLt has no algorithm. blas_choose.c */
WEFT_MUST_CHECK weft_status wefti_cuda_blas_choose(wefti_cuda *cuda, wefti_cuda_blas_product *p);
void wefti_cuda_blas_forget(wefti_cuda_blas *blas);
/* Keeps a verdict with the algorithm, here and on disk. */
void wefti_cuda_blas_settle(wefti_cuda *cuda, wefti_cuda_blas_product *p, wefti_cuda_blas_verdict verdict);
/* Whether products of this size are measured, and the milliseconds of what `launch` enqueues, the best of some turns; negative where it fails. */
bool wefti_cuda_blas_is_measured(const wefti_cuda_blas_key *key);
float wefti_cuda_blas_time(wefti_cuda *cuda, bool (*launch)(void *context), void *context);

/* --- a MATMUL call, prepared (blas.c) --- */

/* A matrix in memory, column-major: `turned` where what is wanted is its transpose. */
typedef struct wefti_cuda_matrix {
    bool    turned;
    int64_t rows, columns, ld;
} wefti_cuda_matrix;

/* A call cut for cuBLASLt: matrices, one axis of the batch that a launch covers, and the rest of it. */
typedef struct wefti_cuda_cut {
    wefti_cuda_product p;
    wefti_cuda_matrix  first, second; /* of B and A: see the head of blas.c */
    int32_t            axis;          /* of the batch that one launch covers; -1: none */
    int64_t            loop;          /* launches */
} wefti_cuda_cut;
/* Whether cuBLASLt can take the MATMUL. */
bool wefti_cuda_blas_cut(const wefti_call *call, wefti_cuda_cut *out);

/* What cuBLASLt does to the result of a product on its way to memory; zeroed: nothing. Operands are the FUSED_MATMUL's. */
typedef struct wefti_cuda_epilogue {
    cublasLtEpilogue_t   kind; /* DEFAULT (1) or 0: none */
    const wefti_operand *added, *vector, *side; /* NULL: none */
} wefti_cuda_epilogue;

typedef struct wefti_cuda_blas_call {
    wefti_cuda_cut          c;
    wefti_cuda_blas_product product;
} wefti_cuda_blas_call;
/* Makes descriptors and chooses the algorithm for a MATMUL call that was cut (`self->c`), with an epilogue or NULL. WEFT_E_UNSUPPORTED where the
 * library has no such product. Released by the second. */
WEFT_MUST_CHECK weft_status wefti_cuda_blas_prepare(wefti_cuda *cuda, const wefti_call *call, const wefti_cuda_epilogue *epilogue,
                                                    wefti_cuda_blas_call *self);
void wefti_cuda_blas_unprepare(wefti_cuda *cuda, wefti_cuda_blas_call *self);

#endif

/* FP8_MATMUL by cuBLASLt, which has such products from Ada and Hopper on (sm_89), for sizes that divide by 16 and with both factors' inner index
 * side by side: what FP8_CAST writes, so that nothing is transposed. Scales are read from device memory where the product is applied, sums are
 * f32 without fast accumulation (on Hopper, an H200 was measured, these keep about 14 bits all the same), the result is bf16. What the library refuses after all is done by our own tiles, on the same codes.
 * Elsewhere the query says why not, and the planner leaves the product as it was. */
#include "cuda/blas.h"

#include <stdio.h>
#include <string.h>

#include "core/tensor/fp8.h"

enum { SIZES = 16 /* that m, n and k divide by */, SPLITS_MOST = 32 /* f32 copies of the result that the workspace has room for */ };
#define WORKSPACE_MOST (INT64_C(32) << 20) /* what NVIDIA recommends for Hopper */
#define WORKSPACE_LEAST (INT64_C(1) << 16)

/* Why the call is none for cuBLASLt; NULL: it is one. */
static const char *why_not(const wefti_cuda *cuda, const wefti_call *call) {
    static _Thread_local char text[160];
    const wefti_operand      *a = &call->inputs[0], *b = &call->inputs[1];
    const char               *why = NULL;
    if (cuda->major * 10 + cuda->minor < 89) {
        snprintf(text, sizeof text, "sm_%d%d multiplies no 8-bit floats; sm_89 (Ada, Hopper) and later do", cuda->major, cuda->minor);
        return text;
    }
    if (!wefti_cuda_blas_load(&why)) return why;
    if (a->shape.dim[0] % SIZES || a->shape.dim[1] % SIZES || b->shape.dim[0] % SIZES) {
        snprintf(text, sizeof text, "the sizes [%lld, %lld] x [%lld, %lld] are not all multiples of %d", (long long)a->shape.dim[0],
                 (long long)a->shape.dim[1], (long long)a->shape.dim[1], (long long)b->shape.dim[0], SIZES);
        return text;
    }
    if (call->outputs[0].dtype != WEFT_BF16) return "the result is not bf16";
    if (call->attrs->fp8.form[0] == WEFTI_FP8_E5M2 && call->attrs->fp8.form[1] == WEFTI_FP8_E5M2) return "there are no products of two factors in e5m2";
    if (!wefti_operand_is_contiguous(a) || !wefti_operand_is_contiguous(b) || a->offset_bytes % SIZES || b->offset_bytes % SIZES ||
        call->outputs[0].offset_bytes % SIZES)
        return "an operand is strided, or not aligned to 16 bytes";
    return NULL;
}

weft_status wefti_cuda_fp8_refuse(const wefti_cuda *cuda, const wefti_call *call) {
    const char *why = why_not(cuda, call);
    return wefti_fail(WEFT_E_UNSUPPORTED, "cuda:%d, '%s': %s", (int)cuda->ordinal, call->name ? call->name : "", why ? why : "no reason");
}

static bool accepts(const wefti_cuda *cuda, const wefti_call *call) { return !why_not(cuda, call); }

static int64_t scratch(const wefti_cuda *cuda, const wefti_call *call) {
    int64_t copies;
    (void)cuda;
    if (!wefti_mul_i64(wefti_operand_elements(&call->outputs[0]), SPLITS_MOST * (int64_t)sizeof(float), &copies)) return WORKSPACE_MOST;
    return wefti_min_i64(WORKSPACE_MOST, wefti_max_i64(copies, WORKSPACE_LEAST));
}

typedef struct prepared {
    cublasLtMatmulDesc_t   operation;
    cublasLtMatrixLayout_t first, second, result;
    cublasLtMatmulAlgo_t   algo;
    size_t                 workspace_bytes;
    bool                   own; /* by our tiles, as cuBLASLt refused */
} prepared;

static size_t prepared_bytes(const wefti_call *call) {
    (void)call;
    return sizeof(prepared);
}

static cudaDataType_t type_of(int32_t form) { return form == WEFTI_FP8_E5M2 ? CUDA_R_8F_E5M2 : CUDA_R_8F_E4M3; }

static void release(const wefti_cuda_blas_functions *f, prepared *self) {
    if (self->operation) f->cublasLtMatmulDescDestroy(self->operation);
    if (self->first) f->cublasLtMatrixLayoutDestroy(self->first);
    if (self->second) f->cublasLtMatrixLayoutDestroy(self->second);
    if (self->result) f->cublasLtMatrixLayoutDestroy(self->result);
    self->operation = NULL;
    self->first = self->second = self->result = NULL;
}

/* C' [n, m] = B' A' column by column: B is the first factor there, turned, and A the second (blas.c). The heuristic wants to see scales. */
static cublasStatus_t describe(const wefti_cuda_blas_functions *f, const wefti_call *call, prepared *self) {
    const int64_t     *a = call->inputs[0].shape.dim, *b = call->inputs[1].shape.dim;
    const int32_t     *form = call->attrs->fp8.form;
    uint64_t           m = (uint64_t)a[0], n = (uint64_t)b[0], k = (uint64_t)a[1];
    cublasOperation_t  turned = CUBLAS_OP_T, plain = CUBLAS_OP_N;
    const void        *scale = (const void *)(uintptr_t)SIZES;
    const struct { cublasLtMatmulDescAttributes_t attribute; const void *value; size_t bytes; } settings[] = {
        {CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof turned},
        {CUBLASLT_MATMUL_DESC_TRANSB, &plain, sizeof plain},
        {CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &scale, sizeof scale},
        {CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &scale, sizeof scale},
    };
    cublasStatus_t status = f->cublasLtMatmulDescCreate(&self->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    for (size_t i = 0; i < WEFTI_COUNT(settings) && status == CUBLAS_STATUS_SUCCESS; i++)
        status = f->cublasLtMatmulDescSetAttribute(self->operation, settings[i].attribute, settings[i].value, settings[i].bytes);
    if (status == CUBLAS_STATUS_SUCCESS) status = f->cublasLtMatrixLayoutCreate(&self->first, type_of(form[1]), k, n, (int64_t)k);
    if (status == CUBLAS_STATUS_SUCCESS) status = f->cublasLtMatrixLayoutCreate(&self->second, type_of(form[0]), k, m, (int64_t)k);
    if (status == CUBLAS_STATUS_SUCCESS) status = f->cublasLtMatrixLayoutCreate(&self->result, CUDA_R_16BF, n, m, (int64_t)n);
    return status;
}

static cublasStatus_t choose(const wefti_cuda_blas *blas, const wefti_call *call, prepared *self) {
    cublasLtMatmulHeuristicResult_t found;
    uint64_t                        workspace = (uint64_t)call->scratch_bytes;
    uint32_t                        reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, alignment = SIZES;
    int                             n = 0;
    const struct { cublasLtMatmulPreferenceAttributes_t attribute; const void *value; size_t bytes; } wishes[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &alignment, sizeof alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &alignment, sizeof alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &alignment, sizeof alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &alignment, sizeof alignment},
    };
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    for (size_t i = 0; i < WEFTI_COUNT(wishes) && status == CUBLAS_STATUS_SUCCESS; i++)
        status = blas->f->cublasLtMatmulPreferenceSetAttribute(blas->preference, wishes[i].attribute, wishes[i].value, wishes[i].bytes);
    memset(&found, 0, sizeof found);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = blas->f->cublasLtMatmulAlgoGetHeuristic(blas->handle, self->operation, self->first, self->second, self->result, self->result,
                                                         blas->preference, 1, &found, &n);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (n < 1 || found.state != CUBLAS_STATUS_SUCCESS || found.workspaceSize > workspace) return CUBLAS_STATUS_NOT_SUPPORTED;
    self->algo            = found.algo;
    self->workspace_bytes = found.workspaceSize;
    return CUBLAS_STATUS_SUCCESS;
}

static weft_status prepare(wefti_cuda *cuda, const wefti_call *call, void *memory) {
    prepared   *self = memory;
    weft_status status = wefti_cuda_blas_open(cuda);
    if (status == WEFT_OK) {
        cublasStatus_t made = describe(cuda->blas->f, call, self);
        if (made == CUBLAS_STATUS_SUCCESS) made = choose(cuda->blas, call, self);
        if (made == CUBLAS_STATUS_SUCCESS) return WEFT_OK;
        release(cuda->blas->f, self);
        status = wefti_fail(WEFT_E_UNSUPPORTED, "cuBLASLt: %s", cuda->blas->f->cublasLtGetStatusString(made));
    }
    if (cuda->broken != WEFT_OK || status == WEFT_E_NO_MEMORY) return status;
    wefti_log(WEFT_LOG_INFO, "cuda: fp8 matmul '%s' runs on Weft's own kernel: %s", call->name ? call->name : "", weft_error_message());
    self->own = true;
    return WEFT_OK;
}

static void unprepare(wefti_cuda *cuda, void *memory) {
    if (cuda->blas) release(cuda->blas->f, memory);
}

static weft_status run_product(const wefti_cuda_run *run) {
    prepared               *self = run->prepared;
    const wefti_cuda_blas  *blas = run->cuda->blas;
    const float             one = 1, zero = 0;
    if (self->own) return wefti_cuda_fp8_tiles(run);
    cublasStatus_t status = blas->f->cublasLtMatmulDescSetAttribute(self->operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &run->inputs[3], sizeof run->inputs[3]);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = blas->f->cublasLtMatmulDescSetAttribute(self->operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &run->inputs[2], sizeof run->inputs[2]);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = blas->f->cublasLtMatmul(blas->handle, self->operation, &one, run->inputs[1], self->first, run->inputs[0], self->second, &zero,
                                         run->outputs[0], self->result, run->outputs[0], self->result, &self->algo, run->scratch, self->workspace_bytes,
                                         run->stream);
    if (status != CUBLAS_STATUS_SUCCESS)
        return wefti_fail(WEFT_E_DEVICE, "'%s', %s x %s in 8-bit floats: cublasLtMatmul: %s", run->call->name ? run->call->name : "",
                          weft_shape_text(run->call->inputs[0].shape).text, weft_shape_text(run->call->inputs[1].shape).text,
                          blas->f->cublasLtGetStatusString(status));
    return WEFT_OK;
}

const wefti_cuda_kernel wefti_cuda_fp8_matmul = {.name           = "cuBLASLt fp8",
                                                 .accepts        = accepts,
                                                 .scratch        = scratch,
                                                 .prepared_bytes = prepared_bytes,
                                                 .prepare        = prepare,
                                                 .unprepare      = unprepare,
                                                 .run            = run_product};

/* Which of cuBLASLt's algorithms computes a product (blas.h).
 *
 * Its heuristic names some, best first by its own estimate. For products large enough to be worth it they are run and timed, once, at
 * compile, on operands of the device's own; what was found is kept for the process, and on disk for the next (WEFT_CUDA_CACHE), by
 * everything that the choice depends on. WEFT_CUDA_TUNE=0 takes the heuristic's word. So one machine always computes with the same
 * algorithm, and the same bits, once it was chosen; ranks that share a cache do too. */
#include "cuda/blas.h"
#include "cuda/cache.h"

#include <stdlib.h>
#include <string.h>

enum { CANDIDATES = 12, TURNS = 5, SHORT_LAUNCHES = 8 };
#define SHORT_MS 0.1f /* shorter ones are timed several at once */
/* Multiplications below which a launch costs more than the product, and the heuristic's choice is good enough. */
#define MEASURED_FROM (INT64_C(1) << 28)
#define MEASURED_BYTES_MOST (INT64_C(4) << 30)

typedef struct chosen {
    cublasLtMatmulAlgo_t algo;
    uint64_t             workspace_bytes;
} chosen;

typedef struct wefti_cuda_blas_known {
    struct wefti_cuda_blas_known *next;
    wefti_cuda_blas_key           key;
    chosen                        value;
} wefti_cuda_blas_known;

void wefti_cuda_blas_forget(wefti_cuda_blas *blas) {
    while (blas->known) {
        wefti_cuda_blas_known *known = blas->known;
        blas->known                  = known->next;
        wefti_free(known, sizeof *known);
    }
}

static const chosen *recall(const wefti_cuda_blas *blas, const wefti_cuda_blas_key *key) {
    for (const wefti_cuda_blas_known *known = blas->known; known; known = known->next)
        if (memcmp(&known->key, key, sizeof *key) == 0) return &known->value;
    return NULL;
}

static weft_status remember(wefti_cuda_blas *blas, const wefti_cuda_blas_key *key, const chosen *value) {
    wefti_cuda_blas_known *known;
    WEFTI_TRY(wefti_alloc(sizeof *known, "an algorithm of cuBLASLt", &known));
    known->key   = *key;
    known->value = *value;
    known->next  = blas->known;
    blas->known  = known;
    return WEFT_OK;
}

/* --- the heuristic --- */

static cublasStatus_t ask(const wefti_cuda_blas *blas, const wefti_cuda_blas_product *p, cublasLtMatmulHeuristicResult_t *found, int *n_out) {
    const wefti_cuda_blas_key *key       = &p->key;
    uint32_t                   reduction = (uint32_t)key->reduction, alignment[4] = {(uint32_t)key->first_alignment, (uint32_t)key->second_alignment,
                                                                   (uint32_t)key->result_alignment, (uint32_t)key->result_alignment};
    uint64_t                   workspace = (uint64_t)key->workspace_bytes;
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        const void                          *value;
        size_t                               bytes;
    } wishes[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &alignment[0], sizeof alignment[0]},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &alignment[1], sizeof alignment[1]},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &alignment[2], sizeof alignment[2]},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &alignment[3], sizeof alignment[3]},
    };
    for (size_t i = 0; i < WEFTI_COUNT(wishes); i++) {
        cublasStatus_t status =
            blas->f->cublasLtMatmulPreferenceSetAttribute(blas->preference, wishes[i].attribute, wishes[i].value, wishes[i].bytes);
        if (status != CUBLAS_STATUS_SUCCESS) return status;
    }
    int            n      = 0;
    cublasStatus_t status = blas->f->cublasLtMatmulAlgoGetHeuristic(blas->handle, p->operation, p->first, p->second, p->result, p->result,
                                                                    blas->preference, CANDIDATES, found, &n);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    *n_out = 0;
    for (int i = 0; i < n; i++) /* those that fit, to the front */
        if (found[i].state == CUBLAS_STATUS_SUCCESS && found[i].workspaceSize <= (size_t)key->workspace_bytes) found[(*n_out)++] = found[i];
    return *n_out ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

/* --- measuring --- */

/* Memory and events of one measurement. */
typedef struct bench {
    void       *first, *second, *result, *workspace;
    cudaEvent_t begin, end;
} bench;

static int64_t bytes_of(const wefti_cuda_blas_key *key, int64_t lines, int64_t line, int64_t stride) {
    return (lines * line + (key->batch - 1) * stride) * (int64_t)weft_dtype_bytes((weft_dtype)key->dtype);
}

static void put_away(bench *self) {
    cudaFree(self->first);
    cudaFree(self->second);
    cudaFree(self->result);
    cudaFree(self->workspace);
    if (self->begin) cudaEventDestroy(self->begin);
    if (self->end) cudaEventDestroy(self->end);
}

/* The operands hold small numbers, not zeros: multiplying those draws less power, and is quicker than life. */
static bool set_up(bench *self, const wefti_cuda_blas_key *key, cudaStream_t stream) {
    int64_t first  = bytes_of(key, key->first_turned ? key->n : key->k, key->first_ld, key->first_stride);
    int64_t second = bytes_of(key, key->second_turned ? key->k : key->m, key->second_ld, key->second_stride);
    int64_t result = bytes_of(key, key->m, key->n, key->result_stride);
    memset(self, 0, sizeof *self);
    return first + second + result <= MEASURED_BYTES_MOST && cudaMalloc(&self->first, (size_t)first) == cudaSuccess &&
           cudaMalloc(&self->second, (size_t)second) == cudaSuccess && cudaMalloc(&self->result, (size_t)result) == cudaSuccess &&
           cudaMalloc(&self->workspace, (size_t)key->workspace_bytes + 1) == cudaSuccess &&
           cudaMemsetAsync(self->first, 0x3c, (size_t)first, stream) == cudaSuccess &&
           cudaMemsetAsync(self->second, 0x3c, (size_t)second, stream) == cudaSuccess && cudaEventCreate(&self->begin) == cudaSuccess &&
           cudaEventCreate(&self->end) == cudaSuccess;
}

/* Milliseconds of `launches` products; negative where the algorithm does not run. */
static float time_once(wefti_cuda *cuda, const bench *self, const wefti_cuda_blas_product *p, int launches) {
    float ms = 0;
    if (cudaEventRecord(self->begin, cuda->stream) != cudaSuccess) return -1;
    for (int i = 0; i < launches; i++)
        if (wefti_cuda_blas_multiply(cuda->blas, p, self->first, self->second, self->result, self->workspace, cuda->stream) !=
            CUBLAS_STATUS_SUCCESS)
            return -1;
    if (cudaEventRecord(self->end, cuda->stream) != cudaSuccess || cudaEventSynchronize(self->end) != cudaSuccess ||
        cudaEventElapsedTime(&ms, self->begin, self->end) != cudaSuccess)
        return -1;
    return ms / (float)launches;
}

/* The best of some turns. */
static float time_of(wefti_cuda *cuda, const bench *self, const wefti_cuda_blas_product *p) {
    float best = time_once(cuda, self, p, 1); /* loads the kernel, and does not count */
    if (best < 0) return -1;
    best         = time_once(cuda, self, p, 1);
    int launches = best < SHORT_MS ? SHORT_LAUNCHES : 1;
    if (launches > 1) best = time_once(cuda, self, p, launches);
    for (int turn = 1; turn < TURNS && best >= 0; turn++) {
        float ms = time_once(cuda, self, p, launches);
        if (ms < 0 || ms < best) best = ms;
    }
    return best;
}

/* The index of the fastest candidate, -1 where nothing could be measured. */
static int fastest(wefti_cuda *cuda, const wefti_cuda_blas_product *p, const cublasLtMatmulHeuristicResult_t *found, int n) {
    bench self;
    int   best    = -1;
    float best_ms = 0;
    if (set_up(&self, &p->key, cuda->stream))
        for (int i = 0; i < n; i++) {
            wefti_cuda_blas_product candidate = *p;
            candidate.algo                    = found[i].algo;
            candidate.workspace_bytes         = found[i].workspaceSize;
            float ms                          = time_of(cuda, &self, &candidate);
            if (ms >= 0 && (best < 0 || ms < best_ms)) best = i, best_ms = ms;
        }
    cudaStreamSynchronize(cuda->stream);
    put_away(&self);
    cudaGetLastError(); /* a refused allocation is no fault: the heuristic's word is taken then */
    return best;
}

static bool is_worth_it(const wefti_cuda_blas_key *key) {
    const char *tune = getenv("WEFT_CUDA_TUNE");
    if (tune && strcmp(tune, "0") == 0) return false;
    return (double)key->m * (double)key->n * (double)key->k * (double)key->batch >= (double)MEASURED_FROM;
}

/* --- choosing --- */

static bool still_runs(const wefti_cuda_blas *blas, const wefti_cuda_blas_product *p, const chosen *value) {
    cublasLtMatmulHeuristicResult_t result;
    memset(&result, 0, sizeof result);
    return blas->f->cublasLtMatmulAlgoCheck(blas->handle, p->operation, p->first, p->second, p->result, p->result, &value->algo, &result) ==
               CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= (size_t)p->key.workspace_bytes && result.workspaceSize <= value->workspace_bytes;
}

static weft_status find(wefti_cuda *cuda, const wefti_cuda_blas_product *p, chosen *out) {
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    const wefti_cuda_blas_key      *key = &p->key;
    int                             n = 0, best = 0;
    bool                            measured = is_worth_it(key);
    if (measured && wefti_cuda_cache_read("matmul", key, sizeof *key, out, sizeof *out) && still_runs(cuda->blas, p, out)) return WEFT_OK;
    memset(found, 0, sizeof found);
    cublasStatus_t status = ask(cuda->blas, p, found, &n);
    if (status != CUBLAS_STATUS_SUCCESS)
        return wefti_fail(WEFT_E_UNSUPPORTED, "cuBLASLt has no algorithm for %s [%lld, %lld, %lld] x %lld: %s",
                          weft_dtype_name((weft_dtype)key->dtype), (long long)key->m, (long long)key->n, (long long)key->k,
                          (long long)key->batch, cuda->blas->f->cublasLtGetStatusString(status));
    if (measured && n > 1) best = fastest(cuda, p, found, n);
    memset(out, 0, sizeof *out);
    out->algo            = found[best < 0 ? 0 : best].algo;
    out->workspace_bytes = found[best < 0 ? 0 : best].workspaceSize;
    if (measured && best >= 0) wefti_cuda_cache_write("matmul", key, sizeof *key, out, sizeof *out);
    return WEFT_OK;
}

weft_status wefti_cuda_blas_choose(wefti_cuda *cuda, wefti_cuda_blas_product *p) {
    const chosen *known = recall(cuda->blas, &p->key);
    chosen        fresh;
    if (!known) {
        WEFTI_TRY(find(cuda, p, &fresh));
        WEFTI_TRY(remember(cuda->blas, &p->key, &fresh));
        known = &fresh;
    }
    p->algo            = known->algo;
    p->workspace_bytes = (size_t)known->workspace_bytes;
    return WEFT_OK;
}

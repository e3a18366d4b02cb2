/* Which of cuBLASLt's algorithms computes a product (blas.h).
 *
 * Its heuristic names some, best first by its own estimate. For products large enough to be worth it they are run and timed, once, at
 * compile, on operands of the device's own; what was found is kept for the process, and on disk for the next (WEFT_CUDA_CACHE), by
 * everything that the choice depends on. WEFT_CUDA_TUNE=0 takes the heuristic's word, WEFT_CUDA_TUNE=all measures small ones, too. So one machine always computes with the same
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
    int64_t              verdict; /* wefti_cuda_blas_verdict */
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

static chosen *recall(const wefti_cuda_blas *blas, const wefti_cuda_blas_key *key) {
    for (wefti_cuda_blas_known *known = blas->known; known; known = known->next)
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

/* Memory of one measurement. */
typedef struct bench {
    wefti_cuda                    *cuda;
    const wefti_cuda_blas_product *product; /* that is measured now */
    void                          *first, *second, *added, *result, *vector, *side, *workspace;
} bench;

static int64_t bytes_of(const wefti_cuda_blas_key *key, int64_t lines, int64_t line, int64_t stride) {
    return (lines * line + (key->batch - 1) * stride) * (int64_t)weft_dtype_bytes((weft_dtype)key->dtype);
}

static void put_away(bench *self) {
    void *pieces[] = {self->first, self->second, self->added, self->result, self->vector, self->side, self->workspace};
    for (size_t i = 0; i < WEFTI_COUNT(pieces); i++) cudaFree(pieces[i]);
}

/* Small numbers, not zeros: multiplying those draws less power, and is quicker than life. */
static bool give(void **memory_out, int64_t bytes, cudaStream_t stream) {
    if (bytes == 0) return true;
    return cudaMalloc(memory_out, (size_t)bytes) == cudaSuccess && cudaMemsetAsync(*memory_out, 0x3c, (size_t)bytes, stream) == cudaSuccess;
}

static bool set_up(bench *self, wefti_cuda *cuda, const wefti_cuda_blas_key *key) {
    int64_t      first  = bytes_of(key, key->first_turned ? key->n : key->k, key->first_ld, key->first_stride);
    int64_t      second = bytes_of(key, key->second_turned ? key->k : key->m, key->second_ld, key->second_stride);
    int64_t      result = bytes_of(key, key->m, key->n, key->result_stride);
    int64_t      added = key->adds ? result : 0, side = key->side_alignment ? result : 0;
    int64_t      vector = key->vector_alignment ? wefti_max_i64(key->m, key->n) * (int64_t)sizeof(double) : 0;
    cudaStream_t stream = cuda->stream;
    memset(self, 0, sizeof *self);
    self->cuda = cuda;
    return first + second + result + added + side <= MEASURED_BYTES_MOST && give(&self->first, first, stream) &&
           give(&self->second, second, stream) && give(&self->added, added, stream) && give(&self->result, result, stream) &&
           give(&self->vector, vector, stream) && give(&self->side, side, stream) &&
           cudaMalloc(&self->workspace, (size_t)key->workspace_bytes + 1) == cudaSuccess;
}

static bool launch_product(void *context) {
    const bench           *self = context;
    wefti_cuda_blas_places at   = {.first = self->first, .second = self->second, .added = self->added, .result = self->result,
                                   .vector = self->vector, .side = self->side, .workspace = self->workspace};
    return wefti_cuda_blas_multiply(self->cuda->blas, self->product, &at, self->cuda->stream) == CUBLAS_STATUS_SUCCESS;
}

typedef struct stopwatch {
    wefti_cuda *cuda;
    bool (*launch)(void *context);
    void       *context;
    cudaEvent_t begin, end;
} stopwatch;

/* Milliseconds of one of `launches`; negative where they fail. */
static float time_once(const stopwatch *self, int launches) {
    float        ms     = 0;
    cudaStream_t stream = self->cuda->stream;
    if (cudaEventRecord(self->begin, stream) != cudaSuccess) return -1;
    for (int i = 0; i < launches; i++)
        if (!self->launch(self->context)) return -1;
    if (cudaEventRecord(self->end, stream) != cudaSuccess || cudaEventSynchronize(self->end) != cudaSuccess ||
        cudaEventElapsedTime(&ms, self->begin, self->end) != cudaSuccess)
        return -1;
    return ms / (float)launches;
}

static float time_turns(const stopwatch *self) {
    float best = time_once(self, 1); /* loads the kernel, and does not count */
    if (best < 0) return -1;
    best         = time_once(self, 1);
    int launches = best < SHORT_MS ? SHORT_LAUNCHES : 1;
    if (launches > 1) best = time_once(self, launches);
    for (int turn = 1; turn < TURNS && best >= 0; turn++) {
        float ms = time_once(self, launches);
        if (ms < 0 || ms < best) best = ms;
    }
    return best;
}

float wefti_cuda_blas_time(wefti_cuda *cuda, bool (*launch)(void *context), void *context) {
    stopwatch self = {.cuda = cuda, .launch = launch, .context = context};
    float      ms   = -1;
    if (cudaEventCreate(&self.begin) == cudaSuccess && cudaEventCreate(&self.end) == cudaSuccess) ms = time_turns(&self);
    if (self.begin) cudaEventDestroy(self.begin);
    if (self.end) cudaEventDestroy(self.end);
    return ms;
}

/* The index of the fastest candidate, -1 where nothing could be measured. */
static int fastest(wefti_cuda *cuda, const wefti_cuda_blas_product *p, const cublasLtMatmulHeuristicResult_t *found, int n) {
    bench self;
    int   best    = -1;
    float best_ms = 0;
    if (set_up(&self, cuda, &p->key))
        for (int i = 0; i < n; i++) {
            wefti_cuda_blas_product candidate = *p;
            candidate.algo                    = found[i].algo;
            candidate.workspace_bytes         = found[i].workspaceSize;
            self.product                      = &candidate;
            float ms                          = wefti_cuda_blas_time(cuda, launch_product, &self);
            if (ms >= 0 && (best < 0 || ms < best_ms)) best = i, best_ms = ms;
        }
    cudaStreamSynchronize(cuda->stream);
    put_away(&self);
    cudaGetLastError(); /* a refused allocation is no fault: the heuristic's word is taken then */
    return best;
}

bool wefti_cuda_blas_is_measured(const wefti_cuda_blas_key *key) {
    const char *tune = getenv("WEFT_CUDA_TUNE");
    if (tune && strcmp(tune, "0") == 0) return false;
    if (tune && strcmp(tune, "all") == 0) return true;
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
    bool                            measured = wefti_cuda_blas_is_measured(key);
    if (measured && wefti_cuda_cache_read("matmul", key, sizeof *key, out, sizeof *out) && still_runs(cuda->blas, p, out)) return WEFT_OK;
    memset(found, 0, sizeof found);
    cublasStatus_t status = ask(cuda->blas, p, found, &n);
    if (status != CUBLAS_STATUS_SUCCESS)
        return wefti_fail(WEFT_E_UNSUPPORTED, "cuBLASLt has no algorithm for %s [%lld, %lld, %lld] x %lld, epilogue %d: %s",
                          weft_dtype_name((weft_dtype)key->dtype), (long long)key->m, (long long)key->n, (long long)key->k,
                          (long long)key->batch, (int)key->epilogue, cuda->blas->f->cublasLtGetStatusString(status));
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
    p->verdict         = (wefti_cuda_blas_verdict)known->verdict;
    return WEFT_OK;
}

void wefti_cuda_blas_settle(wefti_cuda *cuda, wefti_cuda_blas_product *p, wefti_cuda_blas_verdict verdict) {
    chosen *known = recall(cuda->blas, &p->key);
    p->verdict    = verdict;
    if (!known) return;
    known->verdict = verdict;
    wefti_cuda_cache_write("matmul", &p->key, sizeof p->key, known, sizeof *known);
}

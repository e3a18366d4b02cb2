/* MATMUL by cuBLASLt, loaded at run time.
 *
 * Taken are products whose operands are matrices with one inner stride of 1, and a batch that is even along one axis; further axes of the
 * batch are a loop. cuBLASLt counts columns first, so the rows of C = A B are handed over as the columns of C' = B' A': a row-major
 * operand is its own transpose there, and nothing is copied.
 * Sums are f32 for 16-bit types, and never rounded to 16 bits on the way (split sums are kept in f32 in the workspace); f32 factors are
 * rounded to tf32 only where the device was asked to. No algorithm adds in an order of chance.
 * Descriptors and the algorithm are made in prepare; where the library refuses, the product falls back to our own tiles.
 * Cost: a workspace of at most 32 MiB on Hopper, 8 MiB elsewhere, and no more than some copies of the result would take. */
#include "cuda/blas.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { LOOP_MOST = 64 /* launches of one call; beyond, one launch of our own tiles is better */ };
#define WORKSPACE_HOPPER (INT64_C(32) << 20)
#define WORKSPACE_OTHER (INT64_C(8) << 20)
#define WORKSPACE_LEAST (INT64_C(1) << 16)
enum { SPLITS_MOST = 32 }; /* f32 copies of the result that the workspace has room for */

/* --- the library --- */

static struct {
    wefti_cuda_blas_functions        loaded;
    const wefti_cuda_blas_functions *functions;
    char                             why[256];
} library;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void load(void) {
    static const char *const names[] = {WEFTI_CUDA_BLAS_FUNCTIONS(WEFTI_CUDA_FUNCTION_NAME)};
    if (wefti_cuda_library_wanted("cuBLASLt", "WEFT_CUDA_BLAS") == WEFT_OK &&
        wefti_cuda_library_load("libcublasLt.so.13", names, WEFTI_COUNT(names), &library.loaded) == WEFT_OK) {
        library.functions = &library.loaded;
        return;
    }
    snprintf(library.why, sizeof library.why, "%s", weft_error_message());
    wefti_log(WEFT_LOG_WARNING, "cuda: products run on kernels of Weft's own, which are slower: %s", library.why);
}

const wefti_cuda_blas_functions *wefti_cuda_blas_load(const char **why_out) {
    pthread_once(&once, load);
    if (why_out) *why_out = library.functions ? NULL : library.why;
    return library.functions;
}

static weft_status refused(const wefti_cuda_blas_functions *f, cublasStatus_t status, const char *what) {
    return wefti_fail(WEFT_E_DEVICE, "%s: %s", what, f->cublasLtGetStatusString(status));
}

/* The device's handle, made when first wanted. */
weft_status wefti_cuda_blas_open(wefti_cuda *cuda) {
    if (cuda->blas) return WEFT_OK;
    const char      *why;
    wefti_cuda_blas *blas;
    WEFTI_TRY(wefti_alloc(sizeof *blas, "cuBLASLt's state", &blas));
    blas->f = wefti_cuda_blas_load(&why);
    if (!blas->f) {
        wefti_free(blas, sizeof *blas);
        return wefti_fail(WEFT_E_UNSUPPORTED, "%s", why);
    }
    cublasStatus_t status = blas->f->cublasLtCreate(&blas->handle);
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = blas->f->cublasLtMatmulPreferenceCreate(&blas->preference);
        if (status != CUBLAS_STATUS_SUCCESS) blas->f->cublasLtDestroy(blas->handle);
    }
    if (status != CUBLAS_STATUS_SUCCESS) {
        weft_status failed = refused(blas->f, status, "cublasLtCreate");
        wefti_free(blas, sizeof *blas);
        return failed;
    }
    cuda->blas = blas;
    return WEFT_OK;
}

void wefti_cuda_blas_close(wefti_cuda *cuda) {
    wefti_cuda_blas *blas = cuda->blas;
    if (!blas) return;
    wefti_cuda_blas_forget(blas);
    blas->f->cublasLtMatmulPreferenceDestroy(blas->preference);
    blas->f->cublasLtDestroy(blas->handle);
    wefti_free(blas, sizeof *blas);
    cuda->blas = NULL;
}

/* --- which products --- */

/* The matrix whose columns are counted by `outer` and whose rows are counted by `inner`, with their strides. */
static bool describe(int64_t outer, int64_t outer_stride, int64_t inner, int64_t inner_stride, wefti_cuda_matrix *out) {
    if ((inner_stride == 1 || inner == 1) && (outer_stride >= inner || outer == 1)) {
        *out = (wefti_cuda_matrix){.turned = false, .rows = inner, .columns = outer, .ld = outer == 1 ? inner : outer_stride};
        return true;
    }
    if ((outer_stride == 1 || outer == 1) && (inner_stride >= outer || inner == 1)) {
        *out = (wefti_cuda_matrix){.turned = true, .rows = outer, .columns = inner, .ld = inner == 1 ? outer : inner_stride};
        return true;
    }
    return false;
}

bool wefti_cuda_blas_cut(const wefti_call *call, wefti_cuda_cut *out) {
    wefti_cuda_product_of(call, &out->p);
    const wefti_cuda_product *p = &out->p;
    if (p->m <= 0 || p->n <= 0 || p->k <= 0 || p->batches <= 0) return false;
    if (p->m > INT32_MAX || p->n > INT32_MAX || p->k > INT32_MAX) return false;
    out->axis = -1;
    out->loop = p->batches;
    for (int32_t axis = 0; axis < p->batch_rank; axis++)
        if (out->axis < 0 || p->batch[axis] > p->batch[out->axis]) out->axis = axis;
    if (out->axis >= 0) out->loop /= p->batch[out->axis];
    if (out->loop > LOOP_MOST || (out->axis >= 0 && p->batch[out->axis] > INT32_MAX)) return false;
    return describe(p->k, p->b_inner, p->n, p->b_column, &out->first) && describe(p->m, p->a_row, p->k, p->a_inner, &out->second);
}

static bool accepts(const wefti_cuda *cuda, const wefti_call *call) {
    wefti_cuda_cut c;
    (void)cuda;
    return wefti_cuda_blas_load(NULL) && wefti_cuda_blas_cut(call, &c);
}

static int64_t scratch(const wefti_cuda *cuda, const wefti_call *call) {
    int64_t most   = cuda->major >= 9 ? WORKSPACE_HOPPER : WORKSPACE_OTHER, result;
    int64_t needed = wefti_operand_elements(&call->outputs[0]);
    if (!wefti_mul_i64(needed, SPLITS_MOST * (int64_t)sizeof(float), &result)) return most;
    return wefti_min_i64(most, wefti_max_i64(result, WORKSPACE_LEAST));
}

/* --- prepare --- */

typedef struct prepared {
    wefti_cuda_blas_call of;
    bool                 own; /* by our tiles, as cuBLASLt refused */
} prepared;

static size_t prepared_bytes(const wefti_call *call) {
    (void)call;
    return sizeof(prepared);
}

static cudaDataType_t data_type(weft_dtype dtype) {
    switch (dtype) {
    case WEFT_F64: return CUDA_R_64F;
    case WEFT_BF16: return CUDA_R_16BF;
    case WEFT_F16: return CUDA_R_16F;
    default: return CUDA_R_32F;
    }
}

/* What the addresses of an operand divide by, as far as offsets and the strides of the loop tell; bases are aligned to 64. */
static int32_t alignment_of(const wefti_operand *operand, const wefti_cuda_cut *c, const int64_t *batch_strides) {
    uint64_t bits = 64 | (uint64_t)operand->offset_bytes;
    for (int32_t axis = 0; batch_strides && axis < c->p.batch_rank; axis++)
        if (axis != c->axis) bits |= (uint64_t)batch_strides[axis] * weft_dtype_bytes(operand->dtype);
    return (int32_t)(bits & (~bits + 1));
}

/* Elements of the contiguous result from one matrix of a batch axis to the next. */
static int64_t result_stride(const wefti_cuda_product *p, int32_t axis) {
    int64_t stride = p->m * p->n;
    for (int32_t after = p->batch_rank - 1; after > axis; after--) stride *= p->batch[after];
    return stride;
}

static void fill_key(const wefti_cuda *cuda, const wefti_call *call, const wefti_cuda_cut *c, const wefti_cuda_epilogue *epilogue,
                     wefti_cuda_blas_key *key) {
    weft_dtype dtype = call->outputs[0].dtype;
    bool       wide  = dtype == WEFT_F32 || dtype == WEFT_F64;
    int64_t    result_strides[WEFT_MAX_RANK];
    for (int32_t axis = 0; axis < c->p.batch_rank; axis++) result_strides[axis] = result_stride(&c->p, axis);
    memset(key, 0, sizeof *key);
    key->version = cuda->blas->f->cublasLtGetVersion();
    key->format  = 2;
    key->major = cuda->major, key->minor = cuda->minor, key->multiprocessors = cuda->multiprocessors;
    strncpy(key->device, wefti_cuda_describe(&cuda->base), sizeof key->device - 1);
    key->dtype   = (int32_t)dtype;
    key->compute = dtype == WEFT_F64 ? CUBLAS_COMPUTE_64F
                   : dtype == WEFT_F32 && cuda->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    key->first_turned = c->first.turned, key->second_turned = c->second.turned;
    key->m = c->p.m, key->n = c->p.n, key->k = c->p.k;
    key->first_ld = c->first.ld, key->second_ld = c->second.ld;
    key->batch = 1;
    if (c->axis >= 0) {
        key->batch         = c->p.batch[c->axis];
        key->first_stride  = c->p.b_batch[c->axis];
        key->second_stride = c->p.a_batch[c->axis];
        key->result_stride = result_strides[c->axis];
    }
    key->first_alignment  = alignment_of(&call->inputs[1], c, c->p.b_batch);
    key->second_alignment = alignment_of(&call->inputs[0], c, c->p.a_batch);
    key->result_alignment = alignment_of(&call->outputs[0], c, result_strides);
    key->epilogue         = CUBLASLT_EPILOGUE_DEFAULT;
    if (epilogue) {
        key->epilogue = (int32_t)epilogue->kind;
        key->adds     = epilogue->added != NULL;
        if (epilogue->added) key->result_alignment = (int32_t)wefti_min_i64(key->result_alignment, alignment_of(epilogue->added, c, NULL));
        if (epilogue->side) key->side_alignment = alignment_of(epilogue->side, c, NULL);
        if (epilogue->vector) key->vector_alignment = alignment_of(epilogue->vector, c, NULL);
    }
    /* In place means in the type of the result: for 16-bit types that would round more than once. */
    key->reduction       = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | (wide ? CUBLASLT_REDUCTION_SCHEME_INPLACE : 0);
    key->workspace_bytes = call->scratch_bytes;
}

static cublasStatus_t make_layout(const wefti_cuda_blas_functions *f, const wefti_cuda_blas_key *key, const wefti_cuda_matrix *of, int64_t stride,
                                  cublasLtMatrixLayout_t *out) {
    cublasStatus_t status = f->cublasLtMatrixLayoutCreate(out, data_type((weft_dtype)key->dtype), (uint64_t)of->rows,
                                                          (uint64_t)of->columns, of->ld);
    int32_t        count  = (int32_t)key->batch;
    if (status != CUBLAS_STATUS_SUCCESS) *out = NULL;
    if (status != CUBLAS_STATUS_SUCCESS || count == 1) return status;
    status = f->cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    return f->cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride);
}

/* The heuristic looks at the alignment of what the epilogue's pointers say, so they get addresses that are so aligned. */
static cublasStatus_t set_epilogue(const wefti_cuda_blas_functions *f, wefti_cuda_blas_product *p) {
    const wefti_cuda_blas_key *key    = &p->key;
    cublasLtEpilogue_t         kind   = (cublasLtEpilogue_t)key->epilogue;
    int64_t                    ld     = key->n;
    void                      *vector = (void *)(uintptr_t)key->vector_alignment, *side = (void *)(uintptr_t)key->side_alignment;
    cublasStatus_t             status = f->cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &kind, sizeof kind);
    if (status == CUBLAS_STATUS_SUCCESS && vector)
        status = f->cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &vector, sizeof vector);
    if (status == CUBLAS_STATUS_SUCCESS && side)
        status = f->cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &ld, sizeof ld);
    if (status == CUBLAS_STATUS_SUCCESS && side)
        status = f->cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &side, sizeof side);
    return status;
}

static cublasStatus_t make_descriptors(const wefti_cuda_blas_functions *f, const wefti_cuda_cut *c, wefti_cuda_blas_product *p) {
    const wefti_cuda_blas_key *key    = &p->key;
    cublasOperation_t          first  = c->first.turned ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t          second = c->second.turned ? CUBLAS_OP_T : CUBLAS_OP_N;
    wefti_cuda_matrix          result = {.rows = c->p.n, .columns = c->p.m, .ld = c->p.n};
    cudaDataType_t             scale  = key->dtype == WEFT_F64 ? CUDA_R_64F : CUDA_R_32F;
    cublasStatus_t             status = f->cublasLtMatmulDescCreate(&p->operation, (cublasComputeType_t)key->compute, scale);
    if (status != CUBLAS_STATUS_SUCCESS) p->operation = NULL;
    if (status == CUBLAS_STATUS_SUCCESS)
        status = f->cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = f->cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second);
    if (status == CUBLAS_STATUS_SUCCESS && key->epilogue != CUBLASLT_EPILOGUE_DEFAULT) status = set_epilogue(f, p);
    if (status == CUBLAS_STATUS_SUCCESS) status = make_layout(f, key, &c->first, key->first_stride, &p->first);
    if (status == CUBLAS_STATUS_SUCCESS) status = make_layout(f, key, &c->second, key->second_stride, &p->second);
    if (status == CUBLAS_STATUS_SUCCESS) status = make_layout(f, key, &result, key->result_stride, &p->result);
    return status;
}

static void destroy_descriptors(const wefti_cuda_blas_functions *f, wefti_cuda_blas_product *p) {
    if (p->operation) f->cublasLtMatmulDescDestroy(p->operation);
    if (p->first) f->cublasLtMatrixLayoutDestroy(p->first);
    if (p->second) f->cublasLtMatrixLayoutDestroy(p->second);
    if (p->result) f->cublasLtMatrixLayoutDestroy(p->result);
    p->operation = NULL;
    p->first = p->second = p->result = NULL;
}

weft_status wefti_cuda_blas_prepare(wefti_cuda *cuda, const wefti_call *call, const wefti_cuda_epilogue *epilogue, wefti_cuda_blas_call *self) {
    WEFTI_TRY(wefti_cuda_blas_open(cuda));
    fill_key(cuda, call, &self->c, epilogue, &self->product.key);
    cublasStatus_t made   = make_descriptors(cuda->blas->f, &self->c, &self->product);
    weft_status    status = made == CUBLAS_STATUS_SUCCESS ? wefti_cuda_blas_choose(cuda, &self->product)
                                                          : refused(cuda->blas->f, made, "cuBLASLt's descriptors");
    if (status != WEFT_OK) destroy_descriptors(cuda->blas->f, &self->product);
    return status;
}

void wefti_cuda_blas_unprepare(wefti_cuda *cuda, wefti_cuda_blas_call *self) {
    if (cuda->blas) destroy_descriptors(cuda->blas->f, &self->product);
}

static weft_status prepare(wefti_cuda *cuda, const wefti_call *call, void *memory) {
    prepared *self = memory;
    if (!wefti_cuda_blas_cut(call, &self->of.c)) return wefti_fail(WEFT_E_INTERNAL, "not a product for cuBLASLt");
    weft_status status = wefti_cuda_blas_prepare(cuda, call, NULL, &self->of);
    if (status == WEFT_OK) return WEFT_OK;
    if (cuda->broken != WEFT_OK || status == WEFT_E_NO_MEMORY) return status;
    wefti_log(WEFT_LOG_INFO, "cuda: matmul '%s' runs on Weft's own kernel: %s", call->name ? call->name : "", weft_error_message());
    self->own = true;
    return WEFT_OK;
}

static void unprepare(wefti_cuda *cuda, void *memory) { wefti_cuda_blas_unprepare(cuda, &((prepared *)memory)->of); }

/* --- run --- */

cublasStatus_t wefti_cuda_blas_multiply(const wefti_cuda_blas *blas, const wefti_cuda_blas_product *p, const wefti_cuda_blas_places *at,
                                        cudaStream_t stream) {
    static const double one64 = 1, zero64 = 0;
    static const float  one32 = 1, zero32 = 0;
    bool                is64 = p->key.dtype == WEFT_F64;
    const void         *one = is64 ? (const void *)&one64 : &one32, *zero = is64 ? (const void *)&zero64 : &zero32;
    cublasStatus_t      status = CUBLAS_STATUS_SUCCESS;
    if (p->key.vector_alignment)
        status = blas->f->cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &at->vector, sizeof at->vector);
    if (status == CUBLAS_STATUS_SUCCESS && p->key.side_alignment)
        status = blas->f->cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &at->side, sizeof at->side);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    return blas->f->cublasLtMatmul(blas->handle, p->operation, one, at->first, p->first, at->second, p->second, p->key.adds ? one : zero,
                                   p->key.adds ? at->added : at->result, p->result, at->result, p->result, &p->algo, at->workspace,
                                   p->workspace_bytes, stream);
}

static weft_status run_blas(const wefti_cuda_run *run) {
    const prepared           *self = run->prepared;
    const wefti_cuda_product *p    = &self->of.c.p;
    size_t                    bytes = weft_dtype_bytes(run->call->outputs[0].dtype);
    if (self->own) return wefti_cuda_matmul.run(run);
    for (int64_t i = 0; i < self->of.c.loop; i++) {
        int64_t a = 0, b = 0, c = 0, rest = i;
        for (int32_t axis = p->batch_rank - 1; axis >= 0; axis--) {
            if (axis == self->of.c.axis) continue;
            int64_t at = rest % p->batch[axis];
            rest /= p->batch[axis];
            a += at * p->a_batch[axis];
            b += at * p->b_batch[axis];
            c += at * result_stride(p, axis);
        }
        wefti_cuda_blas_places at = {.first     = (const char *)run->inputs[1] + (size_t)b * bytes,
                                     .second    = (const char *)run->inputs[0] + (size_t)a * bytes,
                                     .result    = (char *)run->outputs[0] + (size_t)c * bytes,
                                     .workspace = run->scratch};
        cublasStatus_t         status = wefti_cuda_blas_multiply(run->cuda->blas, &self->of.product, &at, run->stream);
        if (status != CUBLAS_STATUS_SUCCESS)
            return wefti_fail(WEFT_E_DEVICE, "[%lld, %lld] x [%lld, %lld] %s: cublasLtMatmul: %s", (long long)p->m, (long long)p->k,
                              (long long)p->k, (long long)p->n, weft_dtype_name(run->call->outputs[0].dtype),
                              run->cuda->blas->f->cublasLtGetStatusString(status));
    }
    return WEFT_OK;
}

const wefti_cuda_kernel wefti_cuda_matmul_blas = {.name           = "cuBLASLt",
                                                  .accepts        = accepts,
                                                  .scratch        = scratch,
                                                  .prepared_bytes = prepared_bytes,
                                                  .prepare        = prepare,
                                                  .unprepare      = unprepare,
                                                  .run            = run_blas};

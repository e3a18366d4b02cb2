/* Plans of cuDNN's graphs (dnn.h): which engine computes one.
 *
 * cuDNN's heuristic names engines, best first by its own estimate; those are left out that the wishes forbid, that want too much workspace,
 * or that refuse the graph. Where the caller says how large the operands are, the first few are run on random numbers, compared and timed,
 * once. Engines are not taken at their word: one of cuDNN 9.19's computes gradients of grouped convolutions' weights wrong, so only those
 * count with which most others agree. The choice is kept
 * on disk as its place in that list (WEFT_CUDA_CACHE; WEFT_CUDA_TUNE=0 takes the heuristic's word). */
#include <stdlib.h>
#include <string.h>

#include "cuda/cache.h"
#include "cuda/dnn.h"
#include "core/tensor/operand.h"

enum { LISTED = 32, CANDIDATES = 6, TURNS = 4, OPERANDS_MOST = 16, KEY_BYTES_MOST = 512, SEEN = WEFTI_CUDA_DNN_SEEN, CHUNKS = 32, BLOCK_BYTES = 1 << 20 };
enum { NOT_MEASURED = -1, NONE = WEFTI_CUDA_DNN_NONE };
#define MEASURED_BYTES_MOST (INT64_C(4) << 30)

static weft_status refused(const wefti_cuda_dnn *dnn, cudnnStatus_t status, const char *what) {
    char more[256] = "";
    dnn->f->cudnnGetLastErrorString(more, sizeof more);
    return wefti_fail(WEFT_E_UNSUPPORTED, "cuDNN %llu, %s: %s%s%s", (unsigned long long)dnn->version, what, dnn->f->cudnnGetErrorString(status),
                      more[0] ? ": " : "", more);
}

/* --- engines --- */

/* Whether the engine of a configuration computes as op.h says. */
static bool is_wanted(const wefti_cuda *cuda, cudnnBackendDescriptor_t config, const wefti_cuda_dnn_wishes *wishes) {
    const wefti_cuda_dnn_functions *f = cuda->dnn->f;
    cudnnBackendDescriptor_t        engine;
    cudnnBackendNumericalNote_t     notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    int64_t                         n = 0;
    bool                            wanted = false, full = wishes->dtype == WEFT_F32 && !cuda->tf32;
    if (f->cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine) != CUDNN_STATUS_SUCCESS) return false;
    if (f->cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &engine) == CUDNN_STATUS_SUCCESS &&
        f->cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &n,
                                    notes) == CUDNN_STATUS_SUCCESS) {
        wanted = true;
        for (int64_t i = 0; i < n; i++)
            switch (notes[i]) {
            case CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC:
            case CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION:
            case CUDNN_NUMERICAL_NOTE_FFT: /* these transform the factors, and lose digits by it */
            case CUDNN_NUMERICAL_NOTE_WINOGRAD:
            case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_4x4:
            case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6:
            case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13: wanted = false; break;
            case CUDNN_NUMERICAL_NOTE_TENSOR_CORE: /* of f32 that is tf32 */
            case CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS: wanted = wanted && !full; break;
            default: break;
            }
    }
    f->cudnnBackendDestroyDescriptor(engine);
    return wanted;
}

/* A plan of the configuration, which it takes over; false, with nothing kept, where it is not wanted or does not work. */
static bool plan_of(wefti_cuda *cuda, cudnnBackendDescriptor_t config, const wefti_cuda_dnn_wishes *wishes, wefti_cuda_dnn_plan *out) {
    const wefti_cuda_dnn_functions *f = cuda->dnn->f;
    int64_t                         n = 0;
    memset(out, 0, sizeof *out);
    if (!is_wanted(cuda, config, wishes) ||
        f->cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &out->plan) != CUDNN_STATUS_SUCCESS) {
        f->cudnnBackendDestroyDescriptor(config);
        return false;
    }
    out->config = config;
    cudnnStatus_t status = cuda->dnn->properties ? f->cudnnBackendSetAttribute(out->plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP,
                                                                               CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &cuda->dnn->properties)
                                                 : f->cudnnBackendSetAttribute(out->plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE,
                                                                               1, &cuda->dnn->handle);
    if (status == CUDNN_STATUS_SUCCESS &&
        f->cudnnBackendSetAttribute(out->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &config) ==
            CUDNN_STATUS_SUCCESS &&
        f->cudnnBackendFinalize(out->plan) == CUDNN_STATUS_SUCCESS &&
        f->cudnnBackendGetAttribute(out->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n, &out->workspace_bytes) ==
            CUDNN_STATUS_SUCCESS &&
        out->workspace_bytes <= wishes->workspace_bytes)
        return true;
    wefti_cuda_dnn_plan_release(cuda, out);
    return false;
}

void wefti_cuda_dnn_plan_release(wefti_cuda *cuda, wefti_cuda_dnn_plan *plan) {
    if (!cuda->dnn) return;
    if (plan->plan) cuda->dnn->f->cudnnBackendDestroyDescriptor(plan->plan);
    if (plan->config) cuda->dnn->f->cudnnBackendDestroyDescriptor(plan->config);
    memset(plan, 0, sizeof *plan);
}

/* A plan and its place in the heuristic's list. */
typedef struct candidate {
    wefti_cuda_dnn_plan plan;
    int32_t             place;
} candidate;

/* Plans of the configurations that one mode of the heuristic gives, at most `most`, in its order; of the one at place `only` where that is
 * not negative. Returns how many. */
static int32_t ask(wefti_cuda *cuda, wefti_cuda_dnn_graph *graph, cudnnBackendDescriptor_t operations, cudnnBackendHeurMode_t mode,
                   const wefti_cuda_dnn_wishes *wishes, int32_t only, int32_t most, candidate *found) {
    const wefti_cuda_dnn_functions *f = cuda->dnn->f;
    cudnnBackendDescriptor_t        configs[LISTED];
    int64_t                         n = 0;
    int32_t                         n_found = 0, made = 0;
    cudnnBackendDescriptor_t        heuristic = wefti_cuda_dnn_make(graph, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    wefti_cuda_dnn_set(graph, heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &operations);
    wefti_cuda_dnn_set(graph, heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (cuda->dnn->properties)
        wefti_cuda_dnn_set(graph, heuristic, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &cuda->dnn->properties);
    wefti_cuda_dnn_finish(graph, heuristic, "asking the heuristic, descriptor");
    if (graph->status != CUDNN_STATUS_SUCCESS) return 0;
    while (made < LISTED && f->cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &configs[made]) == CUDNN_STATUS_SUCCESS) made++;
    if (f->cudnnBackendGetAttribute(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, made, &n, configs) !=
        CUDNN_STATUS_SUCCESS)
        n = 0;
    if (n > made) n = made;
    for (int32_t i = 0; i < made; i++) {
        if (i >= n || n_found == most || (only >= 0 && i != only)) f->cudnnBackendDestroyDescriptor(configs[i]);
        else if (plan_of(cuda, configs[i], wishes, &found[n_found].plan)) found[n_found++].place = i;
    }
    return n_found;
}

/* --- measuring --- */

/* Milliseconds, the best of some turns; negative where the plan does not run. */
static float time_of(wefti_cuda *cuda, const wefti_cuda_dnn_plan *plan, const wefti_cuda_dnn_wishes *wishes, void *const *pointers,
                     void *workspace, const cudaEvent_t *events) {
    float best = -1;
    for (int turn = 0; turn <= TURNS; turn++) { /* the first loads kernels, and does not count */
        float ms = 0;
        if (cudaEventRecord(events[0], cuda->stream) != cudaSuccess ||
            wefti_cuda_dnn_execute(cuda, plan, wishes->n_operands, wishes->ids, pointers, workspace, cuda->stream) != WEFT_OK ||
            cudaEventRecord(events[1], cuda->stream) != cudaSuccess || cudaEventSynchronize(events[1]) != cudaSuccess ||
            cudaEventElapsedTime(&ms, events[0], events[1]) != cudaSuccess)
            return -1;
        if (turn > 0 && (best < 0 || ms < best)) best = ms;
    }
    return best;
}

/* Fills `bytes` of device memory with numbers between -1 and 1, a block of BLOCK_BYTES of them over and over. */
static bool fill(wefti_cuda *cuda, char *block, char *memory, int64_t bytes, weft_dtype dtype, uint64_t seed) {
    size_t size = weft_dtype_bytes(dtype);
    for (size_t i = 0; i < BLOCK_BYTES / size; i++) {
        seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        wefti_store_f64(block, (int64_t)i, dtype, (double)(int32_t)(seed >> 32) * 0x1p-31);
    }
    for (int64_t at = 0; at < bytes; at += BLOCK_BYTES) {
        size_t now = (size_t)wefti_min_i64(BLOCK_BYTES, bytes - at);
        if (cudaMemcpyAsync(memory + at, at ? memory : block, now, at ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice, cuda->stream) !=
            cudaSuccess)
            return false;
    }
    return cudaStreamSynchronize(cuda->stream) == cudaSuccess; /* the block is used again */
}

/* SEEN elements of a candidate's result, in CHUNKS from all over it. */
typedef wefti_cuda_dnn_sample sample;

static bool take_sample(wefti_cuda *cuda, const wefti_cuda_dnn_wishes *wishes, const void *memory, sample *to) {
    char    bytes[SEEN * sizeof(double)];
    int64_t size = (int64_t)weft_dtype_bytes(wishes->dtype), all = wishes->bytes[wishes->result] / size, chunk = SEEN / CHUNKS;
    to->n = wefti_min_i64(SEEN, all);
    for (int64_t at = 0; at < to->n; at += chunk) {
        int64_t from = all <= SEEN ? at : (all - chunk) * (at / chunk) / (CHUNKS - 1), n = wefti_min_i64(chunk, to->n - at);
        if (cudaMemcpyAsync(bytes + at * size, (const char *)memory + from * size, (size_t)(n * size), cudaMemcpyDeviceToHost, cuda->stream) !=
            cudaSuccess)
            return false;
    }
    if (cudaStreamSynchronize(cuda->stream) != cudaSuccess) return false;
    for (int64_t i = 0; i < to->n; i++) to->value[i] = wefti_load_f64(bytes, i, wishes->dtype);
    return true;
}

/* To a hundredth of their size: rounding differs, mistakes are larger. */
static bool agree(const sample *a, const sample *b) {
    double difference = 0, size = 0;
    for (int64_t i = 0; i < a->n; i++) {
        difference += (a->value[i] - b->value[i]) * (a->value[i] - b->value[i]);
        size += a->value[i] * a->value[i] + b->value[i] * b->value[i];
    }
    return difference <= 1e-4 * size;
}

int32_t wefti_cuda_dnn_choose(const wefti_cuda_dnn_sample *samples, const float *ms, int32_t n) {
    int32_t best = NONE, ran = 0;
    for (int32_t i = 0; i < n; i++) ran += ms[i] >= 0;
    for (int32_t i = 0; i < n; i++) {
        int32_t like = 0;
        if (ms[i] < 0) continue;
        for (int32_t k = 0; k < n; k++) like += ms[k] >= 0 && agree(&samples[i], &samples[k]);
        if (2 * like >= ran && (like > 1 || ran == 1) && (best == NONE || ms[i] < ms[best])) best = i;
    }
    return best;
}

/* Which is the fastest; NOT_MEASURED where nothing could be, NONE where they differ and nobody knows who is right. */
static int32_t fastest(wefti_cuda *cuda, const candidate *found, int32_t n, const wefti_cuda_dnn_wishes *wishes) {
    void       *pointers[OPERANDS_MOST] = {NULL}, *workspace = NULL;
    cudaEvent_t events[2] = {NULL, NULL};
    sample     *samples = NULL;
    char       *block = NULL;
    float       ms[CANDIDATES];
    int64_t     total = 0, scratch = 0;
    int32_t     best = NOT_MEASURED;
    bool        ready = wishes->n_operands <= OPERANDS_MOST && wefti_alloc(CANDIDATES * sizeof *samples, "results", &samples) == WEFT_OK &&
                        wefti_alloc(BLOCK_BYTES, "random numbers", &block) == WEFT_OK;
    for (int32_t i = 0; i < n; i++) scratch = wefti_max_i64(scratch, found[i].plan.workspace_bytes);
    for (int32_t i = 0; i < wishes->n_operands; i++) total += wishes->bytes[i];
    ready = ready && total + scratch <= MEASURED_BYTES_MOST && cudaMalloc(&workspace, (size_t)scratch + 256) == cudaSuccess;
    for (int32_t i = 0; ready && i < wishes->n_operands; i++)
        ready = cudaMalloc(&pointers[i], (size_t)wishes->bytes[i] + 256) == cudaSuccess &&
                fill(cuda, block, pointers[i], wishes->bytes[i], wishes->dtype, (uint64_t)i + 1);
    ready = ready && cudaEventCreate(&events[0]) == cudaSuccess && cudaEventCreate(&events[1]) == cudaSuccess;
    for (int32_t i = 0; ready && i < n; i++) {
        ready = fill(cuda, block, pointers[wishes->result], wishes->bytes[wishes->result], wishes->dtype, 77); /* no other engine's result */
        ms[i] = time_of(cuda, &found[i].plan, wishes, pointers, workspace, events);
        if (ms[i] >= 0 && !take_sample(cuda, wishes, pointers[wishes->result], &samples[i])) ready = false;
    }
    if (ready) best = wefti_cuda_dnn_choose(samples, ms, n);
    cudaStreamSynchronize(cuda->stream);
    for (int32_t i = 0; i < OPERANDS_MOST; i++) cudaFree(pointers[i]);
    cudaFree(workspace);
    for (int i = 0; i < 2; i++)
        if (events[i]) cudaEventDestroy(events[i]);
    wefti_free(samples, CANDIDATES * sizeof *samples);
    wefti_free(block, BLOCK_BYTES);
    cudaGetLastError(); /* a refused allocation is no fault: the heuristic's word is taken then */
    return best;
}

/* The caller's key with what every choice depends on. Returns its bytes, 0 where it is too long. */
static size_t whole_key(const wefti_cuda *cuda, const wefti_cuda_dnn_wishes *wishes, unsigned char key[KEY_BYTES_MOST]) {
    struct {
        uint64_t version;
        int64_t  workspace_bytes;
        int32_t  tf32, dtype;
        char     device[64];
    } common;
    memset(&common, 0, sizeof common);
    common.version         = cuda->dnn->version;
    common.workspace_bytes = wishes->workspace_bytes;
    common.tf32            = cuda->tf32;
    common.dtype           = (int32_t)wishes->dtype;
    strncpy(common.device, wefti_cuda_describe(&cuda->base), sizeof common.device - 1);
    if (sizeof common + wishes->key_bytes > KEY_BYTES_MOST) return 0;
    memcpy(key, &common, sizeof common);
    if (wishes->key_bytes) memcpy(key + sizeof common, wishes->key, wishes->key_bytes);
    return sizeof common + wishes->key_bytes;
}

static bool is_tuned(const wefti_cuda *cuda, const wefti_cuda_dnn_wishes *wishes) {
    const char *tune = getenv("WEFT_CUDA_TUNE");
    return wishes->n_operands > 0 && !cuda->dnn->properties && !(tune && strcmp(tune, "0") == 0);
}

/* Candidates for a graph of operations; one where the choice is known from before. */
static int32_t find(wefti_cuda *cuda, wefti_cuda_dnn_graph *graph, cudnnBackendDescriptor_t all, const wefti_cuda_dnn_wishes *wishes,
                    int32_t known, candidate *found) {
    int32_t n = known >= 0 ? ask(cuda, graph, all, CUDNN_HEUR_MODE_A, wishes, known, 1, found) : 0;
    int32_t most = is_tuned(cuda, wishes) ? CANDIDATES : 1;
    if (n == 0) n = ask(cuda, graph, all, CUDNN_HEUR_MODE_A, wishes, -1, most, found);
    if (n == 0) n = ask(cuda, graph, all, CUDNN_HEUR_MODE_FALLBACK, wishes, -1, 1, found);
    return n;
}

/* The best of several, measured, and kept for the next time; NONE where they differ. */
static int32_t pick(wefti_cuda *cuda, const candidate *found, int32_t n, const wefti_cuda_dnn_wishes *wishes, const void *key,
                    size_t key_bytes) {
    int32_t best = n < 2 ? NOT_MEASURED : fastest(cuda, found, n, wishes);
    if (best < 0) return best == NONE ? NONE : 0;
    if (key_bytes) wefti_cuda_cache_write("dnn-agreed", key, key_bytes, &found[best].place, sizeof found[best].place);
    return best;
}

weft_status wefti_cuda_dnn_plan_make(wefti_cuda *cuda, wefti_cuda_dnn_graph *graph, const cudnnBackendDescriptor_t *operations,
                                     int32_t n_operations, const wefti_cuda_dnn_wishes *wishes, wefti_cuda_dnn_plan *plan_out) {
    candidate                found[CANDIDATES];
    unsigned char            key[KEY_BYTES_MOST];
    int32_t                  known = -1, n = 0;
    size_t                   key_bytes = is_tuned(cuda, wishes) ? whole_key(cuda, wishes, key) : 0;
    cudnnBackendDescriptor_t all = wefti_cuda_dnn_make(graph, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    memset(plan_out, 0, sizeof *plan_out);
    wefti_cuda_dnn_set(graph, all, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, n_operations, operations);
    if (!cuda->dnn->properties) wefti_cuda_dnn_set(graph, all, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &cuda->dnn->handle);
    wefti_cuda_dnn_finish(graph, all, "finishing the graph, descriptor");
    if (key_bytes && !wefti_cuda_cache_read("dnn-agreed", key, key_bytes, &known, sizeof known)) known = -1;
    if (graph->status == CUDNN_STATUS_SUCCESS) n = find(cuda, graph, all, wishes, known, found);
    if (graph->status != CUDNN_STATUS_SUCCESS) {
        for (int32_t i = 0; i < n; i++) wefti_cuda_dnn_plan_release(cuda, &found[i].plan);
        return refused(cuda->dnn, graph->status, graph->failed);
    }
    if (n == 0)
        return wefti_fail(WEFT_E_UNSUPPORTED, "cuDNN %llu has no engine that is deterministic, sums in f32 and needs at most %lld bytes of workspace",
                          (unsigned long long)cuda->dnn->version, (long long)wishes->workspace_bytes);
    int32_t best = pick(cuda, found, n, wishes, key, key_bytes);
    for (int32_t i = 0; i < n; i++)
        if (i != best) wefti_cuda_dnn_plan_release(cuda, &found[i].plan);
    if (best == NONE)
        return wefti_fail(WEFT_E_UNSUPPORTED, "cuDNN %llu: its %d engines for this come to different results", (unsigned long long)cuda->dnn->version,
                          (int)n);
    *plan_out = found[best].plan;
    return WEFT_OK;
}

/* --- executing --- */

weft_status wefti_cuda_dnn_execute(wefti_cuda *cuda, const wefti_cuda_dnn_plan *plan, int32_t n_operands, const int64_t *ids,
                                   void *const *pointers, void *workspace, cudaStream_t stream) {
    const wefti_cuda_dnn_functions *f = cuda->dnn->f;
    cudnnBackendDescriptor_t        pack;
    cudnnStatus_t                   status = f->cudnnSetStream(cuda->dnn->handle, stream);
    if (status == CUDNN_STATUS_SUCCESS) status = f->cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
    if (status != CUDNN_STATUS_SUCCESS) return wefti_fail(WEFT_E_DEVICE, "cuDNN: %s", f->cudnnGetErrorString(status));
    status = f->cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, n_operands, ids);
    if (status == CUDNN_STATUS_SUCCESS)
        status = f->cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, n_operands, pointers);
    if (status == CUDNN_STATUS_SUCCESS)
        status = f->cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    if (status == CUDNN_STATUS_SUCCESS) status = f->cudnnBackendFinalize(pack);
    if (status == CUDNN_STATUS_SUCCESS) status = f->cudnnBackendExecute(cuda->dnn->handle, plan->plan, pack);
    f->cudnnBackendDestroyDescriptor(pack);
    if (status == CUDNN_STATUS_SUCCESS) return WEFT_OK;
    char more[256] = "";
    f->cudnnGetLastErrorString(more, sizeof more);
    return wefti_fail(WEFT_E_DEVICE, "cuDNN %llu: %s: %s", (unsigned long long)cuda->dnn->version, f->cudnnGetErrorString(status), more);
}

/* ARGMAX, and what is about counts of reduced elements: EXTENT and MEAN_BACKWARD.
 *
 * ARGMAX gives each result to a team of 1, 32 or 256 threads, by how many elements there are and whether neighbours are reduced together;
 * a candidate is a value with its place, of which the first of the largest wins, and NaN over all. Cost: x is read once. */
#include "cuda/index.cuh"
#include "cuda/scalars.cuh"
#include "cuda/vector.cuh"

enum { BLOCK = 256, WARP = 32, WARPS = BLOCK / WARP };

/* --- ARGMAX --- */

typedef struct argmax {
    wefti_space kept;
    int64_t     stride[WEFT_MAX_RANK], along, results, reduced;
    const void *from;
    void       *to;
    int32_t     wide; /* i64 results; else i32 */
} argmax;

template <typename T> struct compared { typedef typename wefti_wide<T>::type type; };
template <> struct compared<int32_t> { typedef int64_t type; };
template <> struct compared<uint8_t> { typedef int64_t type; };

template <typename T> struct is_short_float { static constexpr bool value = false; };
template <> struct is_short_float<float> { static constexpr bool value = true; };
template <> struct is_short_float<__half> { static constexpr bool value = true; };
template <> struct is_short_float<__nv_bfloat16> { static constexpr bool value = true; };

/* Whether candidate b, which may be none (-1), is to be preferred to a. */
template <typename A> SCALAR bool is_better(A a, int64_t a_at, A b, int64_t b_at) {
    if (b_at < 0 || a_at < 0) return b_at >= 0;
    bool a_is_nan = a != a, b_is_nan = b != b;
    if (a_is_nan || b_is_nan) return b_is_nan && (!a_is_nan || b_at < a_at);
    return b > a || (b == a && b_at < a_at);
}

/* The best candidate of a team, for its first thread. */
template <int TEAM, typename A> static __device__ __forceinline__ void argmax_join(A &best, int64_t &best_at, A *values, int64_t *places) {
    if (TEAM >= WARP) {
        for (int width = WARP / 2; width > 0; width /= 2) {
            A       other = __shfl_down_sync(0xffffffffu, best, width);
            int64_t other_at = __shfl_down_sync(0xffffffffu, best_at, width);
            if (is_better(best, best_at, other, other_at)) best = other, best_at = other_at;
        }
    }
    if (TEAM > WARP) {
        if (threadIdx.x % WARP == 0) values[threadIdx.x / WARP] = best, places[threadIdx.x / WARP] = best_at;
        __syncthreads();
        if (threadIdx.x == 0)
            for (int warp = 1; warp < WARPS; warp++)
                if (is_better(best, best_at, values[warp], places[warp])) best = values[warp], best_at = places[warp];
    }
}
static __device__ __forceinline__ void argmax_give(const argmax &m, int64_t k, int64_t at) {
    if (m.wide) static_cast<int64_t *>(m.to)[k] = at;
    else static_cast<int32_t *>(m.to)[k] = (int32_t)at;
}

template <typename T, int TEAM> static __global__ void __launch_bounds__(BLOCK) argmax_forward_team_kernel(const argmax m) {
    typedef typename compared<T>::type A;
    __shared__ A       values[WARPS];
    __shared__ int64_t places[WARPS];
    int64_t            k = (int64_t)blockIdx.x * (BLOCK / TEAM) + threadIdx.x / TEAM;
    if (k >= m.results) return; /* whole teams */
    const T *from = static_cast<const T *>(m.from) + wefti_place(m.kept, m.stride, k);
    A        best = A(0);
    int64_t  best_at = -1;
    for (int64_t i = threadIdx.x % TEAM; i < m.reduced; i += TEAM) {
        A x = (A)wefti_widen(from[i * m.along]);
        if (is_better(best, best_at, x, i)) best = x, best_at = i;
    }
    argmax_join<TEAM>(best, best_at, values, places);
    if (threadIdx.x % TEAM == 0) argmax_give(m, k, best_at);
}

/* Rows of floats in vectors of 16 bytes, AHEAD of which are on their way at a time: elements are looked at one by one only where a vector has a
 * larger one than all before, or a NaN. */
enum { AHEAD = 4 };
template <typename T, int TEAM> static __global__ void __launch_bounds__(BLOCK) argmax_forward_vectors_kernel(WEFTI_IN_PLACE argmax m) {
    const int  VEC = 16 / sizeof(T);
    typedef wefti_vector<T, VEC> V;
    __shared__ float   values[WARPS];
    __shared__ int64_t places[WARPS];
    int64_t            k = (int64_t)blockIdx.x * (BLOCK / TEAM) + threadIdx.x / TEAM;
    if (k >= m.results) return; /* whole teams */
    const V      *from = reinterpret_cast<const V *>(static_cast<const T *>(m.from) + wefti_place(m.kept, m.stride, k));
    const int64_t vectors = m.reduced / VEC;
    float         best = -INFINITY;
    int64_t       best_at = -1;
    for (int64_t start = threadIdx.x % TEAM; start < vectors; start += TEAM * AHEAD) {
        V ahead[AHEAD];
#pragma unroll
        for (int h = 0; h < AHEAD; h++)
            if (start + h * TEAM < vectors) ahead[h] = from[start + h * TEAM];
#pragma unroll
        for (int h = 0; h < AHEAD; h++) {
            if (start + h * TEAM >= vectors || best != best) continue;
            float xs[VEC], most;
            ahead[h].widen(xs);
            most = xs[0];
#pragma unroll
            for (int v = 1; v < VEC; v++) most = wefti_maximum(most, xs[v]);
            if (most <= best && best_at >= 0) continue;
            int place = 0; /* of the first that is the largest, or NaN where there is one */
#pragma unroll
            for (int v = VEC - 1; v >= 0; v--) place = xs[v] == most || (most != most && xs[v] != xs[v]) ? v : place;
            best = most, best_at = (start + h * TEAM) * VEC + place;
        }
    }
    argmax_join<TEAM>(best, best_at, values, places);
    if (threadIdx.x % TEAM == 0) argmax_give(m, k, best_at);
}

static bool argmax_is_vectors(const argmax *m, int64_t bytes) {
    if (m->along != 1 || !wefti_is_aligned(m->from) || m->reduced * bytes % 16) return false;
    for (int32_t axis = 0; axis < m->kept.rank; axis++)
        if (m->kept.dim[axis] > 1 && m->stride[axis] * bytes % 16) return false;
    return true;
}

template <typename T> static weft_status launch_argmax(const wefti_cuda_run *run, const argmax *m) {
    if constexpr (is_short_float<T>::value) {
        if (argmax_is_vectors(m, sizeof(T)) && m->reduced <= 32768)
            return wefti_cuda_launch(run, "argmax", (argmax_forward_vectors_kernel<T, WARP>), wefti_cuda_blocks(m->results, WARPS, 0), BLOCK, 0, *m);
        if (argmax_is_vectors(m, sizeof(T)))
            return wefti_cuda_launch(run, "argmax", (argmax_forward_vectors_kernel<T, BLOCK>), wefti_cuda_blocks(m->results, 1, 0), BLOCK, 0, *m);
    }
    if (m->along != 1 && m->results >= 4096)
        return wefti_cuda_launch(run, "argmax", (argmax_forward_team_kernel<T, 1>), wefti_cuda_blocks(m->results, BLOCK, 0), BLOCK, 0, *m);
    if (m->reduced <= 2048)
        return wefti_cuda_launch(run, "argmax", (argmax_forward_team_kernel<T, WARP>), wefti_cuda_blocks(m->results, WARPS, 0), BLOCK, 0, *m);
    return wefti_cuda_launch(run, "argmax", (argmax_forward_team_kernel<T, BLOCK>), wefti_cuda_blocks(m->results, 1, 0), BLOCK, 0, *m);
}

static weft_status run_argmax(const wefti_cuda_run *run) {
    const wefti_operand *x = &run->call->inputs[0];
    wefti_operand        kept = *x;
    const wefti_operand *only = &kept;
    wefti_cuda_view_of   view;
    argmax               m;
    m.along = 0;
    m.reduced = 1;
    for (int32_t axis = 0; axis < x->shape.rank; axis++) {
        if (!(run->call->attrs->reduce.axes >> axis & 1)) continue;
        m.along = x->stride[axis];
        m.reduced = x->shape.dim[axis];
        kept.shape.dim[axis] = 1;
    }
    wefti_cuda_views(kept.shape, &only, 1, &view);
    m.kept = wefti_space_of(&view);
    memcpy(m.stride, view.stride, sizeof m.stride);
    m.results = wefti_operand_elements(&kept);
    m.from = run->inputs[0];
    m.to = run->outputs[0];
    m.wide = run->call->outputs[0].dtype == WEFT_I64;
    if (m.results >= 0x7fffffff) return wefti_fail(WEFT_E_UNSUPPORTED, "argmax: too many results for one launch");
    WEFTI_DISPATCH_ANY(x->dtype, return launch_argmax<T>(run, &m);)
    return WEFT_OK;
}
const wefti_cuda_kernel wefti_cuda_argmax = {.name = "argmax", .run = run_argmax};

/* --- EXTENT and MEAN_BACKWARD --- */

template <typename T> static __global__ void extent_forward_one_kernel(T *to, double extent) { *to = wefti_narrow<T>((typename wefti_wide<T>::type)extent); }

static weft_status run_extent(const wefti_cuda_run *run) {
    const wefti_operand *x = &run->call->inputs[0];
    double               extent = 1;
    for (int32_t axis = 0; axis < x->shape.rank; axis++)
        if (run->call->attrs->reduce.axes >> axis & 1) extent *= (double)x->shape.dim[axis];
    if (run->call->attrs->reduce.count != 0) extent = run->call->attrs->reduce.count;
    WEFTI_DISPATCH_FLOAT(run->call->outputs[0].dtype,
                         return wefti_cuda_launch(run, "extent", (extent_forward_one_kernel<T>), 1, 1, 0, static_cast<T *>(run->outputs[0]), extent);)
    return WEFT_OK;
}
const wefti_cuda_kernel wefti_cuda_extent = {.name = "extent", .run = run_extent};

typedef struct spread {
    wefti_space space;
    int64_t     stride[WEFT_MAX_RANK], elements;
    const void *from;
    void       *to;
    double      count;
} spread;

/* A thread computes 16 bytes of the output. */
template <typename T, typename Index> static __global__ void __launch_bounds__(BLOCK) mean_backward_packed_kernel(const spread s) {
    typedef typename wefti_wide<T>::type A;
    const int N = wefti_pack<T>::COUNT;
    const T  *from = static_cast<const T *>(s.from);
    T        *to = static_cast<T *>(s.to);
    int64_t   begin = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * N;
    bool      packed = begin + N <= s.elements && wefti_is_aligned(to);
    if (packed) {
        wefti_pack<T> y;
        for (int n = 0; n < N; n++)
            y.element[n] = wefti_narrow<T>(wefti_widen(from[wefti_place(s.space, s.stride, (Index)(begin + n))]) / (A)s.count);
        *reinterpret_cast<wefti_pack<T> *>(to + begin) = y;
        return;
    }
    for (int64_t i = begin; i < begin + N && i < s.elements; i++)
        to[i] = wefti_narrow<T>(wefti_widen(from[wefti_place(s.space, s.stride, (Index)i)]) / (A)s.count);
}

template <typename T> static weft_status launch_spread(const wefti_cuda_run *run, const spread *s) {
    unsigned blocks = wefti_cuda_blocks(s->elements, (int64_t)BLOCK * wefti_pack<T>::COUNT, 0);
    if (wefti_is_small(s->elements)) return wefti_cuda_launch(run, "mean backward", (mean_backward_packed_kernel<T, uint32_t>), blocks, BLOCK, 0, *s);
    return wefti_cuda_launch(run, "mean backward", (mean_backward_packed_kernel<T, int64_t>), blocks, BLOCK, 0, *s);
}

static weft_status run_mean_backward(const wefti_cuda_run *run) {
    const wefti_operand *g = &run->call->inputs[0], *y = &run->call->outputs[0];
    const wefti_attrs   *attrs = run->call->attrs;
    wefti_operand        wide;
    const wefti_operand *only = &wide;
    wefti_cuda_view_of   view;
    spread               s;
    bool                 kept = g->shape.rank == y->shape.rank;
    memset(&wide, 0, sizeof wide);
    wide.shape = y->shape;
    s.count = 1;
    for (int32_t axis = 0, own = 0; axis < y->shape.rank; axis++) {
        bool away = attrs->reduce.axes >> axis & 1;
        if (away) s.count *= (double)y->shape.dim[axis];
        wide.stride[axis] = away ? 0 : g->stride[own];
        own += kept || !away;
    }
    if (attrs->reduce.count != 0) s.count = attrs->reduce.count;
    wefti_cuda_views(y->shape, &only, 1, &view);
    s.space = wefti_space_of(&view);
    memcpy(s.stride, view.stride, sizeof s.stride);
    s.elements = wefti_operand_elements(y);
    s.from = run->inputs[0];
    s.to = run->outputs[0];
    WEFTI_DISPATCH_FLOAT(y->dtype, return launch_spread<T>(run, &s);)
    return WEFT_OK;
}
const wefti_cuda_kernel wefti_cuda_mean_backward = {.name = "mean backward", .run = run_mean_backward};

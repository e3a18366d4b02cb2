/* CROSS_ENTROPY and its gradient.
 *
 * Idea: a warp (short rows) or a block (long ones) goes once over the logits of a row, with a running maximum and a sum of powers that is
 * rescaled where the maximum grows; probabilities are never stored. The gradient reads logits once and writes once: everything that it
 * needs of a row beyond them is its log-sum-exp.
 * Where the gradient follows its loss at once, as in a chunk of a large loss (core/plan/chunk.c), one kernel does both, and keeps a row's
 * logits in shared memory. The bits are the same.
 * Cost: logits once through memory forward, twice (read, written) backward, both twice together; no scratch. */
#include "cuda/ptx.cuh"
#include "cuda/rows.cuh"

/* Rows are walked, never kept whole, by 512 threads, so that several rows share a multiprocessor and one reads while another is reduced.
 * Vectors ahead hide the latency of memory; where powers are summed, fewer leave room for more rows. */
enum { LOSS_LANES = 512, LOSS_AHEAD_FORWARD = 2, LOSS_AHEAD_BACKWARD = 4, LOSS_SHORT = 1024 };

/* The sum over threads' x of exp(x - most); most -infinity stands for a sum of nothing. */
template <typename W> struct loss_sum {
    W most, sum;
};
/* Powers are measured from 0 while there is nothing but -infinity, which otherwise would turn into NaN here. */
template <typename W> static __device__ __forceinline__ W loss_shift(W most) { return most == -INFINITY ? (W)0 : most; }
template <typename W> static __device__ __forceinline__ loss_sum<W> loss_join(loss_sum<W> a, loss_sum<W> b) {
    loss_sum<W> both;
    both.most = rows_max(a.most, b.most);
    W shift = loss_shift(both.most);
    both.sum = a.sum * rows_exp(a.most - shift) + b.sum * rows_exp(b.most - shift);
    return both;
}

/* Joins over the row's threads in a fixed tree. */
template <typename Way, typename W> static __device__ __forceinline__ loss_sum<W> loss_reduce(loss_sum<W> mine, loss_sum<W> *room) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        loss_sum<W> other = {__shfl_xor_sync(0xffffffffu, mine.most, distance), __shfl_xor_sync(0xffffffffu, mine.sum, distance)};
        mine = loss_join(mine, other);
    }
    if (Way::LANES > 32) {
        if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = mine;
        __syncthreads();
        mine = room[threadIdx.x % (Way::LANES / 32)];
#pragma unroll
        for (int distance = Way::LANES / 64; distance > 0; distance /= 2) {
            loss_sum<W> other = {__shfl_xor_sync(0xffffffffu, mine.most, distance), __shfl_xor_sync(0xffffffffu, mine.sum, distance)};
            mine = loss_join(mine, other);
        }
    }
    return mine;
}

/* exp(x - shift). Of 16-bit logits, which are known to three digits, by one multiplication and the power of two that the hardware has. */
template <typename T, typename W> static __device__ __forceinline__ W loss_power(W x, W shift) {
    if constexpr (sizeof(T) == 2) {
        const float turn = 1.44269504088896340736f; /* log2(e) */
        return wefti_power_of_two(fmaf(x, turn, -shift * turn));
    } else {
        return rows_exp(x - shift);
    }
}

typedef struct loss_plan {
    rows_view          logits;
    wefti_cuda_view_of label, g, lse;
    int64_t            rows, classes, ignored;
    double             smoothing;
    bool               has_ignored, wide_labels, vectors_out;
} loss_plan;

static __device__ __forceinline__ int64_t loss_label(const loss_plan &plan, const void *label, int64_t row) {
    int64_t at = rows_offset(&plan.label, row);
    return plan.wide_labels ? ((const int64_t *)label)[at] : ((const int32_t *)label)[at];
}

/* A thread's part of a row's sum of powers, and of its sum where that is wanted; each vector is given to `keep`, too. */
template <typename T, typename Way, typename Keep>
static __device__ __forceinline__ loss_sum<typename wefti_wide<T>::type> loss_read(rows_share<T, Way> &share, int64_t classes, int lane, bool smooth,
                                                                                   double *total, Keep keep) {
    typedef typename wefti_wide<T>::type W;
    typedef rows_vector<T, Way::VEC>     V;
    loss_sum<W>                          mine = {-INFINITY, 0};
    double                               sum = 0;
    rows_each<Way>(classes, lane, [&](int64_t i, int, const V &v) {
        W most = mine.most, some = 0, x_of[Way::VEC];
        keep(i, v);
#pragma unroll
        for (int k = 0; k < Way::VEC; k++) x_of[k] = wefti_widen(v.at[k]), most = rows_max(most, x_of[k]);
        const W shift = loss_shift(most);
        if (most != mine.most) mine.sum *= rows_exp(mine.most - shift);
        mine.most = most;
#pragma unroll
        for (int k = 0; k < Way::VEC; k++) some += loss_power<T>(x_of[k], shift);
        mine.sum += some;
        if (smooth) {
            some = 0;
#pragma unroll
            for (int k = 0; k < Way::VEC; k++) some += x_of[k];
            sum += (double)some;
        }
    }, share);
    *total = sum;
    return mine;
}

template <typename W> static __device__ __forceinline__ W loss_log_sum(const loss_sum<W> &all) {
    return all.most == -INFINITY ? (W)NAN : all.most + rows_log(all.sum);
}

/* The loss of a row, whose own logit is at `logit`. */
template <typename T, typename Way>
static __device__ __forceinline__ typename wefti_wide<T>::type loss_of(const loss_plan &plan, const rows_share<T, Way> &share, int64_t own,
                                                                       typename wefti_wide<T>::type lse, double total) {
    typedef typename wefti_wide<T>::type W;
    W                                    loss = (W)NAN;
    if (plan.has_ignored && own == plan.ignored) {
        loss = 0;
    } else if (own >= 0 && own < plan.classes) {
        W logit = wefti_widen(share.base[rows_offset(&plan.logits.row, own)]);
        loss = (W)(1 - plan.smoothing) * (lse - logit);
        if (plan.smoothing != 0) loss += (W)plan.smoothing * (lse - (W)(total / (double)plan.classes));
    }
    return loss;
}

template <typename T, typename Way>
static __global__ void __launch_bounds__(Way::BLOCK)
    cross_entropy_forward_rows_kernel(const T *x, const void *label, typename wefti_wide<T>::type *loss_out,
                                      typename wefti_wide<T>::type *lse_out, ROWS_CONST loss_plan plan) {
    typedef typename wefti_wide<T>::type W;
    __shared__ loss_sum<W> room[32];
    __shared__ double      total_room[32];
    const int          lane = threadIdx.x % Way::LANES;
    int64_t            row = (int64_t)blockIdx.x * Way::PER_BLOCK + threadIdx.x / Way::LANES;
    const bool         live = row < plan.rows, smooth = plan.smoothing != 0;
    if (!live) row = plan.rows - 1;
    rows_share<T, Way> share(x, plan.logits, row);
    double             total;
    loss_sum<W>        mine = loss_read<T, Way>(share, plan.classes, lane, smooth, &total, [](int64_t, const rows_vector<T, Way::VEC> &) {});
    mine = loss_reduce<Way>(mine, room);
    if (smooth) total = rows_add_up<Way>(total, total_room);
    if (!live || lane != 0) return;
    const W lse = loss_log_sum(mine);
    loss_out[row] = loss_of<T, Way>(plan, share, loss_label(plan, label, row), lse, total);
    lse_out[row] = lse;
}

/* g * (softmax - (1-s)*onehot - s/C), for the vector at element i. */
template <typename T, typename Way, typename W>
static __device__ __forceinline__ void loss_slope(const loss_plan &plan, const rows_vector<T, Way::VEC> &v, int64_t i, int64_t own, W scale, W shift, T *out) {
    const W                    even = (W)(plan.smoothing / (double)plan.classes), hit = (W)(1 - plan.smoothing) + even;
    const int                  at = own - i < Way::VEC && own >= i ? (int)(own - i) : -1;
    rows_vector<T, Way::VEC>   result;
#pragma unroll
    for (int k = 0; k < Way::VEC; k++) {
        W p = loss_power<T>((W)wefti_widen(v.at[k]), shift);
        result.at[k] = wefti_narrow<T>(scale * (p - (k == at ? hit : even)));
    }
    rows_store(out + i, result, plan.vectors_out);
}

template <typename T, typename Way>
static __global__ void __launch_bounds__(Way::BLOCK)
    cross_entropy_backward_rows_kernel(const typename wefti_wide<T>::type *g, const T *x, const void *label,
                                       const typename wefti_wide<T>::type *lse, T *to, ROWS_CONST loss_plan plan) {
    typedef typename wefti_wide<T>::type W;
    typedef rows_vector<T, Way::VEC>     V;
    const int     lane = threadIdx.x % Way::LANES;
    const int64_t row = (int64_t)blockIdx.x * Way::PER_BLOCK + threadIdx.x / Way::LANES;
    if (row >= plan.rows) return;
    rows_share<T, Way> share(x, plan.logits, row);
    const int64_t own = loss_label(plan, label, row);
    const bool    ignored = plan.has_ignored && own == plan.ignored, known = own >= 0 && own < plan.classes;
    const W       scale = g[rows_offset(&plan.g, row)], shift = lse[rows_offset(&plan.lse, row)];
    T            *out = to + row * plan.classes;
    if (ignored || !known) {
        const T same = wefti_narrow<T>(ignored ? (W)0 : (W)NAN);
        for (int64_t i = lane; i < plan.classes; i += Way::LANES) out[i] = same;
        return;
    }
    rows_each<Way>(plan.classes, lane, [&](int64_t i, int, const V &v) { loss_slope<T, Way>(plan, v, i, own, scale, shift, out); }, share);
}

/* Both for a row, whose logits stay in shared memory in between: they are read once. Each thread takes back what it has put there itself. */
template <typename T, typename Way>
static __global__ void __launch_bounds__(Way::BLOCK)
    cross_entropy_both_rows_kernel(const T *x, const void *label, const typename wefti_wide<T>::type *g, typename wefti_wide<T>::type *loss_out,
                                   typename wefti_wide<T>::type *lse_out, T *to, ROWS_CONST loss_plan plan) {
    typedef typename wefti_wide<T>::type W;
    typedef rows_vector<T, Way::VEC>     V;
    WEFTI_SHARED(V, held);
    __shared__ loss_sum<W> room[32];
    __shared__ double      total_room[32];
    const int          lane = threadIdx.x;
    const int64_t      row = blockIdx.x;
    const bool         smooth = plan.smoothing != 0;
    rows_share<T, Way> share(x, plan.logits, row);
    double             total;
    loss_sum<W>        mine = loss_read<T, Way>(share, plan.classes, lane, smooth, &total, [&](int64_t i, const V &v) { held[i / Way::VEC] = v; });
    mine = loss_reduce<Way>(mine, room);
    if (smooth) total = rows_add_up<Way>(total, total_room);
    const W       lse = loss_log_sum(mine), scale = g[rows_offset(&plan.g, row)];
    const int64_t own = loss_label(plan, label, row);
    const bool    ignored = plan.has_ignored && own == plan.ignored, known = own >= 0 && own < plan.classes;
    T            *out = to + row * plan.classes;
    if (lane == 0) loss_out[row] = loss_of<T, Way>(plan, share, own, lse, total), lse_out[row] = lse;
    if (ignored || !known) {
        const T same = wefti_narrow<T>(ignored ? (W)0 : (W)NAN);
        for (int64_t i = lane; i < plan.classes; i += Way::LANES) out[i] = same;
        return;
    }
    for (int64_t i = (int64_t)lane * Way::VEC; i < plan.classes; i += Way::LANES * Way::VEC)
        loss_slope<T, Way>(plan, held[i / Way::VEC], i, own, scale, lse, out);
}

/* Ways for rows that are walked. */
template <typename T, int LOSS_AHEAD, typename F> static inline weft_status loss_choose(int64_t classes, F launch) {
    const int vec = sizeof(T) < 8 ? 16 / (int)sizeof(T) : 1;
    if (vec > 1 && classes % vec == 0) {
        if (classes <= LOSS_SHORT) return launch(rows_way<32, vec, LOSS_AHEAD, false>());
        return launch(rows_way<LOSS_LANES, vec, LOSS_AHEAD, false>());
    }
    if (classes <= LOSS_SHORT) return launch(rows_way<32, 1, LOSS_AHEAD, false>());
    return launch(rows_way<LOSS_LANES, 1, LOSS_AHEAD, false>());
}

static loss_plan loss_plan_of(const wefti_cuda_run *run, int32_t logits) {
    const wefti_operand *in = run->call->inputs, *x = &in[logits], *label = &in[logits + 1];
    loss_plan            plan;
    plan.logits = rows_of(x, run->inputs[logits], 1);
    plan.label = rows_axes(label, 0, label->shape.rank);
    plan.g = plan.lse = plan.label;
    if (logits == 1) plan.g = rows_axes(&in[0], 0, in[0].shape.rank), plan.lse = rows_axes(&in[3], 0, in[3].shape.rank);
    plan.classes = x->shape.dim[x->shape.rank - 1];
    plan.rows = weft_shape_elements(label->shape);
    plan.ignored = run->call->attrs->loss.ignored;
    plan.has_ignored = run->call->attrs->loss.has_ignored != 0;
    plan.smoothing = run->call->attrs->loss.smoothing;
    plan.wide_labels = label->dtype == WEFT_I64;
    plan.vectors_out = (uintptr_t)run->outputs[0] % 16 == 0;
    return plan;
}

static weft_status loss_run_forward(const wefti_cuda_run *run) {
    loss_plan plan = loss_plan_of(run, 0);
    WEFTI_DISPATCH_FLOAT(run->call->inputs[0].dtype, return loss_choose<T, LOSS_AHEAD_FORWARD>(plan.classes, [&](auto way) {
        typedef decltype(way) Way;
        typedef typename wefti_wide<T>::type W;
        return wefti_cuda_launch(run, "cross-entropy", (cross_entropy_forward_rows_kernel<T, Way>),
                                 wefti_cuda_blocks(plan.rows, Way::PER_BLOCK, 0), Way::BLOCK, 0, (const T *)run->inputs[0],
                                 run->inputs[1], (W *)run->outputs[0], (W *)run->outputs[1], plan);
    });)
    return WEFT_OK;
}

static weft_status loss_run_backward(const wefti_cuda_run *run) {
    loss_plan plan = loss_plan_of(run, 1);
    WEFTI_DISPATCH_FLOAT(run->call->inputs[1].dtype, return loss_choose<T, LOSS_AHEAD_BACKWARD>(plan.classes, [&](auto way) {
        typedef decltype(way) Way;
        typedef typename wefti_wide<T>::type W;
        return wefti_cuda_launch(run, "cross-entropy gradient", (cross_entropy_backward_rows_kernel<T, Way>),
                                 wefti_cuda_blocks(plan.rows, Way::PER_BLOCK, 0), Way::BLOCK, 0, (const W *)run->inputs[0],
                                 (const T *)run->inputs[1], run->inputs[2], (const W *)run->inputs[3], (T *)run->outputs[0], plan);
    });)
    return WEFT_OK;
}

/* --- both at once --- */

/* Bytes of a row's logits in shared memory, beside what the kernel has there anyway. */
static int64_t held_bytes(const wefti_operand *logits) { return logits->shape.dim[logits->shape.rank - 1] * (int64_t)weft_dtype_bytes(logits->dtype); }
enum { HELD_BESIDE = 2048 };

static bool same_place(const wefti_operand *a, const wefti_operand *b) {
    if (a->buffer != b->buffer || a->offset_bytes != b->offset_bytes || !weft_shape_equal(a->shape, b->shape)) return false;
    for (int32_t axis = 0; axis < a->shape.rank; axis++)
        if (a->stride[axis] != b->stride[axis] && a->shape.dim[axis] > 1) return false;
    return true;
}

static bool overlap(const wefti_operand *written, const wefti_operand *x) { /* x may have any strides: it lies within its extent */
    int64_t extent = 1, bytes = wefti_operand_elements(written) * (int64_t)weft_dtype_bytes(written->dtype);
    for (int32_t axis = 0; axis < x->shape.rank; axis++) extent += (x->shape.dim[axis] - 1) * x->stride[axis];
    return written->buffer == x->buffer && written->offset_bytes < x->offset_bytes + extent * (int64_t)weft_dtype_bytes(x->dtype) &&
           x->offset_bytes < written->offset_bytes + bytes;
}

/* The gradient of the very loss before it, of rows that fit into shared memory; what it is multiplied with does not come of that loss. */
static bool joins_gradient(const wefti_cuda *cuda, const wefti_call *const *calls, int32_t n, const wefti_call *next) {
    const wefti_call    *loss = calls[0];
    const wefti_operand *x = &loss->inputs[0];
    if (n != 1 || x->dtype == WEFT_F64 || memcmp(loss->attrs, next->attrs, sizeof loss->attrs->loss) != 0) return false;
    if (x->shape.dim[x->shape.rank - 1] <= LOSS_SHORT || held_bytes(x) + HELD_BESIDE > cuda->shared_most) return false;
    if (!same_place(x, &next->inputs[1]) || !same_place(&loss->inputs[1], &next->inputs[2]) || !same_place(&loss->outputs[1], &next->inputs[3])) return false;
    for (int32_t i = 0; i < 2; i++)
        if (overlap(&loss->outputs[i], &next->inputs[0]) || overlap(&next->outputs[0], &loss->inputs[i]) || overlap(&loss->outputs[i], &next->outputs[0]))
            return false;
    return true;
}

template <typename T, typename Way> static weft_status launch_both(const wefti_cuda_run *runs, const loss_plan &plan) {
    typedef typename wefti_wide<T>::type W;
    const int64_t bytes = held_bytes(&runs->call->inputs[0]);
    if (plan.rows > 0x7fffffff) return wefti_fail(WEFT_E_UNSUPPORTED, "cross-entropy: too many rows for one launch");
    WEFTI_TRY(wefti_cuda_check(runs->cuda, cudaFuncSetAttribute(reinterpret_cast<const void *>(&cross_entropy_both_rows_kernel<T, Way>),
                                                                cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes), "cross-entropy"));
    return wefti_cuda_launch(runs, "cross-entropy with its gradient", (cross_entropy_both_rows_kernel<T, Way>), (unsigned)plan.rows, Way::BLOCK, (size_t)bytes,
                             (const T *)runs->inputs[0], runs->inputs[1], (const W *)runs[1].inputs[0], (W *)runs->outputs[0], (W *)runs->outputs[1],
                             (T *)runs[1].outputs[0], plan);
}

template <typename T> static weft_status choose_both(const wefti_cuda_run *runs, const loss_plan &plan) {
    const int vec = 16 / (int)sizeof(T);
    if (plan.classes % vec == 0) return launch_both<T, rows_way<LOSS_LANES, vec, LOSS_AHEAD_FORWARD, false>>(runs, plan);
    return launch_both<T, rows_way<LOSS_LANES, 1, LOSS_AHEAD_FORWARD, false>>(runs, plan);
}

static weft_status loss_run_both(const wefti_cuda_run *runs, int32_t n) {
    loss_plan plan = loss_plan_of(&runs[1], 1);
    (void)n;
    switch (runs->call->inputs[0].dtype) {
    case WEFT_F32: return choose_both<float>(runs, plan);
    case WEFT_BF16: return choose_both<__nv_bfloat16>(runs, plan);
    default: return choose_both<__half>(runs, plan);
    }
}

extern "C" const wefti_cuda_kernel wefti_cuda_cross_entropy = {.name = "rows", .run = loss_run_forward, .with = &wefti_cuda_cross_entropy_backward,
                                                               .joins = joins_gradient, .run_all = loss_run_both};
extern "C" const wefti_cuda_kernel wefti_cuda_cross_entropy_backward = {.name = "rows", .run = loss_run_backward};

/* CROSS_ENTROPY and its gradient.
 *
 * Idea: a warp (short rows) or a block (long ones) goes once over the logits of a row, with a running maximum and a sum of powers that is
 * rescaled where the maximum grows; probabilities are never stored. The gradient reads logits once and writes once: everything that it
 * needs of a row beyond them is its log-sum-exp. Of few classes, a thread has a row, which comes and goes through shared memory by a
 * block's rows, so that memory is accessed 16 bytes at a time.
 * Where the gradient follows its loss at once, as in a chunk of a large loss (core/plan/chunk.c), one kernel does both, and keeps a row's
 * logits in shared memory. The bits are the same.
 * Cost: logits once through memory forward, twice (read, written) backward, both twice together; no scratch. */
#include "cuda/rows.cuh"

/* Long rows are walked, never kept whole, by 512 threads, so that several rows share a multiprocessor and one reads while another is
 * reduced. Vectors ahead hide the latency of memory. */
enum { LOSS_LANES = 512, LOSS_AHEAD = 4, LOSS_FEW = 32 /* classes that a thread goes through alone */ };

typedef struct loss_plan {
    rows_view          logits;
    wefti_cuda_view_of label, g, lse;
    int64_t            rows, classes, ignored;
    double             smoothing, even, hit; /* what is taken from a probability: of any class, of a row's own */
    bool               has_ignored, wide_labels, plain;
} loss_plan;

static __device__ __forceinline__ int64_t loss_label(const loss_plan &plan, const void *label, int64_t row) {
    int64_t at = rows_place_of(plan.label, row);
    return plan.wide_labels ? ((const int64_t *)label)[at] : ((const int32_t *)label)[at];
}

/* The row's sum of powers, and its sum where that is wanted; each vector is given to `see`, too. */
template <typename T, typename Way, typename W, typename F>
static __device__ __forceinline__ rows_powers<W> loss_read(rows_share<T, Way> &share, const rows_cut<Way> &cut, int lane, bool smooth, double *total,
                                                           W (*rooms)[32], double *total_room, F see) {
    double         sum = 0;
    rows_powers<W> mine = rows_powers_of<T, Way>(share, cut, lane, [&](typename rows_cut<Way>::index v, const wefti_vector<T, Way::VEC> &x) {
        see(v, x);
        if (smooth) {
            W some = 0, xs[Way::VEC];
            x.widen(xs);
#pragma unroll
            for (int k = 0; k < Way::VEC; k++) some += xs[k]; /* elements of other rows are zero */
            sum += (double)some;
        }
    });
    if (smooth) sum = rows_add_up<Way>(sum, total_room);
    *total = sum;
    return rows_join<T, Way>(mine, rooms);
}

template <typename W> static __device__ __forceinline__ W loss_log_sum(const rows_powers<W> &all) {
    return all.most == -INFINITY ? (W)NAN : all.most + rows_log(all.sum);
}

/* The loss of a row with label `own`, whose logit is given where there is one. */
template <typename W> static __device__ __forceinline__ W loss_of(const loss_plan &plan, W logit, int64_t own, W lse, double total) {
    W loss = (W)NAN;
    if (plan.has_ignored && own == plan.ignored) {
        loss = 0;
    } else if (own >= 0 && own < plan.classes) {
        loss = (W)(1 - plan.smoothing) * (lse - logit);
        if (plan.smoothing != 0) loss += (W)plan.smoothing * (lse - (W)(total / (double)plan.classes));
    }
    return loss;
}
template <typename T> static __device__ __forceinline__ typename wefti_wide<T>::type loss_logit(const loss_plan &plan, const T *row, int64_t own) {
    return own >= 0 && own < plan.classes ? wefti_widen(row[rows_place_of(plan.logits.row, own)]) : 0;
}

template <typename T, typename Way, typename W>
static __global__ void __launch_bounds__(Way::BLOCK, Way::AT_ONCE)
    cross_entropy_forward_rows_kernel(const T *x, const void *label, W *loss_out, W *lse_out, ROWS_CONST loss_plan plan) {
    __shared__ W      rooms[2][32];
    __shared__ double total_room[32];
    const int         lane = threadIdx.x % Way::LANES;
    int64_t           row = (int64_t)blockIdx.x * Way::PER_BLOCK + threadIdx.x / Way::LANES;
    const bool        live = row < plan.rows, smooth = plan.smoothing != 0;
    if (!live) row = plan.rows - 1;
    rows_share<T, Way>   share(x, plan.logits, row);
    const rows_cut<Way>  cut(share.base, plan.classes);
    double               total;
    const rows_powers<W> all = loss_read<T, Way>(share, cut, lane, smooth, &total, rooms, total_room,
                                                 [](typename rows_cut<Way>::index, const wefti_vector<T, Way::VEC> &) {});
    if (!live || lane != 0) return;
    const W       lse = loss_log_sum(all);
    const int64_t own = loss_label(plan, label, row);
    loss_out[row] = loss_of<W>(plan, loss_logit(plan, share.base, own), own, lse, total);
    lse_out[row] = lse;
}

/* g * (softmax - (1-s)*onehot - s/C), for the vector at element i. */
template <typename T, typename Way, typename W>
static __device__ __forceinline__ void loss_slope(const loss_plan &plan, const rows_cut<Way> &cut, const wefti_vector<T, Way::VEC> &v,
                                                  typename rows_cut<Way>::index i, int64_t own, W scale, W shift, T *out) {
    const W   even = (W)plan.even;
    const int at = own - i < Way::VEC && own >= i ? (int)(own - i) : -1;
    W         xs[Way::VEC];
    v.widen(xs);
#pragma unroll
    for (int k = 0; k < Way::VEC; k++) xs[k] = rows_power<T>(xs[k], shift) - even;
    if (at >= 0) {
#pragma unroll
        for (int k = 0; k < Way::VEC; k++)
            if (k == at) xs[k] = (xs[k] + even) - (W)plan.hit;
    }
#pragma unroll
    for (int k = 0; k < Way::VEC; k++) xs[k] *= scale;
    rows_store<T>(out, cut, i, xs);
}

/* What a row's gradient is where it does not depend on its logits: zero for an ignored label, NaN for one that is none. */
template <typename W> static __device__ __forceinline__ bool loss_is_known(const loss_plan &plan, int64_t own, W *otherwise) {
    const bool ignored = plan.has_ignored && own == plan.ignored;
    *otherwise = ignored ? (W)0 : (W)NAN;
    return !ignored && own >= 0 && own < plan.classes;
}

template <typename T, typename Way, typename W>
static __global__ void __launch_bounds__(Way::BLOCK, Way::AT_ONCE)
    cross_entropy_backward_rows_kernel(const W *g, const T *x, const void *label, const W *lse, T *to, ROWS_CONST loss_plan plan) {
    typedef wefti_vector<T, Way::VEC>     V;
    typedef typename rows_cut<Way>::index I;
    const int     lane = threadIdx.x % Way::LANES;
    const int64_t row = (int64_t)blockIdx.x * Way::PER_BLOCK + threadIdx.x / Way::LANES;
    if (row >= plan.rows) return;
    rows_share<T, Way>  share(x, plan.logits, row);
    T                  *out = to + row * plan.classes;
    const rows_cut<Way> cut(out, plan.classes);
    if (Way::WHOLE) share.keep(0, cut, lane);
    const int64_t own = loss_label(plan, label, row);
    const W       scale = g[rows_place_of(plan.g, row)], shift = lse[rows_place_of(plan.lse, row)];
    W             same;
    if (!loss_is_known(plan, own, &same)) {
        for (int64_t i = lane; i < plan.classes; i += Way::LANES) out[i] = wefti_narrow<T>(same);
        return;
    }
    rows_each<Way>(cut, lane, [&](I i, int, const V &v) { loss_slope<T, Way>(plan, cut, v, i, own, scale, shift, out); }, share);
}

/* Both for a row, whose logits stay in shared memory in between: they are read once. Each thread takes back what it has put there itself. */
template <typename T, typename Way, typename W>
static __global__ void __launch_bounds__(Way::BLOCK, Way::AT_ONCE)
    cross_entropy_both_rows_kernel(const T *x, const void *label, const W *g, W *loss_out, W *lse_out, T *to, ROWS_CONST loss_plan plan) {
    typedef wefti_vector<T, Way::VEC>     V;
    typedef typename rows_cut<Way>::index I;
    WEFTI_SHARED(V, held);
    __shared__ W         rooms[2][32];
    __shared__ double    total_room[32];
    const int            lane = (int)threadIdx.x;
    const int64_t        row = blockIdx.x;
    rows_share<T, Way>   share(x, plan.logits, row);
    const rows_cut<Way>  cut(share.base, plan.classes);
    double               total;
    const rows_powers<W> all = loss_read<T, Way>(share, cut, lane, plan.smoothing != 0, &total, rooms, total_room, [&](I v, const V &x) { held[v] = x; });
    const W              lse = loss_log_sum(all), scale = g[rows_place_of(plan.g, row)];
    const int64_t        own = loss_label(plan, label, row);
    T                   *out = to + row * plan.classes;
    if (lane == 0) loss_out[row] = loss_of<W>(plan, loss_logit(plan, share.base, own), own, lse, total), lse_out[row] = lse;
    W same;
    if (!loss_is_known(plan, own, &same)) {
        for (int64_t i = lane; i < plan.classes; i += Way::LANES) out[i] = wefti_narrow<T>(same);
        return;
    }
    for (I v = lane; v < cut.vectors; v += Way::LANES) loss_slope<T, Way>(plan, cut, held[v], cut.first(v), own, scale, lse, out);
}

/* --- few classes --- */

enum { FEW_ROWS = 128 /* of a block, a thread each */ };
template <int CLASSES> struct loss_most { static constexpr int MOST = CLASSES; };

/* Moves a block's rows, which lie behind one another and begin at 16 bytes. */
template <typename T> static __device__ __forceinline__ void loss_move_rows(T *to, const T *from, int elements) {
    const int VEC = 16 / sizeof(T);
    typedef wefti_vector<T, VEC> V;
#pragma unroll 4
    for (int v = (int)threadIdx.x; v < elements / VEC; v += FEW_ROWS) reinterpret_cast<V *>(to)[v] = reinterpret_cast<const V *>(from)[v];
    for (int i = elements / VEC * VEC + (int)threadIdx.x; i < elements; i += FEW_ROWS) to[i] = from[i];
}

static __device__ __forceinline__ int few_elements(const loss_plan &plan, int64_t first) {
    const int64_t rows = plan.rows - first;
    return (int)((rows < (int)FEW_ROWS ? rows : (int)FEW_ROWS) * plan.classes);
}

/* Threads begin at different elements of their rows, where rows would otherwise begin in the same bank of shared memory. */
static __device__ __forceinline__ int loss_turned(int classes) {
    int common = classes & -classes; /* the power of two in it */
    return common > 1 ? (int)threadIdx.x / (32 / (common < 32 ? common : 32)) % classes : 0;
}

/* MOST: classes that the loops are unrolled for, so that a row is in registers. */
template <typename T, typename W, int MOST>
static __global__ void __launch_bounds__(FEW_ROWS)
    cross_entropy_forward_few_kernel(const T *x, const void *label, W *loss_out, W *lse_out, ROWS_CONST loss_plan plan) {
    WEFTI_SHARED(T, held);
    const int     classes = (int)plan.classes;
    const int64_t first = (int64_t)blockIdx.x * FEW_ROWS, row = first + threadIdx.x;
    loss_move_rows<T>(held, x + first * classes, few_elements(plan, first));
    __syncthreads();
    if (row >= plan.rows) return;
    const T       *own_row = held + (int)threadIdx.x * classes;
    const int64_t  own = loss_label(plan, label, row);
    rows_powers<W> all = {-INFINITY, 0};
    W              total = 0, xs[MOST];
    int            at = loss_turned(classes);
#pragma unroll
    for (int k = 0; k < MOST; k++, at = at + 1 < classes ? at + 1 : 0) {
        if (k >= classes) break;
        xs[k] = wefti_widen(own_row[at]);
        all.most = rows_max(all.most, xs[k]);
        total += xs[k];
    }
    const W shift = rows_shift(all.most);
#pragma unroll
    for (int k = 0; k < MOST; k++) {
        if (k >= classes) break;
        all.sum += rows_power<T>(xs[k], shift);
    }
    const W lse = loss_log_sum(all);
    loss_out[row] = loss_of<W>(plan, own >= 0 && own < classes ? (W)wefti_widen(own_row[own]) : (W)0, own, lse, (double)total);
    lse_out[row] = lse;
}

template <typename T, typename W, int MOST>
static __global__ void __launch_bounds__(FEW_ROWS)
    cross_entropy_backward_few_kernel(const W *g, const T *x, const void *label, const W *lse, T *to, ROWS_CONST loss_plan plan) {
    WEFTI_SHARED(T, held);
    const int     classes = (int)plan.classes;
    const int64_t first = (int64_t)blockIdx.x * FEW_ROWS, row = first + threadIdx.x;
    const int     elements = few_elements(plan, first);
    loss_move_rows<T>(held, x + first * classes, elements);
    __syncthreads();
    if (row < plan.rows) {
        T            *own_row = held + (int)threadIdx.x * classes;
        const int64_t own = loss_label(plan, label, row);
        const W       scale = g[rows_place_of(plan.g, row)], shift = lse[rows_place_of(plan.lse, row)];
        W             same;
        const bool    known = loss_is_known(plan, own, &same);
        int           at = loss_turned(classes);
#pragma unroll
        for (int k = 0; k < MOST; k++, at = at + 1 < classes ? at + 1 : 0) {
            if (k >= classes) break;
            W slope = scale * (rows_power<T>((W)wefti_widen(own_row[at]), shift) - (W)(at == own ? plan.hit : plan.even));
            own_row[at] = wefti_narrow<T>(known ? slope : same);
        }
    }
    __syncthreads();
    loss_move_rows<T>(to + first * classes, held, elements);
}

/* Whether the rows lie behind one another. */
static bool loss_is_few(const loss_plan &plan, const void *logits) {
    return plan.classes <= LOSS_FEW && (uintptr_t)logits % 16 == 0 && plan.logits.row.rank == 1 && (plan.logits.row.stride[0] == 1 || plan.classes == 1) &&
           plan.logits.lead.rank == 1 && (plan.logits.lead.stride[0] == plan.classes || plan.rows == 1);
}

/* --- launching --- */

/* Calls launch with a number of classes to unroll for. */
template <typename F> static inline weft_status loss_choose_few(int64_t classes, F launch) {
    if (classes <= LOSS_FEW / 2) return launch(loss_most<LOSS_FEW / 2>());
    return launch(loss_most<LOSS_FEW>());
}

/* Ways for rows that are walked. */
template <typename T, typename F> static inline weft_status loss_choose(int64_t classes, bool plain, bool even, F launch) {
    const int     vec = 16 / (int)sizeof(T);
    const int64_t vectors = classes / vec;
    if (!plain && even && sizeof(T) < 8) { /* an odd number of classes */
        if (vectors < 32 * 4) return launch(rows_way<32, vec, 4, true, false, true>());
        return launch(rows_way<LOSS_LANES, vec, LOSS_AHEAD, false, false, true>());
    }
    if (!plain) {
        if (vectors < 32 * 4) return launch(rows_way<32, vec, 4, true, false>());
        return launch(rows_way<LOSS_LANES, vec, LOSS_AHEAD, false, false>());
    }
    if (vectors <= 8 * 4) return launch(rows_way<8, vec, 4, true, true>());
    if (vectors <= 32 * 4) return launch(rows_way<32, vec, 4, true, true>());
    if (vectors <= 32 * 8) return launch(rows_way<32, vec, 8, true, true>());
    return launch(rows_way<LOSS_LANES, vec, LOSS_AHEAD, false, true>());
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
    plan.even = plan.smoothing / (double)plan.classes;
    plan.hit = 1 - plan.smoothing + plan.even;
    plan.plain = plan.logits.plain && (logits == 0 || (uintptr_t)run->outputs[0] % 16 == 0);
    return plan;
}

static weft_status loss_run_forward(const wefti_cuda_run *run) {
    const loss_plan plan = loss_plan_of(run, 0);
    WEFTI_DISPATCH_FLOAT(run->call->inputs[0].dtype, {
        typedef typename wefti_wide<T>::type W;
        if (loss_is_few(plan, run->inputs[0]))
            return loss_choose_few(plan.classes, [&](auto few) {
                return wefti_cuda_launch(run, "cross-entropy", (cross_entropy_forward_few_kernel<T, W, decltype(few)::MOST>),
                                         wefti_cuda_blocks(plan.rows, FEW_ROWS, 0), FEW_ROWS, (size_t)(FEW_ROWS * plan.classes) * sizeof(T),
                                         (const T *)run->inputs[0], run->inputs[1], (W *)run->outputs[0], (W *)run->outputs[1], plan);
            });
        return loss_choose<T>(plan.classes, plan.plain, plan.logits.even, [&](auto way) {
            typedef decltype(way) Way;
            return wefti_cuda_launch(run, "cross-entropy", (cross_entropy_forward_rows_kernel<T, Way, W>),
                                     wefti_cuda_blocks(plan.rows, Way::PER_BLOCK, 0), Way::BLOCK, 0, (const T *)run->inputs[0],
                                     run->inputs[1], (W *)run->outputs[0], (W *)run->outputs[1], plan);
        });
    })
    return WEFT_OK;
}

static weft_status loss_run_backward(const wefti_cuda_run *run) {
    const loss_plan plan = loss_plan_of(run, 1);
    WEFTI_DISPATCH_FLOAT(run->call->inputs[1].dtype, {
        typedef typename wefti_wide<T>::type W;
        if (loss_is_few(plan, run->inputs[1]) && (uintptr_t)run->outputs[0] % 16 == 0)
            return loss_choose_few(plan.classes, [&](auto few) {
                return wefti_cuda_launch(run, "cross-entropy gradient", (cross_entropy_backward_few_kernel<T, W, decltype(few)::MOST>),
                                         wefti_cuda_blocks(plan.rows, FEW_ROWS, 0), FEW_ROWS, (size_t)(FEW_ROWS * plan.classes) * sizeof(T),
                                         (const W *)run->inputs[0], (const T *)run->inputs[1], run->inputs[2], (const W *)run->inputs[3], (T *)run->outputs[0],
                                         plan);
            });
        return loss_choose<T>(plan.classes, plan.plain, plan.logits.even, [&](auto way) {
            typedef decltype(way) Way;
            return wefti_cuda_launch(run, "cross-entropy gradient", (cross_entropy_backward_rows_kernel<T, Way, W>),
                                     wefti_cuda_blocks(plan.rows, Way::PER_BLOCK, 0), Way::BLOCK, 0, (const W *)run->inputs[0],
                                     (const T *)run->inputs[1], run->inputs[2], (const W *)run->inputs[3], (T *)run->outputs[0], plan);
        });
    })
    return WEFT_OK;
}

/* --- both at once --- */

/* Bytes of a row's logits in shared memory, beside what the kernel has there anyway. */
static int64_t held_bytes(const wefti_operand *logits) {
    return logits->shape.dim[logits->shape.rank - 1] * (int64_t)weft_dtype_bytes(logits->dtype) / 16 * 16 + 32; /* with vectors that are not all the row's */
}
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

/* Classes that are not walked. */
static int64_t loss_short(weft_dtype dtype) { return 32 * 8 * 16 / (int64_t)weft_dtype_bytes(dtype); }

/* The gradient of the very loss before it, of rows that fit into shared memory; what it is multiplied with does not come of that loss. */
static bool joins_gradient(const wefti_cuda *cuda, const wefti_call *const *calls, int32_t n, const wefti_call *next) {
    const wefti_call    *loss = calls[0];
    const wefti_operand *x = &loss->inputs[0];
    if (n != 1 || x->dtype == WEFT_F64 || memcmp(loss->attrs, next->attrs, sizeof loss->attrs->loss) != 0) return false;
    if (x->shape.dim[x->shape.rank - 1] <= loss_short(x->dtype) || held_bytes(x) + HELD_BESIDE > cuda->shared_most) return false;
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
    WEFTI_TRY(wefti_cuda_check(runs->cuda, cudaFuncSetAttribute(reinterpret_cast<const void *>(&cross_entropy_both_rows_kernel<T, Way, W>),
                                                                cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes), "cross-entropy"));
    return wefti_cuda_launch(runs, "cross-entropy with its gradient", (cross_entropy_both_rows_kernel<T, Way, W>), (unsigned)plan.rows, Way::BLOCK,
                             (size_t)bytes, (const T *)runs->inputs[0], runs->inputs[1], (const W *)runs[1].inputs[0], (W *)runs->outputs[0],
                             (W *)runs->outputs[1], (T *)runs[1].outputs[0], plan);
}

/* Rows that the forward kernel walks too. */
template <typename T> static weft_status choose_both(const wefti_cuda_run *runs, const loss_plan &plan) {
    const int vec = 16 / (int)sizeof(T);
    if (plan.plain) return launch_both<T, rows_way<LOSS_LANES, vec, LOSS_AHEAD, false, true>>(runs, plan);
    if (plan.logits.even) return launch_both<T, rows_way<LOSS_LANES, vec, LOSS_AHEAD, false, false, true>>(runs, plan);
    return launch_both<T, rows_way<LOSS_LANES, vec, LOSS_AHEAD, false, false>>(runs, plan);
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

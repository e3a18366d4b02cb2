/* NORMALIZE, the softmax family and ROTARY.
 *
 * Idea: a row is read once into the registers of the threads that own it (rows.cuh), and statistics are taken there, in two passes:
 * first the mean or the maximum, then what deviates from it. Rows too long for registers are read again, mostly from cache.
 * Cost: inputs and outputs once through memory, no scratch. ROTARY computes each angle once for many rows of the same position. */
#include "cuda/rows.cuh"

/* Which row this thread works on. Threads behind the last row work on it too, since reductions need whole warps, and store nothing. */
template <typename Way> struct rows_place {
    int64_t row;
    int     lane;
    bool    live;
    __device__ __forceinline__ rows_place(int64_t rows)
        : row((int64_t)blockIdx.x * Way::PER_BLOCK + threadIdx.x / Way::LANES), lane(threadIdx.x % Way::LANES), live(row < rows) {
        if (!live) row = rows - 1;
    }
};

/* --- NORMALIZE --- */

template <typename T, typename Way>
static __global__ void __launch_bounds__(Way::BLOCK)
    normalize_forward_rows_kernel(const T *x, T *y, typename wefti_wide<T>::type *rstd_out, ROWS_CONST rows_view view, int64_t rows, int64_t length,
                                  double eps, bool rms, bool vectors_out) {
    typedef typename wefti_wide<T>::type        W;
    typedef typename rows_sum<T, Way::WHOLE>::type S;
    typedef rows_vector<T, Way::VEC>            V;
    __shared__ S room[ROWS_ROOMS][32];
    rows_place<Way>    place(rows);
    rows_share<T, Way> share(x, view, place.row);
    const int          lane = place.lane;
    if (Way::WHOLE) share.keep(0, length, lane);
    W mean = 0;
    if (!rms) {
        S sum = 0;
        rows_each<Way>(length, lane, [&](int64_t, int, const V &v) {
#pragma unroll
            for (int k = 0; k < Way::VEC; k++) sum += (S)wefti_widen(v.at[k]);
        }, share);
        mean = (W)(rows_add_up<Way>(sum, room[0]) / (S)length);
    }
    S squares = 0;
    rows_each<Way>(length, lane, [&](int64_t, int, const V &v) {
#pragma unroll
        for (int k = 0; k < Way::VEC; k++) {
            W off = wefti_widen(v.at[k]) - mean;
            squares = rows_fma((S)off, (S)off, squares);
        }
    }, share);
    squares = rows_add_up<Way>(squares, room[1]);
    const W rstd = (W)(1 / sqrt((double)squares / (double)length + eps));
    T      *out = y + place.row * length;
    if (!place.live) return;
    rows_each<Way>(length, lane, [&](int64_t i, int, const V &v) {
        V result;
#pragma unroll
        for (int k = 0; k < Way::VEC; k++) result.at[k] = wefti_narrow<T>((wefti_widen(v.at[k]) - mean) * rstd);
        rows_store(out + i, result, vectors_out);
    }, share);
    if (lane == 0) rstd_out[place.row] = rstd;
}

static bool rows_output_aligned(const wefti_cuda_run *run) { return (uintptr_t)run->outputs[0] % 16 == 0; }

static weft_status rows_run_normalize(const wefti_cuda_run *run) {
    const wefti_operand *x = &run->call->inputs[0];
    const wefti_attrs   *attrs = run->call->attrs;
    int64_t              length = rows_length(x->shape, attrs->rows.axes), rows = weft_shape_elements(x->shape) / length;
    rows_view            view = rows_of(x, run->inputs[0], attrs->rows.axes);
    WEFTI_DISPATCH_FLOAT(x->dtype, return rows_choose<T, 8>(length, [&](auto way) {
        typedef decltype(way) Way;
        return wefti_cuda_launch(run, "normalize", (normalize_forward_rows_kernel<T, Way>), wefti_cuda_blocks(rows, Way::PER_BLOCK, 0),
                                 Way::BLOCK, 0, (const T *)run->inputs[0], (T *)run->outputs[0],
                                 (typename wefti_wide<T>::type *)run->outputs[1], view, rows, length, attrs->rows.eps,
                                 attrs->rows.rms != 0, rows_output_aligned(run));
    });)
    return WEFT_OK;
}

/* rstd*(g - mean(g) - y*mean(g*y)) */
template <typename T, typename Way>
static __global__ void __launch_bounds__(Way::BLOCK)
    normalize_backward_rows_kernel(const T *g, const T *y, const typename wefti_wide<T>::type *rstd, T *to, ROWS_CONST rows_view g_view,
                                   ROWS_CONST rows_view y_view, ROWS_CONST wefti_cuda_view_of rstd_view, int64_t rows, int64_t length, bool rms,
                                   bool vectors_out) {
    typedef typename wefti_wide<T>::type        W;
    typedef typename rows_sum<T, Way::WHOLE>::type S;
    typedef rows_vector<T, Way::VEC>            V;
    __shared__ S room[ROWS_ROOMS][32];
    rows_place<Way>    place(rows);
    rows_share<T, Way> gs(g, g_view, place.row), ys(y, y_view, place.row);
    const int          lane = place.lane;
    const W            scale = rstd[rows_offset(&rstd_view, place.row)];
    if (Way::WHOLE) gs.keep(0, length, lane), ys.keep(0, length, lane);
    S sum = 0, product = 0;
    rows_each<Way>(length, lane, [&](int64_t, int, const V &gv, const V &yv) {
#pragma unroll
        for (int k = 0; k < Way::VEC; k++) {
            S gk = (S)wefti_widen(gv.at[k]);
            sum += gk;
            product = rows_fma(gk, (S)wefti_widen(yv.at[k]), product);
        }
    }, gs, ys);
    const W along = (W)(rows_add_up<Way>(product, room[0]) / (S)length);
    const W mean = rms ? (W)0 : (W)(rows_add_up<Way>(sum, room[1]) / (S)length);
    T      *out = to + place.row * length;
    if (!place.live) return;
    rows_each<Way>(length, lane, [&](int64_t i, int, const V &gv, const V &yv) {
        V result;
#pragma unroll
        for (int k = 0; k < Way::VEC; k++)
            result.at[k] = wefti_narrow<T>(scale * ((wefti_widen(gv.at[k]) - mean) - wefti_widen(yv.at[k]) * along));
        rows_store(out + i, result, vectors_out);
    }, gs, ys);
}

static weft_status rows_run_normalize_backward(const wefti_cuda_run *run) {
    const wefti_operand *in = run->call->inputs;
    const wefti_attrs   *attrs = run->call->attrs;
    int64_t   length = rows_length(in[0].shape, attrs->rows.axes), rows = weft_shape_elements(in[0].shape) / length;
    rows_view g = rows_of(&in[0], run->inputs[0], attrs->rows.axes), y = rows_of(&in[1], run->inputs[1], attrs->rows.axes);
    wefti_cuda_view_of rstd = rows_axes(&in[2], 0, in[2].shape.rank);
    WEFTI_DISPATCH_FLOAT(in[0].dtype, return rows_choose<T, 4>(length, [&](auto way) {
        typedef decltype(way) Way;
        return wefti_cuda_launch(run, "normalize gradient", (normalize_backward_rows_kernel<T, Way>),
                                 wefti_cuda_blocks(rows, Way::PER_BLOCK, 0), Way::BLOCK, 0, (const T *)run->inputs[0],
                                 (const T *)run->inputs[1], (const typename wefti_wide<T>::type *)run->inputs[2], (T *)run->outputs[0], g,
                                 y, rstd, rows, length, attrs->rows.rms != 0, rows_output_aligned(run));
    });)
    return WEFT_OK;
}

/* --- SOFTMAX and LOG_SOFTMAX --- */

/* The maximum passes over NaN, which then shows in the sum; a row of nothing but -infinity, or with an infinity, gives NaN. */
template <typename T, typename Way>
static __global__ void __launch_bounds__(Way::BLOCK)
    softmax_forward_rows_kernel(const T *x, T *y, ROWS_CONST rows_view view, int64_t rows, int64_t length, bool logarithm, bool vectors_out) {
    typedef typename wefti_wide<T>::type        W;
    typedef typename rows_sum<T, Way::WHOLE>::type S;
    typedef rows_vector<T, Way::VEC>            V;
    __shared__ W room[32];
    __shared__ S sum_room[32];
    rows_place<Way>    place(rows);
    rows_share<T, Way> share(x, view, place.row);
    const int          lane = place.lane;
    W                  power[Way::WHOLE ? Way::HOLD : 1][Way::VEC], most = -INFINITY;
    S                  sum = 0;
    if (Way::WHOLE) share.keep(0, length, lane);
    rows_each<Way>(length, lane, [&](int64_t, int, const V &v) {
#pragma unroll
        for (int k = 0; k < Way::VEC; k++) most = rows_max(most, wefti_widen(v.at[k]));
    }, share);
    most = rows_most<Way>(most, room);
    rows_each<Way>(length, lane, [&](int64_t, int h, const V &v) {
#pragma unroll
        for (int k = 0; k < Way::VEC; k++) {
            W e = rows_exp(wefti_widen(v.at[k]) - most);
            sum += (S)e;
            if (Way::WHOLE) power[h][k] = e;
        }
    }, share);
    sum = rows_add_up<Way>(sum, sum_room);
    const W scale = (W)(1 / sum), rest = (W)rows_log(sum);
    T      *out = y + place.row * length;
    if (!place.live) return;
    rows_each<Way>(length, lane, [&](int64_t i, int h, const V &v) {
        V result;
#pragma unroll
        for (int k = 0; k < Way::VEC; k++) {
            W from = wefti_widen(v.at[k]) - most;
            W e = logarithm ? from - rest : (Way::WHOLE ? power[h][k] : rows_exp(from)) * scale;
            result.at[k] = wefti_narrow<T>(e);
        }
        rows_store(out + i, result, vectors_out);
    }, share);
}

static weft_status rows_run_softmax(const wefti_cuda_run *run) {
    const wefti_operand *x = &run->call->inputs[0];
    int64_t              length = rows_length(x->shape, 1), rows = weft_shape_elements(x->shape) / length;
    rows_view            view = rows_of(x, run->inputs[0], 1);
    bool                 logarithm = run->call->op == WEFT_OP_LOG_SOFTMAX;
    WEFTI_DISPATCH_FLOAT(x->dtype, return rows_choose<T, 4>(length, [&](auto way) {
        typedef decltype(way) Way;
        return wefti_cuda_launch(run, "softmax", (softmax_forward_rows_kernel<T, Way>), wefti_cuda_blocks(rows, Way::PER_BLOCK, 0),
                                 Way::BLOCK, 0, (const T *)run->inputs[0], (T *)run->outputs[0], view, rows, length, logarithm,
                                 rows_output_aligned(run));
    });)
    return WEFT_OK;
}

/* y*(g - sum(g*y)), or g - exp(y)*sum(g) of the logarithm */
template <typename T, typename Way>
static __global__ void __launch_bounds__(Way::BLOCK)
    softmax_backward_rows_kernel(const T *g, const T *y, T *to, ROWS_CONST rows_view g_view, ROWS_CONST rows_view y_view, int64_t rows, int64_t length,
                                 bool logarithm, bool vectors_out) {
    typedef typename wefti_wide<T>::type        W;
    typedef typename rows_sum<T, Way::WHOLE>::type S;
    typedef rows_vector<T, Way::VEC>            V;
    __shared__ S room[32];
    rows_place<Way>    place(rows);
    rows_share<T, Way> gs(g, g_view, place.row), ys(y, y_view, place.row);
    const int          lane = place.lane;
    if (Way::WHOLE) gs.keep(0, length, lane), ys.keep(0, length, lane);
    S terms = 0;
    rows_each<Way>(length, lane, [&](int64_t, int, const V &gv, const V &yv) {
#pragma unroll
        for (int k = 0; k < Way::VEC; k++) {
            S gk = (S)wefti_widen(gv.at[k]);
            terms = logarithm ? terms + gk : rows_fma(gk, (S)wefti_widen(yv.at[k]), terms);
        }
    }, gs, ys);
    const W sum = (W)rows_add_up<Way>(terms, room);
    T      *out = to + place.row * length;
    if (!place.live) return;
    rows_each<Way>(length, lane, [&](int64_t i, int, const V &gv, const V &yv) {
        V result;
#pragma unroll
        for (int k = 0; k < Way::VEC; k++) {
            W gk = wefti_widen(gv.at[k]), yk = wefti_widen(yv.at[k]);
            result.at[k] = wefti_narrow<T>(logarithm ? gk - rows_exp(yk) * sum : yk * (gk - sum));
        }
        rows_store(out + i, result, vectors_out);
    }, gs, ys);
}

static weft_status rows_run_softmax_backward(const wefti_cuda_run *run) {
    const wefti_operand *in = run->call->inputs;
    int64_t              length = rows_length(in[0].shape, 1), rows = weft_shape_elements(in[0].shape) / length;
    rows_view            g = rows_of(&in[0], run->inputs[0], 1), y = rows_of(&in[1], run->inputs[1], 1);
    bool                 logarithm = run->call->op == WEFT_OP_LOG_SOFTMAX_BACKWARD;
    WEFTI_DISPATCH_FLOAT(in[0].dtype, return rows_choose<T, 4>(length, [&](auto way) {
        typedef decltype(way) Way;
        return wefti_cuda_launch(run, "softmax gradient", (softmax_backward_rows_kernel<T, Way>),
                                 wefti_cuda_blocks(rows, Way::PER_BLOCK, 0), Way::BLOCK, 0, (const T *)run->inputs[0],
                                 (const T *)run->inputs[1], (T *)run->outputs[0], g, y, rows, length, logarithm,
                                 rows_output_aligned(run));
    });)
    return WEFT_OK;
}

/* --- ROTARY --- */

/* A thread has one position and VEC pairs of the many rows (batches, heads) in its slice, whose angles it computes once. The angle is
 * taken in f64 and brought into one turn there, so that long contexts keep their last digits; sine and cosine then are as wide as T. */
enum { ROTARY_BLOCK = 128, ROTARY_ROWS = 16 };

static __device__ __forceinline__ void rotary_turn(double angle, float *sine, float *cosine) {
    double turns = rint(angle * 0.15915494309189533577), rest = fma(turns, -6.283185307179586477, angle);
    sincosf((float)fma(turns, -2.4492935982947064e-16, rest), sine, cosine);
}
static __device__ __forceinline__ void rotary_turn(double angle, double *sine, double *cosine) { sincos(angle, sine, cosine); }
static __device__ __forceinline__ double rotary_frequency(double base, double log2_base, int64_t pair, int64_t depth, float) {
    (void)base;
    return exp2(-2 * (double)pair / (double)depth * log2_base);
}
static __device__ __forceinline__ double rotary_frequency(double base, double log2_base, int64_t pair, int64_t depth, double) {
    (void)log2_base;
    return pow(base, -2 * (double)pair / (double)depth);
}

typedef struct rotary_plan {
    wefti_cuda_view_of lead; /* the rows of one position */
    int64_t            rows, positions, depth, position_stride, stride, slices;
    double             base, log2_base;
    int64_t            offset;
    bool               inverse;
} rotary_plan;

template <typename T, int VEC> static __global__ void rotary_forward_pairs_kernel(const T *x, T *y, ROWS_CONST rotary_plan plan) {
    typedef typename wefti_wide<T>::type W;
    typedef rows_vector<T, VEC>          V;
    const int64_t half = plan.depth / 2, vectors = half / VEC, index = (int64_t)blockIdx.x * ROTARY_BLOCK + threadIdx.x;
    const int64_t slice = index / (vectors * plan.positions), pair = index % vectors * VEC, t = index / vectors % plan.positions;
    if (slice >= plan.slices) return;
    W sine[VEC], cosine[VEC];
#pragma unroll
    for (int k = 0; k < VEC; k++) {
        rotary_turn((double)(t + plan.offset) * rotary_frequency(plan.base, plan.log2_base, pair + k, plan.depth, W()), &sine[k], &cosine[k]);
        if (plan.inverse) sine[k] = -sine[k];
    }
    const int64_t end = slice + 1 < plan.slices ? (slice + 1) * ROTARY_ROWS : plan.rows;
    for (int64_t row = slice * ROTARY_ROWS; row < end; row++) {
        const T *from = x + rows_offset(&plan.lead, row) + t * plan.position_stride;
        T       *to = y + (row * plan.positions + t) * plan.depth + pair;
        V        a, b, left, right;
        if (VEC > 1) {
            a = *reinterpret_cast<const V *>(from + pair);
            b = *reinterpret_cast<const V *>(from + pair + half);
        } else {
            a.at[0] = from[pair * plan.stride];
            b.at[0] = from[(pair + half) * plan.stride];
        }
#pragma unroll
        for (int k = 0; k < VEC; k++) {
            W first = wefti_widen(a.at[k]), second = wefti_widen(b.at[k]);
            left.at[k] = wefti_narrow<T>(first * cosine[k] - second * sine[k]);
            right.at[k] = wefti_narrow<T>(first * sine[k] + second * cosine[k]);
        }
        rows_store(to, left, VEC > 1);
        rows_store(to + half, right, VEC > 1);
    }
}

static weft_status rows_run_rotary(const wefti_cuda_run *run) {
    const wefti_operand *x = &run->call->inputs[0];
    const wefti_attrs   *attrs = run->call->attrs;
    int32_t              rank = x->shape.rank;
    rows_view            view = rows_of(x, run->inputs[0], 1);
    rotary_plan          plan;
    plan.lead = rows_axes(x, 0, rank - 2);
    plan.positions = x->shape.dim[rank - 2], plan.depth = x->shape.dim[rank - 1];
    plan.rows = weft_shape_elements(x->shape) / (plan.positions * plan.depth);
    plan.position_stride = x->stride[rank - 2], plan.stride = x->stride[rank - 1];
    plan.slices = (plan.rows + ROTARY_ROWS - 1) / ROTARY_ROWS;
    plan.base = attrs->rotary.base, plan.log2_base = log2(attrs->rotary.base);
    plan.offset = attrs->rotary.offset, plan.inverse = attrs->rotary.inverse != 0;
    WEFTI_DISPATCH_FLOAT(x->dtype, {
        const int vec = sizeof(T) < 8 ? 16 / (int)sizeof(T) : 1;
        int64_t   threads = plan.slices * plan.positions * (plan.depth / 2);
        if (vec > 1 && view.vectors && rows_output_aligned(run) && plan.depth / 2 % vec == 0)
            return wefti_cuda_launch(run, "rotary", (rotary_forward_pairs_kernel<T, vec>),
                                     wefti_cuda_blocks(threads / vec, ROTARY_BLOCK, 0), ROTARY_BLOCK, 0, (const T *)run->inputs[0],
                                     (T *)run->outputs[0], plan);
        return wefti_cuda_launch(run, "rotary", (rotary_forward_pairs_kernel<T, 1>), wefti_cuda_blocks(threads, ROTARY_BLOCK, 0),
                                 ROTARY_BLOCK, 0, (const T *)run->inputs[0], (T *)run->outputs[0], plan);
    })
    return WEFT_OK;
}

extern "C" const wefti_cuda_kernel wefti_cuda_normalize = {.name = "rows", .run = rows_run_normalize};
extern "C" const wefti_cuda_kernel wefti_cuda_normalize_backward = {.name = "rows", .run = rows_run_normalize_backward};
extern "C" const wefti_cuda_kernel wefti_cuda_softmax = {.name = "rows", .run = rows_run_softmax};
extern "C" const wefti_cuda_kernel wefti_cuda_softmax_backward = {.name = "rows", .run = rows_run_softmax_backward};
extern "C" const wefti_cuda_kernel wefti_cuda_rotary = {.name = "pairs", .run = rows_run_rotary};

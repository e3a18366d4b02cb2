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

/* 1/sqrt, to two units in the last place. */
static __device__ __forceinline__ float  rows_rsqrt(float x) { return rsqrtf(x); }
static __device__ __forceinline__ double rows_rsqrt(double x) { return 1 / sqrt(x); }

/* What kernels of rows are told of their shape. */
template <typename W> struct rows_plan {
    int64_t rows, length;
    W       per_element, eps; /* 1/length */
    bool    rms;
};
template <typename T> static rows_plan<typename wefti_wide<T>::type> rows_plan_of(const wefti_operand *x, const wefti_attrs *attrs) {
    typedef typename wefti_wide<T>::type W;
    int64_t                              length = rows_length(x->shape, attrs->rows.axes);
    return rows_plan<W>{weft_shape_elements(x->shape) / length, length, (W)(1 / (double)length), (W)attrs->rows.eps, attrs->rows.rms != 0};
}

template <typename T, typename Way, typename W>
static __global__ void __launch_bounds__(Way::BLOCK, Way::AT_ONCE)
    normalize_forward_rows_kernel(const T *x, T *y, W *rstd_out, ROWS_CONST rows_view view, ROWS_CONST rows_plan<W> plan) {
    typedef typename rows_sum<T, Way::WHOLE>::type S;
    typedef wefti_vector<T, Way::VEC>              V;
    __shared__ S room[ROWS_ROOMS][32];
    const rows_place<Way> place(plan.rows);
    rows_share<T, Way>    share(x, view, place.row);
    T                    *out = y + place.row * plan.length;
    const rows_cut<Way>   cut(out, plan.length);
    const int             lane = place.lane;
    typedef typename rows_cut<Way>::index I;
    if (Way::WHOLE) share.keep(0, cut, lane);
    W mean = 0;
    if (!plan.rms) {
        S sum = 0;
        rows_each<Way>(cut, lane, [&](I, int, const V &v) {
            W xs[Way::VEC];
            v.widen(xs);
#pragma unroll
            for (int k = 0; k < Way::VEC; k++) sum += (S)xs[k]; /* elements of other rows are zero */
        }, share);
        mean = (W)(rows_add_up<Way>(sum, room[0]) * (S)plan.per_element);
    }
    S squares = 0;
    rows_each<Way>(cut, lane, [&](I i, int, const V &v) {
        W xs[Way::VEC];
        v.widen(xs);
#pragma unroll
        for (int k = 0; k < Way::VEC; k++) {
            W off = cut.has(i + k) ? xs[k] - mean : (W)0;
            squares = rows_fma((S)off, (S)off, squares);
        }
    }, share);
    squares = rows_add_up<Way>(squares, room[1]);
    const W rstd = rows_rsqrt((W)(squares * (S)plan.per_element) + plan.eps);
    if (!place.live) return;
    rows_each<Way>(cut, lane, [&](I i, int, const V &v) {
        W xs[Way::VEC];
        v.widen(xs);
#pragma unroll
        for (int k = 0; k < Way::VEC; k++) xs[k] = (xs[k] - mean) * rstd;
        rows_store<T>(out, cut, i, xs);
    }, share);
    if (lane == 0) rstd_out[place.row] = rstd;
}

static bool rows_output_aligned(const wefti_cuda_run *run) { return (uintptr_t)run->outputs[0] % 16 == 0; }

static weft_status rows_run_normalize(const wefti_cuda_run *run) {
    const wefti_operand *x = &run->call->inputs[0];
    const wefti_attrs   *attrs = run->call->attrs;
    rows_view            view = rows_of(x, run->inputs[0], attrs->rows.axes);
    const bool           plain = view.plain && rows_output_aligned(run);
    WEFTI_DISPATCH_FLOAT(x->dtype, {
        typedef typename wefti_wide<T>::type W;
        const rows_plan<W> plan = rows_plan_of<T>(x, attrs);
        return rows_choose<T, 1>(plan.length, plain, [&](auto way) {
            typedef decltype(way) Way;
            return wefti_cuda_launch(run, "normalize", (normalize_forward_rows_kernel<T, Way, W>), wefti_cuda_blocks(plan.rows, Way::PER_BLOCK, 0),
                                     Way::BLOCK, 0, (const T *)run->inputs[0], (T *)run->outputs[0], (W *)run->outputs[1], view, plan);
        });
    })
    return WEFT_OK;
}

/* rstd*(g - mean(g) - y*mean(g*y)) */
template <typename T, typename Way, typename W>
static __global__ void __launch_bounds__(Way::BLOCK, Way::AT_ONCE)
    normalize_backward_rows_kernel(const T *g, const T *y, const W *rstd, T *to, ROWS_CONST rows_view g_view, ROWS_CONST rows_view y_view,
                                   ROWS_CONST wefti_cuda_view_of rstd_view, ROWS_CONST rows_plan<W> plan) {
    typedef typename rows_sum<T, Way::WHOLE>::type S;
    typedef wefti_vector<T, Way::VEC>              V;
    __shared__ S room[ROWS_ROOMS][32];
    const rows_place<Way> place(plan.rows);
    rows_share<T, Way>    gs(g, g_view, place.row), ys(y, y_view, place.row);
    T                    *out = to + place.row * plan.length;
    const rows_cut<Way>   cut(out, plan.length);
    const int             lane = place.lane;
    typedef typename rows_cut<Way>::index I;
    if (Way::WHOLE) gs.keep(0, cut, lane), ys.keep(0, cut, lane);
    const W scale = rstd[rows_place_of(rstd_view, place.row)];
    S sum = 0, product = 0;
    rows_each<Way>(cut, lane, [&](I, int, const V &gv, const V &yv) {
        W gk[Way::VEC], yk[Way::VEC];
        gv.widen(gk);
        yv.widen(yk);
#pragma unroll
        for (int k = 0; k < Way::VEC; k++) {
            sum += (S)gk[k];
            product = rows_fma((S)gk[k], (S)yk[k], product);
        }
    }, gs, ys);
    const W along = (W)(rows_add_up<Way>(product, room[0]) * (S)plan.per_element);
    const W mean = plan.rms ? (W)0 : (W)(rows_add_up<Way>(sum, room[1]) * (S)plan.per_element);
    if (!place.live) return;
    rows_each<Way>(cut, lane, [&](I i, int, const V &gv, const V &yv) {
        W gk[Way::VEC], yk[Way::VEC];
        gv.widen(gk);
        yv.widen(yk);
#pragma unroll
        for (int k = 0; k < Way::VEC; k++) gk[k] = scale * rows_fma(-yk[k], along, gk[k] - mean);
        rows_store<T>(out, cut, i, gk);
    }, gs, ys);
}

static weft_status rows_run_normalize_backward(const wefti_cuda_run *run) {
    const wefti_operand *in = run->call->inputs;
    const wefti_attrs   *attrs = run->call->attrs;
    rows_view g = rows_of(&in[0], run->inputs[0], attrs->rows.axes), y = rows_of(&in[1], run->inputs[1], attrs->rows.axes);
    wefti_cuda_view_of rstd = rows_axes(&in[2], 0, in[2].shape.rank);
    const bool         plain = g.plain && y.plain && rows_output_aligned(run);
    WEFTI_DISPATCH_FLOAT(in[0].dtype, {
        typedef typename wefti_wide<T>::type W;
        const rows_plan<W> plan = rows_plan_of<T>(&in[0], attrs);
        return rows_choose<T, 2>(plan.length, plain, [&](auto way) {
            typedef decltype(way) Way;
            return wefti_cuda_launch(run, "normalize gradient", (normalize_backward_rows_kernel<T, Way, W>),
                                     wefti_cuda_blocks(plan.rows, Way::PER_BLOCK, 0), Way::BLOCK, 0, (const T *)run->inputs[0],
                                     (const T *)run->inputs[1], (const W *)run->inputs[2], (T *)run->outputs[0], g, y, rstd, plan);
        });
    })
    return WEFT_OK;
}

/* --- SOFTMAX and LOG_SOFTMAX --- */

/* Number `from`, less the maximum, as a result: exp of it by the sum, or itself less the sum's logarithm. */
template <typename T, typename Way, typename W>
static __device__ __forceinline__ void softmax_results(const wefti_vector<T, Way::VEC> &v, W most, W scale, W rest, bool logarithm, W *xs) {
    v.widen(xs);
#pragma unroll
    for (int k = 0; k < Way::VEC; k++) xs[k] = logarithm ? (xs[k] - most) - rest : rows_power<T>(xs[k], most) * scale;
}

/* The maximum passes over NaN, which then shows in the sum; a row of nothing but -infinity, or with an infinity, gives NaN. */
template <typename T, typename Way>
static __global__ void __launch_bounds__(Way::BLOCK, Way::AT_ONCE)
    softmax_forward_rows_kernel(const T *x, T *y, ROWS_CONST rows_view view, int64_t rows, int64_t length, bool logarithm) {
    typedef typename wefti_wide<T>::type           W;
    typedef typename rows_sum<T, Way::WHOLE>::type S;
    typedef wefti_vector<T, Way::VEC>              V;
    __shared__ W room[32];
    __shared__ S sum_room[32];
    const rows_place<Way> place(rows);
    rows_share<T, Way>    share(x, view, place.row);
    T                    *out = y + place.row * length;
    const rows_cut<Way>   cut(out, length);
    const int             lane = place.lane;
    typedef typename rows_cut<Way>::index I;
    if (Way::WHOLE) share.keep(0, cut, lane);
    W most = -INFINITY;
    rows_each<Way>(cut, lane, [&](I i, int, const V &v) {
        W xs[Way::VEC];
        v.widen(xs);
#pragma unroll
        for (int k = 0; k < Way::VEC; k++)
            if (cut.has(i + k)) most = rows_max(most, xs[k]);
    }, share);
    most = rows_most<Way>(most, room);
    S sum = 0;
    rows_each<Way>(cut, lane, [&](I i, int, const V &v) {
        W xs[Way::VEC];
        v.widen(xs);
#pragma unroll
        for (int k = 0; k < Way::VEC; k++)
            if (cut.has(i + k)) sum += (S)rows_power<T>(xs[k], most);
    }, share);
    sum = rows_add_up<Way>(sum, sum_room);
    if (!place.live) return;
    const W scale = (W)(1 / sum), rest = (W)rows_log(sum);
    rows_each<Way>(cut, lane, [&](I i, int, const V &v) {
        W xs[Way::VEC];
        softmax_results<T, Way>(v, most, scale, rest, logarithm, xs);
        rows_store<T>(out, cut, i, xs);
    }, share);
}

/* Rows that are too long for registers stay in shared memory: each thread takes back what it has put there itself. */
template <typename T, typename Way>
static __global__ void __launch_bounds__(Way::BLOCK, Way::AT_ONCE)
    softmax_forward_held_kernel(const T *x, T *y, ROWS_CONST rows_view view, int64_t length, bool logarithm) {
    typedef typename wefti_wide<T>::type  W;
    typedef wefti_vector<T, Way::VEC>     V;
    typedef typename rows_cut<Way>::index I;
    WEFTI_SHARED(V, held);
    __shared__ W rooms[2][32];
    rows_share<T, Way>  share(x, view, blockIdx.x);
    T                  *out = y + blockIdx.x * length;
    const rows_cut<Way> cut(out, length);
    const int           lane = (int)threadIdx.x;
    rows_powers<W>      mine = rows_powers_of<T, Way>(share, cut, lane, [&](I v, const V &x) { held[v] = x; });
    mine = rows_join<T, Way>(mine, rooms);
    const W most = mine.most, scale = 1 / mine.sum, rest = rows_log(mine.sum);
    for (I v = lane; v < cut.vectors; v += Way::LANES) {
        W xs[Way::VEC];
        softmax_results<T, Way>(held[v], most, scale, rest, logarithm, xs);
        rows_store<T>(out, cut, cut.first(v), xs);
    }
}

enum { SOFTMAX_BESIDE = 1024 /* bytes of shared memory that the kernel has anyway */ };

/* Rows longer than registers hold, where shared memory holds them. */
template <typename T, typename Way> static weft_status softmax_launch_held(const wefti_cuda_run *run, const rows_view &view, int64_t rows, int64_t length) {
    const int64_t bytes = (length / Way::VEC + 2) * 16;
    if (rows > 0x7fffffff) return wefti_fail(WEFT_E_UNSUPPORTED, "softmax: too many rows for one launch");
    WEFTI_TRY(wefti_cuda_check(run->cuda, cudaFuncSetAttribute(reinterpret_cast<const void *>(&softmax_forward_held_kernel<T, Way>),
                                                               cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes), "softmax"));
    return wefti_cuda_launch(run, "softmax", (softmax_forward_held_kernel<T, Way>), (unsigned)rows, Way::BLOCK, (size_t)bytes, (const T *)run->inputs[0],
                             (T *)run->outputs[0], view, length, run->call->op == WEFT_OP_LOG_SOFTMAX);
}

static weft_status rows_run_softmax(const wefti_cuda_run *run) {
    const wefti_operand *x = &run->call->inputs[0];
    int64_t              length = rows_length(x->shape, 1), rows = weft_shape_elements(x->shape) / length;
    rows_view            view = rows_of(x, run->inputs[0], 1);
    const bool           plain = view.plain && rows_output_aligned(run), logarithm = run->call->op == WEFT_OP_LOG_SOFTMAX;
    WEFTI_DISPATCH_FLOAT(x->dtype, return rows_choose<T, 1>(length, plain, [&](auto way) {
        typedef decltype(way) Way;
        if constexpr (!Way::WHOLE && sizeof(T) < 8)
            if (length * (int64_t)sizeof(T) + 32 + SOFTMAX_BESIDE <= run->cuda->shared_most)
                return softmax_launch_held<T, Way>(run, view, rows, length);
        return wefti_cuda_launch(run, "softmax", (softmax_forward_rows_kernel<T, Way>), wefti_cuda_blocks(rows, Way::PER_BLOCK, 0),
                                 Way::BLOCK, 0, (const T *)run->inputs[0], (T *)run->outputs[0], view, rows, length, logarithm);
    });)
    return WEFT_OK;
}

/* y*(g - sum(g*y)), or g - exp(y)*sum(g) of the logarithm */
template <typename T, typename Way>
static __global__ void __launch_bounds__(Way::BLOCK, Way::AT_ONCE)
    softmax_backward_rows_kernel(const T *g, const T *y, T *to, ROWS_CONST rows_view g_view, ROWS_CONST rows_view y_view, int64_t rows, int64_t length,
                                 bool logarithm) {
    typedef typename wefti_wide<T>::type           W;
    typedef typename rows_sum<T, Way::WHOLE>::type S;
    typedef wefti_vector<T, Way::VEC>              V;
    __shared__ S room[32];
    const rows_place<Way> place(rows);
    rows_share<T, Way>    gs(g, g_view, place.row), ys(y, y_view, place.row);
    T                    *out = to + place.row * length;
    const rows_cut<Way>   cut(out, length);
    const int             lane = place.lane;
    typedef typename rows_cut<Way>::index I;
    if (Way::WHOLE) gs.keep(0, cut, lane), ys.keep(0, cut, lane);
    S terms = 0;
    rows_each<Way>(cut, lane, [&](I, int, const V &gv, const V &yv) {
        W gk[Way::VEC], yk[Way::VEC];
        gv.widen(gk);
        yv.widen(yk);
#pragma unroll
        for (int k = 0; k < Way::VEC; k++) terms = rows_fma((S)gk[k], logarithm ? (S)1 : (S)yk[k], terms); /* elements of other rows are zero */
    }, gs, ys);
    const W sum = (W)rows_add_up<Way>(terms, room);
    if (!place.live) return;
    rows_each<Way>(cut, lane, [&](I i, int, const V &gv, const V &yv) {
        W gk[Way::VEC], yk[Way::VEC];
        gv.widen(gk);
        yv.widen(yk);
#pragma unroll
        for (int k = 0; k < Way::VEC; k++) gk[k] = logarithm ? rows_fma(-rows_power<T>(yk[k], (W)0), sum, gk[k]) : yk[k] * (gk[k] - sum);
        rows_store<T>(out, cut, i, gk);
    }, gs, ys);
}

static weft_status rows_run_softmax_backward(const wefti_cuda_run *run) {
    const wefti_operand *in = run->call->inputs;
    int64_t              length = rows_length(in[0].shape, 1), rows = weft_shape_elements(in[0].shape) / length;
    rows_view            g = rows_of(&in[0], run->inputs[0], 1), y = rows_of(&in[1], run->inputs[1], 1);
    const bool           plain = g.plain && y.plain && rows_output_aligned(run), logarithm = run->call->op == WEFT_OP_LOG_SOFTMAX_BACKWARD;
    WEFTI_DISPATCH_FLOAT(in[0].dtype, return rows_choose<T, 2>(length, plain, [&](auto way) {
        typedef decltype(way) Way;
        return wefti_cuda_launch(run, "softmax gradient", (softmax_backward_rows_kernel<T, Way>),
                                 wefti_cuda_blocks(rows, Way::PER_BLOCK, 0), Way::BLOCK, 0, (const T *)run->inputs[0],
                                 (const T *)run->inputs[1], (T *)run->outputs[0], g, y, rows, length, logarithm);
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
    typedef wefti_vector<T, VEC>         V;
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
        W        first[VEC], second[VEC], left[VEC], right[VEC];
        V        v;
        if (VEC > 1) {
            v = *reinterpret_cast<const V *>(from + pair);
            v.widen(first);
            v = *reinterpret_cast<const V *>(from + pair + half);
            v.widen(second);
        } else {
            first[0] = wefti_widen(from[pair * plan.stride]);
            second[0] = wefti_widen(from[(pair + half) * plan.stride]);
        }
#pragma unroll
        for (int k = 0; k < VEC; k++) {
            left[k] = first[k] * cosine[k] - second[k] * sine[k];
            right[k] = first[k] * sine[k] + second[k] * cosine[k];
        }
        v.narrow(left);
        *reinterpret_cast<V *>(to) = v;
        v.narrow(right);
        *reinterpret_cast<V *>(to + half) = v;
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
        if (vec > 1 && view.plain && rows_output_aligned(run) && plan.depth / 2 % vec == 0)
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

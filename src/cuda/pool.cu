/* Pooling in two dimensions, a thread an element of the result. Gradients are gathered: each element of the input's plane looks at the
 * windows that cover it, in row-major order, so nothing is added by chance. Outputs lie as N, C, H, W or with channels last; neighbouring
 * threads have neighbours in memory.
 *
 * Places in windows, in bytes, are a quarter of the memory, and each lies in its own window.
 * MAX_POOL2D_BACKWARD may be handed any index into a plane at all. A first pass looks whether every index lies in its own window, as those of
 * MAX_POOL2D do; where one does not, the gradient is gathered from all of its plane, which is right and slow.
 * Cost: scratch for one flag. */
#include "cuda/planes.cuh"

enum { THREADS = 256 /* no shared memory, few registers: any size from 128 on fills a multiprocessor */ };
enum { CHECK_BLOCKS = 4096 };

/* Sizes of the forward pooling, and strides of the call's inputs, counted in I: 32 bits wherever everything fits. */
template <typename I> struct pooling {
    I       channels, height, width, out_height, out_width;
    I       window[2], stride[2], top, left;
    I       x_stride[4], index_stride[4];
    int64_t total; /* elements of the output */
    bool    exclude_pad, index64, index8, windows_known, last; /* last: outputs lie with channels last */
};

template <typename I> struct element { I n, c, row, column; };

/* The i-th element of the output in memory. */
template <typename I> static __device__ __forceinline__ element<I> element_of(const pooling<I> &p, I i, I height, I width) {
    element<I> e;
    I          channels = p.channels;
    if (p.last) {
        I pixel = i / channels;
        e.c     = i - pixel * channels;
        I line  = pixel / width;
        e.column = pixel - line * width;
        e.n      = line / height;
        e.row    = line - e.n * height;
        return e;
    }
    I          above = i / width;
    e.column         = i - above * width;
    I plane          = above / height;
    e.row            = above - plane * height;
    e.n              = plane / channels;
    e.c              = plane - e.n * channels;
    return e;
}

template <typename I> static __device__ __forceinline__ I at4(const I *stride, const element<I> &e) {
    return e.n * stride[0] + e.c * stride[1] + e.row * stride[2] + e.column * stride[3];
}

/* The element of the plane that window `e` has chosen: what the index at `at` says. */
template <typename I> static __device__ __forceinline__ int64_t load_index(const pooling<I> &p, const void *index, I at, const element<I> &e) {
    if (!p.index8) return p.index64 ? static_cast<const int64_t *>(index)[at] : static_cast<const int32_t *>(index)[at];
    I place = static_cast<const uint8_t *>(index)[at];
    if (place >= p.window[0] * p.window[1]) return -1;
    I h = e.row * p.stride[0] - p.top + place / p.window[1], w = e.column * p.stride[1] - p.left + place % p.window[1];
    return h < 0 || h >= p.height || w < 0 || w >= p.width ? -1 : static_cast<int64_t>(h) * p.width + w;
}
template <typename I> static __device__ __forceinline__ void store_index(const pooling<I> &p, void *index, I at, const element<I> &e, int64_t chosen) {
    if (p.index8) {
        I h = static_cast<I>(chosen / p.width) - (e.row * p.stride[0] - p.top), w = static_cast<I>(chosen % p.width) - (e.column * p.stride[1] - p.left);
        static_cast<uint8_t *>(index)[at] = static_cast<uint8_t>(chosen < 0 ? 255 : h * p.window[1] + w);
    } else if (p.index64) static_cast<int64_t *>(index)[at] = chosen;
    else static_cast<int32_t *>(index)[at] = static_cast<int32_t>(chosen);
}

/* The part of window `at` that lies in a plane of `size`. */
template <typename I> static __device__ __forceinline__ void window_of(I at, I stride, I window, I pad, I size, I *begin_out, I *end_out) {
    I begin    = at * stride - pad;
    *begin_out = begin > 0 ? begin : 0;
    *end_out   = begin + window < size ? begin + window : size;
}
/* The windows of `count` that cover `at`: [begin, end). */
template <typename I> static __device__ __forceinline__ void covering(I at, I stride, I window, I pad, I count, I *begin_out, I *end_out) {
    I shifted  = at + pad;
    *begin_out = shifted < window ? 0 : (shifted - window) / stride + 1;
    *end_out   = shifted / stride + 1 < count ? shifted / stride + 1 : count;
}

#define POOL_INDEX                                                          \
    int64_t flat = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; \
    if (flat >= p.total) return;                                            \
    I i = static_cast<I>(flat)

template <typename T, typename I>
static __global__ void __launch_bounds__(THREADS)
    max_pool2d_forward_element_kernel(pooling<I> p, const T *x, T *y, void *index) {
    POOL_INDEX;
    typedef typename wefti_wide<T>::type W;
    element<I> e = element_of(p, i, p.out_height, p.out_width);
    I          top, bottom, left, right, origin = e.n * p.x_stride[0] + e.c * p.x_stride[1];
    int64_t    chosen = -1;
    W          best   = -INFINITY;
    window_of(e.row, p.stride[0], p.window[0], p.top, p.height, &top, &bottom);
    window_of(e.column, p.stride[1], p.window[1], p.left, p.width, &left, &right);
    for (I h = top; h < bottom; h++)
        for (I w = left; w < right; w++) {
            W value = wefti_widen(x[origin + h * p.x_stride[2] + w * p.x_stride[3]]);
            if (chosen >= 0 && (best != best || !(value != value || value > best))) continue;
            best   = value;
            chosen = static_cast<int64_t>(h) * p.width + w;
        }
    y[i] = wefti_narrow<T>(best);
    store_index(p, index, i, e, chosen);
}

/* Sets the flag where an index lies outside its own window (and not outside the plane, where it counts as none). */
template <typename I>
static __global__ void __launch_bounds__(THREADS)
    max_pool2d_backward_check_kernel(pooling<I> p, const void *index, int64_t outputs, int32_t *stray) {
    for (int64_t flat = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; flat < outputs;
         flat += static_cast<int64_t>(gridDim.x) * THREADS) {
        element<I> e      = element_of(p, static_cast<I>(flat), p.out_height, p.out_width);
        int64_t    chosen = load_index(p, index, at4(p.index_stride, e), e);
        if (chosen < 0 || chosen >= static_cast<int64_t>(p.height) * p.width) continue;
        I h = static_cast<I>(chosen / p.width), w = static_cast<I>(chosen % p.width), top, bottom, left, right;
        window_of(e.row, p.stride[0], p.window[0], p.top, p.height, &top, &bottom);
        window_of(e.column, p.stride[1], p.window[1], p.left, p.width, &left, &right);
        if (h < top || h >= bottom || w < left || w >= right) atomicOr(stray, 1);
    }
}

template <typename T, typename I>
static __global__ void __launch_bounds__(THREADS)
    max_pool2d_backward_gather_kernel(pooling<I> p, const T *g, const void *index, const int32_t *stray, T *dx) {
    POOL_INDEX;
    typedef typename wefti_wide<T>::type W;
    element<I> e    = element_of(p, i, p.height, p.width);
    int64_t    self = static_cast<int64_t>(e.row) * p.width + e.column;
    I          row = 0, row_end = p.out_height, first = 0, column_end = p.out_width;
    double     sum = 0;
    if (p.index8 || (p.windows_known && !*stray)) {
        covering(e.row, p.stride[0], p.window[0], p.top, p.out_height, &row, &row_end);
        covering(e.column, p.stride[1], p.window[1], p.left, p.out_width, &first, &column_end);
    }
    for (; row < row_end; row++)
        for (I column = first; column < column_end; column++) {
            element<I> from = {e.n, e.c, row, column};
            if (load_index(p, index, at4(p.index_stride, from), from) == self) sum += wefti_widen(g[at4(p.x_stride, from)]);
        }
    dx[i] = wefti_narrow<T>(static_cast<W>(sum));
}

/* With channels last a thread has CHANNELS neighbours: places are found, and windows chosen, once for all of them. Of one plane the same numbers
 * are added in the same order as above. */
enum { CHANNELS = 8 };
/* The place of element (h, w) in window `e`. */
static __device__ __forceinline__ int32_t place_in(const pooling<int32_t> &p, const element<int32_t> &e, int32_t h, int32_t w) {
    return (h - (e.row * p.stride[0] - p.top)) * p.window[1] + w - (e.column * p.stride[1] - p.left);
}
template <typename T, int N> struct __align__(sizeof(T) * N < 16 ? sizeof(T) * N : 16) run_of { T element[N]; };

template <typename T, typename X> /* X: int32_t, or uint8_t for places in windows */
static __global__ void __launch_bounds__(THREADS) max_pool2d_forward_channels_kernel(pooling<int32_t> p, const T *x, T *y, X *index) {
    typedef typename wefti_wide<T>::type W;
    typedef run_of<T, CHANNELS>          V;
    int64_t flat = (static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x) * CHANNELS;
    if (flat >= p.total) return;
    int32_t          top, bottom, left, right, chosen[CHANNELS];
    element<int32_t> e = element_of(p, static_cast<int32_t>(flat), p.out_height, p.out_width);
    W                best[CHANNELS];
    for (int c = 0; c < CHANNELS; c++) best[c] = -INFINITY, chosen[c] = -1;
    window_of(e.row, p.stride[0], p.window[0], p.top, p.height, &top, &bottom);
    window_of(e.column, p.stride[1], p.window[1], p.left, p.width, &left, &right);
    for (int32_t h = top; h < bottom; h++)
        for (int32_t w = left; w < right; w++) {
            V       v    = *reinterpret_cast<const V *>(x + at4(p.x_stride, element<int32_t>{e.n, e.c, h, w}));
            int32_t here = sizeof(X) == 1 ? place_in(p, e, h, w) : h * p.width + w;
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) {
                W value = wefti_widen(v.element[c]);
                if (chosen[c] >= 0 && (best[c] != best[c] || !(value != value || value > best[c]))) continue;
                best[c]   = value;
                chosen[c] = here;
            }
        }
    V                   out;
    run_of<X, CHANNELS> places;
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) out.element[c] = wefti_narrow<T>(best[c]), places.element[c] = static_cast<X>(chosen[c]); /* -1 is 255 */
    *reinterpret_cast<V *>(y + flat) = out;
    *reinterpret_cast<run_of<X, CHANNELS> *>(index + flat) = places;
}

template <typename T, typename X>
static __global__ void __launch_bounds__(THREADS)
    max_pool2d_backward_channels_kernel(pooling<int32_t> p, const T *g, const X *index, const int32_t *stray, T *dx) {
    typedef typename wefti_wide<T>::type W;
    typedef run_of<T, CHANNELS>          V;
    int64_t flat = (static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x) * CHANNELS;
    if (flat >= p.total) return;
    element<int32_t> e    = element_of(p, static_cast<int32_t>(flat), p.height, p.width);
    int32_t          self = e.row * p.width + e.column, row = 0, row_end = p.out_height, first = 0, column_end = p.out_width;
    double           sum[CHANNELS] = {};
    if (sizeof(X) == 1 || (p.windows_known && !*stray)) {
        covering(e.row, p.stride[0], p.window[0], p.top, p.out_height, &row, &row_end);
        covering(e.column, p.stride[1], p.window[1], p.left, p.out_width, &first, &column_end);
    }
    for (; row < row_end; row++)
        for (int32_t column = first; column < column_end; column++) {
            element<int32_t>    from = {e.n, e.c, row, column};
            run_of<X, CHANNELS> chosen = *reinterpret_cast<const run_of<X, CHANNELS> *>(index + at4(p.index_stride, from));
            V                   v = *reinterpret_cast<const V *>(g + at4(p.x_stride, from));
            int32_t             here = sizeof(X) == 1 ? place_in(p, from, e.row, e.column) : self;
#pragma unroll
            for (int c = 0; c < CHANNELS; c++)
                if (chosen.element[c] == here) sum[c] += wefti_widen(v.element[c]);
        }
    V out;
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) out.element[c] = wefti_narrow<T>(static_cast<W>(sum[c]));
    *reinterpret_cast<V *>(dx + flat) = out;
}

template <typename T, typename I>
static __global__ void __launch_bounds__(THREADS)
    max_pool2d_take_element_kernel(pooling<I> p, const T *x, const void *index, T *y) {
    POOL_INDEX;
    typedef typename wefti_wide<T>::type W;
    element<I> e      = element_of(p, i, p.out_height, p.out_width);
    int64_t    chosen = load_index(p, index, at4(p.index_stride, e), e);
    if (chosen < 0 || chosen >= static_cast<int64_t>(p.height) * p.width) {
        y[i] = wefti_narrow<T>(W(0));
        return;
    }
    element<I> from = {e.n, e.c, static_cast<I>(chosen / p.width), static_cast<I>(chosen % p.width)};
    y[i]            = x[at4(p.x_stride, from)];
}

/* What the sum over a window is divided by. */
template <typename W, typename I> static __device__ __forceinline__ W divisor(const pooling<I> &p, I rows, I columns) {
    return p.exclude_pad ? static_cast<W>(rows * columns) : static_cast<W>(p.window[0] * p.window[1]);
}

template <typename T, typename I>
static __global__ void __launch_bounds__(THREADS) avg_pool2d_forward_element_kernel(pooling<I> p, const T *x, T *y) {
    POOL_INDEX;
    typedef typename wefti_wide<T>::type W;
    element<I> e = element_of(p, i, p.out_height, p.out_width);
    I          top, bottom, left, right, origin = e.n * p.x_stride[0] + e.c * p.x_stride[1];
    W          sum = 0;
    window_of(e.row, p.stride[0], p.window[0], p.top, p.height, &top, &bottom);
    window_of(e.column, p.stride[1], p.window[1], p.left, p.width, &left, &right);
    for (I h = top; h < bottom; h++)
        for (I w = left; w < right; w++) sum += wefti_widen(x[origin + h * p.x_stride[2] + w * p.x_stride[3]]);
    y[i] = wefti_narrow<T>(sum / divisor<W>(p, bottom - top, right - left));
}

template <typename T, typename I>
static __global__ void __launch_bounds__(THREADS) avg_pool2d_backward_gather_kernel(pooling<I> p, const T *g, T *dx) {
    POOL_INDEX;
    typedef typename wefti_wide<T>::type W;
    element<I> e = element_of(p, i, p.height, p.width);
    I          row, row_end, first, column_end;
    W          sum = 0;
    covering(e.row, p.stride[0], p.window[0], p.top, p.out_height, &row, &row_end);
    covering(e.column, p.stride[1], p.window[1], p.left, p.out_width, &first, &column_end);
    for (; row < row_end; row++)
        for (I column = first; column < column_end; column++) {
            I          top, bottom, left, right;
            element<I> from = {e.n, e.c, row, column};
            window_of(row, p.stride[0], p.window[0], p.top, p.height, &top, &bottom);
            window_of(column, p.stride[1], p.window[1], p.left, p.width, &left, &right);
            sum += wefti_widen(g[at4(p.x_stride, from)]) / divisor<W>(p, bottom - top, right - left);
        }
    dx[i] = wefti_narrow<T>(sum);
}

/* --- launching --- */

template <typename I> static pooling<I> pooling_of(const wefti_call *call, weft_shape x, weft_shape y) {
    const wefti_attrs *attrs = call->attrs;
    pooling<I>         p     = {};
    p.channels = (I)x.dim[1], p.height = (I)x.dim[2], p.width = (I)x.dim[3];
    p.out_height = (I)y.dim[2], p.out_width = (I)y.dim[3];
    for (int axis = 0; axis < 2; axis++) {
        p.window[axis] = (I)attrs->pool.window[axis];
        p.stride[axis] = (I)(attrs->pool.stride[axis] > 0 ? attrs->pool.stride[axis] : attrs->pool.window[axis]);
    }
    p.windows_known = p.window[0] > 0 && p.window[1] > 0;
    if (!p.windows_known) p.stride[0] = p.stride[1] = 1;
    p.top         = (I)attrs->pool.pad[0];
    p.left        = (I)attrs->pool.pad[2];
    p.exclude_pad = attrs->pool.exclude_pad != 0;
    p.total       = wefti_operand_elements(&call->outputs[0]);
    for (int axis = 0; axis < 4; axis++) {
        p.x_stride[axis]     = (I)call->inputs[0].stride[axis];
        p.index_stride[axis] = call->n_inputs > 1 ? (I)call->inputs[1].stride[axis] : 0;
    }
    if (call->n_inputs > 1) p.index64 = call->inputs[1].dtype == WEFT_I64;
    if (call->n_outputs > 1) p.index64 = call->outputs[1].dtype == WEFT_I64;
    p.index8 = (call->n_inputs > 1 && call->inputs[1].dtype == WEFT_U8) || (call->n_outputs > 1 && call->outputs[1].dtype == WEFT_U8);
    p.last = !wefti_operand_is_contiguous(&call->outputs[0]);
    return p;
}

/* The largest of the pooling's own numbers, for the choice of I. */
static int64_t reach_of(const wefti_call *call) {
    const wefti_attrs *attrs = call->attrs;
    int64_t            reach = wefti_max_i64(1, attrs->pool.window[0]) * wefti_max_i64(1, attrs->pool.window[1]);
    for (int axis = 0; axis < 2; axis++) reach = wefti_max_i64(reach, attrs->pool.stride[axis]);
    for (int side = 0; side < 4; side++) reach = wefti_max_i64(reach, attrs->pool.pad[side]);
    return reach;
}

/* A statement for the element type T and the counting type I of a call. */
#define POOL_DISPATCH(call, ...)                             \
    if (wefti_planes_fit_32(call, reach_of(call))) {                \
        typedef int32_t I;                                           \
        WEFTI_DISPATCH_FLOAT((call)->outputs[0].dtype, __VA_ARGS__)  \
    } else {                                                         \
        typedef int64_t I;                                           \
        WEFTI_DISPATCH_FLOAT((call)->outputs[0].dtype, __VA_ARGS__)  \
    }                                                                \
    return WEFT_OK

/* Whether threads may have runs of channels: operands that lie with channels last, and begin where runs do. */
static bool in_runs(const wefti_cuda_run *run) {
    const wefti_call *call = run->call;
    const weft_dtype  dtype = call->outputs[0].dtype;
    if ((dtype != WEFT_BF16 && dtype != WEFT_F16) || call->outputs[0].shape.dim[1] % CHANNELS || !wefti_planes_fit_32(call, reach_of(call))) return false;
    for (int32_t i = 0; i < call->n_inputs + call->n_outputs; i++) {
        const wefti_operand *one = i < call->n_inputs ? &call->inputs[i] : &call->outputs[i - call->n_inputs];
        const void          *at = i < call->n_inputs ? run->inputs[i] : run->outputs[i - call->n_inputs];
        if (one->dtype != dtype && one->dtype != WEFT_I32 && one->dtype != WEFT_U8) return false;
        if (!wefti_operand_has_channels_last(one) || (uintptr_t)at % 16) return false;
    }
    return wefti_operand_elements(&call->outputs[0]) > 0;
}

/* A statement for the 16-bit type T of a call in runs. */
#define RUN_DISPATCH(dtype, ...)                                        \
    if ((dtype) == WEFT_BF16) { typedef __nv_bfloat16 T; __VA_ARGS__ } \
    else { typedef __half T; __VA_ARGS__ }

static weft_status run_max(const wefti_cuda_run *run) {
    const wefti_call *call = run->call;
    if (in_runs(run)) {
        pooling<int32_t> p = pooling_of<int32_t>(call, call->inputs[0].shape, call->outputs[0].shape);
        p.last = true;
        RUN_DISPATCH(call->outputs[0].dtype, {
            dim3 blocks(wefti_cuda_blocks(p.total, THREADS * CHANNELS, 0));
            if (p.index8)
                return wefti_cuda_launch(run, "max_pool2d", (max_pool2d_forward_channels_kernel<T, uint8_t>), blocks, dim3(THREADS), 0, p,
                                         (const T *)run->inputs[0], (T *)run->outputs[0], (uint8_t *)run->outputs[1]);
            return wefti_cuda_launch(run, "max_pool2d", (max_pool2d_forward_channels_kernel<T, int32_t>), blocks, dim3(THREADS), 0, p,
                                     (const T *)run->inputs[0], (T *)run->outputs[0], (int32_t *)run->outputs[1]);
        })
    }
    POOL_DISPATCH(call, {
        pooling<I> p = pooling_of<I>(call, call->inputs[0].shape, call->outputs[0].shape);
        return wefti_cuda_launch(run, "max_pool2d", (max_pool2d_forward_element_kernel<T, I>), dim3(wefti_cuda_blocks(p.total, THREADS, 0)),
                                 dim3(THREADS), 0, p, (const T *)run->inputs[0], (T *)run->outputs[0], run->outputs[1]);
    });
}

static int64_t flag_scratch(const wefti_cuda *cuda, const wefti_call *call) {
    (void)cuda, (void)call;
    return (int64_t)sizeof(int32_t);
}

static weft_status run_max_backward_channels(const wefti_cuda_run *run, const int32_t *stray) {
    pooling<int32_t> p = pooling_of<int32_t>(run->call, run->call->outputs[0].shape, run->call->inputs[0].shape);
    p.last = true;
    RUN_DISPATCH(run->call->outputs[0].dtype, {
        dim3 blocks(wefti_cuda_blocks(p.total, THREADS * CHANNELS, 0));
        if (p.index8)
            return wefti_cuda_launch(run, "max_pool2d gradient", (max_pool2d_backward_channels_kernel<T, uint8_t>), blocks, dim3(THREADS), 0, p,
                                     (const T *)run->inputs[0], (const uint8_t *)run->inputs[1], stray, (T *)run->outputs[0]);
        return wefti_cuda_launch(run, "max_pool2d gradient", (max_pool2d_backward_channels_kernel<T, int32_t>), blocks, dim3(THREADS), 0, p,
                                 (const T *)run->inputs[0], (const int32_t *)run->inputs[1], stray, (T *)run->outputs[0]);
    })
}

static weft_status run_max_backward(const wefti_cuda_run *run) {
    const wefti_call *call  = run->call;
    int32_t          *stray = (int32_t *)run->scratch;
    POOL_DISPATCH(call, {
        pooling<I> p       = pooling_of<I>(call, call->outputs[0].shape, call->inputs[0].shape);
        int64_t    outputs = wefti_operand_elements(&call->inputs[0]);
        if (!p.index8) WEFTI_TRY(wefti_cuda_check(run->cuda, cudaMemsetAsync(stray, 0, sizeof *stray, run->stream), "max_pool2d's flag"));
        if (p.windows_known && outputs > 0 && !p.index8)
            WEFTI_TRY(wefti_cuda_launch(run, "max_pool2d check", (max_pool2d_backward_check_kernel<I>),
                                        dim3(wefti_cuda_blocks(outputs, THREADS, CHECK_BLOCKS)), dim3(THREADS), 0, p,
                                        (const void *)run->inputs[1], outputs, stray));
        if (in_runs(run)) return run_max_backward_channels(run, stray);
        return wefti_cuda_launch(run, "max_pool2d gradient", (max_pool2d_backward_gather_kernel<T, I>),
                                 dim3(wefti_cuda_blocks(p.total, THREADS, 0)), dim3(THREADS), 0, p, (const T *)run->inputs[0],
                                 (const void *)run->inputs[1], (const int32_t *)stray, (T *)run->outputs[0]);
    });
}

static weft_status run_take(const wefti_cuda_run *run) {
    const wefti_call *call = run->call;
    POOL_DISPATCH(call, {
        pooling<I> p = pooling_of<I>(call, call->inputs[0].shape, call->outputs[0].shape);
        return wefti_cuda_launch(run, "max_pool2d take", (max_pool2d_take_element_kernel<T, I>), dim3(wefti_cuda_blocks(p.total, THREADS, 0)),
                                 dim3(THREADS), 0, p, (const T *)run->inputs[0], (const void *)run->inputs[1], (T *)run->outputs[0]);
    });
}

static weft_status run_average(const wefti_cuda_run *run) {
    const wefti_call *call = run->call;
    POOL_DISPATCH(call, {
        pooling<I> p = pooling_of<I>(call, call->inputs[0].shape, call->outputs[0].shape);
        return wefti_cuda_launch(run, "avg_pool2d", (avg_pool2d_forward_element_kernel<T, I>), dim3(wefti_cuda_blocks(p.total, THREADS, 0)),
                                 dim3(THREADS), 0, p, (const T *)run->inputs[0], (T *)run->outputs[0]);
    });
}

static weft_status run_average_backward(const wefti_cuda_run *run) {
    const wefti_call *call = run->call;
    POOL_DISPATCH(call, {
        pooling<I> p = pooling_of<I>(call, call->outputs[0].shape, call->inputs[0].shape);
        return wefti_cuda_launch(run, "avg_pool2d gradient", (avg_pool2d_backward_gather_kernel<T, I>),
                                 dim3(wefti_cuda_blocks(p.total, THREADS, 0)), dim3(THREADS), 0, p, (const T *)run->inputs[0],
                                 (T *)run->outputs[0]);
    });
}

extern "C" {
const wefti_cuda_kernel wefti_cuda_max_pool2d          = {.name = "max-pool", .run = run_max};
const wefti_cuda_kernel wefti_cuda_max_pool2d_backward = {.name = "max-pool gradient", .scratch = flag_scratch, .run = run_max_backward};
const wefti_cuda_kernel wefti_cuda_max_pool2d_take     = {.name = "max-pool take", .run = run_take};
const wefti_cuda_kernel wefti_cuda_avg_pool2d          = {.name = "average pool", .run = run_average};
const wefti_cuda_kernel wefti_cuda_avg_pool2d_backward = {.name = "average pool gradient", .run = run_average_backward};
}

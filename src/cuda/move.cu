/* Moves: FULL, ARANGE, RANDOM, copies of views, CONCAT and PAD.
 *
 * Elements are moved as bytes of their size. A copy first merges the axes that lie evenly in both places, then takes the widest word (up
 * to 16 bytes) in which both can be addressed; where the fast axes of the two differ, tiles go through shared memory, so that both sides
 * are read and written along their own.
 * Cost: every byte is read once and written once. */
#include "cuda/move.h"

#include "cuda/index.cuh"
#include "cuda/scalars.cuh"

/* Enough warps to hide the memory's latency: these kernels need few registers. */
enum { BLOCK = 256 };

/* --- copies --- */

typedef struct copy {
    wefti_space space;
    int64_t     from_stride[WEFT_MAX_RANK], to_stride[WEFT_MAX_RANK];
    const void *from;
    void       *to;
    int64_t     elements;
} copy;

template <typename T, typename Index> static __global__ void __launch_bounds__(BLOCK) copy_forward_strided_kernel(const copy c) {
    Index elements = (Index)c.elements;
    for (Index i = (Index)blockIdx.x * BLOCK + threadIdx.x; i < elements; i += (Index)gridDim.x * BLOCK) {
        int64_t from = 0, to = 0;
        Index   rest = i;
        for (int32_t axis = c.space.rank - 1; axis > 0; axis--) {
            int64_t at = (int64_t)wefti_coordinate(c.space, axis, &rest);
            from += at * c.from_stride[axis];
            to += at * c.to_stride[axis];
        }
        from += (int64_t)rest * c.from_stride[0];
        to += (int64_t)rest * c.to_stride[0];
        static_cast<T *>(c.to)[to] = static_cast<const T *>(c.from)[from];
    }
}

/* Tiles of SIDE x SIDE elements of the last axis, which is fast in `to`, and of `axis`, which is fast in `from`. The other axes count the
 * planes. A block of SIDE x ROWS threads; a column more in shared memory, so that columns spread over the banks. */
enum { SIDE = 32, ROWS = 8 };
typedef struct turn {
    copy    c;
    int32_t axis;
    int64_t tiles_axis, tiles_last; /* of a plane */
} turn;

template <typename T> static __global__ void __launch_bounds__(SIDE * ROWS) copy_forward_turned_kernel(const turn t) {
    __shared__ T  tile[SIDE][SIDE + 1];
    const copy   &c = t.c;
    int32_t       last = c.space.rank - 1, x = (int32_t)threadIdx.x % SIDE, y = (int32_t)threadIdx.x / SIDE;
    int64_t       in_plane = (int64_t)blockIdx.x % (t.tiles_axis * t.tiles_last), plane = (int64_t)blockIdx.x / (t.tiles_axis * t.tiles_last);
    int64_t       first_axis = in_plane / t.tiles_last * SIDE, first_last = in_plane % t.tiles_last * SIDE, from = 0, to = 0;
    for (int32_t axis = last - 1; axis >= 0; axis--) {
        if (axis == t.axis) continue;
        int64_t above = plane / c.space.dim[axis], at = plane - above * c.space.dim[axis];
        from += at * c.from_stride[axis];
        to += at * c.to_stride[axis];
        plane = above;
    }
    for (int32_t row = y; row < SIDE; row += ROWS)
        if (first_axis + x < c.space.dim[t.axis] && first_last + row < c.space.dim[last])
            tile[row][x] = static_cast<const T *>(c.from)[from + (first_axis + x) * c.from_stride[t.axis] + (first_last + row) * c.from_stride[last]];
    __syncthreads();
    for (int32_t row = y; row < SIDE; row += ROWS)
        if (first_axis + row < c.space.dim[t.axis] && first_last + x < c.space.dim[last])
            static_cast<T *>(c.to)[to + (first_axis + row) * c.to_stride[t.axis] + (first_last + x) * c.to_stride[last]] = tile[x][row];
}

/* The same where both sides allow 16 bytes at a time: tiles of 64 x 64 elements (of 8 bytes: 32 x 32), of which a thread takes vectors along
 * the one axis and gives vectors along the other. A row of the tile is an element longer, so that columns lie in different banks. */
enum { WIDE_BLOCK = 256 };
template <typename T> static __global__ void __launch_bounds__(WIDE_BLOCK) copy_forward_turned_wide_kernel(WEFTI_IN_PLACE turn t) {
    enum { VEC = 16 / sizeof(T), TILE = sizeof(T) == 8 ? 32 : 64, ACROSS = TILE / VEC, EACH = TILE * ACROSS / WIDE_BLOCK };
    __shared__ T  tile[TILE][TILE + 1];
    const int32_t last = t.c.space.rank - 1, x = (int32_t)threadIdx.x % ACROSS * VEC, y = (int32_t)threadIdx.x / ACROSS;
    const int64_t in_plane = (int64_t)blockIdx.x % (t.tiles_axis * t.tiles_last);
    const int64_t first_axis = in_plane / t.tiles_last * TILE, first_last = in_plane % t.tiles_last * TILE;
    const int64_t dim_axis = t.c.space.dim[t.axis], dim_last = t.c.space.dim[last];
    int64_t       plane = (int64_t)blockIdx.x / (t.tiles_axis * t.tiles_last), from = 0, to = 0;
    for (int32_t axis = last - 1; axis >= 0; axis--) {
        if (axis == t.axis) continue;
        int64_t above = plane / t.c.space.dim[axis], at = plane - above * t.c.space.dim[axis];
        from += at * t.c.from_stride[axis];
        to += at * t.c.to_stride[axis];
        plane = above;
    }
    wefti_pack<T> in[EACH];
    const T      *row = static_cast<const T *>(t.c.from) + from + first_axis + x + (first_last + y) * t.c.from_stride[last];
#pragma unroll
    for (int32_t e = 0; e < EACH; e++)
        if (first_axis + x < dim_axis && first_last + y + e * (TILE / EACH) < dim_last)
            in[e] = *reinterpret_cast<const wefti_pack<T> *>(row + e * (TILE / EACH) * t.c.from_stride[last]);
#pragma unroll
    for (int32_t e = 0; e < EACH; e++)
#pragma unroll
        for (int32_t v = 0; v < VEC; v++) tile[y + e * (TILE / EACH)][x + v] = in[e].element[v]; /* outside of the tensor: anything, that nobody takes */
    __syncthreads();
    T *out = static_cast<T *>(t.c.to) + to + first_last + x + (first_axis + y) * t.c.to_stride[t.axis];
#pragma unroll
    for (int32_t e = 0; e < EACH; e++) {
        wefti_pack<T> pack;
#pragma unroll
        for (int32_t v = 0; v < VEC; v++) pack.element[v] = tile[x + v][y + e * (TILE / EACH)];
        if (first_last + x < dim_last && first_axis + y + e * (TILE / EACH) < dim_axis)
            *reinterpret_cast<wefti_pack<T> *>(out + e * (TILE / EACH) * t.c.to_stride[t.axis]) = pack;
    }
}

/* Whether every vector of 16 bytes along the tile's axes lies at a multiple of 16. */
static bool is_wide(const copy *c, int32_t axis, int64_t bytes) {
    const int32_t last = c->space.rank - 1;
    const int64_t each = 16 / bytes;
    if (!wefti_is_aligned(c->from) || !wefti_is_aligned(c->to) || c->space.dim[axis] % each || c->space.dim[last] % each) return false;
    for (int32_t i = 0; i <= last; i++)
        if ((i != axis && c->from_stride[i] % each) || (i != last && c->to_stride[i] % each)) return false;
    return true;
}

/* The axis along which `from` is fast while the last is so in `to`, if it is worth turning tiles; else -1. */
static int32_t turned_axis(const copy *c, size_t bytes) {
    int32_t last = c->space.rank - 1;
    if (bytes > 8 || c->to_stride[last] != 1 || c->from_stride[last] == 1 || c->from_stride[last] == 0 || c->space.dim[last] < SIDE / 2)
        return -1;
    for (int32_t axis = 0; axis < last; axis++)
        if (c->from_stride[axis] == 1 && c->space.dim[axis] >= SIDE / 2) return axis;
    return -1;
}

template <typename T> static weft_status launch_copy(const wefti_cuda_run *run, const copy *c) {
    int32_t axis = turned_axis(c, sizeof(T));
    if (axis >= 0) {
        turn t;
        t.c = *c;
        t.axis = axis;
        const bool    wide = is_wide(c, axis, (int64_t)sizeof(T));
        const int64_t side = !wide ? (int64_t)SIDE : sizeof(T) == 8 ? 32 : 64;
        t.tiles_axis = wefti_cuda_blocks(c->space.dim[axis], side, 0);
        t.tiles_last = wefti_cuda_blocks(c->space.dim[c->space.rank - 1], side, 0);
        int64_t blocks = c->elements / c->space.dim[axis] / c->space.dim[c->space.rank - 1] * t.tiles_axis * t.tiles_last;
        if constexpr (sizeof(T) <= 8)
            if (blocks <= 0x7fffffff && wide)
                return wefti_cuda_launch(run, "copy", (copy_forward_turned_wide_kernel<T>), (unsigned)blocks, WIDE_BLOCK, 0, t);
        if (blocks <= 0x7fffffff)
            return wefti_cuda_launch(run, "copy", (copy_forward_turned_kernel<T>), (unsigned)blocks, SIDE * ROWS, 0, t);
    }
    unsigned blocks = wefti_cuda_blocks(c->elements, BLOCK, (int64_t)1 << 22);
    if (wefti_is_small(c->elements + (int64_t)blocks * BLOCK))
        return wefti_cuda_launch(run, "copy", (copy_forward_strided_kernel<T, uint32_t>), blocks, BLOCK, 0, *c);
    return wefti_cuda_launch(run, "copy", (copy_forward_strided_kernel<T, int64_t>), blocks, BLOCK, 0, *c);
}

/* Whether the copy can be made in words of `word` bytes instead of elements of `bytes`. */
static bool fits_word(const copy *c, int64_t bytes, int64_t word) {
    int32_t last = c->space.rank - 1;
    if (c->from_stride[last] != 1 || c->to_stride[last] != 1 || c->space.dim[last] * bytes % word) return false;
    for (int32_t axis = 0; axis < last; axis++)
        if (c->from_stride[axis] * bytes % word || c->to_stride[axis] * bytes % word) return false;
    return ((uintptr_t)c->from | (uintptr_t)c->to) % (uintptr_t)word == 0;
}

static int64_t widen_words(copy *c, int64_t bytes) {
    int32_t last = c->space.rank - 1;
    for (int64_t word = 16; word > bytes; word /= 2) {
        if (!fits_word(c, bytes, word)) continue;
        int64_t each = word / bytes;
        c->elements /= each;
        c->space.dim[last] /= each;
        c->space.divider[last] = wefti_divider_of(c->space.dim[last]);
        for (int32_t axis = 0; axis < last; axis++) {
            c->from_stride[axis] /= each;
            c->to_stride[axis] /= each;
        }
        return word;
    }
    return bytes;
}

extern "C" weft_status wefti_cuda_copy(const wefti_cuda_run *run, weft_dtype dtype, weft_shape space, const void *from,
                                       const int64_t *from_stride, void *to, const int64_t *to_stride) {
    wefti_operand        operands[2];
    const wefti_operand *both[2] = {&operands[0], &operands[1]};
    wefti_cuda_view_of   views[2];
    copy                 c;
    int64_t              bytes = (int64_t)weft_dtype_bytes(dtype);
    c.elements = weft_shape_elements(space);
    if (c.elements == 0) return WEFT_OK;
    memset(operands, 0, sizeof operands);
    operands[0].shape = operands[1].shape = space;
    for (int32_t axis = 0; axis < space.rank; axis++) {
        operands[0].stride[axis] = from_stride[axis];
        operands[1].stride[axis] = to_stride[axis];
    }
    wefti_cuda_views(space, both, 2, views);
    c.space = wefti_space_of(&views[0]);
    memcpy(c.from_stride, views[0].stride, sizeof c.from_stride);
    memcpy(c.to_stride, views[1].stride, sizeof c.to_stride);
    c.from = from;
    c.to = to;
    switch (widen_words(&c, bytes)) {
    case 1: return launch_copy<uint8_t>(run, &c);
    case 2: return launch_copy<uint16_t>(run, &c);
    case 4: return launch_copy<uint32_t>(run, &c);
    case 8: return launch_copy<uint64_t>(run, &c);
    default: return launch_copy<uint4>(run, &c);
    }
}

extern "C" weft_status wefti_cuda_pack(const wefti_cuda_run *run, const wefti_operand *operand, weft_shape space, const void *from, void *to) {
    int64_t stride[WEFT_MAX_RANK] = {0}, row_major[WEFT_MAX_RANK] = {0};
    wefti_operand_expand(operand, space, stride);
    wefti_contiguous_strides(space, row_major);
    return wefti_cuda_copy(run, operand->dtype, space, from, stride, to, row_major);
}

static weft_status run_view(const wefti_cuda_run *run) {
    const wefti_operand *x = &run->call->inputs[0], *y = &run->call->outputs[0];
    const wefti_attrs   *attrs = run->call->attrs;
    int64_t              stride[WEFT_MAX_RANK] = {0}, row_major[WEFT_MAX_RANK] = {0}, origin = 0;
    wefti_contiguous_strides(y->shape, row_major);
    if (run->call->op == WEFT_OP_RESHAPE) return wefti_cuda_pack(run, x, x->shape, run->inputs[0], run->outputs[0]);
    if (run->call->op == WEFT_OP_EXPAND) return wefti_cuda_pack(run, x, y->shape, run->inputs[0], run->outputs[0]);
    for (int32_t axis = 0; axis < y->shape.rank; axis++) {
        if (run->call->op == WEFT_OP_PERMUTE) {
            stride[axis] = x->stride[attrs->view.axes[axis]];
        } else {
            origin += attrs->slice.start[axis] * x->stride[axis];
            stride[axis] = attrs->slice.step[axis] * x->stride[axis];
        }
    }
    const char *from = static_cast<const char *>(run->inputs[0]) + origin * (int64_t)weft_dtype_bytes(x->dtype);
    return wefti_cuda_copy(run, x->dtype, y->shape, from, stride, run->outputs[0], row_major);
}
const wefti_cuda_kernel wefti_cuda_view = {.name = "copy", .run = run_view};

static weft_status run_concat(const wefti_cuda_run *run) {
    const wefti_operand *y = &run->call->outputs[0];
    int32_t              axis = run->call->attrs->axis.axis;
    int64_t              row_major[WEFT_MAX_RANK] = {0};
    char                *to = static_cast<char *>(run->outputs[0]);
    wefti_contiguous_strides(y->shape, row_major);
    for (int32_t i = 0; i < run->call->n_inputs; i++) {
        const wefti_operand *x = &run->call->inputs[i];
        WEFTI_TRY(wefti_cuda_copy(run, x->dtype, x->shape, run->inputs[i], x->stride, to, row_major));
        to += x->shape.dim[axis] * row_major[axis] * (int64_t)weft_dtype_bytes(x->dtype);
    }
    return WEFT_OK;
}
const wefti_cuda_kernel wefti_cuda_concat = {.name = "concat", .run = run_concat};

/* --- PAD --- */

typedef struct pad {
    wefti_space space; /* of the output */
    int64_t     stride[WEFT_MAX_RANK], dim[WEFT_MAX_RANK], low[WEFT_MAX_RANK], period[WEFT_MAX_RANK]; /* of x */
    const void *from;
    void       *to;
    int64_t     elements;
    uint64_t    fill; /* its bytes come first */
} pad;

template <typename T, typename Index> static __global__ void __launch_bounds__(BLOCK) pad_forward_each_kernel(const pad p) {
    Index elements = (Index)p.elements;
    for (Index i = (Index)blockIdx.x * BLOCK + threadIdx.x; i < elements; i += (Index)gridDim.x * BLOCK) {
        int64_t from = 0;
        Index   rest = i;
        bool    inside = true;
        for (int32_t axis = p.space.rank - 1; axis >= 0 && inside; axis--) {
            int64_t at = (int64_t)wefti_coordinate(p.space, axis, &rest) - p.low[axis];
            if (p.period[axis] != 1) {
                int64_t whole = at / p.period[axis];
                inside = whole * p.period[axis] == at;
                at = whole;
            }
            inside = inside && at >= 0 && at < p.dim[axis];
            from += at * p.stride[axis];
        }
        T value = (T)p.fill;
        if (inside) value = static_cast<const T *>(p.from)[from];
        static_cast<T *>(p.to)[i] = value;
    }
}

template <typename T> static weft_status launch_pad(const wefti_cuda_run *run, const pad *p) {
    unsigned blocks = wefti_cuda_blocks(p->elements, BLOCK, (int64_t)1 << 22);
    if (wefti_is_small(p->elements + (int64_t)blocks * BLOCK))
        return wefti_cuda_launch(run, "pad", (pad_forward_each_kernel<T, uint32_t>), blocks, BLOCK, 0, *p);
    return wefti_cuda_launch(run, "pad", (pad_forward_each_kernel<T, int64_t>), blocks, BLOCK, 0, *p);
}

static weft_status run_pad(const wefti_cuda_run *run) {
    const wefti_operand *x = &run->call->inputs[0], *y = &run->call->outputs[0];
    const wefti_attrs   *attrs = run->call->attrs;
    wefti_cuda_view_of   whole;
    pad                  p;
    memset(&p, 0, sizeof p);
    memset(&whole, 0, sizeof whole);
    whole.rank = y->shape.rank > 0 ? y->shape.rank : 1;
    whole.dim[0] = p.dim[0] = p.period[0] = 1;
    for (int32_t axis = 0; axis < y->shape.rank; axis++) {
        whole.dim[axis] = y->shape.dim[axis];
        p.dim[axis] = x->shape.dim[axis];
        p.stride[axis] = x->stride[axis];
        p.low[axis] = attrs->pad.low[axis];
        p.period[axis] = attrs->pad.interior[axis] + 1;
    }
    p.space = wefti_space_of(&whole);
    p.elements = wefti_operand_elements(y);
    p.from = run->inputs[0];
    p.to = run->outputs[0];
    wefti_store_f64(&p.fill, 0, y->dtype, attrs->pad.value);
    switch (weft_dtype_bytes(y->dtype)) {
    case 1: return launch_pad<uint8_t>(run, &p);
    case 2: return launch_pad<uint16_t>(run, &p);
    case 4: return launch_pad<uint32_t>(run, &p);
    default: return launch_pad<uint64_t>(run, &p);
    }
}
const wefti_cuda_kernel wefti_cuda_pad = {.name = "pad", .run = run_pad};

/* --- FULL and ARANGE: flat element i is start + i*step --- */

template <typename T> SCALAR T stored(double x, int dtype) {
    if constexpr (sizeof(typename wefti_wide<T>::type) != sizeof(T)) return wefti_narrow<T>((float)x);
    else return dtype == WEFT_F32 || dtype == WEFT_F64 ? (T)x : (T)s_saturate(x, dtype);
}

template <typename T>
static __global__ void __launch_bounds__(BLOCK) fill_forward_packed_kernel(T *y, int64_t elements, double start, double each, int32_t dtype) {
    const int N = wefti_pack<T>::COUNT;
    int64_t   begin = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * N;
    T         one = stored<T>(start, dtype);
    if (begin + N <= elements && wefti_is_aligned(y)) {
        wefti_pack<T> pack;
        for (int k = 0; k < N; k++) pack.element[k] = each != 0 ? stored<T>(start + (double)(begin + k) * each, dtype) : one;
        *reinterpret_cast<wefti_pack<T> *>(y + begin) = pack;
    } else {
        for (int64_t i = begin; i < begin + N && i < elements; i++) y[i] = each != 0 ? stored<T>(start + (double)i * each, dtype) : one;
    }
}

template <typename T> static weft_status launch_fill(const wefti_cuda_run *run, double start, double each) {
    int64_t elements = wefti_operand_elements(&run->call->outputs[0]);
    return wefti_cuda_launch(run, "fill", (fill_forward_packed_kernel<T>), wefti_cuda_blocks(elements, (int64_t)BLOCK * wefti_pack<T>::COUNT, 0),
                             BLOCK, 0, static_cast<T *>(run->outputs[0]), elements, start, each, (int32_t)run->call->outputs[0].dtype);
}

static weft_status run_fill(const wefti_cuda_run *run) {
    const wefti_attrs *attrs = run->call->attrs;
    bool               full = run->call->op == WEFT_OP_FULL;
    double             start = full ? attrs->full.value : attrs->arange.start, each = full ? 0 : attrs->arange.step;
    WEFTI_DISPATCH_ANY(run->call->outputs[0].dtype, return launch_fill<T>(run, start, each);)
    return WEFT_OK;
}
const wefti_cuda_kernel wefti_cuda_fill = {.name = "fill", .run = run_fill};

/* --- RANDOM --- */

/* A thread draws so many neighbours, which mostly share a block of Philox. */
enum { DRAWN = 4 };
typedef struct draw {
    wefti_space space;
    int64_t     stride[WEFT_MAX_RANK], base; /* of the index in the global tensor */
    uint64_t    key;
    const void *step;
    void       *to;
    int64_t     elements;
    int32_t     step_is_wide, dtype, normal;
} draw;

/* Number `index` of a tensor of the dtype, whose block of words is given; as core/tensor/philox.h has it. */
SCALAR double uniform(const s_words &words, uint64_t index, int dtype) {
    uint32_t word = words.word[index % 4];
    if (dtype == WEFT_F64)
        return (double)(((uint64_t)words.word[2 * (index % 2)] << 32 | words.word[2 * (index % 2) + 1]) >> 11) * 1.1102230246251565404e-16;
    if (dtype == WEFT_F16) return (word >> 21) * 4.8828125e-4;
    if (dtype == WEFT_BF16) return (word >> 24) * 3.90625e-3;
    return (word >> 8) * 5.9604644775390625e-8;
}
/* Of Box and Muller's pair, in f64: near 1 the logarithm needs more bits than f32 has. */
SCALAR double normal(const s_words &words, uint64_t index, int dtype) {
    uint64_t pair = dtype == WEFT_F64 ? 0 : index % 4 / 2 * 2;
    double   first, second;
    if (dtype == WEFT_F64) {
        first = 1 - uniform(words, 0, dtype);
        second = uniform(words, 1, dtype);
    } else {
        first = (words.word[pair] + 1.0) * 2.3283064365386962891e-10;
        second = words.word[pair + 1] * 2.3283064365386962891e-10;
    }
    double radius = sqrt(-2 * log(first)), angle = 6.283185307179586476925 * second;
    return radius * (index % 2 ? sin(angle) : cos(angle));
}

template <typename T> static __global__ void __launch_bounds__(BLOCK) random_forward_each_kernel(const draw d) {
    int64_t  begin = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * DRAWN;
    uint64_t step = d.step_is_wide ? (uint64_t)*static_cast<const int64_t *>(d.step) : (uint64_t)(int64_t)*static_cast<const int32_t *>(d.step);
    uint64_t have = ~(uint64_t)0, in_block = d.dtype == WEFT_F64 ? 2 : 4;
    s_words  words = {{0, 0, 0, 0}};
    for (int64_t i = begin; i < begin + DRAWN && i < d.elements; i++) {
        uint64_t index = (uint64_t)(d.base + wefti_place(d.space, d.stride, i));
        if (index / in_block != have) words = s_philox(d.key, step, have = index / in_block);
        double x = d.normal ? normal(words, index, d.dtype) : uniform(words, index, d.dtype);
        static_cast<T *>(d.to)[i] = stored<T>(x, d.dtype);
    }
}

static weft_status run_random(const wefti_cuda_run *run) {
    const wefti_operand *y = &run->call->outputs[0];
    const wefti_window  *window = &run->call->attrs->random.window;
    wefti_operand        index;
    const wefti_operand *only = &index;
    wefti_cuda_view_of   view;
    draw                 d;
    weft_shape           global = y->shape;
    memset(&index, 0, sizeof index);
    index.shape = y->shape;
    if (window->split) global.dim[window->axis] = window->global;
    wefti_contiguous_strides(global, index.stride);
    wefti_cuda_views(y->shape, &only, 1, &view);
    d.space = wefti_space_of(&view);
    memcpy(d.stride, view.stride, sizeof d.stride);
    d.base = window->split ? window->begin * index.stride[window->axis] : 0;
    d.key = run->call->attrs->random.key;
    d.step = run->inputs[0];
    d.to = run->outputs[0];
    d.elements = wefti_operand_elements(y);
    d.step_is_wide = run->call->inputs[0].dtype == WEFT_I64;
    d.dtype = y->dtype;
    d.normal = run->call->attrs->random.kind == WEFTI_RANDOM_NORMAL;
    unsigned blocks = wefti_cuda_blocks(d.elements, (int64_t)BLOCK * DRAWN, 0);
    WEFTI_DISPATCH_FLOAT(y->dtype, return wefti_cuda_launch(run, "random", (random_forward_each_kernel<T>), blocks, BLOCK, 0, d);)
    return WEFT_OK;
}
const wefti_cuda_kernel wefti_cuda_random = {.name = "random", .run = run_random};

/* Convolutions in two dimensions and their two gradients, for every dtype, stride, padding, dilation and number of groups.
 *
 * Each of the three is a product whose operands are looked up, not stored ("implicit gemm"; nothing is unrolled into memory): rows,
 * columns and an inner index that one of the structs below turns into elements. A group is a product of its own.
 *   forward           rows: output channels   columns: n, p, q   inner: c, i, j
 *   input gradient    rows: input channels    columns: n, h, w   inner: o, i, j
 *   weight gradient   rows: output channels   columns: c, i, j   inner: n, p, q
 * The same structs serve a kernel with tiles in shared memory, and one that gives each element a thread, for groups too narrow to fill a
 * tile and for sizes beyond 32 bits. Where there are few elements and a long inner index (weight gradients) it is cut into pieces, whose
 * sums a second pass adds in order. Cuts follow from shapes alone, and sums are chains of fma in the order of the inner index.
 * Cost: scratch for the pieces' sums, at most 64 MiB. */
#include "cuda/planes.cuh"
#include "cuda/tile.cuh"

enum { TILE = 64, THREADS = WEFTI_TILE_THREADS };
enum {
    NARROW = 8,           /* rows of a group that are not worth a tile */
    BLOCKS_WANTED = 1024, /* some for each multiprocessor */
    PIECE_LEAST = 512     /* of the inner index; shorter ones cost more to add than they gain */
};
#define PIECES_BYTES_MOST (INT64_C(64) << 20)

/* Sizes of the forward convolution, and strides of the call's two inputs and its output. */
template <typename I> struct conv {
    I       batch, height, width, out_height, out_width, kernel_height, kernel_width;
    I       in_group, out_group; /* channels of a group */
    I       stride[2], pad[2], dilation[2];
    I       a[4], b[4], o[4];
    I       rows, columns, depth; /* of the product */
    int64_t groups;
};

/* An index that counts three things, the last fastest. */
template <typename I> struct triple { I first, second, third; };
template <typename I> static __device__ __forceinline__ triple<I> split(I at, I seconds, I thirds) {
    triple<I> t;
    I         above = at / thirds;
    t.third         = at - above * thirds;
    t.first         = above / seconds;
    t.second        = above - t.first * seconds;
    return t;
}

/* Where output coordinate p looks through kernel coordinate i; false outside the plane. */
template <typename I>
static __device__ __forceinline__ bool looks_at(const conv<I> &c, int axis, I p, I i, I size, I *at_out) {
    *at_out = p * c.stride[axis] + i * c.dilation[axis] - c.pad[axis];
    return *at_out >= 0 && *at_out < size;
}
/* The output coordinate that looks at `at` through kernel coordinate i; false where there is none. */
template <typename I>
static __device__ __forceinline__ bool is_seen_by(const conv<I> &c, int axis, I at, I i, I count, I *p_out) {
    I scaled = at + c.pad[axis] - i * c.dilation[axis];
    *p_out   = scaled / c.stride[axis];
    return scaled >= 0 && *p_out * c.stride[axis] == scaled && *p_out < count;
}

template <typename I> static __device__ __forceinline__ int64_t offset4(const I *stride, I a, I b, I c, I d) {
    return static_cast<int64_t>(a * stride[0] + b * stride[1] + c * stride[2] + d * stride[3]);
}

/* Each struct: row and column states made once a thread, the inner index taken apart once an element. left(...) and right(...) give the
 * factors, 0 where padding is looked at; out(...) is where the result goes. */
template <typename T_, typename I_> struct forward {
    typedef T_ T;
    typedef I_ I;
    typedef typename wefti_wide<T>::type W;
    static __device__ __forceinline__ triple<I> inner(const conv<I> &c, I k) { return split(k, c.kernel_height, c.kernel_width); }
    static __device__ __forceinline__ triple<I> column(const conv<I> &c, I at) { return split(at, c.out_height, c.out_width); }
    static __device__ __forceinline__ W left(const conv<I> &c, const T *, const T *w, I group, I row, triple<I> k) {
        return wefti_widen(w[offset4(c.b, group * c.out_group + row, k.first, k.second, k.third)]);
    }
    static __device__ __forceinline__ W right(const conv<I> &c, const T *x, const T *, I group, triple<I> at, triple<I> k) {
        I h, v;
        bool inside = looks_at(c, 0, at.second, k.second, c.height, &h) & looks_at(c, 1, at.third, k.third, c.width, &v);
        return inside ? wefti_widen(x[offset4(c.a, at.first, group * c.in_group + k.first, h, v)]) : W(0);
    }
    static __device__ __forceinline__ int64_t out(const conv<I> &c, I group, I row, I column) {
        triple<I> at = forward::column(c, column);
        return offset4(c.o, at.first, group * c.out_group + row, at.second, at.third);
    }
};

template <typename T_, typename I_> struct backward_input {
    typedef T_ T;
    typedef I_ I;
    typedef typename wefti_wide<T>::type W;
    static __device__ __forceinline__ triple<I> inner(const conv<I> &c, I k) { return split(k, c.kernel_height, c.kernel_width); }
    static __device__ __forceinline__ triple<I> column(const conv<I> &c, I at) { return split(at, c.height, c.width); }
    static __device__ __forceinline__ W left(const conv<I> &c, const T *, const T *w, I group, I row, triple<I> k) {
        return wefti_widen(w[offset4(c.b, group * c.out_group + k.first, row, k.second, k.third)]);
    }
    static __device__ __forceinline__ W right(const conv<I> &c, const T *g, const T *, I group, triple<I> at, triple<I> k) {
        I p, q;
        bool seen = is_seen_by(c, 0, at.second, k.second, c.out_height, &p) & is_seen_by(c, 1, at.third, k.third, c.out_width, &q);
        return seen ? wefti_widen(g[offset4(c.a, at.first, group * c.out_group + k.first, p, q)]) : W(0);
    }
    static __device__ __forceinline__ int64_t out(const conv<I> &c, I group, I row, I column) {
        triple<I> at = backward_input::column(c, column);
        return offset4(c.o, at.first, group * c.in_group + row, at.second, at.third);
    }
};

template <typename T_, typename I_> struct backward_weight {
    typedef T_ T;
    typedef I_ I;
    typedef typename wefti_wide<T>::type W;
    static __device__ __forceinline__ triple<I> inner(const conv<I> &c, I k) { return split(k, c.out_height, c.out_width); }
    static __device__ __forceinline__ triple<I> column(const conv<I> &c, I at) { return split(at, c.kernel_height, c.kernel_width); }
    static __device__ __forceinline__ W left(const conv<I> &c, const T *g, const T *, I group, I row, triple<I> k) {
        return wefti_widen(g[offset4(c.a, k.first, group * c.out_group + row, k.second, k.third)]);
    }
    static __device__ __forceinline__ W right(const conv<I> &c, const T *, const T *x, I group, triple<I> at, triple<I> k) {
        I h, v;
        bool inside = looks_at(c, 0, k.second, at.second, c.height, &h) & looks_at(c, 1, k.third, at.third, c.width, &v);
        return inside ? wefti_widen(x[offset4(c.b, k.first, group * c.in_group + at.first, h, v)]) : W(0);
    }
    static __device__ __forceinline__ int64_t out(const conv<I> &c, I group, I row, I column) {
        triple<I> at = backward_weight::column(c, column);
        return offset4(c.o, group * c.out_group + row, at.first, at.second, at.third);
    }
};

/* How a product is cut: `pieces` of the inner index, `piece` long (the last may be shorter). Their sums go to `sums` [pieces, outputs],
 * straight to the result where there is one. */
struct cuts {
    int64_t tiles_down, tiles_across, pieces, piece, outputs;
};

template <typename P>
static __device__ __forceinline__ void put(const cuts &cut, int64_t piece, int64_t at, typename P::W value, typename P::T *out,
                                           typename P::W *sums) {
    if (cut.pieces == 1) out[at] = wefti_narrow<typename P::T>(value);
    else sums[piece * cut.outputs + at] = value;
}

template <typename P>
static __global__ void __launch_bounds__(THREADS)
    conv2d_all_tiles_kernel(conv<typename P::I> c, cuts cut, const typename P::T *a, const typename P::T *b, typename P::T *out,
                            typename P::W *sums) {
    typedef typename P::I I;
    typedef typename P::W W;
    enum { OWN = TILE / WEFTI_TILE_SIDE, COUNT = TILE * WEFTI_TILE_DEPTH / THREADS, STEP = THREADS / TILE };
    __shared__ alignas(16) W left[WEFTI_TILE_DEPTH][TILE + WEFTI_TILE_PAD];
    __shared__ alignas(16) W right[WEFTI_TILE_DEPTH][TILE + WEFTI_TILE_PAD];
    int64_t   block  = blockIdx.x, across = block % cut.tiles_across, down, piece;
    int       thread = static_cast<int>(threadIdx.x), line = thread % TILE, first = thread / TILE;
    int       row = thread / WEFTI_TILE_SIDE, column = thread % WEFTI_TILE_SIDE;
    W         sum[OWN][OWN], held_left[COUNT], held_right[COUNT];
    block /= cut.tiles_across;
    down  = block % cut.tiles_down, block /= cut.tiles_down;
    piece = block % cut.pieces;
    I         group = static_cast<I>(block / cut.pieces);
    I         first_row = static_cast<I>(down * TILE), first_column = static_cast<I>(across * TILE);
    I         begin = static_cast<I>(piece * cut.piece);
    I         end   = static_cast<I>(begin + cut.piece < c.depth ? begin + cut.piece : static_cast<int64_t>(c.depth));
    bool      row_inside = first_row + line < c.rows, column_inside = first_column + line < c.columns;
    triple<I> at = P::column(c, column_inside ? first_column + line : 0);
#pragma unroll
    for (int i = 0; i < OWN; i++)
#pragma unroll
        for (int j = 0; j < OWN; j++) sum[i][j] = W(0);
    for (I k = begin; k < end; k += WEFTI_TILE_DEPTH) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            I         own   = k + first + i * STEP;
            bool      there = own < end;
            triple<I> t     = P::inner(c, there ? own : 0);
            held_left[i]    = there && row_inside ? P::left(c, a, b, group, first_row + line, t) : W(0);
            held_right[i]   = there && column_inside ? P::right(c, a, b, group, at, t) : W(0);
        }
        __syncthreads(); /* nobody reads the slab before any more */
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            left[first + i * STEP][line]  = held_left[i];
            right[first + i * STEP][line] = held_right[i];
        }
        __syncthreads(); /* the slab is there */
        wefti_tile_multiply<W, TILE>(left, right, row, column, sum);
    }
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        I at_row = first_row + wefti_tile_place<W>(row, i);
#pragma unroll
        for (int j = 0; j < OWN; j++) {
            I at_column = first_column + wefti_tile_place<W>(column, j);
            if (at_row < c.rows && at_column < c.columns) put<P>(cut, piece, P::out(c, group, at_row, at_column), sum[i][j], out, sums);
        }
    }
}

template <typename P>
static __global__ void __launch_bounds__(THREADS)
    conv2d_all_element_kernel(conv<typename P::I> c, cuts cut, const typename P::T *a, const typename P::T *b, typename P::T *out,
                              typename P::W *sums) {
    typedef typename P::I I;
    typedef typename P::W W;
    int64_t flat = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (flat >= cut.outputs * cut.pieces) return;
    I       column = static_cast<I>(flat % c.columns);
    int64_t rest   = flat / c.columns;
    I       row    = static_cast<I>(rest % c.rows);
    rest /= c.rows;
    I         group = static_cast<I>(rest % c.groups);
    int64_t   piece = rest / c.groups, begin = piece * cut.piece;
    int64_t   end = begin + cut.piece < c.depth ? begin + cut.piece : static_cast<int64_t>(c.depth);
    triple<I> at  = P::column(c, column);
    W         sum = W(0);
    for (I k = static_cast<I>(begin); k < end; k++) {
        triple<I> t = P::inner(c, k);
        sum         = wefti_fma(P::left(c, a, b, group, row, t), P::right(c, a, b, group, at, t), sum);
    }
    put<P>(cut, piece, P::out(c, group, row, column), sum, out, sums);
}

/* Adds the pieces' sums, in their order. */
template <typename T, typename W>
static __global__ void __launch_bounds__(THREADS) conv2d_all_pieces_kernel(cuts cut, const W *sums, T *out) {
    int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= cut.outputs) return;
    W sum = W(0);
    for (int64_t piece = 0; piece < cut.pieces; piece++) sum += sums[piece * cut.outputs + i];
    out[i] = wefti_narrow<T>(sum);
}

/* --- launching --- */

typedef struct shapes { weft_shape x, w, y; } shapes;

static shapes shapes_of(const wefti_call *call) {
    const wefti_operand *in = call->inputs, *out = call->outputs;
    switch (call->op) {
    case WEFT_OP_CONV2D_BACKWARD_INPUT: return {out[0].shape, in[1].shape, in[0].shape};
    case WEFT_OP_CONV2D_BACKWARD_WEIGHT: return {in[1].shape, out[0].shape, in[0].shape};
    default: return {in[0].shape, in[1].shape, out[0].shape};
    }
}

template <typename I> static conv<I> conv_of(const wefti_call *call) {
    shapes             s     = shapes_of(call);
    const wefti_attrs *attrs = call->attrs;
    conv<I>            c     = {};
    c.batch = (I)s.x.dim[0], c.height = (I)s.x.dim[2], c.width = (I)s.x.dim[3];
    c.out_height = (I)s.y.dim[2], c.out_width = (I)s.y.dim[3];
    c.kernel_height = (I)s.w.dim[2], c.kernel_width = (I)s.w.dim[3];
    c.groups    = attrs->conv.groups > 0 ? attrs->conv.groups : 1;
    c.in_group  = (I)s.w.dim[1];
    c.out_group = (I)(s.w.dim[0] / c.groups);
    for (int axis = 0; axis < 2; axis++) {
        c.stride[axis]   = (I)(attrs->conv.stride[axis] > 0 ? attrs->conv.stride[axis] : 1);
        c.dilation[axis] = (I)(attrs->conv.dilation[axis] > 0 ? attrs->conv.dilation[axis] : 1);
        c.pad[axis]      = (I)attrs->conv.pad[2 * axis];
    }
    for (int axis = 0; axis < 4; axis++) c.a[axis] = (I)call->inputs[0].stride[axis], c.b[axis] = (I)call->inputs[1].stride[axis], c.o[axis] = (I)call->outputs[0].stride[axis];
    I kernel = c.kernel_height * c.kernel_width, outputs = c.batch * c.out_height * c.out_width;
    bool to_input = call->op == WEFT_OP_CONV2D_BACKWARD_INPUT, to_weight = call->op == WEFT_OP_CONV2D_BACKWARD_WEIGHT;
    c.rows    = to_input ? c.in_group : c.out_group;
    c.columns = to_input ? c.batch * c.height * c.width : to_weight ? c.in_group * kernel : outputs;
    c.depth   = to_input ? c.out_group * kernel : to_weight ? outputs : c.in_group * kernel;
    return c;
}

/* The largest of the convolution's own numbers, for the choice of I. */
static int64_t reach_of(const wefti_call *call) {
    shapes             s     = shapes_of(call);
    const wefti_attrs *attrs = call->attrs;
    int64_t            reach = 1;
    for (int axis = 0; axis < 2; axis++) {
        int64_t down = s.y.dim[2 + axis] * wefti_max_i64(1, attrs->conv.stride[axis]);
        int64_t wide = s.w.dim[2 + axis] * wefti_max_i64(1, attrs->conv.dilation[axis]);
        reach        = wefti_max_i64(reach, wefti_max_i64(down + wide, attrs->conv.pad[2 * axis]));
    }
    reach = wefti_max_i64(reach, s.x.dim[0] * s.x.dim[2] * s.x.dim[3]);
    return wefti_max_i64(reach, s.y.dim[0] * s.y.dim[2] * s.y.dim[3]);
}

/* Whether tiles compute the call; else a thread an element. */
static bool is_tiled(const wefti_call *call) {
    if (!wefti_planes_fit_32(call, reach_of(call))) return false;
    conv<int64_t> c = conv_of<int64_t>(call);
    return c.rows >= NARROW;
}

static cuts cuts_of(const wefti_call *call) {
    conv<int64_t> c    = conv_of<int64_t>(call);
    cuts          cut  = {};
    int64_t       wide = call->outputs[0].dtype == WEFT_F64 ? 8 : 4;
    cut.outputs        = wefti_operand_elements(&call->outputs[0]);
    cut.tiles_down     = (c.rows + TILE - 1) / TILE;
    cut.tiles_across   = (c.columns + TILE - 1) / TILE;
    int64_t blocks     = is_tiled(call) ? cut.tiles_down * cut.tiles_across * c.groups : (cut.outputs + THREADS - 1) / THREADS;
    cut.pieces         = wefti_min_i64(BLOCKS_WANTED / wefti_max_i64(1, blocks), c.depth / PIECE_LEAST);
    cut.pieces         = wefti_min_i64(cut.pieces, PIECES_BYTES_MOST / (wefti_max_i64(1, cut.outputs) * wide));
    cut.pieces         = wefti_max_i64(1, cut.pieces);
    cut.piece          = (c.depth + cut.pieces - 1) / cut.pieces;
    return cut;
}

static int64_t scratch(const wefti_cuda *cuda, const wefti_call *call) {
    cuts cut = cuts_of(call);
    (void)cuda;
    return cut.pieces == 1 ? 0 : cut.pieces * cut.outputs * (call->outputs[0].dtype == WEFT_F64 ? 8 : 4);
}

template <typename P> static weft_status run_one(const wefti_cuda_run *run, bool tiled) {
    typedef typename P::T T;
    typedef typename P::W W;
    conv<typename P::I> c   = conv_of<typename P::I>(run->call);
    cuts                cut = cuts_of(run->call);
    const T            *a = (const T *)run->inputs[0], *b = (const T *)run->inputs[1];
    T                  *out    = (T *)run->outputs[0];
    W                  *sums   = (W *)run->scratch;
    int64_t             blocks = tiled ? cut.tiles_down * cut.tiles_across * cut.pieces * c.groups
                                       : (cut.outputs * cut.pieces + THREADS - 1) / THREADS;
    if (blocks > 0x7fffffff)
        return wefti_fail(WEFT_E_UNSUPPORTED, "%lld elements are more than a grid takes", (long long)cut.outputs);
    dim3        grid((unsigned)blocks);
    weft_status status;
    if (tiled) status = wefti_cuda_launch(run, "conv2d tiles", (conv2d_all_tiles_kernel<P>), grid, dim3(THREADS), 0, c, cut, a, b, out, sums);
    else status = wefti_cuda_launch(run, "conv2d", (conv2d_all_element_kernel<P>), grid, dim3(THREADS), 0, c, cut, a, b, out, sums);
    if (status != WEFT_OK || cut.pieces == 1) return status;
    return wefti_cuda_launch(run, "conv2d pieces", (conv2d_all_pieces_kernel<T, W>), dim3(wefti_cuda_blocks(cut.outputs, THREADS, 0)),
                             dim3(THREADS), 0, cut, (const W *)sums, out);
}

template <template <typename, typename> class P> static weft_status run_as(const wefti_cuda_run *run) {
    bool small = wefti_planes_fit_32(run->call, reach_of(run->call));
    WEFTI_DISPATCH_FLOAT(run->call->outputs[0].dtype, {
        return small ? run_one<P<T, int32_t>>(run, is_tiled(run->call)) : run_one<P<T, int64_t>>(run, false);
    })
    return WEFT_OK;
}

static weft_status run_forward(const wefti_cuda_run *run) { return run_as<forward>(run); }
static weft_status run_backward_input(const wefti_cuda_run *run) { return run_as<backward_input>(run); }
static weft_status run_backward_weight(const wefti_cuda_run *run) { return run_as<backward_weight>(run); }

extern "C" {
const wefti_cuda_kernel wefti_cuda_conv2d                 = {.name = "conv2d", .scratch = scratch, .run = run_forward};
const wefti_cuda_kernel wefti_cuda_conv2d_backward_input  = {.name = "conv2d input gradient", .scratch = scratch, .run = run_backward_input};
const wefti_cuda_kernel wefti_cuda_conv2d_backward_weight = {.name = "conv2d weight gradient", .scratch = scratch, .run = run_backward_weight};
}

/* EXPERT_MATMUL, its gradient and OCCURRENCE: what belongs to an expert, listed and multiplied by tiles of our own.
 *
 * Rows are first listed by the expert that they chose, in their order: a block for each expert goes through the whole index and keeps what is
 * its own by a scan over the threads, so nothing depends on who is first. Two passes (count, then place), each of experts * rows reads
 * of four or eight bytes, little beside the product. The product's blocks are tiles of 64 x 64 (tile.cuh) over the listed rows; which expert a
 * block is for it finds by counting tiles, and blocks beyond the last tile end at once, since only the device knows how many there are. The
 * gradient's inner index is an expert's rows in their order. Every element is one chain of fma, so bits follow from operands alone.
 * Cost: scratch of 4 bytes a row and 8 an expert. */
#include "cuda/kernel.cuh"
#include "cuda/tile.cuh"

enum { BLOCK = 256, TILE = 64 /* a thread owns 4 x 4 */ };

/* An index with its stride, of i32 or i64. */
typedef struct choice {
    const void *data;
    bool        wide;
    int64_t     n, experts;
    int64_t     columns, row_stride, column_stride; /* OCCURRENCE: element i is row i % rows of column i / rows */
} choice;

/* The expert of element i; `experts` for none. */
static __device__ __forceinline__ int64_t chosen(const choice &c, int64_t i) {
    int64_t at = c.columns == 1 ? i * c.row_stride : i % (c.n / c.columns) * c.row_stride + i / (c.n / c.columns) * c.column_stride;
    int64_t e  = c.wide ? static_cast<const int64_t *>(c.data)[at] : static_cast<const int32_t *>(c.data)[at];
    return e >= 0 && e < c.experts ? e : c.experts;
}

/* How many of the threads before this one say yes, and in *all_out of all: every thread of the block calls. */
static __device__ __forceinline__ int32_t before_me(int32_t *shared, bool yes, int32_t *all_out) {
    shared[threadIdx.x] = yes;
    __syncthreads();
    for (int32_t width = 1; width < BLOCK; width *= 2) {
        int32_t before = (int32_t)threadIdx.x >= width ? shared[threadIdx.x - width] : 0;
        __syncthreads();
        shared[threadIdx.x] += before;
        __syncthreads();
    }
    int32_t upto = shared[threadIdx.x];
    *all_out     = shared[BLOCK - 1];
    __syncthreads(); /* nobody reads it any more */
    return upto - yes;
}

static __global__ void __launch_bounds__(BLOCK) expert_forward_count_kernel(const choice c, int32_t *counts) {
    __shared__ int32_t shared[BLOCK];
    int32_t            own = 0, all;
    for (int64_t i = threadIdx.x; i < c.n; i += BLOCK) own += chosen(c, i) == (int64_t)blockIdx.x;
    shared[threadIdx.x] = own;
    __syncthreads();
    for (int32_t width = BLOCK / 2; width > 0; width /= 2) {
        if ((int32_t)threadIdx.x < width) shared[threadIdx.x] += shared[threadIdx.x + width];
        __syncthreads();
    }
    all = shared[0];
    if (threadIdx.x == 0) counts[blockIdx.x] = all;
}

/* first[e]: of all experts before e, and at the end of all. One thread: experts are few beside rows. */
static __global__ void expert_forward_first_kernel(const int32_t *counts, int64_t experts, int32_t *first) {
    int32_t sum = 0;
    for (int64_t e = 0; e < experts; e++) {
        first[e] = sum;
        sum += counts[e];
    }
    first[experts] = sum;
}

/* Goes through the index a block's width at a time. With `places` writes how many of the same came before; else the list. */
static __global__ void __launch_bounds__(BLOCK) expert_forward_list_kernel(const choice c, const int32_t *first, int32_t *order, int32_t *places) {
    __shared__ int32_t shared[BLOCK];
    int64_t            rows = c.n / c.columns;
    int32_t            at = order ? first[blockIdx.x] : 0;
    for (int64_t begin = 0; begin < c.n; begin += BLOCK) {
        int64_t i = begin + threadIdx.x;
        int32_t all;
        bool    mine = i < c.n && chosen(c, i) == (int64_t)blockIdx.x;
        int32_t place = at + before_me(shared, mine, &all);
        if (mine && order) order[place] = (int32_t)i;
        if (mine && places) places[i % rows * c.columns + i / rows] = blockIdx.x == c.experts ? -1 : place;
        at += all;
    }
}

typedef struct matrices {
    const void    *x, *other; /* x [rows, in]; forward: w; backward: g [rows * repeat, out] */
    void          *result;
    const int32_t *first, *order;
    int64_t        experts, repeat, in, out, rows;
    int64_t        x_row, x_column, other_row, other_column; /* strides; of an expert's matrix: along in, along out */
    int64_t        other_matrix;
    int64_t        height, width; /* backward: of a matrix of the result */
    bool           trans;
} matrices;

/* The expert and the first of its rows that this row of tiles is for; false: there is none left. */
static __device__ __forceinline__ bool find_tile(const matrices &m, int64_t tile, int64_t *expert_out, int64_t *begin_out) {
    for (int64_t e = 0; e < m.experts; e++) {
        int64_t tiles = (m.first[e + 1] - m.first[e] + TILE - 1) / TILE;
        if (tile < tiles) {
            *expert_out = e;
            *begin_out  = m.first[e] + tile * TILE;
            return true;
        }
        tile -= tiles;
    }
    return false;
}

template <typename W> static __device__ __forceinline__ void clear(W (*sum)[TILE / WEFTI_TILE_SIDE]) {
#pragma unroll
    for (int i = 0; i < TILE / WEFTI_TILE_SIDE; i++)
#pragma unroll
        for (int j = 0; j < TILE / WEFTI_TILE_SIDE; j++) sum[i][j] = W(0);
}

template <typename T> static __global__ void __launch_bounds__(WEFTI_TILE_THREADS) expert_matmul_forward_tiles_kernel(const matrices m, int64_t columns) {
    typedef typename wefti_wide<T>::type W;
    enum { OWN = TILE / WEFTI_TILE_SIDE };
    __shared__ alignas(16) W left[WEFTI_TILE_DEPTH][TILE + WEFTI_TILE_PAD];
    __shared__ alignas(16) W right[WEFTI_TILE_DEPTH][TILE + WEFTI_TILE_PAD];
    int     row = (int)threadIdx.x / WEFTI_TILE_SIDE, column = (int)threadIdx.x % WEFTI_TILE_SIDE;
    int64_t e = 0, begin = 0, first_column = blockIdx.x % columns * TILE;
    W       sum[OWN][OWN];
    if (!find_tile(m, blockIdx.x / columns, &e, &begin)) return;
    int64_t  end = m.first[e + 1];
    const T *x = static_cast<const T *>(m.x), *w = static_cast<const T *>(m.other) + e * m.other_matrix;
    clear<W>(sum);
    for (int64_t k = 0; k < m.in; k += WEFTI_TILE_DEPTH) {
        for (int32_t i = (int32_t)threadIdx.x; i < TILE * WEFTI_TILE_DEPTH; i += WEFTI_TILE_THREADS) {
            int64_t deep = k + i % WEFTI_TILE_DEPTH, at = begin + i / WEFTI_TILE_DEPTH; /* x: neighbours read along a row */
            left[i % WEFTI_TILE_DEPTH][i / WEFTI_TILE_DEPTH] =
                deep < m.in && at < end ? wefti_widen(x[m.order[at] / m.repeat * m.x_row + deep * m.x_column]) : W(0);
            int32_t inner = m.trans ? i % WEFTI_TILE_DEPTH : i / TILE, outer = m.trans ? i / WEFTI_TILE_DEPTH : i % TILE;
            right[inner][outer] = k + inner < m.in && first_column + outer < m.out
                                      ? wefti_widen(w[(k + inner) * m.other_row + (first_column + outer) * m.other_column])
                                      : W(0);
        }
        __syncthreads(); /* the slabs are there */
        wefti_tile_multiply<W, TILE>(left, right, row, column, sum);
        __syncthreads(); /* nobody reads them any more */
    }
    T *out = static_cast<T *>(m.result);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        int64_t at = begin + wefti_tile_place<W>(row, i);
#pragma unroll
        for (int j = 0; j < OWN; j++) {
            int64_t o = first_column + wefti_tile_place<W>(column, j);
            if (at < end && o < m.out) out[m.order[at] * m.out + o] = wefti_narrow<T>(sum[i][j]);
        }
    }
}

/* Rows without an expert. */
template <typename T> static __global__ void __launch_bounds__(BLOCK) expert_matmul_forward_zero_kernel(const choice c, T *out, int64_t width) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < c.n * width && chosen(c, i / width) == c.experts) out[i] = wefti_narrow<T>(typename wefti_wide<T>::type(0));
}

template <typename T> static __global__ void __launch_bounds__(WEFTI_TILE_THREADS) expert_matmul_backward_weight_tiles_kernel(const matrices m, int64_t columns, int64_t tiles) {
    typedef typename wefti_wide<T>::type W;
    enum { OWN = TILE / WEFTI_TILE_SIDE };
    __shared__ alignas(16) W left[WEFTI_TILE_DEPTH][TILE + WEFTI_TILE_PAD];
    __shared__ alignas(16) W right[WEFTI_TILE_DEPTH][TILE + WEFTI_TILE_PAD];
    int      row = (int)threadIdx.x / WEFTI_TILE_SIDE, column = (int)threadIdx.x % WEFTI_TILE_SIDE;
    int64_t  e = blockIdx.x / tiles, tile = blockIdx.x % tiles, first_row = tile / columns * TILE, first_column = tile % columns * TILE;
    const T *x = static_cast<const T *>(m.x), *g = static_cast<const T *>(m.other);
    W        sum[OWN][OWN];
    clear<W>(sum);
    for (int64_t k = m.first[e]; k < m.first[e + 1]; k += WEFTI_TILE_DEPTH) {
        for (int32_t i = (int32_t)threadIdx.x; i < TILE * WEFTI_TILE_DEPTH; i += WEFTI_TILE_THREADS) {
            int64_t deep = k + i / TILE, across = i % TILE, of_x = (m.trans ? first_column : first_row) + across,
                    of_g = (m.trans ? first_row : first_column) + across;
            bool    there = deep < m.first[e + 1];
            int64_t at = there ? m.order[deep] : 0;
            W       from_x = there && of_x < m.in ? wefti_widen(x[at / m.repeat * m.x_row + of_x * m.x_column]) : W(0);
            W       from_g = there && of_g < m.out ? wefti_widen(g[at * m.other_row + of_g * m.other_column]) : W(0);
            left[i / TILE][across]  = m.trans ? from_g : from_x;
            right[i / TILE][across] = m.trans ? from_x : from_g;
        }
        __syncthreads(); /* the slabs are there */
        wefti_tile_multiply<W, TILE>(left, right, row, column, sum);
        __syncthreads(); /* nobody reads them any more */
    }
    T *out = static_cast<T *>(m.result) + e * m.height * m.width;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        int64_t r = first_row + wefti_tile_place<W>(row, i);
#pragma unroll
        for (int j = 0; j < OWN; j++) {
            int64_t o = first_column + wefti_tile_place<W>(column, j);
            if (r < m.height && o < m.width) out[r * m.width + o] = wefti_narrow<T>(sum[i][j]);
        }
    }
}

/* --- launching --- */

static choice choice_of(const wefti_cuda_run *run, int32_t input, int64_t experts) {
    const wefti_operand *index = &run->call->inputs[input];
    choice               c = {};
    c.data       = run->inputs[input];
    c.wide       = index->dtype == WEFT_I64;
    c.n          = wefti_operand_elements(index);
    c.experts    = experts;
    c.columns    = index->shape.rank == 2 ? index->shape.dim[1] : 1;
    c.row_stride = index->stride[0];
    c.column_stride = index->shape.rank == 2 ? index->stride[1] : 0;
    return c;
}

static bool is_backward(const wefti_call *call) { return call->op == WEFT_OP_EXPERT_MATMUL_BACKWARD_WEIGHT; }
static int64_t experts_of(const wefti_call *call) { return (is_backward(call) ? &call->outputs[0] : &call->inputs[1])->shape.dim[0]; }

static int64_t scratch(const wefti_cuda *, const wefti_call *call) {
    return (wefti_operand_elements(&call->inputs[2]) + 2 * (experts_of(call) + 1)) * (int64_t)sizeof(int32_t);
}

static weft_status list_rows(const wefti_cuda_run *run, matrices *m, const choice &c) {
    int32_t *first = static_cast<int32_t *>(run->scratch), *counts = first + c.experts + 1, *order = counts + c.experts + 1;
    m->first = first;
    m->order = order;
    WEFTI_TRY(wefti_cuda_launch(run, "expert rows", expert_forward_count_kernel, (unsigned)c.experts, BLOCK, 0, c, counts));
    WEFTI_TRY(wefti_cuda_launch(run, "expert rows", expert_forward_first_kernel, 1, 1, 0, (const int32_t *)counts, c.experts, first));
    return wefti_cuda_launch(run, "expert rows", expert_forward_list_kernel, (unsigned)c.experts, BLOCK, 0, c, (const int32_t *)first, order,
                             (int32_t *)NULL);
}

static matrices matrices_of(const wefti_cuda_run *run) {
    const wefti_call    *call = run->call;
    const wefti_operand *x = &call->inputs[0], *other = &call->inputs[1];
    matrices             m = {};
    m.x       = run->inputs[0];
    m.other   = run->inputs[1];
    m.result  = run->outputs[0];
    m.experts = experts_of(call);
    m.repeat  = call->attrs->expert.repeat;
    m.trans   = call->attrs->expert.trans;
    m.in      = x->shape.dim[1];
    m.out     = (is_backward(call) ? other : &call->outputs[0])->shape.dim[1];
    m.rows    = wefti_operand_elements(&call->inputs[2]);
    m.x_row   = x->stride[0];
    m.x_column = x->stride[1];
    if (is_backward(call)) {
        m.other_row    = other->stride[0];
        m.other_column = other->stride[1];
    } else {
        m.other_matrix = other->stride[0];
        m.other_row    = other->stride[m.trans ? 2 : 1];
        m.other_column = other->stride[m.trans ? 1 : 2];
    }
    m.height = m.trans ? m.out : m.in;
    m.width  = m.trans ? m.in : m.out;
    return m;
}

template <typename T> static weft_status multiply(const wefti_cuda_run *run, const matrices &m, const choice &c) {
    int64_t columns = (m.out + TILE - 1) / TILE, tiles = (m.rows + TILE - 1) / TILE + (m.experts < m.rows ? m.experts : m.rows);
    WEFTI_TRY(wefti_cuda_launch(run, "expert-matmul", expert_matmul_forward_zero_kernel<T>, wefti_cuda_blocks(c.n * m.out, BLOCK, 0), BLOCK, 0, c,
                                static_cast<T *>(m.result), m.out));
    if (m.experts == 0) return WEFT_OK;
    return wefti_cuda_launch(run, "expert-matmul", expert_matmul_forward_tiles_kernel<T>, wefti_cuda_blocks(tiles * columns, 1, 0), WEFTI_TILE_THREADS, 0, m,
                             columns);
}

template <typename T> static weft_status add_up(const wefti_cuda_run *run, const matrices &m) {
    int64_t columns = (m.width + TILE - 1) / TILE, tiles = (m.height + TILE - 1) / TILE * columns;
    return wefti_cuda_launch(run, "expert-matmul-backward-weight", expert_matmul_backward_weight_tiles_kernel<T>, wefti_cuda_blocks(tiles * m.experts, 1, 0),
                             WEFTI_TILE_THREADS, 0, m, columns, tiles);
}

static weft_status run_expert(const wefti_cuda_run *run) {
    matrices m = matrices_of(run);
    choice   c = choice_of(run, 2, m.experts);
    if (c.n > 0x7fffffff || m.experts > 0x7fffffff) return wefti_fail(WEFT_E_UNSUPPORTED, "%lld rows are too many for one launch", (long long)c.n);
    if (m.experts > 0) WEFTI_TRY(list_rows(run, &m, c));
    WEFTI_DISPATCH_FLOAT(run->call->outputs[0].dtype, return is_backward(run->call) ? add_up<T>(run, m) : multiply<T>(run, m, c);)
    return WEFT_OK;
}

static weft_status run_occurrence(const wefti_cuda_run *run) {
    choice c = choice_of(run, 0, run->call->attrs->expert.experts);
    return wefti_cuda_launch(run, "occurrence", expert_forward_list_kernel, (unsigned)(c.experts + 1), BLOCK, 0, c, (const int32_t *)NULL, (int32_t *)NULL,
                             static_cast<int32_t *>(run->outputs[0]));
}

extern "C" const wefti_cuda_kernel wefti_cuda_occurrence = {.name = "occurrence", .run = run_occurrence};
extern "C" const wefti_cuda_kernel wefti_cuda_expert_matmul = {.name = "expert-matmul", .scratch = scratch, .run = run_expert};
extern "C" const wefti_cuda_kernel wefti_cuda_expert_matmul_backward_weight = {.name = "expert-matmul-backward-weight", .scratch = scratch, .run = run_expert};

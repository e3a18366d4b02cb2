/* ATTENTION and its gradient for any dtype, sizes and strides: blocks of queries against blocks of keys (Dao et al. 2022).
 *
 * Idea: a block of 256 threads owns 64 rows and goes over the other side tile by tile: the tile of scores is one product, through shared
 * memory, in registers; the softmax runs over it with a running maximum and sum; then it is one factor of the next product. Backward one
 * kernel owns queries (dq), another keys (dk, dv): nothing is added atomically, so every sum has one order.
 * Each block makes 64 columns of its result; wider results take more blocks, each of which computes the scores anew. So depths have no
 * bound. Causal blocks skip what no row of theirs sees.
 * Cost: T*S products of depths, recomputed; memory for g.o, one number a query, backward. */
#include "cuda/attention.h"
#include "cuda/kernel.cuh"

/* 16 x 16 threads, each with 4 rows and as many columns as there are 16ths: registers for 4 x 4 sums and no more. */
enum { ATTENTION_THREADS = 256, ATTENTION_ROWS = 64, ATTENTION_COLUMNS = 64, ATTENTION_CHUNK = 16, ATTENTION_PAD = 4 };

static __device__ __forceinline__ float  attention_exp(float x) { return expf(x); }
static __device__ __forceinline__ double attention_exp(double x) { return exp(x); }
static __device__ __forceinline__ float  attention_log(float x) { return logf(x); }
static __device__ __forceinline__ double attention_log(double x) { return log(x); }
static __device__ __forceinline__ float  attention_fma(float a, float b, float c) { return fmaf(a, b, c); }
static __device__ __forceinline__ double attention_fma(double a, double b, double c) { return fma(a, b, c); }

/* Shared memory holds 48 KB without asking: f64 takes half as many columns a tile. */
template <typename W> struct attention_tile { static constexpr int ACROSS = 64; };
template <> struct attention_tile<double> { static constexpr int ACROSS = 32; };

template <typename W> struct attention_room {
    static constexpr int ACROSS = attention_tile<W>::ACROSS, EACH = ACROSS / 16; /* columns of a tile of scores; of one thread */
    W own[ATTENTION_CHUNK][ATTENTION_ROWS + ATTENTION_PAD];
    W other[ATTENTION_CHUNK][ACROSS + ATTENTION_PAD];
    W values[ATTENTION_CHUNK][ATTENTION_COLUMNS + ATTENTION_PAD];
    W weights[ATTENTION_ROWS][ACROSS + 1];
};

/* A matrix in memory: `count` rows from `row` on are there. */
template <typename T> struct attention_matrix {
    const T *data;
    int64_t  row_stride, stride;
    int      count;
};
template <typename T>
static __device__ __forceinline__ attention_matrix<T> attention_rows(const T *data, const int64_t *stride, int64_t b, int64_t h,
                                                                     int64_t row, int64_t count) {
    attention_matrix<T> m;
    m.data = data + b * stride[0] + h * stride[1] + row * stride[2];
    m.row_stride = stride[2], m.stride = stride[3], m.count = (int)count;
    return m;
}

/* score[a][e] = row 4*y+a of `own` times row EACH*x+e of `other`, over `depth`; rows that are not there count as zero. */
template <typename T, typename W>
static __device__ __forceinline__ void attention_scores(W (&score)[4][attention_room<W>::EACH], const attention_matrix<T> &own,
                                                        const attention_matrix<T> &other, int64_t depth, attention_room<W> *room) {
    constexpr int ACROSS = attention_room<W>::ACROSS, EACH = attention_room<W>::EACH;
    const int     x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
    for (int a = 0; a < 4; a++)
#pragma unroll
        for (int e = 0; e < EACH; e++) score[a][e] = 0;
    for (int64_t d = 0; d < depth; d += ATTENTION_CHUNK) {
        __syncthreads();
        for (int i = threadIdx.x; i < ATTENTION_CHUNK * ATTENTION_ROWS; i += ATTENTION_THREADS) {
            int row = i / ATTENTION_CHUNK, at = i % ATTENTION_CHUNK;
            bool there = row < own.count && d + at < depth;
            room->own[at][row] = there ? wefti_widen(own.data[row * own.row_stride + (d + at) * own.stride]) : (W)0;
        }
        for (int i = threadIdx.x; i < ATTENTION_CHUNK * ACROSS; i += ATTENTION_THREADS) {
            int row = i / ATTENTION_CHUNK, at = i % ATTENTION_CHUNK;
            bool there = row < other.count && d + at < depth;
            room->other[at][row] = there ? wefti_widen(other.data[row * other.row_stride + (d + at) * other.stride]) : (W)0;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < ATTENTION_CHUNK; k++)
#pragma unroll
            for (int a = 0; a < 4; a++)
#pragma unroll
                for (int e = 0; e < EACH; e++)
                    score[a][e] = attention_fma(room->own[k][4 * y + a], room->other[k][EACH * x + e], score[a][e]);
    }
}

/* Puts a tile where attention_gather reads it. */
template <typename W>
static __device__ __forceinline__ void attention_weigh(const W (&weight)[4][attention_room<W>::EACH], attention_room<W> *room) {
    constexpr int EACH = attention_room<W>::EACH;
    const int     x = threadIdx.x % 16, y = threadIdx.x / 16;
    __syncthreads(); /* what was there has been read */
#pragma unroll
    for (int a = 0; a < 4; a++)
#pragma unroll
        for (int e = 0; e < EACH; e++) room->weights[4 * y + a][EACH * x + e] = weight[a][e];
}

/* sum[a][c] += weights of row 4*y+a times column 4*x+c, from `first` on, of `from`, which has `width` columns. */
template <typename T, typename W>
static __device__ __forceinline__ void attention_gather(W (&sum)[4][4], const attention_matrix<T> &from, int64_t first, int64_t width,
                                                        attention_room<W> *room) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    for (int j = 0; j < from.count; j += ATTENTION_CHUNK) {
        __syncthreads();
        for (int i = threadIdx.x; i < ATTENTION_CHUNK * ATTENTION_COLUMNS; i += ATTENTION_THREADS) {
            int row = i / ATTENTION_COLUMNS, at = i % ATTENTION_COLUMNS;
            bool there = j + row < from.count && first + at < width;
            room->values[row][at] = there ? wefti_widen(from.data[(j + row) * from.row_stride + (first + at) * from.stride]) : (W)0;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < ATTENTION_CHUNK; k++)
#pragma unroll
            for (int a = 0; a < 4; a++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    sum[a][c] = attention_fma(room->weights[4 * y + a][j + k], room->values[k][4 * x + c], sum[a][c]);
    }
}

/* Over the 16 threads of a row, which are neighbours in a warp. */
template <typename W> static __device__ __forceinline__ W attention_most(W v) {
#pragma unroll
    for (int distance = 8; distance > 0; distance /= 2) v = fmax(v, __shfl_xor_sync(0xffffffffu, v, distance));
    return v;
}
template <typename W> static __device__ __forceinline__ W attention_sum(W v) {
#pragma unroll
    for (int distance = 8; distance > 0; distance /= 2) v += __shfl_xor_sync(0xffffffffu, v, distance);
    return v;
}

typedef struct attention_plan {
    wefti_cuda_heads is;
    int64_t          q[4], k[4], v[4], g[4], o[4], lse[3]; /* strides */
    wefti_cuda_heads_out out[3];
    int64_t          blocks, chunks; /* of the rows that a kernel owns; of the columns of its result */
} attention_plan;

/* Keys that query t sees: causal aligns the last query with the last key, but for the shift. */
static __device__ __forceinline__ int64_t attention_visible(const wefti_cuda_heads &is, int64_t t) {
    int64_t seen = t + 1 + is.keys - is.queries + is.shift;
    return !is.causal || seen > is.keys ? is.keys : seen < 0 ? 0 : seen;
}

/* Which work a block has: the last blocks of rows come first, since they see most. */
struct attention_place {
    int64_t b, h, first, count, column;
    __device__ __forceinline__ attention_place(const attention_plan &plan, int64_t heads, int64_t rows) {
        int64_t index = blockIdx.x;
        first = (plan.blocks - 1 - index % plan.blocks) * ATTENTION_ROWS, index /= plan.blocks;
        column = index % plan.chunks * ATTENTION_COLUMNS, index /= plan.chunks;
        h = index % heads, b = index / heads;
        count = rows - first < ATTENTION_ROWS ? rows - first : (int64_t)ATTENTION_ROWS;
    }
};

/* Writes the thread's 4 x 4 sums, each row times its factor, into a result from a row on. */
template <typename T, typename W>
static __device__ __forceinline__ void attention_store(T *to, const wefti_cuda_heads_out &out, int64_t b, int64_t h, int64_t first,
                                                       const W (&sum)[4][4], const W (&factor)[4], int64_t count, int64_t column, int64_t width) {
    to += out.first + b * out.batch + h * out.head + first * out.row;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
    for (int a = 0; a < 4; a++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            if (4 * y + a < count && column + 4 * x + c < width)
                to[(4 * y + a) * out.row + column + 4 * x + c] = wefti_narrow<T>(sum[a][c] * factor[a]);
}

template <typename T, typename W = typename wefti_wide<T>::type>
static __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_forward_tiles_kernel(const T *q, const T *k, const T *v, T *o, W *lse, const attention_plan plan) {
    constexpr int ACROSS = attention_room<W>::ACROSS, EACH = attention_room<W>::EACH;
    __shared__ attention_room<W> room;
    const wefti_cuda_heads &is = plan.is;
    const attention_place   at(plan, is.heads, is.queries);
    const int               x = threadIdx.x % 16, y = threadIdx.x / 16;
    const int64_t           head = at.h / (is.heads / is.key_heads), end = attention_visible(is, at.first + at.count - 1);
    const auto              own = attention_rows(q, plan.q, at.b, at.h, at.first, at.count);
    W                       sum[4][4] = {}, most[4], total[4], score[4][EACH];
#pragma unroll
    for (int a = 0; a < 4; a++) most[a] = -INFINITY, total[a] = 0;
    for (int64_t key = 0; key < end; key += ACROSS) {
        const int64_t columns = is.keys - key < ACROSS ? is.keys - key : ACROSS;
        attention_scores(score, own, attention_rows(k, plan.k, at.b, head, key, columns), is.depth, &room);
#pragma unroll
        for (int a = 0; a < 4; a++) {
            const int64_t seen = attention_visible(is, at.first + 4 * y + a) - key;
            W             old = most[a], some = 0;
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                score[a][e] = EACH * x + e < seen ? score[a][e] * (W)is.scale : (W)-INFINITY;
                most[a] = fmax(most[a], score[a][e]);
            }
            most[a] = attention_most(most[a]);
            const W shift = most[a] == -INFINITY ? (W)0 : most[a], shrink = attention_exp(old - shift);
#pragma unroll
            for (int e = 0; e < EACH; e++) some += score[a][e] = attention_exp(score[a][e] - shift);
            total[a] = total[a] * shrink + attention_sum(some);
#pragma unroll
            for (int c = 0; c < 4; c++) sum[a][c] *= shrink;
        }
        attention_weigh(score, &room);
        attention_gather(sum, attention_rows(v, plan.v, at.b, head, key, columns), at.column, is.value_depth, &room);
    }
    const int64_t row = (at.b * is.heads + at.h) * is.queries + at.first;
    W             factor[4];
#pragma unroll
    for (int a = 0; a < 4; a++) factor[a] = total[a] == 0 ? (W)0 : 1 / total[a];
    attention_store(o, plan.out[0], at.b, at.h, at.first, sum, factor, at.count, at.column, is.value_depth);
    for (int a = 0; a < 4; a++)
        if (x == 0 && at.column == 0 && 4 * y + a < at.count) lse[row + 4 * y + a] = most[a] + attention_log(total[a]);
}

/* delta = g . o, a query a warp */
template <typename T, typename W = typename wefti_wide<T>::type>
static __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_backward_delta_kernel(const T *g, const T *o, W *delta, const attention_plan plan) {
    const wefti_cuda_heads &is = plan.is;
    const int               lane = threadIdx.x % 32;
    const int64_t           row = (int64_t)blockIdx.x * (ATTENTION_THREADS / 32) + threadIdx.x / 32;
    if (row >= is.batch * is.heads * is.queries) return;
    const int64_t t = row % is.queries, h = row / is.queries % is.heads, b = row / is.queries / is.heads;
    const auto    left = attention_rows(g, plan.g, b, h, t, 1), right = attention_rows(o, plan.o, b, h, t, 1);
    W             sum = 0;
    for (int64_t d = lane; d < is.value_depth; d += 32)
        sum = attention_fma(wefti_widen(left.data[d * left.stride]), wefti_widen(right.data[d * right.stride]), sum);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    if (lane == 0) delta[row] = sum;
}

/* Turns scores into weights p, and products dp = g . v into p*(dp - delta)*scale. */
template <typename W>
static __device__ __forceinline__ void attention_soften(W *score, W *dp, bool seen, W lse, W delta, W scale) {
    W p = seen ? attention_exp(*score * scale - lse) : (W)0;
    *score = p;
    *dp = seen ? p * (*dp - delta) * scale : (W)0;
}

template <typename T, typename W = typename wefti_wide<T>::type>
static __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_backward_queries_kernel(const T *g, const T *q, const T *k, const T *v, const W *lse, const W *delta, T *dq,
                                      const attention_plan plan) {
    constexpr int ACROSS = attention_room<W>::ACROSS, EACH = attention_room<W>::EACH;
    __shared__ attention_room<W> room;
    const wefti_cuda_heads &is = plan.is;
    const attention_place   at(plan, is.heads, is.queries);
    const int               x = threadIdx.x % 16, y = threadIdx.x / 16;
    const int64_t           head = at.h / (is.heads / is.key_heads), end = attention_visible(is, at.first + at.count - 1);
    const int64_t           row = (at.b * is.heads + at.h) * is.queries + at.first;
    const auto              own = attention_rows(q, plan.q, at.b, at.h, at.first, at.count);
    const auto              gradient = attention_rows(g, plan.g, at.b, at.h, at.first, at.count);
    W                       sum[4][4] = {}, score[4][EACH], dp[4][EACH], at_lse[4], at_delta[4];
#pragma unroll
    for (int a = 0; a < 4; a++) {
        const bool there = 4 * y + a < at.count;
        at_lse[a] = there ? lse[at.b * plan.lse[0] + at.h * plan.lse[1] + (at.first + 4 * y + a) * plan.lse[2]] : (W)0;
        at_delta[a] = there ? delta[row + 4 * y + a] : (W)0;
    }
    for (int64_t key = 0; key < end; key += ACROSS) {
        const int64_t columns = is.keys - key < ACROSS ? is.keys - key : ACROSS;
        const auto    keys = attention_rows(k, plan.k, at.b, head, key, columns);
        attention_scores(score, own, keys, is.depth, &room);
        attention_scores(dp, gradient, attention_rows(v, plan.v, at.b, head, key, columns), is.value_depth, &room);
#pragma unroll
        for (int a = 0; a < 4; a++) {
            const int64_t seen = attention_visible(is, at.first + 4 * y + a) - key;
#pragma unroll
            for (int e = 0; e < EACH; e++)
                attention_soften(&score[a][e], &dp[a][e], EACH * x + e < seen && 4 * y + a < at.count, at_lse[a], at_delta[a], (W)is.scale);
        }
        attention_weigh(dp, &room);
        attention_gather(sum, keys, at.column, is.depth, &room);
    }
    const W one[4] = {1, 1, 1, 1};
    attention_store(dq, plan.out[0], at.b, at.h, at.first, sum, one, at.count, at.column, is.depth);
}

template <typename T, typename W = typename wefti_wide<T>::type>
static __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_backward_keys_kernel(const T *g, const T *q, const T *k, const T *v, const W *lse, const W *delta, T *dk, T *dv,
                                   const attention_plan plan) {
    constexpr int ACROSS = attention_room<W>::ACROSS, EACH = attention_room<W>::EACH;
    __shared__ attention_room<W> room;
    const wefti_cuda_heads &is = plan.is;
    const attention_place   at(plan, is.key_heads, is.keys);
    const int               x = threadIdx.x % 16, y = threadIdx.x / 16;
    const int64_t           group = is.heads / is.key_heads, before = at.first - (is.keys - is.queries + is.shift);
    const int64_t           begin = is.causal && before > 0 ? before / ACROSS * ACROSS : 0; /* no query before it sees a key of ours */
    const auto              own = attention_rows(k, plan.k, at.b, at.h, at.first, at.count);
    const auto              values = attention_rows(v, plan.v, at.b, at.h, at.first, at.count);
    W                       dk_sum[4][4] = {}, dv_sum[4][4] = {}, score[4][EACH], dp[4][EACH];
    for (int64_t h = at.h * group; h < (at.h + 1) * group; h++)
        for (int64_t t = begin; t < is.queries; t += ACROSS) {
            const int64_t columns = is.queries - t < ACROSS ? is.queries - t : ACROSS;
            const auto    queries = attention_rows(q, plan.q, at.b, h, t, columns), gradient = attention_rows(g, plan.g, at.b, h, t, columns);
            attention_scores(score, own, queries, is.depth, &room);
            attention_scores(dp, values, gradient, is.value_depth, &room);
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                const int64_t query = t + EACH * x + e;
                const bool    there = query < is.queries;
                const W       at_lse = there ? lse[at.b * plan.lse[0] + h * plan.lse[1] + query * plan.lse[2]] : (W)0;
                const W       at_delta = there ? delta[(at.b * is.heads + h) * is.queries + query] : (W)0;
                const int64_t seen = there ? attention_visible(is, query) - at.first : 0;
#pragma unroll
                for (int a = 0; a < 4; a++)
                    attention_soften(&score[a][e], &dp[a][e], 4 * y + a < seen && 4 * y + a < at.count, at_lse, at_delta, (W)is.scale);
            }
            if (at.column < is.value_depth) {
                attention_weigh(score, &room);
                attention_gather(dv_sum, gradient, at.column, is.value_depth, &room);
            }
            if (at.column < is.depth) {
                attention_weigh(dp, &room);
                attention_gather(dk_sum, queries, at.column, is.depth, &room);
            }
        }
    const W one[4] = {1, 1, 1, 1};
    attention_store(dk, plan.out[1], at.b, at.h, at.first, dk_sum, one, at.count, at.column, is.depth);
    attention_store(dv, plan.out[2], at.b, at.h, at.first, dv_sum, one, at.count, at.column, is.value_depth);
}

/* --- on the host --- */

static attention_plan attention_plan_of(const wefti_call *call, int32_t first) {
    attention_plan       plan;
    const wefti_operand *in = call->inputs;
    plan.is = wefti_cuda_heads_of(call, first);
    for (int axis = 0; axis < 4; axis++) {
        plan.q[axis] = in[first].stride[axis], plan.k[axis] = in[first + 1].stride[axis], plan.v[axis] = in[first + 2].stride[axis];
        plan.g[axis] = first ? in[0].stride[axis] : 0, plan.o[axis] = first ? in[4].stride[axis] : 0;
        if (axis < 3) plan.lse[axis] = first ? in[5].stride[axis] : 0;
    }
    for (int which = 0; which < 3; which++) plan.out[which] = wefti_cuda_heads_result(call, which);
    plan.blocks = plan.chunks = 1;
    return plan;
}

/* Sets what a kernel that owns `rows` of each of `heads` heads and makes `width` columns goes by; gives its blocks, 0 for no work. */
static weft_status attention_cut(const wefti_cuda_run *run, attention_plan *plan, int64_t heads, int64_t rows, int64_t width,
                                 unsigned *grid_out) {
    plan->blocks = (rows + ATTENTION_ROWS - 1) / ATTENTION_ROWS;
    plan->chunks = width > ATTENTION_COLUMNS ? (width + ATTENTION_COLUMNS - 1) / ATTENTION_COLUMNS : 1;
    int64_t grid = plan->is.batch * heads * plan->blocks * plan->chunks;
    if (grid > 0x7fffffff)
        return wefti_fail(WEFT_E_UNSUPPORTED, "attention '%s': %lld blocks are more than a grid has", run->call->name, (long long)grid);
    *grid_out = (unsigned)grid;
    return WEFT_OK;
}

static weft_status attention_run_forward(const wefti_cuda_run *run) {
    attention_plan plan = attention_plan_of(run->call, 0);
    unsigned       grid = 0;
    weft_status    status = attention_cut(run, &plan, plan.is.heads, plan.is.queries, plan.is.value_depth, &grid);
    if (status != WEFT_OK || grid == 0) return status;
    WEFTI_DISPATCH_FLOAT(run->call->inputs[0].dtype, {
        typedef typename wefti_wide<T>::type W;
        return wefti_cuda_launch(run, "attention", (attention_forward_tiles_kernel<T, W>), grid, ATTENTION_THREADS, 0,
                                 (const T *)run->inputs[0], (const T *)run->inputs[1], (const T *)run->inputs[2], (T *)run->outputs[0],
                                 (W *)run->outputs[1], plan);
    })
    return WEFT_OK;
}

static int64_t attention_backward_scratch(const wefti_cuda *cuda, const wefti_call *call) {
    (void)cuda;
    wefti_cuda_heads is = wefti_cuda_heads_of(call, 1);
    return is.batch * is.heads * is.queries * (call->inputs[1].dtype == WEFT_F64 ? 8 : 4);
}

template <typename T> static weft_status attention_backward(const wefti_cuda_run *run) {
    typedef typename wefti_wide<T>::type W;
    attention_plan plan = attention_plan_of(run->call, 1);
    const T       *g = (const T *)run->inputs[0], *q = (const T *)run->inputs[1], *k = (const T *)run->inputs[2];
    const T       *v = (const T *)run->inputs[3], *o = (const T *)run->inputs[4];
    const W       *lse = (const W *)run->inputs[5];
    W             *delta = (W *)run->scratch;
    const bool     by_rows = run->call->attrs->attention.by_rows;
    int64_t        rows = plan.is.batch * plan.is.heads * plan.is.queries;
    unsigned       grid = 0;
    weft_status    status = attention_cut(run, &plan, plan.is.heads, plan.is.queries, plan.is.depth, &grid);
    if (status == WEFT_OK && grid > 0)
        status = wefti_cuda_launch(run, "attention gradient", (attention_backward_delta_kernel<T, W>),
                                   wefti_cuda_blocks(rows, ATTENTION_THREADS / 32, 0), ATTENTION_THREADS, 0, g, o, delta, plan);
    if (status == WEFT_OK && grid > 0)
        status = wefti_cuda_launch(run, "attention gradient", (attention_backward_queries_kernel<T, W>), grid, ATTENTION_THREADS, 0, g, q,
                                   k, v, lse, (const W *)delta, (T *)run->outputs[0], plan);
    int64_t width = plan.is.depth > plan.is.value_depth ? plan.is.depth : plan.is.value_depth;
    if (status == WEFT_OK) status = attention_cut(run, &plan, plan.is.key_heads, plan.is.keys, width, &grid);
    if (status == WEFT_OK && grid > 0)
        status = wefti_cuda_launch(run, "attention gradient", (attention_backward_keys_kernel<T, W>), grid, ATTENTION_THREADS, 0, g, q, k,
                                   v, lse, (const W *)delta, (T *)run->outputs[by_rows ? 0 : 1], (T *)run->outputs[by_rows ? 0 : 2], plan);
    return status;
}

static weft_status attention_run_backward(const wefti_cuda_run *run) {
    WEFTI_DISPATCH_FLOAT(run->call->inputs[1].dtype, return attention_backward<T>(run);)
    return WEFT_OK;
}

extern "C" const wefti_cuda_kernel wefti_cuda_attention = {.name = "tiles", .run = attention_run_forward};
extern "C" const wefti_cuda_kernel wefti_cuda_attention_backward = {
    .name = "tiles", .scratch = attention_backward_scratch, .run = attention_run_backward};

/* Sums of squares of whole tensors: what the norm of a network's gradients is made of (FUSED programs of SQUARE, or of CAST and SQUARE, summed).
 *
 * Tensors that follow one another are done together by two launches for each 100 of them: one in which a block has a piece of a tensor, and one in
 * which a warp adds a tensor's pieces up. Pieces and all sums are those of reduce.h, so that the bits are those of a reduction by itself, and of the
 * program that NVRTC would make. A cast that somebody else reads too is written on the way.
 * Cost: each element once; 4 bytes of scratch a piece where a tensor has several (8,192 elements each, or more). */
#include "cuda/index.cuh"
#include "cuda/joined.h"
#include "cuda/reduce.h"

enum {
    BLOCK = WEFTI_REDUCE_BLOCK,
    WARP = 32,
    WARPS = BLOCK / WARP,
    GROUP = WEFTI_REDUCE_GROUP,
    AHEAD = 4,     /* groups that a thread asks for before it adds them up: as many as most pieces have */
    TOGETHER = 100 /* what goes into the 4 KiB of a launch's parameters */
};

typedef struct square_part {
    const void *x;
    float      *y, *to; /* what is cast, or NULL; the sum, or a partial result for each piece */
    int64_t     elements;
    uint32_t    per_piece, first; /* first: pieces before this part */
} square_part;
typedef struct square_parts {
    int32_t     n;
    uint32_t    pieces;
    square_part of[TOGETHER];
} square_parts;
typedef struct square_totals {
    int32_t n;
    struct {
        const float *from;
        float       *to;
        uint32_t     pieces;
    } of[TOGETHER];
} square_totals;
static_assert(sizeof(square_parts) <= 4096 && sizeof(square_totals) <= 4096, "a launch's parameters");

/* A group of neighbours, widened; what lies behind the end is 0. */
template <typename T> static __device__ __forceinline__ void take_group(const T *x, int64_t i, int64_t end, bool packed, float *values) {
    if (packed && i + GROUP <= end) {
        const int EACH = 16 / sizeof(T);
#pragma unroll
        for (int p = 0; p < GROUP / EACH; p++) {
            wefti_many<T, EACH> pack = *reinterpret_cast<const wefti_many<T, EACH> *>(x + i + p * EACH);
#pragma unroll
            for (int v = 0; v < EACH; v++) values[p * EACH + v] = wefti_widen(pack.element[v]);
        }
        return;
    }
#pragma unroll
    for (int v = 0; v < GROUP; v++) values[v] = i + v < end ? wefti_widen(x[i + v]) : 0.0f;
}
static __device__ __forceinline__ void give_group(float *y, int64_t i, int64_t end, bool packed, const float *values) {
    if (packed && i + GROUP <= end) {
#pragma unroll
        for (int p = 0; p < GROUP / 4; p++) *reinterpret_cast<float4 *>(y + i + p * 4) = make_float4(values[4 * p], values[4 * p + 1], values[4 * p + 2], values[4 * p + 3]);
        return;
    }
    for (int v = 0; v < GROUP && i + v < end; v++) y[i + v] = values[v];
}

/* A group's squares, added up as a balanced tree. */
static __device__ __forceinline__ float square_group(const float *values) {
    float x[GROUP];
#pragma unroll
    for (int v = 0; v < GROUP; v++) x[v] = values[v] * values[v];
#pragma unroll
    for (int width = 1; width < GROUP; width *= 2)
#pragma unroll
        for (int v = 0; v < GROUP; v += 2 * width) x[v] = x[v] + x[v + width];
    return x[0];
}

static __device__ __forceinline__ float add_warp(float total) {
    for (int width = WARP / 2; width > 0; width /= 2) total = total + __shfl_down_sync(0xffffffffu, total, width);
    return total;
}

template <typename T> static __global__ void __launch_bounds__(BLOCK) squares_forward_pieces_kernel(WEFTI_IN_PLACE square_parts all) {
    __shared__ float parts[WARPS];
    int32_t          at = 0;
    for (int32_t above = all.n; above - at > 1;) { /* the last part that begins here or before */
        int32_t middle = (at + above) / 2;
        if (all.of[middle].first <= blockIdx.x) at = middle;
        else above = middle;
    }
    const square_part &p = all.of[at];
    const T           *x = static_cast<const T *>(p.x);
    const uint32_t     piece = blockIdx.x - p.first;
    const int64_t      begin = (int64_t)piece * p.per_piece, end = begin + p.per_piece < p.elements ? begin + p.per_piece : p.elements;
    const int          team = p.elements > 4 * WARP * GROUP ? (int)BLOCK : (int)WARP;
    const bool         packed = wefti_is_aligned(x) && wefti_is_aligned(p.y);
    float              total = 0;
    if (p.elements <= 2 * GROUP) { /* one after another, as columns are */
        if (threadIdx.x > 0) return;
        for (int64_t i = begin; i < end; i++) {
            float value = wefti_widen(x[i]);
            if (p.y) p.y[i] = value;
            total = total + value * value;
        }
        p.to[piece] = total;
        return;
    }
    if ((int)threadIdx.x >= team) return; /* whole warps */
    for (int64_t i = begin + (int64_t)threadIdx.x * GROUP; i < end; i += (int64_t)team * GROUP * AHEAD) {
        float values[AHEAD][GROUP];
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
            if (i + (int64_t)a * team * GROUP < end) take_group<T>(x, i + (int64_t)a * team * GROUP, end, packed, values[a]);
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            if (i + (int64_t)a * team * GROUP >= end) break;
            if (p.y) give_group(p.y, i + (int64_t)a * team * GROUP, end, packed, values[a]);
            total = total + square_group(values[a]);
        }
    }
    total = add_warp(total);
    if (team > WARP) {
        if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = total;
        __syncthreads();
        if (threadIdx.x == 0)
            for (int warp = 1; warp < WARPS; warp++) total = total + parts[warp];
    }
    if (threadIdx.x == 0) p.to[piece] = total;
}

static __global__ void __launch_bounds__(BLOCK) squares_forward_totals_kernel(WEFTI_IN_PLACE square_totals all) {
    const int lane = threadIdx.x % WARP, i = (int)(blockIdx.x * WARPS + threadIdx.x / WARP);
    float     total = 0;
    if (i >= all.n) return;
#pragma unroll 4
    for (uint32_t piece = lane; piece < all.of[i].pieces; piece += WARP) total = total + all.of[i].from[piece];
    total = add_warp(total);
    if (lane == 0) *all.of[i].to = total;
}

/* --- which programs --- */

static wefti_cuda_reduction cut_of(const wefti_call *call) {
    const wefti_fused *fused = call->attrs->fused.fused;
    return wefti_cuda_reduction_of(fused->space, (1u << fused->space.rank) - 1);
}

/* The output that is the sum; the other one, where there are two, is the cast. */
static int32_t sum_of(const wefti_fused *fused) { return fused->output[0].reduce >= 0 ? 0 : 1; }

static bool accepts_squares(const wefti_cuda *cuda, const wefti_call *call) {
    const wefti_fused             *fused = call->attrs->fused.fused;
    const wefti_fused_instruction *it = fused->instruction;
    const bool                     casts = fused->n_instructions == 2;
    (void)cuda;
    if (fused->n_inputs != 1 || fused->n_instructions > 2 || fused->n_outputs > fused->n_instructions || fused->space.rank < 1) return false;
    if (it[casts].op != WEFT_OP_SQUARE || it[casts].dtype != WEFT_F32 || it[casts].source[0] != (casts ? -1 : 0)) return false;
    const weft_dtype from = call->inputs[0].dtype;
    if (casts ? it[0].op != WEFT_OP_CAST || it[0].dtype != WEFT_F32 || (from != WEFT_BF16 && from != WEFT_F16) : from != WEFT_F32) return false;
    const wefti_fused_output *sum = &fused->output[sum_of(fused)];
    if (sum_of(fused) >= fused->n_outputs || sum->reduce != WEFT_OP_SUM || sum->instruction != (int32_t)casts || sum->axes != (1u << fused->space.rank) - 1) return false;
    const wefti_fused_output *other = &fused->output[1 - sum_of(fused)];
    if (fused->n_outputs == 2 && (other->reduce >= 0 || other->instruction != 0)) return false;
    return wefti_operand_is_contiguous(&call->inputs[0]) && weft_shape_equal(call->inputs[0].shape, fused->space) && cut_of(call).per_piece <= UINT32_MAX;
}

static int64_t squares_scratch(const wefti_cuda *cuda, const wefti_call *call) {
    wefti_cuda_reduction how = cut_of(call);
    (void)cuda;
    return how.pieces > 1 ? how.pieces * (int64_t)sizeof(float) : 0;
}

static bool joins_squares(const wefti_cuda *cuda, const wefti_call *const *calls, int32_t n, const wefti_call *next) {
    (void)cuda;
    return n < WEFTI_CUDA_MOST_JOINED && calls[0]->inputs[0].dtype == next->inputs[0].dtype && wefti_cuda_undisturbed(calls, n, next);
}

/* --- launching --- */

static weft_status launch_pieces(const wefti_cuda_run *run, const square_parts *all) {
    switch (run->call->inputs[0].dtype) {
    case WEFT_BF16: return wefti_cuda_launch(run, "squares", (squares_forward_pieces_kernel<__nv_bfloat16>), all->pieces, BLOCK, 0, *all);
    case WEFT_F16: return wefti_cuda_launch(run, "squares", (squares_forward_pieces_kernel<__half>), all->pieces, BLOCK, 0, *all);
    default: return wefti_cuda_launch(run, "squares", (squares_forward_pieces_kernel<float>), all->pieces, BLOCK, 0, *all);
    }
}

/* Up to TOGETHER of them. */
static weft_status run_some(const wefti_cuda_run *runs, int32_t n) {
    square_parts  all;
    square_totals totals;
    all.n = totals.n = 0, all.pieces = 0;
    for (int32_t i = 0; i < n; i++) {
        const wefti_fused   *fused = runs[i].call->attrs->fused.fused;
        wefti_cuda_reduction how = cut_of(runs[i].call);
        float               *sum = static_cast<float *>(runs[i].outputs[sum_of(fused)]), *cast = NULL;
        if (fused->n_outputs == 2) cast = static_cast<float *>(runs[i].outputs[1 - sum_of(fused)]);
        square_part *part = &all.of[all.n++];
        part->x = runs[i].inputs[0];
        part->y = cast;
        part->to = how.pieces > 1 ? static_cast<float *>(runs[i].scratch) : sum;
        part->elements = how.reduced;
        part->per_piece = (uint32_t)how.per_piece;
        part->first = all.pieces;
        all.pieces += (uint32_t)how.pieces;
        if (how.pieces > 1) totals.of[totals.n].from = part->to, totals.of[totals.n].to = sum, totals.of[totals.n++].pieces = (uint32_t)how.pieces;
    }
    WEFTI_TRY(launch_pieces(runs, &all));
    if (totals.n == 0) return WEFT_OK;
    return wefti_cuda_launch(runs, "squares", squares_forward_totals_kernel, wefti_cuda_blocks(totals.n, WARPS, 0), BLOCK, 0, totals);
}

static weft_status run_squares_all(const wefti_cuda_run *runs, int32_t n) {
    for (int32_t i = 0; i < n; i += TOGETHER) WEFTI_TRY(run_some(runs + i, n - i < TOGETHER ? n - i : (int32_t)TOGETHER));
    return WEFT_OK;
}
static weft_status run_squares(const wefti_cuda_run *run) { return run_some(run, 1); }

extern "C" const wefti_cuda_kernel wefti_cuda_squares = {.name = "squares", .accepts = accepts_squares, .scratch = squares_scratch, .run = run_squares,
                                                         .joins = joins_squares, .run_all = run_squares_all};

/* MATMUL by tiles of our own, for every dtype, stride and size: what cuBLASLt does not take.
 *
 * A block of 16 x 16 threads (tile.cuh) computes a square tile of C. Slabs of A and B, WEFTI_TILE_DEPTH of the inner index at a time, go through registers into
 * shared memory as wide numbers (f32 for 16-bit types), while the slab before is multiplied; which of an operand's axes neighbouring
 * threads read along follows from its strides. Every element is one chain of fma over the inner index in its order, whatever the tile, so
 * the bits follow from the operands alone.
 * Cost: no scratch; two slabs of shared memory, at most 34 KiB. */
#include "cuda/fp8.cuh"
#include "cuda/product.h"
#include "cuda/tile.cuh"

enum { LARGE = 128, SMALL = 64 /* elements along a side of a tile: a thread owns 8 x 8 or 4 x 4 */ };

/* One thread's share of a slab of TILE rows (of A; columns of B) by WEFTI_TILE_DEPTH. */
template <typename T, int TILE> struct slab {
    typedef typename wefti_wide<T>::type W;
    enum { COUNT = TILE * WEFTI_TILE_DEPTH / WEFTI_TILE_THREADS };
    const T *at;    /* its first element */
    int64_t  step;  /* from one of its elements to the next */
    int64_t  along; /* from one slab to the next */
    int32_t  outer, inner, outer_step, inner_step;
    int32_t  outer_left; /* rows of the operand from here on, at most TILE */
    W        held[COUNT];

    __device__ __forceinline__ void begin(const T *data, int64_t first, int64_t outer_count, int64_t outer_stride, int64_t inner_stride) {
        int32_t thread = (int32_t)threadIdx.x;
        bool    down   = inner_stride == 1 || (outer_stride != 1 && inner_stride < outer_stride);
        outer          = down ? thread / WEFTI_TILE_DEPTH : thread % TILE;
        inner          = down ? thread % WEFTI_TILE_DEPTH : thread / TILE;
        outer_step     = down ? WEFTI_TILE_THREADS / WEFTI_TILE_DEPTH : 0;
        inner_step     = down ? 0 : WEFTI_TILE_THREADS / TILE;
        outer_left     = outer_count - first < TILE ? (int32_t)(outer_count - first) : TILE;
        at             = data + (first + outer) * outer_stride + inner * inner_stride;
        step           = outer_step * outer_stride + inner_step * inner_stride;
        along          = WEFTI_TILE_DEPTH * inner_stride;
    }
    /* Reads the share where `inner_left` of the inner index are left, zeros beyond, and moves on. */
    __device__ __forceinline__ void read(int64_t inner_left) {
        int32_t most = inner_left < WEFTI_TILE_DEPTH ? (int32_t)inner_left : WEFTI_TILE_DEPTH;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            bool inside = outer + i * outer_step < outer_left && inner + i * inner_step < most;
            held[i]     = inside ? wefti_widen(at[i * step]) : W(0);
        }
        at += along;
    }
    __device__ __forceinline__ void store(W (*shared)[TILE + WEFTI_TILE_PAD]) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) shared[inner + i * inner_step][outer + i * outer_step] = held[i];
    }
};

/* Scales, where the factors have any: the result is times both. */
typedef struct scales {
    const float *a, *b;
} scales;

template <typename A, typename B, typename T, int TILE>
static __global__ void __launch_bounds__(WEFTI_TILE_THREADS)
    matmul_forward_tiles_kernel(wefti_cuda_product p, const A *a, const B *b, T *c, scales scale, int64_t columns, int64_t tiles) {
    typedef typename wefti_wide<T>::type W;
    enum { OWN = TILE / WEFTI_TILE_SIDE };
    __shared__ alignas(16) W a_slab[WEFTI_TILE_DEPTH][TILE + WEFTI_TILE_PAD];
    __shared__ alignas(16) W b_slab[WEFTI_TILE_DEPTH][TILE + WEFTI_TILE_PAD];
    int            row = (int)threadIdx.x / WEFTI_TILE_SIDE, column = (int)threadIdx.x % WEFTI_TILE_SIDE;
    int64_t        matrix = blockIdx.x / tiles, tile = blockIdx.x % tiles, a_at = 0, b_at = 0, rest = matrix;
    int64_t        first_row = tile / columns * TILE, first_column = tile % columns * TILE;
    slab<A, TILE>  a_share;
    slab<B, TILE>  b_share;
    W              sum[OWN][OWN];
    for (int32_t axis = p.batch_rank - 1; axis >= 0; axis--) {
        a_at += rest % p.batch[axis] * p.a_batch[axis];
        b_at += rest % p.batch[axis] * p.b_batch[axis];
        rest /= p.batch[axis];
    }
#pragma unroll
    for (int i = 0; i < OWN; i++)
#pragma unroll
        for (int j = 0; j < OWN; j++) sum[i][j] = W(0);
    a_share.begin(a + a_at, first_row, p.m, p.a_row, p.a_inner);
    b_share.begin(b + b_at, first_column, p.n, p.b_column, p.b_inner);
    a_share.read(p.k);
    b_share.read(p.k);
    for (int64_t k = 0; k < p.k; k += WEFTI_TILE_DEPTH) {
        a_share.store(a_slab);
        b_share.store(b_slab);
        __syncthreads(); /* the slab is there */
        if (k + WEFTI_TILE_DEPTH < p.k) {
            a_share.read(p.k - k - WEFTI_TILE_DEPTH);
            b_share.read(p.k - k - WEFTI_TILE_DEPTH);
        }
        wefti_tile_multiply<W, TILE>(a_slab, b_slab, row, column, sum);
        __syncthreads(); /* nobody reads the slab any more */
    }
    T *out = c + matrix * p.m * p.n;
    W  scale_a = scale.a ? (W)*scale.a : W(1), scale_b = scale.b ? (W)*scale.b : W(1); /* one after the other: together they may overflow */
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        int64_t at_row = first_row + wefti_tile_place<W>(row, i);
#pragma unroll
        for (int j = 0; j < OWN; j++) {
            int64_t at_column = first_column + wefti_tile_place<W>(column, j);
            if (at_row < p.m && at_column < p.n) out[at_row * p.n + at_column] = wefti_narrow<T>(sum[i][j] * scale_a * scale_b);
        }
    }
}

template <typename A, typename B, typename T, int TILE> static weft_status run_scaled(const wefti_cuda_run *run, const wefti_cuda_product &p, scales scale) {
    int64_t columns = (p.n + TILE - 1) / TILE, tiles = (p.m + TILE - 1) / TILE * columns;
    if (tiles > 0x7fffffff / p.batches)
        return wefti_fail(WEFT_E_UNSUPPORTED, "%lld tiles of %d x %d are more than a grid has blocks", (long long)tiles, TILE, TILE);
    return wefti_cuda_launch(run, "matmul", (matmul_forward_tiles_kernel<A, B, T, TILE>), dim3((unsigned)(tiles * p.batches)), dim3(WEFTI_TILE_THREADS),
                             0, p, (const A *)run->inputs[0], (const B *)run->inputs[1], (T *)run->outputs[0], scale, columns, tiles);
}

template <typename T, int TILE> static weft_status run_tiles(const wefti_cuda_run *run, const wefti_cuda_product &p) {
    return run_scaled<T, T, T, TILE>(run, p, scales{NULL, NULL});
}

/* Large tiles where they are filled well and there are enough of them for the device; f64 has no room for them. */
static bool large_fits(const wefti_cuda_run *run, const wefti_cuda_product &p) {
    int64_t tiles = (p.m + LARGE - 1) / LARGE * ((p.n + LARGE - 1) / LARGE) * p.batches;
    return p.m > SMALL && p.n > SMALL && tiles >= run->cuda->multiprocessors;
}

static weft_status run_matmul(const wefti_cuda_run *run) {
    wefti_cuda_product p;
    wefti_cuda_product_of(run->call, &p);
    bool large = large_fits(run, p);
    switch (run->call->outputs[0].dtype) {
    case WEFT_F64: return run_tiles<double, SMALL>(run, p);
    case WEFT_BF16: return large ? run_tiles<__nv_bfloat16, LARGE>(run, p) : run_tiles<__nv_bfloat16, SMALL>(run, p);
    case WEFT_F16: return large ? run_tiles<__half, LARGE>(run, p) : run_tiles<__half, SMALL>(run, p);
    default: return large ? run_tiles<float, LARGE>(run, p) : run_tiles<float, SMALL>(run, p);
    }
}

extern "C" const wefti_cuda_kernel wefti_cuda_matmul = {.name = "tiled matmul", .run = run_matmul};

/* --- products of 8-bit floats, where cuBLASLt refuses them --- */

template <int A, int B> static weft_status run_codes(const wefti_cuda_run *run, const wefti_cuda_product &p) {
    return run_scaled<wefti_fp8_code<A>, wefti_fp8_code<B>, __nv_bfloat16, SMALL>(
        run, p, scales{static_cast<const float *>(run->inputs[2]), static_cast<const float *>(run->inputs[3])});
}

extern "C" weft_status wefti_cuda_fp8_tiles(const wefti_cuda_run *run) {
    const int32_t     *form = run->call->attrs->fp8.form;
    wefti_cuda_product p;
    memset(&p, 0, sizeof p);
    p.m = run->call->inputs[0].shape.dim[0];
    p.n = run->call->inputs[1].shape.dim[0];
    p.k = p.a_row = p.b_column = run->call->inputs[0].shape.dim[1];
    p.a_inner = p.b_inner = p.batches = 1;
    if (form[0] == WEFTI_FP8_E5M2) return run_codes<WEFTI_FP8_E5M2, WEFTI_FP8_E4M3>(run, p);
    return form[1] == WEFTI_FP8_E5M2 ? run_codes<WEFTI_FP8_E4M3, WEFTI_FP8_E5M2>(run, p) : run_codes<WEFTI_FP8_E4M3, WEFTI_FP8_E4M3>(run, p);
}

/* MATMUL by tiles of our own, for every dtype, stride and size: what cuBLASLt does not take.
 *
 * A block of 16 x 16 threads computes a square tile of C. Slabs of A and B, DEPTH of the inner index at a time, go through registers into
 * shared memory as wide numbers (f32 for 16-bit types), while the slab before is multiplied; which of an operand's axes neighbouring
 * threads read along follows from its strides. Every element is one chain of fma over the inner index in its order, whatever the tile, so
 * the bits follow from the operands alone.
 * Cost: no scratch; two slabs of shared memory, at most 34 KiB. */
#include "cuda/kernel.cuh"
#include "cuda/product.h"

enum {
    SIDE = 16, THREADS = SIDE * SIDE, /* a thread then owns 8 x 8 or 4 x 4 elements: 64 fma for 4 wide reads of shared memory */
    DEPTH = 16,
    LARGE = 128, SMALL = 64, /* elements along a side of a tile */
    PAD = 4                  /* so that writes across a slab spread over the banks; keeps rows aligned to 16 bytes */
};

template <typename W> struct alignas(16) pack { W at[16 / sizeof(W)]; };

/* One thread's share of a slab of TILE rows (of A; columns of B) by DEPTH. */
template <typename T, int TILE> struct slab {
    typedef typename wefti_wide<T>::type W;
    enum { COUNT = TILE * DEPTH / THREADS };
    const T *at;    /* its first element */
    int64_t  step;  /* from one of its elements to the next */
    int64_t  along; /* from one slab to the next */
    int32_t  outer, inner, outer_step, inner_step;
    int32_t  outer_left; /* rows of the operand from here on, at most TILE */
    W        held[COUNT];

    __device__ __forceinline__ void begin(const T *data, int64_t first, int64_t outer_count, int64_t outer_stride, int64_t inner_stride) {
        int32_t thread = (int32_t)threadIdx.x;
        bool    down   = inner_stride == 1 || (outer_stride != 1 && inner_stride < outer_stride);
        outer          = down ? thread / DEPTH : thread % TILE;
        inner          = down ? thread % DEPTH : thread / TILE;
        outer_step     = down ? THREADS / DEPTH : 0;
        inner_step     = down ? 0 : THREADS / TILE;
        outer_left     = outer_count - first < TILE ? (int32_t)(outer_count - first) : TILE;
        at             = data + (first + outer) * outer_stride + inner * inner_stride;
        step           = outer_step * outer_stride + inner_step * inner_stride;
        along          = DEPTH * inner_stride;
    }
    /* Reads the share where `inner_left` of the inner index are left, zeros beyond, and moves on. */
    __device__ __forceinline__ void read(int64_t inner_left) {
        int32_t most = inner_left < DEPTH ? (int32_t)inner_left : DEPTH;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            bool inside = outer + i * outer_step < outer_left && inner + i * inner_step < most;
            held[i]     = inside ? wefti_widen(at[i * step]) : W(0);
        }
        at += along;
    }
    __device__ __forceinline__ void store(W (*shared)[TILE + PAD]) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) shared[inner + i * inner_step][outer + i * outer_step] = held[i];
    }
};

/* The elements of a slab's row that belong to thread row (or column) `own`: packs of 16 bytes, SIDE of them apart. */
template <typename W, int TILE> static __device__ __forceinline__ void fragment(const W *row, int own, W *out) {
    enum { WIDTH = 16 / sizeof(W), GROUPS = TILE / SIDE / WIDTH };
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        pack<W> piece = *reinterpret_cast<const pack<W> *>(row + (g * SIDE + own) * WIDTH);
#pragma unroll
        for (int v = 0; v < WIDTH; v++) out[g * WIDTH + v] = piece.at[v];
    }
}
/* Where element i of a fragment lies in the tile. */
template <typename W> static __device__ __forceinline__ int place(int own, int i) {
    enum { WIDTH = 16 / sizeof(W) };
    return (i / WIDTH * SIDE + own) * WIDTH + i % WIDTH;
}

static __device__ __forceinline__ float  fused(float a, float b, float c) { return fmaf(a, b, c); }
static __device__ __forceinline__ double fused(double a, double b, double c) { return fma(a, b, c); }

template <typename T, int TILE>
static __global__ void __launch_bounds__(THREADS)
    matmul_forward_tiles_kernel(wefti_cuda_product p, const T *a, const T *b, T *c, int64_t columns, int64_t tiles) {
    typedef typename wefti_wide<T>::type W;
    enum { OWN = TILE / SIDE };
    __shared__ alignas(16) W a_slab[DEPTH][TILE + PAD];
    __shared__ alignas(16) W b_slab[DEPTH][TILE + PAD];
    int            row = (int)threadIdx.x / SIDE, column = (int)threadIdx.x % SIDE;
    int64_t        matrix = blockIdx.x / tiles, tile = blockIdx.x % tiles, a_at = 0, b_at = 0, rest = matrix;
    int64_t        first_row = tile / columns * TILE, first_column = tile % columns * TILE;
    slab<T, TILE>  a_share, b_share;
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
    for (int64_t k = 0; k < p.k; k += DEPTH) {
        a_share.store(a_slab);
        b_share.store(b_slab);
        __syncthreads(); /* the slab is there */
        if (k + DEPTH < p.k) {
            a_share.read(p.k - k - DEPTH);
            b_share.read(p.k - k - DEPTH);
        }
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            W left[OWN], right[OWN];
            fragment<W, TILE>(a_slab[d], row, left);
            fragment<W, TILE>(b_slab[d], column, right);
#pragma unroll
            for (int i = 0; i < OWN; i++)
#pragma unroll
                for (int j = 0; j < OWN; j++) sum[i][j] = fused(left[i], right[j], sum[i][j]);
        }
        __syncthreads(); /* nobody reads the slab any more */
    }
    T *out = c + matrix * p.m * p.n;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        int64_t at_row = first_row + place<W>(row, i);
#pragma unroll
        for (int j = 0; j < OWN; j++) {
            int64_t at_column = first_column + place<W>(column, j);
            if (at_row < p.m && at_column < p.n) out[at_row * p.n + at_column] = wefti_narrow<T>(sum[i][j]);
        }
    }
}

template <typename T, int TILE> static weft_status run_tiles(const wefti_cuda_run *run, const wefti_cuda_product &p) {
    int64_t columns = (p.n + TILE - 1) / TILE, tiles = (p.m + TILE - 1) / TILE * columns;
    if (tiles > 0x7fffffff / p.batches)
        return wefti_fail(WEFT_E_UNSUPPORTED, "matmul '%s': %lld tiles of %d x %d are more than a grid has blocks", run->call->name,
                          (long long)tiles, TILE, TILE);
    return wefti_cuda_launch(run, "matmul", (matmul_forward_tiles_kernel<T, TILE>), dim3((unsigned)(tiles * p.batches)), dim3(THREADS), 0,
                             p, (const T *)run->inputs[0], (const T *)run->inputs[1], (T *)run->outputs[0], columns, tiles);
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

extern "C" const wefti_cuda_kernel wefti_cuda_matmul = {
    .name = "tiled matmul", .accepts = NULL, .scratch = NULL, .prepared_bytes = NULL, .prepare = NULL, .unprepare = NULL, .run = run_matmul,
    .eager = false};

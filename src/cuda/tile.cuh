/* What the kernels with square tiles in shared memory have in common: 16 x 16 threads, slabs of wide numbers DEPTH of the inner index deep,
 * and how a thread's elements lie in the tile: in packs of 16 bytes, so that shared memory is read 16 bytes at a time without conflicts. */
#ifndef WEFTI_CUDA_TILE_CUH
#define WEFTI_CUDA_TILE_CUH

#include "cuda/kernel.cuh"

enum {
    WEFTI_TILE_SIDE = 16,
    WEFTI_TILE_THREADS = WEFTI_TILE_SIDE * WEFTI_TILE_SIDE, /* each then owns 8 x 8 or 4 x 4 elements, with room for 2 blocks of the larger */
    WEFTI_TILE_DEPTH = 16,
    WEFTI_TILE_PAD = 4 /* so that writes across a slab spread over the banks; keeps rows aligned to 16 bytes */
};

template <typename W> struct alignas(16) wefti_pack { W at[16 / sizeof(W)]; };

/* The elements of a slab's row that belong to thread row (or column) `own`: packs of 16 bytes, SIDE of them apart. */
template <typename W, int TILE> static __device__ __forceinline__ void wefti_tile_fragment(const W *row, int own, W *out) {
    enum { WIDTH = 16 / sizeof(W), GROUPS = TILE / WEFTI_TILE_SIDE / WIDTH };
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        wefti_pack<W> piece = *reinterpret_cast<const wefti_pack<W> *>(row + (g * WEFTI_TILE_SIDE + own) * WIDTH);
#pragma unroll
        for (int v = 0; v < WIDTH; v++) out[g * WIDTH + v] = piece.at[v];
    }
}
/* Where element i of a fragment lies in the tile. */
template <typename W> static __device__ __forceinline__ int wefti_tile_place(int own, int i) {
    enum { WIDTH = 16 / sizeof(W) };
    return (i / WIDTH * WEFTI_TILE_SIDE + own) * WIDTH + i % WIDTH;
}

static __device__ __forceinline__ float  wefti_fma(float a, float b, float c) { return fmaf(a, b, c); }
static __device__ __forceinline__ double wefti_fma(double a, double b, double c) { return fma(a, b, c); }

/* sum += left' right over one slab of both operands. */
template <typename W, int TILE>
static __device__ __forceinline__ void wefti_tile_multiply(const W (*left)[TILE + WEFTI_TILE_PAD], const W (*right)[TILE + WEFTI_TILE_PAD],
                                                           int row, int column,
                                                           W (*sum)[TILE / WEFTI_TILE_SIDE]) {
    enum { OWN = TILE / WEFTI_TILE_SIDE };
#pragma unroll
    for (int d = 0; d < WEFTI_TILE_DEPTH; d++) {
        W a[OWN], b[OWN];
        wefti_tile_fragment<W, TILE>(left[d], row, a);
        wefti_tile_fragment<W, TILE>(right[d], column, b);
#pragma unroll
        for (int i = 0; i < OWN; i++)
#pragma unroll
            for (int j = 0; j < OWN; j++) sum[i][j] = wefti_fma(a[i], b[j], sum[i][j]);
    }
}

#endif

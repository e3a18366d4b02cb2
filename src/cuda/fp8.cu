/* FP8_CAST: a matrix as 8-bit floats under one scale, by rows, by columns or both, in two passes: the largest magnitude, then the codes. The second
 * pass finds what it reads in the second-level cache where the matrix is not larger than that. Each block of the first leaves the largest of
 * its elements in scratch, and each of the second looks through them all, so neither needs memory to be cleared or a launch between them; what is
 * the largest does not depend on any order. Codes by columns go through a tile in shared memory, so that both layouts are written in pieces of 8
 * neighbours.
 * Cost: x is read twice, and each layout written once; 1 KiB of scratch. */
#include "cuda/fp8.cuh"
#include "cuda/index.cuh"

enum {
    BLOCK = 256,
    WARP = 32,
    LOOKERS = 256,    /* blocks of the first pass at most: as many as a block of the second looks through, one a thread */
    LOOKING = 512,    /* threads of one */
    TILE = 64,        /* rows and columns of a tile; a thread has 8 neighbours of two rows */
    PIECE = 8,
    PITCH = TILE + 4, /* bytes of a tile's row: columns are then read from other banks */
    BLOCKS_EACH = 8   /* blocks of a multiprocessor in the second pass: they go on through the tiles, and look for the scale once */
};
static_assert(BLOCK == LOOKERS && BLOCK * PIECE * 2 == TILE * TILE, "threads and their shares");

typedef struct matrix {
    const void        *x;
    wefti_cuda_view_of view; /* of its elements in row-major order */
    int64_t            elements, rows, columns;
    uint32_t          *largest; /* [lookers] */
    int32_t            lookers;
    uint8_t           *by_rows, *by_columns; /* NULL: not wanted */
    float             *scale;
} matrix;

template <typename T> static __device__ __forceinline__ uint32_t bits_of(T x) { return wefti_fp8_device_bits_of((float)wefti_widen(x)); }
template <> __device__ __forceinline__ uint32_t bits_of<__half>(__half x) { /* widening forgets the sign of a NaN */
    return wefti_fp8_device_bits_of(__half2float(x)) | (uint32_t)(__half_as_ushort(x) & 0x8000u) << 16;
}

template <typename T, bool PLAIN> static __device__ __forceinline__ uint32_t element(const matrix &m, int64_t i) {
    return bits_of(static_cast<const T *>(m.x)[PLAIN ? i : wefti_cuda_offset(m.view, i)]);
}

static __device__ __forceinline__ uint32_t most(uint32_t a, uint32_t b) { return a > b ? a : b; }

/* The block's largest, in every thread. */
template <int THREADS> static __device__ __forceinline__ uint32_t largest_of_block(uint32_t mine) {
    __shared__ uint32_t of_warp[THREADS / WARP];
    for (int width = WARP / 2; width > 0; width /= 2) mine = most(mine, __shfl_xor_sync(0xffffffffu, mine, width));
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = mine;
    __syncthreads();
    uint32_t all = 0;
    for (int i = 0; i < THREADS / WARP; i++) all = most(all, of_warp[i]);
    return all;
}

/* PACKED: contiguous, from an address that 16 bytes divide. */
template <typename T, bool PACKED> static __global__ void __launch_bounds__(LOOKING) fp8_cast_forward_largest_kernel(WEFTI_IN_PLACE matrix m) {
    const int64_t step = (int64_t)gridDim.x * LOOKING, thread = (int64_t)blockIdx.x * LOOKING + threadIdx.x;
    uint32_t      largest = 0;
    int64_t       from = 0;
    if (PACKED) {
        const wefti_pack<T> *packs = static_cast<const wefti_pack<T> *>(m.x);
        int64_t              n = m.elements / wefti_pack<T>::COUNT;
#pragma unroll 4
        for (int64_t i = thread; i < n; i += step) {
            wefti_pack<T> pack = packs[i];
            for (int e = 0; e < wefti_pack<T>::COUNT; e++) largest = most(largest, wefti_fp8_device_finite(bits_of(pack.element[e])));
        }
        from = n * wefti_pack<T>::COUNT;
    }
    for (int64_t i = from + thread; i < m.elements; i += step) largest = most(largest, wefti_fp8_device_finite(element<T, PACKED>(m, i)));
    largest = largest_of_block<LOOKING>(largest);
    if (threadIdx.x == 0) m.largest[blockIdx.x] = largest;
}

/* Codes of 8 neighbours of a row, as one word; those beyond the matrix are 0. */
template <typename T, int FORM, bool PACKED>
static __device__ __forceinline__ uint64_t encode_piece(const matrix &m, int64_t row, int64_t column, float inverse) {
    uint64_t codes = 0;
    if (row >= m.rows || column >= m.columns) return 0;
    if constexpr (PACKED) {
        enum { PACKS = PIECE / wefti_pack<T>::COUNT };
        const wefti_pack<T> *packs = reinterpret_cast<const wefti_pack<T> *>(static_cast<const T *>(m.x) + row * m.columns + column);
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            wefti_pack<T> pack = packs[p];
#pragma unroll
            for (int e = 0; e < wefti_pack<T>::COUNT; e++)
                codes |= (uint64_t)wefti_fp8_device_encode(bits_of(pack.element[e]), inverse, FORM) << 8 * (p * wefti_pack<T>::COUNT + e);
        }
    } else {
        for (int e = 0; e < PIECE && column + e < m.columns; e++)
            codes |= (uint64_t)wefti_fp8_device_encode(element<T, false>(m, row * m.columns + column + e), inverse, FORM) << 8 * e;
    }
    return codes;
}

/* Stores 8 codes, or those of them that there are. */
static __device__ __forceinline__ void give_piece(uint8_t *to, int64_t room, bool whole, uint64_t codes) {
    if (whole) *reinterpret_cast<uint64_t *>(to) = codes;
    else
        for (int e = 0; e < PIECE && e < room; e++) to[e] = (uint8_t)(codes >> 8 * e);
}

/* PACKED: contiguous and aligned, rows of a multiple of 8; both layouts then are written 8 codes at a time, by columns where there are as many rows. */
template <typename T, int FORM, bool PACKED> static __global__ void __launch_bounds__(BLOCK) fp8_cast_forward_codes_kernel(WEFTI_IN_PLACE matrix m) {
    __shared__ alignas(8) uint8_t tile[TILE * PITCH];
    const int      thread = (int)threadIdx.x, piece = thread % (TILE / PIECE) * PIECE, line = thread / (TILE / PIECE);
    const int64_t  across = (m.columns + TILE - 1) / TILE, tiles = (m.rows + TILE - 1) / TILE * across;
    const bool     columns_fit = PACKED && m.rows % PIECE == 0;
    const uint32_t scale = wefti_fp8_device_scale(largest_of_block<BLOCK>(thread < m.lookers ? m.largest[thread] : 0), FORM);
    const float    inverse = wefti_fp8_device_inverse(scale);
    if (blockIdx.x == 0 && thread == 0) *m.scale = wefti_fp8_device_factor(scale);
    for (int64_t at = blockIdx.x; at < tiles; at += gridDim.x) {
        const int64_t row = at / across * TILE, column = at % across * TILE;
#pragma unroll
        for (int half = 0; half < TILE; half += TILE / 2) {
            const int64_t r = row + half + line, c = column + piece;
            uint64_t      codes = encode_piece<T, FORM, PACKED>(m, r, c, inverse);
            if (m.by_rows && r < m.rows && c < m.columns) give_piece(m.by_rows + r * m.columns + c, m.columns - c, PACKED, codes);
            uint32_t *words = reinterpret_cast<uint32_t *>(&tile[(half + line) * PITCH + piece]);
            words[0] = (uint32_t)codes;
            words[1] = (uint32_t)(codes >> 32);
        }
        if (!m.by_columns) continue;
        __syncthreads(); /* the tile is there */
#pragma unroll
        for (int half = 0; half < TILE; half += TILE / 2) {
            const int64_t c = column + half + line, r = row + piece;
            uint64_t      codes = 0;
#pragma unroll
            for (int e = 0; e < PIECE; e++) codes |= (uint64_t)tile[(piece + e) * PITCH + half + line] << 8 * e;
            if (r < m.rows && c < m.columns) give_piece(m.by_columns + c * m.rows + r, m.rows - r, columns_fit, codes);
        }
        __syncthreads(); /* nobody reads the tile any more */
    }
}

static int32_t lookers_of(const wefti_operand *x) {
    return (int32_t)wefti_cuda_blocks(wefti_operand_elements(x), (int64_t)LOOKING * 16, LOOKERS);
}

template <typename T> static weft_status run_in(const wefti_cuda_run *run, const matrix &m) {
    const int32_t form = run->call->attrs->fp8.form[0];
    const bool    plain = wefti_operand_is_contiguous(&run->call->inputs[0]) && wefti_is_aligned(m.x), packed = plain && m.columns % PIECE == 0;
    const dim3    looking((unsigned)m.lookers), block(BLOCK);
    const int64_t tiles = (m.rows + TILE - 1) / TILE * ((m.columns + TILE - 1) / TILE);
    const dim3    casting(wefti_cuda_blocks(tiles, 1, (int64_t)run->cuda->multiprocessors * BLOCKS_EACH));
    if (plain) WEFTI_TRY(wefti_cuda_launch(run, "fp8 scale", (fp8_cast_forward_largest_kernel<T, true>), looking, dim3(LOOKING), 0, m));
    else WEFTI_TRY(wefti_cuda_launch(run, "fp8 scale", (fp8_cast_forward_largest_kernel<T, false>), looking, dim3(LOOKING), 0, m));
    if (form == WEFTI_FP8_E4M3)
        return packed ? wefti_cuda_launch(run, "fp8 cast", (fp8_cast_forward_codes_kernel<T, WEFTI_FP8_E4M3, true>), casting, block, 0, m)
                      : wefti_cuda_launch(run, "fp8 cast", (fp8_cast_forward_codes_kernel<T, WEFTI_FP8_E4M3, false>), casting, block, 0, m);
    return packed ? wefti_cuda_launch(run, "fp8 cast", (fp8_cast_forward_codes_kernel<T, WEFTI_FP8_E5M2, true>), casting, block, 0, m)
                  : wefti_cuda_launch(run, "fp8 cast", (fp8_cast_forward_codes_kernel<T, WEFTI_FP8_E5M2, false>), casting, block, 0, m);
}

static weft_status run_cast(const wefti_cuda_run *run) {
    const wefti_operand *x = &run->call->inputs[0];
    const int32_t        layouts = run->call->attrs->fp8.layouts;
    matrix               m;
    memset(&m, 0, sizeof m);
    m.x = run->inputs[0];
    wefti_cuda_views(x->shape, &x, 1, &m.view);
    m.elements = wefti_operand_elements(x);
    m.columns = x->shape.dim[x->shape.rank - 1];
    m.rows = m.columns > 0 ? m.elements / m.columns : 0;
    m.largest = static_cast<uint32_t *>(run->scratch);
    m.lookers = lookers_of(x);
    m.by_rows = layouts & WEFTI_FP8_ROWS ? static_cast<uint8_t *>(run->outputs[0]) : NULL;
    m.by_columns = layouts & WEFTI_FP8_COLUMNS ? static_cast<uint8_t *>(run->outputs[1]) : NULL;
    m.scale = static_cast<float *>(run->outputs[2]);
    switch (x->dtype) {
    case WEFT_BF16: return run_in<__nv_bfloat16>(run, m);
    case WEFT_F16: return run_in<__half>(run, m);
    default: return run_in<float>(run, m);
    }
}

static int64_t scratch(const wefti_cuda *cuda, const wefti_call *call) {
    (void)cuda;
    return lookers_of(&call->inputs[0]) * (int64_t)sizeof(uint32_t);
}

extern "C" const wefti_cuda_kernel wefti_cuda_fp8_cast = {.name = "fp8 cast", .scratch = scratch, .run = run_cast};

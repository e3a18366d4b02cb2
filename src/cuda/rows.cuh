/* What kernels over rows share: the threads that own a row together, its elements in their registers, and reductions over it.
 *
 * A *way* fixes how a row is cut: LANES threads own it (8 or 32: several rows a block; more: the block has one), each takes vectors of
 * VEC neighbours, HOLD of them at a time in registers; WHOLE says that the row fits into them, so that memory is read once. The way
 * follows from dtype and length alone, and so does the order of every sum: strided operands are only loaded differently. */
#ifndef WEFTI_CUDA_ROWS_CUH
#define WEFTI_CUDA_ROWS_CUH

#include "cuda/kernel.cuh"

#define ROWS_CONST WEFTI_IN_PLACE

/* Rows narrower than a block share one of 128 threads: four warps are enough to fill a multiprocessor by sixteens. */
enum { ROWS_SMALL_BLOCK = 128, ROWS_ROOMS = 3 };

template <int LANES_, int VEC_, int HOLD_, bool WHOLE_> struct rows_way {
    static constexpr int  LANES = LANES_, VEC = VEC_, HOLD = HOLD_;
    static constexpr bool WHOLE = WHOLE_;
    static constexpr int  BLOCK = LANES < ROWS_SMALL_BLOCK ? (int)ROWS_SMALL_BLOCK : LANES, PER_BLOCK = BLOCK / LANES;
};

/* An operand as rows: where row r begins, and where its element i lies from there. */
typedef struct rows_view {
    wefti_cuda_view_of lead, row;
    bool               vectors; /* 16-byte accesses are allowed */
} rows_view;

template <typename T, int VEC> struct alignas(sizeof(T) * VEC) rows_vector {
    T at[VEC];
};

/* Sums over rows that do not fit into registers are f64: a thread adds up too many terms for f32. */
template <typename T, bool WHOLE> struct rows_sum { typedef double type; };
template <typename T> struct rows_sum<T, true> { typedef typename wefti_wide<T>::type type; };

static __device__ __forceinline__ float  rows_exp(float x) { return expf(x); }
static __device__ __forceinline__ double rows_exp(double x) { return exp(x); }
static __device__ __forceinline__ float  rows_log(float x) { return logf(x); }
static __device__ __forceinline__ double rows_log(double x) { return log(x); }
static __device__ __forceinline__ float  rows_fma(float a, float b, float c) { return fmaf(a, b, c); }
static __device__ __forceinline__ double rows_fma(double a, double b, double c) { return fma(a, b, c); }
static __device__ __forceinline__ float  rows_max(float a, float b) { return fmaxf(a, b); }
static __device__ __forceinline__ double rows_max(double a, double b) { return fmax(a, b); }

/* Where element i of a strided view lies. Called, not inlined: it stands in unrolled loops, and strided rows may be slow. */
static __device__ __noinline__ int64_t rows_offset(const wefti_cuda_view_of *view, int64_t i) { return wefti_cuda_offset(*view, i); }

/* One thread's share of a row. */
template <typename T, typename Way> struct rows_share {
    typedef rows_vector<T, Way::VEC> vector;
    vector                    kept[Way::HOLD];
    const T                  *base;
    const wefti_cuda_view_of *row;
    bool                      vectors;

    __device__ __forceinline__ rows_share(const T *x, const rows_view &view, int64_t index)
        : base(x + rows_offset(&view.lead, index)), row(&view.row), vectors(view.vectors) {}

    /* Takes the HOLD vectors at element `start` and on. All loads are asked for before any is used. */
    __device__ __forceinline__ void keep(int64_t start, int64_t length, int lane) {
        if (vectors) {
#pragma unroll
            for (int h = 0; h < Way::HOLD; h++) {
                int64_t i = start + (int64_t)(h * Way::LANES + lane) * Way::VEC;
                if (i < length) kept[h] = *reinterpret_cast<const vector *>(base + i);
            }
            return;
        }
#pragma unroll
        for (int h = 0; h < Way::HOLD; h++) {
            int64_t i = start + (int64_t)(h * Way::LANES + lane) * Way::VEC;
            if (i < length)
#pragma unroll
                for (int k = 0; k < Way::VEC; k++)
                    kept[h].at[k] = base[row->rank == 1 ? (i + k) * row->stride[0] : rows_offset(row, i + k)];
        }
    }
};

/* Calls f(i, h, vector of each share at element i). WHOLE rows must have been kept at 0. */
template <typename Way, typename F, typename... Shares>
static __device__ __forceinline__ void rows_each(int64_t length, int lane, F f, Shares &...share) {
    const int64_t stride = (int64_t)Way::LANES * Way::VEC * Way::HOLD;
    for (int64_t start = 0; start < (Way::WHOLE ? 1 : length); start += stride) {
        if (!Way::WHOLE) (share.keep(start, length, lane), ...);
#pragma unroll
        for (int h = 0; h < Way::HOLD; h++) {
            int64_t i = start + (int64_t)(h * Way::LANES + lane) * Way::VEC;
            if (i < length) f(i, h, share.kept[h]...);
        }
    }
}

/* Combines v over the row's threads; each gets the result. `op` commutes. Rows as wide as the block need a room of 32 each time. */
template <typename Way, typename V, typename F> static __device__ __forceinline__ V rows_reduce(V v, F op, V *room) {
#pragma unroll
    for (int distance = (Way::LANES < 32 ? Way::LANES : 32) / 2; distance > 0; distance /= 2)
        v = op(v, __shfl_xor_sync(0xffffffffu, v, distance));
    if (Way::LANES > 32) {
        const int warps = Way::LANES > 32 ? Way::LANES / 32 : 1;
        if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = v;
        __syncthreads();
        v = room[threadIdx.x % warps];
#pragma unroll
        for (int distance = warps / 2; distance > 0; distance /= 2) v = op(v, __shfl_xor_sync(0xffffffffu, v, distance));
    }
    return v;
}
template <typename Way, typename V> static __device__ __forceinline__ V rows_add_up(V v, V *room) {
    return rows_reduce<Way>(v, [](V a, V b) { return a + b; }, room);
}
template <typename Way, typename V> static __device__ __forceinline__ V rows_most(V v, V *room) {
    return rows_reduce<Way>(v, [](V a, V b) { return rows_max(a, b); }, room);
}

/* Writes a vector into a contiguous row. */
template <typename T, int VEC> static __device__ __forceinline__ void rows_store(T *to, const rows_vector<T, VEC> &v, bool vectors) {
    if (vectors) {
        *reinterpret_cast<rows_vector<T, VEC> *>(to) = v;
        return;
    }
#pragma unroll
    for (int k = 0; k < VEC; k++) to[k] = v.at[k];
}

/* --- on the host --- */

static inline int64_t rows_length(weft_shape shape, int32_t axes) {
    int64_t length = 1;
    for (int32_t i = shape.rank - axes; i < shape.rank; i++) length *= shape.dim[i];
    return length;
}

/* An operand, or its first or last axes alone. */
static inline wefti_cuda_view_of rows_axes(const wefti_operand *operand, int32_t first, int32_t count) {
    wefti_operand part = *operand;
    part.shape.rank = count;
    for (int32_t i = 0; i < WEFT_MAX_RANK; i++) {
        part.shape.dim[i] = i < count ? operand->shape.dim[first + i] : 0;
        part.stride[i] = i < count ? operand->stride[first + i] : 0;
    }
    const wefti_operand *parts[1] = {&part};
    wefti_cuda_view_of   view;
    wefti_cuda_views(part.shape, parts, 1, &view);
    return view;
}

/* The rows of an operand, of its last `axes` axes, of which `data` is element 0. */
static inline rows_view rows_of(const wefti_operand *operand, const void *data, int32_t axes) {
    int32_t   lead = operand->shape.rank - axes;
    int64_t   bytes = (int64_t)weft_dtype_bytes(operand->dtype);
    rows_view rows;
    rows.lead = rows_axes(operand, 0, lead);
    rows.row = rows_axes(operand, lead, axes);
    rows.vectors = (uintptr_t)data % 16 == 0 && rows.row.rank == 1 && (rows.row.stride[0] == 1 || rows.row.dim[0] == 1);
    for (int32_t i = 0; i < rows.lead.rank; i++)
        if (rows.lead.dim[i] > 1 && rows.lead.stride[i] * bytes % 16 != 0) rows.vectors = false;
    return rows;
}

/* Calls launch(way) for rows of T. `hold`: vectors of 16 bytes that a thread keeps of a row: 8 for kernels with one input, else 4. */
template <typename T, int HOLD, typename F> static inline weft_status rows_choose(int64_t length, F launch) {
    const int vec = sizeof(T) < 8 ? 16 / (int)sizeof(T) : 1;
    if (vec > 1 && length % vec == 0) {
        if (HOLD > 4 && length <= 32 * 4 * vec) return launch(rows_way<32, vec, 4, true>()); /* registers that stay free are more warps */
        if (length <= 32 * HOLD * vec) return launch(rows_way<32, vec, HOLD, true>());
        if (length <= 256 * HOLD * vec) return launch(rows_way<256, vec, HOLD, true>());
        if (length <= 512 * HOLD * vec) return launch(rows_way<512, vec, HOLD, true>());
        return launch(rows_way<512, vec, 4, false>());
    }
    if (length <= 32 * 8) return launch(rows_way<32, 1, 8, true>());
    return launch(rows_way<256, 1, 4, false>());
}

#endif

/* What kernels over rows share: the threads that own a row together, its elements in their registers, and reductions over it.
 *
 * A *way* fixes how a row is cut: LANES threads own it (8 or 32: several rows a block; more: the block has one), each takes vectors of
 * VEC neighbours, HOLD of them at a time in registers; WHOLE says that the row fits into them, so that memory is read once. PLAIN rows
 * are whole vectors of 16 bytes, in every operand. Others are cut at the same addresses, where the hardware can read 16 bytes at once: a row then
 * begins and ends within a vector, whose elements of other rows are neither read nor written; what is strided is gathered. EVEN says that nothing is:
 * then no function is called, for which a thread's registers would have to go to memory. The way, and
 * with it the order of every sum, follows from dtype, length and how the operands lie. */
#ifndef WEFTI_CUDA_ROWS_CUH
#define WEFTI_CUDA_ROWS_CUH

#include "cuda/ptx.cuh"
#include "cuda/vector.cuh"

#define ROWS_CONST WEFTI_IN_PLACE

/* Rows narrower than a block share one of 128 threads: four warps are enough to fill a multiprocessor by sixteens. */
enum { ROWS_SMALL_BLOCK = 128, ROWS_ROOMS = 3 };

template <int LANES_, int VEC_, int HOLD_, bool WHOLE_, bool PLAIN_, bool EVEN_ = PLAIN_> struct rows_way {
    static constexpr int  LANES = LANES_, VEC = VEC_, HOLD = HOLD_;
    static constexpr bool WHOLE = WHOLE_, PLAIN = PLAIN_, EVEN = EVEN_;
    static constexpr int  BLOCK = LANES < ROWS_SMALL_BLOCK ? (int)ROWS_SMALL_BLOCK : LANES, PER_BLOCK = BLOCK / LANES;
    static constexpr int  AT_ONCE = 1024 / BLOCK; /* blocks on a multiprocessor at least: what registers are given out by */
};

/* An operand as rows: where row r begins, and where its element i lies from there. */
typedef struct rows_view {
    wefti_cuda_view_of lead, row;
    bool               plain; /* vectors of 16 bytes lie at multiples of 16 from where rows begin */
    bool               even;  /* elements of a row are neighbours */
} rows_view;

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

/* exp(x - shift). Of 16-bit numbers, which are known to three digits, by one multiplication and the power of two that the hardware has. */
template <typename T, typename W> static __device__ __forceinline__ W rows_power(W x, W shift) {
    if constexpr (sizeof(T) == 2) {
        const float turn = 1.44269504088896340736f; /* log2(e) */
        return wefti_power_of_two(fmaf(x, turn, -shift * turn));
    } else {
        return rows_exp(x - shift);
    }
}

/* Where element i of a strided view lies. Called, not inlined: strided operands may be slow, and cost others no registers. */
static __device__ __noinline__ int64_t rows_offset(const wefti_cuda_view_of *view, int64_t i) { return wefti_cuda_offset(*view, i); }
static __device__ __forceinline__ int64_t rows_place_of(const wefti_cuda_view_of &view, int64_t i) {
    return view.rank == 1 ? i * view.stride[0] : rows_offset(&view, i);
}

/* How a row is cut: vector v has elements v*VEC - phase and on. */
template <bool WHOLE> struct rows_index { typedef int64_t type; };
template <> struct rows_index<true> { typedef int32_t type; };
template <typename Way> struct rows_cut {
    typedef typename rows_index<Way::WHOLE>::type index;
    index length, vectors, whole; /* whole: vectors behind the last one that is all the row's */
    int   phase;
    /* Rows whose vectors are to lie at multiples of their size from `row`, which points to element 0. */
    template <typename T> __device__ __forceinline__ rows_cut(const T *row, int64_t length_) : length((index)length_) {
        phase = Way::PLAIN ? 0 : (int)((uintptr_t)row / sizeof(T) % Way::VEC);
        vectors = Way::PLAIN ? length / Way::VEC : (length + phase + Way::VEC - 1) / Way::VEC;
        whole = Way::PLAIN ? vectors : (length + phase) / Way::VEC;
    }
    __device__ __forceinline__ index first(index v) const { return v * Way::VEC - phase; }
    /* Whether vector v has no elements of other rows: all but the first and the last. */
    __device__ __forceinline__ bool is_whole(index v) const { return Way::PLAIN || (v < whole && (v > 0 || phase == 0)); }
    /* Whether element i is the row's own, and the VEC elements from there on. */
    __device__ __forceinline__ bool has(index i) const { return Way::PLAIN || (i >= 0 && i < length); }
    __device__ __forceinline__ bool has_all(index i) const { return Way::PLAIN || (i >= 0 && i + Way::VEC <= length); }
};

/* Vectors of rows that are not plain. Elements of other rows are zero. */
template <typename T, int VEC> static __device__ __noinline__ wefti_vector<T, VEC> rows_gather(const T *row, const wefti_cuda_view_of *view, int64_t i, int64_t length) {
    typename wefti_wide<T>::type x[VEC];
    wefti_vector<T, VEC>         v;
    for (int k = 0; k < VEC; k++) x[k] = (uint64_t)(i + k) < (uint64_t)length ? wefti_widen(row[rows_place_of(*view, i + k)]) : 0;
    v.narrow(x);
    return v;
}
template <typename T, int VEC> static __device__ __noinline__ void rows_scatter(T *row, const wefti_vector<T, VEC> v, int64_t i, int64_t length) {
    typename wefti_wide<T>::type x[VEC];
    v.widen(x);
    for (int k = 0; k < VEC; k++)
        if ((uint64_t)(i + k) < (uint64_t)length) row[i + k] = wefti_narrow<T>(x[k]);
}

/* The same of a vector in which an even row begins or ends, without a call. */
template <typename T, int VEC> static __device__ __forceinline__ wefti_vector<T, VEC> rows_gather_even(const T *row, int64_t i, int64_t length) {
    typename wefti_wide<T>::type x[VEC];
    wefti_vector<T, VEC>         v;
#pragma unroll
    for (int k = 0; k < VEC; k++) x[k] = (uint64_t)(i + k) < (uint64_t)length ? wefti_widen(row[i + k]) : 0;
    v.narrow(x);
    return v;
}

/* One thread's share of a row. */
template <typename T, typename Way> struct rows_share {
    typedef wefti_vector<T, Way::VEC> vector;
    vector                            kept[Way::HOLD];
    const T                          *base;
    const wefti_cuda_view_of         *row;
    bool                              even; /* neighbours in memory */

    __device__ __forceinline__ rows_share(const T *x, const rows_view &view, int64_t index)
        : base(x + rows_place_of(view.lead, index)), row(&view.row), even(Way::EVEN || view.even) {}

    /* Takes the HOLD vectors from vector `start` on. All loads are asked for before any is used. */
    __device__ __forceinline__ void keep(typename rows_cut<Way>::index start, const rows_cut<Way> &cut, int lane) {
#pragma unroll
        for (int h = 0; h < Way::HOLD; h++) {
            typename rows_cut<Way>::index v = start + h * Way::LANES + lane;
            if (v >= cut.vectors) continue;
            const T *from = base + cut.first(v);
            if (Way::PLAIN || (even && cut.is_whole(v) && (uintptr_t)from % sizeof(vector) == 0)) kept[h] = *reinterpret_cast<const vector *>(from);
            else if (Way::EVEN) kept[h] = rows_gather_even<T, Way::VEC>(base, cut.first(v), cut.length);
            else kept[h] = rows_gather<T, Way::VEC>(base, row, cut.first(v), cut.length);
        }
    }
};

/* Calls f(i, h, vector of each share), for those that begin at element i. WHOLE rows must have been kept at 0. */
template <typename Way, typename F, typename... Shares>
static __device__ __forceinline__ void rows_each(const rows_cut<Way> &cut, int lane, F f, Shares &...share) {
    typedef typename rows_cut<Way>::index index;
    for (index start = 0; start < (Way::WHOLE ? 1 : cut.vectors); start += Way::LANES * Way::HOLD) {
        if (!Way::WHOLE) (share.keep(start, cut, lane), ...);
#pragma unroll
        for (int h = 0; h < Way::HOLD; h++) {
            index v = start + h * Way::LANES + lane;
            if (v < cut.vectors) f(cut.first(v), h, share.kept[h]...);
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

/* The sum of exp(x - most) over what a thread has seen, with most the maximum; -infinity stands for nothing. The maximum passes over NaN. */
template <typename W> struct rows_powers {
    W most, sum;
};
/* Powers are measured from 0 while there is nothing but -infinity, which otherwise would turn into NaN here. */
template <typename W> static __device__ __forceinline__ W rows_shift(W most) { return most == -INFINITY ? (W)0 : most; }

/* Calls f(h, v, numbers) for the vectors that a thread keeps, from vector `start` on. What is of other rows is -infinity, which is no maximum and has no
 * power: so it is looked for in two vectors of a row, and not in every element. */
template <typename T, typename Way, typename F>
static __device__ __forceinline__ void rows_each_kept(const rows_share<T, Way> &share, const rows_cut<Way> &cut, typename rows_cut<Way>::index start, int lane, F f) {
#pragma unroll
    for (int h = 0; h < Way::HOLD; h++) {
        typename rows_cut<Way>::index v = start + h * Way::LANES + lane;
        typename wefti_wide<T>::type  xs[Way::VEC];
        if (v >= cut.vectors) continue;
        share.kept[h].widen(xs);
        if (!cut.is_whole(v)) {
#pragma unroll
            for (int k = 0; k < Way::VEC; k++)
                if (!cut.has(cut.first(v) + k)) xs[k] = -INFINITY;
        }
        f(h, v, xs);
    }
}

/* Goes once over a row: the sum is rescaled where the maximum grows, once for HOLD vectors. Each vector is given to `see`, too. */
template <typename T, typename Way, typename F>
static __device__ __forceinline__ rows_powers<typename wefti_wide<T>::type> rows_powers_of(rows_share<T, Way> &share, const rows_cut<Way> &cut, int lane, F see) {
    typedef typename wefti_wide<T>::type  W;
    typedef typename rows_cut<Way>::index I;
    rows_powers<W>                        mine = {-INFINITY, 0};
    for (I start = 0; start < cut.vectors; start += Way::LANES * Way::HOLD) {
        W most = mine.most, some = 0;
        share.keep(start, cut, lane);
        rows_each_kept(share, cut, start, lane, [&](int h, I v, const W *xs) {
#pragma unroll
            for (int k = 0; k < Way::VEC; k++) most = rows_max(most, xs[k]);
            see(v, share.kept[h]);
        });
        const W shift = rows_shift(most);
        if (most != mine.most) mine.sum *= rows_power<T>(mine.most, shift);
        mine.most = most;
        rows_each_kept(share, cut, start, lane, [&](int, I, const W *xs) {
#pragma unroll
            for (int k = 0; k < Way::VEC; k++) some += rows_power<T>(xs[k], shift);
        });
        mine.sum += some;
        if (Way::WHOLE) break;
    }
    return mine;
}
/* That of the whole row, for each of its threads. */
template <typename T, typename Way, typename W> static __device__ __forceinline__ rows_powers<W> rows_join(rows_powers<W> mine, W (*rooms)[32]) {
    const W most = rows_most<Way>(mine.most, rooms[0]);
    return {most, rows_add_up<Way>(mine.sum * rows_power<T>(mine.most, rows_shift(most)), rooms[1])};
}

/* Writes the row's own of the numbers x into a contiguous row, at element i. */
template <typename T, typename Way> static __device__ __forceinline__ void rows_store(T *row, const rows_cut<Way> &cut, typename rows_cut<Way>::index i, const typename wefti_wide<T>::type *x) {
    wefti_vector<T, Way::VEC> v;
    v.narrow(x);
    if (cut.has_all(i) && (Way::PLAIN || (uintptr_t)(row + i) % sizeof v == 0)) {
        *reinterpret_cast<wefti_vector<T, Way::VEC> *>(row + i) = v;
    } else if (Way::EVEN) {
#pragma unroll
        for (int k = 0; k < Way::VEC; k++)
            if (cut.has(i + k)) row[i + k] = wefti_narrow<T>(x[k]);
    } else rows_scatter<T, Way::VEC>(row, v, i, cut.length);
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
    rows.even = rows.row.rank == 1 && (rows.row.stride[0] == 1 || rows.row.dim[0] == 1);
    rows.plain = (uintptr_t)data % 16 == 0 && rows.even && rows.row.dim[0] * bytes % 16 == 0;
    for (int32_t i = 0; i < rows.lead.rank; i++)
        if (rows.lead.dim[i] > 1 && rows.lead.stride[i] * bytes % 16 != 0) rows.plain = false;
    return rows;
}

/* Calls launch(way) for rows of T. With two operands a thread keeps 4 vectors of each: more would leave room for few warps. */
template <typename T, int OPERANDS, typename F> static inline weft_status rows_choose(int64_t length, bool plain, F launch) {
    const int     vec = 16 / (int)sizeof(T);
    const int64_t vectors = length / vec;
    if (!plain) {
        if (length <= (32 * 4 - 1) * vec) return launch(rows_way<32, vec, 4, true, false>());
        if (length <= (256 * 4 - 1) * vec) return launch(rows_way<256, vec, 4, true, false>());
        return launch(rows_way<512, vec, 4, false, false>());
    }
    if constexpr (sizeof(T) < 8) { /* of f64 there is little, which need not be compiled for every length */
        if (vectors <= 8 * 4) return launch(rows_way<8, vec, 4, true, true>());
        if constexpr (OPERANDS == 1)
            if (vectors > 32 * 4 && vectors <= 32 * 8) return launch(rows_way<32, vec, 8, true, true>());
        if (vectors > 32 * 4 && vectors <= 128 * 4) return launch(rows_way<128, vec, 4, true, true>());
        if (vectors > 256 * 4 && vectors <= 512 * 4) return launch(rows_way<512, vec, 4, true, true>());
    }
    if (vectors <= 32 * 4) return launch(rows_way<32, vec, 4, true, true>());
    if (vectors <= 256 * 4) return launch(rows_way<256, vec, 4, true, true>());
    return launch(rows_way<512, vec, 4, false, true>());
}

#endif

/* GATHER and SCATTER_ADD: slices along one axis, picked by an index.
 *
 * x is seen as [outer][extent][inner], what is picked as [outer][picks][inner]. GATHER copies. SCATTER_ADD owes every sum in one fixed
 * order, so it sorts: the picks are ordered by where they go, stably (counting by digits of eight bits), which makes all that goes to one
 * slice a run; then each run is added up, in the order of the picks. Short runs are added by a warp each, one pick after another; long
 * ones (a common token, padding) by a block, whose warps take parts of the run that follow from its length. An index out of range sorts
 * behind all others and is dropped.
 * Cost: two or three passes over the list of picks, 16 bytes of scratch a pick and 4 bytes a slice; x, u and the output once. */
#include "cuda/index.cuh"
#include "cuda/scalars.cuh"

/* Enough warps to hide the memory's latency: these kernels need few registers. */
enum { BLOCK = 256, WARP = 32, WARPS = BLOCK / WARP };

/* The index operand, of i32 or i64. */
typedef struct index_list {
    wefti_space space;
    int64_t     stride[WEFT_MAX_RANK], extent;
    const void *data;
    int32_t     wide;
} index_list;

/* The slice that a pick names; -1 where there is none. */
SCALAR int64_t slice_of(const index_list &list, int64_t pick) {
    int64_t at = list.space.rank == 1 ? pick * list.stride[0] : wefti_place(list.space, list.stride, pick);
    int64_t slice = list.wide ? static_cast<const int64_t *>(list.data)[at] : static_cast<const int32_t *>(list.data)[at];
    return slice >= 0 && slice < list.extent ? slice : -1;
}

/* A strided operand by flat element. */
typedef struct place {
    wefti_space space;
    int64_t     stride[WEFT_MAX_RANK];
    const void *data;
} place;

static place place_of(const wefti_operand *operand, const void *data) {
    wefti_cuda_view_of view;
    place              p;
    wefti_cuda_views(operand->shape, &operand, 1, &view);
    p.space = wefti_space_of(&view);
    memcpy(p.stride, view.stride, sizeof p.stride);
    p.data = data;
    return p;
}
static bool is_contiguous(const place *p) { return p->space.rank == 1 && (p->stride[0] == 1 || p->space.dim[0] == 1); }
template <typename T> SCALAR T at(const place &p, int64_t i) {
    return static_cast<const T *>(p.data)[p.space.rank == 1 ? i * p.stride[0] : wefti_place(p.space, p.stride, i)];
}

static index_list list_of(const wefti_cuda_run *run) {
    const wefti_operand *x = &run->call->inputs[0], *index = &run->call->inputs[1];
    place                p = place_of(index, run->inputs[1]);
    index_list           list;
    list.space = p.space;
    memcpy(list.stride, p.stride, sizeof list.stride);
    list.extent = x->shape.dim[run->call->attrs->axis.axis];
    list.data = p.data;
    list.wide = index->dtype == WEFT_I64;
    return list;
}

/* The sizes of the three axes. */
static void sizes_of(const wefti_call *call, int64_t *outer, int64_t *picks, int64_t *inner) {
    const weft_shape *x = &call->inputs[0].shape;
    *outer = *inner = 1;
    *picks = wefti_operand_elements(&call->inputs[1]);
    for (int32_t i = 0; i < x->rank; i++)
        if (i != call->attrs->axis.axis) *(i < call->attrs->axis.axis ? outer : inner) *= x->dim[i];
}

/* --- GATHER --- */

typedef struct gather {
    index_list    list;
    place         x;
    void         *to;
    int64_t       elements, picks, inner; /* in words */
    wefti_divider by_picks, by_inner;
} gather;

SCALAR uint32_t over(uint32_t n, const wefti_divider &divider, int64_t) { return wefti_divide(n, divider); }
SCALAR int64_t  over(int64_t n, const wefti_divider &, int64_t by) { return n / by; }

template <typename T, bool CONTIGUOUS, typename Index>
static __global__ void __launch_bounds__(BLOCK) gather_forward_each_kernel(const gather g) {
    Index elements = (Index)g.elements;
    for (Index i = (Index)blockIdx.x * BLOCK + threadIdx.x; i < elements; i += (Index)gridDim.x * BLOCK) {
        Index   row = over(i, g.by_inner, g.inner), column = i - row * (Index)g.inner;
        Index   outer = over(row, g.by_picks, g.picks), pick = row - outer * (Index)g.picks;
        int64_t slice = slice_of(g.list, (int64_t)pick), from = ((int64_t)outer * g.list.extent + slice) * g.inner + (int64_t)column;
        T       value;
        memset(&value, 0, sizeof value);
        if (slice >= 0) value = CONTIGUOUS ? static_cast<const T *>(g.x.data)[from] : at<T>(g.x, from);
        static_cast<T *>(g.to)[i] = value;
    }
}

template <typename T, bool CONTIGUOUS> static weft_status launch_gather(const wefti_cuda_run *run, gather *g) {
    unsigned blocks = wefti_cuda_blocks(g->elements, BLOCK, (int64_t)1 << 22);
    g->by_inner = wefti_divider_of(g->inner);
    g->by_picks = wefti_divider_of(g->picks);
    if (wefti_is_small(g->elements + (int64_t)blocks * BLOCK))
        return wefti_cuda_launch(run, "gather", (gather_forward_each_kernel<T, CONTIGUOUS, uint32_t>), blocks, BLOCK, 0, *g);
    return wefti_cuda_launch(run, "gather", (gather_forward_each_kernel<T, CONTIGUOUS, int64_t>), blocks, BLOCK, 0, *g);
}

static weft_status run_gather(const wefti_cuda_run *run) {
    gather  g;
    int64_t outer, word = (int64_t)weft_dtype_bytes(run->call->inputs[0].dtype), bytes = word;
    sizes_of(run->call, &outer, &g.picks, &g.inner);
    g.list = list_of(run);
    g.x = place_of(&run->call->inputs[0], run->inputs[0]);
    g.to = run->outputs[0];
    if (is_contiguous(&g.x)) { /* in the widest words that slices can be cut into */
        while (word < 16 && g.inner * bytes % (2 * word) == 0 && ((uintptr_t)g.x.data | (uintptr_t)g.to) % (uintptr_t)(2 * word) == 0) word *= 2;
        g.inner = g.inner * bytes / word;
        g.elements = outer * g.picks * g.inner;
        switch (word) {
        case 1: return launch_gather<uint8_t, true>(run, &g);
        case 2: return launch_gather<uint16_t, true>(run, &g);
        case 4: return launch_gather<uint32_t, true>(run, &g);
        case 8: return launch_gather<uint64_t, true>(run, &g);
        default: return launch_gather<uint4, true>(run, &g);
        }
    }
    g.elements = outer * g.picks * g.inner;
    switch (word) {
    case 1: return launch_gather<uint8_t, false>(run, &g);
    case 2: return launch_gather<uint16_t, false>(run, &g);
    case 4: return launch_gather<uint32_t, false>(run, &g);
    default: return launch_gather<uint64_t, false>(run, &g);
    }
}
const wefti_cuda_kernel wefti_cuda_gather = {.name = "gather", .run = run_gather};

/* --- sorting the picks --- */

/* A block orders TILE keys by one digit: its thread d looks for those of digit d. Small, so that there are blocks for all
 * multiprocessors from some ten thousand picks on. */
enum { DIGITS = 256, DIGIT_BITS = 8, TILE = 1024, SCAN_BLOCK = 1024 };

static __global__ void __launch_bounds__(BLOCK) scatter_add_forward_keys_kernel(const index_list list, uint32_t picks, uint32_t *keys, uint32_t *order) {
    uint32_t pick = blockIdx.x * BLOCK + threadIdx.x;
    if (pick >= picks) return;
    int64_t slice = slice_of(list, pick);
    keys[pick] = slice < 0 ? (uint32_t)list.extent : (uint32_t)slice;
    order[pick] = pick;
}

/* counts[digit][block] */
static __global__ void __launch_bounds__(DIGITS) scatter_add_forward_count_kernel(const uint32_t *keys, uint32_t picks, int32_t shift, uint32_t *counts) {
    __shared__ uint32_t count[DIGITS];
    uint32_t            begin = blockIdx.x * TILE, end = picks - begin < TILE ? picks : begin + TILE;
    count[threadIdx.x] = 0;
    __syncthreads();
    for (uint32_t i = begin + threadIdx.x; i < end; i += DIGITS) atomicAdd(&count[keys[i] >> shift & (DIGITS - 1)], 1u);
    __syncthreads();
    counts[threadIdx.x * gridDim.x + blockIdx.x] = count[threadIdx.x];
}

/* Sums of what stands before, in place, by one block: each thread has a run of its own. */
static __global__ void __launch_bounds__(SCAN_BLOCK) scatter_add_forward_scan_kernel(uint32_t *counts, uint32_t n) {
    __shared__ uint32_t totals[SCAN_BLOCK];
    uint32_t            each = (n + SCAN_BLOCK - 1) / SCAN_BLOCK, begin = threadIdx.x * each, end = begin + each < n ? begin + each : n, total = 0;
    for (uint32_t i = begin; i < end; i++) total += counts[i];
    totals[threadIdx.x] = total;
    __syncthreads();
    for (uint32_t width = 1; width < SCAN_BLOCK; width *= 2) {
        uint32_t before = threadIdx.x >= width ? totals[threadIdx.x - width] : 0;
        __syncthreads();
        totals[threadIdx.x] += before;
        __syncthreads();
    }
    total = totals[threadIdx.x] - total;
    for (uint32_t i = begin; i < end; i++) {
        uint32_t one = counts[i];
        counts[i] = total;
        total += one;
    }
}

static __global__ void __launch_bounds__(DIGITS)
    scatter_add_forward_order_kernel(const uint32_t *keys, const uint32_t *order, uint32_t picks, int32_t shift, const uint32_t *starts,
                                     uint32_t *keys_out, uint32_t *order_out) {
    __shared__ uint32_t key[TILE], from[TILE];
    uint32_t            begin = blockIdx.x * TILE, count = picks - begin < (uint32_t)TILE ? picks - begin : (uint32_t)TILE;
    for (uint32_t i = threadIdx.x; i < count; i += DIGITS) {
        key[i] = keys[begin + i];
        from[i] = order[begin + i];
    }
    __syncthreads();
    uint32_t to = starts[threadIdx.x * gridDim.x + blockIdx.x];
    for (uint32_t i = 0; i < count; i++)
        if ((key[i] >> shift & (DIGITS - 1)) == threadIdx.x) {
            keys_out[to] = key[i];
            order_out[to++] = from[i];
        }
}

/* starts[slice]: the first place in the sorted list that is not before the slice. */
static __global__ void __launch_bounds__(BLOCK) scatter_add_forward_starts_kernel(const uint32_t *keys, uint32_t picks, uint32_t slices, uint32_t *starts) {
    uint32_t slice = blockIdx.x * BLOCK + threadIdx.x, low = 0, high = picks;
    if (slice > slices) return;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (keys[middle] < slice) low = middle + 1;
        else high = middle;
    }
    starts[slice] = low;
}

/* --- adding up --- */

/* Where a run counts as long. A warp reads its picks one after another, and has four on their way at a time. */
enum { LONG = 64 };

typedef struct scatter {
    place           x, u;
    void           *to;
    const uint32_t *keys, *order, *starts;
    int64_t         outer, extent, picks, inner; /* inner in elements */
    int64_t         chunks;                      /* of a slice: what a warp adds up */
} scatter;

/* Sums of 16-bit floats are f32; of integers, i64. */
template <typename T> struct sum_of { typedef typename wefti_wide<T>::type type; };
template <> struct sum_of<int32_t> { typedef int64_t type; };
template <> struct sum_of<uint8_t> { typedef int64_t type; };

/* N neighbours of an operand. */
template <typename T, int N> struct __align__(sizeof(T) * N) slice_pack { T element[N]; };
template <typename T, int N> SCALAR slice_pack<T, N> take(const place &p, int64_t i) {
    if constexpr (N > 1) return *reinterpret_cast<const slice_pack<T, N> *>(static_cast<const T *>(p.data) + i);
    slice_pack<T, N> one;
    one.element[0] = at<T>(p, i);
    return one;
}

/* Adds picks [begin, end) of the sorted list to total. */
template <typename T, int N, typename S> static __device__ void add_run(const scatter &s, int64_t outer, int64_t column, uint32_t begin, uint32_t end, S *total) {
    int64_t base = outer * s.picks * s.inner + column;
    for (uint32_t j = begin; j < end; j += 4) {
        slice_pack<T, N> u[4];
#pragma unroll
        for (uint32_t k = 0; k < 4; k++)
            if (j + k < end) u[k] = take<T, N>(s.u, base + (int64_t)s.order[j + k] * s.inner);
#pragma unroll
        for (uint32_t k = 0; k < 4; k++)
            if (j + k < end)
                for (int n = 0; n < N; n++) total[n] += (S)wefti_widen(u[k].element[n]);
    }
}

template <typename T, int N, typename S> static __device__ void finish(const scatter &s, int64_t place, const S *total) {
    slice_pack<T, N> x = take<T, N>(s.x, place);
    for (int n = 0; n < N; n++) x.element[n] = wefti_narrow<T>((typename wefti_wide<T>::type)((S)wefti_widen(x.element[n]) + total[n]));
    *reinterpret_cast<slice_pack<T, N> *>(static_cast<T *>(s.to) + place) = x;
}

/* A warp for 32 * N neighbours of a slice. Leaves long runs alone. */
template <typename T, int N> static __global__ void __launch_bounds__(BLOCK) scatter_add_forward_short_kernel(const scatter s) {
    typedef typename sum_of<T>::type S;
    int64_t unit = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP;
    if (unit >= s.outer * s.extent * s.chunks) return;
    int64_t  row = unit / s.chunks, column = (unit % s.chunks * WARP + threadIdx.x % WARP) * N, slice = row % s.extent;
    uint32_t begin = s.starts[slice], end = s.starts[slice + 1];
    if (end - begin > LONG || column >= s.inner) return;
    S total[N] = {0};
    add_run<T, N>(s, row / s.extent, column, begin, end, total);
    finish<T, N>(s, row * s.inner + column, total);
}

/* A block for 32 * N neighbours of a slice with a long run: such a run holds a multiple of LONG, and the block of its first one adds it up,
 * an eighth of it a warp. */
template <typename T, int N> static __global__ void __launch_bounds__(BLOCK) scatter_add_forward_long_kernel(const scatter s) {
    typedef typename sum_of<T>::type S;
    __shared__ S parts[WARPS][WARP * N];
    int64_t  chunk = (int64_t)blockIdx.x % s.chunks, rest = (int64_t)blockIdx.x / s.chunks, outer = rest % s.outer;
    uint32_t mark = (uint32_t)(rest / s.outer) * LONG, slice = s.keys[mark];
    if (slice >= s.extent) return;
    uint32_t begin = s.starts[slice], end = s.starts[slice + 1];
    if (end - begin <= LONG || mark - begin >= LONG) return;
    int32_t  warp = (int32_t)threadIdx.x / WARP, lane = (int32_t)threadIdx.x % WARP;
    int64_t  column = (chunk * WARP + lane) * N;
    uint32_t each = (end - begin + WARPS - 1) / WARPS, first = begin + (uint32_t)warp * each < end ? begin + (uint32_t)warp * each : end;
    S        total[N] = {0};
    if (column < s.inner) add_run<T, N>(s, outer, column, first, end - first < each ? end : first + each, total);
    for (int n = 0; n < N; n++) parts[warp][lane * N + n] = total[n];
    __syncthreads();
    if (warp != 0 || column >= s.inner) return;
    for (int n = 0; n < N; n++)
        for (int k = 1; k < WARPS; k++) total[n] += parts[k][lane * N + n];
    finish<T, N>(s, (outer * s.extent + slice) * s.inner + column, total);
}

/* --- launching --- */

/* Places in scratch, in words of four bytes: two lists of keys and two of picks, the counts, the starts. */
typedef struct scratch_layout {
    int64_t keys[2], order[2], counts, starts, words;
} scratch_layout;
static scratch_layout lay_out(int64_t picks, int64_t extent) {
    scratch_layout l;
    int64_t        at = 0, tiles = picks / TILE + 1;
    for (int k = 0; k < 2; k++) l.keys[k] = at + 2 * k * picks, l.order[k] = at + (2 * k + 1) * picks;
    l.counts = at + 4 * picks;
    l.starts = l.counts + tiles * DIGITS;
    l.words = l.starts + extent + 1;
    return l;
}

static int64_t scatter_scratch(const wefti_cuda *cuda, const wefti_call *call) {
    (void)cuda;
    return lay_out(wefti_operand_elements(&call->inputs[1]), call->inputs[0].shape.dim[call->attrs->axis.axis]).words * 4;
}

static bool accepts_scatter(const wefti_cuda *cuda, const wefti_call *call) {
    (void)cuda;
    return wefti_operand_elements(&call->inputs[1]) < (int64_t)1 << 30 && call->inputs[0].shape.dim[call->attrs->axis.axis] < (int64_t)1 << 31;
}

/* Enqueues the sorting; the lists of *s then are the sorted ones. */
static weft_status sort_picks(const wefti_cuda_run *run, scatter *s) {
    scratch_layout l = lay_out(s->picks, s->extent);
    uint32_t      *words = static_cast<uint32_t *>(run->scratch), picks = (uint32_t)s->picks;
    unsigned       tiles = wefti_cuda_blocks(s->picks, TILE, 0);
    int            now = 0;
    index_list     list = list_of(run);
    if (picks > 0)
        WEFTI_TRY(wefti_cuda_launch(run, "scatter-add", scatter_add_forward_keys_kernel, wefti_cuda_blocks(picks, BLOCK, 0), BLOCK, 0, list, picks,
                                    words + l.keys[0], words + l.order[0]));
    for (int32_t shift = 0; picks > 1 && shift < 32 && s->extent >> shift > 0; shift += DIGIT_BITS, now = 1 - now) {
        WEFTI_TRY(wefti_cuda_launch(run, "scatter-add", scatter_add_forward_count_kernel, tiles, DIGITS, 0, words + l.keys[now], picks, shift,
                                    words + l.counts));
        WEFTI_TRY(wefti_cuda_launch(run, "scatter-add", scatter_add_forward_scan_kernel, 1, SCAN_BLOCK, 0, words + l.counts, (uint32_t)(tiles * DIGITS)));
        WEFTI_TRY(wefti_cuda_launch(run, "scatter-add", scatter_add_forward_order_kernel, tiles, DIGITS, 0, words + l.keys[now], words + l.order[now],
                                    picks, shift, words + l.counts, words + l.keys[1 - now], words + l.order[1 - now]));
    }
    s->keys = words + l.keys[now];
    s->order = words + l.order[now];
    s->starts = words + l.starts;
    return wefti_cuda_launch(run, "scatter-add", scatter_add_forward_starts_kernel, wefti_cuda_blocks(s->extent + 1, BLOCK, 0), BLOCK, 0, s->keys,
                             picks, (uint32_t)s->extent, words + l.starts);
}

template <typename T, int N> static weft_status add_up(const wefti_cuda_run *run, scatter *s) {
    s->chunks = wefti_cuda_blocks(s->inner, WARP * N, 0);
    int64_t units = s->outer * s->extent * s->chunks;
    int64_t marks = (s->picks + LONG - 1) / LONG * s->outer * s->chunks;
    if (units / WARPS >= 0x7fffffff || marks >= 0x7fffffff)
        return wefti_fail(WEFT_E_UNSUPPORTED, "scatter_add '%s': %s is too large for one launch", run->call->name ? run->call->name : "",
                          weft_shape_text(run->call->outputs[0].shape).text);
    WEFTI_TRY(wefti_cuda_launch(run, "scatter-add", (scatter_add_forward_short_kernel<T, N>), wefti_cuda_blocks(units, WARPS, 0), BLOCK, 0, *s));
    if (s->picks <= LONG) return WEFT_OK;
    return wefti_cuda_launch(run, "scatter-add", (scatter_add_forward_long_kernel<T, N>), (unsigned)marks, BLOCK, 0, *s);
}

template <typename T> static weft_status add_up_all(const wefti_cuda_run *run, scatter *s) {
    const int N = 16 / sizeof(T) < 4 ? 16 / sizeof(T) : 4;
    bool      packed = is_contiguous(&s->x) && is_contiguous(&s->u) && s->inner % N == 0 &&
                  ((uintptr_t)s->x.data | (uintptr_t)s->u.data | (uintptr_t)s->to) % (N * sizeof(T)) == 0;
    return packed ? add_up<T, N>(run, s) : add_up<T, 1>(run, s);
}

static weft_status run_scatter_add(const wefti_cuda_run *run) {
    const wefti_call *call = run->call;
    scatter           s;
    sizes_of(call, &s.outer, &s.picks, &s.inner);
    s.extent = call->inputs[0].shape.dim[call->attrs->axis.axis];
    s.x = place_of(&call->inputs[0], run->inputs[0]);
    s.u = place_of(&call->inputs[2], run->inputs[2]);
    s.to = run->outputs[0];
    WEFTI_TRY(sort_picks(run, &s));
    WEFTI_DISPATCH_ANY(call->outputs[0].dtype, return add_up_all<T>(run, &s);)
    return WEFT_OK;
}
const wefti_cuda_kernel wefti_cuda_scatter_add = {
    .name = "scatter-add", .accepts = accepts_scatter, .scratch = scatter_scratch, .run = run_scatter_add};

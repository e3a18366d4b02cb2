/* SUM, MEAN, MAX and MIN over any axes, ARGMAX, EXTENT, and MEAN_BACKWARD.
 *
 * reduce.h says how a reduction is cut and in which order it is combined. A kernel here reads a strided operand: by rows in groups of
 * eight neighbours, by columns with 16 bytes of neighbouring columns a thread; where memory does not lie so, element by element in the same
 * order. 16-bit floats are summed in f32, integers in i64.
 * Cost: x is read once; few results of many elements need 8 bytes of scratch a piece and result, and a second pass over them. */
#include "cuda/reduce.h"

#include "cuda/index.cuh"
#include "cuda/scalars.cuh"
#include "cuda/vector.cuh"

enum { BLOCK = WEFTI_REDUCE_BLOCK, WARP = 32, WARPS = BLOCK / WARP, GROUP = WEFTI_REDUCE_GROUP };
/* Sums are compiled for themselves, the others with sums as ANY: what is combined is then looked up in the launch. */
enum kind { ADD, MOST, LEAST, ANY };

/* In what elements are combined. */
template <typename T> struct total_of { typedef typename wefti_wide<T>::type type; };
template <> struct total_of<int32_t> { typedef int64_t type; };
template <> struct total_of<uint8_t> { typedef int64_t type; };

SCALAR float   nothing(int kind, float) { return kind == ADD ? 0.0f : kind == MOST ? -INFINITY : INFINITY; }
SCALAR double  nothing(int kind, double) { return kind == ADD ? 0.0 : kind == MOST ? -INFINITY : INFINITY; }
SCALAR int64_t nothing(int kind, int64_t) { return kind == ADD ? 0 : kind == MOST ? INT64_MIN : INT64_MAX; }

/* NaN is handed on. */
SCALAR int64_t combine(int kind, int64_t a, int64_t b) {
    if (kind == ADD) return (int64_t)((uint64_t)a + (uint64_t)b);
    return (kind == MOST ? b > a : b < a) ? b : a;
}
SCALAR float  combine(int kind, float a, float b) { return kind == ADD ? a + b : (kind == MOST ? b > a : b < a) || b != b ? b : a; }
SCALAR double combine(int kind, double a, double b) { return kind == ADD ? a + b : (kind == MOST ? b > a : b < a) || b != b ? b : a; }

template <typename A> static __device__ __forceinline__ A combine_warp(int kind, A total) {
    for (int width = WARP / 2; width > 0; width /= 2) total = combine(kind, total, __shfl_down_sync(0xffffffffu, total, width));
    return total;
}

/* --- what a kernel is given --- */

typedef struct axes {
    wefti_space space;
    int64_t     stride[WEFT_MAX_RANK];
} axes;
typedef struct reduction {
    wefti_cuda_reduction how;
    axes                 kept, reduced;
    const void          *from;
    void                *to, *partials; /* [pieces][kept]; NULL: one piece */
    double               divisor;
    int32_t              dtype, kind;
} reduction;

/* Where element i of the axes lies. */
SCALAR int64_t along(const axes &a, int64_t i) {
    if (a.space.rank == 1) return i * a.stride[0];
    return i < (int64_t)1 << 31 ? wefti_place(a.space, a.stride, (uint32_t)i) : wefti_place(a.space, a.stride, i);
}

template <typename T, typename A> SCALAR void store(void *to, int64_t i, A total, double divisor, int dtype) {
    if constexpr (sizeof(T) == sizeof(A) || sizeof(T) == 2) {
        if (divisor != 1) total = total / (A)divisor;
        static_cast<T *>(to)[i] = wefti_narrow<T>((typename wefti_wide<T>::type)total);
    } else {
        static_cast<T *>(to)[i] = (T)s_wrap((int64_t)total, dtype);
    }
}
template <typename T, typename A> SCALAR void give(const reduction &r, int64_t piece, int64_t k, A total) {
    if (r.partials) static_cast<A *>(r.partials)[piece * r.how.kept + k] = total;
    else store<T, A>(r.to, k, total, r.divisor, r.dtype);
}

/* --- by rows --- */

/* A group of neighbours: as few accesses as 16 bytes each make of it. */
template <typename T> struct __align__(sizeof(T) * GROUP < 16 ? sizeof(T) * GROUP : 16) group { T element[GROUP]; };

template <typename T, int KIND, bool PACKED, typename A>
static __device__ __forceinline__ A combine_group(const reduction &r, int64_t origin, int64_t i, int64_t end) {
    const int kind = KIND == ANY ? r.kind : KIND;
    A         x[GROUP];
    const T  *from = static_cast<const T *>(r.from);
    if (PACKED && i + GROUP <= end) {
        group<T> g = *reinterpret_cast<const group<T> *>(from + origin + i);
#pragma unroll
        for (int v = 0; v < GROUP; v++) x[v] = (A)wefti_widen(g.element[v]);
    } else {
#pragma unroll
        for (int v = 0; v < GROUP; v++)
            x[v] = i + v < end ? (A)wefti_widen(from[origin + (PACKED ? i + v : along(r.reduced, i + v))]) : nothing(kind, A());
    }
#pragma unroll
    for (int width = 1; width < GROUP; width *= 2)
#pragma unroll
        for (int v = 0; v < GROUP; v += 2 * width) x[v] = combine(kind, x[v], x[v + width]);
    return x[0];
}

template <typename T, int KIND, int TEAM, bool PACKED> static __global__ void __launch_bounds__(BLOCK) reduce_forward_rows_kernel(const reduction r) {
    typedef typename total_of<T>::type A;
    const int    kind = KIND == ANY ? r.kind : KIND;
    __shared__ A parts[WARPS];
    int64_t      unit = (int64_t)blockIdx.x * (BLOCK / TEAM) + threadIdx.x / TEAM;
    if (unit >= r.how.kept * r.how.pieces) return; /* whole warps */
    int64_t k = unit / r.how.pieces, piece = unit - k * r.how.pieces, origin = along(r.kept, k);
    int64_t begin = piece * r.how.per_piece, end = begin + r.how.per_piece < r.how.reduced ? begin + r.how.per_piece : r.how.reduced;
    A       total = nothing(kind, A());
    for (int64_t i = begin + (int64_t)(threadIdx.x % TEAM) * GROUP; i < end; i += TEAM * GROUP)
        total = combine(kind, total, combine_group<T, KIND, PACKED, A>(r, origin, i, end));
    total = combine_warp(kind, total);
    if (TEAM > WARP) {
        if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = total;
        __syncthreads();
        if (threadIdx.x == 0)
            for (int warp = 1; warp < WARPS; warp++) total = combine(kind, total, parts[warp]);
    }
    if (threadIdx.x % TEAM == 0) give<T>(r, piece, k, total);
}

/* --- by columns --- */

/* N columns a thread; AHEAD rows are on their way at a time. */
enum { AHEAD = 4 };
template <typename T, int KIND, int N>
static __global__ void __launch_bounds__(BLOCK, WEFTI_REDUCE_COLUMN_RESIDENT) reduce_forward_columns_kernel(WEFTI_IN_PLACE reduction r) {
    typedef typename total_of<T>::type   A;
    typedef typename wefti_wide<T>::type W;
    typedef wefti_vector<T, N>           V;
    const int     team = r.how.team, wide = BLOCK / team, kind = KIND == ANY ? r.kind : KIND;
    __shared__ A  parts[BLOCK * N]; /* [team][wide * N] */
    int64_t       across = (r.how.kept + wide * N - 1) / (wide * N), piece = blockIdx.x / across;
    int32_t       x = (int32_t)threadIdx.x % wide, y = (int32_t)threadIdx.x / wide;
    int64_t       k = (((int64_t)blockIdx.x - piece * across) * wide + x) * N;
    int64_t       begin = piece * r.how.per_piece, end = begin + r.how.per_piece < r.how.reduced ? begin + r.how.per_piece : r.how.reduced;
    A             total[N];
#pragma unroll
    for (int n = 0; n < N; n++) total[n] = nothing(kind, A());
    auto add = [&](const V &v) {
        W row[N];
        v.widen(row);
#pragma unroll
        for (int n = 0; n < N; n++) total[n] = combine(kind, total[n], (A)row[n]);
    };
    if (k < r.how.kept) {
        const T      *from = static_cast<const T *>(r.from) + along(r.kept, k);
        const int64_t stride = r.reduced.stride[0];
        const bool    even = r.reduced.space.rank == 1;
        auto          at = [&](int64_t i) { return reinterpret_cast<const V *>(from + (even ? i * stride : along(r.reduced, i))); };
        int64_t       i = begin + y;
        for (; i + (AHEAD - 1) * team < end; i += team * AHEAD) {
            V rows[AHEAD];
#pragma unroll
            for (int a = 0; a < AHEAD; a++) rows[a] = *at(i + a * team);
#pragma unroll
            for (int a = 0; a < AHEAD; a++) add(rows[a]);
        }
        for (; i < end; i += team) add(*at(i));
    }
    if (team > 1) {
#pragma unroll
        for (int n = 0; n < N; n++) parts[(y * wide + x) * N + n] = total[n];
        __syncthreads();
        if (y != 0) return;
        for (int n = 0; n < N; n++)
            for (int t = 1; t < team; t++) total[n] = combine(kind, total[n], parts[(t * wide + x) * N + n]);
    }
    for (int n = 0; n < N && k + n < r.how.kept; n++) give<T>(r, piece, k + n, total[n]);
}

/* --- partial results --- */

/* Several reductions that were cut alike: one a row of the grid. */
typedef struct jobs {
    struct {
        const void *from;
        void       *to;
        double      divisor;
        int32_t     kind, dtype;
    } job[WEFTI_REDUCE_AT_ONCE];
} jobs;

template <typename A> SCALAR void store_as(void *to, int64_t i, A total, double divisor, int dtype) {
    if constexpr (sizeof(A) == sizeof(float)) {
        if (dtype == WEFT_BF16) store<__nv_bfloat16, A>(to, i, total, divisor, dtype);
        else if (dtype == WEFT_F16) store<__half, A>(to, i, total, divisor, dtype);
        else store<float, A>(to, i, total, divisor, dtype);
    } else if constexpr (A(0.5) != A(0)) {
        store<double, A>(to, i, total, divisor, dtype);
    } else {
        if (dtype == WEFT_I64) store<int64_t, A>(to, i, total, divisor, dtype);
        else if (dtype == WEFT_I32) store<int32_t, A>(to, i, total, divisor, dtype);
        else store<uint8_t, A>(to, i, total, divisor, dtype);
    }
}

/* A block has COLUMNS neighbouring results, which are read together, and for each the 32 lanes that reduce.h speaks of. */
enum { COLUMNS = BLOCK / WARP };
template <typename A> static __global__ void __launch_bounds__(BLOCK) reduce_forward_partials_kernel(const jobs given, int64_t pieces, int64_t kept) {
    __shared__ A  lanes[WARP][COLUMNS];
    const auto   &job = given.job[blockIdx.y];
    const A      *partials = static_cast<const A *>(job.from);
    const int     x = (int)threadIdx.x % COLUMNS, lane = (int)threadIdx.x / COLUMNS;
    const int64_t k = (int64_t)blockIdx.x * COLUMNS + x;
    A             total = nothing(job.kind, A());
    if (k < kept) {
#pragma unroll 4
        for (int64_t piece = lane; piece < pieces; piece += WARP) total = combine(job.kind, total, partials[piece * kept + k]);
    }
    lanes[lane][x] = total;
    for (int width = WARP / 2; width > 0; width /= 2) {
        __syncthreads();
        if (lane < width) lanes[lane][x] = combine(job.kind, lanes[lane][x], lanes[lane + width][x]);
    }
    if (lane == 0 && k < kept) store_as<A>(job.to, k, lanes[0][x], job.divisor, job.dtype);
}

static int32_t kind_of(weft_op op) { return op == WEFT_OP_MAX ? MOST : op == WEFT_OP_MIN ? LEAST : ADD; }

template <typename A> static weft_status launch_partials(const wefti_cuda_run *run, const wefti_cuda_reduction *r, const jobs &given, unsigned n) {
    if (n == 0) return WEFT_OK;
    return wefti_cuda_launch(run, "reduce", (reduce_forward_partials_kernel<A>), dim3(wefti_cuda_blocks(r->kept, COLUMNS, 0), n), BLOCK, 0, given, r->pieces,
                             r->kept);
}

extern "C" weft_status wefti_cuda_reduce_partials(const wefti_cuda_run *run, const wefti_cuda_reduction *r, const wefti_cuda_partials *partials,
                                                  int32_t n) {
    jobs     of[3]; /* by what they are combined in: f32, f64, i64 */
    unsigned count[3] = {0, 0, 0};
    memset(of, 0, sizeof of);
    for (int32_t i = 0; i < n; i++) {
        const wefti_cuda_partials *p = &partials[i];
        int                        which = p->dtype == WEFT_F64 ? 1 : weft_dtype_is_float(p->dtype) ? 0 : 2;
        of[which].job[count[which]++] = {p->from, p->to, p->divisor, kind_of(p->op), (int32_t)p->dtype};
    }
    WEFTI_TRY(launch_partials<float>(run, r, of[0], count[0]));
    WEFTI_TRY(launch_partials<double>(run, r, of[1], count[1]));
    return launch_partials<int64_t>(run, r, of[2], count[2]);
}

/* --- launching --- */

/* The operand's axes, divided: merged where they are of one kind and lie evenly. */
static void divide_axes(const wefti_operand *x, uint32_t mask, reduction *r) {
    wefti_operand        totals = *x;
    const wefti_operand *both[2] = {x, &totals};
    wefti_cuda_view_of   views[2], part[2];
    int64_t              stride = 1;
    for (int32_t axis = x->shape.rank - 1; axis >= 0; axis--) {
        bool away = mask >> axis & 1;
        totals.stride[axis] = away ? 0 : stride;
        if (!away) stride *= x->shape.dim[axis] > 0 ? x->shape.dim[axis] : 1;
    }
    wefti_cuda_views(x->shape, both, 2, views);
    memset(part, 0, sizeof part);
    for (int32_t axis = 0; axis < views[0].rank; axis++) {
        wefti_cuda_view_of *into = &part[views[1].stride[axis] == 0];
        into->dim[into->rank] = views[0].dim[axis];
        into->stride[into->rank++] = views[0].stride[axis];
    }
    for (int k = 0; k < 2; k++) {
        axes *a = k ? &r->reduced : &r->kept;
        if (part[k].rank == 0) part[k].rank = 1, part[k].dim[0] = 1, part[k].stride[0] = 0;
        a->space = wefti_space_of(&part[k]);
        memcpy(a->stride, part[k].stride, sizeof a->stride);
    }
}

/* Whether `count` neighbours along `fast` can be read in one aligned access wherever they begin at a multiple of it. */
static bool is_packed(const reduction *r, const axes *fast, const axes *other, int64_t count, int64_t bytes, bool rank_one) {
    int32_t last = fast->space.rank - 1;
    int64_t unit = count * bytes < 16 ? count * bytes : 16;
    if (fast->stride[last] != 1 || (rank_one && last > 0) || (!rank_one && fast->space.dim[last] % count)) return false;
    for (int32_t axis = 0; axis < last; axis++)
        if (fast->stride[axis] * bytes % unit) return false;
    for (int32_t axis = 0; axis < other->space.rank; axis++)
        if (other->space.dim[axis] > 1 && other->stride[axis] * bytes % unit) return false;
    return (uintptr_t)r->from % (uintptr_t)unit == 0;
}

template <typename T, int KIND, bool PACKED> static weft_status launch_rows(const wefti_cuda_run *run, const reduction *r) {
    int64_t  units = r->how.kept * r->how.pieces, per_block = BLOCK / r->how.team;
    unsigned blocks = wefti_cuda_blocks(units, per_block, 0);
    if (units / per_block >= 0x7fffffff)
        return wefti_fail(WEFT_E_UNSUPPORTED, "%s: too many rows for one launch", wefti_ops[run->call->op].name);
    if (r->how.team == WARP) return wefti_cuda_launch(run, "reduce", (reduce_forward_rows_kernel<T, KIND, WARP, PACKED>), blocks, BLOCK, 0, *r);
    return wefti_cuda_launch(run, "reduce", (reduce_forward_rows_kernel<T, KIND, BLOCK, PACKED>), blocks, BLOCK, 0, *r);
}

template <typename T, int KIND, int N> static weft_status launch_columns(const wefti_cuda_run *run, const reduction *r) {
    int64_t across = (int64_t)BLOCK / r->how.team * N, blocks = (r->how.kept + across - 1) / across * r->how.pieces;
    if (blocks > 0x7fffffff) return wefti_fail(WEFT_E_UNSUPPORTED, "%s: too many results for one launch", wefti_ops[run->call->op].name);
    return wefti_cuda_launch(run, "reduce", (reduce_forward_columns_kernel<T, KIND, N>), (unsigned)blocks, BLOCK, 0, *r);
}

/* The wide accesses are for floats: integers are seldom reduced. */
template <typename T> static weft_status launch_reduction(const wefti_cuda_run *run, const reduction *r) {
    if constexpr (sizeof(typename total_of<T>::type) == sizeof(float) || (sizeof(T) == 8 && T(0.5) != T(0))) {
        const int N = 16 / sizeof(T);
        if (r->how.by_rows && is_packed(r, &r->reduced, &r->kept, GROUP, sizeof(T), true))
            return r->kind == ADD ? launch_rows<T, ADD, true>(run, r) : launch_rows<T, ANY, true>(run, r);
        if (!r->how.by_rows && r->how.kept >= 2 * WARP && is_packed(r, &r->kept, &r->reduced, N, sizeof(T), false))
            return r->kind == ADD ? launch_columns<T, ADD, N>(run, r) : launch_columns<T, ANY, N>(run, r);
    }
    return r->how.by_rows ? launch_rows<T, ANY, false>(run, r) : launch_columns<T, ANY, 1>(run, r);
}

static int64_t reduce_scratch(const wefti_cuda *cuda, const wefti_call *call) {
    (void)cuda;
    wefti_cuda_reduction how = wefti_cuda_reduction_of(call->inputs[0].shape, call->attrs->reduce.axes);
    return wefti_cuda_reduction_scratch(&how);
}

static weft_status run_reduce(const wefti_cuda_run *run) {
    const wefti_operand *x = &run->call->inputs[0];
    const wefti_attrs   *attrs = run->call->attrs;
    reduction            r;
    r.how = wefti_cuda_reduction_of(x->shape, attrs->reduce.axes);
    divide_axes(x, attrs->reduce.axes, &r);
    r.from = run->inputs[0];
    r.to = run->outputs[0];
    r.partials = r.how.pieces > 1 ? run->scratch : NULL;
    r.dtype = x->dtype;
    r.kind = kind_of(run->call->op);
    r.divisor = run->call->op != WEFT_OP_MEAN ? 1 : attrs->reduce.count != 0 ? attrs->reduce.count : (double)r.how.reduced;
    WEFTI_DISPATCH_ANY(x->dtype, WEFTI_TRY(launch_reduction<T>(run, &r));)
    if (!r.partials) return WEFT_OK;
    wefti_cuda_partials partials = {run->call->op, x->dtype, r.divisor, r.partials, r.to};
    return wefti_cuda_reduce_partials(run, &r.how, &partials, 1);
}
const wefti_cuda_kernel wefti_cuda_reduce = {.name = "reduce", .scratch = reduce_scratch, .run = run_reduce};

/* Casts between floats that follow one another, in few launches: those of a network's parameters, most of which are so small that a launch takes longer.
 *
 * A block takes TURN elements of one of them, and finds which by looking through where each begins. What lies as the result does is read in
 * accesses of 16 bytes; what lies otherwise, as kernels do whose channels come last in one of both, by strides over up to three merged axes, whose
 * lines stay in the cache until the neighbours of an element have been read. Cost: memory traffic. */
#include "cuda/index.cuh"
#include "cuda/joined.h"

enum { BLOCK = 256, EACH = 8, TURN = BLOCK * EACH, AXES = 3, TOGETHER = 60 /* what goes into the 4 KiB of a launch's parameters */ };

typedef struct cast_part {
    const void   *x;
    void         *y;
    uint32_t      elements;
    int32_t       stride[AXES]; /* of x; stride[AXES - 1] is 1 and the others 0 where x lies as y does */
    wefti_divider by[AXES - 1]; /* of y's axes but the first */
} cast_part;
typedef struct cast_parts {
    int32_t   n;
    uint32_t  first[TOGETHER + 1]; /* first[i]: turns before part i */
    cast_part of[TOGETHER];
} cast_parts;
static_assert(sizeof(cast_parts) <= 4096, "a launch's parameters");

template <typename From, typename To> static __device__ __forceinline__ To cast_one(From x) { return wefti_narrow<To>(wefti_widen(x)); }

template <typename From, typename To> static __global__ void __launch_bounds__(BLOCK) cast_forward_parts_kernel(WEFTI_IN_PLACE cast_parts all) {
    struct __align__(16) from { From element[EACH]; };
    struct __align__(16) to { To element[EACH]; };
    int32_t at = 0;
    while (blockIdx.x >= all.first[at + 1]) at++;
    const cast_part &p = all.of[at];
    const From      *x = static_cast<const From *>(p.x);
    To              *y = static_cast<To *>(p.y);
    uint32_t         begin = (blockIdx.x - all.first[at]) * TURN;
    if (p.stride[AXES - 2] == 0) {
        uint32_t i = begin + threadIdx.x * EACH;
        if (i + EACH <= p.elements) {
            from in = *reinterpret_cast<const from *>(x + i);
            to   out;
#pragma unroll
            for (int k = 0; k < EACH; k++) out.element[k] = cast_one<From, To>(in.element[k]);
            *reinterpret_cast<to *>(y + i) = out;
        } else {
            for (; i < p.elements; i++) y[i] = cast_one<From, To>(x[i]);
        }
        return;
    }
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        uint32_t i = begin + k * BLOCK + threadIdx.x;
        if (i >= p.elements) break;
        uint32_t above = wefti_divide(i, p.by[1]), place = (i - above * p.by[1].by) * (uint32_t)p.stride[2], top = wefti_divide(above, p.by[0]);
        place += (above - top * p.by[0].by) * (uint32_t)p.stride[1] + top * (uint32_t)p.stride[0];
        y[i] = cast_one<From, To>(x[place]);
    }
}

/* --- which casts --- */

static bool is_pair(weft_dtype from, weft_dtype to) {
    return (from == WEFT_F32 && (to == WEFT_BF16 || to == WEFT_F16)) || (to == WEFT_F32 && (from == WEFT_BF16 || from == WEFT_F16));
}

/* How the call goes through memory; false where that takes more axes, or more than 31 bits. */
static bool lay_out(const wefti_call *call, cast_part *p) {
    wefti_operand        whole;
    const wefti_operand *operands[2] = {&call->inputs[0], &whole};
    wefti_cuda_view_of   views[2];
    int64_t              last = 0;
    memset(p, 0, sizeof *p);
    memset(&whole, 0, sizeof whole);
    whole.shape = call->outputs[0].shape;
    wefti_contiguous_strides(whole.shape, whole.stride);
    wefti_cuda_views(whole.shape, operands, 2, views);
    int64_t elements = weft_shape_elements(whole.shape);
    if (views[0].rank > AXES || elements > 0x3fffffff || weft_shape_elements(call->inputs[0].shape) != elements) return false;
    if (elements == 1) views[0].stride[0] = 1;
    for (int32_t axis = 0; axis < views[0].rank; axis++) {
        if (views[0].stride[axis] < 1 || views[0].stride[axis] > 0x3fffffff) return false;
        last += (views[0].dim[axis] - 1) * views[0].stride[axis];
    }
    if (last > 0x3fffffff || elements < 1 || (views[0].rank == 1 && views[0].stride[0] != 1)) return false;
    p->elements = (uint32_t)elements;
    p->by[0] = p->by[1] = wefti_divider_of(1);
    for (int32_t axis = 0; axis < AXES; axis++) {
        int32_t from = axis - (AXES - views[0].rank);
        if (from < 0) continue;
        p->stride[axis] = (int32_t)views[0].stride[from];
        if (axis > 0) p->by[axis - 1] = wefti_divider_of(views[0].dim[from]);
    }
    return true;
}

extern "C" bool wefti_cuda_casts_join(const wefti_cuda *cuda, const wefti_call *const *calls, int32_t n, const wefti_call *next) {
    const wefti_call *first = calls[0];
    cast_part         p;
    (void)cuda;
    if (first->op != WEFT_OP_CAST || next->op != WEFT_OP_CAST || n >= WEFTI_CUDA_MOST_JOINED) return false;
    if (first->inputs[0].dtype != next->inputs[0].dtype || first->outputs[0].dtype != next->outputs[0].dtype) return false;
    if (!is_pair(first->inputs[0].dtype, first->outputs[0].dtype) || (n == 1 && !lay_out(first, &p)) || !lay_out(next, &p)) return false;
    return wefti_cuda_undisturbed(calls, n, next);
}

/* --- launching --- */

template <typename From, typename To> static weft_status launch(const wefti_cuda_run *run, const cast_parts *all) {
    return wefti_cuda_launch(run, "cast", (cast_forward_parts_kernel<From, To>), all->first[all->n], BLOCK, 0, *all);
}
static weft_status launch_pair(const wefti_cuda_run *run, const cast_parts *all) {
    weft_dtype from = run->call->inputs[0].dtype, to = run->call->outputs[0].dtype;
    if (to == WEFT_BF16) return launch<float, __nv_bfloat16>(run, all);
    if (to == WEFT_F16) return launch<float, __half>(run, all);
    return from == WEFT_BF16 ? launch<__nv_bfloat16, float>(run, all) : launch<__half, float>(run, all);
}

/* What lies as the result does, but not on 16 bytes, is read element by element: as one row of several, whose stride does not matter. */
static void avoid_vectors(cast_part *p) {
    if (p->stride[AXES - 2] != 0 || (wefti_is_aligned(p->x) && wefti_is_aligned(p->y))) return;
    p->stride[AXES - 2] = 1;
}

extern "C" weft_status wefti_cuda_casts_run(const wefti_cuda_run *runs, int32_t n) {
    cast_parts all;
    all.n = 0, all.first[0] = 0;
    for (int32_t i = 0; i < n; i++) {
        cast_part *p = &all.of[all.n];
        if (!lay_out(runs[i].call, p)) return wefti_fail(WEFT_E_INTERNAL, "cast '%s' was joined with others", runs[i].call->name ? runs[i].call->name : "");
        p->x = runs[i].inputs[0];
        p->y = runs[i].outputs[0];
        avoid_vectors(p);
        all.first[all.n + 1] = all.first[all.n] + (p->elements + TURN - 1) / TURN;
        if (++all.n < TOGETHER && i + 1 < n) continue;
        WEFTI_TRY(launch_pair(runs, &all));
        all.n = 0;
    }
    return WEFT_OK;
}

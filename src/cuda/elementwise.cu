/* Elementwise ops, and FUSED without reduced outputs.
 *
 * Three kinds of kernels: vectors of 16 bytes for the commonest single ops on contiguous memory, the same with a cast, and an interpreter
 * for everything else, for which a single op is a program of one instruction. All compute by scalars.def and round after every
 * instruction, so fusing changes no bits. An element is computed by one thread, which reads its inputs before it writes its outputs:
 * an output may be an input's memory.
 * Cost: the vectors run at the memory's speed; the interpreter keeps a program's values in local memory (the first-level cache), and is
 * what is used where fused programs cannot be compiled (fused.c). */
#include "cuda/index.cuh"
#include "cuda/joined.h"
#include "cuda/scalars.cuh"

/* Enough warps to hide the memory's latency at any use of registers up to 128. */
enum { BLOCK = 256 };

/* --- the interpreter --- */

typedef union value {
    float   f;
    double  d;
    int64_t i;
} value;

enum { NOT_COMPUTED = -1000 };

typedef struct source {
    const void *data;
    int64_t     stride[WEFT_MAX_RANK];
    int32_t     dtype;
} source;
typedef struct step {
    int16_t  op, dtype, from; /* of the result; of the operand that decides how it is computed */
    int16_t  input[3];        /* >= 0: a source; else -1-j: the result of step j; NOT_COMPUTED where there is none */
    int16_t  index;           /* DROPOUT: the source whose place is the global index, less `base` */
    int64_t  base;
    uint64_t key;
    double   p, q; /* CLAMP: lo, hi; DROPOUT: p*2^24 rounded up, and what is kept is multiplied by */
} step;
typedef struct sink {
    void   *data;
    int32_t step, dtype;
} sink;

/* What a launch is given, by value: small for single ops, since it travels with every launch. */
template <int SOURCES, int STEPS> struct program {
    int32_t     n_sources, n_steps, n_sinks;
    int64_t     elements;
    wefti_space space;
    source      sources[SOURCES];
    step        steps[STEPS];
    sink        sinks[STEPS];
};

SCALAR bool is_integer(int dtype) { return dtype == WEFT_I64 || dtype == WEFT_I32 || dtype == WEFT_U8 || dtype == WEFT_BOOL; }

SCALAR value load(const void *data, int64_t i, int dtype) {
    value v;
    v.i = 0;
    switch (dtype) {
    case WEFT_F32: v.f = static_cast<const float *>(data)[i]; break;
    case WEFT_F64: v.d = static_cast<const double *>(data)[i]; break;
    case WEFT_BF16: v.f = s_of_bf16(static_cast<const uint16_t *>(data)[i]); break;
    case WEFT_F16: v.f = s_of_f16(static_cast<const uint16_t *>(data)[i]); break;
    case WEFT_I64: v.i = static_cast<const int64_t *>(data)[i]; break;
    case WEFT_I32: v.i = static_cast<const int32_t *>(data)[i]; break;
    default: v.i = static_cast<const uint8_t *>(data)[i];
    }
    return v;
}

SCALAR void store(void *data, int64_t i, int dtype, value v) {
    switch (dtype) {
    case WEFT_F32: static_cast<float *>(data)[i] = v.f; break;
    case WEFT_F64: static_cast<double *>(data)[i] = v.d; break;
    case WEFT_BF16: static_cast<uint16_t *>(data)[i] = s_to_bf16(v.f); break;
    case WEFT_F16: static_cast<uint16_t *>(data)[i] = s_to_f16(v.f); break;
    case WEFT_I64: static_cast<int64_t *>(data)[i] = v.i; break;
    case WEFT_I32: static_cast<int32_t *>(data)[i] = (int32_t)v.i; break;
    default: static_cast<uint8_t *>(data)[i] = (uint8_t)v.i;
    }
}

SCALAR value cast(value x, int from, int to) {
    value y;
    y.i = 0;
    if (is_integer(from)) {
        if (is_integer(to)) y.i = s_wrap(x.i, to);
        else if (to == WEFT_F64) y.d = (double)x.i;
        else y.f = s_round((float)x.i, to);
    } else {
        double wide = from == WEFT_F64 ? x.d : (double)x.f;
        if (is_integer(to)) y.i = s_saturate(wide, to);
        else if (to == WEFT_F64) y.d = wide;
        else y.f = s_round((float)wide, to);
    }
    return y;
}

/* What is neither DROPOUT nor WHERE nor CAST. */
SCALAR value compute(const step &it, value a, value b) {
    value y;
    y.i = 0;
    if (is_integer(it.from)) {
        if (s_is_question(it.op)) y.i = s_answer(it.op, a.i, b.i);
        else y.i = s_wrap(s_number(it.op, a.i, b.i, s_saturate(it.p, it.dtype), s_saturate(it.q, it.dtype)), it.dtype);
    } else if (it.from == WEFT_F64) {
        if (s_is_question(it.op)) y.i = s_answer(it.op, a.d, b.d);
        else y.d = s_number(it.op, a.d, b.d, it.p, it.q);
    } else {
        if (s_is_question(it.op)) y.i = s_answer(it.op, a.f, b.f);
        else if (it.from == WEFT_F32) y.f = s_round(s_number(it.op, a.f, b.f, (float)it.p, (float)it.q), it.dtype);
        else y.f = s_round(s_short_number(it.op, a.f, b.f, (float)it.p, (float)it.q), it.dtype);
    }
    return y;
}

SCALAR value drop(const step &it, value x, int64_t draw, int64_t index) {
    bool  keeps = s_keeps_at(it.key, (uint64_t)draw, (uint64_t)index, (uint32_t)it.p);
    value y;
    y.i = 0;
    if (it.dtype == WEFT_F64) y.d = keeps ? x.d * it.q : 0.0;
    else y.f = keeps ? s_round(x.f * (float)it.q, it.dtype) : 0.0f;
    return y;
}

template <int SOURCES, int STEPS, typename Index>
static __global__ void __launch_bounds__(BLOCK) elementwise_forward_interpreted_kernel(const program<SOURCES, STEPS> p) {
    Index elements = (Index)p.elements;
    for (Index i = (Index)blockIdx.x * BLOCK + threadIdx.x; i < elements; i += (Index)gridDim.x * BLOCK) {
        value result[STEPS];
        for (int32_t j = 0; j < p.n_steps; j++) {
            value x[3];
            for (int32_t k = 0; k < 3; k++) {
                int32_t from = p.steps[j].input[k];
                x[k].i = 0;
                if (from >= 0) x[k] = load(p.sources[from].data, wefti_place(p.space, p.sources[from].stride, i), p.sources[from].dtype);
                else if (from != NOT_COMPUTED) x[k] = result[-1 - from];
            }
            int32_t op = p.steps[j].op;
            if (op == WEFT_OP_WHERE) result[j] = x[0].i ? x[1] : x[2];
            else if (op == WEFT_OP_CAST) result[j] = cast(x[0], p.steps[j].from, p.steps[j].dtype);
            else if (op == WEFT_OP_DROPOUT)
                result[j] = drop(p.steps[j], x[0], x[1].i, p.steps[j].base + wefti_place(p.space, p.sources[p.steps[j].index].stride, i));
            else result[j] = compute(p.steps[j], x[0], x[1]);
        }
        for (int32_t k = 0; k < p.n_sinks; k++) store(p.sinks[k].data, (int64_t)i, p.sinks[k].dtype, result[p.sinks[k].step]);
    }
}

/* --- contiguous memory, one op --- */

/* In what elements of T are computed, and how they get there and back. */
template <typename T> struct wide {
    typedef typename wefti_wide<T>::type R;
    static __host__ __device__ __forceinline__ R in(T x) { return wefti_widen(x); }
    static __host__ __device__ __forceinline__ T out(R x) { return wefti_narrow<T>(x); }
};
template <typename T> struct wide_integer {
    typedef int64_t R;
    static __host__ __device__ __forceinline__ R in(T x) { return (int64_t)x; }
    static __host__ __device__ __forceinline__ T out(R x) { return (T)(uint64_t)x; }
};
template <> struct wide<int64_t> : wide_integer<int64_t> {};
template <> struct wide<int32_t> : wide_integer<int32_t> {};
template <> struct wide<uint8_t> : wide_integer<uint8_t> {};

typedef struct single {
    int32_t     op, b_is_one; /* b is one element, for all */
    int64_t     elements;
    const void *a, *b;
    void       *y;
    double      lo, hi;
} single;

template <int KIND, typename R> SCALAR R one_of(int op, R a, R b, R lo, R hi) {
    if constexpr (KIND == S_PLAIN) return s_plain(op, a, lo, hi);
    else return s_plain_of_two(op, a, b);
}

/* A thread computes 16 bytes; the last ones, which do not fill them, element by element. */
template <typename T, int KIND> static __global__ void __launch_bounds__(BLOCK) elementwise_forward_packed_kernel(const single s) {
    typedef wide<T>          W;
    typedef typename W::R    R;
    const int N = wefti_pack<T>::COUNT;
    const T  *a = static_cast<const T *>(s.a), *b = static_cast<const T *>(s.b);
    T        *y = static_cast<T *>(s.y);
    int64_t   begin = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * N;
    if (begin >= s.elements) return; /* y may be b: one that has nothing to write must not read it */
    R         lo = (R)s.lo, hi = (R)s.hi, one = KIND == S_PLAIN_OF_TWO && s.b_is_one ? W::in(b[0]) : R(0);
    if (begin + N <= s.elements) {
        wefti_pack<T> x = *reinterpret_cast<const wefti_pack<T> *>(a + begin), z = x, out;
        if (KIND == S_PLAIN_OF_TWO && !s.b_is_one) z = *reinterpret_cast<const wefti_pack<T> *>(b + begin);
        for (int k = 0; k < N; k++)
            out.element[k] = W::out(one_of<KIND>(s.op, W::in(x.element[k]), s.b_is_one ? one : W::in(z.element[k]), lo, hi));
        *reinterpret_cast<wefti_pack<T> *>(y + begin) = out;
    } else {
        for (int64_t i = begin; i < s.elements; i++)
            y[i] = W::out(one_of<KIND>(s.op, W::in(a[i]), KIND == S_PLAIN_OF_TWO && !s.b_is_one ? W::in(b[i]) : one, lo, hi));
    }
}

/* Ops that cost more than memory when they are looked up for each element: each has a kernel of its own. */
#define MATH_OPS(X) X(EXP) X(EXPM1) X(LOG) X(LOG1P) X(SIN) X(COS) X(TANH) X(SIGMOID) X(ERF) X(SOFTPLUS) X(GELU) X(GELU_TANH) X(SILU) \
    X(GELU_BACKWARD) X(GELU_TANH_BACKWARD) X(SILU_BACKWARD)

template <typename T, int OP> SCALAR T math_of(T a, T b) {
    const bool two = s_kind(OP) == S_MATH_OF_TWO;
    if constexpr (sizeof(T) == 2) return wefti_narrow<T>(two ? q_math_of_two(OP, wefti_widen(a), wefti_widen(b)) : q_math(OP, wefti_widen(a)));
    else return two ? s_math_of_two(OP, a, b) : s_math(OP, a);
}
template <typename T, int OP> static __global__ void __launch_bounds__(BLOCK) elementwise_forward_math_kernel(const single s) {
    const int N = wefti_pack<T>::COUNT;
    const bool two = s_kind(OP) == S_MATH_OF_TWO;
    const T  *a = static_cast<const T *>(s.a), *b = static_cast<const T *>(two ? s.b : s.a);
    T        *y = static_cast<T *>(s.y);
    int64_t   begin = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * N;
    if (begin + N <= s.elements) {
        wefti_pack<T> x = *reinterpret_cast<const wefti_pack<T> *>(a + begin), z = x;
        if (two) z = *reinterpret_cast<const wefti_pack<T> *>(b + begin);
#pragma unroll
        for (int k = 0; k < N; k++) x.element[k] = math_of<T, OP>(x.element[k], z.element[k]);
        *reinterpret_cast<wefti_pack<T> *>(y + begin) = x;
    } else {
        for (int64_t i = begin; i < s.elements; i++) y[i] = math_of<T, OP>(a[i], b[i]);
    }
}

/* Casts between floats: a thread computes eight elements. */
enum { CAST_ELEMENTS = 8 };
template <typename From, typename To>
static __global__ void __launch_bounds__(BLOCK) elementwise_forward_cast_kernel(int64_t elements, const From *x, To *y) {
    struct __align__(sizeof(From) * CAST_ELEMENTS < 16 ? sizeof(From) * CAST_ELEMENTS : 16) from { From element[CAST_ELEMENTS]; };
    struct __align__(sizeof(To) * CAST_ELEMENTS < 16 ? sizeof(To) * CAST_ELEMENTS : 16) to { To element[CAST_ELEMENTS]; };
    int64_t begin = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * CAST_ELEMENTS;
    if (begin + CAST_ELEMENTS <= elements) {
        from in = *reinterpret_cast<const from *>(x + begin);
        to   out;
        for (int k = 0; k < CAST_ELEMENTS; k++)
            out.element[k] = wefti_narrow<To>((typename wefti_wide<To>::type)wefti_widen(in.element[k]));
        *reinterpret_cast<to *>(y + begin) = out;
    } else {
        for (int64_t i = begin; i < elements; i++) y[i] = wefti_narrow<To>((typename wefti_wide<To>::type)wefti_widen(x[i]));
    }
}

/* --- launching --- */

template <typename T> static weft_status launch_packed(const wefti_cuda_run *run, const single *s, int kind) {
    unsigned blocks = wefti_cuda_blocks(s->elements, (int64_t)BLOCK * wefti_pack<T>::COUNT, 0);
    if (kind == S_PLAIN) return wefti_cuda_launch(run, "elementwise", (elementwise_forward_packed_kernel<T, S_PLAIN>), blocks, BLOCK, 0, *s);
    return wefti_cuda_launch(run, "elementwise", (elementwise_forward_packed_kernel<T, S_PLAIN_OF_TWO>), blocks, BLOCK, 0, *s);
}
template <typename T> static weft_status launch_math(const wefti_cuda_run *run, const single *s) {
    unsigned blocks = wefti_cuda_blocks(s->elements, (int64_t)BLOCK * wefti_pack<T>::COUNT, 0);
#define LAUNCH_MATH(OP)                                                                                                              \
    case WEFT_OP_##OP: return wefti_cuda_launch(run, "elementwise", (elementwise_forward_math_kernel<T, WEFT_OP_##OP>), blocks, BLOCK, 0, *s);
    switch (s->op) {
        MATH_OPS(LAUNCH_MATH)
    default: return wefti_fail(WEFT_E_INTERNAL, "cuda: no kernel computes %s alone", wefti_ops[s->op].name);
    }
#undef LAUNCH_MATH
}

static bool is_packed(const wefti_cuda_run *run, int32_t i) {
    return wefti_operand_is_contiguous(&run->call->inputs[i]) && wefti_is_aligned(run->inputs[i]) &&
           wefti_operand_elements(&run->call->inputs[i]) == wefti_operand_elements(&run->call->outputs[0]);
}

/* Whether the call is one for the packed kernels; its parameters then stand in *s. */
static bool single_of(const wefti_cuda_run *run, single *s) {
    const wefti_call *call = run->call;
    int               kind = s_kind(call->op);
    bool              two = kind == S_PLAIN_OF_TWO || (kind == S_MATH_OF_TWO && call->op != WEFT_OP_POW);
    if (kind != S_PLAIN && kind != S_MATH && !two) return false;
    if (call->outputs[0].dtype == WEFT_BOOL || !is_packed(run, 0) || !wefti_is_aligned(run->outputs[0])) return false;
    memset(s, 0, sizeof *s);
    s->op = call->op;
    s->elements = wefti_operand_elements(&call->outputs[0]);
    s->a = run->inputs[0];
    s->y = run->outputs[0];
    if (call->op == WEFT_OP_CLAMP) {
        bool whole = !weft_dtype_is_float(call->outputs[0].dtype);
        s->lo = whole ? (double)s_saturate(call->attrs->clamp.lo, call->outputs[0].dtype) : call->attrs->clamp.lo;
        s->hi = whole ? (double)s_saturate(call->attrs->clamp.hi, call->outputs[0].dtype) : call->attrs->clamp.hi;
        if (call->outputs[0].dtype == WEFT_I64) return false; /* its bounds may be more than a double holds */
    }
    if (!two) return true;
    s->b = run->inputs[1];
    s->b_is_one = kind == S_PLAIN_OF_TWO && wefti_operand_elements(&call->inputs[1]) == 1;
    return s->b_is_one || is_packed(run, 1);
}

static weft_status run_packed(const wefti_cuda_run *run, const single *s) {
    weft_dtype dtype = run->call->outputs[0].dtype;
    if (s_kind(s->op) == S_MATH || s_kind(s->op) == S_MATH_OF_TWO) {
        WEFTI_DISPATCH_FLOAT(dtype, return launch_math<T>(run, s);)
    } else {
        WEFTI_DISPATCH_ANY(dtype, return launch_packed<T>(run, s, s_kind(s->op));)
    }
    return WEFT_OK;
}

template <typename From, typename To> static weft_status launch_cast(const wefti_cuda_run *run) {
    int64_t elements = wefti_operand_elements(&run->call->outputs[0]);
    return wefti_cuda_launch(run, "cast", (elementwise_forward_cast_kernel<From, To>), wefti_cuda_blocks(elements, (int64_t)BLOCK * CAST_ELEMENTS, 0),
                             BLOCK, 0, elements, static_cast<const From *>(run->inputs[0]), static_cast<To *>(run->outputs[0]));
}
template <typename From> static weft_status cast_from(const wefti_cuda_run *run) {
    WEFTI_DISPATCH_FLOAT(run->call->outputs[0].dtype, return (launch_cast<From, T>(run));)
    return WEFT_OK;
}
static bool is_cast_of_floats(const wefti_cuda_run *run) {
    const wefti_call *call = run->call;
    return call->op == WEFT_OP_CAST && weft_dtype_is_float(call->inputs[0].dtype) && weft_dtype_is_float(call->outputs[0].dtype) &&
           is_packed(run, 0) && wefti_is_aligned(run->outputs[0]);
}

/* --- making programs --- */

/* An operand whose place is the element's index in the global tensor, without the window's base, which is given. */
static wefti_operand index_operand(const wefti_window *window, weft_shape space, int64_t *base_out) {
    wefti_operand operand;
    weft_shape    global = space;
    memset(&operand, 0, sizeof operand);
    operand.shape = space;
    if (window->split) global.dim[window->axis] = window->global;
    wefti_contiguous_strides(global, operand.stride);
    *base_out = window->split ? window->begin * operand.stride[window->axis] : 0;
    return operand;
}

static void set_attributes(step *it, const wefti_attrs *attrs) {
    if (it->op == WEFT_OP_CLAMP) {
        it->p = attrs->clamp.lo;
        it->q = attrs->clamp.hi;
    } else if (it->op == WEFT_OP_DROPOUT) {
        it->p = ceil(attrs->dropout.p * 16777216);
        it->q = 1 / (1 - attrs->dropout.p);
        it->key = attrs->dropout.key;
    }
}

/* Fills the program but for its outputs. */
template <int SOURCES, int STEPS>
static void fill_program(const wefti_cuda_run *run, weft_shape space, const wefti_fused_instruction *list, int32_t n, program<SOURCES, STEPS> *p) {
    const wefti_call    *call = run->call;
    wefti_operand        indices[STEPS], whole;
    const wefti_operand *operands[SOURCES + 1];
    wefti_cuda_view_of   views[SOURCES + 1];
    memset(p, 0, sizeof *p);
    p->n_sources = call->n_inputs;
    p->n_steps = n;
    p->elements = weft_shape_elements(space);
    for (int32_t i = 0; i < call->n_inputs; i++) {
        operands[i] = &call->inputs[i];
        p->sources[i].data = run->inputs[i];
        p->sources[i].dtype = call->inputs[i].dtype;
    }
    for (int32_t j = 0; j < n; j++) {
        step *it = &p->steps[j];
        it->op = (int16_t)list[j].op;
        it->dtype = (int16_t)list[j].dtype;
        for (int32_t k = 0; k < 3; k++)
            it->input[k] = (int16_t)(k < wefti_ops[it->op].inputs_max ? list[j].source[k] : NOT_COMPUTED);
        it->from = (int16_t)(it->input[0] < 0 ? p->steps[-1 - it->input[0]].dtype : p->sources[it->input[0]].dtype);
        set_attributes(it, &list[j].attrs);
        if (it->op != WEFT_OP_DROPOUT) continue;
        indices[j] = index_operand(&list[j].attrs.dropout.window, space, &it->base);
        operands[p->n_sources] = &indices[j];
        it->index = (int16_t)p->n_sources++;
    }
    memset(&whole, 0, sizeof whole);
    whole.shape = space;
    wefti_contiguous_strides(space, whole.stride);
    operands[p->n_sources] = &whole;
    wefti_cuda_views(space, operands, p->n_sources + 1, views);
    p->space = wefti_space_of(&views[p->n_sources]);
    for (int32_t i = 0; i < p->n_sources; i++) memcpy(p->sources[i].stride, views[i].stride, sizeof p->sources[i].stride);
}

template <int SOURCES, int STEPS> static weft_status interpret(const wefti_cuda_run *run, const program<SOURCES, STEPS> *p) {
    /* Four elements a thread at least where there are many, so that the program is fetched seldom. */
    unsigned blocks = wefti_cuda_blocks(p->elements, BLOCK, (int64_t)run->cuda->multiprocessors * 64);
    if (wefti_is_small(p->elements + (int64_t)blocks * BLOCK))
        return wefti_cuda_launch(run, "elementwise", (elementwise_forward_interpreted_kernel<SOURCES, STEPS, uint32_t>), blocks, BLOCK, 0, *p);
    return wefti_cuda_launch(run, "elementwise", (elementwise_forward_interpreted_kernel<SOURCES, STEPS, int64_t>), blocks, BLOCK, 0, *p);
}

static weft_status run_elementwise(const wefti_cuda_run *run) {
    single s;
    if (single_of(run, &s)) return run_packed(run, &s);
    if (is_cast_of_floats(run)) {
        WEFTI_DISPATCH_FLOAT(run->call->inputs[0].dtype, return cast_from<T>(run);)
    }
    const wefti_operand    *output = &run->call->outputs[0];
    wefti_fused_instruction only;
    program<4, 1>           p;
    memset(&only, 0, sizeof only);
    only.op = run->call->op;
    only.dtype = output->dtype;
    for (int32_t k = 0; k < 3; k++) only.source[k] = k;
    only.attrs = *run->call->attrs;
    fill_program(run, output->shape, &only, 1, &p);
    p.n_sinks = 1;
    p.sinks[0].data = run->outputs[0];
    p.sinks[0].dtype = output->dtype;
    return interpret(run, &p);
}
const wefti_cuda_kernel wefti_cuda_elementwise = {.name = "elementwise", .run = run_elementwise, .joins = wefti_cuda_casts_join, .run_all = wefti_cuda_casts_run};

/* --- FUSED --- */

/* Inputs of the interpreted program: those of the planner's widest, and an index for each DROPOUT. */
enum { FUSED_SOURCES = 64 };

static bool accepts_fused(const wefti_cuda *cuda, const wefti_call *call) {
    const wefti_fused *fused = call->attrs->fused.fused;
    int32_t            sources = call->n_inputs;
    (void)cuda;
    if (wefti_fused_rows(fused) >= 0) return false;
    for (int32_t j = 0; j < fused->n_instructions; j++) sources += fused->instruction[j].op == WEFT_OP_DROPOUT;
    for (int32_t k = 0; k < fused->n_outputs; k++)
        if (fused->output[k].reduce >= 0) return false;
    return sources <= FUSED_SOURCES;
}

static weft_status run_fused(const wefti_cuda_run *run) {
    const wefti_fused                      *fused = run->call->attrs->fused.fused;
    program<FUSED_SOURCES, WEFTI_FUSED_MAX> p;
    fill_program(run, fused->space, fused->instruction, fused->n_instructions, &p);
    p.n_sinks = fused->n_outputs;
    for (int32_t k = 0; k < fused->n_outputs; k++) {
        p.sinks[k].data = run->outputs[k];
        p.sinks[k].step = fused->output[k].instruction;
        p.sinks[k].dtype = run->call->outputs[k].dtype;
    }
    return interpret(run, &p);
}
const wefti_cuda_kernel wefti_cuda_fused = {.name = "fused, interpreted", .accepts = accepts_fused, .run = run_fused};

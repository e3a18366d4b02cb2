/* Calls that write variables in place: ASSIGN, and UPDATE by the solver rules.
 *
 * An element of an update goes through the order of core/iface/rule.h, each operation rounded by itself, so that results are those of the
 * rules' own loops. What changes from step to step is read from device memory by each block, whose first thread makes the element type's
 * scalars of it once; so a captured step is never rebuilt. Where rows shrink, a second kernel gives each row to a warp or a block, which
 * finds its length in f64 by sums in a fixed order. Updates that follow one another are done by one launch for each 52 of them: most parameters
 * of a network are so small that a launch takes longer than their update. Rules of the application are refused: they are functions of the host.
 * Cost: memory traffic, 28 bytes an element for Adam in f32; as much scratch as the gradient where that is not contiguous. */
#include "cuda/index.cuh"
#include "cuda/joined.h"
#include "cuda/move.h"
#include "cuda/scalars.cuh"

/* Blocks stay and go on through the parameters, so that what each makes of the hyperparameters is made seldom. There are as many as are there at
 * once, which registers are given out by: of eight, six were, and the others came when those were done, to a multiprocessor with two. */
enum { BLOCK = 256, BLOCKS_EACH = 4, WARP = 32, WARPS = BLOCK / WARP };

/* --- ASSIGN --- */

static weft_status run_assign(const wefti_cuda_run *run) {
    const wefti_operand *x = &run->call->inputs[1];
    if (run->inputs[1] == run->outputs[0] && wefti_operand_is_contiguous(x)) return WEFT_OK;
    return wefti_cuda_pack(run, x, run->call->outputs[0].shape, run->inputs[1], run->outputs[0]);
}
const wefti_cuda_kernel wefti_cuda_assign = {.name = "assign", .run = run_assign};

/* --- UPDATE, element by element --- */

typedef struct update {
    int64_t       elements;
    void         *theta, *m, *v; /* states that the rule has */
    const void   *gradient;
    const double *hyper;
    double        l2, decay, l1, group;
    int64_t       row; /* elements of one, where rows shrink */
    uint64_t      key; /* of the numbers that round a parameter in bf16 */
} update;

/* Parameters of one launch. They are cut into turns of BLOCK * N * TURN elements, which blocks take one after another. All of a turn is on its way
 * before any of it is stored: behind a store the compiler cannot know what it may load. */
enum { TURN = 2, TOGETHER = 52 /* what goes into the 4 KiB of a launch's parameters */ };
typedef struct part {
    void       *theta, *m, *v;
    const void *gradient;
    int64_t     elements;
    double      l2, decay, l1;
    uint64_t    key;
} part;
typedef struct parts {
    const double *hyper;
    int32_t       n, first[TOGETHER + 1]; /* first[i]: turns before part i */
    part          of[TOGETHER];
} parts;

template <typename T> struct factors {
    T      rate, scale, clip, l2, decay, shrink, a, b, eps, adam_rate, unbias;
    bool   clips, shrinks, skips;
    uint64_t step;
};
struct exact_factors {
    double rate, unit; /* unit: a proximal step's length */
};

/* As wefti_rule_gain. */
static __device__ double gain_of(int rule, const double *h) {
    double a = h[WEFTI_HYPER_A], built = (1 - pow(a, h[WEFTI_HYPER_STEP])) / (1 - a);
    return rule == WEFTI_RULE_MOMENTUM ? built : rule == WEFTI_RULE_NESTEROV ? 1 + a * built : 1;
}

template <typename T, int RULE> static __device__ void read_factors(const double *h, factors<T> *f, exact_factors *exact) {
    double rate = h[WEFTI_HYPER_RATE];
    bool   adam = RULE == WEFTI_RULE_ADAM;
    *f = factors<T>(); /* all of it is copied, and what is each parameter's filled in then */
    f->rate = (T)rate;
    f->scale = (T)h[WEFTI_HYPER_SCALE];
    f->clip = (T)h[WEFTI_HYPER_CLIP];
    f->a = (T)h[WEFTI_HYPER_A];
    f->b = (T)h[WEFTI_HYPER_B];
    f->eps = (T)h[WEFTI_HYPER_EPS];
    f->adam_rate = adam ? (T)(rate / (1 - pow(h[WEFTI_HYPER_A], h[WEFTI_HYPER_STEP]))) : T(0);
    f->unbias = adam ? (T)(1 / sqrt(1 - pow(h[WEFTI_HYPER_B], h[WEFTI_HYPER_STEP]))) : T(1);
    f->clips = h[WEFTI_HYPER_CLIP] > 0;
    f->skips = h[WEFTI_HYPER_SKIP] != 0;
    f->step = (uint64_t)h[WEFTI_HYPER_STEP];
    exact->rate = rate;
    exact->unit = rate * gain_of(RULE, h);
}
template <typename T> static __device__ __forceinline__ void read_part(const part &u, const exact_factors &exact, factors<T> *f) {
    f->l2 = (T)u.l2;
    f->decay = (T)(1 - exact.rate * u.decay);
    f->shrinks = u.l1 != 0;
    f->shrink = f->shrinks ? (T)(exact.unit * u.l1) : T(0);
}

/* One element. NaN stays NaN. */
template <typename T, int RULE> static __device__ __forceinline__ T updated(const factors<T> &f, T theta, T gradient, T *m, T *v) {
    T g = f.scale * gradient;
    if (f.clips) g = g > f.clip ? f.clip : g < -f.clip ? -f.clip : g;
    g = g + f.l2 * theta;
    T next = f.decay * theta, root = T(1), square = T(1); /* root divides the proximal step where there was a gradient */
    if (RULE == WEFTI_RULE_SGD) {
        next = next - f.rate * g;
    } else if (RULE == WEFTI_RULE_MOMENTUM) {
        *m = f.a * *m + g;
        next = next - f.rate * *m;
    } else if (RULE == WEFTI_RULE_NESTEROV) {
        *m = f.a * *m + g;
        next = next - f.rate * (g + f.a * *m);
    } else if (RULE == WEFTI_RULE_ADAM) {
        *m = f.a * *m + (T(1) - f.a) * g;
        square = *v = f.b * *v + (T(1) - f.b) * (g * g);
        root = m_sqrt(square) * f.unbias + f.eps;
        next = next - f.adam_rate * *m / root;
    } else {
        square = *m = RULE == WEFTI_RULE_ADAGRAD ? *m + g * g : f.a * *m + (T(1) - f.a) * (g * g);
        root = m_sqrt(square) + f.eps;
        next = next - f.rate * g / root;
    }
    if (f.shrinks) {
        T size = m_abs(next) - (square > T(0) ? f.shrink / root : f.shrink);
        next = size <= T(0) ? T(0) : next > T(0) ? size : -size;
    }
    return next;
}

/* What is stored of an element: itself, or bf16, rounded by a random word as core/tensor/rounding.h has it. */
template <typename S> struct rounding {
    static const bool RANDOM = false;
    template <typename T> static __device__ __forceinline__ S store(T x, uint32_t) { return x; }
};
template <> struct rounding<__nv_bfloat16> {
    static const bool RANDOM = true;
    static __device__ __forceinline__ __nv_bfloat16 store(float x, uint32_t word) {
        uint32_t bits = __float_as_uint(x), above = bits >> 16;
        bool     finite = (bits & 0x7f800000u) != 0x7f800000u;
        return __ushort_as_bfloat16((unsigned short)(finite ? (bits + (word >> 16)) >> 16 : bits & 0x7fffffu ? above | 0x40u : above));
    }
};

/* N neighbours, of the parameter stored as S and all else as T, in one access each. Moments and gradients are not read again in this step, and need not
 * stay in the cache. */
template <typename T, typename S, int RULE, int N> struct neighbours {
    static const int STATES = RULE == WEFTI_RULE_SGD ? 0 : RULE == WEFTI_RULE_ADAM ? 2 : 1;
    static_assert(!rounding<S>::RANDOM || N == 1 || N == 4, "a block of random words for each pack");
    wefti_many<S, N> theta;
    wefti_many<T, N> gradient, m, v;

    __device__ __forceinline__ void load(const part &u, int64_t i) {
        theta = *reinterpret_cast<const wefti_many<S, N> *>(static_cast<const S *>(u.theta) + i);
        gradient = wefti_load_once<N>(static_cast<const T *>(u.gradient) + i);
        if (STATES > 0) m = wefti_load_once<N>(static_cast<const T *>(u.m) + i);
        if (STATES > 1) v = wefti_load_once<N>(static_cast<const T *>(u.v) + i);
    }
    __device__ __forceinline__ void update(const factors<T> &f, const part &u, int64_t i) {
        s_words words = {{0, 0, 0, 0}};
        if (rounding<S>::RANDOM) words = s_philox(u.key, f.step, (uint64_t)i / 4);
#pragma unroll
        for (int n = 0; n < N; n++)
            theta.element[n] = rounding<S>::store(updated<T, RULE>(f, wefti_widen(theta.element[n]), gradient.element[n], &m.element[n], &v.element[n]),
                                                  words.word[N == 1 ? i % 4 : n]);
    }
    __device__ __forceinline__ void store(const part &u, int64_t i) const {
        *reinterpret_cast<wefti_many<S, N> *>(static_cast<S *>(u.theta) + i) = theta;
        if (STATES > 0) wefti_store_once<N>(static_cast<T *>(u.m) + i, m);
        if (STATES > 1) wefti_store_once<N>(static_cast<T *>(u.v) + i, v);
    }
};

/* The turn in which a parameter ends: the last elements, which do not fill an access, one by one. */
template <typename T, typename S, int RULE, int N> static __device__ __forceinline__ void update_end(const factors<T> &f, const part &u, int64_t first) {
    for (int64_t i = first; i < u.elements && i < first + (int64_t)TURN * BLOCK * N; i += BLOCK * N) {
        if (i + N <= u.elements) {
            neighbours<T, S, RULE, N> some;
            some.load(u, i);
            some.update(f, u, i);
            some.store(u, i);
            continue;
        }
        for (int64_t j = i; j < u.elements; j++) {
            neighbours<T, S, RULE, 1> one;
            one.load(u, j);
            one.update(f, u, j);
            one.store(u, j);
        }
    }
}

template <typename T, typename S, int RULE, int N>
static __global__ void __launch_bounds__(BLOCK, BLOCKS_EACH) update_forward_elements_kernel(WEFTI_IN_PLACE parts all) {
    __shared__ factors<T>    shared;
    __shared__ exact_factors exact;
    if (threadIdx.x == 0) read_factors<T, RULE>(all.hyper, &shared, &exact);
    __syncthreads();
    factors<T> f = shared;
    if (f.skips) return;
    int32_t at = -1;
    for (int32_t turn = (int32_t)blockIdx.x; turn < all.first[all.n]; turn += (int32_t)gridDim.x) {
        if (at < 0 || turn >= all.first[at + 1]) {
            do at++;
            while (turn >= all.first[at + 1]);
            read_part(all.of[at], exact, &f);
        }
        const part &u = all.of[at];
        int64_t     begin = (int64_t)(turn - all.first[at]) * (TURN * BLOCK * N), first = begin + (int64_t)threadIdx.x * N;
        if (begin + TURN * BLOCK * N > u.elements) {
            update_end<T, S, RULE, N>(f, u, first);
            continue;
        }
        neighbours<T, S, RULE, N> some[TURN];
#pragma unroll
        for (int k = 0; k < TURN; k++) some[k].load(u, first + k * BLOCK * N);
#pragma unroll
        for (int k = 0; k < TURN; k++) {
            some[k].update(f, u, first + k * BLOCK * N);
            some[k].store(u, first + k * BLOCK * N);
        }
    }
}

/* --- rows --- */

/* The sum over a team of a warp or a block, given to all of it. */
template <int TEAM> static __device__ double sum_team(double x, double *parts) {
    for (int width = WARP / 2; width > 0; width /= 2) x += __shfl_xor_sync(0xffffffffu, x, width);
    if (TEAM == WARP) return x;
    __syncthreads(); /* the last sum has been read */
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    x = parts[0];
    for (int warp = 1; warp < WARPS; warp++) x += parts[warp];
    return x;
}
template <int TEAM> static __device__ double most_of_team(double x, double *parts) {
    for (int width = WARP / 2; width > 0; width /= 2) x = fmax(x, __shfl_xor_sync(0xffffffffu, x, width));
    if (TEAM == WARP) return x;
    __syncthreads();
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    x = parts[0];
    for (int warp = 1; warp < WARPS; warp++) x = fmax(x, parts[warp]);
    return x;
}

/* The proximal step of a row's norm, as the rules' own (core/rules/rules_body.h): Newton's steps to where the shares' squares sum to 1. */
template <typename T, int TEAM> static __global__ void __launch_bounds__(BLOCK) update_forward_rows_kernel(const update u, int32_t rule, const T *second) {
    __shared__ double parts[WARPS];
    const double     *h = u.hyper;
    int64_t           row = (int64_t)blockIdx.x * (BLOCK / TEAM) + threadIdx.x / TEAM;
    double            size = h[WEFTI_HYPER_RATE] * gain_of(rule, h) * u.group, eps = h[WEFTI_HYPER_EPS];
    double            unbias = rule == WEFTI_RULE_ADAM ? 1 / sqrt(1 - pow(h[WEFTI_HYPER_B], h[WEFTI_HYPER_STEP])) : 1;
    if (row * u.row >= u.elements || h[WEFTI_HYPER_SKIP] != 0 || !(size > 0)) return; /* whole teams */
    T       *theta = static_cast<T *>(u.theta) + row * u.row;
    const T *square = second ? second + row * u.row : NULL;
    int64_t  first = threadIdx.x % TEAM;
    auto     step = [&](int64_t i) { return square && square[i] > T(0) ? size / (sqrt((double)square[i]) * unbias + eps) : size; };
    double   at_zero = 0, length = 0, longest = 0;
    for (int64_t i = first; i < u.row; i += TEAM) {
        double share = (double)theta[i] / step(i);
        at_zero += share * share;
        length += (double)theta[i] * (double)theta[i];
        longest = fmax(longest, step(i));
    }
    at_zero = sum_team<TEAM>(at_zero, parts);
    length = sum_team<TEAM>(length, parts);
    longest = most_of_team<TEAM>(longest, parts);
    double norm = at_zero <= 1 ? 0 : fmax(sqrt(length) - longest, 0.0);
    for (int round = 0; round < 30 && at_zero > 1; round++) {
        double sum = 0, slope = 0;
        for (int64_t i = first; i < u.row; i += TEAM) {
            double width = norm + step(i), share = (double)theta[i] / width;
            sum += share * share;
            slope += share * share / width;
        }
        sum = sum_team<TEAM>(sum, parts);
        slope = sum_team<TEAM>(slope, parts);
        double next = norm + sum / slope * (sqrt(sum) - 1);
        bool   same = fabs(next - norm) <= 1e-15 * next;
        norm = next;
        if (same) break;
    }
    for (int64_t i = first; i < u.row; i += TEAM) theta[i] = (T)((double)theta[i] * (norm / (norm + step(i))));
}

template <typename T> static weft_status shrink_rows(const wefti_cuda_run *run, const update *u, int32_t rule) {
    const T *second = static_cast<const T *>(rule == WEFTI_RULE_ADAM ? u->v : rule == WEFTI_RULE_ADAGRAD || rule == WEFTI_RULE_RMSPROP ? u->m : NULL);
    int64_t  rows = u->elements / u->row;
    if (rows >= 0x7fffffff) return wefti_fail(WEFT_E_UNSUPPORTED, "update '%s': too many rows for one launch", run->call->name ? run->call->name : "");
    if (u->row <= 8 * WARP)
        return wefti_cuda_launch(run, "update", (update_forward_rows_kernel<T, WARP>), wefti_cuda_blocks(rows, WARPS, 0), BLOCK, 0, *u, rule, second);
    return wefti_cuda_launch(run, "update", (update_forward_rows_kernel<T, BLOCK>), (unsigned)rows, BLOCK, 0, *u, rule, second);
}

/* --- launching --- */

template <typename T, typename S, int RULE, int N> static weft_status launch_parts(const wefti_cuda_run *run, const parts *all) {
    int64_t most = (int64_t)run->cuda->multiprocessors * BLOCKS_EACH;
    return wefti_cuda_launch(run, "update", (update_forward_elements_kernel<T, S, RULE, N>), wefti_cuda_blocks(all->first[all->n], 1, most), BLOCK, 0, *all);
}

template <typename T, typename S, int N> static weft_status launch_rule(const wefti_cuda_run *run, const parts *all) {
    switch (run->call->attrs->update.rule->id) {
    case WEFTI_RULE_SGD: return launch_parts<T, S, WEFTI_RULE_SGD, N>(run, all);
    case WEFTI_RULE_MOMENTUM: return launch_parts<T, S, WEFTI_RULE_MOMENTUM, N>(run, all);
    case WEFTI_RULE_NESTEROV: return launch_parts<T, S, WEFTI_RULE_NESTEROV, N>(run, all);
    case WEFTI_RULE_ADAGRAD: return launch_parts<T, S, WEFTI_RULE_ADAGRAD, N>(run, all);
    case WEFTI_RULE_RMSPROP: return launch_parts<T, S, WEFTI_RULE_RMSPROP, N>(run, all);
    default: return launch_parts<T, S, WEFTI_RULE_ADAM, N>(run, all);
    }
}

static bool accepts_update(const wefti_cuda *cuda, const wefti_call *call) {
    weft_dtype dtype = call->outputs[0].dtype;
    (void)cuda;
    return call->attrs->update.rule->id < WEFTI_RULE_USER && (dtype == WEFT_F32 || dtype == WEFT_F64 || dtype == WEFT_BF16) &&
           wefti_operand_is_contiguous(&call->inputs[2]);
}

static int64_t update_scratch(const wefti_cuda *cuda, const wefti_call *call) {
    (void)cuda;
    if (wefti_operand_is_contiguous(&call->inputs[1]) && weft_shape_equal(call->inputs[1].shape, call->outputs[0].shape)) return 0;
    return wefti_operand_elements(&call->outputs[0]) * (int64_t)weft_dtype_bytes(call->inputs[1].dtype);
}

/* The call's update, with its gradient made contiguous. */
static weft_status read_update(const wefti_cuda_run *run, update *u) {
    const wefti_call *call = run->call;
    int32_t           states = call->attrs->update.rule->n_states;
    u->elements = wefti_operand_elements(&call->outputs[0]);
    u->theta = run->outputs[0];
    u->m = states > 0 ? const_cast<void *>(run->inputs[3]) : NULL;
    u->v = states > 1 ? const_cast<void *>(run->inputs[4]) : NULL;
    u->gradient = run->inputs[1];
    u->hyper = static_cast<const double *>(run->inputs[2]);
    u->l2 = call->attrs->update.l2;
    u->decay = call->attrs->update.decay;
    u->l1 = call->attrs->update.l1;
    u->group = call->attrs->update.group;
    u->row = wefti_rule_row(call->outputs[0].shape);
    u->key = call->attrs->update.key;
    if (update_scratch(run->cuda, call) == 0) return WEFT_OK;
    u->gradient = run->scratch;
    return wefti_cuda_pack(run, &call->inputs[1], call->outputs[0].shape, run->inputs[1], run->scratch);
}

static bool is_packed(const update *u) {
    return wefti_is_aligned(u->theta) && wefti_is_aligned(u->gradient) && wefti_is_aligned(u->m) && wefti_is_aligned(u->v);
}

/* Takes one more parameter in; false: there is no room. */
static bool add_part(parts *all, const update *u, int64_t turn) {
    int64_t turns = u->elements / turn + (u->elements % turn != 0);
    if (all->n == TOGETHER || turns > INT32_MAX - 65536 - all->first[all->n]) return false; /* a block's last turn is counted beyond the end */
    part *to = &all->of[all->n];
    to->theta = u->theta, to->m = u->m, to->v = u->v, to->gradient = u->gradient;
    to->elements = u->elements;
    to->l2 = u->l2, to->decay = u->decay, to->l1 = u->l1, to->key = u->key;
    all->first[all->n + 1] = all->first[all->n] + (int32_t)turns;
    all->hyper = u->hyper;
    all->n++;
    return true;
}

/* Those of the calls whose addresses allow N elements in one access, or those whose addresses do not. */
template <typename T, typename S, int N> static weft_status launch_updates(const wefti_cuda_run *runs, const update *u, int32_t n) {
    const bool packed = N > 1;
    parts      all;
    all.n = 0, all.first[0] = 0;
    for (int32_t i = 0; i < n; i++) {
        if (is_packed(&u[i]) != packed) continue;
        if (add_part(&all, &u[i], (int64_t)TURN * BLOCK * N)) continue;
        if (all.n == 0) return wefti_fail(WEFT_E_UNSUPPORTED, "update '%s': too large for one launch", runs[i].call->name ? runs[i].call->name : "");
        WEFTI_TRY((launch_rule<T, S, N>(runs, &all)));
        all.n = 0;
        i--;
    }
    return all.n > 0 ? launch_rule<T, S, N>(runs, &all) : WEFT_OK;
}

static weft_status launch_all(const wefti_cuda_run *runs, const update *u, int32_t n) {
    if (runs->call->outputs[0].dtype == WEFT_F64) {
        WEFTI_TRY((launch_updates<double, double, 2>(runs, u, n)));
        return launch_updates<double, double, 1>(runs, u, n);
    }
    if (runs->call->outputs[0].dtype == WEFT_BF16) {
        WEFTI_TRY((launch_updates<float, __nv_bfloat16, 4>(runs, u, n)));
        return launch_updates<float, __nv_bfloat16, 1>(runs, u, n);
    }
    WEFTI_TRY((launch_updates<float, float, 4>(runs, u, n)));
    return launch_updates<float, float, 1>(runs, u, n);
}

static weft_status run_update(const wefti_cuda_run *run) {
    update  u;
    int32_t rule = (int32_t)run->call->attrs->update.rule->id;
    WEFTI_TRY(read_update(run, &u));
    WEFTI_TRY(launch_all(run, &u, 1));
    if (u.group <= 0) return WEFT_OK;
    return run->call->outputs[0].dtype == WEFT_F64 ? shrink_rows<double>(run, &u, rule) : shrink_rows<float>(run, &u, rule);
}

/* --- several at once --- */

static weft_status run_updates(const wefti_cuda_run *runs, int32_t n) {
    update u[WEFTI_CUDA_MOST_JOINED];
    for (int32_t i = 0; i < n; i++) WEFTI_TRY(read_update(&runs[i], &u[i]));
    return launch_all(runs, u, n);
}

static bool overlap(const wefti_operand *a, const wefti_operand *b) {
    int64_t a_bytes = wefti_operand_elements(a) * (int64_t)weft_dtype_bytes(a->dtype), b_bytes = wefti_operand_elements(b) * (int64_t)weft_dtype_bytes(b->dtype);
    return a->buffer == b->buffer && a->offset_bytes < b->offset_bytes + b_bytes && b->offset_bytes < a->offset_bytes + a_bytes;
}

/* Whether one writes what the other reads. All operands are contiguous. */
static bool disturbs(const wefti_call *writer, const wefti_call *reader) {
    for (int32_t w = 0; w < writer->n_inputs; w++)
        for (int32_t r = 0; r < reader->n_inputs; r++)
            if ((w == 0 || w >= 3) && overlap(&writer->inputs[w], &reader->inputs[r])) return true;
    return false;
}

static bool joins_update(const wefti_cuda *cuda, const wefti_call *const *calls, int32_t n, const wefti_call *next) {
    const wefti_call *first = calls[0];
    (void)cuda;
    if (n >= WEFTI_CUDA_MOST_JOINED || first->attrs->update.rule != next->attrs->update.rule || first->outputs[0].dtype != next->outputs[0].dtype) return false;
    if (first->attrs->update.group > 0 || next->attrs->update.group > 0 || update_scratch(NULL, first) > 0 || update_scratch(NULL, next) > 0) return false;
    if (first->inputs[2].buffer != next->inputs[2].buffer || first->inputs[2].offset_bytes != next->inputs[2].offset_bytes) return false;
    for (int32_t i = 0; i < n; i++)
        if (disturbs(calls[i], next) || disturbs(next, calls[i])) return false;
    return true;
}

extern "C" const wefti_cuda_kernel wefti_cuda_update = {.name = "update", .accepts = accepts_update, .scratch = update_scratch, .run = run_update,
                                                        .joins = joins_update, .run_all = run_updates};

/* What an operation is, for everyone who builds, rewrites, plans or computes one: the enum from ops.def, the
 * attributes, operands, fused programs, and the mathematical definition of each.
 *
 * Conventions. Broadcasting aligns shapes from the right, as NumPy does. Results in f16 and bf16 are computed in f32
 * (long sums in f64 or a fixed tree) and rounded once per op to nearest even: fusing never changes that rounding, but for what is
 * fused with a product (FUSED_MATMUL), which is rounded less often, as the libraries' epilogues do.
 * Subnormals may count as zero, and be made zero, in all ops of a device or in none.
 * Operands of one op have one dtype unless said otherwise; integers wrap; bool is 0 or 1. Reductions run in an order
 * fixed by the shape alone, never by the number of threads.
 *
 * Sizes that count samples are never written into a graph as numbers: builders and gradients use MEAN, MEAN_BACKWARD and
 * EXTENT, whose divisor a strategy sets to the global count, so that a smaller last batch, ranks and micro-batches all mean the
 * same program. FULL, ARANGE and RANDOM take whatever split their user has.
 *
 * Definitions beyond the obvious (inputs in parentheses; g: the incoming gradient):
 *   FULL             every element is attrs.full.value
 *   ARANGE           flat element i is start + i*step
 *   RANDOM(step)     counter-based (Philox4x32-10, Salmon et al. 2011): element i of the global tensor from (key, step, i)
 *   CAST             to attrs.cast.dtype; float to integer truncates and saturates (NaN gives 0); to bool: x != 0
 *   DETACH           x, without gradient
 *   ABS              gradient at 0 is 0
 *   CLAMP            min(max(x, lo), hi); NaN stays; the gradient passes where lo <= x <= hi
 *   DROPOUT(x, step) x/(1-p) where uniform(key, step, global index) >= p, else 0; linear in x, so its gradient is itself on g
 *   ROUND            to nearest even
 *   GELU             x*Phi(x), exact; GELU_TANH the tanh approximation (Hendrycks & Gimpel 2016); SILU x*sigmoid(x)
 *   SOFTPLUS         log(1+exp(x)) computed as max(x,0)+log1p(exp(-|x|))
 *   RELU_BACKWARD(g, x), GELU_BACKWARD, GELU_TANH_BACKWARD, SILU_BACKWARD: g times the derivative at x (relu: x > 0)
 *   DIV              of integers truncates, by zero gives 0
 *   POW              as C's pow; MAXIMUM, MINIMUM propagate NaN and give each side half of the gradient on ties
 *   WHERE(c, x, y)   c is bool; x where c, else y
 *   SUM, MEAN, MAX, MIN over attrs.reduce.axes (a bit mask); `keep` leaves them with size 1. SUM over nothing is 0, MEAN is NaN;
 *                    MAX, MIN, ARGMAX over an empty axis are refused when built. MAX, MIN propagate NaN; ties share the gradient equally.
 *   MEAN             divides by attrs.reduce.count where that is not 0 (a strategy sets the global count), else by the extent
 *   MEAN_BACKWARD(g) g, shaped as MEAN's output, broadcast back over attrs.reduce.axes to attrs.reduce.shape and divided as MEAN divides
 *   EXTENT(x)        scalar: the number of elements of x along attrs.reduce.axes (attrs.reduce.count where that is not 0), in x's dtype where
 *                    that is floating, else f32
 *   ARGMAX           i64 index of the first maximum along the one axis in the mask (a NaN counts as the maximum)
 *   RESHAPE          to attrs.view.shape. PERMUTE: output axis i is input axis attrs.view.axes[i]. EXPAND: broadcast to attrs.view.shape
 *   SLICE            per axis start (>= 0), step (>= 1) and size: output index i is input index start + i*step
 *   CONCAT(x...)     along attrs.axis.axis
 *   PAD              per axis low, high (>= 0) and interior (fill between elements), filled with attrs.pad.value
 *   GATHER(x, index) along axis a: shape x[:a] + index.shape + x[a+1:]; index i32 or i64; out of range reads zeros, never other memory
 *   SCATTER_ADD(x, index, u) x plus u's slices added at index along axis a (u shaped as GATHER's output); out of range dropped; fixed order
 *   OCCURRENCE(index [R, K]) i32: how many elements of the same value come before each, in the order of columns, then of rows; -1 where the
 *                    value is not in [0, attrs.expert.experts)
 *   MATMUL(a, b)     over the last two axes, transposed first where trans_a, trans_b; leading axes broadcast; both of rank >= 2
 *   EXPERT_MATMUL(x [R, in], w [E, in, out], index [R*n]) row r is x[r/n]*w[index[r]], n being attrs.expert.repeat, w [E, out, in] where
 *                    attrs.expert.trans; zeros where the index is not in [0, E). share > 0 promises that of the n choices of the whole batch, no expert has
 *                    more than floor(share*n) + 1
 *   EXPERT_MATMUL_BACKWARD_WEIGHT(x, g [R*n, out], index) -> the gradient of w, of attrs.expert.experts experts: sums over each one's rows,
 *                    in their order
 *   CONV2D(x, w)     cross-correlation, x [N,C,H,W], w [O,C/groups,KH,KW] -> [N,O,OH,OW]; pad is top, bottom, left, right
 *   CONV2D_BACKWARD_INPUT(g, w) -> attrs.conv.input; CONV2D_BACKWARD_WEIGHT(g, x) -> attrs.conv.weight
 *   MAX_POOL2D(x)    -> y, and the i32 index of the chosen element in its H*W plane; padding is -infinity; the first maximum wins, NaN wins over all
 *                    Where a plan wants it so, the index is a u8 instead: the element's place in its window, in rows, 255 where there is none; for windows of
 *                    at most 255 elements
 *   MAX_POOL2D_BACKWARD(g, index) adds g at index in planes of attrs.pool.input; MAX_POOL2D_TAKE(x, index) is y[i] = x[index[i]] per plane
 *   AVG_POOL2D       mean over the window; padding counts unless attrs.pool.exclude_pad; AVG_POOL2D_BACKWARD(g) -> attrs.pool.input
 *   NORMALIZE(x)     over the last attrs.rows.axes axes: y = (x - mean)*rstd, rstd = 1/sqrt(var + eps), biased variance; with attrs.rows.rms
 *                    y = x*rstd, rstd = 1/sqrt(mean(x^2) + eps). Outputs y (as x) and rstd (the leading axes; f32, for f64 f64)
 *   NORMALIZE_BACKWARD(g, y, rstd) -> rstd*(g - mean(g) - y*mean(g*y)); without mean(g) for rms
 *   SOFTMAX, LOG_SOFTMAX over the last axis; SOFTMAX_BACKWARD(g, y) = y*(g - sum(g*y)); LOG_SOFTMAX_BACKWARD(g, y) = g - exp(y)*sum(g)
 *   ROTARY(x [..., T, D]) D even: the pair (i, i + D/2) at position t turns by (t + offset)*base^(-2i/D) (Su et al. 2021, half-split layout);
 *                    attrs.rotary.inverse turns back
 *   CROSS_ENTROPY(logits [..., C], label [...] of i32 or i64) -> loss per row, log-sum-exp per row (f32, for f64 f64). A row whose label is
 *                    attrs.loss.ignored gives 0; smoothing s: (1-s)*nll + s*mean over classes of -log p. A label out of range gives NaN.
 *   CROSS_ENTROPY_BACKWARD(g rows, logits, label, lse) -> gradient of the logits, dtype of the logits
 *   ATTENTION(q [B,H,T,D], k [B,Hk,S,D], v [B,Hk,S,Dv]), H a multiple of Hk: softmax(scale*q*k^T + causal mask)*v -> o [B,H,T,Dv],
 *                    lse [B,H,T] (f32, for f64 f64); memory linear in T and S (Dao et al. 2022). Causal aligns the last query with the last key; with
 *                    attrs.attention.shift each sees so many more (fewer where negative). One that sees none has zeros, and lse -infinity
 *   ATTENTION_BACKWARD(g, q, k, v, o, lse) -> dq, dk, dv
 *                    With attrs.attention.by_rows, which only planners ask for and only of devices that say attention_by_rows, results lie as
 *                    products of rows have them: o as [B,T,H,Dv], and the gradient, where H = Hk, T = S, D = Dv, is one output that lies as
 *                    [B,T,3*H,D]: dq, dk and dv of each row side by side
 *   MODE(a, b)       a while training, b otherwise: resolved by the planner
 *   FUSED_MATMUL(a, b, x...) -> y...[, sums] of matrices: what MATMUL(a, b) gives is input 0 of the program attrs.matmul.fused, whose space is [m, n] or
 *                    has m as several axes; x are its inputs from 1 on and y its outputs, the first of them whole. NULL: y is the product. What
 *                    stands between instructions, and what column sums add up, may be wider than its dtype: only what is stored must have been
 *                    rounded; ADDs in a row may be done in any order. attrs.matmul.sums: the sums over the inner index of a's rows [m] or
 *                    b's columns [n] (after the transposes)
 *   ASSIGN(state, x) stores x into the variable; the output is the new value
 *   UPDATE(parameter, gradient, hyper, state...) the solver rule attrs.update.rule, in place; hyper is f64[WEFTI_HYPER_COUNT]; the output is
 *                    the new parameter. Of a parameter in bf16, gradient and states are f32, and the new one is rounded stochastically, by numbers from
 *                    (attrs.update.key, STEP, element) (core/tensor/rounding.h)
 *   ALL_REDUCE(x...) output i is x[i] reduced over the ranks by attrs.comm.reduce; one message for the list
 *   ALL_GATHER(x), REDUCE_SCATTER(x): along attrs.comm.axis; the result's shape is attrs.comm.global
 *   ALL_TO_ALL(x [ranks, ...]) row i is what rank i has as this rank's row
 *   EXCHANGE_ROWS(x [rows, ...], counts i32 [2, ranks]) the first counts[0][0] rows of x go to member 0, the next counts[0][1] to member 1, and so on;
 *                    counts[1][i] rows come from member i, in this order, one behind the other. The result is shaped attrs.comm.global; rows behind those that
 *                    came are whatever was there. Counts that do not fit x or the result end the run
 *   SEND(x)          gives x to member attrs.comm.peer of the group; an effect. Its output is x, for whoever wants to come after it.
 *                    With attrs.comm.axis n > 0 it has ended when the n-th SEND behind it to the same member begins, else at the end of the run
 *   RECEIVE()        what member attrs.comm.peer sends: attrs.comm.dtype, shaped attrs.comm.global. Both are matched by their order between the two
 *                    members, which is that of their ids in the graph
 *   ENCODE(x of f32) -> u8 [parts, bytes]: row i is elements [i*part, (i+1)*part) of x, row-major and followed by zeros, in the form of
 *                    attrs.codec.codec (core/tensor/codec.h)
 *   DECODE(u8 [parts, bytes]) -> f32 [count]: the parts one behind the other; with attrs.codec.sum their sum, from the first. Bytes that
 *                    are no such form fail the run with WEFT_E_CORRUPT
 *   FP8_CAST(x [..., C] of f32, bf16 or f16) -> u8 [R, C], u8 [C, R], f32 []: x as R rows of C in the 8-bit form attrs.fp8.form[0], once by rows, once
 *                    by columns, and the scale that codes are multiplied with: the power of two for x's largest finite magnitude (core/tensor/fp8_code.h).
 *                    attrs.fp8.layouts says which of the two are wanted, WEFTI_FP8_ROWS | WEFTI_FP8_COLUMNS; the other has no rows
 *   FP8_MATMUL(a u8 [M, K], b u8 [N, K], f32 [], f32 []) -> [..., N], M rows of f32, bf16 or f16: a times b transposed, in the forms attrs.fp8.form, times both scales,
 *                    added up in f32 or finer and rounded once; Hopper's tensor cores keep about 14 bits of a running sum, so results
 *                    there are off by up to 2^-12 of the sum of the terms' magnitudes (of 416 terms on an H200 1.5 * 2^-13 was seen)
 */
#ifndef WEFTI_OP_H
#define WEFTI_OP_H

#include "core/base/base.h"
#include "core/iface/reduce.h"
#include "weft/dtype.h"
#include "weft/shape.h"

typedef enum weft_op {
#define WEFTI_OP(NAME, name, family, in_min, in_max, outs, shape, gradient, shard, flops) WEFT_OP_##NAME,
#include "weft/ops.def"
#undef WEFTI_OP
    WEFT_OP_COUNT
} weft_op;

typedef enum wefti_family {
    WEFTI_LEAF, WEFTI_UNARY, WEFTI_BINARY, WEFTI_TERNARY, WEFTI_REDUCE, WEFTI_VIEW, WEFTI_MOVE, WEFTI_MATMUL,
    WEFTI_CONV, WEFTI_POOL, WEFTI_ROWS, WEFTI_LOSS, WEFTI_ATTENTION, WEFTI_PLAN, WEFTI_EFFECT, WEFTI_COMM, WEFTI_CUSTOM
} wefti_family;

#define WEFTI_ANY (-1)
typedef struct wefti_op_info {
    const char  *name;
    wefti_family family;
    int8_t       inputs_min, inputs_max; /* WEFTI_ANY: a list */
    int8_t       outputs;                /* WEFTI_ANY: as many as the attributes say */
} wefti_op_info;
/* One row per op; src/core/tensor/op.c. */
extern const wefti_op_info wefti_ops[WEFT_OP_COUNT];

static inline bool wefti_op_is_elementwise(weft_op op) {
    wefti_family family = wefti_ops[op].family;
    return family == WEFTI_UNARY || family == WEFTI_BINARY || family == WEFTI_TERNARY;
}

/* From one rank to another, each of which does its half whether or not anything here reads what comes of it. */
static inline bool wefti_op_is_message(weft_op op) { return op == WEFT_OP_SEND || op == WEFT_OP_RECEIVE; }

/* The reductions that are fused with what they reduce. */
static inline bool wefti_op_is_reduction(weft_op op) {
    return op == WEFT_OP_SUM || op == WEFT_OP_MEAN || op == WEFT_OP_MAX || op == WEFT_OP_MIN;
}

/* Where a local tensor lies in the global one that it is a part of: its axis `axis` starts at global index `begin` of
 * `global`. Random numbers are drawn by global index, so that a split never changes them. */
typedef struct wefti_window {
    int32_t split; /* 0: the local tensor is the global one, the rest is unused */
    int32_t axis;
    int64_t begin, global;
} wefti_window;

/* What one of several ranks updates of a parameter: elements [first, first + count) of input 0 as it lies in memory, by elements [0, count) of
 * the gradient and the states. */
typedef struct wefti_update_part {
    int64_t first, count; /* first may lie beyond the end, where count is 0 */
    int64_t each, group;  /* each > 0: the parameter is gathered afterwards by the group that COMM calls name so, in equal parts of so many elements,
                             for which there is room */
    int32_t parts;        /* 0: all of it, the rest is unused */
} wefti_update_part;

struct wefti_rule;   /* core/iface/rule.h */
struct wefti_custom; /* core/iface/custom.h */
struct wefti_fused;

enum { WEFTI_FP8_ROWS = 1, WEFTI_FP8_COLUMNS = 2 };
typedef enum wefti_sums { WEFTI_SUMS_NONE, WEFTI_SUMS_A, WEFTI_SUMS_B } wefti_sums;
typedef enum wefti_random_kind { WEFTI_RANDOM_UNIFORM, WEFTI_RANDOM_NORMAL } wefti_random_kind;

/* Attributes; which member is live follows from the op. They are copied and compared as bytes: zero a union before
 * filling it (wefti_attrs attrs = {0} does not clear padding of a larger member; use memset or WEFTI_ATTRS). */
typedef union wefti_attrs {
    struct { double value; } full;                                                            /* FULL */
    struct { double start, step; } arange;                                                    /* ARANGE */
    struct { uint64_t key; int32_t kind; wefti_window window; } random;                       /* RANDOM */
    struct { double p; uint64_t key; wefti_window window; } dropout;                          /* DROPOUT */
    struct { int32_t dtype; } cast;                                                           /* CAST */
    struct { double lo, hi; } clamp;                                                          /* CLAMP */
    struct { uint32_t axes; int32_t keep; double count; weft_shape shape; } reduce;           /* SUM MEAN MAX MIN ARGMAX EXTENT; MEAN_BACKWARD: shape */
    struct { weft_shape shape; int32_t axes[WEFT_MAX_RANK]; } view;                           /* RESHAPE EXPAND; PERMUTE */
    struct { int64_t start[WEFT_MAX_RANK], step[WEFT_MAX_RANK], size[WEFT_MAX_RANK]; } slice; /* SLICE */
    struct { int64_t low[WEFT_MAX_RANK], high[WEFT_MAX_RANK], interior[WEFT_MAX_RANK]; double value; } pad; /* PAD */
    struct { int32_t axis; } axis;                                                            /* CONCAT GATHER SCATTER_ADD */
    struct { int64_t repeat, experts; double share; int32_t trans; } expert;                  /* EXPERT_MATMUL...; experts: backward, OCCURRENCE */
    struct { int32_t trans_a, trans_b, fp8[2], sums; struct wefti_fused *fused; } matmul; /* MATMUL, FUSED_MATMUL; fp8: the forms (wefti_fp8_form) that
                                                     its operands may be rounded to, 0: none (plan/fp8.c); sums, fused: FUSED_MATMUL's */
    struct { int32_t form[2], layouts; } fp8;                                                 /* FP8_... */
    struct { int32_t stride[2], pad[4], dilation[2], groups; weft_shape input, weight; } conv; /* CONV2D...; shapes: backward only */
    struct { int32_t window[2], stride[2], pad[4], exclude_pad; weft_shape input; } pool;     /* ...POOL2D...; input: backward only */
    struct { int32_t axes, rms; double eps; } rows;                                           /* NORMALIZE... */
    struct { double base; int64_t offset; int32_t inverse; } rotary;                          /* ROTARY */
    struct { int64_t ignored; int32_t has_ignored; double smoothing; } loss;                  /* CROSS_ENTROPY... */
    struct { double scale; int64_t shift; int32_t causal, by_rows; } attention;                        /* ATTENTION... */
    struct { const struct wefti_rule *rule; double l2, decay, l1, group; wefti_update_part part; uint64_t key; } update; /* UPDATE; key: of bf16 */
    struct { int32_t reduce, axis; int64_t group; weft_shape global; int32_t peer, dtype; /* COMM family; peer, dtype: SEND, RECEIVE */
             int64_t each; int32_t paced; } comm; /* REDUCE_SCATTER, not 0: of what lies flat in memory, each member so many elements, the last ones
                                                     fewer; it, ALL_GATHER: with few others at once on the way (core/plan/pace.c) */
    struct { int64_t part, count, kept; int32_t codec, sum; } codec;                          /* ENCODE: count of parts; DECODE: of elements */
    struct { const struct wefti_custom *custom; void *options; int32_t options_bytes; } custom; /* CUSTOM... */
    struct { struct wefti_fused *fused; } fused;                                              /* FUSED */
} wefti_attrs;

/* A strided view of memory in one of a segment's buffers. Strides are in elements, 0 where broadcast. */
typedef struct wefti_operand {
    weft_dtype dtype;
    weft_shape shape;
    int64_t    stride[WEFT_MAX_RANK];
    int32_t    buffer;       /* index into the buffers given at launch */
    int64_t    offset_bytes; /* of element 0 */
    bool       peers_load;   /* of an output: other processes load it from this memory next (core/base/stream.h), */
    int64_t    kept_begin, kept_end; /* but for these bytes from element 0 on, which only this one does */
} wefti_operand;

/* A fused program: elementwise ops over one iteration space, computed tile by tile without storing what is between,
 * each result rounded to its dtype as if it had been stored. Outputs are instructions' results, whole or reduced. One of the instructions
 * may normalise rows, the space's last attrs.rows.axes axes, on devices that say so (fuses_rows): NORMALIZE, or NORMALIZE_BACKWARD, whose
 * third source is an input with an element for each row. */
#define WEFTI_FUSED_MAX 32
typedef struct wefti_fused_instruction {
    weft_op     op;        /* UNARY, BINARY or TERNARY family; NORMALIZE, NORMALIZE_BACKWARD */
    weft_dtype  dtype;     /* of the result */
    int32_t     source[3]; /* i >= 0: input i of the call; -1-j: the result of instruction j */
    wefti_attrs attrs;
} wefti_fused_instruction;

typedef struct wefti_fused_output {
    int32_t  instruction;
    int32_t  reduce; /* -1: whole; else WEFT_OP_SUM, WEFT_OP_MEAN, WEFT_OP_MAX or WEFT_OP_MIN; WEFT_OP_NORMALIZE: that instruction's second result */
    uint32_t axes;   /* of the iteration space, reduced away; the output operand keeps them with size 1 */
    double   count;  /* MEAN's divisor; 0: the axes' extent */
} wefti_fused_output;

typedef struct wefti_fused {
    weft_shape space; /* every input operand is expanded to it (stride 0 where broadcast) */
    int32_t    n_inputs, n_instructions, n_outputs;
    wefti_fused_instruction instruction[WEFTI_FUSED_MAX];
    wefti_fused_output      output[WEFTI_FUSED_MAX];
} wefti_fused;

/* The program of a FUSED or FUSED_MATMUL; NULL: there is none. Inputs of the call from *first_out on are read by it. */
static inline const wefti_fused *wefti_program_of(weft_op op, const wefti_attrs *attrs, int32_t *first_out) {
    *first_out = op == WEFT_OP_FUSED_MATMUL ? 2 : 0;
    return op == WEFT_OP_FUSED ? attrs->fused.fused : op == WEFT_OP_FUSED_MATMUL ? attrs->matmul.fused : NULL;
}

static inline bool wefti_op_normalizes(weft_op op) { return op == WEFT_OP_NORMALIZE || op == WEFT_OP_NORMALIZE_BACKWARD; }
/* The instruction that normalises; -1: none. */
static inline int32_t wefti_fused_rows(const wefti_fused *fused) {
    for (int32_t j = 0; j < fused->n_instructions; j++)
        if (wefti_op_normalizes(fused->instruction[j].op)) return j;
    return -1;
}
/* Whether input i has an element for each row. */
static inline bool wefti_fused_is_of_rows(const wefti_fused *fused, int32_t i) {
    int32_t j = wefti_fused_rows(fused);
    return j >= 0 && fused->instruction[j].op == WEFT_OP_NORMALIZE_BACKWARD && fused->instruction[j].source[2] == i;
}

#endif

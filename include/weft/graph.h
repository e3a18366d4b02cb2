/* Graphs: tensor math, written once and checked while it is written.
 *
 * A graph is pure data: no memory of tensors, no device, no world. Builders add nodes and give back the result's
 * tensor, which the graph owns: there is nothing to free but the graph. Shapes are global (over all ranks); a strategy
 * that splits the program later never changes what it means.
 *
 * Errors. Builders never give NULL. The first error is latched in the graph with its message, and the builder gives a
 * poisoned tensor that goes on through the expression; ask weft_graph_check once at the end. A builder that is given
 * NULL gives a poisoned tensor that belongs to no graph, and latches the error in the graph of its other inputs.
 *
 * Options travel in structs whose zero means the default. In C, weft_sum(x, .axes = weft_axes(0), .keep = true) is
 * weft_sum_with(x, &options); C++ calls the _with functions, where NULL options mean all defaults.
 *
 * Operands of one op have one dtype (weft_cast changes it) and broadcast as NumPy's: shapes are aligned from the right,
 * and an axis of 1 stretches. Axes may be negative: -1 is the last. Names are copied. f16 and bf16 are computed in f32
 * and rounded once an op. A graph belongs to one thread at a time; nothing here blocks. */
#ifndef WEFT_GRAPH_H
#define WEFT_GRAPH_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/array.h"
#include "weft/custom.h"
#include "weft/dtype.h"
#include "weft/shape.h"
#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_graph  weft_graph;
typedef struct weft_tensor weft_tensor;

/* ---- graphs ---- */

typedef struct weft_graph_options {
    uint64_t    seed; /* of parameters, dropout and random tensors */
    const char *name; /* for reports; NULL: "graph" */
    bool        bf16_parameters; /* layers keep their parameters in bf16, half the memory, and cast them to what they compute in (f64 excepted). Training them
                                    wants solver.stochastic_rounding */
} weft_graph_options;

/* A new, empty graph with one reference; options NULL means all defaults. *graph_out is NULL on error
 * (WEFT_E_NO_MEMORY). */
WEFT_MUST_CHECK weft_status weft_graph_create(const weft_graph_options *options, weft_graph **graph_out);
/* One more reference; may be called from any thread. Gives the graph. */
weft_graph *weft_graph_retain(weft_graph *graph);
/* Gives up one reference; the last frees the graph and all its tensors. NULL is allowed. */
void weft_graph_release(weft_graph *graph);
/* WEFT_OK, or the first error that a builder met; weft_error_message then says it. WEFT_E_INVALID for NULL. */
WEFT_MUST_CHECK weft_status weft_graph_check(weft_graph *graph);
/* The first error's message; empty where there was none. Valid as long as the graph. */
const char *weft_graph_message(const weft_graph *graph);
/* The leaf (input, parameter, state, constant) called `name`, or NULL. */
weft_tensor *weft_graph_find(weft_graph *graph, const char *name);
/* Parameters, in the order in which they were made: index from 0; NULL past the end. */
int32_t      weft_graph_parameter_count(const weft_graph *graph);
weft_tensor *weft_graph_parameter(weft_graph *graph, int32_t index);

/* Names of what is built until the matching pop begin with "name.". Scopes nest, up to 16 deep and 255 characters. */
void weft_scope_push(weft_graph *graph, const char *name);
void weft_scope_pop(weft_graph *graph);

/* What is built between these two is computed again by the backward pass instead of being kept (activation
 * checkpointing): only what enters the segment, and what is used outside of it, stays in memory. The same dropout masks
 * are drawn. Segments do not nest. */
void weft_recompute_begin(weft_graph *graph);
void weft_recompute_end(weft_graph *graph);

/* ---- tensors ---- */

/* True unless the tensor is poisoned. */
bool        weft_tensor_ok(const weft_tensor *tensor);
weft_dtype  weft_tensor_dtype(const weft_tensor *tensor);  /* F32 where poisoned */
weft_shape  weft_tensor_shape(const weft_tensor *tensor);  /* a scalar's where poisoned */
const char *weft_tensor_name(const weft_tensor *tensor);   /* of the node that made it; "" where poisoned */
weft_graph *weft_tensor_graph(const weft_tensor *tensor);  /* NULL where it belongs to none */
/* Names the node that made the tensor, for reports; leaves keep theirs (WEFT_E_INVALID). Gives the tensor. */
weft_tensor *weft_named(weft_tensor *tensor, const char *name);

/* A list of axes; none means the default of the function that takes it. */
typedef struct weft_axes_list {
    int32_t count;
    int32_t axis[WEFT_MAX_RANK];
} weft_axes_list;

/* ---- leaves ---- */

typedef struct weft_input_options {
    int32_t batch_axis; /* the axis that counts samples and may be split over ranks */
    bool    replicated; /* no axis counts samples: every rank gets it whole */
} weft_input_options;
/* What each step is fed. `name` is unique in the graph. A scalar is replicated. */
weft_tensor *weft_input_with(weft_graph *graph, const char *name, weft_dtype dtype, weft_shape shape,
                             const weft_input_options *options);

typedef enum weft_init_kind {
    WEFT_INIT_DEFAULT, /* of the layer; weft_parameter's is xavier_uniform, zeros below rank 2 */
    WEFT_INIT_ZEROS,
    WEFT_INIT_ONES,
    WEFT_INIT_VALUE,           /* a */
    WEFT_INIT_UNIFORM,         /* in [a, b) */
    WEFT_INIT_NORMAL,          /* mean a, deviation b */
    WEFT_INIT_KAIMING_UNIFORM, /* gain a (0: sqrt 2) over the square root of fan in (He et al. 2015) */
    WEFT_INIT_KAIMING_NORMAL,
    WEFT_INIT_XAVIER_UNIFORM, /* gain a (0: 1) over the root of the mean of fan in and fan out (Glorot & Bengio 2010) */
    WEFT_INIT_XAVIER_NORMAL
} weft_init_kind;
/* How a parameter starts. Fans are read from the shape as [out, in, receptive field...]. Elements are drawn by a
 * counter from the graph's seed, the name and the element's index: any split of the tensor draws the same. */
typedef struct weft_init {
    weft_init_kind kind;
    double         a, b;
} weft_init;
static inline weft_init weft_init_of(weft_init_kind kind, double a, double b) {
    weft_init init;
    init.kind = kind;
    init.a = a;
    init.b = b;
    return init;
}
static inline weft_init weft_init_zeros(void) { return weft_init_of(WEFT_INIT_ZEROS, 0, 0); }
static inline weft_init weft_init_ones(void) { return weft_init_of(WEFT_INIT_ONES, 0, 0); }
static inline weft_init weft_init_value(double value) { return weft_init_of(WEFT_INIT_VALUE, value, 0); }
static inline weft_init weft_init_uniform(double low, double high) {
    return weft_init_of(WEFT_INIT_UNIFORM, low, high);
}
static inline weft_init weft_init_normal(double mean, double deviation) {
    return weft_init_of(WEFT_INIT_NORMAL, mean, deviation);
}
static inline weft_init weft_init_kaiming_uniform(void) { return weft_init_of(WEFT_INIT_KAIMING_UNIFORM, 0, 0); }
static inline weft_init weft_init_kaiming_normal(void) { return weft_init_of(WEFT_INIT_KAIMING_NORMAL, 0, 0); }
static inline weft_init weft_init_xavier_uniform(void) { return weft_init_of(WEFT_INIT_XAVIER_UNIFORM, 0, 0); }
static inline weft_init weft_init_xavier_normal(void) { return weft_init_of(WEFT_INIT_XAVIER_NORMAL, 0, 0); }

typedef struct weft_parameter_options {
    weft_dtype dtype; /* F32, F64, or BF16, which only solvers with .stochastic_rounding update */
    weft_init  init;
    bool       frozen;        /* never updated */
    bool       unregularised; /* left out of the regulariser, as biases and norm scales are */
} weft_parameter_options;
/* What training learns. `name` is unique in the graph. */
weft_tensor *weft_parameter_with(weft_graph *graph, const char *name, weft_shape shape,
                                 const weft_parameter_options *options);

typedef struct weft_state_options {
    weft_dtype dtype;
    weft_init  init; /* zeros by default */
} weft_state_options;
/* A variable that steps keep and weft_assign changes, as running statistics are. `name` is unique in the graph. */
weft_tensor *weft_state_with(weft_graph *graph, const char *name, weft_shape shape, const weft_state_options *options);
/* Stores x (dtype and shape of the state) into a state at every training step, after all reads of its old value; a trainer's step
 * that is skipped because its loss is not finite stores nothing. Gives the new value. */
weft_tensor *weft_assign(weft_tensor *state, weft_tensor *x);

/* The elements of an array, which the graph retains: they must not change as long as it lives (an array that is not
 * contiguous is copied). `name` is unique in the graph; NULL makes one. */
weft_tensor *weft_constant(weft_graph *graph, const char *name, weft_array *array);
/* A tensor of one value; integers saturate, bool is value != 0. */
weft_tensor *weft_full(weft_graph *graph, weft_dtype dtype, weft_shape shape, double value);
weft_tensor *weft_scalar(weft_graph *graph, weft_dtype dtype, double value);
/* Element i is start + i*step; [count]. */
weft_tensor *weft_arange(weft_graph *graph, weft_dtype dtype, int64_t count, double start, double step);
/* Random at every step, by the graph's seed, the step number and the global index of the element; floating dtypes. */
weft_tensor *weft_random_uniform(weft_graph *graph, weft_dtype dtype, weft_shape shape); /* in [0, 1) */
weft_tensor *weft_random_normal(weft_graph *graph, weft_dtype dtype, weft_shape shape);  /* mean 0, deviation 1 */
/* The number of the step that runs, from 0: i64, rank 0. */
weft_tensor *weft_step(weft_graph *graph);

/* ---- elementwise, one input ---- */

weft_tensor *weft_neg(weft_tensor *x);
weft_tensor *weft_abs(weft_tensor *x); /* gradient 0 at 0 */
weft_tensor *weft_sign(weft_tensor *x);
weft_tensor *weft_square(weft_tensor *x);
weft_tensor *weft_exp(weft_tensor *x); /* from here to weft_round: floating only, but relu */
weft_tensor *weft_expm1(weft_tensor *x);
weft_tensor *weft_log(weft_tensor *x);
weft_tensor *weft_log1p(weft_tensor *x);
weft_tensor *weft_sqrt(weft_tensor *x);
weft_tensor *weft_rsqrt(weft_tensor *x); /* 1/sqrt(x) */
weft_tensor *weft_reciprocal(weft_tensor *x);
weft_tensor *weft_sin(weft_tensor *x);
weft_tensor *weft_cos(weft_tensor *x);
weft_tensor *weft_tanh(weft_tensor *x);
weft_tensor *weft_sigmoid(weft_tensor *x);
weft_tensor *weft_erf(weft_tensor *x);
weft_tensor *weft_softplus(weft_tensor *x); /* log(1 + exp(x)), stable */
weft_tensor *weft_relu(weft_tensor *x);
weft_tensor *weft_gelu(weft_tensor *x);      /* exact, by erf */
weft_tensor *weft_gelu_tanh(weft_tensor *x); /* the tanh approximation */
weft_tensor *weft_silu(weft_tensor *x);      /* x*sigmoid(x) */
weft_tensor *weft_floor(weft_tensor *x);
weft_tensor *weft_ceil(weft_tensor *x);
weft_tensor *weft_round(weft_tensor *x); /* to nearest even */
/* min(max(x, low), high); -INFINITY and INFINITY leave a side open. The gradient passes where low <= x <= high. */
weft_tensor *weft_clamp(weft_tensor *x, double low, double high);
weft_tensor *weft_not(weft_tensor *x);      /* bool */
weft_tensor *weft_isfinite(weft_tensor *x); /* bool; floating inputs */
/* To another dtype: float to integer truncates and saturates, NaN gives 0; to bool x != 0. x itself where it has it. */
weft_tensor *weft_cast(weft_tensor *x, weft_dtype dtype);
/* x, through which no gradient flows. */
weft_tensor *weft_detach(weft_tensor *x);

/* ---- elementwise, two and three inputs ---- */

weft_tensor *weft_add(weft_tensor *x, weft_tensor *y);
weft_tensor *weft_sub(weft_tensor *x, weft_tensor *y);
weft_tensor *weft_mul(weft_tensor *x, weft_tensor *y);
weft_tensor *weft_div(weft_tensor *x, weft_tensor *y); /* integers truncate; by zero they give 0 */
weft_tensor *weft_pow(weft_tensor *x, weft_tensor *y); /* floating */
weft_tensor *weft_maximum(weft_tensor *x, weft_tensor *y); /* NaN propagates; ties share the gradient */
weft_tensor *weft_minimum(weft_tensor *x, weft_tensor *y);
weft_tensor *weft_eq(weft_tensor *x, weft_tensor *y); /* comparisons give bool */
weft_tensor *weft_ne(weft_tensor *x, weft_tensor *y);
weft_tensor *weft_lt(weft_tensor *x, weft_tensor *y);
weft_tensor *weft_le(weft_tensor *x, weft_tensor *y);
weft_tensor *weft_gt(weft_tensor *x, weft_tensor *y);
weft_tensor *weft_ge(weft_tensor *x, weft_tensor *y);
weft_tensor *weft_and(weft_tensor *x, weft_tensor *y); /* bool */
weft_tensor *weft_or(weft_tensor *x, weft_tensor *y);
/* x where `condition` (bool) is true, y elsewhere. */
weft_tensor *weft_where(weft_tensor *condition, weft_tensor *x, weft_tensor *y);
/* With a number on the right, of x's dtype. */
weft_tensor *weft_add_scalar(weft_tensor *x, double value);
weft_tensor *weft_mul_scalar(weft_tensor *x, double value);
weft_tensor *weft_pow_scalar(weft_tensor *x, double value);
weft_tensor *weft_maximum_scalar(weft_tensor *x, double value);
weft_tensor *weft_minimum_scalar(weft_tensor *x, double value);
weft_tensor *weft_eq_scalar(weft_tensor *x, double value);
weft_tensor *weft_ne_scalar(weft_tensor *x, double value);
weft_tensor *weft_lt_scalar(weft_tensor *x, double value);
weft_tensor *weft_le_scalar(weft_tensor *x, double value);
weft_tensor *weft_gt_scalar(weft_tensor *x, double value);
weft_tensor *weft_ge_scalar(weft_tensor *x, double value);

/* ---- reductions ---- */

typedef struct weft_reduce_options {
    weft_axes_list axes; /* none: all */
    bool           keep; /* reduced axes stay, with size 1 */
} weft_reduce_options;
weft_tensor *weft_sum_with(weft_tensor *x, const weft_reduce_options *options);
weft_tensor *weft_mean_with(weft_tensor *x, const weft_reduce_options *options); /* floating; of nothing: NaN */
weft_tensor *weft_max_with(weft_tensor *x, const weft_reduce_options *options);  /* refused over an empty axis */
weft_tensor *weft_min_with(weft_tensor *x, const weft_reduce_options *options);
/* i64 index of the first maximum along one axis, which goes away. */
weft_tensor *weft_argmax(weft_tensor *x, int32_t axis);

typedef struct weft_variance_options {
    weft_axes_list axes;       /* none: all */
    bool           keep;       /* reduced axes stay, with size 1 */
    double         correction; /* divides by count - correction: 1 is the unbiased estimate */
} weft_variance_options;
/* Mean of (x - mean(x))^2, in two passes. */
weft_tensor *weft_variance_with(weft_tensor *x, const weft_variance_options *options);

typedef struct weft_norm_options {
    weft_axes_list axes; /* none: all */
    bool           keep;
    double         p; /* 0 means 2; 1 and any p > 0 work; INFINITY is the largest magnitude */
} weft_norm_options;
/* (sum |x|^p)^(1/p). No gradient comes to an element that is 0. */
weft_tensor *weft_norm_with(weft_tensor *x, const weft_norm_options *options);

/* ---- shapes ---- */

/* The same elements in another shape; one size may be -1: what is left. */
weft_tensor *weft_reshape(weft_tensor *x, weft_shape shape);
/* [N, ...] to [N, the rest]. */
weft_tensor *weft_flatten(weft_tensor *x);
/* Output axis i is input axis axes.axis[i]; every axis once. */
weft_tensor *weft_permute(weft_tensor *x, weft_axes_list axes);
weft_tensor *weft_transpose(weft_tensor *x, int32_t axis_a, int32_t axis_b);
weft_tensor *weft_squeeze(weft_tensor *x, int32_t axis);   /* the axis must have size 1 */
weft_tensor *weft_unsqueeze(weft_tensor *x, int32_t axis); /* a new axis of 1 before `axis`; -1: at the end */
/* Broadcast to `shape`. */
weft_tensor *weft_expand(weft_tensor *x, weft_shape shape);
/* Indices begin, begin + step, ... below end along one axis. Negative begin and end count from the end; INT64_MAX as
 * end means to the end. step >= 1. */
weft_tensor *weft_slice(weft_tensor *x, int32_t axis, int64_t begin, int64_t end);
weft_tensor *weft_slice_step(weft_tensor *x, int32_t axis, int64_t begin, int64_t end, int64_t step);
weft_tensor *weft_concat(weft_tensor *const *tensors, int32_t count, int32_t axis);
/* `count` equal parts along an axis, into parts_out[count]. */
void weft_split(weft_tensor *x, int32_t axis, int32_t count, weft_tensor **parts_out);
/* Parts of sizes[i] along an axis, which add up to its size. */
void weft_split_sizes(weft_tensor *x, int32_t axis, const int64_t *sizes, int32_t count, weft_tensor **parts_out);
typedef struct weft_pad_options {
    int64_t low[WEFT_MAX_RANK], high[WEFT_MAX_RANK]; /* elements added before and after, per axis; >= 0 */
    double  value;
} weft_pad_options;
weft_tensor *weft_pad_with(weft_tensor *x, const weft_pad_options *options);
/* x[:axis] + index.shape + x[axis+1:]: slices of x at index (i32 or i64) along an axis. Out of range reads zeros. */
weft_tensor *weft_gather(weft_tensor *x, weft_tensor *index, int32_t axis);
/* x plus the slices of `updates` (shaped as weft_gather's result) added at index along an axis. Out of range is
 * dropped; the order is fixed. */
weft_tensor *weft_scatter_add(weft_tensor *x, weft_tensor *index, weft_tensor *updates, int32_t axis);

/* ---- products ---- */

typedef struct weft_matmul_options {
    bool        transpose_a, transpose_b; /* of the last two axes, first */
    const char *name;                     /* of the node */
} weft_matmul_options;
/* [..., M, K] x [..., K, N] -> [..., M, N]; leading axes broadcast. */
weft_tensor *weft_matmul_with(weft_tensor *a, weft_tensor *b, const weft_matmul_options *options);

/* ---- the application's own ---- */

/* Applies a custom op (see weft/custom.h): `options_bytes` bytes at `options` are copied into the graph. Gives output
 * 0; the others by weft_custom_output. */
weft_tensor *weft_custom(weft_graph *graph, const weft_custom_op *op, weft_tensor *const *inputs, int32_t n_inputs,
                         const char *name, const void *options, int32_t options_bytes);
weft_tensor *weft_custom_output(weft_tensor *output0, int32_t index);

/* While training a, otherwise b; one dtype and shape. */
weft_tensor *weft_training(weft_tensor *a, weft_tensor *b);

/* ---- gradients ---- */

/* Extends the graph by the gradients of `loss` (one floating element) with respect to wrt[count] (floating tensors of
 * its graph, which may lie anywhere). gradients_out[i] has wrt[i]'s dtype and shape, zeros where the loss does not
 * depend on it. The result can be differentiated again where the ops allow. WEFT_E_UNSUPPORTED, naming the op, where
 * one on the way has no gradient; the error is latched too, and every gradients_out[i] poisoned. */
WEFT_MUST_CHECK weft_status weft_gradients(weft_tensor *loss, weft_tensor *const *wrt, int32_t count,
                                           weft_tensor **gradients_out);

#ifdef __cplusplus
}

/* weft_axes(0, 2) in C++. */
template <typename... Axes> static inline weft_axes_list wefti_axes_from(Axes... axes) {
    weft_axes_list list = {static_cast<int32_t>(sizeof...(Axes)), {static_cast<int32_t>(axes)...}};
    return list;
}
#define weft_axes(...) wefti_axes_from(__VA_ARGS__)
#else
/* weft_axes(0, 2): axes 0 and 2. */
#define weft_axes(...) \
    ((weft_axes_list){(int32_t)(sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t)), {__VA_ARGS__}})
#define weft_input(graph, name, dtype, shape, ...) \
    weft_input_with(graph, name, dtype, shape, &(weft_input_options){__VA_ARGS__})
#define weft_parameter(graph, name, shape, ...) \
    weft_parameter_with(graph, name, shape, &(weft_parameter_options){__VA_ARGS__})
#define weft_state(graph, name, shape, ...) weft_state_with(graph, name, shape, &(weft_state_options){__VA_ARGS__})
#define weft_sum(x, ...) weft_sum_with(x, &(weft_reduce_options){__VA_ARGS__})
#define weft_mean(x, ...) weft_mean_with(x, &(weft_reduce_options){__VA_ARGS__})
#define weft_max(x, ...) weft_max_with(x, &(weft_reduce_options){__VA_ARGS__})
#define weft_min(x, ...) weft_min_with(x, &(weft_reduce_options){__VA_ARGS__})
#define weft_variance(x, ...) weft_variance_with(x, &(weft_variance_options){__VA_ARGS__})
#define weft_norm(x, ...) weft_norm_with(x, &(weft_norm_options){__VA_ARGS__})
#define weft_pad(x, ...) weft_pad_with(x, &(weft_pad_options){__VA_ARGS__})
#define weft_matmul(a, b, ...) weft_matmul_with(a, b, &(weft_matmul_options){__VA_ARGS__})
#endif
#endif

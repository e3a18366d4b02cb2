/* Gradients by graph extension: what rules are given and what they use.
 *
 * A rule is handed one node with the gradients of its outputs, and adds the nodes that give the gradients of its
 * inputs. It reads forward values only through wefti_primal and wefti_result, which give a recomputed copy where the
 * node lies in a recomputation segment. Gradients always have the dtype and shape of what they belong to.
 *
 * The arithmetic here folds what costs nothing to fold: gradients that are constants, products with one, sums with
 * nothing, factors that do not vary along what is summed. Sizes that count samples are never folded into numbers: see
 * core/iface/op.h. */
#ifndef WEFTI_AUTODIFF_H
#define WEFTI_AUTODIFF_H

#include "core/graph/graph.h"

struct wefti_gradient_walk;

typedef struct wefti_gradient_call {
    weft_graph         *graph;
    wefti_node         *node;
    weft_tensor *const *gy;     /* [n_outputs] NULL where nothing depends on the output */
    weft_tensor       **gx;     /* [n_inputs] to be set where needed; NULL: no gradient */
    const bool         *needed; /* [n_inputs] */
    struct wefti_gradient_walk  *walk;
} wefti_gradient_call;

typedef void wefti_gradient_rule(wefti_gradient_call *call);

/* Input i and output k of the forward node, as the backward pass may read them. */
weft_tensor *wefti_primal(wefti_gradient_call *call, int32_t i);
weft_tensor *wefti_result(wefti_gradient_call *call, int32_t k);
/* Sets the gradient of input i, summed over what broadcasting had stretched. */
void wefti_give(wefti_gradient_call *call, int32_t i, weft_tensor *gradient);
/* The gradient of output k; zeros where there is none. */
weft_tensor *wefti_incoming(wefti_gradient_call *call, int32_t k);

/* ---- slices; src/core/autodiff/slices.c ---- */

/* The gradient of a slice of a tensor, which waits until those of all its slices are there. */
typedef struct wefti_piece {
    struct wefti_piece *next;
    int32_t             axis;
    int64_t             start; /* along that axis; all of the others */
    weft_tensor        *gradient;
} wefti_piece;

/* Whether a SLICE node takes a contiguous part along one axis, and of which. */
bool wefti_slice_is_piece(const wefti_node *slice, int32_t *axis_out);
/* The gradient of x from those of its slices: side by side where they do not overlap. */
weft_tensor *wefti_joined(const weft_tensor *x, wefti_piece *pieces);

/* ---- arithmetic that folds; src/core/autodiff/algebra.c ---- */

/* True where every element of x is known while building. */
bool wefti_is_constant(const weft_tensor *x, double *value_out);
/* A value in every element, of x's dtype and shape; in memory it is one number. */
weft_tensor *wefti_constant_like(const weft_tensor *x, double value);
weft_tensor *wefti_times(weft_tensor *a, weft_tensor *b);
weft_tensor *wefti_plus(weft_tensor *a, weft_tensor *b);
weft_tensor *wefti_minus(weft_tensor *a, weft_tensor *b);
weft_tensor *wefti_over(weft_tensor *a, weft_tensor *b);
weft_tensor *wefti_scaled(weft_tensor *x, double factor);
weft_tensor *wefti_shifted(weft_tensor *x, double term);
weft_tensor *wefti_negated(weft_tensor *x);
weft_tensor *wefti_expanded(weft_tensor *x, weft_shape shape);
/* x, which is as large as broadcasting `shape` made it, summed back to `shape`. */
weft_tensor *wefti_summed_to(weft_tensor *x, weft_shape shape);
/* x summed over the axes in the mask, which stay with size 1. */
weft_tensor *wefti_summed(weft_tensor *x, uint32_t axes);
/* A reduced tensor in the shape that it has when axes are kept. */
weft_tensor *wefti_kept(weft_tensor *reduced, weft_shape whole, uint32_t axes);
/* The last `count` axes of a rank, as a mask. */
static inline uint32_t wefti_last_axes(int32_t rank, int32_t count) { return ((1u << count) - 1) << (rank - count); }
/* One node of two or three inputs. */
weft_tensor *wefti_node2(weft_op op, const wefti_attrs *attrs, weft_tensor *a, weft_tensor *b);
weft_tensor *wefti_node3(weft_op op, const wefti_attrs *attrs, weft_tensor *a, weft_tensor *b, weft_tensor *c);
static inline weft_tensor *wefti_node1(weft_op op, const wefti_attrs *attrs, weft_tensor *a) {
    return wefti_apply(op, attrs, &a, 1, NULL);
}

/* One per name in column `gradient` of ops.def; an op whose rule is not declared here does not compile. `zero` stops
 * the walk, `refused` is an error: neither is called. */
wefti_gradient_rule wefti_gradient_zero, wefti_gradient_refused, wefti_gradient_copy, wefti_gradient_cast,
    wefti_gradient_neg, wefti_gradient_abs, wefti_gradient_square, wefti_gradient_exp, wefti_gradient_expm1,
    wefti_gradient_log, wefti_gradient_log1p, wefti_gradient_sqrt, wefti_gradient_rsqrt, wefti_gradient_reciprocal,
    wefti_gradient_sin, wefti_gradient_cos, wefti_gradient_tanh, wefti_gradient_sigmoid, wefti_gradient_erf,
    wefti_gradient_softplus, wefti_gradient_relu, wefti_gradient_gelu, wefti_gradient_gelu_tanh, wefti_gradient_silu,
    wefti_gradient_clamp, wefti_gradient_dropout, wefti_gradient_add, wefti_gradient_sub, wefti_gradient_mul,
    wefti_gradient_div, wefti_gradient_pow, wefti_gradient_maximum, wefti_gradient_minimum,
    wefti_gradient_relu_backward, wefti_gradient_gelu_backward, wefti_gradient_gelu_tanh_backward,
    wefti_gradient_silu_backward, wefti_gradient_where, wefti_gradient_sum, wefti_gradient_mean, wefti_gradient_max,
    wefti_gradient_min, wefti_gradient_mean_backward, wefti_gradient_reshape, wefti_gradient_permute,
    wefti_gradient_slice, wefti_gradient_expand, wefti_gradient_concat, wefti_gradient_pad, wefti_gradient_gather,
    wefti_gradient_scatter_add, wefti_gradient_matmul, wefti_gradient_expert_matmul,
    wefti_gradient_expert_matmul_backward_weight, wefti_gradient_conv2d, wefti_gradient_conv2d_backward_input,
    wefti_gradient_conv2d_backward_weight, wefti_gradient_max_pool2d, wefti_gradient_max_pool2d_backward,
    wefti_gradient_max_pool2d_take, wefti_gradient_avg_pool2d, wefti_gradient_avg_pool2d_backward,
    wefti_gradient_normalize, wefti_gradient_normalize_backward, wefti_gradient_softmax,
    wefti_gradient_softmax_backward, wefti_gradient_log_softmax, wefti_gradient_log_softmax_backward,
    wefti_gradient_rotary, wefti_gradient_cross_entropy, wefti_gradient_cross_entropy_backward,
    wefti_gradient_attention, wefti_gradient_mode, wefti_gradient_custom;

#endif

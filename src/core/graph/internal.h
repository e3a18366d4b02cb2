/* What the files of this room share: text in graph memory, shape rules, and how builders begin. */
#ifndef WEFTI_GRAPH_INTERNAL_H
#define WEFTI_GRAPH_INTERNAL_H

#include "core/graph/graph.h"

/* A copy of `text` in graph memory; "" (with the error latched) where there is none. Never NULL. */
const char *wefti_graph_text(weft_graph *graph, const char *text);
/* `name` with the open scope before it, in graph memory. Never NULL. */
const char *wefti_graph_scoped(weft_graph *graph, const char *name);
/* Latches this thread's current error message in the graph (NULL is allowed) and gives the poisoned tensor. */
weft_tensor *wefti_graph_latch(weft_graph *graph, weft_status status);
/* The graph's own copy of a custom op; NULL (error latched) where there is no memory. */
const wefti_custom *wefti_graph_custom(weft_graph *graph, const weft_custom_op *op);
/* Gives back the arrays that constants hold. */
void wefti_graph_drop_constants(weft_graph *graph);

/* ---- shape rules ---- */

/* One node while its shape rule runs. Rules fill outputs[0 .. n_outputs-1]; n_outputs starts as ops.def's (1 where it
 * is ANY). */
typedef struct wefti_infer_call {
    weft_op             op;
    const char         *name;
    const wefti_attrs  *attrs;
    weft_tensor *const *inputs;
    int32_t             n_inputs;
    wefti_type         *outputs;
    int32_t             n_outputs;
} wefti_infer_call;

typedef weft_status wefti_shape_rule(wefti_infer_call *call);

/* Fails with "op 'name' of first f32 [2, 3], second f32 [4]: <formatted>". */
weft_status wefti_misfit(const wefti_infer_call *call, weft_status status, const char *format, ...) WEFTI_PRINTF(3, 4);
/* Fails unless inputs first .. last have one dtype. */
weft_status wefti_one_dtype(const wefti_infer_call *call, int32_t first, int32_t last);
/* Fails unless input i is floating. */
weft_status wefti_floating(const wefti_infer_call *call, int32_t i);
/* Fails unless input i is i32 or i64. */
weft_status wefti_index(const wefti_infer_call *call, int32_t i);
/* Fails unless input i has the shape `expected`, which is called `what`. */
weft_status wefti_shaped(const wefti_infer_call *call, int32_t i, weft_shape expected, const char *what);
/* The NumPy broadcast of two shapes; false where they do not fit. */
bool wefti_broadcast(weft_shape a, weft_shape b, weft_shape *shape_out);
/* f64 for f64, otherwise f32: the dtype of statistics beside x. */
static inline weft_dtype wefti_wide(weft_dtype dtype) { return dtype == WEFT_F64 ? WEFT_F64 : WEFT_F32; }
/* In which a layer that computes in `dtype` keeps its parameters. */
static inline weft_dtype wefti_layer_dtype(const weft_graph *graph, weft_dtype dtype) {
    return graph->bf16_parameters && dtype != WEFT_F64 ? WEFT_BF16 : wefti_wide(dtype);
}
static inline void wefti_type_set(wefti_type *type, weft_dtype dtype, weft_shape shape) {
    type->dtype = dtype;
    type->shape = shape;
}
/* Output size of a convolution or pooling along one axis; 0 where the window does not fit. */
int64_t wefti_window_size(int64_t input, int64_t window, int64_t stride, int64_t pad, int64_t dilation);

/* One per name in column `shape` of ops.def; an op whose rule is not declared here does not compile. */
wefti_shape_rule wefti_shape_leaf, wefti_shape_same, wefti_shape_cast, wefti_shape_arithmetic, wefti_shape_floating,
    wefti_shape_logical, wefti_shape_predicate, wefti_shape_dropout, wefti_shape_compare, wefti_shape_where,
    wefti_shape_reduce, wefti_shape_reduce_floating, wefti_shape_argreduce, wefti_shape_extent,
    wefti_shape_mean_backward, wefti_shape_reshape, wefti_shape_permute, wefti_shape_slice, wefti_shape_expand,
    wefti_shape_concat, wefti_shape_pad, wefti_shape_gather, wefti_shape_scatter_add, wefti_shape_occurrence, wefti_shape_matmul,
    wefti_shape_expert_matmul, wefti_shape_expert_matmul_backward_weight,
    wefti_shape_conv2d, wefti_shape_conv2d_backward_input, wefti_shape_conv2d_backward_weight, wefti_shape_max_pool2d,
    wefti_shape_max_pool2d_backward, wefti_shape_max_pool2d_take, wefti_shape_avg_pool2d,
    wefti_shape_avg_pool2d_backward, wefti_shape_normalize, wefti_shape_normalize_backward, wefti_shape_rows,
    wefti_shape_rotary, wefti_shape_cross_entropy, wefti_shape_cross_entropy_backward, wefti_shape_attention,
    wefti_shape_attention_backward, wefti_shape_mode, wefti_shape_assign, wefti_shape_update, wefti_shape_fused,
    wefti_shape_all_reduce, wefti_shape_all_gather, wefti_shape_reduce_scatter, wefti_shape_exchange_rows, wefti_shape_receive, wefti_shape_encode,
    wefti_shape_decode, wefti_shape_planned, wefti_shape_custom,
    wefti_shape_custom_backward;

#endif

/* What builders share: short forms of wefti_apply, and axes. Builders check what only they know (options, axes) and
 * leave dtypes and shapes to the shape rules; they look at a tensor's shape only after wefti_usable. */
#ifndef WEFTI_GRAPH_BUILD_H
#define WEFTI_GRAPH_BUILD_H

#include "core/graph/internal.h"

static inline weft_graph *wefti_graph_of(const weft_tensor *x) { return x ? x->graph : NULL; }
static inline bool        wefti_usable(const weft_tensor *x) { return x && x->node && x->graph->status == WEFT_OK; }
/* What a builder gives for an x that is not usable. */
weft_tensor *wefti_unusable(weft_tensor *x, const char *what);

static inline weft_tensor *wefti_unary(weft_op op, weft_tensor *x) { return wefti_apply(op, NULL, &x, 1, NULL); }
static inline weft_tensor *wefti_binary(weft_op op, weft_tensor *x, weft_tensor *y) {
    weft_tensor *inputs[2] = {x, y};
    return wefti_apply(op, NULL, inputs, 2, NULL);
}
static inline weft_tensor *wefti_unary_with(weft_op op, const wefti_attrs *attrs, weft_tensor *x) {
    return wefti_apply(op, attrs, &x, 1, NULL);
}
/* A scalar of x's dtype. */
weft_tensor *wefti_scalar_like(weft_tensor *x, double value);
/* x in another shape or, if it has that already, x itself. */
weft_tensor *wefti_reshaped(weft_tensor *x, weft_shape shape);
weft_tensor *wefti_reduced(weft_op op, weft_tensor *x, uint32_t axes, bool keep);
/* The number of elements of x along `axes`, as a scalar of `dtype`. */
weft_tensor *wefti_extent(weft_tensor *x, uint32_t axes, weft_dtype dtype);
/* -1 as rank-1; false (error latched, naming `what`) where the axis is out of range. */
bool wefti_axis(weft_tensor *x, int32_t axis, const char *what, int32_t *axis_out);
/* A list of axes as a mask; none means all. */
bool wefti_axes(weft_tensor *x, weft_axes_list axes, const char *what, uint32_t *mask_out);
/* A parameter of a layer, used in x's dtype. */
weft_tensor *wefti_layer_parameter(weft_tensor *x, const char *name, const char *suffix, weft_shape shape,
                                   weft_init init, bool unregularised);
/* `name`, or one made of kind and number. */
const char *wefti_layer_name(weft_graph *graph, const char *name, const char *kind);

#endif

/* Spaces: an elementwise op that reads another one's result through a RESHAPE works in that one's shape instead, and it is its own
 * readers who look through a window. Windows are free, and ops of one shape can be fused.
 *
 * Layers work on [rows, features] whatever the rank of what they are given, so a chain such as bias, reshape, activation is the rule. Whole
 * inputs are reshaped by a window; broadcast ones where their strides allow; reductions where their axes are whole axes of the other shape;
 * dropout where its window of the global tensor can be said in the other shape. Otherwise everything stays. Linear. */
#include <string.h>

#include "core/plan/ir.h"

typedef struct mover {
    wefti_ir *ir;
    int32_t  *moved; /* by value: the window in its old shape on a value whose shape was changed; -1: none */
    int32_t   n_moved;
} mover;

/* The whole of its root in row-major order, maybe in another shape. */
static bool is_whole(const wefti_ir *ir, const wefti_value *value) {
    return value->offset == 0 && wefti_value_is_dense(value) && !value->uniform &&
           wefti_value_elements(value) == wefti_value_elements(&ir->values[value->root]);
}

/* What `value` is called now; a window that shows its root as it is gives the root. */
static int32_t current(const mover *m, int32_t value) {
    if (value < m->n_moved && m->moved[value] >= 0) value = m->moved[value];
    const wefti_value *v = &m->ir->values[value], *root = &m->ir->values[v->root];
    return v->root != value && is_whole(m->ir, v) && weft_shape_equal(v->shape, root->shape) ? v->root : value;
}

static weft_status add_window(wefti_ir *ir, int32_t of, weft_shape shape, const int64_t *stride, int32_t *value_out) {
    WEFTI_TRY(wefti_ir_value(ir, ir->values[of].dtype, shape, -1, 0, value_out));
    wefti_value *window = &ir->values[*value_out], *source = &ir->values[of];
    window->root = source->root;
    window->offset = source->offset;
    window->uniform = source->uniform;
    window->constant = source->constant;
    memcpy(window->stride, stride, sizeof window->stride);
    return WEFT_OK;
}

/* --- into which shape --- */

static bool find_shape(const wefti_ir *ir, const wefti_item *item, weft_shape space, weft_shape *shape_out) {
    for (int32_t i = 0; i < item->n_inputs; i++) {
        const wefti_value *value = &ir->values[item->inputs[i]], *root = &ir->values[value->root];
        if (root->item < 0 || root == value || !wefti_op_is_elementwise(ir->items[root->item].op)) continue;
        if (!weft_shape_equal(value->shape, space) || weft_shape_equal(root->shape, space) || !is_whole(ir, value)) continue;
        *shape_out = root->shape;
        return true;
    }
    return false;
}

bool wefti_stretched_strides(const wefti_value *value, weft_shape space, weft_shape shape, int64_t *stride_out) {
    wefti_value stretched = *value;
    int32_t     missing = space.rank - value->shape.rank;
    stretched.shape = space;
    memset(stretched.stride, 0, sizeof stretched.stride);
    for (int32_t axis = missing; axis < space.rank; axis++)
        stretched.stride[axis] = value->shape.dim[axis - missing] == 1 ? 0 : value->stride[axis - missing];
    memset(stride_out, 0, WEFT_MAX_RANK * sizeof *stride_out);
    return wefti_reshape_strides(&stretched, shape, stride_out);
}

/* Whether the value as it is, broadcast to `shape`, already has these strides. */
static bool broadcasts_so(const wefti_value *value, weft_shape shape, const int64_t *stride) {
    int32_t missing = shape.rank - value->shape.rank;
    if (missing < 0) return false;
    for (int32_t axis = 0; axis < shape.rank; axis++) {
        int64_t dim = axis < missing ? 1 : value->shape.dim[axis - missing];
        int64_t own = dim == 1 ? 0 : value->stride[axis - missing];
        if (dim != 1 && dim != shape.dim[axis]) return false;
        if (shape.dim[axis] > 1 && own != stride[axis]) return false;
    }
    return true;
}

/* Elements between neighbours along each axis of a dense tensor. */
static int64_t inner_of(weft_shape shape, int32_t axis) {
    int64_t inner = 1;
    for (int32_t i = axis + 1; i < shape.rank; i++) inner *= shape.dim[i];
    return inner;
}

/* The reduced axes of `space` as axes of `shape`; false where an axis would be reduced in part. */
static bool move_axes(weft_shape space, uint32_t axes, weft_shape shape, uint32_t *axes_out) {
    *axes_out = 0;
    for (int32_t to = 0; to < shape.rank; to++) {
        int64_t low = inner_of(shape, to), high = low * shape.dim[to];
        int     kinds = 0; /* 1: kept, 2: reduced */
        for (int32_t from = 0; from < space.rank; from++) {
            int64_t begin = inner_of(space, from), end = begin * space.dim[from];
            if (space.dim[from] > 1 && begin < high && low < end) kinds |= axes >> from & 1 ? 2 : 1;
        }
        if (kinds == 3) return false;
        if (kinds == 2) *axes_out |= UINT32_C(1) << to;
    }
    return *axes_out != 0;
}

/* The same window of the global tensor, said along an axis of `shape`. */
static bool move_window(weft_shape space, weft_shape shape, wefti_window *window) {
    if (!window->split) return true;
    int64_t inner = inner_of(space, window->axis), end = inner * space.dim[window->axis];
    for (int32_t to = 0; to < shape.rank; to++) {
        int64_t own = inner_of(shape, to);
        if (own * shape.dim[to] != end || shape.dim[to] == 1) continue;
        if (window->begin * inner % own != 0 || window->global * inner % own != 0) return false;
        *window = (wefti_window){1, to, window->begin * inner / own, window->global * inner / own};
        return true;
    }
    return false;
}

/* --- moving --- */

/* The attributes in the new shape; *fits_out false where they cannot be said there. */
static weft_status move_attrs(wefti_ir *ir, const wefti_item *item, weft_shape space, weft_shape shape, const wefti_attrs **attrs_out,
                              bool *fits_out) {
    wefti_attrs moved = *item->attrs;
    *attrs_out = item->attrs;
    if (item->op == WEFT_OP_DROPOUT) *fits_out = move_window(space, shape, &moved.dropout.window);
    else if (wefti_op_is_reduction(item->op)) *fits_out = move_axes(space, item->attrs->reduce.axes, shape, &moved.reduce.axes);
    else *fits_out = true;
    if (!*fits_out || memcmp(&moved, item->attrs, sizeof moved) == 0) return WEFT_OK;
    wefti_attrs *kept;
    WEFTI_TRY(wefti_ir_attrs(ir, &kept));
    *kept = moved;
    *attrs_out = kept;
    return WEFT_OK;
}

static weft_status move_inputs(wefti_ir *ir, int32_t index, weft_shape space, weft_shape shape, int64_t (*stride)[WEFT_MAX_RANK]) {
    for (int32_t i = 0; i < ir->items[index].n_inputs; i++) {
        int32_t            input = ir->items[index].inputs[i];
        const wefti_value *value = &ir->values[input], *root = &ir->values[value->root];
        if (weft_shape_equal(value->shape, space) && is_whole(ir, value) && weft_shape_equal(root->shape, shape)) {
            ir->items[index].inputs[i] = value->root;
            continue;
        }
        if (broadcasts_so(value, shape, stride[i])) continue;
        WEFTI_TRY(add_window(ir, input, shape, stride[i], &input));
        ir->items[index].inputs[i] = input;
    }
    return WEFT_OK;
}

/* Changes the shape of what the item computes; readers get a window in the old one. */
static weft_status move_output(mover *m, int32_t output, weft_shape shape) {
    wefti_ir  *ir = m->ir;
    weft_shape old = ir->values[output].shape;
    int64_t    stride[WEFT_MAX_RANK];
    wefti_dense_strides(old, stride);
    ir->values[output].shape = shape;
    wefti_dense_strides(shape, ir->values[output].stride);
    return add_window(ir, output, old, stride, &m->moved[output]);
}

static weft_status move_item(mover *m, int32_t index) {
    wefti_ir   *ir = m->ir;
    wefti_item *item = &ir->items[index];
    bool        reduces = wefti_op_is_reduction(item->op), fits;
    int64_t     stride[3][WEFT_MAX_RANK];
    weft_shape  space = ir->values[reduces ? item->inputs[0] : item->outputs[0]].shape, shape;
    const wefti_attrs *attrs;
    if (weft_shape_elements(space) == 0 || !find_shape(ir, item, space, &shape)) return WEFT_OK;
    for (int32_t i = 0; i < item->n_inputs; i++)
        if (!wefti_stretched_strides(&ir->values[item->inputs[i]], space, shape, stride[i])) return WEFT_OK;
    WEFTI_TRY(move_attrs(ir, item, space, shape, &attrs, &fits));
    if (!fits) return WEFT_OK;
    item->attrs = attrs;
    WEFTI_TRY(move_inputs(ir, index, space, shape, stride));
    return reduces ? WEFT_OK : move_output(m, ir->items[index].outputs[0], shape);
}

weft_status wefti_pass_spaces(wefti_ir *ir) {
    weft_status status = WEFT_OK;
    mover       m = {.ir = ir, .n_moved = ir->n_values};
    size_t      bytes = (size_t)ir->n_values * sizeof *m.moved;
    WEFTI_TRY(wefti_alloc(bytes, "a plan", &m.moved));
    memset(m.moved, 0xff, bytes);
    for (int32_t k = 0; k < ir->n_order && status == WEFT_OK; k++) {
        wefti_item *item = &ir->items[ir->order[k]];
        for (int32_t i = 0; i < item->n_inputs; i++) item->inputs[i] = current(&m, item->inputs[i]);
        if (wefti_op_is_elementwise(item->op) || wefti_op_is_reduction(item->op)) status = move_item(&m, ir->order[k]);
    }
    for (int32_t o = 0; o < ir->n_outputs; o++)
        if (ir->outputs[o] < m.n_moved && m.moved[ir->outputs[o]] >= 0) ir->outputs[o] = m.moved[ir->outputs[o]];
    wefti_free(m.moved, bytes);
    return status;
}

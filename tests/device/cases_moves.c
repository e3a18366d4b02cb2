/* Moves and generators: views that must copy, concat, pad, gather, scatter-add, full, arange, random, assign. */
#include <math.h>
#include <string.h>

#include "core/tensor/philox.h"
#include "device/conformance.h"

static void copy_value(const tensor *x, int64_t from, tensor *y, int64_t to) {
    y->f[to] = x->f[from];
    y->i[to] = x->i[from];
}

static void define_view(const test_case *self, const tensor *x, tensor *y) {
    for (int64_t i = 0; i < y->n; i++) {
        int64_t index[WEFT_MAX_RANK], from[WEFT_MAX_RANK] = {0};
        unravel(y->shape, i, index);
        for (int32_t axis = 0; axis < y->shape.rank; axis++) {
            if (self->op == WEFT_OP_PERMUTE) from[self->attrs.view.axes[axis]] = index[axis];
            if (self->op == WEFT_OP_SLICE)
                from[axis] = self->attrs.slice.start[axis] + index[axis] * self->attrs.slice.step[axis];
        }
        for (int32_t axis = 0; self->op == WEFT_OP_EXPAND && axis < x->shape.rank; axis++)
            from[axis] = x->shape.dim[axis] == 1 ? 0 : index[y->shape.rank - x->shape.rank + axis];
        copy_value(x, self->op == WEFT_OP_RESHAPE ? i : ravel(x->shape, from), y, i);
    }
}

static void define_concat(const test_case *self, const tensor *inputs, tensor *y) {
    int32_t axis = self->attrs.axis.axis;
    for (int64_t i = 0; i < y->n; i++) {
        int64_t index[WEFT_MAX_RANK];
        int32_t k = 0;
        unravel(y->shape, i, index);
        while (index[axis] >= inputs[k].shape.dim[axis]) index[axis] -= inputs[k++].shape.dim[axis];
        copy_value(&inputs[k], ravel(inputs[k].shape, index), y, i);
    }
}

static void define_pad(const test_case *self, const tensor *x, tensor *y) {
    for (int64_t i = 0; i < y->n; i++) {
        int64_t index[WEFT_MAX_RANK];
        bool    inside = true;
        unravel(y->shape, i, index);
        for (int32_t axis = 0; axis < y->shape.rank; axis++) {
            int64_t period = self->attrs.pad.interior[axis] + 1, at = index[axis] - self->attrs.pad.low[axis];
            inside = inside && at >= 0 && at % period == 0 && at / period < x->shape.dim[axis];
            index[axis] = at / period;
        }
        y->f[i] = self->attrs.pad.value;
        y->i[i] = (int64_t)self->attrs.pad.value;
        if (y->dtype == WEFT_BOOL) y->i[i] = self->attrs.pad.value != 0;
        if (inside) copy_value(x, ravel(x->shape, index), y, i);
    }
}

/* Splits an index of GATHER's output into the place in x (without the axis) and the place in the index. */
static bool picked_place(const test_case *self, const tensor *inputs, weft_shape picked, int64_t i, int64_t *x_out) {
    weft_shape x = inputs[0].shape, index_shape = inputs[1].shape;
    int32_t    axis = self->attrs.axis.axis;
    int64_t    at[WEFT_MAX_RANK], place[WEFT_MAX_RANK];
    unravel(picked, i, at);
    for (int32_t d = 0; d < x.rank; d++) place[d] = d < axis ? at[d] : d > axis ? at[d + index_shape.rank - 1] : 0;
    place[axis] = inputs[1].i[ravel(index_shape, at + axis)];
    if (place[axis] < 0 || place[axis] >= x.dim[axis]) return false;
    *x_out = ravel(x, place);
    return true;
}

static void define_pick(const test_case *self, const tensor *inputs, tensor *y) {
    int64_t at = 0;
    if (self->op == WEFT_OP_GATHER) {
        for (int64_t i = 0; i < y->n; i++)
            if (picked_place(self, inputs, y->shape, i, &at)) copy_value(&inputs[0], at, y, i);
        return;
    }
    for (int64_t i = 0; i < y->n; i++) {
        copy_value(&inputs[0], i, y, i);
        y->scale[i] = fabs(y->f[i]);
    }
    for (int64_t i = 0; i < inputs[2].n; i++) {
        if (!picked_place(self, inputs, inputs[2].shape, i, &at)) continue;
        y->f[at] += inputs[2].f[i];
        y->i[at] += inputs[2].i[i];
        y->scale[at] += fabs(inputs[2].f[i]);
    }
    for (int64_t i = 0; i < y->n; i++) {
        if (y->dtype == WEFT_I32) y->i[i] = (int32_t)y->i[i];
        if (y->dtype == WEFT_U8) y->i[i] = (uint8_t)y->i[i];
    }
}

static void define_random(const test_case *self, const tensor *inputs, tensor *y) {
    const wefti_window *window = &self->attrs.random.window;
    weft_shape          global = y->shape;
    if (window->split) global.dim[window->axis] = window->global;
    for (int64_t i = 0; i < y->n; i++) {
        int64_t index[WEFT_MAX_RANK];
        unravel(y->shape, i, index);
        if (window->split) index[window->axis] += window->begin;
        uint64_t step = (uint64_t)inputs[0].i[0];
        bool     normal = self->attrs.random.kind == WEFTI_RANDOM_NORMAL;
        y->f[i] = normal ? wefti_random_normal(self->attrs.random.key, step, ravel(global, index), y->dtype)
                         : wefti_random_uniform(self->attrs.random.key, step, ravel(global, index), y->dtype);
        y->scale[i] = normal ? 1 : 0;
    }
}

/* Every pair of elements. */
static void define_occurrence(const test_case *self, const tensor *x, tensor *y) {
    int64_t columns = x->shape.dim[1];
    for (int64_t i = 0; i < x->n; i++) {
        bool counted = x->i[i] >= 0 && x->i[i] < self->attrs.expert.experts;
        y->i[i] = counted ? 0 : -1;
        for (int64_t k = 0; counted && k < x->n; k++) {
            bool before = k % columns < i % columns || (k % columns == i % columns && k < i);
            y->i[i] += before && x->i[k] == x->i[i];
        }
    }
}

/* As integers hold it; NaN is 0. */
static int64_t saturated(weft_dtype dtype, double value) {
    bool    small = dtype == WEFT_U8 || dtype == WEFT_I32; /* others are as wide as the result */
    int64_t least = dtype == WEFT_U8 ? 0 : dtype == WEFT_I32 ? INT32_MIN : INT64_MIN;
    int64_t most = dtype == WEFT_U8 ? 255 : dtype == WEFT_I32 ? INT32_MAX : INT64_MAX;
    if (dtype == WEFT_BOOL || isnan(value)) return !isnan(value) && value != 0;
    if (value <= (double)least) return least;
    return value >= (small ? (double)most : 0x1p63) ? most : (int64_t)value;
}

void define_move(const test_case *self, const tensor *inputs, tensor *outputs) {
    tensor *y = &outputs[0];
    switch (self->op) {
    case WEFT_OP_CONCAT: define_concat(self, inputs, y); return;
    case WEFT_OP_PAD: define_pad(self, &inputs[0], y); return;
    case WEFT_OP_GATHER:
    case WEFT_OP_SCATTER_ADD: define_pick(self, inputs, y); return;
    case WEFT_OP_OCCURRENCE: define_occurrence(self, &inputs[0], y); return;
    case WEFT_OP_RANDOM: define_random(self, inputs, y); return;
    case WEFT_OP_FULL:
    case WEFT_OP_ARANGE:
        for (int64_t i = 0; i < y->n; i++) {
            y->f[i] = self->op == WEFT_OP_FULL ? self->attrs.full.value
                                               : self->attrs.arange.start + (double)i * self->attrs.arange.step;
            y->i[i] = saturated(y->dtype, y->f[i]);
        }
        return;
    case WEFT_OP_ASSIGN:
        for (int64_t i = 0; i < y->n; i++) copy_value(&inputs[1], i, y, i);
        return;
    default: define_view(self, &inputs[0], y); return;
    }
}

/* ---- cases ---- */

static test_case move_case(weft_op op, weft_dtype dtype, weft_shape x, weft_shape y, layout how) {
    test_case one;
    memset(&one, 0, sizeof one);
    one.op = op;
    one.n_inputs = one.n_outputs = 1;
    one.inputs[0] = (argument){dtype, x, how, -9, 9, true};
    one.outputs[0] = (argument){.dtype = dtype, .shape = y};
    one.seed = (uint64_t)op;
    return one;
}

static void visit_views(case_visitor visit, void *context, weft_dtype dtype, layout how) {
    test_case one = move_case(WEFT_OP_RESHAPE, dtype, weft_shape(6, 35), weft_shape(2, 7, 15), how);
    visit(context, &one);
    one = move_case(WEFT_OP_RESHAPE, dtype, weft_shape(0, 3), weft_shape(5, 0), how);
    visit(context, &one);
    one = move_case(WEFT_OP_PERMUTE, dtype, weft_shape(3, 4, 5), weft_shape(5, 3, 4), how);
    one.attrs.view.axes[0] = 2, one.attrs.view.axes[1] = 0, one.attrs.view.axes[2] = 1;
    visit(context, &one);
    one = move_case(WEFT_OP_PERMUTE, dtype, weft_shape(130, 70), weft_shape(70, 130), how);
    one.attrs.view.axes[0] = 1;
    visit(context, &one);
    one = move_case(WEFT_OP_PERMUTE, dtype, weft_shape(2, 144, 80), weft_shape(2, 80, 144), how); /* whole vectors on both sides */
    one.attrs.view.axes[1] = 2, one.attrs.view.axes[2] = 1;
    visit(context, &one);
    one = move_case(WEFT_OP_SLICE, dtype, weft_shape(9, 4, 5), weft_shape(3, 2, 5), how);
    one.attrs.slice.start[0] = 2, one.attrs.slice.step[0] = 3, one.attrs.slice.size[0] = 3;
    one.attrs.slice.start[1] = 1, one.attrs.slice.step[1] = 1, one.attrs.slice.size[1] = 2;
    one.attrs.slice.step[2] = 1, one.attrs.slice.size[2] = 5;
    visit(context, &one);
    one = move_case(WEFT_OP_EXPAND, dtype, weft_shape(3, 1), weft_shape(2, 3, 70), how);
    one.attrs.view.shape = one.outputs[0].shape;
    visit(context, &one);
    one = move_case(WEFT_OP_EXPAND, dtype, weft_shape_scalar(), weft_shape(4, 5), how);
    one.attrs.view.shape = one.outputs[0].shape;
    visit(context, &one);
}

/* Rows that are copied in several parts. */
static void visit_long_rows(case_visitor visit, void *context, weft_dtype dtype) {
    weft_shape shape = weft_shape(3, 20001);
    test_case  one = move_case(WEFT_OP_EXPAND, dtype, weft_shape(3, 1), shape, PLAIN);
    one.attrs.view.shape = shape;
    visit(context, &one);
    one.inputs[0].shape = weft_shape(20001);
    visit(context, &one);
    one = move_case(WEFT_OP_PERMUTE, dtype, weft_shape(270, 300), weft_shape(300, 270), PLAIN);
    one.attrs.view.axes[0] = 1;
    visit(context, &one);
    one = move_case(WEFT_OP_PAD, dtype, shape, weft_shape(5, 20004), GAPPED);
    one.attrs.pad.low[0] = one.attrs.pad.high[0] = one.attrs.pad.low[1] = 1, one.attrs.pad.high[1] = 2;
    visit(context, &one);
    one = move_case(WEFT_OP_CONCAT, dtype, shape, weft_shape(3, 20008), PLAIN);
    one.n_inputs = 2;
    one.inputs[1] = one.inputs[0];
    one.inputs[1].shape.dim[1] = 7;
    one.attrs.axis.axis = 1;
    visit(context, &one);
}

static void visit_joins(case_visitor visit, void *context, weft_dtype dtype, layout how) {
    for (int32_t axis = 0; axis < 3; axis++) {
        weft_shape shape = weft_shape(3, 4, 5), sum = shape;
        test_case  one = move_case(WEFT_OP_CONCAT, dtype, shape, sum, how);
        one.attrs.axis.axis = axis;
        one.n_inputs = 4;
        sum.dim[axis] = 0;
        static const int64_t sizes[4] = {2, 0, 1, 7};
        for (int32_t k = 0; k < 4; k++) {
            shape.dim[axis] = sizes[k];
            sum.dim[axis] += sizes[k];
            one.inputs[k] = (argument){dtype, shape, k % 2 ? PLAIN : how, -9, 9, true};
        }
        one.outputs[0].shape = sum;
        visit(context, &one);
    }
    test_case one = move_case(WEFT_OP_PAD, dtype, weft_shape(4, 5), weft_shape(13, 8), how);
    one.attrs.pad.low[0] = 1, one.attrs.pad.high[0] = 2, one.attrs.pad.interior[0] = 2;
    one.attrs.pad.high[1] = 3;
    one.attrs.pad.value = 1;
    visit(context, &one);
    one = move_case(WEFT_OP_PAD, dtype, weft_shape(0, 2), weft_shape(3, 4), how);
    one.attrs.pad.low[0] = 3, one.attrs.pad.high[1] = 2;
    visit(context, &one);
    one = move_case(WEFT_OP_PAD, dtype, weft_shape_scalar(), weft_shape_scalar(), how);
    visit(context, &one);
}

/* Many picks of whole slices, several chunks of them where they are wide. */
static void visit_slices(case_visitor visit, void *context, int64_t width) {
    test_case one = move_case(WEFT_OP_GATHER, WEFT_F32, weft_shape(97, width), weft_shape(11, 13, width), PLAIN);
    one.n_inputs = 2;
    one.inputs[1] = (argument){WEFT_I32, weft_shape(11, 13), PLAIN, 0, 97, false};
    visit(context, &one);
    one.op = WEFT_OP_SCATTER_ADD;
    one.n_inputs = 3;
    one.inputs[0].special = false;
    one.inputs[2] = (argument){WEFT_F32, weft_shape(11, 13, width), PLAIN, -9, 9, false};
    one.outputs[0].shape = weft_shape(97, width);
    visit(context, &one);
}

static void visit_picks(case_visitor visit, void *context, weft_dtype dtype, layout how) {
    static const weft_shape indices[] = {{0, {0}}, {1, {6}}, {2, {2, 3}}, {1, {0}}};
    for (int32_t axis = 0; axis < 3; axis++)
        for (size_t s = 0; s < WEFTI_COUNT(indices); s++)
            for (int wide = 0; wide < 2; wide++) {
                weft_shape x = weft_shape(4, 5, 3), y = {0, {0}};
                for (int32_t d = 0; d < axis; d++) y.dim[y.rank++] = x.dim[d];
                for (int32_t d = 0; d < indices[s].rank; d++) y.dim[y.rank++] = indices[s].dim[d];
                for (int32_t d = axis + 1; d < 3; d++) y.dim[y.rank++] = x.dim[d];
                test_case one = move_case(WEFT_OP_GATHER, dtype, x, y, how);
                one.attrs.axis.axis = axis;
                one.n_inputs = 2;
                one.inputs[1] = (argument){wide ? WEFT_I64 : WEFT_I32, indices[s], s % 2 ? how : PLAIN, -2, 7, false};
                visit(context, &one);
                if (dtype == WEFT_BOOL) continue;
                one.op = WEFT_OP_SCATTER_ADD;
                one.n_inputs = 3;
                one.inputs[0].special = false;
                one.inputs[2] = (argument){dtype, y, how, -9, 9, false};
                one.outputs[0].shape = x;
                visit(context, &one);
            }
    for (int64_t width = 64; width <= 384 && dtype == WEFT_F32; width += 320) visit_slices(visit, context, width);
}

static void visit_occurrences(case_visitor visit, void *context, weft_dtype dtype, layout how) {
    static const int64_t sizes[][3] = {{7, 2, 3}, {1, 1, 1}, {0, 2, 3}, {40, 3, 5}, {3000, 2, 7}, {700, 1, 300}};
    for (size_t s = 0; s < WEFTI_COUNT(sizes); s++) {
        weft_shape shape = weft_shape(sizes[s][0], sizes[s][1]);
        test_case  one = move_case(WEFT_OP_OCCURRENCE, dtype, shape, shape, how);
        one.inputs[0] = (argument){dtype, shape, how, -1, (double)sizes[s][2] + 1, false};
        one.outputs[0].dtype = WEFT_I32;
        one.attrs.expert.experts = sizes[s][2];
        visit(context, &one);
    }
}

static void visit_generators(case_visitor visit, void *context, weft_dtype dtype) {
    test_case one = move_case(WEFT_OP_FULL, dtype, weft_shape(3, 67), weft_shape(3, 67), PLAIN);
    one.n_inputs = 0;
    one.attrs.full.value = 1.5;
    if (dtype != WEFT_BOOL) visit(context, &one);
    one.attrs.full.value = 1;
    visit(context, &one);
    one.op = WEFT_OP_ARANGE;
    one.attrs.arange.start = 3, one.attrs.arange.step = dtype == WEFT_BOOL || dtype == WEFT_U8 ? 1 : -2;
    visit(context, &one);
    if (!weft_dtype_is_float(dtype)) return;
    one.op = WEFT_OP_RANDOM;
    one.n_inputs = 1;
    one.inputs[0] = (argument){WEFT_I64, weft_shape_scalar(), PLAIN, 0, 1e12, false};
    for (int kind = 0; kind < 2; kind++)
        for (int split = 0; split < 3; split++) {
            memset(&one.attrs, 0, sizeof one.attrs);
            one.attrs.random.key = UINT64_C(0xfedcba9876543210);
            one.attrs.random.kind = kind;
            if (split)
                one.attrs.random.window = (wefti_window){.split = 1, .axis = split - 1, .begin = 2, .global = 75};
            visit(context, &one);
        }
}

void visit_moves(case_visitor visit, void *context) {
    for (int dtype = 0; dtype < WEFT_DTYPE_COUNT; dtype++) {
        for (int how = 0; how < LAYOUT_COUNT; how++) {
            visit_views(visit, context, (weft_dtype)dtype, (layout)how);
            visit_joins(visit, context, (weft_dtype)dtype, (layout)how);
            visit_picks(visit, context, (weft_dtype)dtype, (layout)how);
            if (dtype == WEFT_I32 || dtype == WEFT_I64) visit_occurrences(visit, context, (weft_dtype)dtype, (layout)how);
            test_case one = move_case(WEFT_OP_ASSIGN, (weft_dtype)dtype, weft_shape(5, 31), weft_shape(5, 31), PLAIN);
            one.n_inputs = 2;
            one.inputs[1] = one.inputs[0];
            one.inputs[1].layout = (layout)how;
            one.in_place = true;
            visit(context, &one);
        }
        visit_generators(visit, context, (weft_dtype)dtype);
        if (dtype == WEFT_F32 || dtype == WEFT_U8) visit_long_rows(visit, context, (weft_dtype)dtype);
    }
}

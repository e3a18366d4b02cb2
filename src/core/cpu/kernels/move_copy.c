/* Copies between strided places: views that could not stay views, concat, pad, assign.
 *
 * Idea: axes of size 1 go and neighbours that lie one behind the other in both places become one, so that most copies
 * are a few long rows (memcpy). Where the source runs along another axis than the target, the two axes are copied in
 * small square tiles, which keeps both in the first cache. Threads share blocks of the target, whose size follows from
 * the shape. Cost: reads and writes every element once. */
#include "core/cpu/kernels/fast.h"
#include "core/cpu/kernels/simd.h"

enum { BLOCK = 16384, TILE = 16 };

/* A copy after its axes have been merged: the last is `columns`, the one that is tiled with it `rows`, the others
 * `outer`. */
typedef struct copy {
    const char *from;
    char       *to;
    size_t      bytes; /* of an element */
    int32_t     rank;  /* of outer */
    int64_t     dim[WEFT_MAX_RANK], from_stride[WEFT_MAX_RANK], to_stride[WEFT_MAX_RANK];
    int64_t     rows, columns, from_row, to_row, from_column, to_column;
    int64_t     block_rows, block_columns, row_blocks, column_blocks;
} copy;

WEFTI_INLINE void copy_block(char *to, const char *from, int64_t rows, int64_t columns, const copy *c, size_t bytes) {
    for (int64_t i = 0; i < rows; i += TILE)
        for (int64_t j = 0; j < columns; j += TILE) {
            int64_t i_end = i + TILE < rows ? i + TILE : rows, j_end = j + TILE < columns ? j + TILE : columns;
            for (int64_t a = i; a < i_end; a++)
                for (int64_t b = j; b < j_end; b++)
                    memcpy(to + (a * c->to_row + b * c->to_column) * (int64_t)bytes,
                           from + (a * c->from_row + b * c->from_column) * (int64_t)bytes, bytes);
        }
}

/* One value over a row. */
WEFTI_INLINE void fill_row(char *to, const char *from, int64_t columns, size_t bytes) {
    for (int64_t b = 0; b < columns; b++) memcpy(to + b * (int64_t)bytes, from, bytes);
}

static void copy_rows(char *to, const char *from, int64_t rows, int64_t columns, const copy *c) {
    bool run = c->to_column == 1 && c->from_column == 1, repeat = c->to_column == 1 && c->from_column == 0;
    for (int64_t a = 0; (run || repeat) && a < rows; a++) {
        char       *to_row = to + a * c->to_row * (int64_t)c->bytes;
        const char *from_row = from + a * c->from_row * (int64_t)c->bytes;
        if (run) memcpy(to_row, from_row, (size_t)columns * c->bytes);
        else if (c->bytes == 4) fill_row(to_row, from_row, columns, 4);
        else if (c->bytes == 8) fill_row(to_row, from_row, columns, 8);
        else if (c->bytes == 2) fill_row(to_row, from_row, columns, 2);
        else fill_row(to_row, from_row, columns, 1);
    }
    if (run || repeat) return;
    if (c->bytes == 4) copy_block(to, from, rows, columns, c, 4);
    else if (c->bytes == 8) copy_block(to, from, rows, columns, c, 8);
    else if (c->bytes == 2) copy_block(to, from, rows, columns, c, 2);
    else copy_block(to, from, rows, columns, c, 1);
}

static void copy_chunk(void *context, int64_t chunk, int32_t worker) {
    const copy *c = context;
    int64_t     column = chunk % c->column_blocks * c->block_columns;
    int64_t     row = chunk / c->column_blocks % c->row_blocks * c->block_rows;
    int64_t     outer = chunk / c->column_blocks / c->row_blocks;
    int64_t     from = row * c->from_row + column * c->from_column, to = row * c->to_row + column * c->to_column;
    (void)worker;
    for (int32_t axis = c->rank - 1; axis >= 0; axis--) {
        from += outer % c->dim[axis] * c->from_stride[axis];
        to += outer % c->dim[axis] * c->to_stride[axis];
        outer /= c->dim[axis];
    }
    copy_rows(c->to + to * (int64_t)c->bytes, c->from + from * (int64_t)c->bytes,
              wefti_min_i64(c->block_rows, c->rows - row), wefti_min_i64(c->block_columns, c->columns - column), c);
}

static void take_axis(copy *c, int32_t axis, int64_t *dim, int64_t *from, int64_t *to) {
    *dim = c->dim[axis], *from = c->from_stride[axis], *to = c->to_stride[axis];
    c->rank--;
    for (; axis < c->rank; axis++) {
        c->dim[axis] = c->dim[axis + 1];
        c->from_stride[axis] = c->from_stride[axis + 1];
        c->to_stride[axis] = c->to_stride[axis + 1];
    }
}

/* Merges axes and picks the two inner ones: the target's last, and the one along which the source is densest. */
static void arrange(copy *c, weft_shape space, const int64_t *from_stride, const int64_t *to_stride) {
    c->rank = 0;
    for (int32_t axis = 0; axis < space.rank; axis++) {
        int64_t dim = space.dim[axis], last = c->rank - 1;
        if (dim == 1) continue;
        if (c->rank && c->from_stride[last] == dim * from_stride[axis] && c->to_stride[last] == dim * to_stride[axis]) {
            c->dim[last] *= dim;
            c->from_stride[last] = from_stride[axis], c->to_stride[last] = to_stride[axis];
            continue;
        }
        c->dim[c->rank] = dim;
        c->from_stride[c->rank] = from_stride[axis];
        c->to_stride[c->rank++] = to_stride[axis];
    }
    c->rows = c->columns = 1;
    c->from_row = c->to_row = 0;
    c->from_column = c->to_column = 1;
    if (c->rank) take_axis(c, c->rank - 1, &c->columns, &c->from_column, &c->to_column);
    if (c->rank) {
        int32_t rows = c->rank - 1;
        for (int32_t axis = 0; axis < c->rank && c->from_column != 1 && c->from_column != 0; axis++)
            if (c->from_stride[axis] == 1) rows = axis;
        take_axis(c, rows, &c->rows, &c->from_row, &c->to_row);
    }
    bool tiled = c->to_column != 1 || c->from_column > 1;
    c->block_columns = wefti_min_i64(c->columns, tiled ? BLOCK / 64 : BLOCK);
    c->block_rows = wefti_min_i64(c->rows, wefti_max_i64(1, BLOCK / c->block_columns));
    c->row_blocks = wefti_cpu_chunks(c->rows, c->block_rows);
    c->column_blocks = wefti_cpu_chunks(c->columns, c->block_columns);
}

static void run_copy(const wefti_cpu_run *run, weft_shape space, const void *from, const int64_t *from_stride, void *to,
                     const int64_t *to_stride, weft_dtype dtype) {
    copy    c = {.from = from, .to = to, .bytes = weft_dtype_bytes(dtype)};
    int64_t outer = 1;
    if (weft_shape_elements(space) == 0) return;
    arrange(&c, space, from_stride, to_stride);
    for (int32_t axis = 0; axis < c.rank; axis++) outer *= c.dim[axis];
    wefti_cpu_for(run, outer * c.row_blocks * c.column_blocks, copy_chunk, &c);
}

static weft_status run_view(const wefti_cpu_run *run) {
    const wefti_operand *x = &run->call->inputs[0], *y = &run->call->outputs[0];
    const wefti_attrs   *attrs = run->call->attrs;
    int64_t              to[WEFT_MAX_RANK] = {0}, from[WEFT_MAX_RANK] = {0}, origin = 0;
    weft_shape           space = y->shape;
    switch (run->call->op) {
    case WEFT_OP_RESHAPE:
        space = x->shape;
        memcpy(from, x->stride, sizeof from);
        break;
    case WEFT_OP_PERMUTE:
        for (int32_t axis = 0; axis < space.rank; axis++) from[axis] = x->stride[attrs->view.axes[axis]];
        break;
    case WEFT_OP_SLICE:
        for (int32_t axis = 0; axis < space.rank; axis++) {
            origin += attrs->slice.start[axis] * x->stride[axis];
            from[axis] = attrs->slice.step[axis] * x->stride[axis];
        }
        break;
    default: wefti_operand_expand(x, space, from); break;
    }
    wefti_contiguous_strides(space, to);
    const char *data = (const char *)run->inputs[0] + origin * (int64_t)weft_dtype_bytes(x->dtype);
    run_copy(run, space, data, from, run->outputs[0], to, y->dtype);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_kernel_view = {.name = "copy", .run = run_view};

static weft_status run_assign(const wefti_cpu_run *run) {
    const wefti_operand *x = &run->call->inputs[1], *y = &run->call->outputs[0];
    int64_t              from[WEFT_MAX_RANK] = {0}, to[WEFT_MAX_RANK] = {0};
    if (run->inputs[1] == run->outputs[0] && wefti_operand_is_contiguous(x)) return WEFT_OK; /* computed in place */
    wefti_operand_expand(x, y->shape, from);
    wefti_contiguous_strides(y->shape, to);
    run_copy(run, y->shape, run->inputs[1], from, run->outputs[0], to, y->dtype);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_kernel_assign = {.name = "assign", .run = run_assign};

static weft_status run_concat(const wefti_cpu_run *run) {
    const wefti_operand *y = &run->call->outputs[0];
    int32_t              axis = run->call->attrs->axis.axis;
    char                *at = run->outputs[0];
    int64_t              to[WEFT_MAX_RANK] = {0};
    wefti_contiguous_strides(y->shape, to);
    for (int32_t i = 0; i < run->call->n_inputs; i++) {
        const wefti_operand *x = &run->call->inputs[i];
        run_copy(run, x->shape, run->inputs[i], x->stride, at, to, y->dtype);
        at += x->shape.dim[axis] * to[axis] * (int64_t)weft_dtype_bytes(y->dtype);
    }
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_kernel_concat = {.name = "concat", .run = run_concat};

/* Fills all, then copies what is inside. */
static weft_status run_pad(const wefti_cpu_run *run) {
    const wefti_operand *x = &run->call->inputs[0], *y = &run->call->outputs[0];
    const wefti_attrs   *attrs = run->call->attrs;
    int64_t              to[WEFT_MAX_RANK] = {0}, none[WEFT_MAX_RANK] = {0}, origin = 0, value = 0;
    wefti_contiguous_strides(y->shape, to);
    wefti_store_f64(&value, 0, y->dtype, attrs->pad.value);
    run_copy(run, y->shape, &value, none, run->outputs[0], to, y->dtype);
    for (int32_t axis = 0; axis < x->shape.rank; axis++) {
        origin += attrs->pad.low[axis] * to[axis];
        to[axis] *= attrs->pad.interior[axis] + 1;
    }
    run_copy(run, x->shape, run->inputs[0], x->stride,
             (char *)run->outputs[0] + origin * (int64_t)weft_dtype_bytes(y->dtype), to, y->dtype);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_kernel_pad = {.name = "pad", .run = run_pad};

static weft_status run_full(const wefti_cpu_run *run) {
    const wefti_operand *y = &run->call->outputs[0];
    int64_t              to[WEFT_MAX_RANK] = {0}, none[WEFT_MAX_RANK] = {0}, value = 0;
    wefti_contiguous_strides(y->shape, to);
    wefti_store_f64(&value, 0, y->dtype, run->call->attrs->full.value);
    run_copy(run, y->shape, &value, none, run->outputs[0], to, y->dtype);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_kernel_full = {.name = "full", .run = run_full};

/* MEAN_BACKWARD: divides into scratch, then spreads by a copy. */
static int64_t spread_scratch(const wefti_call *call, int32_t threads) {
    (void)threads;
    return wefti_operand_elements(&call->inputs[0]) * (int64_t)weft_dtype_bytes(call->inputs[0].dtype);
}

static weft_status run_mean_backward(const wefti_cpu_run *run) {
    const wefti_operand *g = &run->call->inputs[0], *y = &run->call->outputs[0];
    const wefti_attrs   *attrs = run->call->attrs;
    double               count = 1;
    int64_t              dense[WEFT_MAX_RANK] = {0}, from[WEFT_MAX_RANK] = {0}, to[WEFT_MAX_RANK] = {0};
    bool                 kept = g->shape.rank == y->shape.rank;
    wefti_contiguous_strides(g->shape, dense);
    wefti_contiguous_strides(y->shape, to);
    for (int32_t axis = 0, own = 0; axis < y->shape.rank; axis++) {
        bool away = attrs->reduce.axes >> axis & 1;
        if (away) count *= (double)y->shape.dim[axis];
        from[axis] = away ? 0 : dense[own];
        own += kept || !away;
    }
    if (attrs->reduce.count != 0) count = attrs->reduce.count;
    wefti_walk walk;
    wefti_walk_start(&walk, g->shape, g->stride, 0);
    for (int64_t i = 0; i < wefti_operand_elements(g); i++) {
        wefti_store_f64(run->scratch, i, g->dtype, wefti_load_f64(run->inputs[0], walk.offset, g->dtype) / count);
        wefti_walk_advance(&walk, 1);
    }
    run_copy(run, y->shape, run->scratch, from, run->outputs[0], to, y->dtype);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_kernel_mean_backward = {
    .name = "mean backward", .scratch = spread_scratch, .run = run_mean_backward};
